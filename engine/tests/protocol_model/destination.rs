//! A driver of the destination's state machine, one indivisible deed at a time, as
//! `engine/src/destination/driver.rs` and its steps have them.

use crate::host::{Address, Copy, DestinationHost};
use crate::link::{Heard, Link, Say};
use crate::source::Turn;
use ferry_engine::destination::recovery::ReleaseTrace;
use ferry_engine::destination::state::{DestinationAction, DestinationInput, DestinationState};
use ferry_engine::journal::{DestinationRecord, Entry, TaskId};
use std::collections::VecDeque;

/// The copy's processes.
pub const COPY: [TaskId; 2] =
    [TaskId { pid: 20, start_time: 1, namespace: 0 }, TaskId { pid: 21, start_time: 1, namespace: 0 }];

/// What the destination touches.
pub struct Surroundings<'a> {
    pub host: &'a mut DestinationHost,
    pub journal: &'a mut Vec<Entry<DestinationRecord>>,
    pub link: &'a mut Link,
}

/// The next deed.
#[derive(Clone, Debug)]
enum Deed {
    Say(Say),
    JournalTakingOver,
    TakeAddress,
    JournalRestoring,
    Build,
    JournalReleased,
    TellCriuToLetGo,
    JournalResumed,
    RemoveCopy,
    TakeAddressOff,
    Act(DestinationAction),
    Happens(DestinationInput),
}

/// The driver of one migration, inside a receiver.
#[derive(Clone, Debug)]
pub struct Destination {
    pub state: DestinationState,
    receiver: TaskId,
    todo: VecDeque<Deed>,
}

impl Destination {
    /// An offer came to `receiver`.
    pub fn start(receiver: TaskId) -> Destination {
        let mut destination =
            Destination { state: DestinationState::Negotiating, receiver, todo: VecDeque::new() };
        destination.enter();
        destination
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
        use DestinationAction as A;
        use DestinationInput as I;
        let failure = I::Failure("it failed".into());
        match self.todo.front() {
            // The disk is full. The driver says so, and goes on.
            Some(Deed::JournalResumed | Deed::Act(A::JournalDiscarded(_) | A::JournalInDoubt(_))) => {
                self.todo.pop_front();
            }
            Some(Deed::Act(A::JournalDrained)) => {
                self.todo.pop_front();
                around.host.log = ReleaseTrace::Silent;
            }
            // Nothing has run yet, and now nothing will.
            Some(Deed::Act(A::JournalCommitted) | Deed::JournalReleased) => {
                self.happens(I::NeverRan("the journal cannot be written".into()));
            }
            Some(Deed::TellCriuToLetGo) => {
                around.host.copy = Copy::Absent;
                self.happens(I::NeverRan("CRIU failed, and every process of the copy is gone".into()));
            }
            Some(
                Deed::Say(_)
                | Deed::JournalTakingOver
                | Deed::TakeAddress
                | Deed::JournalRestoring
                | Deed::Build
                | Deed::Happens(I::OfferAccepted | I::Assembled)
                | Deed::Act(A::JournalAccepted | A::SendAccepted | A::JournalPrepared | A::SendReady),
            ) => self.happens(failure),
            Some(Deed::RemoveCopy | Deed::TakeAddressOff | Deed::Act(_) | Deed::Happens(_)) => {
                return Turn::Idle;
            }
            None => match self.state {
                DestinationState::Receiving | DestinationState::Prepared => self.happens(failure),
                DestinationState::Resuming => {
                    self.happens(I::ReleaseUnknown("CRIU does not say that the copy runs".into()));
                }
                _ => return Turn::Idle,
            },
        }
        Turn::Done
    }

    /// Nothing left to do here.
    pub fn is_done(&self) -> bool {
        self.state.is_end() && self.todo.is_empty()
    }

    /// Steps the real state machine. What was still to be done is overtaken.
    fn happens(&mut self, input: DestinationInput) {
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
        use DestinationInput as I;
        use DestinationState as S;
        self.todo.extend(match self.state {
            S::Negotiating => vec![Deed::Happens(I::OfferAccepted)],
            S::Assembling => vec![Deed::Happens(I::Assembled)],
            S::Restoring => {
                vec![Deed::JournalRestoring, Deed::Build, Deed::Happens(I::Held)]
            }
            S::Resuming => vec![Deed::JournalReleased, Deed::TellCriuToLetGo],
            S::Brownout => vec![Deed::Happens(I::Drained)],
            _ => vec![],
        });
    }

