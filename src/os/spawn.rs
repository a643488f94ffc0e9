//! Starts a process that dies with its parent.
//!
//! `clone` with VM and PIDFD: the child borrows the parent's memory until exec, so that a start costs the same from a
//! large parent as from a small one (a fork copies page tables: 19 ms from 1 GiB, against 1 ms), and the pidfd comes with
//! the child, before anybody can reap it.
//!
//! With VFORK the kernel would hold the parent until then, for as long as it takes, also when somebody stops the child before
//! its exec; and the parent is the supervisor's loop. So it waits by itself, for the word that the kernel clears when a
//! thread leaves its memory (`CLONE_CHILD_CLEARTID`), and looks after a child that keeps it waiting. Tools that know borrowed
//! memory by VFORK only (Valgrind, the user mode of QEMU) do not take this.
//!
//! Invariants
//! 1. The parent-death signal is armed before exec and the parent is compared afterwards: armed any later, a child can
//!    outlive a parent that dies in between.
//! 2. The kernel binds the parent-death signal to the spawning *thread*. Call [`spawn`] from a thread that lives as long
//!    as the process: the supervisor's main thread.
//! 3. Between clone and exec the child makes system calls on prepared data only: it shares memory with a parent whose
//!    other threads run on, so it allocates nothing, locks nothing and frees nothing.
//! 4. The parent goes on when the child has left its memory, and not before: what the child was given stays where it is.
//!    A child that is stopped before exec is killed: to the supervisor it is one more that died young.
//! 5. Signals are blocked from before the clone until the child has its own handlers: none of the parent's handlers
//!    runs in the child, on the parent's memory.
//! 6. The two share the C library's `errno` until then, so the parent makes system calls by rustix only, which does without.

use super::affinity::CoreMask;
use super::process::ChildProcess;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::thread::futex;
use rustix::time::Timespec;
use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is to be started, and how.
#[derive(Debug)]
pub struct Order<'a> {
    /// The program's path.
    pub program: &'a Path,
    /// Its words, after its own name.
    pub arguments: &'a [&'a str],
    /// Set in its environment besides ours: `NAME=value`.
    pub variable: Option<String>,
    /// Stay open in it, under the same numbers; nothing else does.
    pub inherit: &'a [BorrowedFd<'a>],
    /// Its standard input and output.
    pub silence: BorrowedFd<'a>,
    /// Its standard error.
    pub stderr: BorrowedFd<'a>,
    /// In which PID namespace.
    pub birthplace: Birthplace,
    /// Where it begins to run; `None`: where the calling thread may run.
    pub cores: Option<CoreMask>,
}

/// In which PID namespace a child is born.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birthplace {
    /// Ours.
    Here,
    /// A new one, as its init.
    NewNamespace,
    /// One that the calling thread has chosen; its init dies with us and takes the child along.
    Chosen,
}

/// Everything that the child needs, made before there is one.
struct Prepared<'a> {
    program: CString,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    inherit: &'a [BorrowedFd<'a>],
    silence: RawFd,
    stderr: RawFd,
    parent: i32,
    birthplace: Birthplace,
    cores: Option<CoreMask>,
    /// Why the child did not come to exec; 0: it did.
    errno: c_int,
}

/// A birth takes well under a millisecond; one that has taken so long is looked at, again and again.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Room for the child's few calls until exec, in 16-byte units.
const STACK_UNITS: usize = 4096;

