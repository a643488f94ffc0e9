//! Arrays: what kernels read and write, and the files they come from and go to.
//!
//! 1. [`NpyFile::open`] maps (or, when small, reads) a `.npy` file and checks its header against its real
//!    length.
//! 2. [`NpyFile::into_array`] makes an [`ArrayRef`] of it: the mapped bytes themselves when they are already
//!    in the form kernels read, else a converted copy.
//! 3. A kernel reads `ArrayRef`s as slices and answers with an [`Array`].
//! 4. [`write_npy`] puts that into a file by rename: a reader sees all of it or nothing. Where that file was an input, it
//!    is kept ([`NpyDraft::publish_keeping`]) until nobody will want it again.
//!
//! Invariants
//! 1. What a kernel sees is C order, native byte order, aligned to its element; nothing else reaches it.
//! 2. `shape` and the number of bytes always agree; both were checked before the memory was asked for.
//! 3. Every bit pattern is a valid element, so no file can be worse than wrong.

mod npy;

pub use npy::{
    HEADER_BYTES_MAX, NDIM_MAX, NpyDraft, NpyError, NpyFile, NpyHeader, NpyWriteError, forget, parse_header,
    put_back, tag_of, take_back, temporary_name, write_npy,
};

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use num_complex::Complex;

use crate::os::map::{Buffer, FileBytes, OutOfMemory};

/// The type of an array's elements. The codes are stable: they travel in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DType {
    /// 32-bit floating point.
    F32 = 1,
    /// 64-bit floating point.
    F64 = 2,
    /// 32-bit signed integer.
    I32 = 3,
    /// 64-bit signed integer.
    I64 = 4,
    /// 8-bit unsigned integer.
    U8 = 5,
    /// 32-bit unsigned integer.
    U32 = 6,
    /// 64-bit unsigned integer.
    U64 = 7,
    /// Complex number of two 32-bit floating-point parts.
    C64 = 8,
    /// Complex number of two 64-bit floating-point parts.
    C128 = 9,
}

/// The names of all element types, as error messages list them.
pub const DTYPE_NAMES: &str = "f32, f64, i32, i64, u8, u32, u64, c64, c128";

/// Byte order of the elements in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// That of this machine; single bytes always.
    Native,
    /// The other one.
    Swapped,
}

impl DType {
    /// Every type, in the order of their codes.
    pub const ALL: [DType; 9] = [
        DType::F32,
        DType::F64,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U32,
        DType::U64,
        DType::C64,
        DType::C128,
    ];

    /// The name: `f32`, `c128` and so on.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::C64 => "c64",
            DType::C128 => "c128",
        }
    }

    /// The type called `name`.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The stable code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The type with this code.
    pub fn from_code(code: u8) -> Option<DType> {
        DType::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F64 | DType::I64 | DType::U64 | DType::C64 => 8,
            DType::C128 => 16,
        }
    }

    /// Bytes of one number: half an element for complex types.
    pub fn part_size(self) -> usize {
        match self {
            DType::C64 => 4,
            DType::C128 => 8,
            other => other.size(),
        }
    }

    /// Whether elements are real floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64)
    }

    /// Whether elements are complex.
    pub fn is_complex(self) -> bool {
        matches!(self, DType::C64 | DType::C128)
    }

    /// The type of a NumPy type string such as `<f4`, `|u1` or `>c16`, with the byte order it names (`<`,
    /// `>`, `=`, `|` or none at all, the last three meaning native, as in NumPy).
    pub fn from_descr(descr: &str) -> Option<(DType, ByteOrder)> {
        let (mark, kind) = match descr.chars().next()? {
            mark @ ('<' | '>' | '=' | '|') => (mark, &descr[1..]),
            _ => ('=', descr),
        };
        let dtype = match kind {
            "f4" => DType::F32,
            "f8" => DType::F64,
            "i4" => DType::I32,
            "i8" => DType::I64,
            "u1" => DType::U8,
            "u4" => DType::U32,
            "u8" => DType::U64,
            "c8" => DType::C64,
            "c16" => DType::C128,
            _ => return None,
        };
        let swapped = if cfg!(target_endian = "little") { '>' } else { '<' };
        let order =
            if mark == swapped && dtype.part_size() > 1 { ByteOrder::Swapped } else { ByteOrder::Native };
        Some((dtype, order))
    }

    /// The NumPy type string of this type on this machine.
    pub fn descr(self) -> &'static str {
        const LITTLE: bool = cfg!(target_endian = "little");
        match self {
            DType::F32 => {
                if LITTLE {
                    "<f4"
                } else {
                    ">f4"
                }
            }
            DType::F64 => {
                if LITTLE {
                    "<f8"
                } else {
                    ">f8"
                }
            }
            DType::I32 => {
                if LITTLE {
                    "<i4"
                } else {
                    ">i4"
                }
            }
            DType::I64 => {
                if LITTLE {
                    "<i8"
                } else {
                    ">i8"
                }
            }
            DType::U8 => "|u1",
            DType::U32 => {
                if LITTLE {
                    "<u4"
                } else {
                    ">u4"
                }
            }
            DType::U64 => {
                if LITTLE {
                    "<u8"
                } else {
                    ">u8"
                }
            }
            DType::C64 => {
                if LITTLE {
                    "<c8"
                } else {
                    ">c8"
                }
            }
            DType::C128 => {
                if LITTLE {
                    "<c16"
                } else {
                    ">c16"
                }
            }
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    /// Keeps [`super::Element`] to the nine types of [`super::DType`].
    pub trait Sealed {}
}

