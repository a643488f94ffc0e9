//! `statistics`: numbers since the start of a running swarm, as tables.
//!
//! One row per channel and lane. A column of which no row knows anything is left out, so that the table
//! of a quiet swarm is narrow. Each end of a channel counts for itself; what the other end counted and
//! nobody told us is absent, not zero.

use super::inspect::{heading, number, show};
use super::output::{
    ABSENT, OutputOptions, Style, Table, bytes, count, duration, micros, paint, percent, plain,
};
use crate::gateway::client::Client;
use crate::supervisor::action::{ChannelView, LaneView, Percentiles, StatisticsView, TaskCounts};
use anyhow::Result;
use std::fmt::Write as _;

/// `statistics`; with `all` also the lanes that carried nothing.
pub(super) fn statistics(client: &mut Client, all: bool, output: &OutputOptions) -> Result<u8> {
    show(client.get("/api/v1/system/statistics")?, output, |view: StatisticsView| text(&view, all, output))
}

fn text(view: &StatisticsView, all: bool, output: &OutputOptions) -> String {
    let mut text = String::new();
    let mut add = |name: &str, words: &str| {
        let _ = writeln!(text, "{}{words}", heading(name, output));
    };
    add("tasks", &task_words(&view.tasks));
    if view.results_refused > 0 {
        add("results", &format!("{} refused: late, foreign or repeated", number(view.results_refused)));
    }
    if view.experience_dropped > 0 {
        let words = "finished tasks of which the learning agent did not hear";
        add("experience", &format!("{} {words}", number(view.experience_dropped)));
    }
    let share = 100.0 * view.busy_turns as f64 / view.turns.max(1) as f64;
    add(
        "loop",
        &format!(
            "{} turns, {} of them with work; slept {}, woke agents {}",
            number(view.turns),
            percent(share),
            times(view.sleeps),
            times(view.wakes)
        ),
    );
    let mut channels = view.channels.clone();
    channels.extend(closed_channel(view));
    for table in [
        latency_table(view, output),
        channel_table(&channels, all, output),
        topic_table(view, output),
        arena_table(view, output),
        member_table(view, output),
    ]
    .into_iter()
    .flatten()
    {
        text.push('\n');
        text += &table;
    }
    if !view.closed_channels.is_empty() {
        text.push('\n');
        for (at, (reason, channels)) in view.closed_channels.iter().enumerate() {
            let name = heading(if at == 0 { "closed" } else { "" }, output);
            let noun = if *channels == 1 { "channel" } else { "channels" };
            let _ = writeln!(text, "{name}{} {noun}: {}", number(*channels), plain(reason));
        }
    }
    text
}

/// Where names of both ends would stand.
const CLOSED: &str = "all that are closed";

fn times(amount: u64) -> String {
    match amount {
        0 => "never".to_owned(),
        1 => "once".to_owned(),
        n => format!("{} times", number(n)),
    }
}

fn task_words(tasks: &TaskCounts) -> String {
    let mut words = format!("{} in all, {} succeeded", number(tasks.total), number(tasks.succeeded));
    for (amount, what) in [
        (tasks.failed, "failed"),
        (tasks.cancelled, "cancelled"),
        (tasks.retried, "retried"),
        (tasks.hedged, "sent to a second agent as well"),
        (tasks.lost, "LOST"),
        (tasks.duplicated, "DUPLICATED"),
    ] {
        if amount > 0 {
            let _ = write!(words, ", {} {what}", number(amount));
        }
    }
    words
}

fn latency_table(view: &StatisticsView, output: &OutputOptions) -> Option<String> {
    let mut table =
        Table::new(&["LATENCY", "MEAN", "P50", "P99", "P99.9", "LONGEST"]).right(&[1, 2, 3, 4, 5]);
    for (name, what) in
        [("queue", "waiting"), ("dispatch", "hand-over"), ("service", "kernel"), ("total", "in all")]
    {
        if let Some(p) = view.latency_us.get(name).filter(|p| p.max > 0.0) {
            let cells = [p.mean, p.p50, p.p99, p.p999, p.max].map(micros);
            let [mean, p50, p99, p999, max] = cells;
            table.row([what.to_owned(), mean, p50, p99, p999, max]);
        }
    }
    (!table.is_empty()).then(|| table.render(output))
}

