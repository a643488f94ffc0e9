//! The simple policies: baselines, and what the guard falls back to.

use crate::base::ids::AgentSlot;
use crate::base::prng::SplitMix64;
use crate::tasks::{Ask, Candidate, Finished, Placement, Placer, SPAN_NS};

/// Agents that a policy keeps notes of. Those beyond share the last note.
pub(super) const SLOTS: usize = 256;

/// Work in tiny tasks, ns, that a policy with a bound sends an agent; see [`Placer::span_ns`].
const BOUND_SPAN_NS: f64 = 100e3;

pub(super) fn index(slot: AgentSlot) -> usize {
    slot.index().min(SLOTS - 1)
}

fn with_room(candidates: &[Candidate]) -> impl Iterator<Item = (usize, &Candidate)> {
    candidates.iter().enumerate().filter(|(_, candidate)| candidate.room)
}

/// The candidate with room that costs least; the first of equals.
fn cheapest(candidates: &[Candidate], cost: impl Fn(&Candidate) -> f64) -> Option<Placement> {
    let least = with_room(candidates).map(|(at, candidate)| (at, cost(candidate)));
    least.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(at, _)| Placement::at(at))
}

/// The first candidate with room at or after `start`, in a circle.
fn from(candidates: &[Candidate], start: usize) -> Option<usize> {
    let count = candidates.len();
    (0..count).map(|step| (start + step) % count).find(|&at| candidates[at].room)
}

/// One agent after the other, whatever they do.
#[derive(Debug, Default)]
pub struct RoundRobin {
    last: u16,
}

impl Placer for RoundRobin {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        // The next slot after the last one used, so that agents without room do not skew the turn.
        let after = with_room(candidates).find(|(_, candidate)| candidate.slot.0 > self.last);
        let (next, candidate) = after.or_else(|| with_room(candidates).next())?;
        self.last = candidate.slot.0;
        Some(Placement::at(next))
    }

    fn name(&self) -> &'static str {
        "round_robin"
    }
}

/// Any agent.
#[derive(Debug)]
pub struct Random(SplitMix64);

impl Random {
    /// A policy that repeats its choices for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }
}

impl Placer for Random {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        let choices = with_room(candidates).count();
        let at = with_room(candidates).nth(self.0.below(choices.max(1) as u64) as usize)?.0;
        Some(Placement { probability: 1.0 / choices as f32, ..Placement::at(at) })
    }

    fn name(&self) -> &'static str {
        "random"
    }
}

/// The agent that holds the fewest tasks; the first of equals.
#[derive(Debug)]
pub struct LeastLoaded;

impl Placer for LeastLoaded {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        cheapest(candidates, |candidate| candidate.in_flight as f64)
    }

    fn name(&self) -> &'static str {
        "least_loaded"
    }
}

/// Join the shortest queue: the agent that holds the fewest tasks, equals by lot. With a bound on what an agent may
/// hold it is JBSQ: who finds no room waits for all agents at once.
#[derive(Debug)]
pub struct ShortestQueue {
    bound: usize,
    random: SplitMix64,
}

impl ShortestQueue {
    /// Without a bound.
    pub fn unbounded(seed: u64) -> Self {
        Self { bound: usize::MAX, random: SplitMix64::new(seed) }
    }

    /// At most `bound` tasks at one agent.
    pub fn bounded(bound: usize, seed: u64) -> Self {
        Self { bound, random: SplitMix64::new(seed) }
    }
}

impl Placer for ShortestQueue {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        let least = with_room(candidates).map(|(_, candidate)| candidate.in_flight).min()?;
        let equals = || with_room(candidates).filter(|(_, candidate)| candidate.in_flight == least);
        let count = equals().count();
        let (at, _) = equals().nth(self.random.below(count as u64) as usize)?;
        Some(Placement { probability: 1.0 / count as f32, ..Placement::at(at) })
    }

    fn window(&self) -> usize {
        self.bound
    }

    fn span_ns(&self) -> f64 {
        if self.bound == usize::MAX { SPAN_NS } else { BOUND_SPAN_NS }
    }

    fn name(&self) -> &'static str {
        if self.bound == usize::MAX { "jsq" } else { "jbsq" }
    }
}

