//! How swarms begin, live side by side, and end: in order, by signals, and by the kernel's hand.

use crate::support::{
    KINDS, Place, Swarm, children, fixture, has_fields, is_report, kill_with_reaper, lives, request, send,
    signal, until,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn a_swarm_for_a_while_ends_by_itself_with_a_summary() {
    let place = Place::new();
    let began = Instant::now();
    let ran = place.cli(&["--monitor-duration", "1", "--report", "report.json"]).ends(0);
    let ran = ran.complains("0 of 0 tasks succeeded").complains("compute-0").complains("end with  Ctrl-C");
    assert!(ran.out.is_empty(), "{}", ran.story());
    let report: Value =
        serde_json::from_str(&fs::read_to_string(place.path("report.json")).expect("a report"))
            .expect("JSON");
    is_report(&report);
    assert!(began.elapsed() >= Duration::from_secs(1), "it was asked for a second: {report:#}");
    place.is_clean();
    let report = place.cli(&["--monitor-duration", "0.2s", "--json", "--quiet"]).ends(0).json();
    is_report(&report);
}

#[test]
fn the_first_lines_say_what_is_seen_and_what_is_not_and_why() {
    let place = Place::new();
    place.write("swarm_config.json", r#"{"agents": {"thermal": {"root": "/nowhere"}}}"#);
    let ran = place.cli(&["--monitor-duration", "0.1"]).ends(0);
    for words in
        ["cores", "kernels on", ", supervisor on core", "blind to", "swarm_config.json", "control.sock"]
    {
        assert!(ran.err.contains(words), "{words:?} is not in\n{}", ran.story());
    }
}

#[test]
fn processes_of_agents_carry_their_names() {
    let swarm = Swarm::deploy(&json!({}));
    let lines = swarm.place.processes();
    for agent in ["compute-0", "thermal-0"] {
        let is_named = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&"__agent")
                && words.get(2) == Some(&agent)
                && words.last() == Some(&swarm.place.name())
        };
        assert_eq!(lines.iter().map(|(_, line)| &**line).filter(is_named).count(), 1, "{agent}: {lines:#?}");
    }
    swarm.end();
}

/// A pager that was stopped, a log collector that hangs: the words wait, the swarm does not.
#[test]
fn a_standard_error_that_nobody_reads_holds_nothing_up() {
    for is_full_at_once in [true, false] {
        let place = Place::new();
        let (reader, mut pipe) = std::io::pipe().expect("a pipe");
        if is_full_at_once {
            pipe.write_all(&[b'x'; 65_536 - 8]).expect("there is room");
        }
        let mut command = place.command(&[]);
        let out = fs::File::create(place.path("out")).expect("a file");
        command.stdin(Stdio::null()).stdout(out).stderr(pipe.try_clone().expect("a copy"));
        let mut child = command.spawn().expect("it starts");
        let answers = || send(&place.socket(), &request("GET", "/healthz", None)).map(drop);
        until("it answers", answers, || "no answer".to_owned());
        if !is_full_at_once {
            // What it said so far is there; the rest of the room is ours.
            let said = rustix::io::ioctl_fionread(&reader).expect("a number") as usize;
            pipe.write_all(&vec![b'x'; 65_536 - said - 8]).expect("there is room");
        }
        place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
        place.cli(&["agent", "restart", "compute-0"]).ends(0);
        assert!(signal(child.id(), Signal::TERM));
        let status = until("it ends", || child.try_wait().expect("our child"), || "it does not".to_owned());
        assert_eq!(status.code(), Some(0));
        drop(reader);
        place.is_clean();
    }
}

#[test]
fn signals_and_stop_end_it_well() {
    for which in [Signal::INT, Signal::TERM] {
        let swarm = Swarm::deploy(&json!({}));
        swarm.signal(which);
        is_report(&swarm.ends(0));
    }
    let swarm = Swarm::deploy(&json!({}));
    swarm.place.cli(&["stop"]).ends(0).complains("stopped after");
    // `stop` came back: its place is free at once.
    assert!(swarm.place.processes().is_empty(), "{:?}", swarm.place.processes());
    swarm.ends(0);
}

