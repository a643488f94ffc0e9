//! 512-bit lanes: AVX-512 F, BW, CD, DQ and VL, what every AVX-512 server processor has.
//!
//! Ragged ends use masked loads and stores here instead of the buffer the other levels go through.

use super::lanes::{BitLanes, Isa, Lanes, Lanes64};
use core::arch::x86_64::*;

/// AVX-512. Code that uses its lanes runs only inside
/// `#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]`.
#[derive(Clone, Copy)]
pub struct Avx512;

impl Isa for Avx512 {
    type F32 = F32x16;
    type F64 = F64x8;
    const REGISTERS: usize = 32;
    #[inline(always)]
    fn fence() {
        // SAFETY: every x86-64 has the instruction.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn soon<T>(at: *const T) {
        // SAFETY: every x86-64 has the instruction, and an address that nobody may read does no harm.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// Sixteen `f32`.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);
/// Eight `f64`.
#[derive(Clone, Copy)]
pub struct F64x8(__m512d);
/// Eight 64-bit words.
#[derive(Clone, Copy)]
pub struct B64x8(__m512i);

macro_rules! operations {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self $(, $arg: Self)*) -> Self {
            // SAFETY: `self` exists, so the processor has AVX-512 (rule 1 of `lanes`).
            Self(unsafe { $intrinsic(self.0 $(, $arg.0)*) })
        }
    )*};
}

macro_rules! reductions {
    ($($name:ident = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self) -> Self::Elem {
            // SAFETY: `self` exists, so the processor has AVX-512 (rule 1 of `lanes`).
            unsafe { $intrinsic(self.0) }
        }
    )*};
}

impl Lanes for F32x16 {
    type Elem = f32;
    type Mask = __mmask16;
    const N: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: rule 1 by contract.
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm512_loadu_ps(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: by contract.
        unsafe { _mm512_storeu_ps(target, self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, target: *mut f32) {
        // SAFETY: by contract.
        unsafe { _mm512_stream_ps(target, self.0) }
    }
    #[inline(always)]
    fn after(self, before: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let (low, high) = (_mm512_castps_si512(before.0), _mm512_castps_si512(self.0));
            Self(_mm512_castsi512_ps(_mm512_alignr_epi32::<15>(high, low)))
        }
    }
    #[inline(always)]
    fn before(self, behind: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let (low, high) = (_mm512_castps_si512(self.0), _mm512_castps_si512(behind.0));
            Self(_mm512_castsi512_ps(_mm512_alignr_epi32::<1>(high, low)))
        }
    }
    #[inline(always)]
    unsafe fn load_part(source: &[f32], fill: f32) -> Self {
        let mask = ((1_u32 << source.len().min(16)) - 1) as __mmask16;
        // SAFETY: rule 1 by contract; lanes outside the slice are masked out and not read.
        Self(unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask, source.as_ptr()) })
    }
    #[inline(always)]
    fn store_part(self, target: &mut [f32]) {
        let mask = ((1_u32 << target.len().min(16)) - 1) as __mmask16;
        // SAFETY: `self` exists (rule 1); lanes outside the slice are masked out and not written.
        unsafe { _mm512_mask_storeu_ps(target.as_mut_ptr(), mask, self.0) }
    }
    operations! {
        add(o) = _mm512_add_ps;
        sub(o) = _mm512_sub_ps;
        mul(o) = _mm512_mul_ps;
        div(o) = _mm512_div_ps;
        mul_add(b, c) = _mm512_fmadd_ps;
        neg_mul_add(b, c) = _mm512_fnmadd_ps;
        min(o) = _mm512_min_ps;
        max(o) = _mm512_max_ps;
        sqrt() = _mm512_sqrt_ps;
        abs() = _mm512_abs_ps;
    }
    reductions! {
        reduce_add = _mm512_reduce_add_ps;
        reduce_min = _mm512_reduce_min_ps;
        reduce_max = _mm512_reduce_max_ps;
    }
    #[inline(always)]
    fn lt(self, o: Self) -> __mmask16 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn ge(self, o: Self) -> __mmask16 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn is_nan(self) -> __mmask16 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0) }
    }
    #[inline(always)]
    fn or(a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }
    #[inline(always)]
    fn mask_bits(mask: __mmask16) -> u32 {
        u32::from(mask)
    }
    #[inline(always)]
    fn select(mask: __mmask16, a: Self, b: Self) -> Self {
        // SAFETY: `a` exists (rule 1).
        Self(unsafe { _mm512_mask_blend_ps(mask, b.0, a.0) })
    }
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [f32; 4] {
        // SAFETY: the values exist (rule 1); the array has room for four.
        unsafe {
            let ab = _mm256_hadd_ps(half_sum_ps(v[0].0), half_sum_ps(v[1].0));
            let cd = _mm256_hadd_ps(half_sum_ps(v[2].0), half_sum_ps(v[3].0));
            let abcd = _mm256_hadd_ps(ab, cd);
            let sums = _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps::<1>(abcd));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }
}

/// The low half plus the high half.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn half_sum_ps(v: __m512) -> __m256 {
    // SAFETY: by contract.
    unsafe { _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)) }
}

/// The low half plus the high half.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn half_sum_pd(v: __m512d) -> __m256d {
    // SAFETY: by contract.
    unsafe { _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd::<1>(v)) }
}

