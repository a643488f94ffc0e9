//! The balancer in simulated worlds: never worse than the best simple rule, unharmed by a bad model, nobody starves,
//! and the dead do no harm.

use ai_swarm::balancer::simulator::contest::{Pupil, baselines, best, worlds};
use ai_swarm::balancer::simulator::{Outcome, Scenario, run};
use ai_swarm::balancer::{POLICIES, placer};
use ai_swarm::config;
use std::path::Path;

const SEEDS: u64 = 6;
const TASKS: usize = 12_000;

fn mean(outcome: &Outcome) -> f64 {
    outcome.mean_ns
}

/// Of all simple rules these are the best of some scenario; `bench balancer` has the others too.
const STRONG: [&str; 3] = ["jsq", "jbsq", "ect"];

#[track_caller]
fn scenario(name: &str) -> Scenario {
    Scenario::named(name).expect("a listed scenario")
}

#[test]
fn the_learned_policy_is_never_worse_than_the_best_simple_rule_tuned_in_hindsight() {
    // The upper end of the interval; and the mean, where there is something to learn.
    for (name, most, mean_most) in [
        ("steady_070", 1.10, 1.0),
        ("steady_085", 1.10, 1.0),
        ("bursty_070", 1.10, 1.0),
        ("shift_070", 1.10, 1.0),
        ("deaths_070", 1.10, 1.0),
        ("opaque_080", 1.03, 1.03),
    ] {
        let worlds = worlds(&scenario(name), SEEDS, TASKS);
        let rules = baselines(STRONG, &worlds, mean);
        let floor = best(&rules, mean);
        let ratio = Pupil::Learned.enter(&worlds).ratio_to(floor, mean);
        let kept = ratio.high < most && ratio.mean < mean_most;
        assert!(kept, "{name}: {ratio:?} against {} ({})", floor.name, floor.tuning);
    }
}

#[test]
fn a_model_of_random_numbers_does_no_harm() {
    for name in ["steady_070", "shift_070", "opaque_080"] {
        let worlds = worlds(&scenario(name), SEEDS, TASKS);
        let safe = Pupil::Safe.enter(&worlds);
        let ratio = Pupil::Poisoned.enter(&worlds).ratio_to(&safe, mean);
        assert!(ratio.high < 1.03, "{name}: {ratio:?} against the safe rule");
    }
}

#[test]
fn an_empty_model_goes_the_safe_way_until_it_knows_better() {
    for name in ["steady_070", "shift_070"] {
        let worlds = worlds(&scenario(name), SEEDS, TASKS);
        let safe = Pupil::Safe.enter(&worlds);
        let ratio = Pupil::Cold.enter(&worlds).ratio_to(&safe, mean);
        assert!(ratio.high < 1.03, "{name}: {ratio:?} against the safe rule");
    }
}

#[test]
fn learning_is_worth_something_when_the_world_moves() {
    // Against the same policy with the same calibration that learns no more.
    let worlds = worlds(&scenario("shift_070"), 30, TASKS);
    let frozen = Pupil::Frozen.enter(&worlds);
    let ratio = Pupil::Learned.enter(&worlds).ratio_to(&frozen, mean);
    assert!(ratio.high < 1.0, "{ratio:?}");
}

#[test]
fn nobody_starves_under_more_work_than_can_be_done() {
    // Half as much again as the agents can do. In the order of submission alone the longest wait is what is left over
    // at the end. Nobody waits longer than that and what it lets pass, which is 50 ms at most.
    let mut overload = scenario("steady_085");
    overload.load = 1.5;
    for seed in 0..3 {
        let world = overload.world(seed, TASKS);
        let wait = |pupil: Pupil| run(&world, &mut pupil.policy(&world, seed), pupil.setup());
        let (learned, safe) = (wait(Pupil::Learned), wait(Pupil::Safe));
        assert_eq!(learned.finished, TASKS);
        let bound = safe.longest_wait_ns + 50_000_000;
        assert!(learned.longest_wait_ns < bound, "{} against {bound}", learned.longest_wait_ns);
    }
}

#[test]
fn every_task_ends_once_although_agents_die() {
    let world = scenario("deaths_070").world(1, TASKS);
    for name in POLICIES {
        let outcome = run(&world, &mut *placer(name, "learned").expect("listed"), Pupil::Safe.setup());
        assert_eq!(outcome.finished, TASKS, "{name}");
        assert!(outcome.returned > 0, "{name}: deaths that nobody noticed test nothing");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let world = scenario("shift_085").world(3, TASKS);
    let figures = |seed| {
        let outcome = run(&world, &mut Pupil::Learned.policy(&world, seed), Pupil::Learned.setup());
        (outcome.mean_ns, outcome.p99_ns, outcome.decisions)
    };
    assert_eq!(figures(5), figures(5));
    assert_ne!(figures(5), figures(6), "another seed explores elsewhere");
}

#[test]
fn the_configuration_names_the_policies_that_there_are() {
    assert_eq!(config::keys::POLICIES, POLICIES, "no word that the swarm would not know");
    for policy in POLICIES {
        for &mode in config::keys::MODES {
            let text = format!(r#"{{"balancer": {{"policy": "{policy}", "mode": "{mode}"}}}}"#);
            let balancer = config::from_text(&text, Path::new("c.json"), &[]).expect("allowed").balancer;
            assert_eq!((balancer.policy, balancer.mode), (policy, mode));
            assert_eq!(placer(balancer.policy, balancer.mode).expect("there is one").name(), policy);
        }
    }
}
