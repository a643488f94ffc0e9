//! Kernels on one core, called as an agent calls them, with arrays in memory; each beside what this core can do at most.
//!
//! 1. `rows` says which kernels with which arrays, and what bounds each.
//! 2. Every answer is looked at before anything is timed: `right`.
//! 3. A repetition measures what bounds the kernel and then the kernel, so what else the host does falls on both. The floor of
//!    a row is of the row's own repetitions; the first rows have those of all.
//! 4. `tuned` has cells tuned as the optimization agent does it, and measures what its choices are worth.
//!
//! A figure is the median of its repetitions, of rates too; its p99 is what 99 of 100 repetitions are no slower than. Operations
//! are counted by the usual formula of the algorithm, a multiply-add as two; bytes are those of every array, once.
//!
//! One call is one thread, whatever the kernel: agents are pinned processes, and the swarm is the parallelism. So there is
//! nothing here of two threads.

mod right;
mod rows;
mod tuned;
mod wide;

use super::{Figure, Limit, Pinned, Steps, quantile, sorted};
use crate::arrays::{Array, ArrayError, DType, Shape};
use crate::config::SwarmConfig;
use crate::kernels::simd::Stores;
use crate::kernels::{
    Call, Input, KernelError, KernelId, Level, Outcome, Params, Variant, check_params, has_levels, run, simd,
    spec, synthetic_array, synthetic_inputs,
};
use crate::os::map::Buffer;
use crate::os::topology::Topology;
use anyhow::{Context as _, ensure};
use rows::{Ask, Feed, Roof, Row, Unit, rows};
use std::time::{Duration, Instant};

const BENCH: &str = "kernels";
/// Of every array.
const SEED: u64 = 42;
/// So long do multiply-adds go on for one sample of the peak.
const PEAK_TIME: Duration = Duration::from_millis(1);
/// Multiply-adds in a chain between two looks at the clock.
const PEAK_ROUNDS: u64 = 4096;
/// One array of the triad: at least so long, and twice the last cache, up to so long.
const TRIAD_BYTES: (u64, u64) = (64 << 20, 512 << 20);
/// From this size of an answer on it is worth a word that its memory is new in every call: a process keeps little for the next.
const FRESH_BYTES: usize = 4 << 20;
/// Factor of the triad.
const FACTOR: f64 = 3.0;

/// How much is done for one row: so many repetitions, unless they take longer than that; then fewer, but never fewer than so many.
struct Extent {
    repetitions: usize,
    time: Duration,
    repetitions_min: usize,
}

const QUICK: Extent = Extent { repetitions: 11, time: Duration::from_millis(400), repetitions_min: 5 };
const FULL: Extent = Extent { repetitions: 51, time: Duration::from_secs(3), repetitions_min: 7 };

/// Measures one core, and then what all of them make of one task.
pub(super) fn measure(quick: bool, steps: &Steps, config: &SwarmConfig) -> anyhow::Result<Vec<Figure>> {
    let mut all = on_one_core(quick, steps)?;
    all.extend(wide::measure(quick, steps, config)?);
    Ok(all)
}

/// Pinned; afterwards this thread may run everywhere again.
fn on_one_core(quick: bool, steps: &Steps) -> anyhow::Result<Vec<Figure>> {
    let topology = Topology::read();
    // The last one: the first is where hosts do their housekeeping.
    let core = topology.usable().last().copied().context("no core can be used")?;
    let _pinned = Pinned::to(core)?;
    let cache = topology.caches.iter().map(|cache| cache.bytes).max().unwrap_or(0);
    steps.begin("kernels: peak and bandwidth");
    let mut host = Host::new(core, cache)?;
    let extent = if quick { &QUICK } else { &FULL };
    let mut figures = Vec::new();
    for row in rows(quick) {
        steps.begin(&format!("kernels: {}", row.name()));
        figures.push(host.measure(&row, extent).with_context(|| row.name())?);
    }
    let mut all = host.figures();
    all.append(&mut figures);
    drop(host);
    Buffer::release_pool();
    all.extend(tuned::measure(quick, steps));
    Ok(all)
}

/// One kernel with its arrays.
struct Job {
    kernel: KernelId,
    params: Params,
    inputs: Vec<Input>,
    variant: Variant,
}

