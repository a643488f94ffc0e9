//! The cell of the board: read whole or not at all, also when its writer died half-way.

use ai_swarm_loom::base::crash::dying_after;
use ai_swarm_loom::base::sync::without_fences;
use ai_swarm_loom::shm::{Words, seqlock};
use ai_swarm_loom::{Bound, explore};
use loom::thread;

/// Two writes against so many looks; what is seen has equal words and never goes back.
fn two_writes(looks: usize, fenced_writer: bool, fenced_reader: bool) {
    let words = Words::private(3);
    let theirs = words.clone();
    let writer = thread::spawn(move || {
        let write = || (1..=2).for_each(|value| seqlock::write(&theirs, 0, [value, value]));
        if fenced_writer { write() } else { without_fences(write) }
    });
    let mut newest = 0;
    for _ in 0..looks {
        let look = || seqlock::look::<2>(&words, 0);
        if let Some([left, right]) = if fenced_reader { look() } else { without_fences(look) } {
            assert_eq!(left, right, "torn");
            assert!(left >= newest, "an older value after a newer one");
            newest = left;
        }
    }
    writer.join().expect("the writer waits for nobody");
    assert_eq!(seqlock::look(&words, 0), Some([2, 2]));
}

#[test]
fn no_cell_is_ever_torn() {
    explore("seqlock, two writes and a look", Bound::All, || two_writes(1, true, true));
    explore("seqlock, two writes and two looks", Bound::Preemptions(3), || two_writes(2, true, true));
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_writers_fence_it_tears() {
    explore("seqlock, writer without fence", Bound::All, || two_writes(1, false, true));
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_readers_fence_it_tears() {
    explore("seqlock, reader without fence", Bound::All, || two_writes(1, true, false));
}

#[test]
fn a_dead_writers_cell_is_closed_until_its_successor_writes() {
    // It dies before a value, between two, before the version, or not at all.
    for points in 0..4 {
        explore(&format!("seqlock, writer dies after {points} points"), Bound::All, move || {
            let words = Words::private(3);
            seqlock::write(&words, 0, [1, 1]);
            let theirs = words.clone();
            let writer = thread::spawn(move || dying_after(points, || seqlock::write(&theirs, 0, [2, 2])));
            if let Some([left, right]) = seqlock::look::<2>(&words, 0) {
                assert_eq!(left, right, "torn");
            }
            let whole = writer.join().expect("death is no panic").is_some();
            assert_eq!(whole, points == 3);
            assert_eq!(seqlock::look(&words, 0), whole.then_some([2, 2]));
            seqlock::write(&words, 0, [3, 3]);
            assert_eq!(seqlock::look(&words, 0), Some([3, 3]));
        });
    }
}
