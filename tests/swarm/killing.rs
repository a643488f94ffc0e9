//! A client dies at every single step of sending, publishing, receiving and giving back, and its partners see whole
//! messages, in order, up to its death; get back what it had; and go on with its successor.
//!
//! The client is this test binary again, killed by itself at a point of `base::crash` that `AI_SWARM_DIE_AT` names.

use crate::support::{Place, Swarm, signal, until};
use ai_swarm::Client;
use ai_swarm::base::ids::AgentSlot;
use ai_swarm::client::{Attach, ClientError, Mail, Peer, PortError, Rule, What};
use ai_swarm::shm::board::Board;
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
/// What every client that dies is called.
const NAME: &str = "mortal";
/// Blocks that a process with the role `owner` sends to its keeper, and to its partner.
const BLOCKS: [u64; 2] = [8, 4];

/// Every point, the role that passes it, and at which passes it is the end.
const DEATHS: [(&str, &str, &[u32]); 29] = [
    ("ring.write", "sender", &[1, 2, 30, 500]),
    ("ring.chain", "sender", &[1, 3, 40]),
    ("ring.publish", "sender", &[1, 2, 3, 40]),
    ("ring.take", "sender", &[1, 3, 6]),
    ("ring.acknowledge", "sender", &[1, 3, 6]),
    ("arena.loan", "sender", &[1, 2, 6]),
    ("arena.write", "sender", &[1, 2, 6]),
    ("arena.publish", "sender", &[1, 2, 6]),
    ("arena.release", "sender", &[1, 2, 9]),
    ("doorbell.ring", "sender", &[1, 2, 30]),
    ("ring.write", "receiver", &[1, 5]),
    ("ring.publish", "receiver", &[1, 4]),
    ("ring.take", "receiver", &[1, 2, 3, 40]),
    ("ring.acknowledge", "receiver", &[1, 2, 3, 12]),
    ("doorbell.ring", "receiver", &[1, 4]),
    ("lossy.busy", "publisher", &[1, 2, 300]),
    ("lossy.write", "publisher", &[1, 2, 900]),
    ("lossy.chain", "publisher", &[1, 2, 150]),
    ("lossy.publish", "publisher", &[1, 2, 60]),
    ("lossy.tail", "publisher", &[1, 2, 60]),
    ("ring.chain", "publisher", &[1, 25]),
    ("ring.publish", "publisher", &[1, 50]),
    ("arena.loan", "publisher", &[1, 8]),
    ("arena.write", "publisher", &[1, 8]),
    ("arena.publish", "publisher", &[1, 8]),
    ("arena.release", "publisher", &[1, 3]),
    ("doorbell.ring", "publisher", &[1, 9]),
    ("arena.reclaim", "owner", &[1, 2, 5, 8]),
    ("arena.release", "owner", &[1]),
];

/// The board is written by agents alone. In a cell of the host, between two cells, in one of an agent's usage.
const BOARD_DEATHS: [(&str, u32); 4] =
    [("seqlock.write", 1), ("seqlock.write", 9), ("seqlock.publish", 1), ("seqlock.write", 40)];

fn attach(control: &Path, name: &str) -> Client {
    Attach::at(control).as_client(name).spin(false).attach().expect("the swarm listens")
}

/// Bytes that say which message they are: slots, chains and blocks in turn.
fn pattern(number: u64) -> Vec<u8> {
    let length = [16, 48, 200, 16, 3000, 20_000, 24][(number % 7) as usize];
    (0..length / 8).map(|at| number.wrapping_mul(at | 1) ^ at << 32).flat_map(u64::to_le_bytes).collect()
}

/// Where the dying one notes what it has done: the number of messages whose sending returned.
struct Diary(File);

impl Diary {
    fn note(&self, number: u64) {
        self.0.write_all_at(&number.to_le_bytes(), 0).expect("room for eight bytes");
    }

