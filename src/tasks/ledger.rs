//! The only owner of task state. Events in, transitions out; no clock, no I/O, no process.
//!
//! Names of dependencies are resolved when tasks are accepted; a batch may refer forwards inside
//! itself. A batch's cycle refuses exactly the tasks on it and behind it.

mod wide;

pub use wide::{PartEnd, Wide};

use super::queue::{Due, Queue};
use super::{Book, Event, Hedge, Lease, Task, TaskSpec, TaskState};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentSlot, Attempt, Incarnation, TaskId};
use crate::base::numbered::Numbered;
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// First pause before a failed task is tried again; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A task whose agents died so often while running it, and not by its doing as far as one can tell (somebody killed or stopped them,
/// or they wrote nonsense), is given up: it may be what somebody watches for. Its own doing has `tasks.poison_deaths` for a limit.
const KILL_LIMIT: u32 = 100;
/// How the error of such a task begins.
pub const POISON: &str = "given up as poison";
/// Ended tasks that are remembered. A later life remembers those that the journal keeps.
pub const REMEMBERED: usize = 200_000;

/// Why a task was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The name is taken.
    #[error("task {name:?}: field `id`: another task has this id; ids must be unique")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A dependency is nowhere.
    #[error("task {task:?}: field `after`: no task has the id {missing:?}")]
    UnknownDependency {
        /// Who asked.
        task: String,
        /// For whom.
        missing: String,
    },
    /// A dependency can never succeed.
    #[error("task {task:?}: field `after`: task {dependency:?} was refused or did not succeed")]
    DependencyRefused {
        /// Who asked.
        task: String,
        /// For whom.
        dependency: String,
    },
    /// The tasks wait for each other.
    #[error("task {task:?}: field `after`: the tasks wait for each other in a cycle: {path}")]
    Cycle {
        /// Who asked.
        task: String,
        /// The names round the cycle, the middle of a long one left out.
        path: Arc<str>,
    },
    /// Too many tasks wait.
    #[error(
        "task {task:?}: {waiting} tasks are waiting already, `tasks.queue_limit` is {limit}; try again later"
    )]
    QueueFull {
        /// Who asked.
        task: String,
        /// Tasks waiting.
        waiting: usize,
        /// The limit.
        limit: usize,
    },
    /// The idempotency key belongs to another task.
    #[error(
        "task {task:?}: field `idempotency_key`: {key:?} was given with task {other:?} before, and that one asks for something else"
    )]
    KeyTaken {
        /// Who asked.
        task: String,
        /// The key.
        key: String,
        /// Whose it is.
        other: String,
    },
    /// It could not be kept.
    #[error("{0}")]
    NotKept(String),
    /// The swarm is ending.
    #[error("the swarm is stopping and takes no more tasks")]
    Stopping,
    /// The host is short of something.
    #[error("no task is accepted for now: {why}; try again later")]
    Refusing {
        /// Of what.
        why: String,
    },
}

/// Why a result was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such task.
    #[error("no such task")]
    UnknownTask,
    /// It ended already.
    #[error("the task has ended")]
    Ended,
    /// It comes from an attempt or an incarnation that does not hold the lease.
    #[error("the lease is held by somebody else")]
    NotTheHolder,
}

/// What became of a task after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It ended, in this state.
    Ended(TaskState),
    /// It will be tried again.
    Again,
}

/// What cancelling needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It is cancelled now.
    Cancelled,
    /// Its agent must be asked to give it up.
    AskAgent(Lease, Attempt),
    /// It had ended before.
    AlreadyEnded(TaskState),
}

/// Numbers of tasks by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted, refused ones included when they were recorded.
    pub total: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended badly.
    pub failed: u64,
    /// Given up.
    pub cancelled: u64,
    /// Attempts beyond the first.
    pub retried: u64,
    /// Results refused because they were late, foreign or repeated.
    pub refused: u64,
    /// Second attempts that were sent beside a first one.
    pub hedged: u64,
    /// Tasks that such a second attempt ended well before the first.
    pub hedges_won: u64,
    /// Tasks that the first attempt ended well after all.
    pub hedges_lost: u64,
    /// Tasks that ended more than once; anything but 0 is a bug.
    pub duplicated: u64,
}

impl Counts {
    /// Tasks that have not ended.
    pub fn open(&self) -> u64 {
        self.total - self.succeeded - self.failed - self.cancelled
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The attempt's time is up.
    TimeLimit(Attempt),
    /// The pause before another attempt is over.
    Retry,
}

/// Limits the ledger keeps to.
#[derive(Clone, Copy, Debug)]
pub struct LedgerLimits {
    /// Most tasks that may wait.
    pub queue: usize,
    /// Crashes of agents after which a task is poison.
    pub poison_deaths: u32,
    /// Waiting time that is worth one class of priority.
    pub ageing: Duration,
}

impl Default for LedgerLimits {
    fn default() -> Self {
        Self { queue: 1_000_000, poison_deaths: 3, ageing: Duration::from_secs(5) }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    limits: LedgerLimits,
    /// All that are known, by number.
    tasks: Numbered<Box<Task>>,
    /// Ended tasks in the order in which they will be forgotten.
    remembered: VecDeque<TaskId>,
    /// Tasks whose end somebody has not heard yet, and how many have not.
    owed: HashMap<TaskId, u32>,
    /// Numbers whose ids are names of tasks.
    numerals: HashSet<u64>,
    names: HashMap<Box<str>, TaskId>,
    keys: HashMap<Box<str>, TaskId>,
    /// Batches, beside its own, that wait for a task to end.
    followers: HashMap<TaskId, Vec<u64>>,
    book: Option<Box<dyn Book>>,
    /// Queued tasks per priority, in the order in which they go.
    queues: [Queue; 3],
    /// Queued tasks that have no place in that order yet.
    fresh: Vec<TaskId>,
    /// Room for a look at the first of them.
    first_many: Vec<Due>,
    queued: usize,
    timers: BinaryHeap<Reverse<(Nanos, TaskId, Timer)>>,
    counts: Counts,
    ended: Vec<(TaskId, u64)>,
    /// Attempts that shall be given up, and whose agents do not know yet.
    unwanted: Vec<(TaskId, Lease, Attempt)>,
    /// Tasks whose parts are at agents, or on their way.
    divided: Vec<TaskId>,
    /// Attempts in parts that came to nothing.
    abandoned: Vec<(TaskId, Attempt)>,
    phase: Phase,
    /// What was being done is a later life's, too.
    is_taken_back: bool,
    /// Why nothing is accepted for now.
    refusing: Option<String>,
    next_batch: u64,
}

/// What becomes of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is taken and done.
    Open,
    /// None is taken, and what is not done waits for the next life of the swarm.
    Leaving,
    /// None is taken, and what is not done is given up.
    Ending,
}

impl SubmitError {
    /// Whether the task is wrong, and not merely the moment.
    pub fn is_of_the_task(&self) -> bool {
        !matches!(self, Self::Stopping | Self::Refusing { .. })
    }
}

impl Ledger {
    /// An empty ledger.
    pub fn new(limits: LedgerLimits) -> Self {
        Self {
            limits,
            tasks: Numbered::starting_at(1),
            remembered: VecDeque::new(),
            owed: HashMap::new(),
            numerals: HashSet::new(),
            names: HashMap::new(),
            keys: HashMap::new(),
            followers: HashMap::new(),
            book: None,
            queues: Default::default(),
            fresh: Vec::new(),
            first_many: Vec::new(),
            queued: 0,
            timers: BinaryHeap::new(),
            counts: Counts::default(),
            ended: Vec::new(),
            unwanted: Vec::new(),
            divided: Vec::new(),
            abandoned: Vec::new(),
            phase: Phase::Open,
            is_taken_back: false,
            refusing: None,
            next_batch: 0,
        }
    }

    /// From now on everything that happens to a task is noted in `book`.
    pub fn keep_in(&mut self, book: Box<dyn Book>) {
        self.book = Some(book);
    }

    /// Where it is noted.
    pub fn book(&self) -> Option<&dyn Book> {
        self.book.as_deref()
    }

    /// Where it is noted, to have it catch up.
    pub fn book_mut(&mut self) -> Option<&mut (dyn Book + 'static)> {
        self.book.as_deref_mut()
    }

    /// From now on nothing is noted.
    pub fn close_book(&mut self) {
        self.book = None;
    }

    fn note(&mut self, event: Event, id: TaskId) {
        let Some(book) = &mut self.book else { return };
        if let Some(task) = self.tasks.get_mut(id) {
            book.note(event, task);
            if event == Event::Ended {
                task.end_record = book.written();
            }
        }
    }

    /// Takes over the tasks of an earlier life before any other is accepted. Those
    /// that have not ended are queued again in the order in which they were accepted; nobody waits for them here.
    pub fn restore(&mut self, tasks: Numbered<Box<Task>>, now: Nanos) {
        assert!(self.tasks.is_empty(), "only an empty ledger takes over another one's tasks");
        self.tasks = tasks;
        let mut hopeless: Vec<(TaskId, TaskState, String)> = Vec::new();
        for id in self.tasks.ids() {
            let Some(mut task) = self.tasks.remove(id) else { continue };
            if let Some(name) = &task.spec.name {
                self.give_name(name.clone(), id);
            }
            if let Some(key) = &task.spec.key {
                self.keys.insert(key.clone(), id);
            }
            if task.state.is_final() {
                task.earlier = true;
                task.spec.forget_body();
                self.remembered.push_back(id);
                self.tasks.put_back(id, task);
                continue;
            }
            self.counts.total += 1;
            // Another run of the host has another clock.
            task.submitted = task.submitted.min(now);
            task.queued = now;
            for name in &task.spec.after {
                // One that is not known any more succeeded: else this task had ended with it.
                let other = self.find_exactly(name).filter(|other| other.id != id);
                match other.map(|other| (other.id, other.state)) {
                    None | Some((_, TaskState::Succeeded)) => {}
                    Some((_, state)) if state.is_final() => {
                        let error = format!("not run: task {name:?}, which it comes after, {}", state.name());
                        hopeless.push((id, TaskState::Cancelled, error));
                    }
                    Some((other, _)) => {
                        task.missing += 1;
                        self.get_mut(other).expect("just seen").dependents.push(id);
                    }
                }
            }
            if task.cancelling.take() == Some(true) {
                hopeless.push((id, TaskState::Cancelled, "cancelled on request".to_owned()));
            }
            if task.deaths.0 >= self.limits.poison_deaths || task.deaths.1 >= KILL_LIMIT {
                let deaths = task.deaths.0 + task.deaths.1;
                let error = format!("given up as poison: {deaths} agents died while running it");
                hopeless.push((id, TaskState::Failed, error));
            }
            task.state = if task.missing == 0 { TaskState::Queued } else { TaskState::Waiting };
            if task.state == TaskState::Queued {
                self.fresh.push(id);
                self.queued += 1;
            }
            self.tasks.put_back(id, task);
        }
        for (id, state, error) in hopeless {
            if self.get(id).is_some_and(|task| !task.state.is_final()) {
                self.end(id, state, Some(&error), now);
            }
        }
    }

    /// `batch` wants to hear of the end of this task, which is another batch's. False when it has ended.
    pub fn follow(&mut self, id: TaskId, batch: u64) -> bool {
        let is_open = self.get(id).is_some_and(|task| !task.state.is_final());
        if is_open {
            self.followers.entry(id).or_default().push(batch);
        }
        is_open
    }

