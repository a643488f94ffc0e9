//! How good the predictions are, measured: labelled traces from seeds through the very code that judges living agents.
//!
//! Faulty traces are a healthy agent with one fault on top, healthy ones have what healthy agents have: load that
//! follows the day, memory that is collected now and then, bursts, neighbours that take the processor or the cache. A
//! fault counts as foretold when the right verdict comes at least [`AHEAD_S`] before the limit; every other verdict is
//! a false alarm. `AI_SWARM_TEST_SEED` sets the seed.

use super::monitor::{Deaths, Monitor, SLOW, Vitals};
use crate::base::prng::SplitMix64;
use crate::messaging::failure::Failure;
use std::collections::BTreeMap;

/// Faulty traces per class.
const TRACES: usize = 60;
/// Days of healthy traces, in agents.
const HEALTHY_AGENTS: usize = 12;
const DAY_S: usize = 86_400;
/// A warning is worth something so long before the limit.
const AHEAD_S: f64 = 5.0;
const RECALL_MIN: f64 = 0.95;
/// From its beginning to the limit a fault takes this long, s.
const SPAN_S: (f64, f64) = (40.0, 7200.0);
const MEMORY_LIMIT: f64 = 4e9;
const DESCRIPTOR_LIMIT: f64 = 1024.0;
/// The default restart rules.
const RESTARTS: (u32, f64) = (5, 10.0);

/// Luck with the distributions that are needed.
struct Luck(SplitMix64);

impl Luck {
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.next_f64()
    }

    /// Spread evenly over the orders of magnitude.
    fn magnitude(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }

    /// Normal, as the sum of twelve even ones.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.0.next_f64()).sum::<f64>() - 6.0
    }

    fn happens(&mut self, share: f64) -> bool {
        self.0.next_f64() < share
    }
}

/// An episode that comes now and then, lasts a while and has a strength.
struct Episode {
    every_s: f64,
    lasts: (f64, f64),
    strength: (f64, f64),
    now: (f64, f64),
}

impl Episode {
    fn new(every_s: f64, lasts: (f64, f64), strength: (f64, f64)) -> Self {
        Self { every_s, lasts, strength, now: (0.0, 0.0) }
    }

    /// Its strength in this second; 0 while there is none.
    fn next(&mut self, luck: &mut Luck) -> f64 {
        if self.now.0 > 0.0 {
            self.now.0 -= 1.0;
        } else if luck.happens(1.0 / self.every_s) {
            self.now =
                (luck.magnitude(self.lasts.0, self.lasts.1), luck.between(self.strength.0, self.strength.1));
        } else {
            self.now.1 = 0.0;
        }
        self.now.1
    }
}

/// A healthy agent.
struct Healthy {
    luck: Luck,
    base: f64,
    collect: (f64, f64),
    daily: f64,
    pace_noise: f64,
    burst: Episode,
    neighbour: Episode,
    cache: Episode,
    failures: Episode,
    now_s: f64,
}

impl Healthy {
    fn new(seed: u64) -> Self {
        let mut luck = Luck(SplitMix64::new(seed));
        Self {
            base: luck.between(0.1, 0.25),
            collect: (luck.between(0.02, 0.25), luck.magnitude(10.0, 1200.0)),
            daily: luck.between(0.0, 0.15),
            pace_noise: luck.between(0.03, 0.2),
            burst: Episode::new(600.0, (2.0, 90.0), (0.05, 0.3)),
            neighbour: Episode::new(1800.0, (5.0, 300.0), (0.25, 0.9)),
            cache: Episode::new(1800.0, (5.0, 300.0), (0.1, 0.7)),
            failures: Episode::new(7200.0, (1.0, 5.0), (0.2, 0.6)),
            luck,
            now_s: 0.0,
        }
    }

