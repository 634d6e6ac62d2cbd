//! What the application tests share: a lab with a way to move a process tree
//! from one host to the other ([`rig`]), and what is only theirs of the clients
//! that notice a lost, repeated or wrong reply ([`counter`]).
#![allow(dead_code, reason = "each test uses its part")]

pub mod counter;
pub mod dock;
pub mod rig;
pub mod trial;

#[allow(unused_imports, reason = "the fault tests use it through their trial")]
pub use rig::Rig;
