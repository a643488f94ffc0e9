//! Starts one agent: fresh shared objects, the start message, the process.

use crate::agents::{AgentStart, Settings};
use crate::base::ids::{AgentKind, AgentSlot, Incarnation};
use crate::messaging::attach::SupervisorTalk;
use crate::messaging::link::{Contact, HubObjects, LinkObjects, SupervisorLink};
use crate::messaging::store::Store;
use crate::os::process::{self, ChildProcess};
use crate::os::socket;
use crate::shm::SharedObject;
use std::ffi::OsStr;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::Stdio;

/// What all agents of a swarm have in common.
pub(super) struct Nursery {
    /// The swarm's name, for people who list processes.
    pub(super) swarm: String,
    pub(super) channel_bytes: usize,
    pub(super) arena_bytes: usize,
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

/// A process that was started, and what leads to it.
pub(super) struct Started {
    pub(super) child: ChildProcess,
    pub(super) link: SupervisorLink,
    pub(super) talk: SupervisorTalk,
    pub(super) contact: Contact,
    /// Names this life of it.
    pub(super) owner: u64,
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
    pub(super) fn spawn(
        &self,
        newborn: &Newborn<'_>,
        store: Store,
        hub_arena: &SharedObject,
    ) -> io::Result<Started> {
        let objects = LinkObjects::create(self.channel_bytes, self.arena_bytes)?;
        let link = objects.supervisor_link(store, newborn.slot.0)?;
        let contact = objects.contact()?;
        link.set_shared_core(newborn.core_shared);
        let (here, there) = socket::pair()?;
        let owner = u64::from(newborn.slot.0) << 32 | u64::from(newborn.incarnation.0);
        let hub = self.hub_objects(hub_arena, self.hub_event.as_fd());
        let (descriptors, mut inherit) = objects.descriptors(&hub);
        inherit.push(there.as_fd());
        let start = AgentStart {
            kind: newborn.kind as u8,
            id: newborn.id.to_owned(),
            slot: newborn.slot.0,
            incarnation: newborn.incarnation.0,
            core: Some(newborn.core),
            link: descriptors,
            socket: there.as_raw_fd(),
            owner,
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
        // The agent reads the number only; the names are for `ps`.
        let arguments = [crate::agents::runner::AGENT_WORD, newborn.id, &number, &self.swarm];
        let child = process::spawn(
            OsStr::new("/proc/self/exe"),
            &arguments,
            &inherit,
            Stdio::from(self.log.try_clone()?),
        )?;
        Ok(Started { child, link, talk: SupervisorTalk::new(here), contact, owner })
    }

    pub(super) fn hub_objects<'a>(
        &'a self,
        arena: &'a SharedObject,
        event: BorrowedFd<'a>,
    ) -> HubObjects<'a> {
        HubObjects { page: &self.hub, event, arena }
    }

    pub(super) fn hub_event(&self) -> BorrowedFd<'_> {
        self.hub_event.as_fd()
    }
}
