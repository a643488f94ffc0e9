//! Recorded traces, read from text: who came when with how much work, or how fast machines were from hour to hour. A
//! [`Scenario`](super::Scenario) makes worlds of them.
//!
//! 1. [`Trace::parse`] knows a file's kind by the columns of its header ([`KINDS`]); their order does not matter, and columns
//!    that nobody reads are passed over.
//! 2. A world takes a window of it from a place that its seed picks. Behind the last row the first one follows.
//! 3. Recorded times are seconds to months, those of worlds milliseconds. Arrivals are compressed until the load is the
//!    wanted one, tasks until their mean is that of the scenarios, and a record of a machine's speed lasts [`RECORD_NS`].
//!
//! Invariants
//! 1. Whatever the bytes are, the answer is a trace or an error that names the line; memory stays in proportion to the file.
//! 2. A trace has two moments at least that differ, and work that is more than nothing.

use super::World;
use super::scenario::{KERNELS, Pace};
use crate::base::prng::SplitMix64;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Larger files are refused.
pub const BYTES_MAX: usize = 64 << 20;
/// As are those with more rows.
pub const ROWS_MAX: usize = 1_000_000;
/// And those with more columns.
const COLUMNS_MAX: usize = 64;

/// The mean of the scenarios' tasks: what the mean task of a trace is scaled to, in elements or on one core, ns.
const MEAN_ELEMENTS: f64 = 7_100.0;
const MEAN_CORE_NS: f64 = 25_000.0;
/// How long a record of a machine's speed lasts in a world, ns: some ten tasks, so that there is something to learn from it
/// before the next one.
pub const RECORD_NS: u64 = 1_000_000;
/// No recorded machine is faster or slower than this against its usual speed.
const SPEEDS: RangeInclusive<f64> = 0.03..=4.0;

/// A kind of trace: its name, the columns that are read, and what they are taken for.
pub struct Kind {
    /// What it is called in words to people.
    pub name: &'static str,
    /// The columns that its header must have.
    pub columns: &'static [&'static str],
    /// What is made of them.
    pub meaning: &'static str,
    read: fn(&Rows) -> Result<Recorded, TraceError>,
}

/// All kinds.
pub const KINDS: [Kind; 5] = [
    Kind {
        name: "azure_llm",
        columns: &["t_us", "context_tokens", "generated_tokens"],
        meaning: "requests: when, and both counts of tokens together as size",
        read: requests,
    },
    Kind {
        name: "pwa_nasa",
        columns: &["submit_s", "run_s", "user", "app"],
        meaning: "batch jobs: when, time on a core, and the app or else the user as kernel",
        read: batch_jobs,
    },
    Kind {
        name: "azure_functions",
        columns: &["func_id", "end_s", "duration_s"],
        meaning: "calls: when they began, time on a core, and the function as kernel",
        read: calls,
    },
    Kind {
        name: "azure_vm_noise",
        columns: &["bench", "sku", "vm", "t_h", "speed_rel"],
        meaning: "speeds of machines for compute-, cache- and bandwidth-bound work (bench cpu, cache, membw)",
        read: machines,
    },
    Kind {
        name: "alibaba_minibatch",
        columns: &["iteration", "worker", "batch_time_norm"],
        meaning: "times of workers' batches: their median over each is a speed",
        read: workers,
    },
];

/// One file.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The file's name without its ending, which rows of tables carry.
    pub name: String,
    /// Its kind's name.
    pub kind: &'static str,
    recorded: Recorded,
}

#[derive(Clone, Debug)]
enum Recorded {
    /// In order of arrival.
    Tasks(Vec<Arrival>),
    Speeds(Speeds),
}

/// One task.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at_s: f64,
    amount: Amount,
    /// Tasks with the same one are of the same kernel; `None`: the trace does not tell.
    key: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Amount {
    Elements(f64),
    OnCore(f64),
}

impl Amount {
    fn number(self) -> f64 {
        match self {
            Amount::Elements(number) | Amount::OnCore(number) => number,
        }
    }
}

