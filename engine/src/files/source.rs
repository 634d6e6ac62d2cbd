//! Directories at the source: a scan tells what may have changed, the content tells
//! what has, and only that is sent.

use super::content::{Blocks, Change};
use super::entry::{Device, Kind, Meta, ObjectKey, Stamp};
use super::path::RelPath;
use super::plan::{How, Plan, plan};
use super::record::{Content, Record, Summary, Writer, hash};
use super::scan::{Look, Seen, now, open_root, scan, stamp_of};
use super::setup::{Existing, Setup, TreeSetup};
use super::xattr;
use crate::companion::{BlobSink, Companion, CompanionError, CompanionRound, Forecast};
use ferry_transport::units::{ByteRate, Bytes};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, openat, openat2, readlinkat, statx};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tells the inodes of files that are written without a trace: those that a process has
/// mapped, shared and writable. A page that is dirty already takes further writes
/// without any time changing. Another file system's of the same number is only read
/// once too often.
pub type MappedFiles = Box<dyn FnMut() -> HashSet<u64> + Send>;

/// A directory that comes along.
#[derive(Clone, Debug)]
pub struct SourceTree {
    /// Here.
    pub here: PathBuf,
    /// Its place at the destination, or what the destination knows it by.
    pub there: String,
    /// What if that has content already.
    pub existing: Existing,
}

/// The directories that come along, at the source.
pub struct SyncSource {
    trees: Vec<Tree>,
    mapped: MappedFiles,
    /// Files that were mapped in any round: looked at in every later one.
    unseen: HashSet<u64>,
    read_rate: Option<ByteRate>,
    /// Of what was read in the last round, what had to be sent.
    sent_share: f64,
}

struct Tree {
    path: PathBuf,
    setup: TreeSetup,
    root: OwnedFd,
    /// As it was last told.
    known: Vec<Seen>,
    contents: HashMap<ObjectKey, Blocks>,
    digest: u128,
}

/// What a pass over a tree adds up to.
#[derive(Default)]
struct Tally {
    entries: u64,
    read: u64,
    reading: Duration,
}

impl SyncSource {
    /// Opens the directories and looks how much is in them. Fails where one cannot come
    /// along; nothing is changed.
    pub fn open(trees: Vec<SourceTree>, mapped: MappedFiles) -> Result<SyncSource, CompanionError> {
        let trees = trees.into_iter().map(Tree::open).collect::<Result<_, _>>()?;
        Ok(SyncSource { trees, mapped, unseen: HashSet::new(), read_rate: None, sent_share: 1.0 })
    }

    fn pass(&mut self, sink: &mut dyn BlobSink, look: Pass) -> Result<CompanionRound, CompanionError> {
        let began = Instant::now();
        let mut writer = Writer::new(sink);
        let mut tally = Tally::default();
        if look != Pass::Seal {
            let mapped = (self.mapped)();
            self.unseen.extend(mapped);
        }
        for (number, tree) in self.trees.iter_mut().enumerate() {
            writer.say(&Record::Tree(number as u32))?;
            tree.pass(look, &self.unseen, &mut writer, &mut tally).map_err(|error| tree.failed(&error))?;
            writer.say(&Record::RoundEnd)?;
            if look == Pass::Seal {
                writer.say(&Record::Final(tree.summary()))?;
            }
        }
        writer.flush()?;
        if tally.read > Bytes::MIB.0 {
            self.read_rate = Some(Bytes(tally.read).per(tally.reading));
            self.sent_share = (writer.bytes as f64 / tally.read as f64).min(1.0);
        }
        Ok(CompanionRound {
            blobs: writer.blobs,
            bytes: Bytes(writer.bytes),
            entries: tally.entries,
            read: Bytes(tally.read),
            took: began.elapsed(),
            notes: Vec::new(),
        })
    }
}

/// Which pass it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Round,
    Seal,
}

impl Companion for SyncSource {
    fn setup(&self) -> Vec<u8> {
        Setup::new(self.trees.iter().map(|tree| tree.setup.clone()).collect()).encode()
    }

    fn round(&mut self, sink: &mut dyn BlobSink) -> Result<CompanionRound, CompanionError> {
        self.pass(sink, Pass::Round)
    }

