//! `kmeans`: clusters of rows by Lloyd's algorithm, from centroids that k-means++ picks.
//!
//! Lloyd, "Least squares quantization in PCM" (IEEE Transactions on Information Theory 28, 1982): every row goes to the
//! nearest centroid, every centroid to the mean of its rows, over and over. Arthur and Vassilvitskii, "k-means++: the
//! advantages of careful seeding" (SODA 2007): the first centroid is any row, each further one a row that is picked
//! with a chance that grows with its squared distance to the nearest so far.
//!
//! A pass reads the rows from memory once: while a block is in the cache its rows find their centroids and are added to
//! the sums that the next centroids are made of.
//!
//! The same call gives the same bits on every level and every machine: squared distances are rounded alike everywhere
//! (`simd::nearest_centroids`), sums over rows are those of `f64` in a fixed order, and random numbers are a function
//! of the seed and their number. Bounds that spare distances (Elkan 2003, Hamerly 2010) are not kept: rows would go
//! different ways, and a lane for each row would be lost.

use serde_json::json;

use super::reference::{Real, uniform};
use super::simd::{self, SimdElem, TILE_ROWS};
use super::{Call, KernelError, Outcome, Pace, elements_mut, number};
use crate::arrays::{Array, DType, Element};

/// How the labels' file ends: [`super::extra_path`] puts it beside the output.
pub const LABELS_SUFFIX: &str = ".labels.npy";

/// Bytes of a block of rows, and of the centroids it is compared with at a time: both lie in a usual second-level
/// cache.
const BLOCK_BYTES: usize = 256 << 10;
/// Fewest centroids at a time, and most rows in a block.
const CENTROIDS_MIN: usize = 4;
const ROWS_MAX: usize = 4096;
/// Rows whose weights are added up together, so that a pick walks along few sums.
const PICK_ROWS: usize = 1024;

/// Array: centroids `(k, d)` in the input's type. Extra [`LABELS_SUFFIX`]: the centroid nearest to each row, `(n,)`,
/// `i32`, the first of equal ones. Result: `k`, `iterations` done, `inertia` (the sum of the squared distances), whether
/// it `converged`.
///
/// It has converged when no row changed its centroid, or the squares of the centroids' last movements add up to at most
/// `tolerance` times the mean variance of the columns, as in scikit-learn; labels and inertia are those of the
/// centroids that are the answer. A centroid that loses all its rows takes the row that is farthest from its own, the
/// first of equal ones, if that is not the only one there; where no row is away from its centroid it stays, so fewer
/// different rows than `k` give equal centroids, of which the first has the rows.
pub(super) fn kmeans(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => kmeans_of::<f32>(call),
        _ => kmeans_of::<f64>(call),
    }
}

fn kmeans_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let (n, d) = call.matrix(0, "(n, d)")?;
    let x = call.slice::<T>(0)?;
    if d == 0 {
        return Err(call.wrong_shape(0, "(n, d) with d of 1 or more"));
    }
    let k = call.params.count("k");
    if k > n {
        return Err(call.wrong_shape(0, format!("({k}, {d}) or more rows, because k is {k}")));
    }
    check_numbers(call, x, d)?;
    let mut centroids = call.answer(T::DTYPE, &[k, d])?;
    let mut labels = call.answer(DType::I32, &[n])?;
    let mut clusters = Clusters::new(call, x, d, &mut centroids, &mut labels)?;
    let threshold = clusters.threshold()?;
    clusters.pick()?;
    let steps = call.params.count("max_iterations");
    let (mut iterations, mut converged) = (0, false);
    clusters.assign()?;
    while iterations < steps && !converged {
        let moved = clusters.update()?;
        iterations += 1;
        let changed = clusters.assign()?;
        converged = !changed || moved <= threshold;
    }
    let inertia = clusters.inertia();
    Ok(Outcome {
        flops: clusters.distances * 3.0 * d as f64,
        result: Some(json!({
            "k": k, "iterations": iterations, "inertia": number(inertia), "converged": converged,
        })),
        array: Some(centroids),
        extra: vec![(LABELS_SUFFIX, labels)],
        ..Outcome::default()
    })
}

