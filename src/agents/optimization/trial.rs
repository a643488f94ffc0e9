//! One cell under trial: inputs of its size, the reference's answer, and a search among the kernel's variants.

use super::search::{Found, Search};
use crate::arrays::{Array, ArrayRef, DType, Element};
use crate::base::clock::Nanos;
use crate::jobs::work_class;
use crate::kernels::{
    self, Call, Cancelled, KernelError, KernelId, Level, Outcome, Params, Pulse, Variant, check_params,
    synthetic_inputs, variants,
};
use crate::os::clock;
use crate::os::counting::{CONTEXT_SWITCHES, CPU_MIGRATIONS, Counters, Counts};
use crate::shm::board::CLASSES;
use num_complex::Complex;
use serde_json::{Value, json};
use std::cell::Cell as Flag;
use std::time::Duration;

/// A cell with a default that takes longer is not tried: the others would take as long, a hundred times over.
const RUN_MAX: Duration = Duration::from_millis(50);
/// Nor one in which the reference takes longer.
const REFERENCE_MAX: Duration = Duration::from_secs(1);
/// Who takes so many times as long as the default, and so much longer, is not run again.
const HOPELESS: f64 = 8.0;
const HOPELESS_MIN_NS: f64 = 200_000.0;
/// So many runs of each candidate during which the core went to somebody else are done again; where it happens all the time
/// they count.
const AGAIN_MAX: usize = 8;
/// Steps of heat flow that are tried: the ways of doing one are the same.
const STENCIL_STEPS: usize = 8;

