//! Compiled code against the interpreter, the interpreter against plain Rust, and the rules of the language.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::graph::{self, Op, Program, Type};
use super::parse::parse;
use crate::arrays::{Array, ArrayRef, DType, Element};
use crate::kernels::{
    Call, KernelError, KernelId, Level, Outcome, Variant, check_params, output_needed, run,
};

fn array<T: Element>(shape: &[usize], elements: &[T]) -> ArrayRef {
    Array::from_slice(shape, elements).unwrap().into()
}

fn call(text: &str, inputs: &[ArrayRef], level: Level) -> Result<Outcome, KernelError> {
    let given = json!({ "expr": text });
    let params = check_params(KernelId::Expr, given.as_object().unwrap())?;
    let variant = Variant::new(level, 0);
    run(&Call { kernel: KernelId::Expr, params: &params, inputs, variant, pulse: &() })
}

fn elements<T: Element>(text: &str, inputs: &[ArrayRef], level: Level) -> Vec<T> {
    let outcome = call(text, inputs, level).unwrap_or_else(|error| panic!("{text}: {error}"));
    outcome.array.unwrap().as_slice::<T>().unwrap().to_vec()
}

fn result(text: &str, inputs: &[ArrayRef], level: Level) -> Value {
    call(text, inputs, level).unwrap_or_else(|error| panic!("{text}: {error}")).result.unwrap()
}

/// The levels with code of their own that this processor has.
fn compiling() -> Vec<Level> {
    [Level::Avx2, Level::Avx512].into_iter().filter(|level| level.is_available()).collect()
}

fn program(text: &str, types: &[Type]) -> Result<Program, String> {
    let syntax = parse(text, &super::NAMES).map_err(|problem| problem.text)?;
    graph::build(&syntax, types).map_err(|problem| problem.text)
}

/// A seeded stream of choices.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    /// Uniform between -1 and 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    /// A number or, now and then, one of the awkward ones.
    fn number(&mut self) -> f64 {
        const AWKWARD: [f64; 12] = [
            0.0,
            -0.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            5e-324,
            -1e-310,
            1e-40,
            f64::MAX,
            2_147_483_648.0,
            -9.3e18,
            0.5,
        ];
        match self.below(4) {
            0 => AWKWARD[self.below(AWKWARD.len())],
            1 => self.unit() * 1e3,
            2 => f64::from(self.below(9) as i32 - 4),
            _ => self.unit(),
        }
    }

    /// Four arrays, `a` to `d`, one of each type.
    fn arrays(&mut self, length: usize) -> Vec<ArrayRef> {
        let numbers: Vec<f64> = (0..4 * length).map(|_| self.number()).collect();
        let part = |at: usize| numbers[at * length..][..length].iter().copied();
        vec![
            array(&[length], &part(0).collect::<Vec<f64>>()),
            array(&[length], &part(1).map(|value| value as f32).collect::<Vec<f32>>()),
            array(&[length], &part(2).map(|value| value as i32).collect::<Vec<i32>>()),
            array(&[length], &part(3).map(|value| value as i64).collect::<Vec<i64>>()),
        ]
    }

    /// A number-valued expression without functions that round on their own.
    fn arithmetic(&mut self, depth: usize) -> String {
        if depth == 0 {
            return match self.below(6) {
                0 => format!("{}", self.below(7)),
                1 => format!("{:.2}", self.unit()),
                _ => self.one_of(&["a", "b", "c", "d"]).to_owned(),
            };
        }
        let left = self.arithmetic(depth - 1);
        match self.below(12) {
            0..5 => {
                let right = self.arithmetic(depth - 1);
                format!("({left} {} {right})", self.one_of(&["+", "-", "*", "/"]))
            }
            5 => {
                format!("{}({left})", self.one_of(&["-", "abs", "floor", "ceil", "f32", "f64", "i32", "i64"]))
            }
            6 => format!("({left}) ** {}", self.one_of(&["2", "3", "0.5", "0", "-1", "-2", "5"])),
            7 => format!("sqrt({left})"),
            8 | 9 => format!("{}({left}, {})", self.one_of(&["min", "max"]), self.arithmetic(depth - 1)),
            _ => {
                let condition = self.condition(depth - 1);
                format!("where({condition}, {left}, {})", self.arithmetic(depth - 1))
            }
        }
    }

    fn condition(&mut self, depth: usize) -> String {
        let left = self.arithmetic(depth.saturating_sub(1));
        let right = self.arithmetic(depth.saturating_sub(1));
        let plain = format!("({left} {} {right})", self.one_of(&["<", "<=", ">", ">=", "==", "!="]));
        match self.below(4) {
            0 if depth > 0 => format!("~{plain}"),
            1 if depth > 0 => format!("({plain} {} {})", self.one_of(&["&", "|"]), self.condition(depth - 1)),
            2 => format!("bool({left})"),
            _ => plain,
        }
    }
}

