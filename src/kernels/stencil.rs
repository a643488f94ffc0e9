//! `stencil5`: steps of heat flow on a grid whose border stays as it is.
//!
//! Choice "plain" sweeps over the whole grid once per step. Choice "blocked" takes several steps per pass
//! over memory: stage `s` follows stage `s - 1` one row behind, each with a window of a few rows, and all
//! windows together fit into the second-level cache (time skewing; Wonnacott, "Using time skewing to
//! eliminate idle time due to memory bandwidth", 2000). No value is computed twice, and both choices give the
//! same bits.

use super::simd::{self, SimdElem, Stores};
use super::{Call, KernelError, Level, Outcome, Pulse, elements_mut};
use crate::arrays::{DType, Element};

/// Memory that the windows of all stages may fill: half a usual second-level cache.
const WINDOWS_BYTES: usize = 512 << 10;
/// Most steps taken in one pass, and fewest rows a stage goes forward at once.
const STAGES_MAX: usize = 8;
const ROWS_MIN: usize = 4;
/// Points between two beats: about 2 ms of scalar code.
const POINTS: usize = 1 << 20;

/// `u + alpha * (up + down + left + right - 4 u)` at inner points, `steps` times. The answer has the input's
/// shape.
///
/// Error per step: 5 ulp of the largest of the five values times `1 + 8 |alpha|`.
pub(super) fn stencil5(call: &Call<'_>) -> Result<Outcome, KernelError> {
    match call.inputs[0].dtype() {
        DType::F32 => stencil5_of::<f32>(call),
        _ => stencil5_of::<f64>(call),
    }
}

fn stencil5_of<T: SimdElem + Element>(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let (rows, columns) = call.matrix(0, "(rows, columns)")?;
    let source = call.slice::<T>(0)?;
    let steps = call.params.count("steps");
    let alpha = T::from_f64(call.params.float("alpha").unwrap_or(0.1));
    let mut answer = call.answer(T::DTYPE, &[rows, columns])?;
    let stores = call.stores_for(size_of_val(source));
    let grid = Grid { level: call.level(), rows, columns, alpha, stores };
    let target = elements_mut::<T>(&mut answer);
    // Without an inner point nothing ever changes, however many steps are asked for.
    if steps == 0 || rows < 3 || columns < 3 {
        target.copy_from_slice(source);
    } else {
        let blocked = call.variant.choice == 1 && size_of_val(source) > WINDOWS_BYTES;
        let stages = if blocked { stages_for(steps, columns * size_of::<T>()) } else { 1 };
        let passes = steps.div_ceil(stages);
        let mut other = if passes > 1 { Some(call.answer(T::DTYPE, &[rows, columns])?) } else { None };
        let mut other = other.as_mut().map_or(&mut [][..], |array| elements_mut::<T>(array));
        let mut target = target;
        // The last pass has to end in the answer, so an even number of passes begins in the other grid.
        if passes.is_multiple_of(2) {
            std::mem::swap(&mut target, &mut other);
        }
        let mut windows = Windows::new(call, stages, columns)?;
        grid.pass(call.pulse, source, target, steps - (passes - 1) * stages, &mut windows)?;
        for _ in 1..passes {
            std::mem::swap(&mut target, &mut other);
            grid.pass(call.pulse, other, target, stages, &mut windows)?;
        }
    }
    let inner = rows.saturating_sub(2) as f64 * columns.saturating_sub(2) as f64;
    Ok(Outcome { array: Some(answer), flops: 6.0 * inner * steps as f64, ..Outcome::default() })
}

/// How many steps one pass takes: as many as have windows of enough rows.
fn stages_for(steps: usize, row_bytes: usize) -> usize {
    let fits = WINDOWS_BYTES / (row_bytes.max(1) * (ROWS_MIN + 3));
    // The last stage writes to the grid and needs no window.
    (fits + 1).min(STAGES_MAX).min(steps)
}

/// The latest rows between one stage and the next.
struct Window<T> {
    space: Vec<T>,
    /// The first row held, and the one after the last.
    start: usize,
    end: usize,
}

