//! The twin: the safe rule, run through virtual queues beside the live one. When the live policy has not been better
//! than its twin for a while, the safe rule takes over for a while.
//!
//! The twin's tasks take what the model expects, and the hand-overs what they were seen to take, so it is worth as much as
//! these are: it is believed only while what was foreseen of live tasks at their placement, by the same means, meets their
//! live mean. While the safe rule is live the twin predicts the very policy that runs, which shows whether the twin was
//! right; if it was not, it is not believed for a while.

use super::policy::SLOTS;

/// Tasks from one look to the next; where they are few, time, and as many tasks as a mean needs.
const EVERY: u32 = 500;
const EVERY_NS: u64 = 250_000_000;
const AT_LEAST: u32 = 50;
/// Looks before the first that counts: what a cold model says of queues is worth nothing.
const NOT_BEFORE: u32 = 10;
/// The live policy is worse when it takes so many times what the twin takes.
const WORSE: f64 = 1.10;
/// Looks in a row that must say so.
const LOOKS: u32 = 3;
/// The twin is believed while the mean foreseen is within this share of the live one.
const CALIBRATED: f64 = 0.05;
/// Weight of the newest look in these two means.
const NEWEST: f64 = 0.25;
/// Looks that the safe rule gets after the first alarm; twice as many after each further one, up to a bound.
const SAFE_LOOKS: u32 = 10;
const SAFE_LOOKS_MAX: u32 = 640;
/// A twin that predicts its own policy further off than this is not believed.
const ASTRAY: f64 = 1.25;
/// Weight of a hand-over in the mean of their times.
const OVERHEAD_RATE: f64 = 0.02;

/// One virtual agent: when the first and when the last of at most two tasks end, ns.
#[derive(Clone, Copy, Debug, Default)]
struct Virtual {
    ends: [f64; 2],
}

/// Sums since the last look, ns, and of how many tasks.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    live_ns: f64,
    foreseen_ns: f64,
    twin_ns: f64,
    finished: u32,
    admitted: u32,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Guard {
    agents: Vec<Virtual>,
    sums: Sums,
    /// Means over the last looks of what live tasks took, and of what had been foreseen, ns.
    live_ns: f64,
    foreseen_ns: f64,
    /// What the hand-overs of one task take.
    overhead_ns: f64,
    looked_ns: u64,
    looks: u32,
    bad_looks: u32,
    safe_left: u32,
    safe_next: u32,
    distrusted_left: u32,
    /// Tasks that went by the safe rule because of it.
    safe_tasks: u64,
    alarms: u32,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            agents: vec![Virtual::default(); SLOTS],
            sums: Sums::default(),
            live_ns: 0.0,
            foreseen_ns: 0.0,
            overhead_ns: 0.0,
            looked_ns: 0,
            looks: 0,
            bad_looks: 0,
            safe_left: 0,
            safe_next: SAFE_LOOKS,
            distrusted_left: 0,
            safe_tasks: 0,
            alarms: 0,
        }
    }
}

impl Guard {
    /// Whether the safe rule decides at the moment.
    pub fn is_safe(&self) -> bool {
        self.safe_left > 0
    }

    /// How often it took over, and for how many tasks in all.
    pub fn interventions(&self) -> (u32, u64) {
        (self.alarms, self.safe_tasks)
    }

    /// What the hand-overs of one task take, ns, as far as known.
    pub fn overhead_ns(&self) -> f64 {
        self.overhead_ns
    }

