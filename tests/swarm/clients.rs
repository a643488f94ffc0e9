//! Processes of the user's own: they attach with the library, hand in tasks, talk to agents and to each other, and
//! die as they like. Where it matters they are real processes: this test binary started again.

use crate::support::{Place, Swarm, lives, signal, until};
use ai_swarm::Client;
use ai_swarm::client::{Attach, ClientError, LineNumbers, Mail, Peer, Rule, What};
use ai_swarm::messaging::Lane;
use ai_swarm::messaging::attach::{Heard, MemberTalk};
use rustix::net::SocketType;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

fn attach(swarm: &Swarm, name: &str) -> Client {
    Attach::at(&swarm.place.socket()).as_client(name).attach().expect("the swarm listens")
}

/// This test binary again, as a client that plays `role`; see `a_client_in_a_process_of_its_own`.
fn other_process(swarm: &Swarm, role: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "clients::a_client_in_a_process_of_its_own", "--nocapture"]);
    command.env("AI_SWARM_TEST_ROLE", role).env("AI_SWARM_TEST_SOCKET", swarm.place.socket());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.spawn().expect("this binary starts")
}

/// No test of its own: what [`other_process`] runs.
#[test]
fn a_client_in_a_process_of_its_own() {
    let Ok(role) = std::env::var("AI_SWARM_TEST_ROLE") else { return };
    let socket = std::env::var_os("AI_SWARM_TEST_SOCKET").expect("the socket");
    let mut client = Attach::at(socket.as_ref()).as_client(&role).attach().expect("the swarm listens");
    let mut mail = Mail::default();
    match role.as_str() {
        // Keeps blocks that it was given, and waits for its death.
        "keeper" => {
            let mut kept = Vec::new();
            loop {
                if client.receive(&mut mail, SOON).expect("attached") {
                    kept.extend(mail.parcel.take());
                }
            }
        }
        // Submits without reading the answers.
        "submitter" => loop {
            client.submit_json(&json!({"kernel": "sleep", "params": {"seconds": 0.001}})).expect("room");
        },
        // Publishes blocks and slots as fast as it can.
        "publisher" => {
            for number in 0u64.. {
                let mut payload = number.to_le_bytes().repeat(if number % 3 == 0 { 2000 } else { 2 });
                payload[8..16].copy_from_slice(&(!number).to_le_bytes());
                client.publish("numbers", &payload).expect("published");
            }
        }
        other => panic!("no role {other:?}"),
    }
}

#[test]
fn a_client_hands_in_tasks_and_hears_how_each_ended() {
    let swarm = Swarm::deploy(&json!({}));
    let mut client = attach(&swarm, "worker");
    let ticket = client.submit_json(&json!({"kernel": "noop"})).expect("taken");
    let end = client.wait(ticket, SOON).expect("ended");
    assert!(end.is_success() && end.agent.is_some() && end.attempts == 1, "{end:?}");
    assert_eq!(client.accepted(), 1);

    let ticket =
        client.submit_json(&json!({"kernel": "monte_carlo", "params": {"paths": 1000}})).expect("taken");
    let end = client.wait(ticket, SOON).expect("ended");
    assert!(end.result().is_some_and(|result| result.is_object()), "{end:?}");

    let error = client.submit_json(&json!({"kernel": "nop"})).expect_err("no such kernel");
    assert!(error.to_string().contains("did you mean"), "{error}");
    let ticket = client.submit_json(&json!({"kernel": "reduce", "inputs": ["/no/such.npy"]})).expect("taken");
    let end = client.wait(ticket, SOON).expect("ended");
    assert!(
        end.state == "failed" && end.text.as_deref().is_some_and(|text| text.contains("/no/such.npy")),
        "{end:?}"
    );

    let named = json!({"id": "same", "kernel": "noop"});
    client.submit_json(&named).expect("taken");
    let second = client.submit_json(&named).expect("sent");
    let end = client.wait(second, SOON).expect("ended");
    assert!(end.state == "refused" && end.task.is_none(), "a second task of that name: {end:?}");

    let long = client.submit_json(&json!({"kernel": "sleep", "params": {"seconds": 60}})).expect("taken");
    client.cancel(long).expect("room");
    assert_eq!(client.wait(long, SOON).expect("ended").state, "cancelled");
    swarm.end();
}

#[test]
fn many_tasks_through_shared_memory_end_once_each() {
    const TASKS: usize = 20_000;
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let mut client = attach(&swarm, "bulk");
    let noop = ai_swarm::jobs::parse_task(
        &json!({"kernel": "noop"}),
        1,
        "/".as_ref(),
        &ai_swarm::jobs::Defaults { timeout: None, retries: 0 },
    )
    .expect("a task");
    let tickets = client.submit_all(std::iter::repeat_n(&noop, TASKS)).expect("all taken");
    let mut seen = vec![false; TASKS];
    for _ in 0..TASKS {
        let end = client.next_end(SOON).expect("one more");
        assert!(end.is_success(), "{end:?}");
        assert!(!std::mem::replace(&mut seen[end.ticket.0 as usize], true), "twice: {end:?}");
    }
    assert_eq!((tickets.len(), client.accepted()), (TASKS, TASKS as u64));
    assert!(matches!(client.try_next_end(), Ok(None)));
    let statistics = swarm.get("/api/v1/system/statistics");
    assert_eq!(statistics["members"][0]["submitted"], json!(TASKS), "{statistics:#}");
    assert_eq!(statistics["members"][0]["ended"], json!(TASKS));
    swarm.end();
}

#[test]
fn a_task_with_a_description_beyond_the_slots_travels_in_a_block() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 1}}}));
    let mut client = attach(&swarm, "long");
    // A description of a hundred kilobytes.
    let task = json!({"kernel": "reduce", "inputs": [format!("/{}", "x".repeat(100_000))]});
    let ticket = client.submit_json(&task).expect("taken");
    let end = client.wait(ticket, SOON).expect("ended");
    assert!(
        end.state == "failed" && end.text.is_some_and(|text| text.contains("xxx")),
        "the error names the path"
    );
    let statistics = client.swarm_statistics().expect("the API answers");
    let owners: Vec<&str> = statistics.arenas.iter().map(|arena| arena.owner.as_str()).collect();
    assert!(owners.contains(&"supervisor"), "{owners:?}");
    until(
        "all blocks are given back",
        || {
            client.try_next_end().expect("attached");
            client.flush();
            let arenas = client.swarm_statistics().expect("the API answers").arenas;
            arenas.iter().all(|arena| arena.blocks_out == 0).then_some(())
        },
        || format!("{:?}", client_arenas(&swarm)),
    );
    swarm.end();
}

fn client_arenas(swarm: &Swarm) -> Value {
    swarm.get("/api/v1/system/statistics")["arenas"].clone()
}