    /// The task that was accepted under the key of `spec`, if there is one.
    fn under_key(&self, spec: &TaskSpec) -> Option<Result<TaskId, SubmitError>> {
        let key = spec.key.as_ref()?;
        let task = self.get(*self.keys.get(key)?)?;
        Some(if task.spec.asks_the_same(spec) {
            Ok(task.id)
        } else {
            Err(SubmitError::KeyTaken {
                task: spec.name.as_deref().unwrap_or("(unnamed)").to_owned(),
                key: key.to_string(),
                other: task.label(),
            })
        })
    }

    /// The task with this number.
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(id).map(|task| &**task)
    }

    fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.tasks.get_mut(id).map(|task| &mut **task)
    }

    /// The task with this name, or with this number as `t12` or `12`.
    pub fn find(&self, name: &str) -> Option<&Task> {
        if let Some(&id) = self.names.get(name) {
            return self.get(id);
        }
        let number = name.strip_prefix('t').unwrap_or(name).parse().ok()?;
        self.get(TaskId(number)).filter(|task| task.spec.name.is_none() || name.starts_with('t'))
    }

    /// The task that has this id: its name or, for want of one, its number behind a `t`.
    fn find_exactly(&self, id: &str) -> Option<&Task> {
        if let Some(&id) = self.names.get(id) {
            return self.get(id);
        }
        self.get(TaskId(numeral(id)?)).filter(|task| task.spec.name.is_none())
    }

    fn give_name(&mut self, name: Box<str>, id: TaskId) {
        self.numerals.extend(numeral(&name));
        self.names.insert(name, id);
    }

    /// All tasks still known, oldest first.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Task> {
        self.tasks.iter().map(|task| &**task)
    }

    /// Numbers so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Tasks ready to go.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Accepts nothing while there is a reason not to; what was accepted stays.
    pub fn refuse(&mut self, why: Option<String>) {
        self.refusing = why;
    }

    /// From now on every submission is refused, and what is not done ends with this life.
    pub fn end_with_this_life(&mut self) {
        self.phase = Phase::Ending;
    }

    /// From now on every submission is refused; what is not done is a later life's.
    pub fn leave_to_a_later_life(&mut self) {
        self.phase = Phase::Leaving;
    }

    /// Whether what is not done is left to a later life, and what is being done may still end in this one.
    pub fn is_draining(&self) -> bool {
        self.phase == Phase::Leaving && !self.is_taken_back
    }

    /// Accepts one task without dependencies; the cheap path for tiny tasks.
    pub fn submit(&mut self, spec: TaskSpec, now: Nanos) -> Result<TaskId, SubmitError> {
        if !spec.after.is_empty() || spec.key.is_some() {
            return self.submit_batch(vec![spec], now).1.pop().expect("one in, one out");
        }
        self.check_acceptable(&spec)?;
        self.next_batch += 1;
        Ok(self.accept(spec, now, self.next_batch, TaskState::Queued))
    }

    /// Accepts one task under a batch number of the caller's own, of which this ledger hands out none. One whose key is
    /// known gets the number of the task that has it, which is of another batch.
    pub fn submit_as(&mut self, spec: TaskSpec, batch: u64, now: Nanos) -> Result<TaskId, SubmitError> {
        if let Some(known) = self.under_key(&spec) {
            return known;
        }
        if !spec.after.is_empty() {
            return self.accept_after(spec, now, batch);
        }
        self.check_acceptable(&spec)?;
        Ok(self.accept(spec, now, batch, TaskState::Queued))
    }

    /// Accepts tasks that may wait for each other, in any order. The answers stand in the order of the
    /// tasks; the number names the batch. One whose key is known gets the number of the task that has it.
    pub fn submit_batch(
        &mut self,
        specs: Vec<TaskSpec>,
        now: Nanos,
    ) -> (u64, Vec<Result<TaskId, SubmitError>>) {
        self.next_batch += 1;
        let batch = self.next_batch;
        if specs.iter().all(|spec| spec.key.is_none()) {
            return (batch, self.accept_batch(specs, batch, now));
        }
        let mut answers: Vec<Option<Result<TaskId, SubmitError>>> = specs.iter().map(|_| None).collect();
        let (mut places, mut fresh, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        let mut keys = HashSet::new();
        for (at, spec) in specs.into_iter().enumerate() {
            let is_known = |key: &str| self.keys.contains_key(key);
            if spec.key.as_ref().is_some_and(|key| is_known(key) || !keys.insert(key.clone())) {
                repeated.push((at, spec));
            } else {
                places.push(at);
                fresh.push(spec);
            }
        }
        for (at, answer) in places.into_iter().zip(self.accept_batch(fresh, batch, now)) {
            answers[at] = Some(answer);
        }
        for (at, spec) in repeated {
            // Not known after all when the first one with this key was refused.
            let known = self.under_key(&spec);
            answers[at] = Some(known.unwrap_or_else(|| self.accept_after(spec, now, batch)));
        }
        (batch, answers.into_iter().map(|answer| answer.expect("fresh or repeated")).collect())
    }

    fn accept_batch(
        &mut self,
        specs: Vec<TaskSpec>,
        batch: u64,
        now: Nanos,
    ) -> Vec<Result<TaskId, SubmitError>> {
        let plan = plan_batch(&specs, |name| self.find_exactly(name).map(|task| task.state));
        let mut answers: Vec<Option<Result<TaskId, SubmitError>>> = specs.iter().map(|_| None).collect();
        let mut specs: Vec<Option<TaskSpec>> = specs.into_iter().map(Some).collect();
        for (at, error) in plan.refused {
            answers[at] = Some(Err(error));
        }
        // Whoever has no name in this batch gets no number that another one in it is called by.
        let numeral_of = |spec: &Option<TaskSpec>| numeral(spec.as_ref()?.name.as_deref()?);
        self.numerals.extend(plan.order.iter().filter_map(|&at| numeral_of(&specs[at])));
        // In an order in which everything comes after what it waits for.
        for at in plan.order {
            let number = numeral_of(&specs[at]);
            let spec = specs[at].take().expect("planned once");
            let answer = self.accept_after(spec, now, batch);
            if let (Some(number), Err(_)) = (number, &answer) {
                self.numerals.remove(&number);
            }
            answers[at] = Some(answer);
        }
        answers.into_iter().map(|answer| answer.expect("planned or refused")).collect()
    }

    fn accept_after(&mut self, spec: TaskSpec, now: Nanos, batch: u64) -> Result<TaskId, SubmitError> {
        self.check_acceptable(&spec)?;
        let mut waits_for = Vec::new();
        for name in &spec.after {
            match self.find_exactly(name).map(|task| (task.id, task.state)) {
                Some((_, TaskState::Succeeded)) => {}
                Some((id, state)) if !state.is_final() => waits_for.push(id),
                _ => {
                    let task = spec.name.as_deref().unwrap_or("(unnamed)").to_owned();
                    return Err(SubmitError::DependencyRefused { task, dependency: name.to_string() });
                }
            }
        }
        let state = if waits_for.is_empty() { TaskState::Queued } else { TaskState::Waiting };
        let missing = waits_for.len() as u32;
        let id = self.accept(spec, now, batch, state);
        self.get_mut(id).expect("just accepted").missing = missing;
        for other in waits_for {
            self.get_mut(other).expect("just found").dependents.push(id);
        }
        Ok(id)
    }

    fn check_acceptable(&self, spec: &TaskSpec) -> Result<(), SubmitError> {
        let label = || spec.name.as_deref().unwrap_or("(unnamed)").to_owned();
        if let Some(why) = &self.refusing {
            return Err(SubmitError::Refusing { why: why.clone() });
        }
        if self.phase != Phase::Open {
            return Err(SubmitError::Stopping);
        }
        let open = self.counts.open();
        if open >= self.limits.queue as u64 {
            return Err(SubmitError::QueueFull {
                task: label(),
                waiting: open as usize,
                limit: self.limits.queue,
            });
        }
        if let Some(name) = &spec.name
            && self.find_exactly(name).is_some()
        {
            return Err(SubmitError::DuplicateName { name: label() });
        }
        self.book.as_ref().map_or(Ok(()), |book| book.admit(spec)).map_err(SubmitError::NotKept)
    }

    fn accept(&mut self, spec: TaskSpec, now: Nanos, batch: u64, state: TaskState) -> TaskId {
        self.forget_old();
        if let Some(name) = &spec.name {
            self.give_name(name.clone(), TaskId(self.tasks.next()));
        } else {
            // A number that another task has for a name would be the name of both.
            while !self.numerals.is_empty() && self.numerals.contains(&self.tasks.next()) {
                self.tasks.skip_to(self.tasks.next() + 1);
            }
        }
        let id = TaskId(self.tasks.next());
        self.counts.total += 1;
        if let Some(key) = &spec.key {
            self.keys.insert(key.clone(), id);
        }
        self.tasks.push(id, Box::new(Task::new(id, spec, state, batch, now)));
        self.note(Event::Accepted, id);
        if state == TaskState::Queued {
            self.fresh.push(id);
            self.queued += 1;
        }
        id
    }

    /// Records a task that was wrong from the start, so that lists and reports show it.
    pub fn record_refused(&mut self, spec: TaskSpec, error: &str, now: Nanos) -> TaskId {
        // A second task of the same name stays visible under its number only.
        let name = spec.name.clone().filter(|name| self.find_exactly(name).is_none());
        // Nor does a wrong task keep a right one from using its key.
        let id = self.accept(TaskSpec { name, key: None, ..spec }, now, 0, TaskState::Waiting);
        self.end(id, TaskState::Failed, Some(error), now);
        id
    }

    /// Somebody has not heard yet how this task ended: it is remembered until [`pay`](Self::pay) was called as often.
    pub fn owe(&mut self, id: TaskId) {
        *self.owed.entry(id).or_default() += 1;
    }

    /// One of them has heard it, or does not listen any more.
    pub fn pay(&mut self, id: TaskId) {
        if let Entry::Occupied(mut owed) = self.owed.entry(id) {
            *owed.get_mut() -= 1;
            if *owed.get() == 0 {
                owed.remove();
            }
        }
    }

    /// Forgets the tasks that ended longest ago, beyond [`REMEMBERED`]. A bounded number of steps:
    /// what is owed goes to the end of the line.
    fn forget_old(&mut self) {
        for _ in 0..4 {
            if self.remembered.len() <= REMEMBERED {
                break;
            }
            let Some(id) = self.remembered.pop_front() else { break };
            if self.owed.contains_key(&id) {
                self.remembered.push_back(id);
                continue;
            }
            let Some(task) = self.tasks.remove(id) else { continue };
            // After a restart a younger task may have them.
            let is_its_own = |known: Option<&TaskId>| known == Some(&id);
            if let Some(name) = task.spec.name.filter(|name| is_its_own(self.names.get(name))) {
                self.names.remove(&name);
                numeral(&name).map(|number| self.numerals.remove(&number));
            }
            if let Some(key) = task.spec.key.filter(|key| is_its_own(self.keys.get(key))) {
                self.keys.remove(&key);
            }
        }
        self.tasks.trim();
    }

    fn set_timer(&mut self, when: Nanos, id: TaskId, timer: Timer) {
        // Time limits of tasks that ended long before would pile up: swept when they are the majority.
        if self.timers.len() > 1024 && self.timers.len() as u64 > 4 * self.counts.open() {
            let mut timers = std::mem::take(&mut self.timers).into_vec();
            timers.retain(|Reverse((_, id, _))| self.get(*id).is_some_and(|task| !task.state.is_final()));
            self.timers = timers.into();
        }
        self.timers.push(Reverse((when, id, timer)));
    }

    /// Gives every task that was queued since the last call its place in the order: it is due at the time of its queueing
    /// plus its `patience` in ns, once and for all.
    pub fn line_up(&mut self, patience: impl Fn(&Task) -> u64) {
        let mut fresh = std::mem::take(&mut self.fresh);
        for id in fresh.drain(..) {
            let Some(task) = self.get_mut(id).filter(|task| task.state == TaskState::Queued) else {
                continue;
            };
            task.due = Nanos(task.queued.0.saturating_add(patience(task)));
            let (priority, due) = (task.spec.priority as usize, (task.due, id));
            self.queues[priority].add(due);
        }
        self.fresh = fresh;
    }

    /// The task that should go next, first come, first served, without taking it.
    pub fn peek(&mut self, now: Nanos) -> Option<&Task> {
        self.line_up(|_| 0);
        let mut best: Option<(u64, Due)> = None;
        for priority in 0..3 {
            let first = self.queues[priority].first(|id| waits(&self.tasks, id));
            if let Some(due) = first {
                let next = (self.aged(priority, due.0, now), due);
                best = Some(best.map_or(next, |best| best.min(next)));
            }
        }
        self.get(best?.1.1)
    }

    /// The first `many` of the tasks that were [lined up](Self::line_up), in order: priority with age, when due, which.
    ///
    /// Nobody starves: age counts from when a task is due, so that two times `ageing` later nothing goes before it but what
    /// was due earlier, and of that there is only what had been queued by then.
    pub fn upcoming(&mut self, now: Nanos, many: usize, into: &mut Vec<(u64, Nanos, TaskId)>) {
        let mut first = std::mem::take(&mut self.first_many);
        for priority in 0..3 {
            first.clear();
            self.queues[priority].first_many(many, |id| waits(&self.tasks, id), &mut first);
            into.extend(first.iter().map(|&(due, id)| (self.aged(priority, due, now), due, id)));
        }
        self.first_many = first;
        into.sort_unstable();
        into.truncate(many);
    }

    /// Who goes first, smallest number first: a class is gained with every `ageing`. Of one priority, who is due earlier is
    /// never in a later class.
    fn aged(&self, priority: usize, due: Nanos, now: Nanos) -> u64 {
        let gained = now.since(due).as_nanos() as u64 / (self.limits.ageing.as_nanos() as u64).max(1);
        (priority as u64).saturating_sub(gained)
    }

    /// Leases a task that [`peek`](Self::peek) or [`upcoming`](Self::upcoming) showed.
    pub fn dispatch(&mut self, id: TaskId, lease: Lease, now: Nanos) -> Attempt {
        self.begin_attempt(id, Some(lease), now)
    }

    fn begin_attempt(&mut self, id: TaskId, lease: Option<Lease>, now: Nanos) -> Attempt {
        let task = self.get_mut(id).expect("a task that was peeked at");
        assert_eq!(task.state, TaskState::Queued, "only queued tasks are dispatched");
        task.state = TaskState::Dispatched;
        task.attempt.0 += 1;
        (task.lease, task.leased, task.hedge) = (lease, task.attempt, None);
        (task.wide, task.parts) = (None, 0);
        task.agent = lease.map(|lease| lease.slot);
        task.dispatched = now;
        task.cancelling = None;
        let (attempt, priority, timeout) = (task.attempt, task.spec.priority as usize, task.spec.timeout);
        let due = (task.due, id);
        if let Some(timeout) = timeout {
            self.set_timer(now.plus(timeout), id, Timer::TimeLimit(attempt));
        }
        if attempt.0 > 1 {
            self.counts.retried += 1;
        }
        self.queued -= 1;
        self.queues[priority].take(due);
        self.note(Event::Dispatched, id);
        attempt
    }

    /// Leases a second attempt of a task that runs, to another agent. From now on the first answer counts.
    pub fn hedge(&mut self, id: TaskId, lease: Lease, now: Nanos) -> Attempt {
        let task = self.get_mut(id).expect("a task that runs");
        assert!(task.may_be_hedged(), "one that runs, alone, and is not being given up");
        assert!(task.lease.is_some_and(|first| first.slot != lease.slot), "two attempts, two agents");
        task.attempt.0 += 1;
        let attempt = task.attempt;
        task.hedge = Some(Hedge { lease, attempt, dispatched: now });
        task.hedged_on = Some(lease.slot);
        if let Some(timeout) = task.spec.timeout {
            self.set_timer(now.plus(timeout), id, Timer::TimeLimit(attempt));
        }
        self.counts.hedged += 1;
        self.note(Event::Dispatched, id);
        attempt
    }

    /// The other attempt of a task of which two run.
    pub fn rival(&self, id: TaskId, attempt: Attempt) -> Option<(Lease, Attempt)> {
        let task = self.get(id)?;
        let hedge = task.hedge?;
        if hedge.attempt == attempt {
            Some((task.lease?, task.leased))
        } else {
            Some((hedge.lease, hedge.attempt))
        }
    }

    /// This attempt has the answer: the task is its own from now on. If there is another one, it is unwanted at the task's end.
    /// Call [`check_holder`](Self::check_holder) first.
    pub fn settle(&mut self, id: TaskId, attempt: Attempt) -> &mut Task {
        let task = self.get_mut(id).expect("its holder was checked");
        if task.hedge.is_some_and(|hedge| hedge.attempt == attempt) {
            task.swap_attempts();
        }
        task
    }

    /// One attempt is over and left no answer. Whether another one goes on, so that nothing is to be done.
    pub fn fall_out(&mut self, id: TaskId, attempt: Attempt) -> bool {
        let Some(task) = self.get_mut(id) else { return false };
        let Some(hedge) = task.hedge else { return false };
        if hedge.attempt != attempt {
            task.swap_attempts();
        }
        task.hedge = None;
        true
    }

    /// The attempts that shall be given up since the last call; the caller tells their agents.
    pub fn take_unwanted(&mut self) -> Vec<(TaskId, Lease, Attempt)> {
        std::mem::take(&mut self.unwanted)
    }

    /// Whether this answer is the one that is waited for.
    pub fn check_holder(
        &mut self,
        id: TaskId,
        attempt: Attempt,
        slot: AgentSlot,
        incarnation: Incarnation,
    ) -> Result<(), Refusal> {
        let refusal = match self.get(id) {
            None => Some(Refusal::UnknownTask),
            Some(task) if task.state.is_final() => Some(Refusal::Ended),
            Some(task) if !task.is_held_by(Lease { slot, incarnation }, attempt) => {
                Some(Refusal::NotTheHolder)
            }
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            self.counts.refused += 1;
            return Err(refusal);
        }
        Ok(())
    }

    /// The holder says that the task succeeded. Call [`check_holder`](Self::check_holder) first.
    pub fn on_success(&mut self, id: TaskId, result: Option<Box<str>>, now: Nanos) -> Transition {
        if let Some(task) = self.get_mut(id) {
            task.result = result;
            task.error = None;
        }
        self.end(id, TaskState::Succeeded, None, now)
    }

    /// The holder says that the task did not succeed. `may_help`: another attempt could.
    pub fn on_failure(&mut self, id: TaskId, error: &str, may_help: bool, now: Nanos) -> Transition {
        let Some(task) = self.get_mut(id) else { return Transition::Again };
        if may_help && task.cancelling == Some(true) {
            // The answer and the request have crossed.
            return self.end(id, TaskState::Cancelled, Some(self.why_cancelled()), now);
        }
        if may_help && task.retries_left > 0 && self.phase != Phase::Ending {
            let task = self.get_mut(id).expect("just seen");
            task.retries_left -= 1;
            task.state = TaskState::Retrying;
            task.lease = None;
            task.error = Some(error.into());
            let tried = task.spec.retries - task.retries_left;
            let pause = RETRY_PAUSE.saturating_mul(1 << (tried - 1).min(20)).min(RETRY_PAUSE_MAX);
            self.set_timer(now.plus(pause), id, Timer::Retry);
            self.note(Event::Retrying, id);
            return Transition::Again;
        }
        self.end(id, TaskState::Failed, Some(error), now)
    }

    /// The holder gave the task up, as it was told.
    pub fn on_given_up(&mut self, id: TaskId, now: Nanos) -> Transition {
        match self.get(id).and_then(|task| task.cancelling) {
            Some(true) => self.end(id, TaskState::Cancelled, Some(self.why_cancelled()), now),
            // A second attempt that was declined because of the first one, which has come to nothing meanwhile.
            None if self.get(id).is_some_and(|task| task.was_declined(now)) => {
                let task = self.get_mut(id).expect("just seen");
                task.lease = None;
                self.queue_again(id);
                Transition::Again
            }
            _ => {
                let limit = self.get(id).and_then(|task| task.spec.timeout).unwrap_or_default();
                let error = format!("exceeded its time limit of {} s", limit.as_secs_f64());
                self.on_failure(id, &error, true, now)
            }
        }
    }

    /// An incarnation is gone: its leases go back to the head of their queues. `running` is the task
    /// that it said it ran; `crashed` that it ended by its own fault. Returns the tasks that moved.
    pub fn on_agent_gone(
        &mut self,
        held: &[TaskId],
        lease: Lease,
        running: Option<TaskId>,
        cause: &str,
        crashed: bool,
        now: Nanos,
    ) -> Vec<TaskId> {
        let mut moved = Vec::new();
        for &id in held.iter().rev() {
            let poison_deaths = self.limits.poison_deaths;
            let Some(task) = self.get(id) else { continue };
            let attempt = task.attempt_of(lease);
            let has_a_part = task.is_held_by(lease, task.leased) && attempt.is_none();
            if attempt.is_none() && !has_a_part {
                continue;
            }
            let Some(attempt) = attempt else {
                self.on_part_lost(id, lease, running == Some(id), cause, crashed, now);
                moved.push(id);
                continue;
            };
            // What is left to a later life is taken from its agent by a kill of ours, which says nothing about it.
            if running == Some(id) && (crashed || self.phase != Phase::Leaving) {
                self.note_death(id, crashed);
            }
            if self.fall_out(id, attempt) {
                // Nothing moves: it is with another agent already, and that one has the last word.
                continue;
            }
            let task = self.get_mut(id).expect("just seen");
            let (deaths, cancelling) = (task.deaths, task.cancelling);
            if deaths.0 >= poison_deaths || deaths.1 >= KILL_LIMIT {
                let error = format!(
                    "{POISON}: {} agents died while running it, the last by {cause}",
                    deaths.0 + deaths.1
                );
                self.end(id, TaskState::Failed, Some(&error), now);
            } else if cancelling == Some(true) {
                self.end(id, TaskState::Cancelled, Some(self.why_cancelled()), now);
            } else if cancelling == Some(false) {
                self.on_given_up(id, now);
            } else {
                let task = self.get_mut(id).expect("just seen");
                task.lease = None;
                task.error = Some(format!("its agent died by {cause}").into());
                self.queue_again(id);
            }
            moved.push(id);
        }
        moved
    }

    /// No attempt can compute this task right any more. One that runs is unwanted.
    pub fn spoil(&mut self, id: TaskId, error: &str, now: Nanos) {
        let Some(task) = self.get(id).filter(|task| !task.state.is_final()) else { return };
        if task.is_divided() {
            return self.give_up_parts(id, error, now);
        }
        let running = task.lease.map(|lease| (id, lease, task.leased));
        self.unwanted.extend(running);
        self.end(id, TaskState::Failed, Some(error), now);
    }

    fn queue_again(&mut self, id: TaskId) {
        let task = self.get_mut(id).expect("callers have seen it");
        task.state = TaskState::Queued;
        let (priority, due) = (task.spec.priority as usize, (task.due, id));
        self.queues[priority].add(due);
        self.queued += 1;
    }

    fn queue_last(&mut self, id: TaskId, now: Nanos) {
        let task = self.get_mut(id).expect("callers have seen it");
        task.state = TaskState::Queued;
        task.queued = now;
        self.fresh.push(id);
        self.queued += 1;
    }

    /// Somebody wants the task gone.
    pub fn cancel(&mut self, id: TaskId, now: Nanos) -> Option<CancelOutcome> {
        let task = self.get_mut(id)?;
        if task.state.is_final() {
            return Some(CancelOutcome::AlreadyEnded(task.state));
        }
        if let (TaskState::Dispatched, Some(lease)) = (task.state, task.lease) {
            let is_known = task.cancelling.replace(true) == Some(true);
            let (first, second) = (task.leased, task.hedge);
            self.unwanted.extend(second.map(|hedge| (id, hedge.lease, hedge.attempt)));
            // At the end of the swarm nobody wishes that; who dies in the middle of that end goes on.
            if !is_known && self.phase != Phase::Ending {
                self.note(Event::Cancelling, id);
            }
            return Some(CancelOutcome::AskAgent(lease, first));
        }
        if task.is_divided() {
            let is_known = task.cancelling.replace(true) == Some(true);
            if !is_known && self.phase != Phase::Ending {
                self.note(Event::Cancelling, id);
            }
            if let Some((lease, attempt)) = self.recall_parts(id) {
                return Some(CancelOutcome::AskAgent(lease, attempt));
            }
            self.abandon(id);
        }
        self.end(id, TaskState::Cancelled, Some(self.why_cancelled()), now);
        Some(CancelOutcome::Cancelled)
    }

    /// Why a single task is cancelled: somebody asked, or its swarm ends.
    fn why_cancelled(&self) -> &'static str {
        match self.phase {
            Phase::Ending => "the swarm stopped before it was done",
            Phase::Open | Phase::Leaving => "cancelled on request",
        }
    }

    /// Cancels everything that no agent has begun with, and says why.
    pub fn cancel_waiting(&mut self, why: &str, now: Nanos) {
        let waiting: Vec<TaskId> = self
            .tasks()
            .filter(|task| !task.state.is_final())
            .filter(|task| task.state != TaskState::Dispatched || task.holders().next().is_none())
            .map(|task| task.id)
            .collect();
        for id in waiting {
            // It may have gone with one that it waited for.
            if self.get(id).is_some_and(|task| !task.state.is_final()) {
                self.end(id, TaskState::Cancelled, Some(why), now);
            }
        }
    }

    /// Everything whose time has come. Returns the attempts whose time limit is over; the caller tells
    /// their agents to give up.
    pub fn on_time(&mut self, now: Nanos) -> Vec<(TaskId, Lease, Attempt)> {
        let mut over = Vec::new();
        while let Some(&Reverse((when, id, timer))) = self.timers.peek() {
            if when > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Retry => {
                    if self.get(id).is_some_and(|task| task.state == TaskState::Retrying) {
                        self.queue_last(id, now);
                    }
                }
                Timer::TimeLimit(attempt) => {
                    let Some(task) = self.get_mut(id) else { continue };
                    if task.state != TaskState::Dispatched {
                        continue;
                    }
                    if let Some(hedge) = task.hedge.filter(|hedge| hedge.attempt == attempt) {
                        self.unwanted.push((id, hedge.lease, attempt));
                    } else if task.leased == attempt && task.cancelling.is_none() {
                        let holder = task.holders().next();
                        match (task.lease, holder, task.spec.timeout) {
                            (Some(lease), ..) => {
                                task.cancelling = Some(false);
                                over.push((id, lease, attempt));
                            }
                            // Its parts wait for agents: nobody spends its time.
                            (None, None, Some(timeout)) => {
                                self.set_timer(now.plus(timeout), id, Timer::TimeLimit(attempt));
                            }
                            // Agents begin with parts at once: there is no time to be given back.
                            _ => {
                                task.cancelling = Some(false);
                                self.recall_parts(id);
                                self.conclude(id, now);
                            }
                        }
                    }
                }
            }
        }
        over
    }

    /// A time limit counts from `began`: gives the attempt the rest of its time, if there is some.
    pub fn extend_time_limit(&mut self, id: TaskId, began: Nanos, now: Nanos) -> bool {
        let Some(task) = self.get_mut(id) else { return false };
        let Some(timeout) = task.spec.timeout else { return false };
        let end = began.max(task.dispatched).plus(timeout);
        if end <= now {
            return false;
        }
        task.cancelling = None;
        let attempt = task.leased;
        self.set_timer(end, id, Timer::TimeLimit(attempt));
        true
    }

    /// When [`on_time`](Self::on_time) has something to do next.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.timers.peek().map(|Reverse((when, ..))| *when)
    }

    /// The tasks that ended since the last call, with their batches.
    pub fn take_ended(&mut self, into: &mut Vec<(TaskId, u64)>) {
        into.append(&mut self.ended);
    }

    fn end(&mut self, id: TaskId, state: TaskState, error: Option<&str>, now: Nanos) -> Transition {
        // Grows only when others waited for this one.
        let mut pending: Vec<(TaskId, TaskState, Option<String>)> = Vec::new();
        let mut next = Some((id, state, error.map(str::to_owned)));
        while let Some((id, state, error)) = next.take().or_else(|| pending.pop()) {
            let Some(task) = self.get_mut(id) else { continue };
            if task.state.is_final() {
                self.counts.duplicated += 1;
                continue;
            }
            let was_queued = task.state == TaskState::Queued;
            let (priority, due) = (task.spec.priority as usize, (task.due, id));
            if task.is_divided() {
                self.abandon(id);
            }
            let task = self.get_mut(id).expect("just seen");
            task.state = state;
            (task.lease, task.wide) = (None, None);
            task.spec.forget_body();
            let (leased, other) = (task.leased, task.hedge.take());
            task.finished = now;
            if let Some(error) = error {
                task.error = Some(error.into());
            }
            let batch = task.batch;
            let dependents = std::mem::take(&mut task.dependents);
            // Only a message needs the name; tiny tasks end without one.
            let label = if dependents.is_empty() { String::new() } else { task.label() };
            if was_queued {
                self.queued -= 1;
                self.queues[priority].forget(due);
            }
            if let Some(hedge) = other {
                self.unwanted.push((id, hedge.lease, hedge.attempt));
                let is_won = u64::from(hedge.attempt < leased);
                if state == TaskState::Succeeded {
                    self.counts.hedges_won += is_won;
                    self.counts.hedges_lost += 1 - is_won;
                }
            }
            match state {
                TaskState::Succeeded => self.counts.succeeded += 1,
                TaskState::Cancelled => self.counts.cancelled += 1,
                _ => self.counts.failed += 1,
            }
            self.note(Event::Ended, id);
            self.ended.push((id, batch));
            self.ended.extend(self.followers.remove(&id).into_iter().flatten().map(|batch| (id, batch)));
            self.remembered.push_back(id);
            for dependent in dependents {
                if state == TaskState::Succeeded {
                    // One that was cancelled while it waited may be forgotten by now.
                    let waiting = self.get_mut(dependent).filter(|task| task.state == TaskState::Waiting);
                    let Some(task) = waiting else { continue };
                    task.missing -= 1;
                    if task.missing == 0 {
                        self.queue_last(dependent, now);
                    }
                } else if self.get(dependent).is_some_and(|task| !task.state.is_final()) {
                    let error = format!("not run: task {label:?}, which it comes after, {}", state.name());
                    pending.push((dependent, TaskState::Cancelled, Some(error)));
                }
            }
        }
        Transition::Ended(state)
    }
}

