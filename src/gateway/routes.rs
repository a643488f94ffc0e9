//! Every path: request to [`Action`], [`Reply`] to JSON.

use super::Ask;
use super::http::read_body;
use super::payload::{self, PAYLOAD_BYTES_MAX};
use super::problem::Problem;
use crate::base::ids::AgentKind;
use crate::jobs::{self, Defaults, Strict};
use crate::messaging::attach::{NAME_BYTES, is_name};
use crate::supervisor::action::{Action, AgentView, Refused, Reply, StatusView, Submitted, TaskView};
use crate::supervisor::events::Event;
use crate::tasks::Mode;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

/// The supervisor answers within microseconds; when it takes so long, something is wrong.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Tasks in a list when no number is asked for, and at most.
const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 100_000;
/// A sign of life on a silent event stream, so that dead connections are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Whoever tunes is asked so often whether it is through, and whether it still lives.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Longest time that somebody may wait for a reply.
const REPLY_LIMIT: Duration = Duration::from_secs(3600);
/// The words for states of tasks.
const TASK_STATES: [&str; 8] =
    ["waiting", "queued", "dispatched", "running", "retrying", "succeeded", "failed", "cancelled"];

type Answered = Result<Response<Body>, Problem>;
type Id = Result<Path<String>, PathRejection>;

/// What every handler needs.
#[derive(Clone)]
struct Gate {
    supervisor: Arc<dyn Ask>,
    defaults: Defaults,
    closing: watch::Receiver<bool>,
    /// Number of the latest event.
    news: watch::Receiver<u64>,
}

