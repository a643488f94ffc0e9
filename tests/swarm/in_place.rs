//! Tasks whose output takes the place of an input, and deaths between the moment when it does and the moment when that is known:
//! whoever runs the task again finds the input as it was.

use crate::hedging::{double, is_stopped, pid};
use crate::support::{Place, Swarm, kill_with_reaper, read_array, request, send, signal, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

/// Nobody looks for hangs, and nobody takes the place of the dead but their successor.
fn config() -> Value {
    json!({"agents": {"compute": {"count": 1, "standbys": 0}, "fault": {"count": 0}}})
}

/// A swarm whose agent has stopped itself with its first task, at this point of its output.
fn stopped(illness: &str, input: &str) -> Swarm {
    let ailment = format!("compute-0:{illness}:1");
    let swarm = Swarm::deploy_with(Place::new(), &config(), &[], &[("AI_SWARM_AILMENT", &ailment)]);
    let file = swarm.place.write_array("x.npy", &[100], &[1.0f64; 100]);
    std::os::unix::fs::symlink(file, swarm.place.path("alias.npy")).expect("a link");
    let agent = pid(&swarm, "compute-0");
    swarm.submit(&json!([double("a", input, "x.npy")]));
    let state = || format!("{:#}", swarm.task("a"));
    until("its agent has stopped", || is_stopped(agent).then_some(()), state);
    swarm
}

fn value(place: &Place) -> f64 {
    read_array(&place.path("x.npy")).as_slice::<f64>().expect("of this type")[99]
}

/// What lies beside the arrays.
fn beside(place: &Place) -> Vec<String> {
    let names = fs::read_dir(place.path("")).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

/// Kills who is meant. The next attempt is made by the agent's successor, or by the supervisor's.
fn kill(swarm: Swarm, who: &str) -> Swarm {
    if who == "supervisor" {
        return Swarm::deploy_in(swarm.kill(), &config(), &[]);
    }
    assert!(signal(pid(&swarm, "compute-0"), Signal::KILL));
    swarm
}

#[test]
fn an_input_that_was_replaced_is_put_back_for_the_next_attempt() {
    for who in ["agent", "supervisor"] {
        for (illness, input, then) in
            [("falter", "x.npy", 1.0), ("linger", "x.npy", 2.0), ("linger", "alias.npy", 2.0)]
        {
            let swarm = stopped(illness, input);
            assert_eq!(value(&swarm.place), then, "{illness}: where it stands still");
            assert!(!beside(&swarm.place).is_empty());
            let swarm = kill(swarm, who);
            let task = swarm.until_task("a", "succeeded");
            assert_eq!(task["attempts"], 2, "{who} {illness}: {task:#}");
            assert_eq!(value(&swarm.place), 2.0, "{who} {illness} {input}: doubled once, and not twice");
            // A second one on top of it, with nobody dying.
            swarm.submit(&json!([double("b", input, "x.npy")]));
            swarm.until_task("b", "succeeded");
            assert_eq!(value(&swarm.place), 4.0);
            swarm.until("nothing is kept any more", |swarm| beside(&swarm.place).is_empty().then_some(()));
            swarm.end();
        }
    }
}

/// At level `power` a supervisor that is killed takes the newest records with it: those of which nobody was told. What an agent
/// did meanwhile is found by its files.
#[test]
fn an_input_that_was_replaced_without_a_record_of_it_is_put_back_too() {
    let mut config = config();
    config["durability"] = json!({"level": "power"});
    let slow =
        [("AI_SWARM_FAIL_AT", "journal.sync:1-=slow:500ms"), ("AI_SWARM_AILMENT", "compute-0:linger:1")];
    let swarm = Swarm::deploy_with(Place::new(), &config, &[], &slow);
    swarm.place.write_array("x.npy", &[100], &[1.0f64; 100]);
    let agent = pid(&swarm, "compute-0");
    let mut late = double("a", "x.npy", "x.npy");
    late["after"] = json!(["first"]);
    // Acknowledged long before an agent gets it.
    swarm.submit(&json!([{"id": "first", "kernel": "sleep", "params": {"seconds": 1.0}}, late]));
    // Who syncs all the time is at it when the agent gets it, and the record of that waits for the next time.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let job = json!({"tasks": [{"kernel": "noop", "priority": "low"}]});
            let request = request("POST", "/api/v1/tasks/submit", Some(&job));
            while !is_over.load(Ordering::Relaxed) {
                let _ = send(&swarm.place.socket(), &request);
            }
        });
        until(
            "its agent has stopped",
            || is_stopped(agent).then_some(()),
            || format!("{:#}", swarm.task("a")),
        );
        kill_with_reaper(swarm.running.pid());
        is_over.store(true, Ordering::Relaxed);
    });
    let Swarm { place, running, .. } = swarm;
    running.finish();
    assert_eq!(value(&place), 2.0, "it has been replaced");
    let swarm = Swarm::deploy_in(place, &config, &[]);
    let task = swarm.until_task("a", "succeeded");
    assert_eq!(task["attempts"], 2, "{task:#}");
    assert_eq!(value(&swarm.place), 2.0, "doubled once, and not twice");
    swarm.until("nothing is kept any more", |swarm| beside(&swarm.place).is_empty().then_some(()));
    swarm.end();
}

#[test]
fn an_input_that_cannot_be_put_back_fails_its_task() {
    for who in ["agent", "supervisor"] {
        let swarm = stopped("linger", "x.npy");
        let old = beside(&swarm.place).into_iter().find(|name| name.ends_with(".old")).expect("it is kept");
        let draft = old.replace(".old", ".tmp");
        fs::remove_file(swarm.place.path(&draft)).expect("it is kept, too");
        // Nothing can be renamed onto a folder.
        fs::remove_file(swarm.place.path("x.npy")).expect("it has appeared");
        fs::create_dir(swarm.place.path("x.npy")).expect("a folder");
        let swarm = kill(swarm, who);
        let task = swarm.until_task("a", "failed");
        let error = task["error"].as_str().expect("words");
        assert!(error.contains("could not be put back from") && error.contains(&old), "{who}: {error}");
        assert_eq!(read_array(&swarm.place.path(&old)).as_slice::<f64>().expect("of this type")[0], 1.0);
        assert_eq!(task["attempts"], 1, "{who}: nobody tried: {task:#}");
        swarm.end();
    }
}

#[test]
fn somebody_elses_file_stays_where_it_was_put() {
    let swarm = stopped("linger", "x.npy");
    let place = swarm.kill();
    // Hours later somebody brings the next array, and starts the swarm again.
    fs::remove_file(place.path("x.npy")).expect("it has appeared");
    place.write_array("x.npy", &[100], &[8.0f64; 100]);
    let swarm = Swarm::deploy_in(place, &config(), &[]);
    swarm.until_task("a", "succeeded");
    assert_eq!(value(&swarm.place), 16.0, "the next attempt reads what is there");
    assert!(beside(&swarm.place).is_empty());
    swarm.end();
}
