//! The one table of `swarm_config.json`: every key with its type, default, bounds and meaning.
//! Checking, defaults, `config explain` and `config show` all read it; nothing else knows a bound.
//!
//! Invariants (held by the tests at the foot)
//! 1. Paths are unique, and the rows of one section stand together.
//! 2. Every default passes its own check. A default of `null` is what makes `null` allowed.
//! 3. The words of `allowed` are made from the bounds that the check uses.

use serde_json::Value;

/// One row of the table.
#[derive(Debug)]
pub struct Key {
    /// Dotted path from the top of the file, such as `tasks.window`.
    pub path: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The default, written as JSON; `null` means the key may be left undecided.
    pub default: &'static str,
    /// What it means, in one or two sentences.
    pub meaning: &'static str,
}

/// The type of a key, with its bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number in `min..=max`, a multiple of `step`.
    Integer {
        /// Smallest allowed value.
        min: u64,
        /// Largest allowed value.
        max: u64,
        /// Every value is a multiple of this; 1 for no such rule.
        step: u64,
        /// Word for the reader, such as `bytes`; may be empty.
        unit: &'static str,
    },
    /// A number up to `max`; `min` itself is allowed unless `above`.
    Number {
        /// Lower bound.
        min: f64,
        /// True when the lower bound itself is not allowed.
        above: bool,
        /// Largest allowed value.
        max: f64,
        /// Word for the reader, such as `seconds`.
        unit: &'static str,
    },
    /// A whole number in `0..=max`, or the word `"auto"`.
    Count {
        /// Largest allowed number.
        max: u64,
    },
    /// A list of cpu indexes without repetition.
    Cores,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A swarm name: 1 to 64 of `[A-Za-z0-9._-]`, not `.` or `..`, because it becomes a file name.
    Name,
    /// A path of a folder.
    Folder,
}

/// Most cpus a core list may name: above any Linux build we know (`CONFIG_NR_CPUS`).
pub const CPU_INDEX_MAX: u64 = 8191;
/// Longest swarm name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

const fn switch() -> Kind {
    Kind::Switch
}
const fn whole(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Integer { min, max, step: 1, unit }
}
const fn from(min: f64, max: f64, unit: &'static str) -> Kind {
    Kind::Number { min, above: false, max, unit }
}
const fn above(min: f64, max: f64, unit: &'static str) -> Kind {
    Kind::Number { min, above: true, max, unit }
}
const fn key(path: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key { path, kind, default, meaning }
}

/// Placement rules.
pub const POLICIES: &[&str] = &[
    "round_robin",
    "random",
    "least_loaded",
    "jsq",
    "p2c",
    "jbsq",
    "prequal",
    "peak_ewma",
    "work_stealing",
    "ect",
    "learned",
];
/// Who decides when the rule is `learned`.
pub const MODES: &[&str] = &["learned", "frozen", "static", "safe"];

/// Sections in file order, with their meaning. A section may have no keys yet.
pub const SECTIONS: &[(&str, &str)] = &[
    ("performance_thresholds", "Levels at which a `performance_alert` is raised, once per episode."),
    ("agents", "One section per kind of agent."),
    ("agents.compute", "Agents that run kernels."),
    ("agents.resource", "The agent that watches memory, disks and pressure."),
    ("agents.optimization", "The agent that tunes kernels for this machine."),
    ("agents.thermal", "The agent that keeps the machine below its temperature limit."),
    ("agents.fault", "The agent that suspects, drains and restarts."),
    ("agents.learning", "The agent that learns where tasks run best."),
    ("tasks", "How tasks wait, travel, time out and are tried again."),
    ("durability", "What outlives the supervisor, and what is kept of it."),
    ("balancer", "Which agent gets a task."),
    ("messaging", "Memory for what processes say to each other."),
    ("telemetry", "Logs and what is kept of them."),
    ("gateway", "HTTP API, metrics and dashboard, in a process of their own."),
    ("security", "No keys in this version; an empty section is allowed."),
];

