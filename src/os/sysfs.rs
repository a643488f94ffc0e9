//! Small files in which the kernel speaks: `/proc` and `/sys`, or a recorded tree with the same layout.
//! Also the words for what cannot be had: [`Missing`] carries a [`Reason`], a sentence and, where known, a fix.
//!
//! Invariants
//! 1. Nothing missing turns into 0: every reader returns a value or a [`Missing`].
//! 2. Every read is bounded: a huge file, a folder or a device in place of a file yields a reason, not a hang.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest file we take; `/proc/stat` of a thousand cpus stays well below.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Why a value cannot be had. The code is stable: it stands in JSON, metrics and history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No hardware counters, as in most virtual machines.
    NoPmu,
    /// The directory, device or field is missing.
    NotPresent,
    /// This kernel was built, or booted, without it.
    KernelOff,
    /// This user may not.
    Permission,
    /// The driver or its library is missing.
    NoDriver,
    /// The device or kernel says it does not do this.
    Unsupported,
    /// Somebody else holds it.
    Busy,
    /// Descriptors or another resource ran out.
    Limit,
    /// Needs a second sample.
    WarmingUp,
    /// Opens, but does not move under known load.
    NotLive,
    /// Worked before, then vanished.
    Lost,
    /// Outside of what can be.
    Implausible,
    /// Did not answer in time.
    Timeout,
    /// Switched off by configuration.
    Off,
    /// The device is powered down and is not woken.
    Asleep,
}

impl Reason {
    /// All, by number.
    const ALL: [Reason; 15] = [
        Reason::NoPmu,
        Reason::NotPresent,
        Reason::KernelOff,
        Reason::Permission,
        Reason::NoDriver,
        Reason::Unsupported,
        Reason::Busy,
        Reason::Limit,
        Reason::WarmingUp,
        Reason::NotLive,
        Reason::Lost,
        Reason::Implausible,
        Reason::Timeout,
        Reason::Off,
        Reason::Asleep,
    ];

    /// The reason that travels as this number (its place in the list, from 0).
    pub fn from_code_number(number: u8) -> Option<Reason> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Reason::NoPmu => "no_pmu",
            Reason::NotPresent => "not_present",
            Reason::KernelOff => "kernel_off",
            Reason::Permission => "permission",
            Reason::NoDriver => "no_driver",
            Reason::Unsupported => "unsupported",
            Reason::Busy => "busy",
            Reason::Limit => "limit",
            Reason::WarmingUp => "warming_up",
            Reason::NotLive => "not_live",
            Reason::Lost => "lost",
            Reason::Implausible => "implausible",
            Reason::Timeout => "timeout",
            Reason::Off => "off",
            Reason::Asleep => "asleep",
        }
    }

    /// The reason behind an errno. By number, because `ErrorKind` throws several of them together.
    pub fn from_errno(errno: i32) -> Reason {
        match errno {
            libc::EACCES | libc::EPERM => Reason::Permission,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL => Reason::Unsupported,
            libc::EBUSY => Reason::Busy,
            libc::EMFILE | libc::ENFILE | libc::ENOSPC | libc::ENOMEM => Reason::Limit,
            libc::ESRCH | libc::ENODEV | libc::ENXIO => Reason::Lost,
            libc::EISDIR | libc::ENOTDIR => Reason::Implausible,
            libc::EAGAIN | libc::EIO | libc::ENODATA | libc::ETIMEDOUT => Reason::NotLive,
            _ => Reason::NotPresent,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A value that cannot be had, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The stable code.
    pub reason: Reason,
    /// A sentence for a person.
    pub detail: Cow<'static, str>,
    /// A command or setting that would change it, where one is known.
    pub fix: Option<Cow<'static, str>>,
}

impl Missing {
    /// A reason and a sentence.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Missing {
        Missing { reason, detail: detail.into(), fix: None }
    }

    /// With what would change it.
    pub fn fix(mut self, fix: impl Into<Cow<'static, str>>) -> Missing {
        self.fix = Some(fix.into());
        self
    }

    /// From a failed system call on `what`.
    pub fn from_io(what: impl fmt::Display, error: &io::Error) -> Missing {
        let reason = match error.raw_os_error() {
            Some(errno) => Reason::from_errno(errno),
            None if error.kind() == io::ErrorKind::InvalidData => Reason::Implausible,
            None => Reason::NotPresent,
        };
        Missing::new(reason, format!("{what}: {}", plain(error)))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl std::error::Error for Missing {}

/// The words of an error without "(os error 2)".
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// Opens without ever blocking: a named pipe in place of a file must not stop an agent.
fn open(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Reads a whole small file from its beginning into `buffer`.
fn read_whole(file: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut filled = 0;
    buffer.resize(buffer.capacity().max(4096), 0);
    loop {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if filled > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than any such file should be"));
        }
        if filled == buffer.len() {
            buffer.resize(filled * 2, 0);
        }
    }
    buffer.truncate(filled);
    Ok(())
}

/// The bytes of a small file.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, Missing> {
    let mut buffer = Vec::new();
    open(path)
        .and_then(|file| read_whole(&file, &mut buffer))
        .map_err(|error| Missing::from_io(path.display(), &error))?;
    Ok(buffer)
}

/// The text of a small file, without white space at its ends.
pub fn read_text(path: &Path) -> Result<String, Missing> {
    let bytes = read_bytes(path)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Missing::new(Reason::Implausible, format!("{}: not text", path.display())))?;
    Ok(text.trim().to_owned())
}

