//! Who may talk to whom: members, the lines between them, topics; and clients, who hand in tasks.
//!
//! A member is an agent or a client: a process of the user's own, same user id, that attached through the socket
//! `attach.sock`. Each has a socket to the supervisor, over which it asks for lines and topics and gets their
//! descriptors; everything else goes through shared memory, and not through here.
//!
//! Invariants
//! 1. The supervisor makes every object that two members share, and hands each side what it may write and, read-only,
//!    what the other writes.
//! 2. A member that is gone takes its lines with it; both ends hear of it. A new life gets fresh objects.
//! 3. What is said to a member is never lost while the member lives: what its socket does not take waits. One that
//!    leaves
//!    more unread than an honest one can is cut off.
//! 4. What a client says is a stranger's input. One that talks nonsense is cut off and barred by process; its tasks
//!    go on, because they were accepted.

use super::*;
use crate::base::trouble;
use crate::kernels::KernelId;
use crate::messaging::attach::{
    FromMember, Heard, Mouth, Rule, Said, SupervisorTalk, ToMember, UNSAID_MAX, VERSION, is_name,
};
use crate::messaging::envelope::{Encode, Ended, FromClient, Submit, ToClient, Verdict};
use crate::messaging::lanes::{HEAD_WORDS, INLINE_MAX};
use crate::messaging::link::{ChannelTraffic, Contact, LinkObjects, LinkTraffic, SupervisorLink};
use crate::messaging::meters::Meter;
use crate::messaging::port::{feed_start, topic_rows};
use crate::messaging::store::Store;
use crate::messaging::wire::SendError;
use crate::os::{process, socket};
use crate::shm::Words;
use crate::shm::arena::ArenaUsage;
use crate::shm::lossy::LossyMemory;
use crate::shm::ring::Message;
use crate::tasks::{Priority, Task};
use events::Throttle;
use rustix::net::SocketType;
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

/// Clients at most.
pub(super) const CLIENTS_MAX: usize = 320;
/// Clients of one process: all but some, so that nobody can keep the gateway out.
const CLIENTS_PER_PROCESS: usize = 288;
/// Connections of one process that have not introduced themselves: an honest client does so at once.
const SILENT_PER_PROCESS: usize = 32;
/// Topics that one member may publish on or subscribe to: room for everybody else's.
const TOPICS_PER_MEMBER: usize = 512;
/// After a connection could not be accepted for want of descriptors, the next try.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// While words wait for a member that does not read its socket, they are tried again so often.
const SAY_AGAIN: Duration = Duration::from_millis(20);
/// A line that is closed is looked at once more after this time: who lives still takes what the dead had sent.
const SETTLE_AFTER: Duration = Duration::from_secs(1);
/// Lines at most: each takes two channels of memory.
const LINES_MAX: usize = 4096;
/// Messages taken from one client per turn, so that none can hold the loop.
const MESSAGES_PER_TURN: usize = 256;
/// Words taken from one socket per look.
const WORDS_PER_LOOK: usize = 16;
/// Connections accepted per look.
const ACCEPTS_PER_LOOK: usize = 16;
/// A connection that does not introduce itself within this time is closed.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Answers kept for a client that does not read them; beyond, it is cut off.
const UNSENT_MAX: usize = 1 << 20;
/// Barred processes that are remembered.
const BARRED_MAX: usize = 1024;
/// Topics at most.
const TOPICS_MAX: usize = 4096;
/// Processes that must have found nonsense in a member's messages before it is cut off, when they are clients: one
/// with many connections is still one.
const COMPLAINTS: usize = 2;
/// Bytes of payload taken from one client per turn, but for the last message.
const BYTES_PER_TURN: usize = 4 << 20;
/// Longest time that a subscriber may make a publisher wait for each message.
const BLOCK_MAX_MS: u64 = 10_000;
/// Longest text of a stranger's that goes into an event, bytes.
const TEXT_MAX: usize = 200;

/// Events of a member's socket.
pub(super) const WATCH_MEMBER: u64 = 1 << 32;
/// A client's bell.
pub(super) const WATCH_CLIENT: u64 = 1 << 33;
/// Somebody wants to attach.
pub(super) const WATCH_ATTACH: u64 = 1 << 34;

/// A batch number that stands for a client's task: this bit, then place and ticket. Whether the task is that of the
/// client who has the place now, the client's own list of open tasks says: numbers of tasks never come twice.
const CLIENT_BATCH: u64 = 1 << 63;
const TICKET_BITS: u32 = 48;

fn batch_of(place: usize, ticket: u64) -> u64 {
    CLIENT_BATCH | (place as u64) << TICKET_BITS | ticket
}

/// Place and ticket of a client's task; `None` for another's.
fn client_of(batch: u64) -> Option<(usize, u64)> {
    (batch & CLIENT_BATCH != 0).then(|| {
        let rest = batch & !CLIENT_BATCH;
        ((rest >> TICKET_BITS) as usize, rest & ((1 << TICKET_BITS) - 1))
    })
}

/// How a fresh agent is reached.
pub(super) struct Talks {
    pub(super) talk: SupervisorTalk,
    pub(super) contact: Contact,
    pub(super) pid: u32,
    /// Names this life of it.
    pub(super) owner: u64,
}

/// A client's link and what it is owed.
struct Client {
    link: SupervisorLink,
    /// Its own bell in our epoll, so that it can silence nobody else's.
    event: OwnedFd,
    /// Submissions taken, and of how many of them it was told.
    taken: u64,
    told: u64,
    /// Numbers of submissions that it is told once the journal has this record.
    untold: VecDeque<(u64, u64)>,
    ended: u64,
    /// Ends of tasks that found no room yet: ticket and task.
    unsent: VecDeque<(u64, TaskId)>,
    /// Its tasks that have not ended, by ticket.
    open: HashMap<u64, TaskId>,
    touched: bool,
}

/// A process that lines can lead to.
struct Member {
    id: String,
    kind: &'static str,
    pid: u32,
    /// Names this life of it.
    owner: u64,
    mouth: Mouth,
    /// It has something to hear on its socket and could not be told so.
    untold: bool,
    /// More waits for it than it will ever read.
    deaf: bool,
    /// Set once a client has introduced itself; agents have it from the start.
    contact: Option<Contact>,
    client: Option<Box<Client>>,
    since: Nanos,
    /// Its lines by place.
    places: Vec<Option<u32>>,
    /// Processes that found nonsense in what it wrote.
    complaints: Vec<u32>,
}

impl Member {
    /// Somebody at the other end of this socket.
    fn new(id: &str, kind: &'static str, pid: u32, owner: u64, talk: SupervisorTalk) -> Self {
        Self {
            id: id.to_owned(),
            kind,
            pid,
            owner,
            mouth: Mouth::new(talk),
            untold: false,
            deaf: false,
            contact: None,
            client: None,
            since: clock::now(),
            places: Vec::new(),
            complaints: Vec::new(),
        }
    }

    fn free_place(&self) -> Option<usize> {
        let free = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        (free < pages::LINES_MAX).then_some(free)
    }

