//! A member's lines to other members: direct messages, broadcast, topics, requests and replies.
//!
//! ```text
//!  push ─► line ─► rings of my half ─► peer      one line per peer, made by the supervisor when first wanted
//!  try_receive ◄─ lines in turn, then feeds      up to RUN messages of one line, then the next
//! ```
//! 1. A line is two objects, one per writer: slots, acknowledged heads and numbers of one side.
//! 2. Payloads above [`INLINE_MAX`] bytes lie in the sender's arena. A broadcast writes
//!    them once; each receiver gets a descriptor, and the block is free again when the last has given it back.
//! 3. A topic is written once per subscriber, or, for subscribers by [`Rule::DropOldest`], once for all of them into an
//!    overwriting ring.
//!
//! Invariants
//! 1. Nonsense from a peer closes its line and is reported; the others do not notice.
//! 2. No line is served twice before every other that has something was served once: nobody starves.
//! 3. Nothing waits for ever: rooms, replies and answers of the supervisor have deadlines.

use super::attach::{FromMember, Heard, MemberTalk, Rule, ToMember, is_name};
use super::lanes::{ChannelMemory, INLINE_MAX, Lane, LaneReceiver, LaneSender};
use super::link::{AgentLink, ChannelTraffic};
use super::meters::{DropReason, Meter};
use super::store::{BadBlock, COPIED_MAX, Shelf, Store};
use super::wire::{ReceiveError, SendError, Wire};
use crate::base::clock::Nanos;
use crate::base::sync::Ordering;
use crate::os::clock;
use crate::shm::arena::{Block, Descriptor};
use crate::shm::doorbell::AgentBell;
use crate::shm::lossy::{LossyConsumer, LossyMemory, LossyProducer};
use crate::shm::ring::{FLAG_BLOCK, Message, SLOT_WORDS};
use crate::shm::{Access, SharedObject, Words, pages};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Messages taken from one line in a row while others may have some.
const RUN: u32 = 16;
/// Up to so many lines all are looked at in turn; beyond, senders leave a hint which ones to look at.
pub const SCAN_MAX: usize = 64;
/// With hints, every line is looked at all the same once in so many rounds: a hint is a stranger's word.
const HINT_ROUNDS: u32 = 64;
/// Pushes after which a sleeping receiver is woken at the latest.
const RING_EVERY: u32 = 16;
/// Open requests after which those whose deadline has passed are forgotten.
const REQUESTS_MAX: usize = 1 << 16;
/// Messages that are kept while blocks are taken back.
const SET_ASIDE_MAX: usize = 1024;
/// The supervisor answers within microseconds; one that is silent for so long is gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A deadline that has passed: what has no room now is not waited for.
const AT_ONCE: Nanos = Nanos(0);

/// Closed lines that are remembered until somebody asks.
const CLOSED_MAX: usize = 1024;

mod kind {
    pub const DIRECT: u8 = 1;
    pub const TOPIC: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const REPLY: u8 = 4;
    pub const REFUSAL: u8 = 5;
}

/// Before the payload in an overwriting ring: the topic, and which of its messages this is, 32 bits each. The number
/// tells a reader that was overtaken how many messages it missed.
const FEED_HEAD: usize = 8;
/// Longest text of a refusal, bytes: it has to fit where a reply did not.
const REFUSAL_MAX: usize = 200;

/// A peer, while the line to it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    at: u16,
    line: u32,
}

/// Names a request; its reply carries it.
pub type Correlation = u64;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Sent to us, or to everybody.
    Direct,
    /// Published on a topic; [`Port::topic_name`] names it.
    Topic(u32),
    /// A request; answer with [`Port::reply`].
    Request {
        /// Goes into the reply.
        correlation: Correlation,
        /// Nobody waits any more after this, ns of the monotonic clock.
        deadline: Nanos,
    },
    /// The reply to a request of ours.
    Reply(Correlation),
    /// There is no reply to this request of ours; the payload says why.
    Refusal(Correlation),
}

/// A received payload that lies in its sender's arena. Dropping it gives the block back.
#[derive(Debug)]
pub struct Parcel {
    block: Block,
    peer: Peer,
    back: Sender<(Peer, Descriptor)>,
}

/// Where parcels put their blocks when they are dropped, and where we take them from.
struct Back {
    sender: Sender<(Peer, Descriptor)>,
    returned: Receiver<(Peer, Descriptor)>,
    /// Parcels that are not back yet: with none there is nothing to look for, and a look costs a fence.
    out: u64,
}

impl Back {
    fn new() -> Self {
        let (sender, returned) = channel();
        Self { sender, returned, out: 0 }
    }

    fn parcel(&mut self, block: Block, peer: Peer) -> Parcel {
        self.out += 1;
        Parcel { block, peer, back: self.sender.clone() }
    }

    fn take(&mut self) -> Option<(Peer, Descriptor)> {
        if self.out == 0 {
            return None;
        }
        let back = self.returned.try_recv().ok()?;
        self.out -= 1;
        Some(back)
    }
}

impl std::ops::Deref for Parcel {
    type Target = Block;

    fn deref(&self) -> &Block {
        &self.block
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        // A port that is gone has nobody to give it back to.
        let _ = self.back.send((self.peer, self.block.descriptor()));
    }
}

/// A received message. Reused for the next one, so that receiving allocates nothing.
pub struct Mail {
    message: Message,
    head: usize,
    /// Who sent it.
    pub from: Peer,
    /// On which lane.
    pub lane: Lane,
    /// What it is.
    pub what: What,
    /// A payload that lies in the sender's arena; [`payload`](Self::payload) is empty then.
    pub parcel: Option<Parcel>,
}

impl Default for Mail {
    fn default() -> Self {
        let from = Peer { at: u16::MAX, line: u32::MAX };
        let message = Message::default();
        Self { message, head: 0, from, lane: Lane::Normal, what: What::Direct, parcel: None }
    }
}

impl Mail {
    /// The payload, when it came in slots.
    pub fn payload(&self) -> &[u8] {
        if self.parcel.is_some() { &[] } else { &self.message.payload()[self.head..] }
    }

    /// Bytes of the payload, wherever it lies.
    pub fn len(&self) -> usize {
        self.parcel.as_ref().map_or_else(|| self.payload().len(), |parcel| parcel.len())
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the payload, wherever it lies.
    pub fn to_vec(&self) -> Vec<u8> {
        match &self.parcel {
            Some(parcel) => {
                let mut bytes = Vec::new();
                parcel.copy_to(&mut bytes);
                bytes
            }
            None => self.payload().to_vec(),
        }
    }
}

/// Why something could not be done with a peer.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The line is closed: the peer is gone or was cut off.
    #[error("the line to this peer is closed")]
    Closed,
    /// No room, too long, or the arena says no.
    #[error(transparent)]
    Send(SendError),
    /// The supervisor refused.
    #[error("{0}")]
    Refused(String),
    /// The supervisor is gone or does not answer.
    #[error("the supervisor does not answer: {0}")]
    Supervisor(io::Error),
}

impl PortError {
    /// Whether trying again later can help.
    pub fn is_full(&self) -> bool {
        matches!(self, PortError::Send(SendError::Full(_)))
    }
}

/// Rows of topics in one half: what was delivered and lost, for whoever looks.
#[derive(Debug)]
struct TopicRows {
    words: Arc<Words>,
    rows: Vec<(u32, u64, u64)>,
}

