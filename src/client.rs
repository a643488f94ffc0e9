//! A process of your own, attached to a running swarm: it hands in tasks and exchanges messages with agents and other
//! clients, all through shared memory.
//!
//! ```no_run
//! use ai_swarm::client::{Attach, Mail};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Attach::to("default").as_client("camera").attach()?;
//!
//! let ticket = client.submit_json(&serde_json::json!({ "kernel": "noop" }))?;
//! let end = client.wait(ticket, Duration::from_secs(1))?;
//! assert!(end.is_success());
//!
//! let agent = client.connect("compute-0")?;
//! let status = client.call(agent, b"status", Duration::from_secs(1))?;
//! println!("{}", String::from_utf8_lossy(&status));
//!
//! client.publish("frames/left", &[0u8; 64])?;
//! let mut mail = Mail::default();
//! while client.receive(&mut mail, Duration::from_millis(10))? {
//!     println!("{:?}: {} bytes", mail.what, mail.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A client may end or die at any moment: tasks that were accepted go on, its lines are closed, and what it had of
//! other members' memory is theirs again. Only processes of the same user can attach.
//!
//! Sending wakes a receiver that sleeps: each [`send`](Client::send) looks whether it does, which costs a memory fence. Many
//! small messages are sent best with [`send_all`](Client::send_all), one look for all of them, or with the `push` calls
//! of [`port`](Client::port) and one [`flush`](Client::flush).

use crate::agents::runner::Patience;
use crate::base::clock::Nanos;
use crate::gateway;
use crate::jobs::{self, Defaults};
use crate::messaging::attach::{FromMember, Heard, MemberTalk, ToMember, VERSION};
use crate::messaging::envelope::{FromClient, Names, Submit, ToClient, Verdict};
use crate::messaging::lanes::Lane;
use crate::messaging::link::AgentLink;
use crate::messaging::meters::LaneCount;
use crate::messaging::wire::{ReceiveError, SendError};
use crate::os::{clock, socket};
use crate::shm::arena::ArenaUsage;
use crate::shm::ring::Message;
use crate::supervisor::action::StatisticsView;
use crate::supervisor::home::{attach_path, socket_path};
use crate::tasks::TaskSpec;
use rustix::net::SocketType;
use serde_json::Value;
use std::collections::VecDeque;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::messaging::attach::Rule;
use crate::messaging::port::Port;
pub use crate::messaging::port::{Correlation, LineNumbers, Mail, Parcel, Peer, PortError, What};

/// A supervisor that does not answer within this time is gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A supervisor that takes no submission for so long is not merely busy.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// Messages that are kept while a reply is waited for, and taken in one go.
const INBOX_MAX: usize = 4096;
const MAIL_PER_LOOK: usize = 256;
/// Longest sleep between two looks: insurance, not the way in which messages are noticed.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

/// Why a client could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No swarm listens there.
    #[error("no swarm is running at {}: start one with `ai_swarm_deploy`", socket.display())]
    NotRunning {
        /// Where we knocked.
        socket: PathBuf,
    },
    /// The swarm or another member refused, and says why.
    #[error("refused: {0}")]
    Refused(String),
    /// The task is wrong; nothing was submitted.
    #[error("{0}")]
    Task(String),
    /// The lane to the supervisor has no room; take some answers first.
    #[error("no room: answers have to be taken first")]
    Full,
    /// It did not happen in time.
    #[error("not within {0:?}")]
    Timeout(Duration),
    /// Something with a line to another member.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The swarm has ended.
    #[error("the swarm has ended")]
    Ended,
    /// The swarm wrote nonsense, or the system refuses.
    #[error("the connection to the swarm is broken: {0}")]
    Broken(String),
}

impl From<ReceiveError> for ClientError {
    fn from(error: ReceiveError) -> Self {
        ClientError::Broken(error.to_string())
    }
}

/// Where to attach, and as whom.
#[derive(Clone, Debug)]
pub struct Attach {
    swarm: String,
    state_dir: Option<PathBuf>,
    control: Option<PathBuf>,
    name: Option<String>,
    spin: Option<bool>,
}

