//! The compute agent: takes a task, reads its arrays, runs its kernel, writes its output, answers.
//!
//! The output is written under a temporary name that carries the attempt and then renamed: a reader
//! sees all of it or nothing, and what a killed attempt left can be told apart and removed. Before the rename the agent
//! announces it and looks for orders once more: when another attempt has ended the task meanwhile, nothing may change any more.
//! Where the output takes the place of an input, that is kept: should nobody hear of the end, the supervisor puts it back.

use super::{Agent, Context};
use crate::arrays::{self, Array, NpyDraft, NpyError, NpyFile, NpyWriteError};
use crate::base::ailment;
use crate::base::clock::Nanos;
use crate::base::ids::{Attempt, TaskId};
use crate::jobs::{Body, level_wished};
use crate::kernels::{
    self, Call, Cancelled, EXTRA_SUFFIXES, Input, KernelError, KernelId, Level, Outcome, Params, Pulse,
    Variant, check_params, extra_path,
};
use crate::messaging::ToAgent;
use crate::messaging::envelope::{Done, PartMark, RESULT_BYTES, Run, Share, Span, TEXT_BYTES, Verdict};
use crate::os::clock;
use crate::os::counting::{Counters, Counts};
use crate::os::map::Buffer;
use crate::shm::board::Counted;
use crate::tasks::attempt_tag;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Code of a kernel without instruction-set levels of its own; reports call it `native`.
const NO_LEVEL: u8 = u8::MAX;

#[derive(Debug, Default)]
pub(super) struct ComputeAgent {
    ready: Option<Level>,
    /// Opened for the first kernel, which is not what somebody waits for when an agent starts.
    meter: Option<Meter>,
}

/// To read the counters costs some microseconds: of kernels that take less than this,
const COUNTED_ALWAYS_NS: u64 = 200_000;
/// only one run of so many is counted.
const COUNTED_EVERY: u32 = 16;

/// What is counted while kernels run, and what it came to in this life.
#[derive(Debug)]
struct Meter {
    counters: Counters,
    total: Counted,
    /// By kernel and class of size.
    last: BTreeMap<(u8, u8), Last>,
}

/// The last runs of one kind of task.
#[derive(Clone, Copy, Debug)]
struct Last {
    took_ns: u64,
    /// Runs since the last one that was counted.
    uncounted: u32,
}

impl Meter {
    fn open(context: &Context) -> Self {
        let counters = Counters::open();
        let reasons = std::array::from_fn(|event| counters.reason(event));
        let incarnation = context.start.incarnation;
        let total = Counted { incarnation, tasks: 0.0, counts: Counts::NONE, reasons };
        Self { counters, total, last: BTreeMap::new() }
    }

    /// Runs `work`, and counts what happens if this is a run that is counted.
    fn count<T>(
        &mut self,
        run: &Run<'_>,
        context: &Context,
        work: impl FnOnce() -> T,
    ) -> (T, Option<Counts>) {
        let before = self.last.get(&(run.kernel, run.class)).copied();
        let is_due = before
            .is_none_or(|last| last.took_ns >= COUNTED_ALWAYS_NS || last.uncounted + 1 >= COUNTED_EVERY);
        if is_due {
            self.counters.begin();
        }
        let began = clock::now();
        let done = work();
        let took_ns = clock::now().since(began).as_nanos() as u64;
        let counts = if is_due { self.counters.end() } else { Counts::NONE };
        // The first of many short runs meets cold caches, and says nothing of them.
        let is_counted = counts.iter().next().is_some() && (before.is_some() || took_ns >= COUNTED_ALWAYS_NS);
        let uncounted = if is_due { 0 } else { before.map_or(0, |last| last.uncounted + 1) };
        self.last.insert((run.kernel, run.class), Last { took_ns, uncounted });
        if is_counted {
            self.total.tasks += 1.0;
            self.total.counts.add(&counts);
        }
        if is_due {
            self.total.reasons = std::array::from_fn(|event| self.counters.reason(event));
            context.board.publish_counted(context.slot(), &self.total);
        }
        (done, is_counted.then_some(counts))
    }
}

