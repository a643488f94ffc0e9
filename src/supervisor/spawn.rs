//! Starts one agent: fresh shared objects, the start message, the process.
//!
//! Which binary: the file that this supervisor runs from, by descriptor and not by path, so that agents always speak as
//! their supervisor does even when the file at the path was replaced. A rolling restart looks at the path again
//! ([`Nursery::look_for_upgrade`]): a new file there is what agents are started from then on, unless the first of them
//! does not get ready; then it is the old one again.

use super::standby::PAUSE;
use super::wire::GATEWAY_WORD;
use crate::agents::{AgentStart, Settings};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentKind, AgentSlot, Incarnation};
use crate::base::trouble;
use crate::messaging::attach::{SupervisorTalk, VERSION};
use crate::messaging::link::{Contact, HubObjects, LinkObjects, SupervisorLink};
use crate::messaging::store::Store;
use crate::os::affinity::CoreMask;
use crate::os::clock;
use crate::os::containment::{self, Containment};
use crate::os::process::ChildProcess;
use crate::os::socket;
use crate::os::spawn::{Birthplace, Order};
use crate::shm::SharedObject;
use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The word that makes the binary the guard of its agents.
pub const GUARD_WORD: &str = "__guard";

/// Whether this child of a supervisor is an agent or a standby: neither their guard nor a process that has not become
/// either yet. Told by its words, while it lives.
pub fn is_agent(pid: u32) -> bool {
    has_word(pid, crate::agents::runner::AGENT_WORD)
}

/// Whether this child of a supervisor is its gateway.
pub fn is_gateway(pid: u32) -> bool {
    has_word(pid, GATEWAY_WORD)
}

fn has_word(pid: u32, word: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|&byte| byte == 0).nth(1) == Some(word.as_bytes())
}

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
    pub(super) binary: Binary,
    /// All that the swarm may use.
    pub(super) cores: CoreMask,
    pub(super) supervisor_core: usize,
    /// What an agent's own children die by.
    pub(super) containment: Containment,
    pub(super) silence: OwnedFd,
    /// Made beforehand: the kernel clears its pages and maps them, more than half a millisecond that nobody has to wait for.
    pub(super) spare: Option<Line>,
    /// When the next is made, after the last one was taken.
    pub(super) spare_due: Nanos,
}

/// Device and number of a file.
pub(super) type FileId = (u64, u64);

/// What agents are started from.
pub(super) struct Binary {
    /// Where we were started from; the place where an upgrade appears.
    path: PathBuf,
    /// What agents are started from now.
    file: FileId,
    /// The upgrade, kept open; `None`: our own file.
    upgrade: Option<File>,
    /// No agent of the upgrade has been ready yet; what to go back to.
    trial: Option<(FileId, Option<File>)>,
}

impl Binary {
    pub(super) fn our_own() -> io::Result<Self> {
        let own = fs::metadata("/proc/self/exe")?;
        let path = std::env::current_exe()?;
        Ok(Self { path, file: (own.dev(), own.ino()), upgrade: None, trial: None })
    }

    /// Whether the file at the path is another one by now; then it is what agents are started from.
    pub(super) fn look_for_upgrade(&mut self) -> io::Result<bool> {
        let file = File::open(&self.path)?;
        let found = file.metadata()?;
        let found = (found.dev(), found.ino());
        if found == self.file {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.file, found);
        let upgrade = self.upgrade.replace(file);
        // What worked last, also when one that was never proved is replaced by the next.
        self.trial.get_or_insert((before, upgrade));
        Ok(true)
    }

    /// A process of this file is ready. True when that ends a trial.
    pub(super) fn prove(&mut self, file: FileId) -> bool {
        file == self.file && self.trial.take().is_some()
    }

    /// A process of this file did not get ready: back to what worked, if this file never did.
    pub(super) fn reject(&mut self, file: FileId) -> bool {
        let Some((before, upgrade)) = self.trial.take_if(|_| file == self.file) else { return false };
        (self.file, self.upgrade) = (before, upgrade);
        true
    }

    /// What agents are started from now.
    pub(super) fn file(&self) -> FileId {
        self.file
    }

    fn program(&self) -> PathBuf {
        match &self.upgrade {
            None => "/proc/self/exe".into(),
            Some(file) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        }
    }
}

/// A process that was started, and what leads to it.
pub(super) struct Started {
    pub(super) child: ChildProcess,
    pub(super) link: SupervisorLink,
    pub(super) talk: SupervisorTalk,
    pub(super) contact: Contact,
    /// Names this life of it.
    pub(super) owner: u64,
    /// What it was started from.
    pub(super) file: FileId,
}

/// What leads to a process that is still to be started.
pub(super) struct Line {
    objects: LinkObjects,
    link: SupervisorLink,
    contact: Contact,
}