impl Attach {
    /// To the swarm with this name.
    pub fn to(swarm: &str) -> Self {
        Self { swarm: swarm.to_owned(), state_dir: None, control: None, name: None, spin: None }
    }

    /// To the swarm with this control socket.
    pub fn at(control: &Path) -> Self {
        Self { control: Some(control.to_owned()), ..Self::to("default") }
    }

    /// To the swarm with this state directory, if it was started with `--state-dir`.
    pub fn state_dir(mut self, path: &Path) -> Self {
        self.state_dir = Some(path.to_owned());
        self
    }

    /// Under this name; else `client-N`.
    pub fn as_client(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Whether to wait awake for a moment before sleeping. The default is to do so unless the supervisor says that
    /// cores are shared: an answer then takes a microsecond and not a wake-up.
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = Some(spin);
        self
    }

    /// Attaches.
    pub fn attach(self) -> Result<Client, ClientError> {
        let control =
            self.control.clone().unwrap_or_else(|| socket_path(&self.swarm, self.state_dir.as_deref()));
        let path = attach_path(&control);
        let connection =
            socket::connect(&path, SocketType::SEQPACKET).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning { socket: path.clone() }
                }
                _ => ClientError::Broken(format!("{}: {error}", path.display())),
            })?;
        let mut talk = MemberTalk::new(connection);
        let broken = |error: io::Error| ClientError::Broken(error.to_string());
        talk.say(&FromMember::Hello { version: VERSION, name: self.name }, &[]).map_err(broken)?;
        let deadline = clock::now().plus(ANSWER_WITHIN);
        let (welcome, fds) = loop {
            match talk.hear().map_err(broken)? {
                Heard::Message(welcome, fds) => break (welcome, fds),
                Heard::Closed => return Err(ClientError::Ended),
                Heard::Nothing if clock::now() >= deadline => {
                    return Err(ClientError::Timeout(ANSWER_WITHIN));
                }
                Heard::Nothing => {
                    talk.wait(deadline.since(clock::now()));
                }
            }
        };
        let (id, owner, swarm, link) = match welcome {
            ToMember::Welcome { id, owner, swarm, link } => (id, owner, swarm, link),
            ToMember::Refused { why, .. } => return Err(ClientError::Refused(why)),
            other => return Err(ClientError::Broken(format!("an unexpected answer: {other:?}"))),
        };
        let link = link.received(fds).and_then(|parts| AgentLink::adopt(parts, owner)).map_err(broken)?;
        Ok(Client {
            port: Port::new(&link, talk),
            link,
            id,
            swarm,
            control,
            message: Message::default(),
            after: Vec::new(),
            patience: Patience::default(),
            spin: self.spin,
            tickets: 0,
            accepted: 0,
            ends: VecDeque::new(),
            inbox: VecDeque::new(),
            mail: Mail::default(),
            dropped: 0,
            ended: false,
        })
    }
}

/// Names one submission of this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How a submission ended.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskEnd {
    /// Which one.
    pub ticket: Ticket,
    /// The swarm's number for the task; `None` when it was not accepted.
    pub task: Option<u64>,
    /// `succeeded`, `failed`, `cancelled`, `refused`.
    pub state: &'static str,
    /// Place of the agent of the last attempt, if there was one.
    pub agent: Option<u16>,
    /// Dispatches.
    pub attempts: u32,
    /// From acceptance to the end.
    pub total: Duration,
    /// On the agent.
    pub service: Duration,
    /// Result as JSON text, or why there is none.
    pub text: Option<Box<str>>,
}

impl TaskEnd {
    /// Whether it ended well.
    pub fn is_success(&self) -> bool {
        self.state == "succeeded"
    }

    /// The result, if the kernel gave one.
    pub fn result(&self) -> Option<Value> {
        self.text.as_deref().filter(|_| self.is_success()).and_then(|text| serde_json::from_str(text).ok())
    }
}

