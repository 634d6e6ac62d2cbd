//! Directories at the destination: they grow beside their places, and are put there
//! when all of it has come and is what the source says.

use super::content::{BLOCK, PAGE, is_zero};
use super::entry::{Kind, Meta, Time};
use super::model::{Model, Times, Was};
use super::path::RelPath;
use super::place::Place;
use super::record::{Record, Summary, records};
use super::settle::Ledger;
use super::setup::{Setup, TreeSetup};
use super::xattr;
use crate::companion::{CompanionError, CompanionSink};
use ferry_transport::units::Bytes;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat,
    chownat, fallocate, ftruncate, linkat, makedev, mkdirat, mknodat, openat, openat2, statvfs, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The directories that come along, at the destination.
pub struct SyncSink {
    trees: Vec<Tree>,
    /// The tree that records are about.
    current: usize,
    ledger: Ledger,
    decided: bool,
}

struct Tree {
    place: Place,
    root: OwnedFd,
    kept: OwnedFd,
    model: Model,
    finished: Option<Summary>,
    parent: Option<(RelPath, OwnedFd)>,
    /// The file that is being written.
    file: Option<(RelPath, OwnedFd)>,
}

/// Sees what would keep these trees from being put there; nothing is made. For a
/// destination's checks.
pub fn obstacles(setup: &Setup) -> Vec<String> {
    let mut obstacles = Vec::new();
    for tree in &setup.trees {
        let found =
            Place::choose(Path::new(&tree.path), tree.existing, "").and_then(|place| room(&place, tree));
        obstacles.extend(found.err());
    }
    obstacles
}