/// The number of the task that would be called so if it had no name.
fn numeral(name: &str) -> Option<u64> {
    let number = name.strip_prefix('t')?.parse().ok()?;
    (TaskId(number).to_string() == name).then_some(number)
}

/// Whether this task waits to be sent.
fn waits(tasks: &Numbered<Box<Task>>, id: TaskId) -> bool {
    tasks.get(id).is_some_and(|task| task.state == TaskState::Queued)
}

struct BatchPlan {
    order: Vec<usize>,
    refused: Vec<(usize, SubmitError)>,
}

/// Puts a batch into an order in which everything comes after what it waits for, and names what
/// cannot be ordered (A. B. Kahn, "Topological sorting of large networks", CACM 1962).
fn plan_batch(specs: &[TaskSpec], known: impl Fn(&str) -> Option<TaskState>) -> BatchPlan {
    let label = |at: usize| specs[at].name.as_deref().unwrap_or("(unnamed)").to_owned();
    let mut refused: Vec<Option<SubmitError>> = specs.iter().map(|_| None).collect();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    // Names of this batch that belong to somebody outside: who comes after one of them means the one in the batch.
    let mut taken: HashSet<&str> = HashSet::new();
    for (at, spec) in specs.iter().enumerate() {
        if let Some(name) = spec.name.as_deref() {
            if by_name.contains_key(name) || known(name).is_some() {
                refused[at] = Some(SubmitError::DuplicateName { name: name.to_owned() });
                if !by_name.contains_key(name) {
                    taken.insert(name);
                }
            } else {
                by_name.insert(name, at);
            }
        }
    }
    let mut inside: Vec<Vec<usize>> = specs.iter().map(|_| Vec::new()).collect();
    let mut followers: Vec<Vec<usize>> = specs.iter().map(|_| Vec::new()).collect();
    for (at, spec) in specs.iter().enumerate() {
        for name in &spec.after {
            if let Some(&other) = by_name.get(&**name) {
                inside[at].push(other);
                followers[other].push(at);
            } else if taken.contains(&**name) && refused[at].is_none() {
                refused[at] =
                    Some(SubmitError::DependencyRefused { task: label(at), dependency: name.to_string() });
            } else if known(name).is_none() && refused[at].is_none() {
                refused[at] =
                    Some(SubmitError::UnknownDependency { task: label(at), missing: name.to_string() });
            }
        }
    }
    let mut missing: Vec<usize> = inside.iter().map(Vec::len).collect();
    let mut ready: VecDeque<usize> = (0..specs.len()).filter(|&at| missing[at] == 0).collect();
    let mut order = Vec::new();
    while let Some(at) = ready.pop_front() {
        if refused[at].is_none()
            && let Some(&bad) = inside[at].iter().find(|&&other| refused[other].is_some())
        {
            refused[at] = Some(SubmitError::DependencyRefused { task: label(at), dependency: label(bad) });
        }
        if refused[at].is_none() {
            order.push(at);
        }
        for &follower in &followers[at] {
            missing[follower] -= 1;
            if missing[follower] == 0 {
                ready.push_back(follower);
            }
        }
    }
    // What is left waits for a cycle. Every task is walked over once: a walk ends on a cycle, or on
    // a task whose cycle is known already.
    let mut cycle_of: Vec<Option<Arc<str>>> = vec![None; specs.len()];
    let mut seen_in: Vec<usize> = vec![usize::MAX; specs.len()];
    for at in (0..specs.len()).filter(|&at| missing[at] > 0) {
        let mut walk = Vec::new();
        let mut here = at;
        let path = loop {
            if let Some(path) = &cycle_of[here] {
                break path.clone();
            }
            if seen_in[here] == at {
                let start = walk.iter().position(|&seen| seen == here).expect("seen in this walk");
                break cycle_words(&walk[start..], &label);
            }
            seen_in[here] = at;
            walk.push(here);
            here =
                *inside[here].iter().find(|&&other| missing[other] > 0).expect("not ordered, so one is left");
        };
        for step in walk {
            cycle_of[step] = Some(path.clone());
        }
        if refused[at].is_none() {
            refused[at] = Some(SubmitError::Cycle { task: label(at), path });
        }
    }
    BatchPlan {
        order,
        refused: refused.into_iter().enumerate().filter_map(|(at, e)| e.map(|e| (at, e))).collect(),
    }
}

