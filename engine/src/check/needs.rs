//! What the destination must have.

use super::elf;
use super::proc::fields::Stat;
use super::proc::limits::HardLimits;
use super::proc::tree::{Process, Tree, namespaces};
use super::socket_tables::{Sockets, tcp};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{FileClaim, LimitClaim, PortClaim, PortProtocol};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the destination must have, for the offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files that must be there.
    pub files: Vec<FileClaim>,
    /// Numbers that must be free; empty with a PID namespace of its own.
    pub pids: Vec<u32>,
    /// Resident and swapped memory of all processes.
    pub memory: Bytes,
    /// The highest hard limits of all processes.
    pub limits: Vec<LimitClaim>,
    /// Ports that must be free; empty with a network namespace of its own.
    pub ports: Vec<PortClaim>,
}

/// The most files that are claimed; beyond it the restore itself will tell.
pub(super) const MAX_FILES: usize = 20_000;

/// The most ports that are claimed.
pub(super) const MAX_PORTS: usize = 4096;

/// Reads what the tree under `root` needs; empty when there is no such process.
pub fn describe_needs(root: i32) -> Needs {
    let Some(tree) = Tree::read(root) else { return Needs::default() };
    let own = namespaces("self");
    let pids =
        if tree.root().namespaces.get("pid") == own.get("pid") { pids(&tree) } else { BTreeSet::new() };
    // With a mount namespace of its own the image brings its mounts, and paths are
    // not those of the destination's root.
    let files = if tree.root().namespaces.get("mnt") == own.get("mnt") { files(&tree) } else { Vec::new() };
    let kibibytes = |process: &Process| -> u64 {
        ["VmRSS", "VmSwap", "HugetlbPages"].iter().filter_map(|name| process.status.number::<u64>(name)).sum()
    };
    let memory = Bytes(tree.processes.iter().map(|process| kibibytes(process) * 1024).sum());
    // A network namespace brings its ports; another than ours cannot be compared either.
    let shares_network = tree.root().namespaces.get("net") == own.get("net");
    let ports = if shares_network { ports(&tree) } else { Vec::new() };
    Needs { files, pids: pids.into_iter().collect(), memory, limits: limits(&tree), ports }
}

fn ports(tree: &Tree) -> Vec<PortClaim> {
    let Ok(sockets) = Sockets::here() else { return Vec::new() };
    let mut claims = BTreeSet::new();
    for (_, descriptor) in tree.descriptors().filter(|(_, descriptor)| descriptor.is(libc::S_IFSOCK)) {
        let listening = sockets.tcp.get(&descriptor.inode).filter(|socket| socket.state == tcp::LISTEN);
        // A connected UDP socket shares its port with others.
        let bound = sockets.udp.get(&descriptor.inode).filter(|socket| socket.state == tcp::CLOSE);
        let tcp = listening.map(|socket| (PortProtocol::Tcp, socket.local));
        let udp = bound.map(|socket| (PortProtocol::Udp, socket.local));
        let found = tcp.into_iter().chain(udp).filter(|(_, (_, port))| *port != 0);
        claims.extend(found.map(|(protocol, (address, port))| PortClaim { protocol, address, port }));
    }
    claims.into_iter().take(MAX_PORTS).collect()
}

fn limits(tree: &Tree) -> Vec<LimitClaim> {
    let mut highest: BTreeMap<String, u64> = BTreeMap::new();
    for process in &tree.processes {
        for (name, hard) in HardLimits::of(&process.pid.to_string()).0 {
            let held = highest.entry(name).or_default();
            *held = hard.max(*held);
        }
    }
    highest.into_iter().map(|(name, hard)| LimitClaim { name, hard }).collect()
}

fn pids(tree: &Tree) -> BTreeSet<u32> {
    let root_session = tree.root().stat.session;
    let mut all = BTreeSet::new();
    for process in &tree.processes {
        all.extend(process.threads.iter().filter_map(|tid| u32::try_from(*tid).ok()));
        let Stat { session, group, .. } = process.stat;
        for id in [session, group] {
            // A session outside the tree is not restored: ferry's takes its place.
            if id > 0 && (tree.has(id) || id != root_session) {
                all.extend(u32::try_from(id));
            }
        }
    }
    all
}

fn files(tree: &Tree) -> Vec<FileClaim> {
    let mut claims: BTreeMap<String, FileClaim> = BTreeMap::new();
    for process in &tree.processes {
        for mapping in process.mappings.iter().filter(|mapping| has_path(&mapping.name)) {
            claims
                .entry(mapping.name.clone())
                .or_insert_with_key(|path| claim(path, &mapping.file(process.pid), Sized::Yes));
        }
        // CRIU opens it at the restore; a removed one is its own matter.
        let place = format!("/proc/{}/cwd", process.pid);
        if let Some(path) =
            std::fs::read_link(&place).ok().and_then(|path| path.into_os_string().into_string().ok())
            && has_path(&path)
        {
            claims.entry(path).or_insert_with_key(|path| claim(path, &place, Sized::No));
        }
        for descriptor in process.descriptors.iter().filter(|d| has_path(&d.link) && d.links > 0) {
            if descriptor.is(libc::S_IFREG) || descriptor.is(libc::S_IFDIR) {
                let sized =
                    if descriptor.writable || descriptor.is(libc::S_IFDIR) { Sized::No } else { Sized::Yes };
                let through = format!("/proc/{}/fd/{}", process.pid, descriptor.fd);
                claims.entry(descriptor.link.clone()).or_insert_with_key(|path| claim(path, &through, sized));
            }
        }
    }
    claims.into_values().filter(|claim| claim.mode != 0).take(MAX_FILES).collect()
}

fn has_path(name: &str) -> bool {
    let elsewhere = ["/proc/", "/sys/", "/memfd:", "/dev/", "/SYSV", "/anon_hugepage", "/[aio]"];
    // POSIX shared memory is files like others: without a mount namespace they stay behind.
    let is_file = name.starts_with("/dev/shm/") || !elsewhere.iter().any(|place| name.starts_with(place));
    name.starts_with('/') && !name.ends_with(" (deleted)") && is_file
}

/// Whether the size has to match.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sized {
    Yes,
    No,
}

/// Describes a file through a link of /proc, which leads to the file itself
/// whatever root or mount lies between. Mode 0 when it is gone.
fn claim(path: &str, through: &str, sized: Sized) -> FileClaim {
    let about = std::fs::metadata(through).ok();
    FileClaim {
        path: path.to_owned(),
        size: about.as_ref().filter(|_| sized == Sized::Yes).map(|about| about.len()),
        mode: about.as_ref().map_or(0, |about| about.mode()),
        build_id: about.filter(|about| about.is_file()).and_then(|_| elf::build_id(Path::new(through))),
    }
}
