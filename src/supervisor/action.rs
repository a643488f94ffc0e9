//! The whole control surface: what can be asked of a running swarm, and what it answers.
//!
//! Answers are types of their own, made to be seen from outside; the supervisor only fills them in,
//! whoever asked turns them into JSON.
//!
//! Actions and replies also travel between the supervisor and its gateway's process; `wire` has the form.

use super::events::Event;
use super::incidents::Incident;
use super::wire;
use crate::base::clock::Nanos;
use crate::base::ids::AgentKind;
pub use crate::messaging::meters::Drops as DropsView;
use crate::shm::doorbell::HubBell;
use crate::tasks::{Mode, TaskSpec};
use crossbeam::channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Something asked of the supervisor.
#[derive(Serialize, Deserialize)]
pub enum Action {
    /// Accept these tasks. A task that was wrong before it came here carries its error.
    Submit {
        /// The tasks, in order.
        #[serde(with = "wire::tasks")]
        tasks: Vec<Result<TaskSpec, RefusedTask>>,
        /// Keep wrong tasks on record as failed ones.
        record_refused: bool,
        /// Answer when all of them have ended, not when they are accepted.
        wait: bool,
    },
    /// Tasks, newest last.
    Tasks {
        /// Only those in this state.
        state: Option<String>,
        /// At most so many, the newest.
        limit: usize,
    },
    /// One task, by name or number.
    Task(String),
    /// Give a task up.
    CancelTask(String),
    /// All agents.
    Agents,
    /// One agent.
    Agent(String),
    /// Start another agent.
    CreateAgent {
        /// Of this kind.
        #[serde(with = "wire::kind")]
        kind: AgentKind,
        /// Under this id; else the next free one.
        id: Option<String>,
    },
    /// End an agent for good; its tasks go to others.
    DestroyAgent(String),
    /// Let an agent run an optimisation cycle now.
    OptimizeAgent(String),
    /// Replace running agents, each after what it holds.
    RestartAgents {
        /// The id of one, or a kind.
        who: String,
        /// The next one when the successor of the one before is ready.
        rolling: bool,
    },
    /// Have somebody else decide where tasks go.
    SwitchBalancer(#[serde(with = "wire::mode")] Mode),
    /// One look at everything.
    Status,
    /// Numbers since the start.
    Statistics,
    /// Past events of this life after this number.
    Events(u64),
    /// Events of earlier lives, as far as the journal keeps them.
    EarlierEvents,
    /// The report (tasks in detail when there are not too many, or when asked for).
    Report {
        /// Detail however many there are.
        all_tasks: bool,
    },
    /// Kill an agent now, as a demonstration; the death is timed from here. Not asked from outside.
    #[serde(skip)]
    KillAgent(String),
    /// Deliver a message to one member of the swarm. The gateway does that itself, as a client.
    #[serde(skip)]
    SendMessage {
        /// Its id.
        to: String,
        /// The message, any bytes.
        payload: Vec<u8>,
        /// A reply is wanted, within this time.
        request: Option<Duration>,
    },
    /// Deliver a message to every member, or to every subscriber of a topic. The gateway does that too.
    #[serde(skip)]
    BroadcastMessage {
        /// Only to its subscribers.
        topic: Option<String>,
        /// The message, any bytes.
        payload: Vec<u8>,
    },
    /// End the swarm.
    Stop {
        /// Whether tasks that are not done wait for the next start; `None`: as `tasks.keep_at_stop` says.
        keep_tasks: Option<bool>,
    },
}

/// A task that was wrong before it reached the ledger.
#[derive(Clone, Debug)]
pub struct RefusedTask {
    /// What is known of it.
    pub spec: Box<TaskSpec>,
    /// What is wrong, in words.
    pub error: String,
}

/// What the supervisor answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Action::Submit`]: one answer per task, in order.
    Submitted(Vec<Submitted>),
    /// Tasks.
    Tasks(Vec<TaskView>),
    /// One task.
    Task(Box<TaskView>),
    /// Agents.
    Agents(Vec<AgentView>),
    /// One agent.
    Agent(Box<AgentView>),
    /// One look at everything.
    Status(Box<StatusView>),
    /// Numbers.
    Statistics(Box<StatisticsView>),
    /// Past events, and the number of the latest one.
    Events {
        /// Those that were asked for and are still remembered.
        events: Vec<Event>,
        /// The latest of all.
        latest: u64,
    },
    /// The report.
    Report(Box<ReportView>),
    /// To [`Action::SendMessage`] and [`Action::BroadcastMessage`].
    #[serde(skip)]
    Sent {
        /// Members that have it.
        delivered: usize,
        /// What came back, when a reply was wanted and came in time.
        reply: Option<Vec<u8>>,
        /// From handing it over to the reply, microseconds.
        latency_us: Option<f64>,
    },
    /// Done, nothing to say.
    Done,
    /// Not done.
    Refused(Refused),
}

