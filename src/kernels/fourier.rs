//! `fft`, `ifft`, `rfft` and `irfft`: Fourier transforms along the last axis or the last two, by the `rustfft` and
//! `realfft` crates.
//!
//! NumPy's conventions: forward is `sum x[j] exp(-2 pi i j k / n)`, inverse has the other sign and is divided
//! by `n`; of real input `rfft` gives the first half, `n / 2 + 1`, of which the rest is a mirror, and `irfft` goes
//! back from there. Error: about
//! `log2(n) * u` of the root of the mean square of the answer, `u` being 2^-24 or 2^-53; unlike NumPy 1, `f32` and
//! `c64` are transformed in 32 bits.
//!
//! Two axes are the last one, then the one before it: some columns at a time become lines, are transformed and
//! go back.

use std::cell::RefCell;
use std::sync::Arc;

use num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::{Fft, FftDirection, FftPlanner, FftPlannerScalar};

use super::{Call, KernelError, Level, Outcome, Pace, elements_mut};
use crate::arrays::{DType, Element};

/// Elements between two beats, unless one line is longer.
const LINES: usize = 1 << 17;
/// Columns that become lines together: a row of them is two cache lines of `c64`.
const COLUMNS: usize = 16;
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
    made_real: Vec<Arc<dyn RealToComplex<T>>>,
    made_back: Vec<Arc<dyn ComplexToReal<T>>>,
}

struct Plan<T: rustfft::FftNum> {
    scalar: bool,
    fft: Arc<dyn Fft<T>>,
}

impl<T: rustfft::FftNum> Plans<T> {
    fn new() -> Plans<T> {
        Plans {
            vector: FftPlanner::new(),
            scalar: FftPlannerScalar::new(),
            made: Vec::new(),
            made_real: Vec::new(),
            made_back: Vec::new(),
        }
    }

    /// The first half of the transform of a real line. The crate chooses its own instructions.
    fn real_plan(&mut self, length: usize) -> Arc<dyn RealToComplex<T>> {
        // A planner keeps what it planned, so each is forgotten with its plan.
        let plan = || RealFftPlanner::new().plan_fft_forward(length);
        kept(&mut self.made_real, |plan| plan.len() == length, plan)
    }

    /// A real line from the first half of its transform.
    fn back_plan(&mut self, length: usize) -> Arc<dyn ComplexToReal<T>> {
        let plan = || RealFftPlanner::new().plan_fft_inverse(length);
        kept(&mut self.made_back, |plan| plan.len() == length, plan)
    }

    fn plan(&mut self, level: Level, length: usize, direction: FftDirection) -> Arc<dyn Fft<T>> {
        let scalar = is_scalar(level);
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

/// The plan among those `made` that fits, or else a new one, which is kept from now on.
fn kept<P: ?Sized>(
    made: &mut Vec<Arc<P>>,
    fits: impl Fn(&P) -> bool,
    plan: impl FnOnce() -> Arc<P>,
) -> Arc<P> {
    if let Some(plan) = made.iter().find(|plan| fits(plan)) {
        return plan.clone();
    }
    if made.len() == PLANS_MAX {
        made.clear();
    }
    let plan = plan();
    made.push(plan.clone());
    plan
}

/// The crates find out themselves what the processor has; below AVX2 only the scalar form is sure not to use more.
fn is_scalar(level: Level) -> bool {
    matches!(level, Level::Scalar | Level::Sse2)
}

thread_local! {
    static SINGLE: RefCell<Plans<f32>> = RefCell::new(Plans::new());
    static DOUBLE: RefCell<Plans<f64>> = RefCell::new(Plans::new());
}

/// A precision: where its plans are, and how a real number of it becomes complex.
trait Precision: rustfft::FftNum + Element + Default {
    const COMPLEX: DType;
    fn plan(level: Level, length: usize, direction: FftDirection) -> Arc<dyn Fft<Self>>;
    fn real_plan(length: usize) -> Arc<dyn RealToComplex<Self>>;
    fn back_plan(length: usize) -> Arc<dyn ComplexToReal<Self>>;
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
    fn real_plan(length: usize) -> Arc<dyn RealToComplex<f32>> {
        if length > KEPT_LENGTH_MAX {
            return Plans::new().real_plan(length);
        }
        SINGLE.with_borrow_mut(|plans| plans.real_plan(length))
    }
    fn back_plan(length: usize) -> Arc<dyn ComplexToReal<f32>> {
        if length > KEPT_LENGTH_MAX {
            return Plans::new().back_plan(length);
        }
        SINGLE.with_borrow_mut(|plans| plans.back_plan(length))
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
    fn real_plan(length: usize) -> Arc<dyn RealToComplex<f64>> {
        if length > KEPT_LENGTH_MAX {
            return Plans::new().real_plan(length);
        }
        DOUBLE.with_borrow_mut(|plans| plans.real_plan(length))
    }
    fn back_plan(length: usize) -> Arc<dyn ComplexToReal<f64>> {
        if length > KEPT_LENGTH_MAX {
            return Plans::new().back_plan(length);
        }
        DOUBLE.with_borrow_mut(|plans| plans.back_plan(length))
    }
    fn inverse_of(length: usize) -> f64 {
        1.0 / length as f64
    }
}

/// `fft` and `ifft`: the answer has the input's shape, `c64` for `f32` and `c64`, `c128` for `f64` and `c128`.
pub(super) fn transform(call: &Call<'_>, direction: FftDirection) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 | DType::C64 => transform_of::<f32>(call, direction),
        _ => transform_of::<f64>(call, direction),
    }
}

/// `rfft`: the answer has the input's shape but for its last axis, of which it has the first half.
pub(super) fn real_transform(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => real_transform_of::<f32>(call),
        _ => real_transform_of::<f64>(call),
    }
}

/// `irfft`: the answer has the input's shape but for its last axis, which is `n` long.
pub(super) fn real_inverse(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 | DType::C64 => real_inverse_of::<f32>(call),
        _ => real_inverse_of::<f64>(call),
    }
}

