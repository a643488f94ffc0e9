//! Configuration: text in, a checked [`SwarmConfig`] out that remembers where each value came from.
//! It describes and never acts; nothing here starts, pins or creates anything.
//!
//! Flow
//! 1. [`load`] reads `--config FILE`, or `./swarm_config.json` if present, or nothing.
//! 2. `source` turns text into values with line and column.
//! 3. Each value meets its row in [`keys::KEYS`], the one table of types, defaults, bounds and meanings.
//! 4. Flags go over the file, the file over defaults.
//! 5. Relations between values are checked, then the sections are filled.
//!
//! Invariants
//! 1. All mistakes are collected, in file order; the first does not hide the others.
//! 2. A `SwarmConfig` exists only when every value passed its check.
//!
//! ```
//! use ai_swarm::config;
//! let swarm = config::from_text(r#"{"max_agents": 8}"#, "swarm_config.json".as_ref(), &[]).unwrap();
//! assert_eq!(swarm.max_agents, 8);
//! let error = config::from_text(r#"{"max_agent": 8}"#, "swarm_config.json".as_ref(), &[]).unwrap_err();
//! assert!(error.to_string().contains("did you mean `max_agents`?"));
//! ```

pub mod keys;
mod sections;
mod source;
mod text;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use keys::{KEYS, Key, SECTIONS};
pub use sections::{
    AgentsConfig, BalancerConfig, ComputeConfig, Count, Durability, DurabilityConfig, FaultConfig,
    GatewayConfig, LearningConfig, OptimizationConfig, ResourceConfig, SwarmConfig, TasksConfig,
    TelemetryConfig, ThermalConfig, Thresholds,
};
use source::{Content, Entry, Node, Place};
pub use text::{ExplainRow, ShowRow, explain, explain_text, is_within, show, show_text};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "./swarm_config.json";

/// Longest file we read: a thousand times the largest sensible one.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// This file.
    File(PathBuf),
    /// This command line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A value given on the command line; it wins over the file.
#[derive(Debug, Clone, PartialEq)]
pub struct FlagValue {
    /// The flag as typed, such as `--name`.
    pub flag: String,
    /// The key it sets, such as `name`.
    pub key: &'static str,
    /// The value.
    pub value: Value,
}

/// One value per row of [`KEYS`], in that order.
#[derive(Debug, Clone)]
pub(crate) struct Values(Vec<(Value, Origin)>);

/// Reads the configuration and puts flags on top. Without a path: `./swarm_config.json` if present, else defaults.
pub fn load(path: Option<&Path>, flags: &[FlagValue]) -> Result<SwarmConfig, ConfigErrors> {
    let default = Path::new(DEFAULT_FILE);
    let path = match path {
        Some(path) => path,
        None if default.symlink_metadata().is_ok() => default,
        None => return from_text("{}", default, flags),
    };
    from_text(&read(path)?, path, flags)
}

/// As [`load`], from text; `path` stands in messages and origins only.
pub fn from_text(text: &str, path: &Path, flags: &[FlagValue]) -> Result<SwarmConfig, ConfigErrors> {
    // Editors on other systems put a byte order mark in front; it says nothing and JSON does not know it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let node = source::parse(text).map_err(|(place, words)| syntax_error(text, path, place, &words))?;
    let mut check = Check { path, errors: Vec::new(), values: Values::defaults() };
    check.top(&node);
    check.errors.sort_by_key(|(place, _)| *place);
    let mut errors: Vec<ConfigError> = check.errors.into_iter().map(|(_, error)| error).collect();
    let mut values = check.values;
    for flag in flags {
        let key =
            keys::find(flag.key).unwrap_or_else(|| panic!("{} sets an unknown key {}", flag.flag, flag.key));
        if key.accepts(&flag.value) {
            values.set(key, flag.value.clone(), Origin::Flag(flag.flag.clone()));
        } else {
            errors.push(bad_value(&flag.flag, key, &flag.value));
        }
    }
    if errors.is_empty() {
        let config = SwarmConfig::from_values(values);
        errors.extend(relations(&config));
        if errors.is_empty() {
            return Ok(config);
        }
    }
    Err(ConfigErrors(errors))
}

