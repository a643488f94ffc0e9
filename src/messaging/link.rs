//! Both directions between the supervisor and one member: one life of an agent, or a client.
//!
//! The supervisor makes the objects ([`LinkObjects::create`]), keeps its ends ([`SupervisorLink`])
//! and hands the descriptors to the other side, which maps its ends ([`AgentLink`]).

use super::envelope::Encode;
use super::lanes::{ChannelMemory, Lane, LaneReceiver, LaneSender};
use super::meters::{DropReason, LANES, LaneCount, Latencies, Meter};
use super::store::{Shelf, Store, read_usage};
use super::wire::{ReceiveError, SendError, Wire};
use crate::base::ids::{Attempt, TaskId};
use crate::base::sync::{AtomicU32, Ordering, fence};
use crate::os::process::inherited;
use crate::os::robust;
use crate::shm::arena::ArenaUsage;
use crate::shm::doorbell::{AgentBell, AgentSleeper, HubBell};
use crate::shm::pages;
use crate::shm::ring::Message;
use crate::shm::{Access, SharedObject, Words};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// The numbers under which a child finds what it inherits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LinkNumbers {
    fds: [RawFd; LINK_FDS],
    channel_bytes: usize,
    arena_bytes: usize,
    hub_arena_bytes: usize,
}

/// Descriptors of a link, in the order of [`LinkObjects::descriptors`].
const LINK_FDS: usize = 9;

/// What a process that holds a link was handed.
#[derive(Debug)]
pub struct LinkParts {
    own: LinkObjects,
    hub: SharedObject,
    hub_arena: SharedObject,
    hub_event: OwnedFd,
}

impl LinkNumbers {
    /// Takes over what was inherited. Once, right after the start.
    pub fn inherited(&self) -> io::Result<LinkParts> {
        let mut fds = Vec::with_capacity(LINK_FDS);
        for number in self.fds {
            fds.push(inherited(number)?);
        }
        self.received(fds)
    }

    /// Takes over what came over a socket, in the order in which it was sent.
    pub fn received(&self, fds: Vec<OwnedFd>) -> io::Result<LinkParts> {
        let count = fds.len();
        let fds: [OwnedFd; LINK_FDS] = fds.try_into().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{count} descriptors where {LINK_FDS} make a link"),
            )
        })?;
        let [down, up, sup_page, desk, bell, arena, hub, hub_arena, hub_event] = fds;
        Ok(LinkParts {
            own: LinkObjects {
                down: SharedObject::adopt(down, self.channel_bytes)?,
                up: SharedObject::adopt(up, self.channel_bytes)?,
                sup_page: SharedObject::adopt(sup_page, pages::PAGE_BYTES)?,
                desk: SharedObject::adopt(desk, pages::DESK_BYTES)?,
                bell: SharedObject::adopt(bell, pages::PAGE_BYTES)?,
                arena: SharedObject::adopt(arena, self.arena_bytes)?,
            },
            hub: SharedObject::adopt(hub, pages::PAGE_BYTES)?,
            hub_arena: SharedObject::adopt(hub_arena, self.hub_arena_bytes)?,
            hub_event,
        })
    }
}

/// What everybody needs to talk to the supervisor.
#[derive(Clone, Copy, Debug)]
pub struct HubObjects<'a> {
    /// The page with its asleep flag.
    pub page: &'a SharedObject,
    /// What wakes it.
    pub event: BorrowedFd<'a>,
    /// Its large payloads.
    pub arena: &'a SharedObject,
}

/// The shared objects of one link: all of them before they are divided, and the other side's descriptors afterwards.
#[derive(Debug)]
pub struct LinkObjects {
    down: SharedObject,
    up: SharedObject,
    sup_page: SharedObject,
    desk: SharedObject,
    bell: SharedObject,
    arena: SharedObject,
}

