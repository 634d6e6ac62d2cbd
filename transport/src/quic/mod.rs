//! The link over QUIC: TLS 1.3, both sides authenticated by pinned certificates.
//!
//! `identity` is who we are, `trust` whom we let in, `pair` how one comes to
//! know the other, `tls` the handshake's rules; `endpoint` makes links, `link` is
//! one, `tuning` has every number that bears on throughput, `limiter` the
//! `--max-bandwidth`, `streams` what each stream carries.

pub mod bare;
mod endpoint;
pub mod identity;
mod limiter;
mod link;
pub mod pair;
mod streams;
mod tls;
pub mod trust;
mod tuning;

pub use endpoint::{QuicConnector, QuicListener};
pub use identity::{Fingerprint, Identity};
pub use limiter::Limiter;
pub use trust::Trust;
pub use tuning::LinkOptions;
