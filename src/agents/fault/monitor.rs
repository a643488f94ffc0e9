//! All that is watched of one agent in one life: figures of a second in, symptoms and a verdict out. No clock, no
//! files, constant memory: what judges a living agent judges a recorded trace.
//!
//! Forecasts ([`Trend`]) end in a verdict *before* the failure: memory and descriptors on their way to a limit, tasks
//! that become slower and slower. Charts ([`Chart`]) find what changed for no visible reason: that is a symptom, it is told
//! and goes into the evidence of a later verdict, but nobody is replaced for a symptom.

use super::chart::{Chart, median};
use super::trend::{DRIFT, LEAK, Outlook, Rules, Trend};
use crate::messaging::failure::{Failure, Figure};

/// Tasks that take so many times what they are known to take: the agent has failed as one that computes.
pub(super) const SLOW: f64 = 3.0;
/// An agent that lacked a processor for more than this share of the time is starved: its symptoms are somebody else's doing.
const STARVED: f64 = 0.2;
/// One that lacked it for more than this share is not judged by its speed at all. Below, the time that it waited is taken off.
const STARVED_MUCH: f64 = 0.7;
/// Seconds in which everything fails that make an agent sick, and failures at least. Seconds in which two of three fail
/// count for a third.
const FAILED_S: f64 = 5.0;
const FAILED_MIN: u64 = 10;
/// Samples in a row at or over a limit.
const OVER: u32 = 3;
/// A symptom is evidence for so long.
const SYMPTOM_S: f64 = 120.0;

/// What was seen of one agent in one second. NaN: not known, which is never taken for a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vitals {
    /// When, s.
    pub(super) now_s: f64,
    /// Resident memory.
    pub(super) memory_bytes: f64,
    /// As much as it may have.
    pub(super) memory_limit: f64,
    /// Open descriptors.
    pub(super) descriptors: f64,
    /// As many as it may have.
    pub(super) descriptor_limit: f64,
    /// Time of the tasks done, as a multiple of what they are known to take.
    pub(super) pace: f64,
    /// Share of the time in which it was ready and had no processor.
    pub(super) starved: f64,
    /// Longest time without a sign of progress, s.
    pub(super) beat_gap_s: f64,
    /// Page faults per second on a processor.
    pub(super) faults_per_cpu_s: f64,
    /// Context switches per turn of its cycle.
    pub(super) switches_per_beat: f64,
    /// Tasks that ended well, and that failed on it.
    pub(super) done: u64,
    pub(super) failed: u64,
}

impl Vitals {
    /// Nothing known but the time.
    pub(super) fn at(now_s: f64) -> Self {
        Self {
            now_s,
            memory_bytes: f64::NAN,
            memory_limit: f64::NAN,
            descriptors: f64::NAN,
            descriptor_limit: f64::NAN,
            pace: f64::NAN,
            starved: f64::NAN,
            beat_gap_s: f64::NAN,
            faults_per_cpu_s: f64::NAN,
            switches_per_beat: f64::NAN,
            done: 0,
            failed: 0,
        }
    }
}

/// Something that changed and stays so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Symptom {
    /// Of what.
    pub(super) what: &'static str,
    /// Now, and before.
    pub(super) value: f64,
    pub(super) usual: f64,
    /// How far apart, in robust deviations.
    pub(super) z: f64,
    at_s: f64,
}

/// What is wrong with an agent, and how that is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) failure: Failure,
    pub(super) words: String,
    pub(super) figures: Vec<Figure>,
}

/// What a second brought to light.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Findings {
    pub(super) symptoms: Vec<Symptom>,
    pub(super) verdict: Option<Verdict>,
}

