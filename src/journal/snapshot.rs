//! What an agent or the supervisor knows, kept over its death, the swarm's and the host's: one small file per name and machine.
//!
//! ```text
//!  STATE/snapshots/cost-model-6c1f02aa.17.json
//!  {"snapshot":1,"name":"cost-model","generation":17,"machine":"…","product":"0.1.0","bytes":812,"crc32c":"9af31b22"}
//!  { …the state, as JSON that a person can read… }
//! ```
//! Invariants
//! 1. A file appears by rename, whole and synced; the two newest generations are kept.
//! 2. Only what agrees with its header in length and checksum is restored, the newest such file first. The others are
//!    set aside as `….damaged` and told of; nothing is repaired and nothing is guessed.
//! 3. What was learned on one machine is not told to another: the processor, the number of cores and the widest
//!    instruction set are part of the name.
//!
//! A snapshot is advice. Whoever restores one checks every value as if a stranger had written it.

use crate::base::trouble;
use crate::kernels::Level;
use crate::os::topology::Topology;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Version of the format.
const FORMAT: u32 = 1;
/// Longest file that is read: a model of every kernel, size and agent is far below.
const BYTES_MAX: u64 = 16 << 20;
/// Generations that are kept.
const KEPT: usize = 2;

/// Name of this machine: what learned times and choices depend on.
pub(crate) fn machine(topology: &Topology) -> String {
    let model = topology.model.as_deref().unwrap_or(std::env::consts::ARCH);
    format!("{model}, {} cpus, {}", topology.online.len(), Level::best().name())
}

/// First line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    snapshot: u32,
    name: String,
    generation: u64,
    machine: String,
    /// Version of the program that wrote it.
    product: String,
    bytes: usize,
    crc32c: String,
}