/// All routes.
pub fn router(
    supervisor: Arc<dyn Ask>,
    defaults: Defaults,
    closing: watch::Receiver<bool>,
    news: watch::Receiver<u64>,
) -> Router {
    let api = Router::new()
        .route("/tasks/submit", post(submit))
        .route("/tasks", get(tasks))
        .route("/tasks/{id}", get(task))
        .route("/tasks/{id}/status", get(task_status))
        .route("/tasks/{id}/cancel", post(cancel))
        .route("/agents", get(agents))
        .route("/agents/spawn", post(spawn))
        .route("/agents/{id}", get(agent).delete(destroy))
        .route("/agents/{id}/optimize", post(optimize))
        .route("/agents/{id}/restart", post(restart))
        .route("/balancer/mode", post(balancer_mode))
        .route("/messages/send", post(send))
        .route("/messages/broadcast", post(broadcast))
        .route("/system/status", get(status))
        .route("/system/statistics", get(statistics))
        .route("/system/report", get(report))
        .route("/system/stop", post(stop))
        .route("/events", get(events))
        .route("/health", get(health));
    Router::new()
        .nest("/api/v1", api)
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(async |request: Request| {
            Problem::not_found(format!("there is nothing at {}", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let detail = format!("{} is not possible at {}", request.method(), request.uri().path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
        })
        .with_state(Gate { supervisor, defaults, closing, news })
}

impl Gate {
    /// Asks the supervisor, which shall answer at once.
    async fn ask(&self, action: Action) -> Result<Reply, Problem> {
        self.ask_within(ANSWER_LIMIT, action).await
    }

    async fn ask_within(&self, limit: Duration, action: Action) -> Result<Reply, Problem> {
        timeout(limit, self.ask_patiently(action)).await.unwrap_or_else(|_| {
            let detail = format!(
                "the supervisor did not answer within {} s; what was asked may have been done, or may be when it goes on",
                limit.as_secs()
            );
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
        })
    }

    /// Asks the supervisor and waits for as long as it takes.
    async fn ask_patiently(&self, action: Action) -> Result<Reply, Problem> {
        let (sender, receiver) = oneshot::channel();
        self.supervisor.ask(
            action,
            Box::new(move |reply| {
                let _ = sender.send(reply);
            }),
        );
        let mut closing = self.closing.clone();
        let reply = tokio::select! {
            biased;
            reply = receiver => reply.ok(),
            _ = closing.wait_for(|closing| *closing) => None,
        };
        match reply {
            Some(Reply::Refused(Refused::NotFound(words))) => Err(Problem::not_found(words)),
            Some(Reply::Refused(Refused::Conflict(words))) => Err(Problem::conflict(words)),
            Some(Reply::Refused(Refused::Unavailable(words))) => Err(Problem::unavailable(words)),
            Some(reply) => Ok(reply),
            None => Err(Problem::unavailable("the swarm is stopping or has ended")),
        }
    }

    async fn task(&self, id: Id) -> Result<Box<TaskView>, Problem> {
        match self.ask(Action::Task(named(id)?)).await? {
            Reply::Task(task) => Ok(task),
            other => Err(unexpected(&other)),
        }
    }

    async fn agents(&self) -> Result<Vec<AgentView>, Problem> {
        match self.ask(Action::Agents).await? {
            Reply::Agents(agents) => Ok(agents),
            other => Err(unexpected(&other)),
        }
    }

    async fn agent(&self, id: String) -> Result<Box<AgentView>, Problem> {
        match self.ask(Action::Agent(id)).await? {
            Reply::Agent(agent) => Ok(agent),
            other => Err(unexpected(&other)),
        }
    }

    /// What an optimization agent has tuned, which it says when it is not at it.
    async fn tuned(&self, id: &str, within: Duration) -> Result<Value, Problem> {
        let (to, payload) = (id.to_owned(), b"tuned".to_vec());
        let action = Action::SendMessage { to, payload, request: Some(within.max(Duration::from_nanos(1))) };
        match self.ask_within(ANSWER_LIMIT + within, action).await? {
            Reply::Sent { reply: Some(tuned), .. } => serde_json::from_slice(&tuned).map_err(|error| {
                Problem::new(StatusCode::BAD_GATEWAY, format!("agent {id} answers with no JSON: {error}"))
            }),
            Reply::Sent { .. } => {
                let detail = format!("agent {id} did not answer within {} s", within.as_secs_f64());
                Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn status(&self) -> Result<Box<StatusView>, Problem> {
        match self.ask(Action::Status).await? {
            Reply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Events of earlier lives.
    async fn earlier_events(&self) -> Result<Vec<Event>, Problem> {
        match self.ask(Action::EarlierEvents).await? {
            Reply::Events { events, .. } => Ok(events),
            other => Err(unexpected(&other)),
        }
    }

    /// Events after this number, and the number of the latest one.
    async fn events_after(&self, after: u64) -> Result<(Vec<Event>, u64), Problem> {
        match self.ask(Action::Events(after)).await? {
            Reply::Events { events, latest } => Ok((events, latest)),
            other => Err(unexpected(&other)),
        }
    }

    /// For actions whose success needs no words.
    async fn act(&self, action: Action) -> Answered {
        self.ask(action).await.map(|_| json_response(StatusCode::OK, &json!({"ok": true})))
    }
}

/// Our own mistake: the supervisor answered something else than was asked.
fn unexpected(reply: &Reply) -> Problem {
    let mut words = format!("{reply:?}");
    words.truncate(words.char_indices().nth(80).map_or(words.len(), |(at, _)| at));
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the supervisor's answer does not fit: {words}"))
}

fn json_response(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("no JSON: {error}")).into_response()
        }
    }
}

fn ok(value: &impl Serialize) -> Answered {
    Ok(json_response(StatusCode::OK, value))
}

fn named(id: Id) -> Result<String, Problem> {
    id.map(|Path(id)| id).map_err(|error| Problem::bad_request(error.body_text()))
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| Problem::bad_request(error.body_text()))
}

fn read_json(body: &[u8]) -> Result<Value, Problem> {
    let read = serde_json::from_slice(body).map_err(|error| Problem::bad_json(&error));
    read.map(|Strict(value)| value)
}

// Tasks.

async fn submit(State(gate): State<Gate>, headers: HeaderMap, body: Body) -> Answered {
    let job = read_json(&read_body(&headers, body).await?)?;
    let wait = match job.get("wait") {
        None => false,
        Some(Value::Bool(wait)) => *wait,
        Some(other) => return Err(Problem::bad_request(format!("`wait` is {other}, needs true or false"))),
    };
    let base = base_dir(&job)?;
    let tasks = jobs::parse_value(&job, base, &gate.defaults)
        .map_err(|error| Problem::bad_request(error.to_string()))?;
    let action = Action::Submit { tasks, record_refused: false, wait };
    let reply = if wait { gate.ask_patiently(action).await? } else { gate.ask(action).await? };
    let Reply::Submitted(mut submitted) = reply else { return Err(unexpected(&reply)) };
    name_refused(&mut submitted, &job);
    let status = if wait { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(json_response(status, &json!({ "tasks": submitted })))
}

/// The folder for relative paths. Without one there must be none: nobody knows which folder was meant.
fn base_dir(job: &Value) -> Result<&std::path::Path, Problem> {
    if let Some(base) = job.get("base_dir") {
        return match base.as_str().map(std::path::Path::new) {
            Some(path) if path.is_absolute() => Ok(path),
            _ => Err(Problem::bad_request(format!("`base_dir` is {base}, needs an absolute path"))),
        };
    }
    let tasks = job.get("tasks").and_then(Value::as_array);
    for (at, task) in tasks.into_iter().flatten().enumerate() {
        let inputs = task.get("inputs").and_then(Value::as_array).into_iter().flatten();
        let paths = inputs.chain(task.get("output")).filter_map(Value::as_str);
        if let Some(path) = paths.into_iter().find(|path| !path.is_empty() && !path.starts_with('/')) {
            return Err(Problem::bad_request(format!(
                "task #{}: the path {path:?} is relative; give absolute paths, or `base_dir`",
                at + 1
            )));
        }
    }
    Ok(std::path::Path::new("/"))
}

/// A task that was refused before it got a number is called as in the request.
fn name_refused(submitted: &mut [Submitted], job: &Value) {
    for (at, answer) in submitted.iter_mut().enumerate().filter(|(_, answer)| answer.id.is_empty()) {
        let given = job["tasks"][at]["id"].as_str();
        answer.id = given.map_or_else(|| format!("#{}", at + 1), str::to_owned);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TasksQuery {
    state: Option<String>,
    limit: Option<usize>,
}

async fn tasks(State(gate): State<Gate>, wanted: Result<Query<TasksQuery>, QueryRejection>) -> Answered {
    let TasksQuery { state, limit } = query(wanted)?;
    if let Some(state) = state.as_deref().filter(|state| !TASK_STATES.contains(state)) {
        let allowed = TASK_STATES.join(", ");
        return Err(Problem::bad_request(format!("`state` is {state:?}, needs one of {allowed}")));
    }
    let limit = limit.unwrap_or(LIST_DEFAULT);
    if limit > LIST_MAX {
        return Err(Problem::bad_request(format!("`limit` is {limit}, at most {LIST_MAX} are possible")));
    }
    match gate.ask(Action::Tasks { state, limit }).await? {
        Reply::Tasks(tasks) => ok(&json!({ "tasks": tasks })),
        other => Err(unexpected(&other)),
    }
}

async fn task(State(gate): State<Gate>, id: Id) -> Answered {
    ok(&gate.task(id).await?)
}

async fn task_status(State(gate): State<Gate>, id: Id) -> Answered {
    let task = gate.task(id).await?;
    ok(&json!({
        "id": task.id,
        "state": task.state,
        "attempts": task.attempts,
        "agent": task.agent,
        "error": task.error,
    }))
}

async fn cancel(State(gate): State<Gate>, id: Id) -> Answered {
    match gate.ask(Action::CancelTask(named(id)?)).await? {
        Reply::Task(task) => ok(&task),
        Reply::Done => ok(&json!({"ok": true})),
        other => Err(unexpected(&other)),
    }
}

// Agents.

async fn agents(State(gate): State<Gate>) -> Answered {
    ok(&json!({ "agents": gate.agents().await? }))
}

async fn agent(State(gate): State<Gate>, id: Id) -> Answered {
    ok(&gate.agent(named(id)?).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpawnBody {
    kind: String,
    id: Option<String>,
}

async fn spawn(State(gate): State<Gate>, headers: HeaderMap, body: Body) -> Answered {
    let body = read_body(&headers, body).await?;
    let SpawnBody { kind, id } = fields(&body)?;
    let Some(kind) = AgentKind::from_name(&kind) else {
        let allowed = AgentKind::ALL.map(AgentKind::name).join(", ");
        return Err(Problem::bad_request(format!("`kind` is {kind:?}, needs one of {allowed}")));
    };
    match gate.ask(Action::CreateAgent { kind, id }).await? {
        Reply::Agent(agent) => Ok(json_response(StatusCode::CREATED, &agent)),
        other => Err(unexpected(&other)),
    }
}

/// The fields of a request. An array in their order, which the parser would take for them, is none.
fn fields<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    match body.trim_ascii_start().first() {
        Some(b'[') => Err(Problem::bad_request("the body is an array, needs an object")),
        _ => serde_json::from_slice(body).map_err(|error| Problem::bad_json(&error)),
    }
}

async fn destroy(State(gate): State<Gate>, id: Id) -> Answered {
    gate.act(Action::DestroyAgent(named(id)?)).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizeBody {
    wait_s: Option<f64>,
}

/// Orders a cycle of tuning; with `wait_s` its end is waited for, and the answer has what was found.
async fn optimize(State(gate): State<Gate>, id: Id, headers: HeaderMap, body: Body) -> Answered {
    let id = named(id)?;
    let body = read_body(&headers, body).await?;
    let OptimizeBody { wait_s } = if body.is_empty() { OptimizeBody::default() } else { fields(&body)? };
    let wait = wait_s.map(|seconds| reply_span("wait_s", seconds)).transpose()?;
    let agent = gate.agent(id.clone()).await?;
    let is_tuner = agent.kind == AgentKind::Optimization.name() && agent.state == "ready";
    // Whoever cannot tune is refused by the supervisor.
    let Some(span) = wait.filter(|_| is_tuner) else { return gate.act(Action::OptimizeAgent(id)).await };
    let began = Instant::now();
    let before = gate.tuned(&id, span).await?["cycles"].clone();
    gate.act(Action::OptimizeAgent(id.clone())).await?;
    while began.elapsed() < span {
        // It answers when the cycle is through.
        let tuned = gate.tuned(&id, LOOK_EVERY.min(span.saturating_sub(began.elapsed()))).await;
        if let Ok(tuned) = tuned
            && tuned["cycles"] != before
        {
            return ok(&json!({ "ok": true, "tuned": tuned["tuned"] }));
        }
        sleep(LOOK_PAUSE).await;
        if gate.agent(id.clone()).await?.incarnation != agent.incarnation {
            let detail = format!("agent {id} was replaced while it tuned kernels: order it again");
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
        }
    }
    let detail = format!("tuning was not through after {} s; it goes on", span.as_secs_f64());
    Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestartBody {
    rolling: bool,
}

/// One agent by its id, or all of a kind by its name.
async fn restart(State(gate): State<Gate>, id: Id, headers: HeaderMap, body: Body) -> Answered {
    let who = named(id)?;
    let body = read_body(&headers, body).await?;
    let RestartBody { rolling } = fields(&body)?;
    gate.act(Action::RestartAgents { who, rolling }).await
}

// The balancer.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeBody {
    mode: String,
}

async fn balancer_mode(State(gate): State<Gate>, headers: HeaderMap, body: Body) -> Answered {
    let body = read_body(&headers, body).await?;
    let ModeBody { mode } = fields(&body)?;
    let Some(mode) = Mode::from_name(&mode) else {
        let allowed = Mode::ALL.map(Mode::name).join(", ");
        return Err(Problem::bad_request(format!("`mode` is {mode:?}, needs one of {allowed}")));
    };
    gate.act(Action::SwitchBalancer(mode)).await
}

// Messages.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SendBody {
    to: String,
    payload: Value,
    reply_within_s: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BroadcastBody {
    payload: Value,
    topic: Option<String>,
}

async fn send(State(gate): State<Gate>, headers: HeaderMap, body: Body) -> Answered {
    let body = read_body(&headers, body).await?;
    let SendBody { to, payload, reply_within_s } = fields(&body)?;
    if to.is_empty() {
        return Err(Problem::bad_request("`to` is empty, needs the id of a member"));
    }
    let request = reply_within_s.map(|seconds| reply_span("reply_within_s", seconds)).transpose()?;
    let action = Action::SendMessage { to, payload: bytes_of(payload)?, request };
    let reply = gate.ask_within(ANSWER_LIMIT + request.unwrap_or_default(), action).await?;
    if let (Some(span), Reply::Sent { delivered, reply: None, .. }) = (request, &reply) {
        let detail = format!("no reply came within {} s", span.as_secs_f64());
        let mut problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, detail);
        problem.members.insert("delivered".to_owned(), (*delivered).into());
        return Err(problem);
    }
    sent(reply)
}

async fn broadcast(State(gate): State<Gate>, headers: HeaderMap, body: Body) -> Answered {
    let body = read_body(&headers, body).await?;
    let BroadcastBody { payload, topic } = fields(&body)?;
    let action = Action::BroadcastMessage { topic: checked_topic(topic)?, payload: bytes_of(payload)? };
    sent(gate.ask(action).await?)
}

fn sent(reply: Reply) -> Answered {
    let Reply::Sent { delivered, reply, latency_us } = reply else { return Err(unexpected(&reply)) };
    let reply = reply.map(|bytes| payload::to_json(&bytes));
    ok(&json!({ "delivered": delivered, "reply": reply, "latency_us": latency_us }))
}

/// The payload's bytes, not too many.
fn bytes_of(payload: Value) -> Result<Vec<u8>, Problem> {
    let bytes = payload::to_bytes(payload).map_err(Problem::bad_request)?;
    if bytes.len() <= PAYLOAD_BYTES_MAX {
        return Ok(bytes);
    }
    let detail = format!(
        "`payload` has {} bytes, at most {PAYLOAD_BYTES_MAX} are possible through this door",
        bytes.len()
    );
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
}

fn checked_topic(topic: Option<String>) -> Result<Option<String>, Problem> {
    match topic {
        Some(topic) if !is_name(&topic) => {
            let start: String = topic.chars().take(80).collect();
            Err(Problem::bad_request(format!(
                "`topic` is {start:?}, needs 1 to {NAME_BYTES} letters, digits, `.`, `_`, `-`, `/`"
            )))
        }
        topic => Ok(topic),
    }
}

fn reply_span(field: &str, seconds: f64) -> Result<Duration, Problem> {
    if seconds > 0.0 && seconds <= REPLY_LIMIT.as_secs_f64() {
        // Rounded up: a span of nothing is no time to reply in.
        return Ok(Duration::from_secs_f64(seconds).max(Duration::from_nanos(1)));
    }
    let allowed = REPLY_LIMIT.as_secs();
    Err(Problem::bad_request(format!("`{field}` is {seconds}, needs a number above 0, at most {allowed}")))
}

// The swarm.

async fn status(State(gate): State<Gate>) -> Answered {
    ok(&gate.status().await?)
}

async fn statistics(State(gate): State<Gate>) -> Answered {
    match gate.ask(Action::Statistics).await? {
        Reply::Statistics(statistics) => ok(&statistics),
        other => Err(unexpected(&other)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportQuery {
    tasks: Option<String>,
}

async fn report(State(gate): State<Gate>, wanted: Result<Query<ReportQuery>, QueryRejection>) -> Answered {
    let all_tasks = match query(wanted)?.tasks.as_deref() {
        None => false,
        Some("all") => true,
        Some(other) => return Err(Problem::bad_request(format!("`tasks` is {other:?}, needs `all`"))),
    };
    match gate.ask(Action::Report { all_tasks }).await? {
        Reply::Report(report) => ok(&report),
        other => Err(unexpected(&other)),
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StopBody {
    keep_tasks: Option<bool>,
}

async fn stop(State(gate): State<Gate>, headers: HeaderMap, body: Body) -> Answered {
    let body = read_body(&headers, body).await?;
    let StopBody { keep_tasks } = if body.is_empty() { StopBody::default() } else { fields(&body)? };
    gate.ask(Action::Stop { keep_tasks }).await?;
    Ok(json_response(StatusCode::ACCEPTED, &json!({"ok": true, "state": "stopping"})))
}

// Health.

/// The supervisor turns its loop.
async fn healthz(State(gate): State<Gate>) -> Answered {
    gate.act(Action::Events(u64::MAX)).await
}

/// Tasks would be taken.
async fn readyz(State(gate): State<Gate>) -> Answered {
    match why_not_ready(&gate.agents().await?) {
        None => ok(&json!({"ready": true})),
        Some(reason) => Err(Problem::unavailable(reason)),
    }
}

fn why_not_ready(agents: &[AgentView]) -> Option<String> {
    let computes: Vec<&AgentView> =
        agents.iter().filter(|agent| agent.kind == AgentKind::Compute.name()).collect();
    if computes.iter().any(|agent| agent.state == "ready") {
        return None;
    }
    let states: Vec<String> =
        computes.iter().map(|agent| format!("{} is {}", agent.id, agent.state)).collect();
    let states = if states.is_empty() { "there is none".to_owned() } else { states.join(", ") };
    Some(format!("no compute agent is ready: {states}"))
}

/// How it is, in a word and with reasons; who wants an HTTP status asks `/readyz`.
async fn health(State(gate): State<Gate>) -> Answered {
    let status = gate.status().await?;
    let mut reasons: Vec<String> = why_not_ready(&status.agents).into_iter().collect();
    let is_up = status.state == "running" && reasons.is_empty();
    if status.state != "running" {
        reasons.push(format!("the swarm is {}", status.state));
    }
    if status.safety.level != "full" {
        reasons.push(format!("the swarm does without something: {}", status.safety.level));
    }
    let is_well = |agent: &&AgentView| matches!(&*agent.state, "ready" | "starting");
    let ill = status.agents.iter().filter(|agent| !is_well(agent));
    reasons.extend(ill.map(|agent| format!("{} is {}", agent.id, agent.state)));
    let word = match (is_up, reasons.is_empty()) {
        (true, true) => "healthy",
        (true, false) => "degraded",
        _ => "unhealthy",
    };
    let ready = status.agents.iter().filter(|agent| agent.state == "ready").count();
    ok(&json!({
        "status": word,
        "state": status.state,
        "uptime_s": status.uptime_s,
        "agents": {"ready": ready, "total": status.agents.len()},
        "reasons": reasons,
    }))
}

// Events.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    after: Option<u64>,
    follow: Option<bool>,
    earlier: Option<bool>,
}

/// A client's place in the stream of events.
struct Listener {
    gate: Gate,
    /// Hears that there are more; `None`: only past ones were asked for.
    news: Option<watch::Receiver<u64>>,
    /// Events on their way.
    pending: VecDeque<Event>,
    /// Number of the last event that was taken up.
    last: u64,
}

async fn events(
    State(gate): State<Gate>,
    headers: HeaderMap,
    wanted: Result<Query<EventsQuery>, QueryRejection>,
) -> Answered {
    let EventsQuery { after, follow, earlier } = query(wanted)?;
    // A browser that reconnects repeats its first query, so the header is the newer word.
    let seen = match headers.get("last-event-id") {
        None => after,
        Some(id) => match id.to_str().ok().and_then(|id| id.trim().parse().ok()) {
            Some(seen) => Some(seen),
            None => return Err(Problem::bad_request(format!("`Last-Event-ID` is {id:?}, needs a number"))),
        },
    };
    let mut news = follow.unwrap_or(true).then(|| gate.news.clone());
    // From here on; what happens before the first look as well is found by that.
    news.iter_mut().for_each(watch::Receiver::mark_unchanged);
    let is_past_wanted = news.is_none() || earlier == Some(true);
    let seen = seen.or(is_past_wanted.then_some(0));
    let (mut past, latest) = gate.events_after(seen.unwrap_or(u64::MAX)).await?;
    if seen.is_some_and(|seen| seen > latest) {
        // Numbers begin anew with every swarm: it has seen those of another one.
        past = gate.events_after(0).await?.0;
    }
    if earlier == Some(true) {
        let mut all = gate.earlier_events().await?;
        all.retain(|event| seen.is_none_or(|seen| event.seq > seen));
        all.extend(past);
        past = all;
    }
    let last = past.last().map_or(latest, |event| event.seq);
    let listener = Listener { gate, news, pending: past.into(), last };
    let stream = futures_util::stream::unfold(listener, |mut listener| async move {
        let text = listener.next().await?;
        Some((Ok::<_, std::convert::Infallible>(text), listener))
    });
    let mut response = Response::new(Body::from_stream(stream));
    for (name, value) in [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

impl Listener {
    /// The next piece of the stream, with as many events as are there; `None`: it has ended.
    async fn next(&mut self) -> Option<Bytes> {
        let mut text = String::new();
        loop {
            while let Some(event) = self.pending.pop_front() {
                write_event(&mut text, &event);
                if text.len() > 64 << 10 {
                    return Some(text.into());
                }
            }
            if !text.is_empty() {
                return Some(text.into());
            }
            let news = self.news.as_mut()?;
            let heard = tokio::select! {
                biased;
                _ = self.gate.closing.wait_for(|closing| *closing) => return None,
                heard = timeout(KEEP_ALIVE, news.changed()) => heard,
            };
            match heard {
                Ok(Ok(())) => {
                    let (events, _) = self.gate.events_after(self.last).await.ok()?;
                    self.last = events.last().map_or(self.last, |event| event.seq);
                    self.pending = events.into();
                }
                Ok(Err(_)) => return None,
                Err(_) => return Some(Bytes::from_static(b": still here\n\n")),
            }
        }
    }
}

/// One event in the form of server-sent events. Its kind may come from an agent, so it is not trusted to be
/// one line.
fn write_event(text: &mut String, event: &Event) {
    let kind = event.kind.replace(['\n', '\r', '\0'], " ");
    let data = serde_json::to_string(event).unwrap_or_default();
    let _ = write!(text, "id: {}\nevent: {kind}\ndata: {data}\n\n", event.seq);
}
