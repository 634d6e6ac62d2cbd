//! What crosses the network between the two hosts of a migration, and how.
//!
//! [`units`] and [`page`] are the vocabulary; [`wire`] turns messages and page
//! chunks into bytes, with limits, and back; [`link`] is the seam the engine
//! sees; [`quic`] is the one implementation that leaves the process.

pub mod link;
pub mod page;
pub mod plain;
pub mod quic;
pub mod units;
pub mod wire;
