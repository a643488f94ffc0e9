//! `fft` and `ifft`: complex Fourier transforms along the last axis, by the `rustfft` crate.
//!
//! NumPy's conventions: forward is `sum x[j] exp(-2 pi i j k / n)`, inverse has the other sign and is divided
//! by `n`. Error: about `log2(n) * u` of the root of the mean square of the answer, `u` being 2^-24 or 2^-53;
//! unlike NumPy 1, `f32` and `c64` are transformed in 32 bits.

use std::cell::RefCell;
use std::sync::Arc;

use num_complex::Complex;
use rustfft::{Fft, FftDirection, FftPlanner, FftPlannerScalar};

use super::{Call, KernelError, Level, Outcome, elements_mut};
use crate::arrays::{Array, DType, Element, Shape};

/// Elements between two beats, unless one line is longer.
const LINES: usize = 1 << 17;
/// A thread that met so many lengths forgets its plans, so that a hostile job cannot fill the memory with
/// them.
const PLANS_MAX: usize = 64;
/// Plans of lines longer than this are not kept: they are as large as the data, and the data take far longer.
const KEPT_LENGTH_MAX: usize = 1 << 20;

/// The plans of one thread, for one precision. A plan holds the roots of unity of its length.
struct Plans<T: rustfft::FftNum> {
    vector: FftPlanner<T>,
    scalar: FftPlannerScalar<T>,
    made: Vec<Plan<T>>,
}

struct Plan<T: rustfft::FftNum> {
    scalar: bool,
    fft: Arc<dyn Fft<T>>,
}

impl<T: rustfft::FftNum> Plans<T> {
    fn new() -> Plans<T> {
        Plans { vector: FftPlanner::new(), scalar: FftPlannerScalar::new(), made: Vec::new() }
    }

    fn plan(&mut self, level: Level, length: usize, direction: FftDirection) -> Arc<dyn Fft<T>> {
        // The crate finds out itself what the processor has; below AVX2 only its scalar form is sure not to
        // use more.
        let scalar = matches!(level, Level::Scalar | Level::Sse2);
        let fits = |plan: &&Plan<T>| {
            plan.scalar == scalar && plan.fft.len() == length && plan.fft.fft_direction() == direction
        };
        if let Some(plan) = self.made.iter().find(fits) {
            return plan.fft.clone();
        }
        if self.made.len() == PLANS_MAX {
            *self = Plans::new();
        }
        let fft = match scalar {
            true => self.scalar.plan_fft(length, direction),
            false => self.vector.plan_fft(length, direction),
        };
        self.made.push(Plan { scalar, fft: fft.clone() });
        fft
    }
}

thread_local! {
    static SINGLE: RefCell<Plans<f32>> = RefCell::new(Plans::new());
    static DOUBLE: RefCell<Plans<f64>> = RefCell::new(Plans::new());
}

/// A precision: where its plans are, and how a real number of it becomes complex.
trait Precision: rustfft::FftNum + Element + Default {
    const COMPLEX: DType;
    fn plan(level: Level, length: usize, direction: FftDirection) -> Arc<dyn Fft<Self>>;
    fn inverse_of(length: usize) -> Self;
}

impl Precision for f32 {
    const COMPLEX: DType = DType::C64;
    fn plan(level: Level, length: usize, direction: FftDirection) -> Arc<dyn Fft<f32>> {
        if length > KEPT_LENGTH_MAX {
            return Plans::new().plan(level, length, direction);
        }
        SINGLE.with_borrow_mut(|plans| plans.plan(level, length, direction))
    }
    fn inverse_of(length: usize) -> f32 {
        (1.0 / length as f64) as f32
    }
}

impl Precision for f64 {
    const COMPLEX: DType = DType::C128;
    fn plan(level: Level, length: usize, direction: FftDirection) -> Arc<dyn Fft<f64>> {
        if length > KEPT_LENGTH_MAX {
            return Plans::new().plan(level, length, direction);
        }
        DOUBLE.with_borrow_mut(|plans| plans.plan(level, length, direction))
    }
    fn inverse_of(length: usize) -> f64 {
        1.0 / length as f64
    }
}

/// The answer has the input's shape, `c64` for `f32` and `c64`, `c128` for `f64` and `c128`.
pub(super) fn transform(call: &Call<'_>, direction: FftDirection) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 | DType::C64 => transform_of::<f32>(call, direction),
        _ => transform_of::<f64>(call, direction),
    }
}

fn transform_of<T: Precision>(call: &Call<'_>, direction: FftDirection) -> Result<Outcome, KernelError>
where
    Complex<T>: Element,
{
    let input = &call.inputs[0];
    let shape = input.shape();
    let length = match shape.last() {
        None => return Err(call.wrong_shape(0, "one axis or more")),
        Some(0) => return Err(call.wrong_shape(0, "a last axis of one element or more")),
        Some(&length) => length,
    };
    let mut answer: Array = call.answer(T::COMPLEX, shape)?;
    let out = elements_mut::<Complex<T>>(&mut answer);
    if !out.is_empty() {
        // The plan's own tables are about as large as a line; asked for here, so that a refusal is an error.
        let line_bytes = length.saturating_mul(2 * size_of::<Complex<T>>());
        drop(call.space::<u8>(if length > KEPT_LENGTH_MAX { line_bytes } else { 0 })?);
        let plan = T::plan(call.level(), length, direction);
        let mut scratch: Vec<Complex<T>> =
            call.space(plan.get_inplace_scratch_len().max(plan.get_outofplace_scratch_len()))?;
        let scale = (direction == FftDirection::Inverse).then(|| T::inverse_of(length));
        let lines = (LINES / length).max(1) * length;
        for (index, out) in out.chunks_mut(lines).enumerate() {
            call.pulse.beat()?;
            let start = index * lines;
            if let Some(real) = input.as_slice::<T>() {
                let real = &real[start..start + out.len()];
                out.iter_mut().zip(real).for_each(|(out, &re)| *out = Complex::new(re, T::zero()));
            } else {
                let complex = call.slice::<Complex<T>>(0)?;
                out.copy_from_slice(&complex[start..start + out.len()]);
            }
            plan.process_with_scratch(out, &mut scratch);
            if let Some(scale) = scale {
                out.iter_mut().for_each(|value| *value = *value * scale);
            }
        }
    }
    let flops = 5.0 * input.len() as f64 * (length as f64).log2();
    debug_assert!(answer.len() == input.len(), "{} became {}", Shape(shape), Shape(answer.shape()));
    Ok(Outcome { array: Some(answer), flops, ..Outcome::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_planned_once_and_forgotten_when_there_are_too_many() {
        let mut plans = Plans::<f64>::new();
        let first = plans.plan(Level::Avx2, 100, FftDirection::Forward);
        for _ in 0..3 * PLANS_MAX {
            let again = plans.plan(Level::Avx2, 100, FftDirection::Forward);
            assert!(Arc::ptr_eq(&first, &again));
        }
        for length in 1..3 * PLANS_MAX {
            let plan = plans.plan(Level::Scalar, length, FftDirection::Inverse);
            assert_eq!((plan.len(), plan.fft_direction()), (length, FftDirection::Inverse));
            assert!(plans.made.len() <= PLANS_MAX);
        }
    }
}
