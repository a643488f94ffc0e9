//! Wide tasks: one that takes long, while agents have nothing to do, is divided among them; each writes its rows of one output.
//!
//! A task is divided when
//! 1. its kernel says that it falls into parts, and it is expected to take longer than `tasks.divide_above_s`; of what nobody
//!    knows the size decides;
//! 2. two agents or more have nothing to do, and nothing else waits for them: many tasks beside each other lose less than parts
//!    that wait for each other;
//! 3. that was worth it so far: of tasks of one kernel and size class one is now and then done the other way, and the faster way is
//!    kept. What needs memory more than cores gains nothing from more cores, and only measuring tells.
//!
//! Who divides a call, and where, is `kernels::split`; what becomes of parts is in the ledger (`ledger/wide.rs`).

use super::dispatch::{Dispatcher, Posted, Seat};
use super::ledger::{Ledger, PartEnd};
use super::{By, Candidate, Lease, Placement, Task, TaskId, TaskSpec};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentKind, AgentSlot};
use crate::messaging::envelope::{Done, Share, Verdict};
use crate::shm::board::{CLASSES, KERNELS};
use std::time::Duration;

/// A task of which nobody knows how long it takes is wide from this class on: 8 MiB.
const WIDE_CLASS: u8 = 23;
/// So long after it was queued, a task that may be divided waits for agents that are just being started.
const START: Duration = Duration::from_millis(100);
/// Of tasks of one kind, one in so many is done the slower way,
const OTHER_WAY_EVERY: u32 = 32;
/// or in so many as a whole, while nobody knows how long that takes.
const UNKNOWN_EVERY: u32 = 8;
/// How much one task counts in a mean.
const STEP: f32 = 0.3;

/// What is divided.
#[derive(Clone, Copy, Debug)]
pub struct WideRules {
    /// Tasks that are expected to take longer; zero: none.
    pub above: Duration,
    /// Whether such a task falls into parts, as far as that can be known without its arrays. Asked of what takes long only.
    pub falls_into_parts: fn(&TaskSpec) -> bool,
}

/// How long tasks of one kind take each way, from their sending to their answer, ns; 0: nobody knows.
#[derive(Clone, Copy, Debug, Default)]
struct Ways {
    whole_ns: f32,
    /// Infinite: the last one did not fall into parts.
    divided_ns: f32,
    /// How many in a row did not.
    vain: u32,
    /// How many tasks there were; since the last vain one, if there was one.
    asked: u32,
}

impl Ways {
    /// Whether the next task is divided.
    fn divides(&mut self) -> bool {
        self.asked = self.asked.wrapping_add(1);
        if self.divided_ns == 0.0 {
            return true;
        }
        if self.vain > 0 {
            // It may have been but the shape of one.
            return self.asked >= OTHER_WAY_EVERY.min(1 << self.vain.min(8));
        }
        let is_unknown = self.whole_ns == 0.0;
        let is_best = is_unknown || self.divided_ns < self.whole_ns;
        let is_other = self.asked.is_multiple_of(if is_unknown { UNKNOWN_EVERY } else { OTHER_WAY_EVERY });
        is_best != is_other
    }

    fn learn_in_vain(&mut self) {
        (self.divided_ns, self.vain, self.asked) = (f32::INFINITY, self.vain + 1, 0);
    }

    fn learn(&mut self, is_divided: bool, took_ns: f32) {
        self.vain = if is_divided { 0 } else { self.vain };
        let mean = if is_divided { &mut self.divided_ns } else { &mut self.whole_ns };
        let is_known = *mean > 0.0 && mean.is_finite();
        // By logarithms: one that took a hundred times as long, because an agent died, counts no more than a few.
        *mean = if is_known { *mean * (took_ns / *mean).powf(STEP) } else { took_ns };
    }
}

/// See the module.
pub(super) struct Divider {
    rules: WideRules,
    ways: Vec<Ways>,
}

impl Divider {
    pub(super) fn new(rules: WideRules) -> Self {
        Self { rules, ways: vec![Ways::default(); KERNELS * CLASSES] }
    }

