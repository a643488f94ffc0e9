//! What must outlive the supervisor: accepted tasks, their attempts, their ends; and what happened beside, as the life of
//! agents.
//!
//! ```text
//!  ledger ──record──► front: a ring in a file, written through memory ──groups──► store: SQLite
//!          a copy       safe from every death of a process                keeper     for good, a thread of its own
//!                       └─ sync thread, level `power`: safe from a power cut
//! ```
//! | level | acknowledged when | survives |
//! | --- | --- | --- |
//! | `none` | it is in memory | nothing |
//! | `process` | its record is in the front | the death of every process, at any instruction |
//! | `power` | the front was synced to the disk | that, and a power cut |
//!
//! Invariants
//! 1. A record is in the front, or in the store, or in both; its place in the front is given free after the store has committed it.
//! 2. The store and the front each betray what is missing from the other: the store says up to which record it goes, the front
//!    from which one on it is needed.
//! 3. Damage is never repaired in silence. [`Journal::open`] names file and place and refuses, unless it was told to salvage;
//!    then the damaged files are set aside under another name and what was before the damage goes on.
//! 4. A failed write or sync is final for this life: nothing more is acknowledged. A full disk is not a failure.

pub mod book;
pub mod frame;
pub mod front;
mod keeper;
pub(crate) mod snapshot;
pub mod store;

pub use frame::{Frame, Kind, Reader};
pub use keeper::Trouble;
pub use store::Retention;

use crate::os::affinity::CoreMask;
use front::{Front, Identity, Place, Reading};
use keeper::{Files, Shared, Threads};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{Store, StoreError, with_suffix};

/// Bytes of the ring: what a busy swarm writes while the store is held up for about a second.
pub const RING_BYTES: u64 = 64 << 20;
/// As much at level `power`, where it is written once before it is used.
pub const SYNCED_RING_BYTES: u64 = 16 << 20;
/// Recovered records go into the store in groups of about so many bytes.
const GROUP_BYTES: usize = 4 << 20;

/// How a journal is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Acknowledge only what the disk has.
    pub synced: bool,
    /// What is kept of ended tasks.
    pub retention: Retention,
    /// Go on with what is readable of a damaged journal.
    pub salvage: bool,
    /// Bytes of the front's ring: [`RING_BYTES`] or [`SYNCED_RING_BYTES`] but for tests.
    pub ring: u64,
    /// Where the thread that fills the store runs; `None`: where the others do.
    pub keeper_cores: Option<CoreMask>,
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Acknowledged records may be missing.
    #[error(
        "the journal is damaged: {}, {place}: {what}; {readable} records before it are readable, acknowledged ones after it may be lost",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// What is there.
        what: String,
        /// Records that were read before it.
        readable: u64,
    },
    /// The system refuses.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// SQLite refuses.
    #[error("cannot {verb} {}: {source}", path.display())]
    Store {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// What it says.
        source: StoreError,
    },
}

/// The journal's files in a state directory.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The store.
    pub store: PathBuf,
    /// The front.
    pub front: PathBuf,
}

impl Paths {
    /// Where they lie.
    pub fn new(folder: &Path) -> Self {
        Self { store: folder.join("journal.db"), front: folder.join("journal.front") }
    }

