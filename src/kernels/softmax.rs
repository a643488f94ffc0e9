//! `softmax`: exponentials that add up to 1 along an axis.
//!
//! The largest element of a line is taken from all of it first, so nothing overflows. Exponentials and sums are
//! taken in 64 bits. A line with a NaN or an infinity becomes NaN, but for minus infinity beside finite
//! elements, which becomes 0.

use super::lines::{self, Lines};
use super::simd::{self, SimdElem};
use super::{BLOCK, Call, KernelError, Outcome, Pace, Total, elements_mut};
use crate::arrays::{DType, Element};

/// Columns taken together: largest elements and sums stay in the first-level cache.
const COLUMNS: usize = 1024;

/// The answer has the input's shape and type.
///
/// Error of an element: two roundings of the type; of `f64` also what the difference to the largest element
/// loses, `2^-53` times that difference, and 2 ulp of the exponential.
pub(super) fn softmax(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => softmax_of::<f32>(call),
        _ => softmax_of::<f64>(call),
    }
}

fn softmax_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let x = call.slice::<T>(0)?;
    let shape = call.inputs[0].shape();
    let axis = lines::axis_of(call, call.params.int("axis").unwrap_or(-1))?;
    let mut answer = call.answer(T::DTYPE, shape)?;
    let out = elements_mut::<T>(&mut answer);
    call.pulse.beat()?;
    if !x.is_empty() {
        let lines = Lines::new(shape, axis);
        let mut pace = Pace::new(call);
        if lines.inner == 1 {
            for (x, out) in x.chunks(lines.length).zip(out.chunks_mut(lines.length)) {
                line(call, &mut pace, x, out)?;
            }
        } else {
            let mut largest: Vec<T> = call.space(COLUMNS.min(lines.inner))?;
            let mut sums: Vec<f64> = call.space(COLUMNS.min(lines.inner))?;
            for (x, out) in x.chunks(lines.block()).zip(out.chunks_mut(lines.block())) {
                block(call, &mut pace, lines.inner, x, out, &mut largest, &mut sums)?;
            }
        }
    }
    // Maximum, difference, sum and quotient; the exponential has no usual count.
    Ok(Outcome { flops: 4.0 * x.len() as f64, array: Some(answer), ..Outcome::default() })
}

/// One line that lies in one piece.
fn line<T: SimdElem>(
    call: &Call<'_>,
    pace: &mut Pace<'_>,
    x: &[T],
    out: &mut [T],
) -> Result<(), KernelError> {
    let level = call.level();
    let mut largest = f64::NEG_INFINITY;
    for x in x.chunks(BLOCK) {
        pace.step(x.len())?;
        let found = simd::max(level, x).to_f64();
        // NaN stays.
        largest = if found > largest || found.is_nan() { found } else { largest };
    }
    let mut total = Total::default();
    for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        pace.step(x.len())?;
        total.add(simd::exp_below(level, x, largest, out));
    }
    for out in out.chunks_mut(BLOCK) {
        pace.step(out.len())?;
        simd::divide(level, out, total.value());
    }
    Ok(())
}

/// Rows of `inner` elements, every column a line.
fn block<T: SimdElem>(
    call: &Call<'_>,
    pace: &mut Pace<'_>,
    inner: usize,
    x: &[T],
    out: &mut [T],
    largest: &mut [T],
    sums: &mut [f64],
) -> Result<(), KernelError> {
    let level = call.level();
    for first in (0..inner).step_by(COLUMNS) {
        let columns = first..inner.min(first + COLUMNS);
        let (largest, sums) = (&mut largest[..columns.len()], &mut sums[..columns.len()]);
        largest.copy_from_slice(&x[columns.clone()]);
        for x in x.chunks(inner) {
            pace.step(columns.len())?;
            simd::max_assign(level, largest, &x[columns.clone()]);
        }
        sums.fill(0.0);
        for (x, out) in x.chunks(inner).zip(out.chunks_mut(inner)) {
            pace.step(columns.len())?;
            simd::exp_below_row(level, &x[columns.clone()], largest, sums, &mut out[columns.clone()]);
        }
        for out in out.chunks_mut(inner) {
            pace.step(columns.len())?;
            simd::divide_row(level, &mut out[columns.clone()], sums);
        }
    }
    Ok(())
}
