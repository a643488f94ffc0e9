//! The policies in the simulator: what tasks take under each, beside the best simple one tuned in hindsight.
//!
//! Nothing here depends on this host: the same seeds give the same figures everywhere.

use super::{Figure, Limit};
use crate::balancer::simulator::contest::{Entry, Pupil, baselines, best, simple, worlds};
use crate::balancer::simulator::{Outcome, SCENARIOS, Scenario};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The learned policy may be worse than the best simple rule by this much at most, in the mean.
const NEVER_WORSE: f64 = 1.03;

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
    let mean = |outcome: &Outcome| outcome.mean_ns;
    let rules = baselines(simple(), &worlds, mean);
    let floor = best(&rules, mean);
    let pupils = Pupil::ALL.map(|pupil| pupil.enter(&worlds));
    let row = |entry: &Entry| {
        let ratio = entry.ratio_to(floor, mean);
        let tuned = if entry.tuning.is_empty() { String::new() } else { format!("{}; ", entry.tuning) };
        let best = floor.geometric_mean(mean) / 1e3;
        let slow = entry.geometric_mean(|outcome| outcome.p99_slowdown);
        Figure {
            bench: "balancer",
            name: format!("{}/{}", entry.name, scenario.name),
            value: entry.geometric_mean(mean) / 1e3,
            unit: "us",
            floor: Some(best),
            limit: (entry.name == Pupil::Learned.name()).then_some(Limit::AtMost(NEVER_WORSE * best)),
            p99: Some(entry.geometric_mean(|outcome| outcome.p99_ns) / 1e3),
            note: format!(
                "{tuned}ratio {:.2} [{:.2}, {:.2}] over {seeds} worlds of {tasks} tasks, p99 slowdown {slow:.1}; floor: {} ({})",
                ratio.mean, ratio.low, ratio.high, floor.name, floor.tuning
            ),
            ..Figure::default()
        }
    };
    rules.iter().chain(&pupils).map(row).collect()
}