    fn read(path: &Path) -> u64 {
        fs::read(path).ok().and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))).unwrap_or(0)
    }
}

/// No test of its own: what [`mortal`] runs.
#[test]
fn a_process_that_dies() {
    let Ok(role) = std::env::var("AI_SWARM_TEST_MORTAL") else { return };
    let word = |name| PathBuf::from(std::env::var_os(name).expect("set by the test"));
    let diary = Diary(File::create(word("AI_SWARM_TEST_DIARY")).expect("a file in /tmp"));
    let control = word("AI_SWARM_TEST_SOCKET");
    let mut client = attach(&control, if role == "keeper" { "keeper" } else { NAME });
    let mut mail = Mail::default();
    match role.as_str() {
        "sender" => {
            let partner = client.connect("partner").expect("attached");
            for number in 0.. {
                send(&mut client, partner, &pattern(number));
                diary.note(number + 1);
                assert!(!client.try_receive(&mut mail).expect("attached"));
            }
        }
        // One subscriber for whom this waits, and one that may miss some.
        "publisher" => {
            for number in 0.. {
                assert_eq!(client.publish("numbers", &pattern(number)).expect("published"), 2);
                diary.note(number + 1);
                // Takes back what the first one has read.
                assert!(!client.try_receive(&mut mail).expect("attached"));
            }
        }
        // Keeps some of the blocks that it is given, and gives the others back.
        "receiver" | "keeper" => {
            client.connect("partner").expect("attached");
            let mut kept = Vec::new();
            for count in 0u64.. {
                assert!(client.receive(&mut mail, SOON).expect("attached"), "nobody sends anything");
                diary.note(count + 1);
                kept.extend(mail.parcel.take());
                if role == "receiver" && kept.len() > 3 {
                    kept.remove(0);
                    client.flush();
                }
            }
        }
        // Others have its blocks; one of them dies.
        "owner" => {
            for (name, count) in ["keeper", "partner"].into_iter().zip(BLOCKS) {
                let peer = client.connect(name).expect("attached");
                for number in 0..count {
                    send(&mut client, peer, &block(number));
                }
            }
            diary.note(1);
            loop {
                client.receive(&mut mail, Duration::from_millis(20)).expect("attached");
                client.turn().expect("attached");
            }
        }
        other => panic!("no role {other:?}"),
    }
}

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(10_000)
}

/// Sends, waiting for room.
fn send(client: &mut Client, peer: Peer, payload: &[u8]) {
    let began = Instant::now();
    loop {
        match client.send(peer, payload) {
            Ok(()) => return,
            Err(ClientError::Port(PortError::Send(_))) if began.elapsed() < SOON => {
                // Blocks come back with what is received.
                client.receive(&mut Mail::default(), Duration::from_micros(200)).expect("attached");
            }
            Err(error) => panic!("{} bytes: {error}", payload.len()),
        }
    }
}

/// A process that plays `role` until it dies where `order` says.
fn mortal(swarm: &Swarm, role: &str, order: Option<&str>) -> (Child, PathBuf) {
    let diary = swarm.place.beside(&format!("diary-{role}"));
    let _ = fs::remove_file(&diary);
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "killing::a_process_that_dies", "--nocapture"]);
    command.env("AI_SWARM_TEST_MORTAL", role).env("AI_SWARM_TEST_SOCKET", swarm.place.socket());
    command.env("AI_SWARM_TEST_DIARY", &diary).env_remove("AI_SWARM_DIE_AT");
    if let Some(order) = order {
        command.env("AI_SWARM_DIE_AT", order);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    (command.spawn().expect("this binary starts"), diary)
}

/// Whether it is dead; it must have died where it was told to.
fn is_dead(child: &mut Child, order: &str) -> bool {
    let Some(status) = child.try_wait().expect("our own child") else { return false };
    assert_eq!(status.signal(), Some(9), "{order}: the point was not reached: {status}");
    true
}

