//! Two processes with one table of descriptors.
//!
//! What either of them opens, and what the kernel opens for it, is open in both,
//! and stays open until the last of them is gone: a descriptor whose closing would
//! do harm survives the death of the process that uses it.

use nix::sys::socket::{UnixAddr, getsockname};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// Which of the two the caller is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// The new one.
    Child,
    /// The old one; the child's PID.
    Parent(Pid),
}

/// Makes a child with a copy of this process's memory and *the same* descriptors.
/// To be called while no other thread of this process is inside any library: the
/// child has the calling thread only, and locks that others held stay locked in it.
pub fn divide() -> io::Result<Twin> {
    let flags = (libc::CLONE_FILES | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: without CLONE_VM this is fork() as far as memory goes: the child goes
    // on on its own copy of the stack (a null stack means that). No pointer is passed.
    // Descriptors owned by values on both sides now name the same table; closing
    // one twice is what callers must see to, as with any two owners of a table.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    match pid {
        0 => Ok(Twin::Child),
        pid if pid > 0 => Ok(Twin::Parent(Pid::from_raw(pid as i32))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor by its number, as a record keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number(pub i32);

impl Number {
    /// Owns it, if it is open and what it stands for begins with `what` in
    /// `/proc/self/fd`. To be called once for a number that a predecessor, sharing
    /// this table, owned and left behind.
    pub fn adopt(self, what: &str) -> Option<OwnedFd> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", self.0)).ok()?;
        // SAFETY: it is open, just seen; its owner is dead or has handed it over.
        link.to_str()?.starts_with(what).then(|| unsafe { OwnedFd::from_raw_fd(self.0) })
    }
}

/// The connection that a predecessor, sharing this table, took from `listener`. What
/// it is called in the table is not known, but it has the listener's name.
pub fn accepted(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    let name = |number: i32| getsockname::<UnixAddr>(number);
    let ours = name(listener.as_raw_fd())?;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|number| number.parse::<i32>().ok());
        let is_other = |number: &i32| *number != listener.as_raw_fd();
        if let Some(number) = number.filter(is_other)
            && name(number).is_ok_and(|name| name == ours)
        {
            return Ok(Number(number).adopt("socket:").map(UnixStream::from));
        }
    }
    Ok(None)
}
