//! Peers that write nonsense into everything that they can write, while honest members work beside them. The nonsense
//! is in [`intruder`]; here is what must hold all the same: nobody panics, hangs or believes it, who wrote it is cut
//! off, and the others hardly notice.

use crate::intruder::{
    self, BARRED, CHANNEL_ATTACKS, IDLE_ATTACKS, Intruder, LINE_CLOSED, SUPERVISOR, UNNOTICED,
};
use crate::support::{Swarm, lives, request, send, signal, until};
use ai_swarm::Client;
use ai_swarm::base::prng::SplitMix64;
use ai_swarm::client::{Attach, ClientError, Mail, Peer, PortError, Rule, What};
use ai_swarm::messaging::attach::FromMember;
use ai_swarm::shm::{Access, SharedObject};
use rustix::fs::{FallocateFlags, SealFlags};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);

/// The seed: `AI_SWARM_TEST_SEED`, or a fresh one.
fn seed() -> u64 {
    let fresh = || std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    let seed =
        std::env::var("AI_SWARM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(fresh);
    println!("AI_SWARM_TEST_SEED={seed}");
    seed
}

fn attach(control: &Path, name: &str) -> Client {
    Attach::at(control).as_client(name).spin(false).attach().expect("the swarm listens")
}

/// No test of its own: what [`let_loose`] runs.
#[test]
fn a_hostile_process_of_its_own() {
    let Ok(attack) = std::env::var("AI_SWARM_TEST_ATTACK") else { return };
    let word = |name| std::env::var(name).expect("set by the test");
    let seed = word("AI_SWARM_TEST_SEED").parse().expect("a number");
    let code =
        intruder::run(word("AI_SWARM_TEST_SOCKET").into(), &attack, &word("AI_SWARM_TEST_TARGET"), seed);
    std::process::exit(code);
}

/// Runs an intruder to its end.
fn let_loose(swarm: &Swarm, attack: &str, target: &str, seed: u64) -> i32 {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "hostile::a_hostile_process_of_its_own", "--nocapture"]);
    command.env("AI_SWARM_TEST_ATTACK", attack).env("AI_SWARM_TEST_TARGET", target);
    command.env("AI_SWARM_TEST_SOCKET", swarm.place.socket()).env("AI_SWARM_TEST_SEED", seed.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let end = command.status().expect("this binary starts");
    end.code().unwrap_or_else(|| panic!("{attack} at {target} with seed {seed}: {end}"))
}

/// Bytes that say which message they are, and of which length for which number.
fn pattern(number: u64) -> Vec<u8> {
    let length = [16, 16, 16, 200, 2000, 16_000][(number % 6) as usize];
    let words =
        (0..length / 8).map(|at| if at == 0 { number } else { number.wrapping_mul(0x9E37_79B9) ^ at });
    words.flat_map(u64::to_le_bytes).collect()
}

const HONEST: [&str; 4] = ["tasks", "messages", "requests", "HTTP requests"];

/// What one of them does until it is told to stop.
type Work = Box<dyn FnOnce(&AtomicBool, &[AtomicU64; 4]) + Send>;

