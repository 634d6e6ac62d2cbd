//! A tree at the destination as the source described it: what is legal to say next,
//! and what the whole adds up to. Pure; the disk follows in [`sink`](super::sink).

use super::content::{BLOCK, Blocks};
use super::entry::{Kind, Meta, Time};
use super::path::RelPath;
use super::record::{Summary, hash};
use super::scan::MAX_ENTRIES;
use crate::companion::CompanionError;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A tree that grows.
#[derive(Debug, Default)]
pub(super) struct Model {
    names: BTreeMap<RelPath, Name>,
    contents: HashMap<Object, Content>,
    kept: HashMap<u64, (Kind, Object)>,
    next: Object,
    digest: u128,
    /// Directories in which names changed after their own times were told.
    touched: BTreeSet<RelPath>,
}

type Object = u64;

#[derive(Clone, Debug)]
struct Name {
    kind: Kind,
    object: Object,
    hash: u128,
    /// Of a directory: as told last.
    times: Option<Times>,
}

#[derive(Debug, Default)]
struct Content {
    blocks: Blocks,
    /// Names, and kept ones.
    names: u64,
}

/// When an entry was changed and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) mtime: Time,
    pub(super) atime: Time,
}

impl From<&Meta> for Times {
    fn from(meta: &Meta) -> Times {
        Times { mtime: meta.mtime, atime: meta.atime }
    }
}

/// Whether a block was a hole before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Was {
    Hole,
    Data,
}

type Checked<T> = Result<T, CompanionError>;

impl Model {
    /// An empty tree: its root.
    pub(super) fn new() -> Model {
        let mut model = Model::default();
        let root = Name { kind: Kind::Directory, object: 0, hash: 0, times: None };
        model.names.insert(RelPath::root(), root);
        model.next = 1;
        model
    }

    /// A new entry.
    pub(super) fn make(&mut self, path: &RelPath, kind: Kind) -> Checked<()> {
        let object = self.next;
        self.next += 1;
        self.contents.insert(object, Content::default());
        let added = self.add(path, kind, object);
        if added.is_err() {
            self.contents.remove(&object);
        }
        added
    }

    /// Another name.
    pub(super) fn link(&mut self, path: &RelPath, to: &RelPath) -> Checked<()> {
        let Name { kind, object, .. } = self.of(to)?.clone();
        self.add(path, kind, object)
    }

    /// An object stays although its name goes.
    pub(super) fn keep(&mut self, number: u64, path: &RelPath) -> Checked<()> {
        let Name { kind, object, .. } = self.of(path)?.clone();
        if kind == Kind::Directory || self.kept.contains_key(&number) || self.kept.len() >= MAX_ENTRIES {
            return Err(illegal(path, "cannot be kept"));
        }
        self.content(object, path)?.names += 1;
        self.kept.insert(number, (kind, object));
        Ok(())
    }

    /// Another name of what was kept.
    pub(super) fn link_kept(&mut self, path: &RelPath, number: u64) -> Checked<()> {
        let (kind, object) = self.kept.get(&number).cloned().ok_or_else(|| illegal(path, "was not kept"))?;
        self.add(path, kind, object)
    }

    /// A name goes, with all beneath it: what is to be removed, in order.
    pub(super) fn remove(&mut self, path: &RelPath) -> Checked<Vec<(RelPath, Kind)>> {
        if path.is_root() {
            return Err(illegal(path, "cannot be removed"));
        }
        self.of(path)?;
        let from = self.names.range(path.clone()..);
        let beneath = from.take_while(|(other, _)| *other == path || other.is_beneath(path));
        let mut gone: Vec<RelPath> = beneath.map(|(other, _)| other.clone()).collect();
        gone.reverse();
        let mut removed = Vec::with_capacity(gone.len());
        for path in gone {
            let Some(name) = self.names.remove(&path) else { continue };
            self.digest ^= name.hash;
            self.touched.remove(&path);
            if name.kind != Kind::Directory {
                self.release(name.object);
            }
            removed.push((path, name.kind));
        }
        self.touch(path);
        Ok(removed)
    }

