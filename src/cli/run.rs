//! `run`: a private swarm for some tasks. Starts it, runs them, writes results, reports, ends.

use super::args::{Global, Work};
use super::output::{self, OutputOptions, Table};
use super::output::{complain, say, speaks_json};
use super::session::{Session, defaults, write_report};
use super::{Failure, exit, files, job_of_kernel};
use crate::base::words::things;
use crate::config::SwarmConfig;
use crate::jobs::{self, JobError, Strict, Tasks};
use crate::os::clock;
use crate::supervisor::OnEnd;
use crate::supervisor::action::{CountersView, ReportView, TaskView};
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Failed tasks that are listed one by one.
const FAILURES_SHOWN: usize = 20;

/// What is said of a job without tasks.
pub(super) const NOTHING_TO_DO: &str = "nothing to do: the job has no tasks";

pub(super) fn run(
    global: &Global,
    config: &SwarmConfig,
    work: &Work,
    output: &OutputOptions,
) -> anyhow::Result<u8> {
    let tasks = read_tasks(config, work)?;
    let mut session = Session::start(global, config, true, "warn", output)?;
    session.supervisor.submit(tasks);
    let total = session.supervisor.ledger().counts().total;
    let bar = progress(total, output);
    let mut shown = clock::now();
    session.supervisor.run_until(|supervisor| {
        let counts = supervisor.ledger().counts();
        let now = clock::now();
        if now.since(shown) > Duration::from_millis(100) {
            shown = now;
            bar.set_position(total - counts.open());
        }
        counts.open() == 0 || supervisor.is_hopeless()
    });
    if session.supervisor.is_hopeless() {
        complain("no compute agent lives, and none will: see `agents.compute.count` and `fault_tolerance`");
    }
    bar.finish_and_clear();
    let interrupted = session.supervisor.is_stop_asked();
    let (report, _) = session.end(OnEnd::Drain, global.report_tasks || !output.json);
    show_results(global, &report, output)?;
    if report.tasks.total == 0 {
        say(output, NOTHING_TO_DO);
    } else {
        say(output, &summary(&report, output));
    }
    write_report(global, &without_detail(report.clone(), global.report_tasks))?;
    let failed = report.tasks.succeeded < report.tasks.total;
    Ok(if interrupted {
        say(output, "stopped on request");
        exit::DONE
    } else if failed {
        exit::FAILED
    } else {
        exit::DONE
    })
}

fn read_tasks(config: &SwarmConfig, work: &Work) -> anyhow::Result<Tasks> {
    let defaults = defaults(config);
    if let Some(kernel) = &work.kernel {
        let job = job_of_kernel(work, kernel)?;
        let tasks = jobs::parse_value(&job, Path::new("/"), &defaults).map_err(job_failure)?;
        // Words of the command line, not a line of a file: nothing else is there that could go on.
        if let Some(Err(refused)) = tasks.first() {
            let words = refused.error.split_once(": ").map_or(&*refused.error, |(_, words)| words);
            return Err(Failure::new(exit::WRONG, words)
                .hint("`ai_swarm_deploy kernels` shows what each takes")
                .into());
        }
        return Ok(tasks);
    }
    let mut tasks = Vec::new();
    for file in files(work)? {
        tasks.extend(jobs::parse_file(&file, &defaults).map_err(job_failure)?);
    }
    Ok(tasks)
}

fn job_failure(error: JobError) -> Failure {
    Failure::new(exit::WRONG, error.to_string())
        .hint("a job file is {\"tasks\": [...]} or one task a line; see the README")
}

