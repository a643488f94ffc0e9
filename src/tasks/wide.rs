//! Wide tasks: one that takes long, while agents have nothing to do, is divided among them; each writes its rows of one output.
//!
//! A task is divided when
//! 1. its kernel says that it falls into parts, and it is expected to take longer than `tasks.divide_above_s`; of what nobody
//!    knows the size decides;
//! 2. two agents or more have nothing to do, and nothing else waits for them: many tasks beside each other lose less than parts
//!    that wait for each other;
//! 3. that was worth it so far: tasks of one kernel and size class are now and then done another way (whole, with one part for each
//!    agent, with several), and the fastest way is kept. What needs memory more than cores gains nothing from more cores, and
//!    only measuring tells.
//!
//! Who divides a call, and where, is `kernels::split`; what becomes of parts is in the ledger (`ledger/wide.rs`).

use super::dispatch::{Dispatcher, Posted, Seat};
use super::ledger::{Ledger, PartEnd};
use super::results::KernelTotals;
use super::{By, Candidate, Lease, Placement, Task, TaskId, TaskSpec};
use crate::base::clock::Nanos;
use crate::base::ids::AgentSlot;
use crate::messaging::envelope::{Done, Share, ShareMark, Verdict};
use crate::shm::board::{CLASSES, KERNELS};
use std::time::Duration;

/// A task of which nobody knows how long it takes is wide from this class on: 8 MiB.
const WIDE_CLASS: u8 = 23;
/// The ways in which a task is done: by so many parts for each agent; 0: as a whole. With several, whose core is slower gets
/// fewer; but each part reads what all of them need.
const EACH: [u32; 3] = [0, 1, 4];
/// No task falls into more parts than agents when one of these is expected to take less.
const SMALL_PART_NS: f64 = 5e6;
/// Of tasks of one kind, one in so many is done another way than the fastest,
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
    took_ns: [f32; EACH.len()],
    asked: u32,
}

impl Ways {
    /// Which of the first `many` the next task goes.
    fn choose(&mut self, many: usize) -> usize {
        self.asked = self.asked.wrapping_add(1);
        let is_unknown = |way: usize| self.took_ns[way] == 0.0;
        if let Some(way) = (1..many).find(|way| is_unknown(*way)) {
            return way;
        }
        let others = if is_unknown(0) { UNKNOWN_EVERY } else { OTHER_WAY_EVERY };
        let known = (0..many).filter(|way| !is_unknown(*way));
        let best = known.min_by(|a, b| self.took_ns[*a].total_cmp(&self.took_ns[*b])).unwrap_or(0);
        if !self.asked.is_multiple_of(others) {
            let is_vain = self.took_ns[best].is_infinite();
            return if is_vain { 0 } else { best };
        }
        if is_unknown(0) {
            return 0;
        }
        let after = 1 + (self.asked / others) as usize % (many - 1);
        (best + after) % many
    }

    /// By logarithms: one that took a hundred times as long, because an agent died, counts no more than a few.
    fn learn(&mut self, way: usize, took_ns: f32) {
        let mean = &mut self.took_ns[way];
        // What could not be done that way at all is no time to go by.
        let is_known = *mean > 0.0 && mean.is_finite();
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
        let each = task.wide.as_ref().map_or(0, |wide| wide.each);
        let way = EACH.iter().position(|way| *way == each);
        // Most tasks are none that anybody would divide.
        let is_wide = took_ns as u128 >= self.rules.above.as_nanos();
        if let (Some(ways), Some(way)) = (self.ways(task), way)
            && (is_wide || ways.asked > 0)
        {
            ways.learn(way, took_ns as f32 + 1.0);
        }
    }

    /// A task of this kind could not be divided.
    fn learn_in_vain(&mut self, task: &Task) {
        if let Some(ways) = self.ways(task) {
            ways.took_ns[1..].fill(f32::INFINITY);
        }
    }

    /// Whether such a task is ever divided, as far as that is quickly said.
    fn may_divide(&self, task: &Task) -> bool {
        !self.rules.above.is_zero() && !task.undivided && task.deaths.0 == 0
    }

