//! The workload in the engine's hands: running, stopped by CRIU, or held after its dump.

use crate::journal::TaskId;
use crate::net::connections;
use crate::target::{FrozenDump, HeldDump, Target, TargetError};
use ferry_transport::wire::control::TcpMode;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::{JoinError, spawn_blocking};

/// The target and how far it has been taken. Everything that blocks is done on a
/// thread that may.
pub(super) struct Workload {
    /// Absent while a thread has it.
    target: Option<Box<dyn Target>>,
    hold: Hold,
}

/// How much of it is in CRIU's hands.
enum Hold {
    Running,
    Frozen(Box<dyn FrozenDump>),
    Held(Box<dyn HeldDump>),
}

impl Workload {
    pub(super) fn new(target: Box<dyn Target>) -> Workload {
        Workload { target: Some(target), hold: Hold::Running }
    }

    /// Every process of it now, root first; none when it has exited.
    pub(super) fn tasks(&self) -> Vec<TaskId> {
        self.target.as_ref().map(|target| target.tasks()).unwrap_or_default()
    }

    /// The number under which CRIU's images name a process.
    pub(super) fn image_pid(&self, pid: i32) -> Result<u32, String> {
        Ok(self.target.as_ref().ok_or(GONE)?.image_pid(pid))
    }

    /// Starts and checks what can be before the freeze.
    pub(super) async fn prepare(&mut self) -> Result<(), String> {
        self.on_target(|target| target.prepare()).await
    }

    /// Stops every task.
    pub(super) async fn freeze(
        &mut self,
        images: PathBuf,
        tcp: TcpMode,
        deadline: Duration,
    ) -> Result<(), String> {
        let frozen = self.on_target(move |target| target.freeze(&images, tcp, deadline)).await?;
        self.hold = Hold::Frozen(frozen);
        Ok(())
    }

    /// Waits for the dump; its tasks.
    pub(super) async fn hold(&mut self) -> Result<Vec<TaskId>, String> {
        let Hold::Frozen(frozen) = std::mem::replace(&mut self.hold, Hold::Running) else {
            return Err("nothing is frozen".into());
        };
        let held = flatten(spawn_blocking(move || frozen.hold()).await)?;
        let tasks = held.tasks().to_vec();
        self.hold = Hold::Held(held);
        Ok(tasks)
    }

    /// Sees to it that no task runs before somebody has decided, whoever is killed.
    pub(super) fn pin(&mut self) -> Result<(), String> {
        let Hold::Held(held) = &mut self.hold else { return Err("nothing is held".into()) };
        held.pin().map_err(|error| error.to_string())
    }

    /// The copy runs there: the tree here goes.
    pub(super) async fn remove(&mut self) -> Result<(), String> {
        let Hold::Held(held) = std::mem::replace(&mut self.hold, Hold::Running) else { return Ok(()) };
        let tasks = held.tasks().to_vec();
        let removed = flatten(spawn_blocking(move || held.commit()).await);
        if removed.is_err() {
            connections::kill_quietly(&tasks);
        }
        removed
    }

    /// Lets it go on, whatever had been done to it.
    pub(super) async fn thaw(&mut self) -> Result<(), String> {
        let hold = std::mem::replace(&mut self.hold, Hold::Running);
        let thawed = spawn_blocking(move || match hold {
            Hold::Running => Ok(()),
            Hold::Frozen(frozen) => frozen.hold()?.roll_back(),
            Hold::Held(held) => held.roll_back(),
        });
        flatten(thawed.await)
    }

    async fn on_target<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn Target) -> Result<T, TargetError> + Send + 'static,
    ) -> Result<T, String> {
        let mut target = self.target.take().ok_or(GONE)?;
        let done = spawn_blocking(move || {
            let result = work(&mut *target);
            (target, result)
        });
        let (target, result) = done.await.map_err(|panic| panic.to_string())?;
        self.target = Some(target);
        result.map_err(|error| error.to_string())
    }
}

/// Only after a thread that had it panicked.
const GONE: &str = "the target is gone";

fn flatten<T>(joined: Result<Result<T, TargetError>, JoinError>) -> Result<T, String> {
    joined.map_err(|panic| panic.to_string())?.map_err(|error| error.to_string())
}
