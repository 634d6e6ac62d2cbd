//! What clients send while the workload is between two hosts.
//!
//! Were it only dropped, each client would find out by its retransmission timer:
//! 200 ms at least on Linux (`TCP_RTO_MIN`), several times the freeze, and twice
//! as long each time that it is lost again. So what arrives for the moving address
//! is kept by a packet socket, and comes in again when the restored sockets are
//! there to take it.

use super::interface::{Interface, bring_up};
use super::netlink::Netlink;
use crate::sys::held_packets::{PacketHold, TunDoor};
use std::io;
use std::net::IpAddr;

/// The most bytes that are kept: a receive buffer, in the kernel's own counting.
const ROOM: usize = 16 << 20;

/// Keeps the packets for one address that arrive on one interface.
pub struct Hold {
    interface: u32,
    address: IpAddr,
    /// How they come in again.
    door: TunDoor,
    kept: Option<PacketHold>,
}

impl Hold {
    /// Makes the device through which the packets will come in; nothing is kept yet.
    ///
    /// # Errors
    /// There is no TUN device here, or it cannot be set up; the interface is not Ethernet.
    pub fn prepare(interface: &Interface, address: IpAddr) -> io::Result<Hold> {
        if interface.ethernet.is_none() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "not an Ethernet interface"));
        }
        let door = TunDoor::make()?;
        // Answers leave by the real interface: what comes in by another one would
        // look forged. `all` may still say so; then clients send again.
        for setting in ["rp_filter", "accept_local"] {
            let value = if setting == "rp_filter" { "0" } else { "1" };
            let path = format!("/proc/sys/net/ipv4/conf/{}/{setting}", door.name());
            let _ = std::fs::write(path, value);
        }
        bring_up(&mut Netlink::open(0)?, door.name())?;
        Ok(Hold { interface: interface.index, address, door, kept: None })
    }

    /// Begins to keep what arrives.
    pub fn begin(&mut self) -> io::Result<()> {
        self.kept = Some(PacketHold::open(self.interface, self.address, ROOM)?);
        Ok(())
    }

    /// Lets everything that was kept come in, and says how many packets it was.
    ///
    /// Dropping this object removes the device, for which the kernel waits tens of
    /// milliseconds: that is for later.
    pub fn release(&mut self) -> io::Result<usize> {
        self.kept.take().map_or(Ok(0), |kept| kept.release(&mut self.door))
    }
}
