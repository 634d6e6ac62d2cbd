//! The pager's part of [`crate::fuzzing`].

use super::ledger::Ledger;
use super::pending::Pending;
use super::plan::Plan;
use super::protocol::{self, Drained};
use super::roll::{self, Arrivals, Heard};
use crate::page_store::Extent;
use crate::sys::arena;
use ferry_transport::page::{PAGE_SIZE, PageRange};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// The most spaces of a plan here: a plan is ours, who hears of it is tested.
const MAX_SPACES: usize = 64;

/// What comes on `lazy-pages.socket`, up to its end or the first thing that is wrong.
/// `plan` is read as the engine's. What the ledger kept is what a successor learns.
pub fn lazy_pages_socket(plan: &[u8], criu: UnixStream) {
    let file = arena::memory_file(c"ferry-plan", 0).expect("a memory file");
    (&file).write_all(plan).expect("a plan of a few bytes");
    let Ok(plan) = Plan::read(&file) else { return };
    if plan.spaces.len() > MAX_SPACES {
        return;
    }
    let ledger_file = Ledger::create().expect("a ledger");
    let (mut ledger, _) = Ledger::open(&ledger_file).expect("an empty ledger");
    let mut arrivals = Arrivals::new(&plan);
    let (mut came, mut taken) = (0, Vec::new());
    loop {
        match arrivals.hear(&mut ledger, criu.as_fd()) {
            Ok(Heard::Word) => {}
            Ok(Heard::Descriptor(number)) => {
                let (_, pending) = arrivals.descriptor();
                came += pending.pages();
                // Ours since it came, whatever it is.
                taken.extend(number.adopt(""));
            }
            Ok(Heard::End) | Err(_) => break,
        }
    }
    drop(ledger);
    let (_, entries) = Ledger::open(&ledger_file).expect("the ledger again");
    let mut successor = Arrivals::new(&plan);
    let members = roll::replay(&mut successor, &entries);
    let known: u64 = members.iter().flatten().map(|member| member.pending.pages()).sum();
    assert_eq!((members.len(), known), (taken.len(), came), "the successor knows another roll");
    assert_eq!(successor.is_finished(), arrivals.is_finished());
}

/// A plan for processes 1 to `spaces`, of `pages` pages each, as the engine writes it.
pub fn plan(spaces: u64, pages: u64) -> Vec<u8> {
    let page = PAGE_SIZE as u64;
    let space = |pid| [pid, 1, 0, 16 * page, pages, (pid - 1) * pages * page];
    let head = [u64::from_le_bytes(*b"ferrypl1"), spaces * pages * page, 0, spaces];
    protocol::words(&head.into_iter().chain((1..=spaces).flat_map(space)).collect::<Vec<u64>>())
}

/// What the pager says to the engine.
pub fn pager_message(message: &[u8]) {
    if let Some(drained) = Drained::decode(message) {
        assert_eq!(Drained::decode(&drained.encode()), Some(drained));
    }
}

/// What happens to a space that the pager fills.
#[derive(Clone, Copy, Debug)]
pub enum PagerEvent {
    /// A page is waited for.
    Fault(u64),
    /// The background's turn, with at most so many bytes.
    Fill(u64),
    /// `munmap`, `madvise`.
    Gone(u64, u64),
    /// `mremap`: from, to, length.
    Moved(u64, u64, u64),
}

/// What the pager keeps of a space's missing pages, through any events. Each page
/// is brought or dropped at most once, and those that are left are counted.
pub fn pager(extents: &[Extent], hot: &[PageRange], events: impl IntoIterator<Item = PagerEvent>) {
    let mut pending = Pending::new(extents, hot);
    let all = pending.pages();
    let page = PAGE_SIZE as u64;
    let mut out = 0;
    for event in events {
        match event {
            PagerEvent::Fault(at) => {
                out += pending.take_within(at, at + page, page).map_or(0, |piece| piece.len / page);
            }
            PagerEvent::Fill(max) => {
                if let Some(batch) = pending.take_next(max) {
                    out += batch.pieces.iter().map(|piece| piece.len / page).sum::<u64>();
                    let _ = pending.settle(&batch);
                }
            }
            PagerEvent::Gone(from, to) => {
                out += pending.take_range(from, to).iter().map(|piece| piece.len / page).sum::<u64>();
            }
            PagerEvent::Moved(from, to, len) => {
                // What was mapped at the goal is gone first: the kernel says so before.
                out += pending.take_range(to, to + len).iter().map(|piece| piece.len / page).sum::<u64>();
                pending.remap(from, to, len);
            }
        }
        assert_eq!(pending.pages() + out, all, "pages are lost or doubled");
    }
}
