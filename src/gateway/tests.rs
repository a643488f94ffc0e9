//! The gateway against a supervisor made of paper: the real socket, the real line between the two, the real client, and
//! clients that do not mean well.

use super::client::{Client, ClientError, segment};
use super::*;
use crate::base::ids::AgentKind;
use crate::messaging::envelope::Severity;
use crate::os::socket::listen;
use crate::supervisor::action::{
    AgentView, Refused, Reply, ReportHost, ReportView, SafetyView, StatisticsView, StatusView, Submitted,
    TaskCounts, TaskView,
};
use crate::supervisor::events::EventLog;
use crate::supervisor::hatch::Hatch;
use crate::tasks::Mode;
use rustix::net::SocketType;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DEFAULTS: Defaults = Defaults { timeout: None, retries: 2 };

/// A supervisor that knows one task and one agent, and answers at once, on the asker's thread.
#[derive(Default)]
struct Paper {
    state: Mutex<PaperState>,
}

#[derive(Default)]
struct PaperState {
    events: EventLog,
    /// Waiting submitters are never answered.
    hold: bool,
    held: Vec<Answer>,
    /// Nobody is there any more.
    gone: bool,
    no_agents: bool,
    stops: usize,
    submitted: usize,
    messages: Vec<PaperMessage>,
}

/// Receiver, topic, payload and time for a reply; no receiver: to all.
type PaperMessage = (Option<String>, Option<String>, Vec<u8>, Option<Duration>);

impl Paper {
    fn lock(&self) -> std::sync::MutexGuard<'_, PaperState> {
        self.state.lock().expect("no test panics inside")
    }

    fn happen(&self, kind: &str, text: &str) {
        let events = &mut self.lock().events;
        events.add(Severity::Info, kind, Some("compute-0"), text.to_owned());
        events.tell(|_| {});
    }
}

fn agent_view(state: &str) -> AgentView {
    AgentView {
        id: "compute-0".into(),
        kind: "compute".into(),
        state: state.into(),
        pid: Some(7),
        incarnation: 1,
        cores: vec![0],
        core_shared: false,
        tasks: 0,
        failures: 0,
        in_flight: 0,
        restarts: 0,
        busy_s: 0.0,
        cpu_percent: None,
        rss_bytes: None,
        counters: None,
    }
}

fn task_view(id: &str, state: &str) -> TaskView {
    TaskView {
        id: id.into(),
        number: 1,
        kernel: "noop".into(),
        state: state.into(),
        priority: "normal".into(),
        attempts: 1,
        hedged_on: None,
        parts: 0,
        undivided: None,
        retries_left: 0,
        waiting_for: Vec::new(),
        agent: Some("compute-0".into()),
        backend: None,
        result: None,
        error: None,
        queue_us: 1.0,
        dispatch_us: 1.0,
        service_us: 1.0,
        total_us: 3.0,
        finished_ns: 1,
        decision: None,
    }
}

