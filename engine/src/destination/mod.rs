//! The destination: where the workload comes back, and lives from the commit on.

mod driver;
mod handover;
pub(crate) mod images;
mod network;
mod numbers;
mod pages;
mod receiver;
pub mod recovery;
pub mod requests;
pub mod state;

pub use handover::{HandoverMaker, PageHandover, PagerHandover, Serving};
pub use receiver::{Receiver, ReceiverEvent, ReceiverPlan, RestorerMaker};
