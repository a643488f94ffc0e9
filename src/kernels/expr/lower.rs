//! A program in the operations that a vector unit has: functions become polynomials, sums become
//! accumulators.
//!
//! What is written here decides the error of compiled code; only functions differ from the interpreter, all
//! else gives the same bits. Largest differences from the standard library seen, in units of the last place:
//! 1 for `exp` and `log`, 2 for `sin` and `cos`, 3 for `tanh`. `f32` arguments are widened and the result is
//! rounded once; but where nothing else in a program is 64 bits wide, sines and cosines of `f32` are made in `f32`, 16 at a
//! time instead of 8, and differ by up to 3.

use core::f64::consts::{FRAC_1_PI, LOG2_E};

use super::graph::{Graph, Id, Node, Op, Program, Type, constant_bits};
use super::parse::Reduction;
use super::reduce::neutral;

/// Magnitude from which on sine and cosine leave the work to the interpreter: the multiple of pi that is
/// taken away then has more bits than three numbers hold.
pub const SIN_LIMIT: f64 = 1e9;

/// The same for those that are made in `f32`, which leave the work to those that are made in `f64`.
pub const SIN_LIMIT_F32: f32 = 65_536.0;

/// `1.5 * 2^23` and `1.5 * 2^52`: adding it rounds to the nearest integer, which then stands in the low mantissa bits.
const ROUNDER_F32: f64 = 12_582_912.0;
const ROUNDER: f64 = 6_755_399_441_055_744.0;
/// Pi in three parts.
const PI: [f64; 3] = [core::f64::consts::PI, 1.2246467991473532e-16, -2.9947698097183397e-33];
const PI_F32: [f64; 3] = [3.1415927410125732, -8.742277657347586e-8, -3.4302490200117637e-15];
/// `(sin(r) / r - 1) / r^2` over `r^2` up to `(pi / 2)^2`, by interpolation at Chebyshev's points; relative
/// error of the sine 2e-17.
const SIN: [f64; 9] = [
    -0.16666666666666666,
    0.008333333333333333,
    -0.00019841269841269806,
    2.7557319223971247e-06,
    -2.5052108382388368e-08,
    1.6059043479134437e-10,
    -7.647139107307692e-13,
    2.8104683856171073e-15,
    -8.006027518524349e-18,
];
/// The same by fewer points up to `(pi / 2 + 0.004)^2`, because the multiple of pi to be taken away is not always the nearest;
/// relative error of the sine 2e-8.
const SIN_F32: [f64; 5] = [
    -0.1666666716337204,
    0.00833333283662796,
    -0.000198410838493146,
    2.7536252673598938e-6,
    -2.407532839754367e-8,
];
/// ln 2 in two parts; the high one has 21 trailing zeros, so a multiple of up to 2^20 is exact.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Of `ln(1 + f)`, as in FreeBSD's msun: odd and even powers.
const LN_ODD: [f64; 4] = [
    6.666_666_666_666_735e-1,
    2.857_142_874_366_239e-1,
    1.818_357_216_161_805e-1,
    1.479_819_860_511_658_6e-1,
];
const LN_EVEN: [f64; 3] = [3.999_999_999_940_942e-1, 2.222_219_843_214_978_4e-1, 1.531_383_769_920_937_3e-1];

/// A program for a vector unit.
#[derive(Debug)]
pub struct Lowered {
    pub nodes: Vec<Node>,
    /// The element, the next accumulator, or whether any was true.
    pub root: Id,
    pub reduction: Option<Reduction>,
}