/// Why an action was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// There is no such task or agent.
    NotFound(String),
    /// It cannot be done now or at all.
    Conflict(String),
    /// What it needs is not there at the moment: space, a disk that works, room on the host.
    Unavailable(String),
}

/// Answer to one submitted task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Submitted {
    /// The task's name, or its number when it has none.
    pub id: String,
    /// Why it was not accepted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// The ended task, when the submitter waited for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub task: Option<Box<TaskView>>,
}

/// A task as seen from outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskView {
    /// Name, or number when it has none.
    pub id: String,
    /// Its number.
    pub number: u64,
    /// Kernel.
    pub kernel: String,
    /// `waiting`, `queued`, `dispatched`, `running`, `retrying`, `succeeded`, `failed`, `cancelled`.
    pub state: String,
    /// `high`, `normal`, `low`.
    pub priority: String,
    /// Dispatches so far.
    pub attempts: u32,
    /// Failures that may still be tried again.
    #[serde(default)]
    pub retries_left: u32,
    /// Tasks that have to succeed before it and have not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// The agent of the last attempt; of the one that answered, when there were two at a time.
    pub agent: Option<String>,
    /// The agent that was given a second attempt, while the first was far too long under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedged_on: Option<String>,
    /// Into how many parts its last attempt was divided, which several agents computed; absent: it was not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parts: u32,
    /// Why it was done as a whole after all, when it had been divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undivided: Option<String>,
    /// Instruction-set level that ran.
    pub backend: Option<String>,
    /// Result, if the kernel gave one.
    pub result: Option<serde_json::Value>,
    /// Why it did not succeed.
    pub error: Option<String>,
    /// From acceptance to the envelope, microseconds.
    pub queue_us: f64,
    /// From the envelope to the start on the agent, microseconds.
    pub dispatch_us: f64,
    /// On the agent, microseconds.
    pub service_us: f64,
    /// From acceptance to the end, microseconds.
    pub total_us: f64,
    /// When it ended, ns of the host's monotonic clock; 0 while it has not.
    pub finished_ns: u64,
    /// Why its last attempt went where it went; only where one task is asked for, and while that is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionView>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why an attempt of a task went where it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecisionView {
    /// Which attempt.
    pub attempt: u32,
    /// The policy that decided.
    pub policy: String,
    /// How: `rule`, `score`, `exploring`, `probing`, `untrusted`, `guarded`, `wanted`.
    pub by: String,
    /// The agent that was chosen.
    pub agent: String,
    /// What it was expected to take there, microseconds, if anybody knew.
    pub expected_us: Option<f64>,
    /// What it took, microseconds, once it has succeeded.
    pub took_us: Option<f64>,
    /// How likely this very choice was at least.
    pub probability: f64,
    /// Agents there were to choose from; of many, not all are in `candidates`.
    pub of: u32,
    /// They, as they were.
    pub candidates: Vec<CandidateView>,
}

/// An agent that a task might have gone to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CandidateView {
    /// Which.
    pub agent: String,
    /// Whether it could be given a task.
    pub room: bool,
    /// Tasks it held.
    pub in_flight: u32,
    /// Time until it would be through with them, microseconds.
    pub backlog_us: f64,
    /// What the table of learned costs expected of the task there, microseconds.
    pub told_us: Option<f64>,
    /// What the policy's model expected, microseconds, where it compared scores.
    pub time_us: Option<f64>,
    /// What a microsecond of delay there costs those that come after, per microsecond.
    pub price: Option<f64>,
    /// All of it together, microseconds; the least wins.
    pub score_us: Option<f64>,
}

