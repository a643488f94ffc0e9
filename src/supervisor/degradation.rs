//! What the swarm gives up first when the host runs short, and in which order it takes it back.
//!
//! ```text
//!  full ─ no standbys ─ fewer compute agents ─ no optimisation or learning ─ accept only ─ refuse
//!       ──────────────────────────── shorter ───────────────────────────►
//!       ◄──────────────────────────── easier ────────────────────────────
//! ```
//! One step at a time, down at most every [`DOWN_EVERY`], up after [`UP_AFTER`] of ease. Going up asks for more than
//! going down: what a step gives back must not at once be short again. No step drops an accepted task. Pure: readings
//! in, a step out; docs/degradation.md is the page for people.

use crate::base::clock::Nanos;
use crate::telemetry::reading::Reading;
use crate::telemetry::strain::{MemoryStrain, OomKills, StrainGauge};
use std::path::Path;
use std::time::Duration;

/// Between two steps down.
pub const DOWN_EVERY: Duration = Duration::from_secs(1);
/// So long everything must be easy before a step up.
pub const UP_AFTER: Duration = Duration::from_secs(3);
/// Between two looks at the host.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A refused start counts so long; the next one, soon after, twice as long, and so on, up to some ten minutes.
const REFUSAL_COUNTS: Duration = Duration::from_secs(10);
/// After so long without a refusal the next one is the first.
const REFUSALS_FORGOTTEN: Duration = Duration::from_secs(1800);

/// How much the swarm does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Full,
    /// Standbys: a fail-over starts a process again.
    NoStandbys,
    /// Half of the compute agents as well.
    FewerAgents,
    /// Optimisation and learning as well.
    NoLearning,
    /// Starting tasks: they are accepted and wait; those that run end.
    AcceptOnly,
    /// Accepting tasks: the answer says why.
    Refuse,
}

impl Level {
    const ALL: [Level; 6] = [
        Level::Full,
        Level::NoStandbys,
        Level::FewerAgents,
        Level::NoLearning,
        Level::AcceptOnly,
        Level::Refuse,
    ];

    /// The word in `status` and events.
    pub fn name(self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::NoStandbys => "no_standbys",
            Level::FewerAgents => "fewer_compute_agents",
            Level::NoLearning => "no_optimization_or_learning",
            Level::AcceptOnly => "accept_only",
            Level::Refuse => "refuse",
        }
    }

    /// Below so many percent of free memory, or with so many percent of time stalled for memory, it is taken; `None`
    /// for the level that is always there.
    fn bounds(self) -> Option<(f64, f64)> {
        Some(match self {
            Level::Full => return None,
            Level::NoStandbys => (10.0, 10.0),
            Level::FewerAgents => (7.0, 20.0),
            Level::NoLearning => (5.0, 30.0),
            Level::AcceptOnly => (3.0, 45.0),
            Level::Refuse => (2.0, 60.0),
        })
    }

    fn deeper(self) -> Level {
        Self::ALL[(self as usize + 1).min(Self::ALL.len() - 1)]
    }

    fn easier(self) -> Level {
        Self::ALL[(self as usize).saturating_sub(1)]
    }
}

/// A step that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// From here.
    pub from: Level,
    /// To here.
    pub to: Level,
    /// Why, in words.
    pub why: String,
}

/// The system had no room for a process.
#[derive(Debug)]
struct Refusal {
    then: Nanos,
    /// It leads down to here.
    to: Level,
    why: String,
}

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Where the swarm stands, and since when.
#[derive(Debug)]
pub struct Ladder {
    level: Level,
    /// What led here; empty at the top.
    why: String,
    last_step: Nanos,
    /// Since when everything has been easy enough for a step up.
    easy_since: Option<Nanos>,
    refused: Option<Refusal>,
    /// When the last one came, and how many came soon after the one before.
    last_refused: Nanos,
    refusals: u32,
    gauge: StrainGauge,
    oom_kills: OomKills,
    /// Readings that this host does not have, each with its reason.
    blind: Vec<String>,
}

impl Ladder {
    /// At the top. `procfs` is read as `/proc`.
    pub fn new(procfs: &Path) -> Self {
        Self {
            level: Level::Full,
            why: String::new(),
            last_step: Nanos(0),
            easy_since: None,
            refused: None,
            last_refused: Nanos(0),
            refusals: 0,
            gauge: StrainGauge::new(procfs, Path::new(CGROUPS)),
            oom_kills: OomKills::new(procfs, Path::new(CGROUPS)),
            blind: Vec::new(),
        }
    }

