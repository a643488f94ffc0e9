//! The journal against kills, cuts, flipped bits and its own retention.

use super::*;
use crate::base::prng::SplitMix64;
use std::cell::RefCell;

type Record = (u64, Kind, u32, u64, Vec<u8>);

const KEEP: Retention = Retention { tasks: u64::MAX, events: u64::MAX, age: Duration::from_secs(1 << 40) };
const OPTIONS: Options =
    Options { synced: false, retention: KEEP, salvage: false, ring: 1 << 16, elsewhere: None, run: 7 };

fn owned(frame: Frame<'_>) -> Record {
    (frame.seq, frame.kind, frame.value, frame.task, frame.payload.to_vec())
}

fn open(folder: &Path, options: Options) -> Result<(Journal, Vec<Record>, Found), JournalError> {
    let mut records = Vec::new();
    let visit = |frame: Frame<'_>| {
        records.push(owned(frame));
        true
    };
    let (journal, found) = Journal::open(folder, options, Box::new(|| {}), visit)?;
    Ok((journal, records, found))
}

/// A folder in memory: these tests open and close thousands of journals, and no disk has to hear of it.
fn quick_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("shared memory")
}

/// A task's life: accepted, dispatched, ended.
fn live(journal: &mut Journal, task: u64, ends: bool) {
    journal.write(Kind::Accepted, 0, task, &vec![task as u8; (task * 13 % 90) as usize]);
    journal.write(Kind::Dispatched, 1, task, &7u64.to_le_bytes());
    if ends {
        journal.write(Kind::Ended, 1, task, b"result");
    }
}

