//! What each kernel is called, takes and gives: the one table that the command line, the job checker, the
//! documentation and the kernels themselves read.

use std::borrow::Cow;

use serde_json::{Map, Number, Value, json};

use super::{KernelError, expr};
use crate::arrays::DType;

/// A kernel. The codes are stable: they travel in messages and stand in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum KernelId {
    /// Matrix product.
    Matmul = 1,
    /// Inner product.
    Dot = 2,
    /// Scaled sum of two arrays.
    Axpy = 3,
    /// Sum, mean, extremes, deviation or norm.
    Reduce = 4,
    /// Ascending order along the last axis.
    Sort = 5,
    /// Fourier transform along the last axis.
    Fft = 6,
    /// Inverse Fourier transform along the last axis.
    Ifft = 7,
    /// Steps of heat flow on a grid.
    Stencil5 = 8,
    /// Nearest neighbours by brute force.
    Knn = 9,
    /// Counts per bin.
    Histogram = 10,
    /// Price of a European call by simulation.
    MonteCarlo = 11,
    /// Nothing.
    Noop = 12,
    /// Waiting.
    Sleep = 13,
    /// An expression, compiled at run time.
    Expr = 14,
    /// Running sums along an axis.
    Cumsum = 15,
    /// Exponentials that add up to 1 along an axis.
    Softmax = 16,
    /// The places of the elements in ascending order.
    Argsort = 17,
    /// The largest or smallest elements, and their places.
    TopK = 18,
    /// A cryptographic digest.
    Hash = 19,
    /// Product of a sparse matrix and a vector.
    Spmv = 20,
    /// The first half of the Fourier transform of real input.
    Rfft = 21,
    /// Convolution of a grid with a small one.
    Convolve2d = 22,
    /// The real array that `rfft` has the transform of.
    Irfft = 23,
    /// Clusters of rows.
    Kmeans = 24,
    /// Rows of bytes to search in.
    Quantize = 25,
}

impl KernelId {
    /// Every kernel, in the order of their codes.
    pub const ALL: [KernelId; 25] = [
        KernelId::Matmul,
        KernelId::Dot,
        KernelId::Axpy,
        KernelId::Reduce,
        KernelId::Sort,
        KernelId::Fft,
        KernelId::Ifft,
        KernelId::Stencil5,
        KernelId::Knn,
        KernelId::Histogram,
        KernelId::MonteCarlo,
        KernelId::Noop,
        KernelId::Sleep,
        KernelId::Expr,
        KernelId::Cumsum,
        KernelId::Softmax,
        KernelId::Argsort,
        KernelId::TopK,
        KernelId::Hash,
        KernelId::Spmv,
        KernelId::Rfft,
        KernelId::Convolve2d,
        KernelId::Irfft,
        KernelId::Kmeans,
        KernelId::Quantize,
    ];

    /// The name in job files.
    pub fn name(self) -> &'static str {
        match self {
            KernelId::Matmul => "matmul",
            KernelId::Dot => "dot",
            KernelId::Axpy => "axpy",
            KernelId::Reduce => "reduce",
            KernelId::Sort => "sort",
            KernelId::Fft => "fft",
            KernelId::Ifft => "ifft",
            KernelId::Stencil5 => "stencil5",
            KernelId::Knn => "knn",
            KernelId::Histogram => "histogram",
            KernelId::MonteCarlo => "monte_carlo",
            KernelId::Noop => "noop",
            KernelId::Sleep => "sleep",
            KernelId::Expr => "expr",
            KernelId::Cumsum => "cumsum",
            KernelId::Softmax => "softmax",
            KernelId::Argsort => "argsort",
            KernelId::TopK => "top_k",
            KernelId::Hash => "hash",
            KernelId::Spmv => "spmv",
            KernelId::Rfft => "rfft",
            KernelId::Convolve2d => "convolve2d",
            KernelId::Irfft => "irfft",
            KernelId::Kmeans => "kmeans",
            KernelId::Quantize => "quantize",
        }
    }

    /// The kernel called `name`.
    pub fn from_name(name: &str) -> Option<KernelId> {
        KernelId::ALL.into_iter().find(|kernel| kernel.name() == name)
    }

    /// The stable code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kernel with this code.
    pub fn from_code(code: u8) -> Option<KernelId> {
        KernelId::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// The known name nearest to a misspelt one, when one is near enough to be meant.
    pub fn nearest_name(name: &str) -> Option<&'static str> {
        nearest(name, KernelId::ALL.into_iter().map(KernelId::name))
    }
}