/// When (in the trace's own unit), and how fast from then on.
type Series = Vec<(f64, f64)>;

#[derive(Clone, Debug)]
struct Speeds {
    /// By machine, then by what bounds a kernel.
    machines: Vec<[Series; 3]>,
    first: f64,
    last: f64,
    /// The median time between two records.
    gap: f64,
}

/// What a world hears of one recorded task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    /// Time since the one before it, in a unit of its own.
    pub gap: f64,
    /// Which kernel, if the trace tells.
    pub kernel: Option<u8>,
    pub size: Size,
}

/// How much work a recorded task is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Size {
    Elements(f64),
    /// So long on a core of speed 1.
    CoreNs(f64),
}

impl Trace {
    /// Reads the text of a file; the file itself is not touched, its name is for errors and tables.
    pub fn parse(file: &Path, text: &[u8]) -> Result<Self, TraceError> {
        let rows = Rows::new(file, text)?;
        let stem = file.file_stem().unwrap_or(file.as_os_str());
        let recorded = (rows.kind.read)(&rows)?;
        Ok(Self { name: stem.to_string_lossy().into_owned(), kind: rows.kind.name, recorded })
    }

    /// How its times became those of these worlds, in words.
    pub fn tempo(&self, worlds: &[World]) -> String {
        match &self.recorded {
            Recorded::Tasks(tasks) => {
                let gaps = worlds.iter().map(|world| world.jobs.last().map_or(0.0, |job| job.at_ns as f64));
                let jobs: usize = worlds.iter().map(|world| world.jobs.len()).sum();
                let second_ns = gaps.sum::<f64>() / jobs as f64 / mean_gap_s(tasks);
                let rows = tasks.len();
                format!("arrivals compressed to that load: a second of {rows} tasks lasts {second_ns:.3} ns")
            }
            Recorded::Speeds(speeds) => {
                let (count, record) = (speeds.machines.len(), RECORD_NS / 1_000_000);
                format!("speeds of {count} machines compressed: a record lasts {record} ms")
            }
        }
    }

    /// So many tasks in a row from any place on; `None` if it is about something else.
    pub(super) fn tasks(&self, count: usize, random: &mut SplitMix64) -> Option<Vec<Task>> {
        let Recorded::Tasks(tasks) = &self.recorded else { return None };
        let (start, salt) = (random.below(tasks.len() as u64) as usize, random.next_u64());
        let mean_gap = mean_gap_s(tasks);
        let mean = tasks.iter().map(|task| task.amount.number()).sum::<f64>() / tasks.len() as f64;
        let task = |at: usize| {
            let Arrival { at_s, amount, key } = tasks[at];
            Task {
                gap: if at == 0 { mean_gap } else { at_s - tasks[at - 1].at_s },
                kernel: key.map(|key| SplitMix64::new(salt ^ key).below(u64::from(KERNELS)) as u8),
                size: match amount {
                    Amount::Elements(number) => Size::Elements(number / mean * MEAN_ELEMENTS),
                    Amount::OnCore(number) => Size::CoreNs(number / mean * MEAN_CORE_NS),
                },
            }
        };
        Some((start..start + count).map(|at| task(at % tasks.len())).collect())
    }

    /// Factors for so many agents, by what bounds a kernel, for `span_ns` at least; `None` if it is about something else.
    pub(super) fn paces(
        &self,
        agents: usize,
        span_ns: u64,
        random: &mut SplitMix64,
    ) -> Option<Vec<[Vec<Pace>; 3]>> {
        let Recorded::Speeds(speeds) = &self.recorded else { return None };
        let mut order: Vec<usize> = (0..speeds.machines.len()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at as u64 + 1) as usize);
        }
        // Agents share a window, as machines share their troubles. Where there are more agents than machines the others
        // have a window of their own.
        let mut start = 0.0;
        let mut paces = |agent: usize| {
            if agent.is_multiple_of(order.len()) {
                start = speeds.first + random.next_f64() * (speeds.last - speeds.first);
            }
            let machine = &speeds.machines[order[agent % order.len()]];
            [0, 1, 2].map(|bound| speeds.replay(&machine[bound], start, span_ns))
        };
        Some((0..agents).map(&mut paces).collect())
    }
}

