//! The engine's side of the pager.

use super::SOCKET_NAME;
use super::plan::{FillOptions, Plan};
use super::protocol::{self, Drained, MAX_MESSAGE};
use crate::images::Assembly;
use crate::sys::fdpass;
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What is wrong with the pager.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// It could not be started or spoken to.
    #[error("pager: {what}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It said so itself.
    #[error("pager: {0}")]
    Failed(String),
    /// Guardian and worker are gone. Tasks that they had been given lack pages, which
    /// read as zeroes: they are not to be trusted.
    #[error("the pager died, both of its processes, see {}", log.display())]
    Died {
        /// Its log.
        log: PathBuf,
    },
}

/// A pager. Dropping the handle leaves an armed pager that CRIU has connected to
/// at its work, and ends any other.
#[derive(Debug)]
pub struct PagerHandle {
    pid: u32,
    /// Until it has been reaped.
    guardian: Option<Child>,
    control: Option<OwnedFd>,
    listener: Option<UnixListener>,
    log: PathBuf,
}

impl PagerHandle {
    /// Starts `helper_exe __pager` and makes the socket for CRIU in `work_dir`,
    /// where the pager's log goes too. To be called before the freeze: nothing of
    /// this needs the pages.
    pub fn spawn(helper_exe: &Path, work_dir: &Path) -> Result<PagerHandle, PagerError> {
        Self::spawn_command(Command::new(helper_exe).arg("__pager"), work_dir)
    }

    /// As [`PagerHandle::spawn`], with a command of the caller's that ends up in
    /// [`super::pager_main`].
    pub fn spawn_command(command: &mut Command, work_dir: &Path) -> Result<PagerHandle, PagerError> {
        let failed = |what| move |cause| PagerError::Io { what, cause };
        let listener = listen(work_dir).map_err(failed("lazy-pages.socket"))?;
        let log = work_dir.join("pager.log");
        let log_file = File::create(&log).map_err(failed("pager.log"))?;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair.map_err(io::Error::from).map_err(failed("socketpair"))?;
        let child = command
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log_file))
            .spawn()
            .map_err(failed("start"))?;
        let pid = child.id();
        Ok(PagerHandle { pid, guardian: Some(child), control: Some(ours), listener: Some(listener), log })
    }

    /// Hands over arena and plan. On success CRIU may be started; on failure the
    /// pager serves nothing, and the restore must not begin.
    pub fn arm(&mut self, assembly: &Assembly, options: FillOptions) -> Result<(), PagerError> {
        let failed = |what| move |cause| PagerError::Io { what, cause };
        let plan = Plan::write(assembly, options).map_err(failed("plan"))?;
        let listener =
            self.listener.take().ok_or(io::ErrorKind::AlreadyExists.into()).map_err(failed("arm"))?;
        let fds = [assembly.arena.as_fd(), plan.as_fd(), listener.as_fd()];
        fdpass::send(self.control()?, &protocol::words(&[protocol::ARM]), &fds).map_err(failed("arm"))?;
        self.wait_for(protocol::ARMED).map(|_| ())
    }

    /// Waits until CRIU says that the tasks are about to run.
    pub fn wait_restored(&mut self) -> Result<(), PagerError> {
        self.wait_for(protocol::RESTORED).map(|_| ())
    }

    /// Waits until every page is in place.
    pub fn wait_drained(&mut self) -> Result<Drained, PagerError> {
        let message = self.wait_for(protocol::DRAINED)?;
        let drained =
            Drained::decode(&message).ok_or_else(|| PagerError::Failed("malformed answer".into()))?;
        // It exits right after this message.
        self.guardian.take().iter_mut().for_each(|guardian| drop(guardian.wait()));
        Ok(drained)
    }

    /// Ends the pager. Only once no task depends on it: the restore was never
    /// begun, or what it made has been removed.
    pub fn kill(&mut self) {
        self.control = None;
        if let Some(mut guardian) = self.guardian.take() {
            // Both at once: one alone would be replaced. The guardian leads their group
            // from before there are two, and its number is ours until it is reaped.
            let _ = killpg(Pid::from_raw(guardian.id() as i32), Signal::SIGKILL);
            let _ = guardian.kill();
            let _ = guardian.wait();
        }
    }

    /// Its PID, for the journal: the guardian's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn control(&self) -> Result<std::os::fd::BorrowedFd<'_>, PagerError> {
        self.control.as_ref().map(AsFd::as_fd).ok_or_else(|| PagerError::Died { log: self.log.clone() })
    }

    fn wait_for(&self, wanted: u64) -> Result<Vec<u8>, PagerError> {
        let mut message = [0; MAX_MESSAGE];
        loop {
            let len = match fdpass::receive(self.control()?, &mut message) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) if cause.kind() != io::ErrorKind::ConnectionReset => {
                    return Err(PagerError::Io { what: "receive", cause });
                }
                Ok((len @ 1.., _)) => len,
                _ => return Err(PagerError::Died { log: self.log.clone() }),
            };
            match protocol::parse(&message[..len]).first() {
                Some(&kind) if kind == wanted => return Ok(message[..len].to_vec()),
                Some(&protocol::FAILED) => {
                    return Err(PagerError::Failed(String::from_utf8_lossy(&message[8..len]).into_owned()));
                }
                Some(&protocol::RENEWED) => {
                    tracing::warn!(log = %self.log.display(), "the pager was killed; another took over");
                }
                _ => {}
            }
        }
    }
}

impl Drop for PagerHandle {
    fn drop(&mut self) {
        // Without us it ends by itself unless tasks depend on it; only then is
        // there nothing to wait for, and it is init's in the end.
        self.control = None;
        self.guardian.iter_mut().for_each(|guardian| drop(guardian.try_wait()));
    }
}

/// Binds through the directory's descriptor: a socket's path is limited to 108 bytes.
fn listen(work_dir: &Path) -> io::Result<UnixListener> {
    let directory = File::open(work_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd()));
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}
