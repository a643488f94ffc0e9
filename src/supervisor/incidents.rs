//! Incidents: every failure of an agent, from how it was found to the successor's readiness, as a record.
//!
//! An incident is opened by whoever finds the failure and closed when the agent is ready again. What the agent held then
//! and what was moved belongs to it. One life has one incident, however many notice; a crash loop and a poisonous task
//! are incidents of their own.

use super::*;
use crate::base::clock::wall_rfc3339;
use crate::base::words::things;
use crate::os::process::Exit;
use crate::tasks::ledger::POISON;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::VecDeque;

/// Incidents that are remembered.
const REMEMBERED: usize = 1000;

/// One failure and what was done about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Counts from 1 without gaps, through all lives of the swarm.
    pub id: u64,
    /// When it was found, RFC 3339.
    pub time: String,
    /// Whose failure.
    pub agent: String,
    /// In which life.
    pub incarnation: u32,
    /// The class: `crash`, `frozen`, `hang`, `garbage`, `leak`, `drift`, `errors`, `restarts`, `crash_loop`, `poison`.
    pub failure: String,
    /// The plan: `replace`, `kill_and_replace`, `drain_and_replace`, `bench`, `fail_task`.
    pub action: String,
    /// In words.
    pub cause: String,
    /// The figures that led to it.
    pub evidence: Vec<Figure>,
    /// From the failure to its being found, microseconds. Absent when nobody knows when it began, and for what was
    /// foretold.
    pub detect_us: Option<f64>,
    /// From its being found to the successor's readiness, microseconds; absent while there is none.
    pub recovery_us: Option<f64>,
    /// Tasks that went back to the queue.
    pub tasks_moved: usize,
    /// Where the damaged channel was saved, with what was found in it beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<String>,
    /// When it was found, for `recovery_us`.
    #[serde(skip)]
    found: Nanos,
}

/// A life that ended.
pub(super) struct Dead<'a> {
    /// When that was found.
    pub(super) found: Nanos,
    pub(super) id: &'a str,
    pub(super) incarnation: Incarnation,
    pub(super) exit: Exit,
    /// In words.
    pub(super) cause: &'a str,
    pub(super) born: Nanos,
    /// Tasks that it ended.
    pub(super) tasks: u64,
    /// From our own kill to its end, microseconds.
    pub(super) detect_us: Option<f64>,
}

/// The incidents of a swarm.
#[derive(Debug, Default)]
pub struct IncidentLog {
    kept: VecDeque<Incident>,
    /// In this life.
    total: u64,
    /// Before it.
    earlier: u64,
}

impl IncidentLog {
    /// The newest `most`, the newest last.
    pub fn latest(&self, most: usize) -> Vec<Incident> {
        self.kept.iter().skip(self.kept.len().saturating_sub(most)).cloned().collect()
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The number of the last one, in all lives.
    pub fn last(&self) -> u64 {
        self.earlier + self.total
    }

    /// There were so many before this life, which has had none yet.
    pub fn go_on_after(&mut self, earlier: u64) {
        self.earlier = earlier.min(u64::MAX / 2);
    }

    fn of_life(&mut self, agent: &str, life: Incarnation) -> Option<&mut Incident> {
        let same = |incident: &&mut Incident| {
            incident.agent == agent && incident.incarnation == life.0 && incident.recovery_us.is_none()
        };
        self.kept.iter_mut().rev().find(same)
    }

    fn open(&mut self, mut incident: Incident) -> u64 {
        self.total += 1;
        incident.id = self.last();
        if self.kept.len() == REMEMBERED {
            self.kept.pop_front();
        }
        self.kept.push_back(incident);
        self.last()
    }

    /// The agent is well again: ends what is open of it, and says what that was.
    fn close(&mut self, agent: &str, now: Nanos) -> Vec<Incident> {
        let is_open = |incident: &&mut Incident| incident.agent == agent && incident.recovery_us.is_none();
        let open = self.kept.iter_mut().filter(is_open);
        open.map(|incident| {
            incident.recovery_us = Some(now.since(incident.found).as_nanos() as f64 / 1000.0);
            incident.clone()
        })
        .collect()
    }
}

impl Supervisor {
    /// A failure was found in the life that runs, or ran last, in this place.
    pub(super) fn open_incident(
        &mut self,
        slot: AgentSlot,
        failure: Failure,
        cause: &str,
        evidence: Vec<Figure>,
    ) {
        let Some(record) = self.record(slot) else { return };
        let (agent, life) = (record.id.clone(), record.incarnation);
        self.open_incident_of(&agent, life, clock::now(), failure, cause, evidence);
    }