/// Starts the process. Returns when it runs its own program, or with the reason why it does not.
pub fn spawn(order: &Order<'_>) -> io::Result<ChildProcess> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let program = text(order.program.as_os_str().as_bytes().to_vec())?;
    let words = order.arguments.iter().map(|word| text(word.as_bytes().to_vec()));
    let words = words.collect::<io::Result<Vec<CString>>>()?;
    let variable = order.variable.clone().map(|text| text.into_bytes()).map(text).transpose()?;
    let variables = std::env::vars_os().map(|(name, value)| {
        let mut bytes = name.into_vec();
        bytes.push(b'=');
        bytes.extend(value.into_vec());
        text(bytes)
    });
    let variables = variables.chain(variable.map(Ok)).collect::<io::Result<Vec<CString>>>()?;
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let mut prepared = Prepared {
        arguments: [vec![program.as_ptr()], pointers(&words), vec![std::ptr::null()]].concat(),
        environment: [pointers(&variables), vec![std::ptr::null()]].concat(),
        program,
        inherit: order.inherit,
        silence: order.silence.as_raw_fd(),
        stderr: order.stderr.as_raw_fd(),
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        birthplace: order.birthplace,
        cores: order.cores,
        errno: 0,
    };
    let mut stack = Vec::<u128>::with_capacity(STACK_UNITS);
    // Until the kernel clears it.
    let in_our_memory = AtomicU32::new(1);
    let mut flags = libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | libc::CLONE_PIDFD | libc::SIGCHLD;
    if order.birthplace == Birthplace::NewNamespace {
        flags |= libc::CLONE_NEWPID;
    }
    // SAFETY: `stack`, `prepared` and the word outlive the child's use of them, because this thread waits below until the
    // child has called exec or has ended, and does nothing before that could fail. The child runs on a stack of its own,
    // grows down from its end, and makes async-signal-safe calls only (invariant 3). All signals are blocked when it
    // begins (invariant 5).
    let (pid, pidfd, error) = unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let top = stack.as_mut_ptr().add(STACK_UNITS).cast::<c_void>();
        let argument = (&raw mut prepared).cast::<c_void>();
        let mut pidfd: RawFd = -1;
        let no_thread_area = std::ptr::null_mut::<c_void>();
        let word = in_our_memory.as_ptr();
        let pid = libc::clone(child, top, flags, argument, &raw mut pidfd, no_thread_area, word);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        (pid, pidfd, error)
    };
    let Some(pid) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else { return Err(error) };
    // SAFETY: the kernel has just opened it for us, close-on-exec.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    wait_until_it_has_left(&in_our_memory, pidfd.as_fd());
    let child = ChildProcess::with_stat(pid, pidfd);
    // SAFETY: read through the pointer that the child wrote through; it has ended since, or never wrote.
    let errno = unsafe { std::ptr::read_volatile(&raw const prepared.errno) };
    if errno == 0 {
        return Ok(child);
    }
    // It is on its way out and has nothing to tear down.
    while child.try_reap().is_none() {
        std::thread::yield_now();
    }
    Err(io::Error::from_raw_os_error(errno))
}

/// Returns when the kernel has cleared the word: the child runs its own program or has ended.
fn wait_until_it_has_left(in_our_memory: &AtomicU32, pidfd: BorrowedFd<'_>) {
    const LOOK: WaitIdOptions = WaitIdOptions::EXITED
        .union(WaitIdOptions::STOPPED)
        .union(WaitIdOptions::NOWAIT)
        .union(WaitIdOptions::NOHANG);
    loop {
        let waited = futex::wait(in_our_memory, futex::Flags::empty(), 1, Some(&PATIENCE));
        if in_our_memory.load(Ordering::Acquire) == 0 {
            return;
        }
        if waited != Err(rustix::io::Errno::TIMEDOUT) {
            continue;
        }
        match rustix::process::waitid(WaitId::PidFd(pidfd), LOOK) {
            Ok(Some(status)) if status.stopped() => {
                // It may have gone on and ended by itself meanwhile.
                let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            }
            // The kernel does not clear the word of one that dies so that it cannot be written to.
            Ok(Some(_)) => return,
            Ok(None) | Err(_) => {}
        }
    }
}

/// The child, on its own stack and its parent's memory, until exec.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes its own `Prepared` and does not touch it until this process has called exec or ended.
    unsafe {
        let prepared = argument.cast::<Prepared<'_>>();
        prepare(&*prepared);
        std::ptr::write_volatile(&raw mut (*prepared).errno, *libc::__errno_location());
        libc::_exit(libc::EXIT_FAILURE)
    }
}

