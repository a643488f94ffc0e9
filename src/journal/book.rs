//! Tasks as records, and back: how the ledger writes into the journal, and what a new life reads from it.

use super::frame::{put_number, put_part};
use super::{Frame, Journal, Kind, Reader, Trouble};
use crate::base::clock::Nanos;
use crate::base::ids::{AgentSlot, Attempt, TaskId};
use crate::base::numbered::Numbered;
use crate::kernels::KernelId;
use crate::tasks::{Book, Event, Priority, Task, TaskSpec, TaskState};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// No level, where one belongs.
const NO_LEVEL: u8 = u8::MAX;

/// Writes what the ledger says into the journal.
#[derive(Debug)]
pub struct Recorder {
    journal: Journal,
    /// Names this run of the swarm; stands in the names of temporary files.
    run: u64,
    buffer: Vec<u8>,
}

impl Recorder {
    /// `run` names this run of the swarm.
    pub fn new(journal: Journal, run: u64) -> Self {
        Self { journal, run, buffer: Vec::new() }
    }
}

/// A text that may be absent, which is not the same as empty.
fn put_text(buffer: &mut Vec<u8>, text: Option<&str>) {
    buffer.push(u8::from(text.is_some()));
    if let Some(text) = text {
        put_part(buffer, text.as_bytes());
    }
}

fn text(reader: &mut Reader<'_>) -> Option<Option<Box<str>>> {
    if reader.u8()? == 0 {
        return Some(None);
    }
    Some(Some(std::str::from_utf8(reader.part()?).ok()?.into()))
}

fn put_spec(buffer: &mut Vec<u8>, task: &Task) {
    let spec = &task.spec;
    buffer.extend_from_slice(&[spec.kernel, spec.class, spec.level, spec.priority as u8]);
    let timeout = spec.timeout.map_or(0, |timeout| timeout.as_nanos().min(u128::from(u64::MAX)) as u64);
    for number in [u64::from(spec.retries), timeout, task.submitted.0] {
        put_number(buffer, number);
    }
    put_text(buffer, spec.name.as_deref());
    put_text(buffer, spec.key.as_deref());
    put_part(buffer, spec.output.as_deref().map_or(&[], |path| path.as_os_str().as_bytes()));
    put_number(buffer, spec.after.len() as u64);
    for name in &spec.after {
        put_part(buffer, name.as_bytes());
    }
    buffer.extend_from_slice(&spec.body);
}

/// Bytes that [`put_spec`] needs, from above.
fn spec_bytes(spec: &TaskSpec) -> usize {
    let text = |text: &Option<Box<str>>| text.as_deref().map_or(0, str::len);
    let after: usize = spec.after.iter().map(|name| name.len() + 4).sum();
    let output = spec.output.as_deref().map_or(0, |path| path.as_os_str().len());
    64 + text(&spec.name) + text(&spec.key) + output + after + spec.body.len()
}

fn read_task(frame: &Frame<'_>) -> Option<Task> {
    let mut reader = Reader(frame.payload);
    let (kernel, class, level) = (KernelId::from_code(reader.u8()?)?, reader.u8()?, reader.u8()?);
    let priority = *Priority::ALL.get(usize::from(reader.u8()?))?;
    let retries = u32::try_from(reader.number()?).ok()?;
    let (timeout, submitted) = (reader.number()?, Nanos(reader.number()?));
    let (name, key) = (text(&mut reader)?, text(&mut reader)?);
    let output = reader.part()?;
    let mut after = Vec::new();
    for _ in 0..reader.number()? {
        after.push(std::str::from_utf8(reader.part()?).ok()?.into());
    }
    let spec = TaskSpec {
        name,
        key,
        kernel: kernel.code(),
        kernel_name: kernel.name(),
        class,
        level,
        priority,
        timeout: (timeout > 0).then(|| Duration::from_nanos(timeout)),
        retries,
        after,
        body: reader.0.into(),
        output: (!output.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(output))),
    };
    Some(Task::new(TaskId(frame.task), spec, TaskState::Queued, 0, submitted))
}

/// Bytes that the end of a task has beside its texts, at most.
const END_BYTES: usize = 128;

