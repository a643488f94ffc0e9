//! The ring: what is taken is what was sent, whole and in order, whoever is faster and whoever dies.

use ai_swarm_loom::base::crash::dying_after;
use ai_swarm_loom::base::sync::without_fences;
use ai_swarm_loom::shm::Words;
use ai_swarm_loom::shm::ring::{Consumer, Message, Producer, PushError, RingMemory, SLOT_WORDS};
use ai_swarm_loom::{Bound, explore};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn ring(capacity: u64) -> (Producer, Consumer) {
    let slots = Words::private(capacity as usize * SLOT_WORDS);
    let memory = RingMemory { slots, first_word: 0, capacity, heads: Words::private(1), head_word: 0 };
    (Producer::new(memory.clone()), Consumer::new(memory))
}

fn push(producer: &mut Producer, payload: &[u8]) {
    while let Err(error) = producer.try_push(payload[0], payload) {
        assert_eq!(error, PushError::Full);
        thread::yield_now();
    }
}

/// The next message; it must be `expected`.
fn take(consumer: &mut Consumer, message: &mut Message, expected: &[u8]) {
    while !consumer.try_pop(message).expect("a sound ring") {
        thread::yield_now();
    }
    assert_eq!((message.kind, message.payload()), (expected[0], expected));
}

#[test]
fn single_slots_wrap_around_in_order() {
    explore("ring, three messages through two slots", Bound::All, || through_two_slots(3));
    explore("ring, five messages through two slots", Bound::Preemptions(3), || through_two_slots(5));
}

fn through_two_slots(messages: u8) {
    let (mut producer, mut consumer) = ring(2);
    let writer = thread::spawn(move || {
        for i in 1..=messages {
            push(&mut producer, &[i, !i]);
        }
    });
    let mut message = Message::default();
    for i in 1..=messages {
        take(&mut consumer, &mut message, &[i, !i]);
    }
    assert_eq!(consumer.try_pop(&mut message), Ok(false));
    writer.join().expect("the writer got rid of all");
}

/// Longer than a slot, so a chain of two.
fn long(kind: u8) -> Vec<u8> {
    (0..58).map(|at| kind + at % 5).collect()
}

#[test]
fn chains_are_seen_whole_or_not_at_all() {
    explore("ring, chains of two through two slots", Bound::All, || {
        let (mut producer, mut consumer) = ring(2);
        let writer = thread::spawn(move || {
            push(&mut producer, &[9]);
            push(&mut producer, &long(10));
            push(&mut producer, &long(20));
        });
        let mut message = Message::default();
        take(&mut consumer, &mut message, &[9]);
        take(&mut consumer, &mut message, &long(10));
        take(&mut consumer, &mut message, &long(20));
        writer.join().expect("the writer got rid of all");
    });
}

#[test]
fn batches_lose_and_repeat_nothing() {
    explore("ring, batches of two through two slots", Bound::Preemptions(3), || {
        let (mut producer, mut consumer) = ring(2);
        let writer = thread::spawn(move || {
            let payloads = [[1u8], [2], [3]];
            let mut sent = 0;
            while sent < payloads.len() {
                let rest = payloads[sent..].iter().take(2).map(|payload| &payload[..]);
                match producer.try_push_batch(7, rest).expect("a sound reader") {
                    0 => thread::yield_now(),
                    pushed => sent += pushed,
                }
            }
        });
        let (mut message, mut next) = (Message::default(), 1);
        while next <= 3 {
            let taken = consumer.pop_batch(&mut message, 2, |message| {
                assert_eq!(message.payload(), [next]);
                next += 1;
            });
            if taken.expect("a sound writer") == 0 {
                thread::yield_now();
            }
        }
        writer.join().expect("the writer got rid of all");
    });
}

#[test]
fn who_looks_without_taking_sees_what_there_is_to_take() {
    explore("ring, ready means ready", Bound::All, || {
        let (mut producer, mut consumer) = ring(2);
        let writer = thread::spawn(move || push(&mut producer, &long(3)));
        let mut message = Message::default();
        if consumer.is_ready() {
            assert_eq!(consumer.try_pop(&mut message), Ok(true));
            assert_eq!(message.payload(), long(3));
        }
        writer.join().expect("there was room");
    });
}

#[test]
fn a_writer_that_dies_anywhere_leaves_whole_messages_only() {
    // After so many points: in every payload word, between the slots, before every control word, and not at all.
    for points in 0..16 {
        explore(&format!("ring, writer dies after {points} points"), Bound::All, move || {
            let (mut producer, mut consumer) = ring(2);
            let writer = thread::spawn(move || {
                let sent = std::cell::RefCell::new(Vec::new());
                let life = dying_after(points, || {
                    for payload in [vec![1], long(10), vec![2]] {
                        // A reader that looks no more is no reason to wait for ever.
                        if producer.try_push(payload[0], &payload).is_ok() {
                            sent.borrow_mut().push(payload);
                        }
                    }
                });
                (sent.into_inner(), life.is_some())
            });
            let (mut message, mut taken) = (Message::default(), Vec::new());
            // While it lives, and once more when it is dead or done.
            let mut take_all = || {
                while consumer.try_pop(&mut message).expect("a sound ring, to the last") {
                    taken.push(message.payload().to_vec());
                }
            };
            for _ in 0..2 {
                take_all();
                thread::yield_now();
            }
            let (sent, lived) = writer.join().expect("death is no panic");
            take_all();
            assert_eq!(taken, sent, "what was sent whole is there, and nothing else");
            assert!(lived || points < 16, "the points reach to the end");
        });
    }
}

