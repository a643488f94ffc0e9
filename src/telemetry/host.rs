//! The host and the processes of agents, sampled at about 1 Hz from `/proc` or a recorded tree.
//! The resource agent owns one [`HostSampler`]; `doctor` and the first lines of a start use [`HostFacts`].
//!
//! Invariants
//! 1. Rates need two samples: the first is `warming_up`, never 0 and never "since boot".
//! 2. A counter that runs backwards (restart, wrap, hot-plug) yields `warming_up` once, not a negative rate.
//! 3. Files stay open between samples; a sample of a host and ten agents costs well below 0.3 ms.
//!
//! `/proc/stat` counts in ticks of 10 ms: below about half a second a core's percentage moves in steps.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::reading::{Missing, Reading, Reason};
use crate::os::sysfs::KeptFile;

/// What does not change while we run, from `sysinfo`.
#[derive(Debug, Clone, Serialize)]
pub struct HostFacts {
    /// Host name.
    pub host_name: Reading<String>,
    /// Name and version of the operating system.
    pub os: Reading<String>,
    /// Kernel release.
    pub kernel: Reading<String>,
    /// Bytes of memory in the machine.
    pub memory_total_bytes: Reading<u64>,
    /// Bytes of swap.
    pub swap_total_bytes: Reading<u64>,
    /// Bytes of memory this control group may use, when it is limited.
    pub cgroup_memory_bytes: Reading<u64>,
}

impl HostFacts {
    /// Of this host; a few milliseconds.
    pub fn read() -> HostFacts {
        let text = |result: Result<String, sysinfo::Error>, what: &'static str| match result {
            Ok(text) if !text.is_empty() => Reading::measured(text),
            _ => Reading::absent(Reason::NotPresent, format!("{what} is not told")),
        };
        let memory = sysinfo::System::new().map(|mut system| {
            system.refresh_memory();
            let limit = system.cgroup_limits().map(|limits| limits.total_memory);
            (system.total_memory(), system.total_swap(), limit)
        });
        let not_told = || Missing::new(Reason::NotPresent, "memory is not told");
        let (total, swap, limit) = match memory {
            Ok((total, swap, limit)) if total > 0 => {
                (Ok(total), Ok(swap), limit.filter(|&limit| limit < total))
            }
            _ => (Err(not_told()), Err(not_told()), None),
        };
        HostFacts {
            host_name: text(sysinfo::System::host_name(), "the host name"),
            os: text(sysinfo::System::long_os_version(), "the operating system"),
            kernel: text(sysinfo::System::kernel_version(), "the kernel release"),
            memory_total_bytes: total.into(),
            swap_total_bytes: swap.into(),
            cgroup_memory_bytes: limit
                .map(Reading::measured)
                .unwrap_or_else(|| Reading::absent(Reason::Off, "this control group sets no limit")),
        }
    }
}

/// Share of time in which somebody waited, percent over the interval (pressure stall information).
/// There is no `cpu full`: it is 0 by definition for a whole system.
#[derive(Debug, Clone, Serialize)]
pub struct Pressure {
    /// Some runnable task waited for a core.
    pub cpu_some: Reading<f64>,
    /// Some task waited for memory.
    pub memory_some: Reading<f64>,
    /// All tasks waited for memory.
    pub memory_full: Reading<f64>,
    /// Some task waited for a disk.
    pub io_some: Reading<f64>,
    /// All tasks waited for a disk.
    pub io_full: Reading<f64>,
}

/// One look at the host.
#[derive(Debug, Clone, Serialize)]
pub struct HostSample {
    /// Seconds since the sample before.
    pub interval_s: Reading<f64>,
    /// Use of all cores together, percent; stolen time is not use.
    pub cpu_percent: Reading<f64>,
    /// Use of each core, percent, by index.
    pub core_percent: Vec<(usize, Reading<f64>)>,
    /// Time that the hypervisor gave to others, percent of all cores.
    pub steal_percent: Reading<f64>,
    /// Bytes of memory.
    pub memory_total_bytes: Reading<u64>,
    /// Bytes that programs may still have, caches given back.
    pub memory_available_bytes: Reading<u64>,
    /// Share not available, percent.
    pub memory_percent: Reading<f64>,
    /// Waiting for cores, memory, disks.
    pub pressure: Pressure,
    /// Bytes per second read from all whole disks.
    pub disk_read_bytes_per_s: Reading<f64>,
    /// Bytes per second written to all whole disks.
    pub disk_write_bytes_per_s: Reading<f64>,
    /// Load average over 1, 5 and 15 minutes.
    pub load: Reading<[f64; 3]>,
}

