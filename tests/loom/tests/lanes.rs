//! Three lanes of one channel: each in order, control first among what is there.

use ai_swarm_loom::messaging::lanes::{ChannelMemory, Lane, LaneReceiver, LaneSender};
use ai_swarm_loom::messaging::meters::Meter;
use ai_swarm_loom::shm::ring::{Message, PushError, SLOT_PAYLOAD};
use ai_swarm_loom::{Bound, explore};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use std::sync::Arc;

/// The smallest channel: lanes of two, four and two slots.
fn channel() -> (LaneSender, LaneReceiver) {
    let memory = ChannelMemory::private(8 * (SLOT_PAYLOAD + 8));
    (LaneSender::new(&memory, Meter::private_sender()), LaneReceiver::new(&memory, Meter::private_receiver()))
}

#[test]
fn lanes_keep_their_order_and_lose_nothing() {
    explore("lanes, two in each of two", Bound::Preemptions(2), || {
        let (mut sender, mut receiver) = channel();
        let writer = thread::spawn(move || {
            for (lane, kind) in
                [(Lane::Normal, 10), (Lane::Control, 1), (Lane::Normal, 11), (Lane::Control, 2)]
            {
                sender.try_push(lane, kind, &[kind]).expect("room");
            }
        });
        let (mut message, mut control, mut normal) = (Message::default(), Vec::new(), Vec::new());
        while control.len() + normal.len() < 4 {
            if receiver.try_pop(&mut message).expect("a sound channel").is_none() {
                thread::yield_now();
                continue;
            }
            assert_eq!(message.payload(), [message.kind]);
            if message.kind < 10 { control.push(message.kind) } else { normal.push(message.kind) }
        }
        assert_eq!((control, normal), (vec![1, 2], vec![10, 11]));
        assert!(!receiver.is_ready());
        writer.join().expect("there was room");
    });
}

#[test]
fn a_control_message_goes_before_what_was_sent_earlier() {
    explore("lanes, control first", Bound::All, || {
        let (mut sender, mut receiver) = channel();
        let both = Arc::new(AtomicBool::new(false));
        let sent = both.clone();
        let writer = thread::spawn(move || {
            sender.try_push(Lane::Normal, 10, &[]).expect("room");
            sender.try_push(Lane::Control, 1, &[]).expect("room");
            sent.store(true, Ordering::Release);
        });
        let (mut message, mut kinds) = (Message::default(), Vec::new());
        let both_were_there = both.load(Ordering::Acquire);
        while kinds.len() < 2 {
            if receiver.try_pop(&mut message).expect("a sound channel").is_some() {
                kinds.push(message.kind);
            } else {
                thread::yield_now();
            }
        }
        assert!(kinds == [1, 10] || kinds == [10, 1] && !both_were_there);
        writer.join().expect("there was room");
    });
}

#[test]
fn a_full_lane_is_free_again_once_its_reader_waits() {
    explore("lanes, four control messages through two slots", Bound::Preemptions(2), || {
        let (mut sender, mut receiver) = channel();
        let writer = thread::spawn(move || {
            for kind in 1..=4 {
                while let Err(error) = sender.try_push(Lane::Control, kind, &[kind]) {
                    assert_eq!(error, PushError::Full);
                    thread::yield_now();
                }
            }
        });
        let mut message = Message::default();
        for expected in 1..=4 {
            while receiver.try_pop(&mut message).expect("a sound channel").is_none() {
                thread::yield_now();
            }
            assert_eq!(message.payload(), [expected]);
        }
        writer.join().expect("the reader made room");
    });
}