impl std::fmt::Display for KernelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One kernel's contract.
#[derive(Debug)]
pub struct KernelSpec {
    /// Which one.
    pub id: KernelId,
    /// One sentence for a reader of the help.
    pub about: &'static str,
    /// The arrays it reads, in order.
    pub inputs: &'static [InputSpec],
    /// How many arrays the last of them may be.
    pub repeats: usize,
    /// Element types it takes, the preferred one first; empty when it takes no arrays.
    pub dtypes: &'static [DType],
    /// Whether it yields an array.
    pub output: OutputKind,
    /// Whether it yields a value for the task's `result`.
    pub result: bool,
    /// Its parameters.
    pub params: &'static [ParamSpec],
    /// Names of its alternative algorithms, see [`super::Variant`]; the first is choice 0.
    pub choices: &'static [&'static str],
    /// Whether its code differs from level to level.
    pub levels: bool,
}

impl KernelSpec {
    /// The element types that `input`, one of this kernel's, may have.
    pub fn input_dtypes(&self, input: &InputSpec) -> &'static [DType] {
        if input.dtypes.is_empty() { self.dtypes } else { input.dtypes }
    }
}

/// One input of a kernel.
#[derive(Debug)]
pub struct InputSpec {
    /// What the documentation and the errors call it.
    pub name: &'static str,
    /// Shape and meaning.
    pub about: &'static str,
    /// Element types it may have when they are not those of the kernel; empty when they are.
    pub dtypes: &'static [DType],
    /// Whether it and those after it may be left out.
    pub optional: bool,
}

const fn input(name: &'static str, about: &'static str) -> InputSpec {
    InputSpec { name, about, dtypes: &[], optional: false }
}

/// Whether a kernel yields an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Never; an `output` path is a mistake.
    None,
    /// Always; an `output` path is required.
    Array,
    /// Depending on the parameters: see [`output_needed`].
    Optional,
}

/// One parameter of a kernel.
#[derive(Debug)]
pub struct ParamSpec {
    /// Its key.
    pub name: &'static str,
    /// Type and allowed values.
    pub kind: ParamKind,
    /// Its value when it is not given.
    pub default: ParamValue,
    /// What it means.
    pub about: &'static str,
}

/// Type and allowed values of a parameter. A default of [`ParamValue::Null`] means that `null` may be given,
/// too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParamKind {
    /// A whole number within bounds, both included.
    Int {
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
    },
    /// A finite number within bounds, both included.
    Float {
        /// Least.
        min: f64,
        /// Greatest.
        max: f64,
    },
    /// One of some words.
    Word(
        /// The words.
        &'static [&'static str],
    ),
    /// Any text.
    Text {
        /// Longest, in bytes.
        bytes_max: usize,
    },
    /// Names for the arrays, as a list or separated by commas.
    Names,
}

impl ParamSpec {
    /// The allowed values, for messages and help.
    pub fn allowed(&self) -> String {
        let values = match self.kind {
            ParamKind::Int { min, max: i64::MAX } => format!("a whole number of {min} or more"),
            ParamKind::Int { min: i64::MIN, max } => format!("a whole number of {max} or less"),
            ParamKind::Int { min, max } => format!("a whole number from {min} to {max}"),
            ParamKind::Float { min: f64::MIN, max: f64::MAX } => "a finite number".to_owned(),
            ParamKind::Float { min: f64::MIN_POSITIVE, max: f64::MAX } => "a number above 0".to_owned(),
            ParamKind::Float { min, max: f64::MAX } => format!("a number of {min} or more"),
            ParamKind::Float { min, max } => format!("a number from {min} to {max}"),
            ParamKind::Word(words) => format!("one of {}", words.join(", ")),
            ParamKind::Text { bytes_max } => format!("a text of at most {bytes_max} bytes"),
            ParamKind::Names => {
                format!("a list of at most {} different names that are no functions", expr::NAMES_MAX)
            }
        };
        if self.default == ParamValue::Null { values + ", or null" } else { values }
    }
}

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum ParamValue {
    /// Not given, and that means something of its own.
    Null,
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A word.
    Word(&'static str),
    /// A text; names stand in it separated by commas.
    Text(Cow<'static, str>),
}

impl ParamValue {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        match self {
            ParamValue::Null => Value::Null,
            ParamValue::Int(value) => (*value).into(),
            ParamValue::Float(value) => (*value).into(),
            ParamValue::Word(word) => (*word).into(),
            ParamValue::Text(text) => text.as_ref().into(),
        }
    }
}

/// The checked parameters of one call: every one its kernel has, defaults included.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    kernel: KernelId,
    /// In the order of the kernel's table.
    values: Vec<ParamValue>,
}

impl Params {
    /// All defaults.
    pub fn defaults(kernel: KernelId) -> Params {
        Params { kernel, values: spec(kernel).params.iter().map(|param| param.default.clone()).collect() }
    }

