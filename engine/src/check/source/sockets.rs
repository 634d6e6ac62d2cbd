//! Sockets: the kinds and states that CRIU carries, and whom they lead to.

use super::{Report, subject};
use crate::check::finding::{Finding, Force, Severity};
use crate::check::proc::tree::{Descriptor, Process, Tree};
use crate::check::socket_tables::{Inet, Sockets, Unix, tcp};
use crate::check::{ExternalUnix, SourceOptions};
use crate::net::namespace;
use crate::sys::socket_name;
use ferry_transport::wire::control::TcpMode;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

pub(super) fn check(tree: &Tree, options: &SourceOptions, report: &mut Report) {
    let inodes: HashSet<u64> = tree
        .descriptors()
        .filter(|(_, descriptor)| descriptor.is(libc::S_IFSOCK))
        .map(|(_, descriptor)| descriptor.inode)
        .collect();
    if inodes.is_empty() {
        return;
    }
    // One table for each network namespace of the tree.
    let mut tables: HashMap<u64, Sockets> = HashMap::new();
    let mut said: HashSet<u64> = HashSet::new();
    for process in &tree.processes {
        let place = process.namespaces.get("net").copied().unwrap_or(0);
        let sockets = tables.entry(place).or_insert_with(|| read(process, report));
        for descriptor in process.descriptors.iter().filter(|descriptor| descriptor.is(libc::S_IFSOCK)) {
            // A socket that several processes share is said once.
            if said.insert(descriptor.inode) {
                Look { options, inodes: &inodes, sockets, process, descriptor, report }.all();
            }
        }
    }
}

fn read(process: &Process, report: &mut Report) -> Sockets {
    let tables = namespace::within(&namespace::of_process(process.pid), Sockets::here).and_then(|read| read);
    tables.unwrap_or_else(|error| {
        let what = format!("the sockets of process {} could not be listed: {error}", process.pid);
        report.0.push(Finding::host(Severity::Risks, Force::Overridable, what, "run as root"));
        Sockets::default()
    })
}

struct Look<'a> {
    options: &'a SourceOptions,
    inodes: &'a HashSet<u64>,
    sockets: &'a Sockets,
    process: &'a Process,
    descriptor: &'a Descriptor,
    report: &'a mut Report,
}

