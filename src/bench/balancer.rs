//! The policies in the simulator: what tasks take under each, beside the best simple one tuned in hindsight.
//!
//! Nothing here depends on this host: the same seeds give the same figures everywhere.

use super::{Figure, Limit};
use crate::balancer::simulator::contest::{Entry, Pupil, best, simple, tunings, worlds};
use crate::balancer::simulator::{Outcome, SCENARIOS, Scenario};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The learned policy may be worse than the best simple rule by this much at most, in the mean.
const NEVER_WORSE: f64 = 1.03;

/// One figure of a run.
type Of = fn(&Outcome) -> f64;

pub(super) fn measure(quick: bool) -> Vec<Figure> {
    let (seeds, tasks) = if quick { (5, 8_000) } else { (20, 20_000) };
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(SCENARIOS.len());
    let work = || {
        let mut done = Vec::new();
        while let Some(scenario) = SCENARIOS.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((scenario.name, contest(scenario, seeds, tasks)));
        }
        done
    };
    let mut done: Vec<(&str, Vec<Figure>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("simulations do not panic")).collect()
    });
    let place = |name: &str| SCENARIOS.iter().position(|scenario| scenario.name == name);
    done.sort_by_key(|(name, _)| place(name));
    done.into_iter().flat_map(|(_, figures)| figures).collect()
}

fn contest(scenario: &Scenario, seeds: u64, tasks: usize) -> Vec<Figure> {
    let worlds = worlds(scenario, seeds, tasks);
    let rules = tunings(simple(), &worlds);
    let pupils = Pupil::ALL.map(|pupil| pupil.enter(&worlds));
    // The best rule and its tuning, figure by figure.
    let figures: [(&str, Of); 3] =
        [("mean", |of| of.mean_ns), ("p99", |of| of.p99_ns), ("p99 slowdown", |of| of.p99_slowdown)];
    let floors = figures.map(|(_, figure)| best(&rules, figure));
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
            name: format!("{}/{}", entry.name, scenario.name),
            value: entry.geometric_mean(figures[0].1) / 1e3,
            unit: "us",
            floor: Some(best),
            limit: (entry.name == Pupil::Learned.name()).then_some(Limit::AtMost(NEVER_WORSE * best)),
            p99: Some(entry.geometric_mean(figures[1].1) / 1e3),
            note: format!(
                "{tuned}{} over {seeds} worlds of {tasks} tasks",
                ratios.collect::<Vec<_>>().join(", ")
            ),
            ..Figure::default()
        }
    };
    let mean = figures[0].1;
    let of = |name| best(rules.iter().filter(move |entry| entry.name == name), mean);
    simple().map(of).chain(&pupils).map(row).collect()
}