/// Whether what a tree takes is free.
fn room(place: &Place, tree: &TreeSetup) -> Result<(), String> {
    let parent = place.target().parent().unwrap_or(Path::new("/"));
    let about = statvfs(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free < tree.bytes {
        return Err(format!("{} needs {} and {} are free here", tree.path, Bytes(tree.bytes), Bytes(free)));
    }
    // Some file systems have no fixed number of inodes.
    if about.f_files > 0 && about.f_favail < tree.names {
        return Err(format!(
            "{} needs {} inodes and {} are free here",
            tree.path, tree.names, about.f_favail
        ));
    }
    Ok(())
}

impl SyncSink {
    /// Makes the places where the trees grow. `state` is where it is written down what is
    /// to be undone should this process die; `mark` names the migration.
    pub fn open(setup: &Setup, state: &Path, mark: &str) -> Result<SyncSink, CompanionError> {
        let mut places = Vec::new();
        for tree in &setup.trees {
            let place = Place::choose(Path::new(&tree.path), tree.existing, mark);
            places.push(
                place.and_then(|place| room(&place, tree).map(|()| place)).map_err(CompanionError::new)?,
            );
        }
        let text = |error: io::Error| CompanionError::new(format!("the directories cannot be made: {error}"));
        let mut ledger = Ledger::open(state, mark, &places).map_err(text)?;
        let opened = places.iter_mut().map(Tree::open).collect::<io::Result<Vec<Tree>>>();
        let opened = opened.and_then(|trees| ledger.write(&places).map(|()| trees));
        match opened {
            Ok(trees) => Ok(SyncSink { trees, current: 0, ledger, decided: false }),
            Err(error) => {
                places.iter().for_each(|place| drop(place.undo()));
                ledger.close();
                Err(text(error))
            }
        }
    }

    fn undo(&mut self) -> Result<(), CompanionError> {
        self.decided = true;
        let mut failed = Vec::new();
        for tree in self.trees.drain(..) {
            if let Err(error) = tree.place.undo() {
                failed.push(format!("{}: {error}", tree.place.target().display()));
            }
        }
        if failed.is_empty() {
            self.ledger.close();
            return Ok(());
        }
        Err(CompanionError::new(format!(
            "directories that came along could not be removed: {}",
            failed.join(", ")
        )))
    }
}

impl CompanionSink for SyncSink {
    fn take(&mut self, blob: &[u8]) -> Result<(), CompanionError> {
        for record in records(blob) {
            let record = record?;
            if let Record::Tree(number) = record {
                self.current = number as usize;
                continue;
            }
            let tree = self.trees.get_mut(self.current);
            let tree =
                tree.ok_or_else(|| CompanionError::new("the source sends a directory it did not name"))?;
            if tree.finished.is_some() {
                return Err(CompanionError::new("the source goes on after it said that all is there"));
            }
            tree.apply(record)?;
        }
        Ok(())
    }

    fn ready(&mut self) -> Result<(), CompanionError> {
        for tree in &mut self.trees {
            tree.file = None;
            let (told, is) = (tree.finished, tree.model.summary());
            if told != Some(is) {
                return Err(CompanionError::new(format!(
                    "{} did not come over whole: {told:?} was sent and {is:?} is here",
                    tree.place.target().display()
                )));
            }
        }
        for tree in &self.trees {
            tree.place.put().map_err(|error| {
                CompanionError::new(format!(
                    "{} cannot be put in place: {error}",
                    tree.place.target().display()
                ))
            })?;
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<(), CompanionError> {
        self.decided = true;
        let mut failed = Vec::new();
        for tree in self.trees.drain(..) {
            // Once, and not in the freeze: a crash of this host takes the copy's memory
            // too, and until here the source's directory had it all.
            let done =
                rustix::fs::syncfs(&tree.root).map_err(io::Error::from).and_then(|()| tree.place.clear());
            if let Err(error) = done {
                failed.push(format!("{}: {error}", tree.place.target().display()));
            }
        }
        self.ledger.close();
        if failed.is_empty() {
            return Ok(());
        }
        Err(CompanionError::new(format!("the workload runs, but: {}", failed.join(", "))))
    }

    fn discard(mut self: Box<Self>) -> Result<(), CompanionError> {
        self.undo()
    }
}

impl Drop for SyncSink {
    fn drop(&mut self) {
        if !self.decided {
            tracing::error!("directories were left undecided: the next receiver settles them");
        }
    }
}

impl Tree {
    fn open(place: &mut Place) -> io::Result<Tree> {
        place.make()?;
        let open = |path: PathBuf| -> io::Result<OwnedFd> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(rustix::fs::open(path, flags, Mode::empty())?)
        };
        Ok(Tree {
            root: open(place.tree())?,
            kept: open(place.kept())?,
            place: place.clone(),
            model: Model::new(),
            finished: None,
            parent: None,
            file: None,
        })
    }

    /// The model first: it refuses what cannot be, and the disk then follows.
    fn apply(&mut self, record: Record) -> Result<(), CompanionError> {
        match record {
            Record::Tree(_) => {}
            Record::Keep { number, path } => {
                self.model.keep(number, &path)?;
                self.keep(number, &path).map_err(|error| self.failed(&path, &error))?;
            }
            Record::Remove { path } => {
                (self.file, self.parent) = (None, None);
                for (path, kind) in self.model.remove(&path)? {
                    self.remove(&path, &kind).map_err(|error| self.failed(&path, &error))?;
                }
            }
            Record::Make { path, kind } => {
                self.model.make(&path, kind.clone())?;
                self.make(&path, &kind).map_err(|error| self.failed(&path, &error))?;
            }
            Record::Link { path, to } => {
                self.model.link(&path, &to)?;
                self.link(&path, &to).map_err(|error| self.failed(&path, &error))?;
            }
            Record::LinkKept { path, number } => {
                self.model.link_kept(&path, number)?;
                self.link_kept(&path, number).map_err(|error| self.failed(&path, &error))?;
            }
            Record::Data { path, offset, content } => {
                let bytes = content.expand()?;
                let was = self.model.data(&path, offset, &bytes)?;
                self.write(&path, offset, &bytes, &was).map_err(|error| self.failed(&path, &error))?;
            }
            Record::Hole { path, offset, length } => {
                self.model.hole(&path, offset, length)?;
                let punched = self.file(&path).and_then(|file| punch(file, offset, length));
                punched.map_err(|error| self.failed(&path, &error))?;
            }
            Record::Size { path, size } => {
                self.model.size(&path, size)?;
                let cut = self.file(&path).and_then(|file| Ok(ftruncate(file, size)?));
                cut.map_err(|error| self.failed(&path, &error))?;
            }
            Record::Meta { path, meta, content } => {
                let (kind, size) = self.model.meta(&path, &meta, content.as_ref())?;
                self.complete(&path, &kind, &meta, size).map_err(|error| self.failed(&path, &error))?;
            }
            Record::RoundEnd => {
                let (kept, times) = self.model.round_end();
                for number in kept {
                    let gone = unlinkat(&self.kept, number.to_string(), AtFlags::empty());
                    gone.map_err(|error| self.failed(&RelPath::root(), &error.into()))?;
                }
                for (path, of) in times {
                    self.set_times(&path, of).map_err(|error| self.failed(&path, &error))?;
                }
            }
            Record::Final(summary) => self.finished = Some(summary),
        }
        Ok(())
    }

    fn keep(&mut self, number: u64, path: &RelPath) -> io::Result<()> {
        let kept = self.kept.try_clone()?;
        let (parent, name) = self.locate(path)?;
        Ok(linkat(parent, name, kept, number.to_string(), AtFlags::empty())?)
    }

    fn link_kept(&mut self, path: &RelPath, number: u64) -> io::Result<()> {
        let kept = self.kept.try_clone()?;
        let (parent, name) = self.locate(path)?;
        Ok(linkat(kept, number.to_string(), parent, name, AtFlags::empty())?)
    }

    fn link(&mut self, path: &RelPath, to: &RelPath) -> io::Result<()> {
        let (old, old_name) = self.locate(to)?;
        let old = old.try_clone()?;
        let (parent, name) = self.locate(path)?;
        Ok(linkat(old, old_name, parent, name, AtFlags::empty())?)
    }

    fn remove(&mut self, path: &RelPath, kind: &Kind) -> io::Result<()> {
        let flags = if *kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        self.parent.take_if(|(known, _)| known == path);
        let (parent, name) = self.locate(path)?;
        Ok(unlinkat(parent, name, flags)?)
    }

    fn make(&mut self, path: &RelPath, kind: &Kind) -> io::Result<()> {
        let (parent, name) = self.locate(path)?;
        // Nobody but root until its own permissions are told.
        let (mode, none) = (Mode::RUSR | Mode::WUSR, 0);
        match kind {
            Kind::File => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(parent, name, flags, mode)?;
                self.file = Some((path.clone(), file));
            }
            Kind::Directory => mkdirat(parent, name, Mode::RWXU)?,
            Kind::Symlink(target) => symlinkat(&target[..], parent, name)?,
            Kind::Fifo => mknodat(parent, name, FileType::Fifo, mode, none)?,
            Kind::Socket => mknodat(parent, name, FileType::Socket, mode, none)?,
            Kind::CharacterDevice(of) => {
                mknodat(parent, name, FileType::CharacterDevice, mode, makedev(of.major, of.minor))?;
            }
            Kind::BlockDevice(of) => {
                mknodat(parent, name, FileType::BlockDevice, mode, makedev(of.major, of.minor))?;
            }
        }
        Ok(())
    }

    /// Writes blocks; pages that are zero stay, or become, holes.
    fn write(&mut self, path: &RelPath, offset: u64, bytes: &[u8], was: &[Was]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let file = self.file(path)?;
        let mut at = offset;
        for (block, was) in bytes.chunks(BLOCK as usize).zip(was) {
            let mut pages = block.chunks(PAGE);
            let mut from = 0;
            // Runs of pages of one sort.
            while let Some(first) = block.get(from..).filter(|rest| !rest.is_empty()) {
                let zero = is_zero(&first[..first.len().min(PAGE)]);
                let alike = pages.clone().take_while(|page| is_zero(page) == zero).count();
                let run = &first[..first.len().min(alike * PAGE)];
                match (zero, was) {
                    (false, _) => write_all(file, run, at + from as u64)?,
                    (true, Was::Data) => punch(file, at + from as u64, run.len() as u64)?,
                    (true, Was::Hole) => {}
                }
                from += run.len();
                pages.by_ref().take(alike).for_each(drop);
            }
            at += block.len() as u64;
        }
        // It may end in a hole.
        if is_zero(&bytes[(bytes.len() - 1) / PAGE * PAGE..])
            && (rustix::fs::fstat(file)?.st_size as u64) < end
        {
            ftruncate(file, end)?;
        }
        Ok(())
    }

    /// Owner, attributes, permissions, times: in this order, since each may undo one
    /// before it. Then sees that the disk has it.
    fn complete(&mut self, path: &RelPath, kind: &Kind, meta: &Meta, size: Option<u64>) -> io::Result<()> {
        let (parent, name) = self.locate(path)?;
        let (owner, group) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        chownat(parent, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        xattr::write(&xattr::place(parent, name), &meta.xattrs)?;
        let is_link = matches!(kind, Kind::Symlink(_));
        if !is_link {
            chmodat(parent, name, Mode::from_raw_mode(meta.mode & 0o7777), AtFlags::empty())?;
        }
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let right = (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid)
            && (is_link || stat.st_mode & 0o7777 == meta.mode & 0o7777)
            && size.is_none_or(|size| stat.st_size as u64 == size);
        if !right {
            return Err(io::Error::other("the file system did not take its owner, permissions or size"));
        }
        self.set_times(path, meta.into())
    }

    fn set_times(&mut self, path: &RelPath, times: Times) -> io::Result<()> {
        let (parent, name) = self.locate(path)?;
        let of = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
        let times = Timestamps { last_access: of(times.atime), last_modification: of(times.mtime) };
        Ok(utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file(&mut self, path: &RelPath) -> io::Result<&OwnedFd> {
        if self.file.as_ref().is_none_or(|(open, _)| open != path) {
            let (parent, name) = self.locate(path)?;
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = openat(parent, name, flags, Mode::empty())?;
            self.file = Some((path.clone(), file));
        }
        self.file.as_ref().map(|(_, file)| file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The directory that an entry is in, and its name there. No link is followed and no
    /// mount entered on the way, whatever the source said before.
    fn locate<'p>(&mut self, path: &'p RelPath) -> io::Result<(&OwnedFd, &'p OsStr)> {
        let Some((parent, name)) = path.split() else {
            return Ok((&self.root, OsStr::new(".")));
        };
        if self.parent.as_ref().is_none_or(|(known, _)| *known != parent) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inside = ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV;
            let opened = openat2(&self.root, parent.os(), flags, Mode::empty(), inside)?;
            self.parent = Some((parent, opened));
        }
        let (_, opened) = self.parent.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok((opened, name))
    }

    fn failed(&self, path: &RelPath, error: &io::Error) -> CompanionError {
        let at = self.place.target().display();
        let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let why = if full { "no space is left there".to_owned() } else { error.to_string() };
        CompanionError::new(format!("{at}/{path} cannot be written at the destination: {why}"))
    }
}

/// Makes a hole; where the file system has none, writes zeroes.
fn punch(file: &OwnedFd, offset: u64, length: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            // Length is at most a block's, and the file may end within it.
            let size = rustix::fs::fstat(file)?.st_size as u64;
            write_all(file, &vec![0; length.min(size.saturating_sub(offset)) as usize], offset)
        }
        other => Ok(other?),
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(wrote) => {
                bytes = &bytes[wrote..];
                at += wrote as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
