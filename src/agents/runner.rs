//! The agent process: map, pin, say "ready", turn the cycle, end.

use super::{AgentStart, Context, agent};
use crate::base::ailment;
use crate::base::clock::Nanos;
use crate::base::ids::AgentKind;
use crate::messaging::attach::{MemberTalk, VERSION};
use crate::messaging::link::AgentLink;
use crate::messaging::{FromAgent, Lane, ToAgent};
use crate::os::{affinity, clock, process};
use crate::shm::board::Board;
use crate::shm::ring::Message;
use anyhow::Context as _;
use std::io::Read as _;
use std::time::Duration;

/// The word that makes the binary an agent.
pub const AGENT_WORD: &str = "__agent";

/// Messages handled in a row before the agent shows progress and looks at its own work.
const MESSAGES_PER_TURN: usize = 256;
/// An idle agent shows a sign of life at least so often; those with nothing planned at the same moments.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// So often one that listens to other members: their bells are believed to be lost now and then.
const LONGEST_LISTEN: Duration = Duration::from_millis(250);
/// A gap between messages that is at least so long is taken for so long.
const LONG_GAP: Duration = Duration::from_millis(250);
/// A standby is woken when it is needed; it looks by itself so often, should that be lost.
const STANDBY_SLEEP: Duration = Duration::from_secs(1);

/// Runs the agent that is described in descriptor `start_fd`. Returns the process's exit code.
pub fn main(start_fd: &str) -> i32 {
    match run(start_fd) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: agent cannot start: {error:#}");
            1
        }
    }
}

fn run(start_fd: &str) -> anyhow::Result<()> {
    let mut text = String::new();
    let number = start_fd.parse().context("descriptor number of the start message")?;
    std::fs::File::from(process::inherited(number)?).read_to_string(&mut text)?;
    let start: AgentStart = serde_json::from_str(&text).context("start message")?;
    anyhow::ensure!(
        start.version == VERSION,
        "the supervisor speaks version {}, this binary {VERSION}",
        start.version
    );
    let kind = AgentKind::from_code(start.kind).context("unknown kind of agent")?;
    crate::cli::log::init_agent(&start.log_filter, start.log_json);
    let link =
        AgentLink::adopt(start.link.inherited().context("channels")?, start.owner).context("channels")?;
    let talk = MemberTalk::new(process::inherited(start.socket).context("socket")?);
    let board = Board::open(&start.board, start.board_slots).context("board")?;
    let is_standby = start.standby;
    let mut agent = agent(kind, &start.settings);
    let mut context = Context::new(link, talk, board, start);
    context.link.hold_life();
    #[cfg(debug_assertions)]
    litter();
    if is_standby {
        agent.on_start(&mut context)?;
        if !wait_for_place(&mut context)? {
            return Ok(());
        }
    }
    let pinned = context.start.core.filter(|&core| affinity::pin_current_thread(core));
    let span = tracing::info_span!("agent", id = %context.start.id, incarnation = context.start.incarnation);
    let _entered = span.enter();
    tracing::debug!(core = ?pinned, is_standby, "agent starts");
    context.board.publish_life(context.slot(), None, 0, 0);
    if !is_standby {
        agent.on_start(&mut context)?;
    }
    context
        .send_surely(Lane::Control, &FromAgent::Ready { core: pinned.map_or(u32::MAX, |core| core as u32) });
    context.link.ring();

    if kind == AgentKind::Compute {
        // Until here it was somebody whom others wait for; from here on it is at work for as long as it may.
        process::set_turn(Duration::ZERO);
        if context.link.is_core_shared() {
            // The supervisor may be our neighbour: it needs the core seldom, but then at once.
            process::be_nice(5);
        }
    }

    let mut message = Message::default();
    let mut patience = Patience::new(context.start.settings.gives_way);
    loop {
        let mut work = 0;
        while work < MESSAGES_PER_TURN && context.link.receive(&mut message)? {
            work += 1;
            match ToAgent::decode(message.kind, message.payload())? {
                ToAgent::Stop => context.stopping = true,
                ToAgent::Optimize => agent.optimize(&mut context),
                ToAgent::News => context.hear_news(),
                other => agent.on_message(&other, &mut context),
            }
        }
        work += context.serve_port(agent.as_mut());
        work += agent.do_work(&mut context);
        context.beat();
        context.link.ring();
        ailment::suffer(&context.start.id, context.start.incarnation, clock::now());
        if work == 0 {
            if context.stopping {
                break;
            }
            if !patience.rest(&mut context, agent.next_due()) {
                agent.on_rest();
            }
        }
    }
    agent.on_close(&mut context);
    context.link.publish();
    tracing::debug!("agent ends");
    Ok(())
}

