//! What was counted in earlier lives of the swarm: tasks by what became of them, and what each agent did.
//!
//! The numbers of this life stand beside them and not among them, so that a rate or a difference over two looks means what it
//! says. They are kept by [`memory`](super::memory), some seconds after they changed and at the end: who was killed may miss the
//! last of them. The journal has every task, but forgets old ones: ends are never fewer than it remembers.

use super::Supervisor;
use super::action::{AgentCounters, AgentView, EarlierView, TaskCounts};
use crate::base::ids::AgentSlot;
use crate::tasks::TaskState;
use crate::tasks::ledger::Counts;

/// Agents of earlier lives that are kept apart; the tasks of further ones are in the sums only.
const AGENTS_KEPT: usize = 1024;

impl TaskCounts {
    fn plus(mut self, other: &TaskCounts) -> TaskCounts {
        let sums = [
            (&mut self.total, other.total),
            (&mut self.succeeded, other.succeeded),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.retried, other.retried),
            (&mut self.hedged, other.hedged),
            (&mut self.hedges_won, other.hedges_won),
            (&mut self.hedges_lost, other.hedges_lost),
            (&mut self.lost, other.lost),
            (&mut self.duplicated, other.duplicated),
        ];
        // They come from a file, which may say anything.
        for (sum, more) in sums {
            *sum = sum.saturating_add(more);
        }
        self
    }

    /// Of those that ended. The others come again, in the next life.
    fn ended(self) -> TaskCounts {
        let total = self.succeeded.saturating_add(self.failed).saturating_add(self.cancelled);
        TaskCounts { total, lost: 0, ..self }
    }
}

impl AgentCounters {
    fn add(&mut self, other: &AgentCounters) {
        self.tasks = self.tasks.saturating_add(other.tasks);
        self.failures = self.failures.saturating_add(other.failures);
        self.restarts = self.restarts.saturating_add(other.restarts);
        self.busy_s += if other.busy_s.is_finite() { other.busy_s.max(0.0) } else { 0.0 };
    }
}

impl EarlierView {
    /// With the tasks that the journal remembers, where that is more than was counted: whoever counted was killed.
    pub(super) fn at_least(mut self, remembered: impl Iterator<Item = TaskState>) -> EarlierView {
        let mut counts = TaskCounts::default();
        for state in remembered {
            match state {
                TaskState::Succeeded => counts.succeeded += 1,
                TaskState::Failed => counts.failed += 1,
                TaskState::Cancelled => counts.cancelled += 1,
                _ => continue,
            }
            counts.total += 1;
        }
        if counts.total > self.tasks.total {
            let TaskCounts { total, succeeded, failed, cancelled, .. } = counts;
            self.tasks = TaskCounts { total, succeeded, failed, cancelled, ..self.tasks };
            self.lives = self.lives.max(1);
        }
        self
    }

    /// With one more life.
    fn and<'a>(
        &self,
        tasks: &TaskCounts,
        agents: impl Iterator<Item = (&'a str, AgentCounters)>,
    ) -> EarlierView {
        let mut sum = EarlierView {
            lives: self.lives.saturating_add(1),
            tasks: self.tasks.plus(&tasks.ended()),
            agents: self.agents.clone(),
        };
        for (id, counted) in agents {
            if sum.agents.len() < AGENTS_KEPT || sum.agents.contains_key(id) {
                sum.agents.entry(id.to_owned()).or_default().add(&counted);
            }
        }
        sum
    }
}

impl From<Counts> for TaskCounts {
    /// Nobody has looked whether any is lost.
    fn from(counts: Counts) -> Self {
        TaskCounts {
            total: counts.total,
            succeeded: counts.succeeded,
            failed: counts.failed,
            cancelled: counts.cancelled,
            retried: counts.retried,
            hedged: counts.hedged,
            hedges_won: counts.hedges_won,
            hedges_lost: counts.hedges_lost,
            left: 0,
            lost: 0,
            duplicated: counts.duplicated,
        }
    }
}