impl LinkObjects {
    /// Fresh objects: two channels of `channel_bytes` bytes, the small ones, and an arena of up to
    /// `arena_bytes` bytes, of which none is taken yet.
    pub fn create(channel_bytes: usize, arena_bytes: usize) -> io::Result<Self> {
        let bell = SharedObject::create("ai_swarm-bell", pages::PAGE_BYTES)?;
        bell.seal_seals()?;
        Ok(Self {
            down: SharedObject::create("ai_swarm-down", channel_bytes)?,
            up: SharedObject::create("ai_swarm-up", channel_bytes)?,
            sup_page: SharedObject::create("ai_swarm-sup", pages::PAGE_BYTES)?,
            desk: SharedObject::create("ai_swarm-desk", pages::DESK_BYTES)?,
            bell,
            arena: SharedObject::create_sparse("ai_swarm-arena", arena_bytes)?,
        })
    }

    /// Maps the supervisor's ends and seals what it writes. `store` holds its large payloads, in which this
    /// member is reader number `reader`.
    pub fn supervisor_link(&self, store: Store, reader: u16) -> io::Result<SupervisorLink> {
        let down = self.down.map(Access::Write)?;
        // Where the host gives huge pages to shared memory and the channel is large enough; else nothing changes.
        let _ = down.advise_huge();
        let sup_page = self.sup_page.map(Access::Write)?;
        self.down.seal_writes()?;
        self.sup_page.seal_writes()?;
        let (up, desk) = (self.up.map(Access::Read)?, self.desk.map(Access::Read)?);
        let bell = self.bell.map(Access::Write)?;
        let down =
            ChannelMemory { slots: down, first_slot: 0, heads: desk.clone(), first_head: pages::HEADS };
        let inbox = ChannelMemory {
            slots: up.clone(),
            first_slot: 0,
            heads: sup_page.clone(),
            first_head: pages::HEADS,
        };
        Ok(SupervisorLink {
            up,
            wire: Wire::new(
                LaneSender::new(&down, Meter::private_sender()),
                LaneReceiver::new(&inbox, Meter::private_receiver()),
                store,
                reader,
                Shelf::new(self.arena.duplicate()?),
            ),
            bell: AgentBell::new((desk.clone(), pages::DESK_ASLEEP), (bell, pages::BELL)),
            far_sent: Meter::sender(desk.clone(), pages::DESK_SENT),
            far_received: Meter::receiver(desk.clone(), pages::DESK_RECEIVED),
            sup_page,
            desk,
        })
    }

    /// What the other side must get, and under which numbers a child that inherits it finds it.
    pub fn descriptors<'a>(&'a self, hub: &HubObjects<'a>) -> (LinkNumbers, Vec<BorrowedFd<'a>>) {
        let fds: [BorrowedFd<'a>; LINK_FDS] = [
            self.down.as_fd(),
            self.up.as_fd(),
            self.sup_page.as_fd(),
            self.desk.as_fd(),
            self.bell.as_fd(),
            self.arena.as_fd(),
            hub.page.as_fd(),
            hub.arena.as_fd(),
            hub.event,
        ];
        let numbers = LinkNumbers {
            fds: fds.map(|fd| fd.as_raw_fd()),
            channel_bytes: self.down.bytes(),
            arena_bytes: self.arena.bytes(),
            hub_arena_bytes: hub.arena.bytes(),
        };
        (numbers, fds.to_vec())
    }

    /// What peers of this member need: its desk, its bell, its arena. Read-only but for the bell.
    pub fn contact(&self) -> io::Result<Contact> {
        Ok(Contact {
            desk: self.desk.read_only()?,
            bell: self.bell.duplicate()?,
            arena: self.arena.read_only()?,
        })
    }
}

/// What peers of a member need to talk to it.
#[derive(Debug)]
pub struct Contact {
    /// Says whether it sleeps; read-only.
    pub desk: SharedObject,
    /// Wakes it; writable for everybody, a hint only.
    pub bell: SharedObject,
    /// Its large payloads; read-only.
    pub arena: SharedObject,
}

/// The supervisor's ends.
#[derive(Debug)]
pub struct SupervisorLink {
    wire: Wire,
    up: Arc<Words>,
    bell: AgentBell,
    far_sent: Meter,
    far_received: Meter,
    sup_page: Arc<Words>,
    desk: Arc<Words>,
}

impl SupervisorLink {
    /// Writes a message; the other side hears of it at [`ring`](Self::ring).
    #[inline]
    pub fn send<M: Encode>(&mut self, lane: Lane, message: &M) -> Result<(), SendError> {
        self.wire.send(lane, message)
    }

