//! What one core can do at most, for kernels to be compared with: multiply-adds that wait for nothing but each other, and the
//! triad `out = a * x + y` with stores that go past the cache. The triad with plain stores is [`super::axpy`].

use std::hint::black_box;

use super::kernel;
use super::lanes::{Isa, Lanes, SimdElem};

/// Chains of multiply-adds side by side: each step waits 4 cycles for the one before, two of them begin in a cycle, and 6 to
/// 8 cycles are needed where product and sum are two instructions. With factor and term they are 14 of 16 registers.
const CHAINS: usize = 12;
/// Where every chain ends: `x = x / 2 + 1 / 4`.
const END: f64 = 0.5;

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn multiply_adds_body<I: Isa, T: SimdElem>(rounds: u64) -> (f64, T) {
    // Hidden, or the compiler knows the end.
    let (factor, term) = black_box((T::from_f64(0.5), T::from_f64(0.25)));
    // SAFETY: the processor has `I` by contract.
    unsafe {
        let (factor, term) = (<T::Lanes<I>>::splat(factor), <T::Lanes<I>>::splat(term));
        let mut chains = [factor; CHAINS];
        #[allow(clippy::needless_range_loop, reason = "no iterator may carry a lane value")]
        for i in 0..CHAINS {
            // Different, or they are one chain to the compiler.
            chains[i] = <T::Lanes<I>>::splat(T::from_f64(i as f64));
        }
        for _ in 0..rounds {
            #[allow(clippy::needless_range_loop, reason = "as above")]
            for i in 0..CHAINS {
                chains[i] = chains[i].mul_add(factor, term);
            }
        }
        let mut sum = chains[0];
        #[allow(clippy::needless_range_loop, reason = "as above")]
        for i in 1..CHAINS {
            sum = sum.add(chains[i]);
        }
        let lanes = <T::Lanes<I>>::N;
        let mean = sum.reduce_add().to_f64() / (CHAINS * lanes) as f64;
        (2.0 * rounds as f64 * (CHAINS * lanes) as f64, T::from_f64(mean / END))
    }
}

kernel! {
    /// Nothing but multiply-adds in registers. Answers how many operations that were, a multiply-add counting as two, and a
    /// number that is 1 when they were done, from 64 rounds on.
    ///
    /// On the scalar level the compiler may use the vectors of the baseline, as it may in the kernels.
    pub fn multiply_adds<T>(rounds: u64) -> (f64, T) = multiply_adds_body
}

/// `out = alpha * x + y`, each line of the cache written as a whole and not read before. `None` when this processor has no
/// such stores; `out` is untouched then.
///
/// Stores of 16 bytes suffice: four of them fill a line before it leaves the core.
#[cfg(target_arch = "x86_64")]
pub fn triad_streaming(alpha: f64, x: &[f64], y: &[f64], out: &mut [f64]) -> Option<()> {
    use std::arch::x86_64::{_mm_add_pd, _mm_loadu_pd, _mm_mul_pd, _mm_set1_pd, _mm_sfence, _mm_stream_pd};
    assert!(x.len() == y.len() && y.len() == out.len(), "triad of slices of different length");
    // One element may stand before the first whole 16 bytes, and one after the last.
    let head = usize::from(!out.as_ptr().cast::<u8>().addr().is_multiple_of(16)).min(out.len());
    let tail = head + (out.len() - head) / 2 * 2;
    for i in (0..head).chain(tail..out.len()) {
        out[i] = alpha * x[i] + y[i];
    }
    // SAFETY: SSE2 is the baseline; every pair lies within `head..tail`, inside all three slices; `out` is on a boundary of 16
    // bytes at `head`, since elements of 8 bytes are on one of 8. The fence ends what the stores put off.
    unsafe {
        let factor = _mm_set1_pd(alpha);
        for i in (head..tail).step_by(2) {
            let product = _mm_mul_pd(factor, _mm_loadu_pd(x.as_ptr().add(i)));
            _mm_stream_pd(out.as_mut_ptr().add(i), _mm_add_pd(product, _mm_loadu_pd(y.as_ptr().add(i))));
        }
        _mm_sfence();
    }
    Some(())
}

/// This processor has no such stores.
#[cfg(not(target_arch = "x86_64"))]
pub fn triad_streaming(_alpha: f64, _x: &[f64], _y: &[f64], _out: &mut [f64]) -> Option<()> {
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::{levels, values};
    use super::*;

    #[test]
    fn multiply_adds_are_done_and_counted() {
        for level in levels() {
            let (of_f32, f32_done) = multiply_adds::<f32>(level, 100);
            let (of_f64, f64_done) = multiply_adds::<f64>(level, 100);
            assert_eq!((f32_done, f64_done), (1.0, 1.0), "{level}");
            let lanes = [of_f32, of_f64].map(|operations| operations / (2.0 * 100.0 * CHAINS as f64));
            assert!(lanes == [1.0, 1.0] || lanes[0] == 2.0 * lanes[1], "{level}: {lanes:?}");
            assert!(lanes[1] >= 1.0 && lanes[0] <= 16.0, "{level}: {lanes:?}");
        }
    }

    #[test]
    fn the_triad_past_the_cache_is_the_triad() {
        for length in [0, 1, 2, 3, 8, 101] {
            for offset in 0..2 {
                let (x, y) = (values::<f64>(1, length, 1.0), values::<f64>(2, length, 1.0));
                let mut out = vec![7.0; length + 2];
                if triad_streaming(3.0, &x, &y, &mut out[offset..offset + length]).is_none() {
                    return;
                }
                for i in 0..length {
                    assert_eq!(out[offset + i], 3.0 * x[i] + y[i], "{length} +{offset} at {i}");
                }
                assert!(out[..offset].iter().chain(&out[offset + length..]).all(|value| *value == 7.0));
            }
        }
    }
}