/// What the sender and the receiver of a lane counted. Zero at one end beside traffic at the other, with
/// nothing on its way, is an end that does not tell.
fn ends(lane: &LaneView) -> (Option<u64>, Option<u64>) {
    let sent = (lane.sent > 0 || lane.received == 0).then_some(lane.sent);
    let received = (lane.received > 0 || lane.sent == 0 || lane.depth > 0).then_some(lane.received);
    (sent, received)
}

fn carried(lane: &LaneView) -> bool {
    lane.sent > 0 || lane.received > 0 || lane.depth > 0 || lane.dropped.total() > 0
}

/// What went over channels that are closed, as one more row.
fn closed_channel(view: &StatisticsView) -> Option<ChannelView> {
    let lanes = view.closed_traffic.clone();
    let state = "open".to_owned();
    lanes.iter().any(carried).then(|| ChannelView {
        from: CLOSED.to_owned(),
        state,
        lanes,
        ..ChannelView::default()
    })
}

fn channel_name(channel: &ChannelView) -> String {
    if channel.to.is_empty() {
        return channel.from.clone();
    }
    format!("{} → {}", channel.from, channel.to)
}

fn channel_table(channels: &[ChannelView], all: bool, output: &OutputOptions) -> Option<String> {
    const HEADINGS: [&str; 13] = [
        "CHANNEL",
        "LANE",
        "SENT",
        "RECEIVED",
        "BYTES",
        "IN FLIGHT",
        "MOST",
        "ROOM",
        "DROPPED",
        "P50",
        "P99",
        "P99.9",
        "STATE",
    ];
    let mut table = Table::new(&HEADINGS).right(&[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]).cut(&[12]);
    let (mut untold, mut drops) = (false, Vec::new());
    let known = |amount: Option<u64>| amount.map_or_else(|| ABSENT.to_owned(), number);
    let time = |latency: Option<Percentiles>, of: fn(&Percentiles) -> f64| {
        latency.map_or_else(|| ABSENT.to_owned(), |latency| micros(of(&latency)))
    };
    for channel in channels {
        let state = match (&*channel.state, &channel.closed_because) {
            ("open", _) => String::new(),
            (state, Some(why)) => format!("{state}: {why}"),
            (state, None) => state.to_owned(),
        };
        for lane in channel.lanes.iter().filter(|lane| all || carried(lane)) {
            let (sent, received) = ends(lane);
            untold |= sent.is_none() || received.is_none();
            let dropped = lane.dropped.total();
            if dropped > 0 || lane.dropped.full > 0 {
                drops.push((channel, lane));
            }
            table.styled_row([
                (channel_name(channel), Style::Plain),
                (lane.lane.clone(), Style::Plain),
                (known(sent), Style::Plain),
                (known(received), Style::Plain),
                (bytes(lane.bytes_sent.max(lane.bytes_received)), Style::Plain),
                (number(lane.depth), Style::Plain),
                (number(lane.high_water), Style::Plain),
                (if all { number(lane.capacity) } else { String::new() }, Style::Plain),
                (number(dropped), if dropped > 0 { Style::Warn } else { Style::Plain }),
                (time(lane.latency_us, |latency| latency.p50), Style::Plain),
                (time(lane.latency_us, |latency| latency.p99), Style::Plain),
                (time(lane.latency_us, |latency| latency.p999), Style::Plain),
                (state.clone(), Style::Bad),
            ]);
        }
    }
    if table.is_empty() {
        return None;
    }
    let mut text = table.without_silent(&[6, 7, 8, 9, 10, 11, 12]).render(output);
    if untold {
        let words = format!("{ABSENT} counted by the other end, which does not tell");
        let _ = writeln!(text, "{}", paint(&words, Style::Dim, output.color));
    }
    for (channel, lane) in drops {
        let reasons = lane.dropped.by_reason().into_iter().filter(|(_, amount)| *amount > 0);
        let reasons: Vec<String> =
            reasons.map(|(reason, amount)| format!("{} {reason}", number(amount))).collect();
        let name = format!("{} {}", channel_name(channel), lane.lane);
        let _ = writeln!(text, "dropped on {}: {}", plain(&name), reasons.join(", "));
    }
    Some(text)
}

