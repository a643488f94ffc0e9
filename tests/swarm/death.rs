//! Agents die in every way; no task is lost, none is done twice, and what they left is removed.

use crate::support::{
    KINDS, Place, Swarm, children, is_report, lives, read_array, signal, signal_child, until,
};
use ai_swarm::base::prng::SplitMix64;
use ai_swarm::client::Attach;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// Kills of the long test.
const KILLS: usize = 50;
/// Tasks of the long test; more follow when they are done before all kills.
const TASKS: usize = 2000;

/// The seed: `AI_SWARM_TEST_SEED`, or a fresh one.
fn seed() -> u64 {
    let fresh = || std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    std::env::var("AI_SWARM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(fresh)
}

/// Square matrices of small whole numbers: products are exact, in whatever order they are summed up.
fn matrix(n: usize, step: usize) -> Vec<f32> {
    (0..n * n).map(|at| ((at * step) % 7) as f32 - 3.0).collect()
}

fn product(n: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    let at = |row: usize, column: usize| (0..n).map(|k| a[row * n + k] * b[k * n + column]).sum();
    (0..n * n).map(|index| at(index / n, index % n)).collect()
}

/// One of the tasks: a third sleeps, the others write files.
fn task(number: usize) -> Value {
    let id = format!("k{number}");
    match number % 3 {
        0 => json!({"id": id, "kernel": "sleep", "params": {"seconds": 0.001 * (1 + number / 3 % 3) as f64}}),
        1 => {
            json!({"id": id, "kernel": "matmul", "inputs": ["a.npy", "b.npy"], "output": format!("out/{id}.npy")})
        }
        _ => {
            json!({"id": id, "kernel": "axpy", "params": {"alpha": number}, "inputs": ["x.npy", "y.npy"], "output": format!("out/{id}.npy")})
        }
    }
}

#[test]
fn no_task_is_lost_or_done_twice_while_agents_of_all_kinds_are_killed() {
    const N: usize = 24;
    let seed = seed();
    println!("AI_SWARM_TEST_SEED={seed}");
    let mut luck = SplitMix64::new(seed);
    // Killed agents come back at once: what is tested is the tasks' life and not the agents' patience.
    let fault = json!({"restart_limit": 1000, "backoff_max_s": 0.02});
    let swarm =
        Swarm::deploy(&json!({"agents": {"fault": fault, "compute": {"count": 2}}, "tasks": {"batch": 16}}));
    let (a, b) = (matrix(N, 3), matrix(N, 5));
    swarm.place.write_array("a.npy", &[N, N], &a);
    swarm.place.write_array("b.npy", &[N, N], &b);
    let (x, y): (Vec<f64>, Vec<f64>) = (0..500).map(|at| (f64::from(at), f64::from(at) * 0.5)).unzip();
    swarm.place.write_array("x.npy", &[500], &x);
    swarm.place.write_array("y.npy", &[500], &y);
    fs::create_dir(swarm.place.path("out")).expect("a folder");

    let mut total = 0;
    let submit = |total: &mut usize, count: usize| {
        let tasks: Vec<Value> = (*total..*total + count).map(task).collect();
        swarm.submit(&tasks.into());
        *total += count;
    };
    submit(&mut total, TASKS);
    let supervisor = swarm.running.pid();
    let mut killed = BTreeSet::new();
    let tried = until(
        "all kills are done",
        || {
            std::thread::sleep(Duration::from_micros(luck.next_u64() % 15_000));
            let victims = children(supervisor);
            if !victims.is_empty() {
                let victim = victims[(luck.next_u64() % victims.len() as u64) as usize];
                // One that was killed already stays on the list until it is waited for.
                if !killed.contains(&victim) && signal_child(supervisor, victim, Signal::KILL) {
                    killed.insert(victim);
                }
            }
            let counts = swarm.status()["tasks"].clone();
            // The last kill hits a swarm at work, too.
            if counts["total"].as_u64() < counts["succeeded"].as_u64().map(|done| done + 200) {
                submit(&mut total, 500);
            }
            (killed.len() >= KILLS).then_some(killed.len())
        },
        || format!("{:#}\n{}", swarm.status(), swarm.running.err()),
    );
    swarm.until("all tasks have ended", |swarm| {
        let counts = &swarm.status()["tasks"];
        let ended: u64 =
            ["succeeded", "failed", "cancelled"].iter().filter_map(|name| counts[name].as_u64()).sum();
        (ended == total as u64).then_some(())
    });
    swarm.until("all agents are back", |swarm| {
        swarm.agents().iter().all(|agent| agent["state"] == "ready").then_some(())
    });

    let mut left = BTreeSet::new();
    for entry in fs::read_dir(swarm.place.path("out")).expect("the folder").flatten() {
        left.insert(entry.file_name().to_string_lossy().into_owned());
    }
    let expected: BTreeSet<String> = (0..total).filter(|n| n % 3 != 0).map(|n| format!("k{n}.npy")).collect();
    let strange: Vec<&String> = left.symmetric_difference(&expected).collect();
    assert!(strange.is_empty(), "outputs missing, or files that should not be: {strange:?}");
    let product = product(N, &a, &b);
    for number in (0..total).filter(|n| n % 3 != 0) {
        let got = read_array(&swarm.place.path(&format!("out/k{number}.npy")));
        if number % 3 == 1 {
            assert_eq!(got.as_slice::<f32>(), Some(&product[..]), "task {number}");
        } else {
            let want: Vec<f64> = x.iter().zip(&y).map(|(x, y)| number as f64 * x + y).collect();
            assert_eq!(got.as_slice::<f64>(), Some(&want[..]), "task {number}");
        }
    }
    // Some of the killed were standbys, which had no place yet.
    let (agents, standbys) = (swarm.events_of("agent_died").len(), swarm.events_of("standby_died").len());
    assert!(
        agents + standbys >= tried,
        "{agents} and {standbys} deaths were noticed, {tried} processes killed"
    );

    let report = swarm.end();
    is_report(&report);
    let tasks = &report["tasks"];
    let wanted =
        json!({"total": total, "succeeded": total, "failed": 0, "cancelled": 0, "lost": 0, "duplicated": 0});
    for (name, number) in wanted.as_object().expect("an object") {
        assert_eq!(&tasks[name], number, "{name}: {tasks}");
    }
    let recoveries = report["recoveries"].as_array().expect("a list");
    assert!(
        recoveries.len() + standbys >= tried,
        "{} recoveries, {standbys} standbys of {tried}",
        recoveries.len()
    );
    let cause = |recovery: &&Value| recovery["cause"] != "signal 9 (killed)";
    let other: Vec<&Value> = recoveries.iter().filter(cause).collect();
    assert!(other.is_empty(), "somebody died of something else: {other:#?}");
    println!("{tried} kills, {total} tasks, {} attempts beyond the first", tasks["retried"]);
}

#[test]
fn every_kind_of_agent_is_replaced_when_it_is_killed() {
    let swarm = Swarm::deploy(&json!({}));
    for kind in KINDS {
        let before = swarm.agent(&format!("{kind}-0"));
        let pid = before["pid"].as_u64().expect("a process") as u32;
        assert!(signal(pid, Signal::KILL), "{before}");
        let after = swarm.until(&format!("{kind}-0 lives again"), |swarm| {
            let agent = swarm.agent(&format!("{kind}-0"));
            (agent["state"] == "ready" && agent["pid"] != before["pid"]).then_some(agent)
        });
        assert_eq!(after["incarnation"], 2, "{after:#}");
        assert_eq!(after["restarts"], 1, "{after:#}");
        assert_eq!(after["cores"], before["cores"], "{after:#}");
        assert!(!lives(pid));
    }
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    let report = swarm.end();
    let dead: BTreeSet<&str> = report["recoveries"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|recovery| recovery["agent"].as_str())
        .collect();
    let all = KINDS.map(|kind| format!("{kind}-0"));
    assert_eq!(dead, all.iter().map(String::as_str).collect(), "{report:#}");
    for recovery in report["recoveries"].as_array().expect("a list") {
        assert_eq!(recovery["cause"], "signal 9 (killed)");
        assert!(recovery["ready_us"].as_f64() > Some(0.0), "{recovery}");
    }
}

#[test]
fn a_task_whose_agent_is_killed_is_done_by_another() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}}));
    swarm.submit(&json!([{"id": "a", "kernel": "sleep", "params": {"seconds": 0.3}}]));
    let running = swarm.until_task("a", "running");
    let agent = swarm.agent(running["agent"].as_str().expect("an agent"));
    assert!(signal(agent["pid"].as_u64().expect("a process") as u32, Signal::KILL));
    let done = swarm.until_task("a", "succeeded");
    assert_eq!(done["attempts"], 2, "{done:#}");
    let report = swarm.end();
    assert_eq!((&report["tasks"]["retried"], &report["tasks"]["lost"]), (&json!(1), &json!(0)));
    assert_eq!(report["recoveries"][0]["tasks_moved"], 1, "{report:#}");
}

