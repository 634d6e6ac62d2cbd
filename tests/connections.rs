//! `--tcp`: what becomes of open connections.

mod support;

use ferry_lab::apps::load::Operation;
use ferry_lab::hosts::Program;
use std::net::SocketAddr;
use support::Rig;
use support::counter::Counter;
use support::rig::{SERVICE, migrate};

#[test]
fn connections_live_on_are_closed_or_forbid_the_move() {
    let Some(rig) = Rig::new("connections", &["/usr/bin/python3"]) else { return };
    let address = SocketAddr::from((SERVICE, 7100));
    let arguments = [rig.install("counter.py"), SERVICE.to_string(), "7100".into()];
    let (uid, gid) = rig.user();
    let server = rig.start(Program::new("/usr/bin/python3").args(arguments).user(uid, gid));
    let mut client = rig.connect(|| Counter::connect(address));
    client.step(1).unwrap();

    // Skipped: one that is open forbids it, before anything is touched.
    let refused = migrate(rig.here(), rig.there(), server.pid, &["--tcp", "skip"]).unwrap_err().to_string();
    assert!(refused.contains("--tcp"), "{refused}");
    client.step(2).unwrap();

    // Established, the default.
    rig.move_on(server.pid, &["--tcp", "established"]);
    client.step(3).unwrap();

    // Closed: the old one ends, and the copy serves new ones.
    rig.move_on(server.pid, &["--tcp", "close"]);
    assert!(client.step(4).is_err(), "a closed connection answers");
    let mut client = rig.connect(|| Counter::connect(address));
    client.step(1).unwrap();
}
