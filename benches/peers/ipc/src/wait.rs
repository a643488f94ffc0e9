//! Waiting without sleeping, and the clock.

use anyhow::bail;
use std::sync::atomic::{AtomicU32, Ordering};

static PAUSES: AtomicU32 = AtomicU32::new(0);

/// Pauses of the processor between two looks, from now on.
pub fn set_pauses(pauses: u32) {
    PAUSES.store(pauses, Ordering::Relaxed);
}

/// Looks until there is something.
#[inline]
pub fn until<T>(mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let pauses = PAUSES.load(Ordering::Relaxed);
    let mut misses = 0u64;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        for _ in 0..pauses {
            std::hint::spin_loop();
        }
        misses += 1;
        if misses > 1 << 33 {
            bail!("nothing came from the other side");
        }
    }
}

/// The clock that all processes share, ns.
#[inline]
pub fn now_ns() -> u64 {
    ai_swarm::os::clock::now().0
}

/// Time that this thread was ready to run and did not, because others had its core; ns so far.
pub fn kept_waiting() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(0)
}
