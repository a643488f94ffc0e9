//! Signals as a descriptor, so that the supervisor's one loop can wait for them beside everything else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The signals that ask the supervisor to stop.
const STOP_SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// A descriptor that becomes readable when a stop signal arrived.
///
/// The signals are blocked for the calling thread and all threads it starts later, so create it
/// before any other thread; dropping it unblocks them for the dropping thread. Children start with an empty mask.
#[derive(Debug)]
pub struct StopSignals(OwnedFd);

fn stop_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain bytes; sigemptyset initialises it before use; the signal numbers are valid.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in STOP_SIGNALS {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

impl StopSignals {
    /// Blocks the stop signals and opens the descriptor. SIGPIPE is ignored from here on: a reader
    /// that went away is an error of one write, not the end of the process.
    pub fn listen() -> io::Result<Self> {
        let set = stop_set();
        // SAFETY: `set` is initialised; a null old set is allowed; signalfd returns a fresh descriptor or -1.
        let fd = unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open, fresh and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// How many stop signals arrived since the last call.
    pub fn take(&self) -> usize {
        let mut taken = 0;
        loop {
            let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
            // SAFETY: the buffer is as long as the length given; the descriptor is open.
            let n = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
            if n != info.len() as isize {
                return taken;
            }
            taken += 1;
        }
    }
}

impl Drop for StopSignals {
    /// From here on the signals end the process again: nothing is left that could hear them.
    fn drop(&mut self) {
        let set = stop_set();
        // SAFETY: `set` is initialised; a null old set is allowed.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
    }
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
