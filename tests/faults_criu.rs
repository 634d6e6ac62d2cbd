//! CRIU killed in the midst of its own work: at lines of its log.

mod support;

use std::collections::BTreeSet;
use support::trial::Deed::*;
use support::trial::Ends::*;
use support::trial::{At, Trial};

/// Kills CRIU at each of these lines, several times; at which of them the workload, with
/// its connections, lived through it. Where it did not, that is said and nothing is left.
fn lived(name: &str, marks: &[&'static str]) -> BTreeSet<&'static str> {
    let mut lived = BTreeSet::new();
    let mut trial = Trial::new(name);
    for mark in marks.iter().copied().cycle().take(3 * marks.len()) {
        let Some(current) = &mut trial else { return marks.iter().copied().collect() };
        if current.is_fatal(mark) {
            drop(trial.take());
            trial = Trial::new(name);
        } else {
            lived.insert(mark);
        }
    }
    trial.into_iter().for_each(Trial::finish);
    lived
}

#[test]
fn criu_is_killed_within_its_dump() {
    let marks = [
        // Tasks begin to stand still.
        "Seized task",
        // Its code is in the first process, which waits for orders; one connection after
        // the other is silenced.
        "Turning repair on",
        // The first process is left again; all of its connections are silent.
        "Dumping mm (pid",
    ];
    assert_eq!(lived("criu-dump", &marks), BTreeSet::from(marks));
}

#[test]
fn criu_is_killed_while_a_process_does_its_bidding() {
    // Right before system calls and commands that a thread executes for CRIU: it may die of
    // that, and whether it does is chance.
    lived("criu-bidding", &["Putting parasite blob", "Dumping core (pid"]);
}

#[test]
fn engine_and_criu_are_killed_within_the_dump() {
    let Some(mut trial) = Trial::new("criu-engine") else { return };
    for _ in 0..3 {
        trial.goes_wrong(At::Source, "after-send:Freezing", KillSourceAndCriuAmid("Seized task"), Here);
    }
    trial.finish();
}

#[test]
fn criu_is_killed_within_its_restore() {
    let Some(mut trial) = Trial::new("criu-restore") else { return };
    for mark in ["Restoring namespaces", "Forking task with", "Opening fdinfo-s", "Restoring TCP connection"]
    {
        let deed = KillCriuAmid(At::Destination, mark, 0);
        trial.goes_wrong(At::Destination, "after-receive:FinalState", deed, Here);
    }
    trial.finish();
}
