//! The back of the journal: groups of records in an SQLite file, one row a group.
//!
//! A row holds what gathered while the row before it was committed. Rows are written in order and read in order, so a group costs
//! little more than its bytes. SQLite brings transactions and a file that tools can open; it has no checksums, so
//! every record carries its own, a first frame in each row says which records the row holds and how many bytes they are,
//! and row 0 says which rows there are.
//!
//! Invariants
//! 1. Rows join: each says after which record it begins, and that is the last one of the row before.
//! 2. Row 0 changes in the transaction that changes what it speaks of.
//! 3. A row loses records only when their tasks have ended (retention); its first frame stays true.

use super::frame::{self, Frame, Kind, Reader};
use crate::base::trouble;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::time::Duration;

const VERSION: u32 = 1;
/// Pages in the write-ahead log at which SQLite moves them into the file.
const CHECKPOINT_PAGES: u32 = 4000;
/// Rows looked at in one pass of retention, so that a pass never holds the keeper for long.
const RETAIN_ROWS: usize = 256;
/// Free pages given back to the file system per pass.
const VACUUM_PAGES: u32 = 256;

/// What retention leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Ended tasks that are kept at most.
    pub tasks: u64,
    /// How long they are kept at most.
    pub age: Duration,
}

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own words.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The system's.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Whether space may come back, with nothing written and nothing lost.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Sqlite(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            StoreError::Io(error) => error.kind() == io::ErrorKind::StorageFull,
        }
    }
}

/// What is wrong with a store, and where.
#[derive(Debug)]
pub struct Bad {
    /// The place, in words.
    pub place: String,
    /// What is there.
    pub what: String,
}

/// What row 0 says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Record before the first row.
    pub before: u64,
    /// Last record.
    pub last: u64,
    /// The swarm ended in order, and no front is left.
    pub closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    row: u64,
    last: u64,
    after: u64,
    /// Seconds since 1970.
    written: u64,
    /// Bytes of records in it.
    bytes: u64,
    /// Tasks that ended in it, as far as it still says so.
    ended: u64,
    /// Tasks that were accepted in it, are still in it, and have ended.
    over: u64,
    /// Records in it that are neither.
    others: u64,
    /// Retention went through it; only open tasks were left.
    thinned: bool,
}

impl Group {
    fn new(row: u64, head: &Head, written: u64) -> Self {
        let &Head { after, last, bytes } = head;
        Self { row, last, after, written, bytes, ended: 0, over: 0, others: 0, thinned: false }
    }

    /// Whether it may hold a record of a task that has ended.
    fn holds_ended(&self) -> bool {
        self.bytes > 0 && (!self.thinned || self.ended + self.over + self.others > 0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    groups: VecDeque<Group>,
    mark: Mark,
    /// Tasks that have not ended, with the row in which they were accepted.
    open: HashMap<u64, u64>,
    /// Ended tasks that the store still has.
    ended: u64,
    row: Vec<u8>,
}

fn wall_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn encode_mark(mark: Mark) -> Vec<u8> {
    let mut bytes = Vec::new();
    let payload = [&VERSION.to_le_bytes()[..], &mark.before.to_le_bytes(), &[u8::from(mark.closed)]];
    frame::encode(&mut bytes, mark.last, Kind::Mark, 0, 0, &payload);
    bytes
}

fn decode_mark(bytes: &[u8]) -> Result<Mark, &'static str> {
    let frame = frame::decode(bytes)?;
    let mut reader = Reader(frame.payload);
    let (version, before, closed) = (reader.u32(), reader.u64(), reader.u8());
    match (frame.kind, version, before, closed) {
        (Kind::Mark, Some(VERSION), Some(before), Some(closed)) => {
            Ok(Mark { before, last: frame.seq, closed: closed == 1 })
        }
        (Kind::Mark, Some(_), ..) => Err("it was written by another version"),
        _ => Err("it is no mark"),
    }
}

impl Store {
    /// Makes an empty store, under a temporary name until it is whole.
    pub fn create(path: &Path, before: u64) -> Result<(), StoreError> {
        let new = path.with_extension("new");
        for name in [new.clone(), with_suffix(&new, "-journal")] {
            match std::fs::remove_file(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            let db = Connection::open(&new)?;
            db.execute_batch(
                "PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA synchronous = FULL;
                 CREATE TABLE journal (row INTEGER PRIMARY KEY, written INTEGER NOT NULL, records BLOB NOT NULL);",
            )?;
            let mark = Mark { before, last: before, closed: true };
            db.execute(
                "INSERT INTO journal VALUES (0, ?1, ?2)",
                params![wall_seconds() as i64, encode_mark(mark)],
            )?;
            db.close().map_err(|(_, error)| error)?;
        }
        std::fs::rename(&new, path)?;
        super::front::sync_folder(path)?;
        Ok(())
    }

    /// Opens a store. Reads no record yet.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.set_prepared_statement_cache_capacity(16);
        // Alone with the file (the state directory is locked), so no index of the log is shared with anybody.
        db.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;
             PRAGMA mmap_size = 0; PRAGMA cache_size = -2048; PRAGMA journal_mode = WAL;",
        )?;
        db.execute_batch(&format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};"))?;
        let row = Vec::new();
        Ok(Self { db, groups: VecDeque::new(), mark: Mark::default(), open: HashMap::new(), ended: 0, row })
    }

