//! What work is. Knows agents by slot and incarnation only; starts no process, does no I/O of its own.
//!
//! ```text
//!  submitted ─► waiting ─► queued ─► dispatched ─► succeeded | failed | cancelled
//!             (after…)       ▲           │
//!                            └─ retrying ┘   (failure with retries left, or the agent died)
//! ```
//! 1. `ledger` owns every task and its state; events in, transitions out.
//! 2. `dispatch` takes a queued task, asks a [`Placer`] for a place and writes the envelope.
//! 3. `results` matches what comes back to its attempt and counts.
//! 4. `hedge` sends a task that takes far too long to a second agent, when one has nothing to do.
//! 5. `wide` divides a task that takes long among agents that have nothing to do, and joins its parts.
//! 6. `decision` remembers why tasks went where they went.
//! 7. `book` is how the ledger tells whoever keeps tasks beyond this process what happened to them.
//!
//! Invariants
//! 1. A task is in exactly one state and ends exactly once.
//! 2. A result counts only for an attempt that the task is leased to, from the incarnation that holds that lease.
//! 3. At most two attempts of a task are leased at a time, to different agents. Who of them answers first ends the task, and
//!    only when the other one can no longer let its output appear.
//! 4. A task in parts is one attempt, and each part is leased to one agent. Its output appears when all are written.

pub mod book;
pub mod decision;
pub mod dispatch;
pub mod hedge;
pub mod ledger;
mod placer;
mod queue;
pub mod results;
mod room;
mod wide;

use crate::base::clock::Nanos;
use crate::base::ids::{AgentSlot, Attempt, Incarnation, TaskId};
use std::path::PathBuf;
use std::time::Duration;

pub use book::{Book, Event};
pub use decision::{Decision, Decisions};
pub use dispatch::{CostModel, Dispatcher};
pub use hedge::HedgeRules;
pub use ledger::{Ledger, Wide};
pub use placer::{
    Ask, By, Candidate, Finished, LearnedCost, Learning, Mode, Placement, Placer, SPAN_NS, Scored, Standing,
    remaining_ns,
};
pub use results::Totals;
pub use room::{Room, Windows, held_ns};
pub use wide::WideRules;

/// Who goes first. A waiting task gains one class every `tasks.ageing_s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    /// Before all others.
    High = 0,
    /// The default.
    #[default]
    Normal = 1,
    /// When nothing else waits.
    Low = 2,
}

impl Priority {
    /// All, most urgent first.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    /// `high`, `normal`, `low`.
    pub fn name(self) -> &'static str {
        ["high", "normal", "low"][self as usize]
    }

    /// The priority with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.name() == name)
    }
}

/// A task as submitted: checked, and already in the form in which it travels.
#[derive(Clone, Debug, Default)]
pub struct TaskSpec {
    /// The submitter's name for it, unique among the tasks the swarm still knows.
    pub name: Option<Box<str>>,
    /// The submitter's idempotency key: what comes a second time under it is the first task, not another one.
    pub key: Option<Box<str>>,
    /// Code of the kernel.
    pub kernel: u8,
    /// Its name, for reports.
    pub kernel_name: &'static str,
    /// Size class of the work.
    pub class: u8,
    /// The instruction-set level asked for, see `jobs::level_word`; 0: the agent chooses.
    pub level: u8,
    /// Who goes first.
    pub priority: Priority,
    /// Longest time from start to end of one attempt.
    pub timeout: Option<Duration>,
    /// How often a failure is tried again.
    pub retries: u32,
    /// Names of tasks that must have succeeded before.
    pub after: Vec<Box<str>>,
    /// Inputs, output and parameters as the agent reads them.
    pub body: Box<[u8]>,
    /// Where the output goes, so that leftovers of a killed attempt can be removed.
    pub output: Option<PathBuf>,
}

impl TaskSpec {
    /// Whether the same was asked for: what to compute, from what, under which name, behind which tasks. How urgent it is, how
    /// long it may take and how often it is tried is not part of that, nor is the size class, which comes from files that change.
    pub fn asks_the_same(&self, other: &TaskSpec) -> bool {
        let what = |spec: &TaskSpec| (spec.kernel, spec.level);
        what(self) == what(other)
            && (&self.name, &self.after, &self.body, &self.output)
                == (&other.name, &other.after, &other.body, &other.output)
    }

