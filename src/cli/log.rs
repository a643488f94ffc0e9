//! Where log lines go: standard error and the state directory, from the supervisor and all agents.
//!
//! Agents write into one pipe, whole lines at a time; a thread of the supervisor passes them on. So
//! there is a single writer, and the file is rotated without anybody having to reopen it. Lines wait for
//! it in a bounded queue; when nobody reads standard error they are dropped and counted.

use super::output::json_line;
use crate::base::words::things;
use crate::os::files;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, registry};

/// The levels, as people write them.
const LEVELS: [&str; 5] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

/// Checks `--log-level`: a level in any case, or a `tracing` filter such as `info,ai_swarm::tasks=debug`.
///
/// A misspelt level would be a legal *target* in a filter and silence everything else, so a bare word
/// must be a level.
pub fn check_level(text: &str) -> Result<String, String> {
    let bare = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare {
        let upper = text.to_ascii_uppercase();
        if LEVELS.contains(&&*upper) || upper == "OFF" {
            return Ok(upper.to_ascii_lowercase());
        }
        let nearest =
            LEVELS.into_iter().max_by(|a, b| strsim::jaro(a, &upper).total_cmp(&strsim::jaro(b, &upper)));
        return Err(format!(
            "{text:?} is not a log level; TRACE, DEBUG, INFO, WARN, ERROR or a filter such as \
             info,ai_swarm::tasks=debug are allowed (did you mean {}?)",
            nearest.unwrap_or("INFO")
        ));
    }
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("{text:?} is not a log filter: {error}"))
}

/// Lines that wait for the writer; more are dropped and counted.
const QUEUE_LINES: usize = 8192;
/// Longest wait for the last lines at the end.
const FLUSH_WAIT: Duration = Duration::from_millis(500);

/// Where log lines go. Handing one over never waits: neither the supervisor's loop nor an agent may
/// hang because somebody stopped reading standard error.
#[derive(Clone)]
pub struct LogSink(Inner);

#[derive(Clone)]
enum Inner {
    /// Straight to standard error, which for an agent is a pipe that the supervisor keeps empty.
    Direct,
    /// To the writer's thread. With `json` no line is anything else.
    Queue { sender: Sender<Record>, dropped: Arc<AtomicU64>, json: bool },
}

/// What the writer is told.
enum Record {
    Line(Vec<u8>),
    File(File, PathBuf, u64),
    Flush(Sender<()>),
}

/// The one writer of log lines.
struct Writer {
    stderr: bool,
    json: bool,
    file: Option<(File, PathBuf, u64)>,
    written: u64,
}

