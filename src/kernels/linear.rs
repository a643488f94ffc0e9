//! `matmul`, `dot` and `axpy`.

use super::simd::{self, Matrix, SimdElem};
use super::{BLOCK, Call, KernelError, Outcome, Total, elements_mut, number};
use crate::arrays::{Array, DType, Element};

/// `a (m, k)` by `b (k, n)` is `(m, n)`, for one pair or each of a batch; either may lie there transposed.
///
/// Error of an element: `(k + 1) * u * sum |a| |b|` with `u` 2^-24 or 2^-53, as for any order of additions.
pub(super) fn matmul(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => matmul_of::<f32>(call),
        _ => matmul_of::<f64>(call),
    }
}

fn matmul_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let (turned_a, turned_b) = match call.params.word("transpose") {
        "a" => (true, false),
        "b" => (false, true),
        "both" => (true, true),
        _ => (false, false),
    };
    let needed = if turned_a { "(k, m)" } else { "(m, k)" };
    let &[ref batch @ .., rows, columns] = call.inputs[0].shape() else {
        return Err(call.wrong_shape(0, format!("{needed}, or a batch of these")));
    };
    let (m, k) = if turned_a { (columns, rows) } else { (rows, columns) };
    let needed = || {
        let matrix = if turned_b { format!("*, {k}") } else { format!("{k}, *") };
        let batch: String = batch.iter().map(|length| format!("{length}, ")).collect();
        if batch.is_empty() {
            format!("({matrix}), or a batch of these")
        } else {
            format!("({matrix}) or ({batch}{matrix})")
        }
    };
    let (a, b) = (call.slice::<T>(0)?, call.slice::<T>(1)?);
    let &[ref batch_b @ .., rows, columns] = call.inputs[1].shape() else {
        return Err(call.wrong_shape(1, needed()));
    };
    let (depth, n) = if turned_b { (columns, rows) } else { (rows, columns) };
    let alike = batch.is_empty() || batch_b.is_empty() || batch == batch_b;
    if depth != k || !alike {
        return Err(call.wrong_shape(1, needed()));
    }
    let mut shape = if batch.is_empty() { batch_b } else { batch }.to_vec();
    shape.extend([m, n]);
    let mut answer = call.answer(T::DTYPE, &shape)?;
    let c = elements_mut::<T>(&mut answer);
    let flops = 2.0 * c.len() as f64 * k as f64;
    if k == 0 || c.is_empty() {
        call.pulse.beat()?;
        c.fill(T::default());
    } else {
        // A matrix that stands alone serves the whole batch.
        let (next_a, next_b) =
            (if batch.is_empty() { 0 } else { m * k }, if batch_b.is_empty() { 0 } else { k * n });
        let mut space = Vec::new();
        if call.variant.choice == 1 {
            space = call.space(simd::matmul_space::<T>([m, k, n]))?;
        }
        for (index, c) in c.chunks_exact_mut(m * n).enumerate() {
            let a = Matrix { elements: &a[index * next_a..][..m * k], turned: turned_a };
            let b = Matrix { elements: &b[index * next_b..][..k * n], turned: turned_b };
            match call.variant.choice {
                1 => simd::matmul(call.level(), a, b, c, [m, k, n], &mut space, call.pulse)?,
                _ => by_library(call, a, b, c, [m, k, n])?,
            }
        }
    }
    Ok(Outcome { array: Some(answer), flops, ..Outcome::default() })
}

/// Multiply-adds between two beats: 10 ms at the 200 GFLOP/s of one AVX-512 core.
const PANEL_WORK: usize = 1_000_000_000;

/// The `gemm` crate, panel by panel. Panels stay as large as the beat allows, because each packs its part of
/// `b` anew.
fn by_library<T: SimdElem + Element>(
    call: &Call<'_>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    [m, k, n]: [usize; 3],
) -> Result<(), KernelError> {
    let columns =
        if k.saturating_mul(n) <= PANEL_WORK / 512 { n } else { n.min((PANEL_WORK / 512 / k).max(512)) };
    let rows = m.min((PANEL_WORK / k.saturating_mul(columns)).max(96));
    let (a_strides, b_strides) = (a.strides(m, k), b.strides(k, n));
    for row in (0..m).step_by(rows) {
        for column in (0..n).step_by(columns) {
            call.pulse.beat()?;
            let panel = [rows.min(m - row), k, columns.min(n - column)];
            // SAFETY: `a` is m x k, `b` is k x n and `c` is m x n, which the caller checked; the panel lies
            // within them, so every element reached at these strides does. `c` is borrowed mutably, so it
            // overlaps neither.
            unsafe {
                library_panel(
                    (a.elements.as_ptr().add(row * a_strides[0]), a_strides),
                    (b.elements.as_ptr().add(column * b_strides[1]), b_strides),
                    (c.as_mut_ptr().add(row * n + column), n),
                    panel,
                )
            };
        }
    }
    Ok(())
}

/// One panel: `c (m, n) = a (m, k) * b (k, n)`, each with its strides from row to row and column to column; the
/// columns of `c` lie side by side.
///
/// # Safety
/// The three pointers are valid for these shapes and strides, `c` for writing, and `c` overlaps neither of
/// the others.
unsafe fn library_panel<T: Element>(
    (a, [a_row, a_column]): (*const T, [usize; 2]),
    (b, [b_row, b_column]): (*const T, [usize; 2]),
    (c, c_row): (*mut T, usize),
    [m, k, n]: [usize; 3],
) {
    let [c_row, a_row, a_column, b_row, b_column] =
        [c_row, a_row, a_column, b_row, b_column].map(|stride| stride as isize);
    let serial = gemm::Parallelism::None;
    // The crate computes alpha * dst + beta * lhs * rhs; `dst` is not read, so only beta counts.
    if T::DTYPE == DType::F32 {
        let (a, b, c) = (a.cast::<f32>(), b.cast::<f32>(), c.cast::<f32>());
        // SAFETY: by contract; `T` is `f32`.
        unsafe {
            gemm::gemm(
                m, n, k, c, 1, c_row, false, a, a_column, a_row, b, b_column, b_row, 0.0, 1.0, false, false,
                false, serial,
            );
        }
    } else {
        assert!(T::DTYPE == DType::F64, "matrix products are of f32 or f64");
        let (a, b, c) = (a.cast::<f64>(), b.cast::<f64>(), c.cast::<f64>());
        // SAFETY: by contract; `T` is `f64`.
        unsafe {
            gemm::gemm(
                m, n, k, c, 1, c_row, false, a, a_column, a_row, b, b_column, b_row, 0.0, 1.0, false, false,
                false, serial,
            );
        }
    }
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
    let stores = call.stores_for(size_of_val(x));
    let out = elements_mut::<T>(&mut answer);
    for ((x, y), out) in x.chunks(BLOCK).zip(y.chunks(BLOCK)).zip(out.chunks_mut(BLOCK)) {
        call.pulse.beat()?;
        simd::axpy(call.level(), alpha, x, y, out, stores);
    }
    let flops = 2.0 * x.len() as f64;
    Ok(Outcome { array: Some(answer), flops, ..Outcome::default() })
}
