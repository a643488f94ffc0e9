//! Sorting of signed integers in vector registers.
//!
//! A quicksort that partitions in place, a vector at a time: the lanes below the pivot are packed towards one end
//! of a register, the others towards the other, and the register is stored at both ends of the room that reading
//! has left (Bramas, "A novel hybrid quicksort algorithm vectorized using AVX-512 on Intel Skylake", 2017). Short
//! pieces are sorted inside the registers by a bitonic network (Batcher, "Sorting networks and their
//! applications", 1968). Callers turn other types into signed integers of the same order.
//!
//! Time is bounded: a line on which the pivots keep being bad is given to the standard library.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::sort_lanes::{I32x8, I32x16, I64x4, I64x8, Keys, LANES_MAX};
use super::{Form, form};
use crate::kernels::Level;

/// Whether the level has this vector code. Others sort by the standard library.
pub fn sorts_in_vectors(level: Level) -> bool {
    !matches!(form(level), Form::Scalar | Form::Portable)
}

/// `i32` or `i64`. Not to be implemented elsewhere.
pub trait SortKey: bytemuck::Pod + Ord {
    /// Lanes of AVX2.
    #[cfg(target_arch = "x86_64")]
    type Avx2: Keys<Key = Self>;
    /// Lanes of AVX-512.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Keys<Key = Self>;
    /// The key that follows, if there is one.
    fn next(self) -> Option<Self>;
}

impl SortKey for i32 {
    #[cfg(target_arch = "x86_64")]
    type Avx2 = I32x8;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = I32x16;
    #[inline(always)]
    fn next(self) -> Option<i32> {
        self.checked_add(1)
    }
}

impl SortKey for i64 {
    #[cfg(target_arch = "x86_64")]
    type Avx2 = I64x4;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = I64x8;
    #[inline(always)]
    fn next(self) -> Option<i64> {
        self.checked_add(1)
    }
}

