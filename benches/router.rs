//! A port with lines to other members: what finding, sending and taking costs above the bare lanes.

mod support;

use ai_swarm::messaging::Lane;
use ai_swarm::messaging::attach::{MemberTalk, SupervisorTalk, ToMember};
use ai_swarm::messaging::link::{AgentLink, Contact, HubObjects, LinkObjects};
use ai_swarm::messaging::port::{Mail, Peer, Port, What};
use ai_swarm::os::socket;
use ai_swarm::shm::{SharedObject, pages};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::os::fd::AsFd as _;
use std::time::Duration;

const ARENA: usize = 64 << 20;
const HALF: usize = (64 << 10) + pages::HALF_HEAD_BYTES;

/// A member, and the supervisor's end of its socket.
struct Member {
    port: Port,
    talk: SupervisorTalk,
    contact: Contact,
    _link: AgentLink,
}

fn member(owner: u64) -> Member {
    let objects = LinkObjects::create(64 << 10, ARENA).expect("objects");
    let hub = SharedObject::create("bench-hub", pages::PAGE_BYTES).expect("hub");
    let arena = SharedObject::create_sparse("bench-arena", ARENA).expect("arena");
    let event = SharedObject::create("bench-event", pages::PAGE_BYTES).expect("stands for an eventfd");
    let page = HubObjects { page: &hub, event: event.as_fd(), arena: &arena };
    let (numbers, fds) = objects.descriptors(&page);
    let fds = fds.into_iter().map(|fd| fd.try_clone_to_owned().expect("dup")).collect();
    let link = AgentLink::adopt(numbers.received(fds).expect("nine"), owner).expect("adopted");
    let (here, there) = socket::pair().expect("pair");
    let port = Port::new(&link, MemberTalk::new(there));
    let contact = objects.contact().expect("contact");
    Member { port, talk: SupervisorTalk::new(here), contact, _link: link }
}

/// Joins `a` and `b` as the supervisor does; they are each other's line number `line`.
fn join(a: &mut Member, b: &mut Member, line: u32, at: [u16; 2]) -> (Peer, Peer) {
    let halves = [HALF, HALF].map(|bytes| SharedObject::create("bench-half", bytes).expect("half"));
    let names = [format!("a{line}"), format!("b{line}")];
    for (end, (member, peer)) in [(&*a, &*b), (&*b, &*a)].into_iter().enumerate() {
        let word = ToMember::Line {
            seq: None,
            line,
            at: at[end],
            peer_at: at[1 - end],
            peer: names[1 - end].clone(),
            kind: "client".to_owned(),
            half_bytes: HALF,
            arena_bytes: ARENA,
        };
        let theirs = halves[1 - end].read_only().expect("reopened");
        let contact = &peer.contact;
        let fds = [
            halves[end].as_fd(),
            theirs.as_fd(),
            contact.desk.as_fd(),
            contact.bell.as_fd(),
            contact.arena.as_fd(),
        ];
        member.talk.say(&word, &fds).expect("room");
    }
    a.port.hear().expect("understood");
    b.port.hear().expect("understood");
    (a.port.peer(&names[1]).expect("open"), b.port.peer(&names[0]).expect("open"))
}

fn router(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    group.throughput(Throughput::Elements(1));
    let mut mail = Mail::default();
    for (name, bytes) in [("direct_56", 56), ("direct_4_kib", 4096), ("direct_1_mib", 1 << 20)] {
        let (mut a, mut b) = (member(1), member(2));
        let (to, _) = join(&mut a, &mut b, 1, [0, 0]);
        let payload: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        let mut round = |check: bool| {
            a.port.push(to, Lane::Normal, black_box(&payload)).expect("room");
            assert!(b.port.try_receive(&mut mail));
            if check {
                assert_eq!(
                    (mail.what, mail.to_vec() == payload),
                    (What::Direct, true),
                    "what came is what went"
                );
            }
            if mail.parcel.take().is_some() {
                b.port.flush();
                let mut back = Mail::default();
                assert!(!a.port.try_receive(&mut back), "only the block came back");
            }
        };
        round(true);
        group.bench_function(name, |bench| bench.iter(|| round(false)));
    }

    let (mut a, mut b) = (member(1), member(2));
    let (to, from) = join(&mut a, &mut b, 1, [0, 0]);
    let mut round = |check: bool| {
        let asked = a.port.request(to, Lane::Normal, b"what?", Duration::from_secs(600)).expect("room");
        assert!(b.port.try_receive(&mut mail));
        let What::Request { correlation, .. } = mail.what else { panic!("{:?}", mail.what) };
        b.port.reply(from, Lane::Normal, correlation, b"that").expect("room");
        assert!(a.port.try_receive(&mut mail));
        if check {
            assert_eq!((mail.what, mail.payload()), (What::Reply(asked), &b"that"[..]));
        }
    };
    round(true);
    group.bench_function("request_reply", |bench| bench.iter(|| round(false)));

    // One of many has something: the whole turn until it is found.
    for lines in [1u16, 16, 64, 256] {
        let mut hub = member(0);
        let mut others: Vec<(Member, Peer)> = (0..lines)
            .map(|at| {
                let mut other = member(u64::from(at) + 1);
                let (_, to) = join(&mut hub, &mut other, u32::from(at) + 1, [at, 0]);
                (other, to)
            })
            .collect();
        let mut next = 0;
        let mut round = || {
            next = (next + 97) % others.len();
            let (other, to) = &mut others[next];
            other.port.push(*to, Lane::Normal, b"here").expect("room");
            other.port.flush();
            assert!(hub.port.try_receive(&mut mail) && mail.len() == 4, "line {next} is found");
        };
        round();
        group.bench_function(format!("one_of_{lines}"), |bench| bench.iter(&mut round));
    }

    let mut hub = member(0);
    let mut readers: Vec<(Member, Peer)> = (0..8)
        .map(|at| {
            let mut other = member(u64::from(at) + 1);
            let (to, _) = join(&mut hub, &mut other, u32::from(at) + 1, [at, 0]);
            (other, to)
        })
        .collect();
    let peers: Vec<Peer> = readers.iter().map(|(_, peer)| *peer).collect();
    let mut round = || {
        assert_eq!(hub.port.broadcast(&peers, Lane::Normal, black_box(b"to all")).expect("open"), 8);
        for (reader, _) in &mut readers {
            assert!(reader.port.try_receive(&mut mail) && mail.len() == 6);
        }
    };
    round();
    group.throughput(Throughput::Elements(8));
    group.bench_function("broadcast_8", |bench| bench.iter(&mut round));
    group.finish();
}

criterion_group! { name = all; config = support::criterion(); targets = router }
criterion_main!(all);
