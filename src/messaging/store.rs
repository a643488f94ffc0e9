//! Payloads that do not fit into slots: blocks in arenas, on their way out and in.
//!
//! ```text
//!  sender                                            receiver
//!  Store::put: loan, write, publish ─► slots carry the descriptor ─► Shelf::open: check, read
//!  Store::on_release ◄─ control lane carries block and generation ◄─ Returns: read, give back
//! ```
//! A process has one [`Store`], shared by all its channels and mapped at first use; for each peer whose blocks it
//! reads it has a [`Shelf`].

use super::lanes::{Lane, LaneSender};
use crate::base::sync::Ordering;
use crate::shm::arena::{
    Arena, ArenaError, ArenaUsage, ArenaView, BadDescriptor, BadRelease, Block, Descriptor,
};
use crate::shm::ring::{Message, PushError};
use crate::shm::{SharedObject, Words};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Kind of the message that gives blocks back; the same in every vocabulary.
pub const RELEASE: u8 = 255;
/// Bytes of one block in such a message.
const RELEASE_BYTES: usize = 8;
/// Blocks in one such message: as many as fit into a slot.
const RELEASE_BATCH: usize = 6;
/// Longest payload that is copied out of a block into the receiver's memory.
pub const COPIED_MAX: u64 = 64 << 20;

/// Why a block could not be put out or got in.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The arena has no room, or the block is larger than it can ever hold.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The arena cannot be mapped.
    #[error("cannot map the arena: {0}")]
    Map(#[from] io::Error),
}

#[derive(Debug)]
enum Owned {
    /// Not used yet: costs a descriptor and no memory.
    Object(SharedObject),
    Arena(Box<Arena>),
    /// Nothing was handed over, or it could not be mapped.
    None,
}

/// The blocks of this process. Clones are handles to the same one; the lock is taken for large payloads only.
#[derive(Clone, Debug)]
pub struct Store {
    owned: Arc<Mutex<Owned>>,
    owner: u64,
    /// Where others may look how full it is: words, and the first of them.
    shown: Option<(Arc<Words>, usize)>,
}

impl Store {
    /// Over an object that nobody writes yet; `owner` names this life of this process in every block.
    pub fn new(object: SharedObject, owner: u64) -> Self {
        Self { owned: Arc::new(Mutex::new(Owned::Object(object))), owner, shown: None }
    }

    /// The same, showing its numbers in `words` from `first` on whenever they change.
    pub fn shown_in(mut self, words: Arc<Words>, first: usize) -> Self {
        self.shown = Some((words, first));
        self
    }

