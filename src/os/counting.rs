//! What the processor and the kernel count while the calling thread does something.
//!
//! The processor's events are one group, so that their ratios are of the same moments; the kernel's are another one,
//! which does not need the processor's few counters. Where there are more groups than counters the kernel takes turns: a
//! group's counts are then those of its own time, scaled to the whole (`time_enabled / time_running`, perf_event_open(2)).
//!
//! Events of the processor and page faults are those of the program's own code, without the kernel's on its behalf: that needs no
//! right. Context switches and migrations happen in the kernel and need one.
//!
//! A counter that cannot be had has a [`Reason`] instead, and never a 0.

use std::io;

use perf_event::{Builder, Counter, Group};

use super::perf::{self, EventSource, Row};
use super::sysfs::{Missing, Reason};

/// What is counted, as reports name it.
pub const EVENTS: [&str; 10] = [
    "cycles",
    "instructions",
    "cache_references",
    "cache_misses",
    "branches",
    "branch_misses",
    "task_clock_ns",
    "page_faults",
    "context_switches",
    "cpu_migrations",
];

/// Places in [`EVENTS`].
pub const CYCLES: usize = 0;
/// See [`CYCLES`].
pub const INSTRUCTIONS: usize = 1;
const BRANCHES: usize = 4;
const TASK_CLOCK: usize = 6;
/// See [`CYCLES`].
pub const CONTEXT_SWITCHES: usize = 8;
/// See [`CYCLES`].
pub const CPU_MIGRATIONS: usize = 9;

/// What a stretch of work did, by event.
#[derive(Clone, Copy, Debug)]
pub struct Counts([f64; EVENTS.len()]);

impl Counts {
    /// Nothing was counted.
    pub const NONE: Counts = Counts([f64::NAN; EVENTS.len()]);

    /// How often this event happened, if it was counted. What cannot be a count is none.
    pub fn get(&self, event: usize) -> Option<f64> {
        self.0.get(event).copied().filter(|count| count.is_finite() && *count >= 0.0)
    }

    /// Says how often this event happened.
    pub fn set(&mut self, event: usize, count: f64) {
        self.0[event] = count;
    }

    /// The events that were counted, and how often they happened.
    pub fn iter(&self) -> impl Iterator<Item = (usize, f64)> {
        (0..EVENTS.len()).filter_map(|event| Some((event, self.get(event)?)))
    }

    /// Adds those of another stretch of work.
    pub fn add(&mut self, other: &Counts) {
        for (event, count) in other.iter() {
            self.0[event] = self.get(event).unwrap_or(0.0) + count;
        }
    }
}

impl PartialEq for Counts {
    fn eq(&self, other: &Counts) -> bool {
        self.iter().eq(other.iter())
    }
}

/// The counters of one thread: of the one that opened them.
#[derive(Debug)]
pub struct Counters {
    groups: Vec<Running>,
    /// Why an event is not counted.
    reasons: [Option<Reason>; EVENTS.len()],
}

/// A group that counts.
struct Running {
    group: Group,
    members: Vec<(usize, Counter)>,
    before: Reading,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.members.iter().map(|(event, _)| EVENTS[*event])).finish()
    }
}

/// Everything that a group has counted, and for how long.
#[derive(Debug, Default)]
struct Reading {
    enabled_ns: u64,
    running_ns: u64,
    counts: Vec<u64>,
}

impl Counters {
    /// Opens what this host and user may count, and tries whether it moves. Takes some 0.5 ms.
    pub fn open() -> Counters {
        let mut reasons = [None; EVENTS.len()];
        let mut usable: [Vec<(usize, Row)>; 2] = Default::default();
        for row in perf::rows() {
            let name = row.name.replace('-', "_");
            let Some(event) =
                EVENTS.iter().position(|known| known.strip_suffix("_ns").unwrap_or(known) == name)
            else {
                continue;
            };
            match perf::guarded(|| perf::open_event(&row).map(drop)) {
                Ok(()) => usable[usize::from(row.source == EventSource::Software)].push((event, row)),
                Err(missing) => reasons[event] = Some(missing.reason),
            }
        }
        let [hardware, software] = usable;
        if hardware.is_empty() && !software.is_empty() {
            let no_pmu = |reason: &mut Option<Reason>| {
                if matches!(reason, Some(Reason::NotPresent | Reason::Unsupported)) {
                    *reason = Some(Reason::NoPmu);
                }
            };
            reasons[..=5].iter_mut().for_each(no_pmu);
        }
        let mut counters = Counters { groups: Vec::new(), reasons };
        for rows in [hardware, software] {
            counters.open_group(rows);
        }
        counters
    }

    /// The largest beginning of `rows` that counts together; the others are told why not.
    fn open_group(&mut self, rows: Vec<(usize, Row)>) {
        let mut why = Reason::Limit;
        for size in (1..=rows.len()).rev() {
            match perf::guarded(|| Running::start(&rows[..size])) {
                Ok((running, dead)) => {
                    dead.into_iter().for_each(|event| self.reasons[event] = Some(Reason::NotLive));
                    self.groups.push(running);
                    rows[size..].iter().for_each(|(event, _)| self.reasons[*event] = Some(Reason::Limit));
                    return;
                }
                Err(missing) => why = missing.reason,
            }
        }
        rows.iter().for_each(|(event, _)| self.reasons[*event] = Some(why));
    }

    /// Why an event is not counted; `None` for one that is.
    pub fn reason(&self, event: usize) -> Option<Reason> {
        *self.reasons.get(event)?
    }

    /// From here on it counts for [`end`](Self::end).
    pub fn begin(&mut self) {
        self.look(|running, reading| running.before = reading);
    }

