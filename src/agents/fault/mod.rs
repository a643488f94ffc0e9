//! The fault agent: finds agents that hang, and foretells which ones will fail.
//!
//! Twenty times a second, ten times while all sleep, it listens to every beat ([`silence`]); once a second it takes the vitals of every
//! agent and hands them to its [`monitor`]. What it finds it tells the supervisor, with the figures; what is done then stands in
//! the plans of [`crate::messaging::failure`]. Everything that judges is pure: the very same code runs over recorded and made-up
//! traces in [`traces`], where its hits and false alarms are counted.
//!
//! Invariants
//! 1. It reads the process file system itself: no agent's word about its own memory is evidence.
//! 2. What cannot be read is not judged.
//! 3. One life is reported once, and once more when it is worse: one that shall drain may hang on its way out.

mod chart;
mod monitor;
mod silence;
#[cfg(test)]
mod traces;
mod trend;

use super::{Agent, Context, Settings};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentKind, AgentSlot, Incarnation};
use crate::messaging::ToAgent;
use crate::messaging::envelope::Severity;
use crate::messaging::failure::{Act, Failure, Figure, encode_finding};
use crate::os::clock::{self, ProcessClock};
use crate::os::sysfs::KeptFile;
use crate::shm::board::{Board, CLASSES, KERNELS, Life};
use crate::telemetry::host::{AgentUsage, HostSampler, descriptor_limit, open_descriptors};
use crate::telemetry::reading::Reading;
use monitor::{Deaths, Findings, Monitor, Verdict, Vitals};
use silence::{Doing, Look, Silence};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Looks per `hang_after`.
const LOOKS: u32 = 5;
/// An agent at rest shows a sign of life every second; of one that is silent for longer nothing is taken for granted.
const BELIEVED: Duration = Duration::from_secs(2);
/// Vitals are taken this often.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// A fresh life that is to be drained is left alone for so long, so that it is not taken for one that came to nothing.
const FRESH: Duration = Duration::from_secs(2);
/// What the resource agent said longer ago is not believed.
const STALE: Duration = Duration::from_secs(10);

pub(super) struct FaultAgent {
    procfs: PathBuf,
    hang_after: Duration,
    memory_limit: Option<u64>,
    descriptor_limit: Option<u64>,
    restart_limit: u32,
    restart_window: Duration,
    sampler: HostSampler,
    peers: BTreeMap<u16, Peer>,
    /// Deaths by slot, and what they let expect of the next life.
    deaths: BTreeMap<u16, (Deaths, Option<Verdict>)>,
    heard: Nanos,
    due: Nanos,
    sampled: Nanos,
    sample_due: Nanos,
}

/// What is known of one agent in one life.
struct Peer {
    incarnation: Incarnation,
    pid: u32,
    kind: AgentKind,
    since: Nanos,
    stat: KeptFile,
    schedstat: KeptFile,
    clock: Option<ProcessClock>,
    /// The last look, if it was asleep, and what its clock showed before.
    slept: Option<(Look, Nanos)>,
    silence: Silence,
    monitor: Monitor,
    pace: Pace,
    descriptor_limit: f64,
    last: Option<(AgentUsage, Life)>,
    /// What the supervisor was asked to do about it.
    reported: Option<Act>,
}

/// How long tasks take on an agent, as a multiple of what they took there before.
struct Pace {
    /// By kernel and size class: the usual mean, ns, and the tasks behind the last look.
    usual: Vec<(f32, u32)>,
}

impl Pace {
    /// Tasks that a mean must rest on.
    const SETTLED: u32 = 8;
    /// How fast the usual follows, per look: quickly to the better, within an hour to the worse.
    const BETTER: f32 = 0.1;
    const WORSE: f32 = 0.0005;

    fn new() -> Self {
        Self { usual: vec![(0.0, 0); KERNELS * CLASSES] }
    }

    /// The pace since the last look; NaN when nothing was done.
    fn look(&mut self, board: &Board, slot: AgentSlot) -> f64 {
        let (mut took, mut usually) = (0.0, 0.0);
        for (at, (usual, seen)) in self.usual.iter_mut().enumerate() {
            let (kernel, class) = ((at / CLASSES) as u8, (at % CLASSES) as u8);
            let Some(cost) = board.cost(kernel, class, Some(slot)) else { continue };
            let new = cost.samples.saturating_sub(*seen);
            *seen = cost.samples;
            if new == 0 || cost.samples < Self::SETTLED || cost.mean_ns <= 0.0 {
                continue;
            }
            if *usual == 0.0 {
                *usual = cost.mean_ns;
            }
            took += f64::from(new) * f64::from(cost.mean_ns);
            usually += f64::from(new) * f64::from(*usual);
            let follow = if cost.mean_ns < *usual { Self::BETTER } else { Self::WORSE };
            *usual += follow * (cost.mean_ns - *usual);
        }
        if usually > 0.0 { took / usually } else { f64::NAN }
    }
}

