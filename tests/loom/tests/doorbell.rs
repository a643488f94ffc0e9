//! The doorbell: a receiver that goes to sleep is woken by every message that it did not see. A wake-up that is lost is
//! a deadlock here, since no timeout ever comes.

use ai_swarm_loom::base::sync::without_fences;
use ai_swarm_loom::shm::Words;
use ai_swarm_loom::shm::doorbell::{AgentBell, AgentSleeper, HubBell, HubSleeper};
use ai_swarm_loom::shm::ring::{Consumer, Message, Producer, RingMemory, SLOT_WORDS};
use ai_swarm_loom::{Bound, explore};
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;
use std::time::Duration;

/// Asleep flag in memory of the receiver, bell in memory of the sender.
fn agent() -> (AgentBell, AgentSleeper) {
    let (theirs, ours) = (Words::private(1), Words::private(2));
    (AgentBell::new((theirs.clone(), 0), (ours.clone(), 0)), AgentSleeper::new((theirs, 0), (ours, 0)))
}

/// One message and one sleep; who leaves its fences out is the question.
fn one_message(fenced_sender: bool, fenced_receiver: bool) {
    let (bell, sleeper) = agent();
    let news = Arc::new(AtomicU64::new(0));
    let published = news.clone();
    let sender = thread::spawn(move || {
        published.store(1, Ordering::Release);
        if fenced_sender { bell.ring() } else { without_fences(|| bell.ring()) }
    });
    while news.load(Ordering::Acquire) == 0 {
        let sleep = || sleeper.sleep(Duration::MAX, || news.load(Ordering::Acquire) != 0);
        let _ = if fenced_receiver { sleep() } else { without_fences(sleep) };
    }
    sender.join().expect("the sender waits for nobody");
}

#[test]
fn no_wake_up_is_lost() {
    explore("doorbell, one message", Bound::All, || one_message(true, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_senders_fence_a_wake_up_is_lost() {
    explore("doorbell, sender without fence", Bound::All, || one_message(false, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_receivers_fence_a_wake_up_is_lost() {
    explore("doorbell, receiver without fence", Bound::All, || one_message(true, false));
}

#[test]
fn every_one_of_several_messages_is_heard() {
    explore("doorbell, two messages with a ring each", Bound::Preemptions(4), || {
        let (bell, sleeper) = agent();
        let news = Arc::new(AtomicU64::new(0));
        let published = news.clone();
        let sender = thread::spawn(move || {
            for count in 1..=2 {
                published.store(count, Ordering::Release);
                bell.ring();
            }
        });
        for wanted in 1..=2 {
            while news.load(Ordering::Acquire) < wanted {
                sleeper.sleep(Duration::MAX, || news.load(Ordering::Acquire) >= wanted);
            }
        }
        sender.join().expect("the sender waits for nobody");
    });
}

#[test]
fn a_message_in_a_ring_wakes_its_reader() {
    explore("doorbell, messages through a ring of two", Bound::Preemptions(3), || {
        let slots = Words::private(2 * SLOT_WORDS);
        let memory = RingMemory { slots, first_word: 0, capacity: 2, heads: Words::private(1), head_word: 0 };
        let (mut producer, mut consumer) = (Producer::new(memory.clone()), Consumer::new(memory));
        let (bell, sleeper) = agent();
        let sender = thread::spawn(move || {
            // One turn: several messages, one ring.
            producer.try_push(1, &[1]).expect("room");
            producer.try_push(2, &[2]).expect("room");
            bell.ring();
        });
        let mut message = Message::default();
        for expected in [1, 2] {
            while !consumer.try_pop(&mut message).expect("a sound ring") {
                sleeper.sleep(Duration::MAX, || consumer.is_ready());
            }
            assert_eq!(message.kind, expected);
        }
        sender.join().expect("the sender waits for nobody");
    });
}

#[test]
fn the_supervisor_never_blocks_on_a_silent_bell() {
    // The bell is a real eventfd: it is written in one step, and remembers.
    explore("doorbell, the supervisor's", Bound::All, || {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd");
        let flag = Words::private(1);
        let bell = HubBell::new((flag.clone(), 0), event.try_clone().expect("a second descriptor"));
        let sleeper = HubSleeper::new((flag, 0), event);
        let news = Arc::new(AtomicU64::new(0));
        let published = news.clone();
        let sender = thread::spawn(move || {
            published.store(1, Ordering::Release);
            bell.ring();
        });
        sleeper.announce();
        let would_block = news.load(Ordering::Acquire) == 0;
        sender.join().expect("the sender waits for nobody");
        if would_block {
            let mut fds = [rustix::event::PollFd::new(&sleeper, rustix::event::PollFlags::IN)];
            let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&now)), Ok(1), "nobody rang");
        }
        sleeper.awake(would_block);
    });
}
