//! A container that counts, and what must hold of its count.

use crate::support::rig::PATIENCE;
use ferry_lab::hosts::{Host, Output, Program};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

pub const RUNC: &str = "/usr/sbin/runc";
pub const BUSYBOX: &str = "/usr/bin/busybox";
pub const LOG: &str = "/srv/container.log";
const BUNDLE: &str = "/srv/bundle";
const COUNT: &str = "/srv/bundle/rootfs/count";

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

pub fn runc(host: &Host, arguments: &[&str]) -> Output {
    host.run(Program::new(RUNC).args(arguments.iter().copied())).unwrap()
}

pub fn status(host: &Host, id: &str) -> Option<String> {
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

pub fn goes_on(host: &Host) {
    let (before, deadline) = (steps(host), Instant::now() + PATIENCE);
    while steps(host) < before + 100 {
        assert!(Instant::now() < deadline, "it stands still at {before}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn start(host: &Host, id: &str) {
    let run = Program::new(RUNC)
        .args(["run", "--detach", "--bundle", BUNDLE, id])
        .stdout(LOG)
        .stderr("/srv/container.err");
    let exit = host.spawn(run).unwrap().wait_for(PATIENCE).unwrap();
    let errors = fs::read_to_string(host.path("/srv/container.err")).unwrap_or_default();
    assert!(exit.is_some_and(|exit| exit.success()), "{exit:?} {errors}");
}

/// A bundle in the directory that all hosts see.
pub fn bundle(host: &Host) {
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
