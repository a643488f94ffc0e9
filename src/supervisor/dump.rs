//! What is kept of an agent that wrote nonsense: the bytes of its channel, and what was found in them.
//!
//! The channel itself goes with the agent. So its bytes are copied into the state directory, by a thread of its own: the
//! loop waits for no disk. The newest few are kept, `AGENT-TIME.channel` beside `AGENT-TIME.json`.

use crate::base::clock::wall_rfc3339;
use crate::shm::Words;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Channels that are kept; each has the size of `channel_size`.
const KEPT: usize = 8;

/// Begins to save the channel of `agent`, and what is said `about` it, in `folder`. Where the bytes will be found.
pub(super) fn save(folder: PathBuf, agent: &str, channel: Arc<Words>, about: Value) -> io::Result<PathBuf> {
    // A name that sorts by time and that every file system takes.
    let time: String = wall_rfc3339().chars().filter(char::is_ascii_alphanumeric).collect();
    let path = folder.join(format!("{agent}-{time}.channel"));
    let place = path.clone();
    std::thread::Builder::new().name("dump".to_owned()).spawn(move || {
        if let Err(error) = write(&folder, &place, &channel, &about) {
            tracing::warn!("the damaged channel could not be saved as {}: {error}", place.display());
        }
    })?;
    Ok(path)
}

fn write(folder: &Path, path: &Path, channel: &Words, about: &Value) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let words = (0..channel.len()).map(|at| channel.word(at).load(Ordering::Relaxed));
    fs::write(path, words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;
    fs::write(path.with_extension("json"), format!("{about:#}\n"))?;
    let dumps = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut dumps: Vec<_> = dumps
        .filter(|path| path.extension().is_some_and(|end| end == "channel"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    dumps.sort();
    for (_, old) in dumps.iter().rev().skip(KEPT) {
        fs::remove_file(old)?;
        // One that was cut off while it was written has no words beside it.
        let _ = fs::remove_file(old.with_extension("json"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_are_kept_whole() {
        let home = tempfile::tempdir().expect("folder");
        let channel = Words::private(64);
        let folder = home.path().join("crashes");
        for number in 0..KEPT as u64 + 3 {
            channel.word(1).store(number, Ordering::Relaxed);
            let path = folder.join(format!("compute-0-{number:02}.channel"));
            write(&folder, &path, &channel, &json!({"number": number})).expect("room");
            let bytes = fs::read(&path).expect("written");
            assert_eq!((bytes.len(), &bytes[8..16]), (512, &number.to_le_bytes()[..]));
        }
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 2 * KEPT);
        assert!(!folder.join("compute-0-02.json").exists() && folder.join("compute-0-03.json").exists());
    }
}
