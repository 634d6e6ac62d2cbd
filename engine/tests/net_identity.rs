//! Address move, announcement and drop table, in private network namespaces.

mod net_lab;

use ferry_engine::destination::recovery;
use ferry_engine::journal::Side;
use ferry_engine::net::address::{AddressError, AddressHolder};
use ferry_engine::net::announce::{Announcer, who_has};
use ferry_engine::net::hold::Hold;
use ferry_engine::net::nft::{DropTable, Nft};
use ferry_transport::wire::control::{AddressMove, MigrationId};
use net_lab::{Host, printed, unable};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

macro_rules! needs_namespaces {
    () => {
        if let Some(reason) = unable() {
            eprintln!("skipped: {reason}");
            return;
        }
    };
}

/// Long enough for an answer over a veth pair on a loaded machine.
const SHORT: Duration = Duration::from_millis(1500);
/// For an answer that must come, however busy the machine is.
const LONG: Duration = Duration::from_secs(30);

fn knock(from: &Host, at: IpAddr, patience: Duration) -> ErrorKind {
    let at = SocketAddr::new(at, 9);
    from.run(|| TcpStream::connect_timeout(&at, patience).expect_err("nothing listens there").kind())
}

/// What the address's kernel answers, with and without the table.
fn silence(address: &str, other: &str, client: &str, prefix: u8) {
    let [address, other, client]: [IpAddr; 3] = [address, other, client].map(|text| text.parse().unwrap());
    let (server_host, client_host) = (Host::new(), Host::new());
    server_host.cable("eth0", &client_host, "eth0");
    server_host.add_address("eth0", address, prefix);
    server_host.add_address("eth0", other, prefix);
    client_host.add_address("eth0", client, prefix);
    assert_eq!(knock(&client_host, address, LONG), ErrorKind::ConnectionRefused, "without the table");

    let id = MigrationId(rand::random());
    let mut table = server_host.run(|| DropTable::prepare(id, address)).unwrap();
    table.install().unwrap();
    table.install().expect("installing twice is installing once");
    assert_eq!(knock(&client_host, address, SHORT), ErrorKind::TimedOut, "the kernel answers nothing");
    assert_eq!(
        knock(&client_host, other, LONG),
        ErrorKind::ConnectionRefused,
        "other addresses are untouched"
    );

    if let Some(rules) = server_host.run(|| nft(&["list", "ruleset"])) {
        assert!(rules.contains(&format!("ferry_{id}")), "{rules}");
        assert!(rules.contains("hook prerouting priority raw"), "{rules}");
        assert!(rules.contains("hook output priority raw"), "{rules}");
        assert!(rules.contains(&format!("daddr {address} drop")), "{rules}");
        assert!(rules.contains(&format!("saddr {address} drop")), "{rules}");
    }

    table.remove().unwrap();
    table.remove().expect("removing twice is removing once");
    assert_eq!(knock(&client_host, address, LONG), ErrorKind::ConnectionRefused, "after its removal");
    assert!(server_host.run(|| Nft::open().unwrap().tables("").unwrap()).is_empty());
}

/// A datagram that arrives in the silence, which nobody sends again, is delivered after it.
fn holding(address: &str, client: &str, prefix: u8) {
    let [address, client]: [IpAddr; 2] = [address, client].map(|text| text.parse().unwrap());
    let (server_host, client_host) = (Host::new(), Host::new());
    server_host.cable("eth0", &client_host, "eth0");
    server_host.add_address("eth0", address, prefix);
    client_host.add_address("eth0", client, prefix);
    let interface = server_host.interface("eth0");
    let mut table = server_host.run(|| DropTable::prepare(MigrationId(rand::random()), address)).unwrap();
    let mut hold = server_host.run(|| Hold::prepare(&interface, address)).unwrap();
    let server = server_host.run(|| UdpSocket::bind((address, 0))).unwrap();
    let target = server.local_addr().unwrap();
    table.install().unwrap();
    server_host.run(|| hold.begin()).unwrap();

    let sender = client_host.run(|| UdpSocket::bind((client, 0))).unwrap();
    // The first waits for the neighbour's Ethernet address.
    for number in 0..3u8 {
        sender.send_to(&[number; 9], target).unwrap();
    }
    server.set_read_timeout(Some(SHORT)).unwrap();
    let mut received = [0; 64];
    assert!(server.recv_from(&mut received).is_err(), "the table does not silence");

    table.remove().unwrap();
    assert_eq!(hold.release().unwrap(), 3);
    server.set_read_timeout(Some(LONG)).unwrap();
    for number in 0..3u8 {
        let (length, from) = server.recv_from(&mut received).unwrap();
        assert_eq!(&received[..length], &[number; 9], "in the order of arrival, whole");
        assert_eq!(from, sender.local_addr().unwrap());
    }
    drop(hold);
    let left = server_host.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    assert!(!left.contains("ferry"), "{left}");
}

