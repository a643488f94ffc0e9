//! Everybody who is measured, behind one face: try to send a number in a message of one cache line, look for the next.

use crate::wait::{now_ns, until};
use ai_swarm::messaging::lanes::{ChannelMemory, Lane, LaneReceiver, LaneSender};
use ai_swarm::messaging::meters::Meter;
use ai_swarm::shm::ring::{Consumer, Message, Producer, PushError, RingMemory, SLOT_PAYLOAD, SLOT_WORDS};
use ai_swarm::shm::{Access, SharedObject, Words};
use anyhow::{Context as _, bail, ensure};
use crossbeam::channel;
use iceoryx2::active_request::ActiveRequest;
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::server::Server;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::port::update_connections::UpdateConnections as _;
use iceoryx2::prelude::*;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One cache line. The ring's slot has 56 of its bytes for the payload; all others carry the whole of it.
type Cell = [u64; 8];

/// Slots of every queue through which messages stream, unless the name says otherwise.
const STREAM_SLOTS: u64 = 16_384;
/// Slots of a ring that is larger than the caches of a core.
const DEEP_SLOTS: u64 = 262_144;
/// iceoryx2 is not faster with more, and takes long to set up.
const ICE_SLOTS: usize = 1024;
const BATCH: usize = 64;

/// Where the two sides live.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Between {
    Processes,
    Threads,
}

/// What a contender is called and what is measured of it.
pub struct Name {
    pub name: &'static str,
    pub between: Between,
    pub trips: bool,
    pub stream: bool,
    /// About a microsecond a message.
    pub slow: bool,
}

const fn name(name: &'static str, between: Between, trips: bool, stream: bool, slow: bool) -> Name {
    Name { name, between, trips, stream, slow }
}

pub const LINE: usize = 0;
pub const RING: usize = 1;
pub const BATCH_ROW: usize = 2;
pub const ICE_PUBLISH: usize = 5;
pub const ICE_REQUEST: usize = 6;
pub const RTRB: usize = 7;
pub const RTRB_CHUNKS: usize = 8;
pub const CROSSBEAM: usize = 10;

/// In the order of the table.
pub const NAMES: [Name; 13] = [
    name("bare cache line", Between::Processes, true, true, false),
    name("ai_swarm ring", Between::Processes, true, true, false),
    name("ai_swarm ring, batches of 64", Between::Processes, false, true, false),
    name("ai_swarm ring, 262,144 slots", Between::Processes, false, true, false),
    name("ai_swarm channel, three lanes", Between::Processes, true, true, false),
    name("iceoryx2 publish-subscribe", Between::Processes, true, true, true),
    name("iceoryx2 request-response", Between::Processes, true, false, true),
    name("rtrb", Between::Threads, true, true, false),
    name("rtrb, chunks of 64", Between::Threads, false, true, false),
    name("rtrb, 262,144 slots", Between::Threads, false, true, false),
    name("crossbeam bounded channel", Between::Threads, true, true, false),
    name("Unix seqpacket socket, polled", Between::Processes, true, true, true),
    name("pipe, polled", Between::Processes, true, true, true),
];

/// One side's ends of one contender; for threads both sides are here.
pub struct Contender {
    pub near: Ends,
    pub far: Option<Far>,
}

impl Contender {
    fn new(near: Ends) -> Self {
        Self { near, far: None }
    }

    /// Has both sides know each other before the first message.
    pub fn attach(&mut self) {
        match &mut self.near {
            Ends::IcePublish(ice) => ice.attach(),
            Ends::IceRequest(ice) => ice.attach(),
            _ => {}
        }
    }
}

/// The ends of one side.
pub enum Ends {
    Line(Box<(Bare, Bare)>),
    Ring(Box<(Ring, Ring)>),
    Batch(Box<Ring>),
    Deep(Box<Ring>),
    Channel(Box<Channel>),
    IcePublish(Box<IcePublish>),
    IceRequest(Box<IceRequest>),
    Rtrb(Box<Rtrb>),
    RtrbChunks(Box<Rtrb>),
    Crossbeam(Box<Crossbeam>),
    Socket(Box<Socket>),
    Pipe(Box<Pipe>),
}

