//! What the supervisor and its gateway's process say to each other, as bytes on a socket that only these two have.
//!
//! ```text
//!  0  length of what follows the head      4  number of the question, 0: a note      12  JSON, or nothing
//! ```
//! - To the supervisor: an [`Action`] under a number of the gateway's choice, or an empty note: it is alive.
//! - To the gateway: the [`Reply`] under the same number, sooner or later and in any order; nothing under that number when
//!   nobody will answer any more; or a [`Note`].
//!
//! Both ends are always the same build: the gateway is started from the supervisor's own file. All the same the
//! supervisor takes what comes for a stranger's: lengths are bounded, and a task is checked as if a client had sent it.

use super::action::{Action, Refused, RefusedTask, Reply};
use crate::base::ids::AgentKind;
use crate::jobs::{self, Defaults};
use crate::kernels::KernelId;
use crate::tasks::{Priority, TaskSpec};
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

/// The word that makes the binary a gateway.
pub const GATEWAY_WORD: &str = "__gateway";
/// Longest body of a frame: what the largest request becomes, with room for paths that were made absolute.
pub const FRAME_BYTES_MAX: usize = 256 << 20;
const HEAD_BYTES: usize = 12;
/// A buffer that had to be larger for once is given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// What the supervisor tells the gateway without having been asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Note {
    /// The first of all: what it has to know.
    Start(GatewayStart),
    /// There are events up to this number.
    News(u64),
    /// Is anybody there?
    Ping,
    /// It is over: say good-bye and end.
    Close,
}

/// What a gateway is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayStart {
    /// Path of the control socket; clients attach beside it.
    pub control: PathBuf,
    /// What submitted tasks get when they do not say: the longest time of one attempt,
    pub timeout: Option<Duration>,
    /// and how often a failure is tried again.
    pub retries: u32,
    /// `tracing` filter for its log.
    pub log_filter: String,
    /// Log lines as JSON.
    pub log_json: bool,
}

impl GatewayStart {
    /// What submitted tasks get when they do not say.
    pub fn defaults(&self) -> Defaults {
        Defaults { timeout: self.timeout, retries: self.retries }
    }
}

/// A frame with a body; in words why there can be none.
pub fn frame(number: u64, body: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; HEAD_BYTES];
    serde_json::to_writer(&mut bytes, body).map_err(|error| format!("cannot be sent: {error}"))?;
    let length = bytes.len() - HEAD_BYTES;
    if length > FRAME_BYTES_MAX {
        return Err(format!("takes {length} bytes on its way, at most {FRAME_BYTES_MAX} are possible"));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    bytes[4..HEAD_BYTES].copy_from_slice(&number.to_le_bytes());
    Ok(bytes)
}

/// A frame without a body.
pub fn empty(number: u64) -> Vec<u8> {
    [&[0; 4][..], &number.to_le_bytes()].concat()
}

/// A note.
pub fn note(note: &Note) -> Vec<u8> {
    frame(0, note).unwrap_or_else(|_| empty(0))
}

/// A question.
pub fn question(number: u64, action: &Action) -> Result<Vec<u8>, String> {
    frame(number, action).map_err(|why| format!("the request {why}; ask in several ones"))
}

/// The answer to a question; one that is too large becomes a refusal.
pub fn answer(number: u64, reply: Option<Reply>) -> Vec<u8> {
    let Some(reply) = reply else { return empty(number) };
    frame(number, &reply).unwrap_or_else(|why| {
        let refused = Refused::Conflict(format!("the answer {why}; ask for less"));
        frame(number, &Reply::Refused(refused)).unwrap_or_else(|_| empty(number))
    })
}