/// Every key, in the order in which `config explain` prints them.
pub const KEYS: &[Key] = &[
    key(
        "name",
        Kind::Name,
        r#""default""#,
        "Name of the swarm. Several swarms with different names run side by side on one host.",
    ),
    key(
        "max_agents",
        whole(1, 256, "agents"),
        "32",
        "Agents at most. Compute and custom agents count; one more is refused with an error.",
    ),
    key(
        "channel_size",
        Kind::Integer { min: 65536, max: 1 << 30, step: 4096, unit: "bytes" },
        "1048576",
        "Size of one channel segment, the shared memory from one sender to one receiver.",
    ),
    key(
        "monitoring_interval",
        above(0.0, 3600.0, "seconds"),
        "1.0",
        "Time between two samples of the host and of every agent.",
    ),
    key(
        "optimization_interval",
        above(0.0, 3600.0, "seconds"),
        "5.0",
        "Time between two optimisation cycles.",
    ),
    key(
        "fault_tolerance",
        switch(),
        "true",
        "Restart agents that died or hang, and run their tasks elsewhere.",
    ),
    key(
        "load_balancing",
        switch(),
        "true",
        "Place tasks by expected completion time, corrected by what was learned; off: round robin.",
    ),
    key(
        "auto_scaling",
        switch(),
        "true",
        "Add and remove compute agents by load, never beyond max_agents. Read and checked; this version keeps the planned agents.",
    ),
    key(
        "performance_thresholds.cpu_critical",
        from(0.0, 100.0, "percent"),
        "90.0",
        "Use of all cores together at which a performance_alert is raised.",
    ),
    key(
        "performance_thresholds.memory_critical",
        from(0.0, 100.0, "percent"),
        "95.0",
        "Share of memory not available at which a performance_alert is raised.",
    ),
    key(
        "performance_thresholds.thermal_critical",
        from(0.0, 150.0, "degrees Celsius"),
        "85.0",
        "Temperature of the hottest sensor at which a performance_alert is raised and the thermal agent \
         lowers how many compute agents work at once.",
    ),
    key(
        "agents.compute.count",
        Kind::Count { max: 256 },
        r#""auto""#,
        "Compute agents at the start; `auto`: one per core that the core plan gives to compute. At most max_agents.",
    ),
    key(
        "agents.compute.cores",
        Kind::Cores,
        "null",
        "Cpus for compute agents, taken in this order and round again; null: planned from what is available.",
    ),
    key(
        "agents.compute.standbys",
        whole(0, 8, "processes"),
        "1",
        "Compute agents that are started and asleep beside the others, so that the place of one that dies is taken by a \
         message. Given up first when memory is short.",
    ),
    key(
        "agents.resource.count",
        Kind::Count { max: 1 },
        r#""auto""#,
        "0 switches this agent off; `auto` is 1.",
    ),
    key(
        "agents.resource.cores",
        Kind::Cores,
        "null",
        "Cpu of this agent (the first available one of the list); null: planned.",
    ),
    key(
        "agents.resource.procfs",
        Kind::Folder,
        r#""/proc""#,
        "Folder read as /proc, so that a recorded tree can be used.",
    ),
    key(
        "agents.optimization.count",
        Kind::Count { max: 1 },
        r#""auto""#,
        "0 switches this agent off; `auto` is 1.",
    ),
    key(
        "agents.optimization.cores",
        Kind::Cores,
        "null",
        "Cpu of this agent (the first available one of the list); null: planned.",
    ),
    key(
        "agents.optimization.budget_percent",
        from(0.0, 100.0, "percent"),
        "5",
        "Share of one idle core that tuning may spend on what has run here. `agent optimize` tunes at once, whatever this says.",
    ),
    key(
        "agents.thermal.count",
        Kind::Count { max: 1 },
        r#""auto""#,
        "0 switches this agent off; `auto` is 1.",
    ),
    key(
        "agents.thermal.cores",
        Kind::Cores,
        "null",
        "Cpu of this agent (the first available one of the list); null: planned.",
    ),
    key(
        "agents.thermal.root",
        Kind::Folder,
        r#""/sys""#,
        "Folder read as /sys for temperatures, power and clocks, so that a recorded tree can be used.",
    ),
    key(
        "agents.thermal.hysteresis_c",
        from(0.0, 50.0, "degrees Celsius"),
        "5.0",
        "A cap is released only this far below performance_thresholds.thermal_critical.",
    ),
    key("agents.fault.count", Kind::Count { max: 1 }, r#""auto""#, "0 switches this agent off; `auto` is 1."),
    key(
        "agents.fault.cores",
        Kind::Cores,
        "null",
        "Cpu of this agent (the first available one of the list); null: planned.",
    ),
    key(
        "agents.fault.hang_after_s",
        from(0.01, 3600.0, "seconds"),
        "0.25",
        "An agent that is stopped, and a compute agent that spins without a task, is found hung within this time; another one that spins, \
         or waits for what does not come, after 5 s, the fault agent itself after 2 s. Busy and starved agents are not hung.",
    ),
    key(
        "agents.fault.memory_limit_bytes",
        whole(1 << 20, 1 << 50, "bytes"),
        "null",
        "An agent whose memory is on its way past this is drained and replaced before it gets there; null: what the host has left.",
    ),
    key(
        "agents.fault.descriptor_limit",
        whole(16, 1 << 30, "descriptors"),
        "null",
        "The same for open descriptors; null: what the system allows the process.",
    ),
    key(
        "agents.fault.restart_limit",
        whole(0, 1000, "restarts"),
        "5",
        "Restarts of one agent allowed within restart_window_s; after that it is given up. 0: none.",
    ),
    key(
        "agents.fault.restart_window_s",
        above(0.0, 86400.0, "seconds"),
        "10.0",
        "Window in which restart_limit counts.",
    ),
    key(
        "agents.fault.backoff_max_s",
        from(0.0, 3600.0, "seconds"),
        "5.0",
        "Longest pause before a restart; pauses double from restart to restart.",
    ),
    key(
        "agents.learning.count",
        Kind::Count { max: 1 },
        r#""auto""#,
        "0 switches this agent off; `auto` is 1.",
    ),
    key(
        "agents.learning.cores",
        Kind::Cores,
        "null",
        "Cpu of this agent (the first available one of the list); null: planned.",
    ),
    key(
        "tasks.window",
        whole(1, 1024, "tasks"),
        "2",
        "Tasks in flight per agent: one that runs, the others ready behind it.",
    ),
    key(
        "tasks.batch",
        whole(1, 65536, "tasks"),
        "256",
        "Most tiny tasks in flight per agent, where travelling together pays.",
    ),
    key(
        "tasks.default_timeout_s",
        above(0.0, 2_592_000.0, "seconds"),
        "null",
        "Time limit of one attempt of a task that names none; null: no limit.",
    ),
    key(
        "tasks.default_retries",
        whole(0, 1000, "retries"),
        "2",
        "Further attempts after a failure, for a task that names no number.",
    ),
    key(
        "tasks.queue_limit",
        whole(1, 100_000_000, "tasks"),
        "1000000",
        "Most tasks that may wait; a further submit is answered with `full`.",
    ),
    key(
        "tasks.drain_s",
        from(0.0, 3600.0, "seconds"),
        "5.0",
        "Time that running tasks are given to finish when the swarm stops.",
    ),
    key(
        "tasks.keep_at_stop",
        switch(),
        "false",
        "Tasks that are not done when the swarm stops wait in the journal for the next start, and are not cancelled. Needs a `durability.level` \
         other than \"none\".",
    ),
    key(
        "tasks.ageing_s",
        above(0.0, 86400.0, "seconds"),
        "5.0",
        "A waiting task of lower priority gains one class each time it has waited so long.",
    ),
    key(
        "tasks.poison_deaths",
        whole(1, 100, "deaths"),
        "3",
        "A task during which so many agents died is failed and not tried again.",
    ),
    key(
        "tasks.hedge_percent",
        from(0.0, 100.0, "percent"),
        "5.0",
        "Second attempts at most, percent of all tasks: one that takes far longer than its like is sent to an idle agent as \
         well, and the first answer counts. 0: never.",
    ),
    key(
        "tasks.hedge_after_s",
        above(0.0, 86400.0, "seconds"),
        "0.05",
        "No task gets a second attempt before the first has been out for so long.",
    ),
    key(
        "tasks.divide_above_s",
        from(0.0, 86400.0, "seconds"),
        "0.005",
        "A task that is expected to take longer is divided among agents that have nothing to do, if its kernel falls into \
         parts and that was faster so far. 0: never.",
    ),
    key(
        "durability.level",
        Kind::Word(&["process", "power", "none"]),
        r#""process""#,
        "What accepted tasks survive. `process`: the death of every process; `power`: a power cut too, and what is \
         acknowledged was on the disk before; `none`: nothing. A private swarm (`run`, `bench`) keeps none.",
    ),
    key(
        "durability.keep_tasks",
        whole(0, 100_000_000, "tasks"),
        "100000",
        "Ended tasks that the journal keeps at most. Tasks that have not ended are always kept. `task list` shows the 200000 that \
         ended last, however many are kept.",
    ),
    key(
        "durability.keep_days",
        above(0.0, 36500.0, "days"),
        "30.0",
        "How long the journal keeps an ended task at most.",
    ),
    key(
        "balancer.policy",
        Kind::Word(POLICIES),
        "null",
        "Placement rule; `ect` is expected completion time. null: ect, or round_robin when load_balancing is false.",
    ),
    key(
        "balancer.mode",
        Kind::Word(MODES),
        "\"learned\"",
        "Who decides when the rule is `learned`: the model under its guards, one that learns no more (frozen), the \
         published costs alone (static), or at most two tasks at an agent and the shortest queue (safe).",
    ),
    key(
        "messaging.arena_bytes",
        // A message over HTTP may have 1 MiB, and half of an arena is kept for results of tasks.
        Kind::Integer { min: 4 << 20, max: 1 << 40, step: 4096, unit: "bytes" },
        "4294967296",
        "Most memory of one process for payloads that do not fit into a channel's slots. Taken in pieces when needed.",
    ),
    key(
        "telemetry.log_file_max_bytes",
        whole(65536, 1 << 40, "bytes"),
        "16777216",
        "Size at which the log file is rotated.",
    ),
    key(
        "gateway.enabled",
        switch(),
        "true",
        "Start the gateway (HTTP API, metrics, dashboard). Work goes on without it.",
    ),
];

impl Key {
    /// True when `null` is a value of this key.
    pub fn may_be_null(&self) -> bool {
        self.default == "null"
    }

    /// The default as a JSON value.
    pub fn default_value(&self) -> Value {
        serde_json::from_str(self.default).expect("defaults in the table are JSON")
    }

    /// True when the value is one that this key takes.
    pub fn accepts(&self, value: &Value) -> bool {
        (value.is_null() && self.may_be_null()) || self.kind.accepts(value)
    }

    /// In words, what is allowed: the second half of every "bad value" message.
    pub fn allowed(&self) -> String {
        let words = self.kind.allowed();
        if self.may_be_null() { format!("{words}, or null") } else { words }
    }

    /// The section of this key, empty for the top level.
    pub fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }
}

