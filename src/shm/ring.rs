//! A bounded queue of messages for exactly one writing and one reading process.
//! `messaging::lanes` owns three of them per direction.
//!
//! Slots, chains and send times are those of [`slot`]. Position `p` always lies in slot
//! `p % capacity`.
//!
//! Invariants
//! 1. The writer's position exists in its own memory only; the reader finds out from the slots.
//! 2. A slot whose control word is `position + 1` is whole. Any sequence but that one or the one of the
//!    previous lap is nonsense and poisons the ring.
//! 3. The writer overwrites a slot only after the reader's published head has passed it.
//! 4. A chain, and a group of messages of a batch, becomes visible at once: its first control word is written
//!    last. A chain's slots agree on kind and flags, count down to 0 and are full but for the last; any other
//!    chain is nonsense too.
//! 5. The reader publishes its head when a quarter of the ring or 64 slots were taken since the last
//!    time, when it finds the ring empty, and when it is told to. So the published head never passes
//!    the true one, and a reader that waits has acknowledged everything.
//!
//! Sync points: A, message visible (control word: store release / load acquire). B, slot free (head:
//! store release / load acquire).
//!
//! Why the sequence lives in the slot: the reader polls the very line that carries the message, so a
//! message costs one line transfer. Head and tail indexes cost two, and measured 1.8 times the latency.
//! The writer looks at the head only when its own copy says that there is no room.
//!
//! Why long runs of slots are streamed past the caches: a line that is dirty in the writer's cache, or still in
//! the reader's, is handed over by asking the other core for it, one line after the other. Where the two share no
//! cache that measured 145 ns a line, 7 million messages a second; streamed in batches of 64, 140 million.
//!
//! Points where a test lets a process die: `ring.write` after a payload word, `ring.chain` between the
//! slots of a chain or batch, `ring.publish` before the control word that shows a message, `ring.take` when a
//! message is copied and its slots not yet given up, `ring.acknowledge` before the head is published.

use super::memory::{self, Words};
use super::slot::{self, Control, Outgoing};
use crate::base::crash;
use crate::base::sync::{AtomicU64, Ordering};
use std::sync::Arc;

pub use super::slot::{CHAIN_MAX, FLAG_BLOCK, FLAG_STAMPED, MESSAGE_MAX, Message, SLOT_PAYLOAD, SLOT_WORDS};

/// Most slots that are taken before their reader says so.
const ACKNOWLEDGE_SLOTS: u64 = 64;
/// Slots of a chain or batch from which on they are streamed. A few are sooner there by way of the caches.
const STREAM_SLOTS: u64 = 16;
/// Slots of a batch that become visible together: enough to stream, few enough that the reader need not wait long.
const GROUP_SLOTS: u64 = 64;

/// The other side wrote something that no correct process writes. The channel is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// A control word that is neither this lap's nor the previous one's.
    #[error("slot {position} carries sequence {found:#x}, expected {expected:#x} or the lap before")]
    Sequence {
        /// Position read.
        position: u64,
        /// Low 32 bits found.
        found: u32,
        /// Low 32 bits of a whole message.
        expected: u32,
    },
    /// A length or chain that cannot be, or a chain whose slots differ.
    #[error("slot {position} claims {length} bytes and {following} more slots, which does not fit its chain")]
    Chain {
        /// Position read.
        position: u64,
        /// Length claimed.
        length: u8,
        /// Chain slots claimed to follow.
        following: u8,
    },
    /// A head outside what was sent.
    #[error("reader acknowledges {found}, but {known}..={sent} is possible")]
    Head {
        /// Head found.
        found: u64,
        /// Head known before.
        known: u64,
        /// Messages sent.
        sent: u64,
    },
    /// A tail of a lossy ring that its slots belie.
    #[error("the writer claims to be at {found}; the slots seen from {position} say otherwise")]
    Tail {
        /// Tail found.
        found: u64,
        /// Position of the reader.
        position: u64,
    },
}

impl Corrupt {
    #[cold]
    pub(super) fn chain(position: u64, control: Control) -> Self {
        Self::Chain { position, length: control.length(), following: control.following() }
    }

