//! The resource agent: samples the host and what each agent uses, publishes it, raises alerts.

use super::{Agent, Context, Settings};
use crate::base::clock::Nanos;
use crate::base::ids::AgentSlot;
use crate::messaging::ToAgent;
use crate::messaging::envelope::Severity;
use crate::os::clock;
use crate::shm::board::{Host, Usage};
use crate::telemetry::host::{AgentUsage, HostSampler, space_of};
use crate::telemetry::reading::Reading;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// An alert is over when the value is so far below its threshold, percent.
const CALM_PERCENT: f64 = 5.0;
/// Free space below which the state directory's disk is worth a warning.
const DISK_LOW_BYTES: u64 = 256 << 20;

pub(super) struct ResourceAgent {
    sampler: HostSampler,
    interval: Duration,
    due: Nanos,
    /// Living agents by slot: process, and their usage when last sampled.
    peers: BTreeMap<u16, (u32, Option<(Nanos, AgentUsage)>)>,
    cpu: Threshold,
    memory: Threshold,
    state_dir: PathBuf,
    disk_low: bool,
}

/// A limit that is reported once per episode.
struct Threshold {
    what: &'static str,
    key: &'static str,
    limit: f64,
    over: bool,
}

impl Threshold {
    /// The words of a new episode, if one begins.
    fn update(&mut self, value: Option<f64>) -> Option<String> {
        let value = value?;
        if value < self.limit - CALM_PERCENT {
            self.over = false;
        }
        if value < self.limit || self.over {
            return None;
        }
        self.over = true;
        Some(format!(
            "{} at {value:.1} %, `performance_thresholds.{}` is {:.1} %",
            self.what, self.key, self.limit
        ))
    }
}

impl ResourceAgent {
    pub(super) fn new(settings: &Settings) -> Self {
        let threshold = |what, key, limit| Threshold { what, key, limit, over: false };
        Self {
            sampler: HostSampler::new(&settings.procfs),
            interval: settings.monitoring_interval,
            due: Nanos(0),
            peers: BTreeMap::new(),
            cpu: threshold("processor use", "cpu_critical", settings.cpu_critical_percent),
            memory: threshold("memory use", "memory_critical", settings.memory_critical_percent),
            state_dir: settings.state_dir.clone(),
            disk_low: false,
        }
    }

    fn sample(&mut self, now: Nanos, context: &mut Context) {
        let sample = self.sampler.sample();
        let known = |reading: &Reading<f64>| reading.value().copied().unwrap_or(f64::NAN);
        context.board.publish_host(&Host {
            sampled_ns: now.0 as f64,
            cpu_percent: known(&sample.cpu_percent),
            steal_percent: known(&sample.steal_percent),
            memory_percent: known(&sample.memory_percent),
            memory_available_bytes: sample
                .memory_available_bytes
                .value()
                .map_or(f64::NAN, |&bytes| bytes as f64),
            pressure_cpu_percent: known(&sample.pressure.cpu_some),
            pressure_memory_percent: known(&sample.pressure.memory_some),
            pressure_io_percent: known(&sample.pressure.io_some),
            disk_read_bytes_per_s: known(&sample.disk_read_bytes_per_s),
            disk_write_bytes_per_s: known(&sample.disk_write_bytes_per_s),
            load_1m: sample.load.value().map_or(f64::NAN, |load| load[0]),
        });
        let cpu = self.cpu.update(sample.cpu_percent.value().copied());
        let memory = self.memory.update(sample.memory_percent.value().copied());
        for text in cpu.into_iter().chain(memory) {
            context.note(Severity::Alert, "performance_alert", &text);
        }
        self.watch_disk(context);
        self.sample_agents(now, context);
    }

    fn watch_disk(&mut self, context: &mut Context) {
        let Reading::Value { v: space, .. } = space_of(&self.state_dir) else { return };
        let low = space.available_bytes < DISK_LOW_BYTES;
        if low && !self.disk_low {
            let text = format!(
                "{} MiB left on the disk of {}",
                space.available_bytes >> 20,
                self.state_dir.display()
            );
            context.note(Severity::Warning, "disk_low", &text);
        }
        self.disk_low = low;
    }

    fn sample_agents(&mut self, now: Nanos, context: &Context) {
        let pids: Vec<u32> = self.peers.values().map(|(pid, _)| *pid).collect();
        let usages = self.sampler.agents(&pids);
        for ((&slot, (_, last)), usage) in self.peers.iter_mut().zip(usages) {
            context.board.publish_usage(AgentSlot(slot), &cell(now, &usage, last.as_ref()));
            *last = Some((now, usage));
        }
    }
}

fn cell(now: Nanos, usage: &AgentUsage, last: Option<&(Nanos, AgentUsage)>) -> Usage {
    let count = |reading: &Reading<u64>| reading.value().map_or(f64::NAN, |&value| value as f64);
    let seconds = last.map_or(f64::NAN, |(then, _)| now.since(*then).as_secs_f64());
    // Differences are over one process only; after a restart the first sample has no rate.
    let per_second = |now: f64, then: Option<f64>| then.map_or(f64::NAN, |then| (now - then) / seconds);
    let switches = |usage: &AgentUsage| {
        count(&usage.context_switches_voluntary) + count(&usage.context_switches_involuntary)
    };
    Usage {
        sampled_ns: now.0 as f64,
        pid: f64::from(usage.pid),
        cpu_percent: usage.cpu_percent.value().copied().unwrap_or(f64::NAN),
        rss_bytes: count(&usage.rss_bytes),
        run_delay_percent: per_second(
            count(&usage.run_delay_ns),
            last.map(|(_, last)| count(&last.run_delay_ns)),
        ) / 1e7,
        context_switches_per_s: per_second(switches(usage), last.map(|(_, last)| switches(last))),
        major_faults: count(&usage.page_faults_major),
        threads: count(&usage.threads),
    }
}

impl Agent for ResourceAgent {
    fn on_message(&mut self, message: &ToAgent<'_>, _context: &mut Context) {
        if let ToAgent::Peer { slot, pid, kind, .. } = message {
            if *kind == 0 {
                self.peers.remove(&slot.0);
            } else {
                self.peers.insert(slot.0, (*pid, None));
            }
        }
    }

    fn do_work(&mut self, context: &mut Context) -> usize {
        let now = clock::now();
        if now < self.due {
            return 0;
        }
        // At common moments, and never so soon that rates would be noise.
        self.due = now.plus(self.interval / 2).next(self.interval);
        self.sample(now, context);
        1
    }

    fn next_due(&self) -> Option<Nanos> {
        Some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_raised_once_per_episode() {
        let mut cpu = Threshold { what: "processor use", key: "cpu_critical", limit: 90.0, over: false };
        assert_eq!(cpu.update(None), None);
        assert_eq!(cpu.update(Some(89.0)), None);
        let words = cpu.update(Some(95.0)).expect("an episode begins");
        assert_eq!(words, "processor use at 95.0 %, `performance_thresholds.cpu_critical` is 90.0 %");
        assert_eq!(cpu.update(Some(99.0)), None);
        assert_eq!(cpu.update(Some(88.0)), None, "not calm yet");
        assert_eq!(cpu.update(Some(91.0)), None);
        assert_eq!(cpu.update(Some(80.0)), None);
        assert!(cpu.update(Some(91.0)).is_some(), "a new one");
    }
}
