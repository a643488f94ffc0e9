//! A whole swarm in one thread from one seed: agents, rings, the dispatcher's turns. Policies run here as they run in
//! the swarm: [`Placer`] is the same trait, and nothing below it knows which side it is on.
//!
//! 1. Tasks come; the dispatcher sees them and what came back at the start of its next turn.
//! 2. It offers waiting tasks, in order, to the policy. Every decision takes time, every hand-over a hop. An agent has room
//!    by the same rule as in the swarm, and a task that finds none has somebody kept free for it.
//! 3. An agent works through what it holds by itself. How long a task takes is decided by where and when it starts.
//!
//! A policy sees what it would see there: the size class of a task and not its size, and a table of costs that learns from
//! the tasks that came back, as the learning agent's does.
//!
//! Worlds are drawn (`scenario`), or recorded by others (`trace`). `contest` puts policies side by side and says what can be said of the difference.
//!
//! Left out: memory locality, several dispatchers, tasks that fail.

pub mod contest;
mod scenario;
pub mod trace;

pub use scenario::{BACKENDS, KERNELS, SCENARIOS, STAGES, Scenario, World};

use crate::base::ids::AgentSlot;
use crate::base::mean::Mean;
use crate::tasks::{Ask, Candidate, Finished, Placement, Placer, Room, Windows, held_ns, remaining_ns};
use scenario::{CORE, Job, nominal_ns};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};

/// From the envelope to the first instruction, ns.
const HOP_NS: u64 = 250;
/// What a turn of the dispatcher takes besides decisions, ns.
const TURN_NS: u64 = 50;

/// The swarm's own settings.
const WINDOWS: Windows = Windows { window: 2, batch: 256 };

/// What a policy is told of costs by tables that are not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// The learning agent's table, which a short calibration filled at the start.
    Warm,
    /// The same, empty at the start.
    Cold,
    /// The cost on every agent as it was built, without its troubles: what a careful calibration gives.
    Nominal,
    /// The cost on every agent as it is at this moment, which nobody can know.
    Oracle,
}

/// How a run is set up, besides its world and policy.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What the policy is told.
    pub knowledge: Knowledge,
    /// A task may go only to the backend where it is cheapest at these prices; `None`: anywhere.
    pub prices: Option<[f64; BACKENDS]>,
    /// What one decision costs, ns.
    pub decision_ns: u64,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Mean time from submission to the end, ns.
    pub mean_ns: f64,
    /// The 99th percentile of it.
    pub p99_ns: f64,
    /// Mean of that time over the least the task needs anywhere.
    pub mean_slowdown: f64,
    /// The 99th percentile of it.
    pub p99_slowdown: f64,
    /// The longest that any task waited for an agent, ns.
    pub longest_wait_ns: u64,
    /// Tasks that ended.
    pub finished: usize,
    /// How often each task ended.
    pub endings: Vec<u32>,
    /// Tasks that an agent's death gave back.
    pub returned: u64,
    /// Decisions made, those to wait included.
    pub decisions: u64,
    /// Mean time of the first and the second half of all tasks, in order of submission, ns.
    pub halves_ns: [f64; 2],
}

/// One task at an agent.
#[derive(Clone, Copy, Debug)]
struct Held {
    job: usize,
    expected_ns: f64,
    sent_ns: u64,
    arrives_ns: u64,
    /// The agent held nothing else when it was sent.
    alone: bool,
}

struct Agent {
    alive: bool,
    /// Which life; what an earlier one had begun does not end.
    life: u32,
    held: VecDeque<Held>,
    /// When the first of `held` began, and what it will take.
    running: Option<(u64, f64)>,
    /// When the dispatcher last saw the head of `held` change.
    busy_since: u64,
    reserved: bool,
}