/// `most`: bytes of its result, and of the words of its error, that are kept; a longer result is not kept at all.
fn put_end(buffer: &mut Vec<u8>, task: &Task, most: usize) {
    buffer.push(task.state as u8);
    buffer.push(task.ran_level.unwrap_or(NO_LEVEL));
    put_number(buffer, task.agent.map_or(0, |slot| u64::from(slot.0) + 1));
    put_number(buffer, u64::from(task.retries_left));
    put_number(buffer, task.finished.0);
    // From the end backwards, so that they are short. What never was is 0, and comes back as 0.
    for time in [task.submitted, task.queued, task.dispatched, task.started] {
        put_number(buffer, task.finished.0.wrapping_sub(time.0));
    }
    put_number(buffer, task.service_ns);
    put_text(buffer, task.result.as_deref().filter(|result| result.len() <= most));
    put_text(buffer, task.error.as_deref().map(|error| &error[..error.floor_char_boundary(most)]));
    // At the end and only where it is so: of a record without it, it is not.
    if task.kept_input {
        buffer.push(1);
    }
}

fn read_end(task: &mut Task, frame: &Frame<'_>) -> Option<()> {
    let mut reader = Reader(frame.payload);
    let state = reader.u8()?;
    task.state = [TaskState::Succeeded, TaskState::Failed, TaskState::Cancelled]
        .into_iter()
        .find(|known| *known as u8 == state)?;
    task.ran_level = Some(reader.u8()?).filter(|level| *level != NO_LEVEL);
    let agent = reader.number()?;
    task.agent = (agent > 0).then(|| AgentSlot((agent - 1) as u16));
    task.attempt = Attempt(frame.value);
    task.retries_left = u32::try_from(reader.number()?).ok()?;
    let finished = reader.number()?;
    let mut time = || reader.number().map(|before| Nanos(finished.wrapping_sub(before)));
    (task.submitted, task.queued) = (time()?, time()?);
    (task.dispatched, task.started) = (time()?, time()?);
    task.finished = Nanos(finished);
    task.service_ns = reader.number()?;
    (task.result, task.error) = (text(&mut reader)?, text(&mut reader)?);
    task.kept_input = reader.u8() == Some(1);
    Some(())
}

impl Book for Recorder {
    fn admit(&self, spec: &TaskSpec) -> Result<(), String> {
        if let Some((why, _)) = self.trouble() {
            return Err(why);
        }
        let (needed, most) = (spec_bytes(spec), self.journal.payload_bytes_max());
        if needed > most {
            return Err(format!(
                "the task's description has {needed} bytes, the journal takes at most {most}; \
                 put what is large into an input file"
            ));
        }
        Ok(())
    }

    fn note(&mut self, event: Event, task: &Task) {
        let most = self.journal.payload_bytes_max();
        let buffer = &mut self.buffer;
        buffer.clear();
        let (kind, value) = match event {
            Event::Accepted => {
                put_spec(buffer, task);
                (Kind::Accepted, 0)
            }
            Event::Dispatched => {
                // Who ran it matters only for the files that it may leave.
                if task.spec.output.is_some() {
                    buffer.extend_from_slice(&self.run.to_le_bytes());
                }
                (Kind::Dispatched, task.attempt.0)
            }
            Event::Died => {
                buffer.extend_from_slice(&task.deaths.0.to_le_bytes());
                buffer.extend_from_slice(&task.deaths.1.to_le_bytes());
                (Kind::Died, 0)
            }
            Event::Retrying => {
                buffer.extend_from_slice(task.error.as_deref().unwrap_or("").as_bytes());
                (Kind::Retrying, task.retries_left)
            }
            Event::Cancelling => (Kind::Cancelling, 0),
            Event::Ended => {
                // It ends all the same; only what it left in words may be too much for later lives.
                put_end(buffer, task, (most / 2).saturating_sub(END_BYTES));
                (Kind::Ended, task.attempt.0)
            }
        };
        buffer.truncate(most);
        self.journal.write(kind, value, task.id.0, buffer);
    }

    fn tell(&mut self, event: &str) {
        // A longer one is none of ours, and cut it could not be read.
        if event.len() <= self.journal.payload_bytes_max() && !self.journal.has_failed() {
            self.journal.write(Kind::Event, 0, 0, event.as_bytes());
        }
    }

    fn written(&self) -> u64 {
        self.journal.written()
    }

    fn safe(&self) -> u64 {
        self.journal.safe()
    }

    fn catch_up(&mut self) {
        self.journal.push_waiting();
    }

