//! One CRIU process (`criu swrk`) and the conversation with it.
//!
//! It is a child of ours, or one that a container runtime started; then ferry is in
//! the middle of *their* conversation: [`runtime`].
//!
//! CRIU is started before it is needed and waits for its request. A request with
//! `notify_scripts` is answered by a row of notifications, each of which holds
//! CRIU until it is answered, and at last by a response. When this process dies
//! CRIU reads the end of the socket where it waits for an answer, and takes that
//! for a failed one: it undoes what it did.

mod overlay;
mod process;
pub mod runtime;
mod socket;

use super::proto::{Features, Notify, Options, Request, Response, request_type};
use crate::sys::tripwire::Tripwire;
use process::Process;
use prost::Message;
use runtime::Runtime;
use socket::{Deaf, Packet, Socket};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    Socket(io::Error),
    /// The container runtime does not go along.
    #[error("the container runtime gave up: {0}")]
    Runtime(String),
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

impl Launch<'_> {
    /// What the preloaded object is told.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = Vec::new();
        if let Some(shim) = self.shim {
            variables.push(("LD_PRELOAD", shim.as_os_str().to_owned()));
            if let Some(file) = super::shim::kernel_data(shim, self.criu) {
                variables.push(("FERRY_KDAT", file.into_os_string()));
            }
        }
        if self.pages == PagePayload::Ferry {
            variables.push(("FERRY_SHIM", "pages".into()));
        }
        variables
    }
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
    process: Process,
    socket: Socket,
    /// Who asked for it, where that was not ferry.
    runtime: Option<Runtime>,
    /// Absent where CRIU was not given its end.
    tripwire: Option<Tripwire>,
    /// The other end of [`LAZY_SOCKET`], on which nothing is ever asked for.
    _fetches_nothing: Option<UnixStream>,
}

/// A connection that has ended: after its last stage a lazy dump would serve pages
/// until its connection ends, and with this one it goes on at once to remove or
/// resume the tree. Ours, and CRIU's.
pub fn fetch_nothing() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.shutdown(std::net::Shutdown::Write)?;
    Ok((ours, theirs))
}

impl Swrk {
    /// Starts CRIU with the socket as its stdin, nothing else of ours, and in a
    /// process group of its own: an interrupt from the terminal is for us alone.
    pub fn start(launch: &Launch<'_>) -> io::Result<Swrk> {
        let (socket, theirs) = Socket::pair()?;
        let mut command = Command::new(launch.criu);
        let (tripwire, end) = Tripwire::new()?;
        // What CRIU has to say is in its log. An end to read from takes no word of it.
        command.args(["swrk", "0"]).stdin(theirs).stdout(Stdio::null()).stderr(end);
        command.process_group(0);
        let mut fetches_nothing = None;
        if launch.pages == PagePayload::LazyPages {
            let (ours, theirs) = fetch_nothing()?;
            command.stdout(OwnedFd::from(theirs));
            fetches_nothing = Some(ours);
        }
        command.env_remove("FERRY_SHIM").envs(launch.environment());
        let process = Process::Own(command.spawn()?);
        let tripwire = Some(tripwire);
        Ok(Swrk { process, socket, runtime: None, tripwire, _fetches_nothing: fetches_nothing })
    }

    /// CRIU's PID.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Waits until CRIU is up and has found out about the kernel, so that a later
    /// request pays for neither. A harmless question makes it do so.
    pub fn warm_up(&mut self) -> Result<(), RpcError> {
        let question = Request {
            kind: request_type::FEATURE_CHECK,
            keep_open: Some(true),
            features: Some(Features { lazy_pages: Some(true) }),
            ..Request::default()
        };
        self.say(&question.encode_to_vec())?;
        match self.hear(WARM_UP)?.0 {
            Said::Done { success: true, .. } => Ok(()),
            said => Err(RpcError::Malformed(format!("it does not come up: {said:?}"))),
        }
    }

    /// Has the threads, which CRIU holds, stopped by the kernel if CRIU dies, before they
    /// come free. Until [`Swrk::may_end`].
    pub fn stop_at_death(&mut self, threads: impl IntoIterator<Item = i32>) -> io::Result<()> {
        let tripwire = self.tripwire.as_mut().ok_or_else(|| io::Error::other("CRIU has no tripwire"))?;
        threads.into_iter().try_for_each(|thread| tripwire.stop_at_death(thread))
    }

    /// From now on CRIU's end stops nobody.
    pub fn may_end(&mut self) {
        if let Some(tripwire) = &mut self.tripwire {
            tripwire.disarm();
        }
    }

    /// Asks for a dump. Of a runtime's request for one, what `options` says is
    /// changed and the rest is kept.
    pub fn dump(&mut self, options: Options) -> Result<(), RpcError> {
        self.request(request_type::DUMP, options)
    }

