//! What attempts leave beside their outputs: files that did not become one, and inputs that one has replaced.
//!
//! An output that takes the place of an input is put there with the old file kept beside it (`arrays::take_back` has the rules).
//! 1. Who dies, agent or supervisor, before the answer is in the journal may have replaced it or not: the old file is put back,
//!    and the next attempt finds what the first one found.
//! 2. Once the end of the task is as safe as was promised the old file goes, on a thread: it may be large.

use super::Supervisor;
use crate::arrays;
use crate::base::ids::{Attempt, TaskId};
use crate::kernels::{EXTRA_SUFFIXES, extra_path};
use crate::os::affinity::CoreMask;
use crate::tasks::{Task, attempt_tag, read_attempt_tag};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Makes good what an attempt without an answer did to its output and beside it. What cannot be made good, in words: then
/// no attempt can compute right any more.
pub(super) fn take_back(output: &Path, tag: &str) -> Result<(), String> {
    let mut all = Ok(());
    for file in files(output) {
        all = all.and(arrays::take_back(&file, tag));
    }
    all
}

/// Removes what an attempt that succeeded has kept.
pub(super) fn forget(output: &Path, tag: &str) {
    files(output).for_each(|file| arrays::forget(&file, tag));
}

/// The first half of that, which is quick; the other one is to [`forget`].
fn put_back(output: &Path, tag: &str) -> Result<(), String> {
    let mut all = Ok(());
    for file in files(output) {
        all = all.and(arrays::put_back(&file, tag));
    }
    all
}

/// So many attempts at one task may have no record: those of some lives that were killed at once. A name with a greater number is
/// somebody's joke.
const UNRECORDED_MAX: u32 = 64;

/// Attempts at open tasks of which no record tells, by what they left beside the outputs: the life that made them was killed
/// before the record of them was safe. Only those of `runs`, the last ones first; each folder is read once.
pub(super) fn unrecorded<'a>(
    tasks: impl Iterator<Item = &'a Task>,
    runs: &[u64],
) -> Vec<(&'a Task, Attempt, u64)> {
    let mut folders: BTreeMap<&Path, HashMap<TaskId, &Task>> = BTreeMap::new();
    for task in tasks.filter(|task| !task.state.is_final() && !runs.is_empty()) {
        if let Some(folder) = task.spec.output.as_deref().and_then(Path::parent) {
            folders.entry(folder).or_default().insert(task.id, task);
        }
    }
    let mut found = BTreeSet::new();
    for (folder, tasks) in &folders {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let tag = arrays::tag_of(&name.to_string_lossy()).and_then(read_attempt_tag);
            let Some((run, id, attempt)) = tag else { continue };
            let is_next =
                |task: &&Task| (1..=UNRECORDED_MAX).contains(&attempt.0.saturating_sub(task.attempt.0));
            if runs.contains(&run) && tasks.get(&id).is_some_and(is_next) {
                found.insert((id, attempt, run));
            }
        }
    }
    let task = |id| folders.values().find_map(|tasks| tasks.get(&id).copied());
    found.into_iter().rev().filter_map(|(id, attempt, run)| Some((task(id)?, attempt, run))).collect()
}

/// Whatever a kernel may have put beside an output, and then the output.
fn files(output: &Path) -> impl Iterator<Item = PathBuf> {
    EXTRA_SUFFIXES.map(|suffix| extra_path(output, suffix)).into_iter().chain([output.to_owned()])
}

/// Longest wait for the sweeper at the end. What a hung mount keeps is found by the next start.
const END: Duration = Duration::from_secs(2);

/// Forgets where nobody waits for it: to free the pages of a large file takes the kernel tens of milliseconds, and a mount may
/// hang. Its thread starts with the first output.
pub(super) struct Sweeper {
    /// Where the thread may run.
    cores: CoreMask,
    thread: Option<Thread>,
}

struct Thread {
    outputs: Sender<(PathBuf, String)>,
    /// Closed by the end of the thread.
    end: Receiver<()>,
}

impl Sweeper {
    pub(super) fn new(cores: CoreMask) -> Self {
        Self { cores, thread: None }
    }

    fn forget(&mut self, output: &Path, tag: String) {
        if self.thread.is_none() {
            self.thread = Thread::start(self.cores);
        }
        match &self.thread {
            // It ends only when nobody can ask any more.
            Some(thread) => drop(thread.outputs.send((output.to_owned(), tag))),
            // The host has no room for a thread.
            None => forget(output, &tag),
        }
    }

    /// Lets it do what is left; false when that does not end.
    pub(super) fn finish(&mut self) -> bool {
        let Some(Thread { outputs, end }) = self.thread.take() else { return true };
        drop(outputs);
        end.recv_timeout(END) != Err(RecvTimeoutError::Timeout)
    }
}

impl Thread {
    fn start(cores: CoreMask) -> Option<Self> {
        let (outputs, to_forget) = unbounded::<(PathBuf, String)>();
        let (ends, end) = bounded(0);
        let work = move || {
            cores.apply();
            to_forget.into_iter().for_each(|(output, tag)| forget(&output, &tag));
            drop::<Sender<()>>(ends);
        };
        std::thread::Builder::new().name("sweeper".to_owned()).spawn(work).ok()?;
        Some(Self { outputs, end })
    }
}

