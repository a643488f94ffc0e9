//! How values look to people: units, tables, colour. Everything here returns text; who prints it decides where.
//!
//! Invariants
//! 1. Nothing unknown looks like a number: it is [`ABSENT`].
//! 2. Without colour nothing is lost: colour only repeats what the words say.
//! 3. What came from outside cannot steer the terminal: control characters are shown, not sent.
//! 4. On standard error a line that begins with `{` is JSON, whole and alone. Log lines are so where nobody
//!    reads along; words for people become so only when asked for with `--log-format json`, and then all of them.

use crate::base::clock::wall_rfc3339;
use serde_json::json;
use std::borrow::Cow;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Stands where there is no value.
pub const ABSENT: &str = "—";

/// How the commands speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputOptions {
    /// JSON for programs instead of text for people.
    pub json: bool,
    /// Only errors on standard error.
    pub quiet: bool,
    /// Use colour.
    pub color: bool,
    /// Columns of the terminal.
    pub width: usize,
}

impl Default for OutputOptions {
    fn default() -> Self {
        Self { json: false, quiet: false, color: false, width: 80 }
    }
}

/// Prints `text` to standard output, whole lines. `false` when the reader has gone, as with `| head`: then
/// there is nothing more to say, and it is no failure.
pub fn print(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    let ended = text.is_empty() || text.ends_with('\n');
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| if ended { Ok(()) } else { stdout.write_all(b"\n") })
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether words on standard error are for programs. A property of the process, as standard error is.
static WORDS_AS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on words on standard error are JSON, as log lines are.
pub fn speak_json() {
    WORDS_AS_JSON.store(true, Ordering::Relaxed);
}

/// Whether words on standard error are JSON.
pub fn speaks_json() -> bool {
    WORDS_AS_JSON.load(Ordering::Relaxed)
}

/// Says something on standard error, unless quiet. Who does not listen misses it.
pub fn say(output: &OutputOptions, text: &str) {
    if output.quiet {
        return;
    }
    let words = if speaks_json() { json_line("INFO", text) } else { text.to_owned() };
    utter(words);
}

/// Says on standard error what is worth a look, however quiet it should be.
pub fn warn(text: &str) {
    let words = if speaks_json() { json_line("WARN", text) } else { format!("warning: {text}") };
    utter(words);
}

/// Says on standard error what went wrong, however quiet it should be.
pub fn complain(text: &str) {
    let words = if speaks_json() { json_line("ERROR", text) } else { format!("error: {text}") };
    utter(words);
}

/// Longest wait for whoever reads standard error. After that nobody is waited for any more.
const PATIENCE: Duration = Duration::from_secs(1);
/// A pipe with room takes so many bytes at once (POSIX `PIPE_BUF`).
const PIECE: usize = 4096;

/// Writes a line to standard error, unless nobody takes it: a swarm must be able to end when its words have nowhere to go.
fn utter(mut words: String) {
    static IS_ALONE: AtomicBool = AtomicBool::new(false);
    words.push('\n');
    let mut stderr = io::stderr().lock();
    for piece in words.as_bytes().chunks(PIECE) {
        let patience = if IS_ALONE.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        let takes = crate::os::socket::wait_for_room(stderr.as_fd(), patience);
        IS_ALONE.store(!takes, Ordering::Relaxed);
        if !takes || stderr.write_all(piece).is_err() {
            return;
        }
    }
}

/// Words in the form of a log line.
pub(super) fn json_line(level: &str, text: &str) -> String {
    json!({ "timestamp": wall_rfc3339(), "level": level, "message": text }).to_string()
}

