//! Who the target is, who we are, and the namespaces between us.

use super::Report;
use crate::check::finding::{Finding, Force, Severity, Subject};
use crate::check::proc::fields::{Fields, Stat};
use crate::check::proc::may_raise_limits;
use crate::check::proc::tree::{Tree, namespaces};
use crate::sys::userfaultfd;

const CAP_NET_ADMIN: u64 = 12;
const CAP_SYS_PTRACE: u64 = 19;
const CAP_SYS_ADMIN: u64 = 21;

pub(super) fn check(tree: &Tree, report: &mut Report) {
    let root = tree.root();
    let own = std::process::id() as i32;
    if root.stat.is_kernel_thread() {
        report.add(Severity::Blocks, Force::Final, root, Subject::Process, "it is a kernel thread", "");
    }
    if root.pid == 1 {
        let what = "it is the init process of this host";
        report.add(
            Severity::Blocks,
            Force::Final,
            root,
            Subject::Process,
            what,
            "name one of its descendants",
        );
    }
    if tree.has(own) {
        let what = "ferry itself runs inside this tree and would be frozen with it";
        let advice = "start ferry from another session, outside the tree";
        report.add(Severity::Blocks, Force::Final, root, Subject::Process, what, advice);
    }
    session(tree, report);
    ourselves(report);
    nested(tree, report);
}

/// Whether session leaders are there to be restored.
fn session(tree: &Tree, report: &mut Report) {
    let root = tree.root();
    if !tree.has(root.stat.session) {
        let what = format!("its session's leader {} is not part of the tree", root.stat.session);
        let advice = "it joins ferry's session at the destination; start it with setsid to keep its own";
        report.add(Severity::Notes, Force::Overridable, root, Subject::Process, what, advice);
    }
    for process in &tree.processes {
        // A session's leader may have exited: CRIU makes a helper for it. A leader
        // that lives elsewhere cannot be had, except the one the root shares.
        let session = process.stat.session;
        let lives = Stat::of(&format!("/proc/{session}/stat")).is_some();
        if session != root.stat.session && !tree.has(session) && lives {
            let what = format!("its session belongs to process {session}, outside the tree");
            report.add(
                Severity::Blocks,
                Force::Final,
                process,
                Subject::Process,
                what,
                "move its leader too",
            );
        }
    }
}

/// What ferry may do here.
pub(super) fn ourselves(report: &mut Report) {
    let capabilities = Fields::of("/proc/self/status").mask("CapEff").unwrap_or(0);
    let has = |capability: u64| capabilities >> capability & 1 == 1;
    let needed = [(CAP_SYS_ADMIN, "SYS_ADMIN"), (CAP_SYS_PTRACE, "SYS_PTRACE"), (CAP_NET_ADMIN, "NET_ADMIN")];
    for (capability, name) in needed {
        if !has(capability) {
            let what = format!("ferry has no CAP_{name} here");
            report.0.push(Finding::host(Severity::Blocks, Force::Overridable, what, "run it as root"));
        }
    }
    if let Err(error) = userfaultfd::open() {
        let what = format!("memory cannot be followed on this kernel: {error}");
        let advice = "Linux 6.7 or newer with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP";
        report.0.push(Finding::host(Severity::Blocks, Force::Final, what, advice));
    }
    if !may_raise_limits() {
        let what = "ferry has no CAP_SYS_RESOURCE here: limits of other users' processes are read from /proc, \
                    and a restore cannot raise a hard limit (open files, processes, locked memory) above ferry's own";
        let advice =
            "give the container or service that runs ferry this capability, or equal limits at both ends";
        report.0.push(Finding::host(Severity::Notes, Force::Overridable, what, advice));
    }
}

/// CRIU restores namespaces of the root; below it only mount and network ones may differ.
fn nested(tree: &Tree, report: &mut Report) {
    let (root, own) = (tree.root(), namespaces("self"));
    let of_its_own = |kind: &str| root.namespaces.get(kind) != own.get(kind);
    if of_its_own("pid") {
        let subject = Subject::Namespace { of: "pid".into() };
        let what = "it lives in another PID namespace than ferry, whose numbers the images would have";
        report.add(
            Severity::Blocks,
            Force::Final,
            root,
            subject,
            what,
            "run ferry inside that namespace: nsenter --target PID --pid --mount",
        );
    }
    for process in &tree.processes[1..] {
        for (kind, inode) in &process.namespaces {
            if root.namespaces.get(kind) != Some(inode) && !["mnt", "net", "cgroup"].contains(kind) {
                let subject = Subject::Namespace { of: (*kind).into() };
                let what = "it differs from the root process's, and nested ones cannot be carried";
                let advice = "stop this process first, or name it as the target";
                report.add(Severity::Blocks, Force::Final, process, subject, what, advice);
            }
        }
    }
    let place = std::fs::read_link(format!("/proc/{}/root", root.pid));
    if !of_its_own("mnt") && place.is_ok_and(|place| place.as_os_str() != "/") {
        let subject = Subject::Namespace { of: "mnt".into() };
        let what = "it is chrooted without a mount namespace of its own";
        let advice = "start it with unshare --mount and pivot_root, or a container runtime";
        report.add(Severity::Risks, Force::Overridable, root, subject, what, advice);
    }
    if !of_its_own("time") {
        let what = "its monotonic clock jumps to the destination's uptime";
        let advice = "a time namespace (unshare --time) keeps it, if the program minds";
        report.add(Severity::Notes, Force::Overridable, root, Subject::Process, what, advice);
    }
    if !of_its_own("pid") {
        let what = "it has no PID namespace of its own: its process numbers must be free at the destination";
        report.add(
            Severity::Notes,
            Force::Overridable,
            root,
            Subject::Process,
            what,
            "unshare --pid --fork avoids it",
        );
    }
}
