//! Large payloads: written once into memory of their producer, read there by everybody else.
//!
//! ```text
//!  one sparse sealed object per producing process        a message carries a descriptor:
//!  ┌────┬──────┬────────────┬──────┬──────┬ ─ ─ ─ ─ ┐    offset, length, block, generation
//!  │ 64 │header│ data       │header│ data │  a hole    ─►
//!  └────┴──────┴────────────┴──────┴──────┴ ─ ─ ─ ─ ┘    readers map the object read-only, and answer
//!  owner   64 B                            committed      "released" by message
//!  and magic                               on demand
//! ```
//! The owner takes a block ([`Arena::loan`]), fills it, and gives it out ([`Arena::publish`]). Readers open it
//! ([`ArenaView::open`]), read, and send its number and generation back; when the last one has, it is free. All of
//! the allocator (`blocks.rs`) and the list of who has what are private memory of the owner: no shared counter,
//! nothing that a reader could damage, and a dead reader's blocks come back by walking a private table
//! ([`Arena::reclaim_reader`]).
//!
//! Invariants
//! 1. A block is handed out again only when every reader that got it has released it, or is known to be dead. Messages
//!    that say so are a stranger's: a wrong number, an old generation, a second release or one by somebody who does not
//!    hold the block are [`BadRelease`], and nothing is freed by them.
//! 2. A block's header shows its generation exactly while it is out. It is cleared when the block becomes free, before
//!    anything else is written there; a reader that had no claim on the block (a lossy topic) sees that it was
//!    overtaken: [`Block::is_current`].
//! 3. A descriptor is a stranger's too: alignment and range are checked against our own mapping, by comparisons that
//!    cannot wrap; then whether there is memory at all; then the header. Anything else is [`BadDescriptor`].
//! 4. A reader never touches a hole. The kernel says how far the memory reaches ([`ArenaWindow::filled_until`]); that is
//!    remembered, because the seal that keeps out further writers also forbids to punch holes, for good. An honest
//!    owner commits from the front and populates before it hands out.
//! 5. No call waits for anybody. Memory that is not there is an answer: [`ArenaError`].
//!
//! A [`Loan`] that is simply dropped stays loaned, since only the arena could take it back. [`ArenaUsage::loaned`]
//! shows it, and [`Arena::abandon_all`] takes back every loan, for instance after a turn that ended with an error.
//!
//! Every reader of an arena can read all of it: blocks for different readers are separate, not secret from each other.
//! What a header was can be part of a bigger block's data later. A late descriptor of a lossy topic that points there is
//! refused unless those bytes happen to spell block number, generation, owner and length; it never reads outside.

use super::blocks::{self, Blocks, HEADER, LARGEST_ARENA, State};
use super::memory::{self, ArenaMemory, ArenaWindow, PAGE, SharedObject};
use crate::base::crash;
use crate::base::sync::{Ordering, fence};
use std::io;
use std::sync::Arc;

/// First word of every arena: says what this is and how it is laid out.
const MAGIC: u64 = u64::from_le_bytes(*b"swarmar1");
/// Words at the start of the arena.
const ARENA_MAGIC: usize = 0;
const ARENA_OWNER: usize = 1;
/// Words of a block's header: block number and generation, or 0; owner; length.
const CONTROL: usize = 0;
const OWNER: usize = 1;
const LENGTH: usize = 2;
/// Bytes at the start that belong to no block.
const PREFIX: usize = 64;
/// Memory is committed in steps from this size ...
const FIRST_STEP: usize = 1 << 20;
/// ... doubling up to this one. A step takes its time (0.6 ms per MiB where it was measured), and a loan pays for it.
const LAST_STEP: usize = 16 << 20;
/// A reader prefaults what it finds new, at most so much at once.
const PREFAULT: usize = 4 << 20;

/// Where a block's data is: what a message carries in place of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Of the data, in bytes from the start of the arena; a multiple of 64.
    pub offset: u64,
    /// Bytes of data.
    pub len: u64,
    /// Which use of the block this is, never 0.
    pub generation: u32,
    /// Number of the block, for the release.
    pub block: u32,
}

impl Descriptor {
    /// Bytes in a message.
    pub const BYTES: usize = 24;

    /// As it travels, little endian.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.generation.to_le_bytes());
        bytes[20..].copy_from_slice(&self.block.to_le_bytes());
        bytes
    }

    /// From a message. Any bytes will do: what they mean is checked when it is used.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        Self { offset: word(0), len: word(8), generation: half(16), block: half(20) }
    }

    fn control(&self) -> u64 {
        control(self.block, self.generation)
    }
}

/// The first word of a header that is out.
fn control(block: u32, generation: u32) -> u64 {
    u64::from(block) << 32 | u64::from(generation)
}

/// A block that only its owner touches yet. It goes back by [`Arena::publish`] or [`Arena::abandon`]; dropped, it stays
/// taken until [`Arena::abandon_all`].
#[derive(Debug)]
#[must_use = "a loan stays taken until it is published or abandoned"]
pub struct Loan {
    block: u32,
    generation: u32,
    len: usize,
}

impl Loan {
    /// Bytes of data.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a loan of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes only, for who did not know how much it would be.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Why there is no block.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Too much is out.
    #[error("no room for {wanted} bytes: {in_use} of {limit} are in use")]
    Full {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes loaned or out, with headers.
        in_use: usize,
        /// Bytes of the arena.
        limit: usize,
    },
    /// Would not fit if the arena were empty.
    #[error("{wanted} bytes are more than an arena can ever hold whose largest block is {limit}")]
    TooLarge {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes of the largest block there could be.
        limit: usize,
    },
    /// The host has no more memory, or does not give it.
    #[error("cannot commit memory to the arena: {0}")]
    System(#[from] io::Error),
}

/// Why a release was refused. Nothing was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRelease {
    /// There never was such a block.
    #[error("release of block {block}, which does not exist")]
    Unknown {
        /// Its number.
        block: u32,
    },
    /// The block has gone on to another use, or never had that one.
    #[error("release of generation {named} of block {block}, which is at {present}")]
    Generation {
        /// Its number.
        block: u32,
        /// What was said.
        named: u32,
        /// What it is.
        present: u32,
    },
    /// The block is not out.
    #[error("release of block {block}, which is not out")]
    NotOut {
        /// Its number.
        block: u32,
    },
    /// The block is out, but not with this reader, or not any more.
    #[error("release of block {block} by reader {reader}, who does not hold it")]
    NotHeld {
        /// Its number.
        block: u32,
        /// Who said so.
        reader: u16,
    },
}

/// Why a descriptor was refused. Nothing behind it was touched, except its header in the last three cases.
#[derive(Debug, thiserror::Error)]
pub enum BadDescriptor {
    /// Not a multiple of 64, or before the first block.
    #[error("descriptor with offset {offset}, where no block can be")]
    Offset {
        /// What it says.
        offset: u64,
    },
    /// Reaches beyond the end of the mapping.
    #[error("descriptor of {len} bytes at {offset} in an arena of {arena}")]
    Range {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// Bytes of the arena.
        arena: usize,
    },
    /// There is no memory behind it, or not behind all of it.
    #[error("descriptor of {len} bytes at {offset}, where memory ends at {filled}")]
    Hole {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// How far memory reaches.
        filled: usize,
    },
    /// The object does not begin as an arena does.
    #[error("descriptor into an object that is no arena")]
    NotAnArena,
    /// The block is not, or no more, what the descriptor names. Innocent where nobody waits for readers.
    #[error("descriptor of a block that has gone on")]
    Stale,
    /// The header does not say what the descriptor says.
    #[error("descriptor of {len} bytes for a block of {found}, owned by {owner:#x}")]
    Header {
        /// What the descriptor says.
        len: u64,
        /// What the header says.
        found: u64,
        /// Whom the header names.
        owner: u64,
    },
    /// The kernel does not say where the memory ends.
    #[error("cannot ask how far the memory of an arena reaches: {0}")]
    System(#[from] io::Error),
}

/// How full an arena is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaUsage {
    /// Bytes it can grow to.
    pub limit: usize,
    /// Bytes that have memory.
    pub committed: usize,
    /// Bytes loaned or out, with headers and rounding.
    pub in_use: usize,
    /// Blocks out, kept ones included.
    pub blocks_out: usize,
    /// Blocks that the owner fills now, or has forgotten.
    pub loaned: usize,
    /// Most bytes ever in use at once.
    pub high_water: usize,
    /// Requests that were refused for lack of room or memory.
    pub full_answers: u64,
    /// Blocks taken back from dead readers.
    pub reclaimed: u64,
}

