//! Taking an address off one host and giving it to another.
//!
//! [`AddressHolder`] looks everything up when it is made, before the freeze;
//! afterwards each step is one message to the kernel. Both steps are idempotent,
//! so that a caller that does not know how far it got may simply undo.

use super::interface::{Interface, interfaces};
use super::netlink::{ACK, Attributes, CREATE, DUMP, EXCLUSIVE, Messages, Netlink, read_u32};
use ferry_transport::wire::control::AddressMove;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::IpAddr;

const NETLINK_ROUTE: isize = 0;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
/// `struct ifaddrmsg`: family, prefix length, flags, scope, interface.
const IFADDR: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
/// What the user decides about an address; the kernel's own findings
/// (permanent, tentative, secondary, …) are not given back.
const USER_FLAGS: u32 = IFA_F_NODAD | IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE;
const IFA_F_SECONDARY: u32 = 0x01;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_HOMEADDRESS: u32 = 0x10;
const IFA_F_MANAGETEMPADDR: u32 = 0x100;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
/// `struct rtmsg`.
const RTMSG: usize = 12;
const RTA_OIF: u16 = 4;
const RTA_CACHEINFO: u16 = 12;
/// `RTPROT_KERNEL`: routes that come and go with the address by themselves.
const MADE_BY_KERNEL: u8 = 2;

/// Why an address cannot move, or did not.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The interface does not exist here.
    #[error("there is no interface {0} here")]
    NoInterface(String),
    /// No interface here has the address.
    #[error("no interface here has the address {0}")]
    NotHere(IpAddr),
    /// The address is here before it was given.
    #[error("the address {address} is already on {interface} here")]
    AlreadyHere {
        /// Which.
        address: IpAddr,
        /// Where.
        interface: String,
    },
    /// Taking it would take others along.
    #[error(
        "the kernel would remove other addresses of {interface} together with {address}: \
         set net.ipv4.conf.{interface}.promote_secondaries=1 first"
    )]
    OthersWouldGo {
        /// Which.
        address: IpAddr,
        /// Where.
        interface: String,
    },
    /// The kernel refused.
    #[error("{what} {address}: {cause}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// With which address.
        address: IpAddr,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// An address that this kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// The interface's index.
    pub interface: u32,
    flags: u32,
    /// The message that would create it again: `ifaddrmsg` and attributes.
    again: Vec<u8>,
}

/// One end of an address's move.
pub struct AddressHolder {
    route: Netlink,
    place: Place,
}

/// An address, and all that is needed to give it to an interface: goes into the
/// journal, so that an engine that died can be stood in for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The interface.
    pub interface: Interface,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// `ifaddrmsg` and attributes, ready to be sent.
    payload: Vec<u8>,
    /// At the source: the routes over the interface that the user made and the
    /// kernel drops together with the address.
    routes: Vec<Vec<u8>>,
}

impl AddressHolder {
    /// The source's end: finds the interface that has the address, and remembers
    /// how it has it (broadcast, label, lifetime) and which routes lean on it.
    ///
    /// # Errors
    /// [`AddressError::NotHere`]; [`AddressError::OthersWouldGo`].
    pub fn at_source(what: &AddressMove) -> Result<AddressHolder, AddressError> {
        let failed = |cause| AddressError::Kernel { what: "looking for", address: what.address, cause };
        let mut route = Netlink::open(NETLINK_ROUTE).map_err(failed)?;
        let held = addresses(&mut route).map_err(failed)?;
        let mine = held.iter().find(|held| held.address == what.address);
        let mine = mine.ok_or(AddressError::NotHere(what.address))?;
        let interface = by_index(&mut route, mine.interface).map_err(failed)?;
        if takes_others_along(mine, &held) && !promotes_secondaries(&interface.name) {
            let interface = interface.name;
            return Err(AddressError::OthersWouldGo { address: what.address, interface });
        }
        let routes = user_routes(&mut route, mine.interface, what.address).map_err(failed)?;
        let (prefix, payload) = (mine.prefix, mine.again.clone());
        let place = Place { interface, address: what.address, prefix, payload, routes };
        Ok(AddressHolder { route, place })
    }

