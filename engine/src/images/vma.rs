//! Which mappings CRIU restores the content of, and which of those it leaves to a
//! pager. The rules are CRIU's (`vma_entry_is_private`, `vma_entry_can_be_lazy`):
//! in a lazy restore it hands exactly the mappings that can be lazy to userfaultfd.

use super::proto::VmaEntry;

const STATUS_REGULAR: u32 = 1 << 0;
const STATUS_VSYSCALL: u32 = 1 << 2;
const STATUS_VDSO: u32 = 1 << 3;
const STATUS_FILE_PRIVATE: u32 = 1 << 6;
const STATUS_ANON_PRIVATE: u32 = 1 << 9;
const STATUS_VVAR: u32 = 1 << 12;
const STATUS_AIO_RING: u32 = 1 << 13;
const STATUS_SHADOW_STACK: u32 = 1 << 15;
const STATUS_GUARD: u32 = 1 << 16;
const STATUS_PLUGIN: u32 = 1 << 27;

const MAP_PRIVATE: u32 = 0x02;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_LOCKED: u32 = 0x2000;
const MAP_HUGETLB: u32 = 0x40000;

const MADV_WIPEONFORK: u32 = 18;

/// How the pages of a mapping get back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// CRIU registers it: a pager can bring its pages while the task runs.
    Lazy,
    /// Its pages must be in the pages file. Missing ones are zero.
    EagerAnonymous,
    /// Its pages must be in the pages file. Missing ones are the file's, so zero
    /// pages must be written out.
    EagerFile,
    /// CRIU takes no content for it.
    NotRestored,
}

impl VmaEntry {
    /// Whether it is no mapping but a range of guard pages, listed among them.
    pub fn is_guard(&self) -> bool {
        self.status & STATUS_GUARD != 0
    }

    /// Whether CRIU dumps all of it in any case (`should_dump_entire_vma`): nobody
    /// else needs to.
    pub fn is_dumped_whole(&self) -> bool {
        self.status & (STATUS_VDSO | STATUS_AIO_RING) != 0
    }

    /// How its pages get back in a lazy restore.
    pub fn treatment(&self) -> Treatment {
        let is = |status| self.status & status != 0;
        let private = is(STATUS_REGULAR) && is(STATUS_ANON_PRIVATE | STATUS_FILE_PRIVATE);
        if !(private || is(STATUS_SHADOW_STACK | STATUS_AIO_RING)) || is(STATUS_VVAR | STATUS_VSYSCALL) {
            return Treatment::NotRestored;
        }
        if self.flags & MAP_ANONYMOUS == 0 && !is(STATUS_SHADOW_STACK | STATUS_AIO_RING) {
            return Treatment::EagerFile;
        }
        let lazy = self.flags & MAP_ANONYMOUS != 0
            && self.flags & MAP_PRIVATE != 0
            && self.flags & (MAP_LOCKED | MAP_HUGETLB) == 0
            // CRIU would leave these to a pager too, but a child that is forked before a
            // page is there must find zeroes, and to a pager it looks like any child.
            && self.madv.unwrap_or(0) & (1 << MADV_WIPEONFORK) == 0
            // Restored by ways of their own, after or without registration.
            && !is(STATUS_VDSO | STATUS_SHADOW_STACK | STATUS_AIO_RING | STATUS_PLUGIN);
        if lazy { Treatment::Lazy } else { Treatment::EagerAnonymous }
    }
}