    /// How many parts each of `idle` agents should have of such a task, which nobody else wants; 0: it stays whole.
    fn parts_each(&mut self, task: &Task, idle: usize, expected_ns: Option<f64>) -> u32 {
        let is_long = match expected_ns {
            Some(ns) => ns > self.rules.above.as_nanos() as f64,
            None => task.spec.class >= WIDE_CLASS,
        };
        let is_divisible = idle > 1 && is_long && (self.rules.falls_into_parts)(&task.spec);
        let ways = if is_divisible { self.ways(task) } else { None };
        let part_ns = |each: u32| expected_ns.unwrap_or(0.0) / idle as f64 / f64::from(each);
        let may = |each: &&u32| **each < 2 || part_ns(**each) >= SMALL_PART_NS;
        ways.map_or(0, |ways| EACH[ways.choose(EACH.iter().filter(may).count())])
    }
}

impl Dispatcher {
    /// From now on tasks that are expected to take longer are divided; zero: none.
    pub fn divide_above(&mut self, above: Duration) {
        self.divider.rules.above = above;
    }

    /// Divides a queued task among the candidates, if that is worth it. Returns how many envelopes were sent, if so.
    pub(super) fn try_divide(
        &mut self,
        ledger: &mut Ledger,
        id: TaskId,
        mean: Option<f64>,
        limit: usize,
        now: Nanos,
    ) -> Option<usize> {
        let others = ledger.queued().saturating_sub(1);
        let task = ledger.get(id).filter(|task| self.divider.may_divide(task))?;
        let is_idle = |candidate: &&Candidate| candidate.room && candidate.in_flight == 0;
        let idle = self.candidates.iter().filter(is_idle);
        let busy = self.iter().filter(|seat| !seat.held.is_empty()).count();
        let spare = idle.clone().count().min(limit.saturating_sub(busy)).saturating_sub(others);
        let expected_ns = idle.filter_map(|candidate| candidate.expected_ns).reduce(f64::min).or(mean);
        let each = self.divider.parts_each(task, spare, expected_ns);
        if each == 0 {
            return None;
        }
        let attempt = ledger.divide(id, spare as u32, each, expected_ns, now);
        self.budget.earn();
        let sent = self.send_shares(ledger, limit, now);
        let first = ledger.get(id).and_then(|task| task.agent);
        let at = self.candidates.iter().position(|candidate| Some(candidate.slot) == first).unwrap_or(0);
        let placement = Placement { at, expected_ns, probability: 1.0, by: By::Dividing };
        self.decisions.note(id, attempt, &placement, &self.candidates, |_| None);
        Some(sent)
    }

    /// Sends what is to be sent of tasks in parts: to agents that have nothing to do, before they are given anything else.
    /// Returns how many envelopes that were.
    pub(super) fn send_shares(&mut self, ledger: &mut Ledger, limit: usize, now: Nanos) -> usize {
        let mut sent = 0;
        for id in ledger.divided().to_vec() {
            while let Some(share) = ledger.next_share(id)
                && (share == Share::Join || !ledger.is_outranked(id, now))
                && let Some(slot) = self.taker(share, limit)
            {
                let wide = ledger.get(id).and_then(|task| task.wide.as_ref());
                let expected_ns =
                    if share == Share::Join { 0.0 } else { wide.map_or(0.0, |wide| wide.part_ns) };
                match self.post(ledger, id, share, slot, expected_ns, now) {
                    Posted::Sent(lease) => ledger.lend(id, share, lease),
                    Posted::NoRoom => continue,
                    // As a whole it says why.
                    Posted::Impossible(..) => {
                        ledger.undivide(id, now);
                        break;
                    }
                }
                sent += 1;
            }
        }
        sent
    }

    /// Who is given a share: the join should wait for nobody, but would rather do that than not be done.
    fn taker(&self, share: Share, limit: usize) -> Option<AgentSlot> {
        let busy = self.iter().filter(|seat| !seat.held.is_empty()).count();
        let seats = self.iter().filter(|seat| seat.takes_tasks() && !seat.full);
        let seats = seats.filter(|seat| match share {
            Share::Join => true,
            _ => seat.held.is_empty() && busy < limit,
        });
        seats.min_by_key(|seat| seat.held.len()).map(|seat| seat.slot)
    }

