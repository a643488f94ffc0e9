//! Commands that talk to a running swarm: ask over its control socket, show the answer.
//!
//! What is shown is rendered by pure functions from the API's own types; with `--json` the API's answer is
//! printed as it came. A reader of standard output that goes away ends a command quietly.

use super::exit;
use super::output::{
    ABSENT, OutputOptions, Style, Table, bytes, complain, count, duration, micros, paint, percent, plain,
    print, rate, say, speaks_json, state_style, wrap,
};
use super::run::{NOTHING_TO_DO, steps};
use crate::base::ids::AgentKind;
use crate::base::words::things;
use crate::gateway::client::{Client, ClientError, segment};
use crate::supervisor::action::{
    AgentView, DecisionView, GatewayView, Known, SafetyView, StatusView, Submitted, TaskView,
};
use crate::supervisor::events::Event;
use crate::supervisor::incidents::Incident;
use anyhow::{Context as _, Result, anyhow};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A clean stop drains running tasks first; one that takes longer is reported.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Between looks at whether the swarm is gone.
const STOP_LOOK: Duration = Duration::from_millis(10);
/// After the socket, the process goes within moments.
const PROCESS_LIMIT: Duration = Duration::from_secs(2);
/// Tuning takes seconds; where everything ran that can be tuned, a minute or two.
const TUNING_LIMIT: Duration = Duration::from_secs(900);
/// Widest `text: ` column in lists of names and values.
const LABEL_COLUMNS: usize = 11;

/// The API's JSON as it came, or text made of it.
pub(super) fn show<T: DeserializeOwned>(
    answer: Value,
    output: &OutputOptions,
    text: impl FnOnce(T) -> String,
) -> Result<u8> {
    if output.json {
        return show_json(&answer);
    }
    print(&text(serde_json::from_value(answer).context("cannot understand the swarm's answer")?))?;
    Ok(exit::DONE)
}

pub(super) fn show_json(answer: &Value) -> Result<u8> {
    print(&serde_json::to_string_pretty(answer)?)?;
    Ok(exit::DONE)
}

/// A list under one key of an answer.
fn list<T: DeserializeOwned>(mut answer: Value, key: &str) -> Result<Vec<T>> {
    let list =
        answer.get_mut(key).map(Value::take).ok_or_else(|| anyhow!("the swarm's answer has no `{key}`"))?;
    serde_json::from_value(list).context("cannot understand the swarm's answer")
}

/// Words that are wrong end with the exit code for that.
pub(super) fn wrong_words(error: ClientError) -> Result<u8> {
    match error {
        ClientError::Problem { status: 400, detail, .. } => {
            complain(&detail);
            Ok(exit::WRONG)
        }
        other => Err(other.into()),
    }
}

// Tasks.

/// `submit`: hands a job to the swarm and says what became of every task. 1 when one was refused or failed, 2
/// when the job as a whole is wrong.
pub fn submit(client: &mut Client, mut job: Value, wait: bool, output: &OutputOptions) -> Result<u8> {
    job["wait"] = wait.into();
    give_keys(&mut job);
    let answer = match client.post_repeatable("/api/v1/tasks/submit", &job) {
        Ok(answer) => answer,
        Err(error) => return wrong_words(error),
    };
    let tasks: Vec<Submitted> = list(answer.clone(), "tasks")?;
    let text =
        if output.json { serde_json::to_string_pretty(&answer)? } else { submitted_text(&tasks, output) };
    print(&text)?;
    if tasks.is_empty() {
        say(output, NOTHING_TO_DO);
    }
    // Who waits is told of a task under way only when the swarm stops.
    let is_open = |task: &Submitted| {
        let is_under_way = task.task.as_ref().is_none_or(|task| !is_final(&task.state));
        wait && is_under_way && task.error.is_none()
    };
    let is_fine = |task: &Submitted| {
        let ended_well =
            task.task.as_ref().is_none_or(|task| task.state == "succeeded" || !is_final(&task.state));
        task.error.is_none() && ended_well
    };
    let open = tasks.iter().filter(|task| is_open(task)).count();
    if open > 0 {
        let words = format!(
            "{} of {} had not ended when the swarm stopped: its next start goes on with {}",
            count(open as f64),
            things(tasks.len(), "task"),
            if open == 1 { "it" } else { "them" }
        );
        say(output, &words);
    }
    let wrong = tasks.iter().filter(|task| !is_fine(task)).count();
    if wrong > 0 {
        let verb = match (wait, wrong) {
            (true, _) => "did not succeed",
            (false, 1) => "was refused",
            (false, _) => "were refused",
        };
        say(output, &format!("{} of {} {verb}", count(wrong as f64), things(tasks.len(), "task")));
        return Ok(exit::FAILED);
    }
    Ok(if open > 0 { exit::FAILED } else { exit::DONE })
}

/// Every task has a key of its own, so that the job may be handed in again when the answer was lost on its way.
fn give_keys(job: &mut Value) {
    let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    let tasks = job.get_mut("tasks").and_then(Value::as_array_mut).into_iter().flatten();
    for (at, task) in tasks.filter_map(Value::as_object_mut).enumerate() {
        let key = || format!("submit-{}-{time}-{at}", std::process::id()).into();
        task.entry("idempotency_key").or_insert_with(key);
    }
}

fn is_final(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled")
}

/// One line per task.
fn submitted_text(tasks: &[Submitted], output: &OutputOptions) -> String {
    let widest = tasks.iter().map(|task| task.id.chars().count()).max().unwrap_or(0).min(40);
    let mut text = String::new();
    for task in tasks {
        let (state, rest) = match (&task.task, &task.error) {
            (Some(view), None) => (&*view.state, ended_words(view)),
            (Some(view), Some(error)) => (&*view.state, error.clone()),
            (None, None) => ("accepted", String::new()),
            (None, Some(error)) => ("refused", error.clone()),
        };
        let style = if state == "refused" { Style::Bad } else { state_style(state) };
        let id = plain(&task.id);
        let state = paint(&format!("{state:<9}"), style, output.color);
        let _ = writeln!(text, "{}", format!("{id:<widest$}  {state}  {}", plain(&rest)).trim_end());
    }
    text
}

fn ended_words(task: &TaskView) -> String {
    let mut parts = Vec::new();
    if let Some(result) = &task.result {
        parts.push(result.to_string());
    }
    if let Some(error) = &task.error {
        parts.push(error.clone());
    }
    if task.service_us > 0.0 {
        parts.push(micros(task.service_us));
    }
    if let Some(agent) = &task.agent {
        parts.push(format!("on {agent}"));
    }
    parts.join("  ")
}