fn mean_gap_s(tasks: &[Arrival]) -> f64 {
    (tasks[tasks.len() - 1].at_s - tasks[0].at_s) / (tasks.len() - 1) as f64
}

impl Speeds {
    fn new(rows: &Rows, by_name: BTreeMap<String, [Series; 3]>) -> Result<Self, TraceError> {
        let mut machines: Vec<[Series; 3]> = by_name.into_values().collect();
        let mut gaps = Vec::new();
        for series in machines.iter_mut().flatten() {
            series.sort_by(|a, b| a.0.total_cmp(&b.0));
            series.dedup_by_key(|record| record.0);
            gaps.extend(series.windows(2).map(|pair| pair[1].0 - pair[0].0));
        }
        if gaps.is_empty() {
            let what = "a machine with two records at different times";
            return Err(TraceError::Lacks { file: rows.file.into(), what });
        }
        let middle = gaps.len() / 2;
        let gap = *gaps.select_nth_unstable_by(middle, f64::total_cmp).1;
        let times = || machines.iter().flatten().flatten().map(|record| record.0);
        let (first, last) = (times().fold(f64::MAX, f64::min), times().fold(f64::MIN, f64::max));
        Ok(Self { machines, first, last, gap })
    }

    fn replay(&self, series: &Series, start: f64, span_ns: u64) -> Vec<Pace> {
        let mut paces: Vec<Pace> = Vec::new();
        let Some(latest) = series.last() else { return paces };
        paces.push(Pace { from_ns: 0, factor: latest.1 });
        let ns = RECORD_NS as f64 / self.gap;
        let lap = self.last - self.first + self.gap;
        // What is behind when the last task has come takes time as well.
        let end_ns = 2.0 * span_ns as f64;
        for turn in 0.. {
            for &(at, factor) in series {
                let from_ns = (at - start + f64::from(turn) * lap) * ns;
                if from_ns > end_ns {
                    return paces;
                }
                let from_ns = from_ns.max(0.0) as u64;
                match paces.last_mut() {
                    // Records may lie closer than tasks could tell.
                    Some(last) if from_ns < last.from_ns + RECORD_NS / 8 => last.factor = factor,
                    _ => paces.push(Pace { from_ns, factor }),
                }
            }
        }
        paces
    }
}

fn requests(rows: &Rows) -> Result<Recorded, TraceError> {
    tasks(rows, |row| {
        let tokens = row.count("context_tokens")? + row.count("generated_tokens")?;
        let amount = Amount::Elements(tokens);
        Ok(Some(Arrival { at_s: row.number("t_us", 0.0..=1e18)? / 1e6, amount, key: None }))
    })
}

fn batch_jobs(rows: &Rows) -> Result<Recorded, TraceError> {
    tasks(rows, |row| {
        let at_s = row.number("submit_s", 0.0..=1e12)?;
        let (user, app) = (row.word("user")?, row.word("app")?);
        let run_s = row.number("run_s", -1.0..=1e9)?;
        // -1 is "unknown" in that archive.
        if run_s < 0.0 {
            return if run_s == -1.0 {
                Ok(None)
            } else {
                Err(row.wrong("run_s", "-1 (unknown) or 0 and above"))
            };
        }
        let key = if app == "-1" { hash("user", user) } else { hash("app", app) };
        Ok(Some(Arrival { at_s, amount: Amount::OnCore(run_s), key: Some(key) }))
    })
}

fn calls(rows: &Rows) -> Result<Recorded, TraceError> {
    tasks(rows, |row| {
        let duration_s = row.number("duration_s", 0.0..=1e9)?;
        let at_s = row.number("end_s", 0.0..=1e12)? - duration_s;
        let key = Some(hash("function", row.word("func_id")?));
        Ok(Some(Arrival { at_s, amount: Amount::OnCore(duration_s), key }))
    })
}

