//! Terms to typed operations, each written once: type check, promotion and simplification.
//!
//! Types follow NumPy's rules of promotion, with these words for the corners: `/` and the functions of real
//! numbers turn integers into `f64`; any integer beside `f32` gives `f64`; `bool` counts as `i64` in
//! arithmetic; a literal takes the type of what stands beside it, but a literal with a point turns integers
//! into `f64`.
//!
//! Nothing here changes a result: constants are computed by the interpreter itself, equal operations become
//! one, and only identities that hold for every number are used (`x * 1`, not `x + 0`, which loses a sign).

use std::collections::HashMap;

use super::interpret;
use super::parse::{Function, Kind, Problem, Reduction, Syntax, TermId};

/// Type of an operation's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    Bool,
    I32,
    I64,
    F32,
    F64,
}

impl Type {
    /// Bytes of one element in an array.
    pub fn size(self) -> usize {
        match self {
            Type::Bool => 1,
            Type::I32 | Type::F32 => 4,
            Type::I64 | Type::F64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Type::F32 | Type::F64)
    }

    pub fn name(self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::I32 => "i32",
            Type::I64 => "i64",
            Type::F32 => "f32",
            Type::F64 => "f64",
        }
    }
}

/// An operation's place in its list.
pub type Id = usize;

/// What an operation does. Those from `MulAdd` on exist only after [`super::lower`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    Input(u8),
    /// The bits of the value, in the low bytes.
    Const(u64),
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Neg,
    Abs,
    Sqrt,
    Floor,
    Ceil,
    Exp,
    Log,
    Sin,
    Cos,
    Tanh,
    Eq,
    Ne,
    Lt,
    Le,
    And,
    Or,
    Not,
    /// `args[0] ? args[1] : args[2]`.
    Select,
    Cast,
    /// `args[0] * args[1] + args[2]`, rounded once.
    MulAdd,
    /// `args[2] - args[0] * args[1]`, rounded once.
    NegMulAdd,
    /// The lesser or greater by one instruction: the second where one is NaN.
    RawMin,
    RawMax,
    /// On the bits of vectors, whatever their type.
    BitAnd,
    BitXor,
    BitOr,
    ShiftLeft(u8),
    ShiftRight(u8),
    /// Keeps the greatest magnitude seen, for the caller to look at.
    Watch,
    /// The reduction so far.
    Accumulator,
    /// `args[0]`, or `args[1]` in lanes beyond the last element.
    Valid,
}

/// One operation. Unused arguments are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    pub op: Op,
    pub ty: Type,
    pub args: [Id; 3],
}

impl Op {
    /// How many arguments count.
    pub fn arity(self) -> usize {
        match self {
            Op::Input(_) | Op::Const(_) | Op::Accumulator => 0,
            Op::Neg | Op::Abs | Op::Sqrt | Op::Floor | Op::Ceil | Op::Exp | Op::Log | Op::Sin | Op::Cos => 1,
            Op::Tanh | Op::Not | Op::Cast | Op::ShiftLeft(_) | Op::ShiftRight(_) | Op::Watch => 1,
            Op::Select | Op::MulAdd | Op::NegMulAdd => 3,
            _ => 2,
        }
    }
}

impl Node {
    pub fn arguments(&self) -> &[Id] {
        &self.args[..self.op.arity()]
    }
}

/// A typed expression: operations, each after its arguments, none twice.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    known: HashMap<Node, Id>,
}

impl Graph {
    pub fn ty(&self, id: Id) -> Type {
        self.nodes[id].ty
    }

    /// The operation, found again or added.
    pub fn push(&mut self, op: Op, ty: Type, args: &[Id]) -> Id {
        let mut node = Node { op, ty, args: [0; 3] };
        node.args[..args.len()].copy_from_slice(args);
        *self.known.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }

    pub fn constant(&mut self, bits: u64, ty: Type) -> Id {
        self.push(Op::Const(bits), ty, &[])
    }

    fn bits(&self, id: Id) -> Option<u64> {
        match self.nodes[id].op {
            Op::Const(bits) => Some(bits),
            _ => None,
        }
    }

