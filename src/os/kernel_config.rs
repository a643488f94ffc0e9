//! What this kernel was built with: `/proc/config.gz`, or `/boot/config-RELEASE`.
//! It tells "this kernel cannot" from "this machine has none". Read once, and only when something is missing.
//!
//! The file is compressed, so a small inflate (RFC 1951) lives here: one file of 200 KiB, a few milliseconds,
//! no further dependency. It is bounded and refuses what it does not understand; a refusal means "not known".

use std::path::Path;

use super::sysfs;

/// Largest unpacked configuration; real ones are about 300 KiB.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// The options of the running kernel, when it publishes them.
#[derive(Debug, Clone, Default)]
pub struct KernelConfig {
    text: Option<String>,
}

impl KernelConfig {
    /// From `procfs/config.gz`, else from `/boot` when `procfs` is the real one.
    pub fn read(procfs: &Path) -> KernelConfig {
        let packed = sysfs::read_bytes(&procfs.join("config.gz")).ok().and_then(|bytes| gunzip(&bytes));
        let text = packed.and_then(|bytes| String::from_utf8(bytes).ok()).or_else(|| {
            let release = sysfs::read_text(&procfs.join("sys/kernel/osrelease")).ok()?;
            let real = procfs == Path::new("/proc");
            sysfs::read_text(&Path::new("/boot").join(format!("config-{release}"))).ok().filter(|_| real)
        });
        KernelConfig { text }
    }

    /// `Some(true)` when the option is `y` or `m`, `Some(false)` when it is off, `None` when the kernel does not tell.
    pub fn has(&self, option: &str) -> Option<bool> {
        let text = self.text.as_deref()?;
        let on = |line: &str| {
            line.strip_prefix(option).is_some_and(|rest| rest.starts_with("=y") || rest.starts_with("=m"))
        };
        Some(text.lines().any(on))
    }

    /// True when the kernel told us its options.
    pub fn is_known(&self) -> bool {
        self.text.is_some()
    }
}

/// Unpacks a gzip file; `None` for anything unusual.
fn gunzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, mut rest) = bytes.split_at_checked(10)?;
    if header[..3] != [0x1f, 0x8b, 8] {
        return None;
    }
    let flags = header[3];
    if flags & 4 != 0 {
        let length = usize::from(u16::from_le_bytes([*rest.first()?, *rest.get(1)?]));
        rest = rest.get(2 + length..)?;
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            rest = &rest[rest.iter().position(|&byte| byte == 0)? + 1..];
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    inflate(rest)
}

struct Bits<'b> {
    bytes: &'b [u8],
    at: usize,
    held: u32,
    held_bits: u32,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Option<u32> {
        while self.held_bits < count {
            self.held |= u32::from(*self.bytes.get(self.at)?) << self.held_bits;
            self.at += 1;
            self.held_bits += 8;
        }
        let value = self.held & ((1_u32 << count) - 1);
        self.held >>= count;
        self.held_bits -= count;
        Some(value)
    }
}

/// A canonical Huffman code: how many codes of each length, and the symbols in code order.
struct Code {
    counts: [u16; 16],
    symbols: Vec<u16>,
}

impl Code {
    fn new(lengths: &[u8]) -> Code {
        let mut counts = [0_u16; 16];
        for &length in lengths {
            counts[usize::from(length)] += 1;
        }
        counts[0] = 0;
        let mut symbols: Vec<u16> =
            (0..lengths.len() as u16).filter(|&s| lengths[usize::from(s)] > 0).collect();
        symbols.sort_by_key(|&symbol| (lengths[usize::from(symbol)], symbol));
        Code { counts, symbols }
    }