/// Members that do what they should, each on a thread, and count what they have done.
struct Honest {
    counts: Arc<[AtomicU64; 4]>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Honest {
    fn start(swarm: &Swarm) -> Self {
        let counts: Arc<[AtomicU64; 4]> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let control = swarm.place.socket();
        let mut listener = attach(&control, "listener");
        listener.subscribe("noise", Rule::DropOldest).expect("subscribed");
        let mut talker = attach(&control, "talker");
        let there = talker.connect("listener").expect("attached");
        let mut threads = Vec::new();
        let mut run = |name: &str, work: Work| {
            let (counts, stop) = (counts.clone(), stop.clone());
            let thread = std::thread::Builder::new().name(name.to_owned());
            threads.push(thread.spawn(move || work(&stop, &counts)).expect("a thread"));
        };
        let goes_on = |stop: &AtomicBool| !stop.load(Ordering::Relaxed);
        let done = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        let socket = control.clone();
        run(
            "worker",
            Box::new(move |stop, counts| {
                let mut worker = attach(&socket, "worker");
                while goes_on(stop) {
                    let ticket = worker.submit_json(&json!({"kernel": "noop"})).expect("taken");
                    let end = worker.wait(ticket, SOON).expect("ended");
                    assert!(end.is_success(), "{end:?}");
                    done(&counts[0]);
                }
            }),
        );
        run("talker", Box::new(move |stop, _| talk(&mut talker, there, stop)));
        run(
            "listener",
            Box::new(move |stop, counts| {
                let (mut mail, mut next) = (Mail::default(), 0);
                loop {
                    if !listener.receive(&mut mail, Duration::from_millis(100)).expect("attached") {
                        if !goes_on(stop) {
                            return;
                        }
                        continue;
                    }
                    // Intruders may say what they like.
                    if listener.port().id_of(mail.from) == Some("talker") {
                        assert!(
                            mail.to_vec() == pattern(next),
                            "message {next} is another: {mail_len} bytes",
                            mail_len = mail.len()
                        );
                        next += 1;
                        done(&counts[1]);
                        listener.flush();
                    }
                }
            }),
        );
        let socket = control.clone();
        run(
            "asker",
            Box::new(move |stop, counts| {
                let mut asker = attach(&socket, "asker");
                let agent = asker.connect("compute-0").expect("an agent");
                for number in 0.. {
                    if !goes_on(stop) {
                        return;
                    }
                    let question = pattern(number);
                    let answer = asker.call(agent, &question, SOON).expect("a reply");
                    assert!(answer == question, "another answer to question {number}");
                    done(&counts[2]);
                }
            }),
        );
        run(
            "browser",
            Box::new(move |stop, counts| {
                let body = json!({"to": "compute-0", "payload": "status", "reply_within_s": 30});
                while goes_on(stop) {
                    let asked = request("POST", "/api/v1/messages/send", Some(&body));
                    let answer = send(&control, &asked).expect("the API answers").is(200).json();
                    assert!(
                        answer["reply"].as_str().is_some_and(|text| text.contains("compute-0")),
                        "{answer}"
                    );
                    done(&counts[3]);
                    let asked = request("GET", "/api/v1/system/statistics", None);
                    send(&control, &asked).expect("the API answers").is(200);
                }
            }),
        );
        Self { counts, stop, threads }
    }

    /// What is done in a second while `meanwhile` goes on, by kind.
    fn rates<T>(&self, meanwhile: impl FnOnce() -> T) -> ([f64; 4], T) {
        let look = || std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed));
        let (before, began): ([u64; 4], _) = (look(), Instant::now());
        let outcome = meanwhile();
        let (after, took) = (look(), began.elapsed().as_secs_f64());
        (std::array::from_fn(|at| (after[at] - before[at]) as f64 / took), outcome)
    }

    /// Ends them; none may have found anything wrong.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            assert!(thread.join().is_ok(), "the {name} found something wrong");
        }
    }
}

fn talk(talker: &mut Client, there: Peer, stop: &AtomicBool) {
    let mut mail = Mail::default();
    for number in 0.. {
        let payload = pattern(number);
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match talker.send(there, &payload) {
                Ok(()) => break,
                Err(ClientError::Port(PortError::Send(_))) => {
                    // Blocks come back with what is received.
                    talker.receive(&mut mail, Duration::from_micros(200)).expect("attached");
                }
                Err(error) => panic!("message {number}: {error}"),
            }
        }
    }
}

/// What one intruder ought to achieve.
fn expected(attack: &str, target: &str) -> i32 {
    match attack {
        "slander" | "gifts" | "flood" | "never" | "crowd" | "churn" => UNNOTICED,
        attack if IDLE_ATTACKS.contains(&attack) => UNNOTICED,
        // A client's word closes its line and no more.
        _ if target == "listener" => LINE_CLOSED,
        _ => BARRED,
    }
}