impl Ask for Paper {
    fn ask(&self, action: Action, answer: Answer) {
        let mut state = self.lock();
        if state.gone {
            return;
        }
        let agents = || if state.no_agents { vec![agent_view("backoff")] } else { vec![agent_view("ready")] };
        let not_found =
            |what: &str, id: &str| Reply::Refused(Refused::NotFound(format!("no {what} has the id {id:?}")));
        let reply = match action {
            Action::Submit { wait: true, .. } if state.hold => {
                state.held.push(answer);
                return;
            }
            Action::Submit { tasks, wait, .. } => {
                state.submitted += tasks.len();
                let submitted = tasks.into_iter().map(|task| match task {
                    Ok(spec) => {
                        let id = spec.name.as_deref().unwrap_or("t1").to_owned();
                        Submitted {
                            task: wait.then(|| Box::new(task_view(&id, "succeeded"))),
                            id,
                            error: None,
                        }
                    }
                    Err(refused) => Submitted {
                        id: refused.spec.name.as_deref().unwrap_or("").to_owned(),
                        error: Some(refused.error),
                        task: None,
                    },
                });
                Reply::Submitted(submitted.collect())
            }
            Action::Tasks { limit, .. } => {
                Reply::Tasks((0..limit.min(2)).map(|_| task_view("a", "running")).collect())
            }
            Action::Task(id) if id == "a/b c" => Reply::Task(Box::new(task_view(&id, "running"))),
            Action::Task(id) => not_found("task", &id),
            Action::CancelTask(id) if id == "done" => {
                Reply::Refused(Refused::Conflict("ended already".into()))
            }
            Action::CancelTask(id) => Reply::Task(Box::new(task_view(&id, "cancelled"))),
            Action::Agents => Reply::Agents(agents()),
            Action::Agent(id) | Action::OptimizeAgent(id) | Action::DestroyAgent(id) if id != "compute-0" => {
                not_found("agent", &id)
            }
            Action::Agent(_) => Reply::Agent(Box::new(agent_view("ready"))),
            Action::CreateAgent { kind: AgentKind::Compute, .. } => {
                Reply::Agent(Box::new(agent_view("starting")))
            }
            Action::CreateAgent { kind, .. } => {
                Reply::Refused(Refused::Conflict(format!("a {kind} agent runs already")))
            }
            Action::OptimizeAgent(_) => {
                Reply::Refused(Refused::Conflict("compute-0 is a compute agent".into()))
            }
            Action::SwitchBalancer(Mode::Safe) => Reply::Done,
            Action::SwitchBalancer(_) => Reply::Refused(Refused::Conflict("ect has no modes".into())),
            Action::Status => Reply::Status(Box::new(StatusView {
                swarm: "paper".into(),
                state: "running".into(),
                pid: 0,
                uptime_s: 1.0,
                policy: "ect".into(),
                balancer: None,
                durability: Default::default(),
                tasks: TaskCounts::default(),
                queued: 0,
                in_flight: 0,
                agents: agents(),
                host: BTreeMap::new(),
                notes: Vec::new(),
                incidents: Vec::new(),
                incidents_total: 0,
                earlier: None,
                safety: SafetyView { level: "full".into(), ..SafetyView::default() },
                gateway: None,
            })),
            Action::Statistics => Reply::Statistics(Box::new(StatisticsView {
                tasks: TaskCounts::default(),
                results_refused: 0,
                experience_dropped: 0,
                latency_us: BTreeMap::new(),
                channels: Vec::new(),
                topics: Vec::new(),
                closed_traffic: Vec::new(),
                arenas: Vec::new(),
                members: Vec::new(),
                closed_channels: BTreeMap::new(),
                turns: 1,
                busy_turns: 0,
                sleeps: 0,
                wakes: 0,
            })),
            Action::Report { all_tasks } => Reply::Report(Box::new(ReportView {
                schema: 1,
                swarm: "paper".into(),
                host: ReportHost { cores: 1, simd: Vec::new(), gpus: Vec::new(), gpus_unavailable: None },
                wall_s: 1.0,
                ready_s: 0.1,
                tasks: TaskCounts::default(),
                throughput_tasks_per_s: 0.0,
                latency_us: BTreeMap::new(),
                agents: Vec::new(),
                kernels: Vec::new(),
                recoveries: Vec::new(),
                incidents: Vec::new(),
                tasks_detail: all_tasks.then(Vec::new),
            })),
            Action::Events(after) => {
                Reply::Events { events: state.events.since(after), latest: state.events.latest() }
            }
            Action::EarlierEvents => {
                let events = state.events.earlier().to_vec();
                Reply::Events { events, latest: state.events.latest() }
            }
            Action::SendMessage { to, .. } if to == "nobody" => not_found("member", &to),
            Action::SendMessage { to, payload, request } => {
                // `mute` never replies; everybody else says the message back.
                let reply = request.filter(|_| to != "mute").map(|_| payload.clone());
                let latency_us = reply.as_ref().map(|_| 2.5);
                state.messages.push((Some(to), None, payload, request));
                Reply::Sent { delivered: 1, reply, latency_us }
            }
            Action::BroadcastMessage { topic, payload } => {
                state.messages.push((None, topic, payload, None));
                Reply::Sent { delivered: 3, reply: None, latency_us: None }
            }
            Action::Stop { .. } => {
                state.stops += 1;
                Reply::Done
            }
            _ => Reply::Done,
        };
        drop(state);
        answer(reply);
    }
}

/// Messages do not go to the supervisor; here they go to the paper as well.
struct Door {
    supervisor: Arc<dyn Ask>,
    paper: Arc<Paper>,
}

impl Ask for Door {
    fn ask(&self, action: Action, answer: Answer) {
        match action {
            Action::SendMessage { .. } | Action::BroadcastMessage { .. } => self.paper.ask(action, answer),
            action => self.supervisor.ask(action, answer),
        }
    }
}

/// A gateway on a thread where there would be a process. Dropping it stops it.
#[derive(Debug)]
struct Gateway {
    socket: PathBuf,
    listener: UnixListener,
    hatch: Option<Hatch>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

fn start_with(socket: &Path, paper: Arc<Paper>, defaults: Defaults) -> io::Result<Gateway> {
    start_on(UnixListener::from(listen(socket, SocketType::STREAM)?), socket, paper, defaults)
}

/// On a listening socket that was there before it.
fn start_on(
    listener: UnixListener,
    socket: &Path,
    paper: Arc<Paper>,
    defaults: Defaults,
) -> io::Result<Gateway> {
    let lent = listener.try_clone()?;
    let (here, mut there) = UnixStream::pair()?;
    let Defaults { timeout, retries } = defaults;
    let (control, log_filter) = (socket.to_owned(), "info".to_owned());
    let start = GatewayStart { control, timeout, retries, log_filter, log_json: false };
    let asked = Arc::clone(&paper);
    let cores = crate::os::affinity::CoreMask::current().expect("the kernel says");
    let hatch = Hatch::open(here, &start, cores, move |action, answer| asked.ask(action, answer))?;
    paper.lock().events.follow_by(hatch.news());
    let serve = move || {
        let defaults = greeting(&mut there).expect("the first word").defaults();
        serve(lent, there, defaults, |supervisor| Ok(Arc::new(Door { supervisor, paper })))
    };
    let thread = Some(std::thread::Builder::new().name("gateway".to_owned()).spawn(serve)?);
    Ok(Gateway { socket: socket.to_owned(), listener, hatch: Some(hatch), thread })
}

impl Gateway {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn stop(self) {
        drop(self);
    }

