//! Completing an image directory: CRIU dumped everything but private pages, the
//! page store has those.
//!
//! Pages that CRIU leaves to a pager go into the pager's plan and are mentioned in
//! no image: in a lazy restore CRIU registers whole mappings, whatever their
//! pagemap says, so that neither the images nor the restore grow with memory. All
//! others are merged into `pagemap-<pid>.img` and its `pages-<n>.img` together with
//! the few that CRIU dumped itself (the vDSO).

use super::file::{self, Kind, Messages};
use super::proto::{PE_PARENT, PE_PRESENT, PagemapEntry, PagemapHead};
use super::tree::{self, ImageError, Process, in_file};
use super::vma::Treatment;
use crate::page_store::{Content, Extent, Sealed, SealedSpace};
use crate::sys::arena;
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageRange};
use ferry_transport::units::PageCount;
use ferry_transport::wire::control::RestoreMode;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What one copy moves at most: bounds the buffer and, because the arena is freed
/// behind it, the memory that exists twice.
const COPY: usize = 1 << 20;

/// What the pager brings for one process.
#[derive(Clone, Debug)]
pub struct LazySpace {
    /// The process, as the images name it.
    pub pid: u32,
    /// Its lazy pages: ascending, each in one mapping, all with content.
    pub extents: Vec<Extent>,
    /// Which to bring first, in this order; may name pages that are not lazy.
    pub hot: Vec<PageRange>,
}

/// A complete image directory and what remains to be brought into its processes.
#[derive(Debug)]
pub struct Assembly {
    /// Holds the content of the lazy pages.
    pub arena: Arc<File>,
    /// How far it is in use, in bytes.
    pub arena_len: u64,
    /// Per process; empty for an eager restore.
    pub lazy: Vec<LazySpace>,
    /// Pages for the pager.
    pub lazy_pages: PageCount,
    /// Pages written into the images, CRIU's own included.
    pub eager_pages: PageCount,
    /// Pages of mappings that CRIU takes no content for.
    pub ignored_pages: PageCount,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Arena(u64),
    Dump(u64),
    Zero,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    pages: PageRange,
    source: Source,
}

/// Completes `images`. With [`RestoreMode::Eager`] the arena is emptied on the way,
/// so that memory does not double. On an error the directory is of no use.
pub fn assemble(images: &Path, sealed: Sealed, mode: RestoreMode) -> Result<Assembly, ImageError> {
    let processes = tree::processes(images)?;
    let mut spaces: HashMap<u32, SealedSpace> =
        sealed.spaces.into_iter().map(|space| (space.image_pid, space)).collect();
    let mut assembly = Assembly {
        arena: sealed.arena,
        arena_len: sealed.arena_len,
        lazy: Vec::new(),
        lazy_pages: PageCount(0),
        eager_pages: PageCount(0),
        ignored_pages: PageCount(0),
    };
    for process in &processes {
        let pid = process.pid;
        let space = spaces.remove(&pid).ok_or_else(|| ImageError::mismatch(pid, "no pages came for it"))?;
        let split = split(process, &space, mode)?;
        assembly.ignored_pages += split.ignored;
        assembly.eager_pages += write_pages(images, pid, split.eager, &assembly.arena)?;
        if mode == RestoreMode::Lazy {
            assembly.lazy_pages += PageCount(split.lazy.iter().map(|extent| extent.pages.count.0).sum());
            assembly.lazy.push(LazySpace { pid, extents: split.lazy, hot: space.hot });
        }
    }
    match spaces.keys().next() {
        Some(&pid) => Err(ImageError::mismatch(pid, "pages came, but no process is in the images")),
        None => Ok(assembly),
    }
}

#[derive(Default)]
struct Split {
    lazy: Vec<Extent>,
    eager: Vec<Piece>,
    ignored: PageCount,
}

