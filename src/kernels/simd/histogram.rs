//! Histograms with equal bins.
//!
//! Vector code finds the bins of 64 values at a time, scalar code counts them. Neighbouring equal values
//! would make each count wait for the one before; sub-tables, filled in turn, keep them apart.

use super::kernel;
use super::lanes::{BitLanes, Isa, Lanes, Lanes64, SimdElem};
use crate::kernels::reference::histogram_bin;

/// Values whose bins are found before they are counted.
const GROUP: usize = 64;
/// Tables that are filled in turn.
const TABLES: usize = 4;
/// Most bins with sub-tables: the four stay within half of a small first-level cache.
const SUB_TABLE_BINS_MAX: usize = 1023;

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn histogram_body<I: Isa, T: SimdElem>(
    x: &[T],
    min: f64,
    max: f64,
    counts: &mut [u64],
    sub_tables: bool,
) -> u64 {
    let bins = counts.len();
    assert!(bins > 0 && min < max && (max - min).is_finite(), "bins {bins} over {min}..{max}");
    let mut ignored = 0;
    let mut bin = [0_u64; GROUP];
    // A sub-table's counters have 32 bits, so no more than 2^32 - 1 values between two emptyings.
    for part in x.chunks(1 << 31) {
        if sub_tables && bins <= SUB_TABLE_BINS_MAX && part.len() >= 4 * bins {
            let mut tables = [[0_u32; SUB_TABLE_BINS_MAX + 1]; TABLES];
            for group in part.chunks(GROUP) {
                // SAFETY: by contract.
                unsafe { bins_of::<I, T>(group, min, max, bins, &mut bin) };
                let [a, b, c, d] = &mut tables;
                for four in bin[..group.len()].chunks(TABLES) {
                    match *four {
                        [i, j, k, l] => {
                            a[i as usize] += 1;
                            b[j as usize] += 1;
                            c[k as usize] += 1;
                            d[l as usize] += 1;
                        }
                        _ => four.iter().for_each(|i| a[*i as usize] += 1),
                    }
                }
            }
            for table in &tables {
                counts.iter_mut().zip(table).for_each(|(count, more)| *count += u64::from(*more));
                ignored += u64::from(table[bins]);
            }
        } else {
            for group in part.chunks(GROUP) {
                // SAFETY: by contract.
                unsafe { bins_of::<I, T>(group, min, max, bins, &mut bin) };
                for i in &bin[..group.len()] {
                    match counts.get_mut(*i as usize) {
                        Some(count) => *count += 1,
                        None => ignored += 1,
                    }
                }
            }
        }
    }
    ignored
}

/// The bins of up to `GROUP` values; `bins` for a value outside.
///
/// The nearest integer to the scaled value is the bin or the one above it, and the comparison with that bin's
/// lower edge tells which. The edge is computed as `reference::histogram_bin` does, in two roundings.
///
/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn bins_of<I: Isa, T: SimdElem>(group: &[T], min: f64, max: f64, bins: usize, bin: &mut [u64; GROUP]) {
    const TWO52: f64 = 4_503_599_627_370_496.0;
    let n = I::F64::N;
    // SAFETY: the processor has `I` by contract; GROUP is a multiple of every N, so stores stay inside `bin`,
    // and whole loads end inside `group`.
    unsafe {
        let (low, high) = (I::F64::splat(min), I::F64::splat(max));
        let scale = I::F64::splat(bins as f64 / (max - min));
        let step = I::F64::splat((max - min) / bins as f64);
        let (last, outside) = (I::F64::splat((bins - 1) as f64), I::F64::splat(bins as f64));
        let (two52, one, zero) = (I::F64::splat(TWO52), I::F64::splat(1.0), I::F64::splat(0.0));
        let mantissa = <I::F64 as Lanes64>::Bits::splat(0x000F_FFFF_FFFF_FFFF);
        let mut i = 0;
        while i < group.len() {
            let v = if i + n <= group.len() {
                T::load_wide::<I>(group.as_ptr().add(i))
            } else {
                T::load_wide_part::<I>(&group[i..], T::default())
            };
            let guess = v.sub(low).mul(scale).add(two52).sub(two52).min(last);
            let above = v.lt(guess.mul(step).add(low));
            let found = I::F64::select(above, guess.sub(one).max(zero), guess);
            let out = I::F64::or(I::F64::or(v.lt(low), high.lt(v)), v.is_nan());
            let found = I::F64::select(out, outside, found);
            found.add(two52).bits().and(mantissa).store(bin.as_mut_ptr().add(i));
            i += n;
        }
    }
}

