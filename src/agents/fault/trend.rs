//! Trends: when will this value reach its limit? Numbers in, forecast out; constant memory.
//!
//! A leak raises the *floor* of a value. Buffers that come and go, collected garbage and bursts raise its peaks. So a
//! [`Trend`] keeps the floor on four time scales: buckets of 1, 4, 16 and 64 samples, sixteen of them each. The floor of a
//! bucket is the smallest value of itself and of a few before it, so that garbage which is collected a little less often than
//! a bucket is long does not look like a rise. A rise that is a line on one scale is a step on the next finer one. Where the limit is a wall, the peaks
//! still matter: it is they that meet it first, so the largest of each bucket is kept, too, and its height above the floor
//! is kept clear of the limit. Coarse scales remember such heights for hours: bursts are rare.
//!
//! A scale is believed when
//! 1. the medians of its four quarters rise, each at least a quarter of the mean step: one jump is no trend (after
//!    D. R. Cox and A. Stuart, "Some quick sign tests for trend", Biometrika 42, 1955);
//! 2. the rise stands out of the noise around the line with the median of all slopes (H. Theil 1950, P. K. Sen,
//!    "Estimates of the regression coefficient based on Kendall's tau", JASA 63, 1968);
//! 3. most of the way to the limit is behind it: the nearer, the less is extrapolated;
//! 4. it is clearly higher than where it came back from by itself before: what has been collected once will be again, and a
//!    neighbour that took the cache gives it back. That is remembered for a day, because load and with it the height
//!    changes with the day;
//! 5. that line meets the limit within the horizon, in several buckets running.

use super::chart::median;

/// Buckets of a scale.
const BUCKETS: usize = 16;
/// Samples per bucket, by scale.
const SCALES: [usize; 4] = [1, 4, 16, 64];
/// From so many samples per bucket on a bucket sees whole bursts: its largest value is believed as it is. Below, one that
/// begins in a bucket is no swing of all of them.
const COARSE: usize = 16;
/// Share of the limit that must be reached.
const NEAR: f64 = 0.65;
/// A fall by this share of the limit is a return, and a rise by as much beyond where it returned from before is new.
const RETURN: f64 = 0.05;
/// A height from which it returned is forgotten with this time constant, s.
const FORGET_S: f64 = 86_400.0;
/// How high peaks stand above the floor is forgotten with this time constant, s.
const FORGET_PEAKS_S: f64 = 14_400.0;
/// Most buckets that a floor looks back.
const TRAIL_MAX: usize = 4;
/// Deviations of noise that are kept clear of the limit.
const MARGIN: f64 = 2.0;

/// When a forecast is believed.
#[derive(Debug)]
pub(super) struct Rules {
    /// A single value at the limit is a failure.
    is_wall: bool,
    /// The rise over the window must be so many times the noise.
    clear: f64,
    /// Buckets, the newest included, of which a floor is the smallest value.
    trail: usize,
    /// Buckets running in which the forecast must hold.
    running: u32,
    /// How far ahead each scale looks, as a multiple of the span that it sees.
    ahead: [f64; SCALES.len()],
}

/// Memory and descriptors: counted exactly, and nothing can be put right afterwards.
pub(super) const LEAK: Rules =
    Rules { is_wall: true, clear: 6.0, trail: 4, running: 1, ahead: [1.0, 1.0, 1.0, 0.5] };
/// Times: noisy by nature; that one of them is long is no harm.
pub(super) const DRIFT: Rules =
    Rules { is_wall: false, clear: 4.0, trail: 2, running: 1, ahead: [2.0; SCALES.len()] };

/// A limit that is going to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outlook {
    /// The floor now.
    pub(super) value: f64,
    /// Its rise per second.
    pub(super) slope: f64,
    /// Until it meets the limit, s.
    pub(super) left_s: f64,
    /// The span that says so, s.
    pub(super) over_s: f64,
}

