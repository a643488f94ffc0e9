//! NumPy's `.npy` files, versions 1.0 to 3.0: parsing their headers, opening them, writing them.
//!
//! ```text
//! 0        6  8          10 (1.0) or 12               data, at a multiple of 64 in files NumPy wrote
//! \x93NUMPY maj min  header length, little-endian   {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n
//! ```
//! Source: the NumPy enhancement proposal 1 and `numpy/lib/_format_impl.py`, whose bytes [`write_npy`]
//! repeats exactly. A file is a stranger's input: every number is checked against the file's real length
//! before it is used.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{
    Array, ArrayRef, ByteOrder, DTYPE_NAMES, DType, RefStore, Shape, convert, is_aligned, shape_len,
};
use crate::os::map::{FileBytes, OutOfMemory};

/// Longest header that is read, in bytes: version 1.0 allows no longer one, and nine element types need no
/// more.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// Most axes an array may have, as in NumPy 2.
pub const NDIM_MAX: usize = 64;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Header and prefix together fill a multiple of this.
const ARRAY_ALIGN: usize = 64;
/// NumPy leaves room for the first length to grow to so many digits, so that data can be appended in place.
const GROWTH_AXIS_DIGITS_MAX: usize = 21;
/// Longest file name of the usual file systems, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// So much of a bad value is quoted in a message.
const QUOTE_CHARS_MAX: usize = 60;

/// A `.npy` file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The system could not open or read it.
    #[error("{}: cannot be read: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not begin as such a file does.
    #[error("{}: not a .npy file: begins with {found}, needs \\x93NUMPY", .path.display())]
    NotNpy {
        /// The file.
        path: PathBuf,
        /// Its first bytes, printable.
        found: String,
    },
    /// A version that is not known.
    #[error("{}: .npy version {major}.{minor} is not supported; allowed are 1.0, 2.0 and 3.0", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version found, before the point.
        major: u8,
        /// Version found, behind the point.
        minor: u8,
    },
    /// The header alone is longer than allowed.
    #[error("{}: header of {found} bytes is too long; at most {allowed} are allowed", .path.display())]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// Bytes it claims.
        found: usize,
        /// Bytes allowed.
        allowed: usize,
    },
    /// The header is not what it should be.
    #[error("{}: bad header: {field}: {problem}", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// `descr`, `fortran_order`, `shape`, or `header` for the whole.
        field: &'static str,
        /// What was found and what is allowed.
        problem: String,
    },
    /// An element type that no kernel takes.
    #[error("{}: dtype {found} is not supported; allowed are {}", .path.display(), DTYPE_NAMES)]
    DType {
        /// The file.
        path: PathBuf,
        /// The `descr` found.
        found: String,
    },
    /// The shape is beyond what a machine can address.
    #[error("{}: shape {} of {dtype} is larger than memory can be", .path.display(), Shape(.shape))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Element type.
        dtype: DType,
        /// The shape.
        shape: Vec<usize>,
    },
    /// The file ends early.
    #[error("{}: truncated: {what} needs {needed} bytes, file has {found}", .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// `header`, or the data with their shape and type.
        what: String,
        /// Bytes needed for that part.
        needed: usize,
        /// Bytes the file has of it.
        found: usize,
    },
    /// No memory for a converted copy.
    #[error("{}: {source}", .path.display())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// How much was asked for.
        source: OutOfMemory,
    },
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// Element type.
    pub dtype: DType,
    /// Byte order of the file.
    pub byte_order: ByteOrder,
    /// Whether the first axis varies fastest.
    pub fortran_order: bool,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Where the data begin, in bytes.
    pub data_start: usize,
    /// Length of the data, in bytes; the file has at least these.
    pub data_bytes: usize,
}

