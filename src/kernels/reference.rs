//! Every kernel once more, plain and scalar, over slices: the truth the fast forms are tested against.
//!
//! Nothing here is meant to be fast. Each function does its arithmetic in `f64`, in index order, with no
//! blocking and no vector code, so that it can be checked by reading. Tests, the tuner and the
//! `Level::Scalar` fallbacks compare against it; only `knn` and `kmeans` allocate.
//!
//! Shared rules
//! 1. Matrices are row-major, `a[row * columns + column]`.
//! 2. `min` and `max` give NaN as soon as one element is NaN, as NumPy does.
//! 3. Sorting puts NaN last; the other values follow `total_cmp`, so `-0.0` stands before `0.0`.
//! 4. Wrong lengths are the caller's mistake and panic.

use std::cmp::Ordering;

use num_complex::Complex;

/// An element type of the floating-point kernels: `f32` or `f64`.
pub trait Real: Copy + PartialOrd + Default + Send + Sync + std::fmt::Debug + 'static {
    /// The value, widened without loss.
    fn to_f64(self) -> f64;
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
}

/// What two vectors are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Cosine similarity; the largest is the nearest. A zero vector has similarity 0 to everything.
    Cosine,
    /// Euclidean distance (the root is taken); the smallest is the nearest.
    L2,
    /// Inner product; the largest is the nearest.
    InnerProduct,
}

impl Metric {
    /// Which end of the scores is the near one.
    pub fn order(self) -> Order {
        match self {
            Metric::Cosine | Metric::InnerProduct => Order::Largest,
            Metric::L2 => Order::Smallest,
        }
    }
}

/// Which scores a selection keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Keep the largest, best first.
    Largest,
    /// Keep the smallest, best first.
    Smallest,
}

/// How a run of elements becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The sum; 0 for no elements.
    Sum,
    /// The arithmetic mean; NaN for no elements.
    Mean,
    /// The smallest; NaN for no elements.
    Min,
    /// The largest; NaN for no elements.
    Max,
    /// The population standard deviation (divisor `n`); NaN for no elements.
    Std,
    /// The Euclidean norm; 0 for no elements.
    Norm2,
}

/// Whether an option pays for a rise or a fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// Pays `max(S - K, 0)`.
    Call,
    /// Pays `max(K - S, 0)`.
    Put,
}

/// A European option under the Black-Scholes model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EuropeanOption {
    /// Price of the underlying now.
    pub spot: f64,
    /// Strike price.
    pub strike: f64,
    /// Continuously compounded risk-free rate per year.
    pub rate: f64,
    /// Volatility per square root of a year.
    pub volatility: f64,
    /// Time to maturity.
    pub years: f64,
    /// Call or put.
    pub kind: OptionKind,
}

impl EuropeanOption {
    /// True when every number is finite, `volatility` and `years` are not negative, and `spot` is positive.
    pub fn is_valid(&self) -> bool {
        [self.spot, self.strike, self.rate, self.volatility, self.years].iter().all(|v| v.is_finite())
            && self.spot > 0.0
            && self.volatility >= 0.0
            && self.years >= 0.0
    }
}

// ---------------------------------------------------------------------------------------------------------
// Linear algebra

/// `c = a * b` for `a` of `m x k`, `b` of `k x n`, `c` of `m x n`.
pub fn matmul<T: Real>(a: &[T], b: &[T], c: &mut [T], m: usize, k: usize, n: usize) {
    assert_eq!((a.len(), b.len(), c.len()), (m * k, k * n, m * n));
    for i in 0..m {
        for j in 0..n {
            let mut total = 0.0;
            for p in 0..k {
                total += a[i * k + p].to_f64() * b[p * n + j].to_f64();
            }
            c[i * n + j] = T::from_f64(total);
        }
    }
}

/// Product of a sparse matrix in compressed rows and a vector.
pub fn spmv<T: Real>(data: &[T], indices: &[usize], indptr: &[usize], x: &[T], out: &mut [T]) {
    assert_eq!((data.len(), indptr.len()), (indices.len(), out.len() + 1));
    for (row, out) in out.iter_mut().enumerate() {
        let elements = indptr[row]..indptr[row + 1];
        *out = T::from_f64(elements.map(|at| data[at].to_f64() * x[indices[at]].to_f64()).sum());
    }
}

