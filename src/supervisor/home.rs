//! The swarm's place on the file system: its lock, its socket, and what a killed predecessor left.
//!
//! The lock belongs to the kernel: it is free when its holder is dead, however it died, and with it a child that it was just
//! starting, which has a copy until its exec. So whoever gets the lock of a home may remove what lies in it.

use crate::os::{containment, files};
use crate::shm::segment;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOCK: &str = "lock";
const BOARD: &str = "board";
const SOCKET: &str = "control.sock";
const SNAPSHOTS: &str = "snapshots";
const CRASHES: &str = "crashes";
const ATTACH: &str = "attach.sock";
/// The folder of swarms that nobody else talks to.
const PRIVATE: &str = "private";
/// Times that a private swarm tries to make its folder while others tidy up around it.
const FOUND_TRIES: usize = 16;
/// Between two tries.
const FOUND_PAUSE: Duration = Duration::from_millis(1);
/// So long a lock whose holder is dead is waited for.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// So long any.
const REAPING: Duration = Duration::from_millis(20);
/// Longest path of a Unix socket, with its closing zero.
const SOCKET_PATH_BYTES: usize = 108;

/// Why a swarm cannot live where it wants to.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Somebody holds the lock.
    #[error("swarm {name:?} is already running (process {pid}) with state directory {}", path.display())]
    Taken {
        /// The swarm's name.
        name: String,
        /// Who holds it.
        pid: String,
        /// Where.
        path: PathBuf,
    },
    /// A folder or file could not be made.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The socket's path does not fit into a socket address.
    #[error("the control socket's path {} has {} bytes, at most {} are possible", path.display(), path.as_os_str().len(), SOCKET_PATH_BYTES - 1)]
    LongSocket {
        /// The path.
        path: PathBuf,
    },
}

/// Where states of swarms lie: `$XDG_STATE_HOME/ai_swarm` or `~/.local/state/ai_swarm`.
pub fn state_root() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("ai_swarm")
}

/// The state directory of swarm `name` when none is given.
pub fn default_state_dir(name: &str) -> PathBuf {
    state_root().join(name)
}

/// Path of the control socket of a swarm: in the runtime directory when there is one, else in its
/// state directory. A state directory that was named on the command line holds its own socket.
pub fn socket_path(name: &str, state_dir: Option<&Path>) -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match (state_dir, runtime) {
        (Some(dir), _) => dir.join(SOCKET),
        (None, Some(runtime)) => runtime.join("ai_swarm").join(name).join(SOCKET),
        (None, None) => default_state_dir(name).join(SOCKET),
    }
}

/// Where clients attach to the swarm with this control socket.
pub fn attach_path(control: &Path) -> PathBuf {
    control.with_file_name(ATTACH)
}

/// Longest text that is read where the name of a board should be.
const BOARD_NAME_BYTES: u64 = 4096;

/// A locked state directory.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    socket: Option<PathBuf>,
    /// Removed as a whole at the end.
    private: bool,
    lock: File,
}

fn make_dir(path: &Path) -> Result<(), HomeError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| HomeError::Io {
        verb: "create state directory",
        path: path.into(),
        source,
    })
}

/// The locked lock file, or who holds it.
fn lock(path: &Path) -> Result<Result<File, String>, HomeError> {
    let error = |verb| move |source| HomeError::Io { verb, path: path.join(LOCK), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join(LOCK))
        .map_err(error("open"))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        return Ok(Err(pid.trim().to_owned()));
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(error("write"))?;
    writeln!(file, "{}", std::process::id()).map_err(error("write"))?;
    Ok(Ok(file))
}

/// As [`lock`], but waits for a lock that is about to be free: its holder is dead, and so will be whoever has it still. Also for a
/// reaper, which is through at once, where nobody can tell that the holder is dead.
fn lock_of_the_dead(path: &Path) -> Result<Result<File, String>, HomeError> {
    let began = Instant::now();
    loop {
        match lock(path)? {
            Err(pid) if began.elapsed() < if is_dead(&pid) { LAST_BREATH } else { REAPING } => {
                std::thread::sleep(FOUND_PAUSE);
            }
            outcome => return Ok(outcome),
        }
    }
}

/// What the next start in a home would have done, before there is one: its supervisor, the process `dead`, was killed.
pub(super) fn tidy_after(path: &Path, sockets: Option<&Path>, is_private: bool, dead: u32) {
    let Some(lock) = lock_after(path, dead) else { return };
    let token = remove_board(path);
    sockets.into_iter().for_each(remove_sockets);
    if is_private {
        remove_private(path);
    }
    // From here on nothing depends on the place, and whoever waits for it can have it.
    drop(lock);
    if let Some(token) = token {
        end_strays_of(&token);
    }
}