#[test]
fn what_arrives_for_an_ipv4_address_in_the_silence_comes_in_after_it() {
    needs_namespaces!();
    holding("192.0.2.1", "192.0.2.2", 24);
}

#[test]
fn what_arrives_for_an_ipv6_address_in_the_silence_comes_in_after_it() {
    needs_namespaces!();
    holding("2001:db8::1", "2001:db8::2", 64);
}

/// The output of `nft`, where it is installed.
fn nft(arguments: &[&str]) -> Option<String> {
    let output = Command::new("nft").args(arguments).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_drop_table_silences_an_ipv4_address_and_nothing_else() {
    needs_namespaces!();
    silence("192.0.2.1", "192.0.2.7", "192.0.2.2", 24);
}

#[test]
fn the_drop_table_silences_an_ipv6_address_and_leaves_neighbour_discovery() {
    needs_namespaces!();
    silence("2001:db8::1", "2001:db8::7", "2001:db8::2", 64);
}

#[test]
fn local_clients_get_no_reset_either() {
    needs_namespaces!();
    let host = Host::new();
    let address: IpAddr = "127.0.0.9".parse().unwrap();
    let mut table = host.run(|| DropTable::prepare(MigrationId(rand::random()), address)).unwrap();
    assert_eq!(knock(&host, address, LONG), ErrorKind::ConnectionRefused);
    table.install().unwrap();
    assert_eq!(knock(&host, address, SHORT), ErrorKind::TimedOut);
}

#[test]
fn leftovers_of_dead_migrations_are_removed_and_live_ones_are_not() {
    needs_namespaces!();
    let host = Host::new();
    let (dead, alive) = (MigrationId(1), MigrationId(2));
    host.run(|| {
        for id in [dead, alive] {
            DropTable::prepare(id, "192.0.2.1".parse().unwrap()).unwrap().install().unwrap();
        }
        let mut all = Nft::open().unwrap();
        let removed = all.remove_leftovers(&[alive]).unwrap();
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].name, format!("ferry_{dead}"));
        assert_eq!(all.tables("ferry_").unwrap().len(), 1);
        assert_eq!(all.remove_leftovers(&[alive]).unwrap(), []);
    });
}

#[test]
fn whoever_resolves_a_doubt_opens_the_network_of_that_migration_alone() {
    needs_namespaces!();
    let host = Host::new();
    let (doubtful, other) = (MigrationId(3), MigrationId(4));
    let state = tempfile::tempdir().unwrap();
    host.run(|| {
        for runs in [Side::Destination, Side::Source] {
            for id in [doubtful, other] {
                DropTable::prepare(id, "192.0.2.1".parse().unwrap()).unwrap().install().unwrap();
            }
            recovery::resolve(state.path(), state.path(), doubtful, &[], runs).unwrap();
            let standing = Nft::open().unwrap().remove_leftovers(&[]).unwrap();
            let names: Vec<_> = standing.iter().map(|table| table.name.clone()).collect();
            assert_eq!(names, [format!("ferry_{other}")], "{runs:?}");
        }
    });
}

#[test]
fn tables_that_criu_left_are_found_and_removed() {
    needs_namespaces!();
    let host = Host::new();
    host.run(|| {
        if Command::new("nft").arg("--version").output().is_err() {
            eprintln!("skipped: nft is not installed");
            return;
        }
        nft(&["add", "table", "inet", "CRIU-4711"]);
        nft(&["add", "table", "inet", "other"]);
        let mut all = Nft::open().unwrap();
        assert_eq!(all.criu_tables().unwrap().len(), 1);
        all.remove_criu_tables("4711").unwrap();
        all.remove_criu_tables("4711").expect("removing twice is removing once");
        assert!(all.criu_tables().unwrap().is_empty());
        assert_eq!(all.tables("").unwrap().len(), 1);
    });
}

/// Source, destination, and a client with a bridge between them.
fn three_hosts() -> (Host, Host, Host) {
    let (source, destination, client) = (Host::new(), Host::new(), Host::new());
    client.add_bridge("br0");
    client.cable("to-source", &source, "eth0");
    client.cable("to-dest", &destination, "eth1");
    client.plug("to-source", "br0");
    client.plug("to-dest", "br0");
    (source, destination, client)
}

fn accepts(host: &Host, at: SocketAddr) -> TcpListener {
    host.run(|| TcpListener::bind(at)).unwrap()
}

