//! What happens next, and when: a list that follows from the seed alone.
//!
//! How much luck a fault needs depends on whom it meets, so each has a generator of its own, made from the seed and its
//! number. Nothing that the swarm does changes the list.

use super::faults::Fault;
use crate::base::prng::SplitMix64;
use std::time::Duration;

/// Between two faults at most.
const PAUSE_MAX: f64 = 60.0;

/// The faults of one seed, without an end.
pub(super) struct Schedule {
    seed: u64,
    number: u64,
    /// Faults a second, on average.
    rate: f64,
    kinds: Vec<Fault>,
    luck: SplitMix64,
}

/// One fault.
#[derive(Clone, Debug)]
pub(super) struct Due {
    /// After the one before.
    pub pause: Duration,
    pub fault: Fault,
    /// For whatever is decided while it is injected.
    pub luck: SplitMix64,
}

impl Schedule {
    /// Of these kinds; of all, if none is named.
    pub(super) fn new(seed: u64, rate: f64, kinds: &[Fault]) -> Self {
        let kinds = if kinds.is_empty() { Fault::ALL.to_vec() } else { kinds.to_vec() };
        Self { seed, number: 0, rate, kinds, luck: SplitMix64::new(seed) }
    }

    pub(super) fn next(&mut self) -> Due {
        self.number += 1;
        // Exponential, so that faults also meet the recovery from others.
        let pause = (-(1.0 - self.luck.next_f64()).ln() / self.rate).min(PAUSE_MAX);
        Due {
            pause: Duration::from_secs_f64(pause),
            fault: choose(&self.kinds, &mut self.luck),
            // Mixed first: seeds that lie side by side would share generators.
            luck: SplitMix64::new(SplitMix64::new(self.seed).next_u64() ^ self.number),
        }
    }
}

/// One of `kinds`, by weight.
fn choose(kinds: &[Fault], luck: &mut SplitMix64) -> Fault {
    let mut at = luck.below(kinds.iter().map(|kind| kind.weight()).sum());
    for &kind in kinds {
        match at.checked_sub(kind.weight()) {
            Some(rest) => at = rest,
            None => return kind,
        }
    }
    kinds[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_kind_comes_about_as_often_as_its_weight_says() {
        let mut luck = SplitMix64::new(1);
        let mut seen = BTreeMap::new();
        for _ in 0..10_000 {
            *seen.entry(choose(&Fault::ALL, &mut luck)).or_insert(0u64) += 1;
        }
        assert_eq!(seen.len(), Fault::ALL.len());
        let sum: u64 = Fault::ALL.iter().map(|kind| kind.weight()).sum();
        for kind in Fault::ALL {
            let (found, expected) = (seen[&kind], 10_000 * kind.weight() / sum);
            assert!(
                found > expected * 3 / 4 && found < expected * 5 / 4,
                "{kind:?}: {found}, expected {expected}"
            );
        }
        assert_eq!(choose(&[Fault::Stop], &mut luck), Fault::Stop);
    }

    /// The list, and the first numbers that each fault is given, when the faults use `appetite` numbers each.
    fn story(seed: u64, appetite: impl Fn(u64) -> u64) -> Vec<(Duration, Fault, u64)> {
        let mut schedule = Schedule::new(seed, 20.0, &[]);
        let tell = |number| {
            let Due { pause, fault, mut luck } = schedule.next();
            let first = luck.next_u64();
            (0..appetite(number)).for_each(|_| _ = luck.next_u64());
            (pause, fault, first)
        };
        (0..200).map(tell).collect()
    }

    #[test]
    fn the_same_seed_breaks_the_same_things_however_much_luck_each_of_them_needs() {
        let modest = story(7, |_| 0);
        assert_eq!(modest, story(7, |number| number % 13));
        assert_ne!(modest, story(8, |_| 0));
        let firsts: std::collections::BTreeSet<u64> = modest.iter().map(|(_, _, first)| *first).collect();
        assert_eq!(firsts.len(), modest.len(), "no two faults have the same luck");
    }
}