    /// Whether parts wait for agents, and nothing goes before them: then who is at work gets nothing more to do.
    pub(super) fn parts_wait(&self, ledger: &mut Ledger, now: Nanos) -> bool {
        let waits =
            |ledger: &mut Ledger, id| ledger.next_share(id).is_some() && !ledger.is_outranked(id, now);
        ledger.divided().to_vec().into_iter().any(|id| waits(ledger, id))
    }

    /// Whether this answer of a life that holds a share of a task is that to its share, or not to be told from it.
    pub(super) fn is_of_its_share(done: &Done<'_>, task: &Task, lease: Lease) -> bool {
        let Some(wide) = task.wide.as_ref().filter(|_| done.verdict == Verdict::Succeeded) else {
            return true;
        };
        match ShareMark::decode(done.body) {
            Some((ShareMark::Part { at, .. }, _)) => wide.held_by(lease) == Some(at),
            Some((ShareMark::Join, _)) => task.lease == Some(lease),
            None => false,
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
                let totals: &mut KernelTotals = self.totals.kernels.entry((kernel, done.level)).or_default();
                totals.add(done, service_ns);
                let marked = ShareMark::decode(done.body);
                let (digest, result) = match marked {
                    Some((ShareMark::Part { digest, .. }, result)) => (digest, result),
                    _ => (0, &[][..]),
                };
                let result = (!result.is_empty()).then(|| String::from_utf8_lossy(result).into());
                let started = done.started.clamp(task.dispatched, now);
                PartEnd::Done { started, level: done.level, digest, result }
            }
            Verdict::Failed => PartEnd::Failed(text().into_owned()),
            Verdict::Cancelled => PartEnd::GivenUp,
            Verdict::Undivided => {
                self.divider.learn_in_vain(task);
                PartEnd::Undivided
            }
            // As a whole it says what is wrong.
            Verdict::Wrong => PartEnd::Undivided,
        };
        ledger.on_part(done.task, lease, end, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Incarnation;
    use crate::tasks::{TaskSpec, TaskState};

    fn task(class: u8) -> Task {
        let spec = TaskSpec { kernel: 1, class, ..TaskSpec::default() };
        Task::new(TaskId(1), spec, TaskState::Queued, 1, Nanos(0))
    }

    fn divider() -> Divider {
        Divider::new(WideRules { above: Duration::from_millis(5), falls_into_parts: |spec| spec.kernel == 1 })
    }

    fn in_parts(class: u8, each: u32) -> Task {
        let mut ledger = Ledger::new(Default::default());
        let id = ledger.submit(task(class).spec, Nanos(0)).expect("accepted");
        ledger.peek(Nanos(0));
        ledger.divide(id, 2, each, None, Nanos(0));
        ledger.get(id).expect("known").clone()
    }

    #[test]
    fn only_what_takes_long_and_finds_agents_is_divided() {
        for (class, idle, expected, each) in [
            (20, 2, Some(6e6), 1),
            (20, 2, Some(4e6), 0),
            (20, 1, Some(1e9), 0),
            (20, 4, Some(1e9), 1),
            (WIDE_CLASS, 2, None, 1),
            (WIDE_CLASS - 1, 2, None, 0),
        ] {
            assert_eq!(
                divider().parts_each(&task(class), idle, expected),
                each,
                "{class} {idle} {expected:?}"
            );
        }
        let mut divider = divider();
        let mut other = task(20);
        other.spec.kernel = 2;
        assert_eq!(divider.parts_each(&other, 2, Some(1e9)), 0);
        let (crashed, undivided) =
            (Task { deaths: (1, 0), ..task(20) }, Task { undivided: true, ..task(20) });
        assert!(divider.may_divide(&task(20)));
        assert!([crashed, undivided].iter().all(|task| !divider.may_divide(task)));
        divider.rules.above = Duration::ZERO;
        assert!(!divider.may_divide(&task(20)), "never, if somebody wants that");
    }

    #[test]
    fn an_answer_to_another_share_is_told_from_its_own() {
        let lease = |slot| Lease { slot: AgentSlot(slot), incarnation: Incarnation(1) };
        let mut ledger = Ledger::new(Default::default());
        let id = ledger.submit(task(24).spec, Nanos(0)).expect("accepted");
        ledger.peek(Nanos(0));
        let attempt = ledger.divide(id, 2, 1, None, Nanos(0));
        let is_own = |ledger: &Ledger, slot, mark: Option<ShareMark>, verdict| {
            let body = mark.map_or_else(Vec::new, ShareMark::encode);
            let (started, service_ns, flops, bytes) = (Nanos(0), 1, 0.0, 0.0);
            let (level, kept_input, counts) = (1, false, None);
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
                counts,
                body: &body,
            };
            Dispatcher::is_of_its_share(&done, ledger.get(id).expect("known"), lease(slot))
        };
        let part = |at| Some(ShareMark::Part { at, digest: 7 });
        let succeeded = Verdict::Succeeded;
        let share = |ledger: &Ledger| ledger.next_share(id).expect("something to do");
        for slot in [0, 1] {
            ledger.lend(id, share(&ledger), lease(slot));
        }
        assert!(is_own(&ledger, 1, part(1), succeeded) && is_own(&ledger, 1, part(0), Verdict::Failed));
        for other in [part(0), part(2), Some(ShareMark::Join), None] {
            assert!(!is_own(&ledger, 1, other, succeeded), "{other:?}");
        }
        for slot in [0, 1] {
            let end = PartEnd::Done { started: Nanos(1), level: 1, digest: 7, result: None };
            ledger.on_part(id, lease(slot), end, Nanos(2));
        }
        ledger.lend(id, share(&ledger), lease(1));
        assert!(is_own(&ledger, 1, Some(ShareMark::Join), succeeded), "all are done");
        for other in [part(1), None] {
            assert!(!is_own(&ledger, 1, other, succeeded), "{other:?}");
        }
    }

