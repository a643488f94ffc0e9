//! What comes back from agents: matched to its attempt, refused aloud when stale, counted.

use super::Lease;
use super::dispatch::{CPU, Dispatcher, Seat, log2_size};
use super::ledger::Ledger;
use super::placer::Finished;
use crate::base::clock::Nanos;
use crate::base::ids::{AgentSlot, Attempt, Incarnation, TaskId};
use crate::messaging::envelope::{Done, Experience, Severity, Verdict};
use crate::messaging::failure::Failure;
use crate::messaging::link::{ChannelTraffic, LinkTraffic};
use crate::messaging::{FromAgent, Lane, ToAgent};
use crate::os::counting::Counts;
use crate::shm::ring::{Message, SLOT_WORDS};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// Messages taken from one agent per turn, so that none can hold the loop.
const MESSAGES_PER_TURN: usize = 512;
/// Between a death and the unmapping of its channel.
const WAKE: Duration = Duration::from_millis(25);

/// Something an agent said that is not a result; the supervisor acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It is mapped, pinned (to this core, if it could be) and takes work.
    Ready(AgentSlot, Incarnation, Option<usize>),
    /// It wants something done with another agent.
    Ask {
        /// Who asks.
        from: AgentSlot,
        /// What is wrong.
        failure: Failure,
        /// With whom.
        slot: AgentSlot,
        /// And which life of it.
        incarnation: Incarnation,
        /// How that is known.
        finding: String,
    },
    /// For the event log.
    Note {
        /// Who says it.
        from: AgentSlot,
        /// How much it matters.
        severity: Severity,
        /// A stable word for the kind of event.
        kind: String,
        /// In words.
        text: String,
    },
    /// It wrote something that no correct process writes.
    Corrupt(AgentSlot, Incarnation, String),
}

/// What one kernel did on one instruction-set level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelTotals {
    /// Tasks that ended well.
    pub count: u64,
    /// Time on agents, ns.
    pub service_ns: u64,
    /// Arithmetic operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Tasks for which something was counted.
    pub counted: u64,
    /// What was counted for these.
    pub counts: Counts,
}

impl KernelTotals {
    /// What one answer says of the work, so long after it was begun.
    pub(super) fn add(&mut self, done: &Done<'_>, service_ns: u64) {
        self.service_ns += service_ns;
        self.flops += done.flops.max(0.0);
        self.bytes += done.bytes.max(0.0);
        if let Some(counts) = &done.counts {
            self.counted += 1;
            self.counts.add(counts);
        }
    }
}

impl Default for KernelTotals {
    fn default() -> Self {
        Self { count: 0, service_ns: 0, flops: 0.0, bytes: 0.0, counted: 0, counts: Counts::NONE }
    }
}

/// Latencies and rates over the life of the swarm.
#[derive(Debug)]
pub struct Totals {
    /// From acceptance to the envelope, ns.
    pub queue: Histogram<u64>,
    /// From the envelope to the start on the agent, ns.
    pub dispatch: Histogram<u64>,
    /// On the agent, ns.
    pub service: Histogram<u64>,
    /// From acceptance to the end, ns.
    pub total: Histogram<u64>,
    /// By kernel and instruction-set level.
    pub kernels: BTreeMap<(u8, u8), KernelTotals>,
    /// Finished tasks of which the learning agent did not hear.
    pub experience_dropped: u64,
    /// Results refused because they were late, foreign or repeated.
    pub results_refused: u64,
    /// What went over the channels of agents that are gone.
    pub closed: ChannelTraffic,
}

impl Default for Totals {
    fn default() -> Self {
        // Up to an hour; longer ones count as an hour. Sized here, so that recording never allocates.
        let histogram = || Histogram::new_with_max(3_600_000_000_000, 3).expect("three digits are allowed");
        Self {
            queue: histogram(),
            dispatch: histogram(),
            service: histogram(),
            total: histogram(),
            kernels: BTreeMap::new(),
            experience_dropped: 0,
            results_refused: 0,
            closed: ChannelTraffic::default(),
        }
    }
}

