//! Takes the task that should go next, asks a [`Placer`] for a place, writes the envelope. A policy that looks ahead
//! sees several waiting tasks in one turn, and may let one wait for a busy agent while those behind it go.
//!
//! How much an agent may hold is in [`Room`].

use super::hedge::{Budget, HedgeRules, Usual};
use super::ledger::Ledger;
use super::placer::{Ask, Candidate, Placer, remaining_ns};
use super::results::{Signal, Totals};
use super::wide::{Divided, Divider, WideRules};
use super::{Decisions, Lease, Room, Task, TaskId, Windows, held_ns};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentKind, AgentSlot, Attempt, Incarnation};
use crate::messaging::envelope::{Experience, Run, Share};
use crate::messaging::link::SupervisorLink;
use crate::messaging::wire::SendError;
use crate::messaging::{Lane, ToAgent};
use crate::shm::board::{CLASSES, KERNELS};
use crate::shm::ring::Message;
use std::collections::VecDeque;
use std::time::Duration;

/// A task that the policy lets wait although somebody has room is offered again after this long at least, and at most.
const AGAIN_AFTER: Duration = Duration::from_micros(100);
const AGAIN_AT_LATEST: Duration = Duration::from_millis(1);

/// What every compute agent computes with today.
pub(super) const CPU: u8 = 0;

/// The task as a policy sees it. Its size is known by class: the middle stands for all.
fn ask(task: &Task, now: Nanos) -> Ask {
    let (kernel, log2_size) = (task.spec.kernel, log2_size(task.spec.class));
    Ask { kernel, log2_size, queued_ns: task.queued.0, now_ns: now.0 }
}

pub(super) fn log2_size(class: u8) -> f32 {
    f32::from(class) + 0.5
}

/// What is known of the cost of tasks; implemented by the board.
pub trait CostModel {
    /// Expected time on that agent, ns; `None` while nothing is known.
    fn expected_ns(&self, kernel: u8, class: u8, slot: AgentSlot) -> Option<f64>;
}

/// A task in flight.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Which task.
    pub task: TaskId,
    /// Which dispatch of it.
    pub attempt: Attempt,
    /// Expected time, ns.
    pub expected_ns: f64,
    /// The agent held nothing when it was sent: only the way there was between it and its start.
    pub alone: bool,
}

/// An agent's place at the dispatcher's table: its link and what it holds.
#[derive(Debug)]
pub struct Seat {
    /// Which agent.
    pub slot: AgentSlot,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its kind.
    pub kind: AgentKind,
    /// The supervisor's ends of its channels.
    pub link: SupervisorLink,
    /// It said that it is ready.
    pub ready: bool,
    /// It gets no more tasks.
    pub draining: bool,
    /// Its channel had no room for the last envelope of this turn.
    pub(super) full: bool,
    /// It is kept free in this look for a task that finds room nowhere.
    reserved: bool,
    /// Tasks in flight, oldest first.
    pub held: VecDeque<Held>,
    /// Expected time of all of them, ns.
    pub held_ns: f64,
    /// When the oldest of them began to count, for the backlog.
    pub busy_since: Nanos,
    /// Tasks that ended well in this life.
    pub tasks: u64,
    /// Tasks that failed in this life.
    pub failures: u64,
    /// Time spent on tasks in this life, ns.
    pub busy_ns: u64,
    /// Messages were written since the bell was last looked at.
    pub touched: bool,
}

impl Seat {
    /// A seat for a fresh incarnation.
    pub fn new(slot: AgentSlot, incarnation: Incarnation, kind: AgentKind, link: SupervisorLink) -> Self {
        Self {
            slot,
            incarnation,
            kind,
            link,
            ready: false,
            draining: false,
            full: false,
            reserved: false,
            held: VecDeque::new(),
            held_ns: 0.0,
            busy_since: Nanos(0),
            tasks: 0,
            failures: 0,
            busy_ns: 0,
            touched: false,
        }
    }

    /// Whether it has this attempt and has not answered.
    pub fn holds(&self, task: TaskId, attempt: Attempt) -> bool {
        self.held.iter().any(|held| held.task == task && held.attempt == attempt)
    }

    /// An attempt came back. What was known of it here.
    pub(super) fn release(&mut self, task: TaskId, attempt: Attempt) -> Option<Held> {
        let at = self.held.iter().position(|held| held.task == task && held.attempt == attempt);
        let held = at.and_then(|at| self.held.remove(at));
        if let Some(held) = &held {
            self.held_ns -= held.expected_ns;
            self.busy_since = crate::os::clock::now();
        }
        if self.held.is_empty() {
            self.held_ns = 0.0;
        }
        held
    }

    /// Whether it can be given tasks of the swarm.
    pub(super) fn takes_tasks(&self) -> bool {
        self.kind == AgentKind::Compute && self.ready && !self.draining
    }

