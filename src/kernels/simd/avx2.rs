//! 256-bit lanes: AVX2 with FMA.

use super::lanes::{BitLanes, Isa, Lanes, Lanes64};
use core::arch::x86_64::*;

/// AVX2 with FMA. Code that uses its lanes runs only inside `#[target_feature(enable = "avx2,fma")]`.
#[derive(Clone, Copy)]
pub struct Avx2;

impl Isa for Avx2 {
    type F32 = F32x8;
    type F64 = F64x4;
    const REGISTERS: usize = 16;
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

/// Eight `f32`.
#[derive(Clone, Copy)]
pub struct F32x8(__m256);
/// Four `f64`.
#[derive(Clone, Copy)]
pub struct F64x4(__m256d);
/// Four 64-bit words.
#[derive(Clone, Copy)]
pub struct B64x4(__m256i);

macro_rules! operations {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self $(, $arg: Self)*) -> Self {
            // SAFETY: `self` exists, so the processor has AVX2 and FMA (rule 1 of `lanes`).
            Self(unsafe { $intrinsic(self.0 $(, $arg.0)*) })
        }
    )*};
}

impl Lanes for F32x8 {
    type Elem = f32;
    type Mask = __m256;
    const N: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: rule 1 by contract.
        Self(unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm256_loadu_ps(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: by contract.
        unsafe { _mm256_storeu_ps(target, self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, target: *mut f32) {
        // SAFETY: by contract.
        unsafe { _mm256_stream_ps(target, self.0) }
    }
    #[inline(always)]
    fn after(self, before: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let (whole, halves) =
                (_mm256_castps_si256(self.0), _mm256_permute2f128_ps::<0x21>(before.0, self.0));
            Self(_mm256_castsi256_ps(_mm256_alignr_epi8::<12>(whole, _mm256_castps_si256(halves))))
        }
    }
    #[inline(always)]
    fn before(self, behind: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let (whole, halves) =
                (_mm256_castps_si256(self.0), _mm256_permute2f128_ps::<0x21>(self.0, behind.0));
            Self(_mm256_castsi256_ps(_mm256_alignr_epi8::<4>(_mm256_castps_si256(halves), whole)))
        }
    }
    operations! {
        add(o) = _mm256_add_ps;
        sub(o) = _mm256_sub_ps;
        mul(o) = _mm256_mul_ps;
        div(o) = _mm256_div_ps;
        mul_add(b, c) = _mm256_fmadd_ps;
        neg_mul_add(b, c) = _mm256_fnmadd_ps;
        min(o) = _mm256_min_ps;
        max(o) = _mm256_max_ps;
        sqrt() = _mm256_sqrt_ps;
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: `self` exists (rule 1).
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    fn lt(self, o: Self) -> __m256 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn ge(self, o: Self) -> __m256 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm256_cmp_ps::<_CMP_GE_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn is_nan(self) -> __m256 {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0) }
    }
    #[inline(always)]
    fn or(a: __m256, b: __m256) -> __m256 {
        // SAFETY: a mask comes from a value (rule 1).
        unsafe { _mm256_or_ps(a, b) }
    }
    #[inline(always)]
    fn mask_bits(mask: __m256) -> u32 {
        // SAFETY: a mask comes from a value (rule 1).
        unsafe { _mm256_movemask_ps(mask) as u32 }
    }
    #[inline(always)]
    fn select(mask: __m256, a: Self, b: Self) -> Self {
        // SAFETY: `a` exists (rule 1).
        Self(unsafe { _mm256_blendv_ps(b.0, a.0, mask) })
    }
    #[inline(always)]
    fn reduce_add(self) -> f32 {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [f32; 4] {
        // SAFETY: the values exist (rule 1); the array has room for four.
        unsafe {
            let ab = _mm256_hadd_ps(v[0].0, v[1].0);
            let cd = _mm256_hadd_ps(v[2].0, v[3].0);
            let abcd = _mm256_hadd_ps(ab, cd);
            let sums = _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps::<1>(abcd));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }
}

impl Lanes for F64x4 {
    type Elem = f64;
    type Mask = __m256d;
    const N: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f64) -> Self {
        // SAFETY: rule 1 by contract.
        Self(unsafe { _mm256_set1_pd(value) })
    }
    #[inline(always)]
    unsafe fn load(source: *const f64) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm256_loadu_pd(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f64) {
        // SAFETY: by contract.
        unsafe { _mm256_storeu_pd(target, self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, target: *mut f64) {
        // SAFETY: by contract.
        unsafe { _mm256_stream_pd(target, self.0) }
    }
    #[inline(always)]
    fn after(self, before: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let halves = _mm256_permute2f128_pd::<0x21>(before.0, self.0);
            Self(_mm256_shuffle_pd::<0b0101>(halves, self.0))
        }
    }
    #[inline(always)]
    fn before(self, behind: Self) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let halves = _mm256_permute2f128_pd::<0x21>(self.0, behind.0);
            Self(_mm256_shuffle_pd::<0b0101>(self.0, halves))
        }
    }
    operations! {
        add(o) = _mm256_add_pd;
        sub(o) = _mm256_sub_pd;
        mul(o) = _mm256_mul_pd;
        div(o) = _mm256_div_pd;
        mul_add(b, c) = _mm256_fmadd_pd;
        neg_mul_add(b, c) = _mm256_fnmadd_pd;
        min(o) = _mm256_min_pd;
        max(o) = _mm256_max_pd;
        sqrt() = _mm256_sqrt_pd;
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: `self` exists (rule 1).
        Self(unsafe { _mm256_andnot_pd(_mm256_set1_pd(-0.0), self.0) })
    }
    #[inline(always)]
    fn lt(self, o: Self) -> __m256d {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm256_cmp_pd::<_CMP_LT_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn ge(self, o: Self) -> __m256d {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm256_cmp_pd::<_CMP_GE_OQ>(self.0, o.0) }
    }
    #[inline(always)]
    fn is_nan(self) -> __m256d {
        // SAFETY: `self` exists (rule 1).
        unsafe { _mm256_cmp_pd::<_CMP_UNORD_Q>(self.0, self.0) }
    }
    #[inline(always)]
    fn or(a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: a mask comes from a value (rule 1).
        unsafe { _mm256_or_pd(a, b) }
    }
    #[inline(always)]
    fn mask_bits(mask: __m256d) -> u32 {
        // SAFETY: a mask comes from a value (rule 1).
        unsafe { _mm256_movemask_pd(mask) as u32 }
    }
    #[inline(always)]
    fn select(mask: __m256d, a: Self, b: Self) -> Self {
        // SAFETY: `a` exists (rule 1).
        Self(unsafe { _mm256_blendv_pd(b.0, a.0, mask) })
    }
    #[inline(always)]
    fn reduce_add(self) -> f64 {
        // SAFETY: `self` exists (rule 1).
        unsafe {
            let two = _mm_add_pd(_mm256_castpd256_pd128(self.0), _mm256_extractf128_pd::<1>(self.0));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [f64; 4] {
        // SAFETY: the values exist (rule 1); the array has room for four.
        unsafe {
            let ab = _mm256_hadd_pd(v[0].0, v[1].0);
            let cd = _mm256_hadd_pd(v[2].0, v[3].0);
            let low = _mm256_permute2f128_pd::<0x20>(ab, cd);
            let high = _mm256_permute2f128_pd::<0x31>(ab, cd);
            let mut out = [0.0; 4];
            _mm256_storeu_pd(out.as_mut_ptr(), _mm256_add_pd(low, high));
            out
        }
    }
}

impl Lanes64 for F64x4 {
    type Bits = B64x4;
    #[inline(always)]
    fn bits(self) -> B64x4 {
        // SAFETY: `self` exists (rule 1).
        B64x4(unsafe { _mm256_castpd_si256(self.0) })
    }
    #[inline(always)]
    fn from_bits(bits: B64x4) -> Self {
        // SAFETY: `bits` exists (rule 1).
        Self(unsafe { _mm256_castsi256_pd(bits.0) })
    }
    #[inline(always)]
    unsafe fn load_f32(source: *const f32) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm256_cvtps_pd(_mm_loadu_ps(source)) })
    }
    #[inline(always)]
    unsafe fn store_f32(self, target: *mut f32) {
        // SAFETY: by contract.
        unsafe { _mm_storeu_ps(target, _mm256_cvtpd_ps(self.0)) }
    }
}

