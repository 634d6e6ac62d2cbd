//! From addresses to chunks: reads in large batches, finds the zeroes, hands over.

use super::buffers::{BUFFER, Buffer, BufferPool};
use super::owed::Owed;
use super::sent::{Fingerprint, SentRecord};
use super::space::Compared;
use super::zero::is_zero;
use crate::memory::{MemoryError, PageSink, RoundScan};
use crate::sys::process_memory::{MAX_PIECES, MemoryFile, read_pieces};
use crate::sys::procfs::maps::Permission;
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, Round, Run, RunKind, SpaceId};
use ferry_transport::units::PageCount;
use nix::sys::uio::RemoteIoVec;
use std::ops::Range;

const PAGE: u64 = PAGE_SIZE as u64;
/// A buffer with less room than this is handed over rather than filled up by
/// small reads.
const LITTLE_ROOM: usize = BUFFER / 4;
/// The most runs in a chunk. All 256 data pages can stand alone, and as many runs
/// of zeroes between them.
const MAX_RUNS: usize = 512;
/// Pages of zeroes after which a chunk is handed over, so that it says so in time
/// and its counts stay small: 256 MiB.
const MAX_ZERO_PAGES: u64 = 1 << 16;

/// What a page that cannot be read means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It went away meanwhile, or will be tried again: it is owed.
    IsOwed,
    /// Nothing can have gone away: an error.
    IsAnError,
}

/// Which of the pages that were found are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All: they are known to be dirty.
    All,
    /// Those that are not known to be what was last sent: nobody follows them.
    Changed,
}

/// What the emitters of a source share.
#[derive(Default)]
pub struct Shared {
    /// Where buffers come from.
    pub pool: BufferPool,
    /// What was last sent of pages that nobody follows.
    pub sent: SentRecord,
}

/// Part of a mapping, waiting to be read.
#[derive(Clone)]
struct Piece {
    range: Range<u64>,
    access: Permission,
    selection: Selection,
}

/// Reads the pages of one address space and hands them over.
pub struct Emitter<'a> {
    pid: i32,
    space: SpaceId,
    round: Round,
    memory: MemoryFile,
    sink: &'a mut dyn PageSink,
    shared: &'a mut Shared,
    scan: &'a mut RoundScan,
    unreadable: Unreadable,
    buffer: Buffer,
    runs: Vec<Run>,
    /// Pages in `runs` that were compared, as they will be when they are handed over.
    compared: Vec<(PageAddr, Fingerprint)>,
    /// What the comparisons found.
    outcome: Compared,
    queue: Vec<Piece>,
    queued: usize,
    zero_pages: u64,
    owed: Owed,
}

