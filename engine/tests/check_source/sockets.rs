//! Whom a process is connected with.

use crate::scenario::{one_block, root, start};
use ferry_engine::check::{Severity, SourceOptions, check_source};
use ferry_transport::wire::control::TcpMode;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

#[test]
fn a_unix_connection_to_the_outside_blocks() {
    if !root() {
        return;
    }
    let mut listener = None;
    let subjected = start("external-unix", |place, _| {
        listener = Some(UnixListener::bind(place.join("socket")).unwrap());
    });
    let accepted = listener.as_ref().unwrap().accept().unwrap();
    one_block(&subjected, "outside the tree");
    assert_ne!(subjected.dumps(), Some(true));
    drop(accepted);
}

#[test]
fn connections_follow_the_tcp_mode() {
    if !root() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let subjected = start("connection", |place, _| std::fs::write(place.join("port"), &port).unwrap());
    let accepted = listener.accept().unwrap();
    let says = |tcp| {
        let found = check_source(subjected.pid(), &SourceOptions { tcp, ..SourceOptions::default() });
        found.into_iter().find(|finding| finding.what.contains("a TCP connection")).unwrap()
    };
    assert_eq!(says(TcpMode::Skip).severity, Severity::Blocks);
    assert_eq!(says(TcpMode::Close).severity, Severity::Notes);
    let risk = says(TcpMode::Established);
    assert_eq!(risk.severity, Severity::Risks);
    assert!(risk.what.contains("other end is on this host"), "{risk}");
    drop(accepted);
}