/// Makes the dispatching function of a body generic over [`Keys`]; levels without lanes run `$plain`.
macro_rules! sorting {
    ($(#[$meta:meta])* fn $name:ident($keys:ident) $(-> $ret:ty)? = $body:ident, $plain:expr) => {
        $(#[$meta])*
        pub fn $name<K: SortKey>(level: Level, $keys: &mut [K]) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<K: SortKey>(keys: &mut [K]) $(-> $ret)? {
                // SAFETY: this function's own features are the ones the lanes ask for.
                unsafe { $body::<K, K::Avx2>(keys) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            fn avx512<K: SortKey>(keys: &mut [K]) $(-> $ret)? {
                // SAFETY: this function's own features are the ones the lanes ask for.
                unsafe { $body::<K, K::Avx512>(keys) }
            }
            match form(level) {
                Form::Scalar | Form::Portable => $plain,
                // SAFETY: `form` names this one only where the processor has AVX2.
                #[cfg(target_arch = "x86_64")]
                Form::Avx2 => unsafe { avx2($keys) },
                // SAFETY: `form` names this one only where the processor has these AVX-512 parts.
                #[cfg(target_arch = "x86_64")]
                Form::Avx512 => unsafe { avx512($keys) },
            }
        }
    };
}

sorting! {
    /// Sorts ascending.
    fn sort(keys) = sort_body, keys.sort_unstable()
}

sorting! {
    /// Moves the keys so that nothing before the range returned is greater than what is in it or behind it, nothing
    /// behind it less, and in it all are alike. Both sides are shorter than the line. For lines too long to be
    /// sorted at once.
    fn split(keys) -> Range<usize> = split_body, {
        if keys.is_empty() {
            return 0..0;
        }
        let middle = keys.len() / 2;
        keys.select_nth_unstable(middle);
        middle..middle + 1
    }
}

/// Vectors of a piece that the network sorts.
#[cfg(target_arch = "x86_64")]
const REGISTERS: usize = 16;
/// Vectors that the partition reads at once; it holds twice as many.
#[cfg(target_arch = "x86_64")]
const STEP: usize = 4;
/// From so many vectors on the pivot is the median of eight vectors of samples, below of two.
#[cfg(target_arch = "x86_64")]
const SAMPLED_WELL: usize = 512;

/// # Safety
/// The processor has `V`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sort_body<K: SortKey, V: Keys<Key = K>>(keys: &mut [K]) {
    // A good pivot halves; this is several times what good pivots need.
    let mut moves_left = keys.len().saturating_mul(2 * (keys.len().max(2).ilog2() as usize) + 8);
    // The larger part waits, so at most one for each bit of the length does.
    let mut waiting = [(0_usize, 0_usize); usize::BITS as usize];
    let mut count = 0;
    let (mut start, mut end) = (0, keys.len());
    loop {
        let piece = &mut keys[start..end];
        if piece.len() > REGISTERS * V::N && moves_left >= piece.len() {
            moves_left -= piece.len();
            // SAFETY: by contract.
            let alike = unsafe { split_body::<K, V>(piece) };
            let (low, high) = ((start, start + alike.start), (start + alike.end, end));
            let (smaller, larger) = if low.1 - low.0 <= high.1 - high.0 { (low, high) } else { (high, low) };
            waiting[count] = larger;
            count += 1;
            (start, end) = smaller;
            continue;
        }
        if piece.len() > REGISTERS * V::N {
            piece.sort_unstable();
        } else {
            // SAFETY: by contract; the piece is short enough.
            unsafe { short::<V>(piece) };
        }
        if count == 0 {
            return;
        }
        count -= 1;
        (start, end) = waiting[count];
    }
}

/// # Safety
/// The processor has `V`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn split_body<K: SortKey, V: Keys<Key = K>>(keys: &mut [K]) -> Range<usize> {
    if keys.len() <= 2 * STEP * V::N {
        // SAFETY: by contract; 2 * STEP vectors are fewer than the network sorts.
        unsafe { short::<V>(keys) };
        return 0..keys.len().min(1);
    }
    // SAFETY: by contract, and the line is long enough.
    unsafe {
        let pivot = median::<V>(keys);
        let below = partition::<V>(keys, pivot);
        if below > 0 {
            return below..below;
        }
        // Nothing is less, so all that equals the pivot may go first, and at least the pivot does.
        match pivot.next() {
            Some(next) => 0..partition::<V>(keys, next),
            None => 0..keys.len(),
        }
    }
}

/// The median of samples from all over the line.
///
/// # Safety
/// The processor has `V`. There are 2 vectors of keys or more.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn median<V: Keys>(keys: &[V::Key]) -> V::Key {
    let mut space = [V::LARGEST; 8 * LANES_MAX];
    let vectors = if keys.len() >= SAMPLED_WELL * V::N { 8 } else { 2 };
    let samples = &mut space[..vectors * V::N];
    let apart = keys.len() / samples.len();
    for (sample, keys) in samples.iter_mut().zip(keys.chunks_exact(apart)) {
        *sample = keys[apart / 2];
    }
    let middle = samples.len() / 2;
    // SAFETY: by contract.
    unsafe { short::<V>(samples) };
    samples[middle]
}

/// Moves the keys below `pivot` to the front and gives their number.
///
/// # Safety
/// The processor has `V`. There are more than `2 * STEP` vectors of keys.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "no iterator may carry lanes, see `lanes`")]
#[inline(always)]
unsafe fn partition<V: Keys>(keys: &mut [V::Key], pivot: V::Key) -> usize {
    let step = STEP * V::N;
    debug_assert!(keys.len() > 2 * step);
    // `low..left` and `right..high` have been read and may be written.
    let (mut low, mut high) = (0, keys.len());
    let (mut left, mut right) = (step, keys.len() - step);
    let at = keys.as_mut_ptr();
    // SAFETY: by contract. Reads stay in `left..right` and the two ends. Every store lies in what may be written:
    // two steps are held in registers, so that is two steps wide in all, and one more after each reading. It
    // is read where less may be written, so then each side is a step wide at least, and the step that is put
    // away needs no more. In the end it is one stretch, as wide as what is held, which a register put at both of
    // its ends never leaves.
    unsafe {
        let pivots = V::splat(pivot);
        let (mut first, mut last) = ([pivots; STEP], [pivots; STEP]);
        for i in 0..STEP {
            first[i] = V::load(at.add(i * V::N));
            last[i] = V::load(at.add(right + i * V::N));
        }
        macro_rules! put {
            ($vector:expr, $keys:expr) => {{
                let (packed, below) = $vector.packed(pivots);
                packed.store(at.add(low));
                packed.store(at.add(high - V::N));
                low += below;
                high -= $keys - below;
            }};
        }
        while right - left >= step {
            // Without a branch: nobody foretells which side it is.
            let from_left = usize::from(left - low <= high - right);
            let from = from_left * left + (1 - from_left) * (right - step);
            left += from_left * step;
            right -= (1 - from_left) * step;
            let mut vectors = [pivots; STEP];
            for i in 0..STEP {
                vectors[i] = V::load(at.add(from + i * V::N));
            }
            for i in 0..STEP {
                put!(vectors[i], V::N);
            }
        }
        // Less than a step lies between the two; it is put away first.
        let mut space = [V::LARGEST; STEP * LANES_MAX];
        let rest = right - left;
        std::ptr::copy_nonoverlapping(at.add(left), space.as_mut_ptr(), rest);
        let mut i = 0;
        while i + V::N <= rest {
            put!(V::load(space.as_ptr().add(i)), V::N);
            i += V::N;
        }
        if i < rest {
            // Lanes without a key are the last of all keys, so they lie in front of the others that are stored.
            put!(V::load_part(space.as_ptr().add(i), rest - i), rest - i);
        }
        for i in 0..STEP {
            put!(first[i], V::N);
            put!(last[i], V::N);
        }
    }
    low
}

