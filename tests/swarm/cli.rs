//! The words of the command line, its exit codes, and what goes where.

use crate::support::{Place, Swarm, fixture};
use serde_json::{Value, json};
use std::process::Stdio;

#[test]
fn help_and_version_go_to_standard_output() {
    let place = Place::new();
    let ran = place.cli(&["--help"]).ends(0).says("Usage:").says("--monitor-duration").says("Exit codes:");
    assert!(ran.err.is_empty(), "{}", ran.story());
    for command in [
        "run",
        "submit",
        "task",
        "agent",
        "status",
        "statistics",
        "send",
        "broadcast",
        "events",
        "stop",
        "doctor",
        "bench",
        "config",
        "kernels",
        "completions",
    ] {
        place.cli(&["--help"]).says(command);
        place.cli(&[command, "--help"]).ends(0).says("Usage:");
    }
    for word in ["-V", "--version"] {
        place.cli(&[word]).ends(0).says(concat!("ai_swarm_deploy ", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn wrong_words_end_with_2_and_say_what_is_allowed() {
    let place = Place::new();
    for (words, complaint) in [
        (&["runn"][..], "'run'"),
        (&["--demoo"], "'--demo'"),
        (&["--log-level", "debgu", "doctor"], "did you mean DEBUG?"),
        (&["--log-level", "ai_swarm=loud", "doctor"], "is not a log filter"),
        (&["--log-format", "xml", "doctor"], "text, json"),
        (&["--color", "blue", "doctor"], "auto, always, never"),
        (&["--monitor-duration", "soon"], "is not a duration; 300, 300s, 5m or 1h are"),
        (&["--monitor-duration", "-1"], ""),
        (&["--demo", "status"], "--demo deploys a swarm and goes with no command"),
        (&["--monitor-duration", "5", "run", "x.json"], "--monitor-duration deploys a swarm"),
        (&["bench", "everything"], "possible values"),
        (&["bench", "--trace", "x.csv"], "--trace goes with `bench balancer` and nothing else"),
        (&["bench", "ipc", "--trace", "x.csv"], "--trace goes with `bench balancer` and nothing else"),
        (&["bench", "balancer", "--trace", "nowhere.csv"], "nowhere.csv: cannot be read: No such file"),
        (&["bench", "balancer", "--trace", "."], ".: cannot be read: Is a directory"),
        (&["agent", "create"], "<KIND>"),
        (&["run", "-o", "x.npy"], "--kernel"),
        (&["run", "--kernel", "sleep", "--param", "seconds"], "KEY=VALUE is needed"),
        (&["run", "nowhere.json"], "nowhere.json: cannot be read: No such file"),
        (&["kernels", "matmull"], "did you mean matmul?"),
        (&["config", "explain", "max_agent"], "no configuration key or section is called \"max_agent\""),
        (&["config", "check", "nowhere.json"], "nowhere.json"),
        (&["--config", "nowhere.json", "status"], "nowhere.json"),
        (&["completions", "klingon"], "possible values"),
        (&["send"], "<TO>"),
        (&["send", "a", "b", "c"], "unexpected argument 'c'"),
        (&["send", "a", "b", "--reply-within", "soon"], "is not a duration"),
        (&["broadcast", "a", "--reply-within", "1"], "unexpected argument '--reply-within'"),
        (&["statistics", "everything"], "unexpected argument"),
    ] {
        let ran = place.cli(words).ends(2).complains("error: ").complains(complaint);
        assert!(ran.out.is_empty(), "{}", ran.story());
    }
    for words in [&["task"][..], &["agent"], &["config"]] {
        place.cli(words).ends(2).complains("Usage:");
    }
    place
        .cli(&["run", "--kernel", "nop"])
        .ends(2)
        .complains("no kernel is called \"nop\"; did you mean \"noop\"?");
    let too_long = "x".repeat(65);
    for name in ["", ".", "a/b", "a b", &too_long] {
        for words in [&["config", "show"][..], &["run", "--kernel", "noop"], &["--monitor-duration", "1"]] {
            place
                .finish(&mut place.command_as(name, words))
                .ends(2)
                .complains("--name")
                .complains("`name` is");
        }
    }
}

#[test]
fn recorded_traces_are_replayed_and_what_is_none_is_refused() {
    let place = Place::new();
    let bench = ["bench", "balancer", "--quick", "--json", "--trace"];
    place.write("empty.csv", "");
    place.write("other.csv", "a,b\n1,2\n");
    let header = "func_id,end_s,duration_s\n";
    place.write("wrong.csv", &format!("{header}a,1,0.5\nb,soon,1\n"));
    for (file, complaint) in [
        ("empty.csv", "empty.csv: lacks a header and rows"),
        ("other.csv", "other.csv: line 1: is no header of a trace: \"a,b\""),
        ("wrong.csv", "wrong.csv: line 3: column `end_s`: \"soon\" found, a number from"),
    ] {
        let ran = place.cli(&[&bench[..], &[file]].concat()).ends(2).complains(complaint);
        assert!(ran.out.is_empty(), "{}", ran.story());
    }
    place
        .cli(&[&bench[..], &["other.csv"]].concat())
        .complains("hint: a header has these columns:")
        .complains("submit_s,run_s,user,app");
    place.cli(&["bench", "--help"]).ends(0).says("context_tokens").says("speed_rel");
    let functions = fixture("traces/azure_functions.csv");
    let functions = functions.to_str().expect("text");
    place.write("azure_functions.csv", &std::fs::read_to_string(functions).expect("a fixture"));
    let twice = [&bench[..], &[functions, "--trace", "azure_functions.csv"]].concat();
    place.cli(&twice).ends(2).complains("another trace is called \"azure_functions\"");

    let ran = place.cli(&[&bench[..], &[functions]].concat()).ends(0);
    let rows: Vec<Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let row = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name);
        row.unwrap_or_else(|| panic!("no row {name}\n{}", ran.story()))
    };
    for suffix in ["", "_085", "_cores_070", "_cores_085"] {
        for policy in ["jsq", "ect", "learned", "learned_safe", "oracle"] {
            let row = row(&format!("{policy}/azure_functions{suffix}"));
            let number = |key: &str| row[key].as_f64().expect("a number");
            assert!(
                number("floor") > 0.0 && (number("ratio") - number("value") / number("floor")).abs() < 1e-9
            );
            let load = if suffix.ends_with("085") { "at load 0.85" } else { "at load 0.70" };
            let note = row["note"].as_str().expect("text");
            assert!(note.contains(load) && note.contains("arrivals compressed"), "{row}");
        }
        let limit = |name: String| {
            let row = row(&name);
            row["limit"].as_f64().expect("a limit") / row["floor"].as_f64().expect("a floor")
        };
        assert!((limit(format!("learned/azure_functions{suffix}")) - 0.96).abs() < 1e-9);
        assert!((limit(format!("learned_p99/azure_functions{suffix}")) - 1.10).abs() < 1e-9);
        assert!((limit(format!("learned/geometric_mean{suffix}")) - 0.75).abs() < 1e-9);
    }
    assert!(rows.iter().all(|row| row["name"] != "learned/steady_070"), "instead of the scenarios");
}

#[test]
fn commands_for_a_running_swarm_end_with_4_when_there_is_none() {
    let place = Place::new();
    place.write("job.json", r#"{"tasks": [{"kernel": "noop"}]}"#);
    for words in [
        &["status"][..],
        &["stop"],
        &["events"],
        &["events", "--follow"],
        &["task", "list"],
        &["task", "show", "x"],
        &["task", "explain", "x"],
        &["task", "cancel", "x"],
        &["agent", "list"],
        &["agent", "create", "compute"],
        &["agent", "destroy", "compute-0"],
        &["agent", "optimize", "optimization-0"],
        &["submit", "job.json"],
        &["submit", "--kernel", "noop"],
        &["status", "--json"],
        &["statistics"],
        &["statistics", "--all", "--json"],
        &["send", "compute-0", "hello"],
        &["send", "compute-0", "--reply-within", "0.5", "-7"],
        &["broadcast", "hello"],
        &["broadcast", "--topic", "t", "-"],
    ] {
        let ran = place.cli(words).ends(4).complains("no swarm named").complains("hint: start one with");
        assert!(ran.out.is_empty(), "{}", ran.story());
    }
}

#[test]
fn commands_in_hints_work_when_pasted() {
    let place = Place::new();
    let pasted = |text: &str| -> Vec<String> {
        let line = text.split('`').find(|part| part.starts_with("ai_swarm_deploy ")).expect("a command");
        let out = std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output();
        let words = String::from_utf8(out.expect("a shell").stdout).expect("text");
        words.lines().skip(1).map(str::to_owned).collect()
    };
    let state = place.beside("it's a state");
    let state = state.to_str().expect("text");
    for flags in [&["--name", place.name()][..], &["--name", place.name(), "--state-dir", state]] {
        let command = |words: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ai_swarm_deploy"));
            place.equip(&mut command);
            command.args(words).stdin(Stdio::null());
            command
        };
        // The hint of a command that found nobody starts the swarm that it asked for …
        let hint = place.finish(&mut command(&[flags, &["status"]].concat())).ends(4);
        let start = pasted(&hint.err);
        let start: Vec<&str> = start.iter().map(String::as_str).collect();
        assert_eq!(start, flags, "{}", hint.story());
        let running = place.start(&mut command(&start));
        let banner = || running.err().contains("end with").then(|| running.err());
        let banner = crate::support::until("it has started", banner, || running.err());
        // … and what the swarm says of its end, ends it.
        let end = banner.lines().find(|line| line.contains("end with")).expect("just seen");
        let stop = pasted(end);
        let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
        assert_eq!(stop, [flags, &["stop"]].concat(), "{banner}");
        place.finish(&mut command(&stop)).ends(0);
        running.finish().ends(0);
    }
}

#[test]
fn configurations_are_checked_explained_and_shown() {
    let place = Place::new();
    let theirs = concat!(env!("CARGO_MANIFEST_DIR"), "/swarm_config.json");
    place.cli(&["config", "check", theirs]).ends(0).says("fine, 10 keys set");
    let checked = place.cli(&["config", "check", theirs, "--json"]).ends(0).json();
    assert_eq!((&checked["ok"], &checked["keys_set"]), (&json!(true), &json!(10)));
    place.cli(&["--config", theirs, "config", "check"]).ends(0).says("swarm_config.json: fine");
    place.cli(&["config", "check"]).ends(0).says("built-in defaults: fine");

    place.write("wrong.json", r#"{"max_agent": 3, "monitoring_interval": -1}"#);
    place
        .cli(&["config", "check", "wrong.json"])
        .ends(2)
        .complains("unknown key `max_agent`")
        .complains("did you mean `max_agents`?")
        .complains("`monitoring_interval` is -1");

    place.cli(&["config", "explain"]).ends(0).says("performance_thresholds.thermal_critical");
    place.cli(&["config", "explain", "agents.fault"]).ends(0).says("hang_after_s");
    let rows = place.cli(&["config", "explain", "--json"]).ends(0).json();
    assert!(rows.as_array().expect("rows").len() > 30, "{rows}");
    let rows = place.cli(&["config", "explain", "max_agents", "--json"]).ends(0).json();
    assert_eq!((rows.as_array().map(Vec::len), &rows[0]["key"]), (Some(1), &json!("max_agents")), "{rows}");

    for words in [&["config", "explain", "hang_after"][..], &["config", "explain", "hang_after", "--json"]] {
        let ran = place.cli(words).ends(2).complains("hint: the nearest is `agents.fault.hang_after_s`");
        assert!(ran.out.is_empty(), "{}", ran.story());
    }

    place.write("swarm_config.json", r#"{"max_agents": 7}"#);
    place.cli(&["config", "show"]).ends(0).says("max_agents").says("swarm_config.json").says(place.name());
    let shown = place.cli(&["config", "show", "--json"]).ends(0).json();
    assert!(shown.to_string().contains("max_agents"), "{shown}");
    let mut command = place.command(&["config", "show"]);
    let path = place.write("other.json", r#"{"max_agents": 9}"#);
    place.finish(command.env("AI_SWARM_CONFIG", path)).ends(0).says("other.json");
}

#[test]
fn the_doctor_tells_what_is_there_and_why_the_rest_is_not() {
    let place = Place::new();
    let text = place.cli(&["doctor"]).ends(0);
    assert!(text.out.lines().count() > 10, "{}", text.story());
    assert!(
        text.out.lines().all(|line| line.chars().count() <= 80),
        "wider than 80 columns\n{}",
        text.story()
    );
    let report = place.cli(&["doctor", "--json"]).ends(0).json();
    assert!(report.as_object().is_some_and(|object| object.len() > 5), "{report:#}");
    let hot = json!({"agents": {"thermal": {"root": fixture("sensors/hot")}}});
    place.write("hot.json", &hot.to_string());
    place.cli(&["--config", "hot.json", "doctor"]).ends(0).says("97");
}

#[test]
fn kernels_are_listed_with_their_parameters() {
    let place = Place::new();
    let text = place.cli(&["kernels"]).ends(0).out;
    let all = place.cli(&["kernels", "--json"]).ends(0).json();
    let all = all.as_array().expect("a list");
    assert_eq!(all.len(), 25, "{all:#?}");
    for kernel in all {
        let name = kernel["kernel"].as_str().expect("a name");
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not in\n{text}");
    }
    let one = place.cli(&["kernels", "knn"]).ends(0).says("--param metric").says("cosine");
    assert!(!one.out.contains("matmul"), "{}", one.story());
}

#[test]
fn completions_are_written_for_every_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script =
            place.cli(&["completions", shell]).ends(0).says("ai_swarm_deploy").says("monitor-duration");
        assert!(script.err.is_empty(), "{}", script.story());
    }
    let script = place.cli(&["completions", "bash"]).ends(0).out;
    place.write("completions", &script);
    let mut bash = std::process::Command::new("bash");
    place.equip(&mut bash);
    place.finish(bash.args(["-n", "completions"])).ends(0);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    for words in [
        &["kernels"][..],
        &["config", "explain"],
        &["config", "show", "--json"],
        &["doctor", "--json"],
        &["completions", "bash"],
        &["--help"],
        &["run", "--kernel", "monte_carlo", "--param", "paths=1000", "--quiet"],
        &["run", "--kernel", "noop", "--json", "--quiet"],
    ] {
        let mut child = place
            .command(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ended");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {complaint}");
        assert!(complaint.is_empty(), "{words:?}: {complaint}");
    }
}

#[test]
fn colour_comes_only_when_asked_for() {
    let swarm = Swarm::deploy(&json!({}));
    let escapes = |words: &[&str], no_color: Option<&str>| {
        let mut command = swarm.place.command(words);
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        let ran = swarm.place.finish(command.stdin(Stdio::null())).ends(0);
        ran.out.contains('\x1b') || ran.err.contains('\x1b')
    };
    assert!(!escapes(&["status"], None), "standard output is no terminal");
    assert!(!escapes(&["status"], Some("1")), "NO_COLOR");
    assert!(!escapes(&["status", "--color", "never"], None));
    assert!(escapes(&["status", "--color", "always"], None));
    // The flag is the nearer word.
    assert!(escapes(&["status", "--color", "always"], Some("1")));
    swarm.end();
}

#[test]
fn commands_of_a_running_swarm_speak_text_and_json() {
    let swarm = Swarm::deploy(&json!({}));
    let place = &swarm.place;
    let job = place
        .write("job.json", r#"{"tasks": [{"id": "a", "kernel": "sleep", "params": {"seconds": 0.01}}]}"#);
    place.cli(&["submit", job.to_str().expect("text"), "--wait"]).ends(0).says("a  succeeded");
    let answer = place.cli(&["submit", "--kernel", "noop", "--json"]).ends(0).json();
    let id = answer["tasks"][0]["id"].as_str().expect("an id").to_owned();
    swarm.until_task(&id, "succeeded");

    place
        .cli(&["status"])
        .ends(0)
        .says(&format!("swarm {}", place.name()))
        .says("running for")
        .says("compute-0");
    assert_eq!(place.cli(&["status", "--json"]).ends(0).json()["state"], "running");
    place.cli(&["task", "list"]).ends(0).says("succeeded").says("sleep");
    let tasks = place.cli(&["task", "list", "--json", "--state", "succeeded", "--limit", "1"]).ends(0).json();
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1), "{tasks}");
    place.cli(&["task", "list", "--state", "happy"]).ends(2).complains("`state` is \"happy\"");
    place.cli(&["task", "show", "a"]).ends(0).says("succeeded").says("compute-");
    assert_eq!(place.cli(&["task", "show", "a", "--json"]).ends(0).json()["id"], "a");
    place.cli(&["task", "explain", "a"]).ends(0).says("It ran");
    let explained = place.cli(&["task", "explain", "a", "--json"]).ends(0).json();
    assert!(explained["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{explained}");
    place.cli(&["task", "show", "nobody"]).ends(1).complains("no task has the id \"nobody\"");
    place.cli(&["task", "cancel", "a"]).ends(1).complains("has ended already: succeeded");

    place.cli(&["agent", "list"]).ends(0).says("thermal-0").says("ready");
    let agents = place.cli(&["agent", "list", "--json"]).ends(0).json();
    assert!(agents["agents"].as_array().is_some_and(|agents| agents.len() >= 6), "{agents}");
    place
        .cli(&["agent", "create", "gardener"])
        .ends(2)
        .complains("`kind` is \"gardener\", needs one of compute");
    place.cli(&["agent", "create", "compute", "--id", "extra"]).ends(0).says("agent extra");
    place.cli(&["agent", "destroy", "extra"]).ends(0).says("ends for good");
    place.cli(&["agent", "destroy", "nobody"]).ends(1).complains("no agent has the id");
    place.cli(&["agent", "optimize", "optimization-0", "--no-wait"]).ends(0).says("was told to tune");
    place.cli(&["agent", "optimize", "compute-0"]).ends(1).complains("tuned by the optimization agent");

    place.cli(&["events"]).ends(0).says("agent_ready");
    let events = place.cli(&["events", "--json"]).ends(0).out;
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["seq"].is_u64() && event["time"].is_string() && event["kind"].is_string(), "{event}");
    }
    place.cli(&["stop", "--json"]).ends(0).says("\"ok\":true");
    swarm.ends(0);
}

#[test]
fn statistics_show_who_talks_to_whom() {
    let swarm = Swarm::deploy(&json!({}));
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    let text = swarm.place.cli(&["statistics"]).ends(0);
    let text = text.says("tasks      1 in all, 1 succeeded").says("CHANNEL").says("loop").says("LATENCY");
    let row =
        |agent: &str, text: &str| text.lines().any(|line| line.contains(agent) && line.contains("normal"));
    assert!(row("supervisor → compute-", &text.out) && row("compute-", &text.out), "{}", text.story());
    let all = swarm.place.cli(&["statistics", "--all"]).ends(0);
    assert!(all.out.lines().count() > text.out.lines().count(), "{}", all.story());
    let view = swarm.place.cli(&["statistics", "--json"]).ends(0).json();
    for key in ["channels", "topics", "arenas", "members"] {
        assert!(view[key].is_array(), "{key}: {view:#}");
    }
    assert!(view["closed_channels"].is_object() && view["turns"].is_u64(), "{view:#}");
    let channel = &view["channels"][0];
    assert_eq!(
        (&channel["state"], channel["lanes"].as_array().map(Vec::len)),
        (&json!("open"), Some(3)),
        "{channel:#}"
    );
    for key in ["sent", "received", "bytes_sent", "bytes_received", "depth", "high_water", "capacity"] {
        assert!(channel["lanes"][1][key].is_u64(), "{key}: {channel:#}");
    }
    assert!(channel["lanes"][1]["dropped"]["full"].is_u64(), "{channel:#}");
    swarm.end();
}

#[test]
fn standard_error_is_json_through_and_through_when_asked_for() {
    let place = Place::new();
    place.write(
        "job.json",
        r#"{"tasks": [{"id": "bad", "kernel": "sort", "inputs": ["no.npy"], "output": "x.npy"}]}"#,
    );
    place.write("wrong.json", r#"{"max_agent": 3}"#);
    for (words, code, message) in [
        (&["--monitor-duration", "0.3"][..], 0, "end with"),
        (&["run", "job.json"], 1, "task \"bad\" failed: "),
        (&["status"], 4, "no swarm named"),
        (&["--config", "wrong.json", "status"], 2, "unknown key `max_agent`"),
    ] {
        let ran = place.cli(&[&["--log-format", "json"], words].concat()).ends(code);
        let lines = ran.err.lines().map(|line| {
            let value: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}\n{}", ran.story()));
            assert!(value["timestamp"].is_string() && value["level"].is_string(), "{line}");
            value["message"].as_str().unwrap_or_default().to_owned()
        });
        let lines: Vec<String> = lines.collect();
        assert!(lines.iter().any(|line| line.contains(message)), "{message:?} is not in\n{}", ran.story());
    }
    // Not asked for, and nobody reads along: log lines are JSON, words for people stay words.
    let ran = place.cli(&["--monitor-duration", "0.3"]).ends(0).complains("\n  end with  Ctrl-C");
    let (logs, words): (Vec<&str>, Vec<&str>) = ran.err.lines().partition(|line| line.starts_with('{'));
    assert!(logs.iter().any(|line| line.contains("agent_ready")), "{}", ran.story());
    assert!(logs.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", ran.story());
    assert!(words.iter().all(|line| !line.contains("\"level\"")), "{}", ran.story());
}

#[test]
fn messages_are_checked_before_they_are_sent() {
    let place = Place::new();
    let large = "x".repeat((1 << 20) + 1);
    for words in [&["send", "a"][..], &["broadcast", "-"]] {
        place.cli_with(words, &large).ends(2).complains("at most 1048576 bytes");
    }
    let swarm = Swarm::deploy(&json!({}));
    swarm.place.cli(&["send", "", "hello"]).ends(2).complains("`to` is empty");
    swarm.place.cli(&["send", "a", "hello", "--reply-within", "2h"]).ends(2).complains("at most 3600");
    swarm.place.cli(&["broadcast", "hello", "--topic", ""]).ends(2).complains("`topic` is \"\"");
    swarm.end();
}

#[test]
fn results_go_to_standard_output_and_all_else_to_standard_error() {
    let place = Place::new();
    let words = ["run", "--kernel", "monte_carlo", "--param", "paths=1000"];
    let ran = place.cli(&words).ends(0).complains("1 of 1 task succeeded");
    let (id, result) = ran.out.trim_end().split_once('\t').unwrap_or_else(|| panic!("{}", ran.story()));
    assert_eq!(id, "t1");
    assert!(serde_json::from_str::<Value>(result).is_ok_and(|result| result["price"].is_f64()), "{result}");
    let quiet = place.cli(&[&words[..], &["--quiet"]].concat()).ends(0);
    assert!(quiet.err.is_empty() && !quiet.out.is_empty(), "{}", quiet.story());
}
