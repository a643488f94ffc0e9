//! Matrix product: our own blocked form, next to the `gemm` crate's.
//!
//! The usual five loops (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008): a
//! panel of `b` and a block of `a` are packed so that the innermost kernel reads both forwards, and a tile of
//! `c` of `MR` rows and two vectors stays in registers over the whole depth of a block. Packed edges are
//! filled with zeros, so there is one inner kernel; only its store knows about the edge.

use super::kernel;
use super::lanes::{Isa, LANES_MAX, Lanes, SimdElem};
use crate::kernels::{Cancelled, Pulse};

/// Depth of a block: a packed strip of `b`, `DEPTH x 2` vectors, stays in the first-level cache.
const DEPTH: usize = 256;
/// Rows of `a` packed at once, a multiple of both tile heights: 120 x 256 `f64` are 240 KiB, second level.
const ROWS: usize = 120;
/// Columns of `b` packed at once, a multiple of all tile widths: 256 x 1024 `f64` are 2 MiB, third level.
const COLUMNS: usize = 1024;
/// Tallest tile.
const MR_MAX: usize = 12;
/// So many lines before they are needed, those of `a` are asked for.
const AHEAD: usize = 32;
/// Bytes of a line of the cache.
const LINE: usize = 64;
/// So many strips of `b` are multiplied from one beat to the next: 60 us each where there is one lane.
const STRIPS_A_BEAT: usize = 64;

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
        // What lies in the second level or beyond comes in while the tile is multiplied.
        for i in 0..rows {
            I::soon(c.wrapping_add(i * c_stride));
            I::soon(c.wrapping_add(i * c_stride + columns - 1));
        }
        let (mut a, mut b) = (a_strip, b_strip);
        macro_rules! step {
            () => {
                let (b0, b1) = (<T::Lanes<I>>::load(b), <T::Lanes<I>>::load(b.add(n)));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let value = <T::Lanes<I>>::splat(*a.add(i));
                    acc[0] = value.mul_add(b0, acc[0]);
                    acc[1] = value.mul_add(b1, acc[1]);
                }
                (a, b) = (a.add(MR), b.add(2 * n));
            };
        }
        // What counts the loop takes a slot of the multiplications.
        for _ in 0..depth / 4 {
            for at in (0..4 * MR).step_by(LINE / size_of::<T>()) {
                I::soon(a.wrapping_add(AHEAD * MR + at));
            }
            step!();
            step!();
            step!();
            step!();
        }
        for _ in 0..depth % 4 {
            step!();
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

/// Some lines of a matrix side by side: element `p` of line `r` comes to `strip[p * lines + r]`. Lines lie `across` apart, and
/// their elements `along`; those that are missing, from `wide` on, are zeros.
#[inline(always)]
fn pack<T: SimdElem>(
    from: &[T],
    [across, along]: [usize; 2],
    wide: usize,
    lines: usize,
    depth: usize,
    strip: &mut [T],
) {
    if across == 1 && wide == lines {
        for (p, to) in strip.chunks_exact_mut(lines).enumerate() {
            to.copy_from_slice(&from[p * along..][..lines]);
        }
        return;
    }
    let mut packed = 0;
    if along == 1 && wide >= 4 {
        // Four lines at a time; the last four may take some up again.
        while packed < wide {
            let line = packed.min(wide - 4);
            for p in (0..depth / 4 * 4).step_by(4) {
                let mut rows = [[T::default(); 4]; 4];
                for (r, row) in rows.iter_mut().enumerate() {
                    row.copy_from_slice(&from[(line + r) * across + p..][..4]);
                }
                for (e, column) in T::crossed(rows).into_iter().enumerate() {
                    strip[(p + e) * lines + line..][..4].copy_from_slice(&column);
                }
            }
            for p in depth / 4 * 4..depth {
                for r in line..line + 4 {
                    strip[p * lines + r] = from[r * across + p];
                }
            }
            packed = line + 4;
        }
    }
    for p in 0..depth {
        for r in packed..wide {
            strip[p * lines + r] = from[r * across + p * along];
        }
        strip[p * lines + wide..(p + 1) * lines].fill(T::default());
    }
}

/// A matrix as it lies there.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// Row by row, or column by column if it is `turned`.
    pub elements: &'a [T],
    /// See `elements`.
    pub turned: bool,
}

impl<T> Matrix<'_, T> {
    /// From one row to the next, and from one column to the next, of `rows` by `columns`.
    pub fn strides(&self, rows: usize, columns: usize) -> [usize; 2] {
        if self.turned { [1, rows] } else { [columns, 1] }
    }
}