/// One quantity on its way to a limit.
#[derive(Clone, Debug)]
pub(super) struct Trend {
    rules: &'static Rules,
    scales: [Scale; SCALES.len()],
}

#[derive(Clone, Debug)]
struct Scale {
    samples: usize,
    /// The smallest of the bucket that is being filled, and how many it has.
    smallest: f64,
    largest: f64,
    filled: usize,
    /// The smallest values of the newest buckets, the newest last.
    trail: [f64; TRAIL_MAX],
    /// Time, floor and largest value of each full bucket, the oldest first.
    buckets: [(f64, f64, f64); BUCKETS],
    full: usize,
    /// The highest since the last return, and the highest from which it returned.
    crest: f64,
    survived: f64,
    /// How high peaks stand above the floor.
    peak: f64,
    running: u32,
}

impl Trend {
    /// Nothing seen yet.
    pub(super) fn new(rules: &'static Rules) -> Self {
        Self {
            rules,
            scales: SCALES.map(|samples| Scale {
                samples,
                smallest: f64::INFINITY,
                largest: f64::NEG_INFINITY,
                filled: 0,
                trail: [f64::INFINITY; TRAIL_MAX],
                buckets: [(0.0, 0.0, 0.0); BUCKETS],
                full: 0,
                crest: 0.0,
                survived: 0.0,
                peak: 0.0,
                running: 0,
            }),
        }
    }

    /// Takes the value at `now_s`; says so when it is going to reach `limit` soon.
    pub(super) fn observe(&mut self, now_s: f64, value: f64, limit: f64) -> Option<Outlook> {
        if !value.is_finite() || !limit.is_finite() {
            return None;
        }
        // Every scale takes it; the most urgent one speaks.
        let scales = self.scales.iter_mut().zip(self.rules.ahead);
        let outlooks =
            scales.filter_map(|(scale, ahead)| scale.observe(now_s, value, limit, self.rules, ahead));
        outlooks.min_by(|a, b| a.left_s.total_cmp(&b.left_s))
    }
}

impl Scale {
    fn observe(&mut self, now_s: f64, value: f64, limit: f64, rules: &Rules, ahead: f64) -> Option<Outlook> {
        self.smallest = self.smallest.min(value);
        self.largest = self.largest.max(value);
        self.filled += 1;
        if self.filled < self.samples {
            return None;
        }
        self.trail.rotate_left(1);
        self.trail[TRAIL_MAX - 1] = self.smallest;
        let floor = self.trail[TRAIL_MAX - rules.trail..].iter().copied().fold(f64::INFINITY, f64::min);
        self.remember(now_s, floor, limit);
        if self.full == BUCKETS {
            self.buckets.rotate_left(1);
            self.full -= 1;
        }
        self.buckets[self.full] = (now_s, floor, self.largest);
        (self.full, self.filled) = (self.full + 1, 0);
        (self.smallest, self.largest) = (f64::INFINITY, f64::NEG_INFINITY);
        let outlook = (self.full == BUCKETS && self.rises())
            .then(|| self.outlook(limit, rules))
            .flatten()
            .filter(|outlook| outlook.left_s <= ahead * outlook.over_s);
        self.running = if outlook.is_some() { self.running + 1 } else { 0 };
        outlook.filter(|_| self.running >= rules.running)
    }

    /// Keeps in mind from where the floor came back, and how high peaks are.
    fn remember(&mut self, now_s: f64, floor: f64, limit: f64) {
        let before = if self.full > 0 { self.buckets[self.full - 1].0 } else { now_s };
        let gone_s = now_s - before;
        self.survived *= (-gone_s / FORGET_S).exp();
        self.peak = (self.peak * (-gone_s / FORGET_PEAKS_S).exp()).max(self.largest - floor);
        if floor > self.crest {
            self.crest = floor;
        } else if floor < self.crest - RETURN * limit {
            self.survived = self.survived.max(self.crest);
            self.crest = floor;
        }
    }