impl Line {
    /// Of nobody yet: whose it becomes is the reader of `store`.
    fn create(channel_bytes: usize, arena_bytes: usize, store: Store) -> io::Result<Self> {
        trouble::check("spawn.step")?;
        let objects = LinkObjects::create(channel_bytes, arena_bytes)?;
        trouble::check("spawn.step")?;
        let link = objects.supervisor_link(store, u16::MAX)?;
        trouble::check("spawn.step")?;
        let contact = objects.contact()?;
        Ok(Self { objects, link, contact })
    }
}

/// Who is to be started.
pub(super) struct Newborn<'a> {
    pub(super) kind: AgentKind,
    pub(super) id: &'a str,
    pub(super) slot: AgentSlot,
    pub(super) incarnation: Incarnation,
    /// Where it is pinned; `None` for a standby, which has no place yet.
    pub(super) core: Option<usize>,
    pub(super) core_shared: bool,
}

impl Nursery {
    /// Makes what the next process will need, if it is not there yet and nobody starts. When that is not possible, the start
    /// says so.
    pub(super) fn prepare(&mut self, now: Nanos, store: &Store) {
        if self.spare.is_none() && self.spare_due <= now {
            self.spare_due = now.plus(PAUSE);
            self.spare = Line::create(self.channel_bytes, self.arena_bytes, store.clone()).ok();
        }
    }

    /// Starts the process. It is not ready yet: it says so itself.
    pub(super) fn spawn(
        &mut self,
        newborn: &Newborn<'_>,
        store: Store,
        hub_arena: &SharedObject,
    ) -> io::Result<Started> {
        trouble::check("spawn")?;
        let Line { objects, mut link, contact } = match self.spare.take() {
            Some(line) => {
                self.spare_due = clock::now().plus(PAUSE);
                line
            }
            None => Line::create(self.channel_bytes, self.arena_bytes, store)?,
        };
        link.set_reader(newborn.slot.0);
        link.set_shared_core(newborn.core_shared);
        trouble::check("spawn.step")?;
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
            core: newborn.core,
            standby: newborn.core.is_none(),
            version: VERSION,
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
        trouble::check("spawn.step")?;
        let mut message =
            std::fs::File::from(rustix::fs::memfd_create("ai_swarm-start", rustix::fs::MemfdFlags::CLOEXEC)?);
        message.write_all(&serde_json::to_vec(&start)?)?;
        message.rewind()?;
        inherit.push(message.as_fd());
        let number = message.as_raw_fd().to_string();
        // The agent reads the number only; the names are for `ps`.
        let arguments = [crate::agents::runner::AGENT_WORD, newborn.id, &number, &self.swarm];
        let life = format!("{}={}", containment::VARIABLE, life_name(&self.token, owner));
        trouble::check("spawn.step")?;
        let child = self.containment.spawn(Order {
            program: &self.binary.program(),
            arguments: &arguments,
            variable: Some(life),
            inherit: &inherit,
            silence: self.silence.as_fd(),
            stderr: self.log.as_fd(),
            birthplace: Birthplace::Here,
            cores: Some(self.first_cores(newborn)),
        })?;
        Ok(Started { child, link, talk: SupervisorTalk::new(here), contact, owner, file: self.binary.file })
    }

    /// Where a process begins. On its own core, so that its memory lies there too; one that will share ours, or has no core yet,
    /// where there is room: we have work of our own while it starts.
    fn first_cores(&self, newborn: &Newborn<'_>) -> CoreMask {
        match newborn.core {
            Some(core) if core != self.supervisor_core => CoreMask::of([core]),
            _ => self.cores,
        }
    }

    /// The guard is gone, and everybody with it: another one.
    pub(super) fn renew_guard(&mut self) {
        self.containment.renew(&guard_order(&self.swarm, self.silence.as_fd()));
    }

    /// Agents are gone; what they started goes too, and nothing is started any more.
    pub(super) fn end_left_behind(&mut self) {
        let token = &self.token;
        self.containment
            .end(|life| life.strip_prefix(token.as_str()).is_some_and(|rest| rest.starts_with('.')));
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

/// How a life is named in the environment of its process and of all that this one starts.
pub(super) fn life_name(token: &str, owner: u64) -> String {
    format!("{token}.{owner:x}")
}

/// The means by which agents' children die, for a fresh swarm.
pub(super) fn contain(swarm: &str, silence: BorrowedFd<'_>) -> Containment {
    Containment::begin(&guard_order(swarm, silence))
}

fn guard_order<'a>(swarm: &'a str, silence: BorrowedFd<'a>) -> containment::GuardOrder<'a> {
    containment::GuardOrder { program: Path::new("/proc/self/exe"), arguments: [GUARD_WORD, swarm], silence }
}
