//! Compute agents that wait for a place: started, mapped, asleep. When an agent dies, the first of them is told its place
//! and finds the tasks of that place right behind; nothing is forked while tasks wait. The next standby is started
//! a moment later, behind the scenes.
//!
//! A standby is no agent yet: it has no slot, nobody can talk to it, it is on no list. Its core is decided when
//! its place is.

use super::spawn::{Newborn, Started};
use super::*;
use crate::messaging::FromAgent;
use crate::os::process::Exit;

/// From the start, or from the use of a standby, to the start of the next: work goes first.
pub(super) const PAUSE: Duration = Duration::from_millis(25);

/// One that waits.
pub(super) struct Standby {
    pub(super) started: Started,
    /// Names it among all standbys of this run.
    serial: u32,
    born: Nanos,
    ready: bool,
    killed: bool,
    /// It was told to end.
    dismissed: bool,
}

/// All of them.
pub(super) struct Standbys {
    all: Vec<Standby>,
    last_serial: u32,
    /// Not before.
    next_start: Nanos,
    history: RestartRecord,
}

impl Standbys {
    pub(super) fn new(now: Nanos) -> Self {
        // Work first: what is there for failures can wait until the swarm is at work.
        let next_start = now.plus(PAUSE * 8);
        Self { all: Vec::new(), last_serial: 0, next_start, history: RestartRecord::new(now.0) }
    }

    pub(super) fn ready(&self) -> usize {
        self.all.iter().filter(|standby| standby.is_ready()).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Started> {
        self.all.iter().map(|standby| &standby.started)
    }

    /// One that can take a place now.
    pub(super) fn take(&mut self) -> Option<Started> {
        loop {
            let at = self.all.iter().position(Standby::is_ready)?;
            let standby = &mut self.all[at];
            if !standby.started.child.is_stopped() {
                return Some(self.all.remove(at).started);
            }
            // Nobody watches those that wait; a place is no place to find out that one cannot.
            standby.killed = true;
            standby.started.child.kill();
        }
    }

    /// The next one may start a moment from now.
    pub(super) fn pause(&mut self, now: Nanos) {
        self.next_start = self.next_start.max(now.plus(PAUSE));
    }
}

impl Standby {
    fn is_ready(&self) -> bool {
        self.ready && !self.killed && !self.dismissed && !self.started.link.is_abandoned()
    }

    /// Tells it to end, once. From here on it has the time that an end may take.
    fn dismiss(&mut self, now: Nanos) {
        if !self.dismissed {
            (self.dismissed, self.born) = (true, now);
            let _ = self.started.link.send(Lane::Control, &ToAgent::Stop);
            self.started.link.ring();
        }
    }
}

impl Supervisor {
    /// How many there shall be.
    pub(super) fn wanted_standbys(&self) -> usize {
        let is_wanted =
            self.config.fault_tolerance && !self.closing && self.ladder.level() < Level::NoStandbys;
        if is_wanted { self.config.agents.compute.standbys } else { 0 }
    }

    /// Whether the line to the next process is made beforehand: where there are never standbys, somebody waits for each
    /// start. Not on a host that is short of anything.
    fn wants_spare(&self) -> bool {
        let config = &self.config;
        let is_wanted = config.fault_tolerance && config.agents.compute.standbys == 0;
        is_wanted && !self.closing && self.ladder.level() == Level::Full
    }

    /// When the next one is to be started.
    pub(super) fn next_standby(&self) -> Option<Nanos> {
        (self.standbys.all.len() < self.wanted_standbys()).then_some(self.standbys.next_start)
    }

    /// When the next spare line is to be made.
    pub(super) fn next_spare(&self) -> Option<Nanos> {
        let is_due = self.wants_spare() && self.nursery.spare.is_none();
        is_due.then(|| self.nursery.spare_due.max(self.standbys.next_start).max(self.next_tidy))
    }

