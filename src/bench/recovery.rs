//! kill -9 of an agent: until it is noticed, until a standby or a fresh process has its place, until its task is done; and
//! what its neighbours do meanwhile. SIGSTOP: until it is found.

use super::dispatch::{noop, wait_ready};
use super::{Figure, Limit, quantile, sorted, swarm};
use crate::base::clock::Nanos;
use crate::base::prng::SplitMix64;
use crate::config::{Count, SwarmConfig};
use crate::jobs;
use crate::os::{clock, process};
use crate::supervisor::action::{Action, AgentView, Recovery, Reply};
use crate::supervisor::{OnEnd, Supervisor, is_agent};
use crate::tasks::{TaskSpec, TaskState};
use anyhow::{Context as _, bail, ensure};
use crossbeam::channel::{Receiver, Sender};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Memory of a large agent when it is killed, bytes.
const LARGE: u64 = 1 << 30;
/// Side of a matrix of more than that, which makes an agent large: the product of a column and a row.
const LARGE_SIDE: usize = 18432;
/// Agents are killed in the middle of a life: who dies right after its birth is taken for one that cannot live, and is
/// restarted later and later.
const LIFE: Duration = Duration::from_millis(40);
/// The supervisor is at rest by then.
const SETTLE: Duration = Duration::from_millis(2);
/// A stopped agent is taken for hung after a quarter of a second.
const STOPPED: Duration = Duration::from_millis(150);
/// A stopped agent is found within this time, ms: what `agents.fault.hang_after_s` is by default.
const FOUND_MS: f64 = 250.0;
/// Whose throughput is measured while one of the others dies.
const NEIGHBOURS: [&str; 2] = ["compute-0", "compute-1"];
const VICTIMS: [&str; 2] = ["compute-2", "compute-3"];
/// One of them dies so often,
const DIES_EVERY: Duration = Duration::from_millis(10);
/// for so long, in turns with as long undisturbed.
const STORM: Duration = Duration::from_secs(2);
/// No act of recovery may take longer, ms.
const LONGEST_MS: f64 = 50.0;

