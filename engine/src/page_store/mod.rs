//! Where the destination keeps pages until the restore: every page of the
//! workload, the newest content of each, in memory that another process can take
//! over without a copy.
//!
//! ```text
//! chunk (space, round, runs, data)          arena: a sparse memory file
//!        |                                  +--------+--------+--------+--
//!        v         region of 2 MiB          | piece  | piece  | piece  |
//!   (space, address / 2 MiB) -> marks[512]  | 2 MiB  | 2 MiB  | 2 MiB  |
//!                               piece ----->+--------+--------+--------+--
//! ```
//!
//! The first page with content in a region gives the region a piece of the arena;
//! neighbours in the address space stay neighbours there, so that they are later
//! handed over in large copies. A piece is a range of a sparse file: pages that
//! never came cost nothing.
//!
//! Chunks may come on any stream in any order: a page of an older round never
//! replaces one of a newer.

mod region;
mod seal;

pub use seal::{Content, Extent, SealError, Sealed, SealedSpace};

use crate::sys::arena;
use ferry_transport::page::{MAX_CHUNK_PAGES, PAGE_SIZE, PageAddr, PageChunk, Round, Run, RunKind, SpaceId};
use ferry_transport::units::{Bytes, PageCount};
use ferry_transport::wire::control::RoundTotals;
pub(crate) use region::REGION_BYTES;
use region::{REGION_COST, REGION_PAGES, Region};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The first address that no page may have: the end of user space with five-level
/// page tables.
pub const ADDRESS_LIMIT: u64 = 1 << 56;

/// The most rounds of one migration: bounds what round numbers make us remember.
pub const MAX_ROUNDS: u32 = 1 << 16;

/// Why a chunk was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The chunk contradicts itself.
    #[error("malformed page chunk of space {}, round {}: {what}", space.0, round.0)]
    Malformed {
        /// Whose.
        space: SpaceId,
        /// Of which round.
        round: Round,
        /// In what way.
        what: &'static str,
    },
    /// It does not fit. Nothing of the page that did not fit was stored.
    #[error("the pages do not fit: {held} held, {limit} allowed")]
    Full {
        /// What the store holds, its own book-keeping included.
        held: Bytes,
        /// What it may hold.
        limit: Bytes,
    },
    /// The store has been sealed: nothing more can come.
    #[error("pages came after the final state")]
    Sealed,
    /// The kernel gave no memory, or took none back.
    #[error("page store: {0}")]
    Memory(#[from] std::io::Error),
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Pages with content.
    pub data_pages: PageCount,
    /// Pages known to be zero.
    pub zero_pages: PageCount,
    /// Memory: content and book-keeping.
    pub memory: Bytes,
}

type Regions = HashMap<SpaceId, BTreeMap<u64, Arc<Mutex<Region>>>>;

/// Takes the pages of a migration. Shared by all streams.
#[derive(Debug)]
pub struct PageStore {
    arena: Arc<File>,
    arena_size: u64,
    next_piece: AtomicU64,
    limit: Bytes,
    memory: AtomicU64,
    data_pages: AtomicU64,
    zero_pages: AtomicU64,
    regions: RwLock<Regions>,
    /// Held for reading while a chunk goes in; true once sealed.
    sealed: RwLock<bool>,
    rounds: Mutex<BTreeMap<Round, RoundTotals>>,
}

impl PageStore {
    /// A store that takes up to `limit` of memory, its own book-keeping (0.1 % of
    /// the touched address space) included. Nothing is allocated yet.
    pub fn new(limit: Bytes) -> Result<PageStore, StoreError> {
        // Every region that gets a piece is paid for with REGION_COST, which bounds
        // how many pieces there can be.
        let arena_size = (limit.0 / REGION_COST).saturating_add(1).saturating_mul(REGION_BYTES);
        let arena_size = arena_size.min(i64::MAX as u64 / 2 / REGION_BYTES * REGION_BYTES);
        let arena = arena::memory_file(c"ferry-pages", 0)?;
        Ok(PageStore {
            arena: Arc::new(arena),
            arena_size,
            next_piece: AtomicU64::new(0),
            limit,
            memory: AtomicU64::new(0),
            data_pages: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
            regions: RwLock::default(),
            sealed: RwLock::new(false),
            rounds: Mutex::default(),
        })
    }

    /// Stores a chunk. On an error the pages stored so far stay; the migration
    /// cannot go on with this store.
    pub fn put(&self, chunk: &PageChunk) -> Result<(), StoreError> {
        check_chunk(chunk)?;
        let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        if *sealed {
            return Err(StoreError::Sealed);
        }
        let mut data = &chunk.data[..];
        for run in &chunk.runs {
            let content = match run.kind {
                RunKind::Zero => None,
                RunKind::Data => {
                    let (head, tail) = data.split_at(run.count as usize * PAGE_SIZE);
                    data = tail;
                    Some(head)
                }
            };
            self.put_run(chunk.space, chunk.round, *run, content)?;
        }
        let mut rounds = lock(&self.rounds);
        let totals = rounds.entry(chunk.round).or_insert(RoundTotals {
            round: chunk.round,
            chunks: 0,
            data_pages: PageCount(0),
            zero_pages: PageCount(0),
        });
        totals.chunks += 1;
        totals.data_pages += chunk.data_pages();
        totals.zero_pages += chunk.zero_pages();
        Ok(())
    }

    /// What has arrived of a round, to be compared with what the source sent.
    /// Pages of a newer round that were there before count too.
    pub fn totals(&self, round: Round) -> RoundTotals {
        let nothing = RoundTotals { round, chunks: 0, data_pages: PageCount(0), zero_pages: PageCount(0) };
        lock(&self.rounds).get(&round).copied().unwrap_or(nothing)
    }