/// The tasks of a job file as JSON, their paths made absolute: what `submit` sends.
pub(super) fn read_tasks_as_json(path: &Path) -> anyhow::Result<Vec<Value>> {
    let (text, folder) = if path == Path::new("-") {
        (std::io::read_to_string(std::io::stdin())?, std::env::current_dir()?)
    } else {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(exit::WRONG, format!("{}: cannot be read: {error}", path.display()))
        })?;
        (text, std::path::absolute(path)?.parent().map(PathBuf::from).unwrap_or_default())
    };
    // Checked here for its form; each task is checked by the swarm that takes it.
    let checked = jobs::parse_text(
        &text,
        &path.display().to_string(),
        &folder,
        &jobs::Defaults { timeout: None, retries: 0 },
    );
    checked.map_err(job_failure)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let values: Vec<Value> = serde_json::Deserializer::from_str(text)
        .into_iter()
        .map(|read| read.map(|Strict(value)| value))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{}: not valid JSON", path.display()))?;
    let mut tasks = Vec::new();
    for value in values {
        match value {
            Value::Object(mut object) if object.contains_key("tasks") => {
                tasks.extend(
                    object.remove("tasks").and_then(|tasks| tasks.as_array().cloned()).unwrap_or_default(),
                );
            }
            other => tasks.push(other),
        }
    }
    for task in &mut tasks {
        make_absolute(task, &folder);
    }
    Ok(tasks)
}

fn make_absolute(task: &mut Value, folder: &Path) {
    let absolute = |value: &mut Value| {
        if let Some(path) = value.as_str().filter(|path| !path.is_empty()) {
            *value = Value::from(folder.join(path).to_string_lossy().into_owned());
        }
    };
    if let Some(inputs) = task.get_mut("inputs").and_then(Value::as_array_mut) {
        inputs.iter_mut().for_each(absolute);
    }
    if let Some(output) = task.get_mut("output") {
        absolute(output);
    }
}

/// A bar on a terminal, nothing elsewhere.
pub(super) fn progress(total: u64, output: &OutputOptions) -> ProgressBar {
    if output.quiet || speaks_json() || !std::io::stderr().is_terminal() || total < 2 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} tasks  {per_sec}  {eta} left  {msg}");
    ProgressBar::new(total).with_style(style.expect("the template is fixed"))
}

/// What is being done, on a terminal; nothing elsewhere.
pub(crate) fn steps(output: &OutputOptions) -> ProgressBar {
    if output.quiet || speaks_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{elapsed:>4}  {msg}").expect("the template is fixed");
    ProgressBar::new_spinner().with_style(style)
}

fn without_detail(mut report: ReportView, wanted: bool) -> ReportView {
    if !wanted && report.tasks_detail.as_ref().is_some_and(|detail| detail.len() > 10_000) {
        report.tasks_detail = None;
    }
    report
}

/// Results of tasks that yield numbers go to standard output, one a line; with `--json` the report does.
fn show_results(global: &Global, report: &ReportView, options: &OutputOptions) -> anyhow::Result<()> {
    if options.json {
        if global.report.as_deref() != Some(Path::new("-")) {
            super::output::print(&serde_json::to_string_pretty(report)?)?;
        }
        return Ok(());
    }
    let detail = report.tasks_detail.as_deref().unwrap_or(&[]);
    if global.report.as_deref() != Some(Path::new("-")) {
        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        for task in detail {
            if let Some(result) = &task.result {
                writeln!(stdout, "{}\t{}", task.id, result)?;
            }
        }
        stdout.flush()?;
    }
    let failed: Vec<&TaskView> = detail.iter().filter(|task| task.state != "succeeded").collect();
    for task in failed.iter().take(FAILURES_SHOWN) {
        let words = task.error.as_deref().unwrap_or("no reason was given");
        complain(&failure_words(task, words));
    }
    if failed.len() > FAILURES_SHOWN {
        let more = things(failed.len() - FAILURES_SHOWN, "more task");
        complain(&format!("{more} did not succeed; --report lists them all"));
    }
    Ok(())
}

/// What became of a task that did not succeed, with its name and state once.
fn failure_words(task: &TaskView, words: &str) -> String {
    // Messages of the job file name the task already.
    if words.starts_with("task ") || words.contains(": not valid JSON: ") {
        return words.to_owned();
    }
    match words.strip_prefix(&*task.state) {
        Some(rest) => format!("task {:?} {}{rest}", task.id, task.state),
        None => format!("task {:?} {}: {words}", task.id, task.state),
    }
}

