//! What the supervisor shows of itself: lists, status, statistics, the report.

use super::action::{
    AgentView, ArenaUsageView, CandidateView, ChannelView, CountersView, DecisionView, Known, LaneView,
    LatencyBucket, Percentiles, ReportAgent, ReportHost, ReportKernel, ReportView, SafetyView,
    StatisticsView, StatusView, TaskCounts, TaskView,
};
use super::*;
use crate::kernels::{KernelId, Level};
use crate::messaging::lanes::capacities;
use crate::messaging::link::ChannelTraffic;
use crate::messaging::meters::Latencies;
use crate::os::counting::{Counts, EVENTS};
use crate::os::nvml;
use crate::os::sysfs::Reason;
use crate::shm::arena::ArenaUsage;
use crate::tasks::Task;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Incidents that a look at everything shows, the newest; the report has more.
const INCIDENTS_SHOWN: usize = 100;
/// Tasks that a report shows one by one unless asked for more.
const DETAIL_MAX: usize = 10_000;

fn micros(from: Nanos, to: Nanos) -> f64 {
    if to.0 <= from.0 || from.0 == 0 { 0.0 } else { (to.0 - from.0) as f64 / 1000.0 }
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    if histogram.is_empty() {
        return Percentiles::default();
    }
    let at = |q| histogram.value_at_quantile(q) as f64 / 1000.0;
    Percentiles {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max() as f64 / 1000.0,
        mean: histogram.mean() / 1000.0,
    }
}

fn known(value: f64, why_not: &str) -> Known {
    if value.is_finite() {
        Known { value: Some(value), unavailable: None }
    } else {
        Known { value: None, unavailable: Some(why_not.to_owned()) }
    }
}

impl Supervisor {
    /// Where a task is, as far as anybody may know.
    fn told_state(&self, task: &Task) -> TaskState {
        match task.attempt {
            _ if self.may_be_told(task) => task.state,
            Attempt(0) => TaskState::Queued,
            _ => TaskState::Dispatched,
        }
    }

    pub(super) fn task_view(&self, task: &Task) -> TaskView {
        let runs = task.holders().any(|lease| {
            self.dispatcher.get(lease.slot).is_some_and(|seat| seat.link.running() == Some(task.id))
        });
        let told = self.told_state(task);
        let state = if runs && told == TaskState::Dispatched { "running" } else { told.name() };
        let is_told = told == task.state;
        let (result, error) =
            if is_told { (task.result.as_deref(), task.error.as_deref()) } else { (None, None) };
        let finished = if is_told { task.finished } else { Nanos(0) };
        TaskView {
            id: task.label(),
            number: task.id.0,
            kernel: task.spec.kernel_name.to_owned(),
            state: state.to_owned(),
            priority: task.spec.priority.name().to_owned(),
            attempts: task.attempt.0,
            retries_left: task.retries_left,
            waiting_for: self.waiting_for(task),
            agent: task.agent.and_then(|slot| self.id_of(slot)),
            hedged_on: task.hedged_on.and_then(|slot| self.id_of(slot)),
            parts: task.parts,
            undivided: task.undivided.as_deref().filter(|why| !why.is_empty()).map(str::to_owned),
            backend: task.ran_level.map(backend_word),
            result: result.and_then(|text| serde_json::from_str(text).ok()),
            error: error.map(str::to_owned),
            queue_us: micros(task.submitted, task.dispatched),
            dispatch_us: micros(task.dispatched, task.started),
            service_us: task.service_ns as f64 / 1000.0,
            total_us: micros(task.submitted, finished),
            finished_ns: finished.0,
            decision: None,
        }
    }

    /// As [`task_view`](Self::task_view), and why it went where it went.
    pub(super) fn task_view_whole(&self, task: &Task) -> TaskView {
        TaskView { decision: self.decision_view(task), ..self.task_view(task) }
    }

