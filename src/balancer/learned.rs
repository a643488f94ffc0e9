//! The learned policy: expected completion from the learned model, plus what the choice costs those who come later.
//!
//! ```text
//! time  = model: what this task takes on that agent          wait = what the agent still has to do
//! score = wait + time                                         the task's own delay
//!       + price[agent] × time × (2 × wait + time)             the delay of those who come after it
//! price = RELIEF × arrival rate / (2 × (1 − load))
//! ```
//! The second term is the admission cost of a queue that takes in Poisson arrivals (one step of policy iteration). Its
//! rates are those of the policy's own decisions, so that it acts as a price that is learned: an accelerator that is
//! best for everything is kept for those who gain most. Expected completion alone collapses under load. Agents are
//! not queues alone: who finds one busy goes to another, which relieves part of that delay.
//!
//! Late binding: an agent holds two tasks at most. A task whose best agent has no room waits, its time counts
//! against that agent for the rest of the turn, and the next turn decides anew. Waiting tasks go in the order of
//! submission + [`PATIENCE`] × expected time: small ones pass, and none is passed by what came later than that.
//!
//! Guards, each for itself: an estimate that has not proved itself sends the task by the safe rule (the trust gate of
//! [`ServiceModel`]); a twin runs the safe rule beside the live one ([`Guard`]); [`Mode`] switches by hand.

use super::guard::Guard;
use super::model::{BACKENDS, Nominal, ServiceModel};
use super::policy::{SLOTS, index};
use crate::base::ids::AgentSlot;
use crate::base::prng::SplitMix64;
use crate::tasks::{Ask, Candidate, Finished, Placement, Placer};

/// A task lets pass those that come within so many times its own expected time.
const PATIENCE: f64 = 10.0;
/// No task is passed by those that come later than this, ns.
const PATIENCE_MAX_NS: f64 = 50e6;
/// Tasks at one agent: one runs, one is there when it ends.
const WINDOW: usize = 2;
/// Waiting tasks looked at in one turn.
const LOOKAHEAD: usize = 32;
/// The way to an agent, ns: keeps equal scores apart from nothing.
const HOP_NS: f32 = 250.0;
/// How often prices are set, ns.
const PRICE_EVERY_NS: u64 = 1_000_000;
/// Rates forget with this time constant, ns.
const RATE_SPAN_NS: f64 = 5e6;
/// How much of the delay that a task imposes on a queue it imposes on all of them; swept in the simulator.
const RELIEF: f64 = 0.5;
/// Load beyond which the price grows no more.
const LOAD_MAX: f64 = 0.9;
/// One decision in so many tries another agent, among those that score nearly as well.
const EXPLORE_ONE_IN: u64 = 256;
/// Nearly as well: this many times the best score.
const NEARLY: f32 = 2.0;
/// Tasks that the twin may be behind; of more it does not hear, and [`Guard`] skips that look.
const PLACED: usize = 4096;
/// One untrusted estimate in so many is tried, on an idle agent.
const PROBE_ONE_IN: u64 = 200;
/// It is not where the task is known to take more than so many times its least.
const PROBE_WITHIN: f64 = 2.0;

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The learned policy, under its guards.
    #[default]
    Learned,
    /// The learned policy, with a model that learns no more.
    Frozen,
    /// The same rule over the table of costs that candidates carry, without the model.
    Static,
    /// The safe rule.
    Safe,
}

impl Mode {
    /// The mode with this name in the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "learned" => Mode::Learned,
            "frozen" => Mode::Frozen,
            "static" => Mode::Static,
            "safe" => Mode::Safe,
            _ => return None,
        })
    }
}

/// What an agent was given lately, by the policy's own expectation.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    tasks: f64,
    work_ns: f64,
    /// Smoothed: tasks per ns, and the share of time busy.
    rate: f64,
    load: f64,
}

/// Estimates by backend.
type Nominals = [Option<Nominal>; BACKENDS];

fn backend(candidate: &Candidate) -> usize {
    usize::from(candidate.backend).min(BACKENDS - 1)
}

/// See the module.
#[derive(Debug)]
pub struct Learned {
    mode: Mode,
    model: ServiceModel,
    guard: Guard,
    flows: Vec<Flow>,
    /// By agent; see the module.
    prices: Vec<f32>,
    /// Time of tasks that wait for an agent in this turn, and those agents.
    planned_ns: Vec<f32>,
    planned: Vec<usize>,
    /// What a nanosecond of each backend counts when the safe rule picks one.
    safe_prices: [f64; BACKENDS],
    random: SplitMix64,
    priced_ns: u64,
    pricings: u64,
    /// Tasks that the twin has not heard of. It is told in bulk, off the path of decisions.
    placed: Vec<Ask>,
}

