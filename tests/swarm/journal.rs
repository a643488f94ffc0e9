//! What was accepted outlives the supervisor: kills at any moment, damaged files, disks that fail and disks that are full.

use crate::hedging::pid;
use crate::support::{Place, Swarm, read_array, request, send, signal, signal_child};
use ai_swarm::base::prng::SplitMix64;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn config(level: &str) -> Value {
    json!({
        "durability": {"level": level},
        "agents": {"compute": {"count": 2}},
        "tasks": {"drain_s": 5},
    })
}

/// Names of a task that is known by now, however it ended.
fn states(swarm: &Swarm) -> BTreeMap<String, Value> {
    let tasks = swarm.get("/api/v1/tasks?limit=10000")["tasks"].as_array().expect("a list").clone();
    tasks.into_iter().map(|task| (task["id"].as_str().expect("a name").to_owned(), task)).collect()
}

fn count(tasks: &BTreeMap<String, Value>, state: &str) -> usize {
    tasks.values().filter(|task| task["state"] == state).count()
}

fn folder(place: &Place) -> PathBuf {
    place.beside("state/ai_swarm").join(place.name())
}

/// The answer to a submission, whatever it is.
fn try_submit(swarm: &Swarm, tasks: &Value) -> (u16, String) {
    let job = json!({"tasks": tasks, "base_dir": swarm.place.path("")});
    let answer = swarm.ask("POST", "/api/v1/tasks/submit", Some(&job));
    (answer.status, answer.body.clone())
}

/// What later lives know of ended tasks is what the configuration says; what has not ended they know whatever it says.
#[test]
fn ended_tasks_are_forgotten_as_the_configuration_says() {
    for kept in [json!({"keep_tasks": 20}), json!({"keep_days": 1e-5})] {
        let mut config = config("process");
        config["durability"] = kept.clone();
        config["tasks"]["drain_s"] = json!(0);
        let swarm = Swarm::deploy(&config);
        swarm.submit(&json!([{"id": "open", "kernel": "sleep", "params": {"seconds": 3600}}]));
        for round in 0..40 {
            let tasks = (0..25).map(|at| json!({"id": format!("t{round}-{at}"), "kernel": "noop"}));
            swarm.submit(&tasks.collect());
            swarm.until_task(&format!("t{round}-24"), "succeeded");
        }
        let mut place = swarm.kill();
        let mut lives = 0;
        loop {
            let swarm = Swarm::deploy_in(place, &config, &[]);
            let known = states(&swarm);
            assert!(known.contains_key("open"), "{kept}: {:?}", known.keys());
            if kept.get("keep_tasks").is_some() {
                assert!(known.contains_key("t39-24"), "the newest: {:?}", known.keys());
                assert!(known.len() > 20, "{}", known.len());
            }
            // What ended last lies in a row with others, and a row is kept whole: at most some two hundred tasks.
            if !known.contains_key("t0-0") && known.len() < 600 {
                swarm.end();
                break;
            }
            lives += 1;
            assert!(lives < 10, "{kept}: nothing was forgotten: {:?}", known.keys());
            std::thread::sleep(Duration::from_millis(1500));
            place = swarm.kill();
        }
    }
}

