//! `convolve2d`: convolution of a grid with a small one, by its definition.
//!
//! The grid gets the border of zeros that the mode asks for; then every answer is a sum over one window, and a few
//! vectors of neighbouring answers are kept in registers over all taps.

use std::borrow::Cow;

use super::reference::Mode;
use super::simd::{self, SimdElem};
use super::{Call, KernelError, Outcome, elements_mut};
use crate::arrays::{DType, Element};

/// Multiply-adds between two beats of scalar code.
const WORK: usize = 8 << 20;
/// Answers that are computed together at least, however many taps there are.
const TOGETHER_MIN: usize = 128;

/// Beyond the border of `x` lies zero; `w` is turned round, as in `scipy.signal.convolve2d`.
///
/// Error of an element: `(taps + 1) * u * sum |x w|` with `u` 2^-24 or 2^-53.
pub(super) fn convolve2d(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => convolve2d_of::<f32>(call),
        _ => convolve2d_of::<f64>(call),
    }
}

fn convolve2d_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let [rows, columns] = sides(call, 0, "(rows, columns) of one element or more")?;
    let (x, w) = (call.slice::<T>(0)?, call.slice::<T>(1)?);
    let [height, width] = sides(call, 1, "(height, width) of one element or more")?;
    let mode = match call.params.word("mode") {
        "same" => Mode::Same,
        "valid" => Mode::Valid,
        _ => Mode::Full,
    };
    if mode == Mode::Valid && (height > rows || width > columns) {
        return Err(call.wrong_shape(1, format!("at most ({rows}, {columns}), because mode is valid")));
    }
    let (top, bottom) = mode.border(height);
    let (left, right) = mode.border(width);
    let (high, stride) = (top + rows + bottom, left + columns + right);
    let shape = [high - (height - 1), stride - (width - 1)];
    let mut answer = call.answer(T::DTYPE, &shape)?;
    call.pulse.beat()?;
    let grid: Cow<'_, [T]> = if mode == Mode::Valid {
        Cow::Borrowed(x)
    } else {
        let mut grid: Vec<T> = call.space(high.saturating_mul(stride))?;
        for (row, grid) in x.chunks_exact(columns).zip(grid.chunks_exact_mut(stride).skip(top)) {
            grid[left..left + columns].copy_from_slice(row);
        }
        Cow::Owned(grid)
    };
    let mut taps: Vec<T> = call.space(w.len())?;
    taps.iter_mut().zip(w.iter().rev()).for_each(|(tap, w)| *tap = *w);
    let together = (WORK / taps.len()).max(TOGETHER_MIN);
    let mut work = 0;
    for (row, out) in elements_mut::<T>(&mut answer).chunks_exact_mut(shape[1]).enumerate() {
        for (out, column) in out.chunks_mut(together).zip((0..).step_by(together)) {
            work += out.len() * taps.len();
            if work >= WORK {
                call.pulse.beat()?;
                work = 0;
            }
            let windows = &grid[row * stride + column..][..(height - 1) * stride + out.len() + width - 1];
            simd::windows(call.level(), windows, stride, &taps, width, out);
        }
    }
    let flops = 2.0 * shape[0] as f64 * shape[1] as f64 * taps.len() as f64;
    Ok(Outcome { array: Some(answer), flops, ..Outcome::default() })
}

fn sides(call: &Call<'_>, index: usize, needed: &str) -> Result<[usize; 2], KernelError> {
    match call.matrix(index, needed)? {
        (0, _) | (_, 0) => Err(call.wrong_shape(index, needed)),
        (rows, columns) => Ok([rows, columns]),
    }
}
