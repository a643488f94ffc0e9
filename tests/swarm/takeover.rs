//! Standbys take over, what agents leave behind goes with them, the swarm gives up what it can do without, and whole kinds
//! are replaced while work goes on.

use crate::support::{
    Place, Swarm, children, is_guard, kill_with_reaper, lives, read_array, reaper, signal, until,
};
use ai_swarm::base::prng::SplitMix64;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Each agent leaves a child and one that detached itself.
const LITTER: (&str, &str) = ("AI_SWARM_TEST_LITTER", "sleep 100000 & setsid sleep 100001 &");

fn pid_of(agent: &Value) -> u32 {
    agent["pid"].as_u64().expect("a process") as u32
}

/// Waits until a standby is ready; its process.
fn standby(swarm: &Swarm) -> u32 {
    swarm.until("a standby is ready, and one child is no agent", |swarm| {
        if swarm.status()["safety"]["standbys_ready"] != 1 {
            return None;
        }
        let agents: BTreeSet<u32> =
            swarm.agents().iter().filter_map(|agent| agent["pid"].as_u64()).map(|pid| pid as u32).collect();
        let others: Vec<u32> =
            children(swarm.running.pid()).into_iter().filter(|pid| !agents.contains(pid)).collect();
        // Between the questions it may have become an agent.
        <[u32; 1]>::try_from(others).ok().map(|[standby]| standby)
    })
}

fn is_replaced(swarm: &Swarm, before: &Value) -> Value {
    let id = before["id"].as_str().expect("an id");
    swarm.until(&format!("{id} is replaced"), |swarm| {
        let agent = swarm.agent(id);
        (agent["state"] == "ready" && agent["pid"] != before["pid"]).then_some(agent)
    })
}

#[test]
fn a_standby_that_was_there_before_takes_the_place_of_the_dead() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}}));
    for round in 0..5 {
        let waiting = standby(&swarm);
        let before = swarm.agent(&format!("compute-{}", round % 2));
        assert!(signal(pid_of(&before), Signal::KILL));
        let after = is_replaced(&swarm, &before);
        assert_eq!(pid_of(&after), waiting, "no process was started for it: {after:#}");
        assert_eq!(after["cores"], before["cores"], "{after:#}");
        assert_eq!(after["incarnation"].as_u64(), before["incarnation"].as_u64().map(|life| life + 1));
    }
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    let report = swarm.end();
    let recoveries = report["recoveries"].as_array().expect("a list");
    assert_eq!(recoveries.iter().filter(|recovery| recovery["warm"] == true).count(), 5, "{recoveries:#?}");
}

/// The devices and numbers of the objects in shared memory that an agent writes, but for the board, which is everybody's.
fn own_objects(pid: u32) -> BTreeSet<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    let own = maps.lines().filter(|line| line.contains("rw-s") && line.contains("memfd:ai_swarm-up"));
    own.map(|line| line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn every_life_has_fresh_segments_and_two_standbys_stand_in_for_two() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2, "standbys": 2}}}));
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let both = |swarm: &Swarm| (swarm.status()["safety"]["standbys_ready"] == 2).then_some(());
        swarm.until("two standbys are ready", both);
        let before = ["compute-0", "compute-1"].map(|id| swarm.agent(id));
        for agent in &before {
            let own = own_objects(pid_of(agent));
            assert!(!own.is_empty(), "it writes somewhere");
            assert!(own.iter().all(|object| seen.insert(object.clone())), "{own:?} among {seen:?}");
        }
        before.iter().for_each(|agent| assert!(signal(pid_of(agent), Signal::KILL)));
        before.iter().for_each(|agent| _ = is_replaced(&swarm, agent));
    }
    let report = swarm.end();
    let recoveries = report["recoveries"].as_array().expect("a list");
    assert_eq!(recoveries.iter().filter(|recovery| recovery["warm"] == true).count(), 6, "{recoveries:#?}");
}

#[test]
fn a_full_dev_shm_is_an_error_at_the_start_and_nothing_later() {
    let place = Place::new();
    let script = |bytes: &str| format!("mount -t tmpfs -o size={bytes} tmpfs /dev/shm && exec \"$@\"");
    let unshared = |words: &[&str], bytes: &str| {
        let mut command = Command::new("unshare");
        place.equip(&mut command);
        command.args(words).args(["sh", "-c", &script(bytes), "sh"]);
        command
    };
    let may = |words: &&&[&str]| unshared(words, "64k").arg("true").status().is_ok_and(|end| end.success());
    let Some(words) = [&["-m"][..], &["-U", "-r", "-m"]].iter().find(may).copied() else {
        return println!("not tried: no mount namespace may be made here");
    };
    let binary = env!("CARGO_BIN_EXE_ai_swarm_deploy");
    let mut command = unshared(words, "4k");
    command.args([binary, "--name", place.name()]).stdin(Stdio::null());
    place.finish(&mut command).ends(3).complains("cannot reserve").complains("/dev/shm");
    let mut command = unshared(words, "64m");
    command.args([binary, "--name", place.name()]);
    let swarm = Swarm::deploy_by(place, command, &json!({"agents": {"compute": {"count": 2}}}), &[]);
    let inside = format!("/proc/{}/root/dev/shm/filler", swarm.running.pid());
    let file = fs::File::create(&inside).expect("there is room yet");
    let mut bytes = 64u64 << 20;
    while bytes > 4096 {
        let mode = rustix::fs::FallocateFlags::empty();
        let end = file.metadata().expect("open").len();
        if rustix::fs::fallocate(&file, mode, end, bytes).is_err() {
            bytes /= 2;
        }
    }
    // Agents come and go, tasks run: what lies there was reserved at the start.
    let before = swarm.agent("compute-0");
    assert!(signal(pid_of(&before), Signal::KILL));
    is_replaced(&swarm, &before);
    let tasks: Vec<Value> = (0..100).map(|_| json!({"kernel": "noop"})).collect();
    swarm.submit(&tasks.into());
    swarm.until("all tasks are done", |swarm| (swarm.status()["tasks"]["succeeded"] == 100).then_some(()));
    assert_eq!(swarm.end()["tasks"]["lost"], 0);
}

#[test]
fn a_dead_standby_and_a_stopped_one_cost_nothing_but_themselves() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 1}}}));
    let first = standby(&swarm);
    assert!(signal(first, Signal::KILL));
    swarm.until("it is missed", |swarm| (!swarm.events_of("standby_died").is_empty()).then_some(()));
    let second = standby(&swarm);
    assert_ne!(first, second);
    // Stopped, it cannot answer; the place is given to another a moment later.
    assert!(signal(second, Signal::STOP));
    let before = swarm.agent("compute-0");
    assert!(signal(pid_of(&before), Signal::KILL));
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    let after = is_replaced(&swarm, &before);
    assert_ne!(pid_of(&after), second);
    let report = swarm.end();
    assert_eq!((&report["tasks"]["lost"], &report["tasks"]["failed"]), (&json!(0), &json!(0)));
}

