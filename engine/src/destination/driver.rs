//! The destination's driver: waits for what each state waits for, and does what
//! the state machine says. The order is [`Destination::next`], on one screen;
//! the commit point is where it waits in `Prepared`.

use super::handover::{PageHandover, Serving};
use super::images::ImageIntake;
use super::network::DestinationNetwork;
use super::pages::PageIntake;
use super::receiver::{Receiver, ReceiverEvent};
use super::recovery::work_directory;
use super::state::{DestinationAction, DestinationInput, DestinationState};
use crate::check::Findings;
use crate::journal::{DestinationRecord, Journal, TaskId};
use crate::net::hooks::{HookFacts, Stage};
use crate::page_store::PageStore;
use crate::target::{HeldRestore, ReleaseError, RestorePlan, Restorer};
use ferry_transport::link::{ControlReceiver, ControlSender, Link};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    Accepted, FinalState, Message, MigrationId, Offer, RestoreTimes, RoundTotals,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How a migration ended here.
pub(super) struct Finished {
    pub(super) runs_here: bool,
    pub(super) end: String,
}

/// What exists of the copy.
enum Copy {
    None,
    Held(Box<dyn HeldRestore>),
}

/// One migration, seen from the destination.
pub(super) struct Destination {
    receiver: Arc<Receiver>,
    offer: Offer,
    link: Arc<dyn Link>,
    sender: Box<dyn ControlSender>,
    inbox: Box<dyn ControlReceiver>,
    abort: watch::Receiver<Option<String>>,
    /// What was found about the offer, told with the consent.
    findings: Findings,
    journal: Option<Journal<DestinationRecord>>,
    directory: PathBuf,
    store: Option<Arc<PageStore>>,
    intake: Option<PageIntake>,
    images: Option<ImageIntake>,
    network: Option<DestinationNetwork>,
    restorer: Option<Box<dyn Restorer>>,
    handover: Option<Box<dyn PageHandover>>,
    state: Option<Box<FinalState>>,
    serving: Serving,
    copy: Copy,
    times: RestoreTimes,
    committed_at: Option<Instant>,
    /// Why it ends, for the hook.
    cause: Option<String>,
}

impl Destination {
    pub(super) fn new(
        receiver: Arc<Receiver>,
        offer: Offer,
        link: Arc<dyn Link>,
        (sender, inbox): (Box<dyn ControlSender>, Box<dyn ControlReceiver>),
        abort: watch::Receiver<Option<String>>,
        findings: Findings,
    ) -> Destination {
        let directory = work_directory(&receiver.plan.work, offer.id);
        Destination {
            receiver,
            offer,
            link,
            sender,
            inbox,
            abort,
            findings,
            journal: None,
            directory,
            store: None,
            intake: None,
            images: None,
            network: None,
            restorer: None,
            handover: None,
            state: None,
            serving: Serving::NotNeeded,
            copy: Copy::None,
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
            DestinationState::Resuming => self.release().await,
            DestinationState::Brownout => self.await_drained().await,
            DestinationState::Completed
            | DestinationState::Discarded { .. }
            | DestinationState::InDoubt { .. } => unreachable!("the driver stops at an end"),
        }
    }

