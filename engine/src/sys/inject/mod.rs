//! Makes a running process create a userfaultfd and takes it out.
//!
//! A short-lived helper process does it, in a process group of its own, so that
//! `kill -9` of the engine cannot leave a thread with registers that are not its own:
//!
//! ```text
//! engine ── spawn ──► helper: looks for a `syscall` instruction, opens a pidfd
//!                     helper: PTRACE_SEIZE, PTRACE_INTERRUPT     ┐
//!                     thread: userfaultfd()                 ┐    │ stopped,
//!                     helper: pidfd_getfd                   │    │ ~0.1 ms
//!                     thread: close()                       │    │
//!                     helper: registers as before           ┘    │
//!                     helper: PTRACE_DETACH                      ┘
//! engine ◄─ SCM_RIGHTS: the descriptor, and how long ── helper
//! ```
//!
//! A thread that does not get a processor at once for its calls is scheduled in real
//! time until it is let go: on a busy machine it would wait four times over.
//!
//! What remains: a helper that is itself killed with SIGKILL inside the inner
//! bracket (other signals it blocks, and the kernel's own choice when memory runs
//! out it declines) leaves the thread with registers that are not its own, and the
//! workload crashes. ptrace offers nothing against it: the kernel lets a thread go,
//! as it stands, when its tracer is gone, or kills it (`PTRACE_O_EXITKILL`). The
//! bracket is a few dozen microseconds, once per process, and nobody but an
//! operator who kills every process of a host, or its whole cgroup, aims there.
//!
//! The thread ends in the same place of the kernel in which it was interrupted,
//! with the same registers: it is the kernel itself that then restarts the
//! system call in which the thread was, or delivers a signal to it, exactly as
//! if nothing had been.

mod helper;
mod message;
mod tracee;

pub use helper::helper_main;

use message::Outcome;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The first argument with which a binary is started as the helper; the second
/// is the PID.
pub const HELPER_VERB: &str = "__inject";

/// How long the engine waits for the helper; the helper itself gives up earlier.
const PATIENCE: Duration = Duration::from_secs(15);

/// A userfaultfd of another process's address space.
#[derive(Debug)]
pub struct Taken {
    /// The descriptor; the process itself does not have it any more.
    pub descriptor: OwnedFd,
    /// How long one thread of the process stood still.
    pub stopped: Duration,
}

/// Why there is no userfaultfd. The process runs as before.
#[derive(Debug, thiserror::Error)]
pub enum InjectionError {
    /// It exited meanwhile.
    #[error("the process exited")]
    Exited,
    /// A later attempt may succeed.
    #[error("not possible at this moment: {0}")]
    NotNow(String),
    /// It will not succeed while the process is as it is.
    #[error("{0}")]
    Refused(String),
    /// The helper could not be used.
    #[error("the injection helper: {0}")]
    Helper(#[from] io::Error),
}

/// Starts `helper_exe __inject PID` and waits for what it takes out of `pid`.
pub fn run_injector(helper_exe: &Path, pid: i32) -> Result<Taken, InjectionError> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(io::Error::from)?;
    let mut helper = Command::new(helper_exe)
        .arg(HELPER_VERB)
        .arg(pid.to_string())
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // What kills the engine's whole group, as `timeout -k` does, is not for it.
        .process_group(0)
        .spawn()?;
    let outcome = message::receive(&ours, PATIENCE);
    if matches!(&outcome, Err(cause) if cause.kind() == io::ErrorKind::WouldBlock) {
        // Killing it could leave the thread with registers that are not its own.
        std::thread::spawn(move || helper.wait());
        return Err(InjectionError::NotNow("the helper does not answer".into()));
    }
    let status = helper.wait()?;
    match outcome? {
        Outcome::Taken(taken) => Ok(taken),
        Outcome::Exited => Err(InjectionError::Exited),
        Outcome::NotNow(why) => Err(InjectionError::NotNow(why)),
        Outcome::Refused(why) => Err(InjectionError::Refused(why)),
        Outcome::Silence => {
            Err(io::Error::other(format!("{} ended without an answer: {status}", helper_exe.display()))
                .into())
        }
    }
}