    fn ways(&mut self, task: &Task) -> Option<&mut Ways> {
        self.ways.get_mut(usize::from(task.spec.kernel) * CLASSES + usize::from(task.spec.class))
    }

    /// A task ended well, so long after it was sent to an agent that had nothing else to do, or to several.
    pub(super) fn learn(&mut self, task: &Task, took_ns: u64) {
        // Most tasks are none that anybody would divide.
        let is_wide = took_ns as u128 >= self.rules.above.as_nanos();
        if let Some(ways) = self.ways(task)
            && (is_wide || ways.asked > 0)
        {
            ways.learn(task.wide.is_some(), took_ns as f32 + 1.0);
        }
    }

    /// A task of this kind could not be divided, or that went wrong.
    fn learn_in_vain(&mut self, task: &Task) {
        if let Some(ways) = self.ways(task) {
            ways.learn_in_vain();
        }
    }

    /// Whether such a task may take long enough, as far as that is quickly said. `mean`: what its like take.
    fn may_divide(&self, task: &Task, mean: Option<f64>) -> bool {
        let above_ns = self.rules.above.as_nanos() as f64;
        above_ns > 0.0
            && mean.is_none_or(|mean| mean > above_ns)
            && task.undivided.is_none()
            && task.deaths.0 == 0
    }

    /// Whether one that is expected to take so long does.
    fn is_long(&self, task: &Task, expected_ns: Option<f64>) -> bool {
        match expected_ns {
            Some(ns) => ns > self.rules.above.as_nanos() as f64,
            None => task.spec.class >= WIDE_CLASS,
        }
    }

    /// What such a task takes as a whole, ns: as expected, or as long as so many agents took for the last ones.
    fn whole_ns(&mut self, task: &Task, agents: u32, expected_ns: Option<f64>) -> Option<f64> {
        let divided_ns = self.ways(task).map(|ways| f64::from(ways.divided_ns));
        let known = divided_ns.filter(|ns| *ns > 0.0 && ns.is_finite());
        expected_ns.or(known.map(|ns| ns * f64::from(agents)))
    }
}

/// What became of a task that may be divided.
pub(super) enum Divided {
    /// It was, and so many envelopes were sent.
    Now(usize),
    /// It had better wait until then.
    Later(Nanos),
}

impl Dispatcher {
    /// From now on tasks that are expected to take longer are divided; zero: none.
    pub fn divide_above(&mut self, above: Duration) {
        self.divider.rules.above = above;
    }

    /// Divides a queued task among the candidates, if that is worth it.
    pub(super) fn try_divide(
        &mut self,
        ledger: &mut Ledger,
        id: TaskId,
        mean: Option<f64>,
        limit: usize,
        now: Nanos,
    ) -> Option<Divided> {
        let task = ledger.get(id).filter(|task| self.divider.may_divide(task, mean))?;
        let is_idle = |candidate: &&Candidate| candidate.room && candidate.in_flight == 0;
        let idle = self.candidates.iter().filter(is_idle);
        let expected_ns =
            idle.clone().filter_map(|candidate| candidate.expected_ns).reduce(f64::min).or(mean);
        let others = ledger.queued().saturating_sub(1);
        let busy = self.iter().filter(|seat| !seat.held.is_empty()).count();
        let spare = idle.count().min(limit.saturating_sub(busy)).saturating_sub(others);
        let is_starting = |seat: &&Seat| seat.kind == AgentKind::Compute && !seat.ready && !seat.draining;
        let starting = self.iter().filter(is_starting).count();
        // Half of the agents are worth a moment; one of many is not.
        let waits = starting >= spare && starting + spare >= 2 && others == 0;
        let later = Some(task.queued.plus(START)).filter(|later| waits && *later > now);
        if spare < 2 && later.is_none() || !self.divider.is_long(task, expected_ns) {
            return None;
        }
        if !(self.divider.rules.falls_into_parts)(&task.spec) {
            ledger.keep_whole(id, "");
            return None;
        }
        if let Some(later) = later {
            return Some(Divided::Later(later));
        }
        if !self.divider.ways(task).is_some_and(Ways::divides) {
            return None;
        }
        let agents = spare as u32;
        let whole_ns = self.divider.whole_ns(task, agents, expected_ns);
        let attempt = ledger.divide(id, agents, whole_ns, now);
        self.budget.earn();
        let sent = self.send_shares(ledger, limit, now);
        let first = ledger.get(id).and_then(|task| task.holders().next()).map(|lease| lease.slot);
        let at = self.candidates.iter().position(|candidate| Some(candidate.slot) == first).unwrap_or(0);
        let placement = Placement { at, expected_ns, probability: 1.0, by: By::Dividing };
        self.decisions.note(id, attempt, &placement, &self.candidates, |_| None);
        Some(Divided::Now(sent))
    }

