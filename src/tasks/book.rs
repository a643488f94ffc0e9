//! What the ledger says of a task to whoever keeps tasks beyond the life of this process.

use super::{Task, TaskSpec};

/// What happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was accepted.
    Accepted,
    /// It goes to an agent.
    Dispatched,
    /// Its agent died while running it.
    Died,
    /// It failed and will be tried again.
    Retrying,
    /// It runs, and somebody wants it gone.
    Cancelling,
    /// It ended.
    Ended,
}

/// Keeps tasks. Calls come in the order of events and must not wait for anything: they are made between accepting
/// a task and its answer.
pub trait Book: std::fmt::Debug + Send {
    /// Whether a task can be taken; else why not, in words.
    fn admit(&self, spec: &TaskSpec) -> Result<(), String>;
    /// Something happened. Gets a number, one more than the event before.
    fn note(&mut self, event: Event, task: &Task);
    /// Something happened that is about no task. Gets a number, too.
    fn tell(&mut self, event: &str);
    /// Number of the last event.
    fn written(&self) -> u64;
    /// Events up to this one are as safe as was promised.
    fn safe(&self) -> u64;
    /// Does what could not be done at once, if it can be by now.
    fn catch_up(&mut self);
    /// The end: what was said goes to its place. Nothing is said after it; [`trouble`](Self::trouble) may be new.
    fn close(&mut self);
    /// Why nothing more is taken at the moment, and whether that is for good.
    fn trouble(&self) -> Option<(String, bool)>;
    /// Whether there is none; cheaper than asking which.
    fn is_fine(&self) -> bool;
    /// Bytes that are not where they shall be at last.
    fn backlog_bytes(&self) -> u64;
}
