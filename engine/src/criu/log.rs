//! CRIU's log, as far as a person needs it when something failed.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a log's end is looked at.
const TAIL: u64 = 64 << 10;
/// How many error lines are quoted.
const LINES: usize = 3;
/// Complaints that CRIU goes on from: see docs/limits.md.
const HARMLESS: [&str; 2] = ["rlimit: Can't setup RLIMIT", "Can't get rlimit"];

/// The first error lines of the log's end, without time and place: the first is
/// the cause, later ones its consequences. Empty when there is none.
pub fn errors(log: &Path) -> String {
    let Ok(mut file) = std::fs::File::open(log) else { return String::new() };
    let size = file.metadata().map_or(0, |meta| meta.len());
    let mut tail = Vec::new();
    if file.seek(SeekFrom::Start(size.saturating_sub(TAIL))).is_err()
        || file.take(TAIL).read_to_end(&mut tail).is_err()
    {
        return String::new();
    }
    let text = String::from_utf8_lossy(&tail);
    let errors: Vec<&str> = text
        .lines()
        .filter_map(message_of)
        .filter(|message| !HARMLESS.iter().any(|harmless| message.contains(harmless)))
        .take(LINES)
        .collect();
    errors.join("; ")
}

/// `(00.012345) pid: Error (file.c:12): what` → `what`.
fn message_of(line: &str) -> Option<&str> {
    let rest = &line[line.find("Error (")?..];
    Some(rest.split_once("): ").map_or(rest, |(_, message)| message).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_quoted_without_time_and_place() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let text = "(00.01) Warn  (criu/x.c:1): hm\n\
                    (00.02)   4711: Error (criu/rlimits.c:1): rlimit: Can't setup RLIMIT_NOFILE for 3: Operation not permitted\n\
                    (00.03)   4711: Error (criu/cr-restore.c:1503): Can't fork for 4711: File exists\n\
                    (00.04) Error (criu/cr-restore.c:2341): Restoring FAILED.\n";
        std::fs::write(log.path(), text).unwrap();
        assert_eq!(errors(log.path()), "Can't fork for 4711: File exists; Restoring FAILED.");
    }

    #[test]
    fn a_missing_log_has_no_errors() {
        assert_eq!(errors(Path::new("/nonexistent/log")), "");
    }
}