    /// Starts what is missing, one per call; sends away what is too much; ends who does not get ready.
    pub(super) fn tend_standbys(&mut self) {
        let now = self.now;
        if self.next_standby().is_some_and(|when| when <= now) {
            self.standbys.pause(now);
            self.start_standby();
        } else if self.wants_spare() && self.standbys.next_start <= now {
            self.nursery.prepare(now, &self.switchboard.store);
        }
        let too_many = self.standbys.all.len().saturating_sub(self.wanted_standbys());
        for standby in self.standbys.all.iter_mut().rev().take(too_many) {
            standby.dismiss(now);
        }
        for standby in &mut self.standbys.all {
            let patience = if standby.dismissed { AGENT_END_LIMIT } else { READY_LIMIT };
            let is_late = (standby.dismissed || !standby.ready) && now.since(standby.born) > patience;
            if is_late && !standby.killed {
                standby.killed = true;
                standby.started.child.kill();
            }
        }
    }

    /// All standbys go, for others of the binary in force.
    pub(super) fn dismiss_standbys(&mut self) {
        for standby in &mut self.standbys.all {
            standby.dismiss(self.now);
        }
    }

    fn start_standby(&mut self) {
        self.standbys.last_serial += 1;
        let serial = self.standbys.last_serial;
        let newborn = Newborn {
            kind: AgentKind::Compute,
            id: "standby",
            slot: AgentSlot(u16::MAX),
            incarnation: Incarnation(serial),
            core: None,
            core_shared: true,
        };
        let data = epoll::EventData::new_u64(WATCH_STANDBY | u64::from(serial));
        match self.spawn(&newborn, data) {
            Ok(started) => {
                let standby = Standby {
                    started,
                    serial,
                    born: clock::now(),
                    ready: false,
                    killed: false,
                    dismissed: false,
                };
                self.standbys.all.push(standby);
            }
            // The guard is dying: it is nobody's failure, and soon there is another one.
            Err(_) if self.is_guard_ending() => {}
            Err(error) => self.standby_failed(self.now, Doing::ItsOwn, &format!("cannot start: {error}")),
        }
    }

    /// Hears who is ready.
    pub(super) fn hear_standbys(&mut self) {
        let mut proved = None;
        for standby in self.standbys.all.iter_mut().filter(|standby| !standby.ready && !standby.killed) {
            let said = match standby.started.link.receive(&mut self.standby_message) {
                Ok(false) => continue,
                Ok(true) => {
                    FromAgent::decode(self.standby_message.kind, self.standby_message.payload()).map_err(drop)
                }
                Err(_) => Err(()),
            };
            // The only thing that it can say.
            if let Ok(FromAgent::Ready { .. }) = said {
                (standby.ready, self.vigil_is_stale) = (true, true);
                proved = Some(standby.started.file);
            } else {
                standby.killed = true;
                standby.started.child.kill();
            }
        }
        if let Some(file) = proved {
            self.on_binary_proved(file);
        }
    }

    /// A standby's process has ended.
    pub(super) fn on_standby_gone(&mut self, serial: u32) {
        let Some(at) = self.standbys.all.iter().position(|standby| standby.serial == serial) else { return };
        let Some(exit) = self.standbys.all[at].started.child.try_reap() else { return };
        let standby = self.standbys.all.remove(at);
        self.vigil_is_stale = true;
        self.sweeps_left = SWEEPS;
        if standby.dismissed {
            return;
        }
        let is_killed_from_outside = exit == Exit::Signal(libc::SIGKILL) && !standby.killed;
        if is_killed_from_outside {
            // If it was for want of memory, that was this one, and no agent's task.
            self.ladder.was_oom_kill(self.now);
        }
        let doing = if is_killed_from_outside { Doing::Outside } else { Doing::ItsOwn };
        if !standby.ready && doing == Doing::ItsOwn {
            self.on_binary_failed(standby.started.file, &exit.describe());
        }
        self.standby_failed(standby.born, doing, &exit.describe());
    }

    fn standby_failed(&mut self, born: Nanos, doing: Doing, why: &str) {
        let (now, limits) = (clock::now(), self.restart_limits());
        let (when, then) = match self.standbys.history.on_death(born, doing, now, &limits) {
            Decision::At(when) => (when, String::new()),
            Decision::Bench(until) => {
                (until, format!("; there will be no standby for {} s", restart::BENCH.as_secs()))
            }
        };
        self.standbys.next_start = when.max(now.plus(PAUSE));
        self.events.add(Severity::Warning, "standby_died", None, format!("a standby died: {why}{then}"));
    }
}