fn drain(journal: &Journal) {
    let began = std::time::Instant::now();
    while journal.backlog_bytes() > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", journal.trouble());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Copies the files as a kill would leave them: what goes into the store later is in the front.
fn copy(from: &Path, to: &Path) {
    for name in ["journal.front", "journal.db", "journal.db-wal"] {
        match std::fs::read(from.join(name)) {
            Ok(bytes) => std::fs::write(to.join(name), bytes).expect("written"),
            Err(_) => drop(std::fs::remove_file(to.join(name))),
        }
    }
}

/// A small journal with some groups in the store and some records in the front only, as a rule: on a busy host the keeper
/// may be quicker than the copy. With its records.
fn small(folder: &Path) -> Vec<Record> {
    let inside = folder.join("inside");
    std::fs::create_dir(&inside).expect("folder");
    let (mut journal, none, _) = open(&inside, Options { ring: 4096, ..OPTIONS }).expect("new");
    assert!(none.is_empty());
    for task in 1..=3 {
        live(&mut journal, task, task != 2);
        drain(&journal);
    }
    live(&mut journal, 4, true);
    copy(&inside, folder);
    drop(journal);
    let (_, records, _) = open(&inside, OPTIONS).expect("closed well");
    assert_eq!(records.len(), 11);
    records
}

/// The bytes of all files.
fn bytes_of(folder: &Path) -> [Option<Vec<u8>>; 3] {
    ["journal.front", "journal.db", "journal.db-wal"].map(|name| std::fs::read(folder.join(name)).ok())
}

/// What is there after a change to one file: all of it, or a part from the beginning and words about the rest. Whoever looks
/// changes nothing.
fn look(folder: &Path, whole: &[Record], what: &str) -> bool {
    let mut seen = 0;
    let before = bytes_of(folder);
    let outcome = survey(&Paths::new(folder), |frame| {
        assert_eq!(Some(&owned(frame)), whole.get(seen), "invented or out of order: {what}");
        seen += 1;
    });
    let outcome = outcome.map(|survey| survey.damage);
    assert!(bytes_of(folder) == before, "the look has changed something: {what}");
    match outcome {
        Ok(None) => {
            assert_eq!(seen, whole.len(), "records are missing in silence: {what}");
            true
        }
        Ok(Some(damage @ JournalError::Damaged { .. })) | Err(damage @ JournalError::Damaged { .. }) => {
            assert!(damage.to_string().contains("journal."), "{damage}");
            false
        }
        Ok(Some(error)) | Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn what_was_written_is_there_again() {
    let folder = tempfile::tempdir().expect("folder");
    let mut expected = Vec::new();
    for life in 0..4u64 {
        let (mut journal, records, _) = open(folder.path(), OPTIONS).expect("opened");
        assert_eq!(records, expected, "life {life}");
        for task in life * 1000..life * 1000 + 700 {
            live(&mut journal, task, task % 3 > 0);
        }
        drop(journal);
        let survey = survey(&Paths::new(folder.path()), |frame| {
            if frame.seq > expected.last().map_or(0, |record: &Record| record.0) {
                expected.push(owned(frame));
            }
        });
        assert!(survey.expect("readable").damage.is_none());
        assert!(!folder.path().join("journal.front").exists(), "it ended in order");
    }
}

#[test]
fn a_kill_at_any_moment_leaves_all_that_was_written() {
    let folder = tempfile::tempdir().expect("folder");
    let (inside, copied) = (folder.path().join("inside"), folder.path().join("copied"));
    std::fs::create_dir(&inside).expect("folder");
    std::fs::create_dir(&copied).expect("folder");
    let (mut journal, ..) = open(&inside, OPTIONS).expect("new");
    let mut written = 0;
    let seed = 7;
    println!("seed {seed}");
    let mut random = SplitMix64::new(seed);
    for task in 1..1500 {
        live(&mut journal, task, task % 5 > 0);
        written += if task % 5 > 0 { 3 } else { 2 };
        if random.next_u64().is_multiple_of(97) {
            let safe = journal.safe();
            copy(&inside, &copied);
            let (next, records, _) = open(&copied, OPTIONS).expect("no damage");
            let numbers: Vec<u64> = records.iter().map(|record| record.0).collect();
            assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
            assert!(
                safe <= numbers.len() as u64 && numbers.len() as u64 <= written,
                "{safe} {}",
                numbers.len()
            );
            drop(next);
        }
        if random.next_u64().is_multiple_of(11) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_cut_at_any_byte_is_noticed_or_costs_nothing() {
    let folder = quick_folder();
    let whole = small(folder.path());
    let place = folder.path().join("cut");
    std::fs::create_dir(&place).expect("folder");
    copy(folder.path(), &place);
    assert!(look(&place, &whole, "nothing was cut"));
    for name in ["journal.front", "journal.db", "journal.db-wal"] {
        let bytes = std::fs::read(folder.path().join(name)).expect("there");
        let mut noticed = 0;
        for end in 0..bytes.len() {
            copy(folder.path(), &place);
            std::fs::write(place.join(name), &bytes[..end]).expect("written");
            noticed += usize::from(!look(&place, &whole, &format!("{name} cut at {end}")));
        }
        println!("{name}: {noticed} of {} cuts were damage", bytes.len());
        assert!(noticed > bytes.len() / 4, "{name}: {noticed} of {}", bytes.len());
    }
}

#[test]
fn flipped_bits_are_noticed_or_cost_nothing() {
    let folder = quick_folder();
    let whole = small(folder.path());
    let place = folder.path().join("flipped");
    std::fs::create_dir(&place).expect("folder");
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |now| now.as_nanos() as u64);
    println!("seed {seed}");
    let mut random = SplitMix64::new(seed);
    for name in ["journal.front", "journal.db", "journal.db-wal"] {
        let bytes = std::fs::read(folder.path().join(name)).expect("there");
        let mut noticed = 0;
        for _ in 0..3000 {
            let mut copied = bytes.clone();
            let flips = 1 + random.next_u64() % 3;
            let mut at = Vec::new();
            for _ in 0..flips {
                let bit = (random.next_u64() % (bytes.len() as u64 * 8)) as usize;
                copied[bit / 8] ^= 1 << (bit % 8);
                at.push(bit);
            }
            copy(folder.path(), &place);
            std::fs::write(place.join(name), &copied).expect("written");
            noticed += usize::from(!look(&place, &whole, &format!("{name} bits {at:?} seed {seed}")));
        }
        println!("{name}: {noticed} of 3000 were damage");
        assert!(noticed > 10, "{name}: {noticed}");
    }
}

#[test]
fn a_file_that_is_missing_is_noticed() {
    let folder = tempfile::tempdir().expect("folder");
    let whole = small(folder.path());
    let place = folder.path().join("less");
    std::fs::create_dir(&place).expect("folder");
    for name in ["journal.front", "journal.db", "journal.db-wal"] {
        copy(folder.path(), &place);
        std::fs::remove_file(place.join(name)).expect("there");
        assert!(!look(&place, &whole, name), "{name}");
    }
    // Nor has the store to have anything of this life before the front is missed.
    let (journal, ..) = open(&folder.path().join("inside"), OPTIONS).expect("closed well");
    copy(&folder.path().join("inside"), &place);
    drop(journal);
    std::fs::remove_file(place.join("journal.front")).expect("there");
    assert!(!look(&place, &whole, "a front of a life that has just begun"));
}

#[test]
fn what_found_no_room_until_the_end_is_there_in_the_next_life() {
    let folder = quick_folder();
    let (mut journal, ..) = open(folder.path(), Options { ring: 4096, ..OPTIONS }).expect("new");
    for task in 0..5000 {
        journal.write(Kind::Accepted, 0, task, b"more than the ring has room for");
    }
    assert!(!journal.waiting.is_empty(), "else this shows nothing");
    journal.close();
    assert!(journal.is_fine(), "{:?}", journal.trouble());
    drop(journal);
    assert_eq!(open(folder.path(), OPTIONS).expect("closed well").1.len(), 5000);
}

/// Files of one journal beside files of another: with more records, or with fewer, or with as many.
#[test]
fn a_file_of_another_journal_is_noticed() {
    let folder = quick_folder();
    let place = |name: &str| {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).expect("folder");
        place
    };
    let [one, same, more] = ["one", "same", "more"].map(place);
    let whole = small(&one);
    small(&same);
    let (mut journal, ..) = open(&place("inside"), OPTIONS).expect("new");
    (10..40).for_each(|task| live(&mut journal, task, true));
    drain(&journal);
    copy(&folder.path().join("inside"), &more);
    drop(journal);
    let mixed = place("mixed");
    for (other, what) in [(&same, "as many records"), (&more, "more records")] {
        for names in [&["journal.front"][..], &["journal.db", "journal.db-wal"]] {
            for (ours, theirs) in [(&one, other), (other, &one)] {
                copy(ours, &mixed);
                for name in names {
                    std::fs::copy(theirs.join(name), mixed.join(name)).expect("copied");
                }
                let before = bytes_of(&mixed);
                let refused = open(&mixed, OPTIONS).expect_err(what).to_string();
                assert!(refused.contains("belongs to another journal than"), "{what}, {names:?}: {refused}");
                assert!(bytes_of(&mixed) == before, "{what}, {names:?}: changed");
            }
        }
    }
    copy(&one, &mixed);
    assert!(look(&mixed, &whole, "put right"));
}

/// What a build left that gave journals no number goes on, and goes on without one.
#[test]
fn a_journal_of_the_version_before_goes_on() {
    let folder = quick_folder();
    let whole = small(folder.path());
    let paths = Paths::new(folder.path());
    let db = rusqlite::Connection::open(&paths.store).expect("opened");
    let mark: Vec<u8> =
        db.query_row("SELECT records FROM journal WHERE row = 0", [], |row| row.get(0)).expect("a mark");
    let (mut old, mark) = (Vec::new(), frame::decode(&mark).expect("whole"));
    frame::encode(&mut old, mark.seq, Kind::Mark, 0, 0, &[&2u32.to_le_bytes(), &mark.payload[4..]]);
    db.execute("UPDATE journal SET records = ?1 WHERE row = 0", [&old]).expect("written");
    drop(db);
    let mut front = std::fs::read(&paths.front).expect("there");
    let (mut old, head) = (Vec::new(), frame::decode(&front).expect("whole"));
    let boot = boot_id();
    let payload = [&2u32.to_le_bytes()[..], &head.payload[4..12], boot.as_bytes()];
    frame::encode(&mut old, head.seq, Kind::Front, head.value, 0, &payload);
    front[..old.len()].copy_from_slice(&old);
    std::fs::write(&paths.front, front).expect("written");
    let (mut journal, records, _) = open(folder.path(), OPTIONS).expect("understood");
    assert_eq!(records, whole);
    live(&mut journal, 9, true);
    drop(journal);
    assert_eq!(open(folder.path(), OPTIONS).expect("ours").1.len(), whole.len() + 3);
    assert_eq!(loaded(folder.path()).0.mark().journal, 0);
}

#[test]
fn an_older_front_is_noticed_where_the_store_went_on() {
    let folder = quick_folder();
    let [inside, older, now] = ["inside", "older", "now"].map(|name| {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).expect("folder");
        place
    });
    let (mut journal, ..) = open(&inside, OPTIONS).expect("new");
    live(&mut journal, 1, false);
    copy(&inside, &older);
    live(&mut journal, 2, true);
    drain(&journal);
    live(&mut journal, 3, true);
    copy(&inside, &now);
    drop(journal);
    let newest = std::fs::read(now.join("journal.front")).expect("there");
    std::fs::copy(older.join("journal.front"), now.join("journal.front")).expect("copied");
    let refused = open(&now, OPTIONS).expect_err("an older front").to_string();
    assert!(refused.contains("the whole file: it ends with record 2, and the store"), "{refused}");
    std::fs::write(now.join("journal.front"), newest).expect("put right");
    assert_eq!(open(&now, OPTIONS).expect("whole").1.len(), 8);
}

#[test]
fn a_damaged_journal_is_refused_and_salvaged_when_asked() {
    let (folder, mut journal, records, found) = (0..100)
        .find_map(|_| {
            let folder = quick_folder();
            let whole = small(folder.path());
            let front = folder.path().join("journal.front");
            let mut bytes = std::fs::read(&front).expect("there");
            let last = bytes.iter().rposition(|byte| *byte != 0).expect("records");
            bytes[last] ^= 1;
            std::fs::write(&front, &bytes).expect("written");
            // Where the front knows that the store has all of them, the damage costs nothing.
            let refused = open(folder.path(), OPTIONS).err()?.to_string();
            assert!(refused.contains("journal.front, offset ") && refused.contains("checksum"), "{refused}");
            assert_eq!(std::fs::read(&front).expect("there"), bytes, "nothing was touched");
            let again = open(folder.path(), OPTIONS).expect_err("as before").to_string();
            assert_eq!(again, refused, "nothing was lost by looking");
            let (journal, records, found) =
                open(folder.path(), Options { salvage: true, ..OPTIONS }).expect("as asked");
            assert!(whole.starts_with(&records), "{records:?}");
            // Where the store has them and the front does not know, nothing is lost.
            (records.len() < whole.len()).then_some((folder, journal, records, found))
        })
        .expect("a copy with records in the front only");
    assert!(found.notes.iter().any(|note| note.contains("journal.front.damaged-")), "{:?}", found.notes);
    live(&mut journal, 50, true);
    drop(journal);
    let (_, again, found) = open(folder.path(), OPTIONS).expect("whole again");
    assert!(again.starts_with(&records) && again.len() == records.len() + 3 && found.notes.is_empty());
}

#[test]
fn what_cannot_be_understood_is_refused_and_stays() {
    let folder = quick_folder();
    let whole = small(folder.path());
    let before = bytes_of(folder.path());
    let open = |salvage| {
        let mut understood = 0;
        let visit = |frame: Frame<'_>| {
            understood += u64::from(frame.seq < 5);
            frame.seq != 5
        };
        let options = Options { salvage, ..OPTIONS };
        let outcome = Journal::open(folder.path(), options, Box::new(|| {}), visit);
        (outcome.map(|(journal, found)| (journal.written(), found)), understood)
    };
    for _ in 0..2 {
        let (refused, understood) = open(false);
        let words = refused.expect_err("it is of another version").to_string();
        assert!(
            words.contains("record 5: it cannot be understood") && words.contains("; 4 records"),
            "{words}"
        );
        assert_eq!((understood, bytes_of(folder.path()) == before), (4, true));
    }
    let (salvaged, _) = open(true);
    let (written, found) = salvaged.expect("as asked");
    assert!(written == 4 && found.notes.iter().any(|note| note.contains(".damaged-")), "{found:?}");
    let (_, records, _) = self::open(folder.path(), OPTIONS).expect("whole again");
    assert_eq!(records[..], whole[..4]);
}

#[test]
fn what_a_restarted_host_lost_is_said_aloud() {
    for synced in [false, true] {
        let folder = tempfile::tempdir().expect("folder");
        let (mut journal, ..) = open(folder.path(), Options { synced, ..OPTIONS }).expect("new");
        live(&mut journal, 1, true);
        drain(&journal);
        while journal.safe() < journal.written() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let place = tempfile::tempdir().expect("folder");
        copy(folder.path(), place.path());
        // A front of another run of the host, whose ring never reached the disk: the ids have one length.
        let path = place.path().join("journal.front");
        let journal = loaded(place.path()).0.mark().journal;
        let other = Identity { journal, runs: vec![7], boot: "another-run".to_owned(), synced };
        let (mut front, file, staging) = Front::create(&path, 1 << 16, &other, 3).expect("made");
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, 4, Kind::Accepted, 0, 2, &[b"lost"]);
        assert!(front.append(&bytes, 0, &mut Vec::new()));
        if let Some(mut staging) = staging {
            staging.bring(front.tail()).expect("written");
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 8], 4096).expect("written");
        let (_, records, found) = open(place.path(), OPTIONS).expect("no damage");
        assert_eq!(records.len(), 3);
        assert_eq!(
            found.notes.iter().any(|note| note.contains("host was restarted")),
            !synced,
            "{:?}",
            found.notes
        );
    }
}

