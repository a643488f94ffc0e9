//! 128-bit lanes from `wide`: SSE2 on x86-64, NEON on aarch64, plain arrays elsewhere.
//!
//! `wide` picks its instructions when the crate is compiled, not when it runs, so only the width that every
//! processor of the architecture has is taken from it; the wider ones are in `avx2.rs` and `avx512.rs`.
//! All but three operations are safe here; the other `unsafe` comes from the traits' signatures.

use super::lanes::{BitLanes, Isa, Lanes, Lanes64};
use wide::{f32x4, f64x2, u64x2};

/// The baseline vector instruction set of the architecture.
#[derive(Clone, Copy)]
pub struct Portable;

impl Isa for Portable {
    type F32 = Wide<f32x4>;
    type F64 = Wide<f64x2>;
    const REGISTERS: usize = if cfg!(target_arch = "aarch64") { 32 } else { 16 };
    #[inline(always)]
    fn fence() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 has the instruction.
        unsafe {
            core::arch::x86_64::_mm_sfence();
        }
    }
}

/// A `wide` vector as lanes.
#[derive(Clone, Copy)]
pub struct Wide<V>(V);

macro_rules! wide_lanes {
    ($vector:ident, $elem:ident, $n:literal, $stream:ident) => {
        impl Lanes for Wide<$vector> {
            type Elem = $elem;
            type Mask = $vector;
            const N: usize = $n;

            #[inline(always)]
            unsafe fn splat(value: $elem) -> Self {
                Wide($vector::splat(value))
            }
            #[inline(always)]
            unsafe fn load(source: *const $elem) -> Self {
                // SAFETY: N elements are readable by contract.
                Wide($vector::new(unsafe { source.cast::<[$elem; $n]>().read_unaligned() }))
            }
            #[inline(always)]
            unsafe fn store(self, target: *mut $elem) {
                // SAFETY: N elements are writable by contract.
                unsafe { target.cast::<[$elem; $n]>().write_unaligned(self.0.to_array()) }
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn stream(self, target: *mut $elem) {
                let whole = self.0.to_array();
                // SAFETY: the array is 128 bits; N elements are writable by contract, at a multiple of their size.
                unsafe { core::arch::x86_64::$stream(target, core::mem::transmute_copy(&whole)) }
            }
            #[inline(always)]
            fn after(self, before: Self) -> Self {
                let mut lanes = self.0.to_array();
                lanes.copy_within(..$n - 1, 1);
                lanes[0] = before.0.to_array()[$n - 1];
                Wide($vector::new(lanes))
            }
            #[inline(always)]
            fn before(self, behind: Self) -> Self {
                let mut lanes = self.0.to_array();
                lanes.copy_within(1.., 0);
                lanes[$n - 1] = behind.0.to_array()[0];
                Wide($vector::new(lanes))
            }
            #[inline(always)]
            fn add(self, o: Self) -> Self {
                Wide(self.0 + o.0)
            }
            #[inline(always)]
            fn sub(self, o: Self) -> Self {
                Wide(self.0 - o.0)
            }
            #[inline(always)]
            fn mul(self, o: Self) -> Self {
                Wide(self.0 * o.0)
            }
            #[inline(always)]
            fn div(self, o: Self) -> Self {
                Wide(self.0 / o.0)
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                Wide(self.0.mul_add(b.0, c.0))
            }
            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                Wide(self.0.mul_neg_add(b.0, c.0))
            }
            #[inline(always)]
            fn min(self, o: Self) -> Self {
                Wide(self.0.fast_min(o.0))
            }
            #[inline(always)]
            fn max(self, o: Self) -> Self {
                Wide(self.0.fast_max(o.0))
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                Wide(self.0.sqrt())
            }
            #[inline(always)]
            fn abs(self) -> Self {
                Wide(self.0.abs())
            }
            #[inline(always)]
            fn lt(self, o: Self) -> $vector {
                self.0.simd_lt(o.0)
            }
            #[inline(always)]
            fn ge(self, o: Self) -> $vector {
                self.0.simd_ge(o.0)
            }
            #[inline(always)]
            fn is_nan(self) -> $vector {
                self.0.simd_ne(self.0)
            }
            #[inline(always)]
            fn or(a: $vector, b: $vector) -> $vector {
                a | b
            }
            #[inline(always)]
            fn mask_bits(mask: $vector) -> u32 {
                mask.to_bitmask()
            }
            #[inline(always)]
            fn select(mask: $vector, a: Self, b: Self) -> Self {
                Wide(mask.bitselect(a.0, b.0))
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                self.0.reduce_add()
            }
        }
    };
}

