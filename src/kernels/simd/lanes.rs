//! The words the kernels are written in: a few lanes of `f32`, `f64` or 64 bits, and what can be done to them.
//!
//! A kernel body is generic over [`Isa`] and marked `#[inline(always)]`; a function with
//! `#[target_feature]` instantiates it, so the operations below become single instructions there. No
//! closure and no iterator adaptor may carry a lane value: such a function is compiled on its own, without
//! the features, and passes vectors through memory.
//!
//! Rules
//! 1. A value of a lane type exists only where the processor has that type's instructions. Only the `unsafe`
//!    constructors (`splat`, `load`, ...) make one from nothing; every other operation takes a value and is
//!    therefore safe.
//! 2. `min`, `max` and the comparisons say nothing useful about NaN; kernels ask `is_nan` themselves.
//! 3. `mul_add` is fused where the level has the instruction, and two roundings where it has not.

use crate::kernels::reference::Real;

/// Most lanes any type here has; the size of the buffers for ragged ends.
pub const LANES_MAX: usize = 16;

/// One instruction set: its lane types.
pub trait Isa: Copy {
    /// Lanes of `f32`.
    type F32: Lanes<Elem = f32>;
    /// Lanes of `f64`.
    type F64: Lanes64;
    /// How many vector registers there are, which bounds the tiles of the matrix kernels.
    const REGISTERS: usize;
    /// Ends what [`Lanes::stream`] put off: to be called before anybody looks at what it wrote.
    #[inline(always)]
    fn fence() {}
    /// Asks for the line of the cache with this address, whatever that is: it will be needed soon.
    #[inline(always)]
    fn soon<T>(_at: *const T) {}
}

/// Lanes of one element type.
pub trait Lanes: Copy {
    /// The element.
    type Elem: Real;
    /// The outcome of a comparison.
    type Mask: Copy;
    /// How many elements.
    const N: usize;

    /// All lanes `value`.
    ///
    /// # Safety
    /// The processor has this type's instructions (rule 1).
    unsafe fn splat(value: Self::Elem) -> Self;
    /// `N` elements from `source`, of any alignment.
    ///
    /// # Safety
    /// Rule 1, and `N` elements are readable at `source`.
    unsafe fn load(source: *const Self::Elem) -> Self;
    /// `N` elements to `target`, of any alignment.
    ///
    /// # Safety
    /// `N` elements are writable at `target`.
    unsafe fn store(self, target: *mut Self::Elem);
    /// `N` elements to `target`, past the cache where the level can, which then writes each line as a whole and does
    /// not read it before. [`Isa::fence`] ends it.
    ///
    /// # Safety
    /// `N` elements are writable at `target`, a multiple of their size in bytes.
    #[inline(always)]
    unsafe fn stream(self, target: *mut Self::Elem) {
        // SAFETY: by contract.
        unsafe { self.store(target) }
    }

    /// The lanes one place up: the last of `before` comes in first.
    fn after(self, before: Self) -> Self;
    /// The lanes one place down: the first of `behind` comes in last.
    fn before(self, behind: Self) -> Self;

    /// The first elements of a slice shorter than `N`, the other lanes `fill`.
    ///
    /// # Safety
    /// Rule 1.
    #[inline(always)]
    unsafe fn load_part(source: &[Self::Elem], fill: Self::Elem) -> Self {
        let mut buffer = [fill; LANES_MAX];
        let count = source.len().min(Self::N);
        buffer[..count].copy_from_slice(&source[..count]);
        // SAFETY: rule 1 by contract; the buffer has LANES_MAX >= N elements.
        unsafe { Self::load(buffer.as_ptr()) }
    }

    /// The first lanes into a slice shorter than `N`.
    #[inline(always)]
    fn store_part(self, target: &mut [Self::Elem]) {
        let mut buffer = [Self::Elem::default(); LANES_MAX];
        // SAFETY: the buffer has LANES_MAX >= N elements.
        unsafe { self.store(buffer.as_mut_ptr()) };
        let count = target.len().min(Self::N);
        target[..count].copy_from_slice(&buffer[..count]);
    }