    /// Sends what is to be sent of tasks in parts: to agents that have nothing to do, before what waits behind it gets these.
    /// Returns how many envelopes that were.
    pub(super) fn send_shares(&mut self, ledger: &mut Ledger, limit: usize, now: Nanos) -> usize {
        let mut sent = 0;
        for id in ledger.divided_by_turn(now) {
            while let Some(share) = ledger.next_share(id)
                && (share == Share::Join || !ledger.is_outranked(id, now))
                && let Some(slot) = self.taker(share, limit, now)
            {
                let wide = ledger.get(id).and_then(|task| task.wide.as_ref());
                let expected_ns =
                    if share == Share::Join { 0.0 } else { wide.map_or(0.0, |wide| wide.part_ns) };
                match self.post(ledger, id, share, slot, expected_ns, now) {
                    Posted::Sent(lease) => {
                        ledger.lend(id, share, lease, now);
                        self.placer.occupied(slot, expected_ns, now.0);
                    }
                    Posted::NoRoom => continue,
                    // As a whole it says why.
                    Posted::Impossible(_, why) => {
                        ledger.undivide(id, &why, now);
                        break;
                    }
                }
                sent += 1;
            }
        }
        sent
    }

    /// Who is given a share: a part only who has nothing to do, and the join who is soonest done with what it has.
    fn taker(&self, share: Share, limit: usize, now: Nanos) -> Option<AgentSlot> {
        let busy = self.iter().filter(|seat| !seat.held.is_empty()).count();
        let seats = self.iter().filter(|seat| seat.takes_tasks() && !seat.full);
        let mut seats = seats.filter(|seat| share == Share::Join || seat.held.is_empty() && busy < limit);
        let first = match share {
            Share::Join => seats.min_by(|a, b| a.backlog_ns(now).total_cmp(&b.backlog_ns(now))),
            _ => seats.next(),
        };
        first.map(|seat| seat.slot)
    }

    /// Whether parts wait for agents, and nothing goes before them: then who is at work gets nothing more to do.
    pub(super) fn parts_wait(&self, ledger: &mut Ledger, now: Nanos) -> bool {
        let waits =
            |ledger: &mut Ledger, id| ledger.next_share(id).is_some() && !ledger.is_outranked(id, now);
        ledger.divided().to_vec().into_iter().any(|id| waits(ledger, id))
    }

    /// Whether an answer of a life that holds a share of a task is that to this share. One to a part that was answered before has
    /// come twice; any other is nonsense, and the error says so.
    pub(super) fn is_of_its_share(done: &Done<'_>, task: &Task, lease: Lease) -> Result<bool, String> {
        let Some(wide) = task.wide.as_ref().filter(|_| done.verdict == Verdict::Succeeded) else {
            return Ok(true);
        };
        let own = wide.held_by(lease);
        match (done.part, own) {
            (None, None) => Ok(true),
            (Some(part), Some(at)) if part.at == at => Ok(true),
            (Some(part), _) if wide.is_done(part.at) => Ok(false),
            (part, _) => {
                let said = part.map_or("a whole".to_owned(), |part| format!("part {}", part.at));
                let held = own.map_or("the join".to_owned(), |at| format!("part {at}"));
                Err(format!("it holds {held} of task {}, and answers {said}", done.task))
            }
        }
    }