/// A Rust type that is the element of a [`DType`].
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync {
    /// The matching type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($element:ty => $dtype:ident),*) => {
        $(
            impl sealed::Sealed for $element {}
            impl Element for $element {
                const DTYPE: DType = DType::$dtype;
            }
        )*
    };
}
elements!(
    f32 => F32, f64 => F64, i32 => I32, i64 => I64, u8 => U8, u32 => U32, u64 => U64,
    Complex<f32> => C64, Complex<f64> => C128
);

/// The number of elements of a shape, unless it is beyond what this machine can count.
pub fn shape_len(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the array empty, however absurd the other lengths are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, &length| product.checked_mul(length))
}

/// A shape as NumPy writes it: `()`, `(3,)`, `(2, 3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape<'a>(
    /// The lengths, outermost axis first.
    pub &'a [usize],
);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (axis, length) in self.0.iter().enumerate() {
            if axis > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{length}")?;
        }
        f.write_str(if self.0.len() == 1 { ",)" } else { ")" })
    }
}

/// An array could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// The shape has more bytes than this machine can address.
    #[error("an array of shape {} and type {dtype} is larger than memory can be", Shape(.shape))]
    TooLarge {
        /// Type asked for.
        dtype: DType,
        /// Shape asked for.
        shape: Vec<usize>,
    },
    /// The data do not fill the shape.
    #[error("{found} elements do not fill an array of shape {}, which has {needed}", Shape(.shape))]
    WrongLength {
        /// Elements given.
        found: usize,
        /// Elements the shape has.
        needed: usize,
        /// Shape asked for.
        shape: Vec<usize>,
    },
    /// The system has no memory left.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// An owned array in C order, its data on a 64-byte boundary.
#[derive(Debug)]
pub struct Array {
    dtype: DType,
    shape: Vec<usize>,
    data: Buffer,
}

impl Array {
    /// An array of zeros.
    ///
    /// # Errors
    /// [`ArrayError::TooLarge`] or [`ArrayError::OutOfMemory`].
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Array, ArrayError> {
        let data = Buffer::zeroed(byte_len(dtype, shape)?)?;
        Ok(Array { dtype, shape: shape.to_vec(), data })
    }

    /// An array that holds anything, for results that overwrite every element; cheaper than zeros.
    ///
    /// # Errors
    /// As [`Array::zeros`].
    pub fn scratch(dtype: DType, shape: &[usize]) -> Result<Array, ArrayError> {
        let data = Buffer::scratch(byte_len(dtype, shape)?)?;
        Ok(Array { dtype, shape: shape.to_vec(), data })
    }

