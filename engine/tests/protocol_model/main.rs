//! The protocol of a migration, as a model that can be read and run.
//!
//! The two state machines are the real ones of `engine::source::state` and
//! `engine::destination::state`, and so is what a dead engine's journal proves
//! (`conclude`, `settlement`, `answer`). Around them stand small drivers
//! ([`source`], [`destination`]) that do one deed at a time, a [`link`] that loses
//! what is on its way, and [`host`]s on which CRIU holds tasks and lets go of them
//! when it dies. A [`world`] is all of it, with every fault that is thought of.
//!
//! Three ways through it: every single fault and every pair of faults at every
//! moment of a migration, and random interleavings with random faults. At each
//! moment [`world::World::check`] must hold, and after the last fault the
//! migration must come to an end by itself, or by `ferry resolve`, with the
//! workload whole, running, and in one place.

mod destination;
mod host;
mod link;
mod source;
mod world;

use ferry_engine::destination::recovery::DestinationStanding;
use ferry_engine::destination::state::{DestinationAction, DestinationInput, DestinationState};
use ferry_engine::journal::Side;
use ferry_engine::source::state::{SourceAction, SourceInput, SourceState};
use ferry_transport::page::Round;
use host::LastBreath;
use proptest::prelude::*;
use source::Turn;
use std::collections::BTreeMap;
use world::{FAULTS, Fault, MOVERS, Mover, World};

/// Who had to do something for it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EndedBy {
    /// Nobody.
    Itself,
    /// `ferry resolve` at the source, which asks the destination's journal.
    AskingAgain,
    /// A person who looked at the destination.
    Operator,
    /// A person who started the receiver again, for what it could not write down.
    Restart,
}