impl HostSample {
    /// The sample as JSON with stable keys.
    pub fn to_json(&self) -> serde_json::Value {
        json!(self)
    }
}

/// One look at the process of an agent.
#[derive(Debug, Clone, Serialize)]
pub struct AgentUsage {
    /// Process id.
    pub pid: u32,
    /// Percent of one core; more than 100 with several threads.
    pub cpu_percent: Reading<f64>,
    /// Bytes in memory (resident set).
    pub rss_bytes: Reading<u64>,
    /// Nanoseconds that its main thread was ready and waited for a core, since its start.
    pub run_delay_ns: Reading<u64>,
    /// Times it gave up its core of its own will, since its start.
    pub context_switches_voluntary: Reading<u64>,
    /// Times its core was taken away, since its start.
    pub context_switches_involuntary: Reading<u64>,
    /// Page faults without a disk, since its start.
    pub page_faults_minor: Reading<u64>,
    /// Page faults with a disk, since its start.
    pub page_faults_major: Reading<u64>,
    /// Threads.
    pub threads: Reading<u64>,
}

/// Ticks of one line of `/proc/stat`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ticks {
    total: u64,
    busy: u64,
    steal: u64,
}

#[derive(Debug)]
struct Process {
    pid: u32,
    stat: KeptFile,
    status: KeptFile,
    schedstat: KeptFile,
    /// When, ticks of the process, nanoseconds on a core of its main thread if that is its only one.
    last: Option<(Instant, u64, Option<u64>)>,
}

/// Voluntary and involuntary context switches.
type Switches = (Option<u64>, Option<u64>);

/// Samples the host; keeps files open and remembers the sample before.
#[derive(Debug)]
pub struct HostSampler {
    procfs: PathBuf,
    stat: KeptFile,
    meminfo: KeptFile,
    loadavg: KeptFile,
    diskstats: KeptFile,
    pressure: [KeptFile; 3],
    processes: Vec<Process>,
    last: Option<Last>,
    tick_hz: f64,
    page_bytes: u64,
}

/// Counters of the sample before.
#[derive(Debug)]
struct Last {
    at: Instant,
    all: Option<Ticks>,
    cores: Vec<(usize, Ticks)>,
    /// cpu some, memory some, memory full, io some, io full; microseconds.
    stalls: [Option<u64>; 5],
    disks: Option<(u64, u64)>,
}

impl HostSampler {
    /// Reads below this root, usually `/proc`.
    pub fn new(procfs: impl Into<PathBuf>) -> HostSampler {
        let procfs = procfs.into();
        let kept = |name: &str| KeptFile::new(procfs.join(name));
        HostSampler {
            stat: kept("stat"),
            meminfo: kept("meminfo"),
            loadavg: kept("loadavg"),
            diskstats: kept("diskstats"),
            pressure: ["cpu", "memory", "io"].map(|name| kept(&format!("pressure/{name}"))),
            processes: Vec::new(),
            last: None,
            tick_hz: rustix::param::clock_ticks_per_second() as f64,
            page_bytes: rustix::param::page_size() as u64,
            procfs,
        }
    }

    /// The host now; rates since the call before.
    pub fn sample(&mut self) -> HostSample {
        self.sample_at(Instant::now())
    }

