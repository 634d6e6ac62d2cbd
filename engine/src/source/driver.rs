//! The source's driver: waits for what each state waits for, and does what the
//! state machine says. The order of a migration is [`Source::next`], on one screen.

use super::account::Account;
use super::along::{Along, Pending};
use super::conversation::{Conversation, Interrupted, unexpected};
use super::experience;
use super::final_state::send_images;
use super::forecast::{Forecast, RemoteCost};
use super::network::SourceNetwork;
use super::observer::{Observer, Progress};
use super::pages::MemoryThread;
use super::plan::{Finished, SourceParts, SourcePlan};
use super::state::{SourceAction, SourceInput, SourceState, learned};
use super::workload::Workload;
use crate::check::{Findings, Severity};
use crate::companion::CompanionRound;
use crate::journal::{Journal, Side, SourceRecord, TaskId};
use crate::memory::{FrozenSpace, MemoryError, RoundScan};
use crate::net::hooks::Stage;
use crate::report::{RoundReport, StrategyReport, ThereReport, ms};
use crate::strategy::{Budget, Decision, History, RoundStats, Strategy};
use crate::target::Aftercare;
use ferry_transport::page::Round;
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    FinalSpace, FinalState, Message, PROTOCOL_VERSION, RestoreTimes, RoundTotals,
};
use std::time::{Duration, Instant};

/// One migration, seen from the source.
pub struct Source {
    plan: SourcePlan,
    workload: Workload,
    memory: MemoryThread,
    along: Option<Along>,
    /// The last difference of what comes along, under way since the freeze.
    last_difference: Vec<Pending<CompanionRound>>,
    strategy: Box<dyn Strategy>,
    peer: Conversation,
    network: SourceNetwork,
    observer: Box<dyn Observer>,
    journal: Journal<SourceRecord>,
    history: History,
    account: Account,
    forecast: Forecast,
    rounds_began: Option<Instant>,
    doubt_since: Option<Instant>,
    refusal: Option<Findings>,
    aftercare: Option<Aftercare>,
}

impl Source {
    /// Opens the journal and starts the memory thread; touches nothing else.
    pub fn new(plan: SourcePlan, parts: SourceParts) -> std::io::Result<Source> {
        let mut journal = Journal::open(&plan.state, plan.offer.id)?;
        let engine = TaskId::of(std::process::id() as i32)?;
        let aftercare = parts.target.aftercare();
        journal.append(&SourceRecord::Started {
            target: plan.offer.target.clone(),
            to: plan.to.clone(),
            engine,
            address: parts.network.place().cloned(),
            images: plan.images.clone(),
            aftercare: aftercare.clone().map(Box::new),
        })?;
        Ok(Source {
            account: Account::new(plan.notes.clone()),
            workload: Workload::new(parts.target),
            memory: MemoryThread::start(parts.memory)?,
            along: parts.companion.map(Along::start).transpose()?,
            last_difference: Vec::new(),
            strategy: parts.strategy,
            peer: Conversation::new(parts.connector, parts.abort),
            network: parts.network,
            observer: parts.observer,
            journal,
            history: History::default(),
            forecast: Forecast::default(),
            rounds_began: None,
            doubt_since: None,
            refusal: None,
            aftercare,
            plan,
        })
    }

    /// Runs the migration to its end. The workload is where the report says.
    pub async fn run(mut self) -> Finished {
        let mut state = SourceState::Preparing;
        while !state.is_end() {
            self.observer.state(&state);
            if state == SourceState::InDoubt && self.is_out_of_patience() {
                break;
            }
            let input = self.next(&state).await;
            tracing::debug!(state = state.name(), ?input);
            let (next, actions) = state.clone().step(input).unwrap_or_else(|illegal| {
                // A bug of ours. Before the commit it ends the migration; after it, doubt.
                let (next, actions) = state
                    .clone()
                    .step(SourceInput::Failure(illegal.to_string()))
                    .unwrap_or_else(|_| (state.clone(), Vec::new()));
                (next, actions)
            });
            for action in actions {
                self.perform(action).await;
            }
            state = next;
        }
        self.observer.state(&state);
        if state == SourceState::Completed {
            self.await_drained().await;
        }
        self.finish(state).await
    }

