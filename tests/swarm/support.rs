//! Where tests live ([`Place`]), the swarms they start ([`Swarm`]), and how they ask them.

use ai_swarm::arrays::{Array, ArrayRef, Element, NpyFile, write_npy};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Something that takes so long hangs. No test waits for it to pass.
pub const HANG: Duration = Duration::from_secs(300);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(4);
/// The kinds of agents.
pub const KINDS: [&str; 6] = ["compute", "resource", "optimization", "thermal", "fault", "learning"];
/// Marks the processes of a place, whoever started them.
const MARK: &str = "AI_SWARM_TEST_PLACE";

/// A file that belongs to the tests.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// Waits until `look` finds something. `state` is what is printed when it never does.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>, state: impl FnOnce() -> String) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < HANG, "waited {HANG:?} in vain until {what}; now:\n{}", state());
        std::thread::sleep(LOOK);
    }
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// The words it was called with.
    pub words: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Everything, for people who look at a failed test.
    pub fn story(&self) -> String {
        format!(
            "$ ai_swarm_deploy {}\n{}\nstdout:\n{}\nstderr:\n{}",
            self.words, self.status, self.out, self.err
        )
    }

    /// It ended with this code.
    #[track_caller]
    pub fn ends(self, code: i32) -> Ran {
        assert_eq!(self.status.code(), Some(code), "{}", self.story());
        self
    }

    /// Standard output has these words.
    #[track_caller]
    pub fn says(self, words: &str) -> Ran {
        assert!(self.out.contains(words), "standard output lacks {words:?}\n{}", self.story());
        self
    }

    /// Standard error has these words.
    #[track_caller]
    pub fn complains(self, words: &str) -> Ran {
        assert!(self.err.contains(words), "standard error lacks {words:?}\n{}", self.story());
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("no JSON: {error}\n{}", self.story()))
    }
}

/// Folders and a swarm name of one test. At its end nothing may be left of any swarm that lived here.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    name: String,
    commands: AtomicU32,
}

impl Place {
    /// A fresh one. Its paths are short: a socket has to fit below.
    pub fn new() -> Place {
        static PLACES: AtomicU32 = AtomicU32::new(0);
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        // No name begins with another one: leftovers are found by the beginnings of their names.
        let name = format!("t{}-{number}p", std::process::id());
        let root = Path::new("/tmp").join(format!("ais-{name}"));
        // A test process of the same number may have been killed here.
        let _ = fs::remove_dir_all(&root);
        for folder in ["state", "runtime", "work"] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root.join(folder))
                .expect("a folder in /tmp");
        }
        Place { root, name, commands: AtomicU32::new(0) }
    }

    /// The name of its swarm.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the folder in which commands run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join("work").join(name)
    }

    /// A path beside it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file into the working folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Writes an array into the working folder.
    pub fn write_array<T: Element>(&self, name: &str, shape: &[usize], elements: &[T]) -> PathBuf {
        let path = self.path(name);
        let array = Array::from_slice(shape, elements).expect("shape and elements agree");
        write_npy(&path, &array, "test").expect("an array can be written");
        path
    }

    /// Where its swarm answers.
    pub fn socket(&self) -> PathBuf {
        self.root.join("runtime/ai_swarm").join(&self.name).join("control.sock")
    }

    /// The environment of everything that runs here, put on a command.
    pub fn equip(&self, command: &mut Command) {
        for variable in ["AI_SWARM_CONFIG", "AI_SWARM_LOG_LEVEL", "NO_COLOR", "RUST_LOG", "RUST_BACKTRACE"] {
            command.env_remove(variable);
        }
        command
            .env(MARK, &self.root)
            .env("XDG_STATE_HOME", self.root.join("state"))
            .env("XDG_RUNTIME_DIR", self.root.join("runtime"))
            .env("HOME", &self.root)
            .current_dir(self.root.join("work"));
    }

    /// The binary with these words after this place's `--name`.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_as(&self.name, words)
    }

    /// The binary with these words after another `--name`, which begins as this place's does if it is to be found.
    pub fn command_as(&self, name: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ai_swarm_deploy"));
        self.equip(&mut command);
        command.args(["--name", name]).args(words);
        command
    }

    /// Runs the binary to its end.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> Ran {
        self.finish(self.command(words).stdin(Stdio::null()))
    }

    /// Runs the binary to its end, with `text` as its standard input.
    #[track_caller]
    pub fn cli_with(&self, words: &[&str], text: &str) -> Ran {
        let path = self.root.join("stdin");
        fs::write(&path, text).expect("a file in /tmp");
        self.finish(self.command(words).stdin(File::open(&path).expect("just written")))
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn finish(&self, command: &mut Command) -> Ran {
        self.start(command).finish()
    }

    /// Starts a command; its output goes to files.
    #[track_caller]
    pub fn start(&self, command: &mut Command) -> Running {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let out = self.root.join(format!("out-{number}"));
        let err = self.root.join(format!("err-{number}"));
        let create = |path: &Path| File::create(path).expect("a file in /tmp");
        let child = command.stdout(create(&out)).stderr(create(&err)).spawn();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let child = child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Running { child: Some(child), words: words.join(" "), out, err }
    }

    /// Processes of this place that live, with their command lines.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("{MARK}={}", self.root.display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("procfs").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process that goes away meanwhile, or has ended and was not waited for, has no environment.
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// Segments in shared memory that belong to swarms of this place.
    pub fn segments(&self) -> Vec<String> {
        let prefix = format!("ai_swarm-{}", self.name);
        let names = fs::read_dir("/dev/shm").expect("shared memory").flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }

    /// Whatever lives although nothing should.
    pub fn left_over(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect();
        left.extend(self.segments().into_iter().map(|name| format!("segment /dev/shm/{name}")));
        let mut folders = vec![self.root.join("runtime")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => left.push(format!("runtime file {}", path.display())),
                }
            }
        }
        let private = fs::read_dir(self.root.join("state/ai_swarm/private")).into_iter().flatten().flatten();
        left.extend(private.map(|entry| format!("private state {}", entry.path().display())));
        if self.root.join("state/ai_swarm/private").exists() {
            left.push("the folder of private states".to_owned());
        }
        left
    }

    /// Nothing is left.
    #[track_caller]
    pub fn is_clean(&self) {
        let left = self.left_over();
        assert!(left.is_empty(), "left over: {left:#?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.left_over();
        for (pid, _) in self.processes() {
            signal(pid, Signal::KILL);
        }
        for name in self.segments() {
            let _ = fs::remove_file(Path::new("/dev/shm").join(name));
        }
        let _ = fs::remove_dir_all(&self.root);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left over at the end: {left:#?}");
        }
    }
}

