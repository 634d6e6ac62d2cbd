//! `PAGEMAP_SCAN` (Linux 6.7): finds pages by what the page table says of them
//! and, in the same step, write-protects what it found.

use std::fs::File;
use std::io;
use std::ops::{BitOr, Range};
use std::os::fd::AsRawFd;

const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;

/// A set of page properties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Categories(pub u64);

impl Categories {
    /// In a mapping that is under asynchronous write tracking.
    pub const TRACKED: Categories = Categories(1 << 0);
    /// Written since it was last protected, or never protected.
    pub const WRITTEN: Categories = Categories(1 << 1);
    /// A page of a file or of shared memory, not a private copy.
    pub const FILE: Categories = Categories(1 << 2);
    /// In memory.
    pub const PRESENT: Categories = Categories(1 << 3);
    /// In swap, or a marker in the page table.
    pub const SWAPPED: Categories = Categories(1 << 4);
    /// The kernel's page of zeroes.
    pub const ZERO_PFN: Categories = Categories(1 << 5);
    /// A guard (`MADV_GUARD_INSTALL`); newer than the rest.
    pub const GUARD: Categories = Categories(1 << 8);

    /// Whether all of `other` are in.
    pub const fn contains(self, other: Categories) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Categories {
    type Output = Categories;
    fn bitor(self, other: Categories) -> Categories {
        Categories(self.0 | other.0)
    }
}

/// Which pages to find.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    /// All of these...
    pub all: Categories,
    /// ...none of these...
    pub none: Categories,
    /// ...and one of these, unless empty.
    pub any: Categories,
    /// What to tell apart in the answer.
    pub tell: Categories,
}

/// Whether a scan changes what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Looks only.
    Look,
    /// Protects what it finds. `PermissionDenied` when part of the range is not
    /// tracked: what the call had protected until then is not reported.
    Protect,
}

/// Consecutive pages with the same properties.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

impl Region {
    /// The addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Of those asked to be told.
    pub fn categories(&self) -> Categories {
        Categories(self.categories)
    }
}

/// Room for the answers of one call, and the calls.
pub struct Scanner {
    regions: Vec<Region>,
}

impl Scanner {
    /// With room for `regions` in one call.
    pub fn new(regions: usize) -> Scanner {
        Scanner { regions: vec![Region::default(); regions.max(1)] }
    }

    /// Whether this kernel can tell `category`: a kernel that has never heard of
    /// it refuses the call.
    pub fn knows(&mut self, category: Categories) -> bool {
        let query = Query { none: category, any: Categories::PRESENT, ..Query::default() };
        let nothing = 0x1000..0x2000;
        File::open("/proc/self/pagemap")
            .is_ok_and(|pagemap| self.scan(&pagemap, &nothing, query, Effect::Look).is_ok())
    }

    /// Scans a part of `range` of the address space of `pagemap`
    /// (`/proc/PID/pagemap`), from its beginning: what was found, ascending, and
    /// where to go on; the end of `range` when done.
    pub fn scan(
        &mut self,
        pagemap: &File,
        range: &Range<u64>,
        query: Query,
        effect: Effect,
    ) -> io::Result<(&[Region], u64)> {
        let flags = match effect {
            Effect::Look => 0,
            Effect::Protect => WP_MATCHING | CHECK_WPASYNC,
        };
        let mut argument = Argument {
            size: size_of::<Argument>() as u64,
            flags,
            start: range.start,
            end: range.end,
            walk_end: 0,
            vec: self.regions.as_mut_ptr() as u64,
            vec_len: self.regions.len() as u64,
            max_pages: 0,
            category_inverted: query.none.0,
            category_mask: query.all.0 | query.none.0,
            category_anyof_mask: query.any.0,
            return_mask: query.tell.0,
        };
        // SAFETY: PAGEMAP_SCAN reads and writes one struct pm_scan_arg, as laid
        // out below, and writes at most `vec_len` regions to `vec`, which is that
        // long and borrowed mutably.
        let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        if found < 0 {
            return Err(io::Error::last_os_error());
        }
        let found = (found as usize).min(self.regions.len());
        // The kernel fills its own buffer of 512 regions again and again, and, when
        // the last time did not fill it (seen with Linux 6.18), leaves `walk_end`
        // where the time before had ended: short of regions that it reported and
        // protected. Going on from there would find them a second time.
        let reported = self.regions[..found].last().map_or(0, |last| last.end);
        let next = argument.walk_end.max(reported);
        // A kernel that gets nowhere must not make us spin, nor skip.
        if next <= range.start && range.start < range.end {
            return Err(io::Error::other("PAGEMAP_SCAN got nowhere"));
        }
        Ok((&self.regions[..found], next))
    }
}

#[repr(C)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
