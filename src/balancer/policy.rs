//! The placement policies to choose from.

use super::Placer;
use crate::tasks::Candidate;

/// The policy with this name in the configuration (`balancer.policy`).
pub fn placer(name: &str) -> Option<Box<dyn Placer>> {
    Some(match name {
        "round_robin" => Box::new(RoundRobin::default()),
        "least_loaded" => Box::new(LeastLoaded),
        "ect" => Box::new(ExpectedCompletion),
        _ => return None,
    })
}

/// One agent after the other, whatever they do.
#[derive(Debug, Default)]
pub struct RoundRobin {
    last: u16,
}

impl Placer for RoundRobin {
    fn place(&mut self, candidates: &[Candidate]) -> usize {
        // The next slot after the last one used, so that agents without room do not skew the turn.
        let next = candidates.iter().position(|candidate| candidate.slot.0 > self.last).unwrap_or(0);
        self.last = candidates[next].slot.0;
        next
    }

    fn name(&self) -> &'static str {
        "round_robin"
    }
}

/// The agent that holds the fewest tasks.
#[derive(Debug)]
pub struct LeastLoaded;

impl Placer for LeastLoaded {
    fn place(&mut self, candidates: &[Candidate]) -> usize {
        let least = candidates.iter().enumerate().min_by_key(|(_, candidate)| candidate.in_flight);
        least.map_or(0, |(at, _)| at)
    }

    fn name(&self) -> &'static str {
        "least_loaded"
    }
}

/// The agent that will be through with the task first: what it still has to do plus what this task is
/// expected to cost there, both from the learned cost model. An agent of which nothing is known yet is
/// taken to be as fast as the fastest, so that it gets the chance to show.
#[derive(Debug)]
pub struct ExpectedCompletion;

impl Placer for ExpectedCompletion {
    fn place(&mut self, candidates: &[Candidate]) -> usize {
        let fastest =
            candidates.iter().filter_map(|candidate| candidate.expected_ns).fold(f64::INFINITY, f64::min);
        let unknown = if fastest.is_finite() { fastest } else { 0.0 };
        let done = |candidate: &Candidate| candidate.backlog_ns + candidate.expected_ns.unwrap_or(unknown);
        let first = candidates
            .iter()
            .enumerate()
            .min_by(|(_, a), (_, b)| done(a).total_cmp(&done(b)).then(a.in_flight.cmp(&b.in_flight)));
        first.map_or(0, |(at, _)| at)
    }

    fn name(&self) -> &'static str {
        "ect"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::AgentSlot;

    fn candidate(slot: u16, in_flight: usize, backlog_ns: f64, expected_ns: Option<f64>) -> Candidate {
        Candidate { slot: AgentSlot(slot), in_flight, backlog_ns, expected_ns }
    }

    #[test]
    fn every_name_of_the_configuration_has_its_policy() {
        for name in ["round_robin", "least_loaded", "ect"] {
            assert_eq!(placer(name).expect("known").name(), name);
        }
        assert!(placer("magic").is_none());
    }

    #[test]
    fn round_robin_goes_round_even_when_some_have_no_room() {
        let mut policy = RoundRobin::default();
        let all: Vec<Candidate> = (1..4).map(|slot| candidate(slot, 0, 0.0, None)).collect();
        let turns: Vec<u16> = (0..6).map(|_| all[policy.place(&all)].slot.0).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
        let some = [all[0], all[2]];
        assert_eq!(some[policy.place(&some)].slot.0, 1);
        assert_eq!(some[policy.place(&some)].slot.0, 3);
    }

    #[test]
    fn least_loaded_takes_the_emptiest() {
        let some = [candidate(0, 3, 0.0, None), candidate(1, 1, 9e9, None), candidate(2, 2, 0.0, None)];
        assert_eq!(LeastLoaded.place(&some), 1);
    }

    #[test]
    fn expected_completion_prefers_a_fast_agent_until_its_queue_outweighs_it() {
        let fast_idle = [candidate(0, 0, 0.0, Some(1e6)), candidate(1, 0, 0.0, Some(4e6))];
        assert_eq!(ExpectedCompletion.place(&fast_idle), 0);
        let fast_busy = [candidate(0, 4, 4e6, Some(1e6)), candidate(1, 0, 0.0, Some(4e6))];
        assert_eq!(ExpectedCompletion.place(&fast_busy), 1);
        let newcomer = [candidate(0, 1, 1e6, Some(1e6)), candidate(1, 0, 0.0, None)];
        assert_eq!(ExpectedCompletion.place(&newcomer), 1, "an unknown agent gets its chance");
    }
}
