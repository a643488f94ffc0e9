//! The arena: a block is used again only when nobody reads it any more, and who has no claim on it finds out. Descriptors
//! and releases travel through real rings, as they do between processes.

use ai_swarm_loom::base::crash::dying_after;
use ai_swarm_loom::base::sync::without_fences;
use ai_swarm_loom::shm::Words;
use ai_swarm_loom::shm::arena::{Arena, ArenaError, ArenaView, BadDescriptor, BadRelease, Descriptor};
use ai_swarm_loom::shm::ring::{Consumer, Message, Producer, RingMemory, SLOT_WORDS};
use ai_swarm_loom::{Bound, explore};
use loom::thread;

/// Room for one block and not for another.
const ONE_BLOCK: usize = 64 + 64 + 256;
/// Who reads.
const READER: u16 = 3;

fn ring() -> (Producer, Consumer) {
    let slots = Words::private(2 * SLOT_WORDS);
    let memory = RingMemory { slots, first_word: 0, capacity: 2, heads: Words::private(1), head_word: 0 };
    (Producer::new(memory.clone()), Consumer::new(memory))
}

/// A block with `number` in both its words, out with `readers`; `None` while all is out.
fn publish(arena: &mut Arena, number: u8, readers: &[u16]) -> Option<Descriptor> {
    let mut loan = match arena.loan(16) {
        Ok(loan) => loan,
        Err(ArenaError::Full { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    arena.write(&mut loan, 0, &[number; 16]);
    Some(arena.publish(loan, readers))
}

/// Takes a message, if there is one; its block must hold `number`. Answers with the release.
fn read(inbox: &mut Consumer, view: &mut ArenaView, answers: &mut Producer, number: u8) -> bool {
    let mut message = Message::default();
    if !inbox.try_pop(&mut message).expect("a sound ring") {
        return false;
    }
    let descriptor = Descriptor::from_bytes(message.payload().try_into().expect("a descriptor"));
    let block = view.open(&descriptor).expect("it is out with us");
    let mut bytes = [0; 16];
    block.copy_into(&mut bytes);
    assert_eq!(bytes, [number; 16], "somebody wrote to a block that we hold");
    assert!(block.is_current());
    let release = [descriptor.block.to_le_bytes(), descriptor.generation.to_le_bytes()].concat();
    answers.try_push(1, &release).expect("room");
    true
}

/// Believes what the reader released, once each. How many there were.
fn hear(arena: &mut Arena, answers: &mut Consumer) -> usize {
    let (mut message, mut heard) = (Message::default(), 0);
    while answers.try_pop(&mut message).expect("a sound ring") {
        let half =
            |at: usize| u32::from_le_bytes(message.payload()[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(arena.release(READER, half(0), half(4)), Ok(true));
        assert_eq!(arena.release(READER, half(0), half(4)), Err(BadRelease::NotOut { block: half(0) }));
        heard += 1;
    }
    heard
}

#[test]
fn a_block_is_not_used_again_while_its_reader_reads() {
    explore("arena, two blocks in the place of one", Bound::Preemptions(3), || {
        let mut arena = Arena::private(ONE_BLOCK);
        let mut view = arena.private_view().expect("private");
        let ((mut down, mut inbox), (mut up, mut answers)) = (ring(), ring());
        let first = publish(&mut arena, 1, &[READER]).expect("all is free");
        down.try_push(1, &first.to_bytes()).expect("room");
        let reader = thread::spawn(move || {
            for number in 1..=2 {
                while !read(&mut inbox, &mut view, &mut up, number) {
                    thread::yield_now();
                }
            }
        });
        let second = loop {
            if let Some(second) = publish(&mut arena, 2, &[READER]) {
                break second;
            }
            hear(&mut arena, &mut answers);
            thread::yield_now();
        };
        assert_eq!(second.offset, first.offset, "the very place");
        // What comes late names a use that is over.
        let late = arena.release(READER, first.block, first.generation);
        assert!(matches!(late, Err(BadRelease::Generation { .. })), "{late:?}");
        down.try_push(1, &second.to_bytes()).expect("room");
        reader.join().expect("the reader read both");
        assert_eq!(hear(&mut arena, &mut answers), 1);
        assert_eq!(arena.usage().in_use, 0);
    });
}

#[test]
fn what_a_dead_reader_held_comes_back_once() {
    for points in 0..12 {
        explore(&format!("arena, reader dies after {points} points"), Bound::Preemptions(3), move || {
            // Two blocks, so that it dies with one, with two, or between them.
            let mut arena = Arena::private(ONE_BLOCK + 320);
            let mut view = arena.private_view().expect("private");
            let ((mut down, mut inbox), (mut up, mut answers)) = (ring(), ring());
            let reader = thread::spawn(move || {
                dying_after(points, || {
                    let mut next = 1;
                    for _ in 0..4 {
                        next += u8::from(read(&mut inbox, &mut view, &mut up, next));
                    }
                });
            });
            for number in 1..=2 {
                let descriptor = publish(&mut arena, number, &[READER]).expect("room for both");
                down.try_push(1, &descriptor.to_bytes()).expect("room");
            }
            let mut back = hear(&mut arena, &mut answers);
            // The supervisor says that it is dead, or done: nothing of it runs any more.
            reader.join().expect("death is no panic");
            // What it sent before still counts; if it is not heard before the reclaim, it is refused after it.
            if points % 2 == 0 {
                back += hear(&mut arena, &mut answers);
                back += arena.reclaim_reader(READER);
            } else {
                back += arena.reclaim_reader(READER);
                let mut message = Message::default();
                while answers.try_pop(&mut message).expect("a sound ring") {
                    let half = |at: usize| {
                        u32::from_le_bytes(message.payload()[at..at + 4].try_into().expect("four"))
                    };
                    assert_eq!(
                        arena.release(READER, half(0), half(4)),
                        Err(BadRelease::NotOut { block: half(0) })
                    );
                }
            }
            assert_eq!(back, 2, "both, once each");
            assert_eq!(arena.usage().in_use, 0);
            assert_eq!(arena.reclaim_reader(READER), 0);
        });
    }
}

/// A reader without a claim (a lossy topic) against an owner that retires the block and uses its place again.
fn without_a_claim(uses: u8, looks: usize, fenced_owner: bool, fenced_reader: bool) {
    let mut arena = Arena::private(ONE_BLOCK);
    let mut view = arena.private_view().expect("private");
    let kept = publish(&mut arena, 1, &[]).expect("all is free");
    let owner = thread::spawn(move || {
        let mut reuse = || {
            let mut last = kept;
            for number in 2..2 + uses {
                assert!(arena.retire(&last));
                last = publish(&mut arena, number, &[]).expect("its place is free");
            }
        };
        if fenced_owner { reuse() } else { without_fences(reuse) }
    });
    for _ in 0..looks {
        let mut look = || match view.open(&kept) {
            Ok(block) => {
                let mut bytes = [0; 16];
                block.copy_into(&mut bytes);
                block.is_current().then_some(bytes)
            }
            Err(BadDescriptor::Stale) => None,
            // The control word was read when the block was out, the others when they were being written anew:
            // they say the same for a block of the same size and owner, so this must not be.
            Err(error) => panic!("{error}"),
        };
        let seen = if fenced_reader { look() } else { without_fences(look) };
        if let Some(bytes) = seen {
            assert_eq!(bytes, [1; 16], "torn");
        }
    }
    owner.join().expect("the owner waits for nobody");
    assert!(matches!(view.open(&kept), Err(BadDescriptor::Stale)), "it is over");
}

#[test]
fn who_has_no_claim_finds_out_that_a_block_was_used_again() {
    explore("arena, a kept block is used again, one look", Bound::Preemptions(4), || {
        without_a_claim(1, 1, true, true);
    });
    explore("arena, a kept block is used twice again, two looks", Bound::Preemptions(2), || {
        without_a_claim(2, 2, true, true);
    });
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_owners_fence_a_copy_tears() {
    explore("arena, owner without fence", Bound::Preemptions(4), || without_a_claim(1, 1, false, true));
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_readers_fence_a_copy_tears() {
    explore("arena, reader without fence", Bound::Preemptions(4), || without_a_claim(1, 1, true, false));
}
