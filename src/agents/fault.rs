//! The fault agent: watches beats, failures and memory of the others, and asks for replacement.
//!
//! Busy is not hung. An agent whose beat stands still is looked at in the process file system: if it
//! burns processor time inside a task, it computes; if it is stopped, or idle by its own word and yet
//! silent, or silent without using the processor, it hangs. One that waits for a processor is starved
//! and gets more time.

use super::{Agent, Context, Settings};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentKind, AgentSlot, Incarnation};
use crate::messaging::ToAgent;
use crate::messaging::envelope::{Request, Severity};
use crate::os::clock;
use crate::shm::board::Life;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Patience with a starved or blocked agent, as a multiple of `hang_after`.
const EXTENSION: u32 = 5;
/// Failures in a window that are worth a look, and the share of all tasks that they must be.
const FAILURES: u64 = 10;
const FAILURE_SHARE: f64 = 0.5;
/// Window for failures.
const WINDOW: Duration = Duration::from_secs(10);
/// Memory that an idle agent may hold beyond what it held at first.
const GROWTH_BYTES: f64 = 1024.0 * 1024.0 * 1024.0;

pub(super) struct FaultAgent {
    procfs: PathBuf,
    hang_after: Duration,
    peers: BTreeMap<u16, Watch>,
    due: Nanos,
}

/// What is known of one agent.
#[derive(Clone, Debug)]
struct Watch {
    incarnation: Incarnation,
    pid: u32,
    kind: AgentKind,
    beat: u64,
    /// When the beat last moved, and the processor time then, clock ticks.
    moved: Nanos,
    ticks_then: u64,
    window: (Nanos, u64, u64),
    first_idle_rss: Option<f64>,
    /// Asked for already; the supervisor acts once.
    asked: bool,
}

/// State and processor time of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessState {
    state: u8,
    ticks: u64,
}

/// What a silent agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    Busy,
    Starved,
    Hung(&'static str),
}

/// Judges an agent that has not shown progress for `silent`.
fn judge(
    life: &Life,
    process: ProcessState,
    ticks_then: u64,
    silent: Duration,
    hang_after: Duration,
) -> Silence {
    if matches!(process.state, b'T' | b't') {
        return Silence::Hung("it is stopped");
    }
    // Ticks are hundredths of a second.
    let used = Duration::from_millis(process.ticks.saturating_sub(ticks_then) * 10);
    let is_computing = used * 4 > silent;
    let long = silent > hang_after * EXTENSION;
    match (life.running_since_ns.is_some(), is_computing) {
        (true, true) => Silence::Busy,
        (false, true) if long => Silence::Hung("it spins without a task"),
        (_, false) if long && process.state == b'S' => {
            Silence::Hung("it waits for something that does not come")
        }
        (_, false) if long && process.state == b'D' => Silence::Hung("it is blocked in the kernel"),
        (_, false) if long && process.state == b'R' => Silence::Starved,
        _ => Silence::Starved,
    }
}

impl FaultAgent {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            procfs: settings.procfs.clone(),
            hang_after: settings.hang_after,
            peers: BTreeMap::new(),
            due: Nanos(0),
        }
    }

    fn process_state(&self, pid: u32) -> Option<ProcessState> {
        let stat = std::fs::read_to_string(self.procfs.join(pid.to_string()).join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(ProcessState { state: *fields.first()?.as_bytes().first()?, ticks: ticks(11)? + ticks(12)? })
    }

    fn look(&mut self, now: Nanos, context: &mut Context) {
        let mut verdicts = Vec::new();
        for (&slot, watch) in &self.peers {
            let slot = AgentSlot(slot);
            let Some(life) = context.board.life(slot) else { continue };
            let mut watch = watch.clone();
            let verdict = self.look_at(slot, &life, &mut watch, now, context);
            verdicts.push((slot, watch, verdict));
        }
        for (slot, mut watch, verdict) in verdicts {
            if let Some((request, reason)) = verdict
                && !watch.asked
            {
                watch.asked = true;
                tracing::warn!(
                    slot = slot.0,
                    pid = watch.pid,
                    ?request,
                    reason,
                    "asks the supervisor to act"
                );
                context.note(Severity::Warning, "agent_suspect", &format!("slot {}: {reason}", slot.0));
                context.ask(request, slot, watch.incarnation, &reason);
            }
            self.peers.insert(slot.0, watch);
        }
    }

    fn look_at(
        &self,
        slot: AgentSlot,
        life: &Life,
        watch: &mut Watch,
        now: Nanos,
        context: &Context,
    ) -> Option<(Request, String)> {
        if life.beat != watch.beat {
            watch.beat = life.beat;
            watch.moved = now;
            watch.ticks_then = 0;
        } else {
            let silent = now.since(watch.moved);
            if silent >= self.hang_after / 2 {
                let process = self.process_state(watch.pid)?;
                if watch.ticks_then == 0 {
                    // The first look at a silent agent starts the account.
                    watch.ticks_then = process.ticks.max(1);
                    watch.moved =
                        watch.moved.max(Nanos(now.0.saturating_sub(self.hang_after.as_nanos() as u64 / 2)));
                } else if silent >= self.hang_after
                    && let Silence::Hung(why) =
                        judge(life, process, watch.ticks_then, silent, self.hang_after)
                {
                    return Some((
                        Request::Restart,
                        format!("no progress for {:.1} s: {why}", silent.as_secs_f64()),
                    ));
                }
            }
        }
        failing(life, watch, now).or_else(|| growing(slot, life, watch, context))
    }
}