impl Dispatcher {
    /// Takes what agents have sent. Returns how many messages that were.
    pub fn collect(&mut self, ledger: &mut Ledger, now: Nanos, signals: &mut Vec<Signal>) -> usize {
        let mut work = 0;
        let mut message = self.message.take().unwrap_or_default();
        for index in 0..self.seats.len() {
            let Some(mut seat) = self.seats[index].take() else { continue };
            for _ in 0..MESSAGES_PER_TURN {
                match seat.link.receive(&mut message) {
                    Ok(false) => break,
                    Ok(true) => {
                        work += 1;
                        if let Err(error) = self.on_message(&mut seat, &message, ledger, now, signals) {
                            signals.push(Signal::Corrupt(seat.slot, seat.incarnation, error.to_string()));
                            break;
                        }
                    }
                    Err(corrupt) => {
                        signals.push(Signal::Corrupt(seat.slot, seat.incarnation, corrupt.to_string()));
                        break;
                    }
                }
            }
            self.seats[index] = Some(seat);
        }
        self.message = Some(message);
        signals.append(&mut self.corrupt);
        work
    }

    fn on_message(
        &mut self,
        seat: &mut Seat,
        message: &Message,
        ledger: &mut Ledger,
        now: Nanos,
        signals: &mut Vec<Signal>,
    ) -> Result<(), crate::messaging::envelope::BadMessage> {
        match FromAgent::decode(message.kind, message.payload())? {
            FromAgent::Done(done) => self.on_done(seat, &done, ledger, now),
            FromAgent::Ready { core } => {
                seat.ready = true;
                signals.push(Signal::Ready(
                    seat.slot,
                    seat.incarnation,
                    (core != u32::MAX).then_some(core as usize),
                ));
            }
            FromAgent::Ask { failure, slot, incarnation, finding } => {
                let (from, finding) = (seat.slot, finding.to_owned());
                signals.push(Signal::Ask { from, failure, slot, incarnation, finding });
            }
            FromAgent::Note { severity, text } => {
                let (kind, text) = text.split_once('\n').unwrap_or(("note", text));
                let (kind, text) = (kind.to_owned(), text.to_owned());
                signals.push(Signal::Note { from: seat.slot, severity, kind, text });
            }
        }
        Ok(())
    }

