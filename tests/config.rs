//! Configuration as a user meets it: every file in `fixtures/configs/valid` loads, every file in `invalid` is
//! refused with words that name the place, what was found and what is allowed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ai_swarm::config::{self, Count, SwarmConfig};

/// One file per typical mistake, with words its message must contain, in this order.
const MISTAKES: &[(&str, &[&str])] = &[
    ("unknown_top_level_key", &["2:3: unknown key `max_agent`", "did you mean `max_agents`?"]),
    (
        "unknown_nested_key",
        &[
            "unknown key `performance_thresholds.cpu_critcal`",
            "did you mean `performance_thresholds.cpu_critical`?",
        ],
    ),
    (
        "unknown_deep_key",
        &["unknown key `agents.fault.restart_limits`", "did you mean `agents.fault.restart_limit`?"],
    ),
    ("unknown_agent_kind", &["unknown key `agents.computer`", "did you mean `agents.compute`?"]),
    ("unknown_section", &["unknown key `gatway`", "did you mean `gateway`?"]),
    (
        "key_at_the_wrong_level",
        &[
            "unknown key `cpu_critical`",
            "did you mean `performance_thresholds.cpu_critical`?",
            "inside the object `performance_thresholds`",
        ],
    ),
    ("dotted_key", &["unknown key `tasks.window`", "`window` stands inside the object `tasks`"]),
    (
        "option_of_another_kind",
        &["unknown key `agents.compute.hysteresis_c`", "did you mean `agents.thermal.hysteresis_c`?"],
    ),
    ("key_in_empty_section", &["unknown key `security.tls`"]),
    ("wrong_letter_case", &["unknown key `Max_Agents`", "did you mean `max_agents`?"]),
    (
        "threshold_above_hundred",
        &["3:21: `performance_thresholds.cpu_critical` is 140, allowed: 0 to 100 percent"],
    ),
    (
        "thermal_out_of_range",
        &["`performance_thresholds.thermal_critical` is 200, allowed: 0 to 150 degrees Celsius"],
    ),
    ("negative_interval", &["`monitoring_interval` is -1, allowed: more than 0, up to 3600 seconds"]),
    ("zero_interval", &["`optimization_interval` is 0, allowed: more than 0, up to 3600 seconds"]),
    ("no_agents", &["`max_agents` is 0, allowed: 1 to 256 agents"]),
    ("too_many_agents", &["`max_agents` is 1000, allowed: 1 to 256 agents"]),
    ("half_an_agent", &["`max_agents` is 2.5, allowed: 1 to 256 agents"]),
    (
        "channel_too_small",
        &["`channel_size` is 4096, allowed: 65536 to 1073741824 bytes, a multiple of 4096"],
    ),
    ("channel_not_a_multiple", &["`channel_size` is 1000000", "a multiple of 4096"]),
    ("number_in_quotes", &[r#"`max_agents` is "8", allowed: 1 to 256 agents"#, "write it without quotes: 8"]),
    (
        "switch_as_word",
        &[r#"`fault_tolerance` is "true", allowed: true or false"#, "write it without quotes: true"],
    ),
    ("switch_as_number", &["`auto_scaling` is 1, allowed: true or false"]),
    ("null_where_none_is_allowed", &["`max_agents` is null, allowed: 1 to 256 agents"]),
    (
        "unknown_policy",
        &[
            r#"`balancer.policy` is "psychic", allowed: one of "round_robin", "random", "least_loaded", "jsq", "#,
        ],
    ),
    (
        "durability_unknown_level",
        &[r#"`durability.level` is "journal", allowed: one of "process", "power", "none""#],
    ),
    ("two_thermal_agents", &[r#"`agents.thermal.count` is 2, allowed: 0, 1 or "auto""#]),
    ("count_as_other_word", &[r#"`agents.compute.count` is "all", allowed: 0 to 256, or "auto""#]),
    (
        "more_compute_than_agents",
        &[
            "`agents.compute.count` is 8 (file",
            "at most `max_agents`, which is 4 (file",
            "raise `max_agents`",
        ],
    ),
    ("core_twice", &["`agents.compute.cores` is [1,2,1], allowed: a list of different cpu indexes"]),
    ("core_negative", &["`agents.fault.cores` is [-1], allowed: a list of different cpu indexes"]),
    ("cores_as_number", &["`agents.compute.cores` is 3, allowed: a list of different cpu indexes"]),
    ("name_with_slash", &[r#"`name` is "../other", allowed: 1 to 64 letters, digits, `.`, `_` or `-`"#]),
    ("empty_folder", &[r#"`agents.thermal.root` is "", allowed: path of a folder"#]),
    ("section_as_number", &["`tasks` is 5, allowed: an object", "keys inside it: window, batch"]),
    ("section_as_switch", &["`gateway` is false, allowed: an object", "keys inside it: enabled"]),
    ("value_as_object", &[r#"`max_agents` is {"count":3}, allowed: 1 to 256 agents"#]),
    ("key_twice", &["3:3: `max_agents` is given twice, first in line 2"]),
    ("list_at_the_top", &["the file holds [1], allowed: an object"]),
    ("trailing_comma", &[":3:1: not valid JSON: trailing comma", "no comma before a closing bracket"]),
    ("missing_comma", &[":3:3: not valid JSON: expected `,` or `}`"]),
    ("comment", &[":2:3: not valid JSON", "JSON has no comments"]),
    ("key_without_quotes", &[":2:3: not valid JSON: key must be a string", "keys stand in double quotes"]),
    ("not_closed", &["not valid JSON: EOF", "a bracket or a quote is not closed"]),
    ("empty_file", &["not valid JSON", "the file is empty; `{}` is a complete file"]),
    (
        "several_mistakes",
        &[
            "2:17: `max_agents` is 0",
            "3:3: unknown key `nmae`",
            "did you mean `name`?",
            "4:24: `tasks.window` is 0",
            "4:27: unknown key `tasks.batches`",
            "did you mean `tasks.batch`?",
            r#"5:26: `durability.level` is "all""#,
        ],
    ),
    ("not_utf8", &["it is not UTF-8 text", "save the file as UTF-8"]),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs").join(name)
}

fn names(folder: &Path) -> Vec<String> {
    let stem =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().file_stem().unwrap().to_owned();
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| stem(entry).into_string().unwrap()).collect();
    names.sort();
    names
}

fn valid(name: &str) -> SwarmConfig {
    config::load(Some(&folder("valid").join(name)), &[]).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_mistake_is_refused_in_its_own_words() {
    let mut listed: Vec<&str> = MISTAKES.iter().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    assert_eq!(names(&folder("invalid")), listed, "each file has its row and each row its file");
    for (name, words) in MISTAKES {
        let path = folder("invalid").join(format!("{name}.json"));
        let message = config::load(Some(&path), &[]).expect_err(name).to_string();
        let mut rest = message.as_str();
        for word in *words {
            let at =
                rest.find(word).unwrap_or_else(|| panic!("{name}: `{word}` is not in order in\n{message}"));
            rest = &rest[at + word.len()..];
        }
        assert!(message.starts_with("error: ") && message.contains("\nhint: "), "{name}: {message}");
        assert!(message.contains(&format!("{name}.json")), "{name} is not named in {message}");
        assert!(
            message.lines().all(|line| line.starts_with("error: ") || line.starts_with("hint: ")),
            "{message}"
        );
    }
}

#[test]
fn every_valid_file_loads() {
    for name in names(&folder("valid")) {
        valid(&format!("{name}.json"));
    }
}

#[test]
fn the_committed_file_is_the_default_in_every_value() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("swarm_config.json");
    let ours = config::load(Some(&path), &[]).unwrap();
    assert_eq!(ours.keys_set(), 10);
    assert_eq!(ours.file(), Some(path.as_path()));
    let values =
        |config: &SwarmConfig| config::show(config).into_iter().map(|row| row.value).collect::<Vec<_>>();
    assert_eq!(values(&ours), values(&SwarmConfig::default()));
}

#[test]
fn values_reach_their_fields() {
    let config = valid("every_section.json");
    assert_eq!((config.name.as_str(), config.max_agents), ("night-run_2.b", 12));
    assert_eq!(config.agents.compute.count, Count::Exactly(6));
    assert_eq!(config.agents.compute.cores.as_deref(), Some(&[3, 2, 1][..]));
    assert!(!config.agents.resource.count.enabled() && !config.agents.learning.count.enabled());
    assert_eq!((config.agents.thermal.count, config.agents.thermal.hysteresis_c), (Count::Auto, 3.0));
    assert_eq!(config.agents.optimization.budget_percent, 2.5);
    assert_eq!(config.agents.fault.hang_after, Duration::from_millis(500));
    assert_eq!(
        (config.agents.fault.restart_limit, config.agents.fault.backoff_max),
        (3, Duration::from_millis(1500))
    );
    assert_eq!((config.tasks.window, config.tasks.batch, config.tasks.default_retries), (4, 64, 0));
    assert_eq!(config.tasks.default_timeout, Some(Duration::from_secs(30)));
    assert_eq!((config.tasks.queue_limit, config.tasks.poison_deaths), (5000, 2));
    assert_eq!(config.balancer.policy, "least_loaded");
    assert_eq!(config.telemetry.log_file_max_bytes, 1 << 20);
    assert!(!config.gateway.enabled);
}

#[test]
fn a_file_that_is_not_there_or_is_a_folder_is_named() {
    let message = config::load(Some(Path::new("/nowhere/swarm.json")), &[]).unwrap_err().to_string();
    assert!(message.contains("/nowhere/swarm.json: there is no such file"), "{message}");
    let message = config::load(Some(&folder("valid")), &[]).unwrap_err().to_string();
    assert!(message.contains("it is a folder"), "{message}");
}

#[test]
fn show_tells_where_each_value_came_from() {
    let rows = config::show(&valid("schema_key.json"));
    let row = |key: &str| rows.iter().find(|row| row.key == key).unwrap();
    assert!(
        row("max_agents").origin.starts_with("file ")
            && row("max_agents").origin.ends_with("schema_key.json")
    );
    assert_eq!(row("channel_size").origin, "default");
    assert_eq!(rows.len(), config::explain().len());
}