/// The sum of products.
pub fn dot<T: Real>(x: &[T], y: &[T]) -> f64 {
    assert_eq!(x.len(), y.len());
    let mut total = 0.0;
    for i in 0..x.len() {
        total += x[i].to_f64() * y[i].to_f64();
    }
    total
}

/// `out = alpha * x + y`, rounded once to `T`.
pub fn axpy<T: Real>(alpha: T, x: &[T], y: &[T], out: &mut [T]) {
    assert_eq!((x.len(), y.len()), (y.len(), out.len()));
    for i in 0..x.len() {
        out[i] = T::from_f64(alpha.to_f64().mul_add(x[i].to_f64(), y[i].to_f64()));
    }
}

// ---------------------------------------------------------------------------------------------------------
// Reductions

/// The sum; 0 for no elements.
pub fn sum<T: Real>(x: &[T]) -> f64 {
    reduce_strided(Reduction::Sum, x, 0, x.len(), 1)
}

/// The arithmetic mean; NaN for no elements.
pub fn mean<T: Real>(x: &[T]) -> f64 {
    reduce_strided(Reduction::Mean, x, 0, x.len(), 1)
}

/// The smallest element; NaN when one is NaN or there is none.
pub fn min<T: Real>(x: &[T]) -> f64 {
    reduce_strided(Reduction::Min, x, 0, x.len(), 1)
}

/// The largest element; NaN when one is NaN or there is none.
pub fn max<T: Real>(x: &[T]) -> f64 {
    reduce_strided(Reduction::Max, x, 0, x.len(), 1)
}

/// The population standard deviation, in two passes; NaN for no elements.
pub fn std<T: Real>(x: &[T]) -> f64 {
    reduce_strided(Reduction::Std, x, 0, x.len(), 1)
}

/// The Euclidean norm, scaled by the largest magnitude so that it overflows only when the result does.
pub fn norm2<T: Real>(x: &[T]) -> f64 {
    reduce_strided(Reduction::Norm2, x, 0, x.len(), 1)
}

/// Reduces `count` elements of `x` that start at `offset` and lie `stride` apart.
pub fn reduce_strided<T: Real>(op: Reduction, x: &[T], offset: usize, count: usize, stride: usize) -> f64 {
    let at = |i: usize| x[offset + i * stride].to_f64();
    match op {
        Reduction::Sum => (0..count).map(at).sum::<f64>() + 0.0,
        Reduction::Mean => (0..count).map(at).sum::<f64>() / count as f64,
        Reduction::Min => extreme((0..count).map(at), |a, b| a < b),
        Reduction::Max => extreme((0..count).map(at), |a, b| a > b),
        Reduction::Std => {
            let mean = (0..count).map(at).sum::<f64>() / count as f64;
            ((0..count).map(|i| (at(i) - mean) * (at(i) - mean)).sum::<f64>() / count as f64).sqrt()
        }
        Reduction::Norm2 => {
            let largest = (0..count).map(|i| at(i).abs()).fold(0.0, f64::max);
            if (0..count).any(|i| at(i).is_nan()) {
                return f64::NAN;
            }
            if largest == 0.0 || largest.is_infinite() {
                return largest;
            }
            largest * (0..count).map(|i| (at(i) / largest) * (at(i) / largest)).sum::<f64>().sqrt()
        }
    }
}

/// Reduces the middle axis of `x`, seen as `outer x length x inner`, into `out` of `outer x inner`.
///
/// Any axis of a contiguous array has this form: the axes before it multiply to `outer`, those after it to
/// `inner`.
pub fn reduce_axis<T: Real>(
    op: Reduction,
    x: &[T],
    outer: usize,
    length: usize,
    inner: usize,
    out: &mut [f64],
) {
    assert_eq!((x.len(), out.len()), (outer * length * inner, outer * inner));
    for o in 0..outer {
        for i in 0..inner {
            out[o * inner + i] = reduce_strided(op, x, o * length * inner + i, length, inner);
        }
    }
}