    /// The destination's end: finds the interface by name and sees that the
    /// address is not on this host yet.
    ///
    /// # Errors
    /// [`AddressError::NoInterface`]; [`AddressError::AlreadyHere`].
    pub fn at_destination(what: &AddressMove) -> Result<AddressHolder, AddressError> {
        let failed = |cause| AddressError::Kernel { what: "looking for", address: what.address, cause };
        let mut route = Netlink::open(NETLINK_ROUTE).map_err(failed)?;
        let all = interfaces(&mut route).map_err(failed)?;
        let interface = all.iter().find(|interface| interface.name == what.interface);
        let interface = interface.ok_or_else(|| AddressError::NoInterface(what.interface.clone()))?;
        let held = addresses(&mut route).map_err(failed)?;
        if let Some(held) = held.iter().find(|held| held.address == what.address) {
            let name = all.iter().find(|other| other.index == held.interface);
            let interface = name.map_or_else(|| "?".to_owned(), |interface| interface.name.clone());
            return Err(AddressError::AlreadyHere { address: what.address, interface });
        }
        let place = Place {
            interface: interface.clone(),
            address: what.address,
            prefix: what.prefix,
            payload: new_address(what.address, what.prefix, interface.index),
            routes: Vec::new(),
        };
        Ok(AddressHolder { route, place })
    }

    /// The holder that wrote `place` down, again.
    pub fn again(place: Place) -> Result<AddressHolder, AddressError> {
        let failed = |cause| AddressError::Kernel { what: "giving", address: place.address, cause };
        Ok(AddressHolder { route: Netlink::open(NETLINK_ROUTE).map_err(failed)?, place })
    }

    /// Takes the address off its interface: one message. Not there is no error.
    pub fn take_off(&mut self) -> Result<(), AddressError> {
        let mut request = Messages::new();
        request
            .message(RTM_DELADDR, ACK)
            .raw(&header(self.place.address, self.place.prefix, 0, self.place.interface.index))
            .attribute(IFA_LOCAL, &octets(self.place.address));
        self.route
            .request(&mut request, &[libc::EADDRNOTAVAIL])
            .map_err(|cause| self.kernel("taking off", cause))
    }

    /// Gives the address to its interface: one message, and at the source one more
    /// for the routes that leaned on it. Already there is no error.
    pub fn give(&mut self) -> Result<(), AddressError> {
        let mut request = Messages::new();
        request.message(RTM_NEWADDR, CREATE | EXCLUSIVE | ACK).raw(&self.place.payload);
        self.route.request(&mut request, &[libc::EEXIST]).map_err(|cause| self.kernel("giving", cause))?;
        if self.place.routes.is_empty() {
            return Ok(());
        }
        let mut request = Messages::new();
        for route in &self.place.routes {
            request.message(RTM_NEWROUTE, CREATE | EXCLUSIVE | ACK).raw(route);
        }
        self.route
            .request(&mut request, &[libc::EEXIST])
            .map_err(|cause| self.kernel("giving back the routes of", cause))
    }

    /// Whether the address is on this interface now.
    pub fn is_here(&mut self) -> Result<bool, AddressError> {
        let held = is_held(&mut self.route, self.place.interface.index, self.place.address);
        held.map_err(|cause| self.kernel("looking for", cause))
    }

    /// The interface it is taken off or given to.
    pub fn interface(&self) -> &Interface {
        &self.place.interface
    }

    /// What it holds, to be written down.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.place.address
    }

    fn kernel(&self, what: &'static str, cause: io::Error) -> AddressError {
        AddressError::Kernel { what, address: self.place.address, cause }
    }
}

/// Every address in this thread's network namespace, with its interface's index.
pub fn local_addresses() -> io::Result<Vec<Held>> {
    addresses(&mut Netlink::open(NETLINK_ROUTE)?)
}

/// Every interface in this thread's network namespace.
pub fn local_interfaces() -> io::Result<Vec<Interface>> {
    interfaces(&mut Netlink::open(NETLINK_ROUTE)?)
}

/// Whether this interface has this address now.
pub(super) fn is_held(route: &mut Netlink, interface: u32, address: IpAddr) -> io::Result<bool> {
    Ok(addresses(route)?.iter().any(|held| held.address == address && held.interface == interface))
}