/// What is allowed but probably not meant. `online_cores` are the cpus of this host.
pub fn warnings(config: &SwarmConfig, online_cores: &[usize]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (kind, count, cores) in config.agents.each() {
        let absent: Vec<String> = cores
            .unwrap_or_default()
            .iter()
            .filter(|core| !online_cores.contains(core))
            .map(usize::to_string)
            .collect();
        if count.enabled() && !absent.is_empty() {
            let all = absent.len() == cores.map_or(0, <[usize]>::len);
            warnings.push(format!(
                "`agents.{kind}.cores` names cpu {}, this host has {}: {}",
                absent.join(", "),
                ranges(online_cores),
                if all { "the list is ignored and the core is planned" } else { "these are left out" },
            ));
        }
    }
    if config.agents.compute.count == Count::Exactly(0) && !config.auto_scaling {
        warnings.push("`agents.compute.count` is 0 and `auto_scaling` is off: no task can run".to_owned());
    }
    if config.tasks.keep_at_stop && config.durability.level == sections::Durability::None {
        warnings.push(
            "`tasks.keep_at_stop` is on and `durability.level` is \"none\": there is nothing to keep tasks in, a stop cancels them"
                .to_owned(),
        );
    }
    if config.optimization_interval < config.monitoring_interval {
        warnings.push(format!(
            "`optimization_interval` ({} s) is shorter than `monitoring_interval` ({} s): some cycles see no new sample",
            config.optimization_interval.as_secs_f64(),
            config.monitoring_interval.as_secs_f64(),
        ));
    }
    for (key, folder) in [
        ("agents.thermal.root", &config.agents.thermal.root),
        ("agents.resource.procfs", &config.agents.resource.procfs),
    ] {
        if !folder.is_dir() {
            warnings.push(format!("`{key}` is {}, which is no folder here", folder.display()));
        }
    }
    warnings
}

/// `0-3,6`: a list of cpus in few characters.
pub fn ranges(cores: &[usize]) -> String {
    let mut sorted = cores.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut parts: Vec<String> = Vec::new();
    for run in sorted.chunk_by(|a, b| a + 1 == *b) {
        match run {
            [one] => parts.push(one.to_string()),
            _ => parts.push(format!("{}-{}", run[0], run[run.len() - 1])),
        }
    }
    if parts.is_empty() { "none".to_owned() } else { parts.join(",") }
}

fn read(path: &Path) -> Result<String, ConfigErrors> {
    let fail = |words: String, hint: &str| ConfigErrors(vec![ConfigError::new(words, hint)]);
    let shown = path.display();
    let cannot = |error: std::io::Error| {
        let (what, hint) = match error.kind() {
            std::io::ErrorKind::NotFound => (
                "there is no such file",
                "`ai_swarm_deploy config explain` lists every key; `{}` is a complete file",
            ),
            std::io::ErrorKind::PermissionDenied => ("this user may not read it", "check its owner and mode"),
            std::io::ErrorKind::IsADirectory => ("it is a folder", "name the file inside it"),
            std::io::ErrorKind::InvalidData => ("it is not UTF-8 text", "save the file as UTF-8"),
            _ => ("", "check the path"),
        };
        let what = if what.is_empty() { error.to_string() } else { what.to_owned() };
        fail(format!("cannot read the configuration {shown}: {what}"), hint)
    };
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(fail(
            format!("cannot read the configuration {shown}: it is longer than {FILE_BYTES_MAX} bytes"),
            "is this really a configuration?",
        ));
    }
    Ok(text)
}

