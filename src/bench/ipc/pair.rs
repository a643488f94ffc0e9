//! Two processes, each on its core: what both map, and each way to talk that is measured, as both sides play it.
//!
//! ```text
//!  lead (the bench itself)                 follow (the peer)
//!  half.down, channel.down, page.down  ──▶  read-only
//!  read-only  ◀──  half.up, channel.up, page.up
//! ```
//! Both halves are laid out alike. Every end lives as long as its process: a ring's position is private.

use anyhow::{bail, ensure};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::clients::{ClientTalk, FOLLOW, LEAD};
use super::handover::{Giver, Taker};
use super::peer::{Control, Manner, Order, Waiter, kept_waiting};
use crate::base::prng::SplitMix64;
use crate::messaging::lanes::{ChannelMemory, Lane, LaneReceiver, LaneSender};
use crate::messaging::meters::Meter;
use crate::os::{clock, futex};
use crate::shm::doorbell::{AgentBell, AgentSleeper};
use crate::shm::pages::PAGE_BYTES;
use crate::shm::ring::{Consumer, Message, Producer, PushError, RingMemory, SLOT_PAYLOAD, SLOT_WORDS};
use crate::shm::{Access, SharedObject, Words};

pub(super) const ROLE: &str = "pair";

/// Payload words of a one-slot message.
const WORDS: usize = SLOT_PAYLOAD / 8;
/// Kind of every message here; the meaning of kinds is nobody's business in a ring.
const KIND: u8 = 1;
/// Bytes of the message that takes a chain of slots.
pub(super) const CHAIN_BYTES: usize = 4096;
/// Slots of the ring through which messages stream.
pub(super) const STREAM_SLOTS: u64 = 16_384;
/// Slots of one that is larger than the caches of a core.
pub(super) const DEEP_SLOTS: u64 = 262_144;
/// Subscribers of a broadcast.
pub(super) const SUBSCRIBERS: usize = 8;
/// Inbound channels of one receiver, at most.
pub(super) const CHANNELS: usize = 256;
/// Messages of a batch.
pub(super) const BATCH: usize = 64;
const CHANNEL_BYTES: usize = 1 << 20;

/// Where a ring lies in a half.
#[derive(Clone, Copy)]
struct Place {
    first_word: usize,
    capacity: u64,
    head_word: usize,
}

// Heads and single words first, each on a line pair of its own: the prefetcher pulls lines in pairs.
const PAIR: usize = 16;
const BARE_HEAD: usize = head(4 + SUBSCRIBERS + CHANNELS);
const ASLEEP: usize = BARE_HEAD + PAIR;
const BELL: usize = ASLEEP + PAIR;
const FUTEX: usize = BELL + PAIR;
// Then the slots.
/// Places of the bare line. How fast one is depends on where it lies, so it is measured at many.
pub(super) const SPOTS: usize = 64;
const LINES: usize = FUTEX + PAIR;
/// Words from one spot to the next: over pages and over places in a page.
const SPOT: usize = 128 + PAIR;
const PING: Place = Place { first_word: LINES + SPOTS * SPOT, capacity: 1024, head_word: head(0) };
const STREAM: Place = Place { first_word: after(PING), capacity: STREAM_SLOTS, head_word: head(1) };
const DEEP: Place = Place { first_word: after(STREAM), capacity: DEEP_SLOTS, head_word: head(3) };
const HANDOVER: Place = Place { first_word: after(DEEP), capacity: 64, head_word: head(2) };
const FAN: usize = after(HANDOVER);
const FAN_SLOTS: u64 = 1024;
const MANY: usize = FAN + SUBSCRIBERS * FAN_SLOTS as usize * SLOT_WORDS;
const MANY_SLOTS: u64 = 64;
/// Lines of the bare stream.
const BARE: usize = MANY + CHANNELS * MANY_SLOTS as usize * SLOT_WORDS;
const HALF_BYTES: usize = ((BARE + STREAM_SLOTS as usize * SLOT_WORDS) * 8).next_multiple_of(PAGE_BYTES);

const fn head(index: usize) -> usize {
    index * PAIR
}

const fn after(place: Place) -> usize {
    place.first_word + place.capacity as usize * SLOT_WORDS
}

