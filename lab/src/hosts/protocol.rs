//! What the lab and the first process of a host say to each other: one JSON
//! document per datagram of a `SOCK_SEQPACKET` pair.
//!
//! Both ends are the same binary of the same build, so there is no version.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The longest message either side sends or accepts, in bytes.
pub const MESSAGE_LIMIT: usize = 128 * 1024;

/// What a host is to look like; handed to its first process as an argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostSetup {
    /// The host name set in its UTS namespace.
    pub hostname: String,
    /// Where its root directory comes from.
    pub file_system: super::FileSystem,
    /// A directory that all hosts of the lab see, already mounted.
    pub shared: PathBuf,
    /// The host's PIDs go on from here. Hosts differ, as machines that have
    /// run for a while do: a workload's PIDs are then free where it goes.
    pub last_pid: u32,
}

/// Where one of a program's standard streams leads. Paths are the host's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub enum Stdio {
    /// `/dev/null`.
    #[default]
    Null,
    /// This file, opened for reading (stdin) or created and appended to.
    File(PathBuf),
}

/// A program to start in a host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables added to the host's bare environment.
    pub env: Vec<(String, String)>,
    /// The working directory; `/` unless given.
    pub directory: Option<PathBuf>,
    /// The user and group to run as; root unless given.
    pub user: Option<(u32, u32)>,
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
}

impl Program {
    /// `path` without arguments, streams on `/dev/null`.
    pub fn new(path: impl Into<String>) -> Self {
        Program { argv: vec![path.into()], ..Program::default() }
    }
    /// `/bin/sh -c script`.
    pub fn shell(script: impl Into<String>) -> Self {
        Program::new("/bin/sh").args(["-c".to_string(), script.into()])
    }
    /// Adds one argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.argv.push(argument.into());
        self
    }
    /// Adds arguments.
    pub fn args<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.argv.extend(arguments.into_iter().map(Into::into));
        self
    }
    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
    /// Sets the working directory.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }
    /// Runs as this user and group.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }
    /// Reads standard input from a file.
    pub fn stdin(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdin = Stdio::File(path.into());
        self
    }
    /// Appends standard output to a file.
    pub fn stdout(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdout = Stdio::File(path.into());
        self
    }
    /// Appends standard error to a file.
    pub fn stderr(mut self, path: impl Into<PathBuf>) -> Self {
        self.stderr = Stdio::File(path.into());
        self
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// Whether it ended with code 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// From the lab to a host.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start a program.
    Spawn(Program),
    /// Send a signal to a PID of the host.
    Kill { pid: i32, signal: i32 },
}

/// From a host to the lab. `Ready` and `Failed` without a request come once,
/// at the start.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The host is set up.
    Ready,
    /// The program runs under this PID of the host.
    Spawned { pid: i32 },
    /// The signal was sent.
    Killed,
    /// What was asked could not be done.
    Failed { what: String },
    /// Unasked: a process that the host's first process was parent of ended.
    Exited { pid: i32, exit: Exit },
}
