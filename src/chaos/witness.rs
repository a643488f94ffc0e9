//! A client that is told of ends: it hands in tasks through shared memory, and counts what comes back for each.
//!
//! The swarm counts what it delivers, too; a swarm that delivers twice does not know it, so somebody else has to
//! count. A life of the swarm is a connection of the witness; what was accepted in one and not told of is asked for by
//! name in the next.

use super::Verdict;
use super::victim::Victim;
use crate::base::words::things;
use crate::client::{Attach, Client, ClientError, TaskEnd};
use crate::jobs::{self, Defaults};
use crate::tasks::TaskSpec;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// Tasks that it has with the swarm.
const OPEN: usize = 8;
/// The last ends are waited for so long, once nothing is open any more.
const LATE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(super) struct Witness {
    client: Option<Client>,
    count: Count,
    /// Life of the swarm that it is, or was, attached to.
    life: u64,
    connections: u64,
    /// Tasks handed in, and those of them since the last judgement.
    all: u64,
    fresh: u64,
}

impl Witness {
    /// Tasks handed in that the judge has not looked at.
    pub(super) fn unjudged(&self) -> u64 {
        self.fresh
    }

    pub(super) fn handed_in(&self) -> u64 {
        self.all
    }

    /// Takes what has come and hands in more.
    pub(super) fn turn(&mut self, victim: &Victim) -> anyhow::Result<()> {
        self.hear(victim);
        if self.client.is_none() {
            self.life = victim.life();
            // Nobody may listen yet, and whoever just came up may be killed meanwhile: another time, then.
            let attach = Attach::at(&victim.control()).as_client("witness").spin(false);
            self.client = attach.attach().ok();
            self.connections += u64::from(self.client.is_some());
            self.count.begin();
        }
        let Some(client) = &mut self.client else { return Ok(()) };
        while self.count.open.len() < OPEN {
            match client.try_submit(&task(self.life, self.count.tickets)?) {
                Ok(ticket) => self.count.on_submitted(ticket.0),
                Err(ClientError::Full) => break,
                Err(error) => {
                    self.on_cut(victim, &error.to_string());
                    break;
                }
            }
            self.all += 1;
            self.fresh += 1;
        }
        Ok(())
    }

    /// Takes what has come, and parts with a life that is over.
    fn hear(&mut self, victim: &Victim) {
        let is_over = victim.life() != self.life;
        let Some(client) = &mut self.client else { return };
        loop {
            match client.try_next_end() {
                Ok(Some(end)) => self.count.on_end(&end),
                Ok(None) => break,
                // What a supervisor was about to say when it was killed is nobody's fault.
                Err(_) if is_over => break,
                Err(error) => return self.on_cut(victim, &error.to_string()),
            }
        }
        if is_over {
            self.part();
        } else if client.has_ended() {
            self.on_cut(victim, "it was told that the swarm ends");
        }
    }

    /// The connection broke, and nobody had killed the supervisor.
    fn on_cut(&mut self, victim: &Victim, why: &str) {
        if !victim.is_on_bad_disk() {
            self.count.wrong.push(format!("the witness was cut off: {why}"));
        }
        self.part();
    }

    fn part(&mut self) {
        let Some(client) = self.client.take() else { return };
        let life = self.life;
        self.count.part(client.accepted(), |ticket| name(life, ticket));
    }

    /// Nothing is open any more: every end must have been told, once, and what was told in no life must be known.
    pub(super) fn judge(&mut self, victim: &mut Victim) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.client.is_some() && !self.count.open.is_empty() && began.elapsed() < LATE {
            self.hear(victim);
            std::thread::sleep(Duration::from_millis(2));
        }
        let life = self.life;
        for ticket in std::mem::take(&mut self.count.open) {
            self.count.lost.push(format!("the end of {} was never told", name(life, ticket)));
        }
        for name in std::mem::take(&mut self.count.owed) {
            match victim.task(&name)? {
                Ok(task) if task["state"] == "succeeded" => {}
                Ok(task) => self.count.lost.push(format!("{name}: {} {}", task["state"], task["error"])),
                Err(error) => self.count.lost.push(format!("{name}: {error}")),
            }
        }
        self.fresh = 0;
        Ok(())
    }

    /// Leaves, so that what it holds is not taken for something that the swarm has lost.
    pub(super) fn leave(&mut self) {
        self.client = None;
    }

    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        let count = &self.count;
        let lives = things(self.connections as usize, "connection");
        vec![
            Verdict {
                promise: "P1",
                what: format!("{} tasks that a client handed in, over {lives}", count.told),
                broken: count.lost.clone(),
            },
            Verdict {
                promise: "P2",
                what: format!("{} ends as a client was told of them, each once", count.told),
                broken: [count.twice.clone(), count.wrong.clone()].concat(),
            },
        ]
    }
}