/// Two agents by lot, the task to the one that holds less.
#[derive(Debug)]
pub struct TwoChoices(SplitMix64);

impl TwoChoices {
    /// A policy that repeats its choices for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }
}

impl Placer for TwoChoices {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        let choices = with_room(candidates).count() as u64;
        let mut pick = || with_room(candidates).nth(self.0.below(choices.max(1)) as usize);
        let (first, second) = (pick()?, pick()?);
        let less = if second.1.in_flight < first.1.in_flight { second } else { first };
        Some(Placement::at(less.0))
    }

    fn name(&self) -> &'static str {
        "p2c"
    }
}

/// Hot and cold (Prequal): agents that hold more than most are hot and avoided; of the cold ones the one that lately
/// answered soonest, its latency taken to grow with what it holds now.
#[derive(Debug)]
pub struct Prequal {
    latency_ns: Vec<f64>,
    counts: Vec<usize>,
}

/// Agents at or below this quantile of tasks held are cold.
const COLD: f64 = 0.75;

impl Default for Prequal {
    fn default() -> Self {
        Self { latency_ns: vec![0.0; SLOTS], counts: Vec::with_capacity(SLOTS) }
    }
}

impl Placer for Prequal {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        self.counts.clear();
        self.counts.extend(candidates.iter().take(SLOTS).map(|candidate| candidate.in_flight));
        let middle = ((self.counts.len().max(1) - 1) as f64 * COLD) as usize;
        let limit = if self.counts.is_empty() { 0 } else { *self.counts.select_nth_unstable(middle).1 };
        cheapest(candidates, |candidate| {
            let hot = candidate.in_flight > limit;
            let cold = self.latency_ns[index(candidate.slot)].max(1.0) * (candidate.in_flight + 1) as f64;
            if hot { 1e18 * candidate.in_flight as f64 } else { cold }
        })
    }

    fn finished(&mut self, finished: &Finished) {
        let mean = &mut self.latency_ns[index(finished.slot)];
        *mean += 0.1 * (finished.total_ns - *mean);
    }

    fn name(&self) -> &'static str {
        "prequal"
    }
}

/// Peak EWMA: latency, quick to rise and slow to fall, times what the agent holds.
#[derive(Debug)]
pub struct PeakEwma {
    latency_ns: Vec<f64>,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self { latency_ns: vec![0.0; SLOTS] }
    }
}

impl Placer for PeakEwma {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        cheapest(candidates, |candidate| {
            // An agent that nobody has tried yet goes first.
            self.latency_ns[index(candidate.slot)].max(1.0) * (candidate.in_flight + 1) as f64
        })
    }

    fn finished(&mut self, finished: &Finished) {
        let mean = &mut self.latency_ns[index(finished.slot)];
        let weight = if finished.total_ns > *mean { 0.5 } else { 0.05 };
        *mean += weight * (finished.total_ns - *mean);
    }

    fn name(&self) -> &'static str {
        "peak_ewma"
    }
}

/// Every task has a home by turns; it waits there, and an idle agent takes it away. What waits has not been sent,
/// so that the thief asks nobody.
#[derive(Debug, Default)]
pub struct WorkStealing {
    turn: usize,
}

impl Placer for WorkStealing {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        let home = self.turn % candidates.len().max(1);
        let idle = |at: usize| candidates[at].room && candidates[at].in_flight == 0;
        let thief =
            || (0..candidates.len()).map(|step| (home + step) % candidates.len()).find(|&at| idle(at));
        let at = thief().or_else(|| from(candidates, home))?;
        self.turn = self.turn.wrapping_add(1);
        Some(Placement::at(at))
    }

    fn window(&self) -> usize {
        2
    }

    fn span_ns(&self) -> f64 {
        BOUND_SPAN_NS
    }

    fn name(&self) -> &'static str {
        "work_stealing"
    }
}

