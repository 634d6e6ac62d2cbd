//! The relay: how ferry gets between a container runtime and CRIU.
//!
//! ```text
//! runtime ── starts ──> wrapper `criu` ── execs ──> ferry __relay ── execs ──> CRIU
//!    │ fd 3                                              │  ▲                    │ fd 3
//!    │                         the runtime's end ────────┘  └── a new end        │
//!    └──────────────────────────────> engine <───────────────────────────────────┘
//! ```
//!
//! The relay looks for an engine that waits for exactly this container and deed,
//! hands the socket that it was started with over to it, takes another in its place
//! and becomes CRIU. Whatever else CRIU is started for, the relay becomes CRIU at
//! once. So CRIU stays where the runtime put it: its child, in the cgroup of the
//! container, with the descriptors that a restore inherits.

use crate::criu::proto::request_type;
use crate::criu::rpc::runtime::{Interposed, Wanted};
use crate::criu::rpc::{LAZY_SOCKET, Launch, PagePayload, Swrk, fetch_nothing};
use crate::sys::fdpass;
use crate::sys::procfs::{self, stat};
use crate::sys::tripwire::Tripwire;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// The verb under which the relay is started: `__relay CRIU DIRECTORY ARGUMENTS…`.
pub const RELAY_VERB: &str = "__relay";

/// The longest message between relay and engine, and the longest command line.
const MAX_MESSAGE: usize = 64 << 10;
/// How long relay and engine wait for each other.
const PATIENCE: Duration = Duration::from_secs(10);
/// A runtime may have a process of its own between its command and CRIU.
const MAX_ANCESTORS: usize = 4;
/// The longest container ID that runtimes allow.
const MAX_ID: usize = 1024;

/// What a runtime does to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// It checkpoints it.
    Checkpoint,
    /// It restores it.
    Restore,
}

impl Deed {
    fn verb(self) -> &'static str {
        match self {
            Deed::Checkpoint => "checkpoint",
            Deed::Restore => "restore",
        }
    }

    fn request(self) -> i32 {
        match self {
            Deed::Checkpoint => request_type::DUMP,
            Deed::Restore => request_type::RESTORE,
        }
    }
}

/// What the relay says: whose CRIU it is about to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Announcement {
    id: String,
    deed: Deed,
}

/// What it is told: what to become.
#[derive(Serialize, Deserialize)]
struct Instruction {
    program: PathBuf,
    environment: Vec<(String, String)>,
    /// The numbers that it puts the further descriptors at.
    further: Vec<i32>,
}

/// Where an engine waits for a container's CRIU.
fn socket_path(directory: &Path, announcement: &Announcement) -> PathBuf {
    let mark = crc32fast::hash(announcement.id.as_bytes());
    directory.join(format!("{mark:08x}-{}.sock", announcement.deed.verb()))
}

/// An engine's wait for the CRIU of one container and deed.
#[derive(Debug)]
pub struct Registration {
    listener: UnixListener,
    path: PathBuf,
    announced: Announcement,
}

/// Why no CRIU came.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The runtime ended without.
    #[error("the runtime ended before it asked CRIU")]
    RuntimeEnded,
    /// It took too long.
    #[error("the runtime did not ask CRIU within {0:?}")]
    Silent(Duration),
    /// Something failed.
    #[error("the relay: {0}")]
    Io(#[from] io::Error),
}