/// The one who stays alive.
struct Partner {
    client: Client,
    mail: Mail,
    /// Numbers received from the one that dies, and what it published.
    next: u64,
}

impl Partner {
    /// Takes one message, if there is one. Everything is whole and in order.
    fn take(&mut self, order: &str) -> bool {
        if !self.client.try_receive(&mut self.mail).expect("attached") {
            return false;
        }
        let (bytes, number) = (self.mail.to_vec(), self.next);
        assert!(
            bytes == pattern(number),
            "{order}: message {number} is another: {} bytes, {:?}",
            bytes.len(),
            self.mail.what
        );
        self.next += 1;
        self.mail.parcel = None;
        self.client.flush();
        true
    }

    /// Waits until the line is closed, without receiving what is on it.
    fn sees_the_end(&mut self, order: &str) {
        let why = until(
            "the line is closed",
            || {
                self.client.turn().expect("attached");
                self.client.port().take_closed().into_iter().find(|(id, _)| id == NAME)
            },
            || order.to_owned(),
        );
        assert!(why.1.contains("left"), "{order}: closed because {why:?}");
    }

    /// Nothing is with the dead any more.
    fn has_everything_back(&mut self, order: &str) {
        if let Some(usage) = self.client.statistics().arena {
            assert_eq!((usage.blocks_out, usage.loaned), (0, 0), "{order}: {usage:?}");
        }
    }
}

/// A new client of the same name, to which messages go and from which they come.
fn resumes(swarm: &Swarm, partner: &mut Partner, order: &str) {
    let control = swarm.place.socket();
    let mut successor = until(
        "a successor attaches",
        || Attach::at(&control).as_client(NAME).spin(false).attach().ok(),
        || format!("{order}: {}", swarm.running.err()),
    );
    let there = successor.connect("partner").expect("attached");
    partner.next = 0;
    let mut mail = Mail::default();
    for number in 0..7 {
        send(&mut successor, there, &pattern(number));
        until("the successor is heard", || partner.take(order).then_some(()), || order.to_owned());
        let back = partner.client.port().peer(NAME).expect("a line");
        send(&mut partner.client, back, &pattern(number));
        assert!(
            successor.receive(&mut mail, SOON).expect("attached") && mail.to_vec() == pattern(number),
            "{order}"
        );
        assert_eq!(mail.what, What::Direct);
    }
    mail.parcel = None;
    successor.flush();
    drop(successor);
    partner.sees_the_end(order);
    partner.next = 0;
}

#[test]
fn the_points_are_those_of_the_sources() {
    let mut found = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("text");
            for (at, call) in text.match_indices("crash::point(") {
                let arguments = &text[at + call.len()..][..80.min(text.len() - at - call.len())];
                let arguments = arguments.split(')').next().unwrap_or_default();
                let names = arguments.split('"').skip(1).step_by(2);
                found.extend(names.map(str::to_owned));
            }
        }
    }
    let points = DEATHS.iter().map(|(point, ..)| *point).chain(BOARD_DEATHS.map(|(point, _)| point));
    let covered: BTreeSet<String> = points.map(str::to_owned).collect();
    assert_eq!(covered, found);
}