/// An agent as seen from outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentView {
    /// `compute-0`.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// `starting`, `ready`, `draining`, `backoff`, `benched`, `resting`, `stopped`.
    pub state: String,
    /// Process, while it lives.
    pub pid: Option<u32>,
    /// Which life this is.
    pub incarnation: u32,
    /// The core it is pinned to.
    pub cores: Vec<usize>,
    /// Somebody else is pinned there too.
    pub core_shared: bool,
    /// Tasks it ended well, over all its lives.
    pub tasks: u64,
    /// Tasks that failed on it.
    pub failures: u64,
    /// Tasks it holds now.
    pub in_flight: usize,
    /// Times it was replaced.
    pub restarts: u32,
    /// Time spent on tasks, s.
    pub busy_s: f64,
    /// Processor use, percent of one core; absent while unknown.
    pub cpu_percent: Option<f64>,
    /// Resident memory, bytes; absent while unknown.
    pub rss_bytes: Option<u64>,
    /// What processor and kernel counted while its kernels ran, in this life; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub counters: Option<CountersView>,
}

/// What was counted while kernels ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CountersView {
    /// Tasks for which something was counted.
    pub tasks: u64,
    /// Sums over these tasks: `cycles`, `instructions`, `cache_references`, `cache_misses`, `branches`, `branch_misses` by the
    /// processor; `task_clock_ns`, `page_faults`, `context_switches`, `cpu_migrations` by the kernel. Those of the
    /// processor and page faults are of the program's own code, without what the kernel does for it.
    #[serde(flatten)]
    pub events: BTreeMap<String, Known>,
}

impl CountersView {
    fn value(&self, event: &str) -> Option<f64> {
        self.events.get(event)?.value
    }

    /// How often an event happened in a task, on average.
    pub fn per_task(&self, event: &str) -> Option<f64> {
        (self.tasks > 0).then_some(self.value(event)? / self.tasks as f64)
    }

    /// Instructions per cycle of the processor.
    pub fn instructions_per_cycle(&self) -> Option<f64> {
        Some(self.value("instructions")? / self.value("cycles").filter(|&cycles| cycles > 0.0)?)
    }
}

/// A quantity that may be unknown: its value, or why there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Known {
    /// The value.
    pub value: Option<f64>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unavailable: Option<String>,
}

/// One look at everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// The swarm's name.
    pub swarm: String,
    /// `running`, `draining`, `stopping`.
    pub state: String,
    /// Process of the supervisor.
    pub pid: u32,
    /// Since the start, s.
    pub uptime_s: f64,
    /// Placement policy in force.
    pub policy: String,
    /// How it stands, if it learns.
    #[serde(default)]
    pub balancer: Option<BalancerView>,
    /// What accepted tasks survive.
    #[serde(default)]
    pub durability: DurabilityView,
    /// Numbers of tasks, in this life of the swarm.
    pub tasks: TaskCounts,
    /// What was counted in earlier lives; absent in the first.
    #[serde(default)]
    pub earlier: Option<EarlierView>,
    /// Tasks waiting for an agent, and at agents.
    pub queued: usize,
    /// Tasks at agents.
    pub in_flight: usize,
    /// All agents.
    pub agents: Vec<AgentView>,
    /// The host as the resource agent sampled it.
    pub host: BTreeMap<String, Known>,
    /// Notes about the core plan.
    pub notes: Vec<String>,
    /// What went wrong with agents and what was done about it, the newest last.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// How many there were.
    #[serde(default)]
    pub incidents_total: u64,
    /// What it does without, and what is ready for failures.
    #[serde(default)]
    pub safety: SafetyView,
    /// The process that answers here; absent where there is none.
    #[serde(default)]
    pub gateway: Option<GatewayView>,
}

