//! Tasks in parts: one attempt that several agents hold, each with some rows of one output.
//!
//! ```text
//!  queued ─► divided ─► every part done ─► joined: an attempt like any other, which lets the output appear
//!               │ ▲
//!               │ └─ an agent died: its part goes to another one
//!               └─► a part failed, somebody wants it gone, its time is over: no part is sent any more, those that run
//!                   are unwanted, and when the last one is back the attempt has ended so
//! ```
//! 1. Parts are known here only. To the book the whole is one attempt: after the supervisor's death it is done again.
//! 2. All parts write to one draft under the attempt's name. Nobody removes it while a part is held, and who concludes an
//!    attempt that came to nothing says so ([`Ledger::take_abandoned`]).
//! 3. A task that cannot be divided after all, or of which a part fails, is wrong or crashes its agent, runs again as a whole,
//!    which needs less memory and says what is wrong.
//! 4. At most as many parts are held at a time as agents were free at the division, and every further part is queued anew behind what
//!    waits by then: nobody of the same priority waits longer for a divided task than for one of its parts.
//! 5. Rows are cut into units, and a part has as many of them as take [`PART_NS`]. Where nobody knows, the first parts have one unit
//!    each, and what these take says how many the others get.

use super::{KILL_LIMIT, Ledger, POISON, Phase, Transition};
use crate::base::clock::Nanos;
use crate::base::ids::{Attempt, TaskId};
use crate::messaging::envelope::{Share, Span};
use crate::tasks::{Event, Lease, TaskState};

/// What a part should take at most, ns: others wait for it.
const PART_NS: f64 = 250e6;
/// Units for each agent.
const UNITS_EACH: u32 = 64;

/// What its parts are and came to.
#[derive(Clone, Debug)]
pub struct Wide {
    /// Those that were sent.
    parts: Vec<Part>,
    /// Into how many units the rows are cut,
    units: u32,
    /// how many of them are in parts,
    taken: u32,
    /// and how many the next part gets.
    size: u32,
    /// Whether somebody knows how long a unit takes.
    is_planned: bool,
    /// How many may be held at a time.
    most: u32,
    /// Since when the next part waits.
    due: Nanos,
    /// Why no part is sent any more.
    over: Option<Over>,
    /// What those that are done have read, and what shape their rows have.
    digest: Option<u64>,
    /// What a part is expected to take, ns; 0: nobody knows.
    pub part_ns: f64,
    /// When the first of them began.
    pub started: Nanos,
    /// Code of the instruction-set level on which the first of them ran.
    pub level: u8,
    /// What the first of them says is the result.
    pub result: Option<Box<str>>,
}

/// Units of rows that belong together.
#[derive(Clone, Copy, Debug)]
struct Part {
    at: u32,
    count: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Held(Lease),
    Done,
}

/// Why an attempt in parts comes to nothing.
#[derive(Clone, Debug)]
enum Over {
    /// A part failed.
    Failed(String),
    /// It has to be done as a whole, for this reason.
    Undivided(String),
    /// The task is given up for good.
    Hopeless(String),
}

/// How a part ended.
#[derive(Clone, Debug)]
pub enum PartEnd {
    /// Its rows are written.
    Done {
        /// When it began.
        started: Nanos,
        /// How long it took, ns.
        service_ns: u64,
        /// On which level.
        level: u8,
        /// Of what it read, and what shape its rows have: alike for all parts. `None`: it had no rows.
        digest: Option<u64>,
        /// What its kernel said.
        result: Option<Box<str>>,
    },
    /// Something failed that may work another time.
    Failed(String),
    /// It cannot be done so: the task does not fall into parts, or is wrong.
    Undivided(String),
    /// It was given up, as its agent was told.
    GivenUp,
}

impl Wide {
    fn new(agents: u32, expected_ns: Option<f64>, due: Nanos) -> Self {
        let units = agents.saturating_mul(UNITS_EACH);
        let mut wide = Self {
            parts: Vec::new(),
            units,
            taken: 0,
            size: 1,
            is_planned: false,
            most: agents,
            due,
            over: None,
            digest: None,
            part_ns: 0.0,
            started: Nanos(u64::MAX),
            level: 0,
            result: None,
        };
        if let Some(ns) = expected_ns {
            wide.plan(ns / f64::from(units));
        }
        wide
    }

    /// Parts alike, of what is left, where a unit takes so long.
    fn plan(&mut self, unit_ns: f64) {
        let left = f64::from(self.units - self.taken);
        let rounds = (left * unit_ns / f64::from(self.most) / PART_NS).ceil().max(1.0);
        let size = (left / f64::from(self.most) / rounds).ceil().max(1.0);
        (self.size, self.part_ns, self.is_planned) = (size as u32, size * unit_ns, true);
    }