/// A command that was started. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    words: String,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("not finished").id()
    }

    /// What it said on standard output so far.
    pub fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// What it said on standard error so far.
    pub fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().expect("not finished").try_wait().expect("our own child")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Ran {
        let (out, err, words) = (self.out.clone(), self.err.clone(), self.words.clone());
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let state = || format!("{}\n{}", read(&out), read(&err));
        let status = until(&format!("`{words}` ends"), || self.ended(), state);
        self.child = None;
        Ran { words, status, out: read(&out), err: read(&err) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills a supervisor and, at the same moment, whoever would put away what it leaves.
pub fn kill_with_reaper(supervisor: u32) {
    let reaper = reaper(supervisor).expect("a reaper");
    // Stopped, it is not replaced and does nothing.
    assert!(signal(reaper, Signal::STOP) && signal(supervisor, Signal::KILL) && signal(reaper, Signal::KILL));
}

/// Sends a signal to a process, if it lives.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(pid as i32) else { return false };
    rustix::process::kill_process(pid, signal).is_ok()
}

/// Sends a signal to a process, if it lives and is a child of `parent`: never to one that got the number later.
pub fn signal_child(parent: u32, pid: u32, signal: Signal) -> bool {
    let Some(raw) = Pid::from_raw(pid as i32) else { return false };
    let Ok(pidfd) = rustix::process::pidfd_open(raw, PidfdFlags::empty()) else { return false };
    children(parent).contains(&pid) && rustix::process::pidfd_send_signal(&pidfd, signal).is_ok()
}

/// The children of a supervisor that are its agents and standbys: neither their guard nor who has not become either yet.
/// A process that is stopped in between stops its supervisor, and before its very first instruction outlives it.
pub fn children(parent: u32) -> Vec<u32> {
    children_with(parent, b"__agent")
}

/// The gateway of a supervisor, if one lives.
pub fn gateway(parent: u32) -> Option<u32> {
    children_with(parent, b"__gateway").into_iter().find(|&pid| lives(pid))
}

/// The process that puts away what a supervisor leaves when it is killed.
pub fn reaper(parent: u32) -> Option<u32> {
    children_with(parent, b"__reaper").into_iter().find(|&pid| lives(pid))
}

fn children_with(parent: u32, word: &[u8]) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let children = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.filter(|&pid| has_word(pid, word)).collect()
}

