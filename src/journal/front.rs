//! The front of the journal: a ring in a file, written through memory, so that a record is safe from the death of every
//! process with the last store of it, at the price of a copy.
//!
//! At level `power` the writer fills a copy of the ring that belongs to no file, and the sync thread brings it to the file
//! ([`Staging`]): nothing counts before the disk has it, and a store into a page that is on its way to the disk would wait for
//! that, 2 to 3 ms.
//!
//! ```text
//!     0  what this front is: whose journal, lives, host boot, level, first record (written once)
//!  1024  the tail: where the next record goes                            (writer, one word)
//!  2048  the head: how far the store has taken it over                   (keeper)
//!  3072  how far the disk has it for certain, at level `power`           (sync thread)
//!  4096  the ring
//! ```
//! Invariants
//! 1. A record is in the front when the tail is behind it. The tail is stored last, in one word that carries a check, so
//!    that a kill at any instruction leaves it at the old place or at the new one.
//! 2. Between head and tail every byte belongs to a frame, or to the end of the ring where none fitted. What does not is damage.
//! 3. Positions only grow; the place in the ring is the position modulo its size. A frame never goes round the end.

use super::frame::{self, ALIGNMENT, Frame, HEAD_BYTES, Kind, Reader};
use crate::base::trouble;
use crate::os::filemap::FileMap;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

const TAIL_AT: usize = 1024;
const HEAD_AT: u64 = 2048;
const SYNCED_AT: u64 = 3072;
const RING_AT: u64 = 4096;
const VERSION: u32 = 3;
/// The same without the number of the journal and the names of lives.
const VERSION_BEFORE: u32 = 2;
/// Bytes that are read at once, unless one frame is longer.
const READ_BYTES: usize = 1 << 20;

/// The tail as one word: the place in units of 8 bytes, and a check of it.
fn tail_word(position: u64) -> u64 {
    let units = position / ALIGNMENT as u64;
    let check = crc32c::crc32c(&units.to_le_bytes());
    units | u64::from((check ^ check >> 16) as u16 ^ 0x5AA5) << 48
}

fn tail_position(word: u64) -> Option<u64> {
    let position = (word & 0xFFFF_FFFF_FFFF) * ALIGNMENT as u64;
    (tail_word(position) == word).then_some(position)
}

/// What a front is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The journal that it belongs to: its store has the same number.
    pub journal: u64,
    /// Names of this life of the swarm and of the last ones before it, oldest first: what they may have left beside outputs
    /// is called after them.
    pub runs: Vec<u64>,
    /// The host's run in which it was written: after another one began, memory that was not synced is gone.
    pub boot: String,
    /// Whether acknowledgements waited for the disk.
    pub synced: bool,
}

/// A place in the front: position, and the record before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Bytes since the beginning.
    pub position: u64,
    /// Number of the last record before.
    pub seq: u64,
}

/// Writes one of the two places that threads other than the writer keep.
fn note(file: &File, at: u64, place: Place) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(64);
    frame::encode(&mut bytes, place.seq, Kind::Position, 0, place.position, &[]);
    file.write_all_at(&bytes, at)
}

/// Notes how far the store has taken the front over.
pub fn note_head(file: &File, place: Place) -> io::Result<()> {
    note(file, HEAD_AT, place)
}

/// Notes how far the disk has it.
pub fn note_synced(file: &File, place: Place) -> io::Result<()> {
    note(file, SYNCED_AT, place)
}

/// The writer's end.
#[derive(Debug)]
pub struct Front {
    map: FileMap,
    ring: u64,
    tail: u64,
    /// The mapping is not the file's.
    is_staged: bool,
}

impl Front {
    /// A new front at `path`, under a temporary name until it is whole. Its first record follows `last`.
    pub fn create(
        path: &Path,
        ring: u64,
        identity: &Identity,
        last: u64,
    ) -> io::Result<(Self, File, Option<Staging>)> {
        let new = path.with_extension("new");
        trouble::check("journal.front")?;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // Read is only what was just written: a look ahead would fill the cache with what was not.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        let outcome = Self::lay_out(&file, ring, identity, last);
        let (front, staging) = outcome.inspect_err(|_| drop(std::fs::remove_file(&new)))?;
        trouble::check("journal.front")?;
        std::fs::rename(&new, path)?;
        if identity.synced {
            sync_folder(path)?;
        }
        Ok((front, file, staging))
    }

