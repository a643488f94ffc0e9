//! How a receiver goes to sleep and how a sender wakes it without ever losing a wake-up.
//!
//! ```text
//!  receiver                                   sender
//!  1 asleep := 1                              1 publish the message
//!  2 full fence                               2 full fence
//!  3 look at every ring again                 3 read asleep; if 1: bell += 1, wake
//!  4 sleep while bell == value read before 1
//!  5 asleep := 0
//! ```
//! Either the sender's read (3) sees `asleep`, or the receiver's second look (3) sees the message:
//! the two fences forbid that both miss (Dekker). A bell that rang before the receiver slept changes
//! the word it would sleep on, so the sleep returns at once. The flag is written by the receiver, the
//! bell by the sender: one writer per word. Both are 64 bits wide like every word here; the kernel, and it
//! alone, looks at the low half of the bell.
//!
//! Sync point: the fences (2) on both sides. Without the receiver's, or without the sender's, a wake-up is
//! lost; `tests/loom` shows both. A sleeper that timed out or was interrupted behaves like one that was
//! woken: it looks again. A sender that dies between 1 and 3 leaves a message and no ring: that is
//! what timeouts are for, and the supervisor rings for the dead. A test lets a process die there: `doorbell.ring`.
//!
//! Senders run the fence once per turn and not per message: in a stream of messages a fence each
//! costs a factor of eleven.

use super::memory::Words;
use crate::base::clock::Nanos;
use crate::base::crash;
use crate::base::sync::{Ordering, fence};
use crate::os::{clock, futex};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Where, behind the bell, it stands when somebody rang last, ns. For the sleeper, who learns from it what waking
/// costs.
const RANG: usize = 1;

/// The sender's side of an agent's doorbell.
#[derive(Debug)]
pub struct AgentBell {
    /// Mapping with the agent's asleep flag (agent writes).
    asleep: (Arc<Words>, usize),
    /// Mapping with the bell (we write).
    bell: (Arc<Words>, usize),
}

impl AgentBell {
    /// The bell word at `bell`, rung when the flag word at `asleep` is up.
    pub fn new(asleep: (Arc<Words>, usize), bell: (Arc<Words>, usize)) -> Self {
        Self { asleep, bell }
    }

    /// Wakes the agent if it announced that it sleeps. Call after the last push of a turn.
    /// Returns whether a system call was needed.
    pub fn ring(&self) -> bool {
        crash::point("doorbell.ring");
        fence(Ordering::SeqCst);
        if self.asleep.0.word(self.asleep.1).load(Ordering::Relaxed) == 0 {
            return false;
        }
        let (words, bell) = &self.bell;
        words.word(*bell + RANG).store(clock::now().0, Ordering::Relaxed);
        words.word(*bell).fetch_add(1, Ordering::Release);
        futex::wake(words.half(*bell));
        true
    }
}

/// The agent's own side of its doorbell.
#[derive(Debug)]
pub struct AgentSleeper {
    asleep: (Arc<Words>, usize),
    bell: (Arc<Words>, usize),
}

impl AgentSleeper {
    /// The mirror image of [`AgentBell::new`].
    pub fn new(asleep: (Arc<Words>, usize), bell: (Arc<Words>, usize)) -> Self {
        Self { asleep, bell }
    }

    /// Sleeps until the bell rings or `timeout` passes, unless `ready` says after the announcement
    /// that there is something to do. If it slept and the bell rang: how long ago that was, as far as the ringer
    /// says.
    pub fn sleep(&self, timeout: Duration, ready: impl FnOnce() -> bool) -> Option<Duration> {
        let (asleep, (words, bell)) = (self.asleep.0.word(self.asleep.1), &self.bell);
        let heard = words.word(*bell).load(Ordering::Acquire);
        asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let sleeps = !ready();
        if sleeps {
            // The low half: it changes with every ring, and a futex is 32 bits wide.
            futex::wait(words.half(*bell), heard as u32, timeout);
        }
        asleep.store(0, Ordering::Relaxed);
        let rang = sleeps && words.word(*bell).load(Ordering::Acquire) != heard;
        rang.then(|| clock::now().since(Nanos(words.word(*bell + RANG).load(Ordering::Relaxed))))
    }
}

/// The supervisor's doorbell: it sleeps in epoll beside pidfds and signals, so its bell is an eventfd.
/// Waking through one costs the same as a futex here; a count in the kernel cannot be lost either.
#[derive(Debug)]
pub struct HubBell {
    asleep: (Arc<Words>, usize),
    event: OwnedFd,
}

impl HubBell {
    /// Rings `event` when the flag word at `asleep` is up.
    pub fn new(asleep: (Arc<Words>, usize), event: OwnedFd) -> Self {
        Self { asleep, event }
    }

    /// Wakes the supervisor if it announced that it sleeps. Call after the last push of a turn.
    pub fn ring(&self) -> bool {
        crash::point("doorbell.ring");
        fence(Ordering::SeqCst);
        let asleep = self.asleep.0.word(self.asleep.1).load(Ordering::Relaxed) != 0;
        if asleep {
            // A full counter means that it is awake already or about to be.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
        asleep
    }
}

/// The supervisor's own side: announces sleep and takes it back.
#[derive(Debug)]
pub struct HubSleeper {
    asleep: (Arc<Words>, usize),
    event: OwnedFd,
}

impl HubSleeper {
    /// The flag word at `asleep` is ours to write; `event` is what senders ring.
    pub fn new(asleep: (Arc<Words>, usize), event: OwnedFd) -> Self {
        Self { asleep, event }
    }