#[test]
fn without_standbys_there_are_none() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 1, "standbys": 0}}}));
    let before = swarm.agent("compute-0");
    assert!(signal(pid_of(&before), Signal::KILL));
    is_replaced(&swarm, &before);
    assert_eq!(children(swarm.running.pid()).len(), swarm.agents().len());
    let report = swarm.end();
    assert_eq!(report["recoveries"][0]["warm"], false);
}

/// Deploys a swarm whose agents leave processes behind.
fn littered(config: &Value) -> Swarm {
    let place = Place::new();
    let mut command = place.command(&[]);
    command.env(LITTER.0, LITTER.1);
    Swarm::deploy_by(place, command, config, &[])
}

/// Processes that an agent left: number, command, and the life that it belongs to.
fn left_behind(place: &Place) -> Vec<(u32, String)> {
    let lives = place.processes().into_iter().filter(|(_, line)| line.starts_with("sleep 10000"));
    lives
        .map(|(pid, _)| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let life = environment.split(|byte| *byte == 0).find_map(|variable| {
                std::str::from_utf8(variable).ok()?.strip_prefix("AI_SWARM_LIFE=").map(str::to_owned)
            });
            (pid, life.unwrap_or_default())
        })
        .collect()
}

#[test]
fn what_an_agent_started_dies_with_it_and_what_others_started_does_not() {
    let swarm = littered(&json!({"agents": {"compute": {"count": 2, "standbys": 0}}}));
    let agents = swarm.agents().len();
    let all = || {
        let left = left_behind(&swarm.place);
        (left.len() == 2 * agents).then_some(left)
    };
    let before = until("all have left two", all, || format!("{:?}", swarm.place.processes()));
    let victim = swarm.agent("compute-1");
    let environment = fs::read(format!("/proc/{}/environ", pid_of(&victim))).expect("it lives");
    let life = environment.split(|byte| *byte == 0).find_map(|variable| {
        std::str::from_utf8(variable).ok()?.strip_prefix("AI_SWARM_LIFE=").map(str::to_owned)
    });
    let (its_own, others): (Vec<_>, Vec<_>) =
        before.into_iter().partition(|(_, of)| Some(of) == life.as_ref());
    assert_eq!(its_own.len(), 2);
    assert!(signal(pid_of(&victim), Signal::KILL));
    let gone = || its_own.iter().all(|(pid, _)| !lives(*pid)).then_some(());
    until("they are gone", gone, || format!("{its_own:?}\n{}", swarm.running.err()));
    is_replaced(&swarm, &victim);
    assert!(others.iter().all(|(pid, _)| lives(*pid)), "{others:?}");
    // Nothing of it may be left at the end: `end` looks.
    swarm.end();
}

/// Kills, and returns how long it took until all of these were dead.
fn time_to_die(swarm: &Swarm, all: &[OwnedFd]) -> Duration {
    let began = Instant::now();
    swarm.signal(Signal::KILL);
    for fd in all {
        let mut polled = [PollFd::new(fd, PollFlags::IN)];
        let limit = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut polled, Some(&limit)), Ok(1), "a process outlived its supervisor by a minute");
    }
    began.elapsed()
}

#[test]
fn a_killed_supervisor_takes_everybody_along_also_the_stopped_and_the_detached() {
    let mut times = Vec::new();
    for round in 0..4 {
        let swarm = littered(&json!({"agents": {"compute": {"count": 2}}}));
        standby(&swarm);
        let agents = swarm.agents();
        if round % 2 == 0 {
            for agent in &agents {
                assert!(signal(pid_of(agent), Signal::STOP));
            }
        }
        let everybody = swarm.place.processes();
        let left = everybody.iter().filter(|(_, line)| line.starts_with("sleep 10000")).count();
        assert!(left >= 2 * agents.len(), "{everybody:#?}");
        // The guard has ended everybody by then; its own end waits until the host's init has looked at the dead agents,
        // which some do once in a second or two.
        let counted = everybody.iter().filter(|(pid, _)| !is_guard(*pid));
        let open = |(pid, _): &(u32, String)| {
            pidfd_open(Pid::from_raw(*pid as i32).expect("a number"), PidfdFlags::empty()).ok()
        };
        let all: Vec<OwnedFd> = counted.filter_map(open).collect();
        times.push(time_to_die(&swarm, &all));
        let place = swarm.kill();
        until(
            "nothing is left by name",
            || place.left_over().is_empty().then_some(()),
            || format!("{:?}", place.left_over()),
        );
    }
    times.sort();
    println!("all gone after a kill of the supervisor: {times:?}");
    assert!(times[times.len() / 2] < Duration::from_millis(100), "{times:?}");
}

#[test]
fn a_supervisor_killed_at_any_instant_leaves_no_orphan() {
    let kills = std::env::var("AI_SWARM_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let seed: u64 = std::env::var("AI_SWARM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("AI_SWARM_TEST_SEED={seed} AI_SWARM_TEST_KILLS={kills}");
    let mut luck = SplitMix64::new(seed);
    let place = Place::new();
    let config = json!({"agents": {"compute": {"count": 2}}});
    let file = place.write("config.json", &config.to_string());
    let mut met = 0;
    for kill in 0..kills {
        let mut command = place.command(&["--config", file.to_str().expect("text"), "--quiet"]);
        let supervisor = command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut supervisor = supervisor.expect("started");
        std::thread::sleep(Duration::from_micros(luck.next_u64() % 250_000));
        let mut agents = children(supervisor.id());
        met += agents.len();
        // Some are frozen, as by a debugger, some are dead at that very moment and about to be replaced.
        for pid in agents.drain(..) {
            match luck.next_u64() % 4 {
                0 => _ = signal(pid, Signal::STOP),
                1 => _ = signal(pid, Signal::KILL),
                _ => {}
            }
        }
        supervisor.kill().expect("it lives or is ours");
        supervisor.wait().expect("ours");
        let gone = || place.processes().is_empty().then_some(());
        until("nobody is left", gone, || format!("kill {kill}: {:#?}", place.processes()));
    }
    assert!(met >= kills, "only {met} agents were met alive: the kills came too early");
    // What the last one left by name is removed by the next, which ends well.
    place.cli(&["--monitor-duration", "0.2", "--quiet"]).ends(0);
    place.is_clean();
}

#[test]
fn when_the_guard_dies_all_agents_come_back_and_no_task_is_lost() {
    let fault = json!({"restart_limit": 1000, "backoff_max_s": 0.02});
    let swarm = Swarm::deploy(&json!({"agents": {"fault": fault, "compute": {"count": 2}}}));
    if swarm.status()["safety"]["containment"] != "pid_namespace" {
        swarm.end();
        return;
    }
    let tasks: Vec<Value> = (0..200)
        .map(|n| json!({"id": format!("t-{n}"), "kernel": "sleep", "params": {"seconds": 0.005}}))
        .collect();
    swarm.submit(&tasks.into());
    let text =
        fs::read_to_string(format!("/proc/{0}/task/{0}/children", swarm.running.pid())).expect("it lives");
    let guard = text.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|&pid| is_guard(pid));
    assert!(signal(guard.expect("a guard"), Signal::KILL));
    swarm.until("all tasks are done", |swarm| (swarm.status()["tasks"]["succeeded"] == 200).then_some(()));
    swarm.until("all are back", |swarm| {
        swarm.agents().iter().all(|agent| agent["state"] == "ready").then_some(())
    });
    assert_eq!(swarm.events_of("guard_died").len(), 1);
    let report = swarm.end();
    assert_eq!((&report["tasks"]["lost"], &report["tasks"]["duplicated"]), (&json!(0), &json!(0)));
}

