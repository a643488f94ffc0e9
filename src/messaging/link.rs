//! Both directions between the supervisor and one incarnation of one agent.
//!
//! The supervisor makes the objects ([`LinkObjects::create`]), keeps its ends ([`SupervisorLink`])
//! and hands the descriptors to the child, which maps its ends ([`AgentLink`]).

use super::envelope::{FromAgent, ToAgent};
use super::lanes::{Lane, LaneCounts, LaneReceiver, LaneSender};
use crate::base::ids::{Attempt, TaskId};
use crate::os::process::inherited;
use crate::shm::doorbell::{AgentBell, AgentSleeper, HubBell};
use crate::shm::pages;
use crate::shm::ring::{Corrupt, Message, PushError};
use crate::shm::{Access, SharedObject, Words};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The numbers under which a child finds what it inherits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LinkDescriptors {
    down: RawFd,
    up: RawFd,
    sup_page: RawFd,
    agent_page: RawFd,
    hub: RawFd,
    hub_event: RawFd,
    channel_bytes: usize,
}

/// The shared objects of one link, before they are divided between the two sides.
#[derive(Debug)]
pub struct LinkObjects {
    down: SharedObject,
    up: SharedObject,
    sup_page: SharedObject,
    agent_page: SharedObject,
}

impl LinkObjects {
    /// Fresh objects: two channels of `channel_bytes` bytes and two pages.
    pub fn create(channel_bytes: usize) -> io::Result<Self> {
        Ok(Self {
            down: SharedObject::create("ai_swarm-down", channel_bytes)?,
            up: SharedObject::create("ai_swarm-up", channel_bytes)?,
            sup_page: SharedObject::create("ai_swarm-sup", pages::PAGE_BYTES)?,
            agent_page: SharedObject::create("ai_swarm-agent", pages::PAGE_BYTES)?,
        })
    }

