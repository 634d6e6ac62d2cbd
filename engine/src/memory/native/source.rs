//! The memory source: whole trees, round after round.

use super::emit::{Emitter, Shared, Unreadable};
use super::owed::Owed;
use super::space::{Age, Compared, Identity, Space, Tracking, follow};
use super::sweep::{Exclusions, Sweep, Untracked};
use crate::memory::{FrozenSpace, MemoryError, MemorySource, PageSink, ProcessSet, RoundScan};
use crate::sys::inject::InjectionError;
use crate::sys::pagemap_scan::Scanner;
use crate::sys::pidfd::{AddressSpaces, compare_address_spaces};
use crate::sys::procfs::children::is_gone;
use crate::sys::procfs::stat::{self, Stat};
use ferry_transport::page::{Round, SpaceId};
use ferry_transport::units::PageCount;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Regions that one scan can report: 96 KiB of room. Small answers of fragmented
/// heaps would cost one call per handful of pages.
const REGIONS: usize = 4096;
/// Notes in a round's report.
const MAX_NOTES: usize = 32;

/// Follows a process tree without stopping it but once per process.
pub struct NativeSource {
    processes: Box<dyn ProcessSet>,
    helper_exe: PathBuf,
    spaces: Vec<Space>,
    next_space: u32,
    scanner: Scanner,
    exclusions: Exclusions,
    shared: Shared,
}

/// What a first round does when a process refuses to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The round fails: another way to follow can still be chosen.
    IsAnError,
    /// It is noted; the process is read and compared in every round.
    IsNoted,
}

impl NativeSource {
    /// For the processes of a set. `helper_exe` is started with
    /// [`crate::sys::inject::HELPER_VERB`] to make a process trackable and must
    /// then call [`crate::sys::inject::helper_main`]; usually `/proc/self/exe`.
    pub fn new(processes: Box<dyn ProcessSet>, helper_exe: PathBuf) -> NativeSource {
        let mut scanner = Scanner::new(REGIONS);
        let exclusions = Exclusions::known_to(&mut scanner);
        NativeSource {
            processes,
            helper_exe,
            spaces: Vec::new(),
            next_space: 0,
            scanner,
            exclusions,
            shared: Shared::default(),
        }
    }

    /// Every live process of the set, with what `/proc` says of it.
    fn live_processes(&self) -> Result<Vec<(i32, Stat)>, MemoryError> {
        let listed = match self.processes.processes() {
            Ok(listed) => listed,
            Err(cause) if is_gone(&cause) => return Err(MemoryError::WorkloadExited),
            Err(cause) => {
                return Err(MemoryError::Process { pid: 0, what: "listing the tree's processes", cause });
            }
        };
        let mut live = Vec::with_capacity(listed.len());
        for pid in listed {
            match stat::of(pid) {
                Ok(stat) if !stat.state.is_dead() => live.push((pid, stat)),
                Ok(_) => {}
                Err(cause) if is_gone(&cause) => {}
                Err(cause) => return Err(MemoryError::Process { pid, what: "reading its state", cause }),
            }
        }
        if live.is_empty() { Err(MemoryError::WorkloadExited) } else { Ok(live) }
    }

    /// Makes the list of spaces that of the processes: forgets what is gone, adds
    /// what is new, not followed yet.
    /// Tells the processes that are known but not as they are now: they run another
    /// program, or are about to be gone.
    fn match_spaces(&mut self, live: &[(i32, Stat)], notes: &mut Notes) -> Vec<i32> {
        let mut changed = Vec::new();
        let mut old = std::mem::take(&mut self.spaces);
        for (pid, stat) in live {
            let identity = Identity::of(stat);
            let known = old.iter().position(|space| space.pid == *pid).map(|at| old.swap_remove(at));
            match known {
                Some(space) if space.is_of(*pid, identity) => self.spaces.push(space),
                other => {
                    if let Some(gone) = other {
                        self.shared.sent.forget_space(gone.id);
                        changed.push(gone.pid);
                    }
                    let id = SpaceId(self.next_space);
                    self.next_space += 1;
                    let (tracking, age, owed) = (Tracking::Pending, Age::Fresh, Owed::default());
                    let compared = Compared::default();
                    self.spaces.push(Space { id, pid: *pid, identity, tracking, age, owed, compared });
                }
            }
        }
        for space in old {
            self.shared.sent.forget_space(space.id);
            notes.add(format!("process {} exited", space.pid));
        }
        changed
    }