    /// Gives blocks back that were read, and wakes the other side if it sleeps. Once per turn.
    pub fn ring(&mut self) -> bool {
        // A corrupt channel is found by whoever reads or writes next.
        let _ = self.wire.give_back();
        self.bell.ring()
    }

    /// The next message of the other side.
    #[inline]
    pub fn receive(&mut self, message: &mut Message) -> Result<bool, ReceiveError> {
        Ok(self.wire.receive(message)?.is_some())
    }

    /// Whether a message waits.
    pub fn is_ready(&self) -> bool {
        self.wire.inbox.is_ready()
    }

    /// Whether blocks wait to be given back.
    pub fn owes_blocks(&self) -> bool {
        !self.wire.returns.is_empty()
    }

    /// The slots that the other side writes, for whoever looks into what it wrote.
    pub fn far_slots(&self) -> Arc<Words> {
        self.up.clone()
    }

    /// Tells the agent to give `task` up if it runs right now. Send [`ToAgent::Cancel`](super::ToAgent::Cancel)
    /// first: that covers the case that it has not begun.
    pub fn cancel_running(&self, task: TaskId, attempt: Attempt) {
        fence(Ordering::SeqCst);
        if self.running() == Some(task) {
            self.sup_page.word(pages::SUP_CANCEL).store(cancel_word(task, attempt), Ordering::Release);
        }
    }

    /// Forbids the agent to let the output of this attempt appear, whether it has begun or not. False when it is at it:
    /// then its answer is the one to wait for. Send [`ToAgent::Cancel`](super::ToAgent::Cancel) first.
    pub fn forbid(&self, task: TaskId, attempt: Attempt) -> bool {
        self.sup_page.word(pages::SUP_CANCEL).store(cancel_word(task, attempt), Ordering::Release);
        // Pairs with the fence in `announce_commit`: it sees the order, or we see its commit.
        fence(Ordering::SeqCst);
        !self.is_committing(task, attempt)
    }

    /// Whether the agent says that the output of this attempt appears right now.
    pub fn is_committing(&self, task: TaskId, attempt: Attempt) -> bool {
        self.desk.word(pages::DESK_COMMIT).load(Ordering::Acquire) == cancel_word(task, attempt)
    }

    /// Says whether the member has its core for itself.
    pub fn set_shared_core(&self, shared: bool) {
        self.sup_page.word(pages::SUP_SHARED_CORE).store(u64::from(shared), Ordering::Relaxed);
    }

    /// The agent's beat; it grows while the agent makes progress.
    pub fn beat(&self) -> u64 {
        self.desk.word(pages::DESK_BEAT).load(Ordering::Relaxed)
    }

    /// Whether the word that the agent holds says that its holder is dead: early, and a hint.
    pub fn is_abandoned(&self) -> bool {
        robust::is_abandoned(self.desk.word(pages::DESK_LIFE).load(Ordering::Acquire) as u32)
    }

    /// Where that word lies.
    pub fn life(&self) -> LifeWord {
        LifeWord(self.desk.clone())
    }

    /// From here on the other side is this reader of the supervisor's large payloads. Before any was sent.
    pub fn set_reader(&mut self, reader: u16) {
        self.wire.reader = reader;
    }

    /// The task that the agent says it runs. Advice: only the ledger knows.
    pub fn running(&self) -> Option<TaskId> {
        match self.desk.word(pages::DESK_TASK).load(Ordering::Relaxed) {
            0 => None,
            id => Some(TaskId(id)),
        }
    }

    /// The other side's arena, as it last said, once it has any memory.
    pub fn arena_usage(&self) -> Option<ArenaUsage> {
        read_usage(&self.desk, pages::DESK_ARENA).filter(|usage| usage.committed > 0)
    }

    /// Numbers of both channels, ours exact, the other side's as it last published them.
    pub fn traffic(&self) -> LinkTraffic {
        LinkTraffic {
            down: ChannelTraffic {
                sent: self.wire.outbox.counts(),
                received: Lane::ALL.map(|lane| self.far_received.read(lane as usize)),
                depths: self.wire.outbox.depths(),
                latencies: Lane::ALL.map(|lane| self.far_received.latencies(lane as usize)),
            },
            up: ChannelTraffic {
                sent: Lane::ALL.map(|lane| self.far_sent.read(lane as usize)),
                received: self.wire.inbox.counts(),
                depths: [0; LANES],
                latencies: self.wire.inbox.latencies(),
            },
        }
    }
}

