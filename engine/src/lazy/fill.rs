//! Bringing pages into one address space, by faults and in the background.
//!
//! Order matters against the workload's own changes. The kernel holds an event
//! (say, `munmap`) until it is read, and refuses copies meanwhile; once it is read,
//! the change is done and a page copied by the old state of things would be wrong.
//! So copies hold `gate` for reading and reading events holds it for writing: while
//! events are read and applied, no page is on its way. The lock prefers writers,
//! and background batches are small, so that a fault waits for one batch at most.

use super::ledger::{Ledger, SpaceNumber, Total, Totals};
use super::pending::{Pending, Piece};
use super::roll::Family;
use crate::sys::arena::ArenaMap;
use crate::sys::twin::Number;
use crate::sys::uffd_fill::{Event, FaultServer, Filled, LINK};
use ferry_transport::page::{PAGE_SIZE, PageAddr};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// One background copy: about 50 µs, which is what a fault may have to wait.
pub(super) const BATCH: u64 = 256 << 10;

/// How many parts of the arena are given back between two batches, and how much of a
/// large one: about 100 µs each.
const FREED_AT_ONCE: (usize, u64) = (64, 1 << 20);

/// How many events are served before the fill gets a turn: threads that change
/// mappings without end would otherwise hold it up without end.
const EVENTS_AT_ONCE: usize = 256;

/// With a page that is waited for come those of its block.
const AROUND: u64 = 32 << 10;

/// One address space and the descriptor over which it is filled.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) pid: u32,
    pub(super) number: SpaceNumber,
    pub(super) uffd: FaultServer,
    gate: RwLock<()>,
    pending: Mutex<Pending>,
    /// Parts of the arena (offset, length) that nobody needs any more.
    idle: Mutex<Vec<(u64, u64)>>,
    gone: AtomicBool,
    family: Family,
    arena: Arc<ArenaMap>,
    totals: Totals,
}

/// How a background step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Pages were brought.
    Progress,
    /// The mappings are changing: events must be read first.
    Blocked,
    /// Nothing is left to bring.
    Complete,
}

/// How many of the events that are there were served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// All of them.
    All,
    /// So many that it is the fill's turn.
    Many,
}

/// What becomes of content that has been brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arena {
    /// Its memory is given back, unless a relative still needs it.
    Release,
    /// The same, but by a fill thread: somebody waits.
    Later,
    /// The caller sees to it.
    Keep,
}

impl Space {
    /// A space of this number, which lacks `pending`.
    pub(super) fn new(
        number: SpaceNumber,
        (pid, pending, family): (u32, Pending, Family),
        uffd: FaultServer,
        arena: Arc<ArenaMap>,
        totals: Totals,
    ) -> Space {
        Space {
            pid,
            number,
            uffd,
            gate: RwLock::new(()),
            pending: Mutex::new(pending),
            idle: Mutex::default(),
            gone: AtomicBool::new(false),
            family,
            arena,
            totals,
        }
    }

    /// Whether no page is missing any more.
    pub(super) fn is_whole(&self) -> bool {
        self.gone.load(Ordering::Acquire) || self.pending().is_empty()
    }

    /// Whether, beside that, everything has been given back.
    pub(super) fn is_complete(&self) -> bool {
        self.is_whole() && lock(&self.idle).is_empty()
    }

    /// Brings one background batch.
    pub(super) fn step(&self) -> io::Result<Step> {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let freed = self.free_idle()?;
        if self.gone.load(Ordering::Acquire) {
            return Ok(freed);
        }
        let Some(batch) = self.pending().take_next(BATCH) else { return Ok(freed) };
        // A span is freed as a whole, and so may be mapped as a whole: filling its
        // holes costs nothing that lasts.
        let span = batch.span.filter(|_| !self.family.shares());
        let arena = if span.is_some() { Arena::Keep } else { Arena::Release };
        span.iter().for_each(|&(offset, len)| self.arena.populate(offset, len));
        let mut pieces = batch.pieces.iter();
        for &piece in pieces.by_ref() {
            let step = self.bring(piece, arena);
            if !matches!(step, Ok(Step::Progress)) {
                let mut pending = self.pending();
                pieces.for_each(|&piece| pending.put(piece));
                pending.settle(&batch);
                return step;
            }
        }
        let settled = self.pending().settle(&batch);
        if let (Some((offset, len)), true) = (span, settled) {
            self.arena.punch(offset, len)?;
        }
        Ok(Step::Progress)
    }

