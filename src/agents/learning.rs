//! The learning agent: what tasks cost, per kernel, size class and agent, from every finished task.
//!
//! It reads experience, keeps smoothed means and publishes each at once; the dispatcher reads them
//! when it places the next task. A mean moves fast while it rests on little (1/n) and then forgets
//! with a half-life of about 14 tasks, so that it follows an agent that became slow.

use super::{Agent, Context};
use crate::base::ids::AgentSlot;
use crate::messaging::ToAgent;
use crate::messaging::envelope::Experience;
use crate::shm::board::Cost;
use std::collections::HashMap;

/// Weight of the newest task once a mean rests on enough of them.
const FORGET: f32 = 0.05;
/// One task counts at most for so many times the mean: a page fault storm is no new normal.
const OUTLIER: f32 = 8.0;

#[derive(Debug, Default)]
pub(super) struct LearningAgent {
    model: HashMap<(u8, u8, Option<u16>), Cost>,
}

impl LearningAgent {
    fn learn(&mut self, experience: &Experience, context: &Context) {
        for slot in [Some(experience.slot), None] {
            let cost = self
                .model
                .entry((experience.kernel, experience.class, slot.map(|slot| slot.0)))
                .or_insert(Cost { mean_ns: 0.0, samples: 0 });
            *cost = update(
                *cost,
                experience.tasks,
                experience.service_ns as f32 / experience.tasks.max(1) as f32,
            );
            context.board.publish_cost(experience.kernel, experience.class, slot, *cost);
        }
    }
}

/// The mean after `tasks` more observations whose mean is `seen_ns`.
fn update(cost: Cost, tasks: u32, seen_ns: f32) -> Cost {
    let samples = cost.samples.saturating_add(tasks);
    let forgotten = 1.0 - (1.0 - FORGET).powi(tasks.min(1000) as i32);
    let weight = (tasks as f32 / samples.max(1) as f32).max(forgotten);
    let seen = if cost.samples >= 3 { seen_ns.min(cost.mean_ns * OUTLIER + 1000.0) } else { seen_ns };
    Cost { mean_ns: cost.mean_ns + weight * (seen - cost.mean_ns), samples }
}

impl Agent for LearningAgent {
    fn on_message(&mut self, message: &ToAgent<'_>, context: &mut Context) {
        match message {
            ToAgent::Experience(experience) => self.learn(experience, context),
            // Another life in this slot may sit on another core; what was learned of the last is a
            // fair start, so it stays on the board with little weight.
            ToAgent::Peer { slot, .. } => self.doubt(*slot, context),
            _ => {}
        }
    }

    fn on_close(&mut self, _context: &mut Context) {
        tracing::debug!(cells = self.model.len(), "cost model at the end");
    }
}

impl LearningAgent {
    fn doubt(&mut self, of: AgentSlot, context: &Context) {
        for (&(kernel, class, slot), cost) in &mut self.model {
            if slot == Some(of.0) && cost.samples > 4 {
                cost.samples = 4;
                context.board.publish_cost(kernel, class, Some(of), *cost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_settle_follow_a_shift_and_shrug_off_one_outlier() {
        let mut cost = Cost { mean_ns: 0.0, samples: 0 };
        for _ in 0..50 {
            cost = update(cost, 1, 1000.0);
        }
        assert!((cost.mean_ns - 1000.0).abs() < 1.0);
        let spike = update(cost, 1, 1e9);
        assert!(spike.mean_ns < 1600.0, "{}", spike.mean_ns);
        for _ in 0..100 {
            cost = update(cost, 1, 3000.0);
        }
        assert!((cost.mean_ns - 3000.0).abs() < 30.0, "{}", cost.mean_ns);
        let many = update(cost, 100, 6000.0);
        assert!((many.mean_ns - 6000.0).abs() < 60.0, "a batch counts as its tasks: {}", many.mean_ns);
    }
}
