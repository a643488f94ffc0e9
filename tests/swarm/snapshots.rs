//! What agents know outlives the swarm: restored, and not believed when damaged.

use crate::support::{Place, Swarm, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn config(place: &Place) -> Value {
    json!({"name": place.name()})
}

/// Ends the swarm in good order and keeps its place.
#[track_caller]
fn end(swarm: Swarm) -> Place {
    swarm.signal(Signal::TERM);
    let Swarm { place, running, .. } = swarm;
    running.finish().ends(0);
    place
}

/// The snapshots of the cost model, oldest first.
fn cost_models(place: &Place) -> Vec<PathBuf> {
    snapshots(place, "cost-model-")
}

fn snapshots(place: &Place, beginning: &str) -> Vec<PathBuf> {
    let folder = place.beside("state/ai_swarm").join(place.name()).join("snapshots");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a folder of snapshots")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning)))
        .collect();
    found.sort();
    found
}

/// The newest state in a snapshot of this name, if there is one.
fn newest(place: &Place, beginning: &str) -> Option<Value> {
    // Of one that is removed at this moment there is a newer one at the next look.
    let text = fs::read_to_string(snapshots(place, beginning).last()?).ok()?;
    Some(serde_json::from_str(text.split_once('\n').expect("a header and a body").1).expect("JSON"))
}

fn texts_of(swarm: &Swarm, kind: &str) -> Vec<String> {
    swarm.events_of(kind).iter().map(|event| event["text"].to_string()).collect()
}

#[test]
fn what_was_learned_outlives_the_swarm_and_damage_is_told() {
    let place = Place::new();
    let first = config(&place);
    let swarm = Swarm::deploy_in(place, &first, &[]);
    assert!(texts_of(&swarm, "snapshot_restored").is_empty(), "nothing can be known yet");
    let tasks: Vec<Value> = (0..20)
        .map(|at| json!({"id": format!("t{at}"), "kernel": "sleep", "params": {"seconds": 0.001}}))
        .collect();
    swarm.submit(&json!(tasks));
    for at in 0..20 {
        swarm.until_task(&format!("t{at}"), "succeeded");
    }
    let place = end(swarm);
    // One, or two where a slow host gave time to write in between.
    let models = cost_models(&place);
    let text = fs::read_to_string(models.last().expect("a snapshot")).expect("readable");
    let (header, body) = text.split_once('\n').expect("a header and a body");
    let header: Value = serde_json::from_str(header).expect("JSON");
    assert_eq!((&header["snapshot"], &header["generation"]), (&json!(1), &json!(models.len())));
    let costs: Value = serde_json::from_str(body).expect("JSON");
    let any = costs.as_array().expect("a list").iter().find(|cost| cost["slot"].is_null());
    let any = any.unwrap_or_else(|| panic!("a cost for any agent: {costs}"));
    assert_eq!(any["kernel"], "sleep");
    // What the supervisor had not passed on when the end came is not among them.
    assert!(any["samples"].as_u64().is_some_and(|samples| (1..=20).contains(&samples)), "{any}");
    assert!(any["mean_ns"].as_f64().is_some_and(|mean| mean >= 1e6), "{any}");

    let swarm = Swarm::deploy_in(place, &first, &[]);
    swarm.until("the model is back", |swarm| {
        let told = texts_of(swarm, "snapshot_restored");
        told.iter().any(|text| text.contains("cost-model, generation")).then_some(())
    });
    assert!(texts_of(&swarm, "snapshot_damaged").is_empty());
    let place = end(swarm);

    assert_eq!(cost_models(&place), models, "nothing new was learned");
    for model in &models {
        let text = fs::read_to_string(model).expect("readable");
        fs::write(model, text.replace("\"sleep\"", "\"sort\" ")).expect("damaged");
    }
    let swarm = Swarm::deploy_in(place, &first, &[]);
    swarm.until("the damage is told", |swarm| {
        let told = texts_of(swarm, "snapshot_damaged");
        let told = told.iter().filter(|text| text.contains("checksum") && text.contains(".json.damaged"));
        (told.count() == models.len()).then_some(())
    });
    assert!(texts_of(&swarm, "snapshot_restored").iter().all(|text| !text.contains("cost-model")));
    let place = end(swarm);
    let aside = cost_models(&place);
    assert!(
        aside.len() == models.len() && aside.iter().all(|path| path.to_string_lossy().ends_with(".damaged"))
    );
}

/// Each step of writing one can fail; it is written later, and nobody is the worse for it.
#[test]
fn a_snapshot_that_cannot_be_written_costs_nothing_but_itself() {
    let place = Place::new();
    let first = config(&place);
    let swarm = Swarm::deploy_with(place, &first, &[], &[("AI_SWARM_FAIL_AT", "snapshot:1-=full")]);
    let tasks: Vec<Value> = (0..20).map(|at| json!({"id": format!("t{at}"), "kernel": "noop"})).collect();
    swarm.submit(&json!(tasks));
    for at in 0..20 {
        swarm.until_task(&format!("t{at}"), "succeeded");
    }
    assert!(swarm.agents().iter().all(|agent| agent["restarts"] == 0));
    let place = end(swarm);
    assert_eq!(
        snapshots(&place, ""),
        [] as [PathBuf; 0],
        "what could not be written is not there, nor half of it"
    );
    for pass in 1..=6 {
        let order = format!("snapshot:{pass}=full");
        let swarm = Swarm::deploy_with(Place::new(), &json!({}), &[], &[("AI_SWARM_FAIL_AT", &order)]);
        swarm.submit(&json!([{"id": "a", "kernel": "noop"}]));
        swarm.until_task("a", "succeeded");
        let place = end(swarm);
        let files = snapshots(&place, "");
        assert!(files.iter().all(|file| file.extension().is_some_and(|end| end == "json")), "{files:?}");
        let swarm = Swarm::deploy_in(place, &json!({}), &[]);
        assert!(texts_of(&swarm, "snapshot_damaged").is_empty(), "{order}: {:#?}", swarm.events());
        end(swarm);
    }
}

/// Nobody had time to say good-bye.
#[test]
fn what_was_chosen_learned_and_decided_outlives_a_kill_of_the_supervisor() {
    let place = Place::new();
    let config = json!({"name": place.name(), "balancer": {"policy": "learned"}});
    let swarm = Swarm::deploy_in(place, &config, &[]);
    let tasks: Vec<Value> =
        (0..30).map(|_| json!({"kernel": "sleep", "params": {"seconds": 0.001}})).collect();
    swarm.submit(&json!(tasks));
    swarm.until("all are done", |swarm| (swarm.status()["tasks"]["succeeded"] == 30).then_some(()));
    swarm.place.cli(&["agent", "optimize", "optimization-0"]).ends(0);
    swarm.until("a variant is chosen", |swarm| (!texts_of(swarm, "variant_chosen").is_empty()).then_some(()));
    let pid = swarm.agent("thermal-0")["pid"].as_u64().expect("a process");
    assert!(signal(pid as u32, Signal::KILL));
    swarm.until("an incident", |swarm| (!texts_of(swarm, "incident_closed").is_empty()).then_some(()));
    swarm.place.cli(&["balancer", "mode", "safe"]).ends(0);
    let kept = swarm.until("it is written", |swarm| {
        newest(&swarm.place, "supervisor-").filter(|kept| kept["mode"] == json!(["safe", "learned"]))
    });
    assert_eq!(kept["incidents"], 1, "{kept:#}");
    let cost = kept["costs"].as_array().expect("a list").iter().find(|cost| cost["kernel"] == "sleep");
    assert!(cost.is_some_and(|cost| cost["ns"].as_f64() > Some(1e6)), "{kept:#}");
    let before = swarm.status()["balancer"].clone();
    let place = swarm.kill();
    let chosen = newest(&place, "variants-").expect("what was chosen");
    assert!(chosen.as_array().is_some_and(|chosen| !chosen.is_empty()), "{chosen:#}");

    let swarm = Swarm::deploy_in(place, &config, &[]);
    swarm.until("all of it is back", |swarm| {
        let told = texts_of(swarm, "snapshot_restored").join(" ");
        ["supervisor, generation", "variants, generation"].iter().all(|one| told.contains(one)).then_some(())
    });
    assert!(texts_of(&swarm, "balancer_mode").iter().any(|text| text.contains("in an earlier life")));
    let after = swarm.status()["balancer"].clone();
    assert_eq!((&after["mode"], &after["samples"]), (&json!("safe"), &before["samples"]), "{after:#}");
    assert_eq!(after["model_error"], before["model_error"]);
    assert_eq!(newest(&swarm.place, "variants-"), Some(chosen), "nothing was chosen anew");
    let pid = swarm.agent("thermal-0")["pid"].as_u64().expect("a process");
    assert!(signal(pid as u32, Signal::KILL));
    swarm.until("the next incident", |swarm| {
        texts_of(swarm, "incident_opened").iter().any(|text| text.contains("incident 2:")).then_some(())
    });
    swarm.place.cli(&["balancer", "mode", "learned"]).ends(0);
    // Who changes the configuration has the last word.
    let place = end(swarm);
    let frozen = json!({"name": place.name(), "balancer": {"policy": "learned", "mode": "frozen"}});
    let swarm = Swarm::deploy_in(place, &frozen, &[]);
    assert_eq!(swarm.status()["balancer"]["mode"], "frozen");
    swarm.end();
}

#[test]
fn what_was_counted_is_known_to_later_lives() {
    let place = Place::new();
    let config = config(&place);
    let swarm = Swarm::deploy_in(place, &config, &[]);
    assert!(swarm.status()["earlier"].is_null());
    let tasks: Vec<Value> = (0..20).map(|_| json!({"kernel": "noop"})).collect();
    swarm.submit(&json!(tasks));
    let late =
        json!({"id": "bad", "kernel": "sleep", "params": {"seconds": 60}, "timeout_s": 0.05, "retries": 1});
    swarm.submit(&json!([late]));
    swarm.until_task("bad", "failed");
    swarm.until("all are done", |swarm| (swarm.status()["tasks"]["succeeded"] == 20).then_some(()));
    // Who is gone for good has been there.
    swarm.place.cli(&["agent", "create", "compute", "--id", "extra"]).ends(0);
    swarm.place.cli(&["agent", "destroy", "extra"]).ends(0);
    swarm
        .until("it is gone", |swarm| swarm.agents().iter().all(|agent| agent["id"] != "extra").then_some(()));
    let place = end(swarm);

    let swarm = Swarm::deploy_in(place, &config, &[]);
    let earlier = swarm.status()["earlier"].clone();
    let tasks = &earlier["tasks"];
    assert_eq!((&earlier["lives"], &tasks["total"]), (&json!(1), &json!(21)), "{earlier:#}");
    assert_eq!(
        (&tasks["succeeded"], &tasks["failed"], &tasks["retried"]),
        (&json!(20), &json!(1), &json!(1))
    );
    let agents = earlier["agents"].as_object().expect("agents");
    let by_agents = |what: &str| agents.values().filter_map(|agent| agent[what].as_u64()).sum::<u64>();
    assert_eq!(by_agents("tasks"), 20, "{earlier:#}");
    assert!(agents.contains_key("extra"), "{earlier:#}");
    assert_eq!(swarm.status()["tasks"]["total"], 0, "this life has its own");
    swarm.place.cli(&["status"]).ends(0).says("21 ended in 1 earlier life of the swarm");
    let more: Vec<Value> = (0..5).map(|at| json!({"id": format!("more-{at}"), "kernel": "noop"})).collect();
    swarm.submit(&json!(more));
    for at in 0..5 {
        swarm.until_task(&format!("more-{at}"), "succeeded");
    }
    // Nobody has time to say good-bye: the journal knows.
    let place = swarm.kill();

    let swarm = Swarm::deploy_in(place, &config, &[]);
    assert_eq!(swarm.status()["earlier"]["tasks"]["succeeded"], 25);
    let place = end(swarm);
    for path in snapshots(&place, "counters-") {
        let text = fs::read_to_string(&path).expect("readable");
        fs::write(&path, text.replace("succeeded", "succeedef")).expect("damaged");
    }
    let swarm = Swarm::deploy_in(place, &config, &[]);
    assert!(texts_of(&swarm, "snapshot_damaged").iter().any(|text| text.contains("counters")));
    let earlier = swarm.status()["earlier"].clone();
    assert_eq!(earlier["tasks"]["succeeded"], 25, "what the journal remembers, and nothing is guessed");
    assert_eq!(earlier["agents"], json!({}));
    swarm.end();
}