/// Kill -9 of the supervisor at random moments, while tasks wait, run and end; then a new start on the same folder.
#[test]
fn accepted_tasks_survive_kills_of_the_supervisor_and_ended_ones_stay_ended() {
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos()
            as u64;
    println!("seed {seed}");
    let mut random = SplitMix64::new(seed);
    let mut place = Place::new();
    place.write_array("ones.npy", &[40, 40], &vec![1.0f64; 1600]);
    let mut accepted = Vec::new();
    let mut ended: BTreeMap<String, Value> = BTreeMap::new();
    let rounds = 12;
    for round in 0..rounds {
        let level = if round % 3 == 2 { "power" } else { "process" };
        let swarm = Swarm::deploy_in(place, &config(level), &[]);
        let now = states(&swarm);
        for (name, before) in &ended {
            let after = now.get(name).unwrap_or_else(|| panic!("{name} is forgotten; seed {seed}"));
            assert_eq!(
                [&after["state"], &after["attempts"], &after["result"], &after["finished_ns"]],
                [&before["state"], &before["attempts"], &before["result"], &before["finished_ns"]],
                "{name} ended once already; seed {seed}"
            );
        }
        for name in &accepted {
            assert!(now.contains_key(name), "{name} was accepted and is lost; seed {seed}");
        }
        let names: Vec<String> = (0..12).map(|task| format!("r{round}-{task}")).collect();
        let tasks: Vec<Value> = (0..12)
            .map(|task| match task % 4 {
                0 => json!({"id": names[task], "kernel": "matmul", "inputs": ["ones.npy", "ones.npy"],
                            "output": format!("{}.npy", names[task])}),
                1 => json!({"id": names[task], "kernel": "sleep", "params": {"seconds": 0.02}}),
                2 => json!({"id": names[task], "kernel": "reduce", "inputs": ["ones.npy"]}),
                _ => json!({"id": names[task], "kernel": "noop", "after": [names[task - 2]]}),
            })
            .collect();
        swarm.submit(&json!(tasks));
        accepted.extend(names);
        std::thread::sleep(Duration::from_micros(random.next_u64() % 120_000));
        if round % 2 == 0 {
            ended = states(&swarm)
                .into_iter()
                .filter(|(_, task)| {
                    ["succeeded", "failed", "cancelled"].map(Value::from).contains(&task["state"])
                })
                .collect();
        }
        place = swarm.kill();
    }
    let swarm = Swarm::deploy_in(place, &config("process"), &[]);
    let last = swarm.until("all have ended", |swarm| {
        let now = states(swarm);
        (count(&now, "succeeded") == accepted.len()).then_some(now)
    });
    let repeated: u64 = last.values().map(|task| task["attempts"].as_u64().expect("a number") - 1).sum();
    println!("{} tasks, {rounds} kills, {repeated} attempts were cut off", accepted.len());
    assert!(accepted.iter().all(|name| last.contains_key(name)));
    for name in accepted.iter().filter(|name| last[*name]["kernel"] == "matmul") {
        let array = read_array(&swarm.place.path(&format!("{name}.npy")));
        let elements = array.as_slice::<f64>().expect("of this type");
        assert!(elements.len() == 1600 && elements.iter().all(|element| *element == 40.0), "{name}");
    }
    let left: Vec<String> = fs::read_dir(swarm.place.path(""))
        .expect("there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.') || name.contains(".tmp"))
        .collect();
    assert!(left.is_empty(), "temporary files of attempts that were cut off: {left:?}");
    let report = swarm.end();
    assert_eq!((&report["tasks"]["lost"], &report["tasks"]["duplicated"]), (&json!(0), &json!(0)));
}

#[test]
fn attempts_and_dependencies_go_on_where_they_were() {
    let one = json!({"agents": {"compute": {"count": 1}}, "tasks": {"window": 1, "batch": 1}});
    let swarm = Swarm::deploy(&one);
    swarm.submit(&json!([
        {"id": "first", "kernel": "noop"},
        {"id": "long", "kernel": "sleep", "params": {"seconds": 1.0}},
        {"id": "behind", "kernel": "noop", "after": ["long", "first"]},
        {"id": "last", "kernel": "noop", "after": ["behind"]},
    ]));
    swarm.until_task("first", "succeeded");
    swarm.until_task("long", "running");
    let swarm = Swarm::deploy_in(swarm.kill(), &one, &[]);
    assert_eq!(swarm.task("first")["state"], "succeeded");
    assert_eq!(swarm.task("behind")["waiting_for"], json!(["long"]));
    let long = swarm.until_task("long", "succeeded");
    assert_eq!(long["attempts"], 2, "the one that was cut off counts: {long}");
    assert_eq!(swarm.until_task("last", "succeeded")["attempts"], 1);
    // And after an end in order all of it is history.
    let place = {
        let place_of = |swarm: Swarm| {
            swarm.signal(Signal::TERM);
            let Swarm { place, running, .. } = swarm;
            running.finish().ends(0);
            place
        };
        place_of(swarm)
    };
    let journal = folder(&place);
    assert!(journal.join("journal.db").exists() && !journal.join("journal.front").exists());
    let swarm = Swarm::deploy_in(place, &one, &[]);
    assert_eq!(count(&states(&swarm), "succeeded"), 4);
    let report = swarm.end();
    assert_eq!(report["tasks"]["total"], 0, "nothing was done in this life: {report:#}");
}

#[test]
fn one_key_is_one_task_in_every_life() {
    let swarm = Swarm::deploy(&config("process"));
    let task = json!({"kernel": "noop", "idempotency_key": "order-7"});
    let first = swarm.submit(&json!([task, task]));
    assert_eq!(first[0]["id"], first[1]["id"], "{first}");
    let number = first[0]["id"].clone();
    let swarm = Swarm::deploy_in(swarm.kill(), &config("process"), &[]);
    assert_eq!(swarm.submit(&json!([task]))[0]["id"], number);
    let waited = json!({"tasks": [task], "wait": true});
    let answer = swarm.ask("POST", "/api/v1/tasks/submit", Some(&waited)).is(200).json();
    assert_eq!(answer["tasks"][0]["task"]["state"], "succeeded", "{answer}");
    let other = json!([{"kernel": "sleep", "idempotency_key": "order-7"}]);
    let (_, words) = try_submit(&swarm, &other);
    assert!(words.contains("order-7") && words.contains("asks for something else"), "{words}");
    assert_eq!(count(&states(&swarm), "succeeded"), 1);
    // A client of the library, too.
    let mut client = ai_swarm::client::Attach::at(&swarm.place.socket()).attach().expect("attached");
    let ticket = client.submit_json(&task).expect("submitted");
    let end = client.wait(ticket, Duration::from_secs(20)).expect("an end");
    assert_eq!(
        (end.state, end.task.map(|task| format!("t{task}"))),
        ("succeeded", number.as_str().map(str::to_owned))
    );
    swarm.end();
}

/// What the trouble at one pass of one place came to.
enum Felt {
    /// The swarm was told, and says so.
    Yes,
    /// That pass never came.
    No,
}

/// One life in which a place fails at one pass, and the next life: nothing is acknowledged after the failure, what was before
/// it is there, and what runs across it ends and is delivered.
fn fails_at(place_of_failure: &str, pass: u32, config: &Value) -> Felt {
    let order = format!("{place_of_failure}:{pass}");
    let swarm = Swarm::deploy_with(Place::new(), config, &[], &[("AI_SWARM_FAIL_AT", &order)]);
    // It may fail between the look at the journal and the task: then the batch is taken and the task is not.
    let submit = |swarm: &Swarm, task: Value| match try_submit(swarm, &json!([task])) {
        (202, words) if !words.contains("until a new start") => None,
        (202 | 503, words) => Some(words),
        other => panic!("{order}: {other:?}"),
    };
    let mut accepted = Vec::new();
    let mut words = submit(&swarm, json!({"id": "long", "kernel": "sleep", "params": {"seconds": 0.7}}));
    let has_long = words.is_none();
    if has_long {
        accepted.push("long".to_owned());
        swarm.until("the long one runs", |swarm| (swarm.task("long")["state"] != "queued").then_some(()));
    }
    for at in 0..8 {
        if words.is_some() {
            break;
        }
        let name = format!("task-{at}");
        words = submit(&swarm, json!({"id": name, "kernel": "noop"}));
        if words.is_none() {
            accepted.push(name);
        }
        // One group each. Whoever forgets looks every 200 ms.
        let pause = if place_of_failure == "journal.retain" { 210 } else { 30 };
        std::thread::sleep(Duration::from_millis(pause));
    }
    let has_failed = |swarm: &Swarm| swarm.status()["durability"]["state"] == "failed";
    let is_felt = words.is_some() || has_failed(&swarm);
    if is_felt {
        let words = words.unwrap_or_else(|| try_submit(&swarm, &json!([{"kernel": "noop"}])).1);
        assert!(words.contains("Input/output error") || words.contains("os error 5"), "{order}: {words}");
        // It stays so, and says so.
        assert!(has_failed(&swarm), "{order}: {:#}", swarm.status());
        assert_eq!(try_submit(&swarm, &json!([{"kernel": "noop"}])).0, 503);
        // The loop that answers may be a turn ahead of the one that tells.
        swarm.until("the failure is told", |swarm| {
            (!swarm.events_of("journal_failed").is_empty()).then_some(())
        });
        assert_eq!(swarm.events_of("journal_failed").len(), 1);
        assert!(swarm.place.cli(&["status"]).ends(0).out.contains("journal"), "status names it");
    }
    if has_long {
        let task = swarm.until_task("long", "succeeded");
        assert_eq!(task["attempts"], 1, "{order}: what ran went on: {task:#}");
    }
    // However it is stopped.
    let place = match pass % 3 {
        0 => swarm.kill(),
        how => {
            if how == 1 {
                swarm.signal(Signal::TERM);
            } else {
                swarm.place.cli(&["stop"]).ends(0);
            }
            let Swarm { place, running, .. } = swarm;
            // The last passes come at the end itself.
            let ran = running.finish();
            let code = ran.status.code();
            assert!(code == Some(1) || code == Some(0) && !is_felt, "{order}: {}", ran.story());
            let is_felt = code == Some(1);
            return end_of_life(&order, config, place, &accepted, is_felt);
        }
    };
    end_of_life(&order, config, place, &accepted, is_felt)
}

fn end_of_life(order: &str, config: &Value, place: Place, accepted: &[String], is_felt: bool) -> Felt {
    let swarm = Swarm::deploy_in(place, config, &[]);
    let now = states(&swarm);
    let keeps_all = config["durability"]["keep_tasks"].is_null();
    for name in accepted.iter().filter(|_| keeps_all) {
        assert!(now.contains_key(name), "{order}: {name} was acknowledged and is lost: {now:?}");
    }
    swarm.submit(&json!([{"id": "again", "kernel": "noop"}]));
    swarm.until_task("again", "succeeded");
    swarm.end();
    if is_felt { Felt::Yes } else { Felt::No }
}

/// Each of the first passes, then later and later ones, until one never comes; where `AI_SWARM_EVERY_PASS` is set, each of all.
fn fails_in_turn(place_of_failure: &str, config: &Value, least: u32) {
    let is_patient = std::env::var_os("AI_SWARM_EVERY_PASS").is_some();
    let (mut pass, mut felt, mut unfelt) = (1, 0, 0);
    // How often a place is passed differs a little from life to life.
    while unfelt < if is_patient { 3 } else { 1 } {
        match fails_at(place_of_failure, pass, config) {
            Felt::Yes => (felt, unfelt) = (felt + 1, 0),
            Felt::No => unfelt += 1,
        }
        pass += if is_patient { 1 } else { 1 + pass / 3 };
        assert!(pass < 10_000, "{place_of_failure} comes for ever");
    }
    println!("{place_of_failure}: {felt} failures were felt, the last passes before {pass} never came");
    assert!(felt >= least, "{place_of_failure}: only {felt} were felt");
}

/// Whatever write or sync is the first to fail: nothing is acknowledged after it, what was acknowledged before it is there
/// in the next life.
#[test]
fn after_a_failed_write_nothing_is_accepted_and_nothing_is_lost() {
    for place_of_failure in ["journal.commit", "journal.head", "journal.read"] {
        fails_in_turn(place_of_failure, &config("process"), 4);
    }
}

#[test]
fn after_a_failed_sync_nothing_is_accepted_and_nothing_is_lost() {
    for place_of_failure in ["journal.sync", "journal.bring", "journal.commit", "journal.head"] {
        fails_in_turn(place_of_failure, &config("power"), 4);
    }
}

#[test]
fn what_fails_while_the_journal_forgets_or_closes_is_no_success_either() {
    let mut forgetful = config("process");
    forgetful["durability"]["keep_tasks"] = json!(1);
    fails_in_turn("journal.retain", &forgetful, 1);
    // It comes twice, at an end in order; passes that are killed are none.
    for pass in [1, 2] {
        assert!(matches!(fails_at("journal.close", pass, &config("process")), Felt::Yes), "{pass}");
    }
    assert!(matches!(fails_at("journal.close", 4, &config("process")), Felt::No));
}

/// A start that cannot write what it has to is no start, and the next one finds all that there was.
#[test]
fn a_start_that_cannot_write_says_so_and_loses_nothing() {
    for (place_of_failure, is_new, least) in
        [("journal.create", true, 3), ("journal.front", false, 3), ("journal.commit", false, 0)]
    {
        let mut place = Place::new();
        let mut accepted = 0;
        for pass in 1.. {
            if !is_new {
                let swarm = Swarm::deploy_in(place, &config("process"), &[]);
                assert_eq!(states(&swarm).len(), accepted, "{place_of_failure}:{pass}");
                // Whoever is killed now leaves records in the front only.
                swarm.submit(&json!([{"id": format!("task-{pass}"), "kernel": "noop"}]));
                accepted += 1;
                place = swarm.kill();
            }
            // Of groups there is one, if the keeper of the killed one was not quicker.
            let is_one = place_of_failure == "journal.commit";
            let order = format!("{place_of_failure}:{}", if is_one { 1 } else { pass });
            let mut command = place.command(&["--monitor-duration", "0.05"]);
            let ran = place.finish(command.env("AI_SWARM_FAIL_AT", &order));
            if ran.status.code() == Some(3) {
                let ran = ran.complains("Input/output error").complains("journal.");
                assert!(!ran.err.contains("damaged"), "{order}: {}", ran.story());
                if is_one {
                    break;
                }
                continue;
            }
            if is_one {
                assert!(pass < 10, "{order} is no failure of the start: {}", ran.story());
                continue;
            }
            // As late as that, it came when the swarm was there, or not at all.
            println!("{place_of_failure}: pass {pass} comes after the start");
            assert!(pass > least, "{order} is no failure of the start: {}", ran.story());
            break;
        }
        let swarm = Swarm::deploy_in(place, &config("process"), &[]);
        assert_eq!(states(&swarm).len(), accepted, "{place_of_failure}: at last");
        swarm.end();
    }
}

#[test]
fn a_full_disk_is_said_before_acceptance_and_goes_by_itself() {
    let order = [("AI_SWARM_FAIL_AT", "journal.commit:2-25=full")];
    let swarm = Swarm::deploy_with(Place::new(), &config("process"), &[], &order);
    let mut accepted = 0;
    let words = swarm.until("the disk is full", |swarm| {
        match try_submit(swarm, &json!([{"id": format!("task-{accepted}"), "kernel": "noop"}])) {
            (503, words) => Some(words),
            (status, words) => {
                assert_eq!(status, 202, "{words}");
                accepted += 1;
                None
            }
        }
    });
    assert!(words.contains("the disk is full") && words.contains("until there is space"), "{words}");
    assert_eq!(swarm.status()["durability"]["state"], "full");
    swarm.until("there is space again", |swarm| {
        (try_submit(swarm, &json!([{"id": format!("task-{accepted}"), "kernel": "noop"}])).0 == 202)
            .then_some(())
    });
    accepted += 1;
    // The loop that answers may be a turn ahead of the one that tells.
    swarm.until("the end of it is told", |swarm| (!swarm.events_of("journal_ok").is_empty()).then_some(()));
    assert_eq!(swarm.events_of("journal_ok").len(), 1);
    let swarm = Swarm::deploy_in(swarm.kill(), &config("process"), &[]);
    swarm.until("all are done", |swarm| (count(&states(swarm), "succeeded") == accepted).then_some(()));
    swarm.end();
}

/// What was acknowledged is kept already: to leave it to the next start takes no room, and no journal that works.
#[test]
fn a_stop_on_a_full_disk_keeps_tasks_too() {
    for (trouble, code) in [("journal.commit:100-1000000=full", 0), ("journal.commit:100", 1)] {
        let mut config = config("process");
        config["tasks"] = json!({"drain_s": 0, "keep_at_stop": true});
        let swarm = Swarm::deploy_with(Place::new(), &config, &[], &[("AI_SWARM_FAIL_AT", trouble)]);
        let ids: Vec<String> = (0..5).map(|at| format!("s{at}")).collect();
        let sleeps = ids.iter().map(|id| json!({"id": id, "kernel": "sleep", "params": {"seconds": 3600}}));
        swarm.submit(&sleeps.collect());
        swarm.until("nothing is accepted", |swarm| {
            (try_submit(swarm, &json!([{"kernel": "noop"}])).0 == 503).then_some(())
        });
        swarm.signal(Signal::TERM);
        let (place, report) = swarm.ends_for_now(code);
        assert_eq!(report["tasks"]["cancelled"], 0, "{trouble}: {report:#}");
        assert!(report["tasks"]["left"].as_u64() >= Some(5), "{trouble}: {report:#}");
        let swarm = Swarm::deploy_in(place, &config, &[]);
        let known = states(&swarm);
        let ended = ["succeeded", "failed", "cancelled"].map(Value::from);
        let is_open = |id: &String| !ended.contains(&known[id]["state"]);
        assert!(ids.iter().all(is_open), "{trouble}: {known:#?}");
        swarm.place.cli(&["stop", "--keep-tasks=false"]).ends(0);
        assert!(swarm.ends(0)["tasks"]["cancelled"].as_u64() >= Some(5));
    }
}

#[test]
fn a_disk_with_room_for_one_front_only_is_enough_for_a_restart() {
    let place = Place::new();
    // The first one is killed once it has taken a task.
    let script = "mount -t tmpfs -o size=80m,mode=0700 tmpfs \"$XDG_STATE_HOME\" && { \"$@\" & first=$!; } && \
                  until \"$1\" --name \"$3\" submit --kernel noop --wait; do sleep 0.1; done; \
                  kill -9 $first; wait $first; exec \"$@\"";
    let unshare = [&["-m"][..], &["-U", "-r", "-m"]].into_iter().find(|words| {
        let mut command = Command::new("unshare");
        place.equip(&mut command);
        command.args(*words).args(["sh", "-c", "mount -t tmpfs tmpfs \"$XDG_STATE_HOME\""]);
        command.output().is_ok_and(|output| output.status.success())
    });
    let Some(words) = unshare else {
        println!("skipped: no mount namespace may be made here");
        return;
    };
    let mut command = Command::new("unshare");
    place.equip(&mut command);
    let binary = env!("CARGO_BIN_EXE_ai_swarm_deploy");
    command.args(words).args(["sh", "-c", script, "sh", binary, "--name", place.name()]);
    let mut swarm = Swarm::deploy_by(place, command, &json!({"agents": {"compute": {"count": 1}}}), &[]);
    // The first one is a child of the shell, the second takes its place.
    let line = format!("/proc/{}/cmdline", swarm.running.pid());
    swarm.until("there is a second life", |_| {
        fs::read_to_string(&line).expect("it lives").starts_with(binary).then_some(())
    });
    swarm.wait_ready();
    assert_eq!(count(&states(&swarm), "succeeded"), 1, "the task of the first life");
    swarm.end();
}

/// A real file system without room, with state and outputs on it: nothing that was accepted is lost, nothing is accepted for
/// which there is no room, outputs appear whole or not at all, and all of it goes by itself.
#[test]
fn a_file_system_that_is_really_full_costs_no_task() {
    let place = Place::new();
    let script = "mount -t tmpfs -o size=96m,mode=0700 tmpfs \"$XDG_STATE_HOME\" && mkdir \"$XDG_STATE_HOME/out\" && exec \"$@\"";
    let unshare = [&["-m"][..], &["-U", "-r", "-m"]].into_iter().find(|words| {
        let mut command = Command::new("unshare");
        place.equip(&mut command);
        command.args(*words).args(["sh", "-c", script, "sh", "true"]);
        command.output().is_ok_and(|output| output.status.success())
    });
    let Some(words) = unshare else {
        println!("skipped: no mount namespace may be made here");
        return;
    };
    const ELEMENTS: usize = 40_000;
    place.write_array("x.npy", &[ELEMENTS], &vec![1.0f64; ELEMENTS]);
    let mut command = Command::new("unshare");
    place.equip(&mut command);
    command.args(words).args([
        "sh",
        "-c",
        script,
        "sh",
        env!("CARGO_BIN_EXE_ai_swarm_deploy"),
        "--name",
        place.name(),
    ]);
    let tasks = json!({"default_retries": 1000});
    let swarm =
        Swarm::deploy_by(place, command, &json!({"agents": {"compute": {"count": 2}}, "tasks": tasks}), &[]);
    // The mount is the swarm's own; this is how it looks from there.
    let state = swarm.place.beside("state");
    let inside = PathBuf::from(format!("/proc/{}/root", swarm.running.pid()))
        .join(state.strip_prefix("/").expect("an absolute path"));
    let task = |number: usize| {
        let output = state.join(format!("out/{number}.npy"));
        json!({"id": format!("full-{number}"), "kernel": "axpy", "params": {"alpha": number},
               "inputs": ["x.npy", "x.npy"], "output": output})
    };
    swarm.submit(&json!([task(0)]));
    swarm.until_task("full-0", "succeeded");
    // Accepted while there is room, at work when there is none.
    let later = (1..4).map(|number| {
        let mut task = task(number);
        task["after"] = json!(["nap"]);
        task
    });
    let nap = json!({"id": "nap", "kernel": "sleep", "params": {"seconds": 1.5}});
    swarm.submit(&std::iter::once(nap).chain(later).collect());

    let filler = inside.join("filler");
    let mut file = fs::File::create(&filler).expect("there is room yet");
    let mut block = vec![1u8; 1 << 20];
    while !block.is_empty() {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(_) => block.truncate(block.len() / 2),
        }
    }
    let mut accepted = 4;
    let words = swarm.until("the disk is full", |swarm| match try_submit(swarm, &json!([task(accepted)])) {
        (503, words) => Some(words),
        (status, words) => {
            assert_eq!(status, 202, "{words}");
            assert!(!words.contains("error\":\""), "accepted means accepted: {words}");
            accepted += 1;
            None
        }
    });
    assert!(words.contains("the disk is full") && words.contains("until there is space"), "{words}");
    assert_eq!(swarm.status()["durability"]["state"], "full");
    swarm.until_task("nap", "succeeded");
    swarm.until("one has met the full disk", |swarm| {
        swarm.task("full-1")["attempts"].as_u64().is_some_and(|attempts| attempts > 1).then_some(())
    });
    let whole = (0..accepted).filter(|number| inside.join(format!("out/{number}.npy")).exists()).count();
    println!("{accepted} tasks accepted until the file system was full, {whole} outputs by then");
    assert!(whole < accepted, "some were accepted and found no room");

    drop(file);
    fs::remove_file(&filler).expect("there");
    swarm.until("it accepts again", |swarm| {
        (try_submit(swarm, &json!([task(accepted)])).0 == 202).then_some(())
    });
    accepted += 1;
    swarm.until("all are done", |swarm| (count(&states(swarm), "succeeded") == accepted + 1).then_some(()));
    for number in 0..accepted {
        let array = read_array(&inside.join(format!("out/{number}.npy")));
        let values = array.as_slice::<f64>().expect("of this type");
        let sum = number as f64 + 1.0;
        assert!(values.len() == ELEMENTS && values.iter().all(|&value| value == sum), "output {number}");
    }
    let left = fs::read_dir(inside.join("out")).expect("there").count();
    assert_eq!(left, accepted, "and nothing lies beside them");
    let report = swarm.end();
    assert_eq!((&report["tasks"]["lost"], &report["tasks"]["duplicated"]), (&json!(0), &json!(0)));
}