/// Refuses what has no distances.
fn check_numbers<T: SimdElem>(call: &Call<'_>, x: &[T], d: usize) -> Result<(), KernelError> {
    // Squares of differences, `d` of them, add up to a quarter of the greatest number at most.
    let greatest = if size_of::<T>() == 4 { f64::from(f32::MAX) } else { f64::MAX };
    let limit = (greatest / d as f64).sqrt() / 4.0;
    let mut pace = Pace::new(call);
    for (number, block) in x.chunks(ROWS_MAX * 16).enumerate() {
        pace.step(block.len())?;
        let (low, high) = (simd::min(call.level(), block).to_f64(), simd::max(call.level(), block).to_f64());
        if low >= -limit && high <= limit {
            continue;
        }
        let is_bad = |value: &T| value.to_f64().is_nan() || value.to_f64().abs() > limit;
        if let Some(at) = block.iter().position(is_bad) {
            let (value, at) = (block[at].to_f64(), number * ROWS_MAX * 16 + at);
            return Err(call.wrong_value(format!(
                "inputs[0] \"x\" has {value:e} at ({}, {}), needs numbers of at most {limit:.1e} in magnitude, \
                 whose squared distances are finite",
                at / d,
                at % d
            )));
        }
    }
    Ok(())
}

/// Rows of `d` numbers in a block, whole tiles of them.
fn rows_of<T>(d: usize) -> usize {
    (BLOCK_BYTES / d.saturating_mul(size_of::<T>())).clamp(TILE_ROWS, ROWS_MAX) / TILE_ROWS * TILE_ROWS
}

/// The sum, added up in an order that is the same on every level.
fn sum<T: Real>(values: &[T]) -> f64 {
    let mut sums = [0.0; 8];
    let (whole, rest) = values.as_chunks::<8>();
    for values in whole {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value.to_f64();
        }
    }
    let rest: f64 = rest.iter().map(|value| value.to_f64()).sum();
    sums.iter().sum::<f64>() + rest
}

struct Clusters<'a, T> {
    call: &'a Call<'a>,
    x: &'a [T],
    d: usize,
    centroids: &'a mut [T],
    labels: &'a mut [i32],
    /// Squared distance of each row to its centroid.
    squares: Vec<T>,
    /// Of the rows with each label.
    sums: Vec<f64>,
    counts: Vec<usize>,
    /// Room for what one block of rows finds.
    found: Vec<i32>,
    /// Room for a tile of rows.
    tile: Vec<T>,
    pace: Pace<'a>,
    /// How many were computed.
    distances: f64,
}