    /// What the store holds now.
    pub fn held(&self) -> Held {
        Held {
            data_pages: PageCount(self.data_pages.load(Ordering::Relaxed)),
            zero_pages: PageCount(self.zero_pages.load(Ordering::Relaxed)),
            memory: Bytes(self.memory.load(Ordering::Relaxed)),
        }
    }

    fn put_run(
        &self,
        space: SpaceId,
        round: Round,
        run: Run,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let first = run.start.index();
        let end = first + u64::from(run.count);
        let mut page = first;
        while page < end {
            let within = (page % REGION_PAGES) as usize;
            let count = (REGION_PAGES as usize - within).min((end - page) as usize);
            let region = self.region(space, page / REGION_PAGES)?;
            let mut region = lock(&region);
            match content {
                None => self.put_zero(&mut region, within, count, round)?,
                Some(content) => {
                    let from = (page - first) as usize * PAGE_SIZE;
                    let part = &content[from..from + count * PAGE_SIZE];
                    self.put_data(&mut region, within, part, round)?;
                }
            }
            page += count as u64;
        }
        Ok(())
    }

    fn put_data(
        &self,
        region: &mut Region,
        within: usize,
        content: &[u8],
        round: Round,
    ) -> Result<(), StoreError> {
        let count = content.len() / PAGE_SIZE;
        for (start, len) in region.replaceable(within, count, round) {
            let grown = region.without_data(start, len);
            self.charge(grown as u64 * PAGE_SIZE as u64)?;
            let stored = self.piece(region).and_then(|piece| {
                let from = (start - within) * PAGE_SIZE;
                let offset = piece + (start * PAGE_SIZE) as u64;
                Ok(self.arena.write_all_at(&content[from..from + len * PAGE_SIZE], offset)?)
            });
            if let Err(error) = stored {
                self.memory.fetch_sub(grown as u64 * PAGE_SIZE as u64, Ordering::Relaxed);
                return Err(error);
            }
            let zeroes = region.zeroes(start, len);
            region.mark(start, len, round, RunKind::Data);
            self.data_pages.fetch_add(grown as u64, Ordering::Relaxed);
            self.zero_pages.fetch_sub(zeroes as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn put_zero(
        &self,
        region: &mut Region,
        within: usize,
        count: usize,
        round: Round,
    ) -> Result<(), StoreError> {
        for (start, len) in region.replaceable(within, count, round) {
            let zeroes = region.zeroes(start, len);
            let content = len - region.without_data(start, len);
            if let (1.., Some(piece)) = (content, region.piece) {
                arena::punch(
                    std::os::fd::AsFd::as_fd(&*self.arena),
                    piece + (start * PAGE_SIZE) as u64,
                    (len * PAGE_SIZE) as u64,
                )?;
                self.memory.fetch_sub((content * PAGE_SIZE) as u64, Ordering::Relaxed);
                self.data_pages.fetch_sub(content as u64, Ordering::Relaxed);
            }
            region.mark(start, len, round, RunKind::Zero);
            self.zero_pages.fetch_add((len - zeroes) as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The region's piece of the arena, allotted at its first page with content.
    fn piece(&self, region: &mut Region) -> Result<u64, StoreError> {
        if let Some(piece) = region.piece {
            return Ok(piece);
        }
        let piece = self.next_piece.fetch_add(REGION_BYTES, Ordering::Relaxed);
        if piece >= self.arena_size {
            return Err(self.full());
        }
        region.piece = Some(piece);
        Ok(piece)
    }

    fn region(&self, space: SpaceId, index: u64) -> Result<Arc<Mutex<Region>>, StoreError> {
        let find = |regions: &Regions| regions.get(&space).and_then(|regions| regions.get(&index)).cloned();
        if let Some(region) = find(&self.regions.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(region);
        }
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = find(&regions) {
            return Ok(region);
        }
        self.charge(REGION_COST)?;
        let region = Arc::new(Mutex::new(Region::default()));
        regions.entry(space).or_default().insert(index, Arc::clone(&region));
        Ok(region)
    }

    /// Takes `bytes` of the allowance, or refuses before anything is allocated.
    fn charge(&self, bytes: u64) -> Result<(), StoreError> {
        self.memory
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|held| *held <= self.limit.0)
            })
            .map(|_| ())
            .map_err(|_| self.full())
    }

    fn full(&self) -> StoreError {
        StoreError::Full { held: Bytes(self.memory.load(Ordering::Relaxed)), limit: self.limit }
    }
}

fn check_chunk(chunk: &PageChunk) -> Result<(), StoreError> {
    let malformed = |what| Err(StoreError::Malformed { space: chunk.space, round: chunk.round, what });
    if chunk.round.0 >= MAX_ROUNDS {
        return malformed("absurd round number");
    }
    let (mut free, mut data_pages) = (0, 0usize);
    for run in &chunk.runs {
        let end = run.start.index() + u64::from(run.count);
        if run.count == 0 {
            return malformed("an empty run");
        }
        if run.start.index() < free {
            return malformed("runs are not ascending and disjoint");
        }
        if run.start != PageAddr::containing(run.start.address()) {
            return malformed("an address that is not a page's");
        }
        if end > ADDRESS_LIMIT / PAGE_SIZE as u64 {
            return malformed("an address beyond user space");
        }
        if run.kind == RunKind::Data {
            data_pages = data_pages.saturating_add(run.count as usize);
        }
        free = end;
    }
    if data_pages > MAX_CHUNK_PAGES {
        return malformed("more pages than a chunk may have");
    }
    if chunk.data.len() != data_pages * PAGE_SIZE {
        return malformed("content and runs differ in length");
    }
    Ok(())
}

/// A panic while a lock is held leaves counts that are wrong at most, never memory
/// that is: later users go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
