//! The learned policy among real processes: who decides can be changed while work goes on, and what waits is not left lying.

use crate::support::Swarm;
use serde_json::{Value, json};

fn nap(id: &str, seconds: f64) -> Value {
    json!({"id": id, "kernel": "sleep", "params": {"seconds": seconds}})
}

fn config(policy: &str) -> Value {
    json!({
        "agents": {"compute": {"count": 2, "standbys": 0}, "optimization": {"count": 0}},
        "balancer": {"policy": policy},
    })
}

#[test]
fn who_decides_is_changed_while_work_goes_on() {
    let swarm = Swarm::deploy(&config("learned"));
    assert_eq!(swarm.status()["balancer"]["mode"], "learned");
    let mut sent = 0;
    for mode in ["safe", "static", "frozen", "learned"] {
        let tasks: Vec<Value> = (sent..sent + 30).map(|at| nap(&format!("t{at}"), 0.002)).collect();
        sent += 30;
        swarm.submit(&tasks.into());
        swarm.place.cli(&["balancer", "mode", mode]).ends(0).says(mode);
        assert_eq!(swarm.status()["balancer"]["mode"], mode);
        // The last one is of another kind: what nobody knows the cost of gets its agent as well.
        swarm.submit(&json!([nap(&format!("long{sent}"), 0.1)]));
        sent += 1;
        swarm.until("all ended", |swarm| (swarm.status()["tasks"]["succeeded"] == sent).then_some(()));
    }
    assert_eq!(swarm.events_of("balancer_mode").len(), 4);
    let balancer = &swarm.status()["balancer"];
    assert!(balancer["samples"].as_u64() > Some(0) && balancer["model_error"].is_number(), "{balancer}");
    let wrong = json!({"mode": "wild"});
    swarm.ask("POST", "/api/v1/balancer/mode", Some(&wrong)).refuses(400, "needs one of learned, frozen");
    swarm.end();
}

#[test]
fn a_policy_that_does_not_learn_has_no_modes() {
    let swarm = Swarm::deploy(&config("ect"));
    assert!(swarm.status()["balancer"].is_null());
    swarm.place.cli(&["balancer", "mode", "safe"]).ends(1).complains("has no modes");
    swarm.end();
}

#[test]
fn why_a_task_went_where_it_went_is_told() {
    let swarm = Swarm::deploy(&config("learned"));
    let tasks: Vec<Value> = (0..40).map(|at| nap(&format!("t{at}"), 0.005)).collect();
    swarm.submit(&tasks.into());
    let last = swarm.until_task("t39", "succeeded");
    swarm.until("all ended", |swarm| (swarm.status()["tasks"]["succeeded"] == 40).then_some(()));
    let task = swarm.task("t39");
    let decision = &task["decision"];
    assert_eq!((&decision["policy"], &decision["agent"]), (&json!("learned"), &last["agent"]), "{task:#}");
    assert_eq!((&decision["attempt"], &decision["of"]), (&json!(1), &json!(2)));
    let candidates = decision["candidates"].as_array().expect("a list");
    let chosen: Vec<&Value> =
        candidates.iter().filter(|candidate| candidate["agent"] == decision["agent"]).collect();
    assert!(candidates.len() == 2 && chosen.len() == 1 && chosen[0]["room"] == true, "{decision:#}");
    // It ran 5 ms, and by the fortieth of its kind somebody knows that.
    let (expected, took) = (decision["expected_us"].as_f64(), decision["took_us"].as_f64());
    assert!(expected > Some(2e3) && took >= Some(5e3), "{decision:#}");
    if decision["by"] == "score" {
        let scores: Vec<f64> =
            candidates.iter().filter_map(|candidate| candidate["score_us"].as_f64()).collect();
        let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(scores.len() == 2 && chosen[0]["score_us"] == least, "{decision:#}");
    }
    let ran = swarm.place.cli(&["task", "explain", "t39"]).ends(0);
    ran.says("The policy `learned` chose compute-").says("and took").says("by model");
    let listed = swarm.get("/api/v1/tasks?limit=1");
    assert!(listed["tasks"][0]["decision"].is_null(), "a list is short: {listed}");
    swarm.end();
}
