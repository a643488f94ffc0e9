//! Nobody who is being born holds up whoever gives birth.
//!
//! VFORK makes the starting thread wait until the child has called exec. A child that somebody stops before that would
//! make it wait for as long as the stop lasts, and the starting thread is the supervisor's loop. It cannot help itself
//! meanwhile, so a thread of its own looks after births that take long and kills a child that stands still: to the
//! supervisor this is one more child that died young.
//!
//! Invariant: the descriptor in [`PIDFD`] is open while [`UNDER_WAY`] is true. The kernel writes it before the child
//! makes its first step; it is closed, at the earliest, by whoever has set `UNDER_WAY` to false, which waits for the
//! watcher.

use rustix::process::Signal;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// A birth takes well under a millisecond; the watcher looks whenever one has taken so long.
const PATIENCE: Duration = Duration::from_millis(20);

/// One birth at a time: it is one watcher, with one descriptor.
static TURN: Mutex<()> = Mutex::new(());
static UNDER_WAY: Mutex<bool> = Mutex::new(false);
static CHANGED: Condvar = Condvar::new();
/// Of the child that is being born; -1 until there is one.
static PIDFD: AtomicI32 = AtomicI32::new(-1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is guarded here can be half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `start`, which has the kernel write the child's pidfd to the place it is given, and sees to it that it returns.
pub(super) fn attended<T>(start: impl FnOnce(*mut RawFd) -> T) -> T {
    static WATCHER: Once = Once::new();
    let _turn = lock(&TURN);
    // Without a watcher births are as they are elsewhere: they take as long as they take.
    WATCHER.call_once(|| drop(std::thread::Builder::new().name("births".to_owned()).spawn(watch)));
    PIDFD.store(-1, Ordering::Relaxed);
    *lock(&UNDER_WAY) = true;
    CHANGED.notify_one();
    let started = start(PIDFD.as_ptr());
    *lock(&UNDER_WAY) = false;
    started
}

fn watch() {
    let mut under_way = lock(&UNDER_WAY);
    loop {
        under_way = CHANGED.wait_while(under_way, |yes| !*yes).unwrap_or_else(PoisonError::into_inner);
        let waited = CHANGED.wait_timeout_while(under_way, PATIENCE, |yes| *yes);
        under_way = waited.unwrap_or_else(PoisonError::into_inner).0;
        let pidfd = PIDFD.load(Ordering::Relaxed);
        if *under_way && pidfd >= 0 && is_stopped(pidfd) {
            // SAFETY: open while the lock says that the birth is under way, and the lock is ours (the invariant above).
            let pidfd = unsafe { BorrowedFd::borrow_raw(pidfd) };
            // It may have gone on and ended by itself meanwhile.
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

/// Whether /proc shows the process as stopped by a signal.
fn is_stopped(pidfd: RawFd) -> bool {
    let state = || {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{pidfd}")).ok()?;
        let pid: u32 = about.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the state may hold anything, so from its last parenthesis on.
        Some(stat.rsplit_once(')')?.1.trim_start().starts_with('T'))
    };
    state().unwrap_or(false)
}
