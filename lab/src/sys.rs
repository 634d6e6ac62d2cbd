//! All `unsafe` of this crate.

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::AtomicU64;

/// Splits a process that has one thread only.
///
/// # Errors
/// Refused with `Unsupported` when the process has several threads, since a
/// child may then find locks held by threads that it does not have.
pub fn fork_single_threaded() -> io::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, format!("fork with {threads} threads")));
    }
    // SAFETY: this is the only thread, so the child has all threads that the
    // parent had and no lock is held by a thread that is missing in it.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Makes `command` the leader of a session of its own, with every descriptor
/// beyond 2 closed and no signal blocked.
pub fn detach(command: &mut Command) {
    let prepare = || {
        nix::unistd::setsid()?;
        SigSet::empty().thread_set_mask()?;
        // CLOEXEC rather than closing at once: the standard library still
        // reports a failing exec through a pipe of its own.
        // SAFETY: close_range takes numbers only; it marks descriptors and
        // touches no memory.
        let result = unsafe {
            nix::libc::syscall(nix::libc::SYS_close_range, 3, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec `prepare` makes three system calls and
    // allocates nothing, so it is safe whatever the parent's threads hold.
    unsafe { command.pre_exec(prepare) };
}

/// Who sees what is written into a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This process only; children get copies.
    Private,
    /// This process and its children.
    Children,
}

/// Maps `words` zeroed words that are never unmapped.
///
/// # Errors
/// As `mmap`.
pub fn map_words(words: usize, sharing: Sharing) -> io::Result<&'static [AtomicU64]> {
    let bytes = words
        .checked_mul(size_of::<AtomicU64>())
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "mapping of no or too many words"))?;
    let flags = match sharing {
        Sharing::Private => MapFlags::MAP_PRIVATE,
        Sharing::Children => MapFlags::MAP_SHARED,
    };
    // SAFETY: a new anonymous mapping at an address of the kernel's choice
    // replaces nothing.
    let start = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags)? };
    // SAFETY: the mapping is readable, writable, page-aligned, zeroed (valid
    // atomics), exactly `words` long, and never unmapped. All access is atomic.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>().as_ptr(), words) })
}

/// Lets the calling thread run, whenever it can, before every ordinary thread of
/// the machine.
///
/// # Errors
/// As `sched_setscheduler`: without CAP_SYS_NICE, EPERM.
pub fn run_before_others() -> io::Result<()> {
    let parameters = nix::libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread; the parameters are read and not kept.
    let result = unsafe { nix::libc::sched_setscheduler(0, nix::libc::SCHED_FIFO, &raw const parameters) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends the process without running anything at exit.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { nix::libc::_exit(code) }
}

/// Waits for any child that has ended; `None` when none has.
pub fn reap() -> Option<(Pid, super::hosts::Exit)> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, code)) => Some((pid, super::hosts::Exit::Code(code))),
        Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid, super::hosts::Exit::Signal(signal as i32))),
        _ => None,
    }
}