    /// Where it stands.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Why not higher; empty at the top.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What it cannot see.
    pub fn blind(&self) -> &[String] {
        &self.blind
    }

    /// An agent was killed by signal 9, and not by us: whether it was for want of memory.
    pub fn was_oom_kill(&mut self, now: Nanos) -> bool {
        self.oom_kills.claim(now)
    }

    /// The system refused to start a process for lack of something. `to` is how far down that leads at most: the agents of a
    /// swarm that has no room for a standby are well.
    pub fn on_start_refused(&mut self, to: Level, why: String, now: Nanos) {
        if self.refused.is_none() {
            let is_long_ago = self.refusals == 0 || now.since(self.last_refused) > REFUSALS_FORGOTTEN;
            self.refusals = if is_long_ago { 1 } else { self.refusals + 1 };
        }
        let to = self.refused.as_ref().map_or(to, |refusal| refusal.to.max(to));
        self.last_refused = now;
        self.refused = Some(Refusal { then: now, to, why });
    }

    /// How long a refusal counts: what is tried again and refused again is tried again later and later.
    fn refusal_counts(&self) -> Duration {
        REFUSAL_COUNTS * 2u32.pow(self.refusals.saturating_sub(1).min(6))
    }

    /// Looks at the host and takes a step if one is due.
    pub fn look(&mut self, now: Nanos) -> Option<Step> {
        let strain = self.gauge.read();
        self.oom_kills.look(now);
        let blind = |reading: &Reading<f64>, what: &str| match reading {
            Reading::Absent { detail, .. } => Some(format!("{what} is not seen: {detail}")),
            Reading::Value { .. } => None,
        };
        let free = blind(&strain.available_percent, "free memory");
        self.blind = free.into_iter().chain(blind(&strain.stalled_percent, "memory pressure")).collect();
        self.step(&strain, now)
    }

    fn step(&mut self, strain: &MemoryStrain, now: Nanos) -> Option<Step> {
        let counts = self.refusal_counts();
        self.refused.take_if(|refusal| now.since(refusal.then) > counts);
        let available = strain.available_percent.get();
        let stalled = strain.stalled_percent.get();
        let wanted = |level: &Level| {
            let (least, most) = level.bounds()?;
            if let Some(available) = available.filter(|&available| available < least) {
                return Some(format!("{available:.1} % of memory is free, {least} % is the least"));
            }
            if let Some(stalled) = stalled.filter(|&stalled| stalled > most) {
                return Some(format!("stalled for memory {stalled:.0} % of the time, {most} % is the most"));
            }
            let refusal = self.refused.as_ref().filter(|refusal| *level <= refusal.to)?;
            Some(format!("a process could not be started: {}", refusal.why))
        };
        let deeper = self.level.deeper();
        if deeper != self.level
            && let Some(why) = wanted(&deeper)
        {
            self.easy_since = None;
            return (now.since(self.last_step) >= DOWN_EVERY).then(|| self.go(deeper, why, now));
        }
        let (least, most) = self.level.bounds()?;
        let is_easy = available.is_none_or(|available| available >= 1.3 * least)
            && stalled.is_none_or(|stalled| stalled <= 0.5 * most)
            && self.refused.as_ref().is_none_or(|refusal| self.level > refusal.to);
        if !is_easy {
            self.easy_since = None;
            return None;
        }
        let since = *self.easy_since.get_or_insert(now);
        (now.since(since) >= UP_AFTER).then(|| {
            let free =
                available.map_or(String::new(), |available| format!(", {available:.1} % of memory is free"));
            self.go(self.level.easier(), format!("easy for {} s{free}", UP_AFTER.as_secs()), now)
        })
    }