    /// Whether each commit waits for the disk. Else only the moves from the log into the file do, so that the file stays whole
    /// in a power cut, if not complete.
    pub fn set_synced(&self, synced: bool) -> Result<(), StoreError> {
        let level = if synced { "FULL" } else { "NORMAL" };
        Ok(self.db.execute_batch(&format!("PRAGMA synchronous = {level};"))?)
    }

    /// What row 0 says.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Reads all records in order. Ends at the end, or where something is wrong; says where that is.
    pub fn load(&mut self, mut visit: impl FnMut(Frame<'_>)) -> Result<(), Bad> {
        let bad = |place: String, what: String| Err(Bad { place, what });
        let first = self
            .db
            .query_row("SELECT records FROM journal WHERE row = 0", [], |row| row.get::<_, Vec<u8>>(0));
        self.mark = match first.optional() {
            Ok(Some(bytes)) => match decode_mark(&bytes) {
                Ok(mark) => mark,
                Err(what) => return bad("row 0".to_owned(), what.to_owned()),
            },
            Ok(None) => return bad("row 0".to_owned(), "it is not there".to_owned()),
            Err(error) => return bad("row 0".to_owned(), error.to_string()),
        };
        let mut statement =
            match self.db.prepare("SELECT row, written, records FROM journal WHERE row > 0 ORDER BY row") {
                Ok(statement) => statement,
                Err(error) => return bad("its schema".to_owned(), error.to_string()),
            };
        let mut last = self.mark.before;
        let mut rows = match statement.query([]) {
            Ok(rows) => rows,
            Err(error) => return bad("its rows".to_owned(), error.to_string()),
        };
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => return bad(format!("behind record {last}"), error.to_string()),
            };
            let fields = row.get::<_, i64>(0).and_then(|number| {
                Ok((number, row.get::<_, i64>(1)?, row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?))
            });
            let (number, written, bytes) = match fields {
                Ok(fields) => fields,
                Err(error) => return bad(format!("behind record {last}"), error.to_string()),
            };
            let at = |offset: usize| format!("row {number}, offset {offset}");
            let (head, end) =
                match frame::decode(bytes).and_then(|head| decode_head(head).map(|end| (head, end))) {
                    Ok(found) => found,
                    Err(what) => return bad(at(0), what.to_owned()),
                };
            let group = Group::new(number as u64, &end, u64::try_from(written).unwrap_or(0));
            if group.after != last
                || group.row != group.after + 1
                || group.bytes != (bytes.len() - head.bytes.len()) as u64
            {
                return bad(at(0), "the row does not join the one before it, or was cut".to_owned());
            }
            let (mut offset, mut seq) = (head.bytes.len(), group.after);
            self.groups.push_back(group);
            while offset < bytes.len() {
                let frame = match frame::decode(&bytes[offset..]) {
                    Ok(frame) => frame,
                    Err(what) => return bad(at(offset), what.to_owned()),
                };
                if frame.seq <= seq || frame.seq > group.last {
                    return bad(at(offset), "a record has the wrong number".to_owned());
                }
                seq = frame.seq;
                note(&mut self.open, &mut self.groups, &mut self.ended, &frame);
                visit(frame);
                offset += frame.bytes.len();
            }
            last = group.last;
        }
        if last != self.mark.last {
            return bad(
                format!("behind record {last}"),
                format!("records up to {} belong here", self.mark.last),
            );
        }
        Ok(())
    }

    /// Adds a group: frames one behind the other, the records behind `after` up to `last`.
    pub fn append(&mut self, frames: &[u8], after: u64, last: u64) -> Result<(), StoreError> {
        trouble::check("journal.commit")?;
        let mark = Mark { last, closed: false, ..self.mark };
        let written = wall_seconds();
        let head = Head { after, last, bytes: frames.len() as u64 };
        let group = Group::new(after + 1, &head, written);
        self.row.clear();
        head.encode(&mut self.row);
        self.row.extend_from_slice(frames);
        let transaction = self.db.unchecked_transaction()?;
        transaction.prepare_cached("INSERT INTO journal VALUES (?1, ?2, ?3)")?.execute(params![
            group.row as i64,
            written as i64,
            self.row
        ])?;
        write_mark(&transaction, mark)?;
        transaction.commit()?;
        self.mark = mark;
        self.groups.push_back(group);
        let mut rest = frames;
        while let Ok(frame) = frame::decode(rest) {
            note(&mut self.open, &mut self.groups, &mut self.ended, &frame);
            rest = &rest[frame.bytes.len()..];
        }
        Ok(())
    }

    /// How many groups from the front on are beyond the limits. The newest one never is.
    fn groups_over(&self, retention: Retention) -> usize {
        let now = wall_seconds();
        let mut left = self.ended;
        let mut over = 0;
        for (at, group) in self.groups.iter().enumerate().take(self.groups.len().saturating_sub(1)) {
            left -= group.ended;
            let is_old = now.saturating_sub(group.written) > retention.age.as_secs();
            if group.ended > 0 && !is_old && left < retention.tasks {
                break;
            }
            if group.ended > 0 {
                over = at + 1;
            }
        }
        over
    }

    /// Forgets ended tasks beyond the limits, oldest first, and never one that has not ended. A bounded step, so that it never
    /// holds the keeper for long; what is left over is for the next call. Says whether something was done.
    ///
    /// Groups are gone through from the oldest on: the end of a task is never forgotten before its beginning, which
    /// stands in the same group or in an older one.
    pub fn retain(&mut self, retention: Retention) -> Result<bool, StoreError> {
        let over = self.groups_over(retention);
        if over == 0 {
            return Ok(false);
        }
        let transaction = self.db.unchecked_transaction()?;
        let mut thinned: Vec<(usize, Group)> = Vec::new();
        for (at, group) in self.groups.iter().enumerate().take(over).filter(|(_, group)| group.holds_ended())
        {
            if thinned.len() == RETAIN_ROWS {
                break;
            }
            let records: Vec<u8> = transaction
                .prepare_cached("SELECT records FROM journal WHERE row = ?1")?
                .query_row([group.row as i64], |row| row.get(0))?;
            let (mut kept, mut others) = (Vec::new(), 0);
            let mut rest = &records[..];
            while let Ok(frame) = frame::decode(rest) {
                rest = &rest[frame.bytes.len()..];
                if frame.kind != Kind::Group && self.open.contains_key(&frame.task) {
                    kept.extend_from_slice(frame.bytes);
                    others += u64::from(frame.kind != Kind::Accepted);
                }
            }
            let head = Head { after: group.after, last: group.last, bytes: kept.len() as u64 };
            let mut row = Vec::new();
            head.encode(&mut row);
            row.extend_from_slice(&kept);
            transaction
                .prepare_cached("UPDATE journal SET records = ?2 WHERE row = ?1")?
                .execute(params![group.row as i64, row])?;
            thinned
                .push((at, Group { others, thinned: true, ..Group::new(group.row, &head, group.written) }));
        }
        // Rows in front that hold nothing any more go, and the mark moves behind them.
        let is_empty = |at: usize| {
            let later = thinned.iter().find(|(place, _)| *place == at).map(|(_, group)| group.bytes);
            later.unwrap_or(self.groups[at].bytes) == 0
        };
        let empty = (0..self.groups.len() - 1).take_while(|&at| is_empty(at)).count();
        let mut mark = self.mark;
        if let Some(last_empty) = empty.checked_sub(1).map(|at| self.groups[at]) {
            mark.before = last_empty.last;
            transaction
                .prepare_cached("DELETE FROM journal WHERE row > 0 AND row <= ?1")?
                .execute([last_empty.row as i64])?;
        }
        write_mark(&transaction, mark)?;
        transaction.commit()?;
        self.mark = mark;
        for (at, group) in thinned {
            self.ended -= self.groups[at].ended;
            self.groups[at] = group;
        }
        self.groups.drain(..empty);
        self.db.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES});"))?;
        Ok(true)
    }

    /// The swarm ended in order: nothing is missing from here on without a front.
    pub fn close(self) -> Result<(), StoreError> {
        write_mark(&self.db, Mark { closed: true, ..self.mark })?;
        self.db.close().map_err(|(_, error)| error)?;
        Ok(())
    }
}

