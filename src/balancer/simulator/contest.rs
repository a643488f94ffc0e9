//! Policies side by side: the same worlds for all, baselines tuned in hindsight, and what can be said of the ratio.
//!
//! The unit of analysis is the run, never the task: tasks of one run share its queues.

use super::trace::Trace;
use super::{BACKENDS, Knowledge, Outcome, Scenario, Setup, World, run};
use crate::balancer::{Learned, POLICIES, placer};
use crate::base::prng::SplitMix64;
use crate::tasks::Mode;

/// What a decision is charged, ns. The learned one was measured at about this much, the others at less.
const DECISION_NS: u64 = 100;
/// What baselines are tuned over: exponents of the shadow prices of the true mix, which no baseline could know; `None`
/// sends tasks anywhere.
const PRICES: [Option<f64>; 4] = [None, Some(0.7), Some(1.0), Some(1.4)];

/// A policy and what came of it in each world.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The policy.
    pub name: &'static str,
    /// How it was tuned.
    pub tuning: String,
    /// By world.
    pub outcomes: Vec<Outcome>,
}

impl Entry {
    /// The geometric mean over the worlds of one figure.
    pub fn geometric_mean(&self, figure: impl Fn(&Outcome) -> f64) -> f64 {
        (self.outcomes.iter().map(|outcome| figure(outcome).ln()).sum::<f64>() / self.outcomes.len() as f64)
            .exp()
    }

    /// This one's figure over that one's, world by world.
    pub fn ratio_to(&self, other: &Entry, figure: impl Fn(&Outcome) -> f64) -> Ratio {
        Ratio::of(&self.logs_to(other, figure))
    }

    /// Their logarithms.
    pub fn logs_to(&self, other: &Entry, figure: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        let pairs = self.outcomes.iter().zip(&other.outcomes);
        pairs.map(|(a, b)| (figure(a) / figure(b)).ln()).collect()
    }
}

/// A geometric-mean ratio with its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The ratio.
    pub mean: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Ratio {
    /// From the logarithms of independent ratios.
    pub fn of(logs: &[f64]) -> Self {
        let count = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / count;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        // Student's t at 97.5%, to three digits from four degrees of freedom on.
        let freedom = (count - 1.0).max(1.0);
        let t = 1.96 + 2.37 / freedom + 2.8 / freedom.powi(2) + 4.0 / freedom.powi(3);
        let half = t * (variance / count).sqrt();
        Self { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() }
    }
}

/// The learned policy, and what is done to it to see what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pupil {
    /// After a calibration of a fraction of a second.
    Learned,
    /// Knowing nothing.
    Cold,
    /// Calibrated, and not learning: what learning is worth.
    Frozen,
    /// With a model of random numbers.
    Poisoned,
    /// Its safe rule alone.
    Safe,
    /// Its rule with the true cost of each moment: what knowing is worth.
    Oracle,
}

impl Pupil {
    /// All of them.
    pub const ALL: [Pupil; 6] =
        [Pupil::Learned, Pupil::Cold, Pupil::Frozen, Pupil::Poisoned, Pupil::Safe, Pupil::Oracle];

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Pupil::Learned => "learned",
            Pupil::Cold => "learned_cold",
            Pupil::Frozen => "learned_frozen",
            Pupil::Poisoned => "learned_poisoned",
            Pupil::Safe => "learned_safe",
            Pupil::Oracle => "oracle",
        }
    }

    /// The policy, ready for this world.
    pub fn policy(self, world: &World, seed: u64) -> Learned {
        let policy = Learned::new(seed);
        let calibrated = || world.calibrated(seed);
        match self {
            Pupil::Learned => policy.with_model(calibrated()),
            Pupil::Cold => policy,
            Pupil::Frozen => policy.with_model(calibrated()).with_mode(Mode::Frozen),
            Pupil::Safe => policy.with_mode(Mode::Safe),
            Pupil::Oracle => policy.with_model(calibrated()).with_mode(Mode::Static),
            Pupil::Poisoned => {
                let mut model = calibrated();
                model.poison(&mut SplitMix64::new(seed));
                policy.with_model(model)
            }
        }
    }

    /// What is told to it.
    pub fn setup(self) -> Setup {
        let knowledge = match self {
            Pupil::Oracle => Knowledge::Oracle,
            Pupil::Cold => Knowledge::Cold,
            _ => Knowledge::Warm,
        };
        Setup { knowledge, prices: None, decision_ns: DECISION_NS }
    }

    /// Runs it through all worlds.
    pub fn enter(self, worlds: &[World]) -> Entry {
        let run = |(seed, world)| run(world, &mut self.policy(world, seed), self.setup());
        let outcomes = (1..).zip(worlds).map(run).collect();
        Entry { name: self.name(), tuning: String::new(), outcomes }
    }
}