fn syntax_error(text: &str, path: &Path, place: Place, words: &str) -> ConfigErrors {
    let line = text.lines().nth(place.line - 1).unwrap_or_default().trim();
    let hint = if text.trim().is_empty() {
        "the file is empty; `{}` is a complete file and means all defaults".to_owned()
    } else if words.contains("trailing comma") {
        "JSON allows no comma before a closing bracket".to_owned()
    } else if words.contains("EOF") {
        "the file ends too early: a bracket or a quote is not closed".to_owned()
    } else if line.starts_with("//") || line.starts_with('#') || line.contains(" //") || line.contains("/*") {
        "JSON has no comments; `ai_swarm_deploy config explain` tells what each key means".to_owned()
    } else if words.contains("key must be a string") {
        "keys stand in double quotes".to_owned()
    } else {
        format!("the line reads: {}", clip(line, 70))
    };
    let message = format!("{}:{}:{}: not valid JSON: {words}", path.display(), place.line, place.column);
    ConfigErrors(vec![ConfigError::new(message, hint)])
}

fn bad_value(at: &str, key: &Key, value: &Value) -> ConfigError {
    let shown = clip(&value.to_string(), 60);
    // The commonest slip: the right value in quotes.
    let unquoted = value
        .as_str()
        .and_then(|text| serde_json::from_str(text.trim()).ok())
        .filter(|inner: &Value| key.accepts(inner))
        .map(|inner| format!("write it without quotes: {inner}"));
    let hint = unquoted
        .unwrap_or_else(|| format!("`ai_swarm_deploy config explain {}` tells what it means", key.path));
    ConfigError::new(format!("{at}: `{}` is {shown}, allowed: {}", key.path, key.allowed()), hint)
}

/// Rules that join two keys.
fn relations(config: &SwarmConfig) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    if let Count::Exactly(count) = config.agents.compute.count
        && count > config.max_agents
    {
        let (count_from, max_from) = (config.origin("agents.compute.count"), config.origin("max_agents"));
        errors.push(ConfigError::new(
            format!(
                "`agents.compute.count` is {count} ({count_from}), allowed: at most `max_agents`, which is {} ({max_from})",
                config.max_agents
            ),
            "raise `max_agents`, lower the count, or write \"auto\"",
        ));
    }
    errors
}

/// The walk over one file: values found, mistakes found.
struct Check<'p> {
    path: &'p Path,
    errors: Vec<(Place, ConfigError)>,
    values: Values,
}

impl Check<'_> {
    fn at(&self, place: Place) -> String {
        format!("{}:{}:{}", self.path.display(), place.line, place.column)
    }

    fn fail(&mut self, place: Place, words: String, hint: impl Into<String>) {
        let message = format!("{}: {words}", self.at(place));
        self.errors.push((place, ConfigError::new(message, hint)));
    }

    fn top(&mut self, node: &Node) {
        match &node.content {
            Content::Object(entries) => self.section("", entries),
            Content::Value(value) => {
                let words =
                    format!("the file holds {}, allowed: an object, {{ ... }}", clip(&value.to_string(), 60));
                self.fail(node.place, words, "`{}` is a complete file and means all defaults");
            }
        }
    }

    fn section(&mut self, section: &str, entries: &[Entry]) {
        for (index, entry) in entries.iter().enumerate() {
            let path =
                if section.is_empty() { entry.key.clone() } else { format!("{section}.{}", entry.key) };
            if let Some(first) = entries[..index].iter().find(|other| other.key == entry.key) {
                self.fail(
                    entry.place,
                    format!("`{path}` is given twice, first in line {}", first.place.line),
                    "keep one of the two",
                );
            } else if let Some(key) = keys::find(&path).filter(|key| key.section() == section) {
                self.value(key, &entry.node);
            } else if SECTIONS.iter().any(|(known, _)| *known == path) && !entry.key.contains('.') {
                match &entry.node.content {
                    Content::Object(inner) => self.section(&path, inner),
                    Content::Value(value) => {
                        let words = format!(
                            "`{path}` is {}, allowed: an object, {{ ... }}",
                            clip(&value.to_string(), 60)
                        );
                        let inside = keys::children(&path).join(", ");
                        self.fail(entry.node.place, words, format!("keys inside it: {inside}"));
                    }
                }
            } else if path != "$schema" {
                self.fail(
                    entry.place,
                    format!("unknown key `{}`", clip(&path, 80)),
                    nearest(section, &entry.key),
                );
            }
        }
    }

    fn value(&mut self, key: &'static Key, node: &Node) {
        let value = node.content.to_json();
        if key.accepts(&value) {
            self.values.set(key, value, Origin::File(self.path.to_owned()));
        } else {
            let error = bad_value(&self.at(node.place), key, &value);
            self.errors.push((node.place, error));
        }
    }
}

