//! The source's driver: waits for what each state waits for, and does what the
//! state machine says. The order of a migration is [`Source::next`], on one screen.

use super::clock::DowntimeClock;
use super::final_state::send_images;
use super::network::SourceNetwork;
use super::observer::{Observer, Progress};
use super::pages::{MemoryThread, PageStreams};
use super::state::{SourceAction, SourceInput, SourceState, learned};
use crate::check::{Findings, Severity};
use crate::journal::{Journal, SourceRecord, TaskId};
use crate::memory::{FrozenSpace, MemorySource, RoundScan};
use crate::net::connections;
use crate::net::hooks::Stage;
use crate::report::{
    Report, ReportOutcome, RoundReport, SCHEMA, StrategyReport, environment::Environment, ms,
};
use crate::strategy::{Budget, Decision, History, RoundStats, Strategy};
use crate::target::{FrozenDump, HeldDump, Target, TargetError};
use ferry_transport::link::{Connector, ControlReceiver, ControlSender, Link, LinkError};
use ferry_transport::page::Round;
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    FinalSpace, FinalState, Hello, Message, Offer, PROTOCOL_VERSION, RestoreMode, RoundTotals,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What is to be done, decided before anything is sent.
pub struct SourcePlan {
    /// What this side says first.
    pub hello: Hello,
    /// What is to be moved.
    pub offer: Offer,
    /// The destination, as typed.
    pub to: String,
    /// Where journals and reports are kept.
    pub state: PathBuf,
    /// Where CRIU writes its images: on a tmpfs where there is one.
    pub images: PathBuf,
    /// The downtime that is wanted.
    pub downtime: Duration,
    /// The longest that the rounds may take together.
    pub deadline: Duration,
    /// The longest that the tasks may stand still before the commit.
    pub freeze_deadline: Duration,
    /// How long an unanswered Commit is asked after before an operator must.
    pub doubt_patience: Duration,
    /// What a dump costs here beside the pages, measured.
    pub dump_cost: Duration,
    /// Parallel page streams.
    pub streams: usize,
    /// `native` or `criu`.
    pub tracker: String,
    /// Where it is measured.
    pub environment: Environment,
    /// What the preparation found worth telling.
    pub notes: Vec<String>,
}

/// Who does it.
pub struct SourceParts {
    /// What owns the workload.
    pub target: Box<dyn Target>,
    /// What follows and reads its memory.
    pub memory: Box<dyn MemorySource>,
    /// What decides.
    pub strategy: Box<dyn Strategy>,
    /// The way to the destination.
    pub connector: Box<dyn Connector>,
    /// The address and the hooks.
    pub network: SourceNetwork,
    /// Who watches.
    pub observer: Box<dyn Observer>,
    /// Turns to a reason when the user gives up.
    pub abort: watch::Receiver<Option<String>>,
}

/// A migration's end and its report.
pub struct Finished {
    /// The end.
    pub state: SourceState,
    /// The report, saved.
    pub report: Report,
    /// What the destination found, where it refused the offer.
    pub refusal: Option<Findings>,
}

/// How much of the workload is in CRIU's hands.
enum Hold {
    Running,
    Frozen(Box<dyn FrozenDump>),
    Held(Box<dyn HeldDump>),
}

impl Hold {
    fn insert_held(&mut self, held: Box<dyn HeldDump>) -> &mut dyn HeldDump {
        *self = Hold::Held(held);
        match self {
            Hold::Held(held) => &mut **held,
            Hold::Running | Hold::Frozen(_) => unreachable!("it was put there"),
        }
    }
}

/// The open link to the destination.
struct Session {
    link: Box<dyn Link>,
    sender: Box<dyn ControlSender>,
    receiver: Box<dyn ControlReceiver>,
    streams: Option<PageStreams>,
}

/// One migration, seen from the source.
pub struct Source {
    plan: SourcePlan,
    target: Option<Box<dyn Target>>,
    memory: MemoryThread,
    strategy: Box<dyn Strategy>,
    connector: Box<dyn Connector>,
    network: SourceNetwork,
    observer: Box<dyn Observer>,
    abort: watch::Receiver<Option<String>>,
    journal: Journal<SourceRecord>,
    session: Option<Session>,
    hold: Hold,
    history: History,
    restore_cost: Duration,
    began: Instant,
    rounds_began: Option<Instant>,
    frozen_at: Option<Instant>,
    clock: Option<DowntimeClock>,
    rounds: Vec<RoundReport>,
    predicted: Option<Duration>,
    final_bytes: Option<Bytes>,
    brownout: Option<Duration>,
    /// What page streams of ended sessions sent.
    sent_before: Bytes,
    doubt_since: Option<Instant>,
    refusal: Option<Findings>,
    notes: Vec<String>,
}

