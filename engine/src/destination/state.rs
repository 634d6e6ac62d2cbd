//! The destination's state machine: pure, the whole of it on one page.
//!
//! ```text
//!   Negotiating ─► Receiving ─► Assembling ─► Restoring ─► Prepared ══Commit══► Resuming ─► Brownout ─► Completed
//!        │             │            │             │            │   journaled:      │  ╲
//!        └─────────────┴────────────┴─────────────┴────────────┘  THE COMMIT       │   ╲ cannot be proved
//!                      ▼   any failure before Commit            POINT              ▼    ▼
//!                  Discarded ◄─────────────────────────────────────── NeverRan ────┘   InDoubt
//! ```

use super::super::source::state::IllegalInput;

/// Where a migration stands at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationState {
    /// Hello and offer. Nothing exists here.
    Negotiating,
    /// Rounds arrive; the page store fills.
    Receiving,
    /// The final state is here; the image directory is being assembled.
    Assembling,
    /// CRIU builds the copy.
    Restoring,
    /// The copy is complete and held; only Commit lets it run.
    Prepared,
    /// Commit is journaled; the hold is being released.
    Resuming,
    /// It runs; pages are still being handed over from the local store.
    Brownout,
    /// It runs and needs nothing from us any more.
    Completed,
    /// Nothing ran here and nothing will.
    Discarded {
        /// The state's name in which it ended.
        at: &'static str,
        /// Why.
        cause: String,
    },
    /// Commit is journaled, and whether anything ran cannot be proved.
    InDoubt {
        /// What is known.
        cause: String,
    },
}

/// What can happen to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationInput {
    /// The offer can be carried out.
    OfferAccepted,
    /// The final state arrived and every page that it counts is in the store.
    FinalStateReceived,
    /// The image directory is complete.
    Assembled,
    /// CRIU holds a complete copy.
    Held,
    /// The source says: let it run.
    Commit,
    /// The first task runs.
    Running,
    /// The release failed and provably nothing ran.
    NeverRan(String),
    /// The release failed and nothing can be proved.
    ReleaseUnknown(String),
    /// Every page has been handed over.
    Drained,
    /// The source aborted, the link is gone, a step failed, a deadline passed.
    Failure(String),
}

/// What the driver does next, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationAction {
    /// Write down Accepted.
    JournalAccepted,
    /// Say Accepted.
    SendAccepted,
    /// Write down Prepared with the held tasks.
    JournalPrepared,
    /// Say Ready.
    SendReady,
    /// Write down Committed: **the one commit point**.
    JournalCommitted,
    /// Say Resumed.
    SendResumed,
    /// Write down Drained and say so.
    JournalDrained,
    /// Write down Discarded, always before anything is said or removed.
    JournalDiscarded(String),
    /// Write down InDoubt: from then on CRIU's log, or an operator, decides.
    JournalInDoubt(String),
    /// Remove the held copy, the store, rules and addresses.
    Discard,
    /// Say that it cannot be done.
    SendFailed(String),
    /// Say that nothing ran, as the answer to Commit.
    SendNotResumed(String),
}

impl DestinationState {
    /// The state's name, as in the diagram.
    pub fn name(&self) -> &'static str {
        match self {
            DestinationState::Negotiating => "Negotiating",
            DestinationState::Receiving => "Receiving",
            DestinationState::Assembling => "Assembling",
            DestinationState::Restoring => "Restoring",
            DestinationState::Prepared => "Prepared",
            DestinationState::Resuming => "Resuming",
            DestinationState::Brownout => "Brownout",
            DestinationState::Completed => "Completed",
            DestinationState::Discarded { .. } => "Discarded",
            DestinationState::InDoubt { .. } => "InDoubt",
        }
    }

    /// Whether the driver has nothing left to do.
    pub fn is_end(&self) -> bool {
        use DestinationState as S;
        matches!(self, S::Completed | S::Discarded { .. } | S::InDoubt { .. })
    }

    /// Whether the workload belongs to this side.
    pub fn is_committed(&self) -> bool {
        use DestinationState as S;
        matches!(self, S::Resuming | S::Brownout | S::Completed | S::InDoubt { .. })
    }

    /// The next state and what to do on the way to it.
    pub fn step(
        self,
        input: DestinationInput,
    ) -> Result<(DestinationState, Vec<DestinationAction>), IllegalInput> {
        use DestinationAction as A;
        use DestinationInput as I;
        use DestinationState as S;
        Ok(match (self, input) {
            (S::Negotiating, I::OfferAccepted) => (S::Receiving, vec![A::JournalAccepted, A::SendAccepted]),
            (S::Receiving, I::FinalStateReceived) => (S::Assembling, vec![]),
            (S::Assembling, I::Assembled) => (S::Restoring, vec![]),
            (S::Restoring, I::Held) => (S::Prepared, vec![A::JournalPrepared, A::SendReady]),

            (S::Prepared, I::Commit) => (S::Resuming, vec![A::JournalCommitted]),

            // Committed: the link may be gone, the workload is ours all the same.
            (S::Resuming, I::Running) => (S::Brownout, vec![A::SendResumed]),
            (S::Brownout, I::Drained) => (S::Completed, vec![A::JournalDrained]),
            (S::Resuming, I::NeverRan(cause)) => (
                S::Discarded { at: "Resuming", cause: cause.clone() },
                vec![A::JournalDiscarded(cause.clone()), A::Discard, A::SendNotResumed(cause)],
            ),
            (S::Resuming, I::ReleaseUnknown(cause)) => {
                (S::InDoubt { cause: cause.clone() }, vec![A::JournalInDoubt(cause)])
            }
            (state @ (S::Resuming | S::Brownout), I::Failure(_)) => (state, vec![]),

            (
                state @ (S::Negotiating | S::Receiving | S::Assembling | S::Restoring | S::Prepared),
                I::Failure(cause),
            ) => {
                let at = state.name();
                let mut actions = vec![A::Discard, A::SendFailed(cause.clone())];
                if state != S::Negotiating {
                    // Before anything else: a Commit that comes late must find it.
                    actions.insert(0, A::JournalDiscarded(cause.clone()));
                }
                (S::Discarded { at, cause }, actions)
            }
            (state, input) => return Err(IllegalInput { state: state.name(), input: format!("{input:?}") }),
        })
    }
}