impl Peer {
    fn new(procfs: &Path, incarnation: Incarnation, pid: u32, kind: AgentKind, now: Nanos) -> Self {
        let file = |name: &str| KeptFile::new(procfs.join(pid.to_string()).join(name));
        Self {
            incarnation,
            pid,
            kind,
            since: now,
            stat: file("stat"),
            schedstat: file("schedstat"),
            clock: ProcessClock::of(procfs, pid),
            slept: None,
            silence: Silence::default(),
            monitor: Monitor::new(),
            pace: Pace::new(),
            descriptor_limit: f64::NAN,
            last: None,
            reported: None,
        }
    }

    fn look(&mut self) -> Option<Look> {
        // To be stopped takes time on a processor as well, so who slept and had none still sleeps.
        // Not for ever: who never gets a turn may be starved.
        let clock = self.clock.and_then(ProcessClock::read);
        if let Some((look, seen)) = self.slept.filter(|_| self.silence.lasted() < BELIEVED)
            && clock == Some(seen)
        {
            return Some(look);
        }
        // Ticks count all threads, but are coarse; the scheduler counts the main thread to the nanosecond.
        let mut times = self.schedstat.read().unwrap_or("").split_ascii_whitespace();
        let mut number = || times.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let (main, waited) = (number(), number());
        let (state, ticks) = {
            let (_, rest) = self.stat.read().ok()?.rsplit_once(')')?;
            let mut fields = rest.split_ascii_whitespace();
            let state = *fields.next()?.as_bytes().first()?;
            let ticks: u64 = fields.skip(10).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
            (state, ticks)
        };
        let ran = Duration::from_nanos(main).max(Duration::from_millis(ticks.saturating_mul(10)));
        let look = Look { state, ran, waited: Duration::from_nanos(waited) };
        self.slept = clock.filter(|_| state == b'S').map(|clock| (look, clock));
        Some(look)
    }

    /// What there is to know of the second that ended.
    fn vitals(&mut self, usage: AgentUsage, life: Life, seconds: f64, now: Nanos) -> Vitals {
        let count = |reading: &Reading<u64>| reading.value().map_or(f64::NAN, |value| *value as f64);
        let gap = self.silence.take_longest().as_secs_f64();
        let mut vitals = Vitals {
            memory_bytes: count(&usage.rss_bytes),
            beat_gap_s: gap,
            ..Vitals::at(now.0 as f64 / 1e9)
        };
        if let Some((before, then)) = &self.last {
            let since = |pick: fn(&AgentUsage) -> &Reading<u64>| count(pick(&usage)) - count(pick(before));
            let faults = since(|usage| &usage.page_faults_minor) + since(|usage| &usage.page_faults_major);
            let switches = since(|usage| &usage.context_switches_voluntary)
                + since(|usage| &usage.context_switches_involuntary);
            let ran = usage.cpu_percent.value().map_or(f64::NAN, |percent| percent / 100.0 * seconds);
            let beats = life.beat.wrapping_sub(then.beat) as f64;
            vitals.starved = since(|usage| &usage.run_delay_ns) / 1e9 / seconds;
            // Of a millisecond on a core nothing can be said.
            vitals.faults_per_cpu_s = if ran >= 0.001 { faults / ran } else { f64::NAN };
            vitals.switches_per_beat = if beats > 0.0 { switches / beats } else { f64::NAN };
            vitals.done = life.tasks.saturating_sub(then.tasks);
            vitals.failed = life.failures.saturating_sub(then.failures);
        }
        self.last = Some((usage, life));
        vitals
    }
}