    /// What each state waits for: the protocol.
    async fn next(&mut self, state: &SourceState) -> SourceInput {
        let happened = match state {
            SourceState::Preparing => self.negotiate().await,
            SourceState::PreCopy { round } => self.pre_copy(*round).await,
            SourceState::Freezing => self.freeze().await,
            SourceState::StopAndCopy => self.stop_and_copy().await,
            SourceState::AwaitingReady => self.await_ready().await,
            SourceState::Committing => self.await_resumed().await,
            SourceState::InDoubt => self.ask_outcome().await,
            SourceState::Completed | SourceState::Aborted { .. } => {
                unreachable!("the driver stops at an end")
            }
        };
        happened.unwrap_or_else(SourceInput::Failure)
    }

    /// Connects, greets, offers; prepares what can be before the freeze.
    async fn negotiate(&mut self) -> Result<SourceInput, String> {
        self.peer.open().await?;
        let greeted = Instant::now();
        self.send(Message::Hello(self.plan.hello.clone())).await?;
        let Message::Hello(theirs) = self.receive(Duration::from_secs(30)).await? else {
            return Err("the destination did not greet".into());
        };
        let round_trip = greeted.elapsed();
        if theirs.protocol != PROTOCOL_VERSION {
            return Err(format!(
                "the destination speaks protocol {} and this side {PROTOCOL_VERSION}: use the same version of ferry on both hosts",
                theirs.protocol
            ));
        }
        self.send(Message::Offer(Box::new(self.plan.offer.clone()))).await?;
        match self.receive(Duration::from_secs(120)).await? {
            Message::Accepted(accepted) => {
                let restore = Duration::from_micros(accepted.restore_cost_us);
                let experience = experience::of(&self.plan.state, &self.plan.to);
                let there = RemoteCost { restore, round_trip };
                self.forecast = Forecast::new(self.plan.tree, self.plan.local_cost, there, experience);
                for finding in
                    accepted.findings.all().iter().filter(|found| found.severity >= Severity::Risks)
                {
                    self.note(format!("at the destination: {finding}"));
                }
            }
            Message::Refused(findings) => {
                let why = format!("the destination refuses: {findings}");
                self.refusal = Some(findings);
                return Err(why);
            }
            other => return Err(format!("the destination answered the offer with {}", other.name())),
        }
        self.peer.open_pages(self.plan.streams).await?;
        if self.along.is_some() {
            self.peer.open_blobs().await?;
        }
        self.workload.prepare().await?;
        self.rounds_began = Some(Instant::now());
        let budget = self.budget();
        Ok(match self.strategy.decide(&self.history, &budget) {
            Decision::Continue(_) => SourceInput::Accepted,
            Decision::StopAndCopy(_) => SourceInput::FreezeDecided,
            Decision::GiveUp(why) => SourceInput::Failure(why),
        })
    }

    /// One round, and the strategy's word on it.
    async fn pre_copy(&mut self, round: Round) -> Result<SourceInput, String> {
        let began = Instant::now();
        let wire_before = self.peer.wire_bytes();
        let sink = self.peer.sink()?;
        let memory = self.memory.clone();
        let files = self.begin_files_round()?;
        // Side by side: the network is the memory's while a directory is being looked at.
        let both = async move { tokio::join!(memory.round(round, sink), done(files)) };
        let (scan, files) = self.in_time(round, both).await?;
        let scan = self.explained(scan).await?;
        let beside = self.end_files_round(files?).await?;
        self.send(Message::RoundEnd(totals(round, &scan))).await?;
        let answer = self.in_time(round, std::future::pending::<()>());
        match answer.await {
            Err(Interrupted::Said(Message::RoundAcked(acked))) if acked == round => {}
            Err(Interrupted::Said(other)) => return Err(unexpected(&other)),
            Err(Interrupted::Failed(why)) => return Err(why),
            Ok(()) => unreachable!("pending never completes"),
        }
        let duration = began.elapsed();
        let memory = self.memory.clone();
        let scanned = Instant::now();
        let remaining = memory.peek().await.map_err(|error| error.to_string())?;
        self.forecast.scan_took(scanned.elapsed());
        self.peek_files().await?;
        let stats = RoundStats {
            round,
            duration,
            dirty: scan.dirty_pages,
            wire: Bytes(self.peer.wire_bytes().0 - wire_before.0),
            bandwidth: (scan.data_pages.bytes() + beside).per(duration),
            dirty_rate: remaining.bytes().per(duration),
            remaining,
            frozen: scan.frozen,
        };
        self.history.rounds.push(stats);
        for note in &scan.notes {
            self.note(note.clone());
        }
        let budget = self.budget();
        let predicted = budget.predict(&self.history);
        let decision = self.strategy.decide(&self.history, &budget);
        let report = RoundReport::new(&stats, scan.zero_pages.0, scan.data_pages.0, predicted, &decision);
        self.observer.round(&report);
        self.account.rounds.push(report);
        self.account.predicted = predicted;
        self.account.prediction = predicted.map(|whole| self.forecast.predict(whole - budget.fixed_cost));
        Ok(match decision {
            Decision::Continue(_) => SourceInput::RoundDone,
            Decision::StopAndCopy(_) => SourceInput::FreezeDecided,
            Decision::GiveUp(why) => SourceInput::Failure(why),
        })
    }

