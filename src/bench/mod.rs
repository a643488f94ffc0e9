//! `bench WHAT`: measures this host, in one run, and prints a table or one JSON object a line.
//!
//! A `floor` is measured on this very machine in the same run, and `ratio` is value over floor. A
//! `limit` is what the project asks of itself; a figure beyond it is marked with `!` and named at the end.

mod balancer;
mod dispatch;
mod idle;
pub(crate) mod ipc;
mod journal;
mod kernels;
mod recovery;
mod startup;

pub(crate) use balancer::{read_traces, traces_help};

use crate::balancer::simulator::trace::Trace;
use crate::cli::args::Bench;
use crate::cli::output::{OutputOptions, Table, wrap};
use crate::cli::run::steps;
use crate::config::SwarmConfig;
use crate::os::affinity::{CoreMask, pin_current_thread};
use crate::os::signals::StopSignals;
use crate::supervisor::{Options, Supervisor};
use crate::telemetry::host::{HostSample, HostSampler};
use anyhow::ensure;
use indicatif::ProgressBar;
use serde_json::json;
use std::io::Write as _;

/// One figure.
#[derive(Clone, Debug, Default)]
struct Figure {
    bench: &'static str,
    name: String,
    value: f64,
    unit: &'static str,
    /// What it is measured against, measured in the same run, in the same unit.
    floor: Option<f64>,
    /// What the project asks of it, in the same unit.
    limit: Option<Limit>,
    p50: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    /// The floor's own.
    floor_p999: Option<f64>,
    /// What the floor is, or how it was measured.
    note: String,
    /// Of the time in which something had to run while its bench measured, what the hypervisor gave to other guests.
    stolen_percent: Option<f64>,
}

/// On which side of a number a figure shall lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    /// For times and costs.
    AtMost(f64),
    /// For rates.
    AtLeast(f64),
}

impl Limit {
    fn number(self) -> f64 {
        match self {
            Limit::AtMost(number) | Limit::AtLeast(number) => number,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Limit::AtMost(_) => "at most",
            Limit::AtLeast(_) => "at least",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Limit::AtMost(_) => "≤",
            Limit::AtLeast(_) => "≥",
        }
    }
}

impl Figure {
    fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.value / floor)
    }

    /// Whether it lies beyond its limit. A figure that is no number does.
    fn is_missed(&self) -> bool {
        match self.limit {
            None => false,
            Some(Limit::AtMost(most)) => self.value.is_nan() || self.value > most,
            Some(Limit::AtLeast(least)) => self.value.is_nan() || self.value < least,
        }
    }
}

/// Measures and prints. Returns whether all limits are kept.
pub(crate) fn main(
    what: Bench,
    quick: bool,
    traces: &[Trace],
    config: &SwarmConfig,
    output: &OutputOptions,
) -> anyhow::Result<bool> {
    let steps = Steps::new(output);
    let mut figures = Vec::new();
    let mut host = HostSampler::new("/proc");
    // One after the other: there may be two cores only.
    let mut bench = |bench, words: &str, measure: &dyn Fn() -> anyhow::Result<Vec<Figure>>| {
        if what == bench || what == Bench::All {
            if !words.is_empty() {
                steps.begin(words);
            }
            host.sample();
            let mut measured = measure()?;
            let stolen = stolen(&host.sample());
            measured.iter_mut().for_each(|figure| figure.stolen_percent = stolen);
            figures.extend(measured);
        }
        anyhow::Ok(())
    };
    bench(Bench::Ipc, "", &|| ipc::measure(quick, &steps))?;
    let words = "dispatch: no-op tasks, one at a time and as fast as they go";
    bench(Bench::Dispatch, words, &|| dispatch::measure(quick, config))?;
    bench(Bench::Startup, "startup: the whole command, again and again", &|| startup::measure(quick))?;
    bench(Bench::Recovery, "recovery: agents are killed and replaced", &|| recovery::measure(quick, config))?;
    bench(Bench::Journal, "journal: what keeping tasks costs", &|| journal::measure(quick, config))?;
    bench(Bench::Idle, "idle: a swarm that is left alone for a while", &|| idle::measure(quick, config))?;
    bench(Bench::Kernels, "", &|| kernels::measure(quick, &steps, config))?;
    let words = "balancer: every policy through the simulator";
    bench(Bench::Balancer, words, &|| Ok(balancer::measure(quick, traces)))?;
    steps.end();
    print(&figures, output)?;
    Ok(!figures.iter().any(Figure::is_missed))
}

/// What the hypervisor took away meanwhile: a share of the time in which something had to run.
fn stolen(host: &HostSample) -> Option<f64> {
    let (busy, steal) = (host.cpu_percent.get()?, host.steal_percent.get()?);
    Some(if steal > 0.0 { 100.0 * steal / (busy + steal) } else { 0.0 })
}

/// What is being measured, on a terminal: a run takes up to some minutes. Drawn only when a step begins, because
/// whoever draws in between takes part in the measurement.
struct Steps(ProgressBar);

impl Steps {
    fn new(output: &OutputOptions) -> Self {
        Self(steps(output))
    }