/// The ends of the other thread. The others may not leave theirs.
pub enum Far {
    Rtrb(Box<Rtrb>),
    RtrbChunks(Box<Rtrb>),
    Crossbeam(Box<Crossbeam>),
}

impl Far {
    pub fn pong(&mut self, rounds: u64) -> anyhow::Result<()> {
        match self {
            Far::Rtrb(ends) | Far::RtrbChunks(ends) => pong(&mut **ends, rounds),
            Far::Crossbeam(ends) => pong(&mut **ends, rounds),
        }
    }

    pub fn send_all(&mut self, count: u64) -> anyhow::Result<()> {
        match self {
            Far::Rtrb(ends) => send_all(&mut **ends, count),
            Far::RtrbChunks(ends) => ends.send_chunks(count),
            Far::Crossbeam(ends) => send_all(&mut **ends, count),
        }
    }
}

/// Sends and receives single messages.
trait Talk {
    /// False when there is no room now.
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool>;
    /// The number of the next message.
    fn poll(&mut self) -> anyhow::Result<Option<u64>>;
}

#[inline]
fn send(talk: &mut impl Talk, number: u64) -> anyhow::Result<()> {
    until(|| Ok(talk.try_send(number)?.then_some(())))
}

#[inline]
fn ping(talk: &mut impl Talk, rounds: u64) -> anyhow::Result<Vec<f64>> {
    timed(rounds, |number| {
        send(talk, number)?;
        until(|| talk.poll())
    })
}

#[inline]
fn timed(rounds: u64, mut round: impl FnMut(u64) -> anyhow::Result<u64>) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(rounds as usize);
    let mut before = now_ns();
    for number in 1..=rounds {
        let found = round(number)?;
        let now = now_ns();
        if found != number {
            bail!("answer {found} to message {number}");
        }
        times.push((now - before) as f64);
        before = now;
    }
    Ok(times)
}

fn pong(talk: &mut impl Talk, rounds: u64) -> anyhow::Result<()> {
    for _ in 0..rounds {
        let number = until(|| talk.poll())?;
        send(talk, number)?;
    }
    Ok(())
}

fn send_all(talk: &mut impl Talk, count: u64) -> anyhow::Result<()> {
    (1..=count).try_for_each(|number| send(talk, number))
}

/// Ns from the first message to the last.
fn take_all(talk: &mut impl Talk, count: u64) -> anyhow::Result<f64> {
    let mut began = 0;
    for expected in 1..=count {
        let found = until(|| talk.poll())?;
        if found != expected {
            bail!("message {found} where {expected} was due");
        }
        if expected == 1 {
            began = now_ns();
        }
    }
    Ok((now_ns() - began) as f64)
}

impl Ends {
    pub fn ping(&mut self, rounds: u64) -> anyhow::Result<Vec<f64>> {
        match self {
            Ends::Line(ends) => ping(&mut ends.0, rounds),
            Ends::Ring(ends) => ping(&mut ends.0, rounds),
            Ends::Channel(ends) => ping(&mut **ends, rounds),
            Ends::IcePublish(ends) => ping(&mut **ends, rounds),
            Ends::IceRequest(ends) => ends.ping(rounds),
            Ends::Rtrb(ends) => ping(&mut **ends, rounds),
            Ends::Crossbeam(ends) => ping(&mut **ends, rounds),
            Ends::Socket(ends) => ping(&mut **ends, rounds),
            Ends::Pipe(ends) => ping(&mut **ends, rounds),
            Ends::Batch(_) | Ends::Deep(_) | Ends::RtrbChunks(_) => bail!("streams only"),
        }
    }