    fn close(&mut self) {
        self.journal.close();
    }

    fn trouble(&self) -> Option<(String, bool)> {
        match self.journal.trouble()? {
            Trouble::Full(why) => Some((format!("nothing is accepted until there is space: {why}"), false)),
            Trouble::Failed(why) => Some((format!("nothing is accepted until a new start: {why}"), true)),
        }
    }

    fn is_fine(&self) -> bool {
        self.journal.is_fine()
    }

    fn backlog_bytes(&self) -> u64 {
        self.journal.backlog_bytes()
    }
}

/// What is known of earlier lives, built from records.
#[derive(Debug, Default)]
pub struct Restored {
    /// Tasks, ended ones included.
    pub tasks: Numbered<Box<Task>>,
    /// The highest number of a task, forgotten ones included.
    pub highest: u64,
    /// What else happened, oldest first, in the words of [`Book::tell`].
    pub events: Vec<Box<str>>,
    /// Open tasks that were with an agent when their supervisor died: which attempt, of which run.
    in_flight: Vec<(u64, u32, u64)>,
}

impl Restored {
    /// Takes in one record. False when it cannot be understood, though its checksum is right.
    pub fn take(&mut self, frame: &Frame<'_>) -> bool {
        self.highest = self.highest.max(frame.task);
        self.take_known(frame).is_some()
    }

    fn take_known(&mut self, frame: &Frame<'_>) -> Option<()> {
        if frame.kind == Kind::Event {
            self.events.push(std::str::from_utf8(frame.payload).ok()?.into());
            return Some(());
        }
        if frame.kind == Kind::Accepted {
            let task = read_task(frame)?;
            return self.tasks.push(task.id, Box::new(task)).then_some(());
        }
        // A task that was forgotten: its last records go later than its first one.
        let Some(task) = self.tasks.get_mut(TaskId(frame.task)) else {
            return Some(());
        };
        let mut reader = Reader(frame.payload);
        match frame.kind {
            Kind::Dispatched => {
                task.attempt = Attempt(frame.value);
                if task.spec.output.is_some() {
                    self.in_flight.push((frame.task, frame.value, reader.u64()?));
                }
            }
            Kind::Died => task.deaths = (reader.u32()?, reader.u32()?),
            Kind::Retrying => {
                task.retries_left = frame.value;
                task.error = Some(String::from_utf8_lossy(frame.payload).into());
            }
            Kind::Cancelling => task.cancelling = Some(true),
            Kind::Ended => read_end(task, frame)?,
            _ => return None,
        }
        Some(())
    }

    /// The tasks; new ones come behind `highest`, the highest number that the journal remembers, and behind all that it has.
    pub fn into_tasks(mut self, highest: u64) -> Numbered<Box<Task>> {
        self.tasks.skip_to(highest.max(self.highest) + 1);
        self.tasks
    }

