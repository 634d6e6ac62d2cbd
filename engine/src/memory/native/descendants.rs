//! A process and all its descendants.

use crate::memory::ProcessSet;
use crate::sys::procfs::{children, stat};
use std::collections::HashSet;
use std::io;

/// Walks of the tree before the last answer is taken although it still changes.
const MAX_WALKS: usize = 16;
/// The most processes that are followed.
const MAX_PROCESSES: usize = 1 << 16;

/// A process and everything it started, as long as the parent of each is in the
/// tree: what outlives its parent belongs to init.
#[derive(Clone, Debug)]
pub struct DescendantSet {
    root: i32,
    start_time: u64,
}

impl DescendantSet {
    /// Of the process that has the number `root` now. `NotFound` if there is none.
    pub fn of(root: i32) -> io::Result<DescendantSet> {
        let stat = stat::of(root)?;
        Ok(DescendantSet { root, start_time: stat.start_time })
    }

    /// The root's number.
    pub fn root(&self) -> i32 {
        self.root
    }

    fn walk(&self) -> io::Result<Vec<i32>> {
        let mut found = vec![self.root];
        let mut seen = HashSet::from([self.root]);
        let mut next = 0;
        while let Some(pid) = found.get(next).copied() {
            next += 1;
            let children = match children::of(pid) {
                Ok(children) => children,
                Err(cause) if children::is_gone(&cause) => continue,
                Err(cause) => return Err(cause),
            };
            for child in children {
                if seen.insert(child) {
                    found.push(child);
                }
            }
            if found.len() > MAX_PROCESSES {
                return Err(io::Error::other(format!("more than {MAX_PROCESSES} processes")));
            }
        }
        Ok(found)
    }
}

impl ProcessSet for DescendantSet {
    fn processes(&self) -> io::Result<Vec<i32>> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("process {} exited", self.root));
        let alive = |stat: &stat::Stat| stat.start_time == self.start_time && !stat.state.is_dead();
        let mut last = self.walk()?;
        for _ in 0..MAX_WALKS {
            // Asked between two walks, so that the first of them was of this process.
            match stat::of(self.root) {
                Ok(stat) if alive(&stat) => {}
                Ok(_) => return Err(gone()),
                Err(cause) if children::is_gone(&cause) => return Err(gone()),
                Err(cause) => return Err(cause),
            }
            // A process that was forked during a walk, behind its back, is found
            // by the next; two equal walks saw the tree whole.
            let again = self.walk()?;
            if again == last {
                break;
            }
            last = again;
        }
        Ok(last)
    }
}
