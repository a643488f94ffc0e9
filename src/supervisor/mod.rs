//! The supervisor: owner of processes and of the ledger, one loop.
//!
//! ```text
//!  turn:  collect results ─ answer requests ─ timers ─ look at the kernel ─ start who is due ─ dispatch ─ ring bells
//!  idle:  spin a while (never on a shared core), then sleep in epoll: pidfds, signals, the bell
//! ```
//! Between accepting a task and its answer there is no lock, no system call while busy and no
//! formatting. The kernel is asked for dead children and signals at most every `LOOK_EVERY`.
//!
//! Invariants
//! 1. Everything here runs on the main thread: it alone starts processes (the kernel ties a child's
//!    parent-death signal to the thread that started it).
//! 2. A seat exists exactly while its process does; tasks of a dead one are back in the queue before
//!    the next dispatch.
//! 3. The supervisor runs no kernel and believes no byte that it did not write.
//! 4. HTTP is spoken by the gateway, a process that may die: `gatekeeper` keeps it, `hatch` is the line to it, `wire`
//!    what goes over that line.

pub mod action;
mod counters;
pub mod degradation;
mod dump;
pub mod events;
mod gatekeeper;
pub mod hatch;
pub mod home;
pub mod incidents;
mod keeping;
mod leftovers;
mod memory;
mod placement;
mod reaper;
mod report;
pub mod restart;
mod rolling;
mod roster;
mod spawn;
mod standby;
mod stop;
mod switchboard;
mod vigil;
pub mod wire;

pub use action::{Action, Handle, Refused, RefusedTask, Reply};
pub use home::Home;
pub use reaper::{REAPER_WORD, main as reaper_main};
pub use roster::AgentState;
pub use spawn::{GUARD_WORD, is_agent, is_gateway};
pub use stop::{Ending, OnEnd};

use crate::agents::Settings;
use crate::agents::runner::Patience;
use crate::balancer;
use crate::base::clock::Nanos;
use crate::base::ids::{AgentKind, AgentSlot, Attempt, Incarnation, TaskId};
use crate::base::prng::SplitMix64;
use crate::config::SwarmConfig;
use crate::jobs;
use crate::messaging::envelope::Severity;
use crate::messaging::failure::{self, Act, Failure, Figure};
use crate::messaging::{Lane, ToAgent};
use crate::os::affinity::CoreMask;
use crate::os::clock;
use crate::os::process::{self, ChildProcess};
use crate::os::signals::StopSignals;
use crate::os::topology::{CorePlan, KindRequest, Topology, plan_cores};
use crate::shm::board::Board;
use crate::shm::doorbell::{HubBell, HubSleeper};
use crate::shm::ring::Message;
use crate::shm::{Access, SharedObject, pages};
use crate::tasks::dispatch::Seat;
use crate::tasks::ledger::{CancelOutcome, LedgerLimits, SubmitError};
use crate::tasks::results::Signal;
use crate::tasks::{
    CostModel, Dispatcher, HedgeRules, Lease, Ledger, TaskSpec, TaskState, WideRules, Windows,
};
use action::{Answer, Recovery, Requests, Submitted};
use degradation::{Ladder, Level};
use events::EventLog;
use gatekeeper::Gatekeeper;
use home::HomeError;
use incidents::IncidentLog;
use restart::{Decision, Doing, RestartLimits, RestartRecord};
use rolling::Rolling;
use roster::Record;
use rustix::event::{EventfdFlags, epoll, eventfd};
use spawn::{Binary, Newborn, Nursery};
use standby::Standbys;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use switchboard::{Switchboard, WATCH_ATTACH, WATCH_CLIENT, WATCH_MEMBER};
use vigil::Vigil;

/// While busy, the kernel is asked for deaths and signals this often.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Housekeeping values (cap, backlog on the board) are refreshed this often.
const TIDY_EVERY: Duration = Duration::from_millis(5);
/// What happened is told so late at most, while somebody gets ready.
const HUSH: Duration = Duration::from_millis(5);
/// At level `power`, while the disk is waited for, whoever waits for this core gets it this often.
const GIVE_WAY_EVERY: Duration = Duration::from_micros(20);
/// A sync that takes longer is late.
const SYNC_LATE: Duration = Duration::from_micros(250);
/// Turns on the core of who has to hear of things at once and is done with them soon. Others have 3 ms and more.
const TURN: Duration = Duration::from_micros(200);
/// Requests answered in one turn.
const REQUESTS_PER_TURN: usize = 64;
/// An agent that is not ready after so long is replaced.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// A standby answers sooner: it has only to wake up and be pinned.
const ADOPTED_LIMIT: Duration = Duration::from_millis(250);
/// An agent that was told to end has so long.
const AGENT_END_LIMIT: Duration = Duration::from_secs(2);
/// After a death, orphans are looked for so many times more: what one leaves behind is found the next time.
const SWEEPS: u32 = 3;
/// Between two tries to start an agent while its guard is being taken apart.
const GUARD_PAUSE: Duration = Duration::from_millis(5);
/// The loop never rests so long: if it did, it stood still.
const PAUSED: Duration = Duration::from_millis(1500);
/// An agent that does not give a task up within this time is killed for it.
const GIVE_UP_LIMIT: Duration = Duration::from_millis(500);
/// Open files of the supervisor without any member, and while it starts one; 24 and 20 were seen. An agent that
/// counts hardware events has 40 itself.
const FILES_ITSELF: u64 = 56;
/// Open files that each member costs it: its process and what /proc says of it, or its bell; its socket, and the objects that others are
/// handed.
const FILES_PER_MEMBER: u64 = 7;
/// Clients that may always try: what cannot be opened for them is refused.
const CLIENTS_MIN: usize = 4;
/// Places for housekeeping agents beside `max_agents` compute agents.
const HOUSEKEEPING_SLOTS: usize = 5;

/// How a swarm is started.
#[derive(Debug)]
pub struct Options {
    /// A swarm of its own that nobody else talks to, gone when it ends.
    pub private: bool,
    /// State directory, when it was named.
    pub state_dir: Option<PathBuf>,
    /// Go on with what is readable of a damaged journal.
    pub salvage: bool,
    /// `tracing` filter for the agents.
    pub log_filter: String,
    /// Log lines as JSON.
    pub log_json: bool,
    /// Where agents' log lines go; `None`: our own standard error.
    pub agent_log: Option<OwnedFd>,
    /// Taken before any other thread was started.
    pub signals: StopSignals,
}

