//! A driver of the source's state machine, one indivisible deed at a time, so that
//! a death can come between any two. What it does in which state, and in which
//! order, is that of `engine/src/source/driver.rs`.

use crate::host::{Address, Criu, SourceHost};
use crate::link::{Heard, Link, Say};
use ferry_engine::journal::{Entry, SourceRecord, TaskId};
use ferry_engine::source::state::{SourceAction, SourceInput, SourceState};
use std::collections::VecDeque;

/// The source's two processes.
pub const TASKS: [TaskId; 2] =
    [TaskId { pid: 10, start_time: 1, namespace: 0 }, TaskId { pid: 11, start_time: 1, namespace: 0 }];
/// The source's engine.
pub const ENGINE: TaskId = TaskId { pid: 1, start_time: 1, namespace: 0 };

/// What the source touches.
pub struct Surroundings<'a> {
    pub host: &'a mut SourceHost,
    pub journal: &'a mut Vec<Entry<SourceRecord>>,
    pub link: &'a mut Link,
}

/// Whether a turn changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Done,
    Idle,
}

/// The next deed.
#[derive(Clone, Debug)]
enum Deed {
    Say(Say),
    Freeze,
    TakeAddressOff,
    Dump,
    JournalHolding,
    Pin(usize),
    SeeThatCriuHeldAllAlong,
    JournalCommitting,
    GiveAddressBack,
    CriuLetsGo,
    Continue,
    Act(SourceAction),
    Happens(SourceInput),
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Source {
    pub state: SourceState,
    todo: VecDeque<Deed>,
    /// How many rounds the strategy wants.
    rounds: u32,
}

impl Source {
    /// Writes Started, and is about to offer.
    pub fn start(rounds: u32, journal: &mut Vec<Entry<SourceRecord>>) -> Source {
        write(
            journal,
            SourceRecord::Started {
                target: "a workload".into(),
                to: "there".into(),
                engine: ENGINE,
                address: None,
                images: "/nonexistent".into(),
                aftercare: None,
            },
        );
        let mut source = Source { state: SourceState::Preparing, todo: VecDeque::new(), rounds };
        source.enter();
        source
    }

    /// The next deed, or the next message where one is waited for.
    pub fn turn(&mut self, around: &mut Surroundings) -> Turn {
        match self.todo.pop_front() {
            Some(deed) => {
                self.perform(deed, around);
                Turn::Done
            }
            None => self.listen(around),
        }
    }

    /// The next deed goes wrong, or what is waited for does not come in time.
    pub fn fail(&mut self, around: &mut Surroundings) -> Turn {
        match self.todo.front() {
            // The disk is full. The driver says so, and goes on.
            Some(Deed::Act(
                SourceAction::JournalFreezing
                | SourceAction::JournalInDoubt(_)
                | SourceAction::JournalCompleted
                | SourceAction::JournalAborted(_),
            )) => {
                self.todo.pop_front();
            }
            Some(Deed::Dump) => {
                around.host.criu_lets_go(Criu::Away);
                self.happens(SourceInput::Failure("the dump failed".into()));
            }
            Some(
                Deed::Say(_)
                | Deed::Freeze
                | Deed::TakeAddressOff
                | Deed::JournalHolding
                | Deed::JournalCommitting
                | Deed::Pin(_)
                | Deed::SeeThatCriuHeldAllAlong,
            ) => self.happens(SourceInput::Failure("it failed".into())),
            Some(
                Deed::GiveAddressBack | Deed::CriuLetsGo | Deed::Continue | Deed::Act(_) | Deed::Happens(_),
            ) => {
                return Turn::Idle;
            }
            None if self.state == SourceState::InDoubt || self.state.is_end() => return Turn::Idle,
            None => self.happens(SourceInput::Failure("a deadline passed".into())),
        }
        Turn::Done
    }

    /// Waits for an answer to AskOutcome.
    pub fn is_asking(&self) -> bool {
        self.state == SourceState::InDoubt && self.todo.is_empty()
    }

    /// Nothing left to do here.
    pub fn is_done(&self) -> bool {
        self.state.is_end() && self.todo.is_empty()
    }

    /// Steps the real state machine. What was still to be done is overtaken.
    pub fn happens(&mut self, input: SourceInput) {
        let (next, actions) = self.state.clone().step(input).expect("this driver makes no illegal step");
        let entered = next != self.state;
        self.state = next;
        self.todo = actions.into_iter().map(Deed::Act).collect();
        if entered {
            self.enter();
        }
    }

    /// What each state does by itself, before it waits.
    fn enter(&mut self) {
        self.todo.extend(match self.state {
            SourceState::Preparing => vec![Deed::Say(Say::Offer)],
            SourceState::PreCopy { .. } => vec![Deed::Say(Say::RoundEnd)],
            SourceState::Freezing => vec![Deed::Say(Say::Freezing), Deed::Freeze],
            SourceState::StopAndCopy => vec![
                Deed::Dump,
                Deed::JournalHolding,
                Deed::Pin(0),
                Deed::Pin(1),
                Deed::SeeThatCriuHeldAllAlong,
                Deed::Say(Say::FinalState),
            ],
            _ => vec![],
        });
    }

