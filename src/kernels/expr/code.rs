//! Machine code that can run: pages, the call, and what was compiled before.
//!
//! Code is emitted faster than a file is opened, so nothing is kept on disk and no file has to be trusted;
//! the key is the simplified program with its types, the level, and which inputs repeat.
//!
//! Invariants
//! 1. A page is written first and made executable afterwards; it is never both.
//! 2. Code runs only on the level it was made for, over slices whose lengths were checked before.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use memmap2::{Mmap, MmapMut};

use super::emit::{self, Emitted, Frame};
use super::encode::Encoding;
use super::graph::{Op, Program, Type};
use super::interpret::Source;
use super::lower::{SIN_LIMIT, SIN_LIMIT_F32, lower};
use super::parse::Reduction;
use super::reduce::{Running, neutral};
use crate::kernels::Level;

/// Programs kept; beyond that the store begins anew.
const KEPT_MAX: usize = 256;

/// A program as machine code.
#[derive(Debug)]
pub struct Compiled {
    pages: Mmap,
    pool: Vec<u64>,
    lanes: usize,
    root: Type,
    reduction: Option<Reduction>,
    /// Type of each input that is read.
    inputs: Vec<(u8, Type)>,
    form: Form,
}

/// What code is made for, beside its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Form {
    pub level: Level,
    /// Inputs that have one element for all, a bit each.
    pub repeated: u16,
    /// Whether the output goes past the cache: see [`Compiled::run`].
    pub streams: bool,
    /// Whether sines and cosines of `f32` are made in `f32`.
    pub is_narrow: bool,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    program: Program,
    form: Form,
}

/// What was compiled in this process, what cannot be compiled included.
static KEPT: LazyLock<Mutex<HashMap<Key, Option<Arc<Compiled>>>>> = LazyLock::new(Mutex::default);

/// `program` as code in this form, from the store when it is there; `None` where there is none of it: other levels,
/// operations the level lacks, a program that is not narrow, or a system that allows no new code.
pub fn compiled(program: &Program, form: Form) -> Option<Arc<Compiled>> {
    let level = form.level;
    let encoding = match level {
        Level::Avx512 => Encoding::Evex,
        Level::Avx2 => Encoding::Vex,
        _ => return None,
    };
    // `pdep`, which spreads booleans; every processor of these levels has it, but no level says so.
    if !level.is_available() || !std::is_x86_feature_detected!("bmi2") {
        return None;
    }
    let mut kept = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let key = Key { program: program.clone(), form };
    if let Some(found) = kept.get(&key) {
        return found.clone();
    }
    if kept.len() >= KEPT_MAX {
        kept.clear();
    }
    let code = Compiled::new(program, encoding, form).map(Arc::new);
    kept.insert(key, code.clone());
    code
}

impl Compiled {
    fn new(program: &Program, encoding: Encoding, form: Form) -> Option<Compiled> {
        let lowered = lower(program, encoding == Encoding::Evex, form.is_narrow)?;
        let Emitted { code, pool, lanes } = emit::emit(&lowered, encoding, form.repeated, form.streams)?;
        let mut pages = MmapMut::map_anon(code.len()).ok()?;
        pages.copy_from_slice(&code);
        let pages = pages.make_exec().ok()?;
        let inputs = program.nodes.iter().filter_map(|node| match node.op {
            Op::Input(index) => Some((index, node.ty)),
            _ => None,
        });
        let root = program.nodes[program.root].ty;
        let (inputs, reduction) = (inputs.collect(), program.reduction);
        Some(Compiled { pages, pool, lanes, root, reduction, inputs, form })
    }

    /// Computes `count` elements into `output`, or into `running` when the program reduces. Answers `false`,
    /// with `running` as it was, when an argument was beyond what the code can do; then `output` is to be
    /// written again.
    ///
    /// Code that streams wants `output` on a boundary of 64 bytes, and [`fence`] before anybody looks at it.
    pub fn run(
        &self,
        frame: &mut Frame,
        inputs: &[Source<'_>],
        count: usize,
        output: &mut [u8],
        running: &mut Running,
    ) -> bool {
        for &(index, ty) in &self.inputs {
            let source = inputs[usize::from(index)];
            let repeated = self.form.repeated >> index & 1 == 1;
            let needed = if repeated { ty.size() } else { count.saturating_mul(ty.size()) };
            assert!(
                source.bytes.len() >= needed && source.repeated == repeated,
                "inputs[{index}] is too short"
            );
            frame.inputs[usize::from(index)] = source.bytes.as_ptr();
        }
        let written = if self.reduction.is_some() { 0 } else { count.saturating_mul(self.root.size()) };
        assert!(output.len() >= written, "the output is too short");
        let fits = !self.form.streams || output.as_ptr().addr().is_multiple_of(64);
        assert!(fits, "the output is not on a boundary");
        (frame.pool, frame.output) = (self.pool.as_ptr(), output.as_mut_ptr());
        (frame.watched, frame.any) = ([0; 8], 0);
        if let Some(how) = self.reduction {
            let bits = neutral(how, self.root);
            frame.accumulator =
                [if self.root.size() == 4 { bits << 32 | bits & 0xFFFF_FFFF } else { bits }; 8];
        }
        frame.set_count(count, self.lanes);
        // SAFETY: the pages hold a whole function of this convention that `emit` made for a level which the
        // processor has (`compiled` asked). It reads `count` elements of each input, or one where it repeats,
        // and writes `count` of the output: the lengths were checked just now. Beside that it writes the
        // frame, which is ours alone, and registers that the convention leaves to a called function.
        unsafe {
            let function: extern "sysv64" fn(*mut Frame) = core::mem::transmute(self.pages.as_ptr());
            function(frame);
        }
        let is_far = if self.form.is_narrow {
            bytemuck::cast_slice::<u64, f32>(&frame.watched).iter().any(|&x| x >= SIN_LIMIT_F32)
        } else {
            bytemuck::cast_slice::<u64, f64>(&frame.watched).iter().any(|&x| x >= SIN_LIMIT)
        };
        if is_far {
            return false;
        }
        match (self.reduction, self.root) {
            (None, Type::Bool) => {
                let rest = count % self.lanes;
                output[count - rest..count].copy_from_slice(&frame.tail_bytes[..rest]);
            }
            (None, _) => {}
            (Some(_), Type::Bool) => running.absorb(Type::Bool, &[u8::from(frame.any != 0)]),
            (Some(_), ty) => {
                let bytes = bytemuck::cast_slice::<u64, u8>(&frame.accumulator);
                running.absorb(ty, &bytes[..self.lanes * ty.size()]);
            }
        }
        true
    }
}

/// Ends what code that streams put off.
pub fn fence() {
    // SAFETY: every x86-64 has the instruction.
    unsafe { core::arch::x86_64::_mm_sfence() }
}