/// Running sums along the middle axis of `x`, seen as in [`reduce_axis`].
pub fn cumsum<T: Real>(x: &[T], outer: usize, length: usize, inner: usize, out: &mut [T]) {
    assert_eq!((x.len(), out.len()), (outer * length * inner, x.len()));
    for line in (0..outer).flat_map(|o| (0..inner).map(move |i| o * length * inner + i)) {
        let mut sum = -0.0;
        for at in (0..length).map(|i| line + i * inner) {
            sum += x[at].to_f64();
            out[at] = T::from_f64(sum);
        }
    }
}

/// `exp(x - max) / sum exp(x - max)` along the middle axis of `x`, seen as in [`reduce_axis`].
pub fn softmax<T: Real>(x: &[T], outer: usize, length: usize, inner: usize, out: &mut [T]) {
    assert_eq!((x.len(), out.len()), (outer * length * inner, x.len()));
    for line in (0..outer).flat_map(|o| (0..inner).map(move |i| o * length * inner + i)) {
        let largest = reduce_strided(Reduction::Max, x, line, length, inner);
        let power = |i: usize| (x[line + i * inner].to_f64() - largest).exp();
        let sum: f64 = (0..length).map(power).sum();
        for i in 0..length {
            out[line + i * inner] = T::from_f64(power(i) / sum);
        }
    }
}

fn extreme(values: impl Iterator<Item = f64>, better: impl Fn(f64, f64) -> bool) -> f64 {
    let mut best = None;
    for value in values {
        if value.is_nan() {
            return f64::NAN;
        }
        if best.is_none_or(|b| better(value, b)) {
            best = Some(value);
        }
    }
    best.unwrap_or(f64::NAN)
}

// ---------------------------------------------------------------------------------------------------------
// Sort, transform, stencil

/// Sorts ascending with NaN last (rule 3).
pub fn sort<T: Real>(x: &mut [T]) {
    x.sort_by(|a, b| {
        let (a, b) = (a.to_f64(), b.to_f64());
        a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(&b))
    });
}

/// The places of the elements in the order of [`sort`], equal ones in theirs.
pub fn argsort<T: Real>(x: &[T]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..x.len()).collect();
    places.sort_by(|&a, &b| {
        let (a, b) = (x[a].to_f64(), x[b].to_f64());
        a.is_nan().cmp(&b.is_nan()).then(if a.is_nan() { Ordering::Equal } else { a.total_cmp(&b) })
    });
    places
}

/// The places of the `k` best elements, best first, equal ones in their order and NaN last; `-0.0` counts as
/// less than `0.0`.
pub fn top_k<T: Real>(x: &[T], k: usize, order: Order) -> Vec<usize> {
    let mut places: Vec<usize> = (0..x.len()).collect();
    places.sort_by(|&a, &b| {
        let (a, b) = (x[a].to_f64(), x[b].to_f64());
        let numbers = match order {
            _ if a.is_nan() => Ordering::Equal,
            Order::Largest => b.total_cmp(&a),
            Order::Smallest => a.total_cmp(&b),
        };
        a.is_nan().cmp(&b.is_nan()).then(numbers)
    });
    places.truncate(k);
    places
}

/// Which way a Fourier transform goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `exp(-2 pi i j k / n)`, no scaling.
    Forward,
    /// `exp(+2 pi i j k / n)`, scaled by `1 / n`.
    Inverse,
}

/// The discrete Fourier transform by its definition, `O(n^2)`.
///
/// The angle uses `j * k mod n`, so it stays exact for long inputs.
pub fn dft(input: &[Complex<f64>], out: &mut [Complex<f64>], direction: Direction) {
    assert_eq!(input.len(), out.len());
    let n = input.len();
    let (sign, scale) = match direction {
        Direction::Forward => (-1.0, 1.0),
        Direction::Inverse => (1.0, 1.0 / n as f64),
    };
    for (k, cell) in out.iter_mut().enumerate() {
        let mut total = Complex::new(0.0, 0.0);
        for (j, value) in input.iter().enumerate() {
            let turn = ((j as u128 * k as u128) % n as u128) as f64 / n as f64;
            total += value * Complex::from_polar(1.0, sign * std::f64::consts::TAU * turn);
        }
        *cell = total * scale;
    }
}

/// Which sums of a convolution are the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All that have a term.
    Full,
    /// As many as the grid has points, from the middle of those.
    Same,
    /// Those with all terms.
    Valid,
}