/// Descriptors and resident kilobytes of a process. Some are open for a moment only, to read in /proc or to answer: the
/// fewest of many looks are what it holds.
fn footprint(pid: u32) -> (usize, usize) {
    let look = |_| {
        std::thread::sleep(Duration::from_millis(10));
        fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count()
    };
    let descriptors = (0..50).map(look).min().expect("looks");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    (descriptors, line.trim_end_matches("kB").trim().parse().expect("a number"))
}

#[test]
fn descriptors_and_memory_of_the_supervisor_come_back_to_where_they_were() {
    let fault = json!({"restart_limit": 1000, "backoff_max_s": 0.02});
    let swarm = Swarm::deploy(&json!({"agents": {"fault": fault, "compute": {"count": 2}}}));
    let kill = |rounds: usize| {
        for round in 0..rounds {
            standby(&swarm);
            let before = swarm.agent(&format!("compute-{}", round % 2));
            assert!(signal(pid_of(&before), Signal::KILL));
            is_replaced(&swarm, &before);
        }
        standby(&swarm);
        footprint(swarm.running.pid())
    };
    let first = kill(15);
    let second = kill(45);
    println!("descriptors and kB resident after 15 kills {first:?}, after 60 {second:?}");
    assert_eq!(first.0, second.0, "descriptors leak");
    // Events and recoveries are kept on record, a few hundred bytes each.
    assert!(second.1 < first.1 + 1024, "memory leaks: {first:?}, {second:?}");
    swarm.end();
}

#[test]
fn while_one_dies_every_ten_milliseconds_the_others_go_on() {
    let fault = json!({"restart_limit": 1000, "backoff_max_s": 0.02});
    let swarm =
        Swarm::deploy(&json!({"agents": {"fault": fault, "compute": {"count": 3}}, "tasks": {"window": 1}}));
    let mut given = 0;
    let mut feed = |until: Instant, mut each: Box<dyn FnMut() + '_>| {
        let others = |swarm: &Swarm| {
            ["compute-1", "compute-2"]
                .map(|id| swarm.agent(id)["tasks"].as_u64().expect("a number"))
                .iter()
                .sum::<u64>()
        };
        let (before, began) = (others(&swarm), Instant::now());
        while Instant::now() < until {
            if swarm.status()["queued"].as_u64() < Some(300) {
                let tasks = (given..given + 300).map(
                    |n| json!({"id": format!("t-{n}"), "kernel": "sleep", "params": {"seconds": 0.004}}),
                );
                swarm.submit(&tasks.collect::<Vec<_>>().into());
                given += 300;
            }
            std::thread::sleep(Duration::from_millis(10));
            each();
        }
        (others(&swarm) - before) as f64 / began.elapsed().as_secs_f64()
    };
    let quiet = feed(Instant::now() + Duration::from_secs(2), Box::new(|| {}));
    let mut kills = 0;
    let stormy = feed(
        Instant::now() + Duration::from_secs(2),
        Box::new(|| {
            if let Some(pid) = swarm.agent("compute-0")["pid"].as_u64() {
                kills += usize::from(signal(pid as u32, Signal::KILL));
            }
        }),
    );
    println!("{kills} kills; the others did {quiet:.0} tasks/s undisturbed, {stormy:.0} beside them");
    assert!(kills >= 20, "only {kills} kills");
    for id in ["compute-1", "compute-2"] {
        assert_eq!(swarm.agent(id)["restarts"], 0);
    }
    // Starting processes costs the very cores that they work on, and this host may have others; they must not stand still.
    assert!(stormy > 0.3 * quiet, "{stormy:.0} of {quiet:.0} tasks/s");
    swarm.until("all tasks are done", |swarm| {
        let counts = &swarm.status()["tasks"];
        (counts["succeeded"] == counts["total"]).then_some(())
    });
    let report = swarm.end();
    assert_eq!((&report["tasks"]["lost"], &report["tasks"]["duplicated"]), (&json!(0), &json!(0)));
}

/// Megabytes of a process, and whether it has this much.
fn has_resident(pid: u32, mb: usize) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim_end_matches("kB").trim().parse::<usize>().is_ok_and(|kb| kb >= mb << 10)
}

/// The kernel reports a death when the memory is torn down, which takes tens of milliseconds for a large agent. The word that the
/// agent held is given back before: its death is known, and told to others, while the process is still on its way.
#[test]
fn the_death_of_a_large_agent_is_known_before_the_kernel_reports_it() {
    const SIDE: usize = 14_000;
    const LARGE_MB: usize = 700;
    let place = Place::new();
    place.write_array("column.npy", &[SIDE, 1], &vec![1f32; SIDE]);
    place.write_array("row.npy", &[1, SIDE], &vec![1f32; SIDE]);
    let swarm = Swarm::deploy_in(place, &json!({"agents": {"compute": {"count": 2}}}), &[]);
    let mut leads = Vec::new();
    for round in 0..6 {
        standby(&swarm);
        let id = format!("large-{round}");
        let inputs = ["column.npy", "row.npy"];
        swarm.submit(
            &json!([{"id": id, "kernel": "matmul", "inputs": inputs, "output": format!("{id}.npy")}]),
        );
        let holder = swarm.until("somebody is large", |swarm| {
            let task = swarm.task(&id);
            assert_ne!(task["state"], "failed", "{task:#}");
            let holder = swarm.agent(task["agent"].as_str()?);
            let is_done = task["state"] == "succeeded";
            (is_done || holder["pid"].as_u64().is_some_and(|pid| has_resident(pid as u32, LARGE_MB)))
                .then_some((!is_done).then_some(holder))
        });
        // It was quick this time.
        let Some(holder) = holder else { continue };
        let pid = Pid::from_raw(pid_of(&holder) as i32).expect("a number");
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let mut events = swarm.follow();
        assert!(signal(pid_of(&holder), Signal::KILL));
        let reported = std::thread::spawn(move || {
            let limit = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
            assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)), Ok(1), "it does not die");
            Instant::now()
        });
        events.until(|event| event["kind"] == "agent_died" && event["agent"] == holder["id"]);
        let known = Instant::now();
        let reported = reported.join().expect("no panic");
        leads.push(reported.saturating_duration_since(known).as_secs_f64() * 1e3);
        swarm.ask("POST", &format!("/api/v1/tasks/{id}/cancel"), None);
        swarm.until("the task has ended", |swarm| {
            let state = swarm.task(&id)["state"].clone();
            ["succeeded", "cancelled"].map(Value::from).contains(&state).then_some(())
        });
    }
    println!("known before the kernel's report by (ms): {leads:.2?}");
    assert!(leads.len() >= 2, "nobody was caught while it was large");
    // A busy host may be late with the news, but not every time; without the word it always is.
    assert!(leads.iter().any(|&lead| lead > 0.0), "{leads:?}");
    swarm.end();
}

