//! Everything unsafe, and everything that talks to the kernel in numbers.
//!
//! One file a kernel interface; each offers a safe face. What depends on the
//! processor stands in `arch` alone.

pub mod arch;
pub mod arena;
pub mod core_scheduling;
pub mod fdpass;
pub mod held_packets;
pub mod inject;
pub mod landing;
pub mod packet;
pub mod pagemap_scan;
pub mod pidfd;
pub mod process_memory;
pub mod procfs;
pub mod ptrace;
pub mod scheduling;
pub mod socket_name;
pub mod tripwire;
pub mod twin;
pub mod uffd_fill;
pub mod userfaultfd;
