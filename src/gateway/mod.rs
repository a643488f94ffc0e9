//! The gateway: HTTP and JSON outside, [`Action`] and [`Reply`](crate::supervisor::action::Reply) inside.
//!
//! ```text
//!  socket ─► http: accept, our own user only ─► routes: JSON ─► Action ─► supervisor
//!                                                       JSON ◄─ Reply  ◄─┘
//! ```
//! 1. [`start`] binds the socket and runs everything else on one thread of its own, which sleeps in the kernel
//!    while nobody asks.
//! 2. `http` takes connections, limits them, and reads bodies.
//! 3. `routes` turns requests into actions and replies into JSON, here and not in the supervisor's loop.
//! 4. [`problem`] is what every error looks like.
//! 5. `messenger` passes messages on through shared memory, as a client of the swarm.
//! 6. [`client`] is the other end, for the command line and for tests.
//!
//! Invariants
//! 1. All that is known about the supervisor is [`Ask`]; the gateway could be a process of its own.
//! 2. Whatever a client sends or leaves out, the supervisor sees whole, checked actions or nothing.
//! 3. Nothing runs while nobody asks: no timer, no polling.

pub mod client;
mod http;
mod messenger;
pub mod payload;
pub mod problem;
mod routes;

use crate::jobs::Defaults;
use crate::os::socket::listen;
use crate::supervisor::action::{Action, Answer, Handle};
use rustix::net::SocketType;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Somebody who takes actions: the supervisor, or in tests one made of paper.
pub trait Ask: Send + Sync {
    /// Takes `action` and calls `answer` once, from any thread. `answer` is dropped uncalled when nobody is
    /// there any more.
    fn ask(&self, action: Action, answer: Answer);
}

impl Ask for Handle {
    fn ask(&self, action: Action, answer: Answer) {
        Handle::ask(self, action, answer);
    }
}

/// A running gateway. Dropping it stops it.
#[derive(Debug)]
pub struct Gateway {
    socket: PathBuf,
    closing: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Listens on `socket`, for processes of our own user and root only, and serves until the gateway is dropped.
/// `defaults` are what submitted tasks get when they do not say.
pub fn start(socket: &Path, handle: Handle, defaults: Defaults) -> io::Result<Gateway> {
    let messenger = messenger::Messenger::start(Arc::new(handle), socket)?;
    start_with(socket, Arc::new(messenger), defaults)
}

/// [`start`] for anybody who takes actions.
pub fn start_with(socket: &Path, supervisor: Arc<dyn Ask>, defaults: Defaults) -> io::Result<Gateway> {
    let listener = UnixListener::from(listen(socket, SocketType::STREAM)?);
    let (closing, is_closing) = watch::channel(false);
    let mut gateway = Gateway { socket: socket.to_owned(), closing, thread: None };
    // From here on dropping the gateway removes the socket.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::UnixListener::from_std(listener)?
    };
    let router = routes::router(supervisor, defaults, is_closing.clone());
    let serve = move || {
        runtime.block_on(http::serve(listener, router, is_closing));
        // Whoever is still connected is not waited for.
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("gateway".to_owned()).spawn(serve)?;
    gateway.thread = Some(thread);
    Ok(gateway)
}

impl Gateway {
    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops it: no new connections, event streams end, answers that are ready go out, the socket is removed.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.closing.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the gateway's thread has panicked");
        }
        let _ = fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests;