/// Sorts the pages of a process into those for the pager and those for the images.
fn split(process: &Process, space: &SealedSpace, mode: RestoreMode) -> Result<Split, ImageError> {
    let mut split = Split::default();
    let mut vmas = process.vmas.iter().peekable();
    for extent in &space.extents {
        let mut at = extent.pages.start.address();
        let end = extent.pages.end();
        while at < end {
            while vmas.next_if(|vma| vma.end <= at).is_some() {}
            let Some(vma) = vmas.peek().filter(|vma| vma.start <= at) else {
                return Err(ImageError::mismatch(process.pid, format!("page {at:#x} is in no mapping")));
            };
            let part = extent.part(at, end.min(vma.end));
            at = part.pages.end();
            match vma.treatment() {
                Treatment::NotRestored => split.ignored += part.pages.count,
                Treatment::EagerFile => split.eager.push(piece(part)),
                Treatment::EagerAnonymous => eager_anonymous(part, &mut split.eager),
                Treatment::Lazy if mode == RestoreMode::Eager => eager_anonymous(part, &mut split.eager),
                Treatment::Lazy => lazy(part, process, &mut split),
            }
        }
    }
    Ok(split)
}

fn piece(part: Extent) -> Piece {
    let source = match part.content {
        Content::Arena(offset) => Source::Arena(offset),
        Content::Zero => Source::Zero,
    };
    Piece { pages: part.pages, source }
}

fn eager_anonymous(part: Extent, eager: &mut Vec<Piece>) {
    if part.content != Content::Zero {
        eager.push(piece(part));
    }
}

/// All but the pages that stack pointers point into, which CRIU never treats as lazy.
fn lazy(part: Extent, process: &Process, split: &mut Split) {
    if part.content == Content::Zero {
        return;
    }
    let (mut at, end) = (part.pages.start.address(), part.pages.end());
    let inside = PageAddr::containing(at)..PageAddr::containing(end);
    for page in process.stack_pages.range(inside) {
        let (from, to) = (page.address(), page.address() + PAGE_SIZE as u64);
        if at < from {
            split.lazy.push(part.part(at, from));
        }
        split.eager.push(piece(part.part(from, to)));
        at = to;
    }
    if at < end {
        split.lazy.push(part.part(at, end));
    }
}

/// Writes `pagemap-<pid>.img` and its pages file anew: what CRIU dumped and `ours`.
fn write_pages(images: &Path, pid: u32, ours: Vec<Piece>, arena: &File) -> Result<PageCount, ImageError> {
    let map_name = format!("pagemap-{pid}.img");
    let bytes = tree::read(images, &map_name)?;
    let mut messages = Messages::of(&bytes, Kind::Pagemap).map_err(in_file(images, &map_name))?;
    let head: Option<PagemapHead> = messages.next_message().map_err(in_file(images, &map_name))?;
    let head = head.ok_or_else(|| ImageError::mismatch(pid, "its pagemap is empty"))?;
    let entries: Vec<PagemapEntry> = messages.rest().map_err(in_file(images, &map_name))?;

    let pieces = merge(pid, dumped(pid, &entries)?, ours)?;
    let pages_name = format!("pages-{}.img", head.pages_id);
    let (old, new) = (images.join(&pages_name), images.join(format!("{pages_name}.new")));
    let in_old = |cause| ImageError::File { path: old.clone(), cause };
    let in_new = |cause| ImageError::File { path: new.clone(), cause };
    let dump = File::open(&old).map_err(in_old)?;
    let file = File::create_new(&new).map_err(in_new)?;

    let mut map = file::begin(Kind::Pagemap);
    file::append(&mut map, &head);
    let mut entry: Option<PageRange> = None;
    let mut buffer = vec![0; COPY];
    let mut written = 0;
    for piece in &pieces {
        copy(piece, &dump, arena, &file, written, &mut buffer).map_err(in_new)?;
        written += piece.pages.count.bytes().0;
        match &mut entry {
            Some(entry) if entry.end() == piece.pages.start.address() => entry.count += piece.pages.count,
            _ => {
                entry.replace(piece.pages).iter().for_each(|entry| append_entry(&mut map, *entry));
            }
        }
    }
    entry.iter().for_each(|entry| append_entry(&mut map, *entry));
    file.set_len(written).map_err(in_new)?;
    std::fs::rename(&new, &old).map_err(in_new)?;
    let path = images.join(&map_name);
    std::fs::write(&path, map).map_err(|cause| ImageError::File { path, cause })?;
    Ok(PageCount(written / PAGE_SIZE as u64))
}

