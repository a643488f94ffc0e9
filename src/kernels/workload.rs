//! How much work a call is, and calls of a chosen size to measure with.

use num_complex::Complex;
use serde_json::{Map, json};

use super::{KernelId, Params, check_params, spec};
use crate::arrays::{Array, ArrayError, DType, Element};

/// Number of size classes.
pub const SIZE_CLASSES: usize = 32;

/// The size class of an amount of work: its logarithm to base 2, at most 31. No work and one unit are class
/// 0.
pub fn size_class(work: u64) -> u8 {
    work.checked_ilog2().unwrap_or(0).min(SIZE_CLASSES as u32 - 1) as u8
}

/// The work of a call, in a unit of its kernel's own that running time grows about linearly with.
///
/// Elements of all inputs, of `irfft` those it looks at, times `steps` for `stencil5`; 1,024 multiply-adds for `matmul`,
/// `convolve2d`, `knn` and a pass of `kmeans`, the number of which only the data know; paths for `monte_carlo`; microseconds for `sleep`; 1 for `noop`. Shapes that the kernel will refuse give some
/// number.
pub fn work_elements(kernel: KernelId, params: &Params, shapes: &[&[usize]]) -> u64 {
    let product =
        |lengths: &[usize]| lengths.iter().fold(1_u64, |all, &length| all.saturating_mul(length as u64));
    let elements = shapes.iter().fold(0_u64, |all, shape| all.saturating_add(product(shape)));
    match kernel {
        KernelId::Matmul => match shapes {
            [a @ [a_batch @ .., _, _], [b_batch @ .., rows, columns]] => {
                let n = if matches!(params.word("transpose"), "b" | "both") { rows } else { columns };
                let repeated = if a_batch.is_empty() { product(b_batch) } else { 1 };
                product(a).saturating_mul(*n as u64).saturating_mul(repeated) / 1024
            }
            _ => elements,
        },
        KernelId::Knn => match shapes {
            [[q, d], [n, _], ..] => product(&[*q, *d, *n]) / 1024,
            _ => elements,
        },
        KernelId::Kmeans => match shapes {
            [x] => product(x).saturating_mul(params.count("k") as u64) / 1024,
            _ => elements,
        },
        KernelId::Convolve2d => match shapes {
            [x, w] => product(x).saturating_mul(product(w)) / 1024,
            _ => elements,
        },
        KernelId::Stencil5 => elements.saturating_mul(params.count("steps").max(1) as u64),
        KernelId::Irfft => match (shapes, params.int("n")) {
            ([[batch @ .., _]], Some(n)) => product(batch).saturating_mul(n as u64 / 2 + 1),
            _ => elements,
        },
        KernelId::MonteCarlo => params.count("paths") as u64,
        KernelId::Sleep => (params.float("seconds").unwrap_or(0.0) * 1e6) as u64,
        KernelId::Noop => 1,
        _ => elements,
    }
}

/// Inputs and parameters of about `size` elements in all, the same for the same seed.
///
/// Floats are uniform between -1 and 1, integers over their whole range. A type the kernel does not take
/// becomes the first it does. `monte_carlo` gets `size` paths, `sleep` `size` microseconds.
///
/// # Errors
/// [`ArrayError`] when there is no memory for it.
pub fn synthetic_inputs(
    kernel: KernelId,
    size: usize,
    dtype: DType,
    seed: u64,
) -> Result<(Vec<Array>, Params), ArrayError> {
    let dtypes = spec(kernel).dtypes;
    let dtype = if dtypes.contains(&dtype) { dtype } else { dtypes.first().copied().unwrap_or(dtype) };
    let side = |elements: usize| (elements.max(1) as f64).sqrt().round().max(1.0) as usize;
    let half = (size / 2).max(1);
    let mut given = Map::new();
    let shapes: Vec<Vec<usize>> = match kernel {
        KernelId::Matmul => vec![vec![side(half); 2]; 2],
        KernelId::Dot | KernelId::Axpy => vec![vec![half]; 2],
        KernelId::Stencil5 => vec![vec![side(size); 2]],
        KernelId::Convolve2d => vec![vec![side(size); 2], vec![5; 2]],
        KernelId::Fft | KernelId::Ifft | KernelId::Rfft => vec![vec![1 << size.max(1).ilog2()]],
        KernelId::Irfft => vec![vec![(1 << size.max(2).ilog2()) / 2 + 1]],
        KernelId::Knn => {
            let d = 64.min(size.max(1));
            let rows = (size / d).max(2);
            let queries = (rows / 16).clamp(1, 64);
            let corpus = (rows - queries).max(1);
            given.insert("k".into(), json!(10.min(corpus)));
            vec![vec![queries, d], vec![corpus, d]]
        }
        KernelId::Kmeans => {
            let d = 16.min(size.max(1));
            let rows = (size / d).max(1);
            given.insert("k".into(), json!(16.min(rows)));
            given.insert("max_iterations".into(), json!(10));
            given.insert("tolerance".into(), json!(0));
            vec![vec![rows, d]]
        }
        KernelId::MonteCarlo => {
            given.insert("paths".into(), json!(size.clamp(2, 1_000_000_000)));
            Vec::new()
        }
        KernelId::Sleep => {
            given.insert("seconds".into(), json!((size as f64 * 1e-6).min(86_400.0)));
            Vec::new()
        }
        KernelId::Noop => Vec::new(),
        KernelId::Expr => {
            given.insert("expr".into(), json!("sin(a)*b + 0.5*c*c"));
            vec![vec![(size / 3).max(1)]; 3]
        }
        KernelId::Softmax => {
            let rows = side(size);
            vec![vec![rows, size / rows]]
        }
        KernelId::Quantize => {
            let d = 64.min(size.max(1));
            vec![vec![(size / d).max(1), d]]
        }
        KernelId::TopK => {
            let length = size.max(1);
            given.insert("k".into(), json!(10.min(length)));
            vec![vec![length]]
        }
        KernelId::Spmv => return Ok((sparse(size, dtype, seed)?, Params::defaults(kernel))),
        KernelId::Reduce
        | KernelId::Sort
        | KernelId::Histogram
        | KernelId::Cumsum
        | KernelId::Argsort
        | KernelId::Hash => vec![vec![size]],
    };
    let mut random = SplitMix(seed);
    let arrays = shapes.iter().map(|shape| filled(dtype, shape, &mut random)).collect::<Result<_, _>>()?;
    let params = check_params(kernel, &given).unwrap_or_else(|_| Params::defaults(kernel));
    Ok((arrays, params))
}