/// The owner's side.
#[derive(Debug)]
pub struct Arena {
    memory: ArenaMemory,
    blocks: Blocks,
    owner: u64,
    /// Bytes of the next step of growth.
    step: usize,
    usage: ArenaUsage,
}

impl Arena {
    /// An arena in an object of its own that can grow to `limit` bytes (rounded up to a page). The largest block is a
    /// page smaller. `owner` is the number that readers find in it.
    pub fn create(limit: usize, owner: u64) -> io::Result<Self> {
        let limit = limit.max(1).checked_next_multiple_of(PAGE).filter(|&limit| limit <= LARGEST_ARENA);
        let limit = limit.ok_or_else(too_long)?;
        Self::adopt(SharedObject::create_sparse("arena", limit)?, owner)
    }

    /// An arena in an object that was handed down. It is mapped, then sealed: readers must get it only after that.
    pub fn adopt(object: SharedObject, owner: u64) -> io::Result<Self> {
        if object.bytes() > LARGEST_ARENA {
            return Err(too_long());
        }
        Ok(Self::over(ArenaMemory::adopt(object)?, owner))
    }

    /// An arena in private memory, with no object to hand out: for tests and models.
    pub fn private(limit: usize) -> Self {
        Self::over(ArenaMemory::private(limit, limit), 0)
    }

    fn over(memory: ArenaMemory, owner: u64) -> Self {
        let limit = memory.bytes() / PREFIX * PREFIX;
        let usage = ArenaUsage { limit, ..ArenaUsage::default() };
        Self { blocks: Blocks::new(PREFIX.min(limit), limit), memory, owner, step: FIRST_STEP, usage }
    }

    /// The object, to be handed to readers. Panics for a private arena, which has none.
    pub fn object(&self) -> &SharedObject {
        self.memory.object().expect("a private arena has no object")
    }

    /// The memory behind it.
    pub fn memory(&self) -> &ArenaMemory {
        &self.memory
    }

    /// A reader's side of a private arena; `None` for one in an object.
    pub fn private_view(&self) -> Option<ArenaView> {
        self.memory.private_window().map(ArenaView::over)
    }