impl Learned {
    /// A policy that knows nothing, and repeats its choices for the same seed.
    pub fn new(seed: u64) -> Self {
        Self {
            mode: Mode::default(),
            model: ServiceModel::default(),
            guard: Guard::default(),
            flows: vec![Flow::default(); SLOTS],
            prices: vec![0.0; SLOTS],
            planned_ns: vec![0.0; SLOTS],
            planned: Vec::with_capacity(SLOTS),
            safe_prices: [1.0; BACKENDS],
            random: SplitMix64::new(seed),
            priced_ns: 0,
            pricings: 0,
            placed: Vec::with_capacity(PLACED),
        }
    }

    /// With a model from elsewhere: persisted, or of a short calibration.
    pub fn with_model(mut self, model: ServiceModel) -> Self {
        self.model = model;
        self
    }

    /// With prices for the safe rule's choice of a backend.
    pub fn with_safe_prices(mut self, prices: [f64; BACKENDS]) -> Self {
        self.safe_prices = prices;
        self
    }

    /// With another one who decides.
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The model.
    pub fn model(&self) -> &ServiceModel {
        &self.model
    }

    /// The guard.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Time and score of the task at a candidate; `None` where no estimate has proved itself.
    #[inline]
    fn score(&self, nominals: &Nominals, ask: &Ask, candidate: &Candidate) -> Option<(f32, f32)> {
        let agent = index(candidate.slot);
        let time = match self.mode {
            Mode::Static => candidate.expected_ns? as f32,
            _ => nominals[backend(candidate)]?.ns * self.model.factor(candidate.slot, ask.kernel),
        };
        let wait = candidate.backlog_ns as f32 + self.planned_ns[agent];
        Some((time, wait + time + HOP_NS + self.prices[agent] * time * (2.0 * wait + time)))
    }

    /// Trusted estimates by backend, and whether they suffice: the safe rule's own backend must be among them. To
    /// choose among what happens to be known would send everything there.
    fn nominals(&self, ask: &Ask, candidates: &[Candidate]) -> (Nominals, bool) {
        let (mut nominals, mut seen) = ([None; BACKENDS], [false; BACKENDS]);
        let (mut best, mut suffices) = (f64::INFINITY, true);
        for candidate in candidates {
            let at = backend(candidate);
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let known = self.model.nominal(ask.kernel, ask.log2_size, candidate.backend);
            nominals[at] = known.filter(|nominal| nominal.trusted);
            let priced = candidate.expected_ns.map_or(0.0, |ns| ns * self.safe_prices[at]);
            if priced < best {
                (best, suffices) = (priced, nominals[at].is_some());
            }
        }
        (nominals, suffices || self.mode == Mode::Static)
    }

    /// An idle agent of which there is no trusted estimate, unless the table says that this task does badly there.
    fn probe(&self, nominals: &Nominals, candidates: &[Candidate]) -> Option<usize> {
        let least = candidates.iter().filter_map(|at| at.expected_ns).fold(f64::INFINITY, f64::min);
        candidates.iter().position(|candidate| {
            let idle = candidate.room && candidate.in_flight == 0;
            let cheap = candidate.expected_ns.is_none_or(|ns| ns <= PROBE_WITHIN * least);
            idle && cheap && nominals[backend(candidate)].is_none() && self.mode != Mode::Static
        })
    }

