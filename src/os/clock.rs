//! Reads the host's monotonic clock, and those of processes.

use crate::base::clock::Nanos;
use std::path::Path;

/// Now, on the clock that all processes of this host share. About 20 ns, no system call (vDSO).
pub fn now() -> Nanos {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// How long a process, all its threads together, has been on processors. One system call, and no text to read.
#[derive(Clone, Copy, Debug)]
pub struct ProcessClock(libc::clockid_t);

impl ProcessClock {
    /// That of process `pid`, the number that `procfs` shows. `None` when that is not `/proc`, or shows no such process.
    pub fn of(procfs: &Path, pid: u32) -> Option<Self> {
        // In a PID namespace processes have other numbers for us than for who mounted /proc; the innermost comes last.
        let live = (procfs == Path::new("/proc")).then(|| procfs.join(pid.to_string()).join("status"));
        let status = std::fs::read_to_string(live?).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let number = numbers.split_ascii_whitespace().next_back()?.parse().ok()?;
        let mut clock = 0;
        // SAFETY: writes the clock's name to where it points.
        (unsafe { libc::clock_getcpuclockid(number, &raw mut clock) } == 0).then_some(Self(clock))
    }

    /// What it shows now; `None` when the process is gone.
    pub fn read(self) -> Option<Nanos> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes the time to where it points.
        let done = unsafe { libc::clock_gettime(self.0, &raw mut time) } == 0;
        done.then(|| Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_process_moves_when_it_does() {
        let own = ProcessClock::of(Path::new("/proc"), std::process::id()).expect("this very process");
        let first = own.read().expect("it lives");
        let began = now();
        while now().since(began) < std::time::Duration::from_millis(5) {}
        assert!(own.read().expect("it lives") > first);

        let mut sleeper = std::process::Command::new("sleep").arg("600").spawn().expect("a process");
        let clock = ProcessClock::of(Path::new("/proc"), sleeper.id()).expect("it lives");
        let read = || clock.read().expect("it lives");
        // It may still be on its way to its sleep.
        let asleep = |_| {
            let before = read();
            std::thread::sleep(std::time::Duration::from_millis(20));
            (read() == before).then_some(before)
        };
        let before = (0..500).find_map(asleep).expect("it comes to rest");
        let pid = rustix::process::Pid::from_child(&sleeper);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("ours");
        let deadline = now().plus(std::time::Duration::from_secs(20));
        while read() == before {
            assert!(now() < deadline, "to be stopped takes time on a processor");
        }
        sleeper.kill().expect("ours");
        sleeper.wait().expect("ours");
        assert_eq!(clock.read(), None, "it is gone");
        assert!(ProcessClock::of(Path::new("/nowhere"), 1).is_none());
    }

    #[test]
    fn time_moves_forward() {
        let first = super::now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(super::now().since(first) >= std::time::Duration::from_millis(2));
    }
}
