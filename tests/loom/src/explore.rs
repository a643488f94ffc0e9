//! Runs a model and says how much of it there was.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How much of a model is run.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// Every interleaving.
    All,
    /// Every interleaving in which threads are interrupted so many times. Nearly every known bug shows with two.
    Preemptions(usize),
}

/// Runs `model` in every interleaving within `bound`, and says how many there were. Panics in it fail the test.
pub fn explore(name: &str, bound: Bound, model: impl Fn() + Sync + Send + 'static) -> usize {
    let (began, runs) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    // What the environment asks for (LOOM_MAX_PREEMPTIONS) goes before the model's own.
    if let (None, Bound::Preemptions(most)) = (builder.preemption_bound, bound) {
        builder.preemption_bound = Some(most);
    }
    let count = runs.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let runs = runs.load(Ordering::Relaxed);
    println!("{name}: {runs} interleavings in {:.2?} ({bound:?})", began.elapsed());
    runs
}
