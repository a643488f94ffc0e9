//! The words of the command line, and nothing else.

use crate::config::Durability;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;

/// Runs work on every core of this host: a supervisor, pinned agent processes, shared memory between them.
#[derive(Debug, Parser)]
#[command(
    name = "ai_swarm_deploy",
    version,
    about = "A single-host, shared-memory performance swarm",
    long_about = "A single-host, shared-memory performance swarm: a supervisor starts pinned agent processes that run \
                  kernels on NumPy arrays, watch the host, tune themselves and learn what work costs.\n\n\
                  Without a command it deploys the swarm in the foreground until Ctrl-C.",
    after_help = "Examples:\n  \
                  ai_swarm_deploy --config swarm_config.json --demo    see it work\n  \
                  ai_swarm_deploy run jobs.json --report report.json   run a job file and end\n  \
                  ai_swarm_deploy run --kernel matmul a.npy b.npy -o c.npy\n\n\
                  Exit codes: 0 done, 1 a task failed or the swarm ended on an error, 2 words, config or job file are\n\
                  wrong, 3 this host cannot, 4 no such running swarm."
)]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do; without it the swarm is deployed.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// JSON configuration [default: ./swarm_config.json if present, else built-in defaults]
    #[arg(long, value_name = "FILE", global = true, env = "AI_SWARM_CONFIG")]
    pub config: Option<PathBuf>,
    /// Run the demonstration workloads; without --monitor-duration end with a report
    #[arg(long)]
    pub demo: bool,
    /// End by itself after so long, with a summary: 300, 300s, 5m, 1h
    #[arg(long, value_name = "SECONDS", value_parser = parse_duration)]
    pub monitor_duration: Option<Duration>,
    /// TRACE, DEBUG, INFO, WARN, ERROR in any case, or a tracing filter
    #[arg(long, value_name = "LEVEL", global = true, env = "AI_SWARM_LOG_LEVEL", value_parser = crate::cli::log::check_level)]
    pub log_level: Option<String>,
    /// Form of log lines [default: text on a terminal, else json]; when given as json, all on standard error is
    #[arg(long, value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
    /// Swarm name [default: from the configuration, else `default`]
    #[arg(long, value_name = "NAME", global = true)]
    pub name: Option<String>,
    /// State directory [default: $XDG_STATE_HOME/ai_swarm/NAME or ~/.local/state/ai_swarm/NAME]
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// When the journal is damaged: set the damaged files aside and go on with what is readable
    #[arg(long)]
    pub salvage_journal: bool,
    /// Write the JSON report at the end; `-` is standard output
    #[arg(long, value_name = "FILE", global = true)]
    pub report: Option<PathBuf>,
    /// List every task in the report, however many there are
    #[arg(long, global = true)]
    pub report_tasks: bool,
    /// Machine-readable output
    #[arg(long, global = true)]
    pub json: bool,
    /// Only errors on standard error
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// When to use colour; NO_COLOR is honoured
    #[arg(long, value_name = "WHEN", global = true, default_value = "auto")]
    pub color: Color,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs, one object a line.
    Json,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a private swarm, run tasks, write results, report, end
    Run(Work),
    /// Hand tasks to the running swarm
    Submit {
        /// The tasks.
        #[command(flatten)]
        work: Work,
        /// Wait until they have ended
        #[arg(long)]
        wait: bool,
    },
    /// Tasks of the running swarm
    #[command(subcommand)]
    Task(TaskCommand),
    /// Agents of the running swarm
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Who decides where tasks go, where that is learned
    #[command(subcommand)]
    Balancer(BalancerCommand),
    /// One look at the running swarm
    Status {
        /// What went wrong with agents, how that was known, and what was done about it
        #[arg(long)]
        incidents: bool,
    },
    /// Numbers since the start: channels and their lanes, topics, arenas, members, the supervisor's loop
    #[command(
        long_about = "Numbers since the start of the running swarm: tasks and latencies, every channel and lane that \
                      carried anything, what was dropped and why, topics, arenas, attached members, and how busy \
                      the supervisor's loop is."
    )]
    Statistics {
        /// Lanes that carried nothing as well
        #[arg(long)]
        all: bool,
    },
    /// Send a message to one member of the running swarm
    #[command(
        long_about = "Sends a message to one member of the running swarm: an agent or an attached client.\n\n\
                      The message is TEXT, or the bytes of standard input: any bytes, at most 1 MiB. With \
                      --reply-within the reply goes to standard output, and no reply in time ends with 1.",
        after_help = "Examples:\n  \
                      ai_swarm_deploy send compute-0 hello\n  \
                      ai_swarm_deploy send planner '{\"op\": \"plan\"}' --reply-within 2\n  \
                      ai_swarm_deploy send planner < picture.png"
    )]
    Send {
        /// Id of the member, as `agent list` and `statistics` show it
        to: String,
        /// The message; `-` or nothing is standard input
        #[arg(value_name = "TEXT", allow_negative_numbers = true)]
        text: Option<String>,
        /// Wait so long for a reply and print it: 2, 0.5, 5m
        #[arg(long, value_name = "SECONDS", value_parser = parse_duration)]
        reply_within: Option<Duration>,
    },
    /// Send a message to every member of the running swarm, or to a topic's subscribers
    #[command(
        long_about = "Sends a message to every member of the running swarm, or with --topic to those who subscribed to \
                      that topic.\n\nThe message is TEXT, or the bytes of standard input: any bytes, at most 1 MiB.",
        after_help = "Examples:\n  \
                      ai_swarm_deploy broadcast hello\n  \
                      ai_swarm_deploy broadcast --topic prices < prices.json"
    )]
    Broadcast {
        /// The message; `-` or nothing is standard input
        #[arg(value_name = "TEXT", allow_negative_numbers = true)]
        text: Option<String>,
        /// Only to the subscribers of this topic
        #[arg(long, value_name = "TOPIC")]
        topic: Option<String>,
    },
    /// Events of the running swarm
    Events {
        /// Go on as they happen
        #[arg(long, short)]
        follow: bool,
        /// Only events after this number
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
        /// Those of the swarm's earlier lives, too, as far as its journal keeps them
        #[arg(long)]
        earlier: bool,
    },
    /// Stop the running swarm cleanly
    Stop {
        /// Leave tasks that are not done to the next start, also those that run longer than `tasks.drain_s`; with `false` they
        /// are cancelled. Otherwise `tasks.keep_at_stop` says which
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        keep_tasks: Option<bool>,
    },
    /// What this host offers and what is missing, each with its reason
    Doctor,
    /// Measure this host
    #[command(after_long_help = crate::bench::traces_help())]
    Bench {
        /// What to measure
        #[arg(value_enum, default_value = "all")]
        what: Bench,
        /// Fewer repetitions
        #[arg(long)]
        quick: bool,
        /// End with 1 if a figure lies beyond its limit
        #[arg(long)]
        check: bool,
        /// With `balancer`: replay this recorded trace instead of the scenarios; may be given more than once
        #[arg(long = "trace", value_name = "FILE")]
        traces: Vec<PathBuf>,
    },
    /// Break a swarm of its own from a seed, and check that nothing is lost
    #[command(
        long_about = "Deploys a swarm of its own in a temporary folder, gives it work, injects faults from a seed, and checks \
                      from the outside that the promises of docs/promises.md held: no task lost, none done twice, every \
                      output right, nobody and nothing left behind. Ends with a table, and with 1 if a promise was \
                      broken.",
        after_help = "Examples:\n  \
                      ai_swarm_deploy chaos\n  \
                      ai_swarm_deploy chaos --seed 7 --for 20m --rate 1\n  \
                      ai_swarm_deploy chaos --fault kill --fault supervisor --json"
    )]
    Chaos {
        /// Where the faults come from; a fresh one is printed
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
        /// Inject faults for so long: 30, 20m, 1h
        #[arg(long = "for", value_name = "SECONDS", default_value = "30", value_parser = parse_duration)]
        duration: Duration,
        /// End with so many faults, if they come before the time is over
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// Faults a second, on average
        #[arg(long, value_name = "PER_S", default_value_t = 20.0, value_parser = parse_rate)]
        rate: f64,
        /// Only this kind; may be given more than once
        #[arg(long, value_enum)]
        fault: Vec<crate::chaos::FaultKind>,
        /// What the swarm promises: process or power
        #[arg(long, value_name = "LEVEL", default_value = "process", value_parser = parse_kept)]
        durability: Durability,
        /// Work in this folder and leave it; otherwise a temporary one, which is removed when all held
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// The configuration: check it, explain its keys, show the values in force
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Kernels, their inputs and parameters
    Kernels {
        /// One kernel only
        // Not `name`: that is the global flag, and clap would take one for the other.
        kernel: Option<String>,
    },
    /// Shell completions
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Tasks given on the command line: job files, or one kernel with its arrays.
#[derive(Debug, Clone, Args)]
pub struct Work {
    /// Job files (JSON, or JSON Lines; `-` is standard input); with --kernel: input arrays
    #[arg(value_name = "JOBFILE|IN")]
    pub files: Vec<PathBuf>,
    /// Run this one kernel instead of job files
    #[arg(long, short, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// A parameter of the kernel; the value is JSON, or else a word
    #[arg(long = "param", short, value_name = "KEY=VALUE", requires = "kernel")]
    pub params: Vec<String>,
    /// Where the kernel's array goes
    #[arg(long, short, value_name = "OUT", requires = "kernel")]
    pub output: Option<PathBuf>,
    /// high, normal or low
    #[arg(long, value_name = "PRIORITY", requires = "kernel")]
    pub priority: Option<String>,
    /// Longest time of one attempt, seconds
    #[arg(long, value_name = "SECONDS", requires = "kernel")]
    pub timeout: Option<f64>,
    /// auto, or an instruction-set level
    #[arg(long, value_name = "BACKEND", requires = "kernel")]
    pub backend: Option<String>,
}

/// Tasks of the running swarm.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks, newest last
    List {
        /// Only those in this state: waiting, queued, dispatched (also those that wait at their agent), running,
        /// retrying, succeeded, failed, cancelled
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// At most so many, the newest
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Everything about one task
    Show {
        /// Its id
        id: String,
    },
    /// Why a task is where it is
    Explain {
        /// Its id
        id: String,
    },
    /// Give a task up, whether it waits or runs
    Cancel {
        /// Its id
        id: String,
    },
}

/// Agents of the running swarm.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// List agents
    List,
    /// Start another agent
    Create {
        /// compute, resource, optimization, thermal, fault or learning
        kind: String,
        /// Its id [default: the next free one]
        #[arg(long)]
        id: Option<String>,
    },
    /// End an agent after what it holds; others take its place in the queue
    Destroy {
        /// Its id
        id: String,
    },
    /// Replace running agents, each after what it holds; takes a new binary at our path
    Restart {
        /// An id, or a kind: compute, resource, optimization, thermal, fault or learning
        who: String,
        /// One after the other, the next when the successor of the one before is ready: work never stops
        #[arg(long)]
        rolling: bool,
    },
    /// Tune every kernel now (the optimization agent), and show what was found
    Optimize {
        /// Its id
        id: String,
        /// Do not wait for the end
        #[arg(long)]
        no_wait: bool,
    },
}