/// All that happens between clone and exec. Returns only when something failed; errno says what.
///
/// # Safety
/// Only in a child that has its descriptors and signal handlers to itself.
unsafe fn prepare(prepared: &Prepared<'_>) {
    // SAFETY: system calls on descriptors and texts that `prepared` keeps alive.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return;
        }
        // The parent may have died before the line above: then nobody will send the signal.
        let parent = match prepared.birthplace {
            Birthplace::Here => libc::getppid(),
            // From inside, the parent's number is 0, dead or alive: /proc shows it as seen from outside.
            Birthplace::NewNamespace => parent_seen_from_outside(),
            // The namespace's init was compared, and it takes everybody with it.
            Birthplace::Chosen => prepared.parent,
        };
        if parent != prepared.parent {
            // Nobody may be there to read this; if somebody is, /proc shows the numbers of another namespace.
            *libc::__errno_location() = libc::ESRCH;
            return;
        }
        for signal in 1..=64 {
            // Ctrl-C and a closed terminal concern the whole group; what they mean is the supervisor's affair.
            let is_ours = matches!(signal, libc::SIGINT | libc::SIGHUP);
            // Refused for a few that nobody can handle anyway.
            libc::signal(signal, if is_ours { libc::SIG_IGN } else { libc::SIG_DFL });
        }
        for (from, to) in [(prepared.silence, 0), (prepared.silence, 1), (prepared.stderr, 2)] {
            if from == to && libc::fcntl(to, libc::F_SETFD, 0) != 0 || from != to && libc::dup2(from, to) < 0
            {
                return;
            }
        }
        // Whoever opened something without close-on-exec: it is not handed on. Kernels before 5.11 cannot do this; the
        // descriptors of this program are close-on-exec by themselves.
        libc::syscall(libc::SYS_close_range, 3, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for fd in prepared.inherit {
            if libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) != 0 {
                return;
            }
        }
        // A system call and nothing else; that one more or less is known before exec, which looks for the idlest of them.
        prepared.cores.iter().for_each(CoreMask::apply);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::execve(prepared.program.as_ptr(), prepared.arguments.as_ptr(), prepared.environment.as_ptr());
    }
}

/// The parent of the calling process as the namespace that /proc belongs to numbers it; -1 when /proc does not say.
///
/// # Safety
/// None needed beyond that of `prepare`; it makes system calls only.
unsafe fn parent_seen_from_outside() -> i32 {
    let mut text = [0u8; 512];
    // SAFETY: the buffer is as long as the length given.
    let length = unsafe {
        let fd = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let length = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        length
    };
    let Some(text) = usize::try_from(length).ok().and_then(|length| text.get(..length)) else { return -1 };
    // `PID (name) S PPID`: the name may hold anything, so from its last parenthesis on.
    let Some(end) = text.iter().rposition(|&byte| byte == b')') else { return -1 };
    let digits = text[end + 1..].iter().skip_while(|byte| !byte.is_ascii_digit());
    digits
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number: i32, digit| number.wrapping_mul(10).wrapping_add(i32::from(digit - b'0')))
}

