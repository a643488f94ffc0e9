//! Kernels and arrays from outside: every kernel, level and variant against the scalar reference, and against
//! what NumPy wrote.
//!
//! Random cases are seeded; a failure names kernel, variant and size. Files come from
//! `scripts/make_fixtures.py`.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use ai_swarm::arrays::{Array, ArrayRef, DType, Element, NpyFile, write_npy};
use ai_swarm::base::prng::SplitMix64;
use ai_swarm::kernels::reference::{self, Direction, Metric, Mode, Order, Reduction};
use ai_swarm::kernels::simd;
use ai_swarm::kernels::{
    BOUNDS_SUFFIX, Call, Cancelled, EXTRA_SUFFIXES, KernelError, KernelId, LABELS_SUFFIX, Level, Outcome,
    OutputKind, PLACES_SUFFIX, Params, Pulse, SCORES_SUFFIX, Variant, check_params, extra_path, may_split,
    run, spec, split, stores_in_two_ways, synthetic_inputs, variants,
};
use num_complex::Complex;
use serde_json::{Value, json};

// ---------------------------------------------------------------------------------------------------------
// Support

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arrays").join(format!("{name}.npy"))
}

fn load(name: &str) -> ArrayRef {
    NpyFile::open(&fixture(name)).unwrap().into_array().unwrap()
}

fn expected() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arrays/expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn array<T: Element>(shape: &[usize], elements: &[T]) -> ArrayRef {
    Array::from_slice(shape, elements).unwrap().into()
}

fn params(kernel: KernelId, given: Value) -> Params {
    check_params(kernel, given.as_object().unwrap()).unwrap()
}

fn call(
    kernel: KernelId,
    given: Value,
    inputs: &[ArrayRef],
    variant: Variant,
) -> Result<Outcome, KernelError> {
    let params = params(kernel, given);
    run(&Call { kernel, params: &params, inputs, variant, pulse: &() })
}

fn by_default(kernel: KernelId, given: Value, inputs: &[ArrayRef]) -> Result<Outcome, KernelError> {
    call(kernel, given, inputs, Variant::default_for(kernel, Level::best()))
}

/// Every variant, and every algorithm on every level, those the processor lacks included: they run as a lower
/// one.
fn all_variants(kernel: KernelId) -> Vec<Variant> {
    let choices = spec(kernel).choices.len() as u8;
    let mut all: Vec<Variant> = Level::ALL
        .into_iter()
        .flat_map(|level| (0..choices).map(move |choice| Variant::new(level, choice)))
        .collect();
    if stores_in_two_ways(kernel) {
        let others: Vec<Variant> =
            all.iter().map(|&variant| Variant { other_stores: true, ..variant }).collect();
        all.extend(others);
    }
    assert!(variants(kernel, None).iter().all(|variant| all.contains(variant)));
    // A number from a newer version of the program.
    all.push(Variant::new(Level::best(), 200));
    all
}

/// Numbers of a seed, uniform in -1 to 1 and each of its own precision.
fn values<T: Element>(seed: u64, count: usize) -> Vec<T> {
    let (arrays, _) = synthetic_inputs(KernelId::Sort, count, T::DTYPE, seed).unwrap();
    arrays[0].as_slice::<T>().unwrap().to_vec()
}

/// The float types, with their unit roundoff.
trait Float: Element + reference::Real {
    const ULP: f64;
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }
}
impl Float for f32 {
    const ULP: f64 = f32::EPSILON as f64;
}
impl Float for f64 {
    const ULP: f64 = f64::EPSILON;
}

#[track_caller]
fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    let same = got == want || got.is_nan() && want.is_nan();
    assert!(same || (got - want).abs() <= tolerance, "{what}: {got:e}, want {want:e} within {tolerance:e}");
}

#[track_caller]
fn all_close<T: Float>(got: &[T], want: &[T], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        close(got.to_f64(), want.to_f64(), tolerance, &format!("{what} at {index}"));
    }
}

fn elements<T: Element>(outcome: &Outcome) -> &[T] {
    outcome.array.as_ref().expect("an array").as_slice::<T>().expect("of this type")
}

fn result(outcome: &Outcome) -> f64 {
    match outcome.result.as_ref().expect("a result") {
        Value::String(word) => word.replace("Infinity", "inf").parse().unwrap(),
        value => value.as_f64().unwrap(),
    }
}

/// Lengths around every vector width and block.
fn lengths() -> Vec<usize> {
    (0..=40).chain([63, 64, 65, 127, 255, 513, 1000, 4095, 4097, 10_000]).collect()
}

/// Counts its beats and cancels at the one it was told.
struct Counter {
    beats: Cell<u64>,
    cancel_at: u64,
}

impl Counter {
    fn new(cancel_at: u64) -> Counter {
        Counter { beats: Cell::new(0), cancel_at }
    }
}

