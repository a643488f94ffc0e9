//! Instruction-set levels: what this processor offers, which one is used, and how a user forces another.
//!
//! One binary serves every machine: each kernel exists once per level, and the level is an argument, so that
//! the tests and the optimization agent can run all of them side by side.

use std::fmt;
use std::sync::OnceLock;

/// The environment variable that forces a level. Who starts a program asks [`Level::forced`] whether it can be had; later it is
/// too late to say so, and what cannot be had is ignored.
pub const LEVEL_VARIABLE: &str = "AI_SWARM_SIMD";

/// One instruction-set level. The codes are stable: they travel in messages and stand in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Plain scalar code: the reference.
    Scalar = 0,
    /// 128-bit vectors, the baseline of x86-64.
    Sse2 = 1,
    /// 256-bit vectors with fused multiply-add (`avx2` and `fma`).
    Avx2 = 2,
    /// 512-bit vectors (`avx512f`, `bw`, `cd`, `dq`, `vl`) on top of [`Level::Avx2`].
    Avx512 = 3,
    /// 128-bit vectors of 64-bit ARM.
    Neon = 4,
}

impl Level {
    /// Every level, in the order of their codes.
    pub const ALL: [Level; 5] = [Level::Scalar, Level::Sse2, Level::Avx2, Level::Avx512, Level::Neon];

    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Sse2 => "sse2",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
        }
    }

    /// The level called `name`.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// The stable code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The level with this code.
    pub fn from_code(code: u8) -> Option<Level> {
        Level::ALL.get(usize::from(code)).copied()
    }

    /// Whether this processor (and its operating system) can run the level.
    pub fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Sse2 => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512cd")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            #[allow(unreachable_patterns, reason = "the levels of the other architectures")]
            _ => false,
        }
    }

    /// The levels this processor can run, slowest first.
    pub fn available() -> Vec<Level> {
        Level::ALL.into_iter().filter(|level| level.is_available()).collect()
    }

    /// The level that [`LEVEL_VARIABLE`] forces, if any; in words, why it cannot be had.
    pub fn forced() -> Result<Option<Level>, String> {
        let value = std::env::var_os(LEVEL_VARIABLE).filter(|value| !value.is_empty());
        value.map(|value| parse(&value.to_string_lossy())).transpose()
    }

    /// The level to use: the widest one, or the one [`LEVEL_VARIABLE`] forces. Detected once per process.
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            let widest = || Level::available().last().copied().unwrap_or(Level::Scalar);
            Level::forced().ok().flatten().unwrap_or_else(widest)
        })
    }
}

fn parse(name: &str) -> Result<Level, String> {
    Level::from_name(name.trim()).filter(|level| level.is_available()).ok_or_else(|| {
        let levels: Vec<&str> = Level::available().into_iter().map(Level::name).collect();
        format!("{LEVEL_VARIABLE} is {name:?}; this processor has {}", levels.join(", "))
    })
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_lead_back() {
        for level in Level::ALL {
            assert_eq!(Level::from_code(level.code()), Some(level));
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        assert_eq!(Level::from_code(5), None);
        assert_eq!(Level::from_name("mmx"), None);
    }

    #[test]
    fn a_forced_level_wins_only_when_the_processor_has_it() {
        assert_eq!(parse(" scalar\n"), Ok(Level::Scalar));
        for level in Level::ALL {
            assert_eq!(parse(level.name()).is_ok(), level.is_available());
        }
        let refused = parse("mmx").expect_err("it is none of ours");
        assert!(refused.starts_with("AI_SWARM_SIMD is \"mmx\"; this processor has scalar"), "{refused}");
    }
}