    /// Content of a file. For each block: what was there.
    pub(super) fn data(&mut self, path: &RelPath, offset: u64, bytes: &[u8]) -> Checked<Vec<Was>> {
        let blocks = self.file(path)?;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or_else(|| illegal(path, "cannot be so long"))?;
        if !offset.is_multiple_of(BLOCK) || bytes.is_empty() {
            return Err(illegal(path, "is not told in blocks"));
        }
        let mut was = Vec::new();
        for (index, content) in bytes.chunks(BLOCK as usize).enumerate() {
            let block = offset / BLOCK + index as u64;
            was.push(if blocks.hashes.contains_key(&block) { Was::Data } else { Was::Hole });
            blocks.put(block, content);
        }
        blocks.size = blocks.size.max(end);
        Ok(was)
    }

    /// Zeroes in a file.
    pub(super) fn hole(&mut self, path: &RelPath, offset: u64, length: u64) -> Checked<()> {
        let blocks = self.file(path)?;
        let within = offset.checked_add(length).is_some_and(|end| end <= blocks.size.next_multiple_of(BLOCK));
        if !offset.is_multiple_of(BLOCK) || length == 0 || length > BLOCK || !within {
            return Err(illegal(path, "is not told in blocks"));
        }
        blocks.hashes.remove(&(offset / BLOCK));
        Ok(())
    }

    /// A file's length.
    pub(super) fn size(&mut self, path: &RelPath, size: u64) -> Checked<()> {
        if size > i64::MAX as u64 {
            return Err(illegal(path, "cannot be so long"));
        }
        self.file(path)?.resize(size);
        Ok(())
    }

    /// An entry is complete. Its kind, and a file's size.
    pub(super) fn meta(
        &mut self,
        path: &RelPath,
        meta: &Meta,
        content: Option<&[u8; 32]>,
    ) -> Checked<(Kind, Option<u64>)> {
        let kind = self.of(path)?.kind.clone();
        let size = if kind == Kind::File {
            let blocks = self.file(path)?;
            let size = blocks.size;
            if content != Some(&blocks.digest()) {
                return Err(illegal(path, "is not what the source says it sent"));
            }
            Some(size)
        } else {
            None
        };
        let new = hash(path, &kind, meta, content);
        let name = self.names.get_mut(path).ok_or_else(|| unknown(path))?;
        self.digest ^= name.hash ^ new;
        name.hash = new;
        if kind == Kind::Directory {
            name.times = Some(meta.into());
            self.touched.remove(path);
        }
        Ok((kind, size))
    }

    /// A round is over: the numbers that were kept, and the directories whose times
    /// are to be set again.
    pub(super) fn round_end(&mut self) -> (Vec<u64>, Vec<(RelPath, Times)>) {
        let kept = std::mem::take(&mut self.kept);
        kept.values().for_each(|(_, object)| self.release(*object));
        let touched = std::mem::take(&mut self.touched);
        let times = touched.into_iter().filter_map(|path| {
            let times = self.names.get(&path)?.times?;
            Some((path, times))
        });
        (kept.keys().copied().collect(), times.collect())
    }

    /// What the whole adds up to.
    pub(super) fn summary(&self) -> Summary {
        Summary { names: self.names.len() as u64 - 1, digest: self.digest }
    }

    fn add(&mut self, path: &RelPath, kind: Kind, object: Object) -> Checked<()> {
        let (parent, _) = path.split().ok_or_else(|| illegal(path, "is there already"))?;
        if self.names.get(&parent).is_none_or(|parent| parent.kind != Kind::Directory) {
            return Err(illegal(path, "is in no directory"));
        }
        if self.names.len() >= MAX_ENTRIES {
            return Err(illegal(path, "is one entry too many"));
        }
        if self.names.contains_key(path) {
            return Err(illegal(path, "is there already"));
        }
        if kind == Kind::Directory {
            // Directories have one name and no content.
            if self.contents.remove(&object).is_none_or(|content| content.names > 0) {
                return Err(illegal(path, "is a second name of a directory"));
            }
        } else {
            self.content(object, path)?.names += 1;
        }
        self.names.insert(path.clone(), Name { kind, object, hash: 0, times: None });
        self.touch(path);
        Ok(())
    }

    fn touch(&mut self, path: &RelPath) {
        if let Some((parent, _)) = path.split() {
            self.touched.insert(parent);
        }
    }

