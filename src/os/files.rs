//! Files that somebody may have put something else in the place of.

use std::fs::{File, OpenOptions, metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Opens a file to read it. What is none is an error, and a pipe never a wait for whoever has its other end.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
}

/// Whether this open file is the one at `path`, and not somebody else's, or nobody's.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (file, there) = (file.metadata()?, metadata(path)?);
    Ok((file.dev(), file.ino()) == (there.dev(), there.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_no_file_and_nobody_waits_for_it() {
        let folder = tempfile::tempdir().expect("folder");
        let [file, pipe] = ["file", "pipe"].map(|name| folder.path().join(name));
        std::fs::write(&file, "words").expect("written");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("made");
        assert!(open_regular(&file).is_ok());
        for path in [&pipe, folder.path(), &folder.path().join("nothing")] {
            assert!(open_regular(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn a_file_is_known_wherever_it_went() {
        let folder = tempfile::tempdir().expect("folder");
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        let file = File::create(&one).expect("made");
        assert!(is_at(&file, &one).expect("there"));
        std::fs::rename(&one, &two).expect("renamed");
        File::create(&one).expect("made");
        assert!(!is_at(&file, &one).expect("there") && is_at(&file, &two).expect("there"));
        std::fs::remove_file(&two).expect("removed");
        assert!(is_at(&file, &two).is_err());
    }
}
