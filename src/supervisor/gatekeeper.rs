//! Keeps a gateway: a process of its own that speaks HTTP on the control socket, so that nothing which happens there
//! concerns the swarm. It is started when the agents are, and replaced when it dies, stands still or writes nonsense.
//!
//! The listening socket stays here and is only lent: while there is no gateway, connections wait in its backlog, and
//! nobody is told that no swarm is running.
//!
//! How a gateway is found to stand still: the kernel says of a child whether somebody has stopped it, for certain and at
//! once. Whether it turns at all, it says itself when asked; seldom, because it may be busy with a large request for
//! seconds, and then it is not hung.

use super::action::GatewayView;
use super::hatch::Hatch;
use super::wire::{GATEWAY_WORD, GatewayStart};
use super::*;
use crate::os::process::Exit;
use crate::os::socket;
use crate::os::spawn::{Birthplace, Order};
use rustix::net::SocketType;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// After its last word it is asked for a sign of life;
const PING_AFTER: Duration = Duration::from_secs(10);
/// and replaced when it has not given one for so long. The largest request keeps it busy for a few seconds.
const HUNG_AFTER: Duration = Duration::from_secs(40);
/// Longest pause before a start, when one after the other dies young: the API is back within a second even then.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Told to end, it has so long.
const END_LIMIT: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Gatekeeper {
    socket: PathBuf,
    listener: OwnedFd,
    start: GatewayStart,
    /// Where it runs, and our threads that talk to it: whatever happens wakes them, and where cores are few there is more than ours.
    cores: CoreMask,
    life: Option<Life>,
    /// The next look, or while none lives the next start.
    due: Nanos,
    history: RestartRecord,
    restarts: u32,
    /// Of what the last one died, until there is another.
    died_of: Option<String>,
}

/// One gateway.
struct Life {
    child: ChildProcess,
    hatch: Hatch,
    born: Nanos,
    pinged: bool,
    /// Why we killed it.
    killed_for: Option<String>,
}

impl Gatekeeper {
    /// Listens on `socket`, for processes of our own user and root only. From here on clients can connect.
    pub(super) fn listen(
        socket: &Path,
        start: GatewayStart,
        cores: CoreMask,
        now: Nanos,
    ) -> io::Result<Self> {
        Ok(Self {
            socket: socket.to_owned(),
            listener: socket::listen(socket, SocketType::STREAM)?,
            start,
            cores,
            life: None,
            due: now,
            history: RestartRecord::new(now.0),
            restarts: 0,
            died_of: None,
        })
    }

    pub(super) fn view(&self) -> GatewayView {
        GatewayView { pid: self.pid(), restarts: self.restarts }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.life.as_ref().map(|life| life.child.pid())
    }

    /// Starts the process. It is one of ours and none of the agents': a supervisor that loses its agents keeps it.
    fn spawn(&self, nursery: &Nursery, handle: Handle) -> io::Result<Life> {
        let (here, there) = UnixStream::pair()?;
        let numbers = [self.listener.as_raw_fd(), there.as_raw_fd()].map(|fd| fd.to_string());
        // The gateway reads the numbers only; the name is for `ps`.
        let arguments = [GATEWAY_WORD, &numbers[0], &numbers[1], &nursery.swarm];
        let child = crate::os::spawn::spawn(&Order {
            program: Path::new("/proc/self/exe"),
            arguments: &arguments,
            variable: None,
            inherit: &[self.listener.as_fd(), there.as_fd()],
            silence: nursery.silence.as_fd(),
            stderr: nursery.log.as_fd(),
            birthplace: Birthplace::Here,
            cores: Some(self.cores),
        })?;
        match Hatch::open(here, &self.start, self.cores, move |action, answer| handle.ask(action, answer)) {
            Ok(hatch) => Ok(Life { child, hatch, born: clock::now(), pinged: false, killed_for: None }),
            Err(error) => {
                end_and_wait(&child);
                Err(error)
            }
        }
    }
}

impl Life {
    /// Why it has to go, if so.
    fn fault(&mut self, now: Nanos) -> Option<String> {
        if self.hatch.broken().is_some() {
            return self.nonsense();
        }
        if self.child.is_stopped() {
            return Some("killed: somebody had stopped it".to_owned());
        }
        let silent = now.since(self.hatch.heard());
        if silent > HUNG_AFTER && self.pinged {
            return Some(format!("killed: no sign of life for {} s", HUNG_AFTER.as_secs()));
        }
        if silent < PING_AFTER {
            self.pinged = false;
        } else if !self.pinged {
            self.pinged = true;
            self.hatch.ping();
        }
        None
    }