fn append_entry(map: &mut Vec<u8>, pages: PageRange) {
    let entry = PagemapEntry {
        vaddr: pages.start.address(),
        compat_nr_pages: 0,
        in_parent: None,
        flags: Some(PE_PRESENT),
        nr_pages: Some(pages.count.0),
    };
    file::append(map, &entry);
}

/// The pages that CRIU dumped itself, in the order of its pages file.
fn dumped(pid: u32, entries: &[PagemapEntry]) -> Result<Vec<Piece>, ImageError> {
    let (mut free, mut offset) = (0u64, 0u64);
    let mut pieces = Vec::with_capacity(entries.len());
    for entry in entries {
        let flags = entry.effective_flags();
        if flags & PE_PARENT != 0 {
            return Err(ImageError::mismatch(pid, "its pages are in a parent dump"));
        }
        let start = PageAddr::containing(entry.vaddr);
        let pages = PageRange { start, count: PageCount(entry.pages()) };
        let length = entry.pages().checked_mul(PAGE_SIZE as u64);
        let end = length.and_then(|length| start.address().checked_add(length));
        let (Some(length), Some(end), true) = (length, end, start.address() == entry.vaddr) else {
            return Err(ImageError::mismatch(pid, format!("absurd pagemap entry at {:#x}", entry.vaddr)));
        };
        if start.address() < free {
            return Err(ImageError::mismatch(pid, format!("pagemap entry {start:?} is out of order")));
        }
        free = end;
        if flags & PE_PRESENT != 0 {
            pieces.push(Piece { pages, source: Source::Dump(offset) });
            offset = offset
                .checked_add(length)
                .ok_or_else(|| ImageError::mismatch(pid, "absurd pagemap entries"))?;
        }
    }
    Ok(pieces)
}

/// Both lists in one, ascending. Both at once for a page would mean that it is not
/// known which of them is right.
fn merge(pid: u32, dumped: Vec<Piece>, ours: Vec<Piece>) -> Result<Vec<Piece>, ImageError> {
    let mut pieces = dumped;
    pieces.extend(ours);
    pieces.sort_by_key(|piece| piece.pages.start);
    match pieces.windows(2).find(|pair| pair[0].pages.end() > pair[1].pages.start.address()) {
        Some(pair) => Err(ImageError::mismatch(
            pid,
            format!("page {:#x} is both in the dump and in the store", pair[1].pages.start.address()),
        )),
        None => Ok(pieces),
    }
}

fn copy(
    piece: &Piece,
    dump: &File,
    arena: &File,
    to: &File,
    at: u64,
    buffer: &mut [u8],
) -> std::io::Result<()> {
    let len = piece.pages.count.bytes().0;
    let (from, start) = match piece.source {
        // A hole reads as zeroes.
        Source::Zero => return Ok(()),
        Source::Arena(offset) => (arena, offset),
        Source::Dump(offset) => (dump, offset),
    };
    let mut done = 0;
    while done < len {
        let part = buffer.len().min((len - done) as usize);
        from.read_exact_at(&mut buffer[..part], start + done)?;
        to.write_all_at(&buffer[..part], at + done)?;
        if let Source::Arena(offset) = piece.source {
            arena::punch(arena.as_fd(), offset + done, part as u64)?;
        }
        done += part as u64;
    }
    Ok(())
}