    /// `value` in all lanes of a type that is known to work here.
    #[inline(always)]
    fn same(self, value: Self::Elem) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe { Self::splat(value) }
    }

    /// `self + o`
    fn add(self, o: Self) -> Self;
    /// `self - o`
    fn sub(self, o: Self) -> Self;
    /// `self * o`
    fn mul(self, o: Self) -> Self;
    /// `self / o`
    fn div(self, o: Self) -> Self;
    /// `self * b + c`
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `c - self * b`
    fn neg_mul_add(self, b: Self, c: Self) -> Self;
    /// The smaller of each pair.
    fn min(self, o: Self) -> Self;
    /// The larger of each pair.
    fn max(self, o: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The magnitude.
    fn abs(self) -> Self;

    /// `self < o`
    fn lt(self, o: Self) -> Self::Mask;
    /// `self >= o`
    fn ge(self, o: Self) -> Self::Mask;
    /// Which lanes are NaN.
    fn is_nan(self) -> Self::Mask;
    /// Either.
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Bit `i` is lane `i`.
    fn mask_bits(mask: Self::Mask) -> u32;
    /// Whether one lane is set.
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        Self::mask_bits(mask) != 0
    }
    /// `a` where the mask is set, else `b`.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;

    /// The sum of the lanes, in a fixed order.
    fn reduce_add(self) -> Self::Elem;
    /// The four sums of four values.
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [Self::Elem; 4] {
        [v[0].reduce_add(), v[1].reduce_add(), v[2].reduce_add(), v[3].reduce_add()]
    }
    /// The smallest lane; anything when one is NaN.
    #[inline(always)]
    fn reduce_min(self) -> Self::Elem {
        let mut buffer = [Self::Elem::default(); LANES_MAX];
        // SAFETY: the buffer has LANES_MAX >= N elements.
        unsafe { self.store(buffer.as_mut_ptr()) };
        let mut best = buffer[0];
        for value in &buffer[1..Self::N] {
            if *value < best {
                best = *value;
            }
        }
        best
    }
    /// The largest lane; anything when one is NaN.
    #[inline(always)]
    fn reduce_max(self) -> Self::Elem {
        let mut buffer = [Self::Elem::default(); LANES_MAX];
        // SAFETY: the buffer has LANES_MAX >= N elements.
        unsafe { self.store(buffer.as_mut_ptr()) };
        let mut best = buffer[0];
        for value in &buffer[1..Self::N] {
            if *value > best {
                best = *value;
            }
        }
        best
    }
}

/// What `f64` lanes can do besides.
pub trait Lanes64: Lanes<Elem = f64> {
    /// As many lanes of 64 bits.
    type Bits: BitLanes;
    /// The bit patterns.
    fn bits(self) -> Self::Bits;
    /// The values of these bit patterns.
    fn from_bits(bits: Self::Bits) -> Self;
    /// `N` elements of `f32`, widened.
    ///
    /// # Safety
    /// Rule 1, and `N` elements are readable at `source`.
    unsafe fn load_f32(source: *const f32) -> Self;
    /// The lanes rounded to `f32`.
    ///
    /// # Safety
    /// `N` elements are writable at `target`.
    unsafe fn store_f32(self, target: *mut f32);
}

/// Lanes of 64 bits.
pub trait BitLanes: Copy {
    /// All lanes `value`.
    ///
    /// # Safety
    /// Rule 1.
    unsafe fn splat(value: u64) -> Self;
    /// As many words as there are lanes, of any alignment.
    ///
    /// # Safety
    /// Rule 1, and that many words are readable at `source`.
    unsafe fn load(source: *const u64) -> Self;
    /// As many words as there are lanes, of any alignment.
    ///
    /// # Safety
    /// That many words are writable at `target`.
    unsafe fn store(self, target: *mut u64);
    /// `value` in all lanes of a type that is known to work here.
    #[inline(always)]
    fn same(self, value: u64) -> Self {
        // SAFETY: `self` exists (rule 1).
        unsafe { Self::splat(value) }
    }
    /// Wrapping sum.
    fn add(self, o: Self) -> Self;
    /// Bitwise and.
    fn and(self, o: Self) -> Self;
    /// Bitwise or.
    fn or(self, o: Self) -> Self;
    /// Bitwise exclusive or.
    fn xor(self, o: Self) -> Self;
    /// The 64-bit product of the low 32 bits of each lane; the high bits are not looked at.
    fn mul32(self, o: Self) -> Self;
    /// Left shift.
    fn shl<const BITS: i32>(self) -> Self;
    /// Right shift, zeros coming in.
    fn shr<const BITS: i32>(self) -> Self;
}

