//! The messages: fixed little-endian records, a variable body at the end.
//!
//! `decode` is given a private copy and trusts nothing in it: unknown kinds, short records and codes
//! outside their range are [`BadMessage`].
//!
//! What an agent says ends with a checksum (CRC-32C) of it. It does not stop who lies on purpose; it finds what stray writes have
//! done between the two copies, so that no result is committed that no agent has sent. What the supervisor says lies in memory
//! that nobody else can write.

use super::failure::Failure;
use crate::base::clock::Nanos;
use crate::base::ids::{AgentSlot, Attempt, Incarnation, TaskId};
use crate::os::counting::{Counts, EVENTS};

/// A message that no correct process sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// No message has this kind.
    #[error("unknown message kind {0}")]
    Kind(u8),
    /// The record is shorter than its kind.
    #[error("message kind {kind} of {bytes} bytes is too short")]
    Short {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: usize,
    },
    /// A code inside is not one of those allowed.
    #[error("message kind {kind} carries code {code}")]
    Code {
        /// Its kind.
        kind: u8,
        /// The code.
        code: u8,
    },
    /// It is not what was sent.
    #[error("the checksum of a message of {bytes} bytes is wrong, kind {kind}")]
    Checksum {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: usize,
    },
    /// It says more than it may.
    #[error("message kind {kind} carries {bytes} bytes, at most {most} are allowed")]
    Long {
        /// Its kind.
        kind: u8,
        /// Bytes of its text or result.
        bytes: usize,
        /// See there.
        most: usize,
    },
}

/// Longest result of a task, bytes: the supervisor keeps it as long as the task.
pub const RESULT_BYTES: usize = 1 << 20;
/// Longest text of an agent, bytes: why a task failed, a note, a finding. It is read by people.
pub const TEXT_BYTES: usize = 12_000;

/// A message that can be written as a record.
pub trait Encode {
    /// Writes the record into `buffer` (cleared first) and returns its kind.
    fn encode(&self, buffer: &mut Vec<u8>) -> u8;
}

/// How a task ended on its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Done; the body is the result as JSON, empty for none.
    Succeeded = 1,
    /// The task itself is wrong (input, parameters): trying again cannot help. The body says what.
    Wrong = 2,
    /// Something failed that may work elsewhere or later (memory, disk). The body says what.
    Failed = 3,
    /// Given up because the supervisor said so.
    Cancelled = 4,
    /// It was asked for a part, and this task does not fall into parts.
    Undivided = 5,
}

/// Which part of its task an answer belongs to, so that one that comes twice is not taken for that to the next part. Whole tasks
/// are told apart by their attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartMark {
    /// With which unit it begins.
    pub at: u32,
    /// Of what it read and what shape its rows have: alike for all parts. `None`: there were no rows left for it.
    pub digest: Option<u64>,
}

/// Units `at` to `at + count` of the `of` that the rows of an output are cut into, which are alike but for what does not come out
/// even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first one, counted from 0.
    pub at: u32,
    /// How many.
    pub count: u32,
    /// Of how many.
    pub of: u32,
}

/// How much of a task is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it.
    Whole,
    /// All of it, while an earlier attempt still runs on another agent.
    Beside,
    /// Its rows of the output, which other agents write to as well.
    Part(Span),
    /// Every part is written: the output shall appear.
    Join,
}

/// A task on its way to an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run<'a> {
    /// Which task.
    pub task: TaskId,
    /// Which dispatch of it.
    pub attempt: Attempt,
    /// Code of the kernel.
    pub kernel: u8,
    /// Size class, as the supervisor computed it.
    pub class: u8,
    /// The instruction-set level asked for, see `jobs::level_word`; 0: the agent chooses.
    pub level: u8,
    /// How much of it.
    pub share: Share,
    /// Inputs, output and parameters as JSON; empty when there are none.
    pub body: &'a [u8],
}

/// Finished tasks of one kind on one agent, for the learning agent. Every finished task is in one of
/// these; the supervisor adds them up for a few milliseconds, so that tiny tasks do not drown it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experience {
    /// Code of the kernel.
    pub kernel: u8,
    /// Size class.
    pub class: u8,
    /// Where it ran.
    pub slot: AgentSlot,
    /// How many tasks.
    pub tasks: u32,
    /// Time they took together, ns.
    pub service_ns: u64,
}

