//! The helper process.

use super::tracee::Tracee;
use super::{InjectionError, Taken, message};
use crate::sys::arch::{NR_CLOSE, NR_USERFAULTFD, SYSCALL_INSTRUCTION};
use crate::sys::pidfd::{PidFd, Whose};
use crate::sys::process_memory::MemoryFile;
use crate::sys::procfs::maps::{Backing, Mappings, Permission};
use crate::sys::procfs::{self, status};
use crate::sys::ptrace;
use crate::sys::userfaultfd::CREATION_FLAGS;
use nix::sys::signal::SigSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Threads that are tried in one pass.
const THREADS: usize = 8;
/// Passes over them.
const PASSES: usize = 5;
/// How much of executable mappings is searched for a system call instruction.
const SEARCHED: u64 = 64 << 20;

/// What a binary does when it was started with [`super::HELPER_VERB`] and `pid`:
/// takes a userfaultfd out of the process and sends it over the socket that is
/// its standard input. Never returns.
pub fn helper_main(pid: &str) -> ! {
    // Ctrl-C reaches the whole foreground group; nothing may end us half-way.
    let _ = SigSet::all().thread_block();
    // Nor may the kernel choose us when memory runs out, as far as that can be asked.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    ptrace::prepare_tracer();
    let outcome = match pid.parse() {
        Ok(pid) => take_userfaultfd(pid),
        Err(_) => Err(InjectionError::Refused(format!("{pid} is not a process number"))),
    };
    let sent = message::send(io::stdin().as_fd(), &outcome);
    std::process::exit(if sent.is_ok() { 0 } else { 1 })
}

fn take_userfaultfd(pid: i32) -> Result<Taken, InjectionError> {
    let process = PidFd::open(pid, Whose::Process).map_err(from_proc)?;
    let instruction = find_instruction(pid)?;
    let mut last = InjectionError::Exited;
    for pass in 0..PASSES {
        let threads = procfs::numeric_entries(&format!("/proc/{pid}/task")).map_err(from_proc)?;
        // The main thread first: its descriptor table is the one that a pidfd of
        // the process shows, on kernels that have none of threads.
        let main_first = threads.iter().filter(|tid| **tid == pid);
        let others = threads.iter().filter(|tid| **tid != pid);
        for tid in main_first.chain(others).take(THREADS) {
            match take_from_thread(pid, &process, *tid, instruction) {
                // One thread is gone: the process need not be.
                Err(why @ (InjectionError::NotNow(_) | InjectionError::Exited)) => last = why,
                done => return done,
            }
        }
        std::thread::sleep(Duration::from_micros(100 << (2 * pass)));
    }
    Err(last)
}

fn take_from_thread(pid: i32, process: &PidFd, tid: i32, instruction: u64) -> Result<Taken, InjectionError> {
    let status = status::of_thread(pid, tid).map_err(from_proc)?;
    if status.tracer == i32::try_from(std::process::id()).ok() {
        Tracee::give_up(tid);
        return Err(InjectionError::NotNow(format!("thread {tid} does not stop")));
    }
    if let Some(tracer) = status.tracer {
        let name = procfs::stat::of(tracer).map_or_else(|_| "?".into(), |stat| stat.name);
        return Err(InjectionError::Refused(format!("it is being traced by process {tracer} ({name})")));
    }
    // Threads may have descriptor tables of their own (`unshare(CLONE_FILES)`).
    let thread = if tid == pid { None } else { PidFd::open(tid, Whose::Thread).ok() };
    let mut tracee = Tracee::stop(pid, tid, status.seccomp, instruction)?;
    let taken = take_descriptor(&mut tracee, thread.as_ref().unwrap_or(process));
    let stopped = tracee.release()?;
    let descriptor = taken?;
    if !is_userfaultfd(&descriptor) {
        return Err(InjectionError::Refused("what was taken out is no userfaultfd".into()));
    }
    Ok(Taken { descriptor, stopped })
}

/// While the thread stands still.
fn take_descriptor(tracee: &mut Tracee, owner: &PidFd) -> Result<OwnedFd, InjectionError> {
    let number = match tracee.call(NR_USERFAULTFD, CREATION_FLAGS)? {
        Ok(number) => number,
        Err(cause) => return Err(InjectionError::Refused(format!("userfaultfd: {cause}"))),
    };
    let copy =
        i32::try_from(number).map_err(io::Error::other).and_then(|number| owner.copy_descriptor(number));
    let closed = tracee.call(NR_CLOSE, number)?;
    let copy = copy.map_err(|cause| InjectionError::Refused(format!("pidfd_getfd: {cause}")))?;
    closed.map_err(|cause| InjectionError::Refused(format!("close: {cause}")))?;
    Ok(copy)
}

fn is_userfaultfd(descriptor: &OwnedFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
        .is_ok_and(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
}

/// A system call instruction that the process can execute: the vDSO has one;
/// failing that, its other code.
fn find_instruction(pid: i32) -> Result<u64, InjectionError> {
    let memory = MemoryFile::of(pid).map_err(from_proc)?;
    let mut candidates = Vec::new();
    for mapping in Mappings::of(pid).map_err(from_proc)? {
        let mapping = mapping.map_err(from_proc)?;
        if mapping.execute == Permission::Granted && mapping.name != b"[vsyscall]" {
            candidates.push((mapping.backing != Backing::Kernel, mapping.range));
        }
    }
    if candidates.is_empty() {
        return Err(InjectionError::Exited);
    }
    candidates.sort_by_key(|(later, _)| *later);
    let mut searched = 0;
    let mut block = vec![0u8; 1 << 16];
    for (_, range) in candidates {
        let mut at = range.start;
        while at < range.end && searched < SEARCHED {
            let length = block.len().min((range.end - at) as usize);
            let length = memory.read_at(at, &mut block[..length]).map_err(from_proc)?;
            if length == 0 {
                break;
            }
            let found =
                block[..length].windows(SYSCALL_INSTRUCTION.len()).position(|w| w == SYSCALL_INSTRUCTION);
            if let Some(offset) = found {
                return Ok(at + offset as u64);
            }
            at += length as u64;
            searched += length as u64;
        }
    }
    Err(InjectionError::Refused("no system call instruction was found in it".into()))
}

fn from_proc(cause: io::Error) -> InjectionError {
    if procfs::children::is_gone(&cause) {
        InjectionError::Exited
    } else {
        InjectionError::Refused(format!("reading /proc: {cause}"))
    }
}
