//! An engine is killed in the middle of a container's move.

use crate::bundle::*;
use crate::ferry;
use crate::support::Rig;
use crate::support::rig::{FERRY, PATIENCE, PORT, STATE, start_receiver};
use crate::support::trial::{end_receiver, receiver_of};
use ferry_lab::hosts::{Host, Process, Program};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const BREAKPOINT: &str = "/run/breakpoint";
const OUT: &str = "/run/migrate.out";

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

#[test]
fn a_killed_engine_leaves_a_container_in_one_place() {
    use Side::{Destination, Source};
    let Some(rig) = Rig::new("oci-killed", &[RUNC, BUSYBOX]) else { return };
    let id = format!("ferry-killed-{}", std::process::id());
    bundle(rig.here());
    start(rig.here(), &id);
    for place in
        ["after-receive:RoundAcked", "after-send:Freezing", "after-receive:Ready", "before-send:Commit"]
    {
        kill(&rig, &id, (Source, place), Source);
        kill(&rig, &id, (Source, place), Destination);
    }
    for place in ["after-receive:Freezing", "before-send:Ready", "after-send:Ready"] {
        kill(&rig, &id, (Destination, place), Destination);
    }
    for place in ["after-receive:Commit", "before-send:Resumed"] {
        kill(&rig, &id, (Destination, place), Source);
        kill(&rig, &id, (Destination, place), Destination);
    }
    assert!(runc(rig.here(), &["delete", "--force", &id]).exit.success());
}

/// One migration in which an engine is killed while one stands at a message. The
/// container is in one place afterwards, under its runtime, with no step lost or done
/// twice, and nothing of it is left in the other.
fn kill(rig: &Rig, id: &str, (at, place): (Side, &str), killed: Side) {
    let what = format!("{killed:?} killed at the {at:?}'s {place}");
    let (here, there) = (rig.here(), rig.there());
    goes_on(here);
    let stands = if at == Side::Source { here } else { there };
    let engine = migrate_to(here, there, id, at, place);
    let deadline = Instant::now() + PATIENCE;
    while !stands.path(format!("{BREAKPOINT}/reached")).exists() {
        assert!(Instant::now() < deadline, "{what}: not reached");
        let early = engine.wait_for(Duration::from_millis(2)).unwrap();
        assert!(early.is_none(), "{what}: ended before it\n{}", logs(here, there));
    }
    match killed {
        Side::Source => engine.kill(Signal::SIGKILL).unwrap(),
        Side::Destination => end_receiver(there, Signal::SIGKILL),
    }
    fs::write(stands.path(format!("{BREAKPOINT}/go")), b"").unwrap();
    assert!(engine.wait_for(PATIENCE).unwrap().is_some(), "{what}: the engine does not end");
    if receiver_of(there).is_none() {
        start_receiver(there, None).unwrap();
    }
    resolve(here, &what);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = [here, there].map(|host| status(host, id));
        match said.each_ref().map(Option::as_deref) {
            [Some("running"), None] => break,
            [None, Some("running")] => {
                rig.it_moved();
                break;
            }
            _ => assert!(Instant::now() < deadline, "{what}: {said:?}\n{}", logs(here, there)),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("  {what}: runs on {}", rig.here().name());
    // The other side may need a while to notice.
    while let Some(left) = leftover(rig.there(), id) {
        assert!(Instant::now() < deadline, "{what}: {left} is left\n{}", logs(here, there));
        std::thread::sleep(Duration::from_millis(20));
    }
    goes_on(rig.here());
    assert!(runc(rig.here(), &["exec", id, "/bin/busybox", "true"]).exit.success(), "{what}");
}

fn migrate_to<'lab>(here: &'lab Host, there: &Host, id: &str, at: Side, place: &str) -> Process<'lab> {
    let stands = if at == Side::Source { here } else { there };
    let _ = fs::remove_dir_all(stands.path(BREAKPOINT));
    let _ = fs::remove_file(here.path(OUT));
    fs::create_dir(stands.path(BREAKPOINT)).unwrap();
    let breakpoint = format!("{place}:{BREAKPOINT}");
    let to = SocketAddr::from((there.address(), PORT)).to_string();
    let target = format!("runc:{id}");
    let migrate = Program::new(FERRY)
        .args(["migrate", &*target, "--to", &*to, "--state", STATE])
        .args(["--link-timeout", "1500ms", "--freeze-deadline", "4s", "--doubt-patience", "3s"])
        .stdout(OUT)
        .stderr(OUT);
    // Whatever breakpoint it had is gone with it.
    end_receiver(there, Signal::SIGTERM);
    start_receiver(there, (at == Side::Destination).then_some(&*breakpoint)).unwrap();
    match at {
        Side::Source => here.spawn(migrate.env("FERRY_BREAKPOINT", &breakpoint)).unwrap(),
        Side::Destination => here.spawn(migrate).unwrap(),
    }
}

/// What a host has of a container that does not run there.
fn leftover(host: &Host, id: &str) -> Option<String> {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", host.first_process())).unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    // A host sees the machine's mounts too; what ferry makes is on its own /run.
    let ours = |point: &&str| point.contains(id) || point.starts_with("/run/") && point.contains("cgyard");
    let directory = format!("/run/runc/{id}");
    points.filter(ours).map(String::from).next().or(host.path(&directory).exists().then_some(directory))
}

/// Ends what is in doubt by asking the destination, as an operator would.
fn resolve(host: &Host, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let open: Value = serde_json::from_str(&ferry(host, &["status", "--open", "--json"]).stdout).unwrap();
        let ours = |line: &&Value| line["side"] == "source";
        let Some(line) = open.as_array().unwrap().iter().find(ours) else { return };
        assert!(Instant::now() < deadline, "{what}: still open: {line}");
        if line["standing"] != "under way" {
            ferry(host, &["resolve", line["id"].as_str().unwrap()]);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn logs(here: &Host, there: &Host) -> String {
    let read = |host: &Host, file: &str| fs::read_to_string(host.path(file)).unwrap_or_default();
    format!("--- {OUT}\n{}\n--- receive.log\n{}", read(here, OUT), read(there, "/run/receive.log"))
}
