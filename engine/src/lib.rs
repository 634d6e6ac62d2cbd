//! The engine: everything that a live migration does on either host.

pub mod check;
pub mod checkpoints;
pub mod companion;
pub mod criu;
pub mod destination;
pub mod docker;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod images;
pub mod journal;
pub mod lazy;
pub mod memory;
pub mod net;
pub mod page_store;
pub mod report;
pub mod source;
pub mod strategy;
pub mod sys;
pub mod target;

/// The product's version, for reports and greetings.
pub const REVISION: &str = env!("CARGO_PKG_VERSION");