    /// Asks for a restore, likewise.
    pub fn restore(&mut self, options: Options) -> Result<(), RpcError> {
        self.request(request_type::RESTORE, options)
    }

    fn request(&mut self, kind: i32, options: Options) -> Result<(), RpcError> {
        let request = match &self.runtime {
            Some(runtime) => runtime.request(kind, &options).map_err(RpcError::Runtime)?,
            None => Request { kind, options: Some(options), ..Request::default() }.encode_to_vec(),
        };
        self.say(&request)
    }

    /// Answers the stage that CRIU waits at. Success is a runtime's to say too, as
    /// long as the hold has not been reached.
    pub fn answer(&mut self, success: bool) -> Result<(), RpcError> {
        let consent = match &mut self.runtime {
            Some(runtime) if success => runtime.consent(),
            _ => Ok(None),
        };
        let own = |success| {
            Request { kind: request_type::NOTIFY, notify_success: Some(success), ..Request::default() }
                .encode_to_vec()
        };
        match consent {
            Ok(Some(theirs)) => self.say(&theirs),
            Ok(None) => self.say(&own(success)),
            Err(error) => {
                self.say(&own(false))?;
                Err(RpcError::Runtime(error.to_string()))
            }
        }
    }

    /// Whether a container runtime is at the other end of the conversation.
    pub fn has_runtime(&self) -> bool {
        self.runtime.is_some()
    }

    /// Has a runtime do now what it does at the stage that CRIU waits at, which stays
    /// unanswered.
    pub fn consult_runtime(&mut self) -> Result<(), RpcError> {
        match &mut self.runtime {
            Some(runtime) => runtime.consult().map_err(|error| RpcError::Runtime(error.to_string())),
            None => Ok(()),
        }
    }

    fn say(&mut self, request: &[u8]) -> Result<(), RpcError> {
        match self.socket.say(request) {
            Ok(()) => Ok(()),
            Err(Deaf::Closed) => Err(self.died()),
            Err(other) => Err(RpcError::Socket(other.into())),
        }
    }

    /// Waits for CRIU's next word.
    pub fn next(&mut self, patience: Duration) -> Result<Said, RpcError> {
        let (said, packet) = self.hear(patience)?;
        if let Some(runtime) = &mut self.runtime {
            match &said {
                Said::Stage { name, .. } => runtime.reached(packet, name),
                Said::Done { .. } => runtime.ended(&packet),
            }
        }
        Ok(said)
    }

    fn hear(&mut self, patience: Duration) -> Result<(Said, Packet), RpcError> {
        let packet = match self.socket.hear(patience) {
            Ok(packet) => packet,
            Err(Deaf::Closed) => return Err(self.died()),
            Err(Deaf::Silent) => return Err(RpcError::Silent(patience)),
            Err(Deaf::TooLong(len)) => return Err(RpcError::Malformed(format!("{len} bytes"))),
            Err(Deaf::Failed(error)) => return Err(RpcError::Socket(error)),
        };
        let response =
            Response::decode(&*packet.bytes).map_err(|error| RpcError::Malformed(error.to_string()))?;
        let said = match (response.kind, response.notify) {
            (request_type::NOTIFY, Some(Notify { script, pid })) => {
                Said::Stage { name: script.unwrap_or_default(), pid }
            }
            _ => Said::Done {
                success: response.success,
                pid: response.restore.map(|restore| restore.pid),
                message: response.message.unwrap_or_default(),
            },
        };
        Ok((said, packet))
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
        self.process.kill();
        self.hang_up();
    }

    /// Hangs up and waits until CRIU has exited; one that does not is killed.
    pub fn wait(mut self) {
        self.hang_up();
        self.process.wait(LAST_WORDS);
        self.process.kill();
    }

    /// Whether the process lives.
    pub fn is_up(&mut self) -> bool {
        self.process.is_up()
    }

    /// A runtime, too, hears then that it is over, and undoes what it did.
    fn hang_up(&self) {
        self.socket.hang_up();
        if let Some(runtime) = &self.runtime {
            runtime.hang_up();
        }
    }

    fn died(&mut self) -> RpcError {
        // It closed its socket, which it does only by exiting.
        let status = self.process.wait(LAST_WORDS);
        self.hang_up();
        RpcError::Died(status)
    }
}

impl Drop for Swrk {
    /// Hangs up; CRIU then undoes what it holds, and exits. That takes its time, and
    /// is waited for aside, so that no zombie keeps the PID.
    fn drop(&mut self) {
        self.hang_up();
        if !self.is_up() || matches!(self.process, Process::Theirs { .. }) {
            return;
        }
        self.may_end();
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
