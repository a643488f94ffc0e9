//! What the supervisor itself knows and a later life goes on with: what the balancer has learned, who decides there, how many
//! incidents there were, and, in a snapshot of their own, what was counted. Tasks and events are the journal's.
//!
//! They are snapshots like those of agents, and advice like them. A thread writes them: at once when somebody decided something or
//! an incident was opened, else some time after something was learned or counted.
//!
//! Not kept, on purpose: the speed of single agents (another life sits in each slot), the guard's twin and its alarms (they are
//! about queues that are gone), latencies and rates (they are those of this life).

use super::Supervisor;
use super::action::EarlierView;
use crate::base::clock::Nanos;
use crate::journal::snapshot::{Snapshots, machine};
use crate::kernels::KernelId;
use crate::messaging::envelope::Severity;
use crate::os::topology::Topology;
use crate::tasks::{LearnedCost, Learning, Mode};
use serde::de::DeserializeOwned;
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

/// What is known of earlier lives.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    pub(super) known: Option<Kept>,
    pub(super) counted: Option<EarlierView>,
    pub(super) told: Vec<Told>,
}

/// What is to be written: what is known, and what was counted.
type News = (Kept, EarlierView);

/// The writer of it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    work: Option<(Sender<News>, JoinHandle<()>)>,
    written: Kept,
    /// Tasks of this life that had ended when it was written.
    ended: u64,
    due: Nanos,
}

/// `before` is what the files say.
fn write(mut known: Snapshots, mut counted: Snapshots, mut before: News, work: &Receiver<News>) {
    while let Ok(news) = work.recv() {
        // The newest of what gathered.
        let news = work.try_iter().last().unwrap_or(news);
        // What could not be written is tried again with the next news, and at the end.
        save(&mut known, &mut before.0, news.0);
        save(&mut counted, &mut before.1, news.1);
    }
}

fn save<T: Serialize + PartialEq>(snapshots: &mut Snapshots, before: &mut T, news: T) {
    if news == *before {
        return;
    }
    match snapshots.save(&news) {
        Ok(()) => *before = news,
        Err(error) => tracing::warn!("{} is not kept: {error}", snapshots.name()),
    }
}

/// The newest sound state under this name, and what is worth telling.
fn restore<T: DeserializeOwned>(snapshots: &mut Snapshots, told: &mut Vec<Told>) -> Option<T> {
    let name = snapshots.name();
    match snapshots.restore::<T>() {
        Ok(restored) => {
            for (path, why) in restored.damaged {
                let text = format!("{name}: {why}; set aside as {}", path.display());
                told.push((Severity::Warning, "snapshot_damaged", text));
            }
            let (state, generation, _) = restored.state?;
            told.push((Severity::Info, "snapshot_restored", format!("{name}, generation {generation}")));
            Some(state)
        }
        Err(error) => {
            let text = format!("{name}: {}: {error}", snapshots.folder().display());
            told.push((Severity::Warning, "snapshot_unreadable", text));
            None
        }
    }
}

impl Memory {
    /// What earlier lives knew and counted, and what is worth telling; starts the writer. Without a folder nothing is kept.
    pub(super) fn open(folder: Option<PathBuf>, topology: &Topology) -> (Self, Recalled) {
        let mut recalled = Recalled::default();
        let Some(folder) = folder else { return (Self::default(), recalled) };
        let mut known = Snapshots::new(&folder, "supervisor", machine(topology));
        // What was counted is so on any machine.
        let mut counted = Snapshots::new(&folder, "counters", String::new());
        recalled.known = restore(&mut known, &mut recalled.told);
        recalled.counted = restore(&mut counted, &mut recalled.told);
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("memory".to_owned());
        let written = recalled.known.clone().unwrap_or_default();
        let before = (written.clone(), recalled.counted.clone().unwrap_or_default());
        let work = thread.spawn(move || write(known, counted, before, &receiver)).ok();
        let work = work.map(|thread| (sender, thread));
        (Self { work, written, ended: 0, due: Nanos(0) }, recalled)
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
        if self.journal_failure().is_some() {
            // Perhaps because another swarm lives there by now.
            return;
        }
        let (policy, written) = (self.dispatcher.policy(), &self.memory.written);
        let standing = policy.standing();
        let known = written.mode.as_ref().map_or(self.config.balancer.mode, |(mode, _)| mode.as_str());
        let is_told = self.incidents.last() == written.incidents
            && standing.is_none_or(|standing| standing.mode.name() == known);
        let counts = self.ledger.counts();
        let ended = counts.total - counts.open();
        let is_current =
            standing.is_none_or(|standing| standing.samples == written.samples) && ended == self.memory.ended;
        if is_told && (is_current || self.now < self.memory.due) {
            return;
        }
        let kept = self.kept();
        let _ = sender.send((kept.clone(), self.counted()));
        (self.memory.written, self.memory.ended) = (kept, ended);
        self.memory.due = self.now.plus(KEEP_AFTER);
    }

    /// The end: what is known is written, and that there was this life.
    pub(super) fn close_memory(&mut self) {
        (self.memory.ended, self.memory.due) = (u64::MAX, Nanos(0));
        if self.home.is_there() {
            self.remember();
        }
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
