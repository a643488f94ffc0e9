//! The worlds that policies are tried in: agents, what disturbs them, and the tasks that come. A world is drawn from a
//! seed before any policy runs, so that every policy meets the same tasks, the same noise and the same trouble.
//!
//! A recorded trace takes the place of what it tells: when tasks come and how large they are, or how fast agents are.
//! Everything else is that of the scenario.
//!
//! The constants of the kernels are plausible, not measured: a core that is quick to start, a gang of four cores with
//! its fork and join, and an accelerator that is very fast once its launch is paid for.

use super::trace::{Size, Task, Trace};
use crate::balancer::model::ServiceModel;
use crate::base::ids::AgentSlot;
use crate::base::prng::SplitMix64;
use crate::tasks::Finished;

/// A pinned process on one core.
pub const CORE: u8 = 0;
/// One agent that computes on four cores.
pub const GANG: u8 = 1;
/// One accelerator.
pub const ACCELERATOR: u8 = 2;
/// How many backends there are.
pub const BACKENDS: usize = 3;

/// What slows a kernel down: disturbances do not hit all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Compute,
    Cache,
    Bandwidth,
}

/// A kernel's cost on each backend: a fixed part in ns, and ns per element.
struct Law {
    bound: Bound,
    fixed_ns: [f64; BACKENDS],
    element_ns: [f64; BACKENDS],
}

const LAUNCH: [f64; BACKENDS] = [300.0, 6_000.0, 11_000.0];

const LAWS: [Law; 6] = [
    Law { bound: Bound::Compute, fixed_ns: LAUNCH, element_ns: [6.0, 6.0 / 3.7, 0.2] },
    Law { bound: Bound::Cache, fixed_ns: LAUNCH, element_ns: [1.6, 1.6 / 3.0, 0.16] },
    Law { bound: Bound::Bandwidth, fixed_ns: LAUNCH, element_ns: [0.5, 0.5 / 2.2, 0.3] },
    Law { bound: Bound::Cache, fixed_ns: LAUNCH, element_ns: [4.0, 4.0 / 3.2, 1.2] },
    Law { bound: Bound::Bandwidth, fixed_ns: LAUNCH, element_ns: [1.0, 1.0 / 2.6, 0.25] },
    Law { bound: Bound::Compute, fixed_ns: LAUNCH, element_ns: [8.0, 8.0 / 3.9, 0.1] },
];

/// How many kernels there are.
pub const KERNELS: u8 = LAWS.len() as u8;

/// What a task costs on an undisturbed agent of speed 1, ns.
pub fn nominal_ns(kernel: u8, log2_size: f32, backend: u8) -> f64 {
    let (law, at) = (&LAWS[usize::from(kernel)], usize::from(backend));
    law.fixed_ns[at] + law.element_ns[at] * f64::from(log2_size).exp2()
}

/// A task to come.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// When, ns.
    pub at_ns: u64,
    /// Which kernel.
    pub kernel: u8,
    /// Binary logarithm of the work.
    pub log2_size: f32,
    /// By how much its time differs from what its size says.
    pub noise: f32,
}

impl Job {
    fn take_after(&mut self, task: &Task) {
        self.kernel = task.kernel.unwrap_or(self.kernel);
        let law = &LAWS[usize::from(self.kernel)];
        let core = usize::from(CORE);
        let elements = match task.size {
            Size::Elements(elements) => elements,
            Size::CoreNs(time) => (time - law.fixed_ns[core]) / law.element_ns[core],
        };
        self.log2_size = elements.max(1.0).log2().min(LOG2_SIZE_MAX) as f32;
    }
}

/// Something that slows an agent down for a while, by kernel class: compute-, cache-, bandwidth-bound.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    from_ns: u64,
    to_ns: u64,
    factor: [f64; 3],
    /// On for the first part, off for the second, again and again; `None`: on all the time.
    cycle_ns: Option<(u64, u64)>,
}

/// How fast an agent is from then on, against its own speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    pub from_ns: u64,
    pub factor: f64,
}

/// One agent.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What it computes with.
    pub backend: u8,
    /// Against the nominal cost.
    speed: f64,
    troubles: Vec<Trouble>,
    /// Recorded speeds by kernel class, in order.
    paces: [Vec<Pace>; 3],
    /// When it is dead: from, to, ns.
    pub deaths: Vec<(u64, u64)>,
}

impl Machine {
    fn new(backend: u8, speed: f64) -> Self {
        Self { backend, speed, troubles: Vec::new(), paces: Default::default(), deaths: Vec::new() }
    }

