//! Arithmetic on arrays: what a task computes.
//!
//! 1. [`check_params`] turns a job's parameters into [`Params`], [`check_inputs_count`] counts its inputs;
//!    both read the one table in `spec`.
//! 2. The caller opens the inputs ([`crate::arrays::NpyFile`]), picks a [`Variant`] (the default, or the one
//!    measured as best for this machine) and calls [`run`].
//! 3. [`run`] checks dtypes and shapes, does the work, and answers with an [`Outcome`]: an array, a value, or
//!    both. Between blocks it calls the [`Pulse`], which shows that the process lives and says when the task
//!    is cancelled.
//! 4. The caller writes `extra` arrays, then the array ([`crate::arrays::write_npy`]), then reports the
//!    result.
//!
//! Invariants
//! 1. No input, shape or parameter makes a kernel panic; what it cannot do is a [`KernelError`] that says
//!    why.
//! 2. Memory that grows with the input is asked for, not assumed: [`KernelError::OutOfMemory`].
//! 3. Every variant of a kernel computes the same thing within the tolerance its file states.
//! 4. One call uses one thread: agents are pinned processes, and the swarm is the parallelism.

#![allow(
    unsafe_code,
    reason = "intrinsics and the matrix library take raw pointers; every block states its duty"
)]

mod level;
mod lines;
mod spec;
mod variant;
mod workload;

mod clusters;
mod coded;
mod convolution;
mod cumulative;
mod digest;
mod expr;
mod fourier;
mod histogram;
mod idle;
mod linear;
mod monte_carlo;
mod nearest;
mod ranking;
mod reduce;
pub mod reference;
pub mod simd;
mod softmax;
mod sort;
mod sparse;
mod split;
mod stencil;

pub use clusters::LABELS_SUFFIX;
pub use coded::BOUNDS_SUFFIX;
pub use level::{LEVEL_VARIABLE, Level};
pub use nearest::SCORES_SUFFIX;
pub use ranking::PLACES_SUFFIX;
pub use spec::{
    InputSpec, KernelId, KernelSpec, OutputKind, ParamError, ParamKind, ParamSpec, ParamValue, Params,
    check_inputs_count, check_params, describe, output_needed, spec,
};
pub use split::{Split, may_split, split};
pub use variant::{Variant, has_levels, stores_in_two_ways, variants};
pub use workload::{SIZE_CLASSES, size_class, synthetic_array, synthetic_inputs, work_elements};

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::arrays::{Array, ArrayError, ArrayRef, DType, Element, Shape};
use crate::os::map::OutOfMemory;
use crate::os::topology::last_cache_bytes;

/// What a kernel reads.
pub type Input = ArrayRef;

/// The task was cancelled while its kernel ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Called by kernels between blocks of work, so that the process shows progress and a cancelled task ends
/// early.
///
/// A block is a few milliseconds. Longer ones are a single Fourier transform, a single step that selects in or
/// splits a huge row, and a panel of a matrix product whose inner dimension is beyond 100,000.
pub trait Pulse {
    /// Says that work goes on, and asks whether it should.
    ///
    /// # Errors
    /// [`Cancelled`] ends the kernel.
    fn beat(&self) -> Result<(), Cancelled>;
}

/// Nobody watches and nobody cancels.
impl Pulse for () {
    fn beat(&self) -> Result<(), Cancelled> {
        Ok(())
    }
}

/// One call of a kernel.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Which one.
    pub kernel: KernelId,
    /// Its checked parameters.
    pub params: &'a Params,
    /// Its arrays, in the order of its table.
    pub inputs: &'a [Input],
    /// Which of its implementations.
    pub variant: Variant,
    /// Called between blocks.
    pub pulse: &'a dyn Pulse,
}

/// What a kernel yields.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For the task's `output`.
    pub array: Option<Array>,
    /// Further arrays, for files beside the output: see [`extra_path`].
    pub extra: Vec<(&'static str, Array)>,
    /// For the task's `result`. Numbers that JSON cannot say are the strings `NaN`, `Infinity` and
    /// `-Infinity`.
    pub result: Option<Value>,
    /// Floating-point operations done, by the usual formula of the algorithm; 0 where none is usual.
    pub flops: f64,
    /// Bytes that had to be read and written at least: inputs once, outputs once.
    pub bytes: f64,
}

/// How the files end that kernels put beside their output.
pub const EXTRA_SUFFIXES: [&str; 4] = [SCORES_SUFFIX, PLACES_SUFFIX, LABELS_SUFFIX, BOUNDS_SUFFIX];

/// Where an extra array goes: beside `output`, `z.npy` and `.scores.npy` giving `z.scores.npy`.
pub fn extra_path(output: &Path, suffix: &str) -> PathBuf {
    let mut name = output.file_stem().unwrap_or_default().to_os_string();
    name.push(suffix);
    output.with_file_name(name)
}