    /// Whether `id` is the constant `value` of its type.
    fn is(&self, id: Id, value: f64) -> bool {
        self.bits(id).is_some_and(|bits| bits == constant_bits(value, self.ty(id)))
    }

    /// Only what `root` needs, in order.
    pub fn reachable(&self, root: Id) -> (Vec<Node>, Id) {
        let mut wanted = vec![false; self.nodes.len()];
        wanted[root] = true;
        for id in (0..self.nodes.len()).rev() {
            // What watches has no reader.
            wanted[id] |= self.nodes[id].op == Op::Watch;
            if wanted[id] {
                self.nodes[id].arguments().iter().for_each(|&arg| wanted[arg] = true);
            }
        }
        let mut places = vec![0; self.nodes.len()];
        let mut kept = Vec::new();
        for (id, node) in self.nodes.iter().enumerate().filter(|(id, _)| wanted[*id]) {
            places[id] = kept.len();
            let mut node = *node;
            let arity = node.op.arity();
            node.args[..arity].iter_mut().for_each(|arg| *arg = places[*arg]);
            kept.push(node);
        }
        (kept, places[root])
    }

    /// The operation, simplified.
    fn add(&mut self, op: Op, ty: Type, args: &[Id]) -> Id {
        if op == Op::Cast && self.ty(args[0]) == ty {
            return args[0];
        }
        let mut args = args.to_vec();
        if matches!(op, Op::Add | Op::Mul | Op::Eq | Op::Ne | Op::And | Op::Or) {
            args.sort_unstable();
        }
        if let Some(bits) = args.iter().map(|&id| self.bits(id)).collect::<Option<Vec<_>>>() {
            let bits = interpret::fold(op, ty, self.ty(args[0]), &bits);
            return self.constant(bits, ty);
        }
        match (op, &args[..]) {
            (Op::Mul, &[a, b]) if self.is(a, 1.0) => return b,
            (Op::Mul | Op::Div, &[a, b]) if self.is(b, 1.0) => return a,
            (Op::Sub, &[a, b]) if self.is(b, 0.0) => return a,
            (Op::Neg | Op::Not, &[a]) if self.nodes[a].op == op => return self.nodes[a].args[0],
            (Op::And | Op::Or, &[a, b]) if a == b => return a,
            (Op::Select, &[_, a, b]) if a == b => return a,
            (Op::Select, &[condition, a, b]) => {
                if let Some(bits) = self.bits(condition) {
                    return if bits != 0 { a } else { b };
                }
            }
            (Op::Div, &[a, b]) => {
                // Multiplying by the inverse of a power of two is exact, and an inverse that is normal too.
                let inverse = self.bits(b).and_then(|bits| exact_inverse(bits, ty));
                if let Some(inverse) = inverse {
                    let inverse = self.constant(inverse, ty);
                    return self.add(Op::Mul, ty, &[a, inverse]);
                }
            }
            _ => {}
        }
        self.push(op, ty, &args)
    }

    fn cast(&mut self, id: Id, ty: Type) -> Id {
        self.add(Op::Cast, ty, &[id])
    }
}

/// The bits of `value` as `ty`.
pub fn constant_bits(value: f64, ty: Type) -> u64 {
    match ty {
        Type::Bool => u64::from(value != 0.0),
        Type::I32 => u64::from(value as i32 as u32),
        Type::I64 => value as i64 as u64,
        Type::F32 => u64::from((value as f32).to_bits()),
        Type::F64 => value.to_bits(),
    }
}

fn exact_inverse(bits: u64, ty: Type) -> Option<u64> {
    match ty {
        Type::F64 => {
            let value = f64::from_bits(bits);
            let exact = bits << 12 == 0 && value.is_normal() && value.recip().is_normal();
            exact.then(|| value.recip().to_bits())
        }
        Type::F32 => {
            let value = f32::from_bits(bits as u32);
            let exact = bits << 41 == 0 && value.is_normal() && value.recip().is_normal();
            exact.then(|| u64::from(value.recip().to_bits()))
        }
        _ => None,
    }
}

