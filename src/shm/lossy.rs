//! A ring that forgets the oldest: one writer that never waits, any number of readers that nobody waits for.
//! For states and measurements, where the next value is worth more than the last.
//!
//! ```text
//!  slots (see slot.rs), position p in slot p % capacity │ line with the tail
//!  writer, per slot: 1 control := busy  2 release fence  3 payload  4 control := whole    then 5 tail
//!  reader, per slot: 1 control, whole?  2 payload        3 acquire fence                  4 control, the same still?
//! ```
//! Readers keep their position to themselves and publish nothing, so a reader cannot disturb anybody, and their
//! mapping is read-only. One that is overtaken jumps forward, to a message that will stay for a while, and counts
//! the slots between in [`missed`](LossyConsumer::missed).
//!
//! Invariants
//! 1. A reader hands out a message only if every slot of it carried the same control word before and after it was
//!    copied. If the copy has a word of a later lap in it, the fences make the later look see that lap's busy mark.
//! 2. A chain is written last slot first, each slot of it in the four steps, so it becomes visible at once.
//! 3. The tail is the position after a whole message; it is written after the control words of that message and
//!    before those of the next. So who sees a slot of a later lap sees a tail not older than that message's begin.
//! 4. No chain is longer than a quarter of the ring. So what lies up to three quarters behind the tail is whole,
//!    or its writer has gone on, whether or not the writer died in a message.
//! 5. Every call does bounded work whatever the writer wrote.
//!
//! Sync points: A, message visible (control: store release / load acquire). B, message overtaken (busy mark, release
//! fence, payload / payload, acquire fence, control). C, tail (store release / load acquire).
//!
//! Why a tail in shared memory, which the lossless ring does without: a reader that comes late would have to look at
//! every slot to find the present end, and one that was overtaken cannot tell from 32 bits of sequence how far.
//! No reader polls it, so its line stays with the writer: a store per message. It lies, if it does, for nobody but
//! its own readers, who check it against the slots.
//!
//! Points where a test lets a process die: `lossy.busy` after a busy mark, `lossy.write` after a payload word,
//! `lossy.chain` between the slots of a chain, `lossy.publish` before the control word that shows a message,
//! `lossy.tail` before the tail.

use super::memory::Words;
use super::ring::Corrupt;
use super::slot::{self, CHAIN_MAX, Control, Message, Outgoing, SLOT_PAYLOAD, SLOT_WORDS};
use crate::base::crash;
use crate::base::sync::{AtomicU64, Ordering, fence};
use std::sync::Arc;

/// Length that no slot has: it is being written.
const BUSY: u8 = 255;
/// How often a call that is overtaken starts again.
const ATTEMPTS: usize = 4;

/// A message that such a ring never takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes; at most {max} fit")]
pub struct TooLong {
    /// Bytes of the message.
    pub bytes: usize,
    /// Bytes that fit, beside the send time if there is one.
    pub max: usize,
}

/// A part of a mapping that holds one such ring.
#[derive(Clone, Debug)]
pub struct LossyMemory {
    /// Mapping with slots and tail, writable for the producer.
    pub slots: Arc<Words>,
    /// First word of the ring in it.
    pub first_word: usize,
    /// Slots, a power of two.
    pub capacity: u64,
}

impl LossyMemory {
    /// A ring in the whole of a mapping, as large as fits into it.
    pub fn whole(slots: Arc<Words>) -> Self {
        let fits = (slots.len() / SLOT_WORDS).saturating_sub(1).max(1);
        Self { slots, first_word: 0, capacity: 1 << fits.ilog2() }
    }

    /// Words that a ring of `capacity` slots takes: the slots and the line of the tail.
    pub const fn words(capacity: u64) -> usize {
        (capacity as usize + 1) * SLOT_WORDS
    }

    fn check(&self) {
        assert!(self.capacity.is_power_of_two(), "capacity {}", self.capacity);
        assert!((2..=1 << 30).contains(&self.capacity), "capacity {}", self.capacity);
        assert!(self.first_word + Self::words(self.capacity) <= self.slots.len(), "ring outside the mapping");
    }

