//! `sort`: ascending order along the last axis.
//!
//! NaN go last, as in NumPy, and keep their bits; -0.0 stands before 0.0.
//!
//! 1. Choice "comparing" is the standard library's unstable sort.
//! 2. Choice "radix" (least significant digit first, eight bits at a time; Knuth, The Art of Computer Programming
//!    3, 5.2.5) sorts the bits of the numbers as unsigned keys and falls back to the first for short lines.
//! 3. Choice "vector" is the quicksort of `simd`, over the same keys made signed. Where there are no lanes, on
//!    other levels and for bytes, it is the second.

use std::cmp::Ordering;

use super::simd::{self, SortKey};
use super::{Call, KernelError, Outcome, elements_mut};
use crate::arrays::{DType, Element};

/// Below so many elements comparing wins: the counting of a radix sort costs as much.
pub(super) const RADIX_MIN: usize = 512;
/// Elements between two beats.
const BLOCK: usize = 1 << 18;
/// Lines longer than this are cut before they are sorted by comparing, so that a beat comes in between.
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
        let vector = call.variant.choice == 2 && T::Bits::HAS_LANES && simd::sorts_in_vectors(call.level());
        let radix = matches!(call.variant.choice, 1 | 2) && !vector && length >= RADIX_MIN;
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
                _ if vector => T::Bits::by_vectors(call, bytemuck::cast_slice_mut(numbers), T::KEY)?,
                Some(spare) => {
                    let spare = &mut elements_mut::<T>(spare)[..numbers.len()];
                    by_radix::<T::Bits>(
                        call,
                        bytemuck::cast_slice_mut(numbers),
                        bytemuck::cast_slice_mut(spare),
                        T::KEY,
                    )?;
                }
                None => by_comparing(call, numbers, T::order)?,
            }
        }
    }
    Ok(Outcome { array: Some(answer), ..Outcome::default() })
}

/// How the bits of a type become an unsigned key of the same order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Unsigned,
    /// The sign bit counts the other way.
    Signed,
    /// As signed, and negative numbers have all their bits turned.
    Float,
}

/// An element that can be sorted.
pub(super) trait Sortable: Element {
    /// The unsigned integer of the same size.
    type Bits: Bits;
    const KEY: Key;
    fn is_nan(self) -> bool;
    fn order(&self, other: &Self) -> Ordering;

    /// The key of this element, which is no NaN.
    #[inline(always)]
    fn key(self) -> Self::Bits {
        bytemuck::cast::<Self, Self::Bits>(self).bits_to_key(Self::KEY)
    }
}

