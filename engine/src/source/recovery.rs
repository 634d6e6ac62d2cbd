//! A migration whose engine is gone: what is known, and how it is ended.
//!
//! The source's tasks are in one of four conditions, which the journal tells:
//! before `holding` CRIU let them run when its engine died; from then on they are
//! stopped beneath it (state T), and are to run here; from `committing` on they are
//! stopped until somebody decides; after `completed` or `aborted` there is nothing
//! to decide.

use crate::journal::{self, Entry, Journal, Side, SourceRecord, TaskId};
use crate::net::address::{AddressHolder, Place};
use crate::net::announce::Announcer;
use crate::target::Aftercare;
use crate::target::process::rescue;
use ferry_transport::link::{Connector, LinkError};
use ferry_transport::wire::control::{AddressMove, Hello, Message, MigrationId, Outcome};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a source's journal says of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceStanding {
    /// There is no such journal.
    Unknown,
    /// Its engine is at work.
    UnderWay,
    /// Its engine died before Commit could be sent: the workload is to run here, and
    /// [`settle`] sees to it.
    Interrupted,
    /// Commit may have been sent and no outcome is written down.
    InDoubt {
        /// The stopped tree, root first.
        tasks: Vec<TaskId>,
    },
    /// It runs there.
    Completed,
    /// It runs here.
    Aborted {
        /// Why.
        cause: String,
    },
    /// An operator decided.
    Resolved(Side),
}

