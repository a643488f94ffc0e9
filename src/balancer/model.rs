//! What tasks cost: the learned model of service times.
//!
//! ```text
//! ln(time) = cell[kernel][size class][backend] + slow[agent] + fast[agent] + habit[agent][kernel]
//! ```
//! Cells hold what all agents of a backend have in common, so that one finished task teaches about every agent. Sizes
//! between two classes are read off the line between them. `fast` follows an agent that becomes slow within some tasks
//! and drains into `slow`; `habit` is what a neighbour does to some kernels and not to others.
//!
//! What is learned is the time on the agent, never the time in queues: that one is computed. It moves with
//! everybody's decisions, and a model that learns it stops seeing the queue that it builds.
//!
//! Invariants
//! 1. Nothing that is fed in makes a number here anything but finite.
//! 2. One finished task moves an estimate by a bounded factor.

use super::policy::{SLOTS, index};
use crate::base::ids::AgentSlot;
use crate::tasks::{Finished, LearnedCost, Learning};

/// Kernels and size classes that cells are kept for; codes beyond share the last.
pub(super) const KERNELS: usize = 32;
const CLASSES: usize = 32;
/// Backends that cells are kept for.
pub const BACKENDS: usize = 4;

/// Samples after which a cell is believed at all.
const ENOUGH: f32 = 3.0;
/// Largest mean error, in logarithms, of a believed cell, (kernel, backend), and whole model.
const CELL_ERROR: f32 = 0.6;
const BACKEND_ERROR: f32 = 0.5;
const MODEL_ERROR: f32 = 0.4;
/// One task counts as at most this far from what was expected: page faults and interrupts are no new normal.
const CLAMP: f32 = 0.7;
/// The same where the cell is known to be wrong.
const WIDE_CLAMP: f32 = 2.0;
/// Least weight of a new sample in a cell.
const CELL_RATE: f32 = 0.01;
/// Weight of a sample in an agent's fast speed, and when the agent has drifted.
const FAST_RATE: f32 = 0.12;
const DRIFT_RATE: f32 = 0.4;
/// Mean signed error, in logarithms, that no noise explains: the agent has drifted.
const DRIFT: f32 = 0.3;
const SLOW_RATE: f32 = 0.01;
const HABIT_RATE: f32 = 0.02;
/// No agent is taken to be further than this from the plain one, in logarithms.
const FAR: f32 = 4.0;
/// Growth of the time per octave where nothing is known: in proportion to the size.
const SLOPE: f32 = std::f32::consts::LN_2;

/// What is known of one kernel in one size class on one backend.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// Logarithm of the time in the middle of the class, ns.
    log_ns: f32,
    samples: f32,
    /// Mean size of the error, in logarithms.
    error: f32,
}

/// What is known of one agent.
#[derive(Clone, Debug)]
struct Speed {
    slow: f32,
    fast: f32,
    /// Mean signed error.
    drift: f32,
    habits: [f32; KERNELS],
    last_ns: u64,
}

/// What a finished task says of the model.
#[derive(Clone, Copy, Debug)]
struct Judged {
    /// Logarithm of the true time over the expected one; and as much of it as counts.
    residual: f32,
    step: f32,
    /// The two cells that the expectation came from, its share in it, and what a sample counts there.
    cells: [(usize, f32, f32); 2],
}

/// An estimate for a backend, before the speed of any agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nominal {
    /// Time, ns.
    pub ns: f32,
    /// Whether decisions may rest on it.
    pub trusted: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct ServiceModel {
    cells: Vec<Cell>,
    agents: Vec<Speed>,
    /// By how much an agent is slower than the plain one, by kernel and agent: all that a decision reads of agents.
    factors: Vec<f32>,
    /// Mean error per (kernel, backend).
    errors: Vec<f32>,
    error: f32,
    samples: u64,
    /// Mean time of all tasks, ns.
    mean_ns: f32,
    /// Backends of which anything is known.
    known: [bool; BACKENDS],
    /// Agents in use are below this.
    seen: usize,
}

