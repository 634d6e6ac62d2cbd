//! What happens to a destination host: its files and its memory.

use super::receiver_of;
use ferry_lab::hosts::Host;
use std::fs;
use std::path::PathBuf;

/// A file that the workload has, each host its own copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// By a descriptor.
    Open,
    /// By a mapping alone.
    Mapped,
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Removed,
    /// Another size.
    Cut,
}

impl Kept {
    pub fn path(self) -> &'static str {
        match self {
            Kept::Open => "/tmp/counter-open",
            Kept::Mapped => "/tmp/counter-mapped",
        }
    }

    /// Writes it as it is everywhere.
    pub fn lay_down(self, host: &Host) {
        fs::write(host.path(self.path()), b"the same on both hosts\n".repeat(1000)).unwrap();
    }
}

impl Fate {
    pub fn befall(self, host: &Host, file: Kept) {
        let path = host.path(file.path());
        match self {
            Fate::Removed => fs::remove_file(path).unwrap(),
            Fate::Cut => fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap(),
        }
    }
}

/// What the kernel does when a control group wants more memory than it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oom {
    /// It refuses a write, and lets whoever touches a page wait.
    Refuses,
    /// It kills.
    Kills,
}

impl Oom {
    /// Whether this machine has what it takes: memory control groups of version 1.
    pub fn can_be() -> bool {
        own_group().is_some_and(|group| group.join("memory.oom_control").exists())
    }
}

/// A receiver that may have 8 MiB more than it has.
pub struct Starved {
    group: PathBuf,
    parent: PathBuf,
}

const MORE: &str = "8388608";

impl Starved {
    pub fn new(host: &Host, oom: Oom) -> Starved {
        let parent = own_group().expect("a memory control group");
        let group = parent.join(format!("ferry-starved-{}", host.first_process()));
        fs::create_dir(&group).unwrap();
        let say = |file: &str, what: &str| fs::write(group.join(file), what).unwrap();
        // What it has is charged to its old group and stays there.
        say("memory.limit_in_bytes", MORE);
        say("memory.oom_control", if oom == Oom::Refuses { "1" } else { "0" });
        let receiver = host.outer_pid(receiver_of(host).expect("a receiver")).unwrap();
        say("cgroup.procs", &receiver.to_string());
        Starved { group, parent }
    }

    /// It may have what it wants again.
    pub fn feed(self) {
        fs::write(self.group.join("memory.limit_in_bytes"), "-1").unwrap();
        for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap().lines() {
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        // Of a killed process it may take a moment.
        while fs::remove_dir(&self.group).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// This process's memory control group.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.split_once(":memory:"))?.1.trim_start_matches('/');
    Some(PathBuf::from("/sys/fs/cgroup/memory").join(own))
}
