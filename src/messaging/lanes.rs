//! Three lanes per direction over one channel segment.
//!
//! ```text
//!  channel_size bytes = slots of 64 bytes:  control 1/16 │ normal 1/2 │ bulk 1/4   (each a power of two)
//! ```
//! Order of service: control first, then normal, then bulk. So that nobody starves, a waiting bulk
//! message is taken after at most [`NORMAL_RUN`] normal ones, and a waiting normal or bulk one after
//! at most [`CONTROL_RUN`] control messages.

use super::meters::{DropReason, LANES, LaneCount, Latencies, Meter, STAMP_EVERY};
use crate::os::clock;
use crate::shm::Words;
use crate::shm::ring::{
    Consumer, Corrupt, MESSAGE_MAX, Message, Producer, PushError, RingMemory, SLOT_PAYLOAD, SLOT_WORDS,
};
use std::sync::Arc;

/// Priority of a message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lane {
    /// Stop, cancel, readiness, requests: short and rare.
    Control = 0,
    /// Tasks and results.
    Normal = 1,
    /// Experience and notes: may be dropped when full, counted.
    Bulk = 2,
}

impl Lane {
    /// All, most urgent first.
    pub const ALL: [Lane; LANES] = [Lane::Control, Lane::Normal, Lane::Bulk];

    /// `control`, `normal`, `bulk`.
    pub fn name(self) -> &'static str {
        ["control", "normal", "bulk"][self as usize]
    }
}

/// Longest payload that travels in slots; what is longer travels as a block of an arena.
pub const INLINE_MAX: usize = MESSAGE_MAX - 8;
/// Normal messages in a row while a bulk message waits.
pub const NORMAL_RUN: u32 = 15;
/// Control messages in a row while anything else waits.
pub const CONTROL_RUN: u32 = 63;
/// Words of the acknowledged heads of a channel, a line pair each: the adjacent-line prefetcher pulls lines in pairs.
pub const HEAD_WORDS: usize = LANES * 16;

/// Where one channel lies.
#[derive(Clone, Debug)]
pub struct ChannelMemory {
    /// Mapping with the slots, writable for the sender.
    pub slots: Arc<Words>,
    /// First word of the slots.
    pub first_slot: usize,
    /// Mapping with the acknowledged heads, writable for the receiver.
    pub heads: Arc<Words>,
    /// First word of [`HEAD_WORDS`].
    pub first_head: usize,
}

impl ChannelMemory {
    /// A channel over private memory, for tests and benches.
    pub fn private(bytes: usize) -> Self {
        Self {
            slots: Words::private(bytes / 8),
            first_slot: 0,
            heads: Words::private(HEAD_WORDS),
            first_head: 0,
        }
    }

    fn rings(&self) -> [RingMemory; LANES] {
        let mut first_word = self.first_slot;
        let mut head_word = self.first_head;
        capacities((self.slots.len() - self.first_slot) * 8).map(|capacity| {
            let (slots, heads) = (self.slots.clone(), self.heads.clone());
            let ring = RingMemory { slots, first_word, capacity, heads, head_word };
            first_word += capacity as usize * SLOT_WORDS;
            head_word += HEAD_WORDS / LANES;
            ring
        })
    }
}

/// Slots of each lane in a channel of `bytes` bytes.
pub fn capacities(bytes: usize) -> [u64; LANES] {
    let slots = bytes as u64 / (SLOT_WORDS as u64 * 8);
    let floor = |n: u64| if n < 2 { 2 } else { 1 << n.ilog2() };
    [floor(slots / 16), floor(slots / 2), floor(slots / 4)]
}

/// The sending end of a channel.
#[derive(Debug)]
pub struct LaneSender {
    lanes: [Producer; LANES],
    counts: [LaneCount; LANES],
    /// Messages and bytes that go to the same receiver beside these lanes, in overwriting rings: shown with the
    /// normal lane.
    beside: (u64, u64),
    meter: Meter,
}

