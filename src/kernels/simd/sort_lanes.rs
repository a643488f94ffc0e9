//! Lanes of signed integers, as sorting needs them.
//!
//! The rules are those of `lanes`: only the `unsafe` constructors make a value, so whoever has one may use it.

use super::sort::network;
use core::arch::x86_64::*;

/// Most lanes any type here has.
pub const LANES_MAX: usize = 16;

/// Lanes of keys.
pub trait Keys: Copy {
    /// The key.
    type Key: Copy + Ord;
    /// How many.
    const N: usize;
    /// The last key.
    const LARGEST: Self::Key;

    /// All lanes `key`.
    ///
    /// # Safety
    /// The processor has this type's instructions.
    unsafe fn splat(key: Self::Key) -> Self;
    /// `N` keys, of any alignment.
    ///
    /// # Safety
    /// As [`Keys::splat`], and `N` keys are readable at `source`.
    unsafe fn load(source: *const Self::Key) -> Self;
    /// `N` keys, of any alignment.
    ///
    /// # Safety
    /// `N` keys are writable at `target`.
    unsafe fn store(self, target: *mut Self::Key);
    /// `count` keys, fewer than `N`; the other lanes are the last key.
    ///
    /// # Safety
    /// As [`Keys::splat`], and `count` keys are readable at `source`.
    unsafe fn load_part(source: *const Self::Key, count: usize) -> Self;
    /// The first `count` lanes, fewer than `N`.
    ///
    /// # Safety
    /// `count` keys are writable at `target`.
    unsafe fn store_part(self, target: *mut Self::Key, count: usize);
    /// The smaller of each pair.
    fn min(self, o: Self) -> Self;
    /// The larger of each pair.
    fn max(self, o: Self) -> Self;
    /// Lane `i` is lane `i ^ WITH`, below `N`.
    fn crossed<const WITH: i32>(self) -> Self;
    /// Sorts every pair of lanes `i` and `i ^ WITH`: the larger one goes to the upper lane.
    fn exchange<const WITH: i32>(self) -> Self;
    /// The lanes below `pivot` first, then the others, backwards; and how many the first are.
    fn packed(self, pivot: Self) -> (Self, usize);
    /// [`network`] as a function of its own: thousands of instructions, which nobody wants inlined where they are used.
    ///
    /// # Safety
    /// As [`network`].
    unsafe fn network<const R: usize>(keys: &mut [Self::Key]);
}

/// The lanes that hold the larger key after an exchange: those with the highest bit of `with`.
const fn upper(with: i32) -> u16 {
    let (mut mask, mut lane) = (0, 0);
    while lane < LANES_MAX {
        if lane >> with.ilog2() & 1 == 1 {
            mask |= 1 << lane;
        }
        lane += 1;
    }
    mask
}

/// Sixteen `i32`.
#[derive(Clone, Copy)]
pub struct I32x16(__m512i);
/// Eight `i64`.
#[derive(Clone, Copy)]
pub struct I64x8(__m512i);
/// Eight `i32`.
#[derive(Clone, Copy)]
pub struct I32x8(__m256i);
/// Four `i64`.
#[derive(Clone, Copy)]
pub struct I64x4(__m256i);