/// The process of the control API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayView {
    /// Its number, while it lives.
    pub pid: Option<u32>,
    /// Times it was replaced.
    pub restarts: u32,
}

/// How a placement policy that learns stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancerView {
    /// Who decides: `learned`, `frozen`, `static`, `safe`.
    pub mode: String,
    /// Whether the guard has the safe rule decide at the moment.
    pub is_guarded: bool,
    /// How often it took over.
    pub alarms: u32,
    /// Tasks that went by the safe rule because of it.
    pub guarded_tasks: u64,
    /// Mean error of expected times, in logarithms.
    pub model_error: Option<f32>,
    /// Tasks that this rests on.
    pub samples: u64,
}

/// What a swarm does without, and what is ready for failures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SafetyView {
    /// What is given up for lack of resources: `full`, `no_standbys`, `fewer_compute_agents`,
    /// `no_optimization_or_learning`, `accept_only`, `refuse`.
    pub level: String,
    /// Why it is not `full`.
    pub level_because: Option<String>,
    /// Readings that the level cannot be decided by, each with its reason.
    pub level_blind: Vec<String>,
    /// Standbys that could take a place now.
    pub standbys_ready: usize,
    /// How many there shall be at this level.
    pub standbys_wanted: usize,
    /// By what agents' own children die: `pid_namespace`, `adoption`.
    pub containment: String,
    /// Why not by the better means.
    pub containment_because: Option<String>,
}

/// What accepted tasks survive, and whether the journal can keep that.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DurabilityView {
    /// `none`, `process`, `power`.
    pub level: String,
    /// `ok`; `full` while there is no space; `failed` after a failed write, until a new start.
    pub state: String,
    /// Why nothing is accepted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Records of this and earlier lives.
    pub records: u64,
    /// Bytes on their way into the store.
    pub backlog_bytes: u64,
}

/// Numbers of tasks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct TaskCounts {
    /// Accepted or refused on record.
    pub total: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended badly.
    pub failed: u64,
    /// Given up.
    pub cancelled: u64,
    /// Attempts after one that had come to nothing.
    pub retried: u64,
    /// Second attempts, sent to an idle agent while the first was far too long under way.
    #[serde(default)]
    pub hedged: u64,
    /// Tasks that the second attempt ended well before the first.
    #[serde(default)]
    pub hedges_won: u64,
    /// Tasks that the first attempt ended well after all, with a second one under way.
    #[serde(default)]
    pub hedges_lost: u64,
    /// Accepted and not ended when the swarm stopped: the next start goes on with them, or, if the journal failed, with those of them
    /// that were acknowledged before.
    #[serde(default)]
    pub left: u64,
    /// Accepted, never ended, and nobody has them any more.
    pub lost: u64,
    /// Ended more than once.
    pub duplicated: u64,
}

/// What was counted in earlier lives of the swarm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlierView {
    /// How many there were.
    pub lives: u64,
    /// Tasks that ended in them. What had not ended goes on in this life and counts there.
    pub tasks: TaskCounts,
    /// What each agent did, by its id.
    pub agents: BTreeMap<String, AgentCounters>,
}

/// What an agent did in earlier lives of the swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentCounters {
    /// Tasks it ended well.
    pub tasks: u64,
    /// Tasks that failed on it.
    pub failures: u64,
    /// Times it was replaced.
    pub restarts: u64,
    /// Time spent on tasks, s.
    pub busy_s: f64,
}

/// Percentiles of a latency, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
}

/// One direction of one channel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChannelView {
    /// Who sends.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// `open` or `closed`.
    pub state: String,
    /// Why it was closed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_because: Option<String>,
    /// Its lanes, first the one that is served first.
    pub lanes: Vec<LaneView>,
}