/// A task that did not succeed: how, and why in words.
struct Failure(Verdict, String);

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let verdict = match error {
            KernelError::Cancelled => Verdict::Cancelled,
            KernelError::OutOfMemory { .. } => Verdict::Failed,
            _ => Verdict::Wrong,
        };
        Self(verdict, error.to_string())
    }
}

impl From<NpyError> for Failure {
    fn from(error: NpyError) -> Self {
        // A file that is not there or not an array stays so; a read error or lack of memory may pass.
        let verdict = match &error {
            NpyError::OutOfMemory { .. } => Verdict::Failed,
            NpyError::Open { source, .. } if may_pass(source) => Verdict::Failed,
            _ => Verdict::Wrong,
        };
        Self(verdict, error.to_string())
    }
}

impl From<NpyWriteError> for Failure {
    fn from(error: NpyWriteError) -> Self {
        let verdict = match std::error::Error::source(&error).and_then(|source| source.downcast_ref()) {
            Some(source) if may_pass(source) => Verdict::Failed,
            _ => Verdict::Wrong,
        };
        Self(verdict, error.to_string())
    }
}

/// Whether the same call may work a moment later.
fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::OutOfMemory
            | ErrorKind::Interrupted
            | ErrorKind::TimedOut
            | ErrorKind::ResourceBusy
            | ErrorKind::Other
    ) || matches!(error.raw_os_error(), Some(libc::EIO | libc::EMFILE | libc::ENFILE | libc::EAGAIN))
}

/// Shows progress from inside a kernel and hears of cancellation.
struct TaskPulse<'a> {
    context: &'a Context,
    task: TaskId,
    attempt: Attempt,
}

impl Pulse for TaskPulse<'_> {
    fn beat(&self) -> Result<(), Cancelled> {
        if self.context.pulse(self.task, self.attempt) { Err(Cancelled) } else { Ok(()) }
    }
}

/// A task that was computed: what to answer, on which level it ran, and its files with their places, which nobody sees yet.
struct Computed {
    outcome: Outcome,
    level: Level,
    counts: Option<Counts>,
    files: Vec<(PathBuf, NpyDraft)>,
    /// One of them will replace an input.
    in_place: bool,
    /// Which part of its task it is, if it is one.
    part: Option<PartMark>,
}

impl Computed {
    fn without_files(outcome: Outcome, level: Level) -> Self {
        Self { outcome, level, counts: None, files: Vec::new(), in_place: false, part: None }
    }
}

/// What is to be answered when all is well, and where it can be seen.
struct Published {
    /// JSON, or nothing.
    result: Vec<u8>,
    level: Level,
    flops: f64,
    bytes: f64,
    counts: Option<Counts>,
    kept_input: bool,
    part: Option<PartMark>,
}

impl Published {
    /// Nothing is to be seen, and there is only this to be said.
    fn words(result: Vec<u8>) -> Self {
        let (level, flops, bytes) = (Level::Scalar, 0.0, 0.0);
        Self { result, level, flops, bytes, counts: None, kept_input: false, part: None }
    }
}

/// Whether a file at `output` takes the place of an input, by whatever name. A task that does so cannot run beside an attempt
/// that may put its output there at any moment, and can be run again only with the old file back in its place.
fn replaces_input(output: &Path, inputs: &[PathBuf]) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let replaced = identity(output);
    inputs.iter().any(|input| input == output || replaced.is_some() && identity(input) == replaced)
}

fn is_in_place(body: &Body) -> bool {
    let replaces = |output: &Path| replaces_input(output, &body.inputs);
    body.output.as_deref().is_some_and(|output| {
        replaces(output) || EXTRA_SUFFIXES.iter().any(|suffix| replaces(&extra_path(output, suffix)))
    })
}

fn are_in_place(files: &[(PathBuf, NpyDraft)], body: &Body) -> bool {
    files.iter().any(|(path, file)| file.replaces() && replaces_input(path, &body.inputs))
}

