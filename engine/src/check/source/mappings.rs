//! Mappings that cannot be carried.

use super::Report;
use crate::check::SourceOptions;
use crate::check::finding::{Force, Severity, Subject};
use crate::check::proc::tree::{Tree, namespaces};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(super) fn check(tree: &Tree, options: &SourceOptions, report: &mut Report) {
    let own_ipc = namespaces("self").get("ipc").copied();
    let private_ipc = tree.root().namespaces.get("ipc").copied() != own_ipc;
    // What all processes of a server have mapped is said of the first.
    let mut said = HashSet::new();
    for process in &tree.processes {
        for mapping in process
            .mappings
            .iter()
            .filter(|mapping| said.insert((&mapping.name, mapping.is_shared_writable())))
        {
            let name = mapping.name.as_str();
            let mut say = |severity, force, what: String, advice: &str| {
                let subject =
                    Subject::Mapping { start: mapping.start, end: mapping.end, name: mapping.name.clone() };
                report.add(severity, force, process, subject, what, advice);
            };
            if name.contains("[io_uring]") {
                let advice =
                    "start the program without it (Node.js: UV_USE_IO_URING=0; databases have a setting)";
                say(Severity::Blocks, Force::Final, "an io_uring, which CRIU cannot dump".into(), advice);
            } else if name.starts_with("/SYSV") && !private_ipc {
                let what = "SysV shared memory outside an IPC namespace of its own".into();
                say(Severity::Blocks, Force::Final, what, "start the program with unshare --ipc");
            } else if name.starts_with("anon_inode:") {
                say(Severity::Blocks, Force::Final, "CRIU cannot dump such a mapping".into(), "");
            } else if name == "[uprobes]" {
                let what = "uprobes are set in it".into();
                say(
                    Severity::Blocks,
                    Force::Final,
                    what,
                    "remove the probes (perf, bpftrace) and restart it",
                );
            } else if name.starts_with("/dev/")
                && !name.starts_with("/dev/shm/")
                && !name.starts_with("/dev/zero")
            {
                let what = "a device is mapped, which CRIU cannot dump".into();
                say(Severity::Blocks, Force::Final, what, "let the program close the device");
            } else if name.ends_with(" (deleted)") && is_plain(name) {
                let occupied =
                    std::fs::metadata(mapping.file(process.pid)).map_or(0, |file| file.blocks() * 512);
                if occupied > options.ghost_limit.0 {
                    let what = format!("a deleted file of {occupied} bytes, above the ghost limit");
                    let advice = "restart the program after the upgrade that replaced it, or raise the limit";
                    say(Severity::Blocks, Force::Overridable, what, advice);
                }
            } else if mapping.is_shared_writable()
                && is_plain(name)
                && !options.synced.iter().any(|tree| Path::new(name).starts_with(tree))
            {
                let what = "a file is mapped shared and writable; its content is not copied".into();
                say(Severity::Risks, Force::Overridable, what, "keep it on storage that both hosts share");
            }
        }
    }
}

fn is_plain(name: &str) -> bool {
    name.starts_with('/')
        && !["/memfd:", "/dev/zero", "/SYSV", "/anon_hugepage", "/[aio]"].iter().any(|p| name.starts_with(p))
}