macro_rules! avx512_keys {
    (
        $lanes:ident, $key:ident, $n:literal, $mask:ident, $splat:ident, $load:ident, $store:ident, $min:ident,
        $max:ident, $mask_max:ident, $less:ident, $compress:ident, $merge:ident, $last:literal, $crossed:item
    ) => {
        impl $lanes {
            $crossed
        }

        impl Keys for $lanes {
            type Key = $key;
            const N: usize = $n;
            const LARGEST: $key = $key::MAX;

            #[inline(always)]
            unsafe fn splat(key: $key) -> Self {
                // SAFETY: the processor has AVX-512 by contract.
                Self(unsafe { $splat(key) })
            }
            #[inline(always)]
            unsafe fn load(source: *const $key) -> Self {
                // SAFETY: by contract.
                Self(unsafe { _mm512_loadu_si512(source.cast()) })
            }
            #[inline(always)]
            unsafe fn store(self, target: *mut $key) {
                // SAFETY: by contract.
                unsafe { _mm512_storeu_si512(target.cast(), self.0) }
            }
            #[inline(always)]
            unsafe fn load_part(source: *const $key, count: usize) -> Self {
                // SAFETY: by contract; the other lanes are masked out and not read.
                Self(unsafe { $load($splat($key::MAX), ((1_u32 << count) - 1) as $mask, source) })
            }
            #[inline(always)]
            unsafe fn store_part(self, target: *mut $key, count: usize) {
                // SAFETY: by contract; the other lanes are masked out and not written.
                unsafe { $store(target, ((1_u32 << count) - 1) as $mask, self.0) }
            }
            #[inline(always)]
            fn min(self, o: Self) -> Self {
                // SAFETY: `self` exists, so the processor has AVX-512.
                Self(unsafe { $min(self.0, o.0) })
            }
            #[inline(always)]
            fn max(self, o: Self) -> Self {
                // SAFETY: `self` exists, so the processor has AVX-512.
                Self(unsafe { $max(self.0, o.0) })
            }
            #[inline(always)]
            fn crossed<const WITH: i32>(self) -> Self {
                self.crossed_lanes::<WITH>()
            }
            #[inline(always)]
            fn exchange<const WITH: i32>(self) -> Self {
                let other = self.crossed::<WITH>();
                // SAFETY: `self` exists, so the processor has AVX-512.
                Self(unsafe { $mask_max(self.min(other).0, upper(WITH) as $mask, self.0, other.0) })
            }
            #[inline(always)]
            fn packed(self, pivot: Self) -> (Self, usize) {
                // Packed in registers: packing into memory is microcode on some processors.
                // SAFETY: `self` exists, so the processor has AVX-512.
                unsafe {
                    let below = $less(self.0, pivot.0);
                    let others = Self($compress(!below, self.0)).crossed::<$last>();
                    (Self($merge(others.0, below, self.0)), below.count_ones() as usize)
                }
            }
            #[inline(never)]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            unsafe fn network<const R: usize>(keys: &mut [$key]) {
                // SAFETY: by contract; these are the features that the lanes ask for.
                unsafe { network::<Self, R>(keys) }
            }
        }
    };
}

avx512_keys! {
    I32x16, i32, 16, __mmask16, _mm512_set1_epi32, _mm512_mask_loadu_epi32, _mm512_mask_storeu_epi32,
    _mm512_min_epi32, _mm512_max_epi32, _mm512_mask_max_epi32, _mm512_cmplt_epi32_mask,
    _mm512_maskz_compress_epi32, _mm512_mask_compress_epi32, 15,
    #[inline(always)]
    fn crossed_lanes<const WITH: i32>(self) -> Self {
        // SAFETY: `self` exists, so the processor has AVX-512.
        Self(unsafe {
            match WITH {
                1 => _mm512_shuffle_epi32::<0b10_11_00_01>(self.0),
                2 => _mm512_shuffle_epi32::<0b01_00_11_10>(self.0),
                3 => _mm512_shuffle_epi32::<0b00_01_10_11>(self.0),
                4 => _mm512_shuffle_i32x4::<0b10_11_00_01>(self.0, self.0),
                8 => _mm512_shuffle_i32x4::<0b01_00_11_10>(self.0, self.0),
                _ => {
                    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
                    _mm512_permutexvar_epi32(_mm512_xor_si512(lanes, _mm512_set1_epi32(WITH)), self.0)
                }
            }
        })
    }
}

