//! Memory in the hands of somebody's userfaultfd: pages that a pager has yet to bring
//! are in no page table and would not be moved; and the marks of two who follow the
//! same writes cannot be told apart.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// The most text of one process's smaps that is read: more than 65530 mappings have.
const MAX_TEXT: u64 = 64 << 20;

/// The first of these processes that a userfaultfd is registered with.
pub fn served_by_userfaultfd(processes: impl IntoIterator<Item = i32>) -> Option<i32> {
    processes.into_iter().find(|pid| {
        // One that exited meanwhile is nobody's.
        let Ok(smaps) = File::open(format!("/proc/{pid}/smaps")) else { return false };
        let mut lines = BufReader::new(smaps.take(MAX_TEXT)).split(b'\n').map_while(Result::ok);
        lines.any(|line| is_served(&line))
    })
}

/// Whether a line of smaps says that a userfaultfd is registered with a mapping: to
/// bring its pages, to follow its writes, or to map what is there.
fn is_served(line: &[u8]) -> bool {
    let Some(flags) = line.strip_prefix(b"VmFlags:") else { return false };
    flags.split(|byte| *byte == b' ').any(|flag| matches!(flag, b"um" | b"uw" | b"ui"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registered_userfaultfd_is_seen() {
        assert!(is_served(b"VmFlags: rd wr mr mw me um ac sd "));
        assert!(is_served(b"VmFlags: rd wr mr mw me uw"));
        assert!(!is_served(b"VmFlags: rd wr mr mw me ac sd "));
        assert!(!is_served(b"7f00-7f01 rw-p 00000000 00:00 0   um"));
        assert_eq!(served_by_userfaultfd([std::process::id() as i32, i32::MAX]), None);
    }
}
