//! All that an agent may touch: its outbox, the board, its pulse and its settings.

use crate::base::ailment::{self, Answer};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentKind, AgentSlot, Attempt, Incarnation, TaskId};
use crate::messaging::attach::MemberTalk;
use crate::messaging::envelope::{Done, Severity, Verdict};
use crate::messaging::failure::Failure;
use crate::messaging::lanes::INLINE_MAX;
use crate::messaging::link::{AgentLink, LinkNumbers, LinkPulse};
use crate::messaging::port::{Correlation, Mail, Port, PortError, What};
use crate::messaging::store::COPIED_MAX;
use crate::messaging::wire::SendError;
use crate::messaging::{FromAgent, Lane, ToAgent};
use crate::os::{clock, process};
use crate::shm::board::Board;
use crate::shm::ring::Message;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Time without ringing after which a finished task is announced at once and not with the next ones.
const RING_AFTER: Duration = Duration::from_micros(10);

/// Messages of other members that are handled before the agent looks at its tasks again.
const MAIL_PER_TURN: usize = 256;

/// And bytes of them.
const MAIL_BYTES_PER_TURN: usize = 4 << 20;

/// What the supervisor hands to a fresh agent process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStart {
    /// Code of the kind.
    pub kind: u8,
    /// `compute-0`.
    pub id: String,
    /// Place on the board.
    pub slot: u16,
    /// Which life this is.
    pub incarnation: u32,
    /// Core to be pinned to.
    pub core: Option<usize>,
    /// Version of the layouts and messages; both sides must have the same.
    pub version: u32,
    /// It waits for a place: id, slot, incarnation and core come later, in [`ToAgent::Adopt`].
    pub standby: bool,
    /// The channels.
    pub link: LinkNumbers,
    /// The socket on which the supervisor hands out lines to other members.
    pub socket: i32,
    /// Names this life of this agent in what it writes.
    pub owner: u64,
    /// The board's name under /dev/shm.
    pub board: String,
    /// Agents that have a place there.
    pub board_slots: usize,
    /// `tracing` filter of the log.
    pub log_filter: String,
    /// Log lines as JSON.
    pub log_json: bool,
    /// What of the configuration concerns agents.
    pub settings: Settings,
    /// Names this run of the swarm, for temporary files.
    pub token: String,
}

/// What of the configuration concerns agents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Between two samples.
    pub monitoring_interval: Duration,
    /// Between two optimisation cycles.
    pub optimization_interval: Duration,
    /// Processor use of the host that raises an alert, percent.
    pub cpu_critical_percent: f64,
    /// Memory use of the host that raises an alert, percent.
    pub memory_critical_percent: f64,
    /// Temperature that raises an alert and caps concurrency, degrees Celsius.
    pub thermal_critical_celsius: f64,
    /// How far it must fall before the cap is eased, degrees Celsius.
    pub thermal_hysteresis_celsius: f64,
    /// Root of the sensor tree.
    pub sysfs: PathBuf,
    /// Root of the process file system.
    pub procfs: PathBuf,
    /// Folder whose disk is watched.
    pub state_dir: PathBuf,
    /// Folder in which agents keep what they know; `None` in a swarm that keeps nothing.
    pub snapshots: Option<PathBuf>,
    /// An agent that shows no progress for so long hangs.
    pub hang_after: Duration,
    /// Memory that an agent may have, bytes; `None`: what the host has left.
    pub memory_limit: Option<u64>,
    /// Descriptors that an agent may have open; `None`: what the system allows.
    pub descriptor_limit: Option<u64>,
    /// Deaths in the window that are a crash loop if more come.
    pub restart_limit: u32,
    /// The window.
    pub restart_window: Duration,
    /// Share of one idle core that the optimization agent may spend, percent.
    pub optimization_budget_percent: f64,
    /// Compute agents that the swarm starts with.
    pub compute_agents: usize,
    /// Whoever waits gives way to others on its core, because tasks wait for the disk anyway: level `power`.
    pub gives_way: bool,
}

/// The agent's surroundings.
pub struct Context {
    pub(super) link: AgentLink,
    /// Lines to other members, once there are any.
    port: Option<Port>,
    talk: Option<MemberTalk>,
    mail: Mail,
    /// Latest values of the whole swarm.
    pub board: Board,
    /// What the agent was started with.
    pub start: AgentStart,
    pulse: LinkPulse,
    control: Message,
    cancelled: Vec<(TaskId, Attempt)>,
    last_ring: Nanos,
    /// The supervisor asked for the end.
    pub(super) stopping: bool,
    tasks: u64,
    failures: u64,
}