impl TopicRows {
    fn count(&mut self, topic: u32, delivered: u64, lost: u64) {
        let known = self.rows.iter().position(|row| row.0 == topic);
        if known.is_none() && self.rows.len() >= pages::TOPIC_ROWS {
            // More topics between two members than there are rows: the others are not shown.
            return;
        }
        let at = known.unwrap_or_else(|| {
            self.rows.push((topic, 0, 0));
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        // What was lost is the publisher's word.
        (row.1, row.2) = (row.1.saturating_add(delivered), row.2.saturating_add(lost));
        let first = pages::HALF_TOPICS + at * 4;
        for (word, value) in [u64::from(topic) + 1, row.1, row.2].into_iter().enumerate() {
            self.words.word(first + word).store(value, Ordering::Relaxed);
        }
    }
}

/// What a half says about topics: number, delivered, lost. Another process wrote it.
pub fn topic_rows(half: &Words) -> Vec<(u32, u64, u64)> {
    let word = |at| half.word(at).load(Ordering::Relaxed);
    (0..pages::TOPIC_ROWS)
        .map(|row| pages::HALF_TOPICS + row * 4)
        .map_while(|at| Some((u32::try_from(word(at)).ok()?.checked_sub(1)?, word(at + 1), word(at + 2))))
        .collect()
}

/// Where a subscriber to an overwriting ring begins: the position behind the last message, and the number of the
/// next one if that could be seen.
pub fn feed_start(ring: &LossyMemory) -> (u64, Option<u32>) {
    // The writer goes on meanwhile, and may overwrite what was the last message.
    for _ in 0..4 {
        let end = ring.end();
        let Some(last) = ring.last_before(end) else { return (end, (end == 0).then_some(0)) };
        let mut message = Message::default();
        let mut reader = LossyConsumer::starting_at(ring.clone(), last);
        if reader.try_pop(&mut message) == Ok(true)
            && reader.missed() == 0
            && let Some((_, number)) = feed_head(message.payload())
        {
            return (end, Some(number.wrapping_add(1)));
        }
    }
    (ring.end(), None)
}

/// Topic and number before a payload in an overwriting ring.
fn feed_head(payload: &[u8]) -> Option<(u32, u32)> {
    let (head, _) = payload.split_first_chunk::<FEED_HEAD>()?;
    let [a, b, c, d, e, f, g, h] = *head;
    Some((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])))
}

struct Line {
    number: u32,
    id: String,
    kind: String,
    wire: Wire,
    bell: AgentBell,
    /// The peer's desk and bell, and our place among its lines, for the hint.
    far_desk: Arc<Words>,
    far_bell: Arc<Words>,
    far_at: u16,
    /// Pushes since the bell was last looked at.
    unrung: u32,
    topics: TopicRows,
}

impl Line {
    fn ring(&mut self) {
        self.unrung = 0;
        self.wire.outbox.show();
        if self.far_desk.word(pages::DESK_LINES).load(Ordering::Relaxed) > SCAN_MAX as u64 {
            let word = self
                .far_bell
                .word(pages::BELL_LINES + usize::from(self.far_at) / 64 % (pages::LINES_MAX / 64));
            word.fetch_or(1 << (self.far_at % 64), Ordering::Release);
        }
        self.bell.ring();
    }

    #[inline]
    fn pushed(&mut self, messages: u32) {
        self.unrung += messages;
        if self.unrung >= RING_EVERY {
            self.ring();
        }
    }
}

/// A topic that this member publishes on.
#[derive(Default)]
struct Publication {
    direct: Vec<(Peer, Rule)>,
    overwrite: Option<Overwrite>,
}

impl Overwrite {
    fn new(memory: LossyMemory) -> Self {
        let capacity = memory.capacity;
        let ring = LossyProducer::new(memory);
        Self { ring, capacity, next: 0, blocks: VecDeque::new(), listeners: Vec::new() }
    }
}

struct Overwrite {
    ring: LossyProducer,
    capacity: u64,
    /// Number of the next message.
    next: u32,
    /// Blocks that slots still describe, oldest first, with the position after which they are overwritten.
    blocks: VecDeque<(u64, Descriptor)>,
    /// Who reads it and may sleep.
    listeners: Vec<Peer>,
}

/// A topic that this member reads from an overwriting ring.
struct Feed {
    topic: u32,
    peer: Peer,
    ring: LossyConsumer,
    /// Slots that were overwritten unread, as far as their messages are counted.
    missed: u64,
    /// Number of the next message; known from the start, or from the first one.
    next: Option<u32>,
}

impl Feed {
    /// How many messages were missed before number `found`. It is the publisher's word, and each took a slot at
    /// least.
    fn lost_before(&mut self, found: u32) -> u64 {
        let slots = self.ring.missed() - self.missed;
        let expected = self.next.unwrap_or(found);
        (self.missed, self.next) = (self.ring.missed(), Some(found.wrapping_add(1)));
        u64::from(found.wrapping_sub(expected)).min(slots)
    }
}

/// Numbers of one line, from this end.
#[derive(Clone, Debug)]
pub struct LineNumbers {
    /// Id of the peer.
    pub peer: String,
    /// `client` or the kind of agent.
    pub kind: String,
    /// Sent to it; `received` and `latencies` are the peer's to know.
    pub sent: ChannelTraffic,
    /// Received from it; `sent` and `depths` are the peer's to know.
    pub received: ChannelTraffic,
}

/// See the module.
pub struct Port {
    talk: MemberTalk,
    store: Store,
    desk: Arc<Words>,
    bell: Arc<Words>,
    lines: Vec<Option<Box<Line>>>,
    /// Lines whose peer is gone, while what it had sent is not yet received, and how many messages that can be.
    leaving: VecDeque<(Peer, Box<Line>, usize)>,
    open: usize,
    /// Somebody was given our bell.
    was_open: bool,
    cursor: usize,
    run: u32,
    /// Lines that senders hinted at.
    hinted: [u64; pages::LINES_MAX / 64],
    rounds: u32,
    topics: HashMap<String, u32>,
    topic_names: HashMap<u32, Arc<str>>,
    publications: HashMap<u32, Publication>,
    feeds: Vec<Feed>,
    requests: HashMap<Correlation, (Peer, Nanos)>,
    next_request: u64,
    next_seq: u64,
    back: Back,
    /// Lines that something was sent or received on since the last [`flush`](Self::flush), a bit each.
    touched: [u64; pages::LINES_MAX / 64],
    /// Lines closed so far, and why.
    closed: Vec<(String, String)>,
    late_replies: u64,
    /// Messages that came to light while blocks were taken back; they are received first.
    set_aside: VecDeque<Mail>,
    spare: Mail,
}

impl Port {
    /// Over a link and the socket that came with it.
    pub fn new(link: &AgentLink, talk: MemberTalk) -> Self {
        let (seed, desk) = (clock::now().0, link.desk());
        Self {
            talk,
            store: link.store(),
            desk,
            bell: link.bell(),
            lines: Vec::new(),
            leaving: VecDeque::new(),
            open: 0,
            was_open: false,
            cursor: 0,
            run: 0,
            hinted: [0; pages::LINES_MAX / 64],
            rounds: 0,
            topics: HashMap::new(),
            topic_names: HashMap::new(),
            publications: HashMap::new(),
            feeds: Vec::new(),
            requests: HashMap::new(),
            // Replies to an earlier life of this member match nothing.
            next_request: seed << 20,
            next_seq: 0,
            back: Back::new(),
            touched: [0; pages::LINES_MAX / 64],
            closed: Vec::new(),
            late_replies: 0,
            set_aside: VecDeque::new(),
            spare: Mail::default(),
        }
    }