    /// What the plain table says of a task here: it knows the machine, and nothing of its troubles.
    pub fn expected_ns(&self, kernel: u8, log2_size: f32) -> f64 {
        nominal_ns(kernel, log2_size, self.backend) / self.speed
    }

    /// What a task truly costs here if it starts now, but for its own noise.
    pub fn true_ns(&self, kernel: u8, log2_size: f32, now: u64) -> f64 {
        let class = LAWS[usize::from(kernel)].bound as usize;
        let slowed = |trouble: &&Trouble| {
            (trouble.from_ns..trouble.to_ns).contains(&now)
                && trouble.cycle_ns.is_none_or(|(on, off)| (now - trouble.from_ns) % (on + off) < on)
        };
        let factor: f64 = self.troubles.iter().filter(slowed).map(|trouble| trouble.factor[class]).product();
        let paces = &self.paces[class];
        let pace = paces.partition_point(|pace| pace.from_ns <= now).checked_sub(1);
        self.expected_ns(kernel, log2_size) / (factor * pace.map_or(1.0, |at| paces[at].factor))
    }
}

/// How tasks come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Arrivals {
    Poisson,
    /// A calm and a wild state by turns; the wild one brings so many times the calm one's tasks.
    Bursty(f64),
    /// In trains of this mean length, as recorded front ends send them.
    Trains(f64),
}

/// How large tasks are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sizes {
    /// Pareto between 2^10 and 2^20 elements, with this exponent.
    Pareto(f64),
    /// All look alike and none is: the time is exponential and nothing tells of it.
    Opaque,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drift {
    /// Two cores share theirs with a neighbour that comes and goes.
    Neighbours,
    /// Also throttling, a stolen core, a capped accelerator and another mix of kernels.
    Shift,
    /// One agent dies at a time, again and again.
    Deaths,
    /// Nothing.
    Calm,
}

/// A kind of world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scenario {
    /// What it is called in tables.
    pub name: &'static str,
    /// Share of what the agents could do at best, were they undisturbed and the future known.
    pub load: f64,
    arrivals: Arrivals,
    sizes: Sizes,
    drift: Drift,
    /// A gang and an accelerator beside the cores; else cores alone, as the swarm has them today.
    is_mixed: bool,
}

const PARETO: Sizes = Sizes::Pareto(1.0);

/// All scenarios.
pub const SCENARIOS: [Scenario; 14] = {
    use Arrivals::{Bursty, Poisson, Trains};
    use Drift::{Calm, Deaths, Neighbours, Shift};
    const fn new(name: &'static str, load: f64, arrivals: Arrivals, sizes: Sizes, drift: Drift) -> Scenario {
        Scenario { name, load, arrivals, sizes, drift, is_mixed: matches!(sizes, Sizes::Pareto(_)) }
    }
    const fn of_cores(scenario: Scenario) -> Scenario {
        Scenario { is_mixed: false, ..scenario }
    }
    [
        new("steady_050", 0.50, Poisson, PARETO, Neighbours),
        new("steady_070", 0.70, Poisson, PARETO, Neighbours),
        new("steady_085", 0.85, Poisson, PARETO, Neighbours),
        new("bursty_070", 0.70, Bursty(4.0), PARETO, Neighbours),
        new("trains_070", 0.70, Trains(24.0), PARETO, Neighbours),
        new("heavy_tail_070", 0.70, Poisson, Sizes::Pareto(0.7), Neighbours),
        new("shift_070", 0.70, Poisson, PARETO, Shift),
        new("shift_085", 0.85, Poisson, PARETO, Shift),
        new("deaths_070", 0.70, Poisson, PARETO, Deaths),
        new("calm_070", 0.70, Poisson, PARETO, Calm),
        new("opaque_080", 0.80, Poisson, Sizes::Opaque, Calm),
        of_cores(new("cores_070", 0.70, Poisson, PARETO, Neighbours)),
        of_cores(new("cores_085", 0.85, Poisson, PARETO, Neighbours)),
        of_cores(new("cores_calm_070", 0.70, Poisson, PARETO, Calm)),
    ]
};

/// Scenarios that recorded traces are replayed in, and what that adds to a trace's name.
pub const STAGES: [(&str, &str); 4] =
    [("steady_070", ""), ("steady_085", "_085"), ("cores_070", "_cores_070"), ("cores_085", "_cores_085")];

/// Jobs that the capacity for synthetic ones is reckoned from: they are all alike.
const SAMPLE: usize = 4000;
/// No recorded task is larger, in binary logarithms.
const LOG2_SIZE_MAX: f64 = 24.0;

