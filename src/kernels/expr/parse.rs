//! Text to terms: the grammar of expressions.
//!
//! Operators and their binding are Python's, from loose to tight: comparisons (not chained), `|`, `&`, `+ -`,
//! `* /`, unary `- + ~`, `**`. Terms stand in one list, each after those it is made of, so nothing that works
//! on them recurses.
//!
//! Invariants
//! 1. No text makes this panic: its length and the depth of its nesting are bounded.
//! 2. A reduction is the last term or none.

use std::fmt;

/// Longest expression, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most arrays an expression may name.
pub const NAMES_MAX: usize = 16;
/// Deepest nesting of operations; a parenthesis is one or two.
const DEPTH_MAX: usize = 200;

/// What is wrong with an expression, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Bytes before the place.
    pub at: usize,
    /// What is wrong there.
    pub text: String,
}

/// Place of a term in its list.
pub type TermId = usize;

/// One operation as written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Name(usize),
    Int(i64),
    Float(f64),
    Unary(Function, TermId),
    Binary(Function, TermId, TermId),
    Where(TermId, TermId, TermId),
    Reduce(Reduction, TermId),
}

/// A term and the bytes before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    pub kind: Kind,
    pub at: usize,
}

/// Every operator and function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Add,
    Sub,
    Mul,
    Div,
    Power,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Not,
    Neg,
    Plus,
    Min,
    Max,
    Abs,
    Sqrt,
    Exp,
    Log,
    Sin,
    Cos,
    Tanh,
    Floor,
    Ceil,
    F32,
    F64,
    I32,
    I64,
    Bool,
}

/// How all elements become one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    Sum,
    Mean,
    Min,
    Max,
    Any,
    All,
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Reduction::Sum => "sum",
            Reduction::Mean => "mean",
            Reduction::Min => "min",
            Reduction::Max => "max",
            Reduction::Any => "any",
            Reduction::All => "all",
        };
        f.write_str(name)
    }
}

/// Functions of one argument that give an element for an element.
const FUNCTIONS: &[(&str, Function)] = &[
    ("abs", Function::Abs),
    ("sqrt", Function::Sqrt),
    ("exp", Function::Exp),
    ("log", Function::Log),
    ("sin", Function::Sin),
    ("cos", Function::Cos),
    ("tanh", Function::Tanh),
    ("floor", Function::Floor),
    ("ceil", Function::Ceil),
    ("f32", Function::F32),
    ("f64", Function::F64),
    ("i32", Function::I32),
    ("i64", Function::I64),
    ("bool", Function::Bool),
];
/// Reductions; `min` and `max` of two arguments are functions.
const REDUCTIONS: &[(&str, Reduction)] = &[
    ("sum", Reduction::Sum),
    ("mean", Reduction::Mean),
    ("min", Reduction::Min),
    ("max", Reduction::Max),
    ("any", Reduction::Any),
    ("all", Reduction::All),
];
/// Operators of two operands and how tightly they bind; longer ones before their own beginnings.
const OPERATORS: &[(&str, u8, Function)] = &[
    ("==", COMPARISON, Function::Eq),
    ("!=", COMPARISON, Function::Ne),
    ("<=", COMPARISON, Function::Le),
    (">=", COMPARISON, Function::Ge),
    ("<", COMPARISON, Function::Lt),
    (">", COMPARISON, Function::Gt),
    ("|", 2, Function::Or),
    ("&", 3, Function::And),
    ("+", 4, Function::Add),
    ("-", 4, Function::Sub),
    ("**", POWER, Function::Power),
    ("*", 5, Function::Mul),
    ("/", 5, Function::Div),
];
const COMPARISON: u8 = 1;
const POWER: u8 = 6;

/// A parsed expression; its last term is the whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Syntax {
    pub terms: Vec<Term>,
}

impl Syntax {
    /// The reduction that the whole is.
    pub fn reduction(&self) -> Option<Reduction> {
        match self.terms.last()?.kind {
            Kind::Reduce(reduction, _) => Some(reduction),
            _ => None,
        }
    }
}

/// Whether `name` may name an array: a word that is no function.
pub fn is_name(name: &str) -> bool {
    let taken = FUNCTIONS.iter().map(|(word, _)| *word).chain(REDUCTIONS.iter().map(|(word, _)| *word));
    word_length(name) == name.len() && !name.is_empty() && !taken.chain(["where"]).any(|word| word == name)
}

fn word_length(text: &str) -> usize {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// Reads `text`, in which arrays are called `names`.
///
/// # Errors
/// The first [`Problem`].
pub fn parse(text: &str, names: &[&str]) -> Result<Syntax, Problem> {
    if text.len() > TEXT_BYTES_MAX {
        let text = format!("the expression has {} bytes, at most {TEXT_BYTES_MAX} are allowed", text.len());
        return Err(Problem { at: 0, text });
    }
    let mut parser = Parser { text, at: 0, names, depth: 0, terms: Vec::new() };
    parser.operation(COMPARISON)?;
    if let Some(found) = parser.peek() {
        return Err(parser.problem(format!("found `{found}` after the end of the expression")));
    }
    let terms = parser.terms;
    let inner = &terms[..terms.len() - 1];
    if let Some((at, reduction)) = inner.iter().find_map(|term| match term.kind {
        Kind::Reduce(reduction, _) => Some((term.at, reduction)),
        _ => None,
    }) {
        let text = format!("`{reduction}` of one argument makes one value of all, so it must be outermost");
        return Err(Problem { at, text });
    }
    Ok(Syntax { terms })
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    names: &'a [&'a str],
    depth: usize,
    terms: Vec<Term>,
}

