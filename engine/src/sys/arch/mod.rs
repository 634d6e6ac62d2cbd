//! What depends on the processor: registers, call numbers, instruction bytes.
//!
//! A new architecture is one more file with the same items:
//! `SYSCALL_INSTRUCTION`, `NR_USERFAULTFD`, `NR_CLOSE`, `Registers` with
//! `read`, `write`, `for_syscall`, `result`, `instruction_pointer` and
//! `entered_from`.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("ferry follows memory on x86-64 only so far; another architecture is one more file here");

/// What a stopped thread had been doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnteredFrom {
    /// A system call, which may have to be restarted. The kernel does that by
    /// itself when the registers are put back as they were.
    SystemCall,
    /// Its own instructions.
    UserMode,
}