#[test]
fn honest_members_hardly_notice_hostile_ones() {
    let mut luck = SplitMix64::new(seed());
    let mut swarm = Swarm::deploy(&json!({"channel_size": 65536, "messaging": {"arena_bytes": 64 << 20}}));
    let lives_before: Vec<Value> = swarm.agents().iter().map(|agent| agent["pid"].clone()).collect();
    let honest = Honest::start(&swarm);
    let counted = || std::array::from_fn::<u64, 4, _>(|at| honest.counts[at].load(Ordering::Relaxed));
    until(
        "everybody is at work",
        || counted().iter().all(|&count| count > 3).then_some(()),
        || format!("{:?}", counted()),
    );
    let quiet = || std::thread::sleep(Duration::from_millis(700));
    let (before, ()) = honest.rates(quiet);

    let mut plan: Vec<(&str, &str)> = Vec::new();
    for attack in CHANNEL_ATTACKS {
        // Only who answers looks at what is acknowledged.
        let targets: &[&str] = match attack {
            "heads" => &[SUPERVISOR, "compute-0"],
            _ => &[SUPERVISOR, "compute-0", "listener", "gateway"],
        };
        plan.extend(targets.iter().map(|&target| (attack, target)));
    }
    plan.extend(IDLE_ATTACKS.map(|attack| (attack, "compute-0")));
    plan.extend([("numbers", "listener"), ("bells", "listener"), ("bells", "gateway")]);
    plan.extend([("feed-noise", "listener"), ("feed-end", "listener")]);
    let words =
        ["no-json", "deep", "long", "unknown", "twice", "early", "foreign", "slander", "gifts", "flood"];
    plan.extend(words.map(|attack| (attack, "")));
    plan.extend(["never", "crowd", "churn"].map(|attack| (attack, "")));
    // In any order.
    for at in (1..plan.len()).rev() {
        plan.swap(at, luck.below(at as u64 + 1) as usize);
    }
    let mut barred = 0;
    let (during, ()) = honest.rates(|| {
        for &(attack, target) in &plan {
            let seed = luck.next_u64();
            let code = let_loose(&swarm, attack, target, seed);
            assert_eq!(
                code,
                expected(attack, target),
                "{attack} at {target} with seed {seed}\n{}",
                swarm.running.err()
            );
            assert!(swarm.running.ended().is_none(), "{attack} at {target} with seed {seed} ended the swarm");
            barred += usize::from(code == BARRED);
        }
    });
    let (after, ()) = honest.rates(quiet);
    honest.end();
    for (at, name) in HONEST.iter().enumerate() {
        let alone = before[at].min(after[at]);
        println!(
            "{name}: {:.0}/s and {:.0}/s without, {:.0}/s beside hostile processes",
            before[at], after[at], during[at]
        );
        assert!(during[at] >= alone / 4.0, "{name}: {during:?} of {before:?} and {after:?} a second");
    }

    // Nobody else was touched, and everything was counted.
    let agents = swarm.agents();
    let lives_after: Vec<Value> = agents.iter().map(|agent| agent["pid"].clone()).collect();
    assert_eq!(lives_before, lives_after, "an agent was replaced: {agents:#?}\n{:#?}", swarm.events());
    assert!(agents.iter().all(|agent| agent["restarts"] == 0 && agent["state"] == "ready"), "{agents:#?}");
    // A connection that never introduced itself has no name, but its end is an event all the same.
    let quarantined = swarm.events_of("client_quarantined");
    assert_eq!(quarantined.len(), barred, "{quarantined:#?}");
    let texts = quarantined.iter().filter_map(|event| event["text"].as_str());
    assert!(
        texts.clone().all(|text| text.len() < 400),
        "texts of strangers: {:?}",
        texts.max_by_key(|text| text.len())
    );
    let closed = swarm.get("/api/v1/system/statistics")["closed_channels"].clone();
    let reasons = [
        "nonsense in a slot's sequence",
        "nonsense in a slot's length",
        "nonsense in a block",
        "unknown message",
    ];
    for reason in reasons {
        assert!(closed[reason].as_u64().is_some_and(|count| count > 0), "{reason}: {closed}");
    }
    assert!(!swarm.running.err().contains("panicked"), "{}", swarm.running.err());

    // Fresh clients come in, and their lines to the same members work.
    let control = swarm.place.socket();
    let (mut left, mut right) = (attach(&control, "left"), attach(&control, "right"));
    let agent = left.connect("compute-0").expect("an agent");
    assert!(left.call(agent, &pattern(5), SOON).expect("a reply") == pattern(5));
    let peer = left.connect("right").expect("attached");
    let mut mail = Mail::default();
    for number in 0..100 {
        left.send(peer, &pattern(number)).expect("room");
        assert!(right.receive(&mut mail, SOON).expect("attached") && mail.to_vec() == pattern(number));
    }
    let ticket = left.submit_json(&json!({"kernel": "noop"})).expect("taken");
    assert!(left.wait(ticket, SOON).expect("ended").is_success());
    let tasks = swarm.end()["tasks"].clone();
    for name in ["failed", "lost", "duplicated", "retried"] {
        assert_eq!(tasks[name], 0, "{tasks}");
    }
    assert_eq!(tasks["total"], tasks["succeeded"]);
}