    /// A copy of `elements`, which are in C order.
    ///
    /// # Errors
    /// [`ArrayError::WrongLength`] when they do not fill `shape`, else as [`Array::zeros`].
    pub fn from_slice<T: Element>(shape: &[usize], elements: &[T]) -> Result<Array, ArrayError> {
        let mut array = Array::scratch(T::DTYPE, shape)?;
        if array.len() != elements.len() {
            let (found, needed) = (elements.len(), array.len());
            return Err(ArrayError::WrongLength { found, needed, shape: shape.to_vec() });
        }
        array.data.copy_from_slice(bytemuck::cast_slice(elements));
        Ok(array)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The length of each axis, outermost first; empty for a single element.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The data as bytes, native byte order.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The data as bytes, native byte order.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The elements, when they are of type `T`.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        elements_of(self.dtype, &self.data)
    }

    /// The elements, when they are of type `T`.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        if self.dtype != T::DTYPE {
            return None;
        }
        if self.data.is_empty() {
            return Some(&mut []);
        }
        bytemuck::try_cast_slice_mut(&mut self.data).ok()
    }
}

/// What a kernel reads: an array that may be someone else's memory. C order, native byte order, aligned.
#[derive(Debug)]
pub struct ArrayRef {
    dtype: DType,
    shape: Vec<usize>,
    store: RefStore,
    /// Where in the store the data begin, and how many bytes they are.
    start: usize,
    length: usize,
}

enum RefStore {
    Owned(Buffer),
    File(FileBytes),
    Shared(SharedBytes),
}

/// Memory that several own together, such as a client's arena.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

impl fmt::Debug for RefStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RefStore::Owned(_) => "Owned",
            RefStore::File(_) => "File",
            RefStore::Shared(_) => "Shared",
        })
    }
}

impl ArrayRef {
    /// An array whose data are `owner`'s bytes from `start` on; copied only when they are not aligned.
    ///
    /// # Errors
    /// [`ArrayError::WrongLength`] when `owner` is shorter than the shape, else as [`Array::zeros`].
    pub fn from_shared(
        owner: SharedBytes,
        start: usize,
        dtype: DType,
        shape: &[usize],
    ) -> Result<ArrayRef, ArrayError> {
        let length = byte_len(dtype, shape)?;
        let bytes = (*owner).as_ref();
        let available = bytes.len().saturating_sub(start);
        if available < length {
            let (found, needed) = (available / dtype.size(), length / dtype.size());
            return Err(ArrayError::WrongLength { found, needed, shape: shape.to_vec() });
        }
        // An empty array may start beyond the end of its owner; it looks at no byte then.
        let start = start.min(bytes.len());
        let data = &bytes[start..start + length];
        let (store, start) = if is_aligned(data, dtype) {
            (RefStore::Shared(owner), start)
        } else {
            let mut copy = Buffer::scratch(length)?;
            copy.copy_from_slice(data);
            (RefStore::Owned(copy), 0)
        };
        Ok(ArrayRef { dtype, shape: shape.to_vec(), store, start, length })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The length of each axis, outermost first; empty for a single element.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.bytes().len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// The data as bytes, native byte order.
    pub fn bytes(&self) -> &[u8] {
        let all = match &self.store {
            RefStore::Owned(buffer) => buffer,
            RefStore::File(bytes) => &bytes[..],
            RefStore::Shared(owner) => (**owner).as_ref(),
        };
        &all[self.start..self.start + self.length]
    }

    /// The elements, when they are of type `T`.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        elements_of(self.dtype, self.bytes())
    }

    /// The rows `rows` of the first axis, as an array of their own over the same bytes.
    ///
    /// # Panics
    /// When it has not so many, or no axis.
    pub fn into_rows(mut self, rows: Range<usize>) -> ArrayRef {
        let all = self.shape[0];
        assert!(rows.start <= rows.end && rows.end <= all, "rows {rows:?} of {all}");
        let row = self.length.checked_div(all).unwrap_or(0);
        self.start += rows.start * row;
        self.length = rows.len() * row;
        self.shape[0] = rows.len();
        self
    }

    /// Whether the data are read where they lie, with no copy of ours.
    pub fn is_borrowed(&self) -> bool {
        match &self.store {
            RefStore::Owned(_) => false,
            RefStore::File(bytes) => bytes.is_mapped(),
            RefStore::Shared(_) => true,
        }
    }
}

impl From<Array> for ArrayRef {
    fn from(array: Array) -> ArrayRef {
        let length = array.data.len();
        ArrayRef {
            dtype: array.dtype,
            shape: array.shape,
            store: RefStore::Owned(array.data),
            start: 0,
            length,
        }
    }
}

