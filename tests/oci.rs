//! Containers of runc move between two hosts, and back.

mod support;

use ferry_lab::hosts::{Host, Output, Program};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};
use support::Rig;
use support::rig::{FERRY, PATIENCE, PORT, STATE};

const RUNC: &str = "/usr/sbin/runc";
const BUSYBOX: &str = "/usr/bin/busybox";
const BUNDLE: &str = "/srv/bundle";
const COUNT: &str = "/srv/bundle/rootfs/count";
const LOG: &str = "/srv/container.log";

/// Counts in a file of the container and, with every hundredth step, on its standard
/// output. Each step looks at memory of its own.
const COUNTS: &str = r#"BEGIN {
    for (i = 0; i < 100000; i++) memory[i] = i * 7;
    while (1) {
        n++;
        i = (n * 7919) % 100000;
        if (memory[i] != i * 7) { print "memory is wrong at", i; exit 1 }
        print n > "/count"; fflush("/count");
        if (n % 100 == 0) { print n; fflush() }
    }
}"#;

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

fn runc(host: &Host, arguments: &[&str]) -> Output {
    host.run(Program::new(RUNC).args(arguments.iter().copied())).unwrap()
}

fn status(host: &Host, id: &str) -> Option<String> {
    let state: Value = serde_json::from_str(&runc(host, &["state", id]).stdout).ok()?;
    Some(state["status"].as_str()?.to_owned())
}

/// How far it is. Panics unless every number is there once and in order.
fn steps(host: &Host) -> usize {
    let text = fs::read_to_string(host.path(COUNT)).unwrap_or_default();
    let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    for (index, line) in complete.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "a step was lost or done twice");
    }
    complete.lines().count()
}

fn goes_on(host: &Host) {
    let (before, deadline) = (steps(host), Instant::now() + PATIENCE);
    while steps(host) < before + 100 {
        assert!(Instant::now() < deadline, "it stands still at {before}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start(host: &Host, id: &str) {
    let run = Program::new(RUNC)
        .args(["run", "--detach", "--bundle", BUNDLE, id])
        .stdout(LOG)
        .stderr("/srv/container.err");
    let exit = host.spawn(run).unwrap().wait_for(PATIENCE).unwrap();
    let errors = fs::read_to_string(host.path("/srv/container.err")).unwrap_or_default();
    assert!(exit.is_some_and(|exit| exit.success()), "{exit:?} {errors}");
}

/// A bundle in the directory that all hosts see.
fn bundle(host: &Host) {
    let root = host.path(BUNDLE).join("rootfs");
    for directory in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/awk")).unwrap();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/awk", COUNTS],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": [], "effective": [], "permitted": [] },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "hostname": "counter",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    });
    fs::write(host.path(BUNDLE).join("config.json"), config.to_string()).unwrap();
}