/// The word that an agent holds as long as it lives; see [`robust`].
#[derive(Clone, Debug)]
pub struct LifeWord(Arc<Words>);

impl LifeWord {
    /// The word on this desk, whoever else has it.
    #[cfg(test)]
    pub(crate) fn on(desk: Arc<Words>) -> Self {
        Self(desk)
    }

    /// What it holds, to wait for a change of it; `None` when nobody holds it.
    pub fn held(&self) -> Option<(&AtomicU32, u32)> {
        let word = self.0.word(pages::DESK_LIFE).load(Ordering::Acquire) as u32;
        (word != 0 && !robust::is_abandoned(word)).then(|| (self.0.half(pages::DESK_LIFE), word))
    }
}

/// Numbers of one directed channel.
#[derive(Clone, Debug, Default)]
pub struct ChannelTraffic {
    /// As the sending end counts.
    pub sent: [LaneCount; LANES],
    /// As the receiving end counts.
    pub received: [LaneCount; LANES],
    /// Slots on their way.
    pub depths: [u64; LANES],
    /// From sending to receiving.
    pub latencies: [Latencies; LANES],
}

impl ChannelTraffic {
    /// Adds a channel that is closed: what was sent and neither received nor given up is lost with it.
    pub fn add_closed(&mut self, closed: &ChannelTraffic) {
        for lane in 0..LANES {
            let (mut sent, received) = (closed.sent[lane], &closed.received[lane]);
            let arrived = received.messages.saturating_add(received.dropped.after_sending());
            let lost = sent.messages.saturating_sub(arrived.saturating_add(sent.dropped.after_sending()));
            sent.dropped.count(DropReason::Gone, lost);
            self.sent[lane].add(&sent);
            self.received[lane].add(received);
            self.latencies[lane].add(&closed.latencies[lane]);
        }
    }

    /// Adds what was added up elsewhere.
    pub fn add(&mut self, other: &ChannelTraffic) {
        for lane in 0..LANES {
            self.sent[lane].add(&other.sent[lane]);
            self.received[lane].add(&other.received[lane]);
            self.latencies[lane].add(&other.latencies[lane]);
        }
    }
}

/// Numbers of both directions of a link.
#[derive(Clone, Debug, Default)]
pub struct LinkTraffic {
    /// From the supervisor.
    pub down: ChannelTraffic,
    /// To the supervisor.
    pub up: ChannelTraffic,
}

/// The other side's ends: an agent's or a client's.
#[derive(Debug)]
pub struct AgentLink {
    wire: Wire,
    sleeper: AgentSleeper,
    hub_bell: HubBell,
    sup_page: Arc<Words>,
    desk: Arc<Words>,
    bell: Arc<Words>,
}

/// Number of the supervisor among the readers of a member's arena.
pub const SUPERVISOR_READER: u16 = 1023;

impl AgentLink {
    /// Maps what was handed over and seals what this side writes. `owner` names this life of this process.
    pub fn adopt(parts: LinkParts, owner: u64) -> io::Result<Self> {
        let own = parts.own;
        let (up, desk) = (own.up.map(Access::Write)?, own.desk.map(Access::Write)?);
        let _ = up.advise_huge();
        own.up.seal_writes()?;
        own.desk.seal_writes()?;
        let down = own.down.map(Access::Read)?;
        let sup_page = own.sup_page.map(Access::Read)?;
        let hub = parts.hub.map(Access::Read)?;
        let bell = own.bell.map(Access::Write)?;
        let store = Store::new(own.arena, owner).shown_in(desk.clone(), pages::DESK_ARENA);
        store.claim()?;
        let up =
            ChannelMemory { slots: up, first_slot: 0, heads: sup_page.clone(), first_head: pages::HEADS };
        let down =
            ChannelMemory { slots: down, first_slot: 0, heads: desk.clone(), first_head: pages::HEADS };
        Ok(Self {
            wire: Wire::new(
                LaneSender::new(&up, Meter::sender(desk.clone(), pages::DESK_SENT)),
                LaneReceiver::new(&down, Meter::receiver(desk.clone(), pages::DESK_RECEIVED)),
                store,
                SUPERVISOR_READER,
                Shelf::new(parts.hub_arena),
            ),
            sleeper: AgentSleeper::new((desk.clone(), pages::DESK_ASLEEP), (bell.clone(), pages::BELL)),
            hub_bell: HubBell::new((hub, pages::HUB_ASLEEP), parts.hub_event),
            sup_page,
            desk,
            bell,
        })
    }

