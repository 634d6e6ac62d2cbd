//! x86-64.

use super::EnteredFrom;
use crate::sys::ptrace;
use std::io;

/// The bytes of `syscall`.
pub const SYSCALL_INSTRUCTION: &[u8] = &[0x0f, 0x05];
/// `userfaultfd(flags)`.
pub const NR_USERFAULTFD: u64 = 323;
/// `close(fd)`.
pub const NR_CLOSE: u64 = 3;

/// The code segment selector of 64-bit user mode; 32-bit code runs with 0x23.
const USER_CS_64: u64 = 0x33;

/// The general registers of a stopped thread.
#[derive(Clone, Copy)]
pub struct Registers(libc::user_regs_struct);

impl Registers {
    /// Reads them. Fails with `Unsupported` for a 32-bit thread, or one that is
    /// executing 32-bit code at this moment.
    pub fn read(tid: i32) -> io::Result<Registers> {
        // A 32-bit thread fills less than half of the 64-bit register set.
        let (regs, length) = ptrace::general_registers::<libc::user_regs_struct>(tid)?;
        if length != size_of::<libc::user_regs_struct>() || regs.cs != USER_CS_64 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a 32-bit program (only 64-bit x86 programs can be followed)",
            ));
        }
        Ok(Registers(regs))
    }

    /// Puts them into the stopped thread.
    pub fn write(&self, tid: i32) -> io::Result<()> {
        ptrace::set_general_registers(tid, &self.0)
    }

    /// The registers with which the thread, let go, makes system call `number`
    /// by the instruction at `instruction`. The stack is not used.
    pub fn for_syscall(&self, instruction: u64, number: u64, argument: u64) -> Registers {
        let mut regs = self.0;
        regs.rip = instruction;
        regs.rax = number;
        regs.rdi = argument;
        // "Not in a system call": keeps the kernel from restarting, with these
        // registers, the call in which the thread was interrupted.
        regs.orig_rax = u64::MAX;
        Registers(regs)
    }

    /// What a finished system call returned.
    pub fn result(&self) -> io::Result<u64> {
        let value = self.0.rax as i64;
        if (-4095..0).contains(&value) {
            Err(io::Error::from_raw_os_error(-value as i32))
        } else {
            Ok(self.0.rax)
        }
    }

    /// The next instruction.
    pub fn instruction_pointer(&self) -> u64 {
        self.0.rip
    }

    /// Whether the thread was in a system call.
    pub fn entered_from(&self) -> EnteredFrom {
        if self.0.orig_rax as i64 >= 0 { EnteredFrom::SystemCall } else { EnteredFrom::UserMode }
    }
}