/// What the supervisor says to an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ToAgent<'a> {
    /// Run this task.
    Run(Run<'a>),
    /// Give this task up, whether it runs or waits.
    Cancel(TaskId, Attempt),
    /// Finish what runs and end.
    Stop,
    /// Run an optimisation cycle now.
    Optimize,
    /// Tasks finished somewhere.
    Experience(Experience),
    /// Something came over the socket: see `messaging::attach`.
    News,
    /// To a standby: this is your place now.
    Adopt {
        /// Its slot.
        slot: AgentSlot,
        /// Which life of the agent there.
        incarnation: Incarnation,
        /// Core to be pinned to.
        core: u32,
        /// Its id.
        id: &'a str,
    },
    /// Another agent lives in this slot now: pid, incarnation, code of its kind.
    Peer {
        /// Its slot.
        slot: AgentSlot,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Its process.
        pid: u32,
        /// Code of its kind; 0: nobody lives there any more.
        kind: u8,
    },
}

/// A finished task on its way back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Done<'a> {
    /// Which task.
    pub task: TaskId,
    /// Which dispatch of it.
    pub attempt: Attempt,
    /// How it ended.
    pub verdict: Verdict,
    /// Code of the instruction-set level that ran.
    pub level: u8,
    /// When the agent began with it.
    pub started: Nanos,
    /// How long it took there, ns.
    pub service_ns: u64,
    /// Arithmetic operations, as the kernel counts them.
    pub flops: f64,
    /// Bytes read and written, as the kernel counts them.
    pub bytes: f64,
    /// Its output replaced an input, which is kept until the supervisor removes it.
    pub kept_input: bool,
    /// Which part of it that was, if it was one and ended well.
    pub part: Option<PartMark>,
    /// What was counted while its kernel ran, if anything was.
    pub counts: Option<Counts>,
    /// Result as JSON, or the error's words.
    pub body: &'a [u8],
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Severity {
    /// Good to know.
    Info = 1,
    /// Somebody should look.
    Warning = 2,
    /// A `performance_alert`: a threshold of the configuration was crossed.
    Alert = 3,
}

/// What an agent says to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FromAgent<'a> {
    /// Mapped, pinned and waiting for work.
    Ready {
        /// The core it is pinned to, `u32::MAX` when it could not be pinned.
        core: u32,
    },
    /// A task ended.
    Done(Done<'a>),
    /// Another agent has failed or is about to: please follow the plan.
    Ask {
        /// What is wrong.
        failure: Failure,
        /// With whom.
        slot: AgentSlot,
        /// And with which life of it; an older one is ignored.
        incarnation: Incarnation,
        /// How that is known: see [`failure::encode_finding`](super::failure::encode_finding).
        finding: &'a str,
    },
    /// For the event log.
    Note {
        /// How much it matters.
        severity: Severity,
        /// `event-kind` and text, separated by a newline.
        text: &'a str,
    },
}

mod kind {
    pub const RUN: u8 = 1;
    pub const CANCEL: u8 = 2;
    pub const STOP: u8 = 3;
    pub const OPTIMIZE: u8 = 4;
    pub const EXPERIENCE: u8 = 5;
    pub const PEER: u8 = 6;
    pub const NEWS: u8 = 7;
    pub const ADOPT: u8 = 8;
    pub const RUN_BESIDE: u8 = 9;
    pub const RUN_PART: u8 = 10;
    pub const RUN_JOIN: u8 = 11;
    pub const ACCEPTED: u8 = 32;
    pub const REFUSED: u8 = 33;
    pub const ENDED: u8 = 34;
    pub const READY: u8 = 64;
    pub const DONE: u8 = 65;
    pub const ASK: u8 = 66;
    pub const NOTE: u8 = 67;
    pub const DONE_IN_PLACE: u8 = 68;
    pub const DONE_PART: u8 = 69;
    pub const SUBMIT: u8 = 96;
    pub const GIVE_UP: u8 = 97;
}

