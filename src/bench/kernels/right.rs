//! Whether an answer is right, before anything is timed: by the plain references, whole where that is cheap, else at places
//! all over the answer.

use super::rows::Row;
use crate::arrays::{DType, Element};
use crate::kernels::reference::{self, Metric, Real};
use crate::kernels::{Input, KernelId, Outcome};
use anyhow::{Context as _, ensure};
use num_complex::Complex;
use sha2::Digest as _;
use std::f64::consts::TAU;

/// Places that are looked at.
const SPOTS: usize = 64;
/// The same where one costs a pass over the input.
const SPOTS_DEAR: usize = 4;

/// An error that says what is wrong, or nothing.
pub(super) fn check(row: &Row, inputs: &[Input], outcome: Outcome) -> anyhow::Result<()> {
    let Outcome { array, extra, result, .. } = outcome;
    let array = array.map(Input::from);
    let beside: Vec<Input> = extra.into_iter().map(|(_, array)| Input::from(array)).collect();
    let result = result.unwrap_or_default();
    let number = |name: &str| result[name].as_f64().context("a number is missing in the result");
    let answer = || array.as_ref().context("the answer has no array");
    let first = || beside.first().context("the answer has one array only");
    let input = |index: usize| &inputs[index];
    let eps = if row.dtype.part_size() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON };
    match row.kernel {
        KernelId::Matmul => {
            let (a, b, c) = (input(0), input(1), answer()?);
            let (&[.., m, k], &[.., n]) = (a.shape(), b.shape()) else { anyhow::bail!("no matrices") };
            for spot in spots(c.len(), SPOTS) {
                let (batch, line, column) = (spot / (m * n), spot / n % m, spot % n);
                let products = || {
                    (0..k).map(|p| at(a, (batch * m + line) * k + p) * at(b, (batch * k + p) * n + column))
                };
                let size: f64 = products().map(f64::abs).sum();
                near(at(c, spot), products().sum(), (k + 1) as f64 * eps * size, spot)?;
            }
        }
        KernelId::Dot => {
            let (mut right, mut size) = (0.0, 0.0);
            each(input(0), |i, x| {
                let product = x * at(input(1), i);
                right += product;
                size += product.abs();
            });
            near(result.as_f64().context("no number")?, right, 1e-9 * size, 0)?;
        }
        KernelId::Reduce => {
            let (mut right, mut size) = (0.0, 0.0);
            each(input(0), |_, x| {
                right += x;
                size += x.abs();
            });
            near(result.as_f64().context("no number")?, right, 1e-9 * size, 0)?;
        }
        KernelId::Axpy => {
            for spot in spots(answer()?.len(), SPOTS) {
                let right = row.number("alpha") * at(input(0), spot) + at(input(1), spot);
                near(at(answer()?, spot), right, 8.0 * eps, spot)?;
            }
        }
        KernelId::Cumsum => {
            let (mut sum, mut size, mut wanted) =
                (0.0, 0.0, spots(answer()?.len(), SPOTS).into_iter().peekable());
            let mut all_near = Ok(());
            each(input(0), |i, x| {
                sum += x;
                size += x.abs();
                if wanted.next_if_eq(&i).is_some() && all_near.is_ok() {
                    let found = array.as_ref().map_or(f64::NAN, |array| at(array, i));
                    all_near = near(found, sum, 1e-9 * size + eps * (sum.abs() + 1.0), i);
                }
            });
            all_near?;
        }
        KernelId::Softmax => {
            let &[lines, length] = input(0).shape() else { anyhow::bail!("no matrix") };
            // The reference adds one after the other, and has rounding errors of its own.
            let most = 8.0 * eps + (length as f64).sqrt() * f64::EPSILON;
            for line in spots(lines, SPOTS_DEAR) {
                let x: Vec<f64> = (0..length).map(|i| at(input(0), line * length + i)).collect();
                let mut right = vec![0.0; length];
                reference::softmax(&x, 1, length, 1, &mut right);
                for (i, right) in right.into_iter().enumerate() {
                    near(at(answer()?, line * length + i), right, most * right, i)?;
                }
            }
        }
        KernelId::Expr => {
            for spot in spots(answer()?.len(), SPOTS) {
                let [a, b, c] = [0, 1, 2].map(|index| at(input(index), spot));
                near(at(answer()?, spot), a.sin() * b + 0.5 * c * c, 16.0 * eps, spot)?;
            }
        }
        KernelId::Stencil5 => {
            let &[rows, columns] = input(0).shape() else { anyhow::bail!("no grid") };
            let steps = row.number("steps") as usize;
            // What is farther from a place than there are steps does not reach it.
            let (reach, side) = (steps + 1, 2 * steps + 3);
            for spot in spots((rows - side) * (columns - side), SPOTS) {
                let (top, left) = (spot / (columns - side), spot % (columns - side));
                let cell = |i: usize| (top + i / side) * columns + left + i % side;
                let mut patch: Vec<f64> = (0..side * side).map(|i| at(input(0), cell(i))).collect();
                let mut scratch = patch.clone();
                reference::stencil5(&mut patch, &mut scratch, side, side, row.number("alpha"), steps);
                let middle = reach * side + reach;
                near(at(answer()?, cell(middle)), patch[middle], 8.0 * eps * steps as f64, spot)?;
            }
        }
        KernelId::Convolve2d => {
            let (&[rows, columns], &[height, width]) = (input(0).shape(), input(1).shape()) else {
                anyhow::bail!("no grids")
            };
            let wide = columns + width - 1;
            for spot in spots(answer()?.len(), SPOTS) {
                let (r, c) = (spot / wide, spot % wide);
                let taps = (0..height * width).map(|tap| (tap / width, tap % width));
                let inside = taps
                    .filter(|&(p, q)| (p..p + rows).contains(&r) && (q..q + columns).contains(&c))
                    .map(|(p, q)| at(input(1), p * width + q) * at(input(0), (r - p) * columns + c - q));
                near(at(answer()?, spot), inside.sum(), 64.0 * eps, spot)?;
            }
        }
        KernelId::Fft | KernelId::Ifft => {
            let n = input(0).len();
            let (sign, scale) = if row.kernel == KernelId::Fft { (-1.0, 1.0) } else { (1.0, 1.0 / n as f64) };
            let tolerance = 20.0 * eps * norm(input(0)) * scale;
            for spot in spots(n, SPOTS_DEAR) {
                let right = transform(input(0), spot, sign) * scale;
                near((complex(answer()?, spot) - right).norm(), 0.0, tolerance, spot)?;
            }
        }
        KernelId::Rfft => {
            for spot in spots(answer()?.len(), SPOTS_DEAR) {
                let right = transform(input(0), spot, -1.0);
                near((complex(answer()?, spot) - right).norm(), 0.0, 20.0 * eps * norm(input(0)), spot)?;
            }
        }
        KernelId::Irfft => {
            let half = input(0).len() - 1;
            let n = 2 * half;
            for spot in spots(n, SPOTS_DEAR) {
                let mut right = 0.0;
                for k in 0..=half {
                    let turns = ((k * spot) % n) as f64 / n as f64;
                    let twice = if k == 0 || k == half { 1.0 } else { 2.0 };
                    let x = complex(input(0), k);
                    // The ends have no imaginary part that counts: the sine is 0 there.
                    right += twice * (x.re * (TAU * turns).cos() - x.im * (TAU * turns).sin());
                }
                let tolerance = 40.0 * eps * norm(input(0)) / n as f64;
                near(at(answer()?, spot), right / n as f64, tolerance, spot)?;
            }
        }
        KernelId::Sort => match row.dtype {
            DType::F64 => is_sorted::<f64>(input(0), answer()?)?,
            _ => is_sorted::<f32>(input(0), answer()?)?,
        },
        KernelId::Argsort => {
            let right = reference::argsort(slice::<f32>(input(0))?);
            let found = slice::<i64>(answer()?)?;
            ensure!(right.iter().map(|&place| place as i64).eq(found.iter().copied()), "wrong order");
        }
        KernelId::TopK => {
            let (x, best, places) =
                (slice::<f32>(input(0))?, slice::<f32>(answer()?)?, slice::<i64>(first()?)?);
            ensure!(best.is_sorted_by(|a, b| a >= b), "not best first");
            let last = *best.last().context("nothing was picked")?;
            let (above, at_least) = (
                x.iter().filter(|value| **value > last).count(),
                x.iter().filter(|value| **value >= last).count(),
            );
            ensure!(above < best.len() && best.len() <= at_least, "these are not the largest");
            let same = best.iter().zip(places).all(|(value, &place)| x.get(place as usize) == Some(value));
            ensure!(same, "places and elements do not go together");
        }
        KernelId::Histogram => {
            let mut right = vec![0; row.number("bins") as usize];
            let (min, max) = (row.number("min"), row.number("max"));
            match row.dtype {
                DType::U8 => reference::histogram_u8(slice(input(0))?, min, max, &mut right),
                _ => reference::histogram(slice::<f32>(input(0))?, min, max, &mut right),
            };
            ensure!(slice::<u64>(answer()?)? == right, "wrong counts");
        }
        KernelId::Spmv => {
            let (columns, starts) = (slice::<i32>(input(1))?, slice::<i32>(input(2))?);
            for spot in spots(answer()?.len(), SPOTS) {
                let elements = starts[spot] as usize..starts[spot + 1] as usize;
                let right: f64 = elements.map(|e| at(input(0), e) * at(input(3), columns[e] as usize)).sum();
                near(at(answer()?, spot), right, 32.0 * eps, spot)?;
            }
        }
        KernelId::Kmeans => {
            let (x, centroids, labels) =
                (slice::<f32>(input(0))?, slice::<f32>(answer()?)?, slice::<i32>(first()?)?);
            let d = input(0).shape()[1];
            let mut inertia = 0.0;
            for (line, &label) in x.chunks_exact(d).zip(labels) {
                let (right, distance) = reference::nearest_centroid(line, centroids);
                ensure!(right == label as usize, "a row has another centroid nearer");
                inertia += f64::from(distance);
            }
            near(number("inertia")?, inertia, 1e-6 * inertia, 0)?;
        }
        KernelId::Knn => {
            let (queries, corpus) = (slice::<f32>(input(0))?, slice::<f32>(input(1))?);
            let (d, k) = (input(0).shape()[1], row.number("k") as usize);
            let (right, scores) = reference::knn(&queries[..d], corpus, d, k, Metric::Cosine);
            let found = slice::<i64>(answer()?)?;
            ensure!(
                right.iter().map(|&place| place as i64).eq(found[..k].iter().copied()),
                "not the nearest"
            );
            for (spot, score) in scores.into_iter().enumerate() {
                near(at(first()?, spot), score, 4.0 * eps, spot)?;
            }
        }
        KernelId::Quantize => {
            let (x, codes, bounds) =
                (slice::<f32>(input(0))?, slice::<u8>(answer()?)?, slice::<f32>(first()?)?);
            let &[lines, d] = input(0).shape() else { anyhow::bail!("no matrix") };
            for line in spots(lines, SPOTS) {
                let scale = f64::from(bounds[3 * line]);
                for i in line * d..(line + 1) * d {
                    near(scale * (f64::from(codes[i]) - 128.0), f64::from(x[i]), 0.51 * scale, i)?;
                }
            }
        }
        KernelId::Hash => {
            // The same function in one piece.
            let bytes = input(0).bytes();
            let right = match row.params["algorithm"].as_str() {
                Some("blake3") => blake3::hash(bytes).to_hex().to_string(),
                _ => sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
            };
            ensure!(result == *right, "another digest: {result}");
        }
        KernelId::MonteCarlo => {
            near(number("price")?, number("closed_form")?, 6.0 * number("std_error")?, 0)?;
        }
        KernelId::Noop | KernelId::Sleep => {}
    }
    Ok(())
}

