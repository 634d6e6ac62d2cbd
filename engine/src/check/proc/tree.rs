//! The process tree under a root, with everything that its descriptors refer to.

use super::fields::{Fields, Stat};
use super::{maps, numbers};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;

/// What a descriptor refers to.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// Its number.
    pub fd: i32,
    /// What the kernel prints for it: a path, `socket:[…]`, `anon_inode:[…]`.
    pub link: String,
    /// File type and permissions.
    pub mode: u32,
    /// The file system's device number.
    pub file_system: u64,
    /// The file's inode.
    pub inode: u64,
    /// The device number that a device file stands for.
    pub device: u64,
    /// Links to the inode: 0 when it is deleted.
    pub links: u64,
    /// Bytes that it occupies.
    pub occupied: u64,
    /// Whether it is open for writing.
    pub writable: bool,
    /// `O_…` flags; 0 for sockets and anonymous inodes, where they do not matter.
    pub flags: i32,
    /// The mount that it was opened through, where there is one.
    pub mount: Option<u64>,
    /// Locks and leases on it, as `fdinfo` prints them.
    pub locks: Vec<String>,
}

impl Descriptor {
    /// Whether the file's type is this `S_IF…`.
    pub fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }

    /// Whether it can only append: CRIU does not compare such a file's size.
    pub fn is_append_only(&self) -> bool {
        self.flags & (libc::O_ACCMODE | libc::O_APPEND) == libc::O_WRONLY | libc::O_APPEND
    }
}

/// A process of the tree.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number on this host.
    pub pid: i32,
    /// `/proc/PID/stat`.
    pub stat: Stat,
    /// `/proc/PID/status`.
    pub status: Fields,
    /// Its threads.
    pub threads: Vec<i32>,
    /// What it has open.
    pub descriptors: Vec<Descriptor>,
    /// What it has mapped, without anonymous memory.
    pub mappings: Vec<maps::NamedMapping>,
    /// Its namespaces: kind, inode number.
    pub namespaces: BTreeMap<&'static str, u64>,
}

/// A tree, root first.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Its processes, parents before children.
    pub processes: Vec<Process>,
}

/// The most locks of one descriptor that are looked at.
const MAX_LOCKS: usize = 1000;

/// The namespaces there are; a kernel without one has no link.
pub const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// The namespaces of a process (or of `self`).
pub fn namespaces(of: &str) -> BTreeMap<&'static str, u64> {
    let inode = |kind| Some(std::fs::metadata(format!("/proc/{of}/ns/{kind}")).ok()?.ino());
    NAMESPACES.iter().filter_map(|kind| Some((*kind, inode(*kind)?))).collect()
}

impl Tree {
    /// Reads the tree under `root`; `None` when there is no such process.
    pub fn read(root: i32) -> Option<Tree> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for pid in numbers("/proc") {
            if let Some(stat) = Stat::of(&format!("/proc/{pid}/stat")) {
                children.entry(stat.parent).or_default().push(pid);
            }
        }
        let mut processes = vec![Process::read(root)?];
        let (mut next, mut seen) = (0, HashSet::from([root]));
        while next < processes.len() {
            let below = children.remove(&processes[next].pid).unwrap_or_default();
            processes.extend(below.into_iter().filter(|pid| seen.insert(*pid)).filter_map(Process::read));
            next += 1;
        }
        Some(Tree { processes })
    }

    /// The first process.
    pub fn root(&self) -> &Process {
        &self.processes[0]
    }

    /// Whether a process of this host belongs to it.
    pub fn has(&self, pid: i32) -> bool {
        self.processes.iter().any(|process| process.pid == pid)
    }

    /// Every descriptor, with whose it is.
    pub fn descriptors(&self) -> impl Iterator<Item = (&Process, &Descriptor)> {
        self.processes.iter().flat_map(|process| process.descriptors.iter().map(move |d| (process, d)))
    }
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let stat = Stat::of(&format!("/proc/{pid}/stat"))?;
        Some(Process {
            pid,
            stat,
            status: Fields::of(&format!("/proc/{pid}/status")),
            threads: numbers(format!("/proc/{pid}/task")),
            descriptors: numbers(format!("/proc/{pid}/fd"))
                .into_iter()
                .filter_map(|fd| describe(pid, fd))
                .collect(),
            mappings: maps::of(pid),
            namespaces: namespaces(&pid.to_string()),
        })
    }

    /// `/proc/PID/fdinfo/FD`.
    pub fn fdinfo(&self, fd: i32) -> Fields {
        Fields::of(&format!("/proc/{}/fdinfo/{fd}", self.pid))
    }
}

fn describe(pid: i32, fd: i32) -> Option<Descriptor> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let link = std::fs::read_link(&path).ok()?.to_string_lossy().into_owned();
    let target = std::fs::metadata(&path).ok()?;
    // The link's own permissions say how the file was opened.
    let opened = std::fs::symlink_metadata(&path).ok()?;
    let told = if link.starts_with("socket:") || link.starts_with("anon_inode:") {
        Fields::default()
    } else {
        Fields::of(&format!("/proc/{pid}/fdinfo/{fd}"))
    };
    let flags = told.words("flags").next().and_then(|octal| i32::from_str_radix(octal, 8).ok());
    let locks = told.0.lines().filter_map(|line| line.strip_prefix("lock:")).take(MAX_LOCKS);
    Some(Descriptor {
        fd,
        link,
        mode: target.mode(),
        file_system: target.dev(),
        inode: target.ino(),
        device: target.rdev(),
        links: target.nlink(),
        occupied: target.blocks() * 512,
        writable: opened.mode() & 0o200 != 0,
        flags: flags.unwrap_or(0),
        mount: told.number("mnt_id"),
        locks: locks.map(|lock| lock.trim().to_owned()).collect(),
    })
}
