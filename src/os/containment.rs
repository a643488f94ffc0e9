//! What an agent's own children die by, also those that detached themselves.
//!
//! The parent-death signal ends agents with their supervisor, but it is not handed on to what agents start. Two means:
//!
//! - **A PID namespace**, where the kernel permits one. Its init is the *guard*, a child of ours that does nothing but
//!   sleep and die with us; agents are born into its namespace. When the guard goes, the kernel kills everybody inside,
//!   stopped or detached, before anything else runs. Orphans become the guard's children, and that is how they are found.
//! - **Adoption**, everywhere else: this process becomes the subreaper of its descendants, finds orphans among its own
//!   children and kills them. When this process itself is killed, agents still die; what they had started is found by the
//!   supervisor's reaper, or else by the next start of the same swarm ([`end_strays`]).
//!
//! Which orphan belonged to whom is read in its environment: [`VARIABLE`] names a life and is inherited.

use super::process::{ChildProcess, EXITING};
use super::spawn::{self, Birthplace, Order};
use rustix::process::{Pid, PidfdFlags};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Names the life of an agent in its environment and in that of all that it starts.
pub const VARIABLE: &str = "AI_SWARM_LIFE";

/// Looks for orphans at the end, at most.
const ENDINGS: u32 = 400;
/// Longest hunt for what the agents of a dead swarm left behind.
const STRAYS: Duration = Duration::from_millis(500);

/// See the module. Used by the thread that starts processes, and by no other.
#[derive(Debug)]
pub struct Containment {
    means: Means,
    /// Orphans of our own that were killed and have to be waited for.
    dying: Vec<ChildProcess>,
}

#[derive(Debug)]
enum Means {
    Namespace {
        guard: ChildProcess,
        /// Our own namespace, to come back to.
        outside: OwnedFd,
    },
    Adoption {
        /// Why there is no namespace.
        why: String,
    },
}

/// How a guard is started.
#[derive(Clone, Copy, Debug)]
pub struct GuardOrder<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its words, which lead it to [`guard_main`].
    pub arguments: [&'a str; 2],
    /// Its standard input, output and error.
    pub silence: BorrowedFd<'a>,
}

/// Whether the kernel would give us a namespace, as far as one can see without asking for one.
pub fn may_have_namespace() -> Result<(), String> {
    /// The right to make namespaces and to enter them.
    const SYS_ADMIN: u32 = 21;
    let rights = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights = rights.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = rights.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    match rights {
        Some(rights) if rights >> SYS_ADMIN & 1 == 0 => Err(NO_RIGHT.to_owned()),
        Some(_) if fs::metadata("/proc/self/ns/pid").is_err() => {
            Err("this kernel has no PID namespaces".to_owned())
        }
        Some(_) => Ok(()),
        None => Err("/proc/self/status does not say what this process may do".to_owned()),
    }
}

const NO_RIGHT: &str = "a PID namespace needs the right CAP_SYS_ADMIN";

impl Containment {
    /// The best means that there is.
    pub fn begin(guard: &GuardOrder<'_>) -> Self {
        let means = Self::namespace(guard).unwrap_or_else(|error| {
            let why = match error.raw_os_error() {
                Some(libc::EPERM) => NO_RIGHT.to_owned(),
                _ => format!("no PID namespace: {error}"),
            };
            Self::adoption(why)
        });
        Self { means, dying: Vec::new() }
    }

    fn namespace(guard: &GuardOrder<'_>) -> io::Result<Means> {
        let outside = fs::File::open("/proc/self/ns/pid")?.into();
        let guard = spawn::spawn(&Order {
            program: guard.program,
            arguments: &guard.arguments,
            variable: None,
            inherit: &[],
            silence: guard.silence,
            stderr: guard.silence,
            birthplace: Birthplace::NewNamespace,
            cores: None,
        })?;
        // Tried at once, so that a host that allows the one and not the other is known before it matters.
        if let Err(error) = enter(&guard).and_then(|()| enter(&outside)) {
            end_and_wait(&guard);
            return Err(error);
        }
        Ok(Means::Namespace { guard, outside })
    }

    fn adoption(why: String) -> Means {
        // SAFETY: concerns who becomes the parent of orphans, no memory.
        let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == 0;
        let why = if done { why } else { format!("{why}; and orphans are not adopted") };
        Means::Adoption { why }
    }

    /// Starts a process that these means reach.
    pub fn spawn(&self, order: Order<'_>) -> io::Result<ChildProcess> {
        match &self.means {
            Means::Adoption { .. } => spawn::spawn(&order),
            Means::Namespace { guard, outside } => {
                enter(guard)?;
                let child = spawn::spawn(&Order { birthplace: Birthplace::Chosen, ..order });
                enter(outside)?;
                child
            }
        }
    }

    /// Whether orphans become our own children, and have to be waited for.
    pub fn adopts(&self) -> bool {
        matches!(self.means, Means::Adoption { .. })
    }

