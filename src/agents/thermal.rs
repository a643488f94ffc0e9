//! The thermal agent: reads temperatures and caps how many compute agents may run at once.

use super::{Agent, Context, Settings};
use crate::base::clock::Nanos;
use crate::base::words::things;
use crate::messaging::ToAgent;
use crate::messaging::envelope::Severity;
use crate::os::clock;
use crate::shm::board::Thermal;
use crate::telemetry::reading::Reading;
use crate::telemetry::sensors::{SensorTree, ThrottlePolicy};
use std::time::Duration;

pub(super) struct ThermalAgent {
    sensors: SensorTree,
    policy: ThrottlePolicy,
    interval: Duration,
    critical_celsius: f64,
    hysteresis_celsius: f64,
    compute_agents: usize,
    due: Nanos,
    /// The threshold is crossed and said so.
    alerted: bool,
    /// The cap as last said.
    cap: Option<usize>,
    /// What was last said about a missing temperature.
    missing: Option<String>,
}

impl ThermalAgent {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            sensors: SensorTree::new(&settings.sysfs),
            policy: ThrottlePolicy::new(
                settings.thermal_critical_celsius,
                settings.thermal_hysteresis_celsius,
            ),
            interval: settings.monitoring_interval,
            critical_celsius: settings.thermal_critical_celsius,
            hysteresis_celsius: settings.thermal_hysteresis_celsius,
            compute_agents: settings.compute_agents,
            due: Nanos(0),
            alerted: false,
            cap: None,
            missing: None,
        }
    }

    fn sample(&mut self, now: Nanos, context: &mut Context) {
        let sample = self.sensors.read();
        let hottest = sample.hottest.value().copied();
        let cap = self.policy.update(hottest, self.compute_agents);
        let limited = cap.is_limiting().then_some(cap.allowed);
        context.board.publish_thermal(&Thermal {
            sampled_ns: now.0 as f64,
            hottest_celsius: hottest.unwrap_or(f64::NAN),
            cap_agents: limited.map_or(f64::NAN, |agents| agents as f64),
            reason_code: sample.hottest.reason().map_or(f64::NAN, |reason| f64::from(reason as u8)),
        });
        self.tell_temperature(&sample.hottest, context);
        if limited != self.cap {
            let text = match (limited, hottest) {
                (Some(allowed), Some(celsius)) => {
                    format!("{celsius:.1} °C: {allowed} of {} may run", things(cap.agents, "compute agent"))
                }
                (Some(allowed), None) => {
                    format!("no temperature: {allowed} of {} may run", things(cap.agents, "compute agent"))
                }
                (None, _) => "cool again: all compute agents may run".to_owned(),
            };
            context.note(Severity::Warning, "concurrency_cap", &text);
            self.cap = limited;
        }
    }

    fn tell_temperature(&mut self, hottest: &Reading<f64>, context: &mut Context) {
        match hottest {
            Reading::Value { v, .. } => {
                self.missing = None;
                if *v >= self.critical_celsius && !self.alerted {
                    let text = format!(
                        "temperature {v:.1} °C is at or over thermal_critical {:.1} °C",
                        self.critical_celsius
                    );
                    context.note(Severity::Alert, "performance_alert", &text);
                    self.alerted = true;
                } else if *v < self.critical_celsius - self.hysteresis_celsius {
                    self.alerted = false;
                }
            }
            Reading::Absent { reason, detail, .. } => {
                let words = format!("temperature unavailable: {}: {detail}", reason.code());
                if self.missing.as_deref() != Some(&*words) {
                    context.note(Severity::Info, "sensor_unavailable", &words);
                    self.missing = Some(words);
                }
            }
        }
    }
}

impl Agent for ThermalAgent {
    fn on_message(&mut self, _message: &ToAgent<'_>, _context: &mut Context) {}

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