pub(super) fn measure(quick: bool, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let rounds = if quick { 40 } else { 300 };
    let mut config = config.clone();
    // An agent that is large and does not give its task up in time is killed for it; that is no crash loop here.
    config.agents.fault.restart_limit = u32::MAX;
    let config = &config;
    let mut warm_config = config.clone();
    warm_config.agents.compute.standbys = config.agents.compute.standbys.max(1);
    let warm = takeovers(rounds, &warm_config)?;
    let mut cold = config.clone();
    cold.agents.compute.standbys = 0;
    let cold = takeovers(rounds, &cold)?;
    let mut alone = warm_config.clone();
    alone.agents.compute.count = Count::Exactly(1);
    let alone = takeovers(rounds / 2, &alone)?;
    let large = large_takeovers(if quick { 5 } else { 20 }, config)?;
    let noticed = [warm.noticed, cold.noticed].concat();
    let lost = [warm.lost, cold.lost].concat();
    let all = [
        [&noticed, &lost, &warm.ready],
        [&cold.ready, &alone.noticed, &alone.ready],
        [&alone.lost, &large.noticed, &large.ready],
    ]
    .concat();
    let acts: usize = all.iter().map(|times| times.len()).sum();
    let longest = all.into_iter().flatten().copied().fold(0.0, f64::max);
    let found = hangs(if quick { 10 } else { 60 }, config)?;
    let garbled = garbled(if quick { 20 } else { 150 }, config)?;
    let mut figures = vec![neighbours(if quick { 2 } else { 5 }, config)?];
    let gone = supervisor_deaths(if quick { 10 } else { 100 })?;
    let large_gone = large_supervisor_deaths(if quick { 5 } else { 20 })?;
    let rows = [
        ("noticed", noticed, 0.3, 5.0, "kill -9 to the supervisor knowing"),
        ("warm_takeover", warm.ready, 0.5, 5.0, "kill -9 to a standby pinned in its place"),
        ("cold_takeover", cold.ready, 3.0, 10.0, "kill -9 to a fresh process saying that it is ready"),
        (
            "lost_task_done",
            lost,
            2.0,
            10.0,
            "kill -9 of the agent that held no-op tasks, to the result of the last",
        ),
        (
            "successor_result",
            alone.lost,
            2.0,
            10.0,
            "kill -9 of the only agent, which held no-op tasks, to the result of the last from its successor",
        ),
        ("noticed_1gib", large.noticed, 10.0, 10.0, "kill -9 of an agent of 1 GiB to the supervisor knowing"),
        (
            "takeover_1gib",
            large.ready,
            10.0,
            10.0,
            "kill -9 of an agent of 1 GiB to its successor being ready",
        ),
        ("hang_found", found, FOUND_MS, FOUND_MS, "SIGSTOP of a compute agent to its incident"),
        (
            "garbage_found",
            garbled,
            10.0,
            10.0,
            "noise all over what an agent at work writes, to its incident",
        ),
        (
            "supervisor_gone",
            gone,
            10.0,
            10.0,
            "kill -9 of the supervisor, of every second one with an agent stopped, to the end of its last agent",
        ),
        (
            "supervisor_gone_1gib",
            large_gone,
            50.0,
            50.0,
            "kill -9 of the supervisor, one of whose agents has 1 GiB, to the end of the last",
        ),
    ];
    for (name, values, p50, p99, note) in rows {
        let values = sorted(values);
        let count = values.len();
        // Of none there is no time, and no limit is kept.
        let at = |share| if count > 0 { quantile(&values, share) } else { f64::NAN };
        let note = format!("{note}; {count} of them, the longest {:.2} ms", at(1.0));
        figures.push(Figure {
            p50: Some(at(0.5)),
            p99: Some(at(0.99)),
            ..figure(name.to_owned(), at(0.5), p50, note)
        });
        let note = format!("of {name}, the 99th percentile");
        figures.push(figure(format!("{name}_p99"), at(0.99), p99, note));
    }
    let note =
        format!("the longest of {acts} acts of recovery above, but hangs, garbage and deaths of supervisors");
    figures.push(figure("longest".to_owned(), longest, LONGEST_MS, note));
    Ok(figures)
}

fn figure(name: String, value: f64, limit: f64, note: String) -> Figure {
    Figure {
        bench: "recovery",
        name,
        value,
        unit: "ms",
        limit: Some(Limit::AtMost(limit)),
        note,
        ..Figure::default()
    }
}

/// Times in ms.
#[derive(Default)]
struct Times {
    noticed: Vec<f64>,
    ready: Vec<f64>,
    lost: Vec<f64>,
}

impl Times {
    fn add(&mut self, killed: Nanos, recovery: &Recovery) -> anyhow::Result<()> {
        let noticed = recovery.noticed.context("the death was not timed")?.since(killed).as_secs_f64() * 1e3;
        self.noticed.push(noticed);
        self.ready.push(noticed + recovery.ready_us.context("no successor")? / 1e3);
        Ok(())
    }
}

/// Kills as a stranger does: a thread that the supervisor does not know of, which may run anywhere.
struct Killer {
    orders: Sender<Pid>,
    killed: Receiver<Nanos>,
}

impl Killer {
    /// Before the supervisor pins its thread, and with it those that come later.
    fn start() -> Self {
        let (orders, victims) = crossbeam::channel::unbounded();
        let (done, killed) = crossbeam::channel::unbounded();
        std::thread::spawn(move || {
            for victim in victims {
                std::thread::sleep(SETTLE);
                let now = clock::now();
                // One that is gone already is missed by whoever waits for its successor.
                let _ = kill_process(victim, Signal::KILL);
                let _ = done.send(now);
            }
        });
        Self { orders, killed }
    }

    /// A moment from now.
    fn order(&self, victim: &AgentView) -> anyhow::Result<()> {
        let pid = victim.pid.and_then(|pid| Pid::from_raw(pid as i32)).context("it runs")?;
        Ok(self.orders.send(pid)?)
    }

    /// When it was killed.
    fn killed(&self) -> anyhow::Result<Nanos> {
        Ok(self.killed.recv_timeout(Duration::from_secs(30))?)
    }
}

