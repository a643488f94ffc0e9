//! What each end of a channel counts, in words that its owner writes and the supervisor reads.
//!
//! ```text
//!  sending end, 16 words a lane     receiving end, 128 words a lane
//!    0 messages                       0 messages
//!    1 bytes                          1 bytes
//!    2 slots                          2 unused
//!    3 found no room                  4 overwritten before it was read
//!    4 unused                         7 expired before it was read
//!    5 dropped, newest first         16 latency histogram, 104 buckets
//!    6 dropped at the deadline
//!    8 dropped, receiver gone         10 a reply for which nobody waited any more
//!    9 high-water mark, slots         11 not kept while a reply was waited for
//! ```
//! The ends count in their own memory and publish now and then (with every stamped message, when there is
//! nothing to do, before a sleep), so that counting costs a message nothing. Whoever reads these words reads a
//! stranger's input: they are shown, never believed.
//!
//! The numbers of both ends belong together: **sent = received + overwritten + expired + late + unkept + gone + on its
//! way.** What found no room, what was left out and what came to its deadline before there was room, was never sent.
//!
//! Latency comes from the time that every [`STAMP_EVERY`]th message of a lane carries. Buckets are a quarter of an
//! octave wide, from 64 ns to 4 s: a percentile is right within an eighth.

use crate::base::sync::Ordering;
use crate::shm::Words;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Lanes of a channel.
pub const LANES: usize = 3;
/// One in so many messages of a lane carries its time; of a batch at most the first.
pub const STAMP_EVERY: u64 = 16;
/// Words of the sending end of a channel.
pub const SENDER_WORDS: usize = LANES * SENDER_LANE;
/// Words of the receiving end of a channel.
pub const RECEIVER_WORDS: usize = LANES * RECEIVER_LANE;

/// Words of a lane at either end, histogram apart.
const LANE_WORDS: usize = 12;
const SENDER_LANE: usize = 16;
const RECEIVER_LANE: usize = 128;
const FIRST_BUCKET: usize = 16;
const BUCKETS: usize = 104;
/// The first bucket ends above this power of two of nanoseconds.
const FIRST_OCTAVE: u32 = 6;

/// Numbers of one lane, as seen from one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCount {
    /// Messages sent, or received and handled.
    pub messages: u64,
    /// Their payload, bytes, blocks of an arena included.
    pub bytes: u64,
    /// Slots they took.
    pub slots: u64,
    /// What did not arrive.
    pub dropped: Drops,
    /// Most slots seen waiting at once; looked at with every stamped message and before a sleep.
    pub high_water: u64,
}

/// Why a message was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// To make room for newer ones.
    Oldest,
    /// There was no room for it.
    Newest,
    /// There was no room for it until its deadline.
    Deadline,
    /// The receiver is gone.
    Gone,
    /// It was read only after its deadline.
    Expired,
    /// It answers a request for whose answer nobody waits any more.
    Late,
    /// More came while its receiver waited for a reply than are kept meanwhile.
    Unkept,
}

/// Messages that did not arrive, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Tries that found no room; the sender was told, and gave up or tried again.
    pub full: u64,
    /// Overwritten by newer ones before they were read.
    pub oldest: u64,
    /// Left out in favour of older ones.
    pub newest: u64,
    /// No room before the sender's deadline.
    pub deadline: u64,
    /// Read only after their deadline, and therefore not handled.
    pub expired: u64,
    /// The receiver was gone.
    pub gone: u64,
    /// Replies for which nobody waited any more when they came.
    #[serde(default)]
    pub late: u64,
    /// More than are kept while a reply is waited for.
    #[serde(default)]
    pub unkept: u64,
}

impl Drops {
    /// Counts so many.
    pub fn count(&mut self, why: DropReason, messages: u64) {
        let reason = match why {
            DropReason::Oldest => &mut self.oldest,
            DropReason::Newest => &mut self.newest,
            DropReason::Deadline => &mut self.deadline,
            DropReason::Gone => &mut self.gone,
            DropReason::Expired => &mut self.expired,
            DropReason::Late => &mut self.late,
            DropReason::Unkept => &mut self.unkept,
        };
        *reason = reason.saturating_add(messages);
    }

