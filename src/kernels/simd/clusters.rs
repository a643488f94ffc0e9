//! Clusters: which of some centroids is nearest to each row, and the sums of each cluster's rows.
//!
//! A tile of rows is laid on its side, so that a lane is a row: nothing is added across lanes, and no lane is idle
//! however few centroids or columns there are. The squares are those of the differences and are added column by
//! column without a fused operation, so every level gives the same bits, and near rows lose no digits to
//! cancellation. `|x|^2 - 2 x.c + |c|^2` would take one operation for three and have neither.

use super::kernel;
use super::lanes::{Isa, LANES_MAX, Lanes, SimdElem};

/// Most rows in a tile, whatever the level: [`nearest_centroids`] wants room for so many.
pub const TILE_ROWS: usize = 4 * LANES_MAX;

/// Squared distances of `U` vectors of rows and `Q` centroids.
///
/// # Safety
/// The processor has `I`; `tile` has `d * U * N` readable elements and every centroid `d`.
#[inline(always)]
unsafe fn squares<I: Isa, T: SimdElem, const U: usize, const Q: usize>(
    tile: *const T,
    centroids: [*const T; Q],
    d: usize,
) -> [[T::Lanes<I>; U]; Q] {
    let n = <T::Lanes<I>>::N;
    // SAFETY: by contract; column `j` of the tile begins at `j * U * N`.
    unsafe {
        let zero = <T::Lanes<I>>::splat(T::default());
        let mut acc = [[zero; U]; Q];
        for j in 0..d {
            let mut rows = [zero; U];
            for (u, row) in rows.iter_mut().enumerate() {
                *row = <T::Lanes<I>>::load(tile.add((j * U + u) * n));
            }
            for (acc, at) in acc.iter_mut().zip(centroids) {
                let centroid = <T::Lanes<I>>::splat(*at.add(j));
                for (acc, row) in acc.iter_mut().zip(rows) {
                    let difference = row.sub(centroid);
                    *acc = acc.add(difference.mul(difference));
                }
            }
        }
        acc
    }
}

/// The best so far of the rows of a tile.
struct Best<V, const U: usize> {
    squares: [V; U],
    labels: [V; U],
}

/// Lets centroids `c .. c + Q` compete, the first of them under the name `label`.
///
/// # Safety
/// As [`squares`]; `centroids` has `(c + Q) * d` elements.
#[inline(always)]
unsafe fn compete<I: Isa, T: SimdElem, const U: usize, const Q: usize>(
    tile: *const T,
    centroids: &[T],
    d: usize,
    c: usize,
    first_label: usize,
    best: &mut Best<T::Lanes<I>, U>,
) {
    // SAFETY: by contract.
    unsafe {
        let mut at = [centroids.as_ptr(); Q];
        for (q, at) in at.iter_mut().enumerate() {
            *at = centroids.as_ptr().add((c + q) * d);
        }
        let found = squares::<I, T, U, Q>(tile, at, d);
        for (q, found) in found.iter().enumerate() {
            let label = <T::Lanes<I>>::splat(T::carrying((first_label + c + q) as u32));
            for (u, found) in found.iter().enumerate() {
                let nearer = found.lt(best.squares[u]);
                best.squares[u] = <T::Lanes<I>>::select(nearer, *found, best.squares[u]);
                best.labels[u] = <T::Lanes<I>>::select(nearer, label, best.labels[u]);
            }
        }
    }
}

