//! One sweep of the five-point stencil.

use super::lanes::{Isa, Lanes, SimdElem};
use super::{Stores, kernel};
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
    stores: Stores,
) {
    assert_eq!(src.len(), rows * cols, "a grid of {rows} x {cols}");
    if cols == 0 {
        return;
    }
    let count = dst.len() / cols;
    assert!(dst.len().is_multiple_of(cols) && first_row + count <= rows, "rows outside the grid");
    let n = <T::Lanes<I>>::N;
    // What stands in registers: the rows of a group and of their neighbours, here and one vector on, those of the group
    // also one vector back, two factors, and what comes in between.
    let group = if n == 1 || cols < 3 * n {
        1
    } else if I::REGISTERS >= 32 {
        GROUP_MANY
    } else {
        GROUP_FEW
    };
    let streams = stores.streams::<T, I>(dst.as_ptr()) && cols.is_multiple_of(n);
    let mut done = 0;
    while done < count {
        let (r, out) = (first_row + done, &mut dst[done * cols..]);
        let is_border = r == 0 || r + 1 == rows || cols < 3;
        // SAFETY: the processor has `I`; the rows before and behind those of a group are in the grid, there is room for
        // the group, and `streams` looked at where rows begin.
        unsafe {
            if !is_border && group == GROUP_MANY && done + group <= count && r + group < rows {
                stencil5_group::<I, T, GROUP_MANY>(&src[(r - 1) * cols..], out, cols, alpha, streams);
                done += group;
                continue;
            }
            if !is_border && group == GROUP_FEW && done + group <= count && r + group < rows {
                stencil5_group::<I, T, GROUP_FEW>(&src[(r - 1) * cols..], out, cols, alpha, streams);
                done += group;
                continue;
            }
        }
        let (out, row) = (&mut out[..cols], &src[r * cols..][..cols]);
        done += 1;
        if is_border {
            out.copy_from_slice(row);
            continue;
        }
        out[0] = row[0];
        out[cols - 1] = row[cols - 1];
        let (up, down) = (&src[(r - 1) * cols..][..cols], &src[(r + 1) * cols..][..cols]);
        // SAFETY: by contract; four slices of `cols` elements, at least 3.
        unsafe { stencil5_row::<I, T>(up, row, down, out, alpha) };
    }
    if streams {
        I::fence();
    }
}

/// Rows computed together where there are 32 registers, and where there are 16.
const GROUP_MANY: usize = 6;
const GROUP_FEW: usize = 3;

/// `R` rows, side by side from left to right: each element is loaded once, and no load waits for a store. Rows of a power
/// of two begin on the same place of their pages, where the processor takes an earlier store for one to the very
/// address that is loaded next; so vectors are loaded one step before the stores get there, and the elements to the left
/// and the right come from registers.
///
/// # Safety
/// The processor has `I`; `src` has `R + 2` rows and `dst` `R`, of `cols` elements, at least three vectors; rows of `dst`
/// begin on boundaries of whole vectors if it `streams`.
#[inline(always)]
unsafe fn stencil5_group<I: Isa, T: SimdElem, const R: usize>(
    src: &[T],
    dst: &mut [T],
    cols: usize,
    alpha: T,
    streams: bool,
) {
    // SAFETY: by contract.
    unsafe {
        if streams {
            stencil5_columns::<I, T, R, true>(src, dst, cols, alpha);
        } else {
            stencil5_columns::<I, T, R, false>(src, dst, cols, alpha);
        }
    }
}

