//! The other end of the socket: a blocking client for the command line and for tests.
//!
//! One connection serves all requests of a client, so thousands of them in a row cost no set-up. Event streams
//! get one of their own.
//!
//! A gateway may die at any time; the next one takes over the listening socket. What may be asked twice is then asked
//! again, over a fresh connection; of everything else nobody knows whether it was done, and [`ClientError::Broken`] says so.

use super::problem::PROBLEM_JSON;
use crate::supervisor::events::Event;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// An older connection may be about to be closed by the other side; a fresh one costs microseconds.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Something that breaks off so often in a row is given up,
const REPEATS: u32 = 20;
/// with this pause in between. Fresh connections wait for the next gateway anyway.
const REPEAT_PAUSE: Duration = Duration::from_millis(10);
/// What went well for so long is no part of a row.
const CALM: Duration = Duration::from_secs(1);

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no swarm is running (socket {})", socket.display())]
    NotRunning {
        /// Where we knocked.
        socket: PathBuf,
    },
    /// The socket cannot be used.
    #[error("cannot use the control socket {}: {source}", socket.display())]
    Socket {
        /// Where we knocked.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The swarm refused, and says why.
    #[error("{detail}")]
    Problem {
        /// HTTP status.
        status: u16,
        /// The kind of problem.
        title: String,
        /// What exactly.
        detail: String,
    },
    /// The connection ended before the answer; what was asked may or may not have been done.
    #[error(
        "the connection ended before the answer came, and what was asked may or may not have been done: {0}"
    )]
    Broken(#[source] hyper::Error),
    /// The answer is not what this version understands.
    #[error("cannot understand the swarm's answer: {0}")]
    Answer(String),
}

/// Speaks to one running swarm.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    used: Instant,
}

/// An id as one segment of a path.
pub fn segment(id: &str) -> String {
    id.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) || (byte == b'.' && id != "." && id != "..")
        {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

impl Client {
    /// Connects to the control socket of a swarm.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let error = |source| ClientError::Socket { socket: socket.to_owned(), source };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(error)?;
        let connection = runtime.block_on(Connection::open(socket))?;
        Ok(Self { socket: socket.to_owned(), runtime, connection: Some(connection) })
    }

    /// Where it is connected to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for something. `path` begins with `/`; ids in it come from [`segment`].
    pub fn get(&mut self, path: &str) -> Result<Value, ClientError> {
        self.repeat(&Method::GET, path, None)
    }

    /// Sends something, once.
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.request(&Method::POST, path, Some(body))
    }

    /// Sends something that may come twice: a submission whose tasks all have an idempotency key, a stop.
    pub fn post_repeatable(&mut self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.repeat(&Method::POST, path, Some(body))
    }

    /// Removes something.
    pub fn delete(&mut self, path: &str) -> Result<Value, ClientError> {
        self.request(&Method::DELETE, path, None)
    }

    /// Passes on the events after number `after`, with `earlier` those of earlier lives first; with `follow` also those
    /// that happen from now on, until `on_event` has enough or the swarm ends.
    pub fn events(
        &mut self,
        after: u64,
        earlier: bool,
        follow: bool,
        mut on_event: impl FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let (mut last, mut patience, mut broken) = (after, Patience::default(), None);
        loop {
            let ended = self.stream(last, earlier && last == after, follow, &mut |event| {
                last = event.seq;
                on_event(event)
            });
            match ended {
                // The next gateway knows what happened meanwhile.
                Err(error @ ClientError::Broken(_)) if patience.lasts() => broken = Some(error),
                Err(ClientError::NotRunning { .. }) if broken.is_some() => {
                    return Err(broken.expect("just seen"));
                }
                ended => return ended,
            }
        }
    }

    fn repeat(&mut self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let (mut patience, mut broken) = (Patience::default(), None);
        loop {
            match self.request(method, path, body) {
                Err(error @ ClientError::Broken(_)) if patience.lasts() => broken = Some(error),
                // The swarm is gone, and nobody knows what it did before.
                Err(ClientError::NotRunning { .. }) if method != Method::GET && broken.is_some() => {
                    return Err(broken.expect("just seen"));
                }
                answer => return answer,
            }
        }
    }

    /// Passes on events until one connection ends.
    fn stream(
        &self,
        after: u64,
        earlier: bool,
        follow: bool,
        on_event: &mut impl FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let path = format!("/api/v1/events?after={after}&earlier={earlier}&follow={follow}");
        self.runtime.block_on(async {
            let mut connection = Connection::open(&self.socket).await?;
            let request = request(&Method::GET, &path, None)?;
            let response = connection.sender.send_request(request).await.map_err(ClientError::Broken)?;
            if response.status() != StatusCode::OK {
                return read_answer(response).await.map(|_| ());
            }
            let mut body = response.into_body();
            let mut lines = EventLines::default();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(ClientError::Broken)?.into_data() else { continue };
                lines.bytes.extend_from_slice(&data);
                while let Some(event) = lines.next()? {
                    if on_event(event).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    fn request(&mut self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let connection = self.connection.take().filter(|connection| connection.used.elapsed() < IDLE_LIMIT);
        let (connection, answer) = self.runtime.block_on(async {
            let ready = match connection {
                Some(connection) => connection.if_ready().await,
                None => None,
            };
            let mut connection = match ready {
                Some(connection) => connection,
                None => Connection::open(&self.socket).await?,
            };
            let response = connection.sender.send_request(request(method, path, body)?).await;
            let answer = read_answer(response.map_err(ClientError::Broken)?).await;
            connection.used = Instant::now();
            Ok((connection, answer))
        })?;
        if !matches!(answer, Err(ClientError::Broken(_))) {
            self.connection = Some(connection);
        }
        answer
    }
}

/// Counts how often in a row something broke off.
struct Patience {
    left: u32,
    since: Instant,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: REPEATS, since: Instant::now() }
    }
}

impl Patience {
    /// Whether it is tried again, now.
    fn lasts(&mut self) -> bool {
        if self.since.elapsed() > CALM {
            self.left = REPEATS;
        }
        if self.left > 0 {
            std::thread::sleep(REPEAT_PAUSE);
        }
        self.since = Instant::now();
        self.left.checked_sub(1).map(|left| self.left = left).is_some()
    }
}

impl Connection {
    async fn open(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket: socket.to_owned() }
            }
            _ => ClientError::Socket { socket: socket.to_owned(), source },
        })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(ClientError::Broken)?;
        // Turns only while a request of this client is under way; its errors come out there.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, used: Instant::now() })
    }

    /// This connection, if the next request may go over it.
    async fn if_ready(mut self) -> Option<Self> {
        // Between requests nothing turned: the other side's goodbye may lie unread.
        tokio::task::yield_now().await;
        self.sender.ready().await.is_ok().then_some(self)
    }
}

