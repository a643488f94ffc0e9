//! Anonymous shared objects: created, reserved, mapped, sealed; and the atomic words inside.
//!
//! Two kinds. A ring's or a page's memory is reserved whole when it is created. An arena's object is *sparse*: it has
//! its full size, sealed, from the start, but memory only where its owner committed some. A sparse object has one rule
//! for everybody: a hole is never touched. A write there takes memory that may not be there (`SIGBUS`), and so does a
//! mere read through a shared mapping, because the kernel fills the hole to have something to show.
//! [`ArenaMemory`] and [`ArenaWindow`] are the two sides of such an object, the owner's and a reader's; everything
//! that the allocator in [`super::arena`] needs from the kernel is behind them.

use crate::base::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Who may write through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// This process writes.
    Write,
    /// This process only reads; a write would fault.
    Read,
}

/// A sealed memfd that can be handed to a child by descriptor. It has no name, so nothing is left
/// behind when the last process that holds it is gone.
#[derive(Debug)]
pub struct SharedObject {
    fd: OwnedFd,
    bytes: usize,
}

impl SharedObject {
    /// Creates an object of `bytes` bytes of zeros, its memory reserved (so that a full host is an
    /// error here and not a SIGBUS later), its size sealed.
    pub fn create(label: &str, bytes: usize) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(label, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, bytes as u64)?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(Self { fd, bytes })
    }

    /// Creates an object of `bytes` bytes, its size sealed, with no memory at all: see [`commit`](Self::commit).
    pub fn create_sparse(label: &str, bytes: usize) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(label, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, bytes as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(Self { fd, bytes })
    }

    /// Gives `bytes` bytes from `offset` real memory, or says that there is none. What already has memory keeps
    /// it. The pages are reserved, not yet filled: until [`Words::populate`] the kernel still calls them a hole.
    ///
    /// A host without memory is an error here. A memory control group at its limit is not always: the kernel may end
    /// a process of the group instead, so sizes belong well below it.
    pub fn commit(&self, offset: usize, bytes: usize) -> io::Result<()> {
        let end = offset.checked_add(bytes).filter(|&end| end <= self.bytes);
        let Some(end) = end else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "commit beyond the end of the object"));
        };
        // In pieces, because a signal makes the kernel undo the whole call.
        let mut at = offset;
        while at < end {
            let piece = COMMIT_PIECE.min(end - at);
            retry(|| rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), at as u64, piece as u64))?;
            at += piece;
        }
        Ok(())
    }

    /// The first byte at or after `offset` that no memory stands behind: `offset` itself where there is none.
    pub fn filled_until(&self, offset: usize) -> io::Result<usize> {
        if offset >= self.bytes {
            return Ok(offset);
        }
        let hole = rustix::fs::seek(&self.fd, SeekFrom::Hole(offset as u64))?;
        Ok(usize::try_from(hole).unwrap_or(self.bytes).clamp(offset, self.bytes))
    }

    /// Takes over an object that the supervisor handed down, after checking that its size is
    /// `bytes` and that nobody can shrink it under our mapping.
    pub fn adopt(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        let found = rustix::fs::fstat(&fd)?.st_size;
        if found != bytes as i64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("shared object of {found} bytes where {bytes} were announced"),
            ));
        }
        if !rustix::fs::fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "shared object that could still be shrunk",
            ));
        }
        Ok(Self { fd, bytes })
    }

    /// Maps the whole object. The one writer calls this with [`Access::Write`] and then
    /// [`seal_writes`](Self::seal_writes); afterwards only read-only mappings can be made.
    pub fn map(&self, access: Access) -> io::Result<Arc<Words>> {
        self.map_first(access, self.bytes)
    }

    /// As [`map`](Self::map), the first `bytes` bytes only.
    pub fn map_first(&self, access: Access, bytes: usize) -> io::Result<Arc<Words>> {
        let bytes = bytes.min(self.bytes);
        let protection = match access {
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
            Access::Read => ProtFlags::READ,
        };
        // SAFETY: a fresh mapping at an address the kernel chooses touches no memory of ours; the
        // object's size is sealed, so no access inside `bytes` can fault later.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &self.fd, 0)?
        };
        let start =
            NonNull::new(start.cast::<AtomicU64>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Arc::new(Words { start, words: bytes / 8, access, keeper: Keeper::Mapping(bytes) }))
    }

    /// After this no new writable mapping of the object can be made, by anybody, for good.
    pub fn seal_writes(&self) -> io::Result<()> {
        rustix::fs::fcntl_add_seals(&self.fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
        Ok(())
    }

    /// After this nobody can add a seal. For what many write: one of them could lock out the others.
    pub fn seal_seals(&self) -> io::Result<()> {
        rustix::fs::fcntl_add_seals(&self.fd, SealFlags::SEAL)?;
        Ok(())
    }

    /// Bytes of the object.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Another descriptor of the same object.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, bytes: self.bytes })
    }

    /// A descriptor of the same object through which nobody can write, to be handed to those who only read.
    pub fn read_only(&self) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
        Ok(Self { fd, bytes: self.bytes })
    }
}

