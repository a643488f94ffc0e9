//! One table, and a verdict per goal.

use crate::contenders::{
    BATCH_ROW as BATCH, Between, CROSSBEAM, ICE_PUBLISH, ICE_REQUEST, LINE, Name, RING, RTRB, RTRB_CHUNKS,
};
use ai_swarm::os::topology::Topology;
use std::fmt::Write as _;

/// All repetitions of one contender.
pub struct Row {
    name: &'static str,
    between: Between,
    trips: Vec<f64>,
    p99: Vec<f64>,
    rates: Vec<f64>,
    disturbed: usize,
}

impl Row {
    pub fn new(name: &Name) -> Self {
        let (name, between) = (name.name, name.between);
        Self { name, between, trips: Vec::new(), p99: Vec::new(), rates: Vec::new(), disturbed: 0 }
    }

    pub fn add_trips(&mut self, p50: f64, p99: f64, lost: f64) {
        self.trips.push(p50);
        self.p99.push(p99);
        self.disturbed += usize::from(lost >= crate::DISTURBED);
    }

    pub fn add_rate(&mut self, rate: f64, lost: f64) {
        self.rates.push(rate);
        self.disturbed += usize::from(lost >= crate::DISTURBED);
    }

    fn trip(&self) -> Option<f64> {
        middle(&self.trips)
    }

    fn rate(&self) -> Option<f64> {
        middle(&self.rates)
    }
}

/// Value at a share of the list, which is sorted for it.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

fn middle(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| quantile(&mut values.to_vec(), 0.5))
}

fn range(values: &[f64]) -> String {
    let mut values = values.to_vec();
    if values.is_empty() {
        return String::new();
    }
    format!("{}..{}", short(quantile(&mut values, 0.0)), short(quantile(&mut values, 1.0)))
}

fn short(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

pub fn render(rows: &[Row], first: usize, second: usize) -> String {
    let mut text = String::new();
    let model = Topology::read().model.unwrap_or_else(|_| "unknown processor".to_owned());
    let _ = writeln!(text, "messages of one cache line between cores {first} and {second}, {model}");
    let heads = ["", "between", "round trip", "of all", "p99", "ratio", "rate", "of all", "ratio"];
    let units = ["", "", "ns", "ns", "ns", "to ring", "M/s", "M/s", "to ring"];
    let mut cells: Vec<[String; 9]> = vec![heads.map(str::to_owned), units.map(str::to_owned)];
    let (ring_trip, ring_rate) = (rows[RING].trip(), rows[RING].rate());
    for row in rows {
        let show = |value: Option<f64>| value.map_or_else(String::new, short);
        let ratio = |value: Option<f64>, to: Option<f64>| {
            value.zip(to).map_or_else(String::new, |(value, to)| format!("{:.2}", value / to))
        };
        cells.push([
            row.name.to_owned(),
            if row.between == Between::Processes { "processes" } else { "threads" }.to_owned(),
            show(row.trip()),
            range(&row.trips),
            show(middle(&row.p99)),
            ratio(row.trip(), ring_trip),
            show(row.rate()),
            range(&row.rates),
            ratio(row.rate(), ring_rate),
        ]);
    }
    let widths: [usize; 9] =
        std::array::from_fn(|at| cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    for row in &cells {
        let line: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(at, (cell, width))| match at {
                0 | 1 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
    }
    let disturbed: usize = rows.iter().map(|row| row.disturbed).sum();
    let all: usize = rows.iter().map(|row| row.trips.len() + row.rates.len()).sum();
    let _ = writeln!(text, "{disturbed} of {all} measurements were disturbed by other processes");

    let (batch_rate, rate_of) = (rows[BATCH].rate(), |row: usize| rows[row].rate());
    let at_most = |limit: f64| Some((true, limit));
    let at_least = |limit: f64| Some((false, limit));
    let goals = [
        ("round trip / bare cache line", ring_trip, rows[LINE].trip(), at_most(1.10)),
        ("round trip / iceoryx2 publish-subscribe", ring_trip, rows[ICE_PUBLISH].trip(), at_most(0.25)),
        ("round trip / iceoryx2 request-response", ring_trip, rows[ICE_REQUEST].trip(), at_most(0.18)),
        ("rate in batches / iceoryx2 publish-subscribe", batch_rate, rate_of(ICE_PUBLISH), at_least(80.0)),
        ("rate in batches / rtrb", batch_rate, rate_of(RTRB), at_least(5.0)),
        ("rate in batches / crossbeam", batch_rate, rate_of(CROSSBEAM), at_least(8.0)),
        ("rate in batches / rtrb in chunks", batch_rate, rate_of(RTRB_CHUNKS), None),
        ("rate one by one / rtrb", ring_rate, rate_of(RTRB), None),
    ];
    for (what, ours, theirs, goal) in goals {
        let Some((ours, theirs)) = ours.zip(theirs) else { continue };
        let ratio = ours / theirs;
        let verdict = match goal {
            None => String::new(),
            Some((true, limit)) => {
                format!("  <= {limit:<5} {}", if ratio <= limit { "kept" } else { "MISSED" })
            }
            Some((false, limit)) => {
                format!("  >= {limit:<5} {}", if ratio >= limit { "kept" } else { "MISSED" })
            }
        };
        let _ = writeln!(text, "{what:<46} {ratio:>7.2}{verdict}");
    }
    text
}