    pub fn pong(&mut self, rounds: u64) -> anyhow::Result<()> {
        match self {
            Ends::Line(ends) => pong(&mut ends.0, rounds),
            Ends::Ring(ends) => pong(&mut ends.0, rounds),
            Ends::Channel(ends) => pong(&mut **ends, rounds),
            Ends::IcePublish(ends) => pong(&mut **ends, rounds),
            Ends::IceRequest(ends) => ends.pong(rounds),
            Ends::Socket(ends) => pong(&mut **ends, rounds),
            Ends::Pipe(ends) => pong(&mut **ends, rounds),
            Ends::Batch(_) | Ends::Deep(_) => bail!("streams only"),
            Ends::Rtrb(_) | Ends::RtrbChunks(_) | Ends::Crossbeam(_) => bail!("the other thread answers"),
        }
    }

    pub fn send_all(&mut self, count: u64) -> anyhow::Result<()> {
        match self {
            Ends::Line(ends) => send_all(&mut ends.1, count),
            Ends::Ring(ends) => send_all(&mut ends.1, count),
            Ends::Batch(ring) => ring.send_batches(count),
            Ends::Deep(ring) => send_all(&mut **ring, count),
            Ends::Channel(ends) => send_all(&mut **ends, count),
            Ends::IcePublish(ends) => send_all(&mut **ends, count),
            Ends::Socket(ends) => send_all(&mut **ends, count),
            Ends::Pipe(ends) => send_all(&mut **ends, count),
            Ends::IceRequest(_) => bail!("round trips only"),
            Ends::Rtrb(_) | Ends::RtrbChunks(_) | Ends::Crossbeam(_) => bail!("the other thread sends"),
        }
    }

    pub fn take_all(&mut self, count: u64) -> anyhow::Result<f64> {
        match self {
            Ends::Line(ends) => take_all(&mut ends.1, count),
            Ends::Ring(ends) => take_all(&mut ends.1, count),
            Ends::Batch(ring) => ring.take_batches(count),
            Ends::Deep(ring) => take_all(&mut **ring, count),
            Ends::Channel(ends) => take_all(&mut **ends, count),
            Ends::IcePublish(ends) => take_all(&mut **ends, count),
            Ends::Rtrb(ends) => take_all(&mut **ends, count),
            Ends::RtrbChunks(ends) => ends.take_chunks(count),
            Ends::Crossbeam(ends) => take_all(&mut **ends, count),
            Ends::Socket(ends) => take_all(&mut **ends, count),
            Ends::Pipe(ends) => take_all(&mut **ends, count),
            Ends::IceRequest(_) => bail!("round trips only"),
        }
    }
}

// What is shared.

/// Memory and descriptors of both sides; the follower's own are those that it inherits.
pub struct Objects {
    /// Written by the lead, written by the follower: rings and lines; channels; pages with heads.
    memory: [[SharedObject; 3]; 2],
    sockets: [OwnedFd; 2],
    /// Lead to follower, follower to lead: reading end, writing end.
    pipes: [[OwnedFd; 2]; 2],
}

const CHANNEL_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Heads and lines of the bare stream come first, a line pair each.
const PAIR: usize = 16;
const HEADS: usize = 0;
const BARE_HEAD: usize = 4 * PAIR;
const BARE: usize = 8 * PAIR;
const BARE_STREAM: usize = BARE + 8;
const RINGS: usize = BARE_STREAM + PAIR + STREAM_SLOTS as usize * SLOT_WORDS;
/// First word, slots, head of each ring.
const PLACES: [(usize, u64, usize); 4] = [
    (RINGS, 1024, HEADS),
    (RINGS + 1024 * SLOT_WORDS, STREAM_SLOTS, HEADS + PAIR),
    (RINGS + (1024 + STREAM_SLOTS as usize) * SLOT_WORDS, STREAM_SLOTS, HEADS + 2 * PAIR),
    (RINGS + (1024 + 2 * STREAM_SLOTS as usize) * SLOT_WORDS, DEEP_SLOTS, HEADS + 3 * PAIR),
];
const MEMORY_BYTES: usize = ((RINGS + (1024 + 2 * STREAM_SLOTS as usize + DEEP_SLOTS as usize) * SLOT_WORDS)
    * 8)
.next_multiple_of(PAGE_BYTES);
const SIZES: [usize; 3] = [MEMORY_BYTES, CHANNEL_BYTES, PAGE_BYTES];

