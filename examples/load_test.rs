//! An open-loop load test of a running swarm, through the control API as any client uses it.
//!
//! 1. Every task has an intended time, fixed before the test begins: each tick so many are due at once.
//! 2. The first free connection takes everything that is due, in one request that waits for the answers.
//! 3. The latency of a task runs from its intended time to its end as the swarm stamped it, on the clock
//!    that all processes of the host share. A swarm that stalls therefore pays for all that should have come
//!    meanwhile: nothing is omitted because a client was kept waiting.
//!
//! ```text
//! scripts/load_test --agents 2 --duration 60 --rate 5000 --max-p99-us 20000
//! ```
//! Exit codes: 0 within all limits, 1 a limit was broken, 2 wrong words, 3 the test could not be made.

use ai_swarm::arrays::{DType, write_npy};
use ai_swarm::base::clock::Nanos;
use ai_swarm::cli::args::parse_duration;
use ai_swarm::gateway::client::{Client, ClientError, segment};
use ai_swarm::kernels::{KernelId, check_params, output_needed, synthetic_inputs};
use ai_swarm::os::clock;
use ai_swarm::os::signals::StopSignals;
use ai_swarm::supervisor::home::socket_path;
use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

const BROKEN: u8 = 1;
const WRONG: u8 = 2;
const CANNOT: u8 = 3;

/// Time for a swarm to come up, for agents to become ready, and for a swarm to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most tasks in one request; a job of 100,000 has about 20 MB.
const REQUEST_TASKS_MAX: u64 = 20_000;
/// Output files per test, used in turn, so that a long test does not fill the disk.
const OUTPUTS: u64 = 64;
/// Rates at which the search for a sustainable one begins and ends, tasks/s.
const RAMP: (f64, f64) = (1_000.0, 1_000_000.0);
/// Latencies above an hour count as an hour.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Length of one step of that search.
const RAMP_STEP: Duration = Duration::from_millis(400);
/// Rate when nothing better is known, tasks/s.
const RATE_DEFAULT: f64 = 2_000.0;

/// Open-loop load test of a swarm: tasks are due at fixed times, whatever the swarm does meanwhile.
///
/// Latency runs from the intended time of a task to its end, so queueing cannot hide. A swarm that does not
/// run yet is started for the test and stopped after it. Lost or duplicated tasks always fail the test.
#[derive(Debug, Parser)]
#[command(
    name = "load_test",
    after_help = "Exit codes: 0 within all limits, 1 a limit was broken, 2 wrong words, 3 the test could not be made."
)]
struct Options {
    /// Compute agents during the test; their number is put back at the end [default: as they are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    agents: Option<u32>,
    /// Length of the measured part: 60, 60s, 5m
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = span)]
    duration: Duration,
    /// Tasks per second [default: half of what a short search finds sustainable]
    #[arg(long, value_name = "R", value_parser = positive)]
    rate: Option<f64>,
    /// Kernel of the tasks; arrays are made up where it reads some
    #[arg(long, value_name = "KERNEL", default_value = "noop")]
    kernel: String,
    /// A parameter of the kernel; the value is JSON, or else a word
    #[arg(long = "param", value_name = "KEY=VALUE")]
    params: Vec<String>,
    /// Elements of the made-up arrays
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1..))]
    size: u64,
    /// Swarm name
    #[arg(long, value_name = "NAME", default_value = "default")]
    name: String,
    /// State directory of the swarm [default: that of its name]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Configuration for a swarm that this test starts
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Connections, which is requests under way at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// Tasks that are due within so many milliseconds are due together
    #[arg(long, value_name = "MS", default_value_t = 5.0, value_parser = positive)]
    tick_ms: f64,
    /// Length of the part before, which is not measured
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_duration)]
    warmup: Duration,
    /// Time for the last answers after the last task was due
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_duration)]
    patience: Duration,
    /// Fail above this 99th percentile of latency, microseconds
    #[arg(long, value_name = "US", value_parser = positive)]
    max_p99_us: Option<f64>,
    /// Fail above this 99.9th percentile of latency, microseconds
    #[arg(long, value_name = "US", value_parser = positive)]
    max_p999_us: Option<f64>,
    /// Fail above so many tasks that failed, were cancelled or were refused
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_errors: u64,
    /// Fail below so many succeeded tasks per second
    #[arg(long, value_name = "R", value_parser = positive)]
    min_throughput: Option<f64>,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn span(text: &str) -> Result<Duration, String> {
    let span = parse_duration(text)?;
    let allowed = (0.05..=604_800.0).contains(&span.as_secs_f64());
    if allowed { Ok(span) } else { Err(format!("{text:?} is not within 0.05 s and a week")) }
}