    /// JBSQ(2) on the backend where the task is cheapest at the safe rule's prices.
    fn place_safely(&mut self, candidates: &[Candidate]) -> Option<Placement> {
        let prices = &self.safe_prices;
        let price = |at: &Candidate| at.expected_ns.map(|ns| ns * prices[backend(at)]);
        // By backend and not by agent: a slow agent of the right backend is still one of those that take turns.
        let known = candidates.iter().filter_map(|at| Some((price(at)?, at.backend)));
        let best = known.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, backend)| backend);
        let fits = |at: &Candidate| best.is_none_or(|best| at.backend == best);
        let some = candidates.iter().enumerate().filter(|(_, at)| at.room && fits(at));
        some.min_by_key(|(_, at)| at.in_flight).map(|(at, _)| Placement::at(at))
    }

    fn choose(&mut self, ask: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        if self.mode == Mode::Safe || self.guard.is_safe() {
            return self.place_safely(candidates);
        }
        let (nominals, suffices) = self.nominals(ask, candidates);
        let luck = self.random.next_u64();
        if luck.is_multiple_of(PROBE_ONE_IN)
            && let Some(at) = self.probe(&nominals, candidates)
        {
            return Some(Placement { probability: 1.0 / PROBE_ONE_IN as f32, ..Placement::at(at) });
        }
        if !suffices {
            return self.place_safely(candidates);
        }
        let (mut best, mut time, mut least) = (None, 0.0, f32::INFINITY);
        for (at, candidate) in candidates.iter().enumerate() {
            if let Some((its_time, score)) = self.score(&nominals, ask, candidate)
                && score < least
            {
                (best, time, least) = (Some(at), its_time, score);
            }
        }
        let Some(mut best) = best else { return self.place_safely(candidates) };
        let mut probability = 1.0 - 1.0 / EXPLORE_ONE_IN as f32;
        if (luck >> 32).is_multiple_of(EXPLORE_ONE_IN) {
            let near = |at: &usize| {
                let score = self.score(&nominals, ask, &candidates[*at]);
                candidates[*at].room && score.is_some_and(|(_, score)| score <= NEARLY * least)
            };
            let count = (0..candidates.len()).filter(near).count() as u64;
            let pick = self.random.clone().below(count.max(1)) as usize;
            if let Some(other) = (0..candidates.len()).filter(near).nth(pick).filter(|other| *other != best) {
                best = other;
                time = self.score(&nominals, ask, &candidates[best]).map_or(time, |(time, _)| time);
                probability = 1.0 / (count * EXPLORE_ONE_IN) as f32;
            }
        }
        let agent = index(candidates[best].slot);
        if !candidates[best].room {
            if self.planned_ns[agent] == 0.0 {
                self.planned.push(agent);
            }
            self.planned_ns[agent] += time;
            return None;
        }
        let flow = &mut self.flows[agent];
        flow.tasks += 1.0;
        flow.work_ns += f64::from(time);
        Some(Placement { at: best, expected_ns: Some(f64::from(time)), probability })
    }

    /// The twin gets what was placed, as the safe rule would have: on the backend where it is cheapest, by the
    /// model's word.
    fn tell_twin(&mut self) {
        let placed = std::mem::take(&mut self.placed);
        if self.model.is_trusted() {
            placed.iter().for_each(|ask| self.admit_to_twin(ask));
        }
        self.placed = placed;
        self.placed.clear();
    }

    fn admit_to_twin(&mut self, ask: &Ask) {
        let nominal = |at: usize| {
            let known = self.model.nominal(ask.kernel, ask.log2_size, at as u8)?;
            self.model.agents_of(at as u8).next()?;
            Some((at, f64::from(known.ns)))
        };
        let priced = |(at, ns): &(usize, f64)| ns * self.safe_prices[*at];
        let best = (0..BACKENDS).filter_map(nominal).min_by(|a, b| priced(a).total_cmp(&priced(b)));
        if let Some((at, ns)) = best {
            let time =
                |agent| (agent, ns * f64::from(self.model.factor(AgentSlot(agent as u16), ask.kernel)));
            self.guard.admit(ask.queued_ns, self.model.agents_of(at as u8).map(time));
        }
    }

    fn set_prices(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.priced_ns);
        self.priced_ns = now_ns;
        self.pricings += 1;
        // At first the mean of what there is, so that the start is not half a span without prices.
        let share = (1.0 - (-(passed as f64) / RATE_SPAN_NS).exp()).max(1.0 / self.pricings as f64);
        let passed_ns = passed as f64;
        for (flow, price) in self.flows.iter_mut().zip(&mut self.prices) {
            flow.rate += share * (flow.tasks / passed_ns - flow.rate);
            flow.load += share * (flow.work_ns / passed_ns - flow.load);
            (flow.tasks, flow.work_ns) = (0.0, 0.0);
            *price = (RELIEF * flow.rate / (2.0 * (1.0 - flow.load.min(LOAD_MAX)))) as f32;
        }
        if self.mode != Mode::Frozen {
            self.model.forgive(now_ns, passed);
        }
    }
}

impl Placer for Learned {
    fn begin(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.priced_ns) >= PRICE_EVERY_NS {
            self.set_prices(now_ns);
            self.tell_twin();
        }
        for agent in self.planned.drain(..) {
            self.planned_ns[agent] = 0.0;
        }
    }

    fn patience_ns(&self, ask: &Ask) -> f64 {
        let estimates =
            (0..BACKENDS as u8).filter_map(|at| self.model.nominal(ask.kernel, ask.log2_size, at));
        let least = estimates.map(|nominal| f64::from(nominal.ns)).fold(f64::INFINITY, f64::min);
        // What nothing is known of is taken to be like the others: neither pushed aside nor let through.
        let least = if least.is_finite() { least } else { f64::from(self.model.mean_ns()) };
        (PATIENCE * least).min(PATIENCE_MAX_NS)
    }

    fn place(&mut self, ask: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        let chosen = self.choose(ask, candidates);
        if chosen.is_some() && self.placed.len() < self.placed.capacity() {
            self.placed.push(*ask);
        }
        chosen
    }

    fn joined(&mut self, slot: AgentSlot) {
        self.model.forget_agent(slot);
    }

    fn finished(&mut self, finished: &Finished) {
        let nominal = self.model.nominal(finished.kernel, finished.log2_size, finished.backend);
        if let Some(nominal) = nominal.filter(|_| self.model.is_trusted()) {
            let expected_ns = nominal.ns * self.model.factor(finished.slot, finished.kernel);
            self.guard.finished(finished.total_ns, finished.service_ns, f64::from(expected_ns));
        }
        if self.mode != Mode::Frozen {
            self.model.learn(finished);
        }
    }

    fn window(&self) -> usize {
        WINDOW
    }

    fn lookahead(&self) -> usize {
        LOOKAHEAD
    }

    fn name(&self) -> &'static str {
        "learned"
    }
}