#[test]
fn an_agent_that_dies_in_a_cell_of_the_board_is_followed_by_one_that_publishes() {
    for (point, count) in BOARD_DEATHS {
        let order = format!("{point}:{count}");
        let place = Place::new();
        let once = place.path("died");
        let variables = [
            ("AI_SWARM_DIE_AT", &*order),
            ("AI_SWARM_DIE_AS", "__agent"),
            ("AI_SWARM_DIE_ONCE", once.to_str().expect("a plain path")),
        ];
        let swarm = Swarm::deploy_with(place, &json!({"monitoring_interval": 0.1}), &[], &variables);
        let agents = || format!("{order}: {:#?}\n{}", swarm.agents(), swarm.running.err());
        let kind = until(
            "one has died and has a successor",
            || {
                let mut again = swarm.agents();
                again.retain(|agent| agent["restarts"] == 1 && agent["state"] == "ready");
                once.exists().then_some(())?;
                again.first().map(|agent| agent["kind"].as_str().expect("a word").to_owned())
            },
            agents,
        );
        assert!(kind == "resource" || kind == "thermal", "{order}: only these two write cells: {}", agents());
        let since = ai_swarm::os::clock::now().0 as f64;
        let name = swarm.place.segments().into_iter().next().expect("a board");
        let board = (1..4096).find_map(|slots| Board::open(&name, slots).ok()).expect("a board");
        until(
            "every cell is whole and fresh",
            || {
                let host = board.host().is_some_and(|host| host.sampled_ns > since);
                let thermal = board.thermal().is_some_and(|thermal| thermal.sampled_ns > since);
                let usage =
                    |slot: u16| board.usage(AgentSlot(slot)).is_some_and(|usage| usage.sampled_ns > since);
                (host && thermal && (0..swarm.agents().len() as u16).all(usage)).then_some(())
            },
            agents,
        );
        let restarts: u64 = swarm.agents().iter().filter_map(|agent| agent["restarts"].as_u64()).sum();
        assert_eq!(restarts, 1, "nobody else died: {}", agents());
        swarm.end();
    }
}

#[test]
fn whoever_dies_anywhere_leaves_whole_messages_and_takes_nothing_along() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536, "messaging": {"arena_bytes": 16 << 20}}));
    let control = swarm.place.socket();
    let mut partner = Partner { client: attach(&control, "partner"), mail: Mail::default(), next: 0 };
    let (mut deaths, mut reclaimed) = (0, 0);
    for (point, role, counts) in DEATHS {
        for count in counts {
            let order = format!("{point}:{count}");
            match role {
                "sender" => sender_dies(&swarm, &mut partner, &order, deaths % 2 == 0),
                "receiver" => receiver_dies(&swarm, &mut partner, &order),
                "publisher" => publisher_dies(&swarm, &order),
                _ => owner_dies(&swarm, &mut partner, &order),
            }
            partner.has_everything_back(&order);
            resumes(&swarm, &mut partner, &order);
            deaths += 1;
        }
        reclaimed = partner.client.statistics().arena.map_or(reclaimed, |usage| usage.reclaimed);
    }
    assert!(reclaimed > 3, "the receivers died with blocks of ours: {reclaimed}");
    let agents = swarm.agents();
    assert!(agents.iter().all(|agent| agent["restarts"] == 0), "nobody else noticed: {agents:#?}");
    let statistics = swarm.get("/api/v1/system/statistics");
    let closed = &statistics["closed_channels"];
    assert!(closed["peer left"].as_u64() >= Some(deaths), "{closed}");
    assert_eq!(closed.as_object().map(serde_json::Map::len), Some(1), "death is no nonsense: {closed}");
    assert!(!swarm.running.err().contains("panicked"), "{}", swarm.running.err());
    println!("{deaths} deaths, {reclaimed} blocks taken back");
    drop(partner);
    swarm.end();
}

/// `late`: nothing is received before the sender is dead, unless it needs that in order to get there.
fn sender_dies(swarm: &Swarm, partner: &mut Partner, order: &str, late: bool) {
    let (mut child, diary) = mortal(swarm, "sender", Some(order));
    let needs_answers =
        ["ring.take", "ring.acknowledge", "arena.release"].iter().any(|point| order.starts_with(point));
    until(
        "it dies",
        || {
            while (needs_answers || !late) && partner.take(order) {}
            is_dead(&mut child, order).then_some(())
        },
        || format!("{order}: {} sent", Diary::read(&diary)),
    );
    // First the news of its death, then what it had sent: some deaths come before the line does.
    let gone = || {
        let members = swarm.get("/api/v1/system/statistics")["members"].clone();
        (!members.to_string().contains(&format!("\"{NAME}\""))).then_some(())
    };
    until("the supervisor knows", gone, || order.to_owned());
    partner.client.turn().expect("attached");
    while partner.take(order) {}
    assert!(partner.client.port().peer(NAME).is_none(), "{order}: the line is still open");
    let had = partner.client.port().take_closed();
    assert!(had.iter().all(|(id, why)| id == NAME && why.contains("left")), "{order}: {had:?}");
    let sent = Diary::read(&diary);
    assert!(
        partner.next == sent || partner.next == sent + 1,
        "{order}: {sent} sent, {} received",
        partner.next
    );
    assert!(sent == 0 || had.len() == 1, "{order}: {sent} sent on a line that was never closed");
}

