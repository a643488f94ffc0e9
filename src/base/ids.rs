//! Identities as types of their own, so that no two of them can be confused.

use std::fmt;

/// The six kinds of agent that ship with the swarm. The code is what travels between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum AgentKind {
    /// Runs kernels on arrays.
    Compute = 1,
    /// Samples processors, memory, pressure and disks.
    Resource = 2,
    /// Times kernel variants when the host is idle.
    Optimization = 3,
    /// Reads temperatures and caps concurrency.
    Thermal = 4,
    /// Watches the other agents and asks for restarts.
    Fault = 5,
    /// Learns what tasks cost and publishes it for placement.
    Learning = 6,
}

impl AgentKind {
    /// Every kind, in the order in which they are started.
    pub const ALL: [AgentKind; 6] = [
        AgentKind::Compute,
        AgentKind::Learning,
        AgentKind::Fault,
        AgentKind::Resource,
        AgentKind::Thermal,
        AgentKind::Optimization,
    ];

    /// The word used in the configuration, the API and the reports.
    pub fn name(self) -> &'static str {
        match self {
            AgentKind::Compute => "compute",
            AgentKind::Resource => "resource",
            AgentKind::Optimization => "optimization",
            AgentKind::Thermal => "thermal",
            AgentKind::Fault => "fault",
            AgentKind::Learning => "learning",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind with this code; anything else is somebody's nonsense.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

impl fmt::Display for AgentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A place on the roster and on the board; an agent keeps its slot through all its incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentSlot(pub u16);

impl AgentSlot {
    /// The slot as an index into tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Counts the lives of one agent, from 1. Whatever carries an older number is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Incarnation(pub u32);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A task of this swarm. The top 16 bits name the node (0 on a single host), the rest counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u64);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// Counts the dispatches of one task, from 1. A result is accepted for the current attempt only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Attempt(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_come_back_from_their_names_and_codes() {
        for kind in AgentKind::ALL {
            assert_eq!(AgentKind::from_name(kind.name()), Some(kind));
            assert_eq!(AgentKind::from_code(kind as u8), Some(kind));
        }
        assert_eq!(AgentKind::from_code(0), None);
        assert_eq!(AgentKind::from_name("Compute"), None);
    }
}
