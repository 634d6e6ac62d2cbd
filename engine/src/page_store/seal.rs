//! The end of receiving: what the workload consists of, proved complete.

use super::region::{REGION_BYTES, REGION_PAGES, Region};
use super::{ADDRESS_LIMIT, PageStore, lock};
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageRange, Round, RunKind, SpaceId};
use ferry_transport::units::PageCount;
use ferry_transport::wire::control::FinalSpace;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

/// Why the final state and the store do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The source says that pages exist which never came.
    #[error("space {} (PID {image_pid}): {pages} pages never arrived, the first at {first:#x}", space.0)]
    Missing {
        /// Whose.
        space: SpaceId,
        /// Its PID in the images.
        image_pid: u32,
        /// The first such page's address.
        first: u64,
        /// How many of the range that lacks the first; there may be more elsewhere.
        pages: u64,
    },
    /// The final state contradicts itself.
    #[error("malformed final state of space {} (PID {image_pid}): {what}", space.0)]
    Malformed {
        /// Whose.
        space: SpaceId,
        /// Its PID in the images.
        image_pid: u32,
        /// In what way.
        what: &'static str,
    },
    /// The kernel refused.
    #[error("page store: {0}")]
    Memory(#[from] std::io::Error),
    /// It was sealed before.
    #[error("the page store was sealed before")]
    Twice,
}

/// Where the content of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// In the arena, from this offset on.
    Arena(u64),
    /// Nowhere: they are zero.
    Zero,
}

/// Consecutive pages whose content is consecutive too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The pages.
    pub pages: PageRange,
    /// Their content.
    pub content: Content,
}

impl Extent {
    /// The part of it from address `start` up to `end`, both inside.
    pub fn part(self, start: u64, end: u64) -> Extent {
        let skipped = start.saturating_sub(self.pages.start.address());
        let content = match self.content {
            Content::Arena(offset) => Content::Arena(offset + skipped),
            Content::Zero => Content::Zero,
        };
        Extent { pages: PageRange::between(start, end), content }
    }
}

/// One address space, complete.
#[derive(Clone, Debug)]
pub struct SealedSpace {
    /// Which.
    pub space: SpaceId,
    /// Its PID in the images.
    pub image_pid: u32,
    /// Every page that exists, ascending and disjoint.
    pub extents: Vec<Extent>,
    /// Pages sent again after round 0, those of the last rounds first: what the
    /// workload will touch soonest.
    pub hot: Vec<PageRange>,
}

/// All pages of a workload, complete and final.
#[derive(Debug)]
pub struct Sealed {
    /// The file that holds the content.
    pub arena: Arc<File>,
    /// How far the file is in use, in bytes.
    pub arena_len: u64,
    /// The address spaces.
    pub spaces: Vec<SealedSpace>,
}

impl Sealed {
    /// Pages with content, all spaces together.
    pub fn data_pages(&self) -> PageCount {
        let extents = self.spaces.iter().flat_map(|space| &space.extents);
        let data = extents.filter(|extent| matches!(extent.content, Content::Arena(_)));
        PageCount(data.map(|extent| extent.pages.count.0).sum())
    }
}

impl PageStore {
    /// Ends receiving. Pages that `spaces` does not list are gone at the source and
    /// are left out; each page that it lists is in the result. On an error nothing
    /// can be restored from this store.
    pub fn seal(&self, spaces: &[FinalSpace]) -> Result<Sealed, SealError> {
        {
            let mut sealed = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
            if *sealed {
                return Err(SealError::Twice);
            }
            *sealed = true;
        }
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let (mut known, mut pids) = (HashSet::new(), HashSet::new());
        let mut result = Vec::with_capacity(spaces.len());
        let nothing = BTreeMap::new();
        for space in spaces {
            if !known.insert(space.space) {
                return Err(malformed(space, "listed twice"));
            }
            if !pids.insert(space.image_pid) {
                return Err(malformed(space, "its PID is listed twice"));
            }
            check_ranges(space)?;
            result.push(seal_space(space, regions.get(&space.space).unwrap_or(&nothing))?);
        }
        let used = self.next_piece.load(std::sync::atomic::Ordering::Relaxed).min(self.arena_size);
        self.arena.set_len(used)?;
        Ok(Sealed { arena: Arc::clone(&self.arena), arena_len: used, spaces: result })
    }
}

