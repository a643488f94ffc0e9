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
//! 1. A record is in the front, or in the store, or in both; its place in the front is given free after the store has committed it and, at
//!    level `power`, the disk has the note of that.
//! 2. The store and the front each betray what is missing from the other: the store says up to which record it goes, the front
//!    from which one on it is needed, and both whose they are. While one run of the host lasts, the front goes as far as the store.
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

use crate::base::trouble;
use crate::base::words::things;
use crate::os::affinity::CoreMask;
use crate::os::files;
use front::{Front, Identity, Place, Reading};
use keeper::{Files, Shared, Threads};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use store::{Mark, Store, StoreError, with_suffix};

/// Bytes of the ring: what a busy swarm writes while the store is held up for about a second.
pub const RING_BYTES: u64 = 64 << 20;
/// As much at level `power`, where it is written once before it is used.
pub const SYNCED_RING_BYTES: u64 = 16 << 20;
/// Earlier lives that a front knows of: so many starts in a row may be killed before what the first one left is forgotten.
const RUNS_REMEMBERED: usize = 16;
/// How long a journal that shall end waits for the store to take anything.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Recovered records go into the store in groups of about so many bytes.
const GROUP_BYTES: usize = 4 << 20;
/// Bytes of records that go from the thread that reads to who makes something of them, and how many such are on the way.
const READ_BYTES: usize = 256 << 10;
const READ_AHEAD: usize = 2;

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
    /// Cores where the one who opens it does not run: there it is read meanwhile, and at level `power` the store is filled. `None`:
    /// where the others are.
    pub elsewhere: Option<CoreMask>,
    /// Names this life of the swarm.
    pub run: u64,
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
    /// A store on its way: what was salvaged, not whole yet.
    draft: PathBuf,
    /// The same, whole: from now on it is the store, and the damaged files are not.
    salvaged: PathBuf,
}

impl Paths {
    /// Where they lie.
    pub fn new(folder: &Path) -> Self {
        let [store, front, draft, salvaged] =
            ["journal.db", "journal.front", "journal.draft", "journal.salvaged"]
                .map(|name| folder.join(name));
        Self { store, front, draft, salvaged }
    }

    /// Makes what was salvaged the store, if a start came that far, perhaps an earlier one that was killed then. Returns the new
    /// names of the damaged files, but for those that got theirs before the kill.
    fn take_salvaged(&self) -> Result<Option<Vec<PathBuf>>, JournalError> {
        if !self.salvaged.exists() {
            return Ok(None);
        }
        let aside =
            self.set_aside().map_err(io_error("set aside the damaged journal beside", &self.store))?;
        trouble::check("journal.salvage").map_err(io_error("replace", &self.store))?;
        std::fs::rename(&self.salvaged, &self.store).map_err(io_error("replace", &self.store))?;
        front::sync_folder(&self.store).map_err(io_error("replace", &self.store))?;
        Ok(Some(aside))
    }

