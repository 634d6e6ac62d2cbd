//! `/proc/PID/maps`, only what names something: anonymous memory is not listed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// A mapping with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedMapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `rwxp` or `rwxs`.
    pub access: String,
    /// What is mapped.
    pub name: String,
}

impl NamedMapping {
    /// Parses one line; `None` for an anonymous mapping.
    pub fn parse(line: &str) -> Option<NamedMapping> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let mut rest = rest;
        let mut field = || {
            let (word, after) = rest.split_once(' ')?;
            rest = after.trim_start_matches(' ');
            Some(word.to_owned())
        };
        let access = field()?;
        let (_offset, _device, _inode) = (field()?, field()?, field()?);
        (!rest.is_empty()).then_some(())?;
        Some(NamedMapping {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            access,
            name: rest.to_owned(),
        })
    }

    /// Whether writes go to what is mapped.
    pub fn is_shared_writable(&self) -> bool {
        self.access.as_bytes().get(1) == Some(&b'w') && self.access.ends_with('s')
    }

    /// Where the kernel offers the mapped file itself.
    pub fn file(&self, pid: i32) -> String {
        format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end)
    }
}

/// The named mappings of a process; empty when it is gone. At most 64 MiB of
/// text are read (a process may have 65530 mappings by default).
pub fn of(pid: i32) -> Vec<NamedMapping> {
    let Ok(file) = File::open(format!("/proc/{pid}/maps")) else { return Vec::new() };
    let lines = BufReader::new(file.take(64 << 20)).split(b'\n').map_while(Result::ok);
    lines.filter_map(|line| NamedMapping::parse(&String::from_utf8_lossy(&line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_keep_their_spaces() {
        let line = "7f00-7f10 rw-s 00000000 00:01 12                   /a file (deleted)";
        let mapping = NamedMapping::parse(line).unwrap();
        assert_eq!((mapping.name.as_str(), mapping.start), ("/a file (deleted)", 0x7f00));
        assert!(mapping.is_shared_writable());
        assert_eq!(NamedMapping::parse("7f00-7f10 rw-p 00000000 00:00 0 "), None);
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line in ".{0,200}") {
            let _ = NamedMapping::parse(&line);
        }
    }
}