/// Whether two arrays are the same bit for bit, any NaN being as good as any other.
fn same(want: &Array, got: &Array) -> Result<(), String> {
    if (want.dtype(), want.shape()) != (got.dtype(), got.shape()) {
        return Err(format!("{} {:?}, want {} {:?}", got.dtype(), got.shape(), want.dtype(), want.shape()));
    }
    fn differ<T: Element>(want: &Array, got: &Array, is_same: impl Fn(T, T) -> bool) -> Option<usize> {
        let (want, got) = (want.as_slice::<T>().unwrap(), got.as_slice::<T>().unwrap());
        want.iter().zip(got).position(|(&want, &got)| !is_same(want, got))
    }
    let place = match want.dtype() {
        DType::F64 => differ::<f64>(want, got, |a, b| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()),
        DType::F32 => differ::<f32>(want, got, |a, b| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()),
        _ => want.bytes().iter().zip(got.bytes()).position(|(want, got)| want != got),
    };
    place.map_or(Ok(()), |place| Err(format!("differ at {place}: {:?} and {:?}", want.bytes(), got.bytes())))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_arithmetic_is_the_interpreters_bit_for_bit(seed: u64, length in 0_usize..70, depth in 0_usize..5) {
        let mut choices = Choices(seed);
        let text = if seed % 4 == 0 { choices.condition(depth) } else { choices.arithmetic(depth) };
        let inputs = choices.arrays(length);
        // A literal alone may not fit an i32 beside it; that is the language, not a mistake.
        if let Ok(want) = call(&text, &inputs, Level::Scalar) {
            for level in compiling() {
                let got = call(&text, &inputs, level).unwrap();
                if let Err(difference) = same(want.array.as_ref().unwrap(), &got.array.unwrap()) {
                    prop_assert!(false, "{level}: {text}: {difference}");
                }
            }
            for how in ["min", "max", "any", "all"] {
                let text = format!("{how}({text})");
                let want = call(&text, &inputs, Level::Scalar).map(|outcome| outcome.result);
                for level in compiling() {
                    let got = call(&text, &inputs, level).map(|outcome| outcome.result);
                    let (zero, minus) = (Ok(Some(json!(0.0))), Ok(Some(json!(-0.0))));
                    // Which of two zeros comes first depends on the lanes.
                    let zeros = (want == zero || want == minus) && (got == zero || got == minus);
                    prop_assert!(zeros || got == want, "{level}: {text}: {got:?}, want {want:?}");
                }
            }
        } else {
            prop_assert!(text.contains("**") || text.contains("i32"), "{text}");
        }
    }

    #[test]
    fn no_text_makes_it_panic(tokens in proptest::collection::vec(0_usize..34, 0..60), noise in "\\PC{0,20}") {
        const TOKENS: [&str; 34] = [
            "a", "b", "c", "q", "(", ")", "(", ")", ",", "+", "-", "*", "/", "**", "<", "<=", "==", "!=", "&", "|",
            "~", "1", "2.5", "1e9", ".", "9223372036854775808", "where", "min", "sum", "sin", "i32", " ", "0.5", "é",
        ];
        let text: String = tokens.iter().map(|&token| TOKENS[token]).collect();
        for text in [text.clone(), format!("{text}{noise}"), noise] {
            let _ = program(&text, &[Type::F64, Type::I32, Type::Bool]);
        }
    }
}