/// Leaves processes behind as an agent of the user's own might: what `AI_SWARM_TEST_LITTER` says, by a shell. For tests;
/// builds without debug assertions do not have it.
#[cfg(debug_assertions)]
fn litter() {
    if let Ok(script) = std::env::var("AI_SWARM_TEST_LITTER") {
        let _ = std::process::Command::new("/bin/sh").args(["-c", &script]).status();
    }
}

/// A standby is mapped and started and sleeps until somebody's place is free. False: it is not needed any more.
fn wait_for_place(context: &mut Context) -> anyhow::Result<bool> {
    context.send_surely(Lane::Control, &FromAgent::Ready { core: u32::MAX });
    context.link.ring();
    let mut message = Message::default();
    loop {
        // Its place comes before the tasks of that place, and both may be there already.
        if context.link.receive_control(&mut message)? {
            match ToAgent::decode(message.kind, message.payload())? {
                ToAgent::Adopt { slot, incarnation, core, id } => {
                    context.take_place(slot, incarnation, core as usize, id);
                    return Ok(true);
                }
                ToAgent::Stop => return Ok(false),
                _ => {}
            }
        }
        context.link.sleep(STANDBY_SLEEP, || false);
    }
}

/// How a receiver waits: it spins as long as a sleep would probably not pay, then sleeps.
///
/// Spinning for as long as a wake-up costs is never worse than twice the best choice made in
/// hindsight (A. Karlin et al., "Competitive randomized algorithms for non-uniform problems", SODA
/// 1990). The observed gap between messages shifts that: short gaps are worth waiting for, long ones
/// are not. On a shared core whoever spins keeps the other from answering, so there it yields twice
/// and sleeps.
///
/// What a wake-up costs is a matter of the host: a few microseconds on bare metal, 27 to 64 on virtual machines. It
/// is not measured beforehand, which would cost every start some wake-ups, but learned from those that happen:
/// whoever rings a sleeper says when, and the sleeper smooths and bounds what it finds. The supervisor, which sleeps
/// in epoll and hears no time, keeps the first guess.
///
/// Where tasks wait for the disk (durability level `power`), whoever spins gives way to others now and then: the kernel's own
/// threads bring the request to the disk, and a scheduler may leave a core to a spinner until the next tick, which is
/// milliseconds where the disk takes a tenth of one.
#[derive(Debug)]
pub struct Patience {
    /// Smoothed time from going idle to the next message, ns.
    gap_ns: f64,
    /// Smoothed time from the ring to being awake, ns.
    wake_ns: f64,
    gives_way: bool,
}

/// Cost of waking a sleeper, until one was woken.
const WAKE_COST: Duration = Duration::from_micros(50);
/// Bounds of what is believed: a stranger may have written it, and a busy host wakes nobody in time.
const WAKE_COST_MIN: Duration = Duration::from_micros(2);
const WAKE_COST_MAX: Duration = Duration::from_micros(100);
/// Shortest spin, when messages come rarely.
const SHORTEST_SPIN: Duration = Duration::from_micros(5);

impl Default for Patience {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Patience {
    /// With `gives_way`, others get the core while it spins.
    pub fn new(gives_way: bool) -> Self {
        let cost = WAKE_COST.as_nanos() as f64;
        Self { gap_ns: cost, wake_ns: cost, gives_way }
    }

    /// Whether others get the core.
    pub fn gives_way(&self) -> bool {
        self.gives_way
    }

