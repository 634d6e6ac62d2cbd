//! One thread, held by ptrace for a moment.

use super::InjectionError;
use crate::sys::arch::{EnteredFrom, Registers, SYSCALL_INSTRUCTION};
use crate::sys::process_memory;
use crate::sys::procfs::status::Seccomp;
use crate::sys::ptrace::{self, Diversion, Stop};
use crate::sys::scheduling::{self, Hurried};
use std::io;
use std::time::{Duration, Instant};

/// How long a thread may take to stop. Longer means that it sleeps
/// uninterruptibly, is frozen, or does not get a processor.
const TO_STOP: Duration = Duration::from_millis(500);
/// How long an injected call takes at most where the thread has a processor; beyond
/// it waits for one, tens of milliseconds where others are busy, and is hurried.
const PROMPT: Duration = Duration::from_micros(150);
/// How long an injected call may take before we ask again; it never blocks.
const TO_RETURN: Duration = Duration::from_secs(5);
/// How long we sleep at most between two looks.
const CHECKED_ANYWAY: Duration = Duration::from_millis(50);
/// How often we ask again.
const ASKED_AGAIN: usize = 10;

/// A thread that stands still. Its registers are put back by [`Tracee::release`].
pub struct Tracee {
    tid: i32,
    instruction: u64,
    registers: Registers,
    signal_mask: u64,
    since: Instant,
    /// Whether it goes before all others meanwhile.
    hurried: Option<Hurried>,
}

impl Tracee {
    /// Stops thread `tid` of `pid` where it can be made to execute the system
    /// call instruction at `instruction`. On failure it runs on as before, or,
    /// if it did not stop in time, will when this process exits.
    pub fn stop(pid: i32, tid: i32, seccomp: Seccomp, instruction: u64) -> Result<Tracee, InjectionError> {
        let options = ptrace::OPTION_SYSGOOD;
        match ptrace::seize(tid, options | ptrace::OPTION_SUSPEND_SECCOMP) {
            Ok(()) => {}
            // A filter could kill the process for a call that it does not know.
            Err(cause) if seccomp == Seccomp::Confined => {
                return Err(InjectionError::Refused(format!(
                    "it is confined by seccomp, which we could not suspend (CAP_SYS_ADMIN and \
                     CONFIG_CHECKPOINT_RESTORE are needed): {cause}"
                )));
            }
            Err(_) => ptrace::seize(tid, options).map_err(|cause| from_ptrace("PTRACE_SEIZE", &cause))?,
        }
        ptrace::interrupt(tid).map_err(|cause| from_ptrace("PTRACE_INTERRUPT", &cause))?;
        wait_for_trap(tid, TO_STOP)?;
        // Not from the request on: until now it was running, or waiting for a
        // processor as it would have without us.
        let since = Instant::now();
        match take_state(pid, tid, instruction) {
            Ok((registers, signal_mask)) => {
                Ok(Tracee { tid, instruction, registers, signal_mask, since, hurried: None })
            }
            Err(why) => {
                let _ = ptrace::detach(tid, 0);
                Err(why)
            }
        }
    }

    /// Gives up a thread that [`Tracee::stop`] asked to stop and that did not in time.
    pub fn give_up(tid: i32) {
        if let Ok(Some(stop)) = ptrace::next_stop(tid) {
            let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
            let _ = ptrace::detach(tid, signal);
        }
    }

    /// Makes the thread execute one system call, which must not block nor use memory.
    pub fn call(&mut self, number: u64, argument: u64) -> Result<io::Result<u64>, InjectionError> {
        let tid = self.tid;
        let failed = |what| move |cause: io::Error| from_ptrace(what, &cause);
        self.registers
            .for_syscall(self.instruction, number, argument)
            .write(tid)
            .map_err(failed("PTRACE_SETREGSET"))?;
        // To the entry of the call. Signals are blocked, so that only SIGSTOP can
        // come between, which leaves the registers alone.
        self.run(Until::Entry)?;
        // Asked for now, before the call, this stop comes right after it, before
        // the thread executes whatever follows the instruction.
        ptrace::interrupt(tid).map_err(failed("PTRACE_INTERRUPT"))?;
        self.run(Until::Trap)?;
        let registers = Registers::read(tid).map_err(failed("PTRACE_GETREGSET"))?;
        Ok(registers.result())
    }

    fn run(&mut self, until: Until) -> Result<(), InjectionError> {
        let tid = self.tid;
        let mut signal = 0;
        loop {
            match until {
                Until::Entry => ptrace::resume_to_syscall(tid, signal),
                Until::Trap => ptrace::resume(tid, signal),
            }
            .map_err(|cause| from_ptrace("PTRACE_CONT", &cause))?;
            signal = match (self.wait_patiently()?, until) {
                (Stop::Syscall, Until::Entry) => return Ok(()),
                (Stop::Interrupted | Stop::GroupStop, Until::Trap) => return Ok(()),
                (Stop::Signal(libc::SIGSTOP), _) => libc::SIGSTOP,
                (Stop::Signal(signal), _) => {
                    return Err(InjectionError::Refused(format!("signal {signal} came between")));
                }
                (Stop::Exited, _) => return Err(InjectionError::Exited),
                (Stop::Interrupted | Stop::GroupStop | Stop::Syscall | Stop::Other(_), _) => 0,
            };
        }
    }

    /// Waits for a stop while the thread has registers that are not its own: it must
    /// not be given up. A frozen thread answers an interrupt even so.
    fn wait_patiently(&mut self) -> Result<Stop, InjectionError> {
        if let Some(stop) = wait(self.tid, Instant::now() + PROMPT)? {
            return Ok(stop);
        }
        if self.hurried.is_none() {
            self.hurried = scheduling::hurry(self.tid);
        }
        for _ in 0..ASKED_AGAIN {
            if let Some(stop) = wait(self.tid, Instant::now() + TO_RETURN)? {
                return Ok(stop);
            }
            let _ = ptrace::interrupt(self.tid);
        }
        let tid = self.tid;
        Err(InjectionError::Refused(format!("thread {tid} did not come back from a system call")))
    }

