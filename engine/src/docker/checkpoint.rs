//! The checkpoint that Docker is told to start a container from.
//!
//! Docker packs a checkpoint's directory into containerd's store and unpacks it again
//! for runc, whatever is in it. The images that CRIU reads are ferry's, elsewhere: what
//! Docker carries is only what runc itself looks at before CRIU is asked.

use super::api::{Api, ApiError, Waiting, escaped};
use super::container::{Container, Volumes, remove};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// What ferry's checkpoints are called in Docker's directory.
pub const NAME: &str = "ferry";
/// What runc compares the copy's standard streams with.
const DESCRIPTORS: &str = "descriptors.json";

/// A checkpoint directory of a container that is about to be started. It is locked
/// while its maker lives; dropping it removes it.
#[derive(Debug)]
pub struct Stub {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Stub {
    /// Makes it for the container `id`. `descriptors` is what runc wrote, or would have
    /// written, of the original's standard streams.
    pub fn make(api: &Api, id: &str, descriptors: &[String]) -> Result<Stub, StubError> {
        let container = directory_of(api, id)?;
        Stub::in_directory(&container, descriptors).map_err(|error| StubError::Directory { container, error })
    }

    /// Makes it in the directory that Docker keeps of a container.
    pub fn in_directory(container: &Path, descriptors: &[String]) -> io::Result<Stub> {
        let all = container.join("checkpoints");
        for directory in [&all, &all.join(NAME)] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        let directory = all.join(NAME);
        let lock = Flock::lock(File::open(&directory)?, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| io::Error::from(errno))?;
        fs::write(directory.join(DESCRIPTORS), serde_json::to_vec(descriptors)?)?;
        // Some versions ask whether it is there.
        fs::write(directory.join("inventory.img"), [])?;
        Ok(Stub { directory, _lock: lock })
    }
}

/// Whether a container was made to be started from a checkpoint of ferry's and never
/// was: its maker was killed.
pub fn is_half_made(api: &Api, container: &Container) -> bool {
    let Ok(directory) = directory_of(api, container.id()) else { return false };
    let Ok(stub) = File::open(directory.join("checkpoints").join(NAME)) else { return false };
    container.text("/State/Status") == "created" && Flock::lock(stub, FlockArg::LockSharedNonblock).is_ok()
}

/// Where Docker keeps what it knows of a container.
fn directory_of(api: &Api, id: &str) -> Result<PathBuf, ApiError> {
    let info = api.get("/info")?;
    let root = info.get("DockerRootDir").and_then(Value::as_str).unwrap_or("/var/lib/docker");
    Ok(Path::new(root).join("containers").join(id))
}

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Why there is no checkpoint to start from.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// Docker does not say where.
    #[error(transparent)]
    Docker(#[from] ApiError),
    /// Its directory cannot be used: this process may see other files than the engine.
    #[error("Docker's directory {} cannot be written: {error} (ferry must see the files that the engine sees)", container.display())]
    Directory {
        /// The container's directory.
        container: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What runc would write of the standard streams of a running process.
pub fn descriptors_of(pid: i32) -> io::Result<Vec<String>> {
    let link = |number| fs::read_link(format!("/proc/{pid}/fd/{number}"));
    (0..3).map(|number| Ok(link(number)?.to_string_lossy().into_owned())).collect()
}

/// A start that is under way: CRIU decides when it ends.
#[derive(Debug)]
pub struct Start {
    api: Api,
    id: String,
    thread: JoinHandle<Result<Value, ApiError>>,
    _stub: Stub,
}

impl Start {
    /// Has Docker start the container from the checkpoint, and does not wait for it.
    pub fn begin(api: &Api, id: &str, stub: Stub) -> io::Result<Start> {
        let path = format!("/containers/{}/start?checkpoint={NAME}", escaped(id));
        let asking = api.clone();
        let thread = std::thread::Builder::new()
            .name("docker-start".into())
            .spawn(move || asking.post(&path, &Value::Null, Waiting::Forever))?;
        Ok(Start { api: api.clone(), id: id.to_owned(), thread, _stub: stub })
    }

    /// Whether Docker has answered.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for Docker's word: the container runs, or why it does not.
    pub fn wait(self) -> Result<Container, String> {
        match self.thread.join() {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the thread that asked Docker panicked".into()),
        }
        let container = Container::inspect(&self.api, &self.id).map_err(|error| error.to_string())?;
        match container.pid() {
            Some(_) => Ok(container),
            None => Err(format!("the container is {:?}", container.text("/State/Status"))),
        }
    }

    /// Waits for the end of a start that CRIU has been made to fail; then the container
    /// is as it was before, or gone.
    pub fn discard(self, container: Failed) -> Discarded {
        // Docker holds the container until the start has failed.
        let said = match self.thread.join() {
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(_)) | Err(_) => String::new(),
        };
        let removed = match container {
            Failed::Goes => remove(&self.api, &self.id, Volumes::Go),
            Failed::Stays => Ok(()),
        };
        Discarded { said, removed }
    }
}

/// What becomes of a container that could not be started from a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It was made for the start, and goes.
    Goes,
    /// It was there before, and stays.
    Stays,
}

/// A start that was undone.
#[derive(Debug)]
pub struct Discarded {
    /// What Docker said of it.
    pub said: String,
    /// Whether what was to go is gone.
    pub removed: Result<(), ApiError>,
}