    fn decision_view(&self, task: &Task) -> Option<DecisionView> {
        let decision = self.dispatcher.decisions.of(task.id)?;
        // Who sat there may be gone by now.
        let name = |slot| self.id_of(slot).unwrap_or_else(|| format!("slot {}", slot.0));
        let us = |ns: f32| f64::from(ns) / 1000.0;
        let is_its = self.told_state(task) == TaskState::Succeeded && task.leased == decision.attempt;
        Some(DecisionView {
            attempt: decision.attempt.0,
            policy: self.dispatcher.policy().name().to_owned(),
            by: decision.by.name().to_owned(),
            agent: name(decision.chosen().slot),
            expected_us: decision.expected_ns.map(us),
            took_us: is_its.then_some(task.service_ns as f64 / 1000.0),
            probability: f64::from(decision.probability),
            of: u32::from(decision.candidates),
            candidates: decision
                .choices()
                .iter()
                .map(|choice| CandidateView {
                    agent: name(choice.slot),
                    room: choice.room,
                    in_flight: u32::from(choice.in_flight),
                    backlog_us: us(choice.backlog_ns),
                    told_us: choice.told_ns.map(us),
                    time_us: choice.scored.map(|scored| us(scored.time_ns)),
                    // Per ns, which is a thousand times as much per microsecond.
                    price: choice.scored.map(|scored| f64::from(scored.price) * 1000.0),
                    score_us: choice.scored.map(|scored| us(scored.score_ns)),
                })
                .collect(),
        })
    }

    /// Names of the tasks that still have to succeed before this one.
    fn waiting_for(&self, task: &Task) -> Vec<String> {
        if task.missing == 0 || task.state != TaskState::Waiting {
            return Vec::new();
        }
        let open = |name: &&str| self.ledger.find(name).is_some_and(|task| !task.state.is_final());
        task.spec.after.iter().map(|name| &**name).filter(open).map(str::to_owned).collect()
    }

    pub(super) fn task_list(&self, state: Option<&str>, limit: usize) -> Reply {
        let wanted = |task: &&Task| match state {
            None => true,
            Some("running") => self.told_state(task) == TaskState::Dispatched,
            Some(state) => self.told_state(task).name() == state,
        };
        let mut views: Vec<TaskView> =
            self.ledger.tasks().rev().filter(wanted).take(limit).map(|task| self.task_view(task)).collect();
        views.reverse();
        Reply::Tasks(views)
    }

    pub(super) fn agent_view(&self, slot: AgentSlot) -> Option<AgentView> {
        let record = self.record(slot)?;
        let seat = self.dispatcher.get(slot);
        let pid = record.child.as_ref().map(crate::os::process::ChildProcess::pid);
        let usage = self.board.usage(slot).filter(|usage| pid.is_some_and(|pid| usage.pid == f64::from(pid)));
        let finite = |value: f64| value.is_finite().then_some(value);
        let (tasks, failures, busy_ns, in_flight) =
            seat.map_or((0, 0, 0, 0), |seat| (seat.tasks, seat.failures, seat.busy_ns, seat.held.len()));
        Some(AgentView {
            id: record.id.clone(),
            kind: record.kind.name().to_owned(),
            state: record.state.name().to_owned(),
            pid,
            incarnation: record.incarnation.0,
            cores: if record.pinned || record.state == AgentState::Starting {
                vec![record.core]
            } else {
                Vec::new()
            },
            core_shared: record.core_shared,
            tasks: record.past_tasks + tasks,
            failures: record.past_failures + failures,
            in_flight,
            restarts: record.restarts,
            busy_s: (record.past_busy_ns + busy_ns) as f64 / 1e9,
            cpu_percent: usage.and_then(|usage| finite(usage.cpu_percent)),
            rss_bytes: usage.and_then(|usage| finite(usage.rss_bytes)).map(|bytes| bytes as u64),
            counters: self
                .board
                .counted(slot, record.incarnation)
                .map(|counted| counters_view(counted.tasks as u64, &counted.counts, &counted.reasons)),
        })
    }

    pub(super) fn agent_views(&self) -> Vec<AgentView> {
        (0..self.roster.len()).filter_map(|at| self.agent_view(AgentSlot(at as u16))).collect()
    }

