//! Which of several ways is the fastest, found with few runs on a machine that is not quiet.
//!
//! 1. *Successive halving* (Z. Karnin, T. Koren, O. Somekh, "Almost optimal exploration in multi-armed bandits", ICML 2013):
//!    all run in turn, the slower half of the challengers goes, until one is left. Turns, because a change of clock or of
//!    neighbours then meets all of them.
//! 2. *A duel* of that one with the default, in pairs. What counts is the ratio of their times within a pair: its median, and
//!    an interval between two of its order statistics, which assumes nothing of how times are distributed (W. J. Conover,
//!    "Practical Nonparametric Statistics", 3.2). It is looked at after [`LOOKS`] pairs, each time so carefully that the three
//!    looks together are wrong less than 5 times of 100.
//!
//! The challenger wins when the whole interval is above [`MARGIN`]; the default stays in every other case.
//!
//! Pure: who owns it runs what [`next`](Search::next) asks for and tells how long it took.

/// Timed runs of each challenger in a stage.
const STAGE_RUNS: usize = 3;
/// So much faster than the default a challenger must be.
const MARGIN: f64 = 1.03;
/// After so many pairs the duel is looked at, and the order statistic that bounds the interval there, from either side. By the
/// binomial distribution an interval misses the median with probability 0.0039, 0.0074 and 0.0146.
const LOOKS: [(usize, usize); 3] = [(9, 1), (15, 3), (25, 7)];

/// A ratio of times and where it lies 95 times of 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gain {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Found {
    /// The fastest; 0, the default, unless another one is faster for sure.
    pub best: usize,
    /// The one that came closest, and how many times faster than the default it is. `None`: nobody else could run.
    pub challenger: Option<(usize, Gain)>,
    /// Runs that were asked for.
    pub runs: usize,
}

/// A search among candidates; the first is the default.
#[derive(Debug)]
pub(crate) struct Search {
    /// Timed runs of each, ns; the first run of all only warms up.
    times: Vec<Vec<f64>>,
    is_warm: Vec<bool>,
    /// Challengers that are still in the race.
    alive: Vec<usize>,
    /// Who runs next in this stage or pair.
    plan: Vec<usize>,
    /// Default against challenger.
    pairs: Vec<f64>,
    /// The default's time in the pair that has begun.
    first: Option<f64>,
    runs: usize,
    found: Option<Found>,
}

impl Search {
    /// Among so many candidates.
    pub fn new(candidates: usize) -> Search {
        let mut search = Search {
            times: vec![Vec::new(); candidates],
            is_warm: vec![false; candidates],
            alive: (1..candidates).collect(),
            plan: Vec::new(),
            pairs: Vec::new(),
            first: None,
            runs: 0,
            found: None,
        };
        search.plan_next();
        search
    }

    /// Who is to run now; `None` when all is known.
    pub fn next(&self) -> Option<usize> {
        if self.found.is_some() { None } else { self.plan.last().copied() }
    }

    /// The answer, once there is nobody to run.
    pub fn found(&self) -> Option<Found> {
        self.found
    }

    /// Median time of a candidate, ns, if it was timed.
    pub fn median_ns(&self, candidate: usize) -> Option<f64> {
        median(self.times.get(candidate)?)
    }

    /// The one that was asked for took so long, ns.
    pub fn took(&mut self, ns: f64) {
        let Some(candidate) = self.plan.pop() else { return };
        self.runs += 1;
        if !std::mem::replace(&mut self.is_warm[candidate], true) {
            self.plan.push(candidate);
            return;
        }
        self.times[candidate].push(ns);
        if self.is_duel() {
            match self.first.take() {
                None => self.first = Some(ns),
                // In every second pair the challenger went first.
                Some(before) if candidate == 0 => self.pairs.push(ns / before),
                Some(before) => self.pairs.push(before / ns),
            }
        }
        if self.plan.is_empty() {
            self.plan_next();
        }
    }

    /// The one that was asked for cannot be used. Without the default there is nothing to compare with.
    pub fn reject(&mut self) {
        let Some(candidate) = self.plan.pop() else { return };
        self.runs += 1;
        self.plan.retain(|&planned| planned != candidate);
        self.alive.retain(|&alive| alive != candidate);
        if candidate == 0 || self.alive.is_empty() {
            self.end(None);
        } else if self.plan.is_empty() {
            self.plan_next();
        }
    }

    fn is_duel(&self) -> bool {
        self.alive.len() == 1
    }

