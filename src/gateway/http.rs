//! Connections and bodies: who may connect, how many, how long they may take, how much they may send.

use super::problem::Problem;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

/// Largest body of a request. A job of 100,000 tasks has about 20 MB.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// A body that is too large is read on and thrown away up to here, so that its sender sees the answer rather
/// than a broken pipe.
const DISCARD_BYTES_MAX: usize = 4 * BODY_BYTES_MAX;
/// Connections at once; further ones wait in the backlog. Each may have one question open in the supervisor, which takes
/// a bounded number.
pub const CONNECTIONS_MAX: usize = 256;
/// Time for the head of a request, and for a connection to be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Time for the body of a request.
const BODY_LIMIT: Duration = Duration::from_secs(30);
/// At the end answers that are ready get so long to go out.
const FAREWELL: Duration = Duration::from_millis(250);
/// When no connection can be accepted, descriptors are short; trying again at once would not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts and serves until `closing` says so.
pub async fn serve(listener: UnixListener, router: Router, mut closing: watch::Receiver<bool>) {
    let own = rustix::process::geteuid().as_raw();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let is_closing = closing.clone();
    let accept = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) if is_allowed(&stream, own) => {
                    let connection = connection(stream, router.clone(), is_closing.clone());
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Ok((stream, _)) => {
                    let uid = stream.peer_cred().map(|peer| peer.uid()).ok();
                    tracing::warn!(uid, "somebody else tried to connect to the control socket");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the control socket");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
    drop(listener);
    // All places are free when the last connection has ended.
    let _ = timeout(FAREWELL, places.acquire_many(CONNECTIONS_MAX as u32)).await;
}

/// The socket's mode keeps others out already; this holds even where a file system ignores modes.
fn is_allowed(stream: &UnixStream, own: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn connection(stream: UnixStream, router: Router, mut closing: watch::Receiver<bool>) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    // What goes wrong on one connection is its client's to notice.
    tokio::select! {
        _ = &mut served => return,
        _ = closing.wait_for(|closing| *closing) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

/// The whole body of a request, or why not.
pub async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let waits = headers.contains_key(header::EXPECT);
    match timeout(BODY_LIMIT, collect(announced, waits, body)).await {
        Ok(body) => body,
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body was not complete after {} s", BODY_LIMIT.as_secs()),
        )),
    }
}

async fn collect(announced: Option<u64>, waits: bool, mut body: Body) -> Result<Bytes, Problem> {
    let too_large = || {
        let found = announced.map_or_else(String::new, |bytes| format!(" of {bytes} bytes"));
        let allowed = BODY_BYTES_MAX >> 20;
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the body{found} is too large, at most {allowed} MiB are allowed; submit in several requests"
            ),
        )
    };
    let keep = announced.is_none_or(|bytes| bytes <= BODY_BYTES_MAX as u64);
    if !keep && waits {
        // The client asks before it sends.
        return Err(too_large());
    }
    let mut whole = Vec::with_capacity(announced.filter(|_| keep).unwrap_or(0) as usize);
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad_request(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen <= BODY_BYTES_MAX && keep {
            whole.extend_from_slice(&data);
        } else {
            whole = Vec::new();
            if seen > DISCARD_BYTES_MAX {
                break;
            }
        }
    }
    if keep && seen <= BODY_BYTES_MAX { Ok(whole.into()) } else { Err(too_large()) }
}
