//! The workload's network identity: its address, who hears about the move, and
//! what the kernel must not answer meanwhile.
//!
//! Everything here opens its sockets and looks things up *before* the freeze, so
//! that inside it one message to the kernel is enough. A socket stays in the
//! network namespace in which it was opened; [`namespace::within`] opens one in
//! somebody else's.

pub mod address;
pub mod announce;
pub mod connections;
pub mod hold;
pub mod hooks;
pub mod interface;
pub mod namespace;
pub mod netlink;
pub mod nft;
mod nft_rule;