/// `task list`.
pub fn task_list(
    client: &mut Client,
    state: Option<&str>,
    limit: usize,
    output: &OutputOptions,
) -> Result<u8> {
    let state = state.map_or_else(String::new, |state| format!("&state={}", segment(state)));
    let answer = match client.get(&format!("/api/v1/tasks?limit={limit}{state}")) {
        Ok(answer) => answer,
        Err(error) => return wrong_words(error),
    };
    if output.json {
        return show_json(&answer);
    }
    let tasks: Vec<TaskView> = list(answer, "tasks")?;
    if tasks.is_empty() {
        say(output, "no tasks");
        return Ok(exit::DONE);
    }
    print(&task_table(&tasks, output))?;
    if tasks.len() == limit {
        say(output, &format!("the newest {limit}; --limit shows more"));
    }
    Ok(exit::DONE)
}

fn task_table(tasks: &[TaskView], output: &OutputOptions) -> String {
    let mut table = Table::new(&["ID", "KERNEL", "STATE", "TRIES", "AGENT", "QUEUED", "RAN", "ERROR"])
        .right(&[3, 5, 6])
        .cut(&[7, 0]);
    let some = |us: f64| if us > 0.0 { micros(us) } else { ABSENT.to_owned() };
    let mut absent = false;
    for task in tasks {
        absent |= task.agent.is_none() || task.queue_us <= 0.0 || task.service_us <= 0.0;
        table.styled_row([
            (task.id.clone(), Style::Plain),
            (task.kernel.clone(), Style::Plain),
            (task.state.clone(), state_style(&task.state)),
            (task.attempts.to_string(), Style::Plain),
            (task.agent.clone().unwrap_or_else(|| ABSENT.to_owned()), Style::Plain),
            (some(task.queue_us), Style::Plain),
            (some(task.service_us), Style::Plain),
            (task.error.clone().unwrap_or_default(), Style::Dim),
        ]);
    }
    let mut text = table.render(output);
    if absent {
        let _ = writeln!(
            text,
            "{}",
            paint(&format!("{ABSENT} not dispatched, or not ended on an agent"), Style::Dim, output.color)
        );
    }
    text
}

fn task_path(id: &str) -> String {
    format!("/api/v1/tasks/{}", segment(id))
}

/// `task show`.
pub fn task_show(client: &mut Client, id: &str, output: &OutputOptions) -> Result<u8> {
    show(client.get(&task_path(id))?, output, |task: TaskView| task_text(&task, output))
}

/// `name: value` with the value wrapped beside its name.
fn line(text: &mut String, name: &str, value: &str, output: &OutputOptions) {
    let label = paint(&format!("{name:<LABEL_COLUMNS$}"), Style::Dim, output.color);
    let width = output.width.saturating_sub(LABEL_COLUMNS).max(20);
    let lines = wrap(&plain(value), width, 0).replace('\n', &format!("\n{}", " ".repeat(LABEL_COLUMNS)));
    let _ = writeln!(text, "{}", format!("{label}{lines}").trim_end());
}

fn task_text(task: &TaskView, output: &OutputOptions) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: &str| line(&mut text, name, value, output);
    add(
        "task",
        &if task.id == format!("t{}", task.number) {
            task.id.clone()
        } else {
            format!("{} (t{})", task.id, task.number)
        },
    );
    add("kernel", &task.kernel);
    add("state", &task.state);
    add("priority", &task.priority);
    add("attempts", &task.attempts.to_string());
    let none = if task.attempts == 0 { "— (never dispatched)" } else { "— (it is not there any more)" };
    add("agent", task.agent.as_deref().unwrap_or(none));
    if let Some(agent) = &task.hedged_on {
        add("hedged on", agent);
    }
    if task.parts > 0 {
        add("parts", &task.parts.to_string());
    }
    let ended = if is_final(&task.state) { "— (none ran)" } else { "— (not ended)" };
    add("backend", task.backend.as_deref().unwrap_or(ended));
    let time = |us: f64, why: &str| if us > 0.0 { micros(us) } else { format!("{ABSENT} ({why})") };
    add("queued", &time(task.queue_us, "not dispatched"));
    add("hand-over", &time(task.dispatch_us, "not started"));
    add("ran", &time(task.service_us, "not ended on an agent"));
    add("in all", &time(task.total_us, "not ended"));
    if let Some(result) = &task.result {
        add("result", &result.to_string());
    }
    if let Some(error) = &task.error {
        add("error", error);
    }
    text
}

/// `task explain`: why a task is where it is.
pub fn task_explain(client: &mut Client, id: &str, output: &OutputOptions) -> Result<u8> {
    let answer = client.get(&task_path(id))?;
    let task: TaskView =
        serde_json::from_value(answer.clone()).context("cannot understand the swarm's answer")?;
    let agents: Vec<AgentView> = list(client.get("/api/v1/agents")?, "agents")?;
    let reasons = explain(&task, &answer, &agents);
    let text = if output.json {
        serde_json::to_string_pretty(&json!({ "task": answer, "reasons": reasons }))?
    } else {
        let style = state_style(&task.state);
        let mut text = format!("task {} is {}\n", plain(&task.id), paint(&task.state, style, output.color));
        for reason in &reasons {
            let _ = writeln!(text, "  {}", wrap(&plain(reason), output.width.saturating_sub(2), 2));
        }
        if let Some(decision) = &task.decision {
            let words = wrap(&plain(&why_there(decision)), output.width.saturating_sub(2), 2);
            let _ = write!(text, "  {words}\n\n{}", candidate_table(decision));
        }
        text
    };
    print(&text)?;
    Ok(exit::DONE)
}

/// Why an attempt went where it went, and how that turned out.
fn why_there(decision: &DecisionView) -> String {
    if decision.by == "dividing" {
        let whole = decision.expected_us.map_or_else(
            || "Nobody knew how long it would take as a whole".to_owned(),
            |us| format!("As a whole it was expected to take {}", micros(us)),
        );
        let took =
            decision.took_us.map(|took| format!("; in parts it took {}", micros(took))).unwrap_or_default();
        return format!("It was divided among agents that had nothing to do. {whole}{took}.");
    }
    let how = match &*decision.by {
        "rule" => "by its rule",
        "score" => "for the least score",
        "exploring" => "to learn more of it: it scored nearly as well as the best",
        "probing" => "to learn something of it: it was idle, and there was no trusted estimate",
        "untrusted" => "by the safe rule: the estimates have not proved themselves yet",
        "guarded" => "by the safe rule: the guard had it decide",
        "wanted" => "by the safe rule, as somebody wants it",
        other => other,
    };
    let mut text = format!("The policy `{}` chose {} {how}.", decision.policy, decision.agent);
    let _ = match (decision.expected_us, decision.took_us) {
        (Some(expected), Some(took)) if expected > 0.0 => {
            let (expected, off) = (micros(expected), took / expected);
            write!(
                text,
                " It was expected to take {expected} and took {}, {off:.2} times that.",
                micros(took)
            )
        }
        (Some(expected), _) => write!(text, " It was expected to take {}.", micros(expected)),
        (None, _) => write!(text, " Nobody knew how long it would take."),
    };
    if decision.probability < 0.999 {
        let _ = write!(text, " This very choice had a probability of at least {:.4}.", decision.probability);
    }
    text
}

