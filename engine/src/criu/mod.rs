//! CRIU: where it is, how it is talked to, and what is preloaded into it.

pub mod log;
pub(crate) mod proto;
pub mod rpc;
pub mod shim;
