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
//! Late binding: an agent holds two tasks at most, or [`SPAN_NS`] of tiny ones. A task whose best agent has no room waits, its time counts
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
use crate::tasks::{Ask, By, Candidate, Finished, Learning, Mode, Placement, Placer, Scored, Standing};

/// A task lets pass those that come within so many times its own expected time.
const PATIENCE: f64 = 10.0;
/// No task is passed by those that come later than this, ns. This span and those below hold where tasks take
/// [`TYPICAL_NS`] and come every [`TYPICAL_GAP_NS`]; where they are slower the spans stretch with them.
const PATIENCE_MAX_NS: f64 = 50e6;
/// Tasks at one agent: one runs, one is there when it ends.
const WINDOW: usize = 2;
/// Tiny ones at one agent, by their time, ns: the way to an agent and back is hidden, and little is bound early.
const SPAN_NS: f64 = 100e3;
/// Waiting tasks looked at in one turn.
const LOOKAHEAD: usize = 32;
/// The way to an agent, ns: keeps equal scores apart from nothing.
const HOP_NS: f32 = 250.0;
/// How often prices are set, ns.
const PRICE_EVERY_NS: f64 = 1e6;
/// Rates forget with this time constant, ns.
const RATE_SPAN_NS: f64 = 5e6;
/// An agent that has done nothing for this long is nearly forgiven for having been slow, ns.
const FORGIVE_NS: f64 = 20e6;
/// Mean time of tasks, and between them, up to which the spans hold as they are, ns.
const TYPICAL_NS: f64 = 100e3;
const TYPICAL_GAP_NS: f64 = 25e3;
/// No span stretches further: a task waits for what came 5 s later at most.
const STRETCH_MAX: f64 = 100.0;
/// The safe rule takes another backend than the best one where the task costs at most so many times as much.
const SPILL: f64 = 3.0;
/// How quickly the safe rule's price of a backend follows its load.
const SAFE_PRICE_RATE: f64 = 0.6;
/// No backend's nanosecond is worth more than so many of another's, or less, in logarithms.
const SAFE_PRICE_FAR: f64 = 3.0;
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

/// An agent: what it was given lately, by the policy's own expectation, and how it was last seen.
#[derive(Clone, Copy, Debug, Default)]
struct Agent {
    backend: u8,
    /// It held nothing.
    idle: bool,
    /// The number of the span, from prices to prices, in which it last was a candidate.
    seen_in: u64,
    tasks: f64,
    work_ns: f64,
    /// Smoothed: tasks per ns, and the share of time busy.
    rate: f64,
    load: f64,
}

/// A task that was placed, for the twin.
#[derive(Clone, Copy, Debug)]
struct Placed {
    ask: Ask,
    /// What it was thought to take from its queueing to its end, ns.
    foreseen_ns: f64,
    /// Agents that could have been given it, or were at work.
    limit: usize,
}

/// What is known of a task.
struct Known {
    /// Trusted estimates by backend.
    nominals: [Option<Nominal>; BACKENDS],
    least_told: f64,
    /// Whether that is enough to decide by.
    suffices: bool,
}

/// The least time that any candidate's table has for the task, ns; infinite where none has any.
fn least_told(candidates: &[Candidate]) -> f64 {
    candidates.iter().filter_map(|at| at.expected_ns).fold(f64::INFINITY, f64::min)
}

fn backend(candidate: &Candidate) -> usize {
    usize::from(candidate.backend).min(BACKENDS - 1)
}

/// See the module.
#[derive(Debug)]
pub struct Learned {
    mode: Mode,
    model: ServiceModel,
    guard: Guard,
    agents: Vec<Agent>,
    /// Those that ever were candidates are below this.
    seen: usize,
    /// By agent; see the module.
    prices: Vec<f32>,
    /// Time of tasks that wait for an agent in this turn, and those agents.
    planned_ns: Vec<f32>,
    planned: Vec<usize>,
    /// What a nanosecond of each backend counts when the safe rule picks one: its logarithm grows while the backend is
    /// busier than others, as in the dual of the fluid model, so that the best one does not drown.
    safe_prices: [f64; BACKENDS],
    /// By how much the spans are stretched.
    stretch: f64,
    random: SplitMix64,
    priced_ns: u64,
    pricings: u64,
    /// What the last decision made of the candidates, if it compared them.
    scores: Vec<Option<Scored>>,
    /// Tasks that the twin has not heard of. It is told in bulk, off the path of decisions.
    placed: Vec<Placed>,
}

