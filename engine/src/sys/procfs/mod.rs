//! What `/proc/PID` says, parsed with limits: a process chooses its own name and
//! the names of its files, so nothing here may be believed to be well-formed.

pub mod children;
pub mod maps;
pub mod stat;
pub mod status;

use std::fs::File;
use std::io::{self, Read};

/// Reads at most `limit` bytes of a small file of `/proc`.
pub(crate) fn read_limited(path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// A file of `/proc` that does not read as it should.
fn malformed(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not as expected"))
}

/// The numbers that name the entries of `/proc/PID/task` and `/proc` itself.
pub fn numeric_entries(path: &str) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(path)? {
        if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Parses a decimal or hexadecimal number, whole or not at all.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}
