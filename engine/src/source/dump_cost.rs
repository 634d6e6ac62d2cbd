//! What a dump will cost inside the freeze, beside the pages.

use std::io::Read;
use std::time::{Duration, Instant};

/// The most text of one process's smaps that is read: more than 65530 mappings have.
const MAX_TEXT: u64 = 64 << 20;

/// How long the kernel takes to walk these processes' page tables for smaps, which
/// CRIU does while they stand still: about 20 ms/GiB. Measured, since it depends on
/// the machine and on how the memory is mapped.
pub fn smaps_walk(processes: &[i32]) -> Duration {
    let began = Instant::now();
    for pid in processes {
        // One that exited costs nothing.
        if let Ok(smaps) = std::fs::File::open(format!("/proc/{pid}/smaps")) {
            let _ = std::io::copy(&mut smaps.take(MAX_TEXT), &mut std::io::sink());
        }
    }
    began.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_of_a_living_process_takes_time() {
        assert!(smaps_walk(&[std::process::id() as i32, i32::MAX]) > Duration::ZERO);
    }
}
