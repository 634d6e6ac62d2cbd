//! What a pager must not lose when it is killed, in a memory file that its
//! successor reads.
//!
//! Two things cannot be asked for again: what CRIU handed over, and what the kernel
//! said that a workload did to its mappings. The kernel lets a thread that calls
//! `munmap` go on as soon as the event has been *read*; a pager that was killed then
//! would leave nobody who knows, and its successor would bring pages that were given
//! up. So nothing is read into private memory and written down afterwards: the
//! kernel itself writes into the ledger ([`Landing`]), and its copy is the entry.
//! An entry counts from the instant at which it is not zero.
//!
//! ```text
//! head: totals    slot 0   slot 1   …   slot n          (first slot that is empty or a fault)
//!                 entry    entry        where the next thing lands
//! ```
//!
//! Faults land here too but need no keeping: the next thing takes their slot, and
//! after a death everybody who waits is woken and faults again. How far the fill has
//! come is not in here either: content that has been brought is punched out of the
//! arena, and bringing a page that is there already fails without harm.

use crate::sys::arena;
use crate::sys::landing::{Landed, Landing};
use crate::sys::twin::Number;
use crate::sys::uffd_fill::{EVENT_BYTES, Event};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many entries there can be: 1 GiB of a sparse file. Each stands for a system
/// call of the workload that waited for the pager, so that no fill lasts so long. A
/// full ledger does not end the work; a pager that is killed after that has no heir.
const SLOTS: usize = 1 << 24;

const WORD: u64 = 1;
const DESCRIPTOR: u64 = 2;
const EVENT: u64 = 3;

const FULL: usize = 0;
const FINISHED_AT: usize = 1;
const FIRST_TOTAL: usize = 2;

/// The spaces of a pager, in the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpaceNumber(pub(super) u32);

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// CRIU said this.
    Word(i32),
    /// CRIU handed this over: a new space.
    Descriptor(Number),
    /// A task of this space did something.
    Event(SpaceNumber, Event),
}

/// What is counted, all spaces and all pagers of a fill together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Total {
    /// Pages brought.
    Brought,
    /// Pages not needed any more.
    Dropped,
    /// Pages that nobody took.
    Lost,
    /// Faults served.
    Faults,
    /// Pagers that were killed.
    Killed,
}

/// Counts that survive the pager.
#[derive(Clone, Debug)]
pub(super) struct Totals(Arc<Landing>);

impl Totals {
    pub(super) fn add(&self, total: Total, count: u64) {
        self.word(total).fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self, total: Total) -> u64 {
        self.word(total).load(Ordering::Relaxed)
    }

    /// When the tasks were about to run, in µs of the machine's monotonic clock.
    pub(super) fn finished_at(&self) -> &AtomicU64 {
        self.0.head(FINISHED_AT)
    }

    fn word(&self, total: Total) -> &AtomicU64 {
        self.0.head(FIRST_TOTAL + total as usize)
    }
}

/// The ledger, open for the one that writes it.
#[derive(Debug)]
pub(super) struct Ledger {
    landing: Arc<Landing>,
    next: usize,
    spaces: u32,
}

impl Ledger {
    /// An empty one.
    pub(super) fn create() -> io::Result<File> {
        arena::memory_file(c"ferry-pager", Landing::size(SLOTS))
    }

    /// Opens it and says what is in it.
    pub(super) fn open(file: &File) -> io::Result<(Ledger, Vec<Entry>)> {
        let landing = Landing::map(file, SLOTS)?;
        if landing.head(FULL).load(Ordering::Acquire) != 0 {
            return Err(io::Error::other("the ledger was full: not all that happened is known"));
        }
        let entries: Vec<Entry> = (0..SLOTS).map_while(|index| entry(landing.get(index))).collect();
        let brings = |entry: &&Entry| matches!(entry, Entry::Descriptor(_) | Entry::Event(_, Event::Fork(_)));
        let spaces = entries.iter().filter(brings).count() as u32;
        Ok((Ledger { landing: Arc::new(landing), next: entries.len(), spaces }, entries))
    }

    /// Whether CRIU has said anything: from then on tasks may depend on the pager.
    pub(super) fn is_begun(file: &File) -> bool {
        Landing::map(file, 1).is_ok_and(|landing| landing.get(0).has_landed())
    }

    pub(super) fn totals(&self) -> Totals {
        Totals(Arc::clone(&self.landing))
    }

    /// The number of the space that came last.
    pub(super) fn latest(&self) -> SpaceNumber {
        SpaceNumber(self.spaces.saturating_sub(1))
    }