/// What a start finds after a power cut that left some of the blocks that were written since the disk was last asked, and not
/// others: the last record. The store's own files have what was committed.
fn after_a_power_cut(folder: &Path, disk: &[u8], luck: &mut SplitMix64) -> Result<u64, JournalError> {
    let now = std::fs::read(folder.join("journal.front")).expect("readable");
    let block = [512, 4096][luck.below(2) as usize];
    let mut left = disk.to_vec();
    for (left, now) in left.chunks_mut(block).zip(now.chunks(block)) {
        if luck.below(2) == 0 {
            left.copy_from_slice(now);
        }
    }
    let place = quick_folder();
    copy(folder, place.path());
    std::fs::write(place.path().join("journal.front"), left).expect("written");
    let mut seen = 0;
    let survey = survey(&Paths::new(place.path()), |frame| {
        seen = frame.seq;
        assert_eq!(frame.task, frame.seq, "invented");
    });
    survey?.damage.map_or(Ok(seen), Err)
}

/// The ring goes round several times, brought to the disk by what the sync thread does, and taken over by a store as the keeper
/// does it.
#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    const RING: u64 = 1 << 14;
    let folder = quick_folder();
    let path = folder.path().join("journal.front");
    drop(open(folder.path(), Options { synced: true, ..OPTIONS }).expect("new"));
    let mut luck = SplitMix64::new(0xC07);
    let (mut shortened, mut rounds) = (0, 0);
    for _ in 0..20 {
        let mut store = loaded(folder.path()).0;
        let Mark { journal, last: before, .. } = store.mark();
        let identity = Identity { journal, runs: vec![7], boot: "another-run".to_owned(), synced: true };
        let (mut front, file, staging) = Front::create(&path, RING, &identity, before).expect("made");
        store.mark_open().expect("marked");
        let mut staging = staging.expect("a synced one");
        let mut taker = front::Taker::new(&file, RING, Place { position: 0, seq: before });
        let shared = Shared::new(before, Box::new(|| {}));
        let (mut last, mut bytes) = (before, Vec::new());
        let mut disk = std::fs::read(&path).expect("readable");
        let mut outage = |disk: &[u8], last: u64, acknowledged: u64| {
            let seen = after_a_power_cut(folder.path(), disk, &mut luck);
            let seen =
                seen.unwrap_or_else(|damage| panic!("{damage} with {last}, {acknowledged} acknowledged"));
            assert!(acknowledged <= seen && seen <= last, "{seen} of {last}, {acknowledged} acknowledged");
            shortened += u64::from(seen < last);
            // The next few choices.
            [luck.below(4), luck.below(6)]
        };
        let mut choices = [0, 3];
        for _ in 0..30 {
            for at in 0..choices[1] {
                bytes.clear();
                let payload = vec![last as u8; ((last * 761 + at * 97) % (RING / 8)) as usize];
                frame::encode(&mut bytes, last + 1, Kind::Accepted, 0, last + 1, &[&payload]);
                last += u64::from(front.append(&bytes, shared.free(), &mut Vec::new()));
            }
            let tail = front.tail();
            shared.tell_written(tail, last);
            let take_over = RefCell::new(|| {
                bytes.clear();
                let place = taker.take(tail, usize::MAX, &mut bytes).expect("no damage");
                append_all(&mut store, &bytes, taker.head().seq).expect("taken over");
                front::note_head(&file, place).expect("noted");
                taker.advance(place);
                shared.tell_taken(place.position);
            });
            // The store takes over as soon as the file has it, or when the disk has looked already, or after all that, or another
            // time. The lights go out before the disk has it, and after.
            let acknowledged = shared.synced();
            let at = |moment| {
                if choices[0] == moment {
                    take_over.borrow_mut()();
                }
            };
            keeper::bring_to_disk(
                &shared,
                &file,
                &mut staging,
                || at(0),
                |_| {
                    outage(&disk, last, acknowledged);
                    disk = std::fs::read(&path)?;
                    at(1);
                    Ok(())
                },
            )
            .expect("brought");
            at(2);
            choices = outage(&disk, last, shared.synced());
            rounds = rounds.max(tail / RING);
        }
    }
    assert!(shortened > 100 && rounds > 3, "{shortened} starts found less than was written, {rounds} rounds");
}