/// The two cells around a size, and how much the upper one counts.
fn around(kernel: u8, log2_size: f32, backend: u8) -> (usize, usize, f32) {
    let size = if log2_size.is_nan() { 0.0 } else { log2_size };
    let place = (size - 0.5).clamp(0.0, (CLASSES - 2) as f32 + 0.999);
    let class = place as usize;
    let row =
        (usize::from(kernel).min(KERNELS - 1) * BACKENDS + usize::from(backend).min(BACKENDS - 1)) * CLASSES;
    (row + class, row + (class + 1).min(CLASSES - 1), place - class as f32)
}

impl Default for ServiceModel {
    fn default() -> Self {
        let speed = Speed { slow: 0.0, fast: 0.0, drift: 0.0, habits: [0.0; KERNELS], last_ns: 0 };
        Self {
            cells: vec![Cell::default(); KERNELS * BACKENDS * CLASSES],
            agents: vec![speed; SLOTS],
            factors: vec![1.0; KERNELS * SLOTS],
            errors: vec![0.0; KERNELS * BACKENDS],
            error: 0.0,
            samples: 0,
            mean_ns: 0.0,
            known: [false; BACKENDS],
            seen: 0,
        }
    }
}

impl ServiceModel {
    /// What a kernel costs at this size on a backend's plain agent; `None` when nobody has run it anywhere near.
    pub fn nominal(&self, kernel: u8, log2_size: f32, backend: u8) -> Option<Nominal> {
        let (lower, upper, share) = around(kernel, log2_size, backend);
        let (a, b) = (&self.cells[lower], &self.cells[upper]);
        let log_ns = match (a.samples > 0.0, b.samples > 0.0) {
            (true, true) => a.log_ns + share * (b.log_ns - a.log_ns),
            (true, false) => a.log_ns + share * SLOPE,
            (false, true) => b.log_ns - (1.0 - share) * SLOPE,
            (false, false) => self.nearest(lower)? + share * SLOPE,
        };
        let near = if share < 0.5 { a } else { b };
        let (enough, error) = (near.samples >= ENOUGH, near.error);
        let kept = self.errors[lower / CLASSES] < BACKEND_ERROR && self.error < MODEL_ERROR;
        Some(Nominal { ns: log_ns.exp(), trusted: enough && error < CELL_ERROR && kept })
    }

    /// The least that such a task costs on any backend that is there, ns; `None` when nothing is known of it.
    pub fn least_ns(&self, kernel: u8, log2_size: f32) -> Option<f32> {
        let known = (0..BACKENDS).filter(|backend| self.known[*backend]);
        let times = known.filter_map(|at| Some(self.nominal(kernel, log2_size, at as u8)?.ns));
        times.min_by(f32::total_cmp)
    }

    /// Whether any task of this kind came back from such a backend, or its time was told.
    #[inline]
    pub fn knows(&self, kernel: u8, log2_size: f32, backend: u8) -> bool {
        self.cells[around(kernel, log2_size, backend).0].samples > 0.0
    }

    /// What somebody else knows of a task of which nothing is known here. It is believed until tasks show that it is wrong:
    /// so a model starts warm from what was kept.
    pub fn suppose(&mut self, kernel: u8, log2_size: f32, backend: u8, time_ns: f64) {
        let cell = around(kernel, log2_size, backend).0;
        if time_ns.is_finite() && !self.knows(kernel, log2_size, backend) {
            let log_ns = (time_ns.clamp(1.0, 1e15) as f32).ln();
            self.cells[cell] = Cell { log_ns, samples: ENOUGH, error: 0.0 };
            self.known[usize::from(backend).min(BACKENDS - 1)] = true;
        }
    }

    /// All that outlives an agent: what is known of costs, and how good that was.
    pub fn learning(&self) -> Learning {
        let cost = |(at, cell): (usize, &Cell)| LearnedCost {
            kernel: (at / CLASSES / BACKENDS) as u8,
            class: (at % CLASSES) as u8,
            backend: (at / CLASSES % BACKENDS) as u8,
            ns: f64::from(cell.log_ns).exp(),
        };
        let known = self.cells.iter().enumerate().filter(|(_, cell)| cell.samples >= ENOUGH);
        Learning { costs: known.map(cost).collect(), error: self.error, samples: self.samples }
    }

