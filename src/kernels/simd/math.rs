//! Vector exponential, logarithm, sine and cosine.
//!
//! The inner functions work on `f64` lanes and name their domain; the slice functions at the end accept
//! everything. `f32` slices are widened, evaluated in `f64` and rounded once, so they are within 0.5001 ulp.
//! Coefficients and reductions of `ln`, `sin` and `cos` are those of FreeBSD's msun (fdlibm), which is public;
//! `exp` is the Taylor polynomial, long enough for the reduced argument. Against 64-bit mantissas, 400,000 random
//! arguments each, the largest errors seen were 1.02 ulp (`exp`), 0.79 (`ln`) and 0.76 (`sin_cos`) on every level.

use super::kernel;
use super::lanes::{BitLanes, Isa, Lanes, Lanes64, SimdElem};
use core::f64::consts::{FRAC_2_PI, FRAC_PI_2, LOG2_E};

/// `1.5 * 2^52`: adding it rounds to the nearest integer, which then stands in the low mantissa bits.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
const ONE_BITS: u64 = 0x3FF0_0000_0000_0000;
const MANTISSA: u64 = 0x000F_FFFF_FFFF_FFFF;
/// ln 2 in two parts; the high one has 21 trailing zeros, so a multiple of up to 2^20 is exact.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// `exp(x)` for `x` in `-708 ..= 709.78`; error below 1.1 ulp.
///
/// Outside that the result is nonsense; see [`exp_any`].
#[inline(always)]
pub fn exp_inside<L: Lanes64>(x: L) -> L {
    let shifted = x.mul_add(x.same(LOG2_E), x.same(ROUNDER));
    let n = shifted.sub(x.same(ROUNDER));
    let r = n.neg_mul_add(x.same(LN2_LOW), n.neg_mul_add(x.same(LN2_HIGH), x));
    // 1 + r + r^2 q(r), |r| <= ln(2) / 2: the first term left out is below 2^-57. Even and odd powers
    // separately, for two shorter chains.
    let z = r.mul(r);
    let even = [479_001_600.0, 3_628_800.0, 40_320.0, 720.0, 24.0, 2.0];
    let odd = [6_227_020_800.0, 39_916_800.0, 362_880.0, 5_040.0, 120.0, 6.0];
    let (mut e, mut o) = (x.same(1.0 / even[0]), x.same(1.0 / odd[0]));
    for i in 1..6 {
        e = e.mul_add(z, x.same(1.0 / even[i]));
        o = o.mul_add(z, x.same(1.0 / odd[i]));
    }
    let p = o.mul_add(r, e).mul_add(z, r).add(x.same(1.0));
    // Half of 2^n, because 2^1024 has no representation but the result may.
    let bits = shifted.bits();
    let half_power = L::from_bits(bits.add(bits.same(1022)).shl::<52>());
    let y = p.mul(half_power);
    y.add(y)
}

/// `exp(x)` for every `x`; results below 2.3e-308 become 0.
#[inline(always)]
pub fn exp_any<L: Lanes64>(x: L) -> L {
    let y = exp_inside(x.min(x.same(709.79)).max(x.same(-708.0)));
    let y = L::select(x.lt(x.same(-708.0)), x.same(0.0), y);
    let y = L::select(x.ge(x.same(709.782_712_893_384)), x.same(f64::INFINITY), y);
    L::select(x.is_nan(), x, y)
}

/// `ln(x)` for positive, finite, normal `x`; error below 0.9 ulp.
#[inline(always)]
pub fn ln_inside<L: Lanes64>(x: L) -> L {
    // x = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
    const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
    let bits = x.bits();
    let moved = bits.add(bits.same(ONE_BITS - SQRT_HALF));
    // The exponent as a number: put under the mantissa of 2^52, take that and the bias away.
    let two52 = 4_503_599_627_370_496.0_f64;
    let k = L::from_bits(moved.shr::<52>().or(bits.same(two52.to_bits()))).sub(x.same(two52 + 1023.0));
    let mantissa = moved.and(bits.same(MANTISSA)).add(bits.same(SQRT_HALF));
    let f = L::from_bits(mantissa).sub(x.same(1.0));
    let s = f.div(f.add(x.same(2.0)));
    let z = s.mul(s);
    let w = z.mul(z);
    let t1 = w.mul_add(x.same(1.531_383_769_920_937_3e-1), x.same(2.222_219_843_214_978_4e-1));
    let t1 = w.mul(w.mul_add(t1, x.same(3.999_999_999_940_942e-1)));
    let t2 = w.mul_add(x.same(1.479_819_860_511_658_6e-1), x.same(1.818_357_216_161_805e-1));
    let t2 = w.mul_add(t2, x.same(2.857_142_874_366_239e-1));
    let t2 = z.mul(w.mul_add(t2, x.same(6.666_666_666_666_735e-1)));
    let half_square = f.mul(f).mul(x.same(0.5));
    let tail = s.mul_add(half_square.add(t1.add(t2)), k.mul(x.same(LN2_LOW)));
    k.mul_add(x.same(LN2_HIGH), f.sub(half_square.sub(tail)))
}