    /// As [`HostSampler::sample`], with the time given: recorded trees have their own.
    pub fn sample_at(&mut self, now: Instant) -> HostSample {
        let ticks = self.stat.read().map(parse_stat);
        let stalls = self.stalls();
        let disks = self.diskstats.read().map(parse_diskstats);
        let last = self.last.take();
        let elapsed = last.as_ref().map(|last| now.saturating_duration_since(last.at).as_secs_f64());
        let elapsed = elapsed.filter(|&seconds| seconds > 0.0);
        let rate = |now: &Result<u64, Missing>, before: Option<u64>| -> Reading<f64> {
            match (now, before, elapsed) {
                (Err(missing), _, _) => missing.clone().into(),
                (Ok(now), Some(before), Some(seconds)) if *now >= before => {
                    Reading::derived((now - before) as f64 / seconds)
                }
                _ => Reading::warming_up(),
            }
        };

        let (cpu, cores, steal) = match &ticks {
            Ok((all, cores)) => {
                let before_all = last.as_ref().and_then(|last| last.all);
                let shares = all.zip(before_all).map_or(Err(()), |(now, before)| share(now, before));
                let (cpu, steal) = match (all, shares) {
                    (None, _) => {
                        let none = || Reading::absent(Reason::Implausible, "/proc/stat has no line `cpu`");
                        (none(), none())
                    }
                    (Some(_), Err(())) => (Reading::warming_up(), Reading::warming_up()),
                    (Some(_), Ok((busy, steal))) => (Reading::derived(busy), Reading::derived(steal)),
                };
                let core = |&(index, now): &(usize, Ticks)| {
                    let before =
                        last.as_ref().and_then(|last| last.cores.iter().find(|(other, _)| *other == index));
                    let share = before.and_then(|&(_, before)| share(now, before).ok());
                    (index, share.map_or_else(Reading::warming_up, |(busy, _)| Reading::derived(busy)))
                };
                (cpu, cores.iter().map(core).collect(), steal)
            }
            Err(missing) => (missing.clone().into(), Vec::new(), missing.clone().into()),
        };

        let mut stalled = [0, 1, 2, 3, 4].map(|slot| {
            // Microseconds per second to percent; the two clocks differ by a hair, so 100 is the end.
            rate(&stalls[slot], last.as_ref().and_then(|last| last.stalls[slot]))
                .map(|us| (us / 1e4).min(100.0))
        });
        let [cpu_some, memory_some, memory_full, io_some, io_full] =
            std::array::from_fn(|slot| std::mem::replace(&mut stalled[slot], Reading::warming_up()));

        let before = last.as_ref().and_then(|last| last.disks);
        let bytes = |pick: fn((u64, u64)) -> u64| {
            let now = match &disks {
                Ok(Some(disks)) => Ok(pick(*disks)),
                Ok(None) => Err(Missing::new(Reason::NotPresent, "/proc/diskstats lists no whole disk")),
                Err(missing) => Err(missing.clone()),
            };
            rate(&now, before.map(pick))
        };
        let (disk_read, disk_write) = (bytes(|disks| disks.0), bytes(|disks| disks.1));

        let memory = self.meminfo.read().map(parse_meminfo);
        let (total, available) = match memory {
            Ok((total, available)) => {
                let told = |value: Option<u64>, name: &'static str| {
                    value.ok_or_else(|| {
                        Missing::new(Reason::NotPresent, format!("/proc/meminfo has no {name}"))
                    })
                };
                (told(total, "MemTotal"), told(available, "MemAvailable"))
            }
            Err(missing) => (Err(missing.clone()), Err(missing)),
        };
        let memory_percent = match (&total, &available) {
            (Ok(total), Ok(available)) if *total > 0 => {
                Reading::derived(100.0 * total.saturating_sub(*available) as f64 / *total as f64)
            }
            (Err(missing), _) | (_, Err(missing)) => missing.clone().into(),
            _ => Reading::absent(Reason::Implausible, "MemTotal is 0"),
        };
        let load = match self.loadavg.read().map(parse_loadavg) {
            Ok(Some(load)) => Reading::measured(load),
            Ok(None) => Reading::absent(Reason::Implausible, "/proc/loadavg is not three numbers"),
            Err(missing) => missing.into(),
        };