    /// Ends without a word to anybody.
    fn die(mut self) {
        self.hatch = None;
        self.socket = PathBuf::new();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        self.hatch.iter().for_each(Hatch::close);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
        }
    }
}

struct Setup {
    paper: Arc<Paper>,
    gateway: Gateway,
    folder: tempfile::TempDir,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().expect("folder");
    let paper = Arc::new(Paper::default());
    let gateway =
        start_with(&folder.path().join("control.sock"), Arc::clone(&paper), DEFAULTS).expect("started");
    Setup { paper, gateway, folder }
}

impl Setup {
    fn client(&self) -> Client {
        Client::connect(self.gateway.socket()).expect("connected")
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.gateway.socket()).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream
    }

    /// Sends these bytes and returns all that comes back until the other side closes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.stream();
        stream.write_all(request).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        parse(&self.raw(&[head.as_bytes(), body.as_bytes()].concat()))
    }
}

fn parse(answer: &str) -> (u16, Value) {
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("{answer:?}"));
    let body = answer.split_once("\r\n\r\n").expect("a head").1;
    let body: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    if status >= 400 {
        assert!(answer.contains("content-type: application/problem+json"), "{answer}");
        assert_eq!(
            (body["status"].as_u64(), &body["type"]),
            (Some(u64::from(status)), &json!("about:blank"))
        );
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
    }
    (status, body)
}

