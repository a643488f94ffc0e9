//! Values by the numbers of tasks: numbers grow, most tasks are young, and few stay for long.

use super::ids::TaskId;
use std::collections::{BTreeMap, VecDeque};

/// Places that the row of young ones has at most. One that stays while so many others come and go moves out of it: else a
/// task that waits for days would keep the places of all that came after it.
const SPAN: usize = 1 << 20;

/// One value per task, and the next number.
///
/// Invariants
/// 1. Numbers in `old` are below `first`, those in `young` count from it.
/// 2. A number is given once.
#[derive(Clone, Debug)]
pub struct Numbered<T> {
    old: BTreeMap<u64, T>,
    young: VecDeque<Option<T>>,
    first: u64,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self::starting_at(0)
    }
}

impl<T> Numbered<T> {
    /// None yet; the first will have this number.
    pub fn starting_at(first: u64) -> Self {
        Self { old: BTreeMap::new(), young: VecDeque::new(), first }
    }

    /// The number of the next one.
    pub fn next(&self) -> u64 {
        self.first + self.young.len() as u64
    }

    /// The next number is this one, if it is not higher already.
    pub fn skip_to(&mut self, number: u64) {
        if self.young.is_empty() {
            self.first = self.first.max(number);
        }
        let gap = number.saturating_sub(self.next());
        if gap <= SPAN as u64 {
            (0..gap).for_each(|_| self.young.push_back(None));
            return;
        }
        let first = self.first;
        let young = self.young.drain(..).zip(first..);
        self.old.extend(young.filter_map(|(value, number)| Some((number, value?))));
        self.first = number;
    }

    /// Adds one whose number is the next or a later one. False if it is an earlier one.
    pub fn push(&mut self, id: TaskId, value: T) -> bool {
        if id.0 < self.next() {
            return false;
        }
        self.skip_to(id.0);
        self.young.push_back(Some(value));
        true
    }

    fn place(&self, id: TaskId) -> Option<usize> {
        usize::try_from(id.0.checked_sub(self.first)?).ok()
    }

    /// That of the task with this number.
    #[inline]
    pub fn get(&self, id: TaskId) -> Option<&T> {
        match self.place(id) {
            Some(at) => self.young.get(at)?.as_ref(),
            None => self.old.get(&id.0),
        }
    }

    /// The same, to change it.
    #[inline]
    pub fn get_mut(&mut self, id: TaskId) -> Option<&mut T> {
        match self.place(id) {
            Some(at) => self.young.get_mut(at)?.as_mut(),
            None => self.old.get_mut(&id.0),
        }
    }

    /// Takes it out; its number is not given again.
    pub fn remove(&mut self, id: TaskId) -> Option<T> {
        match self.place(id) {
            Some(at) => self.young.get_mut(at)?.take(),
            None => self.old.remove(&id.0),
        }
    }

    /// Puts one back that was taken out.
    pub fn put_back(&mut self, id: TaskId, value: T) {
        match self.place(id) {
            Some(at) => self.young[at] = Some(value),
            None => _ = self.old.insert(id.0, value),
        }
    }

    /// Lets go of places that nobody needs: call it after removing.
    pub fn trim(&mut self) {
        while self.young.front().is_some_and(|value| value.is_none() || self.young.len() > SPAN) {
            if let Some(value) = self.young.pop_front().flatten() {
                self.old.insert(self.first, value);
            }
            self.first += 1;
        }
    }

    /// All of them, lowest number first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.old.values().chain(self.young.iter().flatten())
    }

    /// Numbers of all of them, lowest first.
    pub fn ids(&self) -> Vec<TaskId> {
        let young = self
            .young
            .iter()
            .zip(self.first..)
            .filter_map(|(value, number)| value.as_ref().and(Some(number)));
        self.old.keys().copied().chain(young).map(TaskId).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;

    #[test]
    fn it_is_a_sorted_map_whatever_comes_and_goes() {
        let seed = 11;
        println!("seed {seed}");
        let mut random = SplitMix64::new(seed);
        let (mut tasks, mut plain) = (Numbered::starting_at(5), BTreeMap::new());
        let mut next = 5;
        for step in 0..60_000_u64 {
            match random.below(5) {
                0..=2 => {
                    // Now and then numbers are left out, and rarely very many.
                    next += match random.below(200) {
                        0 => 3 * SPAN as u64,
                        1..=20 => random.below(50),
                        _ => 0,
                    };
                    assert!(tasks.push(TaskId(next), next), "step {step}");
                    plain.insert(next, ());
                    next += 1;
                    assert!(!tasks.push(TaskId(next - 1), 0), "given once");
                }
                _ => {
                    let many = plain.len() as u64;
                    let chosen = plain.keys().nth(random.below(many.clamp(1, 400)) as usize).copied();
                    let removed = chosen.and_then(|number| tasks.remove(TaskId(number)));
                    assert_eq!(removed, chosen, "step {step}");
                    chosen.map(|number| plain.remove(&number));
                    tasks.trim();
                }
            }
            assert_eq!(tasks.next(), next);
            let probe = random.below(next + 5);
            assert_eq!(
                tasks.get(TaskId(probe)).is_some(),
                plain.contains_key(&probe),
                "step {step}: {probe}"
            );
        }
        assert!(tasks.iter().eq(plain.keys()));
        assert!(tasks.ids().iter().all(|id| tasks.get_mut(*id).is_some_and(|value| *value == id.0)));
        assert!(!tasks.old.is_empty() && !tasks.young.is_empty(), "else this shows less");
    }

    #[test]
    fn one_that_stays_does_not_keep_the_places_of_all_that_came_after_it() {
        let mut tasks = Numbered::starting_at(1);
        tasks.push(TaskId(1), ());
        for number in 2..SPAN as u64 + 1000 {
            tasks.push(TaskId(number), ());
            tasks.remove(TaskId(number));
            tasks.trim();
        }
        assert!(tasks.young.len() <= SPAN && tasks.get(TaskId(1)).is_some());
        assert_eq!((tasks.ids(), tasks.next()), (vec![TaskId(1)], SPAN as u64 + 1000));
    }
}
