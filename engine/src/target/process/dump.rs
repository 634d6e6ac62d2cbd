//! The source's side: freeze, dump, hold.

use super::{Criu, common_options, complain, failed};
use crate::criu::rpc::{Launch, PagePayload, Reached, Swrk};
use crate::journal::TaskId;
use crate::memory::ProcessSet;
use crate::net::nft::{Nft, Table};
use crate::sys::procfs::stat;
use crate::target::{FreezeTimes, FrozenDump, HeldDump, Target, TargetError};
use ferry_transport::wire::control::TcpMode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LOG: &str = "dump.log";
/// How long CRIU may take to take itself out of the tasks again.
const LET_GO: Duration = Duration::from_secs(30);

/// A process and its descendants.
pub struct ProcessTarget {
    root: i32,
    name: String,
    criu: Criu,
    processes: Arc<dyn ProcessSet>,
    pages: PagePayload,
    parked: Option<Swrk>,
}

impl ProcessTarget {
    /// The tree below `root`, as `processes` lists it.
    pub fn new(root: i32, criu: Criu, processes: Arc<dyn ProcessSet>) -> std::io::Result<ProcessTarget> {
        let name = stat::of(root)?.name;
        let pages = if criu.shim.is_some() { PagePayload::Ferry } else { PagePayload::Criu };
        Ok(ProcessTarget { root, name, criu, processes, pages, parked: None })
    }

    /// Lets CRIU dump the pages itself: a dump that is whole without ferry's pages.
    pub fn with_pages(mut self, pages: PagePayload) -> ProcessTarget {
        self.pages = pages;
        self
    }

    fn start(&self) -> Result<Swrk, TargetError> {
        let launch = Launch { criu: &self.criu.program, shim: self.criu.shim.as_deref(), pages: self.pages };
        Swrk::start(&launch).map_err(|error| TargetError {
            what: format!("CRIU cannot be started ({}): {error}", self.criu.program.display()),
            log: None,
        })
    }
}

impl Target for ProcessTarget {
    fn describe(&self) -> String {
        format!("pid:{} ({})", self.root, self.name)
    }

    fn prepare(&mut self) -> Result<(), TargetError> {
        if self.parked.is_none() {
            self.parked = Some(self.start()?);
        }
        Ok(())
    }

    fn freeze(
        &mut self,
        images: &Path,
        tcp: TcpMode,
        deadline: Duration,
    ) -> Result<Box<dyn FrozenDump>, TargetError> {
        let log = images.join(LOG);
        self.prepare()?;
        let mut swrk = self.parked.take().ok_or_else(|| complain("freeze", "CRIU is not there", &log))?;
        let directory =
            std::fs::File::open(images).map_err(|e| complain("the image directory", &e.to_string(), &log))?;
        // CRIU opens it through /proc/<our pid>/fd, so it must be open until it answers.
        let mut options = common_options(images, directory.as_raw_fd(), LOG, tcp);
        options.pid = Some(self.root);
        options.leave_running = Some(false);
        options.timeout = Some(deadline.as_secs().clamp(1, 3600) as u32);

        let lock = NetworkLock::before_dump();
        let asked = Instant::now();
        swrk.dump(options).map_err(|error| failed("freeze", error, &log))?;
        // With a network namespace in the tree the first stage after the tasks stand
        // still is `network-lock`, else `query-ext-files`.
        match swrk.advance_to(&["network-lock", "query-ext-files"], deadline) {
            Ok(Reached::Stage { .. }) => {}
            Ok(Reached::End { message, .. }) => return Err(complain("freeze", &message, &log)),
            Err(error) => {
                // With CRIU gone, the kernel lets the tasks run.
                swrk.kill();
                lock.remove();
                return Err(failed("freeze", error, &log));
            }
        }
        Ok(Box::new(Frozen {
            swrk,
            log,
            pages: self.pages,
            root: self.root,
            processes: Arc::clone(&self.processes),
            deadline,
            freeze: asked.elapsed(),
            frozen: Instant::now(),
            lock,
            directory,
        }))
    }
}

/// Every task stands still.
struct Frozen {
    swrk: Swrk,
    log: PathBuf,
    pages: PagePayload,
    root: i32,
    processes: Arc<dyn ProcessSet>,
    deadline: Duration,
    freeze: Duration,
    frozen: Instant,
    lock: NetworkLock,
    directory: std::fs::File,
}