impl Job {
    fn new(row: &Row, level: Level) -> anyhow::Result<Self> {
        let kernel = row.kernel;
        let given = row.params.as_object().context("parameters are an object")?;
        let params = check_params(kernel, given)?;
        let variant = Variant::default_for(kernel, level);
        let arrays = |shapes: &[Vec<usize>]| -> Result<Vec<Input>, ArrayError> {
            let numbered = shapes.iter().zip(SEED..);
            numbered.map(|(shape, seed)| synthetic_array(row.dtype, shape, seed).map(Input::from)).collect()
        };
        let inputs = match &row.feed {
            Feed::Shapes(shapes) => arrays(shapes)?,
            Feed::Sparse(elements) => {
                let (arrays, _) = synthetic_inputs(kernel, *elements, row.dtype, SEED)?;
                arrays.into_iter().map(Input::from).collect()
            }
            Feed::Coded(shapes) => {
                let mut inputs = arrays(shapes)?;
                let kernel = KernelId::Quantize;
                let coded = run(&Call {
                    kernel,
                    params: &Params::defaults(kernel),
                    inputs: &inputs[1..],
                    variant: Variant::default_for(kernel, level),
                    pulse: &(),
                })?;
                inputs.extend(coded.array.map(Input::from));
                inputs.extend(coded.extra.into_iter().map(|(_, array)| Input::from(array)));
                inputs
            }
        };
        Ok(Self { kernel, params, inputs, variant })
    }

    fn run(&self, variant: Variant) -> Result<Outcome, KernelError> {
        let Self { kernel, params, inputs, .. } = self;
        run(&Call { kernel: *kernel, params, inputs, variant, pulse: &() })
    }

    /// Seconds of one call. What it answers is given back outside of that: an agent does so after its answer.
    fn time(&self, variant: Variant) -> Result<f64, KernelError> {
        let began = Instant::now();
        let outcome = self.run(variant)?;
        let took = began.elapsed().as_secs_f64();
        drop(outcome);
        Ok(took)
    }

    fn work(&self, outcome: &Outcome) -> Work {
        let elements = match self.inputs.first() {
            Some(input) => input.len() as f64,
            // A path is an element.
            None => self.params.to_json().get("paths").and_then(serde_json::Value::as_f64).unwrap_or(1.0),
        };
        // Of a corpus that is searched by its codes only some rows are read.
        let unread = if self.inputs.len() == 4 && self.kernel == KernelId::Knn {
            self.inputs[1].bytes().len()
        } else {
            0
        };
        Work { flops: outcome.flops, bytes: outcome.bytes - unread as f64, elements }
    }
}

/// What one call does.
#[derive(Clone, Copy, Debug)]
struct Work {
    flops: f64,
    bytes: f64,
    elements: f64,
}

impl Work {
    /// What a call that takes so long comes to.
    fn figure(&self, unit: Unit, seconds: f64) -> f64 {
        match unit {
            Unit::Gflops => self.flops / seconds / 1e9,
            Unit::Gbytes => self.bytes / seconds / 1e9,
            Unit::Melements => self.elements / seconds / 1e6,
            Unit::Millis => seconds * 1e3,
        }
    }
}

/// Samples of what bounds a row, from between its repetitions.
#[derive(Debug, Default)]
struct Bounds {
    /// Operations a second.
    peak: Vec<f64>,
    /// Bytes a second.
    triad: Vec<f64>,
    /// Seconds of the scalar form.
    scalar: Vec<f64>,
}

impl Bounds {
    /// The least seconds of this work under this roof, and the roof in words.
    fn least_seconds(self, roof: Roof, work: Work) -> (f64, String) {
        let median = |samples| quantile(&sorted(samples), 0.5);
        let by_peak = |samples| work.flops / median(samples);
        let by_triad = |samples| work.bytes / median(samples);
        let intensity = work.flops / work.bytes;
        match roof {
            Roof::Peak => (by_peak(self.peak), "the peak".to_owned()),
            Roof::Bandwidth => {
                (by_triad(self.triad), format!("the triad, at {intensity:.2} operations a byte"))
            }
            Roof::Pass => (by_triad(self.triad), "one pass over its arrays at the triad's speed".to_owned()),
            Roof::ScalarForm => (median(self.scalar), "its scalar form".to_owned()),
            Roof::Lower => {
                let (peak, triad) = (by_peak(self.peak), by_triad(self.triad));
                let name = if peak > triad { "peak" } else { "triad" };
                let words = format!("the {name}, the lower roof at {intensity:.2} operations a byte");
                (peak.max(triad), words)
            }
        }
    }
}