/// Tries everything that would let this process write into `object`.
fn cannot_be_written(object: &SharedObject, name: &str) {
    assert!(object.map(Access::Write).is_err(), "{name} can be mapped for writing");
    assert!(rustix::fs::ftruncate(object, 0).is_err(), "{name} can be cut off");
    let copy = intruder::reopened(object).map(File::from);
    // A system that does not even open it again is welcome.
    let Ok(copy) = copy else { return };
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert!(rustix::fs::fallocate(&copy, mode, 0, 4096).is_err(), "{name} can be emptied");
    assert!(copy.write_at(b"x", 0).is_err(), "{name} can be written");
    assert!(rustix::fs::ftruncate(&copy, 0).is_err(), "{name} can be cut off");
    let copy = SharedObject::adopt(copy.into(), object.bytes()).expect("the same object");
    assert!(copy.map(Access::Write).is_err(), "{name} can be mapped for writing when it is opened again");
}

#[test]
fn what_is_only_to_be_read_cannot_be_written() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let control = swarm.place.socket();
    let mut honest = attach(&control, "honest");
    let mut intruder = Intruder::attach(&control, "reader", 1);
    for (name, object) in &intruder.read_only {
        cannot_be_written(object, name);
    }
    for peer in ["compute-0", "honest"] {
        let line = intruder.connect(peer);
        // The other end has taken it.
        until(
            "the line is there",
            || {
                honest.turn().expect("attached");
                let calls = honest.connect("compute-0").and_then(|agent| honest.call(agent, b"status", SOON));
                (calls.is_ok() && (peer == "compute-0" || honest.port().peer("reader").is_some()))
                    .then_some(())
            },
            String::new,
        );
        for (name, object) in &line.read_only {
            cannot_be_written(object, &format!("{name} of {peer}"));
        }
    }
    for bell in &intruder.bells {
        assert!(
            rustix::fs::fcntl_add_seals(bell, SealFlags::FUTURE_WRITE).is_err(),
            "a bell can be taken away"
        );
        assert!(rustix::fs::ftruncate(bell, 0).is_err(), "a bell can be cut off");
    }
    drop((honest, intruder));
    swarm.end();
}

