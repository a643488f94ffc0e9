//! `--demo`: the swarm at work, on arrays it makes itself, with one agent killed on purpose.
//!
//! 1. Every kernel plain and vectorised: what SIMD gains.
//! 2. A mix of all kernels, sizes and priorities; half-way a compute agent is killed with signal 9.
//! 3. The same batch by the swarm and by one plain process: what the swarm gains.
//!
//! Every figure that it prints was measured in this very run.

use super::output::say;
use super::output::{self, OutputOptions, Table};
use super::run::progress;
use super::single::SINGLE_WORD;
use crate::arrays::{DType, write_npy};
use crate::base::words::things;
use crate::jobs::{self, Defaults};
use crate::kernels::{KernelId, Level, synthetic_inputs};
use crate::supervisor::Supervisor;
use crate::supervisor::action::{Action, Handle, Reply, ReportView, Submitted, TaskView};
use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Elements of the small, middling and large arrays.
const SIZES: [usize; 3] = [1 << 12, 1 << 16, 1 << 20];
/// Rounds of the mix.
const MIX_ROUNDS: usize = 6;
/// Kernels that are compared between swarm and single process, elements, and tasks of each.
const GAIN: [(KernelId, usize, usize); 6] = [
    (KernelId::Matmul, 1 << 19, 24),
    (KernelId::Sort, 1 << 20, 24),
    (KernelId::Fft, 1 << 18, 24),
    (KernelId::Stencil5, 1 << 20, 24),
    (KernelId::Knn, 1 << 20, 24),
    (KernelId::MonteCarlo, 20_000_000, 12),
];

/// What the demonstration found.
pub(super) struct Demonstration {
    pub(super) text: String,
    pub(super) fine: bool,
}

/// Runs the demonstration on a started swarm. The supervisor keeps the main thread; the driver is another.
pub(super) fn run(supervisor: &mut Supervisor, output: &OutputOptions) -> anyhow::Result<Demonstration> {
    let folder = Folder::create()?;
    let driver = Driver {
        handle: supervisor.handle(),
        folder: folder.0.clone(),
        output: *output,
        compute: supervisor.plan().compute_count(),
    };
    let thread = std::thread::Builder::new().name("demo".into()).spawn(move || driver.run())?;
    supervisor.run_until(|_| thread.is_finished());
    if !thread.is_finished() {
        // Asked to stop: answers no longer come, so the driver ends by itself once the swarm has.
        return Ok(Demonstration { text: "the demonstration was stopped".to_owned(), fine: true });
    }
    match thread.join() {
        Ok(outcome) => outcome,
        Err(_) => bail!("the demonstration panicked"),
    }
}

/// A folder of arrays, gone with the demonstration.
struct Folder(PathBuf);

impl Folder {
    fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("ai_swarm-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Driver {
    handle: Handle,
    folder: PathBuf,
    output: OutputOptions,
    compute: usize,
}

/// The backend of kernels that have no levels of ours.
const NATIVE: &str = "native";

/// What vector code gains for one kernel: median service times, microseconds.
struct SimdGain {
    kernel: KernelId,
    /// What ran when the best level was asked for.
    backend: String,
    best_us: f64,
    /// Absent for kernels that have no scalar form.
    scalar_us: Option<f64>,
}

/// A task of the demonstration: everything but its id and priority.
#[derive(Clone)]
struct Sample {
    kernel: KernelId,
    size: usize,
    task: Map<String, Value>,
}

impl Driver {
    fn run(self) -> anyhow::Result<Demonstration> {
        let began = Instant::now();
        self.wait_ready()?;
        say(&self.output, "demo: making arrays");
        let samples = self.samples()?;
        say(&self.output, "demo: every kernel, plain and vectorised");
        let simd = self.simd_gain(&samples)?;
        say(
            &self.output,
            "demo: a mix of all kernels, sizes and priorities; one agent will be killed half-way",
        );
        let (mix, killed) = self.mix(&samples)?;
        say(&self.output, "demo: the same batch by the swarm and by one plain process");
        let swarm = self.swarm_gain()?;
        let report = self.report()?;
        let failed = mix.iter().filter(|task| task.state != "succeeded").count();
        let fine = failed == 0 && report.tasks.lost == 0 && report.tasks.duplicated == 0;
        let text = self.render(&report, &simd, &mix, &killed, &swarm, began.elapsed());
        Ok(Demonstration { text, fine })
    }

