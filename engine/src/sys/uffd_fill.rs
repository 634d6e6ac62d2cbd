//! userfaultfd as CRIU hands it over: pages of another process that are missing
//! until we bring them, and the events that say how its mappings change.

use super::twin::Number;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03_u32 as libc::Ioctl;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04_u32 as libc::Ioctl;

/// The bytes of one message about an event.
pub const EVENT_BYTES: usize = 32;
/// What `/proc/PID/fd` says of such a descriptor.
pub const LINK: &str = "anon_inode:[userfaultfd]";
/// No page lies lower (`vm.mmap_min_addr` is at most this by default).
const LOWEST: u64 = 0x1_0000;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    zeropage: i64,
}

/// What a process that we serve did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// It forked; the kernel opened a descriptor that serves the child.
    Fork(Number),
    /// `len` bytes moved from one address to another.
    Remap {
        /// The old address.
        from: u64,
        /// The new one.
        to: u64,
        /// How many bytes.
        len: u64,
    },
    /// The content of this range is about to be dropped (`madvise`).
    Remove {
        /// The first address.
        start: u64,
        /// The first address after it.
        end: u64,
    },
    /// The range is no longer mapped.
    Unmap {
        /// The first address.
        start: u64,
        /// The first address after it.
        end: u64,
    },
    /// Something that this kernel says and we do not know.
    Unknown(u8),
}

/// How far a copy came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// All of it.
    All,
    /// This many bytes from the start; why it stopped shows when going on.
    Part(u64),
    /// The page at the start is there already.
    Exists,
    /// The mappings are changing: read events, then try again.
    Changing,
    /// No mapping that is ours covers the whole range.
    Unmapped,
    /// The address space is gone.
    SpaceGone,
}

/// A descriptor over which the missing pages of one address space are brought.
#[derive(Debug)]
pub struct FaultServer(OwnedFd);

impl From<OwnedFd> for FaultServer {
    fn from(fd: OwnedFd) -> FaultServer {
        FaultServer(fd)
    }
}

impl AsFd for FaultServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FaultServer {
    /// Puts `len` bytes from address `src` of this process at `dst` of the other
    /// and wakes whoever waits for them.
    pub fn copy(&self, dst: u64, src: u64, len: u64) -> io::Result<Filled> {
        let mut copy = Copy { dst, src, len, mode: 0, copy: 0 };
        // SAFETY: UFFDIO_COPY reads and writes one struct uffdio_copy, as laid out
        // here. It reads this process's memory at `src` by copy_from_user, which
        // fails on a bad address, and writes only the other process's memory.
        let status = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
        outcome(status, copy.copy, len)
    }

    /// Puts zeroes at `dst` of the other process and wakes whoever waits for them.
    pub fn zero(&self, dst: u64, len: u64) -> io::Result<Filled> {
        let mut zero = Zero { range: Range { start: dst, len }, mode: 0, zeropage: 0 };
        // SAFETY: UFFDIO_ZEROPAGE reads and writes one struct uffdio_zeropage, as
        // laid out here, and touches only the other process's memory.
        let status = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zero) };
        outcome(status, zero.zeropage, len)
    }

    /// Wakes whoever waits for a page of this range, which is there already.
    pub fn wake(&self, start: u64, len: u64) {
        let range = Range { start, len };
        // SAFETY: UFFDIO_WAKE reads one struct uffdio_range, as laid out here. It
        // fails only on a malformed range, and then there is nobody to wake.
        unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE, &raw const range) };
    }

    /// Leaves this range to the kernel: missing pages in it are zeroes from now on.
    pub fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        let range = Range { start, len };
        // SAFETY: UFFDIO_UNREGISTER reads one struct uffdio_range, as laid out here.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &raw const range) } == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    /// Wakes everybody who waits for any page: whoever read their faults is gone, so
    /// they must fault again. False where no attempt fitted the address space's size.
    pub fn wake_all(&self) -> bool {
        // The kernel refuses a range that leaves user space, and how large that is
        // depends on processor and kernel: the sizes that there are, largest first.
        [56, 52, 48, 47, 42, 39].iter().any(|bits| {
            let range = Range { start: LOWEST, len: (1 << bits) - 0x2000 - LOWEST };
            // SAFETY: UFFDIO_WAKE reads one struct uffdio_range, as laid out here.
            unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE, &raw const range) == 0 }
        })
    }
}

impl Event {
    /// Parses what was read from the descriptor.
    pub fn parse(message: &[u8; EVENT_BYTES]) -> Event {
        let word = |index: usize| {
            let mut bytes = [0u8; 8];
            bytes.copy_from_slice(&message[8 + 8 * index..16 + 8 * index]);
            u64::from_ne_bytes(bytes)
        };
        match message[0] {
            EVENT_PAGEFAULT => Event::Fault(word(1)),
            EVENT_FORK => Event::Fork(Number(word(0) as u32 as i32)),
            EVENT_REMAP => Event::Remap { from: word(0), to: word(1), len: word(2) },
            EVENT_REMOVE => Event::Remove { start: word(0), end: word(1) },
            EVENT_UNMAP => Event::Unmap { start: word(0), end: word(1) },
            other => Event::Unknown(other),
        }
    }
}

/// The kernel answers twice: in errno and, for why a copy of several pages
/// stopped, in the structure (bytes done, or a negative error number).
fn outcome(status: i32, done: i64, len: u64) -> io::Result<Filled> {
    if status == 0 {
        return Ok(Filled::All);
    }
    let error = io::Error::last_os_error();
    if done > 0 && (done as u64) < len {
        return Ok(Filled::Part(done as u64));
    }
    match error.raw_os_error() {
        Some(libc::EEXIST) => Ok(Filled::Exists),
        Some(libc::EAGAIN) => Ok(Filled::Changing),
        Some(libc::ENOENT) => Ok(Filled::Unmapped),
        Some(libc::ESRCH | libc::ENOSPC) => Ok(Filled::SpaceGone),
        _ => Err(error),
    }
}
