//! The records of both sides.

use crate::net::address::Place;
use crate::target::Aftercare;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::PathBuf;

/// Which end of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the workload comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Side {
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Destination => "destination",
        }
    }
}

/// A record type: says whose journal it belongs in.
pub trait Record: Serialize + DeserializeOwned {
    /// The side.
    const SIDE: Side;
}

/// A record and when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "R: Record")]
pub struct Entry<R: Record> {
    /// Milliseconds since the epoch, this host's clock.
    pub at: u64,
    /// What was decided.
    pub record: R,
}

/// A process that cannot be mistaken for a later one with the same number, nor for
/// one of another PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// Its PID on this host.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
    /// The inode of the PID namespace that the number is of.
    pub namespace: u64,
}

impl TaskId {
    /// The process that has this PID now. `NotFound` when there is none.
    pub fn of(pid: i32) -> std::io::Result<TaskId> {
        let stat = crate::sys::procfs::stat::of(pid)?;
        Ok(TaskId { pid, start_time: stat.start_time, namespace: own_namespace() })
    }

    /// Whether its number means anything in the PID namespace of this process.
    pub fn is_of_here(&self) -> bool {
        self.namespace == own_namespace()
    }

    /// Whether somebody has stopped it by a signal.
    pub fn is_stopped(&self) -> bool {
        self.is_of_here()
            && crate::sys::procfs::stat::of(self.pid)
                .is_ok_and(|stat| stat.start_time == self.start_time && stat.state.0 == b'T')
    }

    /// Whether the very process still exists and has not exited.
    pub fn is_alive(&self) -> bool {
        self.is_of_here()
            && crate::sys::procfs::stat::of(self.pid)
                .is_ok_and(|stat| stat.start_time == self.start_time && !stat.state.is_dead())
    }
}

/// The PID namespace of this process.
fn own_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    static OWN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *OWN.get_or_init(|| std::fs::metadata("/proc/self/ns/pid").map_or(0, |about| about.ino()))
}

/// What the source decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceRecord {
    /// The migration began.
    Started {
        /// The target, as typed.
        target: String,
        /// The peer's address, as typed.
        to: String,
        /// The engine that does it.
        engine: TaskId,
        /// The address that moves, as this host has it, if one does.
        address: Option<Place>,
        /// Where CRIU writes its images, which hold secrets.
        images: PathBuf,
        /// What has to be put right in the end beside the workload.
        #[serde(default)]
        aftercare: Option<Box<Aftercare>>,
    },
    /// A freeze was requested.
    Freezing {
        /// Every process of the tree at that time, root first.
        tasks: Vec<TaskId>,
        /// Those that somebody else had stopped before.
        stopped: Vec<TaskId>,
    },
    /// The dump is held and is about to be pinned: from here on the tasks do not run
    /// unless somebody sends them SIGCONT, whoever is killed.
    Holding {
        /// Every process of the tree, root first.
        tasks: Vec<TaskId>,
    },
    /// Commit may have been sent from here on.
    Committing,
    /// No answer came; the tasks stay pinned.
    InDoubt {
        /// What was tried.
        cause: String,
    },
    /// The copy runs there; the tree here was removed.
    Completed,
    /// The workload runs here.
    Aborted {
        /// Why.
        cause: String,
    },
    /// An operator decided.
    Resolved {
        /// Where the workload is to live.
        runs: Side,
    },
}

impl Record for SourceRecord {
    const SIDE: Side = Side::Source;
}

/// What the destination decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DestinationRecord {
    /// A migration was accepted.
    Accepted {
        /// What it is.
        target: String,
        /// Who sends it.
        from: String,
        /// The receiver that takes it.
        engine: TaskId,
        /// The address that comes along, `ADDR/LEN@IFACE`, if one does.
        move_ip: Option<String>,
    },
    /// The source begins to freeze: the moving address is here from here on.
    TakingOver,
    /// A restore begins: tasks of these PIDs may exist, held, from here on.
    Restoring {
        /// The tree's PIDs, root first.
        pids: Vec<u32>,
    },
    /// The copy is complete and held; Ready may have been sent.
    Prepared {
        /// Every process of the copy.
        tasks: Vec<TaskId>,
    },
    /// **The commit point.** From here on the workload belongs to this side.
    Committed,
    /// The hold is being released: something may have run from here on.
    Released,
    /// The release failed, its receiver gave up, and nothing can be proved.
    InDoubt {
        /// What is known.
        cause: String,
    },
    /// It runs here.
    Resumed,
    /// Every page has been handed over.
    Drained,
    /// Nothing ran and nothing will.
    Discarded {
        /// Why.
        cause: String,
    },
    /// An operator decided.
    Resolved {
        /// Where the workload is to live.
        runs: Side,
    },
}

impl Record for DestinationRecord {
    const SIDE: Side = Side::Destination;
}
