//! What the application tests share: a lab with a way to move a process tree
//! from one host to the other ([`rig`]), and clients that notice a lost,
//! repeated or wrong reply ([`load`], [`redis`]).
#![allow(dead_code, reason = "each test uses its part")]

pub mod load;
pub mod redis;
pub mod rig;
pub mod trial;

#[allow(unused_imports, reason = "the fault tests use it through their trial")]
pub use rig::Rig;
