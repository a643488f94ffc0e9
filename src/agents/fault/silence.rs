//! Silence: is an agent that shows no progress busy, starved, or hung? Pure.
//!
//! Time that the watcher itself did not run is nobody's silence: a paused machine and a starved watcher make no agent
//! look hung. An agent that is silent for two fifths of `hang_after` is looked at in the process file system, and again
//! every fifth of it; who was asleep in the last look, every two fifths, whatever it says. What it did between two looks decides.
//! A look half a fifth too early is as good as one in time: nobody wakes up to the microsecond.
//!
//! Who has nothing to do shows progress once a second, so a swarm at rest is watched by looks at sleepers, which need no
//! wake-ups but the watcher's own.
//!
//! | what the kernel says | hung after |
//! | --- | --- |
//! | stopped, twice in a row | at most `hang_after` |
//! | a compute agent that burns its processor and has no task | `hang_after`, from when it was last asleep |
//! | any other agent that does | `LONG` |
//! | burns its processor in a task of known cost, for `OVERRUN` times that cost and more | `LONG` |
//! | sleeps or is blocked all the time, with a task or past its own alarm clock | `LONG` |
//! | ready, and gets no processor | never: it is starved |
//! | computes in a task | never: it is busy; `timeout_s` is for that |

use crate::messaging::failure::{Failure, Figure};
use std::time::Duration;

/// Patience with what may yet come to an end by itself: a slow disk, a long call.
const LONG: Duration = Duration::from_secs(5);
/// A task that shows no progress for so many times its known cost spins.
const OVERRUN: f64 = 50.0;

/// A process as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// The letter of its state.
    pub(super) state: u8,
    /// Time on processors, all threads, since its start.
    pub(super) ran: Duration,
    /// Time ready without a processor, since its start.
    pub(super) waited: Duration,
}

/// What the agent says that it does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Doing {
    /// It works for tasks only.
    pub(super) is_compute: bool,
    /// It runs a task, for so long; and what such a task is known to take.
    pub(super) task: Option<(Duration, Option<Duration>)>,
}

/// An agent that shows no progress.
#[derive(Clone, Debug, Default)]
pub(super) struct Silence {
    beat: u64,
    /// How old its last beat may have been when it was heard.
    heard_after: Duration,
    lasted: Duration,
    longest: Duration,
    /// The first look, and how long it had been silent then.
    first: Option<(Look, Duration)>,
    /// The last look in which it was asleep, likewise.
    asleep: Option<(Look, Duration)>,
    /// Its state in the last look.
    last: u8,
    /// Since the last look.
    unseen: Duration,
}

/// What nobody waits for, because the next look is much later.
fn slack(hang_after: Duration) -> Duration {
    hang_after / 10
}

impl Silence {
    /// Hears the beat, `gap` after the last time; the watcher means to listen every `tick`.
    pub(super) fn hear(&mut self, beat: u64, gap: Duration, tick: Duration) {
        let gap = gap.min(tick * 2);
        let unseen = self.unseen + gap;
        if beat != self.beat {
            let longest = self.longest.max(self.lasted);
            // One sign of life between two sleeps is no reason to believe that it does not sleep any more.
            let last = if self.is_asleep() { self.last } else { 0 };
            let heard_after = gap.min(tick);
            *self = Self { beat, heard_after, longest, last, ..Self::default() };
        } else {
            self.lasted += gap;
        }
        self.unseen = unseen;
    }

    /// Whether it slept in the last look.
    pub(super) fn is_asleep(&self) -> bool {
        self.last == b'S'
    }

    /// How long it has shown no progress.
    pub(super) fn lasted(&self) -> Duration {
        self.lasted
    }

    /// The longest silence since the last call.
    pub(super) fn take_longest(&mut self) -> Duration {
        std::mem::take(&mut self.longest).max(self.lasted)
    }

    /// Whether it is worth a look at the process.
    pub(super) fn is_suspicious(&self, hang_after: Duration) -> bool {
        let since = if self.is_asleep() { self.unseen } else { self.lasted };
        since + slack(hang_after) >= hang_after * 2 / 5
    }

