//! Memory that arrays live in: files seen as bytes, and aligned buffers of our own.
//!
//! Invariants
//! 1. Every byte a [`FileBytes`] or a [`Buffer`] hands out is initialised, and both start on a 64-byte
//!    boundary (one cache line, one 512-bit vector).
//! 2. A buffer given back to the pool stays in the thread that dropped it; what it holds next is its own old
//!    contents, never another process's.
//!
//! A mapped file is borrowed memory: whoever truncates it while it is mapped ends the reading process with
//! `SIGBUS`. That is accepted, because agents are processes and a dead one costs a retry. Whoever rewrites it
//! in place changes numbers under a running kernel, which then answers nonsense, but every bit pattern is a
//! valid number, so nothing worse. Writers that rename (as ours do) cause neither.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};

/// Alignment of every buffer, in bytes.
pub const ALIGNMENT_BYTES: usize = 64;
/// Files up to this size are read, larger ones are mapped: below it two system calls and a copy into warm
/// memory cost less than making and removing page tables.
const READ_BYTES_MAX: usize = 128 << 10;
/// Mapped files up to this size get their page tables at once; above it the kernel only reads ahead, so that
/// a huge cold file does not hold the process in one uninterruptible call.
const POPULATE_BYTES_MAX: usize = 64 << 20;
/// From this size on buffers are mapped, so that untouched pages cost nothing and huge pages may be used.
const MAPPED_BYTES_MIN: usize = 64 << 10;
/// A huge page is 2 MiB; asking below two of them is not worth the call.
const HUGE_BYTES_MIN: usize = 4 << 20;
/// The pool keeps at most so many buffers per thread, and so many bytes at least and at most: see [`pool_bytes_max`].
const POOL_BUFFERS_MAX: usize = 16;
const POOL_BYTES: RangeInclusive<usize> = 32 << 20..=256 << 20;
/// Threads of all cores together keep at most one part in so many of this host's memory.
const POOL_SHARE: usize = 16;

/// Memory could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory: {bytes} bytes were asked for")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
}

/// The contents of a regular file, mapped when large and read when small.
#[derive(Debug)]
pub struct FileBytes {
    store: FileStore,
}

#[derive(Debug)]
enum FileStore {
    Read(Buffer),
    Mapped(Mmap),
}

