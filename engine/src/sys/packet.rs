//! Raw link-layer frames on one interface (`AF_PACKET`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What of an interface's traffic the socket hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hears {
    /// Nothing: only sends.
    Nothing,
    /// ARP.
    Arp,
}

/// A raw socket bound to one interface; frames begin with the Ethernet header.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket on the interface with this index.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW; `ENODEV` when there is no such interface.
    pub fn open(interface: u32, hears: Hears) -> io::Result<PacketSocket> {
        let protocol = match hears {
            Hears::Nothing => 0,
            Hears::Arp => (libc::ETH_P_ARP as u16).to_be(),
        };
        // SAFETY: socket() takes no pointers; the result is checked before use.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol))
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just returned this descriptor and nobody else owns it.
        let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: sockaddr_ll is a C struct of integers, for which all zeroes is a valid value.
        let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        place.sll_family = libc::AF_PACKET as u16;
        place.sll_protocol = protocol;
        place.sll_ifindex = interface as i32;
        // SAFETY: `place` lives across the call and the length is its own size.
        let bound = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const place).cast(),
                std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::sys::socket::send(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    /// Receives one frame into `buffer`, waiting at most `patience`; `None` when
    /// nothing came.
    pub fn receive(&self, buffer: &mut [u8], patience: Duration) -> io::Result<Option<usize>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let wait = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
            return Ok(None);
        }
        let length =
            nix::sys::socket::recv(self.0.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT)?;
        Ok(Some(length.min(buffer.len())))
    }
}