/// The files of one name.
#[derive(Debug)]
pub(crate) struct Snapshots {
    folder: PathBuf,
    name: &'static str,
    machine: String,
    /// `cost-model-6c1f02aa`.
    stem: String,
    /// Of the newest file, sound or not.
    generation: u64,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Restored<T> {
    /// The newest sound state, its generation and the version of the program that wrote it.
    pub state: Option<(T, u64, String)>,
    /// Files that were set aside, each with what is wrong with it.
    pub damaged: Vec<(PathBuf, String)>,
}

impl Snapshots {
    pub(crate) fn new(folder: &Path, name: &'static str, machine: String) -> Self {
        let stem = format!("{name}-{:08x}", crc32c::crc32c(machine.as_bytes()));
        Self { folder: folder.to_owned(), name, machine, stem, generation: 0 }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest sound state. Sets damaged files aside and removes what a killed writer left half done.
    /// An error is one of the folder itself; no folder is no state.
    pub(crate) fn restore<T: DeserializeOwned>(&mut self) -> io::Result<Restored<T>> {
        let mut restored = Restored { state: None, damaged: Vec::new() };
        for (generation, path) in self.files()?.into_iter().rev() {
            self.generation = self.generation.max(generation);
            if restored.state.is_some() {
                break;
            }
            match self.read(&path, generation) {
                Ok((state, product)) => restored.state = Some((state, generation, product)),
                Err(why) => {
                    let aside = path.with_extension("json.damaged");
                    fs::rename(&path, &aside)?;
                    restored.damaged.push((aside, why));
                }
            }
        }
        Ok(restored)
    }

    /// Writes the next generation and removes those that are too old.
    pub(crate) fn save<T: Serialize>(&mut self, state: &T) -> io::Result<()> {
        let mut body = serde_json::to_string_pretty(state)?;
        body.push('\n');
        let generation = self.generation + 1;
        let header = Header {
            snapshot: FORMAT,
            name: self.name.to_owned(),
            generation,
            machine: self.machine.clone(),
            product: env!("CARGO_PKG_VERSION").to_owned(),
            bytes: body.len(),
            crc32c: format!("{:08x}", crc32c::crc32c(body.as_bytes())),
        };
        // Not the folders above: where a state directory was removed, none shall be made that says that there was a swarm.
        match fs::create_dir(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = self.path(generation);
        let temporary = self.folder.join(format!(".{}.{}.tmp", self.stem, std::process::id()));
        let written = (|| {
            trouble::check("snapshot")?;
            let mut file = File::create(&temporary)?;
            trouble::check("snapshot")?;
            writeln!(file, "{}", serde_json::to_string(&header)?)?;
            file.write_all(body.as_bytes())?;
            trouble::check("snapshot")?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        self.generation = generation;
        let files = self.files()?;
        for (_, old) in files.iter().take(files.len().saturating_sub(KEPT)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.folder.join(format!("{}.{generation}.json", self.stem))
    }

    /// Files of this name and machine, oldest first. Half-written ones of killed processes are removed on the way:
    /// only one agent at a time has this name.
    fn files(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let of_us = |text: &str| text.strip_prefix(&self.stem)?.strip_prefix('.').map(str::to_owned);
            if file.strip_prefix('.').and_then(of_us).is_some_and(|rest| rest.ends_with(".tmp")) {
                fs::remove_file(&path)?;
            } else if let Some(generation) =
                of_us(file).and_then(|rest| rest.strip_suffix(".json")?.parse().ok())
            {
                files.push((generation, path));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// The state in a file and the version that wrote it, or what is wrong.
    fn read<T: DeserializeOwned>(&self, path: &Path, generation: u64) -> Result<(T, String), String> {
        let mut text = String::new();
        let file = crate::os::files::open_regular(path).map_err(|error| error.to_string())?;
        file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text.len() as u64 > BYTES_MAX {
            return Err(format!("longer than {BYTES_MAX} bytes"));
        }
        let (first, body) = text.split_once('\n').ok_or("cut off in its first line")?;
        let header: Header = serde_json::from_str(first).map_err(|error| format!("first line: {error}"))?;
        if header.snapshot != FORMAT {
            return Err(format!("format {}, known is {FORMAT}", header.snapshot));
        }
        if (header.name.as_str(), header.generation) != (self.name, generation) {
            return Err(format!("says of itself that it is {} {}", header.name, header.generation));
        }
        if header.machine != self.machine {
            return Err(format!("of another machine: {}", header.machine));
        }
        if header.bytes != body.len() {
            return Err(format!("{} bytes of state where {} were written", body.len(), header.bytes));
        }
        let sum = format!("{:08x}", crc32c::crc32c(body.as_bytes()));
        if header.crc32c != sum {
            return Err(format!("checksum {sum} where {} was written", header.crc32c));
        }
        serde_json::from_str(body).map(|state| (state, header.product)).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(folder: &Path) -> Snapshots {
        Snapshots::new(folder, "numbers", "a machine, 2 cpus".to_owned())
    }

    fn newest(folder: &Path) -> Restored<Vec<u64>> {
        open(folder).restore().expect("a folder")
    }

    /// The two newest of three generations, in a folder of their own.
    fn kept() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        let mut snapshots = open(folder.path());
        for last in 1..=3 {
            snapshots.save(&(0..last).collect::<Vec<u64>>()).expect("saved");
        }
        folder
    }

    #[test]
    fn the_newest_comes_back_and_two_are_kept() {
        let folder = kept();
        let (state, generation, product) = newest(folder.path()).state.expect("a state");
        assert_eq!((state, generation, product.as_str()), (vec![0, 1, 2], 3, env!("CARGO_PKG_VERSION")));
        assert_eq!(open(folder.path()).files().expect("files").len(), 2);
    }

    #[test]
    fn nothing_comes_of_nothing_and_of_another_machine() {
        let folder = kept();
        assert!(newest(&folder.path().join("absent")).state.is_none());
        let mut other = Snapshots::new(folder.path(), "numbers", "another machine, 64 cpus".to_owned());
        let restored = other.restore::<Vec<u64>>().expect("folder");
        assert!(restored.state.is_none() && restored.damaged.is_empty());
    }

    #[test]
    fn a_killed_writer_leaves_nothing_behind() {
        let folder = kept();
        let half = folder.path().join(format!(".{}.4711.tmp", open(folder.path()).stem));
        fs::write(&half, "{").expect("written");
        assert!(newest(folder.path()).state.is_some() && !half.exists());
    }

    #[test]
    fn generations_go_on_after_a_damaged_one() {
        let folder = kept();
        let mut snapshots = open(folder.path());
        fs::write(snapshots.path(3), "").expect("damage");
        assert_eq!(snapshots.restore::<Vec<u64>>().expect("folder").state.map(|state| state.1), Some(2));
        snapshots.save(&vec![9]).expect("saved");
        assert_eq!(newest(folder.path()).state.map(|state| (state.0, state.1)), Some((vec![9], 4)));
    }

    #[test]
    fn a_cut_at_any_byte_is_found_and_the_one_before_comes_back() {
        let folder = kept();
        let path = open(folder.path()).path(3);
        let whole = fs::read(&path).expect("file");
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).expect("damage");
            let restored = newest(folder.path());
            assert_eq!(restored.state.map(|state| state.1), Some(2), "cut at {cut}");
            let [(aside, why)] = &restored.damaged[..] else { panic!("one damaged file: {cut}") };
            assert!(aside.extension().is_some_and(|end| end == "damaged") && !why.is_empty());
            fs::remove_file(aside).expect("aside");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn a_flipped_bit_changes_nothing_that_is_believed(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let folder = kept();
            let path = open(folder.path()).path(3);
            let mut bytes = fs::read(&path).expect("file");
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            fs::write(&path, &bytes).expect("damage");
            let (state, generation, _) = newest(folder.path()).state.expect("one of the two");
            // A flip in the version of the program or in white space of the header is no harm to the state.
            let expected = if generation == 3 { vec![0, 1, 2] } else { vec![0, 1] };
            prop_assert_eq!(state, expected);
        }
    }
}
