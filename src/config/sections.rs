//! The configuration as its readers use it: one struct per section, times as `Duration`, sizes in bytes.
//! Every field is filled from the table in `keys`, which owns defaults and bounds.

use std::path::PathBuf;
use std::time::Duration;

use super::Values;
use super::keys::{MODES, POLICIES};

/// The whole configuration, checked, with the origin of every value.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Name of the swarm: 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// Agents at most; compute and custom agents count.
    pub max_agents: usize,
    /// Bytes of one channel segment; a multiple of 4096.
    pub channel_size: usize,
    /// Time between two samples.
    pub monitoring_interval: Duration,
    /// Time between two optimisation cycles.
    pub optimization_interval: Duration,
    /// Restart dead and hung agents.
    pub fault_tolerance: bool,
    /// Learned placement; off means round robin.
    pub load_balancing: bool,
    /// Add and remove compute agents by load.
    pub auto_scaling: bool,
    /// Levels that raise a `performance_alert`.
    pub performance_thresholds: Thresholds,
    /// One section per kind of agent.
    pub agents: AgentsConfig,
    /// How tasks wait, travel and are tried again.
    pub tasks: TasksConfig,
    /// What outlives the supervisor.
    pub durability: DurabilityConfig,
    /// Which agent gets a task.
    pub balancer: BalancerConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
    /// Channels and arenas.
    pub messaging: MessagingConfig,
    /// HTTP API, metrics, dashboard.
    pub gateway: GatewayConfig,
    /// The values as written, with where each came from.
    pub(super) values: Values,
}

/// What accepted tasks survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: they live in memory.
    None,
    /// The death of every process.
    Process,
    /// A power cut as well.
    Power,
}

impl Durability {
    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::None => "none",
            Durability::Process => "process",
            Durability::Power => "power",
        }
    }
}

/// What outlives the supervisor, and what is kept of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DurabilityConfig {
    /// What accepted tasks survive.
    pub level: Durability,
    /// Ended tasks that are kept at most.
    pub keep_tasks: u64,
    /// How long they are kept at most.
    pub keep: Duration,
}

/// Alert levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Percent of all cores together, 0 to 100.
    pub cpu_critical: f64,
    /// Percent of memory not available, 0 to 100.
    pub memory_critical: f64,
    /// Degrees Celsius of the hottest sensor, 0 to 150.
    pub thermal_critical: f64,
}

/// How many agents of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Decided by the core plan (compute), or one (all others).
    Auto,
    /// As configured.
    Exactly(usize),
}

impl Count {
    /// The number, unless it is left to the core plan.
    pub fn exact(self) -> Option<usize> {
        match self {
            Count::Auto => None,
            Count::Exactly(count) => Some(count),
        }
    }

    /// False when the kind is switched off.
    pub fn enabled(self) -> bool {
        self != Count::Exactly(0)
    }
}

/// One section per kind of agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentsConfig {
    /// Run kernels.
    pub compute: ComputeConfig,
    /// Watches memory, disks and pressure.
    pub resource: ResourceConfig,
    /// Tunes kernels.
    pub optimization: OptimizationConfig,
    /// Keeps the machine below its limit.
    pub thermal: ThermalConfig,
    /// Suspects, drains, restarts.
    pub fault: FaultConfig,
    /// Learns where tasks run best.
    pub learning: LearningConfig,
}

impl AgentsConfig {
    /// Every kind by its name in the file, with its count and the cpus asked for: what the core plan needs.
    pub fn each(&self) -> [(&'static str, Count, Option<&[usize]>); 6] {
        [
            ("compute", self.compute.count, self.compute.cores.as_deref()),
            ("resource", self.resource.count, self.resource.cores.as_deref()),
            ("optimization", self.optimization.count, self.optimization.cores.as_deref()),
            ("thermal", self.thermal.count, self.thermal.cores.as_deref()),
            ("fault", self.fault.count, self.fault.cores.as_deref()),
            ("learning", self.learning.count, self.learning.cores.as_deref()),
        ]
    }
}

/// Compute agents.
#[derive(Debug, Clone, PartialEq)]
pub struct ComputeConfig {
    /// How many at the start.
    pub count: Count,
    /// Cpu indexes in the order of use; `None`: planned.
    pub cores: Option<Vec<usize>>,
    /// Processes that wait for the place of one that dies.
    pub standbys: usize,
}

/// The resource agent.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceConfig {
    /// One, or switched off.
    pub count: Count,
    /// Cpu indexes; `None`: planned.
    pub cores: Option<Vec<usize>>,
    /// Folder read as `/proc`.
    pub procfs: PathBuf,
}