    /// The calling thread holds the word of this member's life from here on. Once, in the main thread of an agent.
    pub fn hold_life(&self) {
        // The kernel reads the list when the thread dies: the mapping must be there until then.
        let desk: &'static Arc<Words> = Box::leak(Box::new(self.desk.clone()));
        let held = robust::hold(desk.half(pages::DESK_LIFE));
        desk.word(pages::DESK_LIFE).store(u64::from(held), Ordering::Release);
    }

    /// Writes a message; the supervisor hears of it at [`ring`](Self::ring).
    #[inline]
    pub fn send<M: Encode>(&mut self, lane: Lane, message: &M) -> Result<(), SendError> {
        self.wire.send(lane, message)
    }

    /// Gives blocks back that were read, and wakes the supervisor if it sleeps. Once per turn.
    pub fn ring(&mut self) -> bool {
        // A corrupt channel is found by whoever reads or writes next.
        let _ = self.wire.give_back();
        if !self.wire.take_unrung() {
            return false;
        }
        self.wire.outbox.show();
        self.hub_bell.ring()
    }

    /// The next message of the supervisor.
    #[inline]
    pub fn receive(&mut self, message: &mut Message) -> Result<bool, ReceiveError> {
        Ok(self.wire.receive(message)?.is_some())
    }

    /// The next control message of the supervisor.
    pub fn receive_control(&mut self, message: &mut Message) -> Result<bool, ReceiveError> {
        self.wire.receive_control(message)
    }

    /// Whether a message waits.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.wire.inbox.is_ready()
    }

    /// Sleeps until somebody rings or `timeout` passes, unless something is there already or `ready` says so. Says
    /// how long waking took, if somebody rang.
    pub fn sleep(&mut self, timeout: Duration, ready: impl FnOnce() -> bool) -> Option<Duration> {
        self.wire.outbox.publish();
        self.sleeper.sleep(timeout, || self.wire.inbox.is_ready() || ready())
    }

    /// Publishes what was counted. At the end: whoever adds up what went over this link reads it then.
    pub fn publish(&mut self) {
        self.wire.outbox.publish();
        self.wire.inbox.publish();
    }

    /// Whether somebody else runs on our core, so that spinning would hurt both.
    pub fn is_core_shared(&self) -> bool {
        self.sup_page.word(pages::SUP_SHARED_CORE).load(Ordering::Relaxed) != 0
    }

    /// The agent's own page, for its pulse.
    pub fn pulse(&self) -> LinkPulse {
        LinkPulse { sup_page: self.sup_page.clone(), desk: self.desk.clone() }
    }

    /// The large payloads of this process, for its other channels.
    pub fn store(&self) -> Store {
        self.wire.store.clone()
    }

    /// The bell that wakes this process, for the hints about its lines.
    pub fn bell(&self) -> Arc<Words> {
        self.bell.clone()
    }

    /// The member's own desk.
    pub fn desk(&self) -> Arc<Words> {
        self.desk.clone()
    }

    /// What this end has counted: sent and received.
    pub fn counts(&self) -> ([LaneCount; LANES], [LaneCount; LANES]) {
        (self.wire.outbox.counts(), self.wire.inbox.counts())
    }
}

/// One attempt of one task as a word: the next attempt of a task that was cancelled for its time
/// limit must not see the old order. Attempts beyond 65,535 share words with earlier ones, which are over.
fn cancel_word(task: TaskId, attempt: Attempt) -> u64 {
    task.0 << 16 | u64::from(attempt.0 as u16)
}

/// Shows progress and hears of cancellation, from inside a running kernel.
#[derive(Clone, Debug)]
pub struct LinkPulse {
    sup_page: Arc<Words>,
    desk: Arc<Words>,
}