    fn peek(&mut self) -> Result<Forecast, CompanionError> {
        let began = Instant::now();
        let mut read = Bytes(0);
        for tree in &self.trees {
            let new = scan(&tree.root, Look::All).map_err(|error| tree.failed(&error.into()))?;
            let plan = plan(&tree.known, &new, |seen| is_unseen(seen, &self.unseen));
            let files = plan.work.iter().map(|(index, _)| &new[*index]).filter(|seen| seen.stamp.is_file());
            read += files.map(|seen| Bytes(seen.occupied.min(seen.stamp.size))).sum();
        }
        let reading = read.at(self.read_rate.unwrap_or(ByteRate(Bytes::GIB.0))).unwrap_or_default();
        let send = Bytes((read.0 as f64 * self.sent_share) as u64);
        Ok(Forecast { cost: began.elapsed() + reading, send })
    }

    fn finish(&mut self, sink: &mut dyn BlobSink) -> Result<CompanionRound, CompanionError> {
        self.pass(sink, Pass::Round)
    }

    fn seal(&mut self, sink: &mut dyn BlobSink) -> Result<CompanionRound, CompanionError> {
        self.pass(sink, Pass::Seal)
    }
}

/// What entries take on the disk; a file with several names takes it once.
fn occupied(found: &[Seen]) -> u64 {
    let mut counted = HashSet::new();
    let once = |seen: &&Seen| seen.stamp.links == 1 || counted.insert(seen.stamp.key);
    found.iter().filter(once).map(|seen| seen.occupied).sum()
}

fn is_unseen(seen: &Seen, unseen: &HashSet<u64>) -> bool {
    seen.stamp.is_file() && unseen.contains(&seen.stamp.key.inode())
}

/// A failure on the way: of the tree, or of whoever takes what is said.
enum PassError {
    Tree(io::Error),
    Sink(CompanionError),
}

impl From<io::Error> for PassError {
    fn from(error: io::Error) -> PassError {
        PassError::Tree(error)
    }
}

impl From<CompanionError> for PassError {
    fn from(error: CompanionError) -> PassError {
        PassError::Sink(error)
    }
}

impl Tree {
    fn open(tree: SourceTree) -> Result<Tree, CompanionError> {
        let SourceTree { here: path, there, existing } = tree;
        let failed = |error: io::Error| CompanionError::new(format!("{}: {error}", path.display()));
        let root = open_root(&path).map_err(failed)?;
        let found = scan(&root, Look::All).map_err(failed)?;
        let setup =
            TreeSetup { path: there, existing, names: found.len() as u64 - 1, bytes: occupied(&found) };
        Ok(Tree { path, setup, root, known: Vec::new(), contents: HashMap::new(), digest: 0 })
    }

    fn failed(&self, error: &PassError) -> CompanionError {
        match error {
            PassError::Tree(error) => CompanionError::new(format!("{}: {error}", self.path.display())),
            PassError::Sink(error) => CompanionError::new(error.to_string()),
        }
    }

    fn summary(&self) -> Summary {
        Summary { names: self.known.len().saturating_sub(1) as u64, digest: self.digest }
    }

