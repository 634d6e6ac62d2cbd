//! What is done and waited for in each state, up to the input that leads out of it.

use super::{Destination, not_journaled};
use crate::destination::handover::Serving;
use crate::destination::intake::{Intake, limit_of};
use crate::destination::network::DestinationNetwork;
use crate::destination::numbers;
use crate::destination::state::DestinationInput;
use crate::journal::{DestinationRecord, Journal};
use crate::net::hooks::Stage;
use crate::target::{ReleaseError, RestorePlan};
use ferry_transport::wire::control::{FinalState, Message};
use std::time::{Duration, Instant};

impl Destination {
    /// Opens the journal, the store, the directories; starts what can be started now.
    pub(super) async fn prepare(&mut self) -> Result<DestinationInput, String> {
        self.workplace.create()?;
        let plan = &self.receiver.plan;
        let network = DestinationNetwork::prepare(&self.offer, self.peer.name(), plan.hooks.clone())?;
        self.network = Some(network);
        self.tell_network_notes();
        let plan = &self.receiver.plan;
        let limit = limit_of(self.offer.memory, plan.memory_limit);
        self.intake = Some(Intake::start(self.peer.link(), &self.workplace.images(), limit)?);
        if !self.offer.along.is_empty() {
            let (link, offer) = (self.peer.link(), &self.offer);
            let sink = tokio::task::block_in_place(|| (plan.companion)(offer))?;
            let intake = self.intake.as_mut().ok_or("no place for what comes along")?;
            intake.take_along(link, sink);
        }
        numbers::step_over(&self.offer.pids);
        self.copy
            .park(self.workplace.work(), self.receiver.restorer(&self.offer.restorer)?, (plan.handover)())
            .await?;
        self.journal = Some(Journal::open(&plan.state, self.offer.id).map_err(not_journaled)?);
        Ok(DestinationInput::OfferAccepted)
    }

    /// Rounds, images and the final state.
    pub(super) async fn receive(&mut self) -> Result<DestinationInput, String> {
        let patience = self.receiver.plan.round_patience;
        loop {
            let message = self.hear(patience).await?;
            let intake = self.intake.as_mut().ok_or("no place for pages and images")?;
            match message {
                Message::RoundEnd(totals) => {
                    intake.round(&totals, patience).await?;
                    self.peer.say(Message::RoundAcked(totals.round)).await?;
                }
                Message::Freezing => {
                    self.record(&DestinationRecord::TakingOver)?;
                    self.network()?.take_over()?;
                    self.tell_network_notes();
                    self.peer.say(Message::TakenOver).await?;
                }
                Message::Along(blobs) => match intake.along() {
                    Some(along) => along.complete(blobs, patience).await?,
                    None => return Err("the source sends what it did not offer".into()),
                },
                Message::Image(part) => intake.image(part)?,
                Message::FinalState(state) => {
                    intake.complete(&state, patience).await?;
                    self.peer.say(Message::RoundAcked(state.totals.round)).await?;
                    self.pids = pids_of(&state);
                    self.spaces = state.spaces;
                    return Ok(DestinationInput::FinalStateReceived);
                }
                other => return Err(format!("the source said {} while sending rounds", other.name())),
            }
        }
    }

    /// Makes a CRIU image directory of images and pages.
    pub(super) async fn assemble(&mut self) -> Result<DestinationInput, String> {
        let began = Instant::now();
        let store = self.intake.as_ref().ok_or("no page store")?.store();
        let (images, spaces) = (self.workplace.images(), std::mem::take(&mut self.spaces));
        self.copy.assemble(images, store, spaces, self.offer.restore).await?;
        if let Some(along) = self.intake.as_mut().and_then(Intake::along) {
            along.ready().await?;
        }
        self.times.assemble_us = began.elapsed().as_micros() as u64;
        Ok(DestinationInput::Assembled)
    }

    /// Lets CRIU build the copy, and hold it.
    pub(super) async fn restore(&mut self) -> Result<DestinationInput, String> {
        let began = Instant::now();
        self.record(&DestinationRecord::Restoring { pids: self.pids.clone() })?;
        self.network()?.facts.pid = self.pids.first().and_then(|pid| i32::try_from(*pid).ok());
        self.hook(Stage::BeforeRestore)?;
        let plan = RestorePlan {
            images: self.workplace.images(),
            work: self.workplace.work(),
            tcp: self.offer.tcp,
            lazy: self.copy.serving() == Serving::Lazily,
            pids: self.pids.clone(),
        };
        self.copy.restore(plan).await?;
        self.times.restore_us = began.elapsed().as_micros() as u64;
        self.hook(Stage::Restored)?;
        Ok(DestinationInput::Held)
    }

    /// The copy is held. Only Commit lets it run; whatever else comes, ends it.
    pub(super) async fn await_commit(&mut self) -> Result<DestinationInput, String> {
        match self.hear(self.receiver.plan.commit_patience).await? {
            Message::Commit => {
                self.committed_at = Some(Instant::now());
                Ok(DestinationInput::Commit)
            }
            other => Err(format!("the source said {} instead of Commit", other.name())),
        }
    }

    /// Committed: lets it run.
    pub(super) async fn release(&mut self) -> Result<DestinationInput, String> {
        if let Err(cause) = self.record(&DestinationRecord::Released) {
            return Ok(DestinationInput::NeverRan(cause));
        }
        // The sockets are there and nothing has run: what the copy says first must not be lost.
        let mut opened = Ok(());
        let mut network = self.network.as_mut();
        let released = self.copy.release(&mut || {
            opened = network.as_mut().map_or(Ok(()), |network| network.open());
        });
        match released {
            Ok(()) => {}
            Err(ReleaseError::NeverRan(error)) => return Ok(DestinationInput::NeverRan(error.to_string())),
            Err(ReleaseError::Unknown(error)) => {
                // Perhaps nothing runs that could answer: the kernel must not do so.
                let shut = self.network().and_then(DestinationNetwork::shut);
                self.tell_failure(shut);
                return Ok(DestinationInput::ReleaseUnknown(error.to_string()));
            }
        }
        // The network's failure is told, not fatal.
        self.tell_failure(opened);
        let recorded = self.record(&DestinationRecord::Resumed);
        self.tell_failure(recorded);
        Ok(DestinationInput::Running)
    }

    /// It runs; the rest of its pages follow from here.
    pub(super) async fn await_drained(&mut self) -> Result<DestinationInput, String> {
        self.hook_after(Stage::Running, None);
        if let Some(along) = self.intake.as_mut().and_then(Intake::along)
            && let Err(error) = along.commit().await
        {
            self.note(error);
        }
        if let Err(error) = self.copy.wait_drained().await {
            self.note(format!("while handing pages over: {error}"));
        }
        Ok(DestinationInput::Drained)
    }

    async fn hear(&mut self, patience: Duration) -> Result<Message, String> {
        self.peer.hear(patience, self.intake.as_ref()).await
    }
}

/// The tree's numbers, root first.
fn pids_of(state: &FinalState) -> Vec<u32> {
    let others = state.spaces.iter().map(|space| space.image_pid).filter(|pid| *pid != state.root_pid);
    std::iter::once(state.root_pid).chain(others).collect()
}
