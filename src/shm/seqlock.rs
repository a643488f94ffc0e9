//! Several words that are read whole or not at all: one writer, any number of readers, which never disturb it.
//!
//! ```text
//!  word 0: version, odd while being written │ words 1..: values
//!  writer: 1 version := odd    2 release fence  3 values         4 version := even, release
//!  reader: 1 version, acquire  2 values         3 acquire fence  4 version, the same still?
//! ```
//! After H.-J. Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012.
//!
//! Invariant: a reader hands out values only if it saw the same even version before and after it copied them. If it
//! copied a word of a later write, the two fences make its second look see that write's odd version.
//!
//! A writer that dies half-way leaves the version odd: readers then get `None`, and the successor starts over.
//! `tests/loom` goes through every interleaving, and finds the torn read when the fences are taken away.

use super::memory::Words;
use crate::base::crash;
use crate::base::sync::{Ordering, fence};

/// Writes the cell at word `at`: its version and `values`.
pub fn write(words: &Words, at: usize, values: impl IntoIterator<Item = u64>) {
    let version = words.word(at);
    // The parity decides, not the value: a dead predecessor may have left it odd.
    let odd = version.load(Ordering::Relaxed) | 1;
    version.store(odd, Ordering::Relaxed);
    fence(Ordering::Release);
    for (i, value) in values.into_iter().enumerate() {
        crash::point("seqlock.write");
        words.word(at + 1 + i).store(value, Ordering::Relaxed);
    }
    crash::point("seqlock.publish");
    version.store(odd.wrapping_add(1), Ordering::Release);
}

/// One look at the cell at word `at`: its values, or `None` while they are being written.
#[inline]
pub fn look<const VALUES: usize>(words: &Words, at: usize) -> Option<[u64; VALUES]> {
    let version = words.word(at);
    let before = version.load(Ordering::Acquire);
    if before & 1 != 0 {
        return None;
    }
    let values = std::array::from_fn(|i| words.word(at + 1 + i).load(Ordering::Relaxed));
    fence(Ordering::Acquire);
    (version.load(Ordering::Relaxed) == before).then_some(values)
}
