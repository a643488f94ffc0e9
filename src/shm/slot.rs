//! One slot: a cache line with a message in it, or with a part of a longer one.
//!
//! ```text
//!  slot = control word + 7 payload words
//!  control:  63   56 55        48 47    40 39    32 31                    0
//!           │ flags │ slots left │ length │  kind  │ position + 1 (32 bit) │
//! ```
//! A message of up to 56 bytes takes one slot, a longer one a chain. Each slot of a chain says how many
//! follow it, and carries the kind and the flags of the whole message; every slot but the last is full.
//! A send time travels behind the payload, as its last 8 bytes, and is taken off again on arrival.

use crate::base::sync::{AtomicU64, Ordering};

/// Words in a slot.
pub const SLOT_WORDS: usize = 8;
/// Payload bytes in a slot.
pub const SLOT_PAYLOAD: usize = (SLOT_WORDS - 1) * 8;
/// Slots in the longest chain.
pub const CHAIN_MAX: usize = 74;
/// Bytes in the longest message, send time included: 4,144, so that a page and a descriptor fit.
pub const MESSAGE_MAX: usize = CHAIN_MAX * SLOT_PAYLOAD;

/// The last 8 payload bytes are the send time in nanoseconds, little endian.
pub const FLAG_STAMPED: u8 = 1;
/// The payload ends with the descriptor of an arena block. `messaging` gives it its meaning.
pub const FLAG_BLOCK: u8 = 2;

/// Bytes of a send time.
const STAMP: usize = 8;

// The rings rely on it: a chain's count fits its field, and a slot is a line.
const _: () = assert!(CHAIN_MAX <= 256 && SLOT_PAYLOAD < 255 && SLOT_WORDS * 8 == 64);

/// A control word, taken apart only here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control(pub(super) u64);

impl Control {
    #[inline]
    pub(super) fn new(position: u64, kind: u8, length: u8, following: u8, flags: u8) -> Self {
        Self(
            u64::from(sequence(position))
                | u64::from(kind) << 32
                | u64::from(length) << 40
                | u64::from(following) << 48
                | u64::from(flags) << 56,
        )
    }

    #[inline]
    pub(super) fn sequence(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub(super) fn kind(self) -> u8 {
        (self.0 >> 32) as u8
    }

    #[inline]
    pub(super) fn length(self) -> u8 {
        (self.0 >> 40) as u8
    }

    #[inline]
    pub(super) fn following(self) -> u8 {
        (self.0 >> 48) as u8
    }

    #[inline]
    pub(super) fn flags(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// What slot `position`, followed by `following` more, must carry in the chain that `self` begins.
    /// Of the last one only the length is not known beforehand, so it is taken from `found`.
    #[inline]
    pub(super) fn part(self, position: u64, following: u8, found: Self) -> Self {
        let length = if following > 0 { SLOT_PAYLOAD as u8 } else { found.length() };
        Self::new(position, self.kind(), length, following, self.flags())
    }
}

/// The sequence of a whole slot at `position`.
#[inline]
pub(super) fn sequence(position: u64) -> u32 {
    position.wrapping_add(1) as u32
}

/// Writes payload words. The caller owns the slot; its control word makes them visible.
#[inline]
pub(super) fn store_payload(line: &[AtomicU64; SLOT_WORDS], piece: &[u8], half_way: impl Fn()) {
    let (words, rest) = piece.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        line[1 + at].store(u64::from_le_bytes(*word), Ordering::Relaxed);
        half_way();
    }
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        line[1 + words.len()].store(u64::from_le_bytes(word), Ordering::Relaxed);
    }
}

/// The words of a slot that is written as a whole.
#[inline]
pub(super) fn words(control: Control, piece: &[u8]) -> [u64; SLOT_WORDS] {
    let mut words = [control.0, 0, 0, 0, 0, 0, 0, 0];
    let (whole, rest) = piece.as_chunks::<8>();
    if let Ok(all) = <&[[u8; 8]; SLOT_WORDS - 1]>::try_from(whole) {
        // The full slot, without a loop to count in.
        for (to, word) in words[1..].iter_mut().zip(all) {
            *to = u64::from_le_bytes(*word);
        }
        return words;
    }
    for (to, word) in words[1..].iter_mut().zip(whole) {
        *to = u64::from_le_bytes(*word);
    }
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        words[1 + whole.len()] = u64::from_le_bytes(word);
    }
    words
}

