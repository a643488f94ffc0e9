//! `argsort` and `top_k`: where the elements of the last axis stand in order.
//!
//! Both rank pairs of a key and a place. The key is an unsigned integer of the element's order (see `sort`), that
//! of NaN the last one. Pairs differ in their places at least, so the order of equal elements is theirs.

use serde_json::json;

use super::sort::{Bits, Digits, RADIX_MIN, Sortable, by_comparing, by_digits};
use super::{BLOCK, Call, KernelError, Outcome, Pace, elements_mut};
use crate::arrays::{DType, Element};

/// How the file of the places ends: [`super::extra_path`] puts it beside the output.
pub const PLACES_SUFFIX: &str = ".places.npy";

/// Elements looked at together; most hold none of the best, and one test says so.
const GLANCE: usize = 64;
/// Candidates gathered beyond k before the best are picked out of them, at least.
const SPARE_MIN: usize = 1024;

/// An element's key and place.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked<K, P> {
    key: K,
    place: P,
}

impl<K: Digits, P: Copy> Digits for Ranked<K, P> {
    const DIGITS: usize = K::DIGITS;
    #[inline(always)]
    fn digit(self, place: usize) -> usize {
        self.key.digit(place)
    }
}

/// A place in a line, as small as the line allows: pairs of it are moved many times.
trait Place: Copy + Default + Ord {
    fn of(index: usize) -> Self;
    fn index(self) -> usize;
}

macro_rules! places {
    ($($place:ty),*) => {
        $(impl Place for $place {
            #[inline(always)]
            fn of(index: usize) -> Self {
                index as $place
            }
            #[inline(always)]
            fn index(self) -> usize {
                self as usize
            }
        })*
    };
}
places!(u32, u64);

#[inline(always)]
fn key_of<T: Sortable>(value: T) -> T::Bits {
    if value.is_nan() { T::Bits::MAX } else { value.key() }
}

/// The last axis of input 0.
fn length_of(call: &Call<'_>) -> Result<usize, KernelError> {
    call.inputs[0].shape().last().copied().ok_or_else(|| call.wrong_shape(0, "one axis or more"))
}

macro_rules! by_dtype {
    ($call:ident, $function:ident) => {
        match $call.inputs[0].dtype() {
            DType::F32 => $function::<f32>($call),
            DType::F64 => $function::<f64>($call),
            DType::I32 => $function::<i32>($call),
            DType::I64 => $function::<i64>($call),
            DType::U8 => $function::<u8>($call),
            DType::U32 => $function::<u32>($call),
            _ => $function::<u64>($call),
        }
    };
}

/// The answer has the input's shape and is `i64`.
pub(super) fn argsort(call: &Call<'_>) -> Result<Outcome, KernelError> {
    by_dtype!(call, argsort_of)
}

fn argsort_of<T: Sortable>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let length = length_of(call)?;
    if u32::try_from(length).is_ok() {
        argsort_by::<T, u32>(call, length)
    } else {
        argsort_by::<T, u64>(call, length)
    }
}

fn argsort_by<T: Sortable, P: Place>(call: &Call<'_>, length: usize) -> Result<Outcome, KernelError> {
    let input = call.slice::<T>(0)?;
    let mut answer = call.answer(DType::I64, call.inputs[0].shape())?;
    let out = elements_mut::<i64>(&mut answer);
    call.pulse.beat()?;
    if !out.is_empty() {
        let radix = call.variant.choice == 1 && length >= RADIX_MIN;
        let mut pairs: Vec<Ranked<T::Bits, P>> = call.space(length)?;
        let mut spare: Vec<Ranked<T::Bits, P>> = call.space(if radix { length } else { 0 })?;
        let mut pace = Pace::new(call);
        for (line, out) in input.chunks(length).zip(out.chunks_mut(length)) {
            for (start, (line, pairs)) in
                (0..).step_by(BLOCK).zip(line.chunks(BLOCK).zip(pairs.chunks_mut(BLOCK)))
            {
                pace.step(line.len())?;
                for (index, (&value, pair)) in (start..).zip(line.iter().zip(pairs)) {
                    *pair = Ranked { key: key_of(value), place: P::of(index) };
                }
            }
            let in_spare = if radix {
                by_digits(call, &mut pairs, &mut spare, |pair| pair)?
            } else {
                by_comparing(call, &mut pairs, Ord::cmp)?;
                false
            };
            let sorted = if in_spare { &spare } else { &pairs };
            for (out, pairs) in out.chunks_mut(BLOCK).zip(sorted.chunks(BLOCK)) {
                pace.step(out.len())?;
                out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = pair.place.index() as i64);
            }
        }
    }
    Ok(Outcome { array: Some(answer), ..Outcome::default() })
}

