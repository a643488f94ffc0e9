//! `chaos`: deploys a swarm of its own, gives it work, breaks it from a seed, and checks from the outside that the
//! promises of docs/promises.md held.
//!
//! The supervisor's own counters do not clear it (that it counts a result delivered twice would condemn it): what counts are the answers of its control API to
//! questions about each task, the ends that an attached client is told of, the output files, the processes of the host, what
//! `/proc` says of the supervisor, and the names in shared memory and in the state directory. Which faults are injected, in
//! which order and with which pauses follows from the seed; how the host schedules the processes does not, so the same seed
//! breaks the same things at much the same places, and not at the same instruction.

mod faults;
mod schedule;
mod victim;
mod witness;
mod work;

use crate::base::words::things;
use crate::cli::output::{OutputOptions, Table, say, wrap};
use crate::cli::run::steps;
use crate::config::Durability;
use crate::os::signals::StopSignals;
use anyhow::Context as _;
use faults::{Fault, Injected};
use schedule::Schedule;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use victim::Victim;
use witness::Witness;
use work::Work;

/// Tasks that the swarm has before it, so that every fault meets one at work.
const BACKLOG: u64 = 400;
/// Tasks between two judgements: well below the 100,000 that a journal remembers (`durability.keep_tasks`).
const ROUND: u64 = 20_000;
/// Retries of every task: an agent that gets no memory says so, and another one has to do it.
const RETRIES: u32 = 100;
/// After the last fault all tasks must have ended within so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    pub seed: u64,
    pub duration: Duration,
    /// Ends with so many faults, if they come before the time is over.
    pub count: Option<u64>,
    /// Faults a second, on average.
    pub rate: f64,
    /// Kinds of faults; empty: all.
    pub faults: Vec<Fault>,
    /// What the swarm promises: with [`Durability::None`] deaths of the supervisor would break nothing.
    pub durability: Durability,
    /// Where to work; a temporary folder otherwise.
    pub folder: Option<PathBuf>,
}

pub use faults::Fault as FaultKind;

/// One promise and what was found.
struct Verdict {
    promise: &'static str,
    what: String,
    /// What was found wrong; empty: it held.
    broken: Vec<String>,
}

/// Breaks and checks. Returns whether every promise held.
pub(crate) fn run(plan: &Plan, output: &OutputOptions) -> anyhow::Result<bool> {
    let signals = StopSignals::listen()?;
    say(output, &format!("seed {}: again with `chaos --seed {}`", plan.seed, plan.seed));
    let mut victim = Victim::deploy(plan.folder.as_deref(), plan.durability)?;
    let kept = storm(plan, &mut victim, &signals, output);
    if matches!(kept, Ok(true)) {
        victim.discard();
    } else {
        say(output, &format!("journal, log and saved channels are kept in {}", victim.place().display()));
    }
    kept
}

fn storm(
    plan: &Plan,
    victim: &mut Victim,
    signals: &StopSignals,
    output: &OutputOptions,
) -> anyhow::Result<bool> {
    let mut schedule = Schedule::new(plan.seed, plan.rate, &plan.faults);
    let mut work = Work::new(victim.folder())?;
    let baseline = victim.footprint()?;
    let mut witness = Witness::default();
    let mut injected: BTreeMap<Fault, Injected> = BTreeMap::new();

    let mut began = Instant::now();
    let mut due = schedule.next();
    let mut next = due.pause;
    let (bar, mut done) = (steps(output), 0);
    while began.elapsed() < plan.duration
        && plan.count.is_none_or(|count| done < count)
        && signals.take() == 0
    {
        if work.unjudged() + witness.unjudged() >= ROUND {
            let calm = Instant::now();
            judge(&mut work, &mut witness, victim)?;
            // The storm goes on where it was.
            began += calm.elapsed();
        }
        work.fill(victim, BACKLOG)?;
        witness.turn(victim)?;
        if began.elapsed() < next {
            std::thread::sleep((next - began.elapsed().min(next)).min(Duration::from_millis(5)));
            continue;
        }
        let fault = due.fault;
        let outcome = faults::inject(fault, victim, &mut due.luck, &mut |victim| {
            work.offer(victim)?;
            witness.turn(victim)
        })
        .with_context(|| format!("fault {fault:?}"))?;
        due = schedule.next();
        next = began.elapsed() + due.pause;
        done += *outcome.as_ref().unwrap_or(&0);
        injected.entry(fault).or_default().add(outcome);
        bar.set_message(format!(
            "{}, {}",
            things(done as usize, "fault"),
            things(work.accepted() as usize, "task")
        ));
        bar.tick();
    }
    bar.finish_and_clear();
    let calm = Instant::now();
    let calmed = judge(&mut work, &mut witness, victim)?.duration_since(calm);
    witness.leave();
    let mut verdicts = work.verdicts()?;
    verdicts.extend(witness.verdicts());
    verdicts.extend(victim.judge(&baseline, work.accepted() + witness.handed_in())?);
    let report = victim.end()?;
    verdicts.extend(report.verdicts);
    // Where nothing happened nothing was shown.
    verdicts.push(enough(done, plan.count.unwrap_or(1), began.elapsed()));

    let kept = verdicts.iter().all(|verdict| verdict.broken.is_empty());
    print(plan, &injected, &work, calmed, &report.ready_us, &verdicts, output)?;
    Ok(kept)
}