impl Mode {
    /// Zeros before and after a line of the grid, for weights of this length.
    pub fn border(self, length: usize) -> (usize, usize) {
        let after = (length - 1) / 2;
        match self {
            Mode::Full => (length - 1, length - 1),
            Mode::Same => (length - 1 - after, after),
            Mode::Valid => (0, 0),
        }
    }
}

/// The convolution of `x` of `rows x columns` and `w` of `height x width`.
pub fn convolve2d<T: Real>(
    x: &[T],
    [rows, columns]: [usize; 2],
    w: &[T],
    [height, width]: [usize; 2],
    mode: Mode,
) -> Vec<T> {
    assert_eq!((x.len(), w.len()), (rows * columns, height * width));
    // Of all sums, the first of the answer and how many.
    let part = |length: usize, weights: usize| match mode {
        Mode::Full => (0, length + weights - 1),
        Mode::Same => ((weights - 1) / 2, length),
        Mode::Valid => (weights - 1, length + 1 - weights),
    };
    let ((top, high), (left, wide)) = (part(rows, height), part(columns, width));
    let mut out = Vec::new();
    for (r, c) in (0..high).flat_map(|r| (0..wide).map(move |c| (top + r, left + c))) {
        let mut total = 0.0;
        for (p, q) in (0..height).flat_map(|p| (0..width).map(move |q| (p, q))) {
            if (p..p + rows).contains(&r) && (q..q + columns).contains(&c) {
                total += w[p * width + q].to_f64() * x[(r - p) * columns + (c - q)].to_f64();
            }
        }
        out.push(T::from_f64(total));
    }
    out
}

/// One sweep of the five-point stencil: inner points become
/// `u + alpha * (up + down + left + right - 4 u)`, the border is copied.
pub fn stencil5_step<T: Real>(src: &[T], dst: &mut [T], rows: usize, cols: usize, alpha: T) {
    assert_eq!((src.len(), dst.len()), (rows * cols, rows * cols));
    dst.copy_from_slice(src);
    for r in 1..rows.saturating_sub(1) {
        for c in 1..cols.saturating_sub(1) {
            let at = |r: usize, c: usize| src[r * cols + c].to_f64();
            let around = at(r - 1, c) + at(r + 1, c) + at(r, c - 1) + at(r, c + 1);
            dst[r * cols + c] = T::from_f64(at(r, c) + alpha.to_f64() * (around - 4.0 * at(r, c)));
        }
    }
}

