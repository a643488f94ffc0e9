//! Second attempts: a task that takes far longer than its like is sent to another agent as well, and the first answer counts
//! (J. Dean and L. A. Barroso, "The Tail at Scale", CACM 56, 2013: hedged requests; they send the second one when the first
//! has been out longer than 95 % of all, which keeps the additional load near 5 %).
//!
//! A task is a straggler when it has run for more than `LATE` times what 95 % of its kernel and size class take, and for more
//! than `tasks.hedge_after_s`. A second attempt is sent when
//! 1. nothing waits, and an agent has nothing to do: hedging takes no capacity from anybody;
//! 2. the budget allows it: `tasks.hedge_percent` of the tasks that were sent, and `BURST` saved up at most;
//! 3. it stands out: when most of what runs is late, it is the kernel or the host that became slow, and a second attempt would be
//!    slow, too;
//! 4. the task never had a second attempt, no agent crashed over it, and its output is not about to appear.
//!
//! What waits behind a task that takes longer than anybody expected is late in the same way, and goes elsewhere in the same way.
//! Nobody has worked at it yet, so neither 2 nor 3 holds it back.
//!
//! Every kernel computes the same from the same inputs and shows nothing before its output is renamed, so any task may run
//! twice, but for those whose output replaces an input. An agent sees such a task (only it may look at files) and declines.
//! What happens when attempts end is in [`Ledger`] and `results`.

use super::dispatch::{CostModel, Dispatcher, Posted, Seat};
use super::ledger::Ledger;
use super::{Task, TaskId};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentSlot, Attempt};
use crate::messaging::envelope::Share;
use crate::shm::board::CLASSES;
use std::time::Duration;

/// So many times what is usual is far too long.
const LATE: f64 = 2.0;
/// Tasks of a kind that must have ended before anything is usual.
const SETTLED: u32 = 8;
/// Second attempts that a quiet time can save up.
const BURST: f64 = 8.0;
/// How far one task moves the estimate, as a logarithm.
const STEP: f32 = 0.2;
/// The share of tasks that take at most the estimate.
const QUANTILE: f32 = 0.95;

/// How often and how early second attempts are sent.
#[derive(Clone, Copy, Debug)]
pub struct HedgeRules {
    /// Second attempts per task; 0: none at all.
    pub share: f64,
    /// No task is a straggler before it ran for so long.
    pub after: Duration,
}

/// Second attempts that may be sent: a bucket that every task fills a little.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    rules: HedgeRules,
    saved: f64,
}

impl Budget {
    /// The first straggler needs no history.
    pub(super) fn new(rules: HedgeRules) -> Self {
        Self { rules, saved: if rules.share > 0.0 { 1.0 } else { 0.0 } }
    }

    /// A task was sent for the first time, or again after it had come to nothing.
    pub(super) fn earn(&mut self) {
        self.saved = (self.saved + self.rules.share).min(BURST);
    }

    fn allows_one(&self) -> bool {
        self.saved >= 1.0
    }

    fn spend(&mut self) {
        self.saved -= 1.0;
    }
}

/// The time that [`QUANTILE`] of the tasks of one kind stay below: a step up or down for each task, of sizes that balance there
/// (H. Robbins and S. Monro, "A stochastic approximation method", 1951), on a logarithmic scale. Constant memory, and no single
/// task counts for more than a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usual {
    high_ns: f32,
    seen: u32,
}

impl Usual {
    /// A task of this kind took so long.
    pub(super) fn learn(&mut self, took_ns: f32) {
        self.seen = self.seen.saturating_add(1);
        if self.seen <= SETTLED {
            self.high_ns = self.high_ns.max(took_ns);
        } else {
            let step = if took_ns > self.high_ns { QUANTILE } else { QUANTILE - 1.0 };
            self.high_ns *= (STEP * step).exp();
        }
    }

