//! `/proc/PID/maps`: the mappings of an address space, one at a time, so that
//! memory does not follow their number.

use super::number;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

/// The longest line that is looked at: a path of PATH_MAX, escaped, and the rest.
const MAX_LINE: u64 = 4 * 4096 + 256;

/// Whether writes to a mapping are seen by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Copied on write: the process's own.
    Private,
    /// Shared.
    Shared,
}

/// Whether the process may do something with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    Granted,
    /// It may not.
    Denied,
}

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing but memory.
    Anonymous,
    /// A file or a device; huge pages of a process's own too.
    File,
    /// The kernel's own: vDSO and the like, which CRIU takes care of.
    Kernel,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses.
    pub range: Range<u64>,
    /// Whether it can be read.
    pub read: Permission,
    /// Whether it can be written.
    pub write: Permission,
    /// Whether it can be executed.
    pub execute: Permission,
    /// Whether it is shared.
    pub sharing: Sharing,
    /// What it shows.
    pub backing: Backing,
    /// The path or name, as the kernel writes it; empty if there is none.
    pub name: Vec<u8>,
}

/// Parses one line without its newline; `None` when it is not one of a maps file.
pub fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let range = fields.next()?;
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let range = number(&range[..dash], 16)?..number(&range[dash + 1..], 16)?;
    let page = ferry_transport::page::PAGE_SIZE as u64;
    if range.start >= range.end || !range.start.is_multiple_of(page) || !range.end.is_multiple_of(page) {
        return None;
    }
    let permissions = fields.next()?;
    let [read, write, execute, sharing] = permissions.try_into().ok()?;
    let granted = |byte: u8, letter: u8| match byte {
        b'-' => Some(Permission::Denied),
        byte if byte == letter => Some(Permission::Granted),
        _ => None,
    };
    let sharing = match sharing {
        b'p' => Sharing::Private,
        b's' => Sharing::Shared,
        _ => return None,
    };
    number(fields.next()?, 16)?; // offset
    fields.next()?; // device
    let inode = number(fields.next()?, 10)?;
    let name = fields.next().unwrap_or_default().trim_ascii_start().to_vec();
    Some(Mapping {
        range,
        read: granted(read, b'r')?,
        write: granted(write, b'w')?,
        execute: granted(execute, b'x')?,
        sharing,
        backing: backing(&name, inode),
        name,
    })
}

fn backing(name: &[u8], inode: u64) -> Backing {
    if inode != 0 {
        return Backing::File;
    }
    let memory = name.is_empty()
        || name == b"[heap]"
        || name.starts_with(b"[stack")
        || name.starts_with(b"[anon")
        || !name.starts_with(b"[");
    if memory { Backing::Anonymous } else { Backing::Kernel }
}

/// The mappings of a process, ascending, as they are when they are read: another
/// thread may change them meanwhile.
pub struct Mappings {
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl Mappings {
    /// Opens them. No mappings at all means that the process is exiting.
    pub fn of(pid: i32) -> io::Result<Mappings> {
        let file = File::open(format!("/proc/{pid}/maps"))?;
        Ok(Mappings { reader: BufReader::with_capacity(1 << 16, file), line: Vec::new() })
    }

    fn next_line(&mut self) -> io::Result<Option<Mapping>> {
        self.line.clear();
        let length = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut self.line)?;
        if length == 0 {
            return Ok(None);
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        match parse_line(line) {
            Some(mapping) => Ok(Some(mapping)),
            None => Err(super::malformed("/proc/PID/maps")),
        }
    }
}

impl Iterator for Mappings {
    type Item = io::Result<Mapping>;

    fn next(&mut self) -> Option<io::Result<Mapping>> {
        self.next_line().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_lines() {
        let heap = parse_line(b"55d5c8a7e000-55d5c8a9f000 rw-p 00000000 00:00 0      [heap]").unwrap();
        assert_eq!((heap.backing, heap.sharing), (Backing::Anonymous, Sharing::Private));
        let text =
            parse_line(b"7f0000000000-7f0000001000 r-xp 00001000 fe:01 42  /a b\\012c (deleted)").unwrap();
        assert_eq!((text.backing, text.name.as_slice()), (Backing::File, &b"/a b\\012c (deleted)"[..]));
        assert_eq!((text.write, text.execute), (Permission::Denied, Permission::Granted));
        let anonymous = parse_line(b"7f0000000000-7f0000001000 ---p 00000000 00:00 0 ").unwrap();
        assert_eq!((anonymous.backing, anonymous.read), (Backing::Anonymous, Permission::Denied));
        for special in ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"] {
            let line = format!("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   {special}");
            assert_eq!(parse_line(line.as_bytes()).unwrap().backing, Backing::Kernel);
        }
    }

    #[test]
    fn the_own_mappings_parse() {
        let own = std::process::id() as i32;
        let mappings: Vec<_> = Mappings::of(own).unwrap().collect::<io::Result<_>>().unwrap();
        assert!(mappings.len() > 5);
        assert!(mappings.is_sorted_by_key(|mapping| mapping.range.start));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_line(&line);
        }

        #[test]
        fn what_looks_alike_is_taken_calmly(line in "[0-9a-f]{0,18}-[0-9a-f]{0,18} [rwxps-]{0,5} [0-9a-f]{0,8} .{0,20}") {
            if let Some(mapping) = parse_line(line.as_bytes()) {
                prop_assert!(mapping.range.start < mapping.range.end);
            }
        }
    }
}