/// Whether a process is the guard of a swarm's agents.
pub fn is_guard(pid: u32) -> bool {
    has_word(pid, b"__guard")
}

fn has_word(pid: u32, word: &[u8]) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(word)
}

/// Whether a process lives: one that has ended but was not waited for does not.
pub fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// An answer of the control API.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }

    /// It has this status.
    #[track_caller]
    pub fn is(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// It is a problem document with this status, whose words include `words`.
    #[track_caller]
    pub fn refuses(self, status: u16, words: &str) {
        let answer = self.is(status);
        assert!(answer.head.contains("content-type: application/problem+json"), "{answer:?}");
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["type"].is_string() && problem["title"].is_string(), "{problem}");
        let detail = problem["detail"].as_str().expect("a problem has words");
        assert!(detail.contains(words), "{detail:?} lacks {words:?}");
    }
}

/// Sends bytes to a socket and reads the answer until the other side closes. `None`: nobody answers.
pub fn send(socket: &Path, bytes: &[u8]) -> Option<Answer> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(HANG)).expect("a time limit can be set");
    // Refused before all was sent: the answer says so.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

/// A request with a JSON body, or none.
pub fn request(method: &str, path: &str, body: Option<&Value>) -> Vec<u8> {
    let body = body.map_or_else(String::new, Value::to_string);
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A deployed swarm. Dropped, it is killed; [`Swarm::end`] ends it well.
#[derive(Debug)]
pub struct Swarm {
    /// Where it lives.
    pub place: Place,
    /// The supervisor.
    pub running: Running,
    report: PathBuf,
}

impl Swarm {
    /// Deploys one in a new place and waits until all its agents are ready.
    #[track_caller]
    pub fn deploy(config: &Value) -> Swarm {
        Swarm::deploy_in(Place::new(), config, &[])
    }

    /// Deploys one with more words and waits until all its agents are ready.
    #[track_caller]
    pub fn deploy_in(place: Place, config: &Value, words: &[&str]) -> Swarm {
        let command = place.command(&[]);
        Swarm::deploy_by(place, command, config, words)
    }

    /// Deploys one with more words and variables and waits until all its agents are ready.
    #[track_caller]
    pub fn deploy_with(place: Place, config: &Value, words: &[&str], variables: &[(&str, &str)]) -> Swarm {
        let mut command = place.command(&[]);
        command.envs(variables.iter().copied());
        Swarm::deploy_by(place, command, config, words)
    }

    /// Deploys one by a command of this place, which may have more in its environment or be of another program.
    #[track_caller]
    pub fn deploy_by(place: Place, mut command: Command, config: &Value, words: &[&str]) -> Swarm {
        let file = place.write("config.json", &config.to_string());
        let report = place.path("report.json");
        let mut all =
            vec!["--config", file.to_str().expect("text"), "--report", report.to_str().expect("text")];
        all.extend(words);
        let running = place.start(command.args(&all).stdin(Stdio::null()));
        let mut swarm = Swarm { place, running, report };
        swarm.wait_ready();
        swarm
    }

    /// Waits until every agent is ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let socket = self.place.socket();
        let mut last = None;
        let began = Instant::now();
        loop {
            if let Some(status) = self.running.ended() {
                panic!("the swarm ended by itself: {status}\n{}", self.running.err());
            }
            last = send(&socket, &request("GET", "/api/v1/agents", None)).or(last);
            let agents = last.as_ref().filter(|answer| answer.status == 200).map(Answer::json);
            let is_ready = |agents: &Value| {
                let agents = agents["agents"].as_array().expect("a list");
                agents.iter().all(|agent| agent["state"] == "ready")
                    && agents.iter().any(|agent| agent["kind"] == "compute")
            };
            if agents.as_ref().is_some_and(is_ready) {
                return;
            }
            assert!(began.elapsed() < HANG, "never ready: {last:?}\n{}", self.running.err());
            std::thread::sleep(LOOK);
        }
    }

    /// Asks its control API.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        send(&self.place.socket(), &request(method, path, body))
            .unwrap_or_else(|| panic!("no answer to {method} {path}\n{}", self.running.err()))
    }

    /// Asks for something that is there.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.ask("GET", path, None).is(200).json()
    }

    /// One look at everything.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.get("/api/v1/system/status")
    }

    /// All agents.
    #[track_caller]
    pub fn agents(&self) -> Vec<Value> {
        self.get("/api/v1/agents")["agents"].as_array().expect("a list").clone()
    }

    /// One agent.
    #[track_caller]
    pub fn agent(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/agents/{id}"))
    }

    /// One task.
    #[track_caller]
    pub fn task(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/tasks/{id}"))
    }

    /// Hands it tasks.
    #[track_caller]
    pub fn submit(&self, tasks: &Value) -> Value {
        let job = json!({"tasks": tasks, "base_dir": self.place.path("")});
        let answer = self.ask("POST", "/api/v1/tasks/submit", Some(&job)).is(202).json();
        let refused =
            answer["tasks"].as_array().expect("a list").iter().find(|task| !task["error"].is_null());
        assert!(refused.is_none(), "{answer}");
        answer["tasks"].clone()
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Value> {
        let text = self.ask("GET", "/api/v1/events?after=0&follow=false", None).is(200).body;
        text.lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).expect("an event is JSON"))
            .collect()
    }

    /// The events of a kind.
    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// Waits until `look` finds something.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Swarm) -> Option<T>) -> T {
        let state = || {
            let events: Vec<String> = self.events().iter().map(Value::to_string).collect();
            format!("{:#}\n{}\n{}", self.status(), events.join("\n"), self.running.err())
        };
        until(what, || look(self), state)
    }

    /// Waits for a task to be in this state.
    #[track_caller]
    pub fn until_task(&self, id: &str, state: &str) -> Value {
        self.until(&format!("task {id} is {state}"), |swarm| {
            let task = swarm.task(id);
            let ended = ["succeeded", "failed", "cancelled"].map(Value::from).contains(&task["state"]);
            assert!(!ended || task["state"] == state, "task {id} should become {state}: {task:#}");
            (task["state"] == state).then_some(task)
        })
    }

    /// Follows the events from now on, until one is found.
    pub fn follow(&self) -> Follower {
        let mut stream = UnixStream::connect(self.place.socket()).expect("the swarm listens");
        stream.set_read_timeout(Some(HANG)).expect("a time limit can be set");
        let head = "GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("sent");
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).expect("the head of the answer");
        }
        Follower(lines)
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, which: Signal) {
        assert!(signal(self.running.pid(), which), "the supervisor lives");
    }

    /// Ends it with SIGTERM: exit code 0, nothing left. Returns its report.
    #[track_caller]
    pub fn end(self) -> Value {
        self.signal(Signal::TERM);
        self.ends(0)
    }

    /// Waits for its end, with this exit code and nothing left. Returns its report.
    #[track_caller]
    pub fn ends(self, code: i32) -> Value {
        self.ends_for_now(code).1
    }

    /// As [`ends`](Self::ends), for another start in the same place.
    #[track_caller]
    pub fn ends_for_now(self, code: i32) -> (Place, Value) {
        let Swarm { place, running, report } = self;
        let ran = running.finish().ends(code);
        let left = place.left_over();
        assert!(left.is_empty(), "left over: {left:#?}\n{}", ran.story());
        let text =
            fs::read_to_string(&report).unwrap_or_else(|error| panic!("no report: {error}\n{}", ran.story()));
        (place, serde_json::from_str(&text).expect("the report is JSON"))
    }

    /// Kills the supervisor as the kernel would, and waits until all its processes are gone.
    #[track_caller]
    pub fn kill(self) -> Place {
        assert!(signal(self.running.pid(), Signal::KILL));
        self.after_kill()
    }

    /// As [`kill`](Self::kill), and nobody puts away what it leaves.
    #[track_caller]
    pub fn kill_with_reaper(self) -> Place {
        kill_with_reaper(self.running.pid());
        self.after_kill()
    }

    #[track_caller]
    fn after_kill(self) -> Place {
        let Swarm { place, running, .. } = self;
        let ran = running.finish();
        assert_eq!(ran.status.signal(), Some(9), "{}", ran.story());
        let gone = || place.processes().is_empty().then_some(());
        until("its agents are gone", gone, || format!("{:?}\n{}", place.processes(), ran.story()));
        place
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Follower(BufReader<UnixStream>);

impl Follower {
    /// The next event that `wanted` wants.
    #[track_caller]
    pub fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let (mut seen, began) = (Vec::new(), Instant::now());
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line);
            // Signs of life come for ever.
            assert!(began.elapsed() < HANG, "it did not come within {HANG:?}; these did: {seen:#?}");
            assert!(
                read.as_ref().is_ok_and(|bytes| *bytes > 0),
                "the stream ended ({read:?}) after {seen:#?}"
            );
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let event: Value = serde_json::from_str(data).expect("an event is JSON");
            if wanted(&event) {
                return event;
            }
            seen.push(event);
        }
    }

    /// Reads until the other side closes.
    pub fn rest(mut self) -> String {
        let mut text = Vec::new();
        let _ = self.0.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// An array from a file.
#[track_caller]
pub fn read_array(path: &Path) -> ArrayRef {
    NpyFile::open(path).and_then(NpyFile::into_array).unwrap_or_else(|error| panic!("{error}"))
}

/// Whether a field is there and of a type: `n` number, `u` whole number, `s` string, `a` array, `o` object, with
/// `?` also null.
#[track_caller]
pub fn has_fields(value: &Value, fields: &[(&str, &str)], what: &str) {
    for (name, kind) in fields {
        let found = value.get(name).unwrap_or_else(|| panic!("{what} has no `{name}`: {value:#}"));
        let fits = match kind.as_bytes()[0] {
            b'n' => found.is_number(),
            b'u' => found.is_u64(),
            b's' => found.is_string(),
            b'a' => found.is_array(),
            b'o' => found.is_object(),
            b'*' => true,
            other => panic!("unknown type {other}"),
        };
        assert!(fits || kind.ends_with('?') && found.is_null(), "{what}.{name} is {found}, not {kind:?}");
    }
}

/// The report has every field of the contract, in its type.
#[track_caller]
pub fn is_report(report: &Value) {
    has_fields(
        report,
        &[
            ("schema", "u"),
            ("swarm", "s"),
            ("host", "o"),
            ("wall_s", "n"),
            ("ready_s", "n"),
            ("tasks", "o"),
            ("throughput_tasks_per_s", "n"),
            ("latency_us", "o"),
            ("agents", "a"),
            ("kernels", "a"),
            ("recoveries", "a"),
        ],
        "report",
    );
    assert_eq!(report["schema"], 1);
    has_fields(&report["host"], &[("cores", "u"), ("simd", "a"), ("gpus", "a")], "host");
    let counts = ["total", "succeeded", "failed", "cancelled", "retried", "lost", "duplicated"];
    let hedges = ["hedged", "hedges_won", "hedges_lost"];
    let counts: Vec<(&str, &str)> = counts.into_iter().chain(hedges).map(|name| (name, "u")).collect();
    has_fields(&report["tasks"], &counts, "tasks");
    for name in ["dispatch", "service", "total"] {
        let percentiles = &report["latency_us"][name];
        has_fields(percentiles, &[("p50", "n"), ("p99", "n"), ("p999", "n")], name);
        let at = |name: &str| percentiles[name].as_f64().expect("a number");
        assert!(at("p50") <= at("p99") && at("p99") <= at("p999"), "{percentiles}");
    }
    let each = |list: &str, fields: &[(&str, &str)]| {
        for value in report[list].as_array().into_iter().flatten() {
            has_fields(value, fields, list);
        }
    };
    each(
        "agents",
        &[("id", "s"), ("kind", "s"), ("cores", "a"), ("tasks", "u"), ("restarts", "u"), ("busy_s", "n")],
    );
    each(
        "kernels",
        &[("kernel", "s"), ("backend", "s"), ("count", "u"), ("gflops", "n"), ("gbytes_per_s", "n")],
    );
    each("recoveries", &[("agent", "s"), ("cause", "s"), ("detect_us", "n?"), ("ready_us", "n?")]);
    each(
        "tasks_detail",
        &[
            ("id", "s"),
            ("state", "s"),
            ("attempts", "u"),
            ("agent", "s?"),
            ("backend", "s?"),
            ("result", "*"),
            ("error", "s?"),
            ("dispatch_us", "n"),
            ("service_us", "n"),
        ],
    );
}

/// How a report says that a task ended.
#[track_caller]
pub fn detail<'a>(report: &'a Value, id: &str) -> &'a Value {
    let tasks = report["tasks_detail"].as_array().expect("tasks in detail");
    tasks.iter().find(|task| task["id"] == id).unwrap_or_else(|| panic!("no task {id}: {report:#}"))
}
