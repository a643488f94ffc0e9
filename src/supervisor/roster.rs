//! Who is alive, where, in which life; and what happens when somebody is born or dies.

use super::action::{Recovery, Refused, Reply};
use super::incidents::Dead;
use super::spawn::{FileId, Started};
use super::switchboard::Talks;
use super::*;
use crate::base::trouble;
use crate::base::words::things;
use crate::os::affinity::CoreMask;
use crate::os::process::{ChildProcess, Dying, Exit};
use crate::shm::board::{Host, Thermal};

/// How long the fault agent may be silent, in units of `agents.fault.hang_after_s`, and at least. One look and not many
/// decides whether it is starved, so it gets more time than it gives others.
const WATCHER_PATIENCE: u32 = 5;
const WATCHER_PATIENCE_MIN: Duration = Duration::from_secs(2);
/// This loop rests a second at most; of a longer pause it knows nothing.
const LONGEST_REST: Duration = Duration::from_millis(1100);

/// State of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// Its process runs but has not said that it is ready.
    Starting,
    /// It takes work.
    Ready,
    /// It finishes what it has and will be replaced.
    Draining,
    /// It is dead and will be started at this time.
    Backoff(Nanos),
    /// It died too often and is left alone until this time.
    Benched(Nanos),
    /// The swarm does without it while the host is short; see `degradation`.
    Resting,
    /// It is dead and stays so.
    Stopped,
}

impl AgentState {
    /// The word used in the API.
    pub fn name(self) -> &'static str {
        match self {
            AgentState::Starting => "starting",
            AgentState::Ready => "ready",
            AgentState::Draining => "draining",
            AgentState::Backoff(_) => "backoff",
            AgentState::Benched(_) => "benched",
            AgentState::Resting => "resting",
            AgentState::Stopped => "stopped",
        }
    }
}

/// What is known of the fault agent's silence. Time in which this loop did not run, and time in which the fault agent was ready
/// and had no processor, is nobody's silence: on a host that is busy enough both happen.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    beat: u64,
    heard: Nanos,
    silent: Duration,
    /// Silence at the first look at the process, and how long it had waited for a processor until then.
    looked: Option<(Duration, Duration)>,
}

impl Watcher {
    /// Hears the beat; says how long there was none when that is longer than `limit`. `waited` is how long the process was
    /// ready without a processor, since its start.
    fn hear(
        &mut self,
        beat: u64,
        now: Nanos,
        limit: Duration,
        waited: impl Fn() -> Option<Duration>,
    ) -> Option<Duration> {
        let gap = now.since(std::mem::replace(&mut self.heard, now)).min(LONGEST_REST);
        if beat != self.beat {
            *self = Self { beat, heard: now, ..Self::default() };
            return None;
        }
        self.silent += gap;
        if self.looked.is_none() && self.silent >= limit / 4 {
            self.looked = Some((self.silent, waited().unwrap_or_default()));
        }
        if self.silent < limit {
            return None;
        }
        let (since, before) = self.looked.take().unwrap_or_default();
        let silent = std::mem::take(&mut self.silent);
        let starved = waited().unwrap_or_default().saturating_sub(before);
        (starved * 2 <= silent.saturating_sub(since)).then_some(silent)
    }
}

/// One agent through all its lives.
pub(super) struct Record {
    pub(super) id: String,
    pub(super) kind: AgentKind,
    pub(super) core: usize,
    pub(super) core_shared: bool,
    pub(super) pinned: bool,
    pub(super) state: AgentState,
    pub(super) incarnation: Incarnation,
    pub(super) child: Option<ChildProcess>,
    pub(super) born: Nanos,
    pub(super) restarts: u32,
    /// Sums over past lives.
    pub(super) past_tasks: u64,
    pub(super) past_failures: u64,
    pub(super) past_busy_ns: u64,
    history: RestartRecord,
    /// We killed it ourselves, then.
    pub(super) killed: Option<Nanos>,
    /// It was killed for what its running task did.
    pub(super) blames_task: bool,
    /// Its word says that it is dead, and /proc does not say whether that is true.
    pub(super) unverified: bool,
    /// Whose doing it is when it dies in this life.
    doing: Option<Doing>,
    /// It was told to end when it held nothing any more.
    told_to_end: bool,
    /// What it was started from in this life.
    file: FileId,
    /// It was a standby in this life.
    adopted: bool,
    /// The swarm does without it for now.
    resting: bool,
    /// Names this life in the environment of all that it starts.
    pub(super) owner: u64,
    /// The death that the next readiness ends.
    recovering: Option<(usize, Nanos)>,
    /// It shall not live again.
    unwanted: bool,
}

impl Record {
    /// Its time to get ready, or to end, is longer by this.
    pub(super) fn forgive(&mut self, gap: Duration) {
        if self.ready_limit().is_some() {
            self.born = self.born.plus(gap);
        }
    }

    /// How long it may take to get ready, or to end, from its birth on; `None` for one that is not at that.
    fn ready_limit(&self) -> Option<Duration> {
        let is_at_it = self.state == AgentState::Starting && self.child.is_some() && self.killed.is_none();
        let limit = if self.adopted && !self.told_to_end { ADOPTED_LIMIT } else { READY_LIMIT };
        is_at_it.then_some(limit)
    }
}

/// What becomes of the place of a dead agent.
enum Verdict {
    Restarts,
    StaysDead,
    GuardEnds,
    Benched,
}