fn near(found: f64, right: f64, tolerance: f64, place: usize) -> anyhow::Result<()> {
    // Written so that NaN is not near.
    ensure!((found - right).abs() <= tolerance, "element {place} is {found}, should be {right}");
    Ok(())
}

/// At most so many places of `length`, ascending, the first and the last among them.
fn spots(length: usize, most: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..most)
        .map(|i| (length.saturating_sub(1) as u128 * i as u128 / (most - 1) as u128) as usize)
        .collect();
    places.dedup();
    places.truncate(length);
    places
}

fn slice<T: Element>(array: &Input) -> anyhow::Result<&[T]> {
    array.as_slice().with_context(|| format!("an array of {} where {} is due", array.dtype(), T::DTYPE))
}

/// An element of a real array of floats; NaN where there is none.
fn at(array: &Input, index: usize) -> f64 {
    let wide = array.as_slice::<f64>().and_then(|values| values.get(index).copied());
    let narrow = || array.as_slice::<f32>().and_then(|values| values.get(index).map(|&x| f64::from(x)));
    wide.or_else(narrow).unwrap_or(f64::NAN)
}

fn each(array: &Input, mut look: impl FnMut(usize, f64)) {
    if let Some(values) = array.as_slice::<f32>() {
        values.iter().enumerate().for_each(|(i, &x)| look(i, f64::from(x)));
    } else if let Some(values) = array.as_slice::<f64>() {
        values.iter().enumerate().for_each(|(i, &x)| look(i, x));
    }
}

