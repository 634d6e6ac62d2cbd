//! A cut, a kill or an interruption at every message of a migration.

mod support;

use support::trial::Deed::{self, *};
use support::trial::Ends::*;
use support::trial::{At, Fate, Kept, Oom, Trial};

/// Every place at the source, in the order of a migration.
const AT_SOURCE: [&str; 15] = [
    "before-send:Hello",
    "after-receive:Hello",
    "before-send:Offer",
    "after-receive:Accepted",
    "before-send:RoundEnd",
    "after-receive:RoundAcked",
    "before-send:Freezing",
    "after-send:Freezing",
    "after-receive:TakenOver",
    "after-send:Image",
    "before-send:FinalState",
    "after-send:FinalState",
    "after-receive:Ready",
    "before-send:Commit",
    "after-send:Commit",
];

/// Every place at the destination.
const AT_DESTINATION: [&str; 13] = [
    "after-receive:Hello",
    "after-receive:Offer",
    "before-send:Accepted",
    "after-receive:RoundEnd",
    "after-receive:Freezing",
    "before-send:TakenOver",
    "after-receive:Image",
    "after-receive:FinalState",
    "before-send:RoundAcked",
    "before-send:Ready",
    "after-send:Ready",
    "after-receive:Commit",
    "before-send:Resumed",
];

/// The last place at each side where it is certain that nothing is committed, and
/// the first where it is certain that something is. Between them both are right.
struct Certain {
    here_until: &'static str,
    there_from: Option<&'static str>,
}

fn at_each(trial: &mut Trial, at: At, order: &[&str], deed: Deed, certain: Certain) {
    let of = |place| order.iter().position(|other| *other == place).expect("a place of the table");
    for (index, place) in order.iter().enumerate() {
        let ends = match certain.there_from {
            _ if index <= of(certain.here_until) => Here,
            Some(there) if index >= of(there) => There,
            _ => Either,
        };
        trial.goes_wrong(at, place, deed, ends);
    }
}

const SENT: Certain = Certain { here_until: "before-send:Commit", there_from: None };

#[test]
fn the_cable_is_cut_at_every_message() {
    let Some(mut trial) = Trial::new("faults-cut") else { return };
    at_each(&mut trial, At::Source, &AT_SOURCE, CutCable, SENT);
    let certain = Certain { here_until: "before-send:Ready", there_from: Some("after-receive:Commit") };
    at_each(&mut trial, At::Destination, &AT_DESTINATION, CutCable, certain);
    trial.finish();
}

#[test]
fn the_source_is_killed_at_every_message() {
    let Some(mut trial) = Trial::new("faults-source") else { return };
    at_each(&mut trial, At::Source, &AT_SOURCE, KillSource, SENT);
    let certain = Certain { here_until: "before-send:Ready", there_from: Some("after-receive:Commit") };
    at_each(&mut trial, At::Destination, &AT_DESTINATION, KillSource, certain);
    trial.finish();
}

#[test]
fn the_destination_is_killed_at_every_message() {
    let Some(mut trial) = Trial::new("faults-destination") else { return };
    at_each(&mut trial, At::Source, &AT_SOURCE, KillDestination, SENT);
    // It received Commit, and had not written it down.
    let certain = Certain { here_until: "after-receive:Commit", there_from: Some("before-send:Resumed") };
    at_each(&mut trial, At::Destination, &AT_DESTINATION, KillDestination, certain);
    trial.finish();
}

#[test]
fn criu_is_killed_on_either_side() {
    let Some(mut trial) = Trial::new("faults-criu") else { return };
    // Parked: another one is started, where its death is noticed in time.
    trial.goes_wrong(At::Source, "before-send:Freezing", KillSourceCriu, Either);
    // Holding the dump, whose tasks are pinned: that CRIU is dead changes nothing for them.
    for place in [
        "after-send:Image",
        "before-send:FinalState",
        "after-receive:Ready",
        "before-send:Commit",
        "after-send:Commit",
    ] {
        trial.goes_wrong(At::Source, place, KillSourceCriu, There);
    }
    // Both at once: the keeper lets the tasks run, or an operator decides.
    for place in ["after-send:Freezing", "after-send:Image", "after-receive:Ready", "before-send:Commit"] {
        trial.goes_wrong(At::Source, place, KillSourceAndCriu, Here);
    }
    trial.goes_wrong(At::Source, "after-send:Commit", KillSourceAndCriu, Either);
    trial.goes_wrong(At::Destination, "after-receive:FinalState", KillDestinationCriu, Either);
    // Holding the copy.
    for place in ["before-send:Ready", "after-send:Ready", "after-receive:Commit"] {
        trial.goes_wrong(At::Destination, place, KillDestinationCriu, Here);
    }
    trial.goes_wrong(At::Destination, "before-send:Resumed", KillDestinationCriu, There);
    trial.finish();
}

