//! What a process tree needs at its destination, read from /proc while it runs.

use crate::sys::procfs::maps::{Backing, Mappings};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::FileClaim;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The most files that are claimed; a tree with more is still moved, CRIU then
/// finds what is missing.
const MAX_FILES: usize = 4096;
/// The most PIDs that are claimed.
const MAX_PIDS: usize = 65_536;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Resident memory of all processes.
    pub memory: Bytes,
    /// PIDs, thread IDs, sessions and groups.
    pub pids: Vec<u32>,
    /// Executables and mapped files.
    pub files: Vec<FileClaim>,
    /// How long the kernel takes to walk the tree's page tables for smaps, which
    /// CRIU does inside the freeze.
    pub smaps: Duration,
    /// Processes with memory in the hands of somebody's userfaultfd. Pages that a
    /// pager has yet to bring are in no page table and would not be moved; the marks
    /// of two who follow the same writes cannot be told apart.
    pub served: Vec<i32>,
}

/// Reads it of these processes. One that exits meanwhile is left out.
pub fn of(processes: &[i32]) -> io::Result<Needs> {
    let mut pids = BTreeSet::new();
    let mut files = BTreeMap::new();
    let mut needs = Needs::default();
    for &pid in processes {
        needs.memory += resident(pid);
        pids.extend(identifiers(pid).into_iter().take(MAX_PIDS));
        let Ok(mappings) = Mappings::of(pid) else { continue };
        for mapping in mappings.flatten().filter(|mapping| mapping.backing == Backing::File) {
            let path = Path::new(std::ffi::OsStr::from_bytes(&mapping.name)).to_owned();
            if files.len() < MAX_FILES && !files.contains_key(&path) {
                files.insert(path.clone(), claim(pid, &path));
            }
        }
        let began = Instant::now();
        let smaps = std::fs::read(format!("/proc/{pid}/smaps")).unwrap_or_default();
        needs.smaps += began.elapsed();
        if smaps.split(|byte| *byte == b'\n').any(is_served) {
            needs.served.push(pid);
        }
    }
    needs.pids = pids.into_iter().take(MAX_PIDS).collect();
    needs.files = files.into_values().flatten().collect();
    Ok(needs)
}

/// Whether a line of smaps says that a userfaultfd is registered with a mapping: to
/// bring its pages, to follow its writes, or to map what is there.
fn is_served(line: &[u8]) -> bool {
    let Some(flags) = line.strip_prefix(b"VmFlags:") else { return false };
    flags.split(|byte| *byte == b' ').any(|flag| matches!(flag, b"um" | b"uw" | b"ui"))
}

/// A file as the process sees it; `None` for what has no name any more.
fn claim(pid: i32, path: &Path) -> Option<FileClaim> {
    let text = path.to_str()?;
    if !text.starts_with('/') || text.ends_with(" (deleted)") || text.starts_with("/memfd:") {
        return None;
    }
    let seen = Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").ok()?);
    let found = std::fs::metadata(seen).ok().filter(std::fs::Metadata::is_file)?;
    Some(FileClaim { path: text.to_owned(), size: Some(found.len()), mode: found.mode(), build_id: None })
}

fn resident(pid: i32) -> Bytes {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
    };
    Bytes((kib("VmRSS:") + kib("VmSwap:")) << 10)
}

/// The PID, its threads', and the session's and group's it belongs to.
fn identifiers(pid: i32) -> Vec<u32> {
    let mut found = Vec::new();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    found.extend(threads.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if let Some((_, rest)) = stat.rsplit_once(") ") {
        // state ppid pgrp session
        let fields: Vec<u32> =
            rest.split(' ').skip(2).take(2).filter_map(|field| field.parse().ok()).collect();
        found.extend(fields.into_iter().filter(|id| *id > 0));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_needs_its_executable_its_pid_and_memory() {
        let own = std::process::id();
        let needs = of(&[own as i32]).unwrap();
        assert!(needs.pids.contains(&own));
        assert!(needs.memory.0 > 1 << 20);
        let executable = std::fs::read_link("/proc/self/exe").unwrap();
        let claimed = needs.files.iter().find(|claim| Path::new(&claim.path) == executable).unwrap();
        assert_eq!(claimed.size, Some(std::fs::metadata(&executable).unwrap().len()));
    }

    #[test]
    fn a_registered_userfaultfd_is_seen() {
        assert!(is_served(b"VmFlags: rd wr mr mw me um ac sd "));
        assert!(is_served(b"VmFlags: rd wr mr mw me uw"));
        assert!(!is_served(b"VmFlags: rd wr mr mw me ac sd "));
        assert!(!is_served(b"7f00-7f01 rw-p 00000000 00:00 0   um"));
    }

    #[test]
    fn a_process_that_is_gone_needs_nothing() {
        let needs = of(&[i32::MAX]).unwrap();
        assert!(needs.files.is_empty() && needs.pids.is_empty());
    }
}
