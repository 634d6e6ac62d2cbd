//! Open files with a path, and those that have lost it.

use super::{Report, subject};
use crate::check::SourceOptions;
use crate::check::finding::{Force, Severity};
use crate::check::proc::tree::Tree;
use ferry_transport::units::Bytes;
use std::collections::HashSet;
use std::path::Path;

pub(super) fn check(tree: &Tree, options: &SourceOptions, report: &mut Report) {
    // A log that many processes write to is said once.
    let mut said = HashSet::new();
    for (process, descriptor) in tree.descriptors() {
        let regular = descriptor.is(libc::S_IFREG);
        let directory = descriptor.is(libc::S_IFDIR);
        let memfd = descriptor.link.starts_with("/memfd:");
        if (!regular && !directory) || memfd || !descriptor.link.starts_with('/') {
            continue;
        }
        let comes_along = descriptor.links > 0
            && options.synced.iter().any(|tree| Path::new(&descriptor.link).starts_with(tree));
        if comes_along {
            continue;
        }
        let mut say = |severity, force, what: String, advice: &str| {
            report.add(severity, force, process, subject(descriptor), what, advice);
        };
        if descriptor.links == 0 && regular && descriptor.occupied > options.ghost_limit.0 {
            let size = Bytes(descriptor.occupied);
            let what = format!("a deleted file of {size}, above the limit of {}", options.ghost_limit);
            say(
                Severity::Blocks,
                Force::Overridable,
                what,
                "let the program close it, or raise the ghost limit",
            );
        } else if descriptor.links == 0 && directory {
            let what = "a directory that was removed is still open; it comes back empty".to_owned();
            say(Severity::Risks, Force::Overridable, what, "");
        } else if descriptor.links > 0 && descriptor.link.ends_with(" (deleted)") {
            let what = "its name was removed while others remain: CRIU gives it a temporary one beside it, \
                        which the destination has only on shared storage"
                .to_owned();
            say(Severity::Risks, Force::Overridable, what, "let the program open it again under a name");
        } else if descriptor.links > 0 && regular && descriptor.writable && !is_virtual(&descriptor.link) {
            if !said.insert((descriptor.file_system, descriptor.inode, descriptor.is_append_only())) {
                continue;
            }
            if descriptor.is_append_only() {
                let what = "open for appending; the file itself is not copied, and must be there".to_owned();
                let advice = "keep it on shared storage, or let the copy go on with the destination's own";
                say(Severity::Notes, Force::Overridable, what, advice);
            } else {
                let what =
                    "open for writing; the file itself is not copied, and the restore fails unless it has \
                            the same size there as at the freeze"
                        .to_owned();
                let advice = "keep it on storage that both hosts share, or copy it in a hook at the stage `frozen`; \
                              a log opened for appending only (>>) may differ";
                say(Severity::Risks, Force::Overridable, what, advice);
            }
        }
    }
}

pub(super) fn is_virtual(path: &str) -> bool {
    ["/proc/", "/sys/", "/dev/"].iter().any(|place| path.starts_with(place))
}