kernel! {
    /// Adds the elements of `x` to `counts`, equal bins over `[min, max]`; returns how many were left out.
    ///
    /// NumPy's rule, exact at the edges, computed in `f64` for both types: see `reference::histogram`, with
    /// which it agrees as long as bins are wider than a few ulp of `min` and `max`. `sub_tables` spreads the
    /// counting over four tables (up to 1023 bins, and only when there are several values per bin): faster
    /// when values repeat.
    ///
    /// # Panics
    /// When there are no bins, or `min < max` does not hold, or `max - min` is not finite.
    pub fn histogram<T>(
        x: &[T], min: f64, max: f64, counts: &mut [u64], sub_tables: bool
    ) -> u64 = histogram_body
}

/// [`histogram`] for bytes: counts the 256 values, then puts them into bins. The same on every level.
///
/// # Panics
/// As [`histogram`].
pub fn histogram_u8(x: &[u8], min: f64, max: f64, counts: &mut [u64], sub_tables: bool) -> u64 {
    let mut by_value = [0_u64; 256];
    for part in x.chunks(1 << 31) {
        if sub_tables && part.len() >= 2048 {
            let mut tables = [[0_u32; 256]; 8];
            let eights = part.chunks_exact(8);
            for &byte in eights.remainder() {
                tables[0][usize::from(byte)] += 1;
            }
            for eight in eights {
                for (table, &byte) in tables.iter_mut().zip(eight) {
                    table[usize::from(byte)] += 1;
                }
            }
            for table in &tables {
                by_value.iter_mut().zip(table).for_each(|(count, more)| *count += u64::from(*more));
            }
        } else {
            part.iter().for_each(|&byte| by_value[usize::from(byte)] += 1);
        }
    }
    let mut ignored = 0;
    for (value, &many) in (0_u8..=255).zip(&by_value) {
        match histogram_bin(f64::from(value), min, max, counts.len()) {
            Some(bin) => counts[bin] += many,
            None => ignored += many,
        }
    }
    ignored
}

#[cfg(test)]
mod tests {
    use super::super::testing::{lengths, levels, values};
    use super::*;
    use crate::kernels::reference;

    fn matches<T: SimdElem>() {
        for length in lengths() {
            let all = values::<T>(41, length + 3, 2.0);
            for (bins, min, max) in [(1, -1.0, 1.0), (10, -2.0, 2.0), (256, -0.3, 1.7), (5000, -2.0, 1.0)] {
                let x = &all[length % 4..][..length.saturating_sub(1)];
                let mut want = vec![1; bins];
                let ignored = reference::histogram(x, min, max, &mut want);
                for (level, sub_tables) in levels().into_iter().flat_map(|l| [(l, true), (l, false)]) {
                    let mut got = vec![1; bins];
                    assert_eq!(histogram(level, x, min, max, &mut got, sub_tables), ignored);
                    assert!(got == want, "{level} {length} in {bins}");
                }
            }
        }
    }

    #[test]
    fn counts_match_reference() {
        matches::<f32>();
        matches::<f64>();
    }

    #[test]
    fn values_on_the_edges_and_outside_fall_where_numpy_puts_them() {
        for bins in [3_usize, 7, 10, 49, 100, 1000] {
            let (min, max) = (-0.1, 0.7);
            let step = (max - min) / bins as f64;
            let mut x: Vec<f64> = (0..=bins).map(|i| i as f64 * step + min).collect();
            let near: Vec<f64> = x.iter().flat_map(|v| [v.next_up(), v.next_down()]).collect();
            x.extend(near);
            x.extend([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e-324, -0.0, 1e300, max, min]);
            let mut want = vec![0; bins];
            let ignored = reference::histogram(&x, min, max, &mut want);
            for (level, sub_tables) in levels().into_iter().flat_map(|l| [(l, true), (l, false)]) {
                let many: Vec<f64> = x.iter().copied().cycle().take(x.len() * 40).collect();
                let mut got = vec![0; bins];
                assert_eq!(histogram(level, &many, min, max, &mut got, sub_tables), ignored * 40);
                assert!(got.iter().zip(&want).all(|(g, w)| *g == w * 40), "{level} in {bins}");
            }
        }
    }

    #[test]
    fn bytes_match_reference() {
        for length in lengths() {
            let x: Vec<u8> = values::<f64>(43, length, 128.0).iter().map(|v| (v + 128.0) as u8).collect();
            for (bins, min, max) in [(256, 0.0, 256.0), (16, 0.0, 255.0), (10, 20.0, 99.5)] {
                let mut want = vec![0; bins];
                let ignored = reference::histogram_u8(&x, min, max, &mut want);
                for sub_tables in [true, false] {
                    let mut got = vec![0; bins];
                    assert_eq!(histogram_u8(&x, min, max, &mut got, sub_tables), ignored);
                    assert_eq!(got, want);
                }
            }
        }
    }
}