/// The optimization agent.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizationConfig {
    /// One, or switched off.
    pub count: Count,
    /// Cpu indexes; `None`: planned.
    pub cores: Option<Vec<usize>>,
    /// Percent of one idle core that tuning may spend.
    pub budget_percent: f64,
}

/// The thermal agent.
#[derive(Debug, Clone, PartialEq)]
pub struct ThermalConfig {
    /// One, or switched off.
    pub count: Count,
    /// Cpu indexes; `None`: planned.
    pub cores: Option<Vec<usize>>,
    /// Folder read as `/sys`.
    pub root: PathBuf,
    /// Degrees below `thermal_critical` at which a cap is released.
    pub hysteresis_c: f64,
}

/// The fault agent, and the restart rules of the supervisor.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultConfig {
    /// One, or switched off.
    pub count: Count,
    /// Cpu indexes; `None`: planned.
    pub cores: Option<Vec<usize>>,
    /// A heartbeat that stands still for so long means hung.
    pub hang_after: Duration,
    /// Memory that an agent may have, bytes; `None`: what the host has left.
    pub memory_limit: Option<u64>,
    /// Descriptors that an agent may have open; `None`: what the system allows.
    pub descriptor_limit: Option<u64>,
    /// Restarts of one agent allowed within `restart_window`.
    pub restart_limit: u32,
    /// Window in which `restart_limit` counts.
    pub restart_window: Duration,
    /// Longest pause before a restart.
    pub backoff_max: Duration,
}

/// The learning agent.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningConfig {
    /// One, or switched off.
    pub count: Count,
    /// Cpu indexes; `None`: planned.
    pub cores: Option<Vec<usize>>,
}

/// Tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct TasksConfig {
    /// Tasks in flight per agent.
    pub window: usize,
    /// Most tiny tasks in flight per agent.
    pub batch: usize,
    /// Time limit of one attempt of a task that names none; `None`: no limit.
    pub default_timeout: Option<Duration>,
    /// Further attempts after a failure, for a task that names no number.
    pub default_retries: u32,
    /// Most waiting tasks.
    pub queue_limit: usize,
    /// Time that running tasks get at stop.
    pub drain: Duration,
    /// What is not done by then waits for the next start.
    pub keep_at_stop: bool,
    /// Waiting time after which a task gains one priority class.
    pub ageing: Duration,
    /// Agent deaths during one task after which it is failed for good.
    pub poison_deaths: u32,
    /// Second attempts at most, as a share of all tasks.
    pub hedge_share: f64,
    /// How long the first attempt is left alone.
    pub hedge_after: Duration,
    /// Tasks that are expected to take longer are divided among idle agents; zero: none.
    pub divide_above: Duration,
}

/// Placement.
#[derive(Debug, Clone, PartialEq)]
pub struct BalancerConfig {
    /// The rule in force, already decided when the file leaves it open.
    pub policy: &'static str,
    /// Who decides when the rule is the learned one.
    pub mode: &'static str,
}

/// The word among `words`; the check of the key has found it there.
fn word_of(words: &[&'static str], word: &str) -> &'static str {
    words.iter().find(|known| **known == word).expect("a checked word")
}

/// Logs.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// Bytes at which the log file is rotated.
    pub log_file_max_bytes: u64,
}

/// Channels and arenas.
#[derive(Debug, Clone, PartialEq)]
pub struct MessagingConfig {
    /// Most memory of one process for large payloads, bytes.
    pub arena_bytes: usize,
}

/// The gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayConfig {
    /// Start it.
    pub enabled: bool,
}