fn fan(index: usize) -> Place {
    let first_word = FAN + index * FAN_SLOTS as usize * SLOT_WORDS;
    Place { first_word, capacity: FAN_SLOTS, head_word: head(4 + index) }
}

fn many(index: usize) -> Place {
    let first_word = MANY + index * MANY_SLOTS as usize * SLOT_WORDS;
    Place { first_word, capacity: MANY_SLOTS, head_word: head(4 + SUBSCRIBERS + index) }
}

/// What one side writes: half, channel and page with the channel's heads.
struct Objects([SharedObject; 3]);

const SIZES: [usize; 3] = [HALF_BYTES, CHANNEL_BYTES, PAGE_BYTES];

impl Objects {
    fn map(&self, access: Access) -> anyhow::Result<[Arc<Words>; 3]> {
        let [half, channel, page] = &self.0;
        let maps = [half.map(access)?, channel.map(access)?, page.map(access)?];
        if access == Access::Write {
            self.0.iter().try_for_each(SharedObject::seal_writes)?;
        }
        Ok(maps)
    }
}

/// The objects of both sides.
pub(super) struct Shared {
    down: Objects,
    up: Objects,
}

/// Objects that a follower inherits: those, and the lead's arena.
const INHERITED: usize = 2 * SIZES.len() + 1;

impl Shared {
    pub(super) fn create() -> anyhow::Result<Self> {
        let side = || -> anyhow::Result<Objects> {
            let [half, channel, page] = SIZES;
            Ok(Objects([
                SharedObject::create("bench-half", half)?,
                SharedObject::create("bench-channel", channel)?,
                SharedObject::create("bench-page", page)?,
            ]))
        };
        Ok(Self { down: side()?, up: side()? })
    }

    /// What the follower of `lead` inherits.
    pub(super) fn fds<'a>(&'a self, lead: &'a Side) -> anyhow::Result<Vec<BorrowedFd<'a>>> {
        let Handover::Give(giver) = &lead.handover else { bail!("a follower has no arena") };
        Ok(self
            .down
            .0
            .iter()
            .chain(&self.up.0)
            .chain([giver.object()])
            .map(|object| object.as_fd())
            .collect())
    }

    fn adopt(fds: Vec<OwnedFd>) -> anyhow::Result<Self> {
        let mut objects = fds.into_iter().zip(SIZES.into_iter().cycle());
        let mut side = || -> anyhow::Result<Objects> {
            let mut next = || {
                let (fd, bytes) = objects.next().expect("counted above");
                SharedObject::adopt(fd, bytes)
            };
            Ok(Objects([next()?, next()?, next()?]))
        };
        Ok(Self { down: side()?, up: side()? })
    }

    /// The side of the bench itself.
    pub(super) fn lead(&self) -> anyhow::Result<Side> {
        let give = |out, back| Ok(Handover::Give(Box::new(Giver::new(out, back)?)));
        Side::new(self.down.map(Access::Write)?, self.up.map(Access::Read)?, give)
    }

    fn follower(&self, arena: OwnedFd) -> anyhow::Result<Side> {
        let take = |back, inbox| Ok(Handover::Take(Box::new(Taker::new(arena, inbox, back)?)));
        Side::new(self.up.map(Access::Write)?, self.down.map(Access::Read)?, take)
    }
}

/// Everything that one process holds of the pair.
pub(super) struct Side {
    line: BareLine,
    ring: RingTalk<SLOT_PAYLOAD>,
    channel: ChannelTalk,
    futex: FutexTalk,
    bell: BellTalk,
    stream: (Producer, Consumer),
    deep: (Producer, Consumer),
    bare: (BareWriter, BareReader),
    fan: (Vec<Producer>, Vec<Consumer>),
    many: (Vec<Producer>, Vec<Consumer>),
    handover: Handover,
    /// While a swarm runs that it is attached to.
    client: Option<Box<ClientTalk>>,
    message: Message,
}

/// This side's part in handing blocks over.
enum Handover {
    Give(Box<Giver>),
    Take(Box<Taker>),
}