    fn lay_out(
        file: &File,
        ring: u64,
        identity: &Identity,
        last: u64,
    ) -> io::Result<(Self, Option<Staging>)> {
        let mut map = FileMap::reserve(file, (RING_AT + ring) as usize)?;
        let mut bytes = Vec::new();
        let synced = u32::from(identity.synced);
        let runs: Vec<u8> = identity.runs.iter().flat_map(|run| run.to_le_bytes()).collect();
        let count = [identity.runs.len() as u8];
        let payload =
            [&VERSION.to_le_bytes()[..], &ring.to_le_bytes(), &count, &runs, identity.boot.as_bytes()];
        frame::encode(&mut bytes, last, Kind::Front, synced, identity.journal, &payload);
        map.write(0, &bytes);
        map.publish(TAIL_AT, tail_word(0));
        trouble::check("journal.front")?;
        note_head(file, Place { position: 0, seq: last })?;
        note_synced(file, Place { position: 0, seq: last })?;
        // What it is has to be known after a power cut: at level `process` this is all that is on the disk for certain.
        file.sync_data()?;
        if identity.synced {
            // Blocks that were never written cost the disk a note of its own with the first sync of each.
            let zeros = vec![0; (1 << 20).min(ring as usize)];
            for at in (0..ring).step_by(zeros.len()) {
                file.write_all_at(&zeros[..zeros.len().min((ring - at) as usize)], RING_AT + at)?;
            }
            file.sync_all()?;
            let memory = memfd_create("ai_swarm-journal", MemfdFlags::CLOEXEC)?;
            let memory = File::from(memory);
            let map = FileMap::reserve(&memory, (RING_AT + ring) as usize)?;
            let staging = Staging { memory, file: file.try_clone()?, ring, copied: 0, bytes: Vec::new() };
            return Ok((Self { map, ring, tail: 0, is_staged: true }, Some(staging)));
        }
        Ok((Self { map, ring, tail: 0, is_staged: false }, None))
    }

    /// Bytes that it has room for.
    pub fn ring(&self) -> u64 {
        self.ring
    }

    /// Where the next record goes.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Largest frame that is taken.
    pub fn frame_bytes_max(&self) -> usize {
        ((self.ring / 4) as usize).min(frame::FRAME_BYTES_MAX)
    }

    /// Writes a frame, if there is room while everything before `head` may be written over.
    pub fn append(&mut self, bytes: &[u8], free: u64, scratch: &mut Vec<u8>) -> bool {
        let length = bytes.len() as u64;
        let (mut tail, mut place) = (self.tail, self.tail % self.ring);
        let rest = self.ring - place;
        // Once all was taken over it begins in front again: memory that was in use stays in use. Not where the gap would be
        // copied.
        let begins_again =
            !self.is_staged && tail == free && place >= self.ring / 16 && rest + length <= self.ring;
        if rest < length || begins_again {
            if rest >= HEAD_BYTES as u64 {
                scratch.clear();
                frame::encode(scratch, 0, Kind::Skip, (rest / ALIGNMENT as u64) as u32, 0, &[]);
                if tail + rest - free > self.ring {
                    return false;
                }
                self.map.write((RING_AT + place) as usize, scratch);
            }
            (tail, place) = (tail + rest, 0);
        }
        if tail + length - free > self.ring {
            return false;
        }
        self.map.write((RING_AT + place) as usize, bytes);
        self.tail = tail + length;
        self.map.publish(TAIL_AT, tail_word(self.tail));
        true
    }
}

/// What brings the front of level `power` to its file.
#[derive(Debug)]
pub struct Staging {
    memory: File,
    file: File,
    ring: u64,
    /// The file has everything before this position.
    copied: u64,
    bytes: Vec<u8>,
}