/// A disk that takes its time holds up what is promised of it, and nothing else.
#[test]
fn a_slow_disk_delays_acknowledgements_at_level_power_and_nothing_else() {
    const PAUSE: f64 = 0.08;
    for (level, place_of_pause) in
        [("power", "journal.sync"), ("power", "journal.commit"), ("process", "journal.commit")]
    {
        let order = format!("{place_of_pause}:1-=slow:80ms");
        let swarm = Swarm::deploy_with(Place::new(), &config(level), &[], &[("AI_SWARM_FAIL_AT", &order)]);
        let mut waited = Vec::new();
        for at in 0..12 {
            let began = std::time::Instant::now();
            swarm.submit(&json!([{"id": format!("task-{at}"), "kernel": "noop"}]));
            waited.push(began.elapsed().as_secs_f64());
        }
        let mut queued: Vec<f64> = (0..12)
            .map(|at| swarm.until_task(&format!("task-{at}"), "succeeded"))
            .map(|task| task["queue_us"].as_f64().expect("a time") / 1e6)
            .collect();
        waited.sort_by(f64::total_cmp);
        queued.sort_by(f64::total_cmp);
        println!("{order}: half were told within {:.4} s, sent within {:.4} s", waited[6], queued[6]);
        assert!(queued[6] < PAUSE / 4.0, "{order}: dispatch waits for the disk: {queued:?}");
        match (level, place_of_pause) {
            ("power", "journal.sync") => {
                assert!(waited[0] >= PAUSE, "{order}: told before the disk had it: {waited:?}");
            }
            _ => assert!(waited[6] < PAUSE / 2.0, "{order}: {waited:?}"),
        }
        assert_eq!(swarm.status()["durability"]["state"], "ok", "slow is not broken");
        let swarm = Swarm::deploy_in(swarm.kill(), &config(level), &[]);
        assert_eq!(count(&states(&swarm), "succeeded"), 12, "{order}");
        swarm.end();
    }
}

