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
    /// The default is right, as far as that is known.
    pub is_default_usable: bool,
    /// The duel; `None` when nobody was left to challenge.
    pub duel: Option<Duel>,
    /// Runs that counted, those that warmed up included.
    pub runs: usize,
}

/// The default and the fastest of the others, in pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Duel {
    pub challenger: usize,
    /// Medians over the pairs, ns.
    pub default_ns: f64,
    pub challenger_ns: f64,
    /// How many times as fast the challenger is.
    pub gain: Gain,
}

/// What runs are for.
#[derive(Debug)]
enum Phase {
    /// Each of `left`, from its end, once; those in the race are known.
    Halving {
        left: Vec<usize>,
    },
    /// The default and the challenger, ns, pair by pair; and the half of a pair that has been run.
    Duel {
        challenger: usize,
        pairs: Vec<[f64; 2]>,
        half: Option<f64>,
    },
    Over(Found),
}

/// A search among candidates; the first is the default.
#[derive(Debug)]
pub(crate) struct Search {
    phase: Phase,
    /// Challengers that are still in the race.
    alive: Vec<usize>,
    /// Timed runs of each while the field is halved, ns.
    times: Vec<Vec<f64>>,
    /// Who has run at all: the first run only warms up.
    is_warm: Vec<bool>,
    runs: usize,
}

impl Search {
    /// Among so many candidates.
    pub fn new(candidates: usize) -> Search {
        let mut search = Search {
            phase: Phase::Halving { left: Vec::new() },
            alive: (1..candidates).collect(),
            times: vec![Vec::new(); candidates],
            is_warm: vec![false; candidates],
            runs: 0,
        };
        search.begin_phase();
        search
    }

    /// Who is to run now; `None` when all is known.
    pub fn next(&self) -> Option<usize> {
        match &self.phase {
            Phase::Halving { left } => left.last().copied(),
            Phase::Duel { challenger, pairs, half } => {
                Some(in_turn(*challenger, pairs.len(), half.is_some()))
            }
            Phase::Over(_) => None,
        }
    }

    /// The answer, once there is nobody to run.
    pub fn found(&self) -> Option<Found> {
        match self.phase {
            Phase::Over(found) => Some(found),
            _ => None,
        }
    }

    /// The one that was asked for took so long, ns.
    pub fn took(&mut self, ns: f64) {
        let Some(candidate) = self.next() else { return };
        self.runs += 1;
        if !std::mem::replace(&mut self.is_warm[candidate], true) {
            return;
        }
        match &mut self.phase {
            Phase::Halving { left } => {
                left.pop();
                self.times[candidate].push(ns);
                if left.is_empty() {
                    self.halve();
                    self.begin_phase();
                }
            }
            Phase::Duel { pairs, half, .. } => match half.take() {
                None => *half = Some(ns),
                Some(before) => {
                    pairs.push(if candidate == 0 { [ns, before] } else { [before, ns] });
                    self.look();
                }
            },
            Phase::Over(_) => {}
        }
    }

    /// The one that was asked for cannot be used. Without the default there is nothing to compare with.
    pub fn reject(&mut self) {
        let Some(candidate) = self.next() else { return };
        self.runs += 1;
        self.alive.retain(|&alive| alive != candidate);
        if candidate == 0 {
            return self.end(false, None);
        }
        match &mut self.phase {
            Phase::Halving { left } => {
                left.retain(|&planned| planned != candidate);
                // Whoever is alone has nobody to be compared with here.
                if left.is_empty() || self.alive.len() < 2 {
                    self.halve();
                    self.begin_phase();
                }
            }
            _ => self.end(true, None),
        }
    }

    /// Grows with every run that a pause leaves standing.
    pub fn progress(&self) -> usize {
        let halved: usize = self.times.iter().map(Vec::len).sum();
        match &self.phase {
            Phase::Halving { .. } => halved,
            Phase::Duel { pairs, .. } => halved + pairs.len(),
            Phase::Over(_) => usize::MAX,
        }
    }

    /// Time has passed in which nothing ran: half a pair is none.
    pub fn pause(&mut self) {
        if let Phase::Duel { half, .. } = &mut self.phase {
            *half = None;
        }
    }

    fn halve(&mut self) {
        self.alive.sort_by(|&a, &b| {
            let time = |one: usize| median(self.times[one].iter().copied()).unwrap_or(f64::INFINITY);
            time(a).total_cmp(&time(b))
        });
        self.alive.truncate(self.alive.len().div_ceil(2));
    }

    fn begin_phase(&mut self) {
        self.phase = match self.alive[..] {
            [] => return self.end(true, None),
            [challenger] => Phase::Duel { challenger, pairs: Vec::new(), half: None },
            _ => Phase::Halving { left: self.alive.repeat(STAGE_RUNS) },
        };
    }

    /// Whether the pairs say enough.
    fn look(&mut self) {
        let Phase::Duel { challenger, pairs, .. } = &self.phase else { return };
        let Some(&(count, rank)) = LOOKS.iter().find(|(count, _)| *count == pairs.len()) else { return };
        let mut ratios: Vec<f64> = pairs.iter().map(|[default, challenger]| default / challenger).collect();
        ratios.sort_by(f64::total_cmp);
        let gain = Gain { low: ratios[rank - 1], median: ratios[count / 2], high: ratios[count - rank] };
        if gain.low > MARGIN || gain.high < MARGIN || count == LOOKS[LOOKS.len() - 1].0 {
            let of = |side: usize| median(pairs.iter().map(|pair| pair[side])).unwrap_or(f64::NAN);
            let duel = Duel { challenger: *challenger, default_ns: of(0), challenger_ns: of(1), gain };
            self.end(true, Some(duel));
        }
    }