/// Placement in the running swarm.
#[derive(Debug, Subcommand)]
pub enum BalancerCommand {
    /// Have somebody else decide from the next task on, and after a restart, until the configuration says something new
    Mode {
        /// The model under its guards, one that learns no more, the published costs alone, or the safe rule
        #[arg(value_parser = ["learned", "frozen", "static", "safe"])]
        mode: String,
    },
}

/// The configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file
    Check {
        /// The file [default: as --config]
        file: Option<PathBuf>,
    },
    /// Print key, type, default and meaning
    Explain {
        /// One key or section only
        key: Option<String>,
    },
    /// Print the values in force and where each came from
    Show,
}

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// Messages between two pinned processes, and between 32: round trip, rate, large hand-over
    Ipc,
    /// No-op tasks: round trip and rate
    Dispatch,
    /// kill -9 of an agent to the next answer
    Recovery,
    /// Cold command to first answer
    Startup,
    /// Processor share and memory of an idle swarm
    Idle,
    /// What keeping tasks costs: rate, wait for the disk, restart
    Journal,
    /// Arithmetic on one core, beside its measured peak and bandwidth
    Kernels,
    /// Placement policies in the simulator, beside the best simple one
    Balancer,
    /// All of them
    All,
}

/// Events a second: above 0, at most 10,000.
fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if rate > 0.0 && rate <= 10_000.0 {
        Ok(rate)
    } else {
        Err("needs a number above 0, at most 10000".to_owned())
    }
}

/// A level of durability at which something outlives the supervisor.
fn parse_kept(text: &str) -> Result<Durability, String> {
    let levels = [Durability::Process, Durability::Power];
    let level = levels.into_iter().find(|level| level.as_str() == text);
    level.ok_or_else(|| "needs process or power".to_owned())
}

/// `300`, `300s`, `5m`, `1h`, `1.5`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; 300, 300s, 5m or 1h are");
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "m" => 60.0,
        "h" => 3600.0,
        _ => 1.0,
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
    // A thousand years is for ever, and still a Duration.
    if (0.0..=3.2e10).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_words_make_sense_to_clap() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_with_and_without_units() {
        for (text, seconds) in [("300", 300.0), ("5m", 300.0), ("1h", 3600.0), ("2.5s", 2.5), ("0", 0.0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "-1", "5x", "NaN", "1e99"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for words in [["x", "--config", "f", "status"], ["x", "status", "--config", "f"]] {
            assert_eq!(Cli::parse_from(words).global.config, Some("f".into()));
        }
    }
}
