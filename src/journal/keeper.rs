//! The threads of the journal: one takes records over from the front into the store, and at level `power` another one brings the
//! front to the disk. The supervisor's loop waits for neither.

use super::front::{self, Place, Staging, Taker};
use super::store::{Retention, Store, StoreError};
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::base::trouble;
use crate::os::affinity::CoreMask;
use crate::os::{files, process};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Bytes that go into the store as one group, at most but for the last record.
const GROUP_BYTES: u64 = 4 << 20;
/// Records gather for so long before they are taken over, unless there are many: a group costs more than its records.
const GATHER: Duration = Duration::from_millis(20);
/// The same at level `power`, where what the disk takes for a group is what an acknowledgement may have to wait for beside its own
/// sync: small groups (of two rows), unless the disk is so slow that it falls behind with them, and more evenly.
const SYNCED_GROUP_BYTES: u64 = 120 << 10;
const SYNCED_GATHER: Duration = Duration::from_millis(10);
/// How many groups it is behind before they grow.
const SYNCED_GROUPS: u64 = 4;
/// After a full disk was met, the next try.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Longest sleep without work. Only at level `power` is a wake-up never missed; elsewhere nobody waits.
const SLEEP: Duration = Duration::from_millis(500);
/// From one sync to the next at least: where the disk is quicker, records gather for so long.
const SYNC_EVERY: Duration = Duration::from_micros(100);
/// Turns of the sync thread: it runs for microseconds, many times, and what it waits for has to wait for it each time.
const SYNC_TURN: Duration = Duration::from_micros(100);
/// At level `power` the front's places become free with a sync, and without a record that asks for one when they are so many: the
/// ring's length by this. A record, and the gap before it, take a half of the ring at most, so a writer never waits for fewer.
const FREE_STEPS: u64 = 8;
/// Between two looks for what is to be forgotten.
const RETAIN_EVERY: Duration = Duration::from_millis(200);

/// What keeps the journal from taking more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The disk is full; it goes on by itself when there is space.
    Full(String),
    /// A write or a sync failed: what the disk holds is not known any more, so nothing is accepted until a new start.
    Failed(String),
}

const FINE: u64 = 0;
const FULL: u64 = 1;
const FAILED: u64 = 2;

/// What writer and threads tell each other. Each word has one writer, but for the state.
pub(super) struct Shared {
    /// Where the front ends; by the writer.
    tail: AtomicU64,
    /// Last record in the front; by the writer, after the tail.
    written: AtomicU64,
    /// Up to here the file has it; by the sync thread at level `power`, elsewhere by the writer.
    there: AtomicU64,
    /// Up to here the store has it; by the keeper.
    head: AtomicU64,
    /// Up to here the places in the front may be written again; by the sync thread at level `power`, elsewhere by the keeper.
    free: AtomicU64,
    /// Last record that the disk has for certain; by the sync thread.
    synced: AtomicU64,
    state: AtomicU64,
    why: Mutex<String>,
    stop: AtomicU64,
    /// The keeper is at the store, and may have to wait for a disk; by the keeper.
    at_store: AtomicU64,
    keeper_sleeps: AtomicU64,
    syncer_sleeps: AtomicU64,
    syncer: OnceLock<Thread>,
    /// Tells the writer's loop that there is news.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(last: u64, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            tail: zero(),
            written: AtomicU64::new(last),
            there: zero(),
            head: zero(),
            free: zero(),
            synced: AtomicU64::new(last),
            state: zero(),
            why: Mutex::default(),
            stop: zero(),
            at_store: zero(),
            keeper_sleeps: zero(),
            syncer_sleeps: zero(),
            syncer: OnceLock::new(),
            wake,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::Acquire)
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        let why = || self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match self.state.load(Ordering::Acquire) {
            FULL => Some(Trouble::Full(why())),
            FAILED => Some(Trouble::Failed(why())),
            _ => None,
        }
    }

    pub(super) fn is_fine(&self) -> bool {
        self.state.load(Ordering::Relaxed) == FINE
    }

    pub(super) fn has_failed(&self) -> bool {
        self.state.load(Ordering::Relaxed) == FAILED
    }

    /// Nothing more becomes safe, and the front stays for the next start.
    pub(super) fn fail(&self, why: String) {
        self.set_state(FAILED, why);
    }

    /// A failure is for good; whatever comes after it changes nothing.
    fn set_state(&self, state: u64, why: String) {
        let mut words = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.load(Ordering::Relaxed) == FAILED {
            return;
        }
        *words = why;
        self.state.store(state, Ordering::Release);
        drop(words);
        (self.wake)();
    }

    /// The front ends at `tail` now, with record `written`.
    pub(super) fn tell_written(&self, tail: u64, written: u64) {
        self.tail.store(tail, Ordering::Release);
        self.written.store(written, Ordering::Release);
    }

    /// The store has what was before `head`, and the file says so.
    pub(super) fn tell_taken(&self, head: u64) {
        self.head.store(head, Ordering::Release);
    }

    pub(super) fn is_at_the_store(&self) -> bool {
        self.at_store.load(Ordering::Relaxed) != 0
    }

    /// Whether there is something for the sync thread to do. Who waits for room writes nothing, so what is free is told without a new
    /// record, too, if it is much.
    pub(super) fn waits_for_sync(&self, ring: u64) -> bool {
        // The lesser one first: both only grow.
        let free = self.free();
        self.written.load(Ordering::Acquire) != self.synced() || self.head() - free >= ring / FREE_STEPS
    }

    pub(super) fn stop(&self) {
        self.stop.store(1, Ordering::Release);
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire) != 0
    }

    /// Sleeps until there is news, if `nothing_new`.
    fn sleep(&self, flag: &AtomicU64, nothing_new: impl Fn() -> bool) {
        flag.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if nothing_new() && !self.stops() {
            thread::park_timeout(SLEEP);
        }
        flag.store(0, Ordering::Relaxed);
    }
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    syncer: Option<JoinHandle<()>>,
}