    /// Maps the supervisor's ends and seals what it writes.
    pub fn supervisor_link(&self) -> io::Result<SupervisorLink> {
        let down = self.down.map(Access::Write)?;
        let sup_page = self.sup_page.map(Access::Write)?;
        self.down.seal_writes()?;
        self.sup_page.seal_writes()?;
        let (up, agent_page) = (self.up.map(Access::Read)?, self.agent_page.map(Access::Read)?);
        Ok(SupervisorLink {
            outbox: LaneSender::new(&down, &agent_page),
            inbox: LaneReceiver::new(&up, &sup_page),
            bell: AgentBell::new(
                (agent_page.clone(), pages::AGENT_ASLEEP),
                (sup_page.clone(), pages::SUP_BELL),
            ),
            sup_page,
            agent_page,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// What the child must inherit.
    pub fn descriptors<'a>(
        &'a self,
        hub: &'a SharedObject,
        hub_event: BorrowedFd<'a>,
    ) -> (LinkDescriptors, Vec<BorrowedFd<'a>>) {
        let fds = vec![
            self.down.as_fd(),
            self.up.as_fd(),
            self.sup_page.as_fd(),
            self.agent_page.as_fd(),
            hub.as_fd(),
            hub_event,
        ];
        let number = |at: usize| fds[at].as_raw_fd();
        let descriptors = LinkDescriptors {
            down: number(0),
            up: number(1),
            sup_page: number(2),
            agent_page: number(3),
            hub: number(4),
            hub_event: number(5),
            channel_bytes: self.down.bytes(),
        };
        (descriptors, fds)
    }
}

/// The supervisor's ends.
#[derive(Debug)]
pub struct SupervisorLink {
    outbox: LaneSender,
    inbox: LaneReceiver,
    bell: AgentBell,
    sup_page: Arc<Words>,
    agent_page: Arc<Words>,
    buffer: Vec<u8>,
}

impl SupervisorLink {
    /// Writes a message; the agent hears of it at [`ring`](Self::ring).
    #[inline]
    pub fn send(&mut self, lane: Lane, message: &ToAgent<'_>) -> Result<(), PushError> {
        let kind = message.encode(&mut self.buffer);
        self.outbox.try_push(lane, kind, &self.buffer)
    }

    /// Bytes of payload that a message on this lane may have right now.
    pub fn room(&mut self, lane: Lane) -> Result<usize, Corrupt> {
        self.outbox.room(lane)
    }

    /// Wakes the agent if it sleeps. Once per turn.
    pub fn ring(&self) -> bool {
        self.bell.ring()
    }

    /// The next message of the agent.
    #[inline]
    pub fn receive(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        self.inbox.try_pop(message)
    }

    /// Whether a message waits.
    pub fn is_ready(&self) -> bool {
        self.inbox.is_ready()
    }

    /// Tells the agent to give `task` up if it runs right now. Send [`ToAgent::Cancel`] first: that
    /// covers the case that it has not begun.
    pub fn cancel_running(&self, task: TaskId, attempt: Attempt) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.running() == Some(task) {
            self.sup_page.word(pages::SUP_CANCEL).store(cancel_word(task, attempt), Ordering::Release);
        }
    }

    /// Says whether the agent has its core for itself.
    pub fn set_shared_core(&self, shared: bool) {
        self.sup_page.word(pages::SUP_SHARED_CORE).store(u64::from(shared), Ordering::Relaxed);
    }

    /// The agent's beat; it grows while the agent makes progress.
    pub fn beat(&self) -> u64 {
        self.agent_page.word(pages::AGENT_BEAT).load(Ordering::Relaxed)
    }

    /// The task that the agent says it runs. Advice: only the ledger knows.
    pub fn running(&self) -> Option<TaskId> {
        match self.agent_page.word(pages::AGENT_TASK).load(Ordering::Relaxed) {
            0 => None,
            id => Some(TaskId(id)),
        }
    }

    /// Messages sent and received.
    pub fn counts(&self) -> (LaneCounts, LaneCounts) {
        (self.outbox.counts(), self.inbox.counts())
    }

    /// Slots sent and not yet taken, per lane.
    pub fn depths(&self) -> [u64; 3] {
        self.outbox.depths()
    }
}

/// The agent's ends.
#[derive(Debug)]
pub struct AgentLink {
    outbox: LaneSender,
    inbox: LaneReceiver,
    sleeper: AgentSleeper,
    hub_bell: HubBell,
    sup_page: Arc<Words>,
    agent_page: Arc<Words>,
    buffer: Vec<u8>,
}

impl AgentLink {
    /// Maps what was inherited and seals what the agent writes. Call once, right after the start.
    pub fn adopt(descriptors: &LinkDescriptors) -> io::Result<Self> {
        let object = |number, bytes| SharedObject::adopt(inherited(number)?, bytes);
        let up_object = object(descriptors.up, descriptors.channel_bytes)?;
        let agent_object = object(descriptors.agent_page, pages::PAGE_BYTES)?;
        let (up, agent_page) = (up_object.map(Access::Write)?, agent_object.map(Access::Write)?);
        up_object.seal_writes()?;
        agent_object.seal_writes()?;
        let down = object(descriptors.down, descriptors.channel_bytes)?.map(Access::Read)?;
        let sup_page = object(descriptors.sup_page, pages::PAGE_BYTES)?.map(Access::Read)?;
        let hub = object(descriptors.hub, pages::PAGE_BYTES)?.map(Access::Read)?;
        Ok(Self {
            outbox: LaneSender::new(&up, &sup_page),
            inbox: LaneReceiver::new(&down, &agent_page),
            sleeper: AgentSleeper::new(
                (agent_page.clone(), pages::AGENT_ASLEEP),
                (sup_page.clone(), pages::SUP_BELL),
            ),
            hub_bell: HubBell::new((hub, pages::HUB_ASLEEP), inherited(descriptors.hub_event)?),
            sup_page,
            agent_page,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// Writes a message; the supervisor hears of it at [`ring`](Self::ring).
    #[inline]
    pub fn send(&mut self, lane: Lane, message: &FromAgent<'_>) -> Result<(), PushError> {
        let kind = message.encode(&mut self.buffer);
        self.outbox.try_push(lane, kind, &self.buffer)
    }

    /// Wakes the supervisor if it sleeps. Once per turn.
    pub fn ring(&self) -> bool {
        self.hub_bell.ring()
    }

    /// The next message of the supervisor.
    #[inline]
    pub fn receive(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        self.inbox.try_pop(message)
    }

    /// The next control message of the supervisor.
    pub fn receive_control(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        self.inbox.try_pop_control(message)
    }

    /// Whether a message waits.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.inbox.is_ready()
    }

    /// Sleeps until a message comes or `timeout` passes.
    pub fn sleep(&self, timeout: Duration) {
        self.sleeper.sleep(timeout, || self.inbox.is_ready());
    }

    /// Whether somebody else runs on our core, so that spinning would hurt both.
    pub fn is_core_shared(&self) -> bool {
        self.sup_page.word(pages::SUP_SHARED_CORE).load(Ordering::Relaxed) != 0
    }

    /// The agent's own page, for its pulse.
    pub fn pulse(&self) -> LinkPulse {
        LinkPulse { sup_page: self.sup_page.clone(), agent_page: self.agent_page.clone() }
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
    agent_page: Arc<Words>,
}

impl LinkPulse {
    /// Grows the beat.
    #[inline]
    pub fn beat(&self) {
        let beat = self.agent_page.word(pages::AGENT_BEAT);
        beat.store(beat.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Announces the running task; `None` when it is done.
    pub fn announce(&self, task: Option<TaskId>, now_ns: u64) {
        self.agent_page.word(pages::AGENT_TASK_SINCE).store(now_ns, Ordering::Relaxed);
        self.agent_page.word(pages::AGENT_TASK).store(task.map_or(0, |task| task.0), Ordering::Release);
        if task.is_some() {
            // Pairs with the fence in `cancel_running`: it sees the task, or we see its message.
            std::sync::atomic::fence(Ordering::SeqCst);
        }
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
    use std::os::fd::OwnedFd;

    /// Duplicates descriptors as a child would inherit them.
    fn handed_over(objects: &LinkObjects, hub: &SharedObject, event: &OwnedFd) -> LinkDescriptors {
        let (_, fds) = objects.descriptors(hub, event.as_fd());
        let copy = |at: usize| {
            use std::os::fd::IntoRawFd;
            fds[at].try_clone_to_owned().expect("dup").into_raw_fd()
        };
        LinkDescriptors {
            down: copy(0),
            up: copy(1),
            sup_page: copy(2),
            agent_page: copy(3),
            hub: copy(4),
            hub_event: copy(5),
            channel_bytes: 65_536,
        }
    }

    #[test]
    fn both_sides_talk_and_cancel_reaches_a_running_task() {
        let objects = LinkObjects::create(65_536).expect("objects");
        let hub = SharedObject::create("hub", pages::PAGE_BYTES).expect("hub");
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd");
        let mut supervisor = objects.supervisor_link().expect("map");
        let mut agent = AgentLink::adopt(&handed_over(&objects, &hub, &event)).expect("adopt");
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
        let before = supervisor.beat();
        pulse.beat();
        assert_eq!(supervisor.beat(), before + 1);
    }
}