    /// Commits the first `bytes` bytes now (or all there can be), so that no loan has to wait for them later.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), ArenaError> {
        let end = bytes.min(self.usage.limit).next_multiple_of(PAGE).min(self.usage.limit);
        Ok(self.reach(end)?)
    }

    /// A block for `bytes` bytes. Its content is whatever was there before.
    #[inline]
    pub fn loan(&mut self, bytes: usize) -> Result<Loan, ArenaError> {
        let block = match self.blocks.take(bytes) {
            Some(block) => block,
            None => self.make_room(bytes)?,
        };
        let entry = &self.blocks[block];
        self.usage.in_use += entry.span;
        self.usage.high_water = self.usage.high_water.max(self.usage.in_use);
        self.usage.loaned += 1;
        // A place that was no header before shows whatever was data there.
        self.memory.word(entry.start / 8 + CONTROL).store(0, Ordering::Relaxed);
        // Whoever reads any byte that is written from here on finds the header cleared.
        fence(Ordering::Release);
        crash::point("arena.loan");
        Ok(Loan { block, generation: entry.generation, len: bytes })
    }

    /// Fills a loan with a copy of `from`, which is as long. Panics if it is not, and as [`bytes_mut`](Self::bytes_mut).
    pub fn fill(&mut self, loan: &mut Loan, from: &[u8]) {
        // Two copies, so that a test can let a process die between them.
        let (first, rest) = self.bytes_mut(loan).split_at_mut(from.len() / 2);
        first.copy_from_slice(&from[..from.len() / 2]);
        crash::point("arena.write");
        rest.copy_from_slice(&from[from.len() / 2..]);
    }

    /// The bytes of a loan, plain memory: nobody else has business there. Readers of a lossy topic in other processes
    /// may still look and find out afterwards; in the same process, use [`write`](Self::write) for those.
    ///
    /// Panics if the loan is of another arena or was taken back by [`abandon_all`](Self::abandon_all).
    #[inline]
    pub fn bytes_mut<'a>(&'a mut self, loan: &'a mut Loan) -> &'a mut [u8] {
        let (start, len) = self.place_of(loan);
        let start = self.memory.start_of(start, len);
        // SAFETY: inside the mapping and committed, by our own table; only this process can write to the object, blocks
        // do not overlap, and `self` is borrowed for as long as the slice lives. Readers have no descriptor of it yet.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Writes `from` at byte `at` of a loan, by atomic stores. Panics beyond its end, and as
    /// [`bytes_mut`](Self::bytes_mut).
    pub fn write(&mut self, loan: &mut Loan, at: usize, from: &[u8]) {
        let (start, len) = self.place_of(loan);
        assert!(at <= len && from.len() <= len - at, "{} bytes at {at} of a loan of {len}", from.len());
        self.memory.write(start + at, from);
    }

    /// Writes all of a loan, 64 bytes at a time and past the caches of this core: `line` says what stands in the line of
    /// that number. For large blocks that another core will read: dirty lines in this core's cache cost that core a
    /// transfer each, and this one as much to get them back. Where it was measured (AMD, other complex) 1 MiB
    /// blocks changed hands at 25 GB/s instead of 2.4. Panics as [`bytes_mut`](Self::bytes_mut).
    pub fn stream(&mut self, loan: &mut Loan, mut line: impl FnMut(usize) -> [u64; 8]) {
        let bytes = self.bytes_mut(loan);
        let lines = bytes.len() / 64;
        let (whole, rest) = bytes.split_at_mut(lines * 64);
        memory::stream(whole, &mut |at| {
            crash::point("arena.write");
            line(at)
        });
        if !rest.is_empty() {
            let last = line(lines).map(u64::to_le_bytes);
            rest.copy_from_slice(&last.as_flattened()[..rest.len()]);
        }
    }

    /// Gives a block out to `readers`, one entry per message that will carry it. With none it is kept until
    /// [`retire`](Self::retire). Panics as [`bytes_mut`](Self::bytes_mut).
    #[inline]
    pub fn publish(&mut self, loan: Loan, readers: &[u16]) -> Descriptor {
        let (data, len) = self.place_of(&loan);
        let entry = &mut self.blocks[loan.block];
        entry.state = if readers.is_empty() { State::Kept } else { State::Out };
        entry.holders.extend_from_slice(readers);
        self.usage.loaned -= 1;
        self.usage.blocks_out += 1;
        let header = entry.start / 8;
        self.memory.word(header + OWNER).store(self.owner, Ordering::Relaxed);
        self.memory.word(header + LENGTH).store(len as u64, Ordering::Relaxed);
        crash::point("arena.publish");
        let control = control(loan.block, loan.generation);
        self.memory.word(header + CONTROL).store(control, Ordering::Release);
        Descriptor { offset: data as u64, len: len as u64, generation: loan.generation, block: loan.block }
    }

    /// Takes a loan back unused. One that was taken back already is of no consequence.
    pub fn abandon(&mut self, loan: Loan) {
        if self.holds(&loan) {
            self.free(loan.block);
        }
    }

    /// Takes back every loan that was neither published nor abandoned, and says how many there were. Using one of them
    /// afterwards is a mistake and panics.
    pub fn abandon_all(&mut self) -> usize {
        let loaned = self.usage.loaned;
        if loaned > 0 {
            for block in self.blocks_in(State::Loaned) {
                self.free(block);
            }
        }
        loaned
    }

    /// The message to `reader` was not sent after all. True if the block was out with it, false if not.
    pub fn withdraw(&mut self, descriptor: &Descriptor, reader: u16) -> bool {
        self.names(descriptor, State::Out)
            && self.release(reader, descriptor.block, descriptor.generation).is_ok()
    }

    /// `reader` says that it is done with a block. True if that was the last one and the block is free now.
    #[inline]
    pub fn release(&mut self, reader: u16, block: u32, generation: u32) -> Result<bool, BadRelease> {
        let Some(entry) = self.blocks.entries.get_mut(block as usize) else {
            return Err(BadRelease::Unknown { block });
        };
        if entry.generation != generation {
            return Err(BadRelease::Generation { block, named: generation, present: entry.generation });
        }
        if !matches!(entry.state, State::Out | State::Kept) {
            return Err(BadRelease::NotOut { block });
        }
        let Some(held) = entry.holders.iter().position(|&holder| holder == reader) else {
            return Err(BadRelease::NotHeld { block, reader });
        };
        crash::point("arena.release");
        entry.holders.swap_remove(held);
        if !entry.holders.is_empty() {
            return Ok(false);
        }
        self.free(block);
        Ok(true)
    }

    /// Ends the owner's own hold on a block that was published to nobody. True if there was one.
    pub fn retire(&mut self, descriptor: &Descriptor) -> bool {
        let kept = self.names(descriptor, State::Kept);
        if kept {
            self.free(descriptor.block);
        }
        kept
    }

    /// `reader` is dead: whatever it held it holds no more. Returns how many blocks became free by that.
    pub fn reclaim_reader(&mut self, reader: u16) -> usize {
        let mut freed = 0;
        for block in self.blocks_in(State::Out) {
            let holders = &mut self.blocks[block].holders;
            let before = holders.len();
            holders.retain(|&holder| holder != reader);
            if holders.len() < before {
                crash::point("arena.reclaim");
            }
            if holders.is_empty() {
                self.free(block);
                freed += 1;
            }
        }
        self.usage.reclaimed += freed as u64;
        freed
    }

    /// How full it is.
    pub fn usage(&self) -> ArenaUsage {
        self.usage
    }

    /// Merges, grows, or says why neither helps.
    #[cold]
    fn make_room(&mut self, wanted: usize) -> Result<u32, ArenaError> {
        let limit = self.usage.limit;
        let largest = blocks::largest(PREFIX, limit);
        if wanted > largest {
            return Err(ArenaError::TooLarge { wanted, limit: largest });
        }
        if self.blocks.merge()
            && let Some(block) = self.blocks.take(wanted)
        {
            return Ok(block);
        }
        // First what there is, then more; but small requests would only nibble at what fits others better.
        if wanted >= blocks::BIG
            && let Some(block) = self.blocks.take_tight(wanted)
        {
            return Ok(block);
        }
        let grown = self.grow(wanted);
        let block = self.blocks.take(wanted).or_else(|| self.blocks.take_tight(wanted));
        if block.is_none() {
            self.usage.full_answers += 1;
        }
        match (block, grown) {
            (Some(block), _) => Ok(block),
            (None, Ok(())) => Err(ArenaError::Full { wanted, in_use: self.usage.in_use, limit }),
            (None, Err(error)) => Err(error.into()),
        }
    }

    /// Commits more memory for a block of `wanted` bytes, if the limit leaves room for it.
    fn grow(&mut self, wanted: usize) -> io::Result<()> {
        let ArenaUsage { committed, limit, .. } = self.usage;
        let Some(end) = self.blocks.wanted_end(wanted) else { return Ok(()) };
        let end = end.next_multiple_of(PAGE).min(limit);
        if end <= committed {
            return Ok(());
        }
        let generous = (committed + self.step).next_multiple_of(PAGE).clamp(end, limit);
        match self.reach(generous) {
            Ok(()) => self.step = (self.step * 2).min(LAST_STEP),
            // Small steps again, so that the next request does not try for much in vain.
            Err(_) if generous > end => {
                self.step = FIRST_STEP;
                self.reach(end)?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Commits memory up to `end`.
    fn reach(&mut self, end: usize) -> io::Result<()> {
        let committed = self.usage.committed;
        if end <= committed {
            return Ok(());
        }
        self.memory.commit(committed, end - committed)?;
        if committed == 0 {
            self.memory.word(ARENA_OWNER).store(self.owner, Ordering::Relaxed);
            self.memory.word(ARENA_MAGIC).store(MAGIC, Ordering::Release);
        }
        self.usage.committed = end;
        self.blocks.extend(end);
        Ok(())
    }

    fn free(&mut self, block: u32) {
        let entry = &mut self.blocks[block];
        self.usage.in_use -= entry.span;
        match entry.state {
            State::Loaned => self.usage.loaned -= 1,
            _ => self.usage.blocks_out -= 1,
        }
        // No header outlives its block: what is written here next may belong to a bigger one.
        self.memory.word(entry.start / 8 + CONTROL).store(0, Ordering::Relaxed);
        self.blocks.free(block);
    }

    fn blocks_in(&self, state: State) -> Vec<u32> {
        let all = self.blocks.entries.iter().zip(0..);
        all.filter(|(entry, _)| entry.state == state).map(|(_, block)| block).collect()
    }

    /// Whether `loan` is one of this arena that is still loaned.
    fn holds(&self, loan: &Loan) -> bool {
        let entry = self.blocks.entries.get(loan.block as usize);
        entry.is_some_and(|entry| entry.state == State::Loaned && entry.generation == loan.generation)
    }

    /// Start and length of the data of a loan, from our own table.
    fn place_of(&self, loan: &Loan) -> (usize, usize) {
        assert!(self.holds(loan), "a loan of another arena, or one that was taken back");
        let entry = &self.blocks[loan.block];
        (entry.data(), entry.len.min(loan.len))
    }

    /// Whether `descriptor` names a block of ours that is in `state`.
    fn names(&self, descriptor: &Descriptor, state: State) -> bool {
        self.blocks.entries.get(descriptor.block as usize).is_some_and(|entry| {
            entry.state == state
                && entry.generation == descriptor.generation
                && entry.data() as u64 == descriptor.offset
        })
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("an arena has at most {LARGEST_ARENA} bytes"))
}

/// A reader's side of one owner's arena.
#[derive(Debug)]
pub struct ArenaView {
    window: Arc<ArenaWindow>,
    /// Memory is there from the start up to here, and stays.
    filled: usize,
    /// Whom the arena names, once there is memory to read it from.
    owner: Option<u64>,
}

impl ArenaView {
    /// Maps an owner's arena read-only, after checking its seals. Touches nothing yet.
    pub fn new(object: SharedObject) -> io::Result<Self> {
        Ok(Self::over(ArenaWindow::open(object)?))
    }

    fn over(window: ArenaWindow) -> Self {
        Self { window: Arc::new(window), filled: 0, owner: None }
    }

    /// The number that the owner gave its arena; `None` until a block was opened.
    pub fn owner(&self) -> Option<u64> {
        self.owner
    }

    /// The block that a message's descriptor names.
    pub fn open(&mut self, descriptor: &Descriptor) -> Result<Block, BadDescriptor> {
        let &Descriptor { offset, len, generation, .. } = descriptor;
        let arena = self.window.bytes();
        let range = || BadDescriptor::Range { offset, len, arena };
        let data = usize::try_from(offset).map_err(|_| range())?;
        let bytes = usize::try_from(len).map_err(|_| range())?;
        if !data.is_multiple_of(PREFIX) || data < PREFIX + HEADER {
            return Err(BadDescriptor::Offset { offset });
        }
        if data > arena || bytes > arena - data {
            return Err(range());
        }
        let end = data + bytes;
        if end > self.filled {
            self.look(end)?;
            if end > self.filled {
                return Err(BadDescriptor::Hole { offset, len, filled: self.filled });
            }
        }
        let owner = match self.owner {
            Some(owner) => owner,
            None => self.read_owner()?,
        };
        let header = (data - HEADER) / 8;
        let control = self.window.word(header + CONTROL).load(Ordering::Acquire);
        if control != descriptor.control() || generation == 0 {
            return Err(BadDescriptor::Stale);
        }
        let found = self.window.word(header + LENGTH).load(Ordering::Relaxed);
        let named = self.window.word(header + OWNER).load(Ordering::Relaxed);
        if found != len || named != owner {
            return Err(BadDescriptor::Header { len, found, owner: named });
        }
        Ok(Block { window: self.window.clone(), descriptor: *descriptor, data, len: bytes })
    }

    /// Asks how far the memory reaches now.
    #[cold]
    fn look(&mut self, end: usize) -> io::Result<()> {
        let filled = self.window.filled_until(self.filled)?;
        if filled >= end {
            self.window.prefault(self.filled, (filled - self.filled).min(PREFAULT));
        }
        self.filled = filled;
        Ok(())
    }

    /// Reads whom the arena names; the first bytes are known to have memory.
    #[cold]
    fn read_owner(&mut self) -> Result<u64, BadDescriptor> {
        if self.window.word(ARENA_MAGIC).load(Ordering::Acquire) != MAGIC {
            return Err(BadDescriptor::NotAnArena);
        }
        let owner = self.window.word(ARENA_OWNER).load(Ordering::Relaxed);
        self.owner = Some(owner);
        Ok(owner)
    }
}

/// A block of somebody else's arena, readable as long as this lives. Dropping it tells nobody: the release is a message.
#[derive(Debug)]
pub struct Block {
    window: Arc<ArenaWindow>,
    descriptor: Descriptor,
    data: usize,
    len: usize,
}

impl Block {
    /// Bytes of data.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a block of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it was opened by.
    pub fn descriptor(&self) -> Descriptor {
        self.descriptor
    }

    /// Replaces `into` by the data: a private copy, which nobody changes while it is parsed.
    pub fn copy_to(&self, into: &mut Vec<u8>) {
        into.clear();
        self.window.append_to(self.data, self.len, into);
    }

    /// Copies the first bytes, as many as `into` takes and there are. Returns how many.
    pub fn copy_into(&self, into: &mut [u8]) -> usize {
        let len = self.len.min(into.len());
        self.window.read(self.data, &mut into[..len]);
        len
    }

    /// Reads the data in place, 64 bytes at a time, by relaxed atomic loads: no copy of the whole, and no trust in the
    /// owner. Behind the end of the data the last line holds whatever lies there.
    #[inline]
    pub fn for_each_line(&self, mut read: impl FnMut(&[u64; 8])) {
        for line in 0..self.len.div_ceil(64) {
            let words = self.window.line(self.data / 8 + line * 8);
            read(&std::array::from_fn(|at| words[at].load(Ordering::Relaxed)));
        }
    }

    /// Whether the block is still what it was when it was opened. Asked after copying it says whether the copy is
    /// whole; who holds the block by a message that it has not answered yet need not ask.
    pub fn is_current(&self) -> bool {
        // What was read stays before this second look at the header.
        fence(Ordering::Acquire);
        let header = (self.data - HEADER) / 8;
        self.window.word(header + CONTROL).load(Ordering::Relaxed) == self.descriptor.control()
    }

    /// The data in place, without a copy.
    ///
    /// # Safety
    /// The owner is trusted not to write to the block while the slice lives: it is of our own making, and we hold the
    /// block by a message that is not answered yet.
    pub unsafe fn bytes(&self) -> &[u8] {
        let start = self.window.start_of(self.data, self.len);
        // SAFETY: mapped as long as `self.window` lives, committed for good by the check in `open`; the caller vouches
        // that nobody writes.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    /// The same object once more, as a reader would receive it.
    fn handed_out(object: &SharedObject) -> SharedObject {
        let fd = object.as_fd().try_clone_to_owned().expect("dup");
        SharedObject::adopt(fd, object.bytes()).expect("sealed")
    }

    fn pair(limit: usize) -> (Arena, ArenaView) {
        let arena = Arena::create(limit, 0xA11CE).expect("memfd");
        let view = ArenaView::new(handed_out(arena.object())).expect("sealed");
        (arena, view)
    }

    fn filled(arena: &mut Arena, data: &[u8], readers: &[u16]) -> Descriptor {
        let mut loan = arena.loan(data.len()).expect("room");
        arena.bytes_mut(&mut loan).copy_from_slice(data);
        arena.publish(loan, readers)
    }

    fn content(view: &mut ArenaView, descriptor: &Descriptor) -> Vec<u8> {
        let mut copy = Vec::new();
        view.open(descriptor).expect("whole").copy_to(&mut copy);
        copy
    }

    #[test]
    fn what_is_streamed_is_what_readers_find() {
        let (mut arena, mut view) = pair(1 << 20);
        for bytes in [0usize, 8, 63, 64, 200, 70_000] {
            let mut loan = arena.loan(bytes).expect("room");
            arena.stream(&mut loan, |line| {
                std::array::from_fn(|at| (line * 8 + at) as u64 * 0x0101_0101_0101)
            });
            let descriptor = arena.publish(loan, &[1]);
            let words =
                (0..bytes.div_ceil(8)).flat_map(|word| (word as u64 * 0x0101_0101_0101).to_le_bytes());
            assert_eq!(content(&mut view, &descriptor), words.take(bytes).collect::<Vec<u8>>(), "{bytes}");
        }
    }

    #[test]
    fn lines_are_the_data_in_place() {
        let (mut arena, mut view) = pair(1 << 20);
        for bytes in [0usize, 8, 64, 200] {
            let data: Vec<u8> = (0..bytes).map(|at| at as u8 ^ 0x5A).collect();
            let descriptor = filled(&mut arena, &data, &[1]);
            let mut read = Vec::new();
            let block = view.open(&descriptor).expect("whole");
            block.for_each_line(|line| read.extend(line.iter().flat_map(|word| word.to_le_bytes())));
            assert_eq!((read.len(), &read[..bytes]), (bytes.next_multiple_of(64), &data[..]));
        }
    }

    #[test]
    fn what_is_published_is_read_and_comes_back() {
        fn is_send<T: Send>(_: &T) {}
        let (mut arena, mut view) = pair(4 << 20);
        is_send(&arena);
        is_send(&view);
        assert_eq!(view.owner(), None);
        for len in [0, 1, 7, 8, 300, 4096, 70_000, 1 << 20] {
            let data: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            let descriptor = filled(&mut arena, &data, &[1]);
            assert_eq!(Descriptor::from_bytes(&descriptor.to_bytes()), descriptor);
            assert_eq!(content(&mut view, &descriptor), data);
            let block = view.open(&descriptor).expect("whole");
            // SAFETY: nobody writes in this test.
            assert_eq!(unsafe { block.bytes() }, data);
            let mut start = [0; 5];
            assert_eq!((block.copy_into(&mut start), block.len()), (len.min(5), len));
            assert_eq!(start[..len.min(5)], data[..len.min(5)]);
            assert!(block.is_current());
            assert_eq!(arena.release(1, descriptor.block, descriptor.generation), Ok(true));
            assert!(!block.is_current());
            assert!(matches!(view.open(&descriptor), Err(BadDescriptor::Stale)));
        }
        assert_eq!(view.owner(), Some(0xA11CE));
        let usage = arena.usage();
        assert_eq!((usage.in_use, usage.blocks_out, usage.loaned), (0, 0, 0));
        assert!(usage.high_water > 1 << 20 && usage.committed <= usage.limit);
    }

    #[test]
    fn written_in_pieces_and_shortened() {
        let (mut arena, mut view) = pair(1 << 20);
        let data: Vec<u8> = (0..1000_usize).map(|at| at as u8).collect();
        let mut loan = arena.loan(2000).expect("room");
        for at in (0..1000).step_by(37) {
            arena.write(&mut loan, at, &data[at..(at + 37).min(1000)]);
        }
        loan.truncate(1000);
        loan.truncate(5000);
        assert_eq!(loan.len(), 1000);
        let descriptor = arena.publish(loan, &[1]);
        assert_eq!(content(&mut view, &descriptor), data);
    }

    #[test]
    fn a_block_is_out_until_its_last_reader_released_it() {
        let mut arena = Arena::private(1 << 20);
        let d = filled(&mut arena, b"shared", &[5, 9, 5]);
        assert_eq!(arena.release(5, d.block, d.generation), Ok(false));
        assert_eq!(arena.release(9, d.block, d.generation), Ok(false));
        assert_eq!(
            arena.release(9, d.block, d.generation),
            Err(BadRelease::NotHeld { block: d.block, reader: 9 })
        );
        assert_eq!(arena.release(5, d.block, d.generation), Ok(true), "two messages, two releases");
        assert_eq!(arena.release(5, d.block, d.generation), Err(BadRelease::NotOut { block: d.block }));
    }

    #[test]
    fn releases_by_strangers_free_nothing() {
        let mut arena = Arena::private(1 << 20);
        let out = filled(&mut arena, b"out", &[1]);
        let kept = filled(&mut arena, b"kept", &[]);
        let loan = arena.loan(100).expect("room");
        let before = arena.usage();
        let of =
            |d: &Descriptor, named| BadRelease::Generation { block: d.block, named, present: d.generation };
        assert_eq!(
            arena.release(2, out.block, out.generation),
            Err(BadRelease::NotHeld { block: out.block, reader: 2 })
        );
        for named in [0, 2, u32::MAX] {
            assert_eq!(arena.release(1, out.block, named), Err(of(&out, named)));
        }
        assert_eq!(
            arena.release(1, kept.block, 1),
            Err(BadRelease::NotHeld { block: kept.block, reader: 1 })
        );
        assert_eq!(arena.release(1, loan.block, 1), Err(BadRelease::NotOut { block: loan.block }));
        for block in [arena.blocks.entries.len() as u32, 1 << 31, u32::MAX] {
            assert_eq!(arena.release(1, block, 1), Err(BadRelease::Unknown { block }));
        }
        assert!(!arena.retire(&out) && !arena.withdraw(&kept, 1) && !arena.withdraw(&out, 2));
        assert!(!arena.retire(&Descriptor { offset: kept.offset + 64, ..kept }));
        assert_eq!(arena.usage(), before);
        assert!(arena.retire(&kept) && !arena.retire(&kept));
        assert!(arena.withdraw(&out, 1) && !arena.withdraw(&out, 1));
        arena.abandon(loan);
        assert_eq!(arena.usage().in_use, 0);
    }

    #[test]
    fn a_late_release_does_not_touch_the_next_use() {
        let mut arena = Arena::private(1 << 20);
        let first = filled(&mut arena, b"first", &[1]);
        arena.release(1, first.block, first.generation).expect("held");
        let second = filled(&mut arena, b"second", &[1]);
        assert_eq!((second.block, second.offset), (first.block, first.offset), "the warm block again");
        assert!(arena.release(1, first.block, first.generation).is_err());
        assert_eq!(arena.release(1, second.block, second.generation), Ok(true));
    }

    #[test]
    fn a_dead_readers_blocks_come_back() {
        let mut arena = Arena::private(1 << 20);
        let alone = filled(&mut arena, b"alone", &[7, 7]);
        let both = filled(&mut arena, b"both", &[7, 8]);
        let other = filled(&mut arena, b"other", &[8]);
        let kept = filled(&mut arena, b"kept", &[]);
        assert_eq!(arena.reclaim_reader(7), 1);
        assert_eq!(arena.reclaim_reader(7), 0);
        assert!(arena.release(7, alone.block, alone.generation).is_err());
        assert_eq!(arena.release(8, both.block, both.generation), Ok(true));
        assert_eq!(arena.release(8, other.block, other.generation), Ok(true));
        assert!(arena.retire(&kept));
        assert_eq!((arena.usage().in_use, arena.usage().reclaimed), (0, 1));
    }

    #[test]
    fn forgotten_loans_can_be_taken_back() {
        let mut arena = Arena::private(1 << 20);
        let out = filled(&mut arena, b"out", &[1]);
        drop(arena.loan(100).expect("room"));
        let late = arena.loan(200).expect("room");
        assert_eq!(arena.usage().loaned, 2);
        assert_eq!(arena.abandon_all(), 2);
        assert_eq!((arena.usage().loaned, arena.usage().blocks_out), (0, 1));
        let again = arena.loan(200).expect("room");
        arena.abandon(late);
        assert_eq!(arena.usage().loaned, 1, "a loan that was taken back says nothing about the next one");
        arena.abandon(again);
        assert_eq!(arena.release(1, out.block, out.generation), Ok(true));
    }

    #[test]
    #[should_panic(expected = "taken back")]
    fn a_loan_that_was_taken_back_is_not_published() {
        let mut arena = Arena::private(1 << 20);
        let loan = arena.loan(100).expect("room");
        arena.abandon_all();
        arena.publish(loan, &[1]);
    }

    #[test]
    fn full_is_an_answer_and_what_comes_back_is_merged() {
        let limit = 3 << 20;
        let (mut arena, _) = pair(limit);
        assert!(
            matches!(arena.loan(limit), Err(ArenaError::TooLarge { limit: largest, .. }) if largest == limit - PAGE)
        );
        let mut out = Vec::new();
        loop {
            match arena.loan(1000) {
                Ok(loan) => out.push(arena.publish(loan, &[1])),
                Err(ArenaError::Full { wanted: 1000, in_use, limit: of }) => {
                    assert!(of == limit && in_use > limit - 2000, "{in_use} of {of}");
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!((out.len(), arena.usage().full_answers), ((limit - 64) / 1088, 1));
        assert!(matches!(arena.loan(limit - PAGE), Err(ArenaError::Full { .. })));
        for d in out {
            assert_eq!(arena.release(1, d.block, d.generation), Ok(true));
        }
        let whole = arena.loan(limit - PAGE).expect("the largest block there can be");
        assert!(matches!(arena.loan(1_000_000), Err(ArenaError::Full { .. })));
        arena.abandon(whole);
        assert_eq!(arena.usage().in_use, 0);
    }

    #[test]
    fn growth_is_on_demand_and_a_host_without_memory_is_an_answer() {
        let mut arena = Arena::over(ArenaMemory::private(64 << 20, 5 << 20), 0);
        assert_eq!(arena.usage().committed, 0);
        let first = arena.loan(100).expect("room");
        assert_eq!(arena.usage().committed, FIRST_STEP);
        let second = arena.loan(FIRST_STEP).expect("room");
        assert_eq!(arena.usage().committed, 3 * FIRST_STEP, "steps double");
        let third = arena.loan(2 << 20).expect("a whole step is not there, the block is");
        assert!(arena.usage().committed <= 5 << 20);
        let fourth = arena.loan(1 << 20).expect("from what was left");
        let error = arena.loan(1 << 20).expect_err("nothing left");
        assert!(
            matches!(&error, ArenaError::System(source) if source.kind() == io::ErrorKind::OutOfMemory),
            "{error}"
        );
        assert_eq!(arena.usage().full_answers, 1);
        arena.abandon(second);
        let again = arena.loan(1 << 20).expect("what came back serves");
        for loan in [first, third, fourth, again] {
            arena.abandon(loan);
        }
        assert_eq!(arena.usage().in_use, 0);
    }

    #[test]
    fn reserved_memory_is_there_before_the_first_loan() {
        let (mut arena, _) = pair(8 << 20);
        arena.reserve(3_000_000).expect("memory");
        let committed = arena.usage().committed;
        assert_eq!(committed, 3_000_000_usize.next_multiple_of(PAGE));
        assert_eq!(arena.object().filled_until(0).expect("seek"), committed);
        arena.reserve(1000).expect("nothing to do");
        arena.reserve(usize::MAX).expect("all of it");
        assert_eq!(arena.usage().committed, 8 << 20);
        assert!(Arena::create(usize::MAX, 0).is_err());
    }

    #[test]
    fn a_block_of_a_gibibyte_goes_through_and_comes_back() {
        const BYTES: usize = (1 << 30) + 5;
        let (mut arena, mut view) = pair(BYTES + (64 << 20));
        for round in 0..2u64 {
            let mut loan = match arena.loan(BYTES) {
                Err(ArenaError::System(error)) => return println!("not run: no memory for it here: {error}"),
                loan => loan.expect("room"),
            };
            arena.stream(&mut loan, |line| [line as u64 ^ round << 40; 8]);
            let descriptor = arena.publish(loan, &[1]);
            let (mut lines, mut strange) = (0, 0u64);
            let block = view.open(&descriptor).expect("whole");
            block.for_each_line(|line| {
                // The last line is cut to the block's length.
                let is_whole = lines < BYTES as u64 / 64;
                strange += u64::from(is_whole && line.iter().any(|word| *word != lines ^ round << 40));
                lines += 1;
            });
            assert_eq!((block.len(), lines, strange), (BYTES, BYTES.div_ceil(64) as u64, 0));
            assert!(matches!(arena.loan(BYTES), Err(ArenaError::Full { .. })), "one has room");
            assert_eq!(arena.release(1, descriptor.block, descriptor.generation), Ok(true));
        }
        assert_eq!(arena.usage().in_use, 0);
    }

    #[test]
    fn big_blocks_begin_at_a_page() {
        let mut arena = Arena::private(8 << 20);
        for len in [blocks::BIG, 65_536, 100_000, 1 << 20] {
            let d = filled(&mut arena, &vec![1; len], &[1]);
            assert!(d.offset.is_multiple_of(PAGE as u64), "{len} at {}", d.offset);
        }
        let small = filled(&mut arena, b"small", &[1]);
        assert!(small.offset.is_multiple_of(64));
    }

    #[test]
    fn descriptors_by_strangers_touch_nothing() {
        let (mut arena, mut view) = pair(16 << 20);
        let d = filled(&mut arena, &[3; 5000], &[1]);
        let blocks = |view: &ArenaView| {
            let object = view.window.object().expect("a real one");
            rustix::fs::fstat(object).expect("stat").st_blocks
        };
        let before = blocks(&view);
        let limit = 16 << 20;
        let open = |view: &mut ArenaView, offset, len| {
            view.open(&Descriptor { offset, len, ..d }).expect_err("refused")
        };
        for offset in [0, 64, d.offset + 1, d.offset - 8, u64::MAX, 1 << 63 | 1] {
            assert!(matches!(open(&mut view, offset, 10), BadDescriptor::Offset { .. }), "{offset}");
        }
        for (offset, len) in [
            (d.offset, limit),
            (limit, 1),
            (limit + 64, 0),
            (u64::MAX - 63, 128),
            (d.offset, u64::MAX),
            (limit - 64, 65),
        ] {
            assert!(matches!(open(&mut view, offset, len), BadDescriptor::Range { .. }), "{len} at {offset}");
        }
        for (offset, len) in [(limit - 64, 64), (8 << 20, 0), (d.offset, limit - d.offset)] {
            // A hole of no bytes still has a header in it.
            assert!(matches!(open(&mut view, offset, len), BadDescriptor::Hole { .. }), "{len} at {offset}");
        }
        for generation in [0, 2, u32::MAX] {
            let stale = Descriptor { generation, ..d };
            assert!(matches!(view.open(&stale), Err(BadDescriptor::Stale)));
        }
        assert!(matches!(view.open(&Descriptor { block: 9, ..d }), Err(BadDescriptor::Stale)));
        assert!(matches!(open(&mut view, d.offset + 64, 10), BadDescriptor::Stale));
        assert!(matches!(open(&mut view, d.offset, 4999), BadDescriptor::Header { found: 5000, .. }));
        assert_eq!(blocks(&view), before, "no page of a hole was touched");
        assert_eq!(content(&mut view, &d), [3; 5000]);
    }

    #[test]
    fn an_arena_that_its_owner_never_filled_is_refused_untouched() {
        let object = SharedObject::create_sparse("empty", 1 << 20).expect("memfd");
        object.commit(0, 8192).expect("reserved, not filled");
        object.seal_writes().expect("seal");
        let mut view = ArenaView::new(handed_out(&object)).expect("sealed");
        let d = Descriptor { offset: 128, len: 10, generation: 1, block: 0 };
        assert!(matches!(view.open(&d), Err(BadDescriptor::Hole { filled: 0, .. })));
        assert_eq!(object.filled_until(0).expect("seek"), 0, "still a hole");
    }

    #[test]
    fn an_object_that_is_no_arena_is_refused() {
        let object = SharedObject::create("ring", 1 << 20).expect("memfd");
        let words = object.map(super::super::Access::Write).expect("map");
        words.populate(0, 1 << 20).expect("memory");
        object.seal_writes().expect("seal");
        let mut view = ArenaView::new(handed_out(&object)).expect("sealed");
        let d = Descriptor { offset: 128, len: 10, generation: 1, block: 0 };
        assert!(matches!(view.open(&d), Err(BadDescriptor::NotAnArena)));
        // A hostile owner's header: the arena's word and another owner's name.
        words.word(ARENA_MAGIC).store(MAGIC, Ordering::Relaxed);
        words.word(8 + CONTROL).store(control(0, 1), Ordering::Relaxed);
        words.word(8 + LENGTH).store(10, Ordering::Relaxed);
        words.word(8 + OWNER).store(1, Ordering::Relaxed);
        assert!(matches!(view.open(&d), Err(BadDescriptor::Header { owner: 1, .. })));
    }

    #[test]
    fn a_late_reader_finds_out_that_it_was_overtaken() {
        let (mut arena, mut view) = pair(1 << 20);
        let old = filled(&mut arena, &[1; 50_000], &[]);
        let block = view.open(&old).expect("current");
        assert!(arena.retire(&old));
        let mut loan = arena.loan(50_000).expect("the same place");
        arena.write(&mut loan, 0, &[2; 500]);
        assert!(!block.is_current(), "before the new use is complete");
        let new = arena.publish(loan, &[]);
        assert_eq!(new.offset, old.offset);
        assert!(!block.is_current() && matches!(view.open(&old), Err(BadDescriptor::Stale)));
        // Joined with its neighbour into a bigger block, the place shows no old header either.
        let next = filled(&mut arena, &[3; 50_000], &[]);
        assert!(arena.retire(&new) && arena.retire(&next));
        let whole = [4; (1 << 20) - PAGE];
        let bigger = filled(&mut arena, &whole, &[]);
        assert!(bigger.offset < next.offset && next.offset < bigger.offset + bigger.len);
        for late in [old, new, next] {
            assert!(view.open(&late).is_err(), "{late:?}");
        }
        assert_eq!(content(&mut view, &bigger), whole);
    }

    /// In place, across threads: what a reader holds does not change, however busy the owner is.
    #[test]
    fn a_block_stays_as_it_is_while_a_reader_holds_it() {
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        let mut arena = Arena::private(1 << 16);
        let mut view = arena.private_view().expect("private");
        let (there, inbox) = std::sync::mpsc::channel::<Descriptor>();
        let (back, returned) = std::sync::mpsc::channel::<Descriptor>();
        let reader = std::thread::spawn(move || {
            for d in inbox {
                let block = view.open(&d).expect("held by this message");
                // SAFETY: the owner keeps the block until the release below.
                let bytes = unsafe { block.bytes() };
                assert!(bytes.iter().all(|&byte| byte == d.generation as u8), "{d:?}");
                assert!(block.is_current());
                if back.send(d).is_err() {
                    break;
                }
            }
        });
        for round in 0..rounds {
            for d in returned.try_iter() {
                assert_eq!(arena.release(0, d.block, d.generation), Ok(true));
            }
            let Ok(mut loan) = arena.loan(256 + round % 7 * 400) else {
                let soon = std::time::Duration::from_secs(20);
                let d = returned.recv_timeout(soon).expect("full, so something is out and comes back");
                assert_eq!(arena.release(0, d.block, d.generation), Ok(true));
                continue;
            };
            let mark = loan.generation as u8;
            arena.bytes_mut(&mut loan).fill(mark);
            there.send(arena.publish(loan, &[0])).expect("the reader lives");
        }
        drop(there);
        reader.join().expect("every block was whole");
    }

    /// A reader without a claim copies while the owner overwrites: it may be late, but never takes a torn copy for whole.
    #[test]
    fn a_copy_that_is_still_current_is_whole() {
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        let mut arena = Arena::private(1 << 16);
        let mut view = arena.private_view().expect("private");
        let (tell, told) = std::sync::mpsc::channel();
        let at_end = &crate::base::sync::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let (mut copy, mut whole, mut latest) = (Vec::new(), 0, None::<Descriptor>);
                while !at_end.load(Ordering::Relaxed) || whole == 0 {
                    latest = told.try_iter().last().or(latest);
                    let Some(d) = latest else { continue };
                    let Ok(block) = view.open(&d) else { continue };
                    block.copy_to(&mut copy);
                    if block.is_current() {
                        assert!(copy.iter().all(|&byte| byte == d.generation as u8), "torn");
                        whole += 1;
                    }
                }
            });
            let mut present = None;
            for _ in 0..rounds {
                let mut loan = arena.loan(1000).expect("room");
                let mark = [loan.generation as u8; 1000];
                arena.write(&mut loan, 0, &mark);
                let d = arena.publish(loan, &[]);
                let before = present.replace(d);
                tell.send(d).expect("the reader is there");
                // The block before is overwritten in the next round, while the reader may be at it.
                if let Some(before) = before {
                    assert!(arena.retire(&before));
                }
            }
            at_end.store(true, Ordering::Relaxed);
            reader.join().expect("never torn");
        });
    }

    /// The owner is killed between two words of a header, or anywhere else: what it gave out before stays whole and
    /// readable, what it had not given out cannot be opened.
    #[cfg(debug_assertions)]
    #[test]
    fn what_a_killed_owner_gave_out_stays_readable() {
        const FD: &str = "AI_SWARM_TEST_ARENA_FD";
        const NAME: &str = "shm::arena::tests::what_a_killed_owner_gave_out_stays_readable";
        const BYTES: usize = 8 << 20;
        let byte = |at: usize, d: &Descriptor| (at as u32 ^ d.generation ^ d.block) as u8;
        if let Ok(number) = std::env::var(FD) {
            let path = format!("/proc/self/fd/{number}");
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("inherited");
            let mut arena =
                Arena::adopt(SharedObject::adopt(file.into(), BYTES).expect("sealed"), 1).expect("ours");
            let mut given: std::collections::VecDeque<Descriptor> = Default::default();
            // The test's name stands in this line, without an end.
            println!();
            loop {
                let len = 100 + given.len() * 3001;
                let mut loan = arena.loan(len).expect("room");
                let d = Descriptor { offset: 0, len: 0, generation: loan.generation, block: loan.block };
                // By turns in the two ways.
                if given.len().is_multiple_of(2) {
                    let bytes: Vec<u8> = (0..len).map(|at| byte(at, &d)).collect();
                    arena.fill(&mut loan, &bytes);
                } else {
                    arena.stream(&mut loan, |line| {
                        let at = |word: usize, i: usize| byte(line * 64 + word * 8 + i, &d);
                        std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|i| at(word, i))))
                    });
                }
                let d = arena.publish(loan, &[1]);
                let hex: String = d.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                println!("{hex}.");
                given.push_back(d);
                if given.len() > 20 {
                    let d = given.pop_front().expect("some");
                    println!("-{}.", d.block);
                    arena.release(1, d.block, d.generation).expect("held");
                }
            }
        }
        // Where, and how many blocks are seen to be out. Every line that is streamed is a write.
        let places = [
            ("arena.loan:1", 0),
            ("arena.write:1", 0),
            ("arena.write:40", 1),
            ("arena.write:300", 5),
            ("arena.publish:1", 0),
            ("arena.publish:30", 18),
            ("arena.loan:57", 18),
            ("arena.release:40", 18),
        ];
        for (place, lowest) in places {
            let object = SharedObject::create_sparse("killed", BYTES).expect("memfd");
            let inherited = object.as_fd().try_clone_to_owned().expect("dup");
            rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).expect("kept over exec");
            let mut owner = Command::new(std::env::current_exe().expect("this test"))
                .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
                .env(FD, std::os::fd::AsRawFd::as_raw_fd(&inherited).to_string())
                .env("AI_SWARM_DIE_AT", place)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("spawned");
            let mut given: Vec<Descriptor> = Vec::new();
            for line in BufReader::new(owner.stdout.take().expect("piped")).lines().map_while(Result::ok) {
                let Some(line) = line.strip_suffix('.') else { continue };
                if let Some(block) = line.strip_prefix('-') {
                    given.retain(|d| d.block.to_string() != block);
                } else if line.len() == 48 {
                    let mut bytes = [0; 24];
                    for (at, byte) in bytes.iter_mut().enumerate() {
                        *byte = u8::from_str_radix(&line[at * 2..at * 2 + 2], 16).expect("hex");
                    }
                    given.push(Descriptor::from_bytes(&bytes));
                }
            }
            let end = owner.wait().expect("waited");
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&end), Some(9), "{place}: {end}");
            let mut view = ArenaView::new(handed_out(&object)).expect("sealed");
            assert!(given.len() >= lowest, "{place}: {} blocks", given.len());
            for d in &given {
                let copy = content(&mut view, d);
                assert!(copy.iter().enumerate().all(|(at, &found)| found == byte(at, d)), "{place}: {d:?}");
            }
            let next = given.iter().map(|d| d.block).max().map_or(0, |block| block + 1);
            for generation in 1..4 {
                let never = Descriptor { offset: 128, len: 100, generation, block: next + 1 };
                assert!(view.open(&never).is_err());
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Publish { bytes: usize, readers: Vec<u16> },
        Abandon(usize),
        Release { at: usize, reader: u16 },
        Stranger { reader: u16, block: u32, generation: u32 },
        Withdraw { at: usize, reader: u16 },
        Retire(usize),
        Die(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = prop_oneof![4 => 0..3000_usize, 1 => 3000..200_000_usize];
        let readers = proptest::collection::vec(0..4_u16, 0..4);
        prop_oneof![
            8 => (bytes.clone(), readers).prop_map(|(bytes, readers)| Step::Publish { bytes, readers }),
            1 => bytes.prop_map(Step::Abandon),
            8 => (any::<usize>(), 0..4_u16).prop_map(|(at, reader)| Step::Release { at, reader }),
            3 => (0..5_u16, prop_oneof![0..40_u32, any::<u32>()], 0..4_u32)
                .prop_map(|(reader, block, generation)| Step::Stranger { reader, block, generation }),
            1 => (any::<usize>(), 0..4_u16).prop_map(|(at, reader)| Step::Withdraw { at, reader }),
            3 => any::<usize>().prop_map(Step::Retire),
            1 => (0..4_u16).prop_map(Step::Die),
        ]
    }

    /// What the arena should know: descriptors out, their content's byte, and who holds them.
    type Model = Vec<(Descriptor, u8, Vec<u16>)>;

    fn position(model: &Model, block: u32, generation: u32, reader: u16) -> Option<usize> {
        model.iter().position(|(d, _, holders)| {
            d.block == block && d.generation == generation && holders.contains(&reader)
        })
    }

    /// One holder less; true if the block is gone from the model.
    fn drop_holder(model: &mut Model, at: usize, reader: u16) -> bool {
        let holders = &mut model[at].2;
        let held = holders.iter().position(|&holder| holder == reader).expect("a holder");
        holders.remove(held);
        let gone = holders.is_empty();
        if gone {
            model.remove(at);
        }
        gone
    }

    proptest! {
        /// Against a plain list of who holds what: content stays while it is out, answers agree, nothing leaks.
        #[test]
        fn the_arena_agrees_with_a_list(steps in proptest::collection::vec(step(), 1..80)) {
            let mut arena = Arena::private(1 << 20);
            let mut view = arena.private_view().expect("private");
            let mut model = Model::new();
            let mut mark = 0_u8;
            for step in steps {
                match step {
                    Step::Publish { bytes, readers } => match arena.loan(bytes) {
                        Ok(mut loan) => {
                            mark = mark.wrapping_add(1);
                            arena.bytes_mut(&mut loan).fill(mark);
                            let d = arena.publish(loan, &readers);
                            let range = d.offset..d.offset + d.len;
                            for (other, ..) in &model {
                                prop_assert!(other.offset + other.len + 64 <= range.start || range.end + 64 <= other.offset);
                            }
                            model.push((d, mark, readers));
                        }
                        Err(ArenaError::Full { .. }) => prop_assert!(arena.usage().in_use > 0),
                        Err(other) => prop_assert!(false, "{other}"),
                    },
                    Step::Abandon(bytes) => {
                        if let Ok(mut loan) = arena.loan(bytes) {
                            arena.bytes_mut(&mut loan).fill(0xEE);
                            arena.abandon(loan);
                        }
                    }
                    Step::Release { at, reader } if !model.is_empty() => {
                        let at = at % model.len();
                        let d = model[at].0;
                        let answer = arena.release(reader, d.block, d.generation);
                        let held = model[at].2.contains(&reader);
                        prop_assert_eq!(answer.is_ok(), held);
                        if held {
                            prop_assert_eq!(answer, Ok(drop_holder(&mut model, at, reader)));
                        }
                    }
                    Step::Stranger { reader, block, generation } => {
                        let held = position(&model, block, generation, reader);
                        let answer = arena.release(reader, block, generation);
                        prop_assert_eq!(answer.is_ok(), held.is_some());
                        if let Some(at) = held {
                            prop_assert_eq!(answer, Ok(drop_holder(&mut model, at, reader)));
                        }
                    }
                    Step::Withdraw { at, reader } if !model.is_empty() => {
                        let at = at % model.len();
                        let held = model[at].2.contains(&reader);
                        prop_assert_eq!(arena.withdraw(&model[at].0, reader), held);
                        if held {
                            drop_holder(&mut model, at, reader);
                        }
                    }
                    Step::Retire(at) if !model.is_empty() => {
                        let at = at % model.len();
                        let kept = model[at].2.is_empty();
                        prop_assert_eq!(arena.retire(&model[at].0), kept);
                        if kept {
                            model.remove(at);
                        }
                    }
                    Step::Die(reader) => {
                        let before = model.len();
                        model.retain_mut(|(_, _, holders)| {
                            let kept = holders.is_empty();
                            holders.retain(|&holder| holder != reader);
                            kept || !holders.is_empty()
                        });
                        prop_assert_eq!(arena.reclaim_reader(reader), before - model.len());
                    }
                    _ => {}
                }
                prop_assert_eq!(arena.usage().blocks_out, model.len());
                for (d, mark, _) in &model {
                    let copy = content(&mut view, d);
                    prop_assert!(copy.len() as u64 == d.len && copy.iter().all(|byte| byte == mark));
                }
            }
            for (d, _, holders) in model {
                if holders.is_empty() {
                    prop_assert!(arena.retire(&d));
                }
                for reader in holders {
                    prop_assert!(arena.release(reader, d.block, d.generation).is_ok());
                }
            }
            prop_assert_eq!(arena.usage().in_use, 0);
            prop_assert!(arena.loan((1 << 20) - PAGE).is_ok(), "all of it is one block again");
        }

        /// Whatever a message says: an error or a block inside the arena, never a fault.
        #[test]
        fn any_descriptor_is_safe_to_open(
            near in 0..40_u64, far in any::<u64>(), len in prop_oneof![0..5000_u64, any::<u64>()],
            generation in 0..3_u32, block in 0..3_u32, words in proptest::collection::vec(any::<u64>(), 64),
        ) {
            let (mut arena, mut view) = pair(2 << 20);
            for size in [100, 3000] {
                filled(&mut arena, &vec![1; size], &[1]);
            }
            // Random words where headers could be, as a hostile owner writes them.
            for (at, word) in words.iter().enumerate() {
                arena.memory().word(PREFIX + at * 8).store(*word, Ordering::Relaxed);
            }
            for offset in [near * 64, far, (2 << 20) - near * 64] {
                if let Ok(opened) = view.open(&Descriptor { offset, len, generation, block }) {
                    prop_assert!(opened.len() as u64 == len && offset + len <= FIRST_STEP as u64);
                    let mut copy = Vec::new();
                    opened.copy_to(&mut copy);
                    prop_assert_eq!(copy.len() as u64, len);
                }
            }
        }
    }
}
