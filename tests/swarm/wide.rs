//! One task on several agents: its output is what one agent alone would have written, whoever dies or is told to stop meanwhile,
//! and nothing else is left beside it.

use crate::hedging::{double, pid};
use crate::support::{Place, Swarm, read_array, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;

/// Two agents, nobody who takes the place of the dead but their successor, nobody who looks for hangs; and whatever can be
/// divided is, once somebody knows how long it takes.
fn config() -> Value {
    json!({
        "agents": {"compute": {"count": 2, "standbys": 0}, "fault": {"count": 0}, "optimization": {"count": 0}},
        "tasks": {"divide_above_s": 1e-6, "hedge_percent": 0, "drain_s": 0.5},
    })
}

/// Numbers without any order.
fn numbers(count: usize) -> Vec<f64> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / 1e6 - 8.0).collect()
}

fn done(swarm: &Swarm, task: Value) -> Value {
    let id = task["id"].as_str().expect("an id").to_owned();
    swarm.submit(&json!([task]));
    swarm.until_task(&id, "succeeded")
}

/// What lies beside the arrays.
fn beside(place: &Place) -> Vec<String> {
    let names = fs::read_dir(place.path("")).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

fn is_same(place: &Place, one: &str, other: &str) {
    let (one, other) = (read_array(&place.path(one)), read_array(&place.path(other)));
    assert_eq!((one.dtype(), one.shape()), (other.dtype(), other.shape()));
    assert!(one.bytes() == other.bytes(), "the same bytes");
}

/// A swarm that knows how long it takes to double `x.npy`, and has done so to `whole.npy`.
fn that_knows() -> Swarm {
    knowing(Swarm::deploy(&config()))
}

fn knowing(swarm: Swarm) -> Swarm {
    swarm.place.write_array("x.npy", &[100_001], &numbers(100_001));
    let whole = done(&swarm, double("whole", "x.npy", "whole.npy"));
    assert!(whole["parts"].is_null(), "nobody knew: {whole:#}");
    swarm
}

#[test]
fn a_divided_task_writes_what_a_whole_one_does() {
    let swarm = Swarm::deploy(&config());
    let place = &swarm.place;
    place.write_array("x.npy", &[211, 64], &numbers(211 * 64));
    place.write_array("y.npy", &[64], &numbers(64));
    place.write_array("b.npy", &[64, 33], &numbers(64 * 33));
    place.write_array(
        "singles.npy",
        &[300, 16],
        &numbers(300 * 16).iter().map(|x| *x as f32).collect::<Vec<_>>(),
    );
    let call = |kernel: &str, inputs: &[&str], params: Value| (kernel.to_owned(), json!(inputs), params);
    for (at, (kernel, inputs, params)) in [
        call("axpy", &["x.npy", "x.npy"], json!({"alpha": 0.5})),
        call("expr", &["x.npy", "y.npy"], json!({"expr": "sin(a) + b*b"})),
        call("sort", &["x.npy"], json!({})),
        call("argsort", &["x.npy"], json!({})),
        call("top_k", &["x.npy"], json!({"k": 3})),
        call("cumsum", &["x.npy"], json!({"axis": 1})),
        call("softmax", &["x.npy"], json!({})),
        call("reduce", &["x.npy"], json!({"op": "max", "axis": -1})),
        call("fft", &["x.npy"], json!({})),
        call("rfft", &["x.npy"], json!({})),
        call("matmul", &["x.npy", "b.npy"], json!({})),
        call("knn", &["x.npy", "x.npy"], json!({"k": 4})),
        call("quantize", &["singles.npy"], json!({})),
    ]
    .into_iter()
    .enumerate()
    {
        let task = |name: &str| {
            let (id, output) = (format!("{name}{at}"), format!("{name}{at}.npy"));
            json!({"id": id, "kernel": kernel, "inputs": inputs, "params": params, "output": output})
        };
        let (whole, parts) = (done(&swarm, task("whole")), done(&swarm, task("parts")));
        assert!(whole["parts"].is_null() && parts["parts"].is_number(), "{kernel}: {whole:#} {parts:#}");
        assert_eq!((&parts["attempts"], &parts["backend"]), (&json!(1), &whole["backend"]), "{parts:#}");
        is_same(place, &format!("whole{at}.npy"), &format!("parts{at}.npy"));
        for further in ["scores", "places", "bounds"] {
            if let Some(path) = parts["result"][format!("{further}_path")].as_str() {
                assert!(path.ends_with(&format!("parts{at}.{further}.npy")), "{path}");
            }
            let (one, other) = (format!("whole{at}.{further}.npy"), format!("parts{at}.{further}.npy"));
            assert_eq!(place.path(&one).exists(), place.path(&other).exists(), "{kernel}: {further}");
            if place.path(&one).exists() {
                is_same(place, &one, &other);
            }
        }
    }
    assert_eq!(beside(place), [""; 0]);
    place.cli(&["task", "show", "parts0"]).ends(0).says("parts");
    place.cli(&["task", "explain", "parts0"]).ends(0).says("divided");
    let counts = swarm.status()["tasks"].clone();
    assert_eq!((&counts["succeeded"], &counts["retried"]), (&json!(26), &json!(0)), "{counts:#}");
    let report = swarm.end();
    let axpy = report["kernels"].as_array().and_then(|all| all.iter().find(|it| it["kernel"] == "axpy"));
    assert_eq!(axpy.map(|axpy| &axpy["count"]), Some(&json!(2)), "a task in parts counts once: {report:#}");
}

#[test]
fn what_is_wrong_is_said_of_the_whole() {
    let swarm = that_knows();
    swarm.place.write_array("short.npy", &[99_999], &numbers(99_999));
    let mut wrong = double("wrong", "x.npy", "wrong.npy");
    wrong["inputs"][1] = json!("short.npy");
    swarm.submit(&json!([wrong]));
    let task = swarm.until_task("wrong", "failed");
    assert!(task["error"].as_str().is_some_and(|error| error.contains("100001")), "{task:#}");
    assert!(task["parts"].is_null(), "its last attempt was whole: {task:#}");
    swarm.place.cli(&["task", "explain", "wrong"]).ends(0).says("called off").says("100001");
    swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
    swarm.end();
}

/// A swarm of which `compute-1` stands still with a part of the task `parts`, which `compute-0` has done its own part of.
fn half_done() -> (Swarm, u32) {
    let swarm = that_knows();
    let still = pid(&swarm, "compute-1");
    assert!(signal(still, Signal::STOP));
    swarm.submit(&json!([double("parts", "x.npy", "parts.npy")]));
    swarm.until("one part is done", |swarm| {
        let holds = |agent: &str| swarm.agent(agent)["in_flight"].clone();
        (swarm.task("parts")["parts"].is_number() && holds("compute-0") == 0 && holds("compute-1") == 1)
            .then_some(())
    });
    assert!(!swarm.place.path("parts.npy").exists(), "all or nothing");
    assert!(!beside(&swarm.place).is_empty(), "one part of it is written");
    (swarm, still)
}

#[test]
fn the_part_of_a_dead_agent_is_done_by_another_one() {
    let (swarm, still) = half_done();
    assert!(signal(still, Signal::KILL));
    let task = swarm.until_task("parts", "succeeded");
    assert_eq!(task["attempts"], 1, "{task:#}");
    is_same(&swarm.place, "whole.npy", "parts.npy");
    assert_eq!(beside(&swarm.place), [""; 0]);
    let report = swarm.end();
    assert_eq!((&report["tasks"]["lost"], &report["tasks"]["duplicated"]), (&json!(0), &json!(0)));
}

#[test]
fn a_task_in_parts_can_be_cancelled() {
    let (swarm, _) = half_done();
    swarm.place.cli(&["task", "cancel", "parts"]).ends(0);
    // Who stands still with a part of it does not hear that, and is killed.
    swarm.until_task("parts", "cancelled");
    swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
    assert!(!swarm.place.path("parts.npy").exists());
    let next = done(&swarm, double("next", "x.npy", "next.npy"));
    assert_eq!(next["attempts"], 1, "{next:#}");
    swarm.end();
}

/// Stops both agents, each with a part of the task `parts`.
fn stopped_with_a_part_each(swarm: &Swarm) -> [u32; 2] {
    let pids = ["compute-0", "compute-1"].map(|agent| pid(swarm, agent));
    pids.iter().for_each(|pid| assert!(signal(*pid, Signal::STOP)));
    swarm.submit(&json!([double("parts", "x.npy", "parts.npy")]));
    swarm.until("both have a part", |swarm| {
        let has_one = |agent| swarm.agent(agent)["in_flight"] == 1;
        (has_one("compute-0") && has_one("compute-1")).then_some(())
    });
    pids
}

/// Two agents have a part of it, and hear that nobody wants it; one of them stands still.
#[test]
fn who_stands_still_with_a_part_that_nobody_wants_is_killed() {
    let swarm = that_knows();
    let pids = stopped_with_a_part_each(&swarm);
    swarm.place.cli(&["task", "cancel", "parts"]).ends(0);
    assert!(signal(pids[0], Signal::CONT));
    swarm.until_task("parts", "cancelled");
    swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
    swarm.until("the other one has a successor", |swarm| {
        (swarm.agent("compute-1")["state"] == "ready" && pid(swarm, "compute-1") != pids[1]).then_some(())
    });
    assert_eq!(pid(&swarm, "compute-0"), pids[0], "it did what it was told");
    swarm.end();
}

/// All parts are written, and the agent that shall let the output appear stands still.
#[test]
fn a_task_whose_parts_are_to_be_joined_can_be_cancelled() {
    let (swarm, still) = half_done();
    let joins = pid(&swarm, "compute-0");
    assert!(signal(joins, Signal::STOP) && signal(still, Signal::CONT));
    swarm.until("the join is sent", |swarm| {
        let holds = |agent: &str| swarm.agent(agent)["in_flight"].clone();
        (holds("compute-0") == 1 && holds("compute-1") == 0).then_some(())
    });
    swarm.place.cli(&["task", "cancel", "parts"]).ends(0);
    assert!(signal(joins, Signal::CONT));
    swarm.until_task("parts", "cancelled");
    swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
    assert!(!swarm.place.path("parts.npy").exists() && pid(&swarm, "compute-0") == joins);
    swarm.end();
}

#[test]
fn parts_that_nobody_will_ever_do_are_cancelled() {
    let mut config = config();
    config["fault_tolerance"] = json!(false);
    let swarm = knowing(Swarm::deploy(&config));
    let pids = stopped_with_a_part_each(&swarm);
    pids.iter().for_each(|pid| assert!(signal(*pid, Signal::KILL)));
    swarm.until_task("parts", "cancelled");
    swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
    swarm.end();
}

/// One part has read one file, the other one another: what they wrote does not belong together.
#[test]
fn an_input_that_is_replaced_between_two_parts_is_read_again_as_a_whole() {
    let (swarm, still) = half_done();
    let other: Vec<f64> = numbers(100_001).iter().map(|x| x + 1.0).collect();
    swarm.place.write_array("other.npy", &[100_001], &other);
    fs::rename(swarm.place.path("other.npy"), swarm.place.path("x.npy")).expect("another file");
    assert!(signal(still, Signal::CONT));
    let task = swarm.until_task("parts", "succeeded");
    assert!(task["attempts"] == 2 && task["parts"].is_null(), "{task:#}");
    let doubled: Vec<f64> = other.iter().map(|x| 2.0 * x).collect();
    swarm.place.write_array("doubled.npy", &[100_001], &doubled);
    is_same(&swarm.place, "doubled.npy", "parts.npy");
    swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
    swarm.end();
}

/// An agent says some answer twice: to a part, or to a join.
#[test]
fn an_answer_to_a_part_that_comes_again_is_refused() {
    for said_twice in ["2", "3", "4", "5"] {
        let ill = [("AI_SWARM_AILMENT", format!("compute-0:echo:{said_twice}"))];
        let ill = ill.each_ref().map(|(name, value)| (*name, value.as_str()));
        let swarm = knowing(Swarm::deploy_with(Place::new(), &config(), &[], &ill));
        for round in 0..4 {
            let (id, output) = (format!("parts{round}"), format!("parts{round}.npy"));
            let task = done(&swarm, double(&id, "x.npy", &output));
            assert!(task["attempts"] == 1 && (round > 0 || task["parts"].is_number()), "{task:#}");
            is_same(&swarm.place, "whole.npy", &output);
        }
        assert_eq!(swarm.get("/api/v1/system/statistics")["results_refused"], 1, "{said_twice}");
        assert_eq!(beside(&swarm.place), [""; 0]);
        let report = swarm.end();
        let tasks = &report["tasks"];
        assert_eq!([&tasks["lost"], &tasks["duplicated"]], [&json!(0), &json!(0)]);
    }
}

#[test]
fn a_task_in_parts_survives_the_supervisor() {
    let (swarm, _) = half_done();
    let swarm = Swarm::deploy_in(swarm.kill(), &config(), &[]);
    let task = swarm.until_task("parts", "succeeded");
    assert_eq!(task["attempts"], 2, "{task:#}");
    is_same(&swarm.place, "whole.npy", "parts.npy");
    swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
    swarm.end();
}

#[test]
fn a_stop_leaves_or_cancels_a_task_in_parts() {
    for keeps in [true, false] {
        let (swarm, _) = half_done();
        let keep = format!("--keep-tasks={keeps}");
        swarm.place.cli(&["stop", &keep]).ends(0);
        let (place, report) = swarm.ends_for_now(0);
        let tasks = &report["tasks"];
        assert_eq!(beside(&place), [""; 0], "{keep}");
        assert_eq!(
            (&tasks["left"], &tasks["cancelled"]),
            (&json!(u8::from(keeps)), &json!(u8::from(!keeps))),
            "{report:#}"
        );
        if keeps {
            let swarm = Swarm::deploy_in(place, &config(), &[]);
            swarm.until_task("parts", "succeeded");
            is_same(&swarm.place, "whole.npy", "parts.npy");
            swarm.end();
        }
    }
}

/// Further parts are sent while the swarm waits for what is being done, as long as `tasks.drain_s` allows.
#[test]
fn a_divided_task_ends_before_a_stop_that_keeps_the_others() {
    let mut config = config();
    config["tasks"]["drain_s"] = json!(60);
    let swarm = Swarm::deploy(&config);
    let vectors = |count: usize| numbers(count * 64).iter().map(|x| *x as f32).collect::<Vec<_>>();
    swarm.place.write_array("queries.npy", &[40_000, 64], &vectors(40_000));
    swarm.place.write_array("corpus.npy", &[5000, 64], &vectors(5000));
    let inputs = json!(["queries.npy", "corpus.npy"]);
    let find =
        json!({"id": "parts", "kernel": "knn", "params": {"k": 3}, "inputs": inputs, "output": "near.npy"});
    swarm.submit(&json!([find]));
    swarm.until("it is in parts", |swarm| swarm.task("parts")["parts"].as_u64().filter(|parts| *parts > 1));
    swarm.submit(&json!([{"id": "later", "kernel": "noop", "after": ["parts"]}]));
    swarm.place.cli(&["stop", "--keep-tasks"]).ends(0);
    let (place, report) = swarm.ends_for_now(0);
    let tasks = &report["tasks"];
    assert_eq!((&tasks["succeeded"], &tasks["left"]), (&json!(1), &json!(1)), "{report:#}");
    assert!(place.path("near.npy").exists() && beside(&place).is_empty());
}

#[test]
fn a_divided_task_may_replace_its_input() {
    let swarm = that_knows();
    fs::copy(swarm.place.path("x.npy"), swarm.place.path("own.npy")).expect("a copy");
    let task = done(&swarm, double("own", "own.npy", "own.npy"));
    assert!(task["parts"].is_number() && task["attempts"] == 1, "{task:#}");
    is_same(&swarm.place, "whole.npy", "own.npy");
    swarm.until("the old one is gone", |swarm| beside(&swarm.place).is_empty().then_some(()));
    swarm.end();
}

/// Whoever is killed, at any moment: before a part, in it, between two, at the join. Each swarm divides the first of its tasks;
/// what it learns of the next ones depends on the kills.
#[test]
fn kills_at_any_moment_leave_a_divided_task_right() {
    let mut config = config();
    config["agents"]["compute"]["standbys"] = json!(1);
    let mut divided = 0;
    for life in 0..4_u64 {
        let swarm = Swarm::deploy(&config);
        swarm.place.write_array("x.npy", &[1 << 21], &numbers(1 << 21));
        done(&swarm, double("whole", "x.npy", "whole.npy"));
        for round in 0..4_u64 {
            swarm.until("both are there", |swarm| {
                let is_ready = |agent: &Value| agent["kind"] != "compute" || agent["state"] == "ready";
                swarm.agents().iter().all(is_ready).then_some(())
            });
            let pids = ["compute-0", "compute-1"].map(|agent| pid(&swarm, agent));
            let (id, output) = (format!("parts{round}"), format!("parts{round}.npy"));
            swarm.submit(&json!([double(&id, "x.npy", &output)]));
            std::thread::sleep(std::time::Duration::from_micros((life + 4 * round) * 900));
            signal(pids[round as usize % 2], Signal::KILL);
            let task = swarm.until_task(&id, "succeeded");
            divided += u32::from(task["parts"].is_number());
            is_same(&swarm.place, "whole.npy", &output);
            fs::remove_file(swarm.place.path(&output)).expect("it is there");
        }
        swarm.until("nothing is left", |swarm| beside(&swarm.place).is_empty().then_some(()));
        let report = swarm.end();
        assert_eq!((&report["tasks"]["lost"], &report["tasks"]["duplicated"]), (&json!(0), &json!(0)));
    }
    println!("{divided} of 16 were in parts in the end");
    assert!(divided > 1, "that is what this is about");
}
