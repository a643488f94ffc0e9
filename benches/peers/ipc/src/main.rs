//! Messages of one cache line, side by side with what else a program on one host could take: one run, one table.
//! See ../README.md. Started with [`PEER_WORD`] it is the other process.

mod contenders;
mod table;
mod wait;

use ai_swarm::os::affinity::pin_current_thread;
use ai_swarm::os::process::{ChildProcess, inherited, spawn};
use ai_swarm::os::topology::Topology;
use anyhow::{Context as _, bail, ensure};
use contenders::{Between, Contender, Ends, NAMES, Objects};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use table::Row;
use wait::{kept_waiting, set_pauses};

const PEER_WORD: &str = "--peer";
/// Pauses between two looks; each contender gets its own best one of them.
const PAUSES: [u32; 7] = [0, 1, 2, 4, 32, 256, 1024];
/// A repetition is done again when other processes took more than this share of it, twice at most.
const DISTURBED: f64 = 0.01;

/// How much is done.
struct Extent {
    repetitions: usize,
    trips: u64,
    messages: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.first().map(String::as_str) {
        Some(PEER_WORD) => follow(&words[1..]),
        None => lead(&Extent { repetitions: 5, trips: 100_000, messages: 4_000_000 }),
        Some("--quick") if words.len() == 1 => {
            lead(&Extent { repetitions: 5, trips: 20_000, messages: 400_000 })
        }
        Some(other) => {
            eprintln!("error: {other:?} is not understood\nusage: ipc_peers [--quick]");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the other side is asked to do.
#[derive(Clone, Copy)]
enum Job {
    Answer,
    Send,
}

/// The other process.
struct Peer {
    _child: ChildProcess,
    socket: UnixStream,
}

impl Peer {
    fn start(core: usize, objects: &Objects) -> anyhow::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        let mut fds = vec![far.as_fd()];
        fds.extend(objects.fds());
        let mut words = vec![PEER_WORD.to_owned(), core.to_string(), std::process::id().to_string()];
        words.extend(fds.iter().map(|fd| fd.as_raw_fd().to_string()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let child = spawn(std::env::current_exe()?.as_os_str(), &words, &fds, Stdio::inherit())?;
        near.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { _child: child, socket: near })
    }

    fn order(&mut self, order: [u64; 4]) -> anyhow::Result<()> {
        let bytes: Vec<u8> = order.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.socket.write_all(&bytes).context("the other process is gone")
    }

    /// For how long the other side was kept from its core, ns.
    fn answer(&mut self) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.socket.read_exact(&mut bytes).context("the other process is gone or hangs")?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn lead(extent: &Extent) -> anyhow::Result<()> {
    let usable = Topology::read().usable().to_vec();
    let [first, second, ..] = usable[..] else { bail!("this comparison needs two cores") };
    ensure!(pin_current_thread(first), "cannot pin to core {first}");
    let objects = Objects::create()?;
    let mut peer = Peer::start(second, &objects)?;
    let mut contenders = contenders::lead(&objects, &std::process::id().to_string())?;
    peer.answer()?;
    // Everybody is attached on both sides before the first message: what is sent earlier may be lost.
    contenders.iter_mut().for_each(Contender::attach);
    peer.order([0; 4])?;
    peer.answer()?;
    contenders.iter_mut().for_each(Contender::attach);

    let mut best = Vec::new();
    for (index, contender) in contenders.iter_mut().enumerate() {
        let mut of = |job: Job, count: u64| -> anyhow::Result<u32> {
            let mut best = (f64::INFINITY, 0);
            for pauses in PAUSES {
                let cost = (0..2)
                    .map(|_| {
                        run(contender, index, &mut peer, second, job, count, pauses).map(|found| found.cost)
                    })
                    .collect::<anyhow::Result<Vec<f64>>>()?;
                let cost = cost[0].min(cost[1]);
                if cost < best.0 {
                    best = (cost, pauses);
                }
            }
            Ok(best.1)
        };
        let trips = if NAMES[index].trips { of(Job::Answer, extent.trips / 20)? } else { 0 };
        let messages = if NAMES[index].stream { of(Job::Send, extent.messages / 20)? } else { 0 };
        best.push([trips, messages]);
    }
    let mut rows: Vec<Row> = NAMES.iter().map(Row::new).collect();
    for repetition in 0..extent.repetitions {
        for at in 0..contenders.len() {
            // Another order each time.
            let index = (at + repetition * 5) % contenders.len();
            let contender = &mut contenders[index];
            let [trip_pauses, stream_pauses] = best[index];
            if NAMES[index].trips {
                let found = steady(|| {
                    run(contender, index, &mut peer, second, Job::Answer, extent.trips, trip_pauses)
                })?;
                rows[index].add_trips(found.cost, found.p99, found.lost);
            }
            if NAMES[index].stream {
                // What takes a microsecond a message is measured long enough with fewer.
                let count = if NAMES[index].slow { extent.messages / 10 } else { extent.messages };
                let found =
                    steady(|| run(contender, index, &mut peer, second, Job::Send, count, stream_pauses))?;
                rows[index].add_rate(1e3 / found.cost, found.lost);
            }
        }
    }
    drop(contenders);
    drop(peer);
    print!("{}", table::render(&rows, first, second));
    Ok(())
}

/// What one measurement found.
struct Found {
    /// Median round trip, or time per message; ns.
    cost: f64,
    p99: f64,
    /// Share of the time that other processes took.
    lost: f64,
}

/// The least disturbed of up to three.
fn steady(mut one: impl FnMut() -> anyhow::Result<Found>) -> anyhow::Result<Found> {
    let mut best = one()?;
    for _ in 0..2 {
        if best.lost < DISTURBED {
            break;
        }
        let again = one()?;
        if again.lost < best.lost {
            best = again;
        }
    }
    Ok(best)
}

fn run(
    contender: &mut Contender,
    index: usize,
    peer: &mut Peer,
    core: usize,
    job: Job,
    count: u64,
    pauses: u32,
) -> anyhow::Result<Found> {
    set_pauses(pauses);
    let (began, before) = (Instant::now(), kept_waiting());
    let (measured, theirs) = match NAMES[index].between {
        Between::Processes => {
            peer.order([1 + index as u64, job as u64, count, u64::from(pauses)])?;
            let measured = measure(&mut contender.near, job, count)?;
            (measured, peer.answer()?)
        }
        Between::Threads => {
            let (near, far) = (&mut contender.near, contender.far.as_mut().context("no far end")?);
            std::thread::scope(|scope| {
                let other = scope.spawn(move || -> anyhow::Result<u64> {
                    ensure!(pin_current_thread(core), "cannot pin to core {core}");
                    let before = kept_waiting();
                    match job {
                        Job::Answer => far.pong(count)?,
                        Job::Send => far.send_all(count)?,
                    }
                    Ok(kept_waiting() - before)
                });
                let measured = measure(near, job, count)?;
                anyhow::Ok((measured, other.join().expect("the other thread ends well")?))
            })?
        }
    };
    let lost = (kept_waiting() - before + theirs) as f64 / began.elapsed().as_nanos() as f64;
    let (cost, p99) = measured;
    Ok(Found { cost, p99, lost })
}

fn measure(ends: &mut Ends, job: Job, count: u64) -> anyhow::Result<(f64, f64)> {
    match job {
        Job::Answer => {
            let mut times = ends.ping(count)?;
            // Blocks first, in the order of time: the clock may tick in steps of 10 ns.
            let blocks = times.chunks(32).map(|block| block.iter().sum::<f64>() / block.len() as f64);
            let middle = table::quantile(&mut blocks.collect::<Vec<f64>>(), 0.5);
            Ok((middle, table::quantile(&mut times, 0.99)))
        }
        Job::Send => Ok((ends.take_all(count)? / (count - 1) as f64, 0.0)),
    }
}

/// The other process: does as ordered until its parent is gone.
fn follow(words: &[String]) -> anyhow::Result<()> {
    let [core, run, socket, objects @ ..] = words else { bail!("not enough words") };
    let core = core.parse()?;
    ensure!(pin_current_thread(core), "cannot pin to core {core}");
    let mut socket = UnixStream::from(inherited(socket.parse()?)?);
    let fds = objects.iter().map(|fd| Ok(inherited(fd.parse()?)?)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut contenders = contenders::follow(fds, run)?;
    socket.write_all(&0u64.to_le_bytes())?;
    let mut bytes = [0; 32];
    while socket.read_exact(&mut bytes).is_ok() {
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut word = || words.next().expect("four words");
        let (index, job, count, pauses) = (word(), word(), word(), word());
        set_pauses(pauses as u32);
        let before = kept_waiting();
        if index == 0 {
            contenders.iter_mut().for_each(Contender::attach);
        } else {
            let contender = contenders.get_mut(index as usize - 1).context("no such contender")?;
            match job == Job::Answer as u64 {
                true => contender.near.pong(count)?,
                false => contender.near.send_all(count)?,
            }
        }
        socket.write_all(&(kept_waiting() - before).to_le_bytes())?;
    }
    Ok(())
}