    // Lines.

    /// The peer with this id, opening a line to it if there is none yet.
    pub fn connect(&mut self, id: &str) -> Result<Peer, PortError> {
        if let Some(peer) = self.peer(id) {
            return Ok(peer);
        }
        let id = id.to_owned();
        if !is_name(&id) {
            // Not asked: no member can be called so, and a word has a longest length.
            let start: String = id.chars().take(80).collect();
            return Err(PortError::Refused(format!("no member has the id {start:?}")));
        }
        let wanted = id.clone();
        match self.ask(|seq| FromMember::Connect { seq, peer: id })? {
            ToMember::Line { line, at, .. } => Ok(Peer { at, line }),
            // The other side was quicker.
            ToMember::Done { .. } => self.peer(&wanted).ok_or(PortError::Closed),
            other => Err(unexpected(&other)),
        }
    }

    /// The peer with this id, if a line to it is open.
    pub fn peer(&self, id: &str) -> Option<Peer> {
        self.peers().find(|(_, peer_id)| *peer_id == id).map(|(peer, _)| peer)
    }

    /// Every peer that a line is open to, with its id.
    pub fn peers(&self) -> impl Iterator<Item = (Peer, &str)> {
        self.lines.iter().enumerate().filter_map(|(at, line)| {
            let line = line.as_ref()?;
            Some((Peer { at: at as u16, line: line.number }, line.id.as_str()))
        })
    }

    /// Id of a peer; `None` once the line is closed and all that came on it was received.
    pub fn id_of(&self, peer: Peer) -> Option<&str> {
        let left = || self.leaving.iter().find(|(gone, ..)| *gone == peer).map(|(_, line, _)| &**line);
        self.line_ref(peer).or_else(left).map(|line| line.id.as_str())
    }

    /// Name of a topic that a message came on.
    pub fn topic_name(&self, topic: u32) -> Option<&str> {
        self.topic_names.get(&topic).map(|name| &**name)
    }

