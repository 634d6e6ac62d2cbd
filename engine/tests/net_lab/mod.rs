//! Network namespaces with links between them, made by netlink alone: nothing
//! needs to be installed, and everything is gone with the test's descriptors.
#![allow(dead_code)]

use ferry_engine::net::interface::{Interface, interfaces};
use ferry_engine::net::namespace::within;
use ferry_engine::net::netlink::{ACK, CREATE, EXCLUSIVE, Messages, Netlink};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;

/// A network namespace that lives as long as this.
pub struct Host(File);

/// Why these tests cannot run here, if they cannot.
pub fn unable() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    Host::try_new().is_err().then_some("no network namespaces here")
}

impl Host {
    fn try_new() -> std::io::Result<Host> {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(Host(File::open("/proc/thread-self/ns/net")?))
        })
        .join()
        .unwrap()
    }

    /// A host with nothing but its loopback, which is up.
    pub fn new() -> Host {
        let host = Host::try_new().expect("a network namespace");
        host.up("lo");
        host
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Runs something inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.path(), work).expect("entering the namespace")
    }

    pub fn interface(&self, name: &str) -> Interface {
        let all = self.run(|| interfaces(&mut route()).unwrap());
        all.into_iter().find(|interface| interface.name == name).expect(name)
    }

    fn request(&self, mut messages: Messages) {
        self.run(|| route().request(&mut messages, &[])).expect("netlink");
    }

    pub fn up(&self, name: &str) {
        let mut messages = Messages::new();
        messages.message(NEW_LINK, ACK).raw(&link_header(self.interface(name).index, libc::IFF_UP as u32));
        self.request(messages);
    }

    pub fn add_bridge(&self, name: &str) {
        let mut messages = Messages::new();
        messages.message(NEW_LINK, CREATE | EXCLUSIVE | ACK).raw(&link_header(0, 0)).text(3, name).nest(
            18,
            |info| {
                info.text(1, "bridge");
            },
        );
        self.request(messages);
        self.up(name);
    }

    /// A cable from this host's new interface `name` to `peer`'s new `peer_name`; both up.
    pub fn cable(&self, name: &str, peer: &Host, peer_name: &str) {
        let mut messages = Messages::new();
        messages.message(NEW_LINK, CREATE | EXCLUSIVE | ACK).raw(&link_header(0, 0)).text(3, name).nest(
            18,
            |info| {
                info.text(1, "veth").nest(2, |data| {
                    data.nest(1, |end| {
                        end.raw(&link_header(0, 0))
                            .text(3, peer_name)
                            .attribute(28, &peer.0.as_raw_fd().to_ne_bytes());
                    });
                });
            },
        );
        self.request(messages);
        self.up(name);
        peer.up(peer_name);
    }

    /// Plugs `name` into a bridge of this host.
    pub fn plug(&self, name: &str, bridge: &str) {
        let bridge = self.interface(bridge).index;
        let mut messages = Messages::new();
        messages
            .message(NEW_LINK, ACK)
            .raw(&link_header(self.interface(name).index, 0))
            .attribute(10, &bridge.to_ne_bytes());
        self.request(messages);
    }

    pub fn add_address(&self, name: &str, address: IpAddr, prefix: u8) {
        let index = self.interface(name).index.to_ne_bytes();
        let (family, octets) = match address {
            IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
        };
        let mut messages = Messages::new();
        messages
            .message(NEW_ADDRESS, CREATE | EXCLUSIVE | ACK)
            // 2 is NODAD, which IPv4 ignores.
            .raw(&[family as u8, prefix, 2, 0, index[0], index[1], index[2], index[3]])
            .attribute(2, &octets)
            .attribute(1, &octets);
        self.request(messages);
    }

    /// A default route over `gateway`.
    pub fn add_default_route(&self, name: &str, gateway: IpAddr) {
        let IpAddr::V4(gateway) = gateway else { panic!("IPv4 here") };
        let mut messages = Messages::new();
        messages
            .message(24, CREATE | EXCLUSIVE | ACK)
            // family, dst len, src len, tos, table main, protocol static, scope universe, unicast, flags.
            .raw(&[libc::AF_INET as u8, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0])
            .attribute(5, &gateway.octets())
            .attribute(4, &self.interface(name).index.to_ne_bytes());
        self.request(messages);
    }

    /// The routing table as the kernel prints it.
    pub fn routes(&self) -> String {
        self.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap())
    }

    /// Whom this host believes to have an IPv4 address.
    pub fn neighbour(&self, address: &str) -> Option<String> {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/arp").unwrap());
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(address))?;
        line.split_whitespace().nth(3).map(str::to_owned)
    }
}

fn route() -> Netlink {
    Netlink::open(0).unwrap()
}

fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// As the kernel prints an Ethernet address.
pub fn printed(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}