    /// A task was placed that had been queued at `queued_ns`; `foreseen_ns` is what it was thought to take from then to its
    /// end. The twin places it: among `agents` (index, expected time there, ns) on the one that holds least, with at most
    /// `limit` of them busy. All are full when each holds two; then it waits for the first that has room, which is JBSQ(2).
    pub fn admit(
        &mut self,
        queued_ns: u64,
        foreseen_ns: f64,
        limit: usize,
        agents: impl Iterator<Item = (usize, f64)> + Clone,
    ) {
        let now = queued_ns as f64;
        let is_busy = |at: usize| self.agents[at].ends[1] > now;
        let may_begin = agents.clone().filter(|(at, _)| is_busy(*at)).count() < limit;
        let room = |agent: &Virtual| {
            let held = agent.ends.iter().filter(|end| **end > now).count();
            (held.min(1) as f64, if held == 2 { agent.ends[0] } else { now })
        };
        let best = agents.filter(|(at, _)| may_begin || is_busy(*at)).min_by(|(a, _), (b, _)| {
            let ((a_held, a_room), (b_held, b_room)) = (room(&self.agents[*a]), room(&self.agents[*b]));
            a_room.total_cmp(&b_room).then(a_held.total_cmp(&b_held))
        });
        let Some((at, time)) = best else { return };
        let agent = &mut self.agents[at];
        let end = agent.ends[1].max(now) + time;
        agent.ends = [agent.ends[1], end];
        self.sums.twin_ns += end - now + self.overhead_ns;
        self.sums.foreseen_ns += foreseen_ns;
        self.sums.admitted += 1;
    }

    /// An agent is at something else, which nobody has placed, for so long: the twin has it there, too.
    pub fn occupied(&mut self, at: usize, time_ns: f64, now_ns: u64) {
        let agent = &mut self.agents[at];
        agent.ends = [agent.ends[1], agent.ends[1].max(now_ns as f64) + time_ns];
    }

    /// A task came back after `total_ns`.
    pub fn finished(&mut self, total_ns: f64, overhead_ns: Option<f64>, now_ns: u64) {
        if let Some(overhead_ns) = overhead_ns {
            let seen = overhead_ns.clamp(0.0, 1e9);
            // One that met a page fault or a sleeping host says nothing of the others.
            let seen = if self.overhead_ns > 0.0 { seen.min(8.0 * self.overhead_ns) } else { seen };
            let rate = if self.overhead_ns > 0.0 { OVERHEAD_RATE } else { 1.0 };
            self.overhead_ns += rate * (seen - self.overhead_ns);
        }
        self.sums.live_ns += total_ns;
        self.sums.finished += 1;
        self.safe_tasks += u64::from(self.is_safe());
        if self.looked_ns == 0 {
            self.looked_ns = now_ns;
        }
        let is_time = now_ns.saturating_sub(self.looked_ns) >= EVERY_NS && self.sums.finished >= AT_LEAST;
        if self.sums.finished >= EVERY || is_time {
            self.looked_ns = now_ns;
            self.look();
        }
    }

