//! The vector forms of the kernels: one body each, five instruction sets, chosen by a `Level` argument.
//!
//! 1. `lanes` names the operations; `scalar`, `portable`, `avx2`, `avx512` implement them.
//! 2. Every other file holds kernels: a body generic over `Isa`, and a `kernel!` item that instantiates the
//!    body once per level and makes the safe function out of it.
//!    `sort` alone has lanes of its own, of integers, in `sort_lanes`; without them it is the standard library's.
//! 3. The level given is only a wish: a level this processor lacks becomes the best one below it, so no
//!    argument can make these functions unsound.
//!
//! Invariants
//! 1. No allocation, except the packing buffers of `matmul`; any length, any alignment.
//! 2. The order of additions depends on the level and the length only, never on threads or addresses.
//! 3. Slices of unequal or wrong length are the caller's mistake and panic.
//! 4. Levels agree within the bounds stated at each function, not bit by bit: the wider ones fuse. Those of `clusters`
//!    do not, and agree.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod portable;
mod scalar;

mod clusters;
mod codes;
mod convolution;
mod cumulative;
mod histogram;
mod linear;
mod math;
mod matmul;
mod monte_carlo;
mod nearest;
mod peak;
mod reduce;
mod softmax;
mod sort;
#[cfg(target_arch = "x86_64")]
mod sort_lanes;
mod stencil;

pub use clusters::{TILE_ROWS, add_to_clusters, nearest_centroids};
pub use codes::{COLUMNS_MAX, code_products};
pub use convolution::windows;
pub use cumulative::cumulate;
pub use histogram::{histogram, histogram_u8};
pub use lanes::SimdElem;
pub use linear::{axpy, dot};
pub use math::{exp, ln, sin_cos};
pub use matmul::{Matrix, matmul, matmul_space};
pub use monte_carlo::monte_carlo_block;
pub use nearest::{Neighbour, TopK, distance, row_norms, scores};
pub use peak::{multiply_adds, triad_streaming};
pub use reduce::{
    add_assign, add_sq_assign, add_sq_dev_assign, max, max_assign, min, min_assign, norm2, sum, sum_sq,
    sum_sq_dev,
};
pub use softmax::{divide, divide_row, exp_below, exp_below_row, running_sums};
pub use sort::{SortKey, sort, sorts_in_vectors, split};
pub use stencil::{stencil5_rows, stencil5_step};

use super::Level;

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stores {
    /// Into the cache, as usual.
    Cached,
    /// Past it where the level can and the answer's start allows, for answers that would not stay there: then no line
    /// is read before it is written. The same values.
    Streaming,
}

impl Stores {
    /// Whether vectors of `I` go past the cache at `target`, where they have to be on a boundary of their own size.
    #[inline(always)]
    fn streams<T: SimdElem, I: lanes::Isa>(self, target: *const T) -> bool {
        let vector = <T::Lanes<I> as lanes::Lanes>::N * size_of::<T>();
        self == Stores::Streaming && target.addr().is_multiple_of(vector)
    }
}

/// The forms compiled into this binary.
enum Form {
    Scalar,
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The form for `level`: that one when the processor has it, else the best below it.
#[inline]
fn form(level: Level) -> Form {
    match level {
        Level::Scalar => Form::Scalar,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if Level::Avx512.is_available() => Form::Avx512,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx2 if Level::Avx2.is_available() => Form::Avx2,
        _ => Form::Portable,
    }
}

/// Makes the safe, dispatching function of a kernel from its body
/// `unsafe fn body<I: Isa, T: SimdElem>(...)`, whose one duty is that the processor has `I`.
macro_rules! kernel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$elem:ident>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel takes its slices and sizes one by one")]
        $vis fn $name $(<$elem: $crate::kernels::simd::lanes::SimdElem>)? (
            level: $crate::kernels::Level, $($arg: $ty),*
        ) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "as the kernel")]
            fn avx2 $(<$elem: $crate::kernels::simd::lanes::SimdElem>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function's own features are the ones the body asks for.
                unsafe { $body::<$crate::kernels::simd::avx2::Avx2 $(, $elem)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            #[allow(clippy::too_many_arguments, reason = "as the kernel")]
            fn avx512 $(<$elem: $crate::kernels::simd::lanes::SimdElem>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function's own features are the ones the body asks for.
                unsafe { $body::<$crate::kernels::simd::avx512::Avx512 $(, $elem)?>($($arg),*) }
            }
            match $crate::kernels::simd::form(level) {
                // SAFETY: one lane needs no instruction in particular.
                $crate::kernels::simd::Form::Scalar => unsafe {
                    $body::<$crate::kernels::simd::scalar::Scalar $(, $elem)?>($($arg),*)
                },
                // SAFETY: the portable form uses the baseline this binary was compiled for.
                $crate::kernels::simd::Form::Portable => unsafe {
                    $body::<$crate::kernels::simd::portable::Portable $(, $elem)?>($($arg),*)
                },
                // SAFETY: `form` names this one only where the processor has AVX2 and FMA.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::simd::Form::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: `form` names this one only where the processor has these AVX-512 parts.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::simd::Form::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
use kernel;

/// A running sum that also carries what rounding took away (Neumaier).
#[derive(Clone, Copy, Default)]
struct Compensated {
    high: f64,
    low: f64,
}

impl Compensated {
    #[inline(always)]
    fn add(&mut self, value: f64) {
        let sum = self.high + value;
        let part = sum - self.high;
        self.low += (self.high - (sum - part)) + (value - part);
        self.high = sum;
    }

    /// The sum. Once it is infinite the carried part is NaN and does not count.
    #[inline(always)]
    fn value(self) -> f64 {
        if self.low.is_finite() { self.high + self.low } else { self.high }
    }
}

#[cfg(test)]
mod testing;