    /// Hears a word from CRIU, waiting for it; `None` when it is gone.
    pub(super) fn word(&mut self, from: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let size = std::mem::size_of::<i32>();
        match self.landing.read(self.next, (WORD, 0), from, size)? {
            0 => Ok(None),
            len if len == size => match entry(self.landing.get(self.next)) {
                Some(Entry::Word(word)) => {
                    self.keep();
                    Ok(Some(word))
                }
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "CRIU named no PID")),
            },
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes a descriptor from CRIU, waiting for it.
    pub(super) fn descriptor(&mut self, from: BorrowedFd<'_>) -> io::Result<Number> {
        let number = self.landing.receive(self.next, (DESCRIPTOR, 0), from)?;
        let number = number.ok_or(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))?;
        self.keep();
        self.spaces += 1;
        Ok(number)
    }

    /// Reads what happened in a space next; `None` when nothing did.
    pub(super) fn event(&mut self, space: SpaceNumber, from: BorrowedFd<'_>) -> io::Result<Option<Event>> {
        match self.landing.read(self.next, (EVENT, u64::from(space.0)), from, EVENT_BYTES) {
            Ok(EVENT_BYTES) => {}
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let event = event(&self.landing.get(self.next));
        if !matches!(event, Event::Fault(_)) {
            self.keep();
            self.spaces += u32::from(matches!(event, Event::Fork(_)));
        }
        Ok(Some(event))
    }

    fn keep(&mut self) {
        if self.next + 1 < SLOTS {
            self.next += 1;
        } else if self.landing.head(FULL).swap(1, Ordering::AcqRel) == 0 {
            eprintln!("ferry pager: the ledger is full; should this process be killed, memory is lost");
        }
    }
}

/// What a slot says, if anything that is kept.
fn entry(landed: Landed) -> Option<Entry> {
    if !landed.has_landed() {
        return None;
    }
    match landed.kind {
        WORD => {
            let [a, b, c, d, ..] = landed.bytes();
            Some(Entry::Word(i32::from_ne_bytes([a, b, c, d])))
        }
        DESCRIPTOR => landed.descriptor().map(Entry::Descriptor),
        EVENT => {
            let event = event(&landed);
            let space = SpaceNumber(landed.whose as u32);
            (!matches!(event, Event::Fault(_))).then_some(Entry::Event(space, event))
        }
        _ => None,
    }
}

fn event(landed: &Landed) -> Event {
    let bytes = landed.bytes();
    let mut message = [0; EVENT_BYTES];
    message.copy_from_slice(&bytes[..EVENT_BYTES]);
    Event::parse(&message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    /// What the kernel would say over a userfaultfd.
    fn message(kind: u8, words: [u64; 3]) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        words.iter().for_each(|word| message.extend(word.to_ne_bytes()));
        message
    }

    #[test]
    fn a_successor_reads_what_was_kept_and_goes_on() {
        let file = Ledger::create().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!Ledger::is_begun(&file));
        let unmap = Event::Unmap { start: 0x1000, end: 0x3000 };
        let remove = Event::Remove { start: 0x5000, end: 0x6000 };
        {
            let (mut ledger, entries) = Ledger::open(&file).unwrap();
            assert!(entries.is_empty());
            (&theirs).write_all(&9i32.to_ne_bytes()).unwrap();
            assert_eq!(ledger.word(ours.as_fd()).unwrap(), Some(9));
            (&theirs).write_all(&message(0x16, [0x1000, 0x3000, 0])).unwrap();
            assert_eq!(ledger.event(SpaceNumber(3), ours.as_fd()).unwrap(), Some(unmap));
            (&theirs).write_all(&message(0x12, [0, 0x7000, 0])).unwrap();
            assert_eq!(ledger.event(SpaceNumber(3), ours.as_fd()).unwrap(), Some(Event::Fault(0x7000)));
        }
        assert!(Ledger::is_begun(&file));
        let (mut ledger, entries) = Ledger::open(&file).unwrap();
        assert_eq!(entries, [Entry::Word(9), Entry::Event(SpaceNumber(3), unmap)]);
        (&theirs).write_all(&message(0x15, [0x5000, 0x6000, 0])).unwrap();
        assert_eq!(ledger.event(SpaceNumber(0), ours.as_fd()).unwrap(), Some(remove));
        drop(theirs);
        assert_eq!(ledger.word(ours.as_fd()).unwrap(), None, "gone, and nothing is kept of that");
        let (_, entries) = Ledger::open(&file).unwrap();
        assert_eq!(entries.last(), Some(&Entry::Event(SpaceNumber(0), remove)));
        assert_eq!(entries.len(), 3);
    }
}
