//! The first process of a host.
//!
//! Two processes per host: the *keeper*, in the lab's PID namespace, makes the
//! namespaces and waits; its child, PID 1 of the host, sets up the file system
//! and then does what the lab says and reaps whatever is orphaned. A zombie
//! would keep its PID, and a later restore of that PID would fail.
//!
//! The lab and PID 1 share a socket pair. When the lab's end closes, however
//! the lab ended (dropped, Ctrl-C, `kill -9`), PID 1 exits, and the kernel
//! ends every process of its PID namespace and with them all other namespaces.

use super::file_system;
use super::protocol::{Exit, HostSetup, MESSAGE_LIMIT, Program, Reply, Request, Stdio};
use crate::sys;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, setsid};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The verb under which a binary must call [`init_main`].
pub const INIT_VERB: &str = "__host-init";

/// Runs the first process of a host; the hidden verb [`INIT_VERB`] of the
/// binary. `setup` is its only argument; the socket to the lab is its standard
/// input.
///
/// Must be called while the process still has one thread.
pub fn init_main(setup: &str) -> ExitCode {
    match keeper(setup) {
        Ok(code) => code,
        Err(error) => {
            let stdin = std::io::stdin();
            let _ = reply(stdin.as_fd(), &Reply::Failed { what: format!("{error:#}") });
            ExitCode::FAILURE
        }
    }
}

fn keeper(setup: &str) -> Result<ExitCode> {
    let setup: HostSetup = serde_json::from_str(setup).context("unreadable host set-up")?;
    // Out of the terminal's process group: Ctrl-C is for the lab alone.
    setsid().context("setsid")?;
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("cannot make namespaces (root is needed)")?;
    match sys::fork_single_threaded().context("fork")? {
        ForkResult::Child => {
            let stdin = std::io::stdin();
            if let Err(error) = first_process(&setup, stdin.as_fd()) {
                let _ = reply(stdin.as_fd(), &Reply::Failed { what: format!("{error:#}") });
            }
            sys::exit_now(0)
        }
        ForkResult::Parent { child } => {
            // Only PID 1 may hold the socket, so that the lab sees it end.
            let null = File::open("/dev/null")?;
            nix::unistd::dup2_stdin(&null)?;
            while !matches!(
                waitpid(child, None),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_)
            ) {}
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn first_process(setup: &HostSetup, lab: BorrowedFd<'_>) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let children = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    nix::unistd::sethostname(&setup.hostname).context("sethostname")?;
    file_system::set_up(setup)?;
    std::env::set_current_dir("/")?;
    fs::write("/proc/sys/kernel/ns_last_pid", setup.last_pid.to_string()).context("ns_last_pid")?;
    reply(lab, &Reply::Ready)?;

    let mut buffer = vec![0u8; MESSAGE_LIMIT];
    loop {
        let mut ready =
            [PollFd::new(lab, PollFlags::POLLIN), PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        while children.read_signal()?.is_some() {}
        while let Some((pid, exit)) = sys::reap() {
            reply(lab, &Reply::Exited { pid: pid.as_raw(), exit })?;
        }
        if ready[0].revents().is_some_and(|events| !events.is_empty()) {
            let length = recv(lab.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap_or(0);
            if length == 0 {
                return Ok(()); // the lab is gone
            }
            let answer = match serde_json::from_slice(&buffer[..length]) {
                Ok(request) => answer(request),
                Err(error) => Reply::Failed { what: format!("unreadable request: {error}") },
            };
            reply(lab, &answer)?;
        }
    }
}

fn answer(request: Request) -> Reply {
    let result = match request {
        Request::Spawn(program) => spawn(&program).map(|pid| Reply::Spawned { pid }),
        Request::Kill { pid, signal } => Signal::try_from(signal)
            .and_then(|signal| kill(Pid::from_raw(pid), signal))
            .map(|()| Reply::Killed)
            .with_context(|| format!("cannot send signal {signal} to {pid}")),
    };
    result.unwrap_or_else(|error| Reply::Failed { what: format!("{error:#}") })
}

fn spawn(program: &Program) -> Result<i32> {
    let (path, arguments) = program.argv.split_first().context("no program given")?;
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .current_dir(program.directory.as_deref().unwrap_or("/".as_ref()))
        .stdin(open(&program.stdin, OpenOptions::new().read(true))?)
        .stdout(open(&program.stdout, OpenOptions::new().create(true).append(true))?)
        .stderr(open(&program.stderr, OpenOptions::new().create(true).append(true))?);
    if let Some((uid, gid)) = program.user {
        command.uid(uid).gid(gid);
    }
    sys::detach(&mut command);
    let child = command.spawn().with_context(|| format!("cannot start {path}"))?;
    Ok(child.id() as i32)
}

fn open(stream: &Stdio, options: &OpenOptions) -> Result<File> {
    let (path, options) = match stream {
        Stdio::Null => ("/dev/null".as_ref(), OpenOptions::new().read(true).write(true).clone()),
        Stdio::File(path) => (path.as_path(), options.clone()),
    };
    options.open(path).with_context(|| path.display().to_string())
}

fn reply(lab: BorrowedFd<'_>, reply: &Reply) -> Result<()> {
    let text = serde_json::to_vec(reply)?;
    send(lab.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL).context("the lab is gone")?;
    Ok(())
}

impl From<Exit> for i32 {
    /// As a shell would say it: the code, or 128 and the signal.
    fn from(exit: Exit) -> i32 {
        match exit {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}