    /// Spins until `ready` or until `span` has passed since `began`. True when ready.
    pub fn spin_until(&self, began: Nanos, span: Duration, ready: impl Fn() -> bool) -> bool {
        loop {
            // A few pauses between looks leave the line to the writer; the clock is read now and then only.
            for _ in 0..32 {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if clock::now().since(began) >= span {
                return false;
            }
            if self.gives_way {
                std::thread::yield_now();
            }
        }
    }

    /// How long to spin now.
    pub fn spin(&self) -> Duration {
        let cost = Duration::from_nanos(self.wake_ns as u64);
        let gap = Duration::from_nanos(self.gap_ns as u64);
        if gap < cost {
            // Talkative neighbours.
            3 * cost
        } else if gap < 20 * cost {
            cost
        } else {
            SHORTEST_SPIN.min(cost)
        }
    }

    /// Learns from a sleep that ended so long after somebody rang.
    pub fn learn_wake(&mut self, took: Duration) {
        let took = took.clamp(WAKE_COST_MIN, WAKE_COST_MAX);
        self.wake_ns += 0.1 * (took.as_nanos() as f64 - self.wake_ns);
    }

    /// Learns from a wait that ended with a message after `waited`.
    pub fn learn(&mut self, waited: Duration) {
        self.gap_ns += 0.1 * (waited.as_nanos() as f64 - self.gap_ns);
    }

    /// Waits for a message or for `due`. False: nothing came, for [`LONG_GAP`] or longer.
    fn rest(&mut self, context: &mut Context, due: Option<Nanos>) -> bool {
        let began = clock::now();
        let until_due = due.map_or(LONGEST_SLEEP, |due| due.since(began));
        let longest = match due {
            _ if context.listens() => LONGEST_LISTEN,
            // Who has a time of its own shows life then.
            Some(_) => LONGEST_SLEEP,
            None => began.next(LONGEST_SLEEP).since(began),
        };
        let is_ready = |context: &Context| context.link.is_ready() || context.has_mail();
        if context.link.is_core_shared() {
            for _ in 0..2 {
                std::thread::yield_now();
                if is_ready(context) {
                    return true;
                }
            }
        } else if self.spin_until(began, self.spin().min(until_due), || is_ready(context)) {
            self.learn(clock::now().since(began));
            return true;
        }
        let elapsed = clock::now().since(began);
        let woken = context.sleep(until_due.min(longest).saturating_sub(elapsed));
        woken.into_iter().for_each(|took| self.learn_wake(took));
        let came = is_ready(context);
        let waited = clock::now().since(began);
        // Nothing came in all this time: at least that long a gap.
        self.learn(if came { waited } else { LONG_GAP });
        came || waited < LONG_GAP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_traffic_and_goes_with_silence() {
        let mut patience = Patience::default();
        for _ in 0..100 {
            patience.learn(Duration::from_micros(2));
        }
        assert_eq!(patience.spin(), 3 * WAKE_COST);
        for _ in 0..100 {
            patience.learn(Duration::from_millis(250));
        }
        assert_eq!(patience.spin(), SHORTEST_SPIN);
    }

    #[test]
    fn patience_follows_what_waking_costs_here_within_bounds() {
        let spin_after = |took: Duration| {
            let mut patience = Patience::default();
            for _ in 0..200 {
                patience.learn_wake(took);
                patience.learn(Duration::from_nanos(100));
            }
            patience.spin()
        };
        for (took, cost) in [(4, 4), (80, 80), (0, 2), (1 << 40, 100)] {
            let (spin, wanted) = (spin_after(Duration::from_micros(took)), Duration::from_micros(3 * cost));
            assert!(spin.abs_diff(wanted) < wanted / 20, "{spin:?} where waking takes {took} us");
        }
    }

    #[test]
    fn spinning_ends_when_ready_and_when_time_is_up() {
        for patience in [Patience::new(false), Patience::new(true)] {
            assert!(patience.spin_until(clock::now(), Duration::from_secs(600), || true));
            assert!(!patience.spin_until(clock::now(), Duration::from_micros(1), || false));
        }
    }
}
