//! Once upwards through the private mappings of one address space.

use super::emit::{Emitter, Selection};
use super::owed::{Owed, Standing};
use super::space::Age;
use crate::memory::MemoryError;
use crate::sys::pagemap_scan::{Categories, Effect, Query, Scanner};
use crate::sys::procfs::maps::{Backing, Mapping, Mappings, Sharing};
use crate::sys::userfaultfd::WriteTracking;
use ferry_transport::page::{PAGE_SIZE, PageRange};
use ferry_transport::units::PageCount;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What a scan leaves out beside pages that do not exist.
#[derive(Clone, Copy, Debug)]
pub struct Exclusions(Categories);

impl Exclusions {
    /// As far as this kernel can tell pages apart.
    pub fn known_to(scanner: &mut Scanner) -> Exclusions {
        // The kernel's page of zeroes is as good as no page. Guards are CRIU's;
        // a kernel that has them without telling is one on which reading fails.
        let guard = if scanner.knows(Categories::GUARD) { Categories::GUARD } else { Categories::default() };
        Exclusions(Categories::ZERO_PFN | guard)
    }

    /// Of a mapping: of a file's, only the copies that the process made by writing.
    fn for_mapping(self, mapping: &Mapping) -> Categories {
        match mapping.backing {
            Backing::File => self.0 | Categories::FILE,
            Backing::Anonymous | Backing::Kernel => self.0,
        }
    }
}

const EXISTS: Categories = Categories(Categories::PRESENT.0 | Categories::SWAPPED.0);

/// The address space of a process, open for scanning.
pub struct Sweep<'a> {
    pid: i32,
    pagemap: File,
    scanner: &'a mut Scanner,
    exclusions: Exclusions,
    owed: Owed,
    /// Time spent in scans and registrations.
    pub scanning: Duration,
    /// Mappings that cannot be tracked.
    pub untracked: Untracked,
}

/// Mappings that cannot be tracked, and why the first of them cannot.
#[derive(Debug, Default)]
pub struct Untracked {
    /// How many.
    pub mappings: u64,
    /// The first.
    pub first: Option<String>,
}