impl Side {
    fn new(
        mine: [Arc<Words>; 3],
        other: [Arc<Words>; 3],
        handover: impl FnOnce(Producer, Consumer) -> anyhow::Result<Handover>,
    ) -> anyhow::Result<Self> {
        let [mine, my_channel, my_page] = mine;
        let [other, other_channel, other_page] = other;
        let ends = |place: Place| {
            let memory = |slots: &Arc<Words>, heads: &Arc<Words>| RingMemory {
                slots: slots.clone(),
                first_word: place.first_word,
                capacity: place.capacity,
                heads: heads.clone(),
                head_word: place.head_word,
            };
            (Producer::new(memory(&mine, &other)), Consumer::new(memory(&other, &mine)))
        };
        let (ring_out, ring_in) = ends(PING);
        let (block_out, block_in) = ends(HANDOVER);
        let channel = |slots: &Arc<Words>, heads: &Arc<Words>| ChannelMemory {
            slots: slots.clone(),
            first_slot: 0,
            heads: heads.clone(),
            first_head: 0,
        };
        Ok(Self {
            line: BareLine { mine: mine.clone(), other: other.clone(), spot: 0, last: [0; SPOTS] },
            handover: handover(block_out, block_in)?,
            ring: RingTalk { out: ring_out, inbox: ring_in, message: Message::default() },
            channel: ChannelTalk {
                out: LaneSender::new(&channel(&my_channel, &other_page), Meter::private_sender()),
                inbox: LaneReceiver::new(&channel(&other_channel, &my_page), Meter::private_receiver()),
                message: Message::default(),
            },
            futex: FutexTalk { mine: mine.clone(), other: other.clone(), last: 0 },
            bell: BellTalk {
                bell: AgentBell::new((other.clone(), ASLEEP), (mine.clone(), BELL)),
                sleeper: AgentSleeper::new((mine.clone(), ASLEEP), (other.clone(), BELL)),
            },
            stream: ends(STREAM),
            deep: ends(DEEP),
            bare: (
                BareWriter { slots: mine.clone(), heads: other.clone(), tail: 0, head_seen: 0 },
                BareReader { slots: other.clone(), heads: mine.clone(), head: 0 },
            ),
            fan: (0..SUBSCRIBERS).map(|index| ends(fan(index))).unzip(),
            many: (0..CHANNELS).map(|index| ends(many(index))).unzip(),
            client: None,
            message: Message::default(),
        })
    }
}

