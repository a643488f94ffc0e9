//! What an agent is, and the six that ship with the swarm.
//!
//! The supervisor re-executes its own binary for each agent. `runner` is that process's main: it maps
//! what it was handed, pins itself, and turns the duty cycle of one [`Agent`] until told to stop.
//!
//! Invariants
//! 1. An agent talks to nobody but the supervisor and the board.
//! 2. Every turn and every pulse of a kernel grows the agent's beat; an agent that stops beating is replaced.
//! 3. When the supervisor is gone, so is the agent.

mod compute;
mod context;
mod fault;
mod learning;
pub(crate) mod optimization;
mod resource;
pub mod runner;
mod snapshot;
mod thermal;

pub use context::{AgentStart, Context, Settings};

use crate::base::clock::Nanos;
use crate::base::ids::AgentKind;
use crate::messaging::ToAgent;
use crate::messaging::port::Mail;

/// The duty cycle of an agent. All calls come from one thread, one at a time.
pub trait Agent {
    /// Once, mapped and pinned, before the first message. An error ends the process; the supervisor
    /// logs its words and tries again with a pause.
    fn on_start(&mut self, _context: &mut Context) -> anyhow::Result<()> {
        Ok(())
    }

    /// A message of the supervisor.
    fn on_message(&mut self, message: &ToAgent<'_>, context: &mut Context);

    /// A message or a topic of another member.
    fn on_mail(&mut self, mail: &Mail, _context: &mut Context) {
        tracing::debug!(bytes = mail.len(), "a message that nobody here waits for");
    }

    /// A request of another member; what is returned is the reply. `status` is answered with what the agent
    /// says of itself, everything else with itself.
    fn on_request(&mut self, mail: &Mail, context: &mut Context) -> Vec<u8> {
        match mail.payload() {
            b"status" => context.describe().to_string().into_bytes(),
            _ => mail.to_vec(),
        }
    }

    /// Whatever is due by itself. Returns how much was done; 0 lets the agent rest.
    fn do_work(&mut self, _context: &mut Context) -> usize {
        0
    }

    /// When [`do_work`](Self::do_work) wants to be called at the latest, if not because of a message.
    fn next_due(&self) -> Option<Nanos> {
        None
    }

    /// Nothing came for a quarter of a second or longer: the time to give back what was only kept for speed.
    fn on_rest(&mut self) {}

    /// A cycle of self-improvement, asked for by a person.
    fn optimize(&mut self, _context: &mut Context) {}

    /// Once, at an orderly end.
    fn on_close(&mut self, _context: &mut Context) {}
}

/// The agent of this kind.
fn agent(kind: AgentKind, settings: &Settings) -> Box<dyn Agent> {
    match kind {
        AgentKind::Compute => Box::new(compute::ComputeAgent::default()),
        AgentKind::Resource => Box::new(resource::ResourceAgent::new(settings)),
        AgentKind::Optimization => Box::new(optimization::OptimizationAgent::new(settings)),
        AgentKind::Thermal => Box::new(thermal::ThermalAgent::new(settings)),
        AgentKind::Fault => Box::new(fault::FaultAgent::new(settings)),
        AgentKind::Learning => Box::new(learning::LearningAgent::default()),
    }
}
