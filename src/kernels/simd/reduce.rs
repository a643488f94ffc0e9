//! Sums, extremes and norms of one slice, and the row-wise helpers for reductions over an outer axis.
//!
//! Everything is accumulated in `f64`. A slice is cut into blocks of 4096 elements; inside a block eight
//! vector accumulators run side by side, and the block sums are added with compensation. So the error bound
//! does not grow with the length, and the result depends on nothing but level and data.

use super::lanes::{Isa, Lanes, SimdElem};
use super::scalar::{One, Scalar};
use super::{Compensated, kernel};
use crate::kernels::Level;

/// Elements summed before the block sum is added to the total.
const BLOCK: usize = 4096;
/// Accumulators side by side: two additions a cycle, four cycles each.
const CHAINS: usize = 8;

/// What one pair of elements adds to an accumulator.
pub trait Term: Copy {
    /// The accumulator after this pair.
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, y: L) -> L;
}

/// `x * y`
#[derive(Clone, Copy)]
pub struct Product;
/// `x`
#[derive(Clone, Copy)]
struct Plain;
/// `(x * scale)^2`
#[derive(Clone, Copy)]
struct ScaledSquare(f64);
/// `(x - mean)^2`
#[derive(Clone, Copy)]
struct SquareDeviation(f64);

impl Term for Product {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, y: L) -> L {
        x.mul_add(y, acc)
    }
}

impl Term for Plain {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, _: L) -> L {
        acc.add(x)
    }
}

impl Term for ScaledSquare {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, _: L) -> L {
        let scaled = x.mul(x.same(self.0));
        scaled.mul_add(scaled, acc)
    }
}

impl Term for SquareDeviation {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, _: L) -> L {
        let deviation = x.sub(x.same(self.0));
        deviation.mul_add(deviation, acc)
    }
}