impl Supervisor {
    /// Puts the planned agents on the roster: compute agents start now, the others in the next turns,
    /// so that the first task does not wait for them.
    pub(super) fn enrol_planned(&mut self) {
        let planned = self.plan.assignments.clone();
        for seat in planned.iter().filter(|seat| seat.kind == "compute") {
            let id = format!("compute-{}", seat.index);
            self.enrol(AgentKind::Compute, id, seat.core, seat.shared, self.now);
        }
        self.start_due();
        for kind in AgentKind::ALL.into_iter().filter(|kind| *kind != AgentKind::Compute) {
            for seat in planned.iter().filter(|seat| seat.kind == kind.name()) {
                self.enrol(kind, format!("{kind}-{}", seat.index), seat.core, seat.shared, self.now);
            }
        }
    }

    fn enrol(
        &mut self,
        kind: AgentKind,
        id: String,
        core: usize,
        core_shared: bool,
        start: Nanos,
    ) -> Option<AgentSlot> {
        let free = self.roster.iter().position(Option::is_none)?;
        let history = RestartRecord::new(self.now.0 ^ free as u64);
        self.roster[free] = Some(Record {
            id,
            kind,
            core,
            core_shared,
            pinned: false,
            state: AgentState::Backoff(start),
            incarnation: self.past_lives[free],
            child: None,
            born: self.now,
            restarts: 0,
            past_tasks: 0,
            past_failures: 0,
            past_busy_ns: 0,
            history,
            killed: None,
            unverified: false,
            blames_task: false,
            doing: None,
            told_to_end: false,
            file: (0, 0),
            adopted: false,
            resting: false,
            owner: 0,
            recovering: None,
            unwanted: false,
        });
        Some(AgentSlot(free as u16))
    }

    pub(super) fn record(&self, slot: AgentSlot) -> Option<&Record> {
        self.roster.get(slot.index())?.as_ref()
    }

    pub(super) fn record_mut(&mut self, slot: AgentSlot) -> Option<&mut Record> {
        self.roster.get_mut(slot.index())?.as_mut()
    }

    pub(super) fn id_of(&self, slot: AgentSlot) -> Option<String> {
        self.record(slot).map(|record| record.id.clone())
    }

    pub(super) fn slot_of(&self, id: &str) -> Option<AgentSlot> {
        let at =
            self.roster.iter().position(|record| record.as_ref().is_some_and(|record| record.id == id))?;
        Some(AgentSlot(at as u16))
    }

    /// When somebody is to be started next.
    pub(super) fn next_start(&self) -> Option<Nanos> {
        if self.closing {
            return None;
        }
        let due = |record: &Record| match record.state {
            AgentState::Backoff(when) | AgentState::Benched(when) => Some(when),
            _ => None,
        };
        self.roster.iter().flatten().filter_map(due).min()
    }

    /// Starts whose time has come; housekeeping agents one per call, so that tasks are not held up.
    pub(super) fn start_due(&mut self) -> usize {
        if self.closing {
            return 0;
        }
        let mut started = 0;
        for at in 0..self.roster.len() {
            let Some(record) = &self.roster[at] else { continue };
            let due = matches!(record.state, AgentState::Backoff(when) | AgentState::Benched(when) if when <= self.now);
            if due {
                let is_compute = record.kind == AgentKind::Compute;
                self.start_agent(AgentSlot(at as u16));
                started += 1;
                if !is_compute {
                    break;
                }
            }
        }
        started
    }

    /// A new life: a standby takes the place, or else a process is started.
    fn start_agent(&mut self, slot: AgentSlot) {
        let now = clock::now();
        let record = self.roster[slot.index()].as_mut().expect("callers have seen it");
        record.incarnation.0 += 1;
        record.born = now;
        (record.killed, record.doing, record.blames_task, record.unverified) = (None, None, false, false);
        (record.told_to_end, record.adopted) = (false, false);
        let id = record.id.clone();
        let newborn = Newborn {
            kind: record.kind,
            id: &id,
            slot,
            incarnation: record.incarnation,
            core: Some(record.core),
            core_shared: record.core_shared,
        };
        if newborn.kind == AgentKind::Compute
            && let Some(standby) = self.standbys.take()
        {
            return self.adopt(standby, &newborn);
        }
        match self.spawn(&newborn, epoll::EventData::new_u64(u64::from(slot.0))) {
            Ok(started) => {
                let Started { child, link, talk, contact, owner, file } = started;
                self.record_mut(slot).expect("callers have seen it").file = file;
                let seat = Seat::new(slot, newborn.incarnation, newborn.kind, link);
                self.give_seat(&newborn, child, Talks { talk, contact, pid: 0, owner }, seat);
            }
            Err(_) if self.is_guard_ending() => {
                let verdict = self.schedule_restart(slot, Doing::Outside);
                self.on_verdict(slot, verdict);
            }
            Err(error) => {
                let text = format!("cannot start: {error}");
                self.events.add(Severity::Warning, "agent_start_failed", Some(&id), text);
                let verdict = self.schedule_restart(slot, Doing::ItsOwn);
                self.on_verdict(slot, verdict);
            }
        }
    }

