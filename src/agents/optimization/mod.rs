//! The optimization agent: times the variants of kernels while the host is idle and publishes the
//! best per kernel, element type and size class; compute agents use it from the next task on.
//!
//! It tries what really runs here: cells of the cost model that finished tasks filled, the dearest first. A swarm
//! that nobody uses has none, and costs nothing; only `agent optimize` tries the usual suspects as well.
//! A variant is checked against the plain reference before it is timed ([`trial`]), and preferred only if it is faster for
//! sure ([`search`]). Trials stop in the middle of a run when work comes, go on where they were, and take at most
//! `agents.optimization.budget_percent` of one core.
//!
//! A choice is doubted when the cell's tasks come to take half as long again, or less by as much, as when it was made: then it
//! is tried anew, and dropped if it does not win again.
//!
//! Its choices outlive it in a snapshot, which only the version of the program that made them takes back.

mod search;
pub(crate) mod trial;

use super::snapshot::Memory;
use super::{Agent, Context, Settings};
use crate::arrays::DType;
use crate::base::clock::Nanos;
use crate::kernels::{self, Cancelled, KernelId, Level, Variant, variants};
use crate::messaging::ToAgent;
use crate::messaging::envelope::Severity;
use crate::messaging::port::Mail;
use crate::os::clock;
use crate::os::counting::{CYCLES, Counters, Counts, INSTRUCTIONS};
use crate::os::map::Buffer;
use crate::shm::board::{CLASSES, Cost};
use search::Gain;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use trial::{Cell, Step, Trial};

/// Classes of inputs small enough to be tried: up to 64 MiB.
const CLASS_MAX: u8 = 26;
/// It looks up from a trial so often.
const TURN: Duration = Duration::from_millis(20);
/// A trial that work has kept from going on for so long gives its memory back, and begins anew.
const TRIAL_REST_MAX: Duration = Duration::from_secs(10);
/// What a cell's tasks take may change by this factor before a choice is doubted,
const DRIFT: f32 = 1.5;
/// which so many of them have to show.
const DRIFT_SAMPLES: u32 = 20;
/// What is tried beside what ran, when somebody asks.
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
    done: BTreeSet<Cell>,
    chosen: BTreeMap<Cell, Choice>,
    /// What the cell's tasks took when the choice was made.
    then: BTreeMap<Cell, Cost>,
    trial: Option<Trial>,
    counters: Option<Counters>,
    asked: bool,
    memory: Memory,
}

/// What was chosen for a cell, and why.
#[derive(Clone, Debug, PartialEq)]
struct Choice {
    variant: Variant,
    evidence: Option<Evidence>,
}

/// How the choice came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Evidence {
    /// What runs when nothing is chosen, and what it takes, us.
    default: String,
    default_us: f64,
    /// The fastest of the others, and what it takes, us.
    challenger: String,
    challenger_us: f64,
    /// The default's time over the challenger's: the median of pairs, and where it lies 95 times of 100.
    gain: f64,
    gain_low: f64,
    gain_high: f64,
    /// Variants that were tried, and runs that it took.
    variants: usize,
    runs: usize,
    /// Instructions per cycle of both; absent without counters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    default_ipc: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    challenger_ipc: Option<f64>,
}

/// A choice as the snapshot has it, and as whoever asks is told.
#[derive(Debug, Serialize, Deserialize)]
struct KeptChoice {
    kernel: String,
    dtype: String,
    class: u8,
    level: String,
    choice: u8,
    #[serde(default)]
    other_stores: bool,
    /// The three before in words; nobody reads it back.
    #[serde(default)]
    chosen: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    evidence: Option<Evidence>,
}

impl KeptChoice {
    fn new(cell: Cell, choice: &Choice) -> Self {
        let variant = choice.variant;
        Self {
            kernel: cell.kernel.name().to_owned(),
            dtype: cell.dtype.name().to_owned(),
            class: cell.class,
            level: variant.level.name().to_owned(),
            choice: variant.choice,
            other_stores: variant.other_stores,
            chosen: variant.describe(cell.kernel),
            evidence: choice.evidence.clone(),
        }
    }