/// A way to pass a number and six more words to the other side and to look for its answer.
pub(super) trait Talk {
    fn send(&mut self, number: u64, waiter: Waiter<'_>) -> anyhow::Result<()>;
    /// The number of the next message; the whole message was read.
    fn poll(&mut self) -> anyhow::Result<Option<u64>>;
}

/// A payload of `N` bytes that begins and ends with `number`.
#[inline]
pub(super) fn bytes<const N: usize>(number: u64) -> [u8; N] {
    let mut bytes = [number as u8; N];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[N - 8..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The number of a payload that arrived. All of it was read: whoever took it out copied it.
#[inline]
pub(super) fn number<const N: usize>(payload: &[u8]) -> anyhow::Result<u64> {
    let Ok(payload): Result<&[u8; N], _> = payload.try_into() else {
        bail!("{} bytes arrived", payload.len())
    };
    let (first, last) = (payload.first_chunk::<8>(), payload.last_chunk::<8>());
    if first != last {
        bail!("a message arrived damaged: it begins {first:?} and ends {last:?}");
    }
    Ok(first.map_or(0, |word| u64::from_le_bytes(*word)))
}

/// The floor of every round trip: one line each way, written by one side and polled by the other.
struct BareLine {
    mine: Arc<Words>,
    other: Arc<Words>,
    spot: usize,
    /// Sequence last seen, per spot.
    last: [u64; SPOTS],
}

impl BareLine {
    fn at(&mut self, spot: usize) -> &mut Self {
        self.spot = spot % SPOTS;
        self
    }
}

impl Talk for BareLine {
    #[inline]
    fn send(&mut self, number: u64, _: Waiter<'_>) -> anyhow::Result<()> {
        write_line(&self.mine, LINES + self.spot * SPOT, number, number);
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        let at = LINES + self.spot * SPOT;
        let sequence = self.other.line(at)[0].load(Ordering::Acquire);
        if sequence == self.last[self.spot] {
            return Ok(None);
        }
        self.last[self.spot] = sequence;
        read_line(&self.other, at, sequence)?;
        Ok(Some(sequence))
    }
}

/// Writes the payload words of a line, then its sequence.
#[inline]
fn write_line(mapping: &Words, at: usize, sequence: u64, number: u64) {
    let line = mapping.line(at);
    for word in &line[1..] {
        word.store(number, Ordering::Relaxed);
    }
    line[0].store(sequence, Ordering::Release);
}

/// Reads the payload words of a line into private memory.
#[inline]
fn read_line(mapping: &Words, at: usize, number: u64) -> anyhow::Result<()> {
    let line = mapping.line(at);
    let found: [u64; WORDS] =
        std::hint::black_box(std::array::from_fn(|i| line[1 + i].load(Ordering::Relaxed)));
    if found[0] != number || found[WORDS - 1] != number {
        bail!("line {number} arrived damaged");
    }
    Ok(())
}

/// The product's ring, messages of `N` bytes.
struct RingTalk<const N: usize> {
    out: Producer,
    inbox: Consumer,
    message: Message,
}

impl<const N: usize> Talk for RingTalk<N> {
    #[inline]
    fn send(&mut self, number: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
        push(&mut self.out, &bytes::<N>(number), waiter)
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        if !self.inbox.try_pop(&mut self.message)? {
            return Ok(None);
        }
        number::<N>(self.message.payload()).map(Some)
    }
}

#[inline]
fn push(producer: &mut Producer, payload: &[u8], waiter: Waiter<'_>) -> anyhow::Result<()> {
    waiter.until(|| match producer.try_push(KIND, payload) {
        Ok(()) => Ok(Some(())),
        Err(PushError::Full) => Ok(None),
        Err(error) => Err(error.into()),
    })
}

/// A chain of slots through the same ring.
struct ChainTalk<'a>(&'a mut RingTalk<SLOT_PAYLOAD>);

impl Talk for ChainTalk<'_> {
    fn send(&mut self, number: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
        push(&mut self.0.out, &bytes::<CHAIN_BYTES>(number), waiter)
    }

    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        if !self.0.inbox.try_pop(&mut self.0.message)? {
            return Ok(None);
        }
        number::<CHAIN_BYTES>(self.0.message.payload()).map(Some)
    }
}

/// A channel of three lanes, all looked at.
struct ChannelTalk {
    out: LaneSender,
    inbox: LaneReceiver,
    message: Message,
}

impl Talk for ChannelTalk {
    #[inline]
    fn send(&mut self, number: u64, _: Waiter<'_>) -> anyhow::Result<()> {
        self.out.try_push(Lane::Normal, KIND, &bytes::<SLOT_PAYLOAD>(number))?;
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        if self.inbox.try_pop(&mut self.message)?.is_none() {
            return Ok(None);
        }
        number::<SLOT_PAYLOAD>(self.message.payload()).map(Some)
    }
}

/// The floor of waking: a futex and nothing else.
struct FutexTalk {
    mine: Arc<Words>,
    other: Arc<Words>,
    last: u32,
}

impl FutexTalk {
    fn send(&mut self, number: u32) {
        let word = self.mine.half(FUTEX);
        word.store(number, Ordering::Release);
        futex::wake(word);
    }

    fn receive(&mut self) -> u32 {
        let word = self.other.half(FUTEX);
        loop {
            let found = word.load(Ordering::Acquire);
            if found != self.last {
                self.last = found;
                return found;
            }
            futex::wait(word, self.last, Duration::from_secs(1));
        }
    }
}

/// The product's doorbell: announce, look again, sleep; ring once per turn.
struct BellTalk {
    bell: AgentBell,
    sleeper: AgentSleeper,
}

impl BellTalk {
    fn receive(&self, ring: &mut RingTalk<SLOT_PAYLOAD>) -> anyhow::Result<u64> {
        loop {
            if let Some(number) = ring.poll()? {
                return Ok(number);
            }
            self.sleeper.sleep(Duration::from_secs(1), || ring.inbox.is_ready());
        }
    }
}

/// The floor of a stream: whole lines, the sequence in the line, no kind, no length, no copy, no check.
struct BareWriter {
    slots: Arc<Words>,
    heads: Arc<Words>,
    tail: u64,
    head_seen: u64,
}

