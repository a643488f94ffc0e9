//! Kernels on `f32`, every implementation that differs on this processor, each first compared with the plain
//! reference. For `matmul`, `knn` and `kmeans` the rate counts operations, for the others bytes that must move.

mod support;

use ai_swarm::arrays::{Array, ArrayRef, DType};
use ai_swarm::kernels::reference::{self, Metric};
use ai_swarm::kernels::{
    Call, KernelId, Outcome, ParamValue, Params, Variant, check_params, run, synthetic_inputs, variants,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use std::time::Duration;

const SIDE: usize = 512;
const GRID: usize = 1024;
const LONG: usize = 1 << 20;

/// What the reference says, and how far from it an answer may be, relative to the largest value.
struct Truth {
    values: Vec<f64>,
    tolerance: f64,
}

/// One kernel with its arrays.
struct Work {
    name: &'static str,
    kernel: KernelId,
    inputs: Vec<ArrayRef>,
    params: Params,
    truth: Truth,
}

impl Work {
    fn new(name: &'static str, kernel: KernelId, elements: usize, params: Option<serde_json::Value>) -> Self {
        let (arrays, made) = synthetic_inputs(kernel, elements, DType::F32, 42).expect("memory");
        let params = params.map_or(made, |given| {
            check_params(kernel, given.as_object().expect("an object")).expect("known parameters")
        });
        let truth = truth(kernel, &params, &arrays);
        Self { name, kernel, inputs: arrays.into_iter().map(Into::into).collect(), params, truth }
    }

    fn call(&self, variant: Variant) -> Outcome {
        let (kernel, params, inputs) = (self.kernel, &self.params, &self.inputs[..]);
        run(&Call { kernel, params, inputs, variant, pulse: &() }).expect("a sound call")
    }

    fn check(&self, outcome: &Outcome, who: &str) {
        let found = numbers(self.kernel, outcome);
        assert_eq!(found.len(), self.truth.values.len(), "{who}: length");
        let scale = self.truth.values.iter().fold(1e-300_f64, |most, value| most.max(value.abs()));
        for (at, (found, right)) in found.iter().zip(&self.truth.values).enumerate() {
            let error = (found - right).abs() / scale;
            assert!(error <= self.truth.tolerance, "{who}: element {at} is {found}, should be {right}");
        }
    }
}

fn floats(array: &Array) -> &[f32] {
    array.as_slice().expect("f32")
}

/// The answer's values; of `knn` the scores.
fn numbers(kernel: KernelId, outcome: &Outcome) -> Vec<f64> {
    let array = match kernel {
        KernelId::Dot => {
            return vec![outcome.result.as_ref().and_then(serde_json::Value::as_f64).expect("a number")];
        }
        KernelId::Knn => &outcome.extra.first().expect("scores").1,
        _ => outcome.array.as_ref().expect("an array"),
    };
    match array.as_slice::<f64>() {
        Some(values) => values.to_vec(),
        None => floats(array).iter().map(|&value| f64::from(value)).collect(),
    }
}

fn number(params: &Params, name: &str) -> f64 {
    match params.get(name) {
        ParamValue::Float(value) => *value,
        ParamValue::Int(value) => *value as f64,
        other => panic!("{name} is {other:?}"),
    }
}

fn truth(kernel: KernelId, params: &Params, arrays: &[Array]) -> Truth {
    let input = |at: usize| floats(&arrays[at]);
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let (values, tolerance) = match kernel {
        KernelId::Matmul => {
            let (a, b) = (wide(input(0)), wide(input(1)));
            let mut c = vec![0.0; SIDE * SIDE];
            reference::matmul(&a, &b, &mut c, SIDE, SIDE, SIDE);
            (c, 1e-5)
        }
        KernelId::Dot => (vec![reference::dot(input(0), input(1))], 1e-6),
        KernelId::Axpy => {
            let mut out = vec![0.0; input(0).len()];
            reference::axpy(number(params, "alpha") as f32, input(0), input(1), &mut out);
            (wide(&out), 1e-6)
        }
        KernelId::Sort => {
            let mut sorted = input(0).to_vec();
            reference::sort(&mut sorted);
            (wide(&sorted), 0.0)
        }
        KernelId::Stencil5 => {
            let (mut grid, mut scratch) = (input(0).to_vec(), vec![0.0; input(0).len()]);
            let (alpha, steps) = (number(params, "alpha") as f32, number(params, "steps") as usize);
            reference::stencil5(&mut grid, &mut scratch, GRID, GRID, alpha, steps);
            (wide(&grid), 1e-5)
        }
        KernelId::Knn => {
            let (d, k) = (arrays[0].shape()[1], number(params, "k") as usize);
            let metric = Metric::Cosine;
            (reference::knn(input(0), input(1), d, k, metric).1, 1e-5)
        }
        KernelId::Kmeans => {
            let (d, k) = (arrays[0].shape()[1], number(params, "k") as usize);
            let (seed, steps) = (number(params, "seed") as u64, number(params, "max_iterations") as usize);
            (wide(&reference::kmeans(input(0), d, k, seed, steps, 0.0).centroids), 0.0)
        }
        KernelId::Expr => {
            let (a, b, c) = (wide(input(0)), wide(input(1)), wide(input(2)));
            let values = (0..a.len()).map(|at| a[at].sin() * b[at] + 0.5 * c[at] * c[at]);
            (values.collect(), 1e-6)
        }
        other => panic!("no reference here for {other}"),
    };
    Truth { values, tolerance }
}

fn kernels(c: &mut Criterion) {
    let works = [
        Work::new("dot_f32_1m", KernelId::Dot, 2 * LONG, None),
        Work::new("axpy_f32_1m", KernelId::Axpy, 2 * LONG, Some(json!({"alpha": 1.5}))),
        Work::new("matmul_f32_512", KernelId::Matmul, 2 * SIDE * SIDE, None),
        Work::new("sort_f32_1m", KernelId::Sort, LONG, None),
        Work::new("stencil5_f32_1024x10", KernelId::Stencil5, GRID * GRID, Some(json!({"steps": 10}))),
        Work::new("expr_f32_1m", KernelId::Expr, 3 * LONG, None),
        Work::new("knn_f32_64x16k", KernelId::Knn, 64 * 16_384, None),
        Work::new("kmeans_f32_64kx16x10", KernelId::Kmeans, 65_536 * 16, None),
    ];
    for work in works {
        let mut group = c.benchmark_group(work.name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1));
        for variant in variants(work.kernel, Some(DType::F32)) {
            let name = format!("{}/{}", variant.level, variant.choice_name(work.kernel));
            let outcome = work.call(variant);
            work.check(&outcome, &format!("{} {name}", work.name));
            group.throughput(match work.kernel {
                KernelId::Matmul | KernelId::Knn | KernelId::Kmeans => {
                    Throughput::Elements(outcome.flops as u64)
                }
                _ => Throughput::Bytes(outcome.bytes as u64),
            });
            group.bench_function(name, |b| b.iter(|| work.call(variant)));
        }
        group.finish();
    }
}

criterion_group! { name = all; config = support::criterion(); targets = kernels }
criterion_main!(all);