/// `count` worlds of a scenario.
pub fn worlds(scenario: &Scenario, count: u64, tasks: usize) -> Vec<World> {
    (1..=count).map(|seed| scenario.world(seed, tasks)).collect()
}

/// The same with a trace replayed in it.
pub fn replays(scenario: &Scenario, trace: &Trace, count: u64, tasks: usize) -> Vec<World> {
    (1..=count).map(|seed| scenario.replay(trace, seed, tasks)).collect()
}

/// Every simple policy.
pub fn simple() -> impl Iterator<Item = &'static str> {
    POLICIES.into_iter().filter(|name| *name != "learned")
}

/// These policies in every tuning.
pub fn tunings(names: impl IntoIterator<Item = &'static str>, worlds: &[World]) -> Vec<Entry> {
    // Prices tell backends apart.
    let only = |world: &World| world.machines.iter().all(|at| at.backend == world.machines[0].backend);
    let prices = if worlds.iter().all(only) { &PRICES[..1] } else { &PRICES[..] };
    let every = |name| {
        // Only one of them looks at what tasks are expected to cost; it is also told what no table could know.
        let tables: &[Knowledge] =
            if name == "ect" { &[Knowledge::Warm, Knowledge::Nominal] } else { &[Knowledge::Warm] };
        let tunings = tables.iter().flat_map(|table| prices.iter().map(|power| (*table, *power)));
        tunings.map(move |(table, power)| enter_baseline(name, table, power, worlds))
    };
    names.into_iter().flat_map(every).collect()
}

/// The one that turned out best for the figure over all worlds.
pub fn best<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    figure: impl Fn(&Outcome) -> f64 + Copy,
) -> &'a Entry {
    let by = |a: &&Entry, b: &&Entry| a.geometric_mean(figure).total_cmp(&b.geometric_mean(figure));
    entries.into_iter().min_by(by).expect("there are baselines")
}

fn enter_baseline(name: &'static str, knowledge: Knowledge, power: Option<f64>, worlds: &[World]) -> Entry {
    let outcomes = worlds.iter().map(|world| {
        let prices: Option<[f64; BACKENDS]> = power.map(|power| world.prices.map(|price| price.powf(power)));
        let mut policy = placer(name, "learned").expect("a listed policy");
        run(world, &mut *policy, Setup { knowledge, prices, decision_ns: DECISION_NS })
    });
    let tuning = match power {
        None => "any backend".to_owned(),
        Some(1.0) => "shadow prices".to_owned(),
        Some(power) => format!("shadow prices^{power}"),
    };
    let told = if knowledge == Knowledge::Nominal { ", true costs at rest" } else { "" };
    Entry { name, tuning: tuning + told, outcomes: outcomes.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_t_distribution() {
        let ratio = Ratio::of(&[0.1, 0.2, 0.3, 0.4, 0.5]);
        // Mean 0.3, deviation 0.158, t(4) 2.776: half width 0.1963.
        assert!((ratio.mean - 0.3f64.exp()).abs() < 1e-9);
        assert!(
            (ratio.high.ln() - 0.4963).abs() < 0.002 && (ratio.low.ln() - 0.1037).abs() < 0.002,
            "{ratio:?}"
        );
    }
}