/// The lock of a home whose supervisor, the process `dead`, was killed; `None` when somebody else was quicker.
fn lock_after(path: &Path, dead: u32) -> Option<File> {
    let began = Instant::now();
    // That of a private home may be gone already.
    let mut file = OpenOptions::new().read(true).open(path.join(LOCK)).ok()?;
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        // Somebody who dies as well has a copy still, or there is a successor.
        if began.elapsed() > LAST_BREATH {
            return None;
        }
        std::thread::sleep(FOUND_PAUSE);
    }
    let mut pid = String::new();
    // Of another one: there was a successor, which has tidied up and has ended, too.
    (file.read_to_string(&mut pid).is_ok() && pid.trim() == dead.to_string()).then_some(file)
}

/// Removes the sockets that nobody listens on. The dead one's gateway may take a moment to die.
fn remove_sockets(folder: &Path) {
    for path in [SOCKET, ATTACH].map(|name| folder.join(name)) {
        let began = Instant::now();
        while began.elapsed() < LAST_BREATH {
            match UnixStream::connect(&path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = fs::remove_file(&path);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                _ => std::thread::sleep(FOUND_PAUSE),
            }
        }
    }
}

/// Removes a private home, and the folder of all when it was the last one; while others are there, that does nothing.
fn remove_private(path: &Path) {
    let _ = fs::remove_dir_all(path);
    if let Some(root) = path.parent() {
        let _ = fs::remove_dir(root);
    }
}

