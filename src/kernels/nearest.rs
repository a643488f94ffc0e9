//! `knn`: the rows of a corpus nearest to each query, by looking at all of them.
//!
//! Scores of a block of queries against a block of rows come from the vector kernel; a few more candidates
//! than asked for are kept, scored again pair by pair without the loss of the fast form, and ranked by that.

use serde_json::json;

use super::coded::CodedSearch;
use super::reference::Metric;
use super::simd::{self, Neighbour, SimdElem, TopK};
use super::{Call, KernelError, Outcome, elements_mut};
use crate::arrays::{DType, Element};

/// How the scores' file ends: [`super::extra_path`] puts them beside the output.
pub const SCORES_SUFFIX: &str = ".scores.npy";

/// Queries per block: each row of the corpus read from memory is used so often.
const QUERIES: usize = 128;
/// Bytes of corpus per block, half a usual second-level cache, and fewest and most rows.
const ROWS_BYTES: usize = 256 << 10;
const ROWS_MIN: usize = 16;
const ROWS_MAX: usize = 2048;
/// Multiply-adds between two beats of scalar code.
const BEAT_WORK: usize = 8 << 20;
/// Most queries that are searched for in codes, one after the other: for more the `f32` are faster, which are read once for
/// 128 queries. 64 of them took 88 ms in `f32` and 136 in codes, one 21 and 2.0 (see `coded`).
const CODED_QUERIES_MAX: usize = 16;

/// Array: row indices `(q, k)`, `i64`, best first; ties go to the lower index. Extra [`SCORES_SUFFIX`]:
/// scores `(q, k)` in the inputs' type. Result: `k`, `metric`.
///
/// Scores are exact to one rounding of the type. Which of two rows wins is decided by exact scores as long as
/// they differ from the k-th by more than the fast form's error, else by the fast form: see `simd::scores`.
///
/// With the codes and bounds of the corpus, and few queries, the codes are searched, and of the rows of `f32` only those are read that may be
/// among the nearest: see `coded`. The answer is then that of exact scores for all rows.
pub(super) fn knn(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match (call.inputs[0].dtype(), call.inputs.len()) {
        (DType::F32, 2) => knn_of::<f32>(call, by_rows),
        (_, 2) => knn_of::<f64>(call, by_rows),
        (_, 3) => {
            Err(call
                .wrong_value("has inputs[2] \"codes\" without inputs[3] \"bounds\", needs both or neither"))
        }
        (DType::F32, _) => knn_of::<f32>(call, by_codes),
        _ => Err(call.wrong_dtype(0, "f32, because codes are given".to_owned())),
    }
}

fn by_rows<T: SimdElem>(
    mut search: Search<'_, T>,
    indices: &mut [i64],
    scores: &mut [T],
) -> Result<(), KernelError> {
    search.norms = norms(search.call, search.metric, search.queries, search.corpus, search.d)?;
    search.fill(indices, scores)
}

fn by_codes(search: Search<'_, f32>, indices: &mut [i64], scores: &mut [f32]) -> Result<(), KernelError> {
    let Search { call, metric, d, k, queries, corpus, .. } = search;
    let n = corpus.len() / d;
    if call.inputs[2].shape() != [n, d] {
        return Err(call.wrong_shape(2, format!("({n}, {d}), that of inputs[1] \"corpus\"")));
    }
    if call.inputs[3].shape() != [n, 3] {
        return Err(call.wrong_shape(3, format!("({n}, 3)")));
    }
    if d > simd::COLUMNS_MAX {
        return Err(call.wrong_shape(
            1,
            format!("(*, d) with d of at most {}, because codes are given", simd::COLUMNS_MAX),
        ));
    }
    if queries.len() / d > CODED_QUERIES_MAX {
        return by_rows(search, indices, scores);
    }
    let (codes, bounds) = (call.slice::<u8>(2)?, call.slice::<f32>(3)?);
    CodedSearch { call, metric, d, k, queries, corpus, codes, bounds }.fill(indices, scores)
}

