//! A bounded queue of messages for exactly one writing and one reading process.
//! `messaging::lanes` owns three of them per direction.
//!
//! ```text
//!  slot = one cache line = control word + 7 payload words
//!  control:  63        48 47    40 39    32 31                    0
//!           │ slots left │ length │  kind  │ position + 1 (32 bit) │
//! ```
//!
//! Position `p` always lies in slot `p % capacity`. A message of up to 56 bytes takes one slot, a
//! longer one a chain; each slot of a chain says how many follow.
//!
//! Invariants
//! 1. The writer's position exists in its own memory only; the reader finds out from the slots.
//! 2. A slot whose control word is `position + 1` is whole. Any word but that one or the one of the
//!    previous lap is nonsense and poisons the ring.
//! 3. The writer overwrites a slot only after the reader's published head has passed it.
//! 4. A chain becomes visible at once: its first control word is written last.
//!
//! Sync points: A, message visible (control word: store release / load acquire). B, slot free (head:
//! store release / load acquire).
//!
//! Why the sequence lives in the slot: the reader polls the very line that carries the message, so a
//! message costs one line transfer. Head and tail indexes cost two, and measured 1.8 times the latency.

use super::memory::Words;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words in a slot.
pub const SLOT_WORDS: usize = 8;
/// Payload bytes in a slot.
pub const SLOT_PAYLOAD: usize = (SLOT_WORDS - 1) * 8;
/// Slots in the longest chain.
pub const CHAIN_MAX: usize = 256;
/// Bytes in the longest message: 14,336.
pub const MESSAGE_MAX: usize = CHAIN_MAX * SLOT_PAYLOAD;

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
    /// A length or chain that cannot be.
    #[error("slot {position} claims {length} bytes and {following} more slots")]
    Chain {
        /// Position read.
        position: u64,
        /// Length claimed.
        length: u8,
        /// Chain slots claimed to follow.
        following: u16,
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
        /// Bytes that fit.
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

    #[inline]
    fn slot(&self, position: u64) -> usize {
        self.first_word + (position & (self.capacity - 1)) as usize * SLOT_WORDS
    }

    fn head(&self) -> &AtomicU64 {
        self.heads.word(self.head_word)
    }
}

#[inline]
fn control(position: u64, kind: u8, length: u8, following: u16) -> u64 {
    u64::from((position + 1) as u32)
        | u64::from(kind) << 32
        | u64::from(length) << 40
        | u64::from(following) << 48
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
        let slots = payload.len().div_ceil(SLOT_PAYLOAD).max(1) as u64;
        if payload.len() > MESSAGE_MAX || slots > self.memory.capacity {
            let max = MESSAGE_MAX.min(self.memory.capacity as usize * SLOT_PAYLOAD);
            return Err(PushError::TooLong { bytes: payload.len(), max });
        }
        if self.free()? < slots {
            return Err(PushError::Full);
        }
        // Last slot first: the reader sees nothing of a chain until its first slot is there (invariant 4).
        for part in (0..slots).rev() {
            let start = part as usize * SLOT_PAYLOAD;
            let piece = &payload[start..payload.len().min(start + SLOT_PAYLOAD)];
            self.write_slot(self.tail + part, kind, piece, (slots - 1 - part) as u16);
        }
        self.tail += slots;
        Ok(())
    }

    /// Slots that can be written now.
    pub fn free(&mut self) -> Result<u64, Corrupt> {
        if self.tail - self.head_seen >= self.memory.capacity.div_ceil(2) {
            let found = self.memory.head().load(Ordering::Acquire); // B
            if found < self.head_seen || found > self.tail {
                return Err(Corrupt::Head { found, known: self.head_seen, sent: self.tail });
            }
            self.head_seen = found;
        }
        Ok(self.memory.capacity - (self.tail - self.head_seen))
    }

    /// Slots written and not yet acknowledged, as far as the reader has published.
    pub fn depth(&self) -> u64 {
        self.tail.saturating_sub(self.memory.head().load(Ordering::Relaxed))
    }

    #[inline]
    fn write_slot(&self, position: u64, kind: u8, piece: &[u8], following: u16) {
        let slot = self.memory.slot(position);
        let mut bytes = [0u8; SLOT_PAYLOAD];
        bytes[..piece.len()].copy_from_slice(piece);
        let used = piece.len().div_ceil(8);
        for (i, word) in bytes.chunks_exact(8).take(used).enumerate() {
            let value = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
            self.memory.slots.word(slot + 1 + i).store(value, Ordering::Relaxed);
        }
        let word = control(position, kind, piece.len() as u8, following);
        self.memory.slots.word(slot).store(word, Ordering::Release); // A
    }
}