    fn pass(
        &mut self,
        pass: Pass,
        unseen: &HashSet<u64>,
        writer: &mut Writer<'_>,
        tally: &mut Tally,
    ) -> Result<(), PassError> {
        let look = if pass == Pass::Seal { Look::Names(&self.known) } else { Look::All };
        let mut new = scan(&self.root, look)?;
        let Plan { keep, remove, work, same, gone } =
            plan(&self.known, &new, |seen| pass != Pass::Seal && is_unseen(seen, unseen));
        for (old, now) in same {
            (new[now].hash, new[now].settled) = (self.known[old].hash, true);
        }
        gone.iter().for_each(|old| self.digest ^= self.known[*old].hash);
        tally.entries += (work.len() + gone.len()) as u64;
        for (number, path) in keep.into_iter().enumerate() {
            writer.say(&Record::Keep { number: number as u64, path })?;
        }
        for path in remove {
            writer.say(&Record::Remove { path })?;
        }
        let mut telling = Telling {
            root: &self.root,
            contents: &mut self.contents,
            parent: None,
            looked: HashMap::new(),
            writer,
            tally,
        };
        // What is made in a directory changes its times: its own come after all of it.
        let mut directories = Vec::new();
        let mut missed = HashSet::new();
        for (index, how) in work {
            let seen = &mut new[index];
            let before = if let How::Look(old) = how { self.known[old].hash } else { 0 };
            if !telling.announce(seen, how)? {
                missed.insert(index);
                continue;
            }
            if seen.stamp.is_directory() {
                directories.push((index, before));
                continue;
            }
            telling.tell(seen, before)?;
            self.digest ^= before ^ seen.hash;
        }
        for (index, before) in directories.into_iter().rev() {
            telling.tell(&mut new[index], before)?;
            self.digest ^= before ^ new[index].hash;
        }
        let mut index = 0;
        new.retain(|_| {
            index += 1;
            !missed.contains(&(index - 1))
        });
        if !gone.is_empty() {
            let alive: HashSet<ObjectKey> = new.iter().map(|seen| seen.stamp.key).collect();
            self.contents.retain(|key, _| alive.contains(key));
        }
        self.known = new;
        Ok(())
    }
}

/// Telling what a plan found.
struct Telling<'t, 'w> {
    root: &'t OwnedFd,
    contents: &'t mut HashMap<ObjectKey, Blocks>,
    /// The directory of the entry that was last looked at.
    parent: Option<(RelPath, OwnedFd)>,
    /// Files with several names, looked at in this pass: each is read once.
    looked: HashMap<ObjectKey, (Stamp, bool, [u8; 32])>,
    writer: &'t mut Writer<'w>,
    tally: &'t mut Tally,
}

impl Telling<'_, '_> {
    /// Says how a name comes about; `false` where it is gone again.
    fn announce(&mut self, seen: &Seen, how: How) -> Result<bool, PassError> {
        let path = seen.path.clone();
        let record = match how {
            How::Look(_) => return Ok(true),
            How::Make if path.is_root() => return Ok(true),
            How::Link(to) => Record::Link { path, to },
            How::Kept(number) => Record::LinkKept { path, number: number as u64 },
            How::Make => {
                // Whatever had this number before: the destination has an empty file now.
                self.contents.remove(&seen.stamp.key);
                let Some(kind) = self.kind(seen)? else { return Ok(false) };
                Record::Make { path, kind }
            }
        };
        self.writer.say(&record)?;
        Ok(true)
    }

    /// Says what an entry is and has. Where it is gone, or changes, it stays unsettled,
    /// and `before` is what is known of it.
    fn tell(&mut self, seen: &mut Seen, before: u128) -> Result<(), PassError> {
        seen.hash = before;
        seen.settled = false;
        let began = now();
        let (stamp, stat, content, settled) = if seen.stamp.is_file() {
            let Some(told) = self.content(seen)? else { return Ok(()) };
            told
        } else {
            let Some(stat) = self.stat(seen)? else { return Ok(()) };
            // Names that came into a directory after it was listed show by its old stamp.
            (seen.stamp, stat, None, Stamp::of(&stat) == seen.stamp)
        };
        let Some(kind) = self.kind(seen)? else { return Ok(()) };
        let Some(xattrs) = self.xattrs(seen)? else { return Ok(()) };
        let meta = Meta {
            mode: stamp.mode & 0o7777,
            uid: stamp.uid,
            gid: stamp.gid,
            mtime: stamp.mtime,
            atime: stat.stx_atime.into(),
            xattrs,
        };
        seen.stamp = stamp;
        seen.settled = settled && stamp.is_settled(began);
        seen.hash = hash(&seen.path, &kind, &meta, content.as_ref());
        self.writer.say(&Record::Meta { path: seen.path.clone(), meta, content })?;
        Ok(())
    }

