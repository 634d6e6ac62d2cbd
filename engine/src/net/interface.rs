//! Interfaces, as far as moving an address needs them.

use super::netlink::{ACK, Attributes, Messages, Netlink, read_i32, read_u16, read_u32};
use serde::{Deserialize, Serialize};
use std::io;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFINFO: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` on one that resolves no addresses (loopback, a tunnel).
    pub ethernet: Option<[u8; 6]>,
    /// Whether it is administratively up.
    pub up: bool,
}

/// Every interface in `route`'s network namespace.
pub fn interfaces(route: &mut Netlink) -> io::Result<Vec<Interface>> {
    let mut request = Messages::new();
    request.message(RTM_GETLINK, super::netlink::DUMP | ACK).raw(&[0; IFINFO]);
    let mut found = Vec::new();
    route.dump(&mut request, |answer| found.extend(parse(answer.payload)))?;
    Ok(found)
}

/// Brings an interface of `route`'s network namespace up, by name.
///
/// # Errors
/// `ENODEV`: there is none; `EPERM`: CAP_NET_ADMIN is missing.
pub fn bring_up(route: &mut Netlink, name: &str) -> io::Result<()> {
    // struct ifinfomsg: family, type, index, then flags and the mask of those that change.
    let mut header = [0; IFINFO];
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    header[8..12].copy_from_slice(&up);
    header[12..16].copy_from_slice(&up);
    let mut request = Messages::new();
    request.message(RTM_NEWLINK, ACK).raw(&header).text(IFLA_IFNAME, name);
    route.request(&mut request, &[])
}

pub(crate) fn parse(payload: &[u8]) -> Option<Interface> {
    let attributes = Attributes::after(payload, IFINFO);
    let hardware = read_u16(payload, 2)?;
    let flags = read_u32(payload, 8)?;
    let no_arp = flags & libc::IFF_NOARP as u32 != 0;
    Some(Interface {
        index: u32::try_from(read_i32(payload, 4)?).ok()?,
        name: attributes.text(IFLA_IFNAME)?.to_owned(),
        ethernet: attributes
            .find(IFLA_ADDRESS)
            .and_then(|bytes| bytes.try_into().ok())
            .filter(|_| hardware == ETHERNET && !no_arp),
        up: flags & libc::IFF_UP as u32 != 0,
    })
}
