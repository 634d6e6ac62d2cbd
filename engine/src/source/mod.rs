//! The source: where the workload runs until the destination's Resumed.

mod clock;
mod driver;
pub mod dump_cost;
mod final_state;
pub mod keeper;
mod network;
mod observer;
mod pages;
pub mod recovery;
pub mod state;

pub use driver::{Finished, Source, SourceParts, SourcePlan};
pub use network::SourceNetwork;
pub use observer::{NoObserver, Observer, Progress};
