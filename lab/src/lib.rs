//! Test hosts, self-checking workloads and probing clients.
//!
//! Used by `ferry demo`, by the integration tests and by the benches. Three
//! parts that know nothing of each other:
//!
//! * [`hosts`]: several "machines" on this one, each with namespaces of its own;
//! * [`workload`]: a process tree that knows what each of its pages must hold;
//! * [`probe`]: a client that measures how long it waits for each reply.

pub mod hosts;
pub mod probe;
pub mod quantity;
mod sys;
pub mod workload;