#[test]
fn agents_answer_requests_and_deadlines_hold() {
    let swarm = Swarm::deploy(&json!({}));
    let mut client = attach(&swarm, "asker");
    let agent = client.connect("compute-0").expect("an agent");
    assert_eq!(client.connect("compute-0").expect("the same"), agent);
    let status = client.call(agent, b"status", SOON).expect("a reply");
    let status: Value = serde_json::from_slice(&status).expect("JSON");
    assert_eq!((&status["id"], &status["kind"]), (&json!("compute-0"), &json!("compute")));
    // Slots, chains, blocks.
    for size in [0, 1, 40, 41, 56, 57, 4000, 4096, 4200, 1 << 20] {
        let payload: Vec<u8> = (0..size).map(|at: usize| (at * 7) as u8).collect();
        assert!(client.call(agent, &payload, SOON).expect("a reply") == payload, "{size} bytes");
    }
    let mut other = attach(&swarm, "silent");
    let silent = client.connect("silent").expect("another client");
    let began = Instant::now();
    let error = client.call(silent, b"anybody?", Duration::from_millis(50)).expect_err("nobody answers");
    assert!(
        matches!(error, ClientError::Timeout(_)) && began.elapsed() >= Duration::from_millis(50),
        "{error}"
    );
    let mut mail = Mail::default();
    assert!(!other.try_receive(&mut mail).expect("attached"), "a request is not handled after its deadline");
    let line = &other.statistics().lines[0];
    assert_eq!(line.received.received[Lane::Normal as usize].dropped.expired, 1, "{line:?}");
    // In time, and answered.
    let correlation = client.port().request(silent, Lane::Normal, b"now", SOON).expect("room");
    client.flush();
    assert!(other.receive(&mut mail, SOON).expect("attached"));
    assert!(matches!(mail.what, What::Request { .. }) && mail.payload() == b"now");
    other.reply(&mail, b"here").expect("room");
    assert!(client.receive(&mut mail, SOON).expect("attached"));
    assert_eq!((mail.what, mail.payload()), (What::Reply(correlation), &b"here"[..]));
    let error = client.connect("nobody").expect_err("no such member").to_string();
    assert!(error.contains("compute-0") && error.contains("silent"), "{error}");
    swarm.end();
}

#[test]
fn topics_reach_every_subscriber_by_its_own_rule() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let mut publisher = attach(&swarm, "publisher");
    let mut newest = attach(&swarm, "newest");
    let mut oldest = attach(&swarm, "oldest");
    let mut block = attach(&swarm, "block");
    newest.subscribe("t", Rule::DropNewest).expect("subscribed");
    oldest.subscribe("t", Rule::DropOldest).expect("subscribed");
    assert_eq!(publisher.publish("t", b"first").expect("published"), 2);
    let mut mail = Mail::default();
    for client in [&mut newest, &mut oldest] {
        assert!(client.receive(&mut mail, SOON).expect("attached"));
        assert_eq!(mail.payload(), b"first");
        let What::Topic(number) = mail.what else { panic!("{:?}", mail.what) };
        assert_eq!(client.port().topic_name(number), Some("t"));
    }
    // Nobody reads: the one keeps the oldest, the other the newest, and the publisher waits for neither.
    let last = 5000u32;
    for number in 1..=last {
        publisher.publish("t", &number.to_le_bytes()).expect("published");
    }
    let numbers = |client: &mut Client| {
        let (mut found, mut mail) = (Vec::new(), Mail::default());
        while client.receive(&mut mail, Duration::from_millis(50)).expect("attached") {
            found.push(u32::from_le_bytes(mail.payload().try_into().expect("four bytes")));
        }
        found
    };
    let (kept, seen) = (numbers(&mut newest), numbers(&mut oldest));
    assert!(kept.windows(2).all(|pair| pair[0] < pair[1]) && seen.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!((kept.first(), seen.last()), (Some(&1), Some(&last)), "{} and {}", kept.len(), seen.len());
    assert!(kept.len() < last as usize && seen.len() < last as usize, "a small ring holds a part of them");
    let statistics = publisher.swarm_statistics().expect("the API answers");
    for (subscriber, rule, count) in
        [("newest", "drop_newest", kept.len()), ("oldest", "drop_oldest", seen.len())]
    {
        let topic = statistics.topics.iter().find(|topic| topic.subscriber == subscriber).expect("listed");
        assert_eq!(
            (topic.topic.as_str(), topic.publisher.as_str(), topic.rule.as_str()),
            ("t", "publisher", rule)
        );
        assert_eq!(topic.delivered, count as u64 + 1, "{topic:?}");
        assert_eq!(topic.delivered + topic.dropped, u64::from(last) + 1, "{topic:?}");
    }
    // The publisher waits for this one, but not for ever.
    block.subscribe("b", Rule::Block { within_ms: 30 }).expect("subscribed");
    let began = Instant::now();
    let mut sent = 0u64;
    while publisher.publish("b", b"x").expect("published") == 1 {
        sent += 1;
    }
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert!(sent > 100, "{sent}");
    let reader = std::thread::spawn(move || {
        let mut mail = Mail::default();
        let mut found = 0u64;
        while found < sent + 500 && block.receive(&mut mail, SOON).expect("attached") {
            found += 1;
        }
        found
    });
    for _ in 0..500 {
        assert_eq!(publisher.publish("b", b"y").expect("published"), 1, "there is room in time");
    }
    assert_eq!(reader.join().expect("no panic"), sent + 500);
    newest.unsubscribe("t").expect("unsubscribed");
    assert_eq!(publisher.publish("t", b"later").expect("published"), 1);
    swarm.end();
}

#[test]
fn a_large_broadcast_is_written_once_and_free_when_the_last_has_read_it() {
    let swarm = Swarm::deploy(&json!({}));
    let mut sender = attach(&swarm, "sender");
    let mut readers: Vec<Client> = (0..4).map(|n| attach(&swarm, &format!("reader-{n}"))).collect();
    let peers: Vec<_> = (0..4).map(|n| sender.connect(&format!("reader-{n}")).expect("there")).collect();
    let payload: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(sender.broadcast(&peers, &payload).expect("sent"), 4);
    let usage = sender.statistics().arena.expect("used");
    assert_eq!(usage.blocks_out, 1, "one block for four readers: {usage:?}");
    let mut mail = Mail::default();
    let mut parcels = Vec::new();
    for reader in &mut readers {
        assert!(reader.receive(&mut mail, SOON).expect("attached"));
        assert!(mail.to_vec() == payload && mail.payload().is_empty() && mail.len() == payload.len());
        parcels.push(mail.parcel.take().expect("in a block"));
    }
    let mut out = |sender: &mut Client, readers: &mut [Client]| {
        readers.iter_mut().for_each(Client::flush);
        let _ = sender.try_receive(&mut mail).expect("attached");
        sender.statistics().arena.expect("used").blocks_out
    };
    for left in (0..4).rev() {
        assert_eq!(out(&mut sender, &mut readers), 1, "{left} still have it");
        parcels.pop();
    }
    assert_eq!(out(&mut sender, &mut readers), 0, "everybody has given it back");
    swarm.end();
}

