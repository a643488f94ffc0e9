//! What is measured: each kernel with its arrays, what bounds it, and what is asked of it.
//!
//! `m` in a size is 2^20. Arrays of kernels that are bound by bandwidth are beyond the last cache of usual hosts; where they
//! are not, their notes say so.

use crate::arrays::DType;
use crate::kernels::KernelId;
use serde_json::{Value, json};

/// What bounds a kernel on this host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Roof {
    /// Multiply-adds in registers.
    Peak,
    /// The triad's bytes a second: it does little with each byte, and looks at it once.
    Bandwidth,
    /// The lower of both, by the operations and bytes that the kernel counts.
    Lower,
    /// One pass over its arrays at the triad's bytes a second: there is no usual count of operations.
    Pass,
    /// Neither arrays nor a usual count of operations: a plain peer, the scalar form of the same kernel.
    ScalarForm,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    Gflops,
    Gbytes,
    Melements,
    Millis,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Unit::Gflops => "GFLOP/s",
            Unit::Gbytes => "GB/s",
            Unit::Melements => "Melem/s",
            Unit::Millis => "ms",
        }
    }
}

/// What the project asks of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ask {
    Nothing,
    /// This share of the roof, or more.
    Share(f64),
    /// So many milliseconds, or fewer.
    Millis(f64),
}

/// Where the arrays come from.
#[derive(Clone, Debug)]
pub(super) enum Feed {
    /// Of these shapes, filled from a seed.
    Shapes(Vec<Vec<usize>>),
    /// A sparse matrix and a vector of so many elements in all.
    Sparse(usize),
    /// Queries and a corpus of these shapes, and what `quantize` makes of the corpus.
    Coded(Vec<Vec<usize>>),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) kernel: KernelId,
    pub(super) dtype: DType,
    size: &'static str,
    pub(super) feed: Feed,
    /// All that the kernel and its check need.
    pub(super) params: Value,
    pub(super) roof: Roof,
    pub(super) unit: Unit,
    pub(super) ask: Ask,
    /// What else has to be known to read the figure.
    pub(super) remark: &'static str,
    /// Left out when it has to be quick.
    is_long: bool,
}

impl Row {
    fn new(kernel: KernelId, dtype: DType, size: &'static str, shapes: &[&[usize]]) -> Self {
        let (roof, unit) = match kernel {
            KernelId::Matmul => (Roof::Peak, Unit::Gflops),
            KernelId::Dot
            | KernelId::Axpy
            | KernelId::Reduce
            | KernelId::Cumsum
            | KernelId::Softmax
            | KernelId::Stencil5
            | KernelId::Expr => (Roof::Bandwidth, Unit::Gbytes),
            KernelId::Hash => (Roof::Pass, Unit::Gbytes),
            KernelId::Sort
            | KernelId::Argsort
            | KernelId::TopK
            | KernelId::Histogram
            | KernelId::Quantize => (Roof::Pass, Unit::Melements),
            KernelId::MonteCarlo => (Roof::ScalarForm, Unit::Melements),
            _ => (Roof::Lower, Unit::Gflops),
        };
        let ask = if roof == Roof::Bandwidth { Ask::Share(0.9) } else { Ask::Nothing };
        let feed = Feed::Shapes(shapes.iter().map(|shape| shape.to_vec()).collect());
        Self { kernel, dtype, size, feed, params: json!({}), roof, unit, ask, remark: "", is_long: false }
    }

    fn with(self, params: Value) -> Self {
        Self { params, ..self }
    }

    fn bound_by(self, roof: Roof, unit: Unit, ask: Ask) -> Self {
        Self { roof, unit, ask, ..self }
    }

    fn asked(self, ask: Ask) -> Self {
        Self { ask, ..self }
    }

    fn remarked(self, remark: &'static str) -> Self {
        Self { remark, ..self }
    }

    fn fed(self, feed: Feed) -> Self {
        Self { feed, ..self }
    }

    fn long(self) -> Self {
        Self { is_long: true, ..self }
    }

    pub(super) fn name(&self) -> String {
        format!("{}_{}_{}", self.kernel, self.dtype.name(), self.size)
    }

