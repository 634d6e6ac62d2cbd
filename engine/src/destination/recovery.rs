//! What a destination's journal says of a migration, also after its engine died.

use crate::files::{self, Lives};
use crate::journal::{self, DestinationRecord, Entry, Journal, Side, TaskId};
use crate::net::address::AddressHolder;
use crate::net::connections;
use crate::net::nft::Nft;
use crate::source::recovery::parse_address_move;
use crate::target::leftovers;
use ferry_transport::wire::control::{MigrationId, Outcome};
use std::io;
use std::path::{Path, PathBuf};

/// What the journal proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationStanding {
    /// There is no such journal.
    Unknown,
    /// Its receiver is at work on it.
    UnderWay,
    /// Its receiver died before Committed was written: nothing ran.
    Interrupted {
        /// The held copy, if there was one.
        tasks: Vec<TaskId>,
    },
    /// Its receiver died between Committed and Released: nothing ran.
    NeverReleased {
        /// The held copy.
        tasks: Vec<TaskId>,
    },
    /// Its receiver died, or gave up, right after Released: CRIU's log may tell.
    ReleaseUnknown {
        /// The copy.
        tasks: Vec<TaskId>,
    },
    /// It runs, or ran, here.
    Resumed,
    /// Nothing ran here.
    Discarded {
        /// Why.
        cause: String,
    },
    /// An operator decided.
    Resolved(Side),
}

impl DestinationStanding {
    /// The copy's processes, as far as they were written down.
    pub fn tasks(&self) -> &[TaskId] {
        match self {
            DestinationStanding::Interrupted { tasks }
            | DestinationStanding::NeverReleased { tasks }
            | DestinationStanding::ReleaseUnknown { tasks } => tasks,
            _ => &[],
        }
    }
}

/// What the journal says now.
pub fn standing(state: &Path, id: MigrationId) -> io::Result<DestinationStanding> {
    let entries = journal::read(state, id)?;
    Ok(conclude(&entries, |_| journal::is_open(state, id, Side::Destination)))
}

/// What the records prove, told which processes are alive. Pure.
pub fn conclude(
    entries: &[Entry<DestinationRecord>],
    alive: impl Fn(&TaskId) -> bool,
) -> DestinationStanding {
    use DestinationStanding as S;
    let mut standing = S::Unknown;
    let mut engine_lives = false;
    let mut held = Vec::new();
    for entry in entries {
        match &entry.record {
            DestinationRecord::Accepted { engine, .. } => {
                engine_lives = alive(engine);
                standing = S::Interrupted { tasks: Vec::new() };
            }
            DestinationRecord::TakingOver
            | DestinationRecord::Restoring { .. }
            | DestinationRecord::Drained => {}
            DestinationRecord::Prepared { tasks } => {
                held = tasks.clone();
                standing = S::Interrupted { tasks: held.clone() };
            }
            DestinationRecord::Committed => standing = S::NeverReleased { tasks: held.clone() },
            DestinationRecord::Released => standing = S::ReleaseUnknown { tasks: held.clone() },
            DestinationRecord::InDoubt { .. } => {
                // Its receiver may live, and is at work on it no more.
                engine_lives = false;
                standing = S::ReleaseUnknown { tasks: held.clone() };
            }
            DestinationRecord::Resumed => standing = S::Resumed,
            DestinationRecord::Discarded { cause } => standing = S::Discarded { cause: cause.clone() },
            DestinationRecord::Resolved { runs } => standing = S::Resolved(*runs),
        }
    }
    match standing {
        S::Interrupted { .. } | S::NeverReleased { .. } | S::ReleaseUnknown { .. } if engine_lives => {
            S::UnderWay
        }
        other => other,
    }
}

/// Answers AskOutcome for a migration that this receiver is not at work on. A
/// migration that provably never ran is written down as discarded *before* that
/// is said: a Commit that came after it would find it.
pub fn outcome(state: &Path, work: &Path, id: MigrationId) -> Outcome {
    match settle(state, work, id) {
        Ok(standing) => answer(&standing),
        Err(error) => Outcome::InDoubt(format!("the destination's journal cannot be used: {error}")),
    }
}

