//! Which counters of the processor and of the kernel this process may use, tried one by one.
//! `doctor` and the compute agents ask [`probe`] at start; [`counting`](super::counting) tries again what it counts.
//!
//! Three facts about `perf-event` 0.4.9 shape this file
//! 1. Its `Group` panics on reading after a failed `add`: so each event is opened alone first, a group is made
//!    only of events that opened, and it is dropped whole when anything about it fails.
//! 2. By default it leaves the kernel out, and then context switches count 0 for ever: kernel-side events are
//!    opened with the kernel included or not at all.
//! 3. A counter that opens may still be dead (virtual machines): each one is read under a known load, and one
//!    that does not move is `not_live`.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use perf_event::events::{Cache, CacheOp, CacheResult, Event, Hardware, Software, WhichCache};
use perf_event::{Builder, Counter, Group};

use super::sysfs::{self, Missing, Reason};

/// Where an event is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSource {
    /// By the processor.
    Hardware,
    /// By the kernel.
    Software,
}

/// One event and what came of trying it.
#[derive(Debug, Clone)]
pub struct EventProbe {
    /// Name as `perf list` writes it.
    pub name: &'static str,
    /// Who counts.
    pub source: EventSource,
    /// The count under a small known load, or why there is none.
    pub result: Result<u64, Missing>,
}

/// All events, and whether the processor's can be read together.
#[derive(Debug, Clone)]
pub struct PerfProbe {
    /// Each event on its own.
    pub events: Vec<EventProbe>,
    /// How many hardware events run in one group, which is what a ratio such as instructions per cycle needs.
    pub group: Result<usize, Missing>,
    /// `kernel.perf_event_paranoid`; higher is stricter.
    pub paranoid: Option<i32>,
}

impl PerfProbe {
    /// Names of the events of a source that count.
    pub fn alive(&self, source: EventSource) -> Vec<&'static str> {
        self.events.iter().filter(|e| e.source == source && e.result.is_ok()).map(|e| e.name).collect()
    }
}

/// The load that a live event must notice.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    Arithmetic,
    TouchPages,
    Sleep,
    /// No load moves it for sure (cache misses may be none): opening is all we ask.
    None,
}

pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) source: EventSource,
    pub(super) event: Event,
    pub(super) include_kernel: bool,
    load: Load,
}

pub(super) fn rows() -> Vec<Row> {
    let hardware = |name, event: Hardware, load| Row {
        name,
        source: EventSource::Hardware,
        event: event.into(),
        include_kernel: false,
        load,
    };
    let cache = |name, which, result| Row {
        name,
        source: EventSource::Hardware,
        event: Cache { which, operation: CacheOp::READ, result }.into(),
        include_kernel: false,
        load: Load::None,
    };
    let software = |name, event: Software, include_kernel, load| Row {
        name,
        source: EventSource::Software,
        event: event.into(),
        include_kernel,
        load,
    };
    vec![
        hardware("cycles", Hardware::CPU_CYCLES, Load::Arithmetic),
        hardware("instructions", Hardware::INSTRUCTIONS, Load::Arithmetic),
        hardware("cache-references", Hardware::CACHE_REFERENCES, Load::None),
        hardware("cache-misses", Hardware::CACHE_MISSES, Load::None),
        hardware("branches", Hardware::BRANCH_INSTRUCTIONS, Load::Arithmetic),
        hardware("branch-misses", Hardware::BRANCH_MISSES, Load::None),
        hardware("stalled-cycles-frontend", Hardware::STALLED_CYCLES_FRONTEND, Load::None),
        hardware("stalled-cycles-backend", Hardware::STALLED_CYCLES_BACKEND, Load::None),
        cache("L1-dcache-load-misses", WhichCache::L1D, CacheResult::MISS),
        cache("LLC-load-misses", WhichCache::LL, CacheResult::MISS),
        cache("dTLB-load-misses", WhichCache::DTLB, CacheResult::MISS),
        software("task-clock", Software::TASK_CLOCK, false, Load::Arithmetic),
        software("page-faults", Software::PAGE_FAULTS, false, Load::TouchPages),
        software("context-switches", Software::CONTEXT_SWITCHES, true, Load::Sleep),
        software("cpu-migrations", Software::CPU_MIGRATIONS, true, Load::None),
    ]
}