    fn next(&self, bits: &mut Bits) -> Option<u16> {
        let (mut code, mut first, mut index) = (0_i32, 0_i32, 0_i32);
        for length in 1..16 {
            code |= bits.take(1)? as i32;
            let count = i32::from(self.counts[length]);
            if code - count < first {
                return self.symbols.get((index + code - first) as usize).copied();
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

fn inflate(bytes: &[u8]) -> Option<Vec<u8>> {
    const LENGTH_BASE: [u16; 29] = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163,
        195, 227, 258,
    ];
    const LENGTH_EXTRA: [u8; 29] =
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
    const DISTANCE_BASE: [u16; 30] = [
        1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049,
        3073, 4097, 6145, 8193, 12289, 16385, 24577,
    ];
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

    let mut bits = Bits { bytes, at: 0, held: 0, held_bits: 0 };
    let mut out: Vec<u8> = Vec::new();
    loop {
        let last = bits.take(1)? == 1;
        let (literals, distances) = match bits.take(2)? {
            0 => {
                (bits.held, bits.held_bits) = (0, 0);
                let length =
                    usize::from(u16::from_le_bytes([*bytes.get(bits.at)?, *bytes.get(bits.at + 1)?]));
                out.extend(bytes.get(bits.at + 4..bits.at + 4 + length)?);
                bits.at += 4 + length;
                if last {
                    return Some(out);
                }
                continue;
            }
            1 => {
                let mut lengths = [8_u8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                (Code::new(&lengths), Code::new(&[5; 30]))
            }
            2 => {
                let (literals, distances) = (bits.take(5)? as usize + 257, bits.take(5)? as usize + 1);
                let mut lengths = [0_u8; 19];
                for &slot in &ORDER[..bits.take(4)? as usize + 4] {
                    lengths[slot] = bits.take(3)? as u8;
                }
                let code = Code::new(&lengths);
                let mut lengths: Vec<u8> = Vec::new();
                while lengths.len() < literals + distances {
                    let symbol = code.next(&mut bits)?;
                    let (value, times) = match symbol {
                        0..16 => (symbol as u8, 1),
                        16 => (*lengths.last()?, bits.take(2)? + 3),
                        17 => (0, bits.take(3)? + 3),
                        _ => (0, bits.take(7)? + 11),
                    };
                    lengths.extend((0..times).map(|_| value));
                }
                let distance_lengths = lengths.get(literals..literals + distances)?;
                (Code::new(&lengths[..literals]), Code::new(distance_lengths))
            }
            _ => return None,
        };
        loop {
            match literals.next(&mut bits)? {
                literal @ 0..256 => out.push(literal as u8),
                256 => break,
                symbol => {
                    let row = usize::from(symbol - 257);
                    let length = usize::from(*LENGTH_BASE.get(row)?)
                        + bits.take(u32::from(LENGTH_EXTRA[row]))? as usize;
                    let row = usize::from(distances.next(&mut bits)?);
                    let extra = (row as u32 / 2).saturating_sub(1);
                    let distance = usize::from(*DISTANCE_BASE.get(row)?) + bits.take(extra)? as usize;
                    let from = out.len().checked_sub(distance)?;
                    (from..from + length).for_each(|at| out.push(out[at]));
                }
            }
            if out.len() > TEXT_BYTES_MAX {
                return None;
            }
        }
        if last {
            return Some(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `printf 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_CC=y\n' | gzip -9n`
    const PACKED: &[u8] = include_bytes!("../../tests/fixtures/sensors/config.gz");

    #[test]
    fn options_are_on_off_or_unknown() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(KernelConfig::read(folder.path()).has("CONFIG_A"), None);
        std::fs::write(folder.path().join("config.gz"), PACKED).unwrap();
        let config = KernelConfig::read(folder.path());
        assert_eq!(
            ["CONFIG_A", "CONFIG_B", "CONFIG_C", "CONFIG_"].map(|option| config.has(option)),
            [Some(true), Some(false), Some(true), Some(false)]
        );
    }

    #[test]
    fn the_running_kernel_agrees_with_gzip_where_both_exist() {
        let Ok(output) = std::process::Command::new("gzip").args(["-dc", "/proc/config.gz"]).output() else {
            return println!("skipped: no gzip on this machine");
        };
        if !output.status.success() {
            return println!("skipped: this kernel does not publish /proc/config.gz");
        }
        let bytes = sysfs::read_bytes(Path::new("/proc/config.gz")).unwrap();
        assert!(gunzip(&bytes).unwrap() == output.stdout);
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused_without_panic(at in 0..PACKED.len(), byte in any::<u8>(), cut in 0..PACKED.len()) {
            let mut bytes = PACKED.to_vec();
            bytes[at] = byte;
            let _ = gunzip(&bytes);
            let _ = gunzip(&bytes[..cut]);
        }
    }
}
