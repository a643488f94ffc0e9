//! The policies in the simulator: what tasks take under each, beside the best simple one tuned in hindsight. In its own
//! scenarios, or in recorded traces.
//!
//! Nothing here depends on this host: the same seeds and files give the same figures everywhere.

use super::{Figure, Limit};
use crate::balancer::simulator::contest::{Entry, Pupil, Ratio, best, replays, simple, tunings, worlds};
use crate::balancer::simulator::trace::{BYTES_MAX, KINDS, ROWS_MAX, Trace, TraceError};
use crate::balancer::simulator::{Outcome, SCENARIOS, STAGES, Scenario, World};
use crate::cli::args::Bench;
use crate::cli::{Failure, exit};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// In scenarios the learned policy may be worse than the best simple rule by this much at most, in the mean.
const NEVER_WORSE: f64 = 1.03;
/// In the worlds of each trace it shall be better: the mean, the 99th percentile, and the mean over all traces.
const TRACE_MEAN: f64 = 0.96;
const TRACE_P99: f64 = 1.10;
const ALL_TRACES_MEAN: f64 = 0.75;

/// One figure of a run.
type Of = fn(&Outcome) -> f64;

/// Kinds of worlds that policies meet in.
struct Match<'a> {
    name: String,
    scenario: Scenario,
    trace: Option<&'a Trace>,
}

/// What came of one.
struct Met {
    figures: Vec<Figure>,
    /// World by world, logarithms of the learned policy's mean and 99th percentile over those of the best rule.
    logs: [Vec<f64>; 2],
}

impl Match<'_> {
    fn worlds(&self, count: u64, tasks: usize) -> Vec<World> {
        match self.trace {
            None => worlds(&self.scenario, count, tasks),
            Some(trace) => replays(&self.scenario, trace, count, tasks),
        }
    }
}

/// Reads what `--trace` names.
pub(crate) fn read_traces(what: Bench, files: &[PathBuf]) -> Result<Vec<Trace>, Failure> {
    let wrong = |words: String| Failure::new(exit::WRONG, words);
    if !files.is_empty() && what != Bench::Balancer {
        return Err(wrong("--trace goes with `bench balancer` and nothing else".to_owned()));
    }
    let mut traces: Vec<Trace> = Vec::new();
    for file in files {
        let text =
            read(file).map_err(|error| wrong(format!("{}: cannot be read: {error}", file.display())))?;
        let trace = Trace::parse(file, &text).map_err(|error| {
            let failure = wrong(error.to_string());
            match error {
                TraceError::Unknown { .. } => {
                    failure.hint(format!("a header has these columns:\n{}", kinds()))
                }
                _ => failure,
            }
        })?;
        if traces.iter().any(|other| other.name == trace.name) {
            let words = format!("{}: another trace is called {:?}, too", file.display(), trace.name);
            return Err(wrong(words).hint("rows of the table are told apart by the names of files"));
        }
        traces.push(trace);
    }
    Ok(traces)
}

/// No more than a trace may have, and a byte that shows that there is more.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

fn kinds() -> String {
    let line = |kind: &crate::balancer::simulator::trace::Kind| {
        format!("  {:<18} {}\n  {:<18}   {}", kind.name, kind.columns.join(","), "", kind.meaning)
    };
    KINDS.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What `--help` says of traces.
pub(crate) fn traces_help() -> String {
    format!(
        "Traces (`bench balancer --trace FILE`) are CSV with a header, by which their kind is known. Columns may stand in any \
         order; others are passed over. {} MB and {ROWS_MAX} rows at most:\n{}\n\n\
         Each is replayed at load 0.70 and 0.85, with twelve agents and with cores alone: rows FILE, FILE_085, \
         FILE_cores_070, FILE_cores_085. Times are compressed; what a trace does not tell is as in the scenarios.",
        BYTES_MAX >> 20,
        kinds()
    )
}

pub(super) fn measure(quick: bool, traces: &[Trace]) -> Vec<Figure> {
    let (seeds, tasks) = match (quick, traces.is_empty()) {
        (true, true) => (5, 8_000),
        (true, false) => (5, 6_000),
        (false, true) => (20, 20_000),
        (false, false) => (20, 12_000),
    };
    let matches: Vec<Match> = if traces.is_empty() {
        let of = |scenario: Scenario| Match { name: scenario.name.to_owned(), scenario, trace: None };
        SCENARIOS.map(of).into()
    } else {
        let of = |trace| STAGES.map(|(scenario, suffix)| in_stage(trace, scenario, suffix));
        traces.iter().flat_map(of).collect()
    };
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(matches.len());
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            match matches.get(at) {
                Some(one) => done.push((at, contest(one, seeds, tasks))),
                None => return done,
            }
        }
    };
    let mut done: Vec<(usize, Met)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("simulations do not panic")).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    let over_all = STAGES.iter().enumerate().filter(|_| !traces.is_empty()).map(|(stage, (_, suffix))| {
        let logs = done.iter().skip(stage).step_by(STAGES.len()).map(|(_, met)| &met.logs);
        mean_over_traces(suffix, &logs.collect::<Vec<_>>())
    });
    let over_all: Vec<Figure> = over_all.collect();
    done.into_iter().flat_map(|(_, met)| met.figures).chain(over_all).collect()
}