    fn take_place(&mut self, place: usize, line: u32) {
        if self.places.len() <= place {
            self.places.resize(place + 1, None);
        }
        self.places[place] = Some(line);
    }
}

/// A line between two members.
struct LineRecord {
    /// Who has it, at which place of theirs, and the half that they write, as far as its numbers go.
    ends: [(usize, usize, Arc<Words>); 2],
}

impl LineRecord {
    fn end_of(&self, member: usize) -> Option<usize> {
        self.ends.iter().position(|(at, ..)| *at == member)
    }

    /// What its two ends have counted of the direction that starts at this end.
    fn traffic(&self, from: usize) -> ChannelTraffic {
        let (sender, receiver) = (&self.ends[from].2, &self.ends[1 - from].2);
        // The receiver first: what it took meanwhile was sent before.
        let counts = Meter::receiver(receiver.clone(), pages::HALF_RECEIVED);
        let received = Lane::ALL.map(|lane| counts.read(lane as usize));
        let latencies = Lane::ALL.map(|lane| counts.latencies(lane as usize));
        let counts = Meter::sender(sender.clone(), pages::HALF_SENT);
        let sent = Lane::ALL.map(|lane| counts.read(lane as usize));
        let depths = std::array::from_fn(|lane| {
            let head = receiver.word(pages::HEADS + lane * (HEAD_WORDS / 3));
            sent[lane].slots.saturating_sub(head.load(crate::base::sync::Ordering::Relaxed))
        });
        ChannelTraffic { sent, received, depths, latencies }
    }

    /// Adds both directions to those of lines that are closed.
    fn add_closed_to(&self, total: &mut ChannelTraffic) {
        for from in [0, 1] {
            total.add_closed(&self.traffic(from));
        }
    }
}

#[derive(Default)]
struct TopicRecord {
    number: u32,
    publishers: Vec<usize>,
    subscribers: Vec<(usize, Rule)>,
    /// The overwriting rings, by publisher.
    rings: HashMap<usize, SharedObject>,
}

/// See the module.
pub(super) struct Switchboard {
    listener: Option<(OwnedFd, PathBuf)>,
    /// No connection is accepted before this: the last one could not be, for want of descriptors.
    paused: Option<Nanos>,
    /// Refused connections, and pauses, in the log.
    refusals: Throttle,
    pauses: Throttle,
    members: Vec<Option<Member>>,
    /// Where clients begin among the members; before them are agents, by slot.
    first_client: usize,
    /// Places of clients that have introduced themselves.
    clients: Vec<usize>,
    /// Members that something waits for: words, or the news that there are some.
    unheard: Vec<usize>,
    lines: BTreeMap<u32, LineRecord>,
    /// Lines that were closed a moment ago, and when.
    settling: VecDeque<(Nanos, LineRecord)>,
    /// What went over lines and links that are closed.
    past: ChannelTraffic,
    next_line: u32,
    topics: BTreeMap<String, TopicRecord>,
    next_topic: u32,
    lives: u64,
    barred: Vec<(u32, Option<u64>)>,
    /// Channels and lines closed before their time, by reason.
    pub(super) closed: BTreeMap<&'static str, u64>,
    message: Option<Message>,
    pub(super) store: Store,
    arena: SharedObject,
    half_bytes: usize,
}

/// A word for what was wrong with a channel; texts of strangers are not kept.
pub(super) fn reason_class(text: &str) -> &'static str {
    let known = [
        ("sequence", "nonsense in a slot's sequence"),
        ("claims", "nonsense in a slot's length"),
        ("acknowledges", "nonsense in an acknowledged head"),
        ("block", "nonsense in a block"),
        ("arena", "nonsense in a block"),
        ("checksum", "wrong checksum"),
        ("kind", "unknown message"),
        ("died", "peer died"),
        ("unread", "left its words unread"),
        ("left", "peer left"),
    ];
    known.into_iter().find(|(word, _)| text.contains(word)).map_or("other nonsense", |(_, class)| class)
}

impl Switchboard {
    pub(super) fn new(
        slots: usize,
        clients: usize,
        half_bytes: usize,
        arena_bytes: usize,
    ) -> io::Result<Self> {
        let arena = SharedObject::create_sparse("ai_swarm-hub-arena", arena_bytes)?;
        let store = Store::new(arena.duplicate()?, u64::MAX);
        store.claim()?;
        Ok(Self {
            listener: None,
            paused: None,
            refusals: Throttle::default(),
            pauses: Throttle::default(),
            members: (0..slots + clients).map(|_| None).collect(),
            first_client: slots,
            clients: Vec::new(),
            unheard: Vec::new(),
            lines: BTreeMap::new(),
            settling: VecDeque::new(),
            past: ChannelTraffic::default(),
            next_line: 0,
            topics: BTreeMap::new(),
            next_topic: 0,
            lives: 0,
            barred: Vec::new(),
            closed: BTreeMap::new(),
            message: None,
            store,
            // Readers get it read-only, as they get everything that they must not write.
            arena,
            half_bytes: half_bytes + pages::HALF_HEAD_BYTES,
        })
    }

    /// Listens for clients.
    pub(super) fn listen(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        let listener = socket::listen(path, SocketType::SEQPACKET)?;
        Ok(self.listener.insert((listener, path.to_owned())).0.as_fd())
    }

    pub(super) fn hub_arena(&self) -> &SharedObject {
        &self.arena
    }

    fn member(&self, at: usize) -> Option<&Member> {
        self.members.get(at)?.as_ref()
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.members.iter().position(|member| {
            member.as_ref().is_some_and(|member| member.id == id && member.contact.is_some())
        })
    }

    /// From now on lines can lead to this life of an agent.
    pub(super) fn add_agent(&mut self, slot: AgentSlot, id: &str, kind: AgentKind, talks: Talks) {
        let mut member = Member::new(id, kind.name(), talks.pid, talks.owner, talks.talk);
        member.contact = Some(talks.contact);
        self.members[slot.index()] = Some(member);
    }

    /// The line between two members, if there is one.
    fn line_joining(&self, a: usize, b: usize) -> Option<u32> {
        let mut lines = self.member(a)?.places.iter().flatten().copied();
        lines.find(|number| self.lines.get(number).is_some_and(|line| line.end_of(b).is_some()))
    }

    /// When something is to be done that nobody will ring for.
    pub(super) fn next_due(&self, now: Nanos) -> Option<Nanos> {
        let again = (!self.unheard.is_empty()).then(|| now.plus(SAY_AGAIN));
        [self.paused, again].into_iter().flatten().min()
    }

    /// What went over lines and links that are closed.
    pub(super) fn closed_traffic(&self) -> ChannelTraffic {
        let mut total = self.past.clone();
        for (_, line) in &self.settling {
            line.add_closed_to(&mut total);
        }
        total
    }

    fn is_ready(&self) -> bool {
        self.clients.iter().any(|&at| {
            self.member(at)
                .and_then(|member| member.client.as_ref())
                .is_some_and(|client| client.link.is_ready())
        })
    }
}

