//! One cell under trial: inputs of its size, the reference's answer, and a search among the kernel's variants.

use super::search::{Found, Search};
use crate::arrays::{Array, ArrayRef, DType};
use crate::base::clock::Nanos;
use crate::jobs::work_class;
use crate::kernels::{
    self, Call, KernelError, KernelId, Level, Outcome, Params, Pulse, Variant, synthetic_inputs, variants,
};
use crate::os::clock;
use crate::os::counting::{CONTEXT_SWITCHES, CPU_MIGRATIONS, Counters, Counts};
use crate::shm::board::CLASSES;
use serde_json::Value;
use std::time::Duration;

/// A cell with a default that takes longer is not tried: the others would take as long, a hundred times over.
const RUN_MAX: Duration = Duration::from_millis(50);
/// Who takes so many times as long as the default in its first run is not run again.
const HOPELESS: f64 = 4.0;
/// So many runs during which the core went to somebody else are done again; where it happens all the time they count.
const AGAIN_MAX: usize = 60;

/// What is tuned for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub kernel: KernelId,
    pub dtype: DType,
    /// Of the bytes of its inputs, as the supervisor counts them.
    pub class: u8,
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is more to run.
    Going,
    /// Work came; the run counts for nothing.
    Interrupted,
    /// All is known.
    Done,
}

/// Variants of a cell against each other.
pub(crate) struct Trial {
    pub cell: Cell,
    /// The default is the first.
    pub candidates: Vec<Variant>,
    pub search: Search,
    /// When it last ran.
    pub touched: Nanos,
    inputs: Vec<ArrayRef>,
    params: Params,
    reference: Outcome,
    /// Stands for the pages of the output.
    file: Vec<u8>,
    /// The default's better run of two.
    default_ns: f64,
    is_checked: Vec<bool>,
    counted: Vec<Counts>,
    again: usize,
}

impl Trial {
    /// Makes the inputs and asks the reference. `None`: work came.
    ///
    /// # Errors
    /// Why there is nothing to try.
    pub fn begin(cell: Cell, pulse: &dyn Pulse) -> Result<Option<Trial>, &'static str> {
        let candidates = variants(cell.kernel, Some(cell.dtype));
        let Some(&default) = candidates.first().filter(|_| candidates.len() > 1) else {
            return Err("it has one variant");
        };
        let (inputs, params) = inputs_of(cell).ok_or("no inputs of this class can be made")?;
        let run = |variant| {
            let call = Call { kernel: cell.kernel, params: &params, inputs: &inputs, variant, pulse };
            kernels::run(&call)
        };
        let mut default_took = Duration::MAX;
        // Twice: the first run meets cold caches and fresh pages.
        for _ in 0..2 {
            let began = clock::now();
            match run(default) {
                Err(KernelError::Cancelled) => return Ok(None),
                Err(_) => return Err("the default fails"),
                Ok(_) => default_took = default_took.min(clock::now().since(began)),
            }
            if default_took > RUN_MAX {
                return Err("it takes too long");
            }
        }
        let reference = match run(Variant::new(Level::Scalar, 0)) {
            Err(KernelError::Cancelled) => return Ok(None),
            Err(_) => return Err("the reference fails"),
            Ok(reference) => reference,
        };
        let file = Vec::with_capacity(reference.array.as_ref().map_or(0, |array| array.bytes().len()));
        let count = candidates.len();
        Ok(Some(Trial {
            cell,
            candidates,
            search: Search::new(count),
            touched: clock::now(),
            inputs,
            params,
            reference,
            file,
            default_ns: default_took.as_nanos() as f64,
            is_checked: vec![false; count],
            counted: vec![Counts::NONE; count],
            again: 0,
        }))
    }

    /// One run.
    pub fn step(&mut self, counters: &mut Counters, pulse: &dyn Pulse) -> Step {
        let Some(at) = self.search.next() else { return Step::Done };
        let kernel = self.cell.kernel;
        let run = match self.run(at, counters, pulse) {
            Err(KernelError::Cancelled) => return Step::Interrupted,
            run => run.ok().filter(|run| self.is_checked[at] || agrees(&self.reference, &run.outcome)),
        };
        let Some(run) = run else {
            let variant = self.candidates[at].describe(kernel);
            tracing::warn!(%kernel, variant, "variant fails or disagrees with the reference");
            self.search.reject();
            return Step::Going;
        };
        let is_first = !std::mem::replace(&mut self.is_checked[at], true);
        if run.is_disturbed() && self.again < AGAIN_MAX {
            self.again += 1;
            return Step::Going;
        }
        if is_first && run.took_ns > HOPELESS * self.default_ns {
            self.search.reject();
            return Step::Going;
        }
        self.counted[at].add(&run.counts);
        self.search.took(run.took_ns);
        Step::Going
    }

    /// One run of a candidate beside the search, ns; one in which somebody else had the core is done again, for a while.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn time(
        &mut self,
        candidate: usize,
        counters: &mut Counters,
        pulse: &dyn Pulse,
    ) -> Result<f64, KernelError> {
        loop {
            let run = self.run(candidate, counters, pulse)?;
            if !run.is_disturbed() || self.again >= AGAIN_MAX {
                return Ok(run.took_ns);
            }
            self.again += 1;
        }
    }

    fn run(
        &mut self,
        candidate: usize,
        counters: &mut Counters,
        pulse: &dyn Pulse,
    ) -> Result<Run, KernelError> {
        let (kernel, params, inputs) = (self.cell.kernel, &self.params, &self.inputs[..]);
        let call = Call { kernel, params, inputs, variant: self.candidates[candidate], pulse };
        counters.begin();
        let began = clock::now();
        let outcome = kernels::run(&call);
        // What a task does with its answer next: the copy into a file's pages finds it in a cache, or does not.
        if let Some(array) = outcome.as_ref().ok().and_then(|outcome| outcome.array.as_ref()) {
            self.file.clear();
            self.file.extend_from_slice(array.bytes());
            std::hint::black_box(&self.file);
        }
        self.touched = clock::now();
        let counts = counters.end();
        let took_ns = self.touched.since(began).as_nanos() as f64;
        Ok(Run { outcome: outcome?, counts, took_ns })
    }

    /// What was found.
    pub fn found(&self) -> Option<Found> {
        self.search.found()
    }

    /// What was counted in all runs of a candidate.
    pub fn counts(&self, candidate: usize) -> &Counts {
        &self.counted[candidate]
    }
}