impl FaultAgent {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            procfs: settings.procfs.clone(),
            hang_after: settings.hang_after,
            memory_limit: settings.memory_limit,
            descriptor_limit: settings.descriptor_limit,
            restart_limit: settings.restart_limit,
            restart_window: settings.restart_window,
            sampler: HostSampler::new(&settings.procfs),
            peers: BTreeMap::new(),
            deaths: BTreeMap::new(),
            heard: Nanos(0),
            due: Nanos(0),
            sampled: Nanos(0),
            sample_due: Nanos(0),
        }
    }

    /// Between two times of listening: half as often where everybody sleeps.
    fn tick(&self) -> Duration {
        let all_sleep = self.peers.values().all(|peer| peer.silence.is_asleep());
        (self.hang_after / LOOKS * if all_sleep { 2 } else { 1 }).max(Duration::from_millis(2))
    }

    /// Listens to every beat.
    fn listen(&mut self, now: Nanos, context: &mut Context) {
        let (tick, hang_after) = (self.tick(), self.hang_after);
        let gap = now.since(std::mem::replace(&mut self.heard, now));
        for (&slot, peer) in &mut self.peers {
            let slot = AgentSlot(slot);
            let Some(life) = context.board.life(slot) else { continue };
            peer.silence.hear(life.beat, gap, tick);
            if peer.reported == Some(Act::Kill) || !peer.silence.is_suspicious(hang_after) {
                continue;
            }
            let Some(look) = peer.look() else { continue };
            let known = life.work.and_then(|(kernel, class)| context.board.cost(kernel, class, None));
            let known = known.filter(|cost| cost.samples >= Pace::SETTLED);
            let known = known.map(|cost| Duration::from_nanos(cost.mean_ns as u64));
            let doing = Doing {
                is_compute: peer.kind == AgentKind::Compute,
                task: life.running_since_ns.map(|since| (now.since(Nanos(since)), known)),
            };
            if let Some((failure, why, figures)) = peer.silence.judge(look, &doing, hang_after) {
                let silent = peer.silence.lasted() + tick;
                let words = format!("no progress for {:.2} s: {why}", silent.as_secs_f64());
                peer.report(slot, &Verdict { failure, words, figures }, context);
            }
        }
    }

    /// Takes everybody's vitals.
    fn examine(&mut self, now: Nanos, context: &mut Context) {
        let seconds = now.since(std::mem::replace(&mut self.sampled, now)).as_secs_f64();
        let pids: Vec<u32> = self.peers.values().map(|peer| peer.pid).collect();
        let usages = self.sampler.agents(&pids);
        let host = context
            .board
            .host()
            .filter(|host| host.sampled_ns.is_finite() && now.since(Nanos(host.sampled_ns as u64)) < STALE);
        let available = host.map_or(f64::NAN, |host| host.memory_available_bytes);
        let mut seen: Vec<(u16, Vitals)> = Vec::with_capacity(usages.len());
        for ((&slot, peer), usage) in self.peers.iter_mut().zip(usages) {
            let Some(life) = context.board.life(AgentSlot(slot)) else { continue };
            let mut vitals = peer.vitals(usage, life, seconds, now);
            vitals.memory_limit =
                self.memory_limit.map_or(vitals.memory_bytes + available, |limit| limit as f64);
            vitals.descriptors =
                open_descriptors(&self.procfs, peer.pid).value().map_or(f64::NAN, |&open| open as f64);
            if peer.descriptor_limit.is_nan() {
                let limit = descriptor_limit(&self.procfs, peer.pid);
                let system = limit.value().map_or(f64::NAN, |&limit| limit as f64);
                peer.descriptor_limit = self.descriptor_limit.map_or(system, |own| system.min(own as f64));
            }
            vitals.descriptor_limit = peer.descriptor_limit;
            if peer.kind == AgentKind::Compute {
                vitals.pace = peer.pace.look(&context.board, AgentSlot(slot));
            }
            seen.push((slot, vitals));
        }
        let paces: Vec<(u16, f64)> = seen.iter().map(|(slot, vitals)| (*slot, vitals.pace)).collect();
        for (slot, mut vitals) in seen {
            vitals.pace = relative(vitals.pace, &paces, slot);
            self.judge(slot, &vitals, now, context);
        }
    }

    fn judge(&mut self, slot: u16, vitals: &Vitals, now: Nanos, context: &mut Context) {
        let others_fail = self.others_fail(slot);
        let Some(peer) = self.peers.get_mut(&slot) else { return };
        let Findings { symptoms, verdict } = peer.monitor.observe(vitals);
        for symptom in symptoms {
            let text = format!(
                "slot {slot}, {} agent, process {}: {} is {:.3}, usually {:.3} ({:.1} robust deviations)",
                peer.kind, peer.pid, symptom.what, symptom.value, symptom.usual, symptom.z
            );
            context.note(Severity::Info, "agent_symptom", &text);
        }
        // When everybody's tasks fail, a new process would not help.
        let verdict = verdict.filter(|verdict| verdict.failure != Failure::Errors || !others_fail);
        let expected = self.deaths.get_mut(&slot).filter(|_| now.since(peer.since) >= FRESH);
        let verdict = verdict.or_else(|| expected.and_then(|(_, expected)| expected.take()));
        if let Some(verdict) = verdict.filter(|_| peer.reported.is_none()) {
            peer.report(AgentSlot(slot), &verdict, context);
        }
    }

    /// Whether tasks fail on all the other compute agents, too.
    fn others_fail(&self, slot: u16) -> bool {
        let mut others =
            self.peers.iter().filter(|(at, peer)| **at != slot && peer.kind == AgentKind::Compute);
        let mut any = false;
        others.all(|(_, peer)| {
            any = true;
            peer.monitor.is_failing()
        }) && any
    }

    /// This agent is there, perhaps as known. A death whose successor was there soon was not told by itself.
    fn meet(&mut self, slot: u16, incarnation: Incarnation, pid: u32, kind: AgentKind, now: Nanos) {
        if self.peers.get(&slot).is_none_or(|known| known.incarnation != incarnation) {
            self.bury(slot, now);
            self.peers.insert(slot, Peer::new(&self.procfs, incarnation, pid, kind, now));
        }
    }

    /// An agent is gone. Its death counts, unless it was ours to ask for.
    fn bury(&mut self, slot: u16, now: Nanos) {
        let Some(peer) = self.peers.remove(&slot) else { return };
        if peer.reported.is_none() {
            let (deaths, expected) = self.deaths.entry(slot).or_default();
            let window_s = self.restart_window.as_secs_f64();
            *expected = deaths.observe(now.0 as f64 / 1e9, self.restart_limit, window_s);
        }
    }
}