#[test]
fn who_keeps_every_block_cannot_stop_the_tasks() {
    let agents = json!({"compute": {"count": 1}});
    let config = json!({"agents": agents, "channel_size": 65536, "messaging": {"arena_bytes": 4 << 20}});
    let swarm = Swarm::deploy(&config);
    let control = swarm.place.socket();
    let mut hoarder = attach(&control, "hoarder");
    let agent = hoarder.connect("compute-0").expect("an agent");
    let (mut kept, mut mail) = (Vec::new(), Mail::default());
    let (mut unanswered, mut refusals) = (0, 0);
    while unanswered < 2 && kept.len() < 40 {
        let asked = hoarder.port().request(
            agent,
            ai_swarm::messaging::Lane::Normal,
            &[7; 200_000],
            Duration::from_secs(1),
        );
        hoarder.flush();
        let answered =
            asked.is_ok() && hoarder.receive(&mut mail, Duration::from_millis(200)).expect("attached");
        kept.extend(mail.parcel.take().filter(|_| answered));
        // Not silence: who gets no reply hears why.
        let refused = answered && matches!(mail.what, What::Refusal(_));
        assert!(
            !refused || mail.payload().starts_with(b"the reply of 200000 bytes: no room"),
            "{:?}",
            mail.payload()
        );
        refusals += u32::from(refused);
        unanswered += u32::from(!answered || refused);
    }
    assert!(refusals > 0, "nothing was refused");
    let line = swarm.get("/api/v1/system/statistics")["channels"].as_array().expect("a list").clone();
    let line = line.iter().find(|line| line["from"] == "compute-0" && line["to"] == "hoarder");
    let dropped = line.map(|line| line["lanes"][1]["dropped"]["newest"].clone());
    assert_eq!(dropped, Some(json!(refusals)), "a reply that is refused counts as dropped");
    assert!(
        (3..40).contains(&kept.len()),
        "{} answers are kept, and there is room for more or for none",
        kept.len()
    );
    // The error names the path: an answer that has to go through the same arena.
    let mut worker = attach(&control, "worker");
    let task = json!({"kernel": "reduce", "inputs": [format!("/{}", "x".repeat(100_000))]});
    let ticket = worker.submit_json(&task).expect("taken");
    let end = worker.wait(ticket, SOON).expect("ended");
    assert!(
        end.state == "failed" && end.text.is_some_and(|text| text.contains("xxx")),
        "the error names the path"
    );
    drop(hoarder);
    let agent = worker.connect("compute-0").expect("an agent");
    until(
        "there is room for answers again",
        || {
            let answer = worker.call(agent, &[9; 200_000], Duration::from_millis(300));
            answer.is_ok_and(|answer| answer == [9; 200_000]).then_some(())
        },
        || swarm.get("/api/v1/system/statistics")["arenas"].to_string(),
    );
    drop(kept);
    assert!(swarm.agents().iter().all(|agent| agent["restarts"] == 0), "{:#?}", swarm.agents());
    swarm.end();
}

/// Where a shared object lies in the memory of a process.
fn mapping(pid: u32, label: &str) -> (u64, u64) {
    let maps = File::open(format!("/proc/{pid}/maps")).expect("our own user's process");
    for line in BufReader::new(maps).lines().map_while(Result::ok) {
        if line.contains(label) && line.contains("rw-s") {
            let (from, to) =
                line.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range");
            let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
            return (number(from), number(to));
        }
    }
    panic!("process {pid} has no {label}");
}

/// The board is the one object that every agent may write. Whatever somebody writes over it, its header included: agents start, tasks
/// are done once, and when it stops everybody is as before.
#[test]
fn noise_on_the_board_costs_no_task() {
    const TASKS: usize = 2000;
    let mut luck = SplitMix64::new(seed());
    let fault = json!({"restart_limit": 1000, "backoff_max_s": 0.02});
    let agents = json!({"fault": fault, "compute": {"count": 2}});
    // Who is taken for hung, because it seems to stand still, is killed; its task is not to blame here.
    let swarm = Swarm::deploy(&json!({"agents": agents, "tasks": {"poison_deaths": 100}}));
    let names = swarm.place.segments();
    assert_eq!(names.len(), 1, "one name only: {names:?}");
    let path = Path::new("/dev/shm").join(&names[0]);
    let board = File::options().write(true).open(&path).expect("our own user's file");
    let words = board.metadata().expect("a file").len() / 8;
    let mut client = attach(&swarm.place.socket(), "worker");
    let mut ends = vec![0; TASKS];
    for round in 0..20 {
        for _ in 0..TASKS / 20 {
            client.submit_json(&json!({"kernel": "sleep", "params": {"seconds": 0.001}})).expect("taken");
        }
        // The header every time, the beats and cells often, the tables in parts.
        let mut places: Vec<u64> = (0..8).collect();
        places.extend((0..500).map(|_| luck.below(words.min(512))));
        places.extend((0..5000).map(|_| luck.below(words)));
        for at in places {
            let word = luck.next_u64() >> (8 * luck.below(8));
            board.write_all_at(&word.to_le_bytes(), at * 8).expect("within the board");
        }
        // Somebody has to start on it: a compute agent, whose place a standby takes, or another.
        let victim = ["compute-0", "thermal-0", "compute-1", "fault-0", "learning-0"][round % 5];
        if let Some(pid) = swarm.agent(victim)["pid"].as_u64() {
            signal(pid as u32, Signal::KILL);
        }
        for _ in 0..TASKS / 20 {
            let end = client.next_end(SOON).expect("one more");
            assert!(end.is_success(), "{end:?}");
            ends[end.ticket.0 as usize] += 1;
        }
    }
    assert!(ends.iter().all(|&count| count == 1), "each once");
    swarm.until("everybody is back", |swarm| {
        let safety = swarm.status()["safety"].clone();
        let is_full = safety["standbys_ready"] == safety["standbys_wanted"];
        (is_full && swarm.agents().iter().all(|agent| agent["state"] == "ready")).then_some(())
    });
    drop(client);
    let tasks = swarm.end()["tasks"].clone();
    let wanted = json!({"total": TASKS, "succeeded": TASKS, "failed": 0, "lost": 0, "duplicated": 0});
    for (name, number) in wanted.as_object().expect("an object") {
        assert_eq!(&tasks[name], number, "{name}: {tasks}");
    }
}

