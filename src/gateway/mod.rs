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
//! 5. [`client`] is the other end, for the command line and for tests.
//!
//! Invariants
//! 1. All that is known about the supervisor is [`Ask`]; the gateway could be a process of its own.
//! 2. Whatever a client sends or leaves out, the supervisor sees whole, checked actions or nothing.
//! 3. Nothing runs while nobody asks: no timer, no polling.

pub mod client;
mod http;
pub mod problem;
mod routes;

use crate::jobs::Defaults;
use crate::supervisor::action::{Action, Answer, Handle};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Connections that wait to be accepted; more are made to wait by the kernel.
const BACKLOG: i32 = 1024;

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
    start_with(socket, Arc::new(handle), defaults)
}

/// [`start`] for anybody who takes actions.
pub fn start_with(socket: &Path, supervisor: Arc<dyn Ask>, defaults: Defaults) -> io::Result<Gateway> {
    let listener = listen(socket)?;
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

/// A socket that is never open to others: its mode is set before anybody can connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::bind(&socket, &address) {
        // Left by a killed gateway, unless it is something else or somebody answers there.
        Err(Errno::ADDRINUSE) if is_dead_socket(path) => {
            fs::remove_file(path)?;
            rustix::net::bind(&socket, &address)?;
        }
        other => other?,
    }
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn is_dead_socket(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    is_socket
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests;