/// Reads fixed fields off the front of a record.
struct Fields<'a> {
    kind: u8,
    bytes: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(kind: u8, payload: &'a [u8]) -> Self {
        Self { kind, bytes: payload.len(), rest: payload }
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadMessage> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(BadMessage::Short { kind: self.kind, bytes: self.bytes })?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, BadMessage> {
        Ok(self.take::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16, BadMessage> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    fn u32(&mut self) -> Result<u32, BadMessage> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    fn u64(&mut self) -> Result<u64, BadMessage> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    fn f64(&mut self) -> Result<f64, BadMessage> {
        Ok(f64::from_bits(self.u64()?))
    }
    /// See [`encode_counts`].
    fn counts(&mut self) -> Result<Option<Counts>, BadMessage> {
        let events = self.u16()?;
        if events == 0 {
            return Ok(None);
        }
        if events >> EVENTS.len() != 0 {
            return Err(BadMessage::Code { kind: self.kind, code: (events >> 8) as u8 });
        }
        let mut counts = Counts::NONE;
        for event in (0..EVENTS.len()).filter(|event| events >> event & 1 == 1) {
            counts.set(event, self.f64()?);
        }
        Ok(Some(counts))
    }
    fn part_mark(&mut self) -> Result<PartMark, BadMessage> {
        let (at, has_digest, digest) = (self.u32()?, self.u8()?, self.u64()?);
        match has_digest {
            0 => Ok(PartMark { at, digest: None }),
            1 => Ok(PartMark { at, digest: Some(digest) }),
            code => Err(BadMessage::Code { kind: self.kind, code }),
        }
    }

    fn verdict(&mut self) -> Result<Verdict, BadMessage> {
        Ok(match self.u8()? {
            1 => Verdict::Succeeded,
            2 => Verdict::Wrong,
            3 => Verdict::Failed,
            4 => Verdict::Cancelled,
            5 => Verdict::Undivided,
            code => return Err(BadMessage::Code { kind: self.kind, code }),
        })
    }
    /// A part after its length in four bytes.
    fn part(&mut self) -> Result<&'a [u8], BadMessage> {
        let length = self.u32()? as usize;
        let short = BadMessage::Short { kind: self.kind, bytes: self.bytes };
        let (part, rest) = self.rest.split_at_checked(length).ok_or(short)?;
        self.rest = rest;
        Ok(part)
    }
    fn name(&mut self) -> Result<&'a str, BadMessage> {
        let kind = self.kind;
        std::str::from_utf8(self.part()?).map_err(|_| BadMessage::Code { kind, code: 0 })
    }
    /// The rest as text; bytes that are no UTF-8 are cut off, they are for people only.
    fn text(self) -> &'a str {
        match std::str::from_utf8(self.rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&self.rest[..error.valid_up_to()]).unwrap_or(""),
        }
    }
}

impl Encode for ToAgent<'_> {
    #[inline]
    fn encode(&self, buffer: &mut Vec<u8>) -> u8 {
        buffer.clear();
        match self {
            ToAgent::Run(run) => {
                buffer.extend_from_slice(&run.task.0.to_le_bytes());
                buffer.extend_from_slice(&run.attempt.0.to_le_bytes());
                buffer.extend_from_slice(&[run.kernel, run.class, run.level]);
                let kind = match run.share {
                    Share::Whole => kind::RUN,
                    Share::Beside => kind::RUN_BESIDE,
                    Share::Join => kind::RUN_JOIN,
                    Share::Part(Span { at, count, of }) => {
                        for number in [at, count, of] {
                            buffer.extend_from_slice(&number.to_le_bytes());
                        }
                        kind::RUN_PART
                    }
                };
                buffer.extend_from_slice(run.body);
                kind
            }
            ToAgent::Cancel(task, attempt) => {
                buffer.extend_from_slice(&task.0.to_le_bytes());
                buffer.extend_from_slice(&attempt.0.to_le_bytes());
                kind::CANCEL
            }
            ToAgent::Stop => kind::STOP,
            ToAgent::News => kind::NEWS,
            ToAgent::Optimize => kind::OPTIMIZE,
            ToAgent::Experience(experience) => {
                buffer.extend_from_slice(&[experience.kernel, experience.class]);
                buffer.extend_from_slice(&experience.slot.0.to_le_bytes());
                buffer.extend_from_slice(&experience.tasks.to_le_bytes());
                buffer.extend_from_slice(&experience.service_ns.to_le_bytes());
                kind::EXPERIENCE
            }
            ToAgent::Adopt { slot, incarnation, core, id } => {
                buffer.extend_from_slice(&slot.0.to_le_bytes());
                buffer.extend_from_slice(&incarnation.0.to_le_bytes());
                buffer.extend_from_slice(&core.to_le_bytes());
                buffer.extend_from_slice(id.as_bytes());
                kind::ADOPT
            }
            ToAgent::Peer { slot, incarnation, pid, kind } => {
                buffer.extend_from_slice(&slot.0.to_le_bytes());
                buffer.extend_from_slice(&incarnation.0.to_le_bytes());
                buffer.extend_from_slice(&pid.to_le_bytes());
                buffer.push(*kind);
                kind::PEER
            }
        }
    }
}