/// Waits for the end of all tasks and looks at each. Returns when all had ended.
fn judge(work: &mut Work, witness: &mut Witness, victim: &mut Victim) -> anyhow::Result<Instant> {
    work.settle(victim, PATIENCE)?;
    work.wait(victim, PATIENCE)?;
    let ended = Instant::now();
    witness.judge(victim)?;
    work.judge(victim)?;
    Ok(ended)
}

/// A storm that did not take place proves nothing: whoever asks for so many faults, or for any, is told when there were fewer.
fn enough(done: u64, count: u64, took: Duration) -> Verdict {
    let missing = (done < count).then(|| {
        format!("{done} faults in {:.0} s, {count} were asked for: give it more time", took.as_secs_f64())
    });
    Verdict {
        promise: "--count",
        what: format!("{done} faults were injected"),
        broken: missing.into_iter().collect(),
    }
}

fn print(
    plan: &Plan,
    injected: &BTreeMap<Fault, Injected>,
    work: &Work,
    calmed: Duration,
    ready_us: &[f64],
    verdicts: &[Verdict],
    output: &OutputOptions,
) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let at = |share: f64| ready_us.get(((ready_us.len() as f64 - 1.0) * share).round() as usize).copied();
    let (p50, p99, max) = (at(0.5), at(0.99), ready_us.last().copied());
    if output.json {
        let faults: Vec<_> = injected
            .iter()
            .map(|(fault, injected)| {
                json!({"fault": fault.name(), "injected": injected.count, "not_injected": injected.refused})
            })
            .collect();
        let promises: Vec<_> = verdicts
            .iter()
            .map(
                |verdict| json!({"promise": verdict.promise, "what": verdict.what, "broken": verdict.broken}),
            )
            .collect();
        let line = json!({
            "seed": plan.seed, "faults": faults, "tasks": work.accepted(), "calm_s": calmed.as_secs_f64(),
            "ready_us": {"count": ready_us.len(), "p50": p50, "p99": p99, "max": max},
            "promises": promises, "kept": verdicts.iter().all(|verdict| verdict.broken.is_empty()),
        });
        writeln!(stdout, "{line}")?;
        return Ok(());
    }
    let mut table = Table::new(&["fault", "injected", "not injected because"]).right(&[1]);
    for (fault, injected) in injected {
        let why: Vec<String> =
            injected.refused.iter().map(|(why, count)| format!("{why} ({count} times)")).collect();
        table.row([fault.name().to_owned(), injected.count.to_string(), why.join("; ")]);
    }
    write!(stdout, "{}", table.render(output))?;
    let ms = |us: Option<f64>| us.map_or("-".to_owned(), |us| format!("{:.2} ms", us / 1000.0));
    let text = format!(
        "{} tasks accepted; all had ended {:.1} s after the last fault. From the notice of a death to a ready \
         replacement: p50 {}, p99 {}, longest {} ({} deaths since the supervisor last started)",
        work.accepted(),
        calmed.as_secs_f64(),
        ms(p50),
        ms(p99),
        ms(max),
        ready_us.len(),
    );
    writeln!(stdout, "{}", wrap(&text, output.width, 0))?;
    let mut table = Table::new(&["promise", "what was looked at", ""]);
    for verdict in verdicts {
        let word = if verdict.broken.is_empty() { "held" } else { "BROKEN" };
        table.row([verdict.promise.to_owned(), verdict.what.clone(), word.to_owned()]);
    }
    write!(stdout, "{}", table.render(output))?;
    for verdict in verdicts {
        for broken in verdict.broken.iter().take(20) {
            writeln!(stdout, "{} broken: {broken}", verdict.promise)?;
        }
        if verdict.broken.len() > 20 {
            writeln!(stdout, "{} broken: and {} more", verdict.promise, verdict.broken.len() - 20)?;
        }
    }
    writeln!(stdout, "seed {}", plan.seed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_faults_than_asked_for_are_no_success() {
        let second = Duration::from_secs(1);
        assert!(enough(10, 10, second).broken.is_empty() && enough(12, 10, second).broken.is_empty());
        assert_eq!(enough(9, 10, second).broken.len(), 1);
    }
}
