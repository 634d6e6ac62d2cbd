//! A client that measures how long it waits for each reply of a workload.
//!
//! Several connections, each in a closed loop: one request, its reply, a short
//! pause. The gap of a reply is the time since the reply before it on the same
//! connection, so it contains the pause: with nothing wrong it is the pause
//! and one round trip. A frozen or moving workload shows as one long gap.

mod measure;
mod run;

pub use measure::{Bucket, ConnectionResult, ProbeResult};
pub use run::{Options, Probe, main};
