//! What a tree is made of, as far as freezing and dumping it takes time for it.

use crate::sys::procfs::numeric_entries;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// The most text of one process's smaps that is read: more than 65530 mappings have.
const MAX_TEXT: u64 = 64 << 20;

/// A tree's size, and how long one part of its dump takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeCost {
    /// Its processes.
    pub processes: u64,
    /// Their threads.
    pub threads: u64,
    /// Their mappings.
    pub mappings: u64,
    /// Their open descriptors.
    pub descriptors: u64,
    /// How long the kernel takes to walk their page tables for smaps, which CRIU does
    /// while they stand still: about 20 ms/GiB. It depends on the machine and on how the
    /// memory is mapped.
    pub smaps_walk: Duration,
}

impl TreeCost {
    /// Counts and measures. A process that exits meanwhile costs nothing.
    pub fn measure(processes: &[i32]) -> TreeCost {
        let mut cost = TreeCost::default();
        for pid in processes {
            let entries =
                |what| numeric_entries(&format!("/proc/{pid}/{what}")).map_or(0, |n| n.len() as u64);
            cost.processes += 1;
            cost.threads += entries("task");
            cost.descriptors += entries("fd");
            if let Ok(smaps) = std::fs::File::open(format!("/proc/{pid}/smaps")) {
                let began = Instant::now();
                let mut headings = Headings::default();
                let _ = std::io::copy(&mut smaps.take(MAX_TEXT), &mut headings);
                cost.smaps_walk += began.elapsed();
                cost.mappings += headings.count;
            }
        }
        cost
    }
}

/// Counts the headings of mappings in smaps: lines that begin with an address. The
/// lines below one begin with a capital letter.
#[derive(Default)]
struct Headings {
    count: u64,
    within_line: bool,
}

impl Write for Headings {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        for byte in text {
            if !self.within_line && matches!(byte, b'0'..=b'9' | b'a'..=b'f') {
                self.count += 1;
            }
            self.within_line = *byte != b'\n';
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_has_a_size_and_one_that_is_gone_has_none() {
        let own = TreeCost::measure(&[std::process::id() as i32]);
        assert!(own.threads >= 1 && own.descriptors >= 3 && own.mappings > 5, "{own:?}");
        assert!(own.smaps_walk > Duration::ZERO);
        assert_eq!(TreeCost::measure(&[i32::MAX]), TreeCost { processes: 1, ..TreeCost::default() });
    }

    #[test]
    fn headings_are_counted_across_reads() {
        let text = b"7f00-7f01 r-xp 0 0 0 /a\nSize: 4 kB\nVmFlags: rd\nfff0-fff1 r--p 0 0 0\nRss: 1 kB\n";
        for piece in 1..text.len() {
            let mut headings = Headings::default();
            text.chunks(piece).for_each(|part| headings.write_all(part).unwrap());
            assert_eq!(headings.count, 2);
        }
    }
}