impl LaneSender {
    /// Over fresh memory; the slots and the meter's words must be writable here.
    pub fn new(memory: &ChannelMemory, meter: Meter) -> Self {
        Self {
            lanes: memory.rings().map(Producer::new),
            counts: [LaneCount::default(); LANES],
            beside: (0, 0),
            meter,
        }
    }

    /// Writes one message; the receiver is woken by whoever owns the doorbell, once per turn.
    #[inline]
    pub fn try_push(&mut self, lane: Lane, kind: u8, payload: &[u8]) -> Result<(), PushError> {
        self.try_push_with(lane, kind, 0, payload)
    }

    /// As [`try_push`](Self::try_push), with flags that the receiver sees.
    #[inline]
    pub fn try_push_with(
        &mut self,
        lane: Lane,
        kind: u8,
        flags: u8,
        payload: &[u8],
    ) -> Result<(), PushError> {
        let at = lane as usize;
        let due = self.counts[at].messages.is_multiple_of(STAMP_EVERY);
        if due {
            return self.push_stamped(at, kind, flags, payload);
        }
        let outcome = self.lanes[at].try_push_with(kind, flags, None, payload);
        self.count(at, payload.len(), &outcome);
        outcome
    }

    /// Every [`STAMP_EVERY`]th message: it carries its time, the depth is looked at, the numbers are published.
    fn push_stamped(&mut self, at: usize, kind: u8, flags: u8, payload: &[u8]) -> Result<(), PushError> {
        let outcome = self.lanes[at].try_push_with(kind, flags, Some(clock::now().0), payload);
        self.count(at, payload.len(), &outcome);
        if outcome.is_ok() {
            self.publish_lane(at);
        }
        outcome
    }

    #[inline]
    fn count(&mut self, at: usize, bytes: usize, outcome: &Result<(), PushError>) {
        let count = &mut self.counts[at];
        match outcome {
            Ok(()) => {
                count.messages += 1;
                count.bytes += bytes as u64;
            }
            Err(PushError::Full) => {
                count.dropped.full += 1;
                // Nothing else is to be done now, and nobody may ever send here again.
                self.publish_lane(at);
            }
            Err(_) => {}
        }
    }

    fn publish_lane(&mut self, at: usize) {
        let count = &mut self.counts[at];
        count.slots = self.lanes[at].sent_slots();
        count.high_water = count.high_water.max(self.lanes[at].depth());
        self.meter.publish(at, &self.with_beside(at));
    }

    /// A lane's numbers, with what went beside it.
    #[inline]
    fn with_beside(&self, at: usize) -> LaneCount {
        let mut count = self.counts[at];
        if at == Lane::Normal as usize {
            count.messages += self.beside.0;
            count.bytes += self.beside.1;
        }
        count
    }

    /// Publishes how much was sent. After the last push of a turn: who sends may be long in coming back, and whoever
    /// adds up both ends must not find more received than sent.
    #[inline]
    pub fn show(&mut self) {
        for at in 0..LANES {
            let count = self.with_beside(at);
            self.meter.show(at, count.messages, count.bytes);
        }
    }

    /// Publishes what was counted. Before a sleep, and whenever nothing else is to be done.
    pub fn publish(&mut self) {
        for at in 0..LANES {
            if self.with_beside(at) != LaneCount::default() {
                self.publish_lane(at);
            }
        }
    }

    /// Counts bytes that travelled in a block beside the slots.
    pub fn count_block(&mut self, lane: Lane, bytes: u64) {
        self.counts[lane as usize].bytes += bytes;
    }

    /// Counts messages that went to the same receiver through an overwriting ring.
    pub fn count_beside(&mut self, messages: u64, bytes: u64) {
        self.beside = (self.beside.0 + messages, self.beside.1 + bytes);
    }