/// What the system may refuse when a process is to be started, and how it says so.
const REFUSALS: [(&str, &str); 3] = [
    ("processes", "Resource temporarily unavailable"),
    ("memory", "Cannot allocate memory"),
    ("files", "Too many open files"),
];

#[test]
fn a_host_without_room_for_a_process_costs_no_task() {
    for (what, words) in REFUSALS {
        // Seven agents are there; the next three starts are refused.
        let order = format!("spawn:8-10={what}");
        let config = json!({"agents": {"compute": {"count": 2, "standbys": 0}}});
        let swarm = Swarm::deploy_with(Place::new(), &config, &[], &[("AI_SWARM_FAIL_AT", &order)]);
        let before = swarm.agent("compute-0");
        let tasks: Vec<Value> =
            (0..200).map(|_| json!({"kernel": "sleep", "params": {"seconds": 0.002}})).collect();
        swarm.submit(&tasks.clone().into());
        assert!(signal(pid_of(&before), Signal::KILL));
        let refused = swarm.until("all refusals are told", |swarm| {
            let events = swarm.events_of("agent_start_failed");
            (events.len() == 3).then_some(events)
        });
        assert!(refused.iter().all(|event| event["text"].to_string().contains(words)), "{refused:#?}");
        // It is said what the swarm does without, and it accepts all the same.
        let degraded = swarm.until("it does with fewer", |swarm| {
            let events = swarm.events_of("degraded");
            (events.len() == 2).then_some(events)
        });
        assert!(degraded[1]["text"].to_string().contains(words), "{degraded:#?}");
        swarm.submit(&tasks.into());
        swarm
            .until("all tasks are done", |swarm| (swarm.status()["tasks"]["succeeded"] == 400).then_some(()));
        let report = swarm.end();
        assert_eq!(
            (&report["tasks"]["lost"], &report["tasks"]["duplicated"]),
            (&json!(0), &json!(0)),
            "{what}"
        );
    }
}

#[test]
fn a_start_that_is_refused_while_the_swarm_comes_up_is_made_good() {
    for start in 1..=7 {
        let (what, words) = REFUSALS[start % REFUSALS.len()];
        let order = format!("spawn:{start}={what}");
        let config = json!({"agents": {"compute": {"count": 2, "standbys": 0}}});
        // It waits until all seven are ready.
        let swarm = Swarm::deploy_with(Place::new(), &config, &[], &[("AI_SWARM_FAIL_AT", &order)]);
        let refused = swarm.events_of("agent_start_failed");
        assert_eq!(refused.len(), 1, "{order}: {refused:#?}");
        assert!(refused[0]["text"].to_string().contains(words), "{order}: {refused:#?}");
        swarm.submit(&json!([{"id": "a", "kernel": "noop"}]));
        swarm.until_task("a", "succeeded");
        swarm.end();
    }
}

/// Each step of a start wants something of the system. Seven agents make about forty of them; what is refused is tried again.
#[test]
fn whatever_a_start_lacks_costs_no_task_and_nothing_is_left_of_it() {
    let mut told = 0;
    for pass in (1..=60).step_by(5) {
        let (what, words) = REFUSALS[pass / 5 % REFUSALS.len()];
        let order = format!("spawn.step:{pass}-{}={what}", pass + 1);
        let config = json!({"agents": {"compute": {"count": 2, "standbys": pass % 2}}});
        let swarm = Swarm::deploy_with(Place::new(), &config, &[], &[("AI_SWARM_FAIL_AT", &order)]);
        let tasks: Vec<Value> =
            (0..100).map(|_| json!({"kernel": "sleep", "params": {"seconds": 0.002}})).collect();
        swarm.submit(&tasks.into());
        for _ in 0..2 {
            // Short of what it was refused, the swarm may do with one of the two for a while.
            let killed = swarm.until("somebody works", |swarm| {
                let mut agents = swarm.agents().into_iter().filter(|agent| agent["kind"] == "compute");
                let ready = agents.find(|agent| agent["state"] == "ready")?;
                signal(pid_of(&ready), Signal::KILL).then_some(ready)
            });
            swarm.until("it is gone", |swarm| {
                (swarm.agent(killed["id"].as_str().expect("an id"))["pid"] != killed["pid"]).then_some(())
            });
        }
        swarm
            .until("all tasks are done", |swarm| (swarm.status()["tasks"]["succeeded"] == 100).then_some(()));
        let refused: Vec<Value> =
            ["agent_start_failed", "standby_died"].iter().flat_map(|kind| swarm.events_of(kind)).collect();
        assert!(
            refused.iter().all(|event| event["text"].to_string().contains(words)),
            "{order}: {refused:#?}"
        );
        told += refused.len();
        let tasks = swarm.end()["tasks"].clone();
        assert_eq!(
            (&tasks["lost"], &tasks["duplicated"], &tasks["failed"]),
            (&json!(0), &json!(0), &json!(0))
        );
    }
    assert!(told >= 10, "{told} refusals in all");
}

/// What `statfs` calls it.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// A control group whose processes may have so much memory together. Removed when it is dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Says why there can be none.
    fn new(name: &str, bytes: u64) -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let mut why = "no memory controller is mounted".to_owned();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
            let (root, limit) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => continue,
            };
            let group = Path::new(root).join(path.trim_start_matches('/')).join(name);
            if let Err(error) = fs::create_dir(&group) {
                why = format!("{}: {error}", group.display());
                continue;
            }
            let group = Self(group);
            if let Err(error) = fs::write(group.0.join(limit), bytes.to_string()) {
                why = format!("{limit}: {error}");
                continue;
            }
            // Where there is swap, memory does not end.
            let swap = match limit {
                "memory.max" => fs::write(group.0.join("memory.swap.max"), "0"),
                _ => fs::write(group.0.join("memory.memsw.limit_in_bytes"), bytes.to_string()),
            };
            let has_swap = fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
            match swap {
                Err(error) if has_swap => why = format!("a limit of swap: {error}"),
                _ => return Ok(group),
            }
        }
        Err(why)
    }

    /// What is left of the limit, percent.
    fn free_percent(&self) -> f64 {
        let read = |name: &str| fs::read_to_string(self.0.join(name)).ok();
        let number = |names: [&str; 2]| {
            let text = names.iter().find_map(|name| read(name)).expect("a file of the group");
            text.trim().parse::<f64>().expect("a number")
        };
        let stat = read("memory.stat").expect("a file of the group");
        let of_files = stat.lines().filter_map(|line| {
            let bytes = ["inactive_file ", "active_file "].iter().find_map(|name| line.strip_prefix(name))?;
            bytes.parse::<f64>().ok()
        });
        let limit = number(["memory.max", "memory.limit_in_bytes"]);
        100.0 * (limit - number(["memory.current", "memory.usage_in_bytes"]) + of_files.sum::<f64>()) / limit
    }

    /// The command, run in the group.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.0.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.current_dir(command.get_current_dir().expect("set by the place"));
        inside
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its last processes may need a moment to be gone.
        let _ = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            fs::remove_dir(&self.0).is_ok()
        });
    }
}