fn request(method: &Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
    request
        .body(Full::new(body))
        .map_err(|error| ClientError::Answer(format!("{path:?} is no path: {error}")))
}

async fn read_answer(response: Response<Incoming>) -> Result<Value, ClientError> {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let is_problem = kind.starts_with(PROBLEM_JSON);
    let body = response.into_body().collect().await.map_err(ClientError::Broken)?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| ClientError::Answer(error.to_string()));
    }
    let document: Value =
        if is_problem { serde_json::from_slice(&body).unwrap_or_default() } else { Value::Null };
    let text = |member: &str, or: &str| document[member].as_str().unwrap_or(or).to_owned();
    let title = text("title", status.canonical_reason().unwrap_or("Error"));
    Err(ClientError::Problem { status: status.as_u16(), detail: text("detail", &title), title })
}

/// Server-sent events out of pieces of a stream.
#[derive(Debug, Default)]
struct EventLines {
    bytes: Vec<u8>,
    data: String,
    /// Bytes of the front that were taken already.
    taken: usize,
}

impl EventLines {
    /// The next whole event, if it is there.
    fn next(&mut self) -> Result<Option<Event>, ClientError> {
        while let Some(length) = self.bytes[self.taken..].iter().position(|&byte| byte == b'\n') {
            let line = &self.bytes[self.taken..self.taken + length];
            self.taken += length + 1;
            let line = std::str::from_utf8(line).map_err(|error| ClientError::Answer(error.to_string()))?;
            let line = line.strip_suffix('\r').unwrap_or(line);
            if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                self.data.push('\n');
            } else if line.is_empty() && !self.data.is_empty() {
                let data = std::mem::take(&mut self.data);
                let event =
                    serde_json::from_str(&data).map_err(|error| ClientError::Answer(error.to_string()))?;
                return Ok(Some(event));
            }
        }
        self.bytes.drain(..self.taken);
        self.taken = 0;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_one_segment_of_a_path() {
        assert_eq!(segment("compute-0"), "compute-0");
        assert_eq!(segment("a/b c?ä"), "a%2Fb%20c%3F%C3%A4");
        assert_eq!((segment("v1.2"), segment("..")), ("v1.2".into(), "%2E%2E".into()));
    }

    #[test]
    fn events_come_out_however_the_stream_is_cut() {
        let event = r#"{"seq":1,"time":"t","severity":"info","kind":"k","agent":null,"text":"x"}"#;
        let stream = format!(": hello\n\nid: 1\nevent: k\ndata: {event}\n\nid: 1\r\ndata: {event}\r\n\r\n");
        for size in 1..stream.len() {
            let mut lines = EventLines::default();
            let mut seen = 0;
            for piece in stream.as_bytes().chunks(size) {
                lines.bytes.extend_from_slice(piece);
                while let Some(event) = lines.next().expect("events") {
                    assert_eq!((event.seq, &*event.kind), (1, "k"));
                    seen += 1;
                }
            }
            assert_eq!(seen, 2, "in pieces of {size}");
        }
    }

    #[test]
    fn nobody_there_is_an_error_of_its_own() {
        let error = Client::connect(Path::new("/nowhere/control.sock")).expect_err("absent");
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
        assert_eq!(error.to_string(), "no swarm is running (socket /nowhere/control.sock)");
    }
}