#[test]
fn an_ipv4_address_moves_and_the_neighbours_hear_of_it() {
    needs_namespaces!();
    let (source, destination, client) = three_hosts();
    client.add_address("br0", "192.0.2.254".parse().unwrap(), 24);
    source.add_address("eth0", "192.0.2.1".parse().unwrap(), 24);
    source.add_default_route("eth0", "192.0.2.254".parse().unwrap());
    let what =
        AddressMove { address: "192.0.2.1".parse().unwrap(), prefix: 24, interface: "eth1".to_owned() };
    let service = SocketAddr::new(what.address, 80);

    let listener = accepts(&source, service);
    client.run(|| TcpStream::connect(service)).expect("served at the source");
    let at_source = source.interface("eth0").ethernet.unwrap();
    let at_destination = destination.interface("eth1");
    assert_eq!(client.neighbour("192.0.2.1"), Some(printed(at_source)));
    assert_eq!(
        destination.run(|| who_has(&at_destination, what.address, LONG)).unwrap(),
        Some(at_source),
        "a probe from the destination finds the source"
    );

    let routes = source.routes();
    let mut from = source.run(|| AddressHolder::at_source(&what)).unwrap();
    let mut to = destination.run(|| AddressHolder::at_destination(&what)).unwrap();
    let announcer = destination.run(|| Announcer::prepare(to.interface(), what.address)).unwrap();
    from.take_off().unwrap();
    assert!(!from.is_here().unwrap());
    assert_eq!(destination.run(|| who_has(&at_destination, what.address, SHORT)).unwrap(), None);
    to.give().unwrap();
    assert!(to.is_here().unwrap());
    let announcing = announcer.announce_repeatedly().unwrap();
    let listener_there = accepts(&destination, service);
    announcing.join().unwrap();
    assert_eq!(
        client.neighbour("192.0.2.1"),
        Some(printed(at_destination.ethernet.unwrap())),
        "the announcement alone changed the client's mind"
    );
    client.run(|| TcpStream::connect(service)).expect("served at the destination");

    // Undone, twice on each side: all as it was.
    for _ in 0..2 {
        to.take_off().unwrap();
        from.give().unwrap();
    }
    assert!(!to.is_here().unwrap() && from.is_here().unwrap());
    assert_eq!(source.routes(), routes, "the default route went with the address and came back");
    drop((listener, listener_there));
}

#[test]
fn an_ipv6_address_moves_and_is_usable_at_once() {
    needs_namespaces!();
    let (source, destination, client) = three_hosts();
    client.add_address("br0", "2001:db8::fe".parse().unwrap(), 64);
    source.add_address("eth0", "2001:db8::1".parse().unwrap(), 64);
    let what =
        AddressMove { address: "2001:db8::1".parse().unwrap(), prefix: 64, interface: "eth1".to_owned() };
    let service = SocketAddr::new(what.address, 80);
    let listener = accepts(&source, service);
    client.run(|| TcpStream::connect(service)).expect("served at the source");

    let mut from = source.run(|| AddressHolder::at_source(&what)).unwrap();
    let mut to = destination.run(|| AddressHolder::at_destination(&what)).unwrap();
    let announcer = destination.run(|| Announcer::prepare(to.interface(), what.address)).unwrap();
    from.take_off().unwrap();
    to.give().unwrap();
    // Repeated, as in a migration: a bridge may not forward to a port yet that has
    // just come up, and one announcement alone gets lost.
    announcer.announce_repeatedly().unwrap().join().unwrap();
    // A tentative address could not be bound to.
    let listener_there = accepts(&destination, service);
    client.run(|| TcpStream::connect_timeout(&service, LONG)).expect("served at the destination");
    to.take_off().unwrap();
    from.give().unwrap();
    from.give().unwrap();
    assert!(from.is_here().unwrap());
    drop((listener, listener_there));
}

#[test]
fn what_cannot_move_is_said_before_anything_is_changed() {
    needs_namespaces!();
    let host = Host::new();
    let other = Host::new();
    host.cable("eth0", &other, "eth0");
    host.add_address("eth0", "192.0.2.1".parse().unwrap(), 24);
    host.add_address("eth0", "192.0.2.2".parse().unwrap(), 24);
    let what = |address: &str, interface: &str| AddressMove {
        address: address.parse().unwrap(),
        prefix: 24,
        interface: interface.to_owned(),
    };
    host.run(|| {
        let source = |address| AddressHolder::at_source(&what(address, "eth0")).err();
        assert!(matches!(source("192.0.2.9"), Some(AddressError::NotHere(_))));
        std::fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/promote_secondaries", "0").unwrap();
        assert!(matches!(source("192.0.2.1"), Some(AddressError::OthersWouldGo { .. })));
        assert!(source("192.0.2.2").is_none(), "a secondary may go");
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/promote_secondaries", "1").unwrap();
        assert!(source("192.0.2.1").is_none(), "with promotion the primary may");
        let destination = |address, interface| AddressHolder::at_destination(&what(address, interface)).err();
        assert!(matches!(destination("192.0.2.9", "eth7"), Some(AddressError::NoInterface(_))));
        assert!(matches!(destination("192.0.2.2", "eth0"), Some(AddressError::AlreadyHere { .. })));
    });
}
