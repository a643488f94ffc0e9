//! The command that breaks a swarm of its own.

use crate::support::{Place, until};
use std::fs;
use std::process::Stdio;

/// Every promise is looked at, every fault that this host allows was injected, and nothing broke.
#[test]
fn a_storm_of_faults_breaks_no_promise() {
    let place = Place::new();
    let words = ["chaos", "--for", "8", "--rate", "30", "--json"];
    let found = place.cli(&words).ends(0).json();
    println!("{found}");
    assert_eq!(found["kept"], true, "{found:#}");
    let injected = |fault: &str| {
        let rows = found["faults"].as_array().expect("a list").iter();
        rows.filter(|row| row["fault"] == fault).filter_map(|row| row["injected"].as_u64()).sum::<u64>()
    };
    // A storm that did not take place proves nothing. A busy host lets fewer of the 240 faults happen in eight seconds.
    assert!(injected("kill") >= 8 && injected("stop") >= 1 && injected("supervisor") >= 1, "{found:#}");
    assert!(found["tasks"].as_u64() >= Some(500), "{found:#}");
    let rows: usize = found["promises"].as_array().map_or(0, |rows| {
        rows.iter()
            .filter(|row| row["what"].as_str().is_some_and(|what| what.contains("a client was told of")))
            .count()
    });
    assert_eq!(rows, 1, "somebody else counts the ends: {found:#}");
    for promise in ["P1", "P2", "P4", "P5", "P6", "P8"] {
        let looked =
            found["promises"].as_array().expect("a list").iter().any(|row| row["promise"] == promise);
        assert!(looked, "{promise}: {found:#}");
    }
    place.is_clean();
}

#[test]
fn what_it_cannot_do_is_said() {
    let place = Place::new();
    place.cli(&["chaos", "--fault", "flood"]).ends(2).complains("kill-many");
    place.cli(&["chaos", "--rate", "0"]).ends(2).complains("above 0");
}

/// The judge judges: whatever somebody takes away, changes or leaves behind is found, the exit code says so, and everything
/// that there is to see is left where it is.
#[test]
fn a_swarm_that_breaks_its_promises_is_found_out() {
    let place = Place::new();
    let folder = place.path("storm");
    let words = ["chaos", "--for", "4", "--rate", "4", "--fault", "kill", "--json", "--folder"];
    let running = place.start(place.command(&words).arg(&folder).stdin(Stdio::null()));
    let outputs = folder.join("work/out");
    // An output appears whole; those that are there by now lie there until the end.
    let two = || {
        let entries = fs::read_dir(&outputs).ok()?.flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.path()).collect();
        names.retain(|path| path.extension().is_some_and(|end| end == "npy"));
        names.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
        (names.len() >= 2).then_some(names)
    };
    let names = until("there are outputs", two, || running.err());
    fs::remove_file(&names[0]).expect("there");
    let mut bytes = fs::read(&names[1]).expect("there");
    *bytes.last_mut().expect("an array") ^= 1;
    fs::write(&names[1], bytes).expect("written");
    fs::write(outputs.join("nobodys.npy"), b"x").expect("written");
    fs::write(folder.join("state/half.tmp"), b"x").expect("written");
    let found = running.finish().ends(1).json();
    println!("{found}");
    assert_eq!(found["kept"], false);
    let broken = |promise: &str| -> Vec<String> {
        let rows =
            found["promises"].as_array().expect("a list").iter().filter(|row| row["promise"] == promise);
        let texts = rows.flat_map(|row| row["broken"].as_array().expect("a list").clone());
        texts.map(|text| text.as_str().expect("words").to_owned()).collect()
    };
    let has = |promise: &str, name: &str| broken(promise).iter().any(|text| text.contains(name));
    for path in &names[..2] {
        let name = path.file_name().and_then(|name| name.to_str()).expect("text");
        assert!(has("P2", name), "{name}: {found:#}");
    }
    assert!(has("P2", "nobodys.npy") && has("P6", "half.tmp"), "{found:#}");
    assert!(broken("P1").is_empty(), "nothing else is wrong: {found:#}");
    for left in ["state/journal.db", "chaos.log", "work/x.npy"] {
        assert!(folder.join(left).exists(), "{left} is kept");
    }
}

#[test]
fn a_storm_that_did_not_take_place_is_no_success() {
    let place = Place::new();
    // In a folder of this place: what is no success is not removed.
    let folder = place.path("storm");
    let words = ["chaos", "--for", "1", "--count", "500", "--rate", "2", "--fault", "kill", "--folder"];
    let ran = place.finish(place.command(&words).arg(&folder).stdin(Stdio::null()));
    ran.ends(1).says("500 were asked for");
}
