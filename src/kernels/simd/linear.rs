//! Dot product and axpy.

use super::lanes::{Isa, Lanes, SimdElem};
use super::reduce::{Product, blocked};
use super::{Stores, kernel};

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn dot_body<I: Isa, T: SimdElem>(x: &[T], y: &[T]) -> f64 {
    assert_eq!(x.len(), y.len(), "dot of slices of different length");
    // SAFETY: by contract.
    unsafe { blocked::<I, T, _>(Product, x, y) }
}

kernel! {
    /// The sum of products.
    ///
    /// `f32` is widened first, so products are exact and nothing overflows. Error at most
    /// `(512 / N + 20) * 2^-53 * sum |x[i] * y[i]|` for any length, with `N` lanes of `f64` (8 on AVX-512, 1
    /// on the scalar level): eight accumulators over blocks of 4096 elements, the blocks added with
    /// compensation.
    pub fn dot<T>(x: &[T], y: &[T]) -> f64 = dot_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn axpy_body<I: Isa, T: SimdElem>(alpha: T, x: &[T], y: &[T], out: &mut [T], stores: Stores) {
    assert!(x.len() == y.len() && y.len() == out.len(), "axpy of slices of different length");
    // SAFETY: the processor has `I` by contract; the slices are equally long, and `streams` looked at where the last
    // one begins.
    unsafe {
        if stores.streams::<T, I>(out.as_ptr()) {
            axpy_walk::<I, T, true>(alpha, x, y, out);
            I::fence();
        } else {
            axpy_walk::<I, T, false>(alpha, x, y, out);
        }
    }
}

/// # Safety
/// The processor has `I`; the slices are equally long; `out` is on a boundary of whole vectors if it streams.
#[inline(always)]
unsafe fn axpy_walk<I: Isa, T: SimdElem, const STREAMS: bool>(alpha: T, x: &[T], y: &[T], out: &mut [T]) {
    let (n, length) = (<T::Lanes<I>>::N, x.len());
    let mut i = 0;
    // SAFETY: the processor has `I` by contract; every vector ends at or before `length`, the length of all
    // three slices, and begins whole vectors behind the start.
    unsafe {
        let a = <T::Lanes<I>>::splat(alpha);
        let (x_at, y_at, out_at) = (x.as_ptr(), y.as_ptr(), out.as_mut_ptr());
        while i + 4 * n <= length {
            for j in 0..4 {
                let k = i + j * n;
                let v = a.mul_add(<T::Lanes<I>>::load(x_at.add(k)), <T::Lanes<I>>::load(y_at.add(k)));
                if STREAMS {
                    v.stream(out_at.add(k));
                } else {
                    v.store(out_at.add(k));
                }
            }
            i += 4 * n;
        }
        while i + n <= length {
            let v = a.mul_add(<T::Lanes<I>>::load(x_at.add(i)), <T::Lanes<I>>::load(y_at.add(i)));
            v.store(out_at.add(i));
            i += n;
        }
        if i < length {
            let zero = T::default();
            let (x, y) = (<T::Lanes<I>>::load_part(&x[i..], zero), <T::Lanes<I>>::load_part(&y[i..], zero));
            a.mul_add(x, y).store_part(&mut out[i..]);
        }
    }
}

kernel! {
    /// `out = alpha * x + y`.
    ///
    /// One rounding (half an ulp) where the level has fused multiply-add, two on the scalar and SSE2 levels:
    /// the error is then at most one ulp of the larger of product and result.
    pub fn axpy<T>(alpha: T, x: &[T], y: &[T], out: &mut [T], stores: Stores) = axpy_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{aligned, close, lengths, levels, values};
    use super::*;
    use crate::kernels::reference;

    fn dot_matches<T: SimdElem>() {
        for length in lengths() {
            let (x, y) = (values::<T>(1, length + 3, 3.0), values::<T>(2, length + 3, 3.0));
            for (offset, level) in (0..4).flat_map(|o| levels().map(|l| (o, l))) {
                let (x, y) = (&x[offset.min(3)..][..length], &y[3 - offset.min(3)..][..length]);
                let size: f64 = x.iter().zip(y).map(|(a, b)| (a.to_f64() * b.to_f64()).abs()).sum();
                let want = reference::dot(x, y);
                close(dot(level, x, y), want, 1e-13 * size, &format!("dot {level} {length} +{offset}"));
            }
        }
    }

    #[test]
    fn dot_matches_reference() {
        dot_matches::<f32>();
        dot_matches::<f64>();
    }

    #[test]
    fn dot_keeps_what_f32_could_not_hold() {
        for level in levels() {
            let x = [f32::MAX; 40];
            assert!(dot(level, &x, &x).is_finite());
            assert!(dot(level, &[f32::INFINITY, 0.0], &[0.0, 1.0]).is_nan());
            assert_eq!(dot(level, &[f64::INFINITY; 30], &[1.0; 30]), f64::INFINITY);
            let tiny = [f32::from_bits(1); 33];
            assert!(dot(level, &tiny, &tiny) > 0.0);
        }
    }

    fn axpy_matches<T: SimdElem>(ulp: f64) {
        for length in lengths() {
            let (x, y) = (values::<T>(3, length + 3, 2.0), values::<T>(4, length + 3, 2.0));
            for (offset, level) in (0..4).flat_map(|o| levels().map(|l| (o, l))) {
                let (x, y) = (&x[offset.min(3)..][..length], &y[offset.min(3)..][..length]);
                let alpha = T::from_f64(-1.7);
                let mut want = vec![T::default(); length];
                reference::axpy(alpha, x, y, &mut want);
                for stores in [Stores::Cached, Stores::Streaming] {
                    // On a boundary of whole vectors, or beside it.
                    let mut got = aligned::<T>(length + 4);
                    axpy(level, alpha, x, y, &mut got[offset.min(3)..][..length], stores);
                    for i in 0..length {
                        let g = got[offset.min(3) + i].to_f64();
                        let what = format!("axpy {level} {stores:?} {length} +{offset} at {i}");
                        close(g, want[i].to_f64(), 4.0 * ulp, &what);
                    }
                    assert!(got[offset.min(3) + length..].iter().all(|v| v.to_f64() == 0.0), "wrote too far");
                }
            }
        }
    }

    #[test]
    fn axpy_matches_reference() {
        axpy_matches::<f32>(f64::from(f32::EPSILON));
        axpy_matches::<f64>(f64::EPSILON);
    }

    #[test]
    fn axpy_passes_special_values_through() {
        for level in levels() {
            let (x, y) =
                ([f64::NAN, f64::INFINITY, 0.0, 5e-324, -1.0], [1.0, 1.0, f64::NEG_INFINITY, 0.0, 2.0]);
            let mut out = [0.0; 5];
            axpy(level, 2.0, &x, &y, &mut out, Stores::Cached);
            assert!(out[0].is_nan());
            assert_eq!(out[1..], [f64::INFINITY, f64::NEG_INFINITY, 1e-323, 0.0]);
        }
    }
}
