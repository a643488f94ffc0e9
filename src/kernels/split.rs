//! How a call falls into parts that agents compute beside each other: by rows of the answer, its first axis.
//!
//! A row of the answer needs the same row of some inputs and all of the others. What mixes rows (a transform over every axis, a
//! sum of everything, a grid whose points look at their neighbours) stays in one piece.

use std::ops::Range;

use super::{KernelId, Params, expr};

/// Rows that a part begins at a multiple of, where there are enough: what vectors and tiles like.
const ROWS_TOGETHER: usize = 16;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Rows of the answer.
    pub rows: usize,
    /// Of each input, whether a part needs its own rows of it only.
    pub by_rows: Vec<bool>,
}

/// Whether calls of this kernel with these parameters fall into parts, for some shapes.
pub fn may_split(kernel: KernelId, params: &Params) -> bool {
    use KernelId::*;
    match kernel {
        Matmul | Axpy | Sort | Argsort | TopK | Fft | Ifft | Rfft | Irfft | Knn | Quantize => true,
        Expr => expr::yields_array(params),
        Cumsum | Reduce => params.int("axis").is_some_and(|axis| axis != 0),
        Softmax => params.int("axis") != Some(0),
        Dot | Stencil5 | Histogram | MonteCarlo | Noop | Sleep | Hash | Spmv | Convolve2d | Kmeans => false,
    }
}

/// How a call with inputs of these shapes falls into parts; `None`: it does not. Shapes that the kernel refuses give `None`, or
/// something of which every part is refused as well.
pub fn split(kernel: KernelId, params: &Params, shapes: &[&[usize]]) -> Option<Split> {
    let first = shapes.first().copied().unwrap_or_default();
    let only_first =
        |rows: usize| Some(Split { rows, by_rows: (0..shapes.len()).map(|index| index == 0).collect() });
    // Rows that are lines of the last axes, or cross the axis that lines lie along.
    let beyond = |axes: usize| if first.len() > axes { only_first(first[0]) } else { None };
    match kernel {
        KernelId::Matmul => match shapes {
            [[m, _], [_, _]] => {
                if matches!(params.word("transpose"), "a" | "both") {
                    None
                } else {
                    only_first(*m)
                }
            }
            [[a @ .., _, _], [b @ .., _, _]] if a == b || a.is_empty() || b.is_empty() => {
                let rows = *a.first().or(b.first())?;
                Some(Split { rows, by_rows: vec![!a.is_empty(), !b.is_empty()] })
            }
            _ => None,
        },
        KernelId::Axpy => match shapes {
            [x, y] if x == y => Some(Split { rows: *x.first()?, by_rows: vec![true; 2] }),
            _ => None,
        },
        KernelId::Expr if expr::yields_array(params) => {
            let axes = shapes.iter().map(|shape| shape.len()).max()?;
            let leading = |shape: &&[usize]| (shape.len() == axes).then(|| shape.first().copied()).flatten();
            let mut many = shapes.iter().filter_map(&leading).filter(|&rows| rows != 1);
            let rows = many.next()?;
            // What does not go together is refused as a whole, and might go together in parts.
            if many.any(|other| other != rows) {
                return None;
            }
            Some(Split { rows, by_rows: shapes.iter().map(|shape| leading(shape) == Some(rows)).collect() })
        }
        KernelId::Sort | KernelId::Argsort | KernelId::TopK => beyond(1),
        KernelId::Fft | KernelId::Ifft | KernelId::Rfft | KernelId::Irfft => beyond(params.count("axes")),
        KernelId::Cumsum | KernelId::Softmax | KernelId::Reduce => {
            let axis = match (kernel, params.int("axis")) {
                (KernelId::Softmax, None) => -1,
                (_, axis) => axis?,
            };
            let axis = if axis < 0 { axis + first.len() as i64 } else { axis };
            if axis > 0 { beyond(1) } else { None }
        }
        KernelId::Knn | KernelId::Quantize => only_first(*first.first()?),
        _ => None,
    }
}

