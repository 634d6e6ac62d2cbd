//! /proc, read with limits. A parser takes text and returns what it understood;
//! what it does not understand it leaves out.

pub mod fields;
pub mod limits;
pub mod maps;
pub mod mounts;
pub mod tree;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads at most `limit` bytes of a file, as text.
pub fn read(path: impl AsRef<Path>, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether this process may set limits above its own hard ones (CAP_SYS_RESOURCE).
pub fn may_raise_limits() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    let capabilities = fields::Fields::of("/proc/self/status").mask("CapEff").unwrap_or(0);
    capabilities >> CAP_SYS_RESOURCE & 1 == 1
}

/// The numeric names in a directory, at most a million.
pub fn numbers(path: impl AsRef<Path>) -> Vec<i32> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(1_000_000).collect()
}