/// The end of a run in a few lines.
pub(super) fn summary(report: &ReportView, options: &OutputOptions) -> String {
    let tasks = &report.tasks;
    let mut text = format!(
        "{} of {} succeeded in {} ({}/s)",
        tasks.succeeded,
        things(tasks.total as usize, "task"),
        output::duration(report.wall_s),
        output::count(report.throughput_tasks_per_s),
    );
    for (number, word) in [
        (tasks.failed, "failed"),
        (tasks.cancelled, "cancelled"),
        (tasks.retried, "retried"),
        (tasks.hedged, "sent to a second agent as well"),
        (tasks.left, "left to the next start"),
        (tasks.lost, "lost"),
        (tasks.duplicated, "duplicated"),
    ] {
        if number > 0 {
            text += &format!(", {number} {word}");
        }
    }
    if tasks.succeeded > 1 {
        let mut latency = Table::new(&["latency", "p50", "p99", "p99.9", "max"]).right(&[1, 2, 3, 4]);
        for (name, what) in
            [("queue", "waiting"), ("dispatch", "hand-over"), ("service", "kernel"), ("total", "in all")]
        {
            if let Some(p) = report.latency_us.get(name) {
                let time = |us: f64| output::duration(us / 1e6);
                latency.row([what.to_owned(), time(p.p50), time(p.p99), time(p.p999), time(p.max)]);
            }
        }
        text += &format!("\n\n{}", latency.render(options));
    }
    if !report.kernels.is_empty() {
        let names = ["kernel", "backend", "tasks", "GFLOP/s", "GB/s", "IPC", "faults/task", "time"];
        let mut kernels = Table::new(&names).right(&[2, 3, 4, 5, 6, 7]);
        let absent = || "\u{2014}".to_owned();
        for kernel in &report.kernels {
            let rate = |value: f64| if value > 0.0 { format!("{value:.2}") } else { absent() };
            let counters = kernel.counters.as_ref();
            let ratio = counters.and_then(CountersView::instructions_per_cycle);
            let faults = counters.and_then(|counters| counters.per_task("page_faults"));
            kernels.row([
                kernel.kernel.clone(),
                kernel.backend.clone(),
                kernel.count.to_string(),
                rate(kernel.gflops),
                rate(kernel.gbytes_per_s),
                ratio.map_or_else(absent, |ratio| format!("{ratio:.2}")),
                faults.map_or_else(absent, output::count),
                output::duration(kernel.service_s),
            ]);
        }
        text += &format!("\n{}", kernels.render(options));
        let counters = report.kernels.iter().find_map(|kernel| kernel.counters.as_ref());
        if let Some(why) = counters.and_then(|counters| counters.events.get("cycles")?.unavailable.as_ref()) {
            text += &format!("\nIPC is unavailable: {why} (`doctor` says more)\n");
        }
    }
    let mut agents = Table::new(&["agent", "core", "tasks", "busy", "restarts"]).right(&[1, 2, 3, 4]);
    for agent in report.agents.iter().filter(|agent| agent.kind == "compute" || agent.restarts > 0) {
        let cores: Vec<String> = agent.cores.iter().map(usize::to_string).collect();
        let busy = 100.0 * agent.busy_s / report.wall_s.max(1e-9);
        agents.row([
            agent.id.clone(),
            cores.join(","),
            agent.tasks.to_string(),
            format!("{busy:.0} %"),
            agent.restarts.to_string(),
        ]);
    }
    text += &format!("\n{}", agents.render(options));
    for recovery in &report.recoveries {
        let ready = recovery.ready_us.map_or_else(
            || "no successor yet".to_owned(),
            |us| format!("successor ready after {}", output::duration(us / 1e6)),
        );
        let noticed = recovery
            .detect_us
            .map_or_else(String::new, |us| format!("noticed after {}, ", output::duration(us / 1e6)));
        text += &format!(
            "\n{} died of {}: {noticed}{ready}, {} moved",
            recovery.agent,
            recovery.cause,
            things(recovery.tasks_moved, "task")
        );
    }
    text
}
