//! `reduce`: one number from an array, or one from each line along an axis.
//!
//! Floating-point sums are taken in 64 bits with the bounds stated in `simd`: `(512 / N + 21) * 2^-53 * sum
//! |x|` for a whole array or a last axis, one rounding per row for any other axis. Integer sums are exact,
//! wrapping at 64 bits as in NumPy.

use serde_json::Value;

use super::lines::{self, Lines};
use super::reference::{Reduction, reduce_strided};
use super::simd::{self, SimdElem};
use super::{BLOCK, Call, KernelError, Outcome, Total, elements_mut, number};
use crate::arrays::{DType, Element};

/// Without an axis the answer is a result, with one an array without that axis.
///
/// Floats keep their type. Integers: `sum` gives `i64` or `u64`, `mean` gives `f64`, `min` and `max` keep the
/// type, `std` and `norm2` are not offered. NaN anywhere makes the answer NaN. Of no elements, `sum` and
/// `norm2` are 0 and the others an error.
pub(super) fn reduce(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let (op, word) = operation(call);
    let shape = call.inputs[0].shape();
    let axis = match call.params.int("axis") {
        None => None,
        Some(axis) => Some(lines::axis_of(call, axis)?),
    };
    let length = axis.map_or(call.inputs[0].len(), |axis| shape[axis]);
    if length == 0 && !matches!(op, Reduction::Sum | Reduction::Norm2) {
        return Err(call.wrong_shape(0, format!("one element or more to take the {word} of")));
    }
    call.pulse.beat()?;
    let mut outcome = match call.inputs[0].dtype() {
        DType::F32 => of_floats::<f32>(call, op, axis),
        DType::F64 => of_floats::<f64>(call, op, axis),
        dtype if matches!(op, Reduction::Std | Reduction::Norm2) => {
            debug_assert!(!dtype.is_complex());
            Err(call.wrong_dtype(0, format!("f32 or f64 for op \"{word}\"")))
        }
        DType::I32 => of_integers::<i32>(call, op, axis),
        DType::I64 => of_integers::<i64>(call, op, axis),
        DType::U8 => of_integers::<u8>(call, op, axis),
        DType::U32 => of_integers::<u32>(call, op, axis),
        _ => of_integers::<u64>(call, op, axis),
    }?;
    let per_element = match op {
        Reduction::Sum | Reduction::Mean => 1.0,
        Reduction::Min | Reduction::Max => 0.0,
        Reduction::Norm2 => 2.0,
        Reduction::Std => 4.0,
    };
    outcome.flops = per_element * call.inputs[0].len() as f64;
    Ok(outcome)
}

fn operation(call: &Call<'_>) -> (Reduction, &'static str) {
    let word = call.params.word("op");
    let op = match word {
        "mean" => Reduction::Mean,
        "min" => Reduction::Min,
        "max" => Reduction::Max,
        "std" => Reduction::Std,
        "norm2" => Reduction::Norm2,
        _ => Reduction::Sum,
    };
    (op, word)
}

fn without(shape: &[usize], axis: usize) -> Vec<usize> {
    shape.iter().enumerate().filter(|(index, _)| *index != axis).map(|(_, &length)| length).collect()
}

fn of_floats<T: SimdElem + Element>(
    call: &Call<'_>,
    op: Reduction,
    axis: Option<usize>,
) -> Result<Outcome, KernelError> {
    let x = call.slice::<T>(0)?;
    let Some(axis) = axis else {
        return Ok(Outcome { result: Some(number(whole(call, op, x)?)), ..Outcome::default() });
    };
    let shape = call.inputs[0].shape();
    let mut answer = call.answer(T::DTYPE, &without(shape, axis))?;
    let out = elements_mut::<T>(&mut answer);
    if x.is_empty() {
        out.fill(T::default());
    } else {
        let lines = Lines::new(shape, axis);
        if lines.inner == 1 {
            let mut since_beat = BLOCK;
            for (line, out) in x.chunks(lines.length).zip(out) {
                since_beat += line.len();
                if since_beat >= BLOCK {
                    call.pulse.beat()?;
                    since_beat = 0;
                }
                *out = T::from_f64(whole(call, op, line)?);
            }
        } else {
            let mut sums: Vec<f64> = call.space(lines.inner)?;
            let mut means: Vec<f64> = call.space(if op == Reduction::Std { lines.inner } else { 0 })?;
            for (block, out) in x.chunks(lines.length * lines.inner).zip(out.chunks_mut(lines.inner)) {
                columns(call, op, lines, block, &mut sums, &mut means, out)?;
            }
        }
    }
    Ok(Outcome { array: Some(answer), ..Outcome::default() })
}

