//! From the words of a job file or a request to tasks that the ledger takes.
//!
//! 1. [`parse_text`] reads a job file: one JSON object with `tasks`, or JSON Lines, one task a line.
//! 2. [`parse_value`] checks each task on its own; a wrong one is refused with what, where, what was
//!    found and what is allowed, and the others go on.
//! 3. A checked task is already in the form in which it travels: codes, and a [`Body`] as JSON.
//!
//! Files are not opened here; their sizes are asked for, to know how much work a task is.

mod body;
mod strict;

pub use body::Body;
pub use strict::Strict;

use crate::kernels::{KernelId, Level, check_inputs_count, check_params, may_split, output_needed, spec};
use crate::shm::board::CLASSES;
use crate::supervisor::RefusedTask;
use crate::tasks::{Priority, TaskSpec};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The fields of a task.
const FIELDS: [&str; 11] = [
    "id",
    "kernel",
    "inputs",
    "output",
    "params",
    "priority",
    "timeout_s",
    "retries",
    "after",
    "backend",
    "idempotency_key",
];
/// Longest name of a task, and longest idempotency key.
pub const NAME_BYTES: usize = 200;
/// Longest description of a task that may be done in parts.
const PARTS_BODY_BYTES: usize = 16 << 10;
/// Most retries.
pub const RETRIES_MAX: u64 = 1000;

/// What a task gets when it does not say.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Longest time of one attempt.
    pub timeout: Option<Duration>,
    /// How often a failure is tried again.
    pub retries: u32,
}

/// A job that is wrong as a whole.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not JSON.
    #[error("{place}: {words}")]
    Syntax {
        /// File and place.
        place: String,
        /// What is wrong.
        words: String,
    },
}

/// One answer per task, in the order of the file.
pub type Tasks = Vec<Result<TaskSpec, RefusedTask>>;

/// Reads a job file, `-` being standard input. Relative paths in it are relative to its folder.
pub fn parse_file(path: &Path, defaults: &Defaults) -> Result<Tasks, JobError> {
    let read = |source| JobError::Read { path: path.into(), source };
    if path == Path::new("-") {
        let text = std::io::read_to_string(std::io::stdin()).map_err(read)?;
        return parse_text(&text, "standard input", &std::env::current_dir().map_err(read)?, defaults);
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    let folder = std::path::absolute(path).map_err(read)?.parent().map(Path::to_path_buf).unwrap_or_default();
    parse_text(&text, &path.display().to_string(), &folder, defaults)
}

/// Reads the text of a job file; `name` stands in messages.
pub fn parse_text(text: &str, name: &str, base: &Path, defaults: &Defaults) -> Result<Tasks, JobError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        // JSON Lines without a line.
        return Ok(Vec::new());
    }
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(object)))
            if object.contains_key("kernel") && !object.contains_key("tasks") =>
        {
            Ok(vec![parse_task(&Value::Object(object), 1, base, defaults)])
        }
        Ok(Strict(value)) => parse_value(&value, base, defaults).map_err(|error| match error {
            JobError::Syntax { words, .. } => JobError::Syntax { place: name.to_owned(), words },
            other => other,
        }),
        Err(error) => {
            // Several values in a row: JSON Lines. Anything else is one broken document.
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
            let is_task = |first: Map<String, Value>| !first.contains_key("tasks");
            if serde_json::from_str(first).is_ok_and(is_task) {
                Ok(parse_lines(text, name, base, defaults))
            } else {
                let place = format!("{name}:{}:{}", error.line(), error.column());
                Err(JobError::Syntax { place, words: format!("not valid JSON: {}", words_only(&error)) })
            }
        }
    }
}

fn parse_lines(text: &str, name: &str, base: &Path, defaults: &Defaults) -> Tasks {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .enumerate()
        .map(|(at, (line, text))| match serde_json::from_str(text) {
            Ok(Strict(value)) => parse_task(&value, at + 1, base, defaults),
            Err(error) => Err(RefusedTask {
                spec: Box::default(),
                // The parser counts from this line; only its words and the column are of use.
                error: format!(
                    "{name}:{}:{}: not valid JSON: {}",
                    line + 1,
                    error.column(),
                    words_only(&error)
                ),
            }),
        })
        .collect()
}