/// Asks the destination what became of a migration, over a link of its own.
pub async fn ask(connector: &dyn Connector, hello: &Hello, id: MigrationId) -> Result<Outcome, LinkError> {
    let conversation = async {
        let link = connector.connect().await?;
        let (mut sender, mut receiver) = link.control().await?;
        sender.send(&Message::Hello(hello.clone())).await?;
        sender.send(&Message::AskOutcome(id)).await?;
        loop {
            match receiver.recv().await? {
                Message::Hello(_) | Message::KeepAlive => {}
                Message::Outcome(of, outcome) if of == id => {
                    link.close("answered").await;
                    return Ok(outcome);
                }
                other => {
                    return Err(LinkError::Protocol(format!("{} instead of an outcome", other.name())));
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(15), conversation)
        .await
        .unwrap_or_else(|_| Err(LinkError::Lost("no answer within 15 s".into())))
}

/// What the journal says, and whether its engine lives.
pub fn standing(state: &Path, id: MigrationId) -> io::Result<SourceStanding> {
    let entries = journal::read::<SourceRecord>(state, id)?;
    Ok(conclude(&entries, |_| journal::is_open(state, id, Side::Source)))
}

/// What the records say, told which processes are alive. Pure.
pub fn conclude(entries: &[Entry<SourceRecord>], alive: impl Fn(&TaskId) -> bool) -> SourceStanding {
    let mut standing = SourceStanding::Unknown;
    let mut engine_lives = false;
    let mut held = Vec::new();
    for entry in entries {
        match &entry.record {
            SourceRecord::Started { engine, .. } => {
                engine_lives = alive(engine);
                standing = SourceStanding::Interrupted;
            }
            SourceRecord::Freezing { .. } | SourceRecord::InDoubt { .. } => {}
            SourceRecord::Holding { tasks } => held.clone_from(tasks),
            SourceRecord::Committing => standing = SourceStanding::InDoubt { tasks: held.clone() },
            SourceRecord::Completed => standing = SourceStanding::Completed,
            SourceRecord::Aborted { cause } => standing = SourceStanding::Aborted { cause: cause.clone() },
            SourceRecord::Resolved { runs } => standing = SourceStanding::Resolved(*runs),
        }
    }
    match standing {
        SourceStanding::Interrupted | SourceStanding::InDoubt { .. } if engine_lives => {
            SourceStanding::UnderWay
        }
        other => other,
    }
}

/// Ends a migration whose engine died before Commit could be sent: the workload
/// runs here, with its address, and the journal says so. Others stay as they are.
/// Says what the journal then says.
pub fn settle(state: &Path, id: MigrationId) -> io::Result<SourceStanding> {
    let found = standing(state, id)?;
    if found != SourceStanding::Interrupted {
        return Ok(found);
    }
    let Left { address, images, tasks, stopped, aftercare } = left(state, id);
    of_here(&tasks).map_err(io::Error::other)?;
    let announcing = address.map(give_back);
    rescue::let_run(&images, &tasks, &stopped);
    let cared = aftercare.map_or(Ok(()), |aftercare| aftercare.perform(Side::Source));
    announcing.map_or(Ok(()), wait_announced).and(cared).map_err(io::Error::other)?;
    let _ = std::fs::remove_dir_all(images);
    let cause = "its engine died before the commit".to_owned();
    Journal::open(state, id)?.append(&SourceRecord::Aborted { cause })?;
    standing(state, id)
}

/// Ends a doubt: the workload is to live on `runs`. The other side's word, or an
/// operator's, must stand behind it: this makes it true here.
pub fn resolve(state: &Path, id: MigrationId, runs: Side) -> Result<Vec<String>, String> {
    let SourceStanding::InDoubt { tasks } = standing(state, id).map_err(|error| error.to_string())? else {
        return Err(format!("migration {id} is not in doubt here: `ferry status` shows what it is"));
    };
    of_here(&tasks)?;
    let Left { address, images, stopped, aftercare, .. } = left(state, id);
    let mut done = Vec::new();
    match runs {
        Side::Destination => {
            let removed = tasks.len() - rescue::remove(&images, &tasks);
            done.push(format!("{removed} of the {} stopped processes here were removed", tasks.len()));
        }
        Side::Source => {
            let what =
                address.as_ref().map(|place| format!("{} is on {}", place.address, place.interface.name));
            let announcing = address.map(give_back);
            rescue::let_run(&images, &tasks, &stopped);
            done.push(format!("the {} processes run again here", tasks.len()));
            if let (Some(what), Some(announcing)) = (what, announcing) {
                done.push(wait_announced(announcing).map_or_else(|error| error, |()| what + " again"));
            }
        }
    }
    if let Some(Err(error)) = aftercare.map(|aftercare| aftercare.perform(runs)) {
        done.push(error);
    }
    // Last: what was done may be done again, what is written down is not.
    let mut journal = Journal::open(state, id).map_err(|error| error.to_string())?;
    journal.append(&SourceRecord::Resolved { runs }).map_err(|error| error.to_string())?;
    let _ = journal.sync();
    let _ = std::fs::remove_dir_all(images);
    Ok(done)
}

/// Tasks of another PID namespace cannot be reached from here, nor mistaken for others.
fn of_here(tasks: &[TaskId]) -> Result<(), String> {
    match tasks.iter().find(|task| !task.is_of_here()) {
        None => Ok(()),
        Some(task) => Err(format!(
            "its processes (root {}) are of another PID namespace: run this inside it (nsenter --pid)",
            task.pid
        )),
    }
}

/// Gives a moved address back to this host, and begins to tell the clients.
fn give_back(place: Place) -> Result<JoinHandle<()>, String> {
    let address = place.address;
    let mut holder = AddressHolder::again(place).map_err(|error| error.to_string())?;
    holder.give().map_err(|error| error.to_string())?;
    Announcer::prepare(holder.interface(), address)
        .and_then(Announcer::announce_repeatedly)
        .map_err(|error| format!("{address} is here again, and was not announced: {error}"))
}

/// This process may end soon: the announcements are waited for.
fn wait_announced(announcing: Result<JoinHandle<()>, String>) -> Result<(), String> {
    announcing?.join().map_err(|_| "the address's announcement failed".into())
}

/// What an engine leaves when it dies.
#[derive(Default)]
struct Left {
    address: Option<Place>,
    images: PathBuf,
    /// Stopped by CRIU, and pinned if the dump was held.
    tasks: Vec<TaskId>,
    stopped: Vec<TaskId>,
    aftercare: Option<Aftercare>,
}

fn left(state: &Path, id: MigrationId) -> Left {
    let mut left = Left::default();
    for entry in journal::read::<SourceRecord>(state, id).unwrap_or_default() {
        match entry.record {
            SourceRecord::Started { address, images, aftercare, .. } => {
                (left.address, left.images, left.aftercare) = (address, images, aftercare.map(|care| *care));
            }
            SourceRecord::Freezing { tasks, stopped } => (left.tasks, left.stopped) = (tasks, stopped),
            SourceRecord::Holding { tasks } => left.tasks = tasks,
            _ => {}
        }
    }
    left
}

/// Parses `ADDR/LEN@IFACE`.
pub fn parse_address_move(text: &str) -> Option<AddressMove> {
    let (address, interface) = text.split_once('@')?;
    let (address, prefix) = address.split_once('/')?;
    let (address, prefix): (std::net::IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= longest && !interface.is_empty()).then(|| AddressMove {
        address,
        prefix,
        interface: interface.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: TaskId = TaskId { pid: 1, start_time: 1, namespace: 0 };
    const TASK: TaskId = TaskId { pid: 2, start_time: 2, namespace: 0 };

    fn told(records: &[SourceRecord], engine_lives: bool) -> SourceStanding {
        let started = SourceRecord::Started {
            target: "pid:2".into(),
            to: "there".into(),
            engine: ENGINE,
            address: None,
            images: "/nonexistent".into(),
            aftercare: None,
        };
        let entries: Vec<_> = std::iter::once(started)
            .chain(records.iter().cloned())
            .map(|record| Entry { at: 0, record })
            .collect();
        conclude(&entries, |_| engine_lives)
    }

    #[test]
    fn a_death_before_committing_leaves_the_workload_running_here() {
        let freezing = SourceRecord::Freezing { tasks: vec![TASK], stopped: vec![] };
        assert_eq!(told(std::slice::from_ref(&freezing), false), SourceStanding::Interrupted);
        assert_eq!(told(&[freezing], true), SourceStanding::UnderWay);
    }

    #[test]
    fn a_death_after_committing_is_a_doubt_and_names_the_tasks() {
        let holding = SourceRecord::Holding { tasks: vec![TASK] };
        assert_eq!(told(std::slice::from_ref(&holding), false), SourceStanding::Interrupted);
        let records = [holding, SourceRecord::Committing];
        assert_eq!(told(&records, false), SourceStanding::InDoubt { tasks: vec![TASK] });
    }

    #[test]
    fn an_outcome_ends_the_doubt_whoever_lives() {
        let committing = SourceRecord::Committing;
        assert_eq!(told(&[committing.clone(), SourceRecord::Completed], false), SourceStanding::Completed);
        let resolved = SourceRecord::Resolved { runs: Side::Source };
        assert_eq!(told(&[committing, resolved], true), SourceStanding::Resolved(Side::Source));
    }

    #[test]
    fn address_moves_parse_or_are_refused() {
        let moved = parse_address_move("10.0.0.5/24@eth0").unwrap();
        assert_eq!((moved.prefix, moved.interface.as_str()), (24, "eth0"));
        for bad in ["10.0.0.5/24", "10.0.0.5@eth0", "10.0.0.5/33@eth0", "x/24@eth0", "10.0.0.5/24@"] {
            assert!(parse_address_move(bad).is_none(), "{bad}");
        }
    }
}
