//! Sleep on a word of shared memory, and wake who sleeps on it.
//!
//! The word may lie in a read-only mapping: waiting and waking only read it.

use rustix::thread::futex;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` holds `expected`, at most for `timeout`. Returns at once when it holds
/// anything else. May also return early; the caller looks again at what it waits for.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = rustix::time::Timespec {
        tv_sec: timeout.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // Every outcome (woken, changed, timed out, interrupted) has the same consequence: look again.
    let _ = futex::wait(word, futex::Flags::empty(), expected, Some(&timeout));
}

/// Wakes one sleeper on `word`, in whichever process it sleeps.
pub fn wake(word: &AtomicU32) {
    let _ = futex::wake(word, futex::Flags::empty(), 1);
}

/// Most words that can be waited for at once.
pub const WAIT_ANY_MAX: usize = 128;

/// Sleeps while every one of `words` (at most [`WAIT_ANY_MAX`]) holds what is expected of it. As [`wait`], it may return
/// early. False when the kernel cannot do this (before 5.16) or does not let us (old lists of permitted calls).
pub fn wait_any(words: &[(&AtomicU32, u32)], timeout: Option<Duration>) -> bool {
    let waits: Vec<futex::Wait> = words
        .iter()
        .map(|(word, expected)| {
            let mut wait = futex::Wait::new();
            wait.val = u64::from(*expected);
            wait.uaddr = futex::WaitPtr::new(std::ptr::from_ref::<AtomicU32>(word).cast_mut().cast());
            wait.flags = futex::WaitFlags::SIZE_U32;
            wait
        })
        .collect();
    let deadline = timeout.map(|timeout| {
        let at = super::clock::now().plus(timeout).0;
        rustix::time::Timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 }
    });
    let (flags, clock) = (futex::WaitvFlags::empty(), rustix::time::ClockId::Monotonic);
    let outcome = futex::waitv(&waits, flags, deadline.as_ref(), clock);
    use rustix::io::Errno;
    matches!(outcome, Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_changed_word_does_not_wait() {
        let word = AtomicU32::new(1);
        let start = crate::os::clock::now();
        wait(&word, 0, Duration::from_secs(60));
        assert!(crate::os::clock::now().since(start) < Duration::from_secs(30));
    }

    #[test]
    fn a_sleeper_is_woken() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0, Duration::from_secs(60));
                }
            });
            word.store(1, Ordering::Release);
            while !sleeper.is_finished() {
                wake(&word);
                std::thread::yield_now();
            }
        });
    }
}
