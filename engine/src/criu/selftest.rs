//! Whether a CRIU works here, found out by using it: a small process with a
//! listening socket is dumped, let go, dumped again, removed, restored, run.
//!
//! `criu check` does not tell: a CRIU that is too old for the kernel passes it and
//! fails on the first socket. The process is ours, its socket lives in a network
//! namespace of its own, the images in a temporary directory.

use super::rpc::PagePayload;
use crate::memory::ProcessSet;
use crate::memory::native::DescendantSet;
use crate::net::interface;
use crate::net::netlink::Netlink;
use crate::target::process::{Criu, ProcessRestorer, ProcessTarget};
use crate::target::{FreezeTimes, RestorePlan, Restorer, Target, TargetError};
use ferry_transport::wire::control::TcpMode;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// rtnetlink's protocol number.
const NETLINK_ROUTE: isize = 0;
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the self-test measured: the fixed cost of a freeze and of a restore here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// From the request until a single process stood still, microseconds.
    pub freeze_us: u64,
    /// From there until its images were complete, microseconds.
    pub dump_us: u64,
    /// From the request of a restore until it was held, microseconds.
    pub restore_us: u64,
    /// From its release until it ran, microseconds.
    pub release_us: u64,
    /// Whether dumps may leave memory to ferry.
    pub payload_free: PayloadFree,
}

/// Whether an object preloaded into CRIU keeps it from dumping pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadFree {
    /// It does.
    Works,
    /// It does not, and why; a lazy dump, which was tested too, takes its place.
    Fails(String),
}

/// Why a CRIU is not used.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The process to be dumped could not be made.
    #[error("the self-test could not be set up: {0}")]
    Setup(std::io::Error),
    /// CRIU failed at it.
    #[error("self-test: {0}")]
    Criu(#[from] TargetError),
    /// The process did not survive.
    #[error("self-test: the process did not survive its {0}")]
    Lost(&'static str),
}

/// Dumps and restores a process of its own. Takes well under a second.
///
/// # Errors
/// Whatever keeps CRIU from doing it; nothing is left behind.
pub fn run(criu: &Criu) -> Result<SelfTest, SelfTestError> {
    std::thread::scope(|scope| {
        // A thread of its own, so that the network namespace is its alone.
        let test = scope.spawn(|| {
            if let Err(error) = own_network() {
                tracing::debug!(%error, "the self-test has no network namespace of its own");
            }
            run_here(criu)
        });
        test.join().unwrap_or_else(|_| Err(SelfTestError::Setup(std::io::Error::other("it panicked"))))
    })
}

/// Gives this thread a network namespace with its loopback up: CRIU connects a
/// socket there to see what the kernel can do.
fn own_network() -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    interface::bring_up(&mut Netlink::open(NETLINK_ROUTE)?, "lo")
}

fn run_here(criu: &Criu) -> Result<SelfTest, SelfTestError> {
    let directory =
        tempfile::Builder::new().prefix("ferry-selftest-").tempdir().map_err(SelfTestError::Setup)?;
    let subject = Subject::start().map_err(SelfTestError::Setup)?;
    let payload_free = match &criu.shim {
        None => PayloadFree::Fails("the preloaded object could not be written".into()),
        Some(_) => match dump_and_let_go(criu, &subject, PagePayload::Ferry, directory.path()) {
            Ok(_) => PayloadFree::Works,
            Err(SelfTestError::Criu(error)) => PayloadFree::Fails(error.what),
            Err(other) => return Err(other),
        },
    };
    if payload_free != PayloadFree::Works {
        let bare = Criu { shim: None, ..criu.clone() };
        dump_and_let_go(&bare, &subject, PagePayload::LazyPages, directory.path())?;
    }
    move_in_place(criu, subject, directory.path(), payload_free)
}