    /// A standby becomes this agent. Tasks follow right behind the word that says so.
    fn adopt(&mut self, standby: Started, newborn: &Newborn<'_>) {
        let Started { child, mut link, talk, contact, owner, file } = standby;
        let (slot, incarnation) = (newborn.slot, newborn.incarnation);
        let core = newborn.core.expect("agents have a place");
        // It does so itself as well, and says whether it could.
        CoreMask::of([core]).apply_to(child.pid());
        link.set_reader(slot.0);
        link.set_shared_core(newborn.core_shared);
        let place = ToAgent::Adopt { slot, incarnation, core: core as u32, id: newborn.id };
        let told = link.send(Lane::Control, &place);
        // It gets up while what follows from the death is done here.
        link.ring();
        let data = epoll::EventData::new_u64(u64::from(slot.0));
        let watched = epoll::modify(&self.epoll, &child, data, epoll::EventFlags::IN);
        if told.is_err() || watched.is_err() {
            // Its death comes back like any other.
            child.kill();
        }
        let mut seat = Seat::new(slot, incarnation, newborn.kind, link);
        (seat.ready, seat.touched) = (true, true);
        let record = self.record_mut(slot).expect("callers have seen it");
        (record.file, record.adopted) = (file, true);
        self.give_seat(newborn, child, Talks { talk, contact, pid: 0, owner }, seat);
        self.standbys.pause(clock::now());
    }

    /// The process is there: it can be talked to, and its place is taken.
    fn give_seat(&mut self, newborn: &Newborn<'_>, child: ChildProcess, talks: Talks, seat: Seat) {
        let slot = newborn.slot;
        let data = epoll::EventData::new_u64(WATCH_MEMBER | u64::from(slot.0));
        // Without it the agent hears no peers; its tasks do not need them.
        let _ = epoll::add(&self.epoll, &talks.talk, data, epoll::EventFlags::IN);
        let owner = talks.owner;
        self.switchboard.add_agent(slot, newborn.id, newborn.kind, Talks { pid: child.pid(), ..talks });
        let record = self.record_mut(slot).expect("callers have seen it");
        record.owner = owner;
        record.child = Some(child);
        record.state = AgentState::Starting;
        self.dispatcher.seat(seat);
    }

    /// Starts a process; its end is heard of under `data`. A host that has no room for it is noted: it may have to do with
    /// fewer. A program that cannot be executed is one that does not get ready.
    pub(super) fn spawn(&mut self, newborn: &Newborn<'_>, data: epoll::EventData) -> io::Result<Started> {
        let (store, file) = (self.switchboard.store.clone(), self.nursery.binary.file());
        self.board.announce();
        let error = match self.nursery.spawn(newborn, store, self.switchboard.hub_arena()) {
            Ok(started) => {
                let watched = trouble::check("spawn.step")
                    .and_then(|()| Ok(epoll::add(&self.epoll, &started.child, data, epoll::EventFlags::IN)?));
                match watched {
                    Ok(()) => return Ok(started),
                    Err(error) => {
                        // Unwatched, its death would go unnoticed.
                        started.child.kill();
                        self.dying.push(started.child);
                        error
                    }
                }
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            // A namespace whose guard is dying takes nobody in, which says nothing about host and program.
            _ if self.is_guard_ending() => {}
            Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ENOSPC) => {
                let to = if newborn.core.is_some() { Level::FewerAgents } else { Level::NoStandbys };
                self.ladder.on_start_refused(to, error.to_string(), self.now);
            }
            _ => self.on_binary_failed(file, &error.to_string()),
        }
        Err(error)
    }

    /// Whether the agents' namespace is on its way out, and everybody inside.
    pub(super) fn is_guard_ending(&self) -> bool {
        self.nursery.containment.guard().is_some_and(|guard| matches!(guard.dying(), Dying::As(_)))
    }

    pub(super) fn on_ready(&mut self, slot: AgentSlot, incarnation: Incarnation, core: Option<usize>) {
        let now = self.now;
        let Some(record) = self.record_mut(slot) else { return };
        if record.incarnation != incarnation || record.state != AgentState::Starting || record.told_to_end {
            return;
        }
        record.state = AgentState::Ready;
        let (warm, file) = (record.adopted, record.file);
        record.pinned = core == Some(record.core);
        let (id, wanted, kind) = (record.id.clone(), record.core, record.kind);
        let pid = record.child.as_ref().map_or(0, ChildProcess::pid);
        let place = match core {
            Some(core) => format!("on core {core}"),
            None => format!("not pinned: core {wanted} was refused"),
        };
        let recovering = record.recovering.take();
        self.close_incidents(&id, now);
        if let Some((at, died)) = recovering {
            self.recoveries[at].ready_us = Some(now.since(died).as_nanos() as f64 / 1000.0);
            self.recoveries[at].warm = warm;
        }
        self.vigil_is_stale = true;
        self.on_binary_proved(file);
        self.first_ready.get_or_insert(now);
        self.events.add(
            Severity::Info,
            "agent_ready",
            Some(&id),
            format!("process {pid}, life {incarnation}, {place}"),
        );
        self.introduce(slot, kind);
    }

    /// Tells the agents that watch others about a new one, and tells a new watcher about everybody.
    fn introduce(&mut self, slot: AgentSlot, kind: AgentKind) {
        self.tell_watchers(slot);
        if is_watcher(kind) {
            let is_ready = |at: &usize| {
                self.roster[*at].as_ref().is_some_and(|record| record.state == AgentState::Ready)
            };
            let others: Vec<AgentSlot> =
                (0..self.roster.len()).filter(is_ready).map(|at| AgentSlot(at as u16)).collect();
            for about in others {
                self.tell_watcher(slot, about);
            }
        }
    }

    /// How it is with the agent of a place, for all who watch: told a moment later, because each of them is woken by it, and
    /// whoever takes the place of a dead agent comes first.
    fn tell_watchers(&mut self, about: AgentSlot) {
        let watchers = self.dispatcher.iter().filter(|seat| seat.ready && is_watcher(seat.kind));
        for watcher in watchers.map(|seat| seat.slot) {
            if !self.untold.contains(&(watcher, about)) {
                self.untold.push((watcher, about));
            }
        }
    }

