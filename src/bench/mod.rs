//! `bench WHAT`: measures this host, in one run, and prints a table or one JSON object a line.
//!
//! A `floor` is measured on this very machine in the same run, and `ratio` is value over floor. A
//! `limit` is only what the project asks of itself.

mod dispatch;
mod idle;
mod recovery;
mod startup;

use crate::cli::args::Bench;
use crate::cli::output::{OutputOptions, Table};
use crate::config::SwarmConfig;
use crate::os::signals::StopSignals;
use crate::supervisor::{Options, Supervisor};
use serde_json::json;
use std::io::Write as _;

/// One figure.
struct Figure {
    bench: &'static str,
    name: String,
    value: f64,
    unit: &'static str,
    /// What it is measured against, measured in the same run, in the same unit.
    floor: Option<f64>,
    /// What the project asks of it, in the same unit.
    limit: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
    /// What the floor is, or how it was measured.
    note: String,
}

/// Measures and prints. Returns the exit code.
pub(crate) fn main(
    what: Bench,
    quick: bool,
    config: &SwarmConfig,
    output: &OutputOptions,
) -> anyhow::Result<u8> {
    let wanted = |bench| what == bench || what == Bench::All;
    let mut figures = Vec::new();
    // One after the other: there may be two cores only.
    if wanted(Bench::Dispatch) {
        figures.extend(dispatch::measure(quick, config)?);
    }
    if wanted(Bench::Startup) {
        figures.extend(startup::measure(quick)?);
    }
    if wanted(Bench::Recovery) {
        figures.extend(recovery::measure(quick, config)?);
    }
    if wanted(Bench::Idle) {
        figures.extend(idle::measure(quick, config)?);
    }
    print(&figures, output)?;
    Ok(0)
}

fn print(figures: &[Figure], output: &OutputOptions) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if output.json {
        for figure in figures {
            let ratio = figure.floor.map(|floor| figure.value / floor);
            let line = json!({
                "bench": figure.bench, "name": figure.name, "value": figure.value, "unit": figure.unit,
                "floor": figure.floor, "ratio": ratio, "limit": figure.limit, "p50": figure.p50, "p99": figure.p99, "note": figure.note,
            });
            writeln!(stdout, "{line}")?;
        }
        return Ok(());
    }
    let heads = ["bench", "name", "value", "unit", "p50", "p99", "floor", "ratio", "limit"];
    let mut table = Table::new(&heads).right(&[2, 4, 5, 6, 7, 8]);
    for figure in figures {
        let number = |value: Option<f64>| value.map_or_else(String::new, plain);
        table.row([
            figure.bench.to_owned(),
            figure.name.clone(),
            plain(figure.value),
            figure.unit.to_owned(),
            number(figure.p50),
            number(figure.p99),
            number(figure.floor),
            figure.floor.map_or_else(String::new, |floor| format!("{:.2}", figure.value / floor)),
            number(figure.limit),
        ]);
    }
    write!(stdout, "{}", table.render(output))?;
    let notes = figures.iter().filter(|figure| !figure.note.is_empty());
    for figure in notes {
        writeln!(stdout, "{}: {}", figure.name, figure.note)?;
    }
    Ok(())
}

fn plain(value: f64) -> String {
    match value.abs() {
        x if x >= 1000.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// Value at a share of a sorted list.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// A private swarm inside this process, whose loop the benchmark turns itself.
fn swarm(config: &SwarmConfig) -> anyhow::Result<Supervisor> {
    let options = Options {
        private: true,
        state_dir: None,
        log_filter: "error".to_owned(),
        log_json: false,
        agent_log: None,
        signals: StopSignals::listen()?,
    };
    Ok(Supervisor::start(config.clone(), options)?)
}