    /// `pid_namespace` or `adoption`.
    pub fn name(&self) -> &'static str {
        match self.means {
            Means::Namespace { .. } => "pid_namespace",
            Means::Adoption { .. } => "adoption",
        }
    }

    /// Why it is not the better means.
    pub fn why_not_better(&self) -> Option<&str> {
        match &self.means {
            Means::Namespace { .. } => None,
            Means::Adoption { why } => Some(why),
        }
    }

    /// The guard: readable once it has ended.
    pub fn guard(&self) -> Option<&ChildProcess> {
        match &self.means {
            Means::Namespace { guard, .. } => Some(guard),
            Means::Adoption { .. } => None,
        }
    }

    /// The guard has ended and with it everybody inside: a new one, or the lesser means.
    pub fn renew(&mut self, guard: &GuardOrder<'_>) {
        *self = Self::begin(guard);
    }

    /// Kills orphans whose agent is gone. `lives` says of a name found under [`VARIABLE`] whether that life still lasts,
    /// or `None` that it is none of ours. Orphans that have ended by themselves are waited for, where that is ours to do;
    /// `is_kept` names the children whose end somebody else waits for. Returns how many were killed; those that a killed one
    /// leaves behind come next time.
    pub fn end_orphans(
        &mut self,
        lives: impl Fn(&str) -> Option<bool>,
        is_kept: impl Fn(u32) -> bool,
    ) -> usize {
        self.dying.retain(|child| child.try_reap().is_none());
        let (parent, all_ours) = match &self.means {
            Means::Namespace { guard, .. } => (guard.pid(), true),
            Means::Adoption { .. } => (std::process::id(), false),
        };
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let mut ended = 0;
        for pid in children.unwrap_or_default().split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            // The descriptor first: what is read afterwards is about the very process that it means, or it is dead.
            let Some(raw) = Pid::from_raw(pid) else { continue };
            let Ok(pidfd) = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) else { continue };
            if living_under(pid) != Some(parent) {
                if !all_ours && !is_kept(pid as u32) {
                    // Nobody but us can give its number back.
                    ChildProcess::new(raw, pidfd).try_reap();
                }
                continue;
            }
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let is_over = match life_in(&environment).and_then(&lives) {
                Some(lives) => !lives,
                // Inside the namespace everybody came from an agent; who has dropped its name has no claim to stay.
                None => all_ours,
            };
            if is_over {
                ended += 1;
                let orphan = ChildProcess::new(raw, pidfd);
                orphan.kill();
                if !all_ours {
                    self.dying.push(orphan);
                }
            }
        }
        ended
    }

    /// Ends everybody that agents left behind; agents themselves are gone. Nothing can be started afterwards. `is_ours`
    /// says of a name found under [`VARIABLE`] whether it is one of this swarm.
    pub fn end(&mut self, is_ours: impl Fn(&str) -> bool) {
        if let Means::Namespace { guard, .. } = &self.means {
            return end_and_wait(guard);
        }
        // Each look may find children of those that the look before has killed.
        for _ in 0..ENDINGS {
            let found = self.end_orphans(|life| is_ours(life).then_some(false), |_| false);
            if found == 0 && self.dying.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Ends what the agents of a dead swarm left behind, wherever it is by now. Looks at every process of the host, so only
/// where there was such a swarm. Returns how many there were.
pub fn end_strays(is_theirs: impl Fn(&str) -> bool) -> usize {
    // Where /proc shows the numbers of another namespace, a number there is somebody else here.
    if super::process::own_number() != std::process::id() {
        return 0;
    }
    let (mut ended, began) = (BTreeSet::new(), Instant::now());
    // One that was killed may have started another just before, behind this look's back.
    while began.elapsed() < STRAYS {
        let before = ended.len();
        ended.extend(kill_strays(&is_theirs));
        if ended.len() == before {
            break;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    ended.len()
}

fn kill_strays(is_theirs: &impl Fn(&str) -> bool) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_stray = |pid: &i32| {
        // The descriptor first, as for orphans.
        let raw = Pid::from_raw(*pid)?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK).ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        is_theirs(life_in(&environment)?).then(|| ChildProcess::new(raw, pidfd).kill())
    };
    pids.filter(|pid| is_stray(pid).is_some()).collect()
}

/// Short: agents were waited for, and orphans are nobody's memory of any size.
fn end_and_wait(guard: &ChildProcess) {
    guard.kill();
    for _ in 0..1000 {
        if guard.try_reap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Children of the calling thread are born in the namespace behind `fd` from here on. Threads cannot be: come back.
fn enter(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: names a namespace by an open descriptor; concerns future children only.
    match unsafe { libc::setns(fd.as_fd().as_raw_fd(), libc::CLONE_NEWPID) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The parent of a process that is not on its way out already.
fn living_under(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let flags: u64 = fields.nth(4)?.parse().ok()?;
    (!matches!(state, "Z" | "X") && flags & EXITING == 0).then_some(parent)
}

fn life_in(environment: &[u8]) -> Option<&str> {
    environment
        .split(|byte| *byte == 0)
        .find_map(|variable| std::str::from_utf8(variable).ok()?.strip_prefix(VARIABLE)?.strip_prefix('='))
}

/// The guard's main: it sleeps until it is killed. Orphans that end by themselves are not even waited for.
pub fn guard_main() -> ! {
    // SAFETY: system calls without memory.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        loop {
            libc::pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_found_in_an_environment() {
        assert_eq!(life_in(b"A=b\0AI_SWARM_LIFE=x.7\0C=d\0"), Some("x.7"));
        assert_eq!(life_in(b"AI_SWARM_LIFETIME=x\0"), None);
        assert_eq!(life_in(b""), None);
    }
}
