//! What the supervisor itself knows and a later life goes on with: what the balancer has learned, who decides there, how many
//! incidents there were. Tasks and events are the journal's.
//!
//! It is a snapshot like those of agents, and advice like them. A thread writes it: at once when somebody decided something or an
//! incident was opened, else some time after something was learned.
//!
//! Not kept, on purpose: the speed of single agents (another life sits in each slot), the guard's twin and its alarms (they are
//! about queues that are gone), latencies, rates and other counters (they are those of this life; what became of tasks and
//! agents is in the journal).

use super::Supervisor;
use crate::base::clock::Nanos;
use crate::journal::snapshot::{Snapshots, machine};
use crate::kernels::KernelId;
use crate::messaging::envelope::Severity;
use crate::os::topology::Topology;
use crate::tasks::{LearnedCost, Learning, Mode};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// What was learned is written down so long after it was learned.
const KEEP_AFTER: Duration = Duration::from_secs(10);

/// The state in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Incidents so far, in all lives.
    incidents: u64,
    /// Who decides in the balancer, and what the configuration said when that was decided.
    mode: Option<(String, String)>,
    /// How good the balancer's model is, and on how many tasks that rests.
    error: f32,
    samples: u64,
    costs: Vec<KeptCost>,
}

/// One cost in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct KeptCost {
    kernel: String,
    class: u8,
    backend: u8,
    ns: f64,
}

impl Kept {
    fn learning(&self) -> Learning {
        let cost = |cost: &KeptCost| {
            let kernel = KernelId::from_name(&cost.kernel)?.code();
            Some(LearnedCost { kernel, class: cost.class, backend: cost.backend, ns: cost.ns })
        };
        let costs = self.costs.iter().filter_map(cost).collect();
        Learning { costs, error: self.error, samples: self.samples }
    }

    /// Who shall decide, if that is another one than the configuration says, and it says the same as then.
    fn mode(&self, configured: &str) -> Option<Mode> {
        let (mode, then) = self.mode.as_ref()?;
        Mode::from_name(mode).filter(|mode| then == configured && mode.name() != configured)
    }
}

/// An event: how much it matters, its kind, its words.
pub(super) type Told = (Severity, &'static str, String);

/// The writer of it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    work: Option<(Sender<Kept>, JoinHandle<()>)>,
    written: Kept,
    due: Nanos,
}

fn write(mut snapshots: Snapshots, work: &Receiver<Kept>) {
    while let Ok(kept) = work.recv() {
        // The newest of what gathered.
        let kept = work.try_iter().last().unwrap_or(kept);
        if let Err(error) = snapshots.save(&kept) {
            tracing::warn!("what the balancer learned is not kept: {error}");
        }
    }
}

impl Memory {
    /// What an earlier life knew, and what is worth telling; starts the writer. Without a folder nothing is kept.
    pub(super) fn open(folder: Option<PathBuf>, topology: &Topology) -> (Self, Option<Kept>, Vec<Told>) {
        let mut told = Vec::new();
        let Some(folder) = folder else { return (Self::default(), None, told) };
        let mut snapshots = Snapshots::new(&folder, "supervisor", machine(topology));
        let mut kept = None;
        match snapshots.restore::<Kept>() {
            Ok(restored) => {
                for (path, why) in restored.damaged {
                    let text = format!("supervisor: {why}; set aside as {}", path.display());
                    told.push((Severity::Warning, "snapshot_damaged", text));
                }
                if let Some((state, generation, _)) = restored.state {
                    let text = format!("supervisor, generation {generation}");
                    told.push((Severity::Info, "snapshot_restored", text));
                    kept = Some(state);
                }
            }
            Err(error) => {
                let text = format!("supervisor: {}: {error}", folder.display());
                told.push((Severity::Warning, "snapshot_unreadable", text));
            }
        }
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("memory".to_owned());
        let work = thread.spawn(move || write(snapshots, &receiver)).ok().map(|thread| (sender, thread));
        (Self { work, written: kept.clone().unwrap_or_default(), due: Nanos(0) }, kept, told)
    }
}

impl Supervisor {
    /// Goes on with what an earlier life knew.
    pub(super) fn recall(&mut self, kept: &Kept) {
        self.incidents.go_on_after(kept.incidents);
        let policy = self.dispatcher.policy_mut();
        policy.recall(&kept.learning());
        let configured = self.config.balancer.mode;
        if let Some(mode) = kept.mode(configured).filter(|mode| policy.set_mode(*mode)) {
            let text = format!(
                "placement is by {}, as somebody decided in an earlier life, and not by {configured}",
                mode.name()
            );
            self.events.add(Severity::Info, "balancer_mode", None, text);
        }
    }

    fn kept(&self) -> Kept {
        let policy = self.dispatcher.policy();
        let learning = policy.learning().unwrap_or_default();
        let cost = |cost: &LearnedCost| {
            let kernel = KernelId::from_code(cost.kernel)?.name().to_owned();
            Some(KeptCost { kernel, class: cost.class, backend: cost.backend, ns: cost.ns })
        };
        let mode = policy.standing().map(|standing| standing.mode.name().to_owned());
        Kept {
            incidents: self.incidents.last(),
            mode: mode.map(|mode| (mode, self.config.balancer.mode.to_owned())),
            error: learning.error,
            samples: learning.samples,
            costs: learning.costs.iter().filter_map(cost).collect(),
        }
    }

    /// Has what changed written down, when it is time for that.
    pub(super) fn remember(&mut self) {
        let Some((sender, _)) = &self.memory.work else { return };
        let (policy, written) = (self.dispatcher.policy(), &self.memory.written);
        let standing = policy.standing();
        let known = written.mode.as_ref().map_or(self.config.balancer.mode, |(mode, _)| mode.as_str());
        let is_told = self.incidents.last() == written.incidents
            && standing.is_none_or(|standing| standing.mode.name() == known);
        let is_current = standing.is_none_or(|standing| standing.samples == written.samples);
        if is_told && (is_current || self.now < self.memory.due) {
            return;
        }
        let kept = self.kept();
        let _ = sender.send(kept.clone());
        (self.memory.written, self.memory.due) = (kept, self.now.plus(KEEP_AFTER));
    }

    /// The end: what is known is written.
    pub(super) fn close_memory(&mut self) {
        self.memory.due = Nanos(0);
        self.remember();
        if let Some((sender, thread)) = self.memory.work.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_holds_until_the_configuration_says_something_else() {
        let kept = |mode: &str, then: &str| Kept {
            mode: Some((mode.to_owned(), then.to_owned())),
            ..Kept::default()
        };
        assert_eq!(kept("safe", "learned").mode("learned"), Some(Mode::Safe));
        assert_eq!(kept("safe", "learned").mode("frozen"), None);
        assert_eq!(kept("learned", "learned").mode("learned"), None);
        assert_eq!(kept("nonsense", "learned").mode("learned"), None);
        assert_eq!(Kept::default().mode("learned"), None);
    }
}
