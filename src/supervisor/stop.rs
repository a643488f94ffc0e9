//! The end: no new work, what runs may finish, agents are told, nothing is left.

use super::*;

/// Why tasks are cancelled at the end.
const STOPPED: &str = "the swarm stopped";
/// Longest wait for the journal to have what was said last.
const JOURNAL_END: Duration = Duration::from_secs(5);
/// Longest wait for agents to end by themselves.
const AGENTS_END: Duration = Duration::from_secs(2);

/// What to do with tasks that run when the swarm ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEnd {
    /// Let them finish, at most `tasks.drain_s` long.
    Drain,
    /// Give them up.
    Hurry,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself: work done, time over.
    Done,
    /// A signal or a request.
    Asked,
}

impl Supervisor {
    /// Ends everything: tasks, agents, board, socket. Returns when no process is left.
    pub fn shut_down(&mut self, on_end: OnEnd) -> Ending {
        let ending = if self.is_stop_asked() { Ending::Asked } else { Ending::Done };
        self.state = "draining";
        self.leaves_tasks = self.shall_leave();
        if self.leaves_tasks {
            self.limit = self.most_at_work();
            self.ledger.leave_to_a_later_life();
        } else {
            self.ledger.end_with_this_life();
            self.ledger.cancel_waiting(STOPPED, self.now);
        }
        // The first signal asks for the end, whoever else asked before; a second one for haste.
        let span = if on_end == OnEnd::Drain { self.config.tasks.drain } else { Duration::ZERO };
        self.turn_until(span, |this| this.dispatcher.in_flight() == 0 || this.stop_signals > 1);
        if self.leaves_tasks {
            self.ledger.take_back(self.now);
            self.take_back_rest();
        } else {
            self.give_up_rest();
        }
        self.turn_until(GIVE_UP_LIMIT, |this| this.dispatcher.in_flight() == 0);

        self.state = "stopping";
        self.closing = true;
        self.dismiss_clients();
        for seat in self.dispatcher.iter_mut() {
            let _ = seat.link.send(Lane::Control, &ToAgent::Stop);
            seat.touched = true;
        }
        self.dispatcher.ring_bells();
        self.dismiss_standbys();
        self.turn_until(AGENTS_END, Self::is_alone);
        for at in 0..self.roster.len() {
            if self.roster[at].as_ref().is_some_and(|record| record.child.is_some()) {
                self.kill(
                    AgentSlot(at as u16),
                    "agent_killed",
                    "killed: it did not end when told to".to_owned(),
                );
            }
        }
        for standby in self.standbys.iter() {
            standby.child.kill();
        }
        self.turn_until(AGENTS_END, Self::is_alone);
        if let Some(guard) = self.nursery.containment.guard() {
            // Its end, which comes next, is no news any more.
            let _ = epoll::delete(&self.epoll, guard);
        }
        self.nursery.end_left_behind();
        if !self.leaves_tasks {
            self.ledger.cancel_waiting(STOPPED, clock::now());
        }
        self.turn();
        self.turn_until(JOURNAL_END, |this| !this.keeps_back());
        self.close_journal();
        self.answer_waiters();
        self.sweeper.finish();
        self.close_memory();
        self.close_gateway();
        self.state = "stopped";
        ending
    }

    /// Somebody asks for the end. Once somebody has, what becomes of tasks is decided.
    pub(super) fn ask_to_stop(&mut self, keep_tasks: Option<bool>) -> Reply {
        let leaves = if self.state != "running" { self.leaves_tasks } else { self.shall_leave() };
        let is_decided = self.state != "running" || self.is_stop_asked();
        let why_not = match keep_tasks {
            Some(true) if self.ledger.book().is_none() => {
                "there is no journal to keep tasks in (`durability.level` is \"none\"): they would be gone; stop without \
                 `keep_tasks`, which cancels them"
            }
            Some(true) if is_decided && !leaves => "the swarm is stopping already, and cancels what waits",
            Some(false) if is_decided && leaves => {
                "the swarm is stopping already, and leaves what is not done to the next start"
            }
            _ => {
                self.stop_asked = true;
                self.shall_leave = keep_tasks.or(self.shall_leave);
                return Reply::Done;
            }
        };
        Reply::Refused(Refused::Conflict(why_not.to_owned()))
    }

    /// Whether tasks wait for the next start, as things stand. A journal that is full or has failed has all the same what was
    /// acknowledged.
    fn shall_leave(&self) -> bool {
        self.shall_leave.unwrap_or(self.config.tasks.keep_at_stop) && self.ledger.book().is_some()
    }

    /// Whoever waits for the end of tasks that did not come to it is told how far they are. The journal is closed by now.
    fn answer_waiters(&mut self) {
        let failure = self.journal_failure().map(str::to_owned);
        for (_, waiter) in std::mem::take(&mut self.waiters) {
            if let Some(why) = &failure {
                // Whoever waits was not told either that they were accepted.
                let words = format!(
                    "the swarm has stopped and its journal failed: what had not ended goes on at the next start if it was kept: {why}"
                );
                (waiter.answer)(Reply::Refused(Refused::Unavailable(words)));
                continue;
            }
            let tell = |task: &Result<TaskId, Submitted>| {
                let mut told = self.submitted(task);
                let task = task.as_ref().ok().and_then(|id| self.ledger.get(*id));
                if let Some(task) = task.filter(|task| !task.state.is_final()) {
                    told.task = Some(Box::new(self.task_view(task)));
                    told.error =
                        (!self.leaves_tasks).then(|| "the swarm stopped before it was done".to_owned());
                }
                told
            };
            (waiter.answer)(Reply::Submitted(waiter.tasks.iter().map(tell).collect()));
        }
    }

    fn is_alone(&mut self) -> bool {
        self.standbys.is_empty()
            && self.dying.is_empty()
            && self.roster.iter().flatten().all(|record| record.child.is_none())
    }

    fn turn_until(&mut self, span: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = clock::now().plus(span);
        while !done(self) && clock::now() < deadline {
            if self.turn() == 0 {
                self.rest(Some(deadline));
            }
        }
    }

    /// What runs too long to be waited for runs again in the next life: its agents are gone before they could end it in part.
    fn take_back_rest(&mut self) {
        let at_work: Vec<AgentSlot> =
            self.dispatcher.iter().filter(|seat| !seat.held.is_empty()).map(|seat| seat.slot).collect();
        self.closing |= !at_work.is_empty();
        for slot in at_work {
            self.kill(
                slot,
                "agent_killed",
                "killed: the next life of the swarm does what it holds".to_owned(),
            );
        }
    }

    fn give_up_rest(&mut self) {
        let running: Vec<TaskId> =
            self.dispatcher.iter().flat_map(|seat| seat.held.iter().map(|held| held.task)).collect();
        let in_parts = self.ledger.divided().to_vec();
        for task in running.into_iter().chain(in_parts) {
            if let Some(CancelOutcome::AskAgent(lease, attempt)) = self.ledger.cancel(task, self.now) {
                self.ask_to_give_up(task, lease, attempt);
            }
        }
    }
}