    /// Counts a message that was given up.
    #[cold]
    pub fn count_drop(&mut self, lane: Lane, why: DropReason) {
        self.counts[lane as usize].dropped.count(why, 1);
        self.publish_lane(lane as usize);
    }

    /// Bytes of payload that fit into a lane right now.
    #[inline]
    pub fn room(&mut self, lane: Lane) -> Result<usize, Corrupt> {
        Ok((self.lanes[lane as usize].free()? as usize * SLOT_PAYLOAD).saturating_sub(8))
    }

    /// What was counted so far, per lane.
    pub fn counts(&self) -> [LaneCount; LANES] {
        std::array::from_fn(|at| self.with_beside(at))
    }

    /// Slots not yet acknowledged, per lane.
    pub fn depths(&self) -> [u64; LANES] {
        [self.lanes[0].depth(), self.lanes[1].depth(), self.lanes[2].depth()]
    }
}

/// The receiving end of a channel.
#[derive(Debug)]
pub struct LaneReceiver {
    lanes: [Consumer; LANES],
    /// Messages taken in a row that were preferred to a lower lane.
    control_run: u32,
    normal_run: u32,
    counts: [LaneCount; LANES],
    meter: Meter,
    /// Something was counted since the last publication.
    unpublished: bool,
}

impl LaneReceiver {
    /// Over fresh memory; the heads and the meter's words must be writable here.
    pub fn new(memory: &ChannelMemory, meter: Meter) -> Self {
        Self {
            lanes: memory.rings().map(Consumer::new),
            control_run: 0,
            normal_run: 0,
            counts: [LaneCount::default(); LANES],
            meter,
            unpublished: false,
        }
    }

    /// Takes the next message in order of service and says from which lane. `None` when every lane is empty.
    #[inline]
    pub fn try_pop(&mut self, message: &mut Message) -> Result<Option<Lane>, Corrupt> {
        const ORDERS: [[usize; LANES]; 4] = [[0, 1, 2], [0, 2, 1], [1, 2, 0], [2, 1, 0]];
        let order =
            usize::from(self.normal_run >= NORMAL_RUN) + 2 * usize::from(self.control_run >= CONTROL_RUN);
        for at in ORDERS[order] {
            if self.lanes[at].try_pop(message)? {
                self.control_run = if at == 0 { self.control_run + 1 } else { 0 };
                self.normal_run = match at {
                    0 => self.normal_run,
                    1 => self.normal_run + 1,
                    _ => 0,
                };
                self.count(at, message);
                return Ok(Some(Lane::ALL[at]));
            }
        }
        (self.control_run, self.normal_run) = (0, 0);
        if self.unpublished {
            self.publish();
        }
        Ok(None)
    }

    /// Takes the next control message only.
    pub fn try_pop_control(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        let taken = self.lanes[0].try_pop(message)?;
        if taken {
            self.count(0, message);
        }
        Ok(taken)
    }

    #[inline]
    fn count(&mut self, at: usize, message: &Message) {
        let count = &mut self.counts[at];
        count.messages += 1;
        count.bytes += message.payload().len() as u64;
        self.unpublished = true;
        if let Some(sent_ns) = message.stamp_ns {
            // A stamp from the future is a liar's or another clock's: it counts as 0.
            self.meter.record_latency(at, clock::now().0.saturating_sub(sent_ns));
            self.meter.publish(at, &self.counts[at]);
        }
    }

    /// Publishes what was counted. By itself when nothing is left to take.
    #[cold]
    pub fn publish(&mut self) {
        for at in 0..LANES {
            self.meter.publish(at, &self.counts[at]);
        }
        self.unpublished = false;
    }

    /// Counts a message that came from the same sender through an overwriting ring.
    /// Its first `head` bytes are not payload.
    pub fn count_beside(&mut self, message: &Message, head: usize) {
        self.count(Lane::Normal as usize, message);
        self.counts[Lane::Normal as usize].bytes -= head as u64;
    }