/// The rows of which `read` makes tasks, in order of arrival.
fn tasks(
    rows: &Rows,
    read: impl Fn(&Row) -> Result<Option<Arrival>, TraceError>,
) -> Result<Recorded, TraceError> {
    let mut tasks = Vec::new();
    rows.each(|row| {
        tasks.extend(read(row)?);
        Ok(())
    })?;
    tasks.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    let lacks = |what| Err(TraceError::Lacks { file: rows.file.into(), what });
    match &tasks[..] {
        [first, .., last] if first.at_s < last.at_s => {}
        _ => return lacks("two tasks that come at different times"),
    }
    if !tasks.iter().any(|task| task.amount.number() > 0.0) {
        return lacks("a task that is more than nothing");
    }
    Ok(Recorded::Tasks(tasks))
}

fn machines(rows: &Rows) -> Result<Recorded, TraceError> {
    let mut by_name: BTreeMap<String, [Series; 3]> = BTreeMap::new();
    rows.each(|row| {
        let name = format!("{}\n{}", row.word("sku")?, row.word("vm")?);
        let record = (row.number("t_h", 0.0..=1e9)?, row.number("speed_rel", 1e-6..=1e6)?);
        // Other benchmarks say nothing of one core.
        let bounds = ["cpu", "cache", "membw"];
        if let Some(bound) = bounds.iter().position(|name| row.word("bench") == Ok(*name)) {
            let (from, speed) = record;
            by_name.entry(name).or_default()[bound].push((from, speed.clamp(*SPEEDS.start(), *SPEEDS.end())));
        }
        row.word("bench").map(|_| ())
    })?;
    Ok(Recorded::Speeds(Speeds::new(rows, by_name)?))
}

fn workers(rows: &Rows) -> Result<Recorded, TraceError> {
    let mut by_name: BTreeMap<String, Series> = BTreeMap::new();
    let mut times = Vec::new();
    rows.each(|row| {
        let (at, time) = (row.number("iteration", 0.0..=1e12)?, row.number("batch_time_norm", 0.0..=1e6)?);
        by_name.entry(row.word("worker")?.to_owned()).or_default().push((at, time));
        times.push(time);
        Ok(())
    })?;
    let middle = times.len() / 2;
    // What a batch usually takes is speed 1. Where that is nothing, nobody is slower than usual.
    let usual = times.select_nth_unstable_by(middle, f64::total_cmp).1.max(f64::MIN_POSITIVE);
    let speed = |(at, time): (f64, f64)| (at, (usual / time).clamp(*SPEEDS.start(), *SPEEDS.end()));
    let slow_at_all = |series: Series| {
        let speeds: Series = series.into_iter().map(speed).collect();
        [speeds.clone(), speeds.clone(), speeds]
    };
    let by_name = by_name.into_iter().map(|(name, series)| (name, slow_at_all(series))).collect();
    Ok(Recorded::Speeds(Speeds::new(rows, by_name)?))
}

/// FNV-1a.
fn hash(what: &str, word: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    what.bytes().chain(*b"\n").chain(word.bytes()).fold(0xCBF2_9CE4_8422_2325, step)
}

/// A file whose header is known.
struct Rows<'a> {
    file: &'a Path,
    kind: &'static Kind,
    columns: Vec<&'a str>,
    text: &'a [u8],
}

/// One line of it below the header.
struct Row<'a> {
    rows: &'a Rows<'a>,
    line: usize,
    fields: Vec<&'a str>,
}