/// The reduction of all of `x`.
fn whole<T: SimdElem>(call: &Call<'_>, op: Reduction, x: &[T]) -> Result<f64, KernelError> {
    let level = call.level();
    let blocks = |one: &dyn Fn(&[T]) -> f64| -> Result<f64, KernelError> {
        let mut total = Total::default();
        for block in x.chunks(BLOCK) {
            if x.len() > BLOCK {
                call.pulse.beat()?;
            }
            total.add(one(block));
        }
        Ok(total.value())
    };
    let count = x.len() as f64;
    Ok(match op {
        Reduction::Sum => blocks(&|block| simd::sum(level, block))?,
        Reduction::Mean => blocks(&|block| simd::sum(level, block))? / count,
        Reduction::Std => {
            let mean = blocks(&|block| simd::sum(level, block))? / count;
            (blocks(&|block| simd::sum_sq_dev(level, block, mean))? / count).sqrt()
        }
        Reduction::Norm2 => {
            // Each block's norm is safe from overflow; together they are the norm of the vector of norms.
            let mut norms: Vec<f64> = Vec::new();
            for block in x.chunks(BLOCK) {
                if x.len() > BLOCK {
                    call.pulse.beat()?;
                }
                norms.push(simd::norm2(level, block));
            }
            if let [norm] = norms[..] { norm } else { simd::norm2(level, &norms) }
        }
        Reduction::Min | Reduction::Max => {
            let mut best: Option<f64> = None;
            for block in x.chunks(BLOCK) {
                if x.len() > BLOCK {
                    call.pulse.beat()?;
                }
                let found =
                    if op == Reduction::Min { simd::min(level, block) } else { simd::max(level, block) };
                let found = found.to_f64();
                if found.is_nan() {
                    return Ok(found);
                }
                let better = |best: f64| if op == Reduction::Min { found < best } else { found > best };
                if best.is_none_or(better) {
                    best = Some(found);
                }
            }
            best.unwrap_or(f64::NAN)
        }
    })
}

/// The reduction of each column of `block`, `lines.length` rows of `lines.inner`.
fn columns<T: SimdElem>(
    call: &Call<'_>,
    op: Reduction,
    lines: Lines,
    block: &[T],
    sums: &mut [f64],
    means: &mut [f64],
    out: &mut [T],
) -> Result<(), KernelError> {
    let level = call.level();
    let Lines { length, inner, .. } = lines;
    let count = length as f64;
    let rows = |visit: &mut dyn FnMut(&[T])| -> Result<(), KernelError> {
        let mut since_beat = BLOCK;
        for row in block.chunks(inner) {
            since_beat += inner;
            if since_beat >= BLOCK {
                call.pulse.beat()?;
                since_beat = 0;
            }
            visit(row);
        }
        Ok(())
    };
    match op {
        Reduction::Min | Reduction::Max => {
            out.copy_from_slice(&block[..inner]);
            let smallest = op == Reduction::Min;
            return rows(&mut |row| {
                if smallest { simd::min_assign(level, out, row) } else { simd::max_assign(level, out, row) }
            });
        }
        Reduction::Sum | Reduction::Mean => {
            sums.fill(0.0);
            rows(&mut |row| simd::add_assign(level, sums, row))?;
            if op == Reduction::Mean {
                sums.iter_mut().for_each(|sum| *sum /= count);
            }
        }
        Reduction::Std => {
            means.fill(0.0);
            rows(&mut |row| simd::add_assign(level, means, row))?;
            means.iter_mut().for_each(|mean| *mean /= count);
            sums.fill(0.0);
            rows(&mut |row| simd::add_sq_dev_assign(level, sums, means, row))?;
            sums.iter_mut().for_each(|sum| *sum = (*sum / count).sqrt());
        }
        Reduction::Norm2 => {
            sums.fill(0.0);
            rows(&mut |row| simd::add_sq_assign(level, sums, row))?;
            for (column, sum) in sums.iter_mut().enumerate() {
                // Squares that left the comfortable range are taken again, scaled.
                *sum = if (1e-280..1e300).contains(sum) {
                    sum.sqrt()
                } else {
                    reduce_strided(Reduction::Norm2, block, column, length, inner)
                };
            }
        }
    }
    out.iter_mut().zip(sums.iter()).for_each(|(out, &sum)| *out = T::from_f64(sum));
    Ok(())
}