#[test]
fn a_task_that_needs_more_memory_than_there_is_ends_as_poison_and_the_others_do_not() {
    let place = Place::new();
    let group = match MemoryGroup::new(place.name(), 280 << 20) {
        Ok(group) => group,
        Err(why) => return println!("not tried: this host gives us no group with a memory limit: {why}"),
    };
    if rustix::fs::statfs(place.path("config.json").parent().expect("a folder"))
        .is_ok_and(|fs| fs.f_type == TMPFS)
    {
        return println!("not tried: files lie in memory here");
    }
    // 160 MB of zeros that take no room, and twice as much for the answer.
    let rows = 20_000_000;
    let small = place.write_array("small.npy", &[8], &[1.0f64; 8]);
    let mut header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows},), }}");
    header.push_str(&" ".repeat(117 - header.len()));
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.push(b'\n');
    assert_eq!(bytes.len(), 128);
    let large = place.beside("work/large.npy");
    fs::write(&large, &bytes).expect("room");
    fs::File::options().write(true).open(&large).and_then(|file| file.set_len(128 + 8 * rows)).expect("room");
    let command = group.inside(&place.command(&[]));
    let config = json!({"agents": {"compute": {"count": 2}}, "tasks": {"divide_above_s": 0}});
    let swarm = Swarm::deploy_by(place, command, &config, &[]);
    let transform = |id: &str, input: &Path| json!({"id": id, "kernel": "fft", "inputs": [input], "output": swarm.place.beside(id)});
    swarm.submit(&json!([transform("large", &large)]));
    let tasks: Vec<Value> = (0..50).map(|at| transform(&format!("t{at}"), &small)).collect();
    swarm.submit(&tasks.into());
    let ended = swarm.until_task("large", "failed");
    let error = ended["error"].as_str().expect("words");
    assert!(error.contains("poison") && error.contains("out of memory"), "{error}");
    assert_eq!(ended["attempts"], 3, "{ended:#}");
    for at in 0..50 {
        swarm.until_task(&format!("t{at}"), "succeeded");
    }
    let deaths = swarm.events_of("agent_died");
    assert_eq!(deaths.len(), 3, "{deaths:#?}");
    assert!(deaths.iter().all(|event| event["text"].to_string().contains("out of memory")), "{deaths:#?}");
    let incidents = swarm.status()["incidents"].clone();
    let classes: Vec<&str> =
        incidents.as_array().expect("a list").iter().filter_map(|one| one["failure"].as_str()).collect();
    assert_eq!(classes.iter().filter(|class| **class == "poison").count(), 1, "{incidents:#}");
    assert_eq!(classes.iter().filter(|class| **class == "crash").count(), 3, "{incidents:#}");
    let tasks = swarm.end()["tasks"].clone();
    assert_eq!((&tasks["failed"], &tasks["succeeded"], &tasks["lost"]), (&json!(1), &json!(50), &json!(0)));
}

/// A process that holds so much memory in the group. Dropped, it is gone.
struct Hog(std::process::Child);

