//! The gateway dies, is stopped and goes mad: work goes on, and the control API is back at once.

use crate::support::{HANG, Swarm, gateway, lives, request, send, signal, until};
use ai_swarm::client::Attach;
use ai_swarm::kernels::KernelId;
use ai_swarm::tasks::TaskSpec;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The promise.
const BACK_AFTER: Duration = Duration::from_secs(1);

#[track_caller]
fn the_gateway(swarm: &Swarm) -> u32 {
    let supervisor = swarm.running.pid();
    until("there is a gateway", || gateway(supervisor), || swarm.running.err())
}

/// From now until a fresh connection has an answer. One that the dying gateway still took has none.
fn back(socket: &Path) -> Duration {
    let began = Instant::now();
    let healthz = request("GET", "/healthz", None);
    until(
        "the API answers",
        || send(socket, &healthz).filter(|answer| answer.status == 200).map(|_| began.elapsed()),
        String::new,
    )
}

/// Threads and open files of the supervisor, without those of /proc: they are opened with the first look at the host.
fn holds(swarm: &Swarm) -> (usize, Vec<String>) {
    let entries = |what: &str| {
        fs::read_dir(format!("/proc/{}/{what}", swarm.running.pid())).expect("it lives").flatten()
    };
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned);
    let files = entries("fd").filter_map(target).filter(|path| !path.starts_with("/proc/"));
    (entries("task").count(), files.collect())
}

