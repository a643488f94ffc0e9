//! Nearest neighbours: scores of many queries against many rows, and the best few of them.
//!
//! 1. [`row_norms`] once per corpus and per set of queries.
//! 2. [`scores`] for a block of rows: a tile of queries and four rows shares its loads, so the work is bound by
//!    arithmetic and the corpus is read from memory once for all queries.
//! 3. [`TopK`] takes block after block and keeps the best.
//! 4. [`distance`] again for the winners, where the last digits matter.

use super::kernel;
use super::lanes::{Isa, Lanes, SimdElem};
use super::reduce::{Product, Term, blocked};
use crate::kernels::Level;
use crate::kernels::reference::{Metric, Order, ranks_before};

/// Rows in a tile.
const TILE_ROWS: usize = 4;
/// Bytes of corpus that stay in the second-level cache while all queries pass over them.
const BLOCK_BYTES: usize = 256 * 1024;

/// `(x - y)^2`
#[derive(Clone, Copy)]
struct SquareDifference;

impl Term for SquareDifference {
    #[inline(always)]
    fn step<L: Lanes<Elem = f64>>(self, acc: L, x: L, y: L) -> L {
        let difference = x.sub(y);
        difference.mul_add(difference, acc)
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn distance_body<I: Isa, T: SimdElem>(metric: Metric, a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of different length");
    // SAFETY: by contract.
    unsafe {
        match metric {
            Metric::InnerProduct => blocked::<I, T, _>(Product, a, b),
            Metric::L2 => blocked::<I, T, _>(SquareDifference, a, b).sqrt(),
            Metric::Cosine => {
                let norms =
                    blocked::<I, T, _>(Product, a, a).sqrt() * blocked::<I, T, _>(Product, b, b).sqrt();
                if norms == 0.0 { 0.0 } else { blocked::<I, T, _>(Product, a, b) / norms }
            }
        }
    }
}

kernel! {
    /// The score of one pair, accumulated in `f64`: what [`scores`] approximates.
    pub fn distance<T>(metric: Metric, a: &[T], b: &[T]) -> f64 = distance_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn row_norms_body<I: Isa, T: SimdElem>(metric: Metric, rows: &[T], d: usize, out: &mut [T]) {
    assert!(d > 0 && rows.len() == out.len() * d, "{} values are not {} rows of {d}", rows.len(), out.len());
    for (row, cell) in rows.chunks_exact(d).zip(out) {
        // SAFETY: by contract.
        let squares = unsafe { blocked::<I, T, _>(Product, row, row) };
        *cell = T::from_f64(match metric {
            Metric::InnerProduct => 0.0,
            Metric::L2 => squares,
            Metric::Cosine if squares == 0.0 => 0.0,
            Metric::Cosine => 1.0 / squares.sqrt(),
        });
    }
}

kernel! {
    /// What [`scores`] wants to know of each row beforehand: the squared norm for `L2`, the reciprocal norm
    /// for `Cosine` (0 for a zero row), nothing for `InnerProduct`.
    pub fn row_norms<T>(metric: Metric, rows: &[T], d: usize, out: &mut [T]) = row_norms_body
}

/// Inner products of `Q` queries and four rows.
///
/// # Safety
/// The processor has `I`; all pointers have `d` readable elements.
#[inline(always)]
unsafe fn tile<I: Isa, T: SimdElem, const Q: usize>(
    queries: [*const T; Q],
    rows: [*const T; TILE_ROWS],
    d: usize,
) -> [[T; TILE_ROWS]; Q] {
    let n = <T::Lanes<I>>::N;
    let mut out = [[T::default(); TILE_ROWS]; Q];
    // SAFETY: the processor has `I` by contract; vectors and the ragged end stay within `d`.
    unsafe {
        let zero = <T::Lanes<I>>::splat(T::default());
        let mut acc = [[zero; TILE_ROWS]; Q];
        let mut i = 0;
        while i + n <= d {
            let mut q = [zero; Q];
            for (q, at) in q.iter_mut().zip(&queries) {
                *q = <T::Lanes<I>>::load(at.add(i));
            }
            for (r, at) in rows.iter().enumerate() {
                let row = <T::Lanes<I>>::load(at.add(i));
                for j in 0..Q {
                    acc[j][r] = q[j].mul_add(row, acc[j][r]);
                }
            }
            i += n;
        }
        if i < d {
            for r in 0..TILE_ROWS {
                let rest = std::slice::from_raw_parts(rows[r].add(i), d - i);
                let row = <T::Lanes<I>>::load_part(rest, T::default());
                for j in 0..Q {
                    let rest = std::slice::from_raw_parts(queries[j].add(i), d - i);
                    acc[j][r] = <T::Lanes<I>>::load_part(rest, T::default()).mul_add(row, acc[j][r]);
                }
            }
        }
        for j in 0..Q {
            out[j] = <T::Lanes<I>>::reduce_add4(acc[j]);
        }
    }
    out
}

/// Inner products of one query and four rows, one row after the other.
///
/// A single query is bound by memory, and the processor fetches ahead better along one row than along the
/// four of [`tile`]: about a fifth faster over 20,000 rows of 384 `f32` (Zen 5 server core, one thread).
///
/// # Safety
/// The processor has `I`; all pointers have `d` readable elements.
#[inline(always)]
unsafe fn strip<I: Isa, T: SimdElem>(
    query: *const T,
    rows: [*const T; TILE_ROWS],
    d: usize,
) -> [T; TILE_ROWS] {
    let n = <T::Lanes<I>>::N;
    // SAFETY: the processor has `I` by contract; vectors and the ragged end stay within `d`.
    unsafe {
        let zero = <T::Lanes<I>>::splat(T::default());
        let mut sums = [zero; TILE_ROWS];
        for (sum, row) in sums.iter_mut().zip(rows) {
            let mut acc = [zero; 4];
            let mut i = 0;
            while i + 4 * n <= d {
                for (j, acc) in acc.iter_mut().enumerate() {
                    let k = i + j * n;
                    *acc = <T::Lanes<I>>::load(query.add(k)).mul_add(<T::Lanes<I>>::load(row.add(k)), *acc);
                }
                i += 4 * n;
            }
            while i + n <= d {
                acc[0] = <T::Lanes<I>>::load(query.add(i)).mul_add(<T::Lanes<I>>::load(row.add(i)), acc[0]);
                i += n;
            }
            if i < d {
                let q = std::slice::from_raw_parts(query.add(i), d - i);
                let r = std::slice::from_raw_parts(row.add(i), d - i);
                let r = <T::Lanes<I>>::load_part(r, T::default());
                acc[1] = <T::Lanes<I>>::load_part(q, T::default()).mul_add(r, acc[1]);
            }
            *sum = acc[0].add(acc[1]).add(acc[2].add(acc[3]));
        }
        <T::Lanes<I>>::reduce_add4(sums)
    }
}

/// Inner products of the `Q` queries at `queries` and all rows of a block; query `j`'s go to
/// `out[j * stride ..]`.
///
/// # Safety
/// The processor has `I`; `queries` has `Q * d` readable elements.
#[inline(always)]
unsafe fn products<I: Isa, T: SimdElem, const Q: usize>(
    queries: *const T,
    block: &[T],
    d: usize,
    out: &mut [T],
    stride: usize,
) {
    let rows = block.len() / d;
    let mut r = 0;
    while r < rows {
        // SAFETY: by contract; rows beyond the block are replaced by its last one and not stored.
        let sums = unsafe {
            let mut query_at = [queries; Q];
            for (j, at) in query_at.iter_mut().enumerate() {
                *at = queries.add(j * d);
            }
            let mut row_at = [block.as_ptr(); TILE_ROWS];
            for (j, at) in row_at.iter_mut().enumerate() {
                *at = block.as_ptr().add((r + j).min(rows - 1) * d);
            }
            if Q == 1 {
                let mut sums = [[T::default(); TILE_ROWS]; Q];
                sums[0] = strip::<I, T>(queries, row_at, d);
                sums
            } else {
                tile::<I, T, Q>(query_at, row_at, d)
            }
        };
        let count = TILE_ROWS.min(rows - r);
        for j in 0..Q {
            out[j * stride + r..][..count].copy_from_slice(&sums[j][..count]);
        }
        r += TILE_ROWS;
    }
}

/// Turns inner products into scores.
///
/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn finish<I: Isa, T: SimdElem>(metric: Metric, query_norm: T, norms: &[T], out: &mut [T]) {
    let n = <T::Lanes<I>>::N;
    let mut i = 0;
    while i < out.len() {
        // SAFETY: by contract; whole vectors end inside both slices, which are equally long.
        unsafe {
            let whole = i + n <= out.len();
            let (v, norm) = if whole {
                (<T::Lanes<I>>::load(out.as_ptr().add(i)), <T::Lanes<I>>::load(norms.as_ptr().add(i)))
            } else {
                let zero = T::default();
                (<T::Lanes<I>>::load_part(&out[i..], zero), <T::Lanes<I>>::load_part(&norms[i..], zero))
            };
            let query = v.same(query_norm);
            let score = match metric {
                Metric::L2 => {
                    let square = v.same(T::from_f64(2.0)).neg_mul_add(v, query.add(norm));
                    let zero = v.same(T::default());
                    let bounded = <T::Lanes<I>>::select(square.lt(zero), zero, square);
                    bounded.sqrt()
                }
                _ => v.mul(query.mul(norm)),
            };
            if whole {
                score.store(out.as_mut_ptr().add(i));
            } else {
                score.store_part(&mut out[i..]);
            }
        }
        i += n;
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn scores_body<I: Isa, T: SimdElem>(
    metric: Metric,
    queries: &[T],
    corpus: &[T],
    d: usize,
    query_norms: &[T],
    corpus_norms: &[T],
    out: &mut [T],
) {
    assert!(d > 0 && queries.len().is_multiple_of(d) && corpus.len().is_multiple_of(d), "rows of {d}");
    let (query_count, row_count) = (queries.len() / d, corpus.len() / d);
    assert_eq!(out.len(), query_count * row_count, "one score per query and row");
    if metric != Metric::InnerProduct {
        assert!(query_norms.len() == query_count && corpus_norms.len() == row_count, "one norm per row");
    }
    let block_rows = (BLOCK_BYTES / (d * size_of::<T>())).next_multiple_of(TILE_ROWS).max(TILE_ROWS);
    for (block_index, block) in corpus.chunks(block_rows * d).enumerate() {
        let (first, rows) = (block_index * block_rows, block.len() / d);
        let mut q = 0;
        while q < query_count {
            let out = &mut out[q * row_count + first..];
            // SAFETY: by contract; the tile's queries are inside `queries`.
            unsafe {
                let at = queries.as_ptr().add(q * d);
                let wide = if I::REGISTERS >= 32 { 4 } else { 2 };
                if q + wide > query_count {
                    products::<I, T, 1>(at, block, d, out, row_count);
                    q += 1;
                } else if wide == 4 {
                    products::<I, T, 4>(at, block, d, out, row_count);
                    q += 4;
                } else {
                    products::<I, T, 2>(at, block, d, out, row_count);
                    q += 2;
                }
            }
        }
        if metric != Metric::InnerProduct {
            for (q, norm) in query_norms.iter().enumerate() {
                let piece = &mut out[q * row_count + first..][..rows];
                // SAFETY: by contract.
                unsafe { finish::<I, T>(metric, *norm, &corpus_norms[first..][..rows], piece) };
            }
        }
    }
}

kernel! {
    /// Scores of every query against every row of `corpus`; `out[query * rows + row]`.
    ///
    /// Norms come from [`row_norms`] with the same metric; `InnerProduct` looks at none, empty slices do.
    /// Products are accumulated in lanes of `T`: with `N` lanes the error of an inner product is at most
    /// `(d / N + 8) * ulp * |q| |c|`, half an ulp being 2^-24 or 2^-53. `L2` is
    /// `sqrt(|q|^2 + |c|^2 - 2 q.c)`, kept from going below zero: its square has the same absolute error, so
    /// the distance of near-equal vectors is only good to about `sqrt(ulp) * |q|`; [`distance`] has no such
    /// loss. Squared norms must be finite in `T`.
    pub fn scores<T>(
        metric: Metric,
        queries: &[T],
        corpus: &[T],
        d: usize,
        query_norms: &[T],
        corpus_norms: &[T],
        out: &mut [T],
    ) = scores_body
}

/// One candidate: a score and the row it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Neighbour {
    /// The score, widened.
    pub score: f64,
    /// The row's index in the whole corpus.
    pub index: u64,
}

/// The best candidates seen so far, in a slice of the caller's that is as long as `k`.
///
/// A heap with the worst of them on top. Ties go to the lower index, NaN ranks last; the outcome does not
/// depend on the order of the offers, so blocks may come from several threads.
#[derive(Debug)]
pub struct TopK<'a> {
    heap: &'a mut [Neighbour],
    len: usize,
    order: Order,
}

impl<'a> TopK<'a> {
    /// An empty selection; `space.len()` is `k`.
    pub fn new(space: &'a mut [Neighbour], order: Order) -> TopK<'a> {
        TopK { heap: space, len: 0, order }
    }

    fn before(&self, a: Neighbour, b: Neighbour) -> bool {
        ranks_before(self.order, a.score, a.index, b.score, b.index)
    }

    /// Considers one candidate.
    pub fn offer(&mut self, candidate: Neighbour) {
        if self.len < self.heap.len() {
            let mut child = self.len;
            self.heap[child] = candidate;
            self.len += 1;
            while child > 0 {
                let parent = (child - 1) / 2;
                if !self.before(self.heap[parent], self.heap[child]) {
                    break;
                }
                self.heap.swap(parent, child);
                child = parent;
            }
        } else if self.len > 0 && self.before(candidate, self.heap[0]) {
            self.heap[0] = candidate;
            self.sink(self.len);
        }
    }

    /// Restores the heap of the first `len` entries after its top was replaced.
    fn sink(&mut self, len: usize) {
        let mut parent = 0;
        loop {
            let mut child = 2 * parent + 1;
            if child >= len {
                return;
            }
            if child + 1 < len && self.before(self.heap[child], self.heap[child + 1]) {
                child += 1;
            }
            if !self.before(self.heap[parent], self.heap[child]) {
                return;
            }
            self.heap.swap(parent, child);
            parent = child;
        }
    }

    /// The score that a better one has to pass: that of the last of `k`, or the worst there is while there are fewer.
    pub fn worst(&self) -> f64 {
        match self.order {
            _ if self.len == self.heap.len() && self.len > 0 => self.heap[0].score,
            Order::Largest => f64::NEG_INFINITY,
            Order::Smallest => f64::INFINITY,
        }
    }

    /// Considers rows `first_index ..` with these scores; most are refused a vector at a time.
    pub fn offer_block<T: SimdElem>(&mut self, level: Level, scores: &[T], first_index: u64) {
        if !self.heap.is_empty() {
            offer_block(level, self, scores, first_index);
        }
    }

    /// The chosen ones, best first; fewer than `k` when fewer were offered.
    pub fn finish(mut self) -> &'a [Neighbour] {
        for end in (1..self.len).rev() {
            self.heap.swap(0, end);
            self.sink(end);
        }
        &self.heap[..self.len]
    }
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn offer_block_body<I: Isa, T: SimdElem>(top: &mut TopK<'_>, scores: &[T], first_index: u64) {
    let n = <T::Lanes<I>>::N;
    let mut i = 0;
    while i < scores.len() {
        let worst = top.heap[0].score;
        // With a free place or a NaN to push out, everything is a candidate.
        if top.len < top.heap.len() || worst.is_nan() || i + n > scores.len() {
            top.offer(Neighbour { score: scores[i].to_f64(), index: first_index + i as u64 });
            i += 1;
            continue;
        }
        // SAFETY: by contract; whole vectors only.
        let mut hits = unsafe {
            let worst = <T::Lanes<I>>::splat(T::from_f64(worst));
            let mut hits = 0;
            while i + n <= scores.len() {
                let v = <T::Lanes<I>>::load(scores.as_ptr().add(i));
                hits = <T::Lanes<I>>::mask_bits(match top.order {
                    Order::Largest => v.ge(worst),
                    Order::Smallest => worst.ge(v),
                });
                if hits != 0 {
                    break;
                }
                i += n;
            }
            hits
        };
        if hits != 0 {
            while hits != 0 {
                let at = i + hits.trailing_zeros() as usize;
                top.offer(Neighbour { score: scores[at].to_f64(), index: first_index + at as u64 });
                hits &= hits - 1;
            }
            i += n;
        }
    }
}

kernel! {
    /// [`TopK::offer_block`] for a selection with room for at least one.
    fn offer_block<T>(top: &mut TopK<'_>, scores: &[T], first_index: u64) = offer_block_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, levels, values};
    use super::*;
    use crate::kernels::reference;

    fn scores_match<T: SimdElem>(ulp: f64) {
        let shapes = [(1, 1), (1, 9), (3, 5), (4, 8), (5, 13), (9, 30)];
        let sizes = (1..=40).chain([64, 70, 129, 384]);
        for (d, (nq, rows)) in sizes.flat_map(|d| shapes.map(|s| (d, s))) {
            let (q, c) = (values::<T>(51, nq * d + 1, 1.0), values::<T>(52, rows * d + 3, 1.0));
            let (q, c) = (&q[1..], &c[3..]);
            for metric in [Metric::Cosine, Metric::L2, Metric::InnerProduct] {
                for level in levels() {
                    let (mut qn, mut cn) = (vec![T::default(); nq], vec![T::default(); rows]);
                    row_norms(level, metric, q, d, &mut qn);
                    row_norms(level, metric, c, d, &mut cn);
                    let mut got = vec![T::default(); nq * rows];
                    scores(level, metric, q, c, d, &qn, &cn, &mut got);
                    for i in 0..nq * rows {
                        let (a, b) = (&q[i / rows * d..][..d], &c[i % rows * d..][..d]);
                        let want = reference::score(metric, a, b);
                        let what = format!("{level} {metric:?} {nq} x {rows} x {d} at {i}");
                        let bound = (d as f64 + 8.0) * ulp;
                        let bound = match metric {
                            Metric::Cosine => 4.0 * bound.sqrt().min(1.0) * bound.sqrt(),
                            Metric::InnerProduct => bound * d as f64,
                            // The square is off by so much; the root by that over twice the distance.
                            Metric::L2 => 4.0 * bound * d as f64 / want.max((bound * d as f64).sqrt()),
                        };
                        close(got[i].to_f64(), want, bound, &what);
                        close(distance(level, metric, a, b), want, 1e-13 * d as f64, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn scores_match_reference() {
        scores_match::<f32>(f64::from(f32::EPSILON));
        scores_match::<f64>(f64::EPSILON);
    }

    #[test]
    fn many_rows_pass_through_several_blocks() {
        let (d, rows) = (384, 1001);
        let (q, c) = (values::<f32>(53, 6 * d, 1.0), values::<f32>(54, rows * d, 1.0));
        for level in levels() {
            let mut got = vec![0.0; 6 * rows];
            scores(level, Metric::InnerProduct, &q, &c, d, &[], &[], &mut got);
            for i in 0..got.len() {
                let want = reference::dot(&q[i / rows * d..][..d], &c[i % rows * d..][..d]);
                close(f64::from(got[i]), want, 1e-3, &format!("{level} at {i}"));
            }
        }
    }

    #[test]
    fn nan_and_zero_rows_have_their_scores() {
        for level in levels() {
            let (q, c) = ([1.0_f64, 2.0], [0.0, 0.0, f64::NAN, 1.0, 1.0, 2.0]);
            for (metric, want) in [(Metric::Cosine, [0.0, 1.0]), (Metric::L2, [5.0_f64.sqrt(), 0.0])] {
                let (mut qn, mut cn, mut got) = ([0.0], [0.0; 3], [0.0; 3]);
                row_norms(level, metric, &q, 2, &mut qn);
                row_norms(level, metric, &c, 2, &mut cn);
                scores(level, metric, &q, &c, 2, &qn, &cn, &mut got);
                assert!(got[1].is_nan());
                close(got[0], want[0], 1e-15, "zero row");
                close(got[2], want[1], 1e-15, "the same row");
            }
        }
    }

    #[test]
    fn top_k_matches_a_full_sort() {
        for (level, k) in levels().into_iter().flat_map(|l| [0, 1, 2, 10, 64].map(|k| (l, k))) {
            for length in (0..70).chain([1000]) {
                // Few distinct values, so that ties abound; some NaN and infinities.
                let mut x: Vec<f32> = values::<f32>(61, length, 6.0).iter().map(|v| v.round()).collect();
                for (i, v) in x.iter_mut().enumerate() {
                    match i % 17 {
                        3 => *v = f32::NAN,
                        8 if i > 30 => *v = f32::INFINITY,
                        9 if i > 30 => *v = f32::NEG_INFINITY,
                        _ => {}
                    }
                }
                for order in [Order::Largest, Order::Smallest] {
                    let mut want: Vec<usize> = (0..length).collect();
                    want.sort_by(|&a, &b| {
                        let before = |a: usize, b: usize| {
                            ranks_before(order, f64::from(x[a]), a as u64, f64::from(x[b]), b as u64)
                        };
                        before(b, a).cmp(&before(a, b))
                    });
                    let mut space = vec![Neighbour::default(); k];
                    let mut top = TopK::new(&mut space, order);
                    let cut = length / 3;
                    // The later block first: order must not matter.
                    top.offer_block(level, &x[cut..], cut as u64);
                    top.offer_block(level, &x[..cut], 0);
                    let got: Vec<usize> = top.finish().iter().map(|n| n.index as usize).collect();
                    assert_eq!(got, want[..k.min(length)], "{level} {order:?} {k} of {length}");
                }
            }
        }
    }
}
