//! Removes what dead agents left half written, beside the loop: to free the pages of a large file takes the kernel tens of
//! milliseconds, and a mount may hang.

use crate::os::affinity::CoreMask;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait at the end. What a hung mount keeps is found by the next start.
const END: Duration = Duration::from_secs(2);

/// See the module. Its thread starts with the first file.
pub(super) struct Sweeper {
    /// Where the thread may run.
    cores: CoreMask,
    thread: Option<Thread>,
}

struct Thread {
    paths: Sender<PathBuf>,
    /// Closed by the end of the thread.
    end: Receiver<()>,
}

impl Sweeper {
    pub(super) fn new(cores: CoreMask) -> Self {
        Self { cores, thread: None }
    }

    /// Removes these files, of which most may not be there.
    pub(super) fn remove(&mut self, files: Vec<PathBuf>) {
        if files.is_empty() {
            return;
        }
        if self.thread.is_none() {
            self.thread = Thread::start(self.cores);
        }
        let mut rest = files.into_iter();
        if let Some(thread) = &self.thread {
            // It ends only when nobody can ask any more.
            rest.by_ref().for_each(|path| drop(thread.paths.send(path)));
        }
        // Only where the host has no room for a thread.
        rest.for_each(remove);
    }

    /// Removes what is left to be removed; false when it does not end.
    pub(super) fn finish(&mut self) -> bool {
        let Some(Thread { paths, end }) = self.thread.take() else { return true };
        drop(paths);
        end.recv_timeout(END) != Err(RecvTimeoutError::Timeout)
    }
}

impl Thread {
    fn start(cores: CoreMask) -> Option<Self> {
        let (paths, to_remove) = unbounded();
        let (ends, end) = bounded(0);
        let work = move || {
            cores.apply();
            to_remove.into_iter().for_each(remove);
            drop(ends);
        };
        std::thread::Builder::new().name("sweeper".to_owned()).spawn(work).ok()?;
        Some(Self { paths, end })
    }
}

fn remove(path: PathBuf) {
    // Not there is what it shall be.
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_over_is_gone_at_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let paths: Vec<PathBuf> = (0..100).map(|at| folder.path().join(at.to_string())).collect();
        let kept = folder.path().join("kept");
        let there = paths.iter().step_by(3).chain([&kept]);
        there.for_each(|path| std::fs::write(path, "half").expect("written"));
        let mut sweeper = Sweeper::new(CoreMask::current().expect("the kernel says"));
        assert!(sweeper.finish(), "nothing was begun");
        for some in paths.chunks(7) {
            sweeper.remove(some.to_vec());
        }
        assert!(sweeper.finish());
        let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").flatten().collect();
        assert_eq!(left.iter().map(|entry| entry.path()).collect::<Vec<_>>(), [kept]);
    }
}
