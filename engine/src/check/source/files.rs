//! Open files with a path, and those that have lost it.

use super::{Report, subject};
use crate::check::SourceOptions;
use crate::check::finding::{Force, Severity};
use crate::check::proc::tree::Tree;
use ferry_transport::units::Bytes;

pub(super) fn check(tree: &Tree, options: &SourceOptions, report: &mut Report) {
    for (process, descriptor) in tree.descriptors() {
        let regular = descriptor.is(libc::S_IFREG);
        let directory = descriptor.is(libc::S_IFDIR);
        let memfd = descriptor.link.starts_with("/memfd:");
        if (!regular && !directory) || memfd || !descriptor.link.starts_with('/') {
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
        } else if descriptor.links > 0 && regular && descriptor.writable && !is_virtual(&descriptor.link) {
            let what = "open for writing; the file itself is not copied, and must have the same size there"
                .to_owned();
            let advice =
                "keep it on storage that both hosts share, or copy it in a hook at the stage `frozen`";
            say(Severity::Risks, Force::Overridable, what, advice);
        }
    }
}

fn is_virtual(path: &str) -> bool {
    ["/proc/", "/sys/", "/dev/"].iter().any(|place| path.starts_with(place))
}
