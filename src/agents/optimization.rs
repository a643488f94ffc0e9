//! The optimization agent: times the variants of kernels while the host is idle and publishes the
//! best per kernel, element type and size class; compute agents use it from the next task on.
//!
//! It tries what really runs here: cells of the cost model that finished tasks filled, the dearest first. A swarm
//! that nobody uses has none, and costs nothing; only `agent optimize` tries the usual suspects as well.
//! A variant is checked against the plain reference before it is timed, timed as a median of
//! several runs, and preferred only if it is faster by a clear margin. It stops as soon as work
//! waits, and spends at most `agents.optimization.budget_percent` of one core.
//!
//! Its choices outlive it in a snapshot, which only the version of the program that made them takes back.

use super::snapshot::Memory;
use super::{Agent, Context, Settings};
use crate::arrays::{Array, ArrayRef, DType};
use crate::base::clock::Nanos;
use crate::jobs::work_class;
use crate::kernels::{self, Call, KernelId, Level, Params, Variant, synthetic_inputs, variants};
use crate::messaging::ToAgent;
use crate::messaging::envelope::Severity;
use crate::os::clock;
use crate::shm::board::CLASSES;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Runs per variant; the median counts.
const RUNS: usize = 5;
/// A variant must be so much faster than the default to replace it.
const MARGIN: f64 = 0.03;
/// Classes of inputs small enough to be tried: up to 4 MiB.
const CLASS_MAX: u8 = 22;
/// One trial may take so long.
const TRIAL_MAX: Duration = Duration::from_millis(200);
/// What is tried beside that when somebody asks.
const USUAL: [(KernelId, DType, u8); 6] = [
    (KernelId::Sort, DType::F32, 20),
    (KernelId::Histogram, DType::F32, 20),
    (KernelId::Matmul, DType::F32, 19),
    (KernelId::Stencil5, DType::F32, 20),
    (KernelId::Reduce, DType::F32, 20),
    (KernelId::Dot, DType::F64, 18),
];

pub(super) struct OptimizationAgent {
    interval: Duration,
    budget: f64,
    due: Nanos,
    done: BTreeSet<(u8, u8, u8)>,
    /// What was chosen, per kernel, element type and class.
    chosen: BTreeMap<(u8, u8, u8), Variant>,
    asked: bool,
    memory: Memory,
}

/// One choice in a snapshot.
#[derive(Debug, Serialize, Deserialize)]
struct KeptChoice {
    kernel: String,
    dtype: String,
    class: u8,
    level: String,
    choice: u8,
}

impl KeptChoice {
    fn new(&(kernel, dtype, class): &(u8, u8, u8), variant: Variant) -> Option<Self> {
        Some(Self {
            kernel: KernelId::from_code(kernel)?.name().to_owned(),
            dtype: DType::from_code(dtype)?.name().to_owned(),
            class,
            level: variant.level.name().to_owned(),
            choice: variant.choice,
        })
    }

    /// Where it belongs; `None` for what this machine does not have.
    fn check(&self) -> Option<((u8, u8, u8), Variant)> {
        let kernel = KernelId::from_name(&self.kernel)?;
        let dtype = DType::from_name(&self.dtype)?;
        let variant = Variant::new(Level::from_name(&self.level)?, self.choice);
        let known = self.class <= CLASS_MAX && variants(kernel, Some(dtype)).contains(&variant);
        known.then_some(((kernel.code(), dtype.code(), self.class), variant))
    }
}