fn topic_table(view: &StatisticsView, output: &OutputOptions) -> Option<String> {
    let mut table =
        Table::new(&["TOPIC", "PUBLISHER", "SUBSCRIBER", "WHEN SLOW", "SENT", "DELIVERED", "DROPPED"])
            .right(&[4, 5, 6])
            .cut(&[0, 1, 2]);
    for topic in &view.topics {
        table.styled_row([
            (topic.topic.clone(), Style::Plain),
            (topic.publisher.clone(), Style::Plain),
            (topic.subscriber.clone(), Style::Plain),
            (topic.rule.replace('_', " "), Style::Plain),
            (number(topic.sent), Style::Plain),
            (number(topic.delivered), Style::Plain),
            (number(topic.dropped), if topic.dropped > 0 { Style::Warn } else { Style::Plain }),
        ]);
    }
    (!table.is_empty()).then(|| table.render(output))
}

fn arena_table(view: &StatisticsView, output: &OutputOptions) -> Option<String> {
    let mut table =
        Table::new(&["ARENA", "IN USE", "MOST", "HAS", "LIMIT", "BLOCKS OUT", "WAS FULL", "TAKEN BACK"])
            .right(&[1, 2, 3, 4, 5, 6, 7])
            .cut(&[0]);
    for arena in &view.arenas {
        table.row([
            arena.owner.clone(),
            bytes(arena.in_use_bytes),
            bytes(arena.high_water_bytes),
            bytes(arena.committed_bytes),
            bytes(arena.limit_bytes),
            number(arena.blocks_out),
            number(arena.full_answers),
            number(arena.reclaimed_blocks),
        ]);
    }
    (!table.is_empty()).then(|| table.without_silent(&[6, 7]).render(output))
}

