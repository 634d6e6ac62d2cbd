//! The messages of CRIU's image files, as far as they matter here. Field numbers
//! are those of CRIU's `images/*.proto`; unknown fields are skipped on reading, so
//! only [`PagemapHead`] and [`PagemapEntry`], which are complete, may be written.

use prost::Message;

/// `pagemap_head`: which pages file the entries are about.
#[derive(Clone, PartialEq, Message)]
pub struct PagemapHead {
    /// The number in `pages-<n>.img`.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// `pagemap_entry`: consecutive pages; those flagged present are consecutive in
/// the pages file, in the order of the entries.
#[derive(Clone, PartialEq, Message)]
pub struct PagemapEntry {
    /// The first page's address.
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    /// The count before CRIU 4.1; 0 where `nr_pages` is there.
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    /// Before there were flags: the pages are in the parent dump.
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// `PE_*`.
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// How many pages.
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}

/// The pages are in the parent dump.
pub const PE_PARENT: u32 = 1 << 0;
/// The pages may be restored lazily.
pub const PE_LAZY: u32 = 1 << 1;
/// The pages are in the pages file.
pub const PE_PRESENT: u32 = 1 << 2;

impl PagemapEntry {
    /// How many pages, in whichever field the writing CRIU put it.
    pub fn pages(&self) -> u64 {
        self.nr_pages.unwrap_or(u64::from(self.compat_nr_pages))
    }

    /// The flags, in whichever field the writing CRIU put them.
    pub fn effective_flags(&self) -> u32 {
        match (self.in_parent, self.flags) {
            (Some(true), flags) => flags.unwrap_or(0) | PE_PARENT,
            (_, Some(flags)) => flags,
            (_, None) => PE_PRESENT,
        }
    }
}

/// `mm_entry`: an address space.
#[derive(Clone, PartialEq, Message)]
pub struct MmEntry {
    /// Its mappings, ascending; guard ranges follow as if they were mappings.
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<VmaEntry>,
}

/// `vma_entry`: a mapping.
#[derive(Clone, PartialEq, Message)]
pub struct VmaEntry {
    /// The first address.
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    /// The first address after it.
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    /// `PROT_*`.
    #[prost(uint32, required, tag = "5")]
    pub prot: u32,
    /// `MAP_*`.
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    /// `VMA_*`, CRIU's own classification.
    #[prost(uint32, required, tag = "7")]
    pub status: u32,
    /// One bit per `MADV_*` that was given and has to be given again.
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
}

/// `pstree_entry`: a process.
#[derive(Clone, PartialEq, Message)]
pub struct PstreeEntry {
    /// Its PID in its own namespace.
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    /// Its parent's.
    #[prost(uint32, required, tag = "2")]
    pub ppid: u32,
    /// Its process group.
    #[prost(uint32, required, tag = "3")]
    pub pgid: u32,
    /// Its session.
    #[prost(uint32, required, tag = "4")]
    pub sid: u32,
    /// Its threads, itself included.
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// `inventory_entry`: the dump as a whole.
#[derive(Clone, PartialEq, Message)]
pub struct InventoryEntry {
    /// The images' version.
    #[prost(uint32, required, tag = "1")]
    pub img_version: u32,
}

/// `core_entry`: a thread.
#[derive(Clone, PartialEq, Message)]
pub struct CoreEntry {
    /// The architecture: 1 is x86-64, 3 is aarch64.
    #[prost(int32, required, tag = "1")]
    pub mtype: i32,
    /// Registers on x86-64.
    #[prost(message, optional, tag = "2")]
    pub x86: Option<ThreadInfoX86>,
    /// What it shares with its process; only in the first thread's.
    #[prost(message, optional, tag = "3")]
    pub task: Option<TaskCoreEntry>,
    /// Registers on aarch64.
    #[prost(message, optional, tag = "8")]
    pub aarch64: Option<ThreadInfoAarch64>,
}

/// `task_core_entry`: what the threads of a process share.
#[derive(Clone, PartialEq, Message)]
pub struct TaskCoreEntry {
    /// 1 alive, 2 dead (a zombie), 3 stopped.
    #[prost(uint32, required, tag = "1")]
    pub task_state: u32,
}

/// The state of a process that has exited and is waited for.
pub const TASK_DEAD: u32 = 2;

/// `thread_info_x86`.
#[derive(Clone, PartialEq, Message)]
pub struct ThreadInfoX86 {
    /// General registers.
    #[prost(message, required, tag = "2")]
    pub gpregs: RegistersX86,
}

/// `user_x86_regs_entry`.
#[derive(Clone, PartialEq, Message)]
pub struct RegistersX86 {
    /// The stack pointer.
    #[prost(uint64, required, tag = "20")]
    pub sp: u64,
}

/// `thread_info_aarch64`.
#[derive(Clone, PartialEq, Message)]
pub struct ThreadInfoAarch64 {
    /// General registers.
    #[prost(message, required, tag = "3")]
    pub gpregs: RegistersAarch64,
}

/// `user_aarch64_regs_entry`.
#[derive(Clone, PartialEq, Message)]
pub struct RegistersAarch64 {
    /// The stack pointer.
    #[prost(uint64, required, tag = "2")]
    pub sp: u64,
}

impl CoreEntry {
    /// The thread's stack pointer; `None` for an architecture that is not known here.
    pub fn stack_pointer(&self) -> Option<u64> {
        match (&self.x86, &self.aarch64) {
            (Some(x86), _) => Some(x86.gpregs.sp),
            (_, Some(aarch64)) => Some(aarch64.gpregs.sp),
            _ => None,
        }
    }
}