    /// What each state waits for.
    fn listen(&mut self, around: &mut Surroundings) -> Turn {
        if self.state == SourceState::InDoubt || self.state.is_end() {
            return Turn::Idle;
        }
        let said = match around.link.at_source() {
            Heard::Silence => return Turn::Idle,
            Heard::End if self.state == SourceState::Committing => {
                self.happens(SourceInput::Silence("the link is gone".into()));
                return Turn::Done;
            }
            Heard::End => {
                self.happens(SourceInput::Failure("the link is gone".into()));
                return Turn::Done;
            }
            Heard::Message(said) => said,
        };
        let input = match (&self.state, said) {
            (SourceState::Preparing, Say::Accepted) => self.decide(0, SourceInput::Accepted),
            (SourceState::PreCopy { round }, Say::RoundAcked) => {
                self.decide(round.0 + 1, SourceInput::RoundDone)
            }
            (SourceState::Freezing, Say::TakenOver) => {
                self.todo.extend([Deed::TakeAddressOff, Deed::Happens(SourceInput::Frozen)]);
                return Turn::Done;
            }
            (SourceState::StopAndCopy, Say::RoundAcked) => SourceInput::FinalSent,
            (SourceState::AwaitingReady, Say::Ready) => {
                self.todo.extend([Deed::JournalCommitting, Deed::Happens(SourceInput::Ready)]);
                return Turn::Done;
            }
            (SourceState::Committing, Say::Resumed) => SourceInput::Resumed,
            // It wrote down Discarded before it said either.
            (SourceState::Committing, Say::NotResumed | Say::Failed) => {
                SourceInput::NotResumed("it says so".into())
            }
            (SourceState::Committing, other) => SourceInput::Silence(format!("{other:?} out of turn")),
            (_, other) => SourceInput::Failure(format!("{other:?} out of turn")),
        };
        self.happens(input);
        Turn::Done
    }

    /// The strategy: one more round, or the freeze.
    fn decide(&self, rounds_done: u32, one_more: SourceInput) -> SourceInput {
        if rounds_done < self.rounds { one_more } else { SourceInput::FreezeDecided }
    }

    fn perform(&mut self, deed: Deed, around: &mut Surroundings) {
        match deed {
            Deed::Say(say) => around.link.send_to_destination(say),
            Deed::Freeze => around.host.freeze(),
            Deed::TakeAddressOff => around.host.address = Address::Away,
            Deed::Dump if around.host.criu != Criu::Holding => {
                self.happens(SourceInput::Failure("CRIU is gone".into()));
            }
            Deed::Dump => {}
            Deed::JournalHolding => write(around.journal, SourceRecord::Holding { tasks: TASKS.to_vec() }),
            Deed::JournalCommitting => write(around.journal, SourceRecord::Committing),
            Deed::Pin(task) => around.host.pin(task),
            Deed::SeeThatCriuHeldAllAlong if around.host.criu != Criu::Holding => {
                self.happens(SourceInput::Failure("CRIU died, so the images may be out of date".into()));
            }
            Deed::SeeThatCriuHeldAllAlong => {}
            Deed::GiveAddressBack => around.host.address = Address::Here,
            Deed::CriuLetsGo => around.host.criu_lets_go(Criu::Away),
            Deed::Continue => around.host.continue_tasks(),
            Deed::Happens(input) => self.happens(input),
            Deed::Act(action) => self.act(action, around),
        }
    }

    fn act(&mut self, action: SourceAction, around: &mut Surroundings) {
        match action {
            SourceAction::JournalFreezing => {
                write(around.journal, SourceRecord::Freezing { tasks: TASKS.to_vec(), stopped: Vec::new() });
            }
            SourceAction::SendCommit => around.link.send_to_destination(Say::Commit),
            SourceAction::JournalInDoubt(cause) => write(around.journal, SourceRecord::InDoubt { cause }),
            SourceAction::RemoveTree => around.host.remove(),
            SourceAction::JournalCompleted => write(around.journal, SourceRecord::Completed),
            SourceAction::TellAbort(_) => {
                around.link.send_to_destination(Say::Abort);
                around.link.source_leaves();
            }
            SourceAction::Thaw => {
                for deed in [Deed::Continue, Deed::CriuLetsGo, Deed::GiveAddressBack] {
                    self.todo.push_front(deed);
                }
            }
            SourceAction::Disarm => {}
            SourceAction::JournalAborted(cause) => write(around.journal, SourceRecord::Aborted { cause }),
        }
    }
}

/// Appends a record.
pub fn write(journal: &mut Vec<Entry<SourceRecord>>, record: SourceRecord) {
    journal.push(Entry { at: 0, record });
}