/// A message taken out of a ring, copied into the reader's own memory.
#[derive(Clone)]
pub struct Message {
    /// What it is; the meaning belongs to `messaging::envelope`.
    pub kind: u8,
    length: usize,
    bytes: Box<[u8; MESSAGE_MAX]>,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            kind: 0,
            length: 0,
            bytes: vec![0; MESSAGE_MAX].into_boxed_slice().try_into().expect("this very length"),
        }
    }
}

impl Message {
    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer {
    memory: RingMemory,
    /// Next position to read.
    head: u64,
}

impl Consumer {
    /// The reading end of fresh memory.
    pub fn new(memory: RingMemory) -> Self {
        memory.check();
        Self { memory, head: 0 }
    }

    /// Copies the next message into `message` and frees its slots. False when there is none.
    ///
    /// The work is bounded by one chain whatever the writer wrote.
    #[inline]
    pub fn try_pop(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        let Some(first) = self.look(self.head)? else { return Ok(false) };
        let following = (first >> 48) as u16;
        message.kind = (first >> 32) as u8;
        message.length = 0;
        if usize::from(following) >= CHAIN_MAX || u64::from(following) >= self.memory.capacity {
            return Err(self.bad_chain(self.head, first));
        }
        let mut control = first;
        for part in 0..=following {
            let position = self.head + u64::from(part);
            if part > 0 {
                // Written before the first control word, so anything but whole is nonsense.
                let Some(next) = self.look(position)? else { return Err(self.bad_chain(position, control)) };
                control = next;
            }
            let length = usize::from((control >> 40) as u8);
            let full = length == SLOT_PAYLOAD;
            if length > SLOT_PAYLOAD
                || (control >> 48) as u16 != following - part
                || (part < following && !full)
            {
                return Err(self.bad_chain(position, control));
            }
            let slot = self.memory.slot(position);
            for i in 0..length.div_ceil(8) {
                let word = self.memory.slots.word(slot + 1 + i).load(Ordering::Relaxed).to_le_bytes();
                let at = message.length + i * 8;
                message.bytes[at..at + 8].copy_from_slice(&word);
            }
            message.length += length;
        }
        self.head += u64::from(following) + 1;
        self.memory.head().store(self.head, Ordering::Release); // B
        Ok(true)
    }

    /// Whether a message waits, without taking it. A corrupt slot counts as one, so that it is found.
    #[inline]
    pub fn is_ready(&self) -> bool {
        !matches!(self.look(self.head), Ok(None))
    }

    #[inline]
    fn look(&self, position: u64) -> Result<Option<u64>, Corrupt> {
        let word = self.memory.slots.word(self.memory.slot(position)).load(Ordering::Acquire); // A
        let (found, expected) = (word as u32, (position + 1) as u32);
        if found == expected {
            return Ok(Some(word));
        }
        let lap_before =
            if position < self.memory.capacity { 0 } else { (position + 1 - self.memory.capacity) as u32 };
        if found == lap_before { Ok(None) } else { Err(Corrupt::Sequence { position, found, expected }) }
    }

