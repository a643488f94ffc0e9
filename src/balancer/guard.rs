//! The twin: the safe rule, run through virtual queues beside the live one. When the live policy has not been better
//! than its twin for a while, the safe rule takes over for a while.
//!
//! The twin's tasks take what the model expects, so it is worth as much as the model is: it is believed only while
//! what the model expects adds up to what tasks really took. While the safe rule is live the twin predicts the very
//! policy that runs, which shows whether the twin was right; if it was not, it is not believed for a while.

use super::policy::SLOTS;

/// Tasks from one look to the next.
const EVERY: u32 = 500;
/// Tasks before the first look: what a cold model says of queues is worth nothing.
const NOT_BEFORE: u64 = 5_000;
/// The live policy is worse when it takes so many times what the twin takes.
const WORSE: f64 = 1.10;
/// Looks in a row that must say so.
const LOOKS: u32 = 3;
/// The model is believed while expected times add up to the true ones within this share.
const CALIBRATED: f64 = 0.10;
/// Tasks by the safe rule after the first alarm; twice as many after each further one, up to a bound.
const SAFE_TASKS: u64 = 5_000;
const SAFE_TASKS_MAX: u64 = 320_000;
/// A twin that predicts its own policy further off than this is not believed.
const ASTRAY: f64 = 1.25;

/// One virtual agent: when the first and when the last of at most two tasks end, ns.
#[derive(Clone, Copy, Debug, Default)]
struct Virtual {
    ends: [f64; 2],
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Guard {
    agents: Vec<Virtual>,
    /// Sums since the last look: time of live tasks, of the twin's, expected and true time on agents, ns.
    live_ns: f64,
    twin_ns: f64,
    expected_ns: f64,
    true_ns: f64,
    finished: u32,
    admitted: u32,
    seen: u64,
    bad_looks: u32,
    safe_left: u64,
    safe_next: u64,
    distrusted_left: u64,
    /// Tasks that went by the safe rule because of it.
    safe_tasks: u64,
    alarms: u32,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            agents: vec![Virtual::default(); SLOTS],
            live_ns: 0.0,
            twin_ns: 0.0,
            expected_ns: 0.0,
            true_ns: 0.0,
            finished: 0,
            admitted: 0,
            seen: 0,
            bad_looks: 0,
            safe_left: 0,
            safe_next: SAFE_TASKS,
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

    /// A task came; the twin places it: among `agents` (index, expected time there, ns) on the one that holds least.
    /// All are full when each holds two; then it waits for the first that has room, which is JBSQ(2).
    pub fn admit(&mut self, now_ns: u64, agents: impl Iterator<Item = (usize, f64)>) {
        let now = now_ns as f64;
        let room = |agent: &Virtual| {
            let held = agent.ends.iter().filter(|end| **end > now).count();
            (held.min(1) as f64, if held == 2 { agent.ends[0] } else { now })
        };
        let best = agents.min_by(|(a, _), (b, _)| {
            let ((a_held, a_room), (b_held, b_room)) = (room(&self.agents[*a]), room(&self.agents[*b]));
            a_room.total_cmp(&b_room).then(a_held.total_cmp(&b_held))
        });
        let Some((at, time)) = best else { return };
        let agent = &mut self.agents[at];
        let end = agent.ends[1].max(now) + time;
        agent.ends = [agent.ends[1], end];
        self.twin_ns += end - now;
        self.admitted += 1;
    }

    /// A task came back after `total_ns`; on the agent it took `true_ns`, of which `expected_ns` had been expected.
    pub fn finished(&mut self, total_ns: f64, true_ns: f64, expected_ns: f64) {
        self.live_ns += total_ns;
        // One outlier of a service time says nothing of the model.
        self.true_ns += true_ns.min(4.0 * expected_ns);
        self.expected_ns += expected_ns;
        self.finished += 1;
        self.seen += 1;
        self.distrusted_left = self.distrusted_left.saturating_sub(1);
        if self.safe_left > 0 {
            self.safe_left -= 1;
            self.safe_tasks += 1;
        }
        if self.finished >= EVERY {
            self.look();
        }
    }

    fn look(&mut self) {
        let calibrated = (self.expected_ns / self.true_ns - 1.0).abs() < CALIBRATED;
        // Both are means: the twin hears of a task when it is placed, which may be in another look than its end.
        let ratio = self.live_ns / f64::from(self.finished) / (self.twin_ns / f64::from(self.admitted));
        let heard = self.admitted >= EVERY / 2;
        (self.live_ns, self.twin_ns, self.expected_ns, self.true_ns) = (0.0, 0.0, 0.0, 0.0);
        (self.finished, self.admitted) = (0, 0);
        if !heard || !calibrated || self.seen < NOT_BEFORE || self.distrusted_left > 0 {
            self.bad_looks = 0;
            return;
        }
        let limit = if self.is_safe() { ASTRAY } else { WORSE };
        self.bad_looks = if ratio > limit { self.bad_looks + 1 } else { 0 };
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
            self.safe_next = (2 * self.safe_next).min(SAFE_TASKS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One agent, a task every 100 ns that takes 50; the live policy takes `live_ns` for each.
    fn feed(guard: &mut Guard, tasks: u64, live_ns: f64, true_ns: f64) {
        for _ in 0..tasks {
            guard.admit(guard.seen * 100, std::iter::once((3, 50.0)));
            guard.finished(live_ns, true_ns, 50.0);
        }
    }

    #[test]
    fn a_policy_that_is_worse_than_its_twin_gives_way_and_one_that_is_not_does_not() {
        let mut guard = Guard::default();
        feed(&mut guard, 20_000, 54.0, 50.0);
        assert_eq!(guard.interventions(), (0, 0), "a little worse is no alarm");
        feed(&mut guard, 2_000, 70.0, 50.0);
        assert!(guard.is_safe());
        feed(&mut guard, SAFE_TASKS + 500, 50.0, 50.0);
        assert!(!guard.is_safe(), "it is tried again");
        assert_eq!(guard.interventions().0, 1);
    }

    #[test]
    fn a_twin_of_a_wrong_model_raises_no_alarm() {
        let mut guard = Guard::default();
        feed(&mut guard, 50_000, 500.0, 80.0);
        assert_eq!(guard.interventions(), (0, 0));
    }

    #[test]
    fn a_twin_that_cannot_predict_its_own_policy_is_not_believed() {
        let mut guard = Guard::default();
        feed(&mut guard, 10_000, 70.0, 50.0);
        assert!(guard.interventions().0 >= 1);
        assert!(!guard.is_safe(), "the safe rule took as long, so the twin was wrong");
    }

    #[test]
    fn the_twin_waits_for_the_first_room_of_two_places() {
        let mut guard = Guard::default();
        for _ in 0..5 {
            guard.admit(1000, [(0, 100.0), (1, 300.0)].into_iter());
        }
        // Each agent takes two; the fifth waits for the first place, which the quick one frees.
        let quick = [100.0, 200.0, 300.0];
        let slow = [300.0, 600.0];
        assert_eq!(guard.twin_ns, quick.iter().chain(&slow).sum::<f64>());
    }
}
