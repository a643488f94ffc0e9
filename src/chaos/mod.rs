//! `chaos`: deploys a swarm of its own, gives it work, breaks it from a seed, and checks from the outside that the
//! promises of docs/promises.md held.
//!
//! Nothing of the swarm's own code takes part in the judgement: what counts are the answers of its control API, the
//! output files, the processes of the host and the names in shared memory. Which faults are injected, and when,
//! follows from the seed; how the host schedules the processes does not, so the same seed breaks the same things at
//! much the same places, and not at the same instruction.

mod faults;
mod victim;
mod work;

use crate::base::prng::SplitMix64;
use crate::base::words::things;
use crate::cli::output::{OutputOptions, Table, say, wrap};
use crate::cli::run::steps;
use crate::os::signals::StopSignals;
use anyhow::Context as _;
use faults::{Fault, Injected};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use victim::Victim;
use work::Work;

/// Tasks that the swarm has before it, so that every fault meets one at work.
const BACKLOG: u64 = 400;
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
    let mut victim = Victim::deploy(plan.folder.as_deref())?;
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
    let mut luck = SplitMix64::new(plan.seed);
    let mut work = Work::new(victim.folder())?;
    let baseline = victim.footprint()?;
    let mut injected: BTreeMap<Fault, Injected> = BTreeMap::new();
    let kinds: Vec<Fault> = if plan.faults.is_empty() { Fault::ALL.to_vec() } else { plan.faults.clone() };

    let mut began = Instant::now();
    let mut next = pause(&mut luck, plan.rate);
    let (bar, mut done) = (steps(output), 0);
    while began.elapsed() < plan.duration
        && plan.count.is_none_or(|count| done < count)
        && signals.take() == 0
    {
        if work.is_judgement_due() {
            let calm = Instant::now();
            work.wait(victim, PATIENCE)?;
            work.judge(victim)?;
            // The storm goes on where it was.
            began += calm.elapsed();
        }
        work.fill(victim, BACKLOG)?;
        if began.elapsed() < next {
            std::thread::sleep((next - began.elapsed().min(next)).min(Duration::from_millis(5)));
            continue;
        }
        next = began.elapsed() + pause(&mut luck, plan.rate);
        let fault = faults::choose(&kinds, &mut luck);
        let outcome = faults::inject(fault, victim, &mut luck).with_context(|| format!("fault {fault:?}"))?;
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
    work.wait(victim, PATIENCE)?;
    let calmed = calm.elapsed();
    work.judge(victim)?;
    let mut verdicts = work.verdicts()?;
    verdicts.extend(victim.judge(&baseline)?);
    let report = victim.end()?;
    verdicts.extend(report.verdicts);

    let kept = verdicts.iter().all(|verdict| verdict.broken.is_empty());
    print(plan, &injected, &work, calmed, &report.ready_us, &verdicts, output)?;
    Ok(kept)
}

/// To the next fault: exponential, so that faults also meet the recovery from others.
fn pause(luck: &mut SplitMix64, rate: f64) -> Duration {
    Duration::from_secs_f64((-(1.0 - luck.next_f64()).ln() / rate).min(60.0))
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