    #[inline]
    fn line(&self, position: u64) -> &[AtomicU64; SLOT_WORDS] {
        self.slots.line(self.first_word + (position & (self.capacity - 1)) as usize * SLOT_WORDS)
    }

    /// Position after the last whole message, as the writer says.
    pub fn end(&self) -> u64 {
        self.tail().load(Ordering::Acquire) // C
    }

    /// Where the message begins that ends before position `end`: its slots say how many follow them. `None` when
    /// there is none, or the writer has overwritten it.
    pub fn last_before(&self, end: u64) -> Option<u64> {
        let is_part = |back: &u64| {
            let found = Control(self.line(end - back)[0].load(Ordering::Acquire));
            found.sequence() == slot::sequence(end - back)
                && found.length() != BUSY
                && u64::from(found.following()) == back - 1
        };
        (1..=self.longest().min(end)).take_while(is_part).last().map(|back| end - back)
    }

    #[inline]
    fn tail(&self) -> &AtomicU64 {
        self.slots.word(self.first_word + self.capacity as usize * SLOT_WORDS)
    }

    /// Slots of the longest chain (invariant 4).
    fn longest(&self) -> u64 {
        (self.capacity / 4).clamp(1, CHAIN_MAX as u64)
    }

    /// How far behind the tail an overtaken reader goes on. The slots further back may be in the works: those of the
    /// next message, and what a writer at full speed gets done before the reader is there.
    fn kept(&self) -> u64 {
        if self.longest() == 1 { self.capacity - 1 } else { self.capacity - self.capacity / 4 - 1 }
    }
}

/// The writing end.
#[derive(Debug)]
pub struct LossyProducer {
    memory: LossyMemory,
    /// Next position to write.
    tail: u64,
}

impl LossyProducer {
    /// The writing end of fresh memory.
    pub fn new(memory: LossyMemory) -> Self {
        memory.check();
        Self { memory, tail: 0 }
    }

    /// Writes one message over the oldest and says at which position it begins. Never waits. Flags and send time as in
    /// [`Producer::try_push_with`](super::ring::Producer::try_push_with).
    #[inline]
    pub fn push(
        &mut self,
        kind: u8,
        flags: u8,
        stamp_ns: Option<u64>,
        payload: &[u8],
    ) -> Result<u64, TooLong> {
        let message = Outgoing::new(kind, flags, stamp_ns, payload);
        let (slots, longest) = (message.slots(), self.memory.longest());
        if slots > longest {
            return Err(TooLong { bytes: payload.len(), max: message.fitting(longest) });
        }
        // Last slot first (invariant 2).
        for part in (0..slots).rev() {
            self.write_slot(&message, part, slots);
        }
        let first = self.tail;
        self.tail += slots;
        crash::point("lossy.tail");
        self.memory.tail().store(self.tail, Ordering::Release); // C
        Ok(first)
    }

    /// Position of the next message.
    pub fn position(&self) -> u64 {
        self.tail
    }

    #[inline]
    fn write_slot(&self, message: &Outgoing<'_>, part: u64, slots: u64) {
        let (position, following) = (self.tail + part, (slots - 1 - part) as u8);
        let line = self.memory.line(position);
        // Release, so that who sees this lap also sees a tail that goes with it (invariant 3).
        line[0].store(Control::new(position, 0, BUSY, 0, 0).0, Ordering::Release);
        crash::point("lossy.busy");
        fence(Ordering::Release); // B
        let mut buffer = [0; SLOT_PAYLOAD];
        let piece = message.piece(part, &mut buffer);
        slot::store_payload(line, piece, || crash::point("lossy.write"));
        crash::point(if part == 0 { "lossy.publish" } else { "lossy.chain" });
        let control = Control::new(position, message.kind, piece.len() as u8, following, message.flags);
        line[0].store(control.0, Ordering::Release); // A
    }
}

/// What a slot holds, seen from a reader that wants one position of it.
enum Look {
    /// That position, whole.
    Whole(Control),
    /// Not yet that position; perhaps it is being written, perhaps by somebody dead.
    NotYet,
    /// A later lap.
    Overtaken,
}

