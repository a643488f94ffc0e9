//! What the dispatcher asks of a placement policy, and what it tells it. Numbers only: the same policy runs in
//! the swarm and in the simulator, and answers the same numbers with the same place.

use crate::base::ids::AgentSlot;

/// A task that wants a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// Code of its kernel.
    pub kernel: u8,
    /// Binary logarithm of the work, in elements.
    pub log2_size: f32,
    /// When it was queued: what it depends on is done, ns.
    pub queued_ns: u64,
    /// The time, ns.
    pub now_ns: u64,
}

/// An agent that takes tasks of this kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Which agent.
    pub slot: AgentSlot,
    /// What it computes with. Agents of one backend differ in speed only.
    pub backend: u8,
    /// Whether it can be given a task now.
    pub room: bool,
    /// Tasks it holds.
    pub in_flight: usize,
    /// Time until it is through with them, ns, as far as known.
    pub backlog_ns: f64,
    /// What a table that somebody else keeps expects of this task there, ns; `None` while nothing is known.
    pub expected_ns: Option<f64>,
}

/// A decision, with all that a record of it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// The index of the candidate. It has room.
    pub at: usize,
    /// What the policy expects the task to cost there, ns, if it has a view of its own.
    pub expected_ns: Option<f64>,
    /// How likely this very choice was at least, so that policies can be judged by what was logged.
    pub probability: f32,
    /// How it came about.
    pub by: By,
}

/// How a decision came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By the rule of a policy that learns nothing.
    Rule,
    /// The least score.
    Score,
    /// Another one that scores nearly as well, to learn more of it.
    Exploring,
    /// An idle agent of which there is no trusted estimate, to get one.
    Probing,
    /// The safe rule, because the estimates have not proved themselves.
    Untrusted,
    /// The safe rule, because the guard had it decide.
    Guarded,
    /// The safe rule, because somebody wants it.
    Wanted,
    /// No single place: it was divided among all that had nothing to do.
    Dividing,
}

impl By {
    /// The word used in the API.
    pub fn name(self) -> &'static str {
        match self {
            By::Rule => "rule",
            By::Score => "score",
            By::Exploring => "exploring",
            By::Probing => "probing",
            By::Untrusted => "untrusted",
            By::Guarded => "guarded",
            By::Wanted => "wanted",
            By::Dividing => "dividing",
        }
    }
}

/// What a policy that compares scores made of a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// What the task would take there, ns.
    pub time_ns: f32,
    /// What a nanosecond of waiting there costs those that come after, per ns.
    pub price: f32,
    /// Both and what the agent has to do before, ns; the least wins.
    pub score_ns: f32,
}

impl Placement {
    /// A choice that left nothing to chance.
    pub fn at(index: usize) -> Self {
        Self { at: index, expected_ns: None, probability: 1.0, by: By::Rule }
    }
}

/// A task that ended well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// Code of its kernel.
    pub kernel: u8,
    /// Binary logarithm of the work, in elements.
    pub log2_size: f32,
    /// Where it ran.
    pub slot: AgentSlot,
    /// What that agent computes with.
    pub backend: u8,
    /// Time on the agent, by the agent's own clock, ns.
    pub service_ns: f64,
    /// From being queued to the end, ns.
    pub total_ns: f64,
    /// What the hand-overs to the agent and back took, ns; `None` when it had to wait for others there, which hides that.
    pub overhead_ns: Option<f64>,
    /// The time, ns.
    pub now_ns: u64,
}

/// Who decides, under a policy that learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The learned policy, under its guards.
    #[default]
    Learned,
    /// The learned policy, with a model that learns no more.
    Frozen,
    /// The same rule over the table of costs that candidates carry, without the model.
    Static,
    /// The safe rule.
    Safe,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 4] = [Mode::Learned, Mode::Frozen, Mode::Static, Mode::Safe];

    /// `learned`, `frozen`, `static`, `safe`.
    pub fn name(self) -> &'static str {
        ["learned", "frozen", "static", "safe"][self as usize]
    }

    /// The mode with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How a policy that learns stands: for reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Who decides.
    pub mode: Mode,
    /// Whether the guard has the safe rule decide at the moment.
    pub is_guarded: bool,
    /// How often it took over.
    pub alarms: u32,
    /// Tasks that went by the safe rule because of it.
    pub guarded_tasks: u64,
    /// Mean error of the model's estimates, in logarithms, and how many tasks it rests on.
    pub error: f32,
    /// See `error`.
    pub samples: u64,
}