/// One run of a candidate.
struct Run {
    outcome: Outcome,
    counts: Counts,
    took_ns: f64,
}

impl Run {
    /// Somebody else had the core meanwhile.
    fn is_disturbed(&self) -> bool {
        let happened = |event| self.counts.get(event).is_some_and(|count| count > 0.0);
        happened(CONTEXT_SWITCHES) || happened(CPU_MIGRATIONS)
    }
}

/// Synthetic inputs whose bytes fall into the class.
fn inputs_of(cell: Cell) -> Option<(Vec<ArrayRef>, Params)> {
    // Sizes mean different things to different kernels: look for one that fits.
    let mut elements = ((1u64 << cell.class) / cell.dtype.size() as u64).max(1) as usize;
    for _ in 0..CLASSES {
        let (arrays, params) = synthetic_inputs(cell.kernel, elements, cell.dtype, 42).ok()?;
        let bytes: usize = arrays.iter().map(|array: &Array| array.bytes().len()).sum();
        if work_class(bytes as f64) <= cell.class {
            return Some((arrays.into_iter().map(ArrayRef::from).collect(), params));
        }
        elements /= 2;
        if elements == 0 {
            return None;
        }
    }
    None
}

/// Whether two answers are the same up to rounding: the array and the value.
fn agrees(reference: &Outcome, found: &Outcome) -> bool {
    let arrays = match (&reference.array, &found.array) {
        (None, None) => true,
        (Some(a), Some(b)) if a.dtype() == b.dtype() && a.shape() == b.shape() => match a.dtype() {
            DType::F32 => close(a.as_slice::<f32>(), b.as_slice::<f32>(), 1e-3),
            DType::F64 => close(a.as_slice::<f64>(), b.as_slice::<f64>(), 1e-9),
            DType::C64 | DType::C128 => true,
            _ => a.bytes() == b.bytes(),
        },
        _ => false,
    };
    arrays && same_value(reference.result.as_ref(), found.result.as_ref())
}