#[test]
fn running_tasks_may_finish_and_waiting_ones_are_cancelled_at_the_end() {
    let swarm = Swarm::deploy(
        &json!({"agents": {"compute": {"count": 1}}, "tasks": {"window": 1, "batch": 1, "drain_s": 600}}),
    );
    swarm.submit(&json!([
        {"id": "runs", "kernel": "sleep", "params": {"seconds": 0.5}},
        {"id": "waits", "kernel": "sleep", "params": {"seconds": 0.5}},
    ]));
    swarm.until_task("runs", "running");
    let report = swarm.end();
    let state = |id: &str| crate::support::detail(&report, id)["state"].clone();
    assert_eq!((state("runs"), state("waits")), (json!("succeeded"), json!("cancelled")), "{report:#}");
    assert_eq!(report["tasks"]["lost"], 0);
}

#[test]
fn a_second_signal_hurries() {
    let swarm = Swarm::deploy(&json!({"tasks": {"drain_s": 3600}}));
    swarm.submit(&json!([{"id": "long", "kernel": "sleep", "params": {"seconds": 3600}}]));
    swarm.until_task("long", "running");
    swarm.signal(Signal::INT);
    swarm.until("it drains", |swarm| (swarm.status()["state"] == "draining").then_some(()));
    let refused =
        swarm.ask("POST", "/api/v1/tasks/submit", Some(&json!({"tasks": [{"kernel": "noop"}]}))).json();
    assert!(
        refused["tasks"][0]["error"].as_str().is_some_and(|error| error.contains("stopping")),
        "{refused}"
    );
    swarm.signal(Signal::INT);
    let report = swarm.ends(0);
    assert_eq!(crate::support::detail(&report, "long")["state"], "cancelled", "{report:#}");
}

#[test]
fn a_second_swarm_of_the_same_name_is_refused() {
    let swarm = Swarm::deploy(&json!({}));
    let pid = swarm.running.pid();
    swarm
        .place
        .cli(&["--monitor-duration", "60"])
        .ends(1)
        .complains(&format!("swarm {:?} is already running (process {pid})", swarm.place.name()))
        .complains(&format!(
            "hint: stop it with `ai_swarm_deploy --name {} stop`, or give this one another --name",
            swarm.place.name()
        ));
    // And the first did not notice; a run of one's own is no second swarm.
    assert_eq!(swarm.status()["state"], "running");
    swarm.place.cli(&["run", "--kernel", "noop"]).ends(0);
    swarm.end();
}

#[test]
fn swarms_of_different_names_live_side_by_side() {
    let place = Place::new();
    let names = ["a", "b"].map(|end| format!("{}-{end}", place.name()));
    let start = |name: &String| place.start(place.command_as(name, &[]).stdin(Stdio::null()));
    let running = names.each_ref().map(start);
    let socket = |name: &str| place.beside("runtime/ai_swarm").join(name).join("control.sock");
    for name in &names {
        until(
            &format!("{name} is ready"),
            || send(&socket(name), &request("GET", "/readyz", None)).filter(|answer| answer.status == 200),
            || running.iter().map(|running| running.err()).collect(),
        );
    }
    let status = |name: &str| place.finish(&mut place.command_as(name, &["status", "--json"])).ends(0).json();
    assert_eq!(
        names.each_ref().map(|name| status(name)["swarm"].clone()),
        names.each_ref().map(|name| json!(name))
    );
    let submit =
        |name: &str| place.finish(&mut place.command_as(name, &["submit", "--kernel", "noop", "--wait"]));
    for name in &names {
        submit(name).ends(0);
    }
    assert_eq!(place.segments().len(), 2, "{:?}", place.segments());
    place.finish(&mut place.command_as(&names[0], &["stop"])).ends(0);
    assert_eq!(status(&names[1])["tasks"]["succeeded"], 1);
    place.finish(&mut place.command_as(&names[1], &["stop"])).ends(0);
    for running in running {
        running.finish().ends(0);
    }
    place.is_clean();
}