/// Three significant digits, without digits behind the point from 100 on.
fn short(value: f64) -> String {
    // The limits are those of rounding: 9.996 is shown as 10.0.
    match value.abs() {
        v if v < 9.995 => format!("{value:.2}"),
        v if v < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A span of time given in seconds: `850 ns`, `12.3 µs`, `4.56 ms`, `1.20 s`, `2m 05s`, `3h 07m`, `4d 02h`.
pub fn duration(seconds: f64) -> String {
    let ns = seconds * 1e9;
    match ns {
        ns if !ns.is_finite() || ns < 0.0 => ABSENT.to_owned(),
        ns if ns < 0.5 => "0 s".to_owned(),
        ns if ns < 999.5 => format!("{ns:.0} ns"),
        ns if ns < 999.5e3 => format!("{} µs", short(ns / 1e3)),
        ns if ns < 999.5e6 => format!("{} ms", short(ns / 1e6)),
        ns if ns < 99.95e9 => format!("{} s", short(seconds)),
        _ => {
            let seconds = seconds.round() as u64;
            match seconds {
                0..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
                3_600..86_400 => format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
                _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3_600 % 24),
            }
        }
    }
}

/// [`duration`] of microseconds.
pub fn micros(us: f64) -> String {
    duration(us / 1e6)
}

/// An amount of memory: `512 B`, `1.50 KiB`, `12.1 MiB`.
pub fn bytes(count: u64) -> String {
    scaled(count as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Something per second: `850/s`, `12.3 k/s`, `1.20 M/s`; with a unit `12.3 kB/s`.
pub fn rate(per_second: f64, unit: &str) -> String {
    if !per_second.is_finite() || per_second < 0.0 {
        return ABSENT.to_owned();
    }
    let text = scaled(per_second, 1000.0, &["", "k", "M", "G", "T", "P"]);
    let has_prefix = text.ends_with(|c: char| c.is_ascii_alphabetic());
    let gap = if has_prefix || unit.is_empty() { "" } else { " " };
    format!("{text}{gap}{unit}/s")
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step * 0.9995 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let number = if unit == 0 && (value.fract() == 0.0 || value >= 99.95) {
        format!("{value:.0}")
    } else if value >= 999.5 {
        // Between 1000 and 1023 of a binary unit.
        format!("{value:.0}")
    } else {
        short(value)
    };
    format!("{number} {}", units[unit]).trim_end().to_owned()
}

/// A number of things, in groups of three: `1,234,567`. A mean may have digits behind the point while it is
/// small: `2.50`.
pub fn count(number: f64) -> String {
    if !number.is_finite() {
        return ABSENT.to_owned();
    }
    if number.fract() != 0.0 && number.abs() < 99.95 {
        return short(number);
    }
    let digits = format!("{:.0}", number.abs());
    let mut text = if number < 0.0 { "-".to_owned() } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share in percent, given in percent: `0 %`, `3.4 %`, `98 %`.
pub fn percent(value: f64) -> String {
    match value {
        value if !value.is_finite() => ABSENT.to_owned(),
        value if value.abs() < 0.05 => "0 %".to_owned(),
        value if value.abs() < 9.95 => format!("{value:.1} %"),
        value => format!("{value:.0} %"),
    }
}

/// A value, or [`ABSENT`].
pub fn or_absent(value: Option<String>) -> String {
    value.unwrap_or_else(|| ABSENT.to_owned())
}

/// Text from outside on one line: control characters, which could steer the terminal or break a table, are
/// written as escapes.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::new(), |mut plain, c| {
        if c.is_control() {
            plain.extend(c.escape_default())
        } else {
            plain.push(c)
        }
        plain
    }))
}

/// `text` in at most `columns` columns; what is cut off is marked.
pub fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// `text` in lines of at most `width` columns, broken between words; all lines but the first begin with
/// `indent` blanks.
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// What a piece of text is about; with colour it also looks so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Nothing special.
    #[default]
    Plain,
    /// Headings.
    Bold,
    /// Of little interest.
    Dim,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
}