/// What this client has counted.
#[derive(Clone, Debug)]
pub struct ClientStatistics {
    /// Submissions so far, and how many the swarm has taken.
    pub submitted: u64,
    /// Submissions taken into the swarm's ledger, or refused.
    pub accepted: u64,
    /// Sent to the supervisor, per lane.
    pub sent: [LaneCount; 3],
    /// Received from the supervisor, per lane.
    pub received: [LaneCount; 3],
    /// Lines to other members.
    pub lines: Vec<LineNumbers>,
    /// Replies that came after their deadline. Each line has its own under `late`.
    pub late_replies: u64,
    /// Messages that were given up because more came while a reply was waited for than are kept. Each line has its
    /// own under `unkept`.
    pub dropped: u64,
    /// Our arena, once it is used.
    pub arena: Option<ArenaUsage>,
}

/// See the module.
pub struct Client {
    link: AgentLink,
    port: Port,
    id: String,
    swarm: String,
    control: PathBuf,
    message: Message,
    after: Vec<u8>,
    patience: Patience,
    /// The user's wish; else the supervisor's word on the core.
    spin: Option<bool>,
    tickets: u64,
    accepted: u64,
    ends: VecDeque<TaskEnd>,
    /// Messages that came while a reply was waited for.
    inbox: VecDeque<Mail>,
    mail: Mail,
    dropped: u64,
    ended: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("id", &self.id).field("swarm", &self.swarm).finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Who is killed cannot say what it had taken; who leaves can.
        self.port.tidy();
        self.link.publish();
    }
}

impl Client {
    /// Attaches to the swarm with this name, under a name that the swarm chooses.
    pub fn attach(swarm: &str) -> Result<Self, ClientError> {
        Attach::to(swarm).attach()
    }

    /// Our id in the swarm.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The swarm's name.
    pub fn swarm(&self) -> &str {
        &self.swarm
    }

    // Tasks.

    /// Submits a task in the form of a job file. Relative paths start in the current directory.
    pub fn submit_json(&mut self, task: &Value) -> Result<Ticket, ClientError> {
        let base = std::env::current_dir()
            .map_err(|error| ClientError::Task(format!("no current directory: {error}")))?;
        // The swarm's own defaults apply to what is 0 or absent.
        let defaults = Defaults { timeout: None, retries: 0 };
        let spec = jobs::parse_task(task, 1, &base, &defaults)
            .map_err(|refused| ClientError::Task(refused.error))?;
        self.submit(&spec)
    }