impl BareWriter {
    #[inline]
    fn try_push(&mut self, number: u64) -> bool {
        if self.tail - self.head_seen >= STREAM_SLOTS {
            self.head_seen = self.heads.word(BARE_HEAD).load(Ordering::Acquire);
            if self.tail - self.head_seen >= STREAM_SLOTS {
                return false;
            }
        }
        write_line(&self.slots, bare_line(self.tail), self.tail + 1, number);
        self.tail += 1;
        true
    }
}

struct BareReader {
    slots: Arc<Words>,
    heads: Arc<Words>,
    head: u64,
}

impl BareReader {
    #[inline]
    fn try_pop(&mut self, number: u64) -> anyhow::Result<bool> {
        let at = bare_line(self.head);
        if self.slots.line(at)[0].load(Ordering::Acquire) != self.head + 1 {
            return Ok(false);
        }
        read_line(&self.slots, at, number)?;
        self.head += 1;
        if self.head.is_multiple_of(64) {
            self.acknowledge();
        }
        Ok(true)
    }

    #[inline]
    fn acknowledge(&self) {
        self.heads.word(BARE_HEAD).store(self.head, Ordering::Release);
    }
}

#[inline]
fn bare_line(position: u64) -> usize {
    BARE + (position % STREAM_SLOTS) as usize * SLOT_WORDS
}

/// Round trips that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trip {
    /// The bare line.
    Line,
    /// One slot of the ring.
    Ring,
    /// One slot through three lanes.
    Channel,
    /// A chain of slots.
    Chain,
    /// Both sides sleep on a bare futex.
    Futex,
    /// Both sides sleep at the doorbell.
    Bell,
    /// From client to client.
    Client,
}

/// Streams that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Bare lines.
    Bare,
    /// The ring, message by message.
    Ring,
    /// The ring, in batches.
    Batch,
    /// The ring that is larger than the caches.
    Deep,
    /// From client to client, sent in batches.
    Client,
}

/// What the peer is asked to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Answer so many messages; the bare line lies at this spot.
    Trip(Trip, u64, usize),
    /// Send so many messages.
    Flow(Flow, u64),
    /// Take so many broadcasts out of the first so many rings.
    Fan(usize, u64),
    /// Answer so many requests, each on the ring that it names.
    Many(u64),
    /// Take so many blocks, reading all of each or nothing.
    Blocks(bool, u64),
    /// Attach to the swarm of the process of this number and open a line to its client.
    Attach(u64),
    /// Leave it.
    Detach,
}

impl Job {
    pub(super) fn order(self, manner: Manner) -> Order {
        let (job, what, count) = match self {
            Job::Trip(trip, rounds, spot) => (0, trip as u64 | (spot as u64) << 8, rounds),
            Job::Flow(flow, count) => (1, flow as u64, count),
            Job::Fan(rings, count) => (2, rings as u64, count),
            Job::Many(rounds) => (3, 0, rounds),
            Job::Blocks(read, count) => (4, u64::from(read), count),
            Job::Attach(lead) => (5, 0, lead),
            Job::Detach => (6, 0, 0),
        };
        [job, what, count, manner.to_word()]
    }

    fn parse([job, what, count, _]: Order) -> anyhow::Result<Self> {
        const TRIPS: [Trip; 7] =
            [Trip::Line, Trip::Ring, Trip::Channel, Trip::Chain, Trip::Futex, Trip::Bell, Trip::Client];
        const FLOWS: [Flow; 5] = [Flow::Bare, Flow::Ring, Flow::Batch, Flow::Deep, Flow::Client];
        let [what, spot] = [what as u8 as usize, (what >> 8) as usize];
        Ok(match job {
            0 if what < TRIPS.len() => Job::Trip(TRIPS[what], count, spot),
            1 if what < FLOWS.len() => Job::Flow(FLOWS[what], count),
            2 if what <= SUBSCRIBERS => Job::Fan(what, count),
            3 => Job::Many(count),
            4 => Job::Blocks(what != 0, count),
            5 => Job::Attach(count),
            6 => Job::Detach,
            _ => bail!("no such order: {job} {what}"),
        })
    }
}

