//! Messages between processes on this host, each way beside its floor, measured in turns in one run.
//!
//! 1. `peer` starts this binary again as the other process and gives it orders over a socket.
//! 2. `pair` is two processes on two cores: round trips, streams, broadcasts, wake-ups, many channels.
//! 3. `crowd` is 32 processes on the cores there are, all of them sleeping properly.
//!
//! 4. `handover` is blocks of 1 MiB that change hands in place.
//! 5. `clients` is the two again, attached to a swarm: what the library adds to a ring.
//!
//! A repetition runs every contender once, so what else the host does falls on all alike. A repetition in which
//! other processes kept either side from its core is done again, up to as often again as there are repetitions;
//! the least disturbed ones count. A figure is the median over the repetitions of each one's median (or 99th
//! percentile); the note gives their smallest and largest.
//!
//! How long a side pauses between two looks makes a difference of a factor of two and more, and the best pause
//! differs from host to host and from contender to contender: everybody, floors included, gets its own best one of
//! [`PAUSES`], tried beforehand. The bare line is measured at many places, since a single one can be lucky or
//! unlucky by as much. The clock is read once per round trip; what that costs is subtracted from floor and value.

mod clients;
mod crowd;
mod handover;
mod pair;
mod peer;

use super::{Figure, Limit, Pinned, Steps, quantile, sorted};
use crate::os::clock;
use crate::os::topology::Topology;
use crowd::{Crowd, Way};
use handover::{BLOCK_BYTES, Fill};
use pair::{Flow, Job, Shared, Side, Trip};
use peer::{Manner, Peer, Waiter, kept_waiting};
pub(crate) use peer::{PEER_WORD, main as peer_main};
use std::time::{Duration, Instant};

const BENCH: &str = "ipc";

/// Pauses between two looks that are tried, for round trips and for streams.
const PAUSES: [u8; 4] = [0, 1, 2, 4];
const STREAM_PAUSES: [u8; 5] = [0, 1, 16, 64, 255];
/// A repetition counts as undisturbed when less than this share of it was lost to other processes.
const DISTURBED: f64 = 0.01;
/// For so long disturbed repetitions are done again.
const PATIENCE: Duration = Duration::from_secs(1);
/// Spots of the bare line in one repetition.
const SPOTS_AT_ONCE: usize = 4;
/// Round trips whose mean is one sample of a median: the clock may tick in steps of 10 ns.
const BLOCK: usize = 32;

/// How much is done.
struct Extent {
    repetitions: usize,
    /// Round trips between processes that stay awake, per repetition.
    trips: u64,
    /// Round trips between processes that sleep.
    wakes: u64,
    /// Messages of a stream.
    stream: u64,
    /// Blocks of 1 MiB.
    blocks: u64,
    /// Messages of each sender in the crowd, through sockets; rings take ten times as many.
    crowd: u64,
}

const QUICK: Extent =
    Extent { repetitions: 5, trips: 20_000, wakes: 1_000, stream: 1_000_000, blocks: 200, crowd: 1_000 };
const FULL: Extent =
    Extent { repetitions: 7, trips: 200_000, wakes: 10_000, stream: 10_000_000, blocks: 2_000, crowd: 5_000 };

/// Measures, pinned; afterwards this process may run everywhere again.
pub(super) fn measure(quick: bool, steps: &Steps) -> anyhow::Result<Vec<Figure>> {
    let cores = Cores::choose(&Topology::read());
    let _pinned = Pinned::to(cores.lead)?;
    let extent = if quick { &QUICK } else { &FULL };
    let mut duo = Duo::start(&cores, cores.follow)?;
    steps.begin("ipc: round trips between two processes");
    let mut figures = duo.awake(extent)?;
    steps.begin("ipc: streams of small messages");
    figures.extend(duo.streams(extent)?);
    steps.begin("ipc: blocks of 1 MiB handed over");
    figures.extend(duo.blocks(extent)?);
    steps.begin("ipc: sleepers woken");
    figures.push(duo.asleep(extent)?);
    steps.begin("ipc: one receiver, many channels");
    figures.extend(duo.many(extent)?);
    steps.begin("ipc: two clients of a swarm");
    figures.extend(duo.clients(extent, &cores, &figures)?);
    drop(duo);
    steps.begin("ipc: one message to eight subscribers");
    figures.push(broadcast(extent, &cores, &figures)?);
    steps.begin("ipc: 32 processes on all cores, rings and sockets");
    figures.push(crowd_figure(extent, &cores)?);
    Ok(figures)
}