fn member_table(view: &StatisticsView, output: &OutputOptions) -> Option<String> {
    let mut table = Table::new(&["MEMBER", "KIND", "PID", "LIFE", "ATTACHED", "SUBMITTED", "ENDED"])
        .right(&[2, 3, 4, 5, 6])
        .cut(&[0]);
    for member in &view.members {
        table.row([
            member.id.clone(),
            member.kind.clone(),
            member.pid.to_string(),
            count(f64::from(member.incarnation)),
            duration(member.attached_s),
            number(member.submitted),
            number(member.ended),
        ]);
    }
    (!table.is_empty()).then(|| table.render(output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::action::{ArenaUsageView, DropsView, MemberView, TopicView};
    use std::collections::BTreeMap;

    const OUTPUT: OutputOptions = OutputOptions { json: false, quiet: true, color: false, width: 80 };

    fn lane(name: &str, sent: u64, received: u64) -> LaneView {
        let (bytes_sent, bytes_received) = (sent * 50, received * 50);
        LaneView { lane: name.into(), sent, received, bytes_sent, bytes_received, ..LaneView::default() }
    }

    fn channel(from: &str, to: &str, lanes: Vec<LaneView>) -> ChannelView {
        ChannelView { from: from.into(), to: to.into(), state: "open".into(), closed_because: None, lanes }
    }

    fn quiet() -> StatisticsView {
        StatisticsView {
            tasks: TaskCounts { total: 1_234, succeeded: 1_233, failed: 1, ..TaskCounts::default() },
            results_refused: 0,
            experience_dropped: 0,
            latency_us: BTreeMap::from([
                ("total".into(), Percentiles { p50: 1.5, p99: 20.0, p999: 900.0, max: 1_500.0, mean: 2.0 }),
                ("queue".into(), Percentiles::default()),
            ]),
            channels: vec![
                channel(
                    "supervisor",
                    "optimization-0",
                    vec![lane("control", 0, 0), lane("normal", 1_234_567, 0)],
                ),
                channel("optimization-0", "supervisor", vec![lane("control", 0, 1), lane("bulk", 0, 0)]),
            ],
            topics: Vec::new(),
            arenas: Vec::new(),
            members: Vec::new(),
            closed_traffic: Vec::new(),
            closed_channels: BTreeMap::new(),
            turns: 1_000,
            busy_turns: 120,
            sleeps: 1,
            wakes: 0,
        }
    }

    #[test]
    fn a_quiet_swarm_has_a_narrow_table_of_what_carried_anything() {
        let text = text(&quiet(), false, &OUTPUT);
        for words in [
            "tasks      1,234 in all, 1,233 succeeded, 1 failed\n",
            "loop       1,000 turns, 12 % of them with work; slept once, woke agents never\n",
            "\nLATENCY     MEAN      P50      P99   P99.9  LONGEST\n",
            "CHANNEL                      LANE          SENT  RECEIVED     BYTES  IN FLIGHT\n",
            "supervisor → optimization-0  normal   1,234,567         —  58.9 MiB          0\n",
            "optimization-0 → supervisor  control          —         1      50 B          0\n",
            "— counted by the other end",
        ] {
            assert!(text.contains(words), "{text}\n  should say\n{words}");
        }
        for absent in ["bulk", "DROPPED", "P50\n", "STATE", "TOPIC", "ARENA", "MEMBER", "closed", "waiting"] {
            assert!(!text.contains(absent), "{text}\n  should not say {absent:?}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let all = super::text(&quiet(), true, &OUTPUT);
        assert!(all.contains("bulk"), "{all}");
        assert_eq!(all.matches(" control ").count(), 2, "{all}");
    }

    #[test]
    fn drops_latencies_topics_arenas_and_members_are_shown() {
        let mut view = quiet();
        let dropped = DropsView { full: 3, deadline: 1, ..DropsView::default() };
        let latency = Percentiles { p50: 0.5, p99: 33.0, p999: 1_500.0, ..Percentiles::default() };
        view.channels = vec![ChannelView {
            state: "closed".into(),
            closed_because: Some("corrupt: sequence".into()),
            ..channel(
                "a",
                "b\x1b[2J",
                vec![LaneView {
                    dropped,
                    depth: 12,
                    high_water: 64,
                    capacity: 4096,
                    latency_us: Some(latency),
                    ..lane("normal", 9, 0)
                }],
            )
        }];
        view.topics = vec![TopicView {
            topic: "prices".into(),
            publisher: "a".into(),
            subscriber: "b".into(),
            rule: "drop_oldest".into(),
            sent: 9,
            delivered: 7,
            dropped: 2,
        }];
        view.arenas = vec![ArenaUsageView {
            owner: "a".into(),
            limit_bytes: 1 << 30,
            committed_bytes: 1 << 20,
            reclaimed_blocks: 5,
            ..ArenaUsageView::default()
        }];
        view.members = vec![MemberView {
            id: "planner".into(),
            kind: "client".into(),
            pid: 42,
            ..MemberView::default()
        }];
        view.closed_channels = BTreeMap::from([("corrupt".into(), 1), ("gone".into(), 2)]);
        let gone = DropsView { gone: 3, ..DropsView::default() };
        view.closed_traffic = vec![LaneView { dropped: gone, ..lane("bulk", 20, 17) }];
        (view.results_refused, view.experience_dropped) = (4, 5);
        let text = text(&view, true, &OutputOptions { width: 140, ..OUTPUT });
        for words in [
            "results    4 refused: late, foreign or repeated\n",
            "experience 5 finished tasks",
            "         12    64  4,096        1  500 ns  33.0 µs  1.50 ms  closed: corrupt: sequence\n",
            "dropped on a → b\\u{1b}[2J normal: 3 found no room, 1 no room before their deadline\n",
            "all that are closed",
            "dropped on all that are closed bulk: 3 receiver gone",
            "prices  a          b           drop oldest     9          7        2\n",
            "BLOCKS OUT  TAKEN BACK\n",
            "planner  client   42",
            "closed     1 channel: corrupt\n           2 channels: gone\n",
        ] {
            assert!(text.contains(words), "{text}\n  should say\n{words}");
        }
        assert!(!text.contains("WAS FULL") && !text.contains("other end"), "{text}");
    }
}
