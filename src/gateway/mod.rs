//! The gateway: HTTP and JSON outside, [`Action`] and [`Reply`](crate::supervisor::action::Reply) inside. It is a process
//! of its own: whatever happens to it, the swarm computes on, and the supervisor starts another one.
//!
//! ```text
//!  socket ─► http: accept, our own user only ─► routes: JSON ─► Action ─► remote ─► the supervisor's hatch
//!                                                       JSON ◄─ Reply  ◄─┘
//! ```
//! 1. [`main`] is handed the listening socket, which stays open in the supervisor, and a line to it; `serve` runs
//!    everything on one thread, which sleeps in the kernel while nobody asks.
//! 2. `http` takes connections, limits them, and reads bodies.
//! 3. `routes` turns requests into actions and replies into JSON.
//! 4. `remote` carries actions to the supervisor and brings replies and news.
//! 5. [`problem`] is what every error looks like.
//! 6. `messenger` passes messages on through shared memory, as a client of the swarm.
//! 7. [`client`] is the other end, for the command line and for tests.
//!
//! Invariants
//! 1. All that is known about the supervisor is [`Ask`] and [`wire`].
//! 2. Whatever a client sends or leaves out, the supervisor sees whole, checked actions or nothing.
//! 3. Nothing here has to outlive the process: who was answered finds it in the supervisor, who was not asks again.
//! 4. Nothing runs while nobody asks: no timer, no polling. Only the supervisor knocks now and then.

pub mod client;
mod http;
mod messenger;
pub mod payload;
pub mod problem;
mod remote;
mod routes;

use crate::jobs::Defaults;
use crate::os::process;
use crate::supervisor::action::{Action, Answer};
use crate::supervisor::wire::{self, GatewayStart, Note};
use anyhow::Context as _;
use messenger::Messenger;
use remote::Remote;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

/// Somebody who takes actions: the supervisor, or in tests one made of paper.
pub trait Ask: Send + Sync {
    /// Takes `action` and calls `answer` once, from any thread. `answer` is dropped uncalled when nobody is
    /// there any more.
    fn ask(&self, action: Action, answer: Answer);
}

/// The main of the gateway's process. Its words: the numbers of the descriptors that it was handed.
pub fn main(mut words: impl Iterator<Item = String>) -> i32 {
    let mut word = || words.next().unwrap_or_default();
    match run(&word(), &word()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("the gateway cannot run: {error:#}");
            1
        }
    }
}

fn run(listener: &str, line: &str) -> anyhow::Result<()> {
    let inherited = |word: &str| anyhow::Ok(process::inherited(word.parse()?)?);
    let listener = UnixListener::from(inherited(listener).context("the control socket")?);
    let mut line = UnixStream::from(inherited(line).context("the line to the supervisor")?);
    let start = greeting(&mut line).context("the supervisor's first word")?;
    crate::cli::log::init_agent(&start.log_filter, start.log_json);
    let defaults = start.defaults();
    serve(listener, line, defaults, |supervisor| {
        Ok(Arc::new(Messenger::start(supervisor, &start.control)?))
    })?;
    Ok(())
}

fn greeting(line: &mut UnixStream) -> anyhow::Result<GatewayStart> {
    let mut body = Vec::new();
    wire::read(line, &mut body)?.context("it has hung up")?;
    match serde_json::from_slice(&body)? {
        Note::Start(start) => Ok(start),
        other => anyhow::bail!("it should say how to start and says {other:?}"),
    }
}

/// Serves whoever connects to `listener`, until the supervisor at the other end of `line` says that it is over or is
/// gone. `defaults` are what submitted tasks get when they do not say; `around` puts itself between requests and
/// supervisor.
fn serve(
    listener: UnixListener,
    line: UnixStream,
    defaults: Defaults,
    around: impl FnOnce(Arc<dyn Ask>) -> io::Result<Arc<dyn Ask>>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::UnixListener::from_std(listener)?
    };
    let (remote, heard) = Remote::start(line, runtime.handle().clone())?;
    let router = routes::router(around(Arc::new(remote))?, defaults, heard.closing.clone(), heard.news);
    runtime.block_on(async {
        tokio::select! {
            () = http::serve(listener, router, heard.closing) => {}
            _ = heard.lost => {}
        }
    });
    // Whoever is still connected is not waited for.
    runtime.shutdown_background();
    Ok(())
}

#[cfg(test)]
mod tests;