/// Numbers up to what a sum of `f32` in another order may differ by; everything else to the letter.
fn same_value(reference: Option<&Value>, found: Option<&Value>) -> bool {
    match (reference.and_then(Value::as_f64), found.and_then(Value::as_f64)) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-3 * a.abs().max(1.0),
        _ => match (reference, found) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                a.len() == b.len() && a.iter().all(|(key, value)| same_value(Some(value), b.get(key)))
            }
            (a, b) => a == b,
        },
    }
}

fn close<T: Copy + Into<f64>>(a: Option<&[T]>, b: Option<&[T]>, tolerance: f64) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    let largest = a.iter().map(|&x| x.into().abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
    a.iter().zip(b).all(|(&x, &y)| {
        let (x, y): (f64, f64) = (x.into(), y.into());
        x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance * largest.max(1e-30)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_compared_up_to_rounding() {
        let array = |values: &[f32]| Outcome {
            array: Some(Array::from_slice(&[values.len()], values).expect("small")),
            ..Outcome::default()
        };
        assert!(agrees(&array(&[1.0, 1000.0]), &array(&[1.0005, 1000.0])));
        assert!(!agrees(&array(&[1.0, 1000.0]), &array(&[3.0, 1000.0])));
        assert!(!agrees(&array(&[1.0]), &array(&[1.0, 2.0])));
        let value = |value: Value| Outcome { result: Some(value), ..Outcome::default() };
        assert!(agrees(&value(json!(100.0)), &value(json!(100.05))));
        assert!(!agrees(&value(json!(100.0)), &value(json!(101.0))));
        assert!(!agrees(&value(json!({"a": 1.0})), &value(json!({"a": 2.0}))));
        assert!(agrees(&Outcome::default(), &Outcome::default()));
        assert!(
            !agrees(&Outcome::default(), &array(&[1.0])) && !agrees(&value(json!(1)), &Outcome::default())
        );
    }

    /// Until all is known.
    fn finish(mut trial: Trial) -> Trial {
        let mut counters = Counters::open();
        while trial.step(&mut counters, &()) == Step::Going {}
        trial
    }

    #[test]
    fn what_takes_far_longer_is_not_chosen() {
        // The reference's form of these takes several times as long as the default wherever there are vectors.
        let cell = Cell { kernel: KernelId::Dot, dtype: DType::F32, class: 16 };
        let trial = finish(Trial::begin(cell, &()).expect("a cell").expect("nobody comes"));
        let found = trial.found().expect("an answer");
        let scalar = trial.candidates.iter().position(|variant| variant.level == Level::Scalar);
        let chosen = trial.candidates[found.best];
        assert!(Some(found.best) != scalar || Level::best() == Level::Scalar, "{chosen:?}");
        assert!(trial.search.median_ns(0) > Some(0.0) && found.runs > 8, "{found:?}");
    }

    #[test]
    fn a_variant_that_is_wrong_is_never_chosen() {
        let cell = Cell { kernel: KernelId::Sort, dtype: DType::F32, class: 12 };
        let mut trial = Trial::begin(cell, &()).expect("a cell").expect("nobody comes");
        // An answer that no variant gives.
        trial.reference.array = Some(Array::from_slice(&[1], &[0.0f32]).expect("small"));
        let trial = finish(trial);
        assert_eq!(trial.found().map(|found| (found.best, found.challenger)), Some((0, None)));
    }

    #[test]
    fn work_that_comes_interrupts_and_costs_nothing_but_the_run() {
        struct Busy;
        impl Pulse for Busy {
            fn beat(&self) -> Result<(), kernels::Cancelled> {
                Err(kernels::Cancelled)
            }
        }
        let cell = Cell { kernel: KernelId::Axpy, dtype: DType::F32, class: 14 };
        assert!(Trial::begin(cell, &Busy).expect("a cell").is_none());
        let mut trial = Trial::begin(cell, &()).expect("a cell").expect("nobody comes");
        let mut counters = Counters::open();
        assert_eq!(trial.step(&mut counters, &()), Step::Going);
        let next = trial.search.next();
        assert_eq!(trial.step(&mut counters, &Busy), Step::Interrupted);
        assert_eq!(trial.search.next(), next, "it is run again later");
        assert!(finish(trial).found().is_some());
    }
}