#[test]
fn twenty_kills_of_the_gateway_under_load_cost_nothing() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}}));
    let socket = swarm.place.socket();
    swarm.until("nobody is still on the way", |swarm| {
        let safety = &swarm.status()["safety"];
        (safety["standbys_ready"] == safety["standbys_wanted"]).then_some(())
    });
    let before = holds(&swarm);
    let agents = |swarm: &Swarm| -> Vec<Value> {
        swarm.agents().iter().map(|agent| json!([agent["id"], agent["pid"], agent["restarts"]])).collect()
    };
    let agents_before = agents(&swarm);
    // Somebody who waits for tasks over HTTP, somebody who follows events, and somebody who needs neither.
    let tasks: Vec<Value> =
        (0..200).map(|_| json!({"kernel": "sleep", "params": {"seconds": 0.02}})).collect();
    let job = swarm.place.write("job.json", &json!({"tasks": tasks}).to_string());
    let job = job.to_str().expect("text");
    let waiting = swarm.place.start(&mut swarm.place.command(&["--json", "submit", job, "--wait"]));
    let following = swarm.place.start(&mut swarm.place.command(&["--json", "events", "--follow"]));
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Attach::at(&socket).as_client("load").spin(false).attach().expect("attached");
            let (kernel, kernel_name) = (KernelId::Noop.code(), KernelId::Noop.name());
            let noop = TaskSpec { kernel, kernel_name, ..TaskSpec::default() };
            while !stop.load(Ordering::Relaxed) {
                let ticket = client.submit(&noop).expect("accepted");
                let end = client.wait(ticket, HANG).expect("ended");
                assert!(end.is_success(), "{end:?}");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut last = 0;
            for _ in 0..20 {
                let pid = until(
                    "there is another gateway",
                    || gateway(swarm.running.pid()).filter(|&pid| pid != last),
                    || swarm.running.err(),
                );
                last = pid;
                let seen = done.load(Ordering::Relaxed);
                assert!(signal(pid, Signal::KILL));
                times.push(back(&socket));
                assert!(!lives(pid), "somebody else answered");
                let more = || (done.load(Ordering::Relaxed) > seen).then_some(());
                until("tasks end over shared memory", more, || swarm.running.err());
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    println!("back after {times:?}; {} tasks went by beside it", done.load(Ordering::Relaxed));
    assert!(times.iter().all(|time| *time < BACK_AFTER), "{times:?}");

    let answer = waiting.finish().ends(0).json();
    let tasks = answer["tasks"].as_array().expect("a list");
    assert_eq!(tasks.len(), 200);
    assert!(tasks.iter().all(|task| task["task"]["state"] == "succeeded"), "{answer:#}");
    let restarted = |text: &str| text.lines().filter(|line| line.contains("gateway_restarted")).count();
    until("all was told", || (restarted(&following.out()) == 20).then_some(()), || following.out());
    let events: Vec<Value> =
        following.out().lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let numbers = events.iter().map(|event| event["seq"].as_u64().expect("a number"));
    assert!(numbers.eq(1..=events.len() as u64), "none is missing and none comes twice: {events:#?}");

    let status = swarm.status();
    assert_eq!(status["gateway"]["restarts"], 20, "{status:#}");
    assert_eq!(status["gateway"]["pid"], the_gateway(&swarm));
    assert_eq!(agents(&swarm), agents_before, "no agent noticed anything");
    swarm.place.cli(&["status"]).ends(0).says("replaced 20 times");
    drop(following);
    let has_not_grown = || {
        let (threads, files) = holds(&swarm);
        (threads <= before.0 && files.len() <= before.1.len()).then_some(())
    };
    until("nothing has grown", has_not_grown, || format!("{:#?}\nbefore\n{before:#?}", holds(&swarm)));
    let report = swarm.end();
    let count = |name: &str| report["tasks"][name].as_u64().expect("a number");
    assert_eq!((count("lost"), count("duplicated"), count("failed")), (0, 0, 0), "{report:#}");
    assert_eq!(count("succeeded"), 200 + done.into_inner(), "each once");
}

#[test]
fn a_stopped_gateway_is_found_and_replaced() {
    let swarm = Swarm::deploy(&json!({}));
    let (socket, pid) = (swarm.place.socket(), the_gateway(&swarm));
    back(&socket);
    assert!(signal(pid, Signal::STOP));
    // A command that comes now waits and is answered; it hears nothing of all this.
    let began = Instant::now();
    let status = swarm.place.cli(&["--json", "status"]).ends(0).json();
    println!("answered after {:?}", began.elapsed());
    assert!(began.elapsed() < BACK_AFTER, "{:?}", began.elapsed());
    assert_eq!(status["gateway"]["restarts"], 1, "{status:#}");
    assert!(!lives(pid) && status["gateway"]["pid"] != pid);
    let events = swarm.events_of("gateway_restarted");
    assert!(
        events[0]["text"].as_str().is_some_and(|text| text.contains("somebody had stopped it")),
        "{events:#?}"
    );
    swarm.end();
}

#[test]
fn nonsense_from_a_gateway_ends_that_gateway_and_nothing_else() {
    let swarm = Swarm::deploy(&json!({}));
    let socket = swarm.place.socket();
    back(&socket);
    let pids =
        |swarm: &Swarm| -> Vec<Value> { swarm.agents().iter().map(|agent| agent["pid"].clone()).collect() };
    let before = pids(&swarm);
    // Nobody else has this line; whoever may take descriptors from our processes can have it.
    let words = [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x02\0\0\0\x01\0\0\0\0\0\0\0{}",
        b"\x06\0\0\0\x01\0\0\0\0\0\0\0\"Sudo\"",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    for (at, nonsense) in words.into_iter().enumerate() {
        let pid = the_gateway(&swarm);
        let line = fs::read(format!("/proc/{pid}/cmdline")).expect("it lives");
        let number = line.split(|&byte| byte == 0).nth(3).expect("a fourth word");
        let number = std::str::from_utf8(number).expect("text").parse().expect("a descriptor");
        let pidfd =
            rustix::process::pidfd_open(Pid::from_raw(pid as i32).expect("a number"), PidfdFlags::empty());
        let stolen =
            pidfd.and_then(|pidfd| rustix::process::pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()));
        let Ok(stolen) = stolen else {
            println!("skipped: taking a descriptor from another process: {stolen:?}");
            break;
        };
        UnixStream::from(stolen).write_all(nonsense).expect("written");
        // Its connections break as well, so this is asked until somebody answers.
        let status = || send(&socket, &request("GET", "/api/v1/system/status", None));
        let status = || status().filter(|answer| answer.status == 200).map(|answer| answer.json());
        until(
            "it is replaced",
            || status().filter(|status| status["gateway"]["restarts"] == at + 1),
            || swarm.running.err(),
        );
        let events = swarm.events_of("gateway_restarted");
        let text = events.last().and_then(|event| event["text"].as_str()).expect("words");
        assert!(text.contains("it wrote nonsense"), "{text}");
    }
    assert_eq!(pids(&swarm), before, "no agent was touched");
    swarm.end();
}

#[test]
fn a_private_swarm_has_no_gateway() {
    let swarm = Swarm::deploy(&json!({"gateway": {"enabled": true}}));
    the_gateway(&swarm);
    let running =
        swarm.place.start(&mut swarm.place.command(&["run", "--kernel", "sleep", "--param", "seconds=0.5"]));
    let pid = running.pid();
    until("it has agents", || (!crate::support::children(pid).is_empty()).then_some(()), || running.err());
    while !crate::support::children(pid).is_empty() {
        assert_eq!(gateway(pid), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    running.finish().ends(0);
    swarm.end();
}