    /// How it is with the agent of a place, for one that watches. What finds no room is told later.
    fn tell_watcher(&mut self, watcher: AgentSlot, about: AgentSlot) {
        let is_there = |record: &&Record| matches!(record.state, AgentState::Ready | AgentState::Draining);
        let record = self.record(about).filter(is_there);
        let message = match record.and_then(|record| Some((record, record.child.as_ref()?))) {
            Some((record, child)) => ToAgent::Peer {
                slot: about,
                incarnation: record.incarnation,
                pid: child.pid(),
                kind: record.kind as u8,
            },
            None => {
                ToAgent::Peer { slot: about, incarnation: self.past_lives[about.index()], pid: 0, kind: 0 }
            }
        };
        let Some(seat) = self.dispatcher.get_mut(watcher) else { return };
        seat.touched = true;
        if seat.link.send(Lane::Control, &message).is_err() && !self.untold.contains(&(watcher, about)) {
            self.untold.push((watcher, about));
        }
    }

    /// Tells watchers what they were not told yet.
    pub(super) fn tell_the_rest(&mut self) {
        for (watcher, about) in std::mem::take(&mut self.untold) {
            let is_watcher = |seat: &&Seat| seat.ready && is_watcher(seat.kind);
            if self.dispatcher.get(watcher).filter(is_watcher).is_some() {
                self.tell_watcher(watcher, about);
            }
        }
    }

    /// The kernel says that this child has ended.
    pub(super) fn on_child(&mut self, slot: AgentSlot) {
        let child = self.record(slot).and_then(|record| record.child.as_ref());
        if let Some(exit) = child.and_then(ChildProcess::try_reap) {
            self.on_death(slot, exit);
        }
    }

    /// The words that agents hold: who is dead although its process is still being taken apart. Returns how many.
    pub(super) fn look_for_the_dying(&mut self) -> usize {
        let mut found = 0;
        for at in 0..self.roster.len() {
            let slot = AgentSlot(at as u16);
            let dead = self.dispatcher.get(slot).is_some_and(|seat| seat.link.is_abandoned());
            let Some(child) = self.record(slot).and_then(|record| record.child.as_ref()).filter(|_| dead)
            else {
                continue;
            };
            let (exit, is_whole) = match child.try_reap() {
                Some(exit) => (Some(exit), false),
                None => match child.dying() {
                    Dying::As(exit) => (Some(exit), true),
                    Dying::No => (None, true),
                    // Then its end is heard of when its memory is gone.
                    Dying::Unknown => {
                        self.roster[at].as_mut().expect("just seen").unverified = true;
                        continue;
                    }
                },
            };
            let seen = clock::now();
            if exit.is_some() && is_whole {
                // Its main thread is dead, and all that it may still do without is over.
                child.kill();
                // Its tasks need not wait for its memory, which is waited for beside everything else.
                if self.record(slot).is_some_and(|record| record.killed.is_none()) {
                    self.move_off_our_core(slot);
                }
                let data = epoll::EventData::new_u64(WATCH_DYING);
                let _ = epoll::modify(&self.epoll, child, data, epoll::EventFlags::IN);
            }
            found += 1;
            self.now = seen;
            match exit {
                Some(exit) => {
                    let child = self.record_mut(slot).and_then(|record| record.child.take());
                    self.dying.extend(child.filter(|_| is_whole));
                    self.on_death(slot, exit);
                }
                None => {
                    let life = self.record(slot).map(|record| record.incarnation);
                    let what = "its page says that it is dead, and it lives";
                    life.into_iter().for_each(|life| self.on_corrupt(slot, life, what));
                }
            }
        }
        found
    }

    /// The memory of one that dies is not taken apart on our core if there is another.
    fn move_off_our_core(&self, slot: AgentSlot) {
        let Some(record) = self.record(slot).filter(|record| record.core == self.plan.supervisor) else {
            return;
        };
        if let Some(child) = &record.child {
            self.cores_elsewhere.apply_to(child.pid());
        }
    }

    /// Somebody who was given up early is gone for good.
    pub(super) fn bury(&mut self) {
        let before = self.dying.len();
        self.dying.retain(|child| child.try_reap().is_none());
        if self.dying.len() < before {
            // Only now has what it started become an orphan.
            self.sweeps_left = SWEEPS;
        }
    }

