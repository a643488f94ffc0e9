//! Inner products of bytes: what a search in quantised rows spends its time on.
//!
//! Sums of integers are exact, so every level gives the same. AVX-512 has an instruction for it where the processor has
//! VNNI; elsewhere bytes are widened to 16 bits, because the older instruction for bytes saturates.

use super::{Form, form};
use crate::kernels::Level;

/// Most columns whose sum of products always fits: each is at most `255 * 128`.
pub const COLUMNS_MAX: usize = 1 << 16;

/// The sum of `codes[j] * query[j]` for every row of `codes`, which are as long as `query`.
///
/// # Panics
/// When there is not one number of `out` per row, or a row is empty or longer than [`COLUMNS_MAX`].
pub fn code_products(level: Level, codes: &[u8], query: &[i8], out: &mut [i32]) {
    let d = query.len();
    assert!((1..=COLUMNS_MAX).contains(&d) && codes.len() == out.len() * d, "{} rows of {d}", out.len());
    match form(level) {
        // SAFETY: these names are given only where the processor has AVX2, or AVX-512 F and BW.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 => unsafe { avx2(codes, query, out) },
        // SAFETY: as above, and VNNI was asked for.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 if is_x86_feature_detected!("avx512vnni") => unsafe { vnni(codes, query, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx2(codes, query, out) },
        _ => {
            for (row, out) in codes.chunks_exact(d).zip(out) {
                *out = plain(row, query);
            }
        }
    }
}

#[inline(always)]
fn plain(row: &[u8], query: &[i8]) -> i32 {
    row.iter().zip(query).map(|(&code, &value)| i32::from(code) * i32::from(value)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(codes: &[u8], query: &[i8], out: &mut [i32]) {
    use core::arch::x86_64::*;
    let d = query.len();
    for (row, out) in codes.chunks_exact(d).zip(out) {
        let mut j = 0;
        // SAFETY: sixteen bytes from `j` on are inside row and query, which are equally long.
        let sum = unsafe {
            let mut sums = [_mm256_setzero_si256(); 2];
            while j + 16 <= d {
                let code = _mm256_cvtepu8_epi16(_mm_loadu_si128(row.as_ptr().add(j).cast()));
                let value = _mm256_cvtepi8_epi16(_mm_loadu_si128(query.as_ptr().add(j).cast()));
                let sum = &mut sums[j / 16 % 2];
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(code, value));
                j += 16;
            }
            let sum = _mm256_add_epi32(sums[0], sums[1]);
            let half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let half = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
            _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32::<0b10_11_00_01>(half)))
        };
        *out = sum + plain(&row[j..], &query[j..]);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vnni(codes: &[u8], query: &[i8], out: &mut [i32]) {
    use core::arch::x86_64::*;
    let d = query.len();
    for (row, out) in codes.chunks_exact(d).zip(out) {
        let mut j = 0;
        // SAFETY: 64 bytes from `j` on are inside row and query, which are equally long; of the last ones only those
        // that are there are loaded.
        *out = unsafe {
            let mut sums = [_mm512_setzero_si512(); 2];
            while j + 64 <= d {
                let code = _mm512_loadu_si512(row.as_ptr().add(j).cast());
                let value = _mm512_loadu_si512(query.as_ptr().add(j).cast());
                let sum = &mut sums[j / 64 % 2];
                *sum = _mm512_dpbusd_epi32(*sum, code, value);
                j += 64;
            }
            if j < d {
                let there = (1_u64 << (d - j)) - 1;
                let code = _mm512_maskz_loadu_epi8(there, row.as_ptr().add(j).cast());
                let value = _mm512_maskz_loadu_epi8(there, query.as_ptr().add(j).cast());
                sums[0] = _mm512_dpbusd_epi32(sums[0], code, value);
            }
            _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{lengths, levels};
    use super::*;
    use crate::kernels::reference::philox4x32;

    #[test]
    fn products_are_exact_on_every_level() {
        for d in lengths().filter(|&d| d > 0).chain([COLUMNS_MAX]) {
            let rows = if d > 5000 { 1 } else { 5 };
            let byte = |at: usize, seed: u32| philox4x32([at as u32, seed, 0, 0], [7, 9])[0] as u8;
            let random: Vec<u8> = (0..rows * d + 1).map(|at| byte(at, 1)).collect();
            let queries = [(0..d).map(|at| byte(at, 2) as i8).collect(), vec![i8::MIN; d], vec![127; d]];
            for (codes, query) in [(&random[1..], &queries[0]), (&vec![255; rows * d], &queries[1])]
                .into_iter()
                .chain([(&vec![255; rows * d][..], &queries[2])])
            {
                let want: Vec<i64> = codes
                    .chunks(d)
                    .map(|row| row.iter().zip(query).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum())
                    .collect();
                for level in levels() {
                    let mut got = vec![0; rows];
                    code_products(level, codes, query, &mut got);
                    assert!(got.iter().map(|&sum| i64::from(sum)).eq(want.iter().copied()), "{level} {d}");
                }
            }
        }
    }
}