avx512_keys! {
    I64x8, i64, 8, __mmask8, _mm512_set1_epi64, _mm512_mask_loadu_epi64, _mm512_mask_storeu_epi64,
    _mm512_min_epi64, _mm512_max_epi64, _mm512_mask_max_epi64, _mm512_cmplt_epi64_mask,
    _mm512_maskz_compress_epi64, _mm512_mask_compress_epi64, 7,
    #[inline(always)]
    fn crossed_lanes<const WITH: i32>(self) -> Self {
        // SAFETY: `self` exists, so the processor has AVX-512.
        Self(unsafe {
            match WITH {
                1 => _mm512_shuffle_epi32::<0b01_00_11_10>(self.0),
                2 => _mm512_permutex_epi64::<0b01_00_11_10>(self.0),
                3 => _mm512_permutex_epi64::<0b00_01_10_11>(self.0),
                4 => _mm512_shuffle_i64x2::<0b01_00_11_10>(self.0, self.0),
                _ => {
                    let lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
                    let crossed = _mm512_xor_si512(lanes, _mm512_set1_epi64(i64::from(WITH)));
                    _mm512_permutexvar_epi64(crossed, self.0)
                }
            }
        })
    }
}

/// For each set of lanes below a pivot, `words` 32-bit words a lane: which word comes first, which second, and so
/// on when those lanes go first and the others follow backwards.
const fn packings<const SETS: usize>(lanes: usize, words: usize) -> [[u8; 8]; SETS] {
    let mut table = [[0; 8]; SETS];
    let mut set = 0;
    while set < SETS {
        let (mut low, mut high, mut lane) = (0, lanes, 0);
        while lane < lanes {
            let place = if set >> lane & 1 == 1 {
                low += 1;
                low - 1
            } else {
                high -= 1;
                high
            };
            let mut word = 0;
            while word < words {
                table[set][place * words + word] = (lane * words + word) as u8;
                word += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    table
}

/// What AVX2 has no instruction for.
static PACKINGS_32: [[u8; 8]; 256] = packings(8, 1);
static PACKINGS_64: [[u8; 8]; 16] = packings(4, 2);

/// The 32-bit words of `v` in the order of `words`.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn permuted(v: __m256i, words: &[u8; 8]) -> __m256i {
    // SAFETY: AVX2 by contract; eight bytes are read.
    unsafe { _mm256_permutevar8x32_epi32(v, _mm256_cvtepu8_epi32(_mm_loadl_epi64(words.as_ptr().cast()))) }
}

/// The smaller of each pair of 64 bits.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn smaller_64(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: by contract.
    unsafe { _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b)) }
}

/// The larger of each pair of 64 bits.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn larger_64(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: by contract.
    unsafe { _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b)) }
}

