//! Matrix product: our own blocked form, next to the `gemm` crate's.
//!
//! The usual five loops (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008): a
//! panel of `b` and a block of `a` are packed so that the innermost kernel reads both forwards, and a tile of
//! `c` of `MR` rows and two vectors stays in registers over the whole depth of a block. Packed edges are
//! filled with zeros, so there is one inner kernel; only its store knows about the edge.

use super::kernel;
use super::lanes::{Isa, LANES_MAX, Lanes, SimdElem};

/// Depth of a block: a packed strip of `b`, `DEPTH x 2` vectors, stays in the first-level cache.
const DEPTH: usize = 256;
/// Rows of `a` packed at once, a multiple of both tile heights: 120 x 256 `f64` are 240 KiB, second level.
const ROWS: usize = 120;
/// Columns of `b` packed at once, a multiple of all tile widths: 256 x 1024 `f64` are 2 MiB, third level.
const COLUMNS: usize = 1024;
/// Tallest tile.
const MR_MAX: usize = 12;

/// One tile: `c[.. rows][.. columns] (+)= a_strip * b_strip`.
///
/// # Safety
/// The processor has `I`. `a_strip` has `depth * MR` elements, `b_strip` has `depth * 2 N`. `c` points to
/// `rows <= MR` rows of `columns <= 2 N` writable elements, `c_stride` apart.
#[allow(clippy::too_many_arguments, reason = "an inner kernel")]
#[inline(always)]
unsafe fn tile<I: Isa, T: SimdElem, const MR: usize>(
    depth: usize,
    a_strip: *const T,
    b_strip: *const T,
    c: *mut T,
    c_stride: usize,
    rows: usize,
    columns: usize,
    first: bool,
) {
    let n = <T::Lanes<I>>::N;
    // SAFETY: by contract; the edge goes through a buffer of MR_MAX x 2 LANES_MAX elements.
    unsafe {
        let zero = <T::Lanes<I>>::splat(T::default());
        let mut acc = [[zero; 2]; MR];
        let (mut a, mut b) = (a_strip, b_strip);
        for _ in 0..depth {
            let (b0, b1) = (<T::Lanes<I>>::load(b), <T::Lanes<I>>::load(b.add(n)));
            for (i, acc) in acc.iter_mut().enumerate() {
                let value = <T::Lanes<I>>::splat(*a.add(i));
                acc[0] = value.mul_add(b0, acc[0]);
                acc[1] = value.mul_add(b1, acc[1]);
            }
            a = a.add(MR);
            b = b.add(2 * n);
        }
        if rows == MR && columns == 2 * n {
            for (i, acc) in acc.iter().enumerate() {
                for (j, sum) in acc.iter().enumerate() {
                    let at = c.add(i * c_stride + j * n);
                    let sum = if first { *sum } else { <T::Lanes<I>>::load(at).add(*sum) };
                    sum.store(at);
                }
            }
            return;
        }
        let mut buffer = [[T::default(); 2 * LANES_MAX]; MR_MAX];
        for (line, acc) in buffer.iter_mut().zip(&acc) {
            acc[0].store(line.as_mut_ptr());
            acc[1].store(line.as_mut_ptr().add(n));
        }
        for (i, line) in buffer.iter().enumerate().take(rows) {
            for (j, sum) in line.iter().enumerate().take(columns) {
                let at = c.add(i * c_stride + j);
                let before = if first { 0.0 } else { (*at).to_f64() };
                *at = T::from_f64(before + sum.to_f64());
            }
        }
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn blocked<I: Isa, T: SimdElem, const MR: usize>(
    a: &[T],
    b: &[T],
    c: &mut [T],
    m: usize,
    k: usize,
    n: usize,
) {
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n, "{m} x {k} times {k} x {n}");
    if k == 0 {
        c.fill(T::default());
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let nr = 2 * <T::Lanes<I>>::N;
    let depth_max = k.min(DEPTH);
    let mut a_pack = vec![T::default(); m.min(ROWS).next_multiple_of(MR) * depth_max];
    let mut b_pack = vec![T::default(); n.min(COLUMNS).next_multiple_of(nr) * depth_max];
    for column in (0..n).step_by(COLUMNS) {
        let columns = COLUMNS.min(n - column);
        for deep in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - deep);
            for (strip, j) in b_pack.chunks_exact_mut(nr * depth).zip((0..columns).step_by(nr)) {
                let wide = nr.min(columns - j);
                for (p, line) in strip.chunks_exact_mut(nr).enumerate() {
                    let from = (deep + p) * n + column + j;
                    line[..wide].copy_from_slice(&b[from..from + wide]);
                    line[wide..].fill(T::default());
                }
            }
            for row in (0..m).step_by(ROWS) {
                let rows = ROWS.min(m - row);
                for (strip, i) in a_pack.chunks_exact_mut(MR * depth).zip((0..rows).step_by(MR)) {
                    for r in 0..MR {
                        if i + r < rows {
                            let line = &a[(row + i + r) * k + deep..][..depth];
                            for (p, value) in line.iter().enumerate() {
                                strip[p * MR + r] = *value;
                            }
                        } else {
                            for p in 0..depth {
                                strip[p * MR + r] = T::default();
                            }
                        }
                    }
                }
                for (b_strip, j) in b_pack.chunks_exact(nr * depth).zip((0..columns).step_by(nr)) {
                    for (a_strip, i) in a_pack.chunks_exact(MR * depth).zip((0..rows).step_by(MR)) {
                        let (high, wide) = (MR.min(rows - i), nr.min(columns - j));
                        let at = (row + i) * n + column + j;
                        // SAFETY: by contract; strips have `depth` lines, and the tile's `high` rows of `wide`
                        // columns lie inside the `m x n` elements of `c`.
                        unsafe {
                            let c = c.as_mut_ptr().add(at);
                            let (a, b) = (a_strip.as_ptr(), b_strip.as_ptr());
                            tile::<I, T, MR>(depth, a, b, c, n, high, wide, deep == 0);
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn matmul_body<I: Isa, T: SimdElem>(a: &[T], b: &[T], c: &mut [T], m: usize, k: usize, n: usize) {
    // Two vectors a row: 24 of 32 registers hold sums, or 12 of 16.
    // SAFETY: by contract.
    unsafe {
        if I::REGISTERS >= 32 {
            blocked::<I, T, 12>(a, b, c, m, k, n);
        } else {
            blocked::<I, T, 6>(a, b, c, m, k, n);
        }
    }
}

kernel! {
    /// `c = a * b` for `a` of `m x k`, `b` of `k x n`, `c` of `m x n`, all row-major.
    ///
    /// Accumulates in `T`, in the order of `k`: the error of an element is at most
    /// `(k + 1) * u * sum |a| |b|`, where `u` is 2^-24 or 2^-53. Allocates the packing buffers, at most about
    /// 2.3 MiB. Threads may share the work by rows: slices of `a` and `c`.
    pub fn matmul<T>(a: &[T], b: &[T], c: &mut [T], m: usize, k: usize, n: usize) = matmul_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, levels, values};
    use super::*;
    use crate::kernels::reference;

    fn matches<T: SimdElem>(ulp: f64) {
        let small = (0..=34).map(|s| (s, 35 - s, s + 1));
        let odd =
            [(1, 1, 1), (13, 300, 33), (121, 5, 65), (24, 520, 64), (7, 3, 1030), (3, 0, 4), (70, 70, 70)];
        for (m, k, n) in small.chain(odd) {
            let (a, b) = (values::<T>(71, m * k + 1, 1.0), values::<T>(72, k * n + 3, 1.0));
            let (a, b) = (&a[1..], &b[3..]);
            let mut want = vec![T::default(); m * n];
            reference::matmul(a, b, &mut want, m, k, n);
            for level in levels() {
                let mut got = vec![T::from_f64(9.0); m * n];
                matmul(level, a, b, &mut got, m, k, n);
                for i in 0..got.len() {
                    let what = format!("{level} {m} x {k} x {n} at {i}");
                    close(got[i].to_f64(), want[i].to_f64(), (k + 1) as f64 * ulp, &what);
                }
            }
        }
    }

    #[test]
    fn products_match_reference() {
        matches::<f32>(f64::from(f32::EPSILON));
        matches::<f64>(f64::EPSILON);
    }

    #[test]
    fn a_nan_spoils_its_row_and_nothing_else() {
        for level in levels() {
            let (mut a, b, mut c) = (vec![1.0_f32; 30], vec![1.0; 30], vec![0.0; 25]);
            a[6 * 2 + 1] = f32::NAN;
            matmul(level, &a, &b, &mut c, 5, 6, 5);
            for (i, value) in c.iter().enumerate() {
                assert_eq!(value.is_nan(), i / 5 == 2, "{level} at {i}");
            }
        }
    }
}
