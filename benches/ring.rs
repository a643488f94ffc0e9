//! The ring: one side alone, and two threads on two pinned cores.

mod support;

use ai_swarm::os::affinity::pin_current_thread;
use ai_swarm::shm::ring::{Consumer, Message, Producer, PushError, SLOT_PAYLOAD};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

/// Kind of the message that ends the other side.
const END: u8 = 255;
/// Messages of a batch.
const BATCH: usize = 64;

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + 7) as u8).collect()
}

fn one_side(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    for (name, length) in [("push_pop_one_slot", SLOT_PAYLOAD), ("push_pop_chain_4_kib", 4096)] {
        let (mut producer, mut consumer) = support::ring(1024);
        let (sent, mut message) = (payload(length), Message::default());
        producer.try_push(3, &sent).expect("room");
        assert_eq!(consumer.try_pop(&mut message), Ok(true));
        assert_eq!((message.kind, message.payload()), (3, &sent[..]), "what came out is what went in");
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                producer.try_push(3, black_box(&sent)).expect("room");
                assert!(consumer.try_pop(&mut message).expect("sound"));
            });
        });
    }
    // 64 messages in one call each way: the figure is for all of them.
    let (mut producer, mut consumer) = support::ring(1024);
    let (sent, mut message) = (numbered(0), Message::default());
    let mut round = |check: bool| {
        let pushed = producer.try_push_batch(3, sent.iter().map(|payload| &payload[..]));
        assert_eq!(pushed, Ok(BATCH));
        let mut at = 0;
        let taken = consumer.pop_batch(&mut message, BATCH, |message| {
            if check {
                assert_eq!(message.payload(), sent[at], "what came out is what went in");
            }
            at += 1;
        });
        assert_eq!((taken, at), (Ok(BATCH), BATCH));
    };
    round(true);
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("push_pop_batch_64", |b| b.iter(|| round(false)));
    group.throughput(Throughput::Elements(1));

    let (mut producer, mut consumer) = support::ring(64);
    let mut message = Message::default();
    assert_eq!(consumer.try_pop(&mut message), Ok(false), "nothing was sent");
    group.bench_function("poll_empty", |b| b.iter(|| black_box(&mut consumer).try_pop(&mut message)));

    for _ in 0..64 {
        producer.try_push(1, &[1]).expect("room");
    }
    assert_eq!(producer.try_push(1, &[1]), Err(PushError::Full));
    group.bench_function("push_full", |b| b.iter(|| black_box(&mut producer).try_push(1, &[1])));
    group.finish();
}

/// A batch of full slots that begin with their numbers.
fn numbered(first: u64) -> [[u8; SLOT_PAYLOAD]; BATCH] {
    std::array::from_fn(|at| {
        let mut payload = [at as u8; SLOT_PAYLOAD];
        payload[..8].copy_from_slice(&(first + at as u64).to_le_bytes());
        payload
    })
}

/// Pushes, waiting for room.
fn push(producer: &mut Producer, kind: u8, payload: &[u8]) {
    while let Err(error) = producer.try_push(kind, payload) {
        assert_eq!(error, PushError::Full);
        spin_loop();
    }
}

/// Pops, waiting for a message.
fn pop(consumer: &mut Consumer, message: &mut Message) {
    while !consumer.try_pop(message).expect("a sound ring") {
        spin_loop();
    }
}

/// Messages one way, one by one or in batches, each checked to be the next one.
fn one_way(core: usize, messages: u64, batches: bool) -> Duration {
    let (mut producer, mut consumer) = support::ring(16_384);
    let reader = std::thread::spawn(move || {
        assert!(pin_current_thread(core), "cannot pin to core {core}");
        let mut message = Message::default();
        pop(&mut consumer, &mut message);
        for expected in 0..messages {
            pop(&mut consumer, &mut message);
            let found = u64::from_le_bytes(message.payload()[..8].try_into().expect("eight bytes"));
            assert_eq!(found, expected, "messages come in order");
        }
        Instant::now()
    });
    let mut bytes = [0; SLOT_PAYLOAD];
    push(&mut producer, 1, &bytes);
    // The reader is there once it has taken the first message.
    while producer.depth() > 0 {
        spin_loop();
    }
    let began = Instant::now();
    let mut number = 0;
    while number < messages {
        if batches {
            let payloads = numbered(number);
            let rest = payloads.iter().take((messages - number) as usize).map(|payload| &payload[..]);
            // What found no room is made again: it costs what waiting would.
            number += producer.try_push_batch(1, rest).expect("a sound ring") as u64;
        } else {
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            push(&mut producer, 1, &bytes);
            number += 1;
        }
    }
    reader.join().expect("the reader found everything in order") - began
}

/// Messages of `length` bytes there and back, one at a time.
fn there_and_back(core: usize, length: usize, rounds: u64) -> Duration {
    let (mut to, mut from_here) = support::ring(256);
    let (mut back, mut from_there) = support::ring(256);
    let echo = std::thread::spawn(move || {
        assert!(pin_current_thread(core), "cannot pin to core {core}");
        let mut message = Message::default();
        loop {
            pop(&mut from_here, &mut message);
            if message.kind == END {
                return;
            }
            push(&mut back, message.kind, message.payload());
        }
    });
    let (sent, mut message) = (payload(length), Message::default());
    let mut round = || {
        push(&mut to, 1, &sent);
        pop(&mut from_there, &mut message);
        assert_eq!(message.payload(), &sent[..], "the echo is what was sent");
    };
    round();
    let began = Instant::now();
    (0..rounds).for_each(|_| round());
    let took = began.elapsed();
    push(&mut to, END, &[]);
    echo.join().expect("the echo ends well");
    took
}

fn two_cores(c: &mut Criterion) {
    let (_, Some(core)) = support::cores() else {
        eprintln!("ring_two_cores: skipped, this host has one core");
        return;
    };
    let mut group = c.benchmark_group("ring_two_cores");
    group.sample_size(20);
    for (name, length) in [("round_trip_64", SLOT_PAYLOAD), ("round_trip_chain_4_kib", 4096)] {
        group.bench_function(name, |b| b.iter_custom(|rounds| there_and_back(core, length, rounds)));
    }
    const MESSAGES: u64 = 200_000;
    group.throughput(Throughput::Elements(MESSAGES));
    for (name, batches) in [("rate_64", false), ("rate_64_batch", true)] {
        group.bench_function(name, |b| {
            b.iter_custom(|iters| (0..iters).map(|_| one_way(core, MESSAGES, batches)).sum());
        });
    }
    group.finish();
}

criterion_group! { name = ring; config = support::criterion(); targets = one_side, two_cores }
criterion_main!(ring);
