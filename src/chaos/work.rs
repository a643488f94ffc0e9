//! Tasks whose answers are known beforehand, and the judgement over what became of them.

use super::Verdict;
use super::victim::Victim;
use crate::arrays::{Array, ArrayRef, NpyFile, write_npy};
use crate::gateway::client::ClientError;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tasks handed in at once.
const BATCH: u64 = 100;
/// Elements of the arrays.
const ELEMENTS: usize = 500;

pub(super) struct Work {
    folder: PathBuf,
    /// Tasks handed in; they are numbered from 0.
    next: u64,
    /// Those of them that were refused, or of which nobody knows whether they were accepted.
    again: Vec<u64>,
    /// Those that a swarm on a bad disk said it had accepted: they are not handed in again.
    on_bad_disk: u64,
    /// Those before this one have been judged.
    judged: u64,
    /// Output files that were right.
    right: u64,
    /// Values that were right.
    right_values: u64,
    /// What was found wrong.
    lost: Vec<String>,
    twice: Vec<String>,
    wrong: Vec<String>,
    wrong_values: Vec<String>,
}

impl Work {
    pub(super) fn new(folder: PathBuf) -> anyhow::Result<Self> {
        // Small whole numbers: results are exact in every order of operations.
        let x: Vec<f64> = (0..ELEMENTS).map(|at| at as f64).collect();
        let y: Vec<f64> = (0..ELEMENTS).map(|at| (at % 7) as f64).collect();
        write_npy(&folder.join("x.npy"), &Array::from_slice(&[ELEMENTS], &x)?, "chaos")?;
        write_npy(&folder.join("y.npy"), &Array::from_slice(&[ELEMENTS], &y)?, "chaos")?;
        let (lost, twice, wrong) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            folder,
            next: 0,
            again: Vec::new(),
            on_bad_disk: 0,
            judged: 0,
            right: 0,
            right_values: 0,
            lost,
            twice,
            wrong,
            wrong_values: Vec::new(),
        })
    }

    pub(super) fn accepted(&self) -> u64 {
        self.next - self.again.len() as u64
    }

    /// How many tasks wait for their judgement: a swarm remembers the last ones only.
    pub(super) fn unjudged(&self) -> u64 {
        self.next - self.judged
    }

    /// Hands in tasks until `backlog` are open.
    pub(super) fn fill(&mut self, victim: &mut Victim, backlog: u64) -> anyhow::Result<()> {
        if open(victim)? > backlog {
            return Ok(());
        }
        let numbers = self.take_numbers(true);
        let job = self.job(&numbers);
        // Handed in again when the swarm died before it answered: it may know some of them already.
        let answer = victim.ask(|client| client.post("/api/v1/tasks/submit", &job))?;
        let refused = self.note(&numbers, answer)?;
        anyhow::ensure!(refused.is_none(), "a task was refused: {}", refused.unwrap_or_default());
        Ok(())
    }

    /// Hands in tasks, once, to a swarm that may refuse them. Those that it says it has accepted must be there in the next life.
    pub(super) fn offer(&mut self, victim: &mut Victim) -> anyhow::Result<()> {
        let numbers = self.take_numbers(true);
        let job = self.job(&numbers);
        match victim.try_ask(|client| client.post("/api/v1/tasks/submit", &job)) {
            Some(answer) => {
                let before = self.again.len();
                self.note(&numbers, answer)?;
                self.on_bad_disk += (numbers.len() - (self.again.len() - before)) as u64;
            }
            None => self.again.extend(numbers),
        }
        Ok(())
    }

    /// Hands in what was refused before.
    pub(super) fn settle(&mut self, victim: &mut Victim, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.again.is_empty() {
            let numbers = self.take_numbers(false);
            let job = self.job(&numbers);
            let answer = victim.ask(|client| client.post("/api/v1/tasks/submit", &job))?;
            let refused = self.note(&numbers, answer)?;
            if began.elapsed() > patience {
                anyhow::ensure!(refused.is_none(), "tasks are refused: {}", refused.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What was refused, and with `fresh` new ones.
    fn take_numbers(&mut self, fresh: bool) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.again.drain(..self.again.len().min(BATCH as usize)).collect();
        if fresh {
            let more = BATCH - numbers.len() as u64;
            numbers.extend(self.next..self.next + more);
            self.next += more;
        }
        numbers
    }

    fn job(&self, numbers: &[u64]) -> Value {
        let tasks: Vec<Value> = numbers.iter().copied().map(task).collect();
        json!({"tasks": tasks, "base_dir": self.folder})
    }

    /// Takes an answer to a submission. Returns why some of the tasks were refused.
    fn note(
        &mut self,
        numbers: &[u64],
        answer: Result<Value, ClientError>,
    ) -> anyhow::Result<Option<String>> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(ClientError::Problem { status: 503, detail, .. }) => {
                self.again.extend(numbers);
                return Ok(Some(detail));
            }
            Err(error) => return Err(error.into()),
        };
        let tasks = answer["tasks"].as_array().map_or(&[][..], Vec::as_slice);
        anyhow::ensure!(tasks.len() == numbers.len(), "{} answers: {answer}", tasks.len());
        let mut refused = None;
        for (&number, task) in numbers.iter().zip(tasks) {
            let error = task["error"].as_str().unwrap_or("");
            if !error.is_empty() && !error.contains("already") {
                self.again.push(number);
                refused = Some(error.to_owned());
            }
        }
        Ok(refused)
    }

    /// Waits for the end of all, at most this long: who has not ended by then is found by the judge.
    pub(super) fn wait(&self, victim: &mut Victim, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        while open(victim)? > 0 && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Looks at everything since the last time.
    pub(super) fn judge(&mut self, victim: &mut Victim) -> anyhow::Result<()> {
        self.judge_by(|name| victim.task(name))?;
        let tasks = victim.get("/api/v1/system/report")?["tasks"].clone();
        let twice = tasks["duplicated"].as_u64().unwrap_or(0);
        if twice > 0 {
            self.twice.push(format!("the swarm itself says that {twice} results were delivered twice"));
        }
        Ok(())
    }

    /// Each task by its id, of which `ask` tells, and each output number by number. Outputs that are right are removed, so
    /// that nothing may be left.
    fn judge_by(
        &mut self,
        mut ask: impl FnMut(&str) -> anyhow::Result<Result<Value, String>>,
    ) -> anyhow::Result<()> {
        let outputs = self.folder.join("out");
        for number in self.judged..self.next {
            match ask(&id(number))? {
                Ok(task) if task["state"] == "succeeded" => self.compare(number, &task["result"]),
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
        self.judged = self.next;
        Ok(())
    }

    /// A value that came back in a message, against the right one.
    fn compare(&mut self, number: u64, result: &Value) {
        let Some((_, _, right)) = reduction(number) else { return };
        match result.as_f64() {
            Some(value) if (value - right).abs() <= 1e-9 * right.abs() => self.right_values += 1,
            _ => self.wrong_values.push(format!("{}: {result} where {right} is right", id(number))),
        }
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
                what: format!(
                    "{} tasks, each asked for by id; {} of them accepted on a bad disk",
                    self.judged, self.on_bad_disk
                ),
                broken: self.lost.clone(),
            },
            Verdict {
                promise: "P2",
                what: "results delivered twice, by the swarm's own reports".to_owned(),
                broken: self.twice.clone(),
            },
            Verdict { promise: "P2", what: files, broken: wrong },
            Verdict {
                promise: "P5",
                what: format!(
                    "{} values that came back in messages, against the right ones",
                    self.right_values
                ),
                broken: self.wrong_values.clone(),
            },
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

/// Of every eight one sleeps for some milliseconds, so that kills meet tasks at work, and one computes a value, which
/// comes back in a message; the others write a file.
fn writes(number: u64) -> bool {
    !number.is_multiple_of(4)
}

/// What a task that computes a value does with which array, and the right value.
fn reduction(number: u64) -> Option<(&'static str, &'static str, f64)> {
    const REDUCTIONS: [(&str, &str, f64); 8] = [
        ("sum", "x.npy", 124_750.0),
        ("mean", "x.npy", 249.5),
        ("min", "x.npy", 0.0),
        ("max", "x.npy", 499.0),
        ("sum", "y.npy", 1494.0),
        ("mean", "y.npy", 2.988),
        ("min", "y.npy", 0.0),
        ("max", "y.npy", 6.0),
    ];
    (number % 8 == 4).then(|| REDUCTIONS[(number / 8 % 8) as usize])
}

fn task(number: u64) -> Value {
    let (id, retries) = (id(number), super::RETRIES);
    if let Some((op, input, _)) = reduction(number) {
        json!({"id": id, "kernel": "reduce", "params": {"op": op}, "inputs": [input], "retries": retries})
    } else if writes(number) {
        let output = format!("out/{id}.npy");
        json!({"id": id, "kernel": "axpy", "params": {"alpha": number}, "inputs": ["x.npy", "y.npy"],
            "output": output, "retries": retries})
    } else {
        let seconds = 0.001 * (number % 3 + 1) as f64;
        json!({"id": id, "kernel": "sleep", "params": {"seconds": seconds}, "retries": retries})
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Twelve tasks that were done as they should be, in a folder of their own.
    fn done() -> (tempfile::TempDir, Work) {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("out")).expect("a folder");
        let mut work = Work::new(folder.path().to_owned()).expect("inputs");
        work.next = 12;
        for number in (0..12).filter(|&number| writes(number)) {
            write(&work, number, |at| (number * at + at % 7) as f64);
        }
        (folder, work)
    }

    type Spoil = fn(&Work);

    fn output(work: &Work, number: u64) -> PathBuf {
        work.folder.join(format!("out/chaos-{number}.npy"))
    }

    fn write(work: &Work, number: u64, value: impl Fn(u64) -> f64) {
        let values: Vec<f64> = (0..ELEMENTS as u64).map(value).collect();
        let array = Array::from_slice(&[ELEMENTS], &values).expect("an array");
        write_npy(&output(work, number), &array, "chaos").expect("written");
    }

    /// What is broken, and of which promise, when all tasks are in the state that `state` gives them.
    fn broken(work: &mut Work, state: impl Fn(&str) -> Result<Value, String>) -> Vec<(&'static str, String)> {
        work.judge_by(|name| Ok(state(name))).expect("judged");
        let verdicts = work.verdicts().expect("verdicts").into_iter();
        verdicts
            .flat_map(|verdict| verdict.broken.into_iter().map(move |broken| (verdict.promise, broken)))
            .collect()
    }

    fn succeeded(name: &str) -> Result<Value, String> {
        let number = name.strip_prefix("chaos-").and_then(|number| number.parse().ok());
        let value = number.and_then(reduction).map(|(_, _, value)| value);
        Ok(json!({"state": "succeeded", "result": value}))
    }

    #[test]
    fn the_judge_finds_a_value_that_is_wrong() {
        for wrong in [json!(124_750.5), json!("124750"), Value::Null] {
            let (_folder, mut work) = done();
            let found = broken(&mut work, |name| match name {
                "chaos-4" => Ok(json!({"state": "succeeded", "result": wrong})),
                name => succeeded(name),
            });
            assert!(matches!(&found[..], [("P5", text)] if text.starts_with("chaos-4: ")), "{found:?}");
        }
    }

    #[test]
    fn the_judge_finds_nothing_where_nothing_is_wrong() {
        let (_folder, mut work) = done();
        assert_eq!(broken(&mut work, succeeded), []);
        assert_eq!((work.right, work.right_values, work.unjudged()), (9, 1, 0));
        // What was judged is not looked at again.
        assert_eq!(broken(&mut work, |_| panic!("asked twice")), []);
    }

    #[test]
    fn the_judge_finds_an_output_that_is_missing_wrong_or_nobodys() {
        let spoil: [(Spoil, &str); 5] = [
            (|work| fs::remove_file(output(work, 5)).expect("there"), "chaos-5.npy"),
            (|work| write(work, 6, |at| (6 * at + at % 7) as f64 + f64::from(at == 499)), "something else"),
            (|work| fs::write(output(work, 7), b"no array").expect("written"), "chaos-7.npy"),
            (|work| write(work, 999, |_| 0.0), "chaos-999.npy lies there at the end"),
            (|work| fs::write(work.folder.join("out/.part"), b"").expect("written"), ".part lies there"),
        ];
        for (spoil, words) in spoil {
            let (_folder, mut work) = done();
            spoil(&work);
            let found = broken(&mut work, succeeded);
            assert!(!found.is_empty(), "{words}");
            assert!(found.iter().all(|(promise, _)| *promise == "P2"), "{found:?}");
            assert!(found.iter().any(|(_, text)| text.contains(words)), "{words}: {found:?}");
        }
    }

    #[test]
    fn the_judge_finds_a_task_that_is_forgotten_or_did_not_succeed() {
        for answer in [
            Err("no task has this id".to_owned()),
            Ok(json!({"state": "failed", "error": "an error"})),
            Ok(json!({"state": "queued", "error": null})),
        ] {
            let (_folder, mut work) = done();
            let state = |name: &str| if name == "chaos-3" { answer.clone() } else { succeeded(name) };
            let found = broken(&mut work, state);
            assert!(matches!(&found[..], [("P1", text)] if text.starts_with("chaos-3: ")), "{found:?}");
        }
    }

    #[test]
    fn what_was_refused_is_handed_in_again_and_what_was_accepted_is_not() {
        let (_folder, mut work) = done();
        let full = || ClientError::Problem { status: 503, title: String::new(), detail: "full".to_owned() };
        let numbers = work.take_numbers(true);
        assert_eq!(work.note(&numbers, Err(full())).expect("an answer").as_deref(), Some("full"));
        assert_eq!((work.accepted(), work.unjudged()), (12, 112));
        assert_eq!(work.take_numbers(false), numbers);
        let errors = |number: &u64| match number % 50 {
            0 => json!({"error": "the journal has failed"}),
            1 => json!({"error": "there is a task with this id already"}),
            _ => json!({"id": id(*number)}),
        };
        let tasks: Vec<Value> = numbers.iter().map(errors).collect();
        work.note(&numbers, Ok(json!({"tasks": tasks}))).expect("an answer");
        assert_eq!(work.again, [50, 100]);
        assert_eq!(work.accepted(), 110);
    }
}