impl LogSink {
    /// A sink whose writer has a thread of its own; it writes to standard error when `stderr`. With `json`
    /// the few lines that do not come from a log statement are JSON as well.
    pub fn new(stderr: bool, json: bool) -> Self {
        let (sender, receiver) = bounded(QUEUE_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        let writer = Writer { stderr, json, file: None, written: 0 };
        let started =
            std::thread::Builder::new().name("log".into()).spawn(move || writer.run(&receiver, &counted));
        // Without a thread there is nobody to write; the lines are then dropped and counted.
        drop(started);
        Self(Inner::Queue { sender, dropped, json })
    }

    /// A sink without a thread, for agents.
    pub fn direct() -> Self {
        Self(Inner::Direct)
    }

    /// Writes to `folder/swarm.log` as well; beyond `bytes_max` bytes it becomes `swarm.log.1`.
    pub fn also_to(&self, folder: &Path, bytes_max: u64) -> io::Result<()> {
        let path = folder.join("swarm.log");
        if path.metadata().is_ok_and(|there| !there.is_file()) {
            return Err(io::Error::other("swarm.log is not a file"));
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        if let Inner::Queue { sender, .. } = &self.0 {
            let _ = sender.try_send(Record::File(file, path, bytes_max));
        }
        Ok(())
    }

    /// The agents' end of a pipe whose lines come out of this sink.
    pub fn pipe(&self) -> io::Result<OwnedFd> {
        let (reader, writer) = io::pipe()?;
        let sink = self.clone();
        std::thread::Builder::new().name("agent-log".into()).spawn(move || {
            let mut lines = BufReader::new(reader);
            let mut line = Vec::new();
            let json = matches!(sink.0, Inner::Queue { json: true, .. });
            while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                if json && line[0] != b'{' {
                    // The words of a panic, or of a library.
                    let text = String::from_utf8_lossy(&line);
                    line = (json_line("WARN", text.trim_end()) + "\n").into_bytes();
                }
                sink.hand_over(std::mem::take(&mut line));
            }
        })?;
        Ok(writer.into())
    }

    fn hand_over(&self, line: Vec<u8>) {
        match &self.0 {
            Inner::Direct => {
                let _ = io::stderr().write_all(&line);
            }
            Inner::Queue { sender, dropped, .. } => {
                if sender.try_send(Record::Line(line)).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits until what was handed over is written, but not for ever.
    pub fn flush(&self) {
        if let Inner::Queue { sender, .. } = &self.0 {
            let (done, written) = bounded(1);
            if sender.try_send(Record::Flush(done)).is_ok() {
                let _ = written.recv_timeout(FLUSH_WAIT);
            }
        }
    }
}

impl Writer {
    fn run(mut self, records: &Receiver<Record>, dropped: &AtomicU64) {
        for record in records {
            match record {
                Record::Line(line) => {
                    let lost = dropped.swap(0, Ordering::Relaxed);
                    if lost > 0 {
                        let lost = things(lost as usize, "log line");
                        let words = format!("{lost} dropped: nobody read them");
                        let words = if self.json { json_line("WARN", &words) } else { words };
                        self.write((words + "\n").as_bytes());
                    }
                    self.write(&line);
                }
                Record::File(file, path, bytes_max) => {
                    self.written = file.metadata().map_or(0, |file| file.len());
                    self.file = Some((file, path, bytes_max));
                }
                Record::Flush(done) => {
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn write(&mut self, line: &[u8]) {
        // Logging must not end the work it describes: what cannot be written is let go.
        if let Some((file, path, bytes_max)) = &mut self.file {
            if self.written > *bytes_max {
                // Where it was moved or removed, the one there is somebody else's.
                if files::is_at(file, path).unwrap_or(false) {
                    let _ = std::fs::rename(&*path, path.with_extension("log.1"));
                }
                if let Ok(fresh) = OpenOptions::new().create(true).append(true).open(&*path) {
                    *file = fresh;
                    self.written = 0;
                }
            }
            let _ = file.write_all(line);
            self.written += line.len() as u64;
        }
        if self.stderr {
            write_alone(line);
        }
    }
}

/// Writes to standard error without the lock that its other writers take: they shall not wait for ever as well when nobody reads.
fn write_alone(mut line: &[u8]) {
    loop {
        match rustix::io::write(io::stderr(), line) {
            Ok(count) if count < line.len() => line = &line[count..],
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

/// One line on its way.
pub struct Line<'a>(&'a LogSink, Vec<u8>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.hand_over(std::mem::take(&mut self.1));
    }
}

impl<'a> MakeWriter<'a> for LogSink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self, Vec::with_capacity(256))
    }
}

fn filter(text: &str) -> Box<dyn Layer<Registry> + Send + Sync> {
    match text.parse::<LevelFilter>() {
        // A level needs none of what filters are made of, and every agent comes by here before it is ready.
        Ok(level) => level.boxed(),
        Err(_) => EnvFilter::try_new(text).unwrap_or_else(|_| EnvFilter::new("info")).boxed(),
    }
}

/// Logging of the supervisor's process.
pub fn init(level: &str, json: bool, color: bool, sink: &LogSink) {
    let lines = fmt::layer().with_writer(sink.clone());
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(color).with_target(false).boxed()
    };
    // Only the first call of a process counts; tests make more.
    let _ = registry().with(filter(level)).with(lines).try_init();
}

/// Logging of an agent's process: whole lines to the pipe that is its standard error.
pub fn init_agent(level: &str, json: bool) {
    init(level, json, false, &LogSink::direct());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_in_any_case_and_filters_pass_and_misspelt_ones_do_not() {
        assert_eq!(check_level("DEBUG").as_deref(), Ok("debug"));
        assert_eq!(check_level("warn").as_deref(), Ok("warn"));
        assert!(check_level("info,ai_swarm::tasks=debug").is_ok());
        let error = check_level("debgu").expect_err("misspelt");
        assert!(error.contains("did you mean DEBUG?"), "{error}");
        assert!(check_level("ai_swarm=loud").is_err());
    }

    #[test]
    fn the_file_is_rotated_and_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = LogSink::new(false, false);
        sink.also_to(folder.path(), 1000).expect("file");
        for _ in 0..100 {
            sink.make_writer().write_all(&[b'x'; 99]).expect("never fails");
        }
        sink.flush();
        let bytes = |name: &str| std::fs::metadata(folder.path().join(name)).expect(name).len();
        assert!(bytes("swarm.log") <= 1100 && bytes("swarm.log.1") <= 1100);
    }

    #[test]
    fn lines_of_agents_come_out_of_the_sink() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = LogSink::new(false, false);
        sink.also_to(folder.path(), 1000).expect("file");
        let mut pipe = File::from(sink.pipe().expect("pipe"));
        pipe.write_all(b"hello\n").expect("written");
        drop(pipe);
        let path = folder.path().join("swarm.log");
        while std::fs::read(&path).expect("file") != b"hello\n" {
            std::thread::yield_now();
        }
    }

    #[test]
    fn words_among_json_lines_become_json() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = LogSink::new(false, true);
        sink.also_to(folder.path(), 10_000).expect("file");
        let mut pipe = File::from(sink.pipe().expect("pipe"));
        pipe.write_all(b"{\"message\":\"fine\"}\nthread 'main' panicked at \"x\":\n\n").expect("written");
        drop(pipe);
        let path = folder.path().join("swarm.log");
        let text = loop {
            let text = std::fs::read_to_string(&path).expect("file");
            if text.lines().count() == 3 {
                break text;
            }
            std::thread::yield_now();
        };
        let messages = text.lines().map(|line| {
            let line: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            line["message"].as_str().expect("words").to_owned()
        });
        assert_eq!(messages.collect::<Vec<_>>(), ["fine", "thread 'main' panicked at \"x\":", ""]);
    }
}