    fn call(&self, action: Action) -> anyhow::Result<Reply> {
        self.handle.call(action).context("the swarm has stopped")
    }

    fn report(&self) -> anyhow::Result<ReportView> {
        match self.call(Action::Report { all_tasks: false })? {
            Reply::Report(report) => Ok(*report),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let Reply::Agents(agents) = self.call(Action::Agents)? else { bail!("unexpected answer") };
            let computes: Vec<_> = agents.iter().filter(|agent| agent.kind == "compute").collect();
            if computes.iter().all(|agent| agent.state == "ready") {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the compute agents are not ready after 20 s");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One sample per kernel and size, its arrays written to the folder.
    fn samples(&self) -> anyhow::Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for kernel in KernelId::ALL {
            // No size makes a no-op or a pause larger.
            let sizes =
                if matches!(kernel, KernelId::Noop | KernelId::Sleep) { &SIZES[..1] } else { &SIZES[..] };
            for &size in sizes {
                samples.push(self.sample(kernel, size)?);
            }
        }
        Ok(samples)
    }

    fn sample(&self, kernel: KernelId, size: usize) -> anyhow::Result<Sample> {
        let (arrays, params) = synthetic_inputs(kernel, size, DType::F32, 7)?;
        let mut task = Map::new();
        task.insert("kernel".into(), kernel.name().into());
        let mut inputs = Vec::new();
        for (at, array) in arrays.iter().enumerate() {
            let path = self.folder.join(format!("{kernel}-{size}-{at}.npy"));
            write_npy(&path, array, "demo")?;
            inputs.push(Value::from(path.to_string_lossy().into_owned()));
        }
        if !inputs.is_empty() {
            task.insert("inputs".into(), inputs.into());
        }
        let given: Map<String, Value> =
            params.to_json().into_iter().filter(|(_, value)| !value.is_null()).collect();
        task.insert("params".into(), given.into());
        if crate::kernels::output_needed(&params) {
            task.insert(
                "output".into(),
                self.folder.join(format!("{kernel}-{size}-out.npy")).to_string_lossy().into_owned().into(),
            );
        }
        Ok(Sample { kernel, size, task })
    }

    /// Submits tasks and waits for all of them.
    fn run_tasks(&self, tasks: Vec<Map<String, Value>>) -> anyhow::Result<Vec<TaskView>> {
        let job = json!({ "tasks": tasks });
        let defaults = Defaults { timeout: None, retries: 2 };
        let tasks = jobs::parse_value(&job, Path::new("/"), &defaults)?;
        match self.call(Action::Submit { tasks, record_refused: true, wait: true })? {
            Reply::Submitted(answers) => answers
                .into_iter()
                .map(|Submitted { id, task, .. }| {
                    task.map(|task| *task).with_context(|| format!("task {id} was lost"))
                })
                .collect(),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Median service time of each kernel's large sample, by the machine's best level and scalar.
    fn simd_gain(&self, samples: &[Sample]) -> anyhow::Result<Vec<SimdGain>> {
        let mut gains = Vec::new();
        for sample in samples.iter().filter(|sample| sample.size == SIZES[2]) {
            if matches!(sample.kernel, KernelId::Noop | KernelId::Sleep) {
                continue;
            }
            // The backend that ran, which is `native` for kernels without levels of ours, and its time.
            let median = |wanted: &str| -> anyhow::Result<(String, f64)> {
                let mut task = sample.task.clone();
                task.insert("backend".into(), wanted.into());
                let mut times = Vec::new();
                let mut backend = None;
                for _ in 0..5 {
                    let done = self.run_tasks(vec![task.clone()])?;
                    if done[0].state != "succeeded" {
                        bail!("{} failed: {}", sample.kernel, done[0].error.as_deref().unwrap_or(""));
                    }
                    times.push(done[0].service_us);
                    backend.clone_from(&done[0].backend);
                }
                times.remove(0);
                times.sort_by(f64::total_cmp);
                Ok((backend.unwrap_or_else(|| wanted.to_owned()), times[times.len() / 2]))
            };
            let (backend, best_us) = median(Level::best().name())?;
            let scalar_us = if backend == NATIVE { None } else { Some(median("scalar")?.1) };
            gains.push(SimdGain { kernel: sample.kernel, backend, best_us, scalar_us });
        }
        Ok(gains)
    }

    /// The mix; returns the ended tasks and who was killed.
    fn mix(&self, samples: &[Sample]) -> anyhow::Result<(Vec<TaskView>, String)> {
        let mut tasks = Vec::new();
        for round in 0..MIX_ROUNDS {
            for (at, sample) in samples.iter().enumerate() {
                let mut task = sample.task.clone();
                task.insert("priority".into(), ["high", "normal", "low"][(round + at) % 3].into());
                if let Some(Value::String(output)) = task.get_mut("output") {
                    *output = output.replace("-out.npy", &format!("-out-{round}.npy"));
                }
                tasks.push(task);
            }
        }
        let total = tasks.len() as u64;
        let before = self.report()?.tasks;
        let bar = progress(total, &self.output);
        let done = std::thread::scope(|scope| -> anyhow::Result<_> {
            let waiting = scope.spawn(|| self.run_tasks(tasks));
            let killed = self.watch_and_kill(total, before.succeeded, &bar, || waiting.is_finished())?;
            let done = waiting.join().map_err(|_| anyhow::anyhow!("the submitter panicked"))??;
            Ok((done, killed))
        });
        bar.finish_and_clear();
        done
    }

    fn watch_and_kill(
        &self,
        total: u64,
        before: u64,
        bar: &ProgressBar,
        over: impl Fn() -> bool,
    ) -> anyhow::Result<String> {
        let mut killed = None;
        while !over() {
            let Reply::Status(status) = self.call(Action::Status)? else { bail!("unexpected answer") };
            let done = status.tasks.succeeded - before;
            bar.set_position(done);
            if killed.is_none() && done >= total / 2 {
                // The busiest one, so that there is something to move.
                let computes =
                    status.agents.iter().filter(|agent| agent.kind == "compute" && agent.state == "ready");
                if let Some(victim) = computes.max_by_key(|agent| agent.in_flight) {
                    self.call(Action::KillAgent(victim.id.clone()))?;
                    bar.set_message(format!("killed {}", victim.id));
                    killed = Some(victim.id.clone());
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        match killed {
            Some(killed) => Ok(killed),
            // The mix was faster than the look at it: kill one now, so that the report shows a recovery.
            None => {
                let victim = "compute-0".to_owned();
                self.call(Action::KillAgent(victim.clone()))?;
                Ok(victim)
            }
        }
    }

    /// Wall time of one batch per kernel by the swarm and by one plain process, s.
    fn swarm_gain(&self) -> anyhow::Result<Vec<(KernelId, usize, f64, f64)>> {
        self.wait_ready()?;
        let mut gains = Vec::new();
        for (kernel, size, count) in GAIN {
            let sample = self.sample(kernel, size)?;
            let tasks: Vec<Map<String, Value>> = (0..count)
                .map(|at| {
                    let mut task = sample.task.clone();
                    if let Some(Value::String(output)) = task.get_mut("output") {
                        *output = output.replace("-out.npy", &format!("-gain-{at}.npy"));
                    }
                    task
                })
                .collect();
            let job = self.folder.join("single.json");
            std::fs::write(&job, json!({ "tasks": tasks }).to_string())?;
            let (mut swarm, mut single) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..3 {
                let began = Instant::now();
                let done = self.run_tasks(tasks.clone())?;
                swarm = swarm.min(began.elapsed().as_secs_f64());
                if let Some(bad) = done.iter().find(|task| task.state != "succeeded") {
                    bail!("{kernel} failed: {}", bad.error.as_deref().unwrap_or(""));
                }
                single = single.min(single_process(&job)?);
            }
            gains.push((kernel, count, swarm, single));
        }
        Ok(gains)
    }

    fn render(
        &self,
        report: &ReportView,
        simd: &[SimdGain],
        mix: &[TaskView],
        killed: &str,
        swarm: &[(KernelId, usize, f64, f64)],
        took: Duration,
    ) -> String {
        let options = &self.output;
        let best = Level::best().name();
        let time = |us: f64| output::duration(us / 1e6);
        let mut text = format!(
            "DEMONSTRATION  ({}, kernels on {best}, {})\n\n",
            things(self.compute, "compute agent"),
            output::duration(took.as_secs_f64())
        );

        text += "What vector code gains: one large task of each kernel, median of four runs\n\n";
        text += &simd_table(simd, options);

        text += "\nWhat the swarm gains: a batch by all agents, and by one plain process, best of three\n\n";
        let mut table = Table::new(&["kernel", "tasks", "one process", "swarm", "gain"]).right(&[1, 2, 3, 4]);
        for (kernel, count, swarm, single) in swarm {
            table.row([
                kernel.name().to_owned(),
                count.to_string(),
                output::duration(*single),
                output::duration(*swarm),
                format!("{:.2} x", single / swarm),
            ]);
        }
        text += &table.render(options);

        let succeeded = mix.iter().filter(|task| task.state == "succeeded").count();
        let again = mix.iter().filter(|task| task.attempts > 1).count();
        text += &format!(
            "\nThe mix: {succeeded} of {} tasks succeeded, {again} of them in a second attempt\n\n",
            mix.len()
        );
        let mut table =
            Table::new(&["priority", "tasks", "waited p50", "waited p99", "service p50", "service p99"])
                .right(&[1, 2, 3, 4, 5]);
        let mut by_priority: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for task in mix {
            let entry = by_priority.entry(&task.priority).or_default();
            entry.0.push(task.queue_us);
            entry.1.push(task.service_us);
        }
        for priority in ["high", "normal", "low"] {
            if let Some((queue, service)) = by_priority.get_mut(priority) {
                queue.sort_by(f64::total_cmp);
                service.sort_by(f64::total_cmp);
                let at =
                    |sorted: &[f64], share: f64| time(sorted[((sorted.len() - 1) as f64 * share) as usize]);
                table.row([
                    priority.to_owned(),
                    queue.len().to_string(),
                    at(queue, 0.5),
                    at(queue, 0.99),
                    at(service, 0.5),
                    at(service, 0.99),
                ]);
            }
        }
        text += &table.render(options);

        text += "\nThe recovery: ";
        match report.recoveries.iter().find(|recovery| recovery.agent == killed) {
            Some(recovery) => {
                let micros = |us: Option<f64>| us.map_or_else(|| "unknown".to_owned(), time);
                text += &format!(
                    "{} was killed with signal 9 on purpose; noticed after {}, its successor ready after {} more, {} moved, {} lost, {} done twice\n",
                    recovery.agent,
                    micros(recovery.detect_us),
                    micros(recovery.ready_us),
                    things(recovery.tasks_moved, "task"),
                    report.tasks.lost,
                    report.tasks.duplicated,
                );
            }
            None => text += "no death is on record\n",
        }
        text
    }
}

fn simd_table(gains: &[SimdGain], options: &OutputOptions) -> String {
    let mut table = Table::new(&["kernel", "backend", "time", "scalar", "gain"]).right(&[2, 3, 4]);
    for gain in gains {
        let factor = gain.scalar_us.map(|scalar| format!("{:.1} x", scalar / gain.best_us));
        table.row([
            gain.kernel.name().to_owned(),
            gain.backend.clone(),
            output::micros(gain.best_us),
            output::or_absent(gain.scalar_us.map(output::micros)),
            output::or_absent(factor),
        ]);
    }
    let mut text = table.render(options);
    if gains.iter().any(|gain| gain.scalar_us.is_none()) {
        text += &format!(
            "{} has no scalar form: library code that chooses its own instructions\n",
            output::ABSENT
        );
    }
    text
}

/// Wall time of the job in one plain process, its own start not counted, s.
fn single_process(job: &Path) -> anyhow::Result<f64> {
    let output = std::process::Command::new("/proc/self/exe").arg(SINGLE_WORD).arg(job).output()?;
    if !output.status.success() {
        bail!("the single process failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    answer["wall_s"].as_f64().context("the single process gave no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_without_levels_are_not_called_scalar_or_vector_code() {
        let gain = |kernel, backend: &str, best_us, scalar_us| SimdGain {
            kernel,
            backend: backend.into(),
            best_us,
            scalar_us,
        };
        let gains =
            [gain(KernelId::Matmul, "avx2", 100.0, Some(450.0)), gain(KernelId::Sort, NATIVE, 7.0, None)];
        let text = simd_table(&gains, &OutputOptions::default());
        assert_eq!(
            text,
            "kernel  backend     time  scalar   gain\n\
             matmul  avx2      100 µs  450 µs  4.5 x\n\
             sort    native   7.00 µs       —      —\n\
             — has no scalar form: library code that chooses its own instructions\n"
        );
    }
}