/// The agents that an attempt might have gone to.
fn candidate_table(decision: &DecisionView) -> String {
    let time = |us: Option<f64>| us.map_or_else(|| "—".to_owned(), micros);
    let mut text = format!(
        "  {:<14} {:>5} {:>5} {:>10} {:>10} {:>10} {:>7} {:>10}\n",
        "agent", "room", "holds", "free in", "by table", "by model", "price", "score"
    );
    for candidate in &decision.candidates {
        let mark = if candidate.agent == decision.agent { '>' } else { ' ' };
        let price = candidate.price.map_or_else(|| "—".to_owned(), |price| format!("{price:.1e}"));
        let _ = writeln!(
            text,
            "{mark} {:<14} {:>5} {:>5} {:>10} {:>10} {:>10} {price:>7} {:>10}",
            plain(&candidate.agent),
            if candidate.room { "yes" } else { "no" },
            candidate.in_flight,
            micros(candidate.backlog_us),
            time(candidate.told_us),
            time(candidate.time_us),
            time(candidate.score_us),
        );
    }
    let more = (decision.of as usize).saturating_sub(decision.candidates.len());
    if more > 0 {
        let _ = writeln!(text, "  and {} more", number(more as u64));
    }
    text
}

/// What is known about why, in sentences. `raw` may have more than this version's view of a task.
fn explain(task: &TaskView, raw: &Value, agents: &[AgentView]) -> Vec<String> {
    let mut reasons = Vec::new();
    let agent = task.agent.as_deref().unwrap_or("an agent");
    match &*task.state {
        "waiting" => reasons.push(match raw.get("waiting_for").and_then(Value::as_array).filter(|names| !names.is_empty()) {
            Some(names) => {
                let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                format!("It waits until these have succeeded: {}.", names.join(", "))
            }
            None => "It waits until the tasks named in its `after` have succeeded; if one does not, it is cancelled.".to_owned(),
        }),
        "queued" => {
            reasons.push(format!("It waits for room on a compute agent, with priority {}.", task.priority));
            reasons.push(room(agents));
        }
        "dispatched" if task.parts > 0 => {
            reasons.push("Its parts wait for agents, or at agents behind what runs now.".to_owned());
        }
        "dispatched" => {
            reasons.push(format!("It was handed to {agent} and waits there behind what runs now."));
            reasons.extend(agents.iter().find(|view| view.id == agent).map(holds));
        }
        "running" if task.parts > 0 => reasons.push("Parts of it run.".to_owned()),
        "running" => reasons.push(format!("It runs on {agent}.")),
        "retrying" => {
            let left = match raw.get("retries_left").and_then(Value::as_u64) {
                Some(1) => "; 1 more retry is left".to_owned(),
                Some(left) => format!("; {left} more retries are left"),
                None => String::new(),
            };
            let why = task.error.as_deref().unwrap_or("no reason was given");
            reasons.push(format!("Attempt {} did not succeed: {why}.", task.attempts));
            reasons.push(format!("It will be queued again after a pause that grows with every attempt{left}."));
        }
        "succeeded" => reasons.push(format!(
            "It ran {} on {}{}.",
            micros(task.service_us),
            if task.parts > 0 { "several agents" } else { agent },
            task.backend.as_deref().map_or_else(String::new, |level| format!(" with {level} code"))
        )),
        "failed" => {
            let why = task.error.as_deref().unwrap_or("no reason was given");
            let tries = match task.attempts {
                0 => "It never ran".to_owned(),
                1 => "Its only attempt did not succeed".to_owned(),
                n => format!("None of its {n} attempts succeeded; the last"),
            };
            reasons.push(format!("{tries}: {why}."));
        }
        "cancelled" => reasons.push(match task.error.as_deref() {
            Some(why) if why.starts_with("cancelled ") => format!("It was {why}."),
            Some(why) => format!("It was given up: {why}."),
            None => "It was given up on request.".to_owned(),
        }),
        other => reasons.push(format!("This version does not know the state {other:?}.")),
    }
    if let Some(agent) = &task.hedged_on {
        reasons.push(match (is_final(&task.state), task.agent.as_ref() == Some(agent)) {
            (false, _) => format!(
                "It took far longer than its like, so {agent} tried it, too: the first answer counts."
            ),
            (true, true) => {
                format!("It took far longer than its like, so {agent} tried it, too, and was first.")
            }
            (true, false) => {
                format!("It took far longer than its like, so {agent} tried it, too, and was not first.")
            }
        });
    }
    if task.parts > 0 {
        reasons.push(format!("Its last attempt was divided into {} parts.", task.parts));
    }
    if let Some(why) = &task.undivided {
        reasons.push(format!(
            "An attempt to divide it was called off, and it was to be done as a whole: {why}."
        ));
    }
    let without_cause = u32::from(task.hedged_on.is_some()) + u32::from(task.undivided.is_some());
    if task.attempts > 1 + without_cause && task.state != "failed" {
        reasons.push(format!(
            "It was dispatched {} times: attempts that failed or lost their agent are repeated.",
            task.attempts
        ));
    }
    if task.attempts > 0 && task.queue_us > 0.0 {
        reasons.push(format!("From its acceptance to its last dispatch it took {}.", micros(task.queue_us)));
    }
    reasons
}

fn holds(agent: &AgentView) -> String {
    format!("{} is {} and holds {}.", agent.id, agent.state, things(agent.in_flight, "task"))
}

/// What the compute agents do, so that a queued task is understood.
fn room(agents: &[AgentView]) -> String {
    let computes: Vec<&AgentView> =
        agents.iter().filter(|agent| agent.kind == AgentKind::Compute.name()).collect();
    if computes.is_empty() {
        return "There is no compute agent; `agent create compute` starts one.".to_owned();
    }
    let ready = computes.iter().filter(|agent| agent.state == "ready").count();
    let each: Vec<String> = computes
        .iter()
        .map(|agent| match &*agent.state {
            "ready" => format!("{} holds {}", agent.id, agent.in_flight),
            state => format!("{} is {state}", agent.id),
        })
        .collect();
    format!("{ready} of {} can take work: {}.", things(computes.len(), "compute agent"), each.join(", "))
}

/// `task cancel`.
pub fn task_cancel(client: &mut Client, id: &str, output: &OutputOptions) -> Result<u8> {
    let answer = client.post(&format!("{}/cancel", task_path(id)), &json!({}))?;
    show(answer, output, |task: TaskView| {
        if task.state == "cancelled" {
            format!("task {}: cancelled", plain(&task.id))
        } else {
            let agent = task.agent.as_deref().unwrap_or("its agent");
            format!("task {}: {agent} was told to give it up", plain(&task.id))
        }
    })
}

