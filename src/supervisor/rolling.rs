//! A restart of running agents without a pause in the work: one after the other, each after what it holds, the next when
//! the successor of the one before is ready. A new binary at our path is taken on the way; see `spawn`.

use super::spawn::FileId;
use super::*;
use crate::base::words::things;

/// So long a rolling restart waits for a standby before it goes on without.
const STANDBY_PATIENCE: Duration = Duration::from_secs(2);
/// A successor that is not ready by then ends the rolling restart.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(60);

/// A rolling restart under way.
#[derive(Debug)]
pub(super) struct Rolling {
    /// Those whose turn has not come, with the life that is to end.
    left: VecDeque<(AgentSlot, Incarnation)>,
    /// Whose turn it is.
    current: Option<(AgentSlot, Incarnation)>,
    /// Since when.
    since: Nanos,
    done: usize,
}

impl Supervisor {
    /// Restarts the agent with this id, or all of this kind: one after the other, or all at once. Each finishes what it
    /// holds; nothing is lost either way.
    pub(super) fn restart_agents(&mut self, who: &str, rolling: bool) -> Reply {
        let refuse = |text: String| Reply::Refused(Refused::Conflict(text));
        if self.closing || self.is_stop_asked() {
            return refuse("the swarm is stopping".to_owned());
        }
        let kind = AgentKind::from_name(who);
        let meant = |record: &Record| record.id == who || kind == Some(record.kind);
        let runs = |record: &Record| matches!(record.state, AgentState::Ready | AgentState::Starting);
        let found = self.roster.iter().enumerate().filter_map(|(at, record)| {
            let record = record.as_ref().filter(|record| meant(record) && runs(record))?;
            Some((AgentSlot(at as u16), record.incarnation))
        });
        let left: VecDeque<_> = found.collect();
        let is_benched = |record: &Record| meant(record) && matches!(record.state, AgentState::Benched(_));
        if left.is_empty() && !self.roster.iter().flatten().any(is_benched) {
            return match self.slot_of(who) {
                Some(_) => refuse(format!("agent {who} does not run, so it cannot be restarted")),
                None if kind.is_some() => refuse(format!("no {who} agent runs")),
                None => Reply::Refused(Refused::NotFound(format!(
                    "no agent has the id {who:?}, and no kind is called so"
                ))),
            };
        }
        if self.rolling.is_some() {
            return refuse("a rolling restart is under way".to_owned());
        }
        match self.nursery.binary.look_for_upgrade() {
            Ok(false) => {}
            Ok(true) => {
                self.dismiss_standbys();
                let text = "agents are started from the new file at our path from here on".to_owned();
                self.events.add(Severity::Info, "binary_upgrade", None, text);
            }
            Err(error) => {
                let text =
                    format!("the file at our path cannot be used, agents keep the binary in force: {error}");
                self.events.add(Severity::Warning, "binary_upgrade_failed", None, text);
            }
        }
        // Who waits for a better time has been given one.
        for record in self.roster.iter_mut().flatten().filter(|record| is_benched(record)) {
            record.state = AgentState::Backoff(self.now);
        }
        let text =
            format!("{who}: {} one after the other, each after what it holds", things(left.len(), "agent"));
        if rolling {
            self.events.add(Severity::Info, "rolling_restart", None, text);
            self.rolling = Some(Rolling { left, current: None, since: self.now, done: 0 });
        } else {
            for (slot, _) in left {
                self.drain(slot, "restarted on request: finishes what it holds".to_owned());
            }
        }
        Reply::Done
    }

    /// The next step, when it is due.
    pub(super) fn advance_rolling(&mut self) {
        let Some(mut rolling) = self.rolling.take() else { return };
        if self.closing {
            return;
        }
        if let Some((slot, life)) = rolling.current {
            let record = self.record(slot);
            let is_over = record.is_none_or(|record| {
                record.incarnation > life && record.state == AgentState::Ready
                    || matches!(record.state, AgentState::Stopped | AgentState::Resting)
            });
            if record.is_some_and(|record| record.incarnation == life) {
                // It still finishes what it holds, which takes as long as it takes.
                rolling.since = self.now;
            }
            let is_stuck = record.is_some_and(|record| matches!(record.state, AgentState::Benched(_)));
            if is_stuck || !is_over && self.now.since(rolling.since) > SUCCESSOR_LIMIT {
                let id = self.id_of(slot);
                let text = "the successor did not get ready; the others stay as they are".to_owned();
                self.events.add(Severity::Warning, "rolling_restart_ended", id.as_deref(), text);
                return;
            }
            if !is_over {
                self.rolling = Some(rolling);
                return;
            }
            (rolling.current, rolling.since) = (None, self.now);
            rolling.done += 1;
        }
        let Some(&(slot, life)) = rolling.left.front() else {
            let text = format!("{} restarted, one after the other", things(rolling.done, "agent"));
            self.events.add(Severity::Info, "rolling_restart_ended", None, text);
            return;
        };
        let record = self.record(slot).filter(|record| record.incarnation == life);
        let is_compute = record.is_some_and(|record| record.kind == AgentKind::Compute);
        let waits = is_compute
            && self.wanted_standbys() > 0
            && self.standbys.ready() == 0
            && self.now.since(rolling.since) < STANDBY_PATIENCE;
        if !waits {
            rolling.left.pop_front();
            // Who died meanwhile has a successor already.
            if record.is_some() {
                (rolling.current, rolling.since) = (Some((slot, life)), self.now);
                self.drain(slot, "rolling restart: finishes what it holds".to_owned());
            }
        }
        self.rolling = Some(rolling);
    }

    /// A process that was started from this file is ready.
    pub(super) fn on_binary_proved(&mut self, file: FileId) {
        if self.nursery.binary.prove(file) {
            let text = "the first agent of the new binary is ready".to_owned();
            self.events.add(Severity::Info, "binary_upgraded", None, text);
        }
    }

    /// A process that was started from this file did not get ready.
    pub(super) fn on_binary_failed(&mut self, file: FileId, why: &str) {
        if self.nursery.binary.reject(file) {
            self.rolling = None;
            self.dismiss_standbys();
            let text = format!(
                "the first agent of the new binary did not get ready ({why}): back to the one before"
            );
            self.events.add(Severity::Warning, "binary_upgrade_failed", None, text);
        }
    }
}
