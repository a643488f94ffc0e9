//! What it is worth to divide one task among all agents: the same task in turn as a whole and as the balancer would have it, from
//! its submission to its answer, in a swarm with nothing else to do.

use super::{BENCH, Figure, Limit, Steps, quantile, sorted};
use crate::arrays::{DType, write_npy};
use crate::bench::swarm;
use crate::config::SwarmConfig;
use crate::jobs;
use crate::kernels::synthetic_array;
use crate::os::clock;
use crate::supervisor::{OnEnd, Supervisor};
use crate::tasks::TaskState;
use anyhow::{bail, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Pairs that count, after one that does not.
const PAIRS: usize = 9;
const PAIRS_QUICK: usize = 5;
/// Longest wait for a task.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is bound by arithmetic shall lose no more than this share to being divided, to the join, and to the slowest agent.
const LOST: f64 = 0.15;

/// One task.
struct Case {
    kernel: &'static str,
    shapes: Vec<Vec<usize>>,
    size: &'static str,
    params: Value,
    /// Whether cores are what it lacks, and not memory.
    needs_cores: bool,
}

fn cases(quick: bool) -> Vec<Case> {
    let case = |kernel, size, shapes: &[&[usize]], params, needs_cores| {
        let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
        Case { kernel, shapes, size, params, needs_cores }
    };
    let none = || json!({});
    if quick {
        return vec![case("matmul", "2048", &[&[2048, 2048], &[2048, 2048]], none(), true)];
    }
    vec![
        case("matmul", "4096", &[&[4096, 4096], &[4096, 4096]], none(), true),
        case("sort", "16x1m", &[&[16, 1 << 20]], none(), true),
        case("knn", "512x100k", &[&[512, 128], &[100_000, 128]], json!({"k": 10}), true),
        case("softmax", "4096x4096", &[&[4096, 4096]], none(), false),
        case("expr", "16m", &[&[16 << 20][..]; 3], json!({"expr": "sin(a)*b + 0.5*c*c"}), false),
    ]
}

/// Measures; nothing where there is one agent only.
pub(super) fn measure(quick: bool, steps: &Steps, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let folder = std::env::temp_dir().join(format!("ai_swarm-wide-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut supervisor = swarm(config)?;
    let outcome = measure_in(&folder, &mut supervisor, quick, steps);
    supervisor.shut_down(OnEnd::Drain);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn measure_in(
    folder: &Path,
    supervisor: &mut Supervisor,
    quick: bool,
    steps: &Steps,
) -> anyhow::Result<Vec<Figure>> {
    let agents = supervisor.plan().compute_count();
    if agents < 2 {
        return Ok(Vec::new());
    }
    crate::bench::dispatch::wait_ready(supervisor, agents)?;
    let mut figures = Vec::new();
    for case in cases(quick) {
        steps.begin(&format!("kernels: {} of {} on {agents} agents", case.kernel, case.size));
        let inputs: Vec<String> =
            (0..case.shapes.len()).map(|at| format!("{}{at}.npy", case.kernel)).collect();
        for ((name, shape), seed) in inputs.iter().zip(&case.shapes).zip(1..) {
            write_npy(&folder.join(name), &synthetic_array(DType::F32, shape, seed)?, "bench")?;
        }
        let job = json!({"tasks": [{
            "kernel": case.kernel, "inputs": inputs, "params": case.params, "output": "answer.npy",
        }]});
        let (mut whole, mut divided, mut parts) = (Vec::new(), Vec::new(), 0);
        let pairs = if quick { PAIRS_QUICK } else { PAIRS };
        for pair in 0..=pairs {
            for divides in [pair % 2 == 0, pair % 2 == 1] {
                supervisor.divide_above(if divides { Duration::from_nanos(1) } else { Duration::ZERO });
                let (seconds, into) = time(&job, folder, supervisor)?;
                if pair > 0 {
                    if divides { &mut divided } else { &mut whole }.push(seconds * 1e3);
                    parts = parts.max(into);
                }
            }
        }
        for name in inputs {
            std::fs::remove_file(folder.join(name))?;
        }
        figures.push(figure(&case, agents, parts, whole, divided));
    }
    Ok(figures)
}

fn figure(case: &Case, agents: usize, parts: u32, whole: Vec<f64>, divided: Vec<f64>) -> Figure {
    // By the pairs' ratio, which what changes on the way leaves alone.
    let ratios = sorted(divided.iter().zip(&whole).map(|(divided, whole)| divided / whole).collect());
    let (whole, divided) = (sorted(whole), sorted(divided));
    let floor = quantile(&whole, 0.5);
    let value = floor * quantile(&ratios, 0.5);
    let least = floor / agents as f64;
    let pairs = ratios.len();
    Figure {
        bench: BENCH,
        name: format!("divided_{}_f32_{}", case.kernel, case.size),
        value,
        unit: "ms",
        floor: Some(floor),
        limit: Some(Limit::AtMost(if case.needs_cores { least / (1.0 - LOST) } else { floor / 0.95 })),
        p50: Some(value),
        p99: Some(value.max(quantile(&divided, 0.99))),
        note: format!(
            "one task, from its submission to its answer, in up to {parts} parts on {agents} agents, {pairs} pairs; floor: \
             the same task as a whole"
        ),
        ..Figure::default()
    }
}

/// Seconds from the submission to the answer, and in how many parts it was done.
fn time(job: &Value, folder: &Path, supervisor: &mut Supervisor) -> anyhow::Result<(f64, u32)> {
    let mut tasks = jobs::parse_value(job, folder, &jobs::Defaults { timeout: None, retries: 0 })?;
    let Some(Ok(spec)) = tasks.pop() else { bail!("the task is not accepted") };
    let began = clock::now();
    let id = supervisor.submit_one(spec)?;
    let ended =
        |supervisor: &mut Supervisor| supervisor.ledger().get(id).is_none_or(|task| task.state.is_final());
    supervisor.run_until_deadline(began.plus(PATIENCE), ended);
    let task = supervisor.ledger().get(id);
    let seconds = clock::now().since(began).as_secs_f64();
    ensure!(
        task.is_some_and(|task| task.state == TaskState::Succeeded),
        "a task did not succeed: {:?}",
        task.and_then(|task| task.error.as_deref())
    );
    Ok((seconds, task.map_or(0, |task| task.parts)))
}