/// `text` in `style`, when there is colour.
pub fn paint(text: &str, style: Style, color: bool) -> String {
    let code = match style {
        _ if !color || text.is_empty() => return text.to_owned(),
        Style::Plain => return text.to_owned(),
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Good => "32",
        Style::Warn => "33",
        Style::Bad => "31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// The style of a state of a task or an agent.
pub fn state_style(state: &str) -> Style {
    match state {
        "succeeded" | "ready" | "running" => Style::Good,
        "waiting" | "queued" | "dispatched" | "starting" => Style::Plain,
        "retrying" | "draining" | "stopping" | "backoff" | "warning" | "cancelled" => Style::Warn,
        "failed" | "benched" | "stopped" | "alert" => Style::Bad,
        _ => Style::Plain,
    }
}

/// A table with a header and aligned columns, two blanks apart.
///
/// ```
/// use ai_swarm::cli::output::{OutputOptions, Table};
/// let mut table = Table::new(&["ID", "TASKS"]).right(&[1]);
/// table.row(["compute-0".to_owned(), "7".to_owned()]);
/// assert_eq!(table.render(&OutputOptions::default()), "ID         TASKS\ncompute-0      7\n");
/// ```
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<(String, Style)>>,
}

#[derive(Clone, Debug)]
struct Column {
    heading: String,
    right: bool,
    may_cut: bool,
}

impl Table {
    /// A table without rows, all columns to the left.
    pub fn new(headings: &[&str]) -> Self {
        let column = |heading: &&str| Column { heading: (*heading).to_owned(), right: false, may_cut: false };
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    /// These columns hold numbers and stand to the right.
    pub fn right(mut self, columns: &[usize]) -> Self {
        for &at in columns {
            self.columns[at].right = true;
        }
        self
    }

    /// These columns are cut when the table would be too wide, the first one first.
    pub fn cut(mut self, columns: &[usize]) -> Self {
        for &at in columns {
            self.columns[at].may_cut = true;
        }
        self
    }

    /// Adds a row. Control characters are shown as escapes.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.styled_row(cells.map(|cell| (cell, Style::Plain)));
    }

    /// Adds a row of cells with styles.
    pub fn styled_row<const N: usize>(&mut self, cells: [(String, Style); N]) {
        assert_eq!(N, self.columns.len(), "a row has as many cells as the table has columns");
        let cells = cells.into_iter().map(|(text, style)| match plain(&text) {
            Cow::Borrowed(_) => (text, style),
            Cow::Owned(plain) => (plain, style),
        });
        self.rows.push(cells.collect());
    }

    /// Leaves those of these columns out in which no row says anything: all empty, zero or [`ABSENT`].
    pub fn without_silent(mut self, columns: &[usize]) -> Self {
        let says = |cell: &str| !matches!(cell, "" | "0" | ABSENT);
        let is_kept = |at: usize| !columns.contains(&at) || self.rows.iter().any(|row| says(&row[at].0));
        let kept: Vec<bool> = (0..self.columns.len()).map(is_kept).collect();
        for row in &mut self.rows {
            let mut kept = kept.iter();
            row.retain(|_| kept.next() == Some(&true));
        }
        let mut kept = kept.iter();
        self.columns.retain(|_| kept.next() == Some(&true));
        self
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, ending with a line break. Columns that may be cut give way until it fits into the
    /// width, down to eight columns or their heading.
    pub fn render(&self, output: &OutputOptions) -> String {
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                let cells = self.rows.iter().map(|row| row[at].0.chars().count());
                cells.chain([self.columns[at].heading.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let total = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let mut excess = total.saturating_sub(output.width);
        for (column, width) in self.columns.iter().zip(&mut widths).filter(|(column, _)| column.may_cut) {
            let give = excess.min(width.saturating_sub(column.heading.chars().count().max(8)));
            *width -= give;
            excess -= give;
        }
        let mut text = String::new();
        let heading = self.columns.iter().map(|column| (column.heading.clone(), Style::Dim)).collect();
        for row in std::iter::once(&heading).chain(&self.rows) {
            self.render_row(row, &widths, output.color, &mut text);
        }
        text
    }

    fn render_row(&self, row: &[(String, Style)], widths: &[usize], color: bool, text: &mut String) {
        let last = row.iter().rposition(|(cell, _)| !cell.is_empty()).unwrap_or(0);
        for (at, (cell, style)) in row.iter().enumerate().take(last + 1) {
            let cell = cut(cell, widths[at]);
            let blanks = widths[at] - cell.chars().count();
            let (before, after) = if self.columns[at].right { (blanks, 0) } else { (0, blanks) };
            if at > 0 {
                text.push_str("  ");
            }
            text.extend(std::iter::repeat_n(' ', before));
            text.push_str(&paint(&cell, *style, color));
            if at < last {
                text.extend(std::iter::repeat_n(' ', after));
            }
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_fitting_unit() {
        for (ns, text) in [
            (0.0, "0 s"),
            (1.0, "1 ns"),
            (850.0, "850 ns"),
            (999.6, "1.00 µs"),
            (12_345.0, "12.3 µs"),
            (999_499.0, "999 µs"),
            (999_500.0, "1.00 ms"),
            (4_560_000.0, "4.56 ms"),
            (9.996e6, "10.0 ms"),
            (1.2e9, "1.20 s"),
            (99.9e9, "99.9 s"),
            (99.96e9, "1m 40s"),
            (125e9, "2m 05s"),
            (3_599.6e9, "1h 00m"),
            (11_220e9, "3h 07m"),
            (352_800e9, "4d 02h"),
            (f64::NAN, ABSENT),
            (-1.0, ABSENT),
        ] {
            assert_eq!(duration(ns / 1e9), text, "{ns}");
        }
        assert_eq!(micros(1.5), "1.50 µs");
    }

    #[test]
    fn amounts_have_binary_units_and_rates_decimal_ones() {
        for (amount, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (12_688_000, "12.1 MiB"),
            (1_072_693_248, "1023 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(amount), text);
        }
        for (amount, unit, text) in [
            (0.0, "", "0/s"),
            (0.5, "", "0.50/s"),
            (850.0, "", "850/s"),
            (12_345.0, "", "12.3 k/s"),
            (2e6, "", "2.00 M/s"),
            (12_345.0, "B", "12.3 kB/s"),
            (7.0, "B", "7 B/s"),
            (f64::INFINITY, "B", ABSENT),
        ] {
            assert_eq!(rate(amount, unit), text);
        }
    }

    #[test]
    fn counts_are_grouped_and_shares_short() {
        for (number, text) in [
            (0.0, "0"),
            (12.0, "12"),
            (999.0, "999"),
            (1_000.0, "1,000"),
            (1_234_567.4, "1,234,567"),
            (2.5, "2.50"),
            (-1_000.0, "-1,000"),
            (f64::NAN, ABSENT),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!([0.01, 3.44, 9.96, 98.2, f64::NAN].map(percent), ["0 %", "3.4 %", "10 %", "98 %", ABSENT]);
    }

    #[test]
    fn a_table_is_aligned_and_gives_way_where_it_may() {
        let mut table = Table::new(&["ID", "N", "TEXT"]).right(&[1]).cut(&[2]);
        assert!(table.is_empty());
        table.row(["a".into(), "1".into(), "short".into()]);
        let cells = [("long-name", Style::Good), ("1,000", Style::Plain), (&*"x".repeat(50), Style::Plain)];
        table.styled_row(cells.map(|(text, style)| (text.to_owned(), style)));
        let output = OutputOptions { width: 40, ..OutputOptions::default() };
        let text = table.render(&output);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ID             N  TEXT");
        assert_eq!(lines[1], "a              1  short");
        assert_eq!(lines[2], format!("long-name  1,000  {}…", "x".repeat(21)));
        assert!(lines.iter().all(|line| line.chars().count() <= 40), "{text}");
        let colored = table.render(&OutputOptions { color: true, ..output });
        assert!(colored.contains("\x1b[32mlong-name\x1b[0m"), "{colored}");
    }

    #[test]
    fn columns_that_say_nothing_may_be_left_out() {
        let mut table = Table::new(&["A", "B", "C", "D"]).right(&[2]);
        table.row(["x".into(), "0".into(), ABSENT.into(), "0".into()]);
        table.row(["y".into(), String::new(), "7".into(), "0".into()]);
        let text = table.without_silent(&[0, 1, 2]).render(&OutputOptions::default());
        assert_eq!(text, "A  C  D\nx  —  0\ny  7  0\n");
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(plain("größe"), "größe");
        let mut table = Table::new(&["A"]);
        table.row(["x\ny".into()]);
        assert_eq!(table.render(&OutputOptions::default()).lines().count(), 2);
    }

    #[test]
    fn long_text_is_broken_between_words() {
        assert_eq!(wrap("one two three four", 9, 2), "one two\n  three\n  four");
        assert_eq!(wrap("unbreakable", 4, 2), "unbreakable");
        assert_eq!(cut("abcdef", 4), "abc…");
    }
}
