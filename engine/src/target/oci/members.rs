//! The processes of a container.

use crate::memory::ProcessSet;
use crate::memory::native::DescendantSet;
use crate::sys::procfs::numeric_entries;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

/// A container's first process and its descendants. In a PID namespace of its own
/// these are all that CRIU can dump; who was brought in from outside is none of them.
#[derive(Clone, Debug)]
pub(super) struct Members {
    tree: DescendantSet,
    namespace: PathBuf,
}

impl Members {
    /// Of the container whose first process has this number.
    pub(super) fn of(init: i32) -> io::Result<Members> {
        let tree = DescendantSet::of(init)?;
        let namespace = namespace_of(init)?;
        if namespace == namespace_of(std::process::id() as i32)? {
            return Err(io::Error::other("it has no PID namespace of its own"));
        }
        Ok(Members { tree, namespace })
    }

    pub(super) fn init(&self) -> i32 {
        self.tree.root()
    }

    /// Processes in the container's PID namespace that descend from outside: `exec`
    /// sessions. CRIU would leave them out.
    pub(super) fn outsiders(&self) -> io::Result<Vec<i32>> {
        let members: HashSet<i32> = self.tree.processes()?.into_iter().collect();
        let inside = |pid: &i32| namespace_of(*pid).is_ok_and(|namespace| namespace == self.namespace);
        let mut outsiders = numeric_entries("/proc")?;
        outsiders.retain(|pid| !members.contains(pid) && inside(pid));
        // What was forked meanwhile, inside, is no outsider.
        let members = self.tree.processes()?;
        outsiders.retain(|pid| !members.contains(pid) && inside(pid));
        Ok(outsiders)
    }
}

impl ProcessSet for Members {
    fn processes(&self) -> io::Result<Vec<i32>> {
        self.tree.processes()
    }
}

fn namespace_of(pid: i32) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid"))
}

/// The number of a process in the innermost PID namespace, as the images have it.
pub(super) fn innermost_pid(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}