    /// Lines that were closed since the last call: whose, and why.
    pub fn take_closed(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.closed)
    }

    /// Replies that came after their deadline, or to nobody; each line counts its own as `late`.
    pub fn late_replies(&self) -> u64 {
        self.late_replies
    }

    fn line_ref(&self, peer: Peer) -> Option<&Line> {
        self.lines.get(usize::from(peer.at))?.as_deref().filter(|line| line.number == peer.line)
    }

    fn line(&mut self, peer: Peer) -> Option<&mut Line> {
        self.lines.get_mut(usize::from(peer.at))?.as_deref_mut().filter(|line| line.number == peer.line)
    }

    // Sending.

    /// Writes a message to a peer. It is seen at once by a receiver that is awake; call [`flush`](Self::flush) after
    /// the last of a turn, for the one that sleeps.
    #[inline]
    pub fn push(&mut self, peer: Peer, lane: Lane, payload: &[u8]) -> Result<(), PortError> {
        self.push_as(peer, lane, kind::DIRECT, &[], payload)
    }

    /// Writes as many of these messages as there is room for, in their order, and says how many; room that was missing is
    /// counted once. They are seen in groups, which costs far less than each by itself. A message of more than
    /// [`INLINE_MAX`] bytes ends the batch before it; as the first one it is [`SendError::TooLong`].
    pub fn push_all(
        &mut self,
        peer: Peer,
        lane: Lane,
        payloads: &[impl AsRef<[u8]>],
    ) -> Result<usize, PortError> {
        let line = self.line(peer).ok_or(PortError::Closed)?;
        match line.wire.send_batch(lane, kind::DIRECT, payloads) {
            Ok(sent) => {
                line.pushed(sent as u32);
                self.touch(peer.at);
                Ok(sent)
            }
            Err(SendError::Corrupt(corrupt)) => {
                self.poison(peer, &corrupt.to_string());
                Err(PortError::Closed)
            }
            Err(error) => Err(PortError::Send(error)),
        }
    }

    #[inline]
    fn push_as(
        &mut self,
        peer: Peer,
        lane: Lane,
        kind: u8,
        head: &[u8],
        payload: &[u8],
    ) -> Result<(), PortError> {
        if head.len() + payload.len() > INLINE_MAX {
            self.collect_returns();
        }
        let line = self.line(peer).ok_or(PortError::Closed)?;
        match line.wire.send_bytes(lane, kind, head, payload) {
            Ok(()) => {
                line.pushed(1);
                self.touch(peer.at);
                Ok(())
            }
            Err(SendError::Corrupt(corrupt)) => {
                self.poison(peer, &corrupt.to_string());
                Err(PortError::Closed)
            }
            Err(error) => Err(PortError::Send(error)),
        }
    }

    /// Sends a block that was loaned from [`store`](Self::store) to these peers; nothing is copied. Returns how many
    /// of them it was sent to; for the others it counts as dropped.
    pub fn push_block(&mut self, peers: &[Peer], lane: Lane, descriptor: &Descriptor) -> usize {
        self.push_descriptor(peers, lane, kind::DIRECT, &[], descriptor, DropReason::Newest)
    }

    fn push_descriptor(
        &mut self,
        peers: &[Peer],
        lane: Lane,
        kind: u8,
        head: &[u8],
        descriptor: &Descriptor,
        why: DropReason,
    ) -> usize {
        let mut sent = 0;
        for &peer in peers {
            let outcome = match self.line(peer) {
                Some(line) => line.wire.send_descriptor(lane, kind, head, descriptor),
                None => {
                    self.store.withdraw(descriptor, peer.at);
                    continue;
                }
            };
            match outcome {
                Ok(()) => {
                    sent += 1;
                    if let Some(line) = self.line(peer) {
                        line.pushed(1);
                        self.touch(peer.at);
                    }
                }
                Err(SendError::Corrupt(corrupt)) => self.poison(peer, &corrupt.to_string()),
                Err(_) => {
                    self.store.withdraw(descriptor, peer.at);
                    if let Some(line) = self.line(peer) {
                        line.wire.outbox.count_drop(lane, why);
                    }
                }
            }
        }
        sent
    }

    /// Sends one message to these peers: one write each; a large payload is written once. Returns how many got it;
    /// for the others it counts as dropped.
    pub fn broadcast(&mut self, peers: &[Peer], lane: Lane, payload: &[u8]) -> Result<usize, PortError> {
        self.spread(peers, lane, kind::DIRECT, &[], payload)
    }

    fn spread(
        &mut self,
        peers: &[Peer],
        lane: Lane,
        kind: u8,
        head: &[u8],
        payload: &[u8],
    ) -> Result<usize, PortError> {
        if head.len() + payload.len() > INLINE_MAX {
            let open: Vec<Peer> =
                peers.iter().copied().filter(|&peer| self.line_ref(peer).is_some()).collect();
            if open.is_empty() {
                return Ok(0);
            }
            let readers: Vec<u16> = open.iter().map(|peer| peer.at).collect();
            return match self.put_block(payload, &readers, AT_ONCE) {
                Ok(block) => Ok(self.push_descriptor(&open, lane, kind, head, &block, DropReason::Newest)),
                Err(error) => {
                    for peer in open {
                        if let Some(line) = self.line(peer) {
                            line.wire.outbox.count_drop(lane, DropReason::Newest);
                        }
                    }
                    Err(error)
                }
            };
        }
        let mut sent = 0;
        for &peer in peers {
            match self.push_as(peer, lane, kind, head, payload) {
                Ok(()) => sent += 1,
                Err(PortError::Send(SendError::Full(_))) => {
                    if let Some(line) = self.line(peer) {
                        line.wire.outbox.count_drop(lane, DropReason::Newest);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(sent)
    }

    /// Asks a peer; the reply comes as [`What::Reply`] with this correlation, or never.
    pub fn request(
        &mut self,
        peer: Peer,
        lane: Lane,
        payload: &[u8],
        within: Duration,
    ) -> Result<Correlation, PortError> {
        self.next_request += 1;
        let (correlation, deadline) = (self.next_request, clock::now().plus(within));
        let mut head = [0u8; 16];
        head[..8].copy_from_slice(&correlation.to_le_bytes());
        head[8..].copy_from_slice(&deadline.0.to_le_bytes());
        self.push_as(peer, lane, kind::REQUEST, &head, payload)?;
        if self.requests.len() >= REQUESTS_MAX {
            self.tidy();
        }
        self.requests.insert(correlation, (peer, deadline));
        Ok(correlation)
    }

    /// Answers a request.
    pub fn reply(
        &mut self,
        peer: Peer,
        lane: Lane,
        correlation: Correlation,
        payload: &[u8],
    ) -> Result<(), PortError> {
        self.push_as(peer, lane, kind::REPLY, &correlation.to_le_bytes(), payload)
    }

    /// Says that a request gets no reply, and why: its asker need not wait. The reply counts as dropped.
    pub fn refuse(
        &mut self,
        peer: Peer,
        lane: Lane,
        correlation: Correlation,
        why: &str,
    ) -> Result<(), PortError> {
        if let Some(line) = self.line(peer) {
            line.wire.outbox.count_drop(lane, DropReason::Newest);
        }
        let why = &why[..why.floor_char_boundary(REFUSAL_MAX)];
        self.push_as(peer, lane, kind::REFUSAL, &correlation.to_le_bytes(), why.as_bytes())
    }

    /// Whether the reply to this request can still come.
    pub fn is_awaited(&self, correlation: Correlation) -> bool {
        self.requests.contains_key(&correlation)
    }

    /// Nobody waits for this reply any more.
    pub fn give_up(&mut self, correlation: Correlation) {
        self.requests.remove(&correlation);
    }

    /// Publishes on a topic. Returns to how many subscribers it was sent; what they did not take is counted.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<usize, PortError> {
        let number = match self.topics.get(topic) {
            Some(&number) if self.publications.contains_key(&number) => number,
            _ => self.advertise(topic)?,
        };
        let mut publication = self.publications.remove(&number).unwrap_or_default();
        let outcome = self.publish_to(number, &mut publication, payload);
        self.publications.insert(number, publication);
        outcome
    }

    fn publish_to(&mut self, number: u32, to: &mut Publication, payload: &[u8]) -> Result<usize, PortError> {
        let head = number.to_le_bytes();
        let began = clock::now();
        let mut sent = 0;
        let mut failed = None;
        if let Some(overwrite) = &mut to.overwrite {
            overwrite.listeners.retain(|peer| self.line_ref(*peer).is_some());
            let outcome = self.overwrite(number, overwrite, payload);
            for &peer in &overwrite.listeners {
                let Some(line) = self.line(peer) else { continue };
                if outcome.is_ok() {
                    line.wire.outbox.count_beside(1, payload.len() as u64);
                    line.topics.count(number, 1, 0);
                    line.pushed(1);
                    self.touch(peer.at);
                } else {
                    line.wire.outbox.count_drop(Lane::Normal, DropReason::Newest);
                    line.topics.count(number, 0, 1);
                }
            }
            match outcome {
                Ok(()) => sent += overwrite.listeners.len(),
                // The others get it all the same.
                Err(error) => failed = Some(error),
            }
        }
        to.direct.retain(|(peer, _)| self.line_ref(*peer).is_some());
        if payload.len() + head.len() > INLINE_MAX && !to.direct.is_empty() {
            match self.publish_block(number, &to.direct, payload, began) {
                Ok(count) => sent += count,
                Err(error) => failed = Some(error),
            }
            return if sent == 0 { failed.map_or(Ok(0), Err) } else { Ok(sent) };
        }
        for &(peer, rule) in &to.direct {
            let mut outcome = self.push_as(peer, Lane::Normal, kind::TOPIC, &head, payload);
            if matches!(&outcome, Err(error) if error.is_full()) && self.wait_for_room(peer, rule, began) {
                outcome = self.push_as(peer, Lane::Normal, kind::TOPIC, &head, payload);
            }
            let Some(line) = self.line(peer) else { continue };
            match outcome {
                Ok(()) => {
                    sent += 1;
                    line.topics.count(number, 1, 0);
                }
                Err(_) => {
                    line.wire.outbox.count_drop(Lane::Normal, rule.drop_reason());
                    line.topics.count(number, 0, 1);
                }
            }
        }
        match failed {
            Some(error) if sent == 0 => Err(error),
            _ => Ok(sent),
        }
    }

    /// Publishes what does not fit into slots: written once, a descriptor for each. Without room in the arena nobody
    /// gets it, which is counted for each.
    fn publish_block(
        &mut self,
        number: u32,
        subscribers: &[(Peer, Rule)],
        payload: &[u8],
        began: Nanos,
    ) -> Result<usize, PortError> {
        let readers: Vec<u16> = subscribers.iter().map(|(peer, _)| peer.at).collect();
        let patience = subscribers.iter().map(|(_, rule)| rule.patience()).max().unwrap_or_default();
        let descriptor = match self.put_block(payload, &readers, began.plus(patience)) {
            Ok(descriptor) => descriptor,
            Err(error) => {
                for &(peer, rule) in subscribers {
                    if let Some(line) = self.line(peer) {
                        line.wire.outbox.count_drop(Lane::Normal, rule.drop_reason());
                        line.topics.count(number, 0, 1);
                    }
                }
                return Err(error);
            }
        };
        let mut sent = 0;
        for &(peer, rule) in subscribers {
            self.wait_for_room(peer, rule, began);
            let taken = self.push_descriptor(
                &[peer],
                Lane::Normal,
                kind::TOPIC,
                &number.to_le_bytes(),
                &descriptor,
                rule.drop_reason(),
            );
            sent += taken;
            if let Some(line) = self.line(peer) {
                line.topics.count(number, taken as u64, 1 - taken as u64);
            }
        }
        Ok(sent)
    }

    /// Writes a block; while the arena is full, waits until `deadline` for readers to give some back.
    fn put_block(
        &mut self,
        payload: &[u8],
        readers: &[u16],
        deadline: Nanos,
    ) -> Result<Descriptor, PortError> {
        loop {
            self.collect_returns();
            match self.store.put(payload, readers).map_err(SendError::from) {
                Ok(descriptor) => return Ok(descriptor),
                Err(SendError::Full(_)) if clock::now() < deadline => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(error) => return Err(PortError::Send(error)),
            }
        }
    }

    /// Takes back blocks that peers have read, for a member that sends and never receives. Other control messages
    /// that come to light keep their place at the head of what is received next.
    fn collect_returns(&mut self) {
        for at in 0..self.lines.len() {
            for _ in 0..RUN {
                if self.set_aside.len() >= SET_ASIDE_MAX {
                    return;
                }
                let Some(line) = self.lines[at].as_deref_mut() else { break };
                let peer = Peer { at: at as u16, line: line.number };
                let mut mail = std::mem::take(&mut self.spare);
                let found = match line.wire.receive_control_raw(&mut mail.message) {
                    Ok(true) => {
                        touch(&mut self.touched, peer.at);
                        unpack(line, peer, Lane::Control, &mut mail, &mut self.requests, &mut self.back)
                            .map(Some)
                    }
                    Ok(false) => Ok(None),
                    Err(error) => Err(error.to_string()),
                };
                match found {
                    Ok(Some(true)) => self.set_aside.push_back(mail),
                    Ok(Some(false)) => count_late(line, Lane::Control, &mail, &mut self.late_replies),
                    Ok(None) => {
                        self.spare = mail;
                        break;
                    }
                    Err(reason) => {
                        self.poison(peer, &reason);
                        break;
                    }
                }
            }
        }
    }

    /// Waits as the subscriber's rule allows, counted from when the message was published: several slow ones do not
    /// add up. True when there is room.
    fn wait_for_room(&mut self, peer: Peer, rule: Rule, began: Nanos) -> bool {
        if rule.patience().is_zero() {
            return false;
        }
        let deadline = began.plus(rule.patience());
        let mut looks = 0u32;
        while let Some(line) = self.line(peer) {
            match line.wire.outbox.room(Lane::Normal) {
                // Room for the longest message, so that any fits.
                Ok(room) if room >= INLINE_MAX => return true,
                Ok(_) => {}
                Err(corrupt) => {
                    self.poison(peer, &corrupt.to_string());
                    return false;
                }
            }
            if looks == 0 {
                line.ring();
            }
            if clock::now() >= deadline {
                return false;
            }
            looks += 1;
            if looks < 64 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(50)) }
        }
        false
    }

    fn overwrite(&mut self, topic: u32, to: &mut Overwrite, payload: &[u8]) -> Result<(), PortError> {
        if payload.len() as u64 > COPIED_MAX {
            let text = format!(
                "a message of {} bytes for an overwriting topic; its readers copy at most {COPIED_MAX}",
                payload.len()
            );
            return Err(PortError::Send(SendError::TooLong(text)));
        }
        let mut record = Vec::with_capacity(FEED_HEAD + payload.len().min(INLINE_MAX));
        record.extend_from_slice(&topic.to_le_bytes());
        record.extend_from_slice(&to.next.to_le_bytes());
        let mut flags = 0;
        let mut block = None;
        if FEED_HEAD + payload.len() > INLINE_MAX {
            let descriptor = loop {
                match self.put_block(payload, &[], AT_ONCE) {
                    Ok(descriptor) => break descriptor,
                    // The oldest that slots still describe makes room: that is what this rule says.
                    Err(error) if error.is_full() => match to.blocks.pop_front() {
                        Some((_, oldest)) => self.store.retire(&oldest),
                        None => return Err(error),
                    },
                    Err(error) => return Err(error),
                }
            };
            record.extend_from_slice(&descriptor.to_bytes());
            flags = FLAG_BLOCK;
            block = Some(descriptor);
        } else {
            record.extend_from_slice(payload);
        }
        let position = to
            .ring
            .push(kind::TOPIC, flags, Some(clock::now().0), &record)
            .map_err(|error| PortError::Send(SendError::TooLong(error.to_string())))?;
        to.next = to.next.wrapping_add(1);
        if let Some(descriptor) = block {
            to.blocks.push_back((position + to.capacity, descriptor));
        }
        while to.blocks.front().is_some_and(|(until, _)| *until < to.ring.position()) {
            if let Some((_, descriptor)) = to.blocks.pop_front() {
                self.store.retire(&descriptor);
            }
        }
        Ok(())
    }

    /// Says that this member publishes on `topic`, before the first message; [`publish`](Self::publish) does it too.
    pub fn advertise(&mut self, topic: &str) -> Result<u32, PortError> {
        let name = checked_topic(topic)?;
        match self.ask(|seq| FromMember::Advertise { seq, topic: name })? {
            ToMember::Topic { topic, .. } => {
                self.publications.entry(topic).or_default();
                Ok(topic)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// From now on messages of `topic` come here, whoever publishes them.
    pub fn subscribe(&mut self, topic: &str, rule: Rule) -> Result<u32, PortError> {
        let name = checked_topic(topic)?;
        match self.ask(|seq| FromMember::Subscribe { seq, topic: name, rule })? {
            ToMember::Topic { topic, .. } => Ok(topic),
            other => Err(unexpected(&other)),
        }
    }

    /// No more messages of `topic`.
    pub fn unsubscribe(&mut self, topic: &str) -> Result<(), PortError> {
        let number = self.topics.get(topic).copied();
        let name = checked_topic(topic)?;
        self.ask(|seq| FromMember::Unsubscribe { seq, topic: name })?;
        self.feeds.retain(|feed| Some(feed.topic) != number);
        Ok(())
    }

    /// Gives blocks back and wakes every receiver that was written to and sleeps. Looks only at lines that something
    /// was sent or received on since the last time.
    #[inline]
    pub fn flush(&mut self) {
        self.take_returns();
        for word in 0..self.touched.len() {
            let mut touched = std::mem::take(&mut self.touched[word]);
            while touched != 0 {
                let at = word * 64 + touched.trailing_zeros() as usize;
                touched &= touched - 1;
                let Some(line) = self.lines.get_mut(at).and_then(Option::as_deref_mut) else { continue };
                if !line.wire.returns.is_empty() {
                    // A corrupt line is found by whoever reads or writes next.
                    let _ = line.wire.give_back();
                    line.unrung += 1;
                }
                if line.unrung > 0 {
                    line.ring();
                }
                line.wire.inbox.show();
                if !line.wire.returns.is_empty() {
                    // There was no room to give all back: once more the next time.
                    self.touched[word] |= 1 << (at % 64);
                }
            }
        }
    }

    #[inline]
    fn touch(&mut self, at: u16) {
        touch(&mut self.touched, at);
    }

    fn take_returns(&mut self) {
        while let Some((peer, descriptor)) = self.back.take() {
            if let Some(line) = self.line(peer) {
                line.wire.returns.add(&descriptor);
                self.touch(peer.at);
            }
        }
    }

    // Receiving.

    /// Takes the next message of whichever line's turn it is. False when there is none. What `mail` held before is
    /// given back.
    #[inline]
    pub fn try_receive(&mut self, mail: &mut Mail) -> bool {
        mail.parcel = None;
        if let Some(first) = self.set_aside.pop_front() {
            *mail = first;
            return true;
        }
        if !self.leaving.is_empty() && self.receive_left(mail) {
            return true;
        }
        let found =
            if self.open > SCAN_MAX { self.receive_hinted(mail) } else { self.receive_scanning(mail) };
        found || (!self.feeds.is_empty() && self.receive_feed(mail))
    }

    fn receive_scanning(&mut self, mail: &mut Mail) -> bool {
        let count = self.lines.len();
        for _ in 0..count {
            if self.run >= RUN {
                self.next_line();
            }
            if self.cursor < count && self.take_from(self.cursor, mail) {
                self.run += 1;
                return true;
            }
            self.next_line();
        }
        false
    }

    fn next_line(&mut self) {
        self.run = 0;
        self.cursor = if self.cursor + 1 < self.lines.len() { self.cursor + 1 } else { 0 };
    }

    /// As scanning, but only lines that somebody hinted at, and now and then all of them.
    fn receive_hinted(&mut self, mail: &mut Mail) -> bool {
        for _ in 0..2 {
            while let Some(word) = self.hinted.iter().position(|&bits| bits != 0) {
                let at = word * 64 + self.hinted[word].trailing_zeros() as usize;
                if self.run < RUN && self.take_from(at, mail) {
                    self.run += 1;
                    return true;
                }
                // Served its share: if it has more, it is back in the next round.
                let more = self.run >= RUN;
                self.run = 0;
                self.hinted[word] &= self.hinted[word] - 1;
                if more {
                    self.bell.word(pages::BELL_LINES + word).fetch_or(1 << (at % 64), Ordering::Relaxed);
                }
            }
            self.rounds += 1;
            let everything = self.rounds.is_multiple_of(HINT_ROUNDS);
            for (word, bits) in self.hinted.iter_mut().enumerate() {
                let hint = self.bell.word(pages::BELL_LINES + word);
                *bits = if hint.load(Ordering::Relaxed) != 0 { hint.swap(0, Ordering::Acquire) } else { 0 };
                if everything {
                    *bits = u64::MAX;
                }
            }
        }
        false
    }

    fn take_from(&mut self, at: usize, mail: &mut Mail) -> bool {
        let Some(line) = self.lines.get_mut(at).and_then(Option::as_deref_mut) else { return false };
        let peer = Peer { at: at as u16, line: line.number };
        for _ in 0..RUN {
            let lane = match line.wire.receive_raw(&mut mail.message) {
                Ok(None) => return false,
                Ok(Some(lane)) => lane,
                Err(error) => {
                    self.poison(peer, &error.to_string());
                    return false;
                }
            };
            touch(&mut self.touched, peer.at);
            match unpack(line, peer, lane, mail, &mut self.requests, &mut self.back) {
                Ok(true) => return true,
                // Late: counted, not handled.
                Ok(false) => count_late(line, lane, mail, &mut self.late_replies),
                Err(reason) => {
                    self.poison(peer, &reason);
                    return false;
                }
            }
        }
        false
    }

    /// What those sent who are gone, oldest first.
    #[cold]
    fn receive_left(&mut self, mail: &mut Mail) -> bool {
        while let Some((peer, line, most)) = self.leaving.front_mut() {
            let peer = *peer;
            // Who was only cut off may still write, so there is an end to it.
            while *most > 0 {
                *most -= 1;
                let lane = match line.wire.receive_raw(&mut mail.message) {
                    Ok(Some(lane)) => lane,
                    // Its blocks were taken back already.
                    Err(ReceiveError::Release(_)) => continue,
                    // What cannot be understood is of no consequence any more.
                    Ok(None) | Err(_) => break,
                };
                match unpack(line, peer, lane, mail, &mut self.requests, &mut self.back) {
                    Ok(true) => return true,
                    Ok(false) => count_late(line, lane, mail, &mut self.late_replies),
                    Err(_) => break,
                }
            }
            self.requests.retain(|_, (asked, _)| *asked != peer);
            self.leaving.pop_front();
        }
        false
    }

    fn receive_feed(&mut self, mail: &mut Mail) -> bool {
        for _ in 0..self.feeds.len() {
            // Round robin: who was looked at goes to the end.
            self.feeds.rotate_left(1);
            let at = self.feeds.len() - 1;
            let Some(outcome) = self.take_from_feed(at, mail) else { continue };
            match outcome {
                Ok(()) => return true,
                Err(reason) => {
                    let peer = self.feeds[at].peer;
                    self.poison(peer, &reason);
                    return false;
                }
            }
        }
        false
    }

    /// `None` when there is nothing.
    fn take_from_feed(&mut self, at: usize, mail: &mut Mail) -> Option<Result<(), String>> {
        let feed = &mut self.feeds[at];
        let line = self.lines.get_mut(usize::from(feed.peer.at))?.as_deref_mut()?;
        touch(&mut self.touched, feed.peer.at);
        for _ in 0..RUN {
            let found = match feed.ring.try_pop(&mut mail.message) {
                Ok(found) => found,
                Err(corrupt) => return Some(Err(corrupt.to_string())),
            };
            if !found {
                return None;
            }
            let Some((topic, number)) = feed_head(mail.message.payload()) else {
                return Some(Err("a message without a head in an overwriting ring".to_owned()));
            };
            if topic != feed.topic {
                return Some(Err("a message of another topic in an overwriting ring".to_owned()));
            }
            let mut lost = feed.lost_before(number);
            let whole = match fetch_overwritten(&mut line.wire.shelf, &mut mail.message) {
                Ok(whole) => whole,
                Err(reason) => return Some(Err(reason)),
            };
            lost += u64::from(!whole);
            if lost > 0 {
                line.topics.count(feed.topic, 0, lost);
                line.wire.inbox.count_overwritten(lost);
            }
            if !whole {
                continue;
            }
            line.topics.count(feed.topic, 1, 0);
            (mail.from, mail.lane, mail.head) = (feed.peer, Lane::Normal, FEED_HEAD);
            mail.what = What::Topic(feed.topic);
            line.wire.inbox.count_beside(&mail.message, FEED_HEAD);
            return Some(Ok(()));
        }
        None
    }

    /// This message was received, and is given up all the same: there was no place to keep it.
    #[cold]
    pub(crate) fn count_unkept(&mut self, mail: &Mail) {
        let left = self.leaving.iter_mut().find(|(gone, ..)| *gone == mail.from);
        let line = match left {
            Some((_, line, _)) => line,
            None => match self.lines.get_mut(usize::from(mail.from.at)) {
                Some(Some(line)) if line.number == mail.from.line => line,
                _ => return,
            },
        };
        line.wire.inbox.count_unhandled(mail.lane, DropReason::Unkept);
    }

    /// Whether anything waits.
    pub fn is_ready(&self) -> bool {
        !self.set_aside.is_empty()
            || self.lines.iter().flatten().any(|line| line.wire.inbox.is_ready())
            || self.feeds.iter().any(|feed| feed.ring.is_ready())
            || !self.leaving.is_empty()
    }

    /// Whether there is, or ever was, somebody who could send something: who was given our bell may keep it.
    pub fn listens(&self) -> bool {
        self.was_open || !self.feeds.is_empty()
    }

    /// Publishes numbers and drops requests whose deadline has passed. Before a sleep.
    pub fn tidy(&mut self) {
        let now = clock::now();
        self.requests.retain(|_, (_, deadline)| *deadline > now);
        for line in self.lines.iter_mut().flatten() {
            line.wire.outbox.publish();
            line.wire.inbox.publish();
        }
    }

    /// Numbers of every open line.
    pub fn numbers(&self) -> Vec<LineNumbers> {
        let numbers = |line: &Line| LineNumbers {
            peer: line.id.clone(),
            kind: line.kind.clone(),
            sent: ChannelTraffic {
                sent: line.wire.outbox.counts(),
                depths: line.wire.outbox.depths(),
                ..ChannelTraffic::default()
            },
            received: ChannelTraffic {
                received: line.wire.inbox.counts(),
                latencies: line.wire.inbox.latencies(),
                ..ChannelTraffic::default()
            },
        };
        self.lines.iter().flatten().map(|line| numbers(line)).collect()
    }

    /// The arena for payloads that are written in place: loan, fill, publish for [`reader`](Self::reader)s, then
    /// [`push_block`](Self::push_block).
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A peer's number among the readers of our arena.
    pub fn reader(&self, peer: Peer) -> u16 {
        peer.at
    }

    // The supervisor.

    /// Handles what the supervisor said over the socket. An error means that it is gone.
    pub fn hear(&mut self) -> io::Result<()> {
        loop {
            match self.talk.hear()? {
                Heard::Nothing => return Ok(()),
                Heard::Closed => return Err(io::ErrorKind::ConnectionReset.into()),
                Heard::Message(message, fds) => self.on_word(&message, fds)?,
            }
        }
    }

    fn ask(&mut self, question: impl FnOnce(u64) -> FromMember) -> Result<ToMember, PortError> {
        self.next_seq += 1;
        let seq = self.next_seq;
        self.talk.say(&question(seq), &[]).map_err(PortError::Supervisor)?;
        let deadline = clock::now().plus(ANSWER_WITHIN);
        loop {
            match self.talk.hear().map_err(PortError::Supervisor)? {
                Heard::Message(message, fds) => {
                    self.on_word(&message, fds).map_err(PortError::Supervisor)?;
                    let answered = match &message {
                        ToMember::Line { seq, .. } => *seq,
                        ToMember::Topic { seq, .. }
                        | ToMember::Done { seq }
                        | ToMember::Refused { seq, .. } => Some(*seq),
                        _ => None,
                    };
                    if answered == Some(seq) {
                        return match message {
                            ToMember::Refused { why, .. } => Err(PortError::Refused(why)),
                            other => Ok(other),
                        };
                    }
                }
                Heard::Closed => return Err(PortError::Supervisor(io::ErrorKind::ConnectionReset.into())),
                Heard::Nothing => {
                    let now = clock::now();
                    if now >= deadline {
                        return Err(PortError::Supervisor(io::ErrorKind::TimedOut.into()));
                    }
                    self.talk.wait(deadline.since(now));
                }
            }
        }
    }

    fn on_word(&mut self, word: &ToMember, fds: Vec<OwnedFd>) -> io::Result<()> {
        match word {
            // One line that cannot be mapped is no reason to lose the others.
            ToMember::Line { peer, .. } => {
                if let Err(error) = self.add_line(word, fds)
                    && self.closed.len() < CLOSED_MAX
                {
                    self.closed.push((peer.clone(), format!("it cannot be opened: {error}")));
                }
            }
            ToMember::Closed { line, why } => {
                let at = self
                    .lines
                    .iter()
                    .position(|place| place.as_ref().is_some_and(|place| place.number == *line));
                if let Some(at) = at {
                    self.leave_line(at, why);
                }
            }
            ToMember::Topic { topic, name, .. } => {
                self.topics.insert(name.clone(), *topic);
                self.topic_names.insert(*topic, name.as_str().into());
            }
            ToMember::Subscriber { topic, line, rule, first } => {
                self.add_subscriber(*topic, *line, *rule, *first);
            }
            ToMember::Unsubscribed { topic, line } => self.remove_subscriber(*topic, *line),
            ToMember::Overwrite { topic, bytes } => {
                if let Some(ring) = mapped(own_ring(fds, *bytes)) {
                    self.publications.entry(*topic).or_default().overwrite = Some(Overwrite::new(ring));
                }
            }
            ToMember::Feed { topic, line, from, first, bytes } => {
                let map = |fds| SharedObject::adopt(one(fds)?, *bytes)?.map(Access::Read);
                if let Some(memory) = mapped(map(fds)).map(LossyMemory::whole)
                    && let Some(peer) = self.peer_on(*line)
                {
                    let ring = LossyConsumer::starting_at(memory, *from);
                    self.feeds.push(Feed { topic: *topic, peer, ring, missed: 0, next: *first });
                }
            }
            ToMember::Welcome { .. } | ToMember::Done { .. } | ToMember::Refused { .. } => {}
        }
        Ok(())
    }

    /// From now on somebody hears what we publish. `first`: the number of the first message that it hears, in an
    /// overwriting ring that it may have been reading for a while.
    fn add_subscriber(&mut self, topic: u32, line: u32, rule: Rule, first: Option<u32>) {
        let Some(peer) = self.peer_on(line) else { return };
        let publication = self.publications.entry(topic).or_default();
        match (rule, &mut publication.overwrite) {
            (Rule::DropOldest, Some(overwrite)) => {
                overwrite.listeners.push(peer);
                let heard = first.map_or(0, |first| u64::from(overwrite.next.wrapping_sub(first)));
                // No more than we have ever written, whatever the supervisor saw.
                let heard = heard.min(overwrite.ring.position());
                if let Some(line) = self.line(peer).filter(|_| heard > 0) {
                    line.wire.outbox.count_beside(heard, 0);
                    line.topics.count(topic, heard, 0);
                }
            }
            (Rule::DropOldest, None) => {}
            _ => {
                publication.direct.retain(|(other, _)| *other != peer);
                publication.direct.push((peer, rule));
            }
        }
    }

    fn remove_subscriber(&mut self, topic: u32, line: u32) {
        let Some(publication) = self.publications.get_mut(&topic) else { return };
        publication.direct.retain(|(peer, _)| peer.line != line);
        if let Some(overwrite) = &mut publication.overwrite {
            overwrite.listeners.retain(|peer| peer.line != line);
        }
    }

    fn peer_on(&self, line: u32) -> Option<Peer> {
        self.peers().map(|(peer, _)| peer).find(|peer| peer.line == line)
    }

    fn add_line(&mut self, word: &ToMember, fds: Vec<OwnedFd>) -> io::Result<()> {
        let ToMember::Line { line, at, peer_at, peer, kind, half_bytes, arena_bytes, .. } = word else {
            return Ok(());
        };
        let fds: [OwnedFd; 5] = fds.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let [mine, theirs, desk, bell, arena] = fds;
        let mine = SharedObject::adopt(mine, *half_bytes)?;
        let words = mine.map(Access::Write)?;
        let _ = words.advise_huge();
        mine.seal_writes()?;
        let theirs = SharedObject::adopt(theirs, *half_bytes)?.map(Access::Read)?;
        let desk = SharedObject::adopt(desk, pages::DESK_BYTES)?.map(Access::Read)?;
        let bell = SharedObject::adopt(bell, pages::PAGE_BYTES)?.map(Access::Write)?;
        let channel = |slots: &Arc<Words>, heads: &Arc<Words>| ChannelMemory {
            slots: slots.clone(),
            first_slot: pages::HALF_SLOTS,
            heads: heads.clone(),
            first_head: pages::HEADS,
        };
        let wire = Wire::new(
            LaneSender::new(&channel(&words, &theirs), Meter::sender(words.clone(), pages::HALF_SENT)),
            LaneReceiver::new(
                &channel(&theirs, &words),
                Meter::receiver(words.clone(), pages::HALF_RECEIVED),
            ),
            self.store.clone(),
            *at,
            Shelf::new(SharedObject::adopt(arena, *arena_bytes)?),
        );
        let place = usize::from(*at);
        if place >= pages::LINES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("line at place {place}")));
        }
        if self.lines.len() <= place {
            self.lines.resize_with(place + 1, || None);
        }
        // The word that it was closed was lost.
        self.leave_line(place, "another line has its place");
        self.lines[place] = Some(Box::new(Line {
            number: *line,
            id: peer.clone(),
            kind: kind.clone(),
            wire,
            bell: AgentBell::new((desk.clone(), pages::DESK_ASLEEP), (bell.clone(), pages::BELL)),
            far_desk: desk,
            far_bell: bell,
            far_at: *peer_at,
            unrung: 0,
            topics: TopicRows { words, rows: Vec::new() },
        }));
        self.count_lines();
        Ok(())
    }

    fn count_lines(&mut self) {
        self.open = self.lines.iter().flatten().count();
        self.was_open |= self.open > 0;
        self.desk.word(pages::DESK_LINES).store(self.open as u64, Ordering::Relaxed);
    }

    /// The peer wrote nonsense: its line is closed, and the supervisor hears of it.
    #[cold]
    fn poison(&mut self, peer: Peer, reason: &str) {
        if self.line_ref(peer).is_none() {
            return;
        }
        let _ = self.talk.say(&FromMember::Poisoned { line: peer.line, reason: reason.to_owned() }, &[]);
        self.drop_line(usize::from(peer.at), reason);
    }

    /// The peer is gone: nothing can be sent to it, but what it had sent can still be received.
    fn leave_line(&mut self, at: usize, why: &str) {
        let Some((gone, mut line)) = self.close_line(at, why) else { return };
        // Its place may be another's soon: what it says about our blocks counts no more.
        line.wire.reader = u16::MAX;
        if line.wire.inbox.is_ready() && self.leaving.len() < pages::LINES_MAX {
            // Its half is as large as ours.
            let slots = line.topics.words.len() / SLOT_WORDS;
            self.leaving.push_back((gone, line, slots));
        } else {
            self.requests.retain(|_, (peer, _)| *peer != gone);
        }
    }

    /// As [`leave_line`](Self::leave_line), and nothing more is received either.
    fn drop_line(&mut self, at: usize, why: &str) {
        let Some((gone, _)) = self.close_line(at, why) else { return };
        self.requests.retain(|_, (peer, _)| *peer != gone);
    }

    fn close_line(&mut self, at: usize, why: &str) -> Option<(Peer, Box<Line>)> {
        let line = self.lines[at].take()?;
        let gone = Peer { at: at as u16, line: line.number };
        self.store.reclaim(at as u16);
        self.feeds.retain(|feed| feed.peer != gone);
        if self.closed.len() < CLOSED_MAX {
            self.closed.push((line.id.clone(), why.to_owned()));
        }
        self.count_lines();
        Some((gone, line))
    }
}

