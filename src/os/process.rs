//! Starts children that die with their parent, and learns of their death.
//!
//! Invariants
//! 1. The parent-death signal is armed before exec and the parent is compared afterwards: armed any
//!    later, a child can outlive a parent that dies in between.
//! 2. The kernel binds the parent-death signal to the spawning *thread*. Call [`spawn`] from a
//!    thread that lives as long as the process: the supervisor's main thread.
//! 3. A child is named by its pidfd, never by a number that the kernel may give to somebody else.

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A running child.
#[derive(Debug)]
pub struct ChildProcess {
    pid: Pid,
    pidfd: OwnedFd,
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

/// Starts `program` with `arguments`; the child keeps `inherit` open under the same numbers and gets
/// `stderr` as its standard error. Standard input and output are closed to /dev/null.
pub fn spawn(
    program: &OsStr,
    arguments: &[&str],
    inherit: &[BorrowedFd<'_>],
    stderr: Stdio,
) -> io::Result<ChildProcess> {
    let parent = rustix::process::getpid();
    let numbers: Vec<RawFd> = inherit.iter().map(|fd| fd.as_raw_fd()).collect();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    // SAFETY: the closure runs in the forked child and makes async-signal-safe calls only; it
    // allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above: then nobody will send the signal.
            if libc::getppid() != parent.as_raw_nonzero().get() {
                libc::_exit(libc::EXIT_FAILURE);
            }
            crate::os::signals::restore_in_child();
            for &fd in &numbers {
                if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = Pid::from_raw(child.id() as i32).ok_or_else(|| io::Error::other("child without a number"))?;
    // The child is not reaped by anybody else, so the number still means this child.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    Ok(ChildProcess { pid, pidfd })
}

impl ChildProcess {
    /// The process number, for people and for /proc.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Ends the child at once. A child that is gone already is fine.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
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

/// Lets others go first; needs no privilege. Not possible is no error.
pub fn be_nice(by: i32) {
    let _ = rustix::process::setpriority_process(None, by);
}

/// The start time of process `pid` in clock ticks since boot: together with the number it names one
/// process for good.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
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
    use std::time::{Duration, Instant};

    fn wait_for_exit(child: &ChildProcess) -> Exit {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(exit) = child.try_reap() {
                return exit;
            }
            assert!(Instant::now() < deadline, "the child did not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_child_reports_its_code() {
        let child = spawn(OsStr::new("sh"), &["-c", "exit 7"], &[], Stdio::null()).expect("sh starts");
        assert_eq!(wait_for_exit(&child), Exit::Code(7));
    }

    #[test]
    fn a_killed_child_reports_the_signal() {
        let child = spawn(OsStr::new("sleep"), &["600"], &[], Stdio::null()).expect("sleep starts");
        assert!(start_ticks(child.pid()).is_some());
        child.kill();
        assert_eq!(wait_for_exit(&child), Exit::Signal(9));
        assert_eq!(Exit::Signal(9).describe(), "signal 9 (killed)");
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = spawn(OsStr::new("/no/such/program"), &[], &[], Stdio::null()).expect_err("cannot start");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_descriptor_that_nobody_handed_over_is_refused() {
        assert!(inherited(2).is_err());
        assert!(inherited(1_000_000).is_err());
    }
}