    /// The answer of an agent that held a part.
    pub(super) fn on_part_done(
        &mut self,
        done: &Done<'_>,
        seat: &mut Seat,
        service_ns: u64,
        ledger: &mut Ledger,
        now: Nanos,
    ) {
        let Some(task) = ledger.get(done.task) else { return };
        let kernel = task.spec.kernel;
        let lease = Lease { slot: seat.slot, incarnation: seat.incarnation };
        seat.failures += u64::from(done.verdict == Verdict::Failed);
        let text = || String::from_utf8_lossy(done.body);
        let end = match done.verdict {
            Verdict::Succeeded => {
                self.totals.kernels.entry((kernel, done.level)).or_default().add(done, service_ns);
                let digest = done.part.and_then(|part| part.digest);
                let result = (!done.body.is_empty()).then(|| text().into());
                let started = done.started.clamp(task.dispatched, now);
                PartEnd::Done { started, service_ns, level: done.level, digest, result }
            }
            Verdict::Failed => PartEnd::Failed(text().into_owned()),
            Verdict::Cancelled => PartEnd::GivenUp,
            // As a whole it says what is wrong.
            Verdict::Undivided | Verdict::Wrong => PartEnd::Undivided(text().into_owned()),
        };
        ledger.on_part(done.task, lease, end, now);
        self.note_undivided(ledger, done.task);
    }

