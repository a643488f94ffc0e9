//! What the optimization agent's choices are worth here: cells are tuned as it tunes them, and each choice of another variant is
//! then measured anew, in pairs with the default. The trial's own figures do not count: who wins by luck wins there.

use super::{BENCH, Figure, Limit, Steps, quantile, sorted};
use crate::agents::optimization::trial::{Cell, Step, Trial};
use crate::kernels::{KernelId, spec, variants};
use crate::os::counting::Counters;

/// Classes of sizes, each of inputs of that many bytes or up to twice as many: in the second cache, in the last one, beyond.
const CLASSES: [u8; 3] = [16, 20, 25];
const CLASSES_QUICK: [u8; 1] = [16];
/// Pairs in which a choice is measured anew.
const PAIRS: usize = 25;
/// No choice may be slower than the default by more than this share.
const WORST: f64 = 0.98;

/// One choice of another variant than the default, measured anew: seconds of each, in pairs.
struct Choice {
    cell: Cell,
    default: Vec<f64>,
    chosen: Vec<f64>,
    words: String,
}

impl Choice {
    /// The median of the pairs' ratios: how many times as fast the choice is.
    fn gain(&self) -> f64 {
        let ratios = self.default.iter().zip(&self.chosen).map(|(default, chosen)| default / chosen);
        quantile(&sorted(ratios.collect()), 0.5)
    }

    fn figure(&self) -> Figure {
        let Cell { kernel, dtype, class } = self.cell;
        let size = 1_u64 << class;
        let size = if size >= 1 << 20 { format!("{}m", size >> 20) } else { format!("{}k", size >> 10) };
        let (default, chosen) = (sorted(self.default.clone()), sorted(self.chosen.clone()));
        // By the pairs' ratio, which what changes on the way leaves alone.
        let floor = quantile(&default, 0.5) * 1e3;
        let value = floor / self.gain();
        Figure {
            bench: BENCH,
            name: format!("tuned_{kernel}_{}_{size}", dtype.name()),
            value,
            unit: "ms",
            floor: Some(floor),
            limit: Some(Limit::AtMost(floor / WORST)),
            p50: Some(value),
            p99: Some(value.max(quantile(&chosen, 0.99) * 1e3)),
            note: self.words.clone(),
            ..Figure::default()
        }
    }
}

/// Tunes, and measures what came of it.
pub(super) fn measure(quick: bool, steps: &Steps) -> Vec<Figure> {
    let (classes, dtypes) = if quick { (&CLASSES_QUICK[..], 1) } else { (&CLASSES[..], 2) };
    let mut counters = Counters::open();
    let (mut cells, mut kernels, mut choices) = (0, 0, Vec::new());
    for kernel in KernelId::ALL {
        let before = cells;
        for &dtype in spec(kernel).dtypes.iter().take(dtypes) {
            for &class in classes {
                steps.begin(&format!("kernels: tuning {kernel} {}", dtype.name()));
                let Some(choice) = tune(Cell { kernel, dtype, class }, &mut counters) else { continue };
                cells += 1;
                choices.extend(choice);
            }
        }
        kernels += usize::from(cells > before);
    }
    // A default that stays is its own equal.
    let logs: f64 = choices.iter().map(|choice| choice.gain().ln()).sum();
    let gain = if cells > 0 { (logs / f64::from(cells)).exp() } else { 1.0 };
    let note = format!(
        "geometric mean of how many times as fast the tuned choice is, over {cells} cells (kernel, element type, size) of \
         {kernels} kernels that have more than one variant; in {} of them another than the default was chosen, and measured \
         anew in {PAIRS} pairs",
        choices.len()
    );
    let all = Figure {
        bench: BENCH,
        name: "tuned_all".to_owned(),
        value: gain,
        unit: "x",
        p50: Some(gain),
        p99: Some(gain),
        note,
        ..Figure::default()
    };
    choices.iter().map(Choice::figure).chain(std::iter::once(all)).collect()
}

/// `None`: there is nothing to choose. `Some(None)`: the default stays.
fn tune(cell: Cell, counters: &mut Counters) -> Option<Option<Choice>> {
    if variants(cell.kernel, Some(cell.dtype)).len() < 2 {
        return None;
    }
    let mut trial = Trial::begin(cell, &()).ok()??;
    while trial.step(counters, &()) == Step::Going {}
    let found = trial.found()?;
    if !found.is_default_usable {
        return None;
    }
    let Some(gain) = found.duel.filter(|_| found.best != 0).map(|duel| duel.gain) else { return Some(None) };
    let (mut default, mut chosen) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let order = if pair % 2 == 0 { [0, found.best] } else { [found.best, 0] };
        for at in order {
            let seconds = trial.time(at, counters, &()).ok()? / 1e9;
            if at == 0 { &mut default } else { &mut chosen }.push(seconds);
        }
    }
    let describe = |at: usize| trial.candidates[at].describe(cell.kernel);
    let words = format!(
        "{} instead of {}, chosen with a gain of {:.2} ({:.2} to {:.2}) after {} runs; floor: the default, in pairs",
        describe(found.best),
        describe(0),
        gain.median,
        gain.low,
        gain.high,
        found.runs
    );
    Some(Some(Choice { cell, default, chosen, words }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrays::DType;

    #[test]
    fn a_choice_is_judged_by_its_pairs() {
        let choice = Choice {
            cell: Cell { kernel: KernelId::Axpy, dtype: DType::F32, class: 20 },
            // The host became half as fast in the middle.
            default: vec![1.0, 1.0, 2.0, 2.0],
            chosen: vec![0.5, 0.5, 1.0, 1.0],
            words: String::new(),
        };
        let figure = choice.figure();
        assert_eq!((choice.gain(), figure.name.as_str()), (2.0, "tuned_axpy_f32_1m"));
        assert_eq!(figure.floor.map(|floor| floor / figure.value), Some(2.0));
        assert!(figure.p99 >= Some(figure.value));
    }
}