    fn go(&mut self, to: Level, why: String, now: Nanos) -> Step {
        let from = std::mem::replace(&mut self.level, to);
        (self.last_step, self.easy_since) = (now, None);
        if to > from {
            self.why.clone_from(&why);
        } else if to == Level::Full {
            self.why.clear();
        }
        Step { from, to, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::reading::Reason;

    fn strain(available: f64, stalled: f64) -> MemoryStrain {
        MemoryStrain {
            available_percent: Reading::measured(available),
            stalled_percent: Reading::measured(stalled),
        }
    }

    /// Looks every half second for so long and returns the levels that it came to.
    fn run(ladder: &mut Ladder, now: &mut Nanos, strain: &MemoryStrain, seconds: u64) -> Vec<Level> {
        let mut levels = Vec::new();
        for _ in 0..seconds * 2 {
            *now = now.plus(LOOK_EVERY);
            levels.extend(ladder.step(strain, *now).map(|step| step.to));
        }
        levels
    }

    #[test]
    fn all_the_way_down_one_by_one_and_all_the_way_back() {
        let (mut ladder, mut now) = (Ladder::new(Path::new("/nowhere")), Nanos(1_000_000_000));
        assert_eq!(run(&mut ladder, &mut now, &strain(1.0, 0.0), 20), Level::ALL[1..]);
        assert!(ladder.why().contains("1.0 % of memory is free"), "{}", ladder.why());
        let mut back: Vec<Level> = Level::ALL[..5].to_vec();
        back.reverse();
        assert_eq!(run(&mut ladder, &mut now, &strain(50.0, 0.0), 40), back);
        assert_eq!(ladder.why(), "");
    }

    #[test]
    fn stalls_lead_down_as_far_as_they_go_and_no_further() {
        let (mut ladder, mut now) = (Ladder::new(Path::new("/nowhere")), Nanos(1_000_000_000));
        let half = [Level::NoStandbys, Level::FewerAgents, Level::NoLearning];
        assert_eq!(run(&mut ladder, &mut now, &strain(50.0, 40.0), 20), half);
    }

    #[test]
    fn just_beyond_a_bound_it_stays_where_it_is() {
        let (mut ladder, mut now) = (Ladder::new(Path::new("/nowhere")), Nanos(1_000_000_000));
        assert_eq!(run(&mut ladder, &mut now, &strain(9.9, 0.0), 20), [Level::NoStandbys]);
        assert_eq!(run(&mut ladder, &mut now, &strain(10.1, 0.0), 60), [], "not short, not easy either");
        // Ease that does not last is none.
        for _ in 0..20 {
            assert_eq!(run(&mut ladder, &mut now, &strain(50.0, 0.0), 2), []);
            assert_eq!(run(&mut ladder, &mut now, &strain(10.1, 0.0), 1), []);
        }
        assert_eq!(run(&mut ladder, &mut now, &strain(50.0, 0.0), 10), [Level::Full]);
    }

    #[test]
    fn refused_starts_cost_standbys_and_agents_but_no_tasks() {
        let (mut ladder, mut now) = (Ladder::new(Path::new("/nowhere")), Nanos(1_000_000_000));
        ladder.on_start_refused(Level::FewerAgents, "out of processes".to_owned(), now);
        let easy = strain(90.0, 0.0);
        assert_eq!(run(&mut ladder, &mut now, &easy, 6), [Level::NoStandbys, Level::FewerAgents]);
        assert!(ladder.why().contains("out of processes"), "{}", ladder.why());
        assert_eq!(run(&mut ladder, &mut now, &easy, 30), [Level::NoStandbys, Level::Full]);
    }

    #[test]
    fn without_room_for_a_standby_no_agent_rests_and_tries_become_rare() {
        let (mut ladder, mut now) = (Ladder::new(Path::new("/nowhere")), Nanos(1_000_000_000));
        let easy = strain(90.0, 0.0);
        let mut tries = Vec::new();
        for _ in 0..2000 {
            if ladder.level() == Level::Full {
                tries.push(now);
                ladder.on_start_refused(Level::NoStandbys, "out of processes".to_owned(), now);
            }
            for level in run(&mut ladder, &mut now, &easy, 1) {
                assert!(level <= Level::NoStandbys, "{level:?}");
            }
        }
        let pauses: Vec<u64> = tries.windows(2).map(|two| two[1].since(two[0]).as_secs()).collect();
        assert!(pauses.windows(2).all(|two| two[1] >= two[0]), "{pauses:?}");
        assert!(pauses[0] < 20 && pauses.last().is_some_and(|&last| last > 500), "{pauses:?}");
    }

    #[test]
    fn what_cannot_be_read_never_leads_down() {
        let (mut ladder, mut now) = (Ladder::new(Path::new("/nowhere")), Nanos(1_000_000_000));
        assert_eq!(ladder.look(now), None);
        assert_eq!(ladder.blind().len(), 2, "{:?}", ladder.blind());
        let absent = || Reading::absent(Reason::NotPresent, "no such file");
        let blind = MemoryStrain { available_percent: absent(), stalled_percent: absent() };
        assert_eq!(run(&mut ladder, &mut now, &blind, 20), []);
    }
}
