//! What can go wrong with an agent, and what is done about it. Here the fault agent, which finds, and the supervisor,
//! which acts, mean the same: the plan of a failure is looked up, never written down twice.
//!
//! | failure | who finds it | act | its tasks | blame |
//! | --- | --- | --- | --- | --- |
//! | crash | the kernel tells the supervisor | none: it is dead | to others at once | the running task, if no one killed the agent |
//! | frozen | fault agent: stopped, two looks | kill | to others at once | nobody: it came from outside |
//! | hang | fault agent, supervisor: no progress | kill | to others at once | the running task |
//! | garbage | supervisor: nonsense in a channel | kill | to others at once | nobody |
//! | leak | fault agent: forecast of a limit | drain | finished first | nobody |
//! | drift | fault agent: slower and slower | drain | finished first | nobody |
//! | errors | fault agent: most tasks fail | drain | finished first | nobody |
//! | restarts | fault agent: deaths come faster and faster | drain | finished first | nobody |
//! | crash loop | supervisor: too many deaths by its own doing | bench | to others | nobody |
//! | poison | ledger: agents die of one task | fail the task | it is ended, with the evidence | the task |
//!
//! Every dead agent has a successor: a compute agent a standby at once, if one is ready; else by the rules of
//! `supervisor::restart`, where kills from outside do not count.

use std::fmt::Write as _;

/// A class of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// Its process ended by itself or by somebody else's hand.
    Crash = 1,
    /// Its process was stopped from outside.
    Frozen = 2,
    /// It makes no progress.
    Hang = 3,
    /// It wrote what no correct process writes.
    Garbage = 4,
    /// It is about to use up its memory or its descriptors.
    Leak = 5,
    /// It becomes slower and slower.
    Drift = 6,
    /// Most of its tasks fail.
    Errors = 7,
    /// It dies more and more often.
    Restarts = 8,
    /// It crashed, hung or failed to start too often within the window of the restart rules.
    CrashLoop = 9,
    /// A task kills whoever runs it.
    Poison = 10,
}

/// What is done with the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing is left to do.
    None,
    /// It is killed; its tasks go to others at once.
    Kill,
    /// It finishes what it holds and gets no more; then it is replaced.
    Drain,
    /// It is left alone for a while.
    Bench,
    /// Not the agent but the task is ended.
    FailTask,
}

/// What is done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// With the agent.
    pub act: Act,
    /// Whether the death counts against the task that ran: see `tasks.poison_deaths`.
    pub blames_task: bool,
}

impl Failure {
    /// All of them.
    pub const ALL: [Failure; 10] = [
        Failure::Crash,
        Failure::Frozen,
        Failure::Hang,
        Failure::Garbage,
        Failure::Leak,
        Failure::Drift,
        Failure::Errors,
        Failure::Restarts,
        Failure::CrashLoop,
        Failure::Poison,
    ];

    /// The failure with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|failure| *failure as u8 == code)
    }

    /// The stable word.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Crash => "crash",
            Failure::Frozen => "frozen",
            Failure::Hang => "hang",
            Failure::Garbage => "garbage",
            Failure::Leak => "leak",
            Failure::Drift => "drift",
            Failure::Errors => "errors",
            Failure::Restarts => "restarts",
            Failure::CrashLoop => "crash_loop",
            Failure::Poison => "poison",
        }
    }

    /// The recovery plan.
    pub fn plan(self) -> Plan {
        let plan = |act, blames_task| Plan { act, blames_task };
        match self {
            Failure::Crash => plan(Act::None, true),
            Failure::Frozen | Failure::Garbage => plan(Act::Kill, false),
            Failure::Hang => plan(Act::Kill, true),
            Failure::Leak | Failure::Drift | Failure::Errors | Failure::Restarts => plan(Act::Drain, false),
            Failure::CrashLoop => plan(Act::Bench, false),
            Failure::Poison => plan(Act::FailTask, true),
        }
    }
}

impl Act {
    /// The stable word.
    pub fn name(self) -> &'static str {
        match self {
            Act::None => "replace",
            Act::Kill => "kill_and_replace",
            Act::Drain => "drain_and_replace",
            Act::Bench => "bench",
            Act::FailTask => "fail_task",
        }
    }
}

/// One figure that led to a verdict.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Figure {
    /// Of what: `memory_bytes`. The unit is the end of the name.
    pub name: String,
    /// How much.
    pub value: f64,
}

impl Figure {
    /// A figure.
    pub fn new(name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), value }
    }
}

/// Figures that are believed of one message.
const FIGURES_MAX: usize = 24;
/// Longest name of a figure.
const NAME_MAX: usize = 48;

/// Words and figures as one text: the words' line, then a line for each figure.
pub fn encode_finding(words: &str, figures: &[Figure]) -> String {
    let mut text = words.replace('\n', " ");
    for Figure { name, value } in figures {
        let _ = write!(text, "\n{name} {value}");
    }
    text
}

/// Takes such a text apart. Lines that are no figures are left out: another process wrote them.
pub fn decode_finding(text: &str) -> (&str, Vec<Figure>) {
    let (words, rest) = text.split_once('\n').unwrap_or((text, ""));
    let figure = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let value: f64 = value.parse().ok()?;
        (is_plain && !name.is_empty() && name.len() <= NAME_MAX && value.is_finite())
            .then(|| Figure::new(name, value))
    };
    (words, rest.lines().take(FIGURES_MAX).filter_map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_come_back() {
        for failure in Failure::ALL {
            assert_eq!(Failure::from_code(failure as u8), Some(failure));
            let same = Failure::ALL.iter().filter(|other| other.name() == failure.name()).count();
            assert_eq!(same, 1, "{}", failure.name());
        }
        assert_eq!((Failure::from_code(0), Failure::from_code(11)), (None, None));
    }

    #[test]
    fn the_table_on_top_of_this_file_is_the_plan() {
        let source = include_str!("failure.rs");
        for failure in Failure::ALL {
            let name = failure.name().replace('_', " ");
            let row =
                source.lines().find(|line| line.starts_with(&format!("//! | {name} |"))).expect("a row");
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let act = match failure.plan().act {
                Act::None => "none",
                Act::Kill => "kill",
                Act::Drain => "drain",
                Act::Bench => "bench",
                Act::FailTask => "fail the task",
            };
            assert!(cells[3].starts_with(act), "{row}");
            assert_eq!(!cells[5].starts_with("nobody"), failure.plan().blames_task, "{row}");
        }
    }

    #[test]
    fn findings_travel_and_nonsense_is_left_out() {
        let figures = [Figure::new("memory_bytes", 1.5e9), Figure::new("left_s", 12.25)];
        let text = encode_finding("memory\nleaks", &figures);
        assert_eq!(decode_finding(&text), ("memory leaks", figures.to_vec()));
        let (words, figures) = decode_finding("why\nx\n 1\nname NaN\nna/me 1\nok 2\nvery 1 2");
        assert_eq!((words, figures), ("why", vec![Figure::new("ok", 2.0)]));
        assert_eq!(decode_finding(""), ("", vec![]));
        let many = "\na 1".repeat(1000);
        assert_eq!(decode_finding(&many).1.len(), FIGURES_MAX);
    }
}
