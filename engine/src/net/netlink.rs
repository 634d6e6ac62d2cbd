//! Netlink, synchronous and small: one socket, one message builder, one walker
//! over attributes. Serves rtnetlink (addresses), nfnetlink (nftables) and
//! sock_diag (pre-flight).
//!
//! ```text
//! message    length u32 | type u16 | flags u16 | sequence u32 | port u32 | payload, padded to 4
//! attribute  length u16 | type u16 | value, padded to 4
//! ```
//!
//! The kernel handles a request to one of these families inside `sendto`, so
//! its answer is in the socket's queue when `sendto` returns: receiving never
//! waits, and an empty queue is an error instead of a hang.

use netlink_sys::{Socket, SocketAddr};
use std::io;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_EXCL`, for a new thing.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`, for a new thing.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`, for a new thing.
pub const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// The most messages of one dump that are kept. A host with more sockets or
/// addresses than this gets an error, not unbounded memory.
const MAX_DUMP: usize = 4_000_000;
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// A netlink socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// One message of an answer.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The message's type.
    pub kind: u16,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Netlink {
    /// Opens a socket of `protocol` (`NETLINK_ROUTE` 0, `NETLINK_SOCK_DIAG` 4,
    /// `NETLINK_NETFILTER` 12).
    pub fn open(protocol: isize) -> io::Result<Netlink> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Large dumps; the kernel may cap it, which only costs retries.
        let _ = socket.set_rx_buf_sz(4u32 << 20);
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends `messages` in one call and collects the kernel's word on each that
    /// asked for one: the first refusal is the error. `tolerated` refusals (errno
    /// values) count as consent, which is what makes an operation idempotent.
    pub fn request(&mut self, messages: &mut Messages, tolerated: &[i32]) -> io::Result<()> {
        let wanted = messages.number(&mut self.sequence);
        self.send(&messages.bytes)?;
        let mut acknowledged = 0;
        let mut refusal: Option<io::Error> = None;
        // What was refused as a whole (a batch) answers less often than asked:
        // an empty queue ends the wait once there was a refusal.
        while acknowledged < wanted {
            let datagram = match self.receive() {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && acknowledged > 0 => break,
                Err(error) => return Err(refusal.unwrap_or(error)),
            };
            for answer in Walk(&datagram) {
                if answer.kind == NLMSG_ERROR {
                    acknowledged += 1;
                    let code = read_i32(answer.payload, 0).unwrap_or(-libc::EPROTO);
                    if code != 0 && !tolerated.contains(&-code) && refusal.is_none() {
                        refusal = Some(io::Error::from_raw_os_error(-code));
                    }
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Sends one dump request and hands every message of the answer to `take`.
    pub fn dump(&mut self, messages: &mut Messages, mut take: impl FnMut(Answer<'_>)) -> io::Result<()> {
        messages.number(&mut self.sequence);
        self.send(&messages.bytes)?;
        let mut seen = 0;
        loop {
            let datagram = self.receive()?;
            for answer in Walk(&datagram) {
                match answer.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match read_i32(answer.payload, 0) {
                            Some(0) => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code.unwrap_or(-libc::EPROTO))),
                        };
                    }
                    _ => take(answer),
                }
                seen += 1;
                if seen > MAX_DUMP {
                    return Err(io::Error::other("the kernel's answer does not end"));
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // An answer to an earlier request that nobody waited for must not be
        // taken for the answer to this one.
        while self.receive().is_ok() {}
        match self.socket.send(bytes, 0)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::Error::other("netlink took only a part of the message")),
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        let length = self.socket.recv(&mut buffer, libc::MSG_TRUNC)?;
        if length > buffer.len() {
            return Err(io::Error::other("a netlink message is larger than any that the kernel sends"));
        }
        Ok(buffer)
    }
}

/// Requests being built, back to back.
#[derive(Default)]
pub struct Messages {
    bytes: Vec<u8>,
    open: Option<usize>,
}

impl Messages {
    /// None yet.
    pub fn new() -> Messages {
        Messages::default()
    }

    /// What was built, for a part that is to go into a message later.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.seal();
        self.bytes
    }

    /// Begins a message; the one before it is complete.
    pub fn message(&mut self, kind: u16, flags: u16) -> &mut Messages {
        self.seal();
        self.open = Some(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self
    }

    /// Appends a family's fixed header, or any raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Messages {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Messages {
        let length = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// Appends an attribute that is a C string.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Messages {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute that is a number in network order (netfilter's way).
    pub fn number_be(&mut self, kind: u16, value: u32) -> &mut Messages {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends an attribute that holds others.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Messages)) -> &mut Messages {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        inner(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn seal(&mut self) {
        if let Some(start) = self.open.take() {
            let length = (self.bytes.len() - start) as u32;
            self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Gives every message its sequence number; says how many ask for an answer.
    fn number(&mut self, sequence: &mut u32) -> usize {
        self.seal();
        let mut start = 0;
        let mut wanted = 0;
        while let Some(length) = read_u32(&self.bytes, start).map(|length| length as usize) {
            *sequence = sequence.wrapping_add(1);
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
            wanted += usize::from(read_u16(&self.bytes, start + 6).is_some_and(|flags| flags & ACK != 0));
            start += length.next_multiple_of(4).max(HEADER);
        }
        wanted
    }
}

/// Walks the messages of a datagram; a length that does not fit ends the walk.
pub(crate) struct Walk<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Walk<'a> {
    type Item = Answer<'a>;
    fn next(&mut self) -> Option<Answer<'a>> {
        let length = read_u32(self.0, 0)? as usize;
        let kind = read_u16(self.0, 4)?;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Answer { kind, payload })
    }
}

/// Walks attributes; a length that does not fit ends the walk.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes after a payload's fixed header of `skip` bytes.
    pub fn after(payload: &'a [u8], skip: usize) -> Attributes<'a> {
        Attributes(payload.get(skip.next_multiple_of(4)..).unwrap_or(&[]))
    }

    /// The first attribute of this type.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(this, value)| (this == kind).then_some(value))
    }

    /// The first attribute of this type as text, without the closing zero.
    pub fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = read_u16(self.0, 0)? as usize;
        let kind = read_u16(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// Two bytes at `offset`, in the host's order.
pub fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset.checked_add(2)?)?.try_into().ok()?))
}

/// Four bytes at `offset`, in the host's order.
pub fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

/// Four bytes at `offset`, in the host's order, signed.
pub fn read_i32(bytes: &[u8], offset: usize) -> Option<i32> {
    read_u32(bytes, offset).map(|value| value as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn walking_arbitrary_bytes_ends_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            for answer in Walk(&bytes) {
                for (_, value) in Attributes(answer.payload) {
                    let _ = Attributes(value).count();
                }
            }
            let _ = Attributes(&bytes).text(1);
        }

        #[test]
        fn what_was_built_is_what_is_walked(values in proptest::collection::vec((1u16..100, proptest::collection::vec(any::<u8>(), 0..64)), 0..20)) {
            let mut messages = Messages::new();
            messages.message(7, ACK).raw(&[1, 2, 3, 4]);
            messages.nest(5, |inner| for (kind, value) in &values { inner.attribute(*kind, value); });
            let mut sequence = 0;
            prop_assert_eq!(messages.number(&mut sequence), 1);
            let answer = Walk(&messages.bytes).next().unwrap();
            let inner = Attributes::after(answer.payload, 4).find(5).unwrap();
            let walked: Vec<_> = Attributes(inner).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(walked, values);
        }
    }
}