impl AsFd for SharedObject {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A mapping seen as 64-bit atomic words.
#[derive(Debug)]
pub struct Words {
    start: NonNull<AtomicU64>,
    words: usize,
    access: Access,
    keeper: Keeper,
}

/// Who gives the memory of [`Words`] back.
#[derive(Clone, Copy, Debug)]
enum Keeper {
    /// We do: a mapping of so many bytes.
    Mapping(usize),
    /// We do: a boxed slice of so many 16-byte units.
    Heap(usize),
    /// Somebody else.
    Borrowed,
}

/// What the kernel made of the wish for huge pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HugeAdvice {
    /// It will use them where it has some.
    Taken,
    /// It will not, and why.
    Refused(String),
    /// The mapping is smaller than one.
    TooSmall,
}

/// Bytes of the huge pages that are asked for.
pub const HUGE_PAGE: usize = 2 << 20;
/// Bytes of the pages that everything is counted in.
pub const PAGE: usize = 4096;
/// Where the kernel says whether shared memory gets huge pages.
const SHMEM_HUGE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// Bytes that are reserved in one system call.
const COMMIT_PIECE: usize = 4 << 20;

/// Again while a signal interrupts, but not for ever.
fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    for _ in 0..32 {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) => {}
            done => return Ok(done?),
        }
    }
    Ok(call()?)
}