fn knn_of<T: SimdElem + Element>(
    call: &Call<'_>,
    fill: impl FnOnce(Search<'_, T>, &mut [i64], &mut [T]) -> Result<(), KernelError>,
) -> Result<Outcome, KernelError> {
    let (q, d) = call.matrix(0, "(q, d)")?;
    let (queries, corpus) = (call.slice::<T>(0)?, call.slice::<T>(1)?);
    let (n, width) = call.matrix(1, &format!("(*, {d})"))?;
    if d == 0 {
        return Err(call.wrong_shape(0, "(q, d) with d of 1 or more"));
    }
    if width != d {
        return Err(call.wrong_shape(1, format!("(*, {d})")));
    }
    let k = call.params.count("k");
    if k > n {
        return Err(call.wrong_shape(1, format!("({k}, {d}) or more rows, because k is {k}")));
    }
    let word = call.params.word("metric");
    let metric = match word {
        "l2" => Metric::L2,
        "ip" => Metric::InnerProduct,
        _ => Metric::Cosine,
    };
    let mut indices = call.answer(DType::I64, &[q, k])?;
    let mut scores = call.answer(T::DTYPE, &[q, k])?;
    let search = Search { call, metric, d, k, queries, corpus, norms: None };
    fill(search, elements_mut(&mut indices), elements_mut(&mut scores))?;
    Ok(Outcome {
        array: Some(indices),
        extra: vec![(SCORES_SUFFIX, scores)],
        result: Some(json!({"k": k, "metric": word})),
        flops: 2.0 * q as f64 * n as f64 * d as f64,
        ..Outcome::default()
    })
}

/// What the fast form needs to know of queries and rows, or nothing when it could overflow.
type Norms<T> = Option<(Vec<T>, Vec<T>)>;

fn norms<T: SimdElem>(
    call: &Call<'_>,
    metric: Metric,
    queries: &[T],
    corpus: &[T],
    d: usize,
) -> Result<Norms<T>, KernelError> {
    let of = |rows: &[T], metric: Metric| -> Result<Vec<T>, KernelError> {
        let mut norms: Vec<T> = call.space(rows.len() / d)?;
        let block = (BEAT_WORK / d).max(1);
        for (rows, norms) in rows.chunks(block * d).zip(norms.chunks_mut(block)) {
            call.pulse.beat()?;
            simd::row_norms(call.level(), metric, rows, d, norms);
        }
        Ok(norms)
    };
    // Products of finite squared norms are finite, and so are all sums on the way. NaN stays in its own row.
    let is_infinite = |norms: &Vec<T>| norms.iter().any(|norm| norm.to_f64().is_infinite());
    let found = match metric {
        // The reciprocal norm says nothing about overflow, the squared one does.
        Metric::Cosine | Metric::InnerProduct => {
            let (left, right) = (of(queries, Metric::L2)?, of(corpus, Metric::L2)?);
            if is_infinite(&left) || is_infinite(&right) {
                return Ok(None);
            }
            if metric == Metric::InnerProduct {
                return Ok(Some((Vec::new(), Vec::new())));
            }
            (of(queries, metric)?, of(corpus, metric)?)
        }
        Metric::L2 => (of(queries, metric)?, of(corpus, metric)?),
    };
    Ok((!is_infinite(&found.0) && !is_infinite(&found.1)).then_some(found))
}

struct Search<'a, T> {
    call: &'a Call<'a>,
    metric: Metric,
    d: usize,
    k: usize,
    queries: &'a [T],
    corpus: &'a [T],
    norms: Norms<T>,
}

impl<T: SimdElem> Search<'_, T> {
    fn fill(&self, indices: &mut [i64], scores: &mut [T]) -> Result<(), KernelError> {
        if indices.is_empty() {
            return Ok(());
        }
        let (d, k, call) = (self.d, self.k, self.call);
        let n = self.corpus.len() / d;
        // The extra ones make up for the fast form's error around the k-th.
        let kept = n.min(k.saturating_add(8 + k / 8));
        let rows = (ROWS_BYTES / (d * size_of::<T>())).clamp(ROWS_MIN, ROWS_MAX).min(n);
        let block = QUERIES.min(self.queries.len() / d);
        let mut fast: Vec<T> = call.space(rows * block)?;
        let bytes = kept.saturating_mul(block);
        let mut space: Vec<Neighbour> = call.space(bytes)?;
        let mut ranked: Vec<Neighbour> = call.space(k)?;
        for (number, queries) in self.queries.chunks(block * d).enumerate() {
            let count = queries.len() / d;
            let mut tops: Vec<TopK<'_>> = space
                .chunks_mut(kept)
                .take(count)
                .map(|space| TopK::new(space, self.metric.order()))
                .collect();
            let mut since_beat = BEAT_WORK;
            for (start, corpus) in (0..).step_by(rows).zip(self.corpus.chunks(rows * d)) {
                since_beat += count * corpus.len();
                if since_beat >= BEAT_WORK {
                    call.pulse.beat()?;
                    since_beat = 0;
                }
                let here = corpus.len() / d;
                let fast = &mut fast[..count * here];
                self.score(number * block, queries, start, corpus, fast);
                for (top, scores) in tops.iter_mut().zip(fast.chunks(here)) {
                    top.offer_block(call.level(), scores, start as u64);
                }
            }
            let outputs = indices.chunks_mut(k).zip(scores.chunks_mut(k)).skip(number * block);
            for ((top, query), (indices, scores)) in tops.into_iter().zip(queries.chunks(d)).zip(outputs) {
                let mut again = TopK::new(&mut ranked, self.metric.order());
                for candidate in top.finish() {
                    let row = &self.corpus[candidate.index as usize * d..][..d];
                    let score = simd::distance(call.level(), self.metric, query, row);
                    again.offer(Neighbour { score, index: candidate.index });
                }
                for ((index, score), neighbour) in indices.iter_mut().zip(scores).zip(again.finish()) {
                    *index = neighbour.index as i64;
                    *score = T::from_f64(neighbour.score);
                }
            }
        }
        Ok(())
    }

    /// Scores of some queries against some rows, `out[query * rows + row]`.
    fn score(&self, first_query: usize, queries: &[T], first_row: usize, corpus: &[T], out: &mut [T]) {
        let (d, level) = (self.d, self.call.level());
        if let Some((of_queries, of_corpus)) = &self.norms {
            let part = |norms: &[T], first: usize, count: usize| -> std::ops::Range<usize> {
                if norms.is_empty() { 0..0 } else { first..first + count }
            };
            let of_queries = &of_queries[part(of_queries, first_query, queries.len() / d)];
            let of_corpus = &of_corpus[part(of_corpus, first_row, corpus.len() / d)];
            simd::scores(level, self.metric, queries, corpus, d, of_queries, of_corpus, out);
        } else {
            let pairs = queries.chunks(d).flat_map(|query| corpus.chunks(d).map(move |row| (query, row)));
            for (out, (query, row)) in out.iter_mut().zip(pairs) {
                *out = T::from_f64(simd::distance(level, self.metric, query, row));
            }
        }
    }
}