    /// Where it belongs; `None` for what this machine does not have.
    fn check(self) -> Option<(Cell, Choice)> {
        let (kernel, dtype) = (KernelId::from_name(&self.kernel)?, DType::from_name(&self.dtype)?);
        let level = Level::from_name(&self.level)?;
        let variant = Variant { other_stores: self.other_stores, ..Variant::new(level, self.choice) };
        let known = self.class <= CLASS_MAX && variants(kernel, Some(dtype)).contains(&variant);
        known.then_some((
            Cell { kernel, dtype, class: self.class },
            Choice { variant, evidence: self.evidence },
        ))
    }
}

impl OptimizationAgent {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            interval: settings.optimization_interval,
            budget: (settings.optimization_budget_percent / 100.0).clamp(0.0, 1.0),
            due: clock::now().plus(settings.optimization_interval),
            done: BTreeSet::new(),
            chosen: BTreeMap::new(),
            then: BTreeMap::new(),
            trial: None,
            counters: None,
            asked: false,
            memory: Memory::default(),
        }
    }

    /// The next cell to try: what ran here first, then, when asked, the usual suspects.
    fn next_cell(&self, context: &Context) -> Option<Cell> {
        let mut ran = Vec::new();
        for kernel in KernelId::ALL {
            for class in 0..=CLASS_MAX.min(CLASSES as u8 - 1) {
                if let Some(cost) = context.board.cost(kernel.code(), class, None) {
                    for &dtype in kernels::spec(kernel).dtypes.iter().take(2) {
                        let cell = Cell { kernel, dtype, class };
                        ran.push((f64::from(cost.mean_ns) * f64::from(cost.samples), cell));
                    }
                }
            }
        }
        ran.sort_by(|a, b| b.0.total_cmp(&a.0));
        let usual = if self.asked { &USUAL[..] } else { &[] };
        let usual = usual.iter().map(|&(kernel, dtype, class)| Cell { kernel, dtype, class });
        ran.into_iter()
            .map(|(_, cell)| cell)
            .chain(usual)
            .find(|cell| !self.done.contains(cell) && variants(cell.kernel, Some(cell.dtype)).len() > 1)
    }

    /// Goes on with the trial, or begins one, for a while. False: there is nothing to try.
    fn turn(&mut self, context: &mut Context) -> bool {
        let began = clock::now();
        let watch = Watch { context, asked: self.asked };
        let mut trial = match self.trial.take() {
            Some(trial) => trial,
            None => {
                let Some(cell) = self.next_cell(context) else { return false };
                match Trial::begin(cell, &watch) {
                    Ok(Some(trial)) => trial,
                    Ok(None) => return true,
                    Err(why) => {
                        self.done.insert(cell);
                        let Cell { kernel, dtype, class } = cell;
                        tracing::debug!(%kernel, dtype = dtype.name(), class, why, "nothing to tune");
                        return true;
                    }
                }
            }
        };
        let counters = self.counters.get_or_insert_with(Counters::open);
        loop {
            match trial.step(counters, &watch) {
                Step::Going if clock::now().since(began) < TURN => {}
                Step::Going | Step::Interrupted => {
                    self.trial = Some(trial);
                    return true;
                }
                Step::Done => {
                    self.conclude(&trial, context);
                    return true;
                }
            }
        }
    }

    /// The trial has its answer: it is told, published and kept.
    fn conclude(&mut self, trial: &Trial, context: &mut Context) {
        let cell = trial.cell;
        self.done.insert(cell);
        let Some(found) = trial.found() else { return };
        let variant = trial.candidates[found.best];
        let evidence =
            found.challenger.and_then(|(challenger, gain)| evidence(trial, challenger, gain, found.runs));
        let before = self.chosen.insert(cell, Choice { variant, evidence: evidence.clone() });
        let lost = before.filter(|before| before.variant != variant && before.variant != trial.candidates[0]);
        match self.cost(cell, context) {
            Some(cost) => self.then.insert(cell, cost),
            None => self.then.remove(&cell),
        };
        let kept: Vec<_> = self.chosen.iter().map(|(&cell, choice)| KeptChoice::new(cell, choice)).collect();
        self.memory.keep(&kept, context);
        context.board.publish_variant(cell.kernel.code(), cell.dtype.code(), cell.class, variant.encode());

        let place = format!("{} {} class {}", cell.kernel, cell.dtype.name(), cell.class);
        let text = match (&evidence, found.best) {
            (None, _) => {
                format!("{place}: {} stays, no other variant can be used", variant.describe(cell.kernel))
            }
            (Some(evidence), best) => format!(
                "{place}: {}, {:.1} us, {} {}, {:.1} us: {:.2} times as fast, 95 % between {:.2} and {:.2}, {} runs",
                evidence.challenger,
                evidence.challenger_us,
                if best == 0 { "is not faster for sure than the default" } else { "instead of the default" },
                evidence.default,
                evidence.default_us,
                evidence.gain,
                evidence.gain_low,
                evidence.gain_high,
                evidence.runs,
            ),
        };
        context.note(Severity::Info, "variant_chosen", &text);
        if let Some(lost) = lost {
            let text = format!("{place}: {} does not win any more", lost.variant.describe(cell.kernel));
            context.note(Severity::Info, "variant_dropped", &text);
        }
    }

    fn cost(&self, cell: Cell, context: &Context) -> Option<Cost> {
        context.board.cost(cell.kernel.code(), cell.class, None)
    }

    /// Looks whether a choice has to be tried anew.
    fn doubt(&mut self, context: &mut Context) {
        let cells: Vec<Cell> = self.chosen.keys().copied().collect();
        for cell in cells {
            let Some(now) = self.cost(cell, context) else { continue };
            let then = *self.then.entry(cell).or_insert(now);
            if has_drifted(then, now) && self.done.remove(&cell) {
                self.then.insert(cell, now);
                let text = format!(
                    "{} {} class {}: tasks take {:.1} us, {:.1} when it was chosen",
                    cell.kernel,
                    cell.dtype.name(),
                    cell.class,
                    now.mean_ns / 1000.0,
                    then.mean_ns / 1000.0
                );
                context.note(Severity::Info, "variant_doubted", &text);
            }
        }
    }

    /// What was found so far, for whoever asks.
    fn tuned(&self) -> Vec<KeptChoice> {
        self.chosen.iter().map(|(&cell, choice)| KeptChoice::new(cell, choice)).collect()
    }
}

