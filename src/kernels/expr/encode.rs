//! Bytes of instructions: the two vector encodings of x86-64 and the few plain ones a loop needs.
//!
//! VEX (128 and 256 bits, 16 registers) and EVEX (to 512 bits, 32 registers, masks) name an operation by the
//! same three numbers, so one row serves every width and both levels. An assembler crate (`iced-x86` was
//! considered) has a name for each combination and adds 18 s to a build. Layout: Intel's manual, volume 2,
//! sections 2.3 and 2.7.

/// Which of the two encodings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Vex,
    Evex,
}

/// Opcode maps and mandatory prefixes, as both encodings number them.
pub const MAP_0F: u8 = 1;
pub const MAP_0F38: u8 = 2;
pub const MAP_0F3A: u8 = 3;
pub const NONE: u8 = 0;
pub const P66: u8 = 1;
pub const PF3: u8 = 2;
pub const PF2: u8 = 3;

/// An operation: map, prefix, opcode, and the bit `W` that tells 64-bit lanes from 32-bit ones.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub map: u8,
    pub prefix: u8,
    pub opcode: u8,
    pub wide: bool,
}

/// A row, to be read as `P66 MAP_0F 58`.
pub const fn row(prefix: u8, map: u8, opcode: u8, wide: bool) -> Row {
    Row { map, prefix, opcode, wide }
}

/// Width of a vector operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    W128 = 0,
    W256 = 1,
    W512 = 2,
}

/// The last operand.
#[derive(Debug, Clone, Copy)]
pub enum Rm {
    Reg(u8),
    /// `[base + offset]`.
    At {
        base: u8,
        offset: i32,
    },
    /// `[base + rax * scale + offset]`, the scale 1, 4 or 8.
    Indexed {
        base: u8,
        scale: u8,
        offset: i32,
    },
}

/// Plain registers by their numbers.
pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RDX: u8 = 2;
pub const RSI: u8 = 6;
pub const RDI: u8 = 7;
pub const R8: u8 = 8;
pub const R9: u8 = 9;
pub const R10: u8 = 10;
pub const R11: u8 = 11;

/// Code as it grows.
#[derive(Debug, Default)]
pub struct Code {
    pub bytes: Vec<u8>,
}

impl Code {
    /// One vector instruction. `mask` is the number of a mask register (0 for none), `zero` clears lanes that
    /// it leaves out; both are EVEX only.
    #[allow(clippy::too_many_arguments, reason = "these are the fields of one instruction")]
    pub fn vector(
        &mut self,
        how: Encoding,
        row: Row,
        width: Width,
        reg: u8,
        second: u8,
        rm: Rm,
        mask: u8,
        zero: bool,
    ) {
        // Bit 3 and 4 of the register numbers stand inverted in the prefix.
        let (index, base) = match rm {
            Rm::Reg(number) => (number >> 4 & 1, number >> 3 & 1),
            Rm::At { base, .. } | Rm::Indexed { base, .. } => (0, base >> 3 & 1),
        };
        let wide = u8::from(row.wide);
        match how {
            Encoding::Vex => {
                debug_assert!(reg < 16 && second < 16 && mask == 0 && width != Width::W512);
                // Only fused multiply-adds and plain-register operations read W here.
                let reads_w =
                    row.map == MAP_0F38 && (0x90..=0xBF).contains(&row.opcode) || row.opcode == 0xF5;
                let wide = if reads_w { wide } else { 0 };
                self.bytes.extend([
                    0xC4,
                    (!reg >> 3 & 1) << 7 | 1 << 6 | (base ^ 1) << 5 | row.map,
                    wide << 7 | (!second & 15) << 3 | (width as u8) << 2 | row.prefix,
                ]);
            }
            Encoding::Evex => {
                let first = (!reg >> 3 & 1) << 7 | (index ^ 1) << 6 | (base ^ 1) << 5 | (!reg >> 4 & 1) << 4;
                let high = (!second >> 4 & 1) << 3;
                self.bytes.extend([
                    0x62,
                    first | row.map,
                    wide << 7 | (!second & 15) << 3 | 1 << 2 | row.prefix,
                    u8::from(zero) << 7 | (width as u8) << 5 | high | mask,
                ]);
            }
        }
        self.bytes.push(row.opcode);
        self.operand(reg, rm);
    }

    fn operand(&mut self, reg: u8, rm: Rm) {
        let reg = (reg & 7) << 3;
        match rm {
            Rm::Reg(number) => self.bytes.push(0xC0 | reg | number & 7),
            Rm::At { base, offset } => {
                debug_assert!(base & 7 != 4, "rsp and r12 need another form");
                // A 32-bit distance, because EVEX scales the short one.
                self.bytes.push(0x80 | reg | base & 7);
                self.bytes.extend(offset.to_le_bytes());
            }
            Rm::Indexed { base, scale, offset } => {
                self.bytes
                    .extend([0x80 | reg | 4, (scale.trailing_zeros() as u8) << 6 | RAX << 3 | base & 7]);
                self.bytes.extend(offset.to_le_bytes());
            }
        }
    }

    /// An instruction of plain registers with a one-byte opcode. `reg` and `rm` as in the manual.
    pub fn plain(&mut self, wide: bool, opcode: u8, reg: u8, rm: Rm) {
        let base = match rm {
            Rm::Reg(base) | Rm::At { base, .. } | Rm::Indexed { base, .. } => base,
        };
        self.bytes.extend([0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | base >> 3, opcode]);
        self.operand(reg, rm);
    }

    /// `target = [base + offset]`.
    pub fn load(&mut self, target: u8, base: u8, offset: i32) {
        self.plain(true, 0x8B, target, Rm::At { base, offset });
    }

    /// `rax += step`.
    pub fn advance(&mut self, step: u32) {
        self.bytes.extend([0x48, 0x05]);
        self.bytes.extend(step.to_le_bytes());
    }

    /// A jump (0x82 below, 0x83 not below) to be aimed later; answers where its distance stands.
    pub fn jump(&mut self, condition: u8) -> usize {
        self.bytes.extend([0x0F, condition, 0, 0, 0, 0]);
        self.bytes.len() - 4
    }

    /// Aims the jump at `place` to `target`.
    pub fn aim(&mut self, place: usize, target: usize) {
        let distance = target as i64 - (place as i64 + 4);
        self.bytes[place..place + 4].copy_from_slice(&(distance as i32).to_le_bytes());
    }
}