impl Staging {
    /// Copies all before `tail` to the file: first the frames, then the word that says so.
    pub fn bring(&mut self, tail: u64) -> io::Result<()> {
        while self.copied < tail {
            let place = self.copied % self.ring;
            let length = (tail - self.copied).min(self.ring - place).min(READ_BYTES as u64);
            self.bytes.resize(length as usize, 0);
            self.memory.read_exact_at(&mut self.bytes, RING_AT + place)?;
            self.file.write_all_at(&self.bytes, RING_AT + place)?;
            self.copied += length;
        }
        self.file.write_all_at(&tail_word(tail).to_ne_bytes(), TAIL_AT as u64)
    }
}

/// Makes the names in the folder of `path` as durable as the files behind them.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// What is wrong with a front, and where.
#[derive(Debug)]
pub struct Bad {
    /// Offset in the file.
    pub offset: u64,
    /// What is there.
    pub what: &'static str,
}

/// A front as somebody left it.
#[derive(Debug)]
pub struct Reading<'a> {
    file: &'a File,
    ring: u64,
    /// What it is.
    pub identity: Identity,
    /// From here on the store has nothing.
    pub head: Place,
    /// The disk has it for certain up to here.
    pub synced: Place,
    /// The end, if its word is right.
    pub tail: Option<u64>,
}