fn positive(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a number above 0, at most 1e9");
    text.parse().ok().filter(|number| *number > 0.0 && *number <= 1e9).ok_or_else(wrong)
}

fn main() -> ExitCode {
    let options = Options::parse();
    match test(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(CANNOT)
        }
    }
}

fn test(options: &Options) -> anyhow::Result<u8> {
    // Before any other thread: from here on a signal ends the test cleanly.
    let signals = StopSignals::listen().context("cannot listen for signals")?;
    let files = tempdir()?;
    let work = match Work::new(options, &files.0) {
        Ok(work) => work,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(WRONG);
        }
    };
    let mut swarm = Swarm::find_or_start(options)?;
    let mut client = Client::connect(&swarm.socket)?;
    let mut staff = Staff { socket: swarm.socket.clone(), added: Vec::new(), removed: Vec::new() };
    let agents = staff.set(&mut client, options.agents)?;
    let before = statistics(&mut client)?;

    let test =
        Test { options, work: &work, socket: &swarm.socket, signals: &signals, stopped: Cell::new(false) };
    let (rate, source) = match options.rate {
        Some(rate) => (rate, "as asked"),
        None => test.sustainable_rate()?,
    };
    let mut total = Outcome::default();
    if !options.warmup.is_zero() && !test.stopped.get() {
        let warm = test.drive(rate, options.warmup, "warm-up")?;
        total.keep_books_of(&warm);
    }
    let measured = match test.stopped.get() {
        true => Outcome::default(),
        false => test.drive(rate, options.duration, "test")?,
    };
    total.keep_books_of(&measured);

    let after = statistics(&mut client).ok();
    let agents_after = compute_agents(&mut client).map_or(0, |agents| agents.len());
    let staff_back = staff.put_back(&mut client);
    drop(client);
    let interrupted = test.stopped.get();
    let swarm_end = swarm.end();

    let grown = |name: &str| {
        let number = |value: &Value| value["tasks"][name].as_u64();
        Some(number(after.as_ref()?)?.saturating_sub(number(&before)?))
    };
    let verdict = Verdict {
        rate,
        rate_source: source,
        agents,
        agents_after,
        own: swarm.own,
        interrupted,
        lost: total.lost().max(grown("lost").unwrap_or(0)),
        duplicated: total.seen_twice().max(grown("duplicated").unwrap_or(0)),
        swarm_end: swarm_end.err().map(|error| format!("{error:#}")),
        staff_back: staff_back.err().map(|error| format!("{error:#}")),
        blind: after.is_none().then(|| "the swarm gave no statistics at the end".to_owned()),
        total,
        measured,
    };
    verdict.print(options)
}

// The swarm under test.

/// The swarm: found running, or started for the test.
struct Swarm {
    socket: PathBuf,
    child: Option<Child>,
    own: bool,
}