#[test]
fn an_agent_whose_channel_is_nonsense_is_replaced_and_its_tasks_are_done_once() {
    const TASKS: usize = 6000;
    let mut luck = SplitMix64::new(seed());
    let fault = json!({"restart_limit": 1000, "backoff_max_s": 0.02});
    let agents = json!({"fault": fault, "compute": {"count": 2}});
    let swarm = Swarm::deploy(&json!({"agents": agents, "channel_size": 65536}));
    let mut client = attach(&swarm.place.socket(), "worker");
    let mut submitted = 0;
    let mut ends = vec![0; TASKS];
    for round in 0..3 {
        for _ in 0..TASKS / 3 {
            client.submit_json(&json!({"kernel": "sleep", "params": {"seconds": 0.0002}})).expect("taken");
            submitted += 1;
        }
        let victim = swarm.agent("compute-0");
        let pid = victim["pid"].as_u64().expect("a process") as u32;
        assert!(signal(pid, Signal::STOP));
        let (from, to) = mapping(pid, "ai_swarm-up");
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.expect("our own user's process");
        let mut slots = vec![0; (to - from) as usize];
        memory.read_exact_at(&mut slots, from).expect("mapped");
        for word in slots.as_chunks_mut::<8>().0.iter_mut().step_by(if round == 1 { 8 } else { 1 }) {
            // Every sequence off by a few, or random words everywhere.
            let old = u64::from_le_bytes(*word);
            let new =
                if round == 1 { old.wrapping_add(1 + luck.below(5)) } else { luck.next_u64() | 1 << 30 };
            *word = new.to_le_bytes();
        }
        memory.write_all_at(&slots, from).expect("its own memory, writable");
        // Dead already, perhaps.
        signal(pid, Signal::CONT);
        for _ in 0..TASKS / 3 {
            let end = client.next_end(SOON).expect("one more");
            assert!(end.is_success(), "{end:?}");
            ends[end.ticket.0 as usize] += 1;
        }
        swarm.until("compute-0 lives again", |swarm| {
            let agent = swarm.agent("compute-0");
            (agent["state"] == "ready" && agent["pid"] != victim["pid"]).then_some(())
        });
        let events = swarm.events_of("channel_corrupt");
        assert_eq!(events.len(), round + 1, "{events:#?}");
        assert!(events.iter().all(|event| event["agent"] == "compute-0"), "{events:#?}");
        assert!(!lives(pid));
        // What it wrote is kept.
        let incidents = swarm.status()["incidents"].clone();
        let last = incidents.as_array().and_then(|all| all.iter().rfind(|one| one["failure"] == "garbage"));
        let saved = PathBuf::from(last.expect("an incident")["dump"].as_str().expect("a path"));
        let bytes = swarm.until("its channel is saved", |_| {
            saved.with_extension("json").exists().then(|| fs::read(&saved).expect("written before"))
        });
        assert_eq!(bytes.len(), 65536);
        assert!(bytes.chunks(8).zip(slots.chunks(8)).filter(|(a, b)| a == b).count() > 4096, "other bytes");
    }
    assert_eq!((submitted, ends.iter().all(|&count| count == 1)), (TASKS, true));
    let closed = swarm.get("/api/v1/system/statistics")["closed_channels"].clone();
    // One that was stopped in the middle of a message may have gone on with a message of noise.
    let count = |reason: &str| closed[reason].as_u64().unwrap_or(0);
    assert!(count("nonsense in a slot's sequence") > 0, "{closed}");
    let all: u64 = closed.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    assert_eq!(all, 3, "{closed}");
    // The other one went on, and so did everybody else.
    let others = swarm.agents().into_iter().filter(|agent| agent["id"] != "compute-0");
    assert!(others.clone().all(|agent| agent["restarts"] == 0), "{:#?}", others.collect::<Vec<_>>());
    let tasks = swarm.end()["tasks"].clone();
    let wanted = json!({"total": TASKS, "succeeded": TASKS, "failed": 0, "lost": 0, "duplicated": 0});
    for (name, number) in wanted.as_object().expect("an object") {
        assert_eq!(&tasks[name], number, "{name}: {tasks}");
    }
}

