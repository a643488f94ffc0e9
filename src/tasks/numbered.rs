//! Tasks by number: numbers grow, most tasks are young, and few stay for long.

use super::Task;
use crate::base::ids::TaskId;
use std::collections::{BTreeMap, VecDeque};

/// Places that the row of young ones has at most. One that stays while so many others come and go moves out of it: else a
/// task that waits for days would keep the places of all that came after it.
const SPAN: usize = 1 << 20;

/// Tasks by number, and the next number.
///
/// Invariants
/// 1. Numbers in `old` are below `first`, those in `young` count from it.
/// 2. A number is given once.
#[derive(Clone, Debug, Default)]
pub struct Numbered {
    old: BTreeMap<u64, Box<Task>>,
    young: VecDeque<Option<Box<Task>>>,
    first: u64,
}

impl Numbered {
    /// None yet; the first will have this number.
    pub fn starting_at(first: u64) -> Self {
        Self { first, ..Self::default() }
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
        self.old.extend(young.filter_map(|(task, number)| Some((number, task?))));
        self.first = number;
    }

    /// Adds one whose number is the next or a later one. False if it is an earlier one.
    pub fn push(&mut self, task: Box<Task>) -> bool {
        let number = task.id.0;
        if number < self.next() {
            return false;
        }
        self.skip_to(number);
        self.young.push_back(Some(task));
        true
    }

    fn place(&self, id: TaskId) -> Option<usize> {
        usize::try_from(id.0.checked_sub(self.first)?).ok()
    }

    /// The task with this number.
    #[inline]
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        match self.place(id) {
            Some(at) => self.young.get(at)?.as_deref(),
            None => self.old.get(&id.0).map(|task| &**task),
        }
    }

    /// The same, to change it.
    #[inline]
    pub fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        match self.place(id) {
            Some(at) => self.young.get_mut(at)?.as_deref_mut(),
            None => self.old.get_mut(&id.0).map(|task| &mut **task),
        }
    }

    /// Takes it out; its number is not given again.
    pub fn remove(&mut self, id: TaskId) -> Option<Box<Task>> {
        match self.place(id) {
            Some(at) => self.young.get_mut(at)?.take(),
            None => self.old.remove(&id.0),
        }
    }

    /// Puts one back that was taken out.
    pub fn put_back(&mut self, task: Box<Task>) {
        match self.place(task.id) {
            Some(at) => self.young[at] = Some(task),
            None => _ = self.old.insert(task.id.0, task),
        }
    }

    /// Lets go of places that nobody needs: call it after removing.
    pub fn trim(&mut self) {
        while self.young.front().is_some_and(|task| task.is_none() || self.young.len() > SPAN) {
            if let Some(task) = self.young.pop_front().flatten() {
                self.old.insert(self.first, task);
            }
            self.first += 1;
        }
    }

    /// All of them, lowest number first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Task> {
        self.old.values().map(|task| &**task).chain(self.young.iter().filter_map(Option::as_deref))
    }

    /// Numbers of all of them, lowest first.
    pub fn ids(&self) -> Vec<TaskId> {
        self.iter().map(|task| task.id).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TaskSpec, TaskState};
    use super::*;
    use crate::base::clock::Nanos;
    use crate::base::prng::SplitMix64;

    fn task(number: u64) -> Box<Task> {
        Box::new(Task::new(TaskId(number), TaskSpec::default(), TaskState::Queued, 0, Nanos(1)))
    }

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
                    assert!(tasks.push(task(next)), "step {step}");
                    plain.insert(next, ());
                    next += 1;
                    assert!(!tasks.push(task(next - 1)), "given once");
                }
                _ => {
                    let many = plain.len() as u64;
                    let chosen = plain.keys().nth(random.below(many.clamp(1, 400)) as usize).copied();
                    let removed = chosen.and_then(|number| tasks.remove(TaskId(number)));
                    assert_eq!(removed.map(|task| task.id.0), chosen, "step {step}");
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
        assert!(tasks.iter().map(|task| task.id.0).eq(plain.keys().copied()));
        assert!(tasks.ids().iter().all(|id| tasks.get_mut(*id).is_some_and(|task| task.id == *id)));
        assert!(!tasks.old.is_empty() && !tasks.young.is_empty(), "else this shows less");
    }

    #[test]
    fn one_that_stays_does_not_keep_the_places_of_all_that_came_after_it() {
        let mut tasks = Numbered::starting_at(1);
        tasks.push(task(1));
        for number in 2..SPAN as u64 + 1000 {
            tasks.push(task(number));
            tasks.remove(TaskId(number));
            tasks.trim();
        }
        assert!(tasks.young.len() <= SPAN && tasks.get(TaskId(1)).is_some());
        assert_eq!((tasks.ids(), tasks.next()), (vec![TaskId(1)], SPAN as u64 + 1000));
    }
}