impl<'a, T: SimdElem + Element> Clusters<'a, T> {
    fn new(
        call: &'a Call<'a>,
        x: &'a [T],
        d: usize,
        centroids: &'a mut Array,
        labels: &'a mut Array,
    ) -> Result<Clusters<'a, T>, KernelError> {
        let (centroids, labels) = (elements_mut::<T>(centroids), elements_mut::<i32>(labels));
        labels.fill(-1);
        Ok(Clusters {
            squares: call.space(labels.len())?,
            sums: call.space(centroids.len())?,
            counts: call.space(centroids.len() / d)?,
            found: call.space(ROWS_MAX)?,
            tile: call.space(TILE_ROWS.saturating_mul(d))?,
            pace: Pace::new(call),
            distances: 0.0,
            call,
            x,
            d,
            centroids,
            labels,
        })
    }

    /// How much the centroids may move in the last step, as a sum of squares.
    fn threshold(&mut self) -> Result<f64, KernelError> {
        let tolerance = self.call.params.float("tolerance").unwrap_or(0.0);
        if tolerance == 0.0 {
            return Ok(0.0);
        }
        let (n, d) = (self.labels.len(), self.d);
        self.found.fill(0);
        for rows in self.x.chunks(ROWS_MAX * d) {
            self.pace.step(rows.len())?;
            simd::add_to_clusters(
                self.call.level(),
                rows,
                d,
                &self.found[..rows.len() / d],
                &mut self.sums[..d],
            );
        }
        for (mean, sum) in self.centroids.iter_mut().zip(&self.sums[..d]) {
            *mean = T::from_f64(sum / n as f64);
        }
        self.nearer(0)?;
        Ok(tolerance * self.inertia() / (n as f64 * d as f64))
    }

    /// Squared distances of all rows to centroid `c` where they are less than what is there; with the first one all are.
    fn nearer(&mut self, c: usize) -> Result<(), KernelError> {
        let (call, d) = (self.call, self.d);
        let centroid = &self.centroids[c * d..][..d];
        if c == 0 {
            self.squares.fill(T::from_f64(f64::INFINITY));
        }
        let rows = rows_of::<T>(d);
        for (x, squares) in self.x.chunks(rows * d).zip(self.squares.chunks_mut(rows)) {
            self.pace.step(x.len())?;
            let found = &mut self.found[..squares.len()];
            simd::nearest_centroids(call.level(), x, d, centroid, 0, &mut self.tile, squares, found);
        }
        self.distances += self.squares.len() as f64;
        Ok(())
    }

    /// The first centroids, by k-means++. Once every row is one of them the others are any rows.
    fn pick(&mut self) -> Result<(), KernelError> {
        let (call, n, d) = (self.call, self.labels.len(), self.d);
        let seed = call.params.int("seed").unwrap_or(0) as u64;
        let mut sums: Vec<f64> = call.space(n.div_ceil(PICK_ROWS))?;
        let any = |draw: u64| ((uniform(seed, draw) * n as f64) as usize).min(n - 1);
        let (mut row, mut total) = (any(0), f64::INFINITY);
        for c in 0..self.counts.len() {
            self.pace.step(d)?;
            self.centroids[c * d..][..d].copy_from_slice(&self.x[row * d..][..d]);
            if c + 1 == self.counts.len() {
                break;
            }
            if total > 0.0 {
                self.nearer(c)?;
                for (total, squares) in sums.iter_mut().zip(self.squares.chunks(PICK_ROWS)) {
                    *total = sum(squares);
                }
                total = sums.iter().sum();
            }
            let draw = c as u64 + 1;
            row = if total > 0.0 { self.weighted(&sums, uniform(seed, draw) * total) } else { any(draw) };
        }
        Ok(())
    }

    /// The row at which the running sum of the squared distances passes `rest`.
    fn weighted(&self, sums: &[f64], mut rest: f64) -> usize {
        let passes = |sum: &f64| {
            let is_here = rest < *sum;
            rest -= if is_here { 0.0 } else { *sum };
            is_here
        };
        // Where rounding leads beyond the end it is the last row with a weight.
        let block = sums.iter().position(passes).or_else(|| sums.iter().rposition(|sum| *sum > 0.0));
        let first = block.unwrap_or(0) * PICK_ROWS;
        let mut found = first;
        for (row, square) in (first..).zip(self.squares[first..].iter().take(PICK_ROWS)) {
            let weight = square.to_f64();
            if weight > 0.0 {
                found = row;
            }
            if rest < weight {
                break;
            }
            rest -= weight;
        }
        found
    }

    /// Finds every row's centroid and adds up the rows of each; whether one changed.
    fn assign(&mut self) -> Result<bool, KernelError> {
        let (call, d) = (self.call, self.d);
        let together = (BLOCK_BYTES / (d * size_of::<T>())).max(CENTROIDS_MIN);
        let rows = rows_of::<T>(d);
        self.sums.fill(0.0);
        self.counts.fill(0);
        let mut changed = false;
        let blocks = self.squares.chunks_mut(rows).zip(self.labels.chunks_mut(rows));
        for (x, (squares, labels)) in self.x.chunks(rows * d).zip(blocks) {
            let found = &mut self.found[..labels.len()];
            squares.fill(T::from_f64(f64::INFINITY));
            found.fill(0);
            for (number, part) in self.centroids.chunks(together * d).enumerate() {
                // An eighth, because that much work is what moving one element takes.
                self.pace.step((x.len() / 8).saturating_mul(part.len() / d))?;
                let first = number * together;
                simd::nearest_centroids(call.level(), x, d, part, first, &mut self.tile, squares, found);
            }
            simd::add_to_clusters(call.level(), x, d, found, &mut self.sums);
            for label in &*found {
                self.counts[*label as usize] += 1;
            }
            changed |= *labels != *found;
            labels.copy_from_slice(found);
        }
        self.distances += self.squares.len() as f64 * self.counts.len() as f64;
        Ok(changed)
    }

    /// Moves every centroid to the mean of its rows; the sum of the squares of the movements.
    fn update(&mut self) -> Result<f64, KernelError> {
        let d = self.d;
        if self.fill_empty()? {
            self.sums.fill(0.0);
            for (x, labels) in self.x.chunks(ROWS_MAX * d).zip(self.labels.chunks(ROWS_MAX)) {
                self.pace.step(x.len())?;
                simd::add_to_clusters(self.call.level(), x, d, labels, &mut self.sums);
            }
        }
        let mut moved = 0.0;
        let centroids = self.centroids.chunks_exact_mut(d).zip(self.sums.chunks_exact(d));
        for ((centroid, sums), count) in centroids.zip(&self.counts) {
            self.pace.step(d)?;
            if *count > 0 {
                for (value, sum) in centroid.iter_mut().zip(sums) {
                    let mean = T::from_f64(sum / *count as f64);
                    moved += (mean.to_f64() - value.to_f64()).powi(2);
                    *value = mean;
                }
            }
        }
        Ok(moved)
    }

    /// Gives the rows that are farthest away to centroids without any; whether there were both.
    fn fill_empty(&mut self) -> Result<bool, KernelError> {
        let mut filled = false;
        for empty in 0..self.counts.len() {
            if self.counts[empty] > 0 {
                continue;
            }
            let (mut farthest, mut most) = (None, 0.0);
            for (row, (square, label)) in self.squares.iter().zip(&*self.labels).enumerate() {
                self.pace.step(1)?;
                if square.to_f64() > most && self.counts[*label as usize] > 1 {
                    (farthest, most) = (Some(row), square.to_f64());
                }
            }
            let Some(row) = farthest else { break };
            self.counts[self.labels[row] as usize] -= 1;
            self.counts[empty] = 1;
            self.labels[row] = empty as i32;
            self.squares[row] = T::default();
            filled = true;
        }
        Ok(filled)
    }

    fn inertia(&self) -> f64 {
        self.squares.chunks(PICK_ROWS).map(sum).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KernelId, Level, Params, Variant, check_params};
    use super::*;

    #[test]
    fn the_farthest_row_goes_to_an_empty_cluster_unless_it_is_the_only_one_of_its_own() {
        let kernel = KernelId::Kmeans;
        let (params, x) = (Params::defaults(kernel), [0.0_f64; 6]);
        let input = Array::from_slice(&[6, 1], &x).unwrap().into();
        let variant = Variant::default_for(kernel, Level::best());
        let call = Call { kernel, params: &params, inputs: &[input], variant, pulse: &() };
        let fill = |squares: [f64; 6], labels: [i32; 6]| {
            let (mut centroids, mut own) =
                (call.answer(DType::F64, &[5, 1]).unwrap(), call.answer(DType::I32, &[6]).unwrap());
            let mut clusters = Clusters::new(&call, &x, 1, &mut centroids, &mut own).unwrap();
            clusters.labels.copy_from_slice(&labels);
            clusters.squares.copy_from_slice(&squares);
            labels.iter().for_each(|label| clusters.counts[*label as usize] += 1);
            let filled = clusters.fill_empty().unwrap();
            let mut counts = vec![0; 5];
            clusters.labels.iter().for_each(|label| counts[*label as usize] += 1);
            assert_eq!(clusters.counts, counts);
            (filled, clusters.labels.to_vec())
        };
        // Row 5 is alone; of rows 1 and 4, equally far, the first goes first; then 3 is the only one left of its own.
        assert_eq!(fill([1.0, 3.0, 2.0, 2.5, 3.0, 9.0], [0, 0, 0, 1, 1, 2]), (true, vec![0, 3, 0, 1, 4, 2]));
        // Nobody is away from the centroid.
        assert_eq!(fill([0.0; 6], [0, 0, 0, 1, 1, 2]), (false, vec![0, 0, 0, 1, 1, 2]));
        assert_eq!(fill([1.0; 6], [0, 1, 2, 3, 4, 4]), (false, vec![0, 1, 2, 3, 4, 4]));
    }

    #[test]
    fn a_pick_is_the_row_at_which_the_running_sum_passes() {
        let kernel = KernelId::Kmeans;
        let (n, params) = (3 * PICK_ROWS, Params::defaults(kernel));
        let x = vec![0.0_f64; n];
        let input = Array::from_slice(&[n, 1], &x).unwrap().into();
        let variant = Variant::default_for(kernel, Level::best());
        let call = Call { kernel, params: &params, inputs: &[input], variant, pulse: &() };
        let (mut centroids, mut labels) =
            (call.answer(DType::F64, &[1, 1]).unwrap(), call.answer(DType::I32, &[n]).unwrap());
        let mut clusters = Clusters::new(&call, &x, 1, &mut centroids, &mut labels).unwrap();
        // Two rows at the end of the first block and one in the second have weights; the third block has none.
        let (a, b, c) = (PICK_ROWS - 5, PICK_ROWS - 2, PICK_ROWS + 7);
        (clusters.squares[a], clusters.squares[b], clusters.squares[c]) = (1.0, 2.0, 4.0);
        let sums = [3.0, 4.0, 0.0];
        for (rest, row) in [(0.0, a), (0.9, a), (1.0, b), (2.9, b), (3.0, c), (6.9, c), (7.0, c), (9.0, c)] {
            assert_eq!(clusters.weighted(&sums, rest), row, "{rest}");
        }
        assert_eq!(sum(&clusters.squares), 7.0);
        let odd: Vec<f32> = (1..=21).map(|value| value as f32).collect();
        assert_eq!((sum(&odd), sum(&odd[..3]), sum::<f32>(&[])), (231.0, 6.0, 0.0));
    }

    #[test]
    fn rows_go_to_the_first_of_the_nearest_centroids_whatever_block_either_is_in() {
        fn check<T: SimdElem + Element>(n: usize, d: usize, level: Level) {
            // Some stand where others do, and rows at odd places are as far from one as from the next.
            let (line, nearest) = ([0, 2, 2, 0, 4, 6, 4], [0, 0, 1, 1, 4, 4, 5]);
            let rows = |places: &mut dyn Iterator<Item = usize>| -> Vec<T> {
                let row = |place: usize| {
                    let last = T::from_f64(place as f64);
                    std::iter::repeat_n(T::default(), d - 1).chain([last])
                };
                places.flat_map(row).collect()
            };
            let (x, want) = (rows(&mut (0..n).map(|row| row % 7)), (0..n).map(|row| nearest[row % 7]));
            let mut counts = [0; 7];
            want.clone().for_each(|label| counts[label as usize] += 1);
            let kernel = KernelId::Kmeans;
            let (params, variant) = (Params::defaults(kernel), Variant::default_for(kernel, level));
            let input = Array::from_slice(&[n, d], &x).unwrap().into();
            let call = Call { kernel, params: &params, inputs: &[input], variant, pulse: &() };
            let (mut centroids, mut labels) =
                (call.answer(T::DTYPE, &[7, d]).unwrap(), call.answer(DType::I32, &[n]).unwrap());
            let mut clusters = Clusters::new(&call, &x, d, &mut centroids, &mut labels).unwrap();
            clusters.centroids.copy_from_slice(&rows(&mut line.into_iter()));
            for changed in [true, false] {
                assert_eq!(clusters.assign().unwrap(), changed, "{level} {n} rows of {d}");
                assert!(want.clone().eq(clusters.labels.iter().copied()), "{level} {n} rows of {d}");
                assert_eq!(clusters.counts, counts, "{level} {n} rows of {d}");
                let odd = (0..n).filter(|row| row % 7 % 2 == 1).count();
                assert_eq!(clusters.inertia(), odd as f64, "{level} {n} rows of {d}");
            }
        }
        for level in Level::ALL {
            for n in [1, 7, 50] {
                check::<f32>(n, 1, level);
                check::<f64>(n, 3, level);
            }
            // The widest of which no more than four centroids lie in the cache, and a row more than a block of them has.
            check::<f32>(TILE_ROWS + 1, BLOCK_BYTES / 16, level);
            check::<f64>(TILE_ROWS + 1, BLOCK_BYTES / 32, level);
        }
    }

    /// Centroids, labels and result of rows of one number.
    fn clusters_of(x: &[f32], k: usize, seed: u64) -> (Vec<f32>, Vec<i32>, serde_json::Value) {
        let kernel = KernelId::Kmeans;
        let given = json!({"k": k, "seed": seed, "tolerance": 0});
        let params = check_params(kernel, given.as_object().unwrap()).unwrap();
        let input = Array::from_slice(&[x.len(), 1], x).unwrap().into();
        let variant = Variant::default_for(kernel, Level::best());
        let found = kmeans(&Call { kernel, params: &params, inputs: &[input], variant, pulse: &() }).unwrap();
        let labels = found.extra[0].1.as_slice::<i32>().unwrap().to_vec();
        (found.array.unwrap().as_slice::<f32>().unwrap().to_vec(), labels, found.result.unwrap())
    }

    #[test]
    fn centroids_that_no_row_is_left_for_stay_and_the_first_of_equal_ones_has_the_rows() {
        for (different, seed) in (1..4).flat_map(|different| (0..5).map(move |seed| (different, seed))) {
            let x: Vec<f32> = (0..20).map(|row| 1.5 + (row % different) as f32).collect();
            let (centroids, labels, result) = clusters_of(&x, 6, seed);
            assert!(centroids.iter().all(|centroid| x.contains(centroid)), "{centroids:?}");
            let first = |x: &f32| centroids.iter().position(|centroid| centroid == x).unwrap() as i32;
            assert_eq!(labels, x.iter().map(first).collect::<Vec<_>>(), "{centroids:?}");
            assert_eq!(result, json!({"k": 6, "iterations": 1, "inertia": 0.0, "converged": true}));
        }
    }

    #[test]
    fn few_rows_in_two_places_are_told_apart() {
        // The halves of either place are two apart, so every seed leads there.
        let x: Vec<f32> = (0..40).map(|row| [-1.0, 101.0, 1.0, 99.0][row % 4]).collect();
        for seed in 0..5 {
            let (centroids, labels, result) = clusters_of(&x, 2, seed);
            let order = [0, 1].map(|place| i32::from((centroids[0] == 0.0) == (place == 1)));
            assert_eq!(order.map(|label| centroids[label as usize]), [0.0, 100.0]);
            assert!(labels.iter().zip(0..).all(|(label, row)| *label == order[row % 2]), "{labels:?}");
            assert_eq!((&result["inertia"], &result["converged"]), (&json!(40.0), &json!(true)));
        }
    }
}
