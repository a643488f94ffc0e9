//! What happened, for people and programs: a bounded log. Whoever follows it is told that there is more, and asks.

use super::hatch::News;
use crate::base::clock::{Nanos, wall_rfc3339};
use crate::messaging::envelope::Severity;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Events that are remembered, of this life and of earlier ones.
pub const REMEMBERED: usize = 10_000;

/// One event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Counts without gaps, from 1, or from where the journal says that the last life ended.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// `info`, `warning` or `alert`.
    pub severity: String,
    /// A stable word: `agent_ready`, `agent_died`, `performance_alert` …
    pub kind: String,
    /// The agent that it is about or from.
    pub agent: Option<String>,
    /// In words.
    pub text: String,
}

/// Lets one line of a kind into the log now and then, and counts the others: what strangers bring about must not
/// fill it.
#[derive(Debug, Default)]
pub struct Throttle {
    until: Nanos,
    kept_back: u64,
}

impl Throttle {
    /// Between two lines.
    const SPAN: Duration = Duration::from_secs(10);

    /// How many were kept back before this one; `None` when this one is kept back too.
    pub fn pass(&mut self, now: Nanos) -> Option<u64> {
        if now < self.until {
            self.kept_back += 1;
            return None;
        }
        self.until = now.plus(Self::SPAN);
        Some(std::mem::take(&mut self.kept_back))
    }
}

/// The log.
#[derive(Debug, Default)]
pub struct EventLog {
    events: VecDeque<Event>,
    /// Those of earlier lives.
    earlier: Vec<Event>,
    /// Number of the latest.
    latest: u64,
    /// Up to this number the journal was told.
    told: u64,
    follower: Option<News>,
    load_is_wanted: bool,
}

impl EventLog {
    /// A log that goes on where earlier lives ended, whose events [`tell`](Self::tell) gave.
    pub fn after(earlier: &[Box<str>]) -> Self {
        let skipped = earlier.len().saturating_sub(REMEMBERED);
        let earlier: Vec<Event> =
            earlier[skipped..].iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
        let last = earlier.last().map_or(0, |event| event.seq);
        Self { earlier, latest: last, told: last, ..Self::default() }
    }

    /// The events of earlier lives.
    pub fn earlier(&self) -> &[Event] {
        &self.earlier
    }

    /// Whether there are events that nobody was told of.
    pub fn has_untold(&self) -> bool {
        self.told < self.latest
    }

    /// Tells of the events since the last call: logs them, hands them to `keep` as the journal keeps them, and has the follower
    /// look.
    pub fn tell(&mut self, mut keep: impl FnMut(&str)) {
        let told = std::mem::replace(&mut self.told, self.latest);
        let at = self.events.partition_point(|event| event.seq <= told);
        for event in self.events.range(at..) {
            let Event { kind, agent, text, .. } = event;
            if self.is_warning(event) {
                tracing::warn!(event = kind, agent, "{text}");
            } else {
                tracing::info!(event = kind, agent, "{text}");
            }
            if let Ok(event) = serde_json::to_string(event) {
                keep(&event);
            }
        }
        if let Some(follower) = &self.follower {
            follower.tell(self.latest);
        }
    }