#[test]
fn what_a_dead_client_had_is_taken_back_and_its_tasks_go_on() {
    let swarm = Swarm::deploy(&json!({}));
    let mut client = attach(&swarm, "owner");
    let mut keeper = other_process(&swarm, "keeper");
    let peer = until(
        "the keeper attaches",
        || client.connect("keeper").ok(),
        || swarm.get("/api/v1/system/statistics")["members"].to_string(),
    );
    for _ in 0..10 {
        client.send(peer, &[7; 100_000]).expect("room");
    }
    assert_eq!(client.statistics().arena.expect("used").blocks_out, 10);
    assert!(signal(keeper.id(), Signal::KILL));
    keeper.wait().expect("reaped");
    until(
        "the line is closed",
        || {
            client.turn().expect("attached");
            client.port().take_closed().pop()
        },
        String::new,
    );
    let usage = client.statistics().arena.expect("used");
    assert_eq!((usage.blocks_out, usage.reclaimed), (0, 10), "{usage:?}");
    assert!(matches!(client.send(peer, b"x"), Err(ClientError::Port(_))), "the peer is gone");

    let mut submitter = other_process(&swarm, "submitter");
    let taken = || {
        let members = swarm.get("/api/v1/system/statistics")["members"].clone();
        let members = members.as_array().expect("a list").clone();
        members
            .iter()
            .find(|member| member["id"] == "submitter")
            .and_then(|member| member["submitted"].as_u64())
    };
    until("some tasks are taken", || taken().filter(|&taken| taken > 20), || format!("{:?}", taken()));
    assert!(signal(submitter.id(), Signal::KILL));
    submitter.wait().expect("reaped");
    until(
        "every accepted task ends",
        || {
            let status = swarm.status();
            let open = status["queued"].as_u64().expect("a number")
                + status["in_flight"].as_u64().expect("a number");
            let gone = taken().is_none();
            (gone && open == 0).then_some(())
        },
        || swarm.status().to_string(),
    );
    let tasks = &swarm.status()["tasks"];
    assert_eq!((&tasks["lost"], &tasks["duplicated"], &tasks["failed"]), (&json!(0), &json!(0), &json!(0)));
    assert_eq!(tasks["total"], tasks["succeeded"]);
    swarm.end();
}

#[test]
fn a_killed_publisher_leaves_whole_messages_and_a_successor_takes_over() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let mut lossless = attach(&swarm, "lossless");
    let mut lossy = attach(&swarm, "lossy");
    lossless.subscribe("numbers", Rule::DropNewest).expect("subscribed");
    lossy.subscribe("numbers", Rule::DropOldest).expect("subscribed");
    let mut mail = Mail::default();
    for life in 0..5 {
        let mut publisher = other_process(&swarm, "publisher");
        let mut found = [0, 0];
        let mut last = [None, None];
        let began = Instant::now();
        while found[0] < 2000 || found[1] < 2000 {
            assert!(began.elapsed() < SOON, "life {life}: {found:?}");
            for (at, client) in [&mut lossless, &mut lossy].into_iter().enumerate() {
                while client.try_receive(&mut mail).expect("attached") {
                    check(&mail, &mut last[at]);
                    found[at] += 1;
                    if found[at] % 512 == 0 {
                        break;
                    }
                }
                client.flush();
            }
        }
        assert!(signal(publisher.id(), Signal::KILL));
        publisher.wait().expect("reaped");
        for client in [&mut lossless, &mut lossy] {
            until(
                "the line is closed",
                || {
                    client.turn().expect("attached");
                    while client.try_receive(&mut mail).expect("attached") {}
                    client.port().take_closed().pop()
                },
                || format!("life {life}"),
            );
        }
    }
    let agents = swarm.agents();
    assert!(agents.iter().all(|agent| agent["restarts"] == 0), "nobody else noticed: {agents:?}");
    swarm.end();
}

/// A message of the publisher is whole, and not older than the one before.
fn check(mail: &Mail, last: &mut Option<u64>) {
    let bytes = mail.to_vec();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let number = word(0);
    assert_eq!(bytes.len(), if number % 3 == 0 { 16_000 } else { 16 });
    assert_eq!(word(8), !number);
    assert!((16..bytes.len()).step_by(8).all(|at| word(at) == number), "torn");
    assert!(last.is_none_or(|last| last < number), "{last:?} before {number}");
    *last = Some(number);
}

#[test]
fn messages_over_http_go_through_shared_memory() {
    let swarm = Swarm::deploy(&json!({}));
    let mut client = attach(&swarm, "listener");
    let send = |body: Value| swarm.ask("POST", "/api/v1/messages/send", Some(&body));
    let sent = send(json!({"to": "listener", "payload": "hello"})).is(200).json();
    assert_eq!(sent["delivered"], json!(1));
    let mut mail = Mail::default();
    assert!(client.receive(&mut mail, SOON).expect("attached"));
    assert_eq!((mail.what, mail.payload()), (What::Direct, &b"hello"[..]));
    assert_eq!(client.port().id_of(mail.from), Some("gateway"));
    let status = send(json!({"to": "compute-0", "payload": "status", "reply_within_s": 10})).is(200).json();
    assert!(status["reply"].as_str().is_some_and(|text| text.contains("compute-0")), "{status}");
    assert!(status["latency_us"].as_f64().is_some_and(|us| us > 0.0), "{status}");
    send(json!({"to": "nobody", "payload": "x"})).refuses(404, "no member has the id \"nobody\"");
    send(json!({"to": "supervisor", "payload": "x"})).refuses(409, "the supervisor is no member");
    send(json!({"to": "gateway", "payload": "x"})).refuses(409, "\"gateway\" is this door itself");
    send(json!({"payload": "x"})).refuses(400, "missing field `to`");
    swarm.place.cli(&["send", "supervisor", "x"]).ends(1).complains("the supervisor is no member");
    send(json!({"to": "listener", "payload": "x", "reply_within_s": 0.05})).is(504);
    let body = json!({"payload": "to all"});
    let sent = swarm.ask("POST", "/api/v1/messages/broadcast", Some(&body)).is(200).json();
    assert!(sent["delivered"].as_u64().is_some_and(|count| count as usize > swarm.agents().len()), "{sent}");
    client.subscribe("news", Rule::DropNewest).expect("subscribed");
    let body = json!({"payload": "to some", "topic": "news"});
    let sent = swarm.ask("POST", "/api/v1/messages/broadcast", Some(&body)).is(200).json();
    assert_eq!(sent["delivered"], json!(1));
    let heard = |mail: &Mail| mail.to_vec();
    let mut words = Vec::new();
    while words.len() < 2 {
        assert!(client.receive(&mut mail, SOON).expect("attached"));
        words.push(heard(&mail));
    }
    assert_eq!(words, [b"to all".to_vec(), b"to some".to_vec()]);
    let ran = swarm.place.cli(&["send", "compute-0", "status", "--reply-within", "10"]).ends(0);
    assert!(ran.out.contains("\"kind\":\"compute\""), "{}", ran.story());
    swarm.place.cli(&["statistics"]).ends(0).says("listener").says("gateway");
    swarm.end();
}

#[test]
fn who_may_not_attach_hears_why_and_the_end_of_the_swarm_is_seen() {
    let swarm = Swarm::deploy(&json!({}));
    let socket = swarm.place.socket();
    let refused = |name: &str| Attach::at(&socket).as_client(name).attach().expect_err("refused").to_string();
    assert!(refused("a b").contains("letters, digits"));
    let _first = attach(&swarm, "taken");
    assert!(refused("taken").contains("is there already"));
    assert!(refused("compute-0").contains("is there already"));
    let mut client = attach(&swarm, "last");
    let pid = swarm.running.pid();
    let ticket = client.submit_json(&json!({"kernel": "sleep", "params": {"seconds": 600}})).expect("taken");
    until("it is taken", || (client.turn().is_ok() && client.accepted() == 1).then_some(()), String::new);
    signal(pid, Signal::KILL);
    assert!(matches!(client.wait(ticket, SOON), Err(ClientError::Ended)));
    until("the supervisor is gone", || (!lives(pid)).then_some(()), String::new);
    let error = Attach::at(&socket).attach().expect_err("nobody is there");
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
    until("its agents are gone", || swarm.place.processes().is_empty().then_some(()), String::new);
    // The next start of this swarm removes what the killed one could not.
    let place_words = ["--monitor-duration", "0.1"];
    swarm.place.cli(&place_words).ends(0);
}