/// What the parser says, without the place that it counts from the wrong line.
fn words_only(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// Reads `{"tasks": [...]}`. Other keys are an error, except those the API adds.
pub fn parse_value(value: &Value, base: &Path, defaults: &Defaults) -> Result<Tasks, JobError> {
    let wrong = |words: String| Err(JobError::Syntax { place: "job".to_owned(), words });
    let Some(object) = value.as_object() else {
        return wrong(format!("found {}, needs an object {{\"tasks\": [...]}}", kind_of(value)));
    };
    for key in object.keys() {
        if !["tasks", "wait", "base_dir", "$schema"].contains(&key.as_str()) {
            return wrong(format!("unknown key `{key}`; a job has the key `tasks`"));
        }
    }
    match object.get("tasks") {
        Some(Value::Array(tasks)) => {
            Ok(tasks.iter().enumerate().map(|(at, task)| parse_task(task, at + 1, base, defaults)).collect())
        }
        Some(other) => wrong(format!("`tasks` is {}, needs an array of tasks", kind_of(other))),
        None => wrong("the key `tasks` is missing; it holds an array of tasks".to_owned()),
    }
}

/// Reads one task. `number` counts from 1 and names a task without an `id` in messages.
pub fn parse_task(
    value: &Value,
    number: usize,
    base: &Path,
    defaults: &Defaults,
) -> Result<TaskSpec, RefusedTask> {
    let mut spec = TaskSpec { retries: defaults.retries, timeout: defaults.timeout, ..TaskSpec::default() };
    let outcome = fill(&mut spec, value, base);
    outcome.map(|()| spec.clone()).map_err(|error| {
        let who =
            spec.name.as_deref().map_or_else(|| format!("task #{number}"), |name| format!("task {name:?}"));
        RefusedTask { error: format!("{who}: {error}"), spec: Box::new(spec) }
    })
}

fn fill(spec: &mut TaskSpec, value: &Value, base: &Path) -> Result<(), String> {
    let Some(task) = value.as_object() else {
        return Err(format!("found {}, needs an object with at least `kernel`", kind_of(value)));
    };
    if let Some(id) = task.get("id") {
        let name = id.as_str().filter(|name| !name.is_empty() && name.len() <= NAME_BYTES);
        let name = name.ok_or_else(|| bad("id", id, &format!("a string of 1 to {NAME_BYTES} bytes")))?;
        spec.name = Some(name.into());
    }
    for key in task.keys() {
        if !FIELDS.contains(&key.as_str()) {
            let near =
                FIELDS.into_iter().max_by(|a, b| strsim::jaro(a, key).total_cmp(&strsim::jaro(b, key)));
            let hint = near.filter(|near| strsim::jaro(near, key) > 0.7);
            return Err(match hint {
                Some(near) => format!("unknown field `{key}`; did you mean `{near}`?"),
                None => format!("unknown field `{key}`; allowed are {}", FIELDS.join(", ")),
            });
        }
    }
    if let Some(key) = task.get("idempotency_key").filter(|key| !key.is_null()) {
        let text = key.as_str().filter(|key| !key.is_empty() && key.len() <= NAME_BYTES);
        let text =
            text.ok_or_else(|| bad("idempotency_key", key, &format!("a string of 1 to {NAME_BYTES} bytes")))?;
        spec.key = Some(text.into());
    }
    let kernel = parse_kernel(task)?;
    (spec.kernel, spec.kernel_name) = (kernel.code(), kernel.name());
    parse_rules(spec, task)?;
    spec.level = parse_backend(task.get("backend"))?;

    let given = match task.get("params") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(params)) => params.clone(),
        Some(other) => return Err(bad("params", other, "an object of parameter names and values")),
    };
    let params = check_params(kernel, &given).map_err(|error| format!("field `params`: {error}"))?;
    let inputs = parse_paths(task.get("inputs"), base)?;
    check_inputs_count(kernel, inputs.len()).map_err(|error| format!("field `inputs`: {error}"))?;
    let output = match task.get("output") {
        None | Some(Value::Null) => None,
        Some(Value::String(path)) if !path.is_empty() => Some(base.join(path)),
        Some(other) => return Err(bad("output", other, "a path")),
    };
    if output_needed(&params) && output.is_none() {
        return Err(format!("field `output` is missing; {kernel} writes an array and needs a path for it"));
    }
    if !output_needed(&params) && output.is_some() {
        return Err(format!(
            "field `output`: {kernel} yields {} with these parameters, not an array; leave the field out",
            if spec_yields_result(kernel) { "numbers in the task's result" } else { "nothing" }
        ));
    }
    spec.class = size_class(kernel, &given, &inputs);
    let body = Body { inputs, output: output.clone(), params: given };
    spec.output = output;
    spec.body = body.encode()?.into();
    Ok(())
}