    /// Goes on with that, where nothing is known yet; each cost is [supposed](Self::suppose).
    pub fn recall(&mut self, learning: &Learning) {
        for &LearnedCost { kernel, class, backend, ns } in &learning.costs {
            // The middle of its class is where a cell stands.
            self.suppose(kernel, f32::from(class) + 0.5, backend, ns);
        }
        if self.samples == 0 && learning.error.is_finite() {
            (self.error, self.samples) = (learning.error.clamp(0.0, 3.0), learning.samples.min(1 << 52));
        }
    }

    /// The time at a cell of which nothing is known, from the nearest one of the same row.
    fn nearest(&self, cell: usize) -> Option<f32> {
        let (row, class) = (cell / CLASSES * CLASSES, (cell % CLASSES) as isize);
        let step = |offset: isize| {
            let at = usize::try_from(class + offset).ok().filter(|at| *at < CLASSES)?;
            let known = self.cells[row + at];
            (known.samples > 0.0).then_some(known.log_ns - offset as f32 * SLOPE)
        };
        (1..CLASSES as isize).find_map(|far| step(-far).or_else(|| step(far)))
    }

    /// By how much an agent is slower than the plain one, for this kernel.
    pub fn factor(&self, slot: AgentSlot, kernel: u8) -> f32 {
        self.factors[usize::from(kernel).min(KERNELS - 1) * SLOTS + index(slot)]
    }

    /// Mean error of the whole model, in logarithms, and how many tasks it rests on.
    pub fn error(&self) -> (f32, u64) {
        (self.error, self.samples)
    }

    /// Mean time of all tasks lately, ns.
    pub fn mean_ns(&self) -> f32 {
        self.mean_ns
    }

    /// Whether the model as a whole may be built upon.
    pub fn is_trusted(&self) -> bool {
        self.error < MODEL_ERROR
    }

    /// A task came back: how good the estimates are, without a change to any. `None` if nothing was expected.
    pub fn judge(&mut self, finished: &Finished) -> Option<f32> {
        self.weigh(finished).map(|judged| judged.residual)
    }

    fn weigh(&mut self, finished: &Finished) -> Option<Judged> {
        if finished.service_ns.is_nan() {
            return None;
        }
        let service_ns = finished.service_ns.clamp(1.0, 1e15) as f32;
        let (lower, upper, share) = around(finished.kernel, finished.log2_size, finished.backend);
        let nominal = self.nominal(finished.kernel, finished.log2_size, finished.backend)?;
        let agent = &self.agents[index(finished.slot)];
        let kernel = usize::from(finished.kernel).min(KERNELS - 1);
        let expected = nominal.ns.ln();
        let residual = service_ns.ln() - expected - agent.slow - agent.fast - agent.habits[kernel];
        let wrong = self.cells[lower].error.max(self.cells[upper].error) > CELL_ERROR;
        let clamp = if wrong { WIDE_CLAMP } else { CLAMP };
        let error = residual.abs().min(3.0);
        let cells =
            [(lower, -share, 1.0 - share), (upper, 1.0 - share, share)].map(|(at, offset, weight)| {
                let known = self.cells[at];
                let cell = &mut self.cells[at];
                if known.samples == 0.0 {
                    // What was read off for it stands until it has samples of its own.
                    cell.log_ns = expected + offset * SLOPE;
                }
                if wrong {
                    cell.samples = cell.samples.min(ENOUGH);
                }
                let rate = (1.0 / (cell.samples + 1.0)).max(CELL_RATE);
                cell.error += weight * rate.max(0.05) * (error - cell.error);
                cell.samples = (cell.samples + weight).min(1e6);
                (at, weight, rate)
            });
        let of_backend = &mut self.errors[lower / CLASSES];
        *of_backend += 0.05 * (error - *of_backend);
        let trusted = self.is_trusted();
        self.error += (1.0 / (self.samples + 1) as f32).max(0.02) * (error - self.error);
        self.samples += 1;
        if trusted && !self.is_trusted() {
            self.doubt();
        }
        Some(Judged { residual, step: residual.clamp(-clamp, clamp), cells })
    }