impl Peer {
    fn report(&mut self, slot: AgentSlot, verdict: &Verdict, context: &mut Context) {
        self.reported = Some(verdict.failure.plan().act);
        let Verdict { failure, words, figures } = verdict;
        tracing::warn!(
            slot = slot.0,
            pid = self.pid,
            failure = failure.name(),
            words,
            "tells the supervisor"
        );
        let text = format!("slot {}, {} agent, process {}: {words}", slot.0, self.kind, self.pid);
        context.note(Severity::Warning, "agent_suspect", &text);
        let mut figures = figures.clone();
        figures.push(Figure::new("process", f64::from(self.pid)));
        context.ask(*failure, slot, self.incarnation, &encode_finding(words, &figures));
    }
}

/// A pace measured against that of the others: what slows all of them down is the host.
fn relative(pace: f64, paces: &[(u16, f64)], slot: u16) -> f64 {
    let others = paces.iter().filter(|(at, pace)| *at != slot && pace.is_finite());
    let mut others: Vec<f64> = others.map(|(_, pace)| *pace).collect();
    if others.is_empty() { pace } else { pace / chart::median(&mut others).max(1.0) }
}

impl Agent for FaultAgent {
    fn on_message(&mut self, message: &ToAgent<'_>, context: &mut Context) {
        let ToAgent::Peer { slot, incarnation, pid, kind } = message else { return };
        let now = clock::now();
        match AgentKind::from_code(*kind) {
            Some(kind) if *slot != context.slot() => {
                tracing::trace!(slot = slot.0, kind = %kind, "watches");
                self.meet(slot.0, *incarnation, *pid, kind, now);
                // It is not known to sleep.
                self.due = self.due.min(now.plus(self.tick()));
            }
            _ => self.bury(slot.0, now),
        }
    }

    fn do_work(&mut self, context: &mut Context) -> usize {
        let now = clock::now();
        if now < self.due.min(self.sample_due) {
            return 0;
        }
        self.listen(now, context);
        // Between the moments at which others wake up: who sleeps shall be seen asleep.
        let offset = self.hang_after / (2 * LOOKS);
        self.due = Nanos(now.0.saturating_sub(offset.as_nanos() as u64)).next(self.tick()).plus(offset);
        if now >= self.sample_due {
            self.sample_due = now.plus(SAMPLE_EVERY / 2).next(SAMPLE_EVERY);
            self.examine(now, context);
        }
        1
    }