impl<'a> Sweep<'a> {
    /// Of the address space that `pid` runs in now. `owed` is dirty in any case.
    pub fn of(
        pid: i32,
        scanner: &'a mut Scanner,
        exclusions: Exclusions,
        mut owed: Owed,
    ) -> io::Result<Sweep<'a>> {
        owed.normalize();
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        let (scanning, untracked) = (Duration::ZERO, Untracked::default());
        Ok(Sweep { pid, pagemap, scanner, exclusions, owed, scanning, untracked })
    }

    /// What is owed that this sweep did not come to.
    pub fn remaining_owed(&self, from: u64) -> impl Iterator<Item = Range<u64>> {
        let parts = self.owed.split(&(from..u64::MAX));
        parts.into_iter().filter(|(_, standing)| *standing == Standing::Owed).map(|(range, _)| range)
    }

    /// The private mappings, ascending, none overlapping another even if they
    /// change while they are read.
    fn private_mappings(
        &self,
    ) -> Result<impl Iterator<Item = Result<Mapping, MemoryError>> + use<>, MemoryError> {
        let pid = self.pid;
        let failed = move |cause| MemoryError::Process { pid, what: "reading its mappings", cause };
        let mut swept = 0;
        Ok(Mappings::of(pid).map_err(failed)?.filter_map(move |mapping| {
            let mut mapping = match mapping {
                Ok(mapping) => mapping,
                Err(cause) => return Some(Err(failed(cause))),
            };
            mapping.range.start = mapping.range.start.max(swept);
            if mapping.range.is_empty()
                || mapping.sharing == Sharing::Shared
                || mapping.backing == Backing::Kernel
            {
                return None;
            }
            swept = mapping.range.end;
            Some(Ok(mapping))
        }))
    }

    /// Sends what is dirty, protecting it again. With an error, what was not sent
    /// is owed by `emitter` or not yet protected; the second value is how far the
    /// sweep came. Of what is not tracked, all that changed is dirty.
    pub fn round(
        &mut self,
        tracking: Option<&WriteTracking>,
        age: Age,
        emitter: &mut Emitter<'_>,
    ) -> (Result<(), MemoryError>, u64) {
        let mut reached = 0;
        let mut sweep = || {
            for mapping in self.private_mappings()? {
                let mapping = mapping?;
                // Owed parts of this mapping are in the emitter's hands from here.
                reached = mapping.range.end;
                match tracking {
                    Some(tracking) => self.sweep_mapping(&mapping, tracking, age, emitter)?,
                    None => self.compare(&mapping, mapping.range.clone(), emitter)?,
                }
            }
            emitter.flush()
        };
        let outcome = sweep();
        if outcome.is_ok() {
            // What is owed and not mapped any more is gone.
            reached = u64::MAX;
        }
        (outcome, reached)
    }

    fn sweep_mapping(
        &mut self,
        mapping: &Mapping,
        tracking: &WriteTracking,
        age: Age,
        emitter: &mut Emitter<'_>,
    ) -> Result<(), MemoryError> {
        let mut at = mapping.range.start;
        for (part, standing) in self.owed.split(&mapping.range) {
            at = match self.send(mapping, part.clone(), dirty(standing), Effect::Protect, emitter) {
                Ok(()) => part.end,
                Err(Interrupted::Untracked(from)) => {
                    at = from;
                    break;
                }
                Err(Interrupted::By(cause)) => {
                    self.owe_parts(part.end..mapping.range.end, emitter);
                    return Err(cause);
                }
            };
        }
        if at == mapping.range.end {
            return Ok(());
        }
        // (Part of) the mapping is new: it is all dirty from here on, also because
        // what the failed call had protected it did not report.
        match self.register(tracking, &mapping.range, age) {
            Ok(()) => match self.send(mapping, at..mapping.range.end, any(), Effect::Protect, emitter) {
                Ok(()) => return Ok(()),
                Err(Interrupted::Untracked(from)) => {
                    emitter.owe(at..from);
                    at = from;
                    self.note_untracked(mapping, "it changed meanwhile");
                }
                Err(Interrupted::By(cause)) => {
                    emitter.owe(at..mapping.range.end);
                    return Err(cause);
                }
            },
            Err(cause) => self.note_untracked(mapping, &cause.to_string()),
        }
        // Protected by a call that did not tell, perhaps: owed until it is tracked.
        emitter.owe(at..mapping.range.end);
        self.compare(mapping, at..mapping.range.end, emitter)
    }

    /// Sends what changed of a part that is not tracked.
    fn compare(
        &mut self,
        mapping: &Mapping,
        part: Range<u64>,
        emitter: &mut Emitter<'_>,
    ) -> Result<(), MemoryError> {
        match self.send(mapping, part, any(), Effect::Look, emitter) {
            Ok(()) | Err(Interrupted::Untracked(_)) => Ok(()),
            Err(Interrupted::By(cause)) => Err(cause),
        }
    }

    /// Keeps parts owed that an error keeps us from reaching.
    fn owe_parts(&self, range: Range<u64>, emitter: &mut Emitter<'_>) {
        for (part, standing) in self.owed.split(&range) {
            if standing == Standing::Owed {
                emitter.owe(part);
            }
        }
    }

    fn register(&mut self, tracking: &WriteTracking, range: &Range<u64>, age: Age) -> io::Result<()> {
        let started = Instant::now();
        let mut registered = tracking.register(range);
        if registered.is_ok() && age == Age::Swept {
            // Pages that were protected elsewhere and moved here by mremap keep
            // their marks on some kernels; with them they would read as clean.
            registered = tracking.unprotect(range);
        }
        self.scanning += started.elapsed();
        registered
    }

    fn note_untracked(&mut self, mapping: &Mapping, why: &str) {
        self.untracked.mappings += 1;
        self.untracked.first.get_or_insert_with(|| {
            let Range { start, end } = mapping.range;
            format!(
                "process {}: {start:x}-{end:x} {}: {why}",
                self.pid,
                String::from_utf8_lossy(&mapping.name)
            )
        });
    }

    /// Scans a part of a mapping and hands what it finds to the emitter. With an
    /// error, all of the part that the emitter did not get is owed, but not in
    /// case of `Untracked`, which says where to go on.
    fn send(
        &mut self,
        mapping: &Mapping,
        part: Range<u64>,
        all: Categories,
        effect: Effect,
        emitter: &mut Emitter<'_>,
    ) -> Result<(), Interrupted> {
        let none = self.exclusions.for_mapping(mapping);
        let query = Query { all, none, any: EXISTS, tell: Categories::WRITTEN };
        let mut at = part.start;
        while at < part.end {
            let started = Instant::now();
            let scanned = self.scanner.scan(&self.pagemap, &(at..part.end), query, effect);
            self.scanning += started.elapsed();
            let (regions, next) = match scanned {
                Ok(found) => found,
                Err(cause) if cause.raw_os_error() == Some(libc::EPERM) => {
                    return Err(Interrupted::Untracked(at));
                }
                Err(cause) => {
                    emitter.owe(at..part.end);
                    let pid = self.pid;
                    return Err(Interrupted::By(MemoryError::Process {
                        pid,
                        what: "scanning its pages",
                        cause,
                    }));
                }
            };
            let mut outcome = Ok(());
            for region in regions {
                outcome = match (outcome, effect) {
                    (Ok(()), Effect::Protect) => emitter.push(region.range(), mapping.read, Selection::All),
                    (Ok(()), Effect::Look) => emitter.push_ahead(region.range(), mapping.read),
                    (Err(cause), _) => {
                        emitter.owe(region.range());
                        Err(cause)
                    }
                };
            }
            if let Err(cause) = outcome {
                self.owe_parts(next..part.end, emitter);
                return Err(Interrupted::By(cause));
            }
            at = next;
        }
        Ok(())
    }

    /// How many pages a round would send, changing nothing: first those that are
    /// tracked, then how many are not and would be compared.
    pub fn count(&mut self, tracking: Option<&WriteTracking>) -> Result<(PageCount, PageCount), MemoryError> {
        let (mut dirty_pages, mut untracked) = (PageCount(0), PageCount(0));
        for mapping in self.private_mappings()? {
            let mapping = mapping?;
            let none = self.exclusions.for_mapping(&mapping);
            for (part, standing) in self.owed.split(&mapping.range) {
                let all = if tracking.is_some() { dirty(standing) } else { any() };
                let query = Query { all, none, any: EXISTS, tell: Categories::TRACKED };
                self.look(&part, query, |range, categories| {
                    let pages = PageCount((range.end - range.start) / PAGE_SIZE as u64);
                    match tracking.is_some() && categories.contains(Categories::TRACKED) {
                        true => dirty_pages += pages,
                        false => untracked += pages,
                    }
                    Ok(())
                })?;
            }
        }
        Ok((dirty_pages, untracked))
    }

    /// Frozen: sends what is dirty and says what exists. One scan tells both.
    pub fn finish(
        &mut self,
        tracking: Option<&WriteTracking>,
        emitter: &mut Emitter<'_>,
    ) -> Result<Vec<PageRange>, MemoryError> {
        let mut present: Vec<PageRange> = Vec::new();
        let owed = std::mem::take(&mut self.owed);
        for mapping in self.private_mappings()? {
            let mapping = mapping?;
            let none = self.exclusions.for_mapping(&mapping);
            let tell = Categories::WRITTEN | Categories::TRACKED | Categories::SWAPPED;
            let query = Query { all: any(), none, any: EXISTS, tell };
            self.look(&mapping.range, query, |range, categories| {
                extend(&mut present, &range);
                if tracking.is_none() || !categories.contains(Categories::TRACKED) {
                    return emitter.push(range, mapping.read, Selection::Changed);
                }
                // In a file's mapping, what reads as swapped may be a marker that
                // a dropped copy left behind: only the content tells.
                let doubtful = mapping.backing == Backing::File && categories.contains(Categories::SWAPPED);
                if doubtful || categories.contains(Categories::WRITTEN) {
                    return emitter.push(range, mapping.read, Selection::All);
                }
                for (part, standing) in owed.split(&range) {
                    if standing == Standing::Owed {
                        emitter.push(part, mapping.read, Selection::All)?;
                    }
                }
                Ok(())
            })?;
        }
        emitter.flush()?;
        Ok(present)
    }

    fn look(
        &mut self,
        range: &Range<u64>,
        query: Query,
        mut found: impl FnMut(Range<u64>, Categories) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut at = range.start;
        while at < range.end {
            let started = Instant::now();
            let scanned = self.scanner.scan(&self.pagemap, &(at..range.end), query, Effect::Look);
            self.scanning += started.elapsed();
            let pid = self.pid;
            let (regions, next) =
                scanned.map_err(|cause| MemoryError::Process { pid, what: "scanning its pages", cause })?;
            for region in regions {
                found(region.range(), region.categories())?;
            }
            at = next;
        }
        Ok(())
    }
}

enum Interrupted {
    /// From this address on, the mapping is not tracked, or what the scan did is unknown.
    Untracked(u64),
    By(MemoryError),
}

fn dirty(standing: Standing) -> Categories {
    match standing {
        Standing::Settled => Categories::WRITTEN,
        Standing::Owed => any(),
    }
}

fn any() -> Categories {
    Categories::default()
}

fn extend(present: &mut Vec<PageRange>, range: &Range<u64>) {
    match present.last_mut() {
        Some(last) if last.end() == range.start => {
            last.count += PageCount((range.end - range.start) / PAGE_SIZE as u64);
        }
        _ => present.push(PageRange::between(range.start, range.end)),
    }
}
