//! The scalar form: every operation of a program over blocks of elements, one operation after the other.
//!
//! It is the reference that compiled code is checked against, computes constants, serves processors without a
//! compiler of ours, and takes over where compiled code says that its argument reduction does not reach.
//! Functions are the standard library's.

use bytemuck::Pod;

use super::graph::{Node, Op, Program, Type};
use super::reduce::Running;

/// Elements of a block: the values of a usual expression stay in the first-level cache.
pub const BLOCK: usize = 512;

/// One input of a run over consecutive elements.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub bytes: &'a [u8],
    /// Whether the one element stands for all.
    pub repeated: bool,
}

/// A block of elements of any type, from its first byte on.
type Slot = Vec<u64>;

fn of<T: Pod>(slot: &[u64]) -> &[T] {
    bytemuck::cast_slice(slot)
}

fn of_mut<T: Pod>(slot: &mut [u64]) -> &mut [T] {
    bytemuck::cast_slice_mut(slot)
}

/// A program with room for its values, to be run many times.
pub struct Interpreter<'p> {
    program: &'p Program,
    slots: Vec<Slot>,
}

impl<'p> Interpreter<'p> {
    pub fn new(program: &'p Program) -> Interpreter<'p> {
        let mut slots = vec![vec![0; BLOCK]; program.nodes.len()];
        for (node, slot) in program.nodes.iter().zip(&mut slots) {
            if let Op::Const(bits) = node.op {
                fill(node.ty, slot, bits);
            }
        }
        Interpreter { program, slots }
    }

    /// Computes `count` elements into `output`, or into `running` when the program reduces.
    pub fn run(&mut self, inputs: &[Source<'_>], count: usize, output: &mut [u8], running: &mut Running) {
        for start in (0..count).step_by(BLOCK) {
            let length = BLOCK.min(count - start);
            for (id, node) in self.program.nodes.iter().enumerate() {
                if matches!(node.op, Op::Const(_)) {
                    continue;
                }
                let mut out = std::mem::take(&mut self.slots[id]);
                match node.op {
                    Op::Input(index) => load(node.ty, inputs[usize::from(index)], start, length, &mut out),
                    _ => {
                        let arg = |place: usize| &self.slots[node.args[place]][..];
                        let from = self.program.nodes[node.args[0]].ty;
                        apply(node, from, [arg(0), arg(1), arg(2)], &mut out, length);
                    }
                }
                self.slots[id] = out;
            }
            let root = &self.slots[self.program.root];
            let ty = self.program.nodes[self.program.root].ty;
            let bytes = &bytemuck::cast_slice::<u64, u8>(root)[..length * ty.size()];
            match self.program.reduction {
                Some(_) => running.absorb(ty, bytes),
                None => output[start * ty.size()..][..bytes.len()].copy_from_slice(bytes),
            }
        }
    }
}

fn fill(ty: Type, slot: &mut [u64], bits: u64) {
    match ty.size() {
        1 => of_mut::<u8>(slot)[..BLOCK].fill(bits as u8),
        4 => of_mut::<u32>(slot)[..BLOCK].fill(bits as u32),
        _ => slot.fill(bits),
    }
}

fn load(ty: Type, source: Source<'_>, start: usize, length: usize, out: &mut [u64]) {
    let size = ty.size();
    if source.repeated {
        let mut bits = [0; 8];
        bits[..size].copy_from_slice(&source.bytes[..size]);
        fill(ty, out, u64::from_ne_bytes(bits));
    } else {
        let bytes = &source.bytes[start * size..][..length * size];
        of_mut::<u8>(out)[..bytes.len()].copy_from_slice(bytes);
    }
}

/// The value of `op` on constants.
pub fn fold(op: Op, ty: Type, from: Type, args: &[u64]) -> u64 {
    let mut places = [[0_u64; 1]; 3];
    for (place, bits) in places.iter_mut().zip(args) {
        // The first element of a narrower type stands in the first bytes.
        place[0] =
            if cfg!(target_endian = "little") { *bits } else { bits.rotate_right(8 * from.size() as u32) };
    }
    let mut out = [0_u64; 1];
    let node = Node { op, ty, args: [0; 3] };
    apply(&node, from, [&places[0], &places[1], &places[2]], &mut out, 1);
    if cfg!(target_endian = "little") { out[0] } else { out[0].rotate_left(8 * ty.size() as u32) }
}

/// The numbers of elements and what the operations mean on them.
trait Number: Pod + PartialOrd {
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
}

macro_rules! numbers {
    ($($float:ty),*; $($int:ty),*) => {
        $(impl Number for $float {
            fn add(self, other: Self) -> Self { self + other }
            fn sub(self, other: Self) -> Self { self - other }
            fn mul(self, other: Self) -> Self { self * other }
            fn neg(self) -> Self { -self }
            fn abs(self) -> Self { self.abs() }
        })*
        $(impl Number for $int {
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn neg(self) -> Self { self.wrapping_neg() }
            fn abs(self) -> Self { self.wrapping_abs() }
        })*
    };
}
numbers!(f32, f64; i32, i64);

/// The lesser of both, NaN when one is.
#[allow(clippy::eq_op, reason = "only NaN differs from itself, in whatever type")]
pub fn least<T: PartialOrd + Copy>(a: T, b: T) -> T {
    if a != a || a < b { a } else { b }
}

/// The greater of both, NaN when one is.
#[allow(clippy::eq_op, reason = "only NaN differs from itself, in whatever type")]
pub fn greatest<T: PartialOrd + Copy>(a: T, b: T) -> T {
    if a != a || a > b { a } else { b }
}

fn map<T: Pod, U: Pod>(a: &[u64], out: &mut [u64], length: usize, f: impl Fn(T) -> U) {
    for (out, &a) in of_mut::<U>(out)[..length].iter_mut().zip(of::<T>(a)) {
        *out = f(a);
    }
}

fn zip<T: Pod, U: Pod>(a: [&[u64]; 3], out: &mut [u64], length: usize, f: impl Fn(T, T) -> U) {
    for ((out, &a), &b) in of_mut::<U>(out)[..length].iter_mut().zip(of::<T>(a[0])).zip(of::<T>(a[1])) {
        *out = f(a, b);
    }
}

fn apply(node: &Node, from: Type, a: [&[u64]; 3], out: &mut [u64], length: usize) {
    match (node.op, from) {
        (Op::Select, _) => select(node.ty, a, out, length),
        (Op::Cast, _) => cast(from, node.ty, a[0], out, length),
        (_, Type::Bool) => logic(node.op, a, out, length),
        (_, Type::I32) => number::<i32>(node.op, a, out, length),
        (_, Type::I64) => number::<i64>(node.op, a, out, length),
        (_, Type::F32) => {
            // Functions of f32 are those of f64, rounded once.
            let wide = |f: fn(f64) -> f64| move |x: f32| f(f64::from(x)) as f32;
            match node.op {
                Op::Div => zip(a, out, length, |a: f32, b: f32| a / b),
                Op::Sqrt => map(a[0], out, length, f32::sqrt),
                Op::Floor => map(a[0], out, length, f32::floor),
                Op::Ceil => map(a[0], out, length, f32::ceil),
                Op::Exp => map(a[0], out, length, wide(f64::exp)),
                Op::Log => map(a[0], out, length, wide(f64::ln)),
                Op::Sin => map(a[0], out, length, wide(f64::sin)),
                Op::Cos => map(a[0], out, length, wide(f64::cos)),
                Op::Tanh => map(a[0], out, length, wide(f64::tanh)),
                op => number::<f32>(op, a, out, length),
            }
        }
        (_, Type::F64) => match node.op {
            Op::Div => zip(a, out, length, |a: f64, b: f64| a / b),
            Op::Sqrt => map(a[0], out, length, f64::sqrt),
            Op::Floor => map(a[0], out, length, f64::floor),
            Op::Ceil => map(a[0], out, length, f64::ceil),
            Op::Exp => map(a[0], out, length, f64::exp),
            Op::Log => map(a[0], out, length, f64::ln),
            Op::Sin => map(a[0], out, length, f64::sin),
            Op::Cos => map(a[0], out, length, f64::cos),
            Op::Tanh => map(a[0], out, length, f64::tanh),
            op => number::<f64>(op, a, out, length),
        },
    }
}

fn number<T: Number>(op: Op, a: [&[u64]; 3], out: &mut [u64], length: usize) {
    match op {
        Op::Add => zip(a, out, length, T::add),
        Op::Sub => zip(a, out, length, T::sub),
        Op::Mul => zip(a, out, length, T::mul),
        Op::Min => zip(a, out, length, least::<T>),
        Op::Max => zip(a, out, length, greatest::<T>),
        Op::Neg => map(a[0], out, length, T::neg),
        Op::Abs => map(a[0], out, length, T::abs),
        Op::Eq => zip(a, out, length, |a: T, b: T| u8::from(a == b)),
        Op::Ne => zip(a, out, length, |a: T, b: T| u8::from(a != b)),
        Op::Lt => zip(a, out, length, |a: T, b: T| u8::from(a < b)),
        Op::Le => zip(a, out, length, |a: T, b: T| u8::from(a <= b)),
        op => unreachable!("the type check lets no {op:?} through"),
    }
}

fn logic(op: Op, a: [&[u64]; 3], out: &mut [u64], length: usize) {
    match op {
        Op::And => zip(a, out, length, |a: u8, b: u8| a & b),
        Op::Or => zip(a, out, length, |a: u8, b: u8| a | b),
        Op::Not => map(a[0], out, length, |a: u8| a ^ 1),
        op => unreachable!("the type check lets no {op:?} of bool through"),
    }
}

fn select(ty: Type, a: [&[u64]; 3], out: &mut [u64], length: usize) {
    fn of_bits<T: Pod>(a: [&[u64]; 3], out: &mut [u64], length: usize) {
        let choices = of::<u8>(a[0]).iter().zip(of::<T>(a[1])).zip(of::<T>(a[2]));
        for (out, ((&condition, &yes), &no)) in of_mut::<T>(out)[..length].iter_mut().zip(choices) {
            *out = if condition != 0 { yes } else { no };
        }
    }
    match ty.size() {
        4 => of_bits::<u32>(a, out, length),
        _ => of_bits::<u64>(a, out, length),
    }
}

/// Toward zero; what has no place in the type becomes its least number, as the processors' instruction says.
fn to_i32(value: f64) -> i32 {
    if value > -2_147_483_649.0 && value < 2_147_483_648.0 { value as i32 } else { i32::MIN }
}

fn to_i64(value: f64) -> i64 {
    let limit = 9_223_372_036_854_775_808.0;
    if (-limit..limit).contains(&value) { value as i64 } else { i64::MIN }
}

fn cast(from: Type, to: Type, a: &[u64], out: &mut [u64], length: usize) {
    use Type::{Bool, F32, F64, I32, I64};
    match (from, to) {
        (Bool, I32) => map(a, out, length, |a: u8| i32::from(a)),
        (Bool, I64) => map(a, out, length, |a: u8| i64::from(a)),
        (Bool, F32) => map(a, out, length, |a: u8| f32::from(a)),
        (Bool, F64) => map(a, out, length, |a: u8| f64::from(a)),
        (I32, I64) => map(a, out, length, |a: i32| i64::from(a)),
        (I32, F32) => map(a, out, length, |a: i32| a as f32),
        (I32, F64) => map(a, out, length, |a: i32| f64::from(a)),
        (I64, I32) => map(a, out, length, |a: i64| a as i32),
        (I64, F32) => map(a, out, length, |a: i64| a as f32),
        (I64, F64) => map(a, out, length, |a: i64| a as f64),
        (F32, I32) => map(a, out, length, |a: f32| to_i32(f64::from(a))),
        (F32, I64) => map(a, out, length, |a: f32| to_i64(f64::from(a))),
        (F32, F64) => map(a, out, length, |a: f32| f64::from(a)),
        (F64, I32) => map(a, out, length, to_i32),
        (F64, I64) => map(a, out, length, to_i64),
        (F64, F32) => map(a, out, length, |a: f64| a as f32),
        (_, Bool) => unreachable!("a cast to bool is a comparison with zero"),
        (I32, I32) | (I64, I64) | (F32, F32) | (F64, F64) => unreachable!("such a cast is nothing"),
    }
}