/// A reading end; there may be any number.
#[derive(Debug)]
pub struct LossyConsumer {
    memory: LossyMemory,
    /// Next position to read.
    position: u64,
    missed: u64,
}

impl LossyConsumer {
    /// A reader of what comes from now on.
    pub fn new(memory: LossyMemory) -> Self {
        memory.check();
        let position = memory.tail().load(Ordering::Acquire); // C
        Self { memory, position, missed: 0 }
    }

    /// A reader of what comes from this position on, which was the tail when somebody else looked at it. What is
    /// gone by now counts as missed.
    pub fn starting_at(memory: LossyMemory, position: u64) -> Self {
        memory.check();
        Self { memory, position, missed: 0 }
    }

    /// Copies the next message into `message`. False when there is none, or when the writer was faster several times
    /// in a row; [`is_ready`](Self::is_ready) tells the difference. After an error or false `message` holds
    /// nothing of use.
    ///
    /// The work is bounded by a few chains whatever the writer wrote.
    #[inline]
    pub fn try_pop(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        for _ in 0..ATTEMPTS {
            match self.look(self.position)? {
                Look::NotYet => return Ok(false),
                Look::Whole(first) if self.copy(first, message)? => {
                    self.position = self.position.wrapping_add(u64::from(first.following()) + 1);
                    return Ok(true);
                }
                Look::Whole(_) | Look::Overtaken => self.jump()?,
            }
        }
        Ok(false)
    }

    /// Slots that were overwritten before this reader came to them. A message of up to 56 bytes, its send time
    /// included, is one slot.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Slots between this reader and the writer, as far as the writer says.
    pub fn lag(&self) -> u64 {
        self.memory.tail().load(Ordering::Relaxed).saturating_sub(self.position)
    }

    /// Whether a message, a gap or nonsense waits to be found.
    #[inline]
    pub fn is_ready(&self) -> bool {
        !matches!(self.look(self.position), Ok(Look::NotYet))
    }

    #[inline]
    fn look(&self, position: u64) -> Result<Look, Corrupt> {
        let found = Control(self.memory.line(position)[0].load(Ordering::Acquire)); // A
        let ahead = found.sequence().wrapping_sub(slot::sequence(position));
        let capacity = self.memory.capacity as u32;
        if ahead == 0 {
            Ok(if found.length() == BUSY { Look::NotYet } else { Look::Whole(found) })
        } else if ahead == 0u32.wrapping_sub(capacity) || found.0 == 0 && position < self.memory.capacity {
            Ok(Look::NotYet)
        } else if ahead & (capacity - 1) == 0 {
            Ok(Look::Overtaken)
        } else {
            Err(Corrupt::sequence(position, found))
        }
    }

    /// Copies the message that begins with `first`. False when it was overtaken meanwhile.
    fn copy(&self, first: Control, message: &mut Message) -> Result<bool, Corrupt> {
        let following = first.following();
        if u64::from(following) >= self.memory.longest() {
            return Err(Corrupt::chain(self.position, first));
        }
        message.begin(first);
        let mut last = first;
        for part in 0..=following {
            let position = self.position.wrapping_add(u64::from(part));
            if part > 0 {
                last = match self.look(position)? {
                    Look::Whole(found) => found,
                    Look::Overtaken => return Ok(false),
                    // Written before the first slot was.
                    Look::NotYet => return Err(Corrupt::chain(position, first)),
                };
            }
            let length = last.length();
            if last != first.part(position, following - part, last) || usize::from(length) > SLOT_PAYLOAD {
                return Err(Corrupt::chain(position, last));
            }
            message.append(self.memory.line(position), length);
        }
        fence(Ordering::Acquire); // B
        for part in 0..=following {
            let position = self.position.wrapping_add(u64::from(part));
            // Acquire: if this is a later lap, the jump needs a tail that goes with it (invariant 3).
            let still = Control(self.memory.line(position)[0].load(Ordering::Acquire));
            if still != first.part(position, following - part, last) {
                return Ok(false);
            }
        }
        if !message.finish() {
            return Err(Corrupt::chain(self.position, first));
        }
        Ok(true)
    }