/// Whether /proc shows that process no more, or as one that has ended.
fn is_dead(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The name before the state may hold anything, so from its last parenthesis on.
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

impl Home {
    /// The home of a named swarm. Removes what a killed predecessor left there.
    pub fn claim(name: &str, state_dir: Option<&Path>, with_socket: bool) -> Result<Self, HomeError> {
        let path = state_dir.map_or_else(|| default_state_dir(name), Path::to_path_buf);
        make_dir(&path)?;
        let lock = lock_of_the_dead(&path)?.map_err(|pid| HomeError::Taken {
            name: name.to_owned(),
            pid,
            path: path.clone(),
        })?;
        clean(&path);
        let socket = with_socket.then(|| socket_path(name, state_dir));
        if let Some(socket) = &socket {
            if socket.as_os_str().len() >= SOCKET_PATH_BYTES {
                return Err(HomeError::LongSocket { path: socket.clone() });
            }
            if let Some(folder) = socket.parent() {
                make_dir(folder)?;
            }
            // Whoever listens there still has lost its home.
            let _ = fs::remove_file(socket);
            let _ = fs::remove_file(attach_path(socket));
        }
        Ok(Self { path, socket, private: false, lock })
    }

    /// A home for a swarm that nobody else talks to, gone with it. What killed ones left is removed.
    pub fn private(state_dir: Option<&Path>, token: &str) -> Result<Self, HomeError> {
        let root = state_dir.map_or_else(state_root, Path::to_path_buf).join(PRIVATE);
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            // Ours alone to remove once we hold its lock, which means that its owner is dead.
            if let Ok(Ok(_lock)) = lock(&entry.path()) {
                clean(&entry.path());
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = root.join(token);
        // Until it is locked, others that start or end at this moment may take it for a leftover.
        let mut outcome = Self::found(&path, token);
        for _ in 1..FOUND_TRIES {
            match outcome {
                Ok(_) => break,
                Err(_) => {
                    std::thread::sleep(FOUND_PAUSE);
                    outcome = Self::found(&path, token);
                }
            }
        }
        Ok(Self { path: path.clone(), socket: None, private: true, lock: outcome? })
    }

    /// Makes and locks a folder. Fails when somebody removes it meanwhile.
    fn found(path: &Path, name: &str) -> Result<File, HomeError> {
        make_dir(path)?;
        let taken = |pid| HomeError::Taken { name: name.to_owned(), pid, path: path.to_owned() };
        let lock = lock(path)?.map_err(taken)?;
        // The lock of a file that was removed in between is nobody's lock.
        match files::is_at(&lock, &path.join(LOCK)) {
            Ok(true) => Ok(lock),
            Ok(false) => Err(taken("unknown".to_owned())),
            Err(source) => Err(HomeError::Io { verb: "lock", path: path.join(LOCK), source }),
        }
    }

    /// Whether the directory is still at its path. It may have been moved or removed, and another swarm may live there.
    pub(super) fn is_there(&self) -> bool {
        files::is_at(&self.lock, &self.path.join(LOCK)).unwrap_or(false)
    }

    /// The state directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nobody else talks to this swarm, so that nothing of it is of use to anybody afterwards.
    pub(super) fn is_private(&self) -> bool {
        self.private
    }

    /// Where channels that carried nonsense are kept; nowhere in a private swarm.
    pub fn crashes(&self) -> Option<PathBuf> {
        (!self.private).then(|| self.path.join(CRASHES))
    }

    /// Where agents keep what they know; nowhere in a private swarm, which is gone as a whole.
    pub fn snapshots(&self) -> Option<PathBuf> {
        (!self.private).then(|| self.path.join(SNAPSHOTS))
    }

    /// Where the control socket goes, if this swarm has one.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Where clients attach, if this swarm can be talked to.
    pub fn attach_socket(&self) -> Option<PathBuf> {
        self.socket.as_deref().map(attach_path)
    }

    /// Notes the board's name, before the board is created, so that a successor can remove it.
    pub fn note_board(&self, name: &str) -> Result<(), HomeError> {
        let path = self.path.join(BOARD);
        fs::write(&path, name).map_err(|source| HomeError::Io { verb: "write", path, source })
    }
}

/// Removes what a dead swarm left in its home, and whom.
fn clean(path: &Path) {
    if let Some(token) = remove_board(path) {
        let ended = end_strays_of(&token);
        if ended > 0 {
            tracing::info!(ended, "ended what agents of a killed swarm had left behind");
        }
    }
}

/// Removes a dead swarm's board; the token of that life. The name is checked: it came from a file that others may have written.
fn remove_board(path: &Path) -> Option<String> {
    let mut name = String::new();
    files::open_regular(&path.join(BOARD)).ok()?.take(BOARD_NAME_BYTES).read_to_string(&mut name).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.starts_with("ai_swarm-")
        && name.len() < 200
        && name.chars().all(plain)
        && segment::remove_leftover(&name)
    {
        tracing::info!(segment = name, "removed what a killed swarm left");
    }
    let _ = fs::remove_file(path.join(BOARD));
    name.rsplit_once('-').filter(|(_, token)| token.len() == 16).map(|(_, token)| token.to_owned())
}

/// A dead swarm's agents died with it; what they had started may not have. No other life has its token.
fn end_strays_of(token: &str) -> usize {
    containment::end_strays(|life| life.strip_prefix(token).is_some_and(|rest| rest.starts_with('.')))
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.is_there() {
            return;
        }
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket);
        }
        let _ = fs::remove_file(self.path.join(BOARD));
        if self.private {
            remove_private(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_swarm_per_home_and_the_second_hears_who_is_there() {
        let folder = tempfile::tempdir().expect("folder");
        let home = Home::claim("x", Some(folder.path()), true).expect("free");
        let error = Home::claim("x", Some(folder.path()), true).expect_err("taken").to_string();
        assert!(error.contains(&format!("already running (process {})", std::process::id())), "{error}");
        drop(home);
        Home::claim("x", Some(folder.path()), true).expect("free again");
    }

    #[test]
    fn a_lock_that_outlives_its_holder_by_a_moment_is_waited_for() {
        let folder = tempfile::tempdir().expect("folder");
        let copy = lock(folder.path()).expect("a file").expect("free");
        // No process has this number.
        fs::write(folder.path().join(LOCK), "4194305").expect("written");
        let (waited, free) = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                drop(copy);
            });
            let began = Instant::now();
            (lock_of_the_dead(folder.path()).expect("a file"), began.elapsed())
        });
        assert!(waited.is_ok() && free >= Duration::from_millis(40), "{waited:?} after {free:?}");
    }

    #[test]
    fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let name = format!("ai_swarm-test-left-{}", std::process::id());
        let dead = folder.path().join("private").join("dead");
        fs::create_dir_all(&dead).expect("folder");
        fs::write(dead.join(BOARD), &name).expect("note");
        fs::write(Path::new("/dev/shm").join(&name), "x").expect("segment");
        let living = Home::private(Some(folder.path()), "living").expect("home");
        assert!(!dead.exists() && !Path::new("/dev/shm").join(&name).exists());
        let second = Home::private(Some(folder.path()), "second").expect("home");
        assert!(living.path().exists());
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists());
        let root = folder.path().join(PRIVATE);
        assert!(root.exists() && living.path().exists(), "somebody is still there");
        drop(living);
        assert!(!root.exists() && folder.path().exists(), "the last one leaves nothing");
    }

    #[test]
    fn private_homes_come_and_go_at_the_same_time() {
        let folder = tempfile::tempdir().expect("folder");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    for round in 0..100 {
                        let token = format!("{thread}-{round}");
                        let home = Home::private(Some(folder), &token).expect("a home of its own");
                        assert!(home.path().join(LOCK).exists());
                    }
                });
            }
        });
        assert!(!folder.path().join(PRIVATE).exists());
    }

    #[test]
    fn a_note_with_a_foreign_name_removes_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let victim = folder.path().join("victim");
        fs::write(&victim, "x").expect("file");
        fs::write(folder.path().join(BOARD), format!("ai_swarm-../..{}", victim.display())).expect("note");
        let _home = Home::claim("x", Some(folder.path()), false).expect("home");
        assert!(victim.exists());
    }

    #[test]
    fn impossible_places_are_named() {
        let error =
            Home::claim("x", Some(Path::new("/proc/nowhere")), false).expect_err("not possible").to_string();
        assert!(error.contains("cannot create state directory /proc/nowhere"), "{error}");
        let long = Path::new("/tmp").join("x".repeat(120));
        let error = Home::claim("x", Some(&long), true).expect_err("too long").to_string();
        let _ = fs::remove_dir_all(&long);
        assert!(error.contains("at most 107 are possible"), "{error}");
    }
}