/// The figure of a row from the seconds of its repetitions, and the least that they could be.
fn figure_of(row: &Row, work: Work, seconds: Vec<f64>, least_seconds: f64, note: String) -> Figure {
    let seconds = sorted(seconds);
    let at = |share| work.figure(row.unit, quantile(&seconds, share));
    let floor = work.figure(row.unit, least_seconds);
    let limit = match row.ask {
        Ask::Nothing => None,
        Ask::Share(share) => Some(Limit::AtLeast(share * floor)),
        Ask::Millis(most) => Some(Limit::AtMost(most)),
    };
    Figure {
        bench: BENCH,
        name: row.name(),
        value: at(0.5),
        unit: row.unit.name(),
        floor: Some(floor),
        limit,
        p50: Some(at(0.5)),
        p99: Some(at(0.99)),
        note,
        ..Figure::default()
    }
}

/// The core, and what it was seen to do.
struct Host {
    core: usize,
    level: Level,
    /// Bytes of the last cache, 0 when the host does not say.
    cache: u64,
    triad: Triad,
    /// Operations a second in `f32` and `f64`, bytes a second with plain and with streaming stores.
    peaks: [Vec<f64>; 2],
    triads: [Vec<f64>; 2],
}

impl Host {
    fn new(core: usize, cache: u64) -> anyhow::Result<Self> {
        let level = Level::best();
        let triad = Triad::new(level, (2 * cache).clamp(TRIAD_BYTES.0, TRIAD_BYTES.1))?;
        let (peaks, triads) = Default::default();
        let mut host = Self { core, level, cache, triad, peaks, triads };
        for dtype in [DType::F32, DType::F64] {
            host.sample_peak(dtype);
        }
        host.sample_triad();
        host.sample_streaming();
        // The first samples warmed up.
        (host.peaks, host.triads) = Default::default();
        Ok(host)
    }

    fn sample_peak(&mut self, dtype: DType) -> f64 {
        let narrow = dtype.part_size() == 4;
        let rate = peak(self.level, narrow);
        self.peaks[usize::from(!narrow)].push(rate);
        rate
    }

    fn sample_triad(&mut self) -> f64 {
        let rate = self.triad.plain();
        self.triads[0].push(rate);
        rate
    }

    fn sample_streaming(&mut self) {
        self.triads[1].extend(self.triad.streaming());
    }

    fn measure(&mut self, row: &Row, extent: &Extent) -> anyhow::Result<Figure> {
        // What earlier rows left for the next buffers is not of this one's sizes.
        Buffer::release_pool();
        let job = Job::new(row, self.level)?;
        let outcome = job.run(job.variant)?;
        let work = job.work(&outcome);
        let answer_bytes = outcome.array.as_ref().map_or(0, |array| array.bytes().len());
        right::check(row, &job.inputs, outcome).context("the answer is wrong")?;
        // The first call brought its code and its memory; this one is like those that follow.
        job.time(job.variant)?;
        let is_fresh = answer_bytes >= FRESH_BYTES && Buffer::pool_bytes() < answer_bytes;
        self.sample_streaming();

        let (mut seconds, mut bounds) = (Vec::new(), Bounds::default());
        let began = Instant::now();
        while seconds.len() < extent.repetitions
            && (seconds.len() < extent.repetitions_min || began.elapsed() < extent.time)
        {
            if matches!(row.roof, Roof::Bandwidth | Roof::Pass | Roof::Lower) {
                bounds.triad.push(self.sample_triad());
            }
            if matches!(row.roof, Roof::Peak | Roof::Lower) {
                bounds.peak.push(self.sample_peak(row.dtype));
            }
            if row.roof == Roof::ScalarForm {
                bounds.scalar.push(job.time(Variant::default_for(row.kernel, Level::Scalar))?);
            }
            seconds.push(job.time(job.variant)?);
        }
        let repetitions = seconds.len();
        let (least, roof) = bounds.least_seconds(row.roof, work);
        let mut words = self.words(row, &job, work);
        if is_fresh {
            words += "; each answer is in new memory, which the system fills with zeros first";
        }
        let note = format!("{words}; {repetitions} repetitions; floor: {roof}");
        Ok(figure_of(row, work, seconds, least, note))
    }

    /// What was computed, and how.
    fn words(&self, row: &Row, job: &Job, work: Work) -> String {
        let shapes: Vec<String> = job.inputs.iter().map(|input| Shape(input.shape()).to_string()).collect();
        let mut words = if shapes.is_empty() { "paths as elements".to_owned() } else { shapes.join(" ") };
        if !job.params.to_json().is_empty() {
            words += &format!(" {}", serde_json::Value::from(job.params.to_json()));
        }
        // What a library chose by itself, or what has no vector code, is not passed off as a level.
        words += &format!("; {}", if has_levels(row.kernel) { self.level.name() } else { "native" });
        if spec(row.kernel).choices.len() > 1 {
            words += &format!(" {}", job.variant.choice_name(row.kernel));
        }
        if !row.remark.is_empty() {
            words += &format!("; {}", row.remark);
        }
        let streams = matches!(row.roof, Roof::Bandwidth | Roof::Pass);
        if streams && work.bytes < self.cache as f64 {
            words += "; its arrays fit in the last cache, the triad's do not";
        }
        words
    }

