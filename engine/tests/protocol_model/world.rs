//! Both sides, the link between them, what can go wrong, and what must hold all
//! the same.

use crate::destination::{self, COPY, Destination};
use crate::host::{Address, Copy, Criu, DestinationHost, LastBreath, SourceHost, Task};
use crate::link::{Heard, Link, Say};
use crate::source::{self, ENGINE, Source, Turn};
use ferry_engine::destination::recovery::{self as there, DestinationStanding, Settlement};
use ferry_engine::journal::{DestinationRecord, Entry, Side, SourceRecord, TaskId};
use ferry_engine::source::recovery::{self as here, SourceStanding};
use ferry_engine::source::state::{SourceInput, SourceState, learned};
use ferry_transport::wire::control::Outcome;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// The source's engine.
    Source,
    /// The receiver, and in it the migration's driver.
    Destination,
    /// CRIU at the destination, by itself.
    Criu,
    /// The receiver, answering a source that asks on a link of its own.
    Answer,
    /// The keeper, which outlives the source's engine and puts right what it left.
    Keeper,
}

pub const MOVERS: [Mover; 5] = [Mover::Source, Mover::Destination, Mover::Criu, Mover::Answer, Mover::Keeper];

/// What can go wrong, at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What the source does or waits for next fails: a disk, a hook, a deadline, the user.
    SourceFails,
    /// The same at the destination.
    DestinationFails,
    /// The link ends and what is on its way is lost.
    Cut,
    /// kill -9 of the source's engine.
    KillSource,
    /// kill -9 of the receiver.
    KillReceiver,
    /// kill -9 of the CRIU that holds the source.
    KillSourceCriu,
    /// kill -9 of the CRIU that holds the copy; in the act of letting it go the
    /// copy may or may not survive it.
    KillCopyCriu(LastBreath),
    /// CRIU at the destination fails in the act of letting the copy go.
    CriuFails,
    /// Somebody starts the receiver again.
    RestartReceiver,
    /// Somebody runs `ferry resolve` at the source.
    Resolve,
}

pub const FAULTS: [Fault; 11] = [
    Fault::SourceFails,
    Fault::DestinationFails,
    Fault::Cut,
    Fault::KillSource,
    Fault::KillReceiver,
    Fault::KillSourceCriu,
    Fault::KillCopyCriu(LastBreath::Lives),
    Fault::KillCopyCriu(LastBreath::Dies),
    Fault::CriuFails,
    Fault::RestartReceiver,
    Fault::Resolve,
];

/// AskOutcome on its way.
#[derive(Clone, Debug)]
enum Question {
    Asked,
    Answered(Outcome),
}

/// The receiver: a process that outlives migrations.
#[derive(Clone, Debug)]
enum Receiver {
    Serves(TaskId),
    Dead(TaskId),
}

/// Everything.
#[derive(Clone, Debug)]
pub struct World {
    pub source_host: SourceHost,
    pub destination_host: DestinationHost,
    source_journal: Vec<Entry<SourceRecord>>,
    destination_journal: Vec<Entry<DestinationRecord>>,
    link: Link,
    /// `None`: its process is gone.
    pub source: Option<Source>,
    /// `None`: no offer came yet, or its receiver died.
    pub destination: Option<Destination>,
    receiver: Receiver,
    question: Option<Question>,
}

impl World {
    pub fn new(rounds: u32) -> World {
        let mut source_journal = Vec::new();
        let source = Source::start(rounds, &mut source_journal);
        World {
            source_host: SourceHost::new(),
            destination_host: DestinationHost::new(),
            source_journal,
            destination_journal: Vec::new(),
            link: Link::default(),
            source: Some(source),
            destination: None,
            receiver: Receiver::Serves(TaskId { pid: 2, start_time: 1, namespace: 0 }),
            question: None,
        }
    }

    /// One deed of one of them.
    pub fn turn(&mut self, mover: Mover) -> Turn {
        match mover {
            Mover::Source => self.source_turn(),
            Mover::Destination => self.destination_turn(),
            Mover::Criu if self.destination_host.copy == Copy::LettingGo => {
                self.destination_host.criu_goes_on();
                Turn::Done
            }
            Mover::Criu => Turn::Idle,
            Mover::Answer => self.answer(),
            Mover::Keeper => self.settle_source(),
        }
    }

    /// What `source::recovery::settle` does: the keeper calls it, `ferry resolve` and
    /// the next `ferry migrate` too.
    fn settle_source(&mut self) -> Turn {
        if self.source_standing() != SourceStanding::Interrupted {
            return Turn::Idle;
        }
        self.source_host.address = Address::Here;
        self.source_host.continue_tasks();
        let cause = "its engine died before the commit".to_owned();
        source::write(&mut self.source_journal, SourceRecord::Aborted { cause });
        Turn::Done
    }

