//! Every number that bears on throughput, with its reason.

use super::limiter::Limiter;
use crate::wire::compress::Compression;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// What the user may choose of a link.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// How page content is compressed.
    pub compression: Compression,
    /// Connections for pages, the first carrying the control stream too; 1 or more.
    pub connections: usize,
    /// Silence after which the peer counts as lost. Half of it is waited between
    /// keep-alives, so that a quiet migration lives on.
    pub idle_timeout: Duration,
    /// The rate limit of all page streams together.
    pub limiter: Option<Arc<Limiter>>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        LinkOptions {
            compression: Compression::Off,
            connections: 1,
            idle_timeout: Duration::from_secs(10),
            limiter: None,
        }
    }
}

/// The most that one stream, and one connection, may have under way: 16 MiB is
/// 10 Gbit/s × 13 ms. It bounds what a peer makes us buffer.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Page streams that a peer may have open on one connection.
const MAX_PAGE_STREAMS: u32 = 64;
/// The largest datagram that is probed for. quinn 0.11 sends 10 segments in one
/// call; 10 × 6550 B is the most that one UDP send can take, and beyond it
/// throughput collapses.
pub(super) const MAX_MTU: u16 = 6500;
/// Cubic's first window: a final round of a few MB must not be spent in slow start.
const INITIAL_WINDOW: u64 = 2 << 20;
/// Socket buffers: the kernel may give less (`net.core.rmem_max`).
pub(super) const SOCKET_BUFFER: usize = 8 << 20;

pub(super) fn transport(options: &LinkOptions) -> TransportConfig {
    let mut cubic = quinn::congestion::CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_MTU);
    // Fewer acknowledgements for a receiver that is busy storing pages.
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(10));
    let idle = IdleTimeout::try_from(options.idle_timeout).unwrap_or(VarInt::from_u32(10_000).into());
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .max_concurrent_uni_streams(MAX_PAGE_STREAMS.into())
        .max_concurrent_bidi_streams(4u32.into())
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(options.idle_timeout / 3))
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(cubic));
    config
}
