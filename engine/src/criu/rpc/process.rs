//! The CRIU process at the other end: our child, or a runtime's.

use super::socket::{Deaf, await_readable};
use crate::sys::pidfd::{PidFd, Whose};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Who reaps it makes the difference.
#[derive(Debug)]
pub(super) enum Process {
    /// We started it.
    Own(Child),
    /// A container runtime started it.
    Theirs { pid: i32, process: PidFd },
}

impl Process {
    /// The process that has this number now and was started by somebody else.
    pub(super) fn of(pid: i32) -> io::Result<Process> {
        Ok(Process::Theirs { pid, process: PidFd::open(pid, Whose::Process)? })
    }

    pub(super) fn pid(&self) -> i32 {
        match self {
            Process::Own(child) => child.id() as i32,
            Process::Theirs { pid, .. } => *pid,
        }
    }

    pub(super) fn is_up(&mut self) -> bool {
        match self {
            Process::Own(child) => matches!(child.try_wait(), Ok(None)),
            Process::Theirs { process, .. } => {
                matches!(await_readable(process.as_fd(), Duration::ZERO), Err(Deaf::Silent))
            }
        }
    }

    /// Waits until it has exited, but no longer than this; how, where we may know.
    pub(super) fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while self.is_up() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        match self {
            Process::Own(child) => child.try_wait().ok().flatten(),
            Process::Theirs { .. } => None,
        }
    }

    /// Kills it and waits until it is dead.
    pub(super) fn kill(&mut self) {
        match self {
            Process::Own(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Process::Theirs { process, .. } => {
                let _ = process.signal(Signal::SIGKILL);
                let _ = await_readable(process.as_fd(), Duration::from_secs(10));
            }
        }
    }
}
