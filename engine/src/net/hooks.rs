//! `--hook DIR`: programs of the operator, run at named stages, for everything
//! that ferry does not do itself (a load balancer, BGP, a VIP daemon, storage).
//!
//! A stage's program is the executable in DIR that has the stage's name. It is
//! run without arguments, with an empty standard input, in the root directory,
//! and with these variables beside ferry's own environment:
//!
//! | variable | content |
//! |---|---|
//! | `FERRY_STAGE` | the stage's name |
//! | `FERRY_ROLE` | `source` or `destination` |
//! | `FERRY_ID` | the migration's id, 32 hex digits |
//! | `FERRY_TARGET` | the target, for example `pid:4711 (redis-server)` |
//! | `FERRY_PEER` | the other side's address and port |
//! | `FERRY_PID` | the tree's first process on this host, where it has one |
//! | `FERRY_ADDRESS`, `FERRY_INTERFACE` | the address that moves, if one does |
//! | `FERRY_REASON` | with `aborted` and `discarded`: why |
//!
//! Up to the commit a program that fails (exit status other than 0, a signal, the
//! timeout) aborts the migration, and the workload stays at the source; after it,
//! it is only warned about. Programs of the stages `frozen`, `address-released`,
//! `before-restore` and `restored` run inside the downtime.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// When a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Source: everything is ready; the freeze comes next.
    PreFreeze,
    /// Source: every task stands still.
    Frozen,
    /// Source: the address is off this host.
    AddressReleased,
    /// Source: the workload runs at the destination.
    Committed,
    /// Source: the workload goes on here.
    Aborted,
    /// Destination: the restore comes next; the address is here already.
    BeforeRestore,
    /// Destination: the copy is complete and held.
    Restored,
    /// Destination: the copy runs.
    Running,
    /// Destination: the copy was removed before it ran.
    Discarded,
}

/// What a failing program means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The migration is aborted.
    Aborts,
    /// A warning.
    Warns,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 9] = [
        Stage::PreFreeze,
        Stage::Frozen,
        Stage::AddressReleased,
        Stage::Committed,
        Stage::Aborted,
        Stage::BeforeRestore,
        Stage::Restored,
        Stage::Running,
        Stage::Discarded,
    ];

    /// The stage's name, and its program's.
    pub fn name(self) -> &'static str {
        match self {
            Stage::PreFreeze => "pre-freeze",
            Stage::Frozen => "frozen",
            Stage::AddressReleased => "address-released",
            Stage::Committed => "committed",
            Stage::Aborted => "aborted",
            Stage::BeforeRestore => "before-restore",
            Stage::Restored => "restored",
            Stage::Running => "running",
            Stage::Discarded => "discarded",
        }
    }

    /// Whose stage it is.
    pub fn role(self) -> &'static str {
        match self {
            Stage::PreFreeze | Stage::Frozen | Stage::AddressReleased | Stage::Committed | Stage::Aborted => {
                "source"
            }
            Stage::BeforeRestore | Stage::Restored | Stage::Running | Stage::Discarded => "destination",
        }
    }

    /// Before the commit a failure aborts; afterwards there is nothing to abort.
    pub fn on_failure(self) -> OnFailure {
        match self {
            Stage::PreFreeze
            | Stage::Frozen
            | Stage::AddressReleased
            | Stage::BeforeRestore
            | Stage::Restored => OnFailure::Aborts,
            Stage::Committed | Stage::Aborted | Stage::Running | Stage::Discarded => OnFailure::Warns,
        }
    }
}

/// What a program is told.
#[derive(Clone, Debug, Default)]
pub struct HookFacts {
    /// The migration's id, as it is printed.
    pub id: String,
    /// The target, for people.
    pub target: String,
    /// The other side.
    pub peer: String,
    /// The tree's first process on this host.
    pub pid: Option<i32>,
    /// The address that moves.
    pub address: Option<String>,
    /// Its interface.
    pub interface: Option<String>,
    /// Why it was aborted or discarded.
    pub reason: Option<String>,
}

/// A program that failed in a stage where this aborts.
#[derive(Debug, thiserror::Error)]
#[error("the hook {stage} failed: {how}{}{output}", if .output.is_empty() { "" } else { ": " })]
pub struct HookFailed {
    /// Which.
    pub stage: &'static str,
    /// Exit status, signal, timeout, or that it could not be started.
    pub how: String,
    /// The first bytes of what it wrote.
    pub output: String,
}

/// The most that is kept of a program's output; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 16 * 1024;
/// How long a program may take unless the caller says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The programs of one hook directory. Which stages have one is found out once,
/// so that a stage without one costs a look into an empty map.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    programs: BTreeMap<Stage, PathBuf>,
    timeout: Duration,
}

impl Hooks {
    /// No programs.
    pub fn none() -> Hooks {
        Hooks::default()
    }