// SAFETY: all access goes through atomics; the mapping stays until the last owner drops it.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Private memory with the same face, for tests and for miri, which has no shared mappings.
    pub fn private(words: usize) -> Arc<Self> {
        let units = words.div_ceil(2);
        let memory = Box::leak(vec![0u128; units].into_boxed_slice());
        let start = NonNull::from(memory).cast::<AtomicU64>();
        Arc::new(Self { start, words, access: Access::Write, keeper: Keeper::Heap(units) })
    }

    /// Words over memory that `owner` keeps mapped.
    ///
    /// # Safety
    /// `start` is 8-aligned and valid for reads and writes of `words` words as long as the value lives.
    pub unsafe fn borrowed(start: NonNull<u8>, words: usize) -> Self {
        Self { start: start.cast(), words, access: Access::Write, keeper: Keeper::Borrowed }
    }

    /// Number of 64-bit words.
    pub fn len(&self) -> usize {
        self.words
    }

    /// True for an empty mapping, which [`SharedObject`] never makes.
    pub fn is_empty(&self) -> bool {
        self.words == 0
    }

    /// The word at `index`. Panics beyond the end: indexes are ours, never a peer's.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: in range by the check; the mapping outlives `self`; AtomicU64 may alias other
        // processes' atomics on the same memory.
        unsafe { self.start.add(index).as_ref() }
    }

    /// Eight words from `index` on, with one check for all of them. Panics beyond the end.
    #[inline]
    pub fn line(&self, index: usize) -> &[AtomicU64; 8] {
        assert!(self.words >= 8 && index <= self.words - 8, "line {index} of {}", self.words);
        // SAFETY: all eight in range by the check; otherwise as for `word`.
        unsafe { self.start.add(index).cast::<[AtomicU64; 8]>().as_ref() }
    }

    /// The low half of the word at `index`, to be named in futex calls. Loads and stores go through
    /// [`word`](Self::word) only: no word is accessed in two sizes, except by the kernel.
    #[inline]
    pub fn half(&self, index: usize) -> &AtomicU32 {
        const { assert!(cfg!(target_endian = "little"), "the low half of a word is the first") };
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: in range; 8-aligned is 4-aligned; an atomic may alias other atomics, and nobody reads this one.
        unsafe { self.start.add(index).cast::<AtomicU32>().as_ref() }
    }

    /// The words from `offset` (a multiple of 8) that hold `bytes` bytes. Panics beyond the end.
    #[inline]
    fn span(&self, offset: usize, bytes: usize) -> &[AtomicU64] {
        let (first, count) = (offset / 8, bytes.div_ceil(8));
        assert!(
            offset.is_multiple_of(8) && first <= self.words && count <= self.words - first,
            "{bytes} bytes at {offset} of {} words",
            self.words
        );
        // SAFETY: in range by the check; the mapping outlives `self`; atomics may alias anybody's atomics.
        unsafe { std::slice::from_raw_parts(self.start.add(first).as_ptr(), count) }
    }

    /// The address of `bytes` bytes from `offset`, a multiple of 8. Panics beyond the end.
    #[inline]
    fn start_of(&self, offset: usize, bytes: usize) -> *mut u8 {
        self.span(offset, bytes);
        // SAFETY: inside the mapping by the check that `span` makes; derived from the mapping's own pointer.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }

    /// Copies `bytes` bytes from `offset` (a multiple of 8) to `into`, word by word: the other side may write at any
    /// time, and what tears then is the content and nothing else.
    ///
    /// # Safety
    /// `into` is valid for writes of `bytes` bytes and not part of this memory.
    unsafe fn read_bytes(&self, offset: usize, into: *mut u8, bytes: usize) {
        let words = self.span(offset, bytes);
        let (whole, tail) = words.split_at(bytes / 8);
        for (index, word) in whole.iter().enumerate() {
            let value = word.load(Ordering::Relaxed);
            // SAFETY: byte `index * 8 + 7` is below `bytes`, for which the caller vouches.
            unsafe { into.add(index * 8).cast::<u64>().write_unaligned(value) };
        }
        if let Some(word) = tail.first() {
            let value = word.load(Ordering::Relaxed).to_ne_bytes();
            // SAFETY: the last `bytes % 8` bytes, for which the caller vouches; `value` is on our stack.
            unsafe { into.add(whole.len() * 8).copy_from_nonoverlapping(value.as_ptr(), bytes % 8) };
        }
    }

    /// Writes `from` at any `offset`, word by word. This process is the only writer.
    fn write_bytes(&self, offset: usize, from: &[u8]) {
        let merge = |word: &AtomicU64, at: usize, part: &[u8]| {
            let mut value = word.load(Ordering::Relaxed).to_ne_bytes();
            value[at..at + part.len()].copy_from_slice(part);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        };
        let into = offset % 8;
        let (head, rest) = from.split_at(if into == 0 { 0 } else { from.len().min(8 - into) });
        if !head.is_empty() {
            merge(&self.span(offset - into, 8)[0], into, head);
        }
        if rest.is_empty() {
            return;
        }
        let words = self.span(offset + head.len(), rest.len());
        let (chunks, tail) = rest.as_chunks::<8>();
        for (word, chunk) in words.iter().zip(chunks) {
            word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        if !tail.is_empty() {
            merge(&words[chunks.len()], 0, tail);
        }
    }

    /// Asks for huge pages. Never an error: without them everything works, somewhat slower.
    pub fn advise_huge(&self) -> HugeAdvice {
        let Keeper::Mapping(bytes) = self.keeper else {
            return HugeAdvice::Refused("not a mapping of ours".into());
        };
        if bytes < HUGE_PAGE {
            return HugeAdvice::TooSmall;
        }
        // SAFETY: our own mapping, whole; the advice changes nothing that a program can read.
        let advised =
            unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        if let Err(error) = advised {
            return HugeAdvice::Refused(error.to_string());
        }
        // The call succeeds even where shared memory never gets any.
        match fs::read_to_string(SHMEM_HUGE) {
            Ok(modes) if modes.contains("[never]") || modes.contains("[deny]") => {
                HugeAdvice::Refused(format!("{SHMEM_HUGE}: {}", modes.trim()))
            }
            Ok(_) => HugeAdvice::Taken,
            Err(error) => HugeAdvice::Refused(format!("{SHMEM_HUGE}: {error}")),
        }
    }

    /// Touches every page of `bytes` bytes from `offset` now, so that nothing has to wait for one later. In a sparse
    /// object only what was committed may be named.
    pub fn populate(&self, offset: usize, bytes: usize) -> io::Result<()> {
        let size = self.words * 8;
        if offset > size || bytes > size - offset {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "populate beyond the end of the mapping",
            ));
        }
        if bytes == 0 {
            return Ok(());
        }
        if matches!(self.keeper, Keeper::Mapping(_)) && self.advise_populate(offset, bytes)? {
            return Ok(());
        }
        let first = offset / PAGE * PAGE;
        for word in self.span(first, offset - first + bytes).iter().step_by(PAGE / 8) {
            match self.access {
                Access::Write => word.fetch_or(0, Ordering::Relaxed),
                Access::Read => word.load(Ordering::Relaxed),
            };
        }
        Ok(())
    }

    /// Lets the kernel populate these bytes of our mapping: memory or an error, never a signal. `false` where it does
    /// not know how (Linux before 5.14).
    fn advise_populate(&self, offset: usize, bytes: usize) -> io::Result<bool> {
        let advice = match self.access {
            Access::Write => Advice::LinuxPopulateWrite,
            Access::Read => Advice::LinuxPopulateRead,
        };
        let first = offset / PAGE * PAGE;
        let length = (offset - first + bytes).next_multiple_of(PAGE);
        let start = self.start_of(first, offset - first + bytes);
        // SAFETY: pages of our own mapping; prefaulting them changes no byte.
        match retry(|| unsafe { rustix::mm::madvise(start.cast(), length, advice) }) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the eight words from `index` on past the caches of this core: for lines that another core will read and
    /// this one will not. Others may see them late and in any order, up to [`end_stream`]. Panics beyond the end.
    #[inline]
    pub fn stream_line(&self, index: usize, words: [u64; 8]) {
        let line = self.line(index);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if line.as_ptr().addr().is_multiple_of(16) {
            use std::arch::x86_64::{_mm_set_epi64x, _mm_stream_si128};
            let start = line[0].as_ptr();
            for (at, pair) in words.as_chunks::<2>().0.iter().enumerate() {
                // SAFETY: SSE2 belongs to the architecture; inside the line, which is mapped and 16-aligned; atomics may
                // be written through a shared reference, and whoever reads them here waits for a store after `end_stream`.
                unsafe {
                    _mm_stream_si128(
                        start.add(2 * at).cast(),
                        _mm_set_epi64x(pair[1] as i64, pair[0] as i64),
                    );
                }
            }
            return;
        }
        for (to, word) in line.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
    }

    /// Whether this process may write here.
    pub fn access(&self) -> Access {
        self.access
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        match self.keeper {
            Keeper::Mapping(bytes) => {
                // SAFETY: mapped by us with this very length; no reference into it outlives `self`.
                let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
            }
            Keeper::Heap(units) => {
                let memory = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr().cast::<u128>(), units);
                // SAFETY: leaked from a box of this very type and length by `private`; nobody else frees it.
                drop(unsafe { Box::from_raw(memory) });
            }
            Keeper::Borrowed => {}
        }
    }
}

