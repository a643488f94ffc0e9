//! `histogram`: counts in equal bins.

use serde_json::json;

use super::simd::{self, SimdElem};
use super::{BLOCK, Call, KernelError, Outcome, elements_mut, number};
use crate::arrays::{DType, Element};

/// Integers are widened to `f64` in blocks of so many.
const WIDEN: usize = 4096;

/// Array: `u64` counts `(bins,)`. Result: `min` and `max` (the edges used), `total` (counted), `ignored`
/// (outside, or NaN).
///
/// NumPy's rule: bin `i` takes `edge[i] <= x < edge[i + 1]`, the last one its right edge as well. An edge
/// that is not given is the least or greatest element that is not NaN; without one the range is 0 to 1, and a
/// range of no width grows by 0.5 on both sides. Integers are compared as `f64`, exact up to 2^53.
pub(super) fn histogram(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => of_floats::<f32>(call),
        DType::F64 => of_floats::<f64>(call),
        DType::I32 => of_integers::<i32>(call, f64::from),
        DType::I64 => of_integers::<i64>(call, |value| value as f64),
        DType::U32 => of_integers::<u32>(call, f64::from),
        DType::U64 => of_integers::<u64>(call, |value| value as f64),
        _ => of_bytes(call),
    }
}

fn of_floats<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let x = call.slice::<T>(0)?;
    let range = range(call, || {
        let mut ends: Option<(f64, f64)> = None;
        for block in x.chunks(BLOCK) {
            call.pulse.beat()?;
            let (low, high) =
                (simd::min(call.level(), block).to_f64(), simd::max(call.level(), block).to_f64());
            // A NaN hides the others; then they are looked at one by one.
            let found = if low.is_nan() {
                ends_of(block.iter().map(|value| value.to_f64()).filter(|value| !value.is_nan()))
            } else {
                Some((low, high))
            };
            ends = joined(ends, found);
        }
        Ok(ends)
    })?;
    count(call, range, x.len(), |counts, sub_tables| {
        let mut ignored = 0;
        for block in x.chunks(BLOCK) {
            call.pulse.beat()?;
            ignored += simd::histogram(call.level(), block, range.0, range.1, counts, sub_tables);
        }
        Ok(ignored)
    })
}

fn of_integers<T: Element>(call: &Call<'_>, widen: impl Fn(T) -> f64 + Copy) -> Result<Outcome, KernelError> {
    let x = call.slice::<T>(0)?;
    let range = range(call, || {
        let mut ends = None;
        for block in x.chunks(BLOCK) {
            call.pulse.beat()?;
            ends = joined(ends, ends_of(block.iter().map(|&value| widen(value))));
        }
        Ok(ends)
    })?;
    count(call, range, x.len(), |counts, sub_tables| {
        let mut ignored = 0;
        let mut wide = [0.0; WIDEN];
        for block in x.chunks(BLOCK) {
            call.pulse.beat()?;
            for part in block.chunks(WIDEN) {
                let wide = &mut wide[..part.len()];
                wide.iter_mut().zip(part).for_each(|(wide, &value)| *wide = widen(value));
                ignored += simd::histogram(call.level(), wide, range.0, range.1, counts, sub_tables);
            }
        }
        Ok(ignored)
    })
}

fn of_bytes(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let x = call.slice::<u8>(0)?;
    let range = range(call, || {
        let (least, greatest) = (x.iter().min(), x.iter().max());
        Ok(least.zip(greatest).map(|(&least, &greatest)| (f64::from(least), f64::from(greatest))))
    })?;
    count(call, range, x.len(), |counts, sub_tables| {
        let mut ignored = 0;
        for block in x.chunks(BLOCK) {
            call.pulse.beat()?;
            ignored += simd::histogram_u8(block, range.0, range.1, counts, sub_tables);
        }
        Ok(ignored)
    })
}

type Ends = Option<(f64, f64)>;

fn ends_of(values: impl Iterator<Item = f64>) -> Ends {
    values.fold(None, |ends, value| joined(ends, Some((value, value))))
}

fn joined(a: Ends, b: Ends) -> Ends {
    match (a, b) {
        (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
        (ends, None) | (None, ends) => ends,
    }
}

/// The edges to use; `find` is asked only when one is not given.
fn range(
    call: &Call<'_>,
    find: impl FnOnce() -> Result<Ends, KernelError>,
) -> Result<(f64, f64), KernelError> {
    let (mut low, mut high) = match (call.params.float("min"), call.params.float("max")) {
        (Some(low), Some(high)) => (low, high),
        (low, high) => {
            let (least, greatest) = find()?.unwrap_or((low.unwrap_or(0.0), high.unwrap_or(1.0)));
            (low.unwrap_or(least), high.unwrap_or(greatest))
        }
    };
    if low > high {
        let problem = format!("no element lies in the range asked for: `min` is {low}, `max` is {high}");
        return Err(call.wrong_value(problem));
    }
    if low == high && low.is_finite() {
        // Beyond 2^52 half a unit is lost, and the next numbers have to do.
        (low, high) = ((low - 0.5).min(low.next_down()), (high + 0.5).max(high.next_up()));
    }
    if !(high - low).is_finite() {
        let problem = format!(
            "the range of the data is {low} to {high}; give a finite `min` and `max` for data with infinite or extreme elements"
        );
        return Err(call.wrong_value(problem));
    }
    Ok((low, high))
}

fn count(
    call: &Call<'_>,
    (low, high): (f64, f64),
    elements: usize,
    fill: impl FnOnce(&mut [u64], bool) -> Result<u64, KernelError>,
) -> Result<Outcome, KernelError> {
    let bins = call.params.count("bins");
    let mut answer = call.answer(DType::U64, &[bins])?;
    let counts = elements_mut::<u64>(&mut answer);
    counts.fill(0);
    let ignored = fill(counts, call.variant.choice == 1)?;
    let result = json!({
        "min": number(low),
        "max": number(high),
        "total": elements as u64 - ignored,
        "ignored": ignored,
    });
    Ok(Outcome { array: Some(answer), result: Some(result), ..Outcome::default() })
}