    /// An agent is dead.
    fn on_death(&mut self, slot: AgentSlot, exit: Exit) {
        let now = self.now;
        // Whoever has answered is no more held: of the others nobody knows how far they came.
        self.dispatcher.collect_from(slot, &mut self.ledger, now, &mut self.heard);
        let unanswered = self.held_attempts(slot);
        let (blames_task, is_our_kill) =
            self.record(slot).map_or((false, false), |record| (record.blames_task, record.killed.is_some()));
        let may_be_oom_kill = exit == Exit::Signal(libc::SIGKILL) && !is_our_kill;
        // To ask takes some tens of microseconds, which a standby need not wait for where there is no task to blame.
        let was_at_work = self.dispatcher.get(slot).is_some_and(|seat| seat.link.running().is_some());
        let is_compute = self.record(slot).is_some_and(|record| record.kind == AgentKind::Compute);
        let asks_now = was_at_work || !is_compute || self.standbys.ready() == 0;
        let is_oom_kill = may_be_oom_kill && asks_now && self.ladder.was_oom_kill(now);
        let crashed = match exit {
            Exit::Signal(libc::SIGKILL | libc::SIGTERM) => blames_task || is_oom_kill,
            Exit::Signal(_) => true,
            Exit::Code(code) => code != 0,
        };
        let mut cause = exit.describe();
        if is_oom_kill {
            cause.push_str(", the host or its control group was out of memory");
        }
        let (mut tasks, mut failures, mut busy_ns) = (0, 0, 0);
        if let Some(seat) = self.dispatcher.get(slot) {
            (tasks, failures, busy_ns) = (seat.tasks, seat.failures, seat.busy_ns);
        }
        let moved =
            self.dispatcher.on_agent_gone(&mut self.ledger, slot, &cause, crashed, now, &mut self.heard);
        self.take_back(&unanswered);
        let record = self.roster[slot.index()].as_mut().expect("just seen");
        record.child = None;
        record.past_tasks += tasks;
        record.past_failures += failures;
        record.past_busy_ns += busy_ns;
        let (id, kind, incarnation, born, killed) =
            (record.id.clone(), record.kind, record.incarnation, record.born, record.killed.take());
        let orderly = record.told_to_end && exit == Exit::Code(0);
        let was_starting = record.state == AgentState::Starting && !record.told_to_end;
        let (unwanted, resting, file) = (record.unwanted, record.resting, record.file);
        self.close_member(slot.index(), "died");
        self.board.publish_life(slot, None, 0, 0);
        self.past_lives[slot.index()] = incarnation;
        self.vigil_is_stale = true;
        self.sweeps_left = SWEEPS;
        // What it published is nobody's word any more: absent is not the last value.
        match kind {
            AgentKind::Resource => self.board.publish_host(&Host::UNKNOWN),
            AgentKind::Thermal => self.board.publish_thermal(&Thermal::UNKNOWN),
            _ => {}
        }
        self.roster[slot.index()].as_mut().expect("just seen").state = AgentState::Stopped;
        self.tell_watchers(slot);
        if self.closing {
            return;
        }
        let detect_us = killed.map(|then| now.since(then).as_nanos() as f64 / 1000.0);
        let text = format!("{cause} in life {incarnation}; {} moved to others", things(moved.len(), "task"));
        // The time that all this takes is part of the recovery; what is due by then is due now.
        self.now = clock::now();
        let dead = Dead { found: now, id: &id, incarnation, exit, cause: &cause, born, tasks, detect_us };
        if unwanted {
            self.note_death(&dead, &moved);
            self.count_destroyed(slot);
            self.roster[slot.index()] = None;
            self.close_incidents(&id, now);
            self.recompute_sharing();
            self.events.add(
                Severity::Info,
                "agent_destroyed",
                Some(&id),
                format!("{kind} agent is gone for good: {text}"),
            );
            return;
        }
        if resting {
            self.note_death(&dead, &moved);
            self.roster[slot.index()].as_mut().expect("just seen").state = AgentState::Resting;
            if !orderly {
                self.events.add(Severity::Warning, "agent_died", Some(&id), text);
            }
            self.close_incidents(&id, now);
            let text = "ended until the host has room for it again".to_owned();
            self.events.add(Severity::Info, "agent_resting", Some(&id), text);
            return;
        }
        let is_killed_from_outside = exit == Exit::Signal(libc::SIGKILL) && killed.is_none();
        if was_starting && !is_killed_from_outside {
            self.on_binary_failed(file, &cause);
        }
        if orderly {
            self.note_death(&dead, &moved);
            let text = format!("ended after what it held, in life {incarnation}");
            self.events.add(Severity::Info, "agent_ended", Some(&id), text);
            let record = self.roster[slot.index()].as_mut().expect("just seen");
            record.restarts += 1;
            record.state = AgentState::Backoff(now);
            self.start_due();
            return;
        }
        let recovery = Recovery {
            agent: id.clone(),
            cause: cause.clone(),
            detect_us,
            noticed: Some(now),
            ready_us: None,
            warm: false,
            tasks_moved: moved.len(),
        };
        let record = self.roster[slot.index()].as_mut().expect("just seen");
        if self.recoveries.len() < 10_000 {
            record.recovering = Some((self.recoveries.len(), now));
            self.recoveries.push(recovery);
        }
        let doing = match record.doing {
            Some(doing) => doing,
            None if crashed || killed.is_some() || exit == Exit::Code(0) => Doing::ItsOwn,
            None => Doing::Outside,
        };
        let verdict = self.schedule_restart(slot, doing);
        // A standby has the place at once: recovery is waiting for it, and nobody for the record of the death. A start may fail,
        // which is told after the death, and takes so much longer that it matters little.
        let may_live = self
            .record(slot)
            .is_some_and(|it| matches!(it.state, AgentState::Backoff(due) if due <= self.now));
        if may_live && is_compute && self.standbys.ready() > 0 {
            self.start_agent(slot);
        }
        self.note_death(&dead, &moved);
        self.events.add(Severity::Warning, "agent_died", Some(&id), text);
        self.on_verdict(slot, verdict);
        if may_be_oom_kill && !asks_now {
            // It is this one's, and says nothing about anybody's task.
            self.ladder.was_oom_kill(now);
        }
        self.start_due();
    }

    pub(super) fn restart_limits(&self) -> RestartLimits {
        let fault = &self.config.agents.fault;
        RestartLimits {
            limit: fault.restart_limit,
            window: fault.restart_window,
            backoff_max: fault.backoff_max,
        }
    }