    /// Gives idle content back, as much as a batch brings and more calls than faults
    /// make meanwhile; `Complete` when there was none.
    fn free_idle(&self) -> io::Result<Step> {
        let mut step = Step::Complete;
        for _ in 0..FREED_AT_ONCE.0 {
            let Some((offset, len)) = lock(&self.idle).pop() else { break };
            step = Step::Progress;
            let part = len.min(FREED_AT_ONCE.1);
            if !self.family.shares() {
                self.arena.punch(offset, part)?;
            }
            if part < len {
                lock(&self.idle).push((offset + part, len - part));
                break;
            }
        }
        Ok(step)
    }

    /// Notes that nobody needs the content of these pieces any more.
    fn set_idle(&self, pieces: &[Piece]) {
        // The last part is extended rather than joined by a neighbour: faults come in runs.
        let mut idle = lock(&self.idle);
        for piece in pieces {
            match idle.last_mut() {
                Some((offset, len)) if *offset + *len == piece.offset => *len += piece.len,
                _ => idle.push((piece.offset, piece.len)),
            }
        }
    }

    /// Makes one part of these pieces, which have been brought just now, and of what
    /// lies between them, if that belongs between them in the address space too.
    fn join_idle<'a>(&self, pieces: impl Iterator<Item = &'a Piece> + Clone) {
        let distance = |piece: &Piece| piece.address.wrapping_sub(piece.offset);
        let Some(first) = pieces.clone().next().map(distance) else { return };
        if pieces.clone().any(|piece| distance(piece) != first) || self.pending().has_moved() {
            return;
        }
        let start = pieces.clone().map(|piece| piece.offset).min().unwrap_or_default();
        let end = pieces.map(|piece| piece.offset + piece.len).max().unwrap_or_default();
        let mut idle = lock(&self.idle);
        while idle.pop_if(|(offset, len)| start <= *offset && *offset + *len <= end).is_some() {}
        idle.push((start, end - start));
    }

    /// Reads and applies what happened; adds the children that were forked, also
    /// when it fails. Nothing is on its way into the space meanwhile.
    pub(super) fn serve(&self, ledger: &mut Ledger, children: &mut Vec<Space>) -> io::Result<Served> {
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..EVENTS_AT_ONCE {
            let Some(event) = ledger.event(self.number, self.uffd.as_fd())? else { return Ok(Served::All) };
            match event {
                Event::Fault(address) => self.fault(address).inspect_err(|_| {
                    // Not forgotten: it faults again.
                    self.uffd.wake(PageAddr::containing(address).address(), PAGE_SIZE as u64);
                })?,
                Event::Fork(number) => children.push(self.child(number, ledger.latest())?),
                Event::Unknown(kind) => {
                    return Err(io::Error::other(format!("unknown userfaultfd event {kind:#x}")));
                }
                change => {
                    let dropped = self.pending().apply(change);
                    let bytes: u64 = dropped.iter().map(|piece| piece.len).sum();
                    self.count(Total::Dropped, bytes);
                    self.set_idle(&dropped);
                }
            }
        }
        Ok(Served::Many)
    }

    /// Whether the address space still exists.
    pub(super) fn probe(&self) {
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        // No page of a plan is that low; wherever it is not mapped nothing happens.
        if let Ok(Filled::SpaceGone) = self.uffd.zero(0x1_0000, PAGE_SIZE as u64) {
            self.space_gone();
        }
    }

    /// Brings the page that is waited for, then the rest of its block.
    fn fault(&self, address: u64) -> io::Result<()> {
        self.totals.add(Total::Faults, 1);
        let page = PageAddr::containing(address).address();
        let size = PAGE_SIZE as u64;
        let wanted = self.pending().take_within(page, page + size, size);
        let step = match wanted {
            Some(wanted) => self.bring(wanted, Arena::Later)?,
            None => self.zero(page)?,
        };
        if step != Step::Progress {
            // It faults again, and by then the change has been read.
            self.uffd.wake(page, size);
            return Ok(());
        }
        let block = page / AROUND * AROUND;
        let around = self.pending().take_range(block, block + AROUND);
        let mut all = true;
        for &piece in &around {
            all &= self.bring(piece, Arena::Later)? == Step::Progress;
        }
        if all && !self.pending().has_any(block, block + AROUND) {
            self.join_idle(wanted.iter().chain(&around));
            // What still lacks in the block is in no plan, so it is zero.
            for page in (block..block + AROUND).step_by(PAGE_SIZE) {
                self.zero(page)?;
            }
        }
        Ok(())
    }

    /// Lets a page that no plan has read as zeroes.
    fn zero(&self, page: u64) -> io::Result<Step> {
        match self.uffd.zero(page, PAGE_SIZE as u64)? {
            Filled::All => Ok(Step::Progress),
            Filled::SpaceGone => {
                self.space_gone();
                Ok(Step::Complete)
            }
            // There already, or not ours, or changing.
            _ => Ok(Step::Blocked),
        }
    }

    /// Copies a piece. What could not be copied for now is pending again.
    fn bring(&self, piece: Piece, arena: Arena) -> io::Result<Step> {
        let source = self.arena.address(piece.offset, piece.len);
        let source = source.ok_or_else(|| io::Error::other("the plan points outside the arena"))?;
        if arena == Arena::Release {
            self.arena.populate(piece.offset, piece.len);
        }
        let (mut rest, mut whole) = (Some(piece), true);
        // Whether the last attempt at just this piece found no mapping for it.
        let mut refused = false;
        while let Some(now) = rest {
            let again = std::mem::take(&mut refused);
            let src = source + (now.offset - piece.offset);
            rest = match self.uffd.copy(now.address, src, now.len) {
                Ok(Filled::All) => {
                    self.count(Total::Brought, now.len);
                    None
                }
                Ok(Filled::Part(bytes)) => {
                    self.count(Total::Brought, bytes);
                    now.after(bytes)
                }
                Ok(Filled::Exists) => {
                    // Written by the workload since its fork or mapping: newer than ours.
                    self.uffd.wake(now.address, PAGE_SIZE as u64);
                    self.count(Total::Dropped, PAGE_SIZE as u64);
                    now.after(PAGE_SIZE as u64)
                }
                Ok(Filled::Changing) => {
                    self.pending().put(now);
                    return Ok(Step::Blocked);
                }
                // The kernel looks for changes first and for the mapping then: one that is
                // being moved away in between is not found either. Until its event is
                // read, which the gate rules out, a second attempt is told of the change.
                Ok(Filled::Unmapped) if !again => {
                    refused = true;
                    Some(now)
                }
                // A copy must lie in one mapping, and the workload may have split it.
                Ok(Filled::Unmapped) if now.len > PAGE_SIZE as u64 => {
                    let half = (now.len / 2).next_multiple_of(PAGE_SIZE as u64);
                    let tail = now.after(half);
                    whole = false;
                    tail.into_iter().for_each(|tail| self.pending().put(tail));
                    Some(Piece { len: half.min(now.len), ..now })
                }
                Ok(Filled::Unmapped) => {
                    self.count(Total::Lost, now.len);
                    tracing::error!(pid = self.pid, address = now.address, "no mapping takes this page");
                    None
                }
                Ok(Filled::SpaceGone) => {
                    self.pending().put(now);
                    self.space_gone();
                    return Ok(Step::Complete);
                }
                Err(error) => {
                    self.pending().put(now);
                    return Err(error);
                }
            };
        }
        match arena {
            Arena::Release if whole && !self.family.shares() => self.arena.punch(piece.offset, piece.len)?,
            Arena::Later if whole => self.set_idle(&[piece]),
            _ => {}
        }
        Ok(Step::Progress)
    }

    /// The child lacks exactly what its parent lacks now: copies into the parent
    /// were refused from before its page tables were duplicated until this event
    /// was read.
    fn child(&self, number: Number, space: SpaceNumber) -> io::Result<Space> {
        self.family.grow();
        let uffd = number.adopt(LINK).ok_or_else(|| io::Error::other("a fork came without a descriptor"))?;
        let state = (self.pid, self.pending().clone(), self.family.clone());
        Ok(Space::new(space, state, uffd.into(), Arc::clone(&self.arena), self.totals.clone()))
    }

    fn space_gone(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            let pieces = self.pending().take_range(0, u64::MAX);
            self.count(Total::Dropped, pieces.iter().map(|piece| piece.len).sum());
            self.set_idle(&pieces);
        }
    }

    fn count(&self, total: Total, bytes: u64) {
        self.totals.add(total, bytes / PAGE_SIZE as u64);
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
