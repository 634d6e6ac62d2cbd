//! The source's state machine: pure, the whole of it on one page.
//!
//! ```text
//!   Preparing ─► PreCopy{0} ─► PreCopy{n+1} ─► Freezing ─► StopAndCopy ─► AwaitingReady ─► Committing ─► Completed
//!       │            │              │              │            │               │              │ ╲
//!       └────────────┴──────────────┴──────────────┴────────────┴───────────────┘     NotResumed│  ╲ silence
//!                                   ▼  any failure: thaw, it runs here                          ▼   ╲
//!                                Aborted ◄──────────────────────────────────────────────────────┘    InDoubt
//!                                   ▲                                            NotResumed             │
//!                                   └───────────────────────────────────────────────────────────────────┤
//!                                                                          Completed ◄── Resumed ───────┘
//! ```
//!
//! Until `Committing` every failure leads to `Aborted`, with the workload
//! running here. From `Committing` on only the destination's word, or an
//! operator's, decides; silence leads to `InDoubt`, where the tasks stay frozen.

use ferry_transport::page::Round;
use ferry_transport::wire::control::Outcome;

/// Where a migration stands at the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Checks, the link, the offer. The workload runs.
    Preparing,
    /// A round is under way. The workload runs.
    PreCopy {
        /// Which.
        round: Round,
    },
    /// The tasks are being stopped; the downtime clock runs.
    Freezing,
    /// Frozen: the dump, the last pages, the images.
    StopAndCopy,
    /// Frozen: everything is over there; its Ready is awaited.
    AwaitingReady,
    /// Frozen and pinned: Commit may have been sent.
    Committing,
    /// Frozen and pinned: no word from the destination.
    InDoubt,
    /// It runs there; the tree here is gone.
    Completed,
    /// It runs here.
    Aborted {
        /// The state's name in which it was given up.
        at: &'static str,
        /// Why.
        cause: String,
    },
}

/// What can happen to a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceInput {
    /// The destination took the offer; the strategy wants a first round.
    Accepted,
    /// The strategy wants another round, this one being in the destination's store.
    RoundDone,
    /// The strategy wants the freeze, with or without a round before it.
    FreezeDecided,
    /// Every task stands still.
    Frozen,
    /// The dump is held, and pages, images and final state are sent.
    FinalSent,
    /// The destination holds a complete copy, and Committing is journaled here; the
    /// tasks have been pinned since the dump was held, so that no crash of ours lets
    /// them run.
    Ready,
    /// The copy runs.
    Resumed,
    /// Provably nothing runs there, nor ever will.
    NotResumed(String),
    /// The destination does not answer, or does not know.
    Silence(String),
    /// It cannot go on: the peer refused or failed, the link is gone, a local
    /// step failed, a deadline passed, the strategy or the user gave up.
    Failure(String),
}

/// What the driver does next, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Write down that a freeze begins.
    JournalFreezing,
    /// Tell the destination to let it run.
    SendCommit,
    /// Write down InDoubt.
    JournalInDoubt(String),
    /// Remove the tree for good.
    RemoveTree,
    /// Write down Completed.
    JournalCompleted,
    /// Tell the destination that it is over, if it can be told.
    TellAbort(String),
    /// Let the tasks run, connections and addresses as they were.
    Thaw,
    /// End the tracking.
    Disarm,
    /// Write down Aborted.
    JournalAborted(String),
}

/// An input that the state does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input} cannot happen in state {state}")]
pub struct IllegalInput {
    /// The state's name.
    pub state: &'static str,
    /// The input.
    pub input: String,
}

impl SourceState {
    /// The state's name, as in the diagram.
    pub fn name(&self) -> &'static str {
        match self {
            SourceState::Preparing => "Preparing",
            SourceState::PreCopy { .. } => "PreCopy",
            SourceState::Freezing => "Freezing",
            SourceState::StopAndCopy => "StopAndCopy",
            SourceState::AwaitingReady => "AwaitingReady",
            SourceState::Committing => "Committing",
            SourceState::InDoubt => "InDoubt",
            SourceState::Completed => "Completed",
            SourceState::Aborted { .. } => "Aborted",
        }
    }

    /// Whether the migration is over for this side's engine. `InDoubt` is not:
    /// it asks on, or hands over to an operator.
    pub fn is_end(&self) -> bool {
        matches!(self, SourceState::Completed | SourceState::Aborted { .. })
    }

    /// Whether the destination may have been told to run the copy.
    pub fn is_past_commit(&self) -> bool {
        matches!(self, SourceState::Committing | SourceState::InDoubt | SourceState::Completed)
    }

    /// The next state and what to do on the way to it.
    pub fn step(self, input: SourceInput) -> Result<(SourceState, Vec<SourceAction>), IllegalInput> {
        use SourceAction as A;
        use SourceInput as I;
        use SourceState as S;
        Ok(match (self, input) {
            (S::Preparing, I::Accepted) => (S::PreCopy { round: Round(0) }, vec![]),
            (S::PreCopy { round }, I::RoundDone) => (S::PreCopy { round: Round(round.0 + 1) }, vec![]),
            (S::Preparing | S::PreCopy { .. }, I::FreezeDecided) => (S::Freezing, vec![A::JournalFreezing]),
            (S::Freezing, I::Frozen) => (S::StopAndCopy, vec![]),
            (S::StopAndCopy, I::FinalSent) => (S::AwaitingReady, vec![]),
            (S::AwaitingReady, I::Ready) => (S::Committing, vec![A::SendCommit]),

            // From here on nothing but the destination's own word thaws the workload.
            (S::Committing | S::InDoubt, I::Resumed) => {
                (S::Completed, vec![A::RemoveTree, A::JournalCompleted, A::Disarm])
            }
            (state @ (S::Committing | S::InDoubt), I::NotResumed(cause)) => {
                let at = state.name();
                (S::Aborted { at, cause: cause.clone() }, vec![A::Thaw, A::Disarm, A::JournalAborted(cause)])
            }
            (S::Committing, I::Silence(cause) | I::Failure(cause)) => {
                (S::InDoubt, vec![A::JournalInDoubt(cause)])
            }
            (S::InDoubt, I::Silence(_) | I::Failure(_)) => (S::InDoubt, vec![]),

            (state @ (S::Preparing | S::PreCopy { .. }), I::Failure(cause)) => {
                let at = state.name();
                let actions = vec![A::TellAbort(cause.clone()), A::Disarm, A::JournalAborted(cause.clone())];
                (S::Aborted { at, cause }, actions)
            }
            (state @ (S::Freezing | S::StopAndCopy | S::AwaitingReady), I::Failure(cause)) => {
                let at = state.name();
                // Thaw first: the workload's time counts, the peer's does not.
                let actions =
                    vec![A::Thaw, A::TellAbort(cause.clone()), A::Disarm, A::JournalAborted(cause.clone())];
                (S::Aborted { at, cause }, actions)
            }
            (state, input) => return Err(IllegalInput { state: state.name(), input: format!("{input:?}") }),
        })
    }
}

/// What a destination's answer to AskOutcome means here.
pub fn learned(outcome: Outcome) -> SourceInput {
    match outcome {
        Outcome::Resumed => SourceInput::Resumed,
        Outcome::NotResumed => SourceInput::NotResumed("the destination discarded its copy".into()),
        Outcome::Undecided => SourceInput::Silence("the destination has not decided yet".into()),
        Outcome::InDoubt(why) => SourceInput::Silence(format!("the destination cannot tell: {why}")),
        Outcome::Unknown => SourceInput::Silence("the destination has no record of this migration".into()),
    }
}