    fn on_done(&mut self, seat: &mut Seat, done: &Done<'_>, ledger: &mut Ledger, now: Nanos) {
        let lease = Lease { slot: seat.slot, incarnation: seat.incarnation };
        if let Some(task) = ledger.get(done.task).filter(|task| task.is_held_by(lease, done.attempt))
            && let of_its_share = Self::is_of_its_share(done, task, lease)
            && of_its_share != Ok(true)
        {
            if let Err(nonsense) = of_its_share {
                self.corrupt.push(Signal::Corrupt(seat.slot, seat.incarnation, nonsense));
            }
            self.totals.results_refused += 1;
            tracing::warn!(task = %done.task, attempt = done.attempt.0, agent = seat.slot.0, "answer to another part refused");
            return;
        }
        let held = seat.release(done.task, done.attempt);
        match ledger.check_holder(done.task, done.attempt, seat.slot, seat.incarnation) {
            Ok(()) => {}
            Err(_) if held.is_some() => return self.on_overtaken(seat, done, ledger, now),
            Err(refusal) => {
                self.totals.results_refused += 1;
                tracing::warn!(task = %done.task, attempt = done.attempt.0, agent = seat.slot.0, %refusal, "result refused");
                return;
            }
        }
        if let Some((lease, other)) = ledger.rival(done.task, done.attempt) {
            let is_answer = matches!(done.verdict, Verdict::Succeeded | Verdict::Wrong);
            if !is_answer || !self.forbid(done.task, lease, other) {
                ledger.fall_out(done.task, done.attempt);
                return;
            }
        }
        let task = ledger.settle(done.task, done.attempt);
        // Another process's clock readings: kept inside what is possible.
        let began = done.started.clamp(task.dispatched, now);
        let service_ns = done.service_ns.min(now.0.saturating_sub(began.0));
        seat.busy_ns += service_ns;
        if task.is_divided() {
            return self.on_part_done(done, seat, service_ns, ledger, now);
        }
        // What was joined began with its first part and ran as that did; its service is the time from there on.
        let parts = task.wide.as_mut().map(|wide| (wide.started.min(now), wide.level, wide.result.take()));
        let is_joined = parts.is_some();
        let (started, level, of_parts) = parts.unwrap_or((began, done.level, None));
        task.started = started;
        task.service_ns = if is_joined { now.0.saturating_sub(started.0) } else { service_ns };
        task.ran_level = Some(level);
        task.kept_input = done.kept_input && done.verdict == Verdict::Succeeded;
        let took_ns = task.service_ns;
        let (kernel, class) = (task.spec.kernel, task.spec.class);
        let (submitted, queued, dispatched) = (task.submitted, task.queued, task.dispatched);
        let text = || String::from_utf8_lossy(done.body);
        match done.verdict {
            Verdict::Succeeded => {
                seat.tasks += 1;
                // What the kernel said, the parts of a joined one have said.
                let result =
                    if is_joined { of_parts } else { (!done.body.is_empty()).then(|| text().into()) };
                if held.is_some_and(|held| held.alone) || is_joined {
                    self.divider.learn(task, now.0.saturating_sub(dispatched.0));
                }
                ledger.on_success(done.task, result, now);
                let totals = &mut self.totals;
                totals.queue.saturating_record(dispatched.0.saturating_sub(submitted.0));
                totals.dispatch.saturating_record(started.0 - dispatched.0);
                totals.service.saturating_record(took_ns);
                totals.total.saturating_record(now.0.saturating_sub(submitted.0));
                let kernels = totals.kernels.entry((kernel, level)).or_default();
                kernels.count += 1;
                kernels.add(done, service_ns);
                if is_joined {
                    return;
                }
                self.placer.finished(&Finished {
                    kernel,
                    log2_size: log2_size(class),
                    slot: seat.slot,
                    backend: CPU,
                    service_ns: service_ns as f64,
                    total_ns: now.0.saturating_sub(queued.0) as f64,
                    overhead_ns: held
                        .filter(|held| held.alone)
                        .map(|_| now.0.saturating_sub(dispatched.0).saturating_sub(service_ns) as f64),
                    now_ns: now.0,
                });
                self.note_cost(kernel, class, service_ns);
                self.note_experience(kernel, class, seat.slot, service_ns);
            }
            Verdict::Wrong | Verdict::Failed | Verdict::Undivided => {
                seat.failures += 1;
                let may_help = done.verdict == Verdict::Failed;
                ledger.on_failure(done.task, &text(), may_help, now);
            }
            Verdict::Cancelled => {
                ledger.on_given_up(done.task, now);
            }
        }
    }

    /// Sees to it that the output of this attempt does not appear any more. False when it is appearing at this moment.
    fn forbid(&mut self, task: TaskId, lease: Lease, attempt: Attempt) -> bool {
        let seat = self.seats.get_mut(lease.slot.index()).and_then(Option::as_mut);
        let Some(seat) = seat.filter(|seat| seat.incarnation == lease.incarnation) else { return true };
        // Without room in the control lane the word alone must do; who does not read it in time is ended.
        let _ = seat.link.send(Lane::Control, &ToAgent::Cancel(task, attempt));
        seat.touched = true;
        seat.link.forbid(task, attempt)
    }

    /// The slower of two attempts is over. The learning agent hears how long the straggler took, or had taken when it was
    /// told: else slow agents would look fast, because their slowest tasks always end elsewhere.
    fn on_overtaken(&mut self, seat: &mut Seat, done: &Done<'_>, ledger: &Ledger, now: Nanos) {
        let Some(task) = ledger.get(done.task) else { return };
        let service_ns = done.service_ns.min(now.since(task.submitted).as_nanos() as u64);
        seat.busy_ns += service_ns;
        let is_straggler = done.attempt < task.leased;
        if is_straggler && matches!(done.verdict, Verdict::Succeeded | Verdict::Cancelled) {
            self.note_experience(task.spec.kernel, task.spec.class, seat.slot, service_ns);
        }
    }

