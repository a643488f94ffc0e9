//! What the tests of the kernels share: lengths, offsets, and values from a seed.

use std::ops::{Deref, DerefMut};

use super::SimdElem;
use crate::kernels::{Level, reference::philox4x32};

/// Every length up to 70, then some around block and tile sizes.
pub fn lengths() -> impl Iterator<Item = usize> {
    (0..=70).chain([127, 128, 129, 1000, 4095, 4096, 4097, 10_007])
}

/// The levels to test: all of them, because one that is missing must fall back and still be right.
pub fn levels() -> [Level; 5] {
    Level::ALL
}

/// `count` values in `-scale .. scale`, the same for the same seed.
pub fn values<T: SimdElem>(seed: u32, count: usize, scale: f64) -> Vec<T> {
    (0..count)
        .map(|i| {
            let word = philox4x32([i as u32, seed, 0, 0], [7, 9])[0];
            T::from_f64((f64::from(word) / f64::from(1_u32 << 31) - 1.0) * scale)
        })
        .collect()
}

/// `count` zeros that begin on a boundary of 64 bytes.
pub fn aligned<T: SimdElem>(count: usize) -> impl DerefMut<Target = [T]> {
    struct Aligned<T> {
        room: Vec<T>,
        start: usize,
        count: usize,
    }
    impl<T> Deref for Aligned<T> {
        type Target = [T];
        fn deref(&self) -> &[T] {
            &self.room[self.start..][..self.count]
        }
    }
    impl<T> DerefMut for Aligned<T> {
        fn deref_mut(&mut self) -> &mut [T] {
            &mut self.room[self.start..][..self.count]
        }
    }
    let room = vec![T::default(); count + 64 / size_of::<T>()];
    let start = room.as_ptr().align_offset(64);
    Aligned { room, start, count }
}

/// Panics unless `got` is within `tolerance` of `want`, or both are NaN, or equal infinities.
#[track_caller]
pub fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    let same = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= tolerance;
    assert!(same, "{what}: got {got:e}, want {want:e}, tolerance {tolerance:e}");
}
