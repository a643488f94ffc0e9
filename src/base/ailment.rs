//! Slow illnesses that a test can give an agent: what a crash point is for sudden death.
//!
//! The environment variable `AI_SWARM_AILMENT` names agent, illness and measure, as in `compute-0:memory:20000000`:
//!
//! | illness | measure |
//! | --- | --- |
//! | `memory` | bytes that are never given back, per second |
//! | `descriptors` | files that are never closed, per second |
//! | `spin` | seconds after which it turns in a circle for ever |
//! | `slow` | ms by which each of its tasks takes longer, more with every second |
//! | `fail` | seconds after which all of its tasks fail |
//! | `die` | seconds that its first life lasts; every further one is a fifth shorter |
//! | `echo` | says the answer to its so-manieth task twice |
//! | `faint` | stops itself before its so-manieth output appears, until somebody continues it |
//! | `falter` | the same, having announced the output |
//! | `linger` | the same, having let it appear: it has not answered |
//!
//! It strikes the first life only, but for `die`. Only builds with debug assertions have this, as with [`super::crash`].

use super::clock::Nanos;

/// The agent called `agent` shows in its life number `life` that it turns its cycle.
#[cfg(debug_assertions)]
pub fn suffer(agent: &str, life: u32, now: Nanos) {
    let ailment = AILMENT.get_or_init(|| {
        let text = std::env::var("AI_SWARM_AILMENT").ok()?;
        let mut found = Ailment::parse(&text, agent, now)?;
        if found.illness == Illness::Die {
            found.measure *= 0.8f64.powf(f64::from(life.saturating_sub(1)));
        }
        (life == 1 || found.illness == Illness::Die).then_some(found)
    });
    if let Some(ailment) = ailment {
        ailment.strike(now);
    }
}

/// A task is begun: it may take longer than it would.
#[cfg(debug_assertions)]
pub fn at_task(now: Nanos) {
    let Some(Some(ailment)) = AILMENT.get() else { return };
    if ailment.illness == Illness::Slow {
        let ms = now.since(ailment.since).as_secs_f64() * ailment.measure;
        std::thread::sleep(std::time::Duration::from_secs_f64(ms / 1e3));
    }
}

/// What becomes of the answer to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is sent.
    Sound,
    /// It says that the task failed.
    Failed,
    /// It is sent two times.
    Twice,
}

/// An answer is about to be sent.
#[cfg(debug_assertions)]
pub fn at_answer(now: Nanos) -> Answer {
    let Some(Some(ailment)) = AILMENT.get() else { return Answer::Sound };
    let before = || ailment.taken.fetch_add(1, super::sync::Ordering::Relaxed);
    match ailment.illness {
        Illness::Fail if now.since(ailment.since).as_secs_f64() >= ailment.measure => Answer::Failed,
        Illness::Echo if before() + 1 == ailment.measure as u64 => Answer::Twice,
        _ => Answer::Sound,
    }
}

/// How far an output has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is written, under another name.
    Written,
    /// The supervisor was told that it is about to appear.
    Announced,
    /// It is there. The supervisor has no answer.
    There,
}

/// An output has come so far.
#[cfg(debug_assertions)]
pub fn at_output(output: Output) {
    let Some(Some(ailment)) = AILMENT.get() else { return };
    let strikes = match output {
        Output::Written => Illness::Faint,
        Output::Announced => Illness::Falter,
        Output::There => Illness::Linger,
    };
    let before = || ailment.taken.fetch_add(1, super::sync::Ordering::Relaxed);
    if ailment.illness == strikes && before() + 1 == ailment.measure as u64 {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::STOP);
    }
}

/// Nobody is ill in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn suffer(_agent: &str, _life: u32, _now: Nanos) {}

/// Nobody is ill in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn at_task(_now: Nanos) {}

/// Nobody is ill in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn at_answer(_now: Nanos) -> Answer {
    Answer::Sound
}

/// Nobody is ill in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn at_output(_output: Output) {}

/// What this process suffers from, if anything.
#[cfg(debug_assertions)]
static AILMENT: std::sync::OnceLock<Option<Ailment>> = std::sync::OnceLock::new();

#[cfg(debug_assertions)]
#[derive(Debug, PartialEq)]
enum Illness {
    Memory,
    Descriptors,
    Spin,
    Slow,
    Fail,
    Die,
    Echo,
    Faint,
    Falter,
    Linger,
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
            "slow" => Illness::Slow,
            "fail" => Illness::Fail,
            "die" => Illness::Die,
            "echo" => Illness::Echo,
            "faint" => Illness::Faint,
            "falter" => Illness::Falter,
            "linger" => Illness::Linger,
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
            Illness::Die if seconds >= self.measure => std::process::exit(70),
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
