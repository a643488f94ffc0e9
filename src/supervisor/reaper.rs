//! The reaper: a process that outlives a killed supervisor by a moment and puts away what has a name.
//!
//! Memory, descriptors and agents of a dead supervisor go with it. Names do not: the board's in shared memory, the sockets, the
//! folder of a private swarm; nor, without a PID namespace, what agents had detached from themselves. The next start of the same
//! swarm would remove them, but there may never be one.
//!
//! It sleeps on the supervisor's pidfd, then takes the lock of the state directory, which is free once its holder is dead, and
//! does what the next start would have done. Whoever was quicker with the lock has done it, so nothing is ever removed from
//! under a successor's feet. When everybody is killed at once, the reaper too, it stays the next start's work.

use super::home;
use super::*;
use crate::os::process::outlive_parent;
use crate::os::spawn::{Birthplace, Order};
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// The word that makes the binary a reaper.
pub const REAPER_WORD: &str = "__reaper";
/// Says that the home goes as a whole.
const PRIVATE: &str = "private";
/// Told to end, it has so long.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Between two starts, when one after the other dies young: at first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Reaper {
    life: Option<ChildProcess>,
    /// Where it runs: it is in nobody's way, and wakes when nobody is left.
    cores: CoreMask,
    /// When the last one was started, when the next one may be, and the pause before the one after that.
    born: Nanos,
    due: Nanos,
    pause: Duration,
    /// What is the matter, until there is another: it was told.
    is_missed: bool,
}

impl Reaper {
    /// Starts it. Without one the next start of the swarm tidies up.
    pub(super) fn start(
        home: &Home,
        swarm: &str,
        silence: BorrowedFd<'_>,
        cores: CoreMask,
        now: Nanos,
    ) -> Self {
        let life = spawn(home, swarm, silence, cores);
        if let Err(error) = &life {
            tracing::warn!("what a killed supervisor leaves will be there until the next start: {error}");
        }
        Self { is_missed: life.is_err(), life: life.ok(), cores, born: now, due: now, pause: PAUSE }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.life.as_ref().map(ChildProcess::pid)
    }
}

fn spawn(home: &Home, swarm: &str, silence: BorrowedFd<'_>, cores: CoreMask) -> io::Result<ChildProcess> {
    // Folders go by descriptor: their names need not be text.
    let folder = std::fs::File::open(home.path())?;
    let sockets = home.socket().and_then(Path::parent).map(std::fs::File::open).transpose()?;
    let inherit: Vec<BorrowedFd<'_>> =
        [Some(&folder), sockets.as_ref()].into_iter().flatten().map(|file| file.as_fd()).collect();
    let parent = std::process::id().to_string();
    let numbers: Vec<String> = inherit.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    // The name is for `ps`.
    let whose = if home.is_private() { PRIVATE } else { "shared" };
    let mut arguments = vec![REAPER_WORD, swarm, &parent, whose];
    arguments.extend(numbers.iter().map(String::as_str));
    crate::os::spawn::spawn(&Order {
        program: Path::new("/proc/self/exe"),
        arguments: &arguments,
        variable: None,
        inherit: &inherit,
        silence,
        stderr: silence,
        birthplace: Birthplace::Here,
        cores: Some(cores),
    })
}

impl Drop for Reaper {
    /// The supervisor ends by itself and has put everything away.
    fn drop(&mut self) {
        if let Some(child) = &self.life {
            child.kill();
            child.ends_within(END_LIMIT);
        }
    }
}

impl Supervisor {
    /// Looks whether the reaper is still there. Who kills it gets another one; one that cannot live is tried less and less often.
    pub(super) fn tend_reaper(&mut self) {
        let (reaper, now) = (&mut self.reaper, self.now);
        let exit = reaper.life.as_ref().and_then(ChildProcess::try_reap);
        if self.closing || reaper.life.is_some() && exit.is_none() {
            return;
        }
        if let Some(exit) = exit {
            reaper.life = None;
            if now.since(reaper.born) > PAUSE_MAX {
                (reaper.due, reaper.pause) = (now, PAUSE);
            }
            if !std::mem::replace(&mut reaper.is_missed, true) {
                let text = format!("the reaper ended: {}", exit.describe());
                self.events.add(Severity::Warning, "reaper_died", None, text);
            }
        }
        if now < reaper.due {
            return;
        }
        (reaper.born, reaper.due) = (now, now.plus(reaper.pause));
        reaper.pause = (reaper.pause * 2).min(PAUSE_MAX);
        match spawn(&self.home, &self.nursery.swarm, self.nursery.silence.as_fd(), reaper.cores) {
            Ok(child) => {
                reaper.is_missed = false;
                let text = format!("there is a reaper again, process {}", child.pid());
                reaper.life = Some(child);
                self.events.add(Severity::Info, "reaper_started", None, text);
            }
            Err(error) => tracing::debug!("no reaper: {error}"),
        }
    }
}

/// The reaper's main. `words`: its swarm's name, its supervisor's process number, whose the home is, descriptors of the state
/// directory and, if there are sockets, of their folder.
pub fn main(mut words: impl Iterator<Item = String>) -> u8 {
    let _name = words.next();
    let Some(parent) = words.next().and_then(|word| word.parse().ok()) else { return 1 };
    let is_private = words.next().is_some_and(|word| word == PRIVATE);
    let folders = words.map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")));
    let Ok(folders) = folders.collect::<io::Result<Vec<PathBuf>>>() else { return 1 };
    let Some(folder) = folders.first() else { return 1 };
    if outlive_parent(parent).is_err() {
        return 1;
    }
    home::tidy_after(folder, folders.get(1).map(PathBuf::as_path), is_private, parent);
    0
}
