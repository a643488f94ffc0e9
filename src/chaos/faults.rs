//! What can go wrong, and how it is made to.

use super::victim::Victim;
use crate::base::prng::SplitMix64;
use crate::os::process;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// kill -9 of one agent, of any kind
    Kill,
    /// kill -9 of several agents at once, sometimes of all
    KillMany,
    /// SIGSTOP of one agent: it hangs, nobody continues it, and it must be gone soon
    Stop,
    /// random words over the shared memory that one agent writes, the common board included
    Scribble,
    /// one agent gets no more memory for a moment: its allocations and mappings fail
    Memory,
    /// kill -9 of the supervisor, half of the time with an agent stopped by SIGSTOP; it is started again on the same state directory
    Supervisor,
    /// kill -9 or SIGSTOP of the gateway: the control API must be back within a second, and work goes on meanwhile
    Gateway,
    /// the supervisor comes back on a disk that fails, is full or is slow, is given tasks there, and comes back once more on
    /// a good one (debug builds)
    Disk,
}

impl Fault {
    pub(super) const ALL: [Fault; 8] = [
        Fault::Kill,
        Fault::KillMany,
        Fault::Stop,
        Fault::Scribble,
        Fault::Memory,
        Fault::Supervisor,
        Fault::Gateway,
        Fault::Disk,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::KillMany => "kill-many",
            Fault::Stop => "stop",
            Fault::Scribble => "scribble",
            Fault::Memory => "memory",
            Fault::Supervisor => "supervisor",
            Fault::Gateway => "gateway",
            Fault::Disk => "disk",
        }
    }

    /// How often it comes, against the others.
    pub(super) fn weight(self) -> u64 {
        match self {
            Fault::Kill => 60,
            Fault::KillMany | Fault::Stop | Fault::Scribble | Fault::Gateway => 10,
            Fault::Supervisor => 6,
            Fault::Memory => 4,
            Fault::Disk => 2,
        }
    }
}

/// How often a fault was injected, and why not otherwise.
#[derive(Debug, Default)]
pub(super) struct Injected {
    pub count: u64,
    pub refused: BTreeMap<String, u64>,
}

impl Injected {
    /// Counts what one attempt did: so many faults, or a reason.
    pub(super) fn add(&mut self, outcome: Result<u64, String>) {
        match outcome {
            Ok(count) => self.count += count,
            Err(why) => *self.refused.entry(why).or_default() += 1,
        }
    }
}

/// Does it. The inner error is a reason why this host does not let us; it is counted and shown. On a bad disk `meanwhile` is
/// called again and again.
pub(super) fn inject(
    fault: Fault,
    victim: &mut Victim,
    luck: &mut SplitMix64,
    meanwhile: &mut dyn FnMut(&mut Victim) -> anyhow::Result<()>,
) -> anyhow::Result<Result<u64, String>> {
    let mut agents = victim.agents()?;
    let none = || "no agent lives at this moment".to_owned();
    let mut one = |luck: &mut SplitMix64| {
        let count = agents.len() as u64;
        (count > 0).then(|| agents.swap_remove(luck.below(count) as usize))
    };
    Ok(match fault {
        Fault::Kill => one(luck).ok_or_else(none).and_then(|agent| signal(agent, Signal::KILL)),
        Fault::Stop => match one(luck) {
            Some(agent) => victim.stop_agent(agent)?,
            None => Err(none()),
        },
        Fault::KillMany => {
            let wanted = how_many(luck);
            let mut killed = 0;
            while killed < wanted {
                let Some(agent) = one(luck) else { break };
                killed += signal(agent, Signal::KILL).unwrap_or(0);
            }
            if killed > 0 { Ok(killed) } else { Err(none()) }
        }
        Fault::Scribble => match one(luck) {
            Some(agent) => scribble(agent, luck),
            None => Err(none()),
        },
        Fault::Memory => match one(luck) {
            Some(agent) => starve(agent, luck),
            None => Err(none()),
        },
        Fault::Supervisor => {
            if luck.below(2) == 0 {
                // Whoever is stopped cannot go by itself. There may be nobody.
                let _ = one(luck).map(|agent| signal(agent, Signal::STOP));
            }
            victim.kill_supervisor()?;
            Ok(1)
        }
        Fault::Disk if !cfg!(debug_assertions) => {
            Err("a release build has no places at which a disk can fail".to_owned())
        }
        Fault::Disk => {
            victim.restart_on_a_bad_disk(&disk_trouble(luck), meanwhile)?;
            Ok(1)
        }
        Fault::Gateway => victim.strike_gateway([Signal::KILL, Signal::STOP][luck.below(2) as usize])?,
    })
}