/// Kills compute agents in turn: first one that is idle, then one that holds a task which it cannot finish.
fn takeovers(rounds: usize, config: &SwarmConfig) -> anyhow::Result<Times> {
    let killer = Killer::start();
    let mut supervisor = swarm(config)?;
    let agents = supervisor.plan().compute_count();
    ensure!(agents > 0, "recovery needs a compute agent");
    wait_ready(&mut supervisor, agents)?;
    let mut times = Times::default();
    for round in 0..rounds {
        let victim = format!("compute-{}", round % agents);
        live(&mut supervisor)?;
        let (killed, recovery) = kill(&mut supervisor, &killer, &victim)?;
        times.add(killed, &recovery)?;
        live(&mut supervisor)?;
        times.lost.extend(lose_a_task(&mut supervisor, &killer, &victim)?);
    }
    ensure!(times.lost.len() > rounds / 2, "tasks came to {} of {rounds} stopped agents", times.lost.len());
    let counts = supervisor.ledger().counts();
    supervisor.shut_down(OnEnd::Drain);
    ensure!(
        counts.succeeded == counts.total && counts.duplicated == 0,
        "tasks were lost or done twice: {counts:?}"
    );
    Ok(times)
}

/// Has an agent killed and waits for its successor.
fn kill(supervisor: &mut Supervisor, killer: &Killer, victim: &str) -> anyhow::Result<(Nanos, Recovery)> {
    let before = agent(supervisor, victim)?;
    let recovered = supervisor.recovered();
    killer.order(&before)?;
    run_until(supervisor, |supervisor| supervisor.recovered() > recovered)?;
    let after = agent(supervisor, victim)?;
    ensure!(after.incarnation == before.incarnation + 1, "the agent was not replaced");
    let Reply::Report(report) = ask(supervisor, Action::Report { all_tasks: false })? else {
        bail!("unexpected answer")
    };
    let recovery = report.recoveries.into_iter().next_back().context("no recovery on record")?;
    Ok((killer.killed()?, recovery))
}

/// From the kill of an agent that holds no-op tasks to the last result of those, ms. The agent is stopped first: a no-op
/// that runs cannot be caught. `None` when it got no task before it was taken for hung: others were quick enough.
fn lose_a_task(supervisor: &mut Supervisor, killer: &Killer, victim: &str) -> anyhow::Result<Option<f64>> {
    let before = agent(supervisor, victim)?;
    let pid = before.pid.context("it runs")?;
    let pid = Pid::from_raw(pid as i32).context("a process number")?;
    kill_process(pid, Signal::STOP)?;
    // As many as make every agent get some; the others are done with theirs soon.
    let deadline = clock::now().plus(STOPPED);
    while agent(supervisor, victim)?.in_flight == 0 {
        if clock::now() > deadline {
            // Going on, it is one that lives; if it was replaced meanwhile, there is nobody to tell.
            let _ = kill_process(pid, Signal::CONT);
            run_until(supervisor, |supervisor| supervisor.ledger().counts().open() == 0)?;
            return Ok(None);
        }
        for _ in 0..64 {
            supervisor.submit_one(noop())?;
        }
        supervisor.run_until_deadline(clock::now().plus(Duration::from_millis(2)), |_| false);
    }
    let recovered = supervisor.recovered();
    killer.order(&before)?;
    run_until(supervisor, |supervisor| supervisor.ledger().counts().open() == 0)?;
    let took = clock::now().since(killer.killed()?).as_secs_f64() * 1e3;
    run_until(supervisor, |supervisor| supervisor.recovered() > recovered)?;
    Ok(Some(took))
}