    /// Decides when the dead agent of this place lives again. What else there is to do about it is
    /// [the caller's](Self::on_verdict), who has more urgent things to do first.
    #[must_use]
    fn schedule_restart(&mut self, slot: AgentSlot, doing: Doing) -> Verdict {
        let limits = self.restart_limits();
        let (now, tolerant) = (self.now, self.config.fault_tolerance);
        // To ask takes time, and a standby that dies with the guard comes back here, young.
        let has_standby = self.standbys.ready() > 0;
        let record = self.roster[slot.index()].as_mut().expect("callers have seen it");
        if !tolerant {
            record.state = AgentState::Stopped;
            return Verdict::StaysDead;
        }
        let is_young = now.since(record.born) < restart::BORN;
        if (is_young || !has_standby || record.kind != AgentKind::Compute) && self.is_guard_ending() {
            // Everybody dies with the guard, which says nothing about anybody.
            let record = self.roster[slot.index()].as_mut().expect("callers have seen it");
            record.restarts +=
                u32::from(!matches!(record.state, AgentState::Backoff(_) | AgentState::Benched(_)));
            record.state = AgentState::Backoff(now.plus(GUARD_PAUSE));
            return Verdict::GuardEnds;
        }
        let record = self.roster[slot.index()].as_mut().expect("callers have seen it");
        record.restarts += 1;
        match record.history.on_death(record.born, doing, now, &limits) {
            Decision::At(when) => {
                record.state = AgentState::Backoff(when);
                Verdict::Restarts
            }
            Decision::Bench(until) => {
                record.state = AgentState::Benched(until);
                Verdict::Benched
            }
        }
    }

    /// Says and does what follows from [`schedule_restart`](Self::schedule_restart).
    fn on_verdict(&mut self, slot: AgentSlot, verdict: Verdict) {
        let id = self.id_of(slot);
        match verdict {
            Verdict::Restarts => {}
            Verdict::StaysDead => {
                let text = "stays dead: `fault_tolerance` is off".to_owned();
                self.events.add(Severity::Warning, "agent_not_restarted", id.as_deref(), text);
            }
            Verdict::GuardEnds => self.on_guard_gone(),
            Verdict::Benched => {
                let limits = self.restart_limits();
                let text = format!(
                    "crash loop: it died more than {} times within {} s; tried again in {} s",
                    limits.limit,
                    limits.window.as_secs(),
                    restart::BENCH.as_secs()
                );
                self.open_incident(slot, Failure::CrashLoop, &text, Vec::new());
                self.events.add(Severity::Warning, "agent_benched", id.as_deref(), text);
                // It may have been the one that was to go on.
                self.rest_as_the_level_says();
            }
        }
    }

    /// Half of the compute agents, or optimisation and learning, rest from now on or work again, as the level says.
    pub(super) fn rest_as_the_level_says(&mut self) {
        let level = self.ladder.level();
        // Who can work is kept first: one that is benched keeps nothing going.
        let usefulness = |record: &Record| match record.state {
            AgentState::Ready | AgentState::Starting => 0,
            AgentState::Backoff(_) | AgentState::Resting => 1,
            AgentState::Draining => 2,
            AgentState::Benched(_) | AgentState::Stopped => 3,
        };
        let mut computes: Vec<usize> = (0..self.roster.len())
            .filter(|&at| {
                self.roster[at].as_ref().is_some_and(|it| it.kind == AgentKind::Compute && !it.unwanted)
            })
            .collect();
        computes.sort_by_key(|&at| self.roster[at].as_ref().map(usefulness));
        let spared = if level >= Level::FewerAgents { computes.len().div_ceil(2) } else { computes.len() };
        let working = &computes[..spared];
        for at in 0..self.roster.len() {
            let Some(record) = &mut self.roster[at] else { continue };
            let shall_rest = match record.kind {
                AgentKind::Compute => !working.contains(&at),
                AgentKind::Learning | AgentKind::Optimization => level >= Level::NoLearning,
                _ => false,
            };
            if shall_rest == record.resting || record.unwanted {
                continue;
            }
            record.resting = shall_rest;
            match record.state {
                AgentState::Resting if !shall_rest => record.state = AgentState::Backoff(self.now),
                AgentState::Backoff(_) | AgentState::Benched(_) if shall_rest => {
                    record.state = AgentState::Resting;
                }
                AgentState::Ready | AgentState::Starting if shall_rest => {
                    self.drain(AgentSlot(at as u16), "rests: finishes what it holds".to_owned());
                }
                // It is on its way out; what it shall do then is decided by then.
                _ => {}
            }
        }
    }

    /// What an agent has and has not answered.
    fn held_attempts(&self, slot: AgentSlot) -> Vec<(TaskId, Attempt)> {
        let seat = self.dispatcher.get(slot);
        seat.map_or_else(Vec::new, |seat| seat.held.iter().map(|held| (held.task, held.attempt)).collect())
    }

    /// Ends an agent at once. Its death comes back through the kernel like any other.
    pub(super) fn kill(&mut self, slot: AgentSlot, kind: &str, text: String) {
        let now = clock::now();
        let Some(record) = self.record_mut(slot) else { return };
        let id = record.id.clone();
        if record.child.is_some() {
            record.killed.get_or_insert(now);
            // Before it dies: a wake-up here would take the core from us for as long as its end takes.
            self.move_off_our_core(slot);
        }
        if let Some(child) = self.record(slot).and_then(|record| record.child.as_ref()) {
            child.kill();
        }
        self.events.add(Severity::Warning, kind, Some(&id), text);
    }

    /// As [`kill`](Self::kill), for somebody who asked for it: the agent is not to blame.
    pub(super) fn kill_on_request(&mut self, slot: AgentSlot) {
        if let Some(record) = self.record_mut(slot) {
            record.doing = Some(Doing::Outside);
        }
        self.kill(slot, "agent_killed", "killed on request".to_owned());
    }