impl<'a> Reading<'a> {
    /// Reads the fixed places of a front.
    pub fn open(file: &'a File) -> io::Result<Result<Self, Bad>> {
        let mut head = vec![0; RING_AT as usize];
        let mut filled = 0;
        while filled < head.len() {
            match file.read_at(&mut head[filled..], filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let bad = |offset, what| Ok(Err(Bad { offset, what }));
        if filled < head.len() {
            return bad(filled as u64, "the file is cut short");
        }
        let identity = match frame::decode(&head) {
            Ok(frame) if frame.kind == Kind::Front => frame,
            Ok(_) => return bad(0, "it does not begin as a journal's front"),
            Err(what) => return bad(0, what),
        };
        let mut reader = Reader(identity.payload);
        let (Some(version), Some(ring)) = (reader.u32(), reader.u64()) else {
            return bad(0, "it does not begin as a journal's front");
        };
        if ![VERSION, VERSION_BEFORE].contains(&version)
            || !ring.is_multiple_of(ALIGNMENT as u64)
            || ring == 0
        {
            return bad(0, "it is of another version");
        }
        let runs: Option<Vec<u64>> = match version {
            VERSION_BEFORE => Some(Vec::new()),
            _ => reader.u8().and_then(|count| (0..count).map(|_| reader.u64()).collect()),
        };
        let Some(runs) = runs else {
            return bad(0, "it does not begin as a journal's front");
        };
        let boot = String::from_utf8_lossy(reader.0).into_owned();
        let place = |at: u64| match frame::decode(&head[at as usize..]) {
            Ok(frame) if frame.kind == Kind::Position => Ok(Place { position: frame.task, seq: frame.seq }),
            Ok(_) => Err(Bad { offset: at, what: "no position is where one belongs" }),
            Err(what) => Err(Bad { offset: at, what }),
        };
        let (start, synced) = match (place(HEAD_AT), place(SYNCED_AT)) {
            (Ok(start), Ok(synced)) => (start, synced),
            (Err(bad), _) | (_, Err(bad)) => return Ok(Err(bad)),
        };
        let word = head[TAIL_AT..].first_chunk::<8>().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        Ok(Ok(Self {
            file,
            ring,
            identity: Identity { journal: identity.task, runs, boot, synced: identity.value == 1 },
            head: start,
            synced,
            tail: tail_position(word),
        }))
    }

    /// The frames from the head on, in their order, until `visit` wants no more. Ends at the tail, or where something is
    /// wrong; says where that is. `bytes` is room to read into, kept from call to call.
    pub fn frames(
        &self,
        bytes: &mut Vec<u8>,
        mut visit: impl FnMut(Frame<'_>) -> ControlFlow<()>,
    ) -> io::Result<Result<Place, (Place, Bad)>> {
        let mut place = self.head;
        let at = |position: u64| RING_AT + position % self.ring;
        let Some(tail) = self.tail else {
            return Ok(Err((place, Bad { offset: TAIL_AT as u64, what: "the tail's check is wrong" })));
        };
        if tail < place.position || tail - place.position > self.ring {
            return Ok(Err((
                place,
                Bad { offset: TAIL_AT as u64, what: "head and tail do not fit together" },
            )));
        }
        let mut most = READ_BYTES;
        while place.position < tail {
            let offset = at(place.position);
            let rest = self.ring - place.position % self.ring;
            let there = rest.min(tail - place.position) as usize;
            let wanted = there.min(most);
            if bytes.len() < wanted {
                bytes.resize(wanted, 0);
            }
            let mut filled = 0;
            while filled < wanted {
                match self.file.read_at(&mut bytes[filled..wanted], offset + filled as u64)? {
                    0 => break,
                    count => filled += count,
                }
            }
            let mut used = 0;
            while used < wanted {
                let bad = |what| Ok(Err((place, Bad { offset: offset + used as u64, what })));
                if filled < wanted && filled < used + HEAD_BYTES {
                    return bad("the file is cut short");
                }
                // The end of the ring, where nothing fitted.
                if rest - (used as u64) < HEAD_BYTES as u64 {
                    place.position += wanted as u64 - used as u64;
                    break;
                }
                let frame = match frame::decode(&bytes[used..filled]) {
                    Ok(frame) => frame,
                    // The frame goes on behind what was read: from its beginning again, with more if it is all there was.
                    Err(_)
                        if filled == wanted && wanted < there && wanted - used < frame::FRAME_BYTES_MAX =>
                    {
                        most = if used == 0 { 2 * most } else { READ_BYTES };
                        break;
                    }
                    Err(what) => return bad(what),
                };
                if frame.kind == Kind::Skip {
                    if u64::from(frame.value) * ALIGNMENT as u64 != rest - used as u64 {
                        return bad("a gap has the wrong length");
                    }
                    // The tail lies behind the frame that followed the gap.
                    place.position += rest - used as u64;
                    break;
                }
                if frame.seq != place.seq + 1 {
                    return bad("a record has the wrong number");
                }
                if visit(frame).is_break() {
                    return Ok(Ok(place));
                }
                used += frame.bytes.len();
                place = Place { position: place.position + frame.bytes.len() as u64, seq: frame.seq };
            }
        }
        Ok(Ok(place))
    }
}

/// Takes frames over for the store, from one place on.
#[derive(Debug)]
pub struct Taker<'a> {
    reading: Reading<'a>,
    bytes: Vec<u8>,
}

impl<'a> Taker<'a> {
    /// Begins at `from`, in a ring of so many bytes.
    pub fn new(file: &'a File, ring: u64, from: Place) -> Self {
        let identity = Identity { journal: 0, runs: Vec::new(), boot: String::new(), synced: false };
        let reading = Reading { file, ring, identity, head: from, synced: from, tail: None };
        Self { reading, bytes: Vec::new() }
    }

    /// The place up to which all was taken over.
    pub fn head(&self) -> Place {
        self.reading.head
    }

    /// All before this place was taken over.
    pub fn advance(&mut self, place: Place) {
        self.reading.head = place;
    }

    /// Appends the frames before `tail` to `out`, without gaps, at most about `limit` bytes. Returns the place behind the
    /// last one.
    pub fn take(&mut self, tail: u64, limit: usize, out: &mut Vec<u8>) -> io::Result<Place> {
        trouble::check("journal.read")?;
        self.reading.tail = Some(tail);
        let start = out.len();
        let outcome = self.reading.frames(&mut self.bytes, |frame| {
            if out.len() > start && out.len() - start + frame.bytes.len() > limit {
                return ControlFlow::Break(());
            }
            out.extend_from_slice(frame.bytes);
            ControlFlow::Continue(())
        })?;
        outcome.map_err(|(_, bad)| io::Error::other(format!("offset {}: {}", bad.offset, bad.what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { journal: 7, runs: vec![1, 2], boot: "this boot".to_owned(), synced: false }
    }

    fn frame_of(seq: u64, payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, seq, Kind::Accepted, 0, seq * 10, &[&vec![seq as u8; payload]]);
        bytes
    }

    #[test]
    fn a_tail_word_betrays_every_flipped_bit() {
        for position in [0, 8, 4096, 8 << 40] {
            let word = tail_word(position);
            assert_eq!(tail_position(word), Some(position));
            assert!((0..64).all(|bit| tail_position(word ^ 1 << bit).is_none()), "{position}");
        }
    }

    #[test]
    fn records_go_round_and_come_out_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("front");
        let (mut front, file, _) = Front::create(&path, 1024, &identity(), 0).expect("made");
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        let mut taker = Taker::new(&file, 1024, Place::default());
        let mut taken = 0;
        for seq in 1..500u64 {
            let bytes = frame_of(seq, (seq * 7 % 120) as usize);
            while !front.append(&bytes, taker.head().position, &mut scratch) {
                out.clear();
                let limit = [1, 300, 5000][(seq % 3) as usize];
                let head = taker.take(front.tail(), limit, &mut out).expect("no damage");
                taker.advance(head);
                let mut rest = &out[..];
                while !rest.is_empty() {
                    let frame = frame::decode(rest).expect("whole frames");
                    taken += 1;
                    assert_eq!(frame.seq, taken);
                    rest = &rest[frame.bytes.len()..];
                }
                note_head(&file, head).expect("noted");
            }
            if seq % 17 == 0 {
                let reading = Reading::open(&file).expect("readable").expect("well formed");
                let mut seen = taken;
                let outcome = reading.frames(&mut Vec::new(), |frame| {
                    seen += 1;
                    assert_eq!((frame.seq, frame.task), (seen, seen * 10));
                    ControlFlow::Continue(())
                });
                assert!(outcome.expect("readable").is_ok());
                assert_eq!(seen, seq);
            }
        }
    }

    #[test]
    fn a_front_that_was_cut_or_changed_gives_what_is_before_and_says_where() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("front");
        let (mut front, ..) = Front::create(&path, 2048, &identity(), 0).expect("made");
        for seq in 1..=12 {
            assert!(front.append(&frame_of(seq, (seq * 5) as usize), 0, &mut Vec::new()));
        }
        let whole = std::fs::read(&path).expect("readable");
        let used = RING_AT as usize + front.tail() as usize;
        let look = |bytes: &[u8]| {
            let place = folder.path().join("copy");
            std::fs::write(&place, bytes).expect("written");
            let file = File::open(&place).expect("there");
            let mut seen = 0;
            let fine = match Reading::open(&file).expect("readable") {
                Err(_) => false,
                Ok(reading) => {
                    let outcome = reading.frames(&mut Vec::new(), |frame| {
                        seen += 1;
                        assert_eq!(frame.bytes, frame_of(seen, (seen * 5) as usize), "nothing is invented");
                        ControlFlow::Continue(())
                    });
                    outcome.expect("readable").is_ok()
                }
            };
            (fine, seen)
        };
        assert_eq!(look(&whole), (true, 12));
        for end in 0..used {
            let (fine, seen) = look(&whole[..end]);
            assert!(!fine && seen < 12, "cut at {end}: {seen}");
        }
        // Of the fixed places, those in use; of the ring, all that was written.
        let head = frame::decode(&whole).expect("whole").bytes.len();
        for byte in (0..head).chain(TAIL_AT..TAIL_AT + 8).chain(2048..2080).chain(RING_AT as usize..used) {
            let mut copy = whole.clone();
            copy[byte] ^= 1 << (byte % 8);
            let (fine, seen) = look(&copy);
            assert!(!fine && seen < 12, "byte {byte}: {seen}");
        }
    }
}