#[test]
fn one_receiver_serves_256_senders_fairly() {
    const SENDERS: usize = 256;
    const EACH: u32 = 100;
    ai_swarm::os::process::raise_open_files();
    let swarm = Swarm::deploy(&json!({"channel_size": 65536, "agents": {"compute": {"count": 1}}}));
    let mut receiver = attach(&swarm, "receiver");
    let mut senders: Vec<Client> = (0..SENDERS).map(|n| attach(&swarm, &format!("s{n}"))).collect();
    for sender in &mut senders {
        let peer = sender.connect("receiver").expect("a line");
        for number in 0..EACH {
            sender.port().push(peer, Lane::Normal, &number.to_le_bytes()).expect("room");
        }
        sender.flush();
    }
    let mut taken = HashMap::new();
    let mut mail = Mail::default();
    for _ in 0..SENDERS * EACH as usize {
        assert!(receiver.receive(&mut mail, SOON).expect("attached"));
        let count = taken.entry(mail.from).or_insert(0u32);
        assert_eq!(mail.payload(), count.to_le_bytes(), "in order");
        *count += 1;
        // While everybody still has something, nobody is more than two turns ahead of anybody.
        let (most, least) = (taken.values().max().expect("one"), taken.values().min().expect("one"));
        let least = if taken.len() == SENDERS { *least } else { 0 };
        assert!(*most >= EACH || most - least <= 32, "{most} of one, {least} of another");
    }
    assert!(taken.len() == SENDERS && taken.values().all(|&count| count == EACH));
    assert!(!receiver.try_receive(&mut mail).expect("attached"));
    // One by one: hints alone must find the one that has something.
    for at in [0, 63, 64, 255, 128] {
        let peer = senders[at].connect("receiver").expect("the same line");
        senders[at].send(peer, b"again").expect("room");
        assert!(receiver.receive(&mut mail, SOON).expect("attached"), "sender {at}");
        assert_eq!(receiver.port().id_of(mail.from), Some(format!("s{at}").as_str()));
    }
    let error = Attach::at(&swarm.place.socket())
        .as_client("one-more")
        .attach()
        .map(|mut client| client.connect("receiver").expect_err("256 lines are the most").to_string());
    assert!(error.is_ok_and(|error| error.contains("256 lines already")));
    swarm.end();
}

#[test]
fn who_only_sends_gets_its_blocks_back_all_the_same() {
    const BLOCK: usize = 800_000;
    // An arena for four of them.
    let swarm = Swarm::deploy(&json!({"messaging": {"arena_bytes": 4 << 20}}));
    let mut sender = attach(&swarm, "sender");
    let mut reader = attach(&swarm, "reader");
    reader.subscribe("blocks", Rule::Block { within_ms: 10_000 }).expect("subscribed");
    let reading = std::thread::spawn(move || {
        let mut mail = Mail::default();
        for number in 0..200u8 {
            assert!(reader.receive(&mut mail, SOON).expect("attached"));
            assert!(mail.len() == BLOCK && mail.to_vec().iter().all(|&byte| byte == number), "{number}");
        }
        reader
    });
    for number in 0..100u8 {
        assert_eq!(sender.publish("blocks", &vec![number; BLOCK]).expect("room in time"), 1);
    }
    let peer = sender.connect("reader").expect("there");
    for number in 100..200u8 {
        let payload = vec![number; BLOCK];
        while let Err(error) = sender.send(peer, &payload) {
            assert!(matches!(&error, ClientError::Port(error) if error.is_full()), "{error}");
            std::thread::yield_now();
        }
    }
    let mut reader = reading.join().expect("every block came");
    reader.flush();
    // Nobody reads, and nobody waits: the oldest blocks make room.
    reader.subscribe("frames", Rule::DropOldest).expect("subscribed");
    for number in 0..50u8 {
        assert_eq!(sender.publish("frames", &vec![number; BLOCK]).expect("room"), 1);
    }
    let (mut mail, mut last) = (Mail::default(), None);
    while reader.receive(&mut mail, Duration::from_millis(100)).expect("attached") {
        let bytes = mail.to_vec();
        assert!(bytes.len() == BLOCK && bytes.iter().all(|byte| *byte == bytes[0]), "torn");
        assert!(last.is_none_or(|last| last < bytes[0]));
        last = Some(bytes[0]);
    }
    assert_eq!(last, Some(49), "the newest is there");
    assert!(sender.statistics().arena.expect("used").committed <= 4 << 20);
    drop((sender, reader));
    swarm.end();
}