/// What is tuned for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub kernel: KernelId,
    pub dtype: DType,
    /// Of the bytes of its inputs, as the supervisor counts them.
    pub class: u8,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} class {}", self.kernel, self.dtype.name(), self.class)
    }
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
    search: Search,
    inputs: Vec<ArrayRef>,
    params: Params,
    reference: Outcome,
    /// Stands for the pages of the output.
    file: Vec<u8>,
    /// The default's better run of two.
    default_ns: f64,
    /// The caches and the clock are not what they are in the middle of work.
    is_cold: bool,
    is_checked: Vec<bool>,
    counted: Vec<Counts>,
    again: Vec<usize>,
    /// Runs of each that were cut off.
    cut: Vec<usize>,
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
        let run = |variant, pulse: &dyn Pulse| {
            kernels::run(&Call { kernel: cell.kernel, params: &params, inputs: &inputs, variant, pulse })
        };
        let mut default_took = Duration::MAX;
        // Twice: the first run meets cold caches and fresh pages.
        for _ in 0..2 {
            let began = clock::now();
            match run(default, pulse) {
                Err(KernelError::Cancelled) => return Ok(None),
                Err(_) => return Err("the default fails"),
                Ok(_) => default_took = default_took.min(clock::now().since(began)),
            }
        }
        if default_took > RUN_MAX {
            return Err("it takes too long");
        }
        let leash = Leash::new(pulse, REFERENCE_MAX);
        let reference = match run(Variant::new(Level::Scalar, 0), &leash) {
            Err(KernelError::Cancelled) if leash.has_cut() => return Err("the reference takes too long"),
            Err(KernelError::Cancelled) => return Ok(None),
            Err(_) => return Err("the reference fails"),
            Ok(reference) => reference,
        };
        let mut file = Vec::new();
        if file.try_reserve(reference.array.as_ref().map_or(0, |array| array.bytes().len())).is_err() {
            return Err("there is no memory for it");
        }
        let count = candidates.len();
        Ok(Some(Trial {
            cell,
            candidates,
            search: Search::new(count),
            inputs,
            params,
            reference,
            file,
            default_ns: default_took.as_nanos() as f64,
            is_cold: true,
            is_checked: vec![false; count],
            counted: vec![Counts::NONE; count],
            again: vec![0; count],
            cut: vec![0; count],
        }))
    }

    /// Grows with what a pause leaves standing.
    pub fn progress(&self) -> usize {
        self.search.progress()
    }

    /// Time has passed in which nothing ran here.
    pub fn pause(&mut self) {
        self.search.pause();
        self.is_cold = true;
    }

    /// One run.
    pub fn step(&mut self, counters: &mut Counters, pulse: &dyn Pulse) -> Step {
        let Some(at) = self.search.next() else { return Step::Done };
        // The default is what there is: it may take its time.
        let most = if at == 0 { REFERENCE_MAX } else { Duration::from_nanos(self.hopeless_ns() as u64) };
        let leash = Leash::new(pulse, most);
        let run = match self.run(at, counters, &leash) {
            Err(KernelError::Cancelled) if at == 0 || !leash.has_cut() => {
                self.pause();
                return Step::Interrupted;
            }
            run => run.ok(),
        };
        let kernel = self.cell.kernel;
        let is_cut = at != 0 && run.as_ref().map_or(leash.has_cut(), |run| run.took_ns > self.hopeless_ns());
        if is_cut {
            // Once it may be the host that stood still.
            self.cut[at] += 1;
            if self.cut[at] > 1 {
                self.search.reject();
            }
            return Step::Going;
        }
        let Some(run) = run.filter(|run| self.is_checked[at] || agrees(&self.reference, &run.outcome)) else {
            let variant = self.candidates[at].describe(kernel);
            tracing::warn!(%kernel, variant, "variant fails or disagrees with the reference");
            self.search.reject();
            return Step::Going;
        };
        self.is_checked[at] = true;
        let is_disturbed =
            std::mem::take(&mut self.is_cold) || run.is_disturbed() && self.again[at] < AGAIN_MAX;
        if is_disturbed {
            self.again[at] += usize::from(run.is_disturbed());
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
        let mut again = 0;
        loop {
            let run = self.run(candidate, counters, pulse)?;
            if !run.is_disturbed() || again >= AGAIN_MAX {
                return Ok(run.took_ns);
            }
            again += 1;
        }
    }

    fn hopeless_ns(&self) -> f64 {
        (HOPELESS * self.default_ns).max(self.default_ns + HOPELESS_MIN_NS)
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
        let took_ns = clock::now().since(began).as_nanos() as f64;
        let counts = counters.end();
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

/// Ends a run that takes longer than it may.
struct Leash<'a> {
    pulse: &'a dyn Pulse,
    ends: Nanos,
    has_cut: Flag<bool>,
}

impl<'a> Leash<'a> {
    fn new(pulse: &'a dyn Pulse, length: Duration) -> Self {
        Self { pulse, ends: clock::now().plus(length), has_cut: Flag::new(false) }
    }

    /// Whether it was this that ended the run.
    fn has_cut(&self) -> bool {
        self.has_cut.get()
    }
}

impl Pulse for Leash<'_> {
    fn beat(&self) -> Result<(), Cancelled> {
        self.pulse.beat()?;
        if clock::now() <= self.ends {
            return Ok(());
        }
        self.has_cut.set(true);
        Err(Cancelled)
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
        let (arrays, mut params) = synthetic_inputs(cell.kernel, elements, cell.dtype, 42).ok()?;
        if cell.kernel == KernelId::Stencil5 {
            params = check_params(cell.kernel, json!({"steps": STENCIL_STEPS}).as_object()?).ok()?;
        }
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

/// Whether two answers are the same up to rounding: the arrays and the value.
fn agrees(reference: &Outcome, found: &Outcome) -> bool {
    let arrays = match (&reference.array, &found.array) {
        (None, None) => true,
        (Some(a), Some(b)) => same_array(a, b),
        _ => false,
    };
    let more = reference.extra.len() == found.extra.len()
        && reference.extra.iter().zip(&found.extra).all(|((_, a), (_, b))| same_array(a, b));
    arrays && more && same_value(reference.result.as_ref(), found.result.as_ref())
}

fn same_array(a: &Array, b: &Array) -> bool {
    let is_alike = a.dtype() == b.dtype() && a.shape() == b.shape();
    is_alike
        && match a.dtype() {
            DType::F32 => close(reals::<f32>(a), reals::<f32>(b), 1e-3),
            DType::F64 => close(reals::<f64>(a), reals::<f64>(b), 1e-9),
            DType::C64 => close(parts::<f32>(a), parts::<f32>(b), 1e-3),
            DType::C128 => close(parts::<f64>(a), parts::<f64>(b), 1e-9),
            _ => a.bytes() == b.bytes(),
        }
}

fn reals<T: Element + Into<f64>>(array: &Array) -> impl Iterator<Item = f64> + Clone {
    array.as_slice::<T>().unwrap_or_default().iter().map(|&x| x.into())
}

fn parts<T: Copy + Into<f64>>(array: &Array) -> impl Iterator<Item = f64> + Clone
where
    Complex<T>: Element,
{
    let elements = array.as_slice::<Complex<T>>().unwrap_or_default();
    elements.iter().flat_map(|x| [x.re.into(), x.im.into()])
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

fn close(a: impl Iterator<Item = f64> + Clone, mut b: impl Iterator<Item = f64>, tolerance: f64) -> bool {
    let largest = a.clone().map(f64::abs).filter(|x| x.is_finite()).fold(0.0, f64::max);
    a.into_iter().all(|x| {
        b.next().is_some_and(|y| {
            x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance * largest.max(1e-30)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::spec;

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
    fn complex_answers_and_further_arrays_are_compared_as_well() {
        let array = |im: f32| Array::from_slice(&[1], &[Complex::new(1.0f32, im)]).expect("small");
        let outcome = |array, extra| Outcome { array: Some(array), extra, ..Outcome::default() };
        assert!(agrees(&outcome(array(1.0), vec![]), &outcome(array(1.0001), vec![])));
        assert!(!agrees(&outcome(array(1.0), vec![]), &outcome(array(2.0), vec![])));
        let places = |place: i64| vec![(".places.npy", Array::from_slice(&[1], &[place]).expect("small"))];
        assert!(agrees(&outcome(array(1.0), places(3)), &outcome(array(1.0), places(3))));
        assert!(!agrees(&outcome(array(1.0), places(3)), &outcome(array(1.0), places(4))));
        assert!(!agrees(&outcome(array(1.0), places(3)), &outcome(array(1.0), vec![])));
    }

    #[test]
    fn every_kernel_with_a_choice_comes_to_an_answer() {
        for kernel in KernelId::ALL {
            for &dtype in spec(kernel).dtypes.iter().take(2) {
                let cell = Cell { kernel, dtype, class: 12 };
                if variants(kernel, Some(dtype)).len() < 2 {
                    continue;
                }
                let trial = Trial::begin(cell, &()).unwrap_or_else(|why| panic!("{cell:?}: {why}"));
                let trial = finish(trial.expect("nobody comes"));
                let found = trial.found().expect("an answer");
                assert!(found.is_default_usable, "{cell:?}: the default is wrong");
                assert!(found.best == 0 || found.duel.is_some_and(|duel| duel.challenger == found.best));
            }
        }
    }

    #[test]
    fn a_variant_that_is_wrong_is_never_chosen() {
        let cell = Cell { kernel: KernelId::Sort, dtype: DType::F32, class: 12 };
        let mut trial = Trial::begin(cell, &()).expect("a cell").expect("nobody comes");
        // An answer that no variant gives.
        trial.reference.array = Some(Array::from_slice(&[1], &[0.0f32]).expect("small"));
        let trial = finish(trial);
        let found = trial.found().expect("an answer");
        assert_eq!((found.best, found.duel, found.is_default_usable), (0, None, false));
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
        let leash = Leash::new(&(), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
        assert!(leash.beat().is_err() && leash.has_cut());
        let leash = Leash::new(&Busy, Duration::from_secs(600));
        assert!(leash.beat().is_err() && !leash.has_cut());
    }
}