    /// Publishes how much was received, if that has changed. After a turn, as [`LaneSender::show`].
    #[inline]
    pub fn show(&mut self) {
        if self.unpublished {
            for (at, count) in self.counts.iter().enumerate() {
                self.meter.show(at, count.messages, count.bytes);
            }
        }
    }

    /// Counts bytes that travelled in a block beside the slots.
    pub fn count_block(&mut self, lane: Lane, bytes: u64) {
        self.counts[lane as usize].bytes += bytes;
        self.unpublished = true;
    }

    /// The message that was just taken is not handled: its deadline had passed, or nobody waits for it any more.
    #[cold]
    pub fn count_expired(&mut self, lane: Lane) {
        let count = &mut self.counts[lane as usize];
        count.messages -= 1;
        count.dropped.count(DropReason::Expired, 1);
        self.publish();
    }

    /// Messages in an overwriting ring were overwritten before they were read.
    #[cold]
    pub fn count_overwritten(&mut self, messages: u64) {
        self.counts[Lane::Normal as usize].dropped.count(DropReason::Oldest, messages);
        self.publish();
    }

    /// Whether anything waits.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.lanes.iter().any(Consumer::is_ready)
    }

    /// What was counted so far, per lane.
    pub fn counts(&self) -> [LaneCount; LANES] {
        self.counts
    }

    /// Times from sending to receiving, per lane.
    pub fn latencies(&self) -> [Latencies; LANES] {
        std::array::from_fn(|lane| self.meter.latencies(lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(bytes: usize) -> (LaneSender, LaneReceiver) {
        let memory = ChannelMemory::private(bytes);
        (
            LaneSender::new(&memory, Meter::private_sender()),
            LaneReceiver::new(&memory, Meter::private_receiver()),
        )
    }

    #[test]
    fn lanes_fit_into_every_allowed_channel() {
        for bytes in [65_536, 69_632, 1 << 20, (1 << 20) + 4096, 1 << 22] {
            assert!(capacities(bytes).iter().sum::<u64>() * 64 <= bytes as u64, "{bytes}");
            channel(bytes);
        }
    }

    #[test]
    fn control_overtakes_a_full_bulk_lane() {
        let (mut sender, mut receiver) = channel(65_536);
        while sender.try_push(Lane::Bulk, 3, b"bulk").is_ok() {}
        sender.try_push(Lane::Normal, 2, b"normal").expect("room");
        sender.try_push(Lane::Control, 1, b"control").expect("room");
        let mut message = Message::default();
        for expected in [1, 2, 3] {
            assert!(receiver.try_pop(&mut message).expect("sound").is_some());
            assert_eq!(message.kind, expected);
        }
        assert_eq!(sender.counts().map(|count| count.dropped.full), [0, 0, 1]);
    }

    #[test]
    fn bulk_is_served_within_its_bound() {
        let (mut sender, mut receiver) = channel(65_536);
        let mut message = Message::default();
        for _ in 0..200 {
            sender.try_push(Lane::Normal, 2, &[]).expect("room");
        }
        sender.try_push(Lane::Bulk, 3, &[]).expect("room");
        let mut before = 0;
        while receiver.try_pop(&mut message).expect("sound").is_some() && message.kind != 3 {
            before += 1;
        }
        assert!(before <= NORMAL_RUN, "{before} normal messages went first");
    }

    #[test]
    fn control_cannot_starve_tasks() {
        let (mut sender, mut receiver) = channel(1 << 20);
        let mut message = Message::default();
        for _ in 0..500 {
            sender.try_push(Lane::Control, 1, &[]).expect("room");
        }
        sender.try_push(Lane::Normal, 2, &[]).expect("room");
        let mut before = 0;
        while receiver.try_pop(&mut message).expect("sound").is_some() && message.kind != 2 {
            before += 1;
        }
        assert!(before <= CONTROL_RUN, "{before} control messages went first");
    }
}
