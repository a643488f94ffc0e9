//! The swarm under test: a process of its own in a folder of its own, seen from the outside only.

use super::Verdict;
use super::faults::signal;
use crate::base::words::things;
use crate::client::Attach;
use crate::config::Durability;
use crate::gateway::client::{Client, ClientError, segment};
use crate::kernels::KernelId;
use crate::supervisor::home::socket_path;
use crate::supervisor::{is_agent, is_gateway};
use crate::tasks::ledger::REMEMBERED;
use crate::tasks::{Priority, TaskSpec};
use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A start, a stop or an answer takes at most so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// All agents must be gone so soon after a kill of the supervisor. The promise is 10 ms for 99 of 100 on an idle
/// host; chaos keeps the host busy.
const ORPHANS_AFTER: Duration = Duration::from_secs(1);
/// The control API must answer again so soon after its gateway was killed or stopped.
const GATEWAY_BACK_AFTER: Duration = Duration::from_secs(1);
/// A stopped agent must be gone so soon. The promise is a quarter of a second on an idle host, and 2 s for the fault agent
/// itself, who finds the others.
const STOPPED_GONE_AFTER: Duration = Duration::from_secs(5);
/// A disk is bad for so long.
const BAD_DISK: Duration = Duration::from_millis(700);
/// Descriptors that may come and go: a connection of ours, a log that is turned.
const DESCRIPTORS_SPARE: usize = 8;
/// Threads and shared mappings that may come and go.
const THREADS_SPARE: usize = 2;
const MAPPINGS_SPARE: usize = 8;
/// Memory that the supervisor may have more at the end: buffers that grew, and
const MEMORY_SPARE_KB: u64 = 32 << 10;
/// for each of the tasks that it remembers.
const MEMORY_PER_TASK_KB: u64 = 1;
/// What has to come back to where it was may take so long.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
/// What lies in a state directory while its swarm lives, and after its end.
const FILES: [&str; 10] = [
    "lock",
    "board",
    "control.sock",
    "attach.sock",
    "journal.front",
    "journal.db",
    "journal.db-wal",
    "journal.db-shm",
    "swarm.log",
    "swarm.log.1",
];
const FILES_AFTER: [&str; 4] = ["lock", "journal.db", "swarm.log", "swarm.log.1"];
/// On a bad disk it is given tasks so often.
const OFFER_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Victim {
    folder: PathBuf,
    /// Nobody named it: it goes when there is nothing to look into.
    temporary: bool,
    name: String,
    child: Child,
    /// Counts the supervisors.
    life: u64,
    /// The one that lives has trouble with its disk.
    on_bad_disk: bool,
    client: Option<Client>,
    /// Kills of the supervisor, and how long its agents outlived it.
    gone_after: Vec<Duration>,
    orphans: Vec<String>,
    /// Kills and stops of the gateway: after how long a fresh client had an answer, and what was wrong meanwhile.
    back_after: Vec<Duration>,
    shut_out: Vec<String>,
    /// Agents that were stopped: how long each still lived, if its end came in time.
    stopped: Vec<JoinHandle<Result<Duration, String>>>,
}

/// What a swarm holds while it does nothing, as the host sees it.
#[derive(Clone, Debug, Default)]
pub(super) struct Footprint {
    agents: usize,
    /// Of the supervisor.
    descriptors: usize,
    threads: usize,
    /// Its mappings of shared memory.
    mappings: usize,
    resident_kb: u64,
    /// Files in the state directory that have no business there.
    strays: Vec<String>,
}

