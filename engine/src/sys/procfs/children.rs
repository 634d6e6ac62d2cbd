//! `/proc/PID/task/TID/children`: the processes that a thread started.

use super::{numeric_entries, read_limited};
use std::io;

/// The most bytes that are read of one thread's list.
const MAX_LIST: u64 = 16 << 20;

/// Parses one list; what is not a number ends it.
pub fn parse(content: &[u8]) -> Vec<i32> {
    content
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty())
        .map_while(|word| std::str::from_utf8(word).ok()?.parse().ok().filter(|pid| *pid > 0))
        .collect()
}

/// The children of all threads of a process. A thread that exits meanwhile has
/// left its children to another thread, so only a stable answer is a whole one.
pub fn of(pid: i32) -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    for tid in numeric_entries(&format!("/proc/{pid}/task"))? {
        match read_limited(&format!("/proc/{pid}/task/{tid}/children"), MAX_LIST) {
            Ok(content) => children.extend(parse(&content)),
            Err(cause) if is_gone(&cause) => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(children)
}

/// Whether an error of `/proc` says that the process or thread is no more.
pub fn is_gone(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotFound || cause.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists() {
        assert_eq!(parse(b"1 22 333 "), [1, 22, 333]);
        assert_eq!(parse(b""), Vec::<i32>::new());
        assert_eq!(parse(b"7 x 8"), [7]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(content in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(parse(&content).iter().all(|pid| *pid > 0));
        }
    }
}
