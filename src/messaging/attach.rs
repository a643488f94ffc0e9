//! What members and the supervisor say over their socket: who may talk to whom, and the descriptors for it.
//!
//! ```text
//!  member                                      supervisor
//!  Hello (clients only) ──────────────────────►  user checked, quarantine checked
//!                       ◄──────────────────────  Welcome + link
//!  Connect "compute-0"  ──────────────────────►  makes two halves
//!                       ◄──────────────────────  Line + my half, their half, desk, bell, arena   (to both)
//!  Advertise, Subscribe ──────────────────────►  joins publishers and subscribers
//!                       ◄──────────────────────  Line, Subscriber | Feed                          (to both)
//!  Poisoned             ──────────────────────►  closes the line, quarantines who wrote nonsense
//!                       ◄──────────────────────  Closed                                           (to both)
//! ```
//! Rare and small: one JSON object and up to sixteen descriptors per message. Payloads never come this way.

use super::link::LinkNumbers;
use super::meters::DropReason;
use crate::os::socket::{self, MESSAGE_MAX, Received};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Version of these messages and of the layouts behind the descriptors. Both sides must have the same.
pub const VERSION: u32 = 5;
/// Words that wait for a member that does not read its socket. One that is in a long computation is honest: room for
/// every line that it can have, opened and closed, and for a dozen topics on each.
pub const UNSAID_MAX: usize = 4096;
/// Longest name of a member or a topic, bytes.
pub const NAME_BYTES: usize = 64;

/// Whether a member or topic may be called so: 1 to 64 letters, digits, `.`, `_`, `-`, `/`.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    !name.is_empty() && name.len() <= NAME_BYTES && name.chars().all(plain)
}

/// What happens to a message of a topic when its subscriber does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The publisher never waits and overwrites the oldest; the subscriber skips ahead and counts what it missed.
    DropOldest,
    /// The publisher never waits; what finds no room is not sent, and counted.
    DropNewest,
    /// The publisher waits for room, at most so long; then the message is not sent, and counted.
    Block {
        /// Milliseconds, at most 10,000.
        within_ms: u64,
    },
}

impl Rule {
    /// How long a publisher waits for room.
    pub fn patience(self) -> Duration {
        match self {
            Rule::Block { within_ms } => Duration::from_millis(within_ms),
            Rule::DropOldest | Rule::DropNewest => Duration::ZERO,
        }
    }

    /// What a message counts as that found no room in that time.
    pub fn drop_reason(self) -> DropReason {
        match self {
            Rule::DropOldest => DropReason::Oldest,
            Rule::DropNewest => DropReason::Newest,
            Rule::Block { .. } => DropReason::Deadline,
        }
    }

    /// `drop_oldest`, `drop_newest`, `block`.
    pub fn name(self) -> &'static str {
        match self {
            Rule::DropOldest => "drop_oldest",
            Rule::DropNewest => "drop_newest",
            Rule::Block { .. } => "block",
        }
    }
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub enum FromMember {
    /// A client introduces itself; its first message.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// How it wants to be called.
        name: Option<String>,
    },
    /// Open a line to this member.
    Connect {
        /// Comes back with the answer.
        seq: u64,
        /// Its id.
        peer: String,
    },
    /// This member publishes on a topic.
    Advertise {
        /// Comes back with the answer.
        seq: u64,
        /// The topic.
        topic: String,
    },
    /// This member wants to hear a topic.
    Subscribe {
        /// Comes back with the answer.
        seq: u64,
        /// The topic.
        topic: String,
        /// What happens when it does not keep up.
        rule: Rule,
    },
    /// It no longer wants to.
    Unsubscribe {
        /// Comes back with the answer.
        seq: u64,
        /// The topic.
        topic: String,
    },
    /// The peer wrote nonsense on this line.
    Poisoned {
        /// Number of the line.
        line: u32,
        /// What nonsense.
        reason: String,
    },
}

