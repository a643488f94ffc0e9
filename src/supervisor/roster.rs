//! Who is alive, where, in which life; and what happens when somebody is born or dies.

use super::action::{Recovery, Refused, Reply};
use super::restart::RestartRecord;
use super::spawn::Started;
use super::switchboard::Talks;
use super::*;
use crate::arrays::temporary_name;
use crate::base::words::things;
use crate::kernels::{SCORES_SUFFIX, extra_path};
use crate::os::process::{ChildProcess, Exit};
use crate::shm::board::{Host, Thermal};
use crate::tasks::attempt_tag;

/// How long the fault agent may be silent, in units of `agents.fault.hang_after_s`, and at least. Nobody looks whether it is
/// starved, so it gets more time than it gives others.
const WATCHER_PATIENCE: u32 = 5;
const WATCHER_PATIENCE_MIN: Duration = Duration::from_secs(2);

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
            AgentState::Stopped => "stopped",
        }
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
    killed: Option<Nanos>,
    /// It was killed for what its running task did.
    blames_task: bool,
    /// The death that the next readiness ends.
    recovering: Option<(usize, Nanos)>,
    /// It shall not live again.
    unwanted: bool,
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
            blames_task: false,
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

    fn start_agent(&mut self, slot: AgentSlot) {
        let now = clock::now();
        let record = self.roster[slot.index()].as_mut().expect("callers have seen it");
        record.incarnation.0 += 1;
        record.born = now;
        record.killed = None;
        record.blames_task = false;
        let newborn = Newborn {
            kind: record.kind,
            id: &record.id,
            slot,
            incarnation: record.incarnation,
            core: record.core,
            core_shared: record.core_shared,
        };
        match self.nursery.spawn(&newborn, self.switchboard.store.clone(), self.switchboard.hub_arena()) {
            Ok(Started { child, link, talk, contact, owner }) => {
                let seat = Seat::new(slot, record.incarnation, record.kind, link);
                let data = epoll::EventData::new_u64(WATCH_MEMBER | u64::from(slot.0));
                // Without it the agent hears no peers; its tasks do not need them.
                let _ = epoll::add(&self.epoll, &talk, data, epoll::EventFlags::IN);
                let talks = Talks { talk, contact, pid: child.pid(), owner };
                self.switchboard.add_agent(slot, &record.id, record.kind, talks);
                let watched = epoll::add(
                    &self.epoll,
                    &child,
                    epoll::EventData::new_u64(u64::from(slot.0)),
                    epoll::EventFlags::IN,
                );
                if watched.is_err() {
                    // Unwatched, its death would go unnoticed.
                    child.kill();
                }
                record.child = Some(child);
                record.state = AgentState::Starting;
                self.dispatcher.seat(seat);
            }
            Err(error) => {
                let text = format!("cannot start: {error}");
                self.events.add(Severity::Warning, "agent_start_failed", Some(&record.id.clone()), text);
                self.schedule_restart(slot, 0, false);
            }
        }
    }

    pub(super) fn on_ready(&mut self, slot: AgentSlot, incarnation: Incarnation, core: Option<usize>) {
        let now = self.now;
        let Some(record) = self.record_mut(slot) else { return };
        if record.incarnation != incarnation || record.state != AgentState::Starting {
            return;
        }
        record.state = AgentState::Ready;
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
        }
        self.first_ready.get_or_insert(now);
        self.events.add(
            Severity::Info,
            "agent_ready",
            Some(&id),
            format!("process {pid}, life {incarnation}, {place}"),
        );
        self.introduce(slot, incarnation, pid, kind);
    }

    /// Tells the agents that watch others about a new one, and tells a new watcher about everybody.
    fn introduce(&mut self, slot: AgentSlot, incarnation: Incarnation, pid: u32, kind: AgentKind) {
        let newcomer = ToAgent::Peer { slot, incarnation, pid, kind: kind as u8 };
        self.tell_watchers(&newcomer);
        if is_watcher(kind) {
            let others: Vec<ToAgent<'static>> = (0..self.roster.len())
                .filter_map(|at| {
                    let record =
                        self.roster[at].as_ref().filter(|record| record.state == AgentState::Ready)?;
                    Some(ToAgent::Peer {
                        slot: AgentSlot(at as u16),
                        incarnation: record.incarnation,
                        pid: record.child.as_ref()?.pid(),
                        kind: record.kind as u8,
                    })
                })
                .collect();
            if let Some(seat) = self.dispatcher.get_mut(slot) {
                for other in &others {
                    let _ = seat.link.send(Lane::Control, other);
                }
                seat.touched = true;
            }
        }
    }

    fn tell_watchers(&mut self, message: &ToAgent<'_>) {
        for seat in self.dispatcher.iter_mut().filter(|seat| seat.ready && is_watcher(seat.kind)) {
            // A watcher that does not read is itself watched by the ready limit and its beat.
            let _ = seat.link.send(Lane::Control, message);
            seat.touched = true;
        }
    }

    /// The kernel says that this child has ended.
    pub(super) fn on_child(&mut self, slot: AgentSlot) {
        let Some(exit) =
            self.record(slot).and_then(|record| record.child.as_ref()).and_then(ChildProcess::try_reap)
        else {
            return;
        };
        let now = self.now;
        let blames_task = self.record(slot).is_some_and(|record| record.blames_task);
        let crashed = match exit {
            Exit::Signal(signal) => blames_task || signal != libc::SIGKILL && signal != libc::SIGTERM,
            Exit::Code(code) => code != 0,
        };
        let cause = exit.describe();
        let leftovers = self.held_outputs(slot);
        let (mut tasks, mut failures, mut busy_ns) = (0, 0, 0);
        if let Some(seat) = self.dispatcher.get(slot) {
            (tasks, failures, busy_ns) = (seat.tasks, seat.failures, seat.busy_ns);
        }
        let moved =
            self.dispatcher.on_agent_gone(&mut self.ledger, slot, &cause, crashed, now, &mut self.heard);
        for path in leftovers {
            // Most of them were never begun.
            let _ = std::fs::remove_file(path);
        }
        let record = self.roster[slot.index()].as_mut().expect("just seen");
        record.child = None;
        record.past_tasks += tasks;
        record.past_failures += failures;
        record.past_busy_ns += busy_ns;
        let (id, kind, incarnation, born, killed) =
            (record.id.clone(), record.kind, record.incarnation, record.born, record.killed.take());
        self.close_member(slot.index(), "died");
        self.board.publish_life(slot, None, 0, 0);
        self.past_lives[slot.index()] = incarnation;
        // What it published is nobody's word any more: absent is not the last value.
        match kind {
            AgentKind::Resource => self.board.publish_host(&Host::UNKNOWN),
            AgentKind::Thermal => self.board.publish_thermal(&Thermal::UNKNOWN),
            _ => {}
        }
        self.tell_watchers(&ToAgent::Peer { slot, incarnation, pid: 0, kind: 0 });
        if self.closing {
            self.roster[slot.index()].as_mut().expect("just seen").state = AgentState::Stopped;
            return;
        }
        let detect_us = killed.map(|then| now.since(then).as_nanos() as f64 / 1000.0);
        self.note_death(slot, exit, born, tasks, detect_us, &moved);
        let recovery = Recovery {
            agent: id.clone(),
            cause: cause.clone(),
            detect_us,
            ready_us: None,
            tasks_moved: moved.len(),
        };
        let text = format!("{cause} in life {incarnation}; {} moved to others", things(moved.len(), "task"));
        if self.roster[slot.index()].as_ref().is_some_and(|record| record.unwanted) {
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
        self.events.add(Severity::Warning, "agent_died", Some(&id), text);
        let record = self.roster[slot.index()].as_mut().expect("just seen");
        if self.recoveries.len() < 10_000 {
            record.recovering = Some((self.recoveries.len(), now));
            self.recoveries.push(recovery);
        }
        let from_outside = exit == Exit::Signal(libc::SIGKILL) && killed.is_none();
        self.schedule_restart(slot, tasks, from_outside);
        // At once when it may: recovery is waiting for it.
        self.start_due();
    }

    fn schedule_restart(&mut self, slot: AgentSlot, tasks: u64, from_outside: bool) {
        let limits = RestartLimits {
            limit: self.config.agents.fault.restart_limit,
            window: self.config.agents.fault.restart_window,
            backoff_max: self.config.agents.fault.backoff_max,
        };
        let (now, tolerant) = (self.now.max(clock::now()), self.config.fault_tolerance);
        let record = self.roster[slot.index()].as_mut().expect("callers have seen it");
        let id = record.id.clone();
        if !tolerant {
            record.state = AgentState::Stopped;
            let text = "stays dead: `fault_tolerance` is off".to_owned();
            self.events.add(Severity::Warning, "agent_not_restarted", Some(&id), text);
            return;
        }
        record.restarts += 1;
        match record.history.on_death(record.born, tasks > 0, from_outside, now, &limits) {
            Decision::At(when) => record.state = AgentState::Backoff(when),
            Decision::Bench(until) => {
                record.state = AgentState::Benched(until);
                let text = format!(
                    "crash loop: more than {} starts in {} s came to nothing; tried again in {} s",
                    limits.limit,
                    limits.window.as_secs(),
                    restart::BENCH.as_secs()
                );
                self.open_incident(slot, Failure::CrashLoop, &text, Vec::new());
                self.events.add(Severity::Warning, "agent_benched", Some(&id), text);
            }
        }
    }

    /// Temporary files that a dying agent may leave.
    fn held_outputs(&self, slot: AgentSlot) -> Vec<PathBuf> {
        let Some(seat) = self.dispatcher.get(slot) else { return Vec::new() };
        let mut paths = Vec::new();
        for held in &seat.held {
            if let Some(output) = self.ledger.get(held.task).and_then(|task| task.spec.output.as_deref()) {
                let tag = attempt_tag(&self.nursery.token, held.task, held.attempt);
                paths.push(temporary_name(output, &tag));
                paths.push(temporary_name(&extra_path(output, SCORES_SUFFIX), &tag));
            }
        }
        paths
    }

    /// Ends an agent at once. Its death comes back through the kernel like any other.
    pub(super) fn kill(&mut self, slot: AgentSlot, kind: &str, text: String) {
        let now = clock::now();
        let Some(record) = self.record_mut(slot) else { return };
        let id = record.id.clone();
        if let Some(child) = &record.child {
            child.kill();
            record.killed.get_or_insert(now);
        }
        self.events.add(Severity::Warning, kind, Some(&id), text);
    }

    pub(super) fn on_corrupt(&mut self, slot: AgentSlot, incarnation: Incarnation, what: &str) {
        let lives = self
            .record(slot)
            .is_some_and(|record| record.incarnation == incarnation && record.killed.is_none());
        if lives {
            *self.switchboard.closed.entry(switchboard::reason_class(what)).or_default() += 1;
            self.open_incident(slot, Failure::Garbage, what, Vec::new());
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
                }
                self.kill(slot, "agent_restarted", text("killed"));
            }
            // Without a successor it would only be gone sooner.
            Act::Drain if self.config.fault_tolerance => self.drain(slot, text("drained")),
            // The others are not the fault agent's to find.
            Act::None | Act::Drain | Act::Bench | Act::FailTask => {}
        }
    }

    fn drain(&mut self, slot: AgentSlot, text: String) {
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
                }
            }
        }
    }

    /// Kills whoever runs but is not ready (or does not end) in time.
    pub(super) fn replace_never_ready(&mut self) {
        for at in 0..self.roster.len() {
            let slot = AgentSlot(at as u16);
            let late = self.record(slot).is_some_and(|record| {
                record.state == AgentState::Starting
                    && record.child.is_some()
                    && record.killed.is_none()
                    && self.now.since(record.born) > READY_LIMIT
            });
            if late {
                let figures = vec![Figure::new("limit_s", READY_LIMIT.as_secs_f64())];
                self.open_incident(slot, Failure::Hang, "it does not become ready, or does not end", figures);
                self.kill(
                    slot,
                    "agent_not_ready",
                    format!("killed: not ready after {} s", READY_LIMIT.as_secs()),
                );
            }
        }
    }

    /// The fault agent watches everybody but itself.
    pub(super) fn watch_the_watcher(&mut self) {
        let watcher = self.dispatcher.iter().find(|seat| seat.kind == AgentKind::Fault && seat.ready);
        let Some((slot, beat)) = watcher.map(|seat| (seat.slot, seat.link.beat())) else {
            self.watcher = (0, self.now);
            return;
        };
        if beat != self.watcher.0 {
            self.watcher = (beat, self.now);
        } else if self.now.since(self.watcher.1)
            > (self.config.agents.fault.hang_after * WATCHER_PATIENCE).max(WATCHER_PATIENCE_MIN)
        {
            let silent_s = self.now.since(self.watcher.1).as_secs_f64();
            self.watcher = (beat, self.now);
            let text = "the fault agent itself shows no progress";
            self.open_incident(slot, Failure::Hang, text, vec![Figure::new("silent_s", silent_s)]);
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
