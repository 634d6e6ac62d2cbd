//! A workload's TCP connections, where CRIU cannot see to them any more.
//!
//! A connection lives on in the copy, so its other end must not hear that the
//! process on this host has gone: a socket that is closed says FIN, and says it
//! again for minutes. In repair mode (`TCP_REPAIR`) a socket says nothing when it
//! is closed; that is how CRIU removes a tree. Where CRIU was killed, or a copy is
//! removed that CRIU has already let go of, it falls to us.

use super::netlink::{ACK, DUMP, Messages, Netlink};
use crate::journal::TaskId;
use crate::sys::pidfd::{PidFd, Whose};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long killed tasks may take to be gone.
const DYING: Duration = Duration::from_secs(10);
const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// States of a connection that no process owns any more, as bits: FIN_WAIT1,
/// FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING.
const CLOSING: u32 = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11;
/// `struct inet_diag_msg`: family, state, timer, retransmissions, then the socket's
/// identity, `struct inet_diag_sockid`.
const IDENTITY: std::ops::Range<usize> = 4..52;
const SOURCE: std::ops::Range<usize> = 8..24;

/// Kills tasks so that no peer of theirs hears of it, and waits until they are
/// dead; how many are not. They must stand still: what runs opens sockets.
pub fn kill_quietly(tasks: &[TaskId]) -> usize {
    // Held until the tasks are dead, so that the last close is of a silent socket.
    let _sockets = in_repair(tasks, Repair::On);
    let deadline = Instant::now() + DYING;
    loop {
        let alive: Vec<_> = tasks.iter().filter(|task| task.is_alive()).collect();
        if alive.is_empty() || Instant::now() > deadline {
            return alive.len();
        }
        for task in alive {
            let _ = kill(Pid::from_raw(task.pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes the connections of tasks out of repair mode, in which a killed CRIU left
/// them; each then asks its peer for news. Those that are not in it stay as they are.
///
/// With the mode the kernel forgets whether an address may be used again. It may, from
/// now on: a server that is restarted must get its port while connections of old stand.
pub fn wake(tasks: &[TaskId]) {
    drop(in_repair(tasks, Repair::Off));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repair {
    On,
    Off,
}

/// Puts every TCP socket of the tasks into repair mode, or out of it. What cannot
/// be reached is left out: the task may be gone.
fn in_repair(tasks: &[TaskId], repair: Repair) -> Vec<OwnedFd> {
    let mut seen = HashSet::new();
    let mut sockets = Vec::new();
    for task in tasks.iter().filter(|task| task.is_alive()) {
        let Ok(process) = PidFd::open(task.pid, Whose::Process) else { continue };
        let directory = std::fs::read_dir(format!("/proc/{}/fd", task.pid));
        for entry in directory.into_iter().flatten().flatten() {
            let link = std::fs::read_link(entry.path()).unwrap_or_default();
            let is_new = link.to_str().is_some_and(|link| link.starts_with("socket:")) && seen.insert(link);
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (true, Some(number)) = (is_new, number) else { continue };
            let Ok(socket) = process.copy_descriptor(number) else { continue };
            // Only TCP knows the option; a listening socket refuses it, and says nothing anyway.
            let Ok(now) = getsockopt(&socket, sockopt::TcpRepair) else { continue };
            let wanted = u32::from(repair == Repair::On);
            if now != wanted {
                if setsockopt(&socket, sockopt::TcpRepair, &wanted).is_err() {
                    continue;
                }
                if repair == Repair::Off {
                    let _ = setsockopt(&socket, sockopt::ReuseAddr, &true);
                }
            }
            sockets.push(socket);
        }
    }
    sockets
}

/// Ends the connections from `address` that no process owns any more, so that they
/// neither bother a peer nor stand in the way of restored ones. For an address that
/// is silenced: some say a last word, which must not be heard.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN; `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`.
pub fn destroy_orphans(address: IpAddr) -> io::Result<usize> {
    let mut diag = Netlink::open(NETLINK_SOCK_DIAG)?;
    let mut orphans = Vec::new();
    // A connection over IPv4 may be a socket of either family.
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut messages = Messages::new();
        messages.message(SOCK_DIAG_BY_FAMILY, DUMP).raw(&request(family, CLOSING, &[0; 48]));
        diag.dump(&mut messages, |answer| {
            let source: Option<[u8; 16]> = answer.payload.get(SOURCE).and_then(|bytes| bytes.try_into().ok());
            let identity: Option<[u8; 48]> =
                answer.payload.get(IDENTITY).and_then(|bytes| bytes.try_into().ok());
            if let (Some(source), Some(identity)) = (source, identity)
                && is(source, family, address)
            {
                orphans.push((family, identity));
            }
        })?;
    }
    for (family, identity) in &orphans {
        let mut messages = Messages::new();
        messages.message(SOCK_DESTROY, ACK).raw(&request(*family, CLOSING, identity));
        diag.request(&mut messages, &[libc::ENOENT])?;
    }
    Ok(orphans.len())
}

/// `struct inet_diag_req_v2` for TCP.
fn request(family: u8, states: u32, identity: &[u8; 48]) -> [u8; 56] {
    let mut request = [0; 56];
    request[..2].copy_from_slice(&[family, libc::IPPROTO_TCP as u8]);
    request[4..8].copy_from_slice(&states.to_ne_bytes());
    request[8..].copy_from_slice(identity);
    request
}

/// Whether 16 bytes of a socket of this family are this address.
fn is(source: [u8; 16], family: u8, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) if i32::from(family) == libc::AF_INET => source[..4] == address.octets(),
        IpAddr::V4(address) => source == address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => i32::from(family) == libc::AF_INET6 && source == address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_recognized_in_sockets_of_both_families() {
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
        let (inet, inet6) = (libc::AF_INET as u8, libc::AF_INET6 as u8);
        let mut plain = [0; 16];
        plain[..4].copy_from_slice(&[192, 0, 2, 7]);
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[255, 255, 192, 0, 2, 7]);
        assert!(is(plain, inet, v4) && is(mapped, inet6, v4));
        assert!(!is(plain, inet6, v4) && !is(mapped, inet, v4));
        let IpAddr::V6(six) = v6 else { unreachable!() };
        assert!(is(six.octets(), inet6, v6) && !is(six.octets(), inet, v6));
    }
}
