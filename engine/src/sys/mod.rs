//! Everything unsafe, and everything that talks to the kernel in numbers.
//!
//! One file a kernel interface; each offers a safe face. What depends on the
//! processor stands in `arch` alone.

pub mod arena;
pub mod fdpass;
pub mod uffd_fill;