/// `a -> b -> a`, the middle of a long cycle left out.
fn cycle_words(cycle: &[usize], label: &impl Fn(usize) -> String) -> Arc<str> {
    const SHOWN: usize = 6;
    let mut names: Vec<String> = cycle.iter().rev().take(SHOWN).map(|&step| label(step)).collect();
    if cycle.len() > SHOWN {
        names.push(format!("... ({} more)", cycle.len() - SHOWN));
    }
    names.push(names[0].clone());
    names.join(" -> ").into()
}

#[cfg(test)]
mod tests {
    use super::super::Priority;
    use super::*;

    const LEASE: Lease = Lease { slot: AgentSlot(0), incarnation: Incarnation(1) };

    fn spec(name: &str, after: &[&str]) -> TaskSpec {
        TaskSpec {
            name: (!name.is_empty()).then(|| name.into()),
            after: after.iter().map(|&name| name.into()).collect(),
            retries: 1,
            ..TaskSpec::default()
        }
    }

    fn ledger() -> Ledger {
        Ledger::new(LedgerLimits::default())
    }

    fn numbered(tasks: impl IntoIterator<Item = Box<Task>>) -> Numbered<Box<Task>> {
        let mut all = Numbered::default();
        tasks.into_iter().for_each(|task| assert!(all.push(task.id, task)));
        all
    }