impl<'a> Emitter<'a> {
    /// For the pages of `space`, which is that of process `pid` now.
    #[allow(clippy::too_many_arguments, reason = "the parts of one context, named once")]
    pub fn new(
        pid: i32,
        space: SpaceId,
        round: Round,
        sink: &'a mut dyn PageSink,
        shared: &'a mut Shared,
        scan: &'a mut RoundScan,
        unreadable: Unreadable,
    ) -> std::io::Result<Emitter<'a>> {
        let memory = MemoryFile::of(pid)?;
        Ok(Emitter {
            pid,
            space,
            round,
            memory,
            sink,
            buffer: shared.pool.take(),
            shared,
            scan,
            unreadable,
            runs: Vec::new(),
            compared: Vec::new(),
            outcome: Compared::default(),
            queue: Vec::new(),
            queued: 0,
            zero_pages: 0,
            owed: Owed::default(),
        })
    }

    /// Notes that these pages were protected but will not be pushed.
    pub fn owe(&mut self, range: Range<u64>) {
        self.owed.add(range);
    }

    /// What the comparisons found so far.
    pub fn compared(&self) -> Compared {
        self.outcome
    }

    /// Ends, also after an error: what was pushed and not handed over.
    pub fn into_owed(mut self) -> Owed {
        for piece in std::mem::take(&mut self.queue) {
            self.owed.add(piece.range);
        }
        self.owe_runs();
        self.owed
    }

    /// Takes pages of a mapping. On an error everything of `range` that was not
    /// handed over is owed.
    pub fn push(
        &mut self,
        range: Range<u64>,
        access: Permission,
        selection: Selection,
    ) -> Result<(), MemoryError> {
        let mut at = range.start;
        while at < range.end {
            let room = BUFFER - self.buffer.filled() - self.queued;
            let length = (room as u64).min(range.end - at);
            self.queue.push(Piece { range: at..at + length, access, selection });
            self.queued += length as usize;
            at += length;
            let full = self.queued + self.buffer.filled() == BUFFER || self.queue.len() == MAX_PIECES;
            if full && let Err(cause) = self.read_queue() {
                self.owed.add(at..range.end);
                return Err(cause);
            }
        }
        Ok(())
    }

    /// As [`Emitter::push`], in a round, for pages that nobody follows. Those for
    /// which the record has no room would have to be sent at the freeze again.
    pub fn push_ahead(&mut self, range: Range<u64>, access: Permission) -> Result<(), MemoryError> {
        for part in self.shared.sent.room_in(self.space, &range) {
            self.push(part, access, Selection::Changed)?;
        }
        Ok(())
    }

    /// Reads and hands over what is left.
    pub fn flush(&mut self) -> Result<(), MemoryError> {
        self.read_queue()?;
        self.hand_over()
    }

    fn read_queue(&mut self) -> Result<(), MemoryError> {
        let queue = std::mem::take(&mut self.queue);
        self.queued = 0;
        // Where the next piece is read to; what is kept grows behind it.
        let mut offset = self.buffer.filled();
        let mut rest = &queue[..];
        let outcome = loop {
            let Some(first) = rest.first() else { break Ok(()) };
            let alike = |piece: &&Piece| (piece.access, piece.selection) == (first.access, first.selection);
            let group = rest.iter().take_while(alike).count();
            let (now, later) = rest.split_at(group);
            rest = later;
            let read = match first.access {
                Permission::Granted => self.read_group(now, offset),
                Permission::Denied => self.read_denied(now, offset),
            };
            offset += length_of(now);
            if let Err(cause) = read {
                break Err(cause);
            }
        };
        // An error of reading is one of the freeze, or of the whole process.
        if let Err(cause) = outcome {
            queue.into_iter().for_each(|piece| self.owed.add(piece.range));
            self.owe_runs();
            return Err(cause);
        }
        self.queue = queue;
        self.queue.clear();
        let full = BUFFER - self.buffer.filled() < LITTLE_ROOM
            || self.runs.len() >= MAX_RUNS / 2
            || self.zero_pages >= MAX_ZERO_PAGES;
        if full {
            self.hand_over()?;
        }
        Ok(())
    }

    fn read_group(&mut self, pieces: &[Piece], offset: usize) -> Result<(), MemoryError> {
        let remote: Vec<RemoteIoVec> = pieces
            .iter()
            .map(|p| RemoteIoVec {
                base: p.range.start as usize,
                len: (p.range.end - p.range.start) as usize,
            })
            .collect();
        let target = &mut self.buffer.bytes_mut()[offset..offset + length_of(pieces)];
        let mut read = read_pieces(self.pid, &remote, target).map_err(|cause| self.failed(cause))?;
        let mut offset = offset;
        for piece in pieces {
            let length = (piece.range.end - piece.range.start) as usize;
            let whole = read.min(length) / PAGE_SIZE * PAGE_SIZE;
            self.sort_out(piece.range.start, whole, offset, piece.selection);
            if whole < length {
                // Whatever stopped the call here may have stopped it for good:
                // the rest of this piece and the pieces after it go one by one.
                let rest = piece.range.start + whole as u64..piece.range.end;
                self.read_slowly(Piece { range: rest, ..piece.clone() }, offset + whole)?;
                read = 0;
            } else {
                read -= length;
            }
            offset += length;
        }
        Ok(())
    }

    fn read_denied(&mut self, pieces: &[Piece], offset: usize) -> Result<(), MemoryError> {
        let mut offset = offset;
        for piece in pieces {
            let length = (piece.range.end - piece.range.start) as usize;
            let target = &mut self.buffer.bytes_mut()[offset..offset + length];
            let read = self.memory.read_at(piece.range.start, target).map_err(|cause| self.failed(cause))?;
            let whole = read / PAGE_SIZE * PAGE_SIZE;
            self.sort_out(piece.range.start, whole, offset, piece.selection);
            if whole < length {
                let rest = piece.range.start + whole as u64..piece.range.end;
                self.read_slowly(Piece { range: rest, ..piece.clone() }, offset + whole)?;
            }
            offset += length;
        }
        Ok(())
    }

    /// Page by page, through the door that opens whatever exists. In a round, what
    /// fails is owed, and more and more of it without trying: a mapping that is
    /// gone is gone as a whole.
    fn read_slowly(&mut self, piece: Piece, offset: usize) -> Result<(), MemoryError> {
        let Piece { range, selection, .. } = piece;
        let mut at = range.start;
        let mut skip = PAGE;
        while at < range.end {
            let position = offset + (at - range.start) as usize;
            let page = &mut self.buffer.bytes_mut()[position..position + PAGE_SIZE];
            let read = self.memory.read_at(at, page).map_err(|cause| self.failed(cause))?;
            if read == PAGE_SIZE {
                self.sort_out(at, PAGE_SIZE, position, selection);
                at += PAGE;
                skip = PAGE;
            } else if self.unreadable == Unreadable::IsAnError {
                let cause = std::io::Error::other(format!("the page at {at:#x} exists and cannot be read"));
                return Err(self.failed(cause));
            } else {
                let gone = at..range.end.min(at + skip);
                at = gone.end;
                skip *= 2;
                self.owed.add(gone);
            }
        }
        Ok(())
    }

    /// Sorts pages that were read to `offset` into content and zeroes, and passes
    /// over what is not selected.
    fn sort_out(&mut self, address: u64, length: usize, offset: usize, selection: Selection) {
        for at in (0..length).step_by(PAGE_SIZE) {
            let position = offset + at;
            let page = PageAddr::containing(address + at as u64);
            let content = &self.buffer.bytes_mut()[position..position + PAGE_SIZE];
            let kind = if is_zero(content) { RunKind::Zero } else { RunKind::Data };
            if selection != Selection::All {
                let content = (kind == RunKind::Data).then_some(content);
                let fingerprint = self.shared.sent.fingerprint(content);
                self.outcome.known += PageCount(1);
                match self.shared.sent.last(self.space, page) {
                    Some(last) if last == fingerprint => {
                        self.scan.unchanged_pages += PageCount(1);
                        continue;
                    }
                    Some(_) => self.outcome.changed += PageCount(1),
                    None => {}
                }
                self.compared.push((page, fingerprint));
            }
            if kind == RunKind::Data {
                self.buffer.keep_page(position);
            }
            match self.runs.last_mut() {
                Some(run) if run.kind == kind && continues(run, page) => run.count += 1,
                _ => self.runs.push(Run { start: page, count: 1, kind }),
            }
            self.zero_pages += u64::from(kind == RunKind::Zero);
        }
    }

    fn hand_over(&mut self) -> Result<(), MemoryError> {
        if self.runs.is_empty() {
            return Ok(());
        }
        self.zero_pages = 0;
        let data = std::mem::replace(&mut self.buffer, self.shared.pool.take()).freeze();
        let chunk =
            PageChunk { space: self.space, round: self.round, runs: std::mem::take(&mut self.runs), data };
        let (data_pages, zero_pages) = (chunk.data_pages(), chunk.zero_pages());
        let runs = chunk.runs.clone();
        if let Err(closed) = self.sink.put(chunk) {
            self.runs = runs;
            self.owe_runs();
            return Err(closed.into());
        }
        self.scan.data_pages += data_pages;
        self.scan.zero_pages += zero_pages;
        self.scan.dirty_pages += PageCount(data_pages.0 + zero_pages.0);
        self.scan.chunks += 1;
        // Only now: the sink has them.
        for run in runs {
            let start = run.start.address();
            self.shared.sent.forget(self.space, start..start + u64::from(run.count) * PAGE);
        }
        for (page, fingerprint) in self.compared.drain(..) {
            self.shared.sent.note(self.space, page, fingerprint);
        }
        Ok(())
    }

    fn owe_runs(&mut self) {
        self.compared.clear();
        for run in std::mem::take(&mut self.runs) {
            let start = run.start.address();
            self.owed.add(start..start + u64::from(run.count) * PAGE);
        }
    }

    fn failed(&self, cause: std::io::Error) -> MemoryError {
        MemoryError::Process { pid: self.pid, what: "reading its memory", cause }
    }
}

fn length_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| (piece.range.end - piece.range.start) as usize).sum()
}

fn continues(run: &Run, page: PageAddr) -> bool {
    run.count < u32::MAX && run.start.address() + u64::from(run.count) * PAGE == page.address()
}
