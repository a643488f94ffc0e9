//! Cold command to first answer: the real binary, started as a person starts it.

use super::{Figure, Limit, quantile, sorted};
use anyhow::ensure;
use std::process::{Command, Stdio};
use std::time::Instant;

pub(super) fn measure(quick: bool) -> anyhow::Result<Vec<Figure>> {
    let rounds = if quick { 10 } else { 40 };
    let binary = std::env::current_exe()?;
    let mut times = Vec::new();
    let mut floor = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        let output = Command::new(&binary)
            .args(["run", "--kernel", "noop", "--quiet", "--report", "-"])
            .stdin(Stdio::null())
            .output()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(output.status.success(), "the command failed: {}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["tasks"]["succeeded"] == 1, "the task did not succeed");
        let began = Instant::now();
        Command::new(&binary).arg("--version").stdin(Stdio::null()).output()?;
        floor.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let (times, floor) = (sorted(times), sorted(floor));
    let version = quantile(&floor, 0.5);
    Ok(vec![Figure {
        bench: "startup",
        name: "command_ends".to_owned(),
        value: quantile(&times, 0.5),
        unit: "ms",
        floor: Some(version),
        limit: Some(Limit::AtMost(150.0)),
        p50: Some(quantile(&times, 0.5)),
        p99: Some(quantile(&times, 0.99)),
        note:
            "the whole command `run --kernel noop`, every process gone; floor: `--version` of the same binary"
                .to_owned(),
        ..Figure::default()
    }])
}