/// Where the two sides run.
struct Cores {
    /// All that may be used.
    usable: Vec<usize>,
    /// Of the bench itself.
    lead: usize,
    /// Of the peer; the same on a host with one core.
    follow: usize,
}

impl Cores {
    /// Two that share no execution units, when there are such.
    fn choose(topology: &Topology) -> Self {
        let usable = topology.usable().to_vec();
        let lead = usable[0];
        let siblings = topology.cores.iter().find(|core| core.index == lead).map(|core| &core.siblings[..]);
        let is_sibling = |core: usize| siblings.is_some_and(|siblings| siblings.contains(&core));
        let others = || usable.iter().copied().filter(|&core| core != lead);
        let follow = others().find(|&core| !is_sibling(core)).or_else(|| others().next()).unwrap_or(lead);
        Self { usable, lead, follow }
    }

    fn shared(&self) -> bool {
        self.lead == self.follow
    }

    fn words(&self) -> String {
        if self.shared() {
            format!("both processes on the only core {}, a yield each way instead of spinning", self.lead)
        } else {
            format!("cores {} and {}", self.lead, self.follow)
        }
    }
}

/// Median and spread of repetitions.
struct Summary {
    /// The figure: for round trips from blocks of [`BLOCK`], so finer than the clock.
    value: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    low: f64,
    high: f64,
    repetitions: usize,
    disturbed: usize,
}

impl Summary {
    /// Of round trips in the order in which they were made. `clock` is subtracted from every time.
    fn of_trips(found: &Repeated<Vec<f64>>, clock: f64) -> Self {
        let times: Vec<Vec<f64>> = found.outcomes.iter().cloned().map(sorted).collect();
        let at = |share: f64| middle(times.iter().map(|times| quantile(times, share) - clock).collect());
        let values = sorted(found.outcomes.iter().map(|times| block_median(times) - clock).collect());
        Self {
            value: middle(values.clone()),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            low: values[0],
            high: values[values.len() - 1],
            repetitions: values.len(),
            disturbed: found.disturbed,
        }
    }

    /// Of one number a repetition.
    fn of_rates(found: &Repeated<f64>) -> Self {
        let rates = sorted(found.outcomes.clone());
        let value = middle(rates.clone());
        let (low, high) = (rates[0], rates[rates.len() - 1]);
        let (repetitions, disturbed) = (rates.len(), found.disturbed);
        Self { value, p50: value, p99: value, p999: value, low, high, repetitions, disturbed }
    }

    fn range(&self) -> String {
        let digits = if self.high < 10.0 { 2 } else { usize::from(self.high < 100.0) };
        let disturbed = match self.disturbed {
            0 => String::new(),
            disturbed => format!(", {disturbed} of them disturbed by other processes"),
        };
        format!(
            "{:.digits$}..{:.digits$} in {} repetitions{disturbed}",
            self.low, self.high, self.repetitions
        )
    }
}

/// Outcomes of the repetitions that count.
struct Repeated<T> {
    outcomes: Vec<T>,
    /// How many of them other processes disturbed.
    disturbed: usize,
}

impl<T> Repeated<T> {
    fn map<U>(&self, pick: impl Fn(&T) -> U) -> Repeated<U> {
        Repeated { outcomes: self.outcomes.iter().map(pick).collect(), disturbed: self.disturbed }
    }
}

fn middle(values: Vec<f64>) -> f64 {
    quantile(&sorted(values), 0.5)
}

