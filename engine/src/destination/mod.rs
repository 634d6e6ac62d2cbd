//! The destination: where the workload comes back, and lives from the commit on.

mod along;
mod conversation;
mod copy;
mod driver;
mod handover;
pub(crate) mod images;
mod intake;
mod network;
mod numbers;
mod pages;
mod receiver;
pub mod recovery;
pub mod requests;
pub mod state;
mod workplace;

pub use handover::{HandoverMaker, PageHandover, PagerHandover, Serving};
pub use receiver::{CompanionMaker, Receiver, ReceiverEvent, ReceiverPlan, RestorerMaker};
