//! Why tasks went where they went: the last decisions, each with what was known when it was made.
//!
//! Written on the way of every task: in place, some bytes per candidate, no clock and no allocation. Read when somebody asks.
//! A record holds what the policy was given and what it made of that, so that the choice can be followed by hand.

use super::placer::{By, Candidate, Placement, Scored};
use crate::base::ids::{AgentSlot, Attempt, TaskId};

/// Decisions that are remembered.
const KEPT: usize = 4096;
/// Candidates that a record has room for. Of more, the first ones; whoever was chosen is always among them.
const SHOWN: usize = 8;

/// A candidate as it was.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Which agent.
    pub slot: AgentSlot,
    /// Whether it could be given a task.
    pub room: bool,
    /// Tasks it held.
    pub in_flight: u16,
    /// Time until it would be through with them, ns.
    pub backlog_ns: f32,
    /// What the table of costs expected of this task there, ns.
    pub told_ns: Option<f32>,
    /// What the policy made of it, if it compared scores.
    pub scored: Option<Scored>,
}

/// A decision.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// The task, and which attempt of it was sent.
    pub task: TaskId,
    /// See `task`.
    pub attempt: Attempt,
    /// How it came about.
    pub by: By,
    /// How likely this very choice was at least.
    pub probability: f32,
    /// What the task was expected to take, ns, if anybody knew.
    pub expected_ns: Option<f32>,
    /// Candidates there were.
    pub candidates: u16,
    chosen: u8,
    shown: u8,
    choices: [Choice; SHOWN],
}

impl Decision {
    /// Those it was chosen from, as far as they were recorded.
    pub fn choices(&self) -> &[Choice] {
        &self.choices[..usize::from(self.shown)]
    }

    /// Who was chosen.
    pub fn chosen(&self) -> &Choice {
        &self.choices[usize::from(self.chosen)]
    }
}

/// What a fresh place in the log holds.
const NONE: Decision = Decision {
    task: TaskId(0),
    attempt: Attempt(0),
    by: By::Rule,
    probability: 0.0,
    expected_ns: None,
    candidates: 0,
    chosen: 0,
    shown: 0,
    choices: [Choice {
        slot: AgentSlot(0),
        room: false,
        in_flight: 0,
        backlog_ns: 0.0,
        told_ns: None,
        scored: None,
    }; SHOWN],
};

/// The log of them.
#[derive(Debug)]
pub struct Decisions {
    ring: Vec<Decision>,
    next: usize,
}

impl Default for Decisions {
    fn default() -> Self {
        // The pages come when they are written.
        Self { ring: Vec::with_capacity(KEPT), next: 0 }
    }
}

impl Decisions {
    /// Notes a decision. `scored` gives what the policy made of a candidate, by its index.
    pub(super) fn note(
        &mut self,
        task: TaskId,
        attempt: Attempt,
        placement: &Placement,
        candidates: &[Candidate],
        scored: impl Fn(usize) -> Option<Scored>,
    ) {
        let choice = |at: usize| {
            let candidate = &candidates[at];
            Choice {
                slot: candidate.slot,
                room: candidate.room,
                in_flight: candidate.in_flight.min(usize::from(u16::MAX)) as u16,
                backlog_ns: candidate.backlog_ns as f32,
                told_ns: candidate.expected_ns.map(|ns| ns as f32),
                scored: scored(at),
            }
        };
        if self.next == self.ring.len() {
            self.ring.push(NONE);
        }
        // In place: of a record nothing is touched but what it needs.
        let decision = &mut self.ring[self.next];
        self.next = (self.next + 1) % KEPT;
        let (shown, chosen) = (candidates.len().min(SHOWN), placement.at.min(SHOWN - 1));
        for (at, place) in decision.choices[..shown].iter_mut().enumerate() {
            *place = choice(if at == chosen { placement.at } else { at });
        }
        (decision.task, decision.attempt, decision.by) = (task, attempt, placement.by);
        decision.probability = placement.probability;
        let expected_ns = placement.expected_ns.or(candidates[placement.at].expected_ns);
        decision.expected_ns = expected_ns.map(|ns| ns as f32);
        decision.candidates = candidates.len().min(usize::from(u16::MAX)) as u16;
        (decision.chosen, decision.shown) = (chosen as u8, shown as u8);
    }

    /// The newest decision about a task, if it is remembered.
    pub fn of(&self, task: TaskId) -> Option<&Decision> {
        let (newer, older) = self.ring.split_at(self.next.min(self.ring.len()));
        newer.iter().rev().chain(older.iter().rev()).find(|decision| decision.task == task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(count: u16) -> Vec<Candidate> {
        let candidate = |slot| Candidate {
            slot: AgentSlot(slot),
            backend: 0,
            room: true,
            in_flight: usize::from(slot),
            backlog_ns: f64::from(slot) * 100.0,
            expected_ns: (slot % 2 == 0).then_some(50.0),
        };
        (0..count).map(candidate).collect()
    }

    #[test]
    fn the_newest_decision_about_a_task_is_found_until_it_is_overwritten() {
        let mut decisions = Decisions::default();
        let candidates = candidates(3);
        let mut note = |task: u64, attempt: u32, at: usize| {
            let placement = Placement::at(at);
            decisions.note(TaskId(task), Attempt(attempt), &placement, &candidates, |_| None);
        };
        note(1, 1, 0);
        note(2, 1, 1);
        note(1, 2, 2);
        assert!(decisions.of(TaskId(3)).is_none());
        let newest = decisions.of(TaskId(1)).expect("just noted");
        assert_eq!((newest.attempt, newest.chosen().slot, newest.candidates), (Attempt(2), AgentSlot(2), 3));
        let mut note = |task: u64| {
            let placement = Placement::at(0);
            decisions.note(TaskId(task), Attempt(1), &placement, &candidates, |_| None);
        };
        (10..10 + KEPT as u64 - 1).for_each(&mut note);
        assert_eq!(decisions.of(TaskId(1)).map(|decision| decision.attempt), Some(Attempt(2)));
        assert!(decisions.of(TaskId(2)).is_none(), "two had to go");
        decisions.note(TaskId(9), Attempt(1), &Placement::at(0), &candidates, |_| None);
        assert!(decisions.of(TaskId(1)).is_none() && decisions.of(TaskId(9)).is_some());
    }

    #[test]
    fn whoever_was_chosen_is_recorded_however_many_there_were() {
        let candidates = candidates(20);
        for at in [0, 7, 8, 19] {
            let mut decisions = Decisions::default();
            let score = |at| Some(Scored { time_ns: at as f32, price: 0.5, score_ns: 2.0 });
            decisions.note(TaskId(1), Attempt(1), &Placement::at(at), &candidates, score);
            let decision = decisions.of(TaskId(1)).expect("just noted");
            assert_eq!(decision.chosen().slot, AgentSlot(at as u16));
            assert_eq!(decision.chosen().scored.map(|scored| scored.time_ns), Some(at as f32));
            assert_eq!((decision.choices().len(), decision.candidates), (SHOWN, 20));
            let mut slots: Vec<u16> = decision.choices().iter().map(|choice| choice.slot.0).collect();
            slots.dedup();
            assert_eq!(slots.len(), SHOWN, "nobody twice: {slots:?}");
        }
    }
}