/// An array of this shape with the values that [`synthetic_inputs`] has, the same for the same seed.
///
/// # Errors
/// [`ArrayError`] when there is no memory for it.
pub fn synthetic_array(dtype: DType, shape: &[usize], seed: u64) -> Result<Array, ArrayError> {
    filled(dtype, shape, &mut SplitMix(seed))
}

/// A square sparse matrix of sixteen elements a row, and a vector: about `size` elements in all.
fn sparse(size: usize, dtype: DType, seed: u64) -> Result<Vec<Array>, ArrayError> {
    const PER_ROW: usize = 16;
    let rows = (size / (2 * PER_ROW + 2)).max(1);
    let count = rows * PER_ROW;
    let mut random = SplitMix(seed);
    let data = filled(dtype, &[count], &mut random)?;
    let mut indices = Array::scratch(DType::I32, &[count])?;
    let columns = rows.min(i32::MAX as usize) as u64;
    fill::<i32>(&mut indices, || (random.next() % columns) as i32);
    let mut starts = (0..).step_by(PER_ROW);
    let mut indptr = Array::scratch(DType::I32, &[rows + 1])?;
    fill::<i32>(&mut indptr, || starts.next().unwrap_or(i32::MAX));
    Ok(vec![data, indices, indptr, filled(dtype, &[rows], &mut random)?])
}

fn fill<T: Element>(array: &mut Array, mut next: impl FnMut() -> T) {
    if let Some(elements) = array.as_mut_slice::<T>() {
        elements.fill_with(&mut next);
    }
}

fn filled(dtype: DType, shape: &[usize], random: &mut SplitMix) -> Result<Array, ArrayError> {
    let mut array = Array::scratch(dtype, shape)?;
    match dtype {
        DType::F32 => fill(&mut array, || random.unit() as f32),
        DType::F64 => fill(&mut array, || random.unit()),
        DType::I32 => fill(&mut array, || random.next() as i32),
        DType::I64 => fill(&mut array, || random.next() as i64),
        DType::U8 => fill(&mut array, || random.next() as u8),
        DType::U32 => fill(&mut array, || random.next() as u32),
        DType::U64 => fill(&mut array, || random.next()),
        DType::C64 => fill(&mut array, || Complex::new(random.unit() as f32, random.unit() as f32)),
        DType::C128 => fill(&mut array, || Complex::new(random.unit(), random.unit())),
    }
    Ok(array)
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): enough for test data.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (2.0 / (1_u64 << 53) as f64) - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Call, Level, Variant, run};

    #[test]
    fn classes_are_logarithms_within_bounds() {
        assert_eq!((size_class(0), size_class(1), size_class(1023), size_class(1024)), (0, 0, 9, 10));
        assert_eq!(size_class(u64::MAX), 31);
    }

    #[test]
    fn work_never_overflows() {
        for kernel in KernelId::ALL {
            let huge: &[usize] = &[usize::MAX, usize::MAX];
            work_elements(kernel, &Params::defaults(kernel), &[huge, huge]);
            work_elements(kernel, &Params::defaults(kernel), &[]);
        }
        let shapes: [&[usize]; 2] = [&[64, 64], &[64, 64]];
        assert_eq!(work_elements(KernelId::Matmul, &Params::defaults(KernelId::Matmul), &shapes), 256);
    }

    #[test]
    fn synthetic_calls_run_and_repeat() {
        for kernel in KernelId::ALL {
            for dtype in DType::ALL {
                for size in [0, 1, 2, 100, 5000] {
                    let (arrays, params) = synthetic_inputs(kernel, size, dtype, 7).unwrap();
                    let (again, _) = synthetic_inputs(kernel, size, dtype, 7).unwrap();
                    assert!(arrays.iter().zip(&again).all(|(a, b)| a.bytes() == b.bytes()));
                    let inputs: Vec<_> = arrays.into_iter().map(Into::into).collect();
                    let variant = Variant::default_for(kernel, Level::best());
                    let outcome =
                        run(&Call { kernel, params: &params, inputs: &inputs, variant, pulse: &() });
                    assert!(outcome.is_ok(), "{kernel} {dtype} {size}: {outcome:?}");
                }
            }
        }
    }
}
