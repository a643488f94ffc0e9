//! Children by their pidfd: a number may be given to somebody else, a descriptor means one process for good.
//! They are started by [`spawn`](super::spawn).

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A running child.
#[derive(Debug)]
pub struct ChildProcess {
    pid: Pid,
    pidfd: OwnedFd,
    /// Its `/proc/PID/stat`, opened while there is time.
    stat: Option<File>,
}

/// From here on the calling process outlives its parent, the process `parent`; returns when that one has ended. What is sent to
/// the parent's whole group or session does not concern it, nor does a polite request to end.
pub fn outlive_parent(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(None)?;
    rustix::process::setsid()?;
    for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGTSTP] {
        // SAFETY: ignores a signal; no handler, no memory.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let pid = i32::try_from(parent).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return Ok(());
    };
    // Whoever has its number by now is not the parent any more.
    while rustix::process::getppid() == Some(pid) && !super::socket::wait(&pidfd, Duration::from_secs(3600)) {
    }
    Ok(())
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// `code 3`, `signal 9 (killed)`.
    pub fn describe(self) -> String {
        match self {
            Exit::Code(code) => format!("exit code {code}"),
            Exit::Signal(signal) => match signal_word(signal) {
                Some(word) => format!("signal {signal} ({word})"),
                None => format!("signal {signal}"),
            },
        }
    }
}

/// Among the flags in `/proc/PID/stat`: the process is past the point of no return (`PF_EXITING`).
pub(super) const EXITING: u64 = 4;

/// What /proc says of a child before the kernel reports its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dying {
    /// It is not on its way out.
    No,
    /// It is, and will have ended like this.
    As(Exit),
    /// /proc does not show it, or shows the numbers of another PID namespace.
    Unknown,
}

/// None where /proc shows the numbers of another PID namespace.
fn open_stat(pid: Pid) -> Option<File> {
    static SHOWS_OURS: OnceLock<bool> = OnceLock::new();
    let shows_ours = *SHOWS_OURS.get_or_init(|| own_number() == std::process::id());
    shows_ours.then(|| File::open(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()).flatten()
}

fn dying_in(stat: &str) -> Option<Dying> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let flags: u64 = fields.nth(6)?.parse().ok()?;
    let status: i32 = fields.next_back()?.parse().ok()?;
    let exit = match status & 0x7f {
        0 => Exit::Code(status >> 8 & 0xff),
        signal => Exit::Signal(signal),
    };
    Some(if flags & EXITING != 0 { Dying::As(exit) } else { Dying::No })
}

fn signal_word(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGKILL => "killed",
        libc::SIGTERM => "terminated",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGBUS => "bus error",
        libc::SIGABRT => "aborted",
        libc::SIGILL => "illegal instruction",
        libc::SIGFPE => "arithmetic error",
        libc::SIGXCPU => "cpu time limit",
        libc::SIGSYS => "forbidden system call",
        _ => return None,
    })
}

impl ChildProcess {
    /// A child that was just started, and its pidfd.
    pub(super) fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, stat: None }
    }

    /// As [`new`](Self::new), for one whose [`dying`](Self::dying) will be asked for in a hurry: to open a file in /proc takes three
    /// times as long as to read it.
    pub(super) fn with_stat(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { stat: open_stat(pid), ..Self::new(pid, pidfd) }
    }

    /// The process number, for people and for /proc.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Ends the child at once. A child that is gone already is fine.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }

    /// Whether the child is on its way out.
    ///
    /// The kernel reports an end only when the process's memory is torn down, 36 ms later for 1 GiB. `/proc/PID/stat`
    /// has the answer before.
    pub fn dying(&self) -> Dying {
        // In one piece: whoever asks has no time, and a line is shorter.
        let mut text = [0; 1024];
        // Perhaps there were no descriptors left when it was born.
        let late = if self.stat.is_none() { open_stat(self.pid) } else { None };
        let stat = self.stat.as_ref().or(late.as_ref());
        let read = stat.and_then(|stat| stat.read_at(&mut text, 0).ok());
        let line = read.and_then(|length| std::str::from_utf8(&text[..length]).ok());
        line.and_then(dying_in).unwrap_or(Dying::Unknown)
    }

    /// Whether somebody has stopped the child, and it was not continued since.
    pub fn is_stopped(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        matches!(rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(Some(_)))
    }

    /// Waits for the child's end and reaps it; false when it still lives after this time.
    pub fn ends_within(&self, span: Duration) -> bool {
        let began = Instant::now();
        loop {
            if self.try_reap().is_some() {
                return true;
            }
            let left = span.saturating_sub(began.elapsed());
            if left.is_zero() {
                return false;
            }
            super::socket::wait(&self.pidfd, left);
        }
    }

    /// Reaps the child when it has ended; never blocks.
    pub fn try_reap(&self) -> Option<Exit> {
        let status = rustix::process::waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        match status {
            Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Code(-1),
            }),
            Ok(None) => None,
            // Reaped by somebody else, which does not happen by design: gone is gone.
            Err(rustix::io::Errno::CHILD) => Some(Exit::Code(-1)),
            Err(_) => None,
        }
    }
}

