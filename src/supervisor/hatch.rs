//! The supervisor's end of the line to its gateway: questions come in, answers go out.
//!
//! ```text
//!  gateway ─► reader: bytes to an action ─► the loop ─► queue ─► writer: reply to bytes ─► gateway
//! ```
//! Two threads do what takes time, so that the loop neither formats nor waits for the gateway. One life of the gateway
//! has one hatch; what was open when it broke is answered into nothing.
//!
//! Invariants
//! 1. The queue to the writer never makes the loop wait, and is bounded all the same: it holds at most `OPEN_MAX`
//!    answers, since no further question is read before, and one of each note.
//! 2. Every question is answered exactly once, with nothing when the loop drops it.
//! 3. After anything that is no question nothing more is read; the supervisor ends that gateway.

use super::action::{Action, Answer, Reply};
use super::wire::{self, GatewayStart, Note};
use crate::base::clock::Nanos;
use crate::os::affinity::CoreMask;
use crate::os::clock;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::io::{self, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Questions that may be open at once. The gateway has one per connection, and few of its own.
const OPEN_MAX: usize = 1024;

/// See the module. Dropping it closes the line.
#[derive(Debug)]
pub struct Hatch {
    line: Arc<UnixStream>,
    outgoing: Sender<Outgoing>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// When the gateway was last heard of, ns of the host's clock.
    heard: AtomicU64,
    /// What it wrote that was no question.
    broken: OnceLock<String>,
    /// Number of the latest event, and whether the writer has been told of it.
    latest: AtomicU64,
    told: AtomicBool,
}

/// What the writer has to do.
#[derive(Debug)]
enum Outgoing {
    Answer(u64, Option<Reply>),
    News,
    Ping,
    Close,
    End,
}

impl Hatch {
    /// Opens the hatch at this end of the line; the gateway at the other end is told `start` first. Questions go to
    /// `ask`, from a thread of the hatch.
    pub fn open(
        line: UnixStream,
        start: &GatewayStart,
        cores: CoreMask,
        ask: impl Fn(Action, Answer) + Send + 'static,
    ) -> io::Result<Self> {
        let line = Arc::new(line);
        let (outgoing, incoming) = unbounded();
        let (taken, freed) = bounded(OPEN_MAX);
        let shared = Arc::new(Shared::default());
        shared.heard.store(clock::now().0, Ordering::Relaxed);
        let greeting = wire::note(&Note::Start(start.clone()));
        let writer = Writer { line: line.clone(), shared: shared.clone(), freed };
        let reader = Reader { line: line.clone(), shared: shared.clone(), taken, outgoing: outgoing.clone() };
        let hatch = Self { line, outgoing, shared };
        std::thread::Builder::new().name("gateway-out".to_owned()).spawn(move || {
            cores.apply();
            writer.run(&greeting, &incoming);
        })?;
        std::thread::Builder::new().name("gateway-in".to_owned()).spawn(move || {
            cores.apply();
            reader.run(&ask);
        })?;
        Ok(hatch)
    }

    /// Tells the gateway that there are new events.
    pub fn news(&self) -> News {
        News { shared: self.shared.clone(), outgoing: self.outgoing.clone() }
    }

    /// Asks for a sign of life.
    pub fn ping(&self) {
        let _ = self.outgoing.send(Outgoing::Ping);
    }

    /// When the gateway was last heard of.
    pub fn heard(&self) -> Nanos {
        Nanos(self.shared.heard.load(Ordering::Relaxed))
    }

    /// What the gateway wrote that was no question.
    pub fn broken(&self) -> Option<&str> {
        self.shared.broken.get().map(String::as_str)
    }

    /// Tells the gateway to end, behind all answers that are ready.
    pub fn close(&self) {
        let _ = self.outgoing.send(Outgoing::Close);
    }
}

impl Drop for Hatch {
    fn drop(&mut self) {
        // Wakes the reader, which ends the writer.
        let _ = self.line.shutdown(Shutdown::Both);
    }
}

/// Says that there are new events.
#[derive(Clone, Debug)]
pub struct News {
    shared: Arc<Shared>,
    outgoing: Sender<Outgoing>,
}

impl News {
    /// `latest` is the number of the latest event. Cheap: however many come, the gateway hears of the last one.
    pub fn tell(&self, latest: u64) {
        self.shared.latest.store(latest, Ordering::SeqCst);
        if !self.shared.told.swap(true, Ordering::SeqCst) {
            let _ = self.outgoing.send(Outgoing::News);
        }
    }
}

/// Owed to the gateway for one question.
struct Promise {
    number: u64,
    outgoing: Sender<Outgoing>,
    kept: bool,
}

impl Promise {
    fn keep(mut self, reply: Reply) {
        self.kept = true;
        let _ = self.outgoing.send(Outgoing::Answer(self.number, Some(reply)));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.outgoing.send(Outgoing::Answer(self.number, None));
        }
    }
}