/// Sums `term` over the pairs of `x` and `y`. A term of one slice is given that slice twice.
///
/// # Safety
/// The processor has `I`.
#[inline(always)]
pub unsafe fn blocked<I: Isa, T: SimdElem, S: Term>(term: S, x: &[T], y: &[T]) -> f64 {
    assert_eq!(x.len(), y.len());
    let n = I::F64::N;
    let mut total = Compensated::default();
    let mut start = 0;
    while start < x.len() {
        let end = x.len().min(start + BLOCK);
        let mut i = start;
        // SAFETY: the processor has `I` by contract; every vector ends at or before `end`, which both
        // slices reach.
        unsafe {
            let (x_at, y_at) = (x.as_ptr(), y.as_ptr());
            let mut acc = [I::F64::splat(0.0); CHAINS];
            while i + CHAINS * n <= end {
                for (j, chain) in acc.iter_mut().enumerate() {
                    let k = i + j * n;
                    *chain =
                        term.step(*chain, T::load_wide::<I>(x_at.add(k)), T::load_wide::<I>(y_at.add(k)));
                }
                i += CHAINS * n;
            }
            while i + n <= end {
                acc[0] = term.step(acc[0], T::load_wide::<I>(x_at.add(i)), T::load_wide::<I>(y_at.add(i)));
                i += n;
            }
            let mut rest = <One<f64> as Lanes>::splat(0.0);
            while i < end {
                rest =
                    term.step(rest, T::load_wide::<Scalar>(x_at.add(i)), T::load_wide::<Scalar>(y_at.add(i)));
                i += 1;
            }
            let pairs = [acc[0].add(acc[1]), acc[2].add(acc[3]), acc[4].add(acc[5]), acc[6].add(acc[7])];
            let sum = pairs[0].add(pairs[1]).add(pairs[2].add(pairs[3]));
            total.add(sum.reduce_add() + rest.reduce_add());
        }
        start = end;
    }
    total.value()
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn sum_body<I: Isa, T: SimdElem>(x: &[T]) -> f64 {
    // SAFETY: by contract.
    unsafe { blocked::<I, T, _>(Plain, x, x) }
}

kernel! {
    /// The sum; 0 for no elements.
    ///
    /// Error at most `(512 / N + 20) * 2^-53 * sum |x[i]|` for any length, with `N` lanes of `f64` (8 on
    /// AVX-512, 1 on the scalar level). `f32` is widened, so a sum of `f32` cannot overflow.
    pub fn sum<T>(x: &[T]) -> f64 = sum_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn sum_sq_body<I: Isa, T: SimdElem>(x: &[T]) -> f64 {
    // SAFETY: by contract.
    unsafe { blocked::<I, T, _>(Product, x, x) }
}

kernel! {
    /// The sum of squares; relative error as the bound of [`sum`].
    ///
    /// `f32` is widened and cannot overflow. With `f64`, values above about 1e154 make it infinite and values
    /// below about 1e-154 lose digits; [`norm2`] does neither.
    pub fn sum_sq<T>(x: &[T]) -> f64 = sum_sq_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn sum_sq_scaled_body<I: Isa, T: SimdElem>(x: &[T], scale: f64) -> f64 {
    // SAFETY: by contract.
    unsafe { blocked::<I, T, _>(ScaledSquare(scale), x, x) }
}

kernel! {
    /// The sum of `(x * scale)^2`.
    fn sum_sq_scaled<T>(x: &[T], scale: f64) -> f64 = sum_sq_scaled_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn sum_sq_dev_body<I: Isa, T: SimdElem>(x: &[T], mean: f64) -> f64 {
    // SAFETY: by contract.
    unsafe { blocked::<I, T, _>(SquareDeviation(mean), x, x) }
}

kernel! {
    /// The sum of `(x - mean)^2`, the second pass of a variance; relative error as the bound of [`sum`] plus
    /// that of the rounded differences.
    pub fn sum_sq_dev<T>(x: &[T], mean: f64) -> f64 = sum_sq_dev_body
}

/// The Euclidean norm; overflows only when the result does.
///
/// One pass as long as the sum of squares stays in the comfortable range, else a second one over values
/// scaled by a power of two. An infinite element gives infinity, a NaN gives NaN.
pub fn norm2<T: SimdElem>(level: Level, x: &[T]) -> f64 {
    let squares = sum_sq(level, x);
    if squares.is_nan() || (1e-280..1e300).contains(&squares) {
        return squares.sqrt();
    }
    let largest = max(level, x).to_f64().max(-min(level, x).to_f64());
    if x.is_empty() || largest == 0.0 || largest.is_infinite() {
        return if x.is_empty() { 0.0 } else { largest };
    }
    // Twice, because the reciprocal of a subnormal number may overflow where its half does not.
    let exponent = (largest.to_bits() >> 52) as i32 - 1023;
    let down = 2.0_f64.powi((-exponent).clamp(-1000, 1000));
    sum_sq_scaled(level, x, down).sqrt() / down
}

/// The smallest or largest element, NaN when there is none or one is NaN.
///
/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn extreme<I: Isa, T: SimdElem, const LARGEST: bool>(x: &[T]) -> T {
    let nan = T::from_f64(f64::NAN);
    let Some(&first) = x.first() else { return nan };
    let n = <T::Lanes<I>>::N;
    // SAFETY: the processor has `I` by contract; every vector ends at or before `end`, inside the slice.
    unsafe {
        let mut best = [<T::Lanes<I>>::splat(first); 4];
        let mut start = 0;
        while start < x.len() {
            let end = x.len().min(start + BLOCK);
            let mut i = start;
            let mut bad = best[0].is_nan();
            while i + 4 * n <= end {
                for (j, chain) in best.iter_mut().enumerate() {
                    let v = <T::Lanes<I>>::load(x.as_ptr().add(i + j * n));
                    bad = <T::Lanes<I>>::or(bad, v.is_nan());
                    *chain = if LARGEST { v.max(*chain) } else { v.min(*chain) };
                }
                i += 4 * n;
            }
            while i < end {
                let v = if i + n <= end {
                    <T::Lanes<I>>::load(x.as_ptr().add(i))
                } else {
                    <T::Lanes<I>>::load_part(&x[i..end], first)
                };
                bad = <T::Lanes<I>>::or(bad, v.is_nan());
                best[0] = if LARGEST { v.max(best[0]) } else { v.min(best[0]) };
                i += n;
            }
            if <T::Lanes<I>>::any(bad) {
                return nan;
            }
            start = end;
        }
        if LARGEST {
            best[0].max(best[1]).max(best[2].max(best[3])).reduce_max()
        } else {
            best[0].min(best[1]).min(best[2].min(best[3])).reduce_min()
        }
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn min_body<I: Isa, T: SimdElem>(x: &[T]) -> T {
    // SAFETY: by contract.
    unsafe { extreme::<I, T, false>(x) }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn max_body<I: Isa, T: SimdElem>(x: &[T]) -> T {
    // SAFETY: by contract.
    unsafe { extreme::<I, T, true>(x) }
}

kernel! {
    /// The smallest element, exact; NaN when one is NaN or there is none. Either zero may stand for both.
    pub fn min<T>(x: &[T]) -> T = min_body
}

kernel! {
    /// The largest element, exact; NaN when one is NaN or there is none. Either zero may stand for both.
    pub fn max<T>(x: &[T]) -> T = max_body
}

// ---------------------------------------------------------------------------------------------------------
// Row by row: the reduction over an outer axis keeps one accumulator per column.

/// What a row does to the accumulators of its columns.
trait RowTerm: Copy {
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, mean: L) -> L;
}

#[derive(Clone, Copy)]
struct AddPlain;
#[derive(Clone, Copy)]
struct AddSquare;
#[derive(Clone, Copy)]
struct AddSquareDeviation;

impl RowTerm for AddPlain {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, _: L) -> L {
        acc.add(x)
    }
}

impl RowTerm for AddSquare {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, _: L) -> L {
        x.mul_add(x, acc)
    }
}

impl RowTerm for AddSquareDeviation {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, mean: L) -> L {
        let deviation = x.sub(mean);
        deviation.mul_add(deviation, acc)
    }
}

/// # Safety
/// The processor has `I`. `mean` is as long as `acc`, or null for a term that does not look at it.
#[inline(always)]
unsafe fn row<I: Isa, T: SimdElem, S: RowTerm>(term: S, acc: &mut [f64], row: &[T], mean: *const f64) {
    assert_eq!(acc.len(), row.len(), "a row and its accumulators differ in length");
    let n = I::F64::N;
    let mut i = 0;
    // SAFETY: by contract; every vector ends at or before the length of `acc`, `row` and `mean`.
    unsafe {
        let acc_at = acc.as_mut_ptr();
        while i + n <= row.len() {
            let a = I::F64::load(acc_at.add(i));
            let m = if mean.is_null() { a } else { I::F64::load(mean.add(i)) };
            term.step(a, T::load_wide::<I>(row.as_ptr().add(i)), m).store(acc_at.add(i));
            i += n;
        }
        while i < row.len() {
            let a = <One<f64> as Lanes>::load(acc_at.add(i));
            let m = if mean.is_null() { a } else { <One<f64> as Lanes>::load(mean.add(i)) };
            term.step(a, T::load_wide::<Scalar>(row.as_ptr().add(i)), m).store(acc_at.add(i));
            i += 1;
        }
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn add_assign_body<I: Isa, T: SimdElem>(acc: &mut [f64], x: &[T]) {
    // SAFETY: by contract; this term needs no mean.
    unsafe { row::<I, T, _>(AddPlain, acc, x, std::ptr::null()) }
}

kernel! {
    /// `acc += x`, column by column. One rounding each; the caller's number of rows sets the error.
    pub fn add_assign<T>(acc: &mut [f64], x: &[T]) = add_assign_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn add_sq_assign_body<I: Isa, T: SimdElem>(acc: &mut [f64], x: &[T]) {
    // SAFETY: by contract; this term needs no mean.
    unsafe { row::<I, T, _>(AddSquare, acc, x, std::ptr::null()) }
}

kernel! {
    /// `acc += x * x`, column by column.
    pub fn add_sq_assign<T>(acc: &mut [f64], x: &[T]) = add_sq_assign_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn add_sq_dev_assign_body<I: Isa, T: SimdElem>(acc: &mut [f64], mean: &[f64], x: &[T]) {
    assert_eq!(acc.len(), mean.len(), "means and accumulators differ in length");
    // SAFETY: by contract; the length was checked.
    unsafe { row::<I, T, _>(AddSquareDeviation, acc, x, mean.as_ptr()) }
}

kernel! {
    /// `acc += (x - mean)^2`, column by column: the second pass of a variance over an outer axis.
    pub fn add_sq_dev_assign<T>(acc: &mut [f64], mean: &[f64], x: &[T]) = add_sq_dev_assign_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn extreme_assign<I: Isa, T: SimdElem, const LARGEST: bool>(acc: &mut [T], x: &[T]) {
    assert_eq!(acc.len(), x.len(), "a row and its accumulators differ in length");
    let n = <T::Lanes<I>>::N;
    let mut i = 0;
    while i < x.len() {
        // SAFETY: by contract; whole vectors end at or before the length of both slices.
        unsafe {
            let whole = i + n <= x.len();
            let (a, v) = if whole {
                (<T::Lanes<I>>::load(acc.as_ptr().add(i)), <T::Lanes<I>>::load(x.as_ptr().add(i)))
            } else {
                let zero = T::default();
                (<T::Lanes<I>>::load_part(&acc[i..], zero), <T::Lanes<I>>::load_part(&x[i..], zero))
            };
            let best = if LARGEST { a.max(v) } else { a.min(v) };
            // The sum of two numbers one of which is NaN is NaN.
            let bad = <T::Lanes<I>>::or(a.is_nan(), v.is_nan());
            let best = <T::Lanes<I>>::select(bad, a.add(v), best);
            if whole {
                best.store(acc.as_mut_ptr().add(i));
            } else {
                best.store_part(&mut acc[i..]);
            }
        }
        i += n;
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn min_assign_body<I: Isa, T: SimdElem>(acc: &mut [T], x: &[T]) {
    // SAFETY: by contract.
    unsafe { extreme_assign::<I, T, false>(acc, x) }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn max_assign_body<I: Isa, T: SimdElem>(acc: &mut [T], x: &[T]) {
    // SAFETY: by contract.
    unsafe { extreme_assign::<I, T, true>(acc, x) }
}

kernel! {
    /// The smaller of each column and its accumulator, NaN when either is NaN.
    pub fn min_assign<T>(acc: &mut [T], x: &[T]) = min_assign_body
}

kernel! {
    /// The larger of each column and its accumulator, NaN when either is NaN.
    pub fn max_assign<T>(acc: &mut [T], x: &[T]) = max_assign_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, lengths, levels, values};
    use super::*;
    use crate::kernels::reference;

    fn reductions_match<T: SimdElem>() {
        for length in lengths() {
            let all = values::<T>(11, length + 3, 5.0);
            for (offset, level) in (0..4).flat_map(|o| levels().map(|l| (o, l))) {
                let x = &all[offset.min(3)..][..length];
                let what = format!("{level} {length} +{offset}");
                let size: f64 = x.iter().map(|v| v.to_f64().abs()).sum();
                close(sum(level, x), reference::sum(x), 1e-13 * size, &format!("sum {what}"));
                let squares: f64 = x.iter().map(|v| v.to_f64() * v.to_f64()).sum();
                close(sum_sq(level, x), squares, 1e-13 * squares, &format!("sum_sq {what}"));
                close(norm2(level, x), reference::norm2(x), 1e-13 * size, &format!("norm2 {what}"));
                assert!(
                    min(level, x).to_f64().to_bits() == reference::min(x).to_bits() || length == 0,
                    "min {what}"
                );
                assert!(
                    max(level, x).to_f64().to_bits() == reference::max(x).to_bits() || length == 0,
                    "max {what}"
                );
                if length > 0 {
                    let mean = reference::mean(x);
                    let std = (sum_sq_dev(level, x, mean) / length as f64).sqrt();
                    close(std, reference::std(x), 1e-12 * std, &format!("std {what}"));
                }
            }
        }
    }

    #[test]
    fn reductions_match_reference() {
        reductions_match::<f32>();
        reductions_match::<f64>();
    }

    #[test]
    fn one_nan_anywhere_is_seen() {
        for (level, length) in levels().into_iter().flat_map(|l| [1, 5, 33, 70].map(|n| (l, n))) {
            for at in 0..length {
                let mut x = vec![1.0_f32; length];
                x[at] = f32::NAN;
                assert!(min(level, &x).is_nan() && max(level, &x).is_nan(), "{level} {length} at {at}");
                assert!(sum(level, &x).is_nan() && norm2(level, &x).is_nan());
                let mut acc = vec![2.0; length];
                min_assign(level, &mut acc, &x);
                assert!(acc[at].is_nan() && acc.iter().filter(|v| v.is_nan()).count() == 1);
                max_assign(level, &mut acc, &vec![3.0; length]);
                assert!(acc[at].is_nan() && acc.iter().filter(|v| **v == 3.0).count() == length - 1);
            }
        }
    }

    #[test]
    fn empty_and_infinite_inputs_have_their_values() {
        for level in levels() {
            assert!(min::<f64>(level, &[]).is_nan() && max::<f32>(level, &[]).is_nan());
            assert_eq!((sum::<f32>(level, &[]), norm2::<f64>(level, &[])), (0.0, 0.0));
            assert_eq!(sum(level, &[f64::INFINITY, 1.0]), f64::INFINITY);
            let mut long = vec![1.0; 20_000];
            long[3] = f64::INFINITY;
            assert_eq!(sum(level, &long), f64::INFINITY);
            long[19_000] = f64::NEG_INFINITY;
            assert!(sum(level, &long).is_nan());
            assert_eq!(norm2(level, &[1.0, f64::NEG_INFINITY]), f64::INFINITY);
            assert_eq!(min(level, &[f64::INFINITY; 9]), f64::INFINITY);
        }
    }

    #[test]
    fn norm2_neither_overflows_nor_vanishes() {
        for level in levels() {
            for scale in [1e300, 1e-300, 1e154, 1e-160, 5e-324] {
                let x = [3.0 * scale, -4.0 * scale];
                let want = reference::norm2(&x);
                close(norm2(level, &x), want, 1e-14 * want, &format!("norm2 {level} {scale:e}"));
            }
            assert!((norm2(level, &[f32::MAX; 4]) / f64::from(f32::MAX) - 2.0).abs() < 1e-14);
        }
    }

    #[test]
    fn long_sums_stay_exact_to_the_last_digits() {
        let x = vec![0.1_f32; 1_000_000];
        for level in levels() {
            close(sum(level, &x), f64::from(0.1_f32) * 1e6, 1e-9, &format!("sum {level}"));
        }
    }

    fn rows_match<T: SimdElem>() {
        for length in lengths() {
            let (a, b) = (values::<T>(21, length + 1, 4.0), values::<T>(22, length + 1, 4.0));
            let (a, b) = (&a[1..], &b[1..]);
            for level in levels() {
                let (mut plain, mut square, mut dev) =
                    (vec![0.0; length], vec![0.0; length], vec![0.0; length]);
                let mean: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a.to_f64() + b.to_f64()) / 2.0).collect();
                let (mut low, mut high) = (a.to_vec(), a.to_vec());
                for x in [a, b] {
                    add_assign(level, &mut plain, x);
                    add_sq_assign(level, &mut square, x);
                    add_sq_dev_assign(level, &mut dev, &mean, x);
                    min_assign(level, &mut low, x);
                    max_assign(level, &mut high, x);
                }
                for i in 0..length {
                    let pair = [a[i], b[i]];
                    let what = format!("{level} {length} column {i}");
                    close(plain[i], reference::sum(&pair), 1e-14, &what);
                    close(square[i].sqrt(), reference::norm2(&pair), 1e-14, &what);
                    close((dev[i] / 2.0).sqrt(), reference::std(&pair), 1e-14, &what);
                    close(low[i].to_f64(), reference::min(&pair), 0.0, &what);
                    close(high[i].to_f64(), reference::max(&pair), 0.0, &what);
                }
            }
        }
    }

    #[test]
    fn row_helpers_match_reference() {
        rows_match::<f32>();
        rows_match::<f64>();
    }
}