    /// A part of so many units took so long; without rows it says nothing but that they are few.
    fn learn(&mut self, count: u32, service_ns: u64, had_rows: bool) {
        match (self.is_planned, had_rows) {
            (true, _) => {}
            (false, true) => self.plan(service_ns as f64 / f64::from(count.max(1))),
            (false, false) => self.size = count.saturating_mul(2).clamp(1, self.units),
        }
    }

    fn part_of(&mut self, lease: Lease) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.state == State::Held(lease))
    }

    /// With which unit the part begins that this life of an agent has.
    pub fn held_by(&self, lease: Lease) -> Option<u32> {
        self.parts.iter().find(|part| part.state == State::Held(lease)).map(|part| part.at)
    }

    /// Who has a part of it.
    pub fn holders(&self) -> impl Iterator<Item = Lease> {
        self.parts
            .iter()
            .filter_map(|part| if let State::Held(lease) = part.state { Some(lease) } else { None })
    }

    /// Whether the part that begins with this unit was answered.
    pub fn is_done(&self, at: u32) -> bool {
        self.parts.iter().any(|part| part.at == at && part.state == State::Done)
    }

    fn are_all_done(&self) -> bool {
        self.taken == self.units && self.parts.iter().all(|part| part.state == State::Done)
    }

    /// The next part: one that came back undone, or of what is left.
    fn next_part(&self) -> Option<(u32, u32)> {
        let back = self.parts.iter().find(|part| part.state == State::Waiting);
        let left = self.units - self.taken;
        let new = (left > 0).then(|| (self.taken, self.size.min(left)));
        back.map(|part| (part.at, part.count)).or(new)
    }
}

impl Ledger {
    /// Divides a queued task, that would take so long as a whole, among so many agents, to which parts are to be
    /// [lent](Self::lend).
    pub fn divide(&mut self, id: TaskId, agents: u32, expected_ns: Option<f64>, now: Nanos) -> Attempt {
        let attempt = self.begin_attempt(id, None, now);
        let task = self.get_mut(id).expect("just begun");
        task.wide = Some(Box::new(Wide::new(agents, expected_ns, task.due)));
        self.divided.push(id);
        attempt
    }

    /// The tasks that are in parts at present.
    pub fn divided(&self) -> &[TaskId] {
        &self.divided
    }

    /// The same, in the order in which their next parts go.
    pub fn divided_by_turn(&self, now: Nanos) -> Vec<TaskId> {
        let mut divided = self.divided.clone();
        divided.sort_by_key(|id| self.turn(*id, now));
        divided
    }

    /// What is to be sent of a divided task next.
    pub fn next_share(&self, id: TaskId) -> Option<Share> {
        let task = self.get(id).filter(|task| task.is_divided() && task.cancelling.is_none())?;
        let wide = task.wide.as_ref().filter(|wide| wide.over.is_none())?;
        if wide.are_all_done() {
            return Some(Share::Join);
        }
        if self.is_taken_back || wide.holders().count() >= wide.most as usize {
            return None;
        }
        wide.next_part().map(|(at, count)| Share::Part(Span { at, count, of: wide.units }))
    }

    /// Leases what [`next_share`](Self::next_share) showed.
    pub fn lend(&mut self, id: TaskId, share: Share, lease: Lease, now: Nanos) {
        let task = self.get_mut(id).expect("just shown");
        task.agent = Some(lease.slot);
        match (share, task.wide.as_mut()) {
            (Share::Part(Span { at, count, .. }), Some(wide)) => {
                let state = State::Held(lease);
                match wide.parts.iter_mut().find(|part| part.at == at) {
                    Some(part) => part.state = state,
                    None => {
                        wide.parts.push(Part { at, count, state });
                        wide.taken = at + count;
                    }
                }
                // The first ones have waited as a whole.
                wide.due = if wide.parts.len() as u32 >= wide.most { now } else { wide.due };
                task.parts = wide.parts.len() as u32;
            }
            // From here on it is an attempt like any other.
            _ => {
                task.lease = Some(lease);
                self.divided.retain(|divided| *divided != id);
            }
        }
    }

    /// A part came back. Call [`check_holder`](Self::check_holder) first.
    pub fn on_part(&mut self, id: TaskId, lease: Lease, end: PartEnd, now: Nanos) -> Option<Transition> {
        let task = self.get_mut(id)?;
        let is_wanted = task.cancelling.is_none();
        let wide = task.wide.as_mut()?;
        let part = wide.part_of(lease)?;
        part.state = if matches!(end, PartEnd::Done { .. }) { State::Done } else { State::Waiting };
        let count = part.count;
        let over = match end {
            PartEnd::Done { started, service_ns, level, digest, result } => {
                wide.started = wide.started.min(started);
                wide.learn(count, service_ns, digest.is_some());
                if wide.digest.is_none() && digest.is_some() {
                    (wide.level, wide.result, wide.digest) = (level, result, digest);
                }
                // These rows do not belong together.
                let is_other = digest.is_some() && wide.digest != digest;
                is_other
                    .then(|| Over::Undivided("an input was replaced by another file meanwhile".to_owned()))
            }
            PartEnd::Failed(error) => Some(Over::Failed(error)),
            PartEnd::Undivided(why) => Some(Over::Undivided(why)),
            // Nobody asked: it does not want it.
            PartEnd::GivenUp => is_wanted.then(|| Over::Undivided("an agent gave its part up".to_owned())),
        };
        if let Some(over) = over {
            self.call_off(id, over);
        }
        self.conclude(id, now)
    }