struct Reader {
    line: Arc<UnixStream>,
    shared: Arc<Shared>,
    /// Takes a place for each open question; waits while there is none.
    taken: Sender<()>,
    outgoing: Sender<Outgoing>,
}

impl Reader {
    /// Until the line is closed or nonsense comes.
    fn run(self, ask: &impl Fn(Action, Answer)) {
        if let Err(nonsense) = self.take_questions(ask) {
            let _ = self.shared.broken.set(nonsense);
        }
        let _ = self.line.shutdown(Shutdown::Both);
        let _ = self.outgoing.send(Outgoing::End);
    }

    fn take_questions(&self, ask: &impl Fn(Action, Answer)) -> Result<(), String> {
        let (mut stream, mut body) = (BufReader::new(&*self.line), Vec::new());
        loop {
            let number = match wire::read(&mut stream, &mut body) {
                Ok(Some(number)) => number,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error.to_string()),
                // Gone, in whatever way.
                Ok(None) | Err(_) => return Ok(()),
            };
            self.shared.heard.store(clock::now().0, Ordering::Relaxed);
            if number == 0 && body.is_empty() {
                continue;
            }
            let action: Action = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            if self.taken.send(()).is_err() {
                return Ok(());
            }
            let promise = Promise { number, outgoing: self.outgoing.clone(), kept: false };
            ask(action, Box::new(move |reply| promise.keep(reply)));
        }
    }
}

struct Writer {
    line: Arc<UnixStream>,
    shared: Arc<Shared>,
    /// Gives the place of an answered question back.
    freed: Receiver<()>,
}