    /// Stops every task, while the destination begins to hold what clients send. The
    /// downtime begins.
    async fn freeze(&mut self) -> Result<SourceInput, String> {
        // The hook is the user's time, not the workload's: before the clock.
        tokio::task::block_in_place(|| self.network.hook(Stage::PreFreeze))?;
        self.send(Message::Freezing).await?;
        self.account.freezes();
        self.workload
            .freeze(self.plan.images.clone(), self.plan.offer.tcp, self.plan.freeze_deadline)
            .await?;
        // What arrives here until now is in the sockets' queues, and moves with them. The dump
        // locks the connections, and what arrives then is lost; a client sends it again after
        // 200 ms at the earliest. So first nothing may arrive here any more.
        match self.receive_frozen().await? {
            Message::TakenOver => {}
            other => return Err(unexpected(&other)),
        }
        self.account.lap(|parts| &mut parts.freeze_ms);
        // Nothing changes any more: beside the dump.
        self.begin_last_difference(Along::finish)?;
        tokio::task::block_in_place(|| {
            self.network.hook(Stage::Frozen)?;
            self.network.release()?;
            self.network.hook(Stage::AddressReleased)
        })?;
        Ok(SourceInput::Frozen)
    }

    /// Frozen: the dump, the last pages, the images, the final state.
    async fn stop_and_copy(&mut self) -> Result<SourceInput, String> {
        let tasks = self.workload.hold().await?;
        // Whoever is killed from here on: no task runs before somebody has decided.
        self.journal.append(&SourceRecord::Holding { tasks }).map_err(not_journaled)?;
        self.workload.pin()?;
        self.account.lap(|parts| &mut parts.dump_ms);
        self.begin_last_difference(Along::seal)?;

        let wire_before = self.peer.wire_bytes();
        let round = Round(self.history.rounds.len() as u32);
        let sink = self.peer.sink()?;
        let memory = self.memory.clone();
        let finished = self.watched(round, async move { memory.finish(round, sink).await }).await?;
        let (scan, spaces) = self.explained(finished).await?;
        self.account.lap_final_round(scan.scan);
        for note in &scan.notes {
            self.note(note.clone());
        }
        let images = send_images(&self.plan.images, self.peer.sender()?).await.map_err(|e| e.to_string())?;
        self.end_last_difference(round).await?;
        let state = self.final_state(totals(round, &scan), &spaces, images)?;
        self.send(Message::FinalState(Box::new(state))).await?;
        match self.receive_frozen().await? {
            Message::RoundAcked(acked) if acked == round => {}
            other => return Err(unexpected(&other)),
        }
        self.account.final_bytes = Some(Bytes(self.peer.wire_bytes().0 - wire_before.0));
        self.account.lap(|parts| &mut parts.images_ms);
        Ok(SourceInput::FinalSent)
    }

