//! `expr`: an expression over arrays, such as `sin(x)*y + 0.5*z*z`, in one pass and without intermediate
//! arrays.
//!
//! 1. `parse` turns the text into terms; a job's check stops there.
//! 2. `graph` gives the terms types, computes what is constant and keeps equal operations once.
//! 3. `lower` writes functions as polynomials, `emit` turns the rest into machine code with `encode`, `code`
//!    keeps it for the next call. All of that takes some ten microseconds.
//! 4. [`expr`] walks over the broadcast arrays, in pieces; `interpret` does what no code was made for.
//!
//! Why machine code of our own: `sin(x)*y + 0.5*z*z` over 10,000 `f64` in cache, in 10^9 elements per second
//! on one core (EPYC, Zen 4): AVX-512 1.38, AVX2 0.81, this interpreter 0.03, NumPy 2.4 0.09. A general code
//! generator (Cranelift) stops at 128-bit vectors and takes ten times as long to compile, 35 us being ours.
//!
//! Error: every operation rounds once, in the order written, as in NumPy; compiled code and interpreter give
//! the same bits. `exp`, `log`, `sin`, `cos` and `tanh` of `f64` are within 4 ulp, those of `f32` are made in
//! `f64` and rounded once, but for sines and cosines where the whole expression is of 32 bits: compiled code makes
//! these in `f32`, within 4 ulp, from arguments below 65,536. Zeros may lose their sign in `sin`. Sums are those of blocks of 4,096 elements.

#[cfg(target_arch = "x86_64")]
mod code;
#[cfg(target_arch = "x86_64")]
mod emit;
#[cfg(target_arch = "x86_64")]
mod encode;
mod graph;
mod interpret;
#[cfg(target_arch = "x86_64")]
mod lower;
mod parse;
mod reduce;
#[cfg(test)]
mod tests;

pub(super) use parse::{NAMES_MAX, TEXT_BYTES_MAX};

use serde_json::Value;

use self::graph::{Op, Program, Type};
use self::interpret::{Interpreter, Source};
use self::parse::{Problem, Reduction, Syntax};
use self::reduce::Running;
use super::simd::Stores;
use super::{BLOCK, Call, KernelError, KernelId, Level, Outcome, ParamError, Params, number};
use crate::arrays::{DType, Shape};

/// Elements between two looks at what a reduction and the argument checks have come to.
const PIECE: usize = 4096;
/// Names of the arrays when none are given.
const NAMES: [&str; NAMES_MAX] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

/// Whether `names`, separated by commas, can name arrays.
pub(super) fn are_names(names: &str) -> bool {
    let names: Vec<&str> = names.split(',').collect();
    names.len() <= NAMES_MAX
        && names.iter().enumerate().all(|(at, name)| parse::is_name(name) && !names[..at].contains(name))
}

/// Checks the expression as far as it goes without knowing the arrays.
///
/// # Errors
/// [`ParamError::Expression`].
pub(super) fn check(params: &Params) -> Result<(), ParamError> {
    syntax(params).map(|_| ())
}

/// Whether the expression yields an array rather than one value.
pub(super) fn yields_array(params: &Params) -> bool {
    syntax(params).is_ok_and(|syntax| syntax.reduction().is_none())
}

fn syntax(params: &Params) -> Result<Syntax, ParamError> {
    let given = params.text("names").map(|names| names.split(',').collect::<Vec<_>>());
    let text = params.text("expr").unwrap_or_default();
    parse::parse(text, given.as_deref().unwrap_or(&NAMES)).map_err(|problem| refusal(text, problem))
}

/// A problem with its place counted in characters, as people do.
fn refusal(text: &str, Problem { at, text: problem }: Problem) -> ParamError {
    let place = text.get(..at).map_or(0, |before| before.chars().count()) + 1;
    ParamError::Expression { kernel: KernelId::Expr, place, problem }
}