impl LinkPulse {
    /// Grows the beat.
    #[inline]
    pub fn beat(&self) {
        let beat = self.desk.word(pages::DESK_BEAT);
        beat.store(beat.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Announces the running task; `None` when it is done.
    pub fn announce(&self, task: Option<TaskId>, now_ns: u64) {
        self.desk.word(pages::DESK_TASK_SINCE).store(now_ns, Ordering::Relaxed);
        self.desk.word(pages::DESK_TASK).store(task.map_or(0, |task| task.0), Ordering::Release);
        self.desk.word(pages::DESK_COMMIT).store(0, Ordering::Release);
        if task.is_some() {
            // Pairs with the fence in `cancel_running`: it sees the task, or we see its message.
            fence(Ordering::SeqCst);
        }
    }

    /// Announces that the output of the running task is about to appear. Look for orders afterwards: one that was not there
    /// yet comes from a supervisor that has seen this, and waits.
    pub fn announce_commit(&self, task: TaskId, attempt: Attempt) {
        self.desk.word(pages::DESK_COMMIT).store(cancel_word(task, attempt), Ordering::Release);
        // Pairs with the fence in `forbid`.
        fence(Ordering::SeqCst);
    }

    /// Whether the supervisor wants `task` given up.
    #[inline]
    pub fn is_cancelled(&self, task: TaskId, attempt: Attempt) -> bool {
        self.sup_page.word(pages::SUP_CANCEL).load(Ordering::Relaxed) == cancel_word(task, attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Nanos;
    use crate::messaging::envelope::{Done, Run, Share, Verdict};
    use crate::messaging::{FromAgent, ToAgent};

    /// Both ends in one process, as if the descriptors had been handed over.
    fn both_ends(arena_bytes: usize) -> (SupervisorLink, AgentLink) {
        let objects = LinkObjects::create(65_536, arena_bytes).expect("objects");
        let hub = SharedObject::create("hub", pages::PAGE_BYTES).expect("hub");
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd");
        let hub_arena = SharedObject::create_sparse("hub-arena", arena_bytes).expect("arena");
        let store = Store::new(hub_arena.duplicate().expect("dup"), 7);
        let supervisor = objects.supervisor_link(store, 3).expect("map");
        let hub_arena = hub_arena.read_only().expect("reopened");
        let (numbers, fds) =
            objects.descriptors(&HubObjects { page: &hub, event: event.as_fd(), arena: &hub_arena });
        let fds = fds.into_iter().map(|fd| fd.try_clone_to_owned().expect("dup")).collect();
        let parts = numbers.received(fds).expect("nine of them");
        (supervisor, AgentLink::adopt(parts, 9).expect("adopt"))
    }

    #[test]
    fn both_sides_talk_and_cancel_reaches_a_running_task() {
        let (mut supervisor, mut agent) = both_ends(1 << 20);
        let mut message = Message::default();

        supervisor.send(Lane::Normal, &ToAgent::Cancel(TaskId(4), Attempt(1))).expect("room");
        assert!(agent.is_ready() && agent.receive(&mut message).expect("sound"));
        assert_eq!(
            ToAgent::decode(message.kind, message.payload()),
            Ok(ToAgent::Cancel(TaskId(4), Attempt(1)))
        );

        agent.send(Lane::Control, &FromAgent::Ready { core: 1 }).expect("room");
        assert!(supervisor.receive(&mut message).expect("sound"));
        assert_eq!(FromAgent::decode(message.kind, message.payload()), Ok(FromAgent::Ready { core: 1 }));

        let pulse = agent.pulse();
        pulse.announce(Some(TaskId(7)), 1);
        supervisor.cancel_running(TaskId(8), Attempt(1));
        assert!(!pulse.is_cancelled(TaskId(7), Attempt(1)), "another task");
        supervisor.cancel_running(TaskId(7), Attempt(1));
        assert!(pulse.is_cancelled(TaskId(7), Attempt(1)));
        assert!(!pulse.is_cancelled(TaskId(7), Attempt(2)), "the next attempt is another matter");
        assert!(supervisor.forbid(TaskId(7), Attempt(3)), "its output has not begun to appear");
        assert!(pulse.is_cancelled(TaskId(7), Attempt(3)));
        pulse.announce_commit(TaskId(7), Attempt(4));
        assert!(!supervisor.forbid(TaskId(7), Attempt(4)), "too late");
        assert!(supervisor.forbid(TaskId(7), Attempt(5)), "that is another attempt");
        pulse.announce(None, 0);
        assert!(supervisor.forbid(TaskId(7), Attempt(4)), "over");
        let before = supervisor.beat();
        pulse.beat();
        assert_eq!(supervisor.beat(), before + 1);

        agent.sleep(Duration::ZERO, || true);
        let traffic = supervisor.traffic();
        assert_eq!((traffic.down.sent[1].messages, traffic.down.received[1].messages), (1, 1));
        assert_eq!((traffic.up.sent[0].messages, traffic.up.received[0].messages), (1, 1));
        assert_eq!(traffic.down.latencies[1].count(), 1, "the first message carries its time");
    }

    #[test]
    fn payloads_beyond_the_slots_travel_in_blocks_and_come_back() {
        let (mut supervisor, mut agent) = both_ends(1 << 20);
        let mut message = Message::default();
        let run = |body| {
            let (task, attempt) = (TaskId(1), Attempt(1));
            ToAgent::Run(Run { task, attempt, kernel: 1, class: 1, level: 0, share: Share::Whole, body })
        };
        let bodies: Vec<Vec<u8>> = [4096, 5000, 100_000].map(|n| (0..n).map(|i| i as u8).collect()).to_vec();
        // Many times the arena: it only works if blocks come back.
        for round in 0..40 {
            let body = &bodies[round % bodies.len()];
            supervisor.send(Lane::Normal, &run(body)).expect("room");
            assert!(agent.receive(&mut message).expect("sound"));
            assert_eq!(ToAgent::decode(message.kind, message.payload()), Ok(run(body)));
            agent.ring();
            let done = Done {
                task: TaskId(1),
                attempt: Attempt(1),
                verdict: Verdict::Succeeded,
                level: 0,
                started: Nanos(1),
                service_ns: 1,
                flops: 0.0,
                bytes: 0.0,
                kept_input: false,
                part: None,
                counts: None,
                body,
            };
            agent.send(Lane::Bulk, &FromAgent::Done(done)).expect("room");
            assert!(supervisor.receive(&mut message).expect("sound"));
            let answer = FromAgent::decode(message.kind, message.payload());
            assert_eq!(answer, Ok(FromAgent::Done(done)));
            supervisor.ring();
            assert!(!agent.receive(&mut message).expect("sound"), "only blocks came back");
        }
        let huge = vec![0; 2 << 20];
        assert!(matches!(supervisor.send(Lane::Normal, &run(&huge)), Err(SendError::TooLong(_))));
        let half = vec![0; 600 << 10];
        supervisor.send(Lane::Normal, &run(&half)).expect("room");
        let full = supervisor.send(Lane::Normal, &run(&half));
        assert!(matches!(full, Err(SendError::Full(_))), "an answer, not a wait: {full:?}");
        assert!(agent.receive(&mut message).expect("sound"));
        agent.ring();
        assert!(!supervisor.receive(&mut message).expect("sound"));
        supervisor.send(Lane::Normal, &run(&half)).expect("room again");
        assert_eq!(
            agent.counts().1[1].bytes,
            supervisor.traffic().down.sent[1].bytes - half.len() as u64 - 24 - 15
        );
    }

    #[test]
    fn nonsense_about_blocks_is_an_error() {
        let (mut supervisor, mut agent) = both_ends(1 << 20);
        let mut message = Message::default();
        agent
            .wire
            .outbox
            .try_push_with(Lane::Normal, 67, crate::shm::ring::FLAG_BLOCK, &[0xFF; 30])
            .expect("room");
        assert!(matches!(supervisor.receive(&mut message), Err(ReceiveError::Block(_))));
        let (mut supervisor, mut agent) = both_ends(1 << 20);
        supervisor.wire.store.put(b"x", &[3]).expect("room");
        agent.wire.outbox.try_push(Lane::Control, crate::messaging::store::RELEASE, &[9; 8]).expect("room");
        assert!(matches!(supervisor.receive(&mut message), Err(ReceiveError::Release(_))));
    }
}