/// The descriptor that stands for nothing to read and nobody to write to.
pub fn silence() -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::process::{Dying, Exit, start_ticks};
    use std::os::fd::AsFd;
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
    fn a_child_begins_on_the_cores_that_it_is_told() {
        let silence = silence().expect("/dev/null");
        let core = crate::os::topology::Topology::read().usable()[0];
        let child = spawn(&Order {
            program: Path::new("/bin/sleep"),
            arguments: &["600"],
            variable: None,
            inherit: &[],
            silence: silence.as_fd(),
            stderr: silence.as_fd(),
            birthplace: Birthplace::Here,
            cores: Some(CoreMask::of([core])),
        })
        .expect("a child");
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).expect("it lives");
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        assert_eq!(list.map(str::trim), Some(core.to_string().as_str()));
        child.kill();
        wait_for_exit(&child);
    }

    fn start(program: &str, arguments: &[&str], inherit: &[BorrowedFd<'_>]) -> io::Result<ChildProcess> {
        let silence = silence().expect("/dev/null");
        let variable = Some("AI_SWARM_TEST_SPAWN=here".to_owned());
        let (program, silence) = (Path::new(program), silence.as_fd());
        let birthplace = Birthplace::Here;
        spawn(&Order {
            program,
            arguments,
            variable,
            inherit,
            silence,
            stderr: silence,
            birthplace,
            cores: None,
        })
    }

    fn shell(script: &str, inherit: &[BorrowedFd<'_>]) -> ChildProcess {
        start("/bin/sh", &["-c", script], inherit).expect("a shell")
    }

    #[test]
    fn a_child_reports_its_code_and_has_our_environment_and_more() {
        assert_eq!(wait_for_exit(&shell("exit 7", &[])), Exit::Code(7));
        let script = "test \"$AI_SWARM_TEST_SPAWN\" = here && test -n \"$HOME\"";
        assert_eq!(wait_for_exit(&shell(script, &[])), Exit::Code(0));
    }

    #[test]
    fn a_killed_child_reports_the_signal() {
        let child = shell("sleep 600", &[]);
        assert!(start_ticks(child.pid()).is_some());
        assert_eq!(child.dying(), Dying::No);
        child.kill();
        assert_eq!(wait_for_exit(&child), Exit::Signal(9));
        assert_eq!(Exit::Signal(9).describe(), "signal 9 (killed)");
    }

    #[test]
    fn a_stopped_child_is_known_as_such_until_it_is_continued() {
        let child = shell("sleep 600", &[]);
        let signal = |signal| {
            rustix::process::kill_process(Pid::from_raw(child.pid() as i32).expect("a number"), signal)
        };
        let until = |stopped| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while child.is_stopped() != stopped {
                assert!(Instant::now() < deadline, "stopped: {stopped}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        assert!(!child.is_stopped() && !child.ends_within(Duration::from_millis(1)));
        signal(rustix::process::Signal::STOP).expect("it lives");
        until(true);
        assert!(child.is_stopped(), "looking changes nothing");
        signal(rustix::process::Signal::CONT).expect("it lives");
        until(false);
        child.kill();
        assert!(child.ends_within(Duration::from_secs(20)) && !child.is_stopped());
    }

    #[test]
    fn how_a_child_ends_is_known_before_it_is_waited_for() {
        for (script, exit) in [("exit 3", Exit::Code(3)), ("kill -SEGV $$", Exit::Signal(11))] {
            let child = shell(script, &[]);
            let deadline = Instant::now() + Duration::from_secs(20);
            while child.dying() == Dying::No {
                assert!(Instant::now() < deadline, "{script}");
            }
            assert_eq!(child.dying(), Dying::As(exit), "{script}");
            assert_eq!(wait_for_exit(&child), exit);
        }
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = start("/no/such/program", &[], &[]).expect_err("cannot start");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_what_is_handed_on_is_open_in_the_child_and_no_signal_is_blocked() {
        // Open without close-on-exec, as a careless library would leave it.
        let careless = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        let (careless, wanted) = (careless.expect("open"), silence().expect("open"));
        let script = format!(
            "test -e /proc/self/fd/{} && ! test -e /proc/self/fd/{} && grep -q 'SigBlk:.0*$' /proc/self/status",
            wanted.as_raw_fd(),
            careless.as_raw_fd()
        );
        assert_eq!(wait_for_exit(&shell(&script, &[wanted.as_fd()])), Exit::Code(0));
    }

    /// Waits for a child of the thread and stops it; goes on with it if nobody has ended it ten seconds later.
    fn stop_the_first_child_of(thread: u32) {
        let path = format!("/proc/self/task/{thread}/children");
        let deadline = Instant::now() + Duration::from_secs(10);
        let child = loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let Some(pid) = text.split_whitespace().find_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                break pid;
            }
            assert!(Instant::now() < deadline, "no child was started");
        };
        rustix::process::kill_process(child, rustix::process::Signal::STOP).expect("it was just born");
        while Instant::now() < deadline && rustix::process::test_kill_process(child).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = rustix::process::kill_process(child, rustix::process::Signal::CONT);
    }

    #[test]
    fn a_child_that_is_stopped_before_its_exec_holds_nobody_up() {
        let silence = silence().expect("/dev/null");
        // So many calls before exec take tens of milliseconds: time to be stopped in.
        let inherit = vec![silence.as_fd(); 100_000];
        std::thread::scope(|scope| {
            let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            scope.spawn(move || stop_the_first_child_of(thread));
            let began = Instant::now();
            let child = start("/bin/sleep", &["600"], &inherit).expect("it was born");
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            assert_eq!(wait_for_exit(&child), Exit::Signal(9), "it was stopped too late");
        });
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let child = std::thread::spawn(|| shell("sleep 600", &[])).join().expect("the thread ends well");
        assert_eq!(wait_for_exit(&child), Exit::Signal(9));
    }
}