    /// The kernel they are for.
    pub fn kernel(&self) -> KernelId {
        self.kernel
    }

    /// The values that are not the default, as a compact object; [`check_params`] reads it back.
    pub fn to_json(&self) -> Map<String, Value> {
        let given = spec(self.kernel).params.iter().zip(&self.values);
        given
            .filter(|(param, value)| param.default != **value)
            .map(|(param, value)| (param.name.to_owned(), value.to_json()))
            .collect()
    }

    /// The value called `name`, or `Null` when the kernel has none of that name.
    pub fn get(&self, name: &str) -> &ParamValue {
        let index = spec(self.kernel).params.iter().position(|param| param.name == name);
        index.map_or(&ParamValue::Null, |index| &self.values[index])
    }

    /// The whole number called `name`, unless it is null.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            ParamValue::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The count called `name`, never negative.
    pub(super) fn count(&self, name: &str) -> usize {
        self.int(name).and_then(|value| usize::try_from(value).ok()).unwrap_or(0)
    }

    /// The number called `name`, unless it is null.
    pub(super) fn float(&self, name: &str) -> Option<f64> {
        match self.get(name) {
            ParamValue::Float(value) => Some(*value),
            ParamValue::Int(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// The word called `name`, empty when there is none.
    pub(super) fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            ParamValue::Word(word) => word,
            _ => "",
        }
    }

    /// The text called `name`, unless it is null.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            ParamValue::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Parameters that a kernel does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// A name the kernel does not know.
    #[error("{kernel}: unknown parameter `{name}`; {hint}")]
    Unknown {
        /// The kernel.
        kernel: KernelId,
        /// The name found.
        name: String,
        /// The nearest known name, or all of them.
        hint: String,
    },
    /// A value of the wrong type or out of bounds.
    #[error("{kernel}: parameter `{name}` is {found}, needs {allowed}")]
    Bad {
        /// The kernel.
        kernel: KernelId,
        /// The parameter.
        name: &'static str,
        /// The value found, as JSON.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// An expression that does not parse, or not with these arrays.
    #[error("{kernel}: parameter `expr`, character {place}: {problem}")]
    Expression {
        /// The kernel.
        kernel: KernelId,
        /// Which character, from 1.
        place: usize,
        /// What is wrong there.
        problem: String,
    },
}

/// Checks `given` against the kernel's table and fills in the defaults.
///
/// # Errors
/// [`ParamError`] for the first parameter that is unknown or wrong.
pub fn check_params(kernel: KernelId, given: &Map<String, Value>) -> Result<Params, ParamError> {
    let table = spec(kernel).params;
    let mut params = Params::defaults(kernel);
    for (name, value) in given {
        let Some(index) = table.iter().position(|param| param.name == name) else {
            let names = || table.iter().map(|param| param.name);
            let hint = match nearest(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if table.is_empty() => "it takes none".to_owned(),
                None => format!("allowed are {}", names().collect::<Vec<_>>().join(", ")),
            };
            return Err(ParamError::Unknown { kernel, name: name.clone(), hint });
        };
        let param = &table[index];
        params.values[index] = checked(param, value).ok_or_else(|| bad(kernel, param, value))?;
    }
    if kernel == KernelId::Expr {
        expr::check(&params)?;
    }
    // The one rule between two parameters.
    if kernel == KernelId::Histogram
        && let (Some(low), Some(high)) = (params.float("min"), params.float("max"))
        && (low > high || !(high - low).is_finite())
    {
        let allowed = format!("at least `min`, which is {low}, and a finite distance from it");
        return Err(ParamError::Bad { kernel, name: "max", found: high.to_string(), allowed });
    }
    Ok(params)
}

fn bad(kernel: KernelId, param: &ParamSpec, found: &Value) -> ParamError {
    let mut text = found.to_string();
    if text.chars().count() > 60 {
        text = text.chars().take(60).chain("...".chars()).collect();
    }
    ParamError::Bad { kernel, name: param.name, found: text, allowed: param.allowed() }
}

fn checked(param: &ParamSpec, value: &Value) -> Option<ParamValue> {
    match (param.kind, value) {
        (_, Value::Null) => (param.default == ParamValue::Null).then_some(ParamValue::Null),
        (ParamKind::Int { min, max }, Value::Number(number)) => {
            let value = whole(number)?;
            (min..=max).contains(&value).then_some(ParamValue::Int(value))
        }
        (ParamKind::Float { min, max }, Value::Number(number)) => {
            let value = number.as_f64().filter(|value| value.is_finite())?;
            (min..=max).contains(&value).then_some(ParamValue::Float(value))
        }
        (ParamKind::Word(words), Value::String(text)) => {
            words.iter().find(|word| *word == text).map(|word| ParamValue::Word(word))
        }
        (ParamKind::Text { bytes_max }, Value::String(text)) => {
            (text.len() <= bytes_max).then(|| ParamValue::Text(text.clone().into()))
        }
        (ParamKind::Names, Value::String(text)) => {
            let names = text.split(',').map(str::trim).collect::<Vec<_>>().join(",");
            expr::are_names(&names).then(|| ParamValue::Text(names.into()))
        }
        (ParamKind::Names, Value::Array(list)) => {
            let names = list.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(",");
            expr::are_names(&names).then(|| ParamValue::Text(names.into()))
        }
        _ => None,
    }
}

/// A whole number, also when it is written as `10.0`.
fn whole(number: &Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let value = number.as_f64()?;
        // Beyond 2^53 a float no longer says which whole number is meant.
        (value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0).then_some(value as i64)
    })
}

