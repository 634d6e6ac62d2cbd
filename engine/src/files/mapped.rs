//! Which files processes have mapped, shared and writable.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};

/// The inodes of files that any of these processes can write through a mapping. One that
/// has exited has none.
pub fn mapped_by(pids: impl IntoIterator<Item = i32>) -> HashSet<u64> {
    let mut inodes = HashSet::new();
    for pid in pids {
        let Ok(maps) = std::fs::File::open(format!("/proc/{pid}/maps")) else { continue };
        let lines = BufReader::new(maps).split(b'\n').map_while(Result::ok);
        inodes.extend(lines.filter_map(|line| written_through(&line)));
    }
    inodes
}

/// `7f12-7f13 rw-s 00000000 fd:01 1234   /srv/data`: the inode, where it is such a line.
fn written_through(line: &[u8]) -> Option<u64> {
    let mut fields = line.split(|byte| *byte == b' ');
    let permissions = fields.nth(1)?;
    if permissions.get(1) != Some(&b'w') || permissions.get(3) != Some(&b's') {
        return None;
    }
    let inode = std::str::from_utf8(fields.nth(2)?).ok()?.parse().ok()?;
    (inode != 0).then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_written_by_others_counts() {
        let of = |line: &str| written_through(line.as_bytes());
        assert_eq!(of("7f12000-7f13000 rw-s 00000000 fd:01 1234   /srv/a b"), Some(1234));
        assert_eq!(of("7f12000-7f13000 rw-p 00000000 fd:01 1234   /srv/data"), None);
        assert_eq!(of("7f12000-7f13000 r--s 00000000 fd:01 1234   /srv/data"), None);
        assert_eq!(of("7f12000-7f13000 rw-s 00000000 00:00 0 "), None);
        assert_eq!((of(""), of("x rw-s"), of("a rw-s b c d")), (None, None, None));
    }
}