impl Source {
    /// Opens the journal and starts the memory thread; touches nothing else.
    pub fn new(plan: SourcePlan, parts: SourceParts) -> std::io::Result<Source> {
        let mut journal = Journal::open(&plan.state, plan.offer.id)?;
        let engine = TaskId::of(std::process::id() as i32)?;
        journal.append(&SourceRecord::Started {
            target: plan.offer.target.clone(),
            to: plan.to.clone(),
            engine,
            address: parts.network.place().cloned(),
            images: plan.images.clone(),
        })?;
        let notes = plan.notes.clone();
        Ok(Source {
            plan,
            target: Some(parts.target),
            memory: MemoryThread::start(parts.memory)?,
            strategy: parts.strategy,
            connector: parts.connector,
            network: parts.network,
            observer: parts.observer,
            abort: parts.abort,
            journal,
            session: None,
            hold: Hold::Running,
            history: History::default(),
            restore_cost: Duration::ZERO,
            began: Instant::now(),
            rounds_began: None,
            frozen_at: None,
            clock: None,
            rounds: Vec::new(),
            predicted: None,
            final_bytes: None,
            brownout: None,
            sent_before: Bytes(0),
            doubt_since: None,
            refusal: None,
            notes,
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
        let connect = self.connector.connect();
        let link = or_abort(&mut self.abort, async { connect.await.map_err(|e| e.to_string()) }).await?;
        let (sender, receiver) = link.control().await.map_err(|e| e.to_string())?;
        self.session = Some(Session { link, sender, receiver, streams: None });

        self.send(Message::Hello(self.plan.hello.clone())).await?;
        let Message::Hello(theirs) = self.receive(Duration::from_secs(30)).await? else {
            return Err("the destination did not greet".into());
        };
        if theirs.protocol != PROTOCOL_VERSION {
            return Err(format!(
                "the destination speaks protocol {} and this side {PROTOCOL_VERSION}: use the same version of ferry on both hosts",
                theirs.protocol
            ));
        }
        self.send(Message::Offer(Box::new(self.plan.offer.clone()))).await?;
        match self.receive(Duration::from_secs(120)).await? {
            Message::Accepted(accepted) => {
                self.restore_cost = Duration::from_micros(accepted.restore_cost_us);
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
        let session = self.session.as_mut().expect("connected above");
        let streams =
            PageStreams::open(&*session.link, self.plan.streams).await.map_err(|e| e.to_string())?;
        session.streams = Some(streams);
        self.on_target(|target| target.prepare()).await?;
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
        let wire_before = self.wire_bytes();
        let sink = self.streams()?.sink();
        let memory = self.memory.clone();
        let scan = self.watched(round, async move { memory.round(round, sink).await }).await?;
        let scan = scan.map_err(|error| error.to_string())?;
        self.send(Message::RoundEnd(totals(round, &scan))).await?;
        let answer = self.watched(round, std::future::pending::<()>());
        match answer.await {
            Err(Interrupted::Said(Message::RoundAcked(acked))) if acked == round => {}
            Err(Interrupted::Said(other)) => return Err(unexpected(&other)),
            Err(Interrupted::Failed(why)) => return Err(why),
            Ok(()) => unreachable!("pending never completes"),
        }
        let duration = began.elapsed();
        let memory = self.memory.clone();
        let remaining = memory.peek().await.map_err(|error| error.to_string())?;
        let stats = RoundStats {
            round,
            duration,
            dirty: scan.dirty_pages,
            wire: Bytes(self.wire_bytes().0 - wire_before.0),
            bandwidth: scan.data_pages.bytes().per(duration),
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
        self.rounds.push(report);
        self.predicted = predicted;
        Ok(match decision {
            Decision::Continue(_) => SourceInput::RoundDone,
            Decision::StopAndCopy(_) => SourceInput::FreezeDecided,
            Decision::GiveUp(why) => SourceInput::Failure(why),
        })
    }

    /// Stops every task. The downtime begins.
    async fn freeze(&mut self) -> Result<SourceInput, String> {
        // The hook is the user's time, not the workload's: before the clock.
        tokio::task::block_in_place(|| self.network.hook(Stage::PreFreeze))?;
        self.send(Message::Freezing).await?;
        self.clock = Some(DowntimeClock::start());
        self.frozen_at = Some(Instant::now());
        let (images, tcp, deadline) =
            (self.plan.images.clone(), self.plan.offer.tcp, self.plan.freeze_deadline);
        let frozen = self.on_target(move |target| target.freeze(&images, tcp, deadline)).await?;
        self.hold = Hold::Frozen(frozen);
        self.lap(|parts| &mut parts.freeze_ms);
        tokio::task::block_in_place(|| {
            self.network.hook(Stage::Frozen)?;
            self.network.release()?;
            self.network.hook(Stage::AddressReleased)
        })?;
        Ok(SourceInput::Frozen)
    }

    /// Frozen: the dump, the last pages, the images, the final state.
    async fn stop_and_copy(&mut self) -> Result<SourceInput, String> {
        let Hold::Frozen(frozen) = std::mem::replace(&mut self.hold, Hold::Running) else {
            return Err("nothing is frozen".into());
        };
        let held = tokio::task::spawn_blocking(move || frozen.hold()).await;
        let held = self.hold.insert_held(flatten(held)?);
        // Whoever is killed from here on: no task runs before somebody has decided.
        self.journal
            .append(&SourceRecord::Holding { tasks: held.tasks().to_vec() })
            .map_err(|error| format!("the journal cannot be written: {error}"))?;
        held.pin().map_err(|error| error.to_string())?;
        self.lap(|parts| &mut parts.dump_ms);

        let wire_before = self.wire_bytes();
        let round = Round(self.history.rounds.len() as u32);
        let sink = self.streams()?.sink();
        let memory = self.memory.clone();
        let finished = self.watched(round, async move { memory.finish(round, sink).await }).await?;
        let (scan, spaces) = finished.map_err(|error| error.to_string())?;
        if let Some(clock) = &mut self.clock {
            clock.split(scan.scan, |parts| &mut parts.final_scan_ms, |parts| &mut parts.final_transfer_ms);
        }
        for note in &scan.notes {
            self.note(note.clone());
        }
        let session = self.session.as_mut().ok_or("not connected")?;
        let images = send_images(&self.plan.images, &mut *session.sender).await.map_err(|e| e.to_string())?;
        let state = self.final_state(totals(round, &scan), &spaces, images)?;
        self.send(Message::FinalState(Box::new(state))).await?;
        match self.receive_frozen().await? {
            Message::RoundAcked(acked) if acked == round => {}
            other => return Err(unexpected(&other)),
        }
        self.final_bytes = Some(Bytes(self.wire_bytes().0 - wire_before.0));
        self.lap(|parts| &mut parts.images_ms);
        Ok(SourceInput::FinalSent)
    }

    /// Frozen: the destination restores. On Ready the journal says that the outcome
    /// is the destination's from now on; then, and only then, may Commit be sent.
    async fn await_ready(&mut self) -> Result<SourceInput, String> {
        match self.receive_frozen().await? {
            Message::Ready(_) => {}
            other => return Err(unexpected(&other)),
        }
        self.lap(|parts| &mut parts.restore_ms);
        self.journal
            .append(&SourceRecord::Committing)
            .map_err(|error| format!("the journal cannot be written: {error}"))?;
        Ok(SourceInput::Ready)
    }

    /// Commit was sent: only the destination's word counts now.
    async fn await_resumed(&mut self) -> Result<SourceInput, String> {
        self.lap(|parts| &mut parts.commit_ms);
        let patience = self.plan.freeze_deadline;
        let session = self.session.as_mut().ok_or("not connected")?;
        let answer = tokio::time::timeout(patience, session.receiver.recv()).await;
        self.lap(|parts| &mut parts.resume_ms);
        Ok(match answer {
            Ok(Ok(Message::Resumed(_))) => SourceInput::Resumed,
            // It wrote down Discarded before it said either.
            Ok(Ok(Message::NotResumed(why) | Message::Failed(why))) => SourceInput::NotResumed(why),
            Ok(Ok(other)) => SourceInput::Silence(unexpected(&other)),
            Ok(Err(error)) => SourceInput::Silence(error.to_string()),
            Err(_) => SourceInput::Silence(format!("no answer to Commit within {patience:?}")),
        })
    }

    /// In doubt: reconnects and asks, every second.
    async fn ask_outcome(&mut self) -> Result<SourceInput, String> {
        self.doubt_since.get_or_insert_with(Instant::now);
        drop(self.end_session());
        let asked = super::recovery::ask(&*self.connector, &self.plan.hello, self.plan.offer.id).await;
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
        since.elapsed() >= self.plan.doubt_patience || self.abort.borrow().is_some()
    }

    /// Does what the state machine says.
    async fn perform(&mut self, action: SourceAction) {
        match action {
            SourceAction::JournalFreezing => {
                let tasks = self.target.as_ref().map(|target| target.tasks()).unwrap_or_default();
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
                if let Some(session) = self.end_session() {
                    session.link.close(&cause).await;
                }
            }
            SourceAction::Thaw => self.thaw().await,
            SourceAction::Disarm => self.memory.disarm(),
            SourceAction::JournalAborted(cause) => {
                self.record(SourceRecord::Aborted { cause: cause.clone() });
                self.hook_after(Stage::Aborted, Some(cause));
            }
        }
    }

    /// The copy runs there: the tree here goes.
    async fn remove_tree(&mut self) {
        if let Hold::Held(held) = std::mem::replace(&mut self.hold, Hold::Running) {
            let tasks = held.tasks().to_vec();
            let removed = flatten(tokio::task::spawn_blocking(move || held.commit()).await);
            if let Err(error) = removed {
                self.note(format!("the frozen tree could not be removed by CRIU: {error}; killing it"));
                connections::kill_quietly(&tasks);
            }
        }
    }

    /// The workload goes on here, with its address.
    async fn thaw(&mut self) {
        if let Err(error) = self.network.take_back() {
            self.note(format!("the address could not be given back to this host: {error}"));
        }
        let hold = std::mem::replace(&mut self.hold, Hold::Running);
        let thawed = tokio::task::spawn_blocking(move || match hold {
            Hold::Running => Ok(()),
            Hold::Frozen(frozen) => frozen.hold()?.roll_back(),
            Hold::Held(held) => held.roll_back(),
        });
        if let Err(error) = flatten(thawed.await) {
            self.note(format!("while letting the workload run again: {error}"));
        }
        if let (Some(frozen_at), None) = (self.frozen_at, &self.brownout) {
            self.note(format!("the workload stood still for {:.1} ms", ms(frozen_at.elapsed())));
        }
    }

    /// Waits until the destination needs nothing of ours to be told of any more:
    /// only for the report; the workload depends on nothing here.
    async fn await_drained(&mut self) {
        let began = Instant::now();
        let Some(session) = &mut self.session else { return };
        let drained = tokio::time::timeout(Duration::from_secs(300), session.receiver.recv()).await;
        match drained {
            Ok(Ok(Message::Drained)) => self.brownout = Some(began.elapsed()),
            _ => self.note("the end of the brownout was not seen: the link ended before it".into()),
        }
        if let Some(session) = self.end_session() {
            session.link.close("completed").await;
        }
    }

    /// The report, saved; the images, removed.
    async fn finish(self, state: SourceState) -> Finished {
        let (outcome, workload, cause) = match &state {
            SourceState::Completed => (ReportOutcome::Completed, "running at the destination".into(), None),
            SourceState::Aborted { at, cause } => {
                (ReportOutcome::Aborted, "running here".into(), Some(format!("{cause} (in {at})")))
            }
            _ => (
                ReportOutcome::InDoubt,
                format!(
                    "standing still here, or running at the destination: `ferry resolve {}` finds out",
                    self.plan.offer.id
                ),
                Some("Commit was sent and no answer came".into()),
            ),
        };
        let completed = outcome == ReportOutcome::Completed;
        let downtime = self.clock.as_ref().map(DowntimeClock::report).filter(|_| completed);
        let restore = match self.plan.offer.restore {
            RestoreMode::Lazy => "lazy",
            RestoreMode::Eager => "eager",
        };
        let wire = self.wire_bytes();
        let mut report = Report {
            schema: SCHEMA,
            id: self.plan.offer.id.to_string(),
            outcome,
            workload,
            cause,
            target: self.plan.offer.target.clone(),
            to: self.plan.to.clone(),
            strategy: StrategyReport {
                name: self.strategy.name().into(),
                parameters: self.strategy.parameters(),
            },
            tracker: self.plan.tracker.clone(),
            restore: restore.into(),
            rounds: self.rounds,
            downtime_ms: downtime.map(|parts| parts.total_ms()),
            downtime,
            predicted_downtime_ms: self.predicted.map(ms),
            brownout_ms: self.brownout.map(ms),
            total_ms: ms(self.began.elapsed()),
            memory_bytes: self.plan.offer.memory.0,
            wire_bytes: wire.0,
            final_bytes: self.final_bytes.map(|bytes| bytes.0),
            client: None,
            environment: self.plan.environment.clone(),
            notes: self.notes,
        };
        let _ = self.journal.sync();
        if outcome != ReportOutcome::InDoubt {
            let _ = std::fs::remove_dir_all(&self.plan.images);
        }
        if let Err(error) = report.save(&self.plan.state) {
            report.notes.push(format!("the report could not be saved: {error}"));
        }
        Finished { state, report, refusal: self.refusal }
    }

    fn final_state(
        &self,
        totals: RoundTotals,
        spaces: &[FrozenSpace],
        images: u32,
    ) -> Result<FinalState, String> {
        let target = self.target.as_ref().ok_or("the target is gone")?;
        let root = spaces.first().ok_or("the workload exited")?;
        Ok(FinalState {
            totals,
            images,
            root_pid: target.image_pid(root.pid),
            spaces: spaces
                .iter()
                .map(|space| FinalSpace {
                    space: space.space,
                    image_pid: target.image_pid(space.pid),
                    present: space.present.clone(),
                })
                .collect(),
        })
    }

    fn budget(&self) -> Budget {
        Budget {
            downtime: self.plan.downtime,
            fixed_cost: self.plan.dump_cost + self.restore_cost,
            elapsed: self.rounds_began.map_or(Duration::ZERO, |began| began.elapsed()),
            deadline: self.plan.deadline,
        }
    }

    fn time_left(&self) -> Duration {
        let spent = self.frozen_at.map_or(Duration::ZERO, |at| at.elapsed());
        self.plan.freeze_deadline.saturating_sub(spent)
    }

    fn lap(&mut self, part: impl FnOnce(&mut crate::report::DowntimeReport) -> &mut f64) {
        if let Some(clock) = &mut self.clock {
            clock.lap(part);
        }
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.observer.note(&note);
            self.notes.push(note);
        }
    }

    /// Writes what cannot be decided differently any more; a failure is told.
    fn record(&mut self, record: SourceRecord) {
        if let Err(error) = self.journal.append(&record) {
            self.note(format!("the journal cannot be written: {error}"));
        }
    }

    fn hook_after(&mut self, stage: Stage, reason: Option<String>) {
        self.network.facts.reason = reason;
        if let Err(error) = tokio::task::block_in_place(|| self.network.hook(stage)) {
            self.note(error);
        }
    }

    /// Runs blocking work of the target on a thread that may block.
    async fn on_target<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn Target) -> Result<T, TargetError> + Send + 'static,
    ) -> Result<T, String> {
        let mut target = self.target.take().ok_or("the target is gone")?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut *target);
            (target, result)
        });
        let (target, result) = done.await.map_err(|panic| panic.to_string())?;
        self.target = Some(target);
        result.map_err(|error| error.to_string())
    }

    fn streams(&mut self) -> Result<&mut PageStreams, String> {
        self.session.as_mut().and_then(|session| session.streams.as_mut()).ok_or("not connected".into())
    }

    fn wire_bytes(&self) -> Bytes {
        let streams = self.session.as_ref().and_then(|session| session.streams.as_ref());
        self.sent_before + streams.map_or(Bytes(0), PageStreams::wire_bytes)
    }

    /// Ends the session; what it sent still counts.
    fn end_session(&mut self) -> Option<Session> {
        self.sent_before = self.wire_bytes();
        self.session.take()
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        let session = self.session.as_mut().ok_or("not connected")?;
        session.sender.send(&message).await.map_err(|error| error.to_string())
    }

    /// The next message, unless the user gives up or time runs out.
    async fn receive(&mut self, patience: Duration) -> Result<Message, String> {
        self.next_message(patience, format!("the destination did not answer within {patience:?}")).await
    }

    /// As [`Source::receive`], within what is left of the freeze.
    async fn receive_frozen(&mut self) -> Result<Message, String> {
        let deadline = self.plan.freeze_deadline;
        let too_late = format!(
            "the workload stood still for {deadline:?} without a decision: the freeze deadline passed"
        );
        self.next_message(self.time_left(), too_late).await
    }

    /// The next message; an end of the link or of a page stream, the peer's failure
    /// and the user's giving up are errors, and so is silence.
    async fn next_message(&mut self, patience: Duration, silence: String) -> Result<Message, String> {
        let abort = self.abort.clone();
        let Session { receiver, streams, .. } = self.session.as_mut().ok_or("not connected")?;
        let broken = async {
            match streams {
                Some(streams) => streams.broken().await,
                None => std::future::pending::<LinkError>().await,
            }
        };
        tokio::select! {
            message = receiver.recv() => match message {
                Ok(Message::Failed(why)) => Err(format!("the destination: {why}")),
                Ok(message) => Ok(message),
                Err(error) => Err(error.to_string()),
            },
            error = broken => Err(error.to_string()),
            why = aborted(abort) => Err(why),
            () = tokio::time::sleep(patience) => Err(silence),
        }
    }

    /// Runs memory work while watching the peer, the streams and the user, and
    /// telling the observer how it goes.
    async fn watched<T>(&mut self, round: Round, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        let abort = self.abort.clone();
        let expected = self.history.last().map_or(self.plan.offer.memory, |last| last.remaining.bytes());
        let last = self.history.last().copied();
        let predicted = self.predicted;
        let began = Instant::now();
        let Some(Session { receiver, streams: Some(streams), .. }) = self.session.as_mut() else {
            return Err(Interrupted::Failed("not connected".into()));
        };
        let before = streams.wire_bytes();
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let aborted = aborted(abort);
        tokio::pin!(work, aborted);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                message = receiver.recv() => return Err(match message {
                    Ok(Message::Failed(why)) => Interrupted::Failed(format!("the destination: {why}")),
                    Ok(message) => Interrupted::Said(message),
                    Err(error) => Interrupted::Failed(error.to_string()),
                }),
                error = streams.broken() => return Err(Interrupted::Failed(error.to_string())),
                why = &mut aborted => return Err(Interrupted::Failed(why)),
                _ = tick.tick() => {
                    let sent = Bytes(streams.wire_bytes().0 - before.0);
                    self.observer.progress(&Progress {
                        round,
                        sent,
                        expected,
                        bandwidth: sent.per(began.elapsed()),
                        dirty_rate: last.map(|last| last.dirty_rate),
                        predicted,
                    });
                }
            }
        }
    }
}

