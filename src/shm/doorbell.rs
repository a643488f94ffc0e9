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
//! bell by the sender: one writer per word.
//!
//! Senders run the fence once per turn and not per message: in a stream of messages a fence each
//! costs a factor of eleven.

use super::memory::Words;
use crate::os::futex;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

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
        fence(Ordering::SeqCst);
        if self.asleep.0.half(self.asleep.1).load(Ordering::Relaxed) == 0 {
            return false;
        }
        let bell = self.bell.0.half(self.bell.1);
        bell.fetch_add(1, Ordering::Release);
        futex::wake(bell);
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
    /// that there is something to do.
    pub fn sleep(&self, timeout: Duration, ready: impl FnOnce() -> bool) {
        let (asleep, bell) = (self.asleep.0.half(self.asleep.1), self.bell.0.half(self.bell.1));
        let heard = bell.load(Ordering::Acquire);
        asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !ready() {
            futex::wait(bell, heard, timeout);
        }
        asleep.store(0, Ordering::Relaxed);
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
        fence(Ordering::SeqCst);
        let asleep = self.asleep.0.half(self.asleep.1).load(Ordering::Relaxed) != 0;
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
        self.asleep.0.half(self.asleep.1).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Awake again; silences the bell when it rang.
    pub fn awake(&self, rang: bool) {
        self.asleep.0.half(self.asleep.1).store(0, Ordering::Relaxed);
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
    use std::sync::atomic::AtomicU64;

    #[test]
    fn no_wake_up_is_ever_lost() {
        // With a lost wake-up the receiver would sleep for its whole long timeout, and the test would hang.
        let flags = Words::private(16);
        let (bell, sleeper) = (
            AgentBell::new((flags.clone(), 0), (flags.clone(), 8)),
            AgentSleeper::new((flags.clone(), 0), (flags, 8)),
        );
        let (sent, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        let rounds = 20_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    while sent.load(Ordering::Acquire) < round {
                        sleeper.sleep(Duration::from_secs(600), || sent.load(Ordering::Acquire) >= round);
                    }
                    answered.store(round, Ordering::Release);
                }
            });
            for round in 1..=rounds {
                // Vary where in the receiver's cycle the message falls.
                for _ in 0..round % 64 {
                    std::hint::spin_loop();
                }
                sent.store(round, Ordering::Release);
                bell.ring();
                while answered.load(Ordering::Acquire) < round {
                    std::thread::yield_now();
                }
            }
        });
    }

    #[test]
    fn nobody_asleep_costs_no_system_call() {
        let flags = Words::private(16);
        assert!(!AgentBell::new((flags.clone(), 0), (flags, 8)).ring());
    }
}