/// Sorts up to [`REGISTERS`] vectors of keys.
///
/// # Safety
/// The processor has `V`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn short<V: Keys>(keys: &mut [V::Key]) {
    // SAFETY: by contract.
    unsafe {
        match keys.len().div_ceil(V::N) {
            0 | 1 => V::network::<1>(keys),
            2 => V::network::<2>(keys),
            3 | 4 => V::network::<4>(keys),
            5..=8 => V::network::<8>(keys),
            _ => V::network::<REGISTERS>(keys),
        }
    }
}

/// Sorts up to `R` vectors of keys: each in its register, then by merging neighbours. `R` is a power of two.
///
/// # Safety
/// The processor has `V`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn network<V: Keys, const R: usize>(keys: &mut [V::Key]) {
    let count = keys.len();
    assert!(count <= R * V::N, "more keys than registers hold");
    let at = keys.as_mut_ptr();
    // SAFETY: by contract; every vector ends, or is cut, at or before `count`.
    unsafe {
        // Lanes without a key are the last of all keys, and end last.
        let mut v = [V::splat(V::LARGEST); R];
        for (i, v) in v.iter_mut().enumerate() {
            let start = i * V::N;
            if start + V::N <= count {
                *v = sorted(V::load(at.add(start)));
            } else if start < count {
                *v = sorted(V::load_part(at.add(start), count - start));
            }
        }
        // One level of merging after the other, written out so that the registers stay registers.
        if R >= 2 {
            merge::<V, 2>(&mut v);
        }
        if R >= 4 {
            merge::<V, 4>(&mut v);
        }
        if R >= 8 {
            merge::<V, 8>(&mut v);
        }
        if R >= 16 {
            merge::<V, 16>(&mut v);
        }
        for (i, v) in v.iter().enumerate() {
            let start = i * V::N;
            if start + V::N <= count {
                v.store(at.add(start));
            } else if start < count {
                v.store_part(at.add(start), count - start);
            }
        }
    }
}

/// Merges the two sorted halves of every `SIZE` registers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn merge<V: Keys, const SIZE: usize>(v: &mut [V]) {
    for v in v.chunks_exact_mut(SIZE) {
        // The second half backwards makes the whole rise and fall.
        for i in 0..SIZE / 2 {
            let (a, b) = (v[i], reversed(v[SIZE - 1 - i]));
            (v[i], v[SIZE - 1 - i]) = (a.min(b), a.max(b));
        }
        let mut apart = SIZE / 4;
        while apart > 0 {
            for i in (0..SIZE).filter(|i| i & apart == 0) {
                let (a, b) = (v[i], v[i + apart]);
                (v[i], v[i + apart]) = (a.min(b), a.max(b));
            }
            apart /= 2;
        }
        for v in v {
            *v = merged(*v);
        }
    }
}

/// Sorts the lanes of a register.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn sorted<V: Keys>(v: V) -> V {
    let v = v.exchange::<1>().exchange::<3>().exchange::<1>();
    if V::N == 4 {
        return v;
    }
    let v = v.exchange::<7>().exchange::<2>().exchange::<1>();
    if V::N == 8 {
        return v;
    }
    v.exchange::<15>().exchange::<4>().exchange::<2>().exchange::<1>()
}