    /// There was this attempt, though no record tells of it: its number is not given again.
    pub fn count_attempt(&mut self, id: TaskId, attempt: Attempt) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.attempt = task.attempt.max(attempt);
        }
    }

    /// Attempts that may have left files beside the output, or it in the place of an input, in the order in which they were
    /// sent: task, attempt, the run's name.
    pub fn leftovers(&self) -> impl DoubleEndedIterator<Item = (&Task, Attempt, u64)> {
        self.in_flight.iter().filter_map(|&(id, attempt, run)| {
            let task = &**self.tasks.get(TaskId(id))?;
            // Two attempts may have run at a time, and one of them may have outlived the task: only of one that ended in its
            // first attempt, and well, nothing can be left: what a task wrote that came to nothing is removed after its end.
            let ran_at_last = attempt + 1 >= task.attempt.0;
            let has_more = task.attempt.0 > 1 || task.kept_input || task.state != TaskState::Succeeded;
            (ran_at_last && (!task.state.is_final() || has_more)).then_some((task, Attempt(attempt), run))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Found, Options, RING_BYTES, Retention};
    use super::*;
    use crate::tasks::Lease;
    use crate::tasks::ledger::{Ledger, LedgerLimits};
    use std::path::Path;

    fn read(folder: &Path) -> (Journal, Restored, Found) {
        let retention = Retention { tasks: 1000, events: 1000, age: Duration::from_secs(3600) };
        let options =
            Options { synced: false, retention, salvage: false, ring: RING_BYTES, elsewhere: None, run: 7 };
        let mut restored = Restored::default();
        let (journal, found) =
            Journal::open(folder, options, Box::new(|| {}), |frame| restored.take(&frame)).expect("opened");
        (journal, restored, found)
    }

    fn open(folder: &Path) -> Ledger {
        let (journal, restored, found) = read(folder);
        let mut ledger = Ledger::new(LedgerLimits::default());
        ledger.keep_in(Box::new(Recorder::new(journal, 7)));
        ledger.restore(restored.into_tasks(found.highest), Nanos(1000));
        ledger
    }

    #[test]
    fn what_a_task_kept_is_known_to_the_next_life() {
        let folder = tempfile::tempdir().expect("folder");
        let mut ledger = open(folder.path());
        let output = Some("/x.npy".into());
        let spec = TaskSpec { kernel: KernelId::Axpy.code(), output, ..TaskSpec::default() };
        let lease = Lease { slot: AgentSlot(2), incarnation: crate::base::ids::Incarnation(1) };
        let ids: Vec<TaskId> = [true, false, true]
            .into_iter()
            .map(|kept| {
                let id = ledger.submit(spec.clone(), Nanos(1)).expect("accepted");
                let attempt = ledger.dispatch(id, lease, Nanos(2));
                ledger.settle(id, attempt).kept_input = kept;
                id
            })
            .collect();
        ids[..2].iter().for_each(|id| _ = ledger.on_success(*id, None, Nanos(3)));
        drop(ledger);
        let (_, restored, _) = read(folder.path());
        let left: Vec<(TaskId, bool, u64)> = restored
            .leftovers()
            .map(|(task, _, run)| (task.id, task.state == TaskState::Succeeded, run))
            .collect();
        assert_eq!(left, [(ids[0], true, 7), (ids[2], false, 7)], "it may be there still, or again");
    }

    #[test]
    fn numbers_of_tasks_go_on_where_all_of_them_are_forgotten() {
        let folder = tempfile::tempdir().expect("folder");
        let mut ledger = open(folder.path());
        let lease = Lease { slot: AgentSlot(2), incarnation: crate::base::ids::Incarnation(1) };
        let spec = TaskSpec { kernel: KernelId::Noop.code(), ..TaskSpec::default() };
        let waits = ledger.submit(spec.clone(), Nanos(1)).expect("accepted");
        let mut highest = waits;
        for _ in 0..5000 {
            highest = ledger.submit(spec.clone(), Nanos(1)).expect("accepted");
            ledger.dispatch(highest, lease, Nanos(2));
            ledger.on_success(highest, None, Nanos(3));
        }
        drop(ledger);
        let mut store = super::super::Store::open(&folder.path().join("journal.db")).expect("opened");
        store.load(|_| {}).expect("whole");
        store.accept().expect("set up");
        let none = Retention { tasks: 0, events: 0, age: Duration::from_secs(3600) };
        while store.retain(none).expect("retained") {}
        store.close().expect("closed");
        let mut ledger = open(folder.path());
        assert!(ledger.tasks().count() < 3000, "most are forgotten, but for the newest group");
        let next = ledger.submit(spec, Nanos(2000)).expect("accepted");
        assert!(next > highest, "{next} again");
        assert_eq!(ledger.peek(Nanos(2001)).map(|task| task.id), Some(waits));
    }

    #[test]
    fn an_end_with_endless_words_is_readable_and_so_is_what_follows() {
        let folder = tempfile::tempdir().expect("folder");
        let mut ledger = open(folder.path());
        let lease = Lease { slot: AgentSlot(2), incarnation: crate::base::ids::Incarnation(1) };
        let spec = TaskSpec { kernel: KernelId::Noop.code(), ..TaskSpec::default() };
        let mut run = |end: &mut dyn FnMut(&mut Ledger, TaskId)| {
            let id = ledger.submit(spec.clone(), Nanos(1)).expect("accepted");
            ledger.dispatch(id, lease, Nanos(2));
            end(&mut ledger, id);
        };
        let words = "\u{fffd}".repeat(8 << 20);
        run(&mut |ledger, id| _ = ledger.on_failure(id, &words, false, Nanos(3)));
        run(&mut |ledger, id| _ = ledger.on_success(id, Some(words.as_str().into()), Nanos(3)));
        run(&mut |ledger, id| _ = ledger.on_success(id, Some("7".into()), Nanos(3)));
        drop(ledger);
        let ledger = open(folder.path());
        let tasks: Vec<&Task> = ledger.tasks().collect();
        let states = [TaskState::Failed, TaskState::Succeeded, TaskState::Succeeded];
        assert!(tasks.iter().map(|task| task.state).eq(states));
        let error = tasks[0].error.as_deref().expect("the beginning of it");
        assert!(words.starts_with(error) && error.len() > 1 << 20, "{} bytes", error.len());
        assert_eq!([&tasks[1].result, &tasks[2].result], [&None, &Some("7".into())]);
    }

    #[test]
    fn who_was_to_be_given_up_is_not_tried_again_in_the_next_life() {
        let folder = tempfile::tempdir().expect("folder");
        let mut ledger = open(folder.path());
        let lease = Lease { slot: AgentSlot(2), incarnation: crate::base::ids::Incarnation(1) };
        let spec = TaskSpec { kernel: KernelId::Noop.code(), ..TaskSpec::default() };
        let id = ledger.submit(spec, Nanos(1)).expect("accepted");
        ledger.dispatch(id, lease, Nanos(2));
        ledger.cancel(id, Nanos(3));
        let asked = ledger.book().expect("kept").written();
        ledger.cancel(id, Nanos(4));
        assert_eq!(ledger.book().expect("kept").written(), asked, "once is enough");
        drop(ledger);
        let ledger = open(folder.path());
        let task = ledger.get(id).expect("known");
        assert_eq!((task.state, task.error.as_deref()), (TaskState::Cancelled, Some("cancelled on request")));
    }

    #[test]
    fn a_task_comes_back_with_all_that_was_known_of_it() {
        let folder = tempfile::tempdir().expect("folder");
        let mut ledger = open(folder.path());
        let spec = TaskSpec {
            name: Some("name".into()),
            key: Some("key".into()),
            kernel: KernelId::Sleep.code(),
            kernel_name: KernelId::Sleep.name(),
            class: 3,
            level: 1,
            priority: Priority::Low,
            timeout: Some(Duration::from_millis(7)),
            retries: 5,
            after: Vec::new(),
            body: b"body"[..].into(),
            output: Some("/out/put.npy".into()),
        };
        let lease = Lease { slot: AgentSlot(2), incarnation: crate::base::ids::Incarnation(1) };
        let ended = ledger.submit(spec.clone(), Nanos(1)).expect("accepted");
        ledger.dispatch(ended, lease, Nanos(2));
        ledger.on_success(ended, Some("[1,2]".into()), Nanos(3));
        let open_spec = TaskSpec { name: None, key: None, after: vec!["name".into()], ..spec };
        let tried = ledger.submit(open_spec, Nanos(4)).expect("accepted");
        ledger.dispatch(tried, lease, Nanos(5));
        ledger.on_agent_gone(&[tried], lease, Some(tried), "signal 11", true, Nanos(6));
        ledger.dispatch(tried, lease, Nanos(7));
        ledger.on_failure(tried, "why", true, Nanos(8));
        let before: Vec<Task> = ledger.tasks().cloned().collect();
        drop(ledger);

        let ledger = open(folder.path());
        let after: Vec<&Task> = ledger.tasks().collect();
        assert_eq!(after.len(), 2);
        for (before, after) in before.iter().zip(&after) {
            assert!(before.spec.asks_the_same(&after.spec));
            let words = |task: &Task| {
                let spec = &task.spec;
                (spec.key.clone(), spec.class, spec.priority, spec.timeout, spec.retries, spec.kernel_name)
            };
            assert_eq!(words(before), words(after));
            let numbers =
                |task: &Task| (task.id, task.attempt, task.retries_left, task.deaths, task.service_ns);
            assert_eq!(numbers(before), numbers(after));
            assert_eq!((&before.result, &before.error), (&after.result, &after.error));
        }
        assert_eq!(
            (after[0].state, after[0].finished, after[0].agent),
            (TaskState::Succeeded, Nanos(3), Some(AgentSlot(2)))
        );
        assert_eq!(
            (after[1].state, after[1].attempt, after[1].deaths),
            (TaskState::Queued, Attempt(2), (1, 0))
        );
    }
}
