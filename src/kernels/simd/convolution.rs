//! Weighted sums over the windows of a grid.

use super::kernel;
use super::lanes::{Isa, Lanes, SimdElem};

/// Vectors of answers kept in registers: enough sums side by side to hide the time of an addition.
const VECTORS: usize = 8;

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn windows_body<I: Isa, T: SimdElem>(
    grid: &[T],
    stride: usize,
    taps: &[T],
    width: usize,
    out: &mut [T],
) {
    assert!(width > 0 && taps.len().is_multiple_of(width) && !taps.is_empty(), "taps in rows of {width}");
    let last = taps.len() / width - 1;
    assert!(grid.len() >= last * stride + out.len() + width - 1, "windows reach beyond the grid");
    let n = <T::Lanes<I>>::N;
    let mut i = 0;
    // SAFETY: the processor has `I` by contract; the last window of a vector at `i` ends where that of answer
    // `i + n - 1` does, which was checked.
    unsafe {
        let zero = <T::Lanes<I>>::splat(T::default());
        while i + VECTORS * n <= out.len() {
            let mut sums = [zero; VECTORS];
            for (row, taps) in taps.chunks_exact(width).enumerate() {
                for (column, tap) in taps.iter().enumerate() {
                    let tap = zero.same(*tap);
                    let at = grid.as_ptr().add(row * stride + column + i);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = tap.mul_add(<T::Lanes<I>>::load(at.add(j * n)), *sum);
                    }
                }
            }
            for (j, sum) in sums.iter().enumerate() {
                sum.store(out.as_mut_ptr().add(i + j * n));
            }
            i += VECTORS * n;
        }
        while i < out.len() {
            let whole = i + n <= out.len();
            let count = n.min(out.len() - i);
            let mut sum = zero;
            for (row, taps) in taps.chunks_exact(width).enumerate() {
                for (column, tap) in taps.iter().enumerate() {
                    let values = &grid[row * stride + column + i..][..count];
                    let values = if whole {
                        <T::Lanes<I>>::load(values.as_ptr())
                    } else {
                        <T::Lanes<I>>::load_part(values, T::default())
                    };
                    sum = zero.same(*tap).mul_add(values, sum);
                }
            }
            if whole {
                sum.store(out.as_mut_ptr().add(i));
            } else {
                sum.store_part(&mut out[i..]);
            }
            i += n;
        }
    }
}

kernel! {
    /// `out[j] = sum over p, q of taps[p, q] * grid[p, j + q]`, rows of the grid lying `stride` apart and taps
    /// standing in rows of `width`.
    ///
    /// Added in the order of the taps, in `T`.
    pub fn windows<T>(grid: &[T], stride: usize, taps: &[T], width: usize, out: &mut [T]) = windows_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, lengths, levels, values};
    use super::*;

    #[test]
    fn windows_match_their_definition() {
        for length in lengths() {
            for (height, width) in [(1, 1), (3, 2), (2, 5)] {
                // Further apart than a window needs.
                let stride = length + width + 2;
                let taps = values::<f32>(51, height * width, 2.0);
                let grid = &values::<f32>(52, height * stride + 1, 2.0)[1..];
                for level in levels() {
                    let mut out = vec![7.0; length + 1];
                    windows(level, grid, stride, &taps, width, &mut out[..length]);
                    for (j, got) in out[..length].iter().enumerate() {
                        let terms = (0..height * width).map(|at| {
                            let (p, q) = (at / width, at % width);
                            f64::from(taps[at]) * f64::from(grid[p * stride + j + q])
                        });
                        close(f64::from(*got), terms.sum(), 2e-5, &format!("{level} {length} at {j}"));
                    }
                    assert_eq!(out[length], 7.0, "wrote too far");
                }
            }
        }
    }
}
