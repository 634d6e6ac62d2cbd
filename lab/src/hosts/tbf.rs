//! The token bucket filter that limits a link, encoded for rtnetlink.
//!
//! `netlink-packet-route` has no type for it. The layout is the kernel's
//! `struct tc_tbf_qopt` (include/uapi/linux/pkt_sched.h), native byte order:
//!
//! ```text
//! tc_ratespec rate      { u8 cell_log, u8 linklayer, u16 overhead,
//!                         i16 cell_align, u16 mpu, u32 bytes_per_second }
//! tc_ratespec peakrate  (the same; zero: no peak rate)
//! u32 limit             bytes that may wait for tokens
//! u32 buffer            bucket depth in scheduler ticks; TCA_TBF_BURST overrides it
//! u32 mtu               peak rate's bucket; unused
//! ```

use ferry_transport::units::ByteRate;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use std::time::Duration;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: tells the kernel that we send no rate table.
const LINKLAYER_ETHERNET: u8 = 1;

/// How long a burst may run at full speed before the limit holds.
const BURST: Duration = Duration::from_millis(2);
/// How long a packet may wait in the queue before it is dropped.
const LATENCY: Duration = Duration::from_millis(25);
/// The smallest bucket: some full packets.
const MIN_BURST_BYTES: u64 = 16 * 1024;

/// The message that makes `rate` the root queueing discipline of the link with
/// this index.
pub fn root_limit(link_index: u32, rate: ByteRate) -> TcMessage {
    let mut message = TcMessage::with_index(link_index as i32);
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("tbf".to_string()));
    message.attributes.push(TcAttribute::Options(options(rate)));
    message
}

fn options(rate: ByteRate) -> Vec<TcOption> {
    let burst = during(rate, BURST).max(MIN_BURST_BYTES).min(u64::from(u32::MAX)) as u32;
    let limit = (u64::from(burst) + during(rate, LATENCY)).min(u64::from(u32::MAX)) as u32;
    let mut parameters = Vec::with_capacity(36);
    parameters.extend([0, LINKLAYER_ETHERNET]);
    parameters.extend([0u8; 6]);
    parameters.extend((rate.0.min(u64::from(u32::MAX)) as u32).to_ne_bytes());
    parameters.extend([0u8; 12]);
    parameters.extend(limit.to_ne_bytes());
    parameters.extend(burst.to_ne_bytes());
    parameters.extend(0u32.to_ne_bytes());
    let mut options = vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters)),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst.to_ne_bytes().to_vec())),
    ];
    if rate.0 > u64::from(u32::MAX) {
        options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate.0.to_ne_bytes().to_vec())));
    }
    options
}

/// The bytes that `rate` passes in `time`.
fn during(rate: ByteRate, time: Duration) -> u64 {
    (rate.0 as f64 * time.as_secs_f64()) as u64
}