impl Objects {
    pub fn create() -> anyhow::Result<Self> {
        let side = || -> anyhow::Result<[SharedObject; 3]> {
            let [memory, channel, page] = SIZES;
            Ok([
                SharedObject::create("memory", memory)?,
                SharedObject::create("channel", channel)?,
                SharedObject::create("page", page)?,
            ])
        };
        Ok(Self { memory: [side()?, side()?], sockets: seqpacket_pair()?, pipes: [pipe()?, pipe()?] })
    }

    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let memory = self.memory.iter().flatten().map(|object| object.as_fd());
        let [[down_reader, _], [_, up_writer]] = &self.pipes;
        memory.chain([self.sockets[1].as_fd(), down_reader.as_fd(), up_writer.as_fd()]).collect()
    }
}

fn seqpacket_pair() -> anyhow::Result<[OwnedFd; 2]> {
    use std::os::fd::FromRawFd as _;
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` is valid for two descriptors.
    let outcome = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    ensure!(outcome == 0, "no socket: {}", io::Error::last_os_error());
    // SAFETY: the call above made them, and nobody else owns them.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn pipe() -> anyhow::Result<[OwnedFd; 2]> {
    use std::os::fd::FromRawFd as _;
    let mut fds = [0; 2];
    // SAFETY: `fds` is valid for two descriptors.
    let outcome = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) };
    ensure!(outcome == 0, "no pipe: {}", io::Error::last_os_error());
    // SAFETY: the call above made them, and nobody else owns them.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The contenders as the lead sees them, in the order of [`NAMES`].
pub fn lead(objects: &Objects, run: &str) -> anyhow::Result<Vec<Contender>> {
    let [mine, other] = &objects.memory;
    let (mine, other) = (map(mine, Access::Write)?, map(other, Access::Read)?);
    let clone = |fd: &OwnedFd| fd.try_clone();
    let pipes = (clone(&objects.pipes[1][0])?, clone(&objects.pipes[0][1])?);
    build(&mine, &other, clone(&objects.sockets[0])?, pipes, run, true)
}

/// The contenders as the follower sees them.
pub fn follow(mut fds: Vec<OwnedFd>, run: &str) -> anyhow::Result<Vec<Contender>> {
    ensure!(fds.len() == 9, "{} descriptors", fds.len());
    let mut rest = fds.split_off(6).into_iter();
    let mut objects =
        fds.into_iter().zip(SIZES.into_iter().cycle()).map(|(fd, bytes)| SharedObject::adopt(fd, bytes));
    let mut next = || objects.next().context("six objects")?.map_err(anyhow::Error::from);
    let other = map(&[next()?, next()?, next()?], Access::Read)?;
    let mine = map(&[next()?, next()?, next()?], Access::Write)?;
    let mut next = || rest.next().context("three descriptors");
    let socket = next()?;
    build(&mine, &other, socket, (next()?, next()?), run, false)
}

fn map(objects: &[SharedObject; 3], access: Access) -> anyhow::Result<[Arc<Words>; 3]> {
    let [memory, channel, page] = objects;
    let words = [memory.map(access)?, channel.map(access)?, page.map(access)?];
    if access == Access::Write {
        objects.iter().try_for_each(SharedObject::seal_writes)?;
    }
    Ok(words)
}

fn build(
    mine: &[Arc<Words>; 3],
    other: &[Arc<Words>; 3],
    socket: OwnedFd,
    (reader, writer): (OwnedFd, OwnedFd),
    run: &str,
    leads: bool,
) -> anyhow::Result<Vec<Contender>> {
    let ring = |place: usize| Ring::new(&mine[0], &other[0], PLACES[place]);
    let bare = |first: usize, lines: u64| Bare {
        mine: mine[0].clone(),
        other: other[0].clone(),
        first,
        lines,
        tail: 0,
        head: 0,
        head_seen: 0,
    };
    let threads = |near: Ends, far: Far| Contender { near, far: Some(far) };
    let (rtrb_near, rtrb_far) = Rtrb::pair(STREAM_SLOTS);
    let (chunks_near, chunks_far) = Rtrb::pair(STREAM_SLOTS);
    let (deep_near, deep_far) = Rtrb::pair(DEEP_SLOTS);
    let (crossbeam_near, crossbeam_far) = Crossbeam::pair();
    set_log_level(LogLevel::Error);
    Ok(vec![
        Contender::new(Ends::Line(Box::new((bare(BARE, 1), bare(BARE_STREAM + 8, STREAM_SLOTS))))),
        Contender::new(Ends::Ring(Box::new((ring(0), ring(1))))),
        Contender::new(Ends::Batch(Box::new(ring(2)))),
        Contender::new(Ends::Deep(Box::new(ring(3)))),
        Contender::new(Ends::Channel(Box::new(Channel::new(mine, other)))),
        Contender::new(Ends::IcePublish(Box::new(IcePublish::new(run, leads)?))),
        Contender::new(Ends::IceRequest(Box::new(IceRequest::new(run, leads)?))),
        threads(Ends::Rtrb(Box::new(rtrb_near)), Far::Rtrb(Box::new(rtrb_far))),
        threads(Ends::RtrbChunks(Box::new(chunks_near)), Far::RtrbChunks(Box::new(chunks_far))),
        threads(Ends::Rtrb(Box::new(deep_near)), Far::Rtrb(Box::new(deep_far))),
        threads(Ends::Crossbeam(Box::new(crossbeam_near)), Far::Crossbeam(Box::new(crossbeam_far))),
        Contender::new(Ends::Socket(Box::new(Socket(UnixStream::from(socket))))),
        Contender::new(Ends::Pipe(Box::new(Pipe { reader: File::from(reader), writer: File::from(writer) }))),
    ])
}

// The contenders.

#[inline]
fn cell(number: u64) -> Cell {
    [number; 8]
}

/// The number in a message, all of which was copied out.
#[inline]
fn number(cell: &Cell) -> anyhow::Result<u64> {
    if cell[0] != cell[7] {
        bail!("a message arrived damaged: {cell:?}");
    }
    Ok(cell[0])
}

/// Lines with the sequence in them, nothing checked.
pub struct Bare {
    mine: Arc<Words>,
    other: Arc<Words>,
    first: usize,
    lines: u64,
    tail: u64,
    head: u64,
    head_seen: u64,
}

impl Talk for Bare {
    #[inline]
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        if self.lines > 1 && self.tail - self.head_seen >= self.lines {
            self.head_seen = self.other.word(BARE_HEAD).load(Ordering::Acquire);
            if self.tail - self.head_seen >= self.lines {
                return Ok(false);
            }
        }
        let line = self.mine.line(self.first + (self.tail % self.lines) as usize * 8);
        line[1..].iter().for_each(|word| word.store(number, Ordering::Relaxed));
        self.tail += 1;
        line[0].store(self.tail, Ordering::Release);
        Ok(true)
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        let line = self.other.line(self.first + (self.head % self.lines) as usize * 8);
        if line[0].load(Ordering::Acquire) != self.head + 1 {
            return Ok(None);
        }
        let words: [u64; 7] =
            std::hint::black_box(std::array::from_fn(|i| line[1 + i].load(Ordering::Relaxed)));
        self.head += 1;
        if self.lines > 1 && self.head.is_multiple_of(64) {
            self.mine.word(BARE_HEAD).store(self.head, Ordering::Release);
        }
        Ok(Some(words[6]))
    }
}

/// The product's ring.
pub struct Ring {
    out: Producer,
    inbox: Consumer,
    message: Message,
}

#[inline]
fn slot(number: u64) -> [u8; SLOT_PAYLOAD] {
    let mut bytes = [number as u8; SLOT_PAYLOAD];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[SLOT_PAYLOAD - 8..].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[inline]
fn slot_number(payload: &[u8]) -> anyhow::Result<u64> {
    let (first, last) = (payload.first_chunk::<8>(), payload.last_chunk::<8>());
    if payload.len() != SLOT_PAYLOAD || first != last {
        bail!("a message arrived damaged: {payload:?}");
    }
    Ok(first.map_or(0, |word| u64::from_le_bytes(*word)))
}

impl Ring {
    fn new(
        mine: &Arc<Words>,
        other: &Arc<Words>,
        (first_word, capacity, head_word): (usize, u64, usize),
    ) -> Self {
        let memory = |slots: &Arc<Words>, heads: &Arc<Words>| RingMemory {
            slots: slots.clone(),
            first_word,
            capacity,
            heads: heads.clone(),
            head_word,
        };
        let (out, inbox) = (Producer::new(memory(mine, other)), Consumer::new(memory(other, mine)));
        Self { out, inbox, message: Message::default() }
    }

    fn send_batches(&mut self, count: u64) -> anyhow::Result<()> {
        let (mut number, mut slots) = (1, [[0; SLOT_PAYLOAD]; BATCH]);
        while number <= count {
            let batch = BATCH.min((count - number + 1) as usize);
            slots[..batch].iter_mut().zip(number..).for_each(|(to, number)| *to = slot(number));
            let mut at = 0;
            while at < batch {
                at += until(|| {
                    let pushed = self.out.try_push_batch(1, slots[at..batch].iter().map(|slot| &slot[..]))?;
                    Ok((pushed > 0).then_some(pushed))
                })?;
            }
            number += batch as u64;
        }
        Ok(())
    }

    fn take_batches(&mut self, count: u64) -> anyhow::Result<f64> {
        let (mut began, mut taken, mut wrong) = (0, 0, false);
        while taken < count {
            until(|| {
                let most = BATCH.min((count - taken) as usize);
                let found = self.inbox.pop_batch(&mut self.message, most, |message| {
                    taken += 1;
                    wrong |= slot_number(message.payload()).ok() != Some(taken);
                    if taken == 1 {
                        began = now_ns();
                    }
                })?;
                Ok((found > 0).then_some(()))
            })?;
            ensure!(!wrong, "a message arrived damaged or out of order before {taken}");
        }
        Ok((now_ns() - began) as f64)
    }
}

impl Talk for Ring {
    #[inline]
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        match self.out.try_push(1, &slot(number)) {
            Ok(()) => Ok(true),
            Err(PushError::Full) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        if !self.inbox.try_pop(&mut self.message)? {
            return Ok(None);
        }
        slot_number(self.message.payload()).map(Some)
    }
}

/// The product's channel: three lanes, counted, every 16th message with its time.
pub struct Channel {
    out: LaneSender,
    inbox: LaneReceiver,
    message: Message,
}

impl Channel {
    fn new(mine: &[Arc<Words>; 3], other: &[Arc<Words>; 3]) -> Self {
        let memory = |slots: &Arc<Words>, heads: &Arc<Words>| ChannelMemory {
            slots: slots.clone(),
            first_slot: 0,
            heads: heads.clone(),
            first_head: 0,
        };
        Self {
            out: LaneSender::new(&memory(&mine[1], &other[2]), Meter::private_sender()),
            inbox: LaneReceiver::new(&memory(&other[1], &mine[2]), Meter::private_receiver()),
            message: Message::default(),
        }
    }
}

impl Talk for Channel {
    #[inline]
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        match self.out.try_push(Lane::Normal, 1, &slot(number)) {
            Ok(()) => Ok(true),
            Err(PushError::Full) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        if self.inbox.try_pop(&mut self.message)?.is_none() {
            return Ok(None);
        }
        slot_number(self.message.payload()).map(Some)
    }
}

type Ice = ipc::Service;

/// Two services, one each way: loan, write, send; nothing is lost.
pub struct IcePublish {
    publisher: Publisher<Ice, Cell, ()>,
    subscriber: Subscriber<Ice, Cell, ()>,
    _node: Node<Ice>,
}

fn ice<T>(outcome: Result<T, impl std::fmt::Debug>) -> anyhow::Result<T> {
    outcome.map_err(|error| anyhow::anyhow!("iceoryx2: {error:?}"))
}

impl IcePublish {
    fn new(run: &str, leads: bool) -> anyhow::Result<Self> {
        let node = ice(NodeBuilder::new().create::<Ice>())?;
        let service = |way: &str| {
            let name = ice(ServiceName::new(&format!("ai_swarm_peers/{run}/{way}")))?;
            ice(node
                .service_builder(&name)
                .publish_subscribe::<Cell>()
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(ICE_SLOTS)
                .history_size(0)
                .max_publishers(1)
                .max_subscribers(1)
                .open_or_create())
        };
        let (out, inbox) = if leads { ("down", "up") } else { ("up", "down") };
        let strategy = BackpressureStrategy::RetryUntilDelivered;
        let publisher = ice(service(out)?.publisher_builder().backpressure_strategy(strategy).create())?;
        let subscriber = ice(service(inbox)?.subscriber_builder().buffer_size(ICE_SLOTS).create())?;
        Ok(Self { publisher, subscriber, _node: node })
    }

    fn attach(&mut self) {
        // A connection that cannot be made shows itself as a message that does not come.
        let _ = self.publisher.update_connections();
        let _ = self.subscriber.update_connections();
    }
}

impl Talk for IcePublish {
    #[inline]
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        let sample = ice(self.publisher.loan_uninit())?;
        let receivers = ice(sample.write_payload(cell(number)).send())?;
        ensure!(receivers == 1, "{receivers} subscribers");
        Ok(true)
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        match ice(self.subscriber.receive())? {
            None => Ok(None),
            Some(sample) => number(sample.payload()).map(Some),
        }
    }
}

/// The lead asks, the follower replies.
pub struct IceRequest {
    end: IceEnd,
    _node: Node<Ice>,
}

enum IceEnd {
    Asks(Client<Ice, Cell, (), Cell, ()>),
    Replies(Server<Ice, Cell, (), Cell, ()>),
}

impl IceRequest {
    fn new(run: &str, leads: bool) -> anyhow::Result<Self> {
        let node = ice(NodeBuilder::new().create::<Ice>())?;
        let name = ice(ServiceName::new(&format!("ai_swarm_peers/{run}/ask")))?;
        let service = ice(node
            .service_builder(&name)
            .request_response::<Cell, Cell>()
            .max_clients(1)
            .max_servers(1)
            .open_or_create())?;
        let end = if leads {
            IceEnd::Asks(ice(service.client_builder().create())?)
        } else {
            IceEnd::Replies(ice(service.server_builder().create())?)
        };
        Ok(Self { end, _node: node })
    }

    fn attach(&mut self) {
        let _ = match &self.end {
            IceEnd::Asks(client) => client.update_connections(),
            IceEnd::Replies(server) => server.update_connections(),
        };
    }

    fn ping(&mut self, rounds: u64) -> anyhow::Result<Vec<f64>> {
        let IceEnd::Asks(client) = &self.end else { bail!("the follower does not ask") };
        timed(rounds, |number_sent| {
            let request = ice(client.loan_uninit())?;
            let pending: PendingResponse<Ice, Cell, (), Cell, ()> =
                ice(request.write_payload(cell(number_sent)).send())?;
            until(|| match ice(pending.receive())? {
                None => Ok(None),
                Some(response) => number(response.payload()).map(Some),
            })
        })
    }

    fn pong(&mut self, rounds: u64) -> anyhow::Result<()> {
        let IceEnd::Replies(server) = &self.end else { bail!("the lead does not reply") };
        for _ in 0..rounds {
            let request: ActiveRequest<Ice, Cell, (), Cell, ()> = until(|| ice(server.receive()))?;
            let number = number(request.payload())?;
            let response = ice(request.loan_uninit())?;
            ice(response.write_payload(cell(number)).send())?;
        }
        Ok(())
    }
}

/// Two queues between two threads.
pub struct Rtrb {
    out: rtrb::Producer<Cell>,
    inbox: rtrb::Consumer<Cell>,
}

impl Rtrb {
    fn pair(slots: u64) -> (Self, Self) {
        let (down_out, down_in) = rtrb::RingBuffer::new(slots as usize);
        let (up_out, up_in) = rtrb::RingBuffer::new(slots as usize);
        (Self { out: down_out, inbox: up_in }, Self { out: up_out, inbox: down_in })
    }

    fn send_chunks(&mut self, count: u64) -> anyhow::Result<()> {
        let mut number = 1;
        while number <= count {
            let batch = BATCH.min((count - number + 1) as usize);
            let chunk = until(|| match self.out.slots() >= batch {
                true => Ok(Some(())),
                false => Ok(None),
            })
            .and_then(|()| self.out.write_chunk_uninit(batch).map_err(anyhow::Error::from))?;
            number += chunk.fill_from_iter((number..).map(cell)) as u64;
        }
        Ok(())
    }

    fn take_chunks(&mut self, count: u64) -> anyhow::Result<f64> {
        let (mut began, mut taken) = (0, 0);
        while taken < count {
            let ready = until(|| Ok(Some(self.inbox.slots()).filter(|&ready| ready > 0)))?;
            for found in self.inbox.read_chunk(ready.min(BATCH))? {
                taken += 1;
                ensure!(number(&found)? == taken, "message {taken} is another");
                if taken == 1 {
                    began = now_ns();
                }
            }
        }
        Ok((now_ns() - began) as f64)
    }
}

impl Talk for Rtrb {
    #[inline]
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        Ok(self.out.push(cell(number)).is_ok())
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        self.inbox.pop().ok().map(|cell| number(&cell)).transpose()
    }
}

/// Two bounded channels between two threads.
pub struct Crossbeam {
    out: channel::Sender<Cell>,
    inbox: channel::Receiver<Cell>,
}

impl Crossbeam {
    fn pair() -> (Self, Self) {
        let (down_out, down_in) = channel::bounded(STREAM_SLOTS as usize);
        let (up_out, up_in) = channel::bounded(STREAM_SLOTS as usize);
        (Self { out: down_out, inbox: up_in }, Self { out: up_out, inbox: down_in })
    }
}

impl Talk for Crossbeam {
    #[inline]
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        Ok(self.out.try_send(cell(number)).is_ok())
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        self.inbox.try_recv().ok().map(|cell| number(&cell)).transpose()
    }
}

fn to_bytes(number: u64) -> [u8; 64] {
    cell(number).map(u64::to_le_bytes).as_flattened().try_into().expect("64 bytes")
}

fn from_bytes(bytes: &[u8; 64]) -> anyhow::Result<u64> {
    let words = bytes.as_chunks::<8>().0;
    number(&std::array::from_fn(|at| u64::from_le_bytes(words[at])))
}

/// Whether a call would have had to wait.
fn nothing_yet<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A pair of sockets that keep messages apart, never waited on in the kernel.
pub struct Socket(UnixStream);

impl Talk for Socket {
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        let bytes = to_bytes(number);
        // SAFETY: the buffer is valid for its length.
        let sent =
            unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        let sent = if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) };
        match nothing_yet(sent)? {
            None => Ok(false),
            Some(length) => {
                ensure!(length == 64, "a part of a message went out");
                Ok(true)
            }
        }
    }

    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        let mut bytes = [0; 64];
        match nothing_yet(self.0.read(&mut bytes))? {
            None => Ok(None),
            Some(64) => from_bytes(&bytes).map(Some),
            Some(length) => bail!("a message of {length} bytes"),
        }
    }
}

/// A pipe each way, never waited on in the kernel. Whole messages: 64 bytes are written at once or not.
pub struct Pipe {
    reader: File,
    writer: File,
}

impl Talk for Pipe {
    fn try_send(&mut self, number: u64) -> anyhow::Result<bool> {
        Ok(nothing_yet(self.writer.write(&to_bytes(number)))?.is_some())
    }

    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        let mut bytes = [0; 64];
        match nothing_yet(self.reader.read(&mut bytes))? {
            None => Ok(None),
            Some(64) => from_bytes(&bytes).map(Some),
            Some(length) => bail!("a message of {length} bytes"),
        }
    }
}