/// How a run went: the side that has the workload, and who had to help.
type End = (&'static str, EndedBy);

/// No more faults: every side goes on, deadlines pass where nothing else can happen.
fn bring_to_an_end(world: &mut World) -> End {
    go_on(world);
    let mut ended_by = EndedBy::Itself;
    if !world.source.as_ref().is_some_and(source::Source::is_done) {
        ended_by = EndedBy::AskingAgain;
    }
    // The source's process ends, at its end or because its patience in doubt is over.
    step(world, Fault::KillSource);
    world.start_receiver();
    world.check();
    // What was under way when the source died is given up by the destination.
    go_on(world);
    step(world, Fault::Resolve);
    if world.destination_standing() == DestinationStanding::UnderWay {
        ended_by = EndedBy::Restart;
        step(world, Fault::RestartReceiver);
    }
    if world.resolve_destination() == Turn::Done {
        ended_by = ended_by.max(EndedBy::Operator);
    }
    world.check();
    step(world, Fault::Resolve);
    match world.check_end() {
        Side::Source => ("source", ended_by),
        Side::Destination => ("destination", ended_by),
    }
}

/// Everybody goes on; where nobody can, deadlines pass.
fn go_on(world: &mut World) {
    for _ in 0..100 {
        let moves = MOVERS.map(|mover| {
            let turn = world.turn(mover);
            world.check();
            turn
        });
        if moves == [Turn::Idle; MOVERS.len()] {
            let failed = [Fault::DestinationFails, Fault::SourceFails].map(|fault| {
                let turn = world.fault(fault);
                world.check();
                turn
            });
            if failed == [Turn::Idle; 2] {
                return;
            }
        }
    }
}

fn step(world: &mut World, fault: Fault) {
    world.fault(fault);
    world.check();
}

/// A migration in which the movers take turns, with faults at given moments.
fn run_in_turn(rounds: u32, faults: &[(usize, Fault)]) -> End {
    let mut world = World::new(rounds);
    let mut movers = MOVERS.iter().cycle();
    for moment in 0..MOMENTS {
        for (_, fault) in faults.iter().filter(|(at, _)| *at == moment) {
            step(&mut world, *fault);
        }
        // The next one that has something to do.
        let _ = movers.by_ref().take(MOVERS.len()).find(|mover| world.turn(**mover) == Turn::Done);
        world.check();
    }
    bring_to_an_end(&mut world)
}

/// The deeds of a migration of one round, both sides together, and a few more.
const MOMENTS: usize = 56;

#[test]
fn without_a_fault_it_ends_at_the_destination() {
    let mut world = World::new(1);
    let mut deeds = 0;
    while MOVERS.iter().filter(|mover| world.turn(**mover) == Turn::Done).inspect(|_| deeds += 1).count() > 0
    {
    }
    assert!((MOMENTS - 8..MOMENTS).contains(&deeds), "a migration of one round has {deeds} deeds");
    for rounds in 0..4 {
        assert_eq!(run_in_turn(rounds, &[]), ("destination", EndedBy::Itself), "{rounds} rounds");
    }
}

#[test]
fn every_single_fault_at_every_moment() {
    let mut ends = BTreeMap::new();
    for moment in 0..MOMENTS {
        for fault in FAULTS {
            *ends.entry(run_in_turn(1, &[(moment, fault)])).or_insert(0) += 1;
        }
    }
    // The model is worth something only if faults do lead to each kind of end.
    for side in ["source", "destination"] {
        for ended_by in [EndedBy::Itself, EndedBy::AskingAgain, EndedBy::Operator] {
            assert!(
                ends.contains_key(&(side, ended_by)),
                "none ended at the {side} by {ended_by:?}: {ends:?}"
            );
        }
    }
}

#[test]
fn every_pair_of_faults_at_every_two_moments() {
    for first in 0..MOMENTS {
        for second in first..MOMENTS {
            for one in FAULTS {
                for other in FAULTS {
                    run_in_turn(1, &[(first, one), (second, other)]);
                }
            }
        }
    }
}

fn mover() -> impl Strategy<Value = Mover> {
    prop_oneof![4 => Just(Mover::Source), 4 => Just(Mover::Destination), 1 => Just(Mover::Criu), 1 => Just(Mover::Answer), 1 => Just(Mover::Keeper)]
}

fn fault() -> impl Strategy<Value = Fault> {
    proptest::sample::select(FAULTS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any interleaving, with up to eight faults anywhere in it.
    #[test]
    fn any_interleaving_with_any_faults(
        rounds in 0..3u32,
        moves in proptest::collection::vec(mover(), 0..160),
        faults in proptest::collection::vec((0..160usize, fault()), 0..8),
    ) {
        let mut world = World::new(rounds);
        for (moment, mover) in moves.iter().enumerate() {
            for (_, fault) in faults.iter().filter(|(at, _)| *at == moment) {
                step(&mut world, *fault);
            }
            world.turn(*mover);
            world.check();
        }
        bring_to_an_end(&mut world);
    }

    /// As long as CRIU at the destination is left alone and no disk is full, no
    /// person has to look at the destination: its journal always knows.
    #[test]
    fn cuts_and_killed_engines_need_no_operator_at_the_destination(
        moves in proptest::collection::vec(mover(), 0..160),
        faults in proptest::collection::vec(
            (0..160usize, prop_oneof![
                Just(Fault::Cut), Just(Fault::KillSource), Just(Fault::KillReceiver),
                Just(Fault::RestartReceiver), Just(Fault::KillSourceCriu), Just(Fault::Resolve),
            ]),
            0..6,
        ),
    ) {
        let mut world = World::new(1);
        for (moment, mover) in moves.iter().enumerate() {
            for (_, fault) in faults.iter().filter(|(at, _)| *at == moment) {
                step(&mut world, *fault);
            }
            world.turn(*mover);
            world.check();
        }
        let (_, ended_by) = bring_to_an_end(&mut world);
        prop_assert!(ended_by <= EndedBy::AskingAgain, "{ended_by:?}");
    }
}

fn source_states() -> Vec<SourceState> {
    use SourceState as S;
    vec![
        S::Preparing,
        S::PreCopy { round: Round(3) },
        S::Freezing,
        S::StopAndCopy,
        S::AwaitingReady,
        S::Committing,
        S::InDoubt,
        S::Completed,
        S::Aborted { at: "Freezing", cause: "a test".into() },
    ]
}

fn source_inputs() -> Vec<SourceInput> {
    use SourceInput as I;
    let why = || "a test".to_owned();
    vec![
        I::Accepted,
        I::RoundDone,
        I::FreezeDecided,
        I::Frozen,
        I::FinalSent,
        I::Ready,
        I::Resumed,
        I::NotResumed(why()),
        I::Silence(why()),
        I::Failure(why()),
    ]
}

#[test]
fn every_input_to_the_source_is_a_step_or_an_error_that_names_both() {
    for state in source_states() {
        for input in source_inputs() {
            let name = state.name();
            let said = format!("{input:?}");
            match state.clone().step(input.clone()) {
                Err(illegal) => {
                    assert_eq!(illegal.to_string(), format!("{said} cannot happen in state {name}"));
                    assert!(
                        state.is_end() || !matches!(input, SourceInput::Failure(_)),
                        "{name} must take Failure"
                    );
                }
                Ok((next, actions)) => {
                    assert!(!state.is_end(), "{name} is an end, yet {said} led to {}", next.name());
                    // Who may let it run again, and who may remove it.
                    if state.is_past_commit() && actions.contains(&SourceAction::Thaw) {
                        assert!(matches!(input, SourceInput::NotResumed(_)), "{said} thaws in {name}");
                    }
                    if actions.contains(&SourceAction::RemoveTree) {
                        assert!(
                            state.is_past_commit() && input == SourceInput::Resumed,
                            "{said} removes in {name}"
                        );
                    }
                    if actions.contains(&SourceAction::SendCommit) {
                        assert_eq!(input, SourceInput::Ready);
                    }
                }
            }
        }
    }
}

#[test]
fn every_input_to_the_destination_is_a_step_or_an_error_that_names_both() {
    use DestinationInput as I;
    use DestinationState as S;
    let why = || "a test".to_owned();
    let states = [
        S::Negotiating,
        S::Receiving,
        S::Assembling,
        S::Restoring,
        S::Prepared,
        S::Resuming,
        S::Brownout,
        S::Completed,
        S::Discarded { at: "Prepared", cause: why() },
        S::InDoubt { cause: why() },
    ];
    let inputs = [
        I::OfferAccepted,
        I::FinalStateReceived,
        I::Assembled,
        I::Held,
        I::Commit,
        I::Running,
        I::NeverRan(why()),
        I::ReleaseUnknown(why()),
        I::Drained,
        I::Failure(why()),
    ];
    for state in &states {
        for input in &inputs {
            let name = state.name();
            match state.clone().step(input.clone()) {
                Err(illegal) => {
                    assert_eq!(illegal.to_string(), format!("{input:?} cannot happen in state {name}"));
                    assert!(state.is_end() || !matches!(input, I::Failure(_)), "{name} must take Failure");
                }
                Ok((next, actions)) => {
                    assert!(!state.is_end(), "{name} is an end, yet {input:?} led to {}", next.name());
                    if actions.contains(&DestinationAction::JournalCommitted) {
                        assert_eq!((state, input), (&S::Prepared, &I::Commit), "the one commit point");
                    }
                    // What discards a copy that was committed has proved that it never ran.
                    if state.is_committed() && actions.contains(&DestinationAction::Discard) {
                        assert!(matches!(input, I::NeverRan(_)), "{input:?} discards in {name}");
                    }
                    let discards = actions.iter().position(|action| *action == DestinationAction::Discard);
                    if let Some(discards) = discards
                        && *state != S::Negotiating
                    {
                        let written = actions[..discards]
                            .iter()
                            .any(|a| matches!(a, DestinationAction::JournalDiscarded(_)));
                        assert!(written, "{name} discards before it is written down");
                    }
                }
            }
        }
    }
}

/// The one thing that no journal can tell and only a look at the destination does.
#[test]
fn a_copy_whose_criu_dies_in_the_act_is_left_to_the_operator() {
    let mut seen = 0;
    for moment in 0..MOMENTS {
        for breath in [LastBreath::Lives, LastBreath::Dies] {
            let (side, ended_by) = run_in_turn(1, &[(moment, Fault::KillCopyCriu(breath))]);
            assert!(ended_by <= EndedBy::Operator, "a living receiver does not know that it is in doubt");
            if ended_by == EndedBy::Operator {
                assert_eq!(side, if breath == LastBreath::Lives { "destination" } else { "source" });
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}
