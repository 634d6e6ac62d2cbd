//! Descriptors that refer to nothing with a path: anonymous inodes, other kinds.

use super::{Report, devices, subject};
use crate::check::finding::{Force, Severity};
use crate::check::proc::tree::{Descriptor, Process, Tree};

pub(super) fn check(tree: &Tree, report: &mut Report) {
    for (process, descriptor) in tree.descriptors() {
        if let Some(kind) = descriptor.link.strip_prefix("anon_inode:") {
            anonymous(tree, process, descriptor, kind.trim_matches(['[', ']']), report);
        } else if descriptor.is(libc::S_IFBLK) {
            let (what, advice) = ("a block device is open", "close it before the move");
            report.add(Severity::Blocks, Force::Final, process, subject(descriptor), what, advice);
        } else if descriptor.is(libc::S_IFIFO) && descriptor.flags & libc::O_DIRECT != 0 {
            let what = "a pipe in packet mode (O_DIRECT), which CRIU cannot dump";
            report.add(Severity::Blocks, Force::Final, process, subject(descriptor), what, "make it without");
        } else if descriptor.is(libc::S_IFCHR) {
            devices::check(process, descriptor, report);
        }
    }
    devices::terminals(tree, report);
}

/// The kinds that CRIU 4.2 dumps (files.c, `dump_one_file`), and their conditions.
fn anonymous(tree: &Tree, process: &Process, descriptor: &Descriptor, kind: &str, report: &mut Report) {
    let mut say = |severity, force, what: String, advice: &str| {
        report.add(severity, force, process, subject(descriptor), what, advice);
    };
    match kind {
        "eventfd" | "eventpoll" | "signalfd" | "timerfd" => {}
        "inotify" | "fanotify" => {
            // Type f8 is an overlayfs handle, which cannot be opened again by handle.
            let overlay = process.fdinfo(descriptor.fd).0.contains("fhandle-type:f8");
            if overlay {
                let what = format!("{kind} watches a file on overlayfs");
                let advice = "watch a directory on another file system (a volume), or a CRIU newer than 4.2";
                say(Severity::Blocks, Force::Overridable, what, advice);
            }
        }
        "pidfd" => {
            let of: i32 = process.fdinfo(descriptor.fd).number("Pid").unwrap_or(-1);
            if of > 0 && !tree.has(of) {
                let what = format!("a pidfd of process {of}, which is not part of the tree");
                say(Severity::Blocks, Force::Final, what, "close it before the move");
            }
        }
        "bpf-map" => say(
            Severity::Risks,
            Force::Overridable,
            "a BPF map: carried only by a CRIU built with libbpf".into(),
            "",
        ),
        "io_uring" => say(
            Severity::Blocks,
            Force::Final,
            "an io_uring, which CRIU cannot dump".into(),
            "start the program without it (Node.js: UV_USE_IO_URING=0; databases have a setting)",
        ),
        _ => {
            let what = format!("CRIU cannot dump a descriptor of the kind {kind}");
            say(Severity::Blocks, Force::Final, what, "close it before the move");
        }
    }
}