fn receiver_dies(swarm: &Swarm, partner: &mut Partner, order: &str) {
    let (mut child, diary) = mortal(swarm, "receiver", Some(order));
    let mut sent = 0;
    until(
        "it dies",
        || {
            // It connects, unless it dies before.
            let _ = partner.client.try_receive(&mut partner.mail).expect("attached");
            if let Some(peer) = partner.client.port().peer(NAME)
                && partner.client.send(peer, &pattern(sent)).is_ok()
            {
                sent += 1;
            }
            is_dead(&mut child, order).then_some(())
        },
        || format!("{order}: {} received", Diary::read(&diary)),
    );
    until(
        "the line is closed",
        || {
            partner.client.try_receive(&mut partner.mail).expect("attached");
            let gone = swarm.get("/api/v1/system/statistics")["members"]
                .as_array()
                .is_some_and(|members| members.iter().all(|member| member["id"] != NAME));
            (gone && partner.client.port().peer(NAME).is_none()).then_some(())
        },
        || order.to_owned(),
    );
    let closed = partner.client.port().take_closed();
    assert!(closed.iter().all(|(id, why)| id == NAME && why.contains("left")), "{order}: {closed:?}");
    assert!(Diary::read(&diary) <= sent, "{order}: it received what nobody sent");
}

fn publisher_dies(swarm: &Swarm, order: &str) {
    let control = swarm.place.socket();
    let mut sure = Partner { client: attach(&control, "sure"), mail: Mail::default(), next: 0 };
    sure.client.subscribe("numbers", Rule::Block { within_ms: 10_000 }).expect("subscribed");
    let mut quick = attach(&control, "quick");
    quick.subscribe("numbers", Rule::DropOldest).expect("subscribed");
    let (mut child, diary) = mortal(swarm, "publisher", Some(order));
    let (mut mail, mut last, mut heard) = (Mail::default(), None, 0);
    let mut listen = |quick: &mut Client| {
        while quick.try_receive(&mut mail).expect("attached") {
            let bytes = mail.to_vec();
            // The second word tells the number whatever the length is.
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            let number = word(0);
            assert!(bytes == pattern(number), "{order}: a torn message, {} bytes", bytes.len());
            assert!(last < Some(number), "{order}: {number} after {last:?}");
            last = Some(number);
            heard += 1;
        }
    };
    until(
        "it dies",
        || {
            while sure.take(order) {}
            listen(&mut quick);
            is_dead(&mut child, order).then_some(())
        },
        || format!("{order}: {} published", Diary::read(&diary)),
    );
    sure.sees_the_end(order);
    while sure.take(order) {}
    listen(&mut quick);
    let published = Diary::read(&diary);
    assert!(
        sure.next == published || sure.next == published + 1,
        "{order}: {published} published, {} received",
        sure.next
    );
    assert!(heard <= published + 1, "{order}");
}