fn write_mark(db: &Connection, mark: Mark) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE journal SET records = ?1 WHERE row = 0")?.execute([encode_mark(mark)]).map(drop)
}

/// Keeps count of which tasks are open, and of what the newest group holds.
fn note(open: &mut HashMap<u64, u64>, groups: &mut VecDeque<Group>, ended: &mut u64, frame: &Frame<'_>) {
    let Some(newest) = groups.back_mut() else { return };
    match frame.kind {
        Kind::Accepted => drop(open.insert(frame.task, newest.row)),
        Kind::Ended => {
            newest.ended += 1;
            *ended += 1;
            if let Some(row) = open.remove(&frame.task)
                && let Ok(at) = groups.binary_search_by_key(&row, |group| group.row)
            {
                groups[at].over += 1;
            }
        }
        _ => newest.others += 1,
    }
}

struct Head {
    after: u64,
    last: u64,
    bytes: u64,
}

impl Head {
    fn encode(&self, out: &mut Vec<u8>) {
        let payload = [&self.after.to_le_bytes()[..], &self.bytes.to_le_bytes()];
        frame::encode(out, self.last, Kind::Group, 0, 0, &payload);
    }
}

fn decode_head(frame: Frame<'_>) -> Result<Head, &'static str> {
    let mut reader = Reader(frame.payload);
    match (frame.kind, reader.u64(), reader.u64()) {
        (Kind::Group, Some(after), Some(bytes)) => Ok(Head { after, last: frame.seq, bytes }),
        _ => Err("it does not begin as a group of records"),
    }
}

/// `path` with something behind its name.
pub fn with_suffix(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
