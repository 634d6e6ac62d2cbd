//! The link: two ordered streams that may end at any moment. What was sent before
//! the end arrives, or the rest of it is lost; nothing is altered or reordered.

use std::collections::VecDeque;

/// What is said on it, as far as the state machines care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    Offer,
    Accepted,
    RoundEnd,
    RoundAcked,
    Freezing,
    TakenOver,
    FinalState,
    Ready,
    Commit,
    Resumed,
    NotResumed,
    Drained,
    Abort,
    Failed,
}

/// What a side hears when it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The next message.
    Message(Say),
    /// Nothing yet.
    Silence,
    /// The link is over, and everything that came over it was heard.
    End,
}

/// Both directions.
#[derive(Clone, Debug, Default)]
pub struct Link {
    to_source: VecDeque<Say>,
    to_destination: VecDeque<Say>,
    is_over: bool,
}

impl Link {
    pub fn send_to_destination(&mut self, say: Say) {
        if !self.is_over {
            self.to_destination.push_back(say);
        }
    }

    pub fn send_to_source(&mut self, say: Say) {
        if !self.is_over {
            self.to_source.push_back(say);
        }
    }

    pub fn at_source(&mut self) -> Heard {
        heard(&mut self.to_source, self.is_over)
    }

    pub fn at_destination(&mut self) -> Heard {
        heard(&mut self.to_destination, self.is_over)
    }

    /// The source closes it or dies: what it said still arrives, nobody listens there.
    pub fn source_leaves(&mut self) {
        self.is_over = true;
        self.to_source.clear();
    }

    /// The destination closes it or dies.
    pub fn destination_leaves(&mut self) {
        self.is_over = true;
        self.to_destination.clear();
    }

    /// The cable: what is on its way is lost.
    pub fn cut(&mut self) {
        *self = Link { is_over: true, ..Link::default() };
    }
}

fn heard(from: &mut VecDeque<Say>, is_over: bool) -> Heard {
    match from.pop_front() {
        Some(say) => Heard::Message(say),
        None if is_over => Heard::End,
        None => Heard::Silence,
    }
}
