//! Unix sockets: listening so that nobody else can connect, and messages that carry descriptors.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::fs::{self, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

/// Connections that wait to be accepted; more are made to wait by the kernel.
const BACKLOG: i32 = 1024;
/// Descriptors in one message.
pub const FDS_MAX: usize = 16;
/// Bytes of one message.
pub const MESSAGE_MAX: usize = 64 << 10;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A socket at `path` that is never open to other users: its mode is set before anybody can connect. What a
/// killed owner left there is removed.
pub fn listen(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, FLAGS, None)?;
    match rustix::net::bind(&socket, &address) {
        // Left by a killed owner, unless it is something else or somebody answers there.
        Err(Errno::ADDRINUSE) if is_dead(path, kind) => {
            fs::remove_file(path)?;
            rustix::net::bind(&socket, &address)?;
        }
        other => other?,
    }
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn is_dead(path: &Path, kind: SocketType) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    is_socket && connect(path, kind).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Connects to the socket at `path`; messages on it never block.
pub fn connect(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, FLAGS, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The next connection, if one waits.
pub fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, FLAGS) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Two ends of one conversation in whole messages.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?)
}

/// Process and user at the other end, as the kernel knows them.
pub fn peer(socket: &OwnedFd) -> io::Result<(u32, u32)> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok((credentials.pid.as_raw_nonzero().get() as u32, credentials.uid.as_raw()))
}

/// Sends one whole message. [`io::ErrorKind::WouldBlock`] when the other side does not read.
pub fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} descriptors in one message, at most {FDS_MAX} are possible", fds.len()),
        ));
    }
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

/// What came.
#[derive(Debug)]
pub enum Received {
    /// A whole message of so many bytes, and its descriptors.
    Message(usize, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// The next message into `buffer`, never waiting. One that does not fit is an error.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut take = || rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut *buffer)], &mut control, flags);
    let found = match take() {
        // The other side hung up before it had read all of ours. The kernel says so once, and before it shows what
        // the other side had said.
        Err(Errno::CONNRESET) => take(),
        first => first,
    };
    let found = match found {
        Ok(found) => found,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
        Err(Errno::CONNRESET | Errno::PIPE) => return Ok(Received::Closed),
        Err(error) => return Err(error.into()),
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if found.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of more than {} bytes or {FDS_MAX} descriptors", buffer.len()),
        ));
    }
    if found.bytes == 0 {
        return Ok(Received::Closed);
    }
    Ok(Received::Message(found.bytes, fds))
}

/// Waits until something can be received, at most `timeout`. True when there is something, or an end. A pidfd has its end
/// when its process has.
pub fn wait(socket: &OwnedFd, timeout: std::time::Duration) -> bool {
    wait_for(socket.as_fd(), rustix::event::PollFlags::IN, timeout)
}

/// Waits until something can be written, at most `timeout`. A pipe takes `PIPE_BUF` bytes at once then.
pub fn wait_for_room(writer: BorrowedFd<'_>, timeout: std::time::Duration) -> bool {
    wait_for(writer, rustix::event::PollFlags::OUT, timeout)
}

fn wait_for(fd: BorrowedFd<'_>, what: rustix::event::PollFlags, timeout: std::time::Duration) -> bool {
    let timeout = rustix::time::Timespec {
        tv_sec: timeout.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, what)];
    rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn messages_stay_whole_and_carry_descriptors() {
        let (here, there) = pair().expect("pair");
        let mut buffer = vec![0; MESSAGE_MAX];
        assert!(matches!(receive(&there, &mut buffer), Ok(Received::Nothing)));
        let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        send(&here, b"one", &[file.as_fd(), here.as_fd()]).expect("room");
        send(&here, b"two", &[]).expect("room");
        let Ok(Received::Message(3, fds)) = receive(&there, &mut buffer) else { panic!("one message") };
        assert_eq!((&buffer[..3], fds.len()), (&b"one"[..], 2));
        std::fs::File::from(fds.into_iter().next().expect("two")).write_all(b"hello").expect("the same file");
        assert_eq!(rustix::fs::fstat(&file).expect("stat").st_size, 5);
        assert!(matches!(receive(&there, &mut buffer), Ok(Received::Message(3, fds)) if fds.is_empty()));
        assert!(receive(&here, &mut buffer[..1]).is_ok());
        send(&there, b"too long", &[]).expect("room");
        assert!(receive(&here, &mut buffer[..4]).is_err(), "cut off");
        drop(here);
        // A child that another test is just starting may hold a copy for a moment.
        while !matches!(receive(&there, &mut buffer), Ok(Received::Closed)) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn last_words_are_heard_even_if_ours_were_not() {
        let (here, there) = pair().expect("pair");
        send(&here, b"unread", &[]).expect("room");
        send(&there, b"go away", &[]).expect("room");
        drop(there);
        let mut buffer = vec![0; MESSAGE_MAX];
        assert!(matches!(receive(&here, &mut buffer), Ok(Received::Message(7, _))));
        assert_eq!(&buffer[..7], b"go away");
        assert!(matches!(receive(&here, &mut buffer), Ok(Received::Closed)));
    }

    #[test]
    fn the_place_of_a_dead_listener_is_taken_and_that_of_a_living_one_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let first = listen(&path, SocketType::SEQPACKET).expect("free");
        let guest = connect(&path, SocketType::SEQPACKET).expect("somebody listens");
        let host = accept(&first).expect("sound").expect("somebody waits");
        let (pid, uid) = peer(&host).expect("the kernel knows");
        assert_eq!((pid, uid), (std::process::id(), rustix::process::getuid().as_raw()));
        assert!(listen(&path, SocketType::SEQPACKET).is_err(), "taken");
        drop((first, guest, host));
        while listen(&path, SocketType::SEQPACKET).is_err() {
            std::thread::yield_now();
        }
    }
}