impl<'a> ToAgent<'a> {
    /// Reads a record.
    #[inline]
    pub fn decode(message_kind: u8, payload: &'a [u8]) -> Result<Self, BadMessage> {
        let mut fields = Fields::new(message_kind, payload);
        Ok(match message_kind {
            kind::RUN | kind::RUN_BESIDE | kind::RUN_PART | kind::RUN_JOIN => ToAgent::Run(Run {
                task: TaskId(fields.u64()?),
                attempt: Attempt(fields.u32()?),
                kernel: fields.u8()?,
                class: fields.u8()?,
                level: fields.u8()?,
                share: match message_kind {
                    kind::RUN_BESIDE => Share::Beside,
                    kind::RUN_JOIN => Share::Join,
                    kind::RUN_PART => {
                        Share::Part(Span { at: fields.u32()?, count: fields.u32()?, of: fields.u32()? })
                    }
                    _ => Share::Whole,
                },
                body: fields.rest,
            }),
            kind::CANCEL => ToAgent::Cancel(TaskId(fields.u64()?), Attempt(fields.u32()?)),
            kind::STOP => ToAgent::Stop,
            kind::NEWS => ToAgent::News,
            kind::OPTIMIZE => ToAgent::Optimize,
            kind::EXPERIENCE => ToAgent::Experience(Experience {
                kernel: fields.u8()?,
                class: fields.u8()?,
                slot: AgentSlot(fields.u16()?),
                tasks: fields.u32()?,
                service_ns: fields.u64()?,
            }),
            kind::ADOPT => ToAgent::Adopt {
                slot: AgentSlot(fields.u16()?),
                incarnation: Incarnation(fields.u32()?),
                core: fields.u32()?,
                id: fields.text(),
            },
            kind::PEER => ToAgent::Peer {
                slot: AgentSlot(fields.u16()?),
                incarnation: Incarnation(fields.u32()?),
                pid: fields.u32()?,
                kind: fields.u8()?,
            },
            other => return Err(BadMessage::Kind(other)),
        })
    }
}

/// Which events were counted, a bit each, and how often they happened.
#[inline]
fn encode_counts(counts: Option<&Counts>, buffer: &mut Vec<u8>) {
    let all = || counts.into_iter().flat_map(Counts::iter);
    let events = all().fold(0_u16, |events, (event, _)| events | 1 << event);
    buffer.extend_from_slice(&events.to_le_bytes());
    all().for_each(|(_, count)| buffer.extend_from_slice(&count.to_le_bytes()));
}

/// Of a message and its kind.
fn checksum(kind: u8, record: &[u8]) -> u32 {
    // The kind as the register's first content costs nothing, unlike a byte of its own.
    crc32c::crc32c_append(u32::from(kind), record)
}