/// Sorts the lanes of a register that rise and then fall, or the other way round.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn merged<V: Keys>(v: V) -> V {
    let v = if V::N >= 16 { v.exchange::<8>() } else { v };
    let v = if V::N >= 8 { v.exchange::<4>() } else { v };
    v.exchange::<2>().exchange::<1>()
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn reversed<V: Keys>(v: V) -> V {
    match V::N {
        16 => v.crossed::<15>(),
        8 => v.crossed::<7>(),
        _ => v.crossed::<3>(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::levels;
    use super::*;
    use crate::kernels::reference::philox4x32;

    /// Numbers below `modulus`, or any when it is 0.
    fn keys<K: SortKey>(seed: u32, count: usize, modulus: u64, key: impl Fn(u64) -> K) -> Vec<K> {
        let number = |i: usize| {
            let words = philox4x32([i as u32, seed, 0, 0], [3, 1]);
            let number = u64::from(words[0]) << 32 | u64::from(words[1]);
            key(if modulus == 0 { number } else { number % modulus })
        };
        (0..count).map(number).collect()
    }

    fn check<K: SortKey + std::fmt::Debug>(key: impl Fn(u64) -> K + Copy) {
        // Up to the largest network, around it, around a partition's steps, and far beyond.
        for count in (0..140).chain([255, 256, 257, 300, 1000, 4095, 4096, 4097, 30_011]) {
            for modulus in [0, 1, 2, 7, 1000] {
                let line = keys(count as u32, count + 1, modulus, key);
                let mut want = line[1..].to_vec();
                want.sort();
                for level in levels() {
                    let mut got = line.clone();
                    sort(level, &mut got[1..]);
                    assert!(got[0] == line[0] && got[1..] == want, "{level} {count} below {modulus}");
                    let mut got = line.clone();
                    let alike = split(level, &mut got[1..]);
                    let (low, high) = (&got[1..][..alike.start], &got[1..][alike.end..]);
                    let middle = &got[1..][alike.clone()];
                    assert!(middle.windows(2).all(|pair| pair[0] == pair[1]), "{level} {count} {alike:?}");
                    let least = middle.iter().chain(high).min();
                    assert!(low.is_empty() || low.iter().max() <= least, "{level} {count} {alike:?}");
                    assert!(high.is_empty() || middle.last() <= high.iter().min(), "{level} {count}");
                    assert!(count == 0 || low.len() < count && high.len() < count, "{level} {count}");
                    got[1..].sort();
                    assert!(got[0] == line[0] && got[1..] == want, "{level} {count}: keys were lost");
                }
            }
        }
    }

    #[test]
    fn keys_are_sorted_and_split() {
        check(|number| number as i32);
        check(|number| number as i64);
        check(|number| i32::MAX - (number % 3) as i32);
        check(|number| i64::MAX - (number % 3) as i64);
        check(|number| i64::MIN + (number % 2) as i64);
    }

    #[test]
    fn orders_that_are_no_accident_are_sorted() {
        let count = 20_000_i32;
        let waves = (0..count).map(|i| (i % 61) * (if i % 2 == 0 { 1 } else { -1 })).collect();
        let organ = (0..count).map(|i| i.min(count - i)).collect();
        for line in [(0..count).collect::<Vec<i32>>(), (0..count).rev().collect(), waves, organ] {
            let mut want = line.clone();
            want.sort();
            for level in levels() {
                let mut got = line.clone();
                sort(level, &mut got);
                assert!(got == want, "{level}");
            }
        }
    }

    /// The samples that the pivot comes from are the smallest keys, over and over.
    #[test]
    fn bad_pivots_end_in_the_standard_library() {
        let mut line: Vec<i64> = keys(9, 50_000, 0, |number| (number >> 2) as i64);
        for start in (0..50_000).step_by(16) {
            for (offset, key) in line[start..50_000.min(start + 16)].iter_mut().enumerate() {
                if offset % 3 != 0 {
                    *key = (start % 97) as i64 - 1000;
                }
            }
        }
        let mut want = line.clone();
        want.sort();
        for level in levels() {
            let mut got = line.clone();
            sort(level, &mut got);
            assert!(got == want, "{level}");
        }
    }
}