/// Parses and checks the header of `file`, the whole contents of the file called `path` in errors.
///
/// Never panics and allocates no more than the header is long, whatever the bytes are.
///
/// # Errors
/// Every [`NpyError`] but `Open` and `OutOfMemory`.
pub fn parse_header(path: &Path, file: &[u8]) -> Result<NpyHeader, NpyError> {
    let truncated =
        |needed, found| NpyError::Truncated { path: path.into(), what: "header".into(), needed, found };
    if file.len() < MAGIC.len() || !file.starts_with(MAGIC) {
        if !file.is_empty() && MAGIC.starts_with(file) {
            return Err(truncated(MAGIC.len() + 4, file.len()));
        }
        return Err(NpyError::NotNpy { path: path.into(), found: first_bytes(file) });
    }
    let &[major, minor] =
        file.get(6..8).and_then(|version| version.as_array()).ok_or_else(|| truncated(10, file.len()))?;
    let prefix = match (major, minor) {
        (1, 0) => 10,
        (2, 0) | (3, 0) => 12,
        _ => return Err(NpyError::Version { path: path.into(), major, minor }),
    };
    let length = file.get(8..prefix).ok_or_else(|| truncated(prefix, file.len()))?;
    let header_bytes = length.iter().rev().fold(0_usize, |value, &byte| value << 8 | usize::from(byte));
    if header_bytes > HEADER_BYTES_MAX {
        let (found, allowed) = (header_bytes, HEADER_BYTES_MAX);
        return Err(NpyError::HeaderTooLong { path: path.into(), found, allowed });
    }
    let data_start = prefix + header_bytes;
    let text = file.get(prefix..data_start).ok_or_else(|| truncated(data_start, file.len()))?;

    let bad =
        |(field, problem): (&'static str, String)| NpyError::Header { path: path.into(), field, problem };
    let fields = Fields::parse(text).map_err(bad)?;
    let descr = match fields.descr {
        Descr::Simple(descr) => descr,
        Descr::Other(found) => return Err(NpyError::DType { path: path.into(), found }),
    };
    let (dtype, byte_order) = DType::from_descr(&descr)
        .ok_or_else(|| NpyError::DType { path: path.into(), found: quoted(descr.as_bytes()) })?;
    let shape = fields.shape;
    let data_bytes = shape_len(&shape)
        .and_then(|elements| elements.checked_mul(dtype.size()))
        .filter(|&bytes| isize::try_from(bytes).is_ok());
    let Some(data_bytes) = data_bytes else {
        return Err(NpyError::TooLarge { path: path.into(), dtype, shape });
    };
    let found = file.len() - data_start;
    if found < data_bytes {
        let what = format!("shape {} of {dtype}", Shape(&shape));
        return Err(NpyError::Truncated { path: path.into(), what, needed: data_bytes, found });
    }
    Ok(NpyHeader { dtype, byte_order, fortran_order: fields.fortran_order, shape, data_start, data_bytes })
}

/// The three entries of the header's dictionary.
struct Fields {
    descr: Descr,
    fortran_order: bool,
    shape: Vec<usize>,
}

enum Descr {
    Simple(String),
    /// A structured type or something else that is not a string; its text, shortened.
    Other(String),
}

/// Which field is wrong, and how.
type Problem = (&'static str, String);

impl Fields {
    fn parse(text: &[u8]) -> Result<Fields, Problem> {
        let mut scan = Scan { text, at: 0 };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        scan.expect("header", b'{', "a dictionary")?;
        while !scan.accept(b'}') {
            let key = scan.string("header")?;
            scan.expect("header", b':', "a colon behind the key")?;
            let again = match key.as_slice() {
                b"descr" => descr.replace(scan.descr()?).is_some(),
                b"fortran_order" => fortran_order.replace(scan.truth("fortran_order")?).is_some(),
                b"shape" => shape.replace(scan.tuple("shape")?).is_some(),
                other => {
                    let allowed = "allowed are 'descr', 'fortran_order' and 'shape'";
                    return Err(("header", format!("unknown key {}; {allowed}", quoted(other))));
                }
            };
            if again {
                return Err(("header", format!("key {} stands there twice", quoted(&key))));
            }
            if !scan.accept(b',') {
                scan.expect("header", b'}', "a comma or the end of the dictionary")?;
                break;
            }
        }
        scan.skip_space();
        if scan.at < text.len() {
            return Err(("header", format!("unexpected {} behind the dictionary", scan.here())));
        }
        let missing = |field| (field, "is missing".to_owned());
        Ok(Fields {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// A place in the header's text. No method recurses, so nesting cannot exhaust the stack.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn skip_space(&mut self) {
        while self.text.get(self.at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c)) {
            self.at += 1;
        }
    }

    /// Steps over `byte`, when it is next.
    fn accept(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, field: &'static str, byte: u8, wanted: &str) -> Result<(), Problem> {
        if self.accept(byte) {
            Ok(())
        } else {
            Err((field, format!("found {}, needs {wanted}", self.here())))
        }
    }

    /// What comes next, for messages.
    fn here(&self) -> String {
        match self.text.get(self.at..) {
            None | Some([]) => "the end of the header".to_owned(),
            Some(rest) => quoted(&rest[..rest.len().min(QUOTE_CHARS_MAX)]),
        }
    }

    fn string(&mut self, field: &'static str) -> Result<Vec<u8>, Problem> {
        self.skip_space();
        let quote = match self.text.get(self.at) {
            Some(&quote @ (b'\'' | b'"')) => quote,
            _ => return Err((field, format!("found {}, needs a string in quotes", self.here()))),
        };
        let start = self.at + 1;
        let length = self.text[start..].iter().position(|&byte| byte == quote);
        let Some(length) = length else {
            return Err((field, format!("found {}, a string without an end", self.here())));
        };
        self.at = start + length + 1;
        Ok(self.text[start..start + length].to_vec())
    }

    fn truth(&mut self, field: &'static str) -> Result<bool, Problem> {
        self.skip_space();
        for (word, value) in [(&b"True"[..], true), (b"False", false)] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err((field, format!("found {}, needs True or False", self.here())))
    }

    fn descr(&mut self) -> Result<Descr, Problem> {
        self.skip_space();
        if matches!(self.text.get(self.at), Some(b'\'' | b'"')) {
            let text = self.string("descr")?;
            return Ok(Descr::Simple(String::from_utf8_lossy(&text).into_owned()));
        }
        // A structured type, `[('a', '<f4'), ...]`: stepped over, so that the error can say what it is.
        let start = self.at;
        let (mut depth, mut quote) = (0_usize, None);
        while let Some(&byte) = self.text.get(self.at) {
            match (quote, byte) {
                (Some(open), _) if byte == open => quote = None,
                (Some(_), _) => {}
                (None, b'\'' | b'"') => quote = Some(byte),
                (None, b'[' | b'(' | b'{') => depth += 1,
                (None, b',' | b'}') if depth == 0 => break,
                (None, b']' | b')' | b'}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
        }
        if self.at == start {
            return Err(("descr", format!("found {}, needs a type string", self.here())));
        }
        Ok(Descr::Other(quoted(&self.text[start..self.at])))
    }

    fn tuple(&mut self, field: &'static str) -> Result<Vec<usize>, Problem> {
        self.expect(field, b'(', "a tuple of lengths, such as (2, 3)")?;
        let mut lengths = Vec::new();
        let mut comma = true;
        while !self.accept(b')') {
            if !comma {
                return Err((field, format!("found {}, needs a comma or )", self.here())));
            }
            if lengths.len() == NDIM_MAX {
                return Err((field, format!("more than {NDIM_MAX} axes; at most {NDIM_MAX} are allowed")));
            }
            lengths.push(self.length(field)?);
            comma = self.accept(b',');
        }
        // `(3)` is a number in Python, not a tuple.
        if lengths.len() == 1 && !comma {
            return Err((field, format!("found ({}), needs a tuple such as ({0},)", lengths[0])));
        }
        Ok(lengths)
    }

    fn length(&mut self, field: &'static str) -> Result<usize, Problem> {
        self.skip_space();
        let digits = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return Err((field, format!("found {}, needs a length of 0 or more", self.here())));
        }
        let value = self.text[self.at..self.at + digits]
            .iter()
            .try_fold(0_usize, |value, byte| value.checked_mul(10)?.checked_add(usize::from(byte - b'0')));
        let Some(value) = value else {
            return Err((field, format!("length {} is beyond 64 bits", self.here())));
        };
        self.at += digits;
        // Python 2 wrote long integers with a mark.
        if self.text.get(self.at) == Some(&b'L') {
            self.at += 1;
        }
        Ok(value)
    }
}

/// Bytes as a printable, quoted, shortened text; control characters become `?`.
fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_ascii_end();
    let mut short: String =
        text.chars().take(QUOTE_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() {
        short.push_str("...");
    }
    format!("`{short}`")
}

fn first_bytes(file: &[u8]) -> String {
    match file {
        [] => "nothing (the file is empty)".to_owned(),
        _ => format!("`{}`", file[..file.len().min(8)].escape_ascii()),
    }
}

/// An open `.npy` file whose header was found right.
#[derive(Debug)]
pub struct NpyFile {
    path: PathBuf,
    bytes: FileBytes,
    header: NpyHeader,
}

impl NpyFile {
    /// Opens and checks `path`. The data are not touched yet.
    ///
    /// # Errors
    /// Any [`NpyError`] but `OutOfMemory`, each naming the file.
    pub fn open(path: &Path) -> Result<NpyFile, NpyError> {
        let bytes =
            FileBytes::open(path).map_err(|source| NpyError::Open { path: path.to_owned(), source })?;
        let header = parse_header(path, &bytes)?;
        Ok(NpyFile { path: path.to_owned(), bytes, header })
    }

    /// The checked header.
    pub fn header(&self) -> &NpyHeader {
        &self.header
    }

    /// The file's data as they lie there.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.header.data_start..][..self.header.data_bytes]
    }

    /// Whether [`into_array`](Self::into_array) has to copy and convert it, for another reason than alignment.
    pub fn needs_conversion(&self) -> bool {
        let NpyHeader { byte_order, fortran_order, shape, .. } = &self.header;
        *byte_order != ByteOrder::Native || *fortran_order && shape.len() > 1
    }

    /// The array, in the form kernels read: the file's own bytes when they are C order (an array of one axis
    /// always is), native and aligned, else a converted copy.
    ///
    /// # Errors
    /// [`NpyError::OutOfMemory`] when the copy finds no room.
    pub fn into_array(self) -> Result<ArrayRef, NpyError> {
        let NpyHeader { dtype, byte_order, fortran_order, data_start, data_bytes, .. } = self.header;
        let data = self.data();
        let as_is = byte_order == ByteOrder::Native
            && (!fortran_order || self.header.shape.len() < 2)
            && is_aligned(data, dtype);
        let (store, start) = if as_is {
            (RefStore::File(self.bytes), data_start)
        } else {
            let copy = convert(data, dtype, &self.header.shape, byte_order, fortran_order)
                .map_err(|source| NpyError::OutOfMemory { path: self.path, source })?;
            (RefStore::Owned(copy), 0)
        };
        Ok(ArrayRef { dtype, shape: self.header.shape, store, start, length: data_bytes })
    }
}

/// A `.npy` file could not be written. Nothing was left behind, and what stood at the path before still does.
#[derive(Debug, thiserror::Error)]
pub enum NpyWriteError {
    /// The path cannot be an array's.
    #[error("{}: cannot be written: {problem}", .path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The temporary file beside it could not be made: the directory is missing, not writable, or full.
    #[error("{}: cannot be written: {source}", .path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data did not go in: the disk is full or failed.
    #[error("{}: writing {bytes} bytes failed: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Bytes to be written.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The finished file could not be put in its place.
    #[error("{}: cannot be replaced: {source}", .path.display())]
    Rename {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The same, and what stands there had to be kept under another name.
    #[error("{}: it is an input, too, and cannot be kept while it is replaced: {source}", .path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where [`write_npy`] builds `output`: `.{file name}.{tag}.tmp` in the same directory, so that the rename
/// stays within one file system. Who knows the tag of a process that died can remove what it left. A name
/// beyond the file system's limit is shortened, a slash in the tag becomes an underscore.
pub fn temporary_name(output: &Path, tag: &str) -> PathBuf {
    let name = output.file_name().unwrap_or(OsStr::new("")).as_bytes();
    let tail = format!(".{}.tmp", tag.replace('/', "_"));
    let room = NAME_BYTES_MAX.saturating_sub(1 + tail.len());
    let mut temporary = vec![b'.'];
    temporary.extend_from_slice(&name[..name.len().min(room)]);
    temporary.extend_from_slice(tail.as_bytes());
    output.with_file_name(OsString::from_vec(temporary))
}

/// The tag in a name that [`temporary_name`] made, or in that of a file which was kept. `None`: neither.
pub fn tag_of(name: &str) -> Option<&str> {
    let stem = name.strip_prefix('.')?;
    let stem = stem.strip_suffix(".tmp").or_else(|| stem.strip_suffix(".old"))?;
    stem.rsplit_once('.').map(|(_, tag)| tag)
}

/// Where [`NpyDraft::publish_keeping`] keeps what stood at the path.
fn old_name(temporary: &Path) -> PathBuf {
    temporary.with_extension("old")
}

/// Makes good that a process died, or failed, between writing `output` under `tag` and the word that it has: removes what
/// it left, and when it had already [replaced and kept](NpyDraft::publish_keeping) a file, that file is `output` again.
/// What somebody else put there since stays.
///
/// # Errors
/// The kept file could not be put back. It stays where the words say.
pub fn take_back(output: &Path, tag: &str) -> Result<(), String> {
    put_back(output, tag)?;
    forget(output, tag);
    Ok(())
}

/// The first half of [`take_back`], which is quick. [`forget`] is the other one, and may take as long as a large file has pages.
///
/// # Errors
/// As there.
pub fn put_back(output: &Path, tag: &str) -> Result<(), String> {
    // Of a link it is the link that was replaced.
    let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let temporary = temporary_name(output, tag);
    let old = old_name(&temporary);
    if let Some(before) = identity(&old) {
        let (draft, there) = (identity(&temporary), identity(output));
        let is_replaced = Some(before) != draft && Some(before) != there;
        let is_ours = draft.is_none() || draft == there;
        if is_replaced && is_ours {
            fs::rename(&old, output).map_err(|error| {
                format!(
                    "{} replaced an input, which could not be put back from {}: {error}",
                    output.display(),
                    old.display()
                )
            })?;
        }
    }
    Ok(())
}

/// Removes what was written under `tag` and did not become `output`, and what was kept of before.
pub fn forget(output: &Path, tag: &str) {
    let temporary = temporary_name(output, tag);
    // The old file first: alone, it would be taken for one that is to be put back.
    for path in [old_name(&temporary), temporary] {
        // Most of them were never there.
        let _ = fs::remove_file(path);
    }
}

/// Writes `array` to `path`, byte for byte as `numpy.save` does, through the temporary file
/// [`temporary_name`] names and a rename: a reader sees the old file, or the whole new one. The file survives
/// the death of the process at once, a power failure only when the system has written it back (there is no
/// sync: it would cost milliseconds). A symbolic link at `path` is replaced, not followed.
///
/// # Errors
/// [`NpyWriteError`]; the temporary file is removed.
pub fn write_npy(path: &Path, array: &Array, tag: &str) -> Result<(), NpyWriteError> {
    NpyDraft::write(path, array, tag)?.publish()
}

/// A whole file that nobody sees yet: it has the name that [`temporary_name`] gives. Dropped, it is removed.
#[derive(Debug)]
pub struct NpyDraft {
    path: PathBuf,
    temporary: PathBuf,
    replaces: bool,
}

impl NpyDraft {
    /// The first half of [`write_npy`].
    ///
    /// # Errors
    /// Any [`NpyWriteError`] but `Rename`.
    pub fn write(path: &Path, array: &Array, tag: &str) -> Result<Self, NpyWriteError> {
        let (temporary, replaces) = place(path, tag)?;
        let mut file =
            create(&temporary).map_err(|source| NpyWriteError::Create { path: path.into(), source })?;
        let draft = Self { path: path.into(), temporary, replaces };
        let header = encode_header(array.dtype(), array.shape());
        match write_both(&mut file, &header, array.bytes()) {
            Ok(()) => Ok(draft),
            Err(source) => {
                let bytes = header.len() + array.bytes().len();
                Err(NpyWriteError::Write { path: path.into(), bytes, source })
            }
        }
    }

    /// Writes some rows of an array that has `rows` of them, from row `from` on. Several processes may do that to one draft, in
    /// any order; it is whole once every row was written. It stays when the process ends, or fails to write: who put them
    /// to work removes it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// When the array has no axis.
    pub fn write_rows(
        path: &Path,
        part: &Array,
        tag: &str,
        from: usize,
        rows: usize,
    ) -> Result<(), NpyWriteError> {
        let (temporary, _) = place(path, tag)?;
        let file = share(&temporary).map_err(|source| NpyWriteError::Create { path: path.into(), source })?;
        let mut shape = part.shape().to_vec();
        let own = std::mem::replace(&mut shape[0], rows);
        let header = encode_header(part.dtype(), &shape);
        let row = part.bytes().len().checked_div(own).unwrap_or(0);
        let before = if from == 0 { header.len() } else { 0 };
        let written = file
            .write_all_at(&header[..before], 0)
            .and_then(|()| file.write_all_at(part.bytes(), (header.len() + from * row) as u64));
        written.map_err(|source| {
            let bytes = before + part.bytes().len();
            NpyWriteError::Write { path: path.into(), bytes, source }
        })
    }

    /// The draft that others have [written rows](Self::write_rows) to; `None`: nobody has.
    ///
    /// # Errors
    /// `Path`, or `Write` where it is no whole array; it is removed then.
    pub fn of_rows(path: &Path, tag: &str) -> Result<Option<Self>, NpyWriteError> {
        let unreadable = |source| NpyWriteError::Write { path: path.into(), bytes: 0, source };
        let (temporary, replaces) = place(path, tag)?;
        match fs::symlink_metadata(&temporary) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        }
        // From here on it goes when something is wrong.
        let draft = Self { path: path.into(), temporary, replaces };
        NpyFile::open(&draft.temporary).map_err(|error| unreadable(io::Error::other(error)))?;
        Ok(Some(draft))
    }

    /// The second half: from now on everybody sees it.
    ///
    /// # Errors
    /// `Rename`.
    pub fn publish(mut self) -> Result<(), NpyWriteError> {
        let temporary = std::mem::take(&mut self.temporary);
        put_in_place(&temporary, &self.path, self.replaces).map_err(|source| {
            self.temporary = temporary;
            NpyWriteError::Rename { path: self.path.clone(), source }
        })
    }

    /// Whether a file stood at the path when this one was written.
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// As [`publish`](Self::publish), but what stood there can be [taken back](take_back) until it is [forgotten](forget):
    /// for an output that replaces its own input, which whoever runs the task again has to find as it was.
    ///
    /// # Errors
    /// `Keep`; then nothing has changed. `Rename`, if there was nothing to keep.
    pub fn publish_keeping(mut self) -> Result<(), NpyWriteError> {
        if !self.replaces {
            return self.publish();
        }
        let old = old_name(&self.temporary);
        replace_keeping(&self.temporary, &old, &self.path).map_err(|source| {
            let _ = fs::remove_file(&old);
            NpyWriteError::Keep { path: self.path.clone(), source }
        })?;
        self.temporary = PathBuf::new();
        Ok(())
    }
}

impl Drop for NpyDraft {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            // Should it stay, its remover is the one of all leftovers.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Where a draft lies until it stands at the path, and whether it will replace a file there.
fn place(path: &Path, tag: &str) -> Result<(PathBuf, bool), NpyWriteError> {
    if path.file_name().is_none() {
        return Err(NpyWriteError::Path { path: path.into(), problem: "it names no file" });
    }
    // A rename would replace a device or a pipe with a file.
    let before = fs::metadata(path);
    if before.as_ref().is_ok_and(|metadata| !metadata.is_file()) {
        let problem = "something that is not a regular file stands there";
        return Err(NpyWriteError::Path { path: path.into(), problem });
    }
    Ok((temporary_name(path, tag), before.is_ok()))
}

/// Moves the finished file to `path`, at once for every reader.
///
/// Over an old file it is an exchange and a removal, where the file system can: ext4 writes the new data to
/// the disk before a rename that replaces a file returns, which took 0.9 ms for 1 MiB here against 0.24 ms
/// this way.
fn put_in_place(temporary: &Path, path: &Path, replaces: bool) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    if replaces && renameat_with(CWD, temporary, CWD, path, RenameFlags::EXCHANGE).is_ok() {
        // The old file has the temporary name now. Should it stay, its remover is the one of all leftovers.
        let _ = fs::remove_file(temporary);
        return Ok(());
    }
    fs::rename(temporary, path)
}

/// Moves the finished file to `path`, at once for every reader, and leaves it under its temporary name as well, so that it can be
/// told whose file stands at `path`. What stood there is at `old` then. A kill between any two steps leaves what [`take_back`]
/// understands: the old file has a second name before it loses its first.
fn replace_keeping(temporary: &Path, old: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let link = |from: &Path, to: &Path| match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(to)?;
            fs::hard_link(from, to)
        }
        other => other,
    };
    link(temporary, old)?;
    if renameat_with(CWD, old, CWD, path, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    // A file system that cannot exchange two files, as NFS.
    link(path, old)?;
    fs::rename(temporary, path)?;
    // It may fail: without this name the file at `path` is taken for the one that was put there here.
    let _ = fs::hard_link(path, temporary);
    Ok(())
}

/// A new file; what a dead process of the same tag left there is removed first, never written through.
fn create(path: &Path) -> io::Result<File> {
    let new = || File::options().write(true).create_new(true).open(path);
    match new() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            new()
        }
        other => other,
    }
}

/// A file that several processes write to, made by the first of them. That it is ours says its name, which nobody else knows.
fn share(path: &Path) -> io::Result<File> {
    match File::options().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let file = File::options().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 {
        return Err(io::Error::other("what stands under its temporary name is not a file of its own"));
    }
    Ok(file)
}

/// Header and data in one call, as far as the system takes them in one.
fn write_both(file: &mut File, header: &[u8], data: &[u8]) -> io::Result<()> {
    let count = loop {
        match file.write_vectored(&[IoSlice::new(header), IoSlice::new(data)]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if count < header.len() {
        file.write_all(&header[count..])?;
        return file.write_all(data);
    }
    file.write_all(&data[count - header.len()..])
}

/// Magic, version, length and dictionary, as NumPy writes them for an array in C order.
fn encode_header(dtype: DType, shape: &[usize]) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}", dtype.descr(), Shape(shape));
    if let Some(first) = shape.first() {
        let digits = first.to_string().len();
        text.extend(std::iter::repeat_n(' ', GROWTH_AXIS_DIGITS_MAX.saturating_sub(digits)));
    }
    // At most 64 axes of 20 digits: always within version 1.0's 65,535 bytes for arrays a file can describe.
    // Should an array of more axes ever be made, version 2.0 takes over as in NumPy.
    let (version, prefix) = if text.len() + ARRAY_ALIGN < usize::from(u16::MAX) { (1, 10) } else { (2, 12) };
    // NumPy pads by 1 to 64 bytes, never by 0, and puts the newline last.
    let padding = ARRAY_ALIGN - (prefix + text.len() + 1) % ARRAY_ALIGN;
    let length = text.len() + padding + 1;
    let mut header = Vec::with_capacity(prefix + length);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&[version, 0]);
    header.extend_from_slice(&length.to_le_bytes()[..prefix - 8]);
    header.extend_from_slice(text.as_bytes());
    header.extend(std::iter::repeat_n(b' ', padding));
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn parse(header: &str, data: &[u8]) -> Result<NpyHeader, String> {
        parse_header(Path::new("x.npy"), &file(header, data)).map_err(|error| error.to_string())
    }

    #[test]
    fn any_spelling_of_the_dictionary_is_read() {
        for header in [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
            "{\"shape\":(2,3),\"descr\":\"<f4\",\"fortran_order\":False}",
            "  { 'shape' : ( 2 , 3 , ) ,\n'fortran_order':False,\t'descr':'<f4' , }  \n\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L)}",
        ] {
            let parsed = parse(header, &[0; 24]).unwrap();
            assert_eq!((parsed.dtype, &parsed.shape[..], parsed.data_bytes), (DType::F32, &[2, 3][..], 24));
        }
        let scalar = parse("{'descr':'>c16','fortran_order':True,'shape':()}", &[0; 16]).unwrap();
        assert_eq!((scalar.byte_order, scalar.fortran_order), (ByteOrder::Swapped, true));
        assert_eq!(parse("{'descr':'|u1','fortran_order':False,'shape':(0,5)}", &[]).unwrap().data_bytes, 0);
    }

    #[test]
    fn every_mistake_names_the_file_the_field_and_what_is_allowed() {
        let cases = [
            (
                "{'descr':'<f2','fortran_order':False,'shape':(1,)}",
                "x.npy: dtype `<f2` is not supported; allowed are f32, f64",
            ),
            ("{'descr':'<U5','fortran_order':False,'shape':(1,)}", "dtype `<U5`"),
            ("{'descr':'|O','fortran_order':False,'shape':(1,)}", "dtype `|O`"),
            ("{'descr':[('a','<f4'),('b','<i4',(2,))],'fortran_order':False,'shape':(1,)}", "dtype `[('a'"),
            (
                "{'descr':'<f4','fortran_order':False,'shape':(3)}",
                "shape: found (3), needs a tuple such as (3,)",
            ),
            (
                "{'descr':'<f4','fortran_order':False,'shape':(-3,)}",
                "shape: found `-3,)}`, needs a length of 0 or more",
            ),
            ("{'descr':'<f4','fortran_order':False,'shape':[3]}", "shape: found `[3]}`, needs a tuple"),
            ("{'descr':'<f4','fortran_order':False,'shape':(3 4)}", "needs a comma or )"),
            ("{'descr':'<f4','fortran_order':False,'shape':(99999999999999999999,)}", "beyond 64 bits"),
            (
                "{'descr':'<f4','fortran_order':False,'shape':(9999999999999999999,2)}",
                "larger than memory can be",
            ),
            (
                "{'descr':'<f4','fortran_order':0,'shape':(3,)}",
                "fortran_order: found `0,'shape':(3,)}`, needs True or False",
            ),
            ("{'descr':'<f4','shape':(3,)}", "bad header: fortran_order: is missing"),
            ("{'descr':'<f4','descr':'<f4'}", "header: key `descr` stands there twice"),
            ("{'descr':'<f4','colour':1}", "unknown key `colour`; allowed are 'descr'"),
            ("{'descr':'<f4','fortran_order':False,'shape':(1,)} x", "unexpected `x` behind the dictionary"),
            (
                "{'descr':'<f4','fortran_order':False,'shape':(1,)",
                "found the end of the header, needs a comma",
            ),
            ("{'descr':", "descr: found the end of the header, needs a type string"),
            ("{'descr", "a string without an end"),
            ("", "found the end of the header, needs a dictionary"),
            (
                "{'descr':'<f8','fortran_order':False,'shape':(2,2)}",
                "truncated: shape (2, 2) of f64 needs 32 bytes, file has 8",
            ),
        ];
        for (header, message) in cases {
            let found = parse(header, &[0; 8]).unwrap_err();
            assert!(found.contains(message), "{header}\n gave {found}\n not {message}");
            assert!(found.starts_with("x.npy: "), "{found}");
        }
        let many = format!("{{'descr':'<f8','fortran_order':False,'shape':({})}}", "1,".repeat(NDIM_MAX + 1));
        assert!(parse(&many, &[0; 8]).unwrap_err().contains("more than 64 axes"));
    }

    #[test]
    fn prefixes_are_checked_before_the_header() {
        let message = |bytes: &[u8]| parse_header(Path::new("x.npy"), bytes).unwrap_err().to_string();
        assert!(message(b"").contains("begins with nothing"));
        assert!(message(b"PK\x03\x04 and so on").contains("begins with `PK\\x03\\x04 and`"));
        assert!(message(b"\x93NUM").contains("truncated: header needs 10 bytes, file has 4"));
        assert!(message(b"\x93NUMPY\x01").contains("truncated: header needs 10 bytes"));
        assert!(
            message(b"\x93NUMPY\x04\x00aaaa")
                .contains("version 4.0 is not supported; allowed are 1.0, 2.0 and 3.0")
        );
        assert!(message(b"\x93NUMPY\x02\x00\x01").contains("truncated: header needs 12 bytes"));
        assert!(message(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").contains("at most 65536 are allowed"));
        assert!(
            message(b"\x93NUMPY\x01\x00\x76\x00{'descr'")
                .contains("truncated: header needs 128 bytes, file has 18")
        );
    }

    #[test]
    fn hostile_nesting_ends_in_an_error() {
        let deep = format!("{{'descr': {}", "[".repeat(60_000));
        assert!(parse(&deep, &[]).is_err());
    }

    #[test]
    fn temporary_names_stay_beside_the_output_and_within_the_limit() {
        assert_eq!(temporary_name(Path::new("/a/b/z.npy"), "c0-7"), Path::new("/a/b/.z.npy.c0-7.tmp"));
        assert_eq!(temporary_name(Path::new("z.npy"), "a/b"), Path::new(".z.npy.a_b.tmp"));
        let names = [".z.npy.c0-7.tmp", ".z.npy.c0-7.old", "z.npy.c0-7.tmp", ".z.npy.c0-7", ".tmp"];
        assert_eq!(names.map(tag_of), [Some("c0-7"), Some("c0-7"), None, None, None]);
        let long = PathBuf::from("x".repeat(250));
        assert_eq!(temporary_name(&long, "tag").as_os_str().len(), NAME_BYTES_MAX);
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("z.npy");
        let array = Array::from_slice(&[2, 3], &[1_i64, 2, 3, 4, 5, 6]).unwrap();
        std::fs::write(temporary_name(&path, "t"), "left by a dead process").unwrap();
        write_npy(&path, &array, "t").unwrap();
        write_npy(&path, &array, "t").unwrap();
        let back = NpyFile::open(&path).unwrap().into_array().unwrap();
        assert_eq!((back.shape(), back.as_slice::<i64>()), (&[2, 3][..], array.as_slice::<i64>()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_symbolic_link_is_replaced_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("z.npy"));
        fs::write(&target, "untouched").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_npy(&link, &Array::from_slice(&[1], &[1_u8]).unwrap(), "t").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"untouched");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    fn ones(value: f64) -> Array {
        Array::from_slice(&[1], &[value]).unwrap()
    }

    fn value(path: &Path) -> f64 {
        NpyFile::open(path).unwrap().into_array().unwrap().as_slice::<f64>().unwrap()[0]
    }

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_was_replaced_can_be_taken_back_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let keep = |tag, to| NpyDraft::write(&path, &ones(to), tag).unwrap().publish_keeping().unwrap();
        write_npy(&path, &ones(1.0), "t").unwrap();
        // Three of them, each on the one before: taken back in the opposite order.
        ["a", "b", "c"].into_iter().zip([2.0, 4.0, 8.0]).for_each(|(tag, to)| keep(tag, to));
        assert_eq!(value(&path), 8.0);
        for (tag, left) in [("c", 4.0), ("b", 2.0), ("a", 1.0)] {
            take_back(&path, tag).unwrap();
            assert_eq!(value(&path), left);
        }
        take_back(&path, "a").unwrap();
        assert_eq!((value(&path), names(folder.path())), (1.0, 1), "nothing twice, and nothing is left");
        keep("a", 2.0);
        forget(&path, "a");
        take_back(&path, "a").unwrap();
        assert_eq!((value(&path), names(folder.path())), (2.0, 1), "what is forgotten stays");
        // Not begun, or died on the way there.
        std::mem::forget(NpyDraft::write(&path, &ones(3.0), "a").unwrap());
        take_back(&path, "a").unwrap();
        assert_eq!((value(&path), names(folder.path())), (2.0, 1));
        // Somebody else has put a file of his own there.
        keep("a", 2.0);
        write_npy(&path, &ones(7.0), "t").unwrap();
        take_back(&path, "a").unwrap();
        assert_eq!((value(&path), names(folder.path())), (7.0, 1));
        // Nothing to keep.
        fs::remove_file(&path).unwrap();
        keep("a", 5.0);
        take_back(&path, "a").unwrap();
        assert_eq!((value(&path), names(folder.path())), (5.0, 1));
    }

    #[test]
    fn a_kill_between_any_two_steps_is_made_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let (temporary, exchange) = (temporary_name(&path, "a"), |one: &Path, other: &Path| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
        });
        let old = old_name(&temporary);
        // With exchange; without; and the steps of taking back.
        let steps: [&[&dyn Fn()]; 2] = [
            &[&|| fs::hard_link(&temporary, &old).unwrap(), &|| exchange(&old, &path)],
            &[
                &|| fs::hard_link(&path, &old).unwrap(),
                &|| fs::rename(&temporary, &path).unwrap(),
                &|| fs::hard_link(&path, &temporary).unwrap(),
                &|| fs::rename(&old, &path).unwrap(),
            ],
        ];
        for steps in steps {
            for until in 0..=steps.len() {
                write_npy(&path, &ones(1.0), "t").unwrap();
                std::mem::forget(NpyDraft::write(&path, &ones(2.0), "a").unwrap());
                steps[..until].iter().for_each(|step| step());
                take_back(&path, "a").unwrap();
                assert_eq!((value(&path), names(folder.path())), (1.0, 1), "after {until} steps");
            }
        }
    }

    #[test]
    fn what_cannot_be_put_back_stays_where_the_words_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        write_npy(&path, &ones(1.0), "t").unwrap();
        NpyDraft::write(&path, &ones(2.0), "a").unwrap().publish_keeping().unwrap();
        // A folder at the place: nothing can be renamed onto it.
        fs::remove_file(temporary_name(&path, "a")).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let words = take_back(&path, "a").unwrap_err();
        let old = old_name(&temporary_name(&path, "a"));
        assert!(words.contains(&old.display().to_string()) && value(&old) == 1.0, "{words}");
    }

    #[test]
    fn failed_writes_name_the_file_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let array = Array::from_slice(&[1], &[1.0_f32]).unwrap();
        let missing = folder.path().join("absent/z.npy");
        let error = write_npy(&missing, &array, "t").unwrap_err();
        assert!(matches!(error, NpyWriteError::Create { .. }) && error.to_string().contains("absent/z.npy"));
        assert!(matches!(write_npy(folder.path(), &array, "t"), Err(NpyWriteError::Path { .. })));
        assert!(matches!(write_npy(Path::new("/dev/null"), &array, "t"), Err(NpyWriteError::Path { .. })));
        assert!(matches!(write_npy(Path::new("/"), &array, "t"), Err(NpyWriteError::Path { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_device_is_reported_as_a_failed_write() {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_both(&mut full, b"header", b"data").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_header(Path::new("x"), &bytes);
        }

        #[test]
        fn arbitrary_headers_never_panic(header in "[{}()\\[\\]'\":, a-zL0-9<>|=-]{0,120}", data in 0_usize..64) {
            let _ = parse(&header, &vec![0; data]);
        }

        #[test]
        fn a_damaged_header_never_panics(place in 0_usize..128, byte in any::<u8>(), length in 0_usize..200) {
            let mut bytes = encode_header(DType::F64, &[3, 2]);
            bytes.extend_from_slice(&[0; 48]);
            let place = place.min(bytes.len() - 1);
            bytes[place] = byte;
            bytes.truncate(length);
            let _ = parse_header(Path::new("x"), &bytes);
        }

        #[test]
        fn headers_written_are_headers_read(code in 1_u8..=9, shape in proptest::collection::vec(0_usize..5, 0..6)) {
            let dtype = DType::from_code(code).unwrap();
            let mut bytes = encode_header(dtype, &shape);
            prop_assert_eq!(bytes.len() % ARRAY_ALIGN, 0);
            let data_start = bytes.len();
            bytes.resize(data_start + shape.iter().product::<usize>() * dtype.size(), 0);
            let header = parse_header(Path::new("x"), &bytes).unwrap();
            prop_assert_eq!(header.data_start, data_start);
            prop_assert_eq!((header.dtype, header.shape, header.fortran_order), (dtype, shape, false));
        }
    }
}
