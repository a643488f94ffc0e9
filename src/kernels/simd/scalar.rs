//! One lane: the same kernel bodies without vector registers.
//!
//! The slowest level, and the one that runs on any processor. The compiler may still pair neighbouring lanes
//! where the baseline allows it. Every operation is safe here; `unsafe` comes from the traits' signatures.

use super::lanes::{BitLanes, Isa, Lanes, Lanes64};

/// The scalar instruction set.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Isa for Scalar {
    type F32 = One<f32>;
    type F64 = One<f64>;
    const REGISTERS: usize = 16;
}

/// A single lane.
#[derive(Clone, Copy)]
pub struct One<T>(T);

macro_rules! one_lane {
    ($elem:ident) => {
        impl Lanes for One<$elem> {
            type Elem = $elem;
            type Mask = bool;
            const N: usize = 1;

            #[inline(always)]
            unsafe fn splat(value: $elem) -> Self {
                One(value)
            }
            #[inline(always)]
            unsafe fn load(source: *const $elem) -> Self {
                // SAFETY: one element is readable by contract.
                One(unsafe { source.read_unaligned() })
            }
            #[inline(always)]
            unsafe fn store(self, target: *mut $elem) {
                // SAFETY: one element is writable by contract.
                unsafe { target.write_unaligned(self.0) }
            }
            #[inline(always)]
            fn after(self, before: Self) -> Self {
                before
            }
            #[inline(always)]
            fn before(self, behind: Self) -> Self {
                behind
            }
            #[inline(always)]
            fn add(self, o: Self) -> Self {
                One(self.0 + o.0)
            }
            #[inline(always)]
            fn sub(self, o: Self) -> Self {
                One(self.0 - o.0)
            }
            #[inline(always)]
            fn mul(self, o: Self) -> Self {
                One(self.0 * o.0)
            }
            #[inline(always)]
            fn div(self, o: Self) -> Self {
                One(self.0 / o.0)
            }
            // Not `mul_add` of the standard library: without the instruction it is a slow library call.
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                One(self.0 * b.0 + c.0)
            }
            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                One(c.0 - self.0 * b.0)
            }
            #[inline(always)]
            fn min(self, o: Self) -> Self {
                One(if self.0 < o.0 { self.0 } else { o.0 })
            }
            #[inline(always)]
            fn max(self, o: Self) -> Self {
                One(if self.0 > o.0 { self.0 } else { o.0 })
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                One(self.0.sqrt())
            }
            #[inline(always)]
            fn abs(self) -> Self {
                One(self.0.abs())
            }
            #[inline(always)]
            fn lt(self, o: Self) -> bool {
                self.0 < o.0
            }
            #[inline(always)]
            fn ge(self, o: Self) -> bool {
                self.0 >= o.0
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                self.0.is_nan()
            }
            #[inline(always)]
            fn or(a: bool, b: bool) -> bool {
                a | b
            }
            #[inline(always)]
            fn mask_bits(mask: bool) -> u32 {
                u32::from(mask)
            }
            #[inline(always)]
            fn select(mask: bool, a: Self, b: Self) -> Self {
                if mask { a } else { b }
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                self.0
            }
        }
    };
}

one_lane!(f32);
one_lane!(f64);

impl Lanes64 for One<f64> {
    type Bits = One<u64>;
    #[inline(always)]
    fn bits(self) -> One<u64> {
        One(self.0.to_bits())
    }
    #[inline(always)]
    fn from_bits(bits: One<u64>) -> Self {
        One(f64::from_bits(bits.0))
    }
    #[inline(always)]
    unsafe fn load_f32(source: *const f32) -> Self {
        // SAFETY: one element is readable by contract.
        One(f64::from(unsafe { source.read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn store_f32(self, target: *mut f32) {
        // SAFETY: one element is writable by contract.
        unsafe { target.write_unaligned(self.0 as f32) }
    }
}

impl BitLanes for One<u64> {
    #[inline(always)]
    unsafe fn splat(value: u64) -> Self {
        One(value)
    }
    #[inline(always)]
    unsafe fn load(source: *const u64) -> Self {
        // SAFETY: one word is readable by contract.
        One(unsafe { source.read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut u64) {
        // SAFETY: one word is writable by contract.
        unsafe { target.write_unaligned(self.0) }
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        One(self.0.wrapping_add(o.0))
    }
    #[inline(always)]
    fn and(self, o: Self) -> Self {
        One(self.0 & o.0)
    }
    #[inline(always)]
    fn or(self, o: Self) -> Self {
        One(self.0 | o.0)
    }
    #[inline(always)]
    fn xor(self, o: Self) -> Self {
        One(self.0 ^ o.0)
    }
    #[inline(always)]
    fn mul32(self, o: Self) -> Self {
        One((self.0 & 0xFFFF_FFFF) * (o.0 & 0xFFFF_FFFF))
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        One(self.0 << BITS)
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        One(self.0 >> BITS)
    }
}