/// Elements that [`matmul`] packs into, for a product of these sizes at any level: 2.5 MiB of `f64` at most.
pub fn matmul_space<T>([m, k, n]: [usize; 3]) -> usize {
    let columns = n.min(COLUMNS).next_multiple_of(2 * LANES_MAX);
    let rows = m.min(ROWS).next_multiple_of(MR_MAX);
    (columns + rows) * k.min(DEPTH) + LINE / size_of::<T>()
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn blocked<I: Isa, T: SimdElem, const MR: usize>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    [m, k, n]: [usize; 3],
    space: &mut [T],
    pulse: &dyn Pulse,
) -> Result<(), Cancelled> {
    assert!(
        a.elements.len() == m * k && b.elements.len() == k * n && c.len() == m * n,
        "{m} x {k} times {k} x {n}"
    );
    assert!(space.len() >= matmul_space::<T>([m, k, n]), "space for {m} x {k} times {k} x {n}");
    let nr = 2 * <T::Lanes<I>>::N;
    let (a_strides, b_strides) = (a.strides(m, k), b.strides(k, n));
    // Vectors that do not cross a line of the cache.
    let begin = space.as_ptr().align_offset(LINE).min(LINE / size_of::<T>());
    let b_size = n.min(COLUMNS).next_multiple_of(nr) * k.min(DEPTH);
    let (b_pack, a_pack) = space[begin..].split_at_mut(b_size);
    let mut strips = 0_usize;
    for column in (0..n).step_by(COLUMNS) {
        let columns = COLUMNS.min(n - column);
        for deep in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - deep);
            for (strip, j) in b_pack.chunks_exact_mut(nr * depth).zip((0..columns).step_by(nr)) {
                let from = &b.elements[deep * b_strides[0] + (column + j) * b_strides[1]..];
                pack(from, [b_strides[1], b_strides[0]], nr.min(columns - j), nr, depth, strip);
            }
            for row in (0..m).step_by(ROWS) {
                let rows = ROWS.min(m - row);
                for (strip, i) in a_pack.chunks_exact_mut(MR * depth).zip((0..rows).step_by(MR)) {
                    let from = &a.elements[(row + i) * a_strides[0] + deep * a_strides[1]..];
                    pack(from, a_strides, MR.min(rows - i), MR, depth, strip);
                }
                for (b_strip, j) in b_pack.chunks_exact(nr * depth).zip((0..columns).step_by(nr)) {
                    if strips.is_multiple_of(STRIPS_A_BEAT) {
                        pulse.beat()?;
                    }
                    strips += 1;
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
    Ok(())
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn matmul_body<I: Isa, T: SimdElem>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    sizes: [usize; 3],
    space: &mut [T],
    pulse: &dyn Pulse,
) -> Result<(), Cancelled> {
    // Two vectors a row: 24 of 32 registers hold sums, or 12 of 16.
    // SAFETY: by contract.
    unsafe {
        if I::REGISTERS >= 32 {
            blocked::<I, T, 12>(a, b, c, sizes, space, pulse)
        } else {
            blocked::<I, T, 6>(a, b, c, sizes, space, pulse)
        }
    }
}

kernel! {
    /// `c = a * b` for `a` of `m x k`, `b` of `k x n`, and `c` of `m x n` row by row, none of them empty; sizes are `m`, `k` and `n`.
    ///
    /// Accumulates in `T`, in the order of `k`: the error of an element is at most
    /// `(k + 1) * u * sum |a| |b|`, where `u` is 2^-24 or 2^-53. Needs [`matmul_space`]. Beats every few ms at the least.
    pub fn matmul<T>(
        a: Matrix<'_, T>,
        b: Matrix<'_, T>,
        c: &mut [T],
        sizes: [usize; 3],
        space: &mut [T],
        pulse: &dyn Pulse,
    ) -> Result<(), Cancelled> = matmul_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, levels, values};
    use super::*;
    use crate::kernels::reference;

    /// The other order of the same matrix.
    fn turned<T: SimdElem>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
        (0..columns * rows).map(|at| x[at % rows * columns + at / rows]).collect()
    }

    fn matches<T: SimdElem>(ulp: f64) {
        let small = (1..=34).map(|s| (s, 35 - s, s + 1));
        let odd = [
            (1, 1, 1),
            (13, 300, 33),
            (121, 5, 65),
            (24, 1030, 64),
            (7, 3, 2070),
            (70, 70, 70),
            (250, 9, 40),
        ];
        for (m, k, n) in small.chain(odd) {
            let (a, b) = (values::<T>(71, m * k + 1, 1.0), values::<T>(72, k * n + 3, 1.0));
            let (a, b) = (&a[1..], &b[3..]);
            let mut want = vec![T::default(); m * n];
            reference::matmul(a, b, &mut want, m, k, n);
            let (a_turned, b_turned) = (turned(a, m, k), turned(b, k, n));
            for level in levels() {
                for (turned_a, turned_b) in [(false, false), (true, false), (false, true), (true, true)] {
                    let a = Matrix { elements: if turned_a { &a_turned } else { a }, turned: turned_a };
                    let b = Matrix { elements: if turned_b { &b_turned } else { b }, turned: turned_b };
                    let mut got = vec![T::from_f64(9.0); m * n];
                    // What lay in the space before does not matter.
                    let mut space = vec![T::from_f64(f64::NAN); matmul_space::<T>([m, k, n])];
                    matmul(level, a, b, &mut got, [m, k, n], &mut space, &()).expect("nobody cancels");
                    for i in 0..got.len() {
                        let what = format!("{level} {m} x {k} x {n} {turned_a} {turned_b} at {i}");
                        close(got[i].to_f64(), want[i].to_f64(), (k + 1) as f64 * ulp, &what);
                    }
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
            let lies = |elements| Matrix { elements, turned: false };
            let mut space = vec![0.0; matmul_space::<f32>([5, 6, 5])];
            matmul(level, lies(&a), lies(&b), &mut c, [5, 6, 5], &mut space, &()).expect("nobody cancels");
            for (i, value) in c.iter().enumerate() {
                assert_eq!(value.is_nan(), i / 5 == 2, "{level} at {i}");
            }
        }
    }
}
