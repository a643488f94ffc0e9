//! Machine code of a lowered program: one loop over whole vectors, and the same body once more with masks for
//! what is left.
//!
//! The body is a straight line, so registers are handed out in one pass: a value stays in its register until
//! its last use, and when none is free the one needed again farthest off goes to memory (Belady, "A study of
//! replacement algorithms for a virtual-storage computer", 1966). Constants need no memory of their own: they
//! are read from the pool again. As many as fit stand in registers before the loop begins.
//!
//! Invariants
//! 1. Code reads inputs and writes the output only in `0 .. count`, by masks in the last vector.
//! 2. It writes nothing else but the [`Frame`] and the registers that a called function may use.
//! 3. All elements take the same operations, wherever they stand.

use core::mem::offset_of;

use super::encode::{
    Code, Encoding, MAP_0F, MAP_0F3A, MAP_0F38, NONE, P66, PF2, PF3, R8, R9, R10, R11, RAX, RCX, RDI, RDX,
    RSI, Rm, Row, Width, row,
};
use super::graph::{Id, Node, Op, Type};
use super::lower::Lowered;
use super::parse::{NAMES_MAX, Reduction};

/// Values that may wait in memory at the same time.
const SLOTS_MAX: usize = 32;

/// What code and caller share. `rdi` points to it.
#[repr(C, align(64))]
pub struct Frame {
    pub accumulator: [u64; 8],
    /// Greatest magnitudes that were watched: numbers of `f64`, or twice as many of `f32`.
    pub watched: [u64; 8],
    slots: [[u64; 8]; SLOTS_MAX],
    /// Ones in the lanes of the last vector that hold elements.
    tail64: [u64; 4],
    tail32: [u32; 8],
    /// Bytes of the last vector of booleans.
    pub tail_bytes: [u8; 16],
    /// Elements in whole vectors, and all of them.
    full: u64,
    count: u64,
    /// One bit per lane: all, and those of the last vector.
    all_bits: u64,
    tail_bits: u64,
    /// Not 0 once a boolean was true.
    pub any: u64,
    pub pool: *const u64,
    pub output: *mut u8,
    pub inputs: [*const u8; NAMES_MAX],
}

impl Frame {
    pub fn new() -> Frame {
        Frame {
            accumulator: [0; 8],
            watched: [0; 8],
            slots: [[0; 8]; SLOTS_MAX],
            tail64: [0; 4],
            tail32: [0; 8],
            tail_bytes: [0; 16],
            full: 0,
            count: 0,
            all_bits: 0,
            tail_bits: 0,
            any: 0,
            pool: core::ptr::null(),
            output: core::ptr::null_mut(),
            inputs: [core::ptr::null(); NAMES_MAX],
        }
    }

    /// Makes it ready for `count` elements, `lanes` at a time.
    pub fn set_count(&mut self, count: usize, lanes: usize) {
        let rest = count % lanes;
        (self.count, self.full) = (count as u64, (count - rest) as u64);
        (self.all_bits, self.tail_bits) = ((1 << lanes) - 1, (1 << rest) - 1);
        self.tail64 = core::array::from_fn(|lane| if lane < rest { u64::MAX } else { 0 });
        self.tail32 = core::array::from_fn(|lane| if lane < rest { u32::MAX } else { 0 });
    }
}

/// Code with its constants.
#[derive(Debug)]
pub struct Emitted {
    pub code: Vec<u8>,
    pub pool: Vec<u64>,
    /// Elements of one vector.
    pub lanes: usize,
}

/// Code for `program`, whose inputs in `repeated` (a bit each) have one element for all; `None` when it needs
/// more places than there are. If it `streams`, whole vectors of numbers go past the cache, and the output has to begin on
/// a boundary of 64 bytes.
pub fn emit(program: &Lowered, encoding: Encoding, repeated: u16, streams: bool) -> Option<Emitted> {
    let has_long = program.nodes.iter().any(|node| matches!(node.ty, Type::I64 | Type::F64));
    let word = if has_long { 8 } else { 4 };
    let bytes = if encoding == Encoding::Evex { 64 } else { 32 };
    let mut emitter = Emitter::new(program, encoding, repeated, word, bytes / word);
    emitter.streams = streams;
    emitter.function();
    let Emitter { code, pool, lanes, out_of_slots, .. } = emitter;
    (!out_of_slots).then_some(Emitted { code: code.bytes, pool, lanes })
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    register: Option<u8>,
    slot: Option<usize>,
}

