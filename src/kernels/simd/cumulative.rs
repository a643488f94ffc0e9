//! Running sums along a line.
//!
//! A sum of one element after the other waits for each addition. So a line is cut into rows of 16 elements and these into
//! runs of 4, and element `e` of a run becomes `line + (row + run)`: the sum of the rows before, that of the runs before in
//! its row, and that of its own run up to it, each added one after the other. That is the whole order, at every level; it
//! needs a quarter of the rounding errors of the plain one, and what is never below 0 still makes sums that never fall,
//! because each sum that a row or run begins with is the very one that the one before it ended with.
//!
//! In vectors, four rows of four runs are turned so that a lane goes along a run.

#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::lanes::SimdElem;
use super::{Form, Stores, form};
use crate::kernels::Level;

/// Elements of a row, and of each of its four runs.
const ROW: usize = 16;
const RUN: usize = 4;
/// What changes no number that is added to it, a negative zero included.
const NOTHING: f64 = -0.0;

/// Goes on along a line from the sum of what was before, whole rows of 16 elements unless the line ends here; answers the
/// sum up to now.
///
/// Additions are of `f64`, in the order above, and the same bits at every level; `f32` is rounded once in the end. Error
/// of the sum of `n` elements before that: `(n / 16 + 7) * 2^-53 * sum |x|`. Sums beyond the largest `f64` are infinite,
/// and those of another row or run may come back from there, where an addition of one after the other would not.
pub fn cumulate<T: SimdElem>(level: Level, sum: f64, x: &[T], out: &mut [T], stores: Stores) -> f64 {
    assert_eq!(x.len(), out.len(), "running sums of another length");
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2<T: SimdElem>(sum: f64, x: &[T], out: &mut [T]) -> f64 {
        rows(sum, x, out)
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
    fn avx512<T: SimdElem>(mut sum: f64, x: &[T], out: &mut [T], stores: Stores) -> f64 {
        let mut done = 0;
        if let (Some(x), Some(out)) = (T::f32s(x), T::f32s_mut(out)) {
            done = x.len() / blocks::BLOCK * blocks::BLOCK;
            let streams = stores.streams::<f32, Avx512>(out.as_ptr());
            sum = if streams {
                blocks::cumulate::<true>(sum, &x[..done], &mut out[..done])
            } else {
                blocks::cumulate::<false>(sum, &x[..done], &mut out[..done])
            };
        }
        rows(sum, &x[done..], &mut out[done..])
    }
    match form(level) {
        // SAFETY: `form` names this one only where the processor has AVX2 and FMA.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 => unsafe { avx2(sum, x, out) },
        // SAFETY: `form` names this one only where the processor has these AVX-512 parts.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx512(sum, x, out, stores) },
        Form::Scalar | Form::Portable => rows(sum, x, out),
    }
}

/// Whole rows, and what is left of the last one.
#[inline(always)]
fn rows<T: SimdElem>(mut line: f64, x: &[T], out: &mut [T]) -> f64 {
    let ((x, x_rest), (out, out_rest)) = (x.as_chunks::<ROW>(), out.as_chunks_mut::<ROW>());
    for (x, out) in x.iter().zip(out) {
        line = row_of(line, x, out);
    }
    let (mut row, mut last) = (NOTHING, NOTHING);
    for (x, out) in x_rest.chunks(RUN).zip(out_rest.chunks_mut(RUN)) {
        let mut run = NOTHING;
        for (x, out) in x.iter().zip(out) {
            run += x.to_f64();
            last = row + run;
            *out = T::from_f64(line + last);
        }
        row = last;
    }
    line + last
}

/// One row, in words that the compiler makes vectors of: the four runs are lanes.
#[inline(always)]
fn row_of<T: SimdElem>(line: f64, x: &[T; ROW], out: &mut [T; ROW]) -> f64 {
    let turned = T::crossed([
        [x[0], x[1], x[2], x[3]],
        [x[4], x[5], x[6], x[7]],
        [x[8], x[9], x[10], x[11]],
        [x[12], x[13], x[14], x[15]],
    ]);
    let mut runs = [[0.0_f64; 4]; RUN];
    for lane in 0..4 {
        runs[0][lane] = turned[0][lane].to_f64();
    }
    for e in 1..RUN {
        for lane in 0..4 {
            runs[e][lane] = runs[e - 1][lane] + turned[e][lane].to_f64();
        }
    }
    let ends = runs[RUN - 1];
    let second = ends[0] + ends[1];
    let row = [NOTHING, ends[0], second, second + ends[2]];
    let mut sums = [[T::default(); 4]; RUN];
    for e in 0..RUN {
        for lane in 0..4 {
            sums[e][lane] = T::from_f64(line + (row[lane] + runs[e][lane]));
        }
    }
    for (out, sums) in out.chunks_exact_mut(RUN).zip(T::crossed(sums)) {
        out.copy_from_slice(&sums);
    }
    line + (row[3] + ends[3])
}

/// `f32` on AVX-512: four rows at once, because turning, widening and narrowing cost more than the additions do.
#[cfg(target_arch = "x86_64")]
mod blocks {
    use super::super::avx512::Avx512;
    use super::super::lanes::Isa;
    use super::{NOTHING, ROW};
    use core::arch::x86_64::*;
    use std::hint::black_box;

    /// Elements of a block.
    pub const BLOCK: usize = 4 * ROW;
    /// So many elements before they are needed, they are asked for.
    const AHEAD: usize = 512;

    /// Turns the four runs in each half of four rows' halves: element `e` of the run at place `p` of half `h` stands in the
    /// result's register `e`, half `h`, place `p`, and the other way round.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
    fn turned(rows: [__m256; 4]) -> [__m256; 4] {
        let [a, b, c, d] = rows;
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let low = [_mm256_castps_pd(ab), _mm256_castps_pd(cd)];
        let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        let high = [_mm256_castps_pd(ab), _mm256_castps_pd(cd)];
        [
            _mm256_castpd_ps(_mm256_unpacklo_pd(low[0], low[1])),
            _mm256_castpd_ps(_mm256_unpackhi_pd(low[0], low[1])),
            _mm256_castpd_ps(_mm256_unpacklo_pd(high[0], high[1])),
            _mm256_castpd_ps(_mm256_unpackhi_pd(high[0], high[1])),
        ]
    }

    /// The sums of each run, element by element.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
    fn runs(columns: [__m256; 4]) -> [__m512d; 4] {
        let first = _mm512_cvtps_pd(columns[0]);
        let second = _mm512_add_pd(first, _mm512_cvtps_pd(columns[1]));
        let third = _mm512_add_pd(second, _mm512_cvtps_pd(columns[2]));
        [first, second, third, _mm512_add_pd(third, _mm512_cvtps_pd(columns[3]))]
    }

    /// Whole blocks; past the cache if it `STREAMS`, with `out` on a boundary of 32 bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
    pub fn cumulate<const STREAMS: bool>(sum: f64, x: &[f32], out: &mut [f32]) -> f64 {
        // Half of the additions go the way of multiplications, by a one that the compiler does not know: these units have
        // nothing else to do, and the others are what bounds this. The bits are those of an addition.
        let one = _mm512_set1_pd(black_box(1.0));
        let nothing = _mm512_set1_pd(NOTHING);
        let mut line = _mm_set_sd(sum);
        let (x, out) = (x.as_chunks::<BLOCK>().0, out.as_chunks_mut::<BLOCK>().0);
        for (x, out) in x.iter().zip(out) {
            for line in 0..4 {
                // The processor looks ahead within a page only. An address is all that this takes.
                _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(AHEAD + ROW * line).cast());
            }
            // SAFETY: eight elements from each of these places are in the block.
            let half = |at: usize| unsafe { _mm256_loadu_ps(x.as_ptr().add(at)) };
            // Left and right halves of the four rows: places are rows, halves of a register are runs.
            let left = runs(turned([half(0), half(16), half(32), half(48)]));
            let right = runs(turned([half(8), half(24), half(40), half(56)]));
            let (first, second) = (_mm512_castpd512_pd256(left[3]), _mm512_extractf64x4_pd::<1>(left[3]));
            let (third, fourth) = (_mm512_castpd512_pd256(right[3]), _mm512_extractf64x4_pd::<1>(right[3]));
            let two = _mm256_add_pd(first, second);
            let three = _mm256_add_pd(two, third);
            let rows = _mm256_add_pd(three, fourth);
            let before_left = _mm512_insertf64x4::<1>(nothing, first);
            let before_right = _mm512_insertf64x4::<1>(_mm512_castpd256_pd512(two), three);
            // The sums before each row, one after the other.
            let (low, high) = (_mm256_castpd256_pd128(rows), _mm256_extractf128_pd::<1>(rows));
            let second = _mm_add_sd(line, low);
            let third = _mm_add_sd(second, _mm_unpackhi_pd(low, low));
            let fourth = _mm_add_sd(third, high);
            let lines = _mm256_castpd128_pd256(_mm_unpacklo_pd(line, second));
            let lines = _mm256_insertf128_pd::<1>(lines, _mm_unpacklo_pd(third, fourth));
            let lines = _mm512_broadcast_f64x4(lines);
            line = _mm_add_sd(fourth, _mm_unpackhi_pd(high, high));

            let narrow = |before: __m512d, run: __m512d| {
                let row = _mm512_fmadd_pd(one, run, before);
                _mm512_cvtpd_ps(_mm512_fmadd_pd(one, lines, row))
            };
            let [a, b, c, d] = left;
            let left = turned([
                narrow(before_left, a),
                narrow(before_left, b),
                narrow(before_left, c),
                narrow(before_left, d),
            ]);
            let [a, b, c, d] = right;
            let right = turned([
                narrow(before_right, a),
                narrow(before_right, b),
                narrow(before_right, c),
                narrow(before_right, d),
            ]);
            for row in 0..4 {
                let at = out[ROW * row..][..ROW].as_mut_ptr();
                // SAFETY: room for sixteen elements, on a boundary of 32 bytes if it streams.
                unsafe {
                    if STREAMS {
                        _mm256_stream_ps(at, left[row]);
                        _mm256_stream_ps(at.add(8), right[row]);
                    } else {
                        _mm256_storeu_ps(at, left[row]);
                        _mm256_storeu_ps(at.add(8), right[row]);
                    }
                }
            }
        }
        if STREAMS {
            Avx512::fence();
        }
        _mm_cvtsd_f64(line)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{aligned, close, lengths, levels, values};
    use super::*;

    /// The order of the text above, in the plainest words.
    fn plain<T: SimdElem>(mut line: f64, x: &[T]) -> (f64, Vec<T>) {
        let mut sums = Vec::new();
        for row in x.chunks(ROW) {
            let mut before = NOTHING;
            for run in row.chunks(RUN) {
                let mut own = NOTHING;
                for x in run {
                    own += x.to_f64();
                    sums.push(T::from_f64(line + (before + own)));
                }
                before += own;
            }
            line += before;
        }
        (line, sums)
    }

    fn check<T: SimdElem>() {
        for (length, scale) in lengths().chain([191, 192, 193, 1 << 15]).flat_map(|n| [(n, 1.0), (n, 1e30)]) {
            let all = values::<T>(44, length + 3, scale);
            for (offset, level) in (0..4).flat_map(|o| levels().map(|l| (o, l))) {
                let x = &all[offset.min(3)..][..length];
                let (end, want) = plain(0.25, x);
                let size: f64 = x.iter().map(|x| x.to_f64().abs()).sum::<f64>() + 0.25;
                for stores in [Stores::Cached, Stores::Streaming] {
                    let what = format!("{level} {stores:?} {length} +{offset}");
                    let mut got = aligned::<T>(length + 4);
                    let sum = cumulate(level, 0.25, x, &mut got[offset.min(3)..][..length], stores);
                    assert_eq!(sum.to_bits(), end.to_bits(), "{what}");
                    assert!(got[offset.min(3)..][..length] == want, "{what}");
                    assert!(got[offset.min(3) + length..].iter().all(|v| v.to_f64() == 0.0), "wrote too far");
                }
                // One after the other, within what both orders may be wrong by.
                let exact: f64 = x.iter().fold(0.25, |sum, x| sum + x.to_f64());
                close(end, exact, (length + 8) as f64 * f64::EPSILON * size, &format!("{level} {length}"));
            }
        }
    }

    #[test]
    fn sums_are_those_of_the_order_that_is_written_down() {
        check::<f32>();
        check::<f64>();
    }

    #[test]
    fn sums_of_what_is_not_below_zero_never_fall() {
        // Of very different sizes, so that nearly every addition rounds.
        let x: Vec<f64> = values::<f64>(45, 10_007, 1.0).iter().map(|v| (v * 40.0).exp()).collect();
        let small: Vec<f32> = x.iter().map(|v| *v as f32).collect();
        for level in levels() {
            let (mut sums, mut of_small) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            cumulate(level, NOTHING, &x, &mut sums, Stores::Cached);
            cumulate(level, NOTHING, &small, &mut of_small, Stores::Cached);
            assert!(sums.is_sorted() && of_small.is_sorted(), "{level}");
        }
    }

    #[test]
    fn special_values_go_on_from_where_they_are() {
        for level in levels() {
            for at in [0, 3, 4, 17, 63, 64, 100, 199] {
                let mut x = [1.0_f32; 200];
                let run = |x: &[f32; 200]| {
                    let mut sums = [0.0; 200];
                    let end = cumulate(level, NOTHING, x, &mut sums, Stores::Cached);
                    (sums, end)
                };
                for (value, is_kept) in [
                    (f32::NAN, f32::is_nan as fn(f32) -> bool),
                    (f32::INFINITY, |v| v == f32::INFINITY),
                    (f32::NEG_INFINITY, |v| v == f32::NEG_INFINITY),
                ] {
                    x[at] = value;
                    let (sums, end) = run(&x);
                    for (i, sum) in sums.into_iter().enumerate() {
                        assert!(
                            if i < at { sum == (i + 1) as f32 } else { is_kept(sum) },
                            "{level} {at} {i}"
                        );
                    }
                    assert!(is_kept(end as f32), "{level} {at}");
                }
                let tiny = [f32::from_bits(1); 200];
                assert!((0..200).all(|i| run(&tiny).0[i] == (i + 1) as f32 * tiny[0]), "{level}");
                let zeros = [-0.0_f32; 200];
                assert!(run(&zeros).0.iter().all(|v| v.to_bits() == zeros[0].to_bits()), "{level}");
            }
        }
    }
}
