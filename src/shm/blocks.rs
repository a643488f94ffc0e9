//! Which part of an arena belongs to whom: the allocator, in private memory of the arena's owner. No atomics, no
//! system calls, no shared byte; [`super::arena`] puts the memory behind it.
//!
//! ```text
//!  committed memory, in address order          every part is an entry of one table, linked to its neighbours
//!  ┌──────┬────────────┬─────┬───────────┬─────────────────┐
//!  │ out  │ free       │ out │ free      │ free (the rest) │   free entries are also linked into bins by size,
//!  └──────┴────────────┴─────┴───────────┴─────────────────┘   the last one freed first
//! ```
//! * **Sizes.** A request is rounded up to the next of four sizes per doubling (256, 320, 384, 448, 512, 640 ...), so
//!   that at most a quarter is waste and what is freed fits what is asked for next. Each block is preceded by
//!   [`HEADER`] bytes. From [`BIG`] bytes on, the data begins at a page.
//! * **Taking** looks at the head of the bin of that size, then at the next bigger bin that has something, and splits.
//! * **Freeing** puts the block at the head of its bin and does not look at its neighbours: the usual next request is
//!   for the same size and gets the block that is still in the cache.
//! * **Merging** happens when nothing fits: every block freed since the last time is joined with its free neighbours.
//!   Of two free neighbours at least one is always on that list, so nothing is overlooked, and each freed block is
//!   visited once.
//!
//! An entry's number is its block's name, and its generation grows with every loan for as long as the arena lives,
//! also when the entry is joined with another and used anew: no name and generation ever come twice (before 2^32
//! loans of one entry).

/// Bytes before each block's data, for the words that readers check.
pub(super) const HEADER: usize = 64;
/// Data of so many bytes and more begins at a page.
pub(super) const BIG: usize = 57_345;
/// Smallest data of a block.
const SMALLEST: usize = 256;
/// What remains of a split is a block of its own from this size on.
const MIN_SPAN: usize = SMALLEST + HEADER;
/// Page that big blocks are aligned to.
const PAGE: usize = 4096;
/// Sizes: four per doubling, from 256 bytes.
const CLASSES: usize = 128;
/// No entry.
const NONE: u32 = u32::MAX;
/// The bin of those that are too small for any.
const NO_BIN: u8 = u8::MAX;
/// Entries of one bin of small blocks that a tight search looks at.
const TIGHT_LOOK: usize = 64;

/// Largest arena: entries stay countable in 32 bits, sizes in [`CLASSES`].
pub(super) const LARGEST_ARENA: usize = 1 << 37;

/// What an entry is at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Stands for no memory; waits to be used again.
    Unused,
    /// Nobody has it.
    Free,
    /// The owner fills it.
    Loaned,
    /// Out with readers.
    Out,
    /// Out, and kept until the owner retires it.
    Kept,
}

/// One part of the memory.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where its header begins, in bytes.
    pub start: usize,
    /// Bytes with header.
    pub span: usize,
    /// What it is.
    pub state: State,
    /// Grows with every loan, never 0 then.
    pub generation: u32,
    /// Bytes of data asked for.
    pub len: usize,
    /// Readers that have it, once per message that brought it.
    pub holders: Vec<u16>,
    /// Neighbours by address.
    before: u32,
    after: u32,
    /// Neighbours in the bin.
    newer: u32,
    older: u32,
    bin: u8,
    /// On the list of those to be merged.
    queued: bool,
}

impl Entry {
    /// Where its data begins.
    pub fn data(&self) -> usize {
        self.start + HEADER
    }

    /// Where a block of `span` bytes would begin inside, if it fits.
    fn place(&self, span: usize, big: bool) -> Option<usize> {
        let start = if big { page_start(self.start) } else { self.start };
        (start + span <= self.start + self.span).then_some(start)
    }
}

/// The first header at or after `start` whose data begins at a page.
fn page_start(start: usize) -> usize {
    (start + HEADER).next_multiple_of(PAGE) - HEADER
}

/// Bytes of size `class`.
const fn class_bytes(class: usize) -> usize {
    (4 + class % 4) << (class / 4 + 6)
}

/// The largest size that is not above `bytes`, which are at least [`SMALLEST`].
fn class_below(bytes: usize) -> usize {
    let log = bytes.ilog2() as usize;
    (log - 8) * 4 + (bytes >> (log - 2)) % 4
}