/// Until a record has reached the disk nobody sees what it says, not even who merely looks.
#[test]
fn an_end_that_somebody_saw_is_the_end_in_every_life() {
    let slow = [("AI_SWARM_FAIL_AT", "journal.sync:1-=slow:150ms")];
    let swarm = Swarm::deploy_with(Place::new(), &config("power"), &[], &slow);
    let job = json!({"tasks": [{"id": "seen", "kernel": "noop"}]});
    let submission = request("POST", "/api/v1/tasks/submit", Some(&job));
    let socket = swarm.place.socket();
    // Its answer comes when the disk has the task; by then it has ended.
    let submitter = std::thread::spawn(move || send(&socket, &submission));
    let seen = swarm.until("an end is shown", |swarm| {
        let task = states(swarm).remove("seen")?;
        assert!(
            task["state"] == "succeeded" || task["finished_ns"] == 0 && task["result"].is_null(),
            "{task}"
        );
        (task["state"] == "succeeded").then_some(task)
    });
    let place = swarm.kill();
    let _ = submitter.join().expect("no panic");
    let swarm = Swarm::deploy_in(place, &config("power"), &[]);
    let now = swarm.task("seen");
    assert_eq!(
        [&now["state"], &now["attempts"], &now["finished_ns"]],
        [&seen["state"], &seen["attempts"], &seen["finished_ns"]]
    );
    swarm.end();
}

