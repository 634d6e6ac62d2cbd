//! Pre-flight against real processes, each with one thing that CRIU cannot carry.
//! Where a CRIU is at hand, its dump must fail exactly where a finding blocks.

mod descriptors;
mod destination;
mod freezer;
mod mounts;
mod scenario;
mod sockets;
mod tasks;
