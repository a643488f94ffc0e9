//! The optimization agent: times the variants of kernels while swarm and host are idle and publishes the
//! best per kernel, element type and size class; compute agents use it from the next task on.
//!
//! It tries what really runs here: cells of the cost model that finished tasks filled, the dearest first. A swarm
//! that nobody uses has none, and costs nothing; only `agent optimize` tries the usual suspects as well.
//! A variant is checked against the plain reference before it is timed ([`trial`]), and preferred only if it is faster for
//! sure ([`search`]). Trials stop in the middle of a run when work comes, go on where they were, and take at most
//! `agents.optimization.budget_percent` of one core.
//!
//! A choice is doubted when the cell's tasks come to take half as long again as they did with it, or less by as much: then it
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
use search::Duel;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use trial::{Cell, Step, Trial};

/// Classes of inputs small enough to be tried: up to 64 MiB.
const CLASS_MAX: u8 = 26;
/// It looks up from a trial so often.
const TURN: Duration = Duration::from_millis(20);
/// A trial that work has kept from going on for so long gives its memory back, and begins anew.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// Whether work has gone is looked at no more often.
const SHORTEST_LOOK: Duration = Duration::from_millis(100);
/// Of all cores, what others may use of the host while something is tried, percent.
const OTHERS_MAX_PERCENT: f64 = 50.0;
/// A pause is at most so many times as long as what was done before it.
const PAUSE_MAX: f64 = 100_000.0;
/// What a cell's tasks take may change by this factor before a choice is doubted,
const DRIFT: f32 = 1.5;
/// and so many of them in a row have to show it.
const DRIFT_SAMPLES: u32 = 20;
/// After so many tasks the smoothed cost has forgotten those before the choice, but for a twentieth.
const USUAL_SAMPLES: u32 = 60;
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
    /// What a cell's tasks take with its choice.
    watched: BTreeMap<Cell, Watched>,
    trial: Option<Trial>,
    /// Cells whose beginning was interrupted: the others come first.
    put_off: BTreeSet<Cell>,
    /// Since when work keeps it from going on.
    busy_since: Option<Nanos>,
    /// Cycles that were ordered, and are through.
    cycles: u64,
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