    /// Judges by one more look.
    pub(super) fn judge(
        &mut self,
        look: Look,
        doing: &Doing,
        hang_after: Duration,
    ) -> Option<(Failure, &'static str, Vec<Figure>)> {
        let before = std::mem::replace(&mut self.last, look.state);
        self.unseen = Duration::ZERO;
        let asleep = self.asleep;
        if look.state == b'S' {
            self.asleep = Some((look, self.lasted));
        }
        let Some((first, since)) = self.first else {
            self.first = Some((look, self.lasted));
            return None;
        };
        let span = self.lasted - since;
        let ran = look.ran.saturating_sub(first.ran);
        let waited = look.waited.saturating_sub(first.waited);
        let both = |states: &[u8]| states.contains(&first.state) && states.contains(&look.state);
        let long = LONG.max(hang_after * 5);
        // The beat that was heard last can be older than its hearing; nothing is older than a sleep that was seen.
        let soon = match asleep {
            Some((_, then)) => self.lasted - then + slack(hang_after) >= hang_after * 3 / 5,
            None => self.lasted + self.heard_after + slack(hang_after) >= hang_after,
        };
        let late = self.lasted >= long;
        // Most of the time in which it could run, and more than waking up and going to sleep take.
        let burns = {
            let (from, then) = asleep.unwrap_or((first, since));
            let (ran, waited) = (look.ran.saturating_sub(from.ran), look.waited.saturating_sub(from.waited));
            ran * 2 > (self.lasted - then).saturating_sub(waited) && ran >= hang_after / 4
        };
        let rests = (ran + waited) * 4 < span;
        let overran = |(took, known): (Duration, Option<Duration>)| {
            known.is_some_and(|known| took > known.mul_f64(OVERRUN))
        };
        // In a row: it may have been starved, and silent for that, before somebody stopped it.
        let failure = if b"Tt".contains(&before) && b"Tt".contains(&look.state) {
            Some((Failure::Frozen, "it is stopped"))
        } else if burns && doing.task.is_none() && if doing.is_compute { soon } else { late } {
            Some((Failure::Hang, "it spins without a task"))
        } else if burns && late && doing.task.is_some_and(overran) {
            Some((Failure::Hang, "it spins: its task takes many times what it is known to take"))
        } else if rests && late && both(b"S") {
            Some((Failure::Hang, "it waits for something that does not come"))
        } else if rests && late && both(b"D") {
            Some((Failure::Hang, "it is blocked in the kernel"))
        } else {
            None
        };
        failure.map(|(failure, why)| {
            let figures = vec![
                Figure::new("silent_s", self.lasted.as_secs_f64()),
                Figure::new("watched_s", span.as_secs_f64()),
                Figure::new("ran_s", ran.as_secs_f64()),
                Figure::new("starved_s", waited.as_secs_f64()),
                Figure::new("hang_after_s", hang_after.as_secs_f64()),
            ];
            (failure, why, figures)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANG: Duration = Duration::from_millis(250);
    const TICK: Duration = Duration::from_millis(50);
    const IDLE: Doing = Doing { is_compute: true, task: None };
    const BUSY: Doing = Doing { is_compute: true, task: Some((Duration::from_secs(600), None)) };

    #[test]
    fn who_is_stopped_while_it_is_starved_is_found_as_soon_as_any_other() {
        let mut silence = Silence::default();
        silence.hear(1, TICK, TICK);
        let mut judge = |state: u8| {
            silence.hear(1, TICK, TICK);
            let look = Look { state, ran: Duration::ZERO, waited: silence.lasted() };
            silence.judge(look, &IDLE, HANG).map(|found| found.0)
        };
        assert_eq!([b'R', b'R', b'S', b'T'].map(&mut judge), [None; 4]);
        assert_eq!([b'R', b'T'].map(&mut judge), [None; 2], "stopped for a moment");
        assert_eq!(judge(b'T'), Some(Failure::Frozen));
    }

    /// How long an agent was silent when it was found, if it was within a minute. It runs and waits for these shares
    /// of the time.
    fn found(doing: Doing, state: u8, ran: f64, waited: f64) -> Option<(Failure, Duration)> {
        let mut silence = Silence::default();
        silence.hear(1, TICK, TICK);
        (1..1200).find_map(|tick| {
            silence.hear(1, TICK, TICK);
            let now = TICK * tick;
            let look = Look { state, ran: now.mul_f64(ran), waited: now.mul_f64(waited) };
            let found = silence.is_suspicious(HANG).then(|| silence.judge(look, &doing, HANG)).flatten()?;
            Some((found.0, silence.lasted()))
        })
    }

    #[test]
    fn frozen_and_spinning_agents_are_found_within_the_limit() {
        for state in [b'T', b't'] {
            for doing in [IDLE, BUSY] {
                let (failure, after) = found(doing, state, 0.0, 0.0).expect("found");
                assert!(failure == Failure::Frozen && after + TICK <= HANG, "{after:?}");
            }
        }
        let (failure, after) = found(IDLE, b'R', 1.0, 0.0).expect("found");
        assert!(failure == Failure::Hang && after + TICK <= HANG, "{after:?}");
    }

    /// An idle agent that shows progress once a second and once more at `from`; then it is as `state` says, silent, and on the
    /// processor all the time if that is `R`. The watcher wakes up a little late, by `luck`. When it is found, and how often it was
    /// looked at before.
    fn found_from(from: Duration, state: u8, luck: &mut impl FnMut() -> Duration) -> (Duration, u32) {
        let (beat, end) = (Duration::from_secs(1), Duration::from_secs(10));
        let (mut silence, mut looks, mut due, mut now) = (Silence::default(), 0, TICK, Duration::ZERO);
        while now < end {
            let before = std::mem::replace(&mut now, due + luck());
            let beats = now.min(from).as_nanos() / beat.as_nanos() + u128::from(now >= from);
            let tick = if silence.is_asleep() { TICK * 2 } else { TICK };
            silence.hear(beats as u64 + 1, now - before, tick);
            if silence.is_suspicious(HANG) {
                let ran = if state == b'R' { now.saturating_sub(from) } else { Duration::ZERO };
                let look = Look { state: if now < from { b'S' } else { state }, ran, waited: Duration::ZERO };
                looks += u32::from(now < from);
                if silence.judge(look, &IDLE, HANG).is_some() {
                    return (now - from, looks);
                }
            }
            let tick = if silence.is_asleep() { TICK * 2 } else { TICK };
            due = TICK.mul_f64(
                (now.as_secs_f64() / tick.as_secs_f64()).floor() * (tick.as_secs_f64() / TICK.as_secs_f64()),
            ) + tick;
        }
        panic!("not found within {end:?}")
    }

    #[test]
    fn sleepers_that_are_stopped_or_spin_from_any_moment_on_are_found_in_time() {
        let mut seed = 1u64;
        let mut luck = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            Duration::from_micros(seed >> 33 & 1023)
        };
        for from in (0..4000).map(|step| Duration::from_secs(4) + Duration::from_micros(250) * step) {
            for state in [b'T', b'R'] {
                let (took, looks) = found_from(from, state, &mut luck);
                let late = Duration::from_millis(3);
                assert!(took <= HANG + late, "{} from {from:?} on, found {took:?} later", state as char);
                assert!(looks <= 55, "{looks} looks in five seconds");
            }
        }
    }

    #[test]
    fn busy_is_not_hung() {
        assert_eq!(found(BUSY, b'R', 1.0, 0.0), None);
        assert_eq!(found(BUSY, b'R', 0.03, 0.97), None, "one of 32 on its core");
        let woken = found(IDLE, b'R', 0.001, 0.999);
        assert_eq!(woken, None, "woken, and hardly ever on a core");
        assert_eq!(found(IDLE, b'R', 0.0, 1.0), None);
        let (failure, after) = found(IDLE, b'R', 0.1, 0.9).expect("a starved one that spins, later");
        assert!(failure == Failure::Hang && after < HANG * 4, "{after:?}");
        assert_eq!(found(BUSY, b'S', 0.3, 0.0), None, "it waits for its own threads");
        let known = Doing { task: Some((Duration::from_secs(3), Some(Duration::from_secs(1)))), ..BUSY };
        assert_eq!(found(known, b'R', 1.0, 0.0), None, "three times what it is known to take");
    }

    #[test]
    fn what_may_end_by_itself_gets_more_time() {
        let known = Doing { task: Some((Duration::from_secs(600), Some(Duration::from_secs(1)))), ..BUSY };
        let watcher = Doing { is_compute: false, task: None };
        for (doing, state, ran) in [
            (BUSY, b'S', 0.0),
            (IDLE, b'S', 0.0),
            (BUSY, b'D', 0.0),
            (known, b'R', 1.0),
            (watcher, b'R', 1.0),
        ] {
            let (failure, after) = found(doing, state, ran, 0.0).expect("found");
            assert!(failure == Failure::Hang && after >= LONG && after < LONG * 2, "{doing:?} {after:?}");
        }
    }

    #[test]
    fn time_that_the_watcher_missed_is_nobodys_silence() {
        let mut silence = Silence::default();
        silence.hear(1, TICK, TICK);
        silence.hear(1, Duration::from_secs(3600), TICK);
        assert_eq!(silence.lasted(), TICK * 2);
        silence.hear(2, TICK, TICK);
        assert_eq!((silence.lasted(), silence.take_longest()), (Duration::ZERO, TICK * 2));
        assert_eq!(silence.take_longest(), Duration::ZERO);
    }
}