/// Tries every event on the calling thread. Takes a few milliseconds and never panics.
pub fn probe() -> PerfProbe {
    probe_with(Path::new("/proc"))
}

fn probe_with(procfs: &Path) -> PerfProbe {
    let paranoid = sysfs::read_number(&procfs.join("sys/kernel/perf_event_paranoid")).ok();
    let virtual_machine =
        sysfs::read_text(&procfs.join("cpuinfo")).is_ok_and(|text| text.contains(" hypervisor"));
    let rows = rows();
    let mut events: Vec<EventProbe> = rows
        .iter()
        .map(|row| EventProbe {
            name: row.name,
            source: row.source,
            result: guarded(|| try_event(row, paranoid)),
        })
        .collect();
    // Hardware events missing while kernel events open: there is no counter unit, rather than no such event.
    let opened = |source| events.iter().any(|e| e.source == source && e.result.is_ok());
    if !opened(EventSource::Hardware) && opened(EventSource::Software) {
        let detail = if virtual_machine {
            "this virtual machine has no counter unit (PMU)"
        } else {
            "this processor offers no counter unit (PMU) to the kernel"
        };
        for event in &mut events {
            if let Err(missing) = &mut event.result
                && event.source == EventSource::Hardware
                && matches!(missing.reason, Reason::NotPresent | Reason::Unsupported)
            {
                *missing = Missing::new(Reason::NoPmu, detail);
                if virtual_machine {
                    missing.fix =
                        Some("let the hypervisor pass the PMU through (KVM: -cpu host,pmu=on)".into());
                }
            }
        }
    }
    let group = guarded(|| try_group(&rows, &events));
    PerfProbe { events, group, paranoid }
}

/// An assertion inside the library must cost one event, not the process.
pub(super) fn guarded<T>(attempt: impl FnOnce() -> Result<T, Missing>) -> Result<T, Missing> {
    catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| {
        Err(Missing::new(Reason::Implausible, "the kernel's answer breaks the counter library"))
    })
}

pub(super) fn open_event(row: &Row) -> Result<Counter, Missing> {
    let mut builder = Builder::new().kind(row.event.clone());
    if row.include_kernel {
        builder.include_kernel();
    }
    builder.build().map_err(|error| Missing::from_io(row.name, &error))
}

fn try_event(row: &Row, paranoid: Option<i32>) -> Result<u64, Missing> {
    let mut counter = open_event(row).map_err(|missing| refusal(row, missing, paranoid))?;
    let failed = |error: io::Error| Missing::from_io(row.name, &error);
    counter.enable().map_err(failed)?;
    exert(row.load);
    counter.disable().map_err(failed)?;
    let count = counter.read().map_err(failed)?;
    if count == 0 && row.load != Load::None {
        return Err(Missing::new(Reason::NotLive, format!("{} opens, but stays 0 under load", row.name)));
    }
    Ok(count)
}

fn refusal(row: &Row, missing: Missing, paranoid: Option<i32>) -> Missing {
    if missing.reason != Reason::Permission {
        return missing;
    }
    let level = paranoid.map_or("unknown".to_owned(), |level| level.to_string());
    let side = if row.include_kernel { "events on the kernel's side" } else { "this event" };
    Missing::new(Reason::Permission, format!("kernel.perf_event_paranoid is {level}: {side} needs a right"))
        .fix("sudo setcap cap_perfmon=ep $(command -v ai_swarm_deploy)")
}