    /// A task came back. Returns the logarithm of its time over the expected one, if one was expected.
    pub fn learn(&mut self, finished: &Finished) -> Option<f32> {
        if finished.service_ns.is_nan() {
            return None;
        }
        let service_ns = finished.service_ns.clamp(1.0, 1e15) as f32;
        let at = index(finished.slot);
        self.mean_ns += (1.0 / (self.samples + 1) as f32).max(0.01) * (service_ns - self.mean_ns);
        self.known[usize::from(finished.backend).min(BACKENDS - 1)] = true;
        self.seen = self.seen.max(at + 1);
        self.agents[at].last_ns = finished.now_ns;
        let kernel = usize::from(finished.kernel).min(KERNELS - 1);
        let Some(Judged { residual, step, cells }) = self.weigh(finished) else {
            let (lower, upper, share) = around(finished.kernel, finished.log2_size, finished.backend);
            let agent = &self.agents[at];
            let plain = service_ns.ln() - agent.slow - agent.fast - agent.habits[kernel];
            for (cell, offset, samples) in [(lower, -share, 1.0 - share), (upper, 1.0 - share, share)] {
                self.cells[cell] = Cell { log_ns: plain + offset * SLOPE, samples, error: 0.0 };
            }
            return None;
        };
        let agent = &mut self.agents[at];
        agent.drift += 0.1 * (step - agent.drift);
        agent.fast += if agent.drift.abs() > DRIFT { DRIFT_RATE } else { FAST_RATE } * step;
        agent.slow += SLOW_RATE * agent.fast;
        agent.fast = (agent.fast * (1.0 - SLOW_RATE)).clamp(-FAR, FAR);
        agent.slow = agent.slow.clamp(-FAR, FAR);
        agent.habits[kernel] = (agent.habits[kernel] + HABIT_RATE * step) * 0.999;
        self.refresh(at, kernel);
        let norm = cells.iter().map(|(_, weight, _)| weight * weight).sum::<f32>();
        for (cell, weight, rate) in cells {
            let cell = &mut self.cells[cell];
            cell.log_ns = (cell.log_ns + step * rate * weight / norm).clamp(0.0, 40.0);
        }
        Some(residual)
    }

    /// The model as a whole was wrong. Cells that nobody visited since may be as wrong as the rest: each has to prove
    /// itself again.
    fn doubt(&mut self) {
        for cell in &mut self.cells {
            cell.samples = cell.samples.min(0.5);
        }
    }

    /// An agent that was slow and is avoided gets no tasks to show that it recovered; so one that idles is nearly forgiven
    /// within `span_ns`. Who is at a long task idles not, however long ago the last one came back.
    pub fn forgive(&mut self, now_ns: u64, passed_ns: u64, span_ns: f64, idles: impl Fn(usize) -> bool) {
        let rest = 1.0 - (passed_ns as f64 / span_ns).min(1.0) as f32;
        for at in 0..self.seen {
            let agent = &mut self.agents[at];
            let is_idle = now_ns.saturating_sub(agent.last_ns) > passed_ns && idles(at);
            if is_idle && agent.fast != 0.0 {
                // Too little to matter is nothing, so that who is at rest costs nothing.
                agent.fast = if agent.fast.abs() < 1e-3 { 0.0 } else { agent.fast * rest };
                agent.drift *= rest;
                self.refresh_all(at);
            }
        }
    }

    /// Another life sits in this slot: what was known of the agent's speed is void.
    pub fn forget_agent(&mut self, slot: AgentSlot) {
        let agent = &mut self.agents[index(slot)];
        (agent.slow, agent.fast, agent.drift, agent.habits) = (0.0, 0.0, 0.0, [0.0; KERNELS]);
        self.refresh_all(index(slot));
    }