/// What the supervisor says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub enum ToMember {
    /// A client is in. Carries the descriptors of its link.
    Welcome {
        /// The client's id.
        id: String,
        /// Names this life of it.
        owner: u64,
        /// The swarm's name.
        swarm: String,
        /// Which descriptor is what.
        link: LinkNumbers,
    },
    /// A line is open. Carries its five descriptors.
    Line {
        /// The request that this answers, if it was this member's.
        seq: Option<u64>,
        /// Number of the line in the swarm.
        line: u32,
        /// Its place among this member's lines.
        at: u16,
        /// Its place among the peer's lines.
        peer_at: u16,
        /// Id of the peer.
        peer: String,
        /// `client` or the kind of agent.
        kind: String,
        /// Bytes of a half.
        half_bytes: usize,
        /// Bytes of the peer's arena at most.
        arena_bytes: usize,
    },
    /// A line is closed.
    Closed {
        /// Its number.
        line: u32,
        /// Why.
        why: String,
    },
    /// A topic has this number.
    Topic {
        /// The request that this answers.
        seq: u64,
        /// Its number.
        topic: u32,
        /// Its name.
        name: String,
    },
    /// Publish this topic on this line too, by this rule. With [`Rule::DropOldest`]: wake it after writing to the
    /// overwriting ring.
    Subscriber {
        /// Number of the topic.
        topic: u32,
        /// Number of the line.
        line: u32,
        /// The rule.
        rule: Rule,
        /// Number of the first message that it hears, with an overwriting ring, if the supervisor could see it.
        first: Option<u32>,
    },
    /// Not on this line any more.
    Unsubscribed {
        /// Number of the topic.
        topic: u32,
        /// Number of the line.
        line: u32,
    },
    /// Write this topic into an overwriting ring. Carries it.
    Overwrite {
        /// Number of the topic.
        topic: u32,
        /// Bytes of the ring.
        bytes: usize,
    },
    /// Read this topic from an overwriting ring. Carries it.
    Feed {
        /// Number of the topic.
        topic: u32,
        /// Line to its publisher.
        line: u32,
        /// Where to begin: what is published from the subscription on is heard.
        from: u64,
        /// Number of the message there, if the supervisor could see it.
        first: Option<u32>,
        /// Bytes of the ring.
        bytes: usize,
    },
    /// Done, nothing to say.
    Done {
        /// The request that this answers.
        seq: u64,
    },
    /// Not done.
    Refused {
        /// The request that this answers.
        seq: u64,
        /// Why.
        why: String,
    },
}

impl ToMember {
    /// The line that it is about, if it is about one.
    fn line(&self) -> Option<u32> {
        match self {
            ToMember::Line { line, .. }
            | ToMember::Closed { line, .. }
            | ToMember::Subscriber { line, .. }
            | ToMember::Unsubscribed { line, .. }
            | ToMember::Feed { line, .. } => Some(*line),
            _ => None,
        }
    }
}

/// One end of the socket: says `Out`, hears `In`.
#[derive(Debug)]
pub struct Talk<Out, In> {
    socket: OwnedFd,
    buffer: Vec<u8>,
    words: PhantomData<fn(Out) -> In>,
}

/// The member's end.
pub type MemberTalk = Talk<FromMember, ToMember>;
/// The supervisor's end.
pub type SupervisorTalk = Talk<ToMember, FromMember>;

/// What the supervisor has to say to one member, in order: what its socket does not take now waits here.
///
/// A word that takes back one that still waits goes with it, so that others who come and go do not fill the queue of
/// a member that is busy.
#[derive(Debug)]
pub struct Mouth {
    talk: SupervisorTalk,
    unsaid: VecDeque<(ToMember, Vec<OwnedFd>)>,
}

/// What became of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is in the socket, or nobody needs to hear it any more.
    Now,
    /// It waits: say it with [`Mouth::retry`].
    Later,
    /// More wait than ever should: this member does not listen.
    TooMuch,
}

impl Mouth {
    /// Over the supervisor's end.
    pub fn new(talk: SupervisorTalk) -> Self {
        Self { talk, unsaid: VecDeque::new() }
    }