/// Who is told that a task is cancelled need not fear that it runs in a later life.
#[test]
fn a_task_that_was_cancelled_is_so_in_every_life() {
    let slow = [("AI_SWARM_FAIL_AT", "journal.sync:1-=slow:150ms")];
    let swarm = Swarm::deploy_with(Place::new(), &config("power"), &[], &slow);
    swarm.submit(&json!([
        {"id": "long", "kernel": "sleep", "params": {"seconds": 60}},
        {"id": "late", "kernel": "noop", "after": ["long"]},
    ]));
    let began = std::time::Instant::now();
    let answer = swarm.ask("POST", "/api/v1/tasks/late/cancel", None).is(200).json();
    let waited = began.elapsed();
    let place = swarm.kill();
    assert_eq!(answer["state"], "cancelled", "{answer}");
    assert!(waited >= Duration::from_millis(100), "told before the disk had it: {waited:?}");
    let swarm = Swarm::deploy_in(place, &config("power"), &[]);
    assert_eq!(swarm.task("late")["state"], "cancelled");
    swarm.ask("POST", "/api/v1/tasks/late/cancel", None).refuses(409, "has ended already: cancelled");
    swarm.ask("POST", "/api/v1/tasks/long/cancel", None).is(200);
    swarm.end();
}

/// What became of agents is known after a death of the supervisor, and in the order in which it happened.
#[test]
fn the_life_of_agents_is_known_to_later_lives() {
    let config = json!({"agents": {"compute": {"count": 1, "standbys": 0},
        "fault": {"restart_limit": 1, "restart_window_s": 600, "backoff_max_s": 0.02}}});
    let swarm = Swarm::deploy(&config);
    let supervisor = swarm.running.pid();
    swarm.until("it is benched", |swarm| {
        let agent = swarm.agent("thermal-0");
        if let Some(pid) = agent["pid"].as_u64() {
            signal_child(supervisor, pid as u32, Signal::KILL);
        }
        (agent["state"] == "benched").then_some(())
    });
    let before = swarm.events();
    // Two deaths later: this life's events are apart from those of the others, and all are numbered through.
    let swarm = Swarm::deploy_in(swarm.kill(), &config, &[]);
    let swarm = Swarm::deploy_in(swarm.kill(), &config, &[]);
    let now = swarm.events();
    assert!(now.iter().all(|event| event["kind"] != "agent_benched"), "{now:#?}");
    let ran = swarm.place.cli(&["events", "--earlier", "--json"]).ends(0);
    let all: Vec<Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect();
    let numbers: Vec<u64> = all.iter().map(|event| event["seq"].as_u64().expect("a number")).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
    assert!(all.len() >= before.len() + now.len());
    assert_eq!(all[..before.len()], before[..], "word for word");
    let of_one: Vec<&str> = all[..before.len()]
        .iter()
        .filter(|event| event["agent"] == "thermal-0")
        .filter_map(|event| event["kind"].as_str())
        .filter(|kind| kind.starts_with("agent_"))
        .collect();
    assert_eq!((of_one.first(), of_one.last()), (Some(&"agent_ready"), Some(&"agent_benched")), "{of_one:?}");
    assert!(of_one.iter().filter(|kind| **kind == "agent_died").count() >= 2, "{of_one:?}");
    let ready = all.iter().filter(|event| event["kind"] == "agent_ready" && event["agent"] == "compute-0");
    assert_eq!(ready.count(), 3, "one in each life");
    swarm.end();
}