fn by_index(route: &mut Netlink, index: u32) -> io::Result<Interface> {
    let found = interfaces(route)?.into_iter().find(|interface| interface.index == index);
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

fn addresses(route: &mut Netlink) -> io::Result<Vec<Held>> {
    let mut request = Messages::new();
    request.message(RTM_GETADDR, DUMP).raw(&[0; IFADDR]);
    let mut found = Vec::new();
    route.dump(&mut request, |answer| found.extend(parse(answer.payload)))?;
    Ok(found)
}

pub(crate) fn parse(payload: &[u8]) -> Option<Held> {
    let attributes = Attributes::after(payload, IFADDR);
    // On a point-to-point link ADDRESS is the far end; LOCAL is absent for most of IPv6.
    let octets = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?;
    let address = ip(octets)?;
    let short_flags = u32::from(*payload.get(2)?);
    let flags = attributes.find(IFA_FLAGS).and_then(|value| read_u32(value, 0)).unwrap_or(short_flags);
    let mut header = payload.get(..IFADDR)?.to_vec();
    header[2] = 0;
    let mut again = Messages::new();
    again.raw(&header);
    for (kind, value) in attributes.filter(|(kind, _)| *kind != IFA_FLAGS && *kind != IFA_CACHEINFO) {
        again.attribute(kind, value);
    }
    let mut keep = flags & USER_FLAGS;
    if address.is_ipv6() {
        // It was ours a moment ago: asking whether somebody else has it would
        // only keep it unusable for a second.
        keep |= IFA_F_NODAD;
    }
    again.attribute(IFA_FLAGS, &keep.to_ne_bytes());
    Some(Held {
        address,
        prefix: *payload.get(1)?,
        interface: read_u32(payload, 4)?,
        flags,
        again: again.into_bytes(),
    })
}

fn new_address(address: IpAddr, prefix: u8, interface: u32) -> Vec<u8> {
    let mut payload = Messages::new();
    payload
        .raw(&header(address, prefix, 0, interface))
        .attribute(IFA_LOCAL, &octets(address))
        .attribute(IFA_ADDRESS, &octets(address));
    match address {
        IpAddr::V4(address) if prefix < 31 => {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            payload.attribute(IFA_BROADCAST, &(u32::from(address) | host_bits).to_be_bytes());
        }
        IpAddr::V4(_) => {}
        // Duplicate address detection would keep it tentative, and the restored
        // sockets unusable, for a second; the source has let go of it.
        IpAddr::V6(_) => {
            payload.attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
        }
    }
    payload.into_bytes()
}

/// Whether removing `mine` makes the kernel remove others: IPv4 keeps further
/// addresses of a subnet as secondaries of the first.
fn takes_others_along(mine: &Held, all: &[Held]) -> bool {
    let IpAddr::V4(address) = mine.address else { return false };
    let mask = u32::MAX.checked_shl(32 - u32::from(mine.prefix.min(32))).unwrap_or(0);
    mine.flags & IFA_F_SECONDARY == 0
        && all.iter().any(|other| {
            matches!(other.address, IpAddr::V4(theirs) if theirs != address
                && u32::from(theirs) & mask == u32::from(address) & mask)
                && other.interface == mine.interface
                && other.prefix == mine.prefix
                && other.flags & IFA_F_SECONDARY != 0
        })
}

fn promotes_secondaries(interface: &str) -> bool {
    // "all" and the interface's own value are or-ed by the kernel.
    ["all", interface].iter().any(|name| {
        std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/promote_secondaries"))
            .is_ok_and(|value| value.trim() == "1")
    })
}

/// The routes over an interface that somebody configured, as messages that would
/// make them again.
fn user_routes(route: &mut Netlink, interface: u32, address: IpAddr) -> io::Result<Vec<Vec<u8>>> {
    let mut header = [0; RTMSG];
    header[0] = family(address);
    let mut request = Messages::new();
    request.message(RTM_GETROUTE, DUMP).raw(&header);
    let mut found = Vec::new();
    route.dump(&mut request, |answer| {
        let attributes = Attributes::after(answer.payload, RTMSG);
        let over = attributes.find(RTA_OIF).and_then(|value| read_u32(value, 0));
        let Some(header) = answer.payload.get(..RTMSG) else { return };
        let protocol = header[5];
        if over == Some(interface) && protocol != MADE_BY_KERNEL {
            let mut again = Messages::new();
            again.raw(header);
            for (kind, value) in attributes.filter(|(kind, _)| *kind != RTA_CACHEINFO) {
                again.attribute(kind, value);
            }
            found.push(again.into_bytes());
        }
    })?;
    Ok(found)
}

fn header(address: IpAddr, prefix: u8, flags: u8, interface: u32) -> [u8; IFADDR] {
    let index = interface.to_ne_bytes();
    [family(address), prefix, flags, 0, index[0], index[1], index[2], index[3]]
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}