    fn run_next(ledger: &mut Ledger, now: Nanos) -> TaskId {
        let id = ledger.peek(now).expect("something is queued").id;
        ledger.dispatch(id, LEASE, now);
        id
    }

    #[test]
    fn a_task_lives_and_ends_once() {
        let mut ledger = ledger();
        let id = ledger.submit(spec("a", &[]), Nanos(1)).expect("accepted");
        assert_eq!(run_next(&mut ledger, Nanos(2)), id);
        assert!(ledger.check_holder(id, Attempt(1), AgentSlot(0), Incarnation(1)).is_ok());
        assert_eq!(
            ledger.on_success(id, Some("5".into()), Nanos(3)),
            Transition::Ended(TaskState::Succeeded)
        );
        let late = ledger.check_holder(id, Attempt(1), AgentSlot(0), Incarnation(1)).err();
        assert_eq!(late, Some(Refusal::Ended), "the same answer twice");
        let counts = ledger.counts();
        assert_eq!((counts.succeeded, counts.duplicated, counts.refused, counts.open()), (1, 0, 1, 0));
        let mut ended = Vec::new();
        ledger.take_ended(&mut ended);
        assert_eq!(ended, [(id, 1)]);
    }

    /// So many others end that everything older is forgotten.
    fn end_many(ledger: &mut Ledger) {
        for _ in 0..REMEMBERED + 10 {
            let id = ledger.submit(TaskSpec::default(), Nanos(5)).expect("accepted");
            ledger.dispatch(id, LEASE, Nanos(5));
            ledger.on_success(id, None, Nanos(6));
        }
        ledger.take_ended(&mut Vec::new());
    }

    #[test]
    fn who_was_forgotten_while_it_waited_is_not_missed() {
        let mut ledger = ledger();
        let first = ledger.submit(spec("first", &[]), Nanos(1)).expect("accepted");
        let second = ledger.submit(spec("second", &["first"]), Nanos(1)).expect("accepted");
        let third = ledger.submit(spec("third", &["first"]), Nanos(1)).expect("accepted");
        ledger.dispatch(first, LEASE, Nanos(2));
        ledger.cancel(second, Nanos(3));
        end_many(&mut ledger);
        assert!(ledger.get(second).is_none(), "it is forgotten");
        ledger.on_success(first, None, Nanos(7));
        assert_eq!(run_next(&mut ledger, Nanos(8)), third);
    }

    #[test]
    fn an_end_that_somebody_has_not_heard_is_remembered() {
        let mut ledger = ledger();
        let ids = [(); 2].map(|()| ledger.submit(spec("", &[]), Nanos(1)).expect("accepted"));
        for id in ids {
            ledger.dispatch(id, LEASE, Nanos(2));
            ledger.on_success(id, None, Nanos(3));
            ledger.owe(id);
            ledger.owe(id);
        }
        ids.iter().for_each(|&id| ledger.pay(id));
        ledger.pay(ids[0]);
        end_many(&mut ledger);
        assert!(ledger.get(ids[0]).is_none() && ledger.get(ids[1]).is_some());
        ledger.pay(ids[1]);
        end_many(&mut ledger);
        assert!(ledger.get(ids[1]).is_none());
    }

    #[test]
    fn what_is_forgotten_takes_no_name_or_key_of_a_younger_task_along() {
        let mut ledger = ledger();
        let twin = |id: u64, state| {
            let spec = TaskSpec { key: Some("key".into()), ..spec("name", &[]) };
            let mut task = Task::new(TaskId(id), spec, state, 0, Nanos(1));
            task.earlier = state.is_final();
            Box::new(task)
        };
        ledger.restore(numbered([twin(1, TaskState::Succeeded), twin(2, TaskState::Queued)]), Nanos(1));
        let running = run_next(&mut ledger, Nanos(2));
        end_many(&mut ledger);
        assert!(ledger.get(TaskId(1)).is_none());
        let again = TaskSpec { key: Some("key".into()), ..spec("name", &[]) };
        assert_eq!(ledger.submit(again, Nanos(9)), Ok(running), "its key still means it");
        assert!(ledger.submit(spec("name", &[]), Nanos(9)).is_err(), "its name is taken");
    }

    #[test]
    fn no_two_tasks_have_one_id() {
        let mut ledger = ledger();
        let mut submit = |name: &str| ledger.submit(spec(name, &[]), Nanos(1));
        assert_eq!(submit("t3"), Ok(TaskId(1)));
        assert_eq!([submit(""), submit("")], [Ok(TaskId(2)), Ok(TaskId(4))], "3 would be a second t3");
        assert!(matches!(submit("t2"), Err(SubmitError::DuplicateName { .. })), "it is one without a name");
        assert_eq!(submit("t1"), Ok(TaskId(5)), "1 is called t3");
        assert_eq!(submit("t04"), Ok(TaskId(6)), "4 is not called so");
        let (_, answers) =
            ledger.submit_batch(vec![spec("", &[]), spec("t7", &[]), spec("b", &["t4"])], Nanos(2));
        assert_eq!(
            answers,
            [8, 9, 10].map(|id| Ok(TaskId(id))),
            "7 is a name, a number is an id to wait for"
        );
        assert_eq!(ledger.find("t3").map(|task| task.id), Some(TaskId(1)));
        assert_eq!(ledger.find("t4").map(|task| task.id), Some(TaskId(4)));
    }

    #[test]
    fn who_comes_after_an_id_means_the_one_of_its_own_job() {
        let mut ledger = ledger();
        let (_, answers) =
            ledger.submit_batch(vec![spec("", &[]), spec("t1", &[]), spec("b", &["t1"])], Nanos(1));
        assert_eq!(answers, [Ok(TaskId(2)), Ok(TaskId(3)), Ok(TaskId(4))]);
        assert_eq!(ledger.get(TaskId(3)).map(|task| task.dependents.clone()), Some(vec![TaskId(4)]));
        // 2 is one without a name.
        let (_, answers) = ledger.submit_batch(vec![spec("t2", &[]), spec("c", &["t2"])], Nanos(1));
        assert!(matches!(answers[0], Err(SubmitError::DuplicateName { .. })));
        assert!(matches!(answers[1], Err(SubmitError::DependencyRefused { .. })), "{answers:?}");
    }

    #[test]
    fn what_comes_after_a_number_does_so_in_the_next_life() {
        let mut before = ledger();
        before.submit(spec("", &[]), Nanos(1)).expect("accepted");
        before.submit(spec("b", &["t1"]), Nanos(1)).expect("accepted");
        let tasks = before.tasks().cloned().map(|mut task| {
            (task.state, task.missing, task.dependents) = (TaskState::Queued, 0, Vec::new());
            Box::new(task)
        });
        let mut after = ledger();
        after.restore(numbered(tasks), Nanos(2));
        assert_eq!(after.get(TaskId(2)).map(|task| task.state), Some(TaskState::Waiting));
        assert_eq!(run_next(&mut after, Nanos(3)), TaskId(1));
        after.on_success(TaskId(1), None, Nanos(4));
        assert_eq!(run_next(&mut after, Nanos(5)), TaskId(2));
    }

    #[test]
    fn a_failure_that_crosses_the_wish_to_cancel_is_not_tried_again() {
        for (may_help, state) in [(true, TaskState::Cancelled), (false, TaskState::Failed)] {
            let mut ledger = ledger();
            let id = ledger.submit(spec("a", &[]), Nanos(1)).expect("accepted");
            ledger.dispatch(id, LEASE, Nanos(2));
            ledger.cancel(id, Nanos(3));
            assert_eq!(ledger.on_failure(id, "why", may_help, Nanos(4)), Transition::Ended(state));
        }
    }

    #[test]
    fn an_answer_of_an_old_incarnation_or_attempt_is_refused() {
        let mut ledger = ledger();
        let id = ledger.submit(spec("a", &[]), Nanos(1)).expect("accepted");
        run_next(&mut ledger, Nanos(2));
        let refused = |ledger: &mut Ledger, attempt, incarnation| {
            ledger.check_holder(id, Attempt(attempt), AgentSlot(0), Incarnation(incarnation)).err()
        };
        assert_eq!(refused(&mut ledger, 1, 0), Some(Refusal::NotTheHolder));
        assert_eq!(refused(&mut ledger, 2, 1), Some(Refusal::NotTheHolder));
        assert_eq!(ledger.on_agent_gone(&[id], LEASE, Some(id), "signal 9", false, Nanos(3)), [id]);
        assert_eq!(refused(&mut ledger, 1, 1), Some(Refusal::NotTheHolder), "no lease at all now");
        ledger.dispatch(id, Lease { incarnation: Incarnation(2), ..LEASE }, Nanos(4));
        assert_eq!(refused(&mut ledger, 1, 1), Some(Refusal::NotTheHolder));
        assert_eq!(refused(&mut ledger, 2, 2), None);
        assert_eq!(ledger.counts().retried, 1);
    }