/// A keeper of its blocks is killed, and while it takes them back it dies itself.
fn owner_dies(swarm: &Swarm, partner: &mut Partner, order: &str) {
    let (mut keeper, kept) = mortal(swarm, "keeper", None);
    until(
        "the keeper is there",
        || {
            partner.client.turn().expect("attached");
            partner.client.port().peer("keeper")
        },
        || order.to_owned(),
    );
    let (mut owner, diary) = mortal(swarm, "owner", Some(order));
    until(
        "it has given its blocks away",
        || (Diary::read(&kept) == BLOCKS[0] && Diary::read(&diary) == 1).then_some(()),
        || format!("{order}: {} of {BLOCKS:?}", Diary::read(&kept)),
    );
    let mut received = 0;
    let mut take = |partner: &mut Partner| {
        let found = partner.client.receive(&mut partner.mail, Duration::from_millis(1)).expect("attached");
        if found {
            assert!(partner.mail.to_vec() == block(received), "{order}: block {received} is another");
            partner.mail.parcel = None;
            partner.client.flush();
            received += 1;
        }
        found
    };
    if order.starts_with("arena.release") {
        // It dies with the first block that comes back.
        until(
            "it dies",
            || {
                take(partner);
                is_dead(&mut owner, order).then_some(())
            },
            || order.to_owned(),
        );
        assert!(signal(keeper.id(), Signal::KILL));
    } else {
        assert!(signal(keeper.id(), Signal::KILL));
        until("it dies", || is_dead(&mut owner, order).then_some(()), || order.to_owned());
    }
    keeper.wait().expect("reaped");
    let mut gone = BTreeSet::new();
    until(
        "both lines are closed",
        || {
            partner.client.turn().expect("attached");
            gone.extend(partner.client.port().take_closed().into_iter().map(|(id, _)| id));
            (gone.len() == 2).then_some(())
        },
        || order.to_owned(),
    );
    // The memory of the dead is there as long as somebody reads in it.
    while take(partner) {}
    assert_eq!(received, BLOCKS[1], "{order}");
}

#[test]
fn two_who_die_at_once_are_both_cleaned_up_after() {
    let swarm = Swarm::deploy(&json!({"channel_size": 65536}));
    let control = swarm.place.socket();
    let mut owner = Partner { client: attach(&control, "partner"), mail: Mail::default(), next: 0 };
    for round in 0..5u64 {
        let order = format!("round {round}");
        let mut children = Vec::new();
        for role in ["keeper", "receiver"] {
            let (child, diary) = mortal(&swarm, role, None);
            let name = if role == "keeper" { role } else { NAME };
            let peer = until(
                "it is there",
                || {
                    owner.client.turn().expect("attached");
                    owner.client.port().peer(name)
                },
                || swarm.running.err(),
            );
            for number in 0..12 {
                send(&mut owner.client, peer, &block(number));
            }
            until("it has some", || (Diary::read(&diary) == 12).then_some(()), || order.clone());
            children.push(child);
        }
        let before = owner.client.statistics().arena.expect("used").reclaimed;
        // The second one while the first one's death is being cleaned up, or a moment sooner or later.
        for (number, child) in children.iter_mut().enumerate() {
            assert!(signal(child.id(), Signal::KILL));
            std::thread::sleep(Duration::from_micros(100 * round * (1 - number as u64)));
        }
        for mut child in children {
            child.wait().expect("reaped");
        }
        let mut gone = BTreeSet::new();
        until(
            "both lines are closed",
            || {
                let _ = owner.client.try_receive(&mut owner.mail).expect("attached");
                gone.extend(owner.client.port().take_closed().into_iter().map(|(id, _)| id));
                (gone.len() == 2).then_some(())
            },
            || order.clone(),
        );
        let usage = owner.client.statistics().arena.expect("used");
        // The receiver had given some back; not all of those words may have been read.
        assert_eq!(usage.blocks_out, 0, "{order}: {usage:?}");
        assert!(usage.reclaimed >= before + 12 + 3, "{order}: {before} before, {usage:?}");
        resumes(&swarm, &mut owner, &order);
    }
    assert!(swarm.agents().iter().all(|agent| agent["restarts"] == 0), "{:#?}", swarm.agents());
    drop(owner);
    swarm.end();
}