impl<'a> Rows<'a> {
    fn new(file: &'a Path, text: &'a [u8]) -> Result<Self, TraceError> {
        if text.len() > BYTES_MAX {
            return Err(TraceError::TooLarge { file: file.into() });
        }
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        let Some((line, header)) = lines(text).next() else {
            return Err(TraceError::Lacks { file: file.into(), what: "a header and rows; it is empty" });
        };
        let unknown = |found: &str| TraceError::Unknown { file: file.into(), line, found: short(found) };
        let header = std::str::from_utf8(header).map_err(|_| unknown("bytes that are no text"))?;
        let columns: Vec<&str> = header.split(',').map(str::trim).take(COLUMNS_MAX + 1).collect();
        let has = |column: &&str| columns.contains(column);
        let Some(kind) = KINDS.iter().find(|kind| kind.columns.iter().all(has)) else {
            return Err(unknown(header));
        };
        if columns.len() > COLUMNS_MAX {
            return Err(unknown("more than 64 columns"));
        }
        let twice = |column: &&&str| columns.iter().filter(|other| other == column).count() > 1;
        if let Some(column) = kind.columns.iter().find(twice) {
            return Err(TraceError::Twice { file: file.into(), line, column });
        }
        Ok(Self { file, kind, columns, text })
    }

    fn each(&self, mut read: impl FnMut(&Row) -> Result<(), TraceError>) -> Result<(), TraceError> {
        let mut count = 0;
        for (line, text) in lines(self.text).skip(1) {
            let file = || self.file.into();
            count += 1;
            if count > ROWS_MAX {
                return Err(TraceError::TooLong { file: file(), line });
            }
            let text = std::str::from_utf8(text).map_err(|_| TraceError::NoText { file: file(), line })?;
            let wanted = self.columns.len();
            let fields: Vec<&str> = text.split(',').map(str::trim).take(wanted + 1).collect();
            if fields.len() != wanted {
                let found = text.split(',').count();
                return Err(TraceError::Fields { file: file(), line, found, wanted });
            }
            read(&Row { rows: self, line, fields })?;
        }
        let what = "rows below the header";
        if count == 0 { Err(TraceError::Lacks { file: self.file.into(), what }) } else { Ok(()) }
    }
}

/// Lines that have anything in them, with their numbers.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    (1..).zip(text.split(|byte| *byte == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty())
}

impl<'a> Row<'a> {
    fn field(&self, column: &str) -> &'a str {
        let at = self.rows.columns.iter().position(|name| *name == column);
        at.map_or("", |at| self.fields[at])
    }

    fn wrong(&self, column: &'static str, allowed: impl Into<String>) -> TraceError {
        TraceError::Value {
            file: self.rows.file.into(),
            line: self.line,
            column,
            found: short(self.field(column)),
            allowed: allowed.into(),
        }
    }

    fn number(&self, column: &'static str, allowed: RangeInclusive<f64>) -> Result<f64, TraceError> {
        // What is no number is not contained either.
        let number = self.field(column).parse().unwrap_or(f64::NAN);
        if allowed.contains(&number) {
            return Ok(number);
        }
        let (least, most) = allowed.into_inner();
        Err(self.wrong(column, format!("a number from {least:?} to {most:?}")))
    }

    fn count(&self, column: &'static str) -> Result<f64, TraceError> {
        const MOST: u64 = 1_000_000_000;
        let number = self.field(column).parse().ok().filter(|number: &u64| *number <= MOST);
        number
            .map(|number| number as f64)
            .ok_or_else(|| self.wrong(column, format!("a whole number from 0 to {MOST}")))
    }

    fn word(&self, column: &'static str) -> Result<&'a str, TraceError> {
        let word = self.field(column);
        if word.is_empty() { Err(self.wrong(column, "a name or a number")) } else { Ok(word) }
    }
}