    /// From when on one of them is late.
    fn late_ns(&self) -> Option<f64> {
        (self.seen >= SETTLED).then(|| LATE * f64::from(self.high_ns))
    }
}

/// A second attempt that was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hedged {
    /// Of which task.
    pub task: TaskId,
    /// Who is late.
    pub from: AgentSlot,
    /// Who has it as well.
    pub to: AgentSlot,
    /// How long it had run, and how long such a task may, ns.
    pub ran_ns: u64,
    /// See `ran_ns`.
    pub late_ns: u64,
}

/// A task at an agent, and when it is late.
struct Running {
    task: TaskId,
    since: Nanos,
    late_at: Nanos,
    /// Another one is before it there.
    waits: bool,
}

impl Dispatcher {
    /// The tasks of an agent, as far as they can be hedged and are known well enough.
    fn held<'a>(&'a self, seat: &'a Seat, ledger: &'a Ledger) -> impl Iterator<Item = Running> + 'a {
        let held = seat.held.iter().enumerate().filter(|_| seat.takes_tasks());
        held.filter_map(|(at, held)| {
            let task = ledger.get(held.task)?;
            if task.leased != held.attempt || task.wide.is_some() {
                return None;
            }
            let of_kind = usize::from(task.spec.kernel) * CLASSES + usize::from(task.spec.class);
            let late_ns = self.usual.get(of_kind)?.late_ns()?.max(self.budget.rules.after.as_nanos() as f64);
            // An agent that was sent a task and has not begun with it is late, too.
            let since = seat.busy_since.max(task.dispatched);
            let late_at = Nanos(since.0.saturating_add(late_ns as u64));
            Some(Running { task: task.id, since, late_at, waits: at > 0 })
        })
    }

    /// The first task of an agent that may be sent elsewhere as well: one that it is at only if that `may_cost`.
    fn movable(&self, seat: &Seat, ledger: &Ledger, may_cost: bool) -> Option<Running> {
        let may = |running: &Running| ledger.get(running.task).is_some_and(Task::may_be_hedged);
        self.held(seat, ledger).find(|running| (running.waits || may_cost) && may(running))
    }

    fn idle(&self) -> impl Iterator<Item = &Seat> {
        self.iter().filter(|seat| seat.takes_tasks() && seat.held.is_empty())
    }

    /// Whether there is room for second attempts.
    fn may_hedge(&self, ledger: &Ledger, limit: usize) -> bool {
        let busy = self.iter().filter(|seat| !seat.held.is_empty()).count();
        self.budget.rules.share > 0.0
            && ledger.queued() == 0
            && busy > 0
            && busy < limit
            && self.idle().next().is_some()
    }

    /// When the next straggler shows, if nothing changes; `None` when nobody could take a second attempt.
    pub fn next_straggler(&self, ledger: &Ledger, limit: usize) -> Option<Nanos> {
        if !self.may_hedge(ledger, limit) {
            return None;
        }
        let may_cost = self.budget.allows_one();
        let movable = self.iter().filter_map(|seat| self.movable(seat, ledger, may_cost));
        movable.map(|running| running.late_at).min()
    }

    /// Sends at most one second attempt; `limit` is how many agents may be busy at once. Call it every few milliseconds.
    pub fn hedge(
        &mut self,
        ledger: &mut Ledger,
        costs: &dyn CostModel,
        limit: usize,
        now: Nanos,
    ) -> Option<Hedged> {
        if !self.may_hedge(ledger, limit) {
            return None;
        }
        let (mut late, mut busy) = (0, 0);
        for first in self.iter().filter_map(|seat| self.held(seat, ledger).find(|running| !running.waits)) {
            busy += 1;
            late += usize::from(first.late_at <= now);
        }
        let may_cost = self.budget.allows_one() && (late <= 1 || 2 * late <= busy);
        // Who is at its output, or has just said something, is not late any more; in this order.
        let answers = |seat: &Seat, id| {
            let attempt = ledger.get(id).map_or(Attempt(0), |task| task.leased);
            seat.link.is_committing(id, attempt) || seat.link.is_ready()
        };
        let movable = self.iter().filter_map(|seat| Some((seat, self.movable(seat, ledger, may_cost)?)));
        let late = movable.filter(|(seat, running)| running.late_at <= now && !answers(seat, running.task));
        let (seat, running) = late.min_by_key(|(_, running)| running.late_at)?;
        let (from, Running { task: id, since, late_at, waits }) = (seat.slot, running);
        let (kernel, class) = ledger.get(id).map(|task| (task.spec.kernel, task.spec.class))?;
        let cost = |seat: &Seat| costs.expected_ns(kernel, class, seat.slot).unwrap_or(f64::INFINITY);
        let to = self.idle().min_by(|a, b| cost(a).total_cmp(&cost(b)))?.slot;
        let late_ns = late_at.0 - since.0;
        let Posted::Sent(lease) = self.post(ledger, id, Share::Beside, to, late_ns as f64 / LATE, now) else {
            return None;
        };
        ledger.hedge(id, lease, now);
        if !waits {
            self.budget.spend();
        }
        Some(Hedged { task: id, from, to, ran_ns: now.0.saturating_sub(since.0), late_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;

    #[test]
    fn the_budget_holds_at_any_moment_and_saves_up_little() {
        let mut luck = SplitMix64::new(3);
        let rules = HedgeRules { share: 0.05, after: Duration::ZERO };
        let mut budget = Budget::new(rules);
        let (mut tasks, mut hedges) = (0, 0);
        for _ in 0..100_000 {
            // Now and then stragglers come in crowds.
            if luck.below(10) > 0 {
                budget.earn();
                tasks += 1;
            } else if budget.allows_one() {
                budget.spend();
                hedges += 1;
            }
            assert!(f64::from(hedges) <= 1.0 + rules.share * f64::from(tasks) + 1e-6, "{hedges} of {tasks}");
        }
        assert!(
            f64::from(hedges) > 0.04 * f64::from(tasks),
            "what is allowed can be had: {hedges} of {tasks}"
        );
        (0..1_000_000).for_each(|_| budget.earn());
        let burst = (0..100).take_while(|_| budget.allows_one().then(|| budget.spend()).is_some()).count();
        assert_eq!(burst, BURST as usize);
        let mut never = Budget::new(HedgeRules { share: 0.0, ..rules });
        (0..1000).for_each(|_| never.earn());
        assert!(!never.allows_one());
    }

    #[test]
    fn what_is_usual_is_the_high_quantile_whatever_the_outliers() {
        for seed in 0..20 {
            let mut luck = SplitMix64::new(seed);
            let mut usual = Usual::default();
            // Heavy tails: one in a hundred takes a thousand times as long.
            let mut took = || match luck.below(100) {
                0 => 1e9,
                _ => 1e6 * (1.0 + luck.next_f64()) as f32,
            };
            assert_eq!(usual.late_ns(), None, "nothing is known");
            let mut beyond = 0;
            for at in 0..20_000 {
                let time = took();
                beyond += usize::from(at >= 2000 && time > usual.high_ns);
                usual.learn(time);
            }
            let share = beyond as f64 / 18_000.0;
            assert!((0.03..=0.07).contains(&share), "seed {seed}: {share} are beyond");
            assert!(usual.late_ns().is_some_and(|late| late < 2.0 * LATE * 2e6), "seed {seed}: {usual:?}");
        }
    }

    #[test]
    fn a_kind_that_became_slow_is_soon_not_late_any_more() {
        let mut usual = Usual::default();
        (0..100).for_each(|_| usual.learn(1e6));
        let late_until = (0..100).position(|_| {
            usual.learn(1e7);
            usual.late_ns().is_some_and(|late| late > 1e7)
        });
        assert!(late_until.is_some_and(|tasks| tasks < 16), "{late_until:?}");
    }
}
