//! What the supervisor does for its journal: opens it, takes over the tasks of earlier lives, and holds answers back until what
//! they say is as safe as `durability.level` promises.

use super::*;
use crate::base::words::things;
use crate::config::Durability;
use crate::journal::book::{Recorder, Restored};
use crate::journal::{self, Journal, JournalError};
use crate::tasks::{Task, attempt_tag};
use action::DurabilityView;
use std::collections::VecDeque;

/// An answer to a submitter that waits for the journal.
struct Unanswered {
    /// The record that has to be safe.
    record: u64,
    tasks: Vec<Result<TaskId, Submitted>>,
    answer: Answer,
}

/// An answer to somebody who wanted a task cancelled that has ended.
struct Cancel {
    /// The record that has to be safe.
    record: u64,
    task: TaskId,
    name: String,
    is_new: bool,
    answer: Answer,
}

/// What waits for the journal, oldest first.
#[derive(Default)]
pub(super) struct KeptBack {
    accepted: VecDeque<Unanswered>,
    cancels: VecDeque<Cancel>,
    /// Ends of tasks and their batches, with the record that has to be safe.
    ended: VecDeque<(u64, TaskId, u64)>,
    /// What was known to be safe in the last turn.
    seen: u64,
    /// Whether there was no trouble, when last looked at.
    was_fine: bool,
    /// Why writing failed, if it did.
    failure: Option<String>,
}

impl KeptBack {
    pub(super) fn new() -> Self {
        Self { was_fine: true, ..Self::default() }
    }
}

/// What earlier lives left beside their tasks.
#[derive(Default)]
pub(super) struct Kept {
    /// What is worth telling.
    pub notes: Vec<String>,
    /// What is not there any more.
    pub losses: Vec<String>,
    /// Events, as [`EventLog::tell`] gave them.
    pub events: Vec<Box<str>>,
}

/// Whether tasks wait for the disk.
pub(super) fn waits_for_disk(config: &SwarmConfig, private: bool) -> bool {
    !private && config.durability.level == Durability::Power
}

/// Where the threads of the journal, the sweeper and the gateway run: on a compute agent's core they would take what tasks could have. All cores, where all have
/// one.
pub(super) fn cores_for_threads(plan: &CorePlan, usable: &[usize]) -> CoreMask {
    let computes =
        |core: usize| plan.assignments.iter().any(|seat| seat.kind == "compute" && seat.core == core);
    let free: Vec<usize> = usable.iter().copied().filter(|&core| !computes(core)).collect();
    CoreMask::of(if free.is_empty() { usable.to_vec() } else { free })
}

/// All but the supervisor's, if there are others. Where tasks wait for the disk, whatever keeps the supervisor's core from the supervisor and from the sync makes them wait
/// longer; so the keeper, which takes a millisecond at a time, goes to any other core, and compute agents give way to it.
pub(super) fn cores_elsewhere(plan: &CorePlan, usable: &[usize]) -> CoreMask {
    let others: Vec<usize> = usable.iter().copied().filter(|&core| core != plan.supervisor).collect();
    CoreMask::of(if others.is_empty() { usable.to_vec() } else { others })
}