/// Stops idle agents in turn; from the signal to the incident on record, ms.
fn hangs(rounds: usize, config: &SwarmConfig) -> anyhow::Result<Vec<f64>> {
    let mut supervisor = swarm(config)?;
    let agents = supervisor.plan().compute_count();
    wait_ready(&mut supervisor, agents)?;
    let mut times = Vec::new();
    for round in 0..rounds {
        let victim = format!("compute-{}", round % agents);
        live(&mut supervisor)?;
        let seen = last_event(&mut supervisor)?;
        let pid = agent(&mut supervisor, &victim)?.pid.context("it runs")?;
        let recovered = supervisor.recovered();
        let began = clock::now();
        kill_process(Pid::from_raw(pid as i32).context("a process number")?, Signal::STOP)?;
        while !is_incident_open(&mut supervisor, seen, &victim, "frozen")? {
            ensure!(clock::now().since(began) < Duration::from_secs(30), "{victim} was not found in 30 s");
            supervisor.run_until_deadline(clock::now().plus(Duration::from_millis(1)), |_| false);
        }
        times.push(clock::now().since(began).as_secs_f64() * 1e3);
        run_until(&mut supervisor, |supervisor| supervisor.recovered() > recovered)?;
    }
    supervisor.shut_down(OnEnd::Drain);
    Ok(times)
}