/// One lane of a channel. What one end cannot know of the other is 0.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LaneView {
    /// `control`, `normal` or `bulk`.
    pub lane: String,
    /// Messages that the sender put in. Each is received, dropped as `oldest`, `expired`, `late`, `unkept` or `gone`, or on
    /// its way.
    pub sent: u64,
    /// Messages that the receiver took out and handled.
    pub received: u64,
    /// Payload of those sent.
    pub bytes_sent: u64,
    /// Payload of those received.
    pub bytes_received: u64,
    /// Messages that did not arrive, by reason.
    pub dropped: DropsView,
    /// Slots in use now.
    pub depth: u64,
    /// Most slots ever in use.
    pub high_water: u64,
    /// Slots there are.
    pub capacity: u64,
    /// From sending to receiving, of messages that carry their time.
    pub latency_us: Option<Percentiles>,
    /// The same as a histogram, shortest first. Each bucket begins where the one before it could end; empty ones are
    /// left out.
    #[serde(default)]
    pub latency_buckets: Vec<LatencyBucket>,
}

/// Messages that took about as long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyBucket {
    /// All took less than this; absent for those that took longer than is told apart.
    pub below_us: Option<f64>,
    /// How many.
    pub count: u64,
}

/// What one subscriber gets of one topic from one publisher.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TopicView {
    /// Its name.
    pub topic: String,
    /// Who publishes.
    pub publisher: String,
    /// Who subscribed.
    pub subscriber: String,
    /// What happens when the subscriber is slow: `drop_oldest`, `drop_newest` or `block`.
    pub rule: String,
    /// Messages that the publisher had for it.
    #[serde(default)]
    pub sent: u64,
    /// Messages that arrived: in its ring, or with `drop_oldest` in its hands.
    pub delivered: u64,
    /// Messages that did not. What is neither is on its way.
    pub dropped: u64,
}

/// The arena of one member: shared memory for large payloads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ArenaUsageView {
    /// Whose it is.
    pub owner: String,
    /// As large as it may become.
    pub limit_bytes: u64,
    /// Memory that it has.
    pub committed_bytes: u64,
    /// Memory in blocks that somebody uses.
    pub in_use_bytes: u64,
    /// Blocks that readers still have.
    pub blocks_out: u64,
    /// Most memory ever in use.
    pub high_water_bytes: u64,
    /// Times that it was full.
    pub full_answers: u64,
    /// Blocks taken back from readers that died.
    pub reclaimed_blocks: u64,
}

/// Somebody who is attached to the swarm and no agent of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MemberView {
    /// Its id.
    pub id: String,
    /// An agent kind, or `client`.
    pub kind: String,
    /// Its process.
    pub pid: u32,
    /// Which life this is.
    pub incarnation: u32,
    /// How long it has been attached, s.
    pub attached_s: f64,
    /// Tasks that it submitted.
    pub submitted: u64,
    /// How many of them have ended.
    pub ended: u64,
}

/// Numbers since the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatisticsView {
    /// Numbers of tasks.
    pub tasks: TaskCounts,
    /// Results refused because they were late, foreign or repeated.
    pub results_refused: u64,
    /// Finished tasks of which the learning agent did not hear.
    pub experience_dropped: u64,
    /// Latencies.
    pub latency_us: BTreeMap<String, Percentiles>,
    /// Channels of those who are there now.
    pub channels: Vec<ChannelView>,
    /// Subscriptions.
    #[serde(default)]
    pub topics: Vec<TopicView>,
    /// Arenas.
    #[serde(default)]
    pub arenas: Vec<ArenaUsageView>,
    /// Who is attached besides the agents.
    #[serde(default)]
    pub members: Vec<MemberView>,
    /// What went over channels that are closed, added up over all of them.
    #[serde(default)]
    pub closed_traffic: Vec<LaneView>,
    /// Channels that were closed, by reason.
    #[serde(default)]
    pub closed_channels: BTreeMap<String, u64>,
    /// Turns of the supervisor's loop, and those in which there was something to do.
    pub turns: u64,
    /// Turns with work.
    pub busy_turns: u64,
    /// Times the supervisor slept.
    pub sleeps: u64,
    /// Times it had to wake an agent.
    pub wakes: u64,
}

