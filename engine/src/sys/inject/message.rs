//! What the helper tells the engine: one packet, with the descriptor beside it.
//!
//! ```text
//! kind: u8 | stopped: u64, nanoseconds, little-endian | why: UTF-8
//! ```

use super::{InjectionError, Taken};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, setsockopt, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

const TAKEN: u8 = 0;
const EXITED: u8 = 1;
const NOT_NOW: u8 = 2;
const REFUSED: u8 = 3;
const HEADER: usize = 9;
const MAX_WHY: usize = 1024;

/// What came of an injection, as the engine learns it.
pub enum Outcome {
    /// It succeeded.
    Taken(Taken),
    /// The process is gone.
    Exited,
    /// Perhaps later.
    NotNow(String),
    /// No.
    Refused(String),
    /// The helper ended without a word.
    Silence,
}

/// Sends what came of it.
pub fn send(socket: BorrowedFd<'_>, outcome: &Result<Taken, InjectionError>) -> io::Result<()> {
    let (kind, stopped, why, descriptor) = match outcome {
        Ok(taken) => (TAKEN, taken.stopped, String::new(), Some(taken.descriptor.as_raw_fd())),
        Err(InjectionError::Exited) => (EXITED, Duration::ZERO, String::new(), None),
        Err(InjectionError::NotNow(why)) => (NOT_NOW, Duration::ZERO, why.clone(), None),
        Err(InjectionError::Refused(why)) => (REFUSED, Duration::ZERO, why.clone(), None),
        Err(InjectionError::Helper(cause)) => (REFUSED, Duration::ZERO, cause.to_string(), None),
    };
    let nanoseconds = u64::try_from(stopped.as_nanos()).unwrap_or(u64::MAX);
    let mut packet = vec![kind];
    packet.extend(nanoseconds.to_le_bytes());
    packet.extend(why.bytes().take(MAX_WHY));
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&packet)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Waits for it. `WouldBlock` when nothing comes in time.
pub fn receive(socket: &OwnedFd, patience: Duration) -> io::Result<Outcome> {
    let timeout = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    setsockopt(socket, ReceiveTimeout, &timeout)?;
    let mut packet = [0u8; HEADER + MAX_WHY];
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut packet)];
    let received = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    let length = received.bytes;
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel has just installed these for us; nobody else owns them.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    if length < HEADER {
        return Ok(Outcome::Silence);
    }
    let why = String::from_utf8_lossy(&packet[HEADER..length]).into_owned();
    let nanoseconds = packet[1..HEADER].try_into().map(u64::from_le_bytes).unwrap_or(0);
    Ok(match (packet[0], descriptors.pop()) {
        (TAKEN, Some(descriptor)) => {
            Outcome::Taken(Taken { descriptor, stopped: Duration::from_nanos(nanoseconds) })
        }
        (EXITED, _) => Outcome::Exited,
        (NOT_NOW, _) => Outcome::NotNow(why),
        (REFUSED, _) => Outcome::Refused(why),
        _ => Outcome::Silence,
    })
}
