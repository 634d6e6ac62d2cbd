//! Real programs as workloads, and clients that notice a lost, repeated or wrong
//! reply.
//!
//! The programs are the distribution's: nothing is installed here. [`load`] drives
//! open connections; [`redis`] and [`nginx`] say how each server is started and
//! speak to it.

pub mod load;
pub mod nginx;
pub mod redis;
