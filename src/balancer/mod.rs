//! Thinking only: numbers in, a placement out. No clock, no I/O, no shared state.
//!
//! 1. A policy is a [`Placer`]; `tasks::dispatch` shows it a task and the agents that could take it.
//! 2. `policy` has the simple ones. `learned` has the one that learns, from what `model` knows of costs; `guard` holds
//!    it against the safe rule.
//! 3. [`simulator`] runs any of them through whole worlds, in the same way.
//!
//! Invariants
//! 1. Same seed, same numbers in the same order: same decisions.
//! 2. A decision allocates nothing and takes time in proportion to the agents at most.
//! 3. Whatever agents and files claim, a policy chooses among the candidates that have room, or lets wait.

mod guard;
mod learned;
mod model;
mod policy;
pub mod simulator;

pub use guard::Guard;
pub use learned::Learned;
pub use model::{BACKENDS, Nominal, ServiceModel};
pub use policy::{
    ExpectedCompletion, LeastLoaded, PeakEwma, Prequal, Random, RoundRobin, ShortestQueue, TwoChoices,
    WorkStealing,
};

use crate::tasks::{Mode, Placer};

/// Every policy, by its name in the configuration (`balancer.policy`).
pub const POLICIES: [&str; 11] = [
    "round_robin",
    "random",
    "least_loaded",
    "jsq",
    "p2c",
    "jbsq",
    "prequal",
    "peak_ewma",
    "work_stealing",
    "ect",
    "learned",
];

/// The policy with this name, the learned one in this mode (`balancer.mode`); `None` for words that there are not.
pub fn placer(name: &str, mode: &str) -> Option<Box<dyn Placer>> {
    // Any fixed number: it decides ties and what is explored, and the same swarm repeats itself.
    const SEED: u64 = 1;
    let mode = Mode::from_name(mode)?;
    Some(match name {
        "round_robin" => Box::new(RoundRobin::default()),
        "random" => Box::new(Random::new(SEED)),
        "least_loaded" => Box::new(LeastLoaded),
        "jsq" => Box::new(ShortestQueue::unbounded(SEED)),
        "p2c" => Box::new(TwoChoices::new(SEED)),
        "jbsq" => Box::new(ShortestQueue::bounded(2, SEED)),
        "prequal" => Box::new(Prequal::default()),
        "peak_ewma" => Box::new(PeakEwma::default()),
        "work_stealing" => Box::new(WorkStealing::default()),
        "ect" => Box::new(ExpectedCompletion),
        "learned" => Box::new(Learned::new(SEED).with_mode(mode)),
        _ => return None,
    })
}
