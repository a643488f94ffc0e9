//! `sort`: ascending order along the last axis.
//!
//! NaN go last, as in NumPy, and keep their bits; -0.0 stands before 0.0. Choice "comparing" is the standard
//! library's unstable sort; choice "radix" (least significant digit first, eight bits at a time; Knuth, The
//! Art of Computer Programming 3, 5.2.5) sorts the bits of the numbers as unsigned keys and falls back to the
//! first for short lines.

use super::{Call, KernelError, Outcome, elements_mut};
use crate::arrays::{DType, Element};

/// Below so many elements comparing wins: the counting of a radix sort costs as much.
const RADIX_MIN: usize = 512;
/// Elements between two beats.
const BLOCK: usize = 1 << 18;
/// Lines longer than this are cut by selection before they are compared, so that a beat comes in between.
const COMPARED_MAX: usize = 1 << 18;

/// The answer has the input's shape and type.
pub(super) fn sort(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => sort_of::<f32>(call),
        DType::F64 => sort_of::<f64>(call),
        DType::I32 => sort_of::<i32>(call),
        DType::I64 => sort_of::<i64>(call),
        DType::U8 => sort_of::<u8>(call),
        DType::U32 => sort_of::<u32>(call),
        _ => sort_of::<u64>(call),
    }
}

fn sort_of<T: Sortable>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let input = call.slice::<T>(0)?;
    let shape = call.inputs[0].shape();
    let Some(&length) = shape.last() else {
        return Err(call.wrong_shape(0, "one axis or more"));
    };
    let mut answer = call.answer(T::DTYPE, shape)?;
    let out = elements_mut::<T>(&mut answer);
    out.copy_from_slice(input);
    if length > 1 && !out.is_empty() {
        let radix = call.variant.choice == 1 && length >= RADIX_MIN;
        // Spare room for the digits; an array, because it comes from warm memory when there is some.
        let mut spare = if radix { Some(call.answer(T::DTYPE, &[length])?) } else { None };
        let mut since_beat = BLOCK;
        for line in out.chunks_mut(length) {
            since_beat += length;
            if since_beat >= BLOCK {
                call.pulse.beat()?;
                since_beat = 0;
            }
            let numbers = nan_last(line);
            match &mut spare {
                Some(spare) => {
                    let spare = &mut elements_mut::<T>(spare)[..numbers.len()];
                    by_radix::<T::Bits>(
                        call,
                        bytemuck::cast_slice_mut(numbers),
                        bytemuck::cast_slice_mut(spare),
                        T::KEY,
                    )?;
                }
                None => by_comparing(call, numbers)?,
            }
        }
    }
    Ok(Outcome { array: Some(answer), ..Outcome::default() })
}

/// How the bits of a type become an unsigned key of the same order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Unsigned,
    /// The sign bit counts the other way.
    Signed,
    /// As signed, and negative numbers have all their bits turned.
    Float,
}

/// An element that can be sorted.
trait Sortable: Element {
    /// The unsigned integer of the same size.
    type Bits: Bits;
    const KEY: Key;
    fn is_nan(self) -> bool;
    fn order(&self, other: &Self) -> std::cmp::Ordering;
}

macro_rules! sortable_integer {
    ($($element:ty, $bits:ty, $key:ident;)*) => {
        $(impl Sortable for $element {
            type Bits = $bits;
            const KEY: Key = Key::$key;
            fn is_nan(self) -> bool {
                false
            }
            fn order(&self, other: &Self) -> std::cmp::Ordering {
                self.cmp(other)
            }
        })*
    };
}
sortable_integer! {
    u8, u8, Unsigned;
    u32, u32, Unsigned;
    u64, u64, Unsigned;
    i32, u32, Signed;
    i64, u64, Signed;
}

macro_rules! sortable_float {
    ($($element:ty, $bits:ty;)*) => {
        $(impl Sortable for $element {
            type Bits = $bits;
            const KEY: Key = Key::Float;
            fn is_nan(self) -> bool {
                <$element>::is_nan(self)
            }
            fn order(&self, other: &Self) -> std::cmp::Ordering {
                self.total_cmp(other)
            }
        })*
    };
}
sortable_float! { f32, u32; f64, u64; }