#[test]
fn a_state_directory_of_ones_own_holds_everything() {
    let place = Place::new();
    let home = place.beside("home");
    let home = home.to_str().expect("text");
    let running = place.start(place.command(&["--state-dir", home]).stdin(Stdio::null()));
    let socket = place.beside("home/control.sock");
    until(
        "it is ready",
        || send(&socket, &request("GET", "/readyz", None)).filter(|answer| answer.status == 200),
        || running.err(),
    );
    assert!(!place.socket().exists());
    place.cli(&["status"]).ends(4);
    place.cli(&["--state-dir", home, "status"]).ends(0).says("running for");
    assert!(fs::read_to_string(place.beside("home/swarm.log")).is_ok_and(|log| !log.is_empty()), "a log");
    place.cli(&["--state-dir", home, "stop"]).ends(0);
    running.finish().ends(0);
    assert!(!socket.exists());
}

#[test]
fn when_the_supervisor_is_killed_its_agents_go_and_the_next_start_cleans_up() {
    let swarm = Swarm::deploy(&json!({}));
    // Busy and idle agents alike.
    let long = swarm.submit(&json!([{"kernel": "sleep", "params": {"seconds": 3600}}, {"kernel": "monte_carlo", "params": {"paths": 1e12}}]));
    swarm.until("both run", |swarm| (swarm.status()["in_flight"] == 2).then_some(()));
    let agents = children(swarm.running.pid());
    assert!(agents.len() >= 6, "{agents:?}");
    let place = swarm.kill_with_reaper();
    let gone = || agents.iter().all(|pid| !lives(*pid)).then_some(());
    until("every agent is gone", gone, || format!("{agents:?}"));
    let old = place.segments();
    assert_eq!(old.len(), 1, "what a killed swarm cannot remove: {old:?}");
    assert!(place.socket().exists());
    place.cli(&["status"]).ends(4);

    let swarm = Swarm::deploy_in(place, &json!({}), &[]);
    let new = swarm.place.segments();
    assert!(new.len() == 1 && new != old, "{old:?} was to go, {new:?} is there");
    // What was accepted goes on where there was nobody left to do it.
    swarm.until("both run again", |swarm| (swarm.status()["in_flight"] == 2).then_some(()));
    for task in long.as_array().expect("a list") {
        swarm.place.cli(&["task", "cancel", task["id"].as_str().expect("an id")]).ends(0);
    }
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    swarm.end();
}

#[test]
fn a_killed_run_leaves_nothing_that_the_next_does_not_remove() {
    let place = Place::new();
    let mut command =
        place.command(&["run", "--kernel", "sleep", "--param", "seconds=3600", "--log-level", "info"]);
    let running = place.start(command.stdin(Stdio::null()));
    until("an agent is ready", || running.err().contains("agent_ready").then_some(()), || running.err());
    kill_with_reaper(running.pid());
    running.finish();
    until(
        "its agents are gone",
        || place.processes().is_empty().then_some(()),
        || format!("{:?}", place.processes()),
    );
    assert_eq!(place.segments().len(), 1, "{:?}", place.segments());
    place.cli(&["run", "--kernel", "noop"]).ends(0);
    place.is_clean();
}

#[test]
fn all_kinds_run_on_the_cores_that_are_reported() {
    let swarm = Swarm::deploy(&json!({}));
    let agents = swarm.agents();
    let kinds: BTreeSet<&str> = agents.iter().filter_map(|agent| agent["kind"].as_str()).collect();
    assert_eq!(kinds, KINDS.into_iter().collect(), "{agents:#?}");
    let list = swarm.place.cli(&["agent", "list"]).ends(0).out;
    for agent in &agents {
        has_fields(
            agent,
            &[
                ("id", "s"),
                ("kind", "s"),
                ("state", "s"),
                ("pid", "u"),
                ("incarnation", "u"),
                ("cores", "a"),
                ("restarts", "u"),
            ],
            "agent",
        );
        assert!(list.contains(agent["id"].as_str().expect("an id")), "{list}");
        let status = fs::read_to_string(format!("/proc/{}/status", agent["pid"])).expect("it lives");
        let allowed =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list of cores");
        assert_eq!(agent["cores"].to_string(), format!("[{}]", allowed.trim()), "{agent}");
    }
    let computes = agents.iter().filter(|agent| agent["kind"] == "compute");
    let cores: BTreeSet<String> = computes.clone().map(|agent| agent["cores"].to_string()).collect();
    assert_eq!(cores.len(), computes.count(), "as long as there are cores, compute agents have one each");
    // Each is a process of its own: a child of the supervisor.
    let pids: BTreeSet<u32> =
        agents.iter().map(|agent| agent["pid"].as_u64().expect("a number") as u32).collect();
    let own: BTreeSet<u32> = children(swarm.running.pid()).into_iter().collect();
    assert!(pids.is_subset(&own), "{pids:?} of {own:?}");
    assert!(own.len() <= pids.len() + 1, "who is no agent is a standby: {pids:?} of {own:?}");
    swarm.end();
}