/// Which file lies at a path, and in which state: what replaces or changes it makes another one of it.
fn identity(path: &Path) -> Option<(u64, u64, u64, i64, i64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

fn undivided(kernel: KernelId) -> Failure {
    Failure(Verdict::Undivided, format!("{kernel} of these arrays does not fall into parts"))
}

/// Which rows of the output a part has.
#[derive(Clone, Copy)]
struct Rows {
    from: usize,
    own: usize,
    all: usize,
}

/// Leaves of the inputs what these units of the output need.
fn take_part(
    kernel: KernelId,
    params: &Params,
    inputs: &mut Vec<Input>,
    Span { at, count, of }: Span,
) -> Result<Rows, Failure> {
    let shapes: Vec<&[usize]> = inputs.iter().map(Input::shape).collect();
    let split = kernels::split(kernel, params, &shapes);
    let part = split.and_then(|split| split.rows_of(at, count, of).map(|rows| (rows, split)));
    let (rows, split) = part.ok_or_else(|| undivided(kernel))?;
    let take =
        |(input, by_rows): (Input, &bool)| if *by_rows { input.into_rows(rows.clone()) } else { input };
    *inputs = std::mem::take(inputs).into_iter().zip(&split.by_rows).map(take).collect();
    Ok(Rows { from: rows.start, own: rows.len(), all: split.rows })
}

/// What agents have written in parts.
fn joined(body: &Body, tag: &str) -> Result<Computed, Failure> {
    let mut files = Vec::new();
    if let Some(output) = &body.output {
        let beside = EXTRA_SUFFIXES.iter().map(|suffix| extra_path(output, suffix));
        for path in beside.chain([output.clone()]) {
            let file = NpyDraft::of_rows(&path, tag).map_err(of_output)?;
            files.extend(file.map(|file| (path, file)));
        }
        if files.last().is_none_or(|(path, _)| path != output) {
            return Err(Failure(Verdict::Failed, "output: what was written in parts is gone".to_owned()));
        }
    }
    let in_place = are_in_place(&files, body);
    Ok(Computed { files, in_place, ..Computed::without_files(Outcome::default(), Level::Scalar) })
}

impl ComputeAgent {
    fn execute(&mut self, run: &Run<'_>, context: &Context) -> Result<Computed, Failure> {
        let wrong = |words: String| Failure(Verdict::Wrong, words);
        let kernel = KernelId::from_code(run.kernel)
            .ok_or_else(|| wrong(format!("no kernel has code {}", run.kernel)))?;
        let best = self.ready.unwrap_or(Level::Scalar);
        let asked = level_wished(run.level);
        if kernel == KernelId::Noop {
            return Ok(Computed::without_files(Outcome::default(), asked.unwrap_or(best)));
        }
        let body = Body::decode(run.body).map_err(|error| wrong(format!("unreadable task: {error}")))?;
        if run.share == Share::Beside && is_in_place(&body) {
            return Err(declined());
        }
        let tag = attempt_tag(&context.start.token, run.task, run.attempt);
        if run.share == Share::Join {
            return joined(&body, &tag);
        }
        let params = check_params(kernel, &body.params).map_err(KernelError::from)?;
        let pulse = TaskPulse { context, task: run.task, attempt: run.attempt };
        let mut inputs: Vec<Input> = Vec::with_capacity(body.inputs.len());
        let is_part = matches!(run.share, Share::Part(_));
        let mut digest = DefaultHasher::new();
        if is_part {
            body.inputs.iter().for_each(|path| identity(path).hash(&mut digest));
        }
        for (at, path) in body.inputs.iter().enumerate() {
            let file = NpyFile::open(path).map_err(Failure::from);
            // To convert all of it for some of its rows would take the memory of all in every agent.
            if is_part && file.as_ref().is_ok_and(|file| file.needs_conversion()) {
                return Err(undivided(kernel));
            }
            let array = file.and_then(|file| file.into_array().map_err(Failure::from));
            inputs.push(
                array
                    .map_err(|Failure(verdict, words)| Failure(verdict, format!("inputs[{at}]: {words}")))?,
            );
        }
        let dtype = inputs.first().map_or(0, |input| input.dtype().code());
        let variant = match asked {
            Some(level) => Variant::default_for(kernel, level),
            None => context
                .board
                .variant(run.kernel, dtype, run.class)
                .and_then(Variant::decode)
                .filter(|variant| variant.level.is_available())
                .unwrap_or_else(|| Variant::default_for(kernel, best)),
        };
        let rows = match run.share {
            Share::Part(span) => Some(take_part(kernel, &params, &mut inputs, span)?),
            _ => None,
        };
        if let (Share::Part(Span { at, .. }), Some(Rows { own: 0, .. })) = (run.share, rows) {
            let part = Some(PartMark { at, digest: None });
            return Ok(Computed { part, ..Computed::without_files(Outcome::default(), variant.level) });
        }
        let call = Call { kernel, params: &params, inputs: &inputs, variant, pulse: &pulse };
        let meter = self.meter.get_or_insert_with(|| Meter::open(context));
        let (outcome, counts) = meter.count(run, context, || kernels::run(&call));
        let mut outcome = outcome?;
        let part = match (run.share, &rows) {
            (Share::Part(Span { at, .. }), Some(rows)) => {
                let after: Vec<_> = body.inputs.iter().map(|path| identity(path)).collect();
                after.iter().for_each(|identity| identity.hash(&mut digest));
                let arrays = outcome.array.iter().chain(outcome.extra.iter().map(|(_, array)| array));
                for array in arrays {
                    let (own, shape) = array.shape().split_first().ok_or_else(|| undivided(kernel))?;
                    if *own != rows.own {
                        return Err(undivided(kernel));
                    }
                    (array.dtype(), shape, rows.all).hash(&mut digest);
                }
                Some(PartMark { at, digest: Some(digest.finish()) })
            }
            _ => None,
        };
        let mut files = Vec::new();
        if let Some(output) = &body.output {
            pulse.beat().map_err(KernelError::from)?;
            let write = |path: &Path, array: &Array| match rows {
                None => NpyDraft::write(path, array, &tag).map(Some),
                Some(Rows { from, all, .. }) => {
                    NpyDraft::write_rows(path, array, &tag, from, all).map(|()| None)
                }
            };
            for (suffix, array) in &outcome.extra {
                let path = extra_path(output, suffix);
                let file = write(&path, array).map_err(of_output)?;
                // `.scores.npy` is told as `scores_path`.
                let name = suffix.trim_start_matches('.').trim_end_matches(".npy");
                if let Some(serde_json::Value::Object(result)) = &mut outcome.result {
                    result.insert(format!("{name}_path"), path.to_string_lossy().into_owned().into());
                }
                files.extend(file.map(|file| (path, file)));
            }
            if let Some(array) = &outcome.array {
                let file = write(output, array).map_err(of_output)?;
                files.extend(file.map(|file| (output.clone(), file)));
            }
        }
        outcome.array = None;
        outcome.extra.clear();
        let in_place = are_in_place(&files, &body);
        Ok(Computed { outcome, level: variant.level, counts, files, in_place, part })
    }

    fn run(&mut self, run: &Run<'_>, context: &mut Context) {
        // Not in what the first task is said to take.
        if run.kernel != KernelId::Noop.code() && self.meter.is_none() {
            self.meter = Some(Meter::open(context));
        }
        let started = clock::now();
        context.board.publish_work(context.slot(), run.kernel, run.class);
        if !context.begin_task(run.task, run.attempt, started) {
            if run.share == Share::Join {
                let tag = attempt_tag(&context.start.token, run.task, run.attempt);
                // What was written in parts goes with it.
                drop(Body::decode(run.body).map(|body| joined(&body, &tag)));
            }
            self.answer(run, started, Err(Failure(Verdict::Cancelled, "cancelled".to_owned())), context);
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| self.execute(run, context))).unwrap_or_else(|panic| {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
            Err(Failure(Verdict::Failed, format!("the kernel panicked: {words}")))
        });
        let outcome = outcome.and_then(|computed| publish(run, computed, context));
        self.answer(run, started, outcome, context);
    }

    fn answer(
        &self,
        run: &Run<'_>,
        started: Nanos,
        outcome: Result<Published, Failure>,
        context: &mut Context,
    ) {
        let service_ns = clock::now().since(started).as_nanos() as u64;
        let leveled = KernelId::from_code(run.kernel).is_some_and(kernels::has_levels);
        let (verdict, published) = match outcome {
            Ok(published) => (Verdict::Succeeded, published),
            Err(Failure(verdict, words)) => {
                let mut result = words.into_bytes();
                result.truncate(TEXT_BYTES);
                (verdict, Published::words(result))
            }
        };
        let Published { result, level, flops, bytes, counts, kept_input, part } = published;
        // What a library chose by itself, or what has no vector code, is not passed off as a level.
        let label = if leveled { level.code() } else { NO_LEVEL };
        let done = Done {
            task: run.task,
            attempt: run.attempt,
            verdict,
            level: label,
            started,
            service_ns,
            flops,
            bytes,
            kept_input,
            part,
            counts,
            body: &result,
        };
        context.finish_task(&done, verdict == Verdict::Failed);
    }
}