    #[test]
    fn kills_from_outside_end_a_task_only_when_there_is_no_end_of_them() {
        let mut ledger = ledger();
        let id = ledger.submit(spec("unlucky", &[]), Nanos(1)).expect("ok");
        for life in 1..=100 {
            assert_eq!(ledger.get(id).map(|task| task.state), Some(TaskState::Queued), "before kill {life}");
            let lease = Lease { slot: AgentSlot(0), incarnation: Incarnation(life) };
            ledger.dispatch(id, lease, Nanos(2));
            ledger.on_agent_gone(&[id], lease, Some(id), "signal 9", false, Nanos(3));
        }
        let task = ledger.get(id).expect("known");
        assert_eq!(task.state, TaskState::Failed);
        assert!(
            task.error.as_deref().is_some_and(|error| error.contains("100 agents died while running it"))
        );
    }

    #[test]
    fn what_an_agent_held_goes_back_to_the_head_in_order() {
        let mut ledger = ledger();
        let ids: Vec<TaskId> =
            (0..4).map(|i| ledger.submit(spec(&format!("{i}x"), &[]), Nanos(i)).expect("ok")).collect();
        let held = [run_next(&mut ledger, Nanos(9)), run_next(&mut ledger, Nanos(9))];
        ledger.on_agent_gone(&held, LEASE, Some(held[0]), "signal 9", false, Nanos(10));
        let order: Vec<TaskId> = (0..4).map(|_| run_next(&mut ledger, Nanos(11))).collect();
        assert_eq!(order, ids);
    }

    #[test]
    fn poison_is_given_up_with_evidence_and_bystanders_are_not_blamed() {
        let mut ledger = ledger();
        let poison = ledger.submit(spec("poison", &[]), Nanos(1)).expect("ok");
        let bystander = ledger.submit(spec("bystander", &[]), Nanos(1)).expect("ok");
        for life in 1..=3 {
            let lease = Lease { slot: AgentSlot(0), incarnation: Incarnation(life) };
            ledger.dispatch(poison, lease, Nanos(2));
            ledger.dispatch(bystander, lease, Nanos(2));
            ledger.on_agent_gone(&[poison, bystander], lease, Some(poison), "signal 11", true, Nanos(3));
        }
        let task = ledger.get(poison).expect("known");
        assert_eq!(task.state, TaskState::Failed);
        assert!(
            task.error
                .as_deref()
                .expect("evidence")
                .contains("3 agents died while running it, the last by signal 11")
        );
        assert_eq!(ledger.get(bystander).expect("known").state, TaskState::Queued);
        assert_eq!(ledger.get(bystander).expect("known").deaths, (0, 0));
    }

    #[test]
    fn failures_are_retried_as_often_as_allowed() {
        let mut ledger = ledger();
        let id = ledger.submit(spec("a", &[]), Nanos(0)).expect("ok");
        run_next(&mut ledger, Nanos(1));
        assert_eq!(ledger.on_failure(id, "disk", true, Nanos(2)), Transition::Again);
        assert!(ledger.peek(Nanos(3)).is_none(), "a pause first");
        let due = ledger.next_timer().expect("a timer runs");
        assert!(ledger.on_time(due).is_empty());
        run_next(&mut ledger, due);
        assert_eq!(ledger.on_failure(id, "disk again", true, due), Transition::Ended(TaskState::Failed));
        assert_eq!(ledger.get(id).expect("known").error.as_deref(), Some("disk again"));
        let wrong = ledger.submit(spec("b", &[]), Nanos(0)).expect("ok");
        run_next(&mut ledger, due);
        assert_eq!(ledger.on_failure(wrong, "shape", false, due), Transition::Ended(TaskState::Failed));
    }

    #[test]
    fn time_limits_ask_the_holder_and_then_count_as_failures() {
        let mut ledger = ledger();
        let timeout = Some(Duration::from_nanos(50));
        let id = ledger.submit(TaskSpec { timeout, retries: 0, ..spec("a", &[]) }, Nanos(0)).expect("ok");
        run_next(&mut ledger, Nanos(10));
        assert!(ledger.on_time(Nanos(59)).is_empty());
        assert_eq!(ledger.on_time(Nanos(60)), [(id, LEASE, Attempt(1))]);
        assert!(ledger.on_time(Nanos(99)).is_empty(), "asked once");
        assert_eq!(ledger.on_given_up(id, Nanos(100)), Transition::Ended(TaskState::Failed));
        assert!(ledger.get(id).expect("known").error.as_deref().expect("why").contains("time limit"));
    }

    #[test]
    fn cancelling_takes_what_waits_and_asks_for_what_runs() {
        let mut ledger = ledger();
        let a = ledger.submit(spec("a", &[]), Nanos(0)).expect("ok");
        let b = ledger.submit(spec("b", &["a"]), Nanos(0)).expect("ok");
        let c = ledger.submit(spec("c", &[]), Nanos(0)).expect("ok");
        run_next(&mut ledger, Nanos(1));
        assert_eq!(ledger.cancel(c, Nanos(2)), Some(CancelOutcome::Cancelled));
        assert_eq!(ledger.cancel(a, Nanos(2)), Some(CancelOutcome::AskAgent(LEASE, Attempt(1))));
        assert_eq!(ledger.on_given_up(a, Nanos(3)), Transition::Ended(TaskState::Cancelled));
        assert_eq!(ledger.get(b).expect("known").state, TaskState::Cancelled, "it came after a");
        assert_eq!(ledger.cancel(a, Nanos(4)), Some(CancelOutcome::AlreadyEnded(TaskState::Cancelled)));
        assert!(ledger.peek(Nanos(5)).is_none());
        assert_eq!((ledger.counts().cancelled, ledger.counts().duplicated, ledger.queued()), (3, 0, 0));
    }

    #[test]
    fn dependencies_hold_tasks_back_in_any_order_of_submission() {
        let mut ledger = ledger();
        let (_, answers) =
            ledger.submit_batch(vec![spec("c", &["a", "b"]), spec("b", &["a"]), spec("a", &[])], Nanos(0));
        let ids: Vec<TaskId> = answers.into_iter().map(|answer| answer.expect("accepted")).collect();
        for expected in [ids[2], ids[1], ids[0]] {
            assert_eq!(run_next(&mut ledger, Nanos(1)), expected);
            assert!(ledger.peek(Nanos(1)).is_none());
            ledger.on_success(expected, None, Nanos(2));
        }
        let d = ledger.submit(spec("d", &["a"]), Nanos(3)).expect("a has succeeded already");
        assert_eq!(run_next(&mut ledger, Nanos(4)), d);
    }

    #[test]
    fn cycles_and_unknown_names_refuse_only_who_is_concerned() {
        let mut ledger = ledger();
        let (_, answers) = ledger.submit_batch(
            vec![
                spec("a", &["b"]),
                spec("b", &["a"]),
                spec("behind", &["a"]),
                spec("lost", &["nobody"]),
                spec("behind lost", &["lost"]),
                spec("fine", &[]),
                spec("fine", &[]),
                spec("self", &["self"]),
            ],
            Nanos(0),
        );
        let words: Vec<String> = answers
            .iter()
            .map(|answer| answer.as_ref().map_or_else(ToString::to_string, |_| "ok".into()))
            .collect();
        assert!(
            words[0].contains("cycle: b -> a -> b") || words[0].contains("cycle: a -> b -> a"),
            "{}",
            words[0]
        );
        assert!(words[1].contains("cycle"), "{}", words[1]);
        assert!(words[2].contains("cycle"), "{}", words[2]);
        assert!(words[3].contains("no task has the id \"nobody\""), "{}", words[3]);
        assert!(words[4].contains("\"lost\" was refused"), "{}", words[4]);
        assert_eq!(words[5], "ok");
        assert!(words[6].contains("ids must be unique"), "{}", words[6]);
        assert!(words[7].contains("self -> self"), "{}", words[7]);
        assert_eq!(ledger.counts().total, 1);
    }

    #[test]
    fn a_long_cycle_is_refused_quickly_and_briefly() {
        let count = 20_000;
        let specs =
            (0..count).map(|at| spec(&format!("c{at}"), &[&format!("c{}", (at + 1) % count)])).collect();
        let (_, answers) = ledger().submit_batch(specs, Nanos(0));
        assert_eq!(answers.len(), count);
        for answer in answers {
            let words = answer.expect_err("on the cycle").to_string();
            assert!(words.contains("more) -> c") && words.len() < 300, "{words}");
        }
    }

    #[test]
    fn old_tasks_are_forgotten_except_those_that_somebody_waits_for() {
        let mut ledger = ledger();
        let waited = ledger.submit(spec("waited for", &[]), Nanos(0)).expect("accepted");
        ledger.owe(waited);
        run_next(&mut ledger, Nanos(0));
        ledger.on_success(waited, None, Nanos(0));
        let open = ledger.submit(spec("open", &[]), Nanos(0)).expect("accepted");
        ledger.dispatch(open, LEASE, Nanos(0));
        end_many(&mut ledger);
        assert!(ledger.get(waited).is_some() && ledger.find("open").is_some());
        assert!(ledger.tasks().count() <= REMEMBERED + 10, "others made room");
        ledger.pay(waited);
        end_many(&mut ledger);
        assert!(ledger.get(waited).is_none() && ledger.find("waited for").is_none());
        assert_eq!(ledger.counts().duplicated, 0);
    }

    #[test]
    fn priorities_go_first_and_age_lets_nobody_starve() {
        let mut ledger = ledger();
        let low =
            ledger.submit(TaskSpec { priority: Priority::Low, ..spec("low", &[]) }, Nanos(0)).expect("ok");
        let second = 1_000_000_000;
        let high = |ledger: &mut Ledger, at: u64| {
            ledger
                .submit(TaskSpec { priority: Priority::High, ..TaskSpec::default() }, Nanos(at))
                .expect("ok")
        };
        let first = high(&mut ledger, second);
        assert_eq!(ledger.peek(Nanos(second)).expect("queued").id, first);
        run_next(&mut ledger, Nanos(second));
        high(&mut ledger, 9 * second);
        assert_ne!(ledger.peek(Nanos(9 * second)).expect("queued").id, low, "aged by one class only");
        assert_eq!(ledger.peek(Nanos(10 * second)).expect("queued").id, low, "as high as they, and older");
    }

    #[test]
    fn whoever_looks_ahead_sees_each_waiting_task_wherever_others_left() {
        let mut ledger = ledger();
        let ids: Vec<TaskId> =
            (0..6).map(|at| ledger.submit(spec(&at.to_string(), &[]), Nanos(at)).unwrap()).collect();
        let seen = |ledger: &mut Ledger, many| {
            let mut into = Vec::new();
            ledger.line_up(|_| 0);
            ledger.upcoming(Nanos(10), many, &mut into);
            into.into_iter().map(|(_, _, id)| id).collect::<Vec<_>>()
        };
        assert_eq!(seen(&mut ledger, 4), ids[..4]);
        for middle in [ids[1], ids[2]] {
            ledger.dispatch(middle, LEASE, Nanos(11));
        }
        assert_eq!(seen(&mut ledger, 3), [ids[0], ids[3], ids[4]]);
        ledger.on_agent_gone(&[ids[1], ids[2]], LEASE, None, "killed", true, Nanos(12));
        assert_eq!(seen(&mut ledger, 9), ids, "back in the place that they had");
        assert_eq!(ledger.queued(), 6);
    }

