//! A process tree that knows what each of its pages must hold.
//!
//! Every page carries its index, its version and content derived from both, so
//! a page that is stale, lost, torn or of another process is noticed
//! ([`page`]). Writers dirty the working set at a set rate, a verifier walks
//! through all memory all the time ([`memory`]), and a TCP server tells how it
//! stands ([`server`], [`wire`]). The processes of the tree talk through one
//! shared page of counters ([`board`]).
//!
//! It is built to be carried by CRIU: threads and blocking sockets only, no
//! descriptor beyond 0-2 and sockets, no standard stream used but for the last
//! words of a workload that found its memory wrong.

mod board;
mod client;
mod memory;
mod page;
mod pulse;
mod server;
mod tree;
mod wire;

pub use client::Client;
pub(crate) use client::exchange;
pub use page::Content;
pub use pulse::Watching;
pub use tree::{Options, Quantities, run};
pub use wire::{Reply, Request};

/// The exit code of a workload that found its memory wrong.
pub const EXIT_MEMORY_WRONG: i32 = 86;