impl AsFd for Port {
    /// Readable when the supervisor has said something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.talk.as_fd()
    }
}

/// What was just taken came too late: it is counted and not handled.
#[cold]
fn count_late(line: &mut Line, lane: Lane, mail: &Mail, late_replies: &mut u64) {
    let is_reply = matches!(mail.message.kind, kind::REPLY | kind::REFUSAL);
    *late_replies += u64::from(is_reply);
    line.wire.inbox.count_unhandled(lane, if is_reply { DropReason::Late } else { DropReason::Expired });
}

/// The line in this place is to be looked at by the next flush.
#[inline]
fn touch(touched: &mut [u64; pages::LINES_MAX / 64], at: u16) {
    touched[usize::from(at) / 64] |= 1 << (at % 64);
}

/// Fills `mail` from a message. False for what came too late, an error for nonsense.
fn unpack(
    line: &mut Line,
    peer: Peer,
    lane: Lane,
    mail: &mut Mail,
    requests: &mut HashMap<Correlation, (Peer, Nanos)>,
    back: &mut Back,
) -> Result<bool, String> {
    let payload = mail.message.payload();
    let word =
        |at: usize| payload.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight")));
    let short = || format!("a message of kind {} with {} bytes", mail.message.kind, payload.len());
    let (what, head) = match mail.message.kind {
        kind::DIRECT => (Some(What::Direct), 0),
        kind::TOPIC => {
            let number = payload.get(..4).ok_or_else(short)?;
            (Some(What::Topic(u32::from_le_bytes(number.try_into().expect("four")))), 4)
        }
        kind::REQUEST => {
            let (correlation, deadline) = (word(0).ok_or_else(short)?, Nanos(word(8).ok_or_else(short)?));
            ((deadline >= clock::now()).then_some(What::Request { correlation, deadline }), 16)
        }
        kind::REPLY | kind::REFUSAL => {
            let correlation = word(0).ok_or_else(short)?;
            // Only from the one who was asked.
            let asked = requests.get(&correlation).copied().filter(|(asked, _)| *asked == peer);
            if asked.is_some() {
                requests.remove(&correlation);
            }
            let awaited = asked.is_some_and(|(_, deadline)| deadline >= clock::now());
            let what = if mail.message.kind == kind::REPLY { What::Reply } else { What::Refusal };
            (awaited.then_some(what(correlation)), 8)
        }
        other => return Err(format!("unknown message kind {other}")),
    };
    let mut parcel = None;
    if mail.message.flags & FLAG_BLOCK != 0 {
        let (block, before) = line.wire.shelf.open(payload).map_err(|error| error.to_string())?;
        if before != head {
            return Err(short());
        }
        line.wire.inbox.count_block(lane, block.len() as u64);
        parcel = Some(back.parcel(block, peer));
    }
    let Some(what) = what else { return Ok(false) };
    (mail.from, mail.lane, mail.what, mail.head, mail.parcel) = (peer, lane, what, head, parcel);
    Ok(true)
}