/// The owner's side of an arena's memory: sparse, written by this process alone.
#[derive(Debug)]
pub struct ArenaMemory {
    words: Arc<Words>,
    source: Source,
    huge: HugeAdvice,
}

/// A reader's side: the same bytes, read-only.
#[derive(Debug)]
pub struct ArenaWindow {
    words: Arc<Words>,
    source: Source,
}

/// Where the memory comes from.
#[derive(Debug)]
enum Source {
    Object(SharedObject),
    Private(Arc<Purse>),
}

/// Stands in for the kernel where memory is private: how much was asked for, and how much there is.
#[derive(Debug)]
struct Purse {
    committed: AtomicUsize,
    there_is: usize,
}

impl ArenaMemory {
    /// Maps `object` for writing and seals it, so that this process stays the only writer and nobody can take pages
    /// out of it again.
    pub fn adopt(object: SharedObject) -> io::Result<Self> {
        let words = object.map(Access::Write)?;
        object.seal_writes()?;
        let huge = words.advise_huge();
        Ok(Self { words, source: Source::Object(object), huge })
    }

    /// Private memory of `bytes` bytes of which only the first `there_is` can be committed.
    pub fn private(bytes: usize, there_is: usize) -> Self {
        let purse = Arc::new(Purse { committed: AtomicUsize::new(0), there_is });
        let huge = HugeAdvice::Refused("private memory".into());
        Self { words: Words::private(bytes.div_ceil(8)), source: Source::Private(purse), huge }
    }