/// What came instead of the work's end.
enum Interrupted {
    /// The destination said something.
    Said(Message),
    /// It cannot go on.
    Failed(String),
}

impl From<Interrupted> for String {
    fn from(interrupted: Interrupted) -> String {
        match interrupted {
            Interrupted::Said(message) => unexpected(&message),
            Interrupted::Failed(why) => why,
        }
    }
}

fn unexpected(message: &Message) -> String {
    format!("the destination said {} out of turn", message.name())
}

fn totals(round: Round, scan: &RoundScan) -> RoundTotals {
    RoundTotals { round, chunks: scan.chunks, data_pages: scan.data_pages, zero_pages: scan.zero_pages }
}

/// Completes when the user gives up.
async fn aborted(mut abort: watch::Receiver<Option<String>>) -> String {
    let given_up = abort.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match given_up {
        Some(why) => why,
        // Nobody can give up any more.
        None => std::future::pending().await,
    }
}

async fn or_abort<T>(
    abort: &mut watch::Receiver<Option<String>>,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::select! {
        done = work => done,
        why = aborted(abort.clone()) => Err(why),
    }
}

fn flatten<T>(joined: Result<Result<T, TargetError>, tokio::task::JoinError>) -> Result<T, String> {
    joined.map_err(|panic| panic.to_string())?.map_err(|error| error.to_string())
}