/// The report of the whole run; the format is a contract.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportView {
    /// Version of the format.
    pub schema: u32,
    /// The swarm's name.
    pub swarm: String,
    /// What it ran on.
    pub host: ReportHost,
    /// From the start to now, s.
    pub wall_s: f64,
    /// From the start to the first agent that could take work, s.
    pub ready_s: f64,
    /// Numbers of tasks.
    pub tasks: TaskCounts,
    /// Tasks that succeeded per second between the first acceptance and the last end.
    pub throughput_tasks_per_s: f64,
    /// `queue`, `dispatch`, `service`, `total`.
    pub latency_us: BTreeMap<String, Percentiles>,
    /// Agents.
    pub agents: Vec<ReportAgent>,
    /// What kernels did.
    pub kernels: Vec<ReportKernel>,
    /// Deaths of agents and what followed.
    pub recoveries: Vec<Recovery>,
    /// What went wrong with agents and what was done about it, the newest last.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// Every task, unless there are too many.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tasks_detail: Option<Vec<TaskView>>,
}

/// What the swarm ran on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportHost {
    /// Cores that it may use.
    pub cores: usize,
    /// Instruction sets of the kernels, best last.
    pub simd: Vec<String>,
    /// GPUs.
    pub gpus: Vec<String>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gpus_unavailable: Option<String>,
}

/// An agent in the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportAgent {
    /// `compute-0`.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// The core it is pinned to.
    pub cores: Vec<usize>,
    /// Tasks it ended well.
    pub tasks: u64,
    /// Times it was replaced.
    pub restarts: u32,
    /// Time spent on tasks, s.
    pub busy_s: f64,
}

/// A kernel in the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportKernel {
    /// Its name.
    pub kernel: String,
    /// Instruction-set level that ran.
    pub backend: String,
    /// Tasks.
    pub count: u64,
    /// Arithmetic rate over the time on agents, 10^9 operations per second.
    pub gflops: f64,
    /// Memory rate over the time on agents, 10^9 bytes per second.
    pub gbytes_per_s: f64,
    /// Time on agents, s.
    pub service_s: f64,
    /// What processor and kernel counted meanwhile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub counters: Option<CountersView>,
}

/// A death of an agent and what followed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recovery {
    /// Who died.
    pub agent: String,
    /// Of what: `signal 9 (killed)`.
    pub cause: String,
    /// From the death to our knowing, microseconds. Known only for deaths that the supervisor itself
    /// brought about; the kernel does not record when a process died.
    pub detect_us: Option<f64>,
    /// When we knew.
    #[serde(skip)]
    pub noticed: Option<Nanos>,
    /// From our knowing to the successor's readiness, microseconds; absent while there is none.
    pub ready_us: Option<f64>,
    /// The successor was a standby.
    #[serde(default)]
    pub warm: bool,
    /// Tasks that went back to the queue.
    pub tasks_moved: usize,
}

/// How an answer gets back to whoever asked.
pub type Answer = Box<dyn FnOnce(Reply) + Send>;

/// Speaks to a running supervisor from any thread.
#[derive(Clone)]
pub struct Handle {
    sender: Sender<(Action, Answer)>,
    bell: Arc<HubBell>,
}

/// The supervisor's end of all handles.
pub(super) type Requests = Receiver<(Action, Answer)>;

impl Handle {
    pub(super) fn new(bell: HubBell) -> (Self, Requests) {
        let (sender, receiver) = unbounded();
        (Self { sender, bell: Arc::new(bell) }, receiver)
    }

    /// The supervisor's bell, for threads of its own.
    pub(super) fn bell(&self) -> Arc<HubBell> {
        self.bell.clone()
    }

    /// Asks, and calls `answer` from the supervisor's thread with the reply. Nothing is called when
    /// the supervisor is gone.
    pub fn ask(&self, action: Action, answer: Answer) {
        if self.sender.send((action, answer)).is_ok() {
            self.bell.ring();
        }
    }

    /// Asks and waits for the reply; `None` when the supervisor is gone.
    pub fn call(&self, action: Action) -> Option<Reply> {
        let (sender, receiver) = crossbeam::channel::bounded(1);
        self.ask(
            action,
            Box::new(move |reply| {
                let _ = sender.send(reply);
            }),
        );
        receiver.recv().ok()
    }
}
