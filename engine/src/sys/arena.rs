//! A sparse file that lives in memory only: what page content is kept in, and how
//! it is handed to another process without copying it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Makes an anonymous memory file of `size` bytes, all of it a hole.
pub fn memory_file(name: &std::ffi::CStr, size: u64) -> io::Result<File> {
    // SAFETY: `name` is a C string that outlives the call; nothing else is passed.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Gives the memory of `len` bytes at `offset` back; they read as zeroes from then on.
pub fn punch(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let (offset, len) = match (libc::off_t::try_from(offset), libc::off_t::try_from(len)) {
        (Ok(offset), Ok(len)) => (offset, len),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    loop {
        // SAFETY: fallocate takes no pointers; the descriptor is borrowed for the call.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The parts of the file up to `len` that are no holes, ascending.
pub fn data(file: &File, len: u64) -> io::Result<Vec<std::ops::Range<u64>>> {
    use nix::unistd::{Whence, lseek};
    let mut parts = Vec::new();
    let mut at = 0i64;
    while (at as u64) < len {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(nix::Error::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        if start as u64 >= len {
            break;
        }
        // There is a hole at the end of every file.
        at = lseek(file, start, Whence::SeekHole)?;
        parts.push(start as u64..(at as u64).min(len));
    }
    Ok(parts)
}

/// A memory file mapped read-only. Its bytes are never read in this process: only
/// addresses leave here, for the kernel to copy from.
#[derive(Debug)]
pub struct ArenaMap {
    base: NonNull<libc::c_void>,
    len: usize,
    file: Arc<File>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and this type never
// reads or writes through its pointer.
unsafe impl Send for ArenaMap {}
// SAFETY: as above; every method takes the pointer's value only.
unsafe impl Sync for ArenaMap {}

impl ArenaMap {
    /// Maps `len` bytes of `file` from its start; no memory is taken by that.
    pub fn new(file: Arc<File>, len: u64) -> io::Result<ArenaMap> {
        let len = usize::try_from(len.max(4096)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice cannot overlap
        // anything that this process uses.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(ArenaMap { base, len, file })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The address in this process of `len` bytes at `offset`; `None` outside the file.
    pub fn address(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        (end <= self.len as u64).then(|| self.base.as_ptr() as u64 + offset)
    }

    /// Puts the pages of a range into the page table in one call, so that a copy
    /// by the kernel does not stop at each of them. Advice only: a failure shows
    /// in the copy.
    pub fn populate(&self, offset: u64, len: u64) {
        const MADV_POPULATE_READ: libc::c_int = 22;
        if let Some(address) = self.address(offset, len) {
            // SAFETY: the range lies inside our own mapping; populating reads pages
            // in and changes nothing that Rust code can observe.
            unsafe { libc::madvise(address as *mut libc::c_void, len as usize, MADV_POPULATE_READ) };
        }
    }

    /// Gives the memory of a range back.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        punch(self.file.as_fd(), offset, len)
    }
}

impl Drop for ArenaMap {
    fn drop(&mut self) {
        // SAFETY: base and len are what mmap returned and was given; no reference
        // into the mapping was ever made.
        unsafe { libc::munmap(self.base.as_ptr(), self.len) };
    }
}