impl AsFd for ChildProcess {
    /// Readable once the child has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Raises the number of files that this process, and those that it starts, may have open to the most that it may ask
/// for. Every member of a swarm costs its supervisor some. Returns how many it may have open now.
pub fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    // No limit at all is a limit that nobody reaches.
    if raised { maximum } else { current }.unwrap_or(u64::MAX)
}

/// The number of this process as everybody who reads /proc knows it; inside a PID namespace it has another one.
pub fn own_number() -> u32 {
    let shown = std::fs::read_link("/proc/self").ok();
    shown.and_then(|link| link.to_str()?.parse().ok()).unwrap_or_else(std::process::id)
}

/// Lets others go first; needs no privilege. Not possible is no error.
pub fn be_nice(by: i32) {
    let _ = rustix::process::setpriority_process(None, by);
}

/// Asks the scheduler for turns of this length for the calling thread and those that it starts; zero is what others have. Whoever
/// has shorter turns than the thread that runs gets the core when it wakes up, and gives it back soon; the share of time stays the
/// same. Kernels before 6.12 have one length for all, and ignore it.
pub fn set_turn(length: Duration) {
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    let wish = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: length.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the structure is as long as it says; the call changes the calling thread only. A refusal changes nothing.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
}

/// The start time of process `pid` in clock ticks since boot: together with the number it names one
/// process for good.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// What process `pid` shares of ours and may write: the names that shared objects were created under, and where they are mapped.
pub fn writable_shared(pid: u32) -> io::Result<Vec<(String, Range<u64>)>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let found = maps.lines().filter(|line| line.contains("rw-s")).filter_map(|line| {
        let path = line.split_whitespace().nth(5)?;
        let name = path.strip_prefix("/memfd:").or(path.strip_prefix("/dev/shm/"))?;
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        name.starts_with("ai_swarm").then_some((name.to_owned(), hex(from)?..hex(to)?))
    });
    Ok(found.collect())
}

/// Marks a descriptor close-on-exec again, after it was inherited by number.
pub fn set_close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(())
}

/// Takes ownership of a descriptor that the parent left open for us under this number.
///
/// Fails when nothing is open there. The caller names each number once, right after its start.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_GETFD only looks; a number that is not open gives EBADF.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} was not handed over"),
        ));
    }
    // SAFETY: it is open, and by the protocol of the start message it belongs to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    set_close_on_exec(fd.as_fd())?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_set_and_set_back() {
        let turn = || {
            // SAFETY: zeros are a value of the structure, which is as long as said; the call fills it.
            unsafe {
                let mut found: libc::sched_attr = std::mem::zeroed();
                let outcome =
                    libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size_of_val(&found), 0);
                (outcome == 0).then_some((found.sched_policy, found.sched_nice, found.sched_runtime))
            }
        };
        std::thread::spawn(move || {
            let before = turn().expect("the kernel says");
            set_turn(Duration::from_micros(300));
            let set = turn().expect("the kernel says");
            assert_eq!((set.0, set.1), (before.0, before.1), "nothing else changes");
            // Older kernels ignore it, and name no length at all.
            assert!(set.2 == 300_000 || set.2 == before.2, "{set:?}");
            set_turn(Duration::ZERO);
            assert_eq!(turn(), Some(before));
        })
        .join()
        .expect("it ends well");
    }

    #[test]
    fn a_descriptor_that_nobody_handed_over_is_refused() {
        assert!(inherited(2).is_err());
        assert!(inherited(1_000_000).is_err());
    }
}
