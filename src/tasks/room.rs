//! How many tasks an agent may hold. Late binding beats early queues: as few as keep it busy. How few depends on what they
//! cost: long ones one at a time (the gap between two is nothing against them), middling ones `tasks.window`, tiny ones up
//! to `tasks.batch` or a span of work, so that the cost of a hand-over is shared by many. Nothing is bound behind a task of which
//! nobody knows how long it takes. A policy may ask for less of each. The simulator goes by the same rule.

use super::Placer;

/// Below this a task is tiny and travels in batches.
const TINY_NS: f64 = 100_000.0;
/// Above this an agent gets one task at a time.
const LONG_NS: f64 = 20_000_000.0;

/// Settings of the dispatcher.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Tasks of middling cost in flight at one agent.
    pub window: usize,
    /// Tiny tasks in flight at one agent.
    pub batch: usize,
}

impl Windows {
    /// What this policy makes of them.
    pub fn under(self, placer: &dyn Placer) -> Room {
        Room {
            window: self.window.min(placer.window()).max(1),
            batch: self.batch.max(1),
            span_ns: placer.span_ns(),
        }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    window: usize,
    batch: usize,
    span_ns: f64,
}

/// How long what an agent holds takes in all, for [`Room::fits`]. A first task that is expected to take no time is one of which
/// nobody knows, and may be long.
#[inline]
pub fn held_ns(first: Option<f64>, all: f64) -> f64 {
    if first == Some(0.0) { f64::INFINITY } else { all }
}

impl Room {
    /// Whether an agent that holds `in_flight` tasks of [`held_ns`] has room for one of `expected_ns`. What nobody knows
    /// may be long.
    #[inline]
    pub fn fits(&self, expected_ns: Option<f64>, in_flight: usize, held_ns: f64) -> bool {
        match expected_ns {
            Some(ns) if ns <= TINY_NS => in_flight < self.batch && held_ns <= self.span_ns,
            Some(ns) if ns <= LONG_NS => in_flight < self.window && held_ns < f64::INFINITY,
            _ => in_flight == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Ask, Candidate, Placement};

    struct Bound(usize, f64);

    impl Placer for Bound {
        fn place(&mut self, _: &Ask, _: &[Candidate]) -> Option<Placement> {
            None
        }

        fn window(&self) -> usize {
            self.0
        }

        fn span_ns(&self) -> f64 {
            self.1
        }

        fn name(&self) -> &'static str {
            "bound"
        }
    }

    /// How many tasks of this cost an agent gets.
    fn most(room: Room, ns: f64) -> usize {
        (0..1000).find(|held| !room.fits(Some(ns), *held, *held as f64 * ns)).expect("a bound")
    }

    #[test]
    fn a_policy_bounds_the_work_that_is_bound_early() {
        let windows = Windows { window: 4, batch: 256 };
        let (wide, narrow) = (windows.under(&Bound(9, 2e6)), windows.under(&Bound(2, 100e3)));
        for (ns, by_wide, by_narrow) in
            [(1e3, 256, 101), (20e3, 101, 6), (99e3, 21, 2), (1e6, 4, 2), (30e6, 1, 1)]
        {
            assert_eq!((most(wide, ns), most(narrow, ns)), (by_wide, by_narrow), "{ns}");
        }
        assert!(wide.fits(None, 0, 0.0) && !wide.fits(None, 1, 1.0), "what nobody knows");
        let behind = |ns| wide.fits(Some(ns), 1, held_ns(Some(0.0), 0.0));
        assert!(![1e3, 1e6, 30e6].into_iter().any(behind), "nothing waits behind that");
        assert_eq!((held_ns(None, 0.0), held_ns(Some(5.0), 7.0)), (0.0, 7.0));
    }
}