    /// Goes on behind the slots that are about to be overwritten, at the begin of a message. Stays where it is when
    /// the writer overtakes even that.
    #[cold]
    fn jump(&mut self) -> Result<(), Corrupt> {
        let tail = self.memory.tail().load(Ordering::Acquire); // C
        let nonsense = Corrupt::Tail { found: tail, position: self.position };
        let target = tail.saturating_sub(self.memory.kept());
        if target <= self.position {
            return Err(nonsense);
        }
        let mut start = target;
        if self.memory.longest() > 1 {
            // The slot before knows where its chain ends, and there the next message begins.
            match self.look(target - 1)? {
                Look::Whole(before) => start = target.saturating_add(u64::from(before.following())),
                Look::Overtaken => return Ok(()),
                Look::NotYet => return Err(nonsense),
            }
            if start > tail {
                return Err(nonsense);
            }
        }
        self.missed = self.missed.saturating_add(start - self.position);
        self.position = start;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;
    use crate::shm::slot::{FLAG_BLOCK, FLAG_STAMPED, MESSAGE_MAX};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;

    fn ring(capacity: u64) -> (LossyProducer, LossyConsumer, LossyMemory) {
        let slots = Words::private(LossyMemory::words(capacity));
        let memory = LossyMemory { slots, first_word: 0, capacity };
        (LossyProducer::new(memory.clone()), LossyConsumer::new(memory.clone()), memory)
    }

    fn pop(consumer: &mut LossyConsumer) -> Option<Vec<u8>> {
        let mut message = Message::default();
        consumer.try_pop(&mut message).expect("a sound ring").then(|| message.payload().to_vec())
    }

    #[test]
    fn who_keeps_up_gets_everything() {
        let (mut producer, mut consumer, _) = ring(512);
        assert!(!consumer.is_ready());
        let (mut message, mut position) = (Message::default(), 0);
        for length in (0..200).chain([MESSAGE_MAX - 8]) {
            let payload: Vec<u8> = (0..length).map(|i| (i * 3 + length) as u8).collect();
            let stamp = (length % 2 == 0).then_some(length as u64);
            assert_eq!(producer.push(7, FLAG_BLOCK, stamp, &payload), Ok(position));
            position = producer.position();
            assert!(consumer.is_ready() && consumer.lag() > 0);
            assert_eq!(consumer.try_pop(&mut message), Ok(true));
            let flags = FLAG_BLOCK | if stamp.is_some() { FLAG_STAMPED } else { 0 };
            assert_eq!((message.kind, message.flags, message.stamp_ns), (7, flags, stamp));
            assert_eq!(message.payload(), payload);
            assert!(!consumer.is_ready());
        }
        assert_eq!((consumer.missed(), consumer.lag()), (0, 0));
    }

    #[test]
    fn a_new_reader_begins_at_the_present_end() {
        for before in [0, 1, 7, 8, 9, 100] {
            let (mut producer, _, memory) = ring(8);
            (0..before).for_each(|i| _ = producer.push(1, 0, None, &[i]).expect("short"));
            let mut late = LossyConsumer::new(memory);
            assert_eq!(pop(&mut late), None);
            producer.push(1, 0, None, b"now").expect("short");
            assert_eq!(pop(&mut late), Some(b"now".to_vec()));
            assert_eq!(late.missed(), 0, "what was before it came is not missed");
        }
    }

    #[test]
    fn the_last_message_is_found_from_its_end() {
        let (mut producer, _, memory) = ring(16);
        assert_eq!(memory.last_before(memory.end()), None, "there is none");
        for length in [0, 56, 57, 200, 1, 1, 150].repeat(5) {
            let first = producer.push(1, 0, None, &vec![7; length]).expect("short");
            assert_eq!(memory.last_before(memory.end()), Some(first), "{length} bytes");
        }
        let end = memory.end();
        (0..20).for_each(|_| _ = producer.push(1, 0, None, &[]).expect("short"));
        assert_eq!(memory.last_before(end), None, "it was overwritten");
    }

    #[test]
    fn who_falls_behind_goes_on_with_the_newest_and_knows_the_gap() {
        for (capacity, kept) in [(2, 1), (4, 3), (8, 5), (16, 11), (64, 47)] {
            let (mut producer, mut consumer, _) = ring(capacity);
            (0..200u8).for_each(|i| _ = producer.push(1, 0, None, &[i]).expect("short"));
            assert!(consumer.is_ready());
            assert_eq!(consumer.lag(), 200);
            for expected in 200 - kept..200 {
                assert_eq!(pop(&mut consumer), Some(vec![expected]), "capacity {capacity}");
            }
            assert_eq!(pop(&mut consumer), None);
            assert_eq!(consumer.missed(), 200 - u64::from(kept));
        }
    }

    #[test]
    fn what_never_fits_is_refused() {
        let (mut producer, _, _) = ring(16);
        assert_eq!(producer.push(1, 0, None, &[0; 225]), Err(TooLong { bytes: 225, max: 224 }));
        assert_eq!(producer.push(1, 0, Some(1), &[0; 217]), Err(TooLong { bytes: 217, max: 216 }));
        assert_eq!(producer.push(1, 0, None, &[0; 224]), Ok(0));
        let (mut producer, _, _) = ring(1024);
        assert!(producer.push(1, 0, None, &[0; MESSAGE_MAX + 1]).is_err());
        let (mut producer, _, _) = ring(2);
        assert_eq!(producer.push(1, 0, None, &[0; 57]), Err(TooLong { bytes: 57, max: 56 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 300 }, ..ProptestConfig::default() })]

        /// What readers get is whole and a part of what was sent, in order; with the gaps it is all of it.
        #[test]
        fn what_is_received_is_a_subsequence_and_gaps_add_up(
            log in 1u32..8,
            steps in proptest::collection::vec((0usize..300, any::<Option<u64>>(), 0usize..4), 0..400),
        ) {
            let (mut producer, mut consumer, _) = ring(1 << log);
            let mut sent = BTreeMap::new();
            let (mut message, mut received) = (Message::default(), 0);
            for (number, (length, stamp, pops)) in steps.iter().enumerate() {
                let mut payload = vec![number as u8; *length];
                payload.extend((number as u64).to_le_bytes());
                if let Ok(first) = producer.push(number as u8, 0, *stamp, &payload) {
                    sent.insert(first, (number as u8, *stamp, payload));
                }
                // Mostly behind, so that it is overtaken; at the end everything that is left.
                let last = number + 1 == steps.len();
                for _ in 0..if last { 1000 } else { pops.saturating_sub(2) } {
                    if !consumer.try_pop(&mut message).expect("a sound ring") {
                        break;
                    }
                    let slots = message.payload().len() + 8 * usize::from(message.stamp_ns.is_some());
                    let slots = slots.div_ceil(SLOT_PAYLOAD) as u64;
                    let found = (message.kind, message.stamp_ns, message.payload().to_vec());
                    prop_assert_eq!(sent.get(&(consumer.position - slots)), Some(&found));
                    received += slots;
                }
            }
            prop_assert!(!consumer.is_ready());
            prop_assert_eq!(received + consumer.missed(), producer.position());
        }
    }