/// One number in a small file.
pub fn read_number<T: std::str::FromStr>(path: &Path) -> Result<T, Missing> {
    let text = read_text(path)?;
    text.parse().map_err(|_| {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(24).collect();
        Missing::new(Reason::Implausible, format!("{}: not a number: `{shown}`", path.display()))
    })
}

/// Names in a folder, sorted so that `hwmon2` stands before `hwmon10`.
pub fn list(folder: &Path) -> Result<Vec<String>, Missing> {
    let entries = std::fs::read_dir(folder).map_err(|error| Missing::from_io(folder.display(), &error))?;
    let mut names: Vec<String> =
        entries.take(100_000).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_by(|a, b| natural(a).cmp(&natural(b)));
    Ok(names)
}

/// Text and the number at its end.
fn natural(name: &str) -> (&str, u64, &str) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem, name[stem.len()..].parse().unwrap_or(0), name)
}

/// The number behind a prefix: `numbered("cpu12", "cpu") == Some(12)`.
pub fn numbered(name: &str, prefix: &str) -> Option<usize> {
    let digits = name.strip_prefix(prefix)?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Parses the kernel's list form, `0-3,8,10-11`. Bounded, so that rubbish cannot fill memory.
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut list = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if from > to || to > 65_535 {
            return None;
        }
        list.extend(from..=to);
    }
    Some(list)
}

/// A file that is read again and again: opened once, read from its beginning each time.
/// One system call a reading, against three with open and close (1.1 µs against 4.1 µs for `/proc/self/stat`).
#[derive(Debug)]
pub struct KeptFile {
    path: PathBuf,
    file: Option<File>,
    was_open: bool,
    buffer: Vec<u8>,
}

impl KeptFile {
    /// Nothing is opened before the first reading.
    pub fn new(path: impl Into<PathBuf>) -> KeptFile {
        KeptFile { path: path.into(), file: None, was_open: false, buffer: Vec::new() }
    }

    /// The text as it is now. After a failure the file is opened anew by the next call.
    pub fn read(&mut self) -> Result<&str, Missing> {
        if let Err(error) = self.fill() {
            self.file = None;
            let mut missing = Missing::from_io(self.path.display(), &error);
            if self.was_open && missing.reason == Reason::NotPresent {
                missing.reason = Reason::Lost;
            }
            return Err(missing);
        }
        self.was_open = true;
        std::str::from_utf8(&self.buffer)
            .map_err(|_| Missing::new(Reason::Implausible, format!("{}: not text", self.path.display())))
    }

    fn fill(&mut self) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path)?,
        };
        read_whole(&file, &mut self.buffer)?;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_parse_and_rubbish_does_not() {
        assert_eq!(parse_list("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list(""), Some(vec![]));
        for rubbish in ["a", "3-1", "0-99999999", "1,-2", "1--3"] {
            assert_eq!(parse_list(rubbish), None, "{rubbish}");
        }
        assert_eq!(numbered("cpu12", "cpu"), Some(12));
        assert_eq!(numbered("cpufreq", "cpu"), None);
        assert_eq!(numbered("cpu", "cpu"), None);
    }

    #[test]
    fn what_is_no_file_yields_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_text(&folder.path().join("none")).unwrap_err().reason, Reason::NotPresent);
        assert!(read_text(folder.path()).is_err());
        let binary = folder.path().join("binary");
        std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
        assert_eq!(read_text(&binary).unwrap_err().reason, Reason::Implausible);
        assert_eq!(read_number::<u64>(&binary).unwrap_err().reason, Reason::Implausible);
        let huge = folder.path().join("huge");
        File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_text(&huge).unwrap_err().reason, Reason::Implausible);
        // A device that never ends.
        assert_eq!(read_text(Path::new("/dev/zero")).unwrap_err().reason, Reason::Implausible);
    }

    #[test]
    fn a_kept_file_sees_new_content_and_says_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut kept = KeptFile::new(&path);
        assert_eq!(kept.read().unwrap_err().reason, Reason::NotPresent);
        std::fs::write(&path, "one").unwrap();
        assert_eq!(kept.read().unwrap(), "one");
        std::fs::write(&path, "three3").unwrap();
        assert_eq!(kept.read().unwrap(), "three3");
        std::fs::write(&path, "2").unwrap();
        assert_eq!(kept.read().unwrap(), "2");
    }

    #[test]
    fn names_sort_by_their_number() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["hwmon10", "hwmon2", "hwmon1"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(list(folder.path()).unwrap(), ["hwmon1", "hwmon2", "hwmon10"]);
    }
}
