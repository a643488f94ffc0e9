//! Second attempts among real processes: a straggler's task ends elsewhere, once, and its output is left alone afterwards;
//! when everybody is slow, or everybody has work, nothing is sent twice.

use crate::support::{Place, Swarm, read_array, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

/// Tasks go to the agents in turn, and nobody looks for hangs: a stopped agent stays stopped.
fn config(agents: usize) -> Value {
    json!({
        "load_balancing": false,
        "agents": {"compute": {"count": agents, "standbys": 0}, "fault": {"count": 0}},
    })
}

fn nap(id: &str, seconds: f64) -> Value {
    json!({"id": id, "kernel": "sleep", "params": {"seconds": seconds}})
}

/// Lets the swarm do some of these, so that it knows what is usual.
fn settle(swarm: &Swarm, task: impl Fn(&str) -> Value) {
    let tasks: Vec<Value> = (0..12).map(|n| task(&format!("usual{n}"))).collect();
    swarm.submit(&tasks.into());
    swarm.until("what is usual is known", |swarm| (swarm.status()["tasks"]["succeeded"] == 12).then_some(()));
    assert_eq!(swarm.status()["tasks"]["hedged"], 0, "{:#?}", swarm.events_of("task_hedged"));
}

pub fn pid(swarm: &Swarm, agent: &str) -> u32 {
    swarm.agent(agent)["pid"].as_u64().expect("a process") as u32
}

/// Gives every agent one task, of these, and stops the one that runs `victim` in the middle of it. Returns who that is.
fn stop_one_of(swarm: &Swarm, tasks: &[Value], victim: &str) -> (String, u32) {
    swarm.submit(&tasks.into());
    let running = swarm.until_task(victim, "running");
    let agent = running["agent"].as_str().expect("it runs somewhere").to_owned();
    let pid = pid(swarm, &agent);
    assert!(signal(pid, Signal::STOP));
    (agent, pid)
}

pub fn double(id: &str, input: &str, output: &str) -> Value {
    json!({"id": id, "kernel": "axpy", "params": {"alpha": 1.0}, "inputs": [input, input], "output": output})
}

/// Whether somebody has stopped this process, it itself perhaps.
pub fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// A swarm of two that knows how long such tasks take, and whose `compute-0` has stopped itself with one: its name.
fn stopped_at_output(illness: &str) -> (Swarm, String) {
    let ailment = format!("compute-0:{illness}:13");
    let swarm = Swarm::deploy_with(Place::new(), &config(2), &[], &[("AI_SWARM_AILMENT", &ailment)]);
    swarm.place.write_array("x.npy", &[100], &[1.0f64; 100]);
    settle(&swarm, |id| double(id, "x.npy", &format!("{id}.npy")));
    let pid = pid(&swarm, "compute-0");
    for id in (0..100).map(|n| format!("a{n}")) {
        swarm.submit(&json!([double(&id, "x.npy", &format!("{id}.npy"))]));
        let has_stopped = swarm.until("it is done, or its agent has stopped", |swarm| {
            let task = swarm.task(&id);
            let stopped = is_stopped(pid) && (task["agent"] == "compute-0" || !task["hedged_on"].is_null());
            (stopped || task["state"] == "succeeded").then_some(stopped)
        });
        if has_stopped {
            return (swarm, id);
        }
    }
    panic!("it never stopped");
}

#[test]
fn a_stragglers_task_ends_elsewhere_and_its_output_is_left_alone_afterwards() {
    let (swarm, id) = stopped_at_output("faint");
    let place = &swarm.place;
    let began = Instant::now();
    let task = swarm.until_task(&id, "succeeded");
    println!("its agent stands still, it ended within {:?}", began.elapsed());
    assert_eq!((&task["attempts"], &task["agent"]), (&json!(2), &json!("compute-1")), "{task:#}");
    assert_eq!(task["hedged_on"], "compute-1", "{task:#}");
    let output = place.path(&format!("{id}.npy"));
    assert_eq!(read_array(&output).shape(), [100]);
    // Whoever took the output away will not find it there again.
    fs::remove_file(&output).expect("it is there");
    assert!(signal(pid(&swarm, "compute-0"), Signal::CONT));
    swarm.until("the straggler is through", |swarm| {
        (swarm.agent("compute-0")["in_flight"] == 0).then_some(())
    });
    assert!(!output.exists(), "the straggler put it there again");
    let names =
        fs::read_dir(place.path("")).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let left: Vec<_> = names.filter(|name| name.as_encoded_bytes().ends_with(b".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(swarm.agent("compute-0")["restarts"], 0, "it was slow, and not hung");
    let counts = swarm.status()["tasks"].clone();
    assert_eq!(
        (&counts["hedged"], &counts["hedges_won"], &counts["retried"]),
        (&json!(1), &json!(1), &json!(0))
    );
    assert_eq!(swarm.events_of("task_hedged").len(), 1);
    place.cli(&["task", "show", &id]).ends(0).says("hedged on");
    place.cli(&["task", "explain", &id]).ends(0).says("tried it, too, and was first");
    place.cli(&["status"]).ends(0).says("1 sent to a second agent as well");
    let report = swarm.end();
    assert_eq!((&report["tasks"]["hedges_won"], &report["tasks"]["duplicated"]), (&json!(1), &json!(0)));
}

#[test]
fn who_has_announced_the_output_has_the_last_word() {
    let (swarm, id) = stopped_at_output("falter");
    // Its output may appear at any moment: nobody may be told that the task has ended.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        (&swarm.task(&id)["state"], &swarm.status()["tasks"]["hedged"]),
        (&json!("running"), &json!(0))
    );
    assert!(signal(pid(&swarm, "compute-0"), Signal::CONT));
    let task = swarm.until_task(&id, "succeeded");
    assert_eq!((&task["agent"], &task["attempts"]), (&json!("compute-0"), &json!(1)), "{task:#}");
    swarm.end();
}

#[test]
fn a_task_whose_output_replaces_its_input_is_not_tried_beside_itself() {
    let swarm = Swarm::deploy(&config(2));
    swarm.place.write_array("x.npy", &[100], &[1.0f64; 100]);
    settle(&swarm, |id| double(id, "x.npy", &format!("{id}.npy")));
    let straggler = pid(&swarm, "compute-0");
    assert!(signal(straggler, Signal::STOP));
    let in_place = |id: &str| {
        let (name, alias) = (format!("{id}.npy"), format!("{id}-alias.npy"));
        let file = swarm.place.write_array(&name, &[100], &[1.0f64; 100]);
        std::os::unix::fs::symlink(file, swarm.place.path(&alias)).expect("a link");
        double(id, &alias, &name)
    };
    swarm.submit(&json!([in_place("a"), in_place("b")]));
    swarm.until("one was tried", |swarm| (swarm.status()["tasks"]["hedged"] == 1).then_some(()));
    swarm.until("the second agent declined", |swarm| {
        (swarm.agent("compute-1")["in_flight"] == 0).then_some(())
    });
    assert_eq!(
        (&swarm.status()["in_flight"], &swarm.status()["tasks"]["succeeded"]),
        (&json!(1), &json!(13))
    );
    assert!(signal(straggler, Signal::CONT));
    for id in ["a", "b"] {
        let task = swarm.until_task(id, "succeeded");
        assert!(task["hedged_on"].is_null() || task["agent"] == "compute-0", "{task:#}");
        let array = read_array(&swarm.place.path(&format!("{id}.npy")));
        assert_eq!(array.as_slice::<f64>().map(|values| values[0]), Some(2.0), "once, and not twice");
    }
    let report = swarm.end();
    assert_eq!((&report["tasks"]["hedges_won"], &report["tasks"]["failed"]), (&json!(0), &json!(0)));
}

#[test]
fn either_agent_may_die_and_the_supervisor_too() {
    let mut place = Place::new();
    for dead in ["first", "second", "supervisor"] {
        let swarm = Swarm::deploy_in(place, &config(2), &[]);
        settle(&swarm, |id| nap(&format!("{dead}-{id}"), 0.15));
        let (id, other) = (format!("{dead}-a"), format!("{dead}-b"));
        let (straggler, pid_of_first) = stop_one_of(&swarm, &[nap(&id, 0.15), nap(&other, 0.15)], &id);
        let mut events = swarm.follow();
        if swarm.status()["tasks"]["hedged"] == 0 {
            events.until(|event| event["kind"] == "task_hedged");
        }
        let second = if straggler == "compute-0" { "compute-1" } else { "compute-0" };
        let (attempts, retried) = match dead {
            "first" => {
                assert!(signal(pid_of_first, Signal::KILL));
                (2, 0)
            }
            "second" => {
                assert!(signal(pid(&swarm, second), Signal::KILL) && signal(pid_of_first, Signal::CONT));
                (2, 0)
            }
            _ => {
                place = swarm.kill();
                let swarm = Swarm::deploy_in(place, &config(2), &[]);
                let task = swarm.until_task(&id, "succeeded");
                assert_eq!(task["attempts"], 3, "numbers of attempts never come again: {task:#}");
                swarm.end();
                return;
            }
        };
        let task = swarm.until_task(&id, "succeeded");
        assert_eq!(task["attempts"], attempts, "{dead}: {task:#}");
        let counts = swarm.status()["tasks"].clone();
        assert_eq!(
            [&counts["retried"], &counts["lost"], &counts["duplicated"]],
            [&json!(retried), &json!(0), &json!(0)]
        );
        assert_eq!((&counts["succeeded"], &counts["failed"]), (&json!(14), &json!(0)), "{dead}: {counts:#}");
        place = swarm.kill();
    }
}

#[test]
fn who_has_work_is_not_given_second_attempts_and_what_slows_all_down_is_no_straggler() {
    let swarm = Swarm::deploy(&config(3));
    settle(&swarm, |id| nap(id, 0.1));
    let pids = ["compute-0", "compute-1", "compute-2"].map(|agent| pid(&swarm, agent));
    // One stands still while the others have plenty to do.
    assert!(signal(pids[0], Signal::STOP));
    let tasks: Vec<Value> = (0..40).map(|n| nap(&format!("full{n}"), 0.1)).collect();
    swarm.submit(&tasks.into());
    std::thread::sleep(Duration::from_millis(600));
    let status = swarm.status();
    assert!(status["queued"].as_u64() > Some(0), "the queue was never empty: {status:#}");
    assert_eq!(status["tasks"]["hedged"], 0, "{status:#}");
    assert!(signal(pids[0], Signal::CONT));
    swarm.until("all is done", |swarm| (swarm.status()["tasks"]["succeeded"] == 52).then_some(()));
    // When the last ones ran the others were idle: on a busy host one of them may have been a straggler.
    let hedged = swarm.status()["tasks"]["hedged"].clone();
    // Two of three are slow and the third has nothing to do: it is the host, or the kernel.
    assert!(pids[1..].iter().all(|pid| signal(*pid, Signal::STOP)));
    let tasks = ["slow-a", "slow-b", "slow-c"].map(|id| nap(id, 0.1));
    swarm.submit(&tasks.to_vec().into());
    swarm.until("one is done", |swarm| (swarm.status()["tasks"]["succeeded"] == 53).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    let status = swarm.status();
    assert_eq!((&status["in_flight"], &status["tasks"]["hedged"]), (&json!(2), &hedged), "{status:#}");
    assert!(pids[1..].iter().all(|pid| signal(*pid, Signal::CONT)));
    swarm.until("all is done", |swarm| (swarm.status()["tasks"]["succeeded"] == 55).then_some(()));
    swarm.end();
}

/// One agent stands still with a task: those that were sent after it go elsewhere as well, whatever the budget says.
#[test]
fn what_waits_behind_a_task_that_takes_too_long_goes_elsewhere() {
    let mut config = config(2);
    config["tasks"] = json!({"window": 4, "hedge_percent": 0.1});
    let swarm = Swarm::deploy(&config);
    let price = |id: &str| json!({"id": id, "kernel": "monte_carlo", "params": {"paths": 200_000}});
    settle(&swarm, price);
    let stuck = pid(&swarm, "compute-0");
    assert!(signal(stuck, Signal::STOP));
    swarm.submit(&(0..40).map(|n| price(&format!("t{n}"))).collect());
    for n in 0..40 {
        swarm.until_task(&format!("t{n}"), "succeeded");
    }
    let moved = swarm.events_of("task_hedged");
    assert_eq!((moved.len(), &swarm.agent("compute-0")["in_flight"]), (4, &json!(4)), "{moved:#?}");
    assert!(signal(stuck, Signal::CONT));
    swarm.until("it has answered", |swarm| (swarm.agent("compute-0")["in_flight"] == 0).then_some(()));
    let report = swarm.end();
    let tasks = &report["tasks"];
    let counted = ["succeeded", "hedges_won", "lost", "duplicated"].map(|name| tasks[name].clone());
    assert_eq!(counted, [52, 4, 0, 0].map(Value::from), "{tasks:#}");
}