    /// Opens the journal, the store, the directories; starts what can be started now.
    async fn prepare(&mut self) -> Result<DestinationInput, String> {
        let text = |what: &str, error: std::io::Error| format!("{what}: {error}");
        let plan = &self.receiver.plan;
        let (images, work) = (self.images_directory(), self.work_directory());
        for directory in [&self.directory, &images, &work] {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| text("the work directory cannot be made", error))?;
        }
        let moved = self.offer.move_address.as_ref();
        let facts = HookFacts {
            id: self.offer.id.to_string(),
            target: self.offer.target.clone(),
            peer: self.link.peer(),
            address: moved.map(|moved| moved.address.to_string()),
            interface: moved.map(|moved| moved.interface.clone()),
            ..HookFacts::default()
        };
        let mut network = DestinationNetwork::prepare(self.offer.id, moved, plan.hooks.clone(), facts)?;
        network.take_notes().into_iter().for_each(|note| self.note(note));
        self.network = Some(network);
        // The workload grows while it moves: a quarter more, or what the user allows.
        let limit = plan
            .memory_limit
            .unwrap_or(Bytes((self.offer.memory.0 / 4).saturating_mul(5).saturating_add(256 << 20)));
        let store = Arc::new(PageStore::new(limit).map_err(|error| error.to_string())?);
        self.intake = Some(PageIntake::start(Arc::clone(&self.link), Arc::clone(&store)));
        self.store = Some(store);
        self.images = Some(ImageIntake::new(&images, limit.0));
        super::numbers::step_over(&self.offer.pids);
        let mut restorer = self.receiver.restorer(&self.offer.restorer)?;
        let mut handover = (plan.handover)();
        let parked = tokio::task::spawn_blocking(move || {
            restorer.prepare(&work).map_err(|error| error.to_string())?;
            handover.park(&work)?;
            Ok::<_, String>((restorer, handover))
        });
        let (restorer, handover) = parked.await.map_err(|panic| panic.to_string())??;
        self.restorer = Some(restorer);
        self.handover = Some(handover);
        self.journal = Some(
            Journal::open(&self.receiver.plan.state, self.offer.id)
                .map_err(|error| text("the journal cannot be written", error))?,
        );
        Ok(DestinationInput::OfferAccepted)
    }

    /// Rounds, images and the final state.
    async fn receive(&mut self) -> Result<DestinationInput, String> {
        let patience = self.receiver.plan.round_patience;
        loop {
            match self.hear(patience).await? {
                Message::RoundEnd(totals) => {
                    self.stored(&totals).await?;
                    self.say(Message::RoundAcked(totals.round)).await?;
                }
                Message::Freezing => {
                    self.record(&DestinationRecord::TakingOver)?;
                    let network = self.network()?;
                    network.take_over()?;
                    network.take_notes().into_iter().for_each(|note| self.note(note));
                    self.say(Message::TakenOver).await?;
                }
                Message::Image(part) => {
                    let images = self.images.as_mut().ok_or("no place for images")?;
                    images.put(part)?;
                }
                Message::FinalState(state) => {
                    self.stored(&state.totals).await?;
                    self.images.as_ref().ok_or("no place for images")?.finish(state.images)?;
                    self.say(Message::RoundAcked(state.totals.round)).await?;
                    self.state = Some(state);
                    return Ok(DestinationInput::FinalStateReceived);
                }
                other => return Err(format!("the source said {} while sending rounds", other.name())),
            }
        }
    }

    /// Makes a CRIU image directory of images and pages.
    async fn assemble(&mut self) -> Result<DestinationInput, String> {
        let began = Instant::now();
        let state = self.state.take().ok_or("no final state")?;
        let store = self.store.take().ok_or("no page store")?;
        let mut handover = self.handover.take().ok_or("no page handover")?;
        let (images, mode) = (self.images_directory(), self.offer.restore);
        let assembled = tokio::task::spawn_blocking(move || {
            let sealed = store.seal(&state.spaces).map_err(|error| error.to_string());
            let serving = sealed.and_then(|sealed| handover.assemble(&images, sealed, mode));
            (state, handover, serving)
        });
        let (state, handover, serving) = assembled.await.map_err(|panic| panic.to_string())?;
        self.state = Some(state);
        self.handover = Some(handover);
        self.serving = serving?;
        self.times.assemble_us = began.elapsed().as_micros() as u64;
        Ok(DestinationInput::Assembled)
    }

    /// Lets CRIU build the copy, and hold it.
    async fn restore(&mut self) -> Result<DestinationInput, String> {
        let began = Instant::now();
        let state = self.state.as_ref().ok_or("no final state")?;
        let mut pids: Vec<u32> = vec![state.root_pid];
        pids.extend(state.spaces.iter().map(|space| space.image_pid).filter(|pid| *pid != state.root_pid));
        self.record(&DestinationRecord::Restoring { pids: pids.clone() })?;
        self.network()?.facts.pid = pids.first().and_then(|pid| i32::try_from(*pid).ok());
        tokio::task::block_in_place(|| {
            self.network.as_ref().map_or(Ok(()), |n| n.hook(Stage::BeforeRestore))
        })?;
        let plan = RestorePlan {
            images: self.images_directory(),
            work: self.work_directory(),
            tcp: self.offer.tcp,
            lazy: self.serving == Serving::Lazily,
            pids,
        };
        let mut restorer = self.restorer.take().ok_or("no restorer")?;
        let held = tokio::task::spawn_blocking(move || restorer.restore(&plan));
        let held = held.await.map_err(|panic| panic.to_string())?.map_err(|error| error.to_string())?;
        self.copy = Copy::Held(held);
        self.times.restore_us = began.elapsed().as_micros() as u64;
        tokio::task::block_in_place(|| self.network.as_ref().map_or(Ok(()), |n| n.hook(Stage::Restored)))?;
        Ok(DestinationInput::Held)
    }

    /// The copy is held. Only Commit lets it run; whatever else comes, ends it.
    async fn await_commit(&mut self) -> Result<DestinationInput, String> {
        match self.hear(self.receiver.plan.commit_patience).await? {
            Message::Commit => {
                self.committed_at = Some(Instant::now());
                Ok(DestinationInput::Commit)
            }
            other => Err(format!("the source said {} instead of Commit", other.name())),
        }
    }

    /// Committed: lets it run.
    async fn release(&mut self) -> Result<DestinationInput, String> {
        let Copy::Held(held) = std::mem::replace(&mut self.copy, Copy::None) else {
            return Ok(DestinationInput::ReleaseUnknown("nothing is held".into()));
        };
        if let Err(cause) = self.record(&DestinationRecord::Released) {
            self.copy = Copy::Held(held);
            return Ok(DestinationInput::NeverRan(cause));
        }
        let released = tokio::task::spawn_blocking(move || held.release()).await;
        match released {
            Ok(Ok(())) => {}
            Ok(Err(ReleaseError::NeverRan(error))) => {
                return Ok(DestinationInput::NeverRan(error.to_string()));
            }
            Ok(Err(ReleaseError::Unknown(error))) => {
                return Ok(DestinationInput::ReleaseUnknown(error.to_string()));
            }
            Err(panic) => return Ok(DestinationInput::ReleaseUnknown(panic.to_string())),
        }
        // The sockets are there: the network may speak. A failure here is told, not fatal.
        if let Err(error) = self.network().and_then(DestinationNetwork::open) {
            self.note(error);
        }
        if let Err(cause) = self.record(&DestinationRecord::Resumed) {
            self.note(cause);
        }
        Ok(DestinationInput::Running)
    }

    /// It runs; the rest of its pages follow from here.
    async fn await_drained(&mut self) -> Result<DestinationInput, String> {
        self.hook_after(Stage::Running, None);
        let Some(mut handover) = self.handover.take() else { return Ok(DestinationInput::Drained) };
        let drained = tokio::task::spawn_blocking(move || handover.wait_drained()).await;
        if let Err(error) = drained.map_err(|panic| panic.to_string()).and_then(|drained| drained) {
            self.note(format!("while handing pages over: {error}"));
        }
        Ok(DestinationInput::Drained)
    }

    /// Does what the state machine says. A failure is what happens next.
    async fn perform(&mut self, action: DestinationAction) -> Result<(), DestinationInput> {
        match action {
            DestinationAction::JournalAccepted => {
                let moved = self.offer.move_address.as_ref();
                let accepted = DestinationRecord::Accepted {
                    target: self.offer.target.clone(),
                    from: self.link.peer(),
                    engine: TaskId::of(std::process::id() as i32)
                        .map_err(|error| DestinationInput::Failure(error.to_string()))?,
                    move_ip: moved.map(|m| format!("{}/{}@{}", m.address, m.prefix, m.interface)),
                };
                self.record(&accepted).map_err(DestinationInput::Failure)
            }
            DestinationAction::SendAccepted => {
                let restore_cost_us = self.receiver.plan.restore_cost.as_micros() as u64;
                let findings = std::mem::take(&mut self.findings);
                let accepted = Message::Accepted(Accepted { restore_cost_us, findings });
                self.say(accepted).await.map_err(DestinationInput::Failure)
            }
            DestinationAction::JournalPrepared => {
                let tasks = match &self.copy {
                    Copy::Held(held) => held.tasks(),
                    Copy::None => Vec::new(),
                };
                self.record(&DestinationRecord::Prepared { tasks }).map_err(DestinationInput::Failure)
            }
            DestinationAction::SendReady => {
                self.say(Message::Ready(self.times)).await.map_err(DestinationInput::Failure)
            }
            // THE COMMIT POINT. Before this record the workload is the source's, after it ours.
            DestinationAction::JournalCommitted => {
                self.record(&DestinationRecord::Committed).map_err(DestinationInput::NeverRan)
            }
            DestinationAction::SendResumed => {
                let took = self.committed_at.map_or(Duration::ZERO, |at| at.elapsed());
                // A source that cannot hear it asks.
                let _ = self.say(Message::Resumed(took.as_micros() as u64)).await;
                Ok(())
            }
            DestinationAction::JournalDrained => {
                if let Err(cause) = self.record(&DestinationRecord::Drained) {
                    self.note(cause);
                }
                let _ = self.say(Message::Drained).await;
                // The source hangs up; then the images, which hold secrets, go.
                let _ = tokio::time::timeout(Duration::from_secs(2), self.inbox.recv()).await;
                let _ = std::fs::remove_dir_all(&self.directory);
                Ok(())
            }
            DestinationAction::JournalDiscarded(cause) => {
                if let Err(error) = self.record(&DestinationRecord::Discarded { cause }) {
                    self.note(error);
                }
                Ok(())
            }
            DestinationAction::JournalInDoubt(cause) => {
                if let Err(error) = self.record(&DestinationRecord::InDoubt { cause }) {
                    self.note(error);
                }
                Ok(())
            }
            DestinationAction::Discard => {
                self.discard().await;
                Ok(())
            }
            DestinationAction::SendFailed(cause) => {
                let _ = self.say(Message::Failed(cause.clone())).await;
                self.hang_up(&cause).await;
                Ok(())
            }
            DestinationAction::SendNotResumed(cause) => {
                let _ = self.say(Message::NotResumed(cause.clone())).await;
                self.hang_up(&cause).await;
                Ok(())
            }
        }
    }

    /// Nothing of the copy is left, and the network is as it was.
    async fn discard(&mut self) {
        if let Copy::Held(held) = std::mem::replace(&mut self.copy, Copy::None) {
            let discarded = tokio::task::spawn_blocking(move || held.discard()).await;
            if let Err(error) =
                discarded.map_err(|p| p.to_string()).and_then(|d| d.map_err(|e| e.to_string()))
            {
                self.note(format!("while removing the copy: {error}"));
            }
        }
        self.intake = None;
        self.store = None;
        if let Some(mut handover) = self.handover.take() {
            handover.abandon();
        }
        self.restorer = None;
        if let Some(Err(error)) = self.network.as_mut().map(DestinationNetwork::undo) {
            self.note(error);
        }
        let cause = self.cause.take();
        self.hook_after(Stage::Discarded, cause);
        keep_logs(&self.directory, &self.receiver.plan.state, self.offer.id);
        let _ = std::fs::remove_dir_all(&self.directory);
    }

    async fn stored(&mut self, totals: &RoundTotals) -> Result<(), String> {
        let patience = self.receiver.plan.round_patience;
        let intake = self.intake.as_mut().ok_or("no page store")?;
        intake.complete(totals, patience).await
    }

    /// The next message, unless the link ends, the user gives up, or pages cannot be
    /// stored. A source that sends pages is not silent.
    async fn hear(&mut self, patience: Duration) -> Result<Message, String> {
        let mut abort = self.abort.clone();
        let mut stored = 0;
        loop {
            let said = tokio::select! {
                message = self.inbox.recv() => message.map_err(|error| format!("the source is gone: {error}"))?,
                _ = abort.wait_for(Option::is_some) => {
                    let why = self.abort.borrow().clone();
                    return Err(why.unwrap_or_else(|| "given up here".into()));
                }
                () = tokio::time::sleep(patience) => {
                    let broken = self.intake.as_ref().and_then(PageIntake::failure);
                    let now = self.intake.as_ref().map_or(0, PageIntake::chunks);
                    if broken.is_none() && now > std::mem::replace(&mut stored, now) {
                        continue;
                    }
                    return Err(broken.unwrap_or_else(|| format!("the source was silent for {patience:?}")));
                }
            };
            match said {
                Message::KeepAlive => {}
                Message::Abort(why) => return Err(format!("the source gave up: {why}")),
                message => return Ok(message),
            }
        }
    }

    async fn say(&mut self, message: Message) -> Result<(), String> {
        self.sender.send(&message).await.map_err(|error| format!("the source is gone: {error}"))
    }

    /// Gives the last message time to arrive, then ends the link.
    async fn hang_up(&mut self, reason: &str) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.inbox.recv()).await;
        self.link.close(reason).await;
    }

    fn record(&mut self, record: &DestinationRecord) -> Result<(), String> {
        let journal = self.journal.as_mut().ok_or("there is no journal")?;
        journal.append(record).map_err(|error| format!("the journal cannot be written: {error}"))
    }

    fn network(&mut self) -> Result<&mut DestinationNetwork, String> {
        self.network.as_mut().ok_or_else(|| "the network was not prepared".into())
    }

    fn hook_after(&mut self, stage: Stage, reason: Option<String>) {
        let Some(network) = &mut self.network else { return };
        network.facts.reason = reason;
        if let Err(error) = tokio::task::block_in_place(|| network.hook(stage)) {
            self.note(error);
        }
    }

    fn note(&self, note: String) {
        self.receiver.tell(ReceiverEvent::Note { id: self.id(), note });
    }

    fn id(&self) -> MigrationId {
        self.offer.id
    }

    fn images_directory(&self) -> PathBuf {
        self.directory.join("images")
    }

    fn work_directory(&self) -> PathBuf {
        self.directory.join("work")
    }
}

/// CRIU's log of a restore that failed is kept, the images are not.
fn keep_logs(directory: &std::path::Path, state: &std::path::Path, id: MigrationId) {
    let log = directory.join("work/restore.log");
    if log.exists() {
        let kept = state.join("logs");
        let _ = std::fs::create_dir_all(&kept);
        let _ = std::fs::copy(log, kept.join(format!("{id}-restore.log")));
    }
}