/// Words of a file in an error, on one line of a terminal.
fn short(found: &str) -> String {
    const CHARS: usize = 60;
    let mut words: String = found.chars().take(CHARS).collect::<String>().escape_debug().collect();
    if found.chars().nth(CHARS).is_some() {
        words.push('…');
    }
    words
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It is larger than [`BYTES_MAX`].
    #[error("{}: is larger than {} MB, which a trace may have at most", file.display(), BYTES_MAX >> 20)]
    TooLarge {
        /// Which file.
        file: PathBuf,
    },
    /// It has more than [`ROWS_MAX`] rows.
    #[error("{}: line {line}: a trace has {ROWS_MAX} rows at most", file.display())]
    TooLong {
        /// Which file.
        file: PathBuf,
        /// The first line too many.
        line: usize,
    },
    /// No kind of trace has such a header.
    #[error("{}: line {line}: is no header of a trace: \"{found}\"", file.display())]
    Unknown {
        /// Which file.
        file: PathBuf,
        /// Where its first words are.
        line: usize,
        /// Those words.
        found: String,
    },
    /// A column that is read is there twice.
    #[error("{}: line {line}: column `{column}` is there more than once", file.display())]
    Twice {
        /// Which file.
        file: PathBuf,
        /// The header's line.
        line: usize,
        /// Which column.
        column: &'static str,
    },
    /// A row is no text.
    #[error("{}: line {line}: is no text (UTF-8)", file.display())]
    NoText {
        /// Which file.
        file: PathBuf,
        /// Where.
        line: usize,
    },
    /// A row has too few fields, or too many.
    #[error("{}: line {line}: has {found} fields, the header has {wanted}", file.display())]
    Fields {
        /// Which file.
        file: PathBuf,
        /// Where.
        line: usize,
        /// Fields of the row.
        found: usize,
        /// Those of the header.
        wanted: usize,
    },
    /// A field is wrong.
    #[error("{}: line {line}: column `{column}`: \"{found}\" found, {allowed} is allowed", file.display())]
    Value {
        /// Which file.
        file: PathBuf,
        /// Where.
        line: usize,
        /// Which column.
        column: &'static str,
        /// What is there.
        found: String,
        /// What may be there.
        allowed: String,
    },
    /// What is there is not enough to make a world of it.
    #[error("{}: lacks {what}", file.display())]
    Lacks {
        /// Which file.
        file: PathBuf,
        /// What.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Trace, TraceError> {
        Trace::parse(Path::new("folder/some.csv"), text.as_bytes())
    }

    #[track_caller]
    fn says(text: impl AsRef<[u8]>, words: &str) {
        let error = Trace::parse(Path::new("some.csv"), text.as_ref()).expect_err(words).to_string();
        assert!(error.starts_with("some.csv: ") && error.contains(words), "{error:?} lacks {words:?}");
    }

    #[track_caller]
    fn arrivals(text: &str) -> Vec<(f64, f64)> {
        match parse(text).expect("good").recorded {
            Recorded::Tasks(tasks) => tasks.iter().map(|task| (task.at_s, task.amount.number())).collect(),
            Recorded::Speeds(_) => panic!("tasks are wanted"),
        }
    }

    #[track_caller]
    fn speeds(text: &str) -> Speeds {
        match parse(text).expect("good").recorded {
            Recorded::Speeds(speeds) => speeds,
            Recorded::Tasks(_) => panic!("speeds are wanted"),
        }
    }

    #[test]
    fn columns_are_found_by_name_and_rows_are_put_in_order() {
        let plain = arrivals("t_us,context_tokens,generated_tokens\n0,3,4\n1000000,1,1\n");
        assert_eq!(plain, [(0.0, 7.0), (1.0, 2.0)]);
        let other =
            "\u{FEFF}generated_tokens , extra,t_us,context_tokens\r\n\r\n1,x,1000000,1\r\n 4,,0 ,3\r\n\r\n";
        assert_eq!(arrivals(other), plain);
        assert_eq!(parse(other).expect("good").name, "some");
        let calls = arrivals("func_id,end_s,duration_s\na,9,1\nb,7,6.5\n");
        assert_eq!(calls, [(0.5, 6.5), (8.0, 1.0)]);
    }

    #[test]
    fn jobs_of_unknown_length_are_left_out_and_apps_are_kernels() {
        let text =
            "submit_s,run_s,procs,user,app\n0,5,1,1,7\n1,-1,1,1,7\n2,6,1,2,7\n3,7,1,2,-1\n4,8,1,3,-1\n";
        let Recorded::Tasks(tasks) = parse(text).expect("good").recorded else { panic!("tasks") };
        let keys: Vec<_> = tasks.iter().map(|task| task.key).collect();
        assert_eq!(keys.len(), 4);
        assert!(keys[0] == keys[1] && keys[1] != keys[2] && keys[2] != keys[3], "{keys:?}");
    }

    #[test]
    fn machines_have_a_series_for_each_bound() {
        let text = "bench,sku,vm,t_h,speed_rel\ncpu,A,0,0,1\ncache,A,0,2,0.5\ncache,A,0,1,2\nthreads,A,0,3,9\nmembw,B,0,4,0.001\n";
        let speeds = speeds(text);
        assert_eq!(speeds.machines.len(), 2);
        let [cpu, cache, membw] = &speeds.machines[0];
        assert_eq!(
            (&cpu[..], &cache[..], &membw[..]),
            (&[(0.0, 1.0)][..], &[(1.0, 2.0), (2.0, 0.5)][..], &[][..])
        );
        assert_eq!(speeds.machines[1][2], [(4.0, 0.03)], "bounded");
        assert_eq!((speeds.first, speeds.last, speeds.gap), (0.0, 4.0, 1.0));
    }

    #[test]
    fn a_worker_is_as_fast_as_its_batches_are_short() {
        let speeds = speeds("iteration,worker,batch_time_norm\n1,a,500\n2,a,500\n1,b,500\n2,b,1000\n");
        assert_eq!(speeds.machines[1][0], [(1.0, 1.0), (2.0, 0.5)]);
        assert_eq!(speeds.machines[1][0], speeds.machines[1][2]);
    }

    #[test]
    fn a_replay_holds_each_record_and_begins_anew_behind_the_last() {
        let speeds = speeds("iteration,worker,batch_time_norm\n1,a,100\n2,a,200\n3,a,100\n");
        let paces = speeds.replay(&speeds.machines[0][0], 1.5, 3 * RECORD_NS);
        let seen: Vec<(f64, f64)> =
            paces.iter().map(|pace| (pace.from_ns as f64 / RECORD_NS as f64, pace.factor)).collect();
        // Begun half a record behind the first; three records are a lap, and twice the span is covered.
        assert_eq!(
            seen,
            [(0.0, 1.0), (0.5, 0.5), (1.5, 1.0), (2.5, 1.0), (3.5, 0.5), (4.5, 1.0), (5.5, 1.0)]
        );
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let llm = "t_us,context_tokens,generated_tokens\n";
        says("", "lacks a header");
        says("\n \r\n", "lacks a header");
        says(llm, "lacks rows below the header");
        says("a,b\n1,2\n", "line 1: is no header of a trace: \"a,b\"");
        says("t_us,context_tokens\n1,2\n", "is no header");
        says(b"\x7FELF\xFF\xFE\n", "bytes that are no text");
        says("t_us,t_us,context_tokens,generated_tokens\n", "column `t_us` is there more than once");
        says(format!("{}{}\n", &llm[..llm.len() - 1], ",x".repeat(64)), "more than 64 columns");
        says([llm.as_bytes(), b"1,2,\xFF\n"].concat(), "line 2: is no text");
        says(format!("{llm}1,2\n"), "line 2: has 2 fields, the header has 3");
        says(format!("{llm}1,2,3\n\n1,2,3,4\n"), "line 4: has 4 fields");
        for (row, words) in [
            ("x,1,1", "line 3: column `t_us`: \"x\" found, a number from 0.0 to 1e18 is allowed"),
            ("-1,1,1", "column `t_us`: \"-1\""),
            ("nan,1,1", "column `t_us`: \"nan\""),
            ("inf,1,1", "column `t_us`: \"inf\""),
            (",1,1", "column `t_us`: \"\""),
            (
                "1,1.5,1",
                "column `context_tokens`: \"1.5\" found, a whole number from 0 to 1000000000 is allowed",
            ),
            ("1,1,1e9", "column `generated_tokens`: \"1e9\""),
            ("1,1,1000000001", "column `generated_tokens`: \"1000000001\""),
            ("1,1,\u{1b}[31m", "column `generated_tokens`: \"\\u{1b}[31m\""),
        ] {
            says(format!("{llm}0,1,1\n{row}\n"), words);
        }
        let long = "9".repeat(5000);
        let error = parse(&format!("{llm}0,1,{long}\n")).expect_err("too much").to_string();
        assert!(error.len() < 250, "{error}");
        says(format!("{llm}5,1,1\n"), "lacks two tasks that come at different times");
        says(format!("{llm}5,1,1\n5,1,1\n"), "lacks two tasks that come at different times");
        says(format!("{llm}5,0,0\n6,0,0\n"), "lacks a task that is more than nothing");
        says("submit_s,run_s,user,app\n0,-2,1,1\n", "column `run_s`: \"-2\"");
        says("submit_s,run_s,user,app\n0,-0.5,1,1\n", "-1 (unknown) or 0 and above is allowed");
        says("submit_s,run_s,user,app\n0,1,,1\n", "column `user`: \"\" found, a name or a number is allowed");
        says("submit_s,run_s,user,app\n0,-1,1,1\n1,-1,1,1\n", "lacks two tasks");
        says("func_id,end_s,duration_s\na,1,-1\n", "column `duration_s`: \"-1\"");
        let noise = "bench,sku,vm,t_h,speed_rel\n";
        says(format!("{noise}cpu,A,0,0,0\n"), "column `speed_rel`: \"0\"");
        says(format!("{noise},A,0,0,1\n"), "column `bench`: \"\"");
        says(format!("{noise}disk,A,0,0,1\ndisk,A,0,1,1\n"), "lacks a machine with two records");
        says(format!("{noise}cpu,A,0,1,1\ncpu,A,0,1,2\n"), "lacks a machine with two records");
        says("iteration,worker,batch_time_norm\n1,a,-1\n", "column `batch_time_norm`: \"-1\"");
        says("iteration,worker,batch_time_norm\n1,,1\n", "column `worker`: \"\"");
        says("iteration,worker,batch_time_norm\n", "lacks rows");
    }

    #[test]
    fn what_is_too_large_is_refused() {
        says(vec![b' '; BYTES_MAX + 1], "is larger than 64 MB");
        let header = "iteration,worker,batch_time_norm\n";
        says(format!("{header}{}", "1,a,1\n".repeat(ROWS_MAX + 1)), "line 1000002: a trace has 1000000 rows");
    }

    fn any_text() -> impl Strategy<Value = Vec<u8>> {
        let header = prop_oneof![
            (0..KINDS.len()).prop_map(|kind| KINDS[kind].columns.join(",").into_bytes()),
            prop::collection::vec(any::<u8>(), 0..40),
        ];
        let field = prop_oneof![
            4 => (0u32..9).prop_map(|number| number.to_string()),
            1 => any::<f64>().prop_map(|number| number.to_string()),
            1 => prop::sample::select(vec!["cpu", "cache", "membw", "-1", "", "1e18", "1e-6", "\"", "NaN"])
                .prop_map(str::to_owned),
        ];
        let row = prop::collection::vec(field, 3..6).prop_map(|fields| fields.join(",").into_bytes());
        let body = prop_oneof![
            4 => prop::collection::vec(row, 0..12).prop_map(|rows| rows.join(&b'\n')),
            1 => prop::collection::vec(any::<u8>(), 0..200),
        ];
        (header, body).prop_map(|(header, body)| [header, body].join(&b'\n'))
    }

    proptest! {
        #[test]
        fn random_bytes_are_a_trace_or_an_error(text in any_text(), seed in any::<u64>()) {
            // What was read can be replayed.
            if let Ok(trace) = Trace::parse(Path::new("x"), &text) {
                let scenario = super::super::Scenario::named("cores_070").expect("listed");
                let world = scenario.replay(&trace, seed, 40);
                prop_assert!(world.jobs.is_sorted_by_key(|job| job.at_ns));
                let job = &world.jobs[39];
                let times = world.machines.iter().map(|at| at.true_ns(job.kernel, job.log2_size, job.at_ns));
                prop_assert!(times.clone().all(|time| time.is_finite() && time > 0.0), "{:?}", times.collect::<Vec<_>>());
            }
        }
    }
}