    /// Puts everything back and lets the thread go; how long it stood still.
    pub fn release(self) -> Result<Duration, InjectionError> {
        let failed = |what| move |cause: io::Error| from_ptrace(what, &cause);
        self.registers.write(self.tid).map_err(failed("PTRACE_SETREGSET"))?;
        ptrace::set_signal_mask(self.tid, self.signal_mask).map_err(failed("PTRACE_SETSIGMASK"))?;
        let put_back = self.hurried.map_or(Ok(()), Hurried::put_back);
        ptrace::detach(self.tid, 0).map_err(failed("PTRACE_DETACH"))?;
        let stopped = self.since.elapsed();
        put_back.map_err(failed("sched_setattr"))?;
        Ok(stopped)
    }
}

#[derive(Clone, Copy)]
enum Until {
    Entry,
    Trap,
}

/// Checks that this is a good place, and blocks the thread's signals.
fn take_state(pid: i32, tid: i32, instruction: u64) -> Result<(Registers, u64), InjectionError> {
    let failed = |what| move |cause: io::Error| from_ptrace(what, &cause);
    let registers = Registers::read(tid).map_err(|cause| match cause.kind() {
        io::ErrorKind::Unsupported => InjectionError::Refused(cause.to_string()),
        _ => from_ptrace("PTRACE_GETREGSET", &cause),
    })?;
    if ptrace::diverts_system_calls(tid).map_err(failed("asking for syscall user dispatch"))?
        == Diversion::Diverted
    {
        return Err(InjectionError::Refused("it diverts its system calls (syscall user dispatch)".into()));
    }
    let mut bytes = [0u8; SYSCALL_INSTRUCTION.len()];
    if process_memory::read_exact(pid, instruction, &mut bytes).is_err() || bytes != SYSCALL_INSTRUCTION {
        return Err(InjectionError::NotNow("it went on to another program".into()));
    }
    if registers.entered_from() == EnteredFrom::UserMode
        && in_restartable_sequence(pid, tid, registers.instruction_pointer())
            .map_err(failed("reading its rseq area"))?
    {
        return Err(InjectionError::NotNow("it is inside a restartable sequence".into()));
    }
    let mask = ptrace::signal_mask(tid).map_err(failed("PTRACE_GETSIGMASK"))?;
    ptrace::set_signal_mask(tid, u64::MAX).map_err(failed("PTRACE_SETSIGMASK"))?;
    Ok((registers, mask))
}

/// Whether the thread is inside an rseq critical section. The kernel forgets the
/// section as soon as it sees the thread elsewhere, and would then not abort it
/// when it comes back: such a thread must not be led away.
fn in_restartable_sequence(pid: i32, tid: i32, instruction_pointer: u64) -> io::Result<bool> {
    // struct rseq { u32 cpu_id_start; u32 cpu_id; u64 rseq_cs; ... }
    const RSEQ_CS: u64 = 8;
    let Some(area) = ptrace::rseq_area(tid)? else { return Ok(false) };
    let mut section = [0u8; 8];
    process_memory::read_exact(pid, area.wrapping_add(RSEQ_CS), &mut section)?;
    let section = u64::from_ne_bytes(section);
    if section == 0 {
        return Ok(false);
    }
    // struct rseq_cs { u32 version; u32 flags; u64 start_ip; u64 post_commit_offset; u64 abort_ip; }
    let mut words = [0u8; 16];
    process_memory::read_exact(pid, section.wrapping_add(8), &mut words)?;
    let word = |at: usize| words[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or(0);
    Ok(instruction_pointer.wrapping_sub(word(0)) < word(8))
}

/// Waits for the stop that was asked for; passes on whatever comes before it.
fn wait_for_trap(tid: i32, patience: Duration) -> Result<(), InjectionError> {
    let deadline = Instant::now() + patience;
    loop {
        let signal = match wait(tid, deadline)? {
            Some(Stop::Interrupted | Stop::GroupStop) => return Ok(()),
            Some(Stop::Signal(signal)) => signal,
            Some(Stop::Exited) => return Err(InjectionError::Exited),
            Some(Stop::Syscall | Stop::Other(_)) => 0,
            None => {
                return Err(InjectionError::NotNow(format!(
                    "thread {tid} does not stop (frozen, or in an uninterruptible sleep)"
                )));
            }
        };
        ptrace::resume(tid, signal).map_err(|cause| from_ptrace("PTRACE_CONT", &cause))?;
    }
}

fn wait(tid: i32, deadline: Instant) -> Result<Option<Stop>, InjectionError> {
    loop {
        // Every stop of a traced thread raises SIGCHLD here, which is blocked and
        // so stays pending: none can be missed between the two calls.
        let stop = ptrace::next_stop(tid).map_err(|cause| from_ptrace("waitpid", &cause))?;
        let left = deadline.saturating_duration_since(Instant::now());
        if stop.is_some() || left.is_zero() {
            return Ok(stop);
        }
        ptrace::await_child_signal(left.min(CHECKED_ANYWAY));
    }
}

/// ptrace says ESRCH when the thread was killed under our hands.
fn from_ptrace(what: &str, cause: &io::Error) -> InjectionError {
    match cause.raw_os_error() {
        Some(libc::ESRCH) => InjectionError::Exited,
        _ => InjectionError::Refused(format!("{what}: {cause}")),
    }
}