#[test]
fn many_values_alive_at_once_go_to_memory_and_back() {
    let x: Vec<f64> = (0..100).map(f64::from).collect();
    let inputs = [array(&[100], &x), array(&[100], &x.iter().map(|x| *x as f32).collect::<Vec<_>>())];
    for count in [10, 20, 29, 33, 45, 60] {
        for term in ["a*{}", "b*{}", "where(a < {}, a, {})"] {
            let terms = (1..=count).map(|at| term.replace("{}", &format!("{at}.5")));
            let sum = terms.collect::<Vec<_>>().join(" + (") + &")".repeat(count - 1);
            let masks = (1..=count).map(|at| format!("(a > {at})"));
            let masks = masks.collect::<Vec<_>>().join(" & (") + &")".repeat(count - 1);
            for text in [sum, masks] {
                let want = call(&text, &inputs, Level::Scalar).unwrap().array.unwrap();
                for level in compiling() {
                    let got = call(&text, &inputs, level).unwrap().array.unwrap();
                    same(&want, &got).unwrap_or_else(|error| panic!("{level} {count}: {error}"));
                }
            }
        }
    }
}

/// Distance in units of the last place of `want`.
fn ulps(got: f64, want: f64) -> f64 {
    if got == want || (got.is_nan() && want.is_nan()) {
        return 0.0;
    }
    (got - want).abs() / (f64::from_bits(want.abs().to_bits() + 1) - want.abs())
}