macro_rules! avx2_keys {
    (
        $lanes:ident, $key:ident, $n:literal, $splat:ident, $set:ident($($lane:literal),*), $load:ident,
        $store:ident, $greater:ident, $bits:ident, $cast:ident, $packings:ident,
        $min:path, $max:path, $crossed:item
    ) => {
        impl $lanes {
            $crossed

            /// All ones in the first `count` lanes.
            #[inline(always)]
            unsafe fn first(count: usize) -> __m256i {
                // SAFETY: the processor has AVX2 by contract.
                unsafe { $greater($splat(count as $key), $set($($lane),*)) }
            }
        }

        impl Keys for $lanes {
            type Key = $key;
            const N: usize = $n;
            const LARGEST: $key = $key::MAX;

            #[inline(always)]
            unsafe fn splat(key: $key) -> Self {
                // SAFETY: the processor has AVX2 by contract.
                Self(unsafe { $splat(key) })
            }
            #[inline(always)]
            unsafe fn load(source: *const $key) -> Self {
                // SAFETY: by contract.
                Self(unsafe { _mm256_loadu_si256(source.cast()) })
            }
            #[inline(always)]
            unsafe fn store(self, target: *mut $key) {
                // SAFETY: by contract.
                unsafe { _mm256_storeu_si256(target.cast(), self.0) }
            }
            #[inline(always)]
            unsafe fn load_part(source: *const $key, count: usize) -> Self {
                // SAFETY: by contract; the other lanes are masked out and not read.
                Self(unsafe {
                    let there = Self::first(count);
                    _mm256_blendv_epi8($splat($key::MAX), $load(source, there), there)
                })
            }
            #[inline(always)]
            unsafe fn store_part(self, target: *mut $key, count: usize) {
                // SAFETY: by contract; the other lanes are masked out and not written.
                unsafe { $store(target, Self::first(count), self.0) }
            }
            #[inline(always)]
            fn min(self, o: Self) -> Self {
                // SAFETY: `self` exists, so the processor has AVX2.
                Self(unsafe { $min(self.0, o.0) })
            }
            #[inline(always)]
            fn max(self, o: Self) -> Self {
                // SAFETY: `self` exists, so the processor has AVX2.
                Self(unsafe { $max(self.0, o.0) })
            }
            #[inline(always)]
            fn crossed<const WITH: i32>(self) -> Self {
                self.crossed_lanes::<WITH>()
            }
            #[inline(always)]
            fn exchange<const WITH: i32>(self) -> Self {
                let other = self.crossed::<WITH>();
                let bit = 1 << WITH.ilog2();
                // SAFETY: `self` exists, so the processor has AVX2.
                Self(unsafe {
                    let lanes = _mm256_and_si256($set($($lane),*), $splat(bit));
                    let upper = $greater(lanes, _mm256_setzero_si256());
                    _mm256_blendv_epi8(self.min(other).0, self.max(other).0, upper)
                })
            }
            #[inline(always)]
            fn packed(self, pivot: Self) -> (Self, usize) {
                // SAFETY: `self` exists, so the processor has AVX2.
                unsafe {
                    let below = $bits($cast($greater(pivot.0, self.0))) as usize;
                    (Self(permuted(self.0, &$packings[below])), below.count_ones() as usize)
                }
            }
            #[inline(never)]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn network<const R: usize>(keys: &mut [$key]) {
                // SAFETY: by contract; these are the features that the lanes ask for.
                unsafe { network::<Self, R>(keys) }
            }
        }
    };
}

avx2_keys! {
    I32x8, i32, 8, _mm256_set1_epi32, _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_maskload_epi32,
    _mm256_maskstore_epi32, _mm256_cmpgt_epi32, _mm256_movemask_ps, _mm256_castsi256_ps, PACKINGS_32,
    _mm256_min_epi32, _mm256_max_epi32,
    #[inline(always)]
    fn crossed_lanes<const WITH: i32>(self) -> Self {
        // SAFETY: `self` exists, so the processor has AVX2.
        Self(unsafe {
            match WITH {
                1 => _mm256_shuffle_epi32::<0b10_11_00_01>(self.0),
                2 => _mm256_shuffle_epi32::<0b01_00_11_10>(self.0),
                3 => _mm256_shuffle_epi32::<0b00_01_10_11>(self.0),
                4 => _mm256_permute2x128_si256::<1>(self.0, self.0),
                _ => {
                    let lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
                    let crossed = _mm256_xor_si256(lanes, _mm256_set1_epi32(WITH));
                    _mm256_permutevar8x32_epi32(self.0, crossed)
                }
            }
        })
    }
}

avx2_keys! {
    I64x4, i64, 4, _mm256_set1_epi64x, _mm256_set_epi64x(3, 2, 1, 0), _mm256_maskload_epi64,
    _mm256_maskstore_epi64, _mm256_cmpgt_epi64, _mm256_movemask_pd, _mm256_castsi256_pd, PACKINGS_64,
    smaller_64, larger_64,
    #[inline(always)]
    fn crossed_lanes<const WITH: i32>(self) -> Self {
        // SAFETY: `self` exists, so the processor has AVX2.
        Self(unsafe {
            match WITH {
                1 => _mm256_shuffle_epi32::<0b01_00_11_10>(self.0),
                2 => _mm256_permute4x64_epi64::<0b01_00_11_10>(self.0),
                _ => _mm256_permute4x64_epi64::<0b00_01_10_11>(self.0),
            }
        })
    }
}