/// `steps` sweeps over `grid`, using `scratch` of the same length; the result is in `grid`.
pub fn stencil5<T: Real>(
    grid: &mut [T],
    scratch: &mut [T],
    rows: usize,
    cols: usize,
    alpha: T,
    steps: usize,
) {
    for _ in 0..steps {
        stencil5_step(grid, scratch, rows, cols, alpha);
        grid.copy_from_slice(scratch);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Nearest neighbours

/// The score of one pair of vectors.
pub fn score<T: Real>(metric: Metric, a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len());
    match metric {
        Metric::InnerProduct => dot(a, b),
        Metric::Cosine => {
            let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
            if norms == 0.0 { 0.0 } else { dot(a, b) / norms }
        }
        Metric::L2 => {
            let mut total = 0.0;
            for i in 0..a.len() {
                total += (a[i].to_f64() - b[i].to_f64()).powi(2);
            }
            total.sqrt()
        }
    }
}

/// True when `(a, index_a)` ranks before `(b, index_b)`: better score first, NaN last, ties to the lower index.
pub fn ranks_before(order: Order, a: f64, index_a: u64, b: f64, index_b: u64) -> bool {
    match (a.is_nan(), b.is_nan()) {
        (false, true) => true,
        (true, false) => false,
        (true, true) => index_a < index_b,
        _ if a == b => index_a < index_b,
        _ => match order {
            Order::Largest => a > b,
            Order::Smallest => a < b,
        },
    }
}

/// For each query (`queries` holds them `d` apart) the `min(k, n)` best rows of `corpus`, best first.
///
/// Returns row indices and scores, both `queries x min(k, n)` row-major.
pub fn knn<T: Real>(queries: &[T], corpus: &[T], d: usize, k: usize, metric: Metric) -> (Vec<u64>, Vec<f64>) {
    assert!(d > 0 && queries.len().is_multiple_of(d) && corpus.len().is_multiple_of(d));
    let (mut indices, mut scores) = (Vec::new(), Vec::new());
    for query in queries.chunks_exact(d) {
        let mut all: Vec<(f64, u64)> =
            corpus.chunks_exact(d).zip(0..).map(|(row, i)| (score(metric, query, row), i)).collect();
        all.sort_by(|a, b| {
            if ranks_before(metric.order(), a.0, a.1, b.0, b.1) {
                std::cmp::Ordering::Less
            } else if a.1 == b.1 {
                std::cmp::Ordering::Equal
            } else {
                std::cmp::Ordering::Greater
            }
        });
        for &(value, index) in all.iter().take(k) {
            indices.push(index);
            scores.push(value);
        }
    }
    (indices, scores)
}

// ---------------------------------------------------------------------------------------------------------
// Clusters

/// The nearest of `centroids`, the first of equal ones, and the square of its distance.
///
/// Differences, squares and sums are rounded to `T` one by one: an operation of two `f32` in `f64`, rounded, is that of
/// `f32`. So the fast form can have these very bits.
pub fn nearest_centroid<T: Real>(row: &[T], centroids: &[T]) -> (usize, T) {
    let mut nearest = (0, T::from_f64(f64::INFINITY));
    for (label, centroid) in centroids.chunks_exact(row.len()).enumerate() {
        let mut total = T::default();
        for (value, mean) in row.iter().zip(centroid) {
            let difference = T::from_f64(value.to_f64() - mean.to_f64());
            let square = T::from_f64(difference.to_f64() * difference.to_f64());
            total = T::from_f64(total.to_f64() + square.to_f64());
        }
        if total < nearest.1 {
            nearest = (label, total);
        }
    }
    nearest
}

/// What [`kmeans`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters<T> {
    /// Centroids, `k x d`.
    pub centroids: Vec<T>,
    /// The nearest one of each row.
    pub labels: Vec<usize>,
    /// The sum of the squared distances.
    pub inertia: f64,
    /// Times that the centroids moved.
    pub iterations: usize,
    /// Whether they would hardly move any further.
    pub converged: bool,
    /// Rows that centroids without any took.
    pub taken: usize,
}

/// Lloyd's algorithm on the rows of `x`, of `d` numbers each, from centroids that k-means++ picks: see the kernel for
/// the rules.
pub fn kmeans<T: Real>(
    x: &[T],
    d: usize,
    k: usize,
    seed: u64,
    max_iterations: usize,
    tolerance: f64,
) -> Clusters<T> {
    let rows: Vec<&[T]> = x.chunks_exact(d).collect();
    let n = rows.len();
    assert!(d > 0 && x.len() == n * d && (1..=n).contains(&k));
    let squares = |centroids: &[T]| -> Vec<f64> {
        rows.iter().map(|row| nearest_centroid(row, centroids).1.to_f64()).collect()
    };
    let labels = |centroids: &[T]| -> Vec<usize> {
        rows.iter().map(|row| nearest_centroid(row, centroids).0).collect()
    };
    let mean = |rows: &[&[T]], column: usize| {
        let mut total = 0.0;
        rows.iter().for_each(|row| total += row[column].to_f64());
        T::from_f64(total / rows.len() as f64)
    };

    let any = |draw: u64| ((uniform(seed, draw) * n as f64) as usize).min(n - 1);
    let mut centroids = rows[any(0)].to_vec();
    for draw in 1..k as u64 {
        let weights = squares(&centroids);
        let total: f64 = weights.iter().sum();
        let mut rest = uniform(seed, draw) * total;
        let row = (0..n).find(|&row| {
            rest -= weights[row];
            rest < 0.0
        });
        let last = weights.iter().rposition(|weight| *weight > 0.0);
        centroids.extend(rows[row.or(last).unwrap_or_else(|| any(draw))]);
    }

    let middle: Vec<T> = (0..d).map(|column| mean(&rows, column)).collect();
    let threshold = tolerance * squares(&middle).iter().sum::<f64>() / (n as f64 * d as f64);
    let mut found = Clusters {
        labels: labels(&centroids),
        centroids,
        inertia: 0.0,
        iterations: 0,
        converged: false,
        taken: 0,
    };
    while found.iterations < max_iterations && !found.converged {
        let mut away = squares(&found.centroids);
        for empty in 0..k {
            let count = |label: usize| found.labels.iter().filter(|other| **other == label).count();
            if count(empty) > 0 {
                continue;
            }
            let farthest = (0..n)
                .filter(|&row| away[row] > 0.0 && count(found.labels[row]) > 1)
                .rev()
                .max_by(|&a, &b| away[a].total_cmp(&away[b]));
            if let Some(row) = farthest {
                (found.labels[row], away[row]) = (empty, 0.0);
                found.taken += 1;
            }
        }
        let mut moved = 0.0;
        for label in 0..k {
            let own: Vec<&[T]> =
                (0..n).filter(|&row| found.labels[row] == label).map(|row| rows[row]).collect();
            for column in 0..if own.is_empty() { 0 } else { d } {
                let (value, mean) = (&mut found.centroids[label * d + column], mean(&own, column));
                moved += (mean.to_f64() - value.to_f64()).powi(2);
                *value = mean;
            }
        }
        let again = labels(&found.centroids);
        found.iterations += 1;
        found.converged = again == found.labels || moved <= threshold;
        found.labels = again;
    }
    found.inertia = squares(&found.centroids).iter().sum();
    found
}