    /// A divider, after so many tasks that took so long each way; and the ways they went.
    fn lived(took_ms: [u64; 3], expected_ns: f64, tasks: usize) -> (Divider, Vec<u32>) {
        let mut divider = divider();
        let mut ways = Vec::new();
        for _ in 0..tasks {
            let each = divider.parts_each(&task(24), 2, Some(expected_ns));
            ways.push(each);
            let task = if each > 0 { in_parts(24, each) } else { task(24) };
            let way = EACH.iter().position(|way| *way == each).expect("one of them");
            divider.learn(&task, took_ms[way] * 1_000_000);
        }
        (divider, ways)
    }

    #[test]
    fn the_fastest_way_is_kept_and_the_others_looked_at_now_and_then() {
        for (took_ms, best) in [([50, 26, 30], 1), ([50, 30, 26], 4), ([50, 60, 70], 0)] {
            let (_, ways) = lived(took_ms, 5e7, 640);
            let others = ways[128..].iter().filter(|each| **each != best).count();
            assert_eq!(others, 512 / OTHER_WAY_EVERY as usize, "{took_ms:?}: {ways:?}");
            assert!(EACH.iter().all(|each| ways[128..].contains(each)), "every other one: {ways:?}");
        }
        let (_, ways) = lived([20, 11, 1], 2e7, 640);
        assert!(!ways.contains(&4), "parts would be too small: {ways:?}");
    }

    #[test]
    fn what_cannot_be_divided_is_not_tried_again_soon() {
        let mut divider = divider();
        assert_eq!(divider.parts_each(&task(24), 2, None), 1);
        divider.learn_in_vain(&task(24));
        divider.learn(&task(24), 20_000_000);
        let again = (0..320).filter(|_| divider.parts_each(&task(24), 2, Some(2e7)) > 0).count();
        assert_eq!(again, 320 / OTHER_WAY_EVERY as usize);
        divider.learn(&in_parts(24, 1), 10_000_000);
        assert_eq!(divider.parts_each(&task(24), 2, Some(2e7)), 1, "it can by now");
    }
}