impl Registration {
    /// From now on the CRIU that a runtime starts for this is ours.
    pub fn new(directory: &Path, id: &str, deed: Deed) -> io::Result<Registration> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let announced = Announcement { id: id.to_owned(), deed };
        let path = socket_path(directory, &announced);
        if UnixStream::connect(&path).is_ok() {
            let what = format!("another engine waits to {} container {id}", deed.verb());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
        }
        // Of an engine that was killed.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Registration { listener, path, announced })
    }

    /// Waits until CRIU is there and the runtime's request is parked; what the runtime
    /// asks of CRIU before, it gets. `is_up` says whether the runtime still runs.
    pub fn await_request(
        &self,
        launch: &Launch<'_>,
        patience: Duration,
        mut is_up: impl FnMut() -> bool,
    ) -> Result<Swrk, RelayError> {
        let deadline = Instant::now() + patience;
        loop {
            let up = is_up();
            if let Some(relay) = self.accept(Duration::from_millis(20))? {
                match self.take(relay, launch) {
                    Ok(Wanted::Parked(swrk)) => return Ok(*swrk),
                    Ok(Wanted::Aside) => {}
                    // That one becomes the CRIU that it would have been without us.
                    Err(error) => tracing::warn!(%error, "a relay could not be taken over"),
                }
            } else if !up {
                return Err(RelayError::RuntimeEnded);
            } else if Instant::now() > deadline {
                return Err(RelayError::Silent(patience));
            }
        }
    }

    fn accept(&self, patience: Duration) -> io::Result<Option<UnixStream>> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match self.listener.accept() {
            Ok((relay, _)) => Ok(Some(relay)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take(&self, relay: UnixStream, launch: &Launch<'_>) -> io::Result<Wanted> {
        relay.set_nonblocking(false)?;
        relay.set_read_timeout(Some(PATIENCE))?;
        let who = getsockopt(&relay, sockopt::PeerCredentials)?;
        if who.uid() != nix::unistd::geteuid().as_raw() || who.pid() <= 0 {
            return Err(io::Error::other(format!("{who:?} is no runtime of ours")));
        }
        let mut bytes = vec![0; MAX_MESSAGE];
        let (len, fds) = fdpass::receive(relay.as_fd(), &mut bytes)?;
        let announcement: Announcement = serde_json::from_slice(bytes.get(..len).unwrap_or_default())?;
        let socket = fds.into_iter().next();
        let (true, Some(socket)) = (announcement == self.announced, socket) else {
            return Err(io::Error::other("it is for another container"));
        };
        let (fetches_nothing, theirs) = match launch.pages {
            PagePayload::LazyPages => fetch_nothing().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
            PagePayload::Criu | PagePayload::Ferry => (None, None),
        };
        let (tripwire, end) = match self.announced.deed {
            Deed::Checkpoint => Tripwire::new().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
            Deed::Restore => (None, None),
        };
        let (interposed, criu) = Interposed::new(socket, who.pid(), tripwire, fetches_nothing)?;
        let text = |text: &OsStr| text.to_str().map(str::to_owned).ok_or(io::ErrorKind::InvalidFilename);
        let mut environment = Vec::new();
        for (name, value) in launch.environment() {
            environment.push((name.to_owned(), text(&value)?));
        }
        // What CRIU has to say is in its log, so its standard error can hold the tripwire's end.
        let further = [
            (theirs.as_ref().map(AsFd::as_fd), LAZY_SOCKET),
            (end.as_ref().map(AsFd::as_fd), libc::STDERR_FILENO),
        ];
        let further = further.into_iter().filter_map(|(end, at)| Some((end?, at)));
        let (further, numbers): (Vec<_>, Vec<_>) = further.unzip();
        let program = launch.criu.to_owned();
        let instruction = Instruction { program, environment, further: numbers };
        let give: Vec<_> = std::iter::once(criu.as_fd()).chain(further).collect();
        fdpass::send(relay.as_fd(), &serde_json::to_vec(&instruction)?, &give)?;
        drop((criu, theirs, end));
        interposed.attend(self.announced.deed.request())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes the program `criu` that a runtime is to find in place of CRIU into a
/// directory, and returns its path. It goes on to CRIU also when ferry is gone.
pub fn place_wrapper(
    directory: &Path,
    ferry: &Path,
    criu: &Path,
    registrations: &Path,
) -> io::Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = directory.join("criu");
    let draft = directory.join(format!(".criu-{}.new", std::process::id()));
    let (ferry, criu, registrations) = (quoted(ferry), quoted(criu), quoted(registrations));
    let script = format!(
        "#!/bin/sh\n\
         # Made by ferry: CRIU, unless an engine of ferry's waits for this very container.\n\
         [ ! -x {ferry} ] || exec {ferry} {RELAY_VERB} {criu} {registrations} \"$@\"\n\
         exec {criu} \"$@\"\n"
    );
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&draft)?;
    io::Write::write_all(&mut file, script.as_bytes())?;
    drop(file);
    std::fs::rename(&draft, &path)?;
    Ok(path)
}

/// The same for a runtime that an engine starts itself. Where the engine is gone there is
/// no CRIU: the runtime's checkpoint would go on without it, and end the container.
pub fn place_own_wrapper(directory: &Path, ferry: &Path, registrations: &Path) -> io::Result<PathBuf> {
    place_wrapper(directory, ferry, Path::new("/bin/false"), registrations)
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// The relay's main function. Returns only if CRIU cannot be started.
pub fn relay_main(criu: &str, mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let directory = PathBuf::from(arguments.next().unwrap_or_default());
    let arguments: Vec<String> = arguments.collect();
    let mut command = Command::new(criu);
    if let [verb, number] = &*arguments
        && verb == "swrk"
        && let Ok(number) = number.parse()
        && let Some(instruction) = hand_over(&directory, number)
    {
        command = Command::new(instruction.program);
        command.envs(instruction.environment);
    }
    let error = command.args(&arguments).exec();
    eprintln!("ferry: {criu}: {error}");
    ExitCode::from(127)
}

/// Gives descriptor `number` to the engine that waits for it and puts another in its
/// place. `None`: nobody waits, and nothing has changed.
fn hand_over(directory: &Path, number: i32) -> Option<Instruction> {
    let announcement = announcement()?;
    let engine = UnixStream::connect(socket_path(directory, &announcement)).ok()?;
    engine.set_read_timeout(Some(PATIENCE)).ok()?;
    let socket = fdpass::inherited(number).ok()?;
    let message = serde_json::to_vec(&announcement).ok()?;
    fdpass::send(engine.as_fd(), &message, &[socket.as_fd()]).ok()?;
    let mut bytes = vec![0; MAX_MESSAGE];
    let (len, fds) = fdpass::receive(engine.as_fd(), &mut bytes).ok()?;
    let instruction: Instruction = serde_json::from_slice(bytes.get(..len)?).ok()?;
    let mut fds = fds.into_iter();
    let criu: OwnedFd = fds.next()?;
    for (further, at) in fds.zip(&instruction.further) {
        fdpass::put_in_place(&further, *at).ok()?;
    }
    fdpass::put_in_place(&criu, number).ok()?;
    // In place of `number` it must not be closed again.
    if std::os::fd::AsRawFd::as_raw_fd(&criu) == number {
        std::mem::forget(criu);
    }
    Some(instruction)
}

/// Whose CRIU this process is about to be, by the command line of who started it.
fn announcement() -> Option<Announcement> {
    let mut pid = nix::unistd::getppid().as_raw();
    for _ in 0..MAX_ANCESTORS {
        let line = procfs::read_limited(&format!("/proc/{pid}/cmdline"), MAX_MESSAGE as u64).ok()?;
        if let Some(found) = runtime_command(&line) {
            return Some(found);
        }
        pid = stat::of(pid).ok().map(|stat| stat.parent).filter(|parent| *parent > 1)?;
    }
    None
}

/// `runc … checkpoint … ID`: the verb anywhere, the container last.
fn runtime_command(line: &[u8]) -> Option<Announcement> {
    let words: Vec<&[u8]> = line.strip_suffix(b"\0").unwrap_or(line).split(|byte| *byte == 0).collect();
    let (id, before) = words.split_last()?;
    let deed = [Deed::Checkpoint, Deed::Restore]
        .into_iter()
        .find(|deed| before.iter().skip(1).any(|word| *word == deed.verb().as_bytes()))?;
    let id = OsStr::from_bytes(id).to_str().filter(|id| is_container_id(id))?;
    Some(Announcement { id: id.to_owned(), deed })
}

/// Whether it can be the ID of a container.
pub fn is_container_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    !id.is_empty() && id.len() <= MAX_ID && id != "." && id != ".." && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(words: &[&str]) -> Option<Announcement> {
        runtime_command(format!("{}\0", words.join("\0")).as_bytes())
    }

    #[test]
    fn a_runtimes_command_line_says_whose_criu_it_is() {
        let docker = ["runc", "--root", "/run/docker/runtime-runc/moby", "restore", "--detach", "ab12"];
        let restore = Announcement { id: "ab12".into(), deed: Deed::Restore };
        assert_eq!(command(&docker), Some(restore));
        let checkpoint = Announcement { id: "x.y".into(), deed: Deed::Checkpoint };
        assert_eq!(command(&["crun", "checkpoint", "--image-path=/i", "x.y"]), Some(checkpoint));
        for other in [&["checkpoint", "ab"][..], &["runc", "list"], &["sh"], &["runc", "restore", "a/b"], &[]]
        {
            assert_eq!(command(other), None, "{other:?}");
        }
    }

    #[test]
    fn one_engine_a_container_and_deed() {
        let directory = tempfile::tempdir().unwrap();
        let first = Registration::new(directory.path(), "one", Deed::Checkpoint).unwrap();
        assert!(Registration::new(directory.path(), "one", Deed::Checkpoint).is_err());
        let _other = Registration::new(directory.path(), "one", Deed::Restore).unwrap();
        drop(first);
        Registration::new(directory.path(), "one", Deed::Checkpoint).unwrap();
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    proptest! {
        #[test]
        fn any_command_line_is_taken_calmly(line in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(found) = runtime_command(&line) {
                prop_assert!(is_container_id(&found.id));
            }
        }
    }
}