    #[cold]
    pub(super) fn sequence(position: u64, control: Control) -> Self {
        Self::Sequence { position, found: control.sequence(), expected: slot::sequence(position) }
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// No room now; try again after the reader took some.
    #[error("the ring is full")]
    Full,
    /// Longer than [`MESSAGE_MAX`] or than the whole ring.
    #[error("a message of {bytes} bytes; at most {max} fit")]
    TooLong {
        /// Bytes of the message.
        bytes: usize,
        /// Bytes that fit, beside the send time if there is one.
        max: usize,
    },
    /// The reader wrote nonsense.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// A part of a mapping that holds one ring.
#[derive(Clone, Debug)]
pub struct RingMemory {
    /// Mapping with the slots, writable for the producer.
    pub slots: Arc<Words>,
    /// First word of the ring in it.
    pub first_word: usize,
    /// Slots, a power of two.
    pub capacity: u64,
    /// Mapping with the acknowledged head, writable for the consumer.
    pub heads: Arc<Words>,
    /// Word of the head in it.
    pub head_word: usize,
}

impl RingMemory {
    fn check(&self) {
        assert!(self.capacity.is_power_of_two() && self.capacity >= 2, "capacity {}", self.capacity);
        assert!(
            self.first_word + self.capacity as usize * SLOT_WORDS <= self.slots.len(),
            "slots outside the mapping"
        );
        assert!(self.head_word < self.heads.len(), "head outside the mapping");
    }

    /// First word of the slot of a position.
    #[inline]
    fn slot(&self, position: u64) -> usize {
        self.first_word + (position & (self.capacity - 1)) as usize * SLOT_WORDS
    }

    #[inline]
    fn line(&self, position: u64) -> &[AtomicU64; SLOT_WORDS] {
        self.slots.line(self.slot(position))
    }

    #[inline]
    fn head(&self) -> &AtomicU64 {
        self.heads.word(self.head_word)
    }
}

/// The writing end.
#[derive(Debug)]
pub struct Producer {
    memory: RingMemory,
    /// Next position to write.
    tail: u64,
    /// Head as last seen; only refreshed when the ring looks full.
    head_seen: u64,
}

impl Producer {
    /// The writing end of fresh memory.
    pub fn new(memory: RingMemory) -> Self {
        memory.check();
        Self { memory, tail: 0, head_seen: 0 }
    }

    /// Writes one message. Allocates nothing, makes no system call, wakes nobody.
    #[inline]
    pub fn try_push(&mut self, kind: u8, payload: &[u8]) -> Result<(), PushError> {
        if payload.len() <= SLOT_PAYLOAD && self.room() > 0 {
            self.write_slot(
                Control::new(self.tail, kind, payload.len() as u8, 0, 0),
                self.tail,
                payload,
                true,
            );
            self.tail += 1;
            return Ok(());
        }
        self.push(&Outgoing::new(kind, 0, None, payload))
    }

    /// Writes one message with flags and, if given, its send time behind the payload.
    /// [`FLAG_STAMPED`] follows from `stamp_ns`, whatever `flags` says.
    #[inline]
    pub fn try_push_with(
        &mut self,
        kind: u8,
        flags: u8,
        stamp_ns: Option<u64>,
        payload: &[u8],
    ) -> Result<(), PushError> {
        self.push(&Outgoing::new(kind, flags, stamp_ns, payload))
    }

    /// Writes as many messages as fit, with at most one look at the reader's head, and says how many.
    /// They become visible in groups. An error is told when it meets the first message; one that meets a later
    /// message ends the batch before it.
    pub fn try_push_batch<'a>(
        &mut self,
        kind: u8,
        payloads: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<usize, PushError> {
        let payloads = payloads.into_iter();
        let streams = payloads.size_hint().0 as u64 >= STREAM_SLOTS;
        let (mut pushed, mut looked) = (0, false);
        // The first message of the group shows the others, so it waits for them.
        let (mut first, mut end) = (None, self.tail);
        for payload in payloads {
            let slots = if payload.len() <= SLOT_PAYLOAD {
                1
            } else {
                match self.slots_of(&Outgoing::new(kind, 0, None, payload)) {
                    Ok(slots) => slots,
                    Err(error) if pushed == 0 => return Err(error),
                    Err(_) => break,
                }
            };
            if self.room() - (end - self.tail) < slots && !looked {
                looked = true;
                self.look_at_head()?;
            }
            if self.room() - (end - self.tail) < slots {
                break;
            }
            if first.is_none() {
                first = Some(payload);
            } else if slots == 1 && streams {
                crash::point("ring.chain");
                let control = Control::new(end, kind, payload.len() as u8, 0, 0);
                self.memory.slots.stream_line(self.memory.slot(end), slot::words(control, payload));
            } else {
                self.write_parts(&Outgoing::new(kind, 0, None, payload), end, slots, 0, streams);
            }
            end += slots;
            pushed += 1;
            if end - self.tail >= GROUP_SLOTS {
                self.show_group(kind, first.take(), end, streams);
            }
        }
        self.show_group(kind, first, end, streams);
        Ok(pushed)
    }

    fn show_group(&mut self, kind: u8, first: Option<&[u8]>, end: u64, streams: bool) {
        if let Some(payload) = first {
            let message = Outgoing::new(kind, 0, None, payload);
            let slots = message.slots();
            self.show(&message, slots, end, streams);
        }
    }

    /// Slots that can be written now.
    pub fn free(&mut self) -> Result<u64, Corrupt> {
        if self.tail - self.head_seen >= self.memory.capacity.div_ceil(2) {
            self.look_at_head()?;
        }
        Ok(self.room())
    }

    /// Slots written and not yet acknowledged, as far as the reader has published.
    pub fn depth(&self) -> u64 {
        self.tail.saturating_sub(self.memory.head().load(Ordering::Relaxed))
    }

    /// Slots written since the ring is there.
    pub fn sent_slots(&self) -> u64 {
        self.tail
    }

    /// Slots free as far as the head was seen.
    #[inline]
    fn room(&self) -> u64 {
        self.memory.capacity - (self.tail - self.head_seen)
    }

    fn look_at_head(&mut self) -> Result<(), Corrupt> {
        let found = self.memory.head().load(Ordering::Acquire); // B
        if found < self.head_seen || found > self.tail {
            return Err(Corrupt::Head { found, known: self.head_seen, sent: self.tail });
        }
        self.head_seen = found;
        Ok(())
    }

    #[inline]
    fn slots_of(&self, message: &Outgoing<'_>) -> Result<u64, PushError> {
        let (slots, most) = (message.slots(), self.memory.capacity.min(CHAIN_MAX as u64));
        if slots > most {
            return Err(PushError::TooLong { bytes: message.payload_bytes(), max: message.fitting(most) });
        }
        Ok(slots)
    }

    #[inline]
    fn push(&mut self, message: &Outgoing<'_>) -> Result<(), PushError> {
        let slots = self.slots_of(message)?;
        if self.room() < slots {
            self.look_at_head()?;
            if self.room() < slots {
                return Err(PushError::Full);
            }
        }
        self.show(message, slots, self.tail + slots, slots >= STREAM_SLOTS);
        Ok(())
    }

    /// Writes `message` at the tail and so shows all up to `end`, which is written already.
    #[inline]
    fn show(&mut self, message: &Outgoing<'_>, slots: u64, end: u64, streams: bool) {
        self.write_parts(message, self.tail, slots, 1, streams);
        if streams {
            memory::end_stream();
        }
        let mut buffer = [0; SLOT_PAYLOAD];
        let piece = message.piece(0, &mut buffer);
        let control =
            Control::new(self.tail, message.kind, piece.len() as u8, (slots - 1) as u8, message.flags);
        self.write_slot(control, self.tail, piece, true);
        self.tail = end;
    }

    /// Writes the slots of `message` from part `from` on, last slot first: the reader sees nothing of a chain until
    /// its first slot is there (invariant 4).
    #[inline]
    fn write_parts(&self, message: &Outgoing<'_>, position: u64, slots: u64, from: u64, streams: bool) {
        let mut buffer = [0; SLOT_PAYLOAD];
        for part in (from..slots).rev() {
            let piece = message.piece(part, &mut buffer);
            let (position, following) = (position + part, (slots - 1 - part) as u8);
            let control = Control::new(position, message.kind, piece.len() as u8, following, message.flags);
            if streams {
                crash::point("ring.chain");
                self.memory.slots.stream_line(self.memory.slot(position), slot::words(control, piece));
            } else {
                self.write_slot(control, position, piece, false);
            }
        }
    }

    #[inline]
    fn write_slot(&self, control: Control, position: u64, piece: &[u8], is_first: bool) {
        let line = self.memory.line(position);
        slot::store_payload(line, piece, || crash::point("ring.write"));
        crash::point(if is_first { "ring.publish" } else { "ring.chain" });
        line[0].store(control.0, Ordering::Release); // A
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer {
    memory: RingMemory,
    /// Next position to read.
    head: u64,
    /// Head as last published.
    published: u64,
    /// Slots to take before the head is published.
    batch: u64,
}

impl Consumer {
    /// The reading end of fresh memory.
    pub fn new(memory: RingMemory) -> Self {
        memory.check();
        let batch = (memory.capacity / 4).clamp(1, ACKNOWLEDGE_SLOTS);
        Self { memory, head: 0, published: 0, batch }
    }

    /// Copies the next message into `message` and gives up its slots. False when there is none.
    /// After an error `message` holds nothing of use.
    ///
    /// The work is bounded by one chain whatever the writer wrote.
    #[inline]
    pub fn try_pop(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        let line = self.memory.line(self.head);
        let first = Control(line[0].load(Ordering::Acquire)); // A
        if first.sequence() != slot::sequence(self.head) {
            self.check_nothing(first)?;
            if self.published != self.head {
                self.acknowledge();
            }
            return Ok(false);
        }
        message.begin(first);
        if first.following() == 0 {
            if usize::from(first.length()) > SLOT_PAYLOAD {
                return Err(Corrupt::chain(self.head, first));
            }
            message.append(line, first.length());
        } else {
            self.copy_chain(first, message)?;
        }
        if !message.finish() {
            return Err(Corrupt::chain(self.head, first));
        }
        crash::point("ring.take");
        self.head += u64::from(first.following()) + 1;
        if self.head - self.published >= self.batch {
            self.acknowledge();
        }
        Ok(true)
    }

    /// Takes up to `max` messages, one after the other through `message`, and says how many there were.
    /// Those before an error were handled.
    pub fn pop_batch(
        &mut self,
        message: &mut Message,
        max: usize,
        mut handle: impl FnMut(&Message),
    ) -> Result<usize, Corrupt> {
        for taken in 0..max {
            if !self.try_pop(message)? {
                return Ok(taken);
            }
            handle(message);
        }
        Ok(max)
    }

    /// Tells the writer now of all that was taken. Called by itself in batches and before any wait;
    /// of use to a reader that stops in the middle.
    #[inline]
    pub fn acknowledge(&mut self) {
        crash::point("ring.acknowledge");
        self.memory.head().store(self.head, Ordering::Release); // B
        self.published = self.head;
    }

    /// Whether a message waits, without taking it. A corrupt slot counts as one, so that it is found.
    #[inline]
    pub fn is_ready(&self) -> bool {
        let control = Control(self.memory.line(self.head)[0].load(Ordering::Acquire)); // A
        if control.sequence() == slot::sequence(self.head) || self.check_nothing(control).is_err() {
            return true;
        }
        // Whoever only looks may go to sleep next, so the head is published here as well (invariant 5).
        // `published` may lag behind then; our own word knows.
        if self.published != self.head && self.memory.head().load(Ordering::Relaxed) != self.head {
            crash::point("ring.acknowledge");
            self.memory.head().store(self.head, Ordering::Release); // B
        }
        false
    }

    /// The slot at the head, which does not hold its message, holds that of the lap before.
    #[inline]
    fn check_nothing(&self, found: Control) -> Result<(), Corrupt> {
        let capacity = self.memory.capacity;
        let lap_before = if self.head < capacity { 0 } else { slot::sequence(self.head - capacity) };
        if found.sequence() == lap_before { Ok(()) } else { Err(Corrupt::sequence(self.head, found)) }
    }

    #[inline(never)]
    fn copy_chain(&self, first: Control, message: &mut Message) -> Result<(), Corrupt> {
        let following = first.following();
        if usize::from(following) >= CHAIN_MAX || u64::from(following) >= self.memory.capacity {
            return Err(Corrupt::chain(self.head, first));
        }
        for part in 0..=following {
            let position = self.head + u64::from(part);
            let line = self.memory.line(position);
            // Written before the first control word, so anything but whole is nonsense.
            let found = if part == 0 { first } else { Control(line[0].load(Ordering::Acquire)) };
            let length = found.length();
            if found != first.part(position, following - part, found) || usize::from(length) > SLOT_PAYLOAD {
                return Err(Corrupt::chain(position, found));
            }
            message.append(line, length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::SplitMix64;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// What one message is: kind, flags, send time, payload.
    type Plain = (u8, u8, Option<u64>, Vec<u8>);

    fn ring(capacity: u64) -> (Producer, Consumer, RingMemory) {
        let slots = Words::private(capacity as usize * SLOT_WORDS);
        let memory = RingMemory { slots, first_word: 0, capacity, heads: Words::private(1), head_word: 0 };
        (Producer::new(memory.clone()), Consumer::new(memory.clone()), memory)
    }

    fn plain(message: &Message) -> Plain {
        (message.kind, message.flags, message.stamp_ns, message.payload().to_vec())
    }

    fn pop_plain(consumer: &mut Consumer) -> Option<Plain> {
        let mut message = Message::default();
        consumer.try_pop(&mut message).expect("sound ring").then(|| plain(&message))
    }

    fn pop(consumer: &mut Consumer) -> Option<(u8, Vec<u8>)> {
        pop_plain(consumer).map(|(kind, _, _, payload)| (kind, payload))
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        let (mut producer, mut consumer, _) = ring(8);
        assert_eq!(pop(&mut consumer), None);
        for (kind, length) in [(1u8, 0usize), (2, 1), (3, 55), (4, 56), (5, 57), (6, 200)] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8 ^ kind).collect();
            producer.try_push(kind, &payload).expect("room");
            assert!(consumer.is_ready());
            assert_eq!(pop_plain(&mut consumer), Some((kind, 0, None, payload)));
            assert!(!consumer.is_ready());
        }
        assert_eq!(producer.sent_slots(), 1 + 1 + 1 + 1 + 2 + 4);
    }

    #[test]
    fn flags_and_send_time_travel_with_messages_of_every_length() {
        let (mut producer, mut consumer, _) = ring(128);
        for length in (0..240).chain(MESSAGE_MAX - 8 - 60..=MESSAGE_MAX - 8) {
            let payload: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
            let stamp = 0x0123_4567_89AB_CDEF ^ length as u64;
            producer.try_push_with(9, FLAG_BLOCK, Some(stamp), &payload).expect("room");
            producer.try_push_with(8, FLAG_STAMPED, None, &payload[..length.min(50)]).expect("room");
            let stamped = (9, FLAG_BLOCK | FLAG_STAMPED, Some(stamp), payload.clone());
            assert_eq!(pop_plain(&mut consumer), Some(stamped), "{length} bytes");
            let bare = (8, 0, None, payload[..length.min(50)].to_vec());
            assert_eq!(pop_plain(&mut consumer), Some(bare), "a flag that says nothing true is dropped");
        }
    }

    #[test]
    fn a_full_ring_says_so_and_keeps_what_it_has() {
        let (mut producer, mut consumer, _) = ring(4);
        for i in 0..4 {
            producer.try_push(i, &[i]).expect("room");
        }
        assert_eq!(producer.try_push(9, &[9]), Err(PushError::Full));
        assert_eq!(producer.try_push_batch(9, [&[9u8][..]]), Ok(0));
        assert_eq!(producer.depth(), 4);
        assert_eq!(pop(&mut consumer), Some((0, vec![0])));
        producer.try_push(9, &[9]).expect("one slot came free");
        assert_eq!(producer.try_push(10, &[0; 57]), Err(PushError::Full), "a chain needs two");
        for expected in [1, 2, 3, 9] {
            assert_eq!(pop(&mut consumer), Some((expected, vec![expected])));
        }
    }

    #[test]
    fn what_can_never_fit_is_refused() {
        let (mut producer, _, _) = ring(4);
        assert_eq!(producer.try_push(1, &[0; 4 * 56 + 1]), Err(PushError::TooLong { bytes: 225, max: 224 }));
        assert_eq!(
            producer.try_push_with(1, 0, Some(1), &[0; 4 * 56]),
            Err(PushError::TooLong { bytes: 224, max: 216 })
        );
        let (mut producer, mut consumer, _) = ring(512);
        producer.try_push(1, &vec![7; MESSAGE_MAX]).expect("the longest message");
        assert_eq!(pop(&mut consumer), Some((1, vec![7; MESSAGE_MAX])));
        assert!(matches!(producer.try_push(1, &vec![7; MESSAGE_MAX + 1]), Err(PushError::TooLong { .. })));
    }

    #[test]
    fn long_batches_and_chains_come_out_as_they_went_in() {
        let (mut producer, mut consumer, _) = ring(128);
        let mut rng = SplitMix64::new(7);
        for round in 0..200u64 {
            // Past the end of the ring, over several groups, with chains in between.
            let payloads: Vec<Vec<u8>> = (0..16 + rng.below(120))
                .map(|at| {
                    vec![(at + round) as u8; if rng.below(20) == 0 { 700 } else { rng.below(57) as usize }]
                })
                .collect();
            let mut sent = 0;
            while sent < payloads.len() {
                let pushed = producer.try_push_batch(3, payloads[sent..].iter().map(|payload| &payload[..]));
                let pushed = pushed.expect("a sound reader");
                for payload in &payloads[sent..sent + pushed] {
                    assert_eq!(pop(&mut consumer), Some((3, payload.clone())), "round {round}");
                }
                assert_eq!(pop(&mut consumer), None, "no more than was said");
                sent += pushed;
            }
        }
    }

    #[test]
    fn a_reader_beside_a_writer_of_batches_sees_whole_messages_in_order() {
        let words = |words: usize| {
            let object = super::super::memory::SharedObject::create("test", words * 8).expect("memfd");
            object.map(super::super::memory::Access::Write).expect("map")
        };
        let memory = RingMemory {
            slots: words(256 * 8),
            first_word: 0,
            capacity: 256,
            heads: words(512),
            head_word: 0,
        };
        let (mut producer, mut consumer) = (Producer::new(memory.clone()), Consumer::new(memory));
        const MESSAGES: u64 = 300_000;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < MESSAGES {
                    let batch: Vec<[u8; 56]> = (next..MESSAGES.min(next + 1 + next % 90))
                        .map(|number| number.to_le_bytes().repeat(7).try_into().expect("seven words"))
                        .collect();
                    let pushed = producer.try_push_batch(1, batch.iter().map(|payload| &payload[..]));
                    next += pushed.expect("a sound reader") as u64;
                    std::thread::yield_now();
                }
            });
            let mut message = Message::default();
            for expected in 0..MESSAGES {
                while !consumer.try_pop(&mut message).expect("a sound writer") {
                    std::thread::yield_now();
                }
                assert_eq!(message.payload(), expected.to_le_bytes().repeat(7), "message {expected}");
            }
        });
    }

    #[test]
    fn a_batch_takes_what_fits_and_leaves_the_rest() {
        let (mut producer, mut consumer, _) = ring(8);
        let payloads: Vec<Vec<u8>> = (0..6).map(|i| vec![i; if i == 2 { 150 } else { 3 }]).collect();
        // 1 + 1 + 3 + 1 + 1 = 7 slots, the sixth message is the eighth.
        assert_eq!(producer.try_push_batch(5, payloads.iter().map(|bytes| &bytes[..])), Ok(6));
        assert_eq!(producer.try_push_batch(5, payloads.iter().map(|bytes| &bytes[..])), Ok(0));
        let (mut message, mut got) = (Message::default(), Vec::new());
        let mut take = |max, got: &mut Vec<Vec<u8>>| {
            consumer.pop_batch(&mut message, max, |message| got.push(message.payload().to_vec()))
        };
        assert_eq!(take(4, &mut got), Ok(4));
        assert_eq!(take(9, &mut got), Ok(2));
        assert_eq!(got, payloads);
        assert_eq!(take(9, &mut got), Ok(0));
        let long = vec![0; 9 * SLOT_PAYLOAD];
        assert!(matches!(producer.try_push_batch(5, [&long[..]]), Err(PushError::TooLong { .. })));
        assert_eq!(producer.try_push_batch(5, [&[1u8][..], &long[..], &[2u8][..]]), Ok(1));
    }

    #[test]
    fn the_head_is_published_in_batches_and_before_any_wait() {
        let (mut producer, mut consumer, _) = ring(512);
        let fill = |producer: &mut Producer, count| {
            (0..count).for_each(|_| producer.try_push(1, &[1]).expect("room"));
        };
        fill(&mut producer, 100);
        (0..63).for_each(|_| assert!(pop(&mut consumer).is_some()));
        assert_eq!(producer.depth(), 100, "not yet");
        assert!(pop(&mut consumer).is_some());
        assert_eq!(producer.depth(), 36, "64 slots were taken");
        assert!(pop(&mut consumer).is_some());
        consumer.acknowledge();
        assert_eq!(producer.depth(), 35, "told to");
        while pop(&mut consumer).is_some() {}
        assert_eq!(producer.depth(), 0, "found empty");
        fill(&mut producer, 3);
        (0..3).for_each(|_| assert!(pop(&mut consumer).is_some()));
        assert_eq!(producer.depth(), 3);
        assert!(!consumer.is_ready());
        assert_eq!(producer.depth(), 0, "who looks before sleeping has acknowledged");
        let (mut producer, mut consumer, _) = ring(16);
        fill(&mut producer, 16);
        (0..4).for_each(|_| assert!(pop(&mut consumer).is_some()));
        assert_eq!(producer.depth(), 12, "a quarter of a small ring");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8, u8, Option<u64>, usize),
        PushBatch(Vec<usize>),
        Pop,
        PopBatch(usize),
        Acknowledge,
    }