impl Supervisor {
    /// These tasks have ended, and nobody will want to know otherwise: what they kept goes.
    pub(super) fn forget_inputs(&mut self, ended: &[(TaskId, u64)]) {
        // What the journal does not have is executed again by the next life, which will want them.
        if self.journal_failure().is_some() {
            return;
        }
        for (id, _) in ended {
            let Some(task) = self.ledger.get(*id).filter(|task| task.kept_input) else { continue };
            if let Some(output) = &task.spec.output {
                self.sweeper.forget(output, attempt_tag(&self.nursery.token, *id, task.leased));
            }
        }
    }

    /// What attempts in parts wrote that came to nothing goes.
    pub(super) fn forget_abandoned(&mut self) {
        for (id, attempt) in self.ledger.take_abandoned() {
            if let Some(output) = self.ledger.get(id).and_then(|task| task.spec.output.clone()) {
                self.sweeper.forget(&output, attempt_tag(&self.nursery.token, id, attempt));
            }
        }
    }

    /// Makes good what attempts did whose agent died without an answer.
    pub(super) fn take_back(&mut self, attempts: &[(TaskId, Attempt)]) {
        for &(id, attempt) in attempts {
            // Other agents still write to what it wrote to.
            if self.ledger.get(id).is_some_and(|task| task.is_divided() && task.leased == attempt) {
                continue;
            }
            let output = self.ledger.get(id).and_then(|task| task.spec.output.clone());
            let tag = attempt_tag(&self.nursery.token, id, attempt);
            match output.map(|output| put_back(&output, &tag).map(|()| output)) {
                Some(Ok(output)) => self.sweeper.forget(&output, tag),
                Some(Err(words)) => self.ledger.spoil(id, &words, self.now),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Nanos;
    use crate::tasks::{TaskSpec, TaskState};

    #[test]
    fn what_was_handed_over_is_gone_at_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let output = |at: usize| folder.path().join(format!("{at}.npy"));
        for at in (0..100).step_by(3) {
            std::fs::write(arrays::temporary_name(&output(at), "tag"), "half").expect("written");
        }
        let kept = output(0);
        std::fs::write(&kept, "whole").expect("written");
        let mut sweeper = Sweeper::new(CoreMask::current().expect("the kernel says"));
        assert!(sweeper.finish(), "nothing was begun");
        for at in 0..100 {
            sweeper.forget(&output(at), "tag".to_owned());
        }
        assert!(sweeper.finish());
        let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").flatten().collect();
        assert_eq!(left.iter().map(|entry| entry.path()).collect::<Vec<_>>(), [kept]);
    }

    #[test]
    fn attempts_without_a_record_are_found_by_what_they_left() {
        let folder = tempfile::tempdir().expect("folder");
        let task = |id: u64, attempt: u32, name: &str| {
            let spec = TaskSpec { output: Some(folder.path().join(name)), ..TaskSpec::default() };
            let mut task = Task::new(TaskId(id), spec, TaskState::Queued, 0, Nanos(1));
            task.attempt = Attempt(attempt);
            task
        };
        let mut ended = task(5, 0, "e.npy");
        ended.state = TaskState::Succeeded;
        let tasks = [task(3, 0, "a.npy"), task(4, 2, "b.npy"), ended, task(6, 0, "c.npy")];
        let left = |id: u64, attempt: u32, run: u64| {
            let output = tasks.iter().find(|task| task.id.0 == id).and_then(|task| task.spec.output.clone());
            let tag = attempt_tag(&format!("{run:016x}"), TaskId(id), Attempt(attempt));
            let file = arrays::temporary_name(&output.expect("an output"), &tag);
            std::fs::write(&file, "half").expect("written");
            file
        };
        std::fs::rename(left(3, 1, 70), left(3, 1, 70).with_extension("old")).expect("renamed");
        let files = [(6, 65, 71), (3, 1, 70), (3, 1, 71), (4, 2, 71), (4, 3, 71), (5, 1, 71), (6, 1, 99)];
        files.iter().for_each(|&(id, attempt, run)| _ = left(id, attempt, run));
        std::fs::write(folder.path().join(".a.npy.71-t3-1.tmp"), "no tag of ours").expect("written");
        let found = |runs: &[u64]| -> Vec<_> {
            let all = unrecorded(tasks.iter(), runs).into_iter();
            all.map(|(task, attempt, run)| (task.id.0, attempt.0, run)).collect()
        };
        assert_eq!(
            found(&[70, 71]),
            [(4, 3, 71), (3, 1, 71), (3, 1, 70)],
            "open ones, beyond what is known of them"
        );
        assert_eq!(found(&[70]), [(3, 1, 70)]);
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn files_beside_an_output_go_with_it_whatever_kernel_made_them() {
        let folder = tempfile::tempdir().expect("folder");
        let output = folder.path().join("z.npy");
        for end in [forget as fn(&Path, &str), |output, tag| take_back(output, tag).expect("taken back")] {
            for name in ["z.npy", "z.scores.npy", "z.places.npy", "z.labels.npy", "z.bounds.npy"] {
                let file = arrays::temporary_name(&folder.path().join(name), "tag");
                std::fs::write(file, "half").expect("written");
            }
            end(&output, "tag");
            let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}