/// Bytes of an array, at most what a slice may have.
fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, ArrayError> {
    shape_len(shape)
        .and_then(|elements| elements.checked_mul(dtype.size()))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| ArrayError::TooLarge { dtype, shape: shape.to_vec() })
}

fn elements_of<T: Element>(dtype: DType, bytes: &[u8]) -> Option<&[T]> {
    if dtype != T::DTYPE {
        return None;
    }
    // An empty buffer has no address to be aligned.
    if bytes.is_empty() { Some(&[]) } else { bytemuck::try_cast_slice(bytes).ok() }
}

/// Whether the bytes can be read as elements in place.
fn is_aligned(bytes: &[u8], dtype: DType) -> bool {
    bytes.is_empty() || bytes.as_ptr().addr().is_multiple_of(dtype.part_size())
}

/// Copies `source` into a buffer in C order and native byte order.
fn convert(
    source: &[u8],
    dtype: DType,
    shape: &[usize],
    order: ByteOrder,
    fortran: bool,
) -> Result<Buffer, OutOfMemory> {
    let mut target = Buffer::scratch(source.len())?;
    if fortran && shape.len() > 1 && !source.is_empty() {
        match dtype.size() {
            1 => transpose::<1>(source, &mut target, shape),
            4 => transpose::<4>(source, &mut target, shape),
            8 => transpose::<8>(source, &mut target, shape),
            _ => transpose::<16>(source, &mut target, shape),
        }
    } else {
        target.copy_from_slice(source);
    }
    if order == ByteOrder::Swapped {
        match dtype.part_size() {
            4 => target.as_chunks_mut::<4>().0.iter_mut().for_each(|part| part.reverse()),
            8 => target.as_chunks_mut::<8>().0.iter_mut().for_each(|part| part.reverse()),
            _ => {}
        }
    }
    Ok(target)
}