    /// Announces sleep; the caller now looks at everything again and only then blocks on [`as_fd`](AsFd::as_fd).
    pub fn announce(&self) {
        self.asleep.0.word(self.asleep.1).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Awake again; silences the bell when it rang.
    pub fn awake(&self, rang: bool) {
        self.asleep.0.word(self.asleep.1).store(0, Ordering::Relaxed);
        if rang {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&self.event, &mut count);
        }
    }
}

impl AsFd for HubSleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::sync::AtomicU64;

    /// Races per variant: enough to find what reordering breaks, and not minutes. `AI_SWARM_RACES` sets another
    /// number; with 2,000,000 each variant takes the better part of a minute.
    fn races() -> u64 {
        let set = std::env::var("AI_SWARM_RACES").ok();
        set.map_or(if cfg!(miri) { 50 } else { 60_000 }, |text| text.parse().expect("a number of races"))
    }

    /// A sender publishes, and rings through `ring`, while a receiver goes to sleep through `sleep` (given a look at
    /// what it waits for), once per race. The sender moves through all of the receiver's cycle.
    fn race(rounds: u64, ring: impl Fn() + Sync, sleep: impl Fn(u64, &dyn Fn() -> bool) + Sync) {
        let (sent, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    while sent.load(Ordering::Acquire) < round {
                        sleep(round, &|| sent.load(Ordering::Acquire) >= round);
                    }
                    answered.store(round, Ordering::Release);
                }
            });
            let mut rng = crate::base::prng::SplitMix64::new(rounds);
            for round in 1..=rounds {
                // Up to a few microseconds, so now and then past the moment of falling asleep.
                for _ in 0..rng.below(1 << (round % 11)) {
                    std::hint::spin_loop();
                }
                sent.store(round, Ordering::Release);
                ring();
                while answered.load(Ordering::Acquire) < round {
                    std::thread::yield_now();
                }
            }
        });
    }

    fn agent_bell() -> (AgentBell, AgentSleeper) {
        let flags = Words::private(16);
        (
            AgentBell::new((flags.clone(), 0), (flags.clone(), 8)),
            AgentSleeper::new((flags.clone(), 0), (flags, 8)),
        )
    }

    /// Nobody sleeps that long here unless a wake-up was lost.
    const LONG: Duration = Duration::from_secs(20);

    fn assert_woken(began: std::time::Instant) {
        assert!(began.elapsed() < LONG, "a wake-up was lost");
    }

    #[test]
    fn no_wake_up_is_ever_lost() {
        let (bell, sleeper) = agent_bell();
        race(
            races(),
            || _ = bell.ring(),
            |_, ready| {
                let began = std::time::Instant::now();
                let _ = sleeper.sleep(LONG, ready);
                assert_woken(began);
            },
        );
    }

    #[test]
    fn short_sleeps_end_by_themselves_and_hear_the_bell_all_the_same() {
        let (bell, sleeper) = agent_bell();
        let rings = AtomicU64::new(0);
        race(
            races() / 4,
            || _ = rings.fetch_add(u64::from(bell.ring()), Ordering::Relaxed),
            |round, ready| _ = sleeper.sleep(Duration::from_micros(round % 40), ready),
        );
        assert_eq!(sleeper.asleep.0.word(0).load(Ordering::Relaxed), 0, "awake at the end");
        let bell = sleeper.bell.0.word(8).load(Ordering::Relaxed);
        assert_eq!(bell, rings.load(Ordering::Relaxed), "one count per ring, nothing in the high half");
    }

    #[test]
    #[cfg_attr(miri, ignore = "poll(2) is not modelled")]
    fn the_supervisor_hears_every_ring() {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd");
        let flags = Words::private(8);
        let bell = HubBell::new((flags.clone(), 0), event.try_clone().expect("dup"));
        let sleeper = HubSleeper::new((flags, 0), event);
        race(
            races(),
            || _ = bell.ring(),
            |_, ready| {
                sleeper.announce();
                let mut rang = false;
                if !ready() {
                    let mut fds = [rustix::event::PollFd::new(&sleeper, rustix::event::PollFlags::IN)];
                    let timeout = rustix::time::Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
                    rang = rustix::event::poll(&mut fds, Some(&timeout)).expect("poll") == 1;
                    assert!(rang, "a wake-up was lost");
                }
                sleeper.awake(rang);
            },
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "sleeps for real")]
    fn who_is_woken_hears_how_long_that_took() {
        let (bell, sleeper) = agent_bell();
        assert_eq!(sleeper.sleep(LONG, || true), None, "it did not sleep");
        assert_eq!(sleeper.sleep(Duration::from_micros(1), || false), None, "nobody rang");
        let took = std::thread::scope(|scope| {
            let sleeping = scope.spawn(|| sleeper.sleep(LONG, || false));
            while !bell.ring() {
                std::thread::yield_now();
            }
            sleeping.join().expect("no panic")
        });
        assert!(took.is_some_and(|took| took > Duration::ZERO && took < LONG), "{took:?}");
    }

    #[test]
    fn nobody_asleep_costs_no_system_call() {
        let flags = Words::private(16);
        assert!(!AgentBell::new((flags.clone(), 0), (flags, 8)).ring());
    }
}