/// The answer to the third task is said twice: the second time nobody believes it.
#[test]
fn an_answer_that_comes_again_is_refused_and_counted() {
    let config = json!({"agents": {"compute": {"count": 1}}});
    let ill = [("AI_SWARM_AILMENT", "compute-0:echo:3")];
    let swarm = Swarm::deploy_with(Place::new(), &config, &[], &ill);
    let mut client = Attach::at(&swarm.place.socket()).spin(false).attach().expect("attached");
    for _ in 0..5 {
        client.submit_json(&json!({"kernel": "noop"})).expect("submitted");
    }
    let mut told: Vec<u64> = (0..5)
        .map(|_| client.next_end(Duration::from_secs(30)).expect("an end"))
        .map(|end| end.ticket.0)
        .collect();
    told.sort_unstable();
    assert_eq!(told, [0, 1, 2, 3, 4]);
    swarm.until("it is counted", |swarm| {
        (swarm.get("/api/v1/system/statistics")["results_refused"] == 1).then_some(())
    });
    assert!(client.try_next_end().expect("attached").is_none(), "nobody is told twice");
    assert_eq!(swarm.agent("compute-0")["restarts"], 0);
    drop(client);
    let report = swarm.end();
    let tasks = &report["tasks"];
    assert_eq!(
        [&tasks["succeeded"], &tasks["duplicated"], &tasks["lost"]],
        [5, 0, 0].map(Value::from).each_ref()
    );
}

