//! The control groups of a daemon's containers: a parent in each hierarchy.

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Each lab's names begin with this.
const PREFIX: &str = "ferry-lab-";
/// How long the kernel may take to let go of a group whose last process has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// A parent that is a daemon's own.
#[derive(Debug)]
pub struct CgroupParent(String);

impl CgroupParent {
    /// A name that nobody has. What labs have left that were killed is removed.
    pub fn new() -> CgroupParent {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        CgroupParent(format!("/{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// As in `docker run --cgroup-parent`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Kills every process in it, whatever PID namespace that has.
    pub fn kill(&self) {
        for root in hierarchies() {
            kill_tree(&root.join(&self.0[1..]));
        }
    }

    /// Removes it from every hierarchy.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left: Vec<PathBuf> = hierarchies()
                .into_iter()
                .map(|root| root.join(&self.0[1..]))
                .filter(|group| group.exists() && !remove_tree(group))
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "control groups cannot be removed: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes the groups of labs whose process is gone.
fn sweep() {
    for root in hierarchies() {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
            if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_tree(&entry.path());
            }
        }
    }
}

/// Where control groups are mounted: each controller's under v1, the one of v2.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_cgroups = fields.filter(|fields| fields.get(2).is_some_and(|kind| kind.starts_with("cgroup")));
    of_cgroups.filter_map(|fields| fields.get(1).map(PathBuf::from)).collect()
}

fn kill_tree(group: &Path) {
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        // 0 is a process that this PID namespace does not see.
        if let Some(pid) = pid.parse().ok().filter(|pid| *pid > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for entry in directories(group) {
        kill_tree(&entry);
    }
}

/// The groups below first; whether all are gone.
fn remove_tree(group: &Path) -> bool {
    for below in directories(group) {
        remove_tree(&below);
    }
    fs::remove_dir(group).is_ok()
}

fn directories(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