    /// Brings pending spaces under tracking.
    fn follow_pending(
        &mut self,
        live: &[(i32, Stat)],
        changed: &[i32],
        refusal: Refusal,
        scan: &mut RoundScan,
        notes: &mut Notes,
    ) -> Result<(), MemoryError> {
        for at in 0..self.spaces.len() {
            let pid = self.spaces[at].pid;
            if !matches!(self.spaces[at].tracking, Tracking::Pending) {
                continue;
            }
            if let Some(owner) = self.sharer(at, live) {
                notes.add(format!("process {pid} shares the memory of {owner}; read at the freeze"));
                // A vfork child goes on to its own program soon: stays pending.
                continue;
            }
            match follow(pid, &self.helper_exe) {
                Ok((tracking, stopped)) => {
                    scan.injected += 1;
                    scan.frozen = scan.frozen.max(stopped);
                    self.spaces[at].tracking = Tracking::Followed(tracking);
                    if changed.contains(&pid) {
                        notes.add(format!("process {pid} is running another program now"));
                    }
                }
                // The next round will not see it.
                Err(InjectionError::Exited) => notes.add(format!("process {pid} exited")),
                Err(InjectionError::NotNow(why)) => {
                    notes.add(format!("process {pid} is not followed yet: {why}"));
                }
                Err(why @ (InjectionError::Refused(_) | InjectionError::Helper(_))) => {
                    if refusal == Refusal::IsAnError {
                        let cause = io::Error::other(why.to_string());
                        return Err(MemoryError::Process { pid, what: "bringing it under tracking", cause });
                    }
                    notes.add(format!(
                        "process {pid} cannot be followed; it is read whole, and sent where it changed: {why}"
                    ));
                    self.spaces[at].tracking = Tracking::Impossible;
                }
            }
        }
        Ok(())
    }

    /// The followed process whose memory the one `at` shares, if its parent is one.
    fn sharer(&self, at: usize, live: &[(i32, Stat)]) -> Option<i32> {
        let pid = self.spaces[at].pid;
        let parent = live.iter().find(|(other, _)| *other == pid)?.1.parent;
        let shares = self.spaces.iter().any(|space| space.pid == parent)
            && compare_address_spaces(pid, parent).ok()? == AddressSpaces::Shared;
        shares.then_some(parent)
    }

    fn sweep_space(
        &mut self,
        at: usize,
        round: Round,
        sink: &mut dyn PageSink,
        scan: &mut RoundScan,
        untracked: &mut Untracked,
    ) -> Result<(), MemoryError> {
        let space = &mut self.spaces[at];
        let pid = space.pid;
        let failed = |cause| MemoryError::Process { pid, what: "opening its memory", cause };
        let tracking = match &space.tracking {
            Tracking::Followed(tracking) => Some(tracking),
            Tracking::Impossible => None,
            // The next round may follow it, and sends all of it then.
            Tracking::Pending => return Ok(()),
        };
        let owed = std::mem::take(&mut space.owed);
        let mut sweep = match Sweep::of(pid, &mut self.scanner, self.exclusions, owed.clone()) {
            Ok(sweep) => sweep,
            Err(cause) => {
                space.owed = owed;
                return Err(failed(cause));
            }
        };
        let emitter = Emitter::new(pid, space.id, round, sink, &mut self.shared, scan, Unreadable::IsOwed);
        let mut emitter = match emitter {
            Ok(emitter) => emitter,
            Err(cause) => {
                space.owed = owed;
                return Err(failed(cause));
            }
        };
        let (outcome, reached) = sweep.round(tracking, space.age, &mut emitter);
        space.compared = emitter.compared();
        space.owed = emitter.into_owed();
        sweep.remaining_owed(reached).for_each(|range| space.owed.add(range));
        space.age = Age::Swept;
        scan.scan += sweep.scanning;
        untracked.mappings += sweep.untracked.mappings;
        if untracked.first.is_none() {
            untracked.first = sweep.untracked.first.take();
        }
        outcome
    }

    fn finish_space(
        &mut self,
        at: usize,
        round: Round,
        sink: &mut dyn PageSink,
        scan: &mut RoundScan,
    ) -> Result<FrozenSpace, MemoryError> {
        let space = &mut self.spaces[at];
        let pid = space.pid;
        let failed = |cause| MemoryError::Process { pid, what: "opening its memory", cause };
        let tracking = match &space.tracking {
            Tracking::Followed(tracking) => Some(tracking),
            Tracking::Pending | Tracking::Impossible => None,
        };
        // Kept: a freeze that fails is followed by another one, or by rounds.
        let owed = space.owed.clone();
        let mut sweep = Sweep::of(pid, &mut self.scanner, self.exclusions, owed).map_err(failed)?;
        let mut emitter =
            Emitter::new(pid, space.id, round, sink, &mut self.shared, scan, Unreadable::IsAnError)
                .map_err(failed)?;
        let present = sweep.finish(tracking, &mut emitter)?;
        scan.scan += sweep.scanning;
        Ok(FrozenSpace { space: space.id, pid, present })
    }
}