    /// It has to be done as a whole.
    pub fn undivide(&mut self, id: TaskId, why: &str, now: Nanos) {
        self.call_off(id, Over::Undivided(why.to_owned()));
        self.conclude(id, now);
    }

    /// The agent that held a part is gone, or nobody can say that it is not.
    pub(super) fn on_part_lost(
        &mut self,
        id: TaskId,
        lease: Lease,
        was_running: bool,
        cause: &str,
        crashed: bool,
        now: Nanos,
    ) {
        let (poison_deaths, is_taken_back) = (self.limits.poison_deaths, self.is_taken_back);
        let Some(task) = self.get_mut(id) else { return };
        let Some(wide) = task.wide.as_mut() else { return };
        let Some(part) = wide.part_of(lease) else { return };
        part.state = State::Waiting;
        // What makes one part crash makes all of them crash: that is one death, and not one for each.
        let counts = was_running && if crashed { wide.over.is_none() } else { !is_taken_back };
        let died = format!("the agent of one of its parts died by {cause}");
        task.error = Some(died.as_str().into());
        if counts {
            self.note_death(id, crashed);
        }
        let Some(deaths) = self.get(id).map(|task| task.deaths) else { return };
        if deaths.0 >= poison_deaths || deaths.1 >= KILL_LIMIT {
            let count = deaths.0 + deaths.1;
            let error = format!("{POISON}: {count} agents died while running it, the last by {cause}");
            self.call_off(id, Over::Hopeless(error));
        } else if crashed {
            self.call_off(id, Over::Undivided(died));
        }
        self.conclude(id, now);
    }

    /// Ends the task for good, as soon as nobody has a part of it any more.
    pub(super) fn give_up_parts(&mut self, id: TaskId, error: &str, now: Nanos) {
        self.call_off(id, Over::Hopeless(error.to_owned()));
        self.conclude(id, now);
    }

    /// Whether something waits that goes before the parts of this task.
    pub fn is_outranked(&mut self, id: TaskId, now: Nanos) -> bool {
        // What waits for a later life does not wait for agents.
        let Some(own) = self.turn(id, now).filter(|_| self.phase != Phase::Leaving) else { return false };
        (0..3).any(|priority| {
            let first = self.queues[priority].first(|id| super::waits(&self.tasks, id));
            first.is_some_and(|(due, _)| (self.aged(priority, due, now), due) < own)
        })
    }

    /// When the next part of this task goes, as if it were queued.
    fn turn(&self, id: TaskId, now: Nanos) -> Option<(u64, Nanos)> {
        let task = self.get(id)?;
        let due = task.wide.as_ref()?.due;
        Some((self.aged(task.spec.priority as usize, due, now), due))
    }

    /// Nothing more will be sent but joins: what is in parts becomes a whole again, for a later life.
    pub fn take_back(&mut self, now: Nanos) {
        self.is_taken_back = true;
        for id in self.divided.clone() {
            self.conclude(id, now);
        }
    }

    /// No part is sent any more, and those that run are unwanted. The first reason counts.
    fn call_off(&mut self, id: TaskId, why: Over) {
        if let Some(wide) = self.get_mut(id).and_then(|task| task.wide.as_mut()) {
            wide.over.get_or_insert(why);
        }
        self.recall_parts(id);
    }

    /// Tells the agents that have parts of it that these are unwanted. Returns the first of them.
    pub(super) fn recall_parts(&mut self, id: TaskId) -> Option<(Lease, Attempt)> {
        let task = self.get(id)?;
        let (attempt, wide) = (task.leased, task.wide.as_ref()?);
        let held: Vec<_> = wide.holders().map(|lease| (id, lease, attempt)).collect();
        self.unwanted.extend(&held);
        held.first().map(|(_, lease, attempt)| (*lease, *attempt))
    }

