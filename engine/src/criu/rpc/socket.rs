//! The socket to CRIU, or to who else speaks its RPC: one message a packet.

use crate::sys::fdpass;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, shutdown, socketpair};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The longest message of the other side. A request names every mount of a container.
const MAX_MESSAGE: usize = 1 << 20;

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// Why there is no message.
#[derive(Debug)]
pub(super) enum Deaf {
    /// The other side has hung up.
    Closed,
    /// It said nothing for as long as one would wait.
    Silent,
    /// It said more than anybody may.
    TooLong(usize),
    /// The socket failed.
    Failed(io::Error),
}

impl From<io::Error> for Deaf {
    fn from(error: io::Error) -> Deaf {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPIPE | Errno::ECONNRESET) => Deaf::Closed,
            _ => Deaf::Failed(error),
        }
    }
}

impl From<Deaf> for io::Error {
    fn from(deaf: Deaf) -> io::Error {
        match deaf {
            Deaf::Closed => io::ErrorKind::UnexpectedEof.into(),
            Deaf::Silent => io::ErrorKind::TimedOut.into(),
            Deaf::TooLong(len) => io::Error::other(format!("a message of {len} bytes")),
            Deaf::Failed(error) => error,
        }
    }
}

/// One end.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Our end, and the one to give away. CRIU takes who made the pair for its peer.
    pub(super) fn pair() -> io::Result<(Socket, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Socket(ours), theirs))
    }

    /// One that was handed over.
    pub(super) fn of(end: OwnedFd) -> Socket {
        Socket(end)
    }

    pub(super) fn say(&self, bytes: &[u8]) -> Result<(), Deaf> {
        self.say_with(bytes, &[])
    }

    pub(super) fn say_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Deaf> {
        Ok(fdpass::send(self.0.as_fd(), bytes, fds)?)
    }

    pub(super) fn hear(&self, patience: Duration) -> Result<Packet, Deaf> {
        await_readable(self.0.as_fd(), patience)?;
        // The kernel tells a packet's length before it is taken.
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let len = loop {
            match recv(self.0.as_raw_fd(), &mut [], peek) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(|errno| Deaf::from(io::Error::from(errno)))?,
            }
        };
        if len > MAX_MESSAGE {
            return Err(Deaf::TooLong(len));
        }
        let mut bytes = vec![0; len.max(1)];
        let (len, fds) = fdpass::receive(self.0.as_fd(), &mut bytes)?;
        if len == 0 {
            return Err(Deaf::Closed);
        }
        bytes.truncate(len);
        Ok(Packet { bytes, fds })
    }

    /// Ends the conversation for the other side.
    pub(super) fn hang_up(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

/// Waits until there is something to read, or an end.
pub(super) fn await_readable(fd: BorrowedFd<'_>, patience: Duration) -> Result<(), Deaf> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis().min(i32::MAX as u128 - 1) as i32 + 1)
            .unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Err(Deaf::Silent),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(Deaf::Failed(errno.into())),
        }
    }
}
