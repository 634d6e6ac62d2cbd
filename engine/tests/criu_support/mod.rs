//! A workload that counts in a file, and CRIU for it.
#![allow(dead_code, reason = "each test file uses a part")]

use ferry_engine::memory::native::DescendantSet;
use ferry_engine::target::process::{Criu, ProcessTarget};
use ferry_engine::target::{HeldDump, Target};
use ferry_transport::wire::control::TcpMode;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The counting process; it ends with the test, however that ends.
pub struct Counter(Child);

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl std::ops::Deref for Counter {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Counter {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// Counts in a file; its own session, nothing of ours open, no children: their
/// zombies would keep their PIDs until the machine's init gets to them.
pub fn counter(directory: &Path) -> (Counter, PathBuf) {
    let file = directory.join("count");
    let script = format!("n=0; while :; do n=$((n+1)); echo $n >> {}; done", file.display());
    let mut command = Command::new("setsid");
    command.args(["/bin/sh", "-c", &script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (Counter(command.spawn().unwrap()), file)
}

pub fn count(file: &Path) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(n) = std::fs::read_to_string(file).ok().and_then(last_line) {
            return n;
        }
        assert!(Instant::now() < deadline, "no count");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The number on the last whole line.
pub fn last_line(text: String) -> Option<u64> {
    text.rsplit_once('\n')?.0.rsplit('\n').next()?.parse().ok()
}

pub fn goes_on_from(file: &Path, from: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(file) <= from {
        assert!(Instant::now() < deadline, "the count stands still at {from}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn criu(directory: &Path) -> Option<Criu> {
    let program = PathBuf::from("/var/lib/ferry/criu/bin/criu");
    if !program.exists() || !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root and a CRIU in {}", program.display());
        return None;
    }
    let shim = ferry_engine::criu::shim::place(directory).unwrap();
    Some(Criu { program, shim: Some(shim) })
}

pub fn target(child: &Child, criu: &Criu) -> ProcessTarget {
    let root = child.id() as i32;
    ProcessTarget::new(root, criu.clone(), Arc::new(DescendantSet::of(root).unwrap())).unwrap()
}

/// How long a freeze may take here.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn new_directory(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

/// Freezes a target and holds its dump.
pub fn held(mut target: ProcessTarget, images: &Path) -> Box<dyn HeldDump> {
    target.freeze(images, TcpMode::Established, PATIENCE).unwrap().hold().unwrap()
}

/// Sees that CRIU's network lock of the dump in this directory is gone.
pub fn no_lock_is_left(images: &Path) {
    let log = std::fs::read_to_string(images.join("dump.log")).unwrap();
    let id = log.lines().filter_map(|line| line.split_once("CRIU run id = ")).next_back().unwrap().1;
    let tables = ferry_engine::net::nft::Nft::open().unwrap().criu_tables().unwrap();
    assert!(!tables.iter().any(|table| format!("CRIU-{id}").starts_with(&table.name)), "{id}: {tables:?}");
}

/// Dead is not gone: the machine's init gets to its orphans when it likes.
pub fn wait_until_reaped(pid: i32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "{pid} is not reaped");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills the CRIU that has its log in this directory open.
pub fn kill_criu_of(images: &Path) {
    kill_process_with_open(&images.join("dump.log"));
}

pub fn kill_process_with_open(log: &Path) {
    let log = log.canonicalize().unwrap();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(fds) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        if fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == log)) {
            let pid = entry.file_name().to_str().unwrap().parse().unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
            // Dead, whether or not somebody has asked how it died.
            let stat = format!("/proc/{pid}/stat");
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