/// Blocks that the arena of `owner` still takes, sent to `keeper`, who keeps them.
fn fill_arena(owner: &mut Client, keeper: Peer, bytes: usize) {
    loop {
        match owner.send(keeper, &vec![1; bytes]) {
            Ok(()) => {}
            Err(ClientError::Port(error)) if error.is_full() => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn who_misses_a_message_for_want_of_an_arena_is_counted_and_no_other_rule_suffers() {
    const BLOCK: usize = 800_000;
    let swarm = Swarm::deploy(&json!({"messaging": {"arena_bytes": 4 << 20}}));
    let mut publisher = attach(&swarm, "publisher");
    let mut keeper = attach(&swarm, "keeper");
    let there = publisher.connect("keeper").expect("attached");
    fill_arena(&mut publisher, there, BLOCK);
    let (mut kept, mut mail) = (Vec::new(), Mail::default());
    while keeper.try_receive(&mut mail).expect("attached") {
        kept.extend(mail.parcel.take());
    }
    assert!(kept.len() > 2, "{} blocks", kept.len());
    let mut newest = attach(&swarm, "newest");
    let mut oldest = attach(&swarm, "oldest");
    let mut block = attach(&swarm, "block");
    newest.subscribe("t", Rule::DropNewest).expect("subscribed");
    block.subscribe("t", Rule::Block { within_ms: 200 }).expect("subscribed");
    let lost = |publisher: &Client, peer: &str| {
        let lines = publisher.statistics().lines;
        let line = lines.iter().find(|line| line.peer == peer).expect("a line");
        line.sent.sent[Lane::Normal as usize].dropped
    };
    // Nobody gets it: that is the answer, once the patience of the most patient is over, and counted for each.
    let began = Instant::now();
    let error = publisher.publish("t", &[2; BLOCK]).expect_err("the arena is full");
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert!(matches!(&error, ClientError::Port(error) if error.is_full()), "{error}");
    assert_eq!((lost(&publisher, "newest").newest, lost(&publisher, "newest").total()), (1, 1));
    assert_eq!((lost(&publisher, "block").deadline, lost(&publisher, "block").total()), (1, 1));
    let peers: Vec<Peer> =
        ["newest", "block"].iter().map(|id| publisher.connect(id).expect("attached")).collect();
    publisher.broadcast(&peers, &[3; BLOCK]).expect_err("the arena is full");
    assert_eq!((lost(&publisher, "newest").newest, lost(&publisher, "block").newest), (2, 1));

    // One block is free, and the subscriber for whom the oldest are dropped takes it. The others miss theirs, and that
    // hides nothing.
    oldest.subscribe("t", Rule::DropOldest).expect("subscribed");
    // The answer comes after the word of that.
    publisher.port().advertise("t").expect("known");
    kept.pop();
    keeper.flush();
    for number in 0..3u8 {
        assert_eq!(publisher.publish("t", &vec![number; BLOCK]).expect("one got it"), 1);
    }
    assert!(oldest.receive(&mut mail, SOON).expect("attached"));
    assert!(mail.to_vec() == vec![2; BLOCK], "the newest of them");
    assert_eq!((lost(&publisher, "newest").newest, lost(&publisher, "block").deadline), (5, 4));
    publisher.port().tidy();
    let topics = publisher.swarm_statistics().expect("the API answers").topics;
    let row = |subscriber: &str| {
        let topic = topics.iter().find(|topic| topic.subscriber == subscriber).expect("listed");
        (topic.sent, topic.delivered, topic.dropped)
    };
    assert_eq!((row("newest"), row("block")), ((4, 0, 4), (4, 0, 4)));
    assert_eq!(row("oldest"), (3, 1, 2));
    assert!(
        !newest.try_receive(&mut mail).expect("attached") && !block.try_receive(&mut mail).expect("attached")
    );
    drop((kept, mail));
    swarm.end();
}

#[test]
fn a_publisher_waits_no_longer_than_the_deadline_for_arena_and_lane_together() {
    const BLOCK: usize = 800_000;
    const WITHIN: Duration = Duration::from_millis(400);
    let swarm = Swarm::deploy(&json!({"channel_size": 65536, "messaging": {"arena_bytes": 4 << 20}}));
    let mut publisher = attach(&swarm, "publisher");
    let mut keeper = attach(&swarm, "keeper");
    let there = publisher.connect("keeper").expect("attached");
    // A subscriber whose lane is full, and which never reads.
    let mut slow = attach(&swarm, "slow");
    slow.subscribe("t", Rule::Block { within_ms: WITHIN.as_millis() as u64 }).expect("subscribed");
    publisher.turn().expect("attached");
    let full = publisher.connect("slow").expect("attached");
    while publisher.send(full, b"small").is_ok() {}
    fill_arena(&mut publisher, there, BLOCK);
    let (mut kept, mut mail) = (Vec::new(), Mail::default());
    while keeper.try_receive(&mut mail).expect("attached") {
        kept.extend(mail.parcel.take());
    }
    let before = publisher.statistics().lines;
    // Late in the time that it has, the arena has room again; the lane has not.
    let giving = std::thread::spawn(move || {
        std::thread::sleep(WITHIN * 3 / 4);
        drop(kept);
        keeper.flush();
        keeper
    });
    let began = Instant::now();
    assert_eq!(publisher.publish("t", &[2; BLOCK]).expect("room in the arena"), 0);
    let took = began.elapsed();
    assert!(took >= WITHIN && took < WITHIN * 3 / 2, "{took:?}");
    let deadlines = |lines: &[LineNumbers]| {
        let line = lines.iter().find(|line| line.peer == "slow").expect("a line");
        line.sent.sent[Lane::Normal as usize].dropped.deadline
    };
    assert_eq!(deadlines(&publisher.statistics().lines), deadlines(&before) + 1);
    let topics = publisher.swarm_statistics().expect("the API answers").topics;
    assert_eq!((topics[0].sent, topics[0].delivered, topics[0].dropped), (1, 0, 1), "{topics:?}");
    drop(giving.join().expect("no panic"));
    swarm.end();
}

#[test]
fn what_is_said_to_a_member_that_is_busy_is_not_lost() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let mut busy = attach(&swarm, "busy");
    busy.port().advertise("news").expect("a topic");
    // Far more words than its socket takes: it does not read them, as if it were in a long computation.
    let mut fan = attach(&swarm, "fan");
    for _ in 0..1000 {
        fan.subscribe("news", Rule::DropNewest).expect("subscribed");
        fan.unsubscribe("news").expect("unsubscribed");
    }
    for number in 0..400 {
        let mut guest = attach(&swarm, &format!("guest-{number}"));
        guest.connect("busy").expect("a line");
    }
    fan.subscribe("news", Rule::DropNewest).expect("subscribed");
    until(
        "the publisher has heard of its subscriber",
        || (busy.publish("news", b"at last").expect("attached") == 1).then_some(()),
        || swarm.get("/api/v1/system/statistics")["topics"].to_string(),
    );
    let mut mail = Mail::default();
    assert!(fan.receive(&mut mail, SOON).expect("attached") && mail.payload() == b"at last");
    // Who leaves more unread than anybody can owe it is cut off, once, and not barred: it may have its reasons.
    const TOPICS: usize = 250;
    for topic in 0..TOPICS {
        busy.port().advertise(&format!("topic-{topic}")).expect("a topic");
    }
    let mut fans: Vec<Client> = (0..20).map(|n| attach(&swarm, &format!("fan-{n}"))).collect();
    for fan in &mut fans {
        for topic in 0..TOPICS {
            fan.subscribe(&format!("topic-{topic}"), Rule::DropNewest).expect("subscribed");
        }
    }
    until(
        "it is cut off",
        || busy.turn().is_err().then_some(()).or(busy.has_ended().then_some(())),
        String::new,
    );
    assert_eq!(swarm.events_of("member_deaf").len(), 1);
    let closed = swarm.get("/api/v1/system/statistics")["closed_channels"].clone();
    assert_eq!(closed["left its words unread"], json!(1), "{closed}");
    attach(&swarm, "busy");
    assert!(swarm.agents().iter().all(|agent| agent["restarts"] == 0));
    swarm.end();
}

/// What a lane has counted: sent, received, and dropped after it was sent.
fn lane_sum(lane: &Value) -> (u64, u64, u64) {
    let number = |value: &Value| value.as_u64().expect("a number");
    let dropped = &lane["dropped"];
    let lost = ["oldest", "expired", "late", "unkept", "gone"].map(|reason| number(&dropped[reason]));
    (number(&lane["sent"]), number(&lane["received"]), lost.iter().sum())
}

/// The normal lane from one member to another, as the API shows it.
fn normal_lane(swarm: &Swarm, from: &str, to: &str) -> Value {
    let channels = swarm.get("/api/v1/system/statistics")["channels"].clone();
    let mut channels = channels.as_array().expect("a list").iter();
    let channel = channels.find(|channel| channel["from"] == from && channel["to"] == to);
    channel.expect("the line")["lanes"][1].clone()
}

/// The same as a row of the table in the terminal: by heading.
fn normal_row(swarm: &Swarm, from: &str, to: &str) -> HashMap<String, String> {
    let out = swarm.place.cli(&["statistics"]).ends(0).out;
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let heading = out.lines().find(|line| line.starts_with("CHANNEL")).expect("a table");
    let row = out.lines().map(cells).find(|row| {
        row.first() == Some(&format!("{from} → {to}")) && row.get(1).map(String::as_str) == Some("normal")
    });
    let (heading, row) = (cells(heading), row.unwrap_or_else(|| panic!("no such row:\n{out}")));
    assert_eq!(heading.len(), row.len(), "{out}");
    heading.into_iter().zip(row).collect()
}

#[test]
fn the_numbers_of_a_full_lane_are_the_same_in_terminal_api_and_library() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let mut sender = attach(&swarm, "sender");
    let mut receiver = attach(&swarm, "receiver");
    let peer = sender.connect("receiver").expect("attached");
    let normal = Lane::Normal as usize;
    let mut sent = 0u64;
    while sender.send(peer, &[7; 40]).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 512, "a lane of 512 slots");
    let lane = normal_lane(&swarm, "sender", "receiver");
    for (name, number) in
        [("sent", sent), ("received", 0), ("depth", sent), ("high_water", sent), ("capacity", sent)]
    {
        assert_eq!(lane[name], json!(number), "{name}: {lane}");
    }
    assert_eq!((&lane["dropped"]["full"], &lane["latency_us"]), (&json!(1), &json!(null)), "{lane}");
    let own = sender.statistics().lines.remove(0).sent;
    assert_eq!((own.depths[normal], own.sent[normal].high_water), (sent, sent));
    let row = normal_row(&swarm, "sender", "receiver");
    assert_eq!((&*row["IN FLIGHT"], &*row["MOST"], &*row["SENT"]), ("512", "512", "512"), "{row:?}");

    let mut mail = Mail::default();
    for _ in 0..sent {
        assert!(receiver.receive(&mut mail, SOON).expect("attached"));
    }
    assert!(!receiver.try_receive(&mut mail).expect("attached"));
    let lane = normal_lane(&swarm, "sender", "receiver");
    for (name, number) in [("received", sent), ("depth", 0), ("high_water", sent)] {
        assert_eq!(lane[name], json!(number), "{name}: {lane}");
    }
    let latency = &lane["latency_us"];
    let (p50, p999) = (latency["p50"].as_f64().expect("a time"), latency["p999"].as_f64().expect("a time"));
    assert!(p50 > 0.0 && p50 <= p999, "{lane}");
    let buckets = lane["latency_buckets"].as_array().expect("a list");
    let counted: u64 = buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum();
    assert_eq!(counted, sent / 16, "every 16th carries its time: {lane}");
    let ends: Vec<f64> = buckets.iter().filter_map(|bucket| bucket["below_us"].as_f64()).collect();
    assert!(ends.is_sorted() && ends.last().is_some_and(|end| p999 < *end), "{lane}");
    let own = receiver.statistics().lines.remove(0).received.latencies[normal].clone();
    assert_eq!(own.quantile(0.5).map(|ns| ns / 1000.0), Some(p50));
    let view = receiver.swarm_statistics().expect("the API answers");
    let found = view.channels.iter().find(|channel| channel.from == "sender" && channel.to == "receiver");
    let found = &found.expect("the line").lanes[normal];
    assert_eq!((found.depth, found.high_water), (0, sent));
    assert_eq!(found.latency_us.map(|latency| latency.p50), Some(p50));
    assert_eq!(found.latency_buckets.len(), buckets.len());
    let row = normal_row(&swarm, "sender", "receiver");
    assert_eq!((&*row["IN FLIGHT"], &*row["MOST"]), ("0", "512"), "{row:?}");
    assert!(["P50", "P99", "P99.9"].iter().all(|name| row[*name].ends_with('s')), "{row:?}");
    swarm.end();
}