    /// Finds the programs in `directory`.
    ///
    /// # Errors
    /// It cannot be read; it, or a program, may be written to by users other than
    /// root and the caller's own (they would run code as this user); a file has a
    /// stage's name and is not executable.
    pub fn open(directory: &Path, timeout: Duration) -> io::Result<Hooks> {
        let directory = directory.canonicalize()?;
        refuse_writable(&directory)?;
        let mut programs = BTreeMap::new();
        for stage in Stage::ALL {
            let program = directory.join(stage.name());
            let about = match std::fs::metadata(&program) {
                Ok(about) => about,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            refuse_writable(&program)?;
            if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
                let what = format!("the hook {} is not an executable file", program.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            programs.insert(stage, program);
        }
        Ok(Hooks { programs, timeout })
    }

    /// Whether a stage has a program.
    pub fn has(&self, stage: Stage) -> bool {
        self.programs.contains_key(&stage)
    }

    /// Runs a stage's program, if it has one, and waits for it. Blocking.
    ///
    /// # Errors
    /// The program failed in a stage where this aborts ([`Stage::on_failure`]);
    /// in the others it is logged and `Ok`.
    pub fn run(&self, stage: Stage, facts: &HookFacts) -> Result<(), HookFailed> {
        let Some(program) = self.programs.get(&stage) else { return Ok(()) };
        let Err(failure) = execute(program, stage, facts, self.timeout) else { return Ok(()) };
        match stage.on_failure() {
            OnFailure::Aborts => Err(failure),
            OnFailure::Warns => {
                tracing::warn!("{failure}");
                Ok(())
            }
        }
    }
}

fn refuse_writable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let about = std::fs::metadata(path)?;
    let own = nix::unistd::geteuid().as_raw();
    if about.mode() & 0o022 != 0 || (about.uid() != 0 && about.uid() != own) {
        let what = format!("{} may be changed by other users: hooks run with ferry's rights", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

fn execute(program: &Path, stage: Stage, facts: &HookFacts, timeout: Duration) -> Result<(), HookFailed> {
    let failed = |how: String, output: &[u8]| HookFailed {
        stage: stage.name(),
        how,
        output: String::from_utf8_lossy(output).trim().to_owned(),
    };
    let (reader, writer) = io::pipe().map_err(|error| failed(error.to_string(), b""))?;
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env("FERRY_STAGE", stage.name())
        .env("FERRY_ROLE", stage.role())
        .env("FERRY_ID", &facts.id)
        .env("FERRY_TARGET", &facts.target)
        .env("FERRY_PEER", &facts.peer)
        .envs(facts.pid.map(|pid| ("FERRY_PID", pid.to_string())))
        .envs(facts.address.as_ref().map(|address| ("FERRY_ADDRESS", address)))
        .envs(facts.interface.as_ref().map(|interface| ("FERRY_INTERFACE", interface)))
        .envs(facts.reason.as_ref().map(|reason| ("FERRY_REASON", reason)))
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(|error| failed(error.to_string(), b""))?)
        .stderr(writer)
        // A group of its own, so that a timeout ends its children too.
        .process_group(0);
    let child = command.spawn().map_err(|error| failed(format!("it could not be started: {error}"), b""))?;
    // The command holds our copies of the pipe's writing end.
    drop(command);
    let mut output = Vec::new();
    match wait(child, reader, timeout, &mut output) {
        Ok(Some(status)) if status.success() => {
            tracing::debug!(stage = stage.name(), output = %String::from_utf8_lossy(&output), "hook");
            Ok(())
        }
        Ok(Some(status)) => Err(failed(status.to_string(), &output)),
        Ok(None) => Err(failed(format!("it ran for more than {timeout:?} and was killed"), &output)),
        Err(error) => Err(failed(error.to_string(), &output)),
    }
}

/// Waits for the program and reads what it writes; `None` after the timeout. What
/// it leaves running with the pipe open is not waited for.
fn wait(
    mut child: Child,
    mut pipe: io::PipeReader,
    timeout: Duration,
    output: &mut Vec<u8>,
) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    let mut open = true;
    loop {
        if let Some(status) = child.try_wait()? {
            while open && readable(&pipe, 0) && output.len() < OUTPUT_LIMIT {
                open = read_some(&mut pipe, output)? > 0;
            }
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let group = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        if !open {
            // It closed its output and lives on; its exit alone is to be awaited.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        // The pipe closes with the program, which wakes us at once; the slice is
        // for a program whose children keep the pipe.
        if readable(&pipe, 10) {
            open = read_some(&mut pipe, output)? > 0;
        }
    }
}

/// Whether a read would not block, waiting at most this many milliseconds for it.
fn readable(pipe: &io::PipeReader, milliseconds: u8) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let wait = PollTimeout::from(milliseconds);
    poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], wait).unwrap_or(0) > 0
}

/// Reads a part and keeps what fits.
fn read_some(pipe: &mut io::PipeReader, output: &mut Vec<u8>) -> io::Result<usize> {
    let mut part = [0; 4096];
    let length = pipe.read(&mut part)?;
    let room = OUTPUT_LIMIT.saturating_sub(output.len());
    output.extend_from_slice(&part[..length.min(room)]);
    Ok(length)
}