/// The expression over the broadcast inputs: an array, or the value of its reduction.
pub(super) fn expr(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let text = call.params.text("expr").unwrap_or_default();
    if let Some(names) = call.params.text("names") {
        let (named, given) = (names.split(',').count(), call.inputs.len());
        if named != given {
            return Err(
                call.wrong_value(format!("parameter `names` names {named} arrays, {given} are given"))
            );
        }
    }
    let syntax = syntax(call.params)?;
    let types: Vec<Type> = call.inputs.iter().map(|input| type_of(input.dtype())).collect();
    let program = graph::build(&syntax, &types).map_err(|problem| refusal(text, problem))?;
    let (shape, walk) = broadcast(call)?;
    let count = walk.inner.saturating_mul(walk.rows());

    let root = program.nodes[program.root].ty;
    let dtype = match root {
        Type::Bool => DType::U8,
        Type::I32 => DType::I32,
        Type::I64 => DType::I64,
        Type::F32 => DType::F32,
        Type::F64 => DType::F64,
    };
    let mut array = match program.reduction {
        None => Some(call.answer(dtype, &shape)?),
        Some(_) => None,
    };
    let mut running = Running::new(program.reduction.unwrap_or(Reduction::Any), root);
    let target = array.as_mut().map_or(&mut [][..], |array| array.bytes_mut());
    if count > 0 {
        walk.run(call, &program, target, &mut running)?;
    }
    let result = program.reduction.map(|how| value(call, how, running, count)).transpose()?;
    let operations = program.nodes.iter().filter(|node| !matches!(node.op, Op::Input(_) | Op::Const(_)));
    let flops = operations.count() as f64 * count as f64;
    Ok(Outcome { array, result, flops, ..Outcome::default() })
}

fn type_of(dtype: DType) -> Type {
    match dtype {
        DType::F32 => Type::F32,
        DType::I32 => Type::I32,
        DType::I64 => Type::I64,
        _ => Type::F64,
    }
}

fn value(call: &Call<'_>, how: Reduction, running: Running, count: usize) -> Result<Value, KernelError> {
    if count == 0 && matches!(how, Reduction::Min | Reduction::Max | Reduction::Mean) {
        return Err(call.wrong_value(format!("`{how}` of no elements, needs one or more")));
    }
    Ok(match (how, running.value) {
        (Reduction::All, reduce::Value::Any(any)) => Value::from(!any),
        (_, reduce::Value::Any(any)) => Value::from(any),
        (_, reduce::Value::Whole(whole)) => Value::from(whole),
        (Reduction::Mean, reduce::Value::Real(total)) => number(total.value() / count as f64),
        (_, reduce::Value::Real(total)) => number(total.value()),
    })
}

/// The way over all elements: rows in which every input goes forward by one element or stands still.
struct Walk {
    /// Elements of a row.
    inner: usize,
    /// Inputs that stand still in a row, a bit each.
    repeated: u16,
    /// The other axes, outermost first: their length and the step of each input.
    axes: Vec<(usize, Vec<usize>)>,
}

/// NumPy's broadcasting: shapes are aligned at their last axis, and a length of 1 fits any.
fn broadcast(call: &Call<'_>) -> Result<(Vec<usize>, Walk), KernelError> {
    let ndim = call.inputs.iter().map(|input| input.shape().len()).max().unwrap_or(0);
    let mut shape = vec![1; ndim];
    for (index, input) in call.inputs.iter().enumerate() {
        for (length, &own) in shape.iter_mut().rev().zip(input.shape().iter().rev()) {
            if *length == 1 {
                *length = own;
            } else if own != 1 && own != *length {
                let so_far = "a shape that broadcasts with those before it, which make";
                return Err(call.wrong_shape(index, format!("{so_far} {}", Shape(&shape))));
            }
        }
    }
    // From the innermost axis on; neighbours that every input passes in one go become one.
    let mut axes: Vec<(usize, Vec<usize>)> = Vec::new();
    let mut strides = vec![1_usize; call.inputs.len()];
    for (back, &length) in shape.iter().rev().enumerate() {
        let mut steps = Vec::with_capacity(strides.len());
        for (input, stride) in call.inputs.iter().zip(&mut strides) {
            let own = input.shape().iter().rev().nth(back).copied().unwrap_or(1);
            steps.push(if own == 1 { 0 } else { *stride });
            *stride = stride.saturating_mul(own);
        }
        match axes.last_mut() {
            _ if length == 1 => {}
            Some((inner, inner_steps))
                if steps
                    .iter()
                    .zip(&*inner_steps)
                    .all(|(step, below)| *step == below.saturating_mul(*inner)) =>
            {
                *inner = inner.saturating_mul(length);
            }
            _ => axes.push((length, steps)),
        }
    }
    let (inner, steps) = if axes.is_empty() { (1, vec![0; strides.len()]) } else { axes.remove(0) };
    axes.reverse();
    let repeated = steps.iter().enumerate().fold(0, |bits, (at, step)| bits | u16::from(*step == 0) << at);
    Ok((shape, Walk { inner, repeated, axes }))
}

impl Walk {
    fn rows(&self) -> usize {
        self.axes.iter().fold(1, |rows, (length, _)| rows.saturating_mul(*length))
    }