// ---------------------------------------------------------------------------------------------------------
// Histogram

/// Adds the elements of `x` to `counts`, equal bins over `[min, max]`; returns how many were left out.
///
/// NumPy's rule: bins are half-open except the last, which includes `max`. Values outside, and NaN, are
/// left out. Edge `i` is `i * ((max - min) / bins) + min` in `f64`; a value that the first guess puts on the
/// wrong side of its edge is moved by one bin, so edges are exact.
pub fn histogram<T: Real>(x: &[T], min: f64, max: f64, counts: &mut [u64]) -> u64 {
    let mut ignored = 0;
    for value in x {
        match histogram_bin(value.to_f64(), min, max, counts.len()) {
            Some(bin) => counts[bin] += 1,
            None => ignored += 1,
        }
    }
    ignored
}

/// [`histogram`] for bytes.
pub fn histogram_u8(x: &[u8], min: f64, max: f64, counts: &mut [u64]) -> u64 {
    let mut ignored = 0;
    for value in x {
        match histogram_bin(f64::from(*value), min, max, counts.len()) {
            Some(bin) => counts[bin] += 1,
            None => ignored += 1,
        }
    }
    ignored
}

/// The bin of one value, or `None` when it lies outside or is NaN. See [`histogram`].
///
/// # Panics
/// When there are no bins, or `min < max` does not hold, or `max - min` is not finite.
pub fn histogram_bin(value: f64, min: f64, max: f64, bins: usize) -> Option<usize> {
    assert!(bins > 0 && min < max && (max - min).is_finite(), "bins {bins} over {min}..{max}");
    if !(value >= min && value <= max) {
        return None;
    }
    let step = (max - min) / bins as f64;
    let scale = bins as f64 / (max - min);
    let last = bins - 1;
    let guess = (((value - min) * scale) as usize).min(last);
    if value < guess as f64 * step + min {
        Some(guess.saturating_sub(1))
    } else if guess != last && value >= (guess + 1) as f64 * step + min {
        Some(guess + 1)
    } else {
        Some(guess)
    }
}

// ---------------------------------------------------------------------------------------------------------
// Random numbers, Monte Carlo, Black-Scholes

/// Philox4x32-10: four random words from a counter and a key.
///
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Being a
/// pure function of the counter, it gives path `i` the same numbers whoever computes it.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(PHILOX_M0) * u64::from(c0);
        let p1 = u64::from(PHILOX_M1) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(PHILOX_W0);
        k1 = k1.wrapping_add(PHILOX_W1);
    }
    [c0, c1, c2, c3]
}

/// Philox's two multipliers and two key increments.
pub const PHILOX_M0: u32 = 0xD251_1F53;
/// See [`PHILOX_M0`].
pub const PHILOX_M1: u32 = 0xCD9E_8D57;
/// See [`PHILOX_M0`].
pub const PHILOX_W0: u32 = 0x9E37_79B9;
/// See [`PHILOX_M0`].
pub const PHILOX_W1: u32 = 0xBB67_AE85;

