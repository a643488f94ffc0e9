//! Three lanes over one channel: what the order of service costs.

mod support;

use ai_swarm::messaging::lanes::{ChannelMemory, Lane, LaneReceiver, LaneSender, NORMAL_RUN};
use ai_swarm::messaging::meters::Meter;
use ai_swarm::shm::pages::PAGE_BYTES;
use ai_swarm::shm::ring::Message;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Both ends of a channel of the default size.
fn channel() -> (LaneSender, LaneReceiver) {
    let (slots, heads) = (support::shared_words((1 << 20) / 8), support::shared_words(PAGE_BYTES / 8));
    let memory = ChannelMemory { slots, first_slot: 0, heads, first_head: 0 };
    let sender = LaneSender::new(&memory, Meter::private_sender());
    (sender, LaneReceiver::new(&memory, Meter::private_receiver()))
}

fn lanes(c: &mut Criterion) {
    let mut group = c.benchmark_group("lanes");
    group.throughput(Throughput::Elements(1));
    let bytes = [7; 48];
    for (name, lane) in [
        ("control_push_pop", Lane::Control),
        ("normal_push_pop", Lane::Normal),
        ("bulk_push_pop", Lane::Bulk),
    ] {
        let (mut sender, mut receiver) = channel();
        let mut message = Message::default();
        sender.try_push(lane, 9, &bytes).expect("room");
        assert_eq!(receiver.try_pop(&mut message), Ok(Some(lane)));
        assert_eq!((message.kind, message.payload()), (9, &bytes[..]), "what came out is what went in");
        group.bench_function(name, |b| {
            b.iter(|| {
                sender.try_push(lane, 9, black_box(&bytes)).expect("room");
                assert!(receiver.try_pop(&mut message).expect("sound").is_some());
            });
        });
    }

    let (_sender, mut receiver) = channel();
    let mut message = Message::default();
    assert_eq!(receiver.try_pop(&mut message), Ok(None), "nothing was sent");
    group.bench_function("poll_all_empty", |b| b.iter(|| black_box(&mut receiver).try_pop(&mut message)));
    let (_sender, receiver) = channel();
    assert!(!receiver.is_ready());
    group.bench_function("is_ready_empty", |b| b.iter(|| black_box(&receiver).is_ready()));

    // 32 of each kind, sent and taken: the figure is for all 96.
    let (mut sender, mut receiver) = channel();
    let mut round = |check: bool| {
        for lane in [Lane::Bulk, Lane::Normal, Lane::Control] {
            for _ in 0..32 {
                sender.try_push(lane, lane as u8, &bytes).expect("room");
            }
        }
        let mut order = [0; 96];
        for kind in &mut order {
            assert!(receiver.try_pop(&mut message).expect("sound").is_some());
            *kind = message.kind;
        }
        if check {
            assert!(
                order[..32].iter().all(|&kind| kind == Lane::Control as u8),
                "control goes first: {order:?}"
            );
            let first_bulk = order.iter().position(|&kind| kind == Lane::Bulk as u8).expect("bulk came");
            assert_eq!(first_bulk, 32 + NORMAL_RUN as usize, "bulk does not starve: {order:?}");
            assert!(!receiver.is_ready(), "all were taken");
        }
    };
    round(true);
    group.throughput(Throughput::Elements(96));
    group.bench_function("mixed_96", |b| b.iter(|| round(false)));
    group.finish();
}

criterion_group! { name = all; config = support::criterion(); targets = lanes }
criterion_main!(all);