/// Stray writes into answers that nobody has read yet: none is believed, whoever sent them is replaced, and every task has its right
/// value in the end.
#[test]
fn a_changed_byte_in_an_answer_is_never_believed() {
    const TASKS: usize = 600;
    const DIGITS: &[u8] = b"124750";
    let mut luck = SplitMix64::new(seed());
    let fault = json!({"restart_limit": 1000, "backoff_max_s": 0.02});
    let agents = json!({"fault": fault, "compute": {"count": 2}});
    let swarm = Swarm::deploy(&json!({"agents": agents, "channel_size": 65536}));
    let x: Vec<f64> = (0..500).map(f64::from).collect();
    let x = swarm.place.write_array("x.npy", &[500], &x);
    let mut client = attach(&swarm.place.socket(), "worker");
    let sum = json!({"kernel": "reduce", "inputs": [x]});
    let (mut changed, mut round) = (0, 0);
    // All may have been read when it is stopped; then another time.
    while round < 3 || (swarm.events_of("channel_corrupt").is_empty() && round < 40) {
        round += 1;
        let agents =
            ["compute-0", "compute-1"].map(|id| swarm.agent(id)["pid"].as_u64().expect("a process") as u32);
        for _ in 0..TASKS {
            client.submit_json(&sum).expect("taken");
        }
        // Its agents go on with what they hold, and their answers wait.
        swarm.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(50));
        for pid in agents {
            let (from, to) = mapping(pid, "ai_swarm-up");
            let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
            let memory = memory.expect("our own user's process");
            let mut slots = vec![0; (to - from) as usize];
            memory.read_exact_at(&mut slots, from).expect("mapped");
            for at in 0..slots.len() - DIGITS.len() {
                if slots[at..].starts_with(DIGITS) {
                    let digit = at + luck.below(DIGITS.len() as u64) as usize;
                    let other = b'0' + (slots[digit] - b'0' + 1 + luck.below(9) as u8) % 10;
                    memory.write_all_at(&[other], from + digit as u64).expect("its own memory, writable");
                    changed += 1;
                }
            }
        }
        swarm.signal(Signal::CONT);
        for _ in 0..TASKS {
            let end = client.next_end(SOON).expect("one more");
            assert_eq!(end.result(), Some(json!(124_750.0)), "round {round}: {end:?}");
        }
        swarm.until("all live again", |swarm| {
            swarm.agents().iter().all(|agent| agent["state"] == "ready").then_some(())
        });
    }
    let found = swarm.events_of("channel_corrupt");
    assert!(found.iter().all(|event| event["text"].to_string().contains("checksum")), "{found:#?}");
    println!("{changed} bytes were changed, {} agents ended for it", found.len());
    assert!(!found.is_empty(), "{changed} bytes were changed, and all of them were old");
    let closed = swarm.get("/api/v1/system/statistics")["closed_channels"].clone();
    assert!(closed["wrong checksum"].as_u64() >= Some(found.len() as u64), "{closed}");
    drop(client);
    let tasks = swarm.end()["tasks"].clone();
    assert_eq!((&tasks["failed"], &tasks["lost"], &tasks["duplicated"]), (&json!(0), &json!(0), &json!(0)));
}