/// The peer: does as ordered until its parent is gone.
pub(super) fn follow(control: &Control, mut fds: Vec<OwnedFd>) -> anyhow::Result<()> {
    ensure!(fds.len() == INHERITED, "{} objects", fds.len());
    let arena = fds.pop().expect("counted");
    let mut side = Shared::adopt(fds)?.follower(arena)?;
    control.send(Order::default())?;
    while let Some(order) = control.receive()? {
        let waiter = Waiter::new(Manner::from_word(order[3]), None);
        let before = kept_waiting();
        let mut outcome = 0;
        match Job::parse(order)? {
            Job::Trip(trip, rounds, spot) => side.answer_all(trip, rounds, spot, waiter)?,
            Job::Flow(flow, count) => side.send_all(flow, count, waiter)?,
            Job::Fan(rings, count) => outcome = side.take_broadcasts(rings, count, waiter)?,
            Job::Many(rounds) => side.answer_on_many(rounds, waiter)?,
            Job::Blocks(read, count) => match &mut side.handover {
                Handover::Take(taker) => taker.take(read, count, waiter)?,
                Handover::Give(_) => bail!("the owner takes no blocks"),
            },
            Job::Attach(lead) => {
                let mut client = ClientTalk::attach(lead, FOLLOW)?;
                client.connect(LEAD)?;
                side.client = Some(Box::new(client));
            }
            Job::Detach => side.client = None,
        }
        control.send([outcome, kept_waiting() - before, 0, 0])?;
    }
    Ok(())
}

impl Side {
    /// Round trips, each in ns; the peer has the matching [`Job::Trip`].
    pub(super) fn trips(
        &mut self,
        trip: Trip,
        rounds: u64,
        spot: usize,
        waiter: Waiter<'_>,
    ) -> anyhow::Result<Vec<f64>> {
        match trip {
            Trip::Line => ping(self.line.at(spot), rounds, waiter),
            Trip::Ring => ping(&mut self.ring, rounds, waiter),
            Trip::Channel => ping(&mut self.channel, rounds, waiter),
            Trip::Chain => ping(&mut ChainTalk(&mut self.ring), rounds, waiter),
            Trip::Client => ping(self.client()?, rounds, waiter),
            Trip::Futex => timed(rounds, |number| {
                self.futex.send(number as u32);
                Ok(u64::from(self.futex.receive()))
            }),
            Trip::Bell => timed(rounds, |number| {
                self.ring.send(number, waiter)?;
                self.bell.bell.ring();
                self.bell.receive(&mut self.ring)
            }),
        }
    }

    fn answer_all(&mut self, trip: Trip, rounds: u64, spot: usize, waiter: Waiter<'_>) -> anyhow::Result<()> {
        match trip {
            Trip::Line => pong(self.line.at(spot), rounds, waiter),
            Trip::Ring => pong(&mut self.ring, rounds, waiter),
            Trip::Channel => pong(&mut self.channel, rounds, waiter),
            Trip::Chain => pong(&mut ChainTalk(&mut self.ring), rounds, waiter),
            Trip::Client => pong(self.client()?, rounds, waiter),
            Trip::Futex => (0..rounds).try_for_each(|_| {
                let number = self.futex.receive();
                self.futex.send(number);
                Ok(())
            }),
            Trip::Bell => (0..rounds).try_for_each(|_| {
                let number = self.bell.receive(&mut self.ring)?;
                self.ring.send(number, waiter)?;
                self.bell.bell.ring();
                Ok(())
            }),
        }
    }