impl From<&AgentView> for AgentCounters {
    fn from(agent: &AgentView) -> Self {
        let restarts = u64::from(agent.restarts);
        AgentCounters { tasks: agent.tasks, failures: agent.failures, restarts, busy_s: agent.busy_s }
    }
}

impl Supervisor {
    /// What the next life shall know of this one and of those before.
    pub(super) fn counted(&self) -> EarlierView {
        let agents = self.agent_views();
        let agents = agents.iter().map(|agent| (agent.id.as_str(), agent.into()));
        let destroyed = self.destroyed.iter().map(|(id, counted)| (id.as_str(), *counted));
        self.earlier.and(&self.ledger.counts().into(), agents.chain(destroyed))
    }

    /// The agent in this slot is about to be forgotten.
    pub(super) fn count_destroyed(&mut self, slot: AgentSlot) {
        let Some(agent) = self.agent_view(slot) else { return };
        let counted = AgentCounters::from(&agent);
        match self.destroyed.iter().position(|(id, _)| *id == agent.id) {
            Some(at) => self.destroyed[at].1.add(&counted),
            None if self.destroyed.len() < AGENTS_KEPT => self.destroyed.push((agent.id, counted)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(succeeded: u64, failed: u64) -> TaskCounts {
        TaskCounts { total: succeeded + failed + 5, succeeded, failed, retried: 1, ..TaskCounts::default() }
    }

    #[test]
    fn lives_add_up_and_what_had_not_ended_is_counted_by_the_next() {
        let agent = |tasks, busy_s| AgentCounters { tasks, failures: 1, restarts: 2, busy_s };
        let first = EarlierView::default().and(&counts(10, 2), [("compute-0", agent(10, 0.5))].into_iter());
        assert_eq!((first.lives, first.tasks.total, first.tasks.succeeded), (1, 12, 10));
        let agents = [("compute-0", agent(1, 0.25)), ("compute-1", agent(2, f64::NAN))];
        let second = first.and(&counts(3, 0), agents.into_iter());
        assert_eq!((second.lives, second.tasks.total, second.tasks.retried), (2, 15, 2));
        assert_eq!(
            second.agents["compute-0"],
            AgentCounters { tasks: 11, failures: 2, restarts: 4, busy_s: 0.75 }
        );
        assert_eq!(second.agents["compute-1"].busy_s, 0.0, "no number is no time");
    }

    #[test]
    fn the_journal_makes_up_for_what_a_killed_counter_missed() {
        let counted = || EarlierView { lives: 2, tasks: counts(3, 1).ended(), ..EarlierView::default() };
        let states = |succeeded| {
            let succeeded = std::iter::repeat_n(TaskState::Succeeded, succeeded);
            succeeded.chain([TaskState::Failed, TaskState::Queued, TaskState::Cancelled])
        };
        let more = counted().at_least(states(7)).tasks;
        assert_eq!((more.total, more.succeeded, more.failed, more.cancelled, more.retried), (9, 7, 1, 1, 1));
        assert_eq!(counted().at_least(states(1)), counted(), "it has forgotten some");
        assert_eq!(EarlierView::default().at_least(states(1)).lives, 1);
        assert_eq!(EarlierView::default().at_least(std::iter::empty()), EarlierView::default());
    }

    #[test]
    fn what_a_file_says_overflows_nothing() {
        let most = EarlierView { lives: u64::MAX, tasks: counts(u64::MAX - 5, 0), ..EarlierView::default() };
        let sum = most.and(&counts(9, 9), std::iter::empty());
        assert_eq!((sum.lives, sum.tasks.succeeded), (u64::MAX, u64::MAX));
    }

    #[test]
    fn agents_without_number_take_no_room_without_end() {
        let names: Vec<String> = (0..AGENTS_KEPT + 9).map(|at| format!("compute-{at}")).collect();
        let all = names.iter().map(|name| (name.as_str(), AgentCounters::default()));
        assert_eq!(EarlierView::default().and(&counts(1, 0), all).agents.len(), AGENTS_KEPT);
    }
}