    pub(super) fn task_counts(&self) -> TaskCounts {
        let counts = self.ledger.counts();
        let is_gone = |task: &Task, lease: Lease| {
            self.dispatcher.get(lease.slot).is_none_or(|seat| {
                seat.incarnation != lease.incarnation || !seat.held.iter().any(|held| held.task == task.id)
            })
        };
        let is_over = self.state == "stopped" && !self.leaves_tasks;
        let is_lost = |task: &&Task| match task.state {
            // Parts that nobody holds wait to be sent.
            TaskState::Dispatched if task.holders().next().is_none() => is_over || !task.is_divided(),
            TaskState::Dispatched => task.holders().any(|lease| is_gone(task, lease)),
            state => !state.is_final() && is_over,
        };
        TaskCounts {
            lost: if counts.open() == 0 { 0 } else { self.ledger.tasks().filter(is_lost).count() as u64 },
            left: if self.leaves_tasks && self.state == "stopped" { counts.open() } else { 0 },
            ..counts.into()
        }
    }

    pub(super) fn status(&self) -> StatusView {
        StatusView {
            swarm: self.config.name.clone(),
            state: self.state.to_owned(),
            pid: std::process::id(),
            uptime_s: clock::now().since(self.started).as_secs_f64(),
            policy: self.dispatcher.policy().name().to_owned(),
            balancer: self.balancer_view(),
            durability: self.durability_view(),
            tasks: self.task_counts(),
            earlier: (self.earlier.lives > 0).then(|| self.earlier.clone()),
            queued: self.ledger.queued(),
            in_flight: self.dispatcher.in_flight(),
            agents: self.agent_views(),
            host: self.host_view(),
            notes: self.plan.notes.clone(),
            incidents: self.incidents.latest(INCIDENTS_SHOWN),
            incidents_total: self.incidents.total(),
            safety: SafetyView {
                level: self.ladder.level().name().to_owned(),
                level_because: (!self.ladder.why().is_empty()).then(|| self.ladder.why().to_owned()),
                level_blind: self.ladder.blind().to_vec(),
                standbys_ready: self.standbys.ready(),
                standbys_wanted: self.wanted_standbys(),
                containment: self.nursery.containment.name().to_owned(),
                containment_because: self.nursery.containment.why_not_better().map(str::to_owned),
            },
            gateway: self.gatekeeper.as_ref().map(Gatekeeper::view),
        }
    }

    fn host_view(&self) -> BTreeMap<String, Known> {
        let mut view = BTreeMap::new();
        let resource_lives =
            self.dispatcher.iter().any(|seat| seat.kind == AgentKind::Resource && seat.ready);
        let why = if resource_lives {
            "not sampled yet, or not readable on this host"
        } else {
            "no resource agent runs"
        };
        let host = self.board.host().unwrap_or(crate::shm::board::Host::UNKNOWN);
        for (name, value) in [
            ("cpu_percent", host.cpu_percent),
            ("steal_percent", host.steal_percent),
            ("memory_percent", host.memory_percent),
            ("memory_available_bytes", host.memory_available_bytes),
            ("pressure_cpu_percent", host.pressure_cpu_percent),
            ("pressure_memory_percent", host.pressure_memory_percent),
            ("pressure_io_percent", host.pressure_io_percent),
            ("disk_read_bytes_per_s", host.disk_read_bytes_per_s),
            ("disk_write_bytes_per_s", host.disk_write_bytes_per_s),
            ("load_1m", host.load_1m),
        ] {
            view.insert(name.to_owned(), known(value, why));
        }
        let thermal = self.board.thermal().unwrap_or(crate::shm::board::Thermal::UNKNOWN);
        let thermal_lives = self.dispatcher.iter().any(|seat| seat.kind == AgentKind::Thermal && seat.ready);
        let reason =
            Reason::from_code_number(thermal.reason_code as u8).filter(|_| thermal.reason_code.is_finite());
        let why = match (thermal_lives, reason) {
            (false, _) => "no thermal agent runs",
            (true, Some(reason)) => reason.code(),
            (true, None) => "not read yet",
        };
        view.insert("temperature_celsius".to_owned(), known(thermal.hottest_celsius, why));
        let cap = if thermal.cap_agents.is_finite() { "" } else { "no cap in force" };
        view.insert("compute_agents_cap".to_owned(), known(thermal.cap_agents, cap));
        view
    }

    fn latencies(&self) -> BTreeMap<String, Percentiles> {
        let totals = &self.dispatcher.totals;
        let named = [
            ("queue", &totals.queue),
            ("dispatch", &totals.dispatch),
            ("service", &totals.service),
            ("total", &totals.total),
        ];
        named.into_iter().map(|(name, histogram)| (name.to_owned(), percentiles(histogram))).collect()
    }