#[test]
fn complaints_of_two_clients_end_an_agent_and_one_alone_does_not() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}}));
    let life = || {
        let agent = swarm.agent("compute-0");
        (agent["pid"].clone(), agent["restarts"].as_u64().expect("a number"))
    };
    let complain = || assert_eq!(let_loose(&swarm, "complaint", "compute-0", 1), UNNOTICED);
    for round in 0..2 {
        let before = life();
        // One process, then another. What follows from a complaint follows in the same turn in which its line is closed.
        complain();
        assert_eq!(swarm.events_of("channel_corrupt").len(), round, "{:#?}", swarm.events());
        let mut client = attach(&swarm.place.socket(), "honest");
        let agent = client.connect("compute-0").expect("an agent");
        assert!(client.call(agent, &pattern(5), SOON).expect("a reply") == pattern(5));
        assert_eq!(life(), before, "one client's word is not enough");
        complain();
        let after = until(
            "it is replaced",
            || Some(life()).filter(|(_, restarts)| *restarts == before.1 + 1),
            || format!("{:#?}\n{}", swarm.agents(), swarm.running.err()),
        );
        assert_ne!(after.0, before.0);
        // Its successor begins with a clean slate.
        until(
            "it is ready",
            || (swarm.agent("compute-0")["state"] == "ready").then_some(()),
            || swarm.running.err(),
        );
    }
    let events = swarm.events_of("channel_corrupt");
    assert!(
        events.len() == 2 && events.iter().all(|event| event["agent"] == "compute-0"),
        "nobody else was ended: {events:#?}"
    );
    let texts = events.iter().filter_map(|event| event["text"].as_str());
    assert!(texts.clone().all(|text| text.contains("nonsense to another member")), "{events:#?}");
    assert!(swarm.events_of("client_quarantined").is_empty(), "who complains is not cut off");
    swarm.end();
}

#[test]
fn a_publisher_that_waits_for_room_closes_the_line_of_who_lies_about_it() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let control = swarm.place.socket();
    let mut publisher = attach(&control, "publisher");
    publisher.port().advertise("t").expect("a topic");
    let mut liar = Intruder::attach(&control, "liar", 1);
    let line = liar.connect("publisher");
    let rule = Rule::Block { within_ms: 10_000 };
    liar.talk.say(&FromMember::Subscribe { seq: 99, topic: "t".to_owned(), rule }, &[]).expect("room");
    until(
        "the publisher has heard of it",
        || (publisher.publish("t", b"x").expect("attached") == 1).then_some(()),
        || swarm.running.err(),
    );
    // Less room than the longest message needs, so that it is waited for, and more than a descriptor does.
    let there = publisher.port().peer("liar").expect("a line");
    while publisher.statistics().lines[0].sent.depths[1] < 480 {
        publisher.send(there, b"x").expect("room");
    }
    line.acknowledge(1 << 40);
    let began = Instant::now();
    assert_eq!(publisher.publish("t", &[7; 100_000]).expect("the arena has room"), 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let closed = publisher.port().take_closed();
    assert!(closed.len() == 1 && closed[0].1.contains("acknowledges"), "{closed:?}");
    assert_eq!(publisher.statistics().arena.expect("used").blocks_out, 0);
    until(
        "it is counted",
        || {
            let closed = swarm.get("/api/v1/system/statistics")["closed_channels"].clone();
            (closed.as_object().map(serde_json::Map::len) == Some(1)).then_some(())
        },
        || swarm.get("/api/v1/system/statistics")["closed_channels"].to_string(),
    );
    drop((publisher, liar));
    swarm.end();
}
