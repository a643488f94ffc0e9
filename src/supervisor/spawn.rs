//! Starts one agent: fresh shared objects, the start message, the process.

use crate::agents::{AgentStart, Settings};
use crate::base::ids::{AgentKind, AgentSlot, Incarnation};
use crate::messaging::link::{LinkObjects, SupervisorLink};
use crate::os::process::{self, ChildProcess};
use crate::shm::SharedObject;
use std::ffi::OsStr;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::Stdio;

/// What all agents of a swarm have in common.
pub(super) struct Nursery {
    pub(super) channel_bytes: usize,
    pub(super) hub: SharedObject,
    pub(super) hub_event: OwnedFd,
    pub(super) board: String,
    pub(super) board_slots: usize,
    pub(super) log_filter: String,
    pub(super) log_json: bool,
    /// Where the agents' log lines go.
    pub(super) log: OwnedFd,
    pub(super) settings: Settings,
    pub(super) token: String,
}

/// Who is to be started.
pub(super) struct Newborn<'a> {
    pub(super) kind: AgentKind,
    pub(super) id: &'a str,
    pub(super) slot: AgentSlot,
    pub(super) incarnation: Incarnation,
    pub(super) core: usize,
    pub(super) core_shared: bool,
}

impl Nursery {
    /// Starts the process. It is not ready yet: it says so itself.
    pub(super) fn spawn(&self, newborn: &Newborn<'_>) -> io::Result<(ChildProcess, SupervisorLink)> {
        let objects = LinkObjects::create(self.channel_bytes)?;
        let link = objects.supervisor_link()?;
        link.set_shared_core(newborn.core_shared);
        let (descriptors, mut inherit) = objects.descriptors(&self.hub, self.hub_event.as_fd());
        let start = AgentStart {
            kind: newborn.kind as u8,
            id: newborn.id.to_owned(),
            slot: newborn.slot.0,
            incarnation: newborn.incarnation.0,
            core: Some(newborn.core),
            link: descriptors,
            board: self.board.clone(),
            board_slots: self.board_slots,
            log_filter: self.log_filter.clone(),
            log_json: self.log_json,
            settings: self.settings.clone(),
            token: self.token.clone(),
        };
        let mut message =
            std::fs::File::from(rustix::fs::memfd_create("ai_swarm-start", rustix::fs::MemfdFlags::CLOEXEC)?);
        message.write_all(&serde_json::to_vec(&start)?)?;
        message.rewind()?;
        inherit.push(message.as_fd());
        let number = message.as_raw_fd().to_string();
        let arguments = [crate::agents::runner::AGENT_WORD, newborn.id, &number];
        let child = process::spawn(
            OsStr::new("/proc/self/exe"),
            &arguments,
            &inherit,
            Stdio::from(self.log.try_clone()?),
        )?;
        Ok((child, link))
    }

    pub(super) fn hub_event(&self) -> BorrowedFd<'_> {
        self.hub_event.as_fd()
    }
}