    /// Takes `count` messages of the peer's stream; ns from the first to the last.
    pub(super) fn take_all(&mut self, flow: Flow, count: u64, waiter: Waiter<'_>) -> anyhow::Result<f64> {
        match flow {
            Flow::Bare => {
                let inbox = &mut self.bare.1;
                let took = first_to_last(count, |expected| {
                    waiter.until(|| Ok(inbox.try_pop(expected)?.then_some(expected)))
                })?;
                inbox.acknowledge();
                Ok(took)
            }
            Flow::Ring | Flow::Deep => {
                let inbox = if flow == Flow::Deep { &mut self.deep.1 } else { &mut self.stream.1 };
                let message = &mut self.message;
                first_to_last(count, |_| {
                    waiter.until(|| Ok(inbox.try_pop(message)?.then_some(())))?;
                    number::<SLOT_PAYLOAD>(message.payload())
                })
            }
            Flow::Client => {
                let client = self.client()?;
                first_to_last(count, |_| waiter.until(|| client.poll()))
            }
            Flow::Batch => {
                let (inbox, message) = (&mut self.stream.1, &mut self.message);
                let (mut began, mut taken, mut wrong) = (clock::now(), 0, None);
                while taken < count {
                    waiter.until(|| {
                        let most = BATCH.min((count - taken) as usize);
                        let found = inbox.pop_batch(message, most, |message| {
                            if number::<SLOT_PAYLOAD>(message.payload()).ok() != Some(taken) {
                                wrong = wrong.or(Some(taken));
                            }
                            if taken == 0 {
                                began = clock::now();
                            }
                            taken += 1;
                        })?;
                        Ok((found > 0).then_some(()))
                    })?;
                    ensure!(wrong.is_none(), "message {wrong:?} arrived damaged or out of order");
                }
                Ok((clock::now().0 - began.0) as f64)
            }
        }
    }

    fn send_all(&mut self, flow: Flow, count: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
        match flow {
            Flow::Bare => (0..count)
                .try_for_each(|number| waiter.until(|| Ok(self.bare.0.try_push(number).then_some(())))),
            Flow::Deep => (0..count)
                .try_for_each(|number| push(&mut self.deep.0, &bytes::<SLOT_PAYLOAD>(number), waiter)),
            Flow::Ring => (0..count)
                .try_for_each(|number| push(&mut self.stream.0, &bytes::<SLOT_PAYLOAD>(number), waiter)),
            Flow::Client => self.client()?.send_batches::<BATCH>(count, waiter),
            Flow::Batch => {
                let (mut number, mut payloads) = (0, [[0; SLOT_PAYLOAD]; BATCH]);
                while number < count {
                    let batch = BATCH.min((count - number) as usize);
                    for (at, payload) in payloads[..batch].iter_mut().enumerate() {
                        *payload = bytes(number + at as u64);
                    }
                    let (mut at, out) = (0, &mut self.stream.0);
                    while at < batch {
                        at += waiter.until(|| {
                            let rest = payloads[at..batch].iter().map(|payload| &payload[..]);
                            match out.try_push_batch(KIND, rest)? {
                                0 => Ok(None),
                                pushed => Ok(Some(pushed)),
                            }
                        })?;
                    }
                    number += batch as u64;
                }
                Ok(())
            }
        }
    }

    /// Attaches the bench's own client.
    pub(super) fn attach(&mut self) -> anyhow::Result<()> {
        let client = ClientTalk::attach(u64::from(std::process::id()), LEAD)?;
        self.client = Some(Box::new(client));
        Ok(())
    }

    /// Takes the line that the peer has opened.
    pub(super) fn connect(&mut self) -> anyhow::Result<()> {
        self.client()?.connect(FOLLOW)
    }

    /// Leaves the swarm.
    pub(super) fn detach(&mut self) {
        self.client = None;
    }

    fn client(&mut self) -> anyhow::Result<&mut ClientTalk> {
        match &mut self.client {
            Some(client) => Ok(client),
            None => bail!("not attached to a swarm"),
        }
    }

    /// The owner's end of the hand-over.
    pub(super) fn giver(&mut self) -> anyhow::Result<&mut Giver> {
        match &mut self.handover {
            Handover::Give(giver) => Ok(giver),
            Handover::Take(_) => bail!("only the owner gives blocks"),
        }
    }

    /// Writes broadcast `number` into the first `rings` of the peer's rings.
    #[inline]
    pub(super) fn broadcast(&mut self, number: u64, rings: usize, waiter: Waiter<'_>) -> anyhow::Result<()> {
        let payload = bytes::<SLOT_PAYLOAD>(number);
        self.fan.0[..rings].iter_mut().try_for_each(|ring| push(ring, &payload, waiter))
    }