    /// What runs until the next decision, in the order of the stack.
    fn plan_next(&mut self) {
        if !self.is_duel() && self.alive.iter().all(|&one| self.times[one].len() >= STAGE_RUNS) {
            self.alive.sort_by(|&a, &b| {
                let time = |one: usize| median(&self.times[one]).unwrap_or(f64::INFINITY);
                time(a).total_cmp(&time(b))
            });
            self.alive.truncate(self.alive.len().div_ceil(2));
        }
        let Some(&first) = self.alive.first() else { return self.end(None) };
        if self.is_duel() {
            if let Some(gain) = self.decided() {
                return self.end(Some((first, gain)));
            }
            self.plan = if self.pairs.len().is_multiple_of(2) { vec![first, 0] } else { vec![0, first] };
        } else {
            self.plan = self.alive.repeat(STAGE_RUNS);
        }
    }

    /// The interval, at the look at which it says enough, or at the last one.
    fn decided(&self) -> Option<Gain> {
        let (count, rank) = *LOOKS.iter().find(|(count, _)| *count == self.pairs.len())?;
        let mut sorted = self.pairs.clone();
        sorted.sort_by(f64::total_cmp);
        let gain = Gain { low: sorted[rank - 1], median: sorted[count / 2], high: sorted[count - rank] };
        let is_clear = gain.low > MARGIN || gain.high < MARGIN;
        (is_clear || count == LOOKS[LOOKS.len() - 1].0).then_some(gain)
    }

    fn end(&mut self, challenger: Option<(usize, Gain)>) {
        let best = challenger.filter(|(_, gain)| gain.low > MARGIN).map_or(0, |(one, _)| one);
        self.plan.clear();
        self.found = Some(Found { best, challenger, runs: self.runs });
    }
}

fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;

    /// Runs a search among candidates of these times, with noise: some percent always, a tenfold time now and then, and a
    /// machine that becomes half as fast on the way.
    fn search(times: &[f64], seed: u64) -> (Found, Search) {
        let mut luck = SplitMix64::new(seed);
        let mut search = Search::new(times.len());
        let slower_after = luck.below(100) as usize;
        let mut runs = 0;
        while let Some(one) = search.next() {
            let noise = 1.0 + luck.below(1000) as f64 / 1000.0 * 0.08;
            let burst = if luck.below(25) == 0 { 10.0 } else { 1.0 };
            let speed = if runs > slower_after { 2.0 } else { 1.0 };
            search.took(times[one] * noise * burst * speed);
            runs += 1;
            assert!(runs < 1000, "it ends");
        }
        (search.found().expect("an answer"), search)
    }

    #[test]
    fn the_fastest_is_found_among_many_with_few_runs() {
        let mut times = vec![100.0; 12];
        times[7] = 70.0;
        times[3] = 85.0;
        let found: Vec<Found> = (0..200).map(|seed| search(&times, seed).0).collect();
        let right = found.iter().filter(|found| found.best == 7).count();
        assert!(right >= 190, "{right} of 200");
        // To give each of them as many runs as the duel would take 25 * 12.
        let most = found.iter().map(|found| found.runs).max();
        assert!(most <= Some(150), "{most:?}");
    }

    #[test]
    fn what_is_not_faster_does_not_win() {
        for (others, what) in [(100.0, "alike"), (98.0, "faster, but not enough"), (130.0, "slower")] {
            let times: Vec<f64> = std::iter::once(100.0).chain([others; 7]).collect();
            let wrong = (0..400).filter(|&seed| search(&times, seed).0.best != 0).count();
            assert!(wrong <= 20, "{what}: {wrong} of 400");
        }
    }

    #[test]
    fn the_interval_holds_the_true_ratio() {
        let holds = |seed| {
            let (_, gain) = search(&[120.0, 100.0], seed).0.challenger.expect("a duel");
            assert!(gain.low <= gain.median && gain.median <= gain.high);
            gain.low <= 1.2 && 1.2 <= gain.high
        };
        let held = (0..400).filter(|&seed| holds(seed)).count();
        assert!(held >= 380, "{held} of 400");
    }

    #[test]
    fn what_cannot_run_is_left_out_and_without_a_default_nothing_is_chosen() {
        let mut found = Search::new(3);
        while let Some(one) = found.next() {
            if one == 1 { found.reject() } else { found.took(if one == 0 { 10.0 } else { 5.0 }) }
        }
        assert_eq!(found.found().map(|found| found.best), Some(2));
        assert_eq!(
            (found.median_ns(0), found.median_ns(1), found.median_ns(2)),
            (Some(10.0), None, Some(5.0))
        );
        let mut found = Search::new(2);
        while let Some(one) = found.next() {
            if one == 0 { found.reject() } else { found.took(1.0) }
        }
        assert_eq!(found.found().map(|found| (found.best, found.challenger)), Some((0, None)));
        for alone in [0, 1] {
            let found = Search::new(alone);
            assert_eq!((found.next(), found.found().map(|found| found.best)), (None, Some(0)));
        }
    }
}
