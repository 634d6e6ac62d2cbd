//! A sparse file that lives in memory only: what page content is kept in, and how
//! it is handed to another process without copying it.

use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
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
    map: MmapRaw,
    file: Arc<File>,
}

impl ArenaMap {
    /// Maps `len` bytes of `file` from its start; no memory is taken by that.
    pub fn new(file: Arc<File>, len: u64) -> io::Result<ArenaMap> {
        let len = usize::try_from(len.max(4096)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let map = MmapOptions::new().len(len).no_reserve_swap().map_raw_read_only(&*file)?;
        Ok(ArenaMap { map, file })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The address in this process of `len` bytes at `offset`; `None` outside the file.
    pub fn address(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        (end <= self.map.len() as u64).then(|| self.map.as_ptr() as u64 + offset)
    }

    /// Puts the pages of a range into the page table in one call, so that a copy
    /// by the kernel does not stop at each of them. Advice only: a failure shows
    /// in the copy.
    pub fn populate(&self, offset: u64, len: u64) {
        if self.address(offset, len).is_some() {
            let _ = self.map.advise_range(Advice::PopulateRead, offset as usize, len as usize);
        }
    }

    /// Gives the memory of a range back.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        punch(self.file.as_fd(), offset, len)
    }
}