/// Flips a bit in each place of a file where these bytes stand.
fn flip_at(path: &Path, wanted: &[u8]) {
    let mut bytes = fs::read(path).expect("it is there");
    let places: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(wanted)).collect();
    assert!(!places.is_empty(), "{} has no {wanted:?}", path.display());
    places.iter().for_each(|&at| bytes[at] ^= 4);
    fs::write(path, bytes).expect("written");
}

#[test]
fn a_damaged_journal_stops_the_start_and_is_named() {
    const FILES: [&str; 3] = ["journal.front", "journal.db", "journal.db-wal"];
    for damaged in FILES {
        // What an earlier life, which ended in order, has in the store: long enough for pages that are never written again.
        let swarm = Swarm::deploy(&config("process"));
        let long = |n: usize| format!("early-{n}-{}", "x".repeat(180));
        let tasks: Vec<Value> = (0..200).map(|n| json!({"id": long(n), "kernel": "noop"})).collect();
        swarm.submit(&json!(tasks));
        swarm.until_task(&long(199), "succeeded");
        swarm.signal(Signal::TERM);
        let Swarm { place, running, .. } = swarm;
        running.finish().ends(0);
        let swarm = Swarm::deploy_in(place, &config("process"), &[]);
        swarm.submit(&json!([{"id": "kept", "kernel": "noop"}]));
        swarm.until_task("kept", "succeeded");
        swarm.until("it is in the store", |swarm| {
            (swarm.status()["durability"]["backlog_bytes"] == 0).then_some(())
        });
        let place = swarm.kill();
        let path = |name: &str| folder(&place).join(name);
        let named = match damaged {
            "journal.front" => {
                let mut bytes = fs::read(path(damaged)).expect("a front");
                // The tail: what lies behind it is not known any more.
                bytes[1024] ^= 4;
                fs::write(path(damaged), &bytes).expect("written");
                "journal.front, offset 1024"
            }
            "journal.db" => {
                flip_at(&path(damaged), b"early-100-x");
                "journal.db, row "
            }
            _ => {
                // SQLite ends its log there, in silence: the front knows better.
                let mut bytes = fs::read(path(damaged)).expect("a log");
                bytes[32 + 24 + 100] ^= 4;
                fs::write(path(damaged), &bytes).expect("written");
                "journal.db-wal: "
            }
        };
        let bytes = || FILES.map(|name| fs::read(path(name)).expect("there"));
        let before = bytes();
        let refusals = [(); 2].map(|()| {
            let ran = place.cli(&["--monitor-duration", "0.1"]).ends(3);
            let ran = ran.complains("the journal is damaged").complains(named).complains("--salvage-journal");
            for (name, (before, now)) in FILES.iter().zip(before.iter().zip(bytes())) {
                assert!(*before == now, "damage in {damaged}: {name} was changed");
            }
            ran.err.lines().filter(|line| line.contains("damaged")).map(str::to_owned).collect::<Vec<_>>()
        });
        assert_eq!(refusals[0], refusals[1], "the second look finds what the first one found");
        let swarm = Swarm::deploy_in(place, &config("process"), &["--salvage-journal"]);
        assert!(
            swarm.events_of("journal").iter().any(|event| event["text"].to_string().contains(".damaged-"))
        );
        swarm.submit(&json!([{"id": "new", "kernel": "noop"}]));
        swarm.until_task("new", "succeeded");
        let swarm = Swarm::deploy_in(swarm.kill(), &config("process"), &[]);
        assert_eq!(swarm.task("new")["state"], "succeeded");
        swarm.end();
    }
}

