//! Tasks whose answers are known beforehand, and the judgement over what became of them.

use super::Verdict;
use super::victim::Victim;
use crate::arrays::{Array, ArrayRef, NpyFile, write_npy};
use crate::gateway::client::segment;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tasks handed in at once.
const BATCH: u64 = 100;
/// Tasks between two judgements: well below the 100,000 that a swarm remembers (`durability.keep_tasks`).
const ROUND: u64 = 20_000;
/// Elements of the arrays.
const ELEMENTS: usize = 500;

pub(super) struct Work {
    folder: PathBuf,
    /// Tasks accepted; they are numbered from 0.
    accepted: u64,
    /// Those before this one have been judged.
    judged: u64,
    /// Output files that were right.
    right: u64,
    /// What was found wrong.
    lost: Vec<String>,
    twice: Vec<String>,
    wrong: Vec<String>,
}

impl Work {
    pub(super) fn new(folder: PathBuf) -> anyhow::Result<Self> {
        // Small whole numbers: results are exact in every order of operations.
        let x: Vec<f64> = (0..ELEMENTS).map(|at| at as f64).collect();
        let y: Vec<f64> = (0..ELEMENTS).map(|at| (at % 7) as f64).collect();
        write_npy(&folder.join("x.npy"), &Array::from_slice(&[ELEMENTS], &x)?, "chaos")?;
        write_npy(&folder.join("y.npy"), &Array::from_slice(&[ELEMENTS], &y)?, "chaos")?;
        let (lost, twice, wrong) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { folder, accepted: 0, judged: 0, right: 0, lost, twice, wrong })
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether so many tasks wait for their judgement that it is time: a swarm remembers the last ones only.
    pub(super) fn is_judgement_due(&self) -> bool {
        self.accepted - self.judged >= ROUND
    }

    /// Hands in tasks until `backlog` are open.
    pub(super) fn fill(&mut self, victim: &mut Victim, backlog: u64) -> anyhow::Result<()> {
        if open(victim)? > backlog {
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

    /// Waits for the end of all, at most this long: who has not ended by then is found by the judge.
    pub(super) fn wait(&self, victim: &mut Victim, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        while open(victim)? > 0 && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Looks at everything since the last time, each task by its id and each output number by number. Outputs that are right
    /// are removed, so that nothing may be left.
    pub(super) fn judge(&mut self, victim: &mut Victim) -> anyhow::Result<()> {
        let outputs = self.folder.join("out");
        for number in self.judged..self.accepted {
            let path = format!("/api/v1/tasks/{}", segment(&id(number)));
            match victim.ask(|client| client.get(&path))? {
                Ok(task) if task["state"] == "succeeded" => {}
                Ok(task) => self.lost.push(format!("{}: {} {}", id(number), task["state"], task["error"])),
                Err(error) => self.lost.push(format!("{}: {error}", id(number))),
            }
            if writes(number) {
                let path = outputs.join(format!("{}.npy", id(number)));
                match NpyFile::open(&path).and_then(NpyFile::into_array) {
                    Ok(array) if is_right(&array, number) => {
                        self.right += 1;
                        fs::remove_file(&path)?;
                    }
                    Ok(_) => self.wrong.push(format!("{}.npy holds something else", id(number))),
                    Err(error) => self.wrong.push(format!("{}.npy: {error}", id(number))),
                }
            }
        }
        self.judged = self.accepted;
        let tasks = victim.get("/api/v1/system/report")?["tasks"].clone();
        let twice = tasks["duplicated"].as_u64().unwrap_or(0);
        if twice > 0 {
            self.twice.push(format!("{twice} results were delivered twice"));
        }
        Ok(())
    }

    /// No task is lost, none is done twice, every output is right and nothing else lies beside them.
    pub(super) fn verdicts(&self) -> anyhow::Result<Vec<Verdict>> {
        let mut wrong = self.wrong.clone();
        for entry in fs::read_dir(self.folder.join("out"))?.flatten() {
            wrong.push(format!("{} lies there at the end", entry.file_name().to_string_lossy()));
        }
        let files = format!("{} output files, number by number, and nothing beside them", self.right);
        Ok(vec![
            Verdict {
                promise: "P1",
                what: format!("{} tasks, each asked for by id", self.judged),
                broken: self.lost.clone(),
            },
            Verdict {
                promise: "P2",
                what: "results delivered twice, by the reports".to_owned(),
                broken: self.twice.clone(),
            },
            Verdict { promise: "P2", what: files, broken: wrong },
        ])
    }
}

/// Tasks that have not ended, as the swarm counts them.
fn open(victim: &mut Victim) -> anyhow::Result<u64> {
    let counts = victim.get("/api/v1/system/status")?["tasks"].clone();
    let number = |name: &str| counts[name].as_u64().unwrap_or(0);
    let ended = number("succeeded") + number("failed") + number("cancelled");
    Ok(number("total").saturating_sub(ended))
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
