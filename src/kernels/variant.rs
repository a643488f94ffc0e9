//! Alternatives: the same kernel by another instruction set or another algorithm, for the optimization agent
//! to time.

use super::{KernelId, Level, simd, spec};
use crate::arrays::DType;

/// One implementation of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    /// Instruction-set level. One the processor lacks runs as the best one below it.
    pub level: Level,
    /// Index into the kernel's `choices`. One the kernel lacks runs as its first.
    pub choice: u8,
}

impl Variant {
    /// A variant.
    pub const fn new(level: Level, choice: u8) -> Variant {
        Variant { level, choice }
    }

    /// What runs when nobody measured anything: the library's matrix product on the machine's own level (it
    /// chooses its instructions itself, so a forced level takes ours), the last algorithm of `sort`,
    /// `argsort`, `histogram` and `stencil5`, which falls back to another where that is better.
    pub fn default_for(kernel: KernelId, level: Level) -> Variant {
        let widest = Level::available().last().copied() == Some(level);
        let choice = match kernel {
            KernelId::Matmul => u8::from(!widest),
            KernelId::Sort => 2,
            KernelId::Argsort | KernelId::Histogram | KernelId::Stencil5 => 1,
            _ => 0,
        };
        Variant { level, choice }
    }

    /// As one stable number.
    pub fn encode(self) -> u16 {
        u16::from(self.level.code()) << 8 | u16::from(self.choice)
    }

    /// The variant with this number, when its level exists.
    pub fn decode(code: u16) -> Option<Variant> {
        let level = Level::from_code((code >> 8) as u8)?;
        Some(Variant { level, choice: (code & 0xff) as u8 })
    }

    /// The algorithm's name.
    pub fn choice_name(self, kernel: KernelId) -> &'static str {
        let choices = spec(kernel).choices;
        choices.get(usize::from(self.choice)).copied().unwrap_or(choices[0])
    }
}

/// Whether the level asked for is the level that runs. The transforms' library plans by itself.
pub fn has_levels(kernel: KernelId) -> bool {
    let by_library = matches!(kernel, KernelId::Fft | KernelId::Ifft | KernelId::Rfft | KernelId::Irfft);
    spec(kernel).levels && !by_library
}

/// Every variant of `kernel` on arrays of `dtype` that differs on this machine, the default first; empty when
/// the kernel does not take the type.
pub fn variants(kernel: KernelId, dtype: Option<DType>) -> Vec<Variant> {
    let spec = spec(kernel);
    if let Some(dtype) = dtype
        && !spec.dtypes.is_empty()
        && !spec.dtypes.contains(&dtype)
    {
        return Vec::new();
    }
    let best = Level::best();
    let default = Variant::default_for(kernel, best);
    let mut all = vec![default];
    for level in Level::available() {
        for choice in 0..spec.choices.len() as u8 {
            let variant = Variant { level, choice };
            // The library picks its own instructions, and two ways of sorting have no vector code: another level
            // would be a second name for the same thing.
            let fixed =
                !spec.levels || matches!((kernel, choice), (KernelId::Matmul, 0) | (KernelId::Sort, 0 | 1));
            let same = kernel == KernelId::Sort && choice == 2 && !simd::sorts_in_vectors(level);
            if variant != default && !same && (!fixed || level == best) {
                all.push(variant);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_variants() {
        for kernel in KernelId::ALL {
            let all = variants(kernel, None);
            assert_eq!(all[0], Variant::default_for(kernel, Level::best()));
            for (index, variant) in all.iter().enumerate() {
                assert_eq!(Variant::decode(variant.encode()), Some(*variant));
                assert!(!all[..index].contains(variant));
                assert!(spec(kernel).choices.contains(&variant.choice_name(kernel)));
            }
        }
        assert_eq!(Variant::decode(0x0500), None);
    }

    #[test]
    fn kernels_without_levels_have_one_variant_per_algorithm() {
        assert_eq!(variants(KernelId::Noop, None).len(), 1);
        assert_eq!(variants(KernelId::Argsort, Some(DType::U32)).len(), 2);
        let sorting = Level::available().into_iter().filter(|level| simd::sorts_in_vectors(*level)).count();
        assert_eq!(variants(KernelId::Sort, Some(DType::U32)).len(), 2 + sorting.max(1));
        assert_eq!(variants(KernelId::Matmul, Some(DType::F32)).len(), 1 + Level::available().len());
        assert!(variants(KernelId::Matmul, Some(DType::I32)).is_empty());
    }
}
