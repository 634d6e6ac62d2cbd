//! Mounts: what a mount namespace holds that cannot be made again, and descriptors
//! of files that lie on none of the tree's mounts.

use super::{Report, subject};
use crate::check::finding::{Force, Severity, Subject};
use crate::check::proc::mounts::{self, Mount};
use crate::check::proc::tree::{Descriptor, Process, Tree, namespaces};
use std::collections::{BTreeMap, HashSet};

/// The file systems that CRIU 4.2 mounts again by itself (filesystems.c).
const CARRIED: [&str; 18] = [
    "aufs",
    "autofs",
    "binfmt_misc",
    "btrfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "mqueue",
    "overlay",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];
/// Pseudo-terminals are found by number, not by path.
const PTY: std::ops::RangeInclusive<u32> = 128..=143;
/// The most mounts of one namespace that are named.
const MAX_NAMED: usize = 20;

pub(super) fn check(tree: &Tree, report: &mut Report) {
    let own = namespaces("self").get("mnt").copied();
    let mut seen: BTreeMap<u64, Vec<Mount>> = BTreeMap::new();
    let mut first_in: BTreeMap<u64, &Process> = BTreeMap::new();
    for process in &tree.processes {
        if let Some(namespace) = process.namespaces.get("mnt").copied() {
            seen.entry(namespace).or_insert_with(|| mounts::of(process.pid));
            first_in.entry(namespace).or_insert(process);
        }
    }
    let groups: HashSet<u64> = seen.values().flatten().filter_map(|mount| mount.shared).collect();
    for (namespace, mounts) in seen.iter().filter(|(namespace, _)| Some(**namespace) != own) {
        carried(first_in[namespace], mounts, &groups, report);
    }
    // A process that exited meanwhile has no mounts to be missed.
    let known: HashSet<u64> = seen.values().flatten().map(|mount| mount.id).collect();
    if known.is_empty() {
        return;
    }
    for (process, descriptor) in tree.descriptors().filter(|(_, descriptor)| is_found_by_path(descriptor)) {
        if descriptor.mount.is_some_and(|mount| !known.contains(&mount)) {
            let what = "it was opened through a mount that the tree does not see, where CRIU cannot find it";
            let advice = "open it again inside the mount namespace (redirect input and output there)";
            report.add(Severity::Blocks, Force::Overridable, process, subject(descriptor), what, advice);
        }
    }
}

fn is_found_by_path(descriptor: &Descriptor) -> bool {
    let pty = descriptor.is(libc::S_IFCHR) && PTY.contains(&libc::major(descriptor.device));
    let internal = ["/memfd:", "/dev/zero (deleted)", "/SYSV", "/anon_hugepage"];
    descriptor.link.starts_with('/') && !pty && !internal.iter().any(|name| descriptor.link.starts_with(name))
}

/// Whether each mount of a namespace of its own can be made again.
fn carried(process: &Process, mounts: &[Mount], groups: &HashSet<u64>, report: &mut Report) {
    let problems = mounts.iter().filter_map(|mount| Some((mount, problem(mount, mounts, groups)?)));
    for (mount, (what, advice)) in problems.take(MAX_NAMED) {
        let subject = Subject::Mount { path: mount.point.clone() };
        report.add(Severity::Blocks, Force::Overridable, process, subject, what, advice);
    }
}

fn problem(mount: &Mount, all: &[Mount], groups: &HashSet<u64>) -> Option<(String, &'static str)> {
    // The root is where the restore starts from; what lies on its device is bound from there.
    let same_device = |other: &&Mount| other.device == mount.device && other.id != mount.id;
    let whole = all.iter().filter(same_device).any(|other| within(&mount.root, &other.root));
    if mount.point != "/" && !whole {
        if mount.root != "/" {
            let what =
                format!("directory {} of a {} is mounted here without its whole", mount.root, mount.kind);
            return Some((what, "mount the whole file system in the namespace too, or unmount this"));
        }
        if !CARRIED.contains(&mount.kind.as_str()) {
            let what = format!("a file system of the type {}, which CRIU does not mount again", mount.kind);
            return Some((
                what,
                "unmount it in the namespace, or run the program in the host's mount namespace",
            ));
        }
    }
    let master = mount.master.filter(|group| !groups.contains(group))?;
    let what = format!("it gets mounts from a peer group ({master}) that the tree does not have");
    Some((what, "mount --make-private it there"))
}

/// Whether `directory` lies in `of`.
fn within(directory: &str, of: &str) -> bool {
    let rest = directory.strip_prefix(of.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(lines: &[&str]) -> Vec<String> {
        let mounts: Vec<Mount> = lines.iter().map(|line| Mount::parse(line).unwrap()).collect();
        let groups = mounts.iter().filter_map(|mount| mount.shared).collect();
        mounts.iter().filter_map(|mount| Some(problem(mount, &mounts, &groups)?.0)).collect()
    }

    #[test]
    fn what_a_plain_namespace_has_is_carried() {
        let plain = [
            "43 42 254:0 / / rw - ext4 /dev/vda rw",
            "44 43 254:0 /srv/data /data rw - ext4 /dev/vda rw",
            "45 43 0:21 / /proc rw - proc proc rw",
            "46 43 0:23 / /dev/shm rw - tmpfs tmpfs rw",
            "47 46 0:27 / /dev/shm rw shared:3 - tmpfs tmpfs rw",
            "48 43 0:27 / /other rw master:3 - tmpfs tmpfs rw",
        ];
        assert_eq!(problems(&plain), Vec::<String>::new());
    }

    #[test]
    fn what_comes_from_outside_is_not() {
        let mounts = [
            "43 42 0:40 / / rw - overlay o rw",
            "44 43 254:0 /srv /data rw - ext4 /dev/vda rw",
            "45 43 7:0 / /mnt rw - ext4 /dev/loop0 rw",
            "46 43 0:50 / /slave rw master:9 - tmpfs t rw",
        ];
        let found = problems(&mounts);
        assert_eq!(found.len(), 3, "{found:?}");
        for (text, word) in found.iter().zip(["without its whole", "type ext4", "peer group (9)"]) {
            assert!(text.contains(word), "{text}");
        }
    }
}