fn spec_yields_result(kernel: KernelId) -> bool {
    spec(kernel).result
}

fn parse_kernel(task: &Map<String, Value>) -> Result<KernelId, String> {
    let names = || KernelId::ALL.into_iter().map(KernelId::name).collect::<Vec<_>>().join(", ");
    match task.get("kernel") {
        Some(Value::String(name)) => {
            KernelId::from_name(name).ok_or_else(|| match KernelId::nearest_name(name) {
                Some(near) => format!("field `kernel`: no kernel is called {name:?}; did you mean {near:?}?"),
                None => format!("field `kernel`: no kernel is called {name:?}; there are {}", names()),
            })
        }
        Some(other) => Err(bad("kernel", other, &format!("one of {}", names()))),
        None => Err(format!("field `kernel` is missing; it is one of {}", names())),
    }
}

/// Priority, time limit, retries and dependencies.
fn parse_rules(spec: &mut TaskSpec, task: &Map<String, Value>) -> Result<(), String> {
    if let Some(value) = task.get("priority") {
        let priority = value.as_str().and_then(Priority::from_name);
        spec.priority = priority.ok_or_else(|| bad("priority", value, "high, normal or low"))?;
    }
    if let Some(value) = task.get("timeout_s").filter(|value| !value.is_null()) {
        let seconds = value.as_f64().filter(|seconds| *seconds > 0.0 && *seconds <= 1e8);
        let seconds =
            seconds.ok_or_else(|| bad("timeout_s", value, "a number of seconds above 0, at most 1e8"))?;
        spec.timeout = Some(Duration::from_secs_f64(seconds));
    }
    if let Some(value) = task.get("retries") {
        let retries = value.as_u64().filter(|retries| *retries <= RETRIES_MAX);
        let retries = retries
            .ok_or_else(|| bad("retries", value, &format!("a whole number from 0 to {RETRIES_MAX}")))?;
        spec.retries = retries as u32;
    }
    if let Some(value) = task.get("after") {
        let names =
            value.as_array().and_then(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let names = names.ok_or_else(|| bad("after", value, "an array of task ids"))?;
        spec.after = names.into_iter().map(Box::from).collect();
        // Waiting for one task twice is waiting for it.
        spec.after.sort_unstable();
        spec.after.dedup();
    }
    Ok(())
}

fn parse_backend(value: Option<&Value>) -> Result<u8, String> {
    let allowed = || {
        let levels = Level::available().into_iter().map(Level::name).collect::<Vec<_>>();
        format!("auto or one that this host has: {}", levels.join(", "))
    };
    match value {
        None => Ok(0),
        Some(Value::String(word)) if word == "auto" => Ok(0),
        Some(Value::String(word)) => match Level::from_name(word).filter(|level| level.is_available()) {
            Some(level) => Ok(level_word(Some(level))),
            None => Err(bad("backend", &Value::String(word.clone()), &allowed())),
        },
        Some(other) => Err(bad("backend", other, &allowed())),
    }
}

fn parse_paths(value: Option<&Value>, base: &Path) -> Result<Vec<PathBuf>, String> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(paths)) => paths
            .iter()
            .enumerate()
            .map(|(at, path)| match path.as_str().filter(|path| !path.is_empty()) {
                Some(path) => Ok(base.join(path)),
                None => Err(bad(&format!("inputs[{at}]"), path, "a path")),
            })
            .collect(),
        Some(other) => Err(bad("inputs", other, "an array of paths")),
    }
}