    /// Brings the factor of one kernel up to date. Those of the others follow with their own tasks, or with the clock.
    fn refresh(&mut self, at: usize, kernel: usize) {
        let agent = &self.agents[at];
        let log = agent.slow + agent.fast + agent.habits[kernel];
        self.factors[kernel * SLOTS + at] = log.clamp(-FAR, FAR).exp();
    }

    fn refresh_all(&mut self, at: usize) {
        (0..KERNELS).for_each(|kernel| self.refresh(at, kernel));
    }

    /// Replaces every estimate by a random one, up to a factor of e³ off: what a foreign or broken file would be.
    pub fn poison(&mut self, random: &mut crate::base::prng::SplitMix64) {
        for cell in self.cells.iter_mut().filter(|cell| cell.samples > 0.0) {
            cell.log_ns += (6.0 * random.next_f64() - 3.0) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(slot: u16, log2_size: f32, service_ns: f64) -> Finished {
        let slot = AgentSlot(slot);
        Finished {
            kernel: 1,
            log2_size,
            slot,
            backend: 0,
            service_ns,
            total_ns: service_ns,
            overhead_ns: None,
            now_ns: 0,
        }
    }

    fn expected(model: &ServiceModel, slot: u16, log2_size: f32) -> f32 {
        model.nominal(1, log2_size, 0).expect("known").ns * model.factor(AgentSlot(slot), 1)
    }

    #[test]
    fn what_was_learned_goes_on_in_another_model() {
        let mut model = ServiceModel::default();
        for turn in 0..400u64 {
            for (kernel, class, ns) in [(1, 12, 5e4), (1, 20, 3e6), (7, 0, 800.0)] {
                model.learn(&Finished {
                    kernel,
                    log2_size: class as f32 + 0.5,
                    slot: AgentSlot((turn % 3) as u16),
                    backend: 0,
                    service_ns: ns,
                    total_ns: ns,
                    overhead_ns: None,
                    now_ns: turn * 1000,
                });
            }
        }
        let mut other = ServiceModel::default();
        other.recall(&model.learning());
        assert_eq!(other.error(), model.error());
        for (kernel, log2_size) in [(1, 12.5), (1, 20.5), (7, 0.5)] {
            let (before, after) =
                (model.nominal(kernel, log2_size, 0), other.nominal(kernel, log2_size, 0).expect("known"));
            let before = before.expect("learned");
            assert!(after.trusted && (after.ns / before.ns - 1.0).abs() < 1e-3, "{before:?} {after:?}");
        }
        // What makes no sense changes nothing, and what is known stays.
        let nonsense = |ns| LearnedCost { kernel: 1, class: 12, backend: 0, ns };
        let costs = vec![nonsense(f64::NAN), nonsense(f64::INFINITY), nonsense(1.0)];
        other.recall(&Learning { costs, error: f32::NAN, samples: 1 });
        let after = other.nominal(1, 12.5, 0).expect("known");
        assert!((after.ns / 5e4 - 1.0).abs() < 0.1 && other.error() == model.error(), "{after:?}");
    }

    #[test]
    fn it_learns_a_law_and_reads_between_the_classes() {
        let mut model = ServiceModel::default();
        assert_eq!(model.nominal(1, 12.0, 0), None);
        for turn in 0..2000 {
            let size = 10.0 + (turn % 61) as f32 / 10.0;
            model.learn(&finished(turn % 3, size, 100.0 + f64::from(size.exp2())));
        }
        for size in [10.5f32, 12.0, 13.3, 15.9] {
            let (told, truth) = (expected(&model, 0, size), 100.0 + size.exp2());
            assert!((told / truth - 1.0).abs() < 0.1, "{size}: {told} against {truth}");
            assert!(model.nominal(1, size, 0).expect("known").trusted);
        }
        assert!(!model.nominal(1, 25.0, 0).expect("a guess").trusted, "far from what was seen");
    }

    #[test]
    fn an_agent_that_slows_down_is_followed_and_its_peers_are_not_blamed() {
        let mut model = ServiceModel::default();
        for turn in 0..400 {
            model.learn(&finished(turn % 4, 12.5, 5000.0));
        }
        for turn in 0..80 {
            let slot = turn % 4;
            model.learn(&finished(slot, 12.5, if slot == 2 { 15_000.0 } else { 5000.0 }));
        }
        let (slow, well) = (expected(&model, 2, 12.5), expected(&model, 1, 12.5));
        assert!((0.75..1.3).contains(&(slow / 15_000.0)), "{slow}");
        assert!((0.85..1.15).contains(&(well / 5000.0)), "{well}");
        for _ in 0..100 {
            model.forgive(10_000_000_000, 1_000_000, 20e6, |at| at != 2);
        }
        assert!(expected(&model, 2, 12.5) > 0.99 * slow, "at work, however long ago it was heard of");
        for _ in 0..100 {
            model.forgive(10_000_000_000, 1_000_000, 20e6, |at| at == 2);
        }
        assert!(expected(&model, 2, 12.5) < 0.6 * slow, "forgiven with time");
    }

    #[test]
    fn a_wrong_model_is_not_trusted_until_it_has_relearned() {
        let mut model = ServiceModel::default();
        for _ in 0..100 {
            model.learn(&finished(0, 12.5, 5000.0));
        }
        let mut trusted = Vec::new();
        for turn in 0..600 {
            let noise = if turn / 4 % 2 == 0 { 20.0 } else { 0.05 };
            model.learn(&finished(turn % 4, 12.5, 5000.0 * noise));
            trusted.push(model.nominal(1, 12.5, 0).expect("known").trusted);
        }
        assert!(trusted[100..].iter().all(|trusted| !trusted), "nobody can tell what these cost");
        for turn in 0..600 {
            model.learn(&finished(turn % 4, 12.5, 9000.0));
        }
        assert!(model.nominal(1, 12.5, 0).expect("known").trusted);
        assert!((0.85..1.15).contains(&(expected(&model, 0, 12.5) / 9000.0)));
    }

    #[test]
    fn what_is_supposed_counts_until_tasks_tell_otherwise_and_a_judge_changes_nothing_else() {
        let mut model = ServiceModel::default();
        model.suppose(1, 12.5, 0, 4000.0);
        model.suppose(1, 12.5, 0, 9e9);
        model.suppose(1, 14.5, 0, f64::NAN);
        let known = model.nominal(1, 12.5, 0).expect("supposed");
        assert!(known.trusted && (known.ns / 4000.0 - 1.0).abs() < 1e-3, "{known:?}");
        assert!(!model.knows(1, 14.5, 0) && model.least_ns(1, 12.5) == Some(known.ns));
        for _ in 0..20 {
            assert!(model.judge(&finished(0, 12.5, 4200.0)).is_some());
        }
        assert!(model.nominal(1, 12.5, 0).expect("known").trusted);
        for _ in 0..60 {
            model.judge(&finished(0, 12.5, 40_000.0));
        }
        assert_eq!(model.nominal(1, 12.5, 0), Some(Nominal { trusted: false, ..known }));
        assert!(!model.is_trusted());
    }

    #[test]
    fn nonsense_leaves_every_number_finite() {
        let mut model = ServiceModel::default();
        for turn in 0..2000u16 {
            let time = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, f64::MIN_POSITIVE][usize::from(turn % 6)];
            let size = [f32::NAN, f32::INFINITY, -7.0, 1e30, 12.0][usize::from(turn % 5)];
            let code = (turn % 256) as u8;
            let slot = AgentSlot(turn.wrapping_mul(977));
            let (kernel, backend) = (code, code);
            let finished = Finished {
                kernel,
                log2_size: size,
                slot,
                backend,
                service_ns: time,
                total_ns: time,
                overhead_ns: None,
                now_ns: 1,
            };
            model.learn(&finished);
            assert!(model.factor(slot, code).is_finite(), "{finished:?}");
            if let Some(known) = model.nominal(code, size, code) {
                assert!(known.ns.is_finite(), "{finished:?}: {known:?}");
            }
        }
    }
}