    /// It will not be run again: what only an agent needs is let go, unless somebody may ask for the same under its key.
    pub(super) fn forget_body(&mut self) {
        if self.key.is_none() {
            self.body = Box::default();
        }
    }
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Others must succeed first.
    Waiting,
    /// Ready to go.
    Queued,
    /// An agent has it.
    Dispatched,
    /// Failed, and will be queued again after a pause.
    Retrying,
    /// Done.
    Succeeded,
    /// Over, without success.
    Failed,
    /// Given up on request, or because a task before it did not succeed.
    Cancelled,
}

impl TaskState {
    /// The word used in the API and the reports.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Waiting => "waiting",
            TaskState::Queued => "queued",
            TaskState::Dispatched => "dispatched",
            TaskState::Retrying => "retrying",
            TaskState::Succeeded => "succeeded",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, TaskState::Succeeded | TaskState::Failed | TaskState::Cancelled)
    }
}

/// Who holds a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The agent.
    pub slot: AgentSlot,
    /// And which life of it.
    pub incarnation: Incarnation,
}

/// A second attempt of a task, beside the one that holds the task's own lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// Who has it.
    pub lease: Lease,
    /// Which attempt it is.
    pub attempt: Attempt,
    /// When it was sent.
    pub dispatched: Nanos,
}

/// A task with everything that is known about it.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its number.
    pub id: TaskId,
    /// What was asked for.
    pub spec: TaskSpec,
    /// Where it is in its life.
    pub state: TaskState,
    /// Dispatches so far.
    pub attempt: Attempt,
    /// Who holds it, while dispatched.
    pub lease: Option<Lease>,
    /// The attempt that the lease is for: an earlier one than `attempt` once a second one was sent beside it.
    pub leased: Attempt,
    /// The second attempt, while two run.
    pub hedge: Option<Hedge>,
    /// What its parts are and came to, while it is in parts, and until these are joined.
    pub wide: Option<Box<Wide>>,
    /// Into how many parts the last attempt was divided; 0: it was not.
    pub parts: u32,
    /// It has to be done as a whole; why, if it was to be done in parts.
    pub undivided: Option<Box<str>>,
    /// The agent that was given a second attempt, if one was: there is at most one in the life of a task.
    pub hedged_on: Option<AgentSlot>,
    /// Failures that may still be tried again.
    pub retries_left: u32,
    /// Agents that died while running it: by crash, and by kill.
    pub deaths: (u32, u32),
    /// Tasks that still have to succeed before it.
    pub missing: u32,
    /// Tasks that wait for it.
    pub dependents: Vec<TaskId>,
    /// Group of tasks that were submitted together.
    pub batch: u64,
    /// When it was accepted.
    pub submitted: Nanos,
    /// When it was last queued, dispatched, started, and when it ended.
    pub queued: Nanos,
    /// When it is due to go, once it was lined up: see [`Ledger::line_up`].
    pub due: Nanos,
    /// When the last attempt was sent.
    pub dispatched: Nanos,
    /// When an agent began with the last attempt.
    pub started: Nanos,
    /// When it ended.
    pub finished: Nanos,
    /// How long the last attempt took on its agent, ns.
    pub service_ns: u64,
    /// The agent of the last attempt.
    pub agent: Option<AgentSlot>,
    /// Code of the instruction-set level that ran, once one did.
    pub ran_level: Option<u8>,
    /// Its output replaced an input, which is kept until its end is safe.
    pub kept_input: bool,
    /// Result as JSON text, if the kernel gave one.
    pub result: Option<Box<str>>,
    /// Why it did not succeed, or why the last attempt did not.
    pub error: Option<Box<str>>,
    /// The supervisor asked its agent to give it up: on request (`true`) or because of its time limit.
    pub cancelling: Option<bool>,
    /// The record that says how it ended, by the book's count: until that is safe nobody is told.
    pub end_record: u64,
    /// It ended in an earlier life of the swarm, and is known from its journal.
    pub earlier: bool,
}