#[test]
fn kinds_can_be_switched_off() {
    let off = json!({"count": 0});
    let agents = json!({"resource": off, "optimization": off, "thermal": off, "fault": off, "learning": off});
    let swarm = Swarm::deploy(&json!({"agents": agents}));
    assert!(swarm.agents().iter().all(|agent| agent["kind"] == "compute"));
    let temperature = &swarm.status()["host"]["temperature_celsius"];
    assert_eq!(temperature["unavailable"], "no thermal agent runs", "{temperature}");
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    swarm.end();
}

#[test]
fn what_cannot_be_read_has_a_reason_and_no_value() {
    let swarm =
        Swarm::deploy(&json!({"monitoring_interval": 0.05, "agents": {"thermal": {"root": "/nowhere"}}}));
    let sampled = |swarm: &Swarm| {
        let host = swarm.status()["host"].clone();
        let read = host["cpu_percent"]["value"].is_number();
        let why = host["temperature_celsius"]["unavailable"].as_str().unwrap_or("not read yet").to_owned();
        (read && why != "not read yet").then_some(host)
    };
    let host = swarm.until("the host was looked at", sampled);
    for (name, known) in host.as_object().expect("an object") {
        let (value, why) = (&known["value"], &known["unavailable"]);
        assert!(value.is_number() != why.as_str().is_some_and(|why| !why.is_empty()), "{name}: {known}");
    }
    assert!(
        host["memory_percent"]["value"].as_f64().is_some_and(|percent| percent > 0.0 && percent < 100.0),
        "{host:#}"
    );
    let text = swarm.place.cli(&["status"]).ends(0).out;
    assert!(text.contains("hottest —"), "{text}");
    swarm.end();
}

#[test]
fn too_hot_raises_one_alert_and_a_cap() {
    let config = json!({
        "monitoring_interval": 0.02,
        "agents": {"thermal": {"root": fixture("sensors/hot")}, "compute": {"count": 2}},
    });
    let swarm = Swarm::deploy(&config);
    swarm.until("a cap is in force", |swarm| {
        swarm.status()["host"]["compute_agents_cap"]["value"].as_f64().filter(|cap| *cap == 1.0)
    });
    let host = swarm.status()["host"].clone();
    assert_eq!(host["temperature_celsius"]["value"], 97.0, "{host:#}");
    let alerts = swarm.events_of("performance_alert");
    let hot: Vec<&Value> = alerts.iter().filter(|alert| alert["agent"] == "thermal-0").collect();
    assert_eq!(hot.len(), 1, "one alert for one episode: {alerts:#?}");
    assert_eq!(hot[0]["severity"], "alert");
    assert!(
        hot[0]["text"].as_str().expect("words").contains("97.0 °C is at or over thermal_critical 85.0 °C"),
        "{}",
        hot[0]
    );
    assert!(!swarm.events_of("concurrency_cap").is_empty());
    // Under the cap at most one agent has work, and the work gets done. The supervisor looks at the cap every few
    // milliseconds, so the first round may have begun before it did.
    for round in 0..2 {
        let pause = json!({"seconds": 0.005});
        let task = |n| json!({"id": format!("r{round}-{n}"), "kernel": "sleep", "params": pause});
        swarm.submit(&(0..20).map(task).collect());
        swarm.until("all is done", |swarm| {
            let agents = swarm.agents();
            let busy = agents.iter().filter(|agent| agent["in_flight"].as_u64() > Some(0)).count();
            assert!(round == 0 || busy <= 1, "{agents:#?}");
            (swarm.status()["tasks"]["succeeded"] == 20 * (round + 1)).then_some(())
        });
    }
    swarm.end();
}