    /// Says something after all that waits. An error means that the member is gone, or that a descriptor could not be
    /// kept for later.
    pub fn say(&mut self, word: &ToMember, fds: &[BorrowedFd<'_>]) -> io::Result<Said> {
        if self.unsaid.is_empty() {
            match self.talk.say(word, fds) {
                Err(error) if is_full(&error) => {}
                outcome => return outcome.map(|()| Said::Now),
            }
        }
        if self.take_back(word) {
            return Ok(Said::Now);
        }
        if self.unsaid.len() >= UNSAID_MAX {
            return Ok(Said::TooMuch);
        }
        let fds = fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<_>>()?;
        self.unsaid.push_back((word.clone(), fds));
        Ok(Said::Later)
    }

    /// Says what waits, as far as there is room. True when anything was said.
    pub fn retry(&mut self) -> io::Result<bool> {
        let before = self.unsaid.len();
        while let Some((word, fds)) = self.unsaid.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match self.talk.say(word, &fds) {
                Ok(()) => drop(self.unsaid.pop_front()),
                Err(error) if is_full(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.unsaid.len() < before)
    }

    /// Whether anything waits.
    pub fn is_waiting(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// The member's words, and its process.
    pub fn talk(&mut self) -> &mut SupervisorTalk {
        &mut self.talk
    }

    /// Drops what waits and is void with `word`. True when then `word` itself need not be said. A line that answers a
    /// question stays: its asker waits for it.
    fn take_back(&mut self, word: &ToMember) -> bool {
        let before = self.unsaid.len();
        match *word {
            ToMember::Closed { line: closed, .. } => {
                let opens =
                    |word: &ToMember| matches!(word, ToMember::Line { line, .. } if *line == closed);
                let Some((ToMember::Line { seq: None, .. }, _)) =
                    self.unsaid.iter().find(|(word, _)| opens(word))
                else {
                    return false;
                };
                self.unsaid.retain(|(word, _)| word.line() != Some(closed));
            }
            ToMember::Unsubscribed { topic: left, line: on } => self.unsaid.retain(|(word, _)| {
                !matches!(word, ToMember::Subscriber { topic, line, .. } if (*topic, *line) == (left, on))
            }),
            _ => {}
        }
        self.unsaid.len() < before
    }
}

impl AsFd for Mouth {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.talk.as_fd()
    }
}

/// The socket takes no more for now; of descriptors on their way the kernel counts all of a user's.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || rustix::io::Errno::from_io_error(error)
            .is_some_and(|errno| matches!(errno, rustix::io::Errno::TOOMANYREFS | rustix::io::Errno::NOBUFS))
}

/// What was heard.
#[derive(Debug)]
pub enum Heard<In> {
    /// A message and its descriptors.
    Message(In, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The other side is gone.
    Closed,
}

impl<Out: Serialize, In: DeserializeOwned> Talk<Out, In> {
    /// Over a connected socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, buffer: Vec::new(), words: PhantomData }
    }

    /// Says something; never waits for the other side to read it.
    pub fn say(&self, message: &Out, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        socket::send(&self.socket, &serde_json::to_vec(message)?, fds)
    }

    /// The next message, if there is one. What is none is [`io::ErrorKind::InvalidData`].
    pub fn hear(&mut self) -> io::Result<Heard<In>> {
        self.buffer.resize(MESSAGE_MAX, 0);
        let heard = match socket::receive(&self.socket, &mut self.buffer)? {
            Received::Nothing => Heard::Nothing,
            Received::Closed => Heard::Closed,
            Received::Message(bytes, fds) => {
                let message = serde_json::from_slice(&self.buffer[..bytes])
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                Heard::Message(message, fds)
            }
        };
        if matches!(heard, Heard::Nothing) {
            // Kept only while there is something to hear.
            self.buffer = Vec::new();
        }
        Ok(heard)
    }

    /// Waits until something can be heard.
    pub fn wait(&self, timeout: Duration) -> bool {
        socket::wait(&self.socket, timeout)
    }