impl Hog {
    fn new(group: &MemoryGroup, bytes: u64) -> Self {
        // It keeps what it has read until its input ends.
        let words = format!("echo $$ > \"$0\" && exec tail -c {bytes}");
        let mut command = Command::new("sh");
        command.args(["-c", &words]).arg(group.0.join("cgroup.procs"));
        let mut hog = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("sh and tail");
        let mut input = hog.stdin.take().expect("piped");
        let chunk = vec![7; 1 << 16];
        for _ in 0..bytes >> 16 {
            std::io::Write::write_all(&mut input, &chunk).expect("it reads");
        }
        hog.stdin = Some(input);
        Self(hog)
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The swarm's own control group is full up to a little, and the host is not.
#[test]
fn a_full_control_group_is_an_error_before_acceptance_and_what_was_accepted_is_done() {
    const LIMIT: u64 = 600 << 20;
    let place = Place::new();
    let group = match MemoryGroup::new(place.name(), LIMIT) {
        Ok(group) => group,
        Err(why) => return println!("not tried: this host gives us no group with a memory limit: {why}"),
    };
    let command = group.inside(&place.command(&[]));
    let swarm = Swarm::deploy_by(place, command, &json!({"agents": {"compute": {"count": 2}}}), &[]);
    standby(&swarm);
    assert_eq!(swarm.status()["safety"]["level"], "full");
    let job = json!({"tasks": [{"kernel": "noop"}]});
    let submit = || swarm.ask("POST", "/api/v1/tasks/submit", Some(&job));
    let mut hogs = Vec::new();
    let began = Instant::now();
    loop {
        let safety = swarm.status()["safety"].clone();
        if safety["level"] == "refuse" {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{safety:#}");
        let percent = group.free_percent();
        if percent > 1.5 {
            hogs.push(Hog::new(&group, (LIMIT as f64 * (percent - 1.0) / 100.0) as u64));
        }
        // Accepted on the way down.
        submit();
        std::thread::sleep(Duration::from_millis(200));
    }
    submit().refuses(503, "of memory is free");
    drop(hogs);
    swarm.until("all is well again", |swarm| (swarm.status()["safety"]["level"] == "full").then_some(()));
    swarm.until("all tasks are done", |swarm| {
        let counts = &swarm.status()["tasks"];
        (counts["succeeded"] == counts["total"]).then_some(())
    });
    let deaths = swarm.events_of("agent_died");
    assert!(deaths.is_empty(), "{deaths:#?}");
    let tasks = swarm.end()["tasks"].clone();
    assert!(tasks["succeeded"].as_u64() > Some(0) && tasks["lost"] == 0, "{tasks:#}");
}

/// Writes a `/proc` that has so much memory free, percent.
fn memory(folder: &Path, percent: f64) {
    fs::create_dir_all(folder.join("pressure")).expect("a folder");
    let text = format!("MemTotal: 1000000 kB\nMemAvailable: {} kB\n", (percent * 1e4) as u64);
    fs::write(folder.join("meminfo"), text).expect("written");
    let calm =
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
    fs::write(folder.join("pressure/memory"), calm).expect("written");
}

#[test]
fn short_of_memory_the_swarm_gives_up_one_thing_after_the_other_and_takes_all_back() {
    let place = Place::new();
    let procfs = place.beside("proc");
    memory(&procfs, 50.0);
    let agents = json!({"resource": {"procfs": procfs}, "compute": {"count": 2}});
    let swarm = Swarm::deploy_in(place, &json!({"agents": agents}), &[]);
    standby(&swarm);
    let at = |level: &str| {
        swarm.until(level, |swarm| (swarm.status()["safety"]["level"] == level).then_some(()));
    };
    let state = |id: &str| swarm.agent(id)["state"].clone();

    memory(&procfs, 2.5);
    at("accept_only");
    swarm.until("they rest", |_| {
        ["compute-1", "learning-0", "optimization-0"].iter().all(|id| state(id) == "resting").then_some(())
    });
    assert_eq!(state("compute-0"), "ready");
    assert_eq!(swarm.get("/api/v1/health")["status"], "degraded");
    swarm.until("no standby is left", |swarm| {
        (children(swarm.running.pid()).len() == swarm.agents().len() - 3).then_some(())
    });
    swarm.submit(&json!([{"id": "a", "kernel": "noop"}]));

    memory(&procfs, 1.0);
    at("refuse");
    let job = json!({"tasks": [{"id": "b", "kernel": "noop"}]});
    let answer = swarm.ask("POST", "/api/v1/tasks/submit", Some(&job));
    assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
    answer.refuses(503, "1.0 % of memory is free");
    assert_eq!(swarm.task("a")["state"], "queued", "accepted, and kept");
    let text = swarm.place.cli(&["status"]).ends(0).says("level refuse").out;
    assert!(text.contains("of memory is free"), "{text}");

    memory(&procfs, 50.0);
    at("full");
    assert_eq!(swarm.until_task("a", "succeeded")["attempts"], 1);
    swarm.until("all are back", |swarm| {
        swarm.agents().iter().all(|agent| agent["state"] == "ready").then_some(())
    });
    standby(&swarm);
    let steps: Vec<String> = swarm
        .events()
        .iter()
        .filter(|event| event["kind"] == "degraded" || event["kind"] == "eased")
        .map(|event| event["text"].as_str().expect("words").split(':').next().expect("one").to_owned())
        .collect();
    let levels = [
        "full",
        "no_standbys",
        "fewer_compute_agents",
        "no_optimization_or_learning",
        "accept_only",
        "refuse",
    ];
    let down = levels.windows(2).map(|pair| format!("from {} to {}", pair[0], pair[1]));
    let up = levels.windows(2).rev().map(|pair| format!("from {} to {}", pair[1], pair[0]));
    assert_eq!(steps, down.chain(up).collect::<Vec<_>>());
    swarm.end();
}

#[test]
fn one_that_dies_on_its_way_to_rest_is_told_of_and_what_it_held_is_done_by_the_others() {
    let place = Place::new();
    let procfs = place.beside("proc");
    memory(&procfs, 50.0);
    let agents = json!({"resource": {"procfs": procfs}, "compute": {"count": 2}});
    let swarm = Swarm::deploy_in(place, &json!({"agents": agents}), &[]);
    let ids: Vec<String> = (0..4).map(|at| format!("t{at}")).collect();
    let sleeps = ids.iter().map(|id| json!({"id": id, "kernel": "sleep", "params": {"seconds": 3600}}));
    swarm.submit(&sleeps.collect());
    let runs_there = |id: &String| {
        let task = swarm.task(id);
        task["state"] == "running" && task["agent"] == "compute-1"
    };
    swarm.until("it works", |_| ids.iter().any(runs_there).then_some(()));
    memory(&procfs, 6.0);
    swarm.until("it shall rest", |swarm| (swarm.agent("compute-1")["state"] == "draining").then_some(()));
    assert!(swarm.events_of("agent_died").is_empty());
    assert!(signal(pid_of(&swarm.agent("compute-1")), Signal::KILL));
    swarm.until("it rests", |swarm| (swarm.agent("compute-1")["state"] == "resting").then_some(()));
    let deaths = swarm.events_of("agent_died");
    assert!(deaths.len() == 1 && deaths[0]["text"].to_string().contains("signal 9"), "{deaths:#?}");
    assert!(!ids.iter().any(runs_there));
    for id in &ids {
        swarm.ask("POST", &format!("/api/v1/tasks/{id}/cancel"), None).is(200);
    }
    swarm.end();
}

/// Restarts all compute agents one after the other under load; work never stops for a tenth of a second, before, meanwhile and after.
fn roll(swarm: &Swarm) {
    const AROUND: usize = 4;
    let seen = swarm.events_of("rolling_restart_ended").len();
    let mut given = swarm.status()["tasks"]["total"].as_u64().expect("a number");
    let (mut done, mut began, mut left) = (Vec::new(), false, AROUND);
    while left > 0 {
        if done.len() == AROUND {
            swarm.ask("POST", "/api/v1/agents/compute/restart", Some(&json!({"rolling": true}))).is(200);
            began = true;
        }
        if began && swarm.events_of("rolling_restart_ended").len() > seen {
            left -= 1;
        }
        let status = swarm.status();
        done.push(status["tasks"]["succeeded"].as_u64().expect("a number"));
        if status["queued"].as_u64() < Some(200) {
            let tasks = (given..given + 200)
                .map(|n| json!({"id": format!("t-{n}"), "kernel": "sleep", "params": {"seconds": 0.002}}));
            swarm.submit(&tasks.collect::<Vec<_>>().into());
            given += 200;
        }
        std::thread::sleep(Duration::from_millis(100));
        assert!(done.len() < 600, "it takes for ever: {:#?}", swarm.events());
    }
    // The first span began before there was a task.
    let rates: Vec<u64> = done.windows(2).skip(1).map(|pair| pair[1] - pair[0]).collect();
    assert!(rates.len() > AROUND && rates.iter().all(|&ended| ended > 0), "work stopped: {rates:?}");
}

#[test]
fn a_rolling_restart_loses_nothing_and_never_stops_the_work() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}}));
    let before = ["compute-0", "compute-1"].map(|id| pid_of(&swarm.agent(id)));
    standby(&swarm);
    roll(&swarm);
    let after = ["compute-0", "compute-1"].map(|id| pid_of(&swarm.agent(id)));
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    swarm.until("all tasks are done", |swarm| {
        let counts = &swarm.status()["tasks"];
        (counts["succeeded"] == counts["total"]).then_some(())
    });
    assert!(swarm.events_of("agent_died").is_empty(), "{:#?}", swarm.events_of("agent_died"));
    swarm
        .ask("POST", "/api/v1/agents/nobody/restart", Some(&json!({"rolling": true})))
        .refuses(404, "nobody");
    swarm.place.cli(&["agent", "restart", "thermal-0"]).ends(0);
    swarm.until("it is replaced", |swarm| (swarm.agent("thermal-0")["incarnation"] == 2).then_some(()));
    let report = swarm.end();
    assert_eq!((&report["tasks"]["retried"], &report["tasks"]["lost"]), (&json!(0), &json!(0)));
}

