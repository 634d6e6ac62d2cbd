//! One CRIU process (`criu swrk`) and the conversation with it.
//!
//! CRIU is started before it is needed and waits for its request. A request with
//! `notify_scripts` is answered by a row of notifications, each of which holds
//! CRIU until it is answered, and at last by a response. When this process dies
//! CRIU reads the end of the socket where it waits for an answer, and takes that
//! for a failed one: it undoes what it did.

use super::proto::{Features, Notify, Options, Request, Response, request_type};
use crate::sys::tripwire::Tripwire;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prost::Message;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The longest message that CRIU may send.
const MAX_MESSAGE: usize = 64 << 10;

/// How long CRIU may take to come up; tenths of a second are usual where it finds
/// out about the kernel for the first time.
const WARM_UP: Duration = Duration::from_secs(20);

/// How long CRIU may take to exit after it was hung up on.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What CRIU said.
#[derive(Debug)]
pub enum Said {
    /// It reached a stage and waits for an answer.
    Stage {
        /// The stage's name, as for action scripts.
        name: String,
        /// The root task's PID, where CRIU tells it.
        pid: Option<i32>,
    },
    /// It is done.
    Done {
        /// Whether it succeeded.
        success: bool,
        /// The root task's PID, after a restore.
        pid: Option<i32>,
        /// CRIU's own words.
        message: String,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// CRIU is gone.
    #[error("CRIU died{}", .0.as_ref().map_or_else(String::new, |status| format!(" ({status})")))]
    Died(Option<std::process::ExitStatus>),
    /// It says nothing.
    #[error("CRIU did not get on within {0:?}")]
    Silent(Duration),
    /// It said something that cannot be read.
    #[error("CRIU's message cannot be read: {0}")]
    Malformed(String),
    /// The socket failed.
    #[error("the socket to CRIU: {0}")]
    Socket(#[from] io::Error),
}

/// How CRIU is started.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The program.
    pub criu: &'a Path,
    /// The object to preload, if any.
    pub shim: Option<&'a Path>,
    /// Whether the dump leaves out private pages.
    pub pages: PagePayload,
}

/// Whose the private pages are in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagePayload {
    /// CRIU dumps them.
    Criu,
    /// The preloaded object hides them from CRIU: ferry carries them.
    Ferry,
    /// CRIU is asked for a lazy dump, keeps most of them in pipes and writes none of
    /// those: ferry carries them. Where nothing can be preloaded.
    LazyPages,
}

/// The descriptor that a lazy dump takes for its connection to whoever fetches
/// pages: its standard output.
pub const LAZY_SOCKET: i32 = 1;

/// A CRIU process that waits for a request or an answer.
#[derive(Debug)]
pub struct Swrk {
    child: Child,
    socket: OwnedFd,
    tripwire: Tripwire,
    /// The other end of [`LAZY_SOCKET`], on which nothing is ever asked for.
    _fetches_nothing: Option<UnixStream>,
}

impl Swrk {
    /// Starts CRIU with the socket as its stdin, nothing else of ours, and in a
    /// process group of its own: an interrupt from the terminal is for us alone.
    pub fn start(launch: &Launch<'_>) -> io::Result<Swrk> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut command = Command::new(launch.criu);
        let (tripwire, end) = Tripwire::new()?;
        // What CRIU has to say is in its log. An end to read from takes no word of it.
        command.args(["swrk", "0"]).stdin(theirs).stdout(Stdio::null()).stderr(end);
        command.process_group(0);
        let mut fetches_nothing = None;
        if launch.pages == PagePayload::LazyPages {
            // After its last stage CRIU would serve pages until its connection ends.
            // This one has ended: it goes on at once to remove or resume the tree.
            let (ours, theirs) = UnixStream::pair()?;
            ours.shutdown(std::net::Shutdown::Write)?;
            command.stdout(OwnedFd::from(theirs));
            fetches_nothing = Some(ours);
        }
        if let Some(shim) = launch.shim {
            command.env("LD_PRELOAD", shim);
            if let Some(file) = super::shim::kernel_data(shim, launch.criu) {
                command.env("FERRY_KDAT", file);
            }
        }
        match launch.pages {
            PagePayload::Ferry => command.env("FERRY_SHIM", "pages"),
            PagePayload::Criu | PagePayload::LazyPages => command.env_remove("FERRY_SHIM"),
        };
        Ok(Swrk { child: command.spawn()?, socket: ours, tripwire, _fetches_nothing: fetches_nothing })
    }

    /// CRIU's PID.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until CRIU is up and has found out about the kernel, so that a later
    /// request pays for neither. A harmless question makes it do so.
    pub fn warm_up(&mut self) -> Result<(), RpcError> {
        self.say(&Request {
            kind: request_type::FEATURE_CHECK,
            keep_open: Some(true),
            features: Some(Features { lazy_pages: Some(true) }),
            ..Request::default()
        })?;
        match self.next(WARM_UP)? {
            Said::Done { success: true, .. } => Ok(()),
            said => Err(RpcError::Malformed(format!("it does not come up: {said:?}"))),
        }
    }