/// Lets the files appear, the output last, unless the task was given up before.
fn publish(run: &Run<'_>, computed: Computed, context: &mut Context) -> Result<Published, Failure> {
    let Computed { outcome, level, counts, files, in_place, part } = computed;
    let result = outcome.result.map_or_else(Vec::new, |result| result.to_string().into_bytes());
    if result.len() > RESULT_BYTES {
        let words = format!("the result has {} bytes, at most {RESULT_BYTES} travel", result.len());
        return Err(Failure(Verdict::Wrong, words));
    }
    if run.share == Share::Beside && in_place {
        return Err(declined());
    }
    let is_written = !files.is_empty();
    if is_written {
        ailment::at_output(ailment::Output::Written);
        if !context.begin_commit(run.task, run.attempt) {
            return Err(KernelError::Cancelled.into());
        }
        ailment::at_output(ailment::Output::Announced);
    }
    let mut places = Vec::new();
    for (path, file) in files {
        let outcome = if in_place { file.publish_keeping() } else { file.publish() };
        if let Err(error) = outcome {
            let tag = attempt_tag(&context.start.token, run.task, run.attempt);
            let undone: Result<(), String> =
                places.iter().rev().try_for_each(|path: &PathBuf| arrays::take_back(path, &tag));
            // The next attempt would take for an input what is none any more.
            undone.map_err(|words| Failure(Verdict::Wrong, words))?;
            return Err(of_output(error));
        }
        places.push(path);
    }
    if is_written {
        ailment::at_output(ailment::Output::There);
    }
    let (flops, bytes) = (outcome.flops, outcome.bytes);
    Ok(Published { result, level, flops, bytes, counts, kept_input: in_place, part })
}

/// A second attempt that would change what the first one reads, or read what that one changes.
fn declined() -> Failure {
    let words = "its output replaces an input: it cannot run beside another attempt".to_owned();
    Failure(Verdict::Cancelled, words)
}

fn of_output(error: NpyWriteError) -> Failure {
    let Failure(verdict, words) = error.into();
    Failure(verdict, format!("output: {words}"))
}

impl Agent for ComputeAgent {
    fn on_start(&mut self, _context: &mut Context) -> anyhow::Result<()> {
        self.ready = Some(Level::best());
        Ok(())
    }

    fn on_message(&mut self, message: &ToAgent<'_>, context: &mut Context) {
        match message {
            ToAgent::Run(run) => self.run(run, context),
            ToAgent::Cancel(task, attempt) => context.note_cancelled(*task, *attempt),
            _ => {}
        }
    }

    fn on_rest(&mut self) {
        // Memory kept warm for the next output is not worth keeping through a pause.
        Buffer::release_pool();
    }
}
