//! The back of the journal: groups of records in an SQLite file, a row a group, or some where it is large.
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
use crate::base::ids::TaskId;
use crate::base::numbered::Numbered;
use crate::base::trouble;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const VERSION: u32 = 3;
/// The same without a number of the journal, which is 0 then.
const VERSION_BEFORE: u32 = 2;
/// Pages in the write-ahead log at which SQLite moves them into the file. Few, so that a move never holds a core for long:
/// where cores are few it is one that somebody else could use.
const CHECKPOINT_PAGES: u32 = 64;
/// Bytes of records in a row, unless one is longer: what SQLite copies at once should be memory that it has already. What
/// little retention leaves of neighbours becomes one row again.
const ROW_BYTES: usize = 64 << 10;
/// Rows looked at in one pass of retention, so that a pass never holds the keeper for long.
const RETAIN_ROWS: usize = 128;
/// Free pages given back to the file system per pass, once there are many more than pages in use: a busy swarm fills them
/// again at once.
const VACUUM_PAGES: u32 = 256;

/// What retention leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Ended tasks that are kept at most.
    pub tasks: u64,
    /// Events that are kept at most; as with tasks, up to a row of them more.
    pub events: u64,
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
    /// Which journal it is: drawn when the store was made, and repeated by every front of it. 0 where that was before there
    /// were numbers.
    pub journal: u64,
    /// Record before the first row.
    pub before: u64,
    /// Last record.
    pub last: u64,
    /// Highest number of a task that was accepted in this journal, forgotten ones included.
    pub highest: u64,
    /// The swarm ended in order, and no front is left.
    pub closed: bool,
}

/// A row, with the numbers of records in it.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    row: u64,
    last: u64,
    after: u64,
    /// Seconds since 1970.
    written: u64,
    /// Bytes of records.
    bytes: u64,
    /// Tasks that ended in it.
    ended: u64,
    /// Tasks that were accepted in it and have not ended, or have not for long.
    open: u64,
    /// Other tasks that were accepted in it.
    over: u64,
    /// Events about no task.
    events: u64,
    /// Records that are none of these.
    others: u64,
    /// Retention went through it; of tasks only open ones were left.
    thinned: bool,
}