    /// What happened since [`begin`](Self::begin).
    pub fn end(&mut self) -> Counts {
        let mut counts = Counts::NONE;
        self.look(|running, reading| {
            let since = scaled(&running.before, &reading);
            running.members.iter().zip(since).for_each(|((event, _), count)| counts.set(*event, count));
        });
        for (event, reason) in self.reasons.iter().enumerate() {
            if reason.is_some() {
                counts.set(event, f64::NAN);
            }
        }
        counts
    }

    /// Reads every group. One that cannot be read any more is given up.
    fn look(&mut self, mut take: impl FnMut(&mut Running, Reading)) {
        let reasons = &mut self.reasons;
        self.groups.retain_mut(|running| match perf::guarded(|| running.read()) {
            Ok(reading) => {
                take(running, reading);
                true
            }
            Err(_) => {
                running.members.iter().for_each(|(event, _)| reasons[*event] = Some(Reason::Lost));
                false
            }
        });
    }
}

impl Running {
    /// Starts a group, and says which of its events stand still under a load that must move them.
    fn start(rows: &[(usize, Row)]) -> Result<(Running, Vec<usize>), Missing> {
        let failed = |error: io::Error| Missing::from_io("a group of counters", &error);
        let mut group = Group::new().map_err(failed)?;
        let mut members = Vec::with_capacity(rows.len());
        for (event, row) in rows {
            let mut builder = Builder::new().group(&mut group).kind(row.event.clone());
            if row.include_kernel {
                builder.include_kernel();
            }
            members.push((*event, builder.build().map_err(failed)?));
        }
        group.enable().map_err(failed)?;
        let mut running = Running { group, members, before: Reading::default() };
        // A group that is too large for the processor gives zeros, not an error.
        perf::exert_arithmetic();
        let counts = running.read()?.counts;
        if counts.iter().all(|&count| count == 0) {
            return Err(Missing::new(Reason::NotLive, "the group does not count"));
        }
        let moves = |event: usize| [CYCLES, INSTRUCTIONS, BRANCHES, TASK_CLOCK].contains(&event);
        let dead =
            running.members.iter().zip(counts).filter(|((event, _), count)| moves(*event) && *count == 0);
        let dead = dead.map(|((event, _), _)| *event).collect();
        Ok((running, dead))
    }

    fn read(&mut self) -> Result<Reading, Missing> {
        let failed = |error: io::Error| Missing::from_io("a group of counters", &error);
        let found = self.group.read().map_err(failed)?;
        Ok(Reading {
            enabled_ns: found.time_enabled(),
            running_ns: found.time_running(),
            counts: self
                .members
                .iter()
                .map(|(_, counter)| found.get(counter).copied().unwrap_or(0))
                .collect(),
        })
    }
}

/// What happened between two readings; NaN where the group had no turn.
fn scaled(before: &Reading, after: &Reading) -> impl Iterator<Item = f64> {
    let since = |then: u64, now: u64| now.saturating_sub(then) as f64;
    let enabled = since(before.enabled_ns, after.enabled_ns);
    let running = since(before.running_ns, after.running_ns);
    let scale = if running > 0.0 { (enabled / running).max(1.0) } else { f64::NAN };
    before.counts.iter().zip(&after.counts).map(move |(&then, &now)| since(then, now) * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_moves_and_what_is_not_has_a_reason() {
        let mut counters = Counters::open();
        counters.begin();
        // Fresh pages, more than the allocator ever keeps at hand, and some time on the processor.
        let pages = vec![1_u8; 40 << 20];
        std::hint::black_box(&pages);
        perf::exert_arithmetic();
        let counts = counters.end();
        for (event, name) in EVENTS.iter().enumerate() {
            let (count, reason) = (counts.get(event), counters.reason(event));
            assert!(count.is_some() != reason.is_some(), "{name}: {count:?}, {reason:?}");
            let moves = ["cycles", "instructions", "branches", "task_clock_ns", "page_faults"].contains(name);
            assert!(!moves || count.is_none_or(|count| count > 0.0), "{name} stood still");
        }
        counters.begin();
        let pause = counters.end();
        assert!(
            pause.get(7).is_none_or(|faults| Some(faults) < counts.get(7)),
            "each stretch is counted for itself: {pause:?} after {counts:?}"
        );
    }

    #[test]
    fn a_group_that_ran_half_of_the_time_is_scaled() {
        let reading = |enabled_ns, running_ns, count| Reading { enabled_ns, running_ns, counts: vec![count] };
        let between = |before: Reading, after: Reading| scaled(&before, &after).collect::<Vec<_>>();
        assert_eq!(between(reading(100, 100, 5), reading(300, 300, 45)), [40.0]);
        assert_eq!(between(reading(100, 50, 5), reading(300, 150, 45)), [80.0]);
        assert!(between(reading(100, 50, 5), reading(300, 50, 5))[0].is_nan(), "it had no turn");
        assert_eq!(between(reading(100, 100, 50), reading(300, 300, 45)), [0.0], "nonsense");
    }

    #[test]
    fn counts_add_up_where_there_are_any() {
        let mut sum = Counts::NONE;
        sum.set(CYCLES, 2.0);
        let mut other = sum;
        other.set(INSTRUCTIONS, 5.0);
        other.set(CPU_MIGRATIONS, -1.0);
        sum.add(&other);
        assert_eq!(sum.iter().collect::<Vec<_>>(), [(CYCLES, 4.0), (INSTRUCTIONS, 5.0)]);
        sum.add(&Counts::NONE);
        assert_eq!((sum.get(CYCLES), sum.get(99), Counts::NONE.iter().count()), (Some(4.0), None, 0));
    }
}