    fn source_turn(&mut self) -> Turn {
        let Some(source) = &mut self.source else { return Turn::Idle };
        if source.is_asking() {
            match self.question.take() {
                None => self.question = Some(Question::Asked),
                Some(Question::Answered(outcome)) => source.happens(learned(outcome)),
                asked => self.question = asked,
            }
            return Turn::Done;
        }
        source.turn(&mut source::Surroundings {
            host: &mut self.source_host,
            journal: &mut self.source_journal,
            link: &mut self.link,
        })
    }

    fn destination_turn(&mut self) -> Turn {
        let Receiver::Serves(receiver) = self.receiver else { return Turn::Idle };
        let Some(destination) = &mut self.destination else {
            let Heard::Message(Say::Offer) = self.link.at_destination() else { return Turn::Idle };
            self.destination = Some(Destination::start(receiver));
            return Turn::Done;
        };
        destination.turn(&mut destination::Surroundings {
            host: &mut self.destination_host,
            journal: &mut self.destination_journal,
            link: &mut self.link,
        })
    }

    fn answer(&mut self) -> Turn {
        let Some(Question::Asked) = self.question else { return Turn::Idle };
        // A receiver that is not there does not answer; the source asks again.
        self.question = self.ask().map(Question::Answered);
        Turn::Done
    }

    /// What a receiver says to AskOutcome, as `Receiver::outcome` does.
    fn ask(&mut self) -> Option<Outcome> {
        let Receiver::Serves(_) = self.receiver else { return None };
        let at_work = self.destination.as_ref().is_some_and(|driver| !driver.is_done());
        if !at_work {
            self.settle();
            return Some(there::answer(&self.destination_standing()));
        }
        Some(match self.destination_standing() {
            DestinationStanding::Resumed => Outcome::Resumed,
            _ => Outcome::Undecided,
        })
    }

    pub fn fault(&mut self, fault: Fault) -> Turn {
        match fault {
            Fault::SourceFails => {
                let Some(source) = &mut self.source else { return Turn::Idle };
                return source.fail(&mut source::Surroundings {
                    host: &mut self.source_host,
                    journal: &mut self.source_journal,
                    link: &mut self.link,
                });
            }
            Fault::DestinationFails => {
                let Some(destination) = &mut self.destination else { return Turn::Idle };
                return destination.fail(&mut destination::Surroundings {
                    host: &mut self.destination_host,
                    journal: &mut self.destination_journal,
                    link: &mut self.link,
                });
            }
            Fault::Cut => {
                self.link.cut();
                self.question = None;
            }
            Fault::KillSource => {
                self.source = None;
                self.question = None;
                self.link.source_leaves();
                self.source_host.criu_lets_go(Criu::Dead);
            }
            Fault::KillReceiver => self.kill_receiver(),
            Fault::KillSourceCriu => self.source_host.criu_lets_go(Criu::Dead),
            Fault::KillCopyCriu(breath) => self.destination_host.criu_dies(breath),
            Fault::CriuFails => self.destination_host.criu_fails(),
            Fault::RestartReceiver => {
                self.kill_receiver();
                self.start_receiver();
            }
            Fault::Resolve => self.resolve_source(),
        }
        Turn::Done
    }

    fn kill_receiver(&mut self) {
        let (Receiver::Serves(engine) | Receiver::Dead(engine)) = self.receiver;
        self.receiver = Receiver::Dead(engine);
        self.destination = None;
        self.link.destination_leaves();
        self.destination_host.engine_dies();
    }

    /// `ferry receive`: first brings what an earlier one left to its end.
    pub fn start_receiver(&mut self) {
        if let Receiver::Dead(before) = self.receiver {
            let engine = TaskId { start_time: before.start_time + 1, ..before };
            self.receiver = Receiver::Serves(engine);
        }
        self.settle();
    }

    /// What `destination::recovery::settle` does with what it proves.
    fn settle(&mut self) {
        let standing = self.destination_standing();
        let copy = self.destination_host.copy;
        let log = self.destination_host.log;
        match there::settlement(&standing, || log, |_| copy != Copy::Absent) {
            Settlement::Leave => {}
            Settlement::CleanUp => {
                self.destination_host.copy = Copy::Absent;
                self.destination_host.address = Address::Away;
            }
            Settlement::Resumed => {
                destination::write(&mut self.destination_journal, DestinationRecord::Resumed);
            }
            Settlement::Discard(cause) => {
                let cause = cause.to_owned();
                destination::write(&mut self.destination_journal, DestinationRecord::Discarded { cause });
                self.destination_host.copy = Copy::Absent;
                self.destination_host.address = Address::Away;
            }
        }
    }