impl Swarm {
    fn find_or_start(options: &Options) -> anyhow::Result<Self> {
        let socket = socket_path(&options.name, options.state_dir.as_deref());
        match Client::connect(&socket) {
            Ok(_) => return Ok(Self { socket, child: None, own: false }),
            Err(ClientError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let here = std::env::current_exe().context("cannot tell where this program lies")?;
        let binary = here
            .ancestors()
            .skip(1)
            .take(2)
            .map(|folder| folder.join("ai_swarm_deploy"))
            .find(|path| path.is_file());
        let binary = binary.with_context(|| {
            format!(
                "no swarm {:?} runs, and there is no ai_swarm_deploy beside {} to start one; build it first",
                options.name,
                here.display()
            )
        })?;
        // A dead man's switch: it ends by itself should this test be killed.
        let at_most = options.duration + options.warmup + options.patience + Duration::from_secs(300);
        let mut command = Command::new(&binary);
        command.args([
            "--quiet",
            "--name",
            &options.name,
            "--monitor-duration",
            &at_most.as_secs().to_string(),
        ]);
        for (flag, path) in [("--state-dir", &options.state_dir), ("--config", &options.config)] {
            path.iter().for_each(|path| {
                command.arg(flag).arg(path);
            });
        }
        // A process group of its own: Ctrl-C ends the test, which then ends the swarm.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let deadline = clock::now().plus(PATIENCE);
        loop {
            if Client::connect(&socket).is_ok() {
                return Ok(Self { socket, child: Some(child), own: true });
            }
            if let Some(status) = child.try_wait()? {
                bail!("the swarm {:?} that was started for the test ended at once: {status}", options.name);
            }
            if clock::now() > deadline {
                let _ = child.kill().and_then(|()| child.wait());
                bail!(
                    "the swarm {:?} does not answer on {} after {} s",
                    options.name,
                    socket.display(),
                    PATIENCE.as_secs()
                );
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Stops the swarm if it is ours.
    fn end(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let asked = Client::connect(&self.socket)
            .and_then(|mut client| client.post("/api/v1/system/stop", &json!({})));
        let deadline = clock::now().plus(PATIENCE);
        while clock::now() < deadline && (asked.is_ok() || child.try_wait()?.is_some()) {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "the swarm that was started for the test ended with {status}");
                return Ok(());
            }
            sleep(Duration::from_millis(5));
        }
        let _ = child.kill().and_then(|()| child.wait());
        match asked {
            Ok(_) => bail!("the swarm did not stop within {} s and was killed", PATIENCE.as_secs()),
            Err(error) => bail!("the swarm could not be asked to stop and was killed: {error}"),
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("error: {error:#}");
        }
    }
}

fn statistics(client: &mut Client) -> Result<Value, ClientError> {
    client.get("/api/v1/system/statistics")
}

/// Id and state of every compute agent that is not gone or about to go.
fn compute_agents(client: &mut Client) -> Result<Vec<(String, String)>, ClientError> {
    let answer = client.get("/api/v1/agents")?;
    let agents = answer["agents"].as_array().cloned().unwrap_or_default();
    let word = |agent: &Value, field: &str| agent[field].as_str().unwrap_or_default().to_owned();
    let is_going = |agent: &Value| agent["state"] == "stopped" || agent["state"] == "draining";
    let living = agents.iter().filter(|agent| agent["kind"] == "compute" && !is_going(agent));
    Ok(living.map(|agent| (word(agent, "id"), word(agent, "state"))).collect())
}

/// Agents that this test added and removed.
struct Staff {
    socket: PathBuf,
    added: Vec<String>,
    removed: Vec<String>,
}

impl Staff {
    /// Makes sure that `wanted` compute agents take work; returns how many do.
    fn set(&mut self, client: &mut Client, wanted: Option<u32>) -> anyhow::Result<usize> {
        let found = compute_agents(client)?;
        let wanted = wanted.map_or(found.len(), |wanted| wanted as usize);
        for at in found.len()..wanted {
            let answer = client.post("/api/v1/agents/spawn", &json!({"kind": "compute"}));
            let agent =
                answer.with_context(|| format!("--agents {wanted}: agent {} cannot be started", at + 1))?;
            self.added.push(agent["id"].as_str().context("the new agent has no id")?.to_owned());
        }
        for (id, _) in found.iter().skip(wanted) {
            client
                .delete(&format!("/api/v1/agents/{}", segment(id)))
                .with_context(|| format!("cannot remove agent {id}"))?;
            self.removed.push(id.clone());
        }
        let deadline = clock::now().plus(PATIENCE);
        loop {
            let agents = compute_agents(client)?;
            if agents.len() == wanted && agents.iter().all(|(_, state)| state == "ready") {
                return Ok(wanted);
            }
            if clock::now() > deadline {
                let states: Vec<String> =
                    agents.iter().map(|(id, state)| format!("{id} is {state}")).collect();
                bail!(
                    "not {wanted} compute agents are ready after {} s: {}",
                    PATIENCE.as_secs(),
                    states.join(", ")
                );
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Puts the number of agents back.
    fn put_back(&mut self, client: &mut Client) -> anyhow::Result<()> {
        let there: Vec<String> = compute_agents(client)?.into_iter().map(|(id, _)| id).collect();
        for id in self.added.drain(..).filter(|id| there.contains(id)) {
            client
                .delete(&format!("/api/v1/agents/{}", segment(&id)))
                .with_context(|| format!("cannot remove agent {id}"))?;
        }
        for id in self.removed.drain(..).filter(|id| !there.contains(id)) {
            let answer = client.post("/api/v1/agents/spawn", &json!({"kind": "compute", "id": id}));
            answer.with_context(|| format!("cannot start agent {id} again"))?;
        }
        Ok(())
    }
}

impl Drop for Staff {
    fn drop(&mut self) {
        if !self.added.is_empty() || !self.removed.is_empty() {
            let back = Client::connect(&self.socket)
                .map_err(Into::into)
                .and_then(|mut client| self.put_back(&mut client));
            if let Err(error) = back {
                eprintln!("error: the number of agents is not what it was: {error:#}");
            }
        }
    }
}

// The work.

/// A folder that is gone when the value is.
struct TempDir(PathBuf);

fn tempdir() -> anyhow::Result<TempDir> {
    let path = std::env::temp_dir().join(format!("ai_swarm-load-{}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(TempDir(path))
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What one task is.
struct Work {
    task: Map<String, Value>,
    /// Folder for outputs, when the kernel writes arrays.
    outputs: Option<PathBuf>,
}

impl Work {
    fn new(options: &Options, folder: &Path) -> anyhow::Result<Self> {
        let kernel = KernelId::from_name(&options.kernel).with_context(|| {
            let near = KernelId::nearest_name(&options.kernel)
                .map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            format!("--kernel: no kernel is called {:?}{near}", options.kernel)
        })?;
        let (arrays, made) = synthetic_inputs(kernel, options.size as usize, DType::F32, 1)?;
        // Of what the made-up call would say, only what the user did not.
        let mut given = made.to_json();
        if arrays.is_empty() {
            given.clear();
        }
        for param in &options.params {
            let (name, value) =
                param.split_once('=').with_context(|| format!("--param {param:?} is not KEY=VALUE"))?;
            given.insert(name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)));
        }
        let params = check_params(kernel, &given).context("--param")?;
        let mut inputs = Vec::new();
        for (at, array) in arrays.iter().enumerate() {
            let path = folder.join(format!("in{at}.npy"));
            write_npy(&path, array, "load").with_context(|| format!("cannot write {}", path.display()))?;
            inputs.push(Value::from(path.to_str().context("the temporary folder's name is not UTF-8")?));
        }
        let mut task = Map::new();
        task.insert("kernel".into(), kernel.name().into());
        if !inputs.is_empty() {
            task.insert("inputs".into(), inputs.into());
        }
        if !given.is_empty() {
            task.insert("params".into(), given.into());
        }
        Ok(Self { task, outputs: output_needed(&params).then(|| folder.to_owned()) })
    }

    /// A request that submits the tasks `first..first + count` and waits for them.
    fn request(&self, first: u64, count: u64) -> Value {
        let task = |at: u64| {
            let mut task = self.task.clone();
            if let Some(folder) = &self.outputs {
                let path = folder.join(format!("out{}.npy", at % OUTPUTS));
                task.insert("output".into(), path.to_string_lossy().into_owned().into());
            }
            Value::Object(task)
        };
        json!({"wait": true, "tasks": (first..first + count).map(task).collect::<Vec<Value>>()})
    }
}

// The schedule.

/// When which task is due. Fixed from the start; nothing that happens moves it.
#[derive(Clone, Copy)]
struct Schedule {
    began: Nanos,
    tick_ns: f64,
    per_tick: f64,
    tasks: u64,
}

impl Schedule {
    fn new(rate: f64, span: Duration, tick_ms: f64) -> Self {
        let tasks = (rate * span.as_secs_f64()).round().max(1.0) as u64;
        // A little ahead, so that every connection is up when the first task is due.
        let began = clock::now().plus(Duration::from_millis(20));
        Self { began, tick_ns: tick_ms * 1e6, per_tick: rate * tick_ms / 1e3, tasks }
    }

    /// The tick of a task.
    fn tick(&self, task: u64) -> u64 {
        ((task as f64 + 0.5) / self.per_tick) as u64
    }

    /// When a task is due.
    fn intended(&self, task: u64) -> Nanos {
        Nanos(self.began.0 + (self.tick(task) as f64 * self.tick_ns) as u64)
    }

    /// Tasks that are due by `now`.
    fn due(&self, now: Nanos) -> u64 {
        if now < self.began {
            return 0;
        }
        let ticks = (now.since(self.began).as_nanos() as f64 / self.tick_ns).floor() + 1.0;
        // Rounding may differ by one task from `tick`; what is decided there counts.
        let mut due = ((ticks * self.per_tick) as u64).min(self.tasks);
        while due < self.tasks && self.intended(due) <= now {
            due += 1;
        }
        while due > 0 && self.intended(due - 1) > now {
            due -= 1;
        }
        due
    }

    /// When the next task would be due if there were one.
    fn end(&self) -> Nanos {
        self.intended(self.tasks)
    }
}

/// What is still to be sent. The connection that holds it waits for the next tick; the others wait for it.
struct Queue {
    schedule: Schedule,
    next: u64,
    closed: bool,
}

/// Takes what is due, waiting until something is. `None`: there is nothing more.
fn take(queue: &Mutex<Queue>) -> Option<(u64, u64)> {
    let mut held = queue.lock().expect("no holder panics");
    loop {
        if held.closed || held.next >= held.schedule.tasks {
            return None;
        }
        let now = clock::now();
        let due = held.schedule.due(now);
        if due > held.next {
            let first = held.next;
            let count = (due - first).min(REQUEST_TASKS_MAX);
            held.next += count;
            return Some((first, count));
        }
        let wait = held.schedule.intended(held.next).since(now);
        if wait > Duration::from_millis(100) {
            // So that closing is noticed.
            drop(held);
            sleep(Duration::from_millis(50));
            held = queue.lock().expect("no holder panics");
        } else {
            sleep(wait);
        }
    }
}

// The test.

/// One answered task.
struct Ended {
    number: u64,
    finished_ns: u64,
    succeeded: bool,
}

/// What became of one request.
struct Batch {
    first: u64,
    count: u64,
    sent: Nanos,
    answered: Nanos,
    ended: Vec<Ended>,
    refused: u64,
    /// The first thing that went wrong.
    error: Option<String>,
}

/// Sends requests until there is nothing more to send.
fn send(socket: &Path, work: &Work, queue: &Mutex<Queue>, results: &Sender<Batch>) {
    let mut client = None;
    while let Some((first, count)) = take(queue) {
        let request = work.request(first, count);
        let sent = clock::now();
        let answer = match client.take().map_or_else(|| Client::connect(socket), Ok) {
            Ok(mut open) => {
                let answer = open.post("/api/v1/tasks/submit", &request);
                client = Some(open);
                answer
            }
            Err(error) => Err(error),
        };
        let mut batch =
            Batch { first, count, sent, answered: clock::now(), ended: Vec::new(), refused: 0, error: None };
        match answer {
            Ok(answer) => batch.read(&answer),
            Err(error) => {
                // Turned down before it was taken; anything else may have been taken and counts as lost.
                let turned_down = matches!(
                    &error,
                    ClientError::Problem { status: 400..500, .. } | ClientError::Socket { .. }
                );
                if matches!(error, ClientError::NotRunning { .. }) {
                    queue.lock().expect("no holder panics").closed = true;
                }
                batch.refused = if turned_down { count } else { 0 };
                batch.error = Some(error.to_string());
            }
        }
        if results.send(batch).is_err() {
            return;
        }
    }
}

impl Batch {
    fn read(&mut self, answer: &Value) {
        for answer in answer["tasks"].as_array().into_iter().flatten() {
            let task = &answer["task"];
            let state = task["state"].as_str().unwrap_or("");
            let error = answer["error"].as_str().or(task["error"].as_str());
            match (state, task["number"].as_u64()) {
                ("succeeded" | "failed" | "cancelled", Some(number)) => {
                    let finished_ns =
                        task["finished_ns"].as_u64().filter(|at| *at > 0).unwrap_or(self.answered.0);
                    self.ended.push(Ended { number, finished_ns, succeeded: state == "succeeded" });
                }
                _ if error.is_some() && task.is_null() => self.refused += 1,
                _ => {}
            }
            if state != "succeeded" && self.error.is_none() {
                self.error = Some(error.unwrap_or("a task came back without an end").to_owned());
            }
        }
    }
}

/// What became of all tasks of one run.
struct Outcome {
    due: u64,
    sent: u64,
    succeeded: u64,
    failed: u64,
    refused: u64,
    numbers: Vec<u64>,
    /// From the intended time to the end, ns.
    latency: Histogram<u64>,
    /// From the intended time to the answer in our hands, ns.
    answered: Histogram<u64>,
    /// From the intended time to the moment the request went out, ns: what this program itself was late.
    late: Histogram<u64>,
    began: Nanos,
    last: Nanos,
    error: Option<String>,
}

impl Default for Outcome {
    fn default() -> Self {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are sound");
        Self {
            due: 0,
            sent: 0,
            succeeded: 0,
            failed: 0,
            refused: 0,
            numbers: Vec::new(),
            latency: histogram(),
            answered: histogram(),
            late: histogram(),
            began: Nanos(0),
            last: Nanos(0),
            error: None,
        }
    }
}

impl Outcome {
    fn add(&mut self, batch: &Batch, schedule: &Schedule) {
        self.sent += batch.count;
        self.refused += batch.refused;
        if self.error.is_none() {
            self.error.clone_from(&batch.error);
        }
        let since = |at: Nanos, task: u64| at.since(schedule.intended(task)).as_nanos() as u64;
        for task in batch.first..batch.first + batch.count {
            self.late.saturating_record(since(batch.sent, task));
        }
        // Answers stand in the order of the request; a refused task among them leaves a gap that only
        // shifts tasks of one tick or one backlog.
        for (task, ended) in (batch.first..).zip(&batch.ended) {
            self.numbers.push(ended.number);
            self.last = self.last.max(Nanos(ended.finished_ns));
            if ended.succeeded {
                self.succeeded += 1;
                self.latency.saturating_record(since(Nanos(ended.finished_ns), task));
                self.answered.saturating_record(since(batch.answered, task));
            } else {
                self.failed += 1;
            }
        }
    }

    /// Adds the numbers of tasks of another run, not its latencies.
    fn keep_books_of(&mut self, other: &Outcome) {
        self.due += other.due;
        self.sent += other.sent;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.refused += other.refused;
        self.numbers.extend(&other.numbers);
        if self.error.is_none() {
            self.error.clone_from(&other.error);
        }
    }

    /// Submitted, and no final answer came.
    fn lost(&self) -> u64 {
        self.sent - self.succeeded - self.failed - self.refused
    }

    /// Answers about a task that another answer was about already.
    fn seen_twice(&self) -> u64 {
        let mut numbers = self.numbers.clone();
        numbers.sort_unstable();
        numbers.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64
    }

    fn throughput(&self) -> f64 {
        let span = self.last.since(self.began).as_secs_f64();
        if span > 0.0 { self.succeeded as f64 / span } else { 0.0 }
    }
}

/// Everything a run needs.
struct Test<'a> {
    options: &'a Options,
    work: &'a Work,
    socket: &'a Path,
    signals: &'a StopSignals,
    /// Somebody asked us to stop.
    stopped: Cell<bool>,
}

impl Test<'_> {
    /// Sends tasks at `rate` for `span` and collects the answers.
    fn drive(&self, rate: f64, span: Duration, what: &str) -> anyhow::Result<Outcome> {
        let schedule = Schedule::new(rate, span, self.options.tick_ms);
        let queue = Arc::new(Mutex::new(Queue { schedule, next: 0, closed: false }));
        let (sender, results) = channel();
        let socket = self.socket.to_owned();
        // Not scoped: one that hangs for ever must not keep us from saying so.
        let shared =
            Arc::new((socket, Work { task: self.work.task.clone(), outputs: self.work.outputs.clone() }));
        for at in 0..self.options.connections {
            let (queue, sender, shared) = (queue.clone(), sender.clone(), shared.clone());
            std::thread::Builder::new()
                .name(format!("connection-{at}"))
                .spawn(move || send(&shared.0, &shared.1, &queue, &sender))
                .context("cannot start a thread for a connection")?;
        }
        drop(sender);
        let mut outcome = self.collect(&schedule, &queue, &results, what);
        let held = queue.lock().expect("no holder panics");
        outcome.due = schedule.due(clock::now());
        // Requests under way count as sent; without an answer their tasks are lost.
        outcome.sent = held.next;
        Ok(outcome)
    }

    fn collect(
        &self,
        schedule: &Schedule,
        queue: &Mutex<Queue>,
        results: &Receiver<Batch>,
        what: &str,
    ) -> Outcome {
        let mut outcome = Outcome { began: schedule.began, last: schedule.end(), ..Outcome::default() };
        let mut progress = Progress::new();
        let mut deadline = schedule.end().plus(self.options.patience);
        loop {
            match results.recv_timeout(Duration::from_millis(100)) {
                Ok(batch) => outcome.add(&batch, schedule),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = clock::now();
            if !self.stopped.get() && self.signals.take() > 0 {
                self.stopped.set(true);
                deadline = now.plus(self.options.patience.min(Duration::from_secs(5)));
                // Whoever holds the queue holds it for a tick at most.
                queue.lock().expect("no holder panics").closed = true;
            }
            if now > deadline {
                outcome
                    .error
                    .get_or_insert_with(|| "answers are missing and nobody waits any longer".to_owned());
                break;
            }
            progress.show(now, || {
                let p99 = outcome.latency.value_at_quantile(0.99) as f64 / 1e3;
                let spent = now.since(schedule.began).as_secs_f64();
                format!(
                    "{what} {spent:.0} s: {} of {} tasks answered, p99 {p99:.0} us",
                    outcome.numbers.len(),
                    schedule.tasks
                )
            });
        }
        progress.clear();
        outcome
    }

    /// Half of the highest rate that short runs sustain.
    fn sustainable_rate(&self) -> anyhow::Result<(f64, &'static str)> {
        // A few tasks one after the other: what latency is without load. Queueing is judged against it.
        let calm = self.drive(20.0, RAMP_STEP, "search")?;
        ensure!(
            calm.succeeded > 0,
            "not one task succeeded: {}",
            calm.error.as_deref().unwrap_or("no answer came")
        );
        let limit_ns = 20_000_000 + 10 * calm.latency.value_at_quantile(0.5);
        let mut sustained = None;
        let mut rate = RAMP.0;
        while (1.0..=RAMP.1).contains(&rate) {
            let step = self.drive(rate, RAMP_STEP, "search")?;
            if self.stopped.get() {
                break;
            }
            let fine = step.succeeded == step.due && step.latency.value_at_quantile(0.99) <= limit_ns;
            if fine {
                sustained = Some(rate);
            }
            // Up while it goes well; from a bad start down until it does.
            rate *= match (fine, rate <= RAMP.0 && sustained.is_none_or(|best| best <= RAMP.0)) {
                (true, _) if rate >= RAMP.0 => 2.0,
                (false, true) if sustained.is_none() => 0.5,
                _ => break,
            };
        }
        Ok(sustained.map_or((RATE_DEFAULT, "the default, nothing was sustained"), |rate| {
            (rate / 2.0, "half of what was sustained")
        }))
    }
}

/// A line that tells how far it is, on a terminal.
struct Progress {
    on: bool,
    shown: Nanos,
}

impl Progress {
    fn new() -> Self {
        Self { on: std::io::stderr().is_terminal(), shown: clock::now() }
    }

    fn show(&mut self, now: Nanos, text: impl FnOnce() -> String) {
        if self.on && now.since(self.shown) > Duration::from_millis(250) {
            self.shown = now;
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", text());
        }
    }

    fn clear(&self) {
        if self.on {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

// What came out.

struct Verdict {
    rate: f64,
    rate_source: &'static str,
    agents: usize,
    agents_after: usize,
    own: bool,
    lost: u64,
    duplicated: u64,
    swarm_end: Option<String>,
    staff_back: Option<String>,
    blind: Option<String>,
    interrupted: bool,
    /// Warm-up and test.
    total: Outcome,
    /// The test alone.
    measured: Outcome,
}

/// Microseconds at a quantile.
fn us(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

impl Verdict {
    fn errors(&self) -> u64 {
        self.total.failed + self.total.refused
    }

    /// What was broken, in words.
    fn breaches(&self, options: &Options) -> Vec<String> {
        let measured = &self.measured;
        let mut broken = Vec::new();
        for (name, quantile, limit) in
            [("--max-p99-us", 0.99, options.max_p99_us), ("--max-p999-us", 0.999, options.max_p999_us)]
        {
            let found = us(&measured.latency, quantile);
            if let Some(limit) = limit.filter(|limit| found > *limit) {
                broken.push(format!("{name} {limit}: it is {found:.0} us"));
            }
        }
        if let Some(limit) = options.min_throughput.filter(|limit| measured.throughput() < *limit) {
            broken.push(format!("--min-throughput {limit}: it is {:.0} tasks/s", measured.throughput()));
        }
        if self.errors() > options.max_errors {
            let why = self.total.error.as_deref().unwrap_or("no reason was given");
            let (failed, refused) = (self.total.failed, self.total.refused);
            broken.push(format!(
                "--max-errors {}: {failed} failed, {refused} refused; the first: {why}",
                options.max_errors
            ));
        }
        if self.lost > 0 {
            let why = self.total.error.as_deref().map_or(String::new(), |why| format!("; {why}"));
            broken.push(format!("no task may be lost: {} have no final answer{why}", self.lost));
        }
        if self.duplicated > 0 {
            broken.push(format!("no task may end twice: {} did", self.duplicated));
        }
        if measured.succeeded == 0 {
            broken.push("no task succeeded in the measured part".to_owned());
        }
        broken.extend([&self.swarm_end, &self.staff_back, &self.blind].into_iter().flatten().cloned());
        broken
    }

    fn print(&self, options: &Options) -> anyhow::Result<u8> {
        let broken = self.breaches(options);
        let text =
            if options.json { self.to_json(options, &broken).to_string() } else { self.to_text(options) };
        ai_swarm::cli::output::print(&text)?;
        if self.interrupted {
            eprintln!("stopped on request, before its time");
        }
        for breach in &broken {
            eprintln!("broken limit: {breach}");
        }
        Ok(if broken.is_empty() { 0 } else { BROKEN })
    }

    fn to_json(&self, options: &Options, broken: &[String]) -> Value {
        let percentiles = |histogram: &Histogram<u64>| {
            json!({
                "p50": us(histogram, 0.5), "p99": us(histogram, 0.99), "p999": us(histogram, 0.999),
                "max": histogram.max() as f64 / 1e3, "mean": histogram.mean() / 1e3,
            })
        };
        let m = &self.measured;
        json!({
            "swarm": options.name, "own_swarm": self.own, "kernel": options.kernel,
            "agents": self.agents, "agents_at_end": self.agents_after, "connections": options.connections,
            "duration_s": options.duration.as_secs_f64(), "tick_ms": options.tick_ms,
            "rate_tasks_per_s": self.rate, "rate_is": self.rate_source,
            "throughput_tasks_per_s": m.throughput(),
            "latency_us": percentiles(&m.latency), "answered_us": percentiles(&m.answered), "sent_late_us": percentiles(&m.late),
            "tasks": {
                "due": self.total.due, "sent": self.total.sent, "succeeded": self.total.succeeded,
                "failed": self.total.failed, "errors": self.errors(), "refused": self.total.refused,
                "lost": self.lost, "duplicated": self.duplicated, "measured": m.succeeded,
            },
            "interrupted": self.interrupted, "broken": broken,
        })
    }

    fn to_text(&self, options: &Options) -> String {
        let m = &self.measured;
        let agents = match self.agents_after {
            after if after == self.agents => String::new(),
            after => format!(" at the start, {after} at the end"),
        };
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let row = |name: &str, histogram: &Histogram<u64>| {
            format!(
                "{name:<22}{:>11.0}{:>11.0}{:>11.0}{:>11.0}\n",
                us(histogram, 0.5),
                us(histogram, 0.99),
                us(histogram, 0.999),
                histogram.max() as f64 / 1e3
            )
        };
        format!(
            "swarm {} ({}), compute agents: {}{agents}, {cores} cores shared with this test\n\
             {} tasks/s of {} ({}) for {:.1} s, due every {} ms, {} connections\n\n\
             throughput            {:>11.0} tasks/s\n\n\
             us                            p50        p99      p99.9        max\n{}{}{}\n\
             tasks, warm-up included: {} sent, {} succeeded, {} failed, {} refused, {} lost, {} duplicated\n",
            options.name,
            if self.own { "started for this test" } else { "found running" },
            self.agents,
            self.rate,
            options.kernel,
            self.rate_source,
            options.duration.as_secs_f64(),
            options.tick_ms,
            options.connections,
            m.throughput(),
            row("due to ended", &m.latency),
            row("due to answer here", &m.answered),
            row("due to sent", &m.late),
            self.total.sent,
            self.total.succeeded,
            self.total.failed,
            self.total.refused,
            self.lost,
            self.duplicated,
        )
    }
}
