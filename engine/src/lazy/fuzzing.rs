//! The pager's part of [`crate::fuzzing`].

use super::pending::Pending;
use crate::page_store::Extent;
use ferry_transport::page::{PAGE_SIZE, PageRange};

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
