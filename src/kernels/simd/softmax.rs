//! The passes of a softmax, and running sums row by row.
//!
//! All of them compute in lanes of `f64` and round once to the type.

use super::lanes::{Isa, Lanes, SimdElem};
use super::math::exp_any;
use super::scalar::{One, Scalar};
use super::{Compensated, kernel};

/// Elements added before their sum goes to the total.
const BLOCK: usize = 4096;

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn exp_below_body<I: Isa, T: SimdElem>(x: &[T], largest: f64, out: &mut [T]) -> f64 {
    assert_eq!(x.len(), out.len(), "elements and answers differ in number");
    let n = I::F64::N;
    let mut total = Compensated::default();
    let mut start = 0;
    while start < x.len() {
        let end = x.len().min(start + BLOCK);
        let mut i = start;
        // SAFETY: the processor has `I` by contract; every vector ends at or before `end`, which both slices
        // reach.
        unsafe {
            let (x_at, out_at) = (x.as_ptr(), out.as_mut_ptr());
            let mut sums = I::F64::splat(0.0);
            while i + n <= end {
                let y = exp_any(T::load_wide::<I>(x_at.add(i)).sub(sums.same(largest)));
                T::store_narrow::<I>(y, out_at.add(i));
                sums = sums.add(y);
                i += n;
            }
            let mut rest = <One<f64> as Lanes>::splat(0.0);
            while i < end {
                let y = exp_any(T::load_wide::<Scalar>(x_at.add(i)).sub(rest.same(largest)));
                T::store_narrow::<Scalar>(y, out_at.add(i));
                rest = rest.add(y);
                i += 1;
            }
            total.add(sums.reduce_add() + rest.reduce_add());
        }
        start = end;
    }
    total.value()
}

