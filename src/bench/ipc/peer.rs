//! The other processes of a measurement: this binary again, with memory and a socket for orders inherited.
//!
//! A peer sleeps on its socket between measurements. It ends when its parent closes the socket or dies.

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::os::affinity::pin_current_thread;
use crate::os::process::{ChildProcess, inherited};
use crate::os::spawn;

/// The word that makes the binary such a process.
pub(crate) const PEER_WORD: &str = "__bench-peer";
/// Nothing that is measured here waits so long for anything.
const HUNG: Duration = Duration::from_secs(30);

/// What to do, or what came out of it.
pub(super) type Order = [u64; 4];

/// One end of the socket between the two; every message arrives whole.
#[derive(Debug)]
pub(super) struct Control(OwnedFd);

impl Control {
    fn pair() -> io::Result<(Self, Self)> {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(near), Self(far)))
    }

    pub(super) fn send(&self, order: Order) -> io::Result<()> {
        let mut bytes = [0; size_of::<Order>()];
        for (to, word) in bytes.chunks_exact_mut(8).zip(order) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        // Not plain write: the other side may be gone, and that is an answer, not a signal.
        rustix::net::send(&self.0, &bytes, rustix::net::SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message, `None` when the other side is gone.
    pub(super) fn receive(&self) -> anyhow::Result<Option<Order>> {
        let mut bytes = [0; size_of::<Order>()];
        let length = loop {
            match rustix::io::read(&self.0, &mut bytes) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        if length == 0 {
            return Ok(None);
        }
        ensure!(length == bytes.len(), "an order of {length} bytes");
        let mut order = Order::default();
        for (word, from) in order.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(from.try_into()?);
        }
        Ok(Some(order))
    }
}

/// A peer as its parent sees it. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Peer {
    child: ChildProcess,
    control: Control,
}

impl Peer {
    /// Starts one that plays `role` on `core` and inherits `fds`, in this order.
    pub(super) fn start(role: &str, core: usize, fds: &[BorrowedFd<'_>]) -> anyhow::Result<Self> {
        let (control, far) = Control::pair()?;
        let inherit: Vec<BorrowedFd<'_>> =
            std::iter::once(far.0.as_fd()).chain(fds.iter().copied()).collect();
        let mut words = vec![PEER_WORD.to_owned(), role.to_owned(), core.to_string()];
        words.extend(inherit.iter().map(|fd| fd.as_raw_fd().to_string()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let binary = std::env::current_exe()?;
        let (silence, stderr) = (spawn::silence()?, std::io::stderr());
        let start = spawn::Order {
            program: &binary,
            arguments: &words,
            variable: None,
            inherit: &inherit,
            silence: silence.as_fd(),
            stderr: stderr.as_fd(),
            birthplace: spawn::Birthplace::Here,
            cores: None,
        };
        let child = spawn::spawn(&start)
            .with_context(|| format!("cannot start {} as the other process", binary.display()))?;
        Ok(Self { child, control })
    }

    pub(super) fn order(&self, order: Order) -> anyhow::Result<()> {
        self.control.send(order).or_else(|error| {
            self.check()?;
            Err(error.into())
        })
    }

    /// The outcome of the last order.
    pub(super) fn answer(&self) -> anyhow::Result<Order> {
        let timeout = Timespec { tv_sec: HUNG.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.control.0, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            bail!("the other process does not answer");
        }
        match self.control.receive()? {
            Some(answer) => Ok(answer),
            None => {
                self.wait_end();
                self.check()?;
                bail!("the other process closed its socket")
            }
        }
    }

    /// An error when the peer has ended.
    fn check(&self) -> anyhow::Result<()> {
        match self.child.try_reap() {
            Some(exit) => bail!("the other process ended: {}", exit.describe()),
            None => Ok(()),
        }
    }

    fn wait_end(&self) {
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&self.child, PollFlags::IN)], Some(&timeout));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill();
        self.wait_end();
        // Reaped here, so that later measurements see no dead child.
        let _ = self.child.try_reap();
    }
}

/// How one side waits for the other without sleeping.
#[derive(Clone, Copy)]
pub(super) struct Waiter<'a> {
    manner: Manner,
    /// Whose death ends the wait.
    peer: Option<&'a Peer>,
}

/// What is done between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// Both sides share a core, so each look that finds nothing gives it away.
    pub yields: bool,
    /// Pauses of the processor.
    pub pauses: u8,
}

impl Manner {
    pub(super) fn to_word(self) -> u64 {
        u64::from(self.yields) | u64::from(self.pauses) << 8
    }

    pub(super) fn from_word(word: u64) -> Self {
        Self { yields: word & 1 != 0, pauses: (word >> 8) as u8 }
    }
}

impl<'a> Waiter<'a> {
    pub(super) fn new(manner: Manner, peer: Option<&'a Peer>) -> Self {
        Self { manner, peer }
    }

    /// Looks until there is something.
    #[inline]
    pub(super) fn until<T>(self, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        let mut misses = 0u64;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            misses += 1;
            for _ in 0..self.manner.pauses {
                std::hint::spin_loop();
            }
            if self.manner.yields {
                std::thread::yield_now();
            }
            if misses.is_multiple_of(1 << 16) {
                self.still_waiting(misses)?;
            }
        }
    }

    #[cold]
    fn still_waiting(self, misses: u64) -> anyhow::Result<()> {
        if let Some(peer) = self.peer {
            peer.check()?;
        }
        // A look takes a few nanoseconds at least; a yield a few hundred.
        let most = if self.manner.yields { 1 << 28 } else { 1 << 34 };
        ensure!(misses < most, "nothing came from the other process");
        Ok(())
    }
}

/// Whether so much time has passed since `began` that something must have gone wrong.
pub(super) fn hung(began: Instant) -> bool {
    began.elapsed() > HUNG
}

/// Time that this thread was ready to run and did not, because others had its core; ns so far.
pub(super) fn kept_waiting() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Plays the part that the words name. Returns the exit code.
pub(crate) fn main(words: impl Iterator<Item = OsString>) -> u8 {
    match play(words) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: the other process of the measurement: {error:#}");
            1
        }
    }
}

fn play(mut words: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let mut word = || words.next().and_then(|word| word.into_string().ok());
    let role = word().context("no role")?;
    let core = word().context("no core")?.parse()?;
    ensure!(pin_current_thread(core), "cannot pin to core {core}");
    let mut fds = Vec::new();
    while let Some(number) = word() {
        fds.push(inherited(number.parse()?)?);
    }
    ensure!(!fds.is_empty(), "no socket");
    let control = Control(fds.remove(0));
    match role.as_str() {
        super::pair::ROLE => super::pair::follow(&control, fds),
        super::crowd::ROLE => super::crowd::follow(&control, fds),
        other => bail!("no such role: {other}"),
    }
}
