//! The mean of something that changes.

/// Weight of the newest observation once a mean rests on enough of them: half is forgotten after about 14.
const FORGET: f32 = 0.05;
/// One observation counts at most for so many times the mean: a page fault storm is no new normal.
const OUTLIER: f32 = 8.0;

/// A mean time, and how many observations it rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// The mean, ns.
    pub ns: f32,
    /// Observations behind it.
    pub samples: u32,
}

impl Mean {
    /// After `count` more observations whose mean is `seen_ns`: it moves fast while it rests on little.
    #[must_use]
    pub fn after(self, count: u32, seen_ns: f32) -> Self {
        let samples = self.samples.saturating_add(count);
        let forgotten = 1.0 - (1.0 - FORGET).powi(count.min(1000) as i32);
        let weight = (count as f32 / samples.max(1) as f32).max(forgotten);
        let seen = if self.samples >= 3 { seen_ns.min(self.ns * OUTLIER + 1000.0) } else { seen_ns };
        Self { ns: self.ns + weight * (seen - self.ns), samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_settle_follow_a_shift_and_shrug_off_one_outlier() {
        let mut mean = Mean::default();
        for _ in 0..50 {
            mean = mean.after(1, 1000.0);
        }
        assert!((mean.ns - 1000.0).abs() < 1.0);
        assert!(mean.after(1, 1e9).ns < 1600.0, "{mean:?}");
        for _ in 0..100 {
            mean = mean.after(1, 3000.0);
        }
        assert!((mean.ns - 3000.0).abs() < 30.0, "{mean:?}");
        let many = mean.after(100, 6000.0);
        assert!((many.ns - 6000.0).abs() < 60.0, "a batch counts as its tasks: {many:?}");
    }
}