#[test]
fn a_reply_after_its_deadline_is_counted_and_not_delivered() {
    let swarm = Swarm::deploy(&json!({}));
    let mut asker = attach(&swarm, "asker");
    let mut slow = attach(&swarm, "slow");
    let there = asker.connect("slow").expect("attached");
    let (mut mail, mut heard) = (Mail::default(), Mail::default());
    for round in 1..=2 {
        let within = Duration::from_millis(100);
        let began = Instant::now();
        asker.port().request(there, Lane::Normal, b"in time?", within).expect("room");
        asker.flush();
        assert!(slow.receive(&mut mail, SOON).expect("attached"));
        while began.elapsed() <= within {
            std::thread::sleep(within / 10);
        }
        // Its answer, and its word that there is none.
        if round == 1 {
            slow.reply(&mail, b"too late").expect("room");
        } else {
            let What::Request { correlation, .. } = mail.what else { panic!("{:?}", mail.what) };
            slow.port().refuse(mail.from, mail.lane, correlation, "too late").expect("room");
            slow.flush();
        }
        assert!(!asker.try_receive(&mut heard).expect("attached"), "{:?}", heard.what);
        let statistics = asker.statistics();
        let received = statistics.lines[0].received.received[Lane::Normal as usize];
        assert_eq!((statistics.late_replies, received.dropped.late, received.messages), (round, round, 0));
        let lane = normal_lane(&swarm, "slow", "asker");
        assert_eq!(lane["dropped"]["late"], json!(round), "{lane}");
        assert_eq!(lane_sum(&lane), (round, 0, round), "{lane}");
    }
    swarm.place.cli(&["statistics"]).ends(0).says("2 late replies");
    swarm.end();
}

#[test]
fn what_is_not_kept_while_a_reply_is_waited_for_is_counted_as_dropped() {
    const MESSAGES: u64 = 5000;
    const KEPT: u64 = 4096;
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let mut asker = attach(&swarm, "asker");
    let _silent = attach(&swarm, "silent");
    let there = asker.connect("silent").expect("attached");
    let mut talker = attach(&swarm, "talker");
    let talking = std::thread::spawn(move || {
        let peer = talker.connect("asker").expect("attached");
        for number in 0..MESSAGES {
            while let Err(error) = talker.send(peer, &number.to_le_bytes()) {
                assert!(matches!(&error, ClientError::Port(error) if error.is_full()), "{error}");
                std::thread::yield_now();
            }
        }
        talker
    });
    let error = asker.call(there, b"anybody?", Duration::from_secs(3)).expect_err("nobody answers");
    assert!(matches!(error, ClientError::Timeout(_)), "{error}");
    let talker = talking.join().expect("no panic");
    assert_eq!(asker.statistics().dropped, MESSAGES - KEPT);
    let lane = normal_lane(&swarm, "talker", "asker");
    assert_eq!(lane_sum(&lane), (MESSAGES, KEPT, MESSAGES - KEPT), "{lane}");
    assert_eq!(lane["dropped"]["unkept"], json!(MESSAGES - KEPT), "{lane}");
    let mut mail = Mail::default();
    for number in 0..KEPT {
        assert!(asker.try_receive(&mut mail).expect("attached"));
        assert_eq!(mail.payload(), number.to_le_bytes());
    }
    assert!(!asker.try_receive(&mut mail).expect("attached"), "{:?}", mail.payload());
    let words = format!("{} not kept while a reply was waited for", MESSAGES - KEPT);
    swarm.place.cli(&["statistics"]).ends(0).says(&words);
    drop(talker);
    swarm.end();
}