    fn look(&mut self) {
        let sums = std::mem::take(&mut self.sums);
        self.looks = self.looks.saturating_add(1);
        self.safe_left = self.safe_left.saturating_sub(1);
        self.distrusted_left = self.distrusted_left.saturating_sub(1);
        // All are means: the twin hears of a task when it is placed, which may be in another look than its end.
        let (live, admitted) = (sums.live_ns / f64::from(sums.finished), f64::from(sums.admitted));
        if sums.admitted < sums.finished / 2 {
            self.bad_looks = 0;
            return;
        }
        let newest = if self.live_ns == 0.0 { 1.0 } else { NEWEST };
        self.live_ns += newest * (live - self.live_ns);
        self.foreseen_ns += newest * (sums.foreseen_ns / admitted - self.foreseen_ns);
        let calibrated = (self.foreseen_ns / self.live_ns - 1.0).abs() < CALIBRATED;
        if !calibrated || self.looks <= NOT_BEFORE || self.distrusted_left > 0 {
            self.bad_looks = 0;
            return;
        }
        let limit = if self.is_safe() { ASTRAY } else { WORSE };
        self.bad_looks = if live / (sums.twin_ns / admitted) > limit { self.bad_looks + 1 } else { 0 };
        if self.bad_looks < LOOKS {
            return;
        }
        self.bad_looks = 0;
        if self.is_safe() {
            // The live policy is the twin's own, and the twin is better still: it is no measure.
            self.safe_left = 0;
            self.distrusted_left = 2 * self.safe_next;
        } else {
            self.alarms += 1;
            self.safe_left = self.safe_next;
            self.safe_next = (2 * self.safe_next).min(SAFE_LOOKS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One agent, a task every `gap_ns` that takes 50 and was foreseen to take `foreseen_ns`; the live policy takes
    /// `live_ns` for each.
    fn feed(guard: &mut Guard, tasks: u32, gap_ns: u64, live_ns: f64, foreseen_ns: f64) {
        let start = guard.looked_ns.max(1);
        for turn in 0..u64::from(tasks) {
            let now = start + (turn + 1) * gap_ns;
            guard.admit(now, foreseen_ns, 1, std::iter::once((3, 50.0)));
            guard.finished(live_ns, None, now);
        }
    }

    #[test]
    fn a_policy_that_is_worse_than_its_twin_gives_way_and_one_that_is_not_does_not() {
        let mut guard = Guard::default();
        feed(&mut guard, 20_000, 100, 54.0, 54.0);
        assert_eq!(guard.interventions(), (0, 0), "a little worse is no alarm");
        feed(&mut guard, 2_000, 100, 70.0, 70.0);
        assert!(guard.is_safe());
        feed(&mut guard, SAFE_LOOKS * EVERY, 100, 50.0, 50.0);
        assert!(!guard.is_safe(), "it is tried again");
        assert_eq!(guard.interventions().0, 1);
    }

    #[test]
    fn slow_tasks_are_looked_at_by_time() {
        let mut guard = Guard::default();
        // Two hundred a second: within five seconds, not after five thousand tasks.
        feed(&mut guard, 1_000, 5_000_000, 70.0, 70.0);
        assert_eq!(guard.interventions().0, 1);
    }

    #[test]
    fn what_waits_for_an_agent_that_is_at_something_else_waits_in_the_twin_too() {
        let alarms = |is_told: bool| {
            let mut guard = Guard::default();
            for turn in 1..20_000u64 {
                let now = turn * 1000;
                if is_told {
                    guard.occupied(3, 200.0, now);
                }
                guard.admit(now, 250.0, 1, std::iter::once((3, 50.0)));
                guard.finished(250.0, None, now);
            }
            guard.interventions().0
        };
        assert_eq!(alarms(true), 0);
        assert!(alarms(false) > 0);
    }

    #[test]
    fn a_twin_of_a_wrong_model_raises_no_alarm() {
        let mut guard = Guard::default();
        feed(&mut guard, 50_000, 100, 500.0, 470.0);
        assert_eq!(guard.interventions(), (0, 0));
    }

    #[test]
    fn what_hand_overs_take_is_no_fault_of_the_policy() {
        let (mut told, mut untold) = (Guard::default(), Guard::default());
        for turn in 1..20_000u64 {
            for (guard, overhead) in [(&mut told, Some(30.0)), (&mut untold, None)] {
                guard.admit(turn * 100, 80.0, 1, std::iter::once((3, 50.0)));
                guard.finished(80.0, overhead, turn * 100);
            }
        }
        assert_eq!((told.interventions().0, told.overhead_ns()), (0, 30.0));
        assert!(untold.interventions().0 > 0);
    }

    #[test]
    fn a_twin_that_cannot_predict_its_own_policy_is_not_believed() {
        let mut guard = Guard::default();
        feed(&mut guard, 10_000, 100, 70.0, 70.0);
        assert!(guard.interventions().0 >= 1);
        assert!(!guard.is_safe(), "the safe rule took as long, so the twin was wrong");
    }

    #[test]
    fn the_twin_waits_for_the_first_room_of_two_places_and_keeps_to_the_limit() {
        let mut guard = Guard::default();
        let two = [(0, 100.0), (1, 300.0)];
        for _ in 0..5 {
            guard.admit(1000, 0.0, 2, two.into_iter());
        }
        // Each agent takes two; the fifth waits for the first place, which the quick one frees.
        let quick = [100.0, 200.0, 300.0];
        let slow = [300.0, 600.0];
        assert_eq!(guard.sums.twin_ns, quick.iter().chain(&slow).sum::<f64>());
        let mut guard = Guard::default();
        for _ in 0..2 {
            guard.admit(1000, 0.0, 1, two.into_iter());
        }
        assert_eq!(guard.sums.twin_ns, 100.0 + 200.0, "one of two at work");
    }
}