    /// The object behind it, unless it is private.
    pub fn object(&self) -> Option<&SharedObject> {
        match &self.source {
            Source::Object(object) => Some(object),
            Source::Private(_) => None,
        }
    }

    /// A reader's side in the same process, of private memory only.
    pub fn private_window(&self) -> Option<ArenaWindow> {
        match &self.source {
            Source::Object(_) => None,
            Source::Private(purse) => {
                Some(ArenaWindow { words: self.words.clone(), source: Source::Private(purse.clone()) })
            }
        }
    }

    /// Whether the kernel uses huge pages for it.
    pub fn huge(&self) -> &HugeAdvice {
        &self.huge
    }

    /// Bytes, whether committed or not.
    pub fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    /// Puts memory behind `bytes` bytes from `offset`, zeroed and touched: nothing there can fault any more.
    pub fn commit(&self, offset: usize, bytes: usize) -> io::Result<()> {
        match &self.source {
            Source::Object(object) => {
                // Reserving would take small pages, touching takes huge ones where there are some.
                if self.huge == HugeAdvice::Taken {
                    self.words.advise_populate(offset, bytes)?;
                }
                object.commit(offset, bytes)?;
                self.words.populate(offset, bytes)
            }
            Source::Private(purse) => {
                if offset.saturating_add(bytes) > purse.there_is {
                    return Err(io::Error::from(io::ErrorKind::OutOfMemory));
                }
                purse.committed.fetch_max(offset + bytes, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// The word at `index`.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        self.words.word(index)
    }

    /// The address of `bytes` bytes from `offset`. Panics beyond the end.
    #[inline]
    pub fn start_of(&self, offset: usize, bytes: usize) -> *mut u8 {
        self.words.start_of(offset, bytes)
    }

    /// Writes `from` at `offset` with relaxed atomic stores.
    pub fn write(&self, offset: usize, from: &[u8]) {
        self.words.write_bytes(offset, from);
    }
}

impl ArenaWindow {
    /// Maps what an owner handed out, after checking that it is memory of the kind whose holes the kernel can name and
    /// whose filled pages nobody, not even its owner, can take away again.
    pub fn open(object: SharedObject) -> io::Result<Self> {
        let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        // tmpfs: a memfd of huge pages also has seals, but calls its holes filled.
        if rustix::fs::fstatfs(&object.fd)?.f_type as u64 != TMPFS_MAGIC {
            return refuse("arena object that is not plain anonymous memory");
        }
        let seals = rustix::fs::fcntl_get_seals(&object.fd)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW)
            || !seals.intersects(SealFlags::FUTURE_WRITE | SealFlags::WRITE)
        {
            return refuse("arena object that is not sealed against further writers");
        }
        let words = object.map(Access::Read)?;
        Ok(Self { words, source: Source::Object(object) })
    }

    /// Bytes, whether committed or not.
    pub fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    /// The object behind it, unless it is private.
    pub fn object(&self) -> Option<&SharedObject> {
        match &self.source {
            Source::Object(object) => Some(object),
            Source::Private(_) => None,
        }
    }

    /// The first byte at or after `offset` that must not be touched. What is before it stays touchable for good.
    pub fn filled_until(&self, offset: usize) -> io::Result<usize> {
        match &self.source {
            Source::Object(object) => object.filled_until(offset),
            Source::Private(purse) => Ok(purse.committed.load(Ordering::Relaxed).max(offset)),
        }
    }

    /// Maps `bytes` bytes from `offset`, which are known to be filled, before anybody waits for them.
    pub fn prefault(&self, offset: usize, bytes: usize) {
        // Private memory has nothing to map, and touching it would be a write beside the owner's plain ones.
        if matches!(self.source, Source::Object(_)) {
            // Without it they are mapped one by one when they are read.
            let _ = self.words.populate(offset, bytes);
        }
    }

    /// The word at `index`, which must not lie in a hole.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        self.words.word(index)
    }

    /// The eight words from `index` on, which must not lie in a hole.
    #[inline]
    pub fn line(&self, index: usize) -> &[AtomicU64; 8] {
        self.words.line(index)
    }

    /// Fills `into` from `offset`, a multiple of 8, with relaxed atomic loads.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        // SAFETY: `into` is valid for writes of its own length.
        unsafe { self.words.read_bytes(offset, into.as_mut_ptr(), into.len()) }
    }

