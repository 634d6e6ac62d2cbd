//! The destination's driver: waits for what each state waits for, and does what
//! the state machine says. The order of a migration is [`Destination::next`], on one
//! screen, and its steps are in [`steps`]; the commit point is in
//! [`Destination::perform`].

mod steps;

use super::conversation::Conversation;
use super::copy::Copy;
use super::intake::Intake;
use super::network::DestinationNetwork;
use super::receiver::{Receiver, ReceiverEvent};
use super::state::{DestinationAction, DestinationInput, DestinationState};
use super::workplace::Workplace;
use crate::check::Findings;
use crate::journal::{DestinationRecord, Journal, TaskId};
use crate::net::hooks::Stage;
use ferry_transport::wire::control::{Accepted, FinalSpace, Message, MigrationId, Offer, RestoreTimes};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a migration ended here.
pub(super) struct Finished {
    pub(super) runs_here: bool,
    pub(super) end: String,
}

/// One migration, seen from the destination.
pub(super) struct Destination {
    receiver: Arc<Receiver>,
    offer: Offer,
    peer: Conversation,
    /// What was found about the offer, told with the consent.
    findings: Findings,
    workplace: Workplace,
    journal: Option<Journal<DestinationRecord>>,
    network: Option<DestinationNetwork>,
    intake: Option<Intake>,
    /// The address spaces of the final state.
    spaces: Vec<FinalSpace>,
    /// The tree's numbers in CRIU's images, root first.
    pids: Vec<u32>,
    copy: Copy,
    times: RestoreTimes,
    committed_at: Option<Instant>,
    /// Why it ends, for the hook.
    cause: Option<String>,
}

impl Destination {
    /// Touches nothing yet.
    pub(super) fn new(
        receiver: Arc<Receiver>,
        offer: Offer,
        peer: Conversation,
        findings: Findings,
    ) -> Destination {
        Destination {
            workplace: Workplace::new(&receiver.plan.work, offer.id),
            receiver,
            offer,
            peer,
            findings,
            journal: None,
            network: None,
            intake: None,
            spaces: Vec::new(),
            pids: Vec::new(),
            copy: Copy::none(),
            times: RestoreTimes::default(),
            committed_at: None,
            cause: None,
        }
    }

    /// Runs the migration to its end here.
    pub(super) async fn run(mut self) -> Finished {
        let mut state = DestinationState::Negotiating;
        while !state.is_end() {
            self.receiver.tell(ReceiverEvent::State { id: self.id(), state: state.name() });
            let mut input = self.next(&state).await.unwrap_or_else(DestinationInput::Failure);
            // An action that fails is the next thing that happens.
            loop {
                if let DestinationInput::Failure(cause) | DestinationInput::NeverRan(cause) = &input {
                    self.cause = Some(cause.clone());
                }
                let (next, actions) = match state.clone().step(input) {
                    Ok(step) => step,
                    Err(illegal) => {
                        // A bug of ours: before the commit it ends the migration, after it nothing may.
                        self.note(illegal.to_string());
                        let failure = DestinationInput::Failure(illegal.to_string());
                        state.clone().step(failure).unwrap_or((state.clone(), Vec::new()))
                    }
                };
                state = next;
                let mut happened = None;
                for action in actions {
                    if let Err(input) = self.perform(action).await {
                        happened = Some(input);
                        break;
                    }
                }
                match happened {
                    Some(next) => input = next,
                    None => break,
                }
            }
        }
        let end = match &state {
            DestinationState::Discarded { at, cause } => format!("discarded in {at}: {cause}"),
            DestinationState::InDoubt { cause } => format!("in doubt: {cause}"),
            other => other.name().to_lowercase(),
        };
        Finished { runs_here: state.is_committed(), end }
    }

    /// What each state waits for: the protocol.
    async fn next(&mut self, state: &DestinationState) -> Result<DestinationInput, String> {
        match state {
            DestinationState::Negotiating => self.prepare().await,
            DestinationState::Receiving => self.receive().await,
            DestinationState::Assembling => self.assemble().await,
            DestinationState::Restoring => self.restore().await,
            DestinationState::Prepared => self.await_commit().await,
            // Between these two: the commit point, `JournalCommitted`.
            DestinationState::Resuming => self.release().await,
            DestinationState::Brownout => self.await_drained().await,
            DestinationState::Completed
            | DestinationState::Discarded { .. }
            | DestinationState::InDoubt { .. } => unreachable!("the driver stops at an end"),
        }
    }