    fn next(&mut self) -> Vitals {
        let luck = &mut self.luck;
        self.now_s += 1.0;
        let day = (1.0 + (self.now_s / DAY_S as f64 * std::f64::consts::TAU).sin()) / 2.0;
        let (burst, starved) = (self.burst.next(luck), self.neighbour.next(luck));
        let (cache, failing) = (self.cache.next(luck), self.failures.next(luck));
        let (amplitude, period) = self.collect;
        let garbage = amplitude * (self.now_s / period).fract();
        let memory = self.base + garbage + self.daily * day + burst + 0.004 * luck.normal();
        let load = (20.0 * (0.1 + day) * (1.0 + 2.0 * burst)) as u64;
        let ended = luck.0.below(load + 1);
        let failed = (0..ended).filter(|_| luck.happens(0.003 + failing)).count() as u64;
        // A starved agent is slow, and so is one whose neighbour has taken the cache, which nobody shows.
        let pace = (1.0 + 0.2 * day) * (1.0 + cache) / (1.0 - 0.8 * starved)
            * (self.pace_noise * luck.normal()).exp();
        let rest = if ended == 0 { 0.25 } else { 0.05 };
        Vitals {
            now_s: self.now_s,
            memory_bytes: MEMORY_LIMIT * memory,
            memory_limit: MEMORY_LIMIT,
            descriptors: (30.0 + 300.0 * burst + 2.0 * luck.normal()).round(),
            descriptor_limit: DESCRIPTOR_LIMIT,
            pace: if ended == 0 { f64::NAN } else { pace },
            starved: starved * luck.between(0.8, 1.1),
            beat_gap_s: rest + starved * luck.between(0.0, 0.5),
            faults_per_cpu_s: luck.magnitude(100.0, 1000.0) * (1.0 + 20.0 * burst),
            switches_per_beat: luck.between(0.5, 1.5) * (1.0 + 3.0 * starved),
            done: ended - failed,
            failed,
        }
    }
}

/// A fault that is put on top; `grown` is 0 when it begins and 1 when a limit is reached without anything else.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    LinearLeak,
    StepLeak,
    DescriptorLeak,
    Slowdown,
}

impl Fault {
    fn failure(self) -> Failure {
        if self == Fault::Slowdown { Failure::Drift } else { Failure::Leak }
    }

    /// Puts the fault on top. Whether a limit is reached.
    fn apply(self, vitals: &mut Vitals, grown: f64, steps: f64) -> bool {
        match self {
            Fault::LinearLeak => vitals.memory_bytes += MEMORY_LIMIT * grown,
            Fault::StepLeak => vitals.memory_bytes += MEMORY_LIMIT * (grown * steps).floor() / steps,
            Fault::DescriptorLeak => vitals.descriptors += (DESCRIPTOR_LIMIT * grown).floor(),
            Fault::Slowdown => {
                let factor = 1.0 + (SLOW - 1.0) * grown;
                vitals.pace *= factor;
                return factor >= SLOW;
            }
        }
        vitals.memory_bytes >= vitals.memory_limit || vitals.descriptors >= vitals.descriptor_limit
    }
}

/// One class of traces: how many, how long before the limit each was foretold.
#[derive(Default)]
struct Score {
    traces: usize,
    leads: Vec<f64>,
    /// Verdicts while the agent was healthy.
    early: usize,
}

impl Score {
    fn recall(&self) -> f64 {
        self.leads.iter().filter(|lead| **lead >= AHEAD_S).count() as f64 / self.traces as f64
    }

    fn quantile(&self, share: f64) -> f64 {
        let mut leads = self.leads.clone();
        leads.sort_unstable_by(f64::total_cmp);
        leads.get((share * leads.len() as f64) as usize).copied().unwrap_or(f64::NAN)
    }
}

fn score(fault: Fault, seed: u64) -> Score {
    let mut score = Score::default();
    for trace in 0..TRACES as u64 {
        let mut agent = Healthy::new(seed.wrapping_add(trace * 7919));
        let healthy_s = agent.luck.magnitude(60.0, 7200.0);
        let span = agent.luck.magnitude(SPAN_S.0, SPAN_S.1);
        let steps = agent.luck.between(10.0, 60.0).floor();
        let mut monitor = Monitor::new();
        let mut foretold = None;
        score.traces += 1;
        let limit_s = loop {
            let mut vitals = agent.next();
            let grown = ((vitals.now_s - healthy_s) / span).max(0.0);
            if fault.apply(&mut vitals, grown, steps) {
                break vitals.now_s;
            }
            if let Some(verdict) = monitor.observe(&vitals).verdict {
                if vitals.now_s < healthy_s {
                    score.early += 1;
                } else if verdict.failure == fault.failure() {
                    foretold.get_or_insert(vitals.now_s);
                }
            }
        };
        score.leads.extend(foretold.map(|at| limit_s - at));
    }
    score
}