impl Kind {
    /// The type in one or two words.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Switch => "true/false",
            Kind::Integer { .. } => "integer",
            Kind::Number { .. } => "number",
            Kind::Count { .. } => "count",
            Kind::Cores => "cpu list",
            Kind::Word(_) => "word",
            Kind::Name => "name",
            Kind::Folder => "folder",
        }
    }

    fn accepts(&self, value: &Value) -> bool {
        match *self {
            Kind::Switch => value.is_boolean(),
            Kind::Integer { min, max, step, .. } => {
                integer(value).is_some_and(|n| (min..=max).contains(&n) && n % step == 0)
            }
            Kind::Number { min, above, max, .. } => {
                value.as_f64().is_some_and(|n| n <= max && if above { n > min } else { n >= min })
            }
            Kind::Count { max } => value.as_str() == Some("auto") || integer(value).is_some_and(|n| n <= max),
            Kind::Cores => value.as_array().is_some_and(|list| {
                let cores: Option<Vec<u64>> = list.iter().map(integer).collect();
                cores.is_some_and(|mut cores| {
                    let within = !cores.is_empty() && cores.iter().all(|&core| core <= CPU_INDEX_MAX);
                    cores.sort_unstable();
                    cores.dedup();
                    within && cores.len() == list.len()
                })
            }),
            Kind::Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Kind::Name => value.as_str().is_some_and(|name| {
                (1..=NAME_BYTES_MAX).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                    && name.bytes().any(|b| b != b'.')
            }),
            Kind::Folder => value.as_str().is_some_and(|path| !path.is_empty() && !path.contains('\0')),
        }
    }

    fn allowed(&self) -> String {
        match *self {
            Kind::Switch => "true or false".to_owned(),
            Kind::Integer { min, max, step, unit } => {
                let multiple = if step > 1 { format!(", a multiple of {step}") } else { String::new() };
                format!("{min} to {max} {unit}{multiple}")
            }
            Kind::Number { min, above: false, max, unit } => format!("{min} to {max} {unit}"),
            Kind::Number { min, above: true, max, unit } => format!("more than {min}, up to {max} {unit}"),
            Kind::Count { max: 1 } => r#"0, 1 or "auto""#.to_owned(),
            Kind::Count { max } => format!(r#"0 to {max}, or "auto""#),
            Kind::Cores => format!("a list of different cpu indexes, each 0 to {CPU_INDEX_MAX}"),
            Kind::Word(words) => match words {
                [only] => format!(r#"only "{only}" in this version"#),
                _ => {
                    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                    format!("one of {}", quoted.join(", "))
                }
            },
            Kind::Name => format!("1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` or `-`, not only dots"),
            Kind::Folder => "path of a folder, not empty".to_owned(),
        }
    }
}

/// A whole number that is not negative; `32.0` counts, because JSON knows one kind of number only.
pub(super) fn integer(value: &Value) -> Option<u64> {
    // 2^53: beyond it a float no longer tells neighbouring integers apart.
    const FLOAT_EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        (float.fract() == 0.0 && (0.0..=FLOAT_EXACT_MAX).contains(&float)).then_some(float as u64)
    })
}