/// An expression ready to run: simplified, with what it needs and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    pub nodes: Vec<Node>,
    /// What each element becomes, before any reduction.
    pub root: Id,
    pub reduction: Option<Reduction>,
}

/// A term's operation and how firm its type is.
#[derive(Clone, Copy)]
struct Typed {
    id: Id,
    firm: bool,
}

/// Checks the types of `syntax` over arrays of `inputs` and simplifies it.
///
/// # Errors
/// The first [`Problem`].
pub fn build(syntax: &Syntax, inputs: &[Type]) -> Result<Program, Problem> {
    let mut builder =
        Builder { graph: Graph::default(), typed: Vec::with_capacity(syntax.terms.len()), at: 0 };
    // The inputs first, so that `b * a` and `a * b` sort alike.
    for (index, &ty) in inputs.iter().enumerate() {
        builder.graph.push(Op::Input(index as u8), ty, &[]);
    }
    let mut reduction = None;
    for term in &syntax.terms {
        builder.at = term.at;
        let typed = match term.kind {
            Kind::Name(index) => {
                let Some(&ty) = inputs.get(index) else {
                    let count = inputs.len();
                    return Err(builder.problem(format!("names inputs[{index}], but {count} are given")));
                };
                builder.firm(Op::Input(index as u8), ty, &[])
            }
            Kind::Int(value) => Typed { id: builder.graph.constant(value as u64, Type::I64), firm: false },
            Kind::Float(value) => {
                Typed { id: builder.graph.constant(value.to_bits(), Type::F64), firm: false }
            }
            Kind::Unary(function, a) => builder.unary(function, a)?,
            Kind::Binary(Function::Power, a, b) => builder.power(a, b)?,
            Kind::Binary(function, a, b) => builder.binary(function, a, b)?,
            Kind::Where(condition, a, b) => builder.select(condition, a, b)?,
            Kind::Reduce(how, a) => {
                reduction = Some(how);
                builder.reduced(how, a)
            }
        };
        builder.typed.push(typed);
    }
    let root = builder.typed.last().map_or(0, |typed| typed.id);
    let (nodes, root) = builder.graph.reachable(root);
    Ok(Program { nodes, root, reduction })
}

struct Builder {
    graph: Graph,
    typed: Vec<Typed>,
    at: usize,
}

impl Builder {
    fn problem(&self, text: impl Into<String>) -> Problem {
        Problem { at: self.at, text: text.into() }
    }

    fn firm(&mut self, op: Op, ty: Type, args: &[Id]) -> Typed {
        let id = if args.is_empty() { self.graph.push(op, ty, args) } else { self.graph.add(op, ty, args) };
        Typed { id, firm: true }
    }

    fn ty(&self, term: TermId) -> Type {
        self.graph.ty(self.typed[term].id)
    }

    /// The term as a number: `bool` counts as `i64`.
    fn number(&mut self, term: TermId) -> Typed {
        let Typed { id, firm } = self.typed[term];
        match self.graph.ty(id) {
            Type::Bool => Typed { id: self.graph.cast(id, Type::I64), firm },
            _ => Typed { id, firm },
        }
    }

    /// The term as a real number: integers become `f64`.
    fn real(&mut self, term: TermId) -> Typed {
        let Typed { id, firm } = self.typed[term];
        let id = if self.graph.ty(id).is_float() { id } else { self.graph.cast(id, Type::F64) };
        Typed { id, firm }
    }

    /// Both as one type.
    fn promoted(&mut self, a: Typed, b: Typed) -> Result<(Id, Id, Type), Problem> {
        let (of_a, of_b) = (self.graph.ty(a.id), self.graph.ty(b.id));
        let ty = match (a.firm, b.firm) {
            (true, false) => beside_literal(of_a, of_b),
            (false, true) => beside_literal(of_b, of_a),
            _ => promote(of_a, of_b),
        };
        for side in [a, b].into_iter().filter(|side| !side.firm) {
            let value = self.graph.bits(side.id).map(|bits| bits as i64);
            if let (Type::I32, Some(value)) = (ty, value)
                && i32::try_from(value).is_err()
            {
                return Err(self.problem(format!("{value} does not fit the i32 beside it; write i64( )")));
            }
        }
        Ok((self.graph.cast(a.id, ty), self.graph.cast(b.id, ty), ty))
    }

