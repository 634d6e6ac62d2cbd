//! The runtime that believes to talk to CRIU, with ferry in between.

use super::Swrk;
use super::overlay::{self, Unreadable};
use super::process::Process;
use super::socket::{Packet, Socket};
use crate::criu::proto::{CONFIG_FILE, FREEZE_CGROUP, Options};
use crate::sys::tripwire::Tripwire;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a runtime may take over a stage; its hooks may be programs of the user.
const PATIENCE: Duration = Duration::from_secs(30);

/// What of a runtime's request is never passed on: its freezer, which CRIU polls in
/// steps of 100 ms (the tree is stopped by ptrace), and a file of settings that
/// would override ours.
const NOT_PASSED_ON: [u32; 2] = [FREEZE_CGROUP, CONFIG_FILE];

/// Whether the runtime's consent is still asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consent {
    /// A runtime that is gone, or refuses, ends it.
    Needed,
    /// CRIU's hold has been reached: ferry alone decides from here on, and the
    /// runtime is told.
    Told,
}

/// A runtime whose request is held back.
#[derive(Debug)]
pub(super) struct Runtime {
    /// `None` once it has hung up.
    socket: Option<Socket>,
    request: Vec<u8>,
    /// The stage that CRIU reached and the runtime does not know of.
    untold: Option<Packet>,
    /// What the runtime said to the stage that it knows of.
    answer: Option<Vec<u8>>,
    consent: Consent,
}

impl Runtime {
    /// The runtime's request with our options in it.
    pub(super) fn request(&self, kind: i32, ours: &Options) -> Result<Vec<u8>, String> {
        let said = |error: Unreadable| error.to_string();
        match overlay::kind(&self.request).map_err(said)? {
            theirs if theirs == kind => {}
            theirs => return Err(format!("the runtime asks for {theirs} where {kind} was expected")),
        }
        overlay::with_options(&self.request, ours, &NOT_PASSED_ON).map_err(said)
    }

    /// CRIU reached a stage.
    pub(super) fn reached(&mut self, stage: Packet, name: &str) {
        if matches!(name, "post-dump" | "post-restore") {
            self.consent = Consent::Told;
        }
        self.untold = Some(stage);
        self.answer = None;
    }

    /// Tells the runtime of the stage, if it does not know, and hears what it says.
    pub(super) fn consult(&mut self) -> Result<(), io::Error> {
        let Some(stage) = self.untold.take() else { return Ok(()) };
        let fds: Vec<_> = stage.fds.iter().map(|fd| fd.as_fd()).collect();
        let heard = match &self.socket {
            Some(socket) => socket.say_with(&stage.bytes, &fds).and_then(|()| socket.hear(PATIENCE)),
            None => Err(super::socket::Deaf::Closed),
        };
        match heard {
            Ok(packet) => {
                self.answer = Some(packet.bytes);
                Ok(())
            }
            Err(deaf) => {
                self.socket = None;
                Err(deaf.into())
            }
        }
    }

    /// Its consent to the stage, as it is passed on to CRIU; `None`: ours will do.
    pub(super) fn consent(&mut self) -> Result<Option<Vec<u8>>, io::Error> {
        match (self.consult(), self.consent) {
            (Ok(()), _) => Ok(self.answer.take()),
            (Err(error), Consent::Told) => {
                tracing::warn!(%error, "the runtime is gone");
                Ok(None)
            }
            (Err(error), Consent::Needed) => Err(error),
        }
    }

    /// CRIU's last word.
    pub(super) fn ended(&mut self, response: &Packet) {
        self.untold = None;
        if let Some(socket) = &self.socket {
            let _ = socket.say(&response.bytes);
        }
    }

    pub(super) fn hang_up(&self) {
        if let Some(socket) = &self.socket {
            socket.hang_up();
        }
    }
}

/// CRIU as a runtime starts it, whose place we take in the conversation.
#[derive(Debug)]
pub struct Interposed {
    runtime: Socket,
    criu: Socket,
    process: Process,
    tripwire: Option<Tripwire>,
    fetches_nothing: Option<UnixStream>,
}

/// What a runtime wanted of a CRIU that it started.
#[derive(Debug)]
pub enum Wanted {
    /// Something that needs us: its request is held back.
    Parked(Box<Swrk>),
    /// Something else (its version, a feature), which it got.
    Aside,
}

impl Interposed {
    /// With the runtime's end of its conversation and CRIU's number. The other end of
    /// the conversation with CRIU is for CRIU itself, and so are the tripwire's and what is
    /// to become its standard output, where they are wanted.
    pub fn new(
        runtime: OwnedFd,
        pid: i32,
        tripwire: Option<Tripwire>,
        fetches_nothing: Option<UnixStream>,
    ) -> io::Result<(Interposed, OwnedFd)> {
        let (criu, theirs) = Socket::pair()?;
        let process = Process::of(pid)?;
        Ok((Interposed { runtime: Socket::of(runtime), criu, process, tripwire, fetches_nothing }, theirs))
    }

    /// Waits for the runtime's request: parks it if it is of this kind, else passes
    /// on both ways what they have to say to each other.
    pub fn attend(self, kind: i32) -> io::Result<Wanted> {
        let request = self.runtime.hear(PATIENCE)?;
        if overlay::kind(&request.bytes).map_err(io::Error::other)? == kind {
            let runtime = Runtime {
                socket: Some(self.runtime),
                request: request.bytes,
                untold: None,
                answer: None,
                consent: Consent::Needed,
            };
            return Ok(Wanted::Parked(Box::new(Swrk {
                process: self.process,
                socket: self.criu,
                runtime: Some(runtime),
                tripwire: self.tripwire,
                _fetches_nothing: self.fetches_nothing,
            })));
        }
        self.criu.say(&request.bytes)?;
        let response = self.criu.hear(PATIENCE)?;
        self.runtime.say(&response.bytes)?;
        Ok(Wanted::Aside)
    }
}