    pub(super) fn statistics(&self) -> StatisticsView {
        let capacities = capacities(self.config.channel_size);
        let channel = |from: String, to: String, traffic: &ChannelTraffic| ChannelView {
            from,
            to,
            state: "open".to_owned(),
            closed_because: None,
            lanes: lane_views(traffic, capacities),
        };
        let supervisor = || "supervisor".to_owned();
        let mut channels = Vec::new();
        let agents = self.dispatcher.iter();
        let agents = agents.map(|seat| (self.id_of(seat.slot).unwrap_or_default(), seat.link.traffic()));
        for (id, traffic) in agents.chain(self.client_traffic()) {
            channels.push(channel(supervisor(), id.clone(), &traffic.down));
            channels.push(channel(id, supervisor(), &traffic.up));
        }
        channels
            .extend(self.line_traffic().into_iter().map(|(from, to, traffic)| channel(from, to, &traffic)));
        let own = self.switchboard.store.usage();
        let own = own.map(|usage| arena_view(supervisor(), &usage));
        let arenas =
            own.into_iter().chain(self.arena_usages().into_iter().map(|(id, usage)| arena_view(id, &usage)));
        let closed = &self.switchboard.closed;
        let mut past = self.switchboard.closed_traffic();
        past.add(&self.dispatcher.totals.closed);
        StatisticsView {
            tasks: self.task_counts(),
            results_refused: self.dispatcher.totals.results_refused,
            experience_dropped: self.dispatcher.totals.experience_dropped,
            latency_us: self.latencies(),
            channels,
            topics: self.topic_views(),
            arenas: arenas.collect(),
            members: self.member_views(),
            closed_traffic: lane_views(&past, [0; 3]),
            closed_channels: closed.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            turns: self.turns,
            busy_turns: self.busy_turns,
            sleeps: self.sleeps,
            wakes: self.wakes,
        }
    }

    /// The report so far.
    pub fn report(&self, all_tasks: bool) -> ReportView {
        let now = clock::now();
        let counts = self.task_counts();
        let span = self.first_accepted.map_or(0.0, |first| self.last_ended.since(first).as_secs_f64());
        let (gpus, gpus_unavailable) = match nvml::probe() {
            Ok(probe) => (
                probe
                    .gpus
                    .iter()
                    .map(|gpu| gpu.name.clone().unwrap_or_else(|_| format!("gpu {}", gpu.index)))
                    .collect(),
                None,
            ),
            Err(missing) => (Vec::new(), Some(format!("{}: {}", missing.reason.code(), missing.detail))),
        };
        let own = || self.ledger.tasks().filter(|task| !task.earlier);
        let detail = all_tasks || own().count() <= DETAIL_MAX;
        ReportView {
            schema: 1,
            swarm: self.config.name.clone(),
            host: ReportHost {
                cores: self.cores.len(),
                simd: Level::available()
                    .into_iter()
                    .filter(|level| *level != Level::Scalar)
                    .map(simd_word)
                    .collect(),
                gpus,
                gpus_unavailable,
            },
            wall_s: now.since(self.started).as_secs_f64(),
            ready_s: self.first_ready.map_or(0.0, |ready| ready.since(self.started).as_secs_f64()),
            tasks: counts,
            throughput_tasks_per_s: if span > 0.0 { counts.succeeded as f64 / span } else { 0.0 },
            latency_us: self.latencies(),
            agents: self
                .agent_views()
                .into_iter()
                .map(|agent| ReportAgent {
                    id: agent.id,
                    kind: agent.kind,
                    cores: agent.cores,
                    tasks: agent.tasks,
                    restarts: agent.restarts,
                    busy_s: agent.busy_s,
                })
                .collect(),
            kernels: self.kernel_rows(),
            recoveries: self.recoveries.clone(),
            incidents: self.incidents.latest(usize::MAX),
            tasks_detail: detail.then(|| own().map(|task| self.task_view(task)).collect()),
        }
    }