/// The row of this path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Names that may stand directly inside a section (`""` is the top level): keys, then sections.
pub(super) fn children(section: &str) -> Vec<&'static str> {
    let inside = |path: &'static str| match (section, path.rsplit_once('.')) {
        ("", None) => Some(path),
        (_, Some((parent, leaf))) if parent == section => Some(leaf),
        _ => None,
    };
    let keys = KEYS.iter().filter_map(|key| inside(key.path));
    keys.chain(SECTIONS.iter().filter_map(|(path, _)| inside(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_unique_and_sections_stand_together() {
        let mut seen = Vec::new();
        let mut last = "";
        for key in KEYS {
            assert!(KEYS.iter().filter(|other| other.path == key.path).count() == 1, "{} twice", key.path);
            if key.section() != last {
                last = key.section();
                assert!(!seen.contains(&last), "section {last} is torn apart");
                seen.push(last);
            }
            assert!(
                last.is_empty() || SECTIONS.iter().any(|(path, _)| *path == last),
                "{last} has no meaning"
            );
        }
    }

    #[test]
    fn every_default_passes_its_own_check() {
        for key in KEYS {
            assert!(key.accepts(&key.default_value()), "{}: {}", key.path, key.default);
            assert!(!key.allowed().is_empty() && key.meaning.ends_with('.'), "{}", key.path);
        }
    }

    #[test]
    fn bounds_are_where_the_words_say() {
        let size = find("channel_size").unwrap();
        assert_eq!(size.allowed(), "65536 to 1073741824 bytes, a multiple of 4096");
        for (value, fits) in
            [(65535, false), (65536, true), (65537, false), (1 << 30, true), ((1 << 30) + 4096, false)]
        {
            assert_eq!(size.accepts(&json!(value)), fits, "{value}");
        }
        let interval = find("monitoring_interval").unwrap();
        for (value, fits) in
            [(json!(0), false), (json!(0.001), true), (json!(3600), true), (json!(3600.1), false)]
        {
            assert_eq!(interval.accepts(&value), fits, "{value}");
        }
        let cores = find("agents.compute.cores").unwrap();
        for (value, fits) in [
            (json!([0, 1]), true),
            (json!([1, 1]), false),
            (json!([]), false),
            (json!([-1]), false),
            (json!(null), true),
        ] {
            assert_eq!(cores.accepts(&value), fits, "{value}");
        }
        assert!(find("max_agents").unwrap().accepts(&json!(32.0)));
        assert!(!find("max_agents").unwrap().accepts(&json!(32.5)));
        assert!(!find("name").unwrap().accepts(&json!("..")));
    }
}