    fn of(&self, path: &RelPath) -> Checked<&Name> {
        self.names.get(path).ok_or_else(|| unknown(path))
    }

    fn content(&mut self, object: Object, path: &RelPath) -> Checked<&mut Content> {
        self.contents.get_mut(&object).ok_or_else(|| unknown(path))
    }

    fn file(&mut self, path: &RelPath) -> Checked<&mut Blocks> {
        let name = self.of(path)?;
        if name.kind != Kind::File {
            return Err(illegal(path, "has no content"));
        }
        let object = name.object;
        Ok(&mut self.content(object, path)?.blocks)
    }

    fn release(&mut self, object: Object) {
        if let Some(content) = self.contents.get_mut(&object) {
            content.names = content.names.saturating_sub(1);
            if content.names == 0 {
                self.contents.remove(&object);
            }
        }
    }
}

fn illegal(path: &RelPath, what: &str) -> CompanionError {
    CompanionError::new(format!("the source says what cannot be: {path} {what}"))
}

fn unknown(path: &RelPath) -> CompanionError {
    illegal(path, "is not there")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.into()).unwrap()
    }

    fn tree() -> Model {
        let mut model = Model::new();
        model.make(&path("d"), Kind::Directory).unwrap();
        model.make(&path("d/f"), Kind::File).unwrap();
        model.make(&path("l"), Kind::Symlink(b"/etc".to_vec())).unwrap();
        model
    }

    #[test]
    fn what_an_honest_source_never_says_is_refused() {
        let mut model = tree();
        assert!(model.make(&path("l/passwd"), Kind::File).is_err(), "through a link");
        assert!(model.make(&path("d/f/x"), Kind::File).is_err(), "in a file");
        assert!(model.make(&path("none/x"), Kind::File).is_err(), "in nothing");
        assert!(model.make(&path("d"), Kind::Directory).is_err(), "twice");
        assert!(model.link(&path("d2"), &path("d")).is_err(), "a directory's second name");
        assert!(model.remove(&RelPath::root()).is_err() && model.remove(&path("none")).is_err());
        assert!(model.data(&path("l"), 0, b"x").is_err(), "content of a link");
        assert!(model.data(&path("d/f"), 1, b"x").is_err(), "not a block");
        assert!(model.data(&path("d/f"), i64::MAX as u64 / BLOCK * BLOCK, &vec![0; 70_000]).is_err());
        assert!(model.hole(&path("d/f"), 0, BLOCK).is_err(), "a hole beyond the end");
        assert!(model.keep(0, &path("d")).is_err() && model.link_kept(&path("x"), 0).is_err());
        let meta = Meta::default();
        assert!(model.meta(&path("d/f"), &meta, None).is_err(), "without its content");
        assert!(model.meta(&path("d/f"), &meta, Some(&[0; 32])).is_err(), "with another's");
    }

    #[test]
    fn what_is_kept_lives_on_under_another_name() {
        let mut model = tree();
        model.data(&path("d/f"), 0, b"content").unwrap();
        let digest = model.file(&path("d/f")).unwrap().digest();
        model.keep(7, &path("d/f")).unwrap();
        let removed = model.remove(&path("d")).unwrap();
        assert_eq!(removed, [(path("d/f"), Kind::File), (path("d"), Kind::Directory)]);
        model.link_kept(&path("g"), 7).unwrap();
        assert_eq!(model.round_end().0, [7]);
        assert_eq!(model.meta(&path("g"), &Meta::default(), Some(&digest)).unwrap(), (Kind::File, Some(7)));
        assert_eq!(model.contents.len(), 2, "what nobody names is forgotten");
    }

    #[test]
    fn the_digest_says_what_is_there_and_not_how_it_came() {
        let mut one = tree();
        one.meta(&path("l"), &Meta::default(), None).unwrap();
        let mut other = tree();
        other.make(&path("more"), Kind::Fifo).unwrap();
        other.meta(&path("more"), &Meta::default(), None).unwrap();
        other.meta(&path("l"), &Meta { uid: 7, ..Meta::default() }, None).unwrap();
        assert_ne!(one.summary(), other.summary());
        other.remove(&path("more")).unwrap();
        other.meta(&path("l"), &Meta::default(), None).unwrap();
        assert_eq!(one.summary(), other.summary());
    }
}