/// Random number `number` under `seed`, uniform in 0 to below 1, of 53 bits.
pub fn uniform(seed: u64, number: u64) -> f64 {
    let words = philox4x32([number as u32, (number >> 32) as u32, 1, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(words[0]) | u64::from(words[1]) << 32;
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// The standard normal number of path `path` under `seed`.
///
/// Paths `2 p` and `2 p + 1` share Philox counter `p` (key: the seed) and take the cosine and the sine half
/// of one Box-Muller pair: `u1` in `(0, 1]` and `u2` in `[0, 1)`, 52 bits each.
pub fn path_normal(seed: u64, path: u64) -> f64 {
    let pair = path / 2;
    let w = philox4x32([pair as u32, (pair >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let unit = |lo: u32, hi: u32| {
        let bits = u64::from(lo) | u64::from(hi) << 32;
        f64::from_bits(0x3FF0_0000_0000_0000 | bits >> 12)
    };
    let u1 = 2.0 - unit(w[0], w[1]);
    let u2 = unit(w[2], w[3]) - 1.0;
    let radius = (-2.0 * u1.ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * u2).sin_cos();
    radius * if path.is_multiple_of(2) { cos } else { sin }
}

/// Sum and sum of squares of the discounted payoff over paths `first_path .. first_path + count`.
///
/// The price estimate is `sum / count`. Path numbers wrap at 2^64. An invalid option gives NaN.
pub fn monte_carlo(option: &EuropeanOption, seed: u64, first_path: u64, count: u64) -> (f64, f64) {
    if !option.is_valid() {
        return (f64::NAN, f64::NAN);
    }
    let drift = (option.rate - 0.5 * option.volatility * option.volatility) * option.years;
    let spread = option.volatility * option.years.sqrt();
    let discount = (-option.rate * option.years).exp();
    let (mut sum, mut sum_sq) = (0.0, 0.0);
    for i in 0..count {
        let end = option.spot * (drift + spread * path_normal(seed, first_path.wrapping_add(i))).exp();
        let gain = match option.kind {
            OptionKind::Call => end - option.strike,
            OptionKind::Put => option.strike - end,
        };
        let payoff = discount * gain.max(0.0);
        sum += payoff;
        sum_sq += payoff * payoff;
    }
    (sum, sum_sq)
}

/// The Black-Scholes price in closed form; NaN for an invalid option.
pub fn black_scholes(option: &EuropeanOption) -> f64 {
    if !option.is_valid() {
        return f64::NAN;
    }
    let discount = (-option.rate * option.years).exp();
    let spread = option.volatility * option.years.sqrt();
    let sign = match option.kind {
        OptionKind::Call => 1.0,
        OptionKind::Put => -1.0,
    };
    if spread == 0.0 || option.strike <= 0.0 {
        let forward = option.spot - option.strike * discount;
        return (sign * forward).max(0.0);
    }
    let d1 = ((option.spot / option.strike).ln()
        + (option.rate + 0.5 * option.volatility * option.volatility) * option.years)
        / spread;
    let d2 = d1 - spread;
    sign * (option.spot * normal_cdf(sign * d1) - option.strike * discount * normal_cdf(sign * d2))
}

/// The standard normal distribution function, relative error below 1e-13 where it is above 1e-300.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The complementary error function.
///
/// Below 1 in magnitude: `1 - erf`, by the series of positive terms. Above: the continued fraction, from
/// the far end (Abramowitz and Stegun 7.1.6 and 7.1.14).
pub fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < -1.0 {
        return 2.0 - erfc(-x);
    }
    if x <= 1.0 {
        let (mut term, mut total) = (x, x);
        for n in 1..60 {
            term *= 2.0 * x * x / (2 * n + 1) as f64;
            total += term;
        }
        return 1.0 - std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * total;
    }
    if x > 27.3 {
        return 0.0;
    }
    let mut tail = 0.0;
    for n in (1..=400).rev() {
        tail = 0.5 * f64::from(n) / (x + tail);
    }
    0.5 * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() / (x + tail)
}

/// Does nothing: what a task costs when its kernel is free.
pub fn noop() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_words() {
        // Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn erfc_matches_tabulated_values() {
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (5.0, 1.537_459_794_428_035e-12),
            (-1.0, 1.842_700_792_949_715),
            (10.0, 2.088_487_583_762_545e-45),
        ] {
            let got = erfc(x);
            assert!((got - want).abs() <= 2e-14 * want, "erfc({x}) = {got:e}, want {want:e}");
        }
    }

    #[test]
    fn monte_carlo_agrees_with_the_closed_form() {
        for kind in [OptionKind::Call, OptionKind::Put] {
            let option =
                EuropeanOption { spot: 100.0, strike: 105.0, rate: 0.03, volatility: 0.2, years: 1.5, kind };
            let n = 100_000;
            let (sum, sum_sq) = monte_carlo(&option, 42, 0, n);
            let mean = sum / n as f64;
            let error = ((sum_sq / n as f64 - mean * mean) / n as f64).sqrt();
            let want = black_scholes(&option);
            assert!((mean - want).abs() < 4.0 * error, "{kind:?}: {mean} against {want}, sigma {error}");
        }
    }

    #[test]
    fn black_scholes_keeps_put_call_parity() {
        let call = EuropeanOption {
            spot: 90.0,
            strike: 100.0,
            rate: 0.05,
            volatility: 0.3,
            years: 2.0,
            kind: OptionKind::Call,
        };
        let put = EuropeanOption { kind: OptionKind::Put, ..call };
        let parity = call.spot - call.strike * (-call.rate * call.years).exp();
        assert!((black_scholes(&call) - black_scholes(&put) - parity).abs() < 1e-12);
    }

    #[test]
    fn reductions_of_a_small_case_are_the_written_ones() {
        let x = [3.0, -1.0, 2.0, 4.0];
        assert_eq!((sum(&x), mean(&x), min(&x), max(&x)), (8.0, 2.0, -1.0, 4.0));
        assert_eq!(std(&x), 3.5_f64.sqrt());
        assert!((norm2(&[3e200, 4e200]) - 5e200).abs() < 1e186);
        assert!(min(&[1.0, f64::NAN]).is_nan() && max(&[f32::NAN, 1.0]).is_nan());
        let mut out = [0.0; 2];
        reduce_axis(Reduction::Sum, &x, 1, 2, 2, &mut out);
        assert_eq!(out, [5.0, 3.0]);
        reduce_axis(Reduction::Max, &x, 2, 2, 1, &mut out);
        assert_eq!(out, [3.0, 4.0]);
    }

    #[test]
    fn histogram_closes_only_the_last_bin() {
        let mut counts = [0; 3];
        let x = [0.0, 1.0, 2.0, 3.0, 3.1, -0.1, f64::NAN];
        assert_eq!(histogram(&x, 0.0, 3.0, &mut counts), 3);
        assert_eq!(counts, [1, 1, 2]);
    }

    #[test]
    fn sort_puts_nan_last_and_negative_zero_first() {
        let mut x = [f64::NAN, 1.0, 0.0, -0.0, f64::NEG_INFINITY, -f64::NAN];
        sort(&mut x);
        assert_eq!(x[0], f64::NEG_INFINITY);
        assert!(x[1].is_sign_negative() && x[2].is_sign_positive() && x[3] == 1.0);
        assert!(x[4].is_nan() && x[5].is_nan());
    }

    #[test]
    fn dft_and_its_inverse_undo_each_other() {
        let x: Vec<_> = (0..7).map(|i| Complex::new(f64::from(i), 1.0)).collect();
        let (mut y, mut z) = (vec![Complex::default(); 7], vec![Complex::default(); 7]);
        dft(&x, &mut y, Direction::Forward);
        dft(&y, &mut z, Direction::Inverse);
        assert!((y[0] - Complex::new(21.0, 7.0)).norm() < 1e-12);
        assert!(x.iter().zip(&z).all(|(a, b)| (a - b).norm() < 1e-12));
    }

    #[test]
    fn knn_gives_ties_to_the_lower_index() {
        let corpus = [1.0_f32, 0.0, 0.0, 1.0, 1.0, 0.0];
        let (indices, scores) = knn(&[1.0, 0.0], &corpus, 2, 3, Metric::L2);
        assert_eq!(indices, [0, 2, 1]);
        assert_eq!(scores[..2], [0.0, 0.0]);
        assert_eq!(knn(&[1.0, 0.0], &corpus, 2, 2, Metric::Cosine).0, [0, 2]);
    }
}