/// How a cell's trial ended.
enum Trial {
    /// This variant is best; it takes so long, the default so long, the scalar form so long, ns.
    Best { variant: Variant, best_ns: f64, default_ns: f64, scalar_ns: f64 },
    /// Work came; try again later.
    Interrupted,
    /// There is nothing to choose, or nothing could be timed.
    Nothing(&'static str),
}

impl OptimizationAgent {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            interval: settings.optimization_interval,
            budget: (settings.optimization_budget_percent / 100.0).clamp(0.0, 1.0),
            due: clock::now().plus(settings.optimization_interval),
            done: BTreeSet::new(),
            chosen: BTreeMap::new(),
            asked: false,
            memory: Memory::default(),
        }
    }

    fn is_idle(context: &Context) -> bool {
        context.board.backlog() == (0, 0)
    }

    /// The next cell to try: what ran here first, then, when asked, the usual suspects.
    fn next_cell(&self, context: &Context) -> Option<(KernelId, DType, u8)> {
        let mut ran = Vec::new();
        for kernel in KernelId::ALL {
            for class in 0..CLASSES as u8 {
                if let Some(cost) = context.board.cost(kernel.code(), class, None)
                    && class <= CLASS_MAX
                {
                    for &dtype in kernels::spec(kernel).dtypes.iter().take(2) {
                        ran.push((f64::from(cost.mean_ns) * f64::from(cost.samples), kernel, dtype, class));
                    }
                }
            }
        }
        ran.sort_by(|a, b| b.0.total_cmp(&a.0));
        let ran = ran.into_iter().map(|(_, kernel, dtype, class)| (kernel, dtype, class));
        let usual = if self.asked { &USUAL[..] } else { &[] };
        ran.chain(usual.iter().copied()).find(|(kernel, dtype, class)| {
            !self.done.contains(&(kernel.code(), dtype.code(), *class))
                && variants(*kernel, Some(*dtype)).len() > 1
        })
    }

    fn cycle(&mut self, context: &mut Context) {
        let Some((kernel, dtype, class)) = self.next_cell(context) else {
            // Everything was tried; look again now and then, for what may run in the meantime.
            self.due = clock::now().plus(self.interval.max(Duration::from_secs(1)));
            return;
        };
        let began = clock::now();
        match try_cell(kernel, dtype, class, context, || self.asked || Self::is_idle(context)) {
            Trial::Best { variant, best_ns, default_ns, scalar_ns } => {
                self.done.insert((kernel.code(), dtype.code(), class));
                self.chosen.insert((kernel.code(), dtype.code(), class), variant);
                let kept: Vec<_> =
                    self.chosen.iter().filter_map(|(at, &variant)| KeptChoice::new(at, variant)).collect();
                self.memory.keep(&kept, context);
                context.board.publish_variant(kernel.code(), dtype.code(), class, variant.encode());
                let mut text = format!(
                    "{kernel} {} class {class}: {} {} takes {:.1} us; the default {:.1} us ({:.2} x)",
                    dtype.name(),
                    variant.level.name(),
                    variant.choice_name(kernel),
                    best_ns / 1000.0,
                    default_ns / 1000.0,
                    default_ns / best_ns,
                );
                // Kernels without vector code have no scalar form of their own.
                if scalar_ns.is_finite() {
                    text += &format!(", scalar {:.1} us ({:.1} x)", scalar_ns / 1000.0, scalar_ns / best_ns);
                }
                context.note(Severity::Info, "variant_chosen", &text);
            }
            Trial::Interrupted => {}
            Trial::Nothing(why) => {
                self.done.insert((kernel.code(), dtype.code(), class));
                tracing::debug!(%kernel, dtype = dtype.name(), class, why, "nothing to tune");
            }
        }
        let now = clock::now();
        let spent = now.since(began);
        // What was spent now is waited for in full before the next trial.
        let pause = if self.asked {
            Duration::ZERO
        } else {
            spent.mul_f64((1.0 / self.budget.max(1e-3) - 1.0).max(0.0))
        };
        self.due = now.plus(pause.max(if self.asked { Duration::ZERO } else { self.interval }));
    }
}