    fn next_due(&self) -> Option<Nanos> {
        Some(self.due.min(self.sample_due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::board::Cost;

    #[test]
    fn the_pace_is_what_tasks_take_against_what_they_took() {
        let name = format!("ai_swarm-test-pace-{}", std::process::id());
        let board = Board::create(&name, 2).expect("board");
        let mut pace = Pace::new();
        let slot = AgentSlot(1);
        let mut look = |mean_ns: f32, samples| {
            board.publish_cost(3, 4, Some(slot), Cost { mean_ns, samples });
            pace.look(&board, slot)
        };
        assert!(look(1000.0, 4).is_nan(), "too few to know");
        assert_eq!(look(1000.0, 20), 1.0);
        assert!(look(5000.0, 20).is_nan(), "nothing was done");
        let slow = look(3000.0, 40);
        assert!((slow - 3.0).abs() < 0.01, "{slow}");
        for samples in 41..80 {
            assert!(look(3000.0, samples) > 2.8, "bad times become usual slowly");
        }
    }

    #[test]
    fn a_death_counts_once_whether_it_was_told_or_a_successor_was() {
        let deaths_after = |told: &[Option<u32>]| {
            let mut agent = FaultAgent {
                procfs: PathBuf::from("/nowhere"),
                hang_after: Duration::from_secs(1),
                memory_limit: None,
                descriptor_limit: None,
                restart_limit: 5,
                restart_window: Duration::from_secs(60),
                sampler: HostSampler::new(Path::new("/nowhere")),
                peers: BTreeMap::new(),
                deaths: BTreeMap::new(),
                heard: Nanos(0),
                due: Nanos(0),
                sampled: Nanos(0),
                sample_due: Nanos(0),
            };
            for (at, told) in told.iter().enumerate() {
                let now = Nanos(at as u64 * 1_000_000_000);
                match told {
                    Some(life) => agent.meet(3, Incarnation(*life), 1, AgentKind::Compute, now),
                    None => agent.bury(3, now),
                }
            }
            agent.deaths.get(&3).map_or(0, |(deaths, _)| deaths.len())
        };
        assert_eq!(deaths_after(&[Some(1), None, Some(2), None, Some(3)]), 2);
        assert_eq!(deaths_after(&[Some(1), Some(2), Some(3)]), 2, "only the successors were told");
        assert_eq!(deaths_after(&[Some(1), Some(1), None, None, Some(2), Some(2), Some(3)]), 2, "told twice");
        assert_eq!(deaths_after(&[Some(1), Some(1)]), 0, "nobody died");
    }

    #[test]
    fn what_slows_everybody_down_is_not_one_agents_fault() {
        let paces = [(0, 3.0), (1, 2.8), (2, 3.2), (3, f64::NAN)];
        assert!((relative(3.0, &paces, 0) - 1.0).abs() < 1e-9);
        assert_eq!(relative(3.0, &[(0, 3.0)], 0), 3.0, "nobody to compare with");
        assert_eq!(relative(3.0, &[(0, 3.0), (1, 0.5)], 0), 3.0, "that others became faster is no slowness");
        assert!(relative(f64::NAN, &paces, 3).is_nan());
    }

    #[test]
    fn a_process_is_read_as_it_is() {
        let mut own =
            Peer::new(Path::new("/proc"), Incarnation(1), std::process::id(), AgentKind::Compute, Nanos(0));
        let look = own.look().expect("this very process");
        assert!(look.state.is_ascii_uppercase(), "{look:?}");
        let mut none = Peer::new(Path::new("/nowhere"), Incarnation(1), 1, AgentKind::Compute, Nanos(0));
        assert_eq!(none.look(), None);
    }

    #[test]
    fn a_sleeper_that_is_stopped_is_seen_to_be() {
        let mut sleeper = std::process::Command::new("sleep").arg("600").spawn().expect("a process");
        let mut peer =
            Peer::new(Path::new("/proc"), Incarnation(1), sleeper.id(), AgentKind::Compute, Nanos(0));
        let mut wait_for = |states: &[u8]| {
            let mut looks = (0..1000).map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                peer.look().expect("it lives").state
            });
            assert!(looks.any(|state| states.contains(&state)), "never {states:?}");
        };
        let pid = rustix::process::Pid::from_child(&sleeper);
        for _ in 0..20 {
            wait_for(b"S");
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("ours");
            wait_for(b"T");
            rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("ours");
        }
        sleeper.kill().expect("ours");
        sleeper.wait().expect("ours");
    }
}