/// What was handed in over one connection, and what has come back over all.
#[derive(Default)]
struct Count {
    /// Of this connection: handed in, and those whose end was not told yet.
    tickets: u64,
    open: BTreeSet<u64>,
    /// Numbers of tasks whose end was told, in all lives.
    ended: HashSet<u64>,
    told: u64,
    /// Names of tasks that were accepted in a life that ended before it told of them.
    owed: Vec<String>,
    lost: Vec<String>,
    twice: Vec<String>,
    wrong: Vec<String>,
}

impl Count {
    fn begin(&mut self) {
        self.tickets = 0;
        self.open.clear();
    }

    fn on_submitted(&mut self, ticket: u64) {
        self.open.insert(ticket);
        self.tickets = ticket + 1;
    }

    fn on_end(&mut self, end: &TaskEnd) {
        let is_first = self.open.remove(&end.ticket.0);
        if !is_first {
            self.twice.push(format!("an end of ticket {} that is not open: {end:?}", end.ticket.0));
        }
        // It was told that it is not accepted.
        if end.state == "refused" {
            return;
        }
        self.told += 1;
        if let Some(task) = end.task
            && !self.ended.insert(task)
            && is_first
        {
            self.twice.push(format!("task {task} ended once already: {end:?}"));
        }
        if !end.is_success() {
            self.lost.push(format!("{end:?}"));
        }
    }

    /// The connection is over; so many submissions had been acknowledged.
    fn part(&mut self, accepted: u64, name: impl Fn(u64) -> String) {
        self.owed.extend(self.open.range(..accepted).map(|&ticket| name(ticket)));
        self.open.clear();
    }
}

fn name(life: u64, ticket: u64) -> String {
    format!("witness-{life}-{ticket}")
}

/// Every other one takes a moment, so that kills meet it at work.
fn task(life: u64, ticket: u64) -> anyhow::Result<TaskSpec> {
    let (kernel, params): (_, Value) = match ticket % 2 {
        0 => ("noop", json!({})),
        _ => ("sleep", json!({"seconds": 0.001})),
    };
    let task = json!({
        "id": name(life, ticket), "kernel": kernel, "params": params, "priority": "high", "retries": super::RETRIES,
    });
    let spec = jobs::parse_task(&task, 1, Path::new("/"), &Defaults { timeout: None, retries: 0 });
    spec.map_err(|refused| anyhow::anyhow!(refused.error)).context("a task of the witness")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Ticket;

    fn end(ticket: u64, task: u64, state: &'static str) -> TaskEnd {
        let (agent, text) = (None, None);
        let (total, service) = (Duration::ZERO, Duration::ZERO);
        TaskEnd { ticket: Ticket(ticket), task: Some(task), state, agent, attempts: 1, total, service, text }
    }

    fn count(tickets: u64) -> Count {
        let mut count = Count::default();
        count.begin();
        (0..tickets).for_each(|ticket| count.on_submitted(ticket));
        count
    }

    #[test]
    fn an_end_for_each_is_as_it_should_be() {
        let mut count = count(3);
        (0..3).for_each(|ticket| count.on_end(&end(ticket, 10 + ticket, "succeeded")));
        assert!(count.open.is_empty() && count.twice.is_empty() && count.lost.is_empty());
        assert_eq!(count.told, 3);
    }

    #[test]
    fn a_second_end_is_found_in_the_same_life_and_in_the_next() {
        let mut count = count(2);
        count.on_end(&end(0, 10, "succeeded"));
        count.on_end(&end(0, 10, "succeeded"));
        assert_eq!(count.twice.len(), 1, "{:?}", count.twice);
        count.part(2, |ticket| format!("n{ticket}"));
        assert_eq!(count.owed, ["n1"], "accepted and not told");
        count.begin();
        count.on_submitted(0);
        count.on_end(&end(0, 10, "succeeded"));
        assert_eq!(count.twice.len(), 2, "{:?}", count.twice);
    }

    #[test]
    fn what_failed_is_lost_and_what_was_refused_is_neither() {
        let mut count = count(3);
        count.on_end(&end(0, 10, "failed"));
        let refused = TaskEnd { task: None, ..end(1, 0, "refused") };
        count.on_end(&refused);
        assert_eq!((count.lost.len(), count.told, count.twice.len()), (1, 1, 0));
        count.part(2, |ticket| format!("n{ticket}"));
        assert!(count.owed.is_empty(), "the third was not acknowledged: {:?}", count.owed);
    }
}
