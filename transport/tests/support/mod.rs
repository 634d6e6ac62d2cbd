//! Two hosts with identities of their own, on loopback.
#![allow(dead_code, reason = "each test file uses a part")]

use ferry_transport::quic::trust::{Peer, Role};
use ferry_transport::quic::{Identity, LinkOptions, QuicConnector, QuicListener, Trust};
use std::net::SocketAddr;

pub struct Host {
    pub identity: Identity,
    pub trust: Trust,
    pub state: tempfile::TempDir,
}

pub fn host() -> Host {
    let state = tempfile::tempdir().unwrap();
    let identity = Identity::load_or_create(state.path()).unwrap();
    Host { identity, trust: Trust::open(state.path()), state }
}

pub fn know(who: &Host, whom: &Host, role: Role) {
    let fingerprint = whom.identity.fingerprint();
    who.trust.add(&Peer { name: "peer".into(), fingerprint, role }).unwrap();
}

/// As after a pairing.
pub fn introduce(source: &Host, destination: &Host) {
    know(source, destination, Role::Receiver);
    know(destination, source, Role::Sender);
}

pub fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub fn listen(host: &Host, options: &LinkOptions) -> (QuicListener, SocketAddr) {
    let listener =
        QuicListener::bind(loopback(), &host.identity, host.trust.clone(), options.clone()).unwrap();
    let address = listener.local_address().unwrap();
    (listener, address)
}

pub fn connector(host: &Host, to: SocketAddr, options: &LinkOptions) -> QuicConnector {
    QuicConnector::new(to, host.identity.clone(), host.trust.clone(), options.clone())
}