/// Whether tasks take that much longer, or less long, than they did, and enough of them have said so.
fn has_drifted(then: Cost, now: Cost) -> bool {
    let ratio = now.mean_ns / then.mean_ns.max(1.0);
    now.samples.saturating_sub(then.samples) >= DRIFT_SAMPLES && !(1.0 / DRIFT..=DRIFT).contains(&ratio)
}

fn evidence(trial: &Trial, challenger: usize, gain: Gain, runs: usize) -> Option<Evidence> {
    let kernel = trial.cell.kernel;
    let ipc = |counts: &Counts| {
        Some(counts.get(INSTRUCTIONS)? / counts.get(CYCLES).filter(|&cycles| cycles > 0.0)?)
    };
    Some(Evidence {
        default: trial.candidates[0].describe(kernel),
        default_us: trial.search.median_ns(0)? / 1000.0,
        challenger: trial.candidates[challenger].describe(kernel),
        challenger_us: trial.search.median_ns(challenger)? / 1000.0,
        gain: gain.median,
        gain_low: gain.low,
        gain_high: gain.high,
        variants: trial.candidates.len(),
        runs,
        default_ipc: ipc(trial.counts(0)),
        challenger_ipc: ipc(trial.counts(challenger)),
    })
}

/// Shows progress, and ends a run when work comes, unless somebody asked for it.
struct Watch<'a> {
    context: &'a Context,
    asked: bool,
}

impl Watch<'_> {
    fn may_go_on(&self) -> bool {
        self.asked || self.context.board.backlog() == (0, 0)
    }
}

impl kernels::Pulse for Watch<'_> {
    fn beat(&self) -> Result<(), Cancelled> {
        self.context.beat();
        if self.may_go_on() { Ok(()) } else { Err(Cancelled) }
    }
}

