//! A file written through memory: what is in it outlives the process that wrote it, however that ends.
//!
//! A store into a shared mapping is a store into the page cache. No system call is needed, and a kill between two stores
//! leaves exactly what was stored before.
//!
//! Invariants
//! 1. Nobody gets a reference into the mapping: bytes go in by copy, and are read back through the file.
//! 2. The file has its full size and its blocks before it is mapped, so that a store cannot find the disk full.
//!
//! Who truncates the file meanwhile ends this process with `SIGBUS`. That is accepted: the file lies in a folder of
//! mode 0700, and whoever may write there may as well remove it.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub struct FileMap {
    map: MmapRaw,
}

impl FileMap {
    /// Gives `file` its size and blocks, and maps all of it.
    ///
    /// # Errors
    /// What the system says; a full disk is one of the answers.
    pub fn reserve(file: &File, bytes: usize) -> io::Result<Self> {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes as u64)?;
        if file.metadata()?.len() != bytes as u64 {
            return Err(io::Error::other("the file has another size than it was given"));
        }
        Ok(Self { map: MmapOptions::new().len(bytes).map_raw(file)? })
    }

    /// Copies `bytes` to `at`.
    ///
    /// # Panics
    /// Outside the mapping: a mistake of the caller, whose positions are its own.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.map.len() && bytes.len() <= self.map.len() - at, "outside the mapping");
        // SAFETY: the target lies inside the mapping (just checked), which lives as long as `self`; `bytes` is a borrow
        // of other memory, because nobody gets references into the mapping. `&mut self` excludes other writers of this
        // process through this mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().add(at), bytes.len()) }
    }

    /// Stores one word at `at`, after all that was written before.
    ///
    /// # Panics
    /// Outside the mapping, or not on a multiple of 8.
    pub fn publish(&mut self, at: usize, word: u64) {
        assert!(at.is_multiple_of(8) && at + 8 <= self.map.len(), "no word of the mapping");
        // SAFETY: inside the mapping and aligned (just checked; mappings begin on pages); the memory is writable for as
        // long as `self` lives, and is reached through raw pointers and this atomic only.
        let place = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) };
        place.store(word, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn what_is_stored_is_in_the_file() {
        let file = tempfile::tempfile().expect("a file");
        let mut map = FileMap::reserve(&file, 8192).expect("mapped");
        map.write(4090, b"0123456789");
        map.publish(8, 0x0102_0304_0506_0708);
        let mut read = [0; 10];
        file.read_exact_at(&mut read, 4090).expect("read");
        assert_eq!(&read, b"0123456789");
        file.read_exact_at(&mut read[..8], 8).expect("read");
        assert_eq!(read[..8], 0x0102_0304_0506_0708_u64.to_ne_bytes());
    }

    #[test]
    #[should_panic(expected = "outside the mapping")]
    fn nothing_is_written_outside() {
        let file = tempfile::tempfile().expect("a file");
        FileMap::reserve(&file, 4096).expect("mapped").write(4090, b"0123456789");
    }
}