/// Why a swarm could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory is taken or cannot be made.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The journal is damaged, or there is no room for it.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// No room for the board.
    #[error(transparent)]
    Board(#[from] crate::shm::segment::SegmentError),
    /// Nobody could connect to the control socket.
    #[error("cannot listen on {}: {source}", socket.display())]
    Listen {
        /// Where.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Too few files may be open.
    #[error("{needed} open files are needed for {agents} agents, and {allowed} are allowed")]
    OpenFiles {
        /// For the agents that are planned.
        needed: u64,
        /// How many agents those are.
        agents: usize,
        /// The limit, raised as far as it may be.
        allowed: u64,
    },
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Clients that there can be beside the agents; an error when there are not even enough open files for those.
fn room_for_clients(allowed: u64, planned: usize, slots: usize) -> Result<usize, StartError> {
    let needed = |agents: usize| FILES_ITSELF + FILES_PER_MEMBER * agents as u64;
    if allowed < needed(planned) {
        return Err(StartError::OpenFiles { needed: needed(planned), agents: planned, allowed });
    }
    let left = allowed.saturating_sub(needed(slots)) / FILES_PER_MEMBER;
    Ok((left as usize).clamp(CLIENTS_MIN, switchboard::CLIENTS_MAX))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Somebody who waits for tasks to end.
struct Waiter {
    tasks: Vec<Result<TaskId, Submitted>>,
    open: usize,
    answer: Answer,
}

/// A task that was asked to be given up.
#[derive(Clone, Copy, Debug)]
struct GivingUp {
    task: TaskId,
    attempt: Attempt,
    lease: Lease,
    /// Its agent is killed if it did not by then. `None` for one that another attempt has overtaken: being slow is what it was
    /// overtaken for, and whether its agent hangs is for the fault agent to say.
    by: Option<Nanos>,
}

/// See the module.
pub struct Supervisor {
    config: SwarmConfig,
    /// Cores that this process may use, read before anything was pinned.
    cores: Vec<usize>,
    plan: CorePlan,
    nursery: Nursery,
    board: Board,
    home: Home,
    signals: StopSignals,
    sleeper: HubSleeper,
    epoll: OwnedFd,
    handle: Handle,
    requests: Requests,
    /// Who may talk to whom, and the clients.
    switchboard: Switchboard,
    /// Keeps the control API, if there is one.
    gatekeeper: Option<Gatekeeper>,
    /// The agents by slot.
    roster: Vec<Option<Record>>,
    ledger: Ledger,
    dispatcher: Dispatcher,
    events: EventLog,
    recoveries: Vec<Recovery>,
    incidents: IncidentLog,
    waiters: HashMap<u64, Waiter>,
    /// Answers that wait for the journal.
    kept: keeping::KeptBack,
    /// Keeps what this process knows for a later life.
    memory: memory::Memory,
    /// What was counted in earlier lives, and in this one by agents that were destroyed.
    earlier: action::EarlierView,
    destroyed: Vec<(String, action::AgentCounters)>,
    giving_up: Vec<GivingUp>,
    heard: Vec<Signal>,
    /// Room for what epoll finds, kept so that a look allocates nothing.
    found: Vec<epoll::Event>,
    ended: Vec<(TaskId, u64)>,
    /// Compute agents that may be busy at once.
    limit: usize,
    /// How often the balancer's guard took over, and whether it has, as far as the events tell.
    guard_alarms: u32,
    is_guarded: bool,
    may_spin: bool,
    patience: Patience,
    /// What this thread may run on when the swarm has ended.
    cores_before: Option<CoreMask>,
    /// All but ours, if there are others.
    cores_elsewhere: CoreMask,
    /// Nobody else watches the watcher.
    watcher: roster::Watcher,
    /// When things were last looked after.
    tidied: Nanos,
    /// Who was not told of whom yet.
    untold: Vec<(AgentSlot, AgentSlot)>,
    started: Nanos,
    first_ready: Option<Nanos>,
    first_accepted: Option<Nanos>,
    last_ended: Nanos,
    next_look: Nanos,
    next_tidy: Nanos,
    /// When whoever waits for this core gets it next, at level `power`.
    next_yield: Nanos,
    /// What the disk had when it was last looked at, and since when.
    last_safe: (u64, Nanos),
    now: Nanos,
    stop_signals: usize,
    stop_asked: bool,
    /// What whoever asked for it wants to become of tasks that are not done: that they wait for the next life.
    shall_leave: Option<bool>,
    /// They do. Decided when the end begins.
    leaves_tasks: bool,
    /// Agents that die are not replaced any more.
    closing: bool,
    /// Processes of agents that are dead and still being taken apart.
    dying: Vec<ChildProcess>,
    /// Removes what has a name when this process is killed.
    reaper: reaper::Reaper,
    /// Removes what is of no more use.
    sweeper: leftovers::Sweeper,
    standbys: Standbys,
    standby_message: Message,
    /// Hears early of deaths while we sleep.
    vigil: Vigil,
    /// It does not know yet who is there now.
    vigil_is_stale: bool,
    /// Since when something that happened is kept back for a moment; see [`Supervisor::is_hushed`].
    hushed_since: Option<Nanos>,
    /// Looks for orphans that are still to be made.
    sweeps_left: u32,
    ladder: Ladder,
    next_strain: Nanos,
    rolling: Option<Rolling>,
    state: &'static str,
    turns: u64,
    busy_turns: u64,
    sleeps: u64,
    wakes: u64,
    /// Lives that a slot has seen before its present agent, so that no incarnation comes twice.
    past_lives: Vec<Incarnation>,
}

/// The learned costs, as the dispatcher sees them.
struct LearnedCosts<'a>(&'a Board);

impl CostModel for LearnedCosts<'_> {
    fn expected_ns(&self, kernel: u8, class: u8, slot: AgentSlot) -> Option<f64> {
        // An agent that has not run any yet is like the others until it has.
        let cost = self.0.cost(kernel, class, Some(slot)).or_else(|| self.0.cost(kernel, class, None))?;
        Some(f64::from(cost.mean_ns))
    }
}

/// The core plan of a configuration on this host.
pub fn core_plan(config: &SwarmConfig, topology: &Topology) -> CorePlan {
    let requests =
        config.agents.each().map(|(kind, count, cores)| KindRequest { kind, count: count.exact(), cores });
    plan_cores(topology.usable(), &requests, config.max_agents)
}

impl Supervisor {
    /// Claims the home, creates the board, and starts the compute agents; the others follow in the
    /// first turns. Call from the main thread.
    pub fn start(config: SwarmConfig, options: Options) -> Result<Self, StartError> {
        let started = clock::now();
        let token = token();
        let open_files = process::raise_open_files();
        let state_dir = options.state_dir.as_deref();
        let home = if options.private {
            Home::private(state_dir, &format!("{}-{token}", std::process::id()))?
        } else {
            Home::claim(&config.name, state_dir, config.gateway.enabled)?
        };
        let topology = Topology::read();
        let plan = core_plan(&config, &topology);
        let slots = config.max_agents + HOUSEKEEPING_SLOTS;
        let standbys = config.agents.compute.standbys;
        let clients = room_for_clients(open_files, plan.assignments.len(), slots + standbys)?;
        let silence = crate::os::spawn::silence().map_err(system("open /dev/null"))?;
        let beside = keeping::cores_for_threads(&plan, topology.usable());
        // Before there is anything to put away.
        let reaper = reaper::Reaper::start(&home, &config.name, silence.as_fd(), beside, started);
        let board_name = format!("ai_swarm-{}-{token}", config.name);
        home.note_board(&board_name)?;
        let board = Board::create(&board_name, slots)?;

        let hub = SharedObject::create("ai_swarm-hub", pages::PAGE_BYTES)
            .map_err(system("create shared memory"))?;
        let hub_words = hub.map(Access::Write).map_err(system("map shared memory"))?;
        hub.seal_writes().map_err(system("seal shared memory"))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = event.map_err(|errno| system("create an eventfd")(errno.into()))?;
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(system("copy a descriptor"));
        let (handle, requests) =
            Handle::new(HubBell::new((hub_words.clone(), pages::HUB_ASLEEP), copy(&event)?));
        let sleeper = HubSleeper::new((hub_words.clone(), pages::HUB_ASLEEP), copy(&event)?);
        let limits = LedgerLimits {
            queue: config.tasks.queue_limit,
            poison_deaths: config.tasks.poison_deaths,
            ageing: config.tasks.ageing,
        };
        let mut ledger = Ledger::new(limits);
        // Threads begin where this one may run: the journal's away from the cores of compute agents, if there is room.
        let cores_before = CoreMask::current();
        beside.apply();
        let elsewhere = keeping::cores_elsewhere(&plan, topology.usable());
        let kept = keeping::open(&config, &options, elsewhere, &home, &handle, &token, &mut ledger);
        let (memory, recalled) = memory::Memory::open(home.snapshots(), &topology);
        if let Some(cores) = &cores_before {
            cores.apply();
        }
        let kept = kept?;
        let (signals, private) = (options.signals, options.private);
        let log = match options.agent_log {
            Some(log) => log,
            None => io::stderr().as_fd().try_clone_to_owned().map_err(system("copy a descriptor"))?,
        };
        let settings = Settings {
            monitoring_interval: config.monitoring_interval,
            optimization_interval: config.optimization_interval,
            cpu_critical_percent: config.performance_thresholds.cpu_critical,
            memory_critical_percent: config.performance_thresholds.memory_critical,
            thermal_critical_celsius: config.performance_thresholds.thermal_critical,
            thermal_hysteresis_celsius: config.agents.thermal.hysteresis_c,
            sysfs: config.agents.thermal.root.clone(),
            procfs: config.agents.resource.procfs.clone(),
            state_dir: home.path().to_owned(),
            snapshots: home.snapshots(),
            hang_after: config.agents.fault.hang_after,
            memory_limit: config.agents.fault.memory_limit,
            descriptor_limit: config.agents.fault.descriptor_limit,
            restart_limit: config.agents.fault.restart_limit,
            restart_window: config.agents.fault.restart_window,
            optimization_budget_percent: config.agents.optimization.budget_percent,
            compute_agents: plan.compute_count(),
            gives_way: keeping::waits_for_disk(&config, private),
        };
        let bell = HubBell::new((hub_words.clone(), pages::HUB_ASLEEP), copy(&event)?);
        let vigil = Vigil::begin(bell).map_err(system("start a thread"))?;
        let gateway_start = |control: &std::path::Path| wire::GatewayStart {
            control: control.to_owned(),
            timeout: config.tasks.default_timeout,
            retries: config.tasks.default_retries,
            log_filter: options.log_filter.clone(),
            log_json: options.log_json,
        };
        let gatekeeper = home.socket().map(|socket| {
            Gatekeeper::listen(socket, gateway_start(socket), beside, started)
                .map_err(|source| StartError::Listen { socket: socket.to_owned(), source })
        });
        let gatekeeper = gatekeeper.transpose()?;
        let nursery = Nursery {
            binary: Binary::our_own().map_err(system("find this program's own file"))?,
            cores: CoreMask::of(topology.usable().iter().copied()),
            supervisor_core: plan.supervisor,
            containment: spawn::contain(&config.name, silence.as_fd()),
            silence,
            spare: None,
            spare_due: started,
            swarm: config.name.clone(),
            channel_bytes: config.channel_size,
            arena_bytes: config.messaging.arena_bytes,
            hub,
            hub_event: event,
            board: board_name,
            board_slots: slots,
            log_filter: options.log_filter,
            log_json: options.log_json,
            log,
            settings,
            token,
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| system("create an epoll")(errno.into()))?;
        let watch = |fd: BorrowedFd<'_>, data| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)
                .map_err(|errno| system("watch a descriptor")(errno.into()))
        };
        watch(nursery.hub_event(), WATCH_BELL)?;
        watch(signals.as_fd(), WATCH_SIGNALS)?;
        if let Some(guard) = nursery.containment.guard() {
            watch(guard.as_fd(), WATCH_GUARD)?;
        }
        let mut switchboard =
            Switchboard::new(slots, clients, config.channel_size, config.messaging.arena_bytes)
                .map_err(system("create the arena"))?;
        if let Some(path) = home.attach_socket() {
            let listener = switchboard.listen(&path).map_err(system("listen for clients"))?;
            watch(listener, WATCH_ATTACH)?;
        }

        let placer = balancer::placer(config.balancer.policy, config.balancer.mode)
            .expect("the configuration knows the policies");
        let windows = Windows { window: config.tasks.window, batch: config.tasks.batch };
        let hedge = HedgeRules { share: config.tasks.hedge_share, after: config.tasks.hedge_after };
        let wide = WideRules { above: config.tasks.divide_above, falls_into_parts: jobs::falls_into_parts };
        let computes_beside =
            plan.assignments.iter().any(|seat| seat.kind == "compute" && seat.core == plan.supervisor);
        crate::os::affinity::pin_current_thread(plan.supervisor);
        // From here on; agents begin with it, too, and compute agents take longer ones when they are ready for work.
        process::set_turn(TURN);
        let ended_before = ledger.tasks().filter(|task| task.earlier);
        let remembered: Vec<TaskState> = ended_before.map(|task| task.state).collect();
        let remembered = remembered.into_iter();
        let mut supervisor = Self {
            may_spin: !computes_beside,
            nursery,
            switchboard,
            gatekeeper,
            board,
            home,
            signals,
            sleeper,
            epoll,
            handle,
            requests,
            roster: (0..slots).map(|_| None).collect(),
            ledger,
            dispatcher: Dispatcher::new(slots, placer, windows, hedge, wide),
            events: EventLog::after(&kept.events),
            recoveries: Vec::new(),
            incidents: IncidentLog::default(),
            waiters: HashMap::new(),
            kept: keeping::KeptBack::new(),
            memory,
            earlier: recalled.counted.unwrap_or_default().at_least(remembered),
            destroyed: Vec::new(),
            giving_up: Vec::new(),
            heard: Vec::new(),
            found: Vec::with_capacity(64),
            ended: Vec::new(),
            limit: usize::MAX,
            guard_alarms: 0,
            is_guarded: false,
            patience: Patience::new(keeping::waits_for_disk(&config, private)),
            cores_before,
            cores_elsewhere: elsewhere,
            watcher: roster::Watcher::default(),
            tidied: started,
            untold: Vec::new(),
            started,
            first_ready: None,
            first_accepted: None,
            last_ended: Nanos(0),
            next_look: Nanos(0),
            next_tidy: Nanos(0),
            next_yield: Nanos(0),
            last_safe: (0, Nanos(0)),
            now: started,
            stop_signals: 0,
            stop_asked: false,
            shall_leave: None,
            leaves_tasks: false,
            closing: false,
            dying: Vec::new(),
            reaper,
            sweeper: leftovers::Sweeper::new(beside),
            standbys: Standbys::new(started),
            standby_message: Message::default(),
            vigil,
            vigil_is_stale: false,
            hushed_since: None,
            sweeps_left: 0,
            ladder: Ladder::new(&config.agents.resource.procfs),
            next_strain: started.plus(degradation::LOOK_EVERY),
            rolling: None,
            state: "running",
            turns: 0,
            busy_turns: 0,
            sleeps: 0,
            wakes: 0,
            past_lives: vec![Incarnation(0); slots],
            config,
            cores: topology.usable().to_vec(),
            plan,
        };
        supervisor.expect_load(private);
        for note in kept.notes {
            supervisor.events.add(Severity::Info, "journal", None, note);
        }
        for loss in kept.losses {
            supervisor.events.add(Severity::Warning, "journal", None, loss);
        }
        // What goes on was accepted long ago, and waits from now on.
        supervisor.first_accepted = (supervisor.ledger.counts().open() > 0).then_some(started);
        for (severity, kind, text) in recalled.told {
            supervisor.events.add(severity, kind, None, text);
        }
        if let Some(known) = recalled.known {
            supervisor.recall(&known);
        }
        supervisor.enrol_planned();
        Ok(supervisor)
    }

    /// Whether a busy host is what this swarm was started for; then alerts about it are events, not warnings in
    /// the log. So it is for private swarms.
    pub fn expect_load(&mut self, wanted: bool) {
        self.events.expect_load(wanted);
    }

    /// Speaks to this supervisor from other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where the control socket goes, if this swarm has one.
    pub fn socket(&self) -> Option<PathBuf> {
        self.home.socket().map(PathBuf::from)
    }

    /// The state directory.
    pub fn state_dir(&self) -> &std::path::Path {
        self.home.path()
    }

    /// The core plan.
    pub fn plan(&self) -> &CorePlan {
        &self.plan
    }

    /// The tasks.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Compute agents that can take work now.
    pub fn ready_compute_agents(&self) -> usize {
        self.dispatcher.iter().filter(|seat| seat.kind == AgentKind::Compute && seat.ready).count()
    }

    /// Deaths whose successor is ready.
    pub fn recovered(&self) -> usize {
        self.recoveries.iter().filter(|recovery| recovery.ready_us.is_some()).count()
    }

    /// Whether somebody asked for the end: a signal, the API, a handle.
    pub fn is_stop_asked(&self) -> bool {
        self.stop_asked || self.stop_signals > 0
    }

    /// Whether a signal asked for it.
    pub fn is_signalled(&self) -> bool {
        self.stop_signals > 0
    }

    /// Accepts tasks from the thread that owns the supervisor. Wrong ones are kept on record as failed.
    pub fn submit(&mut self, tasks: Vec<Result<TaskSpec, RefusedTask>>) -> Vec<Submitted> {
        self.now = clock::now();
        let (_, answers) = self.accept(tasks, true);
        answers.into_iter().map(|answer| self.submitted(&answer)).collect()
    }

    /// From now on tasks that are expected to take longer are divided among idle agents; zero: none.
    pub fn divide_above(&mut self, above: Duration) {
        self.dispatcher.divide_above(above);
    }

    /// Accepts one task without dependencies; the cheap path.
    pub fn submit_one(&mut self, spec: TaskSpec) -> Result<TaskId, SubmitError> {
        self.now = clock::now();
        self.first_accepted.get_or_insert(self.now);
        self.ledger.submit(spec, self.now)
    }

    /// Turns the loop until `done` says so or somebody asks for the end.
    pub fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        while !done(self) && !self.is_stop_asked() {
            if self.turn() == 0 {
                self.rest(None);
            }
        }
    }

    /// As [`run_until`](Self::run_until), at most until `deadline`.
    pub fn run_until_deadline(&mut self, deadline: Nanos, mut done: impl FnMut(&mut Self) -> bool) {
        while !done(self) && !self.is_stop_asked() && clock::now() < deadline {
            if self.turn() == 0 {
                self.rest(Some(deadline));
            }
        }
    }

    /// One turn of the loop. Returns how much was done.
    #[inline]
    pub fn turn(&mut self) -> usize {
        self.turns += 1;
        self.now = clock::now();
        let mut work = self.dispatcher.collect(&mut self.ledger, self.now, &mut self.heard);
        if !self.heard.is_empty() {
            self.on_signals();
        }
        work += self.serve_clients();
        work += self.answer_requests();
        if self.ledger.next_timer().is_some_and(|when| when <= self.now) {
            work += self.on_timers();
        }
        if self.now >= self.next_look {
            self.next_look = self.now.plus(LOOK_EVERY);
            // Their successors come before everything else that the kernel may have to say.
            match self.look_for_the_dying() {
                0 => {}
                found => {
                    work += found + self.start_due();
                    // Whoever takes a place is woken before what can wait is done.
                    self.next_tidy = self.next_tidy.max(self.now.plus(TIDY_EVERY));
                }
            }
            work += self.look_at_kernel(Duration::ZERO);
            self.tend_gateway();
            work += self.start_due();
            self.hear_standbys();
        }
        if self.now >= self.next_tidy {
            self.next_tidy = self.now.plus(TIDY_EVERY);
            self.tidy();
        }
        if self.ledger.queued() > 0 && self.limit > 0 || !self.ledger.divided().is_empty() {
            work +=
                self.dispatcher.dispatch(&mut self.ledger, &LearnedCosts(&self.board), self.limit, self.now);
        }
        for (task, lease, attempt) in self.ledger.take_unwanted() {
            self.ask_to_give_up(task, lease, attempt);
        }
        self.forget_abandoned();
        self.wakes += self.dispatcher.ring_bells() as u64;
        self.ledger.take_ended(&mut self.ended);
        if self.has_settled() || self.keeps_back() {
            self.settle();
        }
        if !self.ended.is_empty() || self.keeps_back() {
            self.on_ended();
        }
        if self.events.has_untold() && !self.is_hushed() {
            self.tell_events();
        }
        self.ring_clients();
        self.busy_turns += u64::from(work > 0);
        if self.patience.gives_way() {
            self.give_way();
        }
        work
    }

    /// Whether what happened is told a moment later. Whoever hears of it is woken (log, journal, gateway, vigil), and where
    /// cores are few that takes the core from an agent that is about to take its place: for 0.12 ms in a trace on two.
    fn is_hushed(&mut self) -> bool {
        let since = *self.hushed_since.get_or_insert(self.now);
        let is_starting = |record: &Record| record.state == AgentState::Starting;
        let is_hushed = self.now.since(since) < HUSH && self.roster.iter().flatten().any(is_starting);
        if !is_hushed {
            self.hushed_since = None;
        }
        is_hushed
    }

    /// Lets the kernel's own threads have the core while tasks wait for the disk: their work brings them there.
    ///
    /// A yield is enough most of the time. But a thread that a scheduler thinks had more than its share gets nothing from a
    /// yield, however urgent it is: the high-priority worker that sends a flush waited 6 ms here. A core that nobody else wants
    /// it gets at once; so when a sync takes longer than it should, the loop sleeps as short as it can.
    fn give_way(&mut self) {
        let safe = self.safe();
        if safe >= self.written() || safe != self.last_safe.0 {
            self.last_safe = (safe, self.now);
        } else if self.now.since(self.last_safe.1) > SYNC_LATE {
            self.last_safe.1 = self.now;
            std::thread::sleep(Duration::from_nanos(1));
            return;
        }
        if self.now >= self.next_yield && safe < self.written() {
            self.next_yield = self.now.plus(GIVE_WAY_EVERY);
            std::thread::yield_now();
        }
    }

    /// Waits for something to do, at most until `deadline`.
    pub fn rest(&mut self, deadline: Option<Nanos>) {
        let began = clock::now();
        if self.hushed_since.is_none() && std::mem::take(&mut self.vigil_is_stale) {
            let words = self.dispatcher.iter().map(|seat| seat.link.life());
            self.vigil.watch(words.chain(self.standbys.iter().map(|started| started.link.life())).collect());
        }
        let due = [
            deadline,
            self.ledger.next_timer(),
            self.next_start(),
            self.next_give_up(),
            self.switchboard.next_due(began),
            self.next_standby(),
            self.dispatcher.next_burial().map(|due| due.max(self.next_tidy)),
            self.next_spare(),
            self.next_ready_limit(),
            self.next_gateway(),
            Some(self.next_strain),
            self.next_straggler(began),
            self.dispatcher.next_offer().filter(|_| self.ledger.queued() > 0 && self.limit > 0),
            // What is under way is looked at again soon, although nobody rings for it.
            (self.rolling.is_some() || self.sweeps_left > 0).then(|| began.plus(TIDY_EVERY)),
            (!self.untold.is_empty()).then_some(self.next_tidy),
            self.hushed_since.map(|since| since.plus(HUSH)),
        ];
        let due = due.into_iter().flatten().min();
        let longest = due.map_or(Duration::from_secs(1), |due| due.since(began)).min(Duration::from_secs(1));
        if self.may_spin {
            // Deaths and signals are not seen while spinning, so a spin is never long.
            let spin = self.patience.spin().min(longest);
            if self.patience.spin_until(began, spin, || self.is_ready()) {
                self.patience.learn(clock::now().since(began));
                return;
            }
        } else if !self.awaits_death() {
            for _ in 0..2 {
                std::thread::yield_now();
                if self.is_ready() {
                    return;
                }
            }
        }
        self.sleeper.announce();
        let rang = if self.is_ready() || self.hears_of_death() {
            false
        } else {
            self.sleeps += 1;
            // Others read the backlog to see that the host is idle.
            self.board.publish_backlog(self.ledger.queued(), self.dispatcher.in_flight());
            self.look_at_kernel(longest) > 0
        };
        self.sleeper.awake(rang);
        if self.hears_of_death() {
            // Whoever died does not wait for the time between two looks to pass.
            self.next_look = self.now;
        }
        self.patience.learn(clock::now().since(began));
    }

    /// Whether the word of an agent says that it is dead. Of one whose word nobody can verify the kernel will tell.
    fn hears_of_death(&self) -> bool {
        let mut abandoned = self.dispatcher.iter().filter(|seat| seat.link.is_abandoned());
        abandoned.any(|seat| self.record(seat.slot).is_some_and(|record| !record.unverified))
    }

    /// Whether somebody was killed and has not died yet. On a core that we share, a yield would let it take its memory apart first;
    /// who sleeps is woken as soon as it is past saving.
    fn awaits_death(&self) -> bool {
        self.roster.iter().flatten().any(|record| record.killed.is_some() && record.child.is_some())
    }

    fn is_ready(&self) -> bool {
        self.dispatcher.is_ready()
            || !self.requests.is_empty()
            || self.has_client_messages()
            || self.has_settled()
    }

    /// Asks the kernel for dead children, signals and the bell; waits for them up to `timeout`.
    fn look_at_kernel(&mut self, timeout: Duration) -> usize {
        let timeout = rustix::time::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut found), Some(&timeout)).is_err() {
            self.found = found;
            return 0;
        }
        self.now = clock::now();
        let mut work = 0;
        for event in &found {
            work += 1;
            match event.data.u64() {
                WATCH_BELL => work -= usize::from(timeout.tv_sec == 0 && timeout.tv_nsec == 0),
                WATCH_SIGNALS => self.stop_signals += self.signals.take(),
                WATCH_ATTACH => work += self.on_attach(),
                WATCH_GUARD => self.on_guard_gone(),
                WATCH_GATEWAY => self.on_gateway_gone(),
                WATCH_DYING => self.bury(),
                word if word & WATCH_STANDBY != 0 => self.on_standby_gone(word as u32),
                word if word & WATCH_MEMBER != 0 => {
                    work += self.on_member_words((word & !WATCH_MEMBER) as usize);
                }
                // A client rang: its lanes are looked at anyway.
                word if word & WATCH_CLIENT != 0 => {}
                slot => self.on_child(AgentSlot(slot as u16)),
            }
        }
        self.found = found;
        work
    }

    fn on_signals(&mut self) {
        let mut heard = std::mem::take(&mut self.heard);
        for signal in heard.drain(..) {
            match signal {
                Signal::Ready(slot, incarnation, core) => self.on_ready(slot, incarnation, core),
                Signal::Ask { from, failure, slot, incarnation, finding } => {
                    self.on_ask(from, failure, slot, incarnation, &finding);
                }
                Signal::Note { from, severity, kind, text } => {
                    let id = self.id_of(from);
                    self.events.add(severity, &kind, id.as_deref(), text);
                }
                Signal::Corrupt(slot, incarnation, what) => self.on_corrupt(slot, incarnation, &what),
            }
        }
        self.heard = heard;
    }

    fn on_timers(&mut self) -> usize {
        let over = self.ledger.on_time(self.now);
        for &(task, lease, attempt) in &over {
            // The limit counts from the start on the agent; a task behind another has not started.
            let seat = self.dispatcher.get(lease.slot);
            let runs = seat.is_some_and(|seat| seat.link.running() == Some(task));
            let began = seat.map_or(self.now, |seat| seat.busy_since);
            match self.ledger.extend_time_limit(task, if runs { began } else { self.now }, self.now) {
                true => {}
                false => self.ask_to_give_up(task, lease, attempt),
            }
        }
        over.len() + 1
    }

    /// Whether no compute agent lives or will: waiting tasks would wait for ever. At the end of a swarm that is no news.
    pub fn is_hopeless(&self) -> bool {
        if self.state != "running" {
            return false;
        }
        let mut computes = self.roster.iter().flatten().filter(|record| record.kind == AgentKind::Compute);
        computes.all(|record| record.state == AgentState::Stopped)
    }

    fn ask_to_give_up(&mut self, task: TaskId, lease: Lease, attempt: Attempt) {
        if let Some(seat) = self.dispatcher.get_mut(lease.slot)
            && seat.incarnation == lease.incarnation
        {
            // A full control lane belongs to an agent that no longer reads: the deadline below ends it.
            let _ = seat.link.send(Lane::Control, &ToAgent::Cancel(task, attempt));
            seat.link.cancel_running(task, attempt);
            seat.touched = true;
        }
        // Parts of one attempt are with several agents.
        let is_asked = |asked: &GivingUp| (asked.task, asked.attempt, asked.lease) == (task, attempt, lease);
        if !self.giving_up.iter().any(is_asked) {
            self.giving_up.push(GivingUp { task, attempt, lease, by: None });
        }
        // Whose work another attempt has made needless, or another part, takes the time that it needs.
        let is_needless = |task: &crate::tasks::Task| {
            task.state.is_final() || task.is_divided() && task.cancelling.is_none()
        };
        if !self.ledger.get(task).is_none_or(is_needless) {
            let by = self.now.plus(GIVE_UP_LIMIT);
            for asked in self.giving_up.iter_mut().filter(|asked| is_asked(asked)) {
                asked.by.get_or_insert(by);
            }
        }
    }

    fn next_give_up(&self) -> Option<Nanos> {
        self.giving_up.iter().filter_map(|giving_up| giving_up.by).min()
    }

    fn tidy(&mut self) {
        self.forgive_a_pause();
        self.dispatcher.bury(self.now);
        self.board.publish_backlog(self.ledger.queued(), self.dispatcher.in_flight());
        self.limit = self.most_at_work();
        self.dispatcher.pass_on_experience();
        let waits = self.ledger.queued() > 0 || !self.ledger.divided().is_empty();
        if waits && self.is_hopeless() {
            self.ledger.cancel_waiting(HOPELESS, self.now);
        }
        self.enforce_giving_up();
        self.hedge();
        self.watch_balancer();
        self.remember();
        self.replace_drained();
        self.replace_never_ready();
        self.watch_the_watcher();
        self.tidy_members();
        self.settle();
        self.tend_standbys();
        self.advance_rolling();
        if !self.untold.is_empty() {
            self.tell_the_rest();
        }
        if !self.dying.is_empty() {
            self.bury();
        }
        if self.sweeps_left > 0 {
            self.sweeps_left -= 1;
            self.end_orphans();
        }
        if self.now >= self.next_strain {
            self.next_strain = self.now.next(degradation::LOOK_EVERY);
            self.climb();
            self.tend_reaper();
            // Adopted orphans that have ended by themselves hold their numbers until somebody looks.
            if self.nursery.containment.adopts() {
                self.sweeps_left = self.sweeps_left.max(1);
            }
        }
    }

    /// If this process itself stood still (stopped, or its host paused), nobody else's time has run out.
    fn forgive_a_pause(&mut self) {
        let gap = self.now.since(std::mem::replace(&mut self.tidied, self.now));
        if gap < PAUSED {
            return;
        }
        self.watcher = roster::Watcher::default();
        for record in self.roster.iter_mut().flatten() {
            record.forgive(gap);
        }
        for giving_up in &mut self.giving_up {
            giving_up.by = giving_up.by.map(|by| by.plus(gap));
        }
    }

    /// Agents that may be busy at once when one of two attempts is not needed: none while the host is short of anything, or when
    /// the swarm ends.
    fn most_hedging(&self) -> usize {
        if self.ladder.level() == Level::Full && self.state == "running" { self.limit } else { 0 }
    }

    /// When to look for a straggler. Not sooner than the next look at everything: what could not be sent then is no reason to
    /// turn in a circle.
    fn next_straggler(&self, now: Nanos) -> Option<Nanos> {
        let due = self.dispatcher.next_straggler(&self.ledger, self.most_hedging())?;
        Some(due.max(now.plus(TIDY_EVERY)))
    }

    /// Sends a straggler's task to an agent that has nothing to do.
    fn hedge(&mut self) {
        let (limit, costs) = (self.most_hedging(), LearnedCosts(&self.board));
        let Some(hedged) = self.dispatcher.hedge(&mut self.ledger, &costs, limit, self.now) else { return };
        let label = self.ledger.get(hedged.task).map(crate::tasks::Task::label).unwrap_or_default();
        let name = |slot| self.id_of(slot).unwrap_or_default();
        let (from, to) = (name(hedged.from), name(hedged.to));
        let (ran, late) = (hedged.ran_ns as f64 / 1e9, hedged.late_ns as f64 / 1e9);
        let text = format!(
            "task {label} is at {from} for {ran:.3} s, and {late:.3} s are late for its kind: {to} tries it, too"
        );
        self.events.add(Severity::Info, "task_hedged", Some(&from), text);
    }

    /// Compute agents that may be busy at once, by the swarm's level and the thermal agent's cap.
    fn most_at_work(&self) -> usize {
        if self.leaves_tasks || self.ladder.level() >= Level::AcceptOnly {
            return 0;
        }
        let cap = self.board.thermal().map(|thermal| thermal.cap_agents);
        cap.filter(|cap| cap.is_finite() && *cap >= 1.0).map_or(usize::MAX, |cap| cap as usize)
    }

    /// One look at the host, and at most one step.
    fn climb(&mut self) {
        let Some(step) = self.ladder.look(self.now) else { return };
        let (kind, severity) =
            if step.to > step.from { ("degraded", Severity::Warning) } else { ("eased", Severity::Info) };
        let text = format!("from {} to {}: {}", step.from.name(), step.to.name(), step.why);
        self.events.add(severity, kind, None, text);
        self.rest_as_the_level_says();
        self.limit = self.most_at_work();
        self.ledger.refuse((step.to == Level::Refuse).then(|| step.why.clone()));
    }

    /// Ends what agents left behind that are gone.
    fn end_orphans(&mut self) {
        let token = &self.nursery.token;
        let agents = self.roster.iter().flatten().filter_map(|record| Some((record, record.child.as_ref()?)));
        let alive = agents.clone().map(|(record, _)| record.owner);
        let alive = alive.chain(self.standbys.iter().map(|started| started.owner));
        let alive: Vec<String> = alive.map(|owner| spawn::life_name(token, owner)).collect();
        let lives = |name: &str| {
            let is_ours = name.strip_prefix(token.as_str()).is_some_and(|rest| rest.starts_with('.'));
            is_ours.then(|| alive.iter().any(|life| life == name))
        };
        let children = agents.map(|(_, child)| child).chain(&self.dying);
        let children = children.chain(self.standbys.iter().map(|started| &started.child));
        let gateway = self.gatekeeper.as_ref().and_then(Gatekeeper::pid);
        let children: Vec<u32> =
            children.map(ChildProcess::pid).chain(gateway).chain(self.reaper.pid()).collect();
        let ended = self.nursery.containment.end_orphans(lives, |pid| children.contains(&pid));
        if ended > 0 {
            self.sweeps_left = SWEEPS;
            let text = format!("ended {ended} that an agent had started and left behind");
            self.events.add(Severity::Warning, "orphans_ended", None, text);
        }
    }

    /// The guard of the agents' namespace is dead, and so is everybody inside.
    fn on_guard_gone(&mut self) {
        let gone = self.nursery.containment.guard().and_then(ChildProcess::try_reap);
        let Some(exit) = gone.filter(|_| !self.closing) else { return };
        self.nursery.renew_guard();
        if let Some(guard) = self.nursery.containment.guard() {
            let data = epoll::EventData::new_u64(WATCH_GUARD);
            // Unwatched, its death shows when an agent has died or cannot be started.
            let _ = epoll::add(&self.epoll, guard, data, epoll::EventFlags::IN);
        }
        let next = match self.nursery.containment.why_not_better() {
            None => "there is another one".to_owned(),
            Some(why) => format!("what agents start is found by adoption from here on: {why}"),
        };
        let text = format!("{}; all agents died with it, and {next}", exit.describe());
        self.events.add(Severity::Warning, "guard_died", None, text);
    }

    fn enforce_giving_up(&mut self) {
        let mut late = Vec::new();
        let (dispatcher, now) = (&self.dispatcher, self.now);
        self.giving_up.retain_mut(|giving_up| {
            let seat = dispatcher.get(giving_up.lease.slot);
            let seat = seat.filter(|seat| seat.incarnation == giving_up.lease.incarnation);
            let Some(seat) = seat.filter(|seat| seat.holds(giving_up.task, giving_up.attempt)) else {
                return false;
            };
            if seat.link.running() == Some(giving_up.task) {
                seat.link.cancel_running(giving_up.task, giving_up.attempt);
            } else if seat.held.front().is_some_and(|held| held.task != giving_up.task) {
                // It stands behind an innocent one, which may take its time.
                giving_up.by = giving_up.by.map(|_| now.plus(GIVE_UP_LIMIT));
            }
            if giving_up.by.is_none_or(|by| now < by) {
                return true;
            }
            late.push(*giving_up);
            false
        });
        for giving_up in late {
            let task = self
                .ledger
                .get(giving_up.task)
                .map_or_else(|| giving_up.task.to_string(), crate::tasks::Task::label);
            let text =
                format!("killed: it did not give up task {task} within {} ms", GIVE_UP_LIMIT.as_millis());
            self.open_incident(giving_up.lease.slot, Failure::Hang, &text, Vec::new());
            if let Some(record) = self.record_mut(giving_up.lease.slot) {
                record.blames_task = Failure::Hang.plan().blames_task;
            }
            self.kill(giving_up.lease.slot, "task_not_given_up", text);
        }
    }

    fn accept(
        &mut self,
        tasks: Vec<Result<TaskSpec, RefusedTask>>,
        record_refused: bool,
    ) -> (u64, Vec<Result<TaskId, Submitted>>) {
        self.first_accepted.get_or_insert(self.now);
        let mut specs = Vec::with_capacity(tasks.len());
        let mut refused = Vec::new();
        for (at, task) in tasks.into_iter().enumerate() {
            match task {
                Ok(spec) => specs.push((at, spec)),
                Err(task) => refused.push((at, task)),
            }
        }
        // Kept for the record only; batches of tiny tasks have no names to keep.
        let named: Vec<(usize, TaskSpec)> = if record_refused {
            specs.iter().filter(|(_, spec)| spec.name.is_some()).cloned().collect()
        } else {
            Vec::new()
        };
        let mut answers: Vec<(usize, Result<TaskId, Submitted>)> =
            Vec::with_capacity(specs.len() + refused.len());
        if record_refused {
            // First, so that a task that comes after a wrong one hears that it was refused.
            for (at, task) in &refused {
                let id = self.ledger.record_refused((*task.spec).clone(), &task.error, self.now);
                answers.push((*at, Ok(id)));
            }
        }
        let (places, specs): (Vec<usize>, Vec<TaskSpec>) = specs.into_iter().unzip();
        let (batch, outcomes) = self.ledger.submit_batch(specs, self.now);
        for (at, outcome) in places.into_iter().zip(outcomes) {
            let answer = match outcome {
                Ok(id) => Ok(id),
                Err(error) => {
                    let found = named.binary_search_by_key(&at, |(place, _)| *place).ok();
                    let spec = found.map(|found| &named[found].1);
                    let id = spec.and_then(|spec| spec.name.as_deref()).unwrap_or("").to_owned();
                    match (record_refused, &error) {
                        (true, error) if error.is_of_the_task() => {
                            let spec = spec.cloned().unwrap_or_default();
                            Ok(self.ledger.record_refused(spec, &error.to_string(), self.now))
                        }
                        _ => Err(Submitted { id, error: Some(error.to_string()), task: None }),
                    }
                }
            };
            answers.push((at, answer));
        }
        if !record_refused {
            for (at, task) in refused {
                let id = task.spec.name.as_deref().unwrap_or("").to_owned();
                answers.push((at, Err(Submitted { id, error: Some(task.error), task: None })));
            }
        }
        answers.sort_by_key(|(at, _)| *at);
        (batch, answers.into_iter().map(|(_, answer)| answer).collect())
    }

    fn submitted(&self, answer: &Result<TaskId, Submitted>) -> Submitted {
        match answer {
            Err(refused) => refused.clone(),
            Ok(id) => {
                let task = self.ledger.get(*id);
                let ended = task.filter(|task| task.state.is_final() && self.may_be_told(task));
                let error = ended
                    .filter(|task| task.state == TaskState::Failed)
                    .and_then(|task| task.error.as_deref());
                Submitted {
                    id: task.map_or_else(|| id.to_string(), crate::tasks::Task::label),
                    error: error.map(str::to_owned),
                    task: ended.map(|task| Box::new(self.task_view(task))),
                }
            }
        }
    }

    fn on_ended(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        if !ended.is_empty() {
            self.last_ended = self.now;
        }
        self.keep_back(&mut ended);
        self.forget_inputs(&ended);
        for &(task, batch) in &ended {
            self.on_client_task_ended(task, batch);
        }
        if !self.waiters.is_empty() {
            for (_, batch) in &ended {
                let Some(waiter) = self.waiters.get_mut(batch) else { continue };
                waiter.open -= 1;
                if waiter.open == 0 {
                    let waiter = self.waiters.remove(batch).expect("just found");
                    let answers = waiter.tasks.iter().map(|task| self.submitted(task)).collect();
                    waiter.tasks.iter().flatten().for_each(|task| self.ledger.pay(*task));
                    (waiter.answer)(Reply::Submitted(answers));
                }
            }
        }
        ended.clear();
        self.ended = ended;
    }

    fn answer_requests(&mut self) -> usize {
        let mut answered = 0;
        while answered < REQUESTS_PER_TURN
            && let Ok((action, answer)) = self.requests.try_recv()
        {
            answered += 1;
            self.answer(action, answer);
        }
        answered
    }

    fn answer(&mut self, action: Action, answer: Answer) {
        let reply = match action {
            Action::Submit { .. } if self.is_hopeless() => {
                Reply::Refused(Refused::Conflict(HOPELESS.to_owned()))
            }
            Action::Submit { .. } if self.ladder.level() == Level::Refuse => {
                let why = self.ladder.why();
                Reply::Refused(Refused::Unavailable(format!(
                    "no task is accepted for now: {why}; try again later"
                )))
            }
            Action::Submit { tasks, record_refused, wait } => {
                if let Some(why) = self.refuses_for() {
                    return answer(Reply::Refused(Refused::Unavailable(why)));
                }
                let (batch, tasks) = self.accept(tasks, record_refused);
                // The journal has failed since the look above, and nothing was accepted.
                if tasks.iter().all(Result::is_err)
                    && let Some(why) = self.refuses_for()
                {
                    return answer(Reply::Refused(Refused::Unavailable(why)));
                }
                let open = if wait { self.follow_all(&tasks, batch) } else { 0 };
                if open > 0 {
                    tasks.iter().flatten().for_each(|task| self.ledger.owe(*task));
                    self.waiters.insert(batch, Waiter { tasks, open, answer });
                    return;
                }
                return self.acknowledge(tasks, answer);
            }
            Action::Tasks { state, limit } => self.task_list(state.as_deref(), limit),
            Action::Task(name) => match self.ledger.find(&name) {
                Some(task) => Reply::Task(Box::new(self.task_view_whole(task))),
                None => no_task(&name),
            },
            Action::CancelTask(name) => return self.cancel_task(name, answer),
            Action::Agents => Reply::Agents(self.agent_views()),
            Action::Agent(id) => match self.slot_of(&id).and_then(|slot| self.agent_view(slot)) {
                Some(view) => Reply::Agent(Box::new(view)),
                None => no_agent(&id),
            },
            Action::CreateAgent { kind, id } => self.create_agent(kind, id),
            Action::DestroyAgent(id) => self.destroy_agent(&id),
            Action::OptimizeAgent(id) => self.optimize_agent(&id),
            Action::RestartAgents { who, rolling } => self.restart_agents(&who, rolling),
            Action::SwitchBalancer(mode) => self.switch_balancer(mode),
            Action::Status => Reply::Status(Box::new(self.status())),
            Action::Statistics => Reply::Statistics(Box::new(self.statistics())),
            Action::Events(after) => {
                // Who has seen an event finds it in later lives, too.
                self.tell_events();
                Reply::Events { events: self.events.since(after), latest: self.events.latest() }
            }
            Action::EarlierEvents => {
                let events = self.events.earlier().to_vec();
                Reply::Events { events, latest: self.events.latest() }
            }
            Action::Report { all_tasks } => Reply::Report(Box::new(self.report(all_tasks))),
            Action::KillAgent(id) => match self.slot_of(&id) {
                Some(slot) => {
                    self.kill_on_request(slot);
                    Reply::Done
                }
                None => no_agent(&id),
            },
            Action::SendMessage { .. } | Action::BroadcastMessage { .. } => {
                Reply::Refused(Refused::Conflict("messages are not delivered yet".to_owned()))
            }
            Action::Stop { keep_tasks } => self.ask_to_stop(keep_tasks),
        };
        answer(reply);
    }

    /// Sees to it that `batch` hears of the end of all these tasks, some of which may have been there before it. Returns of how many.
    fn follow_all(&mut self, tasks: &[Result<TaskId, Submitted>], batch: u64) -> usize {
        let mut ids: Vec<TaskId> = tasks.iter().filter_map(|task| task.as_ref().ok()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let mut hears = |id: &TaskId| match self.ledger.get(*id) {
            Some(task) if task.state.is_final() => false,
            Some(task) if task.batch == batch => true,
            _ => self.ledger.follow(*id, batch),
        };
        ids.iter().filter(|id| hears(id)).count()
    }

    fn cancel_task(&mut self, name: String, answer: Answer) {
        let Some(id) = self.ledger.find(&name).map(|task| task.id) else { return answer(no_task(&name)) };
        let is_new = match self.ledger.cancel(id, self.now).expect("just found") {
            CancelOutcome::AskAgent(lease, attempt) => {
                self.ask_to_give_up(id, lease, attempt);
                true
            }
            CancelOutcome::Cancelled => true,
            CancelOutcome::AlreadyEnded(_) => false,
        };
        self.answer_when_safe(id, name, is_new, answer);
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.tell_events();
        // On an error path nobody called `shut_down`: no process may outlive its supervisor.
        let agents = self.roster.iter().flatten().filter_map(|record| record.child.as_ref());
        let left: Vec<&ChildProcess> =
            agents.chain(self.standbys.iter().map(|started| &started.child)).chain(&self.dying).collect();
        for child in &left {
            child.kill();
        }
        let deadline = clock::now().plus(AGENT_END_LIMIT);
        while left.iter().any(|child| child.try_reap().is_none()) && clock::now() < deadline {
            std::thread::yield_now();
        }
        self.nursery.end_left_behind();
        self.close_gateway();
        if !self.home.is_there() {
            self.switchboard.leave_socket();
        }
        process::set_turn(Duration::ZERO);
        if let Some(mask) = self.cores_before {
            mask.apply();
        }
    }
}