    /// Reads a file and says what changed in it; `None` when it is gone.
    #[allow(clippy::type_complexity, reason = "what tell needs of it, once")]
    fn content(&mut self, seen: &Seen) -> Result<Option<(Stamp, Statx, Option<[u8; 32]>, bool)>, PassError> {
        let Some((parent, name)) = self.locate(&seen.path)? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(parent, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(error) if is_gone(error) => return Ok(None),
            Err(error) => return Err(named(&seen.path, error.into())),
        };
        let (stamp, stat) = stamp_of(&file)?;
        if stamp.key != seen.stamp.key || !stamp.is_file() {
            return Ok(None);
        }
        if let Some((then, settled, digest)) = self.looked.get(&stamp.key) {
            let settled = *settled && *then == stamp;
            return Ok(Some((stamp, stat, Some(*digest), settled)));
        }
        let blocks = self.contents.entry(stamp.key).or_default();
        let (writer, path) = (&mut *self.writer, &seen.path);
        let began = Instant::now();
        let read = blocks.update(&file, stamp.size, |change| {
            let path = path.clone();
            let record = match change {
                Change::Data { offset, bytes } => Record::Data { path, offset, content: Content::of(bytes) },
                Change::Hole { offset, length } => Record::Hole { path, offset, length },
                Change::Size(size) => Record::Size { path, size },
            };
            writer.say(&record).map_err(PassError::Sink)
        });
        self.tally.read += read.map_err(|error| match error {
            PassError::Tree(error) => named(path, error),
            sink => sink,
        })?;
        self.tally.reading += began.elapsed();
        let digest = blocks.digest();
        let settled = stamp_of(&file)?.0 == stamp;
        if stamp.links > 1 {
            self.looked.insert(stamp.key, (stamp, settled, digest));
        }
        Ok(Some((stamp, stat, Some(digest), settled)))
    }

    /// What it is; `None` when it is gone.
    fn kind(&mut self, seen: &Seen) -> Result<Option<Kind>, PassError> {
        let Device { major, minor } = seen.stamp.device;
        let device = Device { major, minor };
        Ok(Some(match seen.stamp.mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharacterDevice(device),
            libc::S_IFBLK => Kind::BlockDevice(device),
            libc::S_IFLNK => {
                let Some((parent, name)) = self.locate(&seen.path)? else { return Ok(None) };
                match readlinkat(parent, name, Vec::new()) {
                    Ok(target) => Kind::Symlink(target.into_bytes()),
                    Err(error) if is_gone(error) || error == Errno::INVAL => return Ok(None),
                    Err(error) => return Err(named(&seen.path, error.into())),
                }
            }
            other => {
                let what = io::Error::other(format!("its type {other:#o} is not known"));
                return Err(named(&seen.path, what));
            }
        }))
    }

    fn stat(&mut self, seen: &Seen) -> Result<Option<Statx>, PassError> {
        let Some((parent, name)) = self.locate(&seen.path)? else { return Ok(None) };
        match statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, super::scan::FLAGS) {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if is_gone(error) => Ok(None),
            Err(error) => Err(named(&seen.path, error.into())),
        }
    }

    fn xattrs(&mut self, seen: &Seen) -> Result<Option<Vec<super::entry::Xattr>>, PassError> {
        let Some((parent, name)) = self.locate(&seen.path)? else { return Ok(None) };
        match xattr::read(&xattr::place(parent, name)) {
            Ok(xattrs) => Ok(Some(xattrs)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named(&seen.path, error)),
        }
    }

    /// The directory that an entry is in, and its name there; `None` when that is gone.
    fn locate<'p>(&mut self, path: &'p RelPath) -> Result<Option<(&OwnedFd, &'p OsStr)>, PassError> {
        let Some((parent, name)) = path.split() else {
            return Ok(Some((self.root, OsStr::new("."))));
        };
        if self.parent.as_ref().is_none_or(|(known, _)| *known != parent) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match openat2(self.root, parent.os(), flags, Mode::empty(), inside) {
                Ok(opened) => self.parent = Some((parent, opened)),
                Err(error) if is_gone(error) => return Ok(None),
                Err(error) => return Err(named(path, error.into())),
            }
        }
        Ok(self.parent.as_ref().map(|(_, opened)| (opened, name)))
    }
}

/// Gone, or something else by now: the next scan sees what.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE)
}

fn named(path: &RelPath, error: io::Error) -> PassError {
    PassError::Tree(io::Error::new(error.kind(), format!("{path}: {error}")))
}