    /// Appends `bytes` bytes from `offset`, a multiple of 8, with relaxed atomic loads.
    pub fn append_to(&self, offset: usize, bytes: usize, into: &mut Vec<u8>) {
        into.reserve(bytes);
        let end = into.len() + bytes;
        // SAFETY: `reserve` made room for `bytes` bytes after the present end; all of them are written before
        // the length says so.
        unsafe {
            self.words.read_bytes(offset, into.as_mut_ptr().add(into.len()), bytes);
            into.set_len(end);
        }
    }

    /// The address of `bytes` bytes from `offset`. Panics beyond the end.
    #[inline]
    pub fn start_of(&self, offset: usize, bytes: usize) -> *const u8 {
        self.words.start_of(offset, bytes)
    }
}

/// All that was streamed before is seen by whoever sees a store after.
#[inline]
pub fn end_stream() {
    // SAFETY: SSE belongs to the architecture.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Fills `to`, 64-aligned and a multiple of 64 bytes, line by line past the caches.
pub(super) fn stream(to: &mut [u8], mut line: impl FnMut(usize) -> [u64; 8]) {
    assert!(to.as_ptr().addr().is_multiple_of(64) && to.len().is_multiple_of(64), "no whole lines");
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_mm_set_epi64x, _mm_stream_si128};
        for (at, place) in to.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            let words = line(at);
            for (pair, place) in words.as_chunks::<2>().0.iter().zip(place.as_chunks_mut::<16>().0) {
                // SAFETY: SSE2 belongs to the architecture; `place` is 16 bytes of ours, 16-aligned by the check
                // above, and nobody else's before `end_stream`.
                unsafe {
                    _mm_stream_si128(
                        place.as_mut_ptr().cast(),
                        _mm_set_epi64x(pair[1] as i64, pair[0] as i64),
                    )
                };
            }
        }
        // Without it the store that publishes the block could be seen before these are.
        end_stream();
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for (at, place) in to.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        place.copy_from_slice(line(at).map(u64::to_le_bytes).as_flattened());
    }
}