struct Emitter<'p> {
    program: &'p Lowered,
    encoding: Encoding,
    repeated: u16,
    streams: bool,
    word: usize,
    lanes: usize,
    code: Code,
    /// The first is the spreader of bits to bytes.
    pool: Vec<u64>,
    /// For constants, where they stand in the pool.
    constants: Vec<usize>,
    /// Where each value is read, in order; the root once more at the end.
    uses: Vec<Vec<usize>>,
    places: Vec<Place>,
    /// Who stands in each register, by class: vectors, masks.
    owners: [Vec<Option<Id>>; 2],
    /// Values that keep their register through the whole loop.
    pinned: Vec<Option<u8>>,
    slots: [Option<Id>; SLOTS_MAX],
    out_of_slots: bool,
    /// Values that the operation at hand reads.
    locked: Vec<Id>,
    watched: Option<u8>,
    in_tail: bool,
    at: usize,
}

const VECTOR: usize = 0;
const MASK: usize = 1;
/// The mask register that holds the tail, the first one for values being the next.
const TAIL_MASK: u8 = 1;

impl<'p> Emitter<'p> {
    fn new(
        program: &'p Lowered,
        encoding: Encoding,
        repeated: u16,
        word: usize,
        lanes: usize,
    ) -> Emitter<'p> {
        let count = program.nodes.len();
        let mut uses = vec![Vec::new(); count];
        let mut pool = vec![0x0101_0101_0101_0101];
        let mut constants = vec![0; count];
        for (at, node) in program.nodes.iter().enumerate() {
            for &arg in node.arguments() {
                uses[arg].push(at);
            }
            if let Op::Const(bits) = node.op {
                let bits = match node.ty {
                    Type::Bool => (bits as i64).wrapping_neg() as u64,
                    _ => bits,
                };
                constants[at] = pool.len();
                pool.push(bits);
            }
        }
        uses[program.root].push(count);
        // One register less: the last vector register is for what an operation needs on its way.
        let vectors = if encoding == Encoding::Evex { 31 } else { 15 };
        let masks = if encoding == Encoding::Evex { 8 } else { 0 };
        Emitter {
            program,
            encoding,
            repeated,
            streams: false,
            word,
            lanes,
            code: Code::default(),
            pool,
            constants,
            uses,
            places: vec![Place::default(); count],
            owners: [vec![None; vectors], vec![None; masks]],
            pinned: vec![None; count],
            slots: [None; SLOTS_MAX],
            out_of_slots: false,
            locked: Vec::new(),
            watched: None,
            in_tail: false,
            at: 0,
        }
    }

    fn is_evex(&self) -> bool {
        self.encoding == Encoding::Evex
    }

    fn scratch(&self) -> u8 {
        self.owners[VECTOR].len() as u8
    }

    fn ty(&self, id: Id) -> Type {
        self.program.nodes[id].ty
    }

    fn class(&self, id: Id) -> usize {
        if self.ty(id) == Type::Bool && self.is_evex() { MASK } else { VECTOR }
    }

    /// Bytes of a lane; masks among vectors are as wide as the widest value.
    fn lane_bytes(&self, ty: Type) -> usize {
        if ty == Type::Bool { self.word } else { ty.size() }
    }

    fn width(&self, ty: Type) -> Width {
        match self.lanes * self.lane_bytes(ty) {
            16 => Width::W128,
            32 => Width::W256,
            _ => Width::W512,
        }
    }

    /// A vector operation without a mask.
    fn op(&mut self, row: Row, width: Width, reg: u8, second: u8, rm: Rm) {
        self.code.vector(self.encoding, row, width, reg, second, rm, 0, false);
    }

    fn op_with(&mut self, row: Row, width: Width, reg: u8, second: u8, rm: Rm, last: u8) {
        self.op(row, width, reg, second, rm);
        self.code.bytes.push(last);
    }

    /// An operation on masks or plain registers, which are VEX on both levels.
    fn vex(&mut self, row: Row, width: Width, reg: u8, second: u8, rm: Rm) {
        self.code.vector(Encoding::Vex, row, width, reg, second, rm, 0, false);
    }

    // --- The whole function

    fn function(&mut self) {
        self.code.load(RSI, RDI, offset_of!(Frame, full) as i32);
        self.code.load(R8, RDI, offset_of!(Frame, pool) as i32);
        self.code.load(R9, RDI, offset_of!(Frame, output) as i32);
        for (index, register) in [RCX, RDX].into_iter().enumerate() {
            self.code.load(register, RDI, (offset_of!(Frame, inputs) + 8 * index) as i32);
        }
        self.code.plain(false, 0x31, RAX, Rm::Reg(RAX));
        self.pin();
        self.compare();
        let to_tail = self.code.jump(0x83);
        let start = self.code.bytes.len();
        self.body();
        self.code.advance(self.lanes as u32);
        self.compare();
        let again = self.code.jump(0x82);
        self.code.aim(again, start);
        let tail = self.code.bytes.len();
        self.code.aim(to_tail, tail);
        self.code.load(RSI, RDI, offset_of!(Frame, count) as i32);
        self.compare();
        let to_end = self.code.jump(0x83);
        if self.is_evex() {
            let at = Rm::At { base: RDI, offset: offset_of!(Frame, tail_bits) as i32 };
            self.vex(row(NONE, MAP_0F, 0x90, false), Width::W128, TAIL_MASK, 0, at);
        }
        self.in_tail = true;
        self.body();
        let end = self.code.bytes.len();
        self.code.aim(to_end, end);
        for (id, node) in self.program.nodes.iter().enumerate() {
            if node.op == Op::Accumulator
                && let Some(register) = self.pinned[id]
            {
                self.store_frame(register, offset_of!(Frame, accumulator));
            }
        }
        if let Some(register) = self.watched {
            self.store_frame(register, offset_of!(Frame, watched));
        }
        // vzeroupper, so that the caller's narrow code is not slowed, and ret.
        self.code.bytes.extend([0xC5, 0xF8, 0x77, 0xC3]);
    }

    /// `rax` against `rsi`.
    fn compare(&mut self) {
        self.code.plain(true, 0x39, RSI, Rm::Reg(RAX));
    }

    fn store_frame(&mut self, register: u8, offset: usize) {
        let whole = if self.is_evex() { Width::W512 } else { Width::W256 };
        let at = Rm::At { base: RDI, offset: offset as i32 };
        self.op(row(NONE, MAP_0F, 0x11, false), whole, register, 0, at);
    }

    fn load_frame(&mut self, register: u8, offset: usize) {
        let whole = if self.is_evex() { Width::W512 } else { Width::W256 };
        let at = Rm::At { base: RDI, offset: offset as i32 };
        self.op(row(NONE, MAP_0F, 0x10, false), whole, register, 0, at);
    }

    /// Gives registers for good to the accumulator, to what is watched, and to the constants used most while
    /// the rest still has enough.
    fn pin(&mut self) {
        let nodes = &self.program.nodes;
        // From the highest register downward.
        let mut left = self.owners[VECTOR].len();
        let take = |left: &mut usize| {
            *left -= 1;
            Some(*left as u8)
        };
        if nodes.iter().any(|node| node.op == Op::Watch) {
            self.watched = take(&mut left);
        }
        for (id, node) in nodes.iter().enumerate() {
            if node.op == Op::Accumulator {
                self.pinned[id] = take(&mut left);
            }
        }
        let mut constants: Vec<Id> = (0..nodes.len())
            .filter(|&id| matches!(nodes[id].op, Op::Const(_)) && self.class(id) == VECTOR)
            .collect();
        constants.sort_by_key(|&id| std::cmp::Reverse(self.uses[id].len()));
        let needed = self.most_alive() + 1;
        let fits = if needed + constants.len() <= left {
            constants.len()
        } else {
            // Two more registers for those that come and go.
            left.saturating_sub(needed + 2)
        };
        for &id in constants.iter().take(fits) {
            self.pinned[id] = take(&mut left);
        }
        // Registers given away take no part any more.
        self.owners[VECTOR].truncate(left);
        let scratch = if self.is_evex() { 31 } else { 15 };
        self.owners[VECTOR].resize(scratch, Some(usize::MAX));
        if let Some(register) = self.watched {
            self.load_frame(register, offset_of!(Frame, watched));
        }
        for id in 0..self.pinned.len() {
            let Some(register) = self.pinned[id] else { continue };
            match self.program.nodes[id].op {
                Op::Accumulator => self.load_frame(register, offset_of!(Frame, accumulator)),
                _ => self.read_constant(id, register),
            }
        }
    }

    /// The most vectors alive at once, constants and accumulators apart.
    fn most_alive(&self) -> usize {
        let (mut alive, mut most) = (0_usize, 0);
        let mut ends = vec![0_usize; self.program.nodes.len() + 1];
        for (at, node) in self.program.nodes.iter().enumerate() {
            let counts = !matches!(node.op, Op::Const(_) | Op::Accumulator | Op::Watch);
            if counts && self.class(at) == VECTOR {
                alive += 1;
                ends[self.uses[at].last().copied().unwrap_or(at)] += 1;
                most = most.max(alive);
            }
            alive -= ends[at];
        }
        most
    }

    fn body(&mut self) {
        for (id, place) in self.places.iter_mut().enumerate() {
            *place = Place { register: self.pinned[id], slot: None };
        }
        self.owners
            .iter_mut()
            .flatten()
            .filter(|owner| **owner != Some(usize::MAX))
            .for_each(|owner| *owner = None);
        self.slots = [None; SLOTS_MAX];
        for at in 0..self.program.nodes.len() {
            self.at = at;
            let node = self.program.nodes[at];
            match node.op {
                Op::Const(_) | Op::Accumulator => {}
                _ => self.node(at, node),
            }
            self.locked.clear();
        }
        self.at = self.program.nodes.len();
        self.finish();
        self.locked.clear();
    }

    /// What becomes of the root.
    fn finish(&mut self) {
        let root = self.program.root;
        let ty = self.ty(root);
        let register = self.read(root);
        let bits =
            if self.in_tail { offset_of!(Frame, tail_bits) } else { offset_of!(Frame, all_bits) } as i32;
        match (self.program.reduction, ty) {
            (_, Type::Bool) => {
                if self.is_evex() {
                    self.vex(row(NONE, MAP_0F, 0x93, false), Width::W128, R11, 0, Rm::Reg(register));
                } else {
                    let prefix = if self.word == 8 { P66 } else { NONE };
                    self.vex(row(prefix, MAP_0F, 0x50, false), Width::W256, R11, 0, Rm::Reg(register));
                }
                if matches!(self.program.reduction, Some(Reduction::Any | Reduction::All)) {
                    self.code.plain(false, 0x23, R11, Rm::At { base: RDI, offset: bits });
                    let any = Rm::At { base: RDI, offset: offset_of!(Frame, any) as i32 };
                    self.code.plain(false, 0x09, R11, any);
                } else {
                    self.store_booleans();
                }
            }
            (Some(_), _) => {
                let accumulator = self.program.nodes.iter().position(|node| node.op == Op::Accumulator);
                if let Some(to) = accumulator.and_then(|id| self.pinned[id]) {
                    self.copy(to, register, ty);
                }
            }
            (None, _) => {
                let to = Rm::Indexed { base: R9, scale: ty.size() as u8, offset: 0 };
                self.store(register, ty, to);
            }
        }
    }

    /// The bits in `r11` as bytes.
    fn store_booleans(&mut self) {
        let spreader = Rm::At { base: R8, offset: 0 };
        let pdep = row(PF2, MAP_0F38, 0xF5, true);
        if self.lanes == 16 {
            self.code.plain(false, 0x8B, R10, Rm::Reg(R11));
            self.code.plain(false, 0xC1, 5, Rm::Reg(R10));
            self.code.bytes.push(8);
            self.vex(pdep, Width::W128, R10, R10, spreader);
        }
        self.vex(pdep, Width::W128, R11, R11, spreader);
        let to = |offset: i32| Rm::Indexed { base: R9, scale: 1, offset };
        let aside =
            |offset: usize| Rm::At { base: RDI, offset: (offset_of!(Frame, tail_bytes) + offset) as i32 };
        let (low, high) = if self.in_tail { (aside(0), aside(8)) } else { (to(0), to(8)) };
        self.code.plain(self.lanes > 4, 0x89, R11, low);
        if self.lanes == 16 {
            self.code.plain(true, 0x89, R10, high);
        }
    }

    // --- Registers

    fn next_use(&self, id: Id) -> usize {
        self.uses[id].iter().copied().find(|&at| at >= self.at).unwrap_or(usize::MAX)
    }

    fn is_last_use(&self, id: Id) -> bool {
        self.pinned[id].is_none() && self.uses[id].last().is_none_or(|&last| last <= self.at)
    }

    /// A register for `id`, which it then owns.
    fn take(&mut self, id: Id) -> u8 {
        let class = self.class(id);
        let first = if class == MASK { usize::from(TAIL_MASK) + 1 } else { 0 };
        let free = (first..self.owners[class].len()).find(|&register| self.owners[class][register].is_none());
        let register = free.unwrap_or_else(|| {
            let evictable = |register: &usize| {
                self.owners[class][*register]
                    .is_some_and(|owner| owner != usize::MAX && !self.locked.contains(&owner))
            };
            let far = |register: &usize| self.owners[class][*register].map(|owner| self.next_use(owner));
            (first..self.owners[class].len())
                .filter(evictable)
                .max_by_key(far)
                .expect("an operation reads few values")
        });
        if let Some(owner) = self.owners[class][register] {
            self.put_away(owner, register as u8);
        }
        self.owners[class][register] = Some(id);
        self.places[id].register = Some(register as u8);
        register as u8
    }

    /// Takes a value out of its register, into memory unless it is there or can be read again.
    fn put_away(&mut self, id: Id, register: u8) {
        self.places[id].register = None;
        let is_constant = matches!(self.program.nodes[id].op, Op::Const(_));
        if is_constant || self.places[id].slot.is_some() || self.next_use(id) == usize::MAX {
            return;
        }
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            self.out_of_slots = true;
            return;
        };
        self.slots[slot] = Some(id);
        self.places[id].slot = Some(slot);
        let offset = offset_of!(Frame, slots) + 64 * slot;
        match self.class(id) {
            MASK => {
                let at = Rm::At { base: RDI, offset: offset as i32 };
                self.vex(row(NONE, MAP_0F, 0x91, false), Width::W128, register, 0, at);
            }
            _ => self.store_frame(register, offset),
        }
    }

    /// The register of a value, which is brought back when it is away, and locked.
    fn read(&mut self, id: Id) -> u8 {
        self.locked.push(id);
        if let Some(register) = self.places[id].register {
            return register;
        }
        let register = self.take(id);
        match (self.program.nodes[id].op, self.places[id].slot) {
            (Op::Const(_), _) => self.read_constant(id, register),
            (_, Some(slot)) => {
                let offset = offset_of!(Frame, slots) + 64 * slot;
                match self.class(id) {
                    MASK => {
                        let at = Rm::At { base: RDI, offset: offset as i32 };
                        self.vex(row(NONE, MAP_0F, 0x90, false), Width::W128, register, 0, at);
                    }
                    _ => self.load_frame(register, offset),
                }
            }
            // Only when memory ran out, and then the code is thrown away.
            _ => self.out_of_slots = true,
        }
        register
    }

    fn read_constant(&mut self, id: Id, register: u8) {
        let at = Rm::At { base: R8, offset: 8 * self.constants[id] as i32 };
        if self.class(id) == MASK {
            self.vex(row(NONE, MAP_0F, 0x90, false), Width::W128, register, 0, at);
            return;
        }
        self.spread(register, self.ty(id), at);
    }

    /// One element for all lanes.
    fn spread(&mut self, register: u8, ty: Type, at: Rm) {
        let is_long = self.lane_bytes(ty) == 8;
        let spread = row(P66, MAP_0F38, if is_long { 0x59 } else { 0x58 }, is_long);
        self.op(spread, self.width(ty), register, 0, at);
    }

    /// Frees the registers of arguments that nobody reads again.
    fn release(&mut self, args: &[Id]) {
        for &id in args {
            if !self.is_last_use(id) {
                continue;
            }
            if let Some(slot) = self.places[id].slot.take() {
                self.slots[slot] = None;
            }
            if let Some(register) = self.places[id].register.take() {
                let class = self.class(id);
                self.owners[class][usize::from(register)] = None;
            }
        }
    }

    fn copy(&mut self, to: u8, from: u8, ty: Type) {
        if to != from {
            self.op(row(NONE, MAP_0F, 0x28, false), self.width(ty), to, 0, Rm::Reg(from));
        }
    }

    // --- Memory

    fn move_row(&self, ty: Type, opcode: u8) -> Row {
        let is_long = ty.size() == 8;
        row(if is_long { P66 } else { NONE }, MAP_0F, opcode, is_long)
    }

    /// The scratch register as a mask of the tail. VEX only.
    fn load_tail_mask(&mut self, ty: Type) -> u8 {
        let offset =
            if self.lane_bytes(ty) == 8 { offset_of!(Frame, tail64) } else { offset_of!(Frame, tail32) };
        let at = Rm::At { base: RDI, offset: offset as i32 };
        let scratch = self.scratch();
        self.op(row(NONE, MAP_0F, 0x10, false), self.width(ty), scratch, 0, at);
        scratch
    }

    fn store(&mut self, register: u8, ty: Type, at: Rm) {
        let width = self.width(ty);
        match (self.in_tail, self.encoding) {
            (false, _) => {
                let opcode = if self.streams { 0x2B } else { 0x11 };
                self.op(self.move_row(ty, opcode), width, register, 0, at);
            }
            (true, Encoding::Evex) => {
                let row = self.move_row(ty, 0x11);
                self.code.vector(self.encoding, row, width, register, 0, at, TAIL_MASK, false);
            }
            (true, Encoding::Vex) => {
                let mask = self.load_tail_mask(ty);
                let opcode = if ty.size() == 8 { 0x2F } else { 0x2E };
                self.op(row(P66, MAP_0F38, opcode, false), width, register, mask, at);
            }
        }
    }

    fn load_input(&mut self, index: u8, ty: Type, register: u8) {
        let base = match index {
            0 => RCX,
            1 => RDX,
            _ => {
                self.code.load(R10, RDI, (offset_of!(Frame, inputs) + 8 * usize::from(index)) as i32);
                R10
            }
        };
        if self.repeated >> index & 1 == 1 {
            self.spread(register, ty, Rm::At { base, offset: 0 });
            return;
        }
        let at = Rm::Indexed { base, scale: ty.size() as u8, offset: 0 };
        let width = self.width(ty);
        match (self.in_tail, self.encoding) {
            (false, _) => self.op(self.move_row(ty, 0x10), width, register, 0, at),
            (true, Encoding::Evex) => {
                let row = self.move_row(ty, 0x10);
                self.code.vector(self.encoding, row, width, register, 0, at, TAIL_MASK, true);
            }
            (true, Encoding::Vex) => {
                let mask = self.load_tail_mask(ty);
                let opcode = if ty.size() == 8 { 0x2D } else { 0x2C };
                self.op(row(P66, MAP_0F38, opcode, false), width, register, mask, at);
            }
        }
    }

    // --- Operations

    fn node(&mut self, id: Id, node: Node) {
        let args = &self.program.nodes[id].args[..node.op.arity()];
        let registers: Vec<u8> = args.iter().map(|&arg| self.read(arg)).collect();
        let from = self.ty(node.args[0]);
        if node.op == Op::Watch {
            let watched = self.watched.expect("pinned before the body");
            // The second operand is the answer when the first is NaN.
            let is_long = node.ty == Type::F64;
            self.op(
                row(if is_long { P66 } else { NONE }, MAP_0F, 0x5F, is_long),
                self.width(node.ty),
                watched,
                registers[0],
                Rm::Reg(watched),
            );
            self.release(args);
            return;
        }
        if matches!(node.op, Op::MulAdd | Op::NegMulAdd) {
            self.fused(id, node, args, &registers);
            return;
        }
        self.release(args);
        let to = self.take(id);
        self.operation(node, from, to, &registers);
        // Nobody reads what only the caller's wish for order kept.
        self.release(&[id]);
    }

    /// A fused multiply-add overwrites one of its operands: one that is not needed again, or a copy.
    fn fused(&mut self, id: Id, node: Node, args: &[Id], registers: &[u8]) {
        let (a, b, c) = (registers[0], registers[1], registers[2]);
        let negative = if node.op == Op::NegMulAdd { 4 } else { 0 };
        let is_long = node.ty == Type::F64;
        let width = self.width(node.ty);
        let form = |opcode: u8| row(P66, MAP_0F38, opcode + negative, is_long);
        let dying: Vec<bool> = args.iter().map(|&arg| self.is_last_use(arg)).collect();
        let (keep, to, opcode, second, rm) = if dying[0] {
            (Some(args[0]), a, 0xA8, b, c)
        } else if dying[1] {
            (Some(args[1]), b, 0xA8, a, c)
        } else if dying[2] {
            (Some(args[2]), c, 0xB8, a, b)
        } else {
            (None, 0, 0xB8, a, b)
        };
        if keep.is_some() {
            self.release(args);
            // The operand's register is free now and becomes the result's.
            self.owners[VECTOR][usize::from(to)] = Some(id);
            self.places[id].register = Some(to);
            self.op(form(opcode), width, to, second, Rm::Reg(rm));
        } else {
            let to = self.take(id);
            self.copy(to, c, node.ty);
            self.op(form(opcode), width, to, second, Rm::Reg(rm));
        }
    }

    fn operation(&mut self, node: Node, from: Type, to: u8, registers: &[u8]) {
        let ty = node.ty;
        let width = self.width(ty);
        let is_long = ty.size() == 8;
        let first = registers.first().copied().unwrap_or(0);
        let second = registers.get(1).copied().unwrap_or(0);
        let float = |opcode: u8| row(if ty == Type::F64 { P66 } else { NONE }, MAP_0F, opcode, is_long);
        let whole = |map: u8, opcode: u8| row(P66, map, opcode, is_long);
        let two = |emitter: &mut Self, row: Row| emitter.op(row, width, to, first, Rm::Reg(second));
        match node.op {
            Op::Input(index) => self.load_input(index, ty, to),
            Op::Add if ty.is_float() => two(self, float(0x58)),
            Op::Sub if ty.is_float() => two(self, float(0x5C)),
            Op::Mul if ty.is_float() => two(self, float(0x59)),
            Op::Div => two(self, float(0x5E)),
            Op::RawMin if ty.is_float() => two(self, float(0x5D)),
            Op::RawMax if ty.is_float() => two(self, float(0x5F)),
            Op::Sqrt => self.op(float(0x51), width, to, 0, Rm::Reg(first)),
            Op::Floor | Op::Ceil => {
                let how = if node.op == Op::Floor { 9 } else { 10 };
                self.op_with(whole(MAP_0F3A, 0x08 + u8::from(is_long)), width, to, 0, Rm::Reg(first), how);
            }
            Op::Add => two(self, whole(MAP_0F, if is_long { 0xD4 } else { 0xFE })),
            Op::Sub => two(self, whole(MAP_0F, if is_long { 0xFB } else { 0xFA })),
            Op::Mul => two(self, whole(MAP_0F38, 0x40)),
            Op::RawMin => two(self, whole(MAP_0F38, 0x39)),
            Op::RawMax => two(self, whole(MAP_0F38, 0x3D)),
            Op::Abs => self.op(whole(MAP_0F38, 0x1E + u8::from(is_long)), width, to, 0, Rm::Reg(first)),
            Op::BitAnd => two(self, whole(MAP_0F, 0xDB)),
            Op::BitOr => two(self, whole(MAP_0F, 0xEB)),
            Op::BitXor => two(self, whole(MAP_0F, 0xEF)),
            // The target stands in the second operand's place, and a number in its own tells left from right.
            Op::ShiftLeft(by) => {
                self.op_with(whole(MAP_0F, 0x72 + u8::from(is_long)), width, 6, to, Rm::Reg(first), by);
            }
            Op::ShiftRight(by) => {
                self.op_with(whole(MAP_0F, 0x72 + u8::from(is_long)), width, 2, to, Rm::Reg(first), by);
            }
            Op::Eq | Op::Ne | Op::Lt | Op::Le => self.comparison(node.op, from, to, first, second),
            Op::And | Op::Or | Op::Not => self.logic(node.op, to, first, second),
            Op::Select => self.select(ty, to, registers),
            Op::Cast => self.cast(from, ty, to, first),
            Op::Valid if !self.in_tail => self.copy(to, first, ty),
            Op::Valid => {
                if self.is_evex() {
                    let row = whole(MAP_0F38, 0x65);
                    self.code.vector(self.encoding, row, width, to, second, Rm::Reg(first), TAIL_MASK, false);
                } else {
                    let mask = self.load_tail_mask(ty);
                    self.blend(ty, to, second, first, mask);
                }
            }
            op => unreachable!("{op:?} was lowered or is emitted elsewhere"),
        }
    }

    /// `to = mask ? yes : no` among vectors.
    fn blend(&mut self, ty: Type, to: u8, no: u8, yes: u8, mask: u8) {
        let opcode = if ty.size() == 8 { 0x4B } else { 0x4A };
        self.op_with(row(P66, MAP_0F3A, opcode, false), self.width(ty), to, no, Rm::Reg(yes), mask << 4);
    }

    fn select(&mut self, ty: Type, to: u8, registers: &[u8]) {
        let (condition, yes, no) = (registers[0], registers[1], registers[2]);
        if self.is_evex() {
            let row = row(P66, MAP_0F38, 0x65, ty.size() == 8);
            self.code.vector(self.encoding, row, self.width(ty), to, no, Rm::Reg(yes), condition, false);
        } else if ty.size() < self.word {
            let mask = self.scratch();
            self.narrow(mask, condition);
            self.blend(ty, to, no, yes, mask);
        } else {
            self.blend(ty, to, no, yes, condition);
        }
    }

    /// The low halves of four 64-bit lanes side by side. VEX only; uses the scratch register.
    fn narrow(&mut self, to: u8, from: u8) {
        let scratch = self.scratch();
        self.op_with(row(P66, MAP_0F3A, 0x19, false), Width::W256, from, 0, Rm::Reg(scratch), 1);
        self.op_with(row(NONE, MAP_0F, 0xC6, false), Width::W128, to, from, Rm::Reg(scratch), 0x88);
    }

    fn comparison(&mut self, op: Op, from: Type, to: u8, a: u8, b: u8) {
        let is_long = from.size() == 8;
        let width = self.width(from);
        if from.is_float() {
            // Quiet predicates: a comparison with NaN is false, `!=` true.
            let predicate = match op {
                Op::Eq => 0x00,
                Op::Ne => 0x04,
                Op::Lt => 0x11,
                _ => 0x12,
            };
            let row = row(if is_long { P66 } else { NONE }, MAP_0F, 0xC2, is_long);
            self.op_with(row, width, to, a, Rm::Reg(b), predicate);
        } else if self.is_evex() {
            let predicate = match op {
                Op::Eq => 0,
                Op::Ne => 4,
                Op::Lt => 1,
                _ => 2,
            };
            self.op_with(row(P66, MAP_0F3A, 0x1F, is_long), width, to, a, Rm::Reg(b), predicate);
        } else {
            let (equal, greater) = if is_long {
                (row(P66, MAP_0F38, 0x29, false), row(P66, MAP_0F38, 0x37, false))
            } else {
                (row(P66, MAP_0F, 0x76, false), row(P66, MAP_0F, 0x66, false))
            };
            match op {
                Op::Eq | Op::Ne => self.op(equal, width, to, a, Rm::Reg(b)),
                Op::Lt => self.op(greater, width, to, b, Rm::Reg(a)),
                _ => self.op(greater, width, to, a, Rm::Reg(b)),
            }
            if matches!(op, Op::Ne | Op::Le) {
                self.logic(Op::Not, to, to, to);
            }
        }
        if !self.is_evex() && from.size() < self.word {
            self.op(row(P66, MAP_0F38, 0x25, false), Width::W256, to, 0, Rm::Reg(to));
        }
    }

    fn logic(&mut self, op: Op, to: u8, a: u8, b: u8) {
        if self.is_evex() {
            match op {
                Op::And => self.vex(row(NONE, MAP_0F, 0x41, false), Width::W256, to, a, Rm::Reg(b)),
                Op::Or => self.vex(row(NONE, MAP_0F, 0x45, false), Width::W256, to, a, Rm::Reg(b)),
                _ => self.vex(row(NONE, MAP_0F, 0x44, false), Width::W128, to, 0, Rm::Reg(a)),
            }
            return;
        }
        let scratch = self.scratch();
        let (opcode, b) = match op {
            Op::And => (0xDB, b),
            Op::Or => (0xEB, b),
            _ => {
                self.op(row(P66, MAP_0F, 0x76, false), Width::W256, scratch, scratch, Rm::Reg(scratch));
                (0xEF, scratch)
            }
        };
        self.op(row(P66, MAP_0F, opcode, false), Width::W256, to, a, Rm::Reg(b));
    }

    fn cast(&mut self, from: Type, ty: Type, to: u8, a: u8) {
        use Type::{F32, F64, I32, I64};
        let of_wider = |emitter: &Self| emitter.width(if from.size() > ty.size() { from } else { ty });
        let width = of_wider(self);
        let row = match (from, ty) {
            (F32, F64) => row(NONE, MAP_0F, 0x5A, false),
            (F64, F32) => row(P66, MAP_0F, 0x5A, true),
            (I32, F64) => row(PF3, MAP_0F, 0xE6, false),
            (I32, F32) => row(NONE, MAP_0F, 0x5B, false),
            (F32, I32) => row(PF3, MAP_0F, 0x5B, false),
            (F64, I32) => row(P66, MAP_0F, 0xE6, true),
            (I64, F64) => row(PF3, MAP_0F, 0xE6, true),
            (F64, I64) => row(P66, MAP_0F, 0x7A, true),
            (I64, F32) => row(NONE, MAP_0F, 0x5B, true),
            (F32, I64) => row(P66, MAP_0F, 0x7A, false),
            (I32, I64) => row(P66, MAP_0F38, 0x25, false),
            _ if self.is_evex() => {
                // The narrowing move names its target last.
                self.op(row(PF3, MAP_0F38, 0x35, false), width, a, 0, Rm::Reg(to));
                return;
            }
            _ => {
                self.narrow(to, a);
                return;
            }
        };
        self.op(row, width, to, 0, Rm::Reg(a));
    }
}
