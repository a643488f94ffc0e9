//! `matmul`, `dot` and `axpy`.

use super::simd::{self, SimdElem};
use super::{BLOCK, Call, KernelError, Level, Outcome, Total, elements_mut, number};
use crate::arrays::{Array, DType, Element};

/// `a (m, k)` by `b (k, n)` is `(m, n)`.
///
/// Error of an element: `(k + 1) * u * sum |a| |b|` with `u` 2^-24 or 2^-53, as for any order of additions.
pub(super) fn matmul(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => matmul_of::<f32>(call),
        _ => matmul_of::<f64>(call),
    }
}

fn matmul_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let (m, k) = call.matrix(0, "(m, k)")?;
    let (a, b) = (call.slice::<T>(0)?, call.slice::<T>(1)?);
    let (rows, n) = call.matrix(1, &format!("({k}, *)"))?;
    if rows != k {
        return Err(call.wrong_shape(1, format!("({k}, *)")));
    }
    let mut answer = call.answer(T::DTYPE, &[m, n])?;
    let c = elements_mut::<T>(&mut answer);
    if k == 0 || c.is_empty() {
        c.fill(T::default());
    } else {
        match call.variant.choice {
            0 => by_library(call, a, b, c, [m, k, n])?,
            _ => by_blocks(call, a, b, c, [m, k, n])?,
        }
    }
    let flops = 2.0 * m as f64 * k as f64 * n as f64;
    Ok(Outcome { array: Some(answer), flops, ..Outcome::default() })
}

/// Multiply-adds between two beats: 10 ms at the 200 GFLOP/s of one AVX-512 core.
const PANEL_WORK: usize = 1_000_000_000;

/// The `gemm` crate, panel by panel. Panels stay as large as the beat allows, because each packs its part of
/// `b` anew.
fn by_library<T: Element>(
    call: &Call<'_>,
    a: &[T],
    b: &[T],
    c: &mut [T],
    [m, k, n]: [usize; 3],
) -> Result<(), KernelError> {
    let columns =
        if k.saturating_mul(n) <= PANEL_WORK / 512 { n } else { n.min((PANEL_WORK / 512 / k).max(512)) };
    let rows = m.min((PANEL_WORK / k.saturating_mul(columns)).max(96));
    for row in (0..m).step_by(rows) {
        for column in (0..n).step_by(columns) {
            call.pulse.beat()?;
            let panel = [rows.min(m - row), k, columns.min(n - column)];
            // SAFETY: `a` is m x k, `b` is k x n and `c` is m x n, all row-major and checked by the caller;
            // the panel lies within them, so every element reached at these strides does. `c` is borrowed
            // mutably, so it overlaps neither.
            unsafe {
                library_panel(
                    a.as_ptr().add(row * k),
                    b.as_ptr().add(column),
                    c.as_mut_ptr().add(row * n + column),
                    panel,
                    n,
                )
            };
        }
    }
    Ok(())
}

/// One panel: `c (m, n) = a (m, k) * b (k, n)`, where rows of `b` and `c` lie `stride` apart.
///
/// # Safety
/// The three pointers are valid for these shapes and strides, `c` for writing, and `c` overlaps neither of
/// the others.
unsafe fn library_panel<T: Element>(
    a: *const T,
    b: *const T,
    c: *mut T,
    [m, k, n]: [usize; 3],
    stride: usize,
) {
    let stride = stride as isize;
    let serial = gemm::Parallelism::None;
    let depth = k as isize;
    // The crate computes alpha * dst + beta * lhs * rhs; `dst` is not read, so only beta counts.
    if T::DTYPE == DType::F32 {
        let (a, b, c) = (a.cast::<f32>(), b.cast::<f32>(), c.cast::<f32>());
        // SAFETY: by contract; `T` is `f32`.
        unsafe {
            gemm::gemm(
                m, n, k, c, 1, stride, false, a, 1, depth, b, 1, stride, 0.0, 1.0, false, false, false,
                serial,
            );
        }
    } else {
        assert!(T::DTYPE == DType::F64, "matrix products are of f32 or f64");
        let (a, b, c) = (a.cast::<f64>(), b.cast::<f64>(), c.cast::<f64>());
        // SAFETY: by contract; `T` is `f64`.
        unsafe {
            gemm::gemm(
                m, n, k, c, 1, stride, false, a, 1, depth, b, 1, stride, 0.0, 1.0, false, false, false,
                serial,
            );
        }
    }
}

/// Our own product, by panels of rows.
fn by_blocks<T: SimdElem>(
    call: &Call<'_>,
    a: &[T],
    b: &[T],
    c: &mut [T],
    [m, k, n]: [usize; 3],
) -> Result<(), KernelError> {
    // Narrower levels are slower, so they get less between two beats; each panel packs all of `b` again,
    // which 48 rows still pay for.
    let work = match call.level() {
        Level::Avx512 => PANEL_WORK / 2,
        Level::Avx2 => PANEL_WORK / 4,
        _ => PANEL_WORK / 32,
    };
    let rows = m.min((work / k.saturating_mul(n)).max(48).next_multiple_of(12));
    for (a, c) in a.chunks(rows * k).zip(c.chunks_mut(rows * n)) {
        call.pulse.beat()?;
        simd::matmul(call.level(), a, b, c, a.len() / k, k, n);
    }
    Ok(())
}

/// The sum of products of two vectors.
///
/// `f32` products are exact in 64 bits. Error: `(512 / N + 21) * 2^-53 * sum |x y|` with `N` lanes of `f64`.
pub(super) fn dot(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => dot_of::<f32>(call),
        _ => dot_of::<f64>(call),
    }
}

fn dot_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let (x, y) = (call.slice::<T>(0)?, call.slice::<T>(1)?);
    if call.inputs[0].shape().len() != 1 {
        return Err(call.wrong_shape(0, "(n,)"));
    }
    if call.inputs[1].shape() != call.inputs[0].shape() {
        return Err(call.wrong_shape(1, format!("({},)", x.len())));
    }
    let mut total = Total::default();
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        call.pulse.beat()?;
        total.add(simd::dot(call.level(), x, y));
    }
    let flops = 2.0 * x.len() as f64;
    Ok(Outcome { result: Some(number(total.value())), flops, ..Outcome::default() })
}

/// `alpha * x + y`, rounded once where the level has fused multiply-add, twice elsewhere.
pub(super) fn axpy(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => axpy_of::<f32>(call),
        _ => axpy_of::<f64>(call),
    }
}

fn axpy_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let (x, y) = (call.slice::<T>(0)?, call.slice::<T>(1)?);
    let shape = call.inputs[0].shape();
    if call.inputs[1].shape() != shape {
        return Err(call.wrong_shape(1, format!("{} (that of inputs[0] \"x\")", crate::arrays::Shape(shape))));
    }
    let alpha = T::from_f64(call.params.float("alpha").unwrap_or(1.0));
    let mut answer: Array = call.answer(T::DTYPE, shape)?;
    let out = elements_mut::<T>(&mut answer);
    for ((x, y), out) in x.chunks(BLOCK).zip(y.chunks(BLOCK)).zip(out.chunks_mut(BLOCK)) {
        call.pulse.beat()?;
        simd::axpy(call.level(), alpha, x, y, out);
    }
    let flops = 2.0 * x.len() as f64;
    Ok(Outcome { array: Some(answer), flops, ..Outcome::default() })
}