    pub(super) fn on_corrupt(&mut self, slot: AgentSlot, incarnation: Incarnation, what: &str) {
        let lives = self
            .record(slot)
            .is_some_and(|record| record.incarnation == incarnation && record.killed.is_none());
        if lives {
            *self.switchboard.closed.entry(switchboard::reason_class(what)).or_default() += 1;
            self.open_incident(slot, Failure::Garbage, what, Vec::new());
            self.save_channel(slot, what);
            self.kill(slot, "channel_corrupt", format!("killed: its channel carries nonsense: {what}"));
        }
    }

    pub(super) fn on_ask(
        &mut self,
        from: AgentSlot,
        failure: Failure,
        slot: AgentSlot,
        incarnation: Incarnation,
        finding: &str,
    ) {
        let is_fault_agent = self.record(from).is_some_and(|record| record.kind == AgentKind::Fault);
        let lives = self
            .record(slot)
            .is_some_and(|record| record.incarnation == incarnation && record.child.is_some());
        // Whoever was killed already is no news any more.
        let lives = lives && self.record(slot).is_some_and(|record| record.killed.is_none());
        if !is_fault_agent || !lives {
            return;
        }
        let (words, figures) = failure::decode_finding(finding);
        self.open_incident(slot, failure, words, figures);
        let text = |done: &str| format!("{done} on the fault agent's word: {words}");
        match failure.plan().act {
            Act::Kill => {
                if let Some(record) = self.record_mut(slot) {
                    record.blames_task = failure.plan().blames_task;
                    if failure == Failure::Frozen {
                        // Somebody stopped it, which says no more about it than a kill from outside.
                        record.doing = Some(Doing::Outside);
                    }
                }
                self.kill(slot, "agent_restarted", text("killed"));
            }
            // Without a successor it would only be gone sooner.
            Act::Drain if self.config.fault_tolerance => self.drain(slot, text("drained")),
            // The others are not the fault agent's to find.
            Act::None | Act::Drain | Act::Bench | Act::FailTask => {}
        }
    }

    pub(super) fn drain(&mut self, slot: AgentSlot, text: String) {
        if let Some(seat) = self.dispatcher.get_mut(slot) {
            seat.draining = true;
        }
        if let Some(record) = self.record_mut(slot) {
            record.state = AgentState::Draining;
            let id = record.id.clone();
            self.events.add(Severity::Warning, "agent_draining", Some(&id), text);
        }
    }

    /// Ends drained agents that hold nothing any more.
    pub(super) fn replace_drained(&mut self) {
        for at in 0..self.roster.len() {
            let slot = AgentSlot(at as u16);
            let drained = self.record(slot).is_some_and(|record| record.state == AgentState::Draining);
            if drained
                && let Some(seat) = self.dispatcher.get_mut(slot)
                && seat.held.is_empty()
                && seat.link.send(Lane::Control, &ToAgent::Stop).is_ok()
            {
                seat.touched = true;
                if let Some(record) = self.record_mut(slot) {
                    // From here on the ready limit watches that it really ends.
                    record.state = AgentState::Starting;
                    record.born = clock::now();
                    record.told_to_end = true;
                }
            }
        }
    }

    /// When the next one has to be ready, or to have ended.
    pub(super) fn next_ready_limit(&self) -> Option<Nanos> {
        self.roster.iter().flatten().filter_map(|record| Some(record.born.plus(record.ready_limit()?))).min()
    }

    /// Kills whoever runs but is not ready (or does not end) in time.
    pub(super) fn replace_never_ready(&mut self) {
        for at in 0..self.roster.len() {
            let slot = AgentSlot(at as u16);
            let Some(record) = self.record(slot) else { continue };
            let late = record.ready_limit().filter(|&limit| self.now.since(record.born) >= limit);
            if let Some(limit) = late {
                let figures = vec![Figure::new("limit_s", limit.as_secs_f64())];
                let text = "it does not become ready, or does not end";
                self.open_incident(slot, Failure::Hang, text, figures);
                self.kill(slot, "agent_not_ready", format!("killed: {text}"));
            }
        }
    }

    /// The fault agent watches everybody but itself.
    pub(super) fn watch_the_watcher(&mut self) {
        let watcher = self.dispatcher.iter().find(|seat| seat.kind == AgentKind::Fault && seat.ready);
        let Some((slot, beat)) = watcher.map(|seat| (seat.slot, seat.link.beat())) else {
            self.watcher = Watcher::default();
            return;
        };
        let limit = (self.config.agents.fault.hang_after * WATCHER_PATIENCE).max(WATCHER_PATIENCE_MIN);
        let pid = self.record(slot).and_then(|record| record.child.as_ref()).map(ChildProcess::pid);
        let waited = || {
            let text = std::fs::read_to_string(format!("/proc/{}/schedstat", pid?)).ok()?;
            text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
        };
        if let Some(silent) = self.watcher.hear(beat, self.now, limit, waited) {
            let text = "the fault agent itself shows no progress";
            self.open_incident(
                slot,
                Failure::Hang,
                text,
                vec![Figure::new("silent_s", silent.as_secs_f64())],
            );
            self.kill(slot, "agent_restarted", format!("killed: {text}"));
        }
    }