        let (all, core_ticks) = ticks.unwrap_or_default();
        self.last = Some(Last {
            at: now,
            all,
            cores: core_ticks,
            stalls: stalls.map(Result::ok),
            disks: disks.ok().flatten(),
        });
        HostSample {
            interval_s: elapsed.map_or_else(Reading::warming_up, Reading::measured),
            cpu_percent: cpu,
            core_percent: cores,
            steal_percent: steal,
            memory_total_bytes: total.into(),
            memory_available_bytes: available.into(),
            memory_percent,
            pressure: Pressure { cpu_some, memory_some, memory_full, io_some, io_full },
            disk_read_bytes_per_s: disk_read,
            disk_write_bytes_per_s: disk_write,
            load,
        }
    }

    fn stalls(&mut self) -> [Result<u64, Missing>; 5] {
        let [cpu, memory, io] = &mut self.pressure;
        let ask = |file: &mut KeptFile| match file.read() {
            Ok(text) => {
                let told = |word| {
                    parse_stall(text, word).ok_or_else(|| {
                        Missing::new(Reason::NotPresent, format!("no `{word}` in the pressure file"))
                    })
                };
                (told("some"), told("full"))
            }
            Err(missing) => {
                let missing = match missing.reason {
                    // Present but switched off answers EOPNOTSUPP; a kernel without it has no file.
                    Reason::Unsupported => {
                        Missing::new(Reason::Off, "this kernel was booted without pressure stall information")
                            .fix("boot with psi=1")
                    }
                    Reason::NotPresent => {
                        Missing::new(Reason::NotPresent, "this kernel has no /proc/pressure")
                            .fix("boot with psi=1, or a kernel with CONFIG_PSI")
                    }
                    _ => missing,
                };
                (Err(missing.clone()), Err(missing))
            }
        };
        let ((cpu_some, _), (memory_some, memory_full), (io_some, io_full)) =
            (ask(cpu), ask(memory), ask(io));
        [cpu_some, memory_some, memory_full, io_some, io_full]
    }

    /// The processes of agents now, in the order of `pids`. Files of processes no longer listed are closed.
    pub fn agents(&mut self, pids: &[u32]) -> Vec<AgentUsage> {
        self.agents_at(pids, Instant::now())
    }

    /// As [`HostSampler::agents`], with the time given.
    pub fn agents_at(&mut self, pids: &[u32], now: Instant) -> Vec<AgentUsage> {
        self.processes.retain(|process| pids.contains(&process.pid));
        let (tick_hz, page_bytes) = (self.tick_hz, self.page_bytes);
        pids.iter()
            .map(|&pid| {
                let found = self.processes.iter().position(|process| process.pid == pid);
                let index = found.unwrap_or_else(|| {
                    self.processes.push(Process::new(&self.procfs, pid));
                    self.processes.len() - 1
                });
                let usage = self.processes[index].usage(now, tick_hz, page_bytes);
                if usage.threads.reason() == Some(Reason::Lost) {
                    // The number may be given to another process: forget what the old one had counted.
                    self.processes.swap_remove(index);
                }
                usage
            })
            .collect()
    }
}

impl Process {
    fn new(procfs: &Path, pid: u32) -> Process {
        let kept = |name: &str| KeptFile::new(procfs.join(pid.to_string()).join(name));
        Process { pid, stat: kept("stat"), status: kept("status"), schedstat: kept("schedstat"), last: None }
    }