impl Group {
    fn new(row: u64, head: &Head, written: u64) -> Self {
        let &Head { after, last, bytes } = head;
        Self { row, last, after, written, bytes, ..Self::default() }
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
    /// Goes after the connection that made it.
    log: NewLog,
    groups: VecDeque<Group>,
    mark: Mark,
    /// Tasks whose records are kept, with the row in which they were accepted: those that have not ended, and those of `late`.
    open: Numbered<u64>,
    /// Tasks that ended in a younger row than they were accepted in, oldest end first, with the row of the end: as long as that
    /// row is kept, so is what is older of them.
    late: VecDeque<(u64, TaskId)>,
    /// Ended tasks that the store still has.
    ended: u64,
    /// Events that it has.
    events: u64,
    row: Vec<u8>,
}

/// Name of the log, where there was none: SQLite makes an empty one to read as well. Whoever only looks leaves none behind.
#[derive(Debug)]
struct NewLog(Option<PathBuf>);

impl Drop for NewLog {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        if std::fs::metadata(path).is_ok_and(|log| log.len() == 0) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn wall_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Another one each time.
fn random_number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

fn encode_mark(mark: Mark) -> Vec<u8> {
    let mut bytes = Vec::new();
    let payload = [
        &VERSION.to_le_bytes()[..],
        &mark.before.to_le_bytes(),
        &[u8::from(mark.closed)],
        &mark.highest.to_le_bytes(),
    ];
    frame::encode(&mut bytes, mark.last, Kind::Mark, 0, mark.journal, &payload);
    bytes
}

fn decode_mark(bytes: &[u8]) -> Result<Mark, &'static str> {
    let frame = frame::decode(bytes)?;
    let mut reader = Reader(frame.payload);
    let (version, before, closed) = (reader.u32(), reader.u64(), reader.u8());
    match (frame.kind, version, before, closed) {
        (Kind::Mark, Some(VERSION | VERSION_BEFORE), Some(before), Some(closed)) => {
            // An earlier build did not say.
            let highest = reader.u64().unwrap_or(0);
            Ok(Mark { journal: frame.task, before, last: frame.seq, highest, closed: closed == 1 })
        }
        (Kind::Mark, Some(_), ..) => Err("it was written by another version"),
        _ => Err("it is no mark"),
    }
}

impl Store {
    /// Makes an empty store, under a temporary name until it is whole.
    pub fn create(path: &Path, before: u64, highest: u64) -> Result<(), StoreError> {
        let new = path.with_extension("new");
        for name in [new.clone(), with_suffix(&new, "-journal")] {
            match std::fs::remove_file(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            trouble::check("journal.create")?;
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            let db = Connection::open(&new)?;
            db.execute_batch(
                "PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA synchronous = FULL;
                 CREATE TABLE journal (row INTEGER PRIMARY KEY, written INTEGER NOT NULL, records BLOB NOT NULL);",
            )?;
            let mark = Mark { journal: random_number()?, before, last: before, highest, closed: true };
            trouble::check("journal.create")?;
            db.execute(
                "INSERT INTO journal VALUES (0, ?1, ?2)",
                params![wall_seconds() as i64, encode_mark(mark)],
            )?;
            db.close().map_err(|(_, error)| error)?;
        }
        trouble::check("journal.create")?;
        std::fs::rename(&new, path)?;
        super::front::sync_folder(path)?;
        Ok(())
    }

    /// Opens a store to look at. Reads no record yet, and changes no byte before it is [accepted](Self::accept): left to
    /// itself, SQLite takes its log over into the file when it closes it, and removes the log, with all that is wrong in it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let log = with_suffix(path, "-wal");
        let log = NewLog((!log.exists()).then_some(log));
        let db = Connection::open_with_flags(path, flags)?;
        // Before anything else, which may fail on a damaged file.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.set_prepared_statement_cache_capacity(16);
        // Alone with the file (the state directory is locked), so no index of the log is shared with anybody.
        db.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;
             PRAGMA mmap_size = 0; PRAGMA cache_size = -2048;",
        )?;
        // The first look at the file: whether it is one of SQLite's.
        db.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0))?;
        Ok(Self {
            db,
            log,
            groups: VecDeque::new(),
            mark: Mark::default(),
            open: Numbered::default(),
            late: VecDeque::new(),
            ended: 0,
            events: 0,
            row: Vec::new(),
        })
    }

    /// It is whole, and will be written.
    pub fn accept(&mut self) -> Result<(), StoreError> {
        self.log.0 = None;
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        // The empty transaction opens the log: later there may be no descriptor for it.
        let pragmas = format!(
            "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; BEGIN IMMEDIATE; COMMIT;"
        );
        Ok(self.db.execute_batch(&pragmas)?)
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
                if frame.kind == Kind::Accepted {
                    self.mark.highest = self.mark.highest.max(frame.task);
                }
                // Not through `self`, of which the rows still hold a part.
                let kept = (&mut self.open, &mut self.late);
                note(kept, &mut self.groups, (&mut self.ended, &mut self.events), &frame);
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

    /// Adds frames, one behind the other: the records behind `after` up to `last`. All of them or none.
    pub fn append(&mut self, frames: &[u8], after: u64, last: u64) -> Result<(), StoreError> {
        trouble::check("journal.commit")?;
        let mut mark = Mark { last, closed: false, ..self.mark };
        let written = wall_seconds();
        let mut row = std::mem::take(&mut self.row);
        let transaction = self.db.unchecked_transaction()?;
        let (mut added, mut rest, mut before) = (Vec::new(), frames, after);
        while !rest.is_empty() {
            let (mut end, mut until) = (0, before);
            while let Ok(frame) = frame::decode(&rest[end..])
                && (end == 0 || end + frame.bytes.len() <= ROW_BYTES)
            {
                (end, until) = (end + frame.bytes.len(), frame.seq);
                if frame.kind == Kind::Accepted {
                    mark.highest = mark.highest.max(frame.task);
                }
            }
            if end == 0 {
                return Err(io::Error::other("what shall be stored is no record").into());
            }
            let (records, behind) = rest.split_at(end);
            let head = Head { after: before, last: until, bytes: end as u64 };
            let group = Group::new(before + 1, &head, written);
            row.clear();
            head.encode(&mut row);
            row.extend_from_slice(records);
            transaction.prepare_cached("INSERT INTO journal VALUES (?1, ?2, ?3)")?.execute(params![
                group.row as i64,
                written as i64,
                row
            ])?;
            added.push((group, records));
            (rest, before) = (behind, until);
        }
        write_mark(&transaction, mark)?;
        // What was written so far is undone with the transaction.
        trouble::check("journal.commit")?;
        transaction.commit()?;
        (self.mark, self.row) = (mark, row);
        for (group, mut records) in added {
            self.groups.push_back(group);
            while let Ok(frame) = frame::decode(records) {
                let kept = (&mut self.open, &mut self.late);
                note(kept, &mut self.groups, (&mut self.ended, &mut self.events), &frame);
                records = &records[frame.bytes.len()..];
            }
        }
        Ok(())
    }

    /// Rows that there are.
    #[cfg(test)]
    pub fn rows(&self) -> usize {
        self.groups.len()
    }

    /// How many groups from the front on are beyond a limit: all that `count` finds in them is old, or `total` less that is
    /// still `most`. The newest group never is.
    fn groups_over(&self, age: Duration, most: u64, total: u64, count: impl Fn(&Group) -> u64) -> usize {
        let now = wall_seconds();
        let (mut left, mut over) = (total, 0);
        for (at, group) in self.groups.iter().enumerate().take(self.groups.len().saturating_sub(1)) {
            let here = count(group);
            left -= here;
            let is_old = now.saturating_sub(group.written) > age.as_secs();
            if here > 0 && !is_old && left < most {
                break;
            }
            if here > 0 {
                over = at + 1;
            }
        }
        over
    }

    /// Forgets ended tasks and events beyond the limits, oldest first, and never a task that has not ended. A bounded step, so
    /// that it never holds the keeper for long; what is left over is for the next call. Says whether something was done.
    ///
    /// Groups are gone through from the oldest on, and a task goes when the group of its end does: its beginning, which stands in
    /// the same group or in an older one, is never forgotten later than its end, nor while that is kept. What little is left of
    /// neighbours is put together, so that the number of rows follows what is kept and not what was written.
    pub fn retain(&mut self, retention: Retention) -> Result<bool, StoreError> {
        let tasks_over = self.groups_over(retention.age, retention.tasks, self.ended, |group| group.ended);
        let events_over =
            self.groups_over(retention.age, retention.events, self.events, |group| group.events);
        if tasks_over.max(events_over) == 0 {
            return Ok(false);
        }
        trouble::check("journal.retain")?;
        let boundary = self.groups.get(tasks_over).map_or(u64::MAX, |group| group.row);
        while let Some((_, task)) = self.late.pop_front_if(|(row, _)| *row < boundary) {
            release(&mut self.open, &mut self.groups, task);
        }
        // Before the first open task every record of a task is of an ended one: nothing needs to be read there.
        let all_ended = self.groups.iter().take_while(|group| group.open == 0).count();
        let transaction = self.db.unchecked_transaction()?;
        let (mut passed, mut done) = (0, 0);
        let mut after: Vec<Thinned> = Vec::new();
        for (at, group) in self.groups.iter().enumerate().take(tasks_over.max(events_over)) {
            let drops_ended = at < tasks_over && group.holds_ended();
            let drops_events = at < events_over && group.events > 0;
            if done == RETAIN_ROWS {
                break;
            }
            passed = at + 1;
            let is_touched = drops_ended || drops_events;
            let mut records = (is_touched || group.bytes == 0).then(Vec::new);
            let keeps_nothing = at < all_ended && drops_ended && (drops_events || group.events == 0);
            if let Some(records) = records.as_mut().filter(|_| is_touched && !keeps_nothing) {
                let row: Vec<u8> = transaction
                    .prepare_cached("SELECT records FROM journal WHERE row = ?1")?
                    .query_row([group.row as i64], |row| row.get(0))?;
                let mut rest = &row[..];
                while let Ok(frame) = frame::decode(rest) {
                    rest = &rest[frame.bytes.len()..];
                    let is_kept = match frame.kind {
                        Kind::Group => false,
                        Kind::Event => !drops_events,
                        _ => !drops_ended || self.open.get(TaskId(frame.task)).is_some(),
                    };
                    if is_kept {
                        records.extend_from_slice(frame.bytes);
                    }
                }
            }
            done += usize::from(is_touched);
            let group = Group { thinned: group.thinned || drops_ended, ..*group };
            match (after.last_mut(), records) {
                (Some(before), Some(records)) if before.takes(&records) => before.add(&group, &records),
                (_, records) => after.push(Thinned { group, records, rows: 1 }),
            }
        }
        // Rows in front that hold nothing any more go, and the mark moves behind them.
        let empty = after.iter().take_while(|thinned| thinned.is_empty()).count();
        let mut mark = self.mark;
        if let Some(last_empty) = empty.checked_sub(1).map(|at| after[at].group.last) {
            mark.before = last_empty;
            transaction
                .prepare_cached("DELETE FROM journal WHERE row > 0 AND row <= ?1")?
                .execute([last_empty as i64])?;
        }
        after.drain(..empty);
        for Thinned { group, records, rows } in &after {
            let Some(records) = records.as_ref().filter(|_| *rows > 1 || group.bytes > 0) else { continue };
            let head = Head { after: group.after, last: group.last, bytes: records.len() as u64 };
            let mut row = Vec::new();
            head.encode(&mut row);
            row.extend_from_slice(records);
            transaction
                .prepare_cached("UPDATE journal SET records = ?2, written = ?3 WHERE row = ?1")?
                .execute(params![group.row as i64, row, group.written as i64])?;
            if *rows > 1 {
                transaction
                    .prepare_cached("DELETE FROM journal WHERE row > ?1 AND row <= ?2")?
                    .execute([group.row as i64, group.last as i64])?;
            }
        }
        write_mark(&transaction, mark)?;
        transaction.commit()?;
        self.mark = mark;
        for group in self.groups.drain(..passed) {
            (self.ended, self.events) = (self.ended - group.ended, self.events - group.events);
        }
        for Thinned { group, records, .. } in after.into_iter().rev() {
            let group = match records {
                None => group,
                Some(records) => self.counted(group, &records),
            };
            (self.ended, self.events) = (self.ended + group.ended, self.events + group.events);
            self.groups.push_front(group);
        }
        self.give_back()?;
        Ok(true)
    }

    /// The group with its records counted again.
    fn counted(&mut self, group: Group, records: &[u8]) -> Group {
        let Group { row, last, after, written, thinned, .. } = group;
        let bytes = records.len() as u64;
        let mut group = Group { thinned, ..Group::new(row, &Head { after, last, bytes }, written) };
        let mut rest = records;
        while let Ok(frame) = frame::decode(rest) {
            rest = &rest[frame.bytes.len()..];
            match frame.kind {
                Kind::Accepted => match self.open.get_mut(TaskId(frame.task)) {
                    Some(at) => (*at, group.open) = (row, group.open + 1),
                    None => group.over += 1,
                },
                Kind::Ended => group.ended += 1,
                Kind::Event => group.events += 1,
                _ => group.others += 1,
            }
        }
        group
    }

    /// Gives free pages back to the file system, when there are many.
    fn give_back(&self) -> Result<(), StoreError> {
        let pragma = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, u32>(0));
        let (free, all) = (pragma("freelist_count")?, pragma("page_count")?);
        if free > all / 2 + VACUUM_PAGES {
            trouble::check("journal.retain")?;
            self.db.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES});"))?;
        }
        Ok(())
    }

    /// All is in here: nothing is missing from here on without a front.
    pub fn mark_closed(&self) -> Result<(), StoreError> {
        Ok(write_mark(&self.db, Mark { closed: true, ..self.mark })?)
    }

    /// Moves everything from the log into the file. SQLite itself tries that when it closes, and does not say whether it could.
    pub fn move_into_file(&self) -> Result<(), StoreError> {
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let (busy, left) =
            self.db.query_row(checkpoint, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        if (busy, left) != (0, 0) {
            return Err(io::Error::other(format!("{left} pages stay in its log")).into());
        }
        Ok(())
    }

    /// There is a front, and without it something may be missing.
    pub fn mark_open(&mut self) -> Result<(), StoreError> {
        self.mark.closed = false;
        Ok(write_mark(&self.db, self.mark)?)
    }

    /// The swarm ended in order.
    pub fn close(self) -> Result<(), StoreError> {
        trouble::check("journal.close")?;
        self.mark_closed()?;
        // Here the mark is in SQLite's log and not in the file.
        trouble::check("journal.close")?;
        self.db.close().map_err(|(_, error)| error)?;
        Ok(())
    }
}

