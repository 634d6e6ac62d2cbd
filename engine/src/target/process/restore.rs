//! The destination's side: restore, hold, release or discard.

use super::lock::RestoredLock;
use super::{Criu, complain, failed, place, process_options};
use crate::criu::proto::Options;
use crate::criu::rpc::{PagePayload, Reached, Said, Swrk};
use crate::journal::TaskId;
use crate::memory::ProcessSet;
use crate::memory::native::DescendantSet;
use crate::net::connections;
use crate::target::{HeldRestore, ReleaseError, RestorePlan, Restorer, TargetError};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(in crate::target) const LOG: &str = "restore.log";
/// How long a restore, or its undoing, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Restores trees with CRIU.
pub struct ProcessRestorer {
    criu: Criu,
    parked: Option<Swrk>,
}

impl ProcessRestorer {
    /// With this CRIU.
    pub fn new(criu: Criu) -> ProcessRestorer {
        ProcessRestorer { criu, parked: None }
    }
}

impl Restorer for ProcessRestorer {
    fn prepare(&mut self, _work: &Path) -> Result<(), TargetError> {
        if !self.parked.as_mut().is_some_and(Swrk::is_up) {
            self.parked = Some(self.criu.start(PagePayload::Criu)?);
        }
        Ok(())
    }

    fn restore(&mut self, plan: &RestorePlan) -> Result<Box<dyn HeldRestore>, TargetError> {
        self.prepare(&plan.work)?;
        let swrk = self
            .parked
            .take()
            .ok_or_else(|| complain("restore", "CRIU is not there", &plan.work.join(LOG)))?;
        let tree = Tree::numbered(&plan.pids);
        Ok(Box::new(restore_and_hold(swrk, process_options(plan.tcp), plan, tree)?))
    }
}

/// Has CRIU build the copy and hold it; what a restore needs beside `options` is
/// added to them. On failure nothing of the copy is left.
pub(in crate::target) fn restore_and_hold(
    mut swrk: Swrk,
    mut options: Options,
    plan: &RestorePlan,
    mut tree: Tree,
) -> Result<Held, TargetError> {
    let log = plan.work.join(LOG);
    let directory =
        std::fs::File::open(&plan.work).map_err(|e| complain("the work directory", &e.to_string(), &log))?;
    place(&mut options, &plan.images, directory.as_raw_fd(), LOG);
    options.lazy_pages = Some(plan.lazy);
    let lock = RestoredLock::take_over(&plan.images);
    let reached = swrk.restore(options).and_then(|()| swrk.advance_to(&["post-restore"], PATIENCE));
    let held = match reached {
        Ok(Reached::Stage { pid, .. }) => {
            tree.is_below(pid);
            swrk.consult_runtime()
        }
        Ok(Reached::End { message, .. }) => {
            swrk.kill();
            tree.remove_new();
            return Err(complain("restore", &message, &log));
        }
        Err(error) => Err(error),
    };
    if let Err(error) = held {
        tree.remove_new();
        swrk.kill();
        tree.remove_new();
        return Err(failed("restore", error, &log));
    }
    Ok(Held { swrk: Some(swrk), log, tree, lock, _directory: directory })
}

/// The processes of a copy: what a failed restore leaves of them is removed, a
/// stranger is not.
pub(in crate::target) enum Tree {
    /// By the PIDs that the copy will have, and who had them before it was built.
    Numbered { strangers: Vec<TaskId>, pids: Vec<u32> },
    /// In a PID namespace of its own: by its first process, once CRIU has told it.
    Below(Option<DescendantSet>),
}

impl Tree {
    /// Before a restore.
    fn numbered(pids: &[u32]) -> Tree {
        let strangers = pids.iter().filter_map(|pid| TaskId::of(*pid as i32).ok()).collect();
        Tree::Numbered { strangers, pids: pids.to_vec() }
    }

    /// CRIU says who is the first.
    fn is_below(&mut self, pid: Option<i32>) {
        if let Tree::Below(root) = self {
            *root = pid.and_then(|pid| DescendantSet::of(pid).ok());
        }
    }

    fn tasks(&self) -> Vec<TaskId> {
        let (pids, strangers): (Vec<i32>, &[TaskId]) = match self {
            Tree::Numbered { strangers, pids } => (pids.iter().map(|pid| *pid as i32).collect(), strangers),
            Tree::Below(Some(root)) => (root.processes().unwrap_or_default(), &[]),
            Tree::Below(None) => (Vec::new(), &[]),
        };
        pids.into_iter()
            .filter_map(|pid| TaskId::of(pid).ok())
            .filter(|task| !strangers.contains(task) && task.is_alive())
            .collect()
    }