fn try_group(rows: &[Row], events: &[EventProbe]) -> Result<usize, Missing> {
    // General counters are few and one may belong to the watchdog: one leader and at most four members.
    const WANTED: [&str; 5] = ["cycles", "instructions", "cache-references", "cache-misses", "branch-misses"];
    let usable: Vec<&Row> = rows
        .iter()
        .zip(events)
        .filter(|(row, event)| WANTED.contains(&row.name) && event.result.is_ok())
        .map(|(row, _)| row)
        .collect();
    if usable.len() < 2 {
        let first = events.iter().find_map(|e| e.result.as_ref().err()).cloned();
        return Err(
            first.unwrap_or_else(|| Missing::new(Reason::NotPresent, "fewer than two hardware events count"))
        );
    }
    let mut last = Missing::new(Reason::NotLive, "no group of hardware events runs");
    for size in (2..=usable.len()).rev() {
        match run_group(&usable[..size]) {
            Ok(()) => return Ok(size),
            Err(missing) => last = missing,
        }
    }
    Err(last)
}

fn run_group(rows: &[&Row]) -> Result<(), Missing> {
    let failed = |error: io::Error| Missing::from_io("group of hardware events", &error);
    let mut group = Group::new().map_err(failed)?;
    let mut members = Vec::with_capacity(rows.len());
    for row in rows {
        members.push(Builder::new().group(&mut group).kind(row.event.clone()).build().map_err(failed)?);
    }
    group.enable().map_err(failed)?;
    exert(Load::Arithmetic);
    group.disable().map_err(failed)?;
    let counts = group.read().map_err(failed)?;
    // A group too large for the processor gives zeros, not an error.
    match counts.get(&members[0]) {
        Some(&cycles) if cycles > 0 => Ok(()),
        _ => Err(Missing::new(Reason::NotLive, format!("a group of {} events does not run", rows.len()))),
    }
}

/// Work that a counter of the processor must notice: 0.1 ms of it.
pub(super) fn exert_arithmetic() {
    let until = Instant::now() + Duration::from_micros(100);
    let mut x = 1_u64;
    while Instant::now() < until {
        for _ in 0..64 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

fn exert(load: Load) {
    match load {
        Load::Arithmetic => exert_arithmetic(),
        Load::TouchPages => {
            // Larger than the allocator keeps at hand, so that the pages are new.
            const BYTES: usize = 8 << 20;
            let mut pages: Vec<u8> = Vec::with_capacity(BYTES);
            pages.resize(64 * 4096, 1);
            std::hint::black_box(&pages);
        }
        Load::Sleep => std::thread::sleep(Duration::from_micros(200)),
        Load::None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_never_panics_and_never_yields_zero_for_dead() {
        let probe = probe();
        assert_eq!(probe.events.len(), rows().len());
        for (event, row) in probe.events.iter().zip(rows()) {
            match &event.result {
                Ok(count) => assert!(*count > 0 || row.load == Load::None, "{}", event.name),
                Err(missing) => assert!(!missing.detail.is_empty(), "{}", event.name),
            }
        }
        if let Ok(size) = probe.group {
            assert!(size >= 2);
        }
    }

    #[test]
    fn a_panic_inside_costs_one_event() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let result: Result<(), Missing> =
            guarded(|| panic!("assertion failed: time_running <= time_enabled"));
        std::panic::set_hook(quiet);
        assert_eq!(result.unwrap_err().reason, Reason::Implausible);
    }

    #[test]
    fn a_refusal_for_want_of_rights_names_the_level_and_the_fix() {
        let row = &rows().into_iter().find(|row| row.name == "context-switches").unwrap();
        let refused = Missing::from_io(row.name, &io::Error::from_raw_os_error(libc::EACCES));
        let missing = refusal(row, refused, Some(4));
        assert_eq!(missing.reason, Reason::Permission);
        assert!(missing.detail.contains("paranoid is 4") && missing.fix.unwrap().contains("cap_perfmon"));
    }
}