/// `program` in vector operations, or `None` where the level has none for it: 256-bit vectors have no
/// products, extremes or conversions of 64-bit integers. If `is_narrow`, functions of `f32` are made in `f32`, and the
/// answer is `None` where that is not possible or makes no difference.
pub fn lower(program: &Program, has_long: bool, is_narrow: bool) -> Option<Lowered> {
    let is_sine = |node: &Node| matches!(node.op, Op::Sin | Op::Cos);
    let is_wide = |node: &Node| {
        matches!(node.op, Op::Exp | Op::Log | Op::Tanh) || matches!(node.ty, Type::I64 | Type::F64)
    };
    if is_narrow && (!program.nodes.iter().any(is_sine) || program.nodes.iter().any(is_wide)) {
        return None;
    }
    let mut lower = Lower { graph: Graph::default(), real: if is_narrow { Type::F32 } else { Type::F64 } };
    let mut places: Vec<Id> = Vec::with_capacity(program.nodes.len());
    for node in &program.nodes {
        let from = program.nodes[node.args[0]].ty;
        let args: Vec<Id> = node.arguments().iter().map(|&arg| places[arg]).collect();
        places.push(lower.node(node, from, &args));
    }
    let root = lower.reduce(program, places[program.root]);
    let (nodes, root) = lower.graph.reachable(root);
    let missing = |node: &Node| {
        let long = |ty: Type| ty == Type::I64;
        match node.op {
            Op::Mul | Op::RawMin | Op::RawMax | Op::Abs => long(node.ty),
            Op::Cast => {
                let from = nodes[node.args[0]].ty;
                long(from) && node.ty.is_float() || long(node.ty) && from.is_float()
            }
            _ => false,
        }
    };
    if !has_long && nodes.iter().any(missing) || nodes.iter().all(|node| node.ty == Type::Bool) {
        return None;
    }
    Some(Lowered { nodes, root, reduction: program.reduction })
}

struct Lower {
    graph: Graph,
    /// What functions are made in.
    real: Type,
}

/// Short names for what polynomials are written in.
impl Lower {
    /// The integers as wide as the real numbers.
    fn whole(&self) -> Type {
        if self.real == Type::F32 { Type::I32 } else { Type::I64 }
    }
    fn at(&mut self, value: f64) -> Id {
        self.graph.constant(constant_bits(value, self.real), self.real)
    }
    fn two(&mut self, op: Op, a: Id, b: Id) -> Id {
        self.graph.push(op, self.real, &[a, b])
    }
    fn add(&mut self, a: Id, b: Id) -> Id {
        self.two(Op::Add, a, b)
    }
    fn sub(&mut self, a: Id, b: Id) -> Id {
        self.two(Op::Sub, a, b)
    }
    fn mul(&mut self, a: Id, b: Id) -> Id {
        self.two(Op::Mul, a, b)
    }
    /// `a * b + c`.
    fn fma(&mut self, a: Id, b: Id, c: Id) -> Id {
        self.graph.push(Op::MulAdd, self.real, &[a, b, c])
    }
    /// `c - a * b`.
    fn fnma(&mut self, a: Id, b: Id, c: Id) -> Id {
        self.graph.push(Op::NegMulAdd, self.real, &[a, b, c])
    }
    fn bits(&mut self, op: Op, a: Id, bits: u64) -> Id {
        let bits = self.graph.constant(bits, self.whole());
        self.graph.push(op, self.whole(), &[a, bits])
    }
    fn shift(&mut self, op: Op, a: Id) -> Id {
        self.graph.push(op, self.whole(), &[a])
    }
    fn test(&mut self, op: Op, a: Id, b: Id) -> Id {
        self.graph.push(op, Type::Bool, &[a, b])
    }
    fn select(&mut self, ty: Type, condition: Id, yes: Id, no: Id) -> Id {
        self.graph.push(Op::Select, ty, &[condition, yes, no])
    }
    /// `coefficients[0] + z * (coefficients[1] + ...)`.
    fn horner(&mut self, z: Id, coefficients: &[f64]) -> Id {
        let (last, rest) = coefficients.split_last().expect("a polynomial has coefficients");
        let mut sum = self.at(*last);
        for coefficient in rest.iter().rev() {
            let coefficient = self.at(*coefficient);
            sum = self.fma(sum, z, coefficient);
        }
        sum
    }
    /// The integer nearest to `a * factor`, as a number and, in its low bits, as itself.
    fn nearest(&mut self, a: Id, factor: f64) -> (Id, Id) {
        let rounder = if self.real == Type::F32 { ROUNDER_F32 } else { ROUNDER };
        let (factor, rounder) = (self.at(factor), self.at(rounder));
        let shifted = self.fma(a, factor, rounder);
        (self.sub(shifted, rounder), shifted)
    }
}