    /// Adds an event. Those who want to know are [told](Self::tell) when what it is about has been dealt with.
    pub fn add(&mut self, severity: Severity, kind: &str, agent: Option<&str>, text: String) {
        self.latest += 1;
        let severity = match severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Alert => "alert",
        };
        let event = Event {
            seq: self.latest,
            time: wall_rfc3339(),
            severity: severity.to_owned(),
            kind: kind.to_owned(),
            agent: agent.map(str::to_owned),
            text,
        };
        if self.events.len() == REMEMBERED {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// With `wanted`, a busy host is what the swarm was started for: a `performance_alert` is an event as
    /// ever, but no warning in the log.
    pub fn expect_load(&mut self, wanted: bool) {
        self.load_is_wanted = wanted;
    }

    fn is_warning(&self, event: &Event) -> bool {
        match event.severity.as_str() {
            "info" => false,
            "alert" => !(self.load_is_wanted && event.kind == "performance_alert"),
            _ => true,
        }
    }

    /// Events of this life after number `after`.
    pub fn since(&self, after: u64) -> Vec<Event> {
        let seen = self.events.partition_point(|event| event.seq <= after);
        self.events.range(seen..).cloned().collect()
    }

    /// Number of the latest event; 0 before the first.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// From now on it is `follower` that hears of new events.
    pub fn follow_by(&mut self, follower: News) {
        follower.tell(self.latest);
        self.follower = Some(follower);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_and_the_others_are_counted() {
        let (mut throttle, start) = (Throttle::default(), Nanos(1));
        assert_eq!(throttle.pass(start), Some(0));
        for _ in 0..17 {
            assert_eq!(throttle.pass(start.plus(Throttle::SPAN / 2)), None);
        }
        assert_eq!(throttle.pass(start.plus(Throttle::SPAN)), Some(17));
        assert_eq!(throttle.pass(start.plus(Throttle::SPAN)), None);
        assert_eq!(throttle.pass(start.plus(Throttle::SPAN * 2)), Some(1));
    }

    #[test]
    fn wanted_load_is_no_warning_in_the_log() {
        let mut log = EventLog::default();
        let kinds = [
            (Severity::Info, "x"),
            (Severity::Warning, "x"),
            (Severity::Alert, "x"),
            (Severity::Alert, "performance_alert"),
        ];
        for (severity, kind) in kinds {
            log.add(severity, kind, None, "busy".into());
        }
        let warns =
            |log: &EventLog| log.since(0).iter().map(|event| log.is_warning(event)).collect::<Vec<_>>();
        assert_eq!(warns(&log), [false, true, true, true]);
        log.expect_load(true);
        assert_eq!(warns(&log), [false, true, true, false]);
        assert_eq!(log.since(3)[0].severity, "alert", "as an event it is what it was");
    }

    #[test]
    fn events_are_numbered_and_the_newest_are_remembered() {
        let mut log = EventLog::default();
        assert_eq!((log.since(0).len(), log.latest()), (0, 0));
        for i in 0..REMEMBERED + 5 {
            log.add(Severity::Info, "tick", None, i.to_string());
        }
        let latest = REMEMBERED as u64 + 5;
        assert_eq!((log.since(0).len(), log.latest()), (REMEMBERED, latest));
        assert_eq!(log.since(0)[0].seq, 6, "what is oldest was forgotten");
        assert_eq!(log.since(latest - 1)[0].text, (latest - 1).to_string());
        assert!(log.since(latest).is_empty() && log.since(u64::MAX).is_empty());
    }

    #[test]
    fn a_later_life_counts_on_and_knows_what_it_was_told() {
        let mut first = EventLog::default();
        let mut kept: Vec<Box<str>> = Vec::new();
        for i in 0..3 {
            first.add(Severity::Info, "tick", Some("compute-0"), i.to_string());
            assert!(first.has_untold());
            first.tell(|event| kept.push(event.into()));
            assert!(!first.has_untold());
            first.tell(|event| panic!("told twice: {event}"));
        }
        let mut second = EventLog::after(&kept);
        let earlier: Vec<_> = second.earlier().iter().map(|event| (event.seq, event.text.clone())).collect();
        assert_eq!(earlier, [(1, "0".to_owned()), (2, "1".to_owned()), (3, "2".to_owned())]);
        assert!(!second.has_untold() && second.since(0).is_empty(), "they are the journal's already");
        second.add(Severity::Info, "tick", None, "new".to_owned());
        assert_eq!(second.since(0)[0].seq, 4);
        let mut told = 0;
        second.tell(|_| told += 1);
        assert_eq!(told, 1);
    }
}