impl Agent for OptimizationAgent {
    fn on_start(&mut self, context: &mut Context) -> anyhow::Result<()> {
        let kept: Option<(Vec<KeptChoice>, String)> = self.memory.recall("variants", context);
        // Another version's variants may be other code under the same name.
        let kept = kept.filter(|(_, product)| product == env!("CARGO_PKG_VERSION"));
        for (cell, choice) in kept.into_iter().flat_map(|(kept, _)| kept).filter_map(KeptChoice::check) {
            self.done.insert(cell);
            let code = choice.variant.encode();
            context.board.publish_variant(cell.kernel.code(), cell.dtype.code(), cell.class, code);
            self.chosen.insert(cell, choice);
        }
        Ok(())
    }

    fn on_message(&mut self, _message: &ToAgent<'_>, _context: &mut Context) {}

    /// `tune` is answered, after a cycle, with what was chosen and why, as JSON; `tuned` is answered at once.
    fn on_request(&mut self, mail: &Mail, context: &mut Context) -> Vec<u8> {
        match mail.payload() {
            b"tune" => {
                self.optimize(context);
                serde_json::to_vec(&self.tuned()).unwrap_or_default()
            }
            b"tuned" => serde_json::to_vec(&self.tuned()).unwrap_or_default(),
            b"status" => context.describe().to_string().into_bytes(),
            _ => mail.to_vec(),
        }
    }

    fn do_work(&mut self, context: &mut Context) -> usize {
        let now = clock::now();
        if now < self.due {
            return 0;
        }
        let is_idle = Watch { context, asked: false }.may_go_on();
        if !is_idle || self.budget == 0.0 {
            if self.trial.as_ref().is_some_and(|trial| now.since(trial.touched) > TRIAL_REST_MAX) {
                self.trial = None;
            }
            self.due = now.plus(self.interval);
            return 0;
        }
        self.doubt(context);
        if !self.turn(context) {
            // Everything was tried; look again now and then, for what may run in the meantime.
            self.due = now.plus(self.interval.max(Duration::from_secs(1)));
            return 1;
        }
        let spent = clock::now().since(now);
        // What was spent now is waited for in full before the next turn; a cell is followed by a pause.
        let pause = spent.mul_f64((1.0 / self.budget.max(1e-3) - 1.0).max(0.0));
        let pause = if self.trial.is_some() { pause } else { pause.max(self.interval) };
        self.due = clock::now().plus(pause);
        1
    }

    fn next_due(&self) -> Option<Nanos> {
        Some(self.due)
    }

    fn on_rest(&mut self) {
        Buffer::release_pool();
    }

    fn optimize(&mut self, context: &mut Context) {
        self.asked = true;
        self.done.clear();
        self.trial = None;
        while !context.stopping && self.turn(context) {
            context.hear_control();
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
        let cell = Cell { kernel, dtype: DType::F32, class: 20 };
        let choice = Choice { variant, evidence: None };
        assert_eq!(KeptChoice::new(cell, &choice).check(), Some((cell, choice.clone())));
        let strange = |change: fn(&mut KeptChoice)| {
            let mut kept = KeptChoice::new(cell, &choice);
            change(&mut kept);
            kept.check()
        };
        assert_eq!(strange(|kept| kept.kernel = "sorted".into()), None);
        assert_eq!(strange(|kept| kept.level = "avx1024".into()), None);
        assert_eq!(strange(|kept| kept.choice = 200), None);
        assert_eq!(strange(|kept| kept.other_stores = true), None, "sort stores in one way");
        assert_eq!(strange(|kept| kept.class = 31), None);
        // As an earlier build wrote it.
        let level = Level::best().name();
        let old = format!(r#"{{"kernel":"sort","dtype":"f32","class":20,"level":"{level}","choice":0}}"#);
        let old: KeptChoice = serde_json::from_str(&old).expect("readable");
        assert!(old.check().is_some());
    }

    #[test]
    fn a_choice_is_doubted_when_enough_tasks_take_another_time() {
        let cost = |mean_ns, samples| Cost { mean_ns, samples };
        for (now, drifted) in [
            (cost(1600.0, 130), true),
            (cost(600.0, 130), true),
            (cost(1400.0, 1300), false),
            (cost(700.0, 1300), false),
            (cost(1600.0, 119), false),
            (cost(1600.0, 50), false),
        ] {
            assert_eq!(has_drifted(cost(1000.0, 100), now), drifted, "{now:?}");
        }
    }
}
