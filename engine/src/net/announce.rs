//! Telling the network that an address lives here now.
//!
//! Switches and neighbours keep sending to the source until they hear otherwise:
//! IPv4 by gratuitous ARP, in the request form and the reply form since some
//! stacks heed only one (RFC 5227 §3), IPv6 by an unsolicited neighbour
//! advertisement with the override flag (RFC 4861 §7.2.6). Frames are built
//! before the freeze and go out through a packet socket, past our own drop table.

use super::address::is_held;
use super::interface::Interface;
use super::netlink::Netlink;
use crate::sys::packet::{Hears, PacketSocket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const BROADCAST: [u8; 6] = [0xff; 6];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
/// QEMU's defaults (announce-initial 50 ms, step 100 ms, rounds 5): frames get
/// lost while a switch relearns, so the news is repeated at growing intervals.
const REPEATS: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(350),
    Duration::from_millis(450),
];

/// Announces one address on one interface.
pub struct Announcer {
    interface: u32,
    address: IpAddr,
    route: Netlink,
    /// Absent where the link resolves no addresses: there is nobody to tell.
    socket: Option<PacketSocket>,
    frames: Vec<Vec<u8>>,
}

impl Announcer {
    /// Opens the socket and builds the frames.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW; the interface vanished.
    pub fn prepare(interface: &Interface, address: IpAddr) -> io::Result<Announcer> {
        let open = |_| PacketSocket::open(interface.index, Hears::Nothing);
        let frames = match (interface.ethernet, address) {
            (None, _) => Vec::new(),
            (Some(own), IpAddr::V4(address)) => vec![
                arp(own, ARP_REQUEST, address, address, [0; 6]),
                arp(own, ARP_REPLY, address, address, BROADCAST),
            ],
            (Some(own), IpAddr::V6(address)) => vec![neighbour_advertisement(own, address)],
        };
        Ok(Announcer {
            interface: interface.index,
            address,
            route: Netlink::open(0)?,
            socket: interface.ethernet.map(open).transpose()?,
            frames,
        })
    }

    /// Says it once.
    pub fn announce(&self) -> io::Result<()> {
        self.socket.iter().try_for_each(|socket| self.frames.iter().try_for_each(|frame| socket.send(frame)))
    }

    /// Says it at once, and again at 50, 150, 250, 350 and 450 ms distance from a
    /// thread of its own, which ends by itself after 1.25 s, or when the address has
    /// moved on: calling for clients that another host serves by now would cut them off.
    ///
    /// # Errors
    /// No thread could be started; the first announcement has been made all the same.
    pub fn announce_repeatedly(mut self) -> io::Result<JoinHandle<()>> {
        let first = self.announce();
        if let Err(error) = &first {
            tracing::warn!(%error, "the address's new place could not be announced");
        }
        std::thread::Builder::new().name("ferry-announce".into()).spawn(move || {
            for pause in REPEATS.into_iter().filter(|_| self.socket.is_some()) {
                std::thread::sleep(pause);
                let here = is_held(&mut self.route, self.interface, self.address).unwrap_or(false);
                // The interface may be gone with its namespace by now.
                if !here || self.announce().is_err() {
                    return;
                }
            }
        })
    }
}

/// Asks whether somebody on the link already has an IPv4 address (RFC 5227 §2.1:
/// a probe with an empty sender address). Says whose Ethernet address answered.
/// IPv6 addresses and links without ARP are not probed: `None`.
pub fn who_has(interface: &Interface, address: IpAddr, patience: Duration) -> io::Result<Option<[u8; 6]>> {
    let (Some(own), IpAddr::V4(address)) = (interface.ethernet, address) else { return Ok(None) };
    let socket = PacketSocket::open(interface.index, Hears::Arp)?;
    socket.send(&arp(own, ARP_REQUEST, Ipv4Addr::UNSPECIFIED, address, [0; 6]))?;
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 128];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let Some(length) = socket.receive(&mut buffer, left)? else { return Ok(None) };
        if let Some(owner) = claims(&buffer[..length], address).filter(|owner| *owner != own) {
            return Ok(Some(owner));
        }
    }
}

/// The sender's Ethernet address if this ARP frame says that it has `address`.
fn claims(frame: &[u8], address: Ipv4Addr) -> Option<[u8; 6]> {
    let is_arp = frame.get(12..14)? == ETHERTYPE_ARP;
    let sender = frame.get(28..32)? == address.octets();
    (is_arp && sender).then(|| frame.get(22..28)?.try_into().ok())?
}

/// An Ethernet frame with an ARP packet (RFC 826), padded to the least length.
fn arp(own: [u8; 6], operation: u8, sender: Ipv4Addr, target: Ipv4Addr, target_ethernet: [u8; 6]) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, own, ETHERTYPE_ARP);
    // Ethernet, IPv4, address lengths 6 and 4.
    frame.extend_from_slice(&[0, 1, 0x08, 0x00, 6, 4, 0, operation]);
    frame.extend_from_slice(&own);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&target_ethernet);
    frame.extend_from_slice(&target.octets());
    frame.resize(60, 0);
    frame
}

/// An Ethernet frame with an unsolicited neighbour advertisement to all nodes.
fn neighbour_advertisement(own: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0];
    // Override: replace what you knew. Not a router, not solicited.
    message.extend_from_slice(&[0x20, 0, 0, 0]);
    message.extend_from_slice(&address.octets());
    // Option 2, one unit of 8 bytes: the target's link-layer address.
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&own);
    let checksum = icmpv6_checksum(address, all_nodes, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], own, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(message.len() as u16).to_be_bytes());
    // Next header ICMPv6; hop limit 255, without which neighbours ignore it.
    frame.extend_from_slice(&[58, 255]);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&all_nodes.octets());
    frame.extend_from_slice(&message);
    frame
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: [u8; 2]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind);
    frame
}

/// The one's-complement sum over pseudo-header and message (RFC 4443 §2.3).
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&from.octets());
    bytes.extend_from_slice(&to.octets());
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 58]);
    bytes.extend_from_slice(message);
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correct_checksum_sums_up_to_zero() {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let frame = neighbour_advertisement([2, 0, 0, 0, 0, 1], address);
        let all_nodes = "ff02::1".parse().unwrap();
        assert_eq!(icmpv6_checksum(address, all_nodes, &frame[54..]), 0);
    }

    #[test]
    fn an_arp_reply_is_understood_and_a_truncated_one_ignored() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let frame = arp([2, 0, 0, 0, 0, 1], ARP_REPLY, address, address, BROADCAST);
        assert_eq!(claims(&frame, address), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(claims(&frame, Ipv4Addr::new(192, 0, 2, 2)), None);
        for length in 0..32 {
            assert_eq!(claims(&frame[..length], address), None);
        }
    }
}