impl Encode for FromAgent<'_> {
    #[inline]
    fn encode(&self, buffer: &mut Vec<u8>) -> u8 {
        buffer.clear();
        let kind = match self {
            FromAgent::Ready { core } => {
                buffer.extend_from_slice(&core.to_le_bytes());
                kind::READY
            }
            FromAgent::Done(done) => {
                buffer.extend_from_slice(&done.task.0.to_le_bytes());
                buffer.extend_from_slice(&done.attempt.0.to_le_bytes());
                buffer.extend_from_slice(&[done.verdict as u8, done.level]);
                buffer.extend_from_slice(&done.started.0.to_le_bytes());
                buffer.extend_from_slice(&done.service_ns.to_le_bytes());
                buffer.extend_from_slice(&done.flops.to_le_bytes());
                buffer.extend_from_slice(&done.bytes.to_le_bytes());
                if let Some(part) = done.part {
                    buffer.extend_from_slice(&part.at.to_le_bytes());
                    buffer.push(u8::from(part.digest.is_some()));
                    buffer.extend_from_slice(&part.digest.unwrap_or(0).to_le_bytes());
                }
                encode_counts(done.counts.as_ref(), buffer);
                buffer.extend_from_slice(done.body);
                match (done.part, done.kept_input) {
                    // Whoever lets the whole appear keeps what was there.
                    (Some(_), _) => kind::DONE_PART,
                    (None, true) => kind::DONE_IN_PLACE,
                    (None, false) => kind::DONE,
                }
            }
            FromAgent::Ask { failure, slot, incarnation, finding } => {
                buffer.push(*failure as u8);
                buffer.extend_from_slice(&slot.0.to_le_bytes());
                buffer.extend_from_slice(&incarnation.0.to_le_bytes());
                buffer.extend_from_slice(finding.as_bytes());
                kind::ASK
            }
            FromAgent::Note { severity, text } => {
                buffer.push(*severity as u8);
                buffer.extend_from_slice(text.as_bytes());
                kind::NOTE
            }
        };
        buffer.extend_from_slice(&checksum(kind, buffer).to_le_bytes());
        kind
    }
}

impl<'a> FromAgent<'a> {
    /// Reads a record.
    #[inline]
    pub fn decode(message_kind: u8, payload: &'a [u8]) -> Result<Self, BadMessage> {
        let bytes = payload.len();
        let short = BadMessage::Short { kind: message_kind, bytes };
        let (payload, sum) = payload.split_last_chunk().ok_or(short)?;
        if u32::from_le_bytes(*sum) != checksum(message_kind, payload) {
            return Err(BadMessage::Checksum { kind: message_kind, bytes });
        }
        let mut fields = Fields::new(message_kind, payload);
        let code = |code| BadMessage::Code { kind: message_kind, code };
        let message = match message_kind {
            kind::READY => FromAgent::Ready { core: fields.u32()? },
            kind::DONE | kind::DONE_IN_PLACE | kind::DONE_PART => FromAgent::Done(Done {
                task: TaskId(fields.u64()?),
                attempt: Attempt(fields.u32()?),
                verdict: fields.verdict()?,
                level: fields.u8()?,
                started: Nanos(fields.u64()?),
                service_ns: fields.u64()?,
                flops: fields.f64()?,
                bytes: fields.f64()?,
                kept_input: message_kind == kind::DONE_IN_PLACE,
                part: if message_kind == kind::DONE_PART { Some(fields.part_mark()?) } else { None },
                counts: fields.counts()?,
                body: fields.rest,
            }),
            kind::ASK => FromAgent::Ask {
                failure: {
                    let found = fields.u8()?;
                    Failure::from_code(found).ok_or(code(found))?
                },
                slot: AgentSlot(fields.u16()?),
                incarnation: Incarnation(fields.u32()?),
                finding: fields.text(),
            },
            kind::NOTE => FromAgent::Note {
                severity: match fields.u8()? {
                    1 => Severity::Info,
                    2 => Severity::Warning,
                    3 => Severity::Alert,
                    other => return Err(code(other)),
                },
                text: fields.text(),
            },
            other => return Err(BadMessage::Kind(other)),
        };
        let (bytes, most) = match &message {
            FromAgent::Ready { .. } => (0, 0),
            FromAgent::Done(done) if done.verdict == Verdict::Succeeded => (done.body.len(), RESULT_BYTES),
            FromAgent::Done(done) => (done.body.len(), TEXT_BYTES),
            FromAgent::Ask { finding: text, .. } | FromAgent::Note { text, .. } => (text.len(), TEXT_BYTES),
        };
        if bytes > most {
            return Err(BadMessage::Long { kind: message_kind, bytes, most });
        }
        Ok(message)
    }
}