    /// Why nobody counts an event, as the compute agents say.
    fn uncounted(&self) -> [Option<Reason>; EVENTS.len()] {
        let mut reasons = [None; EVENTS.len()];
        for counted in (0..self.roster.len()).filter_map(|at| {
            let slot = AgentSlot(at as u16);
            self.board.counted(slot, self.record(slot)?.incarnation)
        }) {
            reasons.iter_mut().zip(counted.reasons).for_each(|(reason, own)| *reason = reason.or(own));
        }
        reasons
    }

    fn kernel_rows(&self) -> Vec<ReportKernel> {
        let reasons = self.uncounted();
        let is_blind = reasons.iter().all(Option::is_some);
        let rows = self.dispatcher.totals.kernels.iter();
        rows.map(|(&(kernel, level), totals)| {
            let seconds = totals.service_ns as f64 / 1e9;
            let rate = |amount: f64| if seconds > 0.0 { amount / seconds / 1e9 } else { 0.0 };
            ReportKernel {
                kernel: KernelId::from_code(kernel)
                    .map_or_else(|| kernel.to_string(), |kernel| kernel.name().to_owned()),
                backend: backend_word(level),
                count: totals.count,
                gflops: rate(totals.flops),
                gbytes_per_s: rate(totals.bytes),
                service_s: seconds,
                counters: (totals.counted > 0 || is_blind && kernel != KernelId::Noop.code())
                    .then(|| counters_view(totals.counted, &totals.counts, &reasons)),
            }
        })
        .collect()
    }
}

fn counters_view(tasks: u64, counts: &Counts, reasons: &[Option<Reason>; EVENTS.len()]) -> CountersView {
    let event = |(event, name): (usize, &&str)| {
        // Whoever counts has not begun.
        let why = reasons[event].unwrap_or(Reason::WarmingUp).code();
        ((*name).to_owned(), known(counts.get(event).unwrap_or(f64::NAN), why))
    };
    CountersView { tasks, events: EVENTS.iter().enumerate().map(event).collect() }
}

/// The lanes of one direction, from what its two ends have counted.
fn lane_views(traffic: &ChannelTraffic, capacities: [u64; 3]) -> Vec<LaneView> {
    let lane = |(at, name): (usize, &str)| {
        let (sent, received) = (&traffic.sent[at], &traffic.received[at]);
        let mut dropped = sent.dropped;
        dropped.add(&received.dropped);
        LaneView {
            lane: name.to_owned(),
            sent: sent.messages,
            received: received.messages,
            bytes_sent: sent.bytes,
            bytes_received: received.bytes,
            dropped,
            depth: traffic.depths[at],
            high_water: sent.high_water,
            capacity: capacities[at],
            latency_us: latency(&traffic.latencies[at]),
            latency_buckets: traffic.latencies[at]
                .buckets()
                .map(|(ns, count)| LatencyBucket { below_us: ns.is_finite().then_some(ns / 1000.0), count })
                .collect(),
        }
    };
    ["control", "normal", "bulk"].into_iter().enumerate().map(lane).collect()
}

/// Percentiles of times that messages carry, within a tenth.
fn latency(latencies: &Latencies) -> Option<Percentiles> {
    let at = |share| latencies.quantile(share).map(|ns| ns / 1000.0);
    Some(Percentiles {
        p50: at(0.5)?,
        p99: at(0.99)?,
        p999: at(0.999)?,
        max: at(1.0)?,
        mean: latencies.mean()? / 1000.0,
    })
}

fn arena_view(owner: String, usage: &ArenaUsage) -> ArenaUsageView {
    ArenaUsageView {
        owner,
        limit_bytes: usage.limit as u64,
        committed_bytes: usage.committed as u64,
        in_use_bytes: usage.in_use as u64,
        blocks_out: usage.blocks_out as u64,
        high_water_bytes: usage.high_water as u64,
        full_answers: usage.full_answers,
        reclaimed_blocks: usage.reclaimed,
    }
}

/// The level's name; `native` for kernels without levels of their own.
fn backend_word(level: u8) -> String {
    Level::from_code(level).map_or("native", Level::name).to_owned()
}

/// Instruction sets as processors name them.
fn simd_word(level: Level) -> String {
    if level == Level::Avx512 { "avx512f".to_owned() } else { level.name().to_owned() }
}
