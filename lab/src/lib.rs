//! Test hosts, self-checking workloads and probing clients.
//!
//! Used by `ferry demo`, by the integration tests and by the benches. The
//! parts:
//!
//! * [`hosts`]: several "machines" on this one, each with namespaces of its own;
//! * [`workload`]: a process tree that knows what each of its pages must hold;
//! * [`probe`]: a client that measures how long it waits for each reply;
//! * [`apps`]: real servers as workloads, and clients that check every reply;
//! * [`docker`]: Docker daemons on hosts, and images made on the spot.

pub mod apps;
pub mod docker;
pub mod hosts;
pub mod probe;
pub mod quantity;
mod sys;
pub mod workload;