/// One agent in one life.
#[derive(Clone, Debug)]
pub(super) struct Monitor {
    memory: Towards,
    descriptors: Towards,
    pace: Towards,
    charts: [(&'static str, Chart); 5],
    symptoms: [Option<Symptom>; 5],
    failed_s: f64,
    failed: u64,
}

/// A quantity with a limit: where it is going, and whether it is there.
#[derive(Clone, Debug)]
struct Towards {
    trend: Trend,
    over: u32,
}

impl Towards {
    fn new(rules: &'static Rules) -> Self {
        Self { trend: Trend::new(rules), over: 0 }
    }

    fn observe(&mut self, now_s: f64, value: f64, limit: f64) -> Option<Outlook> {
        let outlook = self.trend.observe(now_s, value, limit);
        self.over = if value >= limit { self.over + 1 } else { 0 };
        let is_over = self.over >= OVER;
        outlook.or_else(|| {
            is_over.then_some(Outlook { value, slope: 0.0, left_s: 0.0, over_s: f64::from(OVER) })
        })
    }
}

impl Monitor {
    /// A life begins.
    pub(super) fn new() -> Self {
        // The floors: less than a tenth of a second, a tenth of the usual time, two decades … is no news.
        let charts = [
            ("beat_gap_s", Chart::new(0.1)),
            ("pace", Chart::new(0.1)),
            ("failed_share", Chart::new(0.05)),
            ("faults_per_cpu_s_log10", Chart::new(0.5)),
            ("switches_per_beat_log10", Chart::new(0.5)),
        ];
        Self {
            memory: Towards::new(&LEAK),
            descriptors: Towards::new(&LEAK),
            pace: Towards::new(&DRIFT),
            charts,
            symptoms: [None; 5],
            failed_s: 0.0,
            failed: 0,
        }
    }

    /// Takes what was seen in a second.
    pub(super) fn observe(&mut self, vitals: &Vitals) -> Findings {
        let ended = vitals.done + vitals.failed;
        let is_starved = vitals.starved > STARVED;
        // Somebody else's load is not the agent's doing.
        let own_pace = match vitals.starved {
            starved if starved > STARVED_MUCH => f64::NAN,
            starved if starved > STARVED => vitals.pace * (1.0 - starved),
            _ => vitals.pace,
        };
        let pace = if is_starved { f64::NAN } else { vitals.pace };
        let failed_share = if ended > 0 { vitals.failed as f64 / ended as f64 } else { f64::NAN };
        let seen = [
            if is_starved { f64::NAN } else { vitals.beat_gap_s },
            pace,
            failed_share,
            (1.0 + vitals.faults_per_cpu_s).log10(),
            (1.0 + vitals.switches_per_beat).log10(),
        ];
        let mut symptoms = Vec::new();
        for ((what, chart), (value, kept)) in
            self.charts.iter_mut().zip(seen.into_iter().zip(&mut self.symptoms))
        {
            if let Some(shift) = chart.observe(value) {
                let symptom =
                    Symptom { what, value: shift.value, usual: shift.usual, z: shift.z, at_s: vitals.now_s };
                *kept = Some(symptom);
                symptoms.push(symptom);
            }
        }
        let verdict = self.judge(vitals, own_pace).map(|mut verdict| {
            let fresh = |symptom: &&Symptom| vitals.now_s - symptom.at_s <= SYMPTOM_S;
            for symptom in self.symptoms.iter().flatten().filter(fresh) {
                verdict.figures.push(Figure::new(&format!("symptom_{}", symptom.what), symptom.value));
            }
            verdict
        });
        Findings { symptoms, verdict }
    }

    /// Whether most tasks fail lately.
    pub(super) fn is_failing(&self) -> bool {
        self.failed_s > 0.0
    }

    /// The most urgent verdict. Every quantity is looked at, whatever the others say.
    fn judge(&mut self, vitals: &Vitals, pace: f64) -> Option<Verdict> {
        let Vitals { now_s, memory_bytes, memory_limit, descriptors, descriptor_limit, .. } = *vitals;
        let memory = self.memory.observe(now_s, memory_bytes, memory_limit);
        let descriptors = self.descriptors.observe(now_s, descriptors, descriptor_limit);
        let slowness = self.pace.observe(now_s, pace, SLOW);
        let limits = [
            (memory, Failure::Leak, "memory", "bytes", memory_limit),
            (descriptors, Failure::Leak, "descriptors", "count", descriptor_limit),
            (slowness, Failure::Drift, "time of tasks", "times_usual", SLOW),
        ];
        let urgent = limits
            .into_iter()
            .filter_map(|(outlook, failure, what, unit, limit)| Some((outlook?, failure, what, unit, limit)))
            .min_by(|a, b| a.0.left_s.total_cmp(&b.0.left_s));
        let forecast = urgent.map(|(outlook, failure, what, unit, limit)| {
            let key = what.replace(' ', "_");
            let words = if outlook.slope > 0.0 {
                format!("{what} will reach the limit in {:.0} s", outlook.left_s)
            } else {
                format!("{what} over the limit")
            };
            let figures = vec![
                Figure::new(&format!("{key}_{unit}"), outlook.value),
                Figure::new(&format!("limit_{unit}"), limit),
                Figure::new(&format!("rise_{unit}_per_s"), outlook.slope),
                Figure::new("over_s", outlook.over_s),
                Figure::new("left_s", outlook.left_s),
            ];
            Verdict { failure, words, figures }
        });
        forecast.or_else(|| self.failing(vitals))
    }

    /// A cumulative sum around one half: it grows only while most tasks fail.
    fn failing(&mut self, vitals: &Vitals) -> Option<Verdict> {
        let (done, failed) = (vitals.done as f64, vitals.failed as f64);
        if vitals.done + vitals.failed == 0 {
            return None;
        }
        self.failed_s = (self.failed_s + (failed - done) / (failed + done)).max(0.0);
        self.failed = if self.failed_s > 0.0 { self.failed + vitals.failed } else { 0 };
        (self.failed_s >= FAILED_S && self.failed >= FAILED_MIN).then(|| Verdict {
            failure: Failure::Errors,
            words: format!("most tasks fail: {} lately", self.failed),
            figures: vec![
                Figure::new("failed_count", self.failed as f64),
                Figure::new("failing_s", self.failed_s),
            ],
        })
    }
}

/// Deaths that are remembered of one agent.
const DEATHS: usize = 8;
/// Deaths that make a trend.
const DEATHS_MIN: usize = 5;
/// How far ahead a crash loop is foretold, s.
const DEATHS_AHEAD_S: f64 = 120.0;

/// The deaths of one agent, through all its lives.
#[derive(Clone, Debug, Default)]
pub(super) struct Deaths {
    at_s: [f64; DEATHS],
    count: usize,
}

impl Deaths {
    /// How many of them are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// It died. A verdict if the pauses between deaths shrink so that more than `limit` deaths within `window_s`
    /// are near.
    ///
    /// A reliability that shrinks by a factor per failure is the geometric process of Y. Lam ("Geometric processes and
    /// replacement problem", 1988); the factor is the median slope of the pauses' logarithms, as in [`Trend`].
    pub(super) fn observe(&mut self, now_s: f64, limit: u32, window_s: f64) -> Option<Verdict> {
        if self.count == DEATHS {
            self.at_s.rotate_left(1);
            self.count -= 1;
        }
        self.at_s[self.count] = now_s;
        self.count += 1;
        let deaths = &self.at_s[..self.count];
        if deaths.len() < DEATHS_MIN || limit == 0 {
            return None;
        }
        let pauses: Vec<f64> = deaths.windows(2).map(|pair| (pair[1] - pair[0]).max(1e-3).ln()).collect();
        let pairs = (0..pauses.len()).flat_map(|a| (a + 1..pauses.len()).map(move |b| (a, b)));
        let mut slopes: Vec<f64> = pairs.map(|(a, b)| (pauses[b] - pauses[a]) / (b - a) as f64).collect();
        let shrinking = slopes.iter().filter(|slope| **slope < 0.0).count() as f64 / slopes.len() as f64;
        let slope = median(&mut slopes);
        // Four of five pairs must agree, and each pause be a tenth shorter than the one before.
        if shrinking < 0.8 || slope > -0.1 {
            return None;
        }
        let last = pauses.len() - 1;
        let mut level: Vec<f64> =
            pauses.iter().enumerate().map(|(at, pause)| pause + slope * (last - at) as f64).collect();
        let level = median(&mut level);
        // An agent that lived twice as long as it should by now is not getting worse.
        if pauses[last] - level > std::f64::consts::LN_2 {
            return None;
        }
        let (mut when, mut ahead) = (now_s, deaths.to_vec());
        for step in 1..=64 {
            when += (level + slope * f64::from(step)).exp();
            if when - now_s > DEATHS_AHEAD_S {
                return None;
            }
            ahead.push(when);
            let recent = ahead.iter().filter(|at| when - **at <= window_s).count();
            if recent > limit as usize {
                let left_s = when - now_s;
                return Some(Verdict {
                    failure: Failure::Restarts,
                    words: format!("it dies more and more often; a crash loop is expected in {left_s:.0} s"),
                    figures: vec![
                        Figure::new("deaths_count", deaths.len() as f64),
                        Figure::new("last_pause_s", pauses[last].exp()),
                        Figure::new("pause_factor", slope.exp()),
                        Figure::new("left_s", left_s),
                    ],
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_failures_make_an_agent_sick_and_few_do_not() {
        let second = |now: u64, done, failed| Vitals { done, failed, ..Vitals::at(now as f64) };
        let judged = |done, failed| {
            let mut monitor = Monitor::new();
            (0..20).find_map(|now| monitor.observe(&second(now, done, failed)).verdict)
        };
        let verdict = judged(0, 3).expect("nothing works");
        assert_eq!(verdict.failure, Failure::Errors);
        assert!(verdict.figures.iter().any(|figure| figure.name == "failed_count" && figure.value >= 10.0));
        assert_eq!(judged(4, 3), None, "more than half of them work");
        assert_eq!(judged(0, 0), None);
    }

    #[test]
    fn a_sudden_rise_over_the_limit_is_a_leak_without_a_trend() {
        let mut monitor = Monitor::new();
        let second =
            |now: u64, bytes| Vitals { memory_bytes: bytes, memory_limit: 1e9, ..Vitals::at(now as f64) };
        assert!((0..100).all(|now| monitor.observe(&second(now, 2e8)).verdict.is_none()));
        let found = (100..110).find_map(|now| Some((now, monitor.observe(&second(now, 1.1e9)).verdict?)));
        let (at, verdict) = found.expect("found");
        assert_eq!((at, verdict.failure, &*verdict.words), (102, Failure::Leak, "memory over the limit"));
    }

    #[test]
    fn symptoms_are_told_and_are_evidence_of_a_later_verdict() {
        let mut monitor = Monitor::new();
        let second = |now: u64, faults, bytes: f64| Vitals {
            faults_per_cpu_s: faults,
            memory_bytes: bytes,
            memory_limit: 1e9,
            ..Vitals::at(now as f64)
        };
        assert!((0..100).all(|now| monitor.observe(&second(now, 10.0, 1e8)) == Findings::default()));
        let mut told = Vec::new();
        let verdict = (100..160).find_map(|now| {
            let findings = monitor.observe(&second(now, 1e7, 1e8 + (now - 100) as f64 * 2e7));
            told.extend(findings.symptoms);
            findings.verdict
        });
        assert_eq!(told.iter().map(|symptom| symptom.what).collect::<Vec<_>>(), ["faults_per_cpu_s_log10"]);
        let figures = verdict.expect("it leaks").figures;
        assert!(figures.iter().any(|figure| figure.name == "symptom_faults_per_cpu_s_log10"), "{figures:?}");
    }

    #[test]
    fn deaths_that_come_faster_and_faster_are_a_verdict_and_regular_ones_are_not() {
        let verdict = |pauses: &[f64]| {
            let (mut deaths, mut now) = (Deaths::default(), 0.0);
            pauses.iter().find_map(|pause| {
                now += pause;
                deaths.observe(now, 5, 10.0)
            })
        };
        let found = verdict(&[60.0, 40.0, 25.0, 15.0, 9.0, 6.0]).expect("found");
        assert_eq!(found.failure, Failure::Restarts);
        assert_eq!(verdict(&[4.0; 50]), None);
        assert_eq!(verdict(&[9.0, 15.0, 25.0, 40.0, 60.0]), None);
        assert_eq!(verdict(&[60.0, 10.0, 55.0, 12.0, 48.0, 9.0, 60.0]), None);
    }
}
