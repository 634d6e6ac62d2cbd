//! The runtime's own commands.

use super::dump::Network;
use super::fails;
use super::relay::is_container_id;
use crate::sys::procfs::read_limited;
use crate::target::TargetError;
use crate::target::aftercare;
use serde::Deserialize;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where runc keeps its containers unless it is told otherwise.
const RUNC_ROOT: &str = "/run/runc";
/// Where it keeps the state of each, below the container's directory.
const STATE: &str = "state.json";
/// The longest answer or state file that is read.
const MAX_STATE: u64 = 4 << 20;
/// The tail of a runtime's log that is quoted.
const MAX_QUOTE: usize = 400;

/// A runtime and where it keeps its containers.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The program: `runc`.
    pub program: PathBuf,
    /// Its `--root`.
    pub root: PathBuf,
}

/// What a runtime says of a container.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    /// Its first process; 0 when there is none.
    #[serde(default)]
    pub pid: i32,
    /// `running`, `paused`, `stopped`, `created`.
    pub status: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
}

/// What runc keeps of a container and does not tell.
#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    external_descriptors: Vec<String>,
}

impl Runtime {
    /// runc, with its containers under `root` or where they are by default.
    pub fn runc(root: Option<PathBuf>) -> Runtime {
        Runtime { program: "runc".into(), root: root.unwrap_or_else(|| RUNC_ROOT.into()) }
    }

    /// Where the runtime keeps this container.
    pub fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// What it says of the container.
    ///
    /// # Errors
    /// There is none, or no runtime.
    pub fn state(&self, id: &str) -> Result<State, TargetError> {
        if !is_container_id(id) {
            return Err(fails(format!("{id:?} cannot be the ID of a container")));
        }
        let output = self.command().args(["state", id]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| fails(format!("{}: {error}", self.program.display())))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(fails(format!("container {id} in {}: {}", self.root.display(), quote(&said))));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| fails(format!("what {} says of {id}: {error}", self.program.display())))
    }

    /// What the container's first three descriptors were when it was started: the
    /// content of CRIU's `descriptors.json`, as runc makes it.
    pub(super) fn external_descriptors(&self, id: &str) -> io::Result<Vec<String>> {
        let path = self.directory(id).join(STATE);
        let bytes = read_limited(&path.display().to_string(), MAX_STATE)?;
        Ok(serde_json::from_slice::<Kept>(&bytes)?.external_descriptors)
    }

    /// Starts a checkpoint that goes through the wrapper to CRIU.
    pub(super) fn checkpoint(
        &self,
        id: &str,
        wrapper: &Path,
        scratch: &Path,
        network: Network,
    ) -> io::Result<Call> {
        let mut command = self.through(wrapper, scratch);
        command.arg("checkpoint").arg("--image-path").arg(scratch).arg("--work-path").arg(scratch);
        if network == Network::MadeByRuntime {
            command.args(["--empty-ns", "network"]);
        }
        command.arg(id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Call::start(command, scratch)
    }

    /// Starts a restore likewise; the container gets this standard input and output.
    pub(super) fn restore(
        &self,
        id: &str,
        bundle: &Path,
        wrapper: &Path,
        scratch: &Path,
        [stdin, stdout, stderr]: [Stdio; 3],
    ) -> io::Result<Call> {
        let mut command = self.through(wrapper, scratch);
        command.arg("restore").arg("--detach").arg("--bundle").arg(bundle);
        command.arg("--image-path").arg(scratch).arg("--work-path").arg(scratch);
        command.arg(id).stdin(stdin).stdout(stdout).stderr(stderr);
        Call::start(command, scratch)
    }

    /// Removes what is left of a container that has no process any more.
    pub(super) fn delete(&self, id: &str) {
        aftercare::run(&self.delete_command(id));
    }

    pub(super) fn delete_command(&self, id: &str) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        vec![
            text(&self.program),
            "--root".into(),
            text(&self.root),
            "delete".into(),
            "--force".into(),
            id.into(),
        ]
    }

    /// Whether a container of this ID is there: half-made ones have no state yet.
    pub(super) fn has(&self, id: &str) -> bool {
        self.directory(id).join(STATE).exists()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        command
    }

    /// Where runc has an option for CRIU's place, it is used; newer ones look on the PATH.
    fn through(&self, wrapper: &Path, scratch: &Path) -> Command {
        let mut command = self.command();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = wrapper.parent().map(Path::to_owned);
        if let Ok(path) = std::env::join_paths(first.into_iter().chain(std::env::split_paths(&path))) {
            command.env("PATH", path);
        }
        command.arg("--criu").arg(wrapper).arg("--log").arg(Call::log_in(scratch));
        // An interrupt from the terminal is for ferry alone.
        command.process_group(0);
        command
    }
}

/// A runtime's command under way.
#[derive(Debug)]
pub(super) struct Call {
    child: Child,
    log: PathBuf,
}

impl Call {
    fn log_in(scratch: &Path) -> PathBuf {
        scratch.join("runtime.log")
    }

    fn start(mut command: Command, scratch: &Path) -> io::Result<Call> {
        Ok(Call { child: command.spawn()?, log: Call::log_in(scratch) })
    }

    pub(super) fn is_up(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has ended; one that does not is killed.
    pub(super) fn wait(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        while self.is_up() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.is_up() {
            tracing::warn!(?patience, "the runtime does not come to an end and is killed");
            self.child.kill()?;
        }
        self.child.wait()
    }

    /// What it complained of.
    pub(super) fn complaint(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        quote(&log)
    }
}

/// The end of what a program said, on one line.
fn quote(said: &str) -> String {
    let said = said.trim().replace('\n', "; ");
    let from = said.char_indices().rev().nth(MAX_QUOTE).map_or(0, |(at, _)| at);
    said[from..].to_owned()
}