    /// Ends an attempt in parts that comes to nothing, once its last part is back.
    pub(super) fn conclude(&mut self, id: TaskId, now: Nanos) -> Option<Transition> {
        let is_taken_back = self.is_taken_back;
        let task = self.get_mut(id).filter(|task| task.is_divided())?;
        let wide = task.wide.as_mut()?;
        let is_over = task.cancelling.is_some() || wide.over.is_some();
        // What a later life takes over is whole; what is to be joined only ends in this one.
        let is_left = is_taken_back && !wide.are_all_done();
        if !(is_over || is_left) || wide.holders().next().is_some() {
            return None;
        }
        let over = wide.over.take();
        self.abandon(id);
        Some(match (over, self.get(id)?.cancelling) {
            (Some(Over::Hopeless(error)), _) => self.end(id, TaskState::Failed, Some(&error), now),
            (_, Some(_)) => self.on_given_up(id, now),
            (Some(Over::Failed(error)), None) => {
                self.keep_whole(id, &error);
                self.on_failure(id, &error, true, now)
            }
            (Some(Over::Undivided(why)), None) => {
                self.keep_whole(id, &why);
                self.queue_again(id);
                Transition::Again
            }
            (None, None) => {
                self.queue_again(id);
                Transition::Again
            }
        })
    }

    /// From now on this task is done as a whole. `why`: if it was to be divided, and was.
    pub fn keep_whole(&mut self, id: TaskId, why: &str) {
        if let Some(task) = self.get_mut(id) {
            task.undivided = Some(why.into());
        }
    }

    /// It is in parts no more, and what they wrote is nobody's.
    pub(super) fn abandon(&mut self, id: TaskId) {
        let Some(task) = self.get_mut(id).filter(|task| task.is_divided()) else { return };
        task.wide = None;
        let attempt = task.leased;
        self.divided.retain(|divided| *divided != id);
        self.abandoned.push((id, attempt));
    }

    /// The attempts in parts that came to nothing since the last call; what they wrote is the caller's to remove.
    pub fn take_abandoned(&mut self) -> Vec<(TaskId, Attempt)> {
        std::mem::take(&mut self.abandoned)
    }

