//! Two attached clients, one in each process: the same messages as through a bare ring, by the library and with all
//! that it does beside: counting, waking, looking for what the supervisor and other members say.
//!
//! A swarm of its own runs beside them on all cores, with nothing to do. It ends with the measurement.

use anyhow::{Context as _, bail, ensure};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::pair::{Talk, bytes, number};
use super::peer::Waiter;
use crate::client::{Attach, Client, ClientError, Mail, Peer};
use crate::os::affinity::CoreMask;
use crate::shm::ring::SLOT_PAYLOAD;

/// A swarm that is not there by then never will be.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the two are called in it.
pub(super) const LEAD: &str = "bench-lead";
pub(super) const FOLLOW: &str = "bench-follow";

/// A running swarm for the clients of this process and its peers.
pub(super) struct Swarm {
    child: Child,
    folder: PathBuf,
}

/// Where the swarm lives that the process `lead` started.
fn folder(lead: u64) -> PathBuf {
    std::env::temp_dir().join(format!("ai_swarm-bench-{lead}"))
}

impl Swarm {
    /// Starts it on these cores, whatever cores the calling thread may use.
    pub(super) fn start(cores: &[usize]) -> anyhow::Result<Self> {
        let lead = u64::from(std::process::id());
        let (folder, binary) = (folder(lead), std::env::current_exe()?);
        std::fs::create_dir_all(&folder)?;
        let config = folder.join("config.json");
        std::fs::write(&config, r#"{"agents": {"compute": {"count": 1}}}"#)?;
        let mut command = Command::new(binary);
        command.arg("--name").arg(format!("bench-{lead}")).arg("--state-dir").arg(&folder);
        command.arg("--config").arg(config).args(["--log-level", "error", "--quiet"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A child has the cores of the thread that starts it.
        let cores = CoreMask::of(cores.iter().copied());
        let start = move || {
            cores.apply();
            command.spawn()
        };
        let started = std::thread::spawn(start).join();
        let Ok(started) = started else { bail!("the thread that starts a swarm panicked") };
        Ok(Self { child: started.context("cannot start a swarm")?, folder })
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let began = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if began.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// One client that talks to the other one.
pub(super) struct ClientTalk {
    client: Client,
    peer: Option<Peer>,
    mail: Mail,
}

impl ClientTalk {
    /// Attaches to the swarm that the process `lead` started.
    pub(super) fn attach(lead: u64, name: &str) -> anyhow::Result<Self> {
        let began = Instant::now();
        let client = loop {
            match Attach::to(&format!("bench-{lead}")).state_dir(&folder(lead)).as_client(name).attach() {
                Ok(client) => break client,
                Err(ClientError::NotRunning { .. }) if began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Self { client, peer: None, mail: Mail::default() })
    }

    /// The line to the other one.
    pub(super) fn connect(&mut self, name: &str) -> anyhow::Result<()> {
        self.peer = Some(self.client.connect(name)?);
        Ok(())
    }

    fn peer(&self) -> anyhow::Result<Peer> {
        self.peer.context("not connected")
    }

    /// Sends messages 0 to `count`, in batches of `N`.
    pub(super) fn send_batches<const N: usize>(
        &mut self,
        count: u64,
        waiter: Waiter<'_>,
    ) -> anyhow::Result<()> {
        let peer = self.peer()?;
        let mut payloads = [[0; SLOT_PAYLOAD]; N];
        let mut next = 0;
        while next < count {
            let batch = N.min((count - next) as usize);
            for (at, payload) in payloads[..batch].iter_mut().enumerate() {
                *payload = bytes(next + at as u64);
            }
            let mut at = 0;
            while at < batch {
                at += waiter.until(|| match self.client.send_all(peer, &payloads[at..batch])? {
                    0 => Ok(None),
                    sent => Ok(Some(sent)),
                })?;
            }
            next += batch as u64;
        }
        Ok(())
    }
}

impl Talk for ClientTalk {
    #[inline]
    fn send(&mut self, number: u64, waiter: Waiter<'_>) -> anyhow::Result<()> {
        let peer = self.peer()?;
        let payload = bytes::<SLOT_PAYLOAD>(number);
        waiter.until(|| match self.client.send(peer, &payload) {
            Ok(()) => Ok(Some(())),
            Err(ClientError::Port(error)) if error.is_full() => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<Option<u64>> {
        if !self.client.try_receive(&mut self.mail)? {
            ensure!(!self.client.has_ended(), "the swarm ended");
            return Ok(None);
        }
        number::<SLOT_PAYLOAD>(self.mail.payload()).map(Some)
    }
}
