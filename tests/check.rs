//! `ferry check`, and the pre-flight of `ferry migrate`, as a user calls them: this
//! host is source and destination at once, so that process numbers are taken.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const FERRY: &str = env!("CARGO_BIN_EXE_ferry");
const CRIU: &str = "/var/lib/ferry/criu/bin/criu";

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn reason_to_skip() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    (!Path::new(CRIU).exists()).then_some("no CRIU (ferry setup)")
}

/// A workload that leads its session and holds nothing of the test's: its shell closes
/// what it inherited, and says so by making a file.
fn workload(place: &Path) -> Running {
    let script = "for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done; \
                  : > \"$0\"; exec sleep 1000";
    let ready = place.join("ready");
    let mut command = Command::new("setsid");
    command.args(["bash", "-c", script]).arg(&ready).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = Running(command.spawn().expect("setsid"));
    while !ready.exists() || name(&running) != "sleep" {
        assert!(running.0.try_wait().unwrap().is_none(), "the workload ended early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running
}

fn name(running: &Running) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", running.0.id())).unwrap_or_default();
    comm.trim_end().to_owned()
}

fn ferry(state: &Path, arguments: &[&str]) -> Output {
    Command::new(FERRY).args(arguments).arg("--state").arg(state).stdin(Stdio::null()).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Two states that know each other, and a receiver; its address.
fn receiver(source: &Path, destination: &Path) -> (Running, String) {
    for (here, there, peer) in [(source, destination, "destination"), (destination, source, "source")] {
        let fingerprint = json(&ferry(there, &["identity", "--json"]))["fingerprint"].clone();
        let add = ["pair", "--add", peer, "--fingerprint", fingerprint.as_str().unwrap()];
        assert!(ferry(here, &add).status.success());
    }
    let mut command = Command::new(FERRY);
    command.args(["receive", "--listen", "127.0.0.1:0", "--json", "--state"]).arg(destination);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    (running, event["address"].as_str().unwrap().to_owned())
}

#[test]
fn both_hosts_are_asked_and_nothing_is_touched() {
    if let Some(reason) = reason_to_skip() {
        return eprintln!("skipped: {reason}");
    }
    let place = tempfile::tempdir().unwrap();
    let (source, destination) = (place.path().join("source"), place.path().join("destination"));
    let mut workload = workload(place.path());
    let target = format!("pid:{}", workload.0.id());

    let here = ferry(&source, &["check", &target, "--json"]);
    let found = json(&here);
    assert_eq!(here.status.code(), Some(0), "{found:#}");
    assert_eq!((&found["schema"], &found["verdict"]), (&1.into(), &"clear".into()), "{found:#}");
    assert_eq!(found["target"], format!("{target} (sleep)"));

    let (_receiver, to) = receiver(&source, &destination);
    let both = ferry(&source, &["check", &target, "--to", &to, "--json"]);
    let found = json(&both);
    assert_eq!(both.status.code(), Some(3), "{found:#}");
    let worst = &found["findings"][0];
    assert_eq!((&worst["at"], &worst["severity"]), (&"destination".into(), &"blocks".into()), "{worst:#}");
    assert!(worst["what"].as_str().unwrap().contains("is taken here by"), "{worst:#}");
    let forced = ferry(&source, &["check", &target, "--to", &to, "--force"]);
    assert_eq!(forced.status.code(), Some(0));

    // The migration finds the same, and refuses.
    let refused = ferry(&source, &["migrate", &target, "--to", &to, "--json"]);
    let found = json(&refused);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert_eq!(found["findings"][0]["what"], worst["what"]);
    // What only the source sees is refused without asking anybody.
    let nobody = ferry(&source, &["migrate", "pid:1", "--to", "127.0.0.1:9"]);
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("the init process of this host"), "{nobody:?}");

    assert!(workload.0.try_wait().unwrap().is_none());
    let journals = std::fs::read_dir(destination.join("journal")).map_or(0, Iterator::count);
    assert_eq!(journals, 0, "nothing was accepted");
}

#[test]
fn what_cannot_be_asked_is_an_error() {
    if let Some(reason) = reason_to_skip() {
        return eprintln!("skipped: {reason}");
    }
    let place = tempfile::tempdir().unwrap();
    let wrong = [
        ("pid:x", 2, "the number of a process is expected"),
        ("web", 2, "expected pid:N, runc:ID or docker:NAME"),
        ("pid:2147483647", 1, "there is no process"),
    ];
    for (target, code, says) in wrong {
        let output = ferry(place.path(), &["check", target]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{output:?}");
    }
}
