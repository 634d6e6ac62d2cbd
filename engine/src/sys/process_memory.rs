//! Reading another process's memory.

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

/// The most pieces that one call takes (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// Reads pieces of the memory of `pid` one after another into `into`, whose
/// length is the sum of theirs. Returns how many bytes were read: fewer when
/// what follows cannot be read. Mappings that the process itself cannot read
/// cannot be read so.
pub fn read_pieces(pid: i32, pieces: &[RemoteIoVec], into: &mut [u8]) -> io::Result<usize> {
    match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(into)], pieces) {
        Ok(bytes) => Ok(bytes),
        Err(nix::Error::EFAULT) => Ok(0),
        Err(cause) => Err(cause.into()),
    }
}

/// Reads exactly `into.len()` bytes at `address`.
pub fn read_exact(pid: i32, address: u64, into: &mut [u8]) -> io::Result<()> {
    let length = into.len();
    let piece = RemoteIoVec { base: address as usize, len: length };
    if read_pieces(pid, &[piece], into)? == length {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// The memory of a process as a file, which reads what the process itself may
/// not (`PROT_NONE`). Bound to the program that ran when it was opened.
pub struct MemoryFile(File);

impl MemoryFile {
    /// Opens it.
    pub fn of(pid: i32) -> io::Result<MemoryFile> {
        File::open(format!("/proc/{pid}/mem")).map(MemoryFile)
    }

    /// Reads at `address`; how many bytes, 0 when none can be.
    pub fn read_at(&self, address: u64, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read_at(into, address) {
            Ok(bytes) => Ok(bytes),
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EIO | libc::EFAULT)) => Ok(0),
            Err(cause) => Err(cause),
        }
    }
}