/// The smallest size that is not below `bytes`.
fn class_above(bytes: usize) -> usize {
    let below = class_below(bytes.max(SMALLEST));
    below + usize::from(class_bytes(below) < bytes)
}

/// Bytes of the largest block in an arena of `limit` bytes whose blocks begin at `start`.
pub(super) fn largest(start: usize, limit: usize) -> usize {
    let room = |start: usize| limit.saturating_sub(start + HEADER);
    let big = room(page_start(start));
    if big >= BIG { big } else { room(start).min(BIG - 1) }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
struct Want {
    class: usize,
    /// Bytes with header, rounded up to the size.
    span: usize,
    /// Bytes with header, not rounded up: taken where the rounded ones do not fit.
    tight: usize,
    big: bool,
}

impl Want {
    fn new(bytes: usize) -> Self {
        let tight = (bytes.max(SMALLEST) + HEADER).next_multiple_of(HEADER);
        if bytes < BIG {
            let class = class_above(bytes);
            Self { class, span: class_bytes(class) + HEADER, tight, big: false }
        } else {
            // A page more than the size, so that big blocks lie side by side without gaps; what the header does not
            // need of it counts as room.
            let class = class_above((bytes + HEADER).saturating_sub(PAGE).max(BIG));
            Self { class, span: class_bytes(class) + PAGE, tight, big: true }
        }
    }
}

/// The parts of one arena.
#[derive(Debug)]
pub(super) struct Blocks {
    /// All entries; the index is the block's number.
    pub entries: Vec<Entry>,
    /// Entries to use again.
    unused: Vec<u32>,
    /// The entry freed last, per size.
    bins: [u32; CLASSES],
    /// One bit per bin that has something.
    filled: u128,
    /// Freed since the last merging.
    unmerged: Vec<u32>,
    /// The entry with the highest address.
    last: u32,
    /// End of the memory that entries stand for.
    end: usize,
    limit: usize,
}

impl Blocks {
    /// No memory yet; it will begin at `start` and never reach beyond `limit`.
    pub fn new(start: usize, limit: usize) -> Self {
        Self {
            entries: Vec::new(),
            unused: Vec::new(),
            bins: [NONE; CLASSES],
            filled: 0,
            unmerged: Vec::new(),
            last: NONE,
            end: start,
            limit,
        }
    }

    /// A block for `bytes` bytes from the memory there is, in state [`State::Loaned`] with a new generation.
    #[inline]
    pub fn take(&mut self, bytes: usize) -> Option<u32> {
        let want = Want::new(bytes);
        let mut bins = self.filled & (u128::MAX << want.class);
        while bins != 0 {
            let bin = bins.trailing_zeros() as usize;
            let id = self.bins[bin];
            if let Some(start) = self[id].place(want.span, want.big) {
                return Some(self.carve(id, start, want.span, bytes));
            }
            bins &= bins - 1;
        }
        None
    }

    /// As [`take`](Self::take), without rounding up, and looking at more than the heads of the bins.
    pub fn take_tight(&mut self, bytes: usize) -> Option<u32> {
        let want = Want::new(bytes);
        let lowest = class_below(want.tight - HEADER);
        let mut bins = self.filled & (u128::MAX << lowest);
        while bins != 0 {
            let bin = bins.trailing_zeros() as usize;
            // Big blocks are few; a long list of small ones is not worth its walk.
            let look = if want.big { usize::MAX } else { TIGHT_LOOK };
            let mut id = self.bins[bin];
            for _ in 0..look {
                if id == NONE {
                    break;
                }
                if let Some(start) = self[id].place(want.tight, want.big) {
                    return Some(self.carve(id, start, want.tight, bytes));
                }
                id = self[id].older;
            }
            bins &= bins - 1;
        }
        None
    }

    /// Puts a block back into its bin.
    #[inline]
    pub fn free(&mut self, id: u32) {
        self[id].state = State::Free;
        self.link(id);
        self.queue(id);
    }

    /// Joins free neighbours. True if there were some.
    pub fn merge(&mut self) -> bool {
        let mut merged = false;
        let mut list = std::mem::take(&mut self.unmerged);
        for mut id in list.drain(..) {
            self[id].queued = false;
            while let Some(before) = self.free_one(id, self[id].before) {
                self.join(before, id);
                (id, merged) = (before, true);
            }
            while let Some(after) = self.free_one(id, self[id].after) {
                self.join(id, after);
                merged = true;
            }
        }
        self.unmerged = list;
        merged
    }

    /// How far the memory must reach for a block of `bytes` bytes; `None` if the limit is in the way.
    pub fn wanted_end(&self, bytes: usize) -> Option<usize> {
        let want = Want::new(bytes);
        let from = match self.entries.get(self.last as usize) {
            Some(entry) if entry.state == State::Free => entry.start,
            _ => self.end,
        };
        let start = if want.big { page_start(from) } else { from };
        [want.span, want.tight].into_iter().map(|span| start + span).find(|&end| end <= self.limit)
    }

    /// There is memory up to `end` now.
    pub fn extend(&mut self, end: usize) {
        let more = end - self.end;
        if more == 0 {
            return;
        }
        let last = self.last;
        if last != NONE && self[last].state == State::Free {
            self.unlink(last);
            self[last].span += more;
            self.link(last);
        } else {
            let id = self.entry(self.end, more);
            self[id].before = last;
            if last != NONE {
                self[last].after = id;
            }
            self.last = id;
            self.link(id);
        }
        self.end = end;
    }

    /// Takes `span` bytes from `start` out of the free entry `id`. What is left over stays free.
    #[inline]
    fn carve(&mut self, id: u32, start: usize, span: usize, len: usize) -> u32 {
        self.unlink(id);
        let entry = &self[id];
        let head = start - entry.start;
        let tail = entry.span - head - span;
        let id = if head == 0 && tail < MIN_SPAN { id } else { self.split(id, head, span) };
        let entry = &mut self[id];
        entry.state = State::Loaned;
        entry.generation = entry.generation.wrapping_add(1).max(1);
        entry.len = len;
        id
    }

    /// Splits `head` bytes off the front of the unlinked free entry `id`, and what is left behind `span` bytes off its
    /// back. The old entry keeps one of the leftovers, with its place on the list of those to be merged.
    fn split(&mut self, id: u32, head: usize, span: usize) -> u32 {
        let (start, whole) = (self[id].start, self[id].span);
        let tail = whole - head - span;
        let taken = self.entry(start + head, span);
        if head == 0 {
            self.insert_before(taken, id);
            (self[id].start, self[id].span) = (start + span, tail);
            self.link(id);
            return taken;
        }
        self[id].span = head;
        self.link(id);
        self.insert_after(taken, id);
        if tail < MIN_SPAN {
            self[taken].span += tail;
        } else {
            let rest = self.entry(start + head + span, tail);
            self.insert_after(rest, taken);
            self.link(rest);
            self.queue(rest);
        }
        taken
    }

    /// `other`, if both it and `id` are free.
    fn free_one(&self, id: u32, other: u32) -> Option<u32> {
        let is_free = |id: u32| self.entries.get(id as usize).is_some_and(|entry| entry.state == State::Free);
        (is_free(id) && is_free(other)).then_some(other)
    }

    /// Makes the free entries `low` and its neighbour `high` one.
    fn join(&mut self, low: u32, high: u32) {
        self.unlink(low);
        self.unlink(high);
        self[low].span += self[high].span;
        let after = self[high].after;
        self[low].after = after;
        match after {
            NONE => self.last = low,
            after => self[after].before = low,
        }
        self[high].state = State::Unused;
        self.unused.push(high);
        self.link(low);
    }

    /// A free entry that is in no list yet.
    fn entry(&mut self, start: usize, span: usize) -> u32 {
        if let Some(id) = self.unused.pop() {
            let entry = &mut self[id];
            (entry.start, entry.span, entry.state) = (start, span, State::Free);
            (entry.before, entry.after) = (NONE, NONE);
            return id;
        }
        self.entries.push(Entry {
            start,
            span,
            state: State::Free,
            generation: 0,
            len: 0,
            holders: Vec::new(),
            before: NONE,
            after: NONE,
            newer: NONE,
            older: NONE,
            bin: NO_BIN,
            queued: false,
        });
        (self.entries.len() - 1) as u32
    }

    fn insert_before(&mut self, new: u32, id: u32) {
        let before = self[id].before;
        (self[new].before, self[new].after) = (before, id);
        self[id].before = new;
        if before != NONE {
            self[before].after = new;
        }
    }

    fn insert_after(&mut self, new: u32, id: u32) {
        let after = self[id].after;
        (self[new].before, self[new].after) = (id, after);
        self[id].after = new;
        match after {
            NONE => self.last = new,
            after => self[after].before = new,
        }
    }

    fn queue(&mut self, id: u32) {
        if !std::mem::replace(&mut self[id].queued, true) {
            self.unmerged.push(id);
        }
    }

    /// Puts a free entry at the head of its bin.
    #[inline]
    fn link(&mut self, id: u32) {
        let room = self[id].span - HEADER;
        if room < SMALLEST {
            self[id].bin = NO_BIN;
            return;
        }
        let bin = class_below(room);
        let older = std::mem::replace(&mut self.bins[bin], id);
        self.filled |= 1 << bin;
        let entry = &mut self[id];
        (entry.bin, entry.newer, entry.older) = (bin as u8, NONE, older);
        if older != NONE {
            self[older].newer = id;
        }
    }

    /// Takes a free entry out of its bin.
    #[inline]
    fn unlink(&mut self, id: u32) {
        let entry = &self[id];
        let (bin, newer, older) = (entry.bin, entry.newer, entry.older);
        if bin == NO_BIN {
            return;
        }
        if older != NONE {
            self[older].newer = newer;
        }
        if newer != NONE {
            self[newer].older = older;
            return;
        }
        self.bins[usize::from(bin)] = older;
        if older == NONE {
            self.filled &= !(1 << bin);
        }
    }
}

impl std::ops::Index<u32> for Blocks {
    type Output = Entry;

    #[inline]
    fn index(&self, id: u32) -> &Entry {
        &self.entries[id as usize]
    }
}

impl std::ops::IndexMut<u32> for Blocks {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut Entry {
        &mut self.entries[id as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Blocks {
        /// Checks everything that the module head promises about the tables.
        fn check(&self) {
            let mut first = (0..self.entries.len() as u32)
                .filter(|&id| self[id].state != State::Unused && self[id].before == NONE);
            let mut id = first.next().unwrap_or(NONE);
            assert_eq!(first.next(), None, "two beginnings");
            let (mut at, mut before, mut seen, mut binned) = (64, NONE, 0, 0);
            while id != NONE {
                let entry = &self[id];
                assert_eq!((entry.start, entry.before), (at, before), "a gap or an overlap before {id}");
                assert_ne!(entry.state, State::Unused);
                assert!(entry.span >= HEADER && entry.span.is_multiple_of(HEADER), "{entry:?}");
                if entry.state == State::Free && before != NONE && self[before].state == State::Free {
                    assert!(entry.queued || self[before].queued, "free neighbours that nobody would find");
                }
                if entry.state == State::Free {
                    let small = entry.span < MIN_SPAN;
                    assert_eq!(entry.bin == NO_BIN, small);
                    binned += usize::from(!small);
                }
                (at, before, seen, id) = (at + entry.span, id, seen + 1, entry.after);
            }
            assert_eq!((at, before), (self.end, self.last), "the end");
            assert_eq!(seen + self.unused.len(), self.entries.len(), "an entry lost");
            let mut linked = 0;
            for bin in 0..CLASSES {
                assert_eq!(self.filled >> bin & 1 == 1, self.bins[bin] != NONE);
                let mut id = self.bins[bin];
                while id != NONE {
                    assert_eq!(self[id].state, State::Free);
                    assert_eq!(class_below(self[id].span - HEADER), bin);
                    linked += 1;
                    id = self[id].older;
                }
            }
            assert_eq!(linked, binned, "bins and free blocks");
        }
    }

    #[test]
    fn sizes_waste_at_most_a_quarter() {
        let sizes: Vec<usize> = (0..CLASSES).map(class_bytes).collect();
        assert_eq!(sizes[..6], [256, 320, 384, 448, 512, 640]);
        assert!(sizes.is_sorted() && *sizes.last().expect("some") > LARGEST_ARENA);
        for bytes in (256..300_000).chain([1 << 20, (1 << 20) + 1, (1 << 30) + 1, LARGEST_ARENA]) {
            let want = Want::new(bytes);
            assert!(want.span >= bytes + HEADER, "{bytes} in {want:?}");
            let header = if want.big { 0 } else { HEADER };
            assert!((want.span - header) * 4 <= bytes * 5, "{bytes} takes {}", want.span);
            assert!(want.tight >= bytes + HEADER && want.tight <= want.span);
            assert_eq!(class_below(want.span - HEADER), want.class, "is found again in its own bin");
            assert_eq!(want.big, bytes >= BIG);
        }
    }

    #[test]
    fn the_block_freed_last_is_taken_first() {
        let mut blocks = Blocks::new(64, 1 << 20);
        blocks.extend(1 << 20);
        let taken: Vec<u32> = (0..5).map(|_| blocks.take(1000).expect("room")).collect();
        for &id in &taken {
            blocks.free(id);
        }
        assert_eq!(blocks.take(1000), Some(taken[4]));
        assert_eq!(blocks.take(900), Some(taken[3]), "same size");
        assert_eq!((blocks[taken[4]].generation, blocks[taken[0]].generation), (2, 1));
        blocks.check();
    }

    #[test]
    fn everything_freed_is_one_block_again() {
        let mut blocks = Blocks::new(64, 1 << 20);
        blocks.extend(1 << 20);
        let mut taken = Vec::new();
        while let Some(id) = blocks.take(5000).or_else(|| blocks.take(300)) {
            taken.push(id);
        }
        assert!(blocks.take_tight(5000).is_none() && taken.len() > 150);
        for id in taken {
            blocks.free(id);
        }
        assert!(blocks.take(200_000).is_none(), "not merged yet");
        assert!(blocks.merge() && !blocks.merge());
        blocks.check();
        let id = blocks.take_tight((1 << 20) - PAGE).expect("the whole but for its first page");
        assert_eq!(blocks[id].data(), PAGE);
        blocks.check();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        Tight(usize),
        Free(usize),
        Merge,
        Extend(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = prop_oneof![4 => 0..2000_usize, 2 => 2000..60_000_usize, 1 => 60_000..400_000_usize];
        prop_oneof![
            6 => bytes.clone().prop_map(Step::Take),
            1 => bytes.prop_map(Step::Tight),
            6 => any::<usize>().prop_map(Step::Free),
            1 => Just(Step::Merge),
            1 => (1..60_usize).prop_map(Step::Extend),
        ]
    }

    proptest! {
        /// Against a plain list of ranges: whatever is taken is inside, aligned, large enough and free until then.
        #[test]
        fn blocks_never_overlap_and_nothing_is_lost(steps in proptest::collection::vec(step(), 1..120)) {
            let limit = 2 << 20;
            let mut blocks = Blocks::new(64, limit);
            let mut live: Vec<(u32, std::ops::Range<usize>)> = Vec::new();
            let mut generations = std::collections::HashMap::new();
            for step in steps {
                let taken = match step {
                    Step::Take(bytes) => blocks.take(bytes).map(|id| (id, bytes)),
                    Step::Tight(bytes) => blocks.take_tight(bytes).map(|id| (id, bytes)),
                    Step::Free(at) if !live.is_empty() => {
                        let (id, _) = live.swap_remove(at % live.len());
                        blocks.free(id);
                        None
                    }
                    Step::Free(_) => None,
                    Step::Merge => {
                        blocks.merge();
                        None
                    }
                    Step::Extend(pages) => {
                        blocks.extend((blocks.end + pages * PAGE).min(limit));
                        None
                    }
                };
                if let Some((id, bytes)) = taken {
                    let entry = &blocks[id];
                    let range = entry.start..entry.start + entry.span;
                    prop_assert!(range.start >= 64 && range.end <= blocks.end);
                    prop_assert!(entry.data() + bytes <= range.end && entry.data().is_multiple_of(64));
                    prop_assert!(bytes < BIG || entry.data().is_multiple_of(PAGE));
                    prop_assert!(live.iter().all(|(_, other)| other.end <= range.start || range.end <= other.start));
                    let before = generations.insert(id, entry.generation);
                    prop_assert!(before.unwrap_or(0) < entry.generation);
                    live.push((id, range));
                }
                blocks.check();
            }
            for (id, _) in live {
                blocks.free(id);
            }
            blocks.merge();
            blocks.check();
            prop_assert!(blocks.entries.len() - blocks.unused.len() <= 1, "one free block remains");
        }

        /// `wanted_end` tells the truth: with memory up to there, the request fits.
        #[test]
        fn memory_up_to_the_wanted_end_is_enough(
            held in proptest::collection::vec(0..100_000_usize, 0..20), bytes in 0..1_000_000_usize,
        ) {
            let mut blocks = Blocks::new(64, 4 << 20);
            for bytes in held {
                let end = blocks.wanted_end(bytes).expect("below the limit");
                blocks.extend(end.max(blocks.end));
                prop_assert!(blocks.take(bytes).is_some());
            }
            if let Some(end) = blocks.wanted_end(bytes) {
                blocks.extend(end.max(blocks.end));
                prop_assert!(blocks.take(bytes).or_else(|| blocks.take_tight(bytes)).is_some());
            }
            blocks.check();
        }
    }
}