impl Lower {
    fn node(&mut self, node: &Node, from: Type, args: &[Id]) -> Id {
        let ty = node.ty;
        match node.op {
            Op::Exp | Op::Log | Op::Sin | Op::Cos | Op::Tanh if ty == Type::F32 && self.real != ty => {
                let wide = self.graph.push(Op::Cast, Type::F64, args);
                let result = self.function(node.op, wide);
                self.graph.push(Op::Cast, Type::F32, &[result])
            }
            Op::Exp | Op::Log | Op::Sin | Op::Cos | Op::Tanh => self.function(node.op, args[0]),
            Op::Neg | Op::Abs if ty.is_float() => {
                let sign = constant_bits(-0.0, ty);
                let (op, bits) = if node.op == Op::Neg { (Op::BitXor, sign) } else { (Op::BitAnd, sign - 1) };
                let bits = self.graph.constant(bits, ty);
                self.graph.push(op, ty, &[args[0], bits])
            }
            Op::Neg => {
                let zero = self.graph.constant(0, ty);
                self.graph.push(Op::Sub, ty, &[zero, args[0]])
            }
            Op::Min => self.extreme(Op::RawMin, ty, args[0], args[1]),
            Op::Max => self.extreme(Op::RawMax, ty, args[0], args[1]),
            Op::Cast if from == Type::Bool => {
                let (one, zero) = (constant_bits(1.0, ty), constant_bits(0.0, ty));
                let (one, zero) = (self.graph.constant(one, ty), self.graph.constant(zero, ty));
                self.select(ty, args[0], one, zero)
            }
            op => self.graph.push(op, ty, args),
        }
    }

    /// The lesser or greater, NaN when one is: the instruction alone answers with the second.
    fn extreme(&mut self, op: Op, ty: Type, a: Id, b: Id) -> Id {
        let raw = self.graph.push(op, ty, &[a, b]);
        if !ty.is_float() {
            return raw;
        }
        let is_nan = self.test(Op::Ne, a, a);
        self.select(ty, is_nan, a, raw)
    }

    fn reduce(&mut self, program: &Program, value: Id) -> Id {
        let ty = self.graph.ty(value);
        let Some(how) = program.reduction.filter(|_| ty != Type::Bool) else { return value };
        let so_far = self.graph.push(Op::Accumulator, ty, &[]);
        match how {
            Reduction::Min | Reduction::Max => {
                let op = if how == Reduction::Min { Op::RawMin } else { Op::RawMax };
                let value = self.graph.push(Op::Valid, ty, &[value, so_far]);
                self.extreme(op, ty, value, so_far)
            }
            _ => {
                let zero = self.graph.constant(neutral(how, ty), ty);
                let value = self.graph.push(Op::Valid, ty, &[value, zero]);
                self.graph.push(Op::Add, ty, &[so_far, value])
            }
        }
    }

    fn function(&mut self, op: Op, x: Id) -> Id {
        match op {
            Op::Sin => self.sine(x, false),
            Op::Cos => self.sine(x, true),
            Op::Exp => self.exp(x),
            Op::Log => self.ln(x),
            _ => self.tanh(x),
        }
    }