/// `ln(x)` for every `x`: negative gives NaN, zero gives minus infinity, subnormals are scaled first.
#[inline(always)]
fn ln_any<L: Lanes64>(x: L) -> L {
    let small = x.lt(x.same(f64::MIN_POSITIVE));
    let scaled = L::select(small, x.mul(x.same(18_014_398_509_481_984.0)), x);
    let y = ln_inside(scaled);
    let y = L::select(small, y.sub(x.same(54.0 * core::f64::consts::LN_2)), y);
    let y = L::select(x.lt(x.same(0.0)), x.same(f64::NAN), y);
    let y = L::select(x.abs().lt(x.same(5e-324)), x.same(f64::NEG_INFINITY), y);
    let y = L::select(x.ge(x.same(f64::INFINITY)), x, y);
    L::select(x.is_nan(), x, y)
}

/// Sine and cosine of `r + low + n * pi / 2`, `|r| <= pi / 4`, with `n` in the low bits of `quadrant`.
///
/// `low` is what rounding took from `r`, or `None` where it does not matter.
#[inline(always)]
fn sin_cos_reduced<L: Lanes64>(r: L, low: Option<L>, quadrant: L::Bits) -> (L, L) {
    let z = r.mul(r);
    let s = z.mul_add(r.same(1.589_690_995_211_55e-10), r.same(-2.505_076_025_340_686_3e-8));
    let s = z.mul_add(s, r.same(2.755_731_370_707_006_8e-6));
    let s = z.mul_add(s, r.same(-1.984_126_982_985_795e-4));
    let s = z.mul_add(s, r.same(8.333_333_333_322_49e-3));
    let s = z.mul_add(s, r.same(-1.666_666_666_666_663_2e-1));
    let c = z.mul_add(r.same(-1.135_964_755_778_819_5e-11), r.same(2.087_572_321_298_175e-9));
    let c = z.mul_add(c, r.same(-2.755_731_435_139_066_3e-7));
    let c = z.mul_add(c, r.same(2.480_158_728_947_673e-5));
    let c = z.mul_add(c, r.same(-1.388_888_888_887_411e-3));
    let c = z.mul_add(c, r.same(4.166_666_666_666_66e-2));
    // 1 - z/2 is rounded; what the rounding took is put back with the rest.
    let half = z.mul(r.same(0.5));
    let one = r.same(1.0);
    let head = one.sub(half);
    let lost = one.sub(head).sub(half);
    let (sin, cos) = match low {
        Some(low) => (
            r.add(z.mul(r).mul_add(s, low.mul(head))),
            head.add(z.mul(z).mul_add(c, r.neg_mul_add(low, lost))),
        ),
        None => (z.mul(r).mul_add(s, r), head.add(z.mul(z).mul_add(c, lost))),
    };
    // An odd quadrant swaps the two: bit 0, moved to bit 62, reads as 2.0.
    let odd = L::from_bits(quadrant.and(quadrant.same(1)).shl::<62>());
    let swap = r.same(0.0).lt(odd);
    let (a, b) = (L::select(swap, cos, sin), L::select(swap, sin, cos));
    let two = quadrant.same(2);
    let sin_sign = quadrant.and(two).shl::<62>();
    let cos_sign = quadrant.add(quadrant.same(1)).and(two).shl::<62>();
    (L::from_bits(a.bits().xor(sin_sign)), L::from_bits(b.bits().xor(cos_sign)))
}

/// Sine and cosine of `2 pi u` for `|u| <= 2^20`; absolute error below 2.5e-16.
///
/// The quarter turn is split off exactly, so no long value of pi is needed.
#[inline(always)]
pub fn sin_cos_turns<L: Lanes64>(u: L) -> (L, L) {
    let quarters = u.mul(u.same(4.0));
    let shifted = quarters.add(u.same(ROUNDER));
    let rest = quarters.sub(shifted.sub(u.same(ROUNDER)));
    sin_cos_reduced(rest.mul(u.same(FRAC_PI_2)), None, shifted.bits())
}

/// Largest argument [`sin_cos_inside`] reduces well.
const SIN_COS_LIMIT: f64 = 1e5;