impl Task {
    /// A task that was just accepted.
    pub fn new(id: TaskId, spec: TaskSpec, state: TaskState, batch: u64, now: Nanos) -> Self {
        Self {
            id,
            retries_left: spec.retries,
            spec,
            state,
            attempt: Attempt(0),
            lease: None,
            leased: Attempt(0),
            hedge: None,
            wide: None,
            parts: 0,
            undivided: None,
            hedged_on: None,
            deaths: (0, 0),
            missing: 0,
            dependents: Vec::new(),
            batch,
            submitted: now,
            queued: now,
            due: now,
            dispatched: Nanos(0),
            started: Nanos(0),
            finished: Nanos(0),
            service_ns: 0,
            agent: None,
            ran_level: None,
            kept_input: false,
            result: None,
            error: None,
            cancelling: None,
            end_record: 0,
            earlier: false,
        }
    }

    /// Whether this attempt of this life of an agent is one whose answer counts.
    pub fn is_held_by(&self, lease: Lease, attempt: Attempt) -> bool {
        let holds = |held: Option<Lease>, by: Attempt| held == Some(lease) && by == attempt;
        holds(self.lease, self.leased)
            || self.leased == attempt && self.holders().any(|holder| holder == lease)
            || self.hedge.is_some_and(|hedge| holds(Some(hedge.lease), hedge.attempt))
    }

    /// Whether its parts are at agents, or on their way. Once they are joined it is an attempt like any other.
    pub fn is_divided(&self) -> bool {
        self.state == TaskState::Dispatched && self.lease.is_none() && self.wide.is_some()
    }

    /// Who has it, or some of it.
    pub fn holders(&self) -> impl Iterator<Item = Lease> {
        let parts = self.wide.iter().filter(|_| self.is_divided()).flat_map(|wide| wide.holders());
        self.lease.into_iter().chain(parts)
    }

    /// Whether a second attempt may be sent: it runs, it never had one, nobody wants it gone, and no agent crashed over it.
    pub fn may_be_hedged(&self) -> bool {
        let is_wanted = self.state == TaskState::Dispatched && self.cancelling.is_none();
        is_wanted && self.wide.is_none() && self.hedged_on.is_none() && self.deaths.0 == 0
    }

    /// Whether an attempt that nobody asked to give up did so before its time was over: a second one that must not run.
    fn was_declined(&self, now: Nanos) -> bool {
        self.hedged_on.is_some() && self.spec.timeout.is_none_or(|limit| now < self.dispatched.plus(limit))
    }

    /// The attempt that this life of an agent holds.
    fn attempt_of(&self, lease: Lease) -> Option<Attempt> {
        let hedge = self.hedge.filter(|hedge| hedge.lease == lease).map(|hedge| hedge.attempt);
        hedge.or_else(|| (self.lease == Some(lease)).then_some(self.leased))
    }

    /// Makes the second attempt the one that holds the task's lease, and the other way round.
    fn swap_attempts(&mut self) {
        let (Some(hedge), Some(lease)) = (self.hedge, self.lease) else { return };
        self.hedge = Some(Hedge { lease, attempt: self.leased, dispatched: self.dispatched });
        (self.lease, self.leased, self.dispatched) = (Some(hedge.lease), hedge.attempt, hedge.dispatched);
        self.agent = Some(hedge.lease.slot);
        // A time limit was that attempt's; a request is the task's.
        self.cancelling = self.cancelling.filter(|on_request| *on_request);
    }

    /// The submitter's name, or the number when there is none.
    pub fn label(&self) -> String {
        self.spec.name.as_deref().map_or_else(|| self.id.to_string(), str::to_owned)
    }
}

/// Tag that names the temporary files of one attempt. The agent writes under it, the supervisor
/// removes under it. `token` names the run of the swarm.
pub fn attempt_tag(token: &str, task: TaskId, attempt: Attempt) -> String {
    format!("{token}-{task}-{}", attempt.0)
}

/// What [`attempt_tag`] wrote: life, task and attempt. `None`: somebody else did.
pub fn read_attempt_tag(tag: &str) -> Option<(u64, TaskId, Attempt)> {
    let mut parts = tag.split('-');
    let token = parts.next().filter(|token| token.len() == 16)?;
    let run = u64::from_str_radix(token, 16).ok()?;
    let task = TaskId(parts.next()?.strip_prefix('t')?.parse().ok()?);
    let attempt = Attempt(parts.next()?.parse().ok()?);
    (attempt_tag(&format!("{run:016x}"), task, attempt) == tag).then_some((run, task, attempt))
}