    #[test]
    fn refused_tasks_are_on_record() {
        let mut ledger = ledger();
        ledger.record_refused(spec("bad", &[]), "no such kernel", Nanos(1));
        assert_eq!((ledger.counts().total, ledger.counts().failed, ledger.queued()), (1, 1, 0));
        assert_eq!(ledger.find("bad").expect("on record").error.as_deref(), Some("no such kernel"));
        ledger.end_with_this_life();
        assert_eq!(ledger.submit(spec("late", &[]), Nanos(2)), Err(SubmitError::Stopping));
    }

    #[test]
    fn what_is_left_to_a_later_life_is_tried_again_and_what_ends_is_not() {
        for leaves in [true, false] {
            let mut ledger = ledger();
            let id = ledger.submit(TaskSpec { retries: 1, ..spec("a", &[]) }, Nanos(1)).expect("room");
            ledger.dispatch(id, LEASE, Nanos(2));
            if leaves {
                ledger.leave_to_a_later_life()
            } else {
                ledger.end_with_this_life()
            }
            assert_eq!(ledger.submit(spec("late", &[]), Nanos(3)), Err(SubmitError::Stopping));
            ledger.on_failure(id, "no", true, Nanos(4));
            let state = ledger.get(id).expect("known").state;
            assert_eq!(state, if leaves { TaskState::Retrying } else { TaskState::Failed });
        }
    }

    #[test]
    fn what_is_taken_back_for_a_later_life_is_no_death_and_a_crash_is_one() {
        let mut ledger = ledger();
        let id = ledger.submit(spec("a", &[]), Nanos(1)).expect("room");
        ledger.leave_to_a_later_life();
        for crashed in [false, true] {
            ledger.dispatch(id, LEASE, Nanos(2));
            ledger.on_agent_gone(&[id], LEASE, Some(id), "killed", crashed, Nanos(3));
            assert_eq!(ledger.get(id).expect("known").deaths, (u32::from(crashed), 0));
        }
    }

    #[test]
    fn random_lives_keep_the_books_balanced() {
        for seed in 0..200 {
            let mut rng = crate::base::prng::SplitMix64::new(seed);
            let mut ledger = ledger();
            let mut held: Vec<(TaskId, Attempt)> = Vec::new();
            let (mut lease, mut now) = (LEASE, Nanos(0));
            for step in 0..400 {
                now.0 += rng.below(30_000_000);
                ledger.on_time(now);
                match rng.below(8) {
                    0..=2 => {
                        let after: Vec<String> = if step > 0 && rng.below(4) == 0 {
                            vec![format!("s{}", rng.below(step))]
                        } else {
                            vec![]
                        };
                        let after: Vec<&str> = after.iter().map(String::as_str).collect();
                        let _ = ledger.submit(spec(&format!("s{step}"), &after), now);
                    }
                    3 | 4 => {
                        if let Some(task) = ledger.peek(now) {
                            let id = task.id;
                            held.push((id, ledger.dispatch(id, lease, now)));
                        }
                    }
                    5 if !held.is_empty() => {
                        let (id, attempt) = held.swap_remove(rng.below(held.len() as u64) as usize);
                        if ledger.check_holder(id, attempt, lease.slot, lease.incarnation).is_ok() {
                            match rng.below(3) {
                                0 => ledger.on_failure(id, "x", rng.below(2) == 0, now),
                                1 => ledger.on_given_up(id, now),
                                _ => ledger.on_success(id, None, now),
                            };
                        }
                    }
                    6 => {
                        let ids: Vec<TaskId> = held.drain(..).map(|(id, _)| id).collect();
                        let running = ids.first().copied();
                        ledger.on_agent_gone(&ids, lease, running, "signal 9", rng.below(2) == 0, now);
                        lease.incarnation.0 += 1;
                    }
                    _ => {
                        ledger.cancel(TaskId(1 + rng.below(step + 1)), now);
                    }
                }
                let open = ledger.tasks().filter(|task| !task.state.is_final()).count() as u64;
                let queued = ledger.tasks().filter(|task| task.state == TaskState::Queued).count();
                assert_eq!(
                    (ledger.counts().open(), ledger.queued()),
                    (open, queued),
                    "seed {seed} step {step}"
                );
                assert_eq!(ledger.counts().duplicated, 0, "seed {seed} step {step}");
            }
        }
    }

    #[test]
    fn the_order_is_that_of_dues_however_many_wait_and_nobody_starves() {
        let mut ledger = ledger();
        let patience = |task: &Task| if task.spec.class == 9 { 40 } else { 0 };
        let patient = |name| TaskSpec { class: 9, ..spec(name, &[]) };
        let long = ledger.submit(patient("long"), Nanos(10)).expect("accepted");
        // A hundred come after it within its patience, one a moment later.
        for at in 0..100u64 {
            ledger.submit(spec("", &[]), Nanos(11 + at % 39)).expect("accepted");
        }
        let late = ledger.submit(spec("late", &[]), Nanos(51)).expect("accepted");
        ledger.line_up(patience);
        let mut seen = Vec::new();
        ledger.upcoming(Nanos(60), 32, &mut seen);
        assert!(seen.len() == 32 && seen.is_sorted() && seen.iter().all(|(.., id)| *id != long));
        for (.., id) in ledger_order(&mut ledger, Nanos(60)).into_iter().take(100) {
            ledger.dispatch(id, LEASE, Nanos(60));
        }
        let rest: Vec<TaskId> = ledger_order(&mut ledger, Nanos(60)).iter().map(|(.., id)| *id).collect();
        assert_eq!(rest, [long, late], "whatever came within its patience went before, nothing else");
        // Of lower priority, it is passed by what is queued within two spans of ageing and no longer.
        let ageing = ledger.limits.ageing.as_nanos() as u64;
        let low = TaskSpec { priority: Priority::Low, ..patient("low") };
        let low = ledger.submit(low, Nanos(100)).expect("accepted");
        for turn in 1..100u64 {
            let now = Nanos(140 + turn * ageing / 40);
            let urgent = TaskSpec { priority: Priority::High, ..spec("", &[]) };
            ledger.submit(urgent, now).expect("accepted");
            ledger.line_up(patience);
            seen.clear();
            ledger.upcoming(now, 1, &mut seen);
            let went = seen[0].2;
            ledger.dispatch(went, LEASE, now);
            if went == low {
                assert!((78..=83).contains(&turn), "with two others before it: {turn}");
                return;
            }
        }
        panic!("it starved");
    }

    fn ledger_order(ledger: &mut Ledger, now: Nanos) -> Vec<(u64, Nanos, TaskId)> {
        let mut all = Vec::new();
        ledger.upcoming(now, usize::MAX / 4, &mut all);
        all
    }

    /// Who has what, as the agents know it: two attempts of a task are two entries.
    type Held = (TaskId, Attempt, Lease);

    #[test]
    fn the_first_of_two_answers_counts_and_the_other_attempt_is_unwanted() {
        let other = Lease { slot: AgentSlot(1), incarnation: Incarnation(1) };
        for second_wins in [true, false] {
            let mut ledger = ledger();
            ledger.submit(spec("a", &[]), Nanos(0)).expect("accepted");
            let id = run_next(&mut ledger, Nanos(1));
            assert_eq!(ledger.hedge(id, other, Nanos(5)), Attempt(2));
            let attempts = [(LEASE, Attempt(1)), (other, Attempt(2))];
            let (winner, loser) = if second_wins { (attempts[1], attempts[0]) } else { attempts.into() };
            assert_eq!(ledger.check_holder(id, winner.1, winner.0.slot, winner.0.incarnation), Ok(()));
            assert_eq!(ledger.rival(id, winner.1), Some(loser));
            assert_eq!(ledger.settle(id, winner.1).agent, Some(winner.0.slot));
            ledger.on_success(id, None, Nanos(6));
            assert_eq!(ledger.take_unwanted(), [(id, loser.0, loser.1)]);
            let late = ledger.check_holder(id, loser.1, loser.0.slot, loser.0.incarnation);
            assert_eq!(late, Err(Refusal::Ended));
            let counts = ledger.counts();
            assert_eq!((counts.hedged, counts.retried, counts.succeeded), (1, 0, 1));
            assert_eq!((counts.hedges_won, counts.hedges_lost), if second_wins { (1, 0) } else { (0, 1) });
        }
    }

    #[test]
    fn a_task_goes_on_in_the_attempt_that_is_left() {
        let other = Lease { slot: AgentSlot(1), incarnation: Incarnation(1) };
        let hedged = |timeout| {
            let mut ledger = ledger();
            let id = ledger.submit(TaskSpec { timeout, ..spec("a", &[]) }, Nanos(0)).expect("accepted");
            run_next(&mut ledger, Nanos(1));
            ledger.hedge(id, other, Nanos(5));
            (ledger, id)
        };
        for (dead, left, attempt) in [(LEASE, other, Attempt(2)), (other, LEASE, Attempt(1))] {
            let (mut ledger, id) = hedged(None);
            assert_eq!(ledger.on_agent_gone(&[id], dead, Some(id), "signal 9", false, Nanos(6)), []);
            assert_eq!((ledger.queued(), ledger.rival(id, attempt)), (0, None));
            assert_eq!(ledger.check_holder(id, attempt, left.slot, left.incarnation), Ok(()));
            assert_eq!(ledger.on_agent_gone(&[id], left, Some(id), "signal 9", false, Nanos(7)), [id]);
            let task = ledger.peek(Nanos(8)).expect("queued again");
            assert_eq!((task.attempt, task.deaths, task.may_be_hedged()), (Attempt(2), (0, 2), false));
        }
        // The first one's time limit is its own: the second has as much from its own beginning.
        let (mut ledger, id) = hedged(Some(Duration::from_nanos(10)));
        assert_eq!(ledger.on_time(Nanos(11)), [(id, LEASE, Attempt(1))]);
        assert!(ledger.fall_out(id, Attempt(1)), "it gave up");
        assert_eq!(ledger.on_time(Nanos(15)), [(id, other, Attempt(2))]);
        assert_eq!(ledger.on_given_up(id, Nanos(16)), Transition::Again);
        // A request is about both.
        let (mut ledger, id) = hedged(None);
        assert_eq!(ledger.cancel(id, Nanos(6)), Some(CancelOutcome::AskAgent(LEASE, Attempt(1))));
        assert_eq!(ledger.take_unwanted(), [(id, other, Attempt(2))]);
        assert!(ledger.fall_out(id, Attempt(1)));
        assert_eq!(ledger.on_given_up(id, Nanos(7)), Transition::Ended(TaskState::Cancelled));
    }