    /// The reasons in words, with their numbers.
    pub fn by_reason(&self) -> [(&'static str, u64); 8] {
        [
            ("found no room", self.full),
            ("overwritten by newer ones", self.oldest),
            ("left out in favour of older ones", self.newest),
            ("no room before their deadline", self.deadline),
            ("expired on their way", self.expired),
            ("late replies", self.late),
            ("not kept while a reply was waited for", self.unkept),
            ("receiver gone", self.gone),
        ]
    }

    /// Every message that was given up; a try that found no room is not one.
    pub fn total(&self) -> u64 {
        // May be a stranger's numbers.
        self.newest.saturating_add(self.deadline).saturating_add(self.after_sending())
    }

    /// Those that had been sent.
    pub fn after_sending(&self) -> u64 {
        let Drops { full: _, oldest, newest: _, deadline: _, expired, gone, late, unkept } = *self;
        [oldest, expired, gone, late, unkept].into_iter().fold(0, u64::saturating_add)
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.full, other.full),
            (&mut self.oldest, other.oldest),
            (&mut self.newest, other.newest),
            (&mut self.deadline, other.deadline),
            (&mut self.expired, other.expired),
            (&mut self.gone, other.gone),
            (&mut self.late, other.late),
            (&mut self.unkept, other.unkept),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }
}

impl LaneCount {
    fn words(&self) -> [u64; LANE_WORDS] {
        let LaneCount { messages, bytes, slots, dropped, high_water } = *self;
        let Drops { full, oldest, newest, deadline, expired, gone, late, unkept } = dropped;
        [messages, bytes, slots, full, oldest, newest, deadline, expired, gone, high_water, late, unkept]
    }

    fn from_words(words: [u64; LANE_WORDS]) -> Self {
        let [messages, bytes, slots, full, oldest, newest, deadline, expired, gone, high_water, late, unkept] =
            words;
        let dropped = Drops { full, oldest, newest, deadline, expired, gone, late, unkept };
        Self { messages, bytes, slots, dropped, high_water }
    }

    /// Adds another's numbers; the high-water mark is the higher one.
    pub fn add(&mut self, other: &Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.slots = self.slots.saturating_add(other.slots);
        self.dropped.add(&other.dropped);
        self.high_water = self.high_water.max(other.high_water);
    }
}

/// Times from sending to receiving, ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies([u64; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

fn bucket(ns: u64) -> usize {
    let octave = ns.max(1).ilog2();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    // The two bits below the leading one: a quarter of the octave.
    let quarter = (ns >> (octave - 2)) & 3;
    (((octave - FIRST_OCTAVE) * 4) as usize + quarter as usize).min(BUCKETS - 1)
}

/// Where a bucket ends and the next begins, ns. The last one has no end.
fn end(bucket: usize) -> f64 {
    let low = (1u64 << (bucket / 4 + FIRST_OCTAVE as usize)) as f64;
    if bucket + 1 == BUCKETS { f64::INFINITY } else { low * (1.0 + (bucket % 4 + 1) as f64 / 4.0) }
}

/// The middle of a bucket, ns.
fn middle(bucket: usize) -> f64 {
    let low = (1u64 << (bucket / 4 + FIRST_OCTAVE as usize)) as f64;
    let quarter = (bucket % 4) as f64;
    low * (1.0 + (quarter + 0.5) / 4.0)
}

impl Latencies {
    /// Counts one.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0[bucket(ns)] += 1;
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// The histogram: where each bucket ends, ns, and how many are in it, shortest first; empty ones left out. Each begins
    /// where the one before ends, the first at 0. The last has no end.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.0.iter().enumerate().filter(|(_, count)| **count > 0).map(|(at, count)| (end(at), *count))
    }

    /// The time that `share` of them stayed below, ns; `None` while there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total = self.count();
        let mut left = (share * total.saturating_sub(1) as f64).round() as u64;
        for (at, &count) in self.0.iter().enumerate() {
            if left < count {
                return Some(middle(at));
            }
            left -= count;
        }
        None
    }

    /// Mean, ns; `None` while there are none.
    pub fn mean(&self) -> Option<f64> {
        let total = self.count();
        let sum: f64 = self.0.iter().enumerate().map(|(at, &count)| middle(at) * count as f64).sum();
        (total > 0).then(|| sum / total as f64)
    }
}

/// Where one end publishes what it counts.
#[derive(Clone, Debug)]
pub struct Meter {
    words: Arc<Words>,
    first: usize,
    lane_words: usize,
}

impl Meter {
    /// A sending end's, in [`SENDER_WORDS`] words from `first`.
    pub fn sender(words: Arc<Words>, first: usize) -> Self {
        assert!(first + SENDER_WORDS <= words.len(), "meters outside the mapping");
        Self { words, first, lane_words: SENDER_LANE }
    }