    /// `ferry resolve` at the source, with the destination's word only.
    pub fn resolve_source(&mut self) {
        match self.source_standing() {
            SourceStanding::Interrupted => {
                self.settle_source();
            }
            SourceStanding::InDoubt { .. } => {
                let runs = match self.ask().map(learned) {
                    Some(SourceInput::Resumed) => Side::Destination,
                    Some(SourceInput::NotResumed(_)) => Side::Source,
                    _ => return,
                };
                match runs {
                    Side::Destination => self.source_host.remove(),
                    Side::Source => {
                        self.source_host.address = Address::Here;
                        self.source_host.continue_tasks();
                    }
                }
                source::write(&mut self.source_journal, SourceRecord::Resolved { runs });
            }
            _ => {}
        }
    }

    /// `ferry resolve --runs …` at the destination: the operator looks whether the
    /// copy works. Whether there was anything to decide.
    pub fn resolve_destination(&mut self) -> Turn {
        self.settle();
        let DestinationStanding::ReleaseUnknown { .. } = self.destination_standing() else {
            return Turn::Idle;
        };
        let runs = match self.destination_host.copy {
            Copy::Running => Side::Destination,
            _ => Side::Source,
        };
        destination::write(&mut self.destination_journal, DestinationRecord::Resolved { runs });
        if runs == Side::Source {
            self.destination_host.copy = Copy::Absent;
            self.destination_host.address = Address::Away;
        }
        Turn::Done
    }

    pub fn source_standing(&self) -> SourceStanding {
        here::conclude(&self.source_journal, |task| *task == ENGINE && self.source.is_some())
    }

    pub fn destination_standing(&self) -> DestinationStanding {
        there::conclude(&self.destination_journal, |task| match &self.receiver {
            _ if COPY.contains(task) => self.destination_host.copy != Copy::Absent,
            Receiver::Serves(engine) => engine == task,
            Receiver::Dead(_) => false,
        })
    }

    /// The invariants, at every moment.
    pub fn check(&self) {
        let (here, there) = (&self.source_host, &self.destination_host);
        assert!(!(here.any_runs() && there.may_run()), "both copies are runnable");
        assert!(
            !(here.ran_since_the_freeze && there.ran),
            "both copies ran after the images were taken: the workload has two histories"
        );
        assert!(here.is_whole() || there.copy == Copy::Running, "neither side holds the whole workload");
        if let Some(source) = &self.source
            && let SourceState::Aborted { at, .. } = &source.state
            && source.is_done()
        {
            assert!(here.all(Task::Running), "an abort in {at} does not leave the source running");
            assert_eq!(here.address, Address::Here, "an abort in {at} keeps the address");
        }
        match self.source_standing() {
            SourceStanding::Interrupted => {
                assert!(
                    here.is_whole() && !there.may_run(),
                    "the source's journal says that it is to run here"
                );
            }
            SourceStanding::Aborted { .. } => {
                assert!(here.all(Task::Running), "the source's journal says that it runs here");
            }
            SourceStanding::Completed => {
                assert!(here.all(Task::Removed) && there.ran, "the source's journal says Completed");
            }
            SourceStanding::Resolved(Side::Source) => assert!(here.all(Task::Running)),
            SourceStanding::Resolved(Side::Destination) => assert!(here.all(Task::Removed)),
            SourceStanding::Unknown | SourceStanding::UnderWay | SourceStanding::InDoubt { .. } => {}
        }
        match self.destination_standing() {
            DestinationStanding::Interrupted { .. }
            | DestinationStanding::NeverReleased { .. }
            | DestinationStanding::Discarded { .. } => {
                assert!(!there.ran, "the destination's journal says that nothing ran");
            }
            DestinationStanding::Resumed => assert!(there.ran, "the destination's journal says Resumed"),
            _ => {}
        }
    }

    /// The end: one whole workload, with its address, and nobody in doubt.
    pub fn check_end(&self) -> Side {
        let (here, there) = (&self.source_host, &self.destination_host);
        let state = (here.tasks, here.address, there.copy, there.address);
        match state {
            (tasks, Address::Here, Copy::Absent, Address::Away) if tasks == [Task::Running; 2] => {
                assert!(
                    matches!(
                        self.source_standing(),
                        SourceStanding::Aborted { .. } | SourceStanding::Resolved(Side::Source)
                    ),
                    "runs at the source, whose journal says {:?}",
                    self.source_standing()
                );
                Side::Source
            }
            (tasks, Address::Away, Copy::Running, Address::Here) if tasks == [Task::Removed; 2] => {
                assert!(
                    matches!(
                        self.source_standing(),
                        SourceStanding::Completed | SourceStanding::Resolved(Side::Destination)
                    ),
                    "runs at the destination, the source's journal says {:?}",
                    self.source_standing()
                );
                Side::Destination
            }
            other => panic!("no side has the whole workload and its address: {other:?}"),
        }
    }
}
