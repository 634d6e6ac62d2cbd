//! The source's side: freeze, dump, hold.

use super::lock::NetworkLock;
use super::{Criu, complain, failed, payload, place, process_options, rescue};
use crate::criu::proto::Options;
use crate::criu::rpc::{PagePayload, Reached, Swrk};
use crate::journal::TaskId;
use crate::memory::ProcessSet;
use crate::net::connections;
use crate::sys::procfs::{self, stat};
use crate::target::{FreezeTimes, FrozenDump, HeldDump, Target, TargetError};
use ferry_transport::wire::control::TcpMode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(in crate::target) const LOG: &str = "dump.log";
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
        let pages = if criu.shim.is_some() { PagePayload::Ferry } else { PagePayload::LazyPages };
        Ok(ProcessTarget { root, name, criu, processes, pages, parked: None })
    }

    /// Lets CRIU dump the pages itself: a dump that is whole without ferry's pages.
    pub fn with_pages(mut self, pages: PagePayload) -> ProcessTarget {
        self.pages = pages;
        self
    }
}

impl Target for ProcessTarget {
    fn describe(&self) -> String {
        format!("pid:{} ({})", self.root, self.name)
    }

    fn tasks(&self) -> Vec<TaskId> {
        tasks_of(&*self.processes)
    }

    fn prepare(&mut self) -> Result<(), TargetError> {
        if !self.parked.as_mut().is_some_and(Swrk::is_up) {
            self.parked = Some(self.criu.start(self.pages)?);
        }
        Ok(())
    }

    fn freeze(
        &mut self,
        images: &Path,
        tcp: TcpMode,
        deadline: Duration,
    ) -> Result<Box<dyn FrozenDump>, TargetError> {
        self.prepare()?;
        let swrk =
            self.parked.take().ok_or_else(|| complain("freeze", "CRIU is not there", &images.join(LOG)))?;
        let dump = Dump {
            root: self.root,
            processes: Arc::clone(&self.processes),
            pages: self.pages,
            images: images.to_owned(),
            deadline,
        };
        let options = Options { pid: Some(self.root), ..process_options(tcp) };
        Ok(Box::new(dump.freeze(swrk, options)?))
    }
}

/// A dump that is about to begin.
pub(in crate::target) struct Dump {
    /// The tree's first process.
    pub(in crate::target) root: i32,
    /// Which processes there are.
    pub(in crate::target) processes: Arc<dyn ProcessSet>,
    /// Whose the pages are.
    pub(in crate::target) pages: PagePayload,
    /// Where CRIU writes.
    pub(in crate::target) images: PathBuf,
    /// How long freeze and dump may take.
    pub(in crate::target) deadline: Duration,
}

impl Dump {
    /// Has CRIU stop every task; what a dump needs beside `options` is added to them.
    pub(in crate::target) fn freeze(
        self,
        mut swrk: Swrk,
        mut options: Options,
    ) -> Result<Frozen, TargetError> {
        let Dump { root, processes, pages, images, deadline } = self;
        let log = images.join(LOG);
        let directory = std::fs::File::open(&images)
            .map_err(|e| complain("the image directory", &e.to_string(), &log))?;
        // CRIU opens it through /proc/<our pid>/fd, so it must be open until it answers.
        place(&mut options, &images, directory.as_raw_fd(), LOG);
        options.leave_running = Some(false);
        options.timeout = Some(deadline.as_secs().clamp(1, 3600) as u32);
        if pages == PagePayload::LazyPages {
            payload::ask_for_lazy_dump(&mut options, &images)
                .map_err(|error| complain("freeze", &error.to_string(), &log))?;
        }

        let lock = NetworkLock::of(&log, root);
        let stopped = stopped_tasks(&*processes);
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
                connections::wake(&tasks_of(&*processes));
                return Err(failed("freeze", error, &log));
            }
        }
        let freeze = asked.elapsed();
        let tree = processes.processes().and_then(|pids| pids.into_iter().map(TaskId::of).collect());
        let threads = tree.iter().flatten().flat_map(threads_of);
        if let Err(error) = swrk.stop_at_death(threads) {
            tracing::warn!(%error, "should CRIU die in the dump, connections may break");
        }
        Ok(Frozen {
            swrk,
            log,
            pages,
            root,
            tree,
            deadline,
            freeze,
            frozen: Instant::now(),
            lock,
            stopped,
            images,
            directory,
        })
    }
}

/// Every task stands still.
pub(in crate::target) struct Frozen {
    swrk: Swrk,
    log: PathBuf,
    pages: PagePayload,
    root: i32,
    /// Root first.
    tree: std::io::Result<Vec<TaskId>>,
    deadline: Duration,
    freeze: Duration,
    frozen: Instant,
    lock: NetworkLock,
    stopped: Vec<TaskId>,
    images: PathBuf,
    directory: std::fs::File,
}