macro_rules! sortable_integer {
    ($($element:ty, $bits:ty, $key:ident;)*) => {
        $(impl Sortable for $element {
            type Bits = $bits;
            const KEY: Key = Key::$key;
            fn is_nan(self) -> bool {
                false
            }
            fn order(&self, other: &Self) -> Ordering {
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
            fn order(&self, other: &Self) -> Ordering {
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
pub(super) fn by_comparing<T>(
    call: &Call<'_>,
    line: &mut [T],
    order: impl Fn(&T, &T) -> Ordering + Copy,
) -> Result<(), KernelError> {
    if line.len() <= COMPARED_MAX {
        line.sort_unstable_by(order);
        return Ok(());
    }
    call.pulse.beat()?;
    let middle = line.len() / 2;
    let (below, _, above) = line.select_nth_unstable_by(middle, order);
    by_comparing(call, below, order)?;
    by_comparing(call, above, order)
}

/// What is sorted by its digits of eight bits.
pub(super) trait Digits: Copy {
    const DIGITS: usize;
    /// The digit at `place`, the least significant being at 0.
    fn digit(self, place: usize) -> usize;
}

/// The unsigned integer that keys of a type are.
pub(super) trait Bits: bytemuck::Pod + Default + Ord + Digits {
    const MAX: Self;
    /// The key of these bits.
    fn bits_to_key(self, key: Key) -> Self;
    /// The bits of this key.
    fn key_to_bits(self, key: Key) -> Self;
    /// The key that stands as far from the end as this one from the start.
    fn reversed(self) -> Self;
    /// Whether there are lanes of integers of this size.
    const HAS_LANES: bool;
    /// Sorts the bits of some numbers in vectors, if there are lanes for them.
    fn by_vectors(call: &Call<'_>, line: &mut [Self], key: Key) -> Result<(), KernelError>;
}

macro_rules! without_lanes {
    ($bits:ty, $signed:ty) => {
        const HAS_LANES: bool = false;
        fn by_vectors(call: &Call<'_>, line: &mut [Self], _: Key) -> Result<(), KernelError> {
            by_comparing(call, line, Ord::cmp)
        }
    };
}

macro_rules! with_lanes {
    ($bits:ty, $signed:ty) => {
        const HAS_LANES: bool = true;
        fn by_vectors(call: &Call<'_>, line: &mut [Self], key: Key) -> Result<(), KernelError> {
            // The first key becomes the first signed integer.
            const FIRST: $bits = 1 << (<$bits>::BITS - 1);
            for block in line.chunks_mut(BLOCK) {
                call.pulse.beat()?;
                block.iter_mut().for_each(|bits| *bits = bits.bits_to_key(key) ^ FIRST);
            }
            by_splitting::<$signed>(call, bytemuck::cast_slice_mut(line), 2 * usize::BITS)?;
            for block in line.chunks_mut(BLOCK) {
                call.pulse.beat()?;
                block.iter_mut().for_each(|bits| *bits = (*bits ^ FIRST).key_to_bits(key));
            }
            Ok(())
        }
    };
}

/// Sorts in vectors; a huge line is split first, at most `splits` times one below the other.
fn by_splitting<K: SortKey>(call: &Call<'_>, line: &mut [K], splits: u32) -> Result<(), KernelError> {
    if line.len() <= COMPARED_MAX {
        simd::sort(call.level(), line);
        return Ok(());
    }
    if splits == 0 {
        return by_comparing(call, line, Ord::cmp);
    }
    call.pulse.beat()?;
    let alike = simd::split(call.level(), line);
    let (below, above) = line.split_at_mut(alike.end);
    by_splitting(call, &mut below[..alike.start], splits - 1)?;
    by_splitting(call, above, splits - 1)
}

macro_rules! bits {
    ($($bits:ty, $signed:ty, $lanes:ident;)*) => {
        $(impl Digits for $bits {
            const DIGITS: usize = size_of::<$bits>();
            #[inline(always)]
            fn digit(self, place: usize) -> usize {
                (self >> (8 * place)) as usize & 0xff
            }
        }
        impl Bits for $bits {
            const MAX: $bits = <$bits>::MAX;
            $lanes! { $bits, $signed }
            #[inline(always)]
            fn reversed(self) -> Self {
                !self
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
bits! { u8, i8, without_lanes; u32, i32, with_lanes; u64, i64, with_lanes; }

/// Sorts `line` with the room of `spare`, which is as long.
fn by_radix<T: Bits>(call: &Call<'_>, line: &mut [T], spare: &mut [T], key: Key) -> Result<(), KernelError> {
    if by_digits(call, line, spare, |bits| bits.bits_to_key(key))? {
        line.iter_mut().zip(spare).for_each(|(to, value)| *to = value.key_to_bits(key));
    } else {
        line.iter_mut().for_each(|value| *value = value.key_to_bits(key));
    }
    Ok(())
}

/// Sorts what `key` makes of the elements of `line`, equal ones in their order, and says whether they ended in
/// `spare`, which is as long.
pub(super) fn by_digits<T: Digits>(
    call: &Call<'_>,
    line: &mut [T],
    spare: &mut [T],
    key: impl Fn(T) -> T,
) -> Result<bool, KernelError> {
    // One pass counts the digits of all places; a place where all are alike needs no pass of its own.
    let mut counts = [[0_usize; 256]; 8];
    for block in line.chunks_mut(BLOCK) {
        call.pulse.beat()?;
        for value in block {
            *value = key(*value);
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
    Ok(swapped)
}
