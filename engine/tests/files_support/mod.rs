//! Trees that change, two ends without a network, and what makes two trees equal.
#![allow(dead_code, reason = "each test uses its part")]

use bytes::Bytes;
use ferry_engine::companion::{BlobSink, Companion, CompanionSink, SinkGone};
use ferry_engine::files::{Existing, Setup, SourceTree, SyncSink, SyncSource};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A directory for both ends, and the ends.
pub struct Ends {
    pub home: tempfile::TempDir,
    pub source: SyncSource,
    pub sink: Option<Box<SyncSink>>,
}

/// Blobs that go straight into the other end, and are counted.
pub struct Straight<'a> {
    pub sink: &'a mut SyncSink,
    pub bytes: u64,
    pub error: Option<String>,
}

impl BlobSink for Straight<'_> {
    fn put(&mut self, blob: Bytes) -> Result<(), SinkGone> {
        self.bytes += blob.len() as u64;
        self.sink.take(&blob).map_err(|error| {
            self.error = Some(error.to_string());
            SinkGone
        })
    }
}

impl Ends {
    /// `fill` makes the tree as it is at the beginning.
    pub fn new(fill: impl FnOnce(&Path)) -> Ends {
        let home = tempfile::tempdir().unwrap();
        let here = home.path().join("here");
        fs::create_dir(&here).unwrap();
        fill(&here);
        Ends::of(home, Existing::Refuse)
    }

    pub fn of(home: tempfile::TempDir, existing: Existing) -> Ends {
        let tree = SourceTree {
            here: home.path().join("here"),
            there: home.path().join("there").to_str().unwrap().into(),
            existing,
        };
        let source = SyncSource::open(vec![tree], Box::new(HashSet::new)).unwrap();
        let setup = Setup::parse(&source.setup()).unwrap();
        let sink = SyncSink::open(&setup, &home.path().join("state"), "1").unwrap();
        Ends { home, source, sink: Some(Box::new(sink)) }
    }

    pub fn here(&self) -> PathBuf {
        self.home.path().join("here")
    }

    pub fn there(&self) -> PathBuf {
        self.home.path().join("there")
    }

    /// One round; the bytes that it took.
    pub fn round(&mut self) -> u64 {
        self.each(|source, straight| source.round(straight).map(drop))
    }

    /// What happens in the freeze; the bytes that it took.
    pub fn freeze(&mut self) -> u64 {
        self.each(|source, straight| {
            source.finish(straight)?;
            source.seal(straight).map(drop)
        })
    }

    /// Everything after the freeze.
    pub fn arrive(&mut self) {
        let mut sink = self.sink.take().unwrap();
        sink.ready().unwrap();
        sink.commit().unwrap();
    }

    fn each<E: std::fmt::Display>(
        &mut self,
        work: impl FnOnce(&mut SyncSource, &mut Straight<'_>) -> Result<(), E>,
    ) -> u64 {
        let sink = self.sink.as_mut().unwrap();
        let mut straight = Straight { sink, bytes: 0, error: None };
        if let Err(error) = work(&mut self.source, &mut straight) {
            panic!("{error}: {:?}", straight.error);
        }
        straight.bytes
    }

    /// Both trees are the same, and nothing else is there.
    pub fn assert_equal(&self) {
        assert_equal(&self.here(), &self.there());
        let mut left: Vec<_> = names(self.home.path());
        left.retain(|name| !["here", "there", "state"].contains(&name.as_str()));
        assert!(left.is_empty(), "left behind: {left:?}");
        assert!(names(&self.home.path().join("state/files")).is_empty());
    }
}

/// All that two trees must have in common; hard links as the first name of each.
pub fn assert_equal(here: &Path, there: &Path) {
    let (mut mine, mut theirs) = (describe(here), describe(there));
    mine.retain(|path, is| {
        let same = theirs.get(path) == Some(is);
        if same {
            theirs.remove(path);
        }
        !same
    });
    assert!(mine.is_empty() && theirs.is_empty(), "here: {mine:#?}\nthere: {theirs:#?}");
}

pub fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = root.join(&path);
        let about = fs::symlink_metadata(&full).unwrap();
        let kind = about.file_type();
        let content = if kind.is_file() {
            format!("{} bytes {}", about.len(), blake3::hash(&fs::read(&full).unwrap()))
        } else if kind.is_symlink() {
            format!("-> {:?}", fs::read_link(&full).unwrap())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {}", about.rdev())
        } else {
            String::new()
        };
        let links = if kind.is_dir() { PathBuf::new() } else { path.clone() };
        let links = first.entry(about.ino()).or_insert(links).clone();
        let (mode, uid, gid) = (about.mode(), about.uid(), about.gid());
        let time = (about.mtime(), about.mtime_nsec());
        let xattrs = xattrs(&full);
        found.insert(
            path.clone(),
            format!("{mode:o} {uid}:{gid} {time:?} {content} links {links:?} {xattrs:?}"),
        );
        if kind.is_dir() {
            let mut inside: Vec<_> =
                fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())).collect();
            inside.sort();
            inside.reverse();
            open.extend(inside);
        }
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = Vec::with_capacity(4096);
    rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut list)).unwrap();
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = Vec::with_capacity(4096);
            rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).unwrap();
            (name.to_vec(), value)
        })
        .collect()
}

pub fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|e| String::from_utf8_lossy(e.unwrap().file_name().as_bytes()).into_owned()).collect()
}