    /// Submits a task; waits for room while the swarm is behind. It is safe from our death once
    /// [`accepted`](Self::accepted) has counted it.
    pub fn submit(&mut self, spec: &TaskSpec) -> Result<Ticket, ClientError> {
        loop {
            match self.try_submit(spec) {
                Err(ClientError::Full) => {
                    let deadline = clock::now().plus(TAKEN_WITHIN);
                    let before = self.accepted;
                    // What makes room is that submissions are taken, or answers read.
                    if !self.wait_until(deadline, |client| client.accepted > before)? {
                        return Err(ClientError::Timeout(TAKEN_WITHIN));
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// As [`submit`](Self::submit), without waiting.
    pub fn try_submit(&mut self, spec: &TaskSpec) -> Result<Ticket, ClientError> {
        let ticket = self.push_task(spec)?;
        self.link.ring();
        Ok(ticket)
    }

    /// Submits many tasks with one wake-up; waits for room while the swarm is behind.
    pub fn submit_all<'a>(
        &mut self,
        specs: impl IntoIterator<Item = &'a TaskSpec>,
    ) -> Result<Vec<Ticket>, ClientError> {
        let mut tickets = Vec::new();
        for spec in specs {
            match self.push_task(spec) {
                Ok(ticket) => tickets.push(ticket),
                Err(ClientError::Full) => tickets.push(self.submit(spec)?),
                Err(error) => return Err(error),
            }
        }
        self.link.ring();
        Ok(tickets)
    }

    fn push_task(&mut self, spec: &TaskSpec) -> Result<Ticket, ClientError> {
        if self.ended {
            return Err(ClientError::Ended);
        }
        self.after.clear();
        for name in &spec.after {
            Names::push(&mut self.after, name);
        }
        let submit = Submit {
            ticket: self.tickets,
            kernel: spec.kernel,
            class: spec.class,
            level: spec.level,
            priority: spec.priority as u8,
            retries: spec.retries,
            timeout_ns: spec.timeout.map_or(0, |timeout| timeout.as_nanos().min(u128::from(u64::MAX)) as u64),
            name: spec.name.as_deref().unwrap_or(""),
            key: spec.key.as_deref().unwrap_or(""),
            output: spec.output.as_deref().map_or(&[], |path| path.as_os_str().as_bytes()),
            after: Names(&self.after),
            body: &spec.body,
        };
        match self.link.send(Lane::Normal, &FromClient::Submit(submit)) {
            Ok(()) => {
                let ticket = Ticket(self.tickets);
                self.tickets += 1;
                Ok(ticket)
            }
            Err(SendError::Full(_)) => Err(ClientError::Full),
            Err(SendError::TooLong(text)) => Err(ClientError::Task(text)),
            Err(error) => Err(ClientError::Broken(error.to_string())),
        }
    }

    /// Asks for a task to be given up; its end comes all the same.
    pub fn cancel(&mut self, ticket: Ticket) -> Result<(), ClientError> {
        match self.link.send(Lane::Normal, &FromClient::GiveUp(ticket.0)) {
            Ok(()) => {
                self.link.ring();
                Ok(())
            }
            Err(SendError::Full(_)) => Err(ClientError::Full),
            Err(error) => Err(ClientError::Broken(error.to_string())),
        }
    }

    /// Submissions that the swarm has taken, in the order in which they were made: these survive our death. Refused
    /// ones count too; each of those ends with the state `refused`.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Submissions whose end has not been taken yet.
    pub fn submitted(&self) -> u64 {
        self.tickets
    }

    /// The end of some submission, if one has come.
    pub fn try_next_end(&mut self) -> Result<Option<TaskEnd>, ClientError> {
        if self.ends.is_empty() {
            self.turn()?;
        }
        Ok(self.ends.pop_front())
    }

    /// The end of some submission, waiting for it.
    pub fn next_end(&mut self, within: Duration) -> Result<TaskEnd, ClientError> {
        let deadline = clock::now().plus(within);
        self.wait_until(deadline, |client| !client.ends.is_empty())?;
        self.ends.pop_front().ok_or(if self.ended {
            ClientError::Ended
        } else {
            ClientError::Timeout(within)
        })
    }

    /// The end of this submission, waiting for it; ends of others stay for later.
    pub fn wait(&mut self, ticket: Ticket, within: Duration) -> Result<TaskEnd, ClientError> {
        let deadline = clock::now().plus(within);
        let find = |client: &Self| client.ends.iter().position(|end| end.ticket == ticket);
        self.wait_until(deadline, |client| find(client).is_some())?;
        match find(self).and_then(|at| self.ends.remove(at)) {
            Some(end) => Ok(end),
            None if self.ended => Err(ClientError::Ended),
            None => Err(ClientError::Timeout(within)),
        }
    }

    // Messages.

    /// The lines to other members, for all that has no call of its own here.
    pub fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    /// Wakes every receiver that was written to and sleeps.
    pub fn flush(&mut self) {
        self.port.flush();
        self.link.ring();
    }

    /// The member with this id: an agent such as `compute-0`, or another client. Opens a line to it.
    pub fn connect(&mut self, id: &str) -> Result<Peer, ClientError> {
        self.turn()?;
        Ok(self.port.connect(id)?)
    }

    /// Sends a message of any size on the normal lane. Full is an answer: see [`PortError::is_full`].
    #[inline]
    pub fn send(&mut self, peer: Peer, payload: &[u8]) -> Result<(), ClientError> {
        self.send_on(Lane::Normal, peer, payload)
    }

    /// As [`send`](Self::send), on this lane: `Control` overtakes, `Bulk` waits.
    #[inline]
    pub fn send_on(&mut self, lane: Lane, peer: Peer, payload: &[u8]) -> Result<(), ClientError> {
        self.port.push(peer, lane, payload)?;
        self.port.flush();
        Ok(())
    }

    /// Sends as many of these messages as there is room for, in their order, and says how many: fewer than there are is
    /// the answer "full". Small ones only, see [`Port::push_all`]; one look at the bell for all of them.
    pub fn send_all(&mut self, peer: Peer, payloads: &[impl AsRef<[u8]>]) -> Result<usize, ClientError> {
        let sent = self.port.push_all(peer, Lane::Normal, payloads)?;
        self.port.flush();
        Ok(sent)
    }

    /// Sends one message to these members; a large payload is written once. Returns how many got it.
    pub fn broadcast(&mut self, peers: &[Peer], payload: &[u8]) -> Result<usize, ClientError> {
        let sent = self.port.broadcast(peers, Lane::Normal, payload)?;
        self.port.flush();
        Ok(sent)
    }

    /// Publishes on a topic. Returns to how many subscribers.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<usize, ClientError> {
        self.turn()?;
        let sent = self.port.publish(topic, payload)?;
        self.port.flush();
        Ok(sent)
    }

    /// From now on messages of this topic come here.
    pub fn subscribe(&mut self, topic: &str, rule: Rule) -> Result<u32, ClientError> {
        self.turn()?;
        Ok(self.port.subscribe(topic, rule)?)
    }

    /// No more messages of this topic.
    pub fn unsubscribe(&mut self, topic: &str) -> Result<(), ClientError> {
        Ok(self.port.unsubscribe(topic)?)
    }

    /// Asks a member and waits for its reply. Messages that come meanwhile stay for
    /// [`receive`](Self::receive).
    pub fn call(&mut self, peer: Peer, payload: &[u8], within: Duration) -> Result<Vec<u8>, ClientError> {
        let deadline = clock::now().plus(within);
        let correlation = self.port.request(peer, Lane::Normal, payload, within)?;
        self.port.flush();
        let mut reply: Option<Result<Vec<u8>, String>> = None;
        let mut mail = std::mem::take(&mut self.mail);
        self.wait_until(deadline, |client| {
            // So many in a row and no more: a flood must not outlast the deadline.
            for _ in 0..MAIL_PER_LOOK {
                if reply.is_some() || !client.port.try_receive(&mut mail) {
                    break;
                }
                if mail.what == What::Reply(correlation) {
                    reply = Some(Ok(mail.to_vec()));
                } else if mail.what == What::Refusal(correlation) {
                    reply = Some(Err(String::from_utf8_lossy(&mail.to_vec()).into_owned()));
                } else if client.inbox.len() < INBOX_MAX {
                    client.inbox.push_back(std::mem::take(&mut mail));
                } else {
                    client.dropped += 1;
                    client.port.count_unkept(&mail);
                }
            }
            reply.is_some() || !client.port.is_awaited(correlation)
        })?;
        mail.parcel = None;
        self.mail = mail;
        self.port.give_up(correlation);
        match reply {
            Some(reply) => reply.map_err(ClientError::Refused),
            None if self.ended => Err(ClientError::Ended),
            None if clock::now() < deadline => Err(PortError::Closed.into()),
            None => Err(ClientError::Timeout(within)),
        }
    }

    /// Answers a request that came as [`What::Request`]. Full is an answer here too; [`Port::refuse`] tells the
    /// asker.
    pub fn reply(&mut self, request: &Mail, payload: &[u8]) -> Result<(), ClientError> {
        let What::Request { correlation, .. } = request.what else {
            return Err(ClientError::Task("this message is no request".to_owned()));
        };
        self.port.reply(request.from, request.lane, correlation, payload)?;
        self.port.flush();
        Ok(())
    }

    /// Takes the next message of another member, never waiting.
    #[inline]
    pub fn try_receive(&mut self, mail: &mut Mail) -> Result<bool, ClientError> {
        if let Some(first) = self.inbox.pop_front() {
            *mail = first;
            return Ok(true);
        }
        if self.port.try_receive(mail) {
            return Ok(true);
        }
        self.turn()?;
        Ok(self.port.try_receive(mail))
    }

    /// Takes the next message of another member, waiting for it. False when none came in time.
    pub fn receive(&mut self, mail: &mut Mail, within: Duration) -> Result<bool, ClientError> {
        if self.try_receive(mail)? {
            return Ok(true);
        }
        let deadline = clock::now().plus(within);
        self.wait_until(deadline, |client| client.port.try_receive(mail))
    }

    // The rest.

    /// Whether the swarm has ended, or has cut us off.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes what the supervisor has said; ends of tasks are kept for [`try_next_end`](Self::try_next_end).
    pub fn turn(&mut self) -> Result<usize, ClientError> {
        let mut work = 0;
        while self.link.receive(&mut self.message)? {
            work += 1;
            let word = ToClient::decode(self.message.kind, self.message.payload());
            match word.map_err(|error| ClientError::Broken(error.to_string()))? {
                ToClient::Accepted(count) => self.accepted = count,
                ToClient::Refused(ticket, why) => self.ends.push_back(TaskEnd {
                    ticket: Ticket(ticket),
                    task: None,
                    state: "refused",
                    agent: None,
                    attempts: 0,
                    total: Duration::ZERO,
                    service: Duration::ZERO,
                    text: Some(why.into()),
                }),
                ToClient::Ended(ended) => {
                    let text = String::from_utf8_lossy(ended.body);
                    self.ends.push_back(TaskEnd {
                        ticket: Ticket(ended.ticket),
                        task: Some(ended.task.0),
                        state: match ended.verdict {
                            Verdict::Succeeded => "succeeded",
                            Verdict::Cancelled => "cancelled",
                            _ => "failed",
                        },
                        agent: (ended.agent.0 != u16::MAX).then_some(ended.agent.0),
                        attempts: ended.attempts,
                        total: Duration::from_nanos(ended.total_ns),
                        service: Duration::from_nanos(ended.service_ns),
                        text: (!text.is_empty()).then(|| text.as_ref().into()),
                    });
                }
                ToClient::News => {
                    // An end of the socket is the end of the swarm.
                    self.ended |= self.port.hear().is_err();
                }
                ToClient::Stop => self.ended = true,
            }
        }
        Ok(work)
    }

    /// Waits until `done` says so. False when `deadline` came first or the swarm ended.
    fn wait_until(
        &mut self,
        deadline: Nanos,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<bool, ClientError> {
        self.flush();
        loop {
            let work = self.turn()?;
            if done(self) {
                return Ok(true);
            }
            if self.ended {
                return Ok(false);
            }
            let began = clock::now();
            if began >= deadline {
                return Ok(false);
            }
            if work > 0 {
                continue;
            }
            self.rest(began, deadline);
        }
    }

    fn rest(&mut self, began: Nanos, deadline: Nanos) {
        let (link, port) = (&mut self.link, &mut self.port);
        let left = deadline.since(began);
        if self.spin.unwrap_or(!link.is_core_shared())
            && self
                .patience
                .spin_until(began, self.patience.spin().min(left), || link.is_ready() || port.is_ready())
        {
            self.patience.learn(clock::now().since(began));
            return;
        }
        port.tidy();
        port.flush();
        let woken = link.sleep(left.min(LONGEST_SLEEP), || port.is_ready());
        woken.into_iter().for_each(|took| self.patience.learn_wake(took));
        self.patience.learn(clock::now().since(began));
        // A supervisor that died says nothing: its socket does.
        if clock::now().since(began) >= LONGEST_SLEEP && port.hear().is_err() {
            self.ended = true;
        }
    }

    /// What this client has counted.
    pub fn statistics(&self) -> ClientStatistics {
        let (sent, received) = self.link.counts();
        ClientStatistics {
            submitted: self.tickets,
            accepted: self.accepted,
            sent,
            received,
            lines: self.port.numbers(),
            late_replies: self.port.late_replies(),
            dropped: self.dropped,
            arena: self.port.store().usage(),
        }
    }

    /// What the whole swarm has counted, every channel included. Goes over the control API.
    pub fn swarm_statistics(&self) -> Result<StatisticsView, ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let mut control = gateway::client::Client::connect(&self.control).map_err(|error| broken(&error))?;
        let answer = control.get("/api/v1/system/statistics").map_err(|error| broken(&error))?;
        serde_json::from_value(answer).map_err(|error| broken(&error))
    }
}