    fn end(&mut self, is_default_usable: bool, duel: Option<Duel>) {
        let best = duel.filter(|duel| duel.gain.low > MARGIN).map_or(0, |duel| duel.challenger);
        self.phase = Phase::Over(Found { best, is_default_usable, duel, runs: self.runs });
    }
}

/// Who runs in a duel: in every second pair the challenger goes first.
fn in_turn(challenger: usize, pairs: usize, is_second: bool) -> usize {
    if pairs.is_multiple_of(2) == is_second { challenger } else { 0 }
}

fn median(times: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = times.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;

    /// Runs a search among candidates of these times, with noise: some percent always, a tenfold time now and then, and a
    /// machine that becomes half as fast on the way.
    fn search(times: &[f64], seed: u64) -> Found {
        let mut luck = SplitMix64::new(seed);
        let mut search = Search::new(times.len());
        let slower_after = luck.below(100);
        let mut runs = 0;
        while let Some(one) = search.next() {
            let noise = 1.0 + luck.below(1000) as f64 / 1000.0 * 0.08;
            let burst = if luck.below(25) == 0 { 10.0 } else { 1.0 };
            let speed = if runs > slower_after { 2.0 } else { 1.0 };
            search.took(times[one] * noise * burst * speed);
            if luck.below(10) == 0 {
                search.pause();
            }
            runs += 1;
            assert!(runs < 1000, "it ends");
        }
        search.found().expect("an answer")
    }

    #[test]
    fn the_fastest_is_found_among_many_with_few_runs() {
        let mut times = vec![100.0; 12];
        times[7] = 70.0;
        times[3] = 85.0;
        let found: Vec<Found> = (0..200).map(|seed| search(&times, seed)).collect();
        let right = found.iter().filter(|found| found.best == 7).count();
        assert!(right >= 180, "{right} of 200");
        // To give each of them as many runs as the duel would take 25 * 12.
        let most = found.iter().map(|found| found.runs).max();
        assert!(most <= Some(150), "{most:?}");
    }

    #[test]
    fn what_is_not_faster_does_not_win() {
        for (others, what) in [(100.0, "alike"), (98.0, "faster, but not enough"), (130.0, "slower")] {
            let times: Vec<f64> = std::iter::once(100.0).chain([others; 7]).collect();
            let wrong = (0..400).filter(|&seed| search(&times, seed).best != 0).count();
            assert!(wrong <= 20, "{what}: {wrong} of 400");
        }
    }

    #[test]
    fn the_interval_holds_the_true_ratio() {
        let holds = |seed| {
            let Gain { low, median, high } = search(&[120.0, 100.0], seed).duel.expect("a duel").gain;
            assert!(low <= median && median <= high);
            low <= 1.2 && 1.2 <= high
        };
        let held = (0..400).filter(|&seed| holds(seed)).count();
        assert!(held >= 380, "{held} of 400");
    }

    /// Runs a search among candidates of these times without noise; `wrong` is rejected in its `at`-th run.
    fn search_without(times: &[f64], wrong: usize, at: usize) -> Found {
        let mut search = Search::new(times.len());
        let mut seen = 0;
        while let Some(one) = search.next() {
            if one == wrong {
                seen += 1;
            }
            if one == wrong && seen >= at { search.reject() } else { search.took(times[one]) }
        }
        search.found().expect("an answer")
    }

    #[test]
    fn what_cannot_run_is_left_out_whenever_that_shows() {
        for at in 1..8 {
            // The others are a good half and twice as fast as the default.
            for (times, wrong, best) in [
                (&[12.0, 10.0, 5.0][..], 1, 2),
                (&[12.0, 5.0, 10.0], 2, 1),
                (&[12.0, 9.0, 8.0, 5.0, 7.0], 4, 3),
                (&[12.0, 1.0, 8.0, 5.0, 7.0, 9.0], 5, 1),
            ] {
                let found = search_without(times, wrong, at);
                let duel = found.duel.expect("a duel");
                assert_eq!((found.best, duel.challenger), (best, best), "{times:?}, {wrong} goes at {at}");
                let right = times[0] / times[best];
                assert_eq!((duel.gain.low, duel.gain.median, duel.gain.high), (right, right, right));
                assert_eq!((duel.default_ns, duel.challenger_ns), (times[0], times[best]));
            }
            // Whoever is alone and goes leaves the default; without the default nothing is known.
            let found = search_without(&[12.0, 5.0], 1, at);
            assert_eq!((found.best, found.duel, found.is_default_usable), (0, None, true));
            let found = search_without(&[12.0, 5.0, 7.0], 0, at);
            assert_eq!((found.best, found.duel, found.is_default_usable), (0, None, false));
        }
        for alone in [0, 1] {
            let found = Search::new(alone);
            assert_eq!((found.next(), found.found().map(|found| found.best)), (None, Some(0)));
        }
    }

    #[test]
    fn half_a_pair_before_a_pause_is_none() {
        let mut search = Search::new(2);
        // Both warm up; then the default's half of a pair, taken on a machine that was busy.
        [1.0, 1.0, 1.0].into_iter().for_each(|_| {
            let ns = if search.next() == Some(0) { 1000.0 } else { 1.0 };
            search.took(ns);
        });
        let before = search.progress();
        search.pause();
        assert_eq!((before, search.progress()), (0, 0));
        while let Some(one) = search.next() {
            search.took(if one == 0 { 10.0 } else { 5.0 });
        }
        let found = search.found().expect("an answer");
        assert_eq!(found.duel.map(|duel| (duel.gain.low, duel.gain.high)), Some((2.0, 2.0)));
        assert!(search.progress() > 0);
    }
}