impl Context {
    pub(super) fn new(link: AgentLink, talk: MemberTalk, board: Board, start: AgentStart) -> Self {
        let pulse = link.pulse();
        let control = Message::default();
        let (cancelled, last_ring) = (Vec::new(), Nanos(0));
        Self {
            link,
            port: None,
            talk: Some(talk),
            mail: Mail::default(),
            board,
            start,
            pulse,
            control,
            cancelled,
            last_ring,
            stopping: false,
            tasks: 0,
            failures: 0,
        }
    }

    /// This agent's place on the board.
    pub fn slot(&self) -> AgentSlot {
        AgentSlot(self.start.slot)
    }

    /// Shows progress.
    #[inline]
    pub fn beat(&self) {
        self.pulse.beat();
        self.board.beat(self.slot());
    }

    /// Shows progress and says whether the task should be given up.
    #[inline]
    pub fn pulse(&self, task: TaskId, attempt: Attempt) -> bool {
        self.beat();
        self.pulse.is_cancelled(task, attempt)
    }

    /// Announces that `task` begins. False when it was cancelled before: then it must not run.
    pub fn begin_task(&mut self, task: TaskId, attempt: Attempt, now: Nanos) -> bool {
        self.pulse.announce(Some(task), now.0);
        self.board.publish_life(self.slot(), Some(now.0.max(1)), self.tasks, self.failures);
        ailment::at_task(now);
        self.hear_control();
        match self.cancelled.iter().position(|&cancelled| cancelled == (task, attempt)) {
            Some(at) => {
                self.cancelled.swap_remove(at);
                false
            }
            None => true,
        }
    }

    /// Announces that the output of the running task is about to appear. False when the task was given up before: then it
    /// must not appear, because it may have ended on another agent.
    pub fn begin_commit(&mut self, task: TaskId, attempt: Attempt) -> bool {
        self.pulse.announce_commit(task, attempt);
        self.hear_control();
        !self.pulse.is_cancelled(task, attempt) && !self.cancelled.contains(&(task, attempt))
    }

    /// Sends the answer to a task. Waits for room: an answer is never dropped.
    pub fn finish_task(&mut self, done: &Done<'_>, failed: bool) {
        let answer = ailment::at_answer(done.started);
        let spoilt = Done { verdict: Verdict::Failed, body: b"the agent is ill", ..*done };
        let (done, failed) = if answer == Answer::Failed { (&spoilt, true) } else { (done, failed) };
        self.tasks += u64::from(!failed);
        self.failures += u64::from(failed);
        self.send_surely(Lane::Normal, &FromAgent::Done(*done));
        if answer == Answer::Twice {
            self.send_surely(Lane::Normal, &FromAgent::Done(*done));
        }
        self.pulse.announce(None, 0);
        self.board.publish_life(self.slot(), None, self.tasks, self.failures);
        let now = clock::now();
        if now.since(self.last_ring) > RING_AFTER {
            self.link.ring();
            self.last_ring = now;
        }
    }

    /// Remembers a cancellation for a task that has not begun.
    pub fn note_cancelled(&mut self, task: TaskId, attempt: Attempt) {
        // Only tasks in flight can be meant, and those are few; what is older was answered already.
        if self.cancelled.len() >= 4096 {
            self.cancelled.remove(0);
        }
        self.cancelled.push((task, attempt));
    }

    /// Takes control messages while the agent is at work: cancellations, the order to stop.
    pub(super) fn hear_control(&mut self) {
        let mut message = std::mem::take(&mut self.control);
        while let Ok(true) = self.link.receive_control(&mut message) {
            match ToAgent::decode(message.kind, message.payload()) {
                Ok(ToAgent::Cancel(task, attempt)) => self.note_cancelled(task, attempt),
                Ok(ToAgent::Stop) => self.stopping = true,
                Ok(ToAgent::News) => self.hear_news(),
                _ => {}
            }
        }
        self.control = message;
    }

    /// Lines to other members: connect, send, publish, subscribe. What comes goes to the agent's
    /// [`on_request`](super::Agent::on_request) and [`on_mail`](super::Agent::on_mail).
    pub fn port(&mut self) -> &mut Port {
        let link = &self.link;
        let talk = &mut self.talk;
        self.port.get_or_insert_with(|| Port::new(link, talk.take().expect("there until the port is made")))
    }

    /// The supervisor said something over the socket.
    pub(super) fn hear_news(&mut self) {
        if let Err(error) = self.port().hear() {
            tracing::error!(%error, "lines to other members are lost");
        }
    }