impl Scenario {
    /// The scenario with this name.
    pub fn named(name: &str) -> Option<Self> {
        SCENARIOS.into_iter().find(|scenario| scenario.name == name)
    }

    /// One such world.
    pub fn world(&self, seed: u64, tasks: usize) -> World {
        self.draw(None, seed, tasks)
    }

    /// One such world with the tasks or the speeds of a trace: the seed picks the window, which kernels are whose, and which
    /// machine is replayed by whom.
    pub fn replay(&self, trace: &Trace, seed: u64, tasks: usize) -> World {
        self.draw(Some(trace), seed, tasks)
    }

    fn draw(&self, trace: Option<&Trace>, seed: u64, tasks: usize) -> World {
        // A generator for each stream: a longer run of one leaves the others alone.
        let stream = |which: u64| SplitMix64::new(SplitMix64::new(seed ^ which << 56).next_u64());
        let (mut sizes, mut noise, mut times) = (stream(1), stream(2), stream(3));
        let mut machines = self.machines();
        let mut jobs: Vec<Job> = (0..tasks).map(|_| self.job(&mut sizes, &mut noise)).collect();
        let recorded = trace.and_then(|trace| trace.tasks(tasks, &mut stream(5)));
        for (job, task) in jobs.iter_mut().zip(recorded.iter().flatten()) {
            job.take_after(task);
        }
        // Recorded tasks change with time.
        let sample = if recorded.is_some() { &jobs[..] } else { &jobs[..tasks.min(SAMPLE)] };
        let capacity = capacity(&machines, sample, self.sizes);
        let rate = self.load * capacity.tasks_per_ns;
        let span = (tasks as f64 / rate) as u64;
        if self.drift == Drift::Shift {
            // From here on nobody asks for the kernels that gain most on the accelerator.
            for job in &mut jobs[tasks * 13 / 20..] {
                job.kernel = [4, 1, 2, 3, 4, 1][usize::from(job.kernel)];
            }
        }
        let mut arrivals = Train { kind: self.arrivals, rate, left: 0, wild: false, until: 0.0 };
        let whole: f64 = recorded.iter().flatten().map(|task| task.gap).sum();
        let mut at = 0.0;
        for (nth, job) in jobs.iter_mut().enumerate() {
            at += match &recorded {
                // A window in which all come at once has no load; it is stretched evenly.
                Some(_) if whole == 0.0 => 1.0 / rate,
                Some(recorded) => recorded[nth].gap / whole * tasks as f64 / rate,
                None => arrivals.gap(at, &mut times),
            };
            job.at_ns = at as u64;
        }
        match trace.and_then(|trace| trace.paces(machines.len(), span, &mut stream(6))) {
            Some(paces) => machines.iter_mut().zip(paces).for_each(|(machine, paces)| machine.paces = paces),
            None => self.disturb(&mut machines, span, &mut stream(4)),
        }
        let classes = match &recorded {
            Some(_) => {
                let of = jobs.iter().map(|job| super::class(job.log2_size));
                (of.clone().min().unwrap_or(0), of.max().unwrap_or(0))
            }
            None => (10, 20),
        };
        World { jobs, machines, prices: capacity.prices, classes }
    }

    fn machines(&self) -> Vec<Machine> {
        if self.sizes == Sizes::Opaque {
            return vec![Machine::new(CORE, 1.0); 12];
        }
        let speeds = [1.0, 1.0, 1.0, 1.0, 0.6, 0.6, 1.0, 1.0, 1.0, 1.0];
        let mut machines: Vec<Machine> = speeds.iter().map(|&speed| Machine::new(CORE, speed)).collect();
        if !self.is_mixed {
            return machines;
        }
        machines.push(Machine::new(GANG, 1.0));
        machines.push(Machine::new(ACCELERATOR, 1.0));
        machines
    }

    fn job(&self, sizes: &mut SplitMix64, noise: &mut SplitMix64) -> Job {
        let mut job = Job { at_ns: 0, kernel: 0, log2_size: 12.0, noise: 1.0 };
        match self.sizes {
            Sizes::Opaque => job.noise = exponential(noise) as f32,
            Sizes::Pareto(exponent) => {
                job.kernel = sizes.below(u64::from(KERNELS)) as u8;
                // The inverse of the bounded Pareto distribution, in binary logarithms.
                let ratio = (-10.0 * exponent).exp2();
                let tail = 1.0 - sizes.next_f64() * (1.0 - ratio);
                job.log2_size = (10.0 - tail.log2() / exponent) as f32;
                job.noise = (0.12 * normal(noise)).exp() as f32;
                if noise.below(1000) == 0 {
                    job.noise *= 5.0 + 10.0 * noise.next_f64() as f32;
                }
            }
        }
        job
    }

