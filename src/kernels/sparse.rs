//! `spmv`: a sparse matrix in compressed rows times a vector.
//!
//! Reading elements and columns from memory takes longer than the arithmetic, so there is one form: four running
//! sums a row, in 64 bits, which no chain of additions holds up.

use super::reference::Real;
use super::{BLOCK, Call, KernelError, Outcome, Pace, elements_mut};
use crate::arrays::{DType, Element};

/// The answer is `(rows,)` in the type of `data`.
///
/// Error of an element: `(its row's elements / 4 + 3) * 2^-53 * sum |data x|`, and one rounding to the type.
pub(super) fn spmv(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match (call.inputs[0].dtype(), call.inputs[1].dtype()) {
        (DType::F32, DType::I32) => spmv_of::<f32, i32>(call),
        (DType::F32, _) => spmv_of::<f32, i64>(call),
        (_, DType::I32) => spmv_of::<f64, i32>(call),
        (_, _) => spmv_of::<f64, i64>(call),
    }
}

/// An index as files have it: signed.
trait Index: Element + std::fmt::Display {
    /// As an index; a negative one becomes one that no array has.
    fn at(self) -> usize;
}

impl Index for i32 {
    #[inline(always)]
    fn at(self) -> usize {
        usize::try_from(self).unwrap_or(usize::MAX)
    }
}

impl Index for i64 {
    #[inline(always)]
    fn at(self) -> usize {
        usize::try_from(self).unwrap_or(usize::MAX)
    }
}

fn spmv_of<T: Real + Element, I: Index>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    for (index, needed) in ["(nnz,)", "(nnz,)", "(rows + 1,)", "(columns,)"].into_iter().enumerate() {
        if call.inputs[index].shape().len() != 1 {
            return Err(call.wrong_shape(index, needed));
        }
    }
    if call.inputs[2].dtype() != I::DTYPE {
        return Err(call.wrong_dtype(2, format!("{} (that of inputs[1] \"indices\")", I::DTYPE)));
    }
    let (data, x) = (call.slice::<T>(0)?, call.slice::<T>(3)?);
    let (indices, indptr) = (call.slice::<I>(1)?, call.slice::<I>(2)?);
    if indices.len() != data.len() {
        return Err(call.wrong_shape(1, format!("({},), one for each of data", data.len())));
    }
    let (Some(first), Some(last)) = (indptr.first(), indptr.last()) else {
        return Err(call.wrong_shape(2, "(rows + 1,), one element or more"));
    };
    if first.at() != 0 || last.at() != data.len() {
        let needed = format!("needs to go from 0 to {}, the length of data", data.len());
        return Err(call.wrong_value(format!("indptr goes from {first} to {last}, {needed}")));
    }
    let mut answer = call.answer(T::DTYPE, &[indptr.len() - 1])?;
    let mut pace = Pace::new(call);
    call.pulse.beat()?;
    for (row, (bounds, out)) in indptr.windows(2).zip(elements_mut::<T>(&mut answer)).enumerate() {
        let (start, end) = (bounds[0].at(), bounds[1].at());
        let (Some(data), Some(columns)) = (data.get(start..end), indices.get(start..end)) else {
            let problem = format!("indptr[{}] is {}, needs {start} to {}", row + 1, bounds[1], data.len());
            return Err(call.wrong_value(problem));
        };
        pace.step(1)?;
        let mut sum = 0.0;
        for (piece, columns) in data.chunks(BLOCK).zip(columns.chunks(BLOCK)) {
            pace.step(piece.len())?;
            sum += piece_sum(piece, columns, x).ok_or_else(|| wrong_column(call, indices, x.len()))?;
        }
        *out = T::from_f64(sum);
    }
    Ok(Outcome { array: Some(answer), flops: 2.0 * data.len() as f64, ..Outcome::default() })
}

/// Names the first column that lies outside `x`.
#[cold]
fn wrong_column<I: Index>(call: &Call<'_>, indices: &[I], length: usize) -> KernelError {
    let wrong = indices.iter().position(|column| column.at() >= length).unwrap_or(0);
    call.wrong_value(format!(
        "indices[{wrong}] is {}, needs 0 or more and less than {length}, the length of x",
        indices[wrong]
    ))
}

/// The sum of a row or a piece of it, or nothing when a column lies outside `x`.
#[inline(always)]
fn piece_sum<T: Real, I: Index>(data: &[T], columns: &[I], x: &[T]) -> Option<f64> {
    let mut sums = [0.0; 4];
    let (data, data_rest) = data.as_chunks::<4>();
    let (columns, columns_rest) = columns.as_chunks::<4>();
    for (data, columns) in data.iter().zip(columns) {
        for ((sum, value), column) in sums.iter_mut().zip(data).zip(columns) {
            *sum += value.to_f64() * x.get(column.at())?.to_f64();
        }
    }
    for ((sum, value), column) in sums.iter_mut().zip(data_rest).zip(columns_rest) {
        *sum += value.to_f64() * x.get(column.at())?.to_f64();
    }
    Some((sums[0] + sums[1]) + (sums[2] + sums[3]))
}
