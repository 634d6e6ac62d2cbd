//! Pipes, FIFOs and log files that processes outside the tree hold too.

use super::files::is_virtual;
use super::{Report, subject};
use crate::check::finding::{Force, Severity};
use crate::check::proc::fields::Stat;
use crate::check::proc::numbers;
use crate::check::proc::tree::{Descriptor, Tree};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

pub(super) fn check(tree: &Tree, report: &mut Report) {
    let wanted = |descriptor: &Descriptor| {
        descriptor.link.starts_with("pipe:[")
            || descriptor.is(libc::S_IFIFO)
            || (descriptor.is(libc::S_IFREG)
                && descriptor.links > 0
                && !descriptor.is_append_only()
                && !is_virtual(&descriptor.link))
    };
    let mut shared: HashMap<&str, (&Descriptor, Option<i32>)> = tree
        .descriptors()
        .filter(|(_, descriptor)| wanted(descriptor))
        .map(|(_, descriptor)| (descriptor.link.as_str(), (descriptor, None)))
        .collect();
    if shared.is_empty() {
        return;
    }
    for pid in numbers("/proc").into_iter().filter(|pid| !tree.has(*pid)) {
        for fd in numbers(format!("/proc/{pid}/fd")) {
            let path = format!("/proc/{pid}/fd/{fd}");
            let Ok(link) = std::fs::read_link(&path) else { continue };
            let Some((descriptor, holder)) = link.to_str().and_then(|link| shared.get_mut(link)) else {
                continue;
            };
            if holder.is_none() && is_shared(descriptor, &path) {
                *holder = Some(pid);
            }
        }
    }
    for (process, descriptor) in tree.descriptors().filter(|(_, descriptor)| wanted(descriptor)) {
        let Some((_, Some(holder))) = shared.get(descriptor.link.as_str()) else { continue };
        let name = Stat::of(&format!("/proc/{holder}/stat")).map_or_else(String::new, |stat| stat.comm);
        let (severity, what, advice) = if descriptor.is(libc::S_IFIFO) {
            let what = format!(
                "process {holder} ({name}), outside the tree, holds this pipe too; it is cut by the move"
            );
            (Severity::Blocks, what, "start the program with this descriptor closed, or redirected to a file")
        } else {
            let what = format!(
                "process {holder} ({name}), outside the tree, writes to this file too; \
                 if it grows between dump and restore, the restore fails"
            );
            (Severity::Risks, what, "let both use a file of their own, or open it for appending only (>>)")
        };
        report.add(severity, Force::Overridable, process, subject(descriptor), what, advice);
    }
}

/// Whether an outsider's descriptor of the same name is of the same file, and
/// matters: a reader does not make a file grow.
fn is_shared(descriptor: &Descriptor, outsider: &str) -> bool {
    let same = std::fs::metadata(outsider)
        .is_ok_and(|file| (file.dev(), file.ino()) == (descriptor.file_system, descriptor.inode));
    let writes = || std::fs::symlink_metadata(outsider).is_ok_and(|link| link.mode() & 0o200 != 0);
    same && (descriptor.is(libc::S_IFIFO) || writes())
}
