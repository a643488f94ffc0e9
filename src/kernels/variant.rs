//! Alternatives: the same kernel by another instruction set or another algorithm, for the optimization agent
//! to time.

use super::{KernelId, Level, simd, spec};
use crate::arrays::DType;

/// One implementation of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    /// Instruction-set level. One the processor lacks runs as the best one below it.
    pub level: Level,
    /// Index into the kernel's `choices`, below 128. One the kernel lacks runs as its first.
    pub choice: u8,
    /// The answer is written the other way than its size says: past the caches where it is small, through them where it
    /// is large. Kernels that [store in two ways](stores_in_two_ways) only.
    pub other_stores: bool,
}

/// Bit of [`Variant::encode`].
const OTHER_STORES: u16 = 0x80;

impl Variant {
    /// A variant.
    pub const fn new(level: Level, choice: u8) -> Variant {
        Variant { level, choice, other_stores: false }
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
        Variant::new(level, choice)
    }

    /// As one stable number.
    pub fn encode(self) -> u16 {
        let stores = if self.other_stores { OTHER_STORES } else { 0 };
        u16::from(self.level.code()) << 8 | stores | u16::from(self.choice) & 0x7f
    }

    /// The variant with this number, when its level exists.
    pub fn decode(code: u16) -> Option<Variant> {
        let level = Level::from_code((code >> 8) as u8)?;
        Some(Variant { level, choice: (code & 0x7f) as u8, other_stores: code & OTHER_STORES != 0 })
    }

    /// In words: `avx2 radix`, `avx512, stores the other way`.
    pub fn describe(self, kernel: KernelId) -> String {
        let stores = if self.other_stores { ", stores the other way" } else { "" };
        match spec(kernel).choices {
            [_] => format!("{}{stores}", self.level.name()),
            _ => format!("{} {}{stores}", self.level.name(), self.choice_name(kernel)),
        }
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

/// Whether the kernel writes its answer through the caches or past them, by its size unless a variant says otherwise.
pub fn stores_in_two_ways(kernel: KernelId) -> bool {
    matches!(kernel, KernelId::Axpy | KernelId::Stencil5 | KernelId::Cumsum | KernelId::Expr)
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
    // The transforms' library has two forms: what the processor has, and a scalar one.
    let of_levels = |level| has_levels(kernel) || !spec.levels || level == Level::Scalar || level == best;
    let default = Variant::default_for(kernel, best);
    let mut all = vec![default];
    for level in Level::available() {
        for choice in 0..spec.choices.len() as u8 {
            let variant = Variant::new(level, choice);
            // The library picks its own instructions, and two ways of sorting have no vector code: another level
            // would be a second name for the same thing.
            let fixed =
                !spec.levels || matches!((kernel, choice), (KernelId::Matmul, 0) | (KernelId::Sort, 0 | 1));
            let same = kernel == KernelId::Sort && choice == 2 && !simd::sorts_in_vectors(level);
            if variant != default && !same && of_levels(level) && (!fixed || level == best) {
                all.push(variant);
            }
        }
    }
    let is_whole = dtype.is_some_and(|dtype| !matches!(dtype, DType::F32 | DType::F64));
    if stores_in_two_ways(kernel) && !(kernel == KernelId::Cumsum && is_whole) {
        all.push(Variant { other_stores: true, ..default });
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
        let radix = Variant::new(Level::Scalar, 1);
        assert_eq!(radix.describe(KernelId::Argsort), "scalar radix");
        let other = Variant { other_stores: true, ..Variant::new(Level::Scalar, 0) };
        assert_eq!(other.describe(KernelId::Axpy), "scalar, stores the other way");
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
