//! Containers of runc move between two hosts, and back.

mod bundle;
mod killed;
#[path = "../support/mod.rs"]
mod support;

use bundle::*;
use ferry_lab::hosts::{Host, Output, Program};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use support::Rig;
use support::rig::{FERRY, PORT, STATE};

#[test]
fn a_container_goes_there_and_back() {
    let Some(rig) = Rig::new("oci", &[RUNC, BUSYBOX]) else { return };
    let id = format!("ferry-test-{}", std::process::id());
    bundle(rig.here());
    start(rig.here(), &id);
    for (way, extra) in
        [["--restore", "lazy"], ["--restore", "eager"], ["--restore", "lazy"]].iter().enumerate()
    {
        let (here, there) = (rig.here(), rig.there());
        goes_on(here);
        let to = SocketAddr::from((there.address(), PORT)).to_string();
        let target = format!("runc:{id}");
        let check = ferry(here, &["check", &target, "--to", &to]);
        assert!(check.exit.success(), "{check:#?}");
        let mut arguments = vec!["migrate", &*target, "--to", &*to, "--json"];
        arguments.extend(extra);
        let moved = ferry(here, &arguments);
        let receiver = fs::read_to_string(there.path("/run/receive.log")).unwrap_or_default();
        assert!(moved.exit.success(), "move {way}: {moved:#?}\n{receiver}");
        let report: Value = serde_json::from_str(&moved.stdout).unwrap();
        println!("  {extra:?}: downtime {} ms {}", report["downtime_ms"], report["downtime"]);
        rig.it_moved();
        assert_eq!(status(here, &id), None, "nothing is left at the source");
        assert_eq!(status(there, &id).as_deref(), Some("running"));
        assert!(runc(there, &["exec", &id, "/bin/busybox", "true"]).exit.success());
    }
    goes_on(rig.here());
    assert!(runc(rig.here(), &["delete", "--force", &id]).exit.success());
    let log = fs::read_to_string(rig.here().path(LOG)).unwrap();
    let hundreds: Vec<_> = log.lines().collect();
    assert!(hundreds.len() > 3, "{log}");
    assert!(hundreds.iter().enumerate().all(|(at, line)| *line == ((at + 1) * 100).to_string()), "{log}");
}

fn ferry(host: &Host, arguments: &[&str]) -> Output {
    host.run(Program::new(FERRY).args(arguments.iter().copied()).args(["--state", STATE])).unwrap()
}