/// What a policy has learned, for a later life.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learning {
    /// What tasks cost.
    pub costs: Vec<LearnedCost>,
    /// Mean error of the estimates, in logarithms, and how many tasks it rests on.
    pub error: f32,
    /// See `error`.
    pub samples: u64,
}

/// What tasks of one kernel and size class cost on agents of a backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnedCost {
    /// Code of the kernel.
    pub kernel: u8,
    /// Size class.
    pub class: u8,
    /// What they are computed with.
    pub backend: u8,
    /// Time on the agent, ns.
    pub ns: f64,
}

/// Work in tiny tasks that shares a hand-over, unless a policy wants less bound early, ns.
pub const SPAN_NS: f64 = 2_000_000.0;

/// Decides which agent gets a task. No clock, no I/O, no allocation.
pub trait Placer: Send {
    /// A look at what waits begins: what was planned in the last one is void.
    fn begin(&mut self, _now_ns: u64) {}

    /// How much later than this one a task may be queued and still go before it, ns, but for what the other allows in
    /// turn: tasks go in the order of queueing plus patience. 0 is first come, first served.
    fn patience_ns(&self, _ask: &Ask) -> f64 {
        0.0
    }

    /// The place for this task, or `None` when it had better wait.
    fn place(&mut self, ask: &Ask, candidates: &[Candidate]) -> Option<Placement>;

    /// What the last [`place`](Self::place) made of this candidate, if it came to compare scores.
    fn scored(&self, _at: usize) -> Option<Scored> {
        None
    }

    /// A fresh agent sits in this slot.
    fn joined(&mut self, _slot: AgentSlot) {}

    /// An agent was given a part of a task, which no policy is asked about, and is thought to need so long for it.
    fn occupied(&mut self, _slot: AgentSlot, _expected_ns: f64, _now_ns: u64) {}

    /// A task came back.
    fn finished(&mut self, _finished: &Finished) {}

    /// Tasks that an agent may hold: few keep the choice open, many hide the way there.
    fn window(&self) -> usize {
        usize::MAX
    }

    /// Work in tiny tasks, ns, beyond which an agent gets no more of them: as much as hides the way there. Whatever is more
    /// has been bound too early.
    fn span_ns(&self) -> f64 {
        SPAN_NS
    }

    /// How it stands, if it learns.
    fn standing(&self) -> Option<Standing> {
        None
    }

    /// What it has learned, if it does.
    fn learning(&self) -> Option<Learning> {
        None
    }

    /// Goes on with what was learned in another life, as far as it makes sense.
    fn recall(&mut self, _learning: &Learning) {}

    /// Has somebody else decide. Whether that can be: only a policy that learns has modes.
    fn set_mode(&mut self, _mode: Mode) -> bool {
        false
    }

    /// How many waiting tasks it wants to see in one turn. With 1, whoever must wait holds up all behind.
    fn lookahead(&self) -> usize {
        1
    }

    /// The policy's name in configuration and reports.
    fn name(&self) -> &'static str;
}

/// What is left of a task that was expected to take `expected_ns` and has run for `elapsed_ns`. One that is overdue
/// has shown that nobody knows: it is taken to need as long again as it is late, which is visible long before its end.
pub fn remaining_ns(expected_ns: f64, elapsed_ns: f64) -> f64 {
    if elapsed_ns < expected_ns {
        expected_ns - elapsed_ns
    } else {
        (elapsed_ns - expected_ns).max(0.1 * expected_ns)
    }
}