    pub(super) fn backlog_ns(&self, now: Nanos) -> f64 {
        match self.held.front() {
            None => 0.0,
            // The oldest one has been running for a while.
            Some(first) => {
                let elapsed = now.0.saturating_sub(self.busy_since.0) as f64;
                self.held_ns - first.expected_ns + remaining_ns(first.expected_ns, elapsed)
            }
        }
    }
}

/// What became of an envelope.
pub(super) enum Posted {
    /// It is on its way to this life of the agent.
    Sent(Lease),
    /// There was no room in its channel.
    NoRoom,
    /// It cannot be sent to anybody.
    Impossible(Lease, String),
}

/// See the module.
pub struct Dispatcher {
    /// Boxed, so that a turn moves pointers and not links.
    pub(super) seats: Vec<Option<Box<Seat>>>,
    /// When the graves are emptied.
    pub(super) burial: Option<Nanos>,
    /// What is left of the dead.
    #[allow(clippy::vec_box, reason = "as they come from the seats")]
    pub(super) graves: Vec<Box<Seat>>,
    /// Channels found corrupt while sending.
    pub(super) corrupt: Vec<Signal>,
    pub(super) placer: Box<dyn Placer>,
    room: Room,
    /// The supervisor's own mean per (kernel, class), for windows only; placement uses what the
    /// learning agent publishes per agent.
    means: Vec<f32>,
    /// How long tasks of each (kernel, class) take at most, as a rule.
    pub(super) usual: Vec<Usual>,
    /// Second attempts that may still be sent.
    pub(super) budget: Budget,
    /// What is divided among agents.
    pub(super) divider: Divider,
    pub(super) candidates: Vec<Candidate>,
    /// What waits, as far as the policy looks ahead: priority with age, when it is due, which.
    upcoming: Vec<(u64, Nanos, TaskId)>,
    /// When to offer again what the policy let wait although somebody had room.
    again: Option<Nanos>,
    /// The learning agent's seat.
    pub(super) learning: Option<AgentSlot>,
    pub(super) experience: Vec<Experience>,
    /// Why tasks went where they went.
    pub decisions: Decisions,
    /// Room for what comes in; taken while it is read into.
    pub(super) message: Option<Message>,
    /// Latencies and rates so far.
    pub totals: Totals,
}

impl Dispatcher {
    /// A dispatcher without seats.
    pub fn new(
        slots: usize,
        placer: Box<dyn Placer>,
        windows: Windows,
        hedge: HedgeRules,
        wide: WideRules,
    ) -> Self {
        Self {
            seats: (0..slots).map(|_| None).collect(),
            burial: None,
            graves: Vec::new(),
            corrupt: Vec::new(),
            room: windows.under(&*placer),
            placer,
            means: vec![0.0; KERNELS * CLASSES],
            usual: vec![Usual::default(); KERNELS * CLASSES],
            budget: Budget::new(hedge),
            divider: Divider::new(wide),
            candidates: Vec::with_capacity(slots),
            upcoming: Vec::new(),
            again: None,
            learning: None,
            experience: Vec::with_capacity(1024),
            decisions: Decisions::default(),
            message: None,
            totals: Totals::default(),
        }
    }

    /// Seats a fresh incarnation. Its slot must be free.
    pub fn seat(&mut self, seat: Seat) {
        let at = seat.slot.index();
        assert!(self.seats[at].is_none(), "slot {at} is taken");
        if seat.kind == AgentKind::Learning {
            self.learning = Some(seat.slot);
        }
        self.placer.joined(seat.slot);
        self.seats[at] = Some(Box::new(seat));
    }

    /// The seat in `slot`.
    pub fn get(&self, slot: AgentSlot) -> Option<&Seat> {
        self.seats.get(slot.index())?.as_deref()
    }

    /// The seat in `slot`, to talk to its agent.
    pub fn get_mut(&mut self, slot: AgentSlot) -> Option<&mut Seat> {
        self.seats.get_mut(slot.index())?.as_deref_mut()
    }

    /// Every seat that is taken.
    pub fn iter(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().flatten().map(|seat| &**seat)
    }