    /// A receiving end's, in [`RECEIVER_WORDS`] words from `first`.
    pub fn receiver(words: Arc<Words>, first: usize) -> Self {
        assert!(first + RECEIVER_WORDS <= words.len(), "meters outside the mapping");
        Self { words, first, lane_words: RECEIVER_LANE }
    }

    /// A sending end's, for an end that nobody else looks at.
    pub fn private_sender() -> Self {
        Self::sender(Words::private(SENDER_WORDS), 0)
    }

    /// A receiving end's, for an end that nobody else looks at.
    pub fn private_receiver() -> Self {
        Self::receiver(Words::private(RECEIVER_WORDS), 0)
    }

    fn at(&self, lane: usize) -> usize {
        self.first + lane * self.lane_words
    }

    /// Publishes a lane's numbers.
    pub fn publish(&self, lane: usize, count: &LaneCount) {
        let at = self.at(lane);
        for (i, value) in count.words().into_iter().enumerate() {
            self.words.word(at + i).store(value, Ordering::Relaxed);
        }
    }

    /// Publishes how much was sent or received of a lane, and nothing else: two stores.
    #[inline]
    pub fn show(&self, lane: usize, messages: u64, bytes: u64) {
        let at = self.at(lane);
        self.words.word(at).store(messages, Ordering::Relaxed);
        self.words.word(at + 1).store(bytes, Ordering::Relaxed);
    }

    /// Counts one latency; the owner of a receiving end only.
    pub fn record_latency(&self, lane: usize, ns: u64) {
        let word = self.words.word(self.at(lane) + FIRST_BUCKET + bucket(ns));
        word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// A lane's numbers as last published.
    pub fn read(&self, lane: usize) -> LaneCount {
        let at = self.at(lane);
        LaneCount::from_words(std::array::from_fn(|i| self.words.word(at + i).load(Ordering::Relaxed)))
    }

    /// A lane's latencies; empty for a sending end.
    pub fn latencies(&self, lane: usize) -> Latencies {
        if self.lane_words != RECEIVER_LANE {
            return Latencies::default();
        }
        let at = self.at(lane) + FIRST_BUCKET;
        Latencies(std::array::from_fn(|i| self.words.word(at + i).load(Ordering::Relaxed)))
    }
}

const _: () = assert!(FIRST_BUCKET + BUCKETS <= RECEIVER_LANE);
const _: () = assert!(LANE_WORDS <= SENDER_LANE && LANE_WORDS <= FIRST_BUCKET);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_contain_their_middle() {
        let mut last = 0;
        for ns in (0..40).flat_map(|octave| (0..4).map(move |q| (1u64 << octave) + q * ((1 << octave) / 4))) {
            let at = bucket(ns);
            assert!(at >= last || ns < 64, "{ns}");
            last = at.max(last);
        }
        for at in 0..BUCKETS {
            assert_eq!(bucket(middle(at) as u64), at);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for at in 0..BUCKETS - 1 {
            assert_eq!((bucket(end(at) as u64 - 1), bucket(end(at) as u64)), (at, at + 1));
        }
        let mut latencies = Latencies::default();
        [70, 1000, 1001, u64::MAX].into_iter().for_each(|ns| latencies.record(ns));
        let found: Vec<_> = latencies.buckets().collect();
        assert_eq!(found, [(80.0, 1), (1024.0, 2), (f64::INFINITY, 1)]);
    }

    #[test]
    fn quantiles_are_right_within_a_tenth() {
        let mut latencies = Latencies::default();
        for ns in 100..=10_000 {
            latencies.record(ns);
        }
        for (share, truth) in [(0.01, 199.0), (0.5, 5050.0), (0.99, 9901.0)] {
            let found = latencies.quantile(share).expect("not empty");
            assert!((found / truth - 1.0).abs() < 0.13, "{share}: {found} for {truth}");
        }
        assert_eq!(Latencies::default().quantile(0.5), None);
    }

    #[test]
    fn what_an_end_publishes_is_what_is_read() {
        let words = Words::private(SENDER_WORDS + RECEIVER_WORDS);
        let (sender, receiver) = (Meter::sender(words.clone(), 0), Meter::receiver(words, SENDER_WORDS));
        let count = LaneCount { messages: 3, bytes: 99, high_water: 7, ..LaneCount::default() };
        sender.publish(2, &count);
        receiver.record_latency(1, 1000);
        assert_eq!(sender.read(2), count);
        assert_eq!(sender.read(1), LaneCount::default());
        assert_eq!(receiver.latencies(1).count(), 1);
        assert_eq!(receiver.latencies(2).count() + sender.latencies(0).count(), 0);
    }
}