    fn run(
        &self,
        call: &Call<'_>,
        program: &Program,
        target: &mut [u8],
        running: &mut Running,
    ) -> Result<(), KernelError> {
        let root = program.nodes[program.root].ty;
        // Pieces begin on boundaries where rows do, and an array begins on one.
        let has_boundaries = self.rows() == 1 || self.inner.saturating_mul(root.size()).is_multiple_of(64);
        let streams = has_boundaries
            && root != Type::Bool
            && program.reduction.is_none()
            && target.as_ptr().addr().is_multiple_of(64)
            && call.stores_for(target.len()) == Stores::Streaming;
        let mut engine = Engine::new(program, call.level(), self.repeated, streams);
        let sizes: Vec<usize> = call.inputs.iter().map(|input| input.dtype().size()).collect();
        let root_size = if program.reduction.is_some() { 0 } else { root.size() };
        let mut places = vec![0; self.axes.len()];
        let mut offsets = vec![0_usize; sizes.len()];
        let mut sources = Vec::with_capacity(sizes.len());
        let (mut done, mut since_beat) = (0, BLOCK);
        loop {
            for start in (0..self.inner).step_by(PIECE) {
                if since_beat >= BLOCK {
                    call.pulse.beat()?;
                    since_beat = 0;
                }
                let length = PIECE.min(self.inner - start);
                sources.clear();
                for (at, input) in call.inputs.iter().enumerate() {
                    let repeated = self.repeated >> at & 1 == 1;
                    let first = offsets[at] + if repeated { 0 } else { start };
                    sources.push(Source { bytes: &input.bytes()[first * sizes[at]..], repeated });
                }
                let output = &mut target[done * root_size..][..length * root_size];
                engine.run(&sources, length, output, running);
                done += length;
                // A row of few elements costs as much as one of some dozens.
                since_beat += length.max(64);
            }
            // The next row: the innermost axis that has not ended goes forward, those within begin anew.
            let Some(axis) = (0..places.len()).rev().find(|&axis| places[axis] + 1 < self.axes[axis].0)
            else {
                return Ok(());
            };
            places[axis] += 1;
            places[axis + 1..].fill(0);
            for (at, offset) in offsets.iter_mut().enumerate() {
                *offset = places.iter().zip(&self.axes).map(|(place, (_, steps))| place * steps[at]).sum();
            }
        }
    }
}

/// What runs a program: compiled code where there is some, and the interpreter.
struct Engine<'p> {
    #[cfg(target_arch = "x86_64")]
    code: Code,
    program: &'p Program,
    interpreter: Option<Interpreter<'p>>,
}

/// Compiled code, from the one tried first to the one that goes farthest.
#[cfg(target_arch = "x86_64")]
struct Code {
    form: code::Form,
    narrow: Option<std::sync::Arc<code::Compiled>>,
    /// Looked for when it is needed.
    wide: Option<Option<std::sync::Arc<code::Compiled>>>,
    frame: Box<emit::Frame>,
}

#[cfg(target_arch = "x86_64")]
impl Code {
    fn new(program: &Program, level: Level, repeated: u16, streams: bool) -> Code {
        let form = code::Form { level, repeated, streams, is_narrow: false };
        let narrow = code::compiled(program, code::Form { is_narrow: true, ..form });
        Code { form, narrow, wide: None, frame: Box::new(emit::Frame::new()) }
    }

    fn run(
        &mut self,
        program: &Program,
        sources: &[Source<'_>],
        count: usize,
        output: &mut [u8],
        running: &mut Running,
    ) -> bool {
        if let Some(narrow) = &self.narrow
            && narrow.run(&mut self.frame, sources, count, output, running)
        {
            return true;
        }
        let wide = self.wide.get_or_insert_with(|| code::compiled(program, self.form));
        if let Some(wide) = wide
            && wide.run(&mut self.frame, sources, count, output, running)
        {
            return true;
        }
        // The interpreter writes where code that streams has written.
        if self.form.streams {
            code::fence();
        }
        false
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Code {
    fn drop(&mut self) {
        if self.form.streams {
            code::fence();
        }
    }
}

impl<'p> Engine<'p> {
    #[cfg(target_arch = "x86_64")]
    fn new(program: &'p Program, level: Level, repeated: u16, streams: bool) -> Engine<'p> {
        Engine { code: Code::new(program, level, repeated, streams), program, interpreter: None }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn new(program: &'p Program, _: Level, _: u16, _: bool) -> Engine<'p> {
        Engine { program, interpreter: None }
    }

    fn run(&mut self, sources: &[Source<'_>], count: usize, output: &mut [u8], running: &mut Running) {
        #[cfg(target_arch = "x86_64")]
        if self.code.run(self.program, sources, count, output, running) {
            return;
        }
        let interpreter = self.interpreter.get_or_insert_with(|| Interpreter::new(self.program));
        interpreter.run(sources, count, output, running);
    }
}