    /// Process and user at the other end.
    pub fn peer(&self) -> io::Result<(u32, u32)> {
        socket::peer(&self.socket)
    }
}

impl<Out, In> AsFd for Talk<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_understand_each_other_and_nonsense_is_an_error() {
        let (here, there) = socket::pair().expect("pair");
        let mut member = MemberTalk::new(here);
        let mut supervisor = SupervisorTalk::new(there);
        let hello =
            FromMember::Subscribe { seq: 3, topic: "t".to_owned(), rule: Rule::Block { within_ms: 5 } };
        member.say(&hello, &[]).expect("room");
        assert!(
            matches!(supervisor.hear(), Ok(Heard::Message(heard, fds)) if heard == hello && fds.is_empty())
        );
        assert!(matches!(supervisor.hear(), Ok(Heard::Nothing)));
        socket::send(&supervisor.socket, b"{\"say\":\"nothing\"}", &[]).expect("room");
        assert_eq!(member.hear().expect_err("no such word").kind(), io::ErrorKind::InvalidData);
        drop(supervisor);
        // A child that another test is just starting may hold a copy for a moment.
        while !matches!(member.hear(), Ok(Heard::Closed)) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn words_wait_for_a_member_that_is_busy_and_what_is_taken_back_is_never_said() {
        let (here, there) = socket::pair().expect("pair");
        let mut member = MemberTalk::new(here);
        let mut mouth = Mouth::new(SupervisorTalk::new(there));
        let mut said = 0u64;
        while mouth.say(&ToMember::Done { seq: said }, &[]).expect("attached") == Said::Now {
            said += 1;
        }
        assert!(said > 10, "{said}");
        let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let line = |line, seq| ToMember::Line {
            seq,
            line,
            at: 0,
            peer_at: 0,
            peer: "p".to_owned(),
            kind: "client".to_owned(),
            half_bytes: 0,
            arena_bytes: 0,
        };
        let closed = |line| ToMember::Closed { line, why: "left".to_owned() };
        // Who comes and goes leaves nothing behind, however often.
        for number in 10..10 + 2 * UNSAID_MAX as u32 {
            assert_eq!(mouth.say(&line(number, None), &[file.as_fd()]).expect("kept"), Said::Later);
            let (topic, rule, first) = (1, Rule::DropNewest, None);
            let subscriber = ToMember::Subscriber { topic, line: number, rule, first };
            assert_eq!(mouth.say(&subscriber, &[]).expect("kept"), Said::Later);
            let left = ToMember::Unsubscribed { topic: 1, line: number };
            assert_eq!(mouth.say(&left, &[]).expect("kept"), Said::Now);
            assert_eq!(mouth.say(&closed(number), &[]).expect("kept"), Said::Now);
        }
        // A line that somebody asked for is an answer, and one that was said must be closed.
        for (word, fds) in [
            (line(7, Some(3)), &[file.as_fd()][..]),
            (closed(7), &[]),
            (closed(1), &[]),
            (line(8, None), &[]),
        ] {
            assert_eq!(mouth.say(&word, fds).expect("kept"), Said::Later);
        }
        let mut heard = Vec::new();
        while mouth.is_waiting() {
            while let Ok(Heard::Message(word, fds)) = member.hear() {
                heard.push((word, fds.len()));
            }
            mouth.retry().expect("attached");
        }
        while let Ok(Heard::Message(word, fds)) = member.hear() {
            heard.push((word, fds.len()));
        }
        let late: Vec<_> =
            heard.iter().map(|(word, fds)| (word.line(), *fds)).skip(said as usize + 1).collect();
        assert_eq!(late, [(Some(7), 1), (Some(7), 0), (Some(1), 0), (Some(8), 0)], "{heard:?}");
        // There is an end to it.
        while mouth.say(&closed(1), &[]).expect("attached") != Said::Later {}
        for _ in 1..UNSAID_MAX {
            assert_eq!(mouth.say(&closed(1), &[]).expect("kept"), Said::Later);
        }
        assert_eq!(mouth.say(&closed(1), &[]).expect("kept"), Said::TooMuch);
    }

    #[test]
    fn names_are_plain() {
        assert!(is_name("sensors/room-1.temperature"));
        for name in ["", "a b", "x\n", "ä", &"x".repeat(65)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
