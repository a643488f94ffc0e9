//! Control charts: is a value still what it used to be? Numbers in, verdict out; constant memory.
//!
//! A [`Chart`] is three well-known steps in a row:
//! 1. a robust z-score says how far the value is from the median of a reference, in units of the median absolute
//!    deviation (B. Iglewicz and D. Hoaglin, "How to Detect and Handle Outliers", ASQC 1993), clipped, so that no
//!    single value can say much;
//! 2. an exponentially weighted moving average takes the single outliers out (S. W. Roberts, "Control chart tests
//!    based on geometric moving averages", Technometrics 1, 1959);
//! 3. a cumulative sum of what exceeds the slack alarms when it stays (E. S. Page, "Continuous inspection schemes",
//!    Biometrika 41, 1954).
//!
//! Only values that caused no suspicion enter the reference, so that a shift does not hide itself. After an alarm the
//! chart learns anew: the new level may be the new normal, and one alarm has said so.

/// Values in the reference.
const REFERENCE: usize = 48;
/// So many are needed before anything is judged.
const WARM_UP: usize = 24;
/// Median and deviation are computed after so many new values: they move slowly.
const REFRESH: usize = 8;
/// Weight of the newest value in the moving average.
const WEIGHT: f64 = 0.3;
/// Deviations that nobody minds, on average.
const SLACK: f64 = 3.0;
/// One value counts at most for so many deviations.
const CLIP: f64 = 8.0;
/// The sum that alarms: a dozen seconds that are as far out as one can count.
const ALARM: f64 = 45.0;

/// The median of finite values, which it sorts. NaN for none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// A moving average (Roberts 1959).
#[derive(Clone, Debug, Default)]
pub(super) struct Ewma(Option<f64>);

impl Ewma {
    /// The average after one more value.
    pub(super) fn add(&mut self, value: f64) -> f64 {
        let average = self.0.map_or(value, |average| average + WEIGHT * (value - average));
        *self.0.insert(average)
    }
}

/// A shift that stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shift {
    /// The value now.
    pub(super) value: f64,
    /// What was usual.
    pub(super) usual: f64,
    /// The smoothed robust z-score.
    pub(super) z: f64,
}

/// Watches one quantity for upward shifts.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// Deviations below this are noise, in the quantity's own unit.
    floor: f64,
    z: Ewma,
    reference: [f64; REFERENCE],
    seen: usize,
    median: f64,
    deviation: f64,
    sum: f64,
}

impl Chart {
    /// For a quantity whose deviations below `floor` mean nothing.
    pub(super) fn new(floor: f64) -> Self {
        Self {
            floor,
            z: Ewma::default(),
            reference: [0.0; REFERENCE],
            seen: 0,
            median: 0.0,
            deviation: floor,
            sum: 0.0,
        }
    }

    /// Takes one value; says so when it has been too high for too long.
    pub(super) fn observe(&mut self, value: f64) -> Option<Shift> {
        if !value.is_finite() {
            return None;
        }
        if self.seen < WARM_UP {
            self.learn(value);
            return None;
        }
        // 0.6745 makes the median absolute deviation of normal noise its standard deviation.
        let z = self.z.add((0.6745 * (value - self.median) / self.deviation).clamp(-CLIP, CLIP));
        self.sum = (self.sum + z - SLACK).max(0.0);
        if self.sum == 0.0 {
            self.learn(value);
        }
        if self.sum < ALARM {
            return None;
        }
        let shift = Shift { value, usual: self.median, z };
        *self = Self::new(self.floor);
        Some(shift)
    }

    fn learn(&mut self, value: f64) {
        self.reference[self.seen % REFERENCE] = value;
        self.seen += 1;
        if self.seen >= WARM_UP && self.seen.is_multiple_of(REFRESH) {
            let mut values = self.reference;
            let values = &mut values[..self.seen.min(REFERENCE)];
            self.median = median(values);
            for value in values.iter_mut() {
                *value = (*value - self.median).abs();
            }
            self.deviation = median(values).max(self.floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;

    #[test]
    fn medians_of_few_values() {
        assert!(median(&mut []).is_nan());
        assert_eq!(median(&mut [3.0]), 3.0);
        assert_eq!(median(&mut [3.0, 1.0]), 2.0);
        assert_eq!(median(&mut [9.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn noise_and_single_outliers_pass_and_a_shift_is_found_once() {
        let mut luck = SplitMix64::new(5);
        let mut chart = Chart::new(0.1);
        let mut noise = || 10.0 + luck.next_f64();
        for at in 0..20_000 {
            let value = if at % 100 == 99 { 1000.0 } else { noise() };
            assert_eq!(chart.observe(value).filter(|_| at % 100 != 99), None, "after {at} values");
        }
        let shifts: Vec<Shift> = (0..200).filter_map(|_| chart.observe(noise() + 20.0)).collect();
        assert_eq!(shifts.len(), 1, "afterwards it is the new normal: {shifts:?}");
        assert!(shifts[0].value > 20.0 && shifts[0].usual < 12.0 && shifts[0].z > 7.0, "{shifts:?}");
    }

    #[test]
    fn unknown_values_are_no_values() {
        let mut chart = Chart::new(1.0);
        assert!((0..1000).all(|_| chart.observe(f64::NAN).is_none()));
        assert_eq!(chart.seen, 0);
    }
}
