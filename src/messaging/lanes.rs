//! Three lanes per direction over one channel segment.
//!
//! ```text
//!  channel_size bytes = slots of 64 bytes:  control 1/16 │ normal 1/2 │ bulk 1/4   (each a power of two)
//! ```
//! Order of service: control first, then normal, then bulk. So that nobody starves, a waiting bulk
//! message is taken after at most [`NORMAL_RUN`] normal ones, and a waiting normal or bulk one after
//! at most [`CONTROL_RUN`] control messages.

use crate::shm::Words;
use crate::shm::pages;
use crate::shm::ring::{
    Consumer, Corrupt, Message, Producer, PushError, RingMemory, SLOT_PAYLOAD, SLOT_WORDS,
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

const LANES: usize = 3;
/// Normal messages in a row while a bulk message waits.
pub const NORMAL_RUN: u32 = 15;
/// Control messages in a row while anything else waits.
pub const CONTROL_RUN: u32 = 63;

/// Slots of each lane in a channel of `bytes` bytes.
fn capacities(bytes: usize) -> [u64; LANES] {
    let slots = bytes as u64 / (SLOT_WORDS as u64 * 8);
    let floor = |n: u64| if n < 2 { 2 } else { 1 << n.ilog2() };
    [floor(slots / 16), floor(slots / 2), floor(slots / 4)]
}

fn rings(slots: &Arc<Words>, heads: &Arc<Words>) -> [RingMemory; LANES] {
    let mut first_word = 0;
    let mut lane = 0;
    capacities(slots.len() * 8).map(|capacity| {
        let ring = RingMemory {
            slots: slots.clone(),
            first_word,
            capacity,
            heads: heads.clone(),
            head_word: pages::lane_head(lane),
        };
        first_word += capacity as usize * SLOT_WORDS;
        lane += 1;
        ring
    })
}

/// What one end of a channel has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Messages per lane.
    pub messages: [u64; LANES],
    /// Payload bytes per lane.
    pub bytes: [u64; LANES],
    /// Messages that found no room, per lane.
    pub full: [u64; LANES],
}

/// The sending end of a channel.
#[derive(Debug)]
pub struct LaneSender {
    lanes: [Producer; LANES],
    counts: LaneCounts,
}

impl LaneSender {
    /// Over fresh memory; `slots` must be writable here.
    pub fn new(slots: &Arc<Words>, heads: &Arc<Words>) -> Self {
        Self { lanes: rings(slots, heads).map(Producer::new), counts: LaneCounts::default() }
    }

    /// Writes one message; the receiver is woken by whoever owns the doorbell, once per turn.
    #[inline]
    pub fn try_push(&mut self, lane: Lane, kind: u8, payload: &[u8]) -> Result<(), PushError> {
        let at = lane as usize;
        let outcome = self.lanes[at].try_push(kind, payload);
        match outcome {
            Ok(()) => {
                self.counts.messages[at] += 1;
                self.counts.bytes[at] += payload.len() as u64;
            }
            Err(PushError::Full) => self.counts.full[at] += 1,
            Err(_) => {}
        }
        outcome
    }

    /// Bytes of payload that fit into a lane right now.
    #[inline]
    pub fn room(&mut self, lane: Lane) -> Result<usize, Corrupt> {
        Ok(self.lanes[lane as usize].free()? as usize * SLOT_PAYLOAD)
    }

    /// Messages sent so far.
    pub fn counts(&self) -> LaneCounts {
        self.counts
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
    counts: LaneCounts,
}

impl LaneReceiver {
    /// Over fresh memory; `heads` must be writable here.
    pub fn new(slots: &Arc<Words>, heads: &Arc<Words>) -> Self {
        Self {
            lanes: rings(slots, heads).map(Consumer::new),
            control_run: 0,
            normal_run: 0,
            counts: LaneCounts::default(),
        }
    }

    /// Takes the next message in order of service. False when every lane is empty.
    #[inline]
    pub fn try_pop(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
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
                self.counts.messages[at] += 1;
                self.counts.bytes[at] += message.payload().len() as u64;
                return Ok(true);
            }
        }
        (self.control_run, self.normal_run) = (0, 0);
        Ok(false)
    }

    /// Takes the next control message only.
    pub fn try_pop_control(&mut self, message: &mut Message) -> Result<bool, Corrupt> {
        let taken = self.lanes[0].try_pop(message)?;
        self.counts.messages[0] += u64::from(taken);
        Ok(taken)
    }

    /// Whether anything waits.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.lanes.iter().any(Consumer::is_ready)
    }

    /// Messages received so far.
    pub fn counts(&self) -> LaneCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(bytes: usize) -> (LaneSender, LaneReceiver) {
        let (slots, heads) = (Words::private(bytes / 8), Words::private(64));
        (LaneSender::new(&slots, &heads), LaneReceiver::new(&slots, &heads))
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
            assert!(receiver.try_pop(&mut message).expect("sound"));
            assert_eq!(message.kind, expected);
        }
        assert_eq!(sender.counts().full, [0, 0, 1]);
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
        while receiver.try_pop(&mut message).expect("sound") && message.kind != 3 {
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
        while receiver.try_pop(&mut message).expect("sound") && message.kind != 2 {
            before += 1;
        }
        assert!(before <= CONTROL_RUN, "{before} control messages went first");
    }
}