    /// What bounds the others.
    fn figures(&self) -> Vec<Figure> {
        let (core, level) = (self.core, self.level);
        let peak = format!(
            "{level}, multiply-adds in registers only, on core {core}. Every row is of one core: a kernel is one thread"
        );
        let triad = format!(
            "{level}, out = a * x + y in f64, three arrays of {} MiB, 24 bytes an element: that the line of the cache to \
             be written is read before is not counted, here as in the kernels",
            self.triad.bytes() >> 20
        );
        let streaming =
            "the same with stores past the cache, as kernels write what is too large for it; for comparison only".to_owned();
        [
            ("peak_f32", &self.peaks[0], Unit::Gflops, peak.clone()),
            ("peak_f64", &self.peaks[1], Unit::Gflops, peak),
            ("triad", &self.triads[0], Unit::Gbytes, triad),
            ("triad_streaming", &self.triads[1], Unit::Gbytes, streaming),
        ]
        .into_iter()
        .filter(|(_, rates, ..)| !rates.is_empty())
        .map(|(name, rates, unit, note)| {
            let rates = sorted(rates.clone());
            // Rates: the slow ones come first.
            let at = |share| quantile(&rates, 1.0 - share) / 1e9;
            Figure {
                bench: BENCH,
                name: name.to_owned(),
                value: at(0.5),
                unit: unit.name(),
                p50: Some(at(0.5)),
                p99: Some(at(0.99)),
                note: format!("{note}; {} samples from between the repetitions of the rows", rates.len()),
                ..Figure::default()
            }
        })
        .collect()
    }
}

/// Operations a second of multiply-adds in registers.
fn peak(level: Level, narrow: bool) -> f64 {
    let began = Instant::now();
    let mut operations = 0.0;
    loop {
        let (some, done) = if narrow {
            let (some, done) = simd::multiply_adds::<f32>(level, PEAK_ROUNDS);
            (some, f64::from(done))
        } else {
            simd::multiply_adds::<f64>(level, PEAK_ROUNDS)
        };
        assert!((done - 1.0).abs() < 1e-6, "multiply-adds end at {done} times what they should");
        operations += some;
        let took = began.elapsed();
        if took >= PEAK_TIME {
            return operations / took.as_secs_f64();
        }
    }
}

/// The arrays of `out = a * x + y`.
struct Triad {
    level: Level,
    x: Array,
    y: Array,
    out: Array,
}

impl Triad {
    /// Arrays of so many bytes, and a look at what both forms put there.
    fn new(level: Level, bytes: u64) -> anyhow::Result<Self> {
        let length = bytes as usize / size_of::<f64>();
        let of = |seed| synthetic_array(DType::F64, &[length], seed);
        let mut triad = Self { level, x: of(SEED)?, y: of(SEED + 1)?, out: of(SEED + 2)? };
        triad.plain();
        triad.check().context("the triad is wrong")?;
        triad.out.bytes_mut().fill(0);
        if triad.streaming().is_some() {
            triad.check().context("the triad with streaming stores is wrong")?;
        }
        Ok(triad)
    }

    fn bytes(&self) -> usize {
        self.out.bytes().len()
    }

    fn slices(&mut self) -> (&[f64], &[f64], &mut [f64]) {
        let f64s = "made with this type";
        let Self { x, y, out, .. } = self;
        (x.as_slice().expect(f64s), y.as_slice().expect(f64s), out.as_mut_slice().expect(f64s))
    }

    fn check(&mut self) -> anyhow::Result<()> {
        let (x, y, out) = self.slices();
        let near = |i: usize| (out[i] - (FACTOR * x[i] + y[i])).abs() <= 1e-14;
        ensure!((0..out.len()).all(near), "an element is not {FACTOR} x + y");
        Ok(())
    }

    /// Bytes a second.
    fn plain(&mut self) -> f64 {
        let bytes = 3.0 * self.bytes() as f64;
        let level = self.level;
        let (x, y, out) = self.slices();
        let began = Instant::now();
        simd::axpy(level, FACTOR, x, y, out, Stores::Cached);
        bytes / began.elapsed().as_secs_f64()
    }