    /// Puts what was read before the damage into a store of its own. Nothing else is touched before that is whole.
    fn salvage(&self, saved: &[u8], before: u64, highest: u64) -> Result<(), JournalError> {
        let failed = || store_error("create", &self.draft);
        let draft = || -> Result<(), StoreError> {
            Store::create(&self.draft, before, highest)?;
            let mut store = Store::open(&self.draft)?;
            store.load(|_| {}).map_err(|bad| io::Error::other(bad.what))?;
            store.accept()?;
            append_all(&mut store, saved, before)?;
            store.mark_closed()?;
            // Its log is not taken along.
            store.move_into_file()?;
            drop(store);
            File::open(&self.draft)?.sync_all()?;
            trouble::check("journal.salvage")?;
            std::fs::rename(&self.draft, &self.salvaged)?;
            Ok(front::sync_folder(&self.store)?)
        };
        draft().map_err(failed())
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
    /// Earlier lives that may have done what no record tells of, because they did not end in order; the last few of them.
    pub runs: Vec<u64>,
    /// Highest number of a task that the store remembers, forgotten ones included.
    pub highest: u64,
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
        let drafts = ["", "-wal", "-journal"].map(|suffix| with_suffix(&paths.draft, suffix));
        for path in [paths.store.with_extension("new")].iter().chain(&drafts) {
            let _ = std::fs::remove_file(path);
        }
        let earlier = paths.take_salvaged()?;
        let (mut saved, mut understood, mut strange) = (Vec::new(), 0, None);
        let mut survey = survey_ahead(&paths, options.elsewhere, |frame| {
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
            let before = frame::decode(&saved).map_or(survey.before, |first| first.seq - 1);
            paths.salvage(&saved, before, survey.found.highest)?;
            let aside = paths.take_salvaged()?.unwrap_or_default();
            let mut store = open_store(&paths.store)?;
            store.load(|_| {}).map_err(|bad| store_damaged(&paths, bad.place, bad.what, 0))?;
            (survey.store, survey.fresh) = (Some(store), Vec::new());
            survey.found.notes.push(format!("{damage}; set aside as {}", names(&aside)));
        } else if earlier.is_some() {
            let words = "what an earlier start could read of a damaged journal is the journal now; the damaged files lie \
                         beside it, called `journal.*.damaged-*`";
            survey.found.notes.push(words.to_owned());
        }
        let mut store = survey.store.take().expect("a survey without damage has a store");
        store.accept().map_err(store_error("set up", &paths.store))?;
        store.set_synced(options.synced).map_err(store_error("set up", &paths.store))?;
        append_all(&mut store, &survey.fresh, survey.fresh_after)
            .map_err(store_error("write", &paths.store))?;
        let Mark { journal, last, .. } = store.mark();
        let runs = &survey.found.runs;
        let runs = runs.iter().copied().chain([options.run]).collect();
        let identity = Identity { journal, runs, boot: boot_id(), synced: options.synced };
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
        match store.mark_open() {
            // The first record that finds room brings it.
            Err(error) if !error.is_full() => return Err(store_error("write", &paths.store)(error)),
            _ => {}
        }
        let shared = Arc::new(Shared::new(last, wake));
        let start = Place { position: 0, seq: last };
        let files = Files {
            front: file,
            front_path: paths.front.clone(),
            ring: options.ring,
            start,
            store,
            cores: options.elsewhere.filter(|_| options.synced),
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
        let free = self.threads.shared.free();
        if self.waiting.is_empty() && self.front.append(&self.frame, free, &mut self.scratch) {
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
            if !self.front.append(frame, self.threads.shared.free(), &mut self.scratch) {
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
        let state = |shared: &Shared| (shared.head(), shared.free(), shared.synced());
        let (mut before, mut moved) = (state(&self.threads.shared), Instant::now());
        loop {
            self.push_waiting();
            let shared = &self.threads.shared;
            if self.waiting.is_empty() || shared.has_failed() {
                break;
            }
            let now = state(shared);
            // There is no saying how long a disk takes for a sync, with which room comes at level `power`, or for a group. One that is
            // full is no reason to wait.
            let waits_for_sync = self.synced && shared.waits_for_sync(self.front.ring());
            let is_at_the_disk = shared.is_fine() && (waits_for_sync || shared.is_at_the_store());
            if now != before || is_at_the_disk {
                (before, moved) = (now, Instant::now());
            } else if moved.elapsed() > CLOSE_PATIENCE {
                // Without its end in order, the next start looks at the front, and goes on with what it does not know to be over.
                shared.fail(format!(
                    "{} found no room in the journal before the end",
                    things(self.waiting.len(), "record")
                ));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
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
        Ok(_) => format!("{place}, there or in its log {}, which is empty", log.display()),
        Err(_) => format!("{place}, there or in its log {}, which is missing", log.display()),
    };
    damaged(&paths.store, place, what, readable)
}

fn damaged(path: &Path, place: impl Into<String>, what: impl Into<String>, readable: u64) -> JournalError {
    JournalError::Damaged { path: path.to_owned(), place: place.into(), what: what.into(), readable }
}

/// Adds frames, one behind the other, the first of which follows record `after`.
fn append_all(store: &mut Store, mut frames: &[u8], mut after: u64) -> Result<(), StoreError> {
    while !frames.is_empty() {
        let (mut end, mut last) = (0, after);
        while end < GROUP_BYTES
            && let Ok(frame) = frame::decode(&frames[end..])
        {
            (end, last) = (end + frame.bytes.len(), frame.seq);
        }
        store.append(&frames[..end], after, last)?;
        (frames, after) = (&frames[end..], last);
    }
    Ok(())
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
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

/// Reads both files, on a thread of its own: what `visit` makes of records takes as long as reading and checking them.
fn survey_ahead(
    paths: &Paths,
    cores: Option<CoreMask>,
    mut visit: impl FnMut(Frame<'_>),
) -> Result<Survey, JournalError> {
    let (sender, gathered) = mpsc::sync_channel::<Vec<u8>>(READ_AHEAD);
    thread::scope(|scope| {
        let reader = thread::Builder::new().name("journal-read".to_owned()).spawn_scoped(scope, move || {
            if let Some(cores) = cores {
                cores.apply();
            }
            let mut frames = Vec::new();
            let survey = survey(paths, |frame| {
                frames.extend_from_slice(frame.bytes);
                if frames.len() >= READ_BYTES {
                    // Nobody takes it when `visit` has panicked.
                    let _ = sender.send(std::mem::take(&mut frames));
                }
            });
            let _ = sender.send(frames);
            survey
        });
        let reader = reader.map_err(io_error("start a thread that reads", &paths.store))?;
        for frames in gathered {
            let mut rest = &frames[..];
            while let Ok(frame) = frame::decode_again(rest) {
                rest = &rest[frame.bytes.len()..];
                visit(frame);
            }
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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
    for path in [&paths.store, &with_suffix(&paths.store, "-wal"), &paths.front] {
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            survey.damage = Some(damaged(path, "the whole file", "it is no file", 0));
            return Ok(survey);
        }
    }
    match (store_length, front_length) {
        (None, None) => {
            Store::create(&paths.store, 0, 0).map_err(store_error("create", &paths.store))?;
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
    survey.found.highest = store.mark().highest;
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
        survey.damage = survey_front(paths, &mut survey, mark, &mut records, visit)?;
    }
    survey.found.records = records;
    survey.store = Some(store);
    Ok(survey)
}

/// Reads what the front has and the store has not. Returns the damage, if acknowledged records may be missing.
fn survey_front(
    paths: &Paths,
    survey: &mut Survey,
    mark: Mark,
    records: &mut u64,
    mut visit: impl FnMut(Frame<'_>),
) -> Result<Option<JournalError>, JournalError> {
    let file = files::open_regular(&paths.front).map_err(io_error("open", &paths.front))?;
    let io = || io_error("read", &paths.front);
    let reading = match Reading::open(&file).map_err(io())? {
        Ok(reading) => reading,
        Err(bad) => {
            return Ok(Some(damaged(&paths.front, format!("offset {}", bad.offset), bad.what, *records)));
        }
    };
    let stored = mark.last;
    if reading.identity.journal != mark.journal {
        let what = format!(
            "it belongs to another journal than {}: which of the two is the wrong one is not known",
            paths.store.display()
        );
        return Ok(Some(damaged(&paths.front, "offset 0", what, *records)));
    }
    let runs = &reading.identity.runs;
    survey.found.runs = runs[runs.len().saturating_sub(RUNS_REMEMBERED - 1)..].to_vec();
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
    if let Ok(end) = outcome
        && end.seq < stored
        && !restarted
    {
        let what = format!(
            "it ends with record {}, and the store with record {stored}: is it an older copy?",
            end.seq
        );
        return Ok(Some(damaged(&paths.front, "the whole file", what, *records)));
    }
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