impl Footprint {
    /// What there is now that was not there `before`, having remembered so many tasks.
    fn growth(&self, before: &Footprint, tasks: u64) -> Vec<String> {
        let mut grown = Vec::new();
        if self.agents != before.agents {
            grown.push(format!("{} processes where there were {}", self.agents, before.agents));
        }
        let resident_max =
            before.resident_kb + MEMORY_SPARE_KB + MEMORY_PER_TASK_KB * tasks.min(REMEMBERED as u64);
        let rows = [
            (
                "descriptors",
                self.descriptors as u64,
                before.descriptors as u64,
                (before.descriptors + DESCRIPTORS_SPARE) as u64,
            ),
            ("threads", self.threads as u64, before.threads as u64, (before.threads + THREADS_SPARE) as u64),
            (
                "shared mappings",
                self.mappings as u64,
                before.mappings as u64,
                (before.mappings + MAPPINGS_SPARE) as u64,
            ),
            ("kB resident", self.resident_kb, before.resident_kb, resident_max),
        ];
        for (what, now, then, most) in rows {
            if now > most {
                grown.push(format!("the supervisor has {now} {what} where it had {then}"));
            }
        }
        grown.extend(self.strays.iter().map(|stray| format!("{stray} lies in the state directory")));
        grown
    }
}

/// What the swarm said and left at its end.
pub(super) struct End {
    /// Deaths to ready replacements, sorted, as the swarm's own report has them.
    pub ready_us: Vec<f64>,
    pub verdicts: Vec<Verdict>,
}