/// An integer element.
trait Whole: Element + Ord {
    /// `i64` or `u64`, where sums of it are kept.
    type Sum: Element;
    fn widen(self) -> i128;
    fn wrap(sum: i128) -> Self::Sum;
}

macro_rules! whole_numbers {
    ($($element:ty => $sum:ty),*) => {
        $(impl Whole for $element {
            type Sum = $sum;
            fn widen(self) -> i128 {
                i128::from(self)
            }
            fn wrap(sum: i128) -> $sum {
                sum as $sum
            }
        })*
    };
}
whole_numbers!(i32 => i64, i64 => i64, u8 => u64, u32 => u64, u64 => u64);

fn of_integers<T: Whole>(call: &Call<'_>, op: Reduction, axis: Option<usize>) -> Result<Outcome, KernelError>
where
    Value: From<T> + From<T::Sum>,
{
    let x = call.slice::<T>(0)?;
    let Some(axis) = axis else {
        let (mut sum, mut least, mut greatest) = (0_i128, x.first(), x.first());
        for block in x.chunks(BLOCK) {
            call.pulse.beat()?;
            match op {
                Reduction::Min => least = least.min(block.iter().min()),
                Reduction::Max => greatest = greatest.max(block.iter().max()),
                _ => sum += block.iter().map(|value| value.widen()).sum::<i128>(),
            }
        }
        let result = match op {
            Reduction::Min => least.map(|&value| Value::from(value)),
            Reduction::Max => greatest.map(|&value| Value::from(value)),
            Reduction::Mean => Some(number(sum as f64 / x.len() as f64)),
            _ => Some(Value::from(T::wrap(sum))),
        };
        return Ok(Outcome { result, ..Outcome::default() });
    };
    let shape = call.inputs[0].shape();
    let kept = without(shape, axis);
    let dtype = match op {
        Reduction::Min | Reduction::Max => T::DTYPE,
        Reduction::Mean => DType::F64,
        _ => <T::Sum as Element>::DTYPE,
    };
    let mut answer = call.answer(dtype, &kept)?;
    if x.is_empty() {
        answer.bytes_mut().fill(0);
        return Ok(Outcome { array: Some(answer), ..Outcome::default() });
    }
    let lines = Lines::new(shape, axis);
    match op {
        Reduction::Min => {
            integer_lines(call, x, lines, elements_mut(&mut answer), |line| line.min().copied())?;
        }
        Reduction::Max => {
            integer_lines(call, x, lines, elements_mut(&mut answer), |line| line.max().copied())?;
        }
        Reduction::Mean => {
            let count = lines.length as f64;
            let mean =
                |line: Column<'_, T>| Some(line.map(|value| value.widen()).sum::<i128>() as f64 / count);
            integer_lines(call, x, lines, elements_mut(&mut answer), mean)?;
        }
        _ => {
            let sum = |line: Column<'_, T>| Some(T::wrap(line.map(|value| value.widen()).sum()));
            integer_lines(call, x, lines, elements_mut(&mut answer), sum)?;
        }
    }
    Ok(Outcome { array: Some(answer), ..Outcome::default() })
}

/// The elements of one line.
type Column<'a, T> = std::iter::StepBy<std::slice::Iter<'a, T>>;

/// Every line of `x` to one element of `out`.
fn integer_lines<T, R>(
    call: &Call<'_>,
    x: &[T],
    lines: Lines,
    out: &mut [R],
    one: impl Fn(Column<'_, T>) -> Option<R>,
) -> Result<(), KernelError> {
    let Lines { outer, length, inner } = lines;
    let mut since_beat = BLOCK;
    for block in 0..outer {
        for column in 0..inner {
            since_beat += length;
            if since_beat >= BLOCK {
                call.pulse.beat()?;
                since_beat = 0;
            }
            let start = block * length * inner + column;
            let line = x[start..(block + 1) * length * inner].iter().step_by(inner);
            if let Some(value) = one(line) {
                out[block * inner + column] = value;
            }
        }
    }
    Ok(())
}