/// A pipe in the place of a file is no reason to wait for whoever has its other end.
#[test]
fn what_is_no_file_is_damage() {
    for (name, is_pipe) in [("journal.front", true), ("journal.front", false), ("journal.db", true)] {
        let swarm = Swarm::deploy(&config("process"));
        swarm.submit(&json!([{"id": "kept", "kernel": "noop"}]));
        swarm.until_task("kept", "succeeded");
        let place = swarm.kill();
        let path = folder(&place).join(name);
        fs::remove_file(&path).expect("there");
        if is_pipe {
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, 0o600.into(), 0).expect("a pipe");
        } else {
            fs::create_dir(&path).expect("a folder");
        }
        let words = format!("{name}, the whole file: it is no file");
        place.cli(&["--monitor-duration", "0.1"]).ends(3).complains(&words).complains("--salvage-journal");
        let swarm = Swarm::deploy_in(place, &config("process"), &["--salvage-journal"]);
        swarm.submit(&json!([{"id": "new", "kernel": "noop"}]));
        swarm.until_task("new", "succeeded");
        swarm.end();
    }
}

#[test]
fn a_state_directory_that_was_moved_is_noticed_and_its_successor_is_let_be() {
    let swarm = Swarm::deploy(&config("process"));
    swarm.submit(&json!([{"id": "kept", "kernel": "noop"}]));
    swarm.until_task("kept", "succeeded");
    let moved = swarm.place.beside("moved");
    fs::rename(folder(&swarm.place), &moved).expect("moved");
    swarm.until("it is noticed", |swarm| (swarm.status()["durability"]["state"] == "failed").then_some(()));
    let (status, words) = try_submit(&swarm, &json!([{"kernel": "noop"}]));
    assert!(status == 503 && words.contains("journal.front was moved or removed"), "{status}: {words}");

    let file = swarm.place.path("config.json");
    let words = ["--config", file.to_str().expect("text")];
    let successor = swarm.place.start(swarm.place.command(&words).stdin(std::process::Stdio::null()));
    let front = folder(&swarm.place).join("journal.front");
    let is_new = |swarm: &Swarm| {
        let answer = send(&swarm.place.socket(), &request("GET", "/api/v1/tasks", None))?;
        (front.exists() && answer.status == 200 && answer.json()["tasks"] == json!([])).then_some(())
    };
    swarm.until("another one lives there", is_new);
    swarm.submit(&json!([{"id": "its own", "kernel": "noop"}]));
    swarm.signal(Signal::TERM);
    let Swarm { place, running, .. } = swarm;
    running.finish().ends(1).complains("journal.front was moved or removed");
    assert!(front.exists() && place.socket().exists(), "they are the other one's");
    let answer = send(&place.socket(), &request("GET", "/api/v1/tasks/its%20own", None)).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(moved.join("journal.front").exists(), "what it had is where it went");
    signal(successor.pid(), Signal::TERM);
    successor.finish().ends(0);
    place.is_clean();
}