/// The name nearest to `word`, when at most a third of it (or one letter) has to change.
fn nearest(word: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    // A hostile word of a megabyte needs no edit distance.
    if word.len() > 64 {
        return None;
    }
    names
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(distance, name)| *distance <= (name.len().max(word.len()) / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

/// Whether a call with these parameters yields an array.
pub fn output_needed(params: &Params) -> bool {
    match spec(params.kernel).output {
        OutputKind::None => false,
        OutputKind::Array => true,
        OutputKind::Optional if params.kernel == KernelId::Expr => expr::yields_array(params),
        OutputKind::Optional => params.int("axis").is_some(),
    }
}

/// Checks the number of inputs.
///
/// # Errors
/// [`KernelError::InputCount`].
pub fn check_inputs_count(kernel: KernelId, found: usize) -> Result<(), KernelError> {
    let KernelSpec { inputs, repeats, .. } = *spec(kernel);
    let least = inputs.iter().take_while(|input| !input.optional).count();
    let most = inputs.len() + repeats - 1;
    if (least..=most).contains(&found) {
        return Ok(());
    }
    let names = inputs.iter().map(|input| input.name).collect::<Vec<_>>().join(", ");
    let needed = if least == most { least.to_string() } else { format!("{least} to {most}") };
    Err(KernelError::InputCount { kernel, found, needed, names })
}

/// The whole table as JSON, for help and for the API.
pub fn describe(kernel: KernelId) -> Value {
    let spec = spec(kernel);
    let names = |dtypes: &[DType]| dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>();
    json!({
        "kernel": spec.id.name(),
        "about": spec.about,
        "inputs": spec.inputs.iter().map(|input| json!({
            "name": input.name,
            "about": input.about,
            "dtypes": names(spec.input_dtypes(input)),
            "optional": input.optional,
        })).collect::<Vec<_>>(),
        "dtypes": names(spec.dtypes),
        "output": match spec.output {
            OutputKind::None => "none",
            OutputKind::Array => "array",
            OutputKind::Optional => "optional",
        },
        "result": spec.result,
        "params": spec.params.iter().map(|param| json!({
            "name": param.name,
            "allowed": param.allowed(),
            "default": param.default.to_json(),
            "about": param.about,
        })).collect::<Vec<_>>(),
    })
}

const FLOATS: &[DType] = &[DType::F32, DType::F64];
const REALS: &[DType] = &[DType::F32, DType::F64, DType::I32, DType::I64, DType::U8, DType::U32, DType::U64];
const PLACES: &[DType] = &[DType::I32, DType::I64];
const SPECTRA: &[DType] = &[DType::C64, DType::C128, DType::F32, DType::F64];
const ANY_FLOAT: ParamKind = ParamKind::Float { min: f64::MIN, max: f64::MAX };
const ABOVE_ZERO: ParamKind = ParamKind::Float { min: f64::MIN_POSITIVE, max: f64::MAX };
const NOT_NEGATIVE: ParamKind = ParamKind::Float { min: 0.0, max: f64::MAX };
const AXIS: ParamKind = ParamKind::Int { min: -64, max: 63 };
const AXES: ParamSpec = ParamSpec {
    name: "axes",
    kind: ParamKind::Int { min: 1, max: 2 },
    default: ParamValue::Int(1),
    about: "how many of the last axes are transformed; all others are a batch",
};
const ONE: &[&str] = &["only"];

/// The contract of `kernel`.
pub fn spec(kernel: KernelId) -> &'static KernelSpec {
    &SPECS[usize::from(kernel.code()) - 1]
}

static SPECS: [KernelSpec; 25] = [
    KernelSpec {
        id: KernelId::Matmul,
        about: "matrix products of a (m, k) and b (k, n), one or a batch",
        inputs: &[
            input("a", "matrix (m, k), or (k, m) if transposed; axes before these two are a batch"),
            input(
                "b",
                "matrix (k, n), or (n, k) if transposed, same dtype; the same batch, or no axes for one",
            ),
        ],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: false,
        params: &[ParamSpec {
            name: "transpose",
            kind: ParamKind::Word(&["none", "a", "b", "both"]),
            default: ParamValue::Word("none"),
            about: "which of the two lie there transposed",
        }],
        choices: &["library", "blocked"],
        levels: true,
    },
    KernelSpec {
        id: KernelId::Dot,
        about: "inner product of two vectors, added in 64 bits",
        inputs: &[input("x", "vector (n,)"), input("y", "vector (n,), same dtype")],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::None,
        result: true,
        params: &[],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Axpy,
        about: "alpha * x + y, element by element",
        inputs: &[input("x", "array of any shape"), input("y", "array of the same shape and dtype")],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: false,
        params: &[ParamSpec {
            name: "alpha",
            kind: ANY_FLOAT,
            default: ParamValue::Float(1.0),
            about: "factor of x",
        }],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Reduce,
        about: "one number from an array, or from each line along an axis",
        inputs: &[input("x", "array of any shape; integers for sum, mean, min and max")],
        repeats: 1,
        dtypes: REALS,
        output: OutputKind::Optional,
        result: true,
        params: &[
            ParamSpec {
                name: "op",
                kind: ParamKind::Word(&["sum", "mean", "min", "max", "std", "norm2"]),
                default: ParamValue::Word("sum"),
                about: "what to compute; std divides by n",
            },
            ParamSpec {
                name: "axis",
                kind: AXIS,
                default: ParamValue::Null,
                about: "axis to remove, counted from the end when negative; null for all of them",
            },
        ],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Sort,
        about: "ascending order along the last axis, NaN last",
        inputs: &[input("x", "array of one axis or more")],
        repeats: 1,
        dtypes: REALS,
        output: OutputKind::Array,
        result: false,
        params: &[],
        choices: &["comparing", "radix", "vector"],
        levels: true,
    },
    KernelSpec {
        id: KernelId::Fft,
        about: "discrete Fourier transform along the last axis or the last two",
        inputs: &[input("x", "array of one axis or more; real input is promoted")],
        repeats: 1,
        dtypes: SPECTRA,
        output: OutputKind::Array,
        result: false,
        params: &[AXES],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Ifft,
        about: "inverse discrete Fourier transform along the last axis or the last two, divided by their length",
        inputs: &[input("x", "array of one axis or more; real input is promoted")],
        repeats: 1,
        dtypes: SPECTRA,
        output: OutputKind::Array,
        result: false,
        params: &[AXES],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Stencil5,
        about: "steps of heat flow on a grid with a fixed border",
        inputs: &[input("u", "grid (rows, columns)")],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: false,
        params: &[
            ParamSpec {
                name: "steps",
                kind: ParamKind::Int { min: 0, max: 1_000_000_000 },
                default: ParamValue::Int(1),
                about: "number of sweeps",
            },
            ParamSpec {
                name: "alpha",
                kind: ANY_FLOAT,
                default: ParamValue::Float(0.1),
                about: "share that flows per sweep; stable up to 0.25",
            },
        ],
        choices: &["plain", "blocked"],
        levels: true,
    },
    KernelSpec {
        id: KernelId::Knn,
        about: "the k rows of a corpus nearest to each query, with their scores beside the output",
        inputs: &[
            input("queries", "matrix (q, d)"),
            input("corpus", "matrix (n, d), same dtype"),
            InputSpec {
                name: "codes",
                about: "what quantize made of the corpus, (n, d); few queries are found in it several times faster",
                dtypes: &[DType::U8],
                optional: true,
            },
            InputSpec {
                name: "bounds",
                about: "what quantize wrote beside that, (n, 3); both or neither",
                dtypes: &[DType::F32],
                optional: true,
            },
        ],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: true,
        params: &[
            ParamSpec {
                name: "k",
                kind: ParamKind::Int { min: 1, max: i64::MAX },
                default: ParamValue::Int(10),
                about: "neighbours per query, at most n",
            },
            ParamSpec {
                name: "metric",
                kind: ParamKind::Word(&["cosine", "l2", "ip"]),
                default: ParamValue::Word("cosine"),
                about: "cosine similarity or inner product (larger is nearer), or Euclidean distance",
            },
        ],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Histogram,
        about: "counts in equal bins, the last one closed",
        inputs: &[input("x", "array of any shape")],
        repeats: 1,
        dtypes: REALS,
        output: OutputKind::Array,
        result: true,
        params: &[
            ParamSpec {
                name: "bins",
                kind: ParamKind::Int { min: 1, max: 1 << 24 },
                default: ParamValue::Int(256),
                about: "number of bins",
            },
            ParamSpec {
                name: "min",
                kind: ANY_FLOAT,
                default: ParamValue::Null,
                about: "left edge of the first bin; null for the least element",
            },
            ParamSpec {
                name: "max",
                kind: ANY_FLOAT,
                default: ParamValue::Null,
                about: "right edge of the last bin; null for the greatest element",
            },
        ],
        choices: &["one_table", "sub_tables"],
        levels: true,
    },
    KernelSpec {
        id: KernelId::MonteCarlo,
        about: "price of a European call under Black and Scholes, simulated and in closed form",
        inputs: &[],
        repeats: 1,
        dtypes: &[],
        output: OutputKind::None,
        result: true,
        params: &[
            ParamSpec {
                name: "spot",
                kind: ABOVE_ZERO,
                default: ParamValue::Float(100.0),
                about: "price of the underlying now",
            },
            ParamSpec {
                name: "strike",
                kind: ABOVE_ZERO,
                default: ParamValue::Float(105.0),
                about: "price it may be bought at",
            },
            ParamSpec {
                name: "rate",
                kind: ParamKind::Float { min: -10.0, max: 10.0 },
                default: ParamValue::Float(0.03),
                about: "continuously compounded interest per year",
            },
            ParamSpec {
                name: "volatility",
                kind: NOT_NEGATIVE,
                default: ParamValue::Float(0.2),
                about: "per square root of a year",
            },
            ParamSpec {
                name: "maturity",
                kind: NOT_NEGATIVE,
                default: ParamValue::Float(1.0),
                about: "years until the option ends",
            },
            ParamSpec {
                name: "paths",
                kind: ParamKind::Int { min: 2, max: 1_000_000_000_000 },
                default: ParamValue::Int(1_000_000),
                about: "simulated outcomes",
            },
            ParamSpec {
                name: "seed",
                kind: ParamKind::Int { min: 0, max: i64::MAX },
                default: ParamValue::Int(42),
                about: "the same seed gives the same outcomes",
            },
        ],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Noop,
        about: "nothing: the cost of a task itself",
        inputs: &[],
        repeats: 1,
        dtypes: &[],
        output: OutputKind::None,
        result: false,
        params: &[],
        choices: ONE,
        levels: false,
    },
    KernelSpec {
        id: KernelId::Sleep,
        about: "waits",
        inputs: &[],
        repeats: 1,
        dtypes: &[],
        output: OutputKind::None,
        result: false,
        params: &[ParamSpec {
            name: "seconds",
            kind: ParamKind::Float { min: 0.0, max: 86_400.0 },
            default: ParamValue::Float(0.001),
            about: "how long",
        }],
        choices: ONE,
        levels: false,
    },
    KernelSpec {
        id: KernelId::Expr,
        about: "an expression over arrays in one pass, compiled for this processor at run time",
        inputs: &[input("arrays", "up to 16 arrays that broadcast, called a, b, c and so on or by `names`")],
        repeats: expr::NAMES_MAX,
        dtypes: &[DType::F32, DType::F64, DType::I32, DType::I64],
        output: OutputKind::Optional,
        result: true,
        params: &[
            ParamSpec {
                name: "expr",
                kind: ParamKind::Text { bytes_max: expr::TEXT_BYTES_MAX },
                default: ParamValue::Text(Cow::Borrowed("a")),
                about: "+ - * / **, comparisons, & | ~, where abs min max sqrt exp log sin cos tanh floor ceil, \
                        casts f32 f64 i32 i64 bool; outermost also sum mean min max any all, which give a value",
            },
            ParamSpec {
                name: "names",
                kind: ParamKind::Names,
                default: ParamValue::Null,
                about: "what the expression calls the arrays, in order; null for a, b, c and so on",
            },
        ],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Cumsum,
        about: "running sums along an axis; integers are added in 64 bits",
        inputs: &[input("x", "array of any shape")],
        repeats: 1,
        dtypes: REALS,
        output: OutputKind::Array,
        result: false,
        params: &[ParamSpec {
            name: "axis",
            kind: AXIS,
            default: ParamValue::Null,
            about: "axis to add along, counted from the end when negative; null for the flattened array",
        }],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Softmax,
        about: "exponentials of the elements, divided by their sum along an axis",
        inputs: &[input("x", "array of one axis or more")],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: false,
        params: &[ParamSpec {
            name: "axis",
            kind: AXIS,
            default: ParamValue::Int(-1),
            about: "axis along which the answer adds up to 1, counted from the end when negative",
        }],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Argsort,
        about: "places of the elements in ascending order along the last axis, equal ones in theirs, NaN last",
        inputs: &[input("x", "array of one axis or more")],
        repeats: 1,
        dtypes: REALS,
        output: OutputKind::Array,
        result: false,
        params: &[],
        choices: &["comparing", "radix"],
        levels: false,
    },
    KernelSpec {
        id: KernelId::TopK,
        about: "the k largest or smallest along the last axis, best first, with their places beside the output",
        inputs: &[input("x", "array of one axis or more")],
        repeats: 1,
        dtypes: REALS,
        output: OutputKind::Array,
        result: true,
        params: &[
            ParamSpec {
                name: "k",
                kind: ParamKind::Int { min: 1, max: i64::MAX },
                default: ParamValue::Int(10),
                about: "how many, at most the length of the last axis",
            },
            ParamSpec {
                name: "order",
                kind: ParamKind::Word(&["largest", "smallest"]),
                default: ParamValue::Word("largest"),
                about: "which ones; of equal elements the first, NaN last of all",
            },
        ],
        choices: ONE,
        levels: false,
    },
    KernelSpec {
        id: KernelId::Hash,
        about: "digest of the elements' bytes in C order, little-endian, in hexadecimal",
        inputs: &[input("x", "array of any shape")],
        repeats: 1,
        dtypes: &DType::ALL,
        output: OutputKind::None,
        result: true,
        params: &[ParamSpec {
            name: "algorithm",
            kind: ParamKind::Word(&["sha256", "blake3"]),
            default: ParamValue::Word("sha256"),
            about: "which function; blake3 is several times faster",
        }],
        choices: ONE,
        levels: false,
    },
    KernelSpec {
        id: KernelId::Spmv,
        about: "product of a sparse matrix, in compressed rows as SciPy's `csr_array` has them, and a vector",
        inputs: &[
            input("data", "vector (nnz,), the elements row by row"),
            InputSpec {
                name: "indices",
                about: "vector (nnz,), the column of each",
                dtypes: PLACES,
                optional: false,
            },
            InputSpec {
                name: "indptr",
                about: "vector (rows + 1,), same dtype: row i is elements indptr[i] to indptr[i + 1]",
                dtypes: PLACES,
                optional: false,
            },
            input("x", "vector (columns,), dtype of data"),
        ],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: false,
        params: &[],
        choices: ONE,
        levels: false,
    },
    KernelSpec {
        id: KernelId::Rfft,
        about: "first half, n / 2 + 1, of the Fourier transform of real input along the last axis, or the last two",
        inputs: &[input("x", "array of one axis or more")],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: false,
        params: &[AXES],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Convolve2d,
        about: "convolution of a grid with a smaller one, zero beyond the border",
        inputs: &[input("x", "grid (rows, columns)"), input("w", "weights (height, width), same dtype")],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: false,
        params: &[ParamSpec {
            name: "mode",
            kind: ParamKind::Word(&["full", "same", "valid"]),
            default: ParamValue::Word("full"),
            about: "all sums, those in the middle as many as x has, or those without a border; as in SciPy",
        }],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Irfft,
        about: "real array of which the input is what rfft gives, along the last axis or the last two",
        inputs: &[input("x", "array of one axis or more, the last of m elements; real input is promoted")],
        repeats: 1,
        dtypes: SPECTRA,
        output: OutputKind::Array,
        result: false,
        params: &[
            AXES,
            ParamSpec {
                name: "n",
                kind: ParamKind::Int { min: 1, max: i64::MAX },
                default: ParamValue::Null,
                about: "last length of the answer, of n / 2 + 1 elements: more are cut off, missing ones are 0; \
                        null for 2 (m - 1)",
            },
        ],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Kmeans,
        about: "k centroids of the rows of a matrix by Lloyd's algorithm, with each row's label beside the output",
        inputs: &[input("x", "matrix (n, d) of finite numbers")],
        repeats: 1,
        dtypes: FLOATS,
        output: OutputKind::Array,
        result: true,
        params: &[
            ParamSpec {
                name: "k",
                kind: ParamKind::Int { min: 1, max: 1 << 24 },
                default: ParamValue::Int(8),
                about: "number of clusters, at most n",
            },
            ParamSpec {
                name: "seed",
                kind: ParamKind::Int { min: 0, max: i64::MAX },
                default: ParamValue::Int(42),
                about: "the same seed picks the same rows as first centroids, by k-means++",
            },
            ParamSpec {
                name: "max_iterations",
                kind: ParamKind::Int { min: 0, max: 1_000_000_000 },
                default: ParamValue::Int(300),
                about: "times that the centroids move at most; 0 for the first centroids",
            },
            ParamSpec {
                name: "tolerance",
                kind: NOT_NEGATIVE,
                default: ParamValue::Float(1e-4),
                about: "ends when the squares of a step's movements add up to at most this share of the columns' mean \
                        variance; 0 for when no row changes its cluster",
            },
        ],
        choices: ONE,
        levels: true,
    },
    KernelSpec {
        id: KernelId::Quantize,
        about: "rows of bytes for knn to search in, with the bounds of their errors beside the output",
        inputs: &[input("x", "matrix (n, d), the corpus")],
        repeats: 1,
        dtypes: &[DType::F32],
        output: OutputKind::Array,
        result: false,
        params: &[],
        choices: ONE,
        levels: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kernel: KernelId, given: Value) -> Result<Params, String> {
        check_params(kernel, given.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_table_is_in_the_order_of_the_codes() {
        for kernel in KernelId::ALL {
            assert_eq!(spec(kernel).id, kernel);
            assert_eq!(KernelId::from_code(kernel.code()), Some(kernel));
            assert_eq!(KernelId::from_name(kernel.name()), Some(kernel));
            assert!(!spec(kernel).choices.is_empty());
            // Every default passes its own check.
            for param in spec(kernel).params {
                assert_eq!(
                    checked(param, &param.default.to_json()),
                    Some(param.default.clone()),
                    "{}",
                    param.name
                );
            }
            assert!(describe(kernel)["about"].is_string());
        }
        assert_eq!((KernelId::from_code(0), KernelId::from_code(26)), (None, None));
        assert_eq!(KernelId::nearest_name("matmull"), Some("matmul"));
        assert_eq!(KernelId::nearest_name("frobnicate"), None);
    }

    #[test]
    fn given_values_travel_and_defaults_do_not() {
        let params = check(KernelId::Reduce, json!({"op": "max", "axis": -1})).unwrap();
        assert_eq!((params.word("op"), params.int("axis")), ("max", Some(-1)));
        assert_eq!(Value::Object(params.to_json()), json!({"op": "max", "axis": -1}));
        assert_eq!(check_params(KernelId::Reduce, &params.to_json()).unwrap(), params);
        assert!(Params::defaults(KernelId::MonteCarlo).to_json().is_empty());
        let whole = check(KernelId::Knn, json!({"k": 3.0})).unwrap();
        assert_eq!(whole.int("k"), Some(3));
        assert_eq!(check(KernelId::Axpy, json!({"alpha": 2})).unwrap().float("alpha"), Some(2.0));
    }

    #[test]
    fn mistakes_name_what_was_found_and_what_is_allowed() {
        for (kernel, given, message) in [
            (KernelId::Reduce, json!({"opp": "sum"}), "reduce: unknown parameter `opp`; did you mean `op`?"),
            (KernelId::Knn, json!({"colour": 1}), "knn: unknown parameter `colour`; allowed are k, metric"),
            (KernelId::Noop, json!({"x": 1}), "noop: unknown parameter `x`; it takes none"),
            (
                KernelId::Knn,
                json!({"metric": "L2"}),
                "knn: parameter `metric` is \"L2\", needs one of cosine, l2, ip",
            ),
            (KernelId::Knn, json!({"k": 0}), "knn: parameter `k` is 0, needs a whole number of 1 or more"),
            (
                KernelId::Knn,
                json!({"k": 2.5}),
                "knn: parameter `k` is 2.5, needs a whole number of 1 or more",
            ),
            (
                KernelId::Knn,
                json!({"k": null}),
                "knn: parameter `k` is null, needs a whole number of 1 or more",
            ),
            (KernelId::Sleep, json!({"seconds": -1}), "needs a number from 0 to 86400"),
            (
                KernelId::Axpy,
                json!({"alpha": "2"}),
                "axpy: parameter `alpha` is \"2\", needs a finite number",
            ),
            (KernelId::Reduce, json!({"axis": 64}), "needs a whole number from -64 to 63, or null"),
            (KernelId::MonteCarlo, json!({"spot": 0}), "needs a number above 0"),
            (KernelId::Histogram, json!({"min": 2, "max": 1}), "parameter `max` is 1, needs at least `min`"),
        ] {
            let found = check(kernel, given).unwrap_err();
            assert!(found.contains(message), "{found}\n not {message}");
        }
    }

    #[test]
    fn a_wrong_number_of_inputs_names_the_right_ones() {
        assert!(check_inputs_count(KernelId::Matmul, 2).is_ok());
        let error = check_inputs_count(KernelId::Matmul, 1).unwrap_err().to_string();
        assert_eq!(error, "matmul: 1 inputs, needs 2 (a, b)");
    }
}
