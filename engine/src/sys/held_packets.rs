//! Packets kept by the kernel for later, and handed to its IP layer again.
//!
//! A packet socket hears what arrives for an address before the firewall drops
//! it; the packets wait in its receive buffer. A TUN device takes them back in,
//! as if they arrived now. Both speak `struct virtio_net_hdr` before each packet,
//! so that unfinished checksums and merged segments pass as they are.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct virtio_net_hdr`: flags u8, type u8, then u16 each: header length, segment
/// size, checksum's start and offset. Lengths count from where the packet begins.
const VNET_HEADER: usize = 10;
const HEADER_LENGTH: usize = 2;
const CHECKSUM_START: usize = 6;
/// An Ethernet header, which the packet socket hears and a TUN device does not take.
const ETHERNET: usize = 14;
/// A merged segment is at most this long, headers included.
const LARGEST: usize = VNET_HEADER + ETHERNET + 65_536;
/// `linux/if_tun.h`: `TUNSETIFF`, `_IOW('T', 202, int)`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// `linux/if_packet.h`.
const PACKET_VNET_HDR: i32 = 15;

/// Hears what arrives for one address on one Ethernet interface.
#[derive(Debug)]
pub struct PacketHold(OwnedFd);

impl PacketHold {
    /// Begins to hear. `buffer` bounds what is kept, in bytes; what comes when it
    /// is full is lost.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW; `ENODEV` when there is no such interface.
    pub fn open(interface: u32, address: IpAddr, buffer: usize) -> io::Result<PacketHold> {
        let protocol = match address {
            IpAddr::V4(_) => libc::ETH_P_IP as u16,
            IpAddr::V6(_) => libc::ETH_P_IPV6 as u16,
        };
        // Protocol 0: nothing is heard before the filter stands.
        // SAFETY: socket() takes no pointers; the result is checked before use.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just returned this descriptor and nobody else owns it.
        let hold = PacketHold(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut filter = arriving_for(address);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        set(&hold.0, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        set(&hold.0, libc::SOL_PACKET, PACKET_VNET_HDR, &1i32)?;
        let size = i32::try_from(buffer).unwrap_or(i32::MAX);
        set(&hold.0, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size)
            .or_else(|_| set(&hold.0, libc::SOL_SOCKET, libc::SO_RCVBUF, &size))?;
        // SAFETY: sockaddr_ll is a C struct of integers, for which all zeroes is a valid value.
        let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        place.sll_family = libc::AF_PACKET as u16;
        place.sll_protocol = protocol.to_be();
        place.sll_ifindex = interface as i32;
        // SAFETY: `place` lives across the call and the length is its own size.
        let bound = unsafe {
            libc::bind(
                hold.0.as_raw_fd(),
                (&raw const place).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(hold) }
    }

    /// Hands every packet that was kept to `door`, in the order of arrival, and
    /// says how many there were.
    pub fn release(self, door: &mut TunDoor) -> io::Result<usize> {
        let mut packet = vec![0; LARGEST];
        let mut count = 0;
        loop {
            match nix::sys::socket::recv(
                self.0.as_raw_fd(),
                &mut packet,
                nix::sys::socket::MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(length) => door.bring_in(&mut packet[..length.min(LARGEST)])?,
                Err(nix::errno::Errno::EAGAIN) => return Ok(count),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            count += 1;
        }
    }
}

/// A TUN device through which packets come in. It goes when this is dropped.
#[derive(Debug)]
pub struct TunDoor {
    device: File,
    name: String,
}

impl TunDoor {
    /// Makes the device; it is down and has no address.
    ///
    /// # Errors
    /// `ENOENT`: this kernel or container has no `/dev/net/tun`; `EPERM`.
    pub fn make() -> io::Result<TunDoor> {
        let device = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: ifreq is a C struct of integers and byte arrays, for which all zeroes is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"ferry%d") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR) as i16;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // The kernel put the number into the name.
        let name = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8);
        let name = String::from_utf8(name.collect()).map_err(io::Error::other)?;
        Ok(TunDoor { device, name })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a packet with its `virtio_net_hdr` and its Ethernet header.
    fn bring_in(&mut self, packet: &mut [u8]) -> io::Result<()> {
        use std::io::Write;
        if packet.len() <= VNET_HEADER + ETHERNET {
            return Ok(());
        }
        for at in [HEADER_LENGTH, CHECKSUM_START] {
            let length = u16::from_ne_bytes([packet[at], packet[at + 1]]).saturating_sub(ETHERNET as u16);
            packet[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        }
        packet.copy_within(..VNET_HEADER, ETHERNET);
        match self.device.write(&packet[ETHERNET..]) {
            // One that the kernel finds malformed is lost, as it would have been.
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Sets a socket option.
fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` lives across the call, and the length is its own size; what a
    // filter program points to lives in the caller's frame.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (value as *const T).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Accepts Ethernet frames with packets whose destination is `address`, but ICMPv6
/// (neighbour discovery, which is never silenced).
fn arriving_for(address: IpAddr) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |size, at: u32| instruction(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, ETHERNET as u32 + at);
    let equal = |k, jt, jf| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, k);
    let give_back = |length| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, length);
    let mut program = Vec::new();
    // Where the address stands in the header: RFC 791 §3.1, RFC 8200 §3.
    let (at, bytes) = match address {
        IpAddr::V4(address) => (16, address.octets().to_vec()),
        IpAddr::V6(address) => {
            program.push(load(libc::BPF_B, 6));
            // Past the four comparisons and the acceptance.
            program.push(equal(libc::IPPROTO_ICMPV6 as u32, 9, 0));
            (24, address.octets().to_vec())
        }
    };
    let words = bytes.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    let count = bytes.len() / 4;
    for (index, word) in words.enumerate() {
        program.push(load(libc::BPF_W, at + 4 * index as u32));
        // On a difference to the refusal, past the pairs that are left and the acceptance.
        program.push(equal(word, 0, (2 * (count - index - 1) + 1) as u8));
    }
    program.push(give_back(u32::MAX));
    program.push(give_back(0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would, for the instructions that it uses.
    fn accepts(program: &[libc::sock_filter], packet: &[u8]) -> bool {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let now = program[at];
            at += 1;
            let k = now.k as usize;
            match u32::from(now.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    accumulator = u32::from_be_bytes(packet[k..k + 4].try_into().unwrap());
                }
                code if code == libc::BPF_LD | libc::BPF_B | libc::BPF_ABS => {
                    accumulator = u32::from(packet[k]);
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if accumulator == now.k { now.jt } else { now.jf });
                }
                _ => return now.k != 0,
            }
        }
    }

    #[test]
    fn only_packets_for_the_address_are_heard() {
        let filter = arriving_for("192.0.2.7".parse().unwrap());
        let mut frame = [0; ETHERNET + 40];
        frame[ETHERNET + 16..ETHERNET + 20].copy_from_slice(&[192, 0, 2, 7]);
        assert!(accepts(&filter, &frame));
        frame[ETHERNET + 19] = 8;
        assert!(!accepts(&filter, &frame));
    }

    #[test]
    fn neighbour_discovery_is_not_heard() {
        let address: std::net::Ipv6Addr = "2001:db8::1:2:3".parse().unwrap();
        let filter = arriving_for(address.into());
        let mut frame = [0; ETHERNET + 60];
        frame[ETHERNET + 6] = libc::IPPROTO_TCP as u8;
        frame[ETHERNET + 24..ETHERNET + 40].copy_from_slice(&address.octets());
        assert!(accepts(&filter, &frame));
        for byte in 24..40 {
            let mut other = frame;
            other[ETHERNET + byte] ^= 1;
            assert!(!accepts(&filter, &other), "byte {byte}");
        }
        frame[ETHERNET + 6] = libc::IPPROTO_ICMPV6 as u8;
        assert!(!accepts(&filter, &frame));
    }
}