    fn begin(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.tick();
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}

fn print(figures: &[Figure], output: &OutputOptions) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if output.json {
        for figure in figures {
            let line = json!({
                "bench": figure.bench, "name": figure.name, "value": figure.value, "unit": figure.unit,
                "floor": figure.floor, "ratio": figure.ratio(),
                "limit": figure.limit.map(Limit::number), "limit_is": figure.limit.map(Limit::word),
                "missed": figure.is_missed(),
                "p50": figure.p50, "p99": figure.p99, "p999": figure.p999, "floor_p999": figure.floor_p999,
                "note": figure.note, "stolen_percent": figure.stolen_percent,
            });
            writeln!(stdout, "{line}")?;
        }
        return Ok(());
    }
    write!(stdout, "{}", table(figures).render(output))?;
    for figure in figures.iter().filter(|figure| !figure.note.is_empty()) {
        writeln!(stdout, "{}", wrap(&format!("{}: {}", figure.name, figure.note), output.width, 4))?;
    }
    for same in figures.chunk_by(|one, next| one.bench == next.bench) {
        if let Some(stolen) = same[0].stolen_percent.filter(|&stolen| stolen > 0.0) {
            let words = format!(
                "{}: the hypervisor gave {stolen:.1} % of the time in which something had to run to other guests; on a host of its \
                 own the figures are better, and most of all the highest percentiles",
                same[0].bench
            );
            writeln!(stdout, "{}", wrap(&words, output.width, 4))?;
        }
    }
    if let Some(verdict) = verdict(figures) {
        writeln!(stdout, "{verdict}")?;
    }
    Ok(())
}

fn table(figures: &[Figure]) -> Table {
    // Quantiles, floor and limit are in the unit of the value.
    let heads = ["bench", "name", "value", "unit", "p50", "p99", "p99.9", "floor", "ratio", "limit", ""];
    let mut table = Table::new(&heads).right(&[2, 4, 5, 6, 7, 8, 9]);
    for figure in figures {
        let number = |value: Option<f64>| value.map_or_else(String::new, plain);
        table.row([
            figure.bench.to_owned(),
            figure.name.clone(),
            plain(figure.value),
            figure.unit.to_owned(),
            number(figure.p50),
            number(figure.p99),
            number(figure.p999),
            number(figure.floor),
            figure.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            figure
                .limit
                .map_or_else(String::new, |limit| format!("{} {}", limit.sign(), plain(limit.number()))),
            if figure.is_missed() { "!".to_owned() } else { String::new() },
        ]);
    }
    table
}

/// Which limits were missed, in one line; `None` when no figure has a limit.
fn verdict(figures: &[Figure]) -> Option<String> {
    let limits = figures.iter().filter(|figure| figure.limit.is_some()).count();
    let missed: Vec<&str> =
        figures.iter().filter(|figure| figure.is_missed()).map(|figure| figure.name.as_str()).collect();
    match (limits, missed.len()) {
        (0, _) => None,
        (_, 0) => Some(format!("all {limits} limits are kept")),
        (_, count) => Some(format!("! {count} of {limits} limits missed: {}", missed.join(", "))),
    }
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

/// This thread on one core; dropped, it may run where it might before.
struct Pinned(Option<CoreMask>);

impl Pinned {
    fn to(core: usize) -> anyhow::Result<Self> {
        let pinned = Self(CoreMask::current());
        ensure!(pin_current_thread(core), "cannot pin to core {core}");
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(mask) = self.0 {
            mask.apply();
        }
    }
}

/// A private swarm inside this process, whose loop the benchmark turns itself.
fn swarm(config: &SwarmConfig) -> anyhow::Result<Supervisor> {
    let options = Options {
        private: true,
        state_dir: None,
        salvage: false,
        log_filter: "error".to_owned(),
        log_json: false,
        agent_log: None,
        signals: StopSignals::listen()?,
    };
    Ok(Supervisor::start(config.clone(), options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: f64, limit: Option<Limit>) -> Figure {
        Figure { name: name.to_owned(), value, limit, floor: Some(2.0), ..Figure::default() }
    }

    #[test]
    fn times_have_a_ceiling_and_rates_a_ground() {
        for (value, limit, missed) in [
            (5.0, Some(Limit::AtMost(5.0)), false),
            (5.1, Some(Limit::AtMost(5.0)), true),
            (5.0, Some(Limit::AtLeast(5.0)), false),
            (4.9, Some(Limit::AtLeast(5.0)), true),
            (f64::NAN, Some(Limit::AtMost(5.0)), true),
            (f64::NAN, Some(Limit::AtLeast(5.0)), true),
            (1e9, None, false),
        ] {
            assert_eq!(figure("x", value, limit).is_missed(), missed, "{value} {limit:?}");
        }
    }

    #[test]
    fn a_missed_limit_is_marked_and_named() {
        let figures = [
            figure("fast", 1.0, Some(Limit::AtMost(5.0))),
            figure("slow", 9.0, Some(Limit::AtMost(5.0))),
            figure("free", 9.0, None),
        ];
        let text = table(&figures).render(&OutputOptions { width: 200, ..OutputOptions::default() });
        let marked: Vec<&str> = text.lines().filter(|line| line.ends_with('!')).collect();
        assert!(marked.len() == 1 && marked[0].contains("slow") && marked[0].contains("≤ 5.000"), "{text}");
        assert_eq!(verdict(&figures).as_deref(), Some("! 1 of 2 limits missed: slow"));
        assert_eq!(verdict(&figures[..1]).as_deref(), Some("all 1 limits are kept"));
        assert_eq!(verdict(&figures[2..]), None);
    }

    #[test]
    fn quantiles_are_of_the_list() {
        let values = sorted(vec![3.0, 1.0, 2.0]);
        assert_eq!([0.0, 0.5, 1.0].map(|share| quantile(&values, share)), [1.0, 2.0, 3.0]);
    }
}
