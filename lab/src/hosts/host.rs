//! One host, seen from the lab.

use super::init::INIT_VERB;
use super::network::{self, Cable, NetworkNamespace, Switch};
use super::protocol::{Exit, HostSetup, MESSAGE_LIMIT, Program, Reply, Request};
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a host may take for an answer that needs no waiting: generous,
/// since a loaded machine must not look like a broken host.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// One machine of a lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    network: NetworkNamespace,
    switch: Arc<Switch>,
    /// The host's PID 1, as this process sees it.
    first_process: i32,
    keeper: Mutex<Child>,
    line: Arc<Line>,
    answers: Mutex<Receiver<Reply>>,
    reader: Option<JoinHandle<()>>,
    next_file: AtomicU64,
}

/// The lab's end of the socket and what has come in on it unasked.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    exits: Mutex<Exits>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Exits {
    by_pid: HashMap<i32, VecDeque<Exit>>,
    host_gone: bool,
}

impl Line {
    fn exits(&self) -> MutexGuard<'_, Exits> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// Starts the host's processes; [`Host::wait_ready`] must follow.
    pub(super) fn start(helper: &Path, setup: &HostSetup, switch: Arc<Switch>) -> Result<Host> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("socketpair")?;
        let mut keeper = Command::new(helper)
            .arg(INIT_VERB)
            .arg(serde_json::to_string(setup)?)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", helper.display()))?;
        let line = Arc::new(Line { socket: ours, exits: Mutex::default(), changed: Condvar::new() });
        let (sender, answers) = channel();
        let reader = std::thread::Builder::new().name(format!("lab-{}", setup.hostname)).spawn({
            let line = line.clone();
            move || read_replies(&line, &sender)
        });
        let reader = reader.inspect_err(|_| drop(keeper.kill()))?;
        let network = NetworkNamespace::of_process(keeper.id() as i32)?;
        Ok(Host {
            name: setup.hostname.clone(),
            address: Ipv4Addr::UNSPECIFIED,
            network,
            switch,
            first_process: 0,
            keeper: Mutex::new(keeper),
            line,
            answers: Mutex::new(answers),
            reader: Some(reader),
            next_file: AtomicU64::new(0),
        })
    }

    /// Waits until the host has made its namespaces and mounts.
    pub(super) fn wait_ready(&mut self) -> Result<()> {
        let answers = self.answers.get_mut().unwrap_or_else(PoisonError::into_inner);
        match answers.recv_timeout(ANSWER_DEADLINE) {
            Ok(Reply::Ready) => {}
            Ok(Reply::Failed { what }) => bail!("host {}: {what}", self.name),
            Ok(other) => bail!("host {} started with {other:?}", self.name),
            Err(_) => bail!("host {} did not start: its helper must handle the verb {INIT_VERB}", self.name),
        }
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner).id();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
        self.first_process =
            children.trim().parse().with_context(|| format!("host {} has no first process", self.name))?;
        self.network = NetworkNamespace::of_process(self.first_process)?;
        Ok(())
    }

    pub(super) fn network(&self) -> &NetworkNamespace {
        &self.network
    }

    pub(super) fn set_address(&mut self, address: Ipv4Addr) {
        self.address = address;
    }

    /// The host's name, also its UTS host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's own address on `eth0` (/24).
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The host's PID 1, as this process sees it.
    pub fn first_process(&self) -> i32 {
        self.first_process
    }

    /// A path of the host, as this process reaches it.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.first_process))
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Starts a program in the host, as leader of a session of its own and
    /// with no descriptor beyond 0-2.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, program: Program) -> Result<Process<'_>> {
        match self.ask(&Request::Spawn(program))? {
            Reply::Spawned { pid } => Ok(Process { host: self, pid }),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Runs a program to its end and takes what it printed.
    ///
    /// # Errors
    /// When it cannot be started; not when it fails (see [`Output::exit`]).
    pub fn run(&self, mut program: Program) -> Result<Output> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let file = |stream: &str| PathBuf::from(format!("/run/lab-{number}.{stream}"));
        let (stdout, stderr) = (file("out"), file("err"));
        program = program.stdout(&stdout).stderr(&stderr);
        let exit = self.spawn(program)?.wait()?;
        let take = |inside: &Path| -> Result<String> {
            let path = self.path(inside);
            let text = fs::read(&path).with_context(|| path.display().to_string())?;
            fs::remove_file(&path)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        Ok(Output { exit, stdout: take(&stdout)?, stderr: take(&stderr)? })
    }

    /// Sends a signal to a PID of the host.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, pid: i32, signal: Signal) -> Result<()> {
        self.ask(&Request::Kill { pid, signal: signal as i32 }).map(drop)
    }

    /// Forgets that a process of this PID ended earlier: the PID is about to
    /// be used again (by a restored process).
    pub fn forget_exit(&self, pid: i32) {
        self.line.exits().by_pid.remove(&pid);
    }

    /// Waits until a process that is (or was, by adoption) a child of the
    /// host's first process has ended; `None` after `limit`.
    ///
    /// # Errors
    /// When the host itself has ended.
    pub fn wait_exit(&self, pid: i32, limit: Duration) -> Result<Option<Exit>> {
        let deadline = Instant::now() + limit;
        let mut exits = self.line.exits();
        loop {
            if let Some(exit) = exits.by_pid.get_mut(&pid).and_then(VecDeque::pop_front) {
                return Ok(Some(exit));
            }
            if exits.host_gone {
                bail!("host {} is gone", self.name);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(None) };
            exits = self.line.changed.wait_timeout(exits, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Every process of the host as (PID here, PID in the host), its first
    /// process included.
    pub fn processes(&self) -> Result<Vec<(i32, i32)>> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.first_process))
            .with_context(|| format!("host {} is gone", self.name))?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(outer) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link == namespace) {
                let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
                let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
                if let Some(inner) = inner.and_then(|pids| pids.split_whitespace().last()?.parse().ok()) {
                    found.push((outer, inner));
                }
            }
        }
        Ok(found)
    }

    /// The PID here of a process of the host.
    ///
    /// # Errors
    /// When the host has no such process.
    pub fn outer_pid(&self, pid: i32) -> Result<i32> {
        self.processes()?
            .into_iter()
            .find_map(|(outer, inner)| (inner == pid).then_some(outer))
            .with_context(|| format!("host {} has no process {pid}", self.name))
    }

    /// Runs `work` on a thread inside the host's network. Sockets that it
    /// opens stay the host's wherever they are used later.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.network.run(work)
    }

    /// Adds an address to `eth0`, such as one that is to move.
    ///
    /// # Errors
    /// As the kernel says, for instance when it is there already.
    pub fn add_address(&self, address: IpAddr, prefix_length: u8) -> Result<()> {
        network::add_address(&self.network, address, prefix_length)
    }

    /// Takes an address from `eth0`.
    ///
    /// # Errors
    /// As the kernel says, or when it is not there.
    pub fn remove_address(&self, address: IpAddr) -> Result<()> {
        network::remove_address(&self.network, address)
    }

    /// The addresses of `eth0`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        network::addresses(&self.network)
    }

    /// Cuts or mends the host's cable. Its addresses and routes stay.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_cable(&self, cable: Cable) -> Result<()> {
        self.switch.set_cable(&self.name, cable)
    }

    /// Begins to end the host; [`Host::wait_off`] waits for the end.
    pub(super) fn power_off(&self) {
        // PID 1 sees the end of its socket and exits; the kernel ends the rest
        // of the namespace before PID 1 can be reaped, and the keeper after it.
        let _ = shutdown(self.line.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Waits until no process of the host is left.
    pub(super) fn wait_off(&self) {
        let _ = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        let text = serde_json::to_vec(request)?;
        if text.len() > MESSAGE_LIMIT {
            bail!("request of {} bytes is too long", text.len());
        }
        // Held over question and answer: one at a time.
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        send(self.line.socket.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL)
            .with_context(|| format!("host {} is gone", self.name))?;
        match answers.recv_timeout(ANSWER_DEADLINE) {
            Ok(Reply::Failed { what }) => Err(anyhow!("host {}: {what}", self.name)),
            Ok(reply) => Ok(reply),
            Err(_) => bail!("host {} does not answer", self.name),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.power_off();
        self.wait_off();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn read_replies(line: &Line, answers: &Sender<Reply>) {
    let mut buffer = vec![0u8; MESSAGE_LIMIT];
    loop {
        let length = match recv(line.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => break,
            Ok(length) => length,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => break,
        };
        match serde_json::from_slice(&buffer[..length]) {
            Ok(Reply::Exited { pid, exit }) => {
                line.exits().by_pid.entry(pid).or_default().push_back(exit);
                line.changed.notify_all();
            }
            Ok(reply) => {
                if let Reply::Spawned { pid } = reply {
                    line.exits().by_pid.remove(&pid);
                }
                if answers.send(reply).is_err() {
                    break;
                }
            }
            Err(error) => tracing::error!("unreadable message from a host: {error}"),
        }
    }
    line.exits().host_gone = true;
    line.changed.notify_all();
}

/// A program running in a host. Dropping this leaves it running.
#[derive(Clone, Copy, Debug)]
pub struct Process<'lab> {
    host: &'lab Host,
    /// Its PID in the host.
    pub pid: i32,
}

impl Process<'_> {
    /// Its PID as this process sees it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn outer_pid(&self) -> Result<i32> {
        self.host.outer_pid(self.pid)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the host has ended.
    pub fn wait(&self) -> Result<Exit> {
        loop {
            if let Some(exit) = self.wait_for(Duration::from_secs(3600))? {
                return Ok(exit);
            }
        }
    }

    /// Waits for its end at most this long.
    ///
    /// # Errors
    /// When the host has ended.
    pub fn wait_for(&self, limit: Duration) -> Result<Option<Exit>> {
        self.host.wait_exit(self.pid, limit)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        self.host.kill(self.pid, signal)
    }
}

/// What a program printed and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// Its standard error; what is not UTF-8 is replaced.
    pub stderr: String,
}