impl Lanes for F64x8 {
    type Elem = f64;
    type Mask = __mmask8;
    const N: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f64) -> Self {
        // SAFETY: rule 1 by contract.
        Self(unsafe { _mm512_set1_pd(value) })
    }
    #[inline(always)]
    unsafe fn load(source: *const f64) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm512_loadu_pd(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f64) {
        // SAFETY: by contract.
        unsafe { _mm512_storeu_pd(target, self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, target: *mut f64) {
        // SAFETY: by contract.
        unsafe { _mm512_stream_pd(target, self.0) }
    }
    #[inline(always)]
    fn after(self, before: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let (low, high) = (_mm512_castpd_si512(before.0), _mm512_castpd_si512(self.0));
            Self(_mm512_castsi512_pd(_mm512_alignr_epi64::<7>(high, low)))
        }
    }
    #[inline(always)]
    fn before(self, behind: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let (low, high) = (_mm512_castpd_si512(self.0), _mm512_castpd_si512(behind.0));
            Self(_mm512_castsi512_pd(_mm512_alignr_epi64::<1>(high, low)))
        }
    }
    #[inline(always)]
    unsafe fn load_part(source: &[f64], fill: f64) -> Self {
        let mask = ((1_u32 << source.len().min(8)) - 1) as __mmask8;
        // SAFETY: rule 1 by contract; lanes outside the slice are masked out and not read.
        Self(unsafe { _mm512_mask_loadu_pd(_mm512_set1_pd(fill), mask, source.as_ptr()) })
    }
    #[inline(always)]
    fn store_part(self, target: &mut [f64]) {
        let mask = ((1_u32 << target.len().min(8)) - 1) as __mmask8;
        // SAFETY: `self` exists (rule 1); lanes outside the slice are masked out and not written.
        unsafe { _mm512_mask_storeu_pd(target.as_mut_ptr(), mask, self.0) }
    }
    operations! {
        add(o) = _mm512_add_pd;
        sub(o) = _mm512_sub_pd;
        mul(o) = _mm512_mul_pd;
        div(o) = _mm512_div_pd;
        mul_add(b, c) = _mm512_fmadd_pd;
        neg_mul_add(b, c) = _mm512_fnmadd_pd;
        min(o) = _mm512_min_pd;
        max(o) = _mm512_max_pd;
        sqrt() = _mm512_sqrt_pd;
        abs() = _mm512_abs_pd;
    }
    reductions! {
        reduce_add = _mm512_reduce_add_pd;
        reduce_min = _mm512_reduce_min_pd;
        reduce_max = _mm512_reduce_max_pd;
    }
    #[inline(always)]
    fn lt(self, o: Self) -> __mmask8 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm512_cmp_pd_mask::<_CMP_LT_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn ge(self, o: Self) -> __mmask8 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm512_cmp_pd_mask::<_CMP_GE_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn is_nan(self) -> __mmask8 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(self.0, self.0) }
    }
    #[inline(always)]
    fn or(a: __mmask8, b: __mmask8) -> __mmask8 {
        a | b
    }
    #[inline(always)]
    fn mask_bits(mask: __mmask8) -> u32 {
        u32::from(mask)
    }
    #[inline(always)]
    fn select(mask: __mmask8, a: Self, b: Self) -> Self {
        // SAFETY: `a` exists (rule 1).
        Self(unsafe { _mm512_mask_blend_pd(mask, b.0, a.0) })
    }
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [f64; 4] {
        // SAFETY: the values exist (rule 1); the array has room for four.
        unsafe {
            let ab = _mm256_hadd_pd(half_sum_pd(v[0].0), half_sum_pd(v[1].0));
            let cd = _mm256_hadd_pd(half_sum_pd(v[2].0), half_sum_pd(v[3].0));
            let low = _mm256_permute2f128_pd::<0x20>(ab, cd);
            let high = _mm256_permute2f128_pd::<0x31>(ab, cd);
            let mut out = [0.0; 4];
            _mm256_storeu_pd(out.as_mut_ptr(), _mm256_add_pd(low, high));
            out
        }
    }
}

impl Lanes64 for F64x8 {
    type Bits = B64x8;
    #[inline(always)]
    fn bits(self) -> B64x8 {
        // SAFETY: `self` exists (rule 1).
        B64x8(unsafe { _mm512_castpd_si512(self.0) })
    }
    #[inline(always)]
    fn from_bits(bits: B64x8) -> Self {
        // SAFETY: `bits` exists (rule 1).
        Self(unsafe { _mm512_castsi512_pd(bits.0) })
    }
    #[inline(always)]
    unsafe fn load_f32(source: *const f32) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(source)) })
    }
    #[inline(always)]
    unsafe fn store_f32(self, target: *mut f32) {
        // SAFETY: by contract.
        unsafe { _mm256_storeu_ps(target, _mm512_cvtpd_ps(self.0)) }
    }
}

impl BitLanes for B64x8 {
    #[inline(always)]
    unsafe fn splat(value: u64) -> Self {
        // SAFETY: rule 1 by contract.
        Self(unsafe { _mm512_set1_epi64(value as i64) })
    }
    #[inline(always)]
    unsafe fn load(source: *const u64) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm512_loadu_si512(source.cast()) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut u64) {
        // SAFETY: by contract.
        unsafe { _mm512_storeu_si512(target.cast(), self.0) }
    }
    operations! {
        add(o) = _mm512_add_epi64;
        and(o) = _mm512_and_si512;
        or(o) = _mm512_or_si512;
        xor(o) = _mm512_xor_si512;
        mul32(o) = _mm512_mul_epu32;
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        // SAFETY: `self` exists (rule 1).
        Self(unsafe { _mm512_sll_epi64(self.0, _mm_cvtsi32_si128(BITS)) })
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        // SAFETY: `self` exists (rule 1).
        Self(unsafe { _mm512_srl_epi64(self.0, _mm_cvtsi32_si128(BITS)) })
    }
}
