//! The command that breaks a swarm of its own.

use crate::support::Place;

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
    for promise in ["P1", "P2", "P4", "P6", "P8"] {
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