impl Pulse for Counter {
    fn beat(&self) -> Result<(), Cancelled> {
        self.beats.set(self.beats.get() + 1);
        if self.beats.get() >= self.cancel_at { Err(Cancelled) } else { Ok(()) }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Against the reference

#[test]
fn matrix_products_match_reference() {
    fn check<T: Float>() {
        let shapes = [
            (1, 1, 1),
            (1, 7, 5),
            (5, 1, 3),
            (13, 17, 9),
            (64, 64, 64),
            (3, 300, 2),
            (70, 33, 129),
            (130, 5, 1),
        ];
        for (m, k, n) in shapes {
            let (a, b) = (values::<T>(1, m * k), values::<T>(2, k * n));
            let mut want = vec![T::default(); m * n];
            reference::matmul(&a, &b, &mut want, m, k, n);
            let inputs = [array(&[m, k], &a), array(&[k, n], &b)];
            for variant in all_variants(KernelId::Matmul) {
                let outcome = call(KernelId::Matmul, json!({}), &inputs, variant).unwrap();
                let what = format!("{variant:?} {m} x {k} x {n}");
                // |a|, |b| <= 1, so the sum of products is at most k.
                all_close(elements::<T>(&outcome), &want, (k + 1) as f64 * k as f64 * T::ULP, &what);
                assert_eq!(outcome.array.unwrap().shape(), [m, n]);
                assert_eq!(outcome.flops, (2 * m * k * n) as f64);
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn transposed_and_batched_products_match_reference() {
    /// Each of some matrices with its rows as columns.
    fn turned<T: Float>(matrices: &[T], rows: usize, columns: usize) -> Vec<T> {
        let one = |matrix: &[T]| -> Vec<T> {
            (0..rows * columns).map(|at| matrix[at % rows * columns + at / rows]).collect()
        };
        matrices.chunks(rows * columns).flat_map(one).collect()
    }
    fn check<T: Float>() {
        for (m, k, n) in [(1, 1, 1), (5, 3, 7), (13, 17, 9), (70, 33, 65)] {
            for (count_a, count_b) in [(1, 1), (6, 6), (6, 1), (1, 6)] {
                let (a, b) = (values::<T>(21, count_a * m * k), values::<T>(22, count_b * k * n));
                let count = count_a.max(count_b);
                let mut want = vec![T::default(); count * m * n];
                for (at, want) in want.chunks_mut(m * n).enumerate() {
                    let (a, b) = (&a[at % count_a * m * k..][..m * k], &b[at % count_b * k * n..][..k * n]);
                    reference::matmul(a, b, want, m, k, n);
                }
                let shape = |count: usize, matrix: [usize; 2]| -> Vec<usize> {
                    if count == 1 { matrix.to_vec() } else { [[2, 3], matrix].concat() }
                };
                for word in ["none", "a", "b", "both"] {
                    let input = |is_turned: bool, x: &[T], count: usize, [rows, columns]: [usize; 2]| {
                        if is_turned {
                            array(&shape(count, [columns, rows]), &turned(x, rows, columns))
                        } else {
                            array(&shape(count, [rows, columns]), x)
                        }
                    };
                    let inputs = [
                        input(matches!(word, "a" | "both"), &a, count_a, [m, k]),
                        input(matches!(word, "b" | "both"), &b, count_b, [k, n]),
                    ];
                    for variant in all_variants(KernelId::Matmul) {
                        let given = json!({"transpose": word});
                        let outcome = call(KernelId::Matmul, given, &inputs, variant).unwrap();
                        let what = format!("{word} {variant:?} {count_a} and {count_b} of {m} x {k} x {n}");
                        all_close(elements::<T>(&outcome), &want, (k + 1) as f64 * k as f64 * T::ULP, &what);
                        assert_eq!(outcome.array.unwrap().shape(), shape(count, [m, n]), "{what}");
                        assert_eq!(outcome.flops, (2 * count * m * k * n) as f64, "{what}");
                    }
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn large_matrix_products_are_cut_and_still_right() {
    // Wide and deep enough for several panels both ways; checked at some places, because the reference is
    // slow.
    let (m, k, n) = (300, 1500, 1400);
    let (a, b) = (values::<f32>(3, m * k), values::<f32>(4, k * n));
    let inputs = [array(&[m, k], &a), array(&[k, n], &b)];
    for variant in variants(KernelId::Matmul, Some(DType::F32)) {
        let counter = Counter::new(u64::MAX);
        let params = Params::defaults(KernelId::Matmul);
        let outcome = run(&Call {
            kernel: KernelId::Matmul,
            params: &params,
            inputs: &inputs,
            variant,
            pulse: &counter,
        })
        .unwrap();
        let c = elements::<f32>(&outcome);
        for place in (0..m * n).step_by(7919) {
            let (row, column) = (place / n, place % n);
            let want: f64 = (0..k).map(|p| f64::from(a[row * k + p]) * f64::from(b[p * n + column])).sum();
            close(f64::from(c[place]), want, 1e-3, &format!("{variant:?} at {row}, {column}"));
        }
        assert!(counter.beats.get() >= 1);
    }
}

#[test]
fn dot_and_axpy_match_reference() {
    fn check<T: Float>() {
        for length in lengths() {
            let (x, y) = (values::<T>(5, length), values::<T>(6, length));
            let inputs = [array(&[length], &x), array(&[length], &y)];
            let want = reference::dot(&x, &y);
            let mut sum = vec![T::default(); length];
            reference::axpy(T::of(-1.75), &x, &y, &mut sum);
            for variant in all_variants(KernelId::Dot) {
                let what = format!("{variant:?} {length}");
                let outcome = call(KernelId::Dot, json!({}), &inputs, variant).unwrap();
                close(result(&outcome), want, 1000.0 * f64::EPSILON * length as f64, &what);
                let outcome = call(KernelId::Axpy, json!({"alpha": -1.75}), &inputs, variant).unwrap();
                all_close(elements::<T>(&outcome), &sum, 2.0 * T::ULP, &what);
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn reductions_match_reference() {
    const OPS: [(&str, Reduction); 6] = [
        ("sum", Reduction::Sum),
        ("mean", Reduction::Mean),
        ("min", Reduction::Min),
        ("max", Reduction::Max),
        ("std", Reduction::Std),
        ("norm2", Reduction::Norm2),
    ];
    fn check<T: Float>() {
        for length in lengths().into_iter().skip(1) {
            let x = values::<T>(7, length);
            let inputs = [array(&[length], &x)];
            for (word, op) in OPS {
                let want = reference::reduce_strided(op, &x, 0, length, 1);
                for variant in all_variants(KernelId::Reduce) {
                    let outcome = call(KernelId::Reduce, json!({"op": word}), &inputs, variant).unwrap();
                    close(
                        result(&outcome),
                        want,
                        1e-13 * length as f64,
                        &format!("{word} {variant:?} {length}"),
                    );
                }
            }
        }
        for shape in [[3, 4, 5], [1, 70, 33], [17, 1, 9], [40, 41, 1]] {
            let x = values::<T>(8, shape.iter().product());
            let inputs = [array(&shape, &x)];
            for (word, op) in OPS {
                for axis in 0..3 {
                    let (outer, inner) = (
                        shape[..axis].iter().product::<usize>(),
                        shape[axis + 1..].iter().product::<usize>(),
                    );
                    let mut want = vec![0.0; outer * inner];
                    reference::reduce_axis(op, &x, outer, shape[axis], inner, &mut want);
                    let want: Vec<T> = want.into_iter().map(T::of).collect();
                    for variant in all_variants(KernelId::Reduce) {
                        for axis in [axis as i64, axis as i64 - 3] {
                            let given = json!({"op": word, "axis": axis});
                            let outcome = call(KernelId::Reduce, given, &inputs, variant).unwrap();
                            let what = format!("{word} {variant:?} {shape:?} axis {axis}");
                            // One rounding to the type, of a number of at most 70.
                            all_close(elements::<T>(&outcome), &want, 70.0 * T::ULP, &what);
                            assert_eq!(outcome.array.unwrap().shape().len(), 2);
                        }
                    }
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn special_values_travel_as_in_numpy() {
    for variant in all_variants(KernelId::Reduce) {
        let reduce =
            |x: &[f64], given: Value| call(KernelId::Reduce, given, &[array(&[x.len()], x)], variant);
        for place in [0, 5, 16, 40] {
            let mut x = vec![1.0; 41];
            x[place] = f64::NAN;
            for op in ["sum", "mean", "min", "max", "std", "norm2"] {
                let outcome = reduce(&x, json!({"op": op})).unwrap();
                assert_eq!(outcome.result, Some(json!("NaN")), "{op} {variant:?}");
            }
            x[place] = f64::NEG_INFINITY;
            assert_eq!(reduce(&x, json!({"op": "min"})).unwrap().result, Some(json!("-Infinity")));
            assert_eq!(reduce(&x, json!({"op": "max"})).unwrap().result, Some(json!(1.0)));
            assert_eq!(reduce(&x, json!({"op": "norm2"})).unwrap().result, Some(json!("Infinity")));
        }
        let norm = result(&reduce(&[3e200, 4e200], json!({"op": "norm2"})).unwrap());
        close(norm, 5e200, 1e186, "norm of large numbers");
        let grid = array(&[2, 2], &[3e200, 1.0, 4e200, 0.0]);
        let outcome = call(KernelId::Reduce, json!({"op": "norm2", "axis": 0}), &[grid], variant).unwrap();
        close(elements::<f64>(&outcome)[0], 5e200, 1e186, "norm of large numbers along an axis");
    }
}

#[test]
fn integer_sums_are_exact_and_wrap() {
    let x = array(&[2, 2], &[i64::MAX, 1, 2, 3]);
    let sum = |given: Value| by_default(KernelId::Reduce, given, std::slice::from_ref(&x)).unwrap();
    assert_eq!(sum(json!({})).result, Some(json!(i64::MIN + 5)));
    assert_eq!(elements::<i64>(&sum(json!({"axis": 1}))), [i64::MIN, 5]);
    assert_eq!(elements::<i64>(&sum(json!({"op": "max", "axis": 0}))), [i64::MAX, 3]);
    assert_eq!(sum(json!({"op": "min"})).result, Some(json!(1)));
    let error = by_default(KernelId::Reduce, json!({"op": "std"}), &[x]).unwrap_err().to_string();
    assert_eq!(error, "reduce: inputs[0] \"x\" has dtype i64, needs f32 or f64 for op \"std\"");
}

#[test]
fn sorting_matches_reference_for_every_type() {
    fn check<T: Element + PartialOrd + std::fmt::Debug>(order: impl Fn(&T, &T) -> std::cmp::Ordering) {
        for length in lengths().into_iter().filter(|length| *length < 600 || *length > 4096) {
            for rows in [1, 3] {
                let x = values::<T>(9, length * rows);
                let mut want = x.clone();
                want.chunks_mut(length.max(1)).for_each(|line| line.sort_by(&order));
                let inputs = [array(&[rows, length], &x)];
                for variant in all_variants(KernelId::Sort) {
                    let outcome = call(KernelId::Sort, json!({}), &inputs, variant).unwrap();
                    let same = bytemuck::cast_slice::<T, u8>(elements::<T>(&outcome))
                        == bytemuck::cast_slice::<T, u8>(&want);
                    assert!(same, "{} {variant:?} {rows} x {length}", T::DTYPE);
                }
            }
        }
    }
    check::<f32>(f32::total_cmp);
    check::<f64>(f64::total_cmp);
    check::<i32>(Ord::cmp);
    check::<i64>(Ord::cmp);
    check::<u8>(Ord::cmp);
    check::<u32>(Ord::cmp);
    check::<u64>(Ord::cmp);
}

#[test]
fn a_huge_line_and_special_numbers_sort() {
    let mut x = values::<f32>(10, 600_001);
    for (index, value) in
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE / 2.0]
            .into_iter()
            .enumerate()
    {
        x[index * 77_777] = value;
    }
    let mut want = x.clone();
    reference::sort(&mut want);
    let inputs = [array(&[x.len()], &x)];
    for variant in variants(KernelId::Sort, Some(DType::F32)) {
        let outcome = call(KernelId::Sort, json!({}), &inputs, variant).unwrap();
        let got = elements::<f32>(&outcome);
        let numbers = want.len() - 2;
        assert!(got[..numbers].iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{variant:?}");
        assert!(got[numbers..].iter().all(|value| value.is_nan()), "{variant:?}");
    }
}

/// Shapes of three axes, and some longer than what kernels walk along at once.
const CUBES: [[usize; 3]; 7] =
    [[3, 4, 5], [1, 70, 33], [17, 1, 9], [40, 41, 1], [1, 3, 5000], [2, 1, 1], [3, 0, 2]];

#[test]
fn running_sums_and_softmax_match_reference_along_every_axis() {
    fn check<T: Float>() {
        // Of `n` values up to 1, added in another order; rounded to the type in the end.
        let of_order = |n: usize| n as f64 * (n as f64 * f64::EPSILON + T::ULP);
        for shape in CUBES {
            let x = values::<T>(30, shape.iter().product());
            let inputs = [array(&shape, &x)];
            for axis in 0..3 {
                let (outer, inner) =
                    (shape[..axis].iter().product::<usize>(), shape[axis + 1..].iter().product::<usize>());
                let (mut sums, mut powers) = (x.clone(), x.clone());
                reference::cumsum(&x, outer, shape[axis], inner, &mut sums);
                reference::softmax(&x, outer, shape[axis], inner, &mut powers);
                // One after the other across lines, in rows and runs along them.
                let tolerance = if inner == 1 { of_order(shape[axis]) } else { 0.0 };
                for variant in all_variants(KernelId::Cumsum) {
                    for axis in [axis as i64, axis as i64 - 3] {
                        let what = format!("{variant:?} {shape:?} axis {axis}");
                        let given = json!({"axis": axis});
                        let outcome = call(KernelId::Cumsum, given.clone(), &inputs, variant).unwrap();
                        all_close(elements::<T>(&outcome), &sums, tolerance, &what);
                        assert_eq!(outcome.array.unwrap().shape(), shape);
                        let outcome = call(KernelId::Softmax, given, &inputs, variant).unwrap();
                        all_close(elements::<T>(&outcome), &powers, 4.0 * T::ULP, &what);
                        assert_eq!(outcome.array.unwrap().shape(), shape);
                    }
                }
            }
            let mut sums = x.clone();
            reference::cumsum(&x, 1, x.len(), 1, &mut sums);
            let outcome = by_default(KernelId::Cumsum, json!({}), &inputs).unwrap();
            all_close(elements::<T>(&outcome), &sums, of_order(x.len()), "flattened");
            assert_eq!(outcome.array.as_ref().unwrap().shape(), [x.len()]);
            for variant in all_variants(KernelId::Cumsum) {
                let again = call(KernelId::Cumsum, json!({}), &inputs, variant).unwrap();
                assert_eq!(elements::<T>(&again), elements::<T>(&outcome), "{variant:?} {shape:?}");
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn special_values_in_running_sums_and_softmax() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for variant in all_variants(KernelId::Softmax) {
        let run = |kernel: KernelId, x: &[f64], axis: i64| -> Vec<f64> {
            // The same line twice, as rows and as columns.
            let (shape, x): (_, Vec<f64>) = match axis {
                1 => ([2, x.len()], [x, x].concat()),
                _ => ([x.len(), 2], x.iter().flat_map(|&v| [v, v]).collect()),
            };
            let outcome = call(kernel, json!({"axis": axis}), &[array(&shape, &x)], variant).unwrap();
            elements::<f64>(&outcome)
                .iter()
                .skip(1 - axis as usize)
                .step_by(2 - axis as usize)
                .copied()
                .collect()
        };
        for axis in [0, 1] {
            let softmax = |x: &[f64]| -> Vec<f64> { run(KernelId::Softmax, x, axis)[..x.len()].to_vec() };
            let what = format!("{variant:?} axis {axis}");
            assert_eq!(softmax(&[-inf, 3.0, -inf]), [0.0, 1.0, 0.0], "{what}");
            assert_eq!(softmax(&[1e308, 1e308]), [0.5, 0.5], "{what}");
            assert_eq!(softmax(&[5e-324, -5e-324, 0.0, 0.0]), [0.25; 4], "{what}");
            assert!(softmax(&[0.0, nan, 1.0]).iter().all(|v| v.is_nan()), "{what}");
            assert!(softmax(&[0.0, inf]).iter().all(|v| v.is_nan()), "{what}");
            assert!(softmax(&[-inf, -inf]).iter().all(|v| v.is_nan()), "{what}");
            let sums = run(KernelId::Cumsum, &[-0.0, 5e-324, inf, 1.0, -inf, 2.0], axis);
            assert!(sums[0].to_bits() == (-0.0_f64).to_bits() && sums[1] == 5e-324, "{what}: {sums:?}");
            assert!(sums[2..4] == [inf, inf] && sums[4].is_nan() && sums[5].is_nan(), "{what}: {sums:?}");
        }
    }
    let long = vec![0.1_f32; 3_000_000];
    let outcome = by_default(KernelId::Cumsum, json!({}), &[array(&[long.len()], &long)]).unwrap();
    let last = f64::from(*elements::<f32>(&outcome).last().unwrap());
    close(last, 3e6 * f64::from(0.1_f32), 0.02, "f32 is added in 64 bits");
    let outcome = by_default(KernelId::Softmax, json!({}), &[array(&[long.len()], &long)]).unwrap();
    let each = f64::from(elements::<f32>(&outcome)[2_999_999]);
    close(each, 1.0 / 3e6, 1e-13, "a line of several blocks");
}

#[test]
fn places_match_reference() {
    fn check<T: Float>() {
        for length in lengths().into_iter().filter(|length| *length < 600 || *length > 4096) {
            let mut x = values::<T>(31, 2 * length);
            // Ties, both zeros, NaN of both signs.
            for (index, value) in x.iter_mut().enumerate() {
                match index % 13 {
                    0 => *value = T::of(0.25),
                    4 => *value = T::of(0.0),
                    5 => *value = T::of(-0.0),
                    9 => *value = T::of(if index % 2 == 0 { f64::NAN } else { -f64::NAN }),
                    10 => *value = T::of(f64::INFINITY),
                    11 => *value = T::of(f64::MIN_POSITIVE / 4.0),
                    _ => {}
                }
            }
            let inputs = [array(&[2, length], &x)];
            let mut want = Vec::new();
            for line in x.chunks(length.max(1)) {
                want.extend(reference::argsort(line).into_iter().map(|place| place as i64));
            }
            for variant in all_variants(KernelId::Argsort) {
                let outcome = call(KernelId::Argsort, json!({}), &inputs, variant).unwrap();
                assert_eq!(elements::<i64>(&outcome), want, "{variant:?} {length}");
            }
            for k in [1, 2, 37, length / 2, length].into_iter().filter(|k| (1..=length).contains(k)) {
                for (word, order) in [("largest", Order::Largest), ("smallest", Order::Smallest)] {
                    let (mut places, mut best) = (Vec::new(), Vec::new());
                    for line in x.chunks(length) {
                        let found = reference::top_k(line, k, order);
                        best.extend(found.iter().map(|&place| line[place]));
                        places.extend(found.into_iter().map(|place| place as i64));
                    }
                    let given = json!({"k": k, "order": word});
                    let outcome = by_default(KernelId::TopK, given, &inputs).unwrap();
                    let (suffix, extra) = &outcome.extra[0];
                    assert_eq!((*suffix, extra.shape()), (PLACES_SUFFIX, &[2, k][..]));
                    assert_eq!(outcome.result, Some(json!({"k": k, "order": word})));
                    assert_eq!(extra.as_slice::<i64>().unwrap(), places, "{word} {k} of {length}");
                    let got = bytemuck::cast_slice::<T, u8>(elements::<T>(&outcome));
                    assert!(got == bytemuck::cast_slice::<T, u8>(&best), "{word} {k} of {length}");
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn the_best_are_found_in_lines_that_only_get_better() {
    // Every element is among the best so far, which is what costs most.
    let rising: Vec<u64> = (0..200_000).collect();
    for k in [1, 10, 5000, 200_000] {
        let given = json!({"k": k});
        let outcome = by_default(KernelId::TopK, given, &[array(&[rising.len()], &rising)]).unwrap();
        let want: Vec<u64> = rising.iter().rev().take(k).copied().collect();
        assert_eq!(elements::<u64>(&outcome), want);
    }
    // All alike: the first ones, also at the very ends of the type.
    for value in [0, u64::MAX] {
        for order in ["largest", "smallest"] {
            let given = json!({"k": 3, "order": order});
            let outcome = by_default(KernelId::TopK, given, &[array(&[5000], &[value; 5000])]).unwrap();
            assert_eq!(outcome.extra[0].1.as_slice::<i64>().unwrap(), [0, 1, 2]);
        }
    }
}

#[test]
fn digests_are_those_of_the_standards() {
    let digest = |bytes: &[u8], algorithm: &str| {
        let given = json!({"algorithm": algorithm});
        let outcome = by_default(KernelId::Hash, given, &[array(&[bytes.len()], bytes)]).unwrap();
        outcome.result.unwrap().as_str().unwrap().to_owned()
    };
    // FIPS 180-2, appendix B, and the test vectors of BLAKE3: bytes 0 to 250 over and over.
    let sha256 = |bytes: &[u8]| digest(bytes, "sha256");
    assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let million = vec![b'a'; 1_000_000];
    assert_eq!(sha256(&million), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    let blake3 = |bytes: &[u8]| digest(bytes, "blake3");
    assert_eq!(blake3(b""), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    let counting: Vec<u8> = (0..=250).cycle().take(102_400).collect();
    assert_eq!(blake3(&counting), "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085");
    // Pieces are joined: what is longer than one is what it is in one.
    let long: Vec<u8> = (0..=250).cycle().take((2 << 20) + 7).collect();
    assert_ne!(sha256(&long), sha256(&long[..2 << 20]));
    // Type and shape do not count.
    let words = array(&[2, 2], &[0_u32, 1, 2, 0x0403_0201]);
    let outcome = by_default(KernelId::Hash, json!({}), &[words]).unwrap();
    assert_eq!(outcome.result.unwrap(), sha256(&[0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 2, 3, 4]));
}

#[test]
fn sparse_products_match_reference() {
    fn check<T: Float, I: Element>(index: impl Fn(usize) -> I) {
        for (rows, columns, per_row) in
            [(0, 5, 0), (5, 0, 0), (1, 1, 1), (40, 30, 3), (7, 900, 400), (300, 3, 9)]
        {
            let count = rows * per_row / 2;
            let data = values::<T>(32, count);
            let x = values::<T>(33, columns);
            let places = values::<u64>(34, count);
            let indices: Vec<usize> = places.iter().map(|place| *place as usize % columns.max(1)).collect();
            // Rows of unequal length, some of them empty.
            let mut indptr: Vec<usize> =
                values::<u64>(35, rows + 1).iter().map(|place| *place as usize % (count + 1)).collect();
            indptr.sort();
            (indptr[0], indptr[rows]) = (0, count);
            let mut want = vec![T::default(); rows];
            reference::spmv(&data, &indices, &indptr, &x, &mut want);
            let of = |places: &[usize]| -> Vec<I> { places.iter().map(|&place| index(place)).collect() };
            let inputs = [
                array(&[count], &data),
                array(&[count], &of(&indices)),
                array(&[rows + 1], &of(&indptr)),
                array(&[columns], &x),
            ];
            let outcome = by_default(KernelId::Spmv, json!({}), &inputs).unwrap();
            let tolerance = (per_row + 8) as f64 * T::ULP;
            all_close(elements::<T>(&outcome), &want, tolerance, &format!("{rows} x {columns}"));
            assert_eq!(outcome.flops, 2.0 * count as f64);
        }
    }
    check::<f32, i32>(|place| place as i32);
    check::<f64, i32>(|place| place as i32);
    check::<f32, i64>(|place| place as i64);
    check::<f64, i64>(|place| place as i64);
}

#[test]
fn sparse_matrices_that_are_none_are_refused_by_place() {
    let product = |indices: &[i32], indptr: &[i32]| {
        let data = vec![1.0; indices.len()];
        let inputs = [
            array(&[data.len()], &data),
            array(&[indices.len()], indices),
            array(&[indptr.len()], indptr),
            array(&[3], &[f64::NAN, 2.0, f64::INFINITY]),
        ];
        by_default(KernelId::Spmv, json!({}), &inputs)
    };
    let outcome = product(&[0, 1, 2, 1], &[0, 1, 1, 4]).unwrap();
    let y = elements::<f64>(&outcome);
    assert!(y[0].is_nan() && y[1..] == [0.0, f64::INFINITY], "{y:?}");
    for (indices, indptr, message) in [
        (
            &[0, 1, 3][..],
            &[0, 3][..],
            "spmv: indices[2] is 3, needs 0 or more and less than 3, the length of x",
        ),
        (&[0, -1, 0, 0, 0], &[0, 0, 5], "spmv: indices[1] is -1, needs 0 or more and less than 3"),
        (&[0, 1], &[1, 2], "spmv: indptr goes from 1 to 2, needs to go from 0 to 2, the length of data"),
        (&[0, 1], &[0, 3], "spmv: indptr goes from 0 to 3, needs to go from 0 to 2"),
        (&[0, 1], &[0, 2, 1, 2], "spmv: indptr[2] is 1, needs 2 to 2"),
        (&[0, 1], &[0, 9, 2], "spmv: indptr[1] is 9, needs 0 to 2"),
        (&[0, 1], &[0, i32::MIN, 2], "spmv: indptr[1] is -2147483648, needs 0 to 2"),
        (&[], &[], "inputs[2] \"indptr\" has shape (0,), needs (rows + 1,), one element or more"),
    ] {
        let error = product(indices, indptr).unwrap_err().to_string();
        assert!(error.contains(message), "{error}\n not {message}");
    }
    let inputs = [array(&[1], &[1.0]), array(&[1], &[0_i32]), array(&[2], &[0_i64, 1]), array(&[1], &[1.0])];
    let error = by_default(KernelId::Spmv, json!({}), &inputs).unwrap_err().to_string();
    assert!(error.contains("\"indptr\" has dtype i64, needs i32 (that of inputs[1] \"indices\")"), "{error}");
    let floats = || array(&[2], &[0.0, 1.0]);
    let error = by_default(KernelId::Spmv, json!({}), &[floats(), floats(), floats(), floats()])
        .unwrap_err()
        .to_string();
    assert_eq!(error, "spmv: inputs[1] \"indices\" has dtype f64, needs i32, i64");
}

#[test]
fn transforms_match_reference() {
    for length in (1..=40).chain([64, 97, 100, 127, 128, 243, 256, 1000]) {
        let x: Vec<Complex<f64>> =
            values::<f64>(11, 4 * length).chunks(2).map(|part| Complex::new(part[0], part[1])).collect();
        let small: Vec<Complex<f32>> = x.iter().map(|z| Complex::new(z.re as f32, z.im as f32)).collect();
        let real: Vec<f64> = x.iter().map(|z| z.re).collect();
        for (kernel, direction) in [(KernelId::Fft, Direction::Forward), (KernelId::Ifft, Direction::Inverse)]
        {
            let (mut want, mut want_real) = (x.clone(), x.clone());
            let promoted: Vec<_> = real.iter().map(|&re| Complex::new(re, 0.0)).collect();
            for line in 0..2 {
                let at = line * length..(line + 1) * length;
                reference::dft(&x[at.clone()], &mut want[at.clone()], direction);
                reference::dft(&promoted[at.clone()], &mut want_real[at], direction);
            }
            let scale = if kernel == KernelId::Fft { length as f64 } else { 1.0 };
            for variant in all_variants(kernel) {
                let what = format!("{kernel} {variant:?} {length}");
                let run = |input: ArrayRef| call(kernel, json!({}), &[input], variant).unwrap();
                let apart = |got: &[Complex<f64>], want: &[Complex<f64>]| {
                    got.iter().zip(want).map(|(a, b)| (a - b).norm()).fold(0.0, f64::max)
                };
                let outcome = run(array(&[2, length], &x));
                assert!(apart(elements(&outcome), &want) < 1e-13 * scale, "{what}");
                assert!(
                    apart(elements(&run(array(&[2, length], &real))), &want_real) < 1e-13 * scale,
                    "{what} real"
                );
                let outcome = run(array(&[2, length], &small));
                let wide: Vec<_> = elements::<Complex<f32>>(&outcome)
                    .iter()
                    .map(|z| Complex::new(f64::from(z.re), f64::from(z.im)))
                    .collect();
                assert!(apart(&wide, &want) < 1e-5 * scale, "{what} c64");
            }
        }
    }
}

#[test]
fn transforms_of_two_axes_and_of_real_input_match_reference() {
    /// By its definition: every row, then every column.
    fn both_axes(x: &mut [Complex<f64>], rows: usize, columns: usize, direction: Direction) {
        for row in x.chunks_mut(columns) {
            let line = row.to_vec();
            reference::dft(&line, row, direction);
        }
        for column in 0..columns {
            let line: Vec<_> = (0..rows).map(|row| x[row * columns + column]).collect();
            let mut out = line.clone();
            reference::dft(&line, &mut out, direction);
            (0..rows).for_each(|row| x[row * columns + column] = out[row]);
        }
    }
    let apart = |got: &[Complex<f64>], want: &[Complex<f64>]| {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).map(|(a, b)| (a - b).norm()).fold(0.0, f64::max)
    };
    for (rows, columns) in [(1, 1), (1, 6), (6, 1), (2, 2), (5, 7), (16, 33), (40, 8), (3, 100)] {
        // A batch of two.
        let count = 2 * rows * columns;
        let real = values::<f64>(23, count);
        let x: Vec<Complex<f64>> =
            values::<f64>(24, 2 * count).chunks(2).map(|part| Complex::new(part[0], part[1])).collect();
        let size = (rows * columns) as f64;
        for (kernel, direction, scale) in
            [(KernelId::Fft, Direction::Forward, size), (KernelId::Ifft, Direction::Inverse, 1.0)]
        {
            let mut want = x.clone();
            want.chunks_mut(rows * columns).for_each(|x| both_axes(x, rows, columns, direction));
            for variant in all_variants(kernel) {
                let input = [array(&[2, rows, columns], &x)];
                let outcome = call(kernel, json!({"axes": 2}), &input, variant).unwrap();
                let what = format!("{kernel} {variant:?} {rows} x {columns}");
                assert!(apart(elements(&outcome), &want) < 1e-13 * scale, "{what}");
                assert_eq!(outcome.array.unwrap().shape(), [2, rows, columns], "{what}");
            }
        }
        let half = columns / 2 + 1;
        let promoted: Vec<_> = real.iter().map(|&re| Complex::new(re, 0.0)).collect();
        let (mut lines, mut planes) = (promoted.clone(), promoted);
        lines.chunks_mut(columns).for_each(|x| both_axes(x, 1, columns, Direction::Forward));
        planes.chunks_mut(rows * columns).for_each(|x| both_axes(x, rows, columns, Direction::Forward));
        for (axes, want) in [(1, lines), (2, planes)] {
            let want: Vec<_> = want.chunks(columns).flat_map(|line| line[..half].to_vec()).collect();
            for variant in all_variants(KernelId::Rfft) {
                let given = json!({"axes": axes});
                let input = [array(&[2, rows, columns], &real)];
                let outcome = call(KernelId::Rfft, given.clone(), &input, variant).unwrap();
                let what = format!("rfft {variant:?} {rows} x {columns}, {axes} axes");
                assert!(apart(elements(&outcome), &want) < 1e-13 * size, "{what}");
                assert_eq!(outcome.array.unwrap().shape(), [2, rows, half], "{what}");
                let small: Vec<f32> = real.iter().map(|&re| re as f32).collect();
                let input = [array(&[2, rows, columns], &small)];
                let outcome = call(KernelId::Rfft, given, &input, variant).unwrap();
                let wide = |z: &Complex<f32>| Complex::new(f64::from(z.re), f64::from(z.im));
                let wide: Vec<_> = elements::<Complex<f32>>(&outcome).iter().map(wide).collect();
                assert!(apart(&wide, &want) < 1e-5 * size, "{what} c64");
            }
        }
    }
}

#[test]
fn inverse_real_transforms_match_reference_and_undo_rfft() {
    /// By its definition: the columns, then every row made whole from its first half.
    fn back(z: &[Complex<f64>], [rows, found]: [usize; 2], n: usize) -> Vec<f64> {
        let mut matrix = z.to_vec();
        for column in 0..found {
            let line: Vec<_> = (0..rows).map(|row| z[row * found + column]).collect();
            let mut out = line.clone();
            reference::dft(&line, &mut out, Direction::Inverse);
            (0..rows).for_each(|row| matrix[row * found + column] = out[row]);
        }
        let mut answer = Vec::new();
        for row in matrix.chunks(found) {
            let half = |at: usize| row.get(at).copied().unwrap_or_default();
            let whole: Vec<_> = (0..n)
                .map(|at| match at {
                    // Its own mirror, so what is imaginary there is not looked at.
                    _ if at == n - at || at == 0 => Complex::new(half(at).re, 0.0),
                    _ if at < n - at => half(at),
                    _ => half(n - at).conj(),
                })
                .collect();
            let mut out = whole.clone();
            reference::dft(&whole, &mut out, Direction::Inverse);
            assert!(out.iter().all(|value| value.im.abs() < 1e-12));
            answer.extend(out.iter().map(|value| value.re));
        }
        answer
    }
    let apart = |got: &[f64], want: &[f64]| {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    for [rows, found] in [[1, 1], [1, 2], [2, 1], [3, 2], [5, 7], [16, 17], [40, 8], [3, 51], [1, 129]] {
        // A batch of two.
        let count = 2 * rows * found;
        let z: Vec<Complex<f64>> =
            values::<f64>(27, 2 * count).chunks(2).map(|part| Complex::new(part[0], part[1])).collect();
        let small: Vec<Complex<f32>> = z.iter().map(|z| Complex::new(z.re as f32, z.im as f32)).collect();
        let real: Vec<f64> = z.iter().map(|z| z.re).collect();
        let promoted: Vec<_> = real.iter().map(|&re| Complex::new(re, 0.0)).collect();
        let lengths = [None, Some(1), Some(2), Some(2 * found - 1), Some(found + 3), Some(4 * found + 2)];
        for (n, axes) in lengths.into_iter().flat_map(|n| [(n, 1), (n, 2)]) {
            let given = json!({"axes": axes, "n": n});
            let Some(n) = n.or((found > 1).then(|| 2 * (found - 1))) else {
                let error = by_default(KernelId::Irfft, given, &[array(&[2, rows, found], &z)]).unwrap_err();
                assert!(error.to_string().contains("two elements or more, or a parameter `n`"), "{error}");
                continue;
            };
            let high = if axes == 2 { rows } else { 1 };
            let of = |z: &[Complex<f64>]| -> Vec<f64> {
                z.chunks(high * found).flat_map(|z| back(z, [high, found], n)).collect()
            };
            let (want, want_real) = (of(&z), of(&promoted));
            for variant in all_variants(KernelId::Irfft) {
                let what = format!("{variant:?} {rows} x {found}, {axes} axes, n {n}");
                let run = |input| call(KernelId::Irfft, given.clone(), &[input], variant).unwrap();
                let outcome = run(array(&[2, rows, found], &z));
                assert!(apart(elements(&outcome), &want) < 1e-14, "{what}");
                assert_eq!(outcome.array.unwrap().shape(), [2, rows, n], "{what}");
                let outcome = run(array(&[2, rows, found], &real));
                assert!(apart(elements(&outcome), &want_real) < 1e-14, "{what} real");
                let outcome = run(array(&[2, rows, found], &small));
                assert!(apart(&wide(elements(&outcome)), &want) < 2e-6, "{what} c64");
            }
        }
    }
    for (rows, n) in [(1, 1), (1, 2), (3, 9), (7, 100), (20, 257), (300, 1024)] {
        let x = values::<f64>(28, rows * n);
        for variant in all_variants(KernelId::Irfft) {
            for axes in [1, 2] {
                let there =
                    call(KernelId::Rfft, json!({"axes": axes}), &[array(&[rows, n], &x)], variant).unwrap();
                let again = json!({"axes": axes, "n": n});
                let outcome = call(KernelId::Irfft, again, &[there.array.unwrap().into()], variant).unwrap();
                assert!(apart(elements(&outcome), &x) < 1e-14, "{variant:?} {rows} x {n}, {axes} axes");
            }
        }
    }
    // More lines than are at work together, each to be filled up with zeros: the last is as it is alone.
    let z: Vec<Complex<f64>> =
        values::<f64>(29, 2 * 300 * 400).chunks(2).map(|part| Complex::new(part[0], part[1])).collect();
    for variant in all_variants(KernelId::Irfft) {
        let run = |z: &[Complex<f64>]| {
            let input = [array(&[z.len() / 400, 400], z)];
            call(KernelId::Irfft, json!({"n": 1000}), &input, variant).unwrap()
        };
        let (all, last) = (run(&z), run(&z[299 * 400..]));
        assert_eq!(elements::<f64>(&all)[299 * 1000..], *elements::<f64>(&last), "{variant:?}");
    }
}

#[test]
fn heat_steps_match_reference_and_blocking_changes_no_bit() {
    fn check<T: Float>() {
        let shapes =
            [(0, 0), (0, 5), (5, 0), (1, 1), (2, 9), (9, 2), (3, 3), (17, 23), (70, 1000), (700, 130)];
        for (rows, columns) in shapes {
            let u = values::<T>(12, rows * columns);
            let inputs = [array(&[rows, columns], &u)];
            for steps in [0, 1, 2, 3, 8, 11] {
                let (mut want, mut scratch) = (u.clone(), u.clone());
                reference::stencil5(&mut want, &mut scratch, rows, columns, T::of(0.2), steps);
                for level in Level::ALL {
                    let given = json!({"steps": steps, "alpha": 0.2});
                    let get = |choice| {
                        call(KernelId::Stencil5, given.clone(), &inputs, Variant::new(level, choice)).unwrap()
                    };
                    let (plain, blocked) = (get(0), get(1));
                    let what = format!("{level} {rows} x {columns}, {steps} steps");
                    all_close(elements::<T>(&plain), &want, 6.0 * T::ULP * (steps + 1) as f64, &what);
                    assert!(
                        plain.array.unwrap().bytes() == blocked.array.unwrap().bytes(),
                        "{what}: blocking"
                    );
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn convolutions_match_reference_in_every_mode() {
    fn check<T: Float>() {
        for x_shape in [[1, 1], [1, 40], [40, 1], [7, 9], [20, 300]] {
            for w_shape in [[1, 1], [1, 4], [3, 1], [2, 2], [5, 5], [7, 9], [9, 60]] {
                let (x, w) =
                    (values::<T>(25, x_shape.iter().product()), values::<T>(26, w_shape.iter().product()));
                let inputs = [array(&x_shape, &x), array(&w_shape, &w)];
                for (word, mode) in [("full", Mode::Full), ("same", Mode::Same), ("valid", Mode::Valid)] {
                    if mode == Mode::Valid && (w_shape[0] > x_shape[0] || w_shape[1] > x_shape[1]) {
                        let error =
                            by_default(KernelId::Convolve2d, json!({"mode": word}), &inputs).unwrap_err();
                        let needed = format!("needs at most ({}, {})", x_shape[0], x_shape[1]);
                        assert!(error.to_string().contains(&needed), "{error}");
                        continue;
                    }
                    let want = reference::convolve2d(&x, x_shape, &w, w_shape, mode);
                    for variant in all_variants(KernelId::Convolve2d) {
                        let outcome =
                            call(KernelId::Convolve2d, json!({"mode": word}), &inputs, variant).unwrap();
                        let what = format!("{word} {variant:?} {x_shape:?} by {w_shape:?}");
                        let taps = w.len() as f64;
                        all_close(elements::<T>(&outcome), &want, (taps + 1.0) * taps * T::ULP, &what);
                    }
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
    // What is beyond the border is zero, and zero times infinity is not a number: only windows that reach it.
    let x = array(&[1, 4], &[f64::INFINITY, 1.0, 2.0, 5e-324]);
    let outcome = by_default(KernelId::Convolve2d, json!({}), &[x, array(&[1, 2], &[1.0, 0.0])]).unwrap();
    let got = elements::<f64>(&outcome);
    assert!(got[0] == f64::INFINITY && got[1].is_nan() && got[2..] == [2.0, 5e-324, 0.0], "{got:?}");
}

#[test]
fn blocked_heat_steps_agree_on_grids_beyond_the_cache() {
    for (rows, columns) in [(3, 70_000), (5, 60_000), (90, 3000), (4000, 40), (50_000, 3), (400, 20_000)] {
        let u = values::<f32>(13, rows * columns);
        let inputs = [array(&[rows, columns], &u)];
        for steps in [1, 2, 5, 8, 9, 16, 21] {
            if rows * columns * steps > 20_000_000 {
                continue;
            }
            let get = |choice| {
                let given = json!({"steps": steps, "alpha": 0.24});
                call(KernelId::Stencil5, given, &inputs, Variant::new(Level::best(), choice)).unwrap()
            };
            let (plain, blocked) = (get(0), get(1));
            assert!(
                plain.array.unwrap().bytes() == blocked.array.unwrap().bytes(),
                "{rows} x {columns}, {steps} steps"
            );
        }
    }
}

#[test]
fn neighbours_match_reference() {
    fn check<T: Float>() {
        for (q, n, d, k) in [
            (1, 1, 1, 1),
            (3, 10, 2, 10),
            (7, 300, 5, 3),
            (130, 90, 16, 10),
            (2, 2100, 33, 25),
            (5, 40, 1000, 4),
        ] {
            let queries = values::<T>(14, q * d);
            let mut corpus = values::<T>(15, n * d);
            if n > 4 {
                // A tie and a zero row.
                corpus.copy_within(0..d, 3 * d);
                corpus[2 * d..3 * d].fill(T::default());
            }
            let inputs = [array(&[q, d], &queries), array(&[n, d], &corpus)];
            for (word, metric) in
                [("cosine", Metric::Cosine), ("l2", Metric::L2), ("ip", Metric::InnerProduct)]
            {
                let (want, scores) = reference::knn(&queries, &corpus, d, k, metric);
                for variant in all_variants(KernelId::Knn) {
                    let what = format!("{word} {variant:?} {q} {n} {d} {k}");
                    let outcome =
                        call(KernelId::Knn, json!({"k": k, "metric": word}), &inputs, variant).unwrap();
                    let got: Vec<u64> = elements::<i64>(&outcome).iter().map(|&index| index as u64).collect();
                    assert_eq!(got, want, "{what}");
                    let (suffix, extra) = &outcome.extra[0];
                    assert_eq!((*suffix, extra.shape()), (SCORES_SUFFIX, &[q, k][..]));
                    let wanted: Vec<T> = scores.iter().map(|&score| T::of(score)).collect();
                    let largest = scores.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
                    all_close(extra.as_slice::<T>().unwrap(), &wanted, 2.0 * T::ULP * largest + 1e-13, &what);
                    assert_eq!(outcome.result, Some(json!({"k": k, "metric": word})));
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn neighbours_of_extreme_vectors_are_found() {
    let queries = array(&[2, 2], &[3e30_f32, 0.0, 1e-30, 1e-30]);
    let corpus = array(&[4, 2], &[0.0_f32, 4e30, 2e30, 1e30, f32::NAN, 0.0, 1e-30, 1e-30]);
    for (metric, first) in [("cosine", [1, 3]), ("l2", [1, 3]), ("ip", [1, 0])] {
        for variant in all_variants(KernelId::Knn) {
            let given = json!({"k": 4, "metric": metric});
            let outcome =
                call(KernelId::Knn, given, &[load_again(&queries), load_again(&corpus)], variant).unwrap();
            let got = elements::<i64>(&outcome);
            assert_eq!([got[0], got[4]], first, "{metric} {variant:?}: {got:?}");
            assert_eq!((got[3], got[7]), (2, 2), "NaN ranks last: {metric} {variant:?}: {got:?}");
        }
    }
    assert_eq!(extra_path(Path::new("a/z.npy"), SCORES_SUFFIX), Path::new("a/z.scores.npy"));
}

/// The inputs of a search by codes.
fn coded(queries: &[f32], corpus: &[f32], d: usize) -> Vec<ArrayRef> {
    let rows = |x: &[f32]| array(&[x.len() / d, d], x);
    let made = by_default(KernelId::Quantize, json!({}), &[rows(corpus)]).unwrap();
    assert_eq!(made.extra[0].0, BOUNDS_SUFFIX);
    let bounds = made.extra.into_iter().next().unwrap().1;
    vec![rows(queries), rows(corpus), made.array.unwrap().into(), bounds.into()]
}

#[test]
fn neighbours_by_codes_are_the_exact_ones() {
    for (q, n, d, k) in [
        (1, 1, 1, 1),
        (3, 10, 2, 10),
        (7, 300, 5, 3),
        (4, 5000, 16, 10),
        (2, 9000, 70, 25),
        (16, 400, 1000, 4),
    ] {
        let (uniform, queries) = (values::<f32>(41, n * d), values::<f32>(42, q * d));
        // Lengths of many sizes; one large number that leaves the others few codes; rows almost alike; ties.
        let scaled = |x: f32, at: usize| x * (10.0_f32).powi((at / d % 9) as i32 * 3 - 12);
        let spiked = |x: f32, at: usize| if at.is_multiple_of(d) { x * 1e4 } else { x };
        let alike = |x: f32, at: usize| queries[at % d] + x * 1e-4;
        let coarse = |x: f32, _: usize| (x * 1.5).round();
        let of = |change: &dyn Fn(f32, usize) -> f32| -> Vec<f32> {
            uniform.iter().enumerate().map(|(at, &x)| change(x, at)).collect()
        };
        let mut odd = uniform.clone();
        odd.chunks_mut(d).step_by(3).for_each(|row| row.fill(0.0));
        odd[0] = f32::NAN;
        if n > 9 {
            (odd[4 * d], odd[5 * d], odd[7 * d]) = (f32::INFINITY, f32::MIN_POSITIVE / 8.0, 3e38);
        }
        for corpus in [uniform.clone(), of(&scaled), of(&spiked), of(&alike), of(&coarse), odd] {
            let inputs = coded(&queries, &corpus, d);
            for (word, metric) in
                [("cosine", Metric::Cosine), ("l2", Metric::L2), ("ip", Metric::InnerProduct)]
            {
                let given = json!({"k": k, "metric": word});
                for variant in all_variants(KernelId::Knn) {
                    let what = format!("{word} {variant:?} {q} {n} {d} {k}");
                    let outcome = call(KernelId::Knn, given.clone(), &inputs, variant).unwrap();
                    let indices = elements::<i64>(&outcome);
                    let scores = outcome.extra[0].1.as_slice::<f32>().unwrap();
                    let pieces = indices.chunks(k).zip(scores.chunks(k)).zip(queries.chunks(d));
                    for ((indices, scores), query) in pieces {
                        // What scoring every row as the last step does it gives.
                        let mut all: Vec<(f64, u64)> = corpus
                            .chunks(d)
                            .zip(0..)
                            .map(|(row, at)| (simd::distance(variant.level, metric, query, row), at))
                            .collect();
                        all.sort_by(|a, b| {
                            if a.1 == b.1 {
                                std::cmp::Ordering::Equal
                            } else if reference::ranks_before(metric.order(), a.0, a.1, b.0, b.1) {
                                std::cmp::Ordering::Less
                            } else {
                                std::cmp::Ordering::Greater
                            }
                        });
                        let want: Vec<i64> = all.iter().take(k).map(|(_, at)| *at as i64).collect();
                        assert_eq!(indices, want, "{what}");
                        let same = scores.iter().zip(&all).all(|(got, want)| {
                            got.to_bits() == (want.0 as f32).to_bits() || got.is_nan() && want.0.is_nan()
                        });
                        assert!(same, "{what}: {scores:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn codes_of_another_corpus_are_noticed() {
    let (queries, corpus) = (values::<f32>(43, 8), values::<f32>(44, 8 * 50));
    let mut inputs = coded(&queries, &corpus, 8);
    let mut other = corpus.clone();
    other.swap(8 * 7, 8 * 7 + 1);
    inputs[1] = array(&[50, 8], &other);
    // Every row is scored.
    let error = by_default(KernelId::Knn, json!({"k": 50}), &inputs).unwrap_err().to_string();
    let words = "knn: inputs[2] \"codes\" and inputs[3] \"bounds\" are not what quantize makes of inputs[1] \"corpus\": row 7 is";
    assert!(error.contains(words), "{error}");
}

/// A copy, because a call takes a slice of arrays.
fn load_again(array: &ArrayRef) -> ArrayRef {
    Array::from_slice(array.shape(), array.as_slice::<f32>().unwrap()).unwrap().into()
}

/// Runs `kmeans` every way and compares all bits; how many rows went to centroids without any.
fn clusters_are_those_of_the_reference<T: Float>(x: &[T], d: usize, given: Value) -> usize {
    let input = [array(&[x.len() / d, d], x)];
    let number = |name: &str, default: u64| given[name].as_u64().unwrap_or(default);
    let (k, most) = (number("k", 8) as usize, number("max_iterations", 300) as usize);
    let tolerance = given["tolerance"].as_f64().unwrap_or(1e-4);
    let want = reference::kmeans(x, d, k, number("seed", 42), most, tolerance);
    for variant in all_variants(KernelId::Kmeans) {
        let what = format!("{variant:?} {} rows of {d}, {given}", x.len() / d);
        let outcome = call(KernelId::Kmeans, given.clone(), &input, variant).unwrap();
        let (suffix, labels) = &outcome.extra[0];
        assert_eq!((*suffix, labels.shape()), (LABELS_SUFFIX, &[x.len() / d][..]));
        let labels = labels.as_slice::<i32>().unwrap().iter().map(|&label| label as usize);
        assert!(labels.eq(want.labels.iter().copied()), "{what}");
        assert_eq!(outcome.array.as_ref().unwrap().shape(), [k, d], "{what}");
        assert_eq!(elements::<T>(&outcome), want.centroids, "{what}");
        let result = outcome.result.unwrap();
        assert_eq!(result["iterations"], want.iterations, "{what}");
        assert_eq!((&result["k"], &result["converged"]), (&json!(k), &json!(want.converged)), "{what}");
        close(result["inertia"].as_f64().unwrap(), want.inertia, 1e-12 * want.inertia, &what);
    }
    want.taken
}

#[test]
fn clusters_have_the_bits_of_the_reference_on_every_level() {
    fn check<T: Float>() {
        for (n, d, k) in [
            (1, 1, 1),
            (5, 3, 5),
            (50, 2, 4),
            (300, 5, 7),
            (200, 16, 3),
            (70, 33, 20),
            (1500, 1, 9),
            (4200, 3, 6),
        ] {
            let x = values::<T>(36, n * d);
            // Many rows alike and many as far from one centroid as from another.
            let coarse: Vec<T> = x.iter().map(|value| T::of((value.to_f64() * 2.0).round())).collect();
            for seed in 1..4 {
                for x in [&x, &coarse] {
                    clusters_are_those_of_the_reference(x, d, json!({"k": k, "seed": seed}));
                    let given = json!({"k": k, "seed": seed, "tolerance": 0, "max_iterations": seed - 1});
                    clusters_are_those_of_the_reference(x, d, given);
                }
            }
            clusters_are_those_of_the_reference(&x, d, json!({"k": k, "tolerance": 0.05}));
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn a_centroid_that_lost_its_rows_takes_the_farthest_one() {
    // With -4, 0 and 21 picked, the second one has 0 and 10, stands between them in the next step, and both are nearer to
    // others.
    let line = [-4.0, 0.0, 10.0, 11.0, 11.0, 11.0, 21.0];
    let mut taken = [0; 2];
    for seed in 0..200 {
        // A little beside it, and in the plane.
        let around: Vec<f64> = values::<f64>(seed, 14).iter().map(|value| value * 0.2).collect();
        let x: Vec<f64> = line.iter().zip(around.chunks(2)).flat_map(|(x, y)| [x + y[0], y[1]]).collect();
        let given = json!({"k": 3, "seed": seed, "tolerance": 0});
        taken[0] += clusters_are_those_of_the_reference(&line.map(|x| x as f32), 1, given.clone());
        taken[1] += clusters_are_those_of_the_reference(&x, 2, given);
    }
    assert!(taken.iter().all(|taken| *taken > 0), "{taken:?}");
}

#[test]
fn clusters_that_stand_apart_are_found_whatever_the_seed() {
    // Forty of them in a row: one row out of each is picked nearly always by distance, and never by luck.
    let x: Vec<f32> = (0..4000)
        .map(|row| (row % 40 * 1000) as f32)
        .zip(values::<f32>(38, 4000))
        .map(|(x, y)| x + y)
        .collect();
    for seed in 0..10 {
        let given = json!({"k": 40, "seed": seed});
        let outcome = by_default(KernelId::Kmeans, given, &[array(&[4000, 1], &x)]).unwrap();
        let inertia = outcome.result.as_ref().unwrap()["inertia"].as_f64().unwrap();
        assert!(inertia < 4000.0 / 3.0 * 1.05, "seed {seed}: {inertia}");
        let mut centroids = elements::<f32>(&outcome).to_vec();
        centroids.sort_by(f32::total_cmp);
        for (at, centroid) in centroids.into_iter().enumerate() {
            close(f64::from(centroid), at as f64 * 1000.0, 0.3, "a centroid");
        }
    }
}

#[test]
fn more_steps_make_clusters_no_worse_and_rows_without_distances_are_refused() {
    let x = values::<f64>(39, 3 * 2000);
    let cluster =
        |given: Value| by_default(KernelId::Kmeans, given, &[array(&[2000, 3], &x)]).unwrap().result.unwrap();
    let mut before = f64::INFINITY;
    for steps in 0..60 {
        let found = cluster(json!({"k": 12, "max_iterations": steps, "tolerance": 0}));
        let inertia = found["inertia"].as_f64().unwrap();
        assert!(inertia <= before * (1.0 + 1e-12), "{steps}: {inertia} after {before}");
        assert!(found["iterations"].as_u64().unwrap() <= steps);
        before = inertia;
    }
    assert_eq!(cluster(json!({"k": 12, "tolerance": 0}))["converged"], true);
    assert_eq!(cluster(json!({"k": 12, "max_iterations": 1}))["converged"], false);
    assert_eq!(cluster(json!({"k": 2000}))["inertia"], 0.0);

    let refused = |shape: [usize; 2], place: usize, value: f64, given: Value| {
        let mut x = vec![1.0_f32; shape[0] * shape[1]];
        x.iter_mut().skip(place).take(1).for_each(|x| *x = value as f32);
        by_default(KernelId::Kmeans, given, &[array(&shape, &x)]).unwrap_err().to_string()
    };
    for (value, word) in
        [(f64::NAN, "NaN"), (f64::NEG_INFINITY, "-inf"), (2.0_f64.powi(64), "1.8446744073709552e19")]
    {
        let error = refused([70_000, 3], 200_003, value, json!({}));
        let words = format!(
            "kmeans: inputs[0] \"x\" has {word} at (66667, 2), needs numbers of at most 2.7e18 in magnitude"
        );
        assert!(error.contains(&words), "{error}\n not {words}");
    }
    for (shape, words) in [
        ([7, 2], "kmeans: inputs[0] \"x\" has shape (7, 2), needs (8, 2) or more rows, because k is 8"),
        ([0, 2], "has shape (0, 2), needs (8, 2) or more rows, because k is 8"),
        ([9, 0], "has shape (9, 0), needs (n, d) with d of 1 or more"),
    ] {
        let error = refused(shape, 0, 1.0, json!({}));
        assert!(error.contains(words), "{error}\n not {words}");
    }
    // As large as may be: distances of any two are finite.
    let ends: Vec<f32> = (0..30).map(|at| if at % 2 == 0 { 2.6e18 } else { -2.6e18 }).collect();
    let outcome = by_default(KernelId::Kmeans, json!({"k": 1}), &[array(&[10, 3], &ends)]).unwrap();
    let inertia = outcome.result.unwrap()["inertia"].as_f64().unwrap();
    close(inertia, 30.0 * 2.6e18 * 2.6e18, 1e33, "inertia");
}

#[test]
fn histograms_match_reference() {
    fn check<T: Float>() {
        for length in lengths() {
            let mut x = values::<T>(16, length);
            if length > 30 {
                x[7] = T::of(f64::NAN);
                x[29] = T::of(5.0);
            }
            let inputs = [array(&[length], &x)];
            for bins in [1, 7, 256, 1500] {
                let mut want = vec![0; bins];
                let ignored = reference::histogram(&x, -0.5, 0.75, &mut want);
                for variant in all_variants(KernelId::Histogram) {
                    let given = json!({"bins": bins, "min": -0.5, "max": 0.75});
                    let outcome = call(KernelId::Histogram, given, &inputs, variant).unwrap();
                    let what = format!("{variant:?} {length} elements, {bins} bins");
                    assert_eq!(elements::<u64>(&outcome), want, "{what}");
                    let result = outcome.result.unwrap();
                    assert_eq!(result["ignored"], ignored, "{what}");
                    assert_eq!(result["total"], length as u64 - ignored, "{what}");
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
    let bytes = values::<u8>(17, 5000);
    let mut want = vec![0; 50];
    let ignored = reference::histogram_u8(&bytes, 10.0, 200.0, &mut want);
    for variant in all_variants(KernelId::Histogram) {
        let given = json!({"bins": 50, "min": 10, "max": 200});
        let outcome = call(KernelId::Histogram, given, &[array(&[50, 100], &bytes)], variant).unwrap();
        assert_eq!(elements::<u64>(&outcome), want);
        assert_eq!(outcome.result.unwrap()["ignored"], ignored);
    }
}

#[test]
fn histogram_ranges_come_from_the_data_when_not_given() {
    let range = |x: &[f64], given: Value| {
        by_default(KernelId::Histogram, given, &[array(&[x.len()], x)]).map(|outcome| {
            let result = outcome.result.unwrap();
            let counts: u64 = outcome.array.unwrap().as_slice::<u64>().unwrap().iter().sum();
            assert_eq!(result["total"], counts);
            (
                result["min"].as_f64().unwrap(),
                result["max"].as_f64().unwrap(),
                result["ignored"].as_u64().unwrap(),
            )
        })
    };
    assert_eq!(range(&[1.0, f64::NAN, 4.0], json!({})).unwrap(), (1.0, 4.0, 1));
    assert_eq!(range(&[], json!({})).unwrap(), (0.0, 1.0, 0));
    assert_eq!(range(&[f64::NAN], json!({"max": 3})).unwrap(), (0.0, 3.0, 1));
    assert_eq!(range(&[2.0, 2.0], json!({})).unwrap(), (1.5, 2.5, 0));
    assert_eq!(range(&[1e300, 1e300], json!({})).unwrap().2, 0);
    assert_eq!(range(&[1.0, 9.0], json!({"min": 2})).unwrap(), (2.0, 9.0, 1));
    assert!(
        range(&[1.0, 9.0], json!({"min": 10}))
            .unwrap_err()
            .to_string()
            .contains("no element lies in the range")
    );
    let infinite = range(&[1.0, f64::INFINITY], json!({})).unwrap_err().to_string();
    assert!(infinite.contains("give a finite `min` and `max`"), "{infinite}");
    assert!(range(&[-1e308, 1e308], json!({})).is_err());
    assert_eq!(range(&[1.0, f64::INFINITY], json!({"min": 0, "max": 2})).unwrap(), (0.0, 2.0, 1));
}

#[test]
fn simulated_prices_agree_with_the_closed_form_and_with_each_other() {
    let given = json!({"paths": 300_000, "volatility": 0.3, "seed": 7});
    let mut prices = Vec::new();
    for variant in all_variants(KernelId::MonteCarlo) {
        let outcome = call(KernelId::MonteCarlo, given.clone(), &[], variant).unwrap();
        let again = call(KernelId::MonteCarlo, given.clone(), &[], variant).unwrap();
        assert_eq!(outcome.result, again.result);
        let result = outcome.result.unwrap();
        let number = |key: &str| result[key].as_f64().unwrap();
        let apart = (number("price") - number("closed_form")).abs();
        assert!(apart < 4.0 * number("std_error"), "{variant:?}: {result}");
        assert_eq!(result["paths"], 300_000);
        prices.push(number("price"));
    }
    assert!(prices.iter().all(|price| (price - prices[0]).abs() < 1e-9), "{prices:?}");
    let certain =
        by_default(KernelId::MonteCarlo, json!({"volatility": 0, "paths": 2}), &[]).unwrap().result.unwrap();
    assert_eq!(certain["std_error"], 0.0);
}

// ---------------------------------------------------------------------------------------------------------
// Parts

/// An array of random numbers and of this shape.
fn drawn(luck: &mut SplitMix64, dtype: DType, shape: &[usize]) -> ArrayRef {
    let count: usize = shape.iter().product();
    let mut numbers = || (luck.below(1 << 20) as f64 / f64::from(1 << 19)) - 1.0;
    let x: Vec<f64> = (0..2 * count).map(|_| numbers()).collect();
    let whole = |scale: f64| x[..count].iter().map(move |x| (x * scale) as i64);
    match dtype {
        DType::F64 => array(shape, &x[..count]),
        DType::F32 => array(shape, &x[..count].iter().map(|x| *x as f32).collect::<Vec<_>>()),
        DType::I64 => array(shape, &whole(9.0).collect::<Vec<_>>()),
        DType::I32 => array(shape, &whole(9.0).map(|x| x as i32).collect::<Vec<_>>()),
        DType::C128 => {
            array(shape, &x.chunks(2).map(|part| Complex::new(part[0], part[1])).collect::<Vec<_>>())
        }
        other => panic!("{other:?} is not drawn here"),
    }
}

/// Another one like it: who takes rows takes the array.
fn copy(array: &ArrayRef) -> ArrayRef {
    fn of<T: Element>(array: &ArrayRef) -> ArrayRef {
        Array::from_slice(array.shape(), array.as_slice::<T>().unwrap()).unwrap().into()
    }
    match array.dtype() {
        DType::F64 => of::<f64>(array),
        DType::F32 => of::<f32>(array),
        DType::I64 => of::<i64>(array),
        DType::I32 => of::<i32>(array),
        _ => of::<Complex<f64>>(array),
    }
}

/// Rows of arrays of one type, one part after the other.
fn put_together(parts: &[&Array]) -> (DType, Vec<usize>, Vec<u8>) {
    let mut shape = parts[0].shape().to_vec();
    assert!(parts.iter().all(|part| part.dtype() == parts[0].dtype() && part.shape()[1..] == shape[1..]));
    shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
    (parts[0].dtype(), shape, parts.iter().flat_map(|part| part.bytes()).copied().collect())
}

/// What a call yields, in order.
fn arrays(outcome: &Outcome) -> impl Iterator<Item = &Array> {
    outcome.array.iter().chain(outcome.extra.iter().map(|(_, array)| array))
}

/// The numbers of an array of floats.
fn floats(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F32 => {
            bytes.chunks(4).map(|it| f64::from(f32::from_le_bytes(it.try_into().unwrap()))).collect()
        }
        _ => bytes.chunks(8).map(|it| f64::from_le_bytes(it.try_into().unwrap())).collect(),
    }
}

/// One of the calls that may fall into parts, with arrays that need not go together.
fn call_that_may_split(luck: &mut SplitMix64) -> (KernelId, Value, Vec<ArrayRef>) {
    use KernelId::*;
    let all = [
        Matmul, Axpy, Expr, Sort, Argsort, TopK, Cumsum, Softmax, Reduce, Fft, Ifft, Rfft, Irfft, Knn,
        Quantize,
    ];
    let kernel = all[luck.below(all.len() as u64) as usize];
    let axis = |luck: &mut SplitMix64| match luck.below(8) {
        0 => 0,
        1 => 30 + luck.below(30) as usize,
        _ => 1 + luck.below(6) as usize,
    };
    let axes = 1 + luck.below(4) as usize;
    let shape: Vec<usize> = (0..axes).map(|_| axis(luck)).collect();
    let lines = luck.below(7) as i64 - 3;
    let (mut given, dtypes) = match kernel {
        Matmul => {
            let word = ["none", "a", "b", "both"][luck.below(4) as usize];
            (json!({ "transpose": word }), &[DType::F64, DType::F32][..])
        }
        Axpy => (json!({"alpha": 0.75}), &[DType::F64, DType::F32][..]),
        Expr => {
            let text = ["a + b", "where(a > b, a*2, b)", "sin(a)*b + 0.5*a*a", "a - 1", "exp(b) / 3 + a"];
            (json!({ "expr": (text[luck.below(5) as usize]) }), &[DType::F64, DType::F32, DType::I32][..])
        }
        Sort | Argsort => (json!({}), &[DType::F64, DType::F32, DType::I64, DType::I32][..]),
        TopK => (json!({"k": 1 + luck.below(3)}), &[DType::F64, DType::I32][..]),
        Cumsum | Softmax => (json!({ "axis": lines }), &[DType::F64, DType::F32][..]),
        Reduce => {
            let op = ["sum", "mean", "min", "max"][luck.below(4) as usize];
            (json!({"op": op, "axis": lines}), &[DType::F64, DType::I64][..])
        }
        Fft | Ifft => (json!({"axes": 1 + luck.below(2)}), &[DType::C128, DType::F64][..]),
        Rfft => (json!({"axes": 1 + luck.below(2)}), &[DType::F64, DType::F32][..]),
        Irfft => (json!({"axes": 1 + luck.below(2)}), &[DType::C128][..]),
        Knn => (
            json!({"k": 1 + luck.below(3), "metric": if luck.below(2) == 0 { "l2" } else { "ip" }}),
            &[DType::F32][..],
        ),
        _ => (json!({}), &[DType::F32][..]),
    };
    if kernel == Irfft && luck.below(3) == 0 {
        given["n"] = json!(1 + luck.below(9));
    }
    let dtype = dtypes[luck.below(dtypes.len() as u64) as usize];
    let first = drawn(luck, dtype, &shape);
    let other: Vec<usize> = match (kernel, luck.below(4)) {
        // Most products fit, whatever is transposed.
        (Matmul, 1..) if axes > 1 => {
            let (m, k, n) = (shape[axes - 2], shape[axes - 1], axis(luck));
            let inner = if matches!(given["transpose"].as_str(), Some("a" | "both")) { m } else { k };
            let ends = if matches!(given["transpose"].as_str(), Some("b" | "both")) {
                [n, inner]
            } else {
                [inner, n]
            };
            let batch = if luck.below(2) == 0 { &shape[..axes - 2] } else { &[] };
            [batch, &ends].concat()
        }
        (Knn, 1..) if axes == 2 => vec![axis(luck) + 3, shape[1]],
        (Axpy, 1..) => shape.clone(),
        // Broadcasting: fewer axes, or axes of one.
        (Expr, 1) => shape[luck.below(axes as u64) as usize..].to_vec(),
        (Expr, 2) => shape.iter().map(|n| if luck.below(2) == 0 { 1 } else { *n }).collect(),
        (Expr, 3) => [&[axis(luck)][..], &shape].concat(),
        _ => (0..1 + luck.below(4)).map(|_| axis(luck)).collect(),
    };
    let takes_two = matches!(kernel, Matmul | Axpy | Knn) || kernel == Expr && given["expr"] != "a - 1";
    let second = takes_two.then(|| drawn(luck, dtype, &other));
    (kernel, given, [Some(first), second].into_iter().flatten().collect())
}

/// What the agents compute that a call is divided among, put together, is what one agent computes: to the bit, but for what adds
/// up or approximates in another order. A call that is refused is not right in parts.
#[test]
fn parts_of_a_call_put_together_are_the_whole() {
    let (mut luck, mut right, mut refused) = (SplitMix64::new(7), std::collections::BTreeMap::new(), 0);
    for _ in 0..6000 {
        let (kernel, given, inputs) = call_that_may_split(&mut luck);
        let of = 1 + luck.below(7) as u32;
        let what = || {
            let shapes: Vec<&[usize]> = inputs.iter().map(|input| input.shape()).collect();
            format!("{kernel} {given} {shapes:?} {:?} in {of} parts", inputs[0].dtype())
        };
        let params = params(kernel, given.clone());
        let shapes: Vec<&[usize]> = inputs.iter().map(|input| input.shape()).collect();
        let Some(divided) = split(kernel, &params, &shapes) else { continue };
        assert!(may_split(kernel, &params), "{}", what());
        let own = |at: u32| {
            let rows = divided.rows_of(at, 1, of)?;
            let take = |(input, by_rows): (&ArrayRef, &bool)| {
                let input = copy(input);
                if *by_rows { input.into_rows(rows.clone()) } else { input }
            };
            let inputs: Vec<ArrayRef> = inputs.iter().zip(&divided.by_rows).map(take).collect();
            Some((rows.len(), inputs)).filter(|(rows, _)| *rows > 0)
        };
        let parts: Result<Vec<Outcome>, KernelError> = (0..of)
            .filter_map(own)
            .map(|(rows, inputs)| {
                let outcome = by_default(kernel, given.clone(), &inputs)?;
                let array = outcome.array.as_ref().expect("rows");
                // Else the agent says that it is none.
                assert_eq!(array.shape().first(), Some(&rows), "{}", what());
                Ok(outcome)
            })
            .collect();
        let whole = by_default(kernel, given.clone(), &inputs);
        let (Ok(parts), Ok(whole)) = (&parts, &whole) else {
            refused += 1;
            let is_alike = parts.is_err() && whole.is_err() || divided.rows == 0;
            assert!(is_alike, "{}: {:?} {:?}", what(), parts.as_ref().err(), whole.as_ref().err());
            continue;
        };
        if parts.is_empty() {
            continue;
        }
        *right.entry(kernel.name()).or_insert(0) += 1;
        for (at, whole) in arrays(whole).enumerate() {
            let own: Vec<&Array> = parts.iter().filter_map(|part| arrays(part).nth(at)).collect();
            let (dtype, shape, bytes) = put_together(&own);
            assert_eq!((dtype, &shape[..]), (whole.dtype(), whole.shape()), "{}", what());
            let rounds = matches!(kernel, KernelId::Matmul | KernelId::Expr | KernelId::Knn);
            if rounds && matches!(dtype, DType::F32 | DType::F64) {
                let ulp = if dtype == DType::F32 { f32::ULP } else { f64::ULP };
                all_close(&floats(dtype, &bytes), &floats(dtype, whole.bytes()), 300.0 * ulp, &what());
            } else {
                assert!(bytes == whole.bytes(), "{}", what());
            }
        }
    }
    println!("{right:?}, {refused} refused");
    assert!(
        right.len() == 15 && right.values().all(|count| *count > 20) && refused > 20,
        "{right:?} {refused}"
    );
}

// ---------------------------------------------------------------------------------------------------------
// What every kernel keeps to

#[test]
fn empty_and_pointless_arrays_are_answered_or_refused_never_fatal() {
    for kernel in KernelId::ALL.into_iter().filter(|kernel| !spec(*kernel).inputs.is_empty()) {
        let count = spec(kernel).inputs.iter().filter(|input| !input.optional).count();
        for dtype in DType::ALL {
            for shape in
                [&[][..], &[0], &[1], &[0, 0], &[0, 3], &[3, 0], &[2, 2], &[1, 0, 2], &[usize::MAX, 0]]
            {
                for variant in all_variants(kernel) {
                    for given in
                        [json!({}), json!({"axis": 0}), json!({"op": "mean", "axis": -1}), json!({"k": 1})]
                    {
                        let Ok(params) = check_params(kernel, given.as_object().unwrap()) else { continue };
                        let inputs: Vec<ArrayRef> =
                            (0..count).map(|_| Array::zeros(dtype, shape).unwrap().into()).collect();
                        let outcome =
                            run(&Call { kernel, params: &params, inputs: &inputs, variant, pulse: &() });
                        if let Err(error) = outcome {
                            assert!(error.to_string().starts_with(kernel.name()), "{error}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn answers_beyond_memory_are_refused() {
    let huge = || -> ArrayRef { Array::zeros(DType::F64, &[1 << 40, 0]).unwrap().into() };
    let wide: ArrayRef = Array::zeros(DType::F64, &[0, 1 << 40]).unwrap().into();
    let error = by_default(KernelId::Matmul, json!({}), &[huge(), wide]).unwrap_err();
    assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");
    let error = by_default(KernelId::Reduce, json!({"axis": 1}), &[huge()]).unwrap_err();
    assert!(matches!(error, KernelError::OutOfMemory { .. }), "{error}");
}

#[test]
fn mistakes_name_the_kernel_the_input_and_what_is_allowed() {
    let f32s = |shape: &[usize]| -> ArrayRef { Array::zeros(DType::F32, shape).unwrap().into() };
    let f64s = |shape: &[usize]| -> ArrayRef { Array::zeros(DType::F64, shape).unwrap().into() };
    let u8s = |shape: &[usize]| -> ArrayRef { Array::zeros(DType::U8, shape).unwrap().into() };
    let cases = [
        (
            KernelId::Matmul,
            json!({}),
            vec![f32s(&[2, 512]), f32s(&[3, 4])],
            "matmul: inputs[1] \"b\" has shape (3, 4), needs (512, *)",
        ),
        (
            KernelId::Matmul,
            json!({}),
            vec![f32s(&[2]), f32s(&[3, 4])],
            "matmul: inputs[0] \"a\" has shape (2,), needs (m, k)",
        ),
        (
            KernelId::Matmul,
            json!({}),
            vec![f32s(&[2, 3]), f64s(&[3, 4])],
            "inputs[1] \"b\" has dtype f64, needs f32 (that of inputs[0] \"a\")",
        ),
        (KernelId::Matmul, json!({}), vec![f32s(&[2, 3])], "matmul: 1 inputs, needs 2 (a, b)"),
        (
            KernelId::Matmul,
            json!({"transpose": "both"}),
            vec![f32s(&[7, 5, 2]), f32s(&[6, 4, 5])],
            "matmul: inputs[1] \"b\" has shape (6, 4, 5), needs (*, 5) or (7, *, 5)",
        ),
        (
            KernelId::Fft,
            json!({"axes": 2}),
            vec![f32s(&[5])],
            "fft: inputs[0] \"x\" has shape (5,), needs two axes or more, because axes is 2",
        ),
        (
            KernelId::Dot,
            json!({}),
            vec![f32s(&[2]), f32s(&[3])],
            "dot: inputs[1] \"y\" has shape (3,), needs (2,)",
        ),
        (
            KernelId::Dot,
            json!({}),
            vec![f32s(&[2, 1]), f32s(&[2])],
            "dot: inputs[0] \"x\" has shape (2, 1), needs (n,)",
        ),
        (
            KernelId::Axpy,
            json!({}),
            vec![f32s(&[2, 2]), f32s(&[4])],
            "needs (2, 2) (that of inputs[0] \"x\")",
        ),
        (
            KernelId::Reduce,
            json!({"axis": 2}),
            vec![f32s(&[2, 2])],
            "reduce: parameter `axis` is 2, needs a whole number from -2 to 1 for an array of 2 axes, or null",
        ),
        (
            KernelId::Reduce,
            json!({"op": "min"}),
            vec![f32s(&[0])],
            "reduce: inputs[0] \"x\" has shape (0,), needs one element or more to take the min of",
        ),
        (
            KernelId::Sort,
            json!({}),
            vec![f32s(&[])],
            "sort: inputs[0] \"x\" has shape (), needs one axis or more",
        ),
        (
            KernelId::Softmax,
            json!({"axis": 1}),
            vec![f32s(&[3])],
            "softmax: parameter `axis` is 1, needs a whole number from -1 to 0 for an array of 1 axes",
        ),
        (
            KernelId::Softmax,
            json!({}),
            vec![f32s(&[])],
            "softmax: inputs[0] \"x\" has shape (), needs one axis or more",
        ),
        (
            KernelId::TopK,
            json!({"k": 4}),
            vec![f32s(&[9, 3])],
            "top_k: inputs[0] \"x\" has shape (9, 3), needs a last axis of 4 or more elements, because k is 4",
        ),
        (KernelId::Fft, json!({}), vec![f32s(&[2, 0])], "needs a last axis of one element or more"),
        (
            KernelId::Irfft,
            json!({"axes": 2}),
            vec![f32s(&[5, 1])],
            "irfft: inputs[0] \"x\" has shape (5, 1), needs a last axis of two elements or more, or a parameter `n`",
        ),
        (
            KernelId::Stencil5,
            json!({}),
            vec![f32s(&[5])],
            "stencil5: inputs[0] \"u\" has shape (5,), needs (rows, columns)",
        ),
        (
            KernelId::Knn,
            json!({"k": 4}),
            vec![f32s(&[1, 2]), f32s(&[3, 2])],
            "knn: inputs[1] \"corpus\" has shape (3, 2), needs (4, 2) or more rows, because k is 4",
        ),
        (KernelId::Knn, json!({"k": 1}), vec![f32s(&[1, 2]), f32s(&[3, 3])], "needs (*, 2)"),
        (
            KernelId::Knn,
            json!({"k": 1}),
            vec![f32s(&[1, 2])],
            "knn: 1 inputs, needs 2 to 4 (queries, corpus, codes, bounds)",
        ),
        (
            KernelId::Knn,
            json!({"k": 1}),
            vec![f32s(&[1, 2]), f32s(&[3, 2]), u8s(&[3, 2])],
            "knn: has inputs[2] \"codes\" without inputs[3] \"bounds\", needs both or neither",
        ),
        (
            KernelId::Knn,
            json!({"k": 1}),
            vec![f64s(&[1, 2]), f64s(&[3, 2]), u8s(&[3, 2]), f32s(&[3, 3])],
            "knn: inputs[0] \"queries\" has dtype f64, needs f32, because codes are given",
        ),
        (
            KernelId::Knn,
            json!({"k": 1}),
            vec![f32s(&[1, 2]), f32s(&[3, 2]), u8s(&[3, 3]), f32s(&[3, 3])],
            "knn: inputs[2] \"codes\" has shape (3, 3), needs (3, 2), that of inputs[1] \"corpus\"",
        ),
        (
            KernelId::Knn,
            json!({"k": 1}),
            vec![f32s(&[1, 2]), f32s(&[3, 2]), u8s(&[3, 2]), f32s(&[4, 3])],
            "knn: inputs[3] \"bounds\" has shape (4, 3), needs (3, 3)",
        ),
        (KernelId::Quantize, json!({}), vec![f32s(&[3, 0])], "needs (n, d) with d from 1 to 65536"),
        (KernelId::Noop, json!({}), vec![f32s(&[1])], "noop: 1 inputs, needs 0"),
    ];
    for (kernel, given, inputs, message) in cases {
        let error = by_default(kernel, given, &inputs).unwrap_err().to_string();
        assert!(error.contains(message), "{error}\n not {message}");
    }
    let integers: ArrayRef = Array::zeros(DType::I32, &[2]).unwrap().into();
    let error = by_default(KernelId::Dot, json!({}), &[integers, f32s(&[2])]).unwrap_err().to_string();
    assert_eq!(error, "dot: inputs[0] \"x\" has dtype i32, needs f32, f64");
}

#[test]
fn every_working_kernel_beats_and_can_be_cancelled() {
    for kernel in KernelId::ALL.into_iter().filter(|kernel| *kernel != KernelId::Noop) {
        for variant in variants(kernel, None) {
            let (arrays, params) = synthetic_inputs(kernel, 100_000, DType::F64, 3).unwrap();
            let inputs: Vec<ArrayRef> = arrays.into_iter().map(Into::into).collect();
            let counter = Counter::new(1);
            let outcome = run(&Call { kernel, params: &params, inputs: &inputs, variant, pulse: &counter });
            assert_eq!(outcome.err(), Some(KernelError::Cancelled), "{kernel} {variant:?}");
        }
    }
}

#[test]
fn long_work_beats_again_and_again() {
    let beats = |kernel: KernelId, given: Value, inputs: &[ArrayRef]| {
        let counter = Counter::new(u64::MAX);
        let params = params(kernel, given);
        let variant = Variant::default_for(kernel, Level::best());
        run(&Call { kernel, params: &params, inputs, variant, pulse: &counter }).unwrap();
        counter.beats.get()
    };
    let long: ArrayRef = Array::zeros(DType::F32, &[1 << 22]).unwrap().into();
    let grid: ArrayRef = Array::zeros(DType::F32, &[1 << 11, 1 << 11]).unwrap().into();
    let whole = std::slice::from_ref(&long);
    assert!(beats(KernelId::Sort, json!({}), whole) >= 16);
    assert!(beats(KernelId::Reduce, json!({}), whole) >= 4);
    assert!(beats(KernelId::Reduce, json!({"axis": 0}), std::slice::from_ref(&grid)) >= 4);
    for axis in [0, 1] {
        assert!(beats(KernelId::Cumsum, json!({"axis": axis}), std::slice::from_ref(&grid)) >= 4);
        assert!(beats(KernelId::Softmax, json!({"axis": axis}), std::slice::from_ref(&grid)) >= 12);
    }
    assert!(beats(KernelId::Argsort, json!({}), whole) >= 16);
    assert!(beats(KernelId::TopK, json!({}), whole) >= 4);
    assert!(beats(KernelId::Hash, json!({}), whole) >= 16);
    assert!(beats(KernelId::Histogram, json!({}), whole) >= 4);
    assert!(beats(KernelId::Stencil5, json!({"steps": 10}), std::slice::from_ref(&grid)) >= 20);
    let weights: ArrayRef = Array::zeros(DType::F32, &[5, 5]).unwrap().into();
    let big: ArrayRef = Array::zeros(DType::F32, &[1 << 11, 1 << 11]).unwrap().into();
    assert!(beats(KernelId::Convolve2d, json!({}), &[big, weights]) >= 10);
    assert!(beats(KernelId::Fft, json!({}), std::slice::from_ref(&grid)) >= 16);
    assert!(beats(KernelId::Fft, json!({"axes": 2}), std::slice::from_ref(&grid)) >= 48);
    assert!(beats(KernelId::Rfft, json!({"axes": 2}), std::slice::from_ref(&grid)) >= 40);
    assert!(beats(KernelId::Irfft, json!({"axes": 2}), std::slice::from_ref(&grid)) >= 96);
    let given = json!({"k": 16, "max_iterations": 3});
    assert!(beats(KernelId::Kmeans, given, std::slice::from_ref(&grid)) >= 28);
    assert!(beats(KernelId::Quantize, json!({}), std::slice::from_ref(&grid)) >= 8);
    let inputs = coded(&vec![0.0; 1 << 11], &vec![0.0; 1 << 22], 1 << 11);
    assert!(beats(KernelId::Knn, json!({"k": 1}), &inputs) >= 4);
    assert!(beats(KernelId::MonteCarlo, json!({"paths": 1_000_000}), &[]) >= 15);
    assert!(beats(KernelId::Sleep, json!({"seconds": 0.1}), &[]) >= 5);
}

#[test]
fn outputs_and_bytes_are_as_the_table_says() {
    use ai_swarm::kernels::output_needed;
    for kernel in KernelId::ALL {
        let (arrays, params) = synthetic_inputs(kernel, 4096, DType::F32, 3).unwrap();
        let inputs: Vec<ArrayRef> = arrays.into_iter().map(Into::into).collect();
        let variant = Variant::default_for(kernel, Level::best());
        let outcome = run(&Call { kernel, params: &params, inputs: &inputs, variant, pulse: &() }).unwrap();
        assert_eq!(outcome.array.is_some(), output_needed(&params), "{kernel}");
        // What may yield an array yields a value otherwise.
        let is_optional = spec(kernel).output == OutputKind::Optional;
        let has_result = spec(kernel).result && !(is_optional && output_needed(&params));
        assert_eq!(outcome.result.is_some(), has_result, "{kernel}");
        let read: usize = inputs.iter().map(|input| input.bytes().len()).sum();
        assert!(outcome.bytes >= read as f64, "{kernel}");
        assert!(outcome.extra.iter().all(|(suffix, _)| EXTRA_SUFFIXES.contains(suffix)), "{kernel}");
    }
}

// ---------------------------------------------------------------------------------------------------------
// Against NumPy

const DTYPES: [DType; 9] = DType::ALL;

/// What `scripts/make_fixtures.py` calls `counting`, as bytes.
fn counting(dtype: DType, count: usize) -> Vec<u8> {
    fn of<T: Element>(count: usize, element: impl Fn(usize) -> T) -> Vec<u8> {
        bytemuck::cast_slice(&(0..count).map(element).collect::<Vec<T>>()).to_vec()
    }
    let value = |index: usize| index * 3 + 1;
    match dtype {
        DType::F32 => of(count, |i| value(i) as f32),
        DType::F64 => of(count, |i| value(i) as f64),
        DType::I32 => of(count, |i| value(i) as i32),
        DType::I64 => of(count, |i| value(i) as i64),
        DType::U8 => of(count, |i| value(i) as u8),
        DType::U32 => of(count, |i| value(i) as u32),
        DType::U64 => of(count, |i| value(i) as u64),
        DType::C64 => of(count, |i| Complex::new(value(i) as f32, 0.0 - i as f32)),
        DType::C128 => of(count, |i| Complex::new(value(i) as f64, 0.0 - i as f64)),
    }
}

#[test]
fn every_file_numpy_wrote_is_read_bit_for_bit() {
    let shapes: [(&str, &[usize]); 5] =
        [("0d", &[]), ("empty", &[0, 3]), ("1d", &[7]), ("2d", &[3, 5]), ("3d", &[2, 3, 4])];
    for dtype in DTYPES {
        for (shape_name, shape) in shapes {
            for form in ["c", "fortran", "big", "bigfortran"] {
                let name = format!("read_{dtype}_{shape_name}_{form}");
                if !fixture(&name).exists() {
                    assert!(
                        form.contains("fortran") && shape.len() < 2 || form == "bigfortran",
                        "{name} is missing"
                    );
                    continue;
                }
                let read = load(&name);
                assert_eq!((read.dtype(), read.shape()), (dtype, shape), "{name}");
                assert!(read.bytes() == counting(dtype, shape.iter().product()), "{name}");
            }
        }
    }
    for name in
        ["read_f64_2d_v1", "read_f64_2d_v2", "read_f64_2d_v3", "read_f64_2d_odd", "read_f64_2d_bigfortran"]
    {
        let read = load(name);
        assert!(read.bytes() == counting(DType::F64, 15), "{name}");
        assert_eq!(read.as_slice::<f64>().unwrap().len(), 15, "{name}");
    }
}

#[test]
fn what_we_write_is_what_numpy_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("z.npy");
    let mut compared = 0;
    for entry in std::fs::read_dir(fixture("x").parent().unwrap()).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let ours = name.starts_with("in_") || name.starts_with("out_") || name.ends_with("_c");
        if !ours || file.extension().is_none_or(|extension| extension != "npy") {
            continue;
        }
        let read = load(&name);
        let mut copy = Array::zeros(read.dtype(), read.shape()).unwrap();
        copy.bytes_mut().copy_from_slice(read.bytes());
        write_npy(&path, &copy, "t").unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&file).unwrap(), "{name}");
        compared += 1;
    }
    assert!(compared > 100, "only {compared} files compared");
}

#[test]
fn every_bad_file_is_refused_by_name() {
    let bad = |name: &str, message: &str| {
        let error = NpyFile::open(&fixture(name)).map(|file| file.header().clone()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{name}.npy: ")) && error.contains(message),
            "{error}\n not {message}"
        );
    };
    bad("bad_empty", "not a .npy file: begins with nothing");
    bad("bad_garbage", "not a .npy file");
    bad("bad_zip", "not a .npy file: begins with `PK");
    bad("bad_magic_only", "truncated: header needs");
    bad("bad_header_cut", "truncated: header needs 128 bytes, file has 50");
    bad("bad_data_cut", "truncated: shape (3, 5) of f64 needs 120 bytes, file has 119");
    bad("bad_no_data", "truncated: shape (3, 5) of f64 needs 120 bytes, file has 0");
    bad("bad_version", "version 4.0 is not supported");
    bad("bad_f16", "dtype `<f2` is not supported; allowed are f32, f64, i32");
    bad("bad_text", "dtype `<U3`");
    bad("bad_bool", "dtype `|b1`");
    bad("bad_i16", "dtype `<i2`");
    bad("bad_object", "dtype `|O`");
    bad("bad_struct", "dtype `[('a', '<f4')");
    bad("bad_date", "dtype `<M8[s]`");
    bad("bad_huge", "larger than memory can be");
    bad("bad_large", "needs 8796093022208 bytes, file has 8");
    bad("bad_negative", "shape: found `-1,)}`, needs a length of 0 or more");
    bad("bad_dict", "needs a dictionary");
    let error = NpyFile::open(Path::new("no/such.npy")).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("no/such.npy: cannot be read: No such file"), "{error}");
}

#[test]
fn kernels_compute_what_numpy_computes() {
    fn check<T: Float>(f: &str, numbers: &Value) {
        let same = |kernel: KernelId, given: Value, inputs: &[&str], output: &str, tolerance: f64| {
            let inputs: Vec<ArrayRef> = inputs.iter().map(|name| load(&format!("{name}_{f}"))).collect();
            let want = load(&format!("{output}_{f}"));
            for variant in all_variants(kernel) {
                let outcome = call(kernel, given.clone(), &inputs, variant).unwrap();
                let what = format!("{output}_{f} {variant:?}");
                let got = outcome.array.as_ref().unwrap();
                assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{what}");
                if let (Some(got), Some(want)) = (got.as_slice::<T>(), want.as_slice::<T>()) {
                    all_close(got, want, tolerance, &what);
                } else {
                    assert!(got.bytes() == want.bytes(), "{what}");
                }
                for (suffix, extra) in &outcome.extra {
                    if *suffix == PLACES_SUFFIX {
                        let places = load(&format!("{}_{f}", output.replace("top_k", "places")));
                        assert!(extra.bytes() == places.bytes(), "{what}");
                        continue;
                    }
                    let scores = load(&format!("{}_{f}", output.replace("knn", "knn_scores")));
                    all_close(
                        extra.as_slice::<T>().unwrap(),
                        scores.as_slice::<T>().unwrap(),
                        16.0 * T::ULP,
                        &what,
                    );
                }
            }
        };
        same(KernelId::Matmul, json!({}), &["in_a", "in_b"], "out_matmul", 100.0 * T::ULP);
        same(KernelId::Axpy, json!({"alpha": 2.5}), &["in_x", "in_y"], "out_axpy", 8.0 * T::ULP);
        for op in ["sum", "mean", "min", "max", "std", "norm2"] {
            for axis in 0..3 {
                let given = json!({"op": op, "axis": axis});
                same(
                    KernelId::Reduce,
                    given,
                    &["in_cube"],
                    &format!("out_reduce_{op}_{axis}"),
                    16.0 * T::ULP,
                );
            }
            let outcome =
                by_default(KernelId::Reduce, json!({"op": op}), &[load(&format!("in_cube_{f}"))]).unwrap();
            close(result(&outcome), numbers[format!("reduce_{op}_{f}")].as_f64().unwrap(), 1e-12, op);
        }
        let outcome =
            by_default(KernelId::Dot, json!({}), &[load(&format!("in_x_{f}")), load(&format!("in_y_{f}"))])
                .unwrap();
        close(result(&outcome), numbers[format!("dot_{f}")].as_f64().unwrap(), 1e-11, "dot");
        same(KernelId::Sort, json!({}), &["in_sort"], "out_sort", 0.0);
        // NumPy adds one after the other; the values are normal, few of them beyond 3.
        let many = load(&format!("in_cube_{f}")).len() as f64;
        let of_order = 16.0 * T::ULP + 3.0 * many * many * f64::EPSILON;
        same(KernelId::Cumsum, json!({}), &["in_cube"], "out_cumsum", of_order);
        for axis in 0..3 {
            let (sums, powers) = (format!("out_cumsum_{axis}"), format!("out_softmax_{axis}"));
            same(KernelId::Cumsum, json!({"axis": axis}), &["in_cube"], &sums, of_order);
            same(KernelId::Softmax, json!({"axis": axis}), &["in_cube"], &powers, 2.0 * T::ULP);
        }
        same(KernelId::Argsort, json!({}), &["in_few"], "out_argsort", 0.0);
        for order in ["largest", "smallest"] {
            let given = json!({"k": 12, "order": order});
            same(KernelId::TopK, given, &["in_few"], &format!("out_top_k_{order}"), 0.0);
        }
        for mode in ["full", "same", "valid"] {
            let output = format!("out_convolve2d_{mode}");
            same(
                KernelId::Convolve2d,
                json!({"mode": mode}),
                &["in_grid", "in_weights"],
                &output,
                40.0 * T::ULP,
            );
        }
        let matrix = ["in_spmv_data", "in_spmv_indices", "in_spmv_indptr", "in_spmv_x"];
        same(KernelId::Spmv, json!({}), &matrix, "out_spmv", 8.0 * T::ULP);
        same(KernelId::Histogram, json!({"bins": 64}), &["in_histogram"], "out_histogram", 0.0);
        let given = json!({"bins": 10, "min": -1.0, "max": 1.5});
        same(KernelId::Histogram, given, &["in_histogram"], "out_histogram_range", 0.0);
        let outcome =
            by_default(KernelId::Histogram, json!({"bins": 64}), &[load(&format!("in_histogram_{f}"))])
                .unwrap();
        let result = outcome.result.unwrap();
        assert_eq!(json!([result["min"], result["max"]]), numbers[format!("histogram_{f}")]);
        same(
            KernelId::Stencil5,
            json!({"steps": 7, "alpha": 0.2}),
            &["in_grid"],
            "out_stencil5",
            50.0 * T::ULP,
        );
        for metric in ["ip", "cosine", "l2"] {
            let given = json!({"k": 10, "metric": metric});
            same(KernelId::Knn, given, &["in_queries", "in_corpus"], &format!("out_knn_{metric}"), 0.0);
        }
    }
    let numbers = expected();
    check::<f32>("f32", &numbers);
    check::<f64>("f64", &numbers);

    for f in ["i32", "i64", "u8", "u32", "u64"] {
        for variant in all_variants(KernelId::Sort) {
            let outcome = call(KernelId::Sort, json!({}), &[load(&format!("in_sort_{f}"))], variant).unwrap();
            assert!(
                outcome.array.unwrap().bytes() == load(&format!("out_sort_{f}")).bytes(),
                "sort {f} {variant:?}"
            );
        }
        let same = |kernel: KernelId, given: Value, output: &str| {
            for variant in all_variants(kernel) {
                let input = [load(&format!("in_sort_{f}"))];
                let outcome = call(kernel, given.clone(), &input, variant).unwrap();
                let (got, want) = (outcome.array.unwrap(), load(&format!("{output}_{f}")));
                assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{output} {f}");
                assert!(got.bytes() == want.bytes(), "{output} {f} {variant:?}");
                for (_, places) in outcome.extra {
                    let want = load(&format!("{}_{f}", output.replace("top_k", "places")));
                    assert!(places.bytes() == want.bytes(), "places of {output} {f}");
                }
            }
        };
        same(KernelId::Cumsum, json!({"axis": 1}), "out_cumsum");
        same(KernelId::Argsort, json!({}), "out_argsort");
        for order in ["largest", "smallest"] {
            same(KernelId::TopK, json!({"k": 12, "order": order}), &format!("out_top_k_{order}"));
        }
        for op in ["sum", "mean", "min", "max"] {
            for axis in 0..2 {
                let small = [load(&format!("in_small_{f}"))];
                let outcome = by_default(KernelId::Reduce, json!({"op": op, "axis": axis}), &small).unwrap();
                let (got, want) = (outcome.array.unwrap(), load(&format!("out_reduce_{op}_{axis}_{f}")));
                assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{op} {axis} {f}");
                assert!(got.bytes() == want.bytes(), "{op} {axis} {f}");
            }
            let outcome =
                by_default(KernelId::Reduce, json!({"op": op}), &[load(&format!("in_small_{f}"))]).unwrap();
            assert_eq!(outcome.result.unwrap(), numbers[format!("reduce_{op}_{f}")], "{op} {f}");
        }
        for variant in all_variants(KernelId::Histogram) {
            let small = [load(&format!("in_small_{f}"))];
            let outcome = call(KernelId::Histogram, json!({"bins": 7}), &small, variant).unwrap();
            assert!(
                outcome.array.unwrap().bytes() == load(&format!("out_histogram_{f}")).bytes(),
                "histogram {f}"
            );
        }
    }
}

#[test]
fn digests_are_what_python_computes() {
    for dtype in ["f32", "i64", "c128"] {
        // The order in the file does not count.
        for form in ["c", "fortran", "big"] {
            let outcome = by_default(KernelId::Hash, json!({}), &[load(&format!("read_{dtype}_3d_{form}"))]);
            assert_eq!(
                outcome.unwrap().result.unwrap(),
                expected()[format!("sha256_{dtype}")],
                "{dtype} {form}"
            );
        }
    }
}

#[test]
fn transforms_are_what_numpy_computes() {
    fn apart<T: Float>(got: &[Complex<T>], want: &[Complex<T>]) -> f64 {
        let one = |(a, b): (&Complex<T>, &Complex<T>)| {
            (a.re.to_f64() - b.re.to_f64()).abs().max((a.im.to_f64() - b.im.to_f64()).abs())
        };
        got.iter().zip(want).map(one).fold(0.0, f64::max)
    }
    fn check<T: Float>(kernel: KernelId, input: &str, output: &str, tolerance: f64)
    where
        Complex<T>: Element,
    {
        let want = load(output);
        let axes = if output.contains("_2d_") { 2 } else { 1 };
        for variant in all_variants(kernel) {
            let outcome = call(kernel, json!({"axes": axes}), &[load(input)], variant).unwrap();
            let got = outcome.array.unwrap();
            assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{output}");
            let apart = apart(got.as_slice::<Complex<T>>().unwrap(), want.as_slice::<Complex<T>>().unwrap());
            assert!(apart <= tolerance, "{output} {variant:?}: {apart:e} apart");
        }
    }
    fn check_real<T: Float>(input: &str, output: &str, given: Value, tolerance: f64) {
        let want = load(output);
        for variant in all_variants(KernelId::Irfft) {
            let outcome = call(KernelId::Irfft, given.clone(), &[load(input)], variant).unwrap();
            let got = outcome.array.as_ref().unwrap();
            assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{output}");
            all_close(elements::<T>(&outcome), want.as_slice().unwrap(), tolerance, output);
        }
    }
    for (word, n) in [("all", None), ("cut", Some(51)), ("padded", Some(150))] {
        for (axes, mark) in [(1, ""), (2, "2d_")] {
            let given = json!({"axes": axes, "n": n});
            let output = |dtype: &str| format!("out_irfft_{mark}{word}_{dtype}");
            check_real::<f32>("in_fft_c64", &output("c64"), given.clone(), 5e-7);
            check_real::<f64>("in_fft_c128", &output("c128"), given, 1e-15);
        }
    }
    check_real::<f32>("in_x_f32", "out_irfft_real_f32", json!({}), 2e-7);
    check_real::<f64>("in_x_f64", "out_irfft_real_f64", json!({}), 4e-16);
    // Values are about 8 times a standard normal number, forward, and a tenth of one, backward.
    check::<f32>(KernelId::Fft, "in_fft_c64", "out_fft_c64", 1e-5);
    check::<f64>(KernelId::Fft, "in_fft_c128", "out_fft_c128", 2e-14);
    check::<f32>(KernelId::Ifft, "in_fft_c64", "out_ifft_c64", 2e-7);
    check::<f64>(KernelId::Ifft, "in_fft_c128", "out_ifft_c128", 4e-16);
    check::<f32>(KernelId::Fft, "in_x_f32", "out_fft_real_f32", 3e-5);
    check::<f64>(KernelId::Fft, "in_x_f64", "out_fft_real_f64", 5e-14);
    check::<f32>(KernelId::Rfft, "in_x_f32", "out_rfft_f32", 3e-5);
    check::<f64>(KernelId::Rfft, "in_x_f64", "out_rfft_f64", 5e-14);
    check::<f32>(KernelId::Rfft, "in_cube_f32", "out_rfft_2d_f32", 1e-5);
    check::<f64>(KernelId::Rfft, "in_cube_f64", "out_rfft_2d_f64", 2e-14);
    check::<f32>(KernelId::Fft, "in_fft_c64", "out_fft_2d_c64", 2e-5);
    check::<f64>(KernelId::Fft, "in_fft_c128", "out_fft_2d_c128", 4e-14);
    check::<f32>(KernelId::Ifft, "in_fft_c64", "out_ifft_2d_c64", 2e-7);
    check::<f64>(KernelId::Ifft, "in_fft_c128", "out_ifft_2d_c128", 4e-16);
}