    fn set_aside(&self) -> io::Result<Vec<PathBuf>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let suffix = format!(".damaged-{}", now.as_millis());
        let mut aside = Vec::new();
        for path in [self.store.clone(), with_suffix(&self.store, "-wal"), self.front.clone()] {
            let to = with_suffix(&path, &suffix);
            match std::fs::rename(&path, &to) {
                Ok(()) => aside.push(to),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        front::sync_folder(&self.store)?;
        Ok(aside)
    }
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// Records read.
    pub records: u64,
    /// What is worth telling.
    pub notes: Vec<String>,
}

/// The writer's end.
#[derive(Debug)]
pub struct Journal {
    front: Front,
    threads: Threads,
    synced: bool,
    /// Last record that was given a number.
    last: u64,
    /// Records that found no room in the front; they are not safe.
    waiting: VecDeque<Vec<u8>>,
    frame: Vec<u8>,
    scratch: Vec<u8>,
}

/// Everything readable, and what is wrong.
struct Survey {
    store: Option<Store>,
    found: Found,
    damage: Option<JournalError>,
    /// Record before the first one, and the last one.
    before: u64,
    last: u64,
    /// Records that the store does not have.
    fresh: Vec<u8>,
    fresh_after: u64,
}

impl Journal {
    /// Opens the journal in `folder`, shows every record to `visit`, which says whether it understands it, and starts the
    /// journal's threads. `wake` is called from them when [`safe`](Self::safe) or [`trouble`](Self::trouble) changed. When it
    /// fails, what was visited is void; when it refuses a damaged journal, no byte of it was changed.
    pub fn open(
        folder: &Path,
        options: Options,
        wake: Box<dyn Fn() + Send + Sync>,
        mut visit: impl FnMut(Frame<'_>) -> bool,
    ) -> Result<(Self, Found), JournalError> {
        let paths = Paths::new(folder);
        for path in [&paths.store, &paths.front] {
            let _ = std::fs::remove_file(path.with_extension("new"));
        }
        let (mut saved, mut understood, mut strange) = (Vec::new(), 0, None);
        let mut survey = survey(&paths, |frame| {
            // Nothing behind a record that cannot be understood is what was meant.
            if strange.is_some() {
            } else if !visit(frame) {
                strange = Some(frame.seq);
            } else {
                understood += 1;
                if options.salvage {
                    saved.extend_from_slice(frame.bytes);
                }
            }
        })?;
        let strange = strange.map(|record| {
            let what = "it cannot be understood: was it written by another version?";
            damaged(&paths.store, format!("record {record}"), what, understood)
        });
        if let Some(damage) = strange.or(survey.damage.take()) {
            if !options.salvage {
                return Err(damage);
            }
            drop(survey.store.take());
            let aside = paths.set_aside().map_err(io_error("set aside the damaged journal in", folder))?;
            let before = frame::decode(&saved).map_or(survey.before, |first| first.seq - 1);
            Store::create(&paths.store, before).map_err(store_error("create", &paths.store))?;
            survey.store = Some(open_store(&paths.store)?);
            let mut store = survey.store.take().expect("just opened");
            store.load(|_| {}).map_err(|bad| store_damaged(&paths, bad.place, bad.what, 0))?;
            (survey.store, survey.fresh, survey.fresh_after) = (Some(store), saved, before);
            let names: Vec<String> = aside.iter().map(|path| path.display().to_string()).collect();
            survey.found.notes.push(format!("{damage}; set aside as {}", names.join(", ")));
        }
        let mut store = survey.store.take().expect("a survey without damage has a store");
        store.accept().map_err(store_error("set up", &paths.store))?;
        store.set_synced(options.synced).map_err(store_error("set up", &paths.store))?;
        let (mut rest, mut after) = (&survey.fresh[..], survey.fresh_after);
        while !rest.is_empty() {
            let (mut end, mut last) = (0, after);
            while end < GROUP_BYTES
                && let Ok(frame) = frame::decode(&rest[end..])
            {
                (end, last) = (end + frame.bytes.len(), frame.seq);
            }
            store.append(&rest[..end], after, last).map_err(store_error("write", &paths.store))?;
            (rest, after) = (&rest[end..], last);
        }
        let last = store.mark().last;
        let identity = Identity { boot: boot_id(), synced: options.synced };
        let mut front = Front::create(&paths.front, options.ring, &identity, last);
        if front.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
            && paths.front.exists()
        {
            // No room for two. What the old one holds is in the store by now.
            store.mark_closed().map_err(store_error("write", &paths.store))?;
            std::fs::remove_file(&paths.front).map_err(io_error("replace", &paths.front))?;
            front = Front::create(&paths.front, options.ring, &identity, last);
        }
        let (front, file, staging) = front.map_err(io_error("make room for the journal in", &paths.front))?;
        let shared = Arc::new(Shared::new(last, wake));
        let start = Place { position: 0, seq: last };
        let files = Files {
            front: file,
            front_path: paths.front.clone(),
            ring: options.ring,
            start,
            store,
            cores: options.keeper_cores,
            staging,
        };
        let threads = Threads::start(shared, files, options.retention)
            .map_err(io_error("start the threads of", &paths.store))?;
        let journal = Self {
            front,
            threads,
            synced: options.synced,
            last,
            waiting: VecDeque::new(),
            frame: Vec::new(),
            scratch: Vec::new(),
        };
        Ok((journal, survey.found))
    }

    /// Writes a record. Never waits: what finds no room follows as soon as there is some.
    pub fn write(&mut self, kind: Kind, value: u32, task: u64, payload: &[u8]) {
        self.last += 1;
        self.frame.clear();
        frame::encode(&mut self.frame, self.last, kind, value, task, &[payload]);
        self.push_waiting();
        let head = self.threads.shared.head();
        if self.waiting.is_empty() && self.front.append(&self.frame, head, &mut self.scratch) {
            self.threads.on_written(self.front.tail(), self.last);
        } else {
            self.waiting.push_back(self.frame.clone());
        }
    }

    /// Longest payload that a record can have.
    pub fn payload_bytes_max(&self) -> usize {
        self.front.frame_bytes_max() - frame::HEAD_BYTES - frame::ALIGNMENT
    }

    /// Puts records into the front that found no room before.
    pub fn push_waiting(&mut self) {
        while let Some(frame) = self.waiting.front() {
            if !self.front.append(frame, self.threads.shared.head(), &mut self.scratch) {
                return;
            }
            self.waiting.pop_front();
            self.threads.on_written(self.front.tail(), self.last - self.waiting.len() as u64);
        }
    }

    /// Number of the last record.
    pub fn written(&self) -> u64 {
        self.last
    }

    /// Records up to this one are as safe as the level promises.
    pub fn safe(&self) -> u64 {
        if self.synced { self.threads.shared.synced() } else { self.last - self.waiting.len() as u64 }
    }

    /// Bytes that the store has not taken over yet.
    pub fn backlog_bytes(&self) -> u64 {
        self.front.tail() - self.threads.shared.head()
    }

    /// What keeps it from taking more, if something does.
    pub fn trouble(&self) -> Option<Trouble> {
        self.threads.shared.trouble()
    }

    /// Whether nothing does.
    pub fn is_fine(&self) -> bool {
        self.threads.shared.is_fine()
    }

    /// Brings what was written to its place, and ends the threads: whether that went well says [`trouble`](Self::trouble).
    pub fn close(&mut self) {
        self.push_waiting();
        self.threads.stop();
    }

    /// Whether a write or a sync failed: nothing will become safe any more.
    pub fn has_failed(&self) -> bool {
        self.threads.shared.has_failed()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { verb, path, source }
}

fn store_error(verb: &'static str, path: &Path) -> impl FnOnce(StoreError) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Store { verb, path, source }
}

/// What was wrong with the store: in the file itself or, while there is one, in its log, which holds the newest of it.
fn store_damaged(paths: &Paths, place: String, what: String, readable: u64) -> JournalError {
    let log = with_suffix(&paths.store, "-wal");
    let place = match std::fs::metadata(&log) {
        Ok(log_file) if log_file.len() > 0 => format!("{place}, there or in its log {}", log.display()),
        _ => place,
    };
    damaged(&paths.store, place, what, readable)
}

fn damaged(path: &Path, place: impl Into<String>, what: impl Into<String>, readable: u64) -> JournalError {
    JournalError::Damaged { path: path.to_owned(), place: place.into(), what: what.into(), readable }
}

/// Names the host's run since it was switched on.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

fn open_store(path: &Path) -> Result<Store, JournalError> {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, OutOfMemory, PermissionDenied, SystemIoFailure};
    Store::open(path).map_err(|error| match &error {
        StoreError::Sqlite(sqlite)
            if !matches!(
                sqlite.sqlite_error_code(),
                Some(CannotOpen | DiskFull | OutOfMemory | PermissionDenied | SystemIoFailure)
            ) =>
        {
            damaged(path, "offset 0", error.to_string(), 0)
        }
        _ => JournalError::Store { verb: "open", path: path.to_owned(), source: error },
    })
}

/// Reads both files.
fn survey(paths: &Paths, mut visit: impl FnMut(Frame<'_>)) -> Result<Survey, JournalError> {
    let length = |path: &Path| match std::fs::metadata(path) {
        Ok(file) => Ok(Some(file.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("look at", path)(error)),
    };
    let (store_length, front_length) = (length(&paths.store)?, length(&paths.front)?);
    let mut survey = Survey {
        store: None,
        found: Found::default(),
        damage: None,
        before: 0,
        last: 0,
        fresh: Vec::new(),
        fresh_after: 0,
    };
    match (store_length, front_length) {
        (None, None) => {
            Store::create(&paths.store, 0).map_err(store_error("create", &paths.store))?;
        }
        (None, Some(_)) => {
            survey.damage =
                Some(damaged(&paths.store, "the whole file", "it is missing, while its front is there", 0));
            return Ok(survey);
        }
        // Files of ours are never empty, and SQLite would take one for a new one, and remove its log; so it does with a single byte.
        (Some(0 | 1), _) => {
            survey.damage = Some(damaged(&paths.store, "offset 0", "the file is empty", 0));
            return Ok(survey);
        }
        _ => {}
    }
    // Written to from the start, so that a file that cannot be is not taken for a damaged one.
    File::options().read(true).write(true).open(&paths.store).map_err(io_error("open", &paths.store))?;
    let mut store = match open_store(&paths.store) {
        Ok(store) => store,
        Err(damage @ JournalError::Damaged { .. }) => {
            survey.damage = Some(damage);
            return Ok(survey);
        }
        Err(error) => return Err(error),
    };
    let mut records = 0;
    let mut last = 0;
    let outcome = store.load(|frame| {
        (records, last) = (records + 1, frame.seq);
        visit(frame);
    });
    if let Err(bad) = outcome {
        survey.damage = Some(store_damaged(paths, bad.place, bad.what, records));
        (survey.before, survey.last) = (store.mark().before, last);
        return Ok(survey);
    }
    let mark = store.mark();
    (survey.before, survey.last, survey.fresh_after) = (mark.before, mark.last, mark.last);
    if front_length.is_none() {
        if !mark.closed {
            survey.damage = Some(damaged(
                &paths.front,
                "the whole file",
                "it is missing, and the swarm did not end in order",
                records,
            ));
        }
    } else {
        survey.damage = survey_front(paths, &mut survey, mark.last, &mut records, visit)?;
    }
    survey.found.records = records;
    survey.store = Some(store);
    Ok(survey)
}

/// Reads what the front has and the store has not. Returns the damage, if acknowledged records may be missing.
fn survey_front(
    paths: &Paths,
    survey: &mut Survey,
    stored: u64,
    records: &mut u64,
    mut visit: impl FnMut(Frame<'_>),
) -> Result<Option<JournalError>, JournalError> {
    let file = File::open(&paths.front).map_err(io_error("open", &paths.front))?;
    let io = || io_error("read", &paths.front);
    let reading = match Reading::open(&file).map_err(io())? {
        Ok(reading) => reading,
        Err(bad) => {
            return Ok(Some(damaged(&paths.front, format!("offset {}", bad.offset), bad.what, *records)));
        }
    };
    // Memory that was not synced ended with the host's run; what was synced did not.
    let restarted = reading.identity.boot != boot_id();
    let lost_with_the_host = |what: String| {
        format!(
            "the host was restarted: {what}. Durability level `process` does not outlive that; `power` does"
        )
    };
    if reading.head.seq > stored {
        let what = format!("records {} to {} are gone", stored + 1, reading.head.seq);
        if !restarted || reading.identity.synced {
            return Ok(Some(store_damaged(paths, format!("behind record {stored}"), what, *records)));
        }
        survey.found.notes.push(lost_with_the_host(what));
    }
    let (mut last, fresh) = (stored, &mut survey.fresh);
    let outcome = reading
        .frames(&mut Vec::new(), |frame| {
            if frame.seq > stored {
                *records += 1;
                last = frame.seq;
                fresh.extend_from_slice(frame.bytes);
                visit(frame);
            }
            ControlFlow::Continue(())
        })
        .map_err(io())?;
    survey.last = last;
    if let Err((place, bad)) = outcome {
        if !restarted || (reading.identity.synced && place.seq < reading.synced.seq) {
            return Ok(Some(damaged(&paths.front, format!("offset {}", bad.offset), bad.what, *records)));
        }
        if !reading.identity.synced {
            let what = format!("what was accepted after record {} may be gone ({})", place.seq, bad.what);
            survey.found.notes.push(lost_with_the_host(what));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