    fn streaming(&mut self) -> Option<f64> {
        let bytes = 3.0 * self.bytes() as f64;
        let (x, y, out) = self.slices();
        let began = Instant::now();
        simd::triad_streaming(FACTOR, x, y, out)?;
        Some(bytes / began.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        rows(false).into_iter().find(|row| row.name() == name).expect("a row of this name")
    }

    fn figure(name: &str, work: Work, bounds: Bounds, seconds: &[f64]) -> (Figure, String) {
        let row = row(name);
        let (least, words) = bounds.least_seconds(row.roof, work);
        (figure_of(&row, work, seconds.to_vec(), least, String::new()), words)
    }

    const WORK: Work = Work { flops: 8e9, bytes: 2e9, elements: 1e6 };

    fn bounds() -> Bounds {
        // Medians: 100 GFLOP/s, 10 GB/s, 4 s.
        Bounds { peak: vec![9e9, 1e11, 1e12], triad: vec![1e10, 1e10, 1e11], scalar: vec![4.0, 5.0, 3.0] }
    }

    fn near(found: Option<f64>, right: f64) {
        assert!(found.is_some_and(|found| (found / right - 1.0).abs() < 1e-12), "{found:?} not {right}");
    }

    #[test]
    fn rates_are_medians_and_their_p99_the_slow_end() {
        let (figure, _) = figure("matmul_f32_1024", WORK, bounds(), &[0.1, 0.4, 0.2]);
        assert_eq!((figure.name.as_str(), figure.unit), ("matmul_f32_1024", "GFLOP/s"));
        near(Some(figure.value), 40.0);
        near(figure.p50, 40.0);
        near(figure.p99, 20.0);
        near(figure.floor, 100.0);
        near(figure.ratio(), 0.4);
        near(figure.limit.map(Limit::number), 90.0);
        assert!(figure.is_missed());
    }

    #[test]
    fn a_roof_is_the_lower_one_and_says_which() {
        // 0.08 s by the peak, 0.2 s by the triad.
        let (by_triad, words) = figure("convolve2d_f32_2048x2048_5x5", WORK, bounds(), &[0.4]);
        near(by_triad.floor, 40.0);
        near(by_triad.ratio(), 0.5);
        assert!(words.contains("triad") && words.contains("4.00 operations a byte"), "{words}");
        let busy = Work { flops: 80e9, ..WORK };
        let (by_peak, words) = figure("convolve2d_f32_2048x2048_5x5", busy, bounds(), &[1.6]);
        near(by_peak.floor, 100.0);
        near(by_peak.ratio(), 0.5);
        assert!(words.contains("peak") && words.contains("40.00 operations a byte"), "{words}");
        assert_eq!(by_peak.limit, None);
    }

    #[test]
    fn every_unit_has_its_floor_in_the_same_unit() {
        for (name, value, floor, limit) in [
            ("axpy_f64_8m", 8.0, 10.0, Some(Limit::AtLeast(9.0))),
            ("sort_f32_1m", 4.0, 5.0, None),
            ("knn_f32_100000x384_coded", 250.0, 200.0, Some(Limit::AtMost(8.0))),
            ("monte_carlo_f64_1m", 4.0, 0.25, None),
        ] {
            let (figure, _) = figure(name, WORK, bounds(), &[0.25]);
            near(Some(figure.value), value);
            near(figure.floor, floor);
            assert_eq!(figure.limit, limit, "{name}");
        }
    }

    #[test]
    fn small_calls_are_counted() {
        let count = |name: &str| {
            let job = Job::new(&row(name).shrunk(), Level::best()).expect("memory");
            job.work(&job.run(job.variant).expect("a sound call"))
        };
        let axpy = count("axpy_f64_8m");
        assert_eq!((axpy.elements, axpy.bytes, axpy.flops), (4096.0, 3.0 * 8.0 * 4096.0, 2.0 * 4096.0));
        // One query of 96, codes, bounds, ten places and scores; the corpus is not counted.
        let coded = count("knn_f32_100000x384_coded");
        assert_eq!(coded.bytes, (96 * 4 + 96 * 96 + 96 * 3 * 4 + 10 * 8 + 10 * 4) as f64);
        assert_eq!(count("monte_carlo_f64_1m").elements, f64::from(1 << 20));
    }

    #[test]
    fn a_core_has_a_peak_and_a_bandwidth() {
        for narrow in [false, true] {
            assert!(peak(Level::best(), narrow) > 0.0);
        }
        let mut triad = Triad::new(Level::best(), 1 << 16).expect("memory, and right");
        assert!(triad.plain() > 0.0 && triad.bytes() == 1 << 16);
    }
}