impl Look<'_> {
    fn say(&mut self, severity: Severity, force: Force, what: impl Into<String>, advice: &str) {
        self.report.add(severity, force, self.process, subject(self.descriptor), what, advice);
    }

    fn all(&mut self) {
        let inode = self.descriptor.inode;
        let sockets = self.sockets;
        if let Some(socket) = sockets.tcp.get(&inode) {
            return self.tcp(socket);
        }
        if let Some(socket) = sockets.udp.get(&inode) {
            if socket.send_queue > 0 {
                let what = "a UDP socket with unsent data; if it is corked, CRIU cannot dump it";
                self.say(Severity::Risks, Force::Overridable, what, "");
            }
            return self.bound(socket);
        }
        if let Some(socket) = sockets.unix.get(&inode) {
            return self.unix(socket);
        }
        if sockets.netlink.get(&inode).is_some_and(|unread| *unread > 0) {
            let what = "a netlink socket with unread messages, which CRIU cannot dump";
            return self.say(Severity::Blocks, Force::Overridable, what, "they may be read by then");
        }
        // Unbound sockets are in no table; the rest are kinds of their own.
        let Ok(protocol) = socket_name::protocol(self.process.pid, self.descriptor.fd) else { return };
        match protocol.as_str() {
            "TCP" | "TCPv6" | "UDP" | "UDPv6" | "UDP-Lite" | "UDPLITEv6" | "UNIX" | "UNIX-STREAM"
            | "NETLINK" | "PACKET" | "RAW" | "RAWv6" | "PING" | "PINGv6" => {}
            "MPTCP" | "MPTCPv6" => {
                let what = "a Multipath TCP socket, which CRIU cannot dump";
                self.say(Severity::Blocks, Force::Final, what, "Go programs: GODEBUG=multipathtcp=0");
            }
            other => {
                let what = format!("a socket of the kind {other}, which CRIU cannot dump");
                self.say(Severity::Blocks, Force::Final, what, "close it before the move");
            }
        }
    }

    fn tcp(&mut self, socket: &Inet) {
        match socket.state {
            tcp::LISTEN if socket.receive_queue > 0 => {
                let what = "connections wait to be accepted; CRIU cannot dump them";
                self.say(Severity::Risks, Force::Overridable, what, "they may be accepted by then");
                self.bound(socket);
            }
            tcp::LISTEN => self.bound(socket),
            tcp::CLOSE => {}
            state => {
                let (address, port) = socket.remote;
                let what = format!("a TCP connection with {address} port {port}");
                match self.options.tcp {
                    TcpMode::Skip => {
                        let advice = "choose --tcp established or --tcp close";
                        self.say(Severity::Blocks, Force::Final, what, advice);
                    }
                    TcpMode::Close => {
                        self.say(
                            Severity::Notes,
                            Force::Overridable,
                            format!("{what} is closed by the move"),
                            "",
                        );
                    }
                    TcpMode::Established => self.connection(socket, state, &what),
                }
            }
        }
    }

    fn connection(&mut self, socket: &Inet, state: u8, what: &str) {
        if state == tcp::SYN_SENT {
            let what = format!("{what} is being opened");
            self.say(Severity::Risks, Force::Overridable, what, "it may be established by then");
        } else if state != tcp::ESTABLISHED {
            let what = format!("{what} is half closed; it is carried in that state");
            self.say(Severity::Notes, Force::Overridable, what, "");
        }
        let ends = self.sockets.tcp.iter();
        let other = ends.filter(|(_, other)| other.local == socket.remote && other.remote == socket.local);
        let other = other.map(|(inode, _)| *inode).next();
        if other.is_some_and(|inode| !self.inodes.contains(&inode)) {
            let what = format!("{what}, whose other end is on this host and not part of the tree");
            let advice = "move both ends together, or let the client reconnect";
            self.say(Severity::Risks, Force::Overridable, what, advice);
        } else if other.is_none() && !self.moves(socket.local.0) {
            let what = format!("{what} needs the address {} at the destination", socket.local.0);
            self.say(Severity::Risks, Force::Overridable, what, "use --move-ip, or a hook that moves it");
        }
    }

    /// A socket bound to one address, which has to be there.
    fn bound(&mut self, socket: &Inet) {
        let (address, port) = socket.local;
        if !address.is_unspecified() && !address.is_loopback() && !self.moves(address) {
            let what = format!("bound to {address} port {port}, an address that does not move along");
            self.say(Severity::Risks, Force::Overridable, what, "use --move-ip, or a hook that moves it");
        }
    }

    fn moves(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || self.options.move_address.as_ref().is_some_and(|moved| moved.address == address)
    }

    fn unix(&mut self, socket: &Unix) {
        let peer = u64::from(socket.peer);
        if peer != 0 && !self.inodes.contains(&peer) {
            let name = self.sockets.unix.get(&peer).map_or("", |peer| peer.name.as_str());
            let datagram = i32::from(socket.kind) == libc::SOCK_DGRAM;
            let accepted = self.options.external_unix == ExternalUnix::NamedDatagrams && !name.is_empty();
            let what = format!("a unix socket connected to one outside the tree ({name:?}, inode {peer})");
            if datagram && accepted {
                self.say(Severity::Notes, Force::Overridable, what, "it must exist at the destination");
            } else {
                let advice = "close the connection before the move (a log, D-Bus or Docker socket), or move its other end too";
                self.say(Severity::Blocks, Force::Overridable, what, advice);
            }
        } else if peer == 0 && socket.state == tcp::LISTEN && socket.receive_queue > 0 {
            let what = "connections wait to be accepted";
            self.say(Severity::Notes, Force::Overridable, what, "");
        }
        if socket.state != tcp::LISTEN && socket.receive_queue > 0 {
            let passed: u32 = self.process.fdinfo(self.descriptor.fd).number("scm_fds").unwrap_or(0);
            if passed > 0 {
                let what =
                    format!("{passed} descriptors are on their way through this socket, not yet received");
                self.say(Severity::Risks, Force::Overridable, what, "");
            }
        }
    }
}