/// Writes noise over the channel of agents in turn, as they would themselves, while tasks go to and fro; until the incident is on
/// record, ms.
fn garbled(rounds: usize, config: &SwarmConfig) -> anyhow::Result<Vec<f64>> {
    let mut config = config.clone();
    // It is an agent's own doing, and restarted later and later; here it shall come back at once.
    config.agents.fault.backoff_max = DIES_EVERY;
    let mut supervisor = swarm(&config)?;
    let agents = supervisor.plan().compute_count();
    wait_ready(&mut supervisor, agents)?;
    let mut random = SplitMix64::new(rounds as u64);
    let mut times = Vec::new();
    for round in 0..rounds {
        let victim = format!("compute-{}", round % agents);
        live(&mut supervisor)?;
        let seen = last_event(&mut supervisor)?;
        let pid = agent(&mut supervisor, &victim)?.pid.context("it runs")?;
        let recovered = supervisor.recovered();
        let mapped = process::writable_shared(pid)?;
        let is_channel = |(name, _): &&(String, Range<u64>)| name.starts_with("ai_swarm-up");
        let (_, place) = mapped.iter().find(is_channel).context("it has a channel")?;
        let noise: Vec<u8> =
            (place.start..place.end).step_by(8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        let began = clock::now();
        let memory = File::options().write(true).open(format!("/proc/{pid}/mem"));
        if let Err(error) = memory.and_then(|memory| memory.write_all_at(&noise, place.start)) {
            tracing::warn!(
                "garbage_found is not measured: the memory of an agent cannot be written: {error}"
            );
            break;
        }
        while !is_incident_open(&mut supervisor, seen, &victim, "garbage")? {
            // It stumbled over the noise itself, which is no find of ours.
            if is_incident_open(&mut supervisor, seen, &victim, "crash")? {
                break;
            }
            ensure!(clock::now().since(began) < Duration::from_secs(30), "{victim} was not found in 30 s");
            if supervisor.ledger().queued() < 64 {
                supervisor.submit_one(noop())?;
            }
            supervisor.run_until_deadline(clock::now().plus(Duration::from_micros(20)), |_| false);
        }
        let took = clock::now().since(began).as_secs_f64() * 1e3;
        if is_incident_open(&mut supervisor, seen, &victim, "garbage")? {
            times.push(took);
        }
        run_until(&mut supervisor, |supervisor| supervisor.recovered() > recovered)?;
    }
    run_until(&mut supervisor, |supervisor| supervisor.ledger().counts().open() == 0)?;
    let counts = supervisor.ledger().counts();
    supervisor.shut_down(OnEnd::Drain);
    ensure!(
        counts.succeeded == counts.total && counts.duplicated == 0,
        "tasks were lost or done twice: {counts:?}"
    );
    Ok(times)
}

fn last_event(supervisor: &mut Supervisor) -> anyhow::Result<u64> {
    let Reply::Events { events, .. } = ask(supervisor, Action::Events(0))? else {
        bail!("unexpected answer")
    };
    Ok(events.last().map_or(0, |event| event.seq))
}

/// Whether a failure of this class was found in this agent.
fn is_incident_open(supervisor: &mut Supervisor, after: u64, id: &str, class: &str) -> anyhow::Result<bool> {
    let Reply::Events { events, .. } = ask(supervisor, Action::Events(after))? else {
        bail!("unexpected answer")
    };
    let class = format!(": {class}: ");
    Ok(events.iter().any(|event| {
        event.kind == "incident_opened" && event.agent.as_deref() == Some(id) && event.text.contains(&class)
    }))
}

/// What two agents do while a third dies again and again, as a share of what they do undisturbed. Their tasks sleep: what is
/// measured is how well they are kept at work, not how many cores there are.
fn neighbours(rounds: usize, config: &SwarmConfig) -> anyhow::Result<Figure> {
    let mut config = config.clone();
    config.agents.compute.count = Count::Exactly(NEIGHBOURS.len() + VICTIMS.len());
    // Who dies again and again right after its birth is restarted later and later; here it shall come back at once.
    config.agents.fault.backoff_max = DIES_EVERY;
    let mut supervisor = swarm(&config)?;
    wait_ready(&mut supervisor, NEIGHBOURS.len() + VICTIMS.len())?;
    let task = json!({"kernel": "sleep", "params": {"seconds": 0.004}});
    let task = jobs::parse_task(&task, 1, Path::new("/"), &jobs::Defaults { timeout: None, retries: 2 })
        .map_err(|refused| anyhow::anyhow!(refused.error))?;
    let (mut shares, mut kills) = (Vec::new(), 0);
    // The first span warms up: costs are learned in it.
    phase(&mut supervisor, &task, None)?;
    for _ in 0..rounds {
        let quiet = phase(&mut supervisor, &task, None)?;
        let stormy = phase(&mut supervisor, &task, Some(&mut kills))?;
        shares.push(stormy / quiet);
    }
    run_until(&mut supervisor, |supervisor| supervisor.ledger().counts().open() == 0)?;
    for id in NEIGHBOURS {
        ensure!(agent(&mut supervisor, id)?.restarts == 0, "{id} was restarted");
    }
    let counts = supervisor.ledger().counts();
    supervisor.shut_down(OnEnd::Drain);
    ensure!(
        counts.succeeded == counts.total && counts.duplicated == 0,
        "tasks were lost or done twice: {counts:?}"
    );
    let spans = rounds as f64 * STORM.as_secs_f64();
    // Fewer, and it is not what was to be measured.
    let are_enough = kills as f64 * DIES_EVERY.as_secs_f64() >= 0.8 * spans;
    let shares = sorted(shares);
    Ok(Figure {
        bench: "recovery",
        name: "neighbours_rate".to_owned(),
        value: if are_enough { quantile(&shares, 0.5) } else { f64::NAN },
        unit: "share",
        limit: Some(Limit::AtLeast(0.9)),
        note: format!(
            "tasks of two agents while one of two others is killed every {} ms ({kills} kills in {spans} s), against none dying; \
             the worst of {rounds} turns {:.3}{}",
            DIES_EVERY.as_millis(),
            quantile(&shares, 0.0),
            if are_enough { "" } else { "; too few kills to say, on a host as busy as this" }
        ),
        ..Figure::default()
    })
}

/// Tasks per second of the neighbours, while one of the others after the other is killed if there is a count for it.
fn phase(supervisor: &mut Supervisor, task: &TaskSpec, mut kills: Option<&mut u64>) -> anyhow::Result<f64> {
    let done = |supervisor: &mut Supervisor| -> anyhow::Result<u64> {
        NEIGHBOURS.iter().map(|id| Ok(agent(supervisor, id)?.tasks)).sum()
    };
    let (before, began) = (done(supervisor)?, clock::now());
    let mut victims = VICTIMS;
    while clock::now().since(began) < STORM {
        while supervisor.ledger().queued() < 300 {
            supervisor.submit_one(task.clone())?;
        }
        if let Some(kills) = &mut kills {
            // The place of the one that was killed last may still be empty.
            victims.rotate_left(1);
            for id in victims {
                let pid = agent(supervisor, id)?.pid.and_then(|pid| Pid::from_raw(pid as i32));
                if pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()) {
                    **kills += 1;
                    break;
                }
            }
        }
        supervisor.run_until_deadline(clock::now().plus(DIES_EVERY), |_| false);
    }
    Ok((done(supervisor)? - before) as f64 / clock::now().since(began).as_secs_f64())
}