    /// Frozen: the destination restores. On Ready the journal says that the outcome
    /// is the destination's from now on; then, and only then, may Commit be sent.
    async fn await_ready(&mut self) -> Result<SourceInput, String> {
        match self.receive_frozen().await? {
            Message::Ready(RestoreTimes { assemble_us, restore_us }) => {
                self.account.there = Some(ThereReport {
                    assemble_ms: ms(Duration::from_micros(assemble_us)),
                    restore_ms: ms(Duration::from_micros(restore_us)),
                    release_ms: None,
                });
            }
            other => return Err(unexpected(&other)),
        }
        self.account.lap(|parts| &mut parts.restore_ms);
        self.journal.append(&SourceRecord::Committing).map_err(not_journaled)?;
        Ok(SourceInput::Ready)
    }

    /// Commit was sent: only the destination's word counts now.
    async fn await_resumed(&mut self) -> Result<SourceInput, String> {
        self.account.lap(|parts| &mut parts.commit_ms);
        let answer = self.peer.hear(self.plan.freeze_deadline).await;
        self.account.lap(|parts| &mut parts.resume_ms);
        Ok(match answer {
            Ok(Message::Resumed(released_us)) => {
                if let Some(there) = &mut self.account.there {
                    there.release_ms = Some(ms(Duration::from_micros(released_us)));
                }
                SourceInput::Resumed
            }
            // It wrote down Discarded before it said either.
            Ok(Message::NotResumed(why) | Message::Failed(why)) => SourceInput::NotResumed(why),
            Ok(other) => SourceInput::Silence(unexpected(&other)),
            Err(why) => SourceInput::Silence(why),
        })
    }