/// The agent that will be through with the task first: what it still has to do plus what this task is
/// expected to cost there, both from the learned cost model. An agent of which nothing is known yet is
/// taken to be as fast as the fastest, so that it gets the chance to show.
#[derive(Debug)]
pub struct ExpectedCompletion;

impl Placer for ExpectedCompletion {
    fn place(&mut self, _: &Ask, candidates: &[Candidate]) -> Option<Placement> {
        let known = with_room(candidates).filter_map(|(_, candidate)| candidate.expected_ns);
        let fastest = known.fold(f64::INFINITY, f64::min);
        let unknown = if fastest.is_finite() { fastest } else { 0.0 };
        let done = |candidate: &Candidate| candidate.backlog_ns + candidate.expected_ns.unwrap_or(unknown);
        let first = with_room(candidates)
            .min_by(|(_, a), (_, b)| done(a).total_cmp(&done(b)).then(a.in_flight.cmp(&b.in_flight)));
        first.map(|(at, _)| Placement::at(at))
    }

    fn name(&self) -> &'static str {
        "ect"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::{POLICIES, placer};

    const ASK: Ask = Ask { kernel: 1, log2_size: 12.0, queued_ns: 0, now_ns: 0 };

    fn candidate(slot: u16, in_flight: usize, backlog_ns: f64, expected_ns: Option<f64>) -> Candidate {
        Candidate { slot: AgentSlot(slot), backend: 0, room: true, in_flight, backlog_ns, expected_ns }
    }

    fn full(candidate: Candidate) -> Candidate {
        Candidate { room: false, ..candidate }
    }

    fn place(policy: &mut dyn Placer, candidates: &[Candidate]) -> Option<usize> {
        policy.place(&ASK, candidates).map(|placement| placement.at)
    }

    #[test]
    fn every_name_of_the_configuration_has_its_policy() {
        for name in POLICIES {
            assert_eq!(placer(name, "learned").expect("known").name(), name);
        }
        assert!(placer("magic", "learned").is_none() && placer("ect", "magic").is_none());
    }

    #[test]
    fn nobody_chooses_who_has_no_room() {
        let mut random = SplitMix64::new(3);
        for name in POLICIES {
            let mut policy = placer(name, "learned").expect("known");
            for turn in 0..2000 {
                policy.begin(turn * 1000);
                let count = random.below(6) as u16;
                let mut draw = |slot| {
                    let expected = (random.below(3) > 0).then(|| random.next_f64() * 1e6);
                    let held = candidate(slot, random.below(4) as usize, random.next_f64() * 1e6, expected);
                    if random.below(2) == 0 { full(held) } else { held }
                };
                let candidates: Vec<Candidate> = (0..count).map(&mut draw).collect();
                let now_ns = turn * 1000;
                let ask =
                    Ask { kernel: (turn % 40) as u8, log2_size: (turn % 35) as f32, queued_ns: 0, now_ns };
                if let Some(placement) = policy.place(&ask, &candidates) {
                    assert!(candidates[placement.at].room, "{name}: {placement:?} of {candidates:?}");
                    assert!((0.0..=1.0).contains(&placement.probability), "{name}: {placement:?}");
                    let (slot, service_ns) = (candidates[placement.at].slot, 1000.0 * random.next_f64());
                    let (kernel, log2_size, total_ns) = (ask.kernel, ask.log2_size, 2.0 * service_ns);
                    let backend = 0;
                    policy.finished(&Finished {
                        kernel,
                        log2_size,
                        slot,
                        backend,
                        service_ns,
                        total_ns,
                        overhead_ns: None,
                        now_ns,
                    });
                }
            }
            let everybody_full = [full(candidate(0, 9, 0.0, None)), full(candidate(1, 9, 0.0, Some(1.0)))];
            assert_eq!(place(&mut *policy, &everybody_full), None, "{name}");
        }
    }