impl<'a> Parser<'a> {
    fn problem(&self, text: impl Into<String>) -> Problem {
        Problem { at: self.at, text: text.into() }
    }

    /// What comes next, spaces skipped.
    fn rest(&mut self) -> &'a str {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        rest
    }

    fn peek(&mut self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn expect(&mut self, token: &str, why: &str) -> Result<(), Problem> {
        if self.take(token) {
            return Ok(());
        }
        let found = self.peek().map_or_else(|| "the end".to_owned(), |found| format!("`{found}`"));
        Err(self.problem(format!("found {found}, needs `{token}` {why}")))
    }

    fn push(&mut self, kind: Kind, at: usize) -> TermId {
        self.terms.push(Term { kind, at });
        self.terms.len() - 1
    }

    /// Operands joined by operators that bind at least as tightly as `tightness`.
    fn operation(&mut self, tightness: u8) -> Result<TermId, Problem> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.problem(format!("nested deeper than {DEPTH_MAX}")));
        }
        let mut left = self.operand()?;
        let mut compared = false;
        loop {
            let rest = self.rest();
            let next = OPERATORS.iter().find(|(token, ..)| rest.starts_with(token));
            let Some(&(token, binds, function)) = next.filter(|(_, binds, _)| *binds >= tightness) else {
                self.depth -= 1;
                return Ok(left);
            };
            if binds == COMPARISON && std::mem::replace(&mut compared, true) {
                return Err(self.problem("comparisons do not chain; join two with `&`, each in parentheses"));
            }
            let at = self.at;
            self.at += token.len();
            // Powers join from the right, all else from the left.
            let right = self.operation(if binds == POWER { POWER } else { binds + 1 })?;
            left = self.push(Kind::Binary(function, left, right), at);
        }
    }

    /// One operand with its signs. A power binds tighter than a sign before it.
    fn operand(&mut self) -> Result<TermId, Problem> {
        self.rest();
        let at = self.at;
        let sign = [("-", Function::Neg), ("+", Function::Plus), ("~", Function::Not)]
            .into_iter()
            .find(|(token, _)| self.take(token));
        match sign {
            Some((_, function)) => {
                let inner = self.operation(POWER)?;
                Ok(self.push(Kind::Unary(function, inner), at))
            }
            None => self.primary(),
        }
    }

    fn primary(&mut self) -> Result<TermId, Problem> {
        let rest = self.rest();
        let at = self.at;
        if self.take("(") {
            let inner = self.operation(COMPARISON)?;
            self.expect(")", "to close the parenthesis")?;
            return Ok(inner);
        }
        if rest.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
            return self.number();
        }
        let word = &rest[..word_length(rest)];
        if word.is_empty() {
            let found = rest.chars().next().map_or_else(|| "the end".to_owned(), |c| format!("`{c}`"));
            return Err(self.problem(format!("found {found}, needs a number, a name or `(`")));
        }
        self.at += word.len();
        if let Some(index) = self.names.iter().position(|name| *name == word) {
            return Ok(self.push(Kind::Name(index), at));
        }
        let function = FUNCTIONS.iter().find(|(name, _)| *name == word).map(|(_, function)| *function);
        let reduction = REDUCTIONS.iter().find(|(name, _)| *name == word).map(|(_, reduction)| *reduction);
        if function.is_none() && reduction.is_none() && word != "where" {
            let names = self.names.join(", ");
            return Err(Problem { at, text: format!("`{word}` is no function, and the arrays are {names}") });
        }
        self.expect("(", &format!("after `{word}`"))?;
        let mut arguments = vec![self.operation(COMPARISON)?];
        while arguments.len() < 3 && self.take(",") {
            arguments.push(self.operation(COMPARISON)?);
        }
        self.expect(")", &format!("to end the arguments of `{word}`"))?;
        let kind = match (function, reduction, &arguments[..]) {
            (Some(function), _, &[a]) => Kind::Unary(function, a),
            (_, Some(reduction), &[a]) => Kind::Reduce(reduction, a),
            (_, Some(Reduction::Min), &[a, b]) => Kind::Binary(Function::Min, a, b),
            (_, Some(Reduction::Max), &[a, b]) => Kind::Binary(Function::Max, a, b),
            (None, None, &[a, b, c]) => Kind::Where(a, b, c),
            _ => {
                let needed = match word {
                    "where" => "3",
                    "min" | "max" => "1 or 2",
                    _ => "1",
                };
                let text = format!("`{word}` has {} arguments, needs {needed}", arguments.len());
                return Err(Problem { at, text });
            }
        };
        Ok(self.push(kind, at))
    }

    fn number(&mut self) -> Result<TermId, Problem> {
        let rest = &self.text[self.at..];
        let digits = |from: usize| {
            rest[from..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |length| from + length)
        };
        let mut end = digits(0);
        let mut whole = true;
        if rest[end..].starts_with('.') {
            (end, whole) = (digits(end + 1), false);
        }
        if rest[end..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
            let after = digits(end + 1 + sign);
            if after > end + 1 + sign {
                (end, whole) = (after, false);
            }
        }
        let text = &rest[..end];
        let kind = if whole { text.parse().map(Kind::Int).ok() } else { text.parse().map(Kind::Float).ok() };
        let kind = kind.ok_or_else(|| self.problem(format!("`{text}` is no number that fits 64 bits")))?;
        let at = self.at;
        self.at += end;
        if word_length(&self.text[self.at..]) > 0 {
            return Err(self.problem("found a letter after a number; write `*` to multiply"));
        }
        Ok(self.push(kind, at))
    }
}