/// A task that a client hands in. The texts and the body are checked where they are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Submit<'a> {
    /// The client's own number for it; comes back with everything about it.
    pub ticket: u64,
    /// Code of the kernel.
    pub kernel: u8,
    /// Size class.
    pub class: u8,
    /// The instruction-set level asked for; 0: the agent chooses.
    pub level: u8,
    /// Code of the priority.
    pub priority: u8,
    /// How often a failure is tried again.
    pub retries: u32,
    /// Longest time of one attempt, ns; 0: as the swarm is configured.
    pub timeout_ns: u64,
    /// The submitter's name for it; empty for none.
    pub name: &'a str,
    /// The idempotency key; empty for none.
    pub key: &'a str,
    /// Where the output goes; empty for none.
    pub output: &'a [u8],
    /// Names of tasks that must have succeeded before.
    pub after: Names<'a>,
    /// Inputs, output and parameters as the agent reads them.
    pub body: &'a [u8],
}

/// A list of texts, each after its length in two bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Names<'a>(pub &'a [u8]);

impl<'a> Names<'a> {
    /// Appends one; at most 65,535 bytes of it.
    pub fn push(list: &mut Vec<u8>, name: &str) {
        let name = &name.as_bytes()[..name.len().min(usize::from(u16::MAX))];
        list.extend_from_slice(&(name.len() as u16).to_le_bytes());
        list.extend_from_slice(name);
    }

    /// The texts; ends early at what is none.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<2>()?;
            let (name, tail) = tail.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            rest = tail;
            std::str::from_utf8(name).ok()
        })
    }
}

/// What a client says to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FromClient<'a> {
    /// Run this task.
    Submit(Submit<'a>),
    /// Give the task with this ticket up.
    GiveUp(u64),
}

/// A client's task that has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended<'a> {
    /// The client's number for it.
    pub ticket: u64,
    /// The swarm's number for it.
    pub task: TaskId,
    /// How it ended.
    pub verdict: Verdict,
    /// Code of the instruction-set level that ran; 0 when none did.
    pub level: u8,
    /// The agent of the last attempt.
    pub agent: AgentSlot,
    /// Dispatches.
    pub attempts: u32,
    /// From acceptance to the end, ns.
    pub total_ns: u64,
    /// On the agent, ns.
    pub service_ns: u64,
    /// Result as JSON, or the error's words.
    pub body: &'a [u8],
}

/// What the supervisor says to a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ToClient<'a> {
    /// So many of its submissions have been taken so far, in the order in which they were sent: from here on
    /// they survive the client.
    Accepted(u64),
    /// The task with this ticket was not taken, and why.
    Refused(u64, &'a str),
    /// A task ended.
    Ended(Ended<'a>),
    /// Something came over the socket: see `messaging::attach`.
    News,
    /// The swarm ends.
    Stop,
}

impl Encode for FromClient<'_> {
    #[inline]
    fn encode(&self, buffer: &mut Vec<u8>) -> u8 {
        buffer.clear();
        match self {
            FromClient::Submit(submit) => {
                buffer.extend_from_slice(&submit.ticket.to_le_bytes());
                buffer.extend_from_slice(&[submit.kernel, submit.class, submit.level, submit.priority]);
                buffer.extend_from_slice(&submit.retries.to_le_bytes());
                buffer.extend_from_slice(&submit.timeout_ns.to_le_bytes());
                let texts = [submit.name.as_bytes(), submit.key.as_bytes()];
                for part in texts.into_iter().chain([submit.output, submit.after.0]) {
                    buffer.extend_from_slice(&(part.len() as u32).to_le_bytes());
                    buffer.extend_from_slice(part);
                }
                buffer.extend_from_slice(submit.body);
                kind::SUBMIT
            }
            FromClient::GiveUp(ticket) => {
                buffer.extend_from_slice(&ticket.to_le_bytes());
                kind::GIVE_UP
            }
        }
    }
}

impl<'a> FromClient<'a> {
    /// Reads a record.
    pub fn decode(message_kind: u8, payload: &'a [u8]) -> Result<Self, BadMessage> {
        let mut fields = Fields::new(message_kind, payload);
        Ok(match message_kind {
            kind::SUBMIT => FromClient::Submit(Submit {
                ticket: fields.u64()?,
                kernel: fields.u8()?,
                class: fields.u8()?,
                level: fields.u8()?,
                priority: fields.u8()?,
                retries: fields.u32()?,
                timeout_ns: fields.u64()?,
                name: fields.name()?,
                key: fields.name()?,
                output: fields.part()?,
                after: Names(fields.part()?),
                body: fields.rest,
            }),
            kind::GIVE_UP => FromClient::GiveUp(fields.u64()?),
            other => return Err(BadMessage::Kind(other)),
        })
    }
}