// Agents.

fn agent_path(id: &str) -> String {
    format!("/api/v1/agents/{}", segment(id))
}

/// `agent list`.
pub fn agent_list(client: &mut Client, output: &OutputOptions) -> Result<u8> {
    let answer = client.get("/api/v1/agents")?;
    if output.json {
        return show_json(&answer);
    }
    let agents: Vec<AgentView> = list(answer, "agents")?;
    print(&agent_table(&agents, output))?;
    Ok(exit::DONE)
}

fn agent_table(agents: &[AgentView], output: &OutputOptions) -> String {
    let mut table = Table::new(&["ID", "STATE", "PID", "CORE", "TASKS", "BUSY", "CPU", "MEMORY", "RESTARTS"])
        .right(&[2, 3, 4, 5, 6, 7, 8])
        .cut(&[0]);
    let absent = || ABSENT.to_owned();
    for agent in agents {
        let mut core = agent.cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        if agent.core_shared && !core.is_empty() {
            core.push('*');
        }
        let restarts = if agent.restarts > 0 { Style::Warn } else { Style::Plain };
        table.styled_row([
            (agent.id.clone(), Style::Plain),
            (agent.state.clone(), state_style(&agent.state)),
            (agent.pid.map_or_else(absent, |pid| pid.to_string()), Style::Plain),
            (if core.is_empty() { absent() } else { core }, Style::Plain),
            (count(agent.tasks as f64), Style::Plain),
            (duration(agent.busy_s), Style::Plain),
            (agent.cpu_percent.map_or_else(absent, percent), Style::Plain),
            (agent.rss_bytes.map_or_else(absent, bytes), Style::Plain),
            (agent.restarts.to_string(), restarts),
        ]);
    }
    let mut text = table.render(output);
    let mut notes = Vec::new();
    if agents.iter().any(|agent| agent.core_shared && !agent.cores.is_empty()) {
        notes.push("* shares its core".to_owned());
    }
    for (missing, why) in [
        (agents.iter().any(|agent| agent.pid.is_none()), "pid: no process now"),
        (
            agents.iter().any(|agent| agent.pid.is_some() && agent.cores.is_empty()),
            "core: the pin was refused",
        ),
        (agents.iter().any(|agent| agent.cpu_percent.is_none()), "cpu: not sampled yet"),
        (agents.iter().any(|agent| agent.rss_bytes.is_none()), "memory: not sampled yet"),
    ] {
        if missing {
            notes.push(format!("{ABSENT} {why}"));
        }
    }
    if !notes.is_empty() {
        let _ = writeln!(text, "{}", paint(&notes.join("   "), Style::Dim, output.color));
    }
    text
}

/// `agent create`.
pub fn agent_create(client: &mut Client, kind: &str, id: Option<&str>, output: &OutputOptions) -> Result<u8> {
    let mut body = json!({ "kind": kind });
    if let Some(id) = id {
        body["id"] = id.into();
    }
    match client.post("/api/v1/agents/spawn", &body) {
        Ok(answer) => show(answer, output, |agent: AgentView| {
            let pid = agent.pid.map_or_else(String::new, |pid| format!(", process {pid}"));
            let cores: Vec<String> = agent.cores.iter().map(usize::to_string).collect();
            let shared = if agent.core_shared { " (shared)" } else { "" };
            let core =
                if cores.is_empty() { String::new() } else { format!(", core {}{shared}", cores.join(",")) };
            format!("agent {}: {}{pid}{core}", plain(&agent.id), agent.state)
        }),
        Err(error) => wrong_words(error),
    }
}

/// `agent destroy`.
pub fn agent_destroy(client: &mut Client, id: &str, output: &OutputOptions) -> Result<u8> {
    let answer = client.delete(&agent_path(id))?;
    show(answer, output, |_: Value| format!("agent {}: finishes what it holds and ends for good", plain(id)))
}

/// `agent optimize`: what ran before and what runs now.
pub fn agent_optimize(client: &mut Client, id: &str, waits: bool, output: &OutputOptions) -> Result<u8> {
    let path = format!("{}/optimize", agent_path(id));
    if !waits {
        let answer = client.post(&path, &json!({}))?;
        return show(answer, output, |_: Value| format!("agent {}: was told to tune kernels now", plain(id)));
    }
    let bar = steps(output);
    bar.set_message("kernels are tuned");
    bar.enable_steady_tick(Duration::from_millis(200));
    let answer = client.post(&path, &json!({ "wait_s": TUNING_LIMIT.as_secs() }));
    bar.finish_and_clear();
    show(answer?, output, |answer: Value| tuned_text(id, &answer, output))
}

fn tuned_text(id: &str, answer: &Value, output: &OutputOptions) -> String {
    let Some(cells) = answer["tuned"].as_array() else {
        return format!("agent {}: was told to tune kernels", plain(id));
    };
    let names = ["KERNEL", "FROM", "DEFAULT", "TIME", "BEST OTHER", "TIME", "GAIN (95 %)", "CHOSEN"];
    let mut table = Table::new(&names).right(&[1, 3, 5, 6]);
    let absent = || ABSENT.to_owned();
    for cell in cells {
        let text = |value: &Value| plain(value.as_str().unwrap_or(ABSENT)).into_owned();
        let evidence = &cell["evidence"];
        let time = |name: &str| evidence[name].as_f64().map_or_else(absent, |us| duration(us / 1e6));
        let gain = |name: &str| evidence[name].as_f64().map_or_else(absent, |gain| format!("{gain:.2}"));
        let class = cell["class"].as_u64().and_then(|class| 1_u64.checked_shl(class as u32));
        let chosen = match &cell["chosen"] {
            one if *one == evidence["default"] => ("default".to_owned(), Style::Dim),
            one if *one == evidence["challenger"] => ("the other".to_owned(), Style::Good),
            one => (text(one), Style::Plain),
        };
        table.styled_row([
            (format!("{} {}", text(&cell["kernel"]), text(&cell["dtype"])), Style::Plain),
            (class.map_or_else(absent, bytes), Style::Plain),
            (text(&evidence["default"]), Style::Plain),
            (time("default_us"), Style::Plain),
            (text(&evidence["challenger"]), Style::Plain),
            (time("challenger_us"), Style::Plain),
            (format!("{} ({} to {})", gain("gain"), gain("gain_low"), gain("gain_high")), Style::Plain),
            chosen,
        ]);
    }
    if cells.is_empty() {
        return "nothing that runs here has a choice".to_owned();
    }
    let note = "FROM: bytes of the inputs, up to twice as many. TIME: median over the pairs, the copy of the answer \
                included. GAIN: how many times as fast the other is, median of the pairs' ratios and where it lies 95 times of \
                100; the other is chosen when all of that is above 1.03";
    format!(
        "{}\n{}",
        table.render(output).trim_end(),
        paint(&wrap(note, output.width, 0), Style::Dim, output.color)
    )
}