#[test]
fn a_stopped_agent_is_noticed_and_replaced() {
    let fault = json!({"hang_after_s": 0.5});
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}, "fault": fault}}));
    swarm.submit(&json!([{"id": "a", "kernel": "sleep", "params": {"seconds": 1}}]));
    let running = swarm.until_task("a", "running");
    let id = running["agent"].as_str().expect("an agent").to_owned();
    let before = swarm.agent(&id);
    assert!(signal(before["pid"].as_u64().expect("a process") as u32, Signal::STOP));
    let after = swarm.until("it is replaced", |swarm| {
        let agent = swarm.agent(&id);
        (agent["state"] == "ready" && agent["pid"] != before["pid"]).then_some(agent)
    });
    assert_eq!(after["incarnation"], 2, "{after:#}");
    let suspects = swarm.events_of("agent_suspect");
    assert!(
        suspects
            .iter()
            .any(|event| event["text"].as_str().is_some_and(|text| text.contains("it is stopped"))),
        "{suspects:#?}"
    );
    assert!(
        swarm.events_of("agent_restarted").iter().any(|event| event["agent"] == *id),
        "{:#?}",
        swarm.events()
    );
    let done = swarm.until_task("a", "succeeded");
    assert_eq!(done["attempts"], 2, "{done:#}");
    // Those that were idle or asleep in a task were left in peace.
    let others: Vec<Value> = swarm.agents().into_iter().filter(|agent| agent["id"] != *id).collect();
    assert!(others.iter().all(|agent| agent["restarts"] == 0), "{others:#?}\n{:#?}", swarm.events());
    swarm.end();
}

#[test]
fn the_watcher_itself_is_watched() {
    let swarm = Swarm::deploy(&json!({"agents": {"fault": {"hang_after_s": 0.2}}}));
    let before = swarm.agent("fault-0");
    assert!(signal(before["pid"].as_u64().expect("a process") as u32, Signal::STOP));
    swarm.until("the fault agent is replaced", |swarm| {
        let agent = swarm.agent("fault-0");
        (agent["state"] == "ready" && agent["pid"] != before["pid"]).then_some(())
    });
    swarm.end();
}