#[test]
fn a_new_binary_comes_in_by_a_rolling_restart_and_a_broken_one_stays_out() {
    let place = Place::new();
    let (path, next) = (place.path("ai_swarm_deploy"), place.path("next"));
    let ours = Path::new(env!("CARGO_BIN_EXE_ai_swarm_deploy"));
    fs::copy(ours, &path).expect("copied");
    let mut command = Command::new(&path);
    place.equip(&mut command);
    command.args(["--name", place.name()]);
    let swarm = Swarm::deploy_by(place, command, &json!({"agents": {"compute": {"count": 2}}}), &[]);
    let file_of = |id: &str| {
        let pid = pid_of(&swarm.agent(id));
        fs::metadata(format!("/proc/{pid}/exe")).expect("it lives").ino()
    };
    let old = fs::metadata(&path).expect("there").ino();
    assert_eq!(file_of("compute-0"), old);

    // One that ends at once, one that is no program, one that may not be executed; the last two never become a process.
    let false_program = fs::read("/bin/false").expect("there");
    let broken: [(&[u8], u32); 3] =
        [(&false_program, 0o755), (b"no program", 0o755), (&false_program, 0o644)];
    for (round, (bytes, mode)) in broken.into_iter().enumerate() {
        for rolling in [true, false] {
            fs::write(&next, bytes).expect("written");
            fs::set_permissions(&next, fs::Permissions::from_mode(mode)).expect("ours");
            fs::rename(&next, &path).expect("replaced");
            standby(&swarm);
            let refused = swarm.events_of("binary_upgrade_failed").len();
            swarm.ask("POST", "/api/v1/agents/compute/restart", Some(&json!({"rolling": rolling}))).is(200);
            swarm.until("it is refused", |swarm| {
                (swarm.events_of("binary_upgrade_failed").len() > refused).then_some(())
            });
            swarm.until("all work", |swarm| {
                swarm.agents().iter().all(|agent| agent["state"] == "ready").then_some(())
            });
            assert_eq!((file_of("compute-0"), file_of("compute-1")), (old, old), "{round} {rolling}");
        }
    }

    fs::copy(ours, &next).expect("copied");
    let new = fs::metadata(&next).expect("there").ino();
    fs::rename(&next, &path).expect("replaced");
    roll(&swarm);
    assert_eq!((file_of("compute-0"), file_of("compute-1"), file_of("thermal-0")), (new, new, old));
    assert_eq!(swarm.events_of("binary_upgraded").len(), 1);
    swarm.until("all tasks are done", |swarm| {
        let counts = &swarm.status()["tasks"];
        (counts["succeeded"] == counts["total"]).then_some(())
    });
    let report = swarm.end();
    assert_eq!((&report["tasks"]["retried"], &report["tasks"]["lost"]), (&json!(0), &json!(0)));
}

/// An orderly stop that keeps tasks, and a start from another file: how the supervisor itself is upgraded.
#[test]
fn a_stop_that_keeps_tasks_leaves_them_to_the_next_binary() {
    let place = Place::new();
    let (path, next) = (place.path("ai_swarm_deploy"), place.path("next"));
    let ours = Path::new(env!("CARGO_BIN_EXE_ai_swarm_deploy"));
    fs::copy(ours, &path).expect("copied");
    let deploy = |place: Place, drain_s: u64, keep_at_stop: bool| {
        let mut command = Command::new(&path);
        place.equip(&mut command);
        command.args(["--name", place.name()]);
        let tasks = json!({"window": 1, "batch": 1, "drain_s": drain_s, "keep_at_stop": keep_at_stop});
        Swarm::deploy_by(place, command, &json!({"agents": {"compute": {"count": 1}}, "tasks": tasks}), &[])
    };
    let array = place.write_array("ones.npy", &[64], &[1.0f64; 64]);
    let sleep = |id: &str, seconds: f64| json!({"id": id, "kernel": "sleep", "params": {"seconds": seconds}});

    let swarm = deploy(place, 0, false);
    let output = swarm.place.beside("answer.npy");
    let answer = json!({"id": "answer", "kernel": "axpy", "inputs": [array, array], "output": output, "idempotency_key": "k"});
    swarm.submit(&json!([sleep("long", 8.0), answer, {"id": "last", "kernel": "noop", "after": ["answer"]}]));
    swarm.until_task("long", "running");
    let waits = swarm.place.start(&mut swarm.place.command(&["submit", "--wait", "--kernel", "noop"]));
    swarm.until("it is accepted", |swarm| (swarm.status()["tasks"]["total"] == 4).then_some(()));
    swarm.place.cli(&["stop", "--keep-tasks"]).ends(0);
    let (place, report) = swarm.ends_for_now(0);
    let of = |name: &str| report["tasks"][name].as_u64();
    let counted = [of("total"), of("succeeded"), of("cancelled"), of("lost"), of("left")];
    assert_eq!(counted, [4, 0, 0, 0, 4].map(Some));
    waits.finish().ends(1).complains("had not ended when the swarm stopped: its next start goes on with it");
    assert!(!output.exists());

    let mut other = fs::read(&path).expect("there");
    other.extend_from_slice(b"another build");
    fs::write(&next, other).expect("written");
    fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).expect("ours");
    fs::rename(&next, &path).expect("replaced");
    let swarm = deploy(place, 60, true);
    assert_eq!(swarm.until_task("long", "succeeded")["attempts"], 2, "it took longer than the stop");
    assert_eq!(swarm.until_task("answer", "succeeded")["attempts"], 1);
    assert_eq!(swarm.until_task("last", "succeeded")["attempts"], 1);
    assert_eq!(read_array(&output).shape(), [64]);
    let again = swarm.submit(&json!([answer]));
    assert_eq!(again[0]["task"]["state"], "succeeded", "the key is known: {again}");

    // What is under way is waited for, and nothing begins meanwhile.
    swarm.submit(&json!([sleep("short", 3.0), sleep("waits", 0.01)]));
    swarm.until_task("short", "running");
    swarm.signal(Signal::TERM);
    let (place, report) = swarm.ends_for_now(0);
    assert_eq!((&report["tasks"]["cancelled"], &report["tasks"]["lost"]), (&json!(0), &json!(0)));
    let swarm = deploy(place, 60, true);
    assert_eq!(swarm.task("short")["state"], "succeeded");
    assert_eq!(swarm.until_task("waits", "succeeded")["attempts"], 1);

    // Whoever asks decides, and once it has begun it stays as it is.
    swarm.submit(&json!([sleep("ends", 6.0), sleep("dropped", 0.01)]));
    swarm.until_task("ends", "running");
    swarm.ask("POST", "/api/v1/system/stop", Some(&json!({"keep_tasks": false}))).is(202);
    swarm.until_task("dropped", "cancelled");
    swarm
        .ask("POST", "/api/v1/system/stop", Some(&json!({"keep_tasks": true})))
        .refuses(409, "stopping already");
    let report = swarm.ends_for_now(0).1;
    assert_eq!((&report["tasks"]["cancelled"], &report["tasks"]["left"]), (&json!(1), &json!(0)));
}