/// `agent restart WHO`
pub fn agent_restart(client: &mut Client, who: &str, rolling: bool, output: &OutputOptions) -> Result<u8> {
    let answer = client.post(&format!("{}/restart", agent_path(who)), &json!({ "rolling": rolling }))?;
    let how = if rolling { "one after the other from now on" } else { "now" };
    show(answer, output, |_: Value| format!("{}: restarted {how}, each after what it holds", plain(who)))
}

// The swarm.

/// `balancer mode MODE`
pub fn balancer_mode(client: &mut Client, mode: &str, output: &OutputOptions) -> Result<u8> {
    let answer = client.post("/api/v1/balancer/mode", &json!({ "mode": mode }))?;
    show(answer, output, |_: Value| format!("placement is by {} from the next task on", plain(mode)))
}

/// `status`: one screen.
pub fn status(client: &mut Client, output: &OutputOptions) -> Result<u8> {
    show(client.get("/api/v1/system/status")?, output, |status: StatusView| status_text(&status, output))
}

fn status_text(status: &StatusView, output: &OutputOptions) -> String {
    let state = paint(&status.state, state_style(&status.state), output.color);
    let mut text = format!(
        "swarm {}   {state} for {}   process {}   placement {}\n\n",
        paint(&plain(&status.swarm), Style::Bold, output.color),
        duration(status.uptime_s),
        status.pid,
        status.policy,
    );
    if let Some(balancer) = &status.balancer {
        let error = balancer.model_error.map_or_else(
            || "no task came back yet".to_owned(),
            |error| format!("expected times are off by a factor of {:.2}", error.exp()),
        );
        let guarded = if balancer.is_guarded { "; its guard has the safe rule decide" } else { "" };
        let _ = writeln!(
            text,
            "placed by {}: {error}, {} alarms{guarded}",
            plain(&balancer.mode),
            balancer.alarms
        );
    }
    let tasks = &status.tasks;
    let mut parts =
        vec![format!("{} in all", number(tasks.total)), format!("{} succeeded", number(tasks.succeeded))];
    for (amount, what, style) in [
        (tasks.failed, "failed", Style::Bad),
        (tasks.cancelled, "cancelled", Style::Warn),
        (tasks.retried, "retried", Style::Warn),
        (tasks.hedged, "sent to a second agent as well", Style::Plain),
        (tasks.lost, "LOST", Style::Bad),
        (tasks.duplicated, "DUPLICATED", Style::Bad),
    ] {
        if amount > 0 {
            parts.push(paint(&format!("{} {what}", number(amount)), style, output.color));
        }
    }
    let _ = writeln!(text, "{}{}", heading("tasks", output), parts.join(", "));
    if let Some(earlier) = &status.earlier {
        let lives = if earlier.lives == 1 { "life" } else { "lives" };
        let ended = number(earlier.tasks.total);
        let words = format!("{ended} ended in {} earlier {lives} of the swarm", number(earlier.lives));
        line(&mut text, "", &words, output);
    }
    let at_agents = number(status.in_flight as u64);
    let _ = writeln!(
        text,
        "{}{} waiting, {at_agents} at agents",
        heading("queue", output),
        number(status.queued as u64)
    );
    if let Some(why) = &status.durability.why {
        line(&mut text, "journal", &paint(why, Style::Bad, output.color), output);
    }
    text += &host_lines(status, output);
    text += &safety_lines(&status.safety, output);
    text.extend(status.gateway.iter().map(|gateway| gateway_line(gateway, output)));
    text.push('\n');
    text += &agent_table(&status.agents, output);
    if let Some(last) = status.incidents.last() {
        let words =
            format!("{}, the last: {} of {}", number(status.incidents_total), last.failure, last.agent);
        text.push('\n');
        line(&mut text, "incidents", &words, output);
    }
    if !status.notes.is_empty() {
        text.push('\n');
    }
    for (at, note) in status.notes.iter().enumerate() {
        line(&mut text, if at == 0 { "notes" } else { "" }, note, output);
    }
    text
}

/// `status --incidents`: what went wrong with agents, how that was known, and what was done about it.
pub fn incidents(client: &mut Client, output: &OutputOptions) -> Result<u8> {
    let mut status = client.get("/api/v1/system/status")?;
    let answer =
        json!({"incidents": status["incidents"].take(), "incidents_total": status["incidents_total"]});
    if output.json {
        return show_json(&answer);
    }
    let incidents: Vec<Incident> = list(answer, "incidents")?;
    print(&incidents_text(&incidents, output))?;
    Ok(exit::DONE)
}

fn incidents_text(incidents: &[Incident], output: &OutputOptions) -> String {
    if incidents.is_empty() {
        return "no incidents\n".to_owned();
    }
    let mut text = String::new();
    let span = |us: Option<f64>| us.map_or(ABSENT.to_owned(), |us| duration(us / 1e6));
    for incident in incidents {
        let time = incident.time.get(11..23).unwrap_or(&incident.time);
        let _ = writeln!(
            text,
            "{:>5}  {}  {}  {}  life {}",
            incident.id,
            paint(time, Style::Dim, output.color),
            paint(&format!("{:<10}", plain(&incident.failure)), Style::Warn, output.color),
            plain(&incident.agent),
            incident.incarnation,
        );
        line(&mut text, "cause", &incident.cause, output);
        let figures: Vec<String> = incident
            .evidence
            .iter()
            .map(|figure| format!("{} {}", plain(&figure.name), figure.value))
            .collect();
        if !figures.is_empty() {
            line(&mut text, "evidence", &figures.join(", "), output);
        }
        let done = format!(
            "{}; found after {}, well again after {}, {} moved",
            incident.action,
            span(incident.detect_us),
            span(incident.recovery_us),
            things(incident.tasks_moved, "task")
        );
        line(&mut text, "action", &done, output);
        if let Some(dump) = &incident.dump {
            line(&mut text, "saved", dump, output);
        }
    }
    text
}

pub(super) fn number(amount: u64) -> String {
    count(amount as f64)
}

pub(super) fn heading(name: &str, output: &OutputOptions) -> String {
    paint(&format!("{name:<LABEL_COLUMNS$}"), Style::Dim, output.color)
}