/// Opens the journal, if there is to be one, and puts the tasks that it holds into the ledger.
pub(super) fn open(
    config: &SwarmConfig,
    options: &Options,
    elsewhere: CoreMask,
    home: &Home,
    handle: &Handle,
    token: &str,
    ledger: &mut Ledger,
) -> Result<Kept, JournalError> {
    // A private swarm ends with the command that started it, and nobody else was promised anything.
    if options.private {
        return Ok(Kept::default());
    }
    if config.durability.level == Durability::None {
        let paths = journal::Paths::new(home.path());
        // After an orderly stop all is in the store.
        let left = [paths.front, paths.store].into_iter().find(|path| path.exists());
        let note = |path: PathBuf| {
            format!(
                "{} is left of an earlier life; tasks in it that have not ended rest until `durability.level` is another than \"none\"",
                path.display()
            )
        };
        let losses = left.map(note).into_iter().collect();
        return Ok(Kept { losses, ..Kept::default() });
    }
    let bell = handle.bell();
    let synced = waits_for_disk(config, options.private);
    let run = u64::from_str_radix(token, 16).unwrap_or(0);
    let journal_options = journal::Options {
        synced,
        retention: journal::Retention {
            tasks: config.durability.keep_tasks,
            events: events::REMEMBERED as u64,
            age: config.durability.keep,
        },
        salvage: options.salvage,
        ring: if synced { journal::SYNCED_RING_BYTES } else { journal::RING_BYTES },
        elsewhere: Some(elsewhere),
        run,
    };
    let mut restored = Restored::default();
    let (journal, found) =
        Journal::open(home.path(), journal_options, Box::new(move || _ = bell.ring()), |frame| {
            restored.take(&frame)
        })?;
    let mut spoiled = Vec::new();
    // What was done last is undone first: one may have replaced what another one had put there.
    let unrecorded = leftovers::unrecorded(restored.tasks.iter().map(|task| &**task), &found.runs);
    let made: Vec<_> = unrecorded.iter().map(|(task, attempt, _)| (task.id, *attempt)).collect();
    for (task, attempt, run) in unrecorded.into_iter().chain(restored.leftovers().rev()) {
        let Some(output) = &task.spec.output else { continue };
        let tag = attempt_tag(&format!("{run:016x}"), task.id, attempt);
        if task.state == TaskState::Succeeded {
            leftovers::forget(output, &tag);
        } else if let Err(words) = leftovers::take_back(output, &tag) {
            spoiled.push((task.id, words));
        }
    }
    made.into_iter().for_each(|(task, attempt)| restored.count_attempt(task, attempt));
    ledger.keep_in(Box::new(Recorder::new(journal, run)));
    let events = std::mem::take(&mut restored.events);
    ledger.restore(restored.into_tasks(found.highest), clock::now());
    for (id, words) in spoiled {
        ledger.spoil(id, &words, clock::now());
    }
    let mut notes = Vec::new();
    let open = ledger.counts().open();
    if found.records > 0 {
        notes.push(format!(
            "{} records of earlier lives were read; {} go on",
            found.records,
            things(open as usize, "task")
        ));
    }
    Ok(Kept { notes, losses: found.notes, events })
}

impl Supervisor {
    /// Number of the last record.
    pub fn written(&self) -> u64 {
        self.ledger.book().map_or(0, |book| book.written())
    }

    /// Records up to this one are as safe as was promised.
    pub fn safe(&self) -> u64 {
        self.ledger.book().map_or(0, |book| book.safe())
    }

    /// Whether the journal has said something since the last turn.
    pub(super) fn has_settled(&self) -> bool {
        self.safe() != self.kept.seen
    }

    /// Why nothing is accepted at the moment.
    pub(super) fn refuses_for(&self) -> Option<String> {
        let book = self.ledger.book().filter(|book| !book.is_fine())?;
        book.trouble().map(|(why, _)| why)
    }

    /// Why what was accepted could not be kept, if so.
    pub fn journal_failure(&self) -> Option<&str> {
        self.kept.failure.as_deref()
    }

    /// Answers a submitter, once what was accepted is safe.
    pub(super) fn acknowledge(&mut self, tasks: Vec<Result<TaskId, Submitted>>, answer: Answer) {
        let written = self.written();
        if written <= self.safe() {
            return answer(Reply::Submitted(tasks.iter().map(|task| self.submitted(task)).collect()));
        }
        self.kept.accepted.push_back(Unanswered { record: written, tasks, answer });
    }

    /// Keeps back the ends of tasks that are not safe yet; `ended` is left with those that may be told.
    pub(super) fn keep_back(&mut self, ended: &mut Vec<(TaskId, u64)>) {
        let (written, safe) = (self.written(), self.safe());
        if written <= safe && self.kept.ended.is_empty() {
            return;
        }
        for (task, batch) in ended.drain(..) {
            self.ledger.owe(task);
            self.kept.ended.push_back((written, task, batch));
        }
        // After a failure nothing becomes safe any more: work that was under way ends in memory.
        let failed = self.kept.failure.is_some();
        while let Some(&(record, task, batch)) = self.kept.ended.front()
            && (record <= safe || failed)
        {
            self.kept.ended.pop_front();
            self.ledger.pay(task);
            ended.push((task, batch));
        }
    }

    /// Whether how a task ended may be told: a later life, too, will know. After a failure nothing becomes safe any more.
    pub(super) fn may_be_told(&self, task: &Task) -> bool {
        let is_safe = || self.ledger.book().is_none_or(|book| task.end_record <= book.safe());
        self.kept.failure.is_some() || is_safe()
    }

