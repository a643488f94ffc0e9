//! 32 processes on the cores there are: 31 senders, one receiver, nobody alone on a core, everybody sleeps
//! when there is nothing to do. Beside it the same through Unix sockets.
//!
//! ```text
//!  hub (receiver writes)      asleep flag │ per sender: head of its ring, its bell
//!  own (one per sender)       slots of its ring │ asleep flag
//! ```

use anyhow::{Context as _, bail, ensure};
use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create, wait};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::peer::{Control, Peer, hung};
use crate::shm::doorbell::{AgentBell, AgentSleeper, HubBell, HubSleeper};
use crate::shm::pages::PAGE_BYTES;
use crate::shm::ring::{Consumer, Message, Producer, PushError, RingMemory, SLOT_PAYLOAD, SLOT_WORDS};
use crate::shm::{Access, SharedObject, Words};

pub(super) const ROLE: &str = "crowd";
/// Processes, the receiver included.
pub(super) const PROCESSES: usize = 32;
const SENDERS: usize = PROCESSES - 1;
/// Bytes of a message on a socket: the slot's 56 and its control word.
const SOCKET_BYTES: usize = 64;
/// Messages taken from one sender before the next has its turn, and sent before the receiver is rung.
const TURN: usize = 16;
/// Giving the core away so often is cheaper than sleeping, when somebody else wants it.
const YIELDS: u32 = 2;
const NAP: Duration = Duration::from_secs(1);

const SLOTS: u64 = 256;
const OWN_ASLEEP: usize = SLOTS as usize * SLOT_WORDS;
const OWN_BYTES: usize = ((OWN_ASLEEP + 16) * 8).next_multiple_of(PAGE_BYTES);
const HUB_ASLEEP: usize = 0;
const HUB_BYTES: usize = (16 * (1 + 2 * SENDERS) * 8).next_multiple_of(PAGE_BYTES);

const fn hub_head(sender: usize) -> usize {
    16 * (1 + 2 * sender)
}

const fn hub_bell(sender: usize) -> usize {
    hub_head(sender) + 16
}

fn ring(own: &Arc<Words>, hub: &Arc<Words>, sender: usize) -> RingMemory {
    RingMemory {
        slots: own.clone(),
        first_word: 0,
        capacity: SLOTS,
        heads: hub.clone(),
        head_word: hub_head(sender),
    }
}

/// How the messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A ring and a doorbell per sender.
    Rings,
    /// A sequenced-packet Unix socket per sender, all of them in one epoll.
    Sockets,
}

/// The receiver with its senders.
pub(super) struct Crowd {
    senders: Vec<Sender>,
    sleeper: HubSleeper,
    epoll: OwnedFd,
    message: Message,
}

/// One sender as the receiver sees it.
struct Sender {
    peer: Peer,
    inbox: Consumer,
    bell: AgentBell,
    socket: OwnedFd,
}