impl Writer {
    /// Until the line is closed.
    fn run(self, greeting: &[u8], incoming: &Receiver<Outgoing>) {
        let mut line = &*self.line;
        if line.write_all(greeting).is_ok() {
            for outgoing in incoming {
                let is_answer = matches!(outgoing, Outgoing::Answer(..));
                let frame = match outgoing {
                    Outgoing::Answer(number, reply) => wire::answer(number, reply),
                    Outgoing::News => {
                        // In this order: what comes after the look is told anew.
                        self.shared.told.store(false, Ordering::SeqCst);
                        wire::note(&Note::News(self.shared.latest.load(Ordering::SeqCst)))
                    }
                    Outgoing::Ping => wire::note(&Note::Ping),
                    Outgoing::Close => wire::note(&Note::Close),
                    Outgoing::End => break,
                };
                if line.write_all(&frame).is_err() {
                    break;
                }
                if is_answer {
                    let _ = self.freed.try_recv();
                }
            }
        }
        let _ = line.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A hatch, the gateway's end of its line, and what was asked.
    fn hatch() -> (Hatch, UnixStream, mpsc::Receiver<(Action, Answer)>) {
        let (here, there) = UnixStream::pair().expect("a pair");
        there.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let start = GatewayStart {
            control: "/x/control.sock".into(),
            timeout: None,
            retries: 2,
            log_filter: "info".into(),
            log_json: false,
        };
        let (asked, questions) = mpsc::channel();
        let ask = move |action, answer| _ = asked.send((action, answer));
        (
            Hatch::open(here, &start, CoreMask::current().expect("the kernel says"), ask).expect("threads"),
            there,
            questions,
        )
    }

    fn next(line: &mut UnixStream) -> (u64, String) {
        let mut body = Vec::new();
        let number = wire::read(line, &mut body).expect("a frame").expect("no end");
        (number, String::from_utf8(body).expect("JSON"))
    }

    #[test]
    fn answers_come_in_any_order_and_a_dropped_one_comes_as_nothing() {
        let (hatch, mut line, questions) = hatch();
        let (number, start) = next(&mut line);
        assert!(number == 0 && start.contains("/x/control.sock"), "{start}");
        for number in 1..=3 {
            line.write_all(&wire::question(number, &Action::Status).expect("a frame")).expect("written");
        }
        let mut answers: Vec<Answer> = (0..3).map(|_| questions.recv().expect("asked").1).collect();
        answers.pop().expect("three")(Reply::Done);
        drop(answers.pop());
        assert_eq!(next(&mut line), (3, "\"Done\"".to_owned()));
        assert_eq!(next(&mut line), (2, String::new()));
        hatch.news().tell(41);
        assert_eq!(next(&mut line), (0, "{\"News\":41}".to_owned()));
        let before = hatch.heard();
        hatch.ping();
        assert_eq!(next(&mut line), (0, "\"Ping\"".to_owned()));
        line.write_all(&wire::empty(0)).expect("written");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while hatch.heard() == before {
            assert!(std::time::Instant::now() < deadline, "a sign of life is heard");
            std::thread::yield_now();
        }
        // Behind an answer that was ready.
        answers.pop().expect("the first")(Reply::Done);
        hatch.close();
        assert_eq!((next(&mut line).0, next(&mut line).1), (1, "\"Close\"".to_owned()));
        drop(hatch);
        assert_eq!(line.read(&mut [0]).expect("an end"), 0);
    }

    #[test]
    fn news_that_were_told_many_times_come_once_or_twice() {
        let (hatch, mut line, _questions) = hatch();
        next(&mut line);
        let news = hatch.news();
        (1..=100_000).for_each(|number| news.tell(number));
        hatch.close();
        let mut seen = Vec::new();
        loop {
            match next(&mut line).1 {
                note if note == "\"Close\"" => break,
                note => seen.push(note),
            }
        }
        assert_eq!(seen.last().map(String::as_str), Some("{\"News\":100000}"));
        assert!(seen.len() < 100_000, "{}", seen.len());
    }

    #[test]
    fn no_more_questions_are_read_than_may_be_open() {
        let (hatch, mut line, questions) = hatch();
        next(&mut line);
        let mut writer = line.try_clone().expect("a copy");
        let asker = std::thread::spawn(move || {
            let frame = |number| wire::question(number, &Action::Status).expect("a frame");
            // Until the hatch is closed.
            let _ = (1..=OPEN_MAX as u64 * 2).try_for_each(|number| writer.write_all(&frame(number)));
        });
        let mut open: Vec<Answer> = (0..OPEN_MAX).map(|_| questions.recv().expect("asked").1).collect();
        assert!(questions.recv_timeout(Duration::from_millis(50)).is_err(), "one too many");
        open.pop().expect("some")(Reply::Done);
        next(&mut line);
        drop(questions.recv().expect("there is a place again"));
        drop(hatch);
        asker.join().expect("no panic");
    }

    #[test]
    fn nonsense_breaks_the_line_and_asks_nothing() {
        let mut luck = crate::base::prng::SplitMix64::new(11);
        let whole = wire::question(5, &Action::Task("t1".into())).expect("a frame");
        let mut nonsense: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0xff; 64],
            wire::frame(5, &"NoSuchAction").expect("a frame"),
            wire::frame(5, &serde_json::json!({"KillAgent": "compute-0"})).expect("a frame"),
            wire::frame(0, &Note::Close).expect("a frame"),
            wire::empty(5),
            whole[..whole.len() - 1].to_vec(),
        ];
        for _ in 0..200 {
            let mut bytes = whole.clone();
            let at = 12 + luck.below(whole.len() as u64 - 12) as usize;
            // No letter of an action, and no end of a text.
            bytes[at] = 0x80 | luck.next_u64() as u8;
            nonsense.push(bytes);
        }
        for bytes in nonsense {
            let (hatch, mut line, questions) = hatch();
            next(&mut line);
            line.write_all(&bytes).expect("written");
            line.shutdown(Shutdown::Write).expect("shut");
            let mut rest = Vec::new();
            line.read_to_end(&mut rest).expect("an end");
            assert!(hatch.broken().is_some(), "{bytes:?}");
            assert!(rest.is_empty() && questions.try_recv().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_end_in_good_order_is_no_nonsense() {
        let (hatch, mut line, _questions) = hatch();
        next(&mut line);
        drop(line);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        // Nobody takes anything from the queue any more once both threads have ended.
        while hatch.outgoing.send(Outgoing::Ping).is_ok() {
            assert!(std::time::Instant::now() < deadline, "both threads end");
            std::thread::yield_now();
        }
        assert_eq!(hatch.broken(), None);
    }
}