/// What a source that asks is told.
pub fn answer(standing: &DestinationStanding) -> Outcome {
    use DestinationStanding as S;
    match standing {
        S::Unknown => Outcome::Unknown,
        S::Resumed | S::Resolved(Side::Destination) => Outcome::Resumed,
        S::Discarded { .. } | S::Resolved(Side::Source) => Outcome::NotResumed,
        S::ReleaseUnknown { .. } => Outcome::InDoubt(
            "its receiver died while letting the copy run; `ferry status` and `ferry resolve` on the destination"
                .into(),
        ),
        S::UnderWay | S::Interrupted { .. } | S::NeverReleased { .. } => Outcome::Undecided,
    }
}

/// What CRIU's log says of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseTrace {
    /// Nothing: CRIU died first, or the log is gone.
    Silent,
    /// The tasks were let go.
    Resumed,
    /// CRIU failed and removed the copy.
    Failed,
}

/// What is to be done about a migration whose receiver is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Nothing: it has ended, or its receiver is at work, or only an operator can tell.
    Leave,
    /// That nothing ran, or shall run, is written down: what may be left is removed.
    CleanUp,
    /// It runs here: that is to be written down.
    Resumed,
    /// Nothing ran: that is to be written down, then what is left is removed.
    Discard(&'static str),
}

/// Which end a standing proves, with CRIU's log where the journal alone does not. Pure.
pub fn settlement(
    standing: &DestinationStanding,
    trace: impl FnOnce() -> ReleaseTrace,
    alive: impl Fn(&TaskId) -> bool,
) -> Settlement {
    use DestinationStanding as S;
    match standing {
        S::Interrupted { .. } | S::NeverReleased { .. } => {
            Settlement::Discard("its receiver died before the copy ran")
        }
        S::ReleaseUnknown { tasks } => match trace() {
            ReleaseTrace::Resumed => Settlement::Resumed,
            ReleaseTrace::Failed if !tasks.iter().any(alive) => {
                Settlement::Discard("CRIU removed the copy before it ran")
            }
            ReleaseTrace::Failed | ReleaseTrace::Silent => Settlement::Leave,
        },
        S::Discarded { .. } | S::Resolved(Side::Source) => Settlement::CleanUp,
        S::Unknown | S::UnderWay | S::Resumed | S::Resolved(Side::Destination) => Settlement::Leave,
    }
}

/// Brings a migration whose receiver died to the end that its journal proves, and
/// says what the journal then says.
pub fn settle(state: &Path, work: &Path, id: MigrationId) -> io::Result<DestinationStanding> {
    let found = standing(state, id)?;
    match settlement(&found, || release_trace(work, id), TaskId::is_alive) {
        Settlement::Leave => {
            // It died in the brownout: the pager goes on alone, and needs no file.
            if found == DestinationStanding::Resumed && !journal::is_open(state, id, Side::Destination) {
                let _ = leftovers::remove_directory(&work_directory(work, id));
                files::settle(state, &id.to_string(), Lives::Here)?;
            }
            return Ok(found);
        }
        Settlement::CleanUp => {
            // The directory goes last: where it is gone, everything is.
            if work_directory(work, id).exists() {
                remove_copy(state, work, id, found.tasks())?;
            }
            return Ok(found);
        }
        Settlement::Resumed => {
            Journal::open(state, id)?.append(&DestinationRecord::Resumed)?;
            files::settle(state, &id.to_string(), Lives::Here)?;
            open_network(id);
        }
        Settlement::Discard(cause) => {
            Journal::open(state, id)?.append(&DestinationRecord::Discarded { cause: cause.into() })?;
            remove_copy(state, work, id, found.tasks())?;
        }
    }
    standing(state, id)
}

fn release_trace(work: &Path, id: MigrationId) -> ReleaseTrace {
    let log = std::fs::read_to_string(work_directory(work, id).join("work/restore.log"));
    match log.unwrap_or_default() {
        log if log.contains("Tasks resumed") => ReleaseTrace::Resumed,
        log if log.contains("Restoring FAILED") => ReleaseTrace::Failed,
        _ => ReleaseTrace::Silent,
    }
}

/// Ends a doubt by an operator's word: the workload is to live on `runs`. Only for
/// a migration that [`settle`] leaves at `ReleaseUnknown`.
pub fn resolve(state: &Path, work: &Path, id: MigrationId, tasks: &[TaskId], runs: Side) -> io::Result<()> {
    let mut journal = Journal::open(state, id)?;
    journal.append(&DestinationRecord::Resolved { runs })?;
    journal.sync()?;
    match runs {
        Side::Destination => {
            open_network(id);
            files::settle(state, &id.to_string(), Lives::Here)
        }
        Side::Source => remove_copy(state, work, id, tasks),
    }
}