fn bad(field: &str, found: &Value, allowed: &str) -> String {
    let mut text = found.to_string();
    if text.chars().count() > 60 {
        text = text.chars().take(60).chain("...".chars()).collect();
    }
    format!("field `{field}` is {text}, needs {allowed}")
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The size class of a task: the octave of the bytes it reads, or of what its parameters ask for.
/// Costs are learned and variants are chosen per class.
fn size_class(kernel: KernelId, params: &Map<String, Value>, inputs: &[PathBuf]) -> u8 {
    let number = |name: &str, default: f64| params.get(name).and_then(Value::as_f64).unwrap_or(default);
    match kernel {
        KernelId::Noop => 0,
        KernelId::Sleep => work_class(number("seconds", 0.001) * 1e6),
        KernelId::MonteCarlo => work_class(number("paths", 1e6)),
        _ => {
            let bytes = |path: &PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
            work_class(inputs.iter().map(bytes).sum::<u64>() as f64 * number("steps", 1.0).max(1.0))
        }
    }
}

/// How a wish for an instruction-set level travels: 0 for none, else its code plus one.
pub fn level_word(level: Option<Level>) -> u8 {
    level.map_or(0, |level| level.code() + 1)
}

/// The wish that [`level_word`] wrote; nonsense is no wish.
pub fn level_wished(word: u8) -> Option<Level> {
    word.checked_sub(1).and_then(Level::from_code)
}

/// Whether such a task may be done in parts. The supervisor's loop asks that, of what a stranger may have written: long descriptions
/// are for agents to read.
pub fn falls_into_parts(spec: &TaskSpec) -> bool {
    if spec.body.len() > PARTS_BODY_BYTES {
        return false;
    }
    let kernel = KernelId::from_code(spec.kernel);
    let body = Body::decode(&spec.body).ok();
    let params = kernel.zip(body.as_ref()).map(|(kernel, body)| (kernel, check_params(kernel, &body.params)));
    params.is_some_and(|(kernel, params)| params.is_ok_and(|params| may_split(kernel, &params)))
}

/// Whether a task that comes from another process is one that a job could have asked for. Its body is for its agent to read.
pub fn check_spec(spec: &TaskSpec) -> Result<(), String> {
    if usize::from(spec.class) >= CLASSES {
        return Err(format!("field `class`: {} is not below {CLASSES}", spec.class));
    }
    if spec.level != 0 && level_wished(spec.level).is_none() {
        return Err(format!("field `backend`: code {} is none", spec.level));
    }
    if u64::from(spec.retries) > RETRIES_MAX {
        return Err(format!("field `retries`: {}, at most {RETRIES_MAX} are allowed", spec.retries));
    }
    for (field, text) in [("id", &spec.name), ("idempotency_key", &spec.key)] {
        let bytes = text.as_deref().map_or(1, str::len);
        if !(1..=NAME_BYTES).contains(&bytes) {
            return Err(format!("field `{field}`: {bytes} bytes, 1 to {NAME_BYTES} are allowed"));
        }
    }
    match spec.output.as_ref().filter(|path| !path.is_absolute()) {
        Some(path) => Err(format!("field `output`: {} is no absolute path", path.display())),
        None => Ok(()),
    }
}

/// The octave of an amount of work, 0 to 31.
pub fn work_class(work: f64) -> u8 {
    (work.max(0.0) + 1.0).log2().min(31.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults { timeout: None, retries: 2 };

    fn one(text: &str) -> Result<TaskSpec, String> {
        let mut tasks =
            parse_text(text, "job.json", Path::new("/base"), &DEFAULTS).expect("the job as a whole is fine");
        assert_eq!(tasks.len(), 1);
        tasks.pop().expect("one").map_err(|refused| refused.error)
    }

    #[test]
    fn a_full_task_is_understood() {
        let task = one(
            r#"{"tasks":[{"id":"a","kernel":"matmul","inputs":["x.npy","/abs/y.npy"],"output":"z.npy","params":{},
            "priority":"high","timeout_s":60,"retries":5,"after":["b","c","b"],"backend":"scalar"}]}"#,
        )
        .expect("accepted");
        assert_eq!(
            (task.name.as_deref(), task.kernel_name, task.priority),
            (Some("a"), "matmul", Priority::High)
        );
        assert_eq!((task.timeout, task.retries), (Some(Duration::from_secs(60)), 5));
        assert_eq!(task.after, ["b".into(), "c".into()]);
        assert_eq!(level_wished(task.level), Some(Level::Scalar));
        let body = Body::decode(&task.body).expect("its own encoding");
        assert_eq!(body.inputs, [Path::new("/base/x.npy"), Path::new("/abs/y.npy")]);
        assert_eq!(task.output.as_deref(), Some(Path::new("/base/z.npy")));
    }

    #[test]
    fn json_lines_and_single_tasks_are_understood() {
        let text = "{\"kernel\":\"noop\"}\n\n{\"kernel\":\"sleep\",\"params\":{\"seconds\":1}}\n{oops\n";
        let tasks = parse_text(text, "job", Path::new("/"), &DEFAULTS).expect("lines");
        assert_eq!(tasks.len(), 3);
        assert!(tasks[0].is_ok() && tasks[1].is_ok());
        let error = &tasks[2].as_ref().expect_err("broken").error;
        assert!(error.starts_with("job:4:2: not valid JSON: key must be a string"), "{error}");
        let task = one("{\"kernel\":\"noop\"}").expect("one task");
        assert_eq!((task.retries, task.class), (2, 0));
        assert!(task.body.is_empty(), "nothing to say travels as nothing");
    }

    #[test]
    fn mistakes_name_task_field_value_and_what_is_allowed() {
        for (text, words) in [
            (
                r#"{"tasks":[{"id":"a","kernel":"matmull"}]}"#,
                "task \"a\": field `kernel`: no kernel is called \"matmull\"; did you mean \"matmul\"?",
            ),
            (r#"{"tasks":[{"id":"a"}]}"#, "task \"a\": field `kernel` is missing"),
            (
                r#"{"tasks":[{"kernel":"noop","idempotency_key":""}]}"#,
                "field `idempotency_key` is \"\", needs a string of 1 to 200 bytes",
            ),
            (
                r#"{"tasks":[{"kernel":"noop","priorty":"low"}]}"#,
                "task #1: unknown field `priorty`; did you mean `priority`?",
            ),
            (
                r#"{"tasks":[{"kernel":"noop","priority":"urgent"}]}"#,
                "field `priority` is \"urgent\", needs high, normal or low",
            ),
            (
                r#"{"tasks":[{"kernel":"noop","timeout_s":-1}]}"#,
                "field `timeout_s` is -1, needs a number of seconds above 0",
            ),
            (
                r#"{"tasks":[{"kernel":"noop","retries":1.5}]}"#,
                "field `retries` is 1.5, needs a whole number from 0 to 1000",
            ),
            (
                r#"{"tasks":[{"kernel":"noop","after":"b"}]}"#,
                "field `after` is \"b\", needs an array of task ids",
            ),
            (
                r#"{"tasks":[{"kernel":"noop","backend":"cuda"}]}"#,
                "field `backend` is \"cuda\", needs auto or one that this host has: scalar",
            ),
            (r#"{"tasks":[{"kernel":"noop","id":7}]}"#, "field `id` is 7, needs a string"),
            (
                r#"{"tasks":[{"kernel":"sleep","params":{"second":1}}]}"#,
                "field `params`: sleep: unknown parameter `second`; did you mean `seconds`?",
            ),
            (
                r#"{"tasks":[{"kernel":"matmul","inputs":["a.npy"],"output":"c.npy"}]}"#,
                "field `inputs`: matmul",
            ),
            (r#"{"tasks":[{"kernel":"matmul","inputs":["a.npy","b.npy"]}]}"#, "field `output` is missing"),
            (
                r#"{"tasks":[{"kernel":"dot","inputs":["a.npy","b.npy"],"output":"c.npy"}]}"#,
                "leave the field out",
            ),
            (r#"{"tasks":[{"kernel":"dot","inputs":["a.npy",3]}]}"#, "field `inputs[1]` is 3, needs a path"),
            (r#"{"tasks":[7]}"#, "task #1: found a number, needs an object"),
        ] {
            let error = one(text).expect_err(text);
            assert!(error.contains(words), "{error}\n  should say\n{words}");
        }
    }

    #[test]
    fn a_job_may_have_no_tasks() {
        for text in ["", " \n\n", "\u{feff}", "{\"tasks\": []}"] {
            let tasks = parse_text(text, "job.json", Path::new("/"), &DEFAULTS).expect(text);
            assert!(tasks.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn a_job_that_is_wrong_as_a_whole_says_where() {
        for (text, words) in [
            ("{\"tasks\": [}", "job.json:1:12: not valid JSON"),
            ("[]", "job.json: found an array, needs an object"),
            ("{\"task\": []}", "unknown key `task`"),
            ("{\"tasks\": 3}", "`tasks` is a number"),
            ("{}", "the key `tasks` is missing"),
        ] {
            let error = parse_text(text, "job.json", Path::new("/"), &DEFAULTS).expect_err(text).to_string();
            assert!(error.contains(words), "{error}\n  should say\n{words}");
        }
        let error = parse_file(Path::new("/no/job.json"), &DEFAULTS).expect_err("absent").to_string();
        assert!(error.starts_with("/no/job.json: cannot be read: No such file"), "{error}");
    }

    #[test]
    fn classes_are_octaves() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 1e6, 1e30].map(work_class), [0, 1, 1, 2, 19, 31]);
    }
}