/// Of the agents that die at once: some, or every one that there is.
fn how_many(luck: &mut SplitMix64) -> u64 {
    match luck.below(4) {
        0 => u64::MAX,
        _ => 2 + luck.below(6),
    }
}

pub(super) fn signal(pid: Pid, signal: Signal) -> Result<u64, String> {
    match rustix::process::kill_process(pid, signal) {
        Ok(()) => Ok(1),
        Err(rustix::io::Errno::SRCH) => Err("the process had ended".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Random words over up to 40 places of one writable shared mapping of the process.
fn scribble(pid: Pid, luck: &mut SplitMix64) -> Result<u64, String> {
    let number = pid.as_raw_nonzero();
    let text = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "the agent had ended".to_owned(),
        _ => format!("memory of another process: {error}"),
    };
    let places = process::writable_shared(number.get() as u32).map_err(text)?;
    if places.is_empty() {
        return Err("the agent had mapped nothing yet".to_owned());
    }
    let (_, place) = &places[luck.below(places.len() as u64) as usize];
    // Of an arena only the beginning has memory behind it.
    let (from, bytes) = (place.start, (place.end - place.start).min(1 << 20));
    let memory = File::options().write(true).open(format!("/proc/{number}/mem")).map_err(text)?;
    for _ in 0..=luck.below(40) {
        let word = luck.next_u64() >> (8 * luck.below(8));
        let at = from + luck.below(bytes / 8) * 8;
        if let Err(error) = memory.write_all_at(&word.to_le_bytes(), at) {
            return Err(text(error));
        }
    }
    Ok(1)
}

/// What befalls the journal, as [`trouble`](crate::base::trouble) has it.
fn disk_trouble(luck: &mut SplitMix64) -> String {
    let place = ["journal.commit", "journal.head", "journal.read"][luck.below(3) as usize];
    let pass = 1 + luck.below(20);
    match luck.below(3) {
        0 => format!("{place}:{pass}"),
        1 => format!("journal.commit:{pass}-{}=full", pass + 3),
        _ => format!("{place}:{pass}-=slow:{}ms", 1 + luck.below(50)),
    }
}

/// For some tens of milliseconds the process may not have more address space than it has now. Whatever it asks for is
/// refused: it says so, or ends.
fn starve(pid: Pid, luck: &mut SplitMix64) -> Result<u64, String> {
    let text = |error: rustix::io::Errno| match error {
        rustix::io::Errno::SRCH => "the agent had ended".to_owned(),
        _ => format!("limits of another process: {error}"),
    };
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", pid.as_raw_nonzero()));
    let pages = statm.ok().and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let Some(pages) = pages.filter(|&pages| pages > 0) else { return Err("the agent had ended".to_owned()) };
    let bytes = pages * rustix::param::page_size() as u64;
    let before = rustix::process::prlimit(
        Some(pid),
        Resource::As,
        Rlimit { current: Some(bytes), ..rustix::process::getrlimit(Resource::As) },
    )
    .map_err(text)?;
    std::thread::sleep(Duration::from_millis(10 + luck.below(60)));
    match rustix::process::prlimit(Some(pid), Resource::As, before) {
        // It did not live to see the end of it.
        Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(1),
        Err(error) => Err(text(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sometimes_all_agents_die_at_once() {
        let mut luck = SplitMix64::new(1);
        let counts: Vec<u64> = (0..100).map(|_| how_many(&mut luck)).collect();
        let all = counts.iter().filter(|&&count| count == u64::MAX).count();
        assert!((10..50).contains(&all), "{counts:?}");
        assert!(counts.iter().all(|&count| count == u64::MAX || (2..8).contains(&count)), "{counts:?}");
    }
}