    /// Kills what came into being of the tree, and waits until it is gone.
    /// Its connections are those of the source: nobody must hear of it.
    fn remove_new(&self) {
        connections::kill_quietly(&self.tasks());
    }
}

/// Complete, and before its first instruction.
pub(in crate::target) struct Held {
    swrk: Option<Swrk>,
    log: PathBuf,
    tree: Tree,
    lock: RestoredLock,
    _directory: std::fs::File,
}

impl HeldRestore for Held {
    fn tasks(&self) -> Vec<TaskId> {
        self.tree.tasks()
    }

    fn release(mut self: Box<Self>, about_to_run: &mut (dyn FnMut() + Send)) -> Result<(), ReleaseError> {
        let Some(mut swrk) = self.swrk.take() else {
            return Err(ReleaseError::Unknown(complain("release", "CRIU is not there", &self.log)));
        };
        self.lock.remove();
        // CRIU lets go of the tasks after `pre-resume` is answered, and tells so by
        // `post-resume`: whatever happens before that answer, nothing has run.
        let reached = swrk.answer(true).and_then(|()| swrk.advance_to(&["pre-resume"], PATIENCE));
        match reached {
            Ok(Reached::Stage { .. }) => {}
            Ok(Reached::End { message, .. }) => {
                return Err(self.never_ran(swrk, complain("release", &message, &self.log)));
            }
            Err(error) => return Err(self.never_ran(swrk, failed("release", error, &self.log))),
        }
        about_to_run();
        match swrk.answer(true).and_then(|()| swrk.advance_to(&["post-resume"], PATIENCE)) {
            Ok(Reached::Stage { .. }) if swrk.has_runtime() => {
                // A runtime that is not told of the end gives the container up, which
                // runs by now: nobody hears that it runs before that is done.
                finish(swrk);
                Ok(())
            }
            Ok(Reached::Stage { .. }) => {
                finish_in_background(swrk);
                Ok(())
            }
            Ok(Reached::End { success: true, .. }) => Ok(()),
            Ok(Reached::End { message, .. }) => {
                Err(ReleaseError::Unknown(complain("release", &message, &self.log)))
            }
            Err(error) => Err(ReleaseError::Unknown(failed("release", error, &self.log))),
        }
    }

    fn discard(mut self: Box<Self>) -> Result<(), TargetError> {
        let Some(mut swrk) = self.swrk.take() else { return Ok(()) };
        // Before CRIU does: its sockets are out of repair mode by now, and would say so.
        self.tree.remove_new();
        if swrk.answer(false).is_ok() {
            let _ = swrk.advance_to(&[], PATIENCE);
        }
        swrk.kill();
        self.tree.remove_new();
        let left = self.tree.tasks();
        if left.is_empty() {
            return Ok(());
        }
        Err(complain(
            "discard",
            &format!("{} processes of the copy could not be removed", left.len()),
            &self.log,
        ))
    }
}

impl Held {
    /// Removes a copy whose tasks still hang in CRIU's hands. Only if every one is
    /// gone can it be said that none will run.
    fn never_ran(&self, mut swrk: Swrk, error: TargetError) -> ReleaseError {
        self.tree.remove_new();
        swrk.kill();
        self.tree.remove_new();
        let left = self.tree.tasks();
        if left.is_empty() {
            return ReleaseError::NeverRan(error);
        }
        let what = format!("{}; {} of its processes cannot be removed", error.what, left.len());
        ReleaseError::Unknown(TargetError { what, ..error })
    }
}

/// Answers CRIU's last words and sees it end.
fn finish(mut swrk: Swrk) {
    let mut left = PATIENCE;
    let began = Instant::now();
    while swrk.answer(true).is_ok() {
        match swrk.next(left) {
            Ok(Said::Stage { .. }) => left = PATIENCE.saturating_sub(began.elapsed()),
            Ok(Said::Done { .. }) | Err(_) => break,
        }
    }
    swrk.wait();
}

/// The same off the critical path.
fn finish_in_background(swrk: Swrk) {
    let finished = std::thread::Builder::new().name("criu-end".into()).spawn(move || finish(swrk));
    if let Err(error) = finished {
        tracing::warn!(%error, "CRIU's end is not waited for");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.swrk.is_some() {
            tracing::error!("a held restore was dropped undecided; CRIU removes it");
        }
    }
}