/// # Safety
/// As [`stencil5_group`].
#[inline(always)]
unsafe fn stencil5_columns<I: Isa, T: SimdElem, const R: usize, const STREAMS: bool>(
    src: &[T],
    dst: &mut [T],
    cols: usize,
    alpha: T,
) {
    let n = <T::Lanes<I>>::N;
    let (src, dst) = (&src[..(R + 2) * cols], &mut dst[..R * cols]);
    let (from, to) = (src.as_ptr(), dst.as_mut_ptr());
    let mut i = n;
    // SAFETY: the processor has `I`; vectors lie at columns `i - n .. i + 2 n`, which the loop keeps within `cols`, of
    // `R + 2` rows of the source and of `R` of the target, where every `i` is a whole number of vectors.
    unsafe {
        let (four, factor) = (<T::Lanes<I>>::splat(T::from_f64(4.0)), <T::Lanes<I>>::splat(alpha));
        let (mut left, mut here) = ([four; GROUP_MANY], [four; GROUP_MANY + 2]);
        #[allow(clippy::needless_range_loop, reason = "no iterator may carry a lane value")]
        for k in 0..R + 2 {
            here[k] = <T::Lanes<I>>::load(from.add(k * cols + i));
        }
        #[allow(clippy::needless_range_loop, reason = "as above")]
        for k in 0..R {
            left[k] = <T::Lanes<I>>::load(from.add((k + 1) * cols + i - n));
        }
        while i + 2 * n <= cols {
            let mut next = [four; GROUP_MANY + 2];
            #[allow(clippy::needless_range_loop, reason = "as above")]
            for k in 0..R + 2 {
                next[k] = <T::Lanes<I>>::load(from.add(k * cols + i + n));
            }
            for k in 0..R {
                let u = here[k + 1];
                let vertical = here[k].add(here[k + 2]);
                let level = u.after(left[k]).add(u.before(next[k + 1]));
                let change = four.neg_mul_add(u, vertical.add(level));
                let v = factor.mul_add(change, u);
                if STREAMS {
                    v.stream(to.add(k * cols + i));
                } else {
                    v.store(to.add(k * cols + i));
                }
                left[k] = u;
            }
            here = next;
            i += n;
        }
    }
    // What is left of the first vector, and of the last ones.
    for k in 0..R {
        let row = |k: usize| &src[k * cols..][..cols];
        let (up, row, down, out) = (row(k), row(k + 1), row(k + 2), &mut dst[k * cols..][..cols]);
        out[0] = row[0];
        out[cols - 1] = row[cols - 1];
        // SAFETY: the processor has `I`; four slices of one length, at least 3: `i + n <= cols`, and a vector has two
        // elements or more.
        unsafe {
            let head = ..n + 1;
            stencil5_row::<I, T>(&up[head], &row[head], &down[head], &mut out[head], alpha);
            let tail = i - 1..;
            stencil5_row::<I, T>(
                &up[tail.clone()],
                &row[tail.clone()],
                &down[tail.clone()],
                &mut out[tail],
                alpha,
            );
        }
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
    /// largest of the five values times `1 + 8 |alpha|`. The same bits for whatever rows a call is given.
    pub fn stencil5_rows<T>(
        src: &[T], dst: &mut [T], first_row: usize, rows: usize, cols: usize, alpha: T, stores: Stores
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
    stencil5_rows(level, src, dst, 0, rows, cols, alpha, Stores::Cached);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{aligned, close, levels, values};
    use super::*;
    use crate::kernels::reference;

    fn matches<T: SimdElem>(ulp: f64) {
        // Groups of rows and what is left of them; rows of whole vectors and others.
        let shapes = (0..=40).map(|c| (5, c)).chain([(0, 3), (1, 9), (2, 9), (3, 3), (17, 70), (9, 515)]);
        let shapes = shapes.chain((4..=22).flat_map(|r| [(r, 47), (r, 48), (r, 64), (r, 65), (r, 128)]));
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
                for stores in [Stores::Cached, Stores::Streaming] {
                    for offset in [0, 1] {
                        let mut room = aligned::<T>(rows * cols + 2);
                        let (top, bottom) = room[offset..][..rows * cols].split_at_mut(half * cols);
                        stencil5_rows(level, src, top, 0, rows, cols, T::from_f64(0.2), stores);
                        stencil5_rows(level, src, bottom, half, rows, cols, T::from_f64(0.2), stores);
                        let what = format!("{level} {stores:?} {rows} x {cols} +{offset}");
                        assert!(room[offset..][..rows * cols] == got, "pieces differ: {what}");
                        let around = room[..offset].iter().chain(&room[offset + rows * cols..]);
                        assert!(around.copied().all(|v| v == T::default()), "wrote too far: {what}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sweep_matches_reference_and_its_pieces() {
        matches::<f32>(f64::from(f32::EPSILON));
        matches::<f64>(f64::EPSILON);
    }
}