    fn disturb(&self, machines: &mut [Machine], span: u64, random: &mut SplitMix64) {
        const MS: u64 = 1_000_000;
        let part = |share: f64| (span as f64 * share) as u64;
        let mut trouble = |agent: usize, from_ns, to_ns, factor, cycle_ns| {
            machines[agent].troubles.push(Trouble { from_ns, to_ns, factor, cycle_ns });
        };
        if self.drift == Drift::Calm {
            return;
        }
        for agent in [6, 7] {
            let from = random.below(12 * MS);
            trouble(agent, from, u64::MAX, [0.65, 0.5, 0.4], Some((4 * MS, 8 * MS)));
        }
        if self.drift == Drift::Shift {
            trouble(8, part(0.20), part(0.60), [0.5, 0.6, 0.8], None);
            trouble(9, part(0.20), part(0.60), [0.4, 0.5, 0.7], None);
            trouble(0, part(0.35), part(0.55), [0.25; 3], None);
            trouble(11, part(0.50), part(0.80), [0.5; 3], None);
        }
        if self.drift == Drift::Deaths {
            // A death every hundredth of the run, of anybody but the gang and the accelerator, who have no stand-in.
            for turn in 1..100 {
                let from = part(turn as f64 / 100.0);
                machines[random.below(10) as usize].deaths.push((from, from + part(0.004)));
            }
        }
    }
}

/// When the next task comes.
struct Train {
    kind: Arrivals,
    rate: f64,
    left: u64,
    wild: bool,
    until: f64,
}

impl Train {
    fn gap(&mut self, now: f64, random: &mut SplitMix64) -> f64 {
        match self.kind {
            Arrivals::Poisson => exponential(random) / self.rate,
            Arrivals::Bursty(times) => {
                // Calm three quarters of the time; both states are long against a task.
                let calm = self.rate / (0.75 + 0.25 * times);
                if now >= self.until {
                    self.wild = !self.wild;
                    let tasks = if self.wild { 300.0 * times } else { 900.0 };
                    let rate = if self.wild { calm * times } else { calm };
                    self.until = now + exponential(random) * tasks / rate;
                }
                exponential(random) / if self.wild { calm * times } else { calm }
            }
            Arrivals::Trains(length) => {
                if self.left > 0 {
                    self.left -= 1;
                    return 0.05 * exponential(random) / self.rate;
                }
                self.left = (exponential(random) * length) as u64;
                exponential(random) * (1.0 + 0.95 * length) / self.rate
            }
        }
    }
}

fn exponential(random: &mut SplitMix64) -> f64 {
    -(1.0 - random.next_f64()).ln()
}

fn normal(random: &mut SplitMix64) -> f64 {
    (2.0 * exponential(random)).sqrt() * (std::f64::consts::TAU * random.next_f64()).cos()
}

/// A world to run a policy in.
#[derive(Clone, Debug)]
pub struct World {
    /// What will come, in order.
    pub jobs: Vec<Job>,
    /// Who is there.
    pub machines: Vec<Machine>,
    /// What a nanosecond of each backend is worth when all are used as well as can be: the shadow prices of the true
    /// mix. Baselines are tuned with them; the learned policy and its safe rule are not told.
    pub prices: [f64; BACKENDS],
    /// The least and the greatest size class of tasks.
    classes: (u8, u8),
}

impl World {
    /// What a short calibration before the start shows: three tasks of every kernel in every size class, of any size in
    /// that class, on an undisturbed agent of each backend. `tell` hears of each with its time, ns.
    pub(super) fn calibrate(&self, seed: u64, mut tell: impl FnMut(&Calibration, f64)) {
        let mut random = SplitMix64::new(seed);
        for kernel in 0..KERNELS {
            for (slot, machine) in self.machines.iter().enumerate() {
                if self.machines[..slot].iter().any(|earlier| earlier.backend == machine.backend) {
                    continue;
                }
                for class in (0..3).flat_map(|_| self.classes.0..=self.classes.1) {
                    let log2_size = f32::from(class);
                    let noise = (0.12 * normal(&mut random)).exp();
                    let size = log2_size + random.next_f64() as f32;
                    let task = Calibration {
                        kernel,
                        log2_size,
                        slot: AgentSlot(slot as u16),
                        backend: machine.backend,
                    };
                    tell(&task, machine.expected_ns(kernel, size) * noise);
                }
            }
        }
    }