fn try_cell(
    kernel: KernelId,
    dtype: DType,
    class: u8,
    context: &Context,
    may_go_on: impl Fn() -> bool,
) -> Trial {
    let Some((inputs, params)) = inputs_of_class(kernel, dtype, class) else {
        return Trial::Nothing("no inputs of this class can be made");
    };
    let pulse = BeatOnly(context);
    let call = |variant| Call { kernel, params: &params, inputs: &inputs, variant, pulse: &pulse };
    let Ok(reference) = kernels::run(&call(Variant::new(Level::Scalar, 0))) else {
        return Trial::Nothing("the reference fails");
    };
    let candidates = variants(kernel, Some(dtype));
    let default = candidates[0];
    let (mut best, mut default_ns, mut scalar_ns) = (None::<(f64, Variant)>, f64::NAN, f64::NAN);
    for variant in candidates {
        let mut times = Vec::with_capacity(RUNS);
        for _ in 0..=RUNS {
            if !may_go_on() {
                return Trial::Interrupted;
            }
            let began = clock::now();
            let Ok(outcome) = kernels::run(&call(variant)) else { break };
            let took = clock::now().since(began);
            if times.is_empty() && !agrees(&reference.array, &outcome.array) {
                tracing::warn!(%kernel, level = variant.level.name(), choice = variant.choice, "variant disagrees with the reference");
                break;
            }
            times.push(took.as_nanos() as f64);
            if took > TRIAL_MAX {
                break;
            }
        }
        // The first run warms caches and pages up.
        if times.len() > 1 {
            times.remove(0);
        }
        if times.is_empty() {
            continue;
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        if variant == default {
            default_ns = median;
        }
        if variant.level == Level::Scalar && scalar_ns.is_nan() {
            scalar_ns = median;
        }
        let wins = best.is_none_or(|(ns, _)| median < ns * (1.0 - MARGIN));
        if wins {
            best = Some((median, variant));
        }
    }
    match best {
        Some((best_ns, variant)) => Trial::Best { variant, best_ns, default_ns, scalar_ns },
        None => Trial::Nothing("no variant could be timed"),
    }
}

/// Synthetic inputs whose bytes fall into `class`, as the supervisor counts them.
fn inputs_of_class(kernel: KernelId, dtype: DType, class: u8) -> Option<(Vec<ArrayRef>, Params)> {
    // Sizes mean different things to different kernels: look for one that fits.
    let mut elements = ((1u64 << class) / dtype.size() as u64).max(1) as usize;
    for _ in 0..CLASSES {
        let (arrays, params) = synthetic_inputs(kernel, elements, dtype, 42).ok()?;
        let bytes: usize = arrays.iter().map(|array: &Array| array.bytes().len()).sum();
        if work_class(bytes as f64) <= class {
            return Some((arrays.into_iter().map(ArrayRef::from).collect(), params));
        }
        elements /= 2;
        if elements == 0 {
            return None;
        }
    }
    None
}

/// Whether two answers are the same up to rounding.
fn agrees(reference: &Option<Array>, found: &Option<Array>) -> bool {
    match (reference, found) {
        (None, None) => true,
        (Some(a), Some(b)) if a.dtype() == b.dtype() && a.shape() == b.shape() => match a.dtype() {
            DType::F32 => close(a.as_slice::<f32>(), b.as_slice::<f32>(), 1e-3),
            DType::F64 => close(a.as_slice::<f64>(), b.as_slice::<f64>(), 1e-9),
            _ => a.bytes() == b.bytes(),
        },
        _ => false,
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

/// Shows progress; trials are never cancelled by task.
struct BeatOnly<'a>(&'a Context);

impl kernels::Pulse for BeatOnly<'_> {
    fn beat(&self) -> Result<(), kernels::Cancelled> {
        self.0.beat();
        Ok(())
    }
}

impl Agent for OptimizationAgent {
    fn on_start(&mut self, context: &mut Context) -> anyhow::Result<()> {
        let kept: Option<(Vec<KeptChoice>, String)> = self.memory.recall("variants", context);
        // Another version's variants may be other code under the same name.
        let kept = kept.filter(|(_, product)| product == env!("CARGO_PKG_VERSION"));
        for (at, variant) in kept.iter().flat_map(|(kept, _)| kept).filter_map(KeptChoice::check) {
            self.done.insert(at);
            self.chosen.insert(at, variant);
            context.board.publish_variant(at.0, at.1, at.2, variant.encode());
        }
        Ok(())
    }

    fn on_message(&mut self, _message: &ToAgent<'_>, _context: &mut Context) {}

    fn do_work(&mut self, context: &mut Context) -> usize {
        let now = clock::now();
        if now < self.due {
            return 0;
        }
        if !Self::is_idle(context) || self.budget == 0.0 {
            self.due = now.plus(self.interval);
            return 0;
        }
        self.cycle(context);
        1
    }

    fn next_due(&self) -> Option<Nanos> {
        Some(self.due)
    }

    fn optimize(&mut self, context: &mut Context) {
        self.asked = true;
        self.done.clear();
        while self.next_cell(context).is_some() && !context.stopping {
            context.hear_control();
            self.cycle(context);
        }
        self.asked = false;
        context.note(Severity::Info, "optimization_done", &format!("{} cells tried", self.done.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_survives_the_way_to_a_snapshot_and_back() {
        let kernel = KernelId::Sort;
        let variant = *variants(kernel, Some(DType::F32)).last().expect("variants");
        let at = (kernel.code(), DType::F32.code(), 20);
        let kept = KeptChoice::new(&at, variant).expect("known");
        assert_eq!(kept.check(), Some((at, variant)));
        let strange = |change: fn(&mut KeptChoice)| {
            let mut kept = KeptChoice::new(&at, variant).expect("known");
            change(&mut kept);
            kept.check()
        };
        assert_eq!(strange(|kept| kept.kernel = "sorted".into()), None);
        assert_eq!(strange(|kept| kept.level = "avx1024".into()), None);
        assert_eq!(strange(|kept| kept.choice = 200), None);
        assert_eq!(strange(|kept| kept.class = 31), None);
    }

    #[test]
    fn answers_are_compared_up_to_rounding() {
        let array = |values: &[f32]| Some(Array::from_slice(&[values.len()], values).expect("small"));
        assert!(agrees(&array(&[1.0, 1000.0]), &array(&[1.0005, 1000.0])));
        assert!(!agrees(&array(&[1.0, 1000.0]), &array(&[3.0, 1000.0])));
        assert!(!agrees(&array(&[1.0]), &array(&[1.0, 2.0])));
        assert!(agrees(&None, &None) && !agrees(&None, &array(&[1.0])));
    }
}
