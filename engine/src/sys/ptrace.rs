//! The ptrace requests that the injection needs; raw numbers because signals
//! here may be real-time ones, which `nix` has no name for.

use std::io;
use std::ptr;

const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
const PTRACE_EVENT_STOP: i32 = 128;
const NT_PRSTATUS: usize = 1;

/// Marks system-call stops apart from real SIGTRAPs.
pub const OPTION_SYSGOOD: u64 = 1;
/// Lets system calls pass that the thread's seccomp filters would not.
pub const OPTION_SUSPEND_SECCOMP: u64 = 1 << 21;

/// How a traced thread presented itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The stop that `interrupt` asked for.
    Interrupted,
    /// Stopped by a stop signal, with its whole process.
    GroupStop,
    /// About to take this signal.
    Signal(i32),
    /// At the entry or exit of a system call.
    Syscall,
    /// Anything else that a tracer may see.
    Other(i32),
    /// Gone.
    Exited,
}

fn request(request: libc::c_uint, tid: i32, addr: usize, data: usize) -> io::Result<usize> {
    // SAFETY: every caller in this file passes an `addr` and `data` that are
    // either plain numbers for `request` or point to live memory of the size
    // that the request reads or writes.
    let value = unsafe { libc::ptrace(request, tid, addr, data) };
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(value as usize) }
}

/// Becomes the tracer without stopping the thread.
pub fn seize(tid: i32, options: u64) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// Asks for an [`Stop::Interrupted`].
pub fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets the stopped thread go, with `signal` (0: none) delivered.
pub fn resume(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// As [`resume`], until the next entry or exit of a system call.
pub fn resume_to_syscall(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Ends the tracing of a stopped thread, delivering `signal` (0: none). A process that was stopped by a signal
/// is stopped again by the kernel.
pub fn detach(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// The blocked signals of a stopped thread. For one in `ppoll` and its like: the
/// mask outside of the call.
pub fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, size_of::<u64>(), ptr::from_mut(&mut mask) as usize)?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
pub fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    request(PTRACE_SETSIGMASK, tid, size_of::<u64>(), ptr::from_ref(&mask) as usize).map(drop)
}

/// A register block of plain integers.
///
/// # Safety
/// Every bit pattern must be a value.
pub unsafe trait RegisterBlock: Copy {}
// SAFETY: made of u64 fields only.
unsafe impl RegisterBlock for libc::user_regs_struct {}

/// The general registers, and how many bytes of them the kernel filled.
pub fn general_registers<R: RegisterBlock>(tid: i32) -> io::Result<(R, usize)> {
    // SAFETY: all zeroes are a value of a RegisterBlock.
    let mut regs: R = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec { iov_base: ptr::from_mut(&mut regs).cast(), iov_len: size_of::<R>() };
    request(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, ptr::from_mut(&mut vector) as usize)?;
    Ok((regs, vector.iov_len))
}

/// Puts registers into a stopped thread.
pub fn set_general_registers<R: RegisterBlock>(tid: i32, regs: &R) -> io::Result<()> {
    let mut vector = libc::iovec { iov_base: ptr::from_ref(regs).cast_mut().cast(), iov_len: size_of::<R>() };
    request(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, ptr::from_mut(&mut vector) as usize).map(drop)
}

/// Where a stopped thread has registered its `struct rseq`; `None` if nowhere.
pub fn rseq_area(tid: i32) -> io::Result<Option<u64>> {
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut configuration = Configuration::default();
    let size = size_of::<Configuration>();
    match request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, ptr::from_mut(&mut configuration) as usize) {
        Ok(_) => Ok((configuration.pointer != 0).then_some(configuration.pointer)),
        // Before Linux 5.13, or without CONFIG_RSEQ.
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Whether system calls of the stopped thread are diverted to a signal handler
/// (`PR_SET_SYSCALL_USER_DISPATCH`).
pub fn diverts_system_calls(tid: i32) -> io::Result<Diversion> {
    let mut configuration = [0u64; 4];
    let size = size_of_val(&configuration);
    let data = configuration.as_mut_ptr() as usize;
    match request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, data) {
        Ok(_) if configuration[0] != 0 => Ok(Diversion::Diverted),
        Ok(_) => Ok(Diversion::None),
        // Before Linux 6.4 one cannot ask.
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => Ok(Diversion::None),
        Err(cause) => Err(cause),
    }
}

/// Whether system calls reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diversion {
    /// They do.
    None,
    /// They raise SIGSYS.
    Diverted,
}

/// The next stop of the thread, if there is one by now.
pub fn next_stop(tid: i32) -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: `status` lives; no other pointer is passed.
    let reaped = unsafe { libc::waitpid(tid, &mut status, libc::WNOHANG | libc::__WALL) };
    match reaped {
        -1 => match io::Error::last_os_error() {
            cause if cause.raw_os_error() == Some(libc::ECHILD) => Ok(Some(Stop::Exited)),
            cause => Err(cause),
        },
        0 => Ok(None),
        _ => Ok(Some(classify(status))),
    }
}

/// Prepares this process for [`await_child_signal`], and to be quick: it keeps
/// others waiting.
pub fn prepare_tracer() {
    let mut action: libc::sigaction =
        // SAFETY: all zeroes are a sigaction: the default one, no flags.
        unsafe { std::mem::zeroed() };
    action.sa_sigaction = libc::SIG_DFL;
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: both structures live; the default action runs no code of ours. A
    // refused priority only makes us slower. (Not a nice value: that counts only
    // among the processes of one session, where the kernel groups by session.)
    unsafe {
        libc::sigaction(libc::SIGCHLD, &raw const action, ptr::null_mut());
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority);
    }
}

/// Waits until a traced thread stopped, or `patience` is over. SIGCHLD must be
/// blocked and not be ignored.
pub fn await_child_signal(patience: std::time::Duration) {
    let timeout = libc::timespec {
        tv_sec: patience.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(patience.subsec_nanos() as i32),
    };
    // SAFETY: the set is initialized by sigemptyset; all pointers are to locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const timeout);
    }
}

fn classify(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Exited;
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
        PTRACE_EVENT_STOP => Stop::GroupStop,
        other => Stop::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        assert_eq!(classify((128 << 16) | (libc::SIGTRAP << 8) | 0x7f), Stop::Interrupted);
        assert_eq!(classify((128 << 16) | (libc::SIGSTOP << 8) | 0x7f), Stop::GroupStop);
        assert_eq!(classify((libc::SIGUSR1 << 8) | 0x7f), Stop::Signal(libc::SIGUSR1));
        assert_eq!(classify((libc::SIGTRAP << 8) | 0x7f), Stop::Signal(libc::SIGTRAP));
        assert_eq!(classify(((libc::SIGTRAP | 0x80) << 8) | 0x7f), Stop::Syscall);
        assert_eq!(classify(libc::SIGKILL), Stop::Exited);
        assert_eq!(classify(0), Stop::Exited);
    }
}
