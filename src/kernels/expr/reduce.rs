//! What a reduction has seen so far, and the value it comes to.

use bytemuck::Pod;

use super::graph::Type;
use super::interpret::{greatest, least};
use super::parse::Reduction;
use crate::kernels::Total;

/// The reduction of some elements.
#[derive(Clone, Copy)]
pub struct Running {
    how: Reduction,
    pub value: Value,
}

/// Its value, as wide as its type allows.
#[derive(Clone, Copy)]
pub enum Value {
    /// Of integers; wraps.
    Whole(i64),
    /// Of real numbers: a sum, or an extreme.
    Real(Total),
    /// Whether any was true.
    Any(bool),
}

impl Running {
    /// Of no elements.
    pub fn new(how: Reduction, ty: Type) -> Running {
        let value = match (how, ty.is_float()) {
            (Reduction::Any | Reduction::All, _) => Value::Any(false),
            (_, false) => Value::Whole(neutral(how, ty) as i64),
            (_, true) => {
                let mut total = Total::default();
                total.add(wide(ty, neutral(how, ty)));
                Value::Real(total)
            }
        };
        Running { how, value }
    }

    /// Takes elements in, given as their bytes; booleans as bytes or, from compiled code, as any bits.
    pub fn absorb(&mut self, ty: Type, bytes: &[u8]) {
        match (&mut self.value, ty) {
            (Value::Any(any), _) => *any |= bytes.iter().any(|&byte| byte != 0),
            (Value::Whole(value), Type::I32) => {
                fold_whole(self.how, value, elements::<i32>(bytes).map(i64::from))
            }
            (Value::Whole(value), _) => fold_whole(self.how, value, elements::<i64>(bytes)),
            (Value::Real(value), Type::F32) => {
                fold_real(self.how, value, elements::<f32>(bytes).map(f64::from))
            }
            (Value::Real(value), _) => fold_real(self.how, value, elements::<f64>(bytes)),
        }
    }
}

fn elements<T: Pod>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

fn fold_whole(how: Reduction, value: &mut i64, elements: impl Iterator<Item = i64>) {
    *value = match how {
        Reduction::Min => elements.fold(*value, i64::min),
        Reduction::Max => elements.fold(*value, i64::max),
        _ => elements.fold(*value, i64::wrapping_add),
    }
}

fn fold_real(how: Reduction, value: &mut Total, elements: impl Iterator<Item = f64>) {
    let extreme = match how {
        Reduction::Min => elements.fold(value.value(), |all, one| least(one, all)),
        Reduction::Max => elements.fold(value.value(), |all, one| greatest(one, all)),
        _ => {
            // Blocks are short; what rounding takes away inside one is small, and between them it is kept.
            value.add(elements.sum());
            return;
        }
    };
    *value = Total::default();
    value.add(extreme);
}

fn wide(ty: Type, bits: u64) -> f64 {
    if ty == Type::F32 { f64::from(f32::from_bits(bits as u32)) } else { f64::from_bits(bits) }
}

/// The bits of the value that changes no reduction. What 64-bit sums of smaller integers begin with is the
/// same in any width.
pub fn neutral(how: Reduction, ty: Type) -> u64 {
    match (how, ty) {
        (Reduction::Min, Type::I32) => i32::MAX as u64,
        (Reduction::Min, Type::I64) => i64::MAX as u64,
        (Reduction::Max, Type::I32) => i64::from(i32::MIN) as u64,
        (Reduction::Max, Type::I64) => i64::MIN as u64,
        (Reduction::Min, Type::F32) => u64::from(f32::INFINITY.to_bits()),
        (Reduction::Min, Type::F64) => f64::INFINITY.to_bits(),
        (Reduction::Max, Type::F32) => u64::from(f32::NEG_INFINITY.to_bits()),
        (Reduction::Max, Type::F64) => f64::NEG_INFINITY.to_bits(),
        _ => 0,
    }
}
