//! Processes and threads as descriptors, which a reused number cannot fool.

use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `PIDFD_THREAD`, Linux 6.9.
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// What a [`PidFd`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The process, by its main thread.
    Process,
    /// One thread, which may have a descriptor table of its own. Linux 6.9.
    Thread,
}

/// One process or thread, alive or a zombie.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens it by number.
    pub fn open(id: i32, whose: Whose) -> io::Result<PidFd> {
        let flags = match whose {
            Whose::Process => 0,
            Whose::Thread => PIDFD_THREAD,
        };
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) };
        owned(fd).map(PidFd)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo the kernel makes one, and reads none of ours.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as libc::c_int, no_info, 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A copy of its descriptor `number`, close-on-exec here.
    pub fn copy_descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        owned(fd)
    }
}

/// Readable once the process has exited.
impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// How the memory of two processes relates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpaces {
    /// One and the same (`CLONE_VM`, `vfork`).
    Shared,
    /// Two.
    Separate,
}

/// Compares the address spaces of two processes (`kcmp`, `KCMP_VM`).
pub fn compare_address_spaces(a: i32, b: i32) -> io::Result<AddressSpaces> {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: no pointers are passed.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) };
    match order {
        0 => Ok(AddressSpaces::Shared),
        1..=3 => Ok(AddressSpaces::Separate),
        _ => Err(io::Error::last_os_error()),
    }
}
