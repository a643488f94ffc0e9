//! The order in which queued tasks of one priority go: who is due first, whatever came when.
//!
//! Under a policy that is first come, first served tasks come in the order in which they go, so that most entries only ever
//! join at the back and leave at the front. Those that do not are kept apart, in a tree.
//!
//! Invariants
//! 1. An entry stands here once: it is taken out when its task is leased.
//! 2. Entries of tasks that ended while they waited may stand in `in_order` until somebody comes across them: to take one
//!    out of the middle would move all behind it.

use super::TaskId;
use crate::base::clock::Nanos;
use std::collections::{BTreeSet, VecDeque};

/// When a task is due to go, and which.
pub(super) type Due = (Nanos, TaskId);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    in_order: VecDeque<Due>,
    others: BTreeSet<Due>,
}

impl Queue {
    pub(super) fn add(&mut self, due: Due) {
        if self.in_order.back().is_none_or(|last| *last < due) {
            self.in_order.push_back(due);
        } else {
            self.others.insert(due);
        }
    }

    /// Its task is leased. Who goes is near the front, so that few entries move.
    pub(super) fn take(&mut self, due: Due) {
        if self.in_order.front() == Some(&due) {
            self.in_order.pop_front();
        } else if !self.others.remove(&due)
            && let Ok(at) = self.in_order.binary_search(&due)
        {
            self.in_order.remove(at);
        }
    }

    /// Its task ended while it waited.
    pub(super) fn forget(&mut self, due: Due) {
        self.others.remove(&due);
    }

    /// Who goes first.
    pub(super) fn first(&mut self, waits: impl Fn(TaskId) -> bool) -> Option<Due> {
        while self.in_order.front().is_some_and(|(_, id)| !waits(*id)) {
            self.in_order.pop_front();
        }
        let (front, other) = (self.in_order.front(), self.others.first());
        front.into_iter().chain(other).min().copied()
    }

    /// The first so many, in order, behind what is in `into`.
    pub(super) fn first_many(&mut self, many: usize, waits: impl Fn(TaskId) -> bool, into: &mut Vec<Due>) {
        let start = into.len();
        // Entries of tasks that ended go on the way, so that none is looked at twice.
        while into.len() < start + many
            && let Some(due) = self.in_order.pop_front()
        {
            if waits(due.1) {
                into.push(due);
            }
        }
        for due in into[start..].iter().rev() {
            self.in_order.push_front(*due);
        }
        into.extend(self.others.iter().take(many));
        into[start..].sort_unstable();
        into.truncate(start + many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;
    use std::collections::BTreeSet;

    #[test]
    fn it_is_a_sorted_set_whatever_comes_and_goes() {
        let mut random = SplitMix64::new(7);
        let (mut queue, mut plain) = (Queue::default(), BTreeSet::new());
        let mut seen = Vec::new();
        for turn in 0..20_000 {
            let due = (Nanos(turn + random.below(50) * random.below(2)), TaskId(turn));
            match random.below(4) {
                0 | 1 => {
                    queue.add(due);
                    plain.insert(due);
                }
                2 => {
                    let Some(&some) = plain.iter().nth(random.below(8) as usize) else { continue };
                    queue.take(some);
                    plain.remove(&some);
                    if random.below(4) == 0 {
                        // Its agent died.
                        queue.add(some);
                        plain.insert(some);
                    }
                }
                _ if turn % 5 == 0 => {
                    let Some(&some) = plain.iter().nth(random.below(40) as usize) else { continue };
                    queue.forget(some);
                    plain.remove(&some);
                }
                _ => {}
            }
            let waits = |id| plain.iter().any(|(_, waiting)| *waiting == id);
            assert_eq!(queue.first(waits), plain.first().copied());
            if turn % 10 == 0 {
                seen.clear();
                queue.first_many(32, waits, &mut seen);
                assert!(seen.iter().eq(plain.iter().take(32)), "{seen:?}");
            }
            if plain.len() > 200 {
                plain.iter().for_each(|due| queue.take(*due));
                plain.clear();
            }
        }
    }
}