    /// Sine, or cosine as the sine of a quarter turn more. `x - n pi` is exact after the first part, because
    /// it is a multiple of the last bit of both and below 2; what the second rounds away is kept.
    fn sine(&mut self, x: Id, is_cosine: bool) -> Id {
        let is_narrow = self.real == Type::F32;
        let sign_bit = constant_bits(-0.0, self.real);
        let magnitude = self.bits(Op::BitAnd, x, sign_bit - 1);
        self.graph.push(Op::Watch, self.real, &[magnitude]);
        let (n, turns) = if is_cosine {
            let (factor, half, minus_half) = (self.at(FRAC_1_PI), self.at(0.5), self.at(-0.5));
            let before = self.fma(x, factor, minus_half);
            let (n, turns) = self.nearest(before, 1.0);
            (self.add(n, half), turns)
        } else {
            self.nearest(x, FRAC_1_PI)
        };
        let pi = if is_narrow { PI_F32 } else { PI };
        let [first, second, third] = pi.map(|part| self.at(part));
        let near = self.fnma(n, first, x);
        let (r, lost) = if is_narrow {
            // Multiples of pi are so dense in `f32` that a difference from one is often smaller than what is taken away
            // second: that has to be rounded first for what is lost to be known (Dekker's sum).
            let away = self.mul(n, second);
            let away_lost = self.fnma(n, second, away);
            let r = self.sub(near, away);
            let lost = self.sub(near, r);
            let lost = self.sub(lost, away);
            (r, self.add(lost, away_lost))
        } else {
            let r = self.fnma(n, second, near);
            let lost = self.sub(near, r);
            (r, self.fnma(n, second, lost))
        };
        let lost = self.fnma(n, third, lost);
        let z = self.mul(r, r);
        let p = self.horner(z, if is_narrow { &SIN_F32 } else { &SIN });
        let cube = self.mul(r, z);
        let tail = self.fma(cube, p, lost);
        let sine = self.add(r, tail);
        // An odd number of half turns changes the sign; a cosine begins a quarter turn before a falling sine.
        let places = if is_narrow { 31 } else { 63 };
        let sign = self.shift(Op::ShiftLeft(places), turns);
        let sign = if is_cosine { self.bits(Op::BitXor, sign, sign_bit) } else { sign };
        self.graph.push(Op::BitXor, self.real, &[sine, sign])
    }

    /// `(n, e^r - 1)` with `x = n ln 2 + r`.
    fn exp_reduced(&mut self, x: Id) -> (Id, Id) {
        let (n, _) = self.nearest(x, LOG2_E);
        let (high, low) = (self.at(LN2_HIGH), self.at(LN2_LOW));
        let r = self.fnma(n, high, x);
        let r = self.fnma(n, low, r);
        // r + r^2 (1/2! + r/3! + ...), |r| <= ln(2) / 2: the first term left out is below 2^-57. Even and odd
        // powers apart, for two shorter chains.
        let inverse = |from: u64| (1..=from).map(|factor| factor as f64).product::<f64>().recip();
        let even: Vec<f64> = (2..=12).step_by(2).map(inverse).collect();
        let odd: Vec<f64> = (3..=13).step_by(2).map(inverse).collect();
        let z = self.mul(r, r);
        let (even, odd) = (self.horner(z, &even), self.horner(z, &odd));
        let p = self.fma(odd, r, even);
        (n, self.fma(p, z, r))
    }

    /// `2^n` for a whole number as [`Lower::nearest`] leaves it in low bits.
    fn power_of_two(&mut self, shifted: Id) -> Id {
        let biased = self.bits(Op::Add, shifted, 1023);
        self.shift(Op::ShiftLeft(52), biased)
    }

    /// The clamps let NaN through; beyond them the result is 0 or infinite all the same.
    fn exp(&mut self, x: Id) -> Id {
        let (most, least, rounder) = (self.at(710.0), self.at(-746.0), self.at(ROUNDER));
        let x = self.two(Op::RawMin, most, x);
        let x = self.two(Op::RawMax, least, x);
        let (n, rest) = self.exp_reduced(x);
        let one = self.at(1.0);
        let p = self.add(rest, one);
        // 2^n in two factors, so that results below the normal ones and the largest come out by themselves.
        let (half, shifted) = self.nearest(n, 0.5);
        let other = self.sub(n, half);
        let other = self.add(other, rounder);
        let (a, b) = (self.power_of_two(shifted), self.power_of_two(other));
        let p = self.mul(p, a);
        self.mul(p, b)
    }