    #[test]
    fn what_was_declined_beside_an_attempt_that_died_is_tried_again() {
        let other = Lease { slot: AgentSlot(1), incarnation: Incarnation(1) };
        for (timeout, again) in [(None, true), (Some(10), true), (Some(1), false)] {
            let mut ledger = ledger();
            let timeout = timeout.map(Duration::from_nanos);
            let id = ledger.submit(TaskSpec { timeout, ..spec("a", &[]) }, Nanos(0)).expect("accepted");
            run_next(&mut ledger, Nanos(1));
            ledger.hedge(id, other, Nanos(5));
            ledger.on_agent_gone(&[id], LEASE, Some(id), "signal 9", false, Nanos(6));
            ledger.on_given_up(id, Nanos(7));
            assert_eq!(ledger.queued(), usize::from(again), "{timeout:?}: {:?}", ledger.get(id));
        }
    }

    #[test]
    fn a_task_that_nobody_can_compute_any_more_ends_once_and_its_attempt_is_unwanted() {
        let mut ledger = ledger();
        let id = ledger.submit(spec("a", &[]), Nanos(0)).expect("accepted");
        ledger.submit(spec("b", &["a"]), Nanos(0)).expect("accepted");
        run_next(&mut ledger, Nanos(1));
        ledger.spoil(id, "why", Nanos(2));
        ledger.spoil(id, "why", Nanos(2));
        assert_eq!(ledger.take_unwanted(), [(id, LEASE, Attempt(1))]);
        let late = ledger.check_holder(id, Attempt(1), LEASE.slot, LEASE.incarnation);
        assert_eq!(late, Err(Refusal::Ended));
        let counts = ledger.counts();
        assert_eq!((counts.failed, counts.cancelled, counts.open(), counts.duplicated), (1, 1, 0, 0));
    }

    /// Ends an attempt as `results` does.
    fn answer(ledger: &mut Ledger, held: Held, luck: &mut crate::base::prng::SplitMix64, now: Nanos) {
        let (id, attempt, lease) = held;
        if ledger.check_holder(id, attempt, lease.slot, lease.incarnation).is_err() {
            return;
        }
        let verdict = luck.below(4);
        if ledger.rival(id, attempt).is_some() {
            // A quarter of the rivals is just letting its output appear.
            if verdict > 1 || luck.below(4) == 0 {
                assert!(ledger.fall_out(id, attempt));
                return;
            }
            ledger.settle(id, attempt);
        }
        match verdict {
            0 => ledger.on_success(id, None, now),
            1 => ledger.on_failure(id, "wrong", false, now),
            2 => ledger.on_failure(id, "failed", true, now),
            _ => ledger.on_given_up(id, now),
        };
    }

    #[test]
    fn random_lives_with_second_attempts_end_every_task_once() {
        let mut seen = Counts::default();
        for seed in 0..300 {
            let mut rng = crate::base::prng::SplitMix64::new(seed);
            let mut ledger = ledger();
            let mut lives = [1, 1, 1];
            let mut held: Vec<Held> = Vec::new();
            let mut now = Nanos(0);
            for step in 0..600 {
                now.0 += rng.below(30_000_000);
                let lease = |slot: u64, lives: &[u32; 3]| Lease {
                    slot: AgentSlot(slot as u16),
                    incarnation: Incarnation(lives[slot as usize]),
                };
                let quiet = step >= 500;
                match rng.below(9) {
                    0..=1 if !quiet => {
                        let timeout = (rng.below(3) == 0).then(|| Duration::from_millis(rng.below(200)));
                        ledger.submit(TaskSpec { timeout, ..spec("", &[]) }, now).expect("accepted");
                    }
                    2 | 3 => {
                        if let Some(id) = ledger.peek(now).map(|task| task.id) {
                            let lease = lease(rng.below(3), &lives);
                            held.push((id, ledger.dispatch(id, lease, now), lease));
                        }
                    }
                    4 if !held.is_empty() => {
                        let (id, ..) = held[rng.below(held.len() as u64) as usize];
                        let lease = lease(rng.below(3), &lives);
                        let task = ledger.get(id).expect("known");
                        if task.may_be_hedged() && task.lease.is_some_and(|first| first.slot != lease.slot) {
                            held.push((id, ledger.hedge(id, lease, now), lease));
                        }
                    }
                    5 if rng.below(3) == 0 => {
                        let slot = rng.below(3);
                        let dead = lease(slot, &lives);
                        lives[slot as usize] += 1;
                        let ids: Vec<TaskId> =
                            held.extract_if(.., |(.., lease)| *lease == dead).map(|(id, ..)| id).collect();
                        let running = ids.first().copied();
                        ledger.on_agent_gone(&ids, dead, running, "signal 9", rng.below(2) == 0, now);
                    }
                    6 if rng.below(4) == 0 => _ = ledger.cancel(TaskId(1 + rng.below(step + 1)), now),
                    7 => _ = ledger.on_time(now),
                    _ if !held.is_empty() => {
                        let one = held.swap_remove(rng.below(held.len() as u64) as usize);
                        answer(&mut ledger, one, &mut rng, now);
                    }
                    _ => {}
                }
                ledger.take_unwanted();
                for task in ledger.tasks() {
                    let has = |lease, attempt| held.contains(&(task.id, attempt, lease));
                    match (task.state, task.lease, task.hedge) {
                        (TaskState::Dispatched, Some(lease), hedge) => {
                            assert!(has(lease, task.leased), "seed {seed} step {step}: {task:?}");
                            let apart = |hedge: Hedge| {
                                has(hedge.lease, hedge.attempt)
                                    && hedge.lease.slot != lease.slot
                                    && hedge.attempt != task.leased
                            };
                            assert!(hedge.is_none_or(apart), "seed {seed} step {step}: {task:?}");
                        }
                        (_, None, None) => {}
                        _ => panic!("seed {seed} step {step}: {task:?}"),
                    }
                }
            }
            // What is left is answered: nothing hangs in the air.
            while ledger.counts().open() > 0 {
                now.0 += RETRY_PAUSE_MAX.as_nanos() as u64;
                ledger.on_time(now);
                while let Some(id) = ledger.peek(now).map(|task| task.id) {
                    held.push((id, ledger.dispatch(id, LEASE, now), LEASE));
                }
                for one in std::mem::take(&mut held) {
                    answer(&mut ledger, one, &mut rng, now);
                }
            }
            let counts = ledger.counts();
            let mut ended = Vec::new();
            ledger.take_ended(&mut ended);
            let mut ids: Vec<TaskId> = ended.iter().map(|(id, _)| *id).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!((ids.len() as u64, ended.len() as u64), (counts.total, counts.total), "seed {seed}");
            assert_eq!(counts.duplicated, 0, "seed {seed}");
            assert!(counts.hedges_won + counts.hedges_lost <= counts.hedged && counts.hedged <= counts.total);
            seen.hedges_won += counts.hedges_won;
            seen.hedges_lost += counts.hedges_lost;
            seen.hedged += counts.hedged;
        }
        assert!(seen.hedges_won > 100 && seen.hedges_lost > 100, "it was about them: {seen:?}");
        assert!(seen.hedged > seen.hedges_won + seen.hedges_lost, "some had nobody to race: {seen:?}");
    }

    #[test]
    fn a_key_is_one_task_and_its_followers_hear_of_its_end() {
        let mut ledger = ledger();
        let keyed = |key: &str, kernel| TaskSpec { key: Some(key.into()), kernel, ..spec("", &[]) };
        let (batch, answers) =
            ledger.submit_batch(vec![keyed("k", 1), keyed("k", 1), keyed("k", 2)], Nanos(0));
        let id = *answers[0].as_ref().expect("accepted");
        assert_eq!(answers[1], Ok(id));
        assert!(matches!(answers[2], Err(SubmitError::KeyTaken { .. })), "{:?}", answers[2]);
        assert_eq!(ledger.submit_as(keyed("k", 1), 1 << 40, Nanos(1)), Ok(id));
        assert!(ledger.follow(id, 1 << 40));
        run_next(&mut ledger, Nanos(2));
        ledger.on_success(id, None, Nanos(3));
        let mut ended = Vec::new();
        ledger.take_ended(&mut ended);
        assert_eq!(ended, [(id, batch), (id, 1 << 40)]);
        assert_eq!(ledger.submit(keyed("k", 1), Nanos(4)), Ok(id), "after its end, too");
        assert_eq!((ledger.counts().total, ledger.follow(id, 7)), (1, false));
    }

    #[test]
    fn tasks_of_an_earlier_life_go_on_in_their_order() {
        let task = |id, name: &str, after: &[&str], state| {
            Box::new(Task::new(TaskId(id), spec(name, after), state, 9, Nanos(99)))
        };
        let mut poison = task(9, "poison", &[], TaskState::Queued);
        poison.deaths = (3, 0);
        let tasks = [
            task(5, "good", &[], TaskState::Succeeded),
            task(7, "bad", &[], TaskState::Failed),
            task(8, "first", &["good", "forgotten"], TaskState::Queued),
            poison,
            task(10, "second", &["first"], TaskState::Queued),
            task(11, "hopeless", &["bad"], TaskState::Queued),
        ];
        let mut ledger = ledger();
        ledger.restore(numbered(tasks), Nanos(10));
        let state = |ledger: &Ledger, name: &str| ledger.find(name).expect("known").state;
        assert_eq!(
            ["good", "bad", "first", "second", "poison", "hopeless"].map(|name| state(&ledger, name)),
            [
                TaskState::Succeeded,
                TaskState::Failed,
                TaskState::Queued,
                TaskState::Waiting,
                TaskState::Failed,
                TaskState::Cancelled
            ]
        );
        assert_eq!((ledger.counts().total, ledger.counts().open()), (4, 2), "what had ended is history");
        let first = run_next(&mut ledger, Nanos(11));
        assert_eq!(first, TaskId(8));
        ledger.on_success(first, None, Nanos(12));
        assert_eq!(run_next(&mut ledger, Nanos(13)), TaskId(10));
        assert_eq!(ledger.submit(spec("new", &[]), Nanos(14)), Ok(TaskId(12)));
        assert!(matches!(
            ledger.submit(spec("good", &[]), Nanos(14)),
            Err(SubmitError::DuplicateName { .. })
        ));
    }

    #[test]
    fn who_waits_for_one_that_is_cancelled_too_ends_once() {
        let mut ledger = Ledger::new(LedgerLimits::default());
        for (name, after) in [("a", &[][..]), ("b", &["a"]), ("c", &["a", "b"])] {
            ledger.submit(spec(name, after), Nanos(1)).expect("accepted");
        }
        ledger.cancel_waiting("the swarm ends", Nanos(2));
        let counts = ledger.counts();
        assert_eq!((counts.cancelled, counts.duplicated), (3, 0), "{counts:?}");
    }

    #[test]
    fn who_has_ended_keeps_its_body_only_for_those_who_may_ask_again() {
        let mut ledger = Ledger::new(LedgerLimits::default());
        let with_body = |key: Option<&str>| TaskSpec {
            key: key.map(Into::into),
            body: b"{}".as_slice().into(),
            ..spec("", &[])
        };
        let bodies = [None, Some("k")].map(|key| {
            let id = ledger.submit(with_body(key), Nanos(1)).expect("accepted");
            assert_eq!(&*ledger.get(id).expect("known").spec.body, b"{}");
            ledger.end(id, TaskState::Cancelled, None, Nanos(2));
            ledger.get(id).expect("remembered").spec.body.len()
        });
        assert_eq!(bodies, [0, 2]);
    }
}