    #[cold]
    fn bad_chain(&self, position: u64, control: u64) -> Corrupt {
        Corrupt::Chain { position, length: (control >> 40) as u8, following: (control >> 48) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn ring(capacity: u64) -> (Producer, Consumer, RingMemory) {
        let slots = Words::private(capacity as usize * SLOT_WORDS);
        let memory = RingMemory { slots, first_word: 0, capacity, heads: Words::private(1), head_word: 0 };
        (Producer::new(memory.clone()), Consumer::new(memory.clone()), memory)
    }

    fn pop(consumer: &mut Consumer) -> Option<(u8, Vec<u8>)> {
        let mut message = Message::default();
        consumer
            .try_pop(&mut message)
            .expect("sound ring")
            .then(|| (message.kind, message.payload().to_vec()))
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        let (mut producer, mut consumer, _) = ring(8);
        assert_eq!(pop(&mut consumer), None);
        for (kind, length) in [(1u8, 0usize), (2, 1), (3, 55), (4, 56), (5, 57), (6, 200)] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8 ^ kind).collect();
            producer.try_push(kind, &payload).expect("room");
            assert!(consumer.is_ready());
            assert_eq!(pop(&mut consumer), Some((kind, payload)));
            assert!(!consumer.is_ready());
        }
    }

    #[test]
    fn a_full_ring_says_so_and_keeps_what_it_has() {
        let (mut producer, mut consumer, _) = ring(4);
        for i in 0..4 {
            producer.try_push(i, &[i]).expect("room");
        }
        assert_eq!(producer.try_push(9, &[9]), Err(PushError::Full));
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
        let (mut producer, mut consumer, _) = ring(512);
        producer.try_push(1, &vec![7; MESSAGE_MAX]).expect("the longest message");
        assert_eq!(pop(&mut consumer), Some((1, vec![7; MESSAGE_MAX])));
        assert!(matches!(producer.try_push(1, &vec![7; MESSAGE_MAX + 1]), Err(PushError::TooLong { .. })));
    }

    #[test]
    fn random_traffic_equals_a_plain_queue() {
        for seed in 0..40 {
            let mut rng = crate::base::prng::SplitMix64::new(seed);
            let (mut producer, mut consumer, _) = ring(1 << (1 + rng.below(6)));
            let mut model: VecDeque<(u8, Vec<u8>)> = VecDeque::new();
            for _ in 0..2000 {
                if rng.below(2) == 0 {
                    let (kind, length) = (rng.next_u64() as u8, rng.below(150) as usize);
                    let payload: Vec<u8> = (0..length).map(|_| rng.next_u64() as u8).collect();
                    if producer.try_push(kind, &payload).is_ok() {
                        model.push_back((kind, payload));
                    }
                } else {
                    assert_eq!(pop(&mut consumer), model.pop_front(), "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn two_threads_pass_a_million_words_in_order() {
        let (mut producer, mut consumer, _) = ring(64);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for i in 0..1_000_000u64 {
                    let mut payload = [0u8; 80];
                    payload[..8].copy_from_slice(&i.to_le_bytes());
                    payload[72..].copy_from_slice(&(!i).to_le_bytes());
                    let used = if i % 3 == 0 { 80 } else { 8 };
                    while producer.try_push(1, &payload[..used]) == Err(PushError::Full) {
                        std::thread::yield_now();
                    }
                }
            });
            let mut message = Message::default();
            for i in 0..1_000_000u64 {
                while !consumer.try_pop(&mut message).expect("sound") {
                    std::thread::yield_now();
                }
                let payload = message.payload();
                assert_eq!(payload[..8], i.to_le_bytes());
                if i % 3 == 0 {
                    assert_eq!(payload[72..], (!i).to_le_bytes());
                }
            }
        });
    }

    #[test]
    fn nonsense_from_the_writer_is_an_error_and_never_a_panic() {
        for seed in 0..20_000 {
            let mut rng = crate::base::prng::SplitMix64::new(seed);
            let (mut producer, mut consumer, memory) = ring(8);
            for i in 0..rng.below(8) {
                let _ = producer.try_push(i as u8, &vec![i as u8; rng.below(120) as usize]);
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
                    Ok(false) | Err(_) => break,
                }
            }
        }
    }

    #[test]
    fn nonsense_from_the_reader_is_an_error() {
        let (mut producer, _, memory) = ring(4);
        producer.try_push(1, &[1]).expect("room");
        producer.try_push(1, &[1]).expect("room");
        memory.head().store(3, Ordering::Relaxed);
        assert_eq!(
            producer.try_push(1, &[1]),
            Err(PushError::Corrupt(Corrupt::Head { found: 3, known: 0, sent: 2 }))
        );
    }
}