    /// A model that such a calibration taught.
    pub fn calibrated(&self, seed: u64) -> ServiceModel {
        let mut model = ServiceModel::default();
        self.calibrate(seed, |task, service_ns| {
            let Calibration { kernel, slot, backend, .. } = *task;
            let (log2_size, total_ns) = (super::known_size(task.log2_size), service_ns);
            model.learn(&Finished {
                kernel,
                log2_size,
                slot,
                backend,
                service_ns,
                total_ns,
                overhead_ns: None,
                now_ns: 0,
            });
            // A calibration tells of tasks, not of the agent that it took place on.
            model.forget_agent(slot);
        });
        model
    }
}

/// A task of a calibration.
pub(super) struct Calibration {
    pub kernel: u8,
    /// The lower end of its size class.
    pub log2_size: f32,
    pub slot: AgentSlot,
    pub backend: u8,
}

struct Capacity {
    tasks_per_ns: f64,
    prices: [f64; BACKENDS],
}

/// The most tasks that undisturbed agents can do: every task goes where its price is lowest, and prices move until
/// all backends are equally busy. That is the dual of the linear program of the fluid model.
fn capacity(machines: &[Machine], sample: &[Job], sizes: Sizes) -> Capacity {
    let mut power = [0.0; BACKENDS];
    for machine in machines {
        power[usize::from(machine.backend)] += machine.speed;
    }
    if sizes == Sizes::Opaque {
        let service = nominal_ns(0, 12.0, CORE);
        return Capacity { tasks_per_ns: power[0] / service, prices: [1.0; BACKENDS] };
    }
    let costs: Vec<[f64; BACKENDS]> = sample
        .iter()
        .map(|job| [0, 1, 2].map(|backend| nominal_ns(job.kernel, job.log2_size, backend)))
        .collect();
    let there = || (0..BACKENDS).filter(|at| power[*at] > 0.0);
    let (mut logs, mut mean_logs, mut best) = ([0.0f64; BACKENDS], [0.0; BACKENDS], 0.0f64);
    const ROUNDS: u32 = 300;
    for round in 0..ROUNDS {
        let prices = logs.map(f64::exp);
        let mut busy = [0.0; BACKENDS];
        for cost in &costs {
            let priced = |at: &usize| cost[*at] * prices[*at];
            let at = there().min_by(|a, b| priced(a).total_cmp(&priced(b))).expect("there are backends");
            busy[at] += cost[at] / power[at];
        }
        let (most, mean) =
            (busy.into_iter().fold(0.0, f64::max), busy.iter().sum::<f64>() / there().count() as f64);
        best = best.max(sample.len() as f64 / most);
        let step = 0.5 / (1.0 + f64::from(round) / 20.0);
        for (log, busy) in logs.iter_mut().zip(busy) {
            *log += step * (busy / mean - 1.0).clamp(-1.0, 1.0);
        }
        if round >= ROUNDS / 2 {
            for (mean, log) in mean_logs.iter_mut().zip(logs) {
                *mean += log / f64::from(ROUNDS / 2);
            }
        }
    }
    let core = mean_logs[0];
    Capacity { tasks_per_ns: best, prices: mean_logs.map(|log| (log - core).exp()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_is_its_seed() {
        for scenario in SCENARIOS {
            let (one, again, other) =
                (scenario.world(1, 500), scenario.world(1, 500), scenario.world(2, 500));
            let times = |world: &World| world.jobs.iter().map(|job| job.at_ns).collect::<Vec<_>>();
            assert_eq!(times(&one), times(&again), "{}", scenario.name);
            assert_ne!(times(&one), times(&other), "{}", scenario.name);
            assert!(one.jobs.is_sorted_by_key(|job| job.at_ns), "{}", scenario.name);
        }
    }

    #[test]
    fn every_process_of_arrivals_keeps_its_mean_rate() {
        for name in ["steady_070", "bursty_070", "trains_070"] {
            let scenario = Scenario::named(name).expect("listed");
            let spans = (0..8).map(|seed| {
                let world = scenario.world(seed, 40_000);
                let rate = scenario.load
                    * capacity(&world.machines, &world.jobs[..SAMPLE], scenario.sizes).tasks_per_ns;
                world.jobs.last().expect("tasks").at_ns as f64 * rate / 40_000.0
            });
            let mean = spans.sum::<f64>() / 8.0;
            assert!((0.95..1.05).contains(&mean), "{name}: {mean}");
        }
    }
}