fn write_mark(db: &Connection, mark: Mark) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE journal SET records = ?1 WHERE row = 0")?.execute([encode_mark(mark)]).map(drop)
}

/// The records of this task need not be kept any more.
fn release(open: &mut Numbered<u64>, groups: &mut VecDeque<Group>, task: TaskId) {
    let row = open.remove(task);
    open.trim();
    if let Some(row) = row
        && let Ok(at) = groups.binary_search_by_key(&row, |group| group.row)
    {
        groups[at].open -= 1;
        groups[at].over += 1;
    }
}

/// Keeps count of which tasks are open, and of what the newest group holds.
fn note(
    (open, late): (&mut Numbered<u64>, &mut VecDeque<(u64, TaskId)>),
    groups: &mut VecDeque<Group>,
    (ended, events): (&mut u64, &mut u64),
    frame: &Frame<'_>,
) {
    let Some(newest) = groups.back_mut() else { return };
    match frame.kind {
        Kind::Accepted => {
            let count =
                if open.push(TaskId(frame.task), newest.row) { &mut newest.open } else { &mut newest.over };
            *count += 1;
        }
        Kind::Ended => {
            newest.ended += 1;
            *ended += 1;
            let task = TaskId(frame.task);
            match open.get(task) {
                Some(&row) if row < newest.row => late.push_back((newest.row, task)),
                Some(_) => release(open, groups, task),
                None => {}
            }
        }
        Kind::Event => {
            newest.events += 1;
            *events += 1;
        }
        _ => newest.others += 1,
    }
}

/// A group that retention went through, and what is left of it; `None`: all.
struct Thinned {
    group: Group,
    records: Option<Vec<u8>>,
    rows: usize,
}

impl Thinned {
    fn is_empty(&self) -> bool {
        self.records.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether what is left of the next group may join it.
    fn takes(&self, next: &[u8]) -> bool {
        self.records.as_ref().is_some_and(|records| records.len() + next.len() <= ROW_BYTES)
    }

    fn add(&mut self, next: &Group, records: &[u8]) {
        (self.group.last, self.group.written) = (next.last, next.written);
        self.group.thinned &= next.thinned;
        self.records.get_or_insert_default().extend_from_slice(records);
        self.rows += 1;
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