/// Median of the means of blocks.
fn block_median(times: &[f64]) -> f64 {
    middle(times.chunks(BLOCK).map(|block| block.iter().sum::<f64>() / block.len() as f64).collect())
}

/// What one look at the clock costs, ns.
fn clock_cost() -> f64 {
    let looks = 20_000;
    let times = (0..5).map(|_| {
        let began = clock::now();
        (0..looks).for_each(|_| {
            std::hint::black_box(clock::now());
        });
        (clock::now().0 - began.0) as f64 / f64::from(looks)
    });
    quantile(&sorted(times.collect()), 0.5)
}

/// Two processes.
struct Duo {
    peer: Peer,
    side: Side,
    yields: bool,
    /// Where they run, for the notes.
    place: String,
    /// Time for which either side wanted its core and did not have it, in this repetition, ns.
    waited: u64,
}

impl Duo {
    fn start(cores: &Cores, core: usize) -> anyhow::Result<Self> {
        let shared = Shared::create()?;
        let side = shared.lead()?;
        let peer = Peer::start(pair::ROLE, core, &shared.fds(&side)?)?;
        peer.answer()?;
        Ok(Self { peer, side, yields: cores.shared(), place: cores.words(), waited: 0 })
    }

    /// Has the peer do its part of `job` while `own` is done here.
    fn together<T>(
        &mut self,
        job: Job,
        manner: Manner,
        own: impl FnOnce(&mut Side, Waiter<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let before = kept_waiting();
        self.peer.order(job.order(manner))?;
        let outcome = own(&mut self.side, Waiter::new(manner, Some(&self.peer)))?;
        self.waited += self.peer.answer()?[1] + kept_waiting() - before;
        Ok(outcome)
    }

    /// Repeats `one`, which is given the number of the repetition; the first warms up and is forgotten.
    fn repeat<T>(
        &mut self,
        repetitions: usize,
        mut one: impl FnMut(&mut Self, usize) -> anyhow::Result<T>,
    ) -> anyhow::Result<Repeated<T>> {
        let (mut found, mut clean) = (Vec::new(), 0);
        let start = Instant::now();
        for attempt in 0..=2 * repetitions {
            // On a busy host a second try is no better, and everything takes long enough as it is.
            if attempt > repetitions && start.elapsed() > PATIENCE {
                break;
            }
            self.waited = 0;
            let began = Instant::now();
            let outcome = one(self, attempt)?;
            let lost = self.waited as f64 / began.elapsed().as_nanos() as f64;
            if attempt == 0 {
                continue;
            }
            // Two on one core keep each other waiting; that is no disturbance.
            let lost = if self.yields { 0.0 } else { lost };
            clean += usize::from(lost < DISTURBED);
            found.push((lost, outcome));
            if clean == repetitions {
                break;
            }
        }
        found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        found.truncate(repetitions);
        let disturbed = found.iter().filter(|(lost, _)| *lost >= DISTURBED).count();
        Ok(Repeated { outcomes: found.into_iter().map(|(_, outcome)| outcome).collect(), disturbed })
    }

    /// The pause with which `cost` is least, median of three tries each.
    fn best_pause(
        &mut self,
        choices: &[u8],
        mut cost: impl FnMut(&mut Self, Manner) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Manner> {
        let mut best = (f64::INFINITY, Manner { yields: self.yields, pauses: 0 });
        if self.yields {
            return Ok(best.1);
        }
        for &pauses in choices {
            let manner = Manner { yields: false, pauses };
            let costs = (0..3).map(|_| cost(self, manner)).collect::<anyhow::Result<Vec<f64>>>()?;
            let cost = middle(costs);
            if cost < best.0 {
                best = (cost, manner);
            }
        }
        Ok(best.1)
    }

    fn trips(&mut self, trip: Trip, manner: Manner, rounds: u64, number: usize) -> anyhow::Result<Vec<f64>> {
        let (at_once, rounds) = match trip {
            Trip::Line => (SPOTS_AT_ONCE, rounds / SPOTS_AT_ONCE as u64),
            _ => (1, rounds),
        };
        let mut times = Vec::new();
        for part in 0..at_once {
            // Any odd factor: neighbours in time are no neighbours in memory.
            let spot = (number * at_once + part) * 37 % pair::SPOTS;
            let job = Job::Trip(trip, rounds, spot);
            times.extend(self.together(job, manner, |side, waiter| side.trips(trip, rounds, spot, waiter))?);
        }
        Ok(times)
    }

    /// Messages per second, in millions.
    fn rate(&mut self, flow: Flow, manner: Manner, count: u64) -> anyhow::Result<f64> {
        let job = Job::Flow(flow, count);
        let ns = self.together(job, manner, |side, waiter| side.take_all(flow, count, waiter))?;
        Ok((count - 1) as f64 * 1e3 / ns)
    }

    fn trips_on_many(&mut self, channels: usize, manner: Manner, rounds: u64) -> anyhow::Result<Vec<f64>> {
        self.together(Job::Many(rounds), manner, |side, waiter| side.trips_on_many(channels, rounds, waiter))
    }

    fn limit(&self, limit: Limit) -> Option<Limit> {
        // What is asked of two cores is not asked of one.
        (!self.yields).then_some(limit)
    }

    fn awake(&mut self, extent: &Extent) -> anyhow::Result<Vec<Figure>> {
        const TRIPS: [Trip; 4] = [Trip::Line, Trip::Ring, Trip::Channel, Trip::Chain];
        let clock = clock_cost();
        let mut manners = [Manner::default(); TRIPS.len()];
        for (trip, manner) in TRIPS.into_iter().zip(&mut manners) {
            let mut number = 0;
            *manner = self.best_pause(&PAUSES, |duo, manner| {
                number += 1;
                Ok(block_median(&duo.trips(trip, manner, extent.trips / 8, number)?))
            })?;
        }
        let found = self.repeat(extent.repetitions, |duo, number| {
            let mut times = [const { Vec::new() }; TRIPS.len()];
            for ((trip, manner), times) in TRIPS.into_iter().zip(manners).zip(&mut times) {
                *times = duo.trips(trip, manner, extent.trips, number)?;
            }
            Ok(times)
        })?;
        let [line, ring, channel, chain] =
            [0, 1, 2, 3].map(|at| Summary::of_trips(&found.map(|times| times[at].clone()), clock));
        let figure = |name: &str, found: &Summary, at: usize, note: &str| Figure {
            bench: BENCH,
            name: name.to_owned(),
            value: found.value,
            unit: "ns",
            floor: Some(line.value),
            p50: Some(found.p50),
            p99: Some(found.p99),
            p999: Some(found.p999),
            floor_p999: Some(line.p999),
            note: format!("{note}; {} pause(s) between looks; {}", manners[at].pauses, found.range()),
            ..Figure::default()
        };
        let mut trip = figure("round_trip_64", &ring, 1, "56 bytes of payload through the ring and back");
        trip.limit = self.limit(Limit::AtMost(1.10 * line.value));
        trip.note += &format!(
            "; {}; clock of {clock:.0} ns subtracted; floor: one bare line each way, p50 {:.0}, p99 {:.0}, p99.9 \
             {:.0}, {} pause(s), {}",
            self.place,
            line.p50,
            line.p99,
            line.p999,
            manners[0].pauses,
            line.range()
        );
        let tail = Figure {
            bench: BENCH,
            name: "round_trip_64_p999".to_owned(),
            value: ring.p999,
            unit: "ns",
            floor: Some(line.p999),
            limit: self.limit(Limit::AtMost(3.0 * line.p999)),
            note: "99.9th percentile of the same; floor: that of the bare line".to_owned(),
            ..Figure::default()
        };
        let channel =
            figure("round_trip_64_channel", &channel, 2, "through a channel, three lanes looked at");
        let chain = figure("round_trip_4096", &chain, 3, "4,096 bytes each way, as a chain of slots");
        Ok(vec![trip, tail, channel, chain])
    }

    fn streams(&mut self, extent: &Extent) -> anyhow::Result<Vec<Figure>> {
        const FLOWS: [Flow; 4] = [Flow::Bare, Flow::Ring, Flow::Batch, Flow::Deep];
        let mut manners = [Manner::default(); FLOWS.len()];
        for (flow, manner) in FLOWS.into_iter().zip(&mut manners) {
            *manner = self.best_pause(&STREAM_PAUSES, |duo, manner| {
                Ok(1.0 / duo.rate(flow, manner, extent.stream / 4)?)
            })?;
        }
        let found = self.repeat(extent.repetitions, |duo, _| {
            let mut rates = [0.0; FLOWS.len()];
            for ((flow, manner), rate) in FLOWS.into_iter().zip(manners).zip(&mut rates) {
                *rate = duo.rate(flow, manner, extent.stream)?;
            }
            Ok(rates)
        })?;
        let [bare, ring, batch, deep_found] =
            [0, 1, 2, 3].map(|at| Summary::of_rates(&found.map(|rates| rates[at])));
        let figure = |name: &str, found: &Summary, at: usize, note: &str| Figure {
            bench: BENCH,
            name: name.to_owned(),
            value: found.value,
            unit: "M messages/s",
            floor: Some(bare.value),
            note: format!("{note}; {} pause(s) between looks; {}", manners[at].pauses, found.range()),
            ..Figure::default()
        };
        let slots = pair::STREAM_SLOTS;
        let mut one = figure("rate_64", &ring, 1, &format!("one by one through a ring of {slots} slots"));
        one.note += &format!(
            "; floor: bare lines of the same size with the sequence in the line, no kind, no length, no check, {} \
             pause(s), {}",
            manners[0].pauses,
            bare.range()
        );
        let size = pair::BATCH;
        let mut batch = figure("rate_64_batch", &batch, 2, &format!("pushed and taken {size} at a time"));
        // One by one every line is handed over by itself; how fast that goes is the host's business.
        batch.limit = self.limit(Limit::AtLeast(100.0));
        let slots = pair::DEEP_SLOTS;
        let deep = format!("one by one through a ring of {slots} slots, larger than the caches of a core");
        Ok(vec![one, batch, figure("rate_64_deep", &deep_found, 3, &deep)])
    }

    fn blocks(&mut self, extent: &Extent) -> anyhow::Result<Vec<Figure>> {
        let manner = Manner { yields: self.yields, pauses: 1 };
        let give = |duo: &mut Self, fill: Fill, count: u64| -> anyhow::Result<f64> {
            let job = Job::Blocks(true, count);
            let ns = duo.together(job, manner, |side, waiter| side.giver()?.give(fill, count, waiter))?;
            Ok(count as f64 * BLOCK_BYTES as f64 / ns)
        };
        let mut tried = |fill: Fill| -> anyhow::Result<f64> {
            let rates =
                (0..3).map(|_| give(self, fill, extent.blocks / 4)).collect::<anyhow::Result<Vec<f64>>>()?;
            Ok(middle(rates))
        };
        let plain = tried(Fill::Plain)?;
        let (fill, how) = if tried(Fill::PastCaches)? > plain {
            (Fill::PastCaches, "past the caches, the faster way here")
        } else {
            (Fill::Plain, "by plain stores, the faster way here")
        };
        let passes = extent.trips / 4;
        let clock = clock_cost();
        let found = self.repeat(extent.repetitions, |duo, _| {
            let home = (0..extent.blocks)
                .map(|number| duo.side.giver()?.at_home(number))
                .collect::<anyhow::Result<Vec<f64>>>()?;
            let home = BLOCK_BYTES as f64 / middle(home);
            let over = give(duo, fill, extent.blocks)?;
            let passed = duo.together(Job::Blocks(false, passes), manner, |side, waiter| {
                side.giver()?.pass(passes, waiter)
            })?;
            Ok((home, over, passed))
        })?;
        let home = Summary::of_rates(&found.map(|(home, ..)| *home));
        let over = Summary::of_rates(&found.map(|(_, over, _)| *over));
        let pass = Summary::of_trips(&found.map(|(.., passed)| passed.clone()), 2.0 * clock);
        Ok(vec![
            Figure {
                bench: BENCH,
                name: "handover_1mib".to_owned(),
                value: over.value,
                unit: "GB/s",
                floor: Some(home.value),
                limit: self.limit(Limit::AtLeast(0.9 * home.value)),
                note: format!(
                    "1 MiB blocks filled by one process {how}, read in place by the other, {} out at once; {}; floor: \
                     one process fills and reads such a block, {}",
                    handover::IN_FLIGHT,
                    over.range(),
                    home.range()
                ),
                ..Figure::default()
            },
            Figure {
                bench: BENCH,
                name: "handover_1mib_latency".to_owned(),
                value: pass.value,
                unit: "ns",
                limit: self.limit(Limit::AtMost(500.0)),
                p50: Some(pass.p50),
                p99: Some(pass.p99),
                p999: Some(pass.p999),
                note: format!(
                    "loan, publish, push, pop, open, release of a block that nobody touches; {}",
                    pass.range()
                ),
                ..Figure::default()
            },
        ])
    }

    fn asleep(&mut self, extent: &Extent) -> anyhow::Result<Figure> {
        let manner = Manner { yields: self.yields, pauses: 0 };
        let found = self.repeat(extent.repetitions, |duo, number| {
            Ok([
                duo.trips(Trip::Futex, manner, extent.wakes, number)?,
                duo.trips(Trip::Bell, manner, extent.wakes, number)?,
            ])
        })?;
        let [futex, bell] = [0, 1].map(|at| {
            let micros = |times: &[Vec<f64>; 2]| times[at].iter().map(|ns| ns / 1e3).collect::<Vec<f64>>();
            Summary::of_trips(&found.map(micros), 0.0)
        });
        Ok(Figure {
            bench: BENCH,
            name: "wake".to_owned(),
            value: bell.p50,
            unit: "us",
            floor: Some(futex.p50),
            p50: Some(bell.p50),
            p99: Some(bell.p99),
            p999: Some(bell.p999),
            floor_p999: Some(futex.p999),
            note: format!(
                "there and back through ring and doorbell, each side asleep when its message comes, {}; floor: a bare \
                 futex, {}",
                bell.range(),
                futex.range()
            ),
            ..Figure::default()
        })
    }

    /// Round trips and a stream through the library. The floors are those of this run.
    fn clients(&mut self, extent: &Extent, cores: &Cores, before: &[Figure]) -> anyhow::Result<Vec<Figure>> {
        let swarm = clients::Swarm::start(&cores.usable)?;
        self.side.attach()?;
        let manner = Manner { yields: self.yields, pauses: 0 };
        self.together(Job::Attach(u64::from(std::process::id())), manner, |_, _| Ok(()))?;
        self.side.connect()?;
        let clock = clock_cost();
        let manners = [
            self.best_pause(&PAUSES, |duo, manner| {
                Ok(block_median(&duo.trips(Trip::Client, manner, extent.trips / 8, 0)?))
            })?,
            self.best_pause(&STREAM_PAUSES, |duo, manner| {
                Ok(1.0 / duo.rate(Flow::Client, manner, extent.stream / 4)?)
            })?,
        ];
        let found = self.repeat(extent.repetitions, |duo, number| {
            Ok((
                duo.trips(Trip::Client, manners[0], extent.trips, number)?,
                duo.rate(Flow::Client, manners[1], extent.stream)?,
            ))
        })?;
        self.side.detach();
        self.together(Job::Detach, manner, |_, _| Ok(()))?;
        drop(swarm);
        let trip = Summary::of_trips(&found.map(|(times, _)| times.clone()), clock);
        let rate = Summary::of_rates(&found.map(|(_, rate)| *rate));
        let floor = |name: &str| before.iter().find(|figure| figure.name == name);
        let words = |found: &Summary, at: usize| {
            format!("{} pause(s) between looks; {}", manners[at].pauses, found.range())
        };
        Ok(vec![
            Figure {
                bench: BENCH,
                name: "round_trip_64_client".to_owned(),
                value: trip.value,
                unit: "ns",
                floor: floor("round_trip_64").and_then(|figure| figure.floor),
                p50: Some(trip.p50),
                p99: Some(trip.p99),
                p999: Some(trip.p999),
                floor_p999: floor("round_trip_64").and_then(|figure| figure.floor_p999),
                note: format!(
                    "56 bytes from client to client and back, `send` and `try_receive`, a swarm beside them; {}; \
                     floor: the bare line of this run",
                    words(&trip, 0)
                ),
                ..Figure::default()
            },
            Figure {
                bench: BENCH,
                name: "rate_64_client".to_owned(),
                value: rate.value,
                unit: "M messages/s",
                floor: floor("rate_64").and_then(|figure| figure.floor),
                note: format!(
                    "from client to client, `send_all` of {} at a time and `try_receive` of each; {}; floor: the bare \
                     lines of this run",
                    pair::BATCH,
                    words(&rate, 1)
                ),
                ..Figure::default()
            },
        ])
    }

    fn many(&mut self, extent: &Extent) -> anyhow::Result<Vec<Figure>> {
        const COUNTS: [usize; 4] = [1, 16, 64, pair::CHANNELS];
        let clock = clock_cost();
        let manner = self.best_pause(&PAUSES, |duo, manner| {
            Ok(block_median(&duo.trips_on_many(1, manner, extent.trips / 8)?))
        })?;
        let found = self.repeat(extent.repetitions, |duo, _| {
            let mut times = [const { Vec::new() }; COUNTS.len()];
            for (channels, times) in COUNTS.into_iter().zip(&mut times) {
                *times = duo.trips_on_many(channels, manner, extent.trips)?;
            }
            Ok(times)
        })?;
        let summaries =
            [0, 1, 2, 3].map(|at| Summary::of_trips(&found.map(|times| times[at].clone()), clock));
        let one = &summaries[0];
        let figures = COUNTS.iter().zip(&summaries).skip(1).map(|(channels, found)| Figure {
            bench: BENCH,
            name: format!("channels_{channels}"),
            value: found.value,
            unit: "ns",
            floor: Some(one.value),
            p50: Some(found.p50),
            p99: Some(found.p99),
            p999: Some(found.p999),
            floor_p999: Some(one.p999),
            note: format!(
                "round trip, the answer on a random one of {channels} rings that are looked at in turn, {}; floor: \
                 with one ring",
                found.range()
            ),
            ..Figure::default()
        });
        Ok(figures.collect())
    }
}

/// One writer, eight subscribers, in as many processes as there are cores for them.
fn broadcast(extent: &Extent, cores: &Cores, before: &[Figure]) -> anyhow::Result<Figure> {
    let others: Vec<usize> = cores.usable.iter().copied().filter(|&core| core != cores.lead).collect();
    let seats = if others.is_empty() { vec![cores.follow] } else { others };
    let readers = seats.len().min(pair::SUBSCRIBERS);
    let mut duos =
        seats[..readers].iter().map(|&core| Duo::start(cores, core)).collect::<anyhow::Result<Vec<Duo>>>()?;
    let rings =
        |reader: usize| pair::SUBSCRIBERS / readers + usize::from(reader < pair::SUBSCRIBERS % readers);
    let count = extent.stream / pair::SUBSCRIBERS as u64;
    let manner = Manner { yields: cores.shared(), pauses: 1 };
    let mut rates = Vec::new();
    for repetition in 0..=extent.repetitions {
        for (reader, duo) in duos.iter().enumerate() {
            duo.peer.order(Job::Fan(rings(reader), count).order(manner))?;
        }
        let began = clock::now();
        for number in 0..count {
            for (reader, Duo { peer, side, .. }) in duos.iter_mut().enumerate() {
                side.broadcast(number, rings(reader), Waiter::new(manner, Some(peer)))?;
            }
        }
        let mut ended = 0;
        for duo in &duos {
            ended = ended.max(duo.peer.answer()?[0]);
        }
        if repetition > 0 {
            let messages = (count * pair::SUBSCRIBERS as u64) as f64;
            rates.push(messages * 1e3 / ended.saturating_sub(began.0) as f64);
        }
    }
    let found = Summary::of_rates(&Repeated { outcomes: rates, disturbed: 0 });
    Ok(Figure {
        bench: BENCH,
        name: format!("broadcast_{}", pair::SUBSCRIBERS),
        value: found.value,
        unit: "M messages/s",
        floor: before.iter().find(|figure| figure.name == "rate_64").map(|figure| figure.value),
        note: format!(
            "one writer, one write per subscriber, {} subscribers in {readers} reading process(es), {:.1} ns per \
             subscriber; {}; floor: rate_64",
            pair::SUBSCRIBERS,
            1e3 / found.value,
            found.range()
        ),
        ..Figure::default()
    })
}

fn crowd_figure(extent: &Extent, cores: &Cores) -> anyhow::Result<Figure> {
    let mut crowd = Crowd::start(&cores.usable)?;
    let (mut sockets, mut rings) = (Vec::new(), Vec::new());
    for repetition in 0..=extent.repetitions {
        let socket = crowd.rate(Way::Sockets, extent.crowd)? / 1e6;
        let ring = crowd.rate(Way::Rings, extent.crowd * 10)? / 1e6;
        if repetition > 0 {
            sockets.push(socket);
            rings.push(ring);
        }
    }
    let [socket, ring] =
        [sockets, rings].map(|rates| Summary::of_rates(&Repeated { outcomes: rates, disturbed: 0 }));
    Ok(Figure {
        bench: BENCH,
        name: format!("crowd_{}", crowd::PROCESSES),
        value: ring.value,
        unit: "M messages/s",
        floor: Some(socket.value),
        limit: Some(Limit::AtLeast(5.0 * socket.value)),
        note: format!(
            "{} senders to one receiver on {} core(s), all sleeping when idle, {}; floor: sequenced-packet Unix \
             sockets between the same processes, {:.3}..{:.3}",
            crowd::PROCESSES - 1,
            cores.usable.len(),
            ring.range(),
            socket.low,
            socket.high
        ),
        ..Figure::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_median_of_the_repetitions_with_their_spread() {
        let outcomes = vec![vec![30.0, 10.0, 20.0], vec![12.0, 1000.0, 22.0], vec![8.0, 18.0, 28.0]];
        let found = Summary::of_trips(&Repeated { outcomes, disturbed: 1 }, 8.0);
        assert_eq!((found.p50, found.p999), (12.0, 22.0));
        assert_eq!((found.value, found.low), (12.0, 10.0), "one block a repetition, of its mean");
        let rates = Summary::of_rates(&Repeated { outcomes: vec![3.0, 1.0, 2.0], disturbed: 2 });
        assert_eq!((rates.value, rates.low, rates.high), (2.0, 1.0, 3.0));
        assert_eq!(rates.range(), "1.00..3.00 in 3 repetitions, 2 of them disturbed by other processes");
    }

    #[test]
    fn two_sides_sit_on_cores_that_share_nothing() {
        let mut topology = Topology::read();
        let core = |index: usize, siblings: &[usize]| crate::os::topology::Core {
            index,
            package: None,
            siblings: siblings.to_vec(),
            node: None,
        };
        topology.parallelism = 8;
        topology.cores = vec![core(0, &[0, 1]), core(1, &[0, 1]), core(2, &[2])];
        for (available, follow) in [(vec![0, 1, 2], 2), (vec![0, 1], 1), (vec![0], 0)] {
            topology.available = available;
            let cores = Cores::choose(&topology);
            assert_eq!((cores.lead, cores.follow, cores.shared()), (0, follow, follow == 0));
        }
    }
}