/// What the threads need of the files.
pub(super) struct Files {
    pub(super) front: File,
    pub(super) front_path: PathBuf,
    pub(super) ring: u64,
    pub(super) start: Place,
    pub(super) store: Store,
    /// What brings the front to its file, at level `power`.
    pub(super) staging: Option<Staging>,
    /// Where the keeper runs, if not where it was started.
    pub(super) cores: Option<CoreMask>,
}

impl Threads {
    pub(super) fn start(shared: Arc<Shared>, mut files: Files, retention: Retention) -> io::Result<Self> {
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(work)
        };
        let (staging, ring, front) = (files.staging.take(), files.ring, files.front.try_clone()?);
        let (theirs, is_synced) = (shared.clone(), staging.is_some());
        let keeper = spawn("journal", Box::new(move || keep(&theirs, files, retention, is_synced)))?;
        let keeper_thread = keeper.thread().clone();
        let mut threads = Self { shared, keeper: Some(keeper), syncer: None };
        if let Some(staging) = staging {
            let (theirs, keeper) = (threads.shared.clone(), keeper_thread);
            let work = move || sync(&theirs, &keeper, &front, staging, ring);
            let syncer = spawn("journal-sync", Box::new(work))?;
            _ = threads.shared.syncer.set(syncer.thread().clone());
            threads.syncer = Some(syncer);
        }
        Ok(threads)
    }

    /// The writer has put records up to `written` into the front, which ends at `tail` now.
    pub(super) fn on_written(&self, tail: u64, written: u64) {
        self.shared.tell_written(tail, written);
        if let Some(syncer) = &self.syncer {
            fence(Ordering::SeqCst);
            return wake(&self.shared.syncer_sleeps, syncer.thread());
        }
        self.shared.there.store(tail, Ordering::Release);
        if let Some(keeper) = &self.keeper {
            wake(&self.shared.keeper_sleeps, keeper.thread());
        }
    }

    /// Lets the threads do what is left, and waits for them.
    pub(super) fn stop(&mut self) {
        self.shared.stop();
        for thread in [self.syncer.take(), self.keeper.take()].into_iter().flatten() {
            thread.thread().unpark();
            // A thread that panicked has nothing to hand in; the files say how far it came.
            let _ = thread.join();
        }
    }
}

/// Told once: a thread that was woken looks before it sleeps again.
fn wake(sleeps: &AtomicU64, thread: &Thread) {
    if sleeps.load(Ordering::Relaxed) != 0 {
        sleeps.store(0, Ordering::Relaxed);
        thread.unpark();
    }
}

pub(super) fn sync(shared: &Shared, keeper: &Thread, front: &File, mut staging: Staging, ring: u64) {
    process::set_turn(SYNC_TURN);
    let has_news = || shared.waits_for_sync(ring);
    loop {
        let stops = shared.stops();
        if shared.has_failed() {
            return;
        }
        if !has_news() {
            if stops {
                return;
            }
            shared.sleep(&shared.syncer_sleeps, || !has_news());
            continue;
        }
        let began = Instant::now();
        let there = || {
            fence(Ordering::SeqCst);
            wake(&shared.keeper_sleeps, keeper);
        };
        if let Err(error) = bring_to_disk(shared, front, &mut staging, there, |front| {
            trouble::check("journal.sync").and_then(|()| front.sync_data())
        }) {
            // The kernel may have thrown away what it could not write: a second try would report success for nothing.
            return shared
                .set_state(FAILED, format!("the journal could not be brought to the disk: {error}"));
        }
        (shared.wake)();
        if let Some(left) = SYNC_EVERY.checked_sub(began.elapsed()) {
            thread::sleep(left);
        }
    }
}

