//! `/proc/PID/stat`: who a process is, so that a reused number or another
//! program in the same process is noticed.

use super::{malformed, number, read_limited};
use std::io;

/// The letter that stands for a task's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskState(pub u8);

impl TaskState {
    /// Exited; only its entry remains.
    pub fn is_dead(self) -> bool {
        matches!(self.0, b'Z' | b'X' | b'x')
    }
}

/// What is used of `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name, as the process chose it.
    pub name: String,
    /// Running, sleeping, stopped...
    pub state: TaskState,
    /// The parent; 0 if it is outside of our PID namespace.
    pub parent: i32,
    /// When it was started, in clock ticks after boot: with the PID, who it is.
    pub start_time: u64,
    /// The program's code and the bottom of its stack: almost surely others
    /// after an `exec`.
    pub layout: [u64; 2],
}

/// Parses the content; `None` when it is not one of a stat file.
pub fn parse(content: &[u8]) -> Option<Stat> {
    // The name may hold anything, brackets and newlines too.
    let open = content.iter().position(|byte| *byte == b'(')?;
    let close = content.iter().rposition(|byte| *byte == b')')?;
    let name = String::from_utf8_lossy(content.get(open + 1..close)?).into_owned();
    let fields: Vec<&[u8]> = content
        .get(close + 1..)?
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|f| !f.is_empty())
        .collect();
    // Field numbers as in proc_pid_stat(5), where the state is the third.
    let field = |position: usize| fields.get(position - 3).copied();
    let [state] = field(3)?.try_into().ok()?;
    Some(Stat {
        name,
        state: TaskState(state),
        parent: i32::try_from(number(field(4)?, 10)?).ok()?,
        start_time: number(field(22)?, 10)?,
        layout: [number(field(26)?, 10)?, number(field(28)?, 10)?],
    })
}

/// Reads it of a process. `NotFound` or ESRCH when there is none.
pub fn of(pid: i32) -> io::Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    parse(&read_limited(&path, 4096)?).ok_or_else(|| malformed(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_with_brackets() {
        let mut line = b"7 (a) R 1) (b) S 1 7 7".to_vec();
        for field in 7..=52 {
            line.extend(format!(" {field}").bytes());
        }
        let stat = parse(&line).unwrap();
        assert_eq!((stat.name.as_str(), stat.state.0, stat.parent), ("a) R 1) (b", b'S', 1));
        assert_eq!((stat.start_time, stat.layout), (22, [26, 28]));
    }

    #[test]
    fn the_own_one() {
        assert!(of(std::process::id() as i32).unwrap().start_time > 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(content in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&content);
        }

        #[test]
        fn what_looks_alike_is_taken_calmly(content in "[0-9]{1,5} \\(.{0,9}\\)( [0-9A-Z-]{1,21}){0,60}") {
            let _ = parse(content.as_bytes());
        }
    }
}
