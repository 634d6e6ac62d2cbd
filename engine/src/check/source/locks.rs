//! File locks and leases: CRIU sets them again (`file_locks` is on), on the file that
//! the destination has.

use super::{Report, subject};
use crate::check::finding::{Force, Severity};
use crate::check::proc::tree::{Descriptor, Process, Tree};
use std::collections::BTreeSet;

pub(super) fn check(tree: &Tree, report: &mut Report) {
    for process in &tree.processes {
        let held: Vec<(&Descriptor, Kind)> = process
            .descriptors
            .iter()
            .flat_map(|descriptor| descriptor.locks.iter().map(move |lock| (descriptor, Kind::of(lock))))
            .collect();
        locks(process, &held, report);
        for (descriptor, _) in held.iter().filter(|(_, kind)| *kind == Kind::Lease) {
            let what = "a lease is held on it (fcntl F_SETLEASE); the restore fails where another process has the file open";
            let advice = "see that nobody has it open at the destination";
            report.add(Severity::Risks, Force::Overridable, process, subject(descriptor), what, advice);
        }
    }
}

/// One finding a process: a database may hold hundreds.
fn locks(process: &Process, held: &[(&Descriptor, Kind)], report: &mut Report) {
    let locks = || held.iter().filter(|(_, kind)| *kind != Kind::Lease);
    let Some((first, _)) = locks().next() else { return };
    let kinds: BTreeSet<&str> = locks().map(|(_, kind)| kind.name()).collect();
    let what = format!(
        "{} file locks are held ({}), this one first; they are set again at the destination, \
         and fail where another process holds them",
        locks().count(),
        kinds.into_iter().collect::<Vec<_>>().join(", ")
    );
    let advice = "on storage that both hosts share, see that the file system shares locks too";
    report.add(Severity::Notes, Force::Overridable, process, subject(first), what, advice);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flock,
    Posix,
    OpenFile,
    Lease,
    Other,
}

impl Kind {
    /// Of "1: FLOCK  ADVISORY  WRITE 14246 fe:00:10011001 0 EOF".
    fn of(lock: &str) -> Kind {
        match lock.split_ascii_whitespace().nth(1) {
            Some("FLOCK") => Kind::Flock,
            Some("POSIX") => Kind::Posix,
            Some("OFDLCK") => Kind::OpenFile,
            Some("LEASE" | "DELEG") => Kind::Lease,
            _ => Kind::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Flock => "flock",
            Kind::Posix => "fcntl",
            Kind::OpenFile => "open file description",
            Kind::Lease => "lease",
            Kind::Other => "another kind",
        }
    }
}
