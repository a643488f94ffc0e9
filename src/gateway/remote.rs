//! The gateway's end of the line to the supervisor, whose end is `supervisor::hatch`: questions go out, answers and notes
//! come in. Bytes are read and written by two threads, so that an answer of many megabytes holds up no other request.

use super::Ask;
use crate::supervisor::action::{Action, Answer, Refused, Reply};
use crate::supervisor::wire::{self, Note};
use crossbeam::channel::{Sender, unbounded};
use std::collections::HashMap;
use std::io::{self, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

/// See the module.
pub(super) struct Remote {
    outgoing: Sender<Vec<u8>>,
    open: Open,
    asked: AtomicU64,
    /// Kept, so that nobody takes the end of the line for a good-bye.
    _close: watch::Sender<bool>,
}

/// What the supervisor says of its own accord.
pub(super) struct Heard {
    /// It is over: time for a good-bye.
    pub(super) closing: watch::Receiver<bool>,
    /// It is gone without a word: there is nothing to be said to anybody, who will ask the next gateway.
    pub(super) lost: oneshot::Receiver<()>,
    /// Number of the latest event.
    pub(super) news: watch::Receiver<u64>,
}

/// Questions without an answer, by number.
type Open = Arc<Mutex<HashMap<u64, Answer>>>;

fn lock(open: &Open) -> MutexGuard<'_, HashMap<u64, Answer>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    /// Takes the line, whose first note was read. Signs of life come from `runtime`: if it does not turn, there are none.
    pub(super) fn start(line: UnixStream, runtime: Handle) -> io::Result<(Self, Heard)> {
        let (outgoing, frames) = unbounded::<Vec<u8>>();
        let open = Open::default();
        let (close, closing) = watch::channel(false);
        let (tell, news) = watch::channel(0);
        let (here, lost) = oneshot::channel();
        let mut writer = line.try_clone()?;
        std::thread::Builder::new()
            .name("line-out".to_owned())
            .spawn(move || frames.iter().try_for_each(|frame| writer.write_all(&frame)))?;
        let (their_open, their_close) = (open.clone(), close.clone());
        let reader = Reader {
            open: their_open,
            outgoing: outgoing.clone(),
            runtime,
            close: their_close,
            tell,
            _here: here,
        };
        std::thread::Builder::new().name("line-in".to_owned()).spawn(move || reader.run(line))?;
        let remote = Self { outgoing, open, asked: AtomicU64::new(0), _close: close };
        Ok((remote, Heard { closing, lost, news }))
    }
}

impl Ask for Remote {
    fn ask(&self, action: Action, answer: Answer) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        match wire::question(number, &action) {
            Ok(frame) => {
                // Before it is asked: the answer may be quick.
                lock(&self.open).insert(number, answer);
                let _ = self.outgoing.send(frame);
            }
            Err(why) => answer(Reply::Refused(Refused::Conflict(why))),
        }
    }
}

struct Reader {
    open: Open,
    outgoing: Sender<Vec<u8>>,
    runtime: Handle,
    close: watch::Sender<bool>,
    tell: watch::Sender<u64>,
    /// Dropped at the end.
    _here: oneshot::Sender<()>,
}

impl Reader {
    /// Until the supervisor is gone.
    fn run(self, line: UnixStream) {
        let (mut stream, mut body) = (BufReader::new(line), Vec::new());
        while let Ok(Some(number)) = wire::read(&mut stream, &mut body) {
            match number {
                0 => self.on_note(&body),
                number => self.on_answer(number, &body),
            }
        }
    }

    fn on_note(&self, body: &[u8]) {
        match serde_json::from_slice(body) {
            Ok(Note::News(latest)) => _ = self.tell.send_replace(latest),
            Ok(Note::Ping) => {
                let outgoing = self.outgoing.clone();
                self.runtime.spawn(async move { outgoing.send(wire::empty(0)) });
            }
            Ok(Note::Close) => _ = self.close.send_replace(true),
            other => tracing::error!(?other, "the supervisor said what cannot be understood"),
        }
    }

    fn on_answer(&self, number: u64, body: &[u8]) {
        let Some(answer) = lock(&self.open).remove(&number) else { return };
        if body.is_empty() {
            // Dropped uncalled.
            return;
        }
        answer(serde_json::from_slice(body).unwrap_or_else(|error| {
            Reply::Refused(Refused::Conflict(format!("the supervisor's answer cannot be read: {error}")))
        }));
    }
}
