//! Bytes on the wire: the control messages, the page frames, and their limits.

pub mod blob;
pub mod byte_array;
pub mod codec;
pub mod compress;
pub mod control;
pub mod finding;
pub mod frame;