impl Encode for ToClient<'_> {
    #[inline]
    fn encode(&self, buffer: &mut Vec<u8>) -> u8 {
        buffer.clear();
        match self {
            ToClient::Accepted(count) => {
                buffer.extend_from_slice(&count.to_le_bytes());
                kind::ACCEPTED
            }
            ToClient::Refused(ticket, text) => {
                buffer.extend_from_slice(&ticket.to_le_bytes());
                buffer.extend_from_slice(text.as_bytes());
                kind::REFUSED
            }
            ToClient::Ended(ended) => {
                buffer.extend_from_slice(&ended.ticket.to_le_bytes());
                buffer.extend_from_slice(&ended.task.0.to_le_bytes());
                buffer.extend_from_slice(&[ended.verdict as u8, ended.level]);
                buffer.extend_from_slice(&ended.agent.0.to_le_bytes());
                buffer.extend_from_slice(&ended.attempts.to_le_bytes());
                buffer.extend_from_slice(&ended.total_ns.to_le_bytes());
                buffer.extend_from_slice(&ended.service_ns.to_le_bytes());
                buffer.extend_from_slice(ended.body);
                kind::ENDED
            }
            ToClient::News => kind::NEWS,
            ToClient::Stop => kind::STOP,
        }
    }
}

impl<'a> ToClient<'a> {
    /// Reads a record.
    pub fn decode(message_kind: u8, payload: &'a [u8]) -> Result<Self, BadMessage> {
        let mut fields = Fields::new(message_kind, payload);
        Ok(match message_kind {
            kind::ACCEPTED => ToClient::Accepted(fields.u64()?),
            kind::REFUSED => ToClient::Refused(fields.u64()?, fields.text()),
            kind::ENDED => ToClient::Ended(Ended {
                ticket: fields.u64()?,
                task: TaskId(fields.u64()?),
                verdict: fields.verdict()?,
                level: fields.u8()?,
                agent: AgentSlot(fields.u16()?),
                attempts: fields.u32()?,
                total_ns: fields.u64()?,
                service_ns: fields.u64()?,
                body: fields.rest,
            }),
            kind::NEWS => ToClient::News,
            kind::STOP => ToClient::Stop,
            other => return Err(BadMessage::Kind(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::ring::SLOT_PAYLOAD;

    fn run() -> Run<'static> {
        Run {
            task: TaskId(7),
            attempt: Attempt(2),
            kernel: 12,
            class: 3,
            level: 0,
            share: Share::Whole,
            body: b"{}",
        }
    }

    fn done() -> Done<'static> {
        Done {
            task: TaskId(u64::MAX),
            attempt: Attempt(1),
            verdict: Verdict::Succeeded,
            level: 4,
            started: Nanos(5),
            service_ns: 6,
            flops: 1.5,
            bytes: 2.5,
            part: None,
            kept_input: false,
            counts: None,
            body: b"",
        }
    }

    /// Of the first event, of the last one, and of one between.
    fn counts() -> Counts {
        let mut counts = Counts::NONE;
        [0, 4, EVENTS.len() - 1].into_iter().for_each(|event| counts.set(event, 1e12 + event as f64));
        counts
    }

    #[test]
    fn messages_survive_the_journey() {
        let mut buffer = Vec::new();
        let to_agent = [
            ToAgent::Run(run()),
            ToAgent::Run(Run { share: Share::Beside, ..run() }),
            ToAgent::Run(Run { share: Share::Part(Span { at: 3, count: 1, of: u32::MAX }), ..run() }),
            ToAgent::Run(Run { share: Share::Join, ..run() }),
            ToAgent::Cancel(TaskId(9), Attempt(1)),
            ToAgent::Stop,
            ToAgent::Optimize,
            ToAgent::Experience(Experience {
                kernel: 1,
                class: 2,
                slot: AgentSlot(300),
                tasks: 5,
                service_ns: 4,
            }),
            ToAgent::Peer { slot: AgentSlot(1), incarnation: Incarnation(2), pid: 3, kind: 0 },
        ];
        for message in to_agent {
            let kind = message.encode(&mut buffer);
            assert_eq!(ToAgent::decode(kind, &buffer), Ok(message));
            assert!(FromAgent::decode(kind, &buffer).is_err(), "directions do not mix");
        }
        let from_agent = [
            FromAgent::Ready { core: 3 },
            FromAgent::Done(done()),
            FromAgent::Done(Done { kept_input: true, ..done() }),
            FromAgent::Done(Done { part: Some(PartMark { at: u32::MAX, digest: Some(0) }), ..done() }),
            FromAgent::Done(Done {
                part: Some(PartMark { at: 0, digest: None }),
                counts: Some(counts()),
                body: b"{}",
                ..done()
            }),
            FromAgent::Done(Done { counts: Some(counts()), body: b"{}", ..done() }),
            FromAgent::Ask {
                failure: Failure::Leak,
                slot: AgentSlot(4),
                incarnation: Incarnation(5),
                finding: "memory grows\nleft_s 12",
            },
            FromAgent::Note { severity: Severity::Alert, text: "cpu\n99%" },
        ];
        for message in from_agent {
            let kind = message.encode(&mut buffer);
            assert_eq!(FromAgent::decode(kind, &buffer), Ok(message));
        }
    }

    #[test]
    fn a_flipped_bit_in_what_an_agent_says_is_found() {
        let mut buffer = Vec::new();
        let body = br#"{"value": 124750}"#;
        let messages = [
            FromAgent::Ready { core: 3 },
            FromAgent::Done(Done { body, ..done() }),
            FromAgent::Note { severity: Severity::Alert, text: "cpu\n99%" },
        ];
        for message in messages {
            let kind = message.encode(&mut buffer);
            for bit in 0..buffer.len() * 8 {
                let mut damaged = buffer.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(FromAgent::decode(kind, &damaged).is_err(), "bit {bit} of {message:?}");
            }
            for bit in 0..8 {
                assert!(FromAgent::decode(kind ^ 1 << bit, &buffer).is_err(), "bit {bit} of the kind");
            }
            for length in 0..buffer.len() {
                assert!(FromAgent::decode(kind, &buffer[..length]).is_err(), "{length} bytes of {message:?}");
            }
        }
    }

    #[test]
    fn a_task_without_arrays_and_its_answer_take_one_slot_each() {
        let mut buffer = Vec::new();
        ToAgent::Run(Run { body: b"", ..run() }).encode(&mut buffer);
        assert!(buffer.len() <= SLOT_PAYLOAD);
        FromAgent::Done(done()).encode(&mut buffer);
        assert!(buffer.len() <= SLOT_PAYLOAD);
    }

    #[test]
    fn who_says_too_much_is_not_believed() {
        let (mut buffer, words) = (Vec::new(), "x".repeat(RESULT_BYTES + 1));
        let mut passes = |message: FromAgent<'_>| {
            let kind = message.encode(&mut buffer);
            FromAgent::decode(kind, &buffer).is_ok()
        };
        for (verdict, most) in
            [(Verdict::Succeeded, RESULT_BYTES), (Verdict::Wrong, TEXT_BYTES), (Verdict::Failed, TEXT_BYTES)]
        {
            let mut says =
                |bytes| passes(FromAgent::Done(Done { verdict, body: &words.as_bytes()[..bytes], ..done() }));
            assert!(says(most) && !says(most + 1), "{verdict:?}");
        }
        for bytes in [TEXT_BYTES, TEXT_BYTES + 1] {
            let note = FromAgent::Note { severity: Severity::Info, text: &words[..bytes] };
            assert_eq!(passes(note), bytes == TEXT_BYTES);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut rng = crate::base::prng::SplitMix64::new(11);
        for _ in 0..50_000 {
            let payload: Vec<u8> = (0..rng.below(80)).map(|_| rng.next_u64() as u8).collect();
            let kind = if rng.below(2) == 0 { rng.below(8) as u8 } else { 60 + rng.below(10) as u8 };
            let _ = ToAgent::decode(kind, &payload);
            // A liar's checksums are right.
            let sum = checksum(kind, &payload).to_le_bytes();
            let _ = FromAgent::decode(kind, &[&payload[..], &sum].concat());
        }
    }
}