/// Whether most of what the agent did lately failed.
fn failing(life: &Life, watch: &mut Watch, now: Nanos) -> Option<(Request, String)> {
    let (began, tasks, failures) = watch.window;
    if life.tasks < tasks || life.failures < failures || now.since(began) > WINDOW {
        watch.window = (now, life.tasks, life.failures);
        return None;
    }
    let (done, failed) = (life.tasks - tasks, life.failures - failures);
    let share = failed as f64 / (done + failed).max(1) as f64;
    (failed >= FAILURES && share > FAILURE_SHARE).then(|| {
        let text = format!("{failed} of {} tasks failed in {} s", done + failed, WINDOW.as_secs());
        (Request::Drain, text)
    })
}

/// Whether the agent holds much more memory than it did, while it does nothing.
fn growing(slot: AgentSlot, life: &Life, watch: &mut Watch, context: &Context) -> Option<(Request, String)> {
    let usage = context.board.usage(slot)?;
    let is_idle =
        life.running_since_ns.is_none() && usage.pid == f64::from(watch.pid) && usage.cpu_percent < 5.0;
    if !is_idle || !usage.rss_bytes.is_finite() {
        return None;
    }
    let first = *watch.first_idle_rss.get_or_insert(usage.rss_bytes);
    (usage.rss_bytes > first + GROWTH_BYTES).then(|| {
        let mib = |bytes: f64| bytes / (1024.0 * 1024.0);
        (
            Request::Drain,
            format!("idle with {:.0} MiB, it began with {:.0} MiB", mib(usage.rss_bytes), mib(first)),
        )
    })
}

impl Agent for FaultAgent {
    fn on_message(&mut self, message: &ToAgent<'_>, context: &mut Context) {
        let ToAgent::Peer { slot, incarnation, pid, kind } = message else { return };
        let own = *slot == context.slot();
        match AgentKind::from_code(*kind) {
            Some(kind) if !own => {
                let now = clock::now();
                let watch = Watch {
                    incarnation: *incarnation,
                    pid: *pid,
                    kind,
                    beat: 0,
                    moved: now,
                    ticks_then: 0,
                    window: (now, 0, 0),
                    first_idle_rss: None,
                    asked: false,
                };
                tracing::trace!(slot = slot.0, kind = %watch.kind, "watches");
                self.peers.insert(slot.0, watch);
            }
            _ => {
                self.peers.remove(&slot.0);
            }
        }
    }

    fn do_work(&mut self, context: &mut Context) -> usize {
        let now = clock::now();
        if now < self.due {
            return 0;
        }
        self.due = now.plus((self.hang_after / 4).max(Duration::from_millis(20)));
        self.look(now, context);
        1
    }

    fn next_due(&self) -> Option<Nanos> {
        Some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANG: Duration = Duration::from_secs(1);

    fn life(running: bool) -> Life {
        Life { beat: 1, running_since_ns: running.then_some(1), tasks: 0, failures: 0 }
    }

    fn judged(running: bool, state: u8, used_ticks: u64, silent_s: u64) -> Silence {
        let process = ProcessState { state, ticks: 100 + used_ticks };
        judge(&life(running), process, 100, Duration::from_secs(silent_s), HANG)
    }

    #[test]
    fn a_long_computation_is_not_a_hang() {
        assert_eq!(judged(true, b'R', 5000, 50), Silence::Busy);
        assert_eq!(judged(true, b'R', 2000, 50), Silence::Busy, "on a core shared by two");
    }

    #[test]
    fn stopped_blocked_and_waiting_agents_hang() {
        assert_eq!(judged(true, b'T', 0, 1), Silence::Hung("it is stopped"));
        assert!(matches!(judged(true, b'S', 0, 6), Silence::Hung(_)));
        assert!(matches!(judged(false, b'S', 0, 6), Silence::Hung(_)));
        assert!(matches!(judged(true, b'D', 0, 6), Silence::Hung(_)));
        assert!(matches!(judged(false, b'R', 600, 6), Silence::Hung(_)));
    }

    #[test]
    fn a_starved_agent_gets_time() {
        assert_eq!(judged(true, b'R', 0, 2), Silence::Starved);
        assert_eq!(judged(false, b'S', 0, 2), Silence::Starved);
        assert_eq!(judged(true, b'R', 0, 20), Silence::Starved);
    }

    fn watch() -> Watch {
        Watch {
            incarnation: Incarnation(1),
            pid: 1,
            kind: AgentKind::Compute,
            beat: 0,
            moved: Nanos(0),
            ticks_then: 0,
            window: (Nanos(0), 0, 0),
            first_idle_rss: None,
            asked: false,
        }
    }

    #[test]
    fn many_failures_ask_for_a_drain_and_few_do_not() {
        let life = |tasks, failures| Life { beat: 1, running_since_ns: None, tasks, failures };
        let second = Nanos(1_000_000_000);
        assert!(failing(&life(5, 20), &mut watch(), second).is_some());
        assert!(failing(&life(50, 20), &mut watch(), second).is_none(), "a third of them");
        assert!(failing(&life(0, 9), &mut watch(), second).is_none());
        let mut late = watch();
        assert!(failing(&life(0, 20), &mut late, Nanos(60_000_000_000)).is_none(), "spread over a minute");
        assert_eq!(late.window, (Nanos(60_000_000_000), 0, 20));
    }
}