impl SwarmConfig {
    /// Takes values that passed their checks apart into sections.
    pub(super) fn from_values(values: Values) -> SwarmConfig {
        let v = &values;
        let load_balancing = v.switch("load_balancing");
        SwarmConfig {
            name: v.text("name").to_owned(),
            max_agents: v.size("max_agents"),
            channel_size: v.size("channel_size"),
            monitoring_interval: v.seconds("monitoring_interval"),
            optimization_interval: v.seconds("optimization_interval"),
            fault_tolerance: v.switch("fault_tolerance"),
            load_balancing,
            auto_scaling: v.switch("auto_scaling"),
            performance_thresholds: Thresholds {
                cpu_critical: v.number("performance_thresholds.cpu_critical"),
                memory_critical: v.number("performance_thresholds.memory_critical"),
                thermal_critical: v.number("performance_thresholds.thermal_critical"),
            },
            agents: AgentsConfig {
                compute: ComputeConfig {
                    count: v.count("agents.compute.count"),
                    cores: v.cores("agents.compute.cores"),
                    standbys: v.size("agents.compute.standbys"),
                },
                resource: ResourceConfig {
                    count: v.count("agents.resource.count"),
                    cores: v.cores("agents.resource.cores"),
                    procfs: v.text("agents.resource.procfs").into(),
                },
                optimization: OptimizationConfig {
                    count: v.count("agents.optimization.count"),
                    cores: v.cores("agents.optimization.cores"),
                    budget_percent: v.number("agents.optimization.budget_percent"),
                },
                thermal: ThermalConfig {
                    count: v.count("agents.thermal.count"),
                    cores: v.cores("agents.thermal.cores"),
                    root: v.text("agents.thermal.root").into(),
                    hysteresis_c: v.number("agents.thermal.hysteresis_c"),
                },
                fault: FaultConfig {
                    count: v.count("agents.fault.count"),
                    cores: v.cores("agents.fault.cores"),
                    hang_after: v.seconds("agents.fault.hang_after_s"),
                    memory_limit: v.integer_or_null("agents.fault.memory_limit_bytes"),
                    descriptor_limit: v.integer_or_null("agents.fault.descriptor_limit"),
                    restart_limit: v.small("agents.fault.restart_limit"),
                    restart_window: v.seconds("agents.fault.restart_window_s"),
                    backoff_max: v.seconds("agents.fault.backoff_max_s"),
                },
                learning: LearningConfig {
                    count: v.count("agents.learning.count"),
                    cores: v.cores("agents.learning.cores"),
                },
            },
            tasks: TasksConfig {
                window: v.size("tasks.window"),
                batch: v.size("tasks.batch"),
                default_timeout: v.seconds_or_null("tasks.default_timeout_s"),
                default_retries: v.small("tasks.default_retries"),
                queue_limit: v.size("tasks.queue_limit"),
                drain: v.seconds("tasks.drain_s"),
                keep_at_stop: v.switch("tasks.keep_at_stop"),
                ageing: v.seconds("tasks.ageing_s"),
                poison_deaths: v.small("tasks.poison_deaths"),
                hedge_share: v.number("tasks.hedge_percent") / 100.0,
                hedge_after: v.seconds("tasks.hedge_after_s"),
                divide_above: v.seconds("tasks.divide_above_s"),
            },
            durability: DurabilityConfig {
                level: match v.text("durability.level") {
                    "none" => Durability::None,
                    "power" => Durability::Power,
                    _ => Durability::Process,
                },
                keep_tasks: v.integer("durability.keep_tasks"),
                keep: Duration::from_secs_f64(v.number("durability.keep_days") * 86_400.0),
            },
            balancer: BalancerConfig {
                policy: match v.text_or_null("balancer.policy") {
                    Some(word) => word_of(POLICIES, word),
                    None if load_balancing => "ect",
                    None => "round_robin",
                },
                mode: word_of(MODES, v.text("balancer.mode")),
            },
            messaging: MessagingConfig { arena_bytes: v.size("messaging.arena_bytes") },
            telemetry: TelemetryConfig { log_file_max_bytes: v.integer("telemetry.log_file_max_bytes") },
            gateway: GatewayConfig { enabled: v.switch("gateway.enabled") },
            values,
        }
    }
}

impl Default for SwarmConfig {
    fn default() -> SwarmConfig {
        SwarmConfig::from_values(Values::defaults())
    }
}