    fn show(&self, arena: &Arena) {
        if let Some((words, first)) = &self.shown {
            write_usage(words, *first, &arena.usage());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Owned> {
        // A panic between two words of private state is not possible: every change is one call.
        self.owned.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Maps the arena and seals it: from now on nobody else can come to write it. Takes no memory yet.
    pub fn claim(&self) -> io::Result<()> {
        self.with(|_| Ok(())).map_err(|error| match error {
            StoreError::Map(error) => error,
            StoreError::Arena(error) => io::Error::other(error),
        })
    }

    /// Does something with the arena, mapping it first.
    pub fn with<T>(&self, act: impl FnOnce(&mut Arena) -> Result<T, ArenaError>) -> Result<T, StoreError> {
        let mut owned = self.lock();
        if let Owned::Object(_) = &*owned
            && let Owned::Object(object) = std::mem::replace(&mut *owned, Owned::None)
        {
            *owned = Owned::Arena(Box::new(Arena::adopt(object, self.owner)?));
        }
        match &mut *owned {
            Owned::Arena(arena) => {
                let outcome = act(arena);
                self.show(arena);
                Ok(outcome?)
            }
            _ => Err(StoreError::Map(io::Error::other("it could not be mapped before"))),
        }
    }

    /// Writes `bytes` into a fresh block for these readers.
    pub fn put(&self, bytes: &[u8], readers: &[u16]) -> Result<Descriptor, StoreError> {
        self.with(|arena| {
            let mut loan = arena.loan(bytes.len())?;
            arena.fill(&mut loan, bytes);
            Ok(arena.publish(loan, readers))
        })
    }

    /// The message to `reader` was not sent after all.
    pub fn withdraw(&self, descriptor: &Descriptor, reader: u16) {
        if let Owned::Arena(arena) = &mut *self.lock() {
            arena.withdraw(descriptor, reader);
            self.show(arena);
        }
    }

    /// This end no longer needs the block that it kept for itself.
    pub fn retire(&self, descriptor: &Descriptor) {
        if let Owned::Arena(arena) = &mut *self.lock() {
            arena.retire(descriptor);
            self.show(arena);
        }
    }

    /// Takes blocks back from `reader`, who says so in a [`RELEASE`] message.
    pub fn on_release(&self, reader: u16, payload: &[u8]) -> Result<(), BadRelease> {
        let Owned::Arena(arena) = &mut *self.lock() else { return Ok(()) };
        for entry in payload.chunks_exact(RELEASE_BYTES) {
            let word =
                |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
            arena.release(reader, word(0), word(4))?;
        }
        self.show(arena);
        Ok(())
    }

    /// `reader` is gone: what only it still had is free again. Returns how many blocks.
    pub fn reclaim(&self, reader: u16) -> usize {
        match &mut *self.lock() {
            Owned::Arena(arena) => {
                let blocks = arena.reclaim_reader(reader);
                self.show(arena);
                blocks
            }
            _ => 0,
        }
    }

    /// Whether half of the arena is still free when `bytes` more are out.
    pub fn has_half_left(&self, bytes: usize) -> bool {
        match &*self.lock() {
            Owned::Arena(arena) => arena.usage().in_use.saturating_add(bytes) <= arena.usage().limit / 2,
            _ => false,
        }
    }

    /// How full it is; `None` while nothing was ever put in.
    pub fn usage(&self) -> Option<ArenaUsage> {
        match &*self.lock() {
            Owned::Arena(arena) => Some(arena.usage()).filter(|usage| usage.committed > 0),
            _ => None,
        }
    }
}

/// Writes an arena's numbers where others may look, from word `first`.
fn write_usage(words: &Words, first: usize, usage: &ArenaUsage) {
    let numbers = [
        usage.limit as u64,
        usage.committed as u64,
        usage.in_use as u64,
        usage.blocks_out as u64,
        usage.high_water as u64,
        usage.full_answers,
        usage.reclaimed,
    ];
    for (at, number) in numbers.into_iter().enumerate() {
        words.word(first + at).store(number, Ordering::Relaxed);
    }
}

/// An arena's numbers as its owner last wrote them; `None` while it has no arena.
pub fn read_usage(words: &Words, first: usize) -> Option<ArenaUsage> {
    let number = |at: usize| words.word(first + at).load(Ordering::Relaxed);
    let size = |at: usize| usize::try_from(number(at)).unwrap_or(usize::MAX);
    (number(0) != 0).then(|| ArenaUsage {
        limit: size(0),
        committed: size(1),
        in_use: size(2),
        blocks_out: size(3),
        loaned: 0,
        high_water: size(4),
        full_answers: number(5),
        reclaimed: number(6),
    })
}

/// Blocks that were read and are on their way back to their owner.
#[derive(Debug, Default)]
pub struct Returns {
    waiting: Vec<(u32, u32)>,
}

impl Returns {
    /// This block was read.
    pub fn add(&mut self, descriptor: &Descriptor) {
        self.waiting.push((descriptor.block, descriptor.generation));
    }

    /// Sends what waits, as far as there is room; the rest goes with the next call.
    pub fn flush(&mut self, outbox: &mut LaneSender) -> Result<(), PushError> {
        while !self.waiting.is_empty() {
            let batch = self.waiting.len().min(RELEASE_BATCH);
            let mut payload = [0u8; RELEASE_BATCH * RELEASE_BYTES];
            for (entry, (block, generation)) in payload.chunks_exact_mut(RELEASE_BYTES).zip(&self.waiting) {
                entry[..4].copy_from_slice(&block.to_le_bytes());
                entry[4..].copy_from_slice(&generation.to_le_bytes());
            }
            match outbox.try_push(Lane::Control, RELEASE, &payload[..batch * RELEASE_BYTES]) {
                Ok(()) => drop(self.waiting.drain(..batch)),
                Err(PushError::Full) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether anything waits for room.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[derive(Debug)]
enum Seen {
    Object(SharedObject),
    View(Box<ArenaView>),
    None,
}

/// The blocks of one peer, as we read them; mapped at first use.
#[derive(Debug)]
pub struct Shelf(Seen);

/// A descriptor that leads nowhere: the peer writes nonsense.
#[derive(Debug, thiserror::Error)]
pub enum BadBlock {
    /// It leads outside the arena, to a hole, or to another block.
    #[error(transparent)]
    Descriptor(#[from] BadDescriptor),
    /// The message is too short for one.
    #[error("a message of {0} bytes carries no descriptor")]
    Short(usize),
    /// More than would ever be copied.
    #[error("a block of {0} bytes where at most {COPIED_MAX} are copied")]
    Long(u64),
    /// The arena cannot be mapped.
    #[error("cannot map the peer's arena: {0}")]
    Map(#[from] io::Error),
}

impl Shelf {
    /// Over the peer's object.
    pub fn new(object: SharedObject) -> Self {
        Self(Seen::Object(object))
    }

    /// The block that the last bytes of `payload` describe, and how many bytes stand before them.
    pub fn open(&mut self, payload: &[u8]) -> Result<(Block, usize), BadBlock> {
        let (before, descriptor) =
            payload.split_last_chunk::<{ Descriptor::BYTES }>().ok_or(BadBlock::Short(payload.len()))?;
        if let Seen::Object(_) = &self.0
            && let Seen::Object(object) = std::mem::replace(&mut self.0, Seen::None)
        {
            self.0 = Seen::View(Box::new(ArenaView::new(object)?));
        }
        let Seen::View(view) = &mut self.0 else {
            return Err(BadBlock::Map(io::Error::other("it could not be mapped before")));
        };
        Ok((view.open(&Descriptor::from_bytes(descriptor))?, before.len()))
    }

    /// Copies the block that `message` describes into the message itself and marks it as read.
    pub fn fetch(&mut self, message: &mut Message, returns: &mut Returns) -> Result<u64, BadBlock> {
        let (block, _) = self.open(message.payload())?;
        if block.len() as u64 > COPIED_MAX {
            return Err(BadBlock::Long(block.len() as u64));
        }
        message.set_long(|bytes| block.copy_to(bytes));
        returns.add(&block.descriptor());
        Ok(block.len() as u64)
    }
}