/// A message on its way into slots.
pub(super) struct Outgoing<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    payload: &'a [u8],
    stamp: [u8; STAMP],
    /// Bytes with the send time.
    bytes: usize,
}

impl<'a> Outgoing<'a> {
    #[inline]
    pub(super) fn new(kind: u8, flags: u8, stamp_ns: Option<u64>, payload: &'a [u8]) -> Self {
        let stamped = if stamp_ns.is_some() { FLAG_STAMPED } else { 0 };
        Self {
            kind,
            flags: flags & !FLAG_STAMPED | stamped,
            payload,
            stamp: stamp_ns.unwrap_or(0).to_le_bytes(),
            bytes: payload.len() + if stamp_ns.is_some() { STAMP } else { 0 },
        }
    }

    /// Slots that it takes; an empty message takes one.
    #[inline]
    pub(super) fn slots(&self) -> u64 {
        self.bytes.div_ceil(SLOT_PAYLOAD).max(1) as u64
    }

    /// The bytes of slot `part`; `buffer` holds them where the send time is among them.
    #[inline]
    pub(super) fn piece<'b>(&'b self, part: u64, buffer: &'b mut [u8; SLOT_PAYLOAD]) -> &'b [u8] {
        let start = part as usize * SLOT_PAYLOAD;
        let end = self.bytes.min(start + SLOT_PAYLOAD);
        if end <= self.payload.len() {
            return &self.payload[start..end];
        }
        for (at, byte) in buffer[..end - start].iter_mut().enumerate() {
            let at = start + at;
            *byte = self
                .payload
                .get(at)
                .copied()
                .unwrap_or_else(|| self.stamp[at.wrapping_sub(self.payload.len())]);
        }
        &buffer[..end - start]
    }

    /// Payload bytes of a message that just fits into `slots` slots.
    pub(super) fn fitting(&self, slots: u64) -> usize {
        slots as usize * SLOT_PAYLOAD - (self.bytes - self.payload.len())
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.payload.len()
    }
}

/// A message taken out of a ring, copied into the reader's own memory.
#[derive(Clone)]
pub struct Message {
    /// What it is; the meaning belongs to `messaging::envelope`.
    pub kind: u8,
    /// [`FLAG_STAMPED`], [`FLAG_BLOCK`]; the writer's word, unknown bits included.
    pub flags: u8,
    /// When it was sent, ns, if the sender said so.
    pub stamp_ns: Option<u64>,
    length: usize,
    bytes: Box<[u8; MESSAGE_MAX]>,
    /// A payload that did not come in slots, and stands for the one that did.
    long: Option<Vec<u8>>,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            kind: 0,
            flags: 0,
            stamp_ns: None,
            length: 0,
            bytes: vec![0; MESSAGE_MAX].into_boxed_slice().try_into().expect("this very length"),
            long: None,
        }
    }
}

impl Message {
    /// The payload, without the send time.
    pub fn payload(&self) -> &[u8] {
        match &self.long {
            None => &self.bytes[..self.length],
            Some(long) => long,
        }
    }

    /// From now on the payload is what `fill` writes: it lay elsewhere, and the slots said where.
    pub fn set_long(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut long = Vec::new();
        fill(&mut long);
        self.long = Some(long);
    }

    /// An empty message of the kind and flags in `first`.
    #[inline]
    pub(super) fn begin(&mut self, first: Control) {
        self.kind = first.kind();
        self.flags = first.flags();
        self.stamp_ns = None;
        self.length = 0;
        self.long = None;
    }

    /// Adds the `length` bytes of a slot. Nonsense beyond [`SLOT_PAYLOAD`] or [`CHAIN_MAX`] panics: the caller checked.
    #[inline]
    pub(super) fn append(&mut self, line: &[AtomicU64; SLOT_WORDS], length: u8) {
        // All seven words, whatever the length: unrolled, and cheaper than to count.
        let target = &mut self.bytes[self.length..self.length + SLOT_PAYLOAD];
        for (bytes, word) in target.as_chunks_mut::<8>().0.iter_mut().zip(&line[1..]) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        self.length += usize::from(length);
    }

    /// Takes the send time off the end. False when there is no room for the one that is announced.
    #[inline]
    pub(super) fn finish(&mut self) -> bool {
        if self.flags & FLAG_STAMPED == 0 {
            return true;
        }
        let Some(stamp) = self.bytes[..self.length].last_chunk::<STAMP>() else { return false };
        self.stamp_ns = Some(u64::from_le_bytes(*stamp));
        self.length -= STAMP;
        true
    }
}
