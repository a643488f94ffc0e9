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