/// `f32` or `f64` as the kernels see it: its lanes, and its way into and out of `f64` lanes.
///
/// Not to be implemented elsewhere.
pub trait SimdElem: Real {
    /// Lanes of this element.
    type Lanes<I: Isa>: Lanes<Elem = Self>;
    /// As many elements as `I::F64` has lanes, widened.
    ///
    /// # Safety
    /// Rule 1, and that many elements are readable at `source`.
    unsafe fn load_wide<I: Isa>(source: *const Self) -> I::F64;
    /// The lanes rounded to this element.
    ///
    /// # Safety
    /// As many elements as `I::F64` has lanes are writable at `target`.
    unsafe fn store_narrow<I: Isa>(value: I::F64, target: *mut Self);
    /// A value whose bits are `index`, to be moved and selected but never computed with.
    fn carrying(index: u32) -> Self;
    /// What [`SimdElem::carrying`] was given.
    fn carried(self) -> u32;
    /// These elements, where they are `f32`.
    fn f32s(_: &[Self]) -> Option<&[f32]> {
        None
    }
    /// These elements, where they are `f32`.
    fn f32s_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    /// Four rows of four as four columns.
    #[inline(always)]
    fn crossed(rows: [[Self; 4]; 4]) -> [[Self; 4]; 4] {
        let mut columns = rows;
        for i in 0..4 {
            for j in 0..4 {
                columns[i][j] = rows[j][i];
            }
        }
        columns
    }

    /// The first elements of a slice shorter than `I::F64`, widened, the other lanes `fill`.
    ///
    /// # Safety
    /// Rule 1.
    #[inline(always)]
    unsafe fn load_wide_part<I: Isa>(source: &[Self], fill: Self) -> I::F64 {
        let mut buffer = [fill; LANES_MAX];
        let count = source.len().min(I::F64::N);
        buffer[..count].copy_from_slice(&source[..count]);
        // SAFETY: rule 1 by contract; the buffer has LANES_MAX >= N elements.
        unsafe { Self::load_wide::<I>(buffer.as_ptr()) }
    }

    /// The first lanes, rounded, into a slice shorter than `I::F64`.
    #[inline(always)]
    fn store_narrow_part<I: Isa>(value: I::F64, target: &mut [Self]) {
        let mut buffer = [Self::default(); LANES_MAX];
        // SAFETY: the buffer has LANES_MAX >= N elements.
        unsafe { Self::store_narrow::<I>(value, buffer.as_mut_ptr()) };
        let count = target.len().min(I::F64::N);
        target[..count].copy_from_slice(&buffer[..count]);
    }
}

impl SimdElem for f32 {
    type Lanes<I: Isa> = I::F32;
    #[inline(always)]
    fn f32s(elements: &[f32]) -> Option<&[f32]> {
        Some(elements)
    }
    #[inline(always)]
    fn f32s_mut(elements: &mut [f32]) -> Option<&mut [f32]> {
        Some(elements)
    }
    #[inline(always)]
    fn carrying(index: u32) -> f32 {
        f32::from_bits(index)
    }
    #[inline(always)]
    fn carried(self) -> u32 {
        self.to_bits()
    }
    // The compiler moves one number at a time otherwise.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn crossed(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
        use core::arch::x86_64::*;
        let mut columns = rows;
        // SAFETY: every x86-64 has SSE; rows and columns of four are read and written whole, at any address.
        unsafe {
            let (a, b) = (_mm_loadu_ps(rows[0].as_ptr()), _mm_loadu_ps(rows[1].as_ptr()));
            let (c, d) = (_mm_loadu_ps(rows[2].as_ptr()), _mm_loadu_ps(rows[3].as_ptr()));
            let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            _mm_storeu_ps(columns[0].as_mut_ptr(), _mm_movelh_ps(ab, cd));
            _mm_storeu_ps(columns[1].as_mut_ptr(), _mm_movehl_ps(cd, ab));
            let (ab, cd) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            _mm_storeu_ps(columns[2].as_mut_ptr(), _mm_movelh_ps(ab, cd));
            _mm_storeu_ps(columns[3].as_mut_ptr(), _mm_movehl_ps(cd, ab));
        }
        columns
    }
    #[inline(always)]
    unsafe fn load_wide<I: Isa>(source: *const f32) -> I::F64 {
        // SAFETY: by contract.
        unsafe { I::F64::load_f32(source) }
    }
    #[inline(always)]
    unsafe fn store_narrow<I: Isa>(value: I::F64, target: *mut f32) {
        // SAFETY: by contract.
        unsafe { value.store_f32(target) }
    }
}

impl SimdElem for f64 {
    type Lanes<I: Isa> = I::F64;
    #[inline(always)]
    fn carrying(index: u32) -> f64 {
        f64::from_bits(u64::from(index))
    }
    #[inline(always)]
    fn carried(self) -> u32 {
        self.to_bits() as u32
    }
    #[inline(always)]
    unsafe fn load_wide<I: Isa>(source: *const f64) -> I::F64 {
        // SAFETY: by contract.
        unsafe { I::F64::load(source) }
    }
    #[inline(always)]
    unsafe fn store_narrow<I: Isa>(value: I::F64, target: *mut f64) {
        // SAFETY: by contract.
        unsafe { value.store(target) }
    }
}