/// What has no disk behind it cannot be synced, and the kernel says so: then nothing is safe, and that is final.
#[test]
fn the_sync_thread_asks_the_disk_and_believes_a_refusal() {
    let folder = quick_folder();
    let path = folder.path().join("front");
    let identity = Identity { journal: 7, runs: vec![7], boot: String::new(), synced: true };
    let (mut front, _, staging) = Front::create(&path, 1 << 14, &identity, 0).expect("made");
    let shared = Shared::new(0, Box::new(|| {}));
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, 1, Kind::Accepted, 0, 1, &[b"task"]);
    assert!(front.append(&bytes, 0, &mut Vec::new()));
    shared.tell_written(front.tail(), 1);
    let null = File::options().write(true).open("/dev/null").expect("there");
    shared.stop();
    keeper::sync(&shared, &std::thread::current(), &null, staging.expect("a synced one"), 1 << 14);
    assert!(shared.has_failed() && shared.synced() == 0, "{:?}", shared.trouble());
}

fn loaded(folder: &Path) -> (Store, Vec<(Kind, u64)>) {
    let mut store = Store::open(&Paths::new(folder).store).expect("opened");
    let mut records = Vec::new();
    store.load(|frame| records.push((frame.kind, frame.task))).expect("whole");
    (store, records)
}

