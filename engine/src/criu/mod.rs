//! CRIU: where it is, how it is talked to, and what is preloaded into it.

pub mod features;
pub mod install;
pub mod log;
pub(crate) mod proto;
pub mod provision;
pub mod rpc;
pub mod selftest;
pub mod shim;
