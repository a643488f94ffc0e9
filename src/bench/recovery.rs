//! kill -9 of an agent: until it is noticed, until its successor is ready, until its task is done elsewhere.

use super::dispatch::{noop, wait_ready};
use super::{Figure, Limit, quantile, sorted, swarm};
use crate::config::SwarmConfig;
use crate::os::clock;
use crate::supervisor::action::{Action, AgentView, Reply};
use crate::supervisor::{OnEnd, Supervisor};
use anyhow::{Context as _, bail, ensure};
use std::time::Duration;

pub(super) fn measure(quick: bool, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let mut supervisor = swarm(config)?;
    let agents = supervisor.plan().compute_count();
    ensure!(agents > 0, "recovery needs a compute agent");
    wait_ready(&mut supervisor, agents)?;
    let (mut noticed, mut ready, mut done) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..if quick { 40 } else { 300 } {
        // Something to do first: an agent that achieved nothing would be restarted with a pause.
        let ids = (0..agents * 4).map(|_| supervisor.submit_one(noop())).collect::<Result<Vec<_>, _>>()?;
        run_until(&mut supervisor, |supervisor| supervisor.ledger().counts().open() == 0)?;
        drop(ids);
        let victim = format!("compute-{}", round % agents);
        let before = agent(&mut supervisor, &victim)?;
        ask(&mut supervisor, Action::KillAgent(victim.clone()))?;
        let killed = clock::now();
        let id = supervisor.submit_one(noop())?;
        run_until(&mut supervisor, |supervisor| {
            supervisor.ledger().get(id).is_some_and(|task| task.state.is_final())
        })?;
        done.push(clock::now().since(killed).as_nanos() as f64 / 1e6);
        run_until(&mut supervisor, |supervisor| supervisor.recovered() > round)?;
        let after = agent(&mut supervisor, &victim)?;
        ensure!(after.incarnation == before.incarnation + 1, "the agent was not replaced");
        let Reply::Report(report) = ask(&mut supervisor, Action::Report { all_tasks: false })? else {
            bail!("unexpected answer")
        };
        let recovery = report.recoveries.last().context("no recovery on record")?;
        noticed.push(recovery.detect_us.context("the death was not timed")? / 1e3);
        ready.push((recovery.detect_us.unwrap_or(0.0) + recovery.ready_us.context("no successor")?) / 1e3);
    }
    let counts = supervisor.ledger().counts();
    supervisor.shut_down(OnEnd::Drain);
    ensure!(
        counts.succeeded == counts.total && counts.duplicated == 0,
        "tasks were lost or done twice: {counts:?}"
    );
    let figure = |name: &str, values: Vec<f64>, limit: f64, note: &str| {
        let values = sorted(values);
        Figure {
            bench: "recovery",
            name: name.to_owned(),
            value: quantile(&values, 0.5),
            unit: "ms",
            limit: Some(Limit::AtMost(limit)),
            p50: Some(quantile(&values, 0.5)),
            p99: Some(quantile(&values, 0.99)),
            note: note.to_owned(),
            ..Figure::default()
        }
    };
    Ok(vec![
        figure("noticed", noticed, 0.3, "kill -9 to the supervisor knowing"),
        figure("cold_takeover", ready, 3.0, "kill -9 to a fresh process saying that it is ready"),
        figure("lost_task_done", done, 2.0, "a no-op submitted right after the kill, to its result"),
    ])
}

fn run_until(supervisor: &mut Supervisor, done: impl Fn(&Supervisor) -> bool) -> anyhow::Result<()> {
    let deadline = clock::now().plus(Duration::from_secs(30));
    supervisor.run_until_deadline(deadline, |supervisor| done(supervisor));
    ensure!(done(supervisor), "nothing happened for 30 s");
    Ok(())
}

/// Asks the supervisor that this very thread turns.
fn ask(supervisor: &mut Supervisor, action: Action) -> anyhow::Result<Reply> {
    let (sender, receiver) = crossbeam::channel::bounded(1);
    supervisor.handle().ask(
        action,
        Box::new(move |reply| {
            let _ = sender.send(reply);
        }),
    );
    supervisor.turn();
    receiver.try_recv().context("no answer")
}

fn agent(supervisor: &mut Supervisor, id: &str) -> anyhow::Result<AgentView> {
    match ask(supervisor, Action::Agent(id.to_owned()))? {
        Reply::Agent(view) => Ok(*view),
        other => bail!("unexpected answer {other:?}"),
    }
}
