//! `crate::os`, as far as the included sources import it.

/// A clock that stands still.
pub mod clock {
    use crate::base::clock::Nanos;

    /// The same time every time: what is measured is not looked at.
    pub fn now() -> Nanos {
        Nanos(1)
    }
}

/// A futex: the comparison and the falling asleep are one step against every wake, as in the kernel.
pub mod futex {
    use crate::memory::Half;
    use loom::sync::atomic::Ordering;
    use std::time::Duration;

    /// Sleeps while the low half holds `expected`. The timeout never comes: who is not woken sleeps for ever, and a model
    /// in which everybody does so fails.
    #[expect(clippy::needless_pass_by_value, reason = "called as the real one is")]
    pub fn wait(half: Half<'_>, expected: u32, _timeout: Duration) {
        let bucket = half.sleepers.bucket.lock().expect("no thread dies in here");
        if half.word.load(Ordering::Relaxed) as u32 == expected {
            drop(half.sleepers.woken.wait(bucket).expect("no thread dies in here"));
        }
    }

    /// Wakes one sleeper.
    #[expect(clippy::needless_pass_by_value, reason = "called as the real one is")]
    pub fn wake(half: Half<'_>) {
        let _bucket = half.sleepers.bucket.lock().expect("no thread dies in here");
        half.sleepers.woken.notify_one();
    }
}