/// Why tasks are not taken when nobody is left to run them.
const HOPELESS: &str = "no compute agent lives and none will be started: see `agents.compute.count` and \
                        `fault_tolerance`, or start one with `agent create compute`";

const WATCH_BELL: u64 = u64::MAX;
const WATCH_SIGNALS: u64 = u64::MAX - 1;
/// The guard of the agents' namespace.
const WATCH_GUARD: u64 = u64::MAX - 2;
/// A process whose death was heard of early.
const WATCH_DYING: u64 = u64::MAX - 3;
/// The gateway's process.
const WATCH_GATEWAY: u64 = u64::MAX - 4;
/// A standby, by its serial number.
const WATCH_STANDBY: u64 = 1 << 35;

fn no_task(name: &str) -> Reply {
    Reply::Refused(Refused::NotFound(format!("no task has the id {name:?}")))
}

fn no_agent(id: &str) -> Reply {
    Reply::Refused(Refused::NotFound(format!("no agent has the id {id:?}")))
}

/// Names one run of a swarm: unguessable, so that nobody can prepare a name for it.
fn token() -> String {
    let mut bytes = [0u8; 8];
    let seed = match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_le_bytes(bytes),
        _ => clock::now().0 ^ u64::from(std::process::id()).rotate_left(32),
    };
    format!("{:016x}", SplitMix64::new(seed).next_u64())
}
