//! When a dead agent lives again: back-off and budget. Pure: time in, decision out.
//!
//! The first restart is immediate. A life that achieved nothing (no task done, dead within a second)
//! doubles the pause before the next: 0, 10, 20, 40 ms … up to `agents.fault.backoff_max_s`, each
//! with 20 % of jitter. A kill from outside counts only at the very birth. More than `agents.fault.restart_limit` such lives within
//! `agents.fault.restart_window_s` bench the agent for [`BENCH`]. Lives that achieved something do
//! not count: an agent that somebody kills again and again while it works is not in a crash loop.

use crate::base::clock::Nanos;
use crate::base::prng::SplitMix64;
use std::collections::VecDeque;
use std::time::Duration;

/// How long an agent in a crash loop is left alone.
pub const BENCH: Duration = Duration::from_secs(30);
/// A life that lasted so long achieved something.
const FRUITFUL: Duration = Duration::from_secs(1);
/// Who is killed from outside after so long was not killed for being started.
const BORN: Duration = Duration::from_millis(20);
/// First pause after a barren life.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Limits from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct RestartLimits {
    /// Barren lives allowed in a window.
    pub limit: u32,
    /// The window.
    pub window: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
}

/// What to do about a dead agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it at this time.
    At(Nanos),
    /// It is in a crash loop: leave it alone until this time.
    Bench(Nanos),
}

/// The record of one agent.
#[derive(Clone, Debug)]
pub struct RestartRecord {
    barren: VecDeque<Nanos>,
    in_a_row: u32,
    jitter: SplitMix64,
}

impl RestartRecord {
    /// No death yet.
    pub fn new(seed: u64) -> Self {
        Self { barren: VecDeque::new(), in_a_row: 0, jitter: SplitMix64::new(seed) }
    }

    /// A life ended that began at `born`. `worked`: it did a task. `from_outside`: somebody killed it,
    /// which says nothing about the agent unless it comes at its very birth.
    pub fn on_death(
        &mut self,
        born: Nanos,
        worked: bool,
        from_outside: bool,
        now: Nanos,
        limits: &RestartLimits,
    ) -> Decision {
        let enough = if from_outside { BORN } else { FRUITFUL };
        if worked || now.since(born) >= enough {
            self.in_a_row = 0;
            return Decision::At(now);
        }
        self.in_a_row += 1;
        self.barren.push_back(now);
        while self.barren.front().is_some_and(|&then| now.since(then) > limits.window) {
            self.barren.pop_front();
        }
        if self.barren.len() as u64 > u64::from(limits.limit) {
            self.barren.clear();
            return Decision::Bench(now.plus(BENCH));
        }
        if self.in_a_row == 1 {
            return Decision::At(now);
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.in_a_row - 2).min(20)).min(limits.backoff_max);
        Decision::At(now.plus(pause.mul_f64(0.8 + 0.4 * self.jitter.next_f64())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RestartLimits =
        RestartLimits { limit: 5, window: Duration::from_secs(10), backoff_max: Duration::from_secs(5) };

    fn pause(decision: Decision, now: Nanos) -> Duration {
        match decision {
            Decision::At(when) => when.since(now),
            Decision::Bench(_) => panic!("benched"),
        }
    }

    #[test]
    fn barren_lives_back_off_and_end_on_the_bench() {
        let mut record = RestartRecord::new(1);
        let mut now = Nanos(1_000_000_000);
        let mut last = Duration::ZERO;
        for death in 0..5 {
            let next = pause(record.on_death(now, false, false, now, &LIMITS), now);
            assert!(death == 0 && next.is_zero() || next > last, "{next:?} after {last:?}");
            last = next;
            now = now.plus(next + Duration::from_millis(1));
        }
        assert_eq!(record.on_death(now, false, false, now, &LIMITS), Decision::Bench(now.plus(BENCH)));
        let later = now.plus(BENCH);
        assert!(
            matches!(record.on_death(later, false, false, later, &LIMITS), Decision::At(_)),
            "another chance"
        );
    }

    #[test]
    fn fruitful_lives_restart_at_once_however_often() {
        let mut record = RestartRecord::new(1);
        for i in 0..100u64 {
            let now = Nanos(i * 1_000_000);
            assert_eq!(record.on_death(now, true, false, now, &LIMITS), Decision::At(now));
        }
        let (born, now) = (Nanos(0), Nanos(2_000_000_000));
        assert_eq!(record.on_death(born, false, false, now, &LIMITS), Decision::At(now));
    }

    #[test]
    fn kills_from_outside_are_no_crash_loop() {
        let mut record = RestartRecord::new(1);
        for i in 1..100u64 {
            let (born, now) = (Nanos(i * 100_000_000), Nanos(i * 100_000_000 + 50_000_000));
            assert_eq!(record.on_death(born, false, true, now, &LIMITS), Decision::At(now));
        }
    }

    #[test]
    fn pauses_have_a_ceiling() {
        let mut record = RestartRecord::new(1);
        let limits = RestartLimits { limit: 1000, ..LIMITS };
        let mut now = Nanos(0);
        for _ in 0..40 {
            now = now.plus(Duration::from_secs(20));
            let next = pause(record.on_death(now, false, false, now, &limits), now);
            assert!(next <= Duration::from_secs(6), "{next:?}");
        }
    }
}