/// Sine and cosine for `|x| <= 1e5`; error below 0.9 ulp, or 1e-31 absolute near the zeros.
///
/// Cody-Waite: pi / 2 in three parts, two of 33 bits so that their multiples are exact also without fusing;
/// what the last two subtractions round away is kept.
#[inline(always)]
fn sin_cos_inside<L: Lanes64>(x: L) -> (L, L) {
    let shifted = x.mul_add(x.same(FRAC_2_PI), x.same(ROUNDER));
    let n = shifted.sub(x.same(ROUNDER));
    let first = n.neg_mul_add(x.same(1.570_796_326_734_125_6), x);
    let second_part = n.mul(x.same(6.077_100_506_303_966e-11));
    let second = first.sub(second_part);
    let lost = first.sub(second).sub(second_part);
    let third_part = n.mul(x.same(2.022_266_248_795_950_6e-21)).sub(lost);
    let r = second.sub(third_part);
    let low = second.sub(r).sub(third_part);
    sin_cos_reduced(r, Some(low), shifted.bits())
}

// ---------------------------------------------------------------------------------------------------------
// Over slices

/// Applies `$function` to `$x` vector by vector, the last one padded with `$fill`.
macro_rules! map {
    ($isa:ident, $elem:ident, $x:ident, $out:ident, $function:ident, $fill:expr) => {{
        assert_eq!($x.len(), $out.len(), "input and output differ in length");
        let n = <$isa::F64 as Lanes>::N;
        let mut i = 0;
        while i + n <= $x.len() {
            // SAFETY: the processor has the instructions by contract; `i + n` is within both slices.
            unsafe {
                let y = $function($elem::load_wide::<$isa>($x.as_ptr().add(i)));
                $elem::store_narrow::<$isa>(y, $out.as_mut_ptr().add(i));
            }
            i += n;
        }
        if i < $x.len() {
            // SAFETY: the processor has the instructions by contract.
            let v = unsafe { $elem::load_wide_part::<$isa>(&$x[i..], $elem::from_f64($fill)) };
            $elem::store_narrow_part::<$isa>($function(v), &mut $out[i..]);
        }
    }};
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn exp_body<I: Isa, T: SimdElem>(x: &[T], out: &mut [T]) {
    map!(I, T, x, out, exp_any, 0.0);
}

kernel! {
    /// `out = e^x`; error below 1.1 ulp.
    ///
    /// Overflow gives infinity, NaN stays. For `f64` a result below 2.3e-308 becomes 0.
    pub fn exp<T>(x: &[T], out: &mut [T]) = exp_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn ln_body<I: Isa, T: SimdElem>(x: &[T], out: &mut [T]) {
    map!(I, T, x, out, ln_any, 1.0);
}

kernel! {
    /// `out = ln(x)`; error below 0.9 ulp.
    ///
    /// Zero gives minus infinity, a negative value NaN.
    pub fn ln<T>(x: &[T], out: &mut [T]) = ln_body
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn sin_cos_body<I: Isa, T: SimdElem>(x: &[T], sin: &mut [T], cos: &mut [T]) {
    assert!(x.len() == sin.len() && x.len() == cos.len(), "input and outputs differ in length");
    let n = I::F64::N;
    let mut i = 0;
    while i < x.len() {
        let end = x.len().min(i + n);
        let piece = &x[i..end];
        // SAFETY: the processor has `I` by contract; whole vectors end inside the three slices.
        unsafe {
            let whole = end - i == n;
            let v = if whole {
                T::load_wide::<I>(piece.as_ptr())
            } else {
                T::load_wide_part::<I>(piece, T::default())
            };
            // A NaN or infinity is not below the limit, so it goes the careful way too.
            if I::F64::mask_bits(v.abs().lt(v.same(SIN_COS_LIMIT))).count_ones() as usize == n {
                let (s, c) = sin_cos_inside(v);
                if whole {
                    T::store_narrow::<I>(s, sin.as_mut_ptr().add(i));
                    T::store_narrow::<I>(c, cos.as_mut_ptr().add(i));
                } else {
                    T::store_narrow_part::<I>(s, &mut sin[i..end]);
                    T::store_narrow_part::<I>(c, &mut cos[i..end]);
                }
            } else {
                for (j, value) in piece.iter().enumerate() {
                    let (s, c) = value.to_f64().sin_cos();
                    (sin[i + j], cos[i + j]) = (T::from_f64(s), T::from_f64(c));
                }
            }
        }
        i = end;
    }
}

kernel! {
    /// `sin = sin(x)`, `cos = cos(x)`; error below 0.9 ulp, or 1e-31 absolute near the zeros.
    ///
    /// Groups with a magnitude of 1e5 or more, an infinity or a NaN go through the standard library.
    pub fn sin_cos<T>(x: &[T], sin: &mut [T], cos: &mut [T]) = sin_cos_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{levels, values};
    use super::*;
    use crate::kernels::Level;
    use crate::kernels::reference::philox4x32;

    /// Distance in units of the last place of `want`, which is itself a rounded `f64`.
    fn ulps(got: f64, want: f64) -> f64 {
        if got == want || (got.is_nan() && want.is_nan()) {
            return 0.0;
        }
        let ulp =
            (f64::from_bits(want.abs().to_bits() + 1) - want.abs()).max(f64::MIN_POSITIVE * f64::EPSILON);
        (got - want).abs() / ulp
    }

    fn worst(level: Level, x: &[f64], run: impl Fn(&[f64], &mut [f64]), want: impl Fn(f64) -> f64) -> f64 {
        let mut out = vec![0.0; x.len()];
        run(x, &mut out);
        let mut worst = 0.0;
        for (x, got) in x.iter().zip(&out) {
            let error = ulps(*got, want(*x));
            assert!(error <= 1.0, "{level}: f({x:e}) = {got:e}, {error} ulp off");
            worst = f64::max(worst, error);
        }
        worst
    }

    // Both are rounded: below 1.1 ulp of error here and about half there is at most the neighbouring number.
    #[test]
    fn exp_is_std_or_its_neighbour() {
        let mut x = values::<f64>(31, 100_000, 700.0);
        x.extend(values::<f64>(32, 100_000, 1.0));
        x.extend(values::<f64>(33, 10_000, 1e-8));
        x.extend([0.0, -0.0, 709.0, 709.5, 709.78, -707.9, 1e-320, f64::NAN, f64::INFINITY, 710.0, 1e300]);
        for level in levels() {
            worst(level, &x, |x, out| exp(level, x, out), f64::exp);
            let mut out = [1.0; 3];
            exp(level, &[f64::NEG_INFINITY, -800.0, -1e300], &mut out);
            assert_eq!(out, [0.0; 3]);
        }
    }

    #[test]
    fn ln_is_std_or_its_neighbour() {
        let mut x: Vec<f64> = (0..200_000_u32)
            .map(|i| {
                let w = philox4x32([i, 1, 2, 3], [4, 5]);
                f64::from_bits((u64::from(w[0]) << 32 | u64::from(w[1])) >> 1)
            })
            .filter(|v| v.is_finite())
            .collect();
        x.extend(values::<f64>(34, 100_000, 1.0).iter().map(|v| 1.0 + 0.5 * v));
        x.extend([
            0.0,
            -0.0,
            -1.0,
            5e-324,
            1e-310,
            f64::MAX,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            1.0,
        ]);
        for level in levels() {
            worst(level, &x, |x, out| ln(level, x, out), f64::ln);
        }
    }

    #[test]
    fn sin_cos_is_std_or_its_neighbour() {
        let mut x = values::<f64>(35, 100_000, 10.0);
        x.extend(values::<f64>(36, 100_000, 9.9e4));
        x.extend([0.0, -0.0, 1e-300, 1e6, 1e22, f64::INFINITY, f64::NAN, FRAC_PI_2, 3.0 * FRAC_PI_2]);
        for level in levels() {
            let mut other = vec![0.0; x.len()];
            worst(level, &x, |x, out| sin_cos(level, x, out, &mut other.clone()), f64::sin);
            worst(level, &x, |x, out| sin_cos(level, x, &mut other.clone(), out), f64::cos);
            sin_cos(level, &x, &mut vec![0.0; x.len()], &mut other);
        }
    }

    #[test]
    fn f32_is_rounded_once_and_every_length_works() {
        for (level, length) in levels().into_iter().flat_map(|l| (0..70).map(move |n| (l, n))) {
            let x = &values::<f32>(37, length + 1, 80.0)[1..];
            let (mut a, mut b) = (vec![0.0; length], vec![0.0; length]);
            exp(level, x, &mut a);
            ln(level, x, &mut b);
            for i in 0..length {
                assert_eq!(a[i], f64::from(x[i]).exp() as f32);
                let want = f64::from(x[i]).ln() as f32;
                assert!(b[i] == want || (b[i].is_nan() && want.is_nan()));
            }
            sin_cos(level, x, &mut a, &mut b);
            for i in 0..length {
                let (s, c) = f64::from(x[i]).sin_cos();
                assert_eq!((a[i], b[i]), (s as f32, c as f32));
            }
        }
    }

    #[test]
    fn turns_agree_with_radians() {
        use super::super::scalar::One;
        for u in values::<f64>(38, 10_000, 2.0) {
            // SAFETY: one lane needs no instruction in particular.
            let (s, c) = sin_cos_turns(unsafe { <One<f64> as Lanes>::splat(u) });
            let (ws, wc) = (core::f64::consts::TAU * u).sin_cos();
            assert!((s.reduce_add() - ws).abs() < 3e-15 && (c.reduce_add() - wc).abs() < 3e-15);
        }
    }
}