/// An element of an array of floats, complex or not.
fn complex(array: &Input, index: usize) -> Complex<f64> {
    if let Some(values) = array.as_slice::<Complex<f32>>() {
        Complex::new(f64::from(values[index].re), f64::from(values[index].im))
    } else if let Some(values) = array.as_slice::<Complex<f64>>() {
        values[index]
    } else {
        Complex::new(at(array, index), 0.0)
    }
}

fn norm(array: &Input) -> f64 {
    (0..array.len()).map(|i| complex(array, i).norm_sqr()).sum::<f64>().sqrt()
}

/// One element of the Fourier transform, by its definition, without a scale.
fn transform(array: &Input, place: usize, sign: f64) -> Complex<f64> {
    let n = array.len();
    let turn = |i: usize| Complex::cis(sign * TAU * ((i * place) % n) as f64 / n as f64);
    // What each addition rounds away is carried along (W. Kahan, CACM 8, 1965): a million of them would lose more than a transform.
    let (mut sum, mut lost) = (Complex::new(0.0, 0.0), Complex::new(0.0, 0.0));
    for i in 0..n {
        let term = complex(array, i) * turn(i) - lost;
        let next = sum + term;
        lost = (next - sum) - term;
        sum = next;
    }
    sum
}

fn is_sorted<T: Real + Element>(input: &Input, answer: &Input) -> anyhow::Result<()> {
    let mut right = slice::<T>(input)?.to_vec();
    reference::sort(&mut right);
    ensure!(slice::<T>(answer)? == right, "wrong order");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Job;
    use super::super::rows::rows;
    use super::*;
    use crate::arrays::Array;
    use crate::kernels::Level;

    /// Every row with small arrays: what the kernels answer is right, and what is changed in it is not.
    #[test]
    fn right_answers_pass_and_wrong_ones_do_not() {
        for row in rows(false) {
            let (row, name) = (row.shrunk(), row.name());
            let job = Job::new(&row, Level::best()).expect("memory");
            let outcome = || job.run(job.variant).expect("a sound call");
            check(&row, &job.inputs, outcome()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut wrong = outcome();
            match (&mut wrong.array, &mut wrong.result) {
                (Some(array), _) => spoil(array),
                (_, Some(result)) if result.is_string() => *result = "0".into(),
                (_, Some(result)) if result.is_object() => result["price"] = 1e6.into(),
                (_, result) => *result = Some(1e6.into()),
            }
            assert!(check(&row, &job.inputs, wrong).is_err(), "{name}: a wrong answer passes");
        }
    }

    /// Other elements, of any type.
    fn spoil(array: &mut Array) {
        array.bytes_mut().iter_mut().for_each(|byte| *byte ^= 0x3f);
    }

    #[test]
    fn places_are_within_and_reach_both_ends() {
        for (length, most) in [(0, 4), (1, 4), (3, 4), (4, 4), (1000, 64)] {
            let places = spots(length, most);
            assert!(places.is_sorted_by(|a, b| a < b) && places.len() <= most);
            assert!(places.iter().all(|&place| place < length), "{places:?}");
            let ends = (places.first().copied(), places.last().copied());
            let right = length.checked_sub(1).map(|last| (0, last));
            assert_eq!(ends.0.zip(ends.1), right, "{length}");
        }
    }
}