    /// In doubt: reconnects and asks, every second.
    async fn ask_outcome(&mut self) -> Result<SourceInput, String> {
        self.doubt_since.get_or_insert_with(Instant::now);
        let asked = self.peer.ask(&self.plan.hello, self.plan.offer.id).await;
        let input = match asked {
            Ok(outcome) => learned(outcome),
            Err(error) => SourceInput::Silence(error.to_string()),
        };
        if let SourceInput::Silence(why) = &input {
            self.observer.note(&format!("in doubt: {why}; asking again"));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(input)
    }

    fn is_out_of_patience(&mut self) -> bool {
        let since = *self.doubt_since.get_or_insert_with(Instant::now);
        since.elapsed() >= self.plan.doubt_patience || self.peer.is_given_up()
    }

    /// Does what the state machine says.
    async fn perform(&mut self, action: SourceAction) {
        match action {
            SourceAction::JournalFreezing => {
                let tasks = self.workload.tasks();
                let stopped = tasks.iter().copied().filter(TaskId::is_stopped).collect();
                self.record(SourceRecord::Freezing { tasks, stopped });
            }
            SourceAction::SendCommit => {
                // If it cannot be sent, the wait for its answer finds out.
                let _ = self.send(Message::Commit).await;
            }
            SourceAction::JournalInDoubt(cause) => {
                self.note(format!("in doubt since Commit was sent: {cause}"));
                self.record(SourceRecord::InDoubt { cause });
            }
            SourceAction::RemoveTree => self.remove_tree().await,
            SourceAction::JournalCompleted => {
                self.record(SourceRecord::Completed);
                self.hook_after(Stage::Committed, None);
            }
            SourceAction::TellAbort(cause) => {
                let _ = self.send(Message::Abort(cause.clone())).await;
                self.peer.close(&cause).await;
            }
            SourceAction::Thaw => self.thaw().await,
            SourceAction::Disarm => self.memory.disarm(),
            SourceAction::JournalAborted(cause) => {
                self.care(Side::Source);
                self.record(SourceRecord::Aborted { cause: cause.clone() });
                self.hook_after(Stage::Aborted, Some(cause));
            }
        }
    }

    /// The copy runs there: the tree here goes.
    async fn remove_tree(&mut self) {
        if let Err(error) = self.workload.remove().await {
            self.note(format!("CRIU did not remove the frozen tree, ferry killed it: {error}"));
        }
        self.care(Side::Destination);
    }

    /// Puts right what was changed around the workload, which lives on `runs`.
    fn care(&mut self, runs: Side) {
        let Some(aftercare) = &self.aftercare else { return };
        if let Err(error) = tokio::task::block_in_place(|| aftercare.perform(runs)) {
            self.note(error);
        }
    }

    /// The workload goes on here, with its address.
    async fn thaw(&mut self) {
        if let Err(error) = self.network.take_back() {
            self.note(format!("the address could not be given back to this host: {error}"));
        }
        if let Err(error) = self.workload.thaw().await {
            self.note(format!("while letting the workload run again: {error}"));
        }
        if let Some(stood) = self.account.frozen() {
            self.note(format!("the workload stood still for {:.1} ms", ms(stood)));
        }
    }

    /// Waits until the destination needs nothing of ours to be told of any more:
    /// only for the report; the workload depends on nothing here.
    async fn await_drained(&mut self) {
        let began = Instant::now();
        match self.peer.hear(Duration::from_secs(300)).await {
            Ok(Message::Drained) => self.account.brownout = Some(began.elapsed()),
            _ => self.note("the end of the brownout was not seen: the link ended before it".into()),
        }
        self.peer.close("completed").await;
    }

    /// The report, saved; the images, removed.
    async fn finish(self, state: SourceState) -> Finished {
        let strategy =
            StrategyReport { name: self.strategy.name().into(), parameters: self.strategy.parameters() };
        let exists = !self.workload.tasks().is_empty();
        let mut account = self.account;
        account.files = self.along.as_ref().map(Along::report);
        let mut report = account.report(&state, &self.plan, strategy, self.peer.wire_bytes(), exists);
        let _ = self.journal.sync();
        // One that was in doubt teaches nothing about the next.
        let measured = report.downtime.filter(|_| self.doubt_since.is_none());
        if let Some(missed) = measured.and_then(|measured| self.forecast.missed(&measured))
            && let Err(error) = experience::learn(&self.plan.state, &self.plan.to, missed)
        {
            report.notes.push(format!("the next prediction does not learn from this move: {error}"));
        }
        if state.is_end() {
            let _ = std::fs::remove_dir_all(&self.plan.images);
        }
        if let Err(error) = report.save(&self.plan.state) {
            report.notes.push(format!("the report could not be saved: {error}"));
        }
        Finished { state, report, refusal: self.refusal }
    }

    fn begin_files_round(&mut self) -> Result<Option<Pending<CompanionRound>>, String> {
        let Some(along) = &self.along else { return Ok(None) };
        Ok(Some(along.round(self.peer.blob_sink()?)))
    }

    /// Says how much of what comes along is on its way; its bytes in this round.
    async fn end_files_round(&mut self, round: Option<CompanionRound>) -> Result<Bytes, String> {
        let (Some(round), Some(along)) = (round, &mut self.along) else { return Ok(Bytes(0)) };
        let blobs = along.count(&round);
        round.notes.into_iter().for_each(|note| self.note(note));
        self.send(Message::Along(blobs)).await?;
        Ok(round.bytes)
    }

    async fn peek_files(&mut self) -> Result<(), String> {
        if let Some(along) = &mut self.along {
            along.forecast = along.peek().done().await?;
        }
        Ok(())
    }

    fn begin_last_difference(
        &mut self,
        part: impl FnOnce(&Along, super::along::QueueSink) -> Pending<CompanionRound>,
    ) -> Result<(), String> {
        if let Some(along) = &self.along {
            self.last_difference.push(part(along, self.peer.blob_sink()?));
        }
        Ok(())
    }

    async fn end_last_difference(&mut self, round: Round) -> Result<(), String> {
        let mut blobs = None;
        for part in std::mem::take(&mut self.last_difference) {
            let part = self.watched(round, part.done()).await??;
            blobs = self.along.as_mut().map(|along| along.count_final(&part));
            part.notes.into_iter().for_each(|note| self.note(note));
        }
        match blobs {
            Some(blobs) => self.send(Message::Along(blobs)).await,
            None => Ok(()),
        }
    }

    fn final_state(
        &self,
        totals: RoundTotals,
        spaces: &[FrozenSpace],
        images: u32,
    ) -> Result<FinalState, String> {
        let root = spaces.first().ok_or("the workload exited")?;
        Ok(FinalState {
            totals,
            images,
            root_pid: self.workload.image_pid(root.pid)?,
            spaces: spaces
                .iter()
                .map(|space| {
                    let image_pid = self.workload.image_pid(space.pid)?;
                    Ok(FinalSpace { space: space.space, image_pid, present: space.present.clone() })
                })
                .collect::<Result<_, String>>()?,
        })
    }

    fn budget(&self) -> Budget {
        let beside = self.along.as_ref().map(|along| along.forecast).unwrap_or_default();
        Budget {
            downtime: self.plan.downtime,
            // Files are looked at while CRIU dumps.
            fixed_cost: self.forecast.fixed() + beside.cost.saturating_sub(self.forecast.dump()),
            beside: beside.send,
            elapsed: self.rounds_began.map_or(Duration::ZERO, |began| began.elapsed()),
            deadline: self.plan.deadline,
        }
    }

    fn note(&mut self, note: String) {
        if self.account.note(&note) {
            self.observer.note(&note);
        }
    }

    /// Writes what cannot be decided differently any more; a failure is told.
    fn record(&mut self, record: SourceRecord) {
        if let Err(error) = self.journal.append(&record) {
            self.note(not_journaled(error));
        }
    }

    fn hook_after(&mut self, stage: Stage, reason: Option<String>) {
        self.network.facts.reason = reason;
        if let Err(error) = tokio::task::block_in_place(|| self.network.hook(stage)) {
            self.note(error);
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        self.peer.send(message).await
    }

    /// The next message, within its patience.
    async fn receive(&mut self, patience: Duration) -> Result<Message, String> {
        self.peer.receive(patience, || format!("the destination did not answer within {patience:?}")).await
    }

    /// The next message, within what is left of the freeze.
    async fn receive_frozen(&mut self) -> Result<Message, String> {
        let deadline = self.plan.freeze_deadline;
        let left = deadline.saturating_sub(self.account.frozen().unwrap_or_default());
        let too_late = || {
            format!(
                "the workload stood still for {deadline:?} without a decision: the freeze deadline passed"
            )
        };
        self.peer.receive(left, too_late).await
    }

    /// Pages that nobody takes are the destination's doing: it says why.
    async fn explained<T>(&mut self, done: Result<T, MemoryError>) -> Result<T, String> {
        match done {
            Err(closed @ MemoryError::Sink(_)) => Err(self.peer.last_word(closed.to_string()).await),
            done => done.map_err(|error| error.to_string()),
        }
    }

    /// A part of a round, as [`Source::watched`], which gives the migration up when the
    /// round runs past the deadline. Between rounds the strategy heeds that and freezes;
    /// within one a freeze would have to send what is left of it, so that a round may go
    /// on for as long as a freeze in its place might have lasted, and no longer.
    async fn in_time<T>(&mut self, round: Round, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        let Budget { elapsed, deadline, .. } = self.budget();
        let left = deadline.saturating_add(self.plan.freeze_deadline).saturating_sub(elapsed);
        let done = self.watched(round, tokio::time::timeout(left, work)).await?;
        done.map_err(|_| {
            let Round(number) = round;
            let (memory, sent) = (self.plan.offer.memory, self.peer.wire_bytes());
            Interrupted::Failed(format!(
                "the deadline of {deadline:?} passed in round {number}, and a freeze could not have sent the rest \
                 in time: {sent} were sent so far, for {memory} of memory (a higher --deadline, or a faster network)"
            ))
        })
    }

    /// Runs memory work while watching the peer and the user, and tells the observer
    /// how it goes.
    async fn watched<T>(&mut self, round: Round, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        let last = self.history.last().copied();
        let expected = last.map_or(self.plan.offer.memory, |last| last.remaining.bytes());
        let (observer, predicted, began) = (&*self.observer, self.account.predicted, Instant::now());
        let progress = |sent: Bytes| {
            observer.progress(&Progress {
                round,
                sent,
                expected,
                bandwidth: sent.per(began.elapsed()),
                dirty_rate: last.map(|last| last.dirty_rate),
                predicted,
            });
        };
        self.peer.watch(work, progress).await
    }
}

async fn done(files: Option<Pending<CompanionRound>>) -> Result<Option<CompanionRound>, String> {
    match files {
        Some(files) => files.done().await.map(Some),
        None => Ok(None),
    }
}

fn not_journaled(error: std::io::Error) -> String {
    format!("the journal cannot be written: {error}")
}

fn totals(round: Round, scan: &RoundScan) -> RoundTotals {
    RoundTotals { round, chunks: scan.chunks, data_pages: scan.data_pages, zero_pages: scan.zero_pages }
}
