//! A segment with a name, for what outsiders attach to: the board.
//!
//! The `shared_memory` crate creates and maps it. Three of its habits are made good here: memory is
//! reserved before it is touched (a full /dev/shm is an error, not a SIGBUS), the size found on
//! opening is checked, and what a killed owner left is removed by name at the next start.

use super::memory::Words;
use rustix::fs::FallocateFlags;
use shared_memory::{Shmem, ShmemConf};
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;

/// Why a segment could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The name could not be created or opened.
    #[error("cannot {verb} shared-memory segment /dev/shm/{name}: {source}")]
    Open {
        /// create or open.
        verb: &'static str,
        /// Name under /dev/shm.
        name: String,
        /// What the crate says.
        source: shared_memory::ShmemError,
    },
    /// There is not enough room.
    #[error("cannot reserve {bytes} bytes in /dev/shm for segment {name}: {source}")]
    Reserve {
        /// Bytes wanted.
        bytes: usize,
        /// Name under /dev/shm.
        name: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The segment has another size than announced.
    #[error("segment /dev/shm/{name} has {found} bytes, announced were {announced}")]
    Size {
        /// Name under /dev/shm.
        name: String,
        /// Bytes found.
        found: usize,
        /// Bytes announced.
        announced: usize,
    },
}

/// A mapped named segment. The one that created it removes the name on drop.
pub struct Segment {
    words: Words,
    name: String,
    _map: Shmem,
}

// SAFETY: the mapping is plain shared memory reached through atomics only; `Shmem` is not `Send`
// merely because it holds the raw address.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/dev/shm").join(name)
}

impl Segment {
    /// Creates `/dev/shm/NAME`, mode 0600, `bytes` reserved and zero.
    pub fn create(name: &str, bytes: usize) -> Result<Self, SegmentError> {
        let map = ShmemConf::new().size(bytes).os_id(name).create().map_err(|source| SegmentError::Open {
            verb: "create",
            name: name.into(),
            source,
        })?;
        OpenOptions::new()
            .write(true)
            .open(path_of(name))
            .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?))
            .map_err(|source| SegmentError::Reserve { bytes, name: name.into(), source })?;
        Ok(Self::over(map, name, bytes))
    }

    /// Opens what the supervisor announced.
    pub fn open(name: &str, bytes: usize) -> Result<Self, SegmentError> {
        let map = ShmemConf::new().os_id(name).open().map_err(|source| SegmentError::Open {
            verb: "open",
            name: name.into(),
            source,
        })?;
        if map.len() < bytes {
            return Err(SegmentError::Size { name: name.into(), found: map.len(), announced: bytes });
        }
        Ok(Self::over(map, name, bytes))
    }

    fn over(map: Shmem, name: &str, bytes: usize) -> Self {
        let start = NonNull::new(map.as_ptr()).expect("a mapping has an address");
        // SAFETY: page-aligned, mapped read-write over at least `bytes` bytes, kept by `_map` beside it.
        let words = unsafe { Words::borrowed(start, bytes / 8) };
        Self { words, name: name.into(), _map: map }
    }

    /// The words.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Name under /dev/shm.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Removes a name that a killed owner left. True when there was one.
pub fn remove_leftover(name: &str) -> bool {
    std::fs::remove_file(path_of(name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn name(what: &str) -> String {
        format!("ai_swarm-test-{what}-{}", std::process::id())
    }

    #[test]
    fn two_mappings_of_one_name_share_their_words_and_the_name_goes_with_its_owner() {
        let name = name("share");
        let owner = Segment::create(&name, 8192).expect("create");
        let guest = Segment::open(&name, 8192).expect("open");
        owner.words().word(1023).store(5, Ordering::Release);
        assert_eq!(guest.words().word(1023).load(Ordering::Acquire), 5);
        drop(guest);
        assert!(path_of(&name).exists(), "a guest does not remove it");
        drop(owner);
        assert!(!path_of(&name).exists());
    }

    #[test]
    fn wrong_sizes_and_missing_names_are_errors() {
        let name = name("size");
        let _owner = Segment::create(&name, 4096).expect("create");
        assert!(matches!(Segment::open(&name, 1 << 20), Err(SegmentError::Size { .. })));
        assert!(matches!(Segment::create(&name, 4096), Err(SegmentError::Open { .. })));
        assert!(matches!(Segment::open("ai_swarm-test-nobody", 1), Err(SegmentError::Open { .. })));
    }

    #[test]
    fn more_than_the_host_has_is_an_error_before_it_is_touched() {
        let name = name("huge");
        assert!(matches!(
            Segment::create(&name, 1 << 50),
            Err(SegmentError::Reserve { .. } | SegmentError::Open { .. })
        ));
        assert!(!path_of(&name).exists());
    }
}
