//! The form of a record: what lies in the front, and in groups in the store.
//!
//! ```text
//!  0  length of the whole frame, a multiple of 8      4  CRC-32C of all but these four bytes
//!  8  sequence number, without gaps                  16  kind, bytes of padding, 0, value
//! 24  number of the task                             32  payload
//! ```
//! Numbers are little-endian. A frame is read only after its checksum was found right; what is inside was then written
//! by us, if not necessarily by this version.

/// Bytes before the payload.
pub const HEAD_BYTES: usize = 32;
/// Frames begin on multiples of this.
pub const ALIGNMENT: usize = 8;
/// Longest frame.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A task was accepted.
    Accepted = 1,
    /// It went to an agent; the value is the attempt.
    Dispatched = 2,
    /// Its agent died while running it.
    Died = 3,
    /// It failed and will be tried again; the value is the number of retries left.
    Retrying = 4,
    /// It ended.
    Ended = 5,
    /// Something happened that is about no task; the payload says what.
    Event = 6,
    /// It was with an agent, which was asked to give it up.
    Cancelling = 7,
    /// The rest of the ring is not used.
    Skip = 16,
    /// First frame of a group: which records it holds.
    Group = 17,
    /// What the store as a whole holds.
    Mark = 18,
    /// What a front is.
    Front = 19,
    /// How far the front was emptied, or synced.
    Position = 20,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        use Kind::*;
        [Accepted, Dispatched, Died, Retrying, Ended, Event, Cancelling, Skip, Group, Mark, Front, Position]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

/// A record, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame<'a> {
    /// Its place among all records.
    pub seq: u64,
    /// What it says.
    pub kind: Kind,
    /// A number whose meaning the kind decides.
    pub value: u32,
    /// The task that it is about.
    pub task: u64,
    /// The rest.
    pub payload: &'a [u8],
    /// All of it, as it lies in the file.
    pub bytes: &'a [u8],
}

/// Appends a frame to `out`.
pub fn encode(out: &mut Vec<u8>, seq: u64, kind: Kind, value: u32, task: u64, payload: &[&[u8]]) {
    let start = out.len();
    let used = HEAD_BYTES + payload.iter().map(|part| part.len()).sum::<usize>();
    let length = used.next_multiple_of(ALIGNMENT);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&[kind as u8, (length - used) as u8, 0, 0]);
    out.extend_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&task.to_le_bytes());
    for part in payload {
        out.extend_from_slice(part);
    }
    out.resize(start + length, 0);
    let check = checksum(&out[start..]);
    out[start + 4..start + 8].copy_from_slice(&check.to_le_bytes());
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[8..])
}

/// Length of a frame with a payload of so many bytes.
pub fn length_with(payload: usize) -> usize {
    (HEAD_BYTES + payload).next_multiple_of(ALIGNMENT)
}

/// The frame at the start of `bytes`, or in words why there is none.
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>, &'static str> {
    read(bytes, |frame, check| checksum(frame) == check)
}

/// The same where [`decode`] has compared the checksum before.
pub fn decode_again(bytes: &[u8]) -> Result<Frame<'_>, &'static str> {
    read(bytes, |_, _| true)
}

fn read(bytes: &[u8], is_whole: impl FnOnce(&[u8], u32) -> bool) -> Result<Frame<'_>, &'static str> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return Err("a record is cut short") };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let length = word(0) as usize;
    if !(HEAD_BYTES..=FRAME_BYTES_MAX).contains(&length) || !length.is_multiple_of(ALIGNMENT) {
        return Err("a record has an impossible length");
    }
    let Some(bytes) = bytes.get(..length) else { return Err("a record is cut short") };
    if !is_whole(bytes, word(4)) {
        return Err("a record's checksum is wrong");
    }
    let Some(kind) = Kind::from_code(head[16]) else { return Err("a record is of an unknown kind") };
    let Some(payload) = length.checked_sub(usize::from(head[17])).and_then(|end| bytes.get(HEAD_BYTES..end))
    else {
        return Err("a record's payload is shorter than nothing");
    };
    Ok(Frame { seq: long(8), kind, value: word(20), task: long(24), payload, bytes })
}

/// Appends a number, seven bits a byte, the lowest first: small ones are short.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7F {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends bytes after their number.
pub fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    put_number(out, part.len() as u64);
    out.extend_from_slice(part);
}

/// Reads numbers from a payload that a checksum vouched for; `None` where it is too short.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// A number of [`put_number`].
    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Bytes of [`put_part`].
    pub fn part(&mut self) -> Option<&'a [u8]> {
        let count = self.number()?;
        self.bytes(usize::try_from(count).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_and_no_flipped_bit_passes() {
        for payload in [&b""[..], b"x", b"01234567", b"0123456789"] {
            let mut bytes = Vec::new();
            encode(&mut bytes, 7, Kind::Retrying, 3, 99, &[payload]);
            assert_eq!(bytes.len(), length_with(payload.len()));
            let frame = decode(&bytes).expect("its own");
            assert_eq!(
                (frame.seq, frame.kind, frame.value, frame.task, frame.payload),
                (7, Kind::Retrying, 3, 99, payload)
            );
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&bytes).is_err(), "bit {bit} of {payload:?}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn numbers_and_parts_come_back_and_endless_ones_are_none() {
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), 1 << 62, u64::MAX];
        let mut bytes = Vec::new();
        numbers.iter().for_each(|&number| put_number(&mut bytes, number));
        put_part(&mut bytes, b"part");
        let mut reader = Reader(&bytes);
        assert!(numbers.iter().all(|&number| reader.number() == Some(number)));
        assert_eq!((reader.part(), reader.number()), (Some(&b"part"[..]), None));
        assert_eq!((Reader(&[0xFF; 11]).number(), Reader(&[5, 1]).part()), (None, None));
    }
}