impl Crowd {
    /// Starts the senders, dealt out over `cores` in turn.
    pub(super) fn start(cores: &[usize]) -> anyhow::Result<Self> {
        let hub = SharedObject::create("bench-hub", HUB_BYTES)?;
        let hub_words = hub.map(Access::Write)?;
        hub.seal_writes()?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = create(CreateFlags::CLOEXEC)?;
        let mut senders = Vec::new();
        for index in 0..SENDERS {
            let own = SharedObject::create("bench-own", OWN_BYTES)?;
            let words = own.map(Access::Read)?;
            let kind = SocketType::SEQPACKET;
            let (near, far) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
            rustix::io::ioctl_fionbio(&near, true)?;
            add(&epoll, &near, EventData::new_u64(index as u64), EventFlags::IN)?;
            // The receiver sits on the first core.
            let core = cores[(index + 1) % cores.len()];
            let fds: [BorrowedFd<'_>; 4] = [hub.as_fd(), own.as_fd(), event.as_fd(), far.as_fd()];
            let peer = Peer::start(ROLE, core, &fds)?;
            senders.push(Sender {
                peer,
                inbox: Consumer::new(ring(&words, &hub_words, index)),
                bell: AgentBell::new((words, OWN_ASLEEP), (hub_words.clone(), hub_bell(index))),
                socket: near,
            });
        }
        let sleeper = HubSleeper::new((hub_words, HUB_ASLEEP), event);
        for (index, sender) in senders.iter().enumerate() {
            // Its index is the first thing that a sender must know.
            sender.peer.order([index as u64, 0, 0, 0])?;
            sender.peer.answer()?;
        }
        Ok(Self { senders, sleeper, epoll, message: Message::default() })
    }

    /// Messages per second when every sender sends `each` as fast as it can.
    pub(super) fn rate(&mut self, way: Way, each: u64) -> anyhow::Result<f64> {
        let began = Instant::now();
        for sender in &self.senders {
            sender.peer.order([way as u64, each, 0, 0])?;
        }
        let mut taken = [0; SENDERS];
        match way {
            Way::Rings => self.take_from_rings(&mut taken, each)?,
            Way::Sockets => self.take_from_sockets(&mut taken, each)?,
        }
        let took = began.elapsed().as_secs_f64();
        for sender in &self.senders {
            sender.peer.answer()?;
        }
        Ok(SENDERS as f64 * each as f64 / took)
    }

    fn take_from_rings(&mut self, taken: &mut [u64; SENDERS], each: u64) -> anyhow::Result<()> {
        let began = Instant::now();
        let (mut open, mut idle) = (SENDERS, 0);
        while open > 0 {
            let mut found = false;
            for (sender, taken) in self.senders.iter_mut().zip(taken.iter_mut()) {
                let before = *taken;
                for _ in 0..TURN {
                    if !sender.inbox.try_pop(&mut self.message)? {
                        break;
                    }
                    check(self.message.payload(), *taken)?;
                    *taken += 1;
                }
                if *taken > before {
                    sender.bell.ring();
                    open -= usize::from(*taken == each);
                    found = true;
                }
            }
            idle = if found { 0 } else { idle + 1 };
            if idle > YIELDS {
                self.sleeper.announce();
                let mut rang = false;
                if !self.senders.iter().any(|sender| sender.inbox.is_ready()) {
                    let timeout = Timespec { tv_sec: NAP.as_secs() as i64, tv_nsec: 0 };
                    let mut fds = [PollFd::new(&self.sleeper, PollFlags::IN)];
                    rang = poll(&mut fds, Some(&timeout))? > 0;
                }
                self.sleeper.awake(rang);
                ensure!(!hung(began), "messages stopped coming: {taken:?} of {each} each");
            } else if idle > 0 {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn take_from_sockets(&mut self, taken: &mut [u64; SENDERS], each: u64) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut open = SENDERS;
        let mut events = Vec::with_capacity(SENDERS);
        let mut bytes = [0; SOCKET_BYTES];
        while open > 0 {
            events.clear();
            let timeout = Timespec { tv_sec: NAP.as_secs() as i64, tv_nsec: 0 };
            wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
            ensure!(!hung(began), "messages stopped coming: {taken:?} of {each} each");
            for event in &events {
                let data = event.data;
                let at = data.u64() as usize;
                for _ in 0..TURN {
                    match rustix::io::read(&self.senders[at].socket, &mut bytes) {
                        Ok(SOCKET_BYTES) => {
                            check(&bytes[..SLOT_PAYLOAD], taken[at])?;
                            taken[at] += 1;
                            open -= usize::from(taken[at] == each);
                        }
                        Ok(length) => bail!("{length} bytes of sender {at}"),
                        Err(rustix::io::Errno::AGAIN) => break,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    }
}

fn check(payload: &[u8], expected: u64) -> anyhow::Result<()> {
    ensure!(
        payload.len() == SLOT_PAYLOAD && payload[..8] == expected.to_le_bytes(),
        "message {expected} arrived damaged or out of order"
    );
    Ok(())
}

/// The peer: sends as ordered until its parent is gone.
pub(super) fn follow(control: &Control, fds: Vec<OwnedFd>) -> anyhow::Result<()> {
    let Ok([hub, own, event, socket]) = <[OwnedFd; 4]>::try_from(fds) else {
        bail!("four descriptors are due")
    };
    let index = control.receive()?.context("no index")?[0] as usize;
    ensure!(index < SENDERS, "no sender {index}");
    let hub = SharedObject::adopt(hub, HUB_BYTES)?.map(Access::Read)?;
    let object = SharedObject::adopt(own, OWN_BYTES)?;
    let own = object.map(Access::Write)?;
    object.seal_writes()?;
    let mut outbox = Producer::new(ring(&own, &hub, index));
    let sleeper = AgentSleeper::new((own, OWN_ASLEEP), (hub.clone(), hub_bell(index)));
    let bell = HubBell::new((hub, HUB_ASLEEP), event);
    control.send([0; 4])?;
    while let Some([way, each, ..]) = control.receive()? {
        let mut bytes = [0; SOCKET_BYTES];
        for number in 0..each {
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            if way == Way::Sockets as u64 {
                rustix::net::send(&socket, &bytes, rustix::net::SendFlags::NOSIGNAL)?;
            } else {
                push(&mut outbox, &bytes[..SLOT_PAYLOAD], &bell, &sleeper)?;
                if (number + 1).is_multiple_of(TURN as u64) || number + 1 == each {
                    bell.ring();
                }
            }
        }
        control.send([0; 4])?;
    }
    Ok(())
}

/// Pushes; a full ring is waited for without burning the core that the receiver may need.
fn push(outbox: &mut Producer, payload: &[u8], bell: &HubBell, sleeper: &AgentSleeper) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        match outbox.try_push(1, payload) {
            Ok(()) => return Ok(()),
            Err(PushError::Full) => {}
            Err(error) => return Err(error.into()),
        }
        bell.ring();
        if tries < YIELDS {
            std::thread::yield_now();
        } else {
            // A corrupt head counts as room: the next push names it.
            sleeper.sleep(NAP, || outbox.free().is_ok_and(|free| free > 0));
        }
        tries += 1;
    }
}