impl Switchboard {
    /// What is at the path of our socket may be another swarm's by now, and stays.
    pub(super) fn leave_socket(&mut self) {
        self.listener = None;
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.listener {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Supervisor {
    pub(super) fn has_client_messages(&self) -> bool {
        self.switchboard.is_ready()
    }

    /// Somebody connects.
    pub(super) fn on_attach(&mut self) -> usize {
        let mut accepted = 0;
        while accepted < ACCEPTS_PER_LOOK {
            let Some((listener, _)) = &self.switchboard.listener else { break };
            match trouble::check("attach").and_then(|()| socket::accept(listener)) {
                Ok(Some(connection)) => {
                    accepted += 1;
                    self.on_connection(SupervisorTalk::new(connection));
                }
                Ok(None) => break,
                Err(error) => {
                    self.pause_attaching(&error);
                    break;
                }
            }
        }
        accepted
    }

    fn on_connection(&mut self, talk: SupervisorTalk) {
        match self.admit(talk) {
            // Who speaks at once is never a silent one.
            Ok(at) => _ = self.on_member_words(at),
            Err(why) => {
                if let Some(before) = self.switchboard.refusals.pass(self.now) {
                    tracing::warn!(event = "client_refused", refused_before = before, "{why}");
                }
            }
        }
    }

    /// The connection that waits would be found again at once, and again: the listener is left alone for a while.
    fn pause_attaching(&mut self, error: &io::Error) {
        self.watch_listener(epoll::EventFlags::empty());
        self.switchboard.paused = Some(clock::now().plus(ACCEPT_AGAIN));
        if let Some(before) = self.switchboard.pauses.pass(self.now) {
            let text =
                "nobody can attach for now: a connection cannot be accepted, which is tried again and again";
            tracing::warn!(event = "attach_paused", tried_before = before, %error, "{text}");
        }
    }

    fn watch_listener(&self, flags: epoll::EventFlags) {
        if let Some((listener, _)) = &self.switchboard.listener {
            let _ = epoll::modify(&self.epoll, listener, epoll::EventData::new_u64(WATCH_ATTACH), flags);
        }
    }

    fn admit(&mut self, talk: SupervisorTalk) -> Result<usize, String> {
        let (pid, uid) = talk.peer().map_err(|error| format!("cannot see who connects: {error}"))?;
        let refuse = |why: String| {
            let _ = talk.say(&ToMember::Refused { seq: 0, why: why.clone() }, &[]);
            Err(why)
        };
        if uid != rustix::process::getuid().as_raw() {
            return refuse(format!("process {pid} of user {uid} wants to attach; only our own user may"));
        }
        let ticks = process::start_ticks(pid);
        if self.switchboard.barred.contains(&(pid, ticks)) {
            return refuse(format!("process {pid} is barred: it wrote nonsense before"));
        }
        let board = &self.switchboard;
        let own = || board.members[board.first_client..].iter().flatten().filter(|member| member.pid == pid);
        if own().count() >= CLIENTS_PER_PROCESS {
            return refuse(format!(
                "process {pid} has {CLIENTS_PER_PROCESS} clients already, the most it may have"
            ));
        }
        if own().filter(|member| member.contact.is_none()).count() >= SILENT_PER_PROCESS {
            return refuse(format!(
                "process {pid} has {SILENT_PER_PROCESS} connections already that said nothing, the most it may have"
            ));
        }
        let Some(at) = self.free_client_place() else {
            let clients = self.switchboard.members.len() - self.switchboard.first_client;
            return refuse(format!("{clients} clients are attached already, the most there can be"));
        };
        let watched = epoll::add(
            &self.epoll,
            &talk,
            epoll::EventData::new_u64(WATCH_MEMBER | at as u64),
            epoll::EventFlags::IN,
        );
        if let Err(errno) = watched {
            return Err(format!("cannot watch a client: {errno}"));
        }
        let board = &mut self.switchboard;
        board.lives += 1;
        let owner = (at as u64) << 32 | (board.lives & 0xFFFF_FFFF);
        board.members[at] = Some(Member::new("", "client", pid, owner, talk));
        Ok(at)
    }

    /// A place for one more; the connection that has been silent for longest gives its own up.
    fn free_client_place(&mut self) -> Option<usize> {
        let board = &self.switchboard;
        let places = board.first_client..board.members.len();
        if let Some(free) = places.clone().find(|&at| board.members[at].is_none()) {
            return Some(free);
        }
        let silent = |at| Some((board.member(at).filter(|member| member.contact.is_none())?.since, at));
        let (_, longest) = places.filter_map(silent).min()?;
        self.close_member(longest, "left: it said nothing while others waited for its place");
        Some(longest)
    }

    /// Something came over a member's socket.
    pub(super) fn on_member_words(&mut self, at: usize) -> usize {
        for heard in 0..WORDS_PER_LOOK {
            let Some(member) = self.switchboard.members.get_mut(at).and_then(Option::as_mut) else {
                return heard;
            };
            match member.mouth.talk().hear() {
                Ok(Heard::Nothing) => return heard,
                Ok(Heard::Closed) => {
                    self.close_member(at, "left");
                    return heard + 1;
                }
                Ok(Heard::Message(word, _)) => self.on_member_word(at, word),
                Err(error) => {
                    self.quarantine(at, &format!("unknown words on its socket: {error}"));
                    return heard + 1;
                }
            }
        }
        WORDS_PER_LOOK
    }

    fn on_member_word(&mut self, at: usize, word: FromMember) {
        let introduced = self.switchboard.member(at).is_some_and(|member| member.contact.is_some());
        let (seq, outcome) = match word {
            FromMember::Hello { version, name } if !introduced => (0, self.welcome(at, version, name)),
            _ if !introduced => return self.quarantine(at, "unknown words before its introduction"),
            FromMember::Hello { .. } => return self.quarantine(at, "unknown words: a second introduction"),
            FromMember::Connect { seq, peer } => (seq, self.connect(at, &peer, seq)),
            FromMember::Advertise { seq, topic } => (seq, self.advertise(at, &topic, seq)),
            FromMember::Subscribe { seq, topic, rule } => (seq, self.subscribe(at, &topic, rule, seq)),
            FromMember::Unsubscribe { seq, topic } => (seq, self.unsubscribe(at, &topic, seq)),
            FromMember::Poisoned { line, reason } => return self.on_poisoned(at, line, &reason),
        };
        if let Err(why) = outcome {
            self.say(at, &ToMember::Refused { seq, why }, &[]);
            if !introduced {
                self.close_member(at, "left: it was refused");
            }
        }
    }

    /// Says something to a member, now or as soon as it reads. False when it never will.
    fn say(&mut self, at: usize, word: &ToMember, fds: &[BorrowedFd<'_>]) -> bool {
        let Some(member) = self.switchboard.members.get_mut(at).and_then(Option::as_mut) else {
            return false;
        };
        match member.mouth.say(word, fds) {
            Ok(Said::Now) => {
                self.tell_news(at);
                return true;
            }
            Ok(Said::Later) => {}
            // Not here: whoever says this may be in the middle of its lines.
            Ok(Said::TooMuch) => member.deaf = true,
            Err(_) => return false,
        }
        let heard = !member.deaf;
        self.remember_unheard(at);
        heard
    }

    /// Members look at shared memory only: there they are told that there is something to hear.
    fn tell_news(&mut self, at: usize) {
        let Some(member) = self.switchboard.members.get_mut(at).and_then(Option::as_mut) else { return };
        let told = match &mut member.client {
            Some(client) => {
                let told = client.link.send(Lane::Control, &ToClient::News);
                client.link.ring();
                told.is_ok()
            }
            None => self.dispatcher.get_mut(AgentSlot(at as u16)).is_none_or(|seat| {
                seat.touched = true;
                seat.link.send(Lane::Control, &ToAgent::News).is_ok()
            }),
        };
        member.untold = !told;
        if !told {
            self.remember_unheard(at);
        }
    }

    fn remember_unheard(&mut self, at: usize) {
        if !self.switchboard.unheard.contains(&at) {
            self.switchboard.unheard.push(at);
        }
    }

    /// What waited for members to read is said again; who left too much unread is cut off.
    fn say_again(&mut self) {
        for at in std::mem::take(&mut self.switchboard.unheard) {
            let Some(member) = self.switchboard.members[at].as_mut() else { continue };
            if member.deaf {
                self.cut_off(at);
                continue;
            }
            // One that is gone is heard of in another way.
            let said = member.mouth.retry().unwrap_or(false);
            let waits = member.mouth.is_waiting();
            if said || member.untold {
                self.tell_news(at);
            }
            if waits {
                self.remember_unheard(at);
            }
        }
    }

    /// A member that does not listen is of no use to those who talk to it.
    fn cut_off(&mut self, at: usize) {
        let Some(member) = self.switchboard.member(at) else { return };
        let (id, pid) = (member.id.clone(), member.pid);
        let text = format!("it left {UNSAID_MAX} words of ours unread");
        *self.switchboard.closed.entry(reason_class(&text)).or_default() += 1;
        if at < self.switchboard.first_client {
            return self.kill(AgentSlot(at as u16), "member_deaf", format!("killed: {text}"));
        }
        self.events.add(Severity::Warning, "member_deaf", Some(&id), format!("process {pid}: {text}"));
        self.close_member(at, "left: cut off");
    }

    /// What nobody rings for: words that wait, the pause of the listener, lines that were closed, silent connections.
    pub(super) fn tidy_members(&mut self) {
        self.say_again();
        if self.switchboard.paused.is_some_and(|until| self.now >= until) {
            self.switchboard.paused = None;
            self.watch_listener(epoll::EventFlags::IN);
        }
        while let Some((closed, _)) = self.switchboard.settling.front()
            && self.now.since(*closed) > SETTLE_AFTER
        {
            self.settle_line();
        }
        self.close_silent_members();
    }

    fn welcome(&mut self, at: usize, version: u32, name: Option<String>) -> Result<(), String> {
        if version != VERSION {
            return Err(format!(
                "it speaks version {version} of the attachment, this swarm version {VERSION}"
            ));
        }
        let id = match name {
            Some(name) if !is_name(&name) => {
                return Err(format!(
                    "the name {name:?} is not possible: 1 to 64 letters, digits, `.`, `_`, `-`, `/` are allowed"
                ));
            }
            Some(name) if self.switchboard.find(&name).is_some() || self.slot_of(&name).is_some() => {
                return Err(format!("a member with the name {name:?} is there already"));
            }
            Some(name) => name,
            None => (0..)
                .map(|n| format!("client-{n}"))
                .find(|id| self.switchboard.find(id).is_none())
                .expect("numbers do not end"),
        };
        let system = |error: io::Error| format!("cannot make its channels: {error}");
        trouble::check("attach").map_err(system)?;
        let objects = LinkObjects::create(self.config.channel_size, self.config.messaging.arena_bytes)
            .map_err(system)?;
        trouble::check("attach").map_err(system)?;
        let link = objects.supervisor_link(self.switchboard.store.clone(), at as u16).map_err(system)?;
        let contact = objects.contact().map_err(system)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| system(errno.into()))?;
        let data = epoll::EventData::new_u64(WATCH_CLIENT | at as u64);
        // Edges only, and never read: whoever has a descriptor of it can make a read wait for ever.
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &event, data, edges).map_err(|errno| system(errno.into()))?;
        link.set_shared_core(self.cores.len() < 2);
        trouble::check("attach").map_err(system)?;
        let hub_arena = self.switchboard.arena.read_only().map_err(system)?;
        let hub = self.nursery.hub_objects(&hub_arena, event.as_fd());
        let (numbers, fds) = objects.descriptors(&hub);
        let swarm = self.config.name.clone();
        let Some(member) = self.switchboard.members[at].as_mut() else { return Ok(()) };
        let (owner, pid) = (member.owner, member.pid);
        let welcome = ToMember::Welcome { id: id.clone(), owner, swarm, link: numbers };
        member.mouth.say(&welcome, &fds).map_err(system)?;
        member.id = id.clone();
        member.contact = Some(contact);
        member.client = Some(Box::new(Client {
            link,
            event,
            taken: 0,
            told: 0,
            untold: VecDeque::new(),
            ended: 0,
            unsent: VecDeque::new(),
            open: HashMap::new(),
            touched: false,
        }));
        self.switchboard.clients.push(at);
        self.events.add(Severity::Info, "client_attached", Some(&id), format!("process {pid}"));
        Ok(())
    }

    // Lines.

    fn connect(&mut self, at: usize, peer: &str, seq: u64) -> Result<(), String> {
        if peer == "supervisor" {
            let why = "the supervisor is no member: it starts agents and takes tasks; agents and clients read messages";
            return Err(why.to_owned());
        }
        let other = self.switchboard.find(peer).ok_or_else(|| {
            let ids: Vec<&str> = self
                .switchboard
                .members
                .iter()
                .flatten()
                .filter(|member| member.contact.is_some())
                .map(|member| member.id.as_str())
                .take(16)
                .collect();
            format!("no member has the id {peer:?}; there are {}", ids.join(", "))
        })?;
        if other == at {
            return Err("a member has no line to itself".to_owned());
        }
        self.line_between(at, other, Some(seq)).map(drop)
    }

    /// The line between two members, made if there is none. `seq` is the first one's question.
    fn line_between(&mut self, a: usize, b: usize, seq: Option<u64>) -> Result<u32, String> {
        if let Some(number) = self.switchboard.line_joining(a, b) {
            // Its descriptors were sent before this answer, and a member hears in order: it has the line already.
            if let Some(seq) = seq {
                self.say(a, &ToMember::Done { seq }, &[]);
            }
            return Ok(number);
        }
        let system = |error: io::Error| format!("cannot make a line: {error}");
        let board = &mut self.switchboard;
        let place = |board: &Switchboard, at: usize| {
            let member = board.member(at).ok_or("the member is gone")?;
            member.free_place().ok_or_else(|| {
                format!("member {} has {} lines already, the most there can be", member.id, pages::LINES_MAX)
            })
        };
        let places = [place(board, a)?, place(board, b)?];
        if board.lines.len() >= LINES_MAX {
            return Err(format!("{LINES_MAX} lines are open already, the most there can be"));
        }
        let half = || {
            trouble::check("attach")?;
            SharedObject::create("ai_swarm-half", board.half_bytes)
        };
        let halves = [half().map_err(system)?, half().map_err(system)?];
        let seen = [
            halves[0].map_first(Access::Read, pages::HALF_HEAD_BYTES).map_err(system)?,
            halves[1].map_first(Access::Read, pages::HALF_HEAD_BYTES).map_err(system)?,
        ];
        board.next_line += 1;
        let number = board.next_line;
        let [seen_a, seen_b] = seen;
        let record = LineRecord { ends: [(a, places[0], seen_a), (b, places[1], seen_b)] };
        board.lines.insert(number, record);
        for (end, at) in [a, b].into_iter().enumerate() {
            if let Some(member) = board.members[at].as_mut() {
                member.take_place(places[end], number);
            }
        }
        if let Err(why) = self.tell_both(number, [(a, places[0]), (b, places[1])], &halves, seq) {
            // Of half a line neither end has anything.
            self.close_line(number, "left: it cannot be told of the line");
            return Err(why);
        }
        Ok(number)
    }

    /// Tells the ends of a new line, each a member and its place there, of it: who asked for it, the first one, last.
    fn tell_both(
        &mut self,
        number: u32,
        ends: [(usize, usize); 2],
        halves: &[SharedObject; 2],
        seq: Option<u64>,
    ) -> Result<(), String> {
        let system = |error: io::Error| format!("cannot make a line: {error}");
        for end in [1, 0] {
            let ((at, place), (other, peer_place)) = (ends[end], ends[1 - end]);
            trouble::check("attach").map_err(system)?;
            let theirs = halves[1 - end].read_only().map_err(system)?;
            let Some(peer) = self.switchboard.member(other) else { continue };
            let Some(contact) = &peer.contact else { continue };
            let copy = |object: &SharedObject| object.duplicate().map_err(system);
            let (desk, bell, arena) = (copy(&contact.desk)?, copy(&contact.bell)?, copy(&contact.arena)?);
            let word = ToMember::Line {
                seq: if end == 0 { seq } else { None },
                line: number,
                at: place as u16,
                peer_at: peer_place as u16,
                peer: peer.id.clone(),
                kind: peer.kind.to_owned(),
                half_bytes: self.switchboard.half_bytes,
                arena_bytes: arena.bytes(),
            };
            let fds = [halves[end].as_fd(), theirs.as_fd(), desk.as_fd(), bell.as_fd(), arena.as_fd()];
            if !self.say(at, &word, &fds) {
                let id = self.switchboard.member(at).map_or_else(String::new, |member| member.id.clone());
                return Err(format!("member {id} cannot be told of the line; try again later"));
            }
        }
        Ok(())
    }

    fn close_line(&mut self, number: u32, why: &str) {
        let Some(line) = self.switchboard.lines.remove(&number) else { return };
        *self.switchboard.closed.entry(reason_class(why)).or_default() += 1;
        for &(at, place, _) in &line.ends {
            if let Some(member) = self.switchboard.members[at].as_mut()
                && member.places.get(place) == Some(&Some(number))
            {
                member.places[place] = None;
            }
            self.say(at, &ToMember::Closed { line: number, why: why.to_owned() }, &[]);
        }
        self.switchboard.settling.push_back((self.now, line));
        if self.switchboard.settling.len() > LINES_MAX {
            self.settle_line();
        }
    }

    /// What went over the line that has been closed for longest is added up for good.
    fn settle_line(&mut self) {
        if let Some((_, line)) = self.switchboard.settling.pop_front() {
            line.add_closed_to(&mut self.switchboard.past);
        }
    }

    /// A member says that its peer wrote nonsense on a line.
    fn on_poisoned(&mut self, by: usize, number: u32, reason: &str) {
        let Some(line) = self.switchboard.lines.get(&number) else { return };
        let Some(end) = line.end_of(by) else {
            return self.quarantine(by, "unknown words: it complains about a line that is not its own");
        };
        let offender = line.ends[1 - end].0;
        // The class and not the text: it goes to both ends.
        let reason = reason_class(reason);
        self.close_line(number, reason);
        let Some(process) = self.switchboard.member(by).map(|member| member.pid) else { return };
        // Agents, and the gateway.
        let trusted = by < self.switchboard.first_client || Some(process) == self.gateway_pid();
        let Some(member) = self.switchboard.members[offender].as_mut() else { return };
        if !member.complaints.contains(&process) {
            member.complaints.push(process);
        }
        // A client's word alone ends no agent: the line is closed, and a fresh one is made when it is wanted.
        if trusted || member.complaints.len() >= COMPLAINTS {
            self.quarantine(offender, &format!("nonsense to another member: {reason}"));
        }
    }

    /// Cuts off who wrote nonsense: an agent is replaced, a client's process is barred.
    fn quarantine(&mut self, at: usize, reason: &str) {
        let Some(member) = self.switchboard.member(at) else { return };
        if at < self.switchboard.first_client {
            self.open_incident(AgentSlot(at as u16), Failure::Garbage, reason, Vec::new());
            self.kill(AgentSlot(at as u16), "channel_corrupt", format!("killed: {reason}"));
            return;
        }
        let (id, pid) = (member.id.clone(), member.pid);
        *self.switchboard.closed.entry(reason_class(reason)).or_default() += 1;
        let gateway = self.gateway_pid();
        self.switchboard.barred.retain(|(pid, ticks)| process::start_ticks(*pid) == *ticks);
        // The gateway attaches anew.
        if self.switchboard.barred.len() < BARRED_MAX && Some(pid) != gateway {
            self.switchboard.barred.push((pid, process::start_ticks(pid)));
        }
        let reason = &reason[..reason.floor_char_boundary(TEXT_MAX)];
        let text = format!("process {pid} is cut off and barred: {reason}");
        self.events.add(Severity::Warning, "client_quarantined", Some(&id), text);
        self.close_member(at, "left: cut off");
    }

    /// A member is gone: its lines and subscriptions go with it.
    pub(super) fn close_member(&mut self, at: usize, why: &str) {
        let Some(mut member) = self.switchboard.members.get_mut(at).and_then(Option::take) else { return };
        let _ = epoll::delete(&self.epoll, &member.mouth);
        if let Some(client) = &mut member.client {
            self.write_off(client);
            let _ = epoll::delete(&self.epoll, &client.event);
            let LinkTraffic { down, up } = client.link.traffic();
            self.switchboard.past.add_closed(&down);
            self.switchboard.past.add_closed(&up);
            // Whoever is cut off while it lives shall hear of it.
            let _ = client.link.send(Lane::Control, &ToClient::Stop);
            client.link.ring();
        }
        self.switchboard.clients.retain(|&client| client != at);
        for topic in self.switchboard.topics.values_mut() {
            topic.publishers.retain(|&publisher| publisher != at);
            topic.subscribers.retain(|(subscriber, _)| *subscriber != at);
            topic.rings.remove(&at);
        }
        self.switchboard
            .topics
            .retain(|_, topic| !topic.publishers.is_empty() || !topic.subscribers.is_empty());
        for number in member.places.iter().flatten() {
            self.close_line(*number, why);
        }
        self.switchboard.store.reclaim(at as u16);
        if member.client.is_some() && !member.id.is_empty() {
            let text = format!("process {} {why}", member.pid);
            self.events.add(Severity::Info, "client_left", Some(&member.id), text);
        }
    }

    // Topics.

    /// The number of a topic that a member wants to publish on or to hear.
    fn topic(&mut self, at: usize, name: &str) -> Result<u32, String> {
        if !is_name(name) {
            return Err(format!(
                "the topic {name:?} is not possible: 1 to 64 letters, digits, `.`, `_`, `-`, `/` are allowed"
            ));
        }
        let board = &mut self.switchboard;
        let has = |topic: &TopicRecord| {
            topic.publishers.contains(&at)
                || topic.subscribers.iter().any(|(subscriber, _)| *subscriber == at)
        };
        let others = board.topics.iter().filter(|(other, topic)| *other != name && has(topic));
        if others.count() >= TOPICS_PER_MEMBER {
            return Err(format!(
                "it has {TOPICS_PER_MEMBER} topics already, the most that one member may have"
            ));
        }
        if !board.topics.contains_key(name) && board.topics.len() >= TOPICS_MAX {
            return Err(format!("{TOPICS_MAX} topics are in use already"));
        }
        let topic = board.topics.entry(name.to_owned()).or_default();
        if topic.number == 0 {
            board.next_topic += 1;
            topic.number = board.next_topic;
        }
        Ok(topic.number)
    }

    fn advertise(&mut self, at: usize, name: &str, seq: u64) -> Result<(), String> {
        let number = self.topic(at, name)?;
        let topic = self.switchboard.topics.get_mut(name).expect("just made");
        let subscribers = topic.subscribers.clone();
        let fresh = !topic.publishers.contains(&at);
        if fresh {
            topic.publishers.push(at);
            for (subscriber, rule) in subscribers {
                if subscriber != at {
                    self.join_or_say(name, number, at, subscriber, rule);
                }
            }
        }
        self.say(at, &ToMember::Topic { seq, topic: number, name: name.to_owned() }, &[]);
        Ok(())
    }

    fn subscribe(&mut self, at: usize, name: &str, rule: Rule, seq: u64) -> Result<(), String> {
        if let Rule::Block { within_ms } = rule
            && within_ms > BLOCK_MAX_MS
        {
            return Err(format!(
                "a publisher waits at most {BLOCK_MAX_MS} ms for a subscriber, not {within_ms}"
            ));
        }
        let number = self.topic(at, name)?;
        let topic = self.switchboard.topics.get_mut(name).expect("just made");
        if topic.subscribers.iter().any(|(subscriber, _)| *subscriber == at) {
            return Err(format!("it has subscribed to {name:?} already"));
        }
        topic.subscribers.push((at, rule));
        let publishers = topic.publishers.clone();
        // Its name first, so that the first message is understood.
        self.say(at, &ToMember::Topic { seq, topic: number, name: name.to_owned() }, &[]);
        for publisher in publishers {
            if publisher != at {
                self.join_or_say(name, number, publisher, at, rule);
            }
        }
        Ok(())
    }

    /// Joins one publisher and one subscriber; a pair that cannot be joined does not keep the others apart.
    fn join_or_say(&mut self, name: &str, number: u32, publisher: usize, subscriber: usize, rule: Rule) {
        if let Err(why) = self.join(name, number, publisher, subscriber, rule) {
            tracing::warn!(topic = name, "a subscriber does not hear a publisher: {why}");
        }
    }

    /// Joins one publisher and one subscriber.
    fn join(
        &mut self,
        name: &str,
        number: u32,
        publisher: usize,
        subscriber: usize,
        rule: Rule,
    ) -> Result<(), String> {
        let line = self.line_between(publisher, subscriber, None)?;
        let mut first = None;
        if rule == Rule::DropOldest {
            let system = |error: io::Error| format!("cannot make a ring for a topic: {error}");
            let bytes = self.config.channel_size;
            let topic = self.switchboard.topics.get_mut(name).expect("callers have made it");
            // In the books only when the publisher can be told of it.
            let made = match topic.rings.contains_key(&publisher) {
                true => None,
                false => {
                    trouble::check("attach").map_err(system)?;
                    Some(SharedObject::create("ai_swarm-topic", bytes).map_err(system)?)
                }
            };
            trouble::check("attach").map_err(system)?;
            let ring = made.as_ref().unwrap_or_else(|| &topic.rings[&publisher]);
            let (owned, read) = (ring.duplicate().map_err(system)?, ring.read_only().map_err(system)?);
            if let Some(ring) = made {
                if !self.say(publisher, &ToMember::Overwrite { topic: number, bytes }, &[owned.as_fd()]) {
                    return Err("the publisher cannot be told of its ring".to_owned());
                }
                let topic = self.switchboard.topics.get_mut(name).expect("callers have made it");
                topic.rings.insert(publisher, ring);
            }
            // Where the publisher is now: the subscriber may be slow to take its end of the ring.
            let from;
            (from, first) = feed_start(&LossyMemory::whole(read.map(Access::Read).map_err(system)?));
            let feed = ToMember::Feed { topic: number, line, from, first, bytes };
            if !self.say(subscriber, &feed, &[read.as_fd()]) {
                return Err("the subscriber cannot be told of the ring".to_owned());
            }
        }
        if !self.say(publisher, &ToMember::Subscriber { topic: number, line, rule, first }, &[]) {
            return Err("the publisher cannot be told of its subscriber".to_owned());
        }
        Ok(())
    }

    fn unsubscribe(&mut self, at: usize, name: &str, seq: u64) -> Result<(), String> {
        let topic =
            self.switchboard.topics.get_mut(name).ok_or_else(|| format!("there is no topic {name:?}"))?;
        topic.subscribers.retain(|(subscriber, _)| *subscriber != at);
        let unused = topic.publishers.is_empty() && topic.subscribers.is_empty();
        let (number, publishers) = (topic.number, topic.publishers.clone());
        for publisher in publishers {
            if let Some(line) = self.switchboard.line_joining(at, publisher) {
                self.say(publisher, &ToMember::Unsubscribed { topic: number, line }, &[]);
            }
        }
        if unused {
            self.switchboard.topics.remove(name);
        }
        self.say(at, &ToMember::Done { seq }, &[]);
        Ok(())
    }

    // Clients and their tasks.

    /// Takes what clients have sent and gives them what they are owed. Returns how much was done.
    pub(super) fn serve_clients(&mut self) -> usize {
        let mut work = 0;
        for place in (0..self.switchboard.clients.len()).rev() {
            let Some(&at) = self.switchboard.clients.get(place) else { continue };
            let Some(member) = self.switchboard.members[at].as_mut() else { continue };
            let Some(mut client) = member.client.take() else { continue };
            let mut message = self.switchboard.message.take().unwrap_or_default();
            let outcome = self.serve_client(at, &mut client, &mut message, &mut work);
            self.switchboard.message = Some(message);
            match self.switchboard.members[at].as_mut() {
                Some(member) => member.client = Some(client),
                None => self.write_off(&mut client),
            }
            if let Err(reason) = outcome {
                self.quarantine(at, &reason);
            }
        }
        work
    }

    fn serve_client(
        &mut self,
        at: usize,
        client: &mut Client,
        message: &mut Message,
        work: &mut usize,
    ) -> Result<(), String> {
        while let Some(&(ticket, task)) = client.unsent.front() {
            // One that had ended before it was asked for again may not be safe yet.
            if self.ledger.get(task).is_some_and(|task| !self.may_be_told(task)) {
                break;
            }
            if !self.tell_end(client, ticket, task)? {
                break;
            }
            client.unsent.pop_front();
            self.ledger.pay(task);
            *work += 1;
        }
        let mut bytes = 0;
        for _ in 0..MESSAGES_PER_TURN {
            if bytes >= BYTES_PER_TURN {
                break;
            }
            match client.link.receive(message) {
                Ok(false) => break,
                Ok(true) => {}
                Err(error) => return Err(error.to_string()),
            }
            *work += 1;
            bytes += message.payload().len();
            match FromClient::decode(message.kind, message.payload()).map_err(|error| error.to_string())? {
                FromClient::Submit(submit) => {
                    client.taken += 1;
                    match self.take_task(at, &submit) {
                        Ok(id) => self.note_taken(at, client, submit.ticket, id)?,
                        Err(why) => {
                            let why = &why[..why.floor_char_boundary(1000)];
                            send_surely(client, &ToClient::Refused(submit.ticket, why))?;
                        }
                    }
                }
                FromClient::GiveUp(ticket) => {
                    if let Some(&id) = client.open.get(&ticket)
                        && let Some(CancelOutcome::AskAgent(lease, attempt)) =
                            self.ledger.cancel(id, self.now)
                    {
                        self.ask_to_give_up(id, lease, attempt);
                    }
                }
            }
        }
        if client.taken > client.untold.back().map_or(client.told, |last| last.1) {
            let count = (self.written(), client.taken);
            match client.untold.back_mut() {
                // One that does not listen is owed the last number only.
                Some(last) if count.0 <= self.safe() => *last = count,
                _ => client.untold.push_back(count),
            }
        }
        let safe = self.safe();
        let is_safe = |untold: &(u64, u64)| untold.0 <= safe;
        if let Some(count) =
            client.untold.iter().take_while(|untold| is_safe(untold)).last().map(|last| last.1)
            && client.link.send(Lane::Normal, &ToClient::Accepted(count)).is_ok()
        {
            client.untold.retain(|untold| !is_safe(untold));
            client.told = count;
            client.touched = true;
        }
        if std::mem::take(&mut client.touched) || client.link.owes_blocks() {
            client.link.ring();
        }
        Ok(())
    }

    /// A submission was taken; its task may be one that was there before, under the same key.
    fn note_taken(&mut self, at: usize, client: &mut Client, ticket: u64, id: TaskId) -> Result<(), String> {
        let batch = batch_of(at, ticket);
        // The same batch, and open: just accepted. Ended: that of an earlier client in this place, asked for again under its key.
        let is_new = |task: &Task| task.batch == batch && !task.state.is_final();
        if self.ledger.get(id).is_some_and(is_new) || self.ledger.follow(id, batch) {
            client.open.insert(ticket, id);
        } else {
            client.ended += 1;
            self.owe_end(client, ticket, id)?;
        }
        Ok(())
    }

    /// What it was owed is owed to nobody any more.
    fn write_off(&mut self, client: &mut Client) {
        client.unsent.drain(..).for_each(|(_, task)| self.ledger.pay(task));
    }

    /// It is told as soon as there is room. Who reads nothing is told no more at last.
    fn owe_end(&mut self, client: &mut Client, ticket: u64, id: TaskId) -> Result<(), String> {
        if client.unsent.len() >= UNSENT_MAX {
            return Err(format!("it left {UNSENT_MAX} answers unread"));
        }
        self.ledger.owe(id);
        client.unsent.push_back((ticket, id));
        Ok(())
    }

    fn take_task(&mut self, at: usize, submit: &Submit<'_>) -> Result<TaskId, String> {
        if self.is_hopeless() {
            return Err(HOPELESS.to_owned());
        }
        let kernel = KernelId::from_code(submit.kernel)
            .ok_or_else(|| format!("field `kernel`: no kernel has the code {}", submit.kernel))?;
        let priority = Priority::ALL.get(usize::from(submit.priority)).copied();
        let priority = priority
            .ok_or_else(|| format!("field `priority`: code {} is none of 0, 1, 2", submit.priority))?;
        if submit.ticket >= 1 << TICKET_BITS {
            return Err(format!("field `ticket`: {} is not below 2^{TICKET_BITS}", submit.ticket));
        }
        let output =
            (!submit.output.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(submit.output)));
        let timeout = match submit.timeout_ns {
            0 => self.config.tasks.default_timeout,
            ns => Some(Duration::from_nanos(ns)),
        };
        let spec = TaskSpec {
            name: (!submit.name.is_empty()).then(|| submit.name.into()),
            key: (!submit.key.is_empty()).then(|| submit.key.into()),
            kernel: kernel.code(),
            kernel_name: kernel.name(),
            class: submit.class,
            level: submit.level,
            priority,
            timeout,
            retries: submit.retries.min(crate::jobs::RETRIES_MAX as u32),
            after: submit.after.iter().map(Box::from).collect(),
            body: submit.body.into(),
            output,
        };
        crate::jobs::check_spec(&spec)?;
        self.first_accepted.get_or_insert(self.now);
        let batch = batch_of(at, submit.ticket);
        self.ledger.submit_as(spec, batch, self.now).map_err(|error| error.to_string())
    }

    /// A task ended; if it was a client's, the client hears of it.
    pub(super) fn on_client_task_ended(&mut self, task: TaskId, batch: u64) {
        let Some((at, ticket)) = client_of(batch) else { return };
        let Some(member) = self.switchboard.members.get_mut(at).and_then(Option::as_mut) else { return };
        let Some(mut client) = member.client.take() else { return };
        let mut cut = None;
        // Another task: that of an earlier client in this place.
        if client.open.get(&ticket) == Some(&task) {
            client.open.remove(&ticket);
            client.ended += 1;
            // In order: behind those that wait for room already.
            let told = client.unsent.is_empty().then(|| self.tell_end(&mut client, ticket, task));
            match told {
                Some(Ok(true)) => {}
                Some(Err(reason)) => cut = Some(reason),
                _ => cut = self.owe_end(&mut client, ticket, task).err(),
            }
        }
        match self.switchboard.members[at].as_mut() {
            Some(member) => member.client = Some(client),
            None => self.write_off(&mut client),
        }
        if let Some(reason) = cut {
            self.quarantine(at, &reason);
        }
    }

    /// False when there is no room now.
    fn tell_end(&self, client: &mut Client, ticket: u64, id: TaskId) -> Result<bool, String> {
        let Some(task) = self.ledger.get(id) else { return Ok(true) };
        let verdict = match task.state {
            TaskState::Succeeded => Verdict::Succeeded,
            TaskState::Cancelled => Verdict::Cancelled,
            _ => Verdict::Failed,
        };
        let text = if verdict == Verdict::Succeeded { &task.result } else { &task.error };
        let ended = Ended {
            ticket,
            task: id,
            verdict,
            level: task.ran_level.unwrap_or(0),
            agent: task.agent.unwrap_or(AgentSlot(u16::MAX)),
            attempts: task.attempt.0,
            total_ns: task.finished.since(task.submitted).as_nanos() as u64,
            service_ns: task.service_ns,
            body: text.as_deref().unwrap_or("").as_bytes(),
        };
        // Half of our arena is for tasks: who never gives back what it has read must not stop them.
        if ended.body.len() > INLINE_MAX / 2 && !self.switchboard.store.has_half_left(ended.body.len()) {
            return Ok(false);
        }
        match client.link.send(Lane::Normal, &ToClient::Ended(ended)) {
            Ok(()) => {
                client.touched = true;
                Ok(true)
            }
            Err(SendError::Full(_)) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Rings the bells of clients that were written to.
    pub(super) fn ring_clients(&mut self) {
        for &at in &self.switchboard.clients {
            if let Some(client) =
                self.switchboard.members[at].as_mut().and_then(|member| member.client.as_mut())
                && std::mem::take(&mut client.touched)
            {
                self.wakes += u64::from(client.link.ring());
            }
        }
    }

    /// Connections that never introduced themselves are closed.
    fn close_silent_members(&mut self) {
        for at in self.switchboard.first_client..self.switchboard.members.len() {
            let silent = self
                .switchboard
                .member(at)
                .is_some_and(|member| member.contact.is_none() && self.now.since(member.since) > HELLO_LIMIT);
            if silent {
                self.close_member(at, "left: it never introduced itself");
            }
        }
    }

    /// Clients hear that the swarm ends.
    pub(super) fn dismiss_clients(&mut self) {
        for &at in &self.switchboard.clients {
            if let Some(client) =
                self.switchboard.members[at].as_mut().and_then(|member| member.client.as_mut())
            {
                let _ = client.link.send(Lane::Control, &ToClient::Stop);
                client.link.ring();
            }
        }
    }

    // Numbers.

    /// Every line's both directions: from, to, traffic.
    pub(super) fn line_traffic(&self) -> Vec<(String, String, ChannelTraffic)> {
        let board = &self.switchboard;
        let id = |at: usize| board.member(at).map_or_else(String::new, |member| member.id.clone());
        let lines = board.lines.values().flat_map(|line| [(line, 0), (line, 1)]);
        lines
            .map(|(line, from)| (id(line.ends[from].0), id(line.ends[1 - from].0), line.traffic(from)))
            .collect()
    }

    /// Topics by publisher and subscriber.
    pub(super) fn topic_views(&self) -> Vec<action::TopicView> {
        let board = &self.switchboard;
        let id = |at: usize| board.member(at).map_or_else(String::new, |member| member.id.clone());
        // Every half is read once, however many topics go over it: who counted, at whose other end, which topic.
        let mut rows = HashMap::new();
        for line in board.lines.values() {
            for from in [0, 1] {
                let (counter, other) = (line.ends[from].0, line.ends[1 - from].0);
                for (topic, delivered, dropped) in topic_rows(&line.ends[from].2) {
                    rows.insert((counter, other, topic), (delivered, dropped));
                }
            }
        }
        let mut views = Vec::new();
        for (name, topic) in &board.topics {
            for &publisher in &topic.publishers {
                for &(subscriber, rule) in topic.subscribers.iter().filter(|(at, _)| *at != publisher) {
                    let row = |counter, other| {
                        rows.get(&(counter, other, topic.number)).copied().unwrap_or_default()
                    };
                    let (written, refused) = row(publisher, subscriber);
                    // Who decides what is lost counts it: the publisher, or with an overwriting ring the reader too.
                    let (delivered, dropped) = match rule {
                        Rule::DropOldest => row(subscriber, publisher),
                        Rule::DropNewest | Rule::Block { .. } => (written, 0),
                    };
                    views.push(action::TopicView {
                        topic: name.clone(),
                        publisher: id(publisher),
                        subscriber: id(subscriber),
                        rule: rule.name().to_owned(),
                        sent: written.saturating_add(refused),
                        delivered,
                        dropped: dropped.saturating_add(refused),
                    });
                }
            }
        }
        views
    }

    /// Clients.
    pub(super) fn member_views(&self) -> Vec<action::MemberView> {
        let views = self.switchboard.clients.iter().filter_map(|&at| {
            let member = self.switchboard.member(at)?;
            let client = member.client.as_ref()?;
            Some(action::MemberView {
                id: member.id.clone(),
                kind: member.kind.to_owned(),
                pid: member.pid,
                incarnation: (member.owner & 0xFFFF_FFFF) as u32,
                attached_s: self.now.since(member.since).as_secs_f64(),
                submitted: client.taken,
                ended: client.ended,
            })
        });
        views.collect()
    }

    /// Arenas of agents and clients that use one.
    pub(super) fn arena_usages(&self) -> Vec<(String, ArenaUsage)> {
        let agents =
            self.dispatcher.iter().map(|seat| (self.id_of(seat.slot).unwrap_or_default(), &seat.link));
        let clients = self.switchboard.clients.iter().filter_map(|&at| {
            let member = self.switchboard.member(at)?;
            Some((member.id.clone(), &member.client.as_ref()?.link))
        });
        agents.chain(clients).filter_map(|(id, link)| Some((id, link.arena_usage()?))).collect()
    }

    /// Links of clients: id and traffic.
    pub(super) fn client_traffic(&self) -> Vec<(String, LinkTraffic)> {
        let traffic = self.switchboard.clients.iter().filter_map(|&at| {
            let member = self.switchboard.member(at)?;
            Some((member.id.clone(), member.client.as_ref()?.link.traffic()))
        });
        traffic.collect()
    }
}

/// A refusal must not get lost: a client that leaves no room for it is cut off.
fn send_surely<M: Encode>(client: &mut Client, message: &M) -> Result<(), String> {
    client.touched = true;
    client.link.send(Lane::Normal, message).map_err(|_| "it leaves its answers unread".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_number_says_whose_task_it_is() {
        assert_eq!(client_of(17), None);
        for (place, ticket) in [(0, 0), (300, (1 << TICKET_BITS) - 1), (4095, 7)] {
            assert_eq!(client_of(batch_of(place, ticket)), Some((place, ticket)));
        }
    }

    #[test]
    fn reasons_are_few() {
        assert_eq!(
            reason_class("slot 3 carries sequence 0x1, expected 0x2"),
            "nonsense in a slot's sequence"
        );
        assert_eq!(reason_class("anything a stranger writes"), "other nonsense");
    }
}
