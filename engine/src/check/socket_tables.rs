//! The sockets of one network namespace, as sock_diag lists them.

use crate::net::netlink::{Attributes, DUMP, Messages, Netlink, read_u32};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UNIX_SHOW_NAME: u32 = 1;
const UNIX_SHOW_PEER: u32 = 4;
const UNIX_SHOW_QUEUES: u32 = 16;

/// TCP's states, as the kernel numbers them.
pub mod tcp {
    /// `TCP_ESTABLISHED`.
    pub const ESTABLISHED: u8 = 1;
    /// `TCP_SYN_SENT`.
    pub const SYN_SENT: u8 = 2;
    /// `TCP_LISTEN`.
    pub const LISTEN: u8 = 10;
    /// `TCP_CLOSE`.
    pub const CLOSE: u8 = 7;
}

/// An IPv4 or IPv6 socket.
#[derive(Clone, Debug)]
pub struct Inet {
    /// TCP's state; for UDP whether it is connected.
    pub state: u8,
    /// Where it is bound.
    pub local: (IpAddr, u16),
    /// Whom it is connected to.
    pub remote: (IpAddr, u16),
    /// Bytes to be read, or connections to be accepted.
    pub receive_queue: u32,
    /// Bytes not sent or not acknowledged.
    pub send_queue: u32,
}

/// A unix socket.
#[derive(Clone, Debug)]
pub struct Unix {
    /// `SOCK_…`.
    pub kind: u8,
    /// As TCP's.
    pub state: u8,
    /// The peer's inode, 0 for none.
    pub peer: u32,
    /// Its name, abstract ones with `@`.
    pub name: String,
    /// Bytes to be read, or connections to be accepted.
    pub receive_queue: u32,
}

/// All of a network namespace, by inode.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// TCP.
    pub tcp: HashMap<u64, Inet>,
    /// UDP.
    pub udp: HashMap<u64, Inet>,
    /// Unix.
    pub unix: HashMap<u64, Unix>,
    /// Unread bytes of netlink sockets.
    pub netlink: HashMap<u64, u64>,
}

impl Sockets {
    /// Lists the sockets of this thread's network namespace.
    pub fn here() -> io::Result<Sockets> {
        let mut diag = Netlink::open(NETLINK_SOCK_DIAG)?;
        let mut sockets = Sockets::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            inet(&mut diag, family as u8, libc::IPPROTO_TCP as u8, &mut sockets.tcp)?;
            // A kernel without udp_diag answers ENOENT.
            let _ = inet(&mut diag, family as u8, libc::IPPROTO_UDP as u8, &mut sockets.udp);
        }
        unix(&mut diag, &mut sockets.unix)?;
        let table = super::proc::read("/proc/thread-self/net/netlink", 16 << 20).unwrap_or_default();
        sockets.netlink.extend(table.lines().filter_map(netlink_line));
        Ok(sockets)
    }
}

/// "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode".
pub(crate) fn netlink_line(line: &str) -> Option<(u64, u64)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    Some((words.get(9)?.parse().ok()?, words.get(4)?.parse().ok()?))
}

fn inet(diag: &mut Netlink, family: u8, protocol: u8, into: &mut HashMap<u64, Inet>) -> io::Result<()> {
    // struct inet_diag_req_v2: family, protocol, extensions, pad, states, id.
    let mut request = [0; 56];
    request[..2].copy_from_slice(&[family, protocol]);
    request[4..8].fill(0xff);
    let mut messages = Messages::new();
    messages.message(SOCK_DIAG_BY_FAMILY, DUMP).raw(&request);
    diag.dump(&mut messages, |answer| into.extend(parse_inet(answer.payload)))
}

/// `struct inet_diag_msg`.
pub(crate) fn parse_inet(payload: &[u8]) -> Option<(u64, Inet)> {
    let family = *payload.first()?;
    let port = |at: usize| Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == libc::AF_INET {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(payload.get(at..at + 4)?).ok()?).into())
        } else {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(payload.get(at..at + 16)?).ok()?);
            Some(address.to_ipv4_mapped().map_or(address.into(), IpAddr::from))
        }
    };
    let socket = Inet {
        state: *payload.get(1)?,
        local: (address(8)?, port(4)?),
        remote: (address(24)?, port(6)?),
        receive_queue: read_u32(payload, 56)?,
        send_queue: read_u32(payload, 60)?,
    };
    Some((u64::from(read_u32(payload, 68)?), socket))
}

fn unix(diag: &mut Netlink, into: &mut HashMap<u64, Unix>) -> io::Result<()> {
    // struct unix_diag_req: family, protocol, pad, states, inode, show, cookie.
    let mut request = [0; 24];
    request[0] = libc::AF_UNIX as u8;
    request[4..8].fill(0xff);
    let show = UNIX_SHOW_NAME | UNIX_SHOW_PEER | UNIX_SHOW_QUEUES;
    request[12..16].copy_from_slice(&show.to_ne_bytes());
    let mut messages = Messages::new();
    messages.message(SOCK_DIAG_BY_FAMILY, DUMP).raw(&request);
    diag.dump(&mut messages, |answer| into.extend(parse_unix(answer.payload)))
}

/// `struct unix_diag_msg` with attributes 0 name, 2 peer, 4 queues.
pub(crate) fn parse_unix(payload: &[u8]) -> Option<(u64, Unix)> {
    let attributes = Attributes::after(payload, 16);
    let name = attributes.find(0).unwrap_or_default();
    let (first, rest) = name.split_first().unwrap_or((&b' ', &[]));
    let name = match first {
        0 => format!("@{}", String::from_utf8_lossy(rest)),
        _ => String::from_utf8_lossy(name).trim_end_matches(['\0', ' ']).to_owned(),
    };
    let socket = Unix {
        kind: *payload.get(1)?,
        state: *payload.get(2)?,
        peer: attributes.find(2).and_then(|value| read_u32(value, 0)).unwrap_or(0),
        name,
        receive_queue: attributes.find(4).and_then(|value| read_u32(value, 0)).unwrap_or(0),
    };
    Some((u64::from(read_u32(payload, 4)?), socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128), line in ".{0,80}") {
            let _ = (parse_inet(&bytes), parse_unix(&bytes), netlink_line(&line));
        }
    }
}