#[test]
fn a_task_that_crashes_its_agents_is_given_up_and_one_whose_agents_are_killed_is_not() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}, "tasks": {"poison_deaths": 2}}));
    let kill = |id: &str, which: Signal, attempt: u64| {
        let task = swarm.until(&format!("attempt {attempt} of {id} runs"), |swarm| {
            let task = swarm.task(id);
            (task["state"] == "running" && task["attempts"] == attempt).then_some(task)
        });
        let agent = swarm.agent(task["agent"].as_str().expect("an agent"));
        let pid = agent["pid"].as_u64().expect("a process") as u32;
        assert!(signal(pid, which));
        // Rust's own handler looks for an overflown stack and lets the first such signal pass: a real fault comes
        // again at once, one from outside has to be sent again.
        let dead = || (!lives(pid) || which == Signal::SEGV && !signal(pid, which)).then_some(());
        until("it is dead", dead, || format!("process {pid}, {which:?}"));
    };
    swarm.submit(&json!([{"id": "unlucky", "kernel": "sleep", "params": {"seconds": 0.5}}]));
    for attempt in 1..=3 {
        kill("unlucky", Signal::KILL, attempt);
    }
    assert_eq!(swarm.until_task("unlucky", "succeeded")["attempts"], 4);

    swarm.submit(&json!([{"id": "poison", "kernel": "sleep", "params": {"seconds": 3600}}]));
    kill("poison", Signal::SEGV, 1);
    kill("poison", Signal::SEGV, 2);
    let task = swarm.until_task("poison", "failed");
    let error = task["error"].as_str().expect("words");
    assert!(error.contains("given up as poison: 2 agents died while running it"), "{error}");
    assert!(error.contains("signal 11 (segmentation fault)"), "{error}");
    let causes = |signal: &str| {
        let deaths = swarm.events_of("agent_died");
        deaths.iter().filter(|event| event["text"].as_str().is_some_and(|text| text.contains(signal))).count()
    };
    assert_eq!((causes("signal 9 (killed)"), causes("signal 11 (segmentation fault)")), (3, 2));
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    let report = swarm.end();
    assert_eq!((&report["tasks"]["failed"], &report["tasks"]["lost"]), (&json!(1), &json!(0)));
}

#[test]
fn an_agent_in_a_crash_loop_is_benched_and_the_others_work_on() {
    let fault = json!({"restart_limit": 2, "restart_window_s": 600, "backoff_max_s": 0.02});
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}, "fault": fault}}));
    let supervisor = swarm.running.pid();
    // Each life ends as soon as it has a process.
    swarm.until("it is benched", |swarm| {
        let agent = swarm.agent("thermal-0");
        if let Some(pid) = agent["pid"].as_u64() {
            signal_child(supervisor, pid as u32, Signal::KILL);
        }
        (agent["state"] == "benched").then_some(())
    });
    assert_eq!(swarm.events_of("agent_benched").len(), 1);
    let incidents = swarm.status()["incidents"].clone();
    let loops: Vec<&Value> =
        incidents.as_array().expect("a list").iter().filter(|one| one["failure"] == "crash_loop").collect();
    assert_eq!(loops.len(), 1, "{incidents:#}");
    let known = json!({"agent": "thermal-0", "action": "bench", "recovery_us": null});
    for (name, value) in known.as_object().expect("an object") {
        assert_eq!(&loops[0][name], value, "{name}: {incidents:#}");
    }
    assert!(
        loops[0]["cause"].as_str().is_some_and(|cause| cause.contains("more than 2 times")),
        "{incidents:#}"
    );
    assert_eq!(swarm.get("/api/v1/health")["status"], "degraded");
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    swarm.end();
}

#[test]
fn a_cancelled_task_of_a_killed_agent_stays_cancelled() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 1}}}));
    swarm.submit(&json!([{"id": "a", "kernel": "sleep", "params": {"seconds": 3600}}]));
    let task = swarm.until_task("a", "running");
    let agent = swarm.agent(task["agent"].as_str().expect("an agent"));
    let pid = agent["pid"].as_u64().expect("a process") as u32;
    // It can no longer listen; the order to give up comes to nothing.
    assert!(signal(pid, Signal::STOP));
    swarm.ask("POST", "/api/v1/tasks/a/cancel", None).is(200);
    let task = swarm.until_task("a", "cancelled");
    assert_eq!(task["attempts"], 1, "{task:#}");
    swarm.until("it is replaced", |swarm| (swarm.agent("compute-0")["state"] == "ready").then_some(()));
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    swarm.end();
}