    /// Takes `count` messages out of each of the first `rings` rings; the time when the last was taken, ns.
    fn take_broadcasts(&mut self, rings: usize, count: u64, waiter: Waiter<'_>) -> anyhow::Result<u64> {
        let mut taken = [0; SUBSCRIBERS];
        let mut open = rings;
        while open > 0 {
            let (inboxes, message) = (&mut self.fan.1[..rings], &mut self.message);
            waiter.until(|| {
                let mut found = false;
                for (inbox, taken) in inboxes.iter_mut().zip(&mut taken) {
                    // A few at a time, so that every subscriber moves on.
                    for _ in 0..16 {
                        if !inbox.try_pop(message)? {
                            break;
                        }
                        ensure!(
                            number::<SLOT_PAYLOAD>(message.payload())? == *taken,
                            "a broadcast out of order"
                        );
                        *taken += 1;
                        open -= usize::from(*taken == count);
                        found = true;
                    }
                }
                Ok(found.then_some(()))
            })?;
        }
        Ok(clock::now().0)
    }

    /// Round trips with `channels` inbound rings of which a random one brings the answer, all of them
    /// looked at in turn. Each in ns.
    pub(super) fn trips_on_many(
        &mut self,
        channels: usize,
        rounds: u64,
        waiter: Waiter<'_>,
    ) -> anyhow::Result<Vec<f64>> {
        let mut luck = SplitMix64::new(channels as u64);
        let inboxes = &mut self.many.1[..channels];
        let message = &mut self.message;
        let mut at = 0;
        timed(rounds, |_| {
            let wanted = luck.below(channels as u64);
            self.ring.send(wanted, waiter)?;
            // All rings in turn, on from where the last answer was; a pause, if any, after all of them.
            waiter.until(|| {
                for _ in 0..channels {
                    at = if at + 1 == channels { 0 } else { at + 1 };
                    if inboxes[at].try_pop(message)? {
                        return Ok(Some(()));
                    }
                }
                Ok(None)
            })?;
            ensure!(
                at as u64 == wanted && number::<SLOT_PAYLOAD>(message.payload())? == wanted,
                "wrong ring {at}"
            );
            Ok(0)
        })
    }

    fn answer_on_many(&mut self, rounds: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
        for _ in 0..rounds {
            let wanted = waiter.until(|| self.ring.poll())?;
            let Some(ring) = self.many.0.get_mut(wanted as usize) else { bail!("no channel {wanted}") };
            push(ring, &bytes::<SLOT_PAYLOAD>(wanted), waiter)?;
        }
        Ok(())
    }
}

/// Round trips of `talk`, each in ns from send to answer.
fn ping(talk: &mut impl Talk, rounds: u64, waiter: Waiter<'_>) -> anyhow::Result<Vec<f64>> {
    let times = timed(rounds, |number| {
        talk.send(number, waiter)?;
        waiter.until(|| talk.poll())
    })?;
    // The line's last word must differ from the first of the next measurement.
    talk.send(0, waiter)?;
    Ok(times)
}

fn pong(talk: &mut impl Talk, rounds: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
    for _ in 0..rounds {
        let number = waiter.until(|| talk.poll())?;
        talk.send(number, waiter)?;
    }
    let last = waiter.until(|| talk.poll())?;
    ensure!(last == 0, "message {last} after the last one");
    Ok(())
}

/// Times `round`, which is given its number from 1 on and answers with it or with 0.
#[inline]
fn timed(rounds: u64, mut round: impl FnMut(u64) -> anyhow::Result<u64>) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(rounds as usize);
    // One look at the clock a round: the end of one is the start of the next.
    let mut before = clock::now();
    for number in 1..=rounds {
        let found = round(number)?;
        let now = clock::now();
        if found != number && found != 0 {
            bail!("answer {found} to message {number}");
        }
        times.push((now.0 - before.0) as f64);
        before = now;
    }
    Ok(times)
}

/// Ns from the first of `count` messages to the last; `take` waits for one and says its number.
#[inline]
fn first_to_last(count: u64, mut take: impl FnMut(u64) -> anyhow::Result<u64>) -> anyhow::Result<f64> {
    let mut began = clock::now();
    for expected in 0..count {
        let found = take(expected)?;
        if found != expected {
            bail!("message {found} where {expected} was due");
        }
        if expected == 0 {
            began = clock::now();
        }
    }
    Ok((clock::now().0 - began.0) as f64)
}
