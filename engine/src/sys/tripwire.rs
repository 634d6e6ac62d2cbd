//! Threads that the kernel stops at the death of a child of ours, before anything that
//! the child's death itself sets in motion.
//!
//! The child alone has the read end of a pipe. Each opened write end is a *wire*: when
//! the last reader goes, the kernel signals the wire's owner, here one thread, with a
//! signal of our choice, here SIGSTOP. A dying process closes its descriptors before its
//! ptrace holds on others end, so a thread that it held finds the SIGSTOP waiting as it
//! comes free: it stops without having run.

use nix::fcntl::OFlag;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `fcntl` commands that are Linux's own.
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// `struct f_owner_ex`.
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    id: libc::pid_t,
}

/// The write end of the pipe, and what was opened of it.
#[derive(Debug)]
pub struct Tripwire {
    pipe: OwnedFd,
    wires: Vec<File>,
}

impl Tripwire {
    /// With the end that the child, and nobody else, must get. It must not read.
    pub fn new() -> io::Result<(Tripwire, OwnedFd)> {
        let (theirs, pipe) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok((Tripwire { pipe, wires: Vec::new() }, theirs))
    }

    /// Has a thread stopped when the child dies.
    pub fn stop_at_death(&mut self, thread: i32) -> io::Result<()> {
        // Opened anew: each open file has one owner.
        let wire = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", self.pipe.as_raw_fd()))?;
        let owner = Owner { kind: F_OWNER_TID, id: thread };
        let fd = wire.as_raw_fd();
        // SAFETY: `fd` is open, and F_SETSIG takes a number.
        check(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGSTOP) })?;
        // SAFETY: `owner` has the layout of `struct f_owner_ex` and outlives the call.
        check(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
        // SAFETY: `fd` is open, and F_SETFL takes flags.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC) })?;
        self.wires.push(wire);
        Ok(())
    }

    /// From now on the child's end stops nobody.
    pub fn disarm(&mut self) {
        // First all of them: with no reader left, each end that closes signals the others.
        for wire in &self.wires {
            // SAFETY: the descriptor is open, and F_SETFL takes flags.
            let _ = unsafe { libc::fcntl(wire.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        }
        self.wires.clear();
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        self.disarm();
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    fn sleeper(stderr: Stdio) -> Child {
        Command::new("sleep").arg("100").stderr(stderr).spawn().unwrap()
    }

    fn state(child: &Child) -> u8 {
        crate::sys::procfs::stat::of(child.id() as i32).unwrap().state.0
    }

    #[test]
    fn a_childs_death_stops_whom_it_should_and_an_orderly_end_nobody() {
        let bystander = sleeper(Stdio::null());
        let another = sleeper(Stdio::null());
        for (armed, expected) in [(true, b'T'), (false, b'S')] {
            let (mut tripwire, theirs) = Tripwire::new().unwrap();
            let mut child = sleeper(Stdio::from(theirs));
            tripwire.stop_at_death(another.id() as i32).unwrap();
            tripwire.stop_at_death(bystander.id() as i32).unwrap();
            if !armed {
                tripwire.disarm();
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while state(&bystander) != expected && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(state(&bystander), expected);
            let pid = nix::unistd::Pid::from_raw(bystander.id() as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
            tripwire.disarm();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(state(&bystander), b'S', "stopped once more by the tripwire's own end");
        }
        for mut sleeper in [bystander, another] {
            sleeper.kill().unwrap();
            sleeper.wait().unwrap();
        }
    }
}