kernel! {
    /// `out = exp(x - largest)`, rounded to the type, and the sum of what was rounded.
    ///
    /// Error of the sum: `(4096 / N + 2) * 2^-53` of itself, with `N` lanes of `f64`, and that of its terms.
    pub fn exp_below<T>(x: &[T], largest: f64, out: &mut [T]) -> f64 = exp_below_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn divide_body<I: Isa, T: SimdElem>(x: &mut [T], by: f64) {
    let n = I::F64::N;
    let mut i = 0;
    // SAFETY: the processor has `I` by contract; every vector ends at or before the end of the slice.
    unsafe {
        let at = x.as_mut_ptr();
        let divisor = I::F64::splat(by);
        while i + n <= x.len() {
            T::store_narrow::<I>(T::load_wide::<I>(at.add(i)).div(divisor), at.add(i));
            i += n;
        }
        while i < x.len() {
            let quotient = T::load_wide::<Scalar>(at.add(i)).div(<One<f64> as Lanes>::splat(by));
            T::store_narrow::<Scalar>(quotient, at.add(i));
            i += 1;
        }
    }
}

kernel! {
    /// `x = x / by`
    pub fn divide<T>(x: &mut [T], by: f64) = divide_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn exp_below_row_body<I: Isa, T: SimdElem>(x: &[T], largest: &[T], sums: &mut [f64], out: &mut [T]) {
    let lengths = (x.len(), x.len(), x.len());
    assert_eq!((largest.len(), sums.len(), out.len()), lengths, "a row and its columns differ in length");
    let n = I::F64::N;
    let mut i = 0;
    // SAFETY: the processor has `I` by contract; every vector ends at or before the end of the four slices.
    unsafe {
        let (x_at, largest_at) = (x.as_ptr(), largest.as_ptr());
        let (sums_at, out_at) = (sums.as_mut_ptr(), out.as_mut_ptr());
        while i + n <= x.len() {
            let below = T::load_wide::<I>(x_at.add(i)).sub(T::load_wide::<I>(largest_at.add(i)));
            let y = exp_any(below);
            I::F64::load(sums_at.add(i)).add(y).store(sums_at.add(i));
            T::store_narrow::<I>(y, out_at.add(i));
            i += n;
        }
        while i < x.len() {
            let below = T::load_wide::<Scalar>(x_at.add(i)).sub(T::load_wide::<Scalar>(largest_at.add(i)));
            let y = exp_any(below);
            <One<f64> as Lanes>::load(sums_at.add(i)).add(y).store(sums_at.add(i));
            T::store_narrow::<Scalar>(y, out_at.add(i));
            i += 1;
        }
    }
}

kernel! {
    /// `out = exp(x - largest)` and `sums += out`, column by column.
    pub fn exp_below_row<T>(x: &[T], largest: &[T], sums: &mut [f64], out: &mut [T]) = exp_below_row_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn divide_row_body<I: Isa, T: SimdElem>(x: &mut [T], by: &[f64]) {
    assert_eq!(x.len(), by.len(), "a row and its divisors differ in length");
    let n = I::F64::N;
    let mut i = 0;
    // SAFETY: the processor has `I` by contract; every vector ends at or before the end of both slices.
    unsafe {
        let (at, by_at) = (x.as_mut_ptr(), by.as_ptr());
        while i + n <= x.len() {
            let quotient = T::load_wide::<I>(at.add(i)).div(I::F64::load(by_at.add(i)));
            T::store_narrow::<I>(quotient, at.add(i));
            i += n;
        }
        while i < x.len() {
            let quotient = T::load_wide::<Scalar>(at.add(i)).div(<One<f64> as Lanes>::load(by_at.add(i)));
            T::store_narrow::<Scalar>(quotient, at.add(i));
            i += 1;
        }
    }
}

kernel! {
    /// `x = x / by`, column by column.
    pub fn divide_row<T>(x: &mut [T], by: &[f64]) = divide_row_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn running_sums_body<I: Isa, T: SimdElem>(sums: &mut [f64], x: &[T], out: &mut [T]) {
    assert_eq!((sums.len(), out.len()), (x.len(), x.len()), "a row and its columns differ in length");
    let n = I::F64::N;
    let mut i = 0;
    // SAFETY: the processor has `I` by contract; every vector ends at or before the end of the three slices.
    unsafe {
        let (sums_at, x_at, out_at) = (sums.as_mut_ptr(), x.as_ptr(), out.as_mut_ptr());
        while i + n <= x.len() {
            let sum = I::F64::load(sums_at.add(i)).add(T::load_wide::<I>(x_at.add(i)));
            sum.store(sums_at.add(i));
            T::store_narrow::<I>(sum, out_at.add(i));
            i += n;
        }
        while i < x.len() {
            let sum = <One<f64> as Lanes>::load(sums_at.add(i)).add(T::load_wide::<Scalar>(x_at.add(i)));
            sum.store(sums_at.add(i));
            T::store_narrow::<Scalar>(sum, out_at.add(i));
            i += 1;
        }
    }
}

kernel! {
    /// `sums += x` and `out = sums`, column by column; the same bits at every level.
    pub fn running_sums<T>(sums: &mut [f64], x: &[T], out: &mut [T]) = running_sums_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, lengths, levels, values};
    use super::*;

    fn passes_match<T: SimdElem>(ulp: f64) {
        for length in lengths() {
            let x = &values::<T>(41, length + 1, 20.0)[1..];
            let largest: Vec<T> = x.iter().map(|v| T::from_f64(v.to_f64().abs() + 1.0)).collect();
            for level in levels() {
                let what = format!("{level} {length}");
                let (mut line, mut row) = (vec![T::default(); length + 1], vec![T::default(); length + 1]);
                let mut sums = vec![2.0; length];
                let sum = exp_below(level, x, 20.0, &mut line[..length]);
                exp_below_row(level, x, &largest, &mut sums, &mut row[..length]);
                let mut total = 0.0;
                for i in 0..length {
                    let want = (x[i].to_f64() - 20.0).exp();
                    total += want;
                    close(line[i].to_f64(), want, 2.0 * ulp * want, &what);
                    let want = (x[i].to_f64() - largest[i].to_f64()).exp();
                    close(row[i].to_f64(), want, 2.0 * ulp * want, &what);
                    close(sums[i], 2.0 + want, 1e-15, &what);
                }
                close(sum, total, 1e-13 * total, &what);
                let before = line.clone();
                divide(level, &mut line[..length], 3.0);
                divide_row(level, &mut row[..length], &vec![0.0; length]);
                for i in 0..length {
                    close(line[i].to_f64(), before[i].to_f64() / 3.0, ulp * before[i].to_f64(), &what);
                    assert!(row[i].to_f64().is_infinite(), "{what}");
                }
                assert!(line[length].to_f64() == 0.0 && row[length].to_f64() == 0.0, "wrote too far: {what}");
            }
        }
    }

    #[test]
    fn passes_of_a_softmax_match_the_standard_library() {
        passes_match::<f32>(f64::from(f32::EPSILON));
        passes_match::<f64>(f64::EPSILON);
    }

    #[test]
    fn running_sums_are_the_same_at_every_level() {
        for length in lengths() {
            let (a, b) = (values::<f32>(42, length, 1e3), values::<f32>(43, length, 1e-3));
            for level in levels() {
                let (mut sums, mut out) = (vec![-0.0; length], vec![0.0; length + 1]);
                running_sums(level, &mut sums, &a, &mut out[..length]);
                running_sums(level, &mut sums, &b, &mut out[..length]);
                for i in 0..length {
                    let want = f64::from(a[i]) + f64::from(b[i]);
                    assert_eq!((sums[i], out[i]), (want, want as f32), "{level} {length}");
                }
                assert_eq!(out[length], 0.0, "wrote too far");
            }
        }
    }
}
