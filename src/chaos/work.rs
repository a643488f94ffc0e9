//! Tasks whose answers are known beforehand, and the judgement over what became of them.

use super::Verdict;
use super::victim::Victim;
use crate::arrays::{Array, ArrayRef, NpyFile, write_npy};
use crate::gateway::client::{ClientError, segment};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tasks handed in at once.
const BATCH: u64 = 100;
/// Elements of the arrays.
const ELEMENTS: usize = 500;

pub(super) struct Work {
    folder: PathBuf,
    /// Tasks accepted; they are numbered from 0.
    accepted: u64,
}

impl Work {
    pub(super) fn new(folder: PathBuf) -> anyhow::Result<Self> {
        // Small whole numbers: results are exact in every order of operations.
        let x: Vec<f64> = (0..ELEMENTS).map(|at| at as f64).collect();
        let y: Vec<f64> = (0..ELEMENTS).map(|at| (at % 7) as f64).collect();
        write_npy(&folder.join("x.npy"), &Array::from_slice(&[ELEMENTS], &x)?, "chaos")?;
        write_npy(&folder.join("y.npy"), &Array::from_slice(&[ELEMENTS], &y)?, "chaos")?;
        Ok(Self { folder, accepted: 0 })
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Hands in tasks until `backlog` are open.
    pub(super) fn fill(&mut self, victim: &mut Victim, backlog: u64) -> anyhow::Result<()> {
        let counts = victim.get("/api/v1/system/status")?["tasks"].clone();
        let number = |name: &str| counts[name].as_u64().unwrap_or(0);
        let ended = number("succeeded") + number("failed") + number("cancelled");
        if number("total").saturating_sub(ended) > backlog {
            return Ok(());
        }
        let tasks: Vec<Value> = (self.accepted..self.accepted + BATCH).map(task).collect();
        let job = json!({"tasks": tasks, "base_dir": self.folder});
        // Handed in again when the swarm died before it answered: it may know some of them already.
        let answer = victim.ask(|client| client.post("/api/v1/tasks/submit", &job))??;
        for task in answer["tasks"].as_array().into_iter().flatten() {
            let error = task["error"].as_str().unwrap_or("");
            anyhow::ensure!(error.is_empty() || error.contains("already"), "a task was refused: {task}");
        }
        self.accepted += BATCH;
        Ok(())
    }

    /// Waits for the end of all. The ids of those that have not ended in time.
    pub(super) fn wait(&self, victim: &mut Victim, patience: Duration) -> anyhow::Result<Vec<String>> {
        let began = Instant::now();
        let mut open: BTreeSet<u64> = (0..self.accepted).collect();
        loop {
            let mut still = BTreeSet::new();
            for &number in &open {
                let path = format!("/api/v1/tasks/{}/status", segment(&id(number)));
                let state = victim.ask(|client| client.get(&path))?;
                let ended = match &state {
                    Ok(task) => {
                        ["succeeded", "failed", "cancelled"].map(Value::from).contains(&task["state"])
                    }
                    // Nobody knows it: that is for the judge.
                    Err(ClientError::Problem { .. }) => true,
                    Err(_) => false,
                };
                if !ended {
                    still.insert(number);
                    // The others come later than this one, mostly.
                    std::thread::sleep(Duration::from_millis(1));
                }
                if began.elapsed() > patience {
                    break;
                }
            }
            if still.is_empty() || began.elapsed() > patience {
                return Ok(still.into_iter().map(id).collect());
            }
            open = still;
        }
    }

    /// No task is lost, none is done twice, every output is right and nothing else lies beside them.
    pub(super) fn judge(&self, victim: &mut Victim, late: Vec<String>) -> anyhow::Result<Vec<Verdict>> {
        let mut lost: Vec<String> = late.into_iter().map(|id| format!("{id} has not ended")).collect();
        let mut wrong = Vec::new();
        let mut expected = BTreeSet::new();
        for number in 0..self.accepted {
            let path = format!("/api/v1/tasks/{}", segment(&id(number)));
            match victim.ask(|client| client.get(&path))? {
                Ok(task) if task["state"] == "succeeded" => {}
                Ok(task) => lost.push(format!("{}: {} {}", id(number), task["state"], task["error"])),
                Err(error) => lost.push(format!("{}: {error}", id(number))),
            }
            if writes(number) {
                let name = format!("{}.npy", id(number));
                match NpyFile::open(&self.folder.join("out").join(&name)).and_then(NpyFile::into_array) {
                    Ok(array) if is_right(&array, number) => {}
                    Ok(_) => wrong.push(format!("{name} holds something else")),
                    Err(error) => wrong.push(format!("{name}: {error}")),
                }
                expected.insert(name);
            }
        }
        for entry in fs::read_dir(self.folder.join("out"))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !expected.contains(&name) {
                wrong.push(format!("{name} should not be there"));
            }
        }
        let tasks = victim.get("/api/v1/system/report")?["tasks"].clone();
        let twice = tasks["duplicated"].as_u64().unwrap_or(0);
        let twice =
            if twice == 0 { Vec::new() } else { vec![format!("{twice} results were delivered twice")] };
        Ok(vec![
            Verdict {
                promise: "P1",
                what: format!("{} tasks, each asked for by id", self.accepted),
                broken: lost,
            },
            Verdict {
                promise: "P2",
                what: "results delivered twice, by the report".to_owned(),
                broken: twice,
            },
            Verdict {
                promise: "P2",
                what: format!("{} output files, number by number, and nothing beside them", expected.len()),
                broken: wrong,
            },
        ])
    }
}

fn id(number: u64) -> String {
    format!("chaos-{number}")
}

/// Every fourth sleeps for some milliseconds, so that kills meet tasks at work; the others write a file.
fn writes(number: u64) -> bool {
    !number.is_multiple_of(4)
}

fn task(number: u64) -> Value {
    let id = id(number);
    if writes(number) {
        let output = format!("out/{id}.npy");
        json!({"id": id, "kernel": "axpy", "params": {"alpha": number}, "inputs": ["x.npy", "y.npy"], "output": output})
    } else {
        json!({"id": id, "kernel": "sleep", "params": {"seconds": 0.001 * (number % 3 + 1) as f64}})
    }
}

fn is_right(array: &ArrayRef, number: u64) -> bool {
    array.as_slice::<f64>().is_some_and(|values| {
        values.len() == ELEMENTS
            && values
                .iter()
                .enumerate()
                .all(|(at, &value)| value == (number * at as u64 + at as u64 % 7) as f64)
    })
}