fn in_stage<'a>(trace: &'a Trace, scenario: &str, suffix: &str) -> Match<'a> {
    let scenario = Scenario::named(scenario).expect("a listed one");
    Match { name: format!("{}{suffix}", trace.name), scenario, trace: Some(trace) }
}

fn contest(one: &Match, seeds: u64, tasks: usize) -> Met {
    let worlds = one.worlds(seeds, tasks);
    let rules = tunings(simple(), &worlds);
    let pupils = Pupil::ALL.map(|pupil| pupil.enter(&worlds));
    // The best rule and its tuning, figure by figure.
    let figures: [(&str, Of); 3] =
        [("mean", |of| of.mean_ns), ("p99", |of| of.p99_ns), ("p99 slowdown", |of| of.p99_slowdown)];
    let floors = figures.map(|(_, figure)| best(&rules, figure));
    let told = one.trace.map_or_else(String::new, |trace| {
        format!("; {} at load {:.2}, {}", trace.kind, one.scenario.load, trace.tempo(&worlds))
    });
    let most = if one.trace.is_some() { TRACE_MEAN } else { NEVER_WORSE };
    let row = |entry: &Entry| {
        let tuned = if entry.tuning.is_empty() { String::new() } else { format!("{}; ", entry.tuning) };
        let ratios = figures.iter().zip(floors).map(|((name, figure), floor)| {
            let ratio = entry.ratio_to(floor, figure);
            format!(
                "{name} {:.2} [{:.2}, {:.2}] of {} ({})",
                ratio.mean, ratio.low, ratio.high, floor.name, floor.tuning
            )
        });
        let best = floors[0].geometric_mean(figures[0].1) / 1e3;
        Figure {
            bench: "balancer",
            name: format!("{}/{}", entry.name, one.name),
            value: entry.geometric_mean(figures[0].1) / 1e3,
            unit: "us",
            floor: Some(best),
            limit: (entry.name == Pupil::Learned.name()).then_some(Limit::AtMost(most * best)),
            p99: Some(entry.geometric_mean(figures[1].1) / 1e3),
            note: format!(
                "{tuned}{} over {seeds} worlds of {tasks} tasks{told}",
                ratios.collect::<Vec<_>>().join(", ")
            ),
            ..Figure::default()
        }
    };
    let mean = figures[0].1;
    let of = |name| best(rules.iter().filter(move |entry| entry.name == name), mean);
    let mut rows: Vec<Figure> = simple().map(of).chain(&pupils).map(row).collect();
    let [learned, ..] = &pupils;
    if one.trace.is_some() {
        let (p99, floor) = (figures[1].1, floors[1]);
        let best = floor.geometric_mean(p99) / 1e3;
        rows.push(Figure {
            bench: "balancer",
            name: format!("{}_p99/{}", learned.name, one.name),
            value: learned.geometric_mean(p99) / 1e3,
            unit: "us",
            floor: Some(best),
            limit: Some(Limit::AtMost(TRACE_P99 * best)),
            note: format!("the 99th percentile beside the best one, of {} ({})", floor.name, floor.tuning),
            ..Figure::default()
        });
    }
    let logs = [0, 1].map(|at| learned.logs_to(floors[at], figures[at].1));
    Met { figures: rows, logs }
}

/// The learned policy's ratio over all traces: their geometric mean world by world, and from that the interval.
fn mean_over_traces(suffix: &str, traces: &[&[Vec<f64>; 2]]) -> Figure {
    let ratio = |figure: usize| {
        let worlds = 0..traces[0][figure].len();
        let mean = |world| traces.iter().map(|logs| logs[figure][world]).sum::<f64>() / traces.len() as f64;
        Ratio::of(&worlds.map(mean).collect::<Vec<_>>())
    };
    let (mean, p99) = (ratio(0), ratio(1));
    Figure {
        bench: "balancer",
        name: format!("{}/geometric_mean{suffix}", Pupil::Learned.name()),
        value: mean.mean,
        unit: "ratio",
        floor: Some(1.0),
        limit: Some(Limit::AtMost(ALL_TRACES_MEAN)),
        p99: Some(p99.mean),
        note: format!(
            "mean [{:.2}, {:.2}], p99 [{:.2}, {:.2}] of the best rules' over {} traces",
            mean.low,
            mean.high,
            p99.low,
            p99.high,
            traces.len()
        ),
        ..Figure::default()
    }
}
