//! The ring that forgets: readers get whole messages, in order, and know the gaps, however often they are overtaken.

use ai_swarm_loom::base::crash::dying_after;
use ai_swarm_loom::base::sync::without_fences;
use ai_swarm_loom::shm::Words;
use ai_swarm_loom::shm::lossy::{LossyConsumer, LossyMemory, LossyProducer};
use ai_swarm_loom::shm::ring::Message;
use ai_swarm_loom::{Bound, explore};
use loom::thread;

fn ring(capacity: u64) -> (LossyProducer, LossyConsumer, LossyMemory) {
    let slots = Words::private(LossyMemory::words(capacity));
    let memory = LossyMemory { slots, first_word: 0, capacity };
    (LossyProducer::new(memory.clone()), LossyConsumer::new(memory.clone()), memory)
}

/// Two words that say the same.
fn payload(number: u8) -> [u8; 16] {
    [number; 16]
}

/// Pops and checks: whole, and after `last`. The number found.
fn pop(consumer: &mut LossyConsumer, message: &mut Message, last: u8) -> Option<u8> {
    consumer.try_pop(message).expect("a sound ring").then(|| {
        let number = message.kind;
        assert!(message.payload().iter().all(|&byte| byte == number), "torn");
        assert!(number > last, "{number} after {last}");
        number
    })
}

/// So many messages through two slots against so many looks.
fn overtaken(messages: u8, looks: usize, fenced_writer: bool, fenced_reader: bool) {
    let (mut producer, mut consumer, _) = ring(2);
    let writer = thread::spawn(move || {
        let mut write = || {
            for number in 1..=messages {
                producer.push(number, 0, None, &payload(number)).expect("short");
            }
        };
        if fenced_writer { write() } else { without_fences(write) }
    });
    let (mut message, mut last, mut got) = (Message::default(), 0, 0);
    for _ in 0..looks {
        let mut look = || pop(&mut consumer, &mut message, last);
        if let Some(number) = if fenced_reader { look() } else { without_fences(look) } {
            (last, got) = (number, got + 1);
        }
    }
    writer.join().expect("the writer waits for nobody");
    // Nobody disturbs the reader any more: it finds the newest, and its books balance.
    while let Some(number) = pop(&mut consumer, &mut message, last) {
        (last, got) = (number, got + 1);
    }
    assert_eq!(last, messages, "the newest stays");
    assert_eq!(consumer.missed() + got, u64::from(messages));
}

#[test]
fn no_message_is_ever_torn() {
    explore("lossy ring, three messages through two slots, one look", Bound::All, || {
        overtaken(3, 1, true, true);
    });
}

#[test]
fn a_reader_that_is_overtaken_goes_on_in_order() {
    explore("lossy ring, four messages through two slots, two looks", Bound::Preemptions(3), || {
        overtaken(4, 2, true, true);
    });
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_writers_fence_messages_tear() {
    explore("lossy ring, writer without fence", Bound::All, || overtaken(3, 1, false, true));
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_readers_fence_messages_tear() {
    explore("lossy ring, reader without fence", Bound::All, || overtaken(3, 1, true, false));
}

#[test]
fn chains_are_overtaken_as_a_whole() {
    explore("lossy ring, chains of two through eight slots", Bound::Preemptions(2), || {
        let (mut producer, mut consumer, _) = ring(8);
        let chain = |number: u8| [number; 57];
        // So far behind that the next chain overtakes it.
        for number in 1..=4 {
            producer.push(number, 0, None, &chain(number)).expect("short");
        }
        let writer = thread::spawn(move || {
            producer.push(5, 0, None, &chain(5)).expect("short");
        });
        let (mut message, mut last, mut got) = (Message::default(), 0, 0);
        while let Some(number) = pop(&mut consumer, &mut message, last) {
            assert_eq!(message.payload().len(), 57);
            (last, got) = (number, got + 1);
            if last >= 2 {
                break;
            }
        }
        writer.join().expect("the writer waits for nobody");
        while let Some(number) = pop(&mut consumer, &mut message, last) {
            (last, got) = (number, got + 1);
        }
        assert_eq!(last, 5);
        assert_eq!(consumer.missed() + got * 2, 10);
    });
}

#[test]
fn a_reader_that_comes_late_begins_at_a_message() {
    explore("lossy ring, a reader comes while messages do", Bound::Preemptions(3), || {
        let (mut producer, _, memory) = ring(2);
        let writer = thread::spawn(move || {
            for number in 1..=3 {
                producer.push(number, 0, None, &payload(number)).expect("short");
            }
        });
        let mut late = LossyConsumer::new(memory);
        let (mut message, mut last) = (Message::default(), 0);
        if let Some(number) = pop(&mut late, &mut message, last) {
            last = number;
        }
        writer.join().expect("the writer waits for nobody");
        while let Some(number) = pop(&mut late, &mut message, last) {
            last = number;
        }
        assert!(!late.is_ready());
    });
}

#[test]
fn a_writer_that_dies_anywhere_tears_nothing_and_hangs_nobody() {
    // Per message: busy, two payload words, control, tail. The third message overwrites the first.
    for points in 5..16 {
        explore(
            &format!("lossy ring, writer dies after {points} points"),
            Bound::Preemptions(2),
            move || {
                let (mut producer, mut consumer, _) = ring(2);
                let writer = thread::spawn(move || {
                    dying_after(points, || {
                        for number in 1..=3 {
                            producer.push(number, 0, None, &payload(number)).expect("short");
                        }
                    });
                });
                let (mut message, mut last) = (Message::default(), 0);
                if let Some(number) = pop(&mut consumer, &mut message, last) {
                    last = number;
                }
                writer.join().expect("death is no panic");
                while let Some(number) = pop(&mut consumer, &mut message, last) {
                    last = number;
                }
                assert!(!consumer.is_ready(), "nothing is left that could keep a reader awake");
                // A message is out with its control word, the fourth of its five steps.
                let whole = (points + 1) / 5;
                assert_eq!(usize::from(last), whole, "the newest whole message is still there");
            },
        );
    }
}