/// A dump that leaves its pages to ferry and is rolled back.
fn dump_and_let_go(
    criu: &Criu,
    subject: &Subject,
    pages: PagePayload,
    directory: &Path,
) -> Result<FreezeTimes, SelfTestError> {
    let images = new_directory(directory, &format!("rolled-back-{pages:?}"))?;
    let mut target = subject.target(criu, pages)?;
    let held = target.freeze(&images, TcpMode::Established, PATIENCE)?.hold()?;
    let times = held.times();
    held.roll_back()?;
    if !subject.is_alive() {
        return Err(SelfTestError::Lost("rolled-back dump"));
    }
    Ok(times)
}

/// A whole dump, removal and restore under the same PID.
fn move_in_place(
    criu: &Criu,
    mut subject: Subject,
    directory: &Path,
    payload_free: PayloadFree,
) -> Result<SelfTest, SelfTestError> {
    let images = new_directory(directory, "images")?;
    let work = new_directory(directory, "work")?;
    let mut target = subject.target(criu, PagePayload::Criu)?;
    let mut restorer = ProcessRestorer::new(criu.clone());
    target.prepare()?;
    let held = target.freeze(&images, TcpMode::Established, PATIENCE)?.hold()?;
    let FreezeTimes { freeze, dump } = held.times();
    held.commit()?;
    subject.reap();

    restorer.prepare(&work)?;
    let pids = vec![subject.pid().unsigned_abs()];
    let plan = RestorePlan { images, work, tcp: TcpMode::Established, lazy: false, pids };
    let asked = Instant::now();
    let copy = restorer.restore(&plan)?;
    let restore = asked.elapsed();
    let tasks = copy.tasks();
    let asked = Instant::now();
    let released = copy.release(&mut || ());
    let release = asked.elapsed();
    let alive = tasks.iter().any(|task| task.is_alive());
    for task in tasks.iter().filter(|task| task.is_alive()) {
        let _ = kill(Pid::from_raw(task.pid), Signal::SIGKILL);
    }
    if let Err(error) = released {
        return Err(TargetError { what: error.to_string(), log: None }.into());
    }
    if !alive {
        return Err(SelfTestError::Lost("restore"));
    }
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(SelfTest {
        freeze_us: us(freeze),
        dump_us: us(dump),
        restore_us: us(restore),
        release_us: us(release),
        payload_free,
    })
}

fn new_directory(parent: &Path, name: &str) -> Result<std::path::PathBuf, SelfTestError> {
    let path = parent.join(name);
    std::fs::create_dir(&path).map_err(SelfTestError::Setup)?;
    Ok(path)
}

/// `sleep` in a session of its own with a listening socket as its stdin.
struct Subject(Child);

impl Subject {
    fn start() -> std::io::Result<Subject> {
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let child = Command::new("setsid")
            .args(["sleep", "300"])
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let subject = Subject(child);
        // Until it is what it will be: two execs, or CRIU meets the first program.
        let deadline = Instant::now() + Duration::from_secs(5);
        let path = format!("/proc/{}/comm", subject.pid());
        while std::fs::read_to_string(&path)?.trim() != "sleep" {
            if Instant::now() > deadline {
                return Err(std::io::Error::other("`setsid sleep` does not start"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // `sleep` maps its locale files and settles.
        std::thread::sleep(Duration::from_millis(20));
        Ok(subject)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn target(&self, criu: &Criu, pages: PagePayload) -> Result<ProcessTarget, SelfTestError> {
        let set: Arc<dyn ProcessSet> = Arc::new(DescendantSet::of(self.pid()).map_err(SelfTestError::Setup)?);
        Ok(ProcessTarget::new(self.pid(), criu.clone(), set).map_err(SelfTestError::Setup)?.with_pages(pages))
    }

    fn is_alive(&self) -> bool {
        crate::sys::procfs::stat::of(self.pid()).is_ok_and(|stat| !stat.state.is_dead())
    }

    /// Takes its PID out of the kernel's table, so that the copy can have it.
    fn reap(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.reap();
    }
}