/// What a value of the host is called, by the end of its name in the API.
fn host_value(name: &str, value: f64) -> String {
    if name.ends_with("_percent") {
        percent(value)
    } else if name.ends_with("_bytes_per_s") {
        rate(value, "B")
    } else if name.ends_with("_bytes") {
        bytes(value.max(0.0) as u64)
    } else if name.ends_with("_celsius") {
        format!("{value:.0} °C")
    } else if name.starts_with("load") {
        format!("{value:.2}")
    } else {
        count(value)
    }
}

/// The process of the control API.
fn gateway_line(gateway: &GatewayView, output: &OutputOptions) -> String {
    let pid = gateway.pid.map_or_else(|| ABSENT.to_owned(), |pid| pid.to_string());
    let replaced = match gateway.restarts {
        0 => String::new(),
        restarts => format!(", replaced {}", things(restarts as usize, "time")),
    };
    format!("{}process {pid}{replaced}\n", heading("gateway", output))
}

/// What is ready for failures, and what the swarm does without.
fn safety_lines(safety: &SafetyView, output: &OutputOptions) -> String {
    let mut text = String::new();
    let (level, containment) = (plain(&safety.level), plain(&safety.containment).replace('_', " "));
    let standbys = format!("standbys {} of {}", safety.standbys_ready, safety.standbys_wanted);
    let words = format!("level {level}   {standbys}   contained by {containment}");
    let _ = writeln!(text, "{}{words}", heading("safety", output));
    let because = |what: &str, why: &String| format!("\u{2014} {what}: {why}");
    let level = safety.level_because.iter().map(|why| because(&safety.level, why));
    let contained = safety.containment_because.iter().map(|why| because("contained", why));
    for words in level.chain(contained).chain(safety.level_blind.iter().map(|why| because("level", why))) {
        line(&mut text, "", &words, output);
    }
    text
}

/// The host in a few lines; what is not known comes once, with its reason.
fn host_lines(status: &StatusView, output: &OutputOptions) -> String {
    const GROUPS: [(&str, &[(&str, &str)]); 4] = [
        (
            "host",
            &[
                ("cpu", "cpu_percent"),
                ("steal", "steal_percent"),
                ("load", "load_1m"),
                ("hottest", "temperature_celsius"),
            ],
        ),
        ("memory", &[("used", "memory_percent"), ("available", "memory_available_bytes")]),
        (
            "stalled",
            &[
                ("for cpu", "pressure_cpu_percent"),
                ("for memory", "pressure_memory_percent"),
                ("for i/o", "pressure_io_percent"),
            ],
        ),
        ("disk", &[("reads", "disk_read_bytes_per_s"), ("writes", "disk_write_bytes_per_s")]),
    ];
    let mut text = String::new();
    let mut missing: Vec<(String, Vec<&str>)> = Vec::new();
    let mut miss = |what: &'static str, known: Option<&Known>| {
        let why =
            known.and_then(|known| known.unavailable.as_deref()).unwrap_or("this swarm does not report it");
        match missing.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, names)) => names.push(what),
            None => missing.push((why.to_owned(), vec![what])),
        }
    };
    for (group, values) in GROUPS {
        let mut parts = Vec::new();
        let mut known_count = 0;
        for &(word, name) in values {
            let known = status.host.get(name);
            match known.and_then(|known| known.value) {
                Some(value) => {
                    known_count += 1;
                    parts.push(format!("{word} {}", host_value(name, value)));
                }
                None => {
                    parts.push(format!("{word} {ABSENT}"));
                    miss(if group == "host" { word } else { group }, known);
                }
            }
        }
        let parts = if known_count == 0 { ABSENT.to_owned() } else { parts.join("   ") };
        let _ = writeln!(text, "{}{parts}", heading(group, output));
    }
    if let Some(cap) = status.host.get("compute_agents_cap").and_then(|cap| cap.value) {
        let verb = if cap == 1.0 { "agent works" } else { "agents work" };
        let words = format!("at most {} compute {verb} at once, for the temperature", count(cap));
        let _ = writeln!(text, "{}{}", heading("cap", output), paint(&words, Style::Warn, output.color));
    }
    for (reason, mut names) in missing {
        names.dedup();
        let words = wrap(
            &format!("{ABSENT} {}: {}", names.join(", "), plain(&reason)),
            output.width.max(30),
            LABEL_COLUMNS,
        );
        let indent = " ".repeat(LABEL_COLUMNS);
        let _ = writeln!(text, "{indent}{}", paint(words.trim_start(), Style::Dim, output.color));
    }
    text
}