#[test]
fn a_writer_that_dies_in_a_batch_shows_all_of_it_or_nothing() {
    // A few slots by way of the caches, a chain among them; and so many that they are streamed.
    let short = vec![vec![1], long(10), vec![2]];
    let streamed: Vec<Vec<u8>> = (0..17).map(|number| vec![number]).collect();
    for (capacity, payloads, bound) in [(4, short, Bound::All), (32, streamed, Bound::Preemptions(2))] {
        // After so many points, until there are no more.
        for points in 0.. {
            let (payloads, count) = (payloads.clone(), payloads.len());
            let lived = Arc::new(AtomicBool::new(false));
            let survived = lived.clone();
            let name = format!("ring, writer of a batch of {count} dies after {points} points");
            explore(&name, bound, move || {
                let (mut producer, mut consumer) = ring(capacity);
                let sent = payloads.clone();
                let writer = thread::spawn(move || {
                    let batch = sent.iter().map(|payload| &payload[..]);
                    dying_after(points, || producer.try_push_batch(1, batch).expect("a sound reader"))
                });
                let (mut message, mut taken) = (Message::default(), Vec::new());
                let mut take_all = || {
                    while consumer.try_pop(&mut message).expect("a sound ring, to the last") {
                        taken.push(message.payload().to_vec());
                    }
                };
                take_all();
                thread::yield_now();
                let pushed = writer.join().expect("death is no panic");
                take_all();
                survived.fetch_or(pushed.is_some(), Ordering::Relaxed);
                assert_eq!(pushed.unwrap_or(payloads.len()), payloads.len(), "there was room");
                assert_eq!(taken, payloads[..pushed.unwrap_or(0)], "all of it, or nothing");
            });
            if lived.load(Ordering::Relaxed) {
                assert!(points >= count, "{points}");
                break;
            }
        }
    }
}

#[test]
fn a_stream_that_is_shown_before_it_has_ended_has_holes() {
    for is_fenced in [true, false] {
        let whole = Arc::new(AtomicBool::new(true));
        let seen = whole.clone();
        explore(&format!("ring, a streamed batch, fenced {is_fenced}"), Bound::Preemptions(2), move || {
            let (mut producer, mut consumer) = ring(32);
            let payloads: Vec<Vec<u8>> = (0..17).map(|number| vec![number]).collect();
            let sent = payloads.clone();
            let writer = thread::spawn(move || {
                let mut push = || producer.try_push_batch(1, sent.iter().map(|payload| &payload[..]));
                if is_fenced { push() } else { without_fences(push) }.expect("a sound reader")
            });
            let pushed = writer.join().expect("no panic");
            assert_eq!(pushed, payloads.len(), "there was room");
            let (mut message, mut taken) = (Message::default(), Vec::new());
            while matches!(consumer.try_pop(&mut message), Ok(true)) {
                taken.push(message.payload().to_vec());
            }
            seen.fetch_and(taken == payloads, Ordering::Relaxed);
        });
        assert_eq!(whole.load(Ordering::Relaxed), is_fenced);
    }
}

#[test]
fn a_reader_that_dies_anywhere_acknowledges_nothing_that_it_did_not_take() {
    for points in 0..8 {
        explore(&format!("ring, reader dies after {points} points"), Bound::All, move || {
            let (mut producer, mut consumer) = ring(2);
            let reader = thread::spawn(move || {
                let taken = std::cell::Cell::new(0);
                dying_after(points, || {
                    let mut message = Message::default();
                    for _ in 0..4 {
                        if consumer.try_pop(&mut message).expect("a sound ring") {
                            taken.set(taken.get() + 1);
                            assert_eq!(message.payload(), [taken.get(), !taken.get()]);
                        }
                    }
                });
                taken.get()
            });
            let mut sent = 0u8;
            for i in 1..=4u8 {
                match producer.try_push(i, &[i, !i]) {
                    Ok(()) => sent += 1,
                    Err(error) => {
                        assert_eq!(error, PushError::Full, "a dead reader is no nonsense");
                        break;
                    }
                }
            }
            let taken = reader.join().expect("death is no panic");
            assert!(sent <= taken + 2, "{sent} sent through two slots, {taken} taken");
            assert!(producer.free().expect("a sound head") <= 2);
        });
    }
}