#[test]
fn a_state_directory_that_cannot_be_is_the_hosts_fault() {
    let place = Place::new();
    let file = place.write("file", "not a folder");
    let below = file.join("state");
    let below = below.to_str().expect("text");
    for words in [&["--monitor-duration", "1"][..], &["run", "--kernel", "noop"]] {
        place
            .cli(&[&["--state-dir", below], words].concat())
            .ends(3)
            .complains("cannot create state directory")
            .complains("hint: name a folder that can be written with --state-dir");
    }
    let long = place.beside(&"x".repeat(120));
    let words = ["--state-dir", long.to_str().expect("text"), "--monitor-duration", "1"];
    place.cli(&words).ends(3).complains("at most 107 are possible");
    place.is_clean();
}

#[test]
fn too_little_shared_memory_is_an_error_and_not_a_crash() {
    let place = Place::new();
    let can_mount = |command: &mut Command| {
        let mounted = command.args(["sh", "-c", "mount -t tmpfs -o size=64k tmpfs /dev/shm"]).output();
        mounted.is_ok_and(|output| output.status.success())
    };
    let unshare = [&["-m"][..], &["-U", "-r", "-m"]];
    let Some(words) = unshare.into_iter().find(|words| can_mount(Command::new("unshare").args(*words)))
    else {
        println!("skipped: no mount namespace may be made here");
        return;
    };
    let mut command = Command::new("unshare");
    place.equip(&mut command);
    let script =
        "mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 61440 /dev/zero > /dev/shm/fill && exec \"$@\"";
    let binary = env!("CARGO_BIN_EXE_ai_swarm_deploy");
    command.args(words).args([
        "sh",
        "-c",
        script,
        "sh",
        binary,
        "--name",
        place.name(),
        "run",
        "--kernel",
        "noop",
    ]);
    place.finish(&mut command).ends(3).complains("/dev/shm").complains("hint: free some shared memory");
}

#[test]
fn dead_agents_stay_dead_without_fault_tolerance() {
    let swarm = Swarm::deploy(&json!({"fault_tolerance": false, "agents": {"compute": {"count": 2}}}));
    let pid = swarm.agent("compute-0")["pid"].as_u64().expect("a process") as u32;
    assert!(signal(pid, Signal::KILL));
    swarm.until("it is stopped", |swarm| (swarm.agent("compute-0")["state"] == "stopped").then_some(()));
    assert_eq!(swarm.events_of("agent_not_restarted").len(), 1);
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    assert_eq!(swarm.agent("compute-0")["restarts"], 0);
    swarm.end();
}

#[test]
fn without_a_gateway_signals_still_work() {
    let place = Place::new();
    place.write("config.json", r#"{"gateway": {"enabled": false}}"#);
    let running = place.start(place.command(&["--config", "config.json"]).stdin(Stdio::null()));
    until("an agent is ready", || running.err().contains("agent_ready").then_some(()), || running.err());
    assert!(!place.socket().exists());
    place.cli(&["status"]).ends(4);
    assert!(signal(running.pid(), Signal::TERM));
    running.finish().ends(0);
    place.is_clean();
}

#[test]
fn the_demonstration_shows_its_gains_and_a_recovery() {
    let place = Place::new();
    let ran = place.cli(&["--demo", "--report", "report.json"]).ends(0);
    for words in [
        "DEMONSTRATION",
        "What vector code gains",
        "The mix:",
        "was killed with signal 9 on purpose",
        "0 lost, 0 done twice",
    ] {
        assert!(ran.out.contains(words), "{words:?} is not in\n{}", ran.story());
    }
    let report: Value =
        serde_json::from_str(&fs::read_to_string(place.path("report.json")).expect("a report"))
            .expect("JSON");
    is_report(&report);
    assert_eq!(report["tasks"]["succeeded"], report["tasks"]["total"], "{report:#}");
    assert!(!report["recoveries"].as_array().expect("a list").is_empty());
    // The journal remembers the tasks of the first one.
    place.cli(&["--demo"]).ends(0);
    place.is_clean();
}