    /// Whether each quarter is higher than the one before.
    fn rises(&self) -> bool {
        let quarter = |at: usize| {
            let mut values = [0.0; BUCKETS / 4];
            for (value, bucket) in values.iter_mut().zip(&self.buckets[at * BUCKETS / 4..]) {
                *value = bucket.1;
            }
            median(&mut values)
        };
        let quarters = [quarter(0), quarter(1), quarter(2), quarter(3)];
        let step = (quarters[3] - quarters[0]) / 3.0;
        step > 0.0 && quarters.windows(2).all(|pair| pair[1] - pair[0] >= step / 4.0)
    }

    fn outlook(&self, limit: f64, rules: &Rules) -> Option<Outlook> {
        let mut slopes = [0.0; BUCKETS * (BUCKETS - 1) / 2];
        let mut count = 0;
        for (at, (then, before, _)) in self.buckets.iter().enumerate() {
            for (now, after, _) in &self.buckets[at + 1..] {
                slopes[count] = (after - before) / (now - then).max(1e-3);
                count += 1;
            }
        }
        let slope = median(&mut slopes);
        let (end, ..) = self.buckets[BUCKETS - 1];
        let span = end - self.buckets[0].0;
        let mut rest = self.buckets.map(|(at, value, _)| value + slope * (end - at));
        let level = median(&mut rest);
        let mut noise = rest.map(|value| (value - level).abs());
        let noise = median(&mut noise) / 0.6745;
        let mut swings = self.buckets.map(|(_, floor, largest)| largest - floor);
        let peak = match (rules.is_wall, self.samples >= COARSE) {
            (false, _) => 0.0,
            (true, true) => self.peak,
            (true, false) => median(&mut swings),
        };
        let top = level + peak.max(MARGIN * noise);
        let left_s = ((limit - top) / slope).max(0.0);
        let is_clear = slope > 0.0 && slope * span > rules.clear * noise;
        let is_new = level > self.survived + RETURN * limit;
        (is_clear && is_new && top >= NEAR * limit).then_some(Outlook {
            value: level,
            slope,
            left_s,
            over_s: span,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the trend of `value` speaks first, and what it says.
    fn first(limit: f64, seconds: usize, value: impl Fn(f64) -> f64) -> Option<(usize, Outlook)> {
        let mut trend = Trend::new(&LEAK);
        (0..seconds).find_map(|at| Some((at, trend.observe(at as f64, value(at as f64), limit)?)))
    }

    #[test]
    fn a_line_is_foretold_on_every_scale() {
        for seconds in [40, 200, 3000] {
            let (at, outlook) = first(100.0, seconds, |now| now * 100.0 / seconds as f64).expect("foretold");
            let left = (seconds - at) as f64;
            assert!(left >= 10.0, "{left} s ahead of {seconds}");
            assert!((outlook.left_s - left).abs() <= 0.3 * left + 2.0, "{outlook:?}, really {left} s");
        }
    }

    #[test]
    fn a_staircase_is_a_trend_and_a_jump_is_none() {
        let stairs = first(100.0, 200, |now| (now / 10.0).floor() * 5.0).expect("foretold");
        assert!(stairs.0 <= 190, "{stairs:?}");
        assert_eq!(first(100.0, 1000, |now| if now < 500.0 { 10.0 } else { 95.0 }), None);
        assert_eq!(first(100.0, 1000, |now| if now % 300.0 < 150.0 { 10.0 } else { 90.0 }), None);
    }

    #[test]
    fn a_slow_rise_far_from_the_limit_and_what_is_unknown_are_quiet() {
        assert_eq!(first(1e6, 5000, |now| now), None);
        assert_eq!(first(f64::NAN, 500, |now| now), None);
        assert_eq!(first(100.0, 500, |_| f64::NAN), None);
        assert_eq!(first(100.0, 500, |_| 99.9), None, "close, but it does not move");
    }
}