/// The windows of all stages but the last, which writes to the grid.
struct Windows<T> {
    all: Vec<Window<T>>,
    /// Rows a stage goes forward at once. A window holds these and at most two of the wave before.
    forward: usize,
}

impl<T: SimdElem> Windows<T> {
    fn new(call: &Call<'_>, stages: usize, columns: usize) -> Result<Windows<T>, KernelError> {
        let count = stages - 1;
        if count == 0 {
            return Ok(Windows { all: Vec::new(), forward: 0 });
        }
        let capacity = (WINDOWS_BYTES / (count * columns * size_of::<T>())).max(ROWS_MIN + 3);
        let window = || Ok(Window { space: call.space(capacity * columns)?, start: 0, end: 0 });
        let all = (0..count).map(|_| window()).collect::<Result<_, KernelError>>()?;
        Ok(Windows { all, forward: capacity - 3 })
    }
}

struct Grid<T> {
    level: Level,
    rows: usize,
    columns: usize,
    alpha: T,
    stores: Stores,
}

impl<T: SimdElem> Grid<T> {
    /// `stages` steps from `source` to `target`.
    fn pass(
        &self,
        pulse: &dyn Pulse,
        source: &[T],
        target: &mut [T],
        stages: usize,
        windows: &mut Windows<T>,
    ) -> Result<(), KernelError> {
        let columns = self.columns;
        if stages == 1 {
            let band = (POINTS / columns).max(1);
            for (index, piece) in target.chunks_mut(band * columns).enumerate() {
                pulse.beat()?;
                let first = index * band;
                let Grid { level, rows, alpha, stores, .. } = *self;
                simd::stencil5_rows(level, source, piece, first, rows, columns, alpha, stores);
            }
            return Ok(());
        }
        let forward = windows.forward;
        let windows = &mut windows.all[..stages - 1];
        for window in windows.iter_mut() {
            (window.start, window.end) = (0, 0);
        }
        let (mut finished, mut points) = (0, 0);
        while finished < self.rows {
            if points == 0 || points > POINTS {
                pulse.beat()?;
                points = 0;
            }
            points += forward * columns * stages;
            self.wave(source, target, windows, forward, &mut finished);
        }
        Ok(())
    }

    /// Every stage goes forward by up to `forward` rows; `finished` counts the rows of the last one.
    fn wave(
        &self,
        source: &[T],
        target: &mut [T],
        windows: &mut [Window<T>],
        forward: usize,
        finished: &mut usize,
    ) {
        let (rows, columns) = (self.rows, self.columns);
        for stage in 0..=windows.len() {
            // What this stage reads: rows `start .. end`. At the ends of the grid the first and last of them
            // are its border; elsewhere they are only looked at, because `first` lies behind and `last`
            // before them.
            let next_end = windows.get(stage + 1).map_or(*finished, |window| window.end);
            let (before, from_here) = windows.split_at_mut(stage);
            let (input, start, end) = match before.last() {
                None => (source, 0, rows),
                Some(window) => {
                    (&window.space[..(window.end - window.start) * columns], window.start, window.end)
                }
            };
            let first = from_here.first().map_or(*finished, |window| window.end);
            let readable = if end == rows { rows } else { end.saturating_sub(1) };
            let last = readable.min(first + forward);
            if last <= first {
                continue;
            }
            let (out, stores) = match from_here.first_mut() {
                None => {
                    *finished = last;
                    (&mut target[first * columns..last * columns], self.stores)
                }
                Some(window) => {
                    // The next stage still looks at the row above the one it computes next.
                    let keep = next_end.saturating_sub(1);
                    let held = (keep - window.start) * columns..(window.end - window.start) * columns;
                    window.space.copy_within(held, 0);
                    (window.start, window.end) = (keep, last);
                    let rows = (first - keep) * columns..(last - keep) * columns;
                    (&mut window.space[rows], Stores::Cached)
                }
            };
            let (level, alpha) = (self.level, self.alpha);
            simd::stencil5_rows(level, input, out, first - start, end - start, columns, alpha, stores);
        }
    }
}
