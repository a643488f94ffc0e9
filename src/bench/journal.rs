//! What keeping tasks costs: throughput with and without the journal, the wait for the disk, the way back after a death.

use super::dispatch::{noop, wait_ready};
use super::{Figure, Limit, quantile, sorted};
use crate::base::clock::Nanos;
use crate::config::{Count, Durability, SwarmConfig};
use crate::gateway::client::Client;
use crate::jobs::{self, Defaults};
use crate::journal::store::Store;
use crate::journal::{self, Journal, frame};
use crate::os::clock;
use crate::os::signals::StopSignals;
use crate::supervisor::home::socket_path;
use crate::supervisor::{OnEnd, Options, Supervisor};
use crate::tasks::TaskSpec;
use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use std::collections::VecDeque;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Submissions per second while the wait for the disk is measured.
const RATE: f64 = 100_000.0;

/// Bytes that one sync brings to the disk at this rate, about.
const SYNC_BYTES: usize = 16 << 10;
/// The aim for a disk that syncs in a tenth of a millisecond, us, and that time. Who is acknowledged has waited for two syncs at
/// most, the one under way and his own.
const AIM: f64 = 1000.0;
const AIM_SYNC: f64 = 100.0;

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    /// Below the state directory, whose disk is the one in question.
    fn new() -> anyhow::Result<Self> {
        Self::at(crate::supervisor::home::state_root().join(Self::name()))
    }

    /// In memory, where a sync is nothing. Those of the killed go.
    fn in_memory() -> anyhow::Result<Self> {
        const PREFIX: &str = "ai_swarm-bench-";
        let root = Path::new("/dev/shm");
        for entry in std::fs::read_dir(root)?.flatten() {
            let owner = entry.file_name().to_str().and_then(|name| {
                let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
                pid.parse::<u32>().ok()
            });
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        Self::at(root.join(format!("ai_swarm-{}", Self::name())))
    }

    fn name() -> String {
        format!("bench-{}-{}", std::process::id(), clock::now().0)
    }

    fn at(path: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn swarm(config: &SwarmConfig, level: Durability, folder: &Path) -> anyhow::Result<Supervisor> {
    let mut config = config.clone();
    config.durability.level = level;
    config.gateway.enabled = false;
    config.agents.compute.count = Count::Exactly(1);
    let options = Options {
        private: false,
        state_dir: Some(folder.to_owned()),
        salvage: false,
        log_filter: "error".to_owned(),
        log_json: false,
        agent_log: None,
        signals: StopSignals::listen()?,
    };
    let mut supervisor = Supervisor::start(config, options)?;
    wait_ready(&mut supervisor, 1)?;
    Ok(supervisor)
}

pub(super) fn measure(quick: bool, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let mut figures = throughput(quick, config)?;
    figures.extend(wait_for_disk(quick, config)?);
    figures.push(way_back(quick, config)?);
    figures.extend(record_costs(quick)?);
    Ok(figures)
}

/// Records that a turn of the loop may have to keep at once.
const GROUP: u64 = 64;

/// Why there is a ring before the store: what one record costs whoever has to know that it is safe from his own death.
fn record_costs(quick: bool) -> anyhow::Result<Vec<Figure>> {
    let rounds = if quick { 200 } else { 2000 };
    let (payload, folder) = ([7; 100], Folder::new()?);
    let retention = journal::Retention { tasks: u64::MAX, events: 0, age: Duration::from_secs(3600) };
    let options = journal::Options {
        synced: false,
        retention,
        salvage: false,
        ring: journal::RING_BYTES,
        elsewhere: None,
        run: 0,
    };
    let (mut journal, _) = Journal::open(&folder.0, options, Box::new(|| {}), |_| true)?;
    let mut ring = Vec::new();
    for _ in 0..rounds {
        let began = clock::now();
        (0..GROUP).for_each(|task| journal.write(journal::Kind::Accepted, 0, task, &payload));
        ring.push(micros_since(began, GROUP));
        std::thread::sleep(Duration::from_micros(100));
    }
    ensure!(journal.safe() == rounds as u64 * GROUP, "the journal has not taken all records");
    drop(journal);

    let path = folder.0.join("alone.db");
    Store::create(&path, 0, 0)?;
    let mut store = Store::open(&path)?;
    store.load(|_| {}).map_err(|bad| anyhow::anyhow!("{}: {}", bad.place, bad.what))?;
    store.accept()?;
    store.set_synced(false)?;
    let (mut last, mut frames) = (0, Vec::new());
    let mut commits = |group: u64| -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..rounds {
            frames.clear();
            let after = last;
            for _ in 0..group {
                last += 1;
                frame::encode(&mut frames, last, journal::Kind::Accepted, 0, last, &[&payload]);
            }
            let began = clock::now();
            store.append(&frames, after, last)?;
            times.push(micros_since(began, group));
        }
        Ok(times)
    };
    let each = commits(1)?;
    let grouped = commits(GROUP)?;
    let figure = |name: &str, times: Vec<f64>, note: &str| {
        let times = sorted(times);
        Figure {
            bench: "journal",
            name: name.to_owned(),
            value: quantile(&times, 0.5),
            unit: "us",
            p50: Some(quantile(&times, 0.5)),
            p99: Some(quantile(&times, 0.99)),
            note: note.to_owned(),
            ..Figure::default()
        }
    };
    Ok(vec![
        figure("ring_record", ring, "a record of 100 bytes into the front, at level `process`"),
        figure(
            "sqlite_record",
            each,
            "the same into the store alone, a commit each, none of which waits for the disk",
        ),
        figure("sqlite_record_of_64", grouped, "a sixty-fourth of a commit of 64 records"),
    ])
}

fn micros_since(began: Nanos, records: u64) -> f64 {
    clock::now().since(began).as_nanos() as f64 / 1000.0 / records as f64
}

/// A task that computes for ten microseconds or a little more, where one follows the other: alone it finds cold caches, and takes
/// twice as long.
fn ten_microseconds(supervisor: &mut Supervisor) -> anyhow::Result<(TaskSpec, f64)> {
    let mut paths = 64;
    loop {
        let task = json!({"kernel": "monte_carlo", "params": {"paths": paths}});
        let spec = jobs::parse_task(&task, 1, Path::new("/"), &Defaults { timeout: None, retries: 0 })
            .map_err(|refused| anyhow::anyhow!(refused.error))?;
        let ids = (0..400).map(|_| supervisor.submit_one(spec.clone())).collect::<Result<Vec<_>, _>>()?;
        let deadline = clock::now().plus(Duration::from_secs(10));
        supervisor.run_until_deadline(deadline, |supervisor| supervisor.ledger().counts().open() == 0);
        let service = |id| supervisor.ledger().get(id).map_or(0, |task| task.service_ns) as f64 / 1000.0;
        let times = ids.into_iter().skip(100).map(service).collect();
        let median = quantile(&sorted(times), 0.5);
        if median >= 10.0 {
            return Ok((spec, median));
        }
        paths += 1 + paths / 8;
    }
}

fn rate(supervisor: &mut Supervisor, spec: &TaskSpec, total: usize) -> anyhow::Result<f64> {
    let before = supervisor.ledger().counts().succeeded;
    let began = clock::now();
    let mut submitted = 0;
    while supervisor.ledger().counts().succeeded - before < total as u64 {
        while submitted < total && supervisor.ledger().queued() < 1024 {
            supervisor.submit_one(spec.clone())?;
            submitted += 1;
        }
        supervisor.turn();
        ensure!(clock::now().since(began) < Duration::from_secs(120), "the tasks do not end");
        ensure!(!supervisor.is_stop_asked(), "stopped");
    }
    Ok(total as f64 / clock::now().since(began).as_secs_f64())
}

/// Both levels side by side, in turns, so that a busy host disturbs both: tasks that compute a little, and tasks that do not,
/// which show what the journal takes of the supervisor's time.
fn throughput(quick: bool, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let (kept_in, unused) = (Folder::new()?, Folder::new()?);
    let mut kept = swarm(config, Durability::Process, &kept_in.0)?;
    let (spec, service) = ten_microseconds(&mut kept)?;
    kept.shut_down(OnEnd::Drain);
    drop(kept);
    let (total, rounds) = if quick { (40_000, 3) } else { (200_000, 5) };
    let kinds = [(spec, total), (noop(), 2 * total)];
    let mut rates = [[const { Vec::new() }; 2], [const { Vec::new() }; 2]];
    for _ in 0..rounds {
        for (at, (level, folder)) in
            [(Durability::Process, &kept_in), (Durability::None, &unused)].into_iter().enumerate()
        {
            let mut supervisor = swarm(config, level, &folder.0)?;
            for ((spec, total), rates) in kinds.iter().zip(&mut rates) {
                rate(&mut supervisor, spec, total / 10)?;
                rates[at].push(rate(&mut supervisor, spec, *total)?);
            }
            supervisor.shut_down(OnEnd::Drain);
        }
    }
    let [figure, bare] = rates.map(|rates| {
        let [with, without] = rates.map(|rates| quantile(&sorted(rates), 0.5));
        Figure { bench: "journal", value: with, unit: "tasks/s", floor: Some(without), ..Figure::default() }
    });
    let figure = Figure {
        name: "process_rate".to_owned(),
        limit: figure.floor.map(|without| Limit::AtLeast(0.85 * without)),
        note: format!(
            "tasks of {service:.1} us at level `process`; the floor is level `none`, in turns with it"
        ),
        ..figure
    };
    let bare = Figure {
        name: "process_noop_rate".to_owned(),
        note: "the same with tasks that do nothing".to_owned(),
        ..bare
    };
    Ok(vec![figure, bare])
}

/// From submitting to being told that the disk has it, at a fixed rate: on the disk, beside what that disk takes for a sync alone, and
/// in memory, which leaves what is ours of it.
fn wait_for_disk(quick: bool, config: &SwarmConfig) -> anyhow::Result<[Figure; 2]> {
    let (on_disk, in_memory) = (Folder::new()?, Folder::in_memory()?);
    let mut syncs = sync_times(quick, &on_disk.0)?;
    let times = acknowledgements(quick, config, &on_disk.0)?;
    syncs.extend(sync_times(quick, &on_disk.0)?);
    let syncs = sorted(syncs);
    let [median, slow] = [0.5, 0.99].map(|share| quantile(&syncs, share));
    let figure = |name: &str, times: &[f64]| Figure {
        bench: "journal",
        name: name.to_owned(),
        value: quantile(times, 0.99),
        unit: "us",
        p50: Some(quantile(times, 0.5)),
        p99: Some(quantile(times, 0.99)),
        p999: Some(quantile(times, 0.999)),
        ..Figure::default()
    };
    let disk = Figure {
        floor: Some(slow),
        limit: Some(Limit::AtMost(AIM.max(3.0 * slow))),
        note: format!(
            "p99 from submit to acknowledgement at {RATE:.0} tasks/s, level `power`; the floor is the p99 of an fdatasync of {} KiB \
             alone on this disk (p50 {median:.0} us). The limit is {AIM:.0} us where the disk allows it, else three times the floor",
            SYNC_BYTES >> 10
        ),
        ..figure("power_submit", &times)
    };
    let times = acknowledgements(quick, config, &in_memory.0)?;
    let ours = Figure {
        limit: Some(Limit::AtMost(AIM - 2.0 * AIM_SYNC)),
        note: format!(
            "the same with the journal in memory, where a sync takes no time: with two syncs of {AIM_SYNC:.0} us it has to stay \
             below {AIM:.0} us"
        ),
        ..figure("power_submit_in_memory", &times)
    };
    Ok([disk, ours])
}

/// Times from when a task was due to its acknowledgement, us, in order.
fn acknowledgements(quick: bool, config: &SwarmConfig, folder: &Path) -> anyhow::Result<Vec<f64>> {
    let mut supervisor = swarm(config, Durability::Power, folder)?;
    let total = if quick { 100_000 } else { 500_000 };
    let mut waiting: VecDeque<(u64, Nanos)> = VecDeque::new();
    let mut times = Vec::with_capacity(total);
    let began = clock::now();
    let mut submitted = 0;
    while times.len() < total {
        let due = (clock::now().since(began).as_secs_f64() * RATE) as usize;
        while submitted < due.min(total) {
            supervisor.submit_one(noop())?;
            // From when it was due, not from when there was time for it.
            let since = began.plus(Duration::from_secs_f64(submitted as f64 / RATE));
            waiting.push_back((supervisor.written(), since));
            submitted += 1;
        }
        supervisor.turn();
        let (safe, now) = (supervisor.safe(), clock::now());
        while let Some(&(record, since)) = waiting.front()
            && record <= safe
        {
            waiting.pop_front();
            times.push(now.since(since).as_nanos() as f64 / 1000.0);
        }
        ensure!(now.since(began) < Duration::from_secs(120), "the disk is too slow for this");
        ensure!(!supervisor.is_stop_asked(), "stopped");
        ensure!(supervisor.journal_failure().is_none(), "the journal failed");
    }
    supervisor.shut_down(OnEnd::Drain);
    Ok(sorted(times))
}

/// Times of fdatasync after so much was written again, us.
fn sync_times(quick: bool, folder: &Path) -> anyhow::Result<Vec<f64>> {
    const PLACES: u64 = 256;
    let mut file = std::fs::File::create(folder.join("sync"))?;
    file.write_all(&vec![1; PLACES as usize * SYNC_BYTES])?;
    file.sync_all()?;
    let mut times = Vec::new();
    for round in 0..if quick { 500 } else { 2000 } {
        file.seek(std::io::SeekFrom::Start(round % PLACES * SYNC_BYTES as u64))?;
        file.write_all(&[round as u8; SYNC_BYTES])?;
        let began = clock::now();
        file.sync_data()?;
        times.push(clock::now().since(began).as_nanos() as f64 / 1000.0);
    }
    Ok(times)
}

/// Unfinished tasks that a killed supervisor leaves, and how long each takes, s.
const BACKLOG: usize = 2000;
const BACKLOG_TASK_S: f64 = 0.001;

/// A supervisor of its own process, with tasks that it had no time for. Dropped, it is killed as by signal 9.
struct Doomed(Child);

impl Doomed {
    /// Starts it on `folder` and hands it the backlog. Returns once that is accepted.
    fn start(folder: &Path) -> anyhow::Result<Self> {
        const NAME: &str = "bench-journal";
        let config = json!({
            "name": NAME,
            "agents": {"compute": {"count": 1}},
            "durability": {"level": "process"},
        });
        let file = folder.join("config.json");
        std::fs::write(&file, config.to_string())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--quiet", "--log-level", "error", "--config"]).arg(&file);
        command.arg("--state-dir").arg(folder).stdin(Stdio::null()).stdout(Stdio::null());
        let mut doomed = Self(command.spawn().context("cannot start a swarm")?);
        let control = socket_path(NAME, Some(folder));
        let began = clock::now();
        let mut client = loop {
            if let Ok(client) = Client::connect(&control) {
                break client;
            }
            if let Some(status) = doomed.0.try_wait()? {
                bail!("the swarm ended by itself: {status}");
            }
            ensure!(clock::now().since(began) < Duration::from_secs(20), "the swarm does not answer");
            std::thread::sleep(Duration::from_millis(2));
        };
        let nap = json!({"kernel": "sleep", "params": {"seconds": BACKLOG_TASK_S}});
        client.post("/api/v1/tasks/submit", &json!({"tasks": vec![nap; BACKLOG]}))?;
        Ok(doomed)
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// From the start of a supervisor to its first result, after its predecessor was killed with a full journal and a backlog.
fn way_back(quick: bool, config: &SwarmConfig) -> anyhow::Result<Figure> {
    let folder = Folder::new()?;
    let tasks = if quick { 33_334 } else { 100_000 };
    let mut supervisor = swarm(config, Durability::Process, &folder.0)?;
    rate(&mut supervisor, &noop(), tasks)?;
    supervisor.shut_down(OnEnd::Drain);
    drop(supervisor);
    let (mut times, mut open, mut records) = (Vec::new(), Vec::new(), 0);
    for _ in 0..5 {
        drop(Doomed::start(&folder.0)?);
        let front = journal::Paths::new(&folder.0).front;
        ensure!(front.exists(), "the killed one ended in order");
        let began = clock::now();
        let mut config = config.clone();
        config.gateway.enabled = false;
        config.agents.compute.count = Count::Exactly(1);
        let options = Options {
            private: false,
            state_dir: Some(folder.0.clone()),
            salvage: false,
            log_filter: "error".to_owned(),
            log_json: false,
            agent_log: None,
            signals: StopSignals::listen()?,
        };
        let mut supervisor = Supervisor::start(config, options)?;
        let left = supervisor.ledger().counts().open();
        let deadline = began.plus(Duration::from_secs(20));
        supervisor.run_until_deadline(deadline, |supervisor| supervisor.ledger().counts().succeeded > 0);
        ensure!(supervisor.ledger().counts().succeeded > 0, "no task of the backlog ended");
        times.push(clock::now().since(began).as_nanos() as f64 / 1e6);
        ensure!(left > BACKLOG as u64 / 2, "only {left} of {BACKLOG} tasks were left");
        open.push(left as f64);
        records = supervisor.written();
        supervisor.shut_down(OnEnd::Hurry);
    }
    let times = sorted(times);
    let limit = 50.0 + 15.0 * records as f64 / 100_000.0;
    Ok(Figure {
        bench: "journal",
        name: "restart_first_result".to_owned(),
        value: quantile(&times, 0.5),
        unit: "ms",
        limit: Some(Limit::AtMost(limit)),
        p50: Some(quantile(&times, 0.5)),
        p99: Some(quantile(&times, 1.0)),
        note: format!(
            "from the start to the first result after a kill -9, {records} records of earlier lives behind it and {:.0} \
             tasks of {:.0} ms not finished; 5 rounds, p99 is the worst",
            quantile(&sorted(open), 0.5),
            1e3 * BACKLOG_TASK_S
        ),
        ..Figure::default()
    })
}
