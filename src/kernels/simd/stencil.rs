//! One sweep of the five-point stencil.

use super::kernel;
use super::lanes::{Isa, Lanes, SimdElem};
use crate::kernels::Level;

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn stencil5_rows_body<I: Isa, T: SimdElem>(
    src: &[T],
    dst: &mut [T],
    first_row: usize,
    rows: usize,
    cols: usize,
    alpha: T,
) {
    assert_eq!(src.len(), rows * cols, "a grid of {rows} x {cols}");
    if cols == 0 {
        return;
    }
    assert!(dst.len().is_multiple_of(cols) && first_row + dst.len() / cols <= rows, "rows outside the grid");
    for (r, out) in (first_row..).zip(dst.chunks_exact_mut(cols)) {
        let row = &src[r * cols..][..cols];
        if r == 0 || r + 1 == rows || cols < 3 {
            out.copy_from_slice(row);
            continue;
        }
        out[0] = row[0];
        out[cols - 1] = row[cols - 1];
        let (up, down) = (&src[(r - 1) * cols..][..cols], &src[(r + 1) * cols..][..cols]);
        // SAFETY: by contract; five slices of `cols` elements.
        unsafe { stencil5_row::<I, T>(up, row, down, out, alpha) };
    }
}

/// The inner points of one row.
///
/// # Safety
/// The processor has `I`; the four slices are equally long, at least 3.
#[inline(always)]
unsafe fn stencil5_row<I: Isa, T: SimdElem>(up: &[T], row: &[T], down: &[T], out: &mut [T], alpha: T) {
    let (n, end) = (<T::Lanes<I>>::N, row.len() - 1);
    // SAFETY: the processor has `I`; vectors at `i` are loaded only while `i + n <= end`, so even the one
    // shifted right ends at or before the slice's end, and the one shifted left starts at 0 or later.
    unsafe {
        let (four, alpha) = (<T::Lanes<I>>::splat(T::from_f64(4.0)), <T::Lanes<I>>::splat(alpha));
        let (up_at, row_at, down_at) = (up.as_ptr(), row.as_ptr(), down.as_ptr());
        let mut i = 1;
        while i + n <= end {
            let u = <T::Lanes<I>>::load(row_at.add(i));
            let vertical = <T::Lanes<I>>::load(up_at.add(i)).add(<T::Lanes<I>>::load(down_at.add(i)));
            let level = <T::Lanes<I>>::load(row_at.add(i - 1)).add(<T::Lanes<I>>::load(row_at.add(i + 1)));
            let change = four.neg_mul_add(u, vertical.add(level));
            alpha.mul_add(change, u).store(out.as_mut_ptr().add(i));
            if i + n == end {
                return;
            }
            // The last vector overlaps the one before: it writes the same values again.
            i = if i + 2 * n <= end { i + n } else { end - n };
        }
        if i < end {
            let zero = T::default();
            let u = <T::Lanes<I>>::load_part(&row[i..end], zero);
            let vertical = <T::Lanes<I>>::load_part(&up[i..end], zero)
                .add(<T::Lanes<I>>::load_part(&down[i..end], zero));
            let level = <T::Lanes<I>>::load_part(&row[i - 1..end - 1], zero)
                .add(<T::Lanes<I>>::load_part(&row[i + 1..], zero));
            let change = four.neg_mul_add(u, vertical.add(level));
            alpha.mul_add(change, u).store_part(&mut out[i..end]);
        }
    }
}

kernel! {
    /// One sweep over some rows of a `rows x cols` grid: `dst` receives rows `first_row ..`, as many as fit.
    ///
    /// This is the piece one thread does. Inner points become
    /// `u + alpha * (up + down + left + right - 4 u)`, the border is copied. Error at most 5 ulp of the
    /// largest of the five values times `1 + 8 |alpha|`.
    pub fn stencil5_rows<T>(
        src: &[T], dst: &mut [T], first_row: usize, rows: usize, cols: usize, alpha: T
    ) = stencil5_rows_body
}

/// One sweep over the whole grid; see [`stencil5_rows`].
pub fn stencil5_step<T: SimdElem>(
    level: Level,
    src: &[T],
    dst: &mut [T],
    rows: usize,
    cols: usize,
    alpha: T,
) {
    assert_eq!(dst.len(), rows * cols, "a grid of {rows} x {cols}");
    stencil5_rows(level, src, dst, 0, rows, cols, alpha);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, levels, values};
    use super::*;
    use crate::kernels::reference;

    fn matches<T: SimdElem>(ulp: f64) {
        let shapes = (0..=40).map(|c| (5, c)).chain([(0, 3), (1, 9), (2, 9), (3, 3), (17, 70), (9, 515)]);
        for (rows, cols) in shapes {
            let all = values::<T>(5, rows * cols + 1, 1.0);
            let src = &all[1..];
            let mut want = vec![T::default(); rows * cols];
            reference::stencil5_step(src, &mut want, rows, cols, T::from_f64(0.2));
            for level in levels() {
                let mut got = vec![T::default(); rows * cols];
                stencil5_step(level, src, &mut got, rows, cols, T::from_f64(0.2));
                for i in 0..got.len() {
                    let what = format!("{level} {rows} x {cols} at {i}");
                    close(got[i].to_f64(), want[i].to_f64(), 6.0 * ulp, &what);
                }
                let half = rows / 2;
                let mut pieces = vec![T::default(); rows * cols];
                let (top, bottom) = pieces.split_at_mut(half * cols);
                stencil5_rows(level, src, top, 0, rows, cols, T::from_f64(0.2));
                stencil5_rows(level, src, bottom, half, rows, cols, T::from_f64(0.2));
                assert!(pieces == got, "pieces differ: {level} {rows} x {cols}");
            }
        }
    }

    #[test]
    fn a_sweep_matches_reference_and_its_pieces() {
        matches::<f32>(f64::from(f32::EPSILON));
        matches::<f64>(f64::EPSILON);
    }
}