impl Victim {
    /// At this level of durability.
    pub(super) fn deploy(folder: Option<&Path>, durability: Durability) -> anyhow::Result<Self> {
        let name = format!("chaos-{}", std::process::id());
        let temporary = folder.is_none();
        let folder =
            folder.map_or_else(|| std::env::temp_dir().join(format!("ai_swarm-{name}")), PathBuf::from);
        for part in ["state", "work/out"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        let folder = fs::canonicalize(folder)?;
        // What is tested is the life of tasks: agents come back at once, however often they die.
        let config = json!({
            "name": name,
            "agents": {"fault": {"restart_limit": 1000, "restart_window_s": 1, "backoff_max_s": 0.02}},
            "tasks": {"poison_deaths": 100},
            "durability": {"level": durability.as_str()},
        });
        fs::write(folder.join("config.json"), config.to_string())?;
        let child = start(&folder, None)?;
        let mut victim = Self {
            folder,
            temporary,
            name,
            child,
            life: 1,
            on_bad_disk: false,
            client: None,
            gone_after: Vec::new(),
            orphans: Vec::new(),
            back_after: Vec::new(),
            shut_out: Vec::new(),
            stopped: Vec::new(),
        };
        victim.wait_ready()?;
        Ok(victim)
    }

    /// Where everything is that the swarm wrote.
    pub(super) fn place(&self) -> &Path {
        &self.folder
    }

    /// All went well: a folder that nobody named is removed.
    pub(super) fn discard(self) {
        if self.temporary {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    /// Where tasks find and leave their files.
    pub(super) fn folder(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// Asks the control API. A swarm that was just killed is waited for.
    pub(super) fn ask<T>(
        &mut self,
        mut request: impl FnMut(&mut Client) -> Result<T, ClientError>,
    ) -> anyhow::Result<Result<T, ClientError>> {
        let began = Instant::now();
        loop {
            let answer = match &mut self.client {
                Some(client) => request(client),
                None => match Client::connect(&self.control()) {
                    Ok(client) => {
                        self.client = Some(client);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match answer {
                Err(ClientError::NotRunning { .. } | ClientError::Socket { .. } | ClientError::Broken(_))
                    if began.elapsed() < PATIENCE =>
                {
                    self.client = None;
                    if let Some(status) = self.child.try_wait()? {
                        bail!("the supervisor ended by itself: {status}\n{}", self.log());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error @ (ClientError::NotRunning { .. } | ClientError::Broken(_))) => {
                    return Err(error.into());
                }
                answer => return Ok(answer),
            }
        }
    }

    /// Asks once. `None`: nobody answers, or broke off.
    pub(super) fn try_ask<T>(
        &mut self,
        request: impl FnOnce(&mut Client) -> Result<T, ClientError>,
    ) -> Option<Result<T, ClientError>> {
        if self.client.is_none() {
            self.client = Client::connect(&self.control()).ok();
        }
        match request(self.client.as_mut()?) {
            Err(ClientError::NotRunning { .. } | ClientError::Socket { .. } | ClientError::Broken(_)) => {
                self.client = None;
                None
            }
            answer => Some(answer),
        }
    }

    /// What the swarm knows of a task; the inner error is its words.
    pub(super) fn task(&mut self, name: &str) -> anyhow::Result<Result<Value, String>> {
        let path = format!("/api/v1/tasks/{}", segment(name));
        Ok(self.ask(|client| client.get(&path))?.map_err(|error| error.to_string()))
    }

    /// Whether it may end by itself, because it has trouble with its disk.
    pub(super) fn is_on_bad_disk(&self) -> bool {
        self.on_bad_disk
    }

    /// Which supervisor it is by now, counted from 1.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        Ok(self.ask(|client| client.get(path))??)
    }

    pub(super) fn control(&self) -> PathBuf {
        socket_path(&self.name, Some(&self.folder.join("state")))
    }

    /// Agents and standbys that live or are just being started: the supervisor's children without their guard, whose
    /// death is all agents', and without the gateway.
    pub(super) fn agents(&self) -> anyhow::Result<Vec<Pid>> {
        let words = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Before its exec a child has the words of its parent.
        let unborn = words(self.child.id());
        let is_one = |pid: &Pid| {
            let pid = pid.as_raw_nonzero().get() as u32;
            is_agent(pid) || words(pid) == unborn
        };
        Ok(self.children().filter(is_one).collect())
    }

    fn children(&self) -> impl Iterator<Item = Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let text = fs::read_to_string(&path).unwrap_or_default();
        let children: Vec<Pid> =
            text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
        children.into_iter().filter(|&pid| lives(pid))
    }

    /// Waits for all agents and says what the swarm holds. Some things are there for a moment only, to read in `/proc` or to
    /// answer us: the least of many looks is what it holds.
    pub(super) fn footprint(&mut self) -> anyhow::Result<Footprint> {
        self.wait_ready()?;
        let mut least = self.look()?;
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            let look = self.look()?;
            least.descriptors = least.descriptors.min(look.descriptors);
            least.threads = least.threads.min(look.threads);
            least.mappings = least.mappings.min(look.mappings);
            least.resident_kb = least.resident_kb.min(look.resident_kb);
            least.strays.retain(|stray| look.strays.contains(stray));
            least.agents = look.agents;
        }
        Ok(least)
    }

    fn look(&self) -> anyhow::Result<Footprint> {
        let file = |name: &str| format!("/proc/{}/{name}", self.child.id());
        let maps = fs::read_to_string(file("maps"))?;
        let status = fs::read_to_string(file("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let is_shared = |line: &&str| line.contains("memfd:") || line.contains("/dev/shm/");
        Ok(Footprint {
            agents: self.agents()?.len(),
            descriptors: fs::read_dir(file("fd"))?.count(),
            threads: fs::read_dir(file("task"))?.count(),
            mappings: maps.lines().filter(is_shared).count(),
            resident_kb: resident
                .and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok())
                .unwrap_or(0),
            strays: self.strays(&FILES)?,
        })
    }

    /// What lies in the state directory beside these files, the snapshots and the saved channels.
    fn strays(&self, known: &[&str]) -> anyhow::Result<Vec<String>> {
        let state = self.folder.join("state");
        let names = |folder: &str| -> Vec<String> {
            let entries = fs::read_dir(state.join(folder)).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let mut strays = names(".");
        strays.retain(|name| {
            !known.contains(&name.as_str()) && !["snapshots", "crashes"].contains(&name.as_str())
        });
        // A snapshot appears by rename: what has another name was left on the way.
        let half = names("snapshots").into_iter().filter(|name| !name.ends_with(".json"));
        strays.extend(half.map(|name| format!("snapshots/{name}")));
        Ok(strays)
    }

    /// kill -9 of the supervisor: its agents must go with it. Then it is started again.
    pub(super) fn kill_supervisor(&mut self) -> anyhow::Result<()> {
        self.succeed_supervisor(None)
    }

    /// As [`kill_supervisor`](Self::kill_supervisor), twice: the successor meets `trouble` with its disk for a moment, and is
    /// given work there.
    pub(super) fn restart_on_a_bad_disk(
        &mut self,
        trouble: &str,
        meanwhile: &mut dyn FnMut(&mut Victim) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.succeed_supervisor(Some(trouble))?;
        let began = Instant::now();
        while began.elapsed() < BAD_DISK && self.child.try_wait()?.is_none() {
            meanwhile(self)?;
            std::thread::sleep(OFFER_EVERY);
        }
        self.succeed_supervisor(None)
    }

    fn succeed_supervisor(&mut self, trouble: Option<&str>) -> anyhow::Result<()> {
        let agents = self.agents()?;
        self.client = None;
        let pid = Pid::from_child(&self.child);
        // On a bad disk it may have refused to start.
        if self.child.try_wait()?.is_none() {
            rustix::process::kill_process(pid, Signal::KILL)?;
        }
        let began = Instant::now();
        self.child.wait()?;
        let mut living = agents;
        while !living.is_empty() && began.elapsed() < ORPHANS_AFTER {
            living.retain(|&pid| lives(pid));
            std::thread::sleep(Duration::from_micros(200));
        }
        self.gone_after.push(began.elapsed());
        for pid in living {
            self.orphans.push(format!(
                "process {} outlived its supervisor by {ORPHANS_AFTER:?}",
                pid.as_raw_nonzero()
            ));
        }
        self.life += 1;
        self.on_bad_disk = trouble.is_some();
        self.child = start(&self.folder, trouble)?;
        Ok(())
    }

    /// kill -9 or SIGSTOP of the gateway: while it is gone a task goes through shared memory, and soon the API answers.
    pub(super) fn strike_gateway(&mut self, with: Signal) -> anyhow::Result<Result<u64, String>> {
        let Some(gateway) = self.children().find(|&pid| is_gateway(pid.as_raw_nonzero().get() as u32)) else {
            return Ok(Err("no gateway lives at this moment".to_owned()));
        };
        if let Err(why) = signal(gateway, with) {
            return Ok(Err(why));
        }
        let (began, control) = (Instant::now(), self.control());
        let worker = std::thread::spawn(move || run_beside(&control));
        // What is connected to the one that is gone says nothing about the next.
        self.client = None;
        self.get("/healthz")?;
        let back = began.elapsed();
        self.back_after.push(back);
        if back > GATEWAY_BACK_AFTER {
            self.shut_out.push(format!("after {with:?} of the gateway the API answered after {back:?}"));
        }
        let number = gateway.as_raw_nonzero();
        if let Ok(Err(error)) = worker.join() {
            self.shut_out
                .push(format!("while gateway {number} was gone, a task of a client did not end: {error:#}"));
        }
        Ok(Ok(1))
    }

    /// SIGSTOP of an agent. The end of one that has a place is waited for beside the storm; a standby is looked at when it is
    /// needed, and one that is just starting after ten seconds.
    pub(super) fn stop_agent(&mut self, pid: Pid) -> anyhow::Result<Result<u64, String>> {
        let agents = self.get("/api/v1/agents")?;
        let number = pid.as_raw_nonzero().get();
        let has_place = agents["agents"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["pid"] == number && one["state"] == "ready"));
        let end = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(end) => end,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let stopped = signal(pid, Signal::STOP);
        let began = Instant::now();
        if stopped.is_ok() && has_place {
            self.stopped.push(std::thread::spawn(move || {
                let mut ends = [PollFd::new(&end, PollFlags::IN)];
                while began.elapsed() < STOPPED_GONE_AFTER {
                    let left = STOPPED_GONE_AFTER.saturating_sub(began.elapsed());
                    match rustix::event::poll(&mut ends, left.try_into().ok().as_ref()) {
                        Ok(0) | Err(rustix::io::Errno::INTR) => {}
                        Ok(_) => return Ok(began.elapsed()),
                        Err(error) => return Err(format!("its end cannot be waited for: {error}")),
                    }
                }
                Err(format!("process {number} was stopped and still there after {STOPPED_GONE_AFTER:?}"))
            }));
        }
        Ok(stopped)
    }

    /// What became of those who were stopped.
    fn judge_stopped(&mut self) -> Option<Verdict> {
        let (mut lived, mut broken) = (Vec::new(), Vec::new());
        for waiter in self.stopped.drain(..) {
            match waiter.join() {
                Ok(Ok(time)) => lived.push(time),
                Ok(Err(why)) => broken.push(why),
                Err(_) => broken.push("whoever waited for its end is dead".to_owned()),
            }
        }
        lived.sort();
        let mut what = format!("{} stopped", things(lived.len() + broken.len(), "agent"));
        if let (Some(half), Some(longest)) = (lived.get(lived.len() / 2), lived.last()) {
            let ms = |time: &Duration| time.as_secs_f64() * 1e3;
            // Some are killed by the storm before they are found.
            what += &format!(
                "; gone, by whatever hand, half of them after {:.0} ms, the last after {:.0} ms",
                ms(half),
                ms(longest)
            );
        }
        (!lived.is_empty() || !broken.is_empty()).then_some(Verdict { promise: "P7", what, broken })
    }

    /// What can be judged while it lives: nobody is missing and nothing has grown but what remembers `tasks` tasks.
    pub(super) fn judge(&mut self, before: &Footprint, tasks: u64) -> anyhow::Result<Vec<Verdict>> {
        let began = Instant::now();
        let mut after = self.footprint()?;
        while !after.growth(before, tasks).is_empty() && began.elapsed() < SETTLED_AFTER {
            std::thread::sleep(Duration::from_millis(100));
            after = self.footprint()?;
        }
        let broken = after.growth(before, tasks);
        let what = format!(
            "supervisor: descriptors {} and {} after, threads {} and {}, shared mappings {} and {}, MB {} and {}; {} agents",
            before.descriptors,
            after.descriptors,
            before.threads,
            after.threads,
            before.mappings,
            after.mappings,
            before.resident_kb / 1024,
            after.resident_kb / 1024,
            after.agents
        );
        let mut verdicts = vec![Verdict { promise: "P6", what, broken }];
        if let Some(longest) = self.gone_after.iter().max() {
            let (kills, ms) = (self.gone_after.len(), longest.as_secs_f64() * 1e3);
            let what =
                format!("{kills} kills of the supervisor; its agents were gone after at most {ms:.1} ms");
            verdicts.push(Verdict { promise: "P8", what, broken: self.orphans.clone() });
        }
        verdicts.extend(self.judge_stopped());
        if let Some(longest) = self.back_after.iter().max() {
            let (times, ms) = (self.back_after.len(), longest.as_secs_f64() * 1e3);
            let what = format!(
                "{times} kills and stops of the gateway; work went on, and the API answered after at most {ms:.0} ms"
            );
            verdicts.push(Verdict { promise: "P4", what, broken: self.shut_out.clone() });
        }
        Ok(verdicts)
    }

    /// Ends it in good order and looks for what is left.
    pub(super) fn end(&mut self) -> anyhow::Result<End> {
        let report = self.get("/api/v1/system/report")?;
        let mut ready_us: Vec<f64> = report["recoveries"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|recovery| recovery["ready_us"].as_f64())
            .collect();
        ready_us.sort_by(f64::total_cmp);
        let mut broken = Vec::new();
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let began = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => break,
                Some(status) => {
                    broken.push(format!("the supervisor ended with {status}: {}", self.log()));
                    break;
                }
                None if began.elapsed() > PATIENCE => {
                    broken.push(format!("the supervisor did not end within {PATIENCE:?}"));
                    break;
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        broken.extend(self.left_over()?);
        let what = "processes, shared memory and files after the end".to_owned();
        Ok(End { ready_us, verdicts: vec![Verdict { promise: "P6", what, broken }] })
    }

    fn left_over(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split(|&byte| byte == 0);
            let ours: [&[u8]; 4] = [b"__agent", b"__gateway", b"__guard", b"__reaper"];
            let is_ours = words.clone().any(|word| ours.contains(&word));
            if is_ours && words.any(|word| word == self.name.as_bytes()) {
                left.push(format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        left.extend(self.segments().into_iter().map(|name| format!("/dev/shm/{name}")));
        left.extend(
            self.strays(&FILES_AFTER)?.into_iter().map(|name| format!("{name} in the state directory")),
        );
        Ok(left)
    }

    /// Its names in shared memory.
    fn segments(&self) -> Vec<String> {
        let names = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let prefix = format!("ai_swarm-{}-", self.name);
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let status = self.get("/api/v1/system/status")?;
            let agents = status["agents"].as_array().context("a list of agents")?;
            let safety = &status["safety"];
            let has_standbys = safety["standbys_ready"] == safety["standbys_wanted"];
            if has_standbys && !agents.is_empty() && agents.iter().all(|agent| agent["state"] == "ready") {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("agents are not all ready: {}\n{}", json!(agents), self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.join("chaos.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            // Nobody starts it again to remove what it left.
            for name in self.segments() {
                let _ = fs::remove_file(Path::new("/dev/shm").join(name));
            }
        }
    }
}

/// One task, not over the control API.
fn run_beside(control: &Path) -> anyhow::Result<()> {
    let mut client = Attach::at(control).as_client("chaos").spin(false).attach()?;
    let kernel = KernelId::Noop;
    let (priority, kernel_name) = (Priority::High, kernel.name());
    let noop = TaskSpec { kernel: kernel.code(), kernel_name, priority, ..TaskSpec::default() };
    let ticket = client.submit(&noop)?;
    let end = client.wait(ticket, PATIENCE)?;
    anyhow::ensure!(end.is_success(), "{end:?}");
    Ok(())
}

fn lives(pid: Pid) -> bool {
    // A process that waits for its parent to look is dead.
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])))
}

fn start(folder: &Path, trouble: Option<&str>) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("chaos.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--quiet", "--log-level", "warn", "--config"])
        .arg(folder.join("config.json"))
        .arg("--state-dir")
        .arg(folder.join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .env_remove("AI_SWARM_FAIL_AT")
        .envs(trouble.map(|order| ("AI_SWARM_FAIL_AT", order)));
    command.spawn().context("cannot start the swarm under test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_grows_is_named_and_what_is_remembered_may_grow() {
        let before = Footprint {
            agents: 8,
            descriptors: 60,
            threads: 5,
            mappings: 40,
            resident_kb: 50_000,
            strays: Vec::new(),
        };
        assert!(before.growth(&before, 0).is_empty());
        let remembers = Footprint { resident_kb: 50_000 + (32 << 10) + 50_000, ..before.clone() };
        assert!(remembers.growth(&before, 50_000).is_empty());
        for (after, words) in [
            (Footprint { agents: 7, ..before.clone() }, "7 processes"),
            (Footprint { agents: 9, ..before.clone() }, "9 processes"),
            (Footprint { descriptors: 69, ..before.clone() }, "69 descriptors"),
            (Footprint { threads: 8, ..before.clone() }, "8 threads"),
            (Footprint { mappings: 49, ..before.clone() }, "49 shared mappings"),
            (remembers, "kB resident"),
            (Footprint { strays: vec!["x.tmp".to_owned()], ..before.clone() }, "x.tmp"),
        ] {
            let grown = after.growth(&before, 1000);
            assert!(matches!(&grown[..], [one] if one.contains(words)), "{words}: {grown:?}");
        }
    }
}