#[test]
fn functions_are_within_four_ulp() {
    type Row<'a> = (&'a str, fn(f64) -> f64, &'a [f64]);
    let functions: [Row<'_>; 5] = [
        ("sin", f64::sin, &[1.0, 10.0, 1e5, 9.9e8]),
        ("cos", f64::cos, &[1.0, 10.0, 1e5, 9.9e8]),
        ("exp", f64::exp, &[1.0, 1e-8, 709.0, 745.0]),
        ("log", f64::ln, &[1.0, 1e-300, 1e300, 1e-310]),
        ("tanh", f64::tanh, &[1e-9, 0.1, 1.0, 25.0]),
    ];
    let mut choices = Choices(5);
    for (name, function, scales) in functions {
        let mut x: Vec<f64> =
            scales.iter().flat_map(|&scale| [scale; 40_000]).map(|s| s * choices.unit()).collect();
        x.extend((1..2000).map(|n| f64::from(n) * std::f64::consts::FRAC_PI_2));
        x.extend([0.0, -0.0, 5e-324, -1e-310, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN]);
        x.extend([709.782, 709.79, -708.4, -744.0, -746.0, 1e9, 1e22, -3e300, f64::MIN_POSITIVE]);
        let inputs =
            [array(&[x.len()], &x), array(&[x.len()], &x.iter().map(|x| *x as f32).collect::<Vec<_>>())];
        for level in compiling() {
            let got = elements::<f64>(&format!("{name}(a)"), &inputs, level);
            let mut worst = 0.0;
            for (x, got) in x.iter().zip(&got) {
                let error = ulps(*got, function(*x));
                // The standard library's own rounding is half a unit of it.
                assert!(error <= 4.0, "{level}: {name}({x:e}) = {got:e}, {error} ulp off");
                worst = f64::max(worst, error);
            }
            println!("{level} {name}: {worst} ulp");
            for (x, got) in x.iter().zip(elements::<f32>(&format!("{name}(b)"), &inputs, level)) {
                let x = *x as f32;
                let want = function(f64::from(x)) as f32;
                let near = got == want
                    || got.is_nan() && want.is_nan()
                    || got.to_bits().abs_diff(want.to_bits())
                        <= if name == "sin" || name == "cos" { 4 } else { 1 };
                assert!(near, "{level}: {name}({x:e}f32) = {got:e}, want {want:e}");
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn sines_of_32_bits_are_near_wherever_they_are_made() {
    use super::code::{Form, compiled};
    let mut choices = Choices(6);
    for scale in [1e-3, 1.0, 10.0, 1e4, 65_535.0, 65_537.0, 1e8, 3e38] {
        let mut x: Vec<f32> = (0..50_000).map(|_| (scale * choices.unit()) as f32).collect();
        x.extend((1..20_000).map(|n| n as f32 * std::f32::consts::FRAC_PI_2));
        x.extend([0.0, -0.0, f32::from_bits(1), -1e-40, f32::MIN_POSITIVE, f32::NAN]);
        let inputs = [array(&[x.len()], &x)];
        for level in compiling() {
            for (name, function) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
                let form = Form { level, repeated: 0, streams: false, is_narrow: true };
                let text = format!("{name}(a)");
                assert!(compiled(&program(&text, &[Type::F32]).unwrap(), form).is_some());
                assert!(compiled(&program(&text, &[Type::F64]).unwrap(), form).is_none());
                for (x, got) in x.iter().zip(elements::<f32>(&text, &inputs, level)) {
                    let want = function(f64::from(*x));
                    let unit = f64::from(((want as f32).abs()).next_up() - (want as f32).abs());
                    let near = got.is_nan() && want.is_nan() || (f64::from(got) - want).abs() <= 4.0 * unit;
                    assert!(near, "{level}: {text} of {x:e} = {got:e}, want {want:e}");
                }
            }
        }
    }
}

#[test]
fn large_answers_are_those_of_small_ones() {
    // Beyond half of any cache, so that they are written past it; with a far argument, which is done again otherwise.
    let length = 40 << 20;
    let mut x: Vec<f32> = (0..length).map(|at| (at % 1009) as f32 - 500.0).collect();
    (x[9_999_999], x[20_000_000], x[length - 1]) = (1e6, 1e30, f32::INFINITY);
    let inputs = [array(&[length], &x)];
    for level in compiling() {
        let all = elements::<f32>("sin(a) * a", &inputs, level);
        let part = 8192 - 5;
        for start in [0, 9_999_999 - part / 2, 20_000_000 - part + 1, length - part] {
            let few = elements::<f32>("sin(a) * a", &[array(&[part], &x[start..start + part])], level);
            for (at, (all, few)) in all[start..].iter().zip(few).enumerate() {
                let near =
                    *all == few || all.is_nan() && few.is_nan() || all.to_bits().abs_diff(few.to_bits()) <= 4;
                assert!(near, "{level} {start} + {at}: {all:e}, in a small array {few:e}");
            }
        }
    }
}

#[test]
fn a_piece_with_a_far_argument_is_interpreted() {
    let mut x: Vec<f64> = (0..10_000).map(f64::from).collect();
    (x[4500], x[9999]) = (1e300, f64::INFINITY);
    let inputs = [array(&[x.len()], &x)];
    for level in compiling() {
        let got = elements::<f64>("sin(a)", &inputs, level);
        assert_eq!(got[4500], 1e300_f64.sin());
        assert!(got[9999].is_nan());
        let sum = result("sum(where(a < 1e9, sin(a), 0))", &inputs, level).as_f64().unwrap();
        let want: f64 = x.iter().filter(|x| **x < 1e9).map(|x| x.sin()).sum();
        assert!((sum - want).abs() < 1e-10, "{level}: {sum}, want {want}");
    }
}

#[test]
fn shapes_broadcast_as_in_numpy() {
    let shapes: [(&[usize], &[usize], &[usize]); 9] = [
        (&[], &[], &[]),
        (&[5], &[], &[5]),
        (&[3, 1], &[1, 4], &[3, 4]),
        (&[2, 3, 4], &[3, 1], &[2, 3, 4]),
        (&[2, 1, 70], &[5, 70], &[2, 5, 70]),
        (&[1, 1], &[7], &[1, 7]),
        (&[0, 3], &[1], &[0, 3]),
        (&[0], &[1], &[0]),
        (&[4, 1, 2, 1], &[3, 1, 5], &[4, 3, 2, 5]),
    ];
    for (of_a, of_b, want) in shapes {
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let a: Vec<f64> = (0..count(of_a)).map(|at| at as f64).collect();
        let b: Vec<f64> = (0..count(of_b)).map(|at| 1000.0 + at as f64).collect();
        let at = |shape: &[usize], place: &[usize]| {
            let axes = shape.iter().zip(&place[place.len() - shape.len()..]);
            axes.fold(0, |at, (&length, &place)| at * length + if length == 1 { 0 } else { place })
        };
        let mut sums = Vec::new();
        for flat in 0..count(want) {
            let mut left = flat;
            let mut place: Vec<usize> = want
                .iter()
                .rev()
                .map(|length| {
                    let at = left % length;
                    left /= length;
                    at
                })
                .collect();
            place.reverse();
            sums.push(1e4 * a[at(of_a, &place)] + b[at(of_b, &place)]);
        }
        let inputs = [array(of_a, &a), array(of_b, &b)];
        for level in Level::available() {
            let outcome = call("1e4*a + b", &inputs, level).unwrap().array.unwrap();
            assert_eq!((outcome.shape(), outcome.as_slice::<f64>().unwrap()), (want, &sums[..]), "{level}");
        }
    }
    let error =
        call("a + b", &[array(&[2, 3], &[0.0; 6]), array(&[2], &[0.0; 2])], Level::best()).unwrap_err();
    let message = "expr: inputs[1] \"arrays\" has shape (2,), needs a shape that broadcasts with those before it, \
                   which make (2, 3)";
    assert_eq!(error.to_string(), message);
}

#[test]
fn reductions_are_those_of_plain_loops() {
    for level in Level::available() {
        for length in [1_usize, 2, 3, 7, 8, 15, 16, 17, 63, 4095, 4096, 4097, 10_001] {
            let x: Vec<f64> = (0..length).map(|at| (at as f64 * 0.7).sin()).collect();
            let inputs = [
                array(&[length], &x),
                array(&[length], &x.iter().map(|x| *x as f32).collect::<Vec<_>>()),
                array(&[length], &(0..length as i32).collect::<Vec<_>>()),
                array(&[length], &(0..length as i64).map(|at| at << 40).collect::<Vec<_>>()),
            ];
            let number = |text: &str| result(text, &inputs, level).as_f64().unwrap();
            let sum: f64 = x.iter().sum();
            assert!((number("sum(a)") - sum).abs() < 1e-11, "{level} {length}");
            assert!((number("mean(a)") - sum / length as f64).abs() < 1e-12);
            assert!((number("sum(b)") - x.iter().map(|x| f64::from(*x as f32)).sum::<f64>()).abs() < 1e-11);
            assert_eq!(number("min(a)"), x.iter().copied().fold(f64::INFINITY, f64::min));
            assert_eq!(
                number("max(b)"),
                f64::from(x.iter().map(|x| *x as f32).fold(f32::NEG_INFINITY, f32::max))
            );
            let whole = (length * (length - 1) / 2) as i64;
            assert_eq!(result("sum(c)", &inputs, level), json!(whole));
            assert_eq!(result("max(-d)", &inputs, level), json!(0));
            assert_eq!(result("sum(d * d)", &inputs, level), json!(0), "wraps");
            let positive = x.iter().filter(|x| **x > 0.0).count();
            assert_eq!(result("sum(a > 0)", &inputs, level), json!(positive), "{level} {length}");
            assert_eq!(result("any(a > 2)", &inputs, level), json!(false));
            assert_eq!(result("all(a < 2)", &inputs, level), json!(true));
            assert_eq!(result("all(c != 0)", &inputs, level), json!(false));
            let last = length - 1;
            assert_eq!(result(&format!("any(c == {last})"), &inputs, level), json!(true), "{level} {length}");
        }
        let mut x = vec![1.0; 100];
        x[57] = f64::NAN;
        let inputs = [array(&[100], &x)];
        for text in ["min(a)", "max(a)", "sum(a)"] {
            assert_eq!(result(text, &inputs, level), json!("NaN"), "{level}");
        }
        let none = [array::<f32>(&[0], &[])];
        assert_eq!(result("sum(a)", &none, level), json!(0.0));
        assert_eq!(result("all(a)", &none, level), json!(true));
        let error = call("max(a)", &none, level).unwrap_err().to_string();
        assert_eq!(error, "expr: `max` of no elements, needs one or more");
    }
}

#[test]
fn types_are_promoted_as_said() {
    use Type::{Bool, F32, F64, I32, I64};
    let types = [F64, F32, I32, I64];
    for (text, want) in [
        ("a + b", F64),
        ("b + 1", F32),
        ("b * 0.1", F32),
        ("b + c", F64),
        ("c + d", I64),
        ("c + 1", I32),
        ("c + 1.0", F64),
        ("c / c", F64),
        ("b / 2", F32),
        ("sin(c)", F64),
        ("sin(b)", F32),
        ("floor(c)", I32),
        ("c < d", Bool),
        ("(c < d) + (a < b)", I64),
        ("where(a < b, c, d)", I64),
        ("where(c, a < b, c < d)", Bool),
        ("c ** 2", I32),
        ("c ** -1", F64),
        ("1 + 2", I64),
        ("1 / 2", F64),
        ("f32(a) + 2 * 3.5", F32),
        ("sum(b)", F64),
        ("sum(c)", I64),
        ("max(c)", I32),
    ] {
        let program = program(text, &types).unwrap();
        assert_eq!(program.nodes[program.root].ty, want, "{text}");
    }
}

#[test]
fn equal_operations_are_done_once_and_constants_never() {
    let count = |text: &str| program(text, &[Type::F64, Type::F64]).unwrap().nodes.len();
    assert_eq!(count("(a + b) * (b + a)"), 4);
    assert_eq!(count("a * (2 * 3 - 5)"), 1);
    assert_eq!(count("where(1 < 2, a, b)"), 1);
    assert_eq!(count("-(-a) / 1 - 0"), 1);
    assert_eq!(count("a ** 8"), 4);
    assert_eq!(program("2 ** 3 ** 2", &[]).unwrap().nodes[0].op, Op::Const(512));
    assert_eq!(program("-2 ** 2", &[]).unwrap().nodes[0].op, Op::Const(-4_i64 as u64));
    let halved = program("a / 4", &[Type::F64]).unwrap();
    assert!(halved.nodes.iter().any(|node| node.op == Op::Const(0.25_f64.to_bits())), "{halved:?}");
    let third = program("a / 3", &[Type::F64]).unwrap();
    assert!(third.nodes.iter().any(|node| node.op == Op::Div), "{third:?}");
    // A sum with zero is not its operand when that is -0.
    assert_eq!(count("a + 0"), 3);
}

#[test]
fn mistakes_name_the_place_and_what_is_allowed() {
    let inputs = [array(&[1], &[1.0_f64]), array(&[1], &[1_i32])];
    for (text, message) in [
        ("", "character 1: found the end, needs a number, a name or `(`"),
        ("a +", "character 4: found the end, needs a number, a name or `(`"),
        ("a + x", "character 5: `x` is no function, and the arrays are a, b, c"),
        ("(a", "character 3: found the end, needs `)` to close the parenthesis"),
        ("a b", "character 3: found `b` after the end of the expression"),
        ("2a", "character 2: found a letter after a number; write `*` to multiply"),
        ("sin a", "character 5: found `a`, needs `(` after `sin`"),
        ("sin(a, a)", "character 1: `sin` has 2 arguments, needs 1"),
        ("where(a, a)", "character 1: `where` has 2 arguments, needs 3"),
        ("1 + sum(a)", "character 5: `sum` of one argument makes one value of all, so it must be outermost"),
        ("a < a < a", "character 7: comparisons do not chain"),
        ("a & a", "character 3: `&` of f64, needs bool on both sides"),
        ("~b", "character 1: `~` of i32, needs bool"),
        ("a ** b", "character 3: the exponent of `**` must be 0.5 or a whole number from -64 to 64"),
        ("a ** 65", "character 3: the exponent of `**` must be"),
        ("a + d", "character 5: names inputs[3], but 2 are given"),
        ("b + 3000000000", "character 3: 3000000000 does not fit the i32 beside it"),
        ("9223372036854775808", "character 1: `9223372036854775808` is no number that fits 64 bits"),
        ("é", "character 1: found `é`"),
    ] {
        let error = call(text, &inputs, Level::best()).expect_err(text).to_string();
        assert!(error.starts_with(&format!("expr: parameter `expr`, {message}")), "{error}\n not {message}");
    }
    for deep in ["(".repeat(2000), "-".repeat(2000), "sin(".repeat(500)] {
        assert!(
            call(&deep, &inputs, Level::best()).unwrap_err().to_string().contains("nested deeper than 200")
        );
    }
    let long = vec!["a"; 2049].join("+");
    assert!(call(&long, &inputs, Level::best()).unwrap_err().to_string().contains("at most 4096 bytes"));
    // As wide as it may be; too wide for registers and memory slots is only slower.
    let wide = vec!["a"; 2048].join("+");
    assert_eq!(elements::<f64>(&wide, &inputs, Level::best()), [2048.0]);
}

#[test]
fn names_and_the_kind_of_answer_come_from_the_parameters() {
    let check = |given: Value| check_params(KernelId::Expr, given.as_object().unwrap());
    let params = check(json!({"expr": "x - why", "names": ["x", "why"]})).unwrap();
    assert!(output_needed(&params));
    assert_eq!(check_params(KernelId::Expr, &params.to_json()).unwrap(), params);
    let inputs = [array(&[1], &[5.0_f32]), array(&[1], &[3.0_f32])];
    let variant = Variant::new(Level::best(), 0);
    let kernel = KernelId::Expr;
    let outcome = run(&Call { kernel, params: &params, inputs: &inputs, variant, pulse: &() }).unwrap();
    assert_eq!(outcome.array.unwrap().as_slice::<f32>().unwrap(), [2.0]);
    let error =
        run(&Call { kernel, params: &params, inputs: &inputs[..1], variant, pulse: &() }).unwrap_err();
    assert_eq!(error.to_string(), "expr: parameter `names` names 2 arrays, 1 are given");
    assert!(!output_needed(&check(json!({"expr": "sum(x)", "names": "x, y"})).unwrap()));
    for names in [json!(["sin"]), json!(["x", "x"]), json!([]), json!("x,,y"), json!(["x,y", 3])] {
        let error = check(json!({"names": names})).unwrap_err().to_string();
        assert!(
            error.contains("needs a list of at most 16 different names that are no functions"),
            "{error}"
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn code_is_made_once_for_what_means_the_same() {
    use super::code::{Form, compiled};
    let form = |level| Form { level, repeated: 0, streams: false, is_narrow: false };
    for level in compiling() {
        let of =
            |text: &str| compiled(&program(text, &[Type::F64, Type::F64]).unwrap(), form(level)).unwrap();
        let first = of("a*b + 1");
        assert!(std::sync::Arc::ptr_eq(&first, &of("1 + b * a")));
        assert!(!std::sync::Arc::ptr_eq(&first, &of("a*b - 1")));
    }
    assert!(compiled(&program("a", &[Type::F64]).unwrap(), form(Level::Sse2)).is_none());
}