/// Kills what is left of a copy and takes its address and its images away.
fn remove_copy(state: &Path, work: &Path, id: MigrationId, tasks: &[TaskId]) -> io::Result<()> {
    let entries = journal::read::<DestinationRecord>(state, id)?;
    connections::kill_quietly(tasks);
    let moved = entries.iter().find_map(|entry| match &entry.record {
        DestinationRecord::Accepted { move_ip, .. } => parse_address_move(move_ip.as_deref()?),
        _ => None,
    });
    let took_over = entries.iter().any(|entry| entry.record == DestinationRecord::TakingOver);
    if let Some(moved) = moved.filter(|_| took_over)
        && let Ok(mut holder) = AddressHolder::at_source(&moved)
    {
        let _ = holder.take_off();
    }
    open_network(id);
    files::settle(state, &id.to_string(), Lives::Elsewhere)?;
    let _ = leftovers::remove_directory(&work_directory(work, id));
    Ok(())
}

/// Lets packets of a moved address through again that a dead receiver kept away.
fn open_network(id: MigrationId) {
    if let Err(error) = Nft::open().and_then(|mut nft| nft.remove_table_of(id)) {
        tracing::warn!(%error, %id, "the drop table may still stand");
    }
}

/// Where a migration's images and CRIU's logs are.
pub(super) fn work_directory(work: &Path, id: MigrationId) -> PathBuf {
    work.join(format!("ferry-receive-{id}"))
}

/// At a receiver's start: brings every migration of dead receivers to its end.
pub fn settle_all(state: &Path, work: &Path) -> io::Result<Vec<(MigrationId, DestinationStanding)>> {
    let mut settled = Vec::new();
    for id in journal::list(state, Side::Destination)? {
        let before = standing(state, id)?;
        let after = settle(state, work, id)?;
        if before != after || matches!(after, DestinationStanding::ReleaseUnknown { .. }) {
            settled.push((id, after));
        }
    }
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: TaskId = TaskId { pid: 1, start_time: 1, namespace: 0 };
    const TASK: TaskId = TaskId { pid: 2, start_time: 2, namespace: 0 };

    fn told(records: &[DestinationRecord]) -> DestinationStanding {
        let accepted = DestinationRecord::Accepted {
            target: "pid:2".into(),
            from: "there".into(),
            engine: ENGINE,
            move_ip: None,
        };
        let entries: Vec<_> = std::iter::once(accepted)
            .chain(records.iter().cloned())
            .map(|record| Entry { at: 0, record })
            .collect();
        conclude(&entries, |_| false)
    }

    #[test]
    fn each_prefix_of_a_journal_proves_what_it_proves() {
        use DestinationRecord as R;
        use DestinationStanding as S;
        let tasks = vec![TASK];
        let all = [
            R::Restoring { pids: vec![2] },
            R::Prepared { tasks: tasks.clone() },
            R::Committed,
            R::Released,
            R::Resumed,
            R::Drained,
        ];
        let proves = [
            S::Interrupted { tasks: vec![] },
            S::Interrupted { tasks: vec![] },
            S::Interrupted { tasks: tasks.clone() },
            S::NeverReleased { tasks: tasks.clone() },
            S::ReleaseUnknown { tasks },
            S::Resumed,
            S::Resumed,
        ];
        for (written, proof) in proves.iter().enumerate() {
            assert_eq!(&told(&all[..written]), proof, "after {written} records");
        }
    }

    #[test]
    fn a_copy_that_never_ran_is_written_down_before_it_is_said() {
        let state = tempfile::tempdir().unwrap();
        let id = MigrationId(5);
        let mut journal = Journal::open(state.path(), id).unwrap();
        let dead = TaskId { pid: 1 << 21, start_time: 1, namespace: 0 };
        journal
            .append(&DestinationRecord::Accepted {
                target: "pid:2".into(),
                from: "there".into(),
                engine: dead,
                move_ip: None,
            })
            .unwrap();
        journal.append(&DestinationRecord::Prepared { tasks: vec![dead] }).unwrap();
        journal.append(&DestinationRecord::Committed).unwrap();
        assert_eq!(outcome(state.path(), state.path(), id), Outcome::Undecided, "its receiver is at work");
        drop(journal);
        assert_eq!(outcome(state.path(), state.path(), id), Outcome::NotResumed);
        assert!(matches!(standing(state.path(), id).unwrap(), DestinationStanding::Discarded { .. }));
        assert_eq!(outcome(state.path(), state.path(), MigrationId(6)), Outcome::Unknown);
    }
}