    fn unary(&mut self, function: Function, a: TermId) -> Result<Typed, Problem> {
        let given = self.typed[a];
        let cast = |ty| (Op::Cast, given, ty);
        let (op, operand, ty) = match function {
            Function::F32 => cast(Type::F32),
            Function::F64 => cast(Type::F64),
            Function::I32 => cast(Type::I32),
            Function::I64 => cast(Type::I64),
            Function::Bool => cast(Type::Bool),
            Function::Not => {
                if self.ty(a) != Type::Bool {
                    return Err(self.problem(format!("`~` of {}, needs bool", self.ty(a).name())));
                }
                (Op::Not, given, Type::Bool)
            }
            Function::Plus => return Ok(self.number(a)),
            Function::Neg | Function::Abs => {
                let operand = self.number(a);
                let op = if function == Function::Neg { Op::Neg } else { Op::Abs };
                (op, operand, self.graph.ty(operand.id))
            }
            Function::Floor | Function::Ceil if !self.ty(a).is_float() => return Ok(self.number(a)),
            real => {
                let op = match real {
                    Function::Sqrt => Op::Sqrt,
                    Function::Exp => Op::Exp,
                    Function::Log => Op::Log,
                    Function::Sin => Op::Sin,
                    Function::Cos => Op::Cos,
                    Function::Tanh => Op::Tanh,
                    Function::Floor => Op::Floor,
                    _ => Op::Ceil,
                };
                let operand = self.real(a);
                (op, operand, self.graph.ty(operand.id))
            }
        };
        let is_cast = op == Op::Cast;
        let id = match (is_cast, ty) {
            (true, Type::Bool) => self.truth(operand.id),
            _ => self.graph.add(op, ty, &[operand.id]),
        };
        Ok(Typed { id, firm: operand.firm || is_cast })
    }

    /// Whether each element differs from zero.
    fn truth(&mut self, id: Id) -> Id {
        let ty = self.graph.ty(id);
        if ty == Type::Bool {
            return id;
        }
        let zero = self.graph.constant(0, ty);
        self.graph.add(Op::Ne, Type::Bool, &[id, zero])
    }

    fn binary(&mut self, function: Function, a: TermId, b: TermId) -> Result<Typed, Problem> {
        if matches!(function, Function::And | Function::Or) {
            for side in [a, b] {
                if self.ty(side) != Type::Bool {
                    let (sign, found) = (if function == Function::And { "&" } else { "|" }, self.ty(side));
                    return Err(self.problem(format!(
                        "`{sign}` of {}, needs bool on both sides; comparisons beside it need parentheses",
                        found.name()
                    )));
                }
            }
            let op = if function == Function::And { Op::And } else { Op::Or };
            let args = [self.typed[a].id, self.typed[b].id];
            return Ok(self.firm(op, Type::Bool, &args));
        }
        let (a, b) = match function {
            Function::Div => (self.real(a), self.real(b)),
            _ => (self.number(a), self.number(b)),
        };
        let (x, y, ty) = self.promoted(a, b)?;
        let (op, args, ty) = match function {
            Function::Add => (Op::Add, [x, y], ty),
            Function::Sub => (Op::Sub, [x, y], ty),
            Function::Mul => (Op::Mul, [x, y], ty),
            Function::Div => (Op::Div, [x, y], ty),
            Function::Min => (Op::Min, [x, y], ty),
            Function::Max => (Op::Max, [x, y], ty),
            Function::Eq => (Op::Eq, [x, y], Type::Bool),
            Function::Ne => (Op::Ne, [x, y], Type::Bool),
            Function::Lt => (Op::Lt, [x, y], Type::Bool),
            Function::Le => (Op::Le, [x, y], Type::Bool),
            Function::Gt => (Op::Lt, [y, x], Type::Bool),
            _ => (Op::Le, [y, x], Type::Bool),
        };
        let id = self.graph.add(op, ty, &args);
        Ok(Typed { id, firm: a.firm || b.firm || ty == Type::Bool })
    }

