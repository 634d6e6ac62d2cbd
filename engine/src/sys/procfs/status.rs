//! `/proc/PID/status`: who traces a process, and what its system calls pass through.

use super::{number, read_limited};
use std::io;

/// Whether seccomp decides on a task's system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// It does not.
    #[default]
    Off,
    /// Strict mode or a filter does.
    Confined,
}

/// What is used of `/proc/PID/status`; a line that is absent leaves its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The tracer, if there is one.
    pub tracer: Option<i32>,
    /// Seccomp.
    pub seccomp: Seccomp,
}

/// Parses the content.
pub fn parse(content: &[u8]) -> Status {
    let mut status = Status::default();
    for line in content.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = number(line[colon + 1..].trim_ascii(), 10);
        match &line[..colon] {
            b"TracerPid" => {
                status.tracer = value.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid != 0);
            }
            b"Seccomp" if value.is_some_and(|mode| mode != 0) => status.seccomp = Seccomp::Confined,
            _ => {}
        }
    }
    status
}

/// Reads it of a thread of a process.
pub fn of_thread(pid: i32, tid: i32) -> io::Result<Status> {
    Ok(parse(&read_limited(&format!("/proc/{pid}/task/{tid}/status"), 1 << 16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_traced_and_confined_one() {
        let status = parse(b"Name:\tx\nTracerPid:\t42\nSeccomp:\t2\nSeccomp_filters:\t1\n");
        assert_eq!(status, Status { tracer: Some(42), seccomp: Seccomp::Confined });
        assert_eq!(parse(b"TracerPid:\t0\nSeccomp:\t0\n"), Status::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(content in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&content);
        }
    }
}