/// Fortran order to C order, elements of `SIZE` bytes, at least two axes and one element.
///
/// For each position on the middle axes this is the transposition of a matrix of first by last axis; it goes
/// in square tiles, so that both sides use whole cache lines.
fn transpose<const SIZE: usize>(source: &[u8], target: &mut [u8], shape: &[usize]) {
    const TILE: usize = 16;
    let (source, target) = (source.as_chunks::<SIZE>().0, target.as_chunks_mut::<SIZE>().0);
    let (rows, columns) = (shape[0], shape[shape.len() - 1]);
    let middle = &shape[1..shape.len() - 1];
    let middle_len: usize = middle.iter().product();
    let (target_stride, source_stride) = (middle_len * columns, rows * middle_len);
    for position in 0..middle_len {
        // `position` counts the middle axes in C order; in the source the first of them varies fastest.
        let (mut rest, mut source_start) = (position, 0);
        let mut stride = rows * middle_len;
        for &length in middle.iter().rev() {
            stride /= length;
            source_start += rest % length * stride;
            rest /= length;
        }
        let target_start = position * columns;
        for row_tile in (0..rows).step_by(TILE) {
            for column_tile in (0..columns).step_by(TILE) {
                for row in row_tile..rows.min(row_tile + TILE) {
                    for column in column_tile..columns.min(column_tile + TILE) {
                        target[target_start + row * target_stride + column] =
                            source[source_start + column * source_stride + row];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_names_and_descriptions_lead_back() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype.code()), Some(dtype));
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            assert_eq!(DType::from_descr(dtype.descr()), Some((dtype, ByteOrder::Native)));
            assert!(DTYPE_NAMES.split(", ").any(|name| name == dtype.name()));
        }
        assert_eq!((DType::from_code(0), DType::from_code(10)), (None, None));
        let swapped = if cfg!(target_endian = "little") { ">c16" } else { "<c16" };
        assert_eq!(DType::from_descr(swapped), Some((DType::C128, ByteOrder::Swapped)));
        assert_eq!(DType::from_descr(">u1"), Some((DType::U8, ByteOrder::Native)));
        assert_eq!(DType::from_descr("f8"), Some((DType::F64, ByteOrder::Native)));
        for unknown in ["", "<", "<f2", "<U5", "|O", "|b1", "é4", "<f44"] {
            assert_eq!(DType::from_descr(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn shapes_are_written_as_numpy_writes_them() {
        assert_eq!(Shape(&[]).to_string(), "()");
        assert_eq!(Shape(&[3]).to_string(), "(3,)");
        assert_eq!(Shape(&[2, 3]).to_string(), "(2, 3)");
    }

    #[test]
    fn impossible_shapes_are_errors() {
        assert!(matches!(Array::zeros(DType::F64, &[usize::MAX, 2]), Err(ArrayError::TooLarge { .. })));
        assert!(matches!(Array::zeros(DType::F64, &[1 << 61]), Err(ArrayError::TooLarge { .. })));
        assert!(matches!(Array::zeros(DType::U8, &[1 << 61]), Err(ArrayError::OutOfMemory(_))));
        assert_eq!(Array::zeros(DType::F64, &[usize::MAX, 0, 2]).unwrap().len(), 0);
        let short = Array::from_slice(&[3], &[1.0_f32]).unwrap_err();
        assert_eq!(short.to_string(), "1 elements do not fill an array of shape (3,), which has 3");
    }

    #[test]
    fn elements_are_seen_only_as_what_they_are() {
        let mut array = Array::from_slice(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(array.as_slice::<f32>(), Some(&[1.0, 2.0, 3.0, 4.0][..]));
        assert_eq!(array.as_slice::<i32>(), None);
        array.as_mut_slice::<f32>().unwrap()[0] = 9.0;
        let seen = ArrayRef::from(array);
        assert_eq!(seen.as_slice::<f32>().unwrap()[0], 9.0);
        assert_eq!((seen.len(), seen.shape()), (4, &[2, 2][..]));
        let empty = Array::zeros(DType::C128, &[0]).unwrap();
        assert_eq!(empty.as_slice::<Complex<f64>>(), Some(&[][..]));
    }

    #[test]
    fn shared_bytes_are_borrowed_when_aligned_and_copied_when_not() {
        let owner: SharedBytes = Arc::new(bytemuck::cast_slice::<f64, u8>(&[1.0, 2.0, 3.0]).to_vec());
        let aligned = (*owner).as_ref().as_ptr().addr() % 8;
        let array = ArrayRef::from_shared(owner.clone(), 8, DType::F64, &[2]).unwrap();
        assert_eq!(array.is_borrowed(), aligned == 0);
        assert_eq!(array.as_slice::<f64>(), Some(&[2.0, 3.0][..]));
        let odd = ArrayRef::from_shared(owner.clone(), 1, DType::F64, &[2]).unwrap();
        assert!(!odd.is_borrowed() || aligned != 0);
        assert_eq!(odd.as_slice::<f64>().unwrap().len(), 2);
        assert!(ArrayRef::from_shared(owner.clone(), 17, DType::F64, &[1]).is_err());
        assert_eq!(ArrayRef::from_shared(owner, 99, DType::F64, &[0]).unwrap().len(), 0);
    }

    #[test]
    fn fortran_order_becomes_c_order_for_any_number_of_axes() {
        for shape in [vec![3, 5], vec![2, 3, 4], vec![17, 1, 33], vec![2, 3, 2, 5], vec![40, 19], vec![1, 1]]
        {
            let count = shape_len(&shape).unwrap();
            // Element values are their positions in C order; the source holds them in Fortran order.
            let mut source = vec![0_u32; count];
            for (value, place) in (0..count).zip(fortran_places(&shape)) {
                source[place] = value as u32;
            }
            let bytes = bytemuck::cast_slice(&source);
            let converted = convert(bytes, DType::U32, &shape, ByteOrder::Native, true).unwrap();
            let values: &[u32] = bytemuck::cast_slice(&converted);
            assert!(values.iter().copied().eq(0..count as u32), "shape {shape:?}");
        }
    }

    /// For each element in C order, its place in Fortran order.
    fn fortran_places(shape: &[usize]) -> Vec<usize> {
        let count = shape_len(shape).unwrap();
        (0..count)
            .map(|mut rest| {
                let mut indices = vec![0; shape.len()];
                for axis in (0..shape.len()).rev() {
                    indices[axis] = rest % shape[axis];
                    rest /= shape[axis];
                }
                indices.iter().zip(shape).rev().fold(0, |place, (index, length)| place * length + index)
            })
            .collect()
    }
}