/// Copies a block that a message of an overwriting ring describes into the message. False when the publisher has
/// overwritten it meanwhile, an error for what it never writes.
fn fetch_overwritten(shelf: &mut Shelf, message: &mut Message) -> Result<bool, String> {
    if message.flags & FLAG_BLOCK == 0 {
        return Ok(true);
    }
    let block = match shelf.open(message.payload()) {
        Ok((block, FEED_HEAD)) => block,
        Ok((_, before)) => return Err(format!("{before} bytes before a descriptor in an overwriting ring")),
        Err(error @ BadBlock::Short(_)) => return Err(error.to_string()),
        // Another block lies there by now, or none.
        Err(_) => return Ok(false),
    };
    if block.len() as u64 > COPIED_MAX {
        return Err(BadBlock::Long(block.len() as u64).to_string());
    }
    // Read first, then see whether it still was that block.
    message.set_long(|bytes| {
        let mut copy = Vec::new();
        block.copy_to(&mut copy);
        bytes.reserve_exact(FEED_HEAD + copy.len());
        bytes.extend_from_slice(&[0; FEED_HEAD]);
        bytes.append(&mut copy);
    });
    Ok(block.is_current())
}

/// The ring of a topic that we publish on, which nobody else can write from now on.
fn own_ring(fds: Vec<OwnedFd>, bytes: usize) -> io::Result<LossyMemory> {
    let object = SharedObject::adopt(one(fds)?, bytes)?;
    let memory = LossyMemory::whole(object.map(Access::Write)?);
    object.seal_writes()?;
    Ok(memory)
}

/// A topic's name that can be asked for.
fn checked_topic(topic: &str) -> Result<String, PortError> {
    if is_name(topic) {
        return Ok(topic.to_owned());
    }
    let start: String = topic.chars().take(80).collect();
    Err(PortError::Refused(format!(
        "the topic {start:?} is not possible: 1 to 64 letters, digits, `.`, `_`, `-`, `/` are allowed"
    )))
}

/// What could be mapped; what could not costs that topic only.
fn mapped<T>(outcome: io::Result<T>) -> Option<T> {
    outcome.inspect_err(|error| tracing::warn!(%error, "a topic's ring cannot be mapped")).ok()
}

fn one(fds: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    let [fd]: [OwnedFd; 1] = fds.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(fd)
}

fn unexpected(word: &ToMember) -> PortError {
    PortError::Refused(format!("an unexpected answer: {word:?}"))
}

impl From<ReceiveError> for String {
    fn from(error: ReceiveError) -> Self {
        error.to_string()
    }
}