/// A kernel could not do its work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KernelError {
    /// Too few or too many inputs.
    #[error("{kernel}: {found} inputs, needs {needed} ({names})")]
    InputCount {
        /// The kernel.
        kernel: KernelId,
        /// Inputs given.
        found: usize,
        /// Inputs it takes.
        needed: String,
        /// Their names.
        names: String,
    },
    /// An input of an element type the kernel does not take.
    #[error("{kernel}: inputs[{index}] \"{name}\" has dtype {found}, needs {needed}")]
    DType {
        /// The kernel.
        kernel: KernelId,
        /// Which input.
        index: usize,
        /// Its name.
        name: &'static str,
        /// Its type.
        found: DType,
        /// The types allowed.
        needed: String,
    },
    /// An input of a shape the kernel does not take.
    #[error("{kernel}: inputs[{index}] \"{name}\" has shape {}, needs {needed}", Shape(.found))]
    Shape {
        /// The kernel.
        kernel: KernelId,
        /// Which input.
        index: usize,
        /// Its name.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shapes allowed.
        needed: String,
    },
    /// A parameter that does not go with these inputs.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// Values the kernel cannot work on.
    #[error("{kernel}: {problem}")]
    Value {
        /// The kernel.
        kernel: KernelId,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The answer would be larger than memory can be.
    #[error("{kernel}: output of shape {} and dtype {dtype} is larger than memory can be", Shape(.shape))]
    TooLarge {
        /// The kernel.
        kernel: KernelId,
        /// Shape of the answer.
        shape: Vec<usize>,
        /// Type of the answer.
        dtype: DType,
    },
    /// The system has no memory left. Worth another try later or elsewhere.
    #[error("{kernel}: out of memory: {bytes} bytes were asked for")]
    OutOfMemory {
        /// The kernel.
        kernel: KernelId,
        /// Bytes asked for.
        bytes: usize,
    },
    /// The task was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<Cancelled> for KernelError {
    fn from(_: Cancelled) -> KernelError {
        KernelError::Cancelled
    }
}

/// Runs one kernel.
///
/// # Errors
/// [`KernelError`]; nothing is left behind.
pub fn run(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let kernel = call.kernel;
    check_inputs_count(kernel, call.inputs.len())?;
    let table = spec(kernel);
    for (index, input) in call.inputs.iter().enumerate() {
        let allowed = table.input_dtypes(&table.inputs[index.min(table.inputs.len() - 1)]);
        if !allowed.contains(&input.dtype()) {
            let names: Vec<_> = allowed.iter().map(|dtype| dtype.name()).collect();
            return Err(call.wrong_dtype(index, names.join(", ")));
        }
    }
    if call.params.kernel() != kernel {
        let problem = format!("was given the parameters of {}", call.params.kernel());
        return Err(KernelError::Value { kernel, problem });
    }
    let mut outcome = match kernel {
        KernelId::Matmul => linear::matmul(call),
        KernelId::Dot => linear::dot(call),
        KernelId::Axpy => linear::axpy(call),
        KernelId::Reduce => reduce::reduce(call),
        KernelId::Sort => sort::sort(call),
        KernelId::Fft => fourier::transform(call, rustfft::FftDirection::Forward),
        KernelId::Ifft => fourier::transform(call, rustfft::FftDirection::Inverse),
        KernelId::Stencil5 => stencil::stencil5(call),
        KernelId::Knn => nearest::knn(call),
        KernelId::Histogram => histogram::histogram(call),
        KernelId::MonteCarlo => monte_carlo::monte_carlo(call),
        KernelId::Noop => Ok(Outcome::default()),
        KernelId::Sleep => idle::sleep(call),
        KernelId::Expr => expr::expr(call),
        KernelId::Cumsum => cumulative::cumsum(call),
        KernelId::Softmax => softmax::softmax(call),
        KernelId::Argsort => ranking::argsort(call),
        KernelId::TopK => ranking::top_k(call),
        KernelId::Hash => digest::hash(call),
        KernelId::Spmv => sparse::spmv(call),
        KernelId::Rfft => fourier::real_transform(call),
        KernelId::Convolve2d => convolution::convolve2d(call),
        KernelId::Irfft => fourier::real_inverse(call),
        KernelId::Kmeans => clusters::kmeans(call),
        KernelId::Quantize => coded::quantize(call),
    }?;
    let read: usize = call.inputs.iter().map(|input| input.bytes().len()).sum();
    let written: usize = outcome
        .array
        .iter()
        .chain(outcome.extra.iter().map(|(_, array)| array))
        .map(|a| a.bytes().len())
        .sum();
    outcome.bytes = read as f64 + written as f64;
    Ok(outcome)
}

