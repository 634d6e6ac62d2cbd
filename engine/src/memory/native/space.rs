//! One address space under tracking, and how it came there.

use super::owed::Owed;
use crate::sys::inject::{InjectionError, run_injector};
use crate::sys::procfs::{numeric_entries, stat};
use crate::sys::userfaultfd::{SpaceState, WriteTracking};
use ferry_transport::page::SpaceId;
use ferry_transport::units::PageCount;
use std::path::Path;
use std::time::Duration;

/// Who runs in an address space. Another process under the same number, and
/// another program in the same process, differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    start_time: u64,
    layout: [u64; 2],
}

impl Identity {
    /// As `/proc/PID/stat` says.
    pub fn of(stat: &stat::Stat) -> Identity {
        Identity { start_time: stat.start_time, layout: stat.layout }
    }
}

/// Whether the writes to an address space are followed.
#[derive(Debug)]
pub enum Tracking {
    /// They are.
    Followed(WriteTracking),
    /// Not yet: the next round tries again.
    Pending,
    /// They cannot be: all of it is read and compared, each time.
    Impossible,
}

/// Whether a space was swept by a round before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Never.
    Fresh,
    /// At least once.
    Swept,
}

/// One address space.
#[derive(Debug)]
pub struct Space {
    /// Its number in the migration.
    pub id: SpaceId,
    /// The process.
    pub pid: i32,
    /// Which program of it.
    pub identity: Identity,
    /// Whether it is followed.
    pub tracking: Tracking,
    /// Whether mappings found untracked may have been tracked before.
    pub age: Age,
    /// What earlier rounds did not get through.
    pub owed: Owed,
    /// What the last round found of pages that nobody follows.
    pub compared: Compared,
}

/// Pages that were compared with what was last sent of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    /// Those with a record, or with one since.
    pub known: PageCount,
    /// Those of them that had changed.
    pub changed: PageCount,
}

impl Compared {
    /// How many of `pages` may be expected to differ the next time: those that are
    /// not known, and as many as did the last time.
    pub fn expected_of(self, pages: PageCount) -> PageCount {
        PageCount((pages.0.saturating_sub(self.known.0) + self.changed.0).min(pages.0))
    }
}

impl Space {
    /// Whether this is still what process `identity` runs in.
    pub fn is_of(&self, pid: i32, identity: Identity) -> bool {
        let alive = match &self.tracking {
            Tracking::Followed(tracking) => tracking.space() == SpaceState::Alive,
            Tracking::Pending | Tracking::Impossible => true,
        };
        self.pid == pid && self.identity == identity && alive
    }
}

/// Brings the address space that `pid` runs in under tracking; how long a thread
/// of it stood still.
pub fn follow(pid: i32, helper_exe: &Path) -> Result<(WriteTracking, Duration), InjectionError> {
    if has_own_userfaultfd(pid) {
        // Its marks and ours could not be told apart.
        return Err(InjectionError::Refused("it uses userfaultfd itself".into()));
    }
    let taken = run_injector(helper_exe, pid)?;
    let tracking = WriteTracking::enable(taken.descriptor).map_err(|cause| {
        InjectionError::Refused(format!("asynchronous write tracking (Linux 6.7 or newer): {cause}"))
    })?;
    Ok((tracking, taken.stopped))
}

fn has_own_userfaultfd(pid: i32) -> bool {
    let directory = format!("/proc/{pid}/fd");
    numeric_entries(&directory).unwrap_or_default().into_iter().any(|number| {
        std::fs::read_link(format!("{directory}/{number}"))
            .is_ok_and(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
    })
}
