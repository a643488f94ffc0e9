//! What a swarm with nothing to do costs: processor time and memory of all its processes.

use super::{Figure, Limit, swarm};
use crate::config::SwarmConfig;
use crate::os::clock;
use crate::supervisor::OnEnd;
use anyhow::Context as _;
use std::time::Duration;

pub(super) fn measure(quick: bool, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let mut supervisor = swarm(config)?;
    // Past the start, and past the first look at everything.
    let settled = Duration::from_secs(if quick { 3 } else { 5 });
    supervisor.run_until_deadline(clock::now().plus(settled), |_| false);
    let span = Duration::from_secs(if quick { 10 } else { 60 });
    let pids = family()?;
    let before = cpu_seconds(&pids)?;
    let began = clock::now();
    supervisor.run_until_deadline(began.plus(span), |_| false);
    let seconds = clock::now().since(began).as_secs_f64();
    let used = cpu_seconds(&pids)? - before;
    let memory = pids.iter().map(|pid| proportional_set_bytes(*pid)).sum::<anyhow::Result<f64>>()?;
    supervisor.shut_down(OnEnd::Drain);
    Ok(vec![
        Figure {
            bench: "idle",
            name: "idle_cpu".to_owned(),
            value: 100.0 * used / seconds,
            unit: "% of a core",
            limit: Some(Limit::AtMost(0.3)),
            note: format!("{} processes over {seconds:.0} s, user and kernel time", pids.len()),
            ..Figure::default()
        },
        Figure {
            bench: "idle",
            name: "idle_memory".to_owned(),
            value: memory / (1024.0 * 1024.0),
            unit: "MiB",
            limit: Some(Limit::AtMost(40.0)),
            note: "proportional set size of all processes".to_owned(),
            ..Figure::default()
        },
    ])
}

/// This process and its children.
fn family() -> anyhow::Result<Vec<u32>> {
    let me = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{me}/task/{me}/children"))?;
    let mut pids = vec![me];
    pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    Ok(pids)
}

/// Time on processors so far, from the scheduler's nanosecond account of every thread.
fn cpu_seconds(pids: &[u32]) -> anyhow::Result<f64> {
    let mut total = 0.0;
    for pid in pids {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            total += text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    Ok(total / 1e9)
}

fn proportional_set_bytes(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("no Pss line in smaps_rollup")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib * 1024.0)
}
