//! What is in a tree now: every entry with its stamp, in path order.
//!
//! Opened name by name below the root's descriptor, so that no link, and no directory
//! that is exchanged for one meanwhile, leads out of the tree. Costs one or
//! two microseconds for an entry whose inode is cached; content and attributes are not read.

use super::entry::{Stamp, Time};
use super::path::RelPath;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Statx, StatxAttributes, StatxFlags, openat, statx};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// An entry as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) path: RelPath,
    pub(super) stamp: Stamp,
    /// Whether a later change must show in the stamp, and what was told of it is true.
    pub(super) settled: bool,
    /// What the manifest has of it; zero before it was told.
    pub(super) hash: u128,
    /// What it takes on the disk.
    pub(super) occupied: u64,
}

/// What to look at.
#[derive(Clone, Copy)]
pub(super) enum Look<'a> {
    /// Everything.
    All,
    /// Where nobody can have changed a file since the last scan: at directories only,
    /// for names that were added or removed.
    Names(&'a [Seen]),
}

/// The most entries of a tree.
pub(super) const MAX_ENTRIES: usize = 1 << 24;

/// Scans the tree below `root`.
pub(super) fn scan(root: &OwnedFd, look: Look<'_>) -> io::Result<Vec<Seen>> {
    let mut scan = Scan { look, found: Vec::with_capacity(last_count(look)) };
    let now = now();
    let stat = statx(root, c"", AtFlags::EMPTY_PATH, FLAGS)?;
    let seen = Seen::new(RelPath::root(), &stat, now);
    let top = openat(root, c".", DIRECTORY, Mode::empty())?;
    scan.directory(top, seen)?;
    Ok(scan.found)
}

pub(super) const FLAGS: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);

struct Scan<'a> {
    look: Look<'a>,
    found: Vec<Seen>,
}

impl Scan<'_> {
    fn directory(&mut self, directory: OwnedFd, seen: Seen) -> io::Result<()> {
        let path = seen.path.clone();
        let unchanged = self.unchanged(&seen);
        self.push(seen)?;
        if let Some(children) = unchanged {
            for child in children {
                match child.path.split() {
                    Some((_, name)) if child.stamp.is_directory() => {
                        let name = CString::new(name.as_encoded_bytes())?;
                        self.entry(&directory, &path, &name)?;
                    }
                    _ => self.push(child.clone())?,
                }
            }
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        names.iter().try_for_each(|name| self.entry(&directory, &path, name))
    }

    fn entry(&mut self, directory: &OwnedFd, parent: &RelPath, name: &CStr) -> io::Result<()> {
        let now = now();
        let stat = match statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, FLAGS) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(at(parent, name, error)),
        };
        let path = parent.join(name.to_bytes()).ok_or_else(|| at(parent, name, Errno::NAMETOOLONG))?;
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            let what = format!(
                "{path} is a mount point: what is mounted there does not come along with this directory"
            );
            return Err(io::Error::new(io::ErrorKind::CrossesDevices, what));
        }
        let seen = Seen::new(path, &stat, now);
        if !seen.stamp.is_directory() {
            return self.push(seen);
        }
        match openat(directory, name, DIRECTORY, Mode::empty()) {
            Ok(opened) => self.directory(opened, seen),
            // Gone, or something else by now: the next scan sees what.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(at(parent, name, error)),
        }
    }

    fn push(&mut self, seen: Seen) -> io::Result<()> {
        if self.found.len() >= MAX_ENTRIES {
            return Err(io::Error::other(format!("more than {MAX_ENTRIES} entries in one tree")));
        }
        self.found.push(seen);
        Ok(())
    }

    /// What was directly in a directory whose names are still the same.
    fn unchanged(&self, seen: &Seen) -> Option<Vec<Seen>> {
        let Look::Names(before) = self.look else { return None };
        let at = before.binary_search_by(|other| other.path.cmp(&seen.path)).ok()?;
        if before[at].stamp != seen.stamp || !before[at].stamp.is_settled(now()) {
            return None;
        }
        let beneath = before[at + 1..].iter().take_while(|other| other.path.is_beneath(&seen.path));
        let direct = |other: &&Seen| other.path.split().is_some_and(|(parent, _)| parent == seen.path);
        Some(beneath.filter(direct).cloned().collect())
    }
}

impl Seen {
    fn new(path: RelPath, stat: &Statx, now: Time) -> Seen {
        let stamp = Stamp::of(stat);
        Seen { path, stamp, settled: stamp.is_settled(now), hash: 0, occupied: stat.stx_blocks * 512 }
    }
}

/// Before an entry is looked at, so that "later" is later for sure.
pub(super) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() }
}

fn at(parent: &RelPath, name: &CStr, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{parent}/{}: {error}", name.to_string_lossy()))
}

fn last_count(look: Look<'_>) -> usize {
    match look {
        Look::All => 0,
        Look::Names(before) => before.len(),
    }
}

/// Opens the root of a tree.
pub(super) fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIRECTORY, Mode::empty())?)
}

/// What an open file is now.
pub(super) fn stamp_of(file: impl AsFd) -> io::Result<(Stamp, Statx)> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, FLAGS)?;
    Ok((Stamp::of(&stat), stat))
}