impl Split {
    /// The rows of the units `at` to `at + count` of `of`; `None` where these are none, or there are no rows. Where there are fewer
    /// rows than units, some units are empty.
    pub fn rows_of(&self, at: u32, count: u32, of: u32) -> Option<Range<usize>> {
        let end = at.checked_add(count).filter(|end| count > 0 && *end <= of && self.rows > 0)? as usize;
        let (at, of) = (at as usize, of as usize);
        let together = if self.rows / of >= ROWS_TOGETHER { ROWS_TOGETHER } else { 1 };
        let begin = |at: usize| match at {
            _ if at == of => self.rows,
            // In 128 bits: rows are elements of arrays that may be beyond what half a word counts.
            _ => (self.rows as u128 * at as u128 / of as u128) as usize / together * together,
        };
        Some(begin(at)..begin(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check_params;
    use serde_json::{Value, json};

    fn found(kernel: KernelId, params: Value, shapes: &[&[usize]]) -> Option<(usize, Vec<bool>)> {
        let Value::Object(params) = params else { panic!("an object") };
        let params = check_params(kernel, &params).expect("parameters of the kernel");
        split(kernel, &params, shapes).map(|split| (split.rows, split.by_rows))
    }

    #[test]
    fn what_mixes_rows_stays_in_one_piece() {
        use KernelId::*;
        let transposed = |word: &str| json!({ "transpose": word });
        let axis = |axis: i64| json!({ "axis": axis });
        let expression = |text: &str| json!({ "expr": text });
        let (one, both) = (vec![true, false], vec![true, true]);
        for (kernel, params, shapes, expected) in [
            (Matmul, json!({}), &[&[6, 2][..], &[2, 4]][..], Some((6, one.clone()))),
            (Matmul, transposed("b"), &[&[6, 2], &[4, 2]], Some((6, one.clone()))),
            (Matmul, transposed("a"), &[&[2, 6], &[2, 4]], None),
            (Matmul, transposed("both"), &[&[3, 2, 6], &[3, 4, 2]], Some((3, both.clone()))),
            (Matmul, json!({}), &[&[3, 6, 2], &[2, 4]], Some((3, one.clone()))),
            (Matmul, transposed("a"), &[&[2, 6], &[3, 2, 4]], Some((3, vec![false, true]))),
            (Axpy, json!({"alpha": 2.0}), &[&[9], &[9]], Some((9, both.clone()))),
            (Axpy, json!({"alpha": 2.0}), &[&[9], &[8]], None),
            (Expr, expression("a + b"), &[&[5, 3], &[3]], Some((5, one.clone()))),
            (Expr, expression("a + b"), &[&[5, 3], &[1, 3]], Some((5, one.clone()))),
            (Expr, expression("a + b"), &[&[1, 3], &[5, 1]], Some((5, vec![false, true]))),
            (Expr, expression("a + b"), &[&[1, 3], &[1, 1]], None),
            (Expr, expression("a + b"), &[&[8, 3], &[4, 3]], None),
            (Expr, expression("a + b"), &[&[2, 3], &[3, 3]], None),
            (Matmul, json!({}), &[&[2, 6, 2], &[4, 2, 4]], None),
            (Matmul, json!({}), &[&[4, 6, 2], &[2, 2, 4]], None),
            (Matmul, json!({}), &[&[4, 5, 6, 2], &[4, 5, 2, 4]], Some((4, both.clone()))),
            (Reduce, axis(0), &[&[4, 8]], None),
            (Expr, expression("a + b"), &[&[], &[]], None),
            (Expr, expression("sum(a + b)"), &[&[5], &[5]], None),
            (Sort, json!({}), &[&[7]], None),
            (TopK, json!({"k": 2}), &[&[4, 7]], Some((4, vec![true]))),
            (Fft, json!({}), &[&[4, 8]], Some((4, vec![true]))),
            (Fft, json!({"axes": 2}), &[&[4, 8]], None),
            (Rfft, json!({"axes": 2}), &[&[3, 4, 8]], Some((3, vec![true]))),
            (Softmax, json!({}), &[&[4, 8]], Some((4, vec![true]))),
            (Softmax, axis(0), &[&[4, 8]], None),
            (Softmax, axis(-2), &[&[4, 8]], None),
            (Softmax, axis(-9), &[&[4, 8]], None),
            (Reduce, axis(1), &[&[4, 8]], Some((4, vec![true]))),
            (Reduce, json!({}), &[&[4, 8]], None),
            (Cumsum, json!({}), &[&[4, 8]], None),
            (
                Knn,
                json!({"k": 1}),
                &[&[9, 2], &[5, 2], &[5, 2], &[5, 3]],
                Some((9, vec![true, false, false, false])),
            ),
            (Histogram, json!({"bins": 4}), &[&[4, 8]], None),
        ] {
            assert_eq!(found(kernel, params.clone(), shapes), expected, "{kernel} {params} {shapes:?}");
            let Value::Object(given) = params else { panic!("an object") };
            let given = check_params(kernel, &given).expect("parameters of the kernel");
            assert!(expected.is_none() || may_split(kernel, &given), "{kernel}");
        }
    }

    #[test]
    fn parts_are_all_rows_once() {
        for rows in [1, 2, 15, 16, 17, 100, 4096, usize::MAX] {
            for (of, count) in [(1, 1), (2, 1), (3, 1), (7, 1), (7, 2), (64, 1), (128, 10)] {
                let split = Split { rows, by_rows: vec![true] };
                let begins = (0..of).step_by(count as usize);
                let parts: Vec<_> =
                    begins.map_while(|at| split.rows_of(at, count.min(of - at), of)).collect();
                let number = of.div_ceil(count) as usize;
                assert_eq!((parts.len(), parts[0].start, parts[parts.len() - 1].end), (number, 0, rows));
                assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{rows} {of}");
                let filled = parts.iter().filter(|part| !part.is_empty()).count();
                assert!(filled == rows.min(number), "{rows} {of}: {parts:?}");
                let first = parts.iter().filter(|part| part.start == 0 && !part.is_empty());
                assert_eq!(first.count(), 1, "who has the first row writes the header");
                for nonsense in [(of, 1), (0, of + 1), (0, 0), (1, u32::MAX)] {
                    assert_eq!(split.rows_of(nonsense.0, nonsense.1, of), None);
                }
            }
        }
        assert_eq!(Split { rows: 0, by_rows: vec![true] }.rows_of(0, 1, 2), None);
    }
}