/// What `fstatfs` calls plain shared memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::sync::Ordering;

    #[test]
    fn writer_and_reader_see_the_same_words() {
        let object = SharedObject::create("test", 4096).expect("memfd");
        let writer = object.map(Access::Write).expect("map");
        object.seal_writes().expect("seal");
        let reader = object.map(Access::Read).expect("map read-only");
        writer.word(511).store(42, Ordering::Release);
        assert_eq!(reader.word(511).load(Ordering::Acquire), 42);
    }

    #[test]
    fn a_sealed_object_takes_no_second_writer_and_keeps_its_size() {
        let object = SharedObject::create("test", 4096).expect("memfd");
        let _writer = object.map(Access::Write).expect("map");
        object.seal_writes().expect("seal");
        assert!(object.map(Access::Write).is_err(), "second writer");
        assert!(rustix::fs::ftruncate(&object, 0).is_err(), "shrunk");
    }

    #[test]
    fn adoption_checks_size_and_seals() {
        let object = SharedObject::create("test", 4096).expect("memfd");
        let copy = object.as_fd().try_clone_to_owned().expect("dup");
        assert!(SharedObject::adopt(copy, 8192).is_err(), "wrong size");
        let bare = rustix::fs::memfd_create("bare", MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::fs::ftruncate(&bare, 4096).expect("size");
        assert!(SharedObject::adopt(bare, 4096).is_err(), "no seals");
    }

    /// 512-byte units of memory behind an object.
    fn taken(object: &SharedObject) -> i64 {
        rustix::fs::fstat(object).expect("stat").st_blocks
    }

    fn punch(object: &SharedObject) -> rustix::io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(object, mode, 0, PAGE as u64)
    }

    #[test]
    fn a_sparse_object_takes_memory_when_it_is_committed() {
        let object = SharedObject::create_sparse("test", 1 << 30).expect("memfd");
        let words = object.map(Access::Write).expect("map");
        assert_eq!((taken(&object), object.filled_until(0).expect("seek")), (0, 0));
        object.commit(0, 5 << 20).expect("memory");
        assert_eq!(taken(&object) * 512, 5 << 20, "reserved");
        assert_eq!(object.filled_until(0).expect("seek"), 0, "reserved is not yet filled");
        words.populate(0, 5 << 20).expect("memory");
        assert_eq!(object.filled_until(0).expect("seek"), 5 << 20);
        assert_eq!(object.filled_until(PAGE).expect("seek"), 5 << 20);
        assert_eq!(object.filled_until(7 << 20).expect("seek"), 7 << 20, "inside a hole");
        assert_eq!(object.filled_until(1 << 30).expect("at the end"), 1 << 30);
        assert_eq!(taken(&object) * 512, 5 << 20, "asking took nothing");
        words.word(3).store(7, Ordering::Relaxed);
        object.commit(0, 6 << 20).expect("memory");
        words.populate(0, 6 << 20).expect("memory");
        assert_eq!(words.word(3).load(Ordering::Relaxed), 7, "what was there stays");
        assert!(object.commit(1 << 30, 1).is_err() && object.commit(PAGE, usize::MAX).is_err());
        assert!(words.populate(1 << 30, 1).is_err() && words.populate(8, usize::MAX).is_err());
    }

    /// What a reader of a sparse object relies on, of this very kernel.
    #[test]
    fn after_the_seal_memory_can_be_added_but_not_taken_away() {
        let object = SharedObject::create_sparse("test", 1 << 20).expect("memfd");
        let words = object.map(Access::Write).expect("map");
        object.commit(0, 4 * PAGE).expect("memory");
        words.populate(0, 4 * PAGE).expect("memory");
        punch(&object).expect("allowed before the seal");
        assert_eq!(object.filled_until(0).expect("seek"), 0);
        object.commit(0, PAGE).expect("memory");
        words.populate(0, PAGE).expect("memory");
        object.seal_writes().expect("seal");
        object.commit(4 * PAGE, 4 * PAGE).expect("still allowed");
        words.populate(4 * PAGE, 4 * PAGE).expect("still allowed");
        assert_eq!(object.filled_until(0).expect("seek"), 8 * PAGE);
        assert_eq!(punch(&object), Err(Errno::PERM));
        // The same by way of the writable mapping that the owner still has.
        // SAFETY: if it were allowed it would zero a page of atomics.
        let removed = unsafe { rustix::mm::madvise(words.start.as_ptr().cast(), PAGE, Advice::LinuxRemove) };
        assert_eq!(removed, Err(Errno::PERM));
        // Dropping the mapping's pages takes nothing out of the object.
        // SAFETY: pages of our own shared mapping, which come back with what they hold.
        unsafe { rustix::mm::madvise(words.start.as_ptr().cast(), PAGE, Advice::LinuxDontNeed) }
            .expect("harmless");
        assert_eq!(object.filled_until(0).expect("seek"), 8 * PAGE);
    }

    /// Why holes are never touched: a mere look takes memory.
    #[test]
    fn reading_a_hole_takes_memory() {
        let object = SharedObject::create_sparse("test", 1 << 20).expect("memfd");
        let words = object.map(Access::Read).expect("map");
        assert_eq!(words.word(512).load(Ordering::Relaxed), 0);
        assert!(taken(&object) > 0);
    }

    #[test]
    fn a_window_opens_only_on_what_cannot_be_taken_away() {
        let again = |object: &SharedObject| {
            SharedObject::adopt(object.as_fd().try_clone_to_owned().expect("dup"), object.bytes())
                .expect("sealed size")
        };
        let object = SharedObject::create_sparse("test", 1 << 20).expect("memfd");
        assert!(ArenaWindow::open(again(&object)).is_err(), "holes could still be punched");
        let owner = ArenaMemory::adopt(again(&object)).expect("first");
        assert!(ArenaMemory::adopt(again(&object)).is_err(), "two owners");
        owner.commit(0, PAGE).expect("memory");
        owner.write(3, b"hello, arena");
        let window = ArenaWindow::open(again(&object)).expect("sealed");
        let mut read = [0; 15];
        window.read(0, &mut read);
        assert_eq!(&read, b"\0\0\0hello, arena");
        assert_eq!((window.filled_until(0).expect("seek"), window.bytes()), (PAGE, 1 << 20));
    }

    /// Huge pages of their own file system would pass for filled where there is nothing.
    #[test]
    fn a_window_refuses_objects_whose_holes_do_not_show() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        // A kernel without them cannot be asked.
        let Ok(fd) = rustix::fs::memfd_create("huge", flags) else { return };
        if rustix::fs::ftruncate(&fd, HUGE_PAGE as u64).is_err() {
            return;
        }
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).expect("seal");
        let object = SharedObject::adopt(fd, HUGE_PAGE).expect("sealed size");
        object.seal_writes().expect("seal");
        let error = ArenaWindow::open(object).expect_err("its holes cannot be seen");
        assert!(error.to_string().contains("anonymous"), "{error}");
    }

    #[test]
    fn huge_pages_are_a_wish() {
        let small =
            SharedObject::create_sparse("test", PAGE).expect("memfd").map(Access::Write).expect("map");
        assert_eq!(small.advise_huge(), HugeAdvice::TooSmall);
        let large =
            SharedObject::create_sparse("test", HUGE_PAGE).expect("memfd").map(Access::Write).expect("map");
        let modes = fs::read_to_string(SHMEM_HUGE).unwrap_or_default();
        let never = modes.is_empty() || modes.contains("[never]") || modes.contains("[deny]");
        match large.advise_huge() {
            HugeAdvice::Taken => assert!(!never),
            HugeAdvice::Refused(why) => assert!(!why.is_empty()),
            HugeAdvice::TooSmall => panic!("large enough"),
        }
        assert!(matches!(Words::private(1 << 20).advise_huge(), HugeAdvice::Refused(_)));
    }

    proptest::proptest! {
        /// Pieces of any length at any place, against a plain vector.
        #[test]
        fn bytes_are_written_and_read_as_in_a_vector(
            pieces in proptest::collection::vec((0..200_usize, proptest::collection::vec(0..=255_u8, 0..60)), 1..20),
            from in 0..20_usize, length in 0..100_usize,
        ) {
            let owner = ArenaMemory::private(512, 512);
            let window = owner.private_window().expect("private");
            let mut plain = [0_u8; 512];
            for (at, bytes) in &pieces {
                owner.write(*at, bytes);
                plain[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            let mut copy = vec![9];
            window.append_to(from * 8, length, &mut copy);
            proptest::prop_assert_eq!(&copy[1..], &plain[from * 8..][..length]);
            let mut again = vec![0; length];
            window.read(from * 8, &mut again);
            proptest::prop_assert_eq!(&copy[1..], &again[..]);
        }
    }
}