/// Pauses between deaths that shrink by a factor, with jitter, until the restart rule is broken.
fn score_restarts(seed: u64) -> Score {
    let mut score = Score::default();
    for trace in 0..TRACES as u64 {
        let mut luck = Luck(SplitMix64::new(seed.wrapping_add(trace * 104_729)));
        let (mut pause, factor) = (luck.between(30.0, 600.0), luck.between(0.5, 0.85));
        let (mut deaths, mut seen, mut now, mut foretold) = (Deaths::default(), Vec::new(), 0.0, None);
        score.traces += 1;
        loop {
            now += pause * luck.between(0.85, 1.15);
            pause *= factor;
            seen.push(now);
            let recent = seen.iter().filter(|at| now - **at <= RESTARTS.1).count();
            if recent > RESTARTS.0 as usize {
                break;
            }
            if deaths.observe(now, RESTARTS.0, RESTARTS.1).is_some() {
                foretold.get_or_insert(now);
            }
        }
        score.leads.extend(foretold.map(|at| now - at));
    }
    score
}

/// False alarms and symptoms of healthy agents in a day each, and deaths that come at random.
fn false_alarms(seed: u64) -> (usize, BTreeMap<&'static str, usize>) {
    let (mut alarms, mut symptoms) = (0, BTreeMap::new());
    for number in 0..HEALTHY_AGENTS as u64 {
        let mut agent = Healthy::new(seed.wrapping_add(number * 15_485_863));
        let mut monitor = Monitor::new();
        let mut deaths = Deaths::default();
        for _ in 0..DAY_S {
            let vitals = agent.next();
            let findings = monitor.observe(&vitals);
            for symptom in &findings.symptoms {
                *symptoms.entry(symptom.what).or_insert(0) += 1;
            }
            if let Some(verdict) = findings.verdict {
                println!("false alarm: agent {number} at {} s: {verdict:?}", vitals.now_s);
                alarms += 1;
                monitor = Monitor::new();
            }
            // Once in an hour somebody kills it.
            if agent.luck.happens(1.0 / 3600.0)
                && let Some(verdict) = deaths.observe(vitals.now_s, RESTARTS.0, RESTARTS.1)
            {
                println!("false alarm: agent {number} at {} s: {verdict:?}", vitals.now_s);
                alarms += 1;
            }
        }
    }
    (alarms, symptoms)
}

#[test]
fn failures_are_foretold_and_healthy_agents_left_alone() {
    let seed =
        std::env::var("AI_SWARM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_121);
    println!("AI_SWARM_TEST_SEED={seed}");
    println!(
        "{:<16} {:>6} {:>7} {:>10} {:>10} {:>6}",
        "fault", "traces", "recall", "lead p10", "lead p50", "early"
    );
    let scores = [
        ("linear leak", score(Fault::LinearLeak, seed)),
        ("step leak", score(Fault::StepLeak, seed)),
        ("descriptor leak", score(Fault::DescriptorLeak, seed)),
        ("latency drift", score(Fault::Slowdown, seed)),
        ("restart rate", score_restarts(seed)),
    ];
    for (name, score) in &scores {
        println!(
            "{name:<16} {:>6} {:>5.1} % {:>8.1} s {:>8.1} s {:>6}",
            score.traces,
            100.0 * score.recall(),
            score.quantile(0.1),
            score.quantile(0.5),
            score.early
        );
    }
    let (alarms, symptoms) = false_alarms(seed);
    let per_day = |count: usize| count as f64 / HEALTHY_AGENTS as f64;
    println!(
        "healthy: {HEALTHY_AGENTS} agent-days, {:.2} false alarms per agent-day; symptoms: {symptoms:?}",
        per_day(alarms)
    );
    for (name, score) in &scores {
        assert!(score.recall() >= RECALL_MIN, "{name}: recall {:.3}", score.recall());
    }
    assert!(per_day(alarms) <= 1.0, "{alarms} false alarms");
}