    fn usage(&mut self, now: Instant, tick_hz: f64, page_bytes: u64) -> AgentUsage {
        let pid = self.pid;
        // A process without files has ended, or never was: either way it is gone.
        let gone = |missing: Missing| match missing.reason {
            Reason::NotPresent | Reason::Lost => {
                Missing::new(Reason::Lost, format!("process {pid} has ended"))
            }
            _ => missing,
        };
        let unclear =
            |name: &str| Missing::new(Reason::Implausible, format!("/proc/{pid}/{name} is not understood"));
        let stat = self
            .stat
            .read()
            .map_err(gone)
            .and_then(|text| parse_pid_stat(text).ok_or_else(|| unclear("stat")));
        let times = self
            .schedstat
            .read()
            .map_err(gone)
            .and_then(|text| parse_schedstat(text).ok_or_else(|| unclear("schedstat")));
        let switches = self.status.read().map_err(gone).map(parse_switches);

        let cpu = match &stat {
            Err(missing) => missing.clone().into(),
            Ok(stat) => {
                // Nanoseconds where the main thread is the only one; else ticks of 10 ms for all threads.
                let exact = times.as_ref().ok().filter(|_| stat.threads == 1).map(|(run_ns, _)| *run_ns);
                let last = self.last.replace((now, stat.ticks, exact));
                let seconds = last.map(|(at, ..)| now.saturating_duration_since(at).as_secs_f64());
                match (last, seconds.filter(|&seconds| seconds > 0.0)) {
                    (Some((_, _, Some(before))), Some(seconds)) if exact.is_some_and(|now| now >= before) => {
                        Reading::derived((exact.unwrap_or(before) - before) as f64 / 1e7 / seconds)
                    }
                    (Some((_, before, _)), Some(seconds)) if stat.ticks >= before => {
                        Reading::derived(100.0 * (stat.ticks - before) as f64 / tick_hz / seconds)
                    }
                    _ => Reading::warming_up(),
                }
            }
        };
        let from_stat = |pick: fn(&PidStat) -> u64| -> Reading<u64> {
            stat.as_ref().map(pick).map_err(Clone::clone).into()
        };
        let switch = |pick: fn(&Switches) -> Option<u64>| -> Reading<u64> {
            match &switches {
                Ok(both) => pick(both).ok_or_else(|| unclear("status")).into(),
                Err(missing) => missing.clone().into(),
            }
        };
        AgentUsage {
            pid,
            cpu_percent: cpu,
            rss_bytes: from_stat(|stat| stat.rss_pages).map(|pages| pages.saturating_mul(page_bytes)),
            run_delay_ns: times.map(|(_, delay_ns)| delay_ns).into(),
            context_switches_voluntary: switch(|both| both.0),
            context_switches_involuntary: switch(|both| both.1),
            page_faults_minor: from_stat(|stat| stat.faults_minor),
            page_faults_major: from_stat(|stat| stat.faults_major),
            threads: from_stat(|stat| stat.threads),
        }
    }
}

/// Descriptors that a process has open.
pub fn open_descriptors(procfs: &Path, pid: u32) -> Reading<u64> {
    let folder = procfs.join(pid.to_string()).join("fd");
    let counted = std::fs::metadata(&folder).and_then(|metadata| match metadata.len() {
        // Before Linux 6.2 the folder has no size, and its entries must be counted.
        0 => std::fs::read_dir(&folder).map(|entries| entries.count() as u64),
        open => Ok(open),
    });
    counted.map_err(|error| Missing::from_io(folder.display(), &error)).into()
}

/// Descriptors that a process may have open.
pub fn descriptor_limit(procfs: &Path, pid: u32) -> Reading<u64> {
    let path = procfs.join(pid.to_string()).join("limits");
    let text = crate::os::sysfs::read_text(&path);
    text.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
        let limit = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        limit.ok_or_else(|| Missing::new(Reason::Implausible, format!("{}: not understood", path.display())))
    })
    .into()
}

/// Space in the file system of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes this user may still fill.
    pub available_bytes: u64,
}

/// Space in the file system that holds this folder.
pub fn space_of(folder: &Path) -> Reading<Space> {
    match rustix::fs::statvfs(folder) {
        Ok(stat) => Reading::measured(Space {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        }),
        Err(errno) => Missing::from_io(folder.display(), &errno.into()).into(),
    }
}

/// Busy and stolen percent between two lines; an error when nothing passed or time ran backwards.
fn share(now: Ticks, before: Ticks) -> Result<(f64, f64), ()> {
    let total = now.total.checked_sub(before.total).filter(|&ticks| ticks > 0).ok_or(())?;
    let busy = now.busy.checked_sub(before.busy).ok_or(())?;
    // Steal may step back by a tick on some hypervisors; that is no reason to lose the sample.
    let steal = now.steal.saturating_sub(before.steal);
    let percent = |ticks: u64| (100.0 * ticks as f64 / total as f64).min(100.0);
    Ok((percent(busy), percent(steal)))
}