/// `events`: past ones, with `earlier` those of earlier lives as well, and with `follow` those to come.
pub fn events(
    client: &mut Client,
    follow: bool,
    after: u64,
    earlier: bool,
    output: &OutputOptions,
) -> Result<u8> {
    let mut failure = None;
    let mut last = after;
    client.events(after, earlier, follow, |event| {
        let gap = event.seq.saturating_sub(last + 1);
        if gap > 0 && last > 0 {
            let gap = things(gap as usize, "event");
            say(output, &format!("{gap} missing: forgotten, or this end was too slow"));
        }
        last = event.seq;
        let text = if output.json {
            serde_json::to_string(&event).unwrap_or_default()
        } else {
            event_text(&event, output)
        };
        match print(&text) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    match failure {
        None => Ok(exit::DONE),
        Some(error) => Err(error.into()),
    }
}

/// One line: time of day, what, who, words.
fn event_text(event: &Event, output: &OutputOptions) -> String {
    // `2026-11-21T02:53:14.931523Z`: the day is in --json.
    let time = event.time.get(11..23).unwrap_or(&event.time);
    let style = state_style(&event.severity);
    let kind = paint(&format!("{:<18}", plain(&event.kind)), style, output.color);
    let agent = event.agent.as_deref().unwrap_or("");
    let time = paint(time, Style::Dim, output.color);
    format!("{:>5}  {time}  {kind}  {:<14}  {}", event.seq, plain(agent), plain(&event.text))
}

/// `stop`: asks for a clean end and waits until it has come.
pub fn stop(client: &mut Client, keep_tasks: Option<bool>, output: &OutputOptions) -> Result<u8> {
    let pid = client.get("/api/v1/system/status").ok().and_then(|status| status["pid"].as_u64());
    match client.post_repeatable("/api/v1/system/stop", &json!({ "keep_tasks": keep_tasks })) {
        // It was ending already, or was quicker than its answer.
        Err(
            ClientError::NotRunning { .. }
            | ClientError::Broken(_)
            | ClientError::Problem { status: 503, .. },
        ) if keep_tasks != Some(true) => {}
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let talks = !output.quiet && !speaks_json() && io::stderr().is_terminal();
    let mut stderr = io::stderr();
    let began = Instant::now();
    let mut told = 0;
    while is_listening(client.socket()) {
        if began.elapsed() > STOP_LIMIT {
            if talks {
                let _ = writeln!(stderr);
            }
            let socket = client.socket().display();
            return Err(anyhow!(
                "the swarm is still stopping after {} s (socket {socket})",
                STOP_LIMIT.as_secs()
            ));
        }
        if talks && began.elapsed().as_secs() >= told {
            let _ = write!(stderr, "\rstopping: running tasks may finish ... {told} s");
            told += 1;
        }
        std::thread::sleep(STOP_LOOK);
    }
    // Its name is free only when the process is gone.
    let gone = Instant::now();
    while pid.is_some_and(is_alive) && gone.elapsed() < PROCESS_LIMIT {
        std::thread::sleep(STOP_LOOK);
    }
    if talks && told > 0 {
        let _ = write!(stderr, "\r\x1b[K");
    }
    let took = began.elapsed().as_secs_f64();
    if output.json {
        print(&json!({"ok": true, "took_s": took}).to_string())?;
    } else {
        say(output, &format!("stopped after {}", duration(took)));
    }
    Ok(exit::DONE)
}

fn is_listening(socket: &Path) -> bool {
    // The file alone would do, except after a kill, which leaves it behind.
    socket.exists() && UnixStream::connect(socket).is_ok()
}

/// Whether a process runs; one that has ended but was not waited for does not.
fn is_alive(pid: u64) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    u64::from(std::process::id()) != pid && !state.starts_with(['Z', 'X'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::action::{EarlierView, TaskCounts};
    use std::collections::BTreeMap;

    const OUTPUT: OutputOptions = OutputOptions { json: false, quiet: true, color: false, width: 80 };

    fn agent(id: &str, state: &str) -> AgentView {
        AgentView {
            id: id.into(),
            kind: id.split('-').next().expect("kind").into(),
            state: state.into(),
            pid: (state == "ready").then_some(1_234_567),
            incarnation: 1,
            cores: vec![1],
            core_shared: false,
            tasks: 12_345,
            failures: 0,
            in_flight: 3,
            restarts: 0,
            busy_s: 12.34,
            cpu_percent: Some(98.2),
            rss_bytes: Some(12_688_000),
            counters: None,
        }
    }

    fn task(state: &str) -> TaskView {
        TaskView {
            id: "a".into(),
            number: 7,
            kernel: "matmul".into(),
            state: state.into(),
            priority: "normal".into(),
            hedged_on: None,
            parts: 0,
            undivided: None,
            attempts: u32::from(!["waiting", "queued"].contains(&state)),
            retries_left: 0,
            waiting_for: Vec::new(),
            agent: (!["waiting", "queued"].contains(&state)).then(|| "compute-0".into()),
            backend: (state == "succeeded").then(|| "avx2".into()),
            result: None,
            error: None,
            queue_us: 0.0,
            dispatch_us: 0.0,
            service_us: if state == "succeeded" { 1234.0 } else { 0.0 },
            total_us: 0.0,
            finished_ns: 0,
            decision: None,
        }
    }

    fn swarm() -> StatusView {
        let known = |value| Known { value: Some(value), unavailable: None };
        let absent = |why: &str| Known { value: None, unavailable: Some(why.into()) };
        StatusView {
            swarm: "default".into(),
            state: "running".into(),
            pid: 4242,
            uptime_s: 125.0,
            policy: "ect".into(),
            balancer: None,
            durability: Default::default(),
            tasks: TaskCounts { total: 1_234_567, succeeded: 1_234_000, failed: 3, ..TaskCounts::default() },
            queued: 12,
            in_flight: 4,
            safety: SafetyView {
                level: "no_standbys".into(),
                level_because: Some("9.0 % of memory is free, 10 % is the least".into()),
                containment: "pid_namespace".into(),
                ..SafetyView::default()
            },
            agents: vec![agent("compute-0", "ready"), agent("optimization-0", "backoff")],
            host: BTreeMap::from([
                ("cpu_percent".into(), known(12.3)),
                ("steal_percent".into(), known(0.0)),
                ("load_1m".into(), known(0.31)),
                ("memory_percent".into(), known(34.0)),
                ("memory_available_bytes".into(), known(5e9)),
                ("temperature_celsius".into(), absent("no_sensor")),
                ("pressure_cpu_percent".into(), absent("no PSI in this kernel")),
                ("pressure_memory_percent".into(), absent("no PSI in this kernel")),
                ("pressure_io_percent".into(), absent("no PSI in this kernel")),
                ("disk_read_bytes_per_s".into(), known(0.0)),
                ("disk_write_bytes_per_s".into(), known(12_345.0)),
                ("compute_agents_cap".into(), absent("no cap in force")),
            ]),
            notes: vec![
                "compute-0 shares core 0 with the supervisor, since this host has only two cores to give"
                    .into(),
            ],
            incidents: Vec::new(),
            incidents_total: 0,
            earlier: Some(EarlierView {
                lives: 3,
                tasks: TaskCounts { total: 7_654_321, ..TaskCounts::default() },
                ..EarlierView::default()
            }),
            gateway: Some(GatewayView { pid: Some(43), restarts: 2 }),
        }
    }

    #[test]
    fn an_incident_is_shown_with_its_evidence() {
        let incident = json!({
            "id": 7, "time": "2026-11-21T02:53:14.931523Z", "agent": "compute-0", "incarnation": 2,
            "failure": "leak", "action": "drain_and_replace", "cause": "memory will reach the limit in 14 s",
            "evidence": [{"name": "limit_bytes", "value": 5e8}], "detect_us": null, "recovery_us": 2500.0,
            "tasks_moved": 1,
        });
        let text = incidents_text(&[serde_json::from_value(incident).expect("an incident")], &OUTPUT);
        for words in [
            "    7  02:53:14.931  leak        compute-0  life 2",
            "memory will reach the limit in 14 s",
            "limit_bytes 500000000",
            "drain_and_replace; found after —, well again after 2.50 ms, 1 task",
        ] {
            assert!(text.contains(words), "{text}\n  should say\n{words}");
        }
        assert_eq!(incidents_text(&[], &OUTPUT), "no incidents\n");
    }

    #[test]
    fn status_fits_on_a_screen_and_gives_reasons() {
        let text = status_text(&swarm(), &OUTPUT);
        for words in [
            "swarm default   running for 2m 05s   process 4242   placement ect",
            "tasks      1,234,567 in all, 1,234,000 succeeded, 3 failed\n",
            "           7,654,321 ended in 3 earlier lives of the swarm\n",
            "queue      12 waiting, 4 at agents",
            "host       cpu 12 %   steal 0 %   load 0.31   hottest —\n",
            "memory     used 34 %   available 4.66 GiB\n",
            "stalled    —\n",
            "disk       reads 0 B/s   writes 12.3 kB/s",
            "safety     level no_standbys   standbys 0 of 0   contained by pid namespace\n",
            "           — no_standbys: 9.0 % of memory is free, 10 % is the least\n",
            "gateway    process 43, replaced 2 times\n",
            "           — hottest: no_sensor\n",
            "           — stalled: no PSI in this kernel\n",
            "compute-0       ready    1234567     1  12,345  12.3 s  98 %  12.1 MiB         0\n",
            "\n\nnotes      compute-0 shares core 0 with the supervisor, since this host has only\n           two cores",
        ] {
            assert!(text.contains(words), "{text}\n  should say\n{words}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.lines().count() <= 24, "{text}");
        let colored = status_text(&swarm(), &OutputOptions { color: true, ..OUTPUT });
        assert!(colored.contains("\x1b[31m3 failed\x1b[0m"), "{colored}");
    }

    #[test]
    fn a_task_list_fits_and_says_what_a_dash_means() {
        let mut failed = task("failed");
        failed.id = "a-rather-long-name-that-somebody-gave-to-it".into();
        failed.error =
            Some("inputs[0]: x.npy: No such file or directory (os error 2), and more words".into());
        let text = task_table(&[task("queued"), failed, task("succeeded")], &OUTPUT);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("— not dispatched, or not ended on an agent"), "{text}");
        assert!(text.contains("1.23 ms"), "{text}");
    }

    #[test]
    fn a_decision_is_told_with_what_it_was_chosen_from() {
        let decision: DecisionView = serde_json::from_value(json!({
            "attempt": 1, "policy": "learned", "by": "exploring", "agent": "compute-1", "expected_us": 200.0,
            "took_us": 300.0, "probability": 0.002, "of": 9, "candidates": [
                {"agent": "compute-0", "room": false, "in_flight": 2, "backlog_us": 1500.0, "told_us": 210.0,
                 "time_us": 205.0, "price": 0.0125, "score_us": 1800.0},
                {"agent": "compute-1", "room": true, "in_flight": 0, "backlog_us": 0.0, "told_us": null,
                 "time_us": null, "price": null, "score_us": null},
            ],
        }))
        .expect("a decision");
        let words = why_there(&decision);
        for part in [
            "The policy `learned` chose compute-1 to learn more of it",
            "expected to take 200 µs and took 300 µs, 1.50 times that",
            "at least 0.0020",
        ] {
            assert!(words.contains(part), "{words}\n  should say\n{part}");
        }
        let table = candidate_table(&decision);
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1][..3], ["compute-0", "no", "2"], "{table}");
        assert_eq!(rows[2], [">", "compute-1", "yes", "0", "0", "s", "—", "—", "—", "—"], "{table}");
        assert_eq!(rows[3], ["and", "7", "more"]);
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }

    #[test]
    fn every_state_is_explained() {
        let agents = [agent("compute-0", "ready"), agent("compute-1", "benched"), agent("fault-0", "ready")];
        let why = |task: &TaskView, raw: Value| explain(task, &raw, &agents).join(" ");
        assert!(why(&task("waiting"), json!({})).contains("named in its `after`"));
        let words = why(&task("waiting"), json!({"waiting_for": ["x", "y"]}));
        assert_eq!(words, "It waits until these have succeeded: x, y.");
        let words = why(&task("queued"), json!({}));
        assert!(
            words.contains("1 of 2 compute agents can take work: compute-0 holds 3, compute-1 is benched."),
            "{words}"
        );
        assert!(explain(&task("queued"), &json!({}), &[])[1].contains("agent create compute"));
        let words = why(&task("dispatched"), json!({}));
        assert!(words.contains("handed to compute-0") && words.contains("holds 3 tasks"), "{words}");
        assert_eq!(why(&task("running"), json!({})), "It runs on compute-0.");
        assert_eq!(why(&task("succeeded"), json!({})), "It ran 1.23 ms on compute-0 with avx2 code.");
        let retrying = TaskView { attempts: 2, error: Some("signal 9 (killed)".into()), ..task("retrying") };
        let words = why(&retrying, json!({"retries_left": 1}));
        assert!(words.contains("Attempt 2 did not succeed: signal 9 (killed)."), "{words}");
        assert!(words.contains("; 1 more retry is left") && words.contains("dispatched 2 times"), "{words}");
        let failed = TaskView { attempts: 0, error: Some("bad input".into()), ..task("failed") };
        assert_eq!(why(&failed, json!({})), "It never ran: bad input.");
        assert_eq!(why(&task("cancelled"), json!({})), "It was given up on request.");
        let cancelled = |error: &str| TaskView { error: Some(error.into()), ..task("cancelled") };
        let words = why(&cancelled("cancelled on request"), json!({}));
        assert_eq!(words, "It was cancelled on request.");
        let words = why(&cancelled("the swarm stopped"), json!({}));
        assert_eq!(words, "It was given up: the swarm stopped.");
    }

    #[test]
    fn submitted_tasks_get_a_line_each() {
        let answer = |id: &str, error: Option<&str>, task| Submitted {
            id: id.into(),
            error: error.map(str::to_owned),
            task,
        };
        let mut done = task("succeeded");
        done.result = Some(json!({"sum": 6.0}));
        let text = submitted_text(
            &[
                answer("a", None, Some(Box::new(done))),
                answer("longer", None, None),
                answer("#3", Some("task #3: field `kernel`\nis missing"), None),
            ],
            &OUTPUT,
        );
        assert_eq!(
            text,
            "a       succeeded  {\"sum\":6.0}  1.23 ms  on compute-0\n\
             longer  accepted\n\
             #3      refused    task #3: field `kernel`\\nis missing\n"
        );
    }

    #[test]
    fn one_task_is_shown_with_reasons_for_what_is_missing() {
        let text = task_text(&task("queued"), &OUTPUT);
        assert!(text.starts_with("task       a (t7)\nkernel     matmul\n"), "{text}");
        assert!(
            text.contains("agent      — (never dispatched)\n") && text.contains("ran        — (not ended"),
            "{text}"
        );
        let removed = TaskView { agent: None, attempts: 1, ..task("succeeded") };
        assert!(task_text(&removed, &OUTPUT).contains("agent      — (it is not there any more)\n"));
    }

    #[test]
    fn an_event_is_one_line_without_control_characters() {
        let event = Event {
            seq: 12,
            time: "2026-11-21T02:53:14.931523Z".into(),
            severity: "warning".into(),
            kind: "agent_died".into(),
            agent: Some("compute-0".into()),
            text: "signal 9\x1b[2J".into(),
        };
        let text = event_text(&event, &OUTPUT);
        assert_eq!(text, "   12  02:53:14.931  agent_died          compute-0       signal 9\\u{1b}[2J");
    }

    #[test]
    fn a_process_that_is_gone_is_seen_to_be_gone() {
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let pid = u64::from(child.id());
        while is_alive(pid) {
            std::thread::yield_now();
        }
        child.wait().expect("ended");
        assert!(!is_alive(pid));
    }
}