/// Moves NaN to the end and gives the rest.
fn nan_last<T: Sortable>(line: &mut [T]) -> &mut [T] {
    if T::KEY != Key::Float {
        return line;
    }
    let mut end = line.len();
    let mut index = 0;
    while index < end {
        if line[index].is_nan() {
            end -= 1;
            line.swap(index, end);
        } else {
            index += 1;
        }
    }
    &mut line[..end]
}

/// Compares; a huge line is halved around its median first. No recursion deeper than the logarithm of its
/// length.
fn by_comparing<T: Sortable>(call: &Call<'_>, line: &mut [T]) -> Result<(), KernelError> {
    if line.len() <= COMPARED_MAX {
        line.sort_unstable_by(T::order);
        return Ok(());
    }
    call.pulse.beat()?;
    let middle = line.len() / 2;
    let (below, _, above) = line.select_nth_unstable_by(middle, T::order);
    by_comparing(call, below)?;
    by_comparing(call, above)
}

/// An unsigned integer of which digits are taken.
trait Bits: bytemuck::Pod + Ord {
    const DIGITS: usize;
    fn digit(self, index: usize) -> usize;
    /// The key of these bits.
    fn bits_to_key(self, key: Key) -> Self;
    /// The bits of this key.
    fn key_to_bits(self, key: Key) -> Self;
}

macro_rules! bits {
    ($($bits:ty, $signed:ty;)*) => {
        $(impl Bits for $bits {
            const DIGITS: usize = size_of::<$bits>();
            #[inline(always)]
            fn digit(self, index: usize) -> usize {
                (self >> (8 * index)) as usize & 0xff
            }
            #[inline(always)]
            fn bits_to_key(self, key: Key) -> Self {
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                match key {
                    Key::Unsigned => self,
                    Key::Signed => self ^ SIGN,
                    // All ones where the number is negative, else only the sign.
                    Key::Float => self ^ ((self as $signed >> (<$bits>::BITS - 1)) as $bits | SIGN),
                }
            }
            #[inline(always)]
            fn key_to_bits(self, key: Key) -> Self {
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                match key {
                    Key::Unsigned => self,
                    Key::Signed => self ^ SIGN,
                    Key::Float => self ^ ((!self as $signed >> (<$bits>::BITS - 1)) as $bits | SIGN),
                }
            }
        })*
    };
}
bits! { u8, i8; u32, i32; u64, i64; }

/// Sorts `line` with the room of `spare`, which is as long.
fn by_radix<T: Bits>(call: &Call<'_>, line: &mut [T], spare: &mut [T], key: Key) -> Result<(), KernelError> {
    // One pass counts the digits of all places; a place where all are alike needs no pass of its own.
    let mut counts = [[0_usize; 256]; 8];
    for block in line.chunks_mut(BLOCK) {
        call.pulse.beat()?;
        for value in block {
            *value = value.bits_to_key(key);
            for (place, counts) in counts.iter_mut().enumerate().take(T::DIGITS) {
                counts[value.digit(place)] += 1;
            }
        }
    }
    let (mut from, mut to) = (line, spare);
    let mut swapped = false;
    for (place, counts) in counts.iter().enumerate().take(T::DIGITS) {
        let alike = from.first().is_none_or(|first| counts[first.digit(place)] == from.len());
        if alike {
            continue;
        }
        let mut next = [0_usize; 256];
        let mut start = 0;
        for (next, count) in next.iter_mut().zip(counts) {
            *next = start;
            start += count;
        }
        for block in from.chunks(BLOCK) {
            call.pulse.beat()?;
            for &value in block {
                let next = &mut next[value.digit(place)];
                to[*next] = value;
                *next += 1;
            }
        }
        std::mem::swap(&mut from, &mut to);
        swapped = !swapped;
    }
    if swapped {
        // `from` is the spare room now, `to` the line.
        to.iter_mut().zip(from.iter()).for_each(|(to, value)| *to = value.key_to_bits(key));
    } else {
        from.iter_mut().for_each(|value| *value = value.key_to_bits(key));
    }
    Ok(())
}