    fn step() -> impl Strategy<Value = Step> {
        let length = prop_oneof![4 => 0usize..60, 1 => 0usize..600];
        prop_oneof![
            4 => (any::<u8>(), any::<u8>(), any::<Option<u64>>(), length.clone())
                .prop_map(|(kind, flags, stamp, length)| Step::Push(kind, flags, stamp, length)),
            1 => proptest::collection::vec(length, 0..6).prop_map(Step::PushBatch),
            4 => Just(Step::Pop),
            1 => (0usize..9).prop_map(Step::PopBatch),
            1 => Just(Step::Acknowledge),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 300 }, ..ProptestConfig::default() })]

        /// Any traffic comes out as from a plain queue; and once the reader found nothing more, the whole ring is free.
        #[test]
        fn random_traffic_equals_a_plain_queue(
            log in 1u32..8,
            steps in proptest::collection::vec(step(), 0..250),
            seed: u64,
        ) {
            let (mut producer, mut consumer, _) = ring(1 << log);
            let mut queue: VecDeque<Plain> = VecDeque::new();
            let mut rng = SplitMix64::new(seed);
            let mut bytes = |length| (0..length).map(|_| rng.next_u64() as u8).collect::<Vec<u8>>();
            let mut message = Message::default();
            for step in steps {
                match step {
                    Step::Push(kind, flags, stamp, length) => {
                        let payload = bytes(length);
                        let mark = producer.sent_slots();
                        if producer.try_push_with(kind, flags, stamp, &payload).is_ok() {
                            let stamped = u8::from(stamp.is_some()) * FLAG_STAMPED;
                            queue.push_back((kind, flags & !FLAG_STAMPED | stamped, stamp, payload));
                        } else {
                            prop_assert_eq!(producer.sent_slots(), mark);
                        }
                    }
                    Step::PushBatch(lengths) => {
                        let payloads: Vec<Vec<u8>> = lengths.into_iter().map(&mut bytes).collect();
                        let pushed = producer.try_push_batch(3, payloads.iter().map(|bytes| &bytes[..]));
                        let pushed = pushed.unwrap_or(0);
                        queue.extend(payloads.into_iter().take(pushed).map(|bytes| (3, 0, None, bytes)));
                    }
                    Step::Pop => prop_assert_eq!(pop_plain(&mut consumer), queue.pop_front()),
                    Step::PopBatch(max) => {
                        let mut got = Vec::new();
                        let count = consumer.pop_batch(&mut message, max, |message| got.push(plain(message)));
                        prop_assert_eq!(count, Ok(got.len()));
                        let expected: Vec<Plain> = queue.drain(..max.min(queue.len())).collect();
                        prop_assert_eq!(got, expected);
                    }
                    Step::Acknowledge => consumer.acknowledge(),
                }
            }
            while let Some(expected) = queue.pop_front() {
                prop_assert_eq!(pop_plain(&mut consumer), Some(expected));
            }
            prop_assert_eq!(pop_plain(&mut consumer), None);
            prop_assert_eq!(producer.depth(), 0);
        }
    }

    #[test]
    fn two_threads_pass_a_million_words_in_order() {
        // Miri takes minutes for what takes a second otherwise.
        let words = if cfg!(miri) { 500 } else { 1_000_000u64 };
        let (mut producer, mut consumer, _) = ring(64);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for i in 0..words {
                    let mut payload = [0u8; 80];
                    payload[..8].copy_from_slice(&i.to_le_bytes());
                    payload[72..].copy_from_slice(&(!i).to_le_bytes());
                    let used = if i % 3 == 0 { 80 } else { 8 };
                    let stamp = (i % 5 == 0).then_some(i);
                    while producer.try_push_with(1, 0, stamp, &payload[..used]) == Err(PushError::Full) {
                        std::thread::yield_now();
                    }
                }
            });
            let mut message = Message::default();
            for i in 0..words {
                while !consumer.try_pop(&mut message).expect("sound") {
                    std::thread::yield_now();
                }
                let payload = message.payload();
                assert_eq!(payload[..8], i.to_le_bytes());
                assert_eq!(message.stamp_ns, (i % 5 == 0).then_some(i));
                if i % 3 == 0 {
                    assert_eq!(payload[72..], (!i).to_le_bytes());
                }
            }
        });
    }

    #[test]
    fn two_threads_pass_batches_in_order() {
        let words = if cfg!(miri) { 500 } else { 400_000u64 };
        let (mut producer, mut consumer, _) = ring(32);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < words {
                    let bytes: Vec<[u8; 8]> = (next..words.min(next + 11)).map(u64::to_le_bytes).collect();
                    let pushed = producer.try_push_batch(1, bytes.iter().map(|bytes| &bytes[..]));
                    next += pushed.expect("a sound reader") as u64;
                    if pushed == Ok(0) {
                        std::thread::yield_now();
                    }
                }
            });
            let (mut message, mut next) = (Message::default(), 0u64);
            while next < words {
                let taken = consumer.pop_batch(&mut message, 7, |message| {
                    assert_eq!(message.payload(), next.to_le_bytes());
                    next += 1;
                });
                if taken.expect("a sound writer") == 0 {
                    std::thread::yield_now();
                }
            }
        });
    }

    #[test]
    fn nonsense_from_the_writer_is_an_error_and_never_a_panic() {
        let mut refused = 0;
        for seed in 0..if cfg!(miri) { 100 } else { 20_000 } {
            let mut rng = SplitMix64::new(seed);
            let (mut producer, mut consumer, memory) = ring(8);
            for i in 0..rng.below(8) {
                let stamp = (rng.below(2) == 0).then_some(i);
                let _ = producer.try_push_with(i as u8, 0, stamp, &vec![i as u8; rng.below(120) as usize]);
            }
            for _ in 0..1 + rng.below(4) {
                let word = rng.below(8) * 8 + if rng.below(2) == 0 { 0 } else { rng.below(8) };
                let value =
                    if rng.below(2) == 0 { rng.next_u64() } else { rng.below(20) | rng.next_u64() << 32 };
                memory.slots.word(word as usize).store(value, Ordering::Relaxed);
            }
            let mut message = Message::default();
            for _ in 0..20 {
                match consumer.try_pop(&mut message) {
                    Ok(true) => assert!(message.payload().len() <= MESSAGE_MAX),
                    Ok(false) => break,
                    Err(_) => {
                        refused += 1;
                        break;
                    }
                }
            }
        }
        assert!(refused > 0, "some of it was noticed");
    }

    /// The first control word of a chain over three slots after `change`, or another slot's.
    fn changed(slot: usize, change: impl Fn(Control) -> Control) -> Result<bool, Corrupt> {
        let (mut producer, mut consumer, memory) = ring(8);
        producer.try_push_with(7, FLAG_BLOCK, Some(1), &[3; 150]).expect("room");
        let word = memory.slots.word(slot * SLOT_WORDS);
        word.store(change(Control(word.load(Ordering::Relaxed))).0, Ordering::Relaxed);
        consumer.try_pop(&mut Message::default())
    }

    #[test]
    fn a_chain_whose_slots_differ_is_refused() {
        assert_eq!(changed(0, |control| control), Ok(true));
        for slot in 0..3 {
            for (what, bits) in [("kind", 1 << 32), ("following", 1 << 48), ("flags", 1 << 56)] {
                let outcome = changed(slot, |control| Control(control.0 ^ bits));
                assert!(matches!(outcome, Err(Corrupt::Chain { .. })), "{what} of slot {slot}: {outcome:?}");
            }
        }
        for slot in 0..2 {
            let outcome = changed(slot, |control| Control(control.0 - (1 << 40)));
            assert!(matches!(outcome, Err(Corrupt::Chain { length: 55, .. })), "{outcome:?}");
        }
        let outcome = changed(1, |_| Control(0));
        assert!(matches!(outcome, Err(Corrupt::Chain { .. })), "a part that is not there: {outcome:?}");
    }

    #[test]
    fn a_send_time_that_is_not_there_is_refused() {
        let (mut producer, mut consumer, memory) = ring(4);
        producer.try_push(1, &[1; 7]).expect("room");
        memory.slots.word(0).fetch_or(u64::from(FLAG_STAMPED) << 56, Ordering::Relaxed);
        assert_eq!(
            consumer.try_pop(&mut Message::default()),
            Err(Corrupt::Chain { position: 0, length: 7, following: 0 })
        );
    }

    #[test]
    fn nonsense_from_the_reader_is_an_error() {
        let corrupt = |found| Corrupt::Head { found, known: 0, sent: 2 };
        for found in [3, u64::MAX] {
            let (mut producer, _, memory) = ring(2);
            producer.try_push(1, &[1]).expect("room");
            producer.try_push(1, &[1]).expect("room");
            memory.head().store(found, Ordering::Relaxed);
            assert_eq!(producer.try_push(1, &[1]), Err(PushError::Corrupt(corrupt(found))));
            assert_eq!(producer.try_push_batch(1, [&[1u8][..]]), Err(PushError::Corrupt(corrupt(found))));
            assert_eq!(producer.free(), Err(corrupt(found)));
            assert!(producer.depth() <= 2, "only a figure, but a sane one");
        }
        let (mut producer, mut consumer, memory) = ring(2);
        for _ in 0..2 {
            producer.try_push(1, &[1]).expect("room");
            assert!(pop(&mut consumer).is_some());
        }
        (0..2).for_each(|_| producer.try_push(1, &[1]).expect("room"));
        memory.head().store(1, Ordering::Relaxed);
        producer.try_push(1, &[1]).expect_err("the head went back");
    }
}