/// Brings what was written to the file and, by `disk`, to the disk. Then all of it is safe; and what the store had by then is free,
/// because the disk knows that, too: else whoever starts after a power cut might find new bytes where the last note that the disk
/// has promises old records. `there` is called when the file has it.
pub(super) fn bring_to_disk(
    shared: &Shared,
    front: &File,
    staging: &mut Staging,
    there: impl FnOnce(),
    disk: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    // Noted in the file before it is told here.
    let head = shared.head();
    let written = shared.written.load(Ordering::Acquire);
    // Not before what was written: it holds all that.
    let tail = shared.tail.load(Ordering::Acquire);
    trouble::check("journal.bring")?;
    staging.bring(tail)?;
    shared.there.store(tail, Ordering::Release);
    there();
    disk(front)?;
    if shared.has_failed() {
        // Of what failed meanwhile nothing is safe, wherever it lies.
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    // On the disk with the next sync, so it speaks of one group less than is there.
    trouble::check("journal.bring")?;
    front::note_synced(front, Place { position: 0, seq: written })?;
    shared.synced.store(written, Ordering::Release);
    shared.free.store(head, Ordering::Release);
    Ok(())
}

fn keep(shared: &Shared, files: Files, retention: Retention, is_synced: bool) {
    let Files { front, front_path, ring, start, mut store, cores, .. } = files;
    if let Some(cores) = cores {
        cores.apply();
    }
    let mut taker = Taker::new(&front, ring, start);
    let mut group = Vec::new();
    let mut next_look = Instant::now();
    let mut forget = |store: &mut Store| {
        if Instant::now() >= next_look {
            next_look = Instant::now() + RETAIN_EVERY;
            if !files::is_at(&front, &front_path).unwrap_or(false) {
                let words = format!("{} was moved or removed", front_path.display());
                return shared.fail(words);
            }
            match store.retain(retention) {
                // Whether there is room for what comes in, only what comes in can tell.
                Err(error) if !error.is_full() => give_up(shared, &error),
                _ => {}
            }
        }
    };
    loop {
        if shared.has_failed() {
            return;
        }
        let (stops, head) = (shared.stops(), taker.head());
        let there = || shared.there.load(Ordering::Acquire);
        if there() == head.position {
            if stops && shared.tail.load(Ordering::Acquire) == head.position {
                break;
            }
            if stops {
                // The sync thread brings the rest, or says that it cannot.
                thread::park_timeout(Duration::from_millis(1));
                continue;
            }
            forget(&mut store);
            shared.sleep(&shared.keeper_sleeps, || there() == head.position);
            continue;
        }
        let (few, gather) =
            if is_synced { (SYNCED_GROUP_BYTES.min(ring / 8), SYNCED_GATHER) } else { (ring / 8, GATHER) };
        if !stops && there() - head.position < few {
            thread::park_timeout(gather);
        }
        let tail = there();
        let most = if is_synced {
            ((tail - head.position) / SYNCED_GROUPS).clamp(SYNCED_GROUP_BYTES, GROUP_BYTES)
        } else {
            GROUP_BYTES
        };
        group.clear();
        let taken = taker.take(tail, most as usize, &mut group).map_err(StoreError::from);
        shared.at_store.store(1, Ordering::Relaxed);
        let outcome = taken.and_then(|place| store.append(&group, head.seq, place.seq).map(|()| place));
        shared.at_store.store(0, Ordering::Relaxed);
        if let Ok(place) = outcome
            && let Err(error) = trouble::check("journal.head").and_then(|()| front::note_head(&front, place))
        {
            // Not even a full disk is an excuse: the front has its blocks. And the group must not go into the store twice.
            return shared.fail(format!("the journal could not be written: {error}"));
        }
        match outcome {
            Ok(place) => {
                taker.advance(place);
                shared.tell_taken(place.position);
                if !is_synced {
                    shared.free.store(place.position, Ordering::Release);
                } else if shared.waits_for_sync(ring)
                    && let Some(syncer) = shared.syncer.get()
                {
                    fence(Ordering::SeqCst);
                    wake(&shared.syncer_sleeps, syncer);
                }
                if !shared.is_fine() {
                    shared.set_state(FINE, String::new());
                }
                group.shrink_to(2 * GROUP_BYTES as usize);
                forget(&mut store);
            }
            Err(error) => {
                give_up(shared, &error);
                if stops {
                    // The front keeps what is left for the next start.
                    return;
                }
                if error.is_full() {
                    thread::park_timeout(TRY_AGAIN);
                }
            }
        }
    }
    match store.close() {
        // All is in the store: the front is of no more use.
        Ok(()) => {
            if files::is_at(&front, &front_path).unwrap_or(false) {
                drop(std::fs::remove_file(front_path));
            }
        }
        Err(error) => give_up(shared, &error),
    }
}

fn give_up(shared: &Shared, error: &StoreError) {
    if error.is_full() {
        shared.set_state(FULL, format!("the disk is full: {error}"));
    } else {
        shared.set_state(FAILED, format!("the journal could not be written: {error}"));
    }
}