wide_lanes!(f32x4, f32, 4, _mm_stream_ps);
wide_lanes!(f64x2, f64, 2, _mm_stream_pd);

impl Lanes64 for Wide<f64x2> {
    type Bits = Wide<u64x2>;
    #[inline(always)]
    fn bits(self) -> Wide<u64x2> {
        Wide(bytemuck::cast(self.0))
    }
    #[inline(always)]
    fn from_bits(bits: Wide<u64x2>) -> Self {
        Wide(bytemuck::cast(bits.0))
    }
    // `wide` has no name for these two conversions, and through arrays they cost twice as much.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_f32(source: *const f32) -> Self {
        use core::arch::x86_64::{_mm_castpd_ps, _mm_cvtps_pd, _mm_load_sd};
        // SAFETY: every x86-64 processor has SSE2; eight bytes are readable by contract, at any alignment.
        Wide(bytemuck::cast(unsafe { _mm_cvtps_pd(_mm_castpd_ps(_mm_load_sd(source.cast()))) }))
    }
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    unsafe fn load_f32(source: *const f32) -> Self {
        // SAFETY: two elements are readable by contract.
        let [a, b] = unsafe { source.cast::<[f32; 2]>().read_unaligned() };
        Wide(f64x2::new([f64::from(a), f64::from(b)]))
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_f32(self, target: *mut f32) {
        use core::arch::x86_64::{__m128d, _mm_castps_pd, _mm_cvtpd_ps, _mm_store_sd};
        let value: __m128d = bytemuck::cast(self.0);
        // SAFETY: every x86-64 processor has SSE2; eight bytes are writable by contract, at any alignment.
        unsafe { _mm_store_sd(target.cast(), _mm_castps_pd(_mm_cvtpd_ps(value))) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    unsafe fn store_f32(self, target: *mut f32) {
        let [a, b] = self.0.to_array();
        // SAFETY: two elements are writable by contract.
        unsafe { target.cast::<[f32; 2]>().write_unaligned([a as f32, b as f32]) }
    }
}

impl BitLanes for Wide<u64x2> {
    #[inline(always)]
    unsafe fn splat(value: u64) -> Self {
        Wide(u64x2::splat(value))
    }
    #[inline(always)]
    unsafe fn load(source: *const u64) -> Self {
        // SAFETY: two words are readable by contract.
        Wide(u64x2::new(unsafe { source.cast::<[u64; 2]>().read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut u64) {
        // SAFETY: two words are writable by contract.
        unsafe { target.cast::<[u64; 2]>().write_unaligned(self.0.to_array()) }
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Wide(self.0 + o.0)
    }
    #[inline(always)]
    fn and(self, o: Self) -> Self {
        Wide(self.0 & o.0)
    }
    #[inline(always)]
    fn or(self, o: Self) -> Self {
        Wide(self.0 | o.0)
    }
    #[inline(always)]
    fn xor(self, o: Self) -> Self {
        Wide(self.0 ^ o.0)
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn mul32(self, o: Self) -> Self {
        use core::arch::x86_64::{__m128i, _mm_mul_epu32};
        let (a, b): (__m128i, __m128i) = (bytemuck::cast(self.0), bytemuck::cast(o.0));
        // SAFETY: every x86-64 processor has SSE2. `wide` has no name for this instruction.
        Wide(bytemuck::cast(unsafe { _mm_mul_epu32(a, b) }))
    }
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    fn mul32(self, o: Self) -> Self {
        let ([a0, a1], [b0, b1]) = (self.0.to_array(), o.0.to_array());
        let low = 0xFFFF_FFFF;
        Wide(u64x2::new([(a0 & low) * (b0 & low), (a1 & low) * (b1 & low)]))
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        Wide(self.0 << BITS as u32)
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        Wide(self.0 >> BITS as u32)
    }
}
