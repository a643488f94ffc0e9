//! Slow illnesses that a test can give an agent: what a crash point is for sudden death.
//!
//! The environment variable `AI_SWARM_AILMENT` names agent, illness and measure, as in `compute-0:memory:20000000`:
//!
//! | illness | measure |
//! | --- | --- |
//! | `memory` | bytes that are never given back, per second |
//! | `descriptors` | files that are never closed, per second |
//! | `spin` | seconds after which it turns in a circle for ever |
//!
//! It strikes the first life only. Only builds with debug assertions have this, as with [`super::crash`].

use super::clock::Nanos;

/// The agent called `agent` shows in its life number `life` that it turns its cycle.
#[cfg(debug_assertions)]
pub fn suffer(agent: &str, life: u32, now: Nanos) {
    use std::sync::OnceLock;
    static AILMENT: OnceLock<Option<Ailment>> = OnceLock::new();
    let ailment = AILMENT.get_or_init(|| {
        let text = std::env::var("AI_SWARM_AILMENT").ok()?;
        Ailment::parse(&text, agent, now).filter(|_| life == 1)
    });
    if let Some(ailment) = ailment {
        ailment.strike(now);
    }
}

/// Nobody is ill in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn suffer(_agent: &str, _life: u32, _now: Nanos) {}

#[cfg(debug_assertions)]
#[derive(Debug, PartialEq)]
enum Illness {
    Memory,
    Descriptors,
    Spin,
}

#[cfg(debug_assertions)]
struct Ailment {
    illness: Illness,
    measure: f64,
    since: Nanos,
    /// What was taken so far.
    taken: super::sync::AtomicU64,
}

#[cfg(debug_assertions)]
impl Ailment {
    fn parse(text: &str, agent: &str, since: Nanos) -> Option<Self> {
        let mut parts = text.split(':');
        let illness = match (parts.next()? == agent).then(|| parts.next())?? {
            "memory" => Illness::Memory,
            "descriptors" => Illness::Descriptors,
            "spin" => Illness::Spin,
            _ => return None,
        };
        let measure = parts.next()?.parse().ok().filter(|measure: &f64| *measure > 0.0)?;
        Some(Self { illness, measure, since, taken: super::sync::AtomicU64::new(0) })
    }

    fn strike(&self, now: Nanos) {
        use super::sync::Ordering::Relaxed;
        let seconds = now.since(self.since).as_secs_f64();
        let due = (seconds * self.measure) as u64;
        let more = due.saturating_sub(self.taken.load(Relaxed));
        match self.illness {
            // Pages count when they are written to.
            Illness::Memory if more >= 1 << 20 => std::mem::forget(vec![1u8; more as usize]),
            Illness::Descriptors if more > 0 => {
                (0..more).for_each(|_| std::mem::forget(std::fs::File::open("/dev/null")));
            }
            Illness::Spin if seconds >= self.measure => loop {
                std::hint::spin_loop();
            },
            _ => return,
        }
        self.taken.store(due, Relaxed);
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn an_ailment_is_its_agents_and_nonsense_is_none() {
        let parse =
            |text| Ailment::parse(text, "compute-0", Nanos(0)).map(|found| (found.illness, found.measure));
        assert_eq!(parse("compute-0:memory:5e6"), Some((Illness::Memory, 5e6)));
        assert_eq!(parse("compute-0:spin:2"), Some((Illness::Spin, 2.0)));
        for text in ["", "compute-1:memory:1", "compute-0:memory", "compute-0:memory:-1", "compute-0:flu:1"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