impl BitLanes for B64x4 {
    #[inline(always)]
    unsafe fn splat(value: u64) -> Self {
        // SAFETY: rule 1 by contract.
        Self(unsafe { _mm256_set1_epi64x(value as i64) })
    }
    #[inline(always)]
    unsafe fn load(source: *const u64) -> Self {
        // SAFETY: by contract.
        Self(unsafe { _mm256_loadu_si256(source.cast()) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut u64) {
        // SAFETY: by contract.
        unsafe { _mm256_storeu_si256(target.cast(), self.0) }
    }
    operations! {
        add(o) = _mm256_add_epi64;
        and(o) = _mm256_and_si256;
        or(o) = _mm256_or_si256;
        xor(o) = _mm256_xor_si256;
        mul32(o) = _mm256_mul_epu32;
    }
    // The forms with an immediate take an `i32` here and a `u32` in AVX-512; a constant count in a register
    // compiles to the same instruction.
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        // SAFETY: `self` exists (rule 1).
        Self(unsafe { _mm256_sll_epi64(self.0, _mm_cvtsi32_si128(BITS)) })
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        // SAFETY: `self` exists (rule 1).
        Self(unsafe { _mm256_srl_epi64(self.0, _mm_cvtsi32_si128(BITS)) })
    }
}