    fn nonsense(&self) -> Option<String> {
        self.hatch.broken().map(|nonsense| format!("it wrote nonsense: {nonsense}"))
    }
}

impl Supervisor {
    /// When the gateway is to be looked at next.
    pub(super) fn next_gateway(&self) -> Option<Nanos> {
        self.gatekeeper.as_ref().filter(|_| !self.closing).map(|keeper| keeper.due)
    }

    /// The gateway's process.
    pub(super) fn gateway_pid(&self) -> Option<u32> {
        self.gatekeeper.as_ref().and_then(Gatekeeper::pid)
    }

    /// Looks at the gateway, or starts one.
    pub(super) fn tend_gateway(&mut self) {
        let now = self.now;
        if self.next_gateway().is_none_or(|due| due > now) {
            return;
        }
        let Some(keeper) = &mut self.gatekeeper else { return };
        keeper.due = now.next(degradation::LOOK_EVERY);
        match &mut keeper.life {
            Some(life) if life.killed_for.is_some() => {}
            Some(life) => {
                life.killed_for = life.fault(now);
                if life.killed_for.is_some() {
                    // Its death comes back like any other.
                    life.child.kill();
                }
            }
            None => self.start_gateway(),
        }
    }

    fn start_gateway(&mut self) {
        let Some(keeper) = &mut self.gatekeeper else { return };
        let life = keeper.spawn(&self.nursery, self.handle.clone()).and_then(|life| {
            let data = epoll::EventData::new_u64(WATCH_GATEWAY);
            match epoll::add(&self.epoll, &life.child, data, epoll::EventFlags::IN) {
                Ok(()) => Ok(life),
                Err(errno) => {
                    // Unwatched, its death would go unnoticed.
                    end_and_wait(&life.child);
                    Err(errno.into())
                }
            }
        });
        match life {
            Ok(life) => {
                self.events.follow_by(life.hatch.news());
                let pid = life.child.pid();
                keeper.life = Some(life);
                if let Some(cause) = keeper.died_of.take() {
                    keeper.restarts += 1;
                    let text = format!("the one before: {cause}; process {pid} took its place");
                    self.events.add(Severity::Warning, "gateway_restarted", None, text);
                }
            }
            Err(error) => {
                let born = self.now;
                let text = format!("cannot start: {error}");
                self.events.add(Severity::Warning, "gateway_start_failed", None, text);
                self.schedule_gateway(born, Doing::ItsOwn);
            }
        }
    }

    /// The gateway's process has ended; unless the swarm does too, there is another one at once.
    pub(super) fn on_gateway_gone(&mut self) {
        let Some(keeper) = &mut self.gatekeeper else { return };
        let Some(exit) = keeper.life.as_ref().and_then(|life| life.child.try_reap()) else { return };
        let Some(life) = keeper.life.take() else { return };
        let is_outside = matches!(exit, Exit::Signal(libc::SIGKILL | libc::SIGTERM));
        // A line that was broken off ends a sound gateway by itself.
        let cause = life.nonsense().or(life.killed_for);
        keeper.died_of = Some(cause.unwrap_or_else(|| exit.describe()));
        self.schedule_gateway(life.born, if is_outside { Doing::Outside } else { Doing::ItsOwn });
        self.tend_gateway();
    }

    fn schedule_gateway(&mut self, born: Nanos, doing: Doing) {
        // Never benched: the control API is what somebody would look with for the reason.
        let limits = RestartLimits { limit: u32::MAX, backoff_max: PAUSE_MAX, ..self.restart_limits() };
        let Some(keeper) = &mut self.gatekeeper else { return };
        let (Decision::At(when) | Decision::Bench(when)) =
            keeper.history.on_death(born, doing, self.now, &limits);
        keeper.due = when;
    }

    /// No more requests: answers that are ready go out, streams end, the socket is gone.
    pub(super) fn close_gateway(&mut self) {
        let Some(keeper) = self.gatekeeper.take() else { return };
        if self.home.is_there() {
            let _ = std::fs::remove_file(&keeper.socket);
        }
        drop(keeper.listener);
        let Some(life) = keeper.life else { return };
        life.hatch.close();
        if !life.child.ends_within(END_LIMIT) {
            tracing::warn!("the gateway did not end when told to, and was killed");
            end_and_wait(&life.child);
        }
    }
}

fn end_and_wait(child: &ChildProcess) {
    child.kill();
    child.ends_within(END_LIMIT);
}
