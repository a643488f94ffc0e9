//! `cumsum`: running sums along an axis.
//!
//! Floats are added in 64 bits, and sums of `f32` are rounded once in the end on top of that. Along the last axis they are
//! added in rows and runs ([`simd::cumulate`] has the order), along others one after the other. So the answer is the same
//! bit by bit at every level, never falls while the elements are 0 or above, and is wrong by at most
//! `n * 2^-53 * sum |x|` at its `n`-th element, and half an ulp of `f32`, as NumPy's is. Integers wrap at 64 bits.

use super::lines::{self, Lines};
use super::simd::{self, SimdElem};
use super::{BLOCK, Call, KernelError, Outcome, Pace, elements_mut};
use crate::arrays::{Array, DType, Element};

/// Columns walked down together: their sums stay in the first-level cache.
const COLUMNS: usize = 2048;

/// Floats keep their type, integers become `i64` or `u64`. The answer has the input's shape; without an axis it
/// is the flattened one.
pub(super) fn cumsum(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let input = &call.inputs[0];
    let (shape, axis) = match call.params.int("axis") {
        None => (vec![input.len()], 0),
        Some(axis) => (input.shape().to_vec(), lines::axis_of(call, axis)?),
    };
    call.pulse.beat()?;
    let array = match input.dtype() {
        DType::F32 => of_floats::<f32>(call, &shape, axis),
        DType::F64 => of_floats::<f64>(call, &shape, axis),
        DType::I32 => of_integers::<i32>(call, &shape, axis),
        DType::I64 => of_integers::<i64>(call, &shape, axis),
        DType::U8 => of_integers::<u8>(call, &shape, axis),
        DType::U32 => of_integers::<u32>(call, &shape, axis),
        _ => of_integers::<u64>(call, &shape, axis),
    }?;
    Ok(Outcome { array: Some(array), flops: input.len() as f64, ..Outcome::default() })
}

fn of_floats<T: SimdElem + Element>(
    call: &Call<'_>,
    shape: &[usize],
    axis: usize,
) -> Result<Array, KernelError> {
    // What changes no number that is added to it, a negative zero included.
    const NOTHING: f64 = -0.0;
    let (level, stores) = (call.level(), call.stores_for(call.inputs[0].bytes().len()));
    walk::<T, T, f64>(
        call,
        shape,
        axis,
        NOTHING,
        |sum, x, out| simd::cumulate(level, sum, x, out, stores),
        |sums, x, out| simd::running_sums(level, sums, x, out),
    )
}

/// An integer element.
trait Whole: Element {
    /// `i64` or `u64`, where sums of it are kept.
    type Sum: Element + Default;
    fn plus(self, sum: Self::Sum) -> Self::Sum;
}

macro_rules! whole_numbers {
    ($($element:ty => $sum:ty),*) => {
        $(impl Whole for $element {
            type Sum = $sum;
            #[inline(always)]
            fn plus(self, sum: $sum) -> $sum {
                sum.wrapping_add(<$sum>::from(self))
            }
        })*
    };
}
whole_numbers!(i32 => i64, i64 => i64, u8 => u64, u32 => u64, u64 => u64);

fn of_integers<T: Whole>(call: &Call<'_>, shape: &[usize], axis: usize) -> Result<Array, KernelError> {
    walk::<T, T::Sum, T::Sum>(
        call,
        shape,
        axis,
        T::Sum::default(),
        |mut sum, x, out| {
            for (out, x) in out.iter_mut().zip(x) {
                sum = x.plus(sum);
                *out = sum;
            }
            sum
        },
        |sums, x, out| {
            for ((sum, x), out) in sums.iter_mut().zip(x).zip(out) {
                *sum = x.plus(*sum);
                *out = *sum;
            }
        },
    )
}

/// Walks along the axis: `line` goes on along one line from a sum, a whole [`BLOCK`] unless it ends, and gives the new one, `row` goes on by one
/// element on each of some neighbouring lines.
fn walk<T: Element, R: Element, S: Copy + Default>(
    call: &Call<'_>,
    shape: &[usize],
    axis: usize,
    nothing: S,
    line: impl Fn(S, &[T], &mut [R]) -> S,
    row: impl Fn(&mut [S], &[T], &mut [R]),
) -> Result<Array, KernelError> {
    let x = call.slice::<T>(0)?;
    let mut answer = call.answer(R::DTYPE, shape)?;
    if x.is_empty() {
        return Ok(answer);
    }
    let out = elements_mut::<R>(&mut answer);
    let lines = Lines::new(shape, axis);
    let mut pace = Pace::new(call);
    let mut sums: Vec<S> = call.space(lines.inner.min(COLUMNS))?;
    for (x, out) in x.chunks(lines.block()).zip(out.chunks_mut(lines.block())) {
        if lines.inner == 1 {
            let mut sum = nothing;
            for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
                pace.step(x.len())?;
                sum = line(sum, x, out);
            }
            continue;
        }
        for first in (0..lines.inner).step_by(COLUMNS) {
            let columns = first..lines.inner.min(first + COLUMNS);
            let sums = &mut sums[..columns.len()];
            sums.fill(nothing);
            for (x, out) in x.chunks(lines.inner).zip(out.chunks_mut(lines.inner)) {
                pace.step(columns.len())?;
                row(sums, &x[columns.clone()], &mut out[columns.clone()]);
            }
        }
    }
    Ok(answer)
}