/// Waits for the next frame; leaves its body in `body` and returns its number. `None`: the other side has closed.
/// [`io::ErrorKind::InvalidData`] for what is no frame.
pub fn read(stream: &mut impl Read, body: &mut Vec<u8>) -> io::Result<Option<u64>> {
    body.clear();
    body.shrink_to(BUFFER_BYTES_KEPT);
    // The body takes memory as it comes, and not as it was announced.
    if stream.take(HEAD_BYTES as u64).read_to_end(body)? == 0 {
        return Ok(None);
    }
    let cut_short = || io::Error::new(io::ErrorKind::InvalidData, "a frame is cut short");
    let head = body.first_chunk::<HEAD_BYTES>().ok_or_else(cut_short)?;
    let (length, number) = head.split_first_chunk::<4>().expect("the head is longer than this");
    let length = u32::from_le_bytes(*length) as usize;
    let number = u64::from_le_bytes(number.try_into().expect("the rest of the head"));
    if length > FRAME_BYTES_MAX {
        let text = format!("a frame of {length} bytes, at most {FRAME_BYTES_MAX} are possible");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    body.clear();
    if stream.take(length as u64).read_to_end(body)? < length {
        return Err(cut_short());
    }
    Ok(Some(number))
}

/// A task on its way.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireTask {
    name: Option<Box<str>>,
    key: Option<Box<str>>,
    kernel: u8,
    class: u8,
    level: u8,
    priority: u8,
    timeout_ns: u64,
    retries: u32,
    after: Vec<Box<str>>,
    body: String,
    output: Option<PathBuf>,
}

impl WireTask {
    fn pack(spec: &TaskSpec) -> Result<Self, std::str::Utf8Error> {
        Ok(Self {
            name: spec.name.clone(),
            key: spec.key.clone(),
            kernel: spec.kernel,
            class: spec.class,
            level: spec.level,
            priority: spec.priority as u8,
            timeout_ns: spec.timeout.map_or(0, |span| span.as_nanos().min(u128::from(u64::MAX)) as u64),
            retries: spec.retries,
            after: spec.after.clone(),
            body: std::str::from_utf8(&spec.body)?.to_owned(),
            output: spec.output.clone(),
        })
    }

    fn unpack(self) -> Result<TaskSpec, String> {
        let kernel = KernelId::from_code(self.kernel)
            .ok_or_else(|| format!("no kernel has the code {}", self.kernel))?;
        let priority = Priority::ALL.get(usize::from(self.priority)).copied();
        let spec = TaskSpec {
            name: self.name,
            key: self.key,
            kernel: kernel.code(),
            kernel_name: kernel.name(),
            class: self.class,
            level: self.level,
            priority: priority.ok_or_else(|| format!("no priority has the code {}", self.priority))?,
            timeout: (self.timeout_ns > 0).then(|| Duration::from_nanos(self.timeout_ns)),
            retries: self.retries,
            after: self.after,
            body: self.body.into_bytes().into(),
            output: self.output,
        };
        jobs::check_spec(&spec)?;
        Ok(spec)
    }
}

/// Tasks in [`Action::Submit`]. Of a refused one only its name and what is wrong with it travel.
pub(super) mod tasks {
    use super::*;
    use serde::{Deserializer, Serializer};

    #[derive(Serialize, Deserialize)]
    enum Item {
        Task(WireTask),
        Refused(Option<Box<str>>, String),
    }

    /// As serde wants it.
    pub fn serialize<S: Serializer>(
        tasks: &[Result<TaskSpec, RefusedTask>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let item = |task: &Result<TaskSpec, RefusedTask>| match task {
            Ok(spec) => WireTask::pack(spec).map(Item::Task).map_err(serde::ser::Error::custom),
            Err(refused) => Ok(Item::Refused(refused.spec.name.clone(), refused.error.clone())),
        };
        let items = tasks.iter().map(item).collect::<Result<Vec<Item>, S::Error>>()?;
        items.serialize(serializer)
    }

    /// As serde wants it.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Result<TaskSpec, RefusedTask>>, D::Error> {
        let task = |item| match item {
            Item::Task(task) => task.unpack().map(Ok).map_err(D::Error::custom),
            Item::Refused(name, error) => {
                let spec = Box::new(TaskSpec { name, ..TaskSpec::default() });
                Ok(Err(RefusedTask { spec, error }))
            }
        };
        Vec::deserialize(deserializer)?.into_iter().map(task).collect()
    }
}

/// An agent's kind, by its name.
pub(super) mod kind {
    use super::*;
    use serde::{Deserializer, Serializer};

    /// As serde wants it.
    pub fn serialize<S: Serializer>(kind: &AgentKind, serializer: S) -> Result<S::Ok, S::Error> {
        kind.name().serialize(serializer)
    }

    /// As serde wants it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AgentKind, D::Error> {
        let name = String::deserialize(deserializer)?;
        AgentKind::from_name(&name)
            .ok_or_else(|| D::Error::custom(format!("no kind of agent is called {name:?}")))
    }
}