    /// Takes messages of other members. Returns how many.
    pub(super) fn serve_port(&mut self, agent: &mut dyn super::Agent) -> usize {
        if self.port.is_none() {
            return 0;
        }
        let mut mail = std::mem::take(&mut self.mail);
        let (mut served, mut bytes) = (0, 0);
        while served < MAIL_PER_TURN && bytes < MAIL_BYTES_PER_TURN && self.port().try_receive(&mut mail) {
            served += 1;
            bytes += mail.len();
            self.beat();
            match mail.what {
                What::Request { correlation, .. } => self.answer(agent, &mail, correlation),
                _ => agent.on_mail(&mail, self),
            }
        }
        mail.parcel = None;
        self.mail = mail;
        self.port().flush();
        served
    }

    /// Answers a request, with a reply or with why there is none.
    fn answer(&mut self, agent: &mut dyn super::Agent, mail: &Mail, correlation: Correlation) {
        let why = if mail.len() as u64 > COPIED_MAX {
            format!("a request of {} bytes, at most {COPIED_MAX} are taken", mail.len())
        } else {
            let answer = agent.on_request(mail, self);
            // Half of the arena is for results: who never gives replies back must not stop the tasks.
            let fits = answer.len() <= INLINE_MAX / 2 || self.link.store().has_half_left(answer.len());
            let sent = match fits {
                true => self.port().reply(mail.from, mail.lane, correlation, &answer),
                false => {
                    Err(PortError::Send(SendError::Full("half of the arena is kept for results of tasks")))
                }
            };
            match sent {
                Err(PortError::Send(error)) => format!("the reply of {} bytes: {error}", answer.len()),
                // Sent, or nobody is there any more.
                _ => return,
            }
        };
        // Nobody waits for ever: if there is not even room for this, the deadline says it.
        let _ = self.port().refuse(mail.from, mail.lane, correlation, &why);
    }

    /// Whether it listens to other members.
    pub(super) fn listens(&self) -> bool {
        self.port.as_ref().is_some_and(Port::listens)
    }

    /// Whether a message of another member waits.
    pub(super) fn has_mail(&self) -> bool {
        self.port.as_ref().is_some_and(Port::is_ready)
    }

    /// Sleeps until somebody rings or `timeout` passes, unless something is there already.
    /// Says how long waking took, if somebody rang.
    pub(super) fn sleep(&mut self, timeout: Duration) -> Option<Duration> {
        if let Some(port) = &mut self.port {
            port.tidy();
        }
        let port = &self.port;
        self.link.sleep(timeout, || port.as_ref().is_some_and(Port::is_ready))
    }

    /// A standby's place has come.
    pub(super) fn take_place(&mut self, slot: AgentSlot, incarnation: Incarnation, core: usize, id: &str) {
        id.clone_into(&mut self.start.id);
        (self.start.slot, self.start.incarnation) = (slot.0, incarnation.0);
        self.start.core = Some(core);
    }

    /// What this agent says of itself when another member asks.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.start.id, "kind": AgentKind::from_code(self.start.kind).map(AgentKind::name),
            "incarnation": self.start.incarnation, "pid": process::own_number(), "core": self.start.core,
            "tasks": self.tasks, "failures": self.failures,
        })
    }

    /// Writes a line of the event log: a stable word for the kind, then the text. Dropped when the
    /// supervisor is flooded; notes are for people.
    pub fn note(&mut self, severity: Severity, kind: &str, text: &str) {
        let line = format!("{kind}\n{text}");
        let _ = self
            .link
            .send(Lane::Bulk, &FromAgent::Note { severity, text: &line[..line.floor_char_boundary(4000)] });
    }

    /// Asks the supervisor to follow the plan for a failure of another agent.
    pub fn ask(&mut self, failure: Failure, slot: AgentSlot, incarnation: Incarnation, finding: &str) {
        self.send_surely(Lane::Control, &FromAgent::Ask { failure, slot, incarnation, finding });
    }

    pub(super) fn send_surely(&mut self, lane: Lane, message: &FromAgent<'_>) {
        loop {
            match self.link.send(lane, message) {
                Ok(()) => return,
                Err(SendError::Full(_)) => {
                    self.link.ring();
                    self.beat();
                    std::thread::yield_now();
                }
                // Ours to keep short enough; and a corrupt channel is found on the receiving side.
                Err(error) => {
                    tracing::error!(%error, "message lost");
                    return;
                }
            }
        }
    }
}