impl Learned {
    /// A policy that knows nothing, and repeats its choices for the same seed.
    pub fn new(seed: u64) -> Self {
        Self {
            mode: Mode::default(),
            model: ServiceModel::default(),
            guard: Guard::default(),
            agents: vec![Agent::default(); SLOTS],
            seen: 0,
            prices: vec![0.0; SLOTS],
            planned_ns: vec![0.0; SLOTS],
            planned: Vec::with_capacity(SLOTS),
            safe_prices: [1.0; BACKENDS],
            stretch: 1.0,
            random: SplitMix64::new(seed),
            priced_ns: 0,
            pricings: 1,
            scores: Vec::with_capacity(SLOTS),
            placed: Vec::with_capacity(PLACED),
        }
    }

    /// With a model from elsewhere: persisted, or of a short calibration.
    pub fn with_model(mut self, model: ServiceModel) -> Self {
        self.model = model;
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

    /// Time and score of the task at a candidate; `None` where no estimate has proved itself. An agent that the table has
    /// nothing of is taken to be as good as the best.
    #[inline]
    fn score(&self, known: &Known, ask: &Ask, candidate: &Candidate) -> Option<(f32, f32)> {
        let agent = index(candidate.slot);
        let time = match self.mode {
            Mode::Static => candidate.expected_ns.unwrap_or(known.least_told) as f32,
            _ => known.nominals[backend(candidate)]?.ns * self.model.factor(candidate.slot, ask.kernel),
        };
        let wait = candidate.backlog_ns as f32 + self.planned_ns[agent];
        let score = wait + time + HOP_NS + self.prices[agent] * time * (2.0 * wait + time);
        score.is_finite().then_some((time, score))
    }

    /// What is known of the task. It suffices where the safe rule's own backend has a trusted estimate: to choose among
    /// what happens to be known would send everything there.
    fn known(&mut self, ask: &Ask, candidates: &[Candidate]) -> Known {
        let mut known = Known { nominals: [None; BACKENDS], least_told: f64::INFINITY, suffices: true };
        if self.mode == Mode::Static {
            known.least_told = least_told(candidates);
            return known;
        }
        let (mut seen, mut best) = ([false; BACKENDS], f64::INFINITY);
        for candidate in candidates {
            let at = backend(candidate);
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            if !self.model.knows(ask.kernel, ask.log2_size, candidate.backend) {
                self.suppose(ask, candidate.backend, candidates);
            }
            let nominal = self.model.nominal(ask.kernel, ask.log2_size, candidate.backend);
            known.nominals[at] = nominal.filter(|nominal| nominal.trusted);
            let priced = candidate.expected_ns.map_or(0.0, |ns| ns * self.safe_prices[at]);
            if priced < best {
                (best, known.suffices) = (priced, known.nominals[at].is_some());
            }
        }
        known
    }

    /// Takes over what the table has of a task that the model knows nothing of: the mean over the agents of a backend.
    #[cold]
    fn suppose(&mut self, ask: &Ask, of: u8, candidates: &[Candidate]) {
        let told = candidates.iter().filter(|at| at.backend == of).filter_map(|at| at.expected_ns);
        let (sum, count) = told.fold((0.0, 0.0), |(sum, count), ns| (sum + ns, count + 1.0));
        self.model.suppose(ask.kernel, ask.log2_size, of, sum / count);
    }

    /// An idle agent of which there is no trusted estimate, unless the table says that this task does badly there.
    fn probe(&self, known: &Known, candidates: &[Candidate]) -> Option<usize> {
        let least = least_told(candidates);
        candidates.iter().position(|candidate| {
            let idle = candidate.room && candidate.in_flight == 0;
            let cheap = candidate.expected_ns.is_none_or(|ns| ns <= PROBE_WITHIN * least);
            idle && cheap && known.nominals[backend(candidate)].is_none() && self.mode != Mode::Static
        })
    }

    /// What the task costs on each backend at the safe rule's prices: by the table, else as the model guesses from others of
    /// its kind, else as little as on any other; infinite where nothing is known at all. By backend and not by agent: a slow
    /// agent of the right backend is still one of those that take turns.
    fn safe_costs(&self, ask: &Ask, candidates: &[Candidate]) -> [f64; BACKENDS] {
        let mut costs = [f64::INFINITY; BACKENDS];
        for at in candidates {
            let cost = &mut costs[backend(at)];
            *cost = cost.min(at.expected_ns.unwrap_or(f64::INFINITY));
        }
        for (backend, cost) in costs.iter_mut().enumerate() {
            if cost.is_infinite() {
                let guess = self.model.nominal(ask.kernel, ask.log2_size, backend as u8);
                *cost = guess.map_or(f64::INFINITY, |guess| f64::from(guess.ns));
            }
            *cost *= self.safe_prices[backend];
        }
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        costs.map(|cost| if cost.is_finite() { cost } else { least })
    }

    /// JBSQ(2) on the backend where the task is cheapest, of those that have room and do not take many times what the
    /// cheapest takes: it waits for that one then.
    fn place_safely(&self, ask: &Ask, candidates: &[Candidate], by: By) -> Option<Placement> {
        let costs = self.safe_costs(ask, candidates);
        let cost = |at: &Candidate| costs[backend(at)];
        let most = SPILL * candidates.iter().map(cost).fold(f64::INFINITY, f64::min);
        let some = candidates.iter().enumerate().filter(|(_, at)| at.room && cost(at) <= most);
        let best =
            some.min_by(|(_, a), (_, b)| cost(a).total_cmp(&cost(b)).then(a.in_flight.cmp(&b.in_flight)));
        best.map(|(at, _)| Placement { by, ..Placement::at(at) })
    }

    fn choose(&mut self, ask: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        self.scores.clear();
        if self.mode == Mode::Safe {
            return self.place_safely(ask, candidates, By::Wanted);
        }
        if self.guard.is_safe() {
            return self.place_safely(ask, candidates, By::Guarded);
        }
        let known = self.known(ask, candidates);
        let luck = self.random.next_u64();
        if luck.is_multiple_of(PROBE_ONE_IN)
            && let Some(at) = self.probe(&known, candidates)
        {
            let probability = 1.0 / PROBE_ONE_IN as f32;
            return Some(Placement { probability, by: By::Probing, ..Placement::at(at) });
        }
        if !known.suffices {
            return self.place_safely(ask, candidates, By::Untrusted);
        }
        let (mut best, mut time, mut least) = (None, 0.0, f32::INFINITY);
        for (at, candidate) in candidates.iter().enumerate() {
            let scored = self.score(&known, ask, candidate);
            let price = self.prices[index(candidate.slot)];
            self.scores.push(scored.map(|(time_ns, score_ns)| Scored { time_ns, price, score_ns }));
            if let Some((its_time, score)) = scored
                && score < least
            {
                (best, time, least) = (Some(at), its_time, score);
            }
        }
        let Some(mut best) = best else { return self.place_safely(ask, candidates, By::Untrusted) };
        let (mut probability, mut by) = (1.0 - 1.0 / EXPLORE_ONE_IN as f32, By::Score);
        if (luck >> 32).is_multiple_of(EXPLORE_ONE_IN) {
            let near = |at: &usize| {
                let score = self.score(&known, ask, &candidates[*at]);
                candidates[*at].room && score.is_some_and(|(_, score)| score <= NEARLY * least)
            };
            let count = (0..candidates.len()).filter(near).count() as u64;
            let pick = self.random.clone().below(count.max(1)) as usize;
            if let Some(other) = (0..candidates.len()).filter(near).nth(pick).filter(|other| *other != best) {
                best = other;
                time = self.score(&known, ask, &candidates[best]).map_or(time, |(time, _)| time);
                (probability, by) = (1.0 / (count * EXPLORE_ONE_IN) as f32, By::Exploring);
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
        Some(Placement { at: best, expected_ns: Some(f64::from(time)), probability, by })
    }

    /// The model's own estimate for a task at an agent, ns, trusted or not.
    fn estimate_ns(&self, ask: &Ask, candidate: &Candidate) -> Option<f64> {
        let nominal = self.model.nominal(ask.kernel, ask.log2_size, candidate.backend)?;
        Some(f64::from(nominal.ns * self.model.factor(candidate.slot, ask.kernel)))
    }

    /// Notes what was decided, for prices and for the twin.
    fn note(&mut self, ask: &Ask, candidates: &[Candidate], placement: &Placement) {
        let chosen = &candidates[placement.at];
        let agent = &mut self.agents[index(chosen.slot)];
        agent.idle = false;
        agent.tasks += 1.0;
        agent.work_ns += placement.expected_ns.or(chosen.expected_ns).unwrap_or(0.0);
        let Some(time_ns) = placement.expected_ns else { return };
        if self.placed.len() < self.placed.capacity() {
            let waited_ns = ask.now_ns.saturating_sub(ask.queued_ns) as f64;
            let foreseen_ns = waited_ns + chosen.backlog_ns + time_ns + self.guard.overhead_ns();
            self.placed.push(Placed { ask: *ask, foreseen_ns, limit: candidates.len() });
        }
    }

    /// The twin gets what was placed, as the safe rule would have: on the backend where it is cheapest by the model's
    /// word, among the agents that were there.
    fn tell_twin(&mut self) {
        let placed = std::mem::take(&mut self.placed);
        if self.model.is_trusted() {
            placed.iter().for_each(|placed| self.admit_to_twin(placed));
        }
        self.placed = placed;
        self.placed.clear();
    }

    fn admit_to_twin(&mut self, placed: &Placed) {
        let ask = &placed.ask;
        let (agents, span) = (&self.agents[..self.seen], self.pricings);
        let there = |at: usize| {
            let is_there = move |agent: &Agent| agent.seen_in == span && usize::from(agent.backend) == at;
            agents.iter().enumerate().filter(move |(_, agent)| is_there(agent))
        };
        let nominal = |at: usize| {
            there(at).next()?;
            Some((at, f64::from(self.model.nominal(ask.kernel, ask.log2_size, at as u8)?.ns)))
        };
        let priced = |(at, ns): &(usize, f64)| ns * self.safe_prices[*at];
        let best = (0..BACKENDS).filter_map(nominal).min_by(|a, b| priced(a).total_cmp(&priced(b)));
        if let Some((at, ns)) = best {
            let factor = |agent: usize| self.model.factor(AgentSlot(agent as u16), ask.kernel);
            let times = there(at).map(|(agent, _)| (agent, ns * f64::from(factor(agent))));
            self.guard.admit(ask.queued_ns, placed.foreseen_ns, placed.limit, times);
        }
    }

    fn set_prices(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.priced_ns);
        self.priced_ns = now_ns;
        self.pricings += 1;
        // At first the mean of what there is, so that the start is not half a span without prices.
        let span = RATE_SPAN_NS * self.stretch;
        let share = (1.0 - (-(passed as f64) / span).exp()).max(1.0 / (self.pricings - 1) as f64);
        let passed_ns = passed as f64;
        let (mut rate, mut loads) = (0.0, [(0.0, 0.0); BACKENDS]);
        for (agent, price) in self.agents.iter_mut().zip(&mut self.prices) {
            agent.rate += share * (agent.tasks / passed_ns - agent.rate);
            agent.load += share * (agent.work_ns / passed_ns - agent.load);
            (agent.tasks, agent.work_ns) = (0.0, 0.0);
            *price = (RELIEF * agent.rate / (2.0 * (1.0 - agent.load.min(LOAD_MAX)))) as f32;
            rate += agent.rate;
            if agent.seen_in + 1 == self.pricings {
                let (load, count) = &mut loads[usize::from(agent.backend).min(BACKENDS - 1)];
                (*load, *count) = (*load + agent.load, *count + 1.0);
            }
        }
        self.price_backends(loads);
        let slow = f64::from(self.model.mean_ns()) / TYPICAL_NS;
        let sparse = if rate > 0.0 { 1.0 / (rate * TYPICAL_GAP_NS) } else { 1.0 };
        self.stretch = slow.max(sparse).clamp(1.0, STRETCH_MAX);
        if self.mode != Mode::Frozen {
            let agents = &self.agents;
            self.model.forgive(now_ns, passed, FORGIVE_NS * self.stretch, |at| agents[at].idle);
        }
    }

    /// `loads`: by backend the sum of its agents' loads, and how many they are.
    fn price_backends(&mut self, loads: [(f64, f64); BACKENDS]) {
        let means = loads.map(|(load, count)| (count > 0.0).then(|| load / count));
        let there = means.iter().flatten().count() as f64;
        let mean = means.iter().flatten().sum::<f64>() / there;
        if mean.is_nan() || mean <= 0.0 || there < 2.0 {
            return;
        }
        for (price, load) in self.safe_prices.iter_mut().zip(means) {
            let Some(load) = load else { continue };
            let log = price.ln() + SAFE_PRICE_RATE * (load / mean - 1.0).clamp(-1.0, 1.0);
            *price = log.clamp(-SAFE_PRICE_FAR, SAFE_PRICE_FAR).exp();
        }
    }
}

impl Placer for Learned {
    fn begin(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.priced_ns) as f64 >= PRICE_EVERY_NS * self.stretch {
            // While those are still the agents of this span.
            self.tell_twin();
            self.set_prices(now_ns);
        }
        for agent in self.planned.drain(..) {
            self.planned_ns[agent] = 0.0;
        }
    }

    fn patience_ns(&self, ask: &Ask) -> f64 {
        // What nothing is known of is taken to be like the others: neither pushed aside nor let through.
        let least = self.model.least_ns(ask.kernel, ask.log2_size).unwrap_or_else(|| self.model.mean_ns());
        (PATIENCE * f64::from(least)).min(PATIENCE_MAX_NS * self.stretch)
    }

    fn place(&mut self, ask: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        for candidate in candidates {
            let agent = &mut self.agents[index(candidate.slot)];
            (agent.backend, agent.idle) = (backend(candidate) as u8, candidate.in_flight == 0);
            agent.seen_in = self.pricings;
            self.seen = self.seen.max(index(candidate.slot) + 1);
        }
        let mut chosen = self.choose(ask, candidates)?;
        if chosen.expected_ns.is_none() && self.model.is_trusted() {
            chosen.expected_ns = self.estimate_ns(ask, &candidates[chosen.at]);
        }
        self.note(ask, candidates, &chosen);
        Some(chosen)
    }

    fn scored(&self, at: usize) -> Option<Scored> {
        self.scores.get(at).copied().flatten()
    }

    fn joined(&mut self, slot: AgentSlot) {
        self.model.forget_agent(slot);
    }

    fn occupied(&mut self, slot: AgentSlot, expected_ns: f64, now_ns: u64) {
        if self.model.is_trusted() {
            self.guard.occupied(index(slot), expected_ns, now_ns);
        }
    }

    fn finished(&mut self, finished: &Finished) {
        if self.model.is_trusted() {
            self.guard.finished(finished.total_ns, finished.overhead_ns, finished.now_ns);
        }
        if self.mode == Mode::Frozen {
            self.model.judge(finished);
        } else {
            self.model.learn(finished);
        }
    }

    fn standing(&self) -> Option<Standing> {
        let ((alarms, guarded_tasks), (error, samples)) = (self.guard.interventions(), self.model.error());
        let (mode, is_guarded) = (self.mode, self.guard.is_safe());
        Some(Standing { mode, is_guarded, alarms, guarded_tasks, error, samples })
    }

    fn learning(&self) -> Option<Learning> {
        Some(self.model.learning())
    }

    fn recall(&mut self, learning: &Learning) {
        self.model.recall(learning);
    }

    fn set_mode(&mut self, mode: Mode) -> bool {
        self.mode = mode;
        true
    }

    fn span_ns(&self) -> f64 {
        SPAN_NS
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