    /// Has the threads, which CRIU holds, stopped by the kernel if CRIU dies, before they
    /// come free. Until [`Swrk::may_end`].
    pub fn stop_at_death(&mut self, threads: impl IntoIterator<Item = i32>) -> io::Result<()> {
        threads.into_iter().try_for_each(|thread| self.tripwire.stop_at_death(thread))
    }

    /// From now on CRIU's end stops nobody.
    pub fn may_end(&mut self) {
        self.tripwire.disarm();
    }

    /// Asks for a dump.
    pub fn dump(&mut self, options: Options) -> Result<(), RpcError> {
        self.request(request_type::DUMP, options)
    }

    /// Asks for a restore.
    pub fn restore(&mut self, options: Options) -> Result<(), RpcError> {
        self.request(request_type::RESTORE, options)
    }

    fn request(&mut self, kind: i32, options: Options) -> Result<(), RpcError> {
        self.say(&Request { kind, options: Some(options), ..Request::default() })
    }

    /// Answers the stage that CRIU waits at.
    pub fn answer(&mut self, success: bool) -> Result<(), RpcError> {
        self.say(&Request { kind: request_type::NOTIFY, notify_success: Some(success), ..Request::default() })
    }

    fn say(&mut self, request: &Request) -> Result<(), RpcError> {
        match send(self.socket.as_raw_fd(), &request.encode_to_vec(), MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET) => Err(self.died()),
            Err(error) => Err(RpcError::Socket(error.into())),
        }
    }

    /// Waits for CRIU's next word.
    pub fn next(&mut self, patience: Duration) -> Result<Said, RpcError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis().min(i32::MAX as u128) as i32 + 1)
                .unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return Err(RpcError::Silent(patience)),
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => break,
                Err(error) => return Err(RpcError::Socket(error.into())),
            }
        }
        let mut buffer = vec![0; MAX_MESSAGE];
        let len = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => return Err(self.died()),
            Ok(len) => len,
            Err(error) => return Err(RpcError::Socket(error.into())),
        };
        let response =
            Response::decode(&buffer[..len]).map_err(|error| RpcError::Malformed(error.to_string()))?;
        Ok(match (response.kind, response.notify) {
            (request_type::NOTIFY, Some(Notify { script, pid })) => {
                Said::Stage { name: script.unwrap_or_default(), pid }
            }
            _ => Said::Done {
                success: response.success,
                pid: response.restore.map(|restore| restore.pid),
                message: response.message.unwrap_or_default(),
            },
        })
    }

    /// Answers every stage with success until `wanted` is reached; that one is
    /// left unanswered. `None` when CRIU finished before.
    pub fn advance_to(&mut self, wanted: &[&str], patience: Duration) -> Result<Reached, RpcError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Said::Stage { name, pid } if wanted.contains(&name.as_str()) => {
                    return Ok(Reached::Stage { name, pid });
                }
                Said::Stage { name, .. } => {
                    tracing::trace!(stage = name, "CRIU");
                    self.answer(true)?;
                }
                Said::Done { success, pid, message } => return Ok(Reached::End { success, pid, message }),
            }
        }
    }

    /// Kills CRIU and waits for it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Hangs up and waits until CRIU has exited; one that does not is killed.
    pub fn wait(mut self) {
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let deadline = Instant::now() + LAST_WORDS;
        while self.is_up() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.kill();
    }

    /// Whether the process lives.
    pub fn is_up(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn died(&mut self) -> RpcError {
        // It closed its socket, which it does only by exiting.
        let deadline = Instant::now() + LAST_WORDS;
        while self.is_up() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        RpcError::Died(self.child.try_wait().ok().flatten())
    }
}

impl Drop for Swrk {
    /// Hangs up; CRIU then undoes what it holds, and exits. That takes its time, and
    /// is waited for aside, so that no zombie keeps the PID.
    fn drop(&mut self) {
        if !self.is_up() {
            return;
        }
        self.may_end();
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let pid = nix::unistd::Pid::from_raw(self.pid());
        let reap = move || {
            let _ = nix::sys::wait::waitpid(pid, None);
        };
        let aside = std::thread::Builder::new().name("ferry-reap".into()).spawn(reap);
        if aside.is_err() {
            // No memory for a thread: then here.
            reap();
        }
    }
}

/// Where [`Swrk::advance_to`] got.
#[derive(Debug)]
pub enum Reached {
    /// A wanted stage, unanswered.
    Stage {
        /// Which.
        name: String,
        /// The root task's PID, where CRIU tells it.
        pid: Option<i32>,
    },
    /// The end.
    End {
        /// Whether CRIU succeeded.
        success: bool,
        /// The root task's PID, after a restore.
        pid: Option<i32>,
        /// CRIU's own words.
        message: String,
    },
}
