//! Blocks of 1 MiB handed from one process to the other and back, in place; and what filling and reading one costs
//! at home.

use anyhow::{bail, ensure};
use std::hint::black_box;
use std::os::fd::OwnedFd;

use super::peer::Waiter;
use crate::os::clock;
use crate::shm::SharedObject;
use crate::shm::arena::{Arena, ArenaView, Block, Descriptor};
use crate::shm::ring::{Consumer, FLAG_BLOCK, Message, Producer, PushError};

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that are out at once: some are filled while others are read.
pub(super) const IN_FLIGHT: u64 = 4;
const ARENA_BYTES: usize = 8 * BLOCK_BYTES;
/// The taker's number as a reader of the arena.
const READER: u16 = 7;
const KIND: u8 = 2;

/// How a block is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// By plain stores: the lines are dirty in this core's cache when the other one reads them.
    Plain,
    /// By [`Arena::stream`].
    PastCaches,
}

/// The owner's end.
pub(super) struct Giver {
    arena: Arena,
    out: Producer,
    back: Consumer,
    message: Message,
}

impl Giver {
    pub(super) fn new(out: Producer, back: Consumer) -> anyhow::Result<Self> {
        let mut arena = Arena::create(ARENA_BYTES, 1)?;
        arena.reserve(ARENA_BYTES)?;
        Ok(Self { arena, out, back, message: Message::default() })
    }

    pub(super) fn object(&self) -> &SharedObject {
        self.arena.object()
    }

    /// Fills and hands over `count` blocks, all of which the taker reads; ns from the first fill to the last release.
    /// Which way to fill is the faster one depends on whether the cores share a cache.
    pub(super) fn give(&mut self, fills: Fill, count: u64, waiter: Waiter<'_>) -> anyhow::Result<f64> {
        let began = clock::now();
        for number in 0..count {
            if number >= IN_FLIGHT {
                self.take_back(waiter)?;
            }
            let mut loan = self.arena.loan(BLOCK_BYTES)?;
            match fills {
                Fill::Plain => fill(self.arena.bytes_mut(&mut loan), number),
                Fill::PastCaches => self.arena.stream(&mut loan, |line| {
                    std::array::from_fn(|at| number.wrapping_add((line * 8 + at) as u64))
                }),
            }
            let descriptor = self.arena.publish(loan, &[READER]);
            push(&mut self.out, &descriptor, number, waiter)?;
        }
        for _ in 0..count.min(IN_FLIGHT) {
            self.take_back(waiter)?;
        }
        Ok((clock::now().0 - began.0) as f64)
    }

    /// Hands over `count` blocks one at a time without touching them. Each in ns: from before the loan until the taker
    /// has opened it, and the release. What looking at the clock costs is in it twice.
    pub(super) fn pass(&mut self, count: u64, waiter: Waiter<'_>) -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count as usize);
        for number in 0..count {
            let began = clock::now();
            let loan = self.arena.loan(BLOCK_BYTES)?;
            let descriptor = self.arena.publish(loan, &[READER]);
            push(&mut self.out, &descriptor, number, waiter)?;
            let (descriptor, opened) = self.wait_for_release(waiter)?;
            let back = clock::now();
            self.arena.release(READER, descriptor.block, descriptor.generation)?;
            let over = opened.saturating_sub(began.0) + (clock::now().0 - back.0);
            times.push(over as f64);
        }
        Ok(times)
    }

    /// Fills and reads one block at home; ns of both together.
    pub(super) fn at_home(&mut self, number: u64) -> anyhow::Result<f64> {
        let mut loan = self.arena.loan(BLOCK_BYTES)?;
        let bytes = self.arena.bytes_mut(&mut loan);
        let began = clock::now();
        fill(black_box(&mut *bytes), number);
        let sum = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
        let took = clock::now().0 - began.0;
        ensure!(sum == expected(number), "the block at home is damaged");
        self.arena.abandon(loan);
        Ok(took as f64)
    }

    fn take_back(&mut self, waiter: Waiter<'_>) -> anyhow::Result<()> {
        let (descriptor, _) = self.wait_for_release(waiter)?;
        ensure!(
            self.arena.release(READER, descriptor.block, descriptor.generation)?,
            "the block is not free"
        );
        Ok(())
    }

    fn wait_for_release(&mut self, waiter: Waiter<'_>) -> anyhow::Result<(Descriptor, u64)> {
        let (back, message) = (&mut self.back, &mut self.message);
        waiter.until(|| Ok(back.try_pop(message)?.then_some(())))?;
        parse(message)
    }
}

/// The reader's end.
pub(super) struct Taker {
    view: ArenaView,
    inbox: Consumer,
    back: Producer,
    message: Message,
}

impl Taker {
    pub(super) fn new(arena: OwnedFd, inbox: Consumer, back: Producer) -> anyhow::Result<Self> {
        let view = ArenaView::new(SharedObject::adopt(arena, ARENA_BYTES)?)?;
        Ok(Self { view, inbox, back, message: Message::default() })
    }

    /// Takes `count` blocks and gives each back, read or only opened.
    pub(super) fn take(&mut self, read: bool, count: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
        for due in 0..count {
            let (inbox, message) = (&mut self.inbox, &mut self.message);
            waiter.until(|| Ok(inbox.try_pop(message)?.then_some(())))?;
            let (descriptor, number) = parse(message)?;
            ensure!(number == due, "block {number} where {due} was due");
            let block = self.view.open(&descriptor)?;
            let mut opened = 0;
            if read {
                ensure!(sum(&block) == expected(number), "block {number} arrived damaged");
            } else {
                opened = clock::now().0;
            }
            push(&mut self.back, &descriptor, opened, waiter)?;
        }
        Ok(())
    }
}

/// A descriptor and a number, in the slot.
fn push(out: &mut Producer, descriptor: &Descriptor, number: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
    let mut payload = [0; 8 + Descriptor::BYTES];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload[8..].copy_from_slice(&descriptor.to_bytes());
    waiter.until(|| match out.try_push_with(KIND, FLAG_BLOCK, None, &payload) {
        Ok(()) => Ok(Some(())),
        Err(PushError::Full) => Ok(None),
        Err(error) => Err(error.into()),
    })
}

fn parse(message: &Message) -> anyhow::Result<(Descriptor, u64)> {
    let Some((number, descriptor)) = message.payload().split_first_chunk::<8>() else {
        bail!("a short message")
    };
    let descriptor = Descriptor::from_bytes(descriptor.try_into()?);
    Ok((descriptor, u64::from_le_bytes(*number)))
}

/// Every word another, by plain stores.
fn fill(bytes: &mut [u8], number: u64) {
    for (at, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = number.wrapping_add(at as u64).to_le_bytes();
    }
}

/// Of all words of a block, read in place.
fn sum(block: &Block) -> u64 {
    let mut sums = [0u64; 8];
    block.for_each_line(|line| {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(*word);
        }
    });
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// The sum of block `number`.
fn expected(number: u64) -> u64 {
    let words = BLOCK_BYTES as u64 / 8;
    words.wrapping_mul(number).wrapping_add(words * (words - 1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_block_has_the_sum_that_is_expected() {
        let mut bytes = vec![0; BLOCK_BYTES];
        for number in [0, 5, u64::MAX] {
            fill(&mut bytes, number);
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            assert_eq!(words.fold(0, u64::wrapping_add), expected(number));
        }
    }
}