    /// The same with arrays that take no time.
    #[cfg(test)]
    pub(super) fn shrunk(&self) -> Self {
        let small = |shapes: &[Vec<usize>]| -> Vec<Vec<usize>> {
            let most = |axes: usize| [4096, 96, 16][axes - 1];
            shapes
                .iter()
                .map(|shape| shape.iter().map(|&length| length.min(most(shape.len()))).collect())
                .collect()
        };
        let feed = match &self.feed {
            // One more than half a power of two, as it was.
            Feed::Shapes(_) if self.kernel == KernelId::Irfft => Feed::Shapes(vec![vec![2049]]),
            Feed::Shapes(shapes) => Feed::Shapes(small(shapes)),
            Feed::Sparse(_) => Feed::Sparse(4000),
            Feed::Coded(shapes) => Feed::Coded(small(shapes)),
        };
        self.clone().fed(feed)
    }

    /// A number that its parameters give.
    pub(super) fn number(&self, name: &str) -> f64 {
        self.params[name].as_f64().unwrap_or(f64::NAN)
    }
}

/// All rows, or those that are quick. `noop` and `sleep` compute nothing: `bench dispatch` has them.
pub(super) fn rows(quick: bool) -> Vec<Row> {
    use DType::{C64, C128, F32, F64, U8};
    use KernelId::{
        Argsort, Axpy, Convolve2d, Cumsum, Dot, Expr, Fft, Hash, Histogram, Ifft, Irfft, Kmeans, Knn, Matmul,
        MonteCarlo, Quantize, Reduce, Rfft, Softmax, Sort, Spmv, Stencil5, TopK,
    };
    const M: usize = 1 << 20;
    let of = Row::new;
    let square = |dtype, size, side: usize| {
        of(Matmul, dtype, size, &[&[side, side], &[side, side]]).asked(Ask::Share(0.9))
    };
    let expression = json!({"expr": "sin(a)*b + 0.5*c*c"});
    let counted = "the sine is counted as one operation";
    let clusters = json!({"k": 16, "seed": 42, "max_iterations": 10, "tolerance": 0});
    let corpus = [100_000, 384];
    let stencil = |steps: usize| json!({"steps": steps, "alpha": 0.1});
    // Exponentials in 64 bits, of which the count knows nothing, put it on the edge between both roofs: nothing is asked.
    let softmax = |dtype, size, lines: usize| {
        of(Softmax, dtype, size, &[&[lines, 4096]])
            .asked(Ask::Nothing)
            .remarked("exponentials are not counted")
    };
    let gathered = "x is read at random places";
    let all = vec![
        square(F32, "512", 512),
        square(F32, "1024", 1024),
        square(F32, "2048", 2048).long(),
        square(F64, "512", 512),
        square(F64, "1024", 1024),
        square(F64, "2048", 2048).long(),
        // A batch of small ones.
        of(Matmul, F32, "64x128", &[&[64, 128, 128], &[64, 128, 128]]),
        of(Matmul, F64, "64x128", &[&[64, 128, 128], &[64, 128, 128]]).long(),
        of(Axpy, F32, "16m", &[&[16 * M], &[16 * M]]).with(json!({"alpha": 1.5})),
        // As much memory as a process keeps for its next answer.
        of(Axpy, F64, "4m", &[&[4 * M], &[4 * M]]).with(json!({"alpha": 1.5})),
        of(Axpy, F64, "8m", &[&[8 * M], &[8 * M]]).with(json!({"alpha": 1.5})),
        of(Dot, F32, "16m", &[&[16 * M], &[16 * M]]),
        of(Dot, F64, "8m", &[&[8 * M], &[8 * M]]),
        of(Reduce, F32, "32m", &[&[32 * M]]),
        of(Reduce, F64, "16m", &[&[16 * M]]),
        of(Cumsum, F32, "16m", &[&[16 * M]]),
        of(Cumsum, F64, "8m", &[&[8 * M]]).long(),
        softmax(F32, "4096x4096", 4096),
        softmax(F64, "2048x4096", 2048).long(),
        of(Expr, F32, "8m", &[&[8 * M], &[8 * M], &[8 * M]]).with(expression.clone()).remarked(counted),
        of(Expr, F64, "4m", &[&[4 * M], &[4 * M], &[4 * M]]).with(expression).remarked(counted),
        of(Stencil5, F32, "4096x4096", &[&[4096, 4096]]).with(stencil(1)),
        of(Stencil5, F64, "4096x2048", &[&[4096, 2048]]).with(stencil(1)).long(),
        // Several steps in one pass over memory.
        of(Stencil5, F32, "4096x4096_8", &[&[4096, 4096]]).with(stencil(8)).bound_by(
            Roof::Lower,
            Unit::Gflops,
            Ask::Nothing,
        ),
        of(Convolve2d, F32, "2048x2048_5x5", &[&[2048, 2048], &[5, 5]]),
        of(Convolve2d, F64, "2048x2048_5x5", &[&[2048, 2048], &[5, 5]]).long(),
        of(Fft, C64, "1m", &[&[M]]),
        of(Fft, C128, "1m", &[&[M]]).long(),
        of(Ifft, C64, "1m", &[&[M]]),
        of(Rfft, F32, "1m", &[&[M]]),
        of(Irfft, C64, "1m", &[&[M / 2 + 1]]),
        of(Sort, F32, "1m", &[&[M]]),
        of(Sort, F64, "1m", &[&[M]]),
        of(Argsort, F32, "1m", &[&[M]]),
        of(TopK, F32, "16m", &[&[16 * M]]).with(json!({"k": 10})),
        of(Histogram, F32, "16m", &[&[16 * M]]).with(json!({"bins": 256, "min": -1, "max": 1})),
        of(Histogram, U8, "64m", &[&[64 * M]]).with(json!({"bins": 256, "min": 0, "max": 256})),
        of(Spmv, F32, "8m", &[]).fed(Feed::Sparse(17 * M)).remarked(gathered),
        of(Spmv, F64, "8m", &[]).fed(Feed::Sparse(17 * M)).remarked(gathered).long(),
        of(Kmeans, F32, "65536x16", &[&[65_536, 16]])
            .with(clusters)
            .remarked("differences, squares and sums are rounded one by one: half the peak is the most"),
        of(Quantize, F32, "100000x384", &[&corpus]),
        of(Knn, F32, "100000x384", &[&[64, 384], &corpus]).with(json!({"k": 10})),
        // The one figure that is asked for as a time.
        of(Knn, F32, "100000x384_coded", &[])
            .fed(Feed::Coded(vec![vec![1, 384], corpus.to_vec()]))
            .with(json!({"k": 10}))
            .bound_by(Roof::Pass, Unit::Millis, Ask::Millis(8.0))
            .remarked("the corpus does not count among its arrays, since few of its rows are read"),
        of(Hash, U8, "64m_sha256", &[&[64 * M]]).with(json!({"algorithm": "sha256"})),
        of(Hash, U8, "64m_blake3", &[&[64 * M]]).with(json!({"algorithm": "blake3"})),
        of(MonteCarlo, F64, "1m", &[]).with(json!({"paths": M})),
    ];
    all.into_iter().filter(|row| !quick || !row.is_long).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check_params;
    use std::collections::BTreeSet;

    #[test]
    fn every_kernel_that_computes_has_a_quick_row() {
        let quick = rows(true);
        for kernel in KernelId::ALL {
            let idle = matches!(kernel, KernelId::Noop | KernelId::Sleep);
            assert_eq!(quick.iter().any(|row| row.kernel == kernel), !idle, "{kernel}");
        }
    }

    #[test]
    fn names_are_kernel_type_and_size_and_differ() {
        let names: BTreeSet<String> = rows(false).iter().map(Row::name).collect();
        assert_eq!(names.len(), rows(false).len());
        assert!(rows(true).iter().all(|row| names.contains(&row.name())));
        for name in ["matmul_f32_1024", "sort_f32_1m", "axpy_f64_8m", "knn_f32_100000x384_coded"] {
            assert!(names.contains(name), "{name} is not in {names:?}");
        }
    }

    #[test]
    fn parameters_are_those_of_the_kernels_and_limits_those_of_the_roofs() {
        for row in rows(false) {
            let given = row.params.as_object().expect("an object");
            assert!(check_params(row.kernel, given).is_ok(), "{}", row.name());
            match row.ask {
                Ask::Nothing => {}
                Ask::Share(_) => assert!(matches!(row.roof, Roof::Peak | Roof::Bandwidth), "{}", row.name()),
                Ask::Millis(_) => assert_eq!(row.unit, Unit::Millis),
            }
        }
    }
}