    pub(super) fn create_agent(&mut self, kind: AgentKind, id: Option<String>) -> Reply {
        let refuse = |text: String| Reply::Refused(Refused::Conflict(text));
        if self.closing || self.is_stop_asked() {
            return refuse("the swarm is stopping".to_owned());
        }
        let present = self.roster.iter().flatten().filter(|record| record.kind == kind).count();
        if kind == AgentKind::Compute && present >= self.config.max_agents {
            return refuse(format!(
                "{} {} already, `max_agents` is {}",
                things(present, "compute agent"),
                if present == 1 { "runs" } else { "run" },
                self.config.max_agents
            ));
        }
        if kind != AgentKind::Compute && present >= 1 {
            return refuse(format!("a {kind} agent runs already; a swarm has at most one"));
        }
        let id = match id {
            Some(id) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                if id.is_empty() || id.len() > 64 || !id.chars().all(plain) {
                    return refuse(format!(
                        "agent id {id:?}: 1 to 64 letters, digits, `.`, `_`, `-` are allowed"
                    ));
                }
                id
            }
            None => (0..)
                .map(|n| format!("{kind}-{n}"))
                .find(|id| self.slot_of(id).is_none())
                .expect("numbers do not end"),
        };
        if self.slot_of(&id).is_some() {
            return refuse(format!("an agent with the id {id:?} exists already"));
        }
        let core = self.emptiest_core(kind);
        let Some(slot) = self.enrol(kind, id, core, true, self.now) else {
            return refuse("no place on the board is free".to_owned());
        };
        self.recompute_sharing();
        self.start_agent(slot);
        self.agent_view(slot).map_or_else(
            || refuse("the agent could not be started".to_owned()),
            |view| Reply::Agent(Box::new(view)),
        )
    }

    /// Who shares a core and must not spin there, after somebody came or went.
    fn recompute_sharing(&mut self) {
        let cores: Vec<(AgentKind, usize)> =
            self.roster.iter().flatten().map(|record| (record.kind, record.core)).collect();
        let supervisor = self.plan.supervisor;
        for at in 0..self.roster.len() {
            let Some(record) = &mut self.roster[at] else { continue };
            let neighbours = cores.iter().filter(|(_, core)| *core == record.core).count();
            record.core_shared = neighbours > 1 || record.core == supervisor;
            if let Some(seat) = self.dispatcher.get(AgentSlot(at as u16)) {
                seat.link.set_shared_core(record.core_shared);
            }
        }
        self.may_spin = !cores.contains(&(AgentKind::Compute, supervisor));
    }

    fn emptiest_core(&self, kind: AgentKind) -> usize {
        if kind != AgentKind::Compute {
            return self.plan.supervisor;
        }
        let on = |core: usize| {
            let computes = self.roster.iter().flatten().filter(|record| record.kind == AgentKind::Compute);
            (computes.filter(|record| record.core == core).count(), usize::from(core == self.plan.supervisor))
        };
        self.cores.iter().copied().min_by_key(|&core| on(core)).unwrap_or(self.plan.supervisor)
    }

    pub(super) fn destroy_agent(&mut self, id: &str) -> Reply {
        let Some(slot) = self.slot_of(id) else { return no_agent(id) };
        let record = self.record_mut(slot).expect("just found");
        record.unwanted = true;
        if record.child.is_none() {
            self.count_destroyed(slot);
            self.roster[slot.index()] = None;
            return Reply::Done;
        }
        // Finishes what it holds, then ends for good.
        self.drain(slot, "destroyed on request: finishes what it holds".to_owned());
        Reply::Done
    }

    pub(super) fn optimize_agent(&mut self, id: &str) -> Reply {
        let Some(slot) = self.slot_of(id) else { return no_agent(id) };
        match self.dispatcher.get_mut(slot) {
            Some(seat) if seat.ready && seat.kind == AgentKind::Optimization => {
                let _ = seat.link.send(Lane::Control, &ToAgent::Optimize);
                seat.touched = true;
                Reply::Done
            }
            Some(seat) if seat.kind != AgentKind::Optimization => Reply::Refused(Refused::Conflict(format!(
                "agent {id} is a {} agent; kernels are tuned by the optimization agent",
                seat.kind
            ))),
            _ => Reply::Refused(Refused::Conflict(format!("agent {id} is not ready"))),
        }
    }
}

/// Kinds that want to know who else is there.
fn is_watcher(kind: AgentKind) -> bool {
    matches!(kind, AgentKind::Resource | AgentKind::Fault | AgentKind::Learning)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many seconds a fault agent that shows nothing is found, if it is within a minute; it waits for a processor for
    /// this share of the time, and is heard every `every`.
    fn found(share: f64, every: Duration) -> Option<f64> {
        let limit = Duration::from_secs(2);
        let mut watcher = Watcher::default();
        let born = Nanos(1_000_000_000);
        watcher.hear(7, born, limit, || None);
        (1..).map(|look| every * look).take_while(|after| after.as_secs() < 60).find_map(|after| {
            let found = watcher.hear(7, born.plus(after), limit, || Some(after.mul_f64(share)));
            found.map(|_| after.as_secs_f64())
        })
    }

    #[test]
    fn a_silent_fault_agent_is_found_and_a_starved_one_left_alone() {
        let tick = Duration::from_millis(5);
        assert_eq!(found(0.0, tick), Some(2.0));
        assert_eq!(found(0.9, tick), None, "ready, and nobody lets it run");
        assert!(found(0.1, tick) < Some(2.1), "everybody waits a little");
        assert!(found(0.0, Duration::from_secs(1)) <= Some(3.0), "an idle loop looks once a second");
        // A loop that slept for long has heard nothing meanwhile, and knows it.
        let mut watcher = Watcher::default();
        watcher.hear(7, Nanos(0), LONGEST_REST * 2, || None);
        assert_eq!(watcher.hear(7, Nanos(3_600_000_000_000), LONGEST_REST * 2, || None), None);
        assert_eq!(watcher.silent, LONGEST_REST);
    }
}