    /// Notes that an agent died over a task, which is poison when that happens too often.
    pub(super) fn note_death(&mut self, id: TaskId, crashed: bool) {
        let Some(task) = self.get_mut(id) else { return };
        if crashed {
            task.deaths.0 += 1;
        } else {
            task.deaths.1 += 1;
        }
        self.note(Event::Died, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{AgentSlot, Incarnation};
    use crate::base::prng::SplitMix64;
    use crate::tasks::ledger::{CancelOutcome, LedgerLimits, Refusal};
    use crate::tasks::{Priority, Task, TaskSpec};
    use std::time::Duration;

    fn lease(slot: u16) -> Lease {
        Lease { slot: AgentSlot(slot), incarnation: Incarnation(1) }
    }

    fn done() -> PartEnd {
        took(1)
    }

    fn took(service_ns: u64) -> PartEnd {
        let (started, digest) = (Nanos(5), Some(7));
        PartEnd::Done { started, service_ns, level: 3, digest, result: Some("{}".into()) }
    }

    /// Part `at` of `of` that are alike.
    fn part(at: u32, of: u32) -> Share {
        Share::Part(Span { at: at * UNITS_EACH, count: UNITS_EACH, of: of * UNITS_EACH })
    }

    /// A ledger with one task in parts, which the agents 0, 1, … hold.
    fn divided(of: u32, spec: TaskSpec) -> (Ledger, TaskId) {
        let mut ledger = Ledger::new(LedgerLimits::default());
        let id = ledger.submit(spec, Nanos(1)).expect("accepted");
        assert_eq!(ledger.peek(Nanos(2)).map(|task| task.id), Some(id));
        ledger.divide(id, of, Some(1.0), Nanos(2));
        for slot in 0..of {
            let share = ledger.next_share(id).expect("a part for everybody");
            assert_eq!(share, part(slot, of));
            ledger.lend(id, share, lease(slot as u16), Nanos(2));
        }
        assert_eq!((ledger.next_share(id), ledger.queued()), (None, 0));
        (ledger, id)
    }

    fn is_held(ledger: &mut Ledger, id: TaskId, slot: u16) -> Result<(), Refusal> {
        let attempt = ledger.get(id).expect("known").leased;
        ledger.check_holder(id, attempt, AgentSlot(slot), Incarnation(1))
    }

    #[test]
    fn a_task_in_parts_is_joined_when_the_last_one_is_done() {
        let (mut ledger, id) = divided(2, TaskSpec::default());
        assert!(is_held(&mut ledger, id, 0).is_ok() && is_held(&mut ledger, id, 1).is_ok());
        assert!(ledger.on_part(id, lease(1), done(), Nanos(6)).is_none());
        assert_eq!(is_held(&mut ledger, id, 1), Err(Refusal::NotTheHolder), "the same answer twice");
        assert_eq!(ledger.next_share(id), None, "one part is still out");
        assert!(ledger.on_part(id, lease(0), done(), Nanos(7)).is_none());
        assert_eq!(ledger.next_share(id), Some(Share::Join));
        ledger.lend(id, Share::Join, lease(0), Nanos(6));
        assert_eq!((ledger.divided().len(), is_held(&mut ledger, id, 1)), (0, Err(Refusal::NotTheHolder)));
        assert!(is_held(&mut ledger, id, 0).is_ok());
        assert_eq!(ledger.on_success(id, None, Nanos(8)), Transition::Ended(TaskState::Succeeded));
        let task = ledger.get(id).expect("known");
        assert_eq!((task.parts, task.attempt), (2, Attempt(1)));
        assert!(ledger.take_abandoned().is_empty() && ledger.take_unwanted().is_empty());
    }

    #[test]
    fn the_part_of_a_dead_agent_goes_to_another_one_and_nothing_else_changes() {
        let (mut ledger, id) = divided(2, TaskSpec::default());
        ledger.on_part(id, lease(0), done(), Nanos(6));
        assert_eq!(ledger.on_agent_gone(&[id], lease(1), Some(id), "signal 9", false, Nanos(7)), [id]);
        assert_eq!(ledger.next_share(id), Some(part(1, 2)));
        assert!(ledger.get(id).is_some_and(|task| task.is_divided() && task.deaths == (0, 1)));
        ledger.lend(id, part(1, 2), lease(0), Nanos(6));
        assert_eq!(
            ledger.on_agent_gone(&[id], lease(1), None, "signal 9", false, Nanos(7)),
            [],
            "twice dead"
        );
        ledger.on_part(id, lease(0), done(), Nanos(8));
        assert_eq!(ledger.next_share(id), Some(Share::Join));
        assert!(ledger.take_abandoned().is_empty(), "what the other part wrote is wanted");
        // From here on a death takes all of it.
        ledger.lend(id, Share::Join, lease(2), Nanos(6));
        ledger.on_agent_gone(&[id], lease(2), Some(id), "signal 9", false, Nanos(9));
        assert_eq!((ledger.queued(), ledger.get(id).map(Task::is_divided)), (1, Some(false)));
    }

    #[test]
    fn an_attempt_that_failed_ends_when_its_last_part_is_back() {
        let (mut ledger, id) = divided(3, TaskSpec { retries: 1, ..TaskSpec::default() });
        ledger.on_part(id, lease(1), PartEnd::Failed("disk full".into()), Nanos(6));
        let attempt = Attempt(1);
        assert_eq!(ledger.take_unwanted(), [(id, lease(0), attempt), (id, lease(2), attempt)]);
        assert_eq!((ledger.next_share(id), ledger.take_abandoned()), (None, vec![]));
        assert!(ledger.on_part(id, lease(0), done(), Nanos(7)).is_none(), "one is still at work");
        assert_eq!(ledger.on_part(id, lease(2), PartEnd::GivenUp, Nanos(8)), Some(Transition::Again));
        let task = ledger.get(id).expect("known");
        assert_eq!((task.state, task.error.as_deref()), (TaskState::Retrying, Some("disk full")));
        assert!(task.undivided.is_some(), "as a whole it may find room");
        assert_eq!(ledger.take_abandoned(), [(id, attempt)]);
    }

    #[test]
    fn what_is_wrong_in_parts_runs_as_a_whole() {
        for end in [PartEnd::Undivided("no".into()), PartEnd::GivenUp] {
            let (mut ledger, id) = divided(1, TaskSpec::default());
            assert_eq!(ledger.on_part(id, lease(0), end, Nanos(6)), Some(Transition::Again));
            let task = ledger.get(id).expect("known");
            assert!(task.undivided.is_some() && task.state == TaskState::Queued && task.wide.is_none());
            assert_eq!(ledger.take_abandoned(), [(id, Attempt(1))]);
            assert_eq!(ledger.dispatch(id, lease(0), Nanos(7)), Attempt(2));
            assert_eq!(ledger.get(id).map(|task| task.parts), Some(0));
        }
    }

    #[test]
    fn a_task_in_parts_is_cancelled_when_all_have_given_up() {
        let (mut ledger, id) = divided(2, TaskSpec::default());
        let first = Some(CancelOutcome::AskAgent(lease(0), Attempt(1)));
        assert_eq!(ledger.cancel(id, Nanos(6)), first);
        assert!(ledger.take_unwanted().contains(&(id, lease(1), Attempt(1))));
        assert!(ledger.on_part(id, lease(0), PartEnd::GivenUp, Nanos(7)).is_none());
        let ended = Some(Transition::Ended(TaskState::Cancelled));
        // The answer and the request have crossed.
        assert_eq!(ledger.on_part(id, lease(1), done(), Nanos(8)), ended);
        assert_eq!(ledger.take_abandoned(), [(id, Attempt(1))]);

        let (mut ledger, id) = divided(1, TaskSpec::default());
        ledger.on_agent_gone(&[id], lease(0), None, "signal 9", false, Nanos(6));
        assert_eq!(ledger.cancel(id, Nanos(7)), Some(CancelOutcome::Cancelled), "nobody is to be asked");
        assert_eq!((ledger.take_abandoned(), ledger.divided()), (vec![(id, Attempt(1))], &[][..]));
    }

    #[test]
    fn the_time_of_a_task_is_over_for_all_of_its_parts() {
        let spec = || TaskSpec { timeout: Some(Duration::from_nanos(10)), ..TaskSpec::default() };
        let (mut ledger, id) = divided(2, spec());
        assert_eq!(ledger.on_time(Nanos(20)), [], "nobody's time is given back");
        assert_eq!(ledger.take_unwanted().len(), 2);
        ledger.on_part(id, lease(0), PartEnd::GivenUp, Nanos(21));
        let failed = Some(Transition::Ended(TaskState::Failed));
        assert_eq!(ledger.on_part(id, lease(1), PartEnd::GivenUp, Nanos(22)), failed);
        let error = ledger.get(id).and_then(|task| task.error.clone()).expect("why");
        assert!(error.contains("time limit"), "{error}");

        let (mut ledger, id) = divided(1, spec());
        ledger.on_agent_gone(&[id], lease(0), None, "signal 9", false, Nanos(6));
        ledger.on_time(Nanos(20));
        assert!(ledger.next_share(id).is_some(), "while nobody has a part its time does not run");
        ledger.lend(id, part(0, 1), lease(1), Nanos(21));
        ledger.on_time(Nanos(40));
        assert_eq!(ledger.take_unwanted(), [(id, lease(1), Attempt(1))]);
    }

    #[test]
    fn a_task_of_which_a_part_crashes_runs_as_a_whole() {
        let (mut ledger, id) = divided(3, TaskSpec::default());
        // All of them find the same wrong bytes: one death.
        for slot in [1, 2] {
            ledger.on_agent_gone(&[id], lease(slot), Some(id), "signal 11", true, Nanos(6));
        }
        assert_eq!((ledger.next_share(id), ledger.take_unwanted()[0]), (None, (id, lease(0), Attempt(1))));
        assert_eq!(ledger.on_part(id, lease(0), PartEnd::GivenUp, Nanos(7)), Some(Transition::Again));
        let task = ledger.get(id).expect("known");
        assert!(
            task.undivided.is_some() && task.state == TaskState::Queued && task.deaths == (1, 0),
            "{task:?}"
        );
    }

    #[test]
    fn a_part_whose_agents_are_killed_is_poison_at_last() {
        let (mut ledger, id) = divided(2, TaskSpec::default());
        for _ in 0..KILL_LIMIT {
            assert!(ledger.get(id).is_some_and(Task::is_divided) && ledger.take_unwanted().is_empty());
            ledger.on_agent_gone(&[id], lease(1), Some(id), "signal 9", false, Nanos(6));
            if let Some(share) = ledger.next_share(id) {
                ledger.lend(id, share, lease(1), Nanos(6));
            }
        }
        assert_eq!(ledger.get(id).map(|task| task.state), Some(TaskState::Dispatched), "one is at work");
        assert_eq!(ledger.take_unwanted(), [(id, lease(0), Attempt(1))]);
        ledger.on_part(id, lease(0), PartEnd::GivenUp, Nanos(7));
        let task = ledger.get(id).expect("known");
        assert!(
            task.state == TaskState::Failed && task.error.as_deref().is_some_and(|it| it.starts_with(POISON))
        );
    }

    #[test]
    fn further_parts_wait_behind_what_came_before_them() {
        let mut ledger = Ledger::new(LedgerLimits::default());
        let submit = |ledger: &mut Ledger, priority, now| {
            let spec = TaskSpec { priority, ..TaskSpec::default() };
            ledger.submit(spec, now).expect("accepted")
        };
        let id = submit(&mut ledger, Priority::Normal, Nanos(1));
        ledger.peek(Nanos(2));
        // Each agent gets four parts.
        ledger.divide(id, 2, Some(8.0 * PART_NS), Nanos(2));
        let quarter = |at: u32| Share::Part(Span { at: 16 * at, count: 16, of: 128 });
        let (first, second) = (quarter(0), quarter(1));
        let early = submit(&mut ledger, Priority::Normal, Nanos(3));
        ledger.peek(Nanos(3));
        for (slot, share) in [(0, first), (1, second)] {
            assert!(!ledger.is_outranked(id, Nanos(4)), "it was there first");
            assert_eq!(ledger.next_share(id), Some(share));
            ledger.lend(id, share, lease(slot), Nanos(4));
        }
        assert_eq!(ledger.next_share(id), None, "two agents were free");
        ledger.on_part(id, lease(1), done(), Nanos(5));
        assert_eq!(ledger.next_share(id), Some(quarter(2)));
        assert!(ledger.is_outranked(id, Nanos(5)), "the other task was there before the rest of this one");
        let high = submit(&mut ledger, Priority::High, Nanos(6));
        ledger.dispatch(early, lease(1), Nanos(6));
        ledger.peek(Nanos(6));
        assert!(ledger.is_outranked(id, Nanos(6)));
        ledger.dispatch(high, lease(1), Nanos(6));
        submit(&mut ledger, Priority::Normal, Nanos(7));
        submit(&mut ledger, Priority::Low, Nanos(1));
        ledger.peek(Nanos(7));
        assert!(!ledger.is_outranked(id, Nanos(7)), "later, or less urgent");
        let other = submit(&mut ledger, Priority::High, Nanos(8));
        ledger.peek(Nanos(8));
        ledger.divide(other, 1, Some(2.0 * PART_NS), Nanos(8));
        assert_eq!(ledger.divided_by_turn(Nanos(8)), [other, id]);
    }

    /// The sizes of all parts, where each unit takes so long, and the first rows begin with unit `empty`.
    fn sizes(expected_ns: Option<f64>, unit_ns: u64, empty: u32) -> Vec<u32> {
        let mut ledger = Ledger::new(LedgerLimits::default());
        let id = ledger.submit(TaskSpec::default(), Nanos(1)).expect("accepted");
        ledger.peek(Nanos(2));
        ledger.divide(id, 2, expected_ns, Nanos(2));
        let mut sizes = Vec::new();
        let mut next = 0;
        while let Some(share) = ledger.next_share(id).filter(|share| *share != Share::Join) {
            let Share::Part(Span { at, count, of }) = share else { panic!("{share:?}") };
            assert_eq!((at, of), (next, 128));
            next = at + count;
            sizes.push(count);
            ledger.lend(id, share, lease(0), Nanos(3));
            let digest = (at + count > empty).then_some(7);
            let service_ns = unit_ns * u64::from(count);
            let end = PartEnd::Done { started: Nanos(5), service_ns, level: 3, digest, result: None };
            ledger.on_part(id, lease(0), end, Nanos(6));
        }
        assert_eq!((next, ledger.next_share(id)), (128, Some(Share::Join)));
        assert_eq!(ledger.get(id).map(|task| task.parts as usize), Some(sizes.len()));
        sizes
    }

    #[test]
    fn parts_are_as_large_as_others_may_wait_for() {
        assert_eq!(sizes(Some(1e6), 1, 0), [64, 64]);
        assert_eq!(sizes(Some(8.0 * PART_NS), 1, 0), [16; 8]);
        assert_eq!(sizes(Some(1e15), 1, 0), [1; 128]);
        // Nobody knows: one unit says how long the others take.
        assert_eq!(sizes(None, 1000, 0), [1, 64, 63]);
        assert_eq!(sizes(None, (PART_NS / 10.0) as u64, 0), [&[1][..], &[10; 12], &[7]].concat());
        assert_eq!(sizes(None, u64::from(u32::MAX), 0), [1; 128]);
        // There is one row only, and the last unit has it.
        assert_eq!(sizes(None, 1000, 127), [1, 2, 4, 8, 16, 32, 64, 1]);
    }

    #[test]
    fn what_all_parts_are_done_of_is_joined_before_the_swarm_leaves_it() {
        let (mut ledger, id) = divided(1, TaskSpec::default());
        ledger.leave_to_a_later_life();
        ledger.take_back(Nanos(3));
        ledger.on_part(id, lease(0), done(), Nanos(4));
        assert_eq!(ledger.next_share(id), Some(Share::Join));
    }

    #[test]
    fn what_is_left_to_a_later_life_is_left_whole() {
        let (mut ledger, id) = divided(2, TaskSpec::default());
        ledger.leave_to_a_later_life();
        assert!(!ledger.is_outranked(id, Nanos(4)));
        ledger.take_back(Nanos(5));
        ledger.on_agent_gone(&[id], lease(0), Some(id), "signal 9", false, Nanos(6));
        assert_eq!((ledger.divided(), ledger.next_share(id)), (&[id][..], None));
        ledger.on_agent_gone(&[id], lease(1), Some(id), "signal 9", false, Nanos(6));
        let task = ledger.get(id).expect("known");
        assert_eq!((task.state, task.deaths), (TaskState::Queued, (0, 0)));
        assert_eq!((ledger.take_abandoned(), ledger.divided()), (vec![(id, Attempt(1))], &[][..]));
    }

    /// Whatever happens, in any order: a task ends once, nobody holds anything of an ended one without being told, and what was
    /// written in vain is named once for each attempt that nobody joined.
    #[test]
    fn any_order_of_events_ends_every_task_once() {
        for seed in 0..300 {
            let mut luck = SplitMix64::new(seed);
            let mut ledger = Ledger::new(LedgerLimits { poison_deaths: 4, ..LedgerLimits::default() });
            let spec =
                || TaskSpec { retries: 2, timeout: Some(Duration::from_nanos(40)), ..TaskSpec::default() };
            let tasks: Vec<TaskId> =
                (0..4).map(|_| ledger.submit(spec(), Nanos(0)).expect("accepted")).collect();
            let (mut now, mut held) = (Nanos(1), Vec::<(TaskId, Attempt, Lease)>::new());
            let (mut in_vain, mut in_parts, mut told) = (Vec::new(), Vec::new(), Vec::new());
            let mut lives = [1; 5];
            for step in 0..2000 {
                now = Nanos(now.0 + luck.below(8));
                let id = tasks[luck.below(4) as usize];
                // At the end nothing bad happens any more.
                let event = if step < 1000 { luck.below(12) } else { 4 + luck.below(4) };
                match event {
                    0 => drop(ledger.cancel(id, now)),
                    1 | 2 if !held.is_empty() => {
                        let (_, _, gone) = held[luck.below(held.len() as u64) as usize];
                        let mine: Vec<TaskId> =
                            held.iter().filter(|it| it.2 == gone).map(|it| it.0).collect();
                        let running = mine.first().copied().filter(|_| luck.below(2) == 0);
                        ledger.on_agent_gone(&mine, gone, running, "signal 9", luck.below(4) == 0, now);
                        held.retain(|it| it.2 != gone);
                        lives[gone.slot.index()] += 1;
                    }
                    3 if luck.below(8) == 0 => ledger.spoil(id, "spoiled", now),
                    4 => {
                        if let Some(next) = ledger.peek(now).map(|task| task.id) {
                            let agents = 1 + luck.below(4) as u32;
                            let expected_ns = [None, Some(1e9), Some(1e3)][luck.below(3) as usize];
                            let attempt = ledger.divide(next, agents, expected_ns, now);
                            in_parts.push((next, attempt));
                        }
                    }
                    5 | 6 => {
                        let slot = luck.below(5) as u16;
                        let incarnation = Incarnation(lives[usize::from(slot)]);
                        let lease = Lease { slot: AgentSlot(slot), incarnation };
                        let has_one = held.iter().any(|it| (it.0, it.2) == (id, lease));
                        if let Some(share) = ledger.next_share(id).filter(|_| !has_one) {
                            ledger.lend(id, share, lease, now);
                            let attempt = ledger.get(id).expect("known").leased;
                            held.push((id, attempt, lease));
                            if share == Share::Join {
                                in_parts.retain(|it| *it != (id, attempt));
                            }
                        }
                    }
                    _ if !held.is_empty() => {
                        let (id, attempt, lease) = held.swap_remove(luck.below(held.len() as u64) as usize);
                        if ledger.check_holder(id, attempt, lease.slot, lease.incarnation).is_err() {
                            assert!(ledger.get(id).is_some_and(|task| task.state.is_final()), "{seed}");
                        } else if ledger.get(id).is_some_and(Task::is_divided) {
                            let end = match luck.below(if step < 1000 { 6 } else { 1 }) {
                                1 => PartEnd::Failed("no".into()),
                                2 => PartEnd::GivenUp,
                                _ => took(luck.below(1 << 33)),
                            };
                            ledger.on_part(id, lease, end, now);
                        } else if step < 1000 && luck.below(3) == 0 {
                            ledger.on_failure(id, "no", true, now);
                        } else {
                            ledger.on_success(id, None, now);
                        }
                    }
                    _ => {}
                }
                ledger.on_time(now);
                in_vain.extend(ledger.take_abandoned());
                for (id, lease, attempt) in ledger.take_unwanted() {
                    assert!(held.contains(&(id, attempt, lease)), "{seed}: only who holds it is told");
                    told.push((id, attempt, lease));
                }
                for task in ledger.divided().iter().map(|id| ledger.get(*id).expect("known")) {
                    let wide = task.wide.as_ref().filter(|_| task.is_divided()).expect("it is in parts");
                    let is_over = wide.over.is_some() || task.cancelling.is_some();
                    let is_told = |lease| told.contains(&(task.id, task.leased, lease));
                    assert!(
                        !is_over || wide.holders().all(is_told),
                        "{seed}: everybody who has a part is told"
                    );
                    let is_known = |lease| held.contains(&(task.id, task.leased, lease));
                    assert!(wide.holders().all(is_known), "{seed}: nobody has what was not sent");
                }
            }
            let states: Vec<TaskState> =
                tasks.iter().map(|id| ledger.get(*id).expect("known").state).collect();
            assert!(states.iter().all(|state| state.is_final()), "{seed}: {states:?}");
            assert_eq!((ledger.counts().duplicated, ledger.divided()), (0, &[][..]), "{seed}");
            in_vain.sort_unstable();
            in_parts.sort_unstable();
            assert_eq!(in_vain, in_parts, "{seed}: each attempt that was not joined is named, once");
        }
    }
}
