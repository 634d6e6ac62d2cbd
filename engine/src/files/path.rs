//! Paths below a tree's root, as bytes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// The longest path, and the longest name in it: the kernel's own limits.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// A path that stays below a root: names that are neither empty, `.` nor `..`, with
/// `/` between them. The root itself is the empty path. Ordered so that a directory
/// comes before, and right beside, everything beneath it.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RelPath(Box<[u8]>);

impl RelPath {
    /// The root.
    pub fn root() -> RelPath {
        RelPath::default()
    }

    /// Bytes from elsewhere, if they are such a path.
    pub fn parse(bytes: Vec<u8>) -> Option<RelPath> {
        let name = |name: &[u8]| is_name(name);
        let good = bytes.is_empty() || (bytes.len() <= MAX_PATH && bytes.split(|b| *b == b'/').all(name));
        good.then(|| RelPath(bytes.into()))
    }

    /// The path of an entry of this directory; `None` when that is longer than a path
    /// can be.
    pub fn join(&self, name: &[u8]) -> Option<RelPath> {
        if self.0.len() + 1 + name.len() > MAX_PATH || !is_name(name) {
            return None;
        }
        let mut joined = Vec::with_capacity(self.0.len() + 1 + name.len());
        joined.extend_from_slice(&self.0);
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(name);
        Some(RelPath(joined.into()))
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// For system calls; `.` for the root.
    pub fn os(&self) -> &OsStr {
        OsStr::from_bytes(if self.0.is_empty() { b"." } else { &self.0 })
    }

    /// The directory that it is in, and its name there; `None` for the root.
    pub fn split(&self) -> Option<(RelPath, &OsStr)> {
        if self.0.is_empty() {
            return None;
        }
        let slash = self.0.iter().rposition(|b| *b == b'/');
        let parent = slash.map_or(RelPath::root(), |at| RelPath(self.0[..at].into()));
        Some((parent, OsStr::from_bytes(&self.0[slash.map_or(0, |at| at + 1)..])))
    }

    /// Whether it is beneath `directory`; no path is beneath itself.
    pub fn is_beneath(&self, directory: &RelPath) -> bool {
        if directory.is_root() {
            return !self.is_root();
        }
        self.0.strip_prefix(&directory.0[..]).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name != b"."
        && name != b".."
        && !name.contains(&0)
        && !name.contains(&b'/')
}

impl Ord for RelPath {
    fn cmp(&self, other: &RelPath) -> Ordering {
        // No name has a zero byte: as one, `/` sorts before every other.
        let low = |b: &u8| if *b == b'/' { 0 } else { *b };
        self.0.iter().map(low).cmp(other.0.iter().map(low))
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &RelPath) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(if self.0.is_empty() { b"." } else { &self.0 }))
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RelPath, D::Error> {
        let bytes = ferry_transport::wire::byte_array::deserialize(deserializer)?;
        RelPath::parse(bytes).ok_or_else(|| serde::de::Error::custom("a path that leaves its tree"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.into()).unwrap()
    }

    #[test]
    fn what_would_leave_the_tree_is_no_path() {
        for bad in ["/", "/etc", "..", "a/..", "a/../b", ".", "./a", "a//b", "a/", "a\0b", &"x".repeat(256)] {
            assert!(RelPath::parse(bad.into()).is_none(), "{bad:?}");
        }
        assert!(RelPath::parse(vec![b'/'; 5000]).is_none());
        assert!(path("").is_root());
        assert_eq!(path("a").join(b"..").is_none(), path("a").join(b"b/c").is_none());
    }

    #[test]
    fn a_directory_sorts_right_before_what_is_in_it() {
        let mut paths: Vec<_> = ["a.b", "a/z", "a", "a-", "a/b/c", "", "a/b"].map(path).into();
        paths.sort();
        let sorted: Vec<_> = paths.iter().map(RelPath::to_string).collect();
        assert_eq!(sorted, [".", "a", "a/b", "a/b/c", "a/z", "a-", "a.b"]);
        assert!(path("a/b").is_beneath(&path("a")) && !path("a.b").is_beneath(&path("a")));
        assert!(path("a").is_beneath(&path("")) && !path("a").is_beneath(&path("a")));
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let of = |text| path(text).split().map(|(d, n)| (d.to_string(), n.to_str().unwrap().to_owned()));
        assert_eq!(of("a/b/c"), Some(("a/b".into(), "c".into())));
        assert_eq!(of("a"), Some((".".into(), "a".into())));
        assert_eq!(of(""), None);
    }
}