impl Evidence {
    /// Whether these can be figures of a trial: a file is a stranger's.
    fn is_sound(&self) -> bool {
        let is_time = |us: f64| us.is_finite() && us > 0.0;
        is_time(self.default_us)
            && is_time(self.challenger_us)
            && is_time(self.gain_low)
            && self.gain_low <= self.gain
            && self.gain <= self.gain_high
            && self.gain_high.is_finite()
    }
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
            Choice { variant, evidence: self.evidence.filter(Evidence::is_sound) },
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
            watched: BTreeMap::new(),
            trial: None,
            put_off: BTreeSet::new(),
            busy_since: None,
            cycles: 0,
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
        let open: Vec<Cell> = ran
            .into_iter()
            .map(|(_, cell)| cell)
            .chain(usual)
            .filter(|cell| !self.done.contains(cell) && variants(cell.kernel, Some(cell.dtype)).len() > 1)
            .collect();
        open.iter().find(|cell| !self.put_off.contains(cell)).or(open.first()).copied()
    }

    /// Goes on with the trial, or begins one, for a while. False: there is nothing to try.
    fn turn(&mut self, context: &mut Context) -> bool {
        let began = clock::now();
        let watch = Watch { context, asked: self.asked };
        let mut trial = match self.trial.take() {
            Some(mut trial) => {
                // An order has no pauses.
                if !self.asked {
                    trial.pause();
                }
                trial
            }
            None => {
                let Some(cell) = self.next_cell(context) else { return false };
                match Trial::begin(cell, &watch) {
                    Ok(Some(trial)) => trial,
                    Ok(None) => {
                        self.put_off.insert(cell);
                        return true;
                    }
                    Err(why) => {
                        self.done.insert(cell);
                        tracing::debug!(%cell, why, "nothing to tune");
                        self.withdraw(cell, why, context);
                        return true;
                    }
                }
            }
        };
        let counters = self.counters.get_or_insert_with(Counters::open);
        let before = trial.progress();
        loop {
            match trial.step(counters, &watch) {
                // What a pause would throw away is not left.
                Step::Going if clock::now().since(began) < TURN || trial.progress() == before => {}
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
        self.put_off.clear();
        let Some(found) = trial.found() else { return };
        if !found.is_default_usable {
            let default = trial.candidates[0].describe(cell.kernel);
            let text = format!("{cell}: the default, {default}, fails or is wrong; nothing is chosen");
            context.note(Severity::Warning, "variant_wrong", &text);
            return self.withdraw(cell, "the default is wrong", context);
        }
        let variant = trial.candidates[found.best];
        let evidence = found.duel.map(|duel| evidence(trial, &duel, found.runs));
        let before = self.chosen.insert(cell, Choice { variant, evidence: evidence.clone() });
        let is_news = before.as_ref().is_none_or(|before| before.variant != variant);
        let lost = before.filter(|before| is_news && before.variant != trial.candidates[0]);
        self.watched.remove(&cell);
        self.keep_and_publish(cell, variant, context);

        let text = match (&evidence, found.best) {
            (None, _) => {
                format!("{cell}: {} stays, all others are far slower or wrong", variant.describe(cell.kernel))
            }
            (Some(evidence), best) => format!(
                "{cell}: {}, {:.1} us, {} {}, {:.1} us: {:.2} times as fast, 95 % between {:.2} and {:.2}, {} runs",
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
        if is_news {
            context.note(Severity::Info, "variant_chosen", &text);
        }
        if let Some(lost) = lost {
            let text = format!("{cell}: {} does not win any more", lost.variant.describe(cell.kernel));
            context.note(Severity::Info, "variant_dropped", &text);
        }
    }

    fn keep_and_publish(&mut self, cell: Cell, variant: Variant, context: &mut Context) {
        self.memory.keep(&self.tuned(), context);
        context.board.publish_variant(cell.kernel.code(), cell.dtype.code(), cell.class, variant.encode());
    }

    /// A cell that cannot be tried has no choice any more.
    fn withdraw(&mut self, cell: Cell, why: &str, context: &mut Context) {
        self.watched.remove(&cell);
        let Some(before) = self.chosen.remove(&cell) else { return };
        self.keep_and_publish(cell, Variant::default_for(cell.kernel, Level::best()), context);
        let text = format!("{cell}: {} cannot be tried again: {why}", before.variant.describe(cell.kernel));
        context.note(Severity::Info, "variant_dropped", &text);
    }

    /// Looks whether a choice has to be tried anew.
    fn doubt(&mut self, context: &mut Context) {
        for &cell in self.chosen.keys() {
            let Some(now) = context.board.cost(cell.kernel.code(), cell.class, None) else { continue };
            let watched = self.watched.entry(cell).or_insert(Watched::from(now));
            let usual_ns = watched.usual_ns;
            if watched.has_drifted(now) && self.done.remove(&cell) {
                *watched = Watched::from(now);
                let text = format!(
                    "{cell}: tasks take {:.1} us, {:.1} before",
                    now.mean_ns / 1000.0,
                    usual_ns.unwrap_or(f32::NAN) / 1000.0
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

/// What tasks take, over time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Watched {
    /// Samples when it was first looked at, and then.
    since: u32,
    /// What is usual, once enough tasks have said so.
    usual_ns: Option<f32>,
    /// Samples when the cost left what is usual.
    left: Option<u32>,
}

impl From<Cost> for Watched {
    fn from(now: Cost) -> Self {
        Self { since: now.samples, usual_ns: None, left: None }
    }
}

impl Watched {
    /// Whether tasks have come to take that much longer, or less long, than usual, as enough of them say.
    fn has_drifted(&mut self, now: Cost) -> bool {
        if now.samples < self.since {
            // Whoever counts them began anew.
            *self = Self::from(now);
        }
        let Some(usual_ns) = self.usual_ns else {
            self.usual_ns = (now.samples - self.since >= USUAL_SAMPLES).then_some(now.mean_ns);
            return false;
        };
        if (1.0 / DRIFT..=DRIFT).contains(&(now.mean_ns / usual_ns.max(1.0))) {
            self.left = None;
            return false;
        }
        let left = *self.left.get_or_insert(now.samples);
        now.samples.saturating_sub(left) >= DRIFT_SAMPLES
    }
}

fn evidence(trial: &Trial, duel: &Duel, runs: usize) -> Evidence {
    let kernel = trial.cell.kernel;
    let ipc = |counts: &Counts| {
        Some(counts.get(INSTRUCTIONS)? / counts.get(CYCLES).filter(|&cycles| cycles > 0.0)?)
    };
    Evidence {
        default: trial.candidates[0].describe(kernel),
        default_us: duel.default_ns / 1000.0,
        challenger: trial.candidates[duel.challenger].describe(kernel),
        challenger_us: duel.challenger_ns / 1000.0,
        gain: duel.gain.median,
        gain_low: duel.gain.low,
        gain_high: duel.gain.high,
        variants: trial.candidates.len(),
        runs,
        default_ipc: ipc(trial.counts(0)),
        challenger_ipc: ipc(trial.counts(duel.challenger)),
    }
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

    /// `tuned` is answered with what was chosen and why, as JSON.
    fn on_request(&mut self, mail: &Mail, context: &mut Context) -> Vec<u8> {
        match mail.payload() {
            b"tuned" => json!({"cycles": self.cycles, "tuned": self.tuned()}).to_string().into_bytes(),
            b"status" => context.describe().to_string().into_bytes(),
            _ => mail.to_vec(),
        }
    }

    fn do_work(&mut self, context: &mut Context) -> usize {
        let now = clock::now();
        if now < self.due {
            return 0;
        }
        let is_idle = Watch { context, asked: false }.may_go_on()
            // NaN: not known.
            && context.board.host().is_none_or(|host| host.cpu_percent.is_nan() || host.cpu_percent <= OTHERS_MAX_PERCENT);
        if !is_idle || self.budget == 0.0 {
            let since = *self.busy_since.get_or_insert(now);
            if now.since(since) > BUSY_MAX {
                self.trial = None;
            }
            self.due = now.plus(self.interval.clamp(SHORTEST_LOOK, BUSY_MAX));
            return 0;
        }
        self.busy_since = None;
        self.doubt(context);
        if !self.turn(context) {
            // Everything was tried; look again now and then, for what may run in the meantime.
            self.due = now.plus(self.interval.max(Duration::from_secs(1)));
            return 1;
        }
        let spent = clock::now().since(now);
        // What was spent now is waited for in full before the next turn; a cell is followed by a pause.
        let pause = spent.mul_f64((1.0 / self.budget - 1.0).clamp(0.0, PAUSE_MAX));
        let pause = if self.trial.is_some() { pause } else { pause.max(self.interval) };
        self.due = clock::now().plus(pause);
        1
    }

    fn next_due(&self) -> Option<Nanos> {
        Some(self.due)
    }

    fn on_rest(&mut self) {
        // In the middle of a trial the next run needs what the last one had.
        if self.trial.is_none() {
            Buffer::release_pool();
        }
    }

    fn optimize(&mut self, context: &mut Context) {
        self.asked = true;
        self.done.clear();
        self.trial = None;
        while !context.stopping && self.turn(context) {
            context.hear_control();
        }
        self.asked = false;
        self.cycles += 1;
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
        let figures = |gain_low: f64| Evidence {
            default: "a".into(),
            default_us: 2.0,
            challenger: "b".into(),
            challenger_us: 1.0,
            gain: 2.0,
            gain_low,
            gain_high: 2.5,
            variants: 3,
            runs: 40,
            default_ipc: None,
            challenger_ipc: Some(1.5),
        };
        for (evidence, is_kept) in [(figures(1.9), true), (figures(2.1), false), (figures(f64::NAN), false)] {
            let kept = KeptChoice::new(cell, &Choice { variant, evidence: Some(evidence.clone()) });
            let (_, found) = kept.check().expect("known");
            assert_eq!(found.evidence, Some(evidence).filter(|_| is_kept));
        }
        // As an earlier build wrote it.
        let level = Level::best().name();
        let old = format!(r#"{{"kernel":"sort","dtype":"f32","class":20,"level":"{level}","choice":0}}"#);
        let old: KeptChoice = serde_json::from_str(&old).expect("readable");
        assert!(old.check().is_some());
    }

    #[test]
    fn a_choice_is_doubted_when_enough_tasks_take_another_time() {
        let cost = |mean_ns, samples| Cost { mean_ns, samples };
        // What they took before the choice says nothing.
        let mut usual = Watched::from(cost(5000.0, 40));
        assert!(!usual.has_drifted(cost(3000.0, 99)) && usual.usual_ns.is_none(), "too few");
        assert!(!usual.has_drifted(cost(1000.0, 100)));
        for (costs, drifted) in [
            (&[cost(1600.0, 130), cost(1700.0, 150)][..], true),
            (&[cost(600.0, 130), cost(500.0, 150)], true),
            (&[cost(1400.0, 1300), cost(700.0, 2000)], false),
            (&[cost(1600.0, 130), cost(1600.0, 149)], false),
            (&[cost(1600.0, 130), cost(1400.0, 140), cost(1600.0, 150), cost(1600.0, 169)], false),
        ] {
            let mut usual = usual;
            let last = costs.iter().map(|&now| usual.has_drifted(now)).last();
            assert_eq!(last, Some(drifted), "{costs:?}");
        }
        // Who counts has begun anew, and so does this.
        assert!(!usual.has_drifted(cost(9000.0, 5)) && usual.usual_ns.is_none());
    }
}
