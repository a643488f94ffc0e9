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

use super::lanes::DropReason;
use super::link::LinkNumbers;
use crate::os::socket::{self, MESSAGE_MAX, Received};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Version of these messages and of the layouts behind the descriptors. Both sides must have the same.
pub const VERSION: u32 = 1;
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
    fn names_are_plain() {
        assert!(is_name("sensors/room-1.temperature"));
        for name in ["", "a b", "x\n", "ä", &"x".repeat(65)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