    /// `1 - 2 / (e^2x + 1)` as `-t / (t + 2)` with `t = e^-2|x| - 1`, which loses nothing near 0.
    fn tanh(&mut self, x: Id) -> Id {
        let (least, minus_two, one, two) = (self.at(-40.0), self.at(-2.0), self.at(1.0), self.at(2.0));
        let rounder = self.at(ROUNDER);
        let magnitude = self.bits(Op::BitAnd, x, i64::MAX as u64);
        let sign = self.bits(Op::BitAnd, x, 1 << 63);
        let double = self.mul(magnitude, minus_two);
        let double = self.two(Op::RawMax, least, double);
        let (n, rest) = self.exp_reduced(double);
        let shifted = self.add(n, rounder);
        let scale = self.power_of_two(shifted);
        let below_one = self.sub(scale, one);
        let t = self.fma(rest, scale, below_one);
        let sum = self.add(t, two);
        let negative = self.two(Op::Div, t, sum);
        let magnitude = self.bits(Op::BitAnd, negative, i64::MAX as u64);
        self.graph.push(Op::BitOr, Type::F64, &[magnitude, sign])
    }

    /// `x = 2^k (1 + f)` with `sqrt(1/2) <= 1 + f < sqrt(2)`; then as in msun.
    fn ln(&mut self, x: Id) -> Id {
        const ONE_BITS: u64 = 0x3FF0_0000_0000_0000;
        const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
        const MANTISSA: u64 = 0x000F_FFFF_FFFF_FFFF;
        const TWO_52: f64 = 4_503_599_627_370_496.0;
        // Numbers below the normal ones are scaled into them.
        let (tiny, scale) = (self.at(f64::MIN_POSITIVE), self.at(18_014_398_509_481_984.0));
        let is_small = self.test(Op::Lt, x, tiny);
        let scaled = self.mul(x, scale);
        let normal = self.select(Type::F64, is_small, scaled, x);
        let (bias, bias_small) = (self.at(TWO_52 + 1023.0), self.at(TWO_52 + 1023.0 + 54.0));
        let bias = self.select(Type::F64, is_small, bias_small, bias);
        let moved = self.bits(Op::Add, normal, ONE_BITS - SQRT_HALF);
        let exponent = self.shift(Op::ShiftRight(52), moved);
        let exponent = self.bits(Op::BitOr, exponent, TWO_52.to_bits());
        let k = self.sub(exponent, bias);
        let mantissa = self.bits(Op::BitAnd, moved, MANTISSA);
        let mantissa = self.bits(Op::Add, mantissa, SQRT_HALF);
        let (zero, half, one, two) = (self.at(0.0), self.at(0.5), self.at(1.0), self.at(2.0));
        let f = self.sub(mantissa, one);
        let above = self.add(f, two);
        let s = self.two(Op::Div, f, above);
        let z = self.mul(s, s);
        let w = self.mul(z, z);
        let (even, odd) = (self.horner(w, &LN_EVEN), self.horner(w, &LN_ODD));
        let even = self.mul(w, even);
        let t = self.fma(z, odd, even);
        let square = self.mul(f, f);
        let square = self.mul(square, half);
        let (low, high) = (self.at(LN2_LOW), self.at(LN2_HIGH));
        let tail = self.mul(k, low);
        let t = self.add(square, t);
        let tail = self.fma(s, t, tail);
        let tail = self.sub(square, tail);
        let tail = self.sub(f, tail);
        let y = self.fma(k, high, tail);
        // Below 0 there is none, 0 is the pole, and what is not below infinity is infinity or NaN.
        let (nan, lowest, infinity) = (self.at(f64::NAN), self.at(f64::NEG_INFINITY), self.at(f64::INFINITY));
        let is_negative = self.test(Op::Lt, x, zero);
        let y = self.select(Type::F64, is_negative, nan, y);
        let is_zero = self.test(Op::Eq, x, zero);
        let y = self.select(Type::F64, is_zero, lowest, y);
        let is_finite = self.test(Op::Lt, x, infinity);
        self.select(Type::F64, is_finite, y, x)
    }
}