#[test]
fn somebody_gives_up_at_every_message() {
    let Some(mut trial) = Trial::new("faults-abort") else { return };
    // From Committing on nobody may.
    let certain = Certain { here_until: "after-receive:Ready", there_from: Some("before-send:Commit") };
    at_each(&mut trial, At::Source, &AT_SOURCE, Interrupt, certain);
    let certain = Certain { here_until: "before-send:Ready", there_from: Some("before-send:Resumed") };
    at_each(&mut trial, At::Destination, &AT_DESTINATION, StopDestination, certain);
    trial.finish();
}

#[test]
fn an_operator_aborts_at_either_end() {
    let Some(mut trial) = Trial::new("faults-operator") else { return };
    for place in ["before-send:RoundEnd", "before-send:Freezing", "before-send:FinalState"] {
        trial.goes_wrong(At::Source, place, AbortHere, Here);
    }
    // The receiver looks a few times a second, and the rounds here are short: it may be late.
    trial.goes_wrong(At::Destination, "after-receive:RoundEnd", AbortThere, Either);
    trial.finish();
}

#[test]
fn the_workload_forks_execs_and_ends_children_in_every_round() {
    let Some(mut trial) = Trial::new("faults-workload") else { return };
    for deed in ["fork", "exec", "end", "grow 20", "end", "fork"] {
        // Before round 0, within it, between two rounds, and right before the freeze.
        for place in [
            "after-receive:Accepted",
            "before-send:RoundEnd",
            "after-receive:RoundAcked",
            "before-send:Freezing",
        ] {
            trial.goes_wrong(At::Source, place, Workload(deed), There);
        }
    }
    trial.finish();
}

#[test]
fn the_destination_has_no_room_and_somebody_is_in_the_way() {
    let Some(mut trial) = Trial::new("faults-host") else { return };
    for place in ["before-send:Accepted", "after-receive:Freezing", "after-receive:FinalState"] {
        trial.goes_wrong(At::Destination, place, FillDisk, Here);
    }
    // What is left to be written may still fit.
    for place in ["before-send:Ready", "after-receive:Commit", "before-send:Resumed"] {
        trial.goes_wrong(At::Destination, place, FillDisk, Either);
    }
    trial.goes_wrong(At::Source, "before-send:FinalState", TakePid, Here);
    for place in ["after-receive:Accepted", "before-send:Freezing", "after-receive:Ready"] {
        trial.goes_wrong(At::Source, place, MigrateAgain, There);
    }
    trial.finish();
}

#[test]
fn a_file_of_the_workload_changes_at_the_destination() {
    let Some(mut trial) = Trial::new("faults-file") else { return };
    // After the pre-flight has seen it, and before CRIU opens it.
    for (file, fate) in [
        (Kept::Open, Fate::Removed),
        (Kept::Open, Fate::Cut),
        (Kept::Mapped, Fate::Removed),
        (Kept::Mapped, Fate::Cut),
    ] {
        trial.goes_wrong(At::Destination, "before-send:Accepted", Spoil(file, fate), Here);
        trial.goes_wrong(At::Destination, "after-receive:FinalState", Spoil(file, fate), Here);
    }
    // Restored, it has them.
    trial.goes_wrong(At::Destination, "before-send:Ready", Spoil(Kept::Open, Fate::Removed), There);
    trial.finish();
}

#[test]
fn the_destination_has_no_memory_for_what_the_workload_became() {
    let Some(mut trial) = Trial::new("faults-memory") else { return };
    trial.limit_memory(Some("160M"));
    // In round 0, in a later one, and in the last.
    for place in
        ["after-receive:Accepted", "before-send:RoundEnd", "after-receive:RoundAcked", "before-send:Freezing"]
    {
        trial.goes_wrong(At::Source, place, Outgrow, Here);
    }
    trial.limit_memory(None);
    if Oom::can_be() {
        for oom in [Oom::Refuses, Oom::Kills] {
            for place in ["before-send:Accepted", "after-receive:RoundEnd"] {
                trial.goes_wrong(At::Destination, place, Starve(oom), Here);
            }
        }
    }
    trial.finish();
}

#[test]
fn the_workload_exits_in_every_round() {
    for place in
        ["after-receive:Accepted", "before-send:RoundEnd", "after-receive:RoundAcked", "before-send:Freezing"]
    {
        let Some(trial) = Trial::new("faults-exit") else { return };
        trial.exits(place);
    }
}