/// The known key or section that is most like this path.
pub fn nearest_path(unknown: &str) -> &'static str {
    let unknown = unknown.to_ascii_lowercase().replace('-', "_");
    let score = |path: &str| {
        let leaf = path.rsplit('.').next().unwrap_or(path);
        likeness(&unknown, path).max(likeness(&unknown, leaf) - 0.05)
    };
    let paths = KEYS.iter().map(|key| key.path).chain(SECTIONS.iter().map(|(path, _)| *path));
    paths.max_by(|a, b| score(a).total_cmp(&score(b))).unwrap_or("")
}

/// A hint that always names the nearest known key, here or in another section.
fn nearest(section: &str, unknown: &str) -> String {
    let here = keys::children(section);
    let full = |leaf: &str| if section.is_empty() { leaf.to_owned() } else { format!("{section}.{leaf}") };
    let unknown_lower = unknown.to_ascii_lowercase().replace('-', "_");
    let mut best = (0.0, String::new());
    let mut offer = |score: f64, path: String| {
        if score > best.0 || best.1.is_empty() {
            best = (score, path);
        }
    };
    for leaf in &here {
        offer(likeness(&unknown_lower, leaf), full(leaf));
    }
    for path in KEYS.iter().map(|key| key.path).chain(SECTIONS.iter().map(|(path, _)| *path)) {
        // A key that belongs elsewhere: a little less likely than a slip of the fingers here.
        let leaf = path.rsplit('.').next().unwrap_or(path);
        offer(likeness(&unknown_lower, leaf) - 0.05, path.to_owned());
        offer(likeness(&unknown_lower, path) - 0.05, path.to_owned());
    }
    let (score, path) = best;
    if score >= 0.75 {
        let inside = path.rsplit_once('.').filter(|(parent, _)| *parent != section);
        return match inside {
            Some((parent, leaf)) => {
                format!("did you mean `{path}`? `{leaf}` stands inside the object `{parent}`")
            }
            None => format!("did you mean `{path}`?"),
        };
    }
    let list = if here.is_empty() { "none in this version".to_owned() } else { here.join(", ") };
    format!("the nearest known key is `{path}`; keys allowed here: {list}")
}

fn likeness(a: &str, b: &str) -> f64 {
    // Damerau-Levenshtein sees swapped letters; Jaro-Winkler likes a common beginning, so it may not decide alone.
    let edits = strsim::normalized_damerau_levenshtein(a, b);
    edits.max(0.5 * (edits + strsim::jaro_winkler(a, b)))
}

/// At most `characters_max` characters, with dots where something is left out.
fn clip(text: &str, characters_max: usize) -> String {
    // Control characters in a value must not reach a terminal.
    let clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(characters_max + 1).collect();
    if clean.chars().count() <= characters_max {
        return clean;
    }
    clean.chars().take(characters_max - 3).chain("...".chars()).collect()
}

impl SwarmConfig {
    /// Where the value of this key came from. The key must be one of the table.
    pub fn origin(&self, key: &str) -> &Origin {
        &self.values.at(key).1
    }

    /// How many keys were set by a file or a flag.
    pub fn keys_set(&self) -> usize {
        self.values.0.iter().filter(|(_, origin)| *origin != Origin::Default).count()
    }

    /// The file that was read, if one was.
    pub fn file(&self) -> Option<&Path> {
        self.values.0.iter().find_map(|(_, origin)| match origin {
            Origin::File(path) => Some(path.as_path()),
            _ => None,
        })
    }
}

impl Values {
    fn defaults() -> Values {
        Values(KEYS.iter().map(|key| (key.default_value(), Origin::Default)).collect())
    }