impl FileBytes {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for anything that is not a regular file (a directory, a pipe, a
    /// device: opening one does not block); `OutOfMemory`.
    pub fn open(path: &Path) -> io::Result<FileBytes> {
        // Without O_NONBLOCK, opening a pipe that nobody writes to would hang for ever; on regular files it
        // means nothing.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut file = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, kind));
        }
        let length =
            usize::try_from(metadata.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        if length <= READ_BYTES_MAX {
            return FileBytes::read(&mut file, length);
        }
        let mut options = MmapOptions::new();
        if length <= POPULATE_BYTES_MAX {
            options.populate();
        }
        // SAFETY: mapped private and read-only, and `length > 0`. That others may write the file meanwhile is
        // the risk the module's text accepts: the bytes are only ever read as plain numbers.
        let map = unsafe { options.len(length).map_copy_read_only(&file)? };
        if length > POPULATE_BYTES_MAX {
            // Advice only: a system that refuses it is slower, not wrong.
            let _ = map.advise(Advice::Sequential);
            let _ = map.advise(Advice::WillNeed);
        }
        Ok(FileBytes { store: FileStore::Mapped(map) })
    }

    /// Reads at most `length` bytes; a file that shrank meanwhile is as long as what was read.
    fn read(file: &mut File, length: usize) -> io::Result<FileBytes> {
        let mut buffer = Buffer::scratch(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut filled = 0;
        while filled < length {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(FileBytes { store: FileStore::Read(buffer) })
    }

    /// Whether the bytes are the page cache itself rather than a copy.
    pub fn is_mapped(&self) -> bool {
        matches!(self.store, FileStore::Mapped(_))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.store {
            FileStore::Read(buffer) => buffer,
            FileStore::Mapped(map) => map,
        }
    }
}

/// An owned run of initialised bytes on a 64-byte boundary.
///
/// Large ones are recycled through a small pool of their thread: the output of the next task then lands in
/// pages that are already there (a fresh megabyte costs 256 page faults).
#[derive(Debug)]
pub struct Buffer {
    store: Store,
    length: usize,
}

#[derive(Debug)]
enum Store {
    Empty,
    Heap(HeapBytes),
    Mapped(MmapMut),
}

impl Buffer {
    /// `length` zero bytes.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the system refuses.
    pub fn zeroed(length: usize) -> Result<Buffer, OutOfMemory> {
        if length >= MAPPED_BYTES_MIN
            && let Some(mut buffer) = recycled(length)
        {
            buffer.fill(0);
            return Ok(buffer);
        }
        Buffer::fresh(length)
    }

    /// `length` bytes that hold anything (zeros, or what an earlier buffer of this thread held): for results
    /// that overwrite every byte.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the system refuses.
    pub fn scratch(length: usize) -> Result<Buffer, OutOfMemory> {
        if length >= MAPPED_BYTES_MIN
            && let Some(buffer) = recycled(length)
        {
            return Ok(buffer);
        }
        Buffer::fresh(length)
    }

    fn fresh(length: usize) -> Result<Buffer, OutOfMemory> {
        let refused = OutOfMemory { bytes: length };
        let store = if length == 0 {
            Store::Empty
        } else if length < MAPPED_BYTES_MIN {
            Store::Heap(HeapBytes::zeroed(length).ok_or(refused)?)
        } else {
            let map = MmapMut::map_anon(length).map_err(|_| refused)?;
            if length >= HUGE_BYTES_MIN {
                // Advice only, as above.
                let _ = map.advise(Advice::HugePage);
            }
            Store::Mapped(map)
        };
        Ok(Buffer { store, length })
    }

    /// Forgets the bytes from `length` on; a longer `length` changes nothing.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Gives the memory this thread keeps for its next buffers back to the system: for a thread that falls
    /// idle.
    pub fn release_pool() {
        let _ = POOL.try_with(|pool| pool.borrow_mut().maps.clear());
    }

    /// Bytes this thread keeps for its next buffers.
    pub fn pool_bytes() -> usize {
        POOL.try_with(|pool| pool.borrow().maps.iter().map(|map| map.len()).sum()).unwrap_or(0)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.store {
            Store::Empty => &[],
            Store::Heap(heap) => &heap.as_slice()[..self.length],
            Store::Mapped(map) => &map[..self.length],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.store {
            Store::Empty => &mut [],
            Store::Heap(heap) => &mut heap.as_mut_slice()[..self.length],
            Store::Mapped(map) => &mut map[..self.length],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Store::Mapped(map) = std::mem::replace(&mut self.store, Store::Empty) {
            // At the end of a thread the pool may be gone already; then the map is simply removed.
            let _ = POOL.try_with(|pool| pool.borrow_mut().give(map));
        }
    }
}

/// Bytes that a thread keeps at most: an answer of 64 MiB took as long to be given fresh pages, filled with zeros by the
/// kernel, as to be computed. An agent keeps them from one task to the next only, and not while it has nothing to do.
fn pool_bytes_max() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let asked = |name| {
            // SAFETY: `sysconf` reads a number that the system knows, -1 where it does not.
            let answer = unsafe { libc::sysconf(name) };
            usize::try_from(answer).unwrap_or(0)
        };
        let memory = asked(libc::_SC_PHYS_PAGES).saturating_mul(asked(libc::_SC_PAGESIZE));
        let share = memory / POOL_SHARE / asked(libc::_SC_NPROCESSORS_ONLN).max(1);
        share.clamp(*POOL_BYTES.start(), *POOL_BYTES.end())
    })
}

/// The maps a thread keeps, oldest first.
struct Pool {
    maps: Vec<MmapMut>,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { maps: Vec::new() }) };
}

impl Pool {
    fn give(&mut self, map: MmapMut) {
        let most = pool_bytes_max();
        if map.len() > most {
            return;
        }
        self.maps.push(map);
        let mut bytes: usize = self.maps.iter().map(|map| map.len()).sum();
        while bytes > most || self.maps.len() > POOL_BUFFERS_MAX {
            bytes -= self.maps.remove(0).len();
        }
    }

    /// The youngest map that is long enough and not wastefully long.
    fn take(&mut self, length: usize) -> Option<MmapMut> {
        let fits = |map: &MmapMut| map.len() >= length && map.len() / 2 <= length;
        let index = self.maps.iter().rposition(fits)?;
        Some(self.maps.remove(index))
    }
}

