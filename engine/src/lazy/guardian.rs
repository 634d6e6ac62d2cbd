//! The pager is two processes, so that either may be killed.
//!
//! ```text
//! guardian ----- one table of descriptors ----- worker
//!     waits for the worker's end                serves, fills, looks after its parent
//! ```
//!
//! The kernel fills a restored task's memory with zeroes as soon as the last copy of
//! its userfaultfd is closed. The guardian shares the worker's descriptor table, so
//! that nothing is closed when the worker is killed: not what CRIU handed over, not
//! what the kernel opened for a forked child in the instant before. The guardian then
//! makes another worker, which works out from the [`Ledger`] where things stand; the
//! workload saw a pause. When the guardian is killed, the worker divides as it had
//! been made, and its child goes on.
//!
//! What remains: whoever kills both within that moment (`kill -9` of the group, a
//! cgroup that is killed as a whole, a service manager that ends all processes of a
//! service) kills the workload's memory.

use super::ledger::Ledger;
use super::protocol::{self, MAX_MESSAGE};
use super::server::{self, End};
use crate::sys::fdpass;
use crate::sys::twin::{self, Twin};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A worker that lived this long had no trouble at its start.
const SETTLED: Duration = Duration::from_secs(1);
/// How often a worker may die before CRIU has entrusted anything to it.
const PATIENCE: u32 = 4;

/// What successive workers have in common: descriptors in the one table. Nothing of
/// this is closed before the end, so that no number of it means something else later.
pub(super) struct Common {
    pub(super) control: BorrowedFd<'static>,
    pub(super) arena: Arc<File>,
    pub(super) plan: File,
    pub(super) listener: UnixListener,
    pub(super) ledger: File,
    pub(super) wake: Arc<File>,
}

/// The pager's `main`: everything it needs comes over fd 0. To be called first
/// thing in a process started by [`super::PagerHandle::spawn`].
pub fn pager_main() -> ExitCode {
    // Never closed, so that its number never means anything else.
    let stdin: &'static io::Stdin = Box::leak(Box::new(io::stdin()));
    let control = stdin.as_fd();
    detach();
    match parked(control).and_then(|common| common.map_or(Ok(()), |common| guard(&common))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(control, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn report(control: BorrowedFd<'_>, text: &str) {
    eprintln!("ferry pager: {text}");
    let mut message = protocol::words(&[protocol::FAILED]);
    message.extend(text.bytes().take(MAX_MESSAGE - 8));
    // The engine may be gone; the log has it.
    let _ = fdpass::send(control, &message, &[]);
}

/// What happens to the engine's terminal or session is not ours, and of all
/// processes this is the last that memory pressure should take. A thread that panics
/// ends its process: the other one has a better chance.
fn detach() {
    let _ = nix::unistd::setsid();
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE]);
    let _ = signals.thread_block();
    // Refused without CAP_SYS_RESOURCE.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// Waits to be armed; `None` when the engine left instead.
fn parked(control: BorrowedFd<'static>) -> io::Result<Option<Common>> {
    loop {
        let mut message = [0; MAX_MESSAGE];
        let (len, fds) = match fdpass::receive(control, &mut message) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if len == 0 {
            return Ok(None);
        }
        if protocol::parse(&message[..len]).first() == Some(&protocol::ARM) {
            let fds: [OwnedFd; 3] =
                fds.try_into().map_err(|_| io::Error::other("armed without descriptors"))?;
            let [arena, plan, listener] = fds;
            let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            return Ok(Some(Common {
                control,
                arena: Arc::new(arena.into()),
                plan: plan.into(),
                listener: listener.into(),
                ledger: Ledger::create()?,
                wake: Arc::new(OwnedFd::from(wake).into()),
            }));
        }
    }
}

/// Has a worker do the work, and another when that is killed. Returns in both.
fn guard(common: &Common) -> io::Result<()> {
    let mut deaths = 0;
    loop {
        let (began, guardian) = (Instant::now(), Pid::this());
        match twin::divide() {
            Ok(Twin::Child) => match server::work(common, guardian) {
                Ok(End::Over) => return Ok(()),
                Ok(End::Orphaned) => {
                    eprintln!("ferry pager: the guardian is gone; another worker takes over")
                }
                Err(error) => {
                    eprintln!("ferry pager: {error}");
                    if !Ledger::is_begun(&common.ledger) {
                        report(common.control, &error.to_string());
                    }
                    std::process::exit(1);
                }
            },
            Ok(Twin::Parent(worker)) => {
                let end = ended(worker);
                if end == WaitStatus::Exited(worker, 0) {
                    return Ok(());
                }
                eprintln!("ferry pager: the worker is gone ({end:?})");
                if began.elapsed() > SETTLED {
                    deaths = 0;
                }
            }
            Err(error) => eprintln!("ferry pager: no worker: {error}"),
        }
        deaths += 1;
        if deaths > PATIENCE && !Ledger::is_begun(&common.ledger) {
            return Err(io::Error::other(
                "its worker died again and again, before anything was entrusted to it",
            ));
        }
        // While tasks depend on it there is no giving up: they wait, but they keep their memory.
        std::thread::sleep(Duration::from_millis((1 << deaths.min(8)) - 2));
    }
}

fn ended(worker: Pid) -> WaitStatus {
    loop {
        match waitpid(worker, None) {
            Err(nix::Error::EINTR) => {}
            Ok(end) => return end,
            // Somebody else reaped it; nothing is known but that it is gone.
            Err(_) => return WaitStatus::StillAlive,
        }
    }
}