#[test]
fn a_batch_arrives_in_order_and_wakes_who_sleeps() {
    const MESSAGES: usize = 20_000;
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let quiet = |name: &str| {
        Attach::at(&swarm.place.socket()).as_client(name).spin(false).attach().expect("the swarm listens")
    };
    let mut sender = quiet("sender");
    let mut receivers = [quiet("left"), quiet("right")];
    let peers = ["left", "right"].map(|name| sender.connect(name).expect("attached"));
    let payloads: Vec<[u8; 56]> =
        (0..MESSAGES as u64).map(|number| number.to_le_bytes().repeat(7).try_into().expect("56")).collect();
    let (mut sent, mut received, mut mail) = (0, 0, Mail::default());
    while received < MESSAGES {
        let size = (1 + sent % 100).min(MESSAGES - sent);
        sent += sender.send_all(peers[0], &payloads[sent..sent + size]).expect("attached");
        for _ in 0..1 + sent % 80 {
            if !receivers[0].try_receive(&mut mail).expect("attached") {
                break;
            }
            assert_eq!((mail.what, mail.payload()), (What::Direct, &payloads[received][..]));
            received += 1;
        }
    }
    assert!(!receivers[0].try_receive(&mut mail).expect("attached"));
    let error = sender.send_all(peers[0], &[vec![0; 5000]]).expect_err("not in slots").to_string();
    assert!(error.contains("5000 bytes"), "{error}");
    let lane = normal_lane(&swarm, "sender", "left");
    assert_eq!(lane_sum(&lane), (MESSAGES as u64, MESSAGES as u64, 0), "{lane}");
    assert_eq!(lane["bytes_received"], json!(MESSAGES * 56), "{lane}");

    // Both sleep, one after a batch and one after a single message each. A bell that was not rung is noticed after a
    // quarter of a second only.
    let waited = std::thread::scope(|scope| {
        let waiting = receivers.each_mut().map(|receiver| {
            scope.spawn(move || {
                let (mut mail, mut waited) = (Mail::default(), Duration::ZERO);
                for _ in 0..10 {
                    assert!(receiver.receive(&mut mail, SOON).expect("attached"));
                    let sent = u64::from_le_bytes(mail.payload()[..8].try_into().expect("eight bytes"));
                    waited += Duration::from_nanos(ai_swarm::os::clock::now().0 - sent);
                }
                waited
            })
        });
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(30));
            let now = ai_swarm::os::clock::now().0.to_le_bytes();
            assert_eq!(sender.send_all(peers[0], &[now]).expect("attached"), 1);
            sender.port().push(peers[1], Lane::Normal, &now).expect("room");
            sender.flush();
        }
        waiting.map(|thread| thread.join().expect("no panic"))
    });
    assert!(waited.iter().all(|waited| *waited < Duration::from_millis(500)), "ten wake-ups: {waited:?}");
    swarm.end();
}

#[test]
fn every_message_is_counted_once_as_received_or_lost() {
    const MESSAGES: u64 = 3000;
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let mut publisher = attach(&swarm, "publisher");
    let mut reader = attach(&swarm, "reader");
    reader.subscribe("frames", Rule::DropOldest).expect("subscribed");
    // Two slots each, some of them blocks: slots are not messages.
    for number in 0..MESSAGES {
        let length = if number % 100 == 0 { 8000 } else { 90 };
        assert_eq!(publisher.publish("frames", &vec![7; length]).expect("published"), 1);
    }
    let (mut mail, mut heard, mut bytes) = (Mail::default(), 0, 0);
    while reader.receive(&mut mail, Duration::from_millis(50)).expect("attached") {
        heard += 1;
        bytes += mail.len() as u64;
    }
    assert!(heard > 10 && heard < MESSAGES, "{heard}");
    // What its reader would not copy is refused, and not lost on the way.
    let error = publisher.publish("frames", &vec![0; (64 << 20) + 1]).expect_err("too long").to_string();
    assert!(error.contains("at most 67108864"), "{error}");
    let statistics = swarm.get("/api/v1/system/statistics");
    let topic = &statistics["topics"][0];
    assert_eq!(
        (&topic["sent"], &topic["delivered"], &topic["dropped"]),
        (&json!(MESSAGES + 1), &json!(heard), &json!(MESSAGES + 1 - heard)),
        "{topic}"
    );
    let channels = statistics["channels"].as_array().expect("a list").clone();
    let channel = channels.iter().find(|channel| channel["from"] == "publisher" && channel["to"] == "reader");
    let lane = &channel.expect("the line")["lanes"][1];
    assert_eq!(lane_sum(lane), (MESSAGES, heard, MESSAGES - heard), "{lane}");
    assert_eq!(
        (&lane["dropped"]["oldest"], &lane["bytes_received"]),
        (&json!(MESSAGES - heard), &json!(bytes))
    );
    assert!(lane["latency_us"]["p50"].as_f64().is_some_and(|us| us > 0.0), "{lane}");

    // A receiver that dies takes with it what it had not read; the sums do not lose what was on closed lines.
    let mut keeper = other_process(&swarm, "keeper");
    let peer = until("the keeper attaches", || publisher.connect("keeper").ok(), String::new);
    assert!(signal(keeper.id(), Signal::STOP));
    // The signal takes its time; until then the keeper reads on.
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", keeper.id())).expect("our child");
    until("the keeper stands still", || stat().contains(") T ").then_some(()), stat);
    for _ in 0..40 {
        publisher.send(peer, b"to nobody").expect("room");
    }
    assert!(signal(keeper.id(), Signal::KILL));
    keeper.wait().expect("reaped");
    drop((publisher, reader));
    until(
        "all lines are closed",
        || {
            let statistics = swarm.get("/api/v1/system/statistics");
            let lane = &statistics["closed_traffic"][1];
            let (sent, received, lost) = lane_sum(lane);
            let gone = lane["dropped"]["gone"].as_u64().expect("a number");
            assert_eq!(sent, received + lost, "{lane}");
            (sent >= MESSAGES + 40 && gone >= 40).then_some(())
        },
        || swarm.get("/api/v1/system/statistics")["closed_traffic"].to_string(),
    );
    swarm.place.cli(&["statistics"]).ends(0).says("all that are closed").says("receiver gone");
    swarm.end();
}

#[test]
fn a_task_of_an_earlier_client_is_never_taken_for_one_of_a_later() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}}));
    let long = |seconds: f64| json!({"kernel": "sleep", "params": {"seconds": seconds}});
    let life = |name: &str| {
        let members = swarm.get("/api/v1/system/statistics")["members"].clone();
        let member = members.as_array().expect("a list").iter().find(|member| member["id"] == name).cloned();
        member.expect("attached")["incarnation"].as_u64().expect("a number")
    };
    let mut first = attach(&swarm, "first");
    first.submit_json(&long(4.0)).expect("taken");
    until("it is taken", || (first.turn().is_ok() && first.accepted() == 1).then_some(()), String::new);
    let before = life("first");
    drop(first);
    // As many lives as an earlier numbering could tell apart.
    for _ in 0..2047 {
        Attach::at(&swarm.place.socket()).as_client("not possible").attach().expect_err("refused");
    }
    let mut second = attach(&swarm, "second");
    let ticket = second.submit_json(&long(30.0)).expect("taken");
    let error = second.wait(ticket, Duration::from_secs(6)).expect_err("it goes on");
    assert!(matches!(error, ClientError::Timeout(_)), "{error}");
    assert_eq!(life("second"), before + 2048);
    assert_eq!(swarm.status()["tasks"]["succeeded"], json!(1), "that of the first one has ended");
    second.cancel(ticket).expect("room");
    assert_eq!(second.wait(ticket, SOON).expect("ended").state, "cancelled");
    swarm.end();
}

