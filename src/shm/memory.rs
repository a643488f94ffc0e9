//! Anonymous shared objects: created, reserved, mapped, sealed; and the atomic words inside.

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

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
        let protection = match access {
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
            Access::Read => ProtFlags::READ,
        };
        // SAFETY: a fresh mapping at an address the kernel chooses touches no memory of ours; the
        // object's size is sealed, so no access inside `bytes` can fault later.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), self.bytes, protection, MapFlags::SHARED, &self.fd, 0)?
        };
        let start =
            NonNull::new(start.cast::<AtomicU64>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Arc::new(Words { start, words: self.bytes / 8, access, owned_bytes: Some(self.bytes) }))
    }

    /// After this no new writable mapping of the object can be made, by anybody, for good.
    pub fn seal_writes(&self) -> io::Result<()> {
        rustix::fs::fcntl_add_seals(&self.fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
        Ok(())
    }

    /// Bytes of the object.
    pub fn bytes(&self) -> usize {
        self.bytes
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
    /// Bytes to unmap on drop; `None` when somebody else owns the memory.
    owned_bytes: Option<usize>,
}

// SAFETY: all access goes through atomics; the mapping stays until the last owner drops it.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Private memory with the same face, for tests and for miri, which has no shared mappings.
    pub fn private(words: usize) -> Arc<Self> {
        let memory: &'static mut [u128] = Vec::leak(vec![0u128; words.div_ceil(2)]);
        let start = NonNull::from(memory).cast::<AtomicU64>();
        Arc::new(Self { start, words, access: Access::Write, owned_bytes: None })
    }

    /// Words over memory that `owner` keeps mapped.
    ///
    /// # Safety
    /// `start` is 8-aligned and valid for reads and writes of `words` words as long as the value lives.
    pub unsafe fn borrowed(start: NonNull<u8>, words: usize) -> Self {
        Self { start: start.cast(), words, access: Access::Write, owned_bytes: None }
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

    /// The low half of the word at `index`, for futexes.
    #[inline]
    pub fn half(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: in range; 8-aligned is 4-aligned; the word is used as 32-bit atomic only, by all sides.
        unsafe { self.start.add(index).cast::<AtomicU32>().as_ref() }
    }

    /// Whether this process may write here.
    pub fn access(&self) -> Access {
        self.access
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        if let Some(bytes) = self.owned_bytes {
            // SAFETY: mapped by us with this very length; no reference into it outlives `self`.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

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
}
