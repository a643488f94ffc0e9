//! The learning agent: what tasks cost, per kernel, size class and agent, from every finished task.
//!
//! It reads experience, keeps smoothed means and publishes each at once; the dispatcher reads them
//! when it places the next task. A mean moves fast while it rests on little (1/n) and then forgets
//! with a half-life of about 14 tasks, so that it follows an agent that became slow.
//!
//! The model outlives the agent and the swarm in a snapshot. What comes back is a start and no more: it rests on few
//! samples, so that the first tasks of this life can correct it.

use super::snapshot::Memory;
use super::{Agent, Context};
use crate::base::clock::Nanos;
use crate::base::ids::AgentSlot;
use crate::base::mean::Mean;
use crate::kernels::KernelId;
use crate::messaging::ToAgent;
use crate::messaging::envelope::Experience;
use crate::os::clock;
use crate::shm::board::{CLASSES, Cost};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// Samples that a cost rests on when it comes from another life.
const DOUBTED: u32 = 4;
/// What was learned is written down so long after it was learned.
const KEEP_AFTER: Duration = Duration::from_secs(10);
/// Longest mean that is believed: a month.
const MEAN_MAX_NS: f32 = 2.6e15;

/// Kernel, size class, and place of the agent or, for any, none.
type Cell = (u8, u8, Option<u16>);

#[derive(Debug, Default)]
pub(super) struct LearningAgent {
    model: HashMap<Cell, Cost>,
    memory: Memory,
    /// When to write down what is new; `None` when nothing is.
    keep_at: Option<Nanos>,
}

/// One cost in a snapshot.
#[derive(Debug, Serialize, Deserialize)]
struct KeptCost {
    kernel: String,
    class: u8,
    /// Place of the agent; `null`: any agent.
    slot: Option<u16>,
    mean_ns: f32,
    samples: u32,
}

impl KeptCost {
    /// Where it belongs, with little weight; `None` for what makes no sense here.
    fn check(&self) -> Option<(Cell, Cost)> {
        let kernel = KernelId::from_name(&self.kernel)?;
        let plausible = usize::from(self.class) < CLASSES && (0.0..MEAN_MAX_NS).contains(&self.mean_ns);
        let cost = Cost { mean_ns: self.mean_ns, samples: self.samples.min(DOUBTED) };
        (plausible && self.samples > 0).then_some(((kernel.code(), self.class, self.slot), cost))
    }
}

impl LearningAgent {
    fn learn(&mut self, experience: &Experience, context: &Context) {
        for slot in [Some(experience.slot), None] {
            let cost = self
                .model
                .entry((experience.kernel, experience.class, slot.map(|slot| slot.0)))
                .or_insert(Cost { mean_ns: 0.0, samples: 0 });
            let seen_ns = experience.service_ns as f32 / experience.tasks.max(1) as f32;
            let mean = Mean { ns: cost.mean_ns, samples: cost.samples }.after(experience.tasks, seen_ns);
            *cost = Cost { mean_ns: mean.ns, samples: mean.samples };
            context.board.publish_cost(experience.kernel, experience.class, slot, *cost);
        }
        self.keep_at.get_or_insert_with(|| clock::now().plus(KEEP_AFTER));
    }

    fn keep(&mut self, context: &mut Context) {
        if self.keep_at.take().is_none() {
            return;
        }
        let mut kept: Vec<KeptCost> = Vec::new();
        for (&(kernel, class, slot), cost) in &self.model {
            let Some(kernel) = KernelId::from_code(kernel) else { continue };
            let (kernel, mean_ns) = (kernel.name().to_owned(), cost.mean_ns);
            kept.push(KeptCost { kernel, class, slot, mean_ns, samples: cost.samples });
        }
        kept.sort_by(|a, b| (&a.kernel, a.class, a.slot).cmp(&(&b.kernel, b.class, b.slot)));
        self.memory.keep(&kept, context);
    }
}

impl Agent for LearningAgent {
    fn on_start(&mut self, context: &mut Context) -> anyhow::Result<()> {
        let kept: Option<(Vec<KeptCost>, _)> = self.memory.recall("cost-model", context);
        for ((kernel, class, slot), cost) in
            kept.iter().flat_map(|(kept, _)| kept).filter_map(KeptCost::check)
        {
            self.model.insert((kernel, class, slot), cost);
            context.board.publish_cost(kernel, class, slot.map(AgentSlot), cost);
        }
        Ok(())
    }

    fn do_work(&mut self, context: &mut Context) -> usize {
        if self.keep_at.is_none_or(|due| clock::now() < due) {
            return 0;
        }
        self.keep(context);
        1
    }

    fn next_due(&self) -> Option<Nanos> {
        self.keep_at
    }

    fn on_message(&mut self, message: &ToAgent<'_>, context: &mut Context) {
        match message {
            ToAgent::Experience(experience) => self.learn(experience, context),
            // Another life in this slot may sit on another core; what was learned of the last is a
            // fair start, so it stays on the board with little weight.
            ToAgent::Peer { slot, .. } => self.doubt(*slot, context),
            _ => {}
        }
    }

    fn on_close(&mut self, context: &mut Context) {
        self.keep(context);
        tracing::debug!(cells = self.model.len(), "cost model at the end");
    }
}

impl LearningAgent {
    fn doubt(&mut self, of: AgentSlot, context: &Context) {
        for (&(kernel, class, slot), cost) in &mut self.model {
            if slot == Some(of.0) && cost.samples > DOUBTED {
                cost.samples = DOUBTED;
                context.board.publish_cost(kernel, class, Some(of), *cost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_of_a_snapshot_is_not_believed() {
        let kept = |kernel: &str, class, mean_ns, samples| KeptCost {
            kernel: kernel.to_owned(),
            class,
            slot: Some(1),
            mean_ns,
            samples,
        };
        let (place, cost) = kept("sort", 20, 1e6, 1000).check().expect("a cost");
        assert_eq!(place, (KernelId::Sort.code(), 20, Some(1)));
        assert_eq!((cost.mean_ns, cost.samples), (1e6, DOUBTED));
        for wrong in [
            kept("sorted", 20, 1e6, 1000),
            kept("sort", 32, 1e6, 1000),
            kept("sort", 20, -1.0, 1000),
            kept("sort", 20, f32::NAN, 1000),
            kept("sort", 20, f32::INFINITY, 1000),
            kept("sort", 20, 1e6, 0),
        ] {
            assert!(wrong.check().is_none(), "{wrong:?}");
        }
    }
}