impl MemorySource for NativeSource {
    fn round(&mut self, round: Round, sink: &mut dyn PageSink) -> Result<RoundScan, MemoryError> {
        let mut scan = RoundScan::default();
        let mut notes = Notes::default();
        let mut untracked = Untracked::default();
        let live = self.live_processes()?;
        let changed = self.match_spaces(&live, &mut notes);
        let refusal = if round == Round(0) { Refusal::IsAnError } else { Refusal::IsNoted };
        self.follow_pending(&live, &changed, refusal, &mut scan, &mut notes)?;
        for at in 0..self.spaces.len() {
            match self.sweep_space(at, round, sink, &mut scan, &mut untracked) {
                Ok(()) => {}
                // The next round finds out what became of it.
                Err(MemoryError::Process { pid, cause, .. }) if is_going(pid, &cause) => {
                    notes.add(format!("process {pid} exited during the round"));
                }
                Err(cause) => return Err(cause),
            }
        }
        notes.add_untracked(untracked);
        scan.notes = notes.lines();
        Ok(scan)
    }

    fn peek(&mut self) -> Result<PageCount, MemoryError> {
        let mut pages = PageCount(0);
        for (pid, stat) in self.live_processes()? {
            let identity = Identity::of(&stat);
            let space = self.spaces.iter().find(|space| space.is_of(pid, identity));
            let owed = space.map(|space| space.owed.clone()).unwrap_or_default();
            let tracking = match space.map(|space| &space.tracking) {
                Some(Tracking::Followed(tracking)) => Some(tracking),
                _ => None,
            };
            let counted = Sweep::of(pid, &mut self.scanner, self.exclusions, owed)
                .map_err(|cause| MemoryError::Process { pid, what: "opening its memory", cause })
                .and_then(|mut sweep| sweep.count(tracking));
            let compared = space.map(|space| space.compared).unwrap_or_default();
            match counted {
                Ok((dirty, untracked)) => {
                    pages += dirty;
                    pages += compared.expected_of(untracked);
                }
                Err(MemoryError::Process { cause, .. }) if is_going(pid, &cause) => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(pages)
    }

    fn finish(
        &mut self,
        round: Round,
        sink: &mut dyn PageSink,
    ) -> Result<(RoundScan, Vec<FrozenSpace>), MemoryError> {
        let mut scan = RoundScan { frozen: Duration::ZERO, ..RoundScan::default() };
        let mut notes = Notes::default();
        let live = self.live_processes()?;
        self.match_spaces(&live, &mut notes);
        // A stop-and-copy follows nothing: then there is nothing to be told.
        let was_followed = self.spaces.iter().any(|space| space.age == Age::Swept);
        let mut frozen = Vec::with_capacity(self.spaces.len());
        for at in 0..self.spaces.len() {
            if was_followed && matches!(self.spaces[at].tracking, Tracking::Pending) {
                notes.add(format!("process {} was not followed: all of it was sent", self.spaces[at].pid));
            }
            frozen.push(self.finish_space(at, round, sink, &mut scan)?);
        }
        scan.notes = notes.lines();
        Ok((scan, frozen))
    }

    fn disarm(&mut self) {
        // Closing the descriptors lifts every protection.
        self.spaces.clear();
        self.shared.sent.clear();
    }
}

/// Whether a process is exiting or has exited. It gives its memory up, which then
/// cannot be opened (ESRCH), a moment before its state says so.
fn is_going(pid: i32, refusal: &io::Error) -> bool {
    is_gone(refusal)
        || match stat::of(pid) {
            Ok(stat) => stat.state.is_dead(),
            Err(cause) => is_gone(&cause),
        }
}

/// Notes for the report, a bounded number.
#[derive(Default)]
struct Notes {
    lines: Vec<String>,
    more: usize,
}

impl Notes {
    fn add(&mut self, line: String) {
        if self.lines.len() < MAX_NOTES {
            self.lines.push(line);
        } else {
            self.more += 1;
        }
    }

    fn add_untracked(&mut self, untracked: Untracked) {
        let Some(first) = untracked.first else { return };
        let others = untracked.mappings.saturating_sub(1);
        self.add(format!("mapping that cannot be tracked; it is read whole, and sent where it changed: {first} ({others} more)"));
    }

    fn lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} more notes", self.more));
        }
        self.lines
    }
}