    /// Answers who wanted this task cancelled, once that is safe: it is cancelled now, or will be when its agent gives it up, or
    /// had ended before.
    pub(super) fn answer_when_safe(&mut self, task: TaskId, name: String, is_new: bool, answer: Answer) {
        let record = match self.ledger.get(task) {
            Some(task) if !is_new => task.end_record,
            _ => self.written(),
        };
        self.kept.cancels.push_back(Cancel { record, task, name, is_new, answer });
        self.answer_cancels();
    }

    fn answer_cancels(&mut self) {
        while let Some(first) = self.kept.cancels.front()
            && (first.record <= self.safe() || self.kept.failure.is_some())
        {
            let Cancel { task, name, is_new, answer, .. } = self.kept.cancels.pop_front().expect("just seen");
            answer(match self.ledger.get(task) {
                Some(task) if is_new => Reply::Task(Box::new(self.task_view(task))),
                Some(task) => Reply::Refused(Refused::Conflict(format!(
                    "task {name} has ended already: {}",
                    task.state.name()
                ))),
                None => super::no_task(&name),
            });
        }
    }

    /// Whether somebody waits for the journal.
    pub(super) fn keeps_back(&self) -> bool {
        !self.kept.ended.is_empty() || !self.kept.accepted.is_empty() || !self.kept.cancels.is_empty()
    }

    /// What became safe is acknowledged.
    pub(super) fn settle(&mut self) {
        let Some(book) = self.ledger.book_mut() else { return };
        book.catch_up();
        let (safe, is_fine) = (book.safe(), book.is_fine());
        self.kept.seen = safe;
        if !is_fine || !self.kept.was_fine {
            self.on_trouble();
        }
        self.answer_cancels();
        while let Some(first) = self.kept.accepted.front()
            && (first.record <= safe || self.kept.failure.is_some())
        {
            let Unanswered { record, tasks, answer } = self.kept.accepted.pop_front().expect("just seen");
            match &self.kept.failure {
                Some(why) if record > safe => answer(Reply::Refused(Refused::Unavailable(format!(
                    "the tasks were taken but could not be kept, and are lost if the swarm dies: {why}"
                )))),
                _ => answer(Reply::Submitted(tasks.iter().map(|task| self.submitted(task)).collect())),
            }
        }
    }

    /// Says once what is the matter.
    fn on_trouble(&mut self) {
        let trouble = self.ledger.book().and_then(|book| book.trouble());
        let was_fine = std::mem::replace(&mut self.kept.was_fine, trouble.is_none());
        match trouble {
            None => {
                let text = "the journal is written again".to_owned();
                self.events.add(Severity::Info, "journal_ok", None, text);
            }
            Some((why, false)) if was_fine => {
                self.events.add(Severity::Alert, "journal_full", None, why);
            }
            Some((why, true)) if self.kept.failure.is_none() => {
                self.events.add(Severity::Alert, "journal_failed", None, why.clone());
                self.kept.failure = Some(why);
            }
            Some(_) => {}
        }
    }

    /// What happened goes to whom it concerns: log, journal, gateway.
    pub(super) fn tell_events(&mut self) {
        let mut book = self.ledger.book_mut();
        self.events.tell(|event| {
            if let Some(book) = &mut book {
                book.tell(event);
            }
        });
    }

    /// The end: what was written goes to its place.
    pub(super) fn close_journal(&mut self) {
        self.tell_events();
        self.settle();
        if let Some(book) = self.ledger.book_mut() {
            book.close();
            let trouble = book.trouble();
            if let Some((why, true)) = trouble.filter(|_| self.kept.failure.is_none()) {
                // No event: nobody would hear of it, and it has no place to be kept.
                tracing::error!("{why}");
                self.kept.failure = Some(why);
            }
        }
        self.ledger.close_book();
        // What went wrong at the very end has no journal any more, but a log.
        self.tell_events();
        self.kept.seen = 0;
    }

    pub(super) fn durability_view(&self) -> DurabilityView {
        let Some(book) = self.ledger.book() else {
            let state = if self.kept.failure.is_some() { "failed" } else { "ok" };
            return DurabilityView {
                level: Durability::None.as_str().to_owned(),
                state: state.to_owned(),
                why: self.kept.failure.clone(),
                ..DurabilityView::default()
            };
        };
        let trouble = book.trouble();
        let state = match &trouble {
            None => "ok",
            Some((_, false)) => "full",
            Some((_, true)) => "failed",
        };
        DurabilityView {
            level: self.config.durability.level.as_str().to_owned(),
            state: state.to_owned(),
            why: trouble.map(|(why, _)| why),
            records: book.written(),
            backlog_bytes: book.backlog_bytes(),
        }
    }
}