fn recycled(length: usize) -> Option<Buffer> {
    let map = POOL.try_with(|pool| pool.borrow_mut().take(length)).ok().flatten()?;
    Some(Buffer { store: Store::Mapped(map), length })
}

/// A small aligned allocation.
#[derive(Debug)]
struct HeapBytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes are owned by this value alone and have no tie to a thread.
unsafe impl Send for HeapBytes {}
// SAFETY: shared access only reads.
unsafe impl Sync for HeapBytes {}

impl HeapBytes {
    /// `length > 0` zero bytes, or nothing when the system refuses.
    fn zeroed(length: usize) -> Option<HeapBytes> {
        assert!(length > 0, "an empty buffer needs no memory");
        let layout = Layout::from_size_align(length, ALIGNMENT_BYTES).ok()?;
        // SAFETY: the layout has a size above zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(HeapBytes { start, layout })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` was allocated with this layout, all its bytes were zeroed, and `self` owns them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for HeapBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout, and never freed before.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_aligned(bytes: &[u8]) -> bool {
        bytes.as_ptr().addr().is_multiple_of(ALIGNMENT_BYTES)
    }

    #[test]
    fn buffers_of_every_size_are_aligned_and_zero() {
        for length in [0, 1, 63, 64, 65, 4096, MAPPED_BYTES_MIN - 1, MAPPED_BYTES_MIN, HUGE_BYTES_MIN + 1] {
            let buffer = Buffer::zeroed(length).unwrap();
            assert_eq!(buffer.len(), length);
            assert!(length == 0 || is_aligned(&buffer), "length {length}");
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_dropped_buffer_is_used_again_and_zeroed_on_request() {
        Buffer::release_pool();
        let mut first = Buffer::scratch(1 << 20).unwrap();
        let address = first.as_ptr();
        first.fill(7);
        drop(first);
        assert_eq!(Buffer::pool_bytes(), 1 << 20);
        let second = Buffer::scratch((1 << 20) - 5).unwrap();
        assert_eq!((second.as_ptr(), second.len()), (address, (1 << 20) - 5));
        drop(second);
        let third = Buffer::zeroed(1 << 20).unwrap();
        assert_eq!(third.as_ptr(), address);
        assert!(third.iter().all(|&byte| byte == 0));
        drop(third);
        Buffer::release_pool();
        assert_eq!(Buffer::pool_bytes(), 0);
    }

    #[test]
    fn the_pool_stays_within_its_bounds() {
        Buffer::release_pool();
        let many: Vec<Buffer> = (0..40).map(|_| Buffer::scratch(3 << 20).unwrap()).collect();
        drop(many);
        let most = pool_bytes_max();
        assert!(POOL_BYTES.contains(&most), "{most}");
        assert!(Buffer::pool_bytes() <= most.min(POOL_BUFFERS_MAX * (3 << 20)));
        drop(Buffer::scratch(most - (20 << 20)).unwrap());
        assert!((most - (20 << 20)..=most).contains(&Buffer::pool_bytes()));
        drop(Buffer::scratch(most + 1).unwrap());
        assert!((most - (20 << 20)..=most).contains(&Buffer::pool_bytes()));
        Buffer::release_pool();
    }

    #[test]
    fn absurd_sizes_are_refused_not_fatal() {
        for length in [usize::MAX, usize::MAX / 2, 1 << 60] {
            assert_eq!(Buffer::zeroed(length).unwrap_err(), OutOfMemory { bytes: length });
        }
    }

    #[test]
    fn small_files_are_read_and_large_ones_mapped() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 1, READ_BYTES_MAX, READ_BYTES_MAX + 1, 3 << 20] {
            let path = folder.path().join(length.to_string());
            let contents: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            std::fs::write(&path, &contents).unwrap();
            let bytes = FileBytes::open(&path).unwrap();
            assert_eq!(&bytes[..], &contents[..]);
            assert_eq!(bytes.is_mapped(), length > READ_BYTES_MAX);
            assert!(length == 0 || is_aligned(&bytes));
        }
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(FileBytes::open(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert_eq!(FileBytes::open(&pipe).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(FileBytes::open(Path::new("/dev/null")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(
            FileBytes::open(&folder.path().join("absent")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