/// Kills an agent whose memory takes the kernel tens of milliseconds to tear down.
fn large_takeovers(rounds: usize, config: &SwarmConfig) -> anyhow::Result<Times> {
    in_a_folder(|folder| large_takeovers_in(folder, rounds, config))
}

fn in_a_folder<T>(work: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let folder = std::env::temp_dir().join(format!("ai_swarm-recovery-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = work(&folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

/// A column and a row whose product is large.
fn write_strips(folder: &Path) -> anyhow::Result<()> {
    for (name, shape) in [("column.npy", [LARGE_SIDE, 1]), ("row.npy", [1, LARGE_SIDE])] {
        let array = crate::arrays::Array::from_slice(&shape, &vec![1f32; LARGE_SIDE])?;
        crate::arrays::write_npy(&folder.join(name), &array, "bench")?;
    }
    Ok(())
}

fn large_takeovers_in(folder: &Path, rounds: usize, config: &SwarmConfig) -> anyhow::Result<Times> {
    write_strips(folder)?;
    let killer = Killer::start();
    let mut supervisor = swarm(config)?;
    // One agent shall be large, and not two half as large.
    supervisor.divide_above(Duration::ZERO);
    let agents = supervisor.plan().compute_count();
    wait_ready(&mut supervisor, agents)?;
    let mut times = Times::default();
    for round in 0..rounds {
        let task = large_task(folder, round)?;
        live(&mut supervisor)?;
        let id = supervisor.submit_one(task)?;
        let mut holder = None;
        run_until(&mut supervisor, |supervisor| {
            supervisor
                .ledger()
                .get(id)
                .is_some_and(|task| task.state == TaskState::Dispatched || task.state.is_final())
        })?;
        for at in 0..agents {
            let view = agent(&mut supervisor, &format!("compute-{at}"))?;
            if view.in_flight > 0 {
                holder = Some(view);
            }
        }
        let holder = holder.context("nobody holds the large task")?;
        let pid = holder.pid.context("it runs")?;
        // Nobody rings when memory grows, so it is looked at again and again.
        let is_done =
            |supervisor: &Supervisor| supervisor.ledger().get(id).is_some_and(|task| task.state.is_final());
        while resident_bytes(pid) < LARGE && !is_done(&supervisor) {
            supervisor.run_until_deadline(clock::now().plus(Duration::from_millis(1)), |_| false);
        }
        if resident_bytes(pid) >= LARGE {
            let (killed, recovery) = kill(&mut supervisor, &killer, &holder.id)?;
            times.add(killed, &recovery)?;
        }
        ask(&mut supervisor, Action::CancelTask(id.to_string()))?;
        run_until(&mut supervisor, |supervisor| supervisor.ledger().counts().open() == 0)?;
    }
    supervisor.shut_down(OnEnd::Drain);
    ensure!(!times.ready.is_empty(), "no agent was caught while it was large");
    Ok(times)
}

fn large_task(folder: &Path, round: usize) -> anyhow::Result<TaskSpec> {
    let task = json!({"tasks": [{
        "kernel": "matmul", "inputs": ["column.npy", "row.npy"], "output": format!("product-{round}.npy"),
    }]});
    let mut tasks = jobs::parse_value(&task, folder, &jobs::Defaults { timeout: None, retries: 2 })?;
    match tasks.pop() {
        Some(Ok(spec)) => Ok(spec),
        other => bail!("the large task is not accepted: {other:?}"),
    }
}

fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Kills whole private swarms at work; from the kill to the end of the last process, ms.
fn supervisor_deaths(rounds: usize) -> anyhow::Result<Vec<f64>> {
    let words = ["--kernel", "sleep", "--param", "seconds=60"];
    // Agents, a standby and their guard: all are there, and past their own start.
    let settle = |_: &[u32]| {
        std::thread::sleep(Duration::from_millis(400));
        true
    };
    // Whoever is stopped cannot go by itself.
    let stopping = |agents: &[u32]| {
        let first = agents.first().and_then(|&pid| Pid::from_raw(pid as i32));
        settle(agents) && first.is_some_and(|pid| kill_process(pid, Signal::STOP).is_ok())
    };
    let times = (0..rounds).map(|round| match round % 2 {
        0 => supervisor_death(&words, Path::new("."), settle),
        _ => supervisor_death(&words, Path::new("."), stopping),
    });
    times.filter_map(Result::transpose).collect()
}

/// As [`supervisor_deaths`], with one agent that has become large. Rounds in which it was done before are left out.
fn large_supervisor_deaths(rounds: usize) -> anyhow::Result<Vec<f64>> {
    in_a_folder(|folder| {
        write_strips(folder)?;
        let words = ["--kernel", "matmul", "column.npy", "row.npy", "--output", "product.npy"];
        let is_large = |agents: &[u32]| agents.iter().any(|&pid| resident_bytes(pid) >= LARGE);
        let times = (0..rounds).map(|_| supervisor_death(&words, folder, is_large));
        let times: Vec<f64> = times.filter_map(Result::transpose).collect::<anyhow::Result<_>>()?;
        ensure!(!times.is_empty(), "no supervisor was caught while an agent was large");
        Ok(times)
    })
}

/// Starts `run` with these words, kills it as soon as its agents are `ripe`, and waits for their end, ms. `None` when it ended
/// before.
fn supervisor_death(
    words: &[&str],
    folder: &Path,
    ripe: impl Fn(&[u32]) -> bool,
) -> anyhow::Result<Option<f64>> {
    let binary = std::env::current_exe()?;
    let run = |words: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(["run", "--quiet"]).args(words).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut supervisor = run(words).spawn()?;
    let pid = supervisor.id();
    let agents = || {
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        // The guard's own end waits until whoever adopts the dead agents has looked at them, which is not ours.
        children.filter(|&pid| is_agent(pid)).collect::<Vec<u32>>()
    };
    while !ripe(&agents()) {
        if supervisor.try_wait()?.is_some() {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let open = |pid: u32| {
        let pid = Pid::from_raw(pid as i32)?;
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
    };
    let all: Vec<_> = agents().into_iter().filter_map(open).collect();
    let began = clock::now();
    supervisor.kill()?;
    for child in &all {
        let limit = rustix::time::Timespec { tv_sec: 30, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(child, PollFlags::IN)], Some(&limit))?;
        ensure!(ended == 1, "a process outlived its killed supervisor by 30 s");
    }
    let took = clock::now().since(began).as_secs_f64() * 1e3;
    supervisor.wait()?;
    ensure!(all.len() > 1, "the swarm had only {} processes", all.len());
    // The next one removes what this one left by name.
    run(&["--kernel", "noop"]).status()?;
    Ok(Some(took))
}

/// Lets everybody live for a moment and waits until all standbys that there shall be can take a place.
fn live(supervisor: &mut Supervisor) -> anyhow::Result<()> {
    supervisor.run_until_deadline(clock::now().plus(LIFE), |_| false);
    let deadline = clock::now().plus(Duration::from_secs(30));
    loop {
        let Reply::Status(status) = ask(supervisor, Action::Status)? else { bail!("unexpected answer") };
        if status.safety.standbys_ready >= status.safety.standbys_wanted {
            return Ok(());
        }
        ensure!(clock::now() < deadline, "no standby got ready within 30 s: {:?}", status.safety);
        supervisor.run_until_deadline(clock::now().plus(Duration::from_millis(5)), |_| false);
    }
}

fn run_until(supervisor: &mut Supervisor, done: impl Fn(&Supervisor) -> bool) -> anyhow::Result<()> {
    let deadline = clock::now().plus(Duration::from_secs(30));
    supervisor.run_until_deadline(deadline, |supervisor| done(supervisor));
    if !done(supervisor) {
        let Reply::Events { events, .. } = ask(supervisor, Action::Events(0))? else {
            bail!("unexpected answer")
        };
        let last = &events[events.len().saturating_sub(8)..];
        bail!("nothing happened for 30 s; the last events: {last:?}");
    }
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