/// The lengths of the second last axis, 1 when it is not to be transformed, and of the last.
fn lengths(call: &Call<'_>) -> Result<[usize; 2], KernelError> {
    match (call.inputs[0].shape(), call.params.count("axes")) {
        ([], 1) => Err(call.wrong_shape(0, "one axis or more")),
        (&[.., length], 1) if length > 0 => Ok([1, length]),
        (_, 1) => Err(call.wrong_shape(0, "a last axis of one element or more")),
        (&[.., rows, length], _) if rows > 0 && length > 0 => Ok([rows, length]),
        ([.., _, _], _) => Err(call.wrong_shape(0, "two last axes of one element or more")),
        _ => Err(call.wrong_shape(0, "two axes or more, because axes is 2")),
    }
}

/// By the usual count of a complex transform of as many elements.
fn flops(elements: usize, [rows, length]: [usize; 2]) -> f64 {
    5.0 * elements as f64 * ((rows as f64).log2() + (length as f64).log2())
}

fn transform_of<T: Precision>(call: &Call<'_>, direction: FftDirection) -> Result<Outcome, KernelError>
where
    Complex<T>: Element,
{
    let input = &call.inputs[0];
    let [rows, length] = lengths(call)?;
    let mut answer = call.answer(T::COMPLEX, input.shape())?;
    let out = elements_mut::<Complex<T>>(&mut answer);
    if !out.is_empty() {
        let mut line = Line::<T>::new(call, length, direction)?;
        let step = (LINES / length).max(1) * length;
        for (out, start) in out.chunks_mut(step).zip((0..).step_by(step)) {
            call.pulse.beat()?;
            if let Some(real) = input.as_slice::<T>() {
                promote(&real[start..start + out.len()], out);
            } else {
                let complex = call.slice::<Complex<T>>(0)?;
                out.copy_from_slice(&complex[start..start + out.len()]);
            }
            line.transform(out);
        }
        if rows > 1 {
            columns(call, out, [rows, length], direction)?;
        }
    }
    Ok(Outcome { array: Some(answer), flops: flops(input.len(), [rows, length]), ..Outcome::default() })
}

fn real_transform_of<T: Precision>(call: &Call<'_>) -> Result<Outcome, KernelError>
where
    Complex<T>: Element,
{
    let x = call.slice::<T>(0)?;
    let [rows, length] = lengths(call)?;
    let half = length / 2 + 1;
    let mut shape = call.inputs[0].shape().to_vec();
    *shape.last_mut().expect("an axis, by its length") = half;
    let mut answer = call.answer(T::COMPLEX, &shape)?;
    let out = elements_mut::<Complex<T>>(&mut answer);
    if !out.is_empty() {
        let lines = x.chunks_exact(length).zip(out.chunks_exact_mut(half));
        let mut pace = Pace::new(call);
        if is_scalar(call.level()) {
            // There is no scalar form of the other way.
            let mut line = Line::<T>::new(call, length, FftDirection::Forward)?;
            let mut whole: Vec<Complex<T>> = call.space(length)?;
            for (x, out) in lines {
                pace.step(8 * length)?;
                promote(x, &mut whole);
                line.transform(&mut whole);
                out.copy_from_slice(&whole[..half]);
            }
        } else {
            room_for_plan::<T>(call, length)?;
            let plan = T::real_plan(length);
            let mut real: Vec<T> = call.space(length)?;
            let mut scratch: Vec<Complex<T>> = call.space(plan.get_scratch_len())?;
            for (x, out) in lines {
                pace.step(8 * length)?;
                real.copy_from_slice(x);
                let done = plan.process_with_scratch(&mut real, out, &mut scratch);
                done.map_err(|error| call.wrong_value(error.to_string()))?;
            }
        }
        if rows > 1 {
            columns(call, out, [rows, half], FftDirection::Forward)?;
        }
    }
    // Half of what complex input costs.
    Ok(Outcome { array: Some(answer), flops: flops(x.len(), [rows, length]) / 2.0, ..Outcome::default() })
}

fn real_inverse_of<T: Precision>(call: &Call<'_>) -> Result<Outcome, KernelError>
where
    Complex<T>: Element,
{
    let input = &call.inputs[0];
    let [rows, found] = lengths(call)?;
    let length = call
        .params
        .int("n")
        .map_or((found - 1).saturating_mul(2), |n| usize::try_from(n).unwrap_or(usize::MAX));
    if length == 0 {
        return Err(call.wrong_shape(0, "a last axis of two elements or more, or a parameter `n`"));
    }
    let half = length / 2 + 1;
    let mut shape = input.shape().to_vec();
    *shape.last_mut().expect("an axis, by its length") = length;
    let mut answer = call.answer(T::DTYPE, &shape)?;
    let count = answer.len();
    let out = elements_mut::<T>(&mut answer);
    if !out.is_empty() {
        // What is at hand of each line; the rest of its half stays 0.
        let given = found.min(half);
        let matrix = half.checked_mul(rows).ok_or_else(|| call.out_of_memory(usize::MAX))?;
        let together = (LINES / matrix).clamp(1, out.len() / (rows * length));
        let mut spectra: Vec<Complex<T>> = call.space(together * matrix)?;
        let mut back = Back::<T>::new(call, length)?;
        let mut pace = Pace::new(call);
        for (number, out) in out.chunks_mut(together * rows * length).enumerate() {
            let lines = out.len() / length;
            let spectra = &mut spectra[..lines * half];
            for (line, spectrum) in spectra.chunks_exact_mut(half).enumerate() {
                pace.step(8 * half)?;
                let start = (number * together * rows + line) * found;
                if let Some(real) = input.as_slice::<T>() {
                    promote(&real[start..start + given], spectrum);
                } else {
                    let complex = call.slice::<Complex<T>>(0)?;
                    spectrum[..given].copy_from_slice(&complex[start..start + given]);
                }
                spectrum[given..].fill(Complex::default());
            }
            if rows > 1 {
                columns(call, spectra, [rows, half], FftDirection::Inverse)?;
            }
            for (spectrum, out) in spectra.chunks_exact_mut(half).zip(out.chunks_exact_mut(length)) {
                pace.step(8 * length)?;
                back.transform(call, spectrum, out)?;
            }
        }
    }
    Ok(Outcome { array: Some(answer), flops: flops(count, [rows, length]) / 2.0, ..Outcome::default() })
}

/// Makes real lines of the first halves of their transforms.
enum Back<T: Precision> {
    Library {
        plan: Arc<dyn ComplexToReal<T>>,
        scratch: Vec<Complex<T>>,
        scale: T,
    },
    /// There is no scalar form of the other way.
    Whole {
        line: Line<T>,
        whole: Vec<Complex<T>>,
    },
}

impl<T: Precision> Back<T> {
    fn new(call: &Call<'_>, length: usize) -> Result<Back<T>, KernelError> {
        if is_scalar(call.level()) {
            let line = Line::<T>::new(call, length, FftDirection::Inverse)?;
            return Ok(Back::Whole { line, whole: call.space(length)? });
        }
        room_for_plan::<T>(call, length)?;
        let plan = T::back_plan(length);
        let scratch = call.space(plan.get_scratch_len())?;
        Ok(Back::Library { plan, scratch, scale: T::inverse_of(length) })
    }

    /// One line; the half is garbage afterwards.
    fn transform(
        &mut self,
        call: &Call<'_>,
        half: &mut [Complex<T>],
        out: &mut [T],
    ) -> Result<(), KernelError> {
        // These two are their own mirrors, so a real line has nothing imaginary there; NumPy looks away, too.
        half[0].im = T::zero();
        if out.len().is_multiple_of(2) {
            half[out.len() / 2].im = T::zero();
        }
        match self {
            Back::Library { plan, scratch, scale } => {
                let done = plan.process_with_scratch(half, out, scratch);
                done.map_err(|error| call.wrong_value(error.to_string()))?;
                out.iter_mut().for_each(|value| *value = *value * *scale);
            }
            Back::Whole { line, whole } => {
                whole[..half.len()].copy_from_slice(half);
                for (at, value) in whole.iter_mut().enumerate().skip(half.len()) {
                    *value = half[out.len() - at].conj();
                }
                line.transform(whole);
                out.iter_mut().zip(whole).for_each(|(out, value)| *out = value.re);
            }
        }
        Ok(())
    }
}

fn promote<T: Precision>(real: &[T], out: &mut [Complex<T>]) {
    out.iter_mut().zip(real).for_each(|(out, &re)| *out = Complex::new(re, T::zero()));
}

/// The plan's own tables are about as large as a line; asked for here, so that a refusal is an error.
fn room_for_plan<T>(call: &Call<'_>, length: usize) -> Result<(), KernelError> {
    let bytes = length.saturating_mul(2 * size_of::<Complex<T>>());
    drop(call.space::<u8>(if length > KEPT_LENGTH_MAX { bytes } else { 0 })?);
    Ok(())
}

/// Transforms lines in place.
struct Line<T: Precision> {
    plan: Arc<dyn Fft<T>>,
    scratch: Vec<Complex<T>>,
    scale: Option<T>,
}

impl<T: Precision> Line<T> {
    fn new(call: &Call<'_>, length: usize, direction: FftDirection) -> Result<Line<T>, KernelError> {
        room_for_plan::<T>(call, length)?;
        let plan = T::plan(call.level(), length, direction);
        let scratch = call.space(plan.get_inplace_scratch_len().max(plan.get_outofplace_scratch_len()))?;
        let scale = (direction == FftDirection::Inverse).then(|| T::inverse_of(length));
        Ok(Line { plan, scratch, scale })
    }

    /// Any number of whole lines.
    fn transform(&mut self, lines: &mut [Complex<T>]) {
        self.plan.process_with_scratch(lines, &mut self.scratch);
        if let Some(scale) = self.scale {
            lines.iter_mut().for_each(|value| *value = *value * scale);
        }
    }
}

/// Transforms the columns of matrices of these lengths.
fn columns<T: Precision>(
    call: &Call<'_>,
    matrices: &mut [Complex<T>],
    [rows, length]: [usize; 2],
    direction: FftDirection,
) -> Result<(), KernelError> {
    let mut line = Line::<T>::new(call, rows, direction)?;
    let together = COLUMNS.min(length);
    let mut lines: Vec<Complex<T>> = call.space(rows.saturating_mul(together))?;
    let mut pace = Pace::new(call);
    for matrix in matrices.chunks_exact_mut(rows * length) {
        for first in (0..length).step_by(together) {
            let count = together.min(length - first);
            let lines = &mut lines[..count * rows];
            pace.step(8 * lines.len())?;
            for (row, values) in matrix.chunks_exact(length).enumerate() {
                for (column, value) in values[first..first + count].iter().enumerate() {
                    lines[column * rows + row] = *value;
                }
            }
            line.transform(lines);
            for (row, values) in matrix.chunks_exact_mut(length).enumerate() {
                for (column, value) in values[first..first + count].iter_mut().enumerate() {
                    *value = lines[column * rows + row];
                }
            }
        }
    }
    Ok(())
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
            assert_eq!(plans.real_plan(length).len(), length);
            assert!(plans.made_real.len() <= PLANS_MAX);
            assert_eq!(plans.back_plan(length).len(), length);
            assert!(plans.made_back.len() <= PLANS_MAX);
        }
        let first = plans.real_plan(7);
        assert!(Arc::ptr_eq(&first, &plans.real_plan(7)));
        let first = plans.back_plan(7);
        assert!(Arc::ptr_eq(&first, &plans.back_plan(7)));
    }
}