    /// Nothing is opened for a life that has an open incident, unless it is about more than that life.
    fn open_incident_of(
        &mut self,
        agent: &str,
        life: Incarnation,
        found: Nanos,
        failure: Failure,
        cause: &str,
        evidence: Vec<Figure>,
    ) {
        let is_own = matches!(failure, Failure::CrashLoop | Failure::Poison);
        if !is_own && self.incidents.of_life(agent, life).is_some() {
            return;
        }
        let silent = evidence.iter().find(|figure| figure.name == "silent_s");
        let incident = Incident {
            id: 0,
            time: wall_rfc3339(),
            agent: agent.to_owned(),
            incarnation: life.0,
            failure: failure.name().to_owned(),
            action: failure.plan().act.name().to_owned(),
            cause: cause.to_owned(),
            detect_us: silent.map(|figure| figure.value * 1e6),
            evidence,
            recovery_us: None,
            tasks_moved: 0,
            dump: None,
            found,
        };
        let id = self.incidents.open(incident);
        let text = format!("incident {id}: {}: {cause}", failure.name());
        self.events.add(Severity::Info, "incident_opened", Some(agent), text);
    }

    /// Saves the channel of an agent that wrote nonsense, and says in its incident where.
    pub(super) fn save_channel(&mut self, slot: AgentSlot, what: &str) {
        let Some(seat) = self.dispatcher.get(slot) else { return };
        let channel = seat.link.far_slots();
        let Some(record) = self.record(slot) else { return };
        let (agent, life) = (record.id.clone(), record.incarnation);
        let (Some(folder), Some(incident)) = (self.home.crashes(), self.incidents.of_life(&agent, life))
        else {
            return;
        };
        let about = json!({"found": what, "incident": incident});
        match dump::save(folder, &agent, channel, about) {
            Ok(path) => incident.dump = Some(path.display().to_string()),
            Err(error) => tracing::warn!("the damaged channel of {agent} is not saved: {error}"),
        }
    }

    /// The agent is ready again, or gone for good.
    pub(super) fn close_incidents(&mut self, agent: &str, now: Nanos) {
        for incident in self.incidents.close(agent, now) {
            let took = incident.recovery_us.unwrap_or(0.0) / 1000.0;
            let moved = things(incident.tasks_moved, "task");
            let text = format!(
                "incident {}: {}: {} took {took:.1} ms, {moved} moved",
                incident.id, incident.failure, incident.action
            );
            self.events.add(Severity::Info, "incident_closed", Some(agent), text);
        }
    }

    /// An agent died. That is an incident, unless it is part of one or was asked for. Its successor may have its place already.
    pub(super) fn note_death(&mut self, dead: &Dead<'_>, moved: &[TaskId]) {
        if dead.exit != Exit::Code(0) {
            let figures = vec![
                Figure::new("lived_s", dead.found.since(dead.born).as_secs_f64()),
                Figure::new("tasks_count", dead.tasks as f64),
            ];
            self.open_incident_of(dead.id, dead.incarnation, dead.found, Failure::Crash, dead.cause, figures);
        }
        if let Some(incident) = self.incidents.of_life(dead.id, dead.incarnation) {
            incident.tasks_moved += moved.len();
            incident.detect_us =
                incident.detect_us.or(dead.detect_us.filter(|_| incident.failure == "crash"));
        }
        for &id in moved {
            let Some(task) = self.ledger.get(id).filter(|task| task.state == TaskState::Failed) else {
                continue;
            };
            let error = task.error.as_deref().unwrap_or("").to_owned();
            if error.starts_with(POISON) {
                let figures = vec![Figure::new("attempts_count", f64::from(task.attempt.0))];
                let cause = format!("task {}: {error}", task.label());
                self.open_incident_of(
                    dead.id,
                    dead.incarnation,
                    dead.found,
                    Failure::Poison,
                    &cause,
                    figures,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(agent: &str, life: u32) -> Incident {
        Incident {
            id: 0,
            time: String::new(),
            agent: agent.to_owned(),
            incarnation: life,
            failure: "leak".to_owned(),
            action: "drain_and_replace".to_owned(),
            cause: "memory".to_owned(),
            evidence: vec![Figure::new("left_s", 12.0)],
            detect_us: None,
            recovery_us: None,
            tasks_moved: 0,
            dump: None,
            found: Nanos(1000),
        }
    }

    #[test]
    fn incidents_are_numbered_closed_once_and_the_oldest_forgotten() {
        let mut log = IncidentLog::default();
        log.open(incident("a", 1));
        log.open(incident("b", 1));
        assert!(log.of_life("a", Incarnation(2)).is_none());
        log.of_life("a", Incarnation(1)).expect("open").tasks_moved = 2;
        let closed = log.close("a", Nanos(5000));
        assert_eq!((closed.len(), closed[0].id, closed[0].tasks_moved), (1, 1, 2));
        assert_eq!(closed[0].recovery_us, Some(4.0));
        assert!(log.close("a", Nanos(9000)).is_empty() && log.of_life("a", Incarnation(1)).is_none());
        for _ in 0..REMEMBERED {
            log.open(incident("c", 1));
        }
        assert_eq!((log.total(), log.latest(usize::MAX).len()), (REMEMBERED as u64 + 2, REMEMBERED));
        assert_eq!(log.latest(2).last().map(|incident| incident.id), Some(REMEMBERED as u64 + 2));
    }
}