    fn set(&mut self, key: &'static Key, value: Value, origin: Origin) {
        let index = KEYS.iter().position(|row| row.path == key.path).expect("the row is in the table");
        self.0[index] = (value, origin);
    }

    fn at(&self, path: &str) -> &(Value, Origin) {
        let index = KEYS.iter().position(|key| key.path == path);
        &self.0[index.unwrap_or_else(|| panic!("`{path}` is not in the table of keys"))]
    }

    // The readers below take checked values, so a mismatch is our own mistake: they panic and a test calls them all.
    fn switch(&self, path: &str) -> bool {
        self.at(path).0.as_bool().expect(path)
    }
    fn integer(&self, path: &str) -> u64 {
        keys::integer(&self.at(path).0).expect(path)
    }
    fn size(&self, path: &str) -> usize {
        usize::try_from(self.integer(path)).expect(path)
    }
    fn small(&self, path: &str) -> u32 {
        u32::try_from(self.integer(path)).expect(path)
    }
    fn number(&self, path: &str) -> f64 {
        self.at(path).0.as_f64().expect(path)
    }
    fn seconds(&self, path: &str) -> Duration {
        // A nanosecond at least: "more than 0" must not become 0.
        Duration::from_secs_f64(self.number(path)).max(match self.number(path) {
            0.0 => Duration::ZERO,
            _ => Duration::from_nanos(1),
        })
    }
    fn seconds_or_null(&self, path: &str) -> Option<Duration> {
        (!self.at(path).0.is_null()).then(|| self.seconds(path))
    }
    fn integer_or_null(&self, path: &str) -> Option<u64> {
        keys::integer(&self.at(path).0)
    }
    fn text(&self, path: &str) -> &str {
        self.at(path).0.as_str().expect(path)
    }
    fn text_or_null(&self, path: &str) -> Option<&str> {
        self.at(path).0.as_str()
    }
    fn count(&self, path: &str) -> Count {
        keys::integer(&self.at(path).0).map_or(Count::Auto, |count| Count::Exactly(count as usize))
    }
    fn cores(&self, path: &str) -> Option<Vec<usize>> {
        let list = self.at(path).0.as_array()?;
        Some(list.iter().map(|core| keys::integer(core).expect(path) as usize).collect())
    }
}

/// One mistake: what is wrong, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where, what was found, what is allowed.
    pub message: String,
    /// The next step, if one is known.
    pub hint: Option<String>,
}

