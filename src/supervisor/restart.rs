//! When a dead agent lives again: back-off and budget. Pure: time in, decision out.
//!
//! The first restart is immediate; each further death doubles the pause: 0, 10, 20, 40 ms … up to
//! `agents.fault.backoff_max_s`, with 20 % of jitter either way. A life of [`HEALTHY`] starts the count anew. More than
//! `agents.fault.restart_limit` deaths within `agents.fault.restart_window_s` bench the agent for [`BENCH`].
//!
//! What counts are deaths that say something about the agent: it crashed, it hung and was killed for it, the kernel killed it for
//! want of memory, it died at its very birth. A kill from outside in the middle of a life says nothing: an agent that somebody kills again and again
//! is not in a crash loop, and an orderly end is no death at all.

use crate::base::clock::Nanos;
use crate::base::prng::SplitMix64;
use std::collections::VecDeque;
use std::time::Duration;

/// How long an agent in a crash loop is left alone.
pub const BENCH: Duration = Duration::from_secs(30);
/// A life that lasted so long clears its record.
pub const HEALTHY: Duration = Duration::from_secs(60);
/// Who is killed from outside after so long was not killed for being started.
pub(super) const BORN: Duration = Duration::from_millis(20);
/// First pause after the immediate restart.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Limits from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct RestartLimits {
    /// Deaths allowed in a window.
    pub limit: u32,
    /// The window.
    pub window: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
}

/// Whose doing a death was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// The agent's: a crash, a hang, a start that failed.
    ItsOwn,
    /// Somebody's outside, or a request's.
    Outside,
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
    deaths: VecDeque<Nanos>,
    in_a_row: u32,
    jitter: SplitMix64,
}

impl RestartRecord {
    /// No death yet.
    pub fn new(seed: u64) -> Self {
        Self { deaths: VecDeque::new(), in_a_row: 0, jitter: SplitMix64::new(seed) }
    }

    /// A life ended that began at `born`.
    pub fn on_death(&mut self, born: Nanos, doing: Doing, now: Nanos, limits: &RestartLimits) -> Decision {
        let age = now.since(born);
        if age >= HEALTHY {
            self.in_a_row = 0;
            self.deaths.clear();
        }
        if doing == Doing::Outside && age >= BORN {
            return Decision::At(now);
        }
        self.in_a_row += 1;
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|&then| now.since(then) > limits.window) {
            self.deaths.pop_front();
        }
        if self.deaths.len() as u64 > u64::from(limits.limit) {
            self.deaths.clear();
            self.in_a_row = 0;
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
    fn crashes_back_off_by_the_table_and_end_on_the_bench() {
        for seed in 0..200 {
            let mut record = RestartRecord::new(seed);
            let mut now = Nanos(1_000_000_000);
            for want in [0.0, 10.0, 20.0, 40.0, 80.0] {
                let next = pause(record.on_death(now, Doing::ItsOwn, now, &LIMITS), now);
                let ms = next.as_secs_f64() * 1e3;
                assert!((0.8 * want..=1.2 * want).contains(&ms), "{ms} ms for {want}");
                now = now.plus(next + Duration::from_millis(1));
            }
            let sixth = record.on_death(now, Doing::ItsOwn, now, &LIMITS);
            assert_eq!(sixth, Decision::Bench(now.plus(BENCH)));
            let later = now.plus(BENCH);
            let next = record.on_death(later, Doing::ItsOwn, later, &LIMITS);
            assert_eq!(next, Decision::At(later), "another chance");
        }
    }

    #[test]
    fn a_healthy_minute_clears_the_record_and_less_does_not() {
        let mut record = RestartRecord::new(1);
        let second = Duration::from_secs(1);
        let mut now = Nanos(1_000_000_000);
        let mut die = |lived: Duration| {
            let born = now;
            now = now.plus(lived);
            pause(record.on_death(born, Doing::ItsOwn, now, &LIMITS), now)
        };
        assert!(die(second).is_zero());
        assert!(!die(second).is_zero());
        assert!(!die(HEALTHY - second).is_zero());
        assert!(die(HEALTHY).is_zero());
        assert!(!die(second).is_zero());
    }

    #[test]
    fn kills_from_outside_are_no_crash_loop_but_at_birth() {
        let mut record = RestartRecord::new(1);
        for i in 1..100u64 {
            let (born, now) = (Nanos(i * 100_000_000), Nanos(i * 100_000_000 + 50_000_000));
            assert_eq!(record.on_death(born, Doing::Outside, now, &LIMITS), Decision::At(now));
        }
        let now = Nanos(20_000_000_000);
        let benched = (0..6).map(|_| record.on_death(now, Doing::Outside, now, &LIMITS)).last();
        assert_eq!(benched, Some(Decision::Bench(now.plus(BENCH))));
    }

    #[test]
    fn pauses_have_a_ceiling() {
        let mut record = RestartRecord::new(1);
        let limits = RestartLimits { limit: 1000, ..LIMITS };
        let mut now = Nanos(0);
        for _ in 0..40 {
            now = now.plus(Duration::from_secs(20));
            let next = pause(record.on_death(now, Doing::ItsOwn, now, &limits), now);
            assert!(next <= Duration::from_secs(6), "{next:?}");
        }
    }
}