    /// Number `i` as a message: its length follows from it, and every byte.
    fn numbered(i: u64) -> Vec<u8> {
        let mut payload = i.to_le_bytes().to_vec();
        payload.extend((0..i * 13 % 170).map(|at| (i ^ at) as u8));
        payload
    }

    #[test]
    fn readers_at_any_pace_see_whole_messages_in_order() {
        let messages = if cfg!(miri) { 300 } else { 300_000u64 };
        let (mut producer, _, memory) = ring(32);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for pace in [0u64, 200] {
                let (mut consumer, done) = (LossyConsumer::new(memory.clone()), &done);
                scope.spawn(move || {
                    let (mut message, mut next, mut slots) = (Message::default(), 0, 0);
                    loop {
                        // Before the look, so that nothing can come after a look that found nothing.
                        let is_last = done.load(Ordering::Acquire);
                        if !consumer.try_pop(&mut message).expect("a sound ring") {
                            if is_last && !consumer.is_ready() {
                                break;
                            }
                            std::thread::yield_now();
                            continue;
                        }
                        let payload = message.payload();
                        let number = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
                        assert!(number >= next, "{number} after {next}");
                        assert_eq!(payload, numbered(number), "torn");
                        next = number + 1;
                        slots += payload.len().div_ceil(SLOT_PAYLOAD) as u64;
                        (0..pace).for_each(|_| std::hint::spin_loop());
                    }
                    assert_eq!(next, messages, "the newest stays");
                    assert_eq!(slots + consumer.missed(), consumer.position);
                });
            }
            for i in 0..messages {
                producer.push(1, 0, None, &numbered(i)).expect("fits");
                if i % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Release);
        });
    }

    #[test]
    fn a_writer_that_died_in_a_message_leaves_all_that_is_older() {
        // Chains of three in a ring of 16, the last of them not finished: after `written` of its slots and then, if
        // `busy`, after the busy mark of the next.
        for (written, busy) in [(0, true), (1, false), (1, true), (2, false), (2, true)] {
            for sent in 0..20u8 {
                let (mut producer, mut behind, memory) = ring(16);
                (0..sent).for_each(|i| _ = producer.push(1, 0, None, &[i; 150]).expect("fits"));
                let mut waiting = LossyConsumer::new(memory.clone());
                let message = Outgoing::new(1, 0, None, &[99; 150]);
                (0..written).for_each(|part| producer.write_slot(&message, 2 - part, 3));
                if busy {
                    let position = producer.position() + 2 - written;
                    let mark = Control::new(position, 0, BUSY, 0, 0);
                    memory.line(position)[0].store(mark.0, Ordering::Relaxed);
                }
                assert_eq!(pop(&mut waiting), None, "it never becomes whole");
                assert!(!waiting.is_ready());
                let mut got = 0;
                while let Some(payload) = pop(&mut behind) {
                    got += 1;
                    assert_eq!(payload.len(), 150);
                    assert!(payload.iter().all(|&byte| byte == payload[0] && byte < sent));
                }
                assert!(got >= sent.min(3), "{got} of {sent}");
                assert_eq!(behind.missed() + u64::from(got) * 3, producer.position());
            }
        }
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic_or_a_hang() {
        let mut refused = 0;
        for seed in 0..if cfg!(miri) { 100 } else { 20_000 } {
            let mut rng = SplitMix64::new(seed);
            let (mut producer, mut consumer, memory) = ring(16);
            for i in 0..rng.below(40) {
                let _ = producer.push(i as u8, 0, None, &vec![i as u8; rng.below(220) as usize]);
            }
            let mut message = Message::default();
            for _ in 0..20 {
                let word = rng.below(17) * 8 + if rng.below(2) == 0 { 0 } else { rng.below(8) };
                let value = match rng.below(4) {
                    0 => rng.next_u64(),
                    1 => u64::MAX - rng.below(3),
                    _ => rng.below(80) | rng.below(5) << 48,
                };
                memory.slots.word(word as usize).store(value, Ordering::Relaxed);
                let _ = (consumer.is_ready(), consumer.lag(), consumer.missed());
                match consumer.try_pop(&mut message) {
                    Ok(_) => assert!(message.payload().len() <= MESSAGE_MAX),
                    Err(_) => refused += 1,
                }
                if rng.below(8) == 0 {
                    consumer = LossyConsumer::new(memory.clone());
                }
            }
        }
        assert!(refused > 0, "some of it was noticed");
    }

    #[test]
    fn a_tail_that_lies_is_found_out() {
        let (mut producer, mut consumer, memory) = ring(16);
        (0..40u8).for_each(|i| _ = producer.push(1, 0, None, &[i]).expect("short"));
        for found in [0, 5, 11] {
            memory.tail().store(found, Ordering::Relaxed);
            let outcome = consumer.try_pop(&mut Message::default());
            assert_eq!(outcome, Err(Corrupt::Tail { found, position: 0 }), "it was overtaken, says the slot");
        }
        memory.tail().store(60, Ordering::Relaxed);
        assert!(consumer.try_pop(&mut Message::default()).is_err(), "the slots are not that far");
        memory.tail().store(40, Ordering::Relaxed);
        assert_eq!(pop(&mut consumer), Some(vec![29]), "nothing was lost by looking");
    }
}
