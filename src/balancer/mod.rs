//! Thinking only: numbers in, a placement out. No clock, no I/O, no shared state.
//!
//! A policy is a [`Placer`]; `tasks::dispatch` shows it the agents that have room and what the
//! learning agent expects the task to cost on each.

mod policy;

pub use policy::{ExpectedCompletion, LeastLoaded, RoundRobin, placer};

use crate::tasks::Placer;