/// The learning agent's table: a mean per kernel, size class and agent, and one for all agents of a backend. The swarm has
/// one backend, and so one mean for all agents.
#[derive(Clone, Debug, Default)]
struct Table(HashMap<(u8, u8, Whom), Mean>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whom {
    Agent(usize),
    AnyOf(u8),
}

impl Table {
    fn learn(&mut self, kernel: u8, class: u8, whom: Whom, service_ns: f64) {
        let mean = self.0.entry((kernel, class, whom)).or_default();
        *mean = mean.after(1, service_ns as f32);
    }

    fn expected_ns(&self, kernel: u8, class: u8, agent: usize, backend: u8) -> Option<f64> {
        let of = |whom| self.0.get(&(kernel, class, whom));
        of(Whom::Agent(agent)).or_else(|| of(Whom::AnyOf(backend))).map(|mean| f64::from(mean.ns))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Done(u32),
    Dies,
    Lives,
}

struct Swarm<'a> {
    world: &'a World,
    setup: Setup,
    table: Table,
    agents: Vec<Agent>,
    /// When, a number that makes the order of equals definite, where, what.
    events: BinaryHeap<Reverse<(u64, u64, usize, What)>>,
    sequence: u64,
    /// What waits: when it is due to go (ns), which. One pool for each backend when prices tell tasks where to go.
    pools: [BTreeSet<(u64, usize)>; BACKENDS],
    due: Vec<u64>,
    candidates: Vec<Candidate>,
    totals_ns: Vec<f64>,
    slowdowns: Vec<f64>,
    outcome: Outcome,
}

/// Runs a policy through a world to the end.
pub fn run(world: &World, placer: &mut dyn Placer, setup: Setup) -> Outcome {
    let agent = |_| Agent {
        alive: true,
        life: 0,
        held: VecDeque::new(),
        running: None,
        busy_since: 0,
        reserved: false,
    };
    let mut table = Table::default();
    if setup.knowledge == Knowledge::Warm {
        world.calibrate(world.jobs.len() as u64, |task, service_ns| {
            table.learn(task.kernel, class(task.log2_size), Whom::AnyOf(task.backend), service_ns);
        });
    }
    let mut swarm = Swarm {
        world,
        setup,
        table,
        agents: (0..world.machines.len()).map(agent).collect(),
        events: BinaryHeap::new(),
        sequence: 0,
        pools: Default::default(),
        due: vec![0; world.jobs.len()],
        candidates: Vec::with_capacity(world.machines.len()),
        totals_ns: vec![0.0; world.jobs.len()],
        slowdowns: vec![0.0; world.jobs.len()],
        outcome: Outcome { endings: vec![0; world.jobs.len()], ..Outcome::default() },
    };
    for (at, machine) in world.machines.iter().enumerate() {
        for &(from, to) in &machine.deaths {
            swarm.plan(from, at, What::Dies);
            swarm.plan(to, at, What::Lives);
        }
    }
    swarm.turn_until_done(placer);
    swarm.judge()
}

impl Swarm<'_> {
    fn plan(&mut self, when: u64, agent: usize, what: What) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, agent, what)));
    }

    fn turn_until_done(&mut self, placer: &mut dyn Placer) {
        let jobs = &self.world.jobs;
        let (mut next, mut free) = (0, 0);
        while self.outcome.finished < jobs.len() {
            let event = self.events.peek().map(|Reverse((when, ..))| *when);
            let arrival = jobs.get(next).map(|job| job.at_ns);
            let first = [event, arrival].into_iter().flatten().min();
            let now = first.expect("what is not finished is waiting, running or to come").max(free);
            while let Some(&Reverse((when, _, agent, what))) = self.events.peek().filter(|e| e.0.0 <= now) {
                self.events.pop();
                self.on_event(when, agent, what, now, placer);
            }
            while let Some(job) = jobs.get(next).filter(|job| job.at_ns <= now) {
                self.due[next] = job.at_ns + placer.patience_ns(&ask(job, now)).clamp(0.0, 1e15) as u64;
                self.queue(next);
                next += 1;
            }
            free = self.dispatch(now, placer);
        }
    }

    fn on_event(&mut self, when: u64, at: usize, what: What, now: u64, placer: &mut dyn Placer) {
        let agent = &mut self.agents[at];
        match what {
            What::Done(life) if life == agent.life => {
                let held = agent.held.pop_front().expect("the running one is the first");
                let (_, service_ns) = agent.running.take().expect("it ran");
                agent.busy_since = now;
                self.start_next(at, when);
                let job = &self.world.jobs[held.job];
                // It counts when the dispatcher sees it.
                let total_ns = (now - job.at_ns) as f64;
                self.totals_ns[held.job] = total_ns;
                self.slowdowns[held.job] = total_ns / self.least_ns(job);
                self.outcome.finished += usize::from(self.outcome.endings[held.job] == 0);
                self.outcome.endings[held.job] += 1;
                let (class, backend) = (class(job.log2_size), self.world.machines[at].backend);
                for whom in [Whom::Agent(at), Whom::AnyOf(backend)] {
                    self.table.learn(job.kernel, class, whom, service_ns);
                }
                let overhead_ns = (now - held.sent_ns) as f64 - service_ns;
                placer.finished(&Finished {
                    kernel: job.kernel,
                    log2_size: known_size(job.log2_size),
                    slot: AgentSlot(at as u16),
                    backend,
                    service_ns,
                    total_ns,
                    overhead_ns: held.alone.then_some(overhead_ns),
                    now_ns: now,
                });
            }
            What::Done(_) => {}
            What::Dies => {
                agent.alive = false;
                agent.life += 1;
                agent.running = None;
                for held in std::mem::take(&mut agent.held) {
                    self.outcome.returned += 1;
                    self.queue(held.job);
                }
            }
            What::Lives => {
                agent.alive = true;
                placer.joined(AgentSlot(at as u16));
            }
        }
    }

    fn cheapest_backend(&self, job: &Job, prices: [f64; BACKENDS]) -> u8 {
        let priced =
            |backend: u8| nominal_ns(job.kernel, job.log2_size, backend) * prices[usize::from(backend)];
        let backends = self.world.machines.iter().map(|machine| machine.backend);
        backends.min_by(|a, b| priced(*a).total_cmp(&priced(*b))).unwrap_or(CORE)
    }

    /// The least a task needs, noise and troubles apart.
    fn least_ns(&self, job: &Job) -> f64 {
        let nominal = |machine: &scenario::Machine| machine.expected_ns(job.kernel, job.log2_size);
        self.world.machines.iter().map(nominal).fold(f64::INFINITY, f64::min)
    }

    fn start_next(&mut self, at: usize, now: u64) {
        let Some(&held) = self.agents[at].held.front() else { return };
        let job = &self.world.jobs[held.job];
        let begins = now.max(held.arrives_ns);
        let service =
            self.world.machines[at].true_ns(job.kernel, job.log2_size, begins) * f64::from(job.noise);
        let agent = &mut self.agents[at];
        agent.running = Some((begins, service));
        let life = agent.life;
        self.outcome.longest_wait_ns = self.outcome.longest_wait_ns.max(begins - job.at_ns);
        self.plan(begins + (service as u64).max(1), at, What::Done(life));
    }

    fn queue(&mut self, job: usize) {
        let only = self.setup.prices.map(|prices| self.cheapest_backend(&self.world.jobs[job], prices));
        self.pools[usize::from(only.unwrap_or(CORE))].insert((self.due[job], job));
    }

    /// One turn; returns when it is over.
    fn dispatch(&mut self, now: u64, placer: &mut dyn Placer) -> u64 {
        let room = WINDOWS.under(placer);
        let mut clock = now + TURN_NS;
        for pool in 0..BACKENDS {
            while self.dispatch_upcoming(pool, now, &mut clock, room, placer) {}
        }
        clock
    }

    /// One look at what waits in a pool, as the dispatcher has it. Returns whether any task got a place.
    fn dispatch_upcoming(
        &mut self,
        pool: usize,
        now: u64,
        clock: &mut u64,
        room: Room,
        placer: &mut dyn Placer,
    ) -> bool {
        placer.begin(now);
        let only = self.setup.prices.map(|_| pool as u8);
        let upcoming: Vec<(u64, usize)> = self.pools[pool].iter().take(placer.lookahead()).copied().collect();
        let mut placed = false;
        for (due, id) in upcoming {
            let job = self.world.jobs[id];
            self.find_candidates(&job, now, room, only);
            if !self.candidates.iter().any(|candidate| candidate.room) {
                if self.reserve() {
                    continue;
                }
                break;
            }
            *clock += self.setup.decision_ns;
            self.outcome.decisions += 1;
            if let Some(placement) = placer.place(&ask(&job, now), &self.candidates) {
                self.pools[pool].remove(&(due, id));
                self.send(id, placement, *clock);
                placed = true;
            }
        }
        for agent in &mut self.agents {
            agent.reserved = false;
        }
        placed
    }

    fn reserve(&mut self) -> bool {
        let free = |at: &&Candidate| !self.agents[at.slot.index()].reserved;
        let first = self.candidates.iter().filter(free).min_by(|a, b| a.backlog_ns.total_cmp(&b.backlog_ns));
        let first = first.map(|first| first.slot.index());
        first.map(|first| self.agents[first].reserved = true).is_some()
    }

    fn find_candidates(&mut self, job: &Job, now: u64, room: Room, only: Option<u8>) {
        self.candidates.clear();
        for (at, agent) in self.agents.iter().enumerate() {
            let machine = &self.world.machines[at];
            if !agent.alive || only.is_some_and(|only| only != machine.backend) {
                continue;
            }
            let expected_ns = match self.setup.knowledge {
                Knowledge::Warm | Knowledge::Cold => {
                    self.table.expected_ns(job.kernel, class(job.log2_size), at, machine.backend)
                }
                Knowledge::Nominal => Some(machine.expected_ns(job.kernel, known_size(job.log2_size))),
                Knowledge::Oracle => Some(machine.true_ns(job.kernel, job.log2_size, now)),
            };
            let rest: f64 = agent.held.iter().skip(1).map(|held| held.expected_ns).sum();
            let first = agent.held.front();
            let head = first.map_or(0.0, |held| {
                remaining_ns(held.expected_ns, now.saturating_sub(agent.busy_since) as f64)
            });
            let first_ns = first.map(|held| held.expected_ns);
            let held_ns = held_ns(first_ns, rest + first_ns.unwrap_or(0.0));
            self.candidates.push(Candidate {
                slot: AgentSlot(at as u16),
                backend: machine.backend,
                room: room.fits(expected_ns, agent.held.len(), held_ns) && !agent.reserved,
                in_flight: agent.held.len(),
                backlog_ns: head + rest,
                expected_ns,
            });
        }
    }

    fn send(&mut self, job: usize, placement: Placement, clock: u64) {
        let candidate = self.candidates[placement.at];
        assert!(candidate.room, "a policy may choose only who has room");
        let expected_ns = placement.expected_ns.or(candidate.expected_ns).unwrap_or(0.0);
        let agent = &mut self.agents[candidate.slot.index()];
        let (sent_ns, arrives_ns, alone) = (clock, clock + HOP_NS, agent.held.is_empty());
        agent.held.push_back(Held { job, expected_ns, sent_ns, arrives_ns, alone });
        if agent.running.is_none() {
            agent.busy_since = clock;
            self.start_next(candidate.slot.index(), clock);
        }
    }

    fn judge(mut self) -> Outcome {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (first, second) = self.totals_ns.split_at(self.totals_ns.len() / 2);
        self.outcome.halves_ns = [mean(first), mean(second)];
        self.outcome.mean_ns = mean(&self.totals_ns);
        self.outcome.mean_slowdown = mean(&self.slowdowns);
        let quantile = |values: &mut Vec<f64>| {
            let at = (values.len() - 1) * 99 / 100;
            *values.select_nth_unstable_by(at, f64::total_cmp).1
        };
        self.outcome.p99_ns = quantile(&mut self.totals_ns);
        self.outcome.p99_slowdown = quantile(&mut self.slowdowns);
        self.outcome
    }
}

/// The size class of a task, which is all that the swarm knows of its size.
fn class(log2_size: f32) -> u8 {
    log2_size as u8
}

/// The size that stands for all of a class.
fn known_size(log2_size: f32) -> f32 {
    f32::from(class(log2_size)) + 0.5
}

fn ask(job: &Job, now_ns: u64) -> Ask {
    Ask { kernel: job.kernel, log2_size: known_size(job.log2_size), queued_ns: job.at_ns, now_ns }
}
