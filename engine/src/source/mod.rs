//! The source: where the workload runs until the destination's Resumed.

mod account;
mod along;
mod clock;
mod conversation;
mod driver;
mod dump_cost;
mod experience;
mod final_state;
mod forecast;
pub mod keeper;
mod network;
mod observer;
mod pages;
mod plan;
pub mod recovery;
pub mod state;
mod workload;

pub use driver::Source;
pub use dump_cost::TreeCost;
pub use forecast::LocalCost;
pub use network::SourceNetwork;
pub use observer::{NoObserver, Observer, Progress};
pub use plan::{Finished, SourceParts, SourcePlan};