/// Row `p` becomes lane `p` of every column, `wide` apart. What stands in lanes beyond the last row is looked at by
/// nobody.
#[inline(always)]
fn lay_on_side<T: SimdElem>(rows: &[T], d: usize, tile: &mut [T], wide: usize) {
    let whole = d - d % 4;
    let mut p = 0;
    for four in rows.chunks(4 * d) {
        // A single lane has no room for four.
        if four.len() == 4 * d && wide >= 4 {
            let (a, rest) = four.split_at(d);
            let (b, rest) = rest.split_at(d);
            let (c, e) = rest.split_at(d);
            let quarters = a.as_chunks::<4>().0.iter().zip(b.as_chunks::<4>().0);
            let quarters = quarters.zip(c.as_chunks::<4>().0.iter().zip(e.as_chunks::<4>().0));
            for (((a, b), (c, e)), columns) in quarters.zip(tile.chunks_exact_mut(4 * wide)) {
                for (j, column) in T::crossed([*a, *b, *c, *e]).iter().enumerate() {
                    columns[j * wide + p..][..4].copy_from_slice(column);
                }
            }
            for j in whole..d {
                tile[j * wide + p..][..4].copy_from_slice(&[a[j], b[j], c[j], e[j]]);
            }
        } else {
            for (row, lane) in four.chunks_exact(d).zip(p..) {
                for (column, value) in tile.chunks_exact_mut(wide).zip(row) {
                    column[lane] = *value;
                }
            }
        }
        p += 4;
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn tiles<I: Isa, T: SimdElem, const U: usize>(
    rows: &[T],
    d: usize,
    centroids: &[T],
    first_label: usize,
    space: &mut [T],
    squares: &mut [T],
    labels: &mut [i32],
) {
    let n = <T::Lanes<I>>::N;
    let (wide, k) = (U * n, centroids.len() / d);
    let tile = &mut space[..wide * d];
    let pieces = rows.chunks(wide * d).zip(squares.chunks_mut(wide).zip(labels.chunks_mut(wide)));
    for (rows, (squares, labels)) in pieces {
        let count = rows.len() / d;
        lay_on_side(rows, d, tile, wide);
        let (mut near, mut names) = ([T::default(); 4 * LANES_MAX], [T::default(); 4 * LANES_MAX]);
        near[..count].copy_from_slice(squares);
        for (name, label) in names.iter_mut().zip(&*labels) {
            *name = T::carrying(*label as u32);
        }
        // SAFETY: by contract; the tile has `wide * d` elements, the buffers `wide` or more, and no centroid
        // beyond the last one is asked for.
        unsafe {
            let zero = <T::Lanes<I>>::splat(T::default());
            let mut best = Best::<T::Lanes<I>, U> { squares: [zero; U], labels: [zero; U] };
            for u in 0..U {
                best.squares[u] = <T::Lanes<I>>::load(near.as_ptr().add(u * n));
                best.labels[u] = <T::Lanes<I>>::load(names.as_ptr().add(u * n));
            }
            let at = tile.as_ptr();
            let mut c = 0;
            while c + 4 <= k {
                compete::<I, T, U, 4>(at, centroids, d, c, first_label, &mut best);
                c += 4;
            }
            if c + 2 <= k {
                compete::<I, T, U, 2>(at, centroids, d, c, first_label, &mut best);
                c += 2;
            }
            if c < k {
                compete::<I, T, U, 1>(at, centroids, d, c, first_label, &mut best);
            }
            for u in 0..U {
                best.squares[u].store(near.as_mut_ptr().add(u * n));
                best.labels[u].store(names.as_mut_ptr().add(u * n));
            }
        }
        squares.copy_from_slice(&near[..count]);
        for (label, name) in labels.iter_mut().zip(names) {
            *label = name.carried() as i32;
        }
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn nearest_centroids_body<I: Isa, T: SimdElem>(
    rows: &[T],
    d: usize,
    centroids: &[T],
    first_label: usize,
    space: &mut [T],
    squares: &mut [T],
    labels: &mut [i32],
) {
    assert!(d > 0 && rows.len() == squares.len() * d && labels.len() == squares.len(), "one answer per row");
    assert!(centroids.len().is_multiple_of(d), "centroids of {d}");
    assert!(space.len() >= TILE_ROWS * d, "room for a tile");
    assert!(first_label + centroids.len() / d <= i32::MAX as usize, "labels of 31 bits");
    // SAFETY: by contract.
    unsafe {
        if I::REGISTERS >= 32 {
            tiles::<I, T, 4>(rows, d, centroids, first_label, space, squares, labels);
        } else {
            tiles::<I, T, 2>(rows, d, centroids, first_label, space, squares, labels);
        }
    }
}

kernel! {
    /// For each of `rows`, of `d` numbers, the squared distance to the nearest of `centroids` and which that is, counted
    /// from `first_label`, where it is less than the one that stands in `squares` already; of equal ones the first.
    ///
    /// Differences, their squares and the sums in the order of the columns are rounded to `T` one by one, so the
    /// bits are the same on every level. Numbers must be finite and squared distances must not overflow. `space`
    /// is for [`TILE_ROWS`] rows.
    pub fn nearest_centroids<T>(
        rows: &[T],
        d: usize,
        centroids: &[T],
        first_label: usize,
        space: &mut [T],
        squares: &mut [T],
        labels: &mut [i32],
    ) = nearest_centroids_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn add_to_clusters_body<I: Isa, T: SimdElem>(rows: &[T], d: usize, labels: &[i32], sums: &mut [f64]) {
    assert!(d > 0 && rows.len() == labels.len() * d, "one label per row");
    let n = I::F64::N;
    for (row, label) in rows.chunks_exact(d).zip(labels) {
        let sum = &mut sums[*label as usize * d..][..d];
        let mut j = 0;
        // SAFETY: by contract; whole vectors end inside both slices, which have `d` elements.
        unsafe {
            while j + n <= d {
                let at = sum.as_mut_ptr().add(j);
                I::F64::load(at).add(T::load_wide::<I>(row.as_ptr().add(j))).store(at);
                j += n;
            }
        }
        for (sum, value) in sum[j..].iter_mut().zip(&row[j..]) {
            *sum += value.to_f64();
        }
    }
}

kernel! {
    /// Adds each row to the sum of its cluster, `sums[label * d ..][.. d]`, in the order of the rows: the same bits on
    /// every level.
    pub fn add_to_clusters<T>(rows: &[T], d: usize, labels: &[i32], sums: &mut [f64]) = add_to_clusters_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{levels, values};
    use super::*;
    use crate::kernels::reference;

    fn distances_and_sums_are_those_of_the_reference<T: SimdElem>() {
        let sizes = (1..=20).chain([33, 64, 100]);
        let counts = [(1, 1), (2, 3), (7, 5), (16, 2), (63, 9), (64, 16), (65, 7), (200, 13)];
        for (d, (n, k)) in sizes.flat_map(|d| counts.map(|count| (d, count))) {
            let (x, c) = (values::<T>(71, n * d + 1, 1.0), values::<T>(72, k * d + 3, 1.0));
            let (x, mut c) = (&x[1..], c[3..].to_vec());
            if k > 4 {
                // Of equal ones the first, also across the groups that compete together.
                c.copy_within(0..d, 4 * d);
            }
            let mut want = Vec::new();
            let mut want_sums = vec![0.0; k * d];
            for row in x.chunks_exact(d) {
                let nearest = reference::nearest_centroid(row, &c);
                for (sum, value) in want_sums[nearest.0 * d..].iter_mut().zip(row) {
                    *sum += value.to_f64();
                }
                want.push(nearest);
            }
            for level in levels() {
                let what = format!("{level} {n} rows of {d}, {k} centroids");
                let mut space = vec![T::default(); TILE_ROWS * d];
                // All at once, and in two goes.
                for cut in [k, k / 2] {
                    let mut squares = vec![T::from_f64(f64::INFINITY); n];
                    let mut labels = vec![0; n];
                    for (first, part) in [(0, &c[..cut * d]), (cut, &c[cut * d..])] {
                        nearest_centroids(level, x, d, part, first, &mut space, &mut squares, &mut labels);
                    }
                    let got = labels.iter().zip(&squares).map(|(&label, &square)| (label as usize, square));
                    assert!(got.eq(want.iter().copied()), "{what}");
                    let mut sums = vec![0.0; k * d];
                    add_to_clusters(level, x, d, &labels, &mut sums);
                    assert_eq!(sums, want_sums, "{what}");
                }
            }
        }
    }

    #[test]
    fn distances_and_sums_have_the_bits_of_the_reference_on_every_level() {
        distances_and_sums_are_those_of_the_reference::<f32>();
        distances_and_sums_are_those_of_the_reference::<f64>();
    }

    #[test]
    fn names_are_exact_up_to_the_last_one() {
        for level in levels() {
            let (mut space, mut squares, mut labels) = (vec![0.0_f32; TILE_ROWS], [f32::MAX; 3], [0; 3]);
            let (rows, centroids, first) = ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], i32::MAX as usize - 3);
            nearest_centroids(level, &rows, 1, &centroids, first, &mut space, &mut squares, &mut labels);
            assert_eq!(labels, [i32::MAX - 1, i32::MAX - 2, i32::MAX - 3], "{level}");
        }
    }
}