fn malformed(space: &FinalSpace, what: &'static str) -> SealError {
    SealError::Malformed { space: space.space, image_pid: space.image_pid, what }
}

fn check_ranges(space: &FinalSpace) -> Result<(), SealError> {
    let mut free = 0;
    for range in &space.present {
        let start = range.start.address();
        if range.count.0 == 0 {
            return Err(malformed(space, "an empty range"));
        }
        if start != PageAddr::containing(start).address() {
            return Err(malformed(space, "an address that is not a page's"));
        }
        if start < free {
            return Err(malformed(space, "ranges are not ascending and disjoint"));
        }
        if range.end() > ADDRESS_LIMIT {
            return Err(malformed(space, "an address beyond user space"));
        }
        free = range.end();
    }
    Ok(())
}

/// Its work is bounded by what the store holds, not by what the list claims.
fn seal_space(
    space: &FinalSpace,
    regions: &BTreeMap<u64, Arc<Mutex<Region>>>,
) -> Result<SealedSpace, SealError> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut hot: BTreeMap<Round, Vec<PageRange>> = BTreeMap::new();
    for range in &space.present {
        let (start, end) = (range.start.index(), range.start.index() + range.count.0);
        let (mut expected, mut missing, mut first) = (start, 0, None);
        for (index, region) in regions.range(start / REGION_PAGES..=(end - 1) / REGION_PAGES) {
            let region = lock(region);
            let base = index * REGION_PAGES;
            let from = base.max(start);
            if from > expected {
                first.get_or_insert(expected);
                missing += from - expected;
            }
            expected = end.min(base + REGION_PAGES);
            for page in from..expected {
                let Some((round, kind)) = region.page((page - base) as usize) else {
                    first.get_or_insert(page);
                    missing += 1;
                    continue;
                };
                let content = match (kind, region.piece) {
                    (RunKind::Data, Some(piece)) => Content::Arena(piece + (page - base) * PAGE_SIZE as u64),
                    _ => Content::Zero,
                };
                append(&mut extents, page, content);
                if round > Round(0) && kind == RunKind::Data {
                    append_range(hot.entry(round).or_default(), page);
                }
            }
        }
        if expected < end {
            first.get_or_insert(expected);
            missing += end - expected;
        }
        if let Some(first) = first {
            return Err(SealError::Missing {
                space: space.space,
                image_pid: space.image_pid,
                first: PageAddr::from_index(first).address(),
                pages: missing,
            });
        }
    }
    let hot = hot.into_values().rev().flatten().collect();
    Ok(SealedSpace { space: space.space, image_pid: space.image_pid, extents, hot })
}

fn append(extents: &mut Vec<Extent>, page: u64, content: Content) {
    let address = page * PAGE_SIZE as u64;
    if let Some(last) = extents.last_mut() {
        let follows = match (last.content, content) {
            (Content::Zero, Content::Zero) => true,
            (Content::Arena(offset), Content::Arena(next)) => offset + last.pages.count.bytes().0 == next,
            _ => false,
        };
        if follows && last.pages.end() == address {
            last.pages.count.0 += 1;
            return;
        }
    }
    let pages = PageRange { start: PageAddr::from_index(page), count: PageCount(1) };
    extents.push(Extent { pages, content });
}

fn append_range(ranges: &mut Vec<PageRange>, page: u64) {
    match ranges.last_mut() {
        Some(last) if last.end() == page * PAGE_SIZE as u64 => last.count.0 += 1,
        _ => ranges.push(PageRange { start: PageAddr::from_index(page), count: PageCount(1) }),
    }
}

const _: () = assert!(REGION_BYTES == 2 << 20);