/// Whoever salvages may be stopped at any step: the damaged files are there, or what was read of them is.
#[test]
fn a_salvage_that_is_cut_off_loses_nothing_more() {
    for step in 1..=3 {
        let swarm = Swarm::deploy(&config("process"));
        swarm.submit(&json!([{"id": "kept", "kernel": "noop"}]));
        swarm.until_task("kept", "succeeded");
        swarm.until("it is in the store", |swarm| {
            (swarm.status()["durability"]["backlog_bytes"] == 0).then_some(())
        });
        let place = swarm.kill();
        let front = folder(&place).join("journal.front");
        let mut bytes = fs::read(&front).expect("a front");
        bytes[1024] ^= 4;
        fs::write(&front, &bytes).expect("written");
        let order = format!("journal.salvage:{step}");
        let mut command = place.command(&["--monitor-duration", "0.1", "--salvage-journal"]);
        let ran = place.finish(command.env("AI_SWARM_FAIL_AT", &order));
        if step == 3 {
            // There are two; this one went through.
            ran.ends(0);
        } else {
            ran.ends(3).complains("Input/output error");
        }
        if step == 1 {
            place.cli(&["--monitor-duration", "0.1"]).ends(3).complains("the journal is damaged");
            assert_eq!(fs::read(&front).expect("a front"), bytes, "nothing was touched");
        }
        let salvage: &[&str] = if step == 1 { &["--salvage-journal"] } else { &[] };
        let swarm = Swarm::deploy_in(place, &config("process"), salvage);
        assert_eq!(swarm.task("kept")["state"], "succeeded", "step {step}");
        let told = swarm.events_of("journal");
        let is_told = told.iter().any(|event| event["text"].to_string().contains(".damaged-"));
        assert!(is_told || step == 3, "step {step}: {told:?}");
        let left: Vec<String> = fs::read_dir(folder(&swarm.place))
            .expect("the state directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains("draft") || name.contains("salvaged") || name.ends_with(".new"))
            .collect();
        assert!(left.is_empty(), "step {step}: {left:?}");
        swarm.end();
    }
}

/// A client that died is asked for by its successor, who has the same place and the same numbers for its tasks.
#[test]
fn who_comes_back_with_the_same_keys_hears_how_its_tasks_ended() {
    let swarm = Swarm::deploy(&config("process"));
    let task = json!({"kernel": "noop", "idempotency_key": "order-8"});
    let mut numbers = Vec::new();
    for life in 0..3 {
        let mut client = ai_swarm::client::Attach::at(&swarm.place.socket()).attach().expect("attached");
        let ticket = client.submit_json(&task).expect("submitted");
        let end = client.wait(ticket, Duration::from_secs(20)).expect("an end");
        assert_eq!(end.state, "succeeded", "life {life}");
        numbers.push(end.task);
        drop(client);
        swarm.until("its place is free", |swarm| (swarm.events_of("client_left").len() > life).then_some(()));
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
    swarm.end();
}

/// A task that its agent was asked to give up does not begin again, whoever dies before it did.
#[test]
fn a_wish_to_cancel_outlives_the_supervisor() {
    // Nobody looks for agents that hang, as this one will.
    let mut lonely = config("process");
    lonely["agents"]["fault"] = json!({"count": 0});
    let swarm = Swarm::deploy(&lonely);
    swarm.submit(&json!([{"id": "long", "kernel": "sleep", "params": {"seconds": 30}}]));
    let agent = swarm.until("it runs", |swarm| swarm.task("long")["agent"].as_str().map(str::to_owned));
    assert!(signal(pid(&swarm, &agent), Signal::STOP), "it does not hear the wish");
    swarm.ask("POST", "/api/v1/tasks/long/cancel", None).is(200);
    let swarm = Swarm::deploy_in(swarm.kill(), &config("process"), &[]);
    assert_eq!(swarm.task("long")["state"], "cancelled");
    swarm.end();
}

#[test]
fn without_durability_nothing_is_written() {
    let swarm = Swarm::deploy(&config("none"));
    swarm.submit(&json!([{"id": "a", "kernel": "noop"}]));
    swarm.until_task("a", "succeeded");
    assert_eq!(swarm.status()["durability"]["level"], "none");
    let left = folder(&swarm.place);
    assert!(!left.join("journal.db").exists() && !left.join("journal.front").exists());
    let place = swarm.kill();
    let swarm = Swarm::deploy_in(place, &config("none"), &[]);
    let answer = send(&swarm.place.socket(), &request("GET", "/api/v1/tasks/a", None)).expect("an answer");
    assert_eq!(answer.status, 404);
    swarm.end();
}