/// Weeks of a busy swarm in which a task waits all the time and agents die now and then.
#[test]
fn rows_follow_what_is_kept_and_not_what_was_written() {
    let folder = tempfile::tempdir().expect("folder");
    let retention = Retention { tasks: 20, events: 3, age: Duration::from_secs(3600) };
    let (journal, ..) = open(folder.path(), OPTIONS).expect("new");
    drop(journal);
    let (mut store, _) = loaded(folder.path());
    let (mut seq, mut most) = (0, 0);
    let mut group = |store: &mut Store, records: &[(Kind, u64)]| {
        let (after, mut frames) = (seq, Vec::new());
        for &(kind, task) in records {
            seq += 1;
            // Limits are kept to the row; two events fill one.
            let length = if kind == Kind::Event { 30_000 } else { 7 };
            frame::encode(&mut frames, seq, kind, 1, task, &[&vec![7; length]]);
        }
        store.append(&frames, after, seq).expect("written");
    };
    for task in 1..2000 {
        let ends = if task % 500 == 7 { Kind::Dispatched } else { Kind::Ended };
        group(&mut store, &[(Kind::Accepted, task), (ends, task)]);
        if task % 100 == 0 {
            group(&mut store, &[(Kind::Event, 0)]);
        }
        if task % 64 == 0 {
            store.retain(retention).expect("retained");
            most = most.max(store.rows());
        }
    }
    assert!(most < 150, "{most} rows at once");
    while store.retain(retention).expect("retained") {}
    drop(store);
    let (mut store, records) = loaded(folder.path());
    let of =
        |kind| records.iter().filter(|(known, _)| *known == kind).map(|(_, task)| *task).collect::<Vec<_>>();
    assert!((3..=5).contains(&of(Kind::Event).len()), "{records:?}");
    assert!([7, 507, 1007, 1507].iter().all(|open| of(Kind::Accepted).contains(open)), "{records:?}");
    assert!((20..=22).contains(&of(Kind::Ended).len()), "{records:?}");
    // What waited for so long ends at last, and is forgotten with the others.
    group(&mut store, &[(Kind::Ended, 7), (Kind::Ended, 507), (Kind::Ended, 1007), (Kind::Ended, 1507)]);
    for task in 2000..2100 {
        group(&mut store, &[(Kind::Accepted, task), (Kind::Ended, task)]);
    }
    while store.retain(retention).expect("retained") {}
    drop(store);
    let (store, records) = loaded(folder.path());
    assert!(records.iter().all(|&(kind, task)| kind == Kind::Event || task > 2000), "{records:?}");
    assert_eq!(store.mark().highest, 2099);
}

