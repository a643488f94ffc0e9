//! No-op tasks: from submission to result, one at a time and in bulk.

use super::{Figure, Limit, quantile, sorted, swarm};
use crate::base::clock::Nanos;
use crate::config::{Count, SwarmConfig};
use crate::kernels::KernelId;
use crate::os::clock;
use crate::supervisor::{OnEnd, Supervisor};
use crate::tasks::TaskSpec;
use anyhow::ensure;
use std::time::Duration;

pub(super) fn measure(quick: bool, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    // One agent on a core of its own: both sides stay awake. That needs two cores.
    let mut alone = config.clone();
    alone.agents.compute.count = Count::Exactly(1);
    let mut supervisor = swarm(&alone)?;
    wait_ready(&mut supervisor, 1)?;
    let shared = supervisor
        .plan()
        .assignments
        .iter()
        .any(|seat| seat.kind == "compute" && seat.core == supervisor.plan().supervisor);
    let how = if shared {
        "agent and supervisor share the only core: a context switch each way"
    } else {
        "both sides spin, each on its core"
    };

    let (warm, rounds) = if quick { (5_000, 20_000) } else { (20_000, 200_000) };
    let mut times = Vec::with_capacity(rounds);
    for round in 0..warm + rounds {
        let took = round_trip(&mut supervisor)?;
        if round >= warm {
            times.push(took);
        }
    }
    let times = sorted(times);
    figures.push(Figure {
        bench: "dispatch",
        name: "noop_round_trip".to_owned(),
        value: quantile(&times, 0.5),
        unit: "us",
        limit: Some(Limit::AtMost(5.0)),
        p50: Some(quantile(&times, 0.5)),
        p99: Some(quantile(&times, 0.99)),
        note: format!("submit to result, one at a time; {how}"),
        ..Figure::default()
    });

    let mut asleep = Vec::new();
    for _ in 0..if quick { 30 } else { 100 } {
        let pause = clock::now().plus(Duration::from_millis(20));
        supervisor.run_until_deadline(pause, |_| false);
        asleep.push(round_trip(&mut supervisor)?);
    }
    let asleep = sorted(asleep);
    figures.push(Figure {
        bench: "dispatch",
        name: "noop_round_trip_asleep".to_owned(),
        value: quantile(&asleep, 0.5),
        unit: "us",
        limit: Some(Limit::AtMost(70.0)),
        p50: Some(quantile(&asleep, 0.5)),
        p99: Some(quantile(&asleep, 0.99)),
        note: "the agent sleeps and is woken through the kernel".to_owned(),
        ..Figure::default()
    });

    let total = if quick { 200_000 } else { 1_000_000 };
    let mut rates = Vec::new();
    for _ in 0..if quick { 3 } else { 5 } {
        rates.push(rate(&mut supervisor, total)?);
    }
    let rates = sorted(rates);
    figures.push(Figure {
        bench: "dispatch",
        name: "noop_rate".to_owned(),
        value: quantile(&rates, 0.5),
        unit: "tasks/s",
        limit: Some(Limit::AtLeast(200_000.0)),
        p50: Some(quantile(&rates, 0.5)),
        note: format!("{total} tasks submitted as fast as they are taken, median of {} runs", rates.len()),
        ..Figure::default()
    });
    supervisor.shut_down(OnEnd::Drain);
    Ok(figures)
}

/// Turns the loop until so many compute agents take work.
pub(super) fn wait_ready(supervisor: &mut Supervisor, agents: usize) -> anyhow::Result<()> {
    let deadline = clock::now().plus(Duration::from_secs(20));
    supervisor.run_until_deadline(deadline, |supervisor| supervisor.ready_compute_agents() >= agents);
    ensure!(supervisor.ready_compute_agents() >= agents, "the compute agents are not ready after 20 s");
    // Let the housekeeping agents come up as well, so that their start is not measured.
    supervisor.run_until_deadline(clock::now().plus(Duration::from_millis(300)), |_| false);
    Ok(())
}

pub(super) fn noop() -> TaskSpec {
    TaskSpec { kernel: KernelId::Noop.code(), kernel_name: "noop", ..TaskSpec::default() }
}

/// One no-op task from submission to result, us.
pub(super) fn round_trip(supervisor: &mut Supervisor) -> anyhow::Result<f64> {
    let began: Nanos = clock::now();
    let id = supervisor.submit_one(noop())?;
    while supervisor.ledger().counts().open() > 0 {
        if supervisor.turn() == 0 && clock::now().since(began) > Duration::from_micros(200) {
            // Lost in a queue or on a sleeping agent: wait properly.
            supervisor.rest(None);
        }
    }
    let took = clock::now().since(began).as_nanos() as f64 / 1000.0;
    let state = supervisor.ledger().get(id).map(|task| task.state);
    ensure!(state == Some(crate::tasks::TaskState::Succeeded), "the task ended as {state:?}");
    Ok(took)
}

/// Tasks per second when as many wait as are taken.
fn rate(supervisor: &mut Supervisor, total: usize) -> anyhow::Result<f64> {
    let before = supervisor.ledger().counts().succeeded;
    let began = clock::now();
    let mut submitted = 0;
    while supervisor.ledger().counts().succeeded - before < total as u64 {
        while submitted < total && supervisor.ledger().queued() < 1024 {
            supervisor.submit_one(noop())?;
            submitted += 1;
        }
        supervisor.turn();
        ensure!(clock::now().since(began) < Duration::from_secs(120), "the tasks do not end");
    }
    Ok(total as f64 / clock::now().since(began).as_secs_f64())
}