    /// A power by multiplications, so that integers stay exact; 0.5 is the square root.
    fn power(&mut self, a: TermId, b: TermId) -> Result<Typed, Problem> {
        let exponent = self.graph.bits(self.typed[b].id).map(|bits| match self.ty(b) {
            Type::F64 => f64::from_bits(bits),
            _ => bits as i64 as f64,
        });
        let base = self.number(a);
        if exponent == Some(0.5) {
            let base = self.real(a);
            let ty = self.graph.ty(base.id);
            return Ok(Typed { id: self.graph.add(Op::Sqrt, ty, &[base.id]), firm: base.firm });
        }
        let whole = exponent.filter(|value| value.fract() == 0.0 && value.abs() <= 64.0);
        let Some(exponent) = whole.filter(|_| !self.typed[b].firm) else {
            return Err(self.problem("the exponent of `**` must be 0.5 or a whole number from -64 to 64"));
        };
        let real = exponent < 0.0 || self.ty(b) == Type::F64;
        let base = if real { self.real(a) } else { base };
        let ty = self.graph.ty(base.id);
        let mut left = exponent.abs() as u32;
        let mut square = base.id;
        let mut product = self.graph.constant(constant_bits(1.0, ty), ty);
        while left > 0 {
            if left & 1 == 1 {
                product = self.graph.add(Op::Mul, ty, &[product, square]);
            }
            left >>= 1;
            if left > 0 {
                square = self.graph.add(Op::Mul, ty, &[square, square]);
            }
        }
        if exponent < 0.0 {
            let one = self.graph.constant(constant_bits(1.0, ty), ty);
            product = self.graph.add(Op::Div, ty, &[one, product]);
        }
        Ok(Typed { id: product, firm: base.firm })
    }

    fn select(&mut self, condition: TermId, a: TermId, b: TermId) -> Result<Typed, Problem> {
        let condition = self.truth(self.typed[condition].id);
        let (a, b) = (self.typed[a], self.typed[b]);
        let (x, y, ty) = self.promoted(a, b)?;
        if ty == Type::Bool {
            let not = self.graph.add(Op::Not, Type::Bool, &[condition]);
            let x = self.graph.add(Op::And, Type::Bool, &[condition, x]);
            let y = self.graph.add(Op::And, Type::Bool, &[not, y]);
            return Ok(self.firm(Op::Or, Type::Bool, &[x, y]));
        }
        Ok(self.firm(Op::Select, ty, &[condition, x, y]))
    }

    /// What a reduction adds up: sums in 64 bits, `all` as `any` of the contrary.
    fn reduced(&mut self, how: Reduction, a: TermId) -> Typed {
        let number = self.number(a);
        let id = match how {
            Reduction::Sum if !self.graph.ty(number.id).is_float() => self.graph.cast(number.id, Type::I64),
            Reduction::Sum | Reduction::Mean => self.graph.cast(number.id, Type::F64),
            Reduction::Min | Reduction::Max => number.id,
            Reduction::Any => self.truth(self.typed[a].id),
            Reduction::All => {
                let truth = self.truth(self.typed[a].id);
                self.graph.add(Op::Not, Type::Bool, &[truth])
            }
        };
        Typed { id, firm: true }
    }
}

fn promote(a: Type, b: Type) -> Type {
    let (low, high) = (a.min(b), a.max(b));
    // An f32 cannot hold every integer.
    if high == Type::F32 && matches!(low, Type::I32 | Type::I64) { Type::F64 } else { high }
}

/// The type of `firm` beside a literal.
fn beside_literal(firm: Type, literal: Type) -> Type {
    match firm {
        Type::Bool => promote(firm, literal),
        _ if firm.is_float() || !literal.is_float() => firm,
        _ => Type::F64,
    }
}