impl ConfigError {
    fn new(message: String, hint: impl Into<String>) -> ConfigError {
        ConfigError { message, hint: Some(hint.into()) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

/// All mistakes of a configuration, in file order. `Display` is ready for stderr, prefixes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn errors(text: &str) -> String {
        from_text(text, Path::new("c.json"), &[]).expect_err(text).to_string()
    }

    #[test]
    fn defaults_fill_every_section() {
        let config = SwarmConfig::default();
        assert_eq!((config.max_agents, config.channel_size), (32, 1 << 20));
        assert_eq!(config.balancer.policy, "ect");
        assert_eq!(config.tasks.default_timeout, None);
        assert_eq!((config.keys_set(), config.file()), (0, None));
    }

    #[test]
    fn round_robin_without_load_balancing_unless_a_policy_is_named() {
        let policy = |text| from_text(text, Path::new("c.json"), &[]).unwrap().balancer.policy;
        assert_eq!(policy(r#"{"load_balancing": false}"#), "round_robin");
        assert_eq!(policy(r#"{"load_balancing": false, "balancer": {"policy": "ect"}}"#), "ect");
        assert_eq!(policy(r#"{"balancer": {"policy": "least_loaded"}}"#), "least_loaded");
    }

    #[test]
    fn flags_win_over_the_file_and_are_checked_like_it() {
        let flag = |value: &str| {
            [FlagValue { flag: "--name".to_owned(), key: "name", value: Value::String(value.to_owned()) }]
        };
        let config = from_text(r#"{"name": "a", "max_agents": 3}"#, Path::new("c.json"), &flag("b")).unwrap();
        assert_eq!(config.name, "b");
        assert_eq!(config.origin("name").to_string(), "flag --name");
        assert_eq!(config.origin("max_agents").to_string(), "file c.json");
        assert_eq!(config.origin("tasks.window").to_string(), "default");
        let error = from_text("{}", Path::new("c.json"), &flag("a b")).unwrap_err().to_string();
        assert!(error.starts_with(r#"error: --name: `name` is "a b", allowed: 1 to 64 letters"#), "{error}");
    }

    #[test]
    fn all_mistakes_come_at_once_in_file_order() {
        let text = "{\"max_agents\": 0,\n \"tasks\": {\"windw\": 1, \"batch\": -1},\n \"nmae\": \"x\", \"max_agents\": 3}";
        let error = errors(text);
        let lines: Vec<&str> = error.lines().filter(|line| line.starts_with("error: ")).collect();
        let places: Vec<&str> = lines.iter().map(|line| &line[7..18]).collect();
        assert_eq!(
            places,
            ["c.json:1:16", "c.json:2:12", "c.json:2:33", "c.json:3:2:", "c.json:3:15"],
            "{error}"
        );
        assert!(error.contains("did you mean `tasks.window`?"), "{error}");
        assert!(error.contains("given twice, first in line 1"), "{error}");
    }

    #[test]
    fn a_key_at_the_wrong_level_is_told_where_it_belongs() {
        assert!(
            errors(r#"{"window": 3}"#)
                .contains("did you mean `tasks.window`? `window` stands inside the object `tasks`")
        );
        assert!(
            errors(r#"{"performance_thresholds.cpu_critical": 3}"#)
                .contains("inside the object `performance_thresholds`")
        );
        assert!(errors(r#"{"zzz": 3}"#).contains("the nearest known key is `"));
        assert!(errors(r#"{"security": {"tls": 1}}"#).contains("unknown key `security.tls`"));
        assert!(errors(r#"{"tasks": {"$schema": ""}}"#).contains("unknown key `tasks.$schema`"));
    }

    #[test]
    fn warnings_name_cores_this_host_does_not_have() {
        let text = r#"{"agents": {"compute": {"cores": [0, 7]}, "fault": {"cores": [9]}}, "optimization_interval": 0.5}"#;
        let config = from_text(text, Path::new("c.json"), &[]).unwrap();
        let warnings = warnings(&config, &[0, 1]);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("names cpu 7, this host has 0-1: these are left out"));
        assert!(warnings[1].contains("agents.fault.cores") && warnings[1].contains("ignored"));
    }

    #[test]
    fn the_nearest_path_is_found_with_and_without_its_section() {
        for (unknown, near) in [
            ("max_agent", "max_agents"),
            ("MAX-AGENTS", "max_agents"),
            ("hang_after", "agents.fault.hang_after_s"),
            ("agent.fault.hang_after_s", "agents.fault.hang_after_s"),
            ("balanser", "balancer"),
            ("thresholds.cpu_critical", "performance_thresholds.cpu_critical"),
        ] {
            assert_eq!(nearest_path(unknown), near, "{unknown}");
        }
        assert!(!nearest_path("").is_empty());
    }

    #[test]
    fn ranges_are_short() {
        assert_eq!(ranges(&[5, 0, 1, 2, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "none");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = from_text(&text, Path::new("c.json"), &[]);
        }

        #[test]
        fn any_value_at_any_key_is_taken_or_named(row in 0..KEYS.len(), text in "-?(0|[1-9][0-9]{0,5})(\\.[0-9])?(e[0-9]{1,2})?|true|null|\"auto\"|\"[a-z ]{0,3}\"|\\[[0-9]\\]|\\{\\}") {
            let key = &KEYS[row];
            let document = key.path.rsplit('.').fold(text, |inner, part| format!("{{\"{part}\": {inner}}}"));
            match from_text(&document, Path::new("c.json"), &[]) {
                Ok(config) => prop_assert_eq!(config.origin(key.path).to_string(), "file c.json"),
                Err(error) => {
                    let text = error.to_string();
                    prop_assert!(text.contains(key.path) && text.contains("allowed: "), "{}", text);
                }
            }
        }
    }
}
