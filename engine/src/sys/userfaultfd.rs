//! userfaultfd in its asynchronous write-protect mode (Linux 6.7): the kernel
//! lifts the protection of a page at the first write by itself, nobody waits,
//! and the missing protection is the mark that the page was written.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_WRITEPROTECT: libc::Ioctl = 0xc018_aa06_u32 as libc::Ioctl;

/// The flags with which the tracked process makes it: close-on-exec,
/// non-blocking, and `UFFD_USER_MODE_ONLY`, which needs no privilege.
pub const CREATION_FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | 1;

/// Write tracking of one address space; ends, without a trace in it, when dropped.
#[derive(Debug)]
pub struct WriteTracking(OwnedFd);

/// Whether the address space of a [`WriteTracking`] still exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceState {
    /// Some process runs in it.
    Alive,
    /// Its last process exited or went on to another program.
    Gone,
}

impl WriteTracking {
    /// Turns a fresh userfaultfd, made in the address space to be followed, into
    /// its tracking. `InvalidInput` before Linux 6.7.
    pub fn enable(fd: OwnedFd) -> io::Result<WriteTracking> {
        #[repr(C)]
        struct Api {
            api: u64,
            features: u64,
            ioctls: u64,
        }
        let features = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: UFFDIO_API reads and writes one struct uffdio_api, as laid out here.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
        check(status)?;
        Ok(WriteTracking(fd))
    }

    /// Puts the mappings in `range` under tracking; no page of it is protected
    /// yet. Pages keep reading as written until a scan protects them.
    pub fn register(&self, range: &Range<u64>) -> io::Result<()> {
        #[repr(C)]
        struct Register {
            start: u64,
            len: u64,
            mode: u64,
            ioctls: u64,
        }
        let len = range.end.saturating_sub(range.start);
        let mut register = Register { start: range.start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER reads and writes one struct uffdio_register, as
        // laid out here; the addresses are of the other address space and only
        // marked there.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })
    }

    /// Lifts every protection in `range`: all its pages read as written.
    pub fn unprotect(&self, range: &Range<u64>) -> io::Result<()> {
        #[repr(C)]
        struct WriteProtect {
            start: u64,
            len: u64,
            mode: u64,
        }
        let len = range.end.saturating_sub(range.start);
        let mut protect = WriteProtect { start: range.start, len, mode: 0 };
        // SAFETY: UFFDIO_WRITEPROTECT reads one struct uffdio_writeprotect, as
        // laid out here.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut protect) })
    }

    /// Whether the address space is still there.
    pub fn space(&self) -> SpaceState {
        // A page that nobody can have mapped: an address space that is alive
        // answers ENOENT, a dead one ESRCH, before it looks at the range.
        match self.unprotect(&(0x1000..0x2000)) {
            Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => SpaceState::Gone,
            _ => SpaceState::Alive,
        }
    }
}

/// Tracking of our own address space, in which nothing is registered: whether this
/// kernel and these privileges allow it.
pub fn open() -> io::Result<WriteTracking> {
    // SAFETY: the system call takes flags and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, CREATION_FLAGS) };
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the descriptor is fresh and nobody else's.
    WriteTracking::enable(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