impl FrozenDump for Frozen {
    fn hold(mut self: Box<Self>) -> Result<Box<dyn HeldDump>, TargetError> {
        let reached =
            self.swrk.answer(true).and_then(|()| self.swrk.advance_to(&["post-dump"], self.deadline));
        match reached {
            Ok(Reached::Stage { .. }) => {}
            Ok(Reached::End { message, .. }) => {
                self.lock.remove();
                return Err(complain("dump", &message, &self.log));
            }
            Err(error) => {
                self.swrk.kill();
                self.lock.remove();
                return Err(failed("dump", error, &self.log));
            }
        }
        let times = FreezeTimes { freeze: self.freeze, dump: self.frozen.elapsed() };
        let tree = self.processes.processes().unwrap_or_default();
        let held = Held {
            swrk: Some(self.swrk),
            log: self.log,
            root: self.root,
            tree,
            pinned: Vec::new(),
            times,
            lock: self.lock,
            _directory: self.directory,
        };
        if self.pages == PagePayload::Ferry {
            verify_payload_free(&held.log)?;
        }
        Ok(Box::new(held))
    }
}

/// The largest `pages-*.img` of a dump without page payload: the vDSO and vvar of
/// every task, a few pages each.
const PAYLOAD_FREE: u64 = 64 << 20;

/// Sees that the preloaded object did its work: a dump whose pages are CRIU's
/// would be merged with ours and restore stale memory.
fn verify_payload_free(log: &Path) -> Result<(), TargetError> {
    let directory = log.parent().unwrap_or(Path::new("."));
    let pages = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"));
    let size: u64 = pages.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum();
    if size <= PAYLOAD_FREE {
        return Ok(());
    }
    Err(complain("dump", "CRIU dumped the pages although it was told not to", log))
}

/// The dump is complete and CRIU waits.
struct Held {
    swrk: Option<Swrk>,
    log: PathBuf,
    root: i32,
    tree: Vec<i32>,
    /// Tasks that our SIGSTOP is queued to, and that ran before the freeze.
    pinned: Vec<TaskId>,
    times: FreezeTimes,
    lock: NetworkLock,
    _directory: std::fs::File,
}

impl HeldDump for Held {
    fn times(&self) -> FreezeTimes {
        self.times
    }

    fn pin(&mut self) -> Result<(), TargetError> {
        for &pid in &self.tree {
            let Ok(task) = TaskId::of(pid) else { continue };
            // Queued while CRIU's ptrace stop lasts; whatever ends that stop, the
            // task then stops instead of running (facts: seen with kill -9 of CRIU).
            kill(Pid::from_raw(pid), Signal::SIGSTOP).map_err(|errno| TargetError {
                what: format!("process {pid} cannot be pinned: {errno}"),
                log: None,
            })?;
            self.pinned.push(task);
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<(), TargetError> {
        let Some(mut swrk) = self.swrk.take() else { return Ok(()) };
        let tree: Vec<TaskId> = self.tree.iter().filter_map(|pid| TaskId::of(*pid).ok()).collect();
        let ended = swrk.answer(true).and_then(|()| swrk.advance_to(&[], LET_GO));
        swrk.wait();
        self.lock.remove();
        let outcome = match ended {
            Ok(Reached::End { success: true, .. }) => Ok(()),
            Ok(Reached::End { message, .. }) => Err(complain("removing the tree", &message, &self.log)),
            Ok(Reached::Stage { .. }) => Ok(()),
            Err(error) => Err(failed("removing the tree", error, &self.log)),
        };
        // CRIU kills and goes; what is left of it is ours to see to.
        for task in tree.iter().filter(|task| task.is_alive()) {
            let _ = kill(Pid::from_raw(task.pid), Signal::SIGKILL);
        }
        outcome
    }

    fn roll_back(mut self: Box<Self>) -> Result<(), TargetError> {
        let Some(mut swrk) = self.swrk.take() else { return Ok(()) };
        // Whether CRIU answers or is dead: the tasks are let go either way.
        if swrk.answer(false).is_ok() {
            let _ = swrk.advance_to(&[], LET_GO);
        }
        swrk.wait();
        self.lock.remove();
        for task in self.pinned.iter().filter(|task| task.is_alive()) {
            let _ = kill(Pid::from_raw(task.pid), Signal::SIGCONT);
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.swrk.is_some() {
            tracing::error!(root = self.root, "a held dump was dropped undecided; CRIU undoes it");
        }
    }
}

/// CRIU's tables of one moment: those that stand after a dump and did not before
/// belong to it. After a dump that succeeded, or whose CRIU was killed, nobody
/// else removes them.
struct NetworkLock {
    before: Vec<Table>,
}

impl NetworkLock {
    fn before_dump() -> NetworkLock {
        let before = Nft::open().and_then(|mut nft| nft.criu_tables()).unwrap_or_default();
        NetworkLock { before }
    }

    fn remove(&self) {
        let removed = Nft::open().and_then(|mut nft| {
            let standing = nft.criu_tables()?;
            standing
                .iter()
                .filter(|table| !self.before.contains(table))
                .try_for_each(|table| nft.delete_table(table))
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "CRIU's network lock could not be removed");
        }
    }
}