    fn note_experience(&mut self, kernel: u8, class: u8, slot: AgentSlot, service_ns: u64) {
        let same = |known: &&mut Experience| (known.kernel, known.class, known.slot) == (kernel, class, slot);
        match self.experience.iter_mut().find(same) {
            Some(known) => {
                known.tasks += 1;
                known.service_ns += service_ns;
            }
            None => self.experience.push(Experience { kernel, class, slot, tasks: 1, service_ns }),
        }
    }

    /// Tells the learning agent what finished since the last call.
    pub fn pass_on_experience(&mut self) {
        let seat = self.learning.and_then(|slot| self.seats.get_mut(slot.index())).and_then(Option::as_mut);
        let Some(seat) = seat.filter(|seat| seat.ready) else {
            // Nobody learns at the moment; the next one should not begin with stale news.
            self.totals.experience_dropped +=
                self.experience.drain(..).map(|it| u64::from(it.tasks)).sum::<u64>();
            return;
        };
        for experience in self.experience.drain(..) {
            if seat.link.send(Lane::Bulk, &ToAgent::Experience(experience)).is_err() {
                self.totals.experience_dropped += u64::from(experience.tasks);
            }
            seat.touched = true;
        }
    }

    /// An incarnation is gone: takes its seat away and gives its leases back. Results that it had
    /// sent whole still count. Returns the tasks that moved, and those whose temporary files may lie about.
    pub fn on_agent_gone(
        &mut self,
        ledger: &mut Ledger,
        slot: AgentSlot,
        cause: &str,
        crashed: bool,
        now: Nanos,
        signals: &mut Vec<Signal>,
    ) -> Vec<TaskId> {
        self.collect_from(slot, ledger, now, signals);
        let Some(seat) = self.seats.get_mut(slot.index()).and_then(Option::take) else { return Vec::new() };
        let LinkTraffic { down, up } = seat.link.traffic();
        self.totals.closed.add_closed(&down);
        self.totals.closed.add_closed(&up);
        let held: Vec<TaskId> = seat.held.iter().map(|held| held.task).collect();
        let lease = Lease { slot, incarnation: seat.incarnation };
        // What the agent said it runs counts only if it holds it; else the oldest one is as good a guess.
        let running = seat.link.running().filter(|task| held.contains(task));
        if self.learning == Some(slot) {
            self.learning = None;
        }
        self.graves.push(seat);
        self.burial.get_or_insert(now.plus(WAKE));
        let moved = ledger.on_agent_gone(&held, lease, running, cause, crashed, now);
        held.iter().for_each(|id| self.note_undivided(ledger, *id));
        moved
    }

    /// Lets go of what is left of the dead, a while after. To unmap a channel takes longer than to give its tasks to others and
    /// to start a successor, who come first.
    pub fn bury(&mut self, now: Nanos) {
        if self.burial.take_if(|due| *due <= now).is_some() {
            self.graves.clear();
        }
    }

    /// When to call [`bury`](Self::bury).
    pub fn next_burial(&self) -> Option<Nanos> {
        self.burial
    }

    /// Takes what is left in the channel of an incarnation that is gone.
    pub fn collect_from(
        &mut self,
        slot: AgentSlot,
        ledger: &mut Ledger,
        now: Nanos,
        signals: &mut Vec<Signal>,
    ) {
        let Some(mut seat) = self.seats.get_mut(slot.index()).and_then(Option::take) else { return };
        let mut message = self.message.take().unwrap_or_default();
        // What the channel holds, and no more: who is taken for dead may still have a thread that writes.
        for _ in 0..=seat.link.far_slots().len() / SLOT_WORDS {
            match seat.link.receive(&mut message) {
                Ok(true) if self.on_message(&mut seat, &message, ledger, now, signals).is_ok() => {}
                // Blocks that came back, of which it takes some at a time; results may stand behind them.
                Ok(false) if seat.link.is_ready() => {}
                Ok(_) | Err(_) => break,
            }
        }
        self.message = Some(message);
        self.seats[slot.index()] = Some(seat);
    }
}