#[test]
fn every_route_answers() {
    let setup = setup();
    let task = r#"{"tasks":[{"kernel":"noop","id":"x"},{"kernel":"nope"}]}"#;
    let waiting = r#"{"wait":true,"base_dir":"/tmp","tasks":[{"kernel":"noop"}]}"#;
    for (method, path, body, status, pointer, value) in [
        ("POST", "/api/v1/tasks/submit", task, 202, "/tasks/0/id", json!("x")),
        ("POST", "/api/v1/tasks/submit", task, 202, "/tasks/1/id", json!("#2")),
        ("POST", "/api/v1/tasks/submit", waiting, 200, "/tasks/0/task/state", json!("succeeded")),
        ("POST", "/api/v1/tasks/submit", r#"{"tasks":[]}"#, 202, "/tasks", json!([])),
        ("GET", "/api/v1/tasks", "", 200, "/tasks/1/state", json!("running")),
        ("GET", "/api/v1/tasks?state=failed&limit=0", "", 200, "/tasks", json!([])),
        ("GET", "/api/v1/tasks/a%2Fb%20c", "", 200, "/id", json!("a/b c")),
        ("GET", "/api/v1/tasks/a%2Fb%20c/status", "", 200, "/state", json!("running")),
        ("POST", "/api/v1/tasks/x/cancel", "", 200, "/state", json!("cancelled")),
        ("GET", "/api/v1/agents", "", 200, "/agents/0/id", json!("compute-0")),
        ("POST", "/api/v1/agents/spawn", r#"{"kind":"compute"}"#, 201, "/state", json!("starting")),
        ("GET", "/api/v1/agents/compute-0", "", 200, "/cores/0", json!(0)),
        ("DELETE", "/api/v1/agents/compute-0", "", 200, "/ok", json!(true)),
        ("POST", "/api/v1/messages/send", r#"{"to":"a","payload":"x"}"#, 200, "/delivered", json!(1)),
        ("POST", "/api/v1/messages/broadcast", r#"{"payload":"x"}"#, 200, "/delivered", json!(3)),
        ("GET", "/api/v1/system/status", "", 200, "/swarm", json!("paper")),
        ("GET", "/api/v1/system/statistics", "", 200, "/turns", json!(1)),
        ("GET", "/api/v1/system/report", "", 200, "/schema", json!(1)),
        ("GET", "/api/v1/system/report?tasks=all", "", 200, "/tasks_detail", json!([])),
        ("GET", "/api/v1/health", "", 200, "/status", json!("healthy")),
        ("GET", "/healthz", "", 200, "/ok", json!(true)),
        ("GET", "/readyz", "", 200, "/ready", json!(true)),
        ("POST", "/api/v1/system/stop", "", 202, "/ok", json!(true)),
    ] {
        let (found, answer) = setup.send(method, path, body);
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert_eq!(answer.pointer(pointer), Some(&value), "{method} {path}: {answer}");
    }
    assert_eq!(setup.paper.lock().stops, 1);
}

#[test]
fn every_error_is_a_problem_that_says_what_is_allowed() {
    let setup = setup();
    let submit = "/api/v1/tasks/submit";
    let (send, broadcast) = ("/api/v1/messages/send", "/api/v1/messages/broadcast");
    let long_topic = format!(r#"{{"payload":"x","topic":"{}"}}"#, "t".repeat(65));
    for (method, path, body, status, words) in [
        ("GET", "/", "", 404, "there is nothing at /"),
        ("GET", "/api/v1/nothing", "", 404, "there is nothing at /api/v1/nothing"),
        ("PUT", "/api/v1/tasks", "", 405, "PUT is not possible at /api/v1/tasks"),
        ("DELETE", "/healthz", "", 405, "DELETE is not possible at /healthz"),
        ("GET", "/api/v1/tasks/none", "", 404, "no task has the id \"none\""),
        ("GET", "/api/v1/tasks/%FF", "", 400, "Invalid"),
        ("GET", "/api/v1/tasks?state=done", "", 400, "`state` is \"done\", needs one of waiting, queued"),
        ("GET", "/api/v1/tasks?limit=x", "", 400, "limit"),
        ("GET", "/api/v1/tasks?limit=1000001", "", 400, "`limit` is 1000001, at most 100000"),
        ("GET", "/api/v1/tasks?stat=failed", "", 400, "stat"),
        ("POST", "/api/v1/tasks/done/cancel", "", 409, "ended already"),
        ("GET", "/api/v1/agents/none", "", 404, "no agent has the id \"none\""),
        ("DELETE", "/api/v1/agents/none", "", 404, "no agent has the id \"none\""),
        ("POST", "/api/v1/agents/compute-0/optimize", "", 409, "is a compute agent"),
        ("POST", "/api/v1/balancer/mode", r#"{"mode":"frozen"}"#, 409, "has no modes"),
        (
            "POST",
            "/api/v1/balancer/mode",
            r#"{"mode":"wild"}"#,
            400,
            "`mode` is \"wild\", needs one of learned, frozen, static, safe",
        ),
        ("POST", "/api/v1/balancer/mode", r#"{"modus":"safe"}"#, 400, "unknown field `modus`"),
        ("POST", "/api/v1/agents/spawn", r#"{"kind":"thermal"}"#, 409, "a thermal agent runs already"),
        (
            "POST",
            "/api/v1/agents/spawn",
            r#"{"kind":"quantum"}"#,
            400,
            "`kind` is \"quantum\", needs one of compute",
        ),
        ("POST", "/api/v1/agents/spawn", r#"{"sort":"compute"}"#, 400, "unknown field `sort`"),
        ("POST", "/api/v1/agents/spawn", "", 400, "line 1 column 0"),
        ("POST", submit, "", 400, "the body is not valid JSON: EOF"),
        ("POST", submit, "{\n\"tasks\": [}", 400, "at line 2 column 11"),
        ("POST", submit, "[]", 400, "found an array"),
        ("POST", submit, "{}", 400, "the key `tasks` is missing"),
        ("POST", submit, r#"{"tasks":[],"task":1}"#, 400, "unknown key `task`"),
        ("POST", submit, r#"{"tasks":[],"wait":1}"#, 400, "`wait` is 1, needs true or false"),
        (
            "POST",
            submit,
            r#"{"tasks":[],"base_dir":"x"}"#,
            400,
            "`base_dir` is \"x\", needs an absolute path",
        ),
        (
            "POST",
            submit,
            r#"{"tasks":[{"kernel":"dot","inputs":["x.npy"]}]}"#,
            400,
            "task #1: the path \"x.npy\" is relative",
        ),
        ("POST", send, "", 400, "the body is not valid JSON: EOF"),
        ("POST", send, r#"{"payload":"x"}"#, 400, "missing field `to`"),
        ("POST", send, r#"{"to":"a"}"#, 400, "missing field `payload`"),
        ("POST", send, r#"{"to":"","payload":"x"}"#, 400, "`to` is empty, needs the id of a member"),
        ("POST", send, r#"{"to":7,"payload":"x"}"#, 400, "expected a string"),
        ("POST", send, r#"{"to":"a","payload":"x","reply":1}"#, 400, "unknown field `reply`"),
        ("POST", send, r#"{"to":"a","payload":{"base64":7}}"#, 400, "`payload.base64` is 7, needs text"),
        (
            "POST",
            send,
            r#"{"to":"a","payload":{"base64":"*"}}"#,
            400,
            "`payload.base64` is not base64: Invalid",
        ),
        ("POST", broadcast, r#"{"payload":"x","topic":""}"#, 400, "`topic` is \"\", needs 1 to 64 letters"),
        ("POST", broadcast, r#"{"payload":"x","topic":"a\nb"}"#, 400, "needs 1 to 64 letters"),
        ("POST", broadcast, &long_topic, 400, "needs 1 to 64 letters"),
        ("POST", send, r#"{"to":"a","payload":"x","reply_within_s":0}"#, 400, "`reply_within_s` is 0, needs"),
        (
            "POST",
            send,
            r#"{"to":"a","payload":"x","reply_within_s":-1}"#,
            400,
            "a number above 0, at most 3600",
        ),
        (
            "POST",
            send,
            r#"{"to":"a","payload":"x","reply_within_s":1e9}"#,
            400,
            "`reply_within_s` is 1000000000",
        ),
        ("POST", send, r#"{"to":"a","payload":"x","reply_within_s":"1"}"#, 400, "expected f64"),
        ("POST", send, r#"{"to":"nobody","payload":"x"}"#, 404, "no member has the id \"nobody\""),
        (
            "POST",
            send,
            r#"{"to":"mute","payload":"x","reply_within_s":0.5}"#,
            504,
            "no reply came within 0.5 s",
        ),
        ("GET", send, "", 405, "GET is not possible"),
        ("POST", broadcast, r#"{"to":"a","payload":"x"}"#, 400, "unknown field `to`"),
        ("POST", broadcast, r#"{"payload":"x","reply_within_s":1}"#, 400, "unknown field `reply_within_s`"),
        ("GET", "/api/v1/system/report?tasks=some", "", 400, "`tasks` is \"some\", needs `all`"),
        ("GET", "/api/v1/events?after=x", "", 400, "after"),
    ] {
        let (found, problem) = setup.send(method, path, body);
        assert_eq!(found, status, "{method} {path} {body}: {problem}");
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(words), "{method} {path} {body}: {detail}\n  should say\n{words}");
    }
    assert_eq!(setup.paper.lock().submitted, 0, "nothing wrong got through");
    assert_eq!(setup.paper.lock().messages.len(), 1, "only the one without a reply");
    let answer = setup.raw(b"PUT /api/v1/agents/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.contains("allow: GET,HEAD,DELETE\r\n"), "{answer}");
}

#[test]
fn messages_travel_as_the_bytes_they_stand_for() {
    let setup = setup();
    let mut client = setup.client();
    let every_byte: Vec<u8> = (0..=255).collect();
    for (payload, bytes, reply) in [
        (json!("hello"), &b"hello"[..], json!("hello")),
        (json!(""), b"", json!("")),
        (json!("\u{1f41d}\0\n"), "\u{1f41d}\0\n".as_bytes(), json!("\u{1f41d}\0\n")),
        (json!({"base64": "aGVsbG8="}), b"hello", json!("hello")),
        (json!({"base64": "/wA="}), b"\xff\0", json!({"base64": "/wA="})),
        (super::payload::to_json(&every_byte), &every_byte, super::payload::to_json(&every_byte)),
        (
            json!({"op": "plan", "n": [1, 2.5]}),
            br#"{"op":"plan","n":[1,2.5]}"#,
            json!(r#"{"op":"plan","n":[1,2.5]}"#),
        ),
        (
            json!({"base64": "eA==", "more": 1}),
            br#"{"base64":"eA==","more":1}"#,
            json!(r#"{"base64":"eA==","more":1}"#),
        ),
        (json!(7), b"7", json!("7")),
        (Value::Null, b"null", json!("null")),
    ] {
        let body = json!({"to": "a", "payload": payload, "reply_within_s": 1.5});
        let answer = client.post("/api/v1/messages/send", &body).expect("delivered");
        assert_eq!(answer, json!({"delivered": 1, "reply": reply, "latency_us": 2.5}), "{payload}");
        let seen = setup.paper.lock().messages.pop().expect("one message");
        let span = Some(Duration::from_millis(1500));
        assert_eq!(seen, (Some("a".into()), None, bytes.to_vec(), span), "{payload}");
    }
    // No reply was asked for: none is waited for, and absent is not zero.
    let answer =
        client.post("/api/v1/messages/send", &json!({"to": "mute", "payload": "x"})).expect("delivered");
    assert_eq!(answer, json!({"delivered": 1, "reply": null, "latency_us": null}));
    let answer = client.post("/api/v1/messages/broadcast", &json!({"payload": [1]})).expect("delivered");
    assert_eq!(answer, json!({"delivered": 3, "reply": null, "latency_us": null}));
    let last = setup.paper.lock().messages.pop().expect("one message");
    assert_eq!(last, (None, None, b"[1]".to_vec(), None));
    // It was delivered all the same, and whoever asked hears that too.
    let (status, problem) =
        setup.send("POST", "/api/v1/messages/send", r#"{"to":"mute","payload":"x","reply_within_s":9}"#);
    assert_eq!((status, &problem["delivered"]), (504, &json!(1)), "{problem}");
}

#[test]
fn a_message_has_at_most_a_mebibyte() {
    let setup = setup();
    let mut client = setup.client();
    let limit = super::payload::PAYLOAD_BYTES_MAX;
    for (path, to) in [("send", json!({"to": "a"})), ("broadcast", json!({}))] {
        for payload in ["x".repeat(limit).into_bytes(), vec![0xff; limit]] {
            let mut body = to.clone();
            body["payload"] = super::payload::to_json(&payload);
            client.post(&format!("/api/v1/messages/{path}"), &body).expect("just fits");
            assert_eq!(setup.paper.lock().messages.pop().expect("one message").2, payload);
            body["payload"] = super::payload::to_json(&[&payload[..], &payload[..1]].concat());
            match client.post(&format!("/api/v1/messages/{path}"), &body) {
                Err(ClientError::Problem { status: 413, detail, .. }) => {
                    assert!(detail.contains("`payload` has 1048577 bytes, at most 1048576"), "{detail}");
                }
                other => panic!("{path}: {other:?}"),
            }
        }
    }
    assert!(setup.paper.lock().messages.is_empty(), "what is too large goes nowhere");
}

#[test]
fn readiness_and_health_say_why_not() {
    let setup = setup();
    setup.paper.lock().no_agents = true;
    let (status, problem) = setup.send("GET", "/readyz", "");
    assert_eq!(
        (status, &problem["detail"]),
        (503, &json!("no compute agent is ready: compute-0 is backoff"))
    );
    let (status, health) = setup.send("GET", "/api/v1/health", "");
    assert_eq!((status, &health["status"]), (200, &json!("unhealthy")));
    assert_eq!(health["reasons"][0], problem["detail"]);
}

#[test]
fn a_supervisor_that_is_gone_is_unavailable() {
    let setup = setup();
    setup.paper.lock().gone = true;
    for path in ["/api/v1/system/status", "/healthz", "/readyz", "/api/v1/events", "/api/v1/tasks"] {
        let (status, problem) = setup.send("GET", path, "");
        assert_eq!(status, 503, "{path}: {problem}");
    }
}

#[test]
fn a_body_that_is_too_large_is_refused_clearly() {
    let setup = setup();
    let submit = "POST /api/v1/tasks/submit HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    // Announced, and not sent before we agree.
    let answer =
        setup.raw(format!("{submit}expect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n").as_bytes());
    let (status, problem) = parse(&answer);
    assert_eq!(status, 413);
    let detail = problem["detail"].as_str().expect("text");
    assert!(detail.contains("of 99999999999 bytes is too large, at most 64 MiB are allowed"), "{detail}");
    // Announced and sent.
    let large = vec![b' '; http::BODY_BYTES_MAX + 1];
    let mut stream = setup.stream();
    stream.write_all(format!("{submit}content-length: {}\r\n\r\n", large.len()).as_bytes()).expect("sent");
    stream.write_all(&large).expect("taken, though not kept");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert_eq!(parse(&answer).0, 413);
    // Not announced.
    let mut stream = setup.stream();
    stream.write_all(format!("{submit}transfer-encoding: chunked\r\n\r\n").as_bytes()).expect("sent");
    for piece in large.chunks(1 << 20) {
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).expect("sent");
        stream.write_all(piece).expect("sent");
        stream.write_all(b"\r\n").expect("sent");
    }
    stream.write_all(b"0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert_eq!(parse(&answer).0, 413);
    // Exactly as much as is allowed, and our client is told the same as others.
    let mut job = br#"{"tasks":[]}"#.to_vec();
    job.resize(http::BODY_BYTES_MAX, b' ');
    let head = format!("{submit}content-length: {}\r\n\r\n", job.len());
    assert_eq!(parse(&setup.raw(&[head.as_bytes(), &job].concat())).0, 202);
    let error =
        setup.client().post("/api/v1/tasks/submit", &json!({"tasks": ["x".repeat(http::BODY_BYTES_MAX)]}));
    assert!(matches!(error, Err(ClientError::Problem { status: 413, .. })), "{error:?}");
}

#[test]
fn clients_that_mean_harm_or_fall_silent_disturb_nobody() {
    let setup = setup();
    // Half a request each, and open until the end of the test.
    let halves: [&[u8]; 5] = [
        b"",
        b"GET /healthz HT",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n",
        b"POST /api/v1/tasks/submit HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"tasks\":",
        b"POST /api/v1/tasks/submit HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffff\r\n{",
    ];
    let open: Vec<UnixStream> = halves
        .iter()
        .map(|bytes| {
            let mut stream = setup.stream();
            stream.write_all(bytes).expect("sent");
            stream
        })
        .collect();
    let garbage: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HELO there\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /api/v1/tasks/submit HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /api/v1/tasks/submit HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ];
    for bytes in garbage {
        let mut stream = setup.stream();
        stream.write_all(bytes).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("shut");
        let mut answer = Vec::new();
        // Whatever it is, it is no success.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{bytes:?}: {}", String::from_utf8_lossy(&answer));
    }
    // A head without end.
    let mut stream = setup.stream();
    let mut answer = String::new();
    let _ = stream.write_all(format!("GET /healthz HTTP/1.1\r\nx: {}", "y".repeat(1 << 20)).as_bytes());
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    // JSON as deep as the sea.
    let (status, problem) = setup.send("POST", "/api/v1/tasks/submit", &"[".repeat(1 << 20));
    assert!(
        status == 400 && problem["detail"].as_str().expect("text").contains("recursion limit"),
        "{problem}"
    );

    assert_eq!(setup.send("GET", "/healthz", "").0, 200);
    assert_eq!(setup.paper.lock().submitted, 0);
    drop(open);
}

/// Both ends of all connections are in this process.
fn many_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
}

#[test]
fn two_hundred_connections_at_once_are_served() {
    many_descriptors();
    let setup = setup();
    let mut streams: Vec<UnixStream> = (0..200).map(|_| setup.stream()).collect();
    for stream in &mut streams {
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    }
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn more_connections_than_places_wait_for_their_turn() {
    many_descriptors();
    let setup = setup();
    let idle: Vec<UnixStream> = (0..http::CONNECTIONS_MAX + 8).map(|_| setup.stream()).collect();
    let mut waiting = setup.stream();
    waiting.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    drop(idle);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn one_client_asks_thousands_of_times_over_one_connection() {
    let setup = setup();
    let mut client = setup.client();
    for _ in 0..3000 {
        assert_eq!(client.get("/readyz").expect("answered")["ready"], true);
    }
    let answer = client.get(&format!("/api/v1/tasks/{}", segment("a/b c"))).expect("found");
    assert_eq!(answer["id"], "a/b c");
    match client.post("/api/v1/agents/spawn", &json!({"kind": "fault"})) {
        Err(ClientError::Problem { status: 409, title, detail }) => {
            assert_eq!((&*title, &*detail), ("Conflict", "a fault agent runs already"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.delete("/api/v1/agents/compute-0").expect("done")["ok"], true);
    assert!(matches!(client.get("/%%%"), Err(ClientError::Problem { status: 400 | 404, .. })));
    assert!(matches!(client.get("no path"), Err(ClientError::Answer(_))));
}

#[test]
fn a_client_outlives_a_restart_of_the_swarm() {
    let setup = setup();
    let mut client = setup.client();
    client.get("/readyz").expect("answered");
    let socket = setup.gateway.socket().to_owned();
    setup.gateway.stop();
    assert!(matches!(client.get("/readyz"), Err(ClientError::NotRunning { .. })));
    let _second = start_with(&socket, Arc::clone(&setup.paper), DEFAULTS).expect("started again");
    client.get("/readyz").expect("answered again");
    client.post("/api/v1/tasks/submit", &json!({"tasks": []})).expect("answered again");
}

#[test]
fn past_events_are_replayed_and_new_ones_follow() {
    let setup = setup();
    for n in 1..=5 {
        setup.paper.happen("past", &n.to_string());
    }
    let numbers = |client: &mut Client, after| {
        let mut seen = Vec::new();
        let outcome = client.events(after, false, false, |event| {
            seen.push(event.seq);
            ControlFlow::Continue(())
        });
        outcome.expect("events");
        seen
    };
    let mut client = setup.client();
    assert_eq!(numbers(&mut client, 0), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(&mut client, 3), [4, 5]);
    assert_eq!(numbers(&mut client, 5), [] as [u64; 0]);
    assert_eq!(
        numbers(&mut client, 900),
        [1, 2, 3, 4, 5],
        "a number from another swarm says nothing about this one"
    );

    let (paper, mut next) = (Arc::clone(&setup.paper), 3);
    let outcome = client.events(3, false, true, |event| {
        next += 1;
        assert_eq!(event.seq, next);
        // More at once than the buffer holds: what is lost there is fetched again.
        if next == 5 {
            for n in 0..2000 {
                paper.happen("flood", &n.to_string());
            }
        }
        if next == 2005 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    outcome.expect("events");
    assert_eq!(next, 2005);
}

#[test]
fn the_event_stream_has_the_form_that_browsers_expect() {
    let setup = setup();
    setup.paper.happen("one", "first");
    setup.paper.happen("two\nlines\r", "second \u{1f41d}\nline");
    let get = "GET /api/v1/events?after=0&follow=false HTTP/1.1\r\nhost: x\r\nconnection: close\r\nlast-event-id: 1\r\n\r\n";
    let answer = setup.raw(get.as_bytes());
    assert!(answer.contains("content-type: text/event-stream"), "{answer}");
    assert!(answer.contains("id: 2\nevent: two lines \ndata: {\"seq\":2,"), "{answer}");
    assert!(answer.contains("second \u{1f41d}\\nline") && !answer.contains("id: 1\n"), "{answer}");
    let (status, problem) = parse(&setup.raw(get.replace(": 1", ": one").as_bytes()));
    assert!(
        status == 400 && problem["detail"].as_str().expect("text").contains("`Last-Event-ID`"),
        "{problem}"
    );
}

#[test]
fn without_a_place_only_new_events_come() {
    let setup = setup();
    setup.paper.happen("old", "");
    let mut stream = setup.stream();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.windows(5).any(|window| window == b"id: 2") {
        // Until the subscription is there, nothing comes of it; then the first is enough.
        if seen.ends_with(b"\r\n\r\n") {
            setup.paper.happen("new", "");
        }
        let count = stream.read(&mut buffer).expect("read");
        assert!(count > 0, "the stream goes on");
        seen.extend_from_slice(&buffer[..count]);
    }
    assert!(!String::from_utf8_lossy(&seen).contains("id: 1\n"));
}

#[test]
fn a_stop_is_prompt_with_streams_and_waiters_open() {
    let setup = setup();
    setup.paper.lock().hold = true;
    setup.paper.happen("past", "");
    let socket = setup.gateway.socket().to_owned();
    let (tell, told) = std::sync::mpsc::channel();
    let followers: Vec<_> = (0..3)
        .map(|_| {
            let (socket, tell) = (socket.clone(), tell.clone());
            std::thread::spawn(move || {
                let mut seen = 0;
                let mut client = Client::connect(&socket).expect("connected");
                let outcome = client.events(0, false, true, |_| {
                    seen += 1;
                    let _ = tell.send(());
                    ControlFlow::Continue(())
                });
                outcome.expect("a stop ends a stream properly");
                seen
            })
        })
        .collect();
    let waiter = {
        let socket = socket.clone();
        std::thread::spawn(move || {
            let mut client = Client::connect(&socket).expect("connected");
            client.post("/api/v1/tasks/submit", &json!({"wait": true, "tasks": [{"kernel": "noop"}]}))
        })
    };
    let mut half = setup.stream();
    half.write_all(b"POST /api/v1/tasks/submit HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        .expect("sent");
    let deadline = Instant::now() + Duration::from_secs(20);
    while setup.paper.lock().held.is_empty() {
        assert!(Instant::now() < deadline, "the waiter has asked");
        std::thread::yield_now();
    }
    for _ in 0..3 {
        told.recv_timeout(Duration::from_secs(20)).expect("every stream is open: it has brought the past");
    }
    let idle = setup.client();
    setup.paper.happen("last", "");
    let began = Instant::now();
    setup.gateway.stop();
    let took = began.elapsed();
    assert!(!socket.exists());
    for follower in followers {
        assert!(follower.join().expect("no panic") <= 2);
    }
    let outcome = waiter.join().expect("no panic");
    assert!(matches!(outcome, Err(ClientError::Problem { status: 503, .. })), "{outcome:?}");
    drop(idle);
    // The half-open request is the only one that is cut off, after the farewell.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn who_was_not_answered_asks_the_next_gateway() {
    let setup = setup();
    setup.paper.happen("past", "");
    // The first gateway dies under a question, a submission and a stream, the second one answers. It is a thread and
    // cannot be killed: its line is cut, which ends it as abruptly.
    let (socket, paper) = (setup.gateway.socket().to_owned(), Arc::clone(&setup.paper));
    paper.lock().hold = true;
    let (tell, told) = std::sync::mpsc::channel();
    let follower = {
        let socket = socket.clone();
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            let outcome = Client::connect(&socket).expect("connected").events(0, false, true, |event| {
                seen.push(event.seq);
                let _ = tell.send(());
                if event.seq < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            outcome.map(|()| seen)
        })
    };
    told.recv_timeout(Duration::from_secs(20)).expect("the past");
    let job = json!({"wait": true, "tasks": [{"kernel": "noop", "idempotency_key": "k"}]});
    let submitters: Vec<_> = [true, false]
        .into_iter()
        .map(|again| {
            let (socket, job) = (socket.clone(), job.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(&socket).expect("connected");
                let path = "/api/v1/tasks/submit";
                if again { client.post_repeatable(path, &job) } else { client.post(path, &job) }
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while paper.lock().held.len() < 2 {
        assert!(Instant::now() < deadline, "both have asked");
        std::thread::yield_now();
    }
    let listener = setup.gateway.listener.try_clone().expect("a copy");
    let Setup { gateway, folder, .. } = setup;
    gateway.die();
    paper.lock().hold = false;
    paper.happen("between", "");
    let second = start_on(listener, &socket, Arc::clone(&paper), DEFAULTS).expect("started");
    paper.happen("after", "");
    let mut outcomes = submitters.into_iter().map(|thread| thread.join().expect("no panic"));
    let answer = outcomes.next().expect("two").expect("answered by the second");
    assert_eq!(answer["tasks"][0]["task"]["state"], "succeeded");
    let error = outcomes.next().expect("two").expect_err("this might have been done twice");
    assert!(matches!(error, ClientError::Broken(_)), "{error}");
    assert!(error.to_string().contains("may or may not have been done"), "{error}");
    assert_eq!(follower.join().expect("no panic").expect("followed to its end"), [1, 2, 3]);
    second.stop();
    drop(folder);
}

#[test]
fn the_socket_is_ours_alone_and_leftovers_are_replaced() {
    let setup = setup();
    let socket = setup.gateway.socket().to_owned();
    let mode = fs::metadata(&socket).expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = start_with(&socket, Arc::clone(&setup.paper), DEFAULTS).expect_err("somebody answers there");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(socket.exists(), "and keeps its socket");
    setup.gateway.stop();
    assert!(!socket.exists());
    // What a killed gateway leaves.
    drop(UnixListener::bind(&socket).expect("bound"));
    assert!(socket.exists());
    start_with(&socket, Arc::clone(&setup.paper), DEFAULTS).expect("a dead socket is replaced").stop();
    // Somebody's file.
    let file = setup.folder.path().join("file");
    fs::write(&file, "precious").expect("written");
    start_with(&file, Arc::clone(&setup.paper), DEFAULTS).expect_err("not a socket");
    assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");
    let long = setup.folder.path().join("x".repeat(200));
    start_with(&long, Arc::clone(&setup.paper), DEFAULTS).expect_err("no room in an address");
}

#[test]
fn an_idle_gateway_does_not_run() {
    let setup = setup();
    let mut client = setup.client();
    client.get("/readyz").expect("answered");
    let turns = |folder: &Path| -> u64 {
        let tasks = fs::read_dir(folder).expect("threads").flatten();
        let gateways = tasks.filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "gateway\n")
        });
        let switches = gateways.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let count = |status: String| {
            let lines = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
            lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
        };
        switches.map(count).sum()
    };
    // Other tests of this process have gateways too; what is asked is that a pause without any turn exists.
    let folder = Path::new("/proc/self/task");
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let before = turns(folder);
        std::thread::sleep(Duration::from_millis(200));
        if turns(folder) == before {
            break;
        }
        assert!(Instant::now() < deadline, "the gateway keeps waking up");
    }
}