    /// Does what the state machine says. A failure is what happens next.
    async fn perform(&mut self, action: DestinationAction) -> Result<(), DestinationInput> {
        let failure = DestinationInput::Failure;
        match action {
            DestinationAction::JournalAccepted => {
                self.accepted().and_then(|accepted| self.record(&accepted)).map_err(failure)?;
            }
            DestinationAction::SendAccepted => {
                let restore_cost_us = self.receiver.plan.restore_cost.as_micros() as u64;
                let findings = std::mem::take(&mut self.findings);
                let accepted = Accepted { restore_cost_us, findings };
                self.peer.say(Message::Accepted(accepted)).await.map_err(failure)?;
            }
            DestinationAction::JournalPrepared => {
                let tasks = self.copy.tasks();
                self.record(&DestinationRecord::Prepared { tasks }).map_err(failure)?;
            }
            DestinationAction::SendReady => {
                self.peer.say(Message::Ready(self.times)).await.map_err(failure)?;
            }
            // THE COMMIT POINT. Before this record the workload is the source's, after it ours.
            DestinationAction::JournalCommitted => {
                self.record(&DestinationRecord::Committed).map_err(DestinationInput::NeverRan)?;
            }
            DestinationAction::SendResumed => {
                let took = self.committed_at.map_or(Duration::ZERO, |at| at.elapsed());
                // A source that cannot hear it asks.
                let _ = self.peer.say(Message::Resumed(took.as_micros() as u64)).await;
            }
            DestinationAction::JournalDrained => {
                let recorded = self.record(&DestinationRecord::Drained);
                self.tell_failure(recorded);
                let _ = self.peer.say(Message::Drained).await;
                self.peer.await_farewell().await;
                self.workplace.remove();
            }
            DestinationAction::JournalDiscarded(cause) => {
                let recorded = self.record(&DestinationRecord::Discarded { cause });
                self.tell_failure(recorded);
            }
            DestinationAction::JournalInDoubt(cause) => {
                let recorded = self.record(&DestinationRecord::InDoubt { cause });
                self.tell_failure(recorded);
            }
            DestinationAction::Discard => self.discard().await,
            DestinationAction::SendFailed(cause) => {
                let _ = self.peer.say(Message::Failed(cause.clone())).await;
                self.peer.hang_up(&cause).await;
            }
            DestinationAction::SendNotResumed(cause) => {
                let _ = self.peer.say(Message::NotResumed(cause.clone())).await;
                self.peer.hang_up(&cause).await;
            }
        }
        Ok(())
    }

    /// Nothing of the copy is left, and the network is as it was.
    async fn discard(&mut self) {
        if let Err(error) = self.copy.discard().await {
            self.note(format!("while removing the copy: {error}"));
        }
        if let Some(along) = self.intake.as_mut().and_then(Intake::along)
            && let Err(error) = along.discard().await
        {
            self.note(error);
        }
        self.intake = None;
        let undone = self.network.as_mut().map_or(Ok(()), DestinationNetwork::undo);
        self.tell_failure(undone);
        let cause = self.cause.take();
        self.hook_after(Stage::Discarded, cause);
        self.workplace.keep_log(&self.receiver.plan.state);
        self.workplace.remove();
    }

    fn accepted(&self) -> Result<DestinationRecord, String> {
        let moved = self.offer.move_address.as_ref();
        Ok(DestinationRecord::Accepted {
            target: self.offer.target.clone(),
            from: self.peer.name(),
            engine: TaskId::of(std::process::id() as i32).map_err(|error| error.to_string())?,
            move_ip: moved.map(|m| format!("{}/{}@{}", m.address, m.prefix, m.interface)),
        })
    }

    fn record(&mut self, record: &DestinationRecord) -> Result<(), String> {
        let journal = self.journal.as_mut().ok_or("there is no journal")?;
        journal.append(record).map_err(not_journaled)
    }

    fn network(&mut self) -> Result<&mut DestinationNetwork, String> {
        self.network.as_mut().ok_or_else(|| "the network was not prepared".into())
    }

    /// The user's programs; a failure ends the migration.
    fn hook(&mut self, stage: Stage) -> Result<(), String> {
        let network = self.network()?;
        tokio::task::block_in_place(|| network.hook(stage))
    }

    /// The user's programs, where nothing can be undone any more.
    fn hook_after(&mut self, stage: Stage, reason: Option<String>) {
        let Some(network) = &mut self.network else { return };
        network.facts.reason = reason;
        let done = tokio::task::block_in_place(|| network.hook(stage));
        self.tell_failure(done);
    }

    fn tell_network_notes(&mut self) {
        let notes = self.network.as_mut().map(DestinationNetwork::take_notes).unwrap_or_default();
        notes.into_iter().for_each(|note| self.note(note));
    }

    fn tell_failure(&self, result: Result<(), String>) {
        if let Err(error) = result {
            self.note(error);
        }
    }

    fn note(&self, note: String) {
        self.receiver.tell(ReceiverEvent::Note { id: self.id(), note });
    }

    fn id(&self) -> MigrationId {
        self.offer.id
    }
}

fn not_journaled(error: std::io::Error) -> String {
    format!("the journal cannot be written: {error}")
}