#[test]
fn a_swarm_without_a_journal_cannot_keep_tasks_and_says_so() {
    let swarm = Swarm::deploy(&json!({"durability": {"level": "none"}, "tasks": {"drain_s": 0}}));
    swarm.submit(&json!([{"id": "a", "kernel": "sleep", "params": {"seconds": 3600}}]));
    swarm.place.cli(&["stop", "--keep-tasks"]).ends(1).complains("there is no journal to keep tasks in");
    swarm.ask("POST", "/api/v1/system/stop", Some(&json!({"keep": true}))).refuses(400, "keep_tasks");
    swarm.ask("POST", "/api/v1/system/stop", Some(&json!([]))).refuses(400, "needs an object");
    assert_eq!(swarm.until_task("a", "running")["attempts"], 1, "it goes on");
    assert_eq!(swarm.end()["tasks"]["cancelled"], 1);
}

#[test]
fn without_the_right_to_a_namespace_orphans_are_adopted_and_ended() {
    let place = Place::new();
    // Of util-linux. Where it is missing or not allowed, so that nobody can give the right up, there is nothing to see.
    let words = ["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"];
    let can = Command::new("setpriv").args(words).arg("true").status();
    if !can.is_ok_and(|status| status.success()) {
        println!("not run: setpriv cannot take a right away here");
        return;
    }
    let mut command = Command::new("setpriv");
    place.equip(&mut command);
    command.args(words).arg(env!("CARGO_BIN_EXE_ai_swarm_deploy")).args(["--name", place.name()]);
    command.env(LITTER.0, LITTER.1);
    let config = json!({"agents": {"compute": {"count": 2, "standbys": 0}}});
    let swarm = Swarm::deploy_by(place, command, &config, &[]);
    let safety = swarm.status()["safety"].clone();
    assert_eq!(safety["containment"], "adoption", "{safety}");
    assert!(
        safety["containment_because"].as_str().is_some_and(|why| why.contains("CAP_SYS_ADMIN")),
        "{safety}"
    );
    let agents = swarm.agents().len();
    let all = || (left_behind(&swarm.place).len() == 2 * agents).then_some(());
    until("all have left two", all, || format!("{:?}", swarm.place.processes()));
    let victim = swarm.agent("compute-1");
    assert!(signal(pid_of(&victim), Signal::KILL));
    is_replaced(&swarm, &victim);
    // The successor has left two as well by now; those of the dead are gone.
    let is_as_before = || {
        let left = left_behind(&swarm.place);
        let lives: BTreeSet<&String> = left.iter().map(|(_, life)| life).collect();
        (left.len() == 2 * agents && lives.len() == agents).then_some(())
    };
    until("each has its own", is_as_before, || format!("{:?}", left_behind(&swarm.place)));
    // A killed supervisor cannot end them: its reaper does.
    let place = swarm.kill();
    until(
        "nothing is left by name",
        || place.left_over().is_empty().then_some(()),
        || format!("{:?}", place.left_over()),
    );
    // Without one, the next start of the same swarm does.
    let mut command = Command::new("setpriv");
    place.equip(&mut command);
    command.args(words).arg(env!("CARGO_BIN_EXE_ai_swarm_deploy")).args(["--name", place.name()]);
    command.env(LITTER.0, LITTER.1);
    let swarm = Swarm::deploy_by(place, command, &config, &[]);
    let has_left = || (left_behind(&swarm.place).len() == 2 * agents).then_some(());
    until("all have left two", has_left, || format!("{:?}", swarm.place.processes()));
    kill_with_reaper(swarm.running.pid());
    let Swarm { place, running, .. } = swarm;
    running.finish();
    assert!(!left_behind(&place).is_empty(), "what detached itself outlives them all");
    place.cli(&["--monitor-duration", "0.1", "--quiet"]).ends(0);
    until(
        "the strays are gone",
        || place.processes().is_empty().then_some(()),
        || format!("{:?}", place.processes()),
    );
}

#[test]
fn a_killed_swarm_leaves_nothing_that_has_a_name() {
    let nothing = |place: &Place| {
        until(
            "nothing is left",
            || place.left_over().is_empty().then_some(()),
            || format!("{:#?}", place.left_over()),
        );
    };
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 1}}}));
    let first = reaper(swarm.running.pid()).expect("a reaper");
    // Nothing of it depends on one process that nobody may kill.
    assert!(signal(first, Signal::KILL));
    let second =
        swarm.until("there is another", |swarm| reaper(swarm.running.pid()).filter(|&pid| pid != first));
    assert_eq!(swarm.events_of("reaper_died").len(), 1);
    let told = swarm.until("it is told", |swarm| swarm.events_of("reaper_started").first().cloned());
    assert!(told["text"].to_string().contains(&format!("process {second}")), "{told}");
    // Until it leads a session of its own it dies with its parent.
    let session = || rustix::process::getsid(rustix::process::Pid::from_raw(second as i32)).ok();
    let is_on_its_own = |session: &rustix::process::Pid| session.as_raw_nonzero().get() == second as i32;
    swarm.until("it is on its own", |_| session().filter(is_on_its_own));
    assert_eq!(swarm.place.segments().len(), 1, "the board");
    swarm.submit(&json!([{"id": "kept", "kernel": "sleep", "params": {"seconds": 0.2}}]));
    let place = swarm.kill();
    nothing(&place);
    let place = {
        // What has to outlive it does.
        let swarm = Swarm::deploy_in(place, &json!({"agents": {"compute": {"count": 1}}}), &[]);
        swarm.until_task("kept", "succeeded");
        swarm.kill()
    };
    nothing(&place);

    // A private swarm is gone as a whole.
    let mut command = place.command(&["run", "--kernel", "sleep", "--param", "seconds=60"]);
    let mut running = place.start(&mut command);
    let is_up = || (place.segments().len() == 1 && !children(running.pid()).is_empty()).then_some(());
    until("it is up", is_up, || running.err());
    assert!(signal(running.pid(), Signal::KILL));
    until("it is dead", || running.ended(), String::new);
    nothing(&place);
}

#[test]
fn a_reaper_that_comes_late_touches_nothing_of_a_successor() {
    let place = Place::new();
    let config = json!({"agents": {"compute": {"count": 1}}});
    let swarm = Swarm::deploy_in(place, &config, &[]);
    let reaper = reaper(swarm.running.pid()).expect("a reaper");
    assert!(signal(reaper, Signal::STOP));
    swarm.signal(Signal::KILL);
    let Swarm { place, running, .. } = swarm;
    running.finish();
    let swarm = Swarm::deploy_in(place, &config, &[]);
    assert!(signal(reaper, Signal::CONT));
    until("it is gone", || (!lives(reaper)).then_some(()), || format!("{:?}", swarm.place.processes()));
    assert_eq!(swarm.place.segments().len(), 1, "the successor's board");
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    swarm.end();
}