impl FrozenDump for Frozen {
    fn hold(mut self: Box<Self>) -> Result<Box<dyn HeldDump>, TargetError> {
        let reached =
            self.swrk.answer(true).and_then(|()| self.swrk.advance_to(&["post-dump"], self.deadline));
        match reached {
            Ok(Reached::Stage { .. }) => {}
            Ok(Reached::End { message, .. }) => {
                let tree = self.tree.unwrap_or_default();
                // It let them go; but they were stopped if it exited before this.
                self.swrk.may_end();
                self.lock.remove();
                rescue::go_on(&tree, &self.stopped);
                return Err(complain("dump", &message, &self.log));
            }
            Err(error) => {
                let tree = self.tree.unwrap_or_default();
                self.swrk.kill();
                self.swrk.may_end();
                rescue::let_run(&self.images, &tree, &self.stopped);
                let mut error = failed("dump", error, &self.log);
                error.what += &rescue::harm(&tree);
                return Err(error);
            }
        }
        let times = FreezeTimes { freeze: self.freeze, dump: self.frozen.elapsed() };
        let flaw = match (&self.tree, self.pages) {
            (Err(error), _) => Some(format!("the frozen tree cannot be listed: {error}")),
            (Ok(_), PagePayload::Ferry) => payload::verify_left_out(&self.images).err(),
            (Ok(_), PagePayload::LazyPages) => payload::leave_out(&self.images).err(),
            (Ok(_), PagePayload::Criu) => None,
        };
        let held = Held {
            swrk: Some(self.swrk),
            log: self.log,
            root: self.root,
            tree: self.tree.unwrap_or_default(),
            stopped: self.stopped,
            times,
            lock: self.lock,
            _directory: self.directory,
        };
        if let Some(flaw) = flaw {
            let error = complain("dump", &flaw, &held.log);
            Box::new(held).roll_back()?;
            return Err(error);
        }
        Ok(Box::new(held))
    }
}

/// Every process there is now.
pub(in crate::target) fn tasks_of(processes: &dyn ProcessSet) -> Vec<TaskId> {
    let pids = processes.processes().unwrap_or_default();
    pids.into_iter().filter_map(|pid| TaskId::of(pid).ok()).collect()
}

fn threads_of(task: &TaskId) -> Vec<i32> {
    procfs::numeric_entries(&format!("/proc/{}/task", task.pid)).unwrap_or_default()
}

/// Tasks that somebody else has stopped: they stay so whatever we do.
fn stopped_tasks(processes: &dyn ProcessSet) -> Vec<TaskId> {
    tasks_of(processes).into_iter().filter(TaskId::is_stopped).collect()
}

/// The dump is complete and CRIU waits.
struct Held {
    swrk: Option<Swrk>,
    log: PathBuf,
    root: i32,
    tree: Vec<TaskId>,
    /// Tasks that were stopped before the freeze.
    stopped: Vec<TaskId>,
    times: FreezeTimes,
    lock: NetworkLock,
    _directory: std::fs::File,
}

impl HeldDump for Held {
    fn times(&self) -> FreezeTimes {
        self.times
    }

    fn tasks(&self) -> &[TaskId] {
        &self.tree
    }

    fn pin(&mut self) -> Result<(), TargetError> {
        for task in &self.tree {
            // Queued while CRIU's ptrace stop lasts; whatever ends that stop, the
            // task then stops instead of running.
            match kill(Pid::from_raw(task.pid), Signal::SIGSTOP) {
                Ok(()) => {}
                Err(_) if !task.is_alive() => {}
                Err(errno) => {
                    let what = format!("process {} cannot be pinned: {errno}", task.pid);
                    return Err(TargetError { what, log: None });
                }
            }
        }
        // Only now: had CRIU died before the last signal, a task may have run.
        if let Some(swrk) = &mut self.swrk
            && swrk.is_up()
        {
            swrk.may_end();
            return Ok(());
        }
        Err(complain("pinning", "CRIU died meanwhile, so the images may be out of date", &self.log))
    }

    fn commit(mut self: Box<Self>) -> Result<(), TargetError> {
        let Some(mut swrk) = self.swrk.take() else { return Ok(()) };
        let ended = swrk.answer(true).and_then(|()| swrk.advance_to(&[], LET_GO));
        swrk.wait();
        // CRIU kills and goes; what it left, or died before, is ours to see to.
        let left = connections::kill_quietly(&self.tree);
        self.lock.remove();
        if left == 0 {
            if let Err(error) = ended {
                tracing::warn!(%error, root = self.root, "CRIU did not remove the tree, ferry did");
            }
            return Ok(());
        }
        Err(complain("removing the tree", &format!("{left} processes cannot be killed"), &self.log))
    }

    fn roll_back(mut self: Box<Self>) -> Result<(), TargetError> {
        let Some(mut swrk) = self.swrk.take() else { return Ok(()) };
        swrk.may_end();
        // Whether CRIU answers or is dead: the tasks are let go either way.
        if swrk.answer(false).is_ok() {
            let _ = swrk.advance_to(&[], LET_GO);
        }
        swrk.wait();
        self.lock.remove();
        connections::wake(&self.tree);
        rescue::go_on(&self.tree, &self.stopped);
        self.see_it_run()
    }
}

impl Held {
    /// Waits until no task is held by us or CRIU any more.
    fn see_it_run(&self) -> Result<(), TargetError> {
        let deadline = Instant::now() + LET_GO;
        loop {
            let standing = self.tree.iter().filter(|task| !self.stopped.contains(task)).find(|task| {
                stat::of(task.pid).is_ok_and(|stat| {
                    stat.start_time == task.start_time && matches!(stat.state.0, b'T' | b't')
                })
            });
            let Some(task) = standing else { return Ok(()) };
            if Instant::now() > deadline {
                let what = format!("process {} still stands still: `kill -CONT {0}`", task.pid);
                return Err(complain("letting the workload run", &what, &self.log));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.swrk.is_some() {
            tracing::error!(root = self.root, "a held dump was dropped undecided; CRIU undoes it");
        }
    }
}
