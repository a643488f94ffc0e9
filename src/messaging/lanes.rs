//! Three lanes per direction over one channel segment.
//!
//! ```text
//!  channel_size bytes = slots of 64 bytes:  control 1/16 │ normal 1/2 │ bulk 1/4   (each a power of two)
//! ```
//! Order of service: control first, then normal, then bulk. So that nobody starves, whatever the other lanes hold:
//! 1. before a waiting normal message at most [`CONTROL_RUN`] control messages are taken, and one bulk message;
//! 2. before a waiting bulk message at most [`CONTROL_RUN`] control and [`NORMAL_RUN`] normal messages.
//!
//! A message waits from when it is the first of its lane. What is taken with [`LaneReceiver::try_pop_control`] was
//! asked for by its lane; it counts, but nothing else can go before it.

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
/// Normal messages that are taken before a waiting bulk message.
pub const NORMAL_RUN: u32 = 15;
/// Control messages that are taken before a waiting message of any other lane.
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
    /// The number of messages from which on the next one carries its time.
    stamp_from: [u64; LANES],
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
            stamp_from: [0; LANES],
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
        if self.is_stamp_due(at) {
            return self.push_stamped(at, kind, flags, payload);
        }
        let outcome = self.lanes[at].try_push_with(kind, flags, None, payload);
        self.count(at, payload.len(), &outcome);
        outcome
    }

    /// Writes as many of these messages as fit, in their order, and says how many. If not all do, that counts as one
    /// try that found no room. A message that needs a block ends the batch before it.
    pub fn try_push_batch(
        &mut self,
        lane: Lane,
        kind: u8,
        payloads: &[impl AsRef<[u8]>],
    ) -> Result<usize, PushError> {
        let at = lane as usize;
        let long = payloads.iter().position(|payload| payload.as_ref().len() > INLINE_MAX);
        if long == Some(0) {
            return Err(PushError::TooLong { bytes: payloads[0].as_ref().len(), max: INLINE_MAX });
        }
        let payloads = &payloads[..long.unwrap_or(payloads.len())];
        let stamped = self.is_stamp_due(at) && !payloads.is_empty();
        if stamped {
            match self.push_stamped(at, kind, 0, payloads[0].as_ref()) {
                Ok(()) => {}
                Err(PushError::Full) => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let rest = &payloads[usize::from(stamped)..];
        let pushed = self.lanes[at].try_push_batch(kind, rest.iter().map(AsRef::as_ref))?;
        let count = &mut self.counts[at];
        count.messages += pushed as u64;
        count.bytes += rest[..pushed].iter().map(|payload| payload.as_ref().len() as u64).sum::<u64>();
        let is_full = pushed < rest.len();
        count.dropped.full += u64::from(is_full);
        if stamped || is_full {
            self.publish_lane(at);
        }
        Ok(usize::from(stamped) + pushed)
    }

    #[inline]
    fn is_stamp_due(&self, at: usize) -> bool {
        self.counts[at].messages >= self.stamp_from[at]
    }

    /// Every [`STAMP_EVERY`]th message: it carries its time, the depth is looked at, the numbers are published.
    fn push_stamped(&mut self, at: usize, kind: u8, flags: u8, payload: &[u8]) -> Result<(), PushError> {
        let outcome = self.lanes[at].try_push_with(kind, flags, Some(clock::now().0), payload);
        self.count(at, payload.len(), &outcome);
        if outcome.is_ok() {
            // The message itself is counted already.
            self.stamp_from[at] = self.counts[at].messages + STAMP_EVERY - 1;
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
    passed: Passed,
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
            passed: Passed::default(),
            counts: [LaneCount::default(); LANES],
            meter,
            unpublished: false,
        }
    }

    /// Takes the next message in order of service and says from which lane. `None` when every lane is empty.
    #[inline]
    pub fn try_pop(&mut self, message: &mut Message) -> Result<Option<Lane>, Corrupt> {
        for at in self.passed.order() {
            if self.lanes[at].try_pop(message)? {
                self.passed.took(at);
                self.count(at, message);
                return Ok(Some(Lane::ALL[at]));
            }
        }
        self.passed = Passed::default();
        if self.unpublished {
            self.publish();
        }
        Ok(None)
    }

    /// Takes the next control message only.
    pub fn try_pop_control(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        let taken = self.lanes[0].try_pop(message)?;
        if taken {
            self.passed.took(0);
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

    /// A message that was taken is not handled, and why.
    #[cold]
    pub fn count_unhandled(&mut self, lane: Lane, why: DropReason) {
        let count = &mut self.counts[lane as usize];
        count.messages -= 1;
        count.dropped.count(why, 1);
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

/// What went before the lower lanes since they were last served, or since nothing was left.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    /// Control messages since the last normal one.
    control_by_normal: u32,
    /// Control and normal messages since the last bulk one.
    control_by_bulk: u32,
    normal_by_bulk: u32,
}

impl Passed {
    /// In which order the lanes are looked at: who has waited long enough goes first.
    #[inline]
    fn order(self) -> [usize; LANES] {
        // By normal's debt, then bulk's for control messages, then bulk's for normal ones. Where normal and bulk are
        // both due, bulk goes first only after a full run of normal ones: else a normal message could wait for two.
        // Normal due and bulk only for normal ones is not possible: those 63 control messages passed both.
        const ORDERS: [[usize; LANES]; 8] =
            [[0, 1, 2], [1, 0, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1], [2, 1, 0], [2, 0, 1], [2, 1, 0]];
        ORDERS[usize::from(self.control_by_normal >= CONTROL_RUN)
            + 2 * usize::from(self.control_by_bulk >= CONTROL_RUN)
            + 4 * usize::from(self.normal_by_bulk >= NORMAL_RUN)]
    }

    #[inline]
    fn took(&mut self, lane: usize) {
        match lane {
            0 => {
                self.control_by_normal = self.control_by_normal.saturating_add(1);
                self.control_by_bulk = self.control_by_bulk.saturating_add(1);
            }
            1 => {
                self.control_by_normal = 0;
                self.normal_by_bulk = self.normal_by_bulk.saturating_add(1);
            }
            _ => (self.control_by_bulk, self.normal_by_bulk) = (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

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
    fn a_batch_is_what_its_messages_are() {
        let (mut sender, mut receiver) = channel(65_536);
        let payloads: Vec<Vec<u8>> = (0..600u32).map(|n| n.to_le_bytes().repeat(n as usize % 16)).collect();
        let mut message = Message::default();
        let (mut sent, mut received, mut stamps) = (0, 0, 0);
        while received < payloads.len() {
            let size = [1, 5, 40, 64, 200][sent % 5].min(payloads.len() - sent);
            sent += sender.try_push_batch(Lane::Normal, 7, &payloads[sent..sent + size]).expect("sound");
            for _ in 0..sent % 90 {
                if receiver.try_pop(&mut message).expect("sound") != Some(Lane::Normal) {
                    break;
                }
                assert_eq!((message.kind, message.payload()), (7, &payloads[received][..]));
                stamps += u64::from(message.stamp_ns.is_some());
                received += 1;
            }
        }
        let bytes = payloads.iter().map(|payload| payload.len() as u64).sum();
        let (out, inbox) = (sender.counts()[1], receiver.counts()[1]);
        assert_eq!((out.messages, out.bytes), (600, bytes));
        assert_eq!((inbox.messages, inbox.bytes), (600, bytes));
        assert!(stamps > 3 && stamps <= 600_u64.div_ceil(STAMP_EVERY), "{stamps} with their time");
        assert_eq!(receiver.latencies()[1].count(), stamps);

        assert_eq!(receiver.try_pop(&mut message), Ok(None));
        // Full is an answer, counted once; what needs a block is not taken.
        let small = [[7u8; 56]; 700];
        let fits = sender.try_push_batch(Lane::Normal, 7, &small).expect("sound");
        assert!((500..600).contains(&fits), "{fits}");
        assert_eq!(sender.counts()[1].dropped.full, out.dropped.full + 1);
        assert_eq!(sender.try_push_batch(Lane::Normal, 7, &small), Ok(0));
        assert_eq!(sender.counts()[1].messages, 600 + fits as u64);
        assert_eq!(sender.counts()[1].high_water, sender.depths()[1], "seen after the batch");
        let long = [vec![1; 20], vec![2; INLINE_MAX + 1], vec![3; 20]];
        assert_eq!(sender.try_push_batch(Lane::Bulk, 7, &long), Ok(1));
        assert_eq!(
            sender.try_push_batch(Lane::Bulk, 7, &long[1..]),
            Err(PushError::TooLong { bytes: INLINE_MAX + 1, max: INLINE_MAX })
        );
        assert_eq!(sender.try_push_batch(Lane::Bulk, 7, &long[..0]), Ok(0));
        assert_eq!(sender.counts()[2].dropped, Default::default());
    }

    /// Three plain queues beside a channel: order within a lane, and how long the first of each lane has waited.
    struct Model {
        sender: LaneSender,
        receiver: LaneReceiver,
        queues: [VecDeque<u64>; LANES],
        /// By whom the first of each lane was passed.
        passed: [[u32; LANES]; LANES],
        /// The most that was ever seen there.
        most: [[u32; LANES]; LANES],
        next: u64,
        message: Message,
    }

    impl Model {
        fn new(bytes: usize) -> Self {
            let (sender, receiver) = channel(bytes);
            let (passed, most) = ([[0; LANES]; LANES], [[0; LANES]; LANES]);
            let (queues, message) = (Default::default(), Message::default());
            Self { sender, receiver, queues, passed, most, next: 0, message }
        }

        /// Up to so many messages more; a full lane takes no more.
        fn push(&mut self, lane: Lane, messages: usize) {
            for _ in 0..messages {
                if self.sender.try_push(lane, lane as u8, &self.next.to_le_bytes()).is_err() {
                    return;
                }
                self.queues[lane as usize].push_back(self.next);
                self.next += 1;
            }
        }

        /// Takes one message, as the queues have it. `None` when they are all empty.
        fn pop(&mut self) -> Option<usize> {
            let Some(lane) = self.receiver.try_pop(&mut self.message).expect("sound") else {
                assert!(self.queues.iter().all(VecDeque::is_empty), "{:?}", self.queues);
                return None;
            };
            let at = lane as usize;
            let number = self.queues[at].pop_front().expect("something was sent");
            assert_eq!(self.message.payload(), number.to_le_bytes(), "lane {}", lane.name());
            self.passed[at] = [0; LANES];
            for other in (0..LANES).filter(|other| *other != at) {
                if !self.queues[other].is_empty() {
                    self.passed[other][at] += 1;
                    self.most[other][at] = self.most[other][at].max(self.passed[other][at]);
                }
            }
            let (normal, bulk) = (self.most[1], self.most[2]);
            assert!(normal[0] <= CONTROL_RUN && normal[2] <= 1, "normal waited: {normal:?}");
            assert!(bulk[0] <= CONTROL_RUN && bulk[1] <= NORMAL_RUN, "bulk waited: {bulk:?}");
            Some(at)
        }
    }

    #[test]
    fn nobody_starves_while_every_lane_is_full() {
        let mut model = Model::new(65_536);
        let mut taken = [0u32; LANES];
        for _ in 0..10_000 {
            Lane::ALL.into_iter().for_each(|lane| model.push(lane, usize::MAX));
            taken[model.pop().expect("full")] += 1;
        }
        assert_eq!(model.most, [[0, 1, 1], [CONTROL_RUN, 0, 1], [CONTROL_RUN, 1, 0]]);
        let rounds = 10_000 / (CONTROL_RUN + 2);
        assert!(taken[1].abs_diff(rounds) <= 1 && taken[2].abs_diff(rounds) <= 1, "{taken:?}");
        // Without control messages the other two share.
        let mut model = Model::new(65_536);
        for _ in 0..1_000 {
            [Lane::Normal, Lane::Bulk].into_iter().for_each(|lane| model.push(lane, usize::MAX));
            model.pop().expect("full");
        }
        assert_eq!(model.most, [[0; LANES], [0, 0, 1], [0, NORMAL_RUN, 0]]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 300 }, ..ProptestConfig::default() })]

        /// Whatever comes when: each lane in its order, nothing lost, and nobody waits longer than is said.
        #[test]
        fn lanes_are_three_queues_and_their_bounds_hold(
            steps in proptest::collection::vec(([0usize..70, 0usize..40, 0usize..20], 0usize..100), 0..60),
        ) {
            let mut model = Model::new(65_536);
            for (messages, pops) in steps {
                for (lane, messages) in Lane::ALL.into_iter().zip(messages) {
                    // Mostly a few, now and then more than fit.
                    model.push(lane, if messages % 7 == 0 { 10 * messages } else { messages });
                }
                for _ in 0..pops {
                    model.pop();
                }
            }
            while model.pop().is_some() {}
        }
    }
}