#[test]
fn retention_forgets_ended_tasks_and_never_an_open_one() {
    let folder = tempfile::tempdir().expect("folder");
    let retention = Retention { tasks: 20, events: 3, age: Duration::from_secs(3600) };
    let (journal, ..) = open(folder.path(), OPTIONS).expect("new");
    drop(journal);
    let mut store = Store::open(&Paths::new(folder.path()).store).expect("opened");
    store.load(|_| {}).expect("whole");
    let (mut seq, mut frames) = (0, Vec::new());
    let mut group = |store: &mut Store, records: &[(Kind, u64)]| {
        frames.clear();
        let after = seq;
        for &(kind, task) in records {
            seq += 1;
            frame::encode(&mut frames, seq, kind, 1, task, &[b"payload"]);
        }
        store.append(&frames, after, seq).expect("written");
    };
    // Task 1 stays open; 2 ends long after it began; the others end at once.
    group(&mut store, &[(Kind::Accepted, 1), (Kind::Accepted, 2), (Kind::Dispatched, 2)]);
    for task in 3..200 {
        group(&mut store, &[(Kind::Accepted, task), (Kind::Dispatched, task), (Kind::Ended, task)]);
        store.retain(retention).expect("retained");
    }
    group(&mut store, &[(Kind::Ended, 2)]);
    // Its end is the newest of all: what is older of it stays as long.
    while store.retain(retention).expect("retained") {}
    drop(store);
    let (mut store, records) = loaded(folder.path());
    let of_it: Vec<Kind> = records.iter().filter(|(_, task)| *task == 2).map(|(kind, _)| *kind).collect();
    assert_eq!(of_it, [Kind::Accepted, Kind::Dispatched, Kind::Ended]);
    for task in 200..240 {
        group(&mut store, &[(Kind::Accepted, task), (Kind::Ended, task)]);
        store.retain(retention).expect("retained");
    }
    drop(store);
    let (_, records) = loaded(folder.path());
    let accepted = |task| records.contains(&(Kind::Accepted, task));
    let ended: Vec<u64> =
        records.iter().filter(|(kind, _)| *kind == Kind::Ended).map(|(_, task)| *task).collect();
    assert!(accepted(1), "the open one stays: {records:?}");
    assert!(!records.iter().any(|(_, task)| *task == 2), "{records:?}");
    assert!((20..=22).contains(&ended.len()), "{ended:?}");
    assert!(ended.iter().all(|&task| accepted(task) && task > 210), "{records:?}");
}