/// What every kernel asks of its call.
impl Call<'_> {
    fn level(&self) -> Level {
        self.variant.level
    }

    /// How an answer of so many bytes is written.
    fn stores_for(&self, bytes: usize) -> simd::Stores {
        let streams = outgrows_cache(bytes) != self.variant.other_stores;
        if streams { simd::Stores::Streaming } else { simd::Stores::Cached }
    }

    fn name_of(&self, index: usize) -> &'static str {
        let inputs = spec(self.kernel).inputs;
        inputs[index.min(inputs.len() - 1)].name
    }

    fn wrong_dtype(&self, index: usize, needed: String) -> KernelError {
        let (kernel, name, found) = (self.kernel, self.name_of(index), self.inputs[index].dtype());
        KernelError::DType { kernel, index, name, found, needed }
    }

    fn wrong_shape(&self, index: usize, needed: impl Into<String>) -> KernelError {
        let (kernel, name, found) = (self.kernel, self.name_of(index), self.inputs[index].shape().to_vec());
        KernelError::Shape { kernel, index, name, found, needed: needed.into() }
    }

    fn wrong_value(&self, problem: impl Into<String>) -> KernelError {
        KernelError::Value { kernel: self.kernel, problem: problem.into() }
    }

    fn out_of_memory(&self, bytes: usize) -> KernelError {
        KernelError::OutOfMemory { kernel: self.kernel, bytes }
    }

    /// Input `index` as elements of `T`.
    fn slice<T: Element>(&self, index: usize) -> Result<&[T], KernelError> {
        let input = &self.inputs[index];
        input.as_slice::<T>().ok_or_else(|| {
            let needed = match index {
                0 => T::DTYPE.name().to_owned(),
                _ => format!("{} (that of inputs[0] \"{}\")", T::DTYPE, self.name_of(0)),
            };
            self.wrong_dtype(index, needed)
        })
    }

    /// Rows and columns of input `index`.
    fn matrix(&self, index: usize, needed: &str) -> Result<(usize, usize), KernelError> {
        match self.inputs[index].shape() {
            &[rows, columns] => Ok((rows, columns)),
            _ => Err(self.wrong_shape(index, needed)),
        }
    }

    /// An array for an answer that overwrites every element of it.
    fn answer(&self, dtype: DType, shape: &[usize]) -> Result<Array, KernelError> {
        Array::scratch(dtype, shape).map_err(|error| match error {
            ArrayError::OutOfMemory(OutOfMemory { bytes }) => self.out_of_memory(bytes),
            _ => KernelError::TooLarge { kernel: self.kernel, shape: shape.to_vec(), dtype },
        })
    }

    /// `count` default values, asked for rather than assumed.
    fn space<T: Clone + Default>(&self, count: usize) -> Result<Vec<T>, KernelError> {
        let mut space = Vec::new();
        let bytes = count.saturating_mul(size_of::<T>());
        space.try_reserve_exact(count).map_err(|_| self.out_of_memory(bytes))?;
        space.resize(count, T::default());
        Ok(space)
    }
}

/// The elements of an answer made by [`Call::answer`] with the type of `T`.
fn elements_mut<T: Element>(array: &mut Array) -> &mut [T] {
    array.as_mut_slice().expect("the answer was made with this type")
}

/// Answers below this size are never too large for a cache.
const STREAMED_BYTES_MIN: usize = 4 << 20;

/// Whether an answer of so many bytes has more than half of the last cache, and would push itself out of it.
fn outgrows_cache(bytes: usize) -> bool {
    // Of a host that does not say.
    const USUAL_CACHE_BYTES: usize = 32 << 20;
    bytes >= STREAMED_BYTES_MIN && bytes > last_cache_bytes().unwrap_or(USUAL_CACHE_BYTES) / 2
}

/// A number as JSON, or the word for it where JSON has none.
fn number(value: f64) -> Value {
    if value.is_finite() {
        Value::from(value)
    } else if value.is_nan() {
        Value::from("NaN")
    } else {
        Value::from(if value > 0.0 { "Infinity" } else { "-Infinity" })
    }
}

/// A running sum that also carries what rounding took away (Neumaier), for the sums of blocks.
#[derive(Clone, Copy, Default)]
struct Total {
    high: f64,
    low: f64,
}

impl Total {
    fn add(&mut self, value: f64) {
        let sum = self.high + value;
        let part = sum - self.high;
        self.low += (self.high - (sum - part)) + (value - part);
        self.high = sum;
    }

    /// The sum; once it is infinite the carried part is NaN and does not count.
    fn value(self) -> f64 {
        if self.low.is_finite() { self.high + self.low } else { self.high }
    }
}

/// Elements between two beats of kernels that stream: 4 MiB of `f32`, below a millisecond from memory. A
/// multiple of the vector kernels' own blocks.
const BLOCK: usize = 1 << 20;

/// Beats once per [`BLOCK`] elements, however short the pieces of work are.
struct Pace<'a> {
    pulse: &'a dyn Pulse,
    since_beat: usize,
}

impl<'a> Pace<'a> {
    /// The first step beats.
    fn new(call: &Call<'a>) -> Pace<'a> {
        Pace { pulse: call.pulse, since_beat: BLOCK }
    }

    /// Before work on `elements`.
    fn step(&mut self, elements: usize) -> Result<(), Cancelled> {
        self.since_beat = self.since_beat.saturating_add(elements);
        if self.since_beat >= BLOCK {
            self.pulse.beat()?;
            self.since_beat = 0;
        }
        Ok(())
    }
}