/// A mode of the balancer, by its name.
pub(super) mod mode {
    use super::*;
    use crate::tasks::Mode;
    use serde::{Deserializer, Serializer};

    /// As serde wants it.
    pub fn serialize<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
        mode.name().serialize(serializer)
    }

    /// As serde wants it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        let name = String::deserialize(deserializer)?;
        Mode::from_name(&name).ok_or_else(|| D::Error::custom(format!("no mode is called {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TaskSpec {
        TaskSpec {
            name: Some("näme\n".into()),
            key: Some("key".into()),
            kernel: KernelId::Sleep.code(),
            kernel_name: KernelId::Sleep.name(),
            class: 3,
            level: 1,
            priority: Priority::Low,
            timeout: Some(Duration::from_millis(7)),
            retries: 5,
            after: vec!["before".into()],
            body: br#"{"params":{"seconds":0.1}}"#[..].into(),
            output: Some("/out/put.npy".into()),
        }
    }

    fn there_and_back(action: &Action) -> Result<Action, serde_json::Error> {
        let bytes = question(7, action).expect("can be sent");
        let mut body = Vec::new();
        assert_eq!(read(&mut &bytes[..], &mut body).expect("a frame"), Some(7));
        serde_json::from_slice(&body)
    }

    #[test]
    fn tasks_arrive_as_they_were() {
        let refused = TaskSpec { name: Some("wrong".into()), ..TaskSpec::default() };
        let refused = RefusedTask { spec: Box::new(refused), error: "why".into() };
        let tasks = vec![Ok(spec()), Err(refused)];
        let Ok(Action::Submit { tasks, record_refused: false, wait: true }) =
            there_and_back(&Action::Submit { tasks, record_refused: false, wait: true })
        else {
            panic!("a submission")
        };
        let [Ok(task), Err(refused)] = &tasks[..] else { panic!("two tasks") };
        assert_eq!(format!("{task:?}"), format!("{:?}", spec()), "nothing is lost");
        assert_eq!((refused.spec.name.as_deref(), &*refused.error), (Some("wrong"), "why"));
    }

    #[test]
    fn what_no_job_can_ask_for_is_refused() {
        type Wrong = fn(&mut TaskSpec);
        let wrong: [(Wrong, &str); 8] = [
            (|spec| spec.kernel = 250, "no kernel has the code 250"),
            (|spec| spec.class = 32, "`class`"),
            (|spec| spec.level = 200, "`backend`"),
            (|spec| spec.retries = 1001, "`retries`"),
            (|spec| spec.name = Some("".into()), "`id`"),
            (|spec| spec.name = Some("x".repeat(201).into()), "`id`"),
            (|spec| spec.key = Some("x".repeat(201).into()), "`idempotency_key`"),
            (|spec| spec.output = Some("put.npy".into()), "`output`"),
        ];
        for (spoil, words) in wrong {
            let mut spec = spec();
            spoil(&mut spec);
            let action = Action::Submit { tasks: vec![Ok(spec)], record_refused: false, wait: false };
            let Err(error) = there_and_back(&action) else { panic!("{words}: accepted") };
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn frames_are_bounded_and_whole() {
        let mut body = Vec::new();
        assert_eq!(read(&mut &[][..], &mut body).expect("an end"), None);
        assert_eq!(read(&mut &empty(9)[..], &mut body).expect("a frame"), Some(9));
        assert!(body.is_empty());
        let whole = question(1, &Action::Status).expect("can be sent");
        for end in 1..whole.len() {
            let error = read(&mut &whole[..end], &mut body).expect_err("cut short");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{end}");
        }
        let mut long = empty(1);
        long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = read(&mut &long[..], &mut body).expect_err("too long").to_string();
        assert!(error.contains("at most 268435456"), "{error}");
    }

    #[test]
    fn numbers_arrive_to_their_last_bit() {
        for value in [0.1 + 0.2, f64::MIN_POSITIVE, 1.0 / 3.0, 4.35, 123_456_789.123_456_78] {
            let bytes = frame(1, &value).expect("can be sent");
            let back: f64 = serde_json::from_slice(&bytes[HEAD_BYTES..]).expect("a number");
            assert_eq!(back.to_bits(), value.to_bits(), "{value}");
        }
    }
}