    /// Every seat that is taken, to talk to its agent.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Seat> {
        self.seats.iter_mut().flatten().map(|seat| &mut **seat)
    }

    /// The policy in force.
    pub fn policy(&self) -> &dyn Placer {
        &*self.placer
    }

    /// The policy in force, to have it decide otherwise.
    pub fn policy_mut(&mut self) -> &mut dyn Placer {
        &mut *self.placer
    }

    /// Tasks in flight at all agents.
    pub fn in_flight(&self) -> usize {
        self.iter().map(|seat| seat.held.len()).sum()
    }

    pub(super) fn note_cost(&mut self, kernel: u8, class: u8, service_ns: u64) {
        let at = usize::from(kernel) * CLASSES + usize::from(class);
        if let Some(mean) = self.means.get_mut(at) {
            let seen = service_ns as f32 + 1.0;
            *mean = if *mean == 0.0 { seen } else { *mean + 0.2 * (seen - *mean) };
            self.usual[at].learn(seen);
        }
    }

    fn own_mean(&self, kernel: u8, class: u8) -> Option<f64> {
        let mean = *self.means.get(usize::from(kernel) * CLASSES + usize::from(class))?;
        (mean > 0.0).then(|| f64::from(mean))
    }

    /// Sends queued tasks to agents that have room, at most `limit` agents busy at once. Returns how
    /// many were sent. Bells are rung by [`ring_bells`](Self::ring_bells).
    pub fn dispatch(
        &mut self,
        ledger: &mut Ledger,
        costs: &dyn CostModel,
        limit: usize,
        now: Nanos,
    ) -> usize {
        let mut sent = 0;
        if limit == 0 {
            // A join costs nothing; and of what is being done when the swarm stops, further parts may be, too.
            let limit = if ledger.is_draining() { usize::MAX } else { 0 };
            sent = self.send_shares(ledger, limit, now);
        } else {
            while self.dispatch_upcoming(ledger, costs, limit, now, &mut sent) {}
        }
        for seat in self.seats.iter_mut().flatten() {
            seat.full = false;
        }
        sent
    }

    /// When to [`dispatch`](Self::dispatch) again although nobody rings: what waits for a certain agent, while others have
    /// room, gives it up when that agent takes longer than was thought. Holds while something is queued.
    pub fn next_offer(&self) -> Option<Nanos> {
        self.again
    }

    /// Offers the tasks that the policy sees at once, and counts those that were sent. Returns whether any got a place:
    /// a channel that had no room after all is out of the next look, so that looking again ends.
    fn dispatch_upcoming(
        &mut self,
        ledger: &mut Ledger,
        costs: &dyn CostModel,
        limit: usize,
        now: Nanos,
        sent: &mut usize,
    ) -> bool {
        self.placer.begin(now.0);
        self.again = None;
        let mut upcoming = std::mem::take(&mut self.upcoming);
        upcoming.clear();
        match self.placer.lookahead() {
            0 | 1 => upcoming.extend(ledger.peek(now).map(|task| (0, task.due, task.id))),
            many => {
                ledger.line_up(|task| self.placer.patience_ns(&ask(task, now)) as u64);
                ledger.upcoming(now, many, &mut upcoming);
            }
        }
        *sent += self.send_shares(ledger, limit, now);
        let parts_wait = self.parts_wait(ledger, now);
        let mut placed = false;
        for &(_, _, id) in &upcoming {
            let task = ledger.get(id).expect("just seen");
            let (ask, class) = (ask(task, now), task.spec.class);
            let mean = self.own_mean(ask.kernel, class);
            self.find_candidates(costs, ask.kernel, class, mean, limit, now);
            if parts_wait {
                self.candidates.iter_mut().for_each(|candidate| candidate.room &= candidate.in_flight == 0);
            }
            if !self.candidates.iter().any(|candidate| candidate.room) {
                if self.reserve() {
                    continue;
                }
                break;
            }
            match self.try_divide(ledger, id, mean, limit, now) {
                Some(Divided::Now(shares)) => {
                    *sent += shares;
                    placed = true;
                    continue;
                }
                Some(Divided::Later(later)) => {
                    self.again = Some(self.again.map_or(later, |earlier| earlier.min(later)));
                    continue;
                }
                None => {}
            }
            let Some(placement) = self.placer.place(&ask, &self.candidates) else {
                self.plan_next_offer(now);
                continue;
            };
            let chosen = self.candidates[placement.at.min(self.candidates.len() - 1)];
            let expected_ns = placement.expected_ns.or(chosen.expected_ns).or(mean).unwrap_or(0.0);
            let attempt = Attempt(ledger.get(id).expect("just seen").attempt.0 + 1);
            if self.send(ledger, id, chosen.slot, expected_ns, now) {
                *sent += 1;
                let scored = |at| self.placer.scored(at);
                self.decisions.note(id, attempt, &placement, &self.candidates, scored);
            }
            placed = true;
        }
        self.upcoming = upcoming;
        for seat in self.seats.iter_mut().flatten() {
            seat.reserved = false;
        }
        placed
    }

    /// Nobody has room for a task: whoever is through first is kept free for it, so that smaller ones behind it, which find
    /// room, do not fill every gap that it waits for. Whether there was anybody left.
    fn reserve(&mut self) -> bool {
        let free = |at: &&Candidate| self.get(at.slot).is_some_and(|seat| !seat.reserved);
        let first = self.candidates.iter().filter(free);
        let first = first.min_by(|a, b| a.backlog_ns.total_cmp(&b.backlog_ns)).map(|first| first.slot);
        let seat = first.and_then(|slot| self.get_mut(slot));
        seat.map(|seat| seat.reserved = true).is_some()
    }

    fn plan_next_offer(&mut self, now: Nanos) {
        let busy = self.candidates.iter().filter(|candidate| candidate.in_flight > 0);
        let first = busy.map(|candidate| candidate.backlog_ns).fold(f64::INFINITY, f64::min);
        let after = Duration::from_nanos(first.min(1e9) as u64).clamp(AGAIN_AFTER, AGAIN_AT_LATEST);
        let again = now.plus(after);
        self.again = Some(self.again.map_or(again, |earlier| earlier.min(again)));
    }

    fn find_candidates(
        &mut self,
        costs: &dyn CostModel,
        kernel: u8,
        class: u8,
        mean: Option<f64>,
        limit: usize,
        now: Nanos,
    ) {
        self.candidates.clear();
        let mut busy = self.seats.iter().flatten().filter(|seat| !seat.held.is_empty()).count();
        for seat in self.seats.iter().flatten() {
            if !seat.takes_tasks() {
                continue;
            }
            let in_flight = seat.held.len();
            if in_flight == 0 {
                if busy >= limit {
                    continue;
                }
                busy = busy.min(limit);
            }
            let expected_ns = costs.expected_ns(kernel, class, seat.slot);
            let first = seat.held.front().map(|first| first.expected_ns);
            let fits = self.room.fits(expected_ns.or(mean), in_flight, held_ns(first, seat.held_ns));
            self.candidates.push(Candidate {
                slot: seat.slot,
                backend: CPU,
                room: fits && !seat.full && !seat.reserved,
                in_flight,
                backlog_ns: seat.backlog_ns(now),
                expected_ns,
            });
        }
    }

    /// Sends a queued task. Whether it is in the queue no more.
    fn send(
        &mut self,
        ledger: &mut Ledger,
        id: TaskId,
        slot: AgentSlot,
        expected_ns: f64,
        now: Nanos,
    ) -> bool {
        match self.post(ledger, id, Share::Whole, slot, expected_ns, now) {
            Posted::Sent(lease) => {
                ledger.dispatch(id, lease, now);
                self.budget.earn();
                true
            }
            Posted::NoRoom => false,
            Posted::Impossible(lease, error) => {
                ledger.dispatch(id, lease, now);
                ledger.on_failure(id, &format!("the task's description cannot be sent: {error}"), false, now);
                true
            }
        }
    }

    /// Writes the envelope of the task's next attempt, or of a share of the one in parts. The lease is the caller's to write,
    /// afterwards: what found no room is no attempt.
    pub(super) fn post(
        &mut self,
        ledger: &Ledger,
        id: TaskId,
        share: Share,
        slot: AgentSlot,
        expected_ns: f64,
        now: Nanos,
    ) -> Posted {
        let seat = self.seats[slot.index()].as_mut().expect("candidates are seated");
        let task = ledger.get(id).expect("peeked at");
        let spec = &task.spec;
        let attempt = match share {
            Share::Whole | Share::Beside => Attempt(task.attempt.0 + 1),
            Share::Join | Share::Part(_) => task.leased,
        };
        let run = Run {
            task: id,
            attempt,
            kernel: spec.kernel,
            class: spec.class,
            level: spec.level,
            share,
            body: &spec.body,
        };
        let lease = Lease { slot, incarnation: seat.incarnation };
        match seat.link.send(Lane::Normal, &ToAgent::Run(run)) {
            Ok(()) => {
                if seat.held.is_empty() {
                    seat.busy_since = now;
                }
                let alone = seat.held.is_empty();
                seat.held.push_back(Held { task: id, attempt, expected_ns, alone });
                seat.held_ns += expected_ns;
                seat.touched = true;
                Posted::Sent(lease)
            }
            Err(SendError::Full(_)) => {
                seat.full = true;
                Posted::NoRoom
            }
            Err(SendError::Corrupt(corrupt)) => {
                seat.full = true;
                self.corrupt.push(Signal::Corrupt(slot, seat.incarnation, corrupt.to_string()));
                Posted::NoRoom
            }
            Err(error) => Posted::Impossible(lease, error.to_string()),
        }
    }

    /// Wakes every agent that was written to and sleeps. Returns how many had to be woken.
    pub fn ring_bells(&mut self) -> usize {
        let mut woken = 0;
        for seat in self.seats.iter_mut().flatten() {
            if std::mem::take(&mut seat.touched) || seat.link.owes_blocks() {
                woken += usize::from(seat.link.ring());
            }
        }
        woken
    }

    /// Whether any agent has sent something.
    pub fn is_ready(&self) -> bool {
        self.iter().any(|seat| seat.link.is_ready())
    }
}
