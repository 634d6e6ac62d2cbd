//! Who the pager serves, worked out from what happened: by the pager that hears it,
//! entry for entry, and by its successor, from the ledger.

use super::ledger::{Entry, Ledger};
use super::pending::Pending;
use super::plan::Plan;
use crate::sys::twin::Number;
use crate::sys::uffd_fill::Event;
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// "ReSTore Finished": what CRIU sends last, where a PID could be (none is so large).
const RESTORE_FINISHED: i32 = 0x5253_5446;

/// What CRIU has told and handed over so far: a PID as a 32-bit integer and, unless
/// it is a zombie's (negative), a descriptor with one byte; at the end
/// [`RESTORE_FINISHED`].
#[derive(Debug)]
pub(super) struct Arrivals {
    /// What the plan has for tasks that CRIU has not handed over yet.
    waiting: Vec<(u32, Pending)>,
    /// The task whose descriptor comes next.
    expecting: Option<u32>,
    is_finished: bool,
}

/// What CRIU said next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A word, which counts already.
    Word,
    /// A descriptor: [`Arrivals::descriptor`] says whose.
    Descriptor(Number),
    /// Nothing more.
    End,
}

impl Arrivals {
    pub(super) fn new(plan: &Plan) -> Arrivals {
        let waiting = plan.spaces.iter().map(|space| (space.pid, Pending::new(&space.extents, &space.hot)));
        Arrivals { waiting: waiting.collect(), expecting: None, is_finished: false }
    }

    /// Whether a descriptor comes next, and not a word.
    fn expects_descriptor(&self) -> bool {
        self.expecting.is_some()
    }

    /// Whether the tasks are about to run, or do.
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Hears what comes next of CRIU's socket, through the ledger.
    pub(super) fn hear(&mut self, ledger: &mut Ledger, from: BorrowedFd<'_>) -> io::Result<Heard> {
        if self.expects_descriptor() {
            return ledger.descriptor(from).map(Heard::Descriptor);
        }
        Ok(match ledger.word(from)? {
            Some(word) => {
                self.word(word);
                Heard::Word
            }
            None => Heard::End,
        })
    }

    fn word(&mut self, word: i32) {
        match word {
            RESTORE_FINISHED => self.is_finished = true,
            pid => self.expecting = u32::try_from(pid).ok(),
        }
    }

    /// A descriptor came: whose it is, and what that task lacks.
    pub(super) fn descriptor(&mut self) -> (u32, Pending) {
        let pid = self.expecting.take().unwrap_or_default();
        let index = self.waiting.iter().position(|(waiting, _)| *waiting == pid);
        let pending = index.map(|index| self.waiting.swap_remove(index).1);
        if pending.is_none() {
            eprintln!("ferry pager: the plan has nothing for PID {pid}");
        }
        (pid, pending.unwrap_or_default())
    }
}

/// Whether others need the same content: set, for the whole family, at a fork.
#[derive(Clone, Debug, Default)]
pub(super) struct Family(Arc<AtomicBool>);

impl Family {
    pub(super) fn shares(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// A member forked.
    pub(super) fn grow(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A space as the ledger knows it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) pid: u32,
    pub(super) number: Number,
    pub(super) pending: Pending,
    pub(super) family: Family,
}

/// Works out all spaces from all entries, by their numbers. `None` stands for one
/// that was let go: its descriptor has been closed, which shows in that another
/// space has its number since (or, to be seen by the caller, nobody has).
pub(super) fn replay(arrivals: &mut Arrivals, entries: &[Entry]) -> Vec<Option<Member>> {
    let mut members: Vec<Member> = Vec::new();
    for entry in entries {
        match *entry {
            Entry::Word(word) => arrivals.word(word),
            Entry::Descriptor(number) => {
                let (pid, pending) = arrivals.descriptor();
                members.push(Member { pid, number, pending, family: Family::default() });
            }
            Entry::Event(space, event) => {
                let Some(member) = members.get_mut(space.0 as usize) else { continue };
                if let Event::Fork(number) = event {
                    member.family.grow();
                    let child = Member {
                        pid: member.pid,
                        number,
                        pending: member.pending.clone(),
                        family: member.family.clone(),
                    };
                    members.push(child);
                } else {
                    member.pending.apply(event);
                }
            }
        }
    }
    let owners: HashMap<Number, usize> =
        members.iter().enumerate().map(|(index, member)| (member.number, index)).collect();
    members
        .into_iter()
        .enumerate()
        .map(|(index, member)| (owners[&member.number] == index).then_some(member))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::LazySpace;
    use crate::lazy::ledger::SpaceNumber;
    use crate::lazy::plan::FillOptions;
    use crate::page_store::{Content, Extent};
    use ferry_transport::page::{PageAddr, PageRange};
    use ferry_transport::units::PageCount;

    const PAGE: u64 = 4096;

    fn plan(pids: &[u32]) -> Plan {
        let space = |(index, pid): (usize, &u32)| {
            let pages = PageRange { start: PageAddr::containing(16 * PAGE), count: PageCount(8) };
            let content = Content::Arena(index as u64 * 8 * PAGE);
            LazySpace { pid: *pid, extents: vec![Extent { pages, content }], hot: Vec::new() }
        };
        let spaces: Vec<LazySpace> = pids.iter().enumerate().map(space).collect();
        Plan { arena_len: pids.len() as u64 * 8 * PAGE, options: FillOptions::default(), spaces }
    }

    fn at(pages: std::ops::Range<u64>) -> (u64, u64) {
        (pages.start * PAGE, pages.end * PAGE)
    }

    #[test]
    fn a_child_lacks_what_its_parent_lacked_then() {
        let mut arrivals = Arrivals::new(&plan(&[7]));
        let ((start, end), (after, until)) = (at(16..18), at(20..21));
        let members = replay(
            &mut arrivals,
            &[
                Entry::Word(7),
                Entry::Descriptor(Number(30)),
                Entry::Event(SpaceNumber(0), Event::Unmap { start, end }),
                Entry::Event(SpaceNumber(0), Event::Fork(Number(31))),
                Entry::Event(SpaceNumber(0), Event::Remove { start: after, end: until }),
                Entry::Event(SpaceNumber(1), Event::Remap { from: 18 * PAGE, to: 40 * PAGE, len: PAGE }),
                Entry::Word(-9),
                Entry::Word(RESTORE_FINISHED),
            ],
        );
        let [Some(parent), Some(child)] = &members[..] else { panic!("{members:?}") };
        assert!(arrivals.is_finished() && !arrivals.expects_descriptor());
        assert_eq!((parent.pending.pages(), child.pending.pages()), (5, 6));
        assert!(child.pending.has_any(40 * PAGE, 41 * PAGE) && !parent.pending.has_any(40 * PAGE, 41 * PAGE));
        assert!(parent.family.shares() && child.family.shares());
    }

    #[test]
    fn a_number_belongs_to_whom_it_was_given_last() {
        let mut arrivals = Arrivals::new(&plan(&[7, 8]));
        let members = replay(
            &mut arrivals,
            &[
                Entry::Word(7),
                Entry::Descriptor(Number(30)),
                Entry::Word(8),
                Entry::Descriptor(Number(31)),
                // The first space was let go meanwhile.
                Entry::Event(SpaceNumber(1), Event::Fork(Number(30))),
                Entry::Word(9),
            ],
        );
        assert!(members[0].is_none() && members[1].is_some());
        assert_eq!(members[2].as_ref().unwrap().pid, 8);
        assert!(arrivals.expects_descriptor(), "killed between a PID and its descriptor");
    }
}
