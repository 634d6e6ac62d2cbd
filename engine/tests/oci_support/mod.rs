//! A container of runc's that counts, and two runc roots on this machine for it.
#![allow(dead_code, reason = "each test file uses a part")]

use ferry_engine::target::oci::{Host, OciRestorer, OciTarget, Runtime};
use ferry_engine::target::process::Criu;
use ferry_engine::target::{RestorePlan, Target};
use ferry_transport::wire::control::TcpMode;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub const CRIU: &str = "/var/lib/ferry/criu/bin/criu";

/// A bundle in a directory of its own, which the containers of both roots share.
pub struct Stage {
    pub directory: tempfile::TempDir,
    pub id: String,
}

impl Stage {
    /// `None`, with a word of it, where there is no runc, busybox, CRIU or root.
    pub fn set(script: &str) -> Option<Stage> {
        let there = |program: &str| {
            Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        if !nix::unistd::geteuid().is_root()
            || !there("runc")
            || !there("busybox")
            || !Path::new(CRIU).exists()
        {
            eprintln!(
                "skipped: needs root, runc, a static busybox (scripts/install-test-apps) and a CRIU in {CRIU}"
            );
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("ferry-test-{}-{number}", std::process::id());
        let stage = Stage { directory: tempfile::tempdir().unwrap(), id };
        let rootfs = stage.bundle().join("rootfs");
        for directory in ["bin", "proc", "dev", "tmp"] {
            std::fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        std::fs::copy("/usr/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for name in ["sh", "sleep", "cat", "usleep", "echo"] {
            symlink("busybox", rootfs.join("bin").join(name)).unwrap();
        }
        std::fs::write(stage.bundle().join("config.json"), config(script)).unwrap();
        Some(stage)
    }

    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    pub fn count_file(&self) -> PathBuf {
        self.bundle().join("rootfs/count")
    }

    pub fn runtime(&self, side: &str) -> Runtime {
        Runtime::runc(Some(self.directory.path().join(side)))
    }

    pub fn runc(&self, side: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join(side)).args(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Starts it at the source, its output going to this file of the host.
    pub fn run(&self, output: Stdio) {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join("source"));
        command.args(["run", "--detach", "--bundle"]).arg(self.bundle()).arg(&self.id);
        let status = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).status().unwrap();
        assert!(status.success());
    }

    /// Starts a session that stays.
    pub fn exec_in_background(&self, arguments: &[&str]) {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join("source"));
        command.args(["exec", "--detach", &self.id]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
    }

    pub fn status(&self, side: &str) -> Option<String> {
        let output = self.runc(side, &["state", &self.id]);
        let state: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(state["status"].as_str()?.to_owned())
    }

    pub fn host(&self) -> Host {
        let shim = ferry_engine::criu::shim::place(self.directory.path()).unwrap();
        Host {
            criu: Criu { program: CRIU.into(), shim: Some(shim) },
            relays: self.directory.path().join("relay"),
            ferry: env!("CARGO_BIN_EXE_ferry-engine-helper").into(),
        }
    }

    pub fn target(&self) -> OciTarget {
        OciTarget::new(&self.id, self.runtime("source"), self.host()).unwrap()
    }

    pub fn restorer(&self, target: &OciTarget) -> OciRestorer {
        let setup = target.restorer().unwrap().setup;
        OciRestorer::new(&setup, self.runtime("destination"), self.host()).unwrap()
    }

    /// A directory for CRIU's images or its work.
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn plan(&self) -> RestorePlan {
        RestorePlan {
            images: self.make("images"),
            work: self.make("work"),
            tcp: TcpMode::Established,
            lazy: false,
            pids: Vec::new(),
        }
    }

    /// Sees that nothing of the container is on this side: no state, no mount.
    pub fn nothing_is_left(&self, side: &str) {
        let listed = self.runc(side, &["list", "-q"]);
        assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "");
        let root = self.directory.path().join(side);
        assert!(!root.join(&self.id).exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*root.to_string_lossy()), "{mounts}");
        assert!(!mounts.contains(&*self.directory.path().join("work").to_string_lossy()), "{mounts}");
        assert!(self.bundle().join("rootfs/bin/busybox").exists(), "the container's files are gone");
    }

    /// Sees that no cgroup of the container is left anywhere.
    pub fn no_cgroup_is_left(&self) {
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            assert!(!controller.path().join(&self.id).exists(), "{}", controller.path().display());
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for side in ["source", "destination"] {
            let mount = self.directory.path().join(side).join(&self.id).join("criu-root");
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
            self.runc(side, &["delete", "--force", &self.id]);
        }
    }
}

fn config(script: &str) -> String {
    let capabilities = ["CAP_KILL", "CAP_CHOWN"];
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "hostname": "counter",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
    .to_string()
}