    /// Remembers of a task that was in parts and has to be done as a whole that its like had better be, too.
    pub(super) fn note_undivided(&mut self, ledger: &Ledger, id: TaskId) {
        if let Some(task) = ledger.get(id).filter(|task| task.undivided.is_some() && task.wide.is_none()) {
            self.divider.learn_in_vain(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Incarnation;
    use crate::messaging::envelope::PartMark;
    use crate::tasks::{TaskSpec, TaskState};

    fn task(class: u8) -> Task {
        let spec = TaskSpec { kernel: 1, class, ..TaskSpec::default() };
        Task::new(TaskId(1), spec, TaskState::Queued, 1, Nanos(0))
    }

    fn divider() -> Divider {
        Divider::new(WideRules { above: Duration::from_millis(5), falls_into_parts: |spec| spec.kernel == 1 })
    }

    fn in_parts(class: u8) -> Task {
        let mut ledger = Ledger::new(Default::default());
        let id = ledger.submit(task(class).spec, Nanos(0)).expect("accepted");
        ledger.peek(Nanos(0));
        ledger.divide(id, 2, None, Nanos(0));
        ledger.get(id).expect("known").clone()
    }

    #[test]
    fn only_what_takes_long_is_divided() {
        let mut divider = divider();
        for (class, expected, is_long) in [
            (20, Some(6e6), true),
            (20, Some(4e6), false),
            (WIDE_CLASS, None, true),
            (WIDE_CLASS - 1, None, false),
        ] {
            assert_eq!(divider.is_long(&task(class), expected), is_long, "{class} {expected:?}");
        }
        let (crashed, undivided) =
            (Task { deaths: (1, 0), ..task(20) }, Task { undivided: Some("".into()), ..task(20) });
        assert!(divider.may_divide(&task(20), None) && divider.may_divide(&task(20), Some(6e6)));
        assert!(!divider.may_divide(&task(20), Some(4e6)), "most tasks");
        assert!([crashed, undivided].iter().all(|task| !divider.may_divide(task, None)));
        divider.rules.above = Duration::ZERO;
        assert!(!divider.may_divide(&task(20), None), "never, if somebody wants that");
    }

    #[test]
    fn what_nobody_expects_takes_as_long_as_the_last_ones() {
        let mut divider = divider();
        assert_eq!(divider.whole_ns(&task(24), 2, None), None);
        assert_eq!(divider.whole_ns(&task(24), 2, Some(5.0)), Some(5.0));
        divider.ways(&task(24)).expect("a kind").divided_ns = 1e9;
        assert_eq!(divider.whole_ns(&task(24), 2, None), Some(2e9));
    }

    /// Whether each of so many tasks was divided that took so long as a whole and in parts.
    fn lived(whole_ms: u64, divided_ms: u64, tasks: usize) -> Vec<bool> {
        let mut divider = divider();
        let mut next = || {
            let divides = divider.ways(&task(24)).expect("a kind").divides();
            let (task, took_ms) = if divides { (in_parts(24), divided_ms) } else { (task(24), whole_ms) };
            divider.learn(&task, took_ms * 1_000_000);
            divides
        };
        (0..tasks).map(|_| next()).collect()
    }

    #[test]
    fn the_faster_way_is_kept_and_the_other_one_looked_at_now_and_then() {
        for (whole_ms, divided_ms) in [(50, 26), (50, 60)] {
            let divided = lived(whole_ms, divided_ms, 640);
            let others = divided[128..].iter().filter(|is| **is != (divided_ms < whole_ms)).count();
            assert_eq!(others, 512 / OTHER_WAY_EVERY as usize, "{whole_ms} {divided_ms}: {divided:?}");
        }
    }

    #[test]
    fn what_cannot_be_divided_is_not_tried_again_soon() {
        let mut divider = divider();
        assert!(divider.ways(&task(24)).expect("a kind").divides());
        divider.learn_in_vain(&task(24));
        divider.learn(&task(24), 20_000_000);
        let ways = divider.ways(&task(24)).expect("a kind");
        let mut tried = Vec::new();
        for at in 0..100 {
            if ways.divides() {
                tried.push(at);
                ways.learn_in_vain();
            }
        }
        assert_eq!(tried, [1, 5, 13, 29, 61, 93]);
        divider.learn(&in_parts(24), 10_000_000);
        assert!(divider.ways(&task(24)).expect("a kind").divides(), "it can by now");
    }

    #[test]
    fn an_answer_to_another_share_is_told_from_its_own() {
        let lease = |slot| Lease { slot: AgentSlot(slot), incarnation: Incarnation(1) };
        let mut ledger = Ledger::new(Default::default());
        let id = ledger.submit(task(24).spec, Nanos(0)).expect("accepted");
        ledger.peek(Nanos(0));
        let attempt = ledger.divide(id, 2, Some(1.0), Nanos(0));
        let says = |ledger: &Ledger, slot, part: Option<u32>, verdict| {
            let part = part.map(|at| PartMark { at, digest: Some(7) });
            let (started, service_ns, flops, bytes) = (Nanos(0), 1, 0.0, 0.0);
            let (level, kept_input, counts, body) = (1, false, None, &b""[..]);
            let done = Done {
                task: id,
                attempt,
                verdict,
                level,
                started,
                service_ns,
                flops,
                bytes,
                kept_input,
                part,
                counts,
                body,
            };
            Dispatcher::is_of_its_share(&done, ledger.get(id).expect("known"), lease(slot)).ok()
        };
        let succeeded = Verdict::Succeeded;
        let share = |ledger: &Ledger| ledger.next_share(id).expect("something to do");
        for slot in [0, 1] {
            ledger.lend(id, share(&ledger), lease(slot), Nanos(0));
        }
        let end = || {
            let (started, digest) = (Nanos(1), Some(7));
            PartEnd::Done { started, service_ns: 1, level: 1, digest, result: None }
        };
        assert_eq!(says(&ledger, 1, Some(64), succeeded), Some(true));
        assert_eq!(says(&ledger, 1, None, Verdict::Failed), Some(true));
        for nonsense in [Some(0), Some(65), Some(u32::MAX), None] {
            assert_eq!(says(&ledger, 1, nonsense, succeeded), None, "{nonsense:?}");
        }
        ledger.on_part(id, lease(0), end(), Nanos(2));
        assert_eq!(says(&ledger, 1, Some(0), succeeded), Some(false), "somebody has said that before");
        ledger.on_part(id, lease(1), end(), Nanos(2));
        ledger.lend(id, share(&ledger), lease(1), Nanos(2));
        assert_eq!(says(&ledger, 1, None, succeeded), Some(true));
        assert_eq!(says(&ledger, 1, Some(64), succeeded), Some(false));
        assert_eq!(says(&ledger, 1, Some(65), succeeded), None);
    }
}