    /// What each state waits for. In `Prepared` only Commit leads on.
    fn listen(&mut self, around: &mut Surroundings) -> Turn {
        match self.state {
            DestinationState::Receiving | DestinationState::Prepared => {}
            DestinationState::Resuming => return self.await_release(around),
            _ => return Turn::Idle,
        }
        let failure = |why: String| DestinationInput::Failure(why);
        match (&self.state, around.link.at_destination()) {
            (_, Heard::Silence) => return Turn::Idle,
            (_, Heard::End) => self.happens(failure("the source is gone".into())),
            (DestinationState::Receiving, Heard::Message(Say::RoundEnd)) => {
                self.todo.push_back(Deed::Say(Say::RoundAcked));
            }
            (DestinationState::Receiving, Heard::Message(Say::Freezing)) => {
                self.todo.push_back(Deed::JournalTakingOver);
                self.todo.push_back(Deed::TakeAddress);
                self.todo.push_back(Deed::Say(Say::TakenOver));
            }
            (DestinationState::Receiving, Heard::Message(Say::FinalState)) => {
                self.todo.push_back(Deed::Say(Say::RoundAcked));
                self.todo.push_back(Deed::Happens(DestinationInput::FinalStateReceived));
            }
            (DestinationState::Prepared, Heard::Message(Say::Commit)) => {
                self.happens(DestinationInput::Commit);
            }
            (_, Heard::Message(other)) => self.happens(failure(format!("{other:?}"))),
        }
        Turn::Done
    }

    /// CRIU was told to let the copy run.
    fn await_release(&mut self, around: &mut Surroundings) -> Turn {
        match (around.host.copy, around.host.log) {
            (Copy::LettingGo, _) => return Turn::Idle,
            (Copy::Running, ReleaseTrace::Resumed) => {
                self.todo.push_back(Deed::JournalResumed);
                self.todo.push_back(Deed::Happens(DestinationInput::Running));
            }
            _ => self.happens(DestinationInput::ReleaseUnknown("CRIU is gone".into())),
        }
        Turn::Done
    }

    fn perform(&mut self, deed: Deed, around: &mut Surroundings) {
        match deed {
            Deed::Say(say) => around.link.send_to_source(say),
            Deed::JournalTakingOver => write(around.journal, DestinationRecord::TakingOver),
            Deed::JournalRestoring => {
                write(around.journal, DestinationRecord::Restoring { pids: vec![20, 21] });
            }
            Deed::TakeAddress => around.host.address = Address::Here,
            Deed::Build => around.host.copy = Copy::Held,
            Deed::JournalReleased => write(around.journal, DestinationRecord::Released),
            Deed::TellCriuToLetGo if around.host.copy == Copy::Held => {
                around.host.copy = Copy::LettingGo;
            }
            Deed::TellCriuToLetGo => {
                self.happens(DestinationInput::NeverRan("CRIU is gone, and the copy with it".into()));
            }
            Deed::JournalResumed => write(around.journal, DestinationRecord::Resumed),
            Deed::RemoveCopy => around.host.copy = Copy::Absent,
            Deed::TakeAddressOff => around.host.address = Address::Away,
            Deed::Happens(input) => self.happens(input),
            Deed::Act(action) => self.act(action, around),
        }
    }

    fn act(&mut self, action: DestinationAction, around: &mut Surroundings) {
        use DestinationAction as A;
        use DestinationRecord as R;
        match action {
            A::JournalAccepted => write(
                around.journal,
                R::Accepted {
                    target: "a workload".into(),
                    from: "there".into(),
                    engine: self.receiver,
                    move_ip: Some("192.0.2.7/24@eth0".into()),
                },
            ),
            A::SendAccepted => around.link.send_to_source(Say::Accepted),
            A::JournalPrepared => write(around.journal, R::Prepared { tasks: COPY.to_vec() }),
            A::SendReady => around.link.send_to_source(Say::Ready),
            A::JournalCommitted => write(around.journal, R::Committed),
            A::SendResumed => around.link.send_to_source(Say::Resumed),
            A::JournalDrained => {
                write(around.journal, R::Drained);
                around.link.send_to_source(Say::Drained);
                // CRIU's log goes with the images.
                around.host.log = ReleaseTrace::Silent;
            }
            A::JournalDiscarded(cause) => write(around.journal, R::Discarded { cause }),
            A::JournalInDoubt(cause) => write(around.journal, R::InDoubt { cause }),
            A::Discard => {
                self.todo.push_front(Deed::TakeAddressOff);
                self.todo.push_front(Deed::RemoveCopy);
            }
            A::SendFailed(_) => {
                around.link.send_to_source(Say::Failed);
                around.link.destination_leaves();
            }
            A::SendNotResumed(_) => {
                around.link.send_to_source(Say::NotResumed);
                around.link.destination_leaves();
            }
        }
    }
}

/// Appends a record.
pub fn write(journal: &mut Vec<Entry<DestinationRecord>>, record: DestinationRecord) {
    journal.push(Entry { at: 0, record });
}