    #[test]
    fn round_robin_goes_round_even_when_some_have_no_room() {
        let mut policy = RoundRobin::default();
        let all: Vec<Candidate> = (1..4).map(|slot| candidate(slot, 0, 0.0, None)).collect();
        let turns: Vec<u16> = (0..6).map(|_| all[place(&mut policy, &all).unwrap()].slot.0).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
        let some = [all[0], full(all[1]), all[2]];
        assert_eq!(place(&mut policy, &some), Some(0));
        assert_eq!(place(&mut policy, &some), Some(2));
    }

    #[test]
    fn least_loaded_takes_the_emptiest() {
        let some = [candidate(0, 3, 0.0, None), candidate(1, 1, 9e9, None), candidate(2, 2, 0.0, None)];
        assert_eq!(place(&mut LeastLoaded, &some), Some(1));
    }

    #[test]
    fn expected_completion_prefers_a_fast_agent_until_its_queue_outweighs_it() {
        let fast_idle = [candidate(0, 0, 0.0, Some(1e6)), candidate(1, 0, 0.0, Some(4e6))];
        assert_eq!(place(&mut ExpectedCompletion, &fast_idle), Some(0));
        let fast_busy = [candidate(0, 4, 4e6, Some(1e6)), candidate(1, 0, 0.0, Some(4e6))];
        assert_eq!(place(&mut ExpectedCompletion, &fast_busy), Some(1));
        let newcomer = [candidate(0, 1, 1e6, Some(1e6)), candidate(1, 0, 0.0, None)];
        assert_eq!(place(&mut ExpectedCompletion, &newcomer), Some(1), "an unknown agent gets its chance");
    }

    #[test]
    fn the_shortest_queue_is_shared_by_lot() {
        let mut policy = ShortestQueue::unbounded(5);
        let some = [candidate(0, 1, 0.0, None), candidate(1, 0, 0.0, None), candidate(2, 0, 0.0, None)];
        let mut hits = [0; 3];
        for _ in 0..1000 {
            hits[place(&mut policy, &some).unwrap()] += 1;
        }
        assert!(hits[0] == 0 && hits[1] > 400 && hits[2] > 400, "{hits:?}");
    }

    #[test]
    fn peaks_are_remembered_and_hot_agents_avoided() {
        let finished = |slot, total_ns| Finished {
            kernel: 0,
            log2_size: 1.0,
            slot: AgentSlot(slot),
            backend: 0,
            service_ns: 1.0,
            total_ns,
            overhead_ns: None,
            now_ns: 0,
        };
        let (mut ewma, mut prequal) = (PeakEwma::default(), Prequal::default());
        for policy in [&mut ewma as &mut dyn Placer, &mut prequal] {
            for slot in 0..3 {
                policy.finished(&finished(slot, 1000.0));
            }
            policy.finished(&finished(1, 50_000.0));
            let idle: Vec<Candidate> = (0..3).map(|slot| candidate(slot, 0, 0.0, None)).collect();
            assert_ne!(place(policy, &idle), Some(1), "{}", policy.name());
            let busy = [candidate(0, 9, 0.0, None), candidate(2, 1, 0.0, None), candidate(3, 1, 0.0, None)];
            assert_ne!(place(policy, &busy), Some(0), "{}", policy.name());
        }
    }

    #[test]
    fn an_idle_agent_takes_what_waits_for_another() {
        let mut policy = WorkStealing::default();
        let some = [candidate(0, 1, 0.0, None), candidate(1, 1, 0.0, None), candidate(2, 0, 0.0, None)];
        for _ in 0..5 {
            assert_eq!(place(&mut policy, &some), Some(2));
        }
    }
}