/// Array: the elements, in the input's type, with `k` as the last axis. Extra [`PLACES_SUFFIX`]: their places
/// along that axis, `i64`. Result: `k`, `order`.
pub(super) fn top_k(call: &Call<'_>) -> Result<Outcome, KernelError> {
    by_dtype!(call, top_k_of)
}

fn top_k_of<T: Sortable>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let input = call.slice::<T>(0)?;
    let length = length_of(call)?;
    let k = call.params.count("k");
    if k > length {
        return Err(call.wrong_shape(0, format!("a last axis of {k} or more elements, because k is {k}")));
    }
    let mut shape = call.inputs[0].shape().to_vec();
    *shape.last_mut().expect("an axis, by its length") = k;
    let mut values = call.answer(T::DTYPE, &shape)?;
    let mut places = call.answer(DType::I64, &shape)?;
    call.pulse.beat()?;
    let mut best = Best::<T::Bits> { k, kept: call.space(k.saturating_add(k.max(SPARE_MIN)).min(length))? };
    let mut pace = Pace::new(call);
    let answers =
        elements_mut::<T>(&mut values).chunks_mut(k).zip(elements_mut::<i64>(&mut places).chunks_mut(k));
    // Without a line there is no answer either, and `length` is k or more, so above 0.
    for (line, (values, places)) in input.chunks(length).zip(answers) {
        if call.params.word("order") == "smallest" {
            best.fill(&mut pace, line, key_of)?;
        } else {
            best.fill(
                &mut pace,
                line,
                |value: T| {
                    if value.is_nan() { T::Bits::MAX } else { value.key().reversed() }
                },
            )?;
        }
        by_comparing(call, &mut best.kept, Ord::cmp)?;
        for ((value, place), pair) in values.iter_mut().zip(places).zip(&best.kept) {
            *value = line[pair.place.index()];
            *place = pair.place.index() as i64;
        }
    }
    Ok(Outcome {
        array: Some(values),
        extra: vec![(PLACES_SUFFIX, places)],
        result: Some(json!({"k": k, "order": call.params.word("order")})),
        ..Outcome::default()
    })
}

/// The `k` first pairs of a line, and some that were while it was read. Its room is taken once.
struct Best<K> {
    k: usize,
    kept: Vec<Ranked<K, u64>>,
}

impl<K: Bits> Best<K> {
    /// Keeps the first `k` of `line`, in no order.
    fn fill<T: Element>(
        &mut self,
        pace: &mut Pace<'_>,
        line: &[T],
        key: impl Fn(T) -> K,
    ) -> Result<(), KernelError> {
        let room = self.kept.capacity();
        self.kept.clear();
        let (first, rest) = line.split_at(self.k);
        for (blocks, place) in first.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            pace.step(blocks.len())?;
            self.kept.extend((place..).zip(blocks).map(|(place, &value)| Ranked { key: key(value), place }));
        }
        let mut worst = self.kept.iter().map(|pair| pair.key).max().unwrap_or(K::MAX);
        for (glance, start) in rest.chunks(GLANCE).zip((self.k as u64..).step_by(GLANCE)) {
            pace.step(glance.len())?;
            // What equals the worst that is kept comes after it. No short cut: this way it is vector code.
            if !glance.iter().fold(false, |found, &value| found | (key(value) < worst)) {
                continue;
            }
            for (place, &value) in (start..).zip(glance) {
                let key = key(value);
                if key < worst {
                    if self.kept.len() == room {
                        worst = self.shrink();
                    }
                    self.kept.push(Ranked { key, place });
                }
            }
        }
        self.shrink();
        Ok(())
    }

    /// Drops all but the first `k` and gives the key of the last of them.
    fn shrink(&mut self) -> K {
        let (_, last, _) = self.kept.select_nth_unstable(self.k - 1);
        let worst = last.key;
        self.kept.truncate(self.k);
        worst
    }
}