#[test]
fn silent_connections_and_topics_are_bounded_and_refusals_do_not_fill_the_log() {
    let swarm = Swarm::deploy(&json!({}));
    let path = swarm.place.socket().with_file_name("attach.sock");
    let mut silent: Vec<_> = (0..200)
        .map(|_| ai_swarm::os::socket::connect(&path, SocketType::SEQPACKET).expect("the swarm listens"))
        .map(|socket| (MemberTalk::new(socket), false))
        .collect();
    let mut refused = || {
        for (talk, refused) in &mut silent {
            *refused |= matches!(talk.hear(), Ok(Heard::Message(..)));
        }
        silent.iter().filter(|(_, refused)| *refused).count()
    };
    until("all but some are refused", || (refused() >= 168).then_some(()), String::new);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(refused(), 168, "a process may have 32");
    let lines = swarm.running.err().lines().filter(|line| line.contains("client_refused")).count();
    assert!((1..4).contains(&lines), "{}", swarm.running.err());
    drop(silent);
    let mut client = until("there is room", || Attach::at(&swarm.place.socket()).attach().ok(), String::new);
    let most = (0..4096).find_map(|n| Some((n, client.port().advertise(&format!("t{n}")).err()?)));
    let (topics, error) = most.expect("there is an end to it");
    assert!(topics == 512 && error.to_string().contains("512 topics already"), "{topics}: {error}");
    let mut other = attach(&swarm, "other");
    other.subscribe("another", Rule::DropNewest).expect("others have their own");
    swarm.end();
}

#[test]
fn without_enough_open_files_a_swarm_does_not_start_and_says_so() {
    let place = Place::new();
    let config = place.write("config.json", r#"{"agents": {"compute": {"count": 2}}}"#);
    let words = ["--config", config.to_str().expect("plain"), "--monitor-duration", "0.1"];
    for limit in [32, 64] {
        let mut command = place.command(&words);
        limit_open_files(&mut command, limit, limit);
        let ran = place.finish(&mut command).ends(3);
        let refusal = format!("105 open files are needed for 7 agents, and {limit} are allowed");
        assert!(ran.err.contains(&refusal) && ran.err.contains("ulimit -n 105"), "{}", ran.story());
    }
    // What may be raised is raised.
    let mut command = place.command(&words);
    limit_open_files(&mut command, 32, 105);
    place.finish(&mut command).ends(0);
}

#[test]
fn when_no_more_files_can_be_opened_the_swarm_waits_and_works_on() {
    let place = Place::new();
    let config = place.write("config.json", r#"{"agents": {"compute": {"count": 2}}}"#);
    let mut command = place.command(&["--config", config.to_str().expect("plain")]);
    let running = place.start(&mut command);
    let socket = place.socket();
    let first = until("it listens", || Attach::at(&socket).attach().ok(), || running.err());
    // Fewer than it has already, until not even one connection can be accepted.
    let supervisor = Pid::from_raw(running.pid() as i32).expect("a number");
    let limit = |limit| prlimit(Some(supervisor), Resource::Nofile, limit).expect("our own process");
    let usual = limit(Rlimit { current: Some(8), maximum: getrlimit(Resource::Nofile).maximum });
    let path = socket.with_file_name("attach.sock");
    let mut waiting = Vec::new();
    let paused = || running.err().lines().filter(|line| line.contains("attach_paused")).count();
    until(
        "nobody is let in",
        || {
            waiting.extend(ai_swarm::os::socket::connect(&path, SocketType::SEQPACKET));
            (paused() > 0).then_some(())
        },
        || running.err(),
    );
    let ticks = || cpu_ticks(running.pid());
    let before = ticks();
    std::thread::sleep(Duration::from_millis(1500));
    let spent = ticks() - before;
    assert!(spent < 40, "{spent} ticks of 10 ms in 1.5 s, and nothing to do");
    assert_eq!(paused(), 1, "{}", running.err());
    drop(waiting);
    limit(usual);
    let mut client = first;
    let ticket = client.submit_json(&json!({"kernel": "noop"})).expect("taken");
    let end = client.wait(ticket, SOON).expect("ended");
    assert!(end.is_success(), "{end:?}: {}", running.err());
    let again = until("there is room again", || Attach::at(&socket).attach().ok(), || running.err());
    drop((client, again));
    assert!(signal(running.pid(), Signal::TERM));
    running.finish().ends(0);
}

/// Each step by which a client, its lines and its topics come in wants descriptors or memory. Who is refused is told (of a topic that
/// a subscriber does not hear, the log), has nothing half, and gets it all the next time.
#[test]
fn whatever_an_attachment_lacks_is_an_error_once_and_there_the_next_time() {
    let mut refused = 0;
    for pass in 1..=24 {
        let order = format!("attach:{pass}={}", ["files", "memory"][pass % 2]);
        let config = json!({"agents": {"compute": {"count": 1, "standbys": 0}}});
        let swarm = Swarm::deploy_with(Place::new(), &config, &[], &[("AI_SWARM_FAIL_AT", &order)]);
        let control = swarm.place.socket();
        let mut again = |what: &str, works: &mut dyn FnMut() -> bool| {
            let tries = (1..=100).find(|_| {
                let works = works();
                if !works {
                    std::thread::sleep(Duration::from_millis(20));
                }
                works
            });
            refused +=
                usize::from(tries.unwrap_or_else(|| panic!("{order}: {what}\n{}", swarm.running.err())) > 1);
        };
        let (mut left, mut right) = (None, None);
        for (client, name) in [(&mut left, "left"), (&mut right, "right")] {
            again("attached", &mut || {
                *client = Attach::at(&control).as_client(name).spin(false).attach().ok();
                client.is_some()
            });
        }
        let (mut left, mut right) = (left.expect("attached"), right.expect("attached"));
        again("asked an agent", &mut || {
            let agent = left.connect("compute-0");
            agent.is_ok_and(|agent| left.call(agent, b"status", SOON).is_ok())
        });
        let mut mail = Mail::default();
        again("said something", &mut || {
            let said = left.connect("right").is_ok_and(|peer| left.send(peer, b"word").is_ok());
            said && right.receive(&mut mail, SOON).is_ok_and(|came| came && mail.to_vec() == b"word")
        });
        again("heard a topic", &mut || {
            let subscribed = right.subscribe("topic", Rule::DropOldest).is_ok();
            let sent = subscribed
                && (0..20).any(|_| {
                    std::thread::sleep(Duration::from_millis(5));
                    left.publish("topic", b"news").is_ok_and(|sent| sent == 1)
                });
            let heard = sent && right.receive(&mut mail, SOON).is_ok_and(|came| came);
            if !heard {
                let _ = right.unsubscribe("topic");
            }
            heard
        });
        let ticket = left.submit_json(&json!({"kernel": "noop"})).expect("taken");
        assert!(left.wait(ticket, SOON).expect("ended").is_success());
        drop((left, right));
        swarm.end();
    }
    assert!(refused >= 10, "{refused} steps were refused once");
}

/// Processor time of a process, clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<u64> = fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    fields[11] + fields[12]
}

/// The command may have so many files open: as it starts, and at most.
fn limit_open_files(command: &mut Command, current: u64, maximum: u64) {
    let program = command.get_program().to_owned();
    let words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let environment: Vec<_> =
        command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
    let mut limited = Command::new("sh");
    let script = format!("ulimit -Sn {current}; ulimit -Hn {maximum}; exec \"$0\" \"$@\"");
    limited.arg("-c").arg(script).arg(program).args(words).envs(environment);
    limited.current_dir(command.get_current_dir().expect("set by the place")).stdin(Stdio::null());
    *command = limited;
}