fn parse_stat(text: &str) -> (Option<Ticks>, Vec<(usize, Ticks)>) {
    let (mut all, mut cores) = (None, Vec::new());
    // The processors come first; the long line of interrupts after them is not looked at.
    for line in text.lines().take_while(|line| line.starts_with("cpu")) {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next().unwrap_or_default();
        let mut ticks = [0_u64; 8];
        // user nice system idle iowait irq softirq steal; guest time is contained in user already.
        let mut read = 0;
        for (slot, field) in ticks.iter_mut().zip(fields) {
            let Ok(number) = field.parse() else { break };
            (*slot, read) = (number, read + 1);
        }
        if read < 4 {
            continue;
        }
        let total = ticks.iter().fold(0_u64, |sum, &n| sum.saturating_add(n));
        let steal = ticks[7];
        let busy = total.saturating_sub(ticks[3]).saturating_sub(ticks[4]).saturating_sub(steal);
        let ticks = Ticks { total, busy, steal };
        match name.strip_prefix("cpu") {
            Some("") => all = Some(ticks),
            Some(index) => cores.extend(index.parse().ok().map(|index: usize| (index, ticks))),
            None => {}
        }
    }
    (all, cores)
}

pub(super) fn parse_meminfo(text: &str) -> (Option<u64>, Option<u64>) {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    (field("MemTotal"), field("MemAvailable"))
}

fn parse_loadavg(text: &str) -> Option<[f64; 3]> {
    let mut numbers =
        text.split_ascii_whitespace().map(|field| field.parse::<f64>().ok().filter(|n| n.is_finite()));
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

fn parse_stall(text: &str, word: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(word))?;
    line.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?.parse().ok()
}

/// Bytes read and written by all whole disks; `None` when there is none.
fn parse_diskstats(text: &str) -> Option<(u64, u64)> {
    // The unit of this file, whatever the disk's own sector is.
    const SECTOR_BYTES: u64 = 512;
    let rows: Vec<(&str, u64, u64)> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            let name = fields.next()?;
            let (read, written) = (fields.nth(2)?.parse().ok()?, fields.nth(3)?.parse().ok()?);
            Some((name, read, written))
        })
        .collect();
    let whole =
        rows.iter().filter(|(name, ..)| is_whole_disk(name, |other| rows.iter().any(|row| row.0 == other)));
    whole.fold(None, |sum, (_, read, written)| {
        let (r, w) = sum.unwrap_or((0_u64, 0_u64));
        Some((
            r.saturating_add(read.saturating_mul(SECTOR_BYTES)),
            w.saturating_add(written.saturating_mul(SECTOR_BYTES)),
        ))
    })
}

/// Not a partition of a listed disk, and not a layer over others whose bytes would count twice.
fn is_whole_disk(name: &str, listed: impl Fn(&str) -> bool) -> bool {
    if ["loop", "ram", "zram", "dm-", "md", "fd", "sr", "nbd"].iter().any(|layer| {
        name.strip_prefix(layer).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    }) {
        return false;
    }
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return !name.contains("boot") && !name.contains("rpmb");
    }
    // sda1 is a partition of sda; nvme0n1p2 of nvme0n1; but nvme0n1 and an xvda1 without xvda are disks.
    let parent = stem
        .strip_suffix('p')
        .filter(|parent| parent.ends_with(|c: char| c.is_ascii_digit()))
        .unwrap_or(stem);
    !listed(parent) && !name.contains("boot")
}

#[derive(Debug, Clone, Copy)]
struct PidStat {
    ticks: u64,
    threads: u64,
    rss_pages: u64,
    faults_minor: u64,
    faults_major: u64,
}

fn parse_pid_stat(text: &str) -> Option<PidStat> {
    // The name in brackets may hold spaces and brackets itself: fields count from the last bracket.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field n of the manual page is at n - 3 here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(PidStat {
        ticks: field(14)?.checked_add(field(15)?)?,
        threads: field(20)?,
        rss_pages: field(24)?,
        faults_minor: field(10)?,
        faults_major: field(12)?,
    })
}

fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn parse_switches(text: &str) -> (Option<u64>, Option<u64>) {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
    (field("voluntary_ctxt_switches:"), field("nonvoluntary_ctxt_switches:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn rates_come_from_two_samples() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 50 0 50 400 0 0 0 0 0 0\nintr 1 2 3\n");
        write(root, "meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:   250 kB\n");
        write(
            root,
            "pressure/cpu",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\nfull avg10=0 total=0\n",
        );
        write(root, "pressure/memory", "some total=0\nfull total=0\n");
        write(root, "loadavg", "0.50 1.00 1.50 1/100 1234\n");
        write(root, "diskstats", " 8 0 sda 1 0 100 0 1 0 200 0\n 8 1 sda1 1 0 100 0 1 0 200 0\n");
        let mut sampler = HostSampler::new(root);
        let start = Instant::now();
        let first = sampler.sample_at(start);
        assert_eq!(first.cpu_percent.reason(), Some(Reason::WarmingUp));
        assert_eq!(first.core_percent[0].1.reason(), Some(Reason::WarmingUp));
        assert_eq!(first.disk_read_bytes_per_s.reason(), Some(Reason::WarmingUp));
        assert_eq!(first.memory_percent.get(), Some(75.0));
        assert_eq!(first.load.get(), Some([0.5, 1.0, 1.5]));
        assert_eq!(first.pressure.io_some.reason(), Some(Reason::NotPresent));

        write(root, "stat", "cpu  130 0 120 840 0 0 0 10 0 0\ncpu0 65 0 60 400 25 0 0 0 0 0\ncpu1 9 9 9 9\n");
        write(root, "pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=501000\n");
        write(root, "diskstats", " 8 0 sda 1 0 110 0 1 0 240 0\n 8 1 sda1 1 0 110 0 1 0 240 0\n");
        let second = sampler.sample_at(start + Duration::from_secs(2));
        assert_eq!(second.cpu_percent.get(), Some(50.0));
        assert_eq!(second.steal_percent.get(), Some(10.0));
        assert_eq!(second.core_percent[0].1.get(), Some(50.0));
        assert_eq!(second.core_percent[1].1.reason(), Some(Reason::WarmingUp), "a core that was switched on");
        assert_eq!(second.pressure.cpu_some.get(), Some(25.0));
        assert_eq!(second.disk_read_bytes_per_s.get(), Some(2560.0));
        assert_eq!(second.disk_write_bytes_per_s.get(), Some(10240.0));
        assert_eq!(second.interval_s.get(), Some(2.0));

        // Counters that start anew are not negative rates.
        write(root, "stat", "cpu  1 0 1 1 0 0 0 0 0 0\n");
        write(root, "diskstats", " 8 0 sda 1 0 1 0 1 0 1 0\n");
        let third = sampler.sample_at(start + Duration::from_secs(3));
        assert_eq!(third.cpu_percent.reason(), Some(Reason::WarmingUp));
        assert_eq!(third.disk_read_bytes_per_s.reason(), Some(Reason::WarmingUp));
    }

    #[test]
    fn nothing_missing_is_zero() {
        let folder = tempfile::tempdir().unwrap();
        let mut sampler = HostSampler::new(folder.path());
        let start = Instant::now();
        for seconds in 0..2 {
            let json = sampler.sample_at(start + Duration::from_secs(seconds)).to_json();
            let usage = sampler.agents(&[1]);
            assert!(usage[0].rss_bytes.reason() == Some(Reason::Lost), "{usage:?}");
            let json = serde_json::to_string(&(json, usage)).unwrap();
            assert!(!json.contains(r#""v":0"#), "{json}");
        }
    }

    #[test]
    fn processes_are_followed_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let stat = |ticks: u64, threads: u64| {
            format!("7 (a) b) R 1 1 1 0 -1 0 11 0 3 0 {ticks} 5 0 0 20 0 {threads} 0 99 1000 25 0\n")
        };
        write(root, "7/stat", &stat(10, 1));
        write(root, "7/schedstat", "1000000000 5000 3\n");
        write(root, "7/status", "Name:\ta\nvoluntary_ctxt_switches:\t4\nnonvoluntary_ctxt_switches:\t2\n");
        let mut sampler = HostSampler::new(root);
        sampler.page_bytes = 4096;
        let start = Instant::now();
        let first = &sampler.agents_at(&[7], start)[0];
        assert_eq!(first.cpu_percent.reason(), Some(Reason::WarmingUp));
        assert_eq!((first.rss_bytes.get(), first.run_delay_ns.get()), (Some(25 * 4096), Some(5000)));
        assert_eq!((first.page_faults_minor.get(), first.page_faults_major.get()), (Some(11), Some(3)));
        assert_eq!(first.context_switches_voluntary.get(), Some(4));
        assert_eq!(first.context_switches_involuntary.get(), Some(2));
        assert_eq!(first.threads.get(), Some(1));
        write(root, "7/stat", &stat(12, 1));
        write(root, "7/schedstat", "1003000000 9000 4\n");
        let second = &sampler.agents_at(&[7], start + Duration::from_secs(1))[0];
        // 3 ms of a second: ticks alone would say 2 or 0 percent.
        assert!((second.cpu_percent.get().unwrap() - 0.3).abs() < 1e-9);
        write(root, "7/stat", &stat(212, 3));
        let third = &sampler.agents_at(&[7], start + Duration::from_secs(2))[0];
        assert!((third.cpu_percent.get().unwrap() - 100.0 * 200.0 / sampler.tick_hz).abs() < 1e-9);
        sampler.agents_at(&[], start + Duration::from_secs(3));
        assert!(sampler.processes.is_empty());
    }

    #[test]
    fn an_ended_process_is_lost_and_not_zero() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut sampler = HostSampler::new("/proc");
        let pid = child.id();
        assert!(sampler.agents(&[pid])[0].rss_bytes.is_present());
        child.kill().unwrap();
        child.wait().unwrap();
        for _ in 0..2 {
            let usage = &sampler.agents(&[pid])[0];
            assert_eq!(usage.rss_bytes.reason(), Some(Reason::Lost));
            assert_eq!(usage.cpu_percent.reason(), Some(Reason::Lost));
            assert!(usage.context_switches_voluntary.reason() == Some(Reason::Lost));
        }
    }

    #[test]
    fn whole_disks_are_told_from_partitions() {
        let names = [
            "sda",
            "sda1",
            "nvme0n1",
            "nvme0n1p1",
            "vda",
            "mmcblk0",
            "mmcblk0p1",
            "mmcblk0boot0",
            "xvdb1",
            "dm-0",
            "loop3",
            "zram0",
            "md127",
        ];
        let whole: Vec<&str> =
            names.into_iter().filter(|name| is_whole_disk(name, |other| names.contains(&other))).collect();
        assert_eq!(whole, ["sda", "nvme0n1", "vda", "mmcblk0", "xvdb1"]);
    }

    #[test]
    fn this_host_can_be_sampled() {
        let mut sampler = HostSampler::new("/proc");
        sampler.sample();
        std::thread::sleep(Duration::from_millis(50));
        let sample = sampler.sample();
        assert!(sample.memory_percent.get().is_some_and(|percent| (0.0..=100.0).contains(&percent)));
        assert!(!sample.core_percent.is_empty());
        assert!(space_of(Path::new("/")).is_present());
        assert_eq!(space_of(Path::new("/nowhere/at/all")).reason(), Some(Reason::NotPresent));
        assert!(HostFacts::read().kernel.is_present());
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(text in "([a-z0-9 .:=()\\-]{0,40}\n){0,4}") {
            parse_stat(&format!("cpu {text}"));
            parse_meminfo(&text);
            parse_loadavg(&text);
            parse_stall(&text, "some");
            parse_diskstats(&text);
            parse_pid_stat(&text);
            parse_switches(&text);
        }
    }
}
