//! Device files and terminals.

use super::{Report, subject};
use crate::check::finding::{Force, Severity};
use crate::check::proc::tree::{Descriptor, Process, Tree};
use std::collections::HashSet;

/// Character device majors, from the kernel's devices.txt.
const MEMORY: u32 = 1;
const VIRTUAL_TERMINAL: u32 = 4;
const TERMINAL: u32 = 5;
const MISC: u32 = 10;
const PTY_MASTERS: std::ops::RangeInclusive<u32> = 128..=135;
const PTY_SLAVES: std::ops::RangeInclusive<u32> = 136..=143;
const NVIDIA: u32 = 195;
const DIRECT_RENDERING: u32 = 226;

fn number(descriptor: &Descriptor) -> (u32, u32) {
    (libc::major(descriptor.device), libc::minor(descriptor.device))
}

pub(super) fn check(process: &Process, descriptor: &Descriptor, report: &mut Report) {
    let (what, advice) = match number(descriptor) {
        (MEMORY | VIRTUAL_TERMINAL | TERMINAL, _) => return,
        // TUN and autofs.
        (MISC, 200 | 235) => return,
        (major, _) if PTY_MASTERS.contains(&major) || PTY_SLAVES.contains(&major) => return,
        (NVIDIA | DIRECT_RENDERING, _) => {
            ("a GPU is in use; its state is not carried", "move the work off the GPU first")
        }
        _ if descriptor.link.starts_with("/dev/nvidia") => {
            ("a GPU is in use; its state is not carried", "move the work off the GPU first")
        }
        _ => ("CRIU cannot dump this device", "close it before the move"),
    };
    report.add(Severity::Blocks, Force::Final, process, subject(descriptor), what, advice);
}

/// A terminal's slave end without its master in the tree belongs to somebody's
/// window, which does not move.
pub(super) fn terminals(tree: &Tree, report: &mut Report) {
    let masters: HashSet<u32> = tree
        .descriptors()
        .filter(|(_, descriptor)| descriptor.link.ends_with("/ptmx"))
        .filter_map(|(process, descriptor)| process.fdinfo(descriptor.fd).number("tty-index"))
        .collect();
    for (process, descriptor) in tree.descriptors().filter(|(_, d)| d.is(libc::S_IFCHR)) {
        let (major, minor) = number(descriptor);
        let outside = PTY_SLAVES.contains(&major)
            && !descriptor.link.ends_with("/ptmx")
            && !masters.contains(&(minor + 256 * (major - PTY_SLAVES.start())));
        if outside || (major, minor) == (TERMINAL, 0) && masters.is_empty() {
            let what = "a terminal whose other end is not part of the tree";
            let advice = "start it with setsid and its input and output redirected (setsid CMD </dev/null >LOG 2>&1), \
                          or inside tmux and move the tmux server";
            report.add(Severity::Blocks, Force::Overridable, process, subject(descriptor), what, advice);
        }
    }
}
