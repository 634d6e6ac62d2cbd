//! Keeping our own helpers off the numbers that the copy will need.

use std::path::Path;

const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
/// How far above the copy's numbers ours begin, at least: room below the limit.
const ROOM: u32 = 300;

/// The numbers of the copy were free when it was offered, and it is restored a while
/// later. What is started meanwhile gets the numbers that come next, which in a young
/// PID namespace may be just these: counting goes on above them instead.
pub(super) fn step_over(pids: &[u32]) {
    let read = |path: &str| -> Option<u32> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let (Some(last), Some(limit)) = (read(LAST_PID), read("/proc/sys/kernel/pid_max")) else { return };
    if let Some(to) = above(pids, last, limit)
        && let Err(error) = std::fs::write(Path::new(LAST_PID), to.to_string())
    {
        tracing::debug!(%error, "numbers cannot be stepped over here");
    }
}

/// Where counting goes on, if it has to step over any of `pids`.
fn above(pids: &[u32], last: u32, limit: u32) -> Option<u32> {
    let highest = *pids.iter().max()?;
    (last < highest && highest.saturating_add(ROOM) < limit).then_some(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_goes_on_above_what_is_needed_and_never_backwards() {
        assert_eq!(above(&[20, 31, 25], 12, 32768), Some(31));
        assert_eq!(above(&[20, 31, 25], 31, 32768), None);
        assert_eq!(above(&[20, 31, 25], 4000, 32768), None);
        assert_eq!(above(&[32_700], 12, 32768), None, "it would wrap to the lowest at once");
        assert_eq!(above(&[], 12, 32768), None);
    }
}
