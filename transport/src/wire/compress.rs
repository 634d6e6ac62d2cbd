//! Compression of page content: the encodings, and the rule of when it pays.
//!
//! Compression makes a stream faster iff what leaves the compressor, counted in
//! uncompressed bytes, is more than what the network takes uncompressed:
//!
//! ```text
//!     min(S, r·R) > R · (1 + margin)        S  compressor's speed on this stream
//!                                           r  compression ratio of this content
//!                                           R  rate at which the network takes bytes
//! ```
//!
//! All three are measured on the stream itself ([`Advisor`]). S and r come from a
//! sample: one chunk in every [`SAMPLE_EVERY`] bytes is compressed both ways. R is
//! bytes divided by the time the stream *waited for the network*, not by elapsed
//! time: a stream whose source is slow has a fast network, and compressing for it
//! would only take CPU from the workload. While compressing, waiting can vanish
//! because the compressor is the slower part; R then keeps its last value, and
//! every [`PROBE_EVERY`] bytes some chunks go raw to measure it anew.

use crate::units::ByteRate;
use bytes::Bytes;
use std::time::Duration;

/// How the payload of a frame is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As it is.
    Raw = 0,
    /// One LZ4 block.
    Lz4 = 1,
    /// One zstd frame, level 1.
    Zstd = 2,
}

impl Encoding {
    pub(super) fn from_byte(byte: u8) -> Option<Encoding> {
        match byte {
            0 => Some(Encoding::Raw),
            1 => Some(Encoding::Lz4),
            2 => Some(Encoding::Zstd),
            _ => None,
        }
    }
}

/// The operator's choice of compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Never.
    #[default]
    Off,
    /// When it makes the stream faster.
    Auto,
    /// Always LZ4.
    Lz4,
    /// Always zstd, level 1.
    Zstd,
}

const ZSTD_LEVEL: i32 = 1;

/// The content compressed, or `None` where raw is asked for or is no larger.
pub(super) fn compress(encoding: Encoding, data: &Bytes) -> Option<Bytes> {
    let compressed = match encoding {
        Encoding::Raw => return None,
        _ if data.is_empty() => return None,
        Encoding::Lz4 => lz4_flex::block::compress(data),
        Encoding::Zstd => zstd::bulk::compress(data, ZSTD_LEVEL).ok()?,
    };
    (compressed.len() < data.len()).then(|| Bytes::from(compressed))
}

/// The content of exactly `length` bytes; the buffer made for it is never larger.
pub(super) fn decompress(encoding: Encoding, payload: Bytes, length: usize) -> Result<Bytes, String> {
    let data = match encoding {
        Encoding::Raw => payload,
        Encoding::Lz4 => {
            let mut data = vec![0; length];
            let written = lz4_flex::block::decompress_into(&payload, &mut data).map_err(|e| e.to_string())?;
            data.truncate(written);
            Bytes::from(data)
        }
        Encoding::Zstd => Bytes::from(zstd::bulk::decompress(&payload, length).map_err(|e| e.to_string())?),
    };
    if data.len() == length { Ok(data) } else { Err(format!("{} bytes instead of {length}", data.len())) }
}

/// Bytes of content between two samples of speed and ratio.
pub const SAMPLE_EVERY: u64 = 32 << 20;
/// Bytes of content, while compressing, between two raw probes of the network.
pub const PROBE_EVERY: u64 = 64 << 20;
/// Bytes of content of one raw probe.
pub const PROBE_LENGTH: u64 = 4 << 20;
/// The advantage that compression must have: below it, CPU is worth more.
pub const MARGIN: f64 = 0.15;

/// What one compressor does to this stream's content.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Uncompressed bytes per second.
    pub speed: ByteRate,
    /// Uncompressed bytes per compressed byte.
    pub ratio: f64,
}

impl Sample {
    /// The rate, in uncompressed bytes, at which a network of rate `network` is
    /// fed through this compressor: min(S, r·R).
    pub fn rate_over(self, network: ByteRate) -> f64 {
        (self.speed.0 as f64).min(self.ratio * network.0 as f64)
    }
}

/// The encoding that feeds a network of this rate fastest.
pub fn fastest(network: ByteRate, lz4: Sample, zstd: Sample) -> Encoding {
    let raw = network.0 as f64 * (1.0 + MARGIN);
    let (lz4, zstd) = (lz4.rate_over(network), zstd.rate_over(network));
    if lz4.max(zstd) <= raw {
        Encoding::Raw
    } else if zstd > lz4 {
        Encoding::Zstd
    } else {
        Encoding::Lz4
    }
}

/// What to do with the next chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Encode it so.
    Use(Encoding),
    /// Compress it both ways, report that, and send whichever is to be used then.
    Sample,
}

/// Follows one page stream and says how to encode the next chunk.
#[derive(Debug)]
pub struct Advisor {
    choice: Compression,
    encoding: Encoding,
    network: Option<ByteRate>,
    until_sample: u64,
    until_probe: u64,
    probe_left: u64,
    wire: u64,
    waited: Duration,
}

impl Advisor {
    /// For a new stream.
    pub fn new(choice: Compression) -> Advisor {
        Advisor {
            choice,
            encoding: Encoding::Raw,
            network: None,
            // The first probe tells the network's rate, then a sample decides.
            until_sample: PROBE_LENGTH,
            until_probe: PROBE_EVERY,
            probe_left: 0,
            wire: 0,
            waited: Duration::ZERO,
        }
    }

    /// How to encode the next chunk.
    pub fn advise(&self) -> Advice {
        match self.choice {
            Compression::Off => Advice::Use(Encoding::Raw),
            Compression::Lz4 => Advice::Use(Encoding::Lz4),
            Compression::Zstd => Advice::Use(Encoding::Zstd),
            Compression::Auto if self.probe_left > 0 => Advice::Use(Encoding::Raw),
            Compression::Auto if self.until_sample == 0 && self.network.is_some() => Advice::Sample,
            Compression::Auto => Advice::Use(self.encoding),
        }
    }

    /// What a sample showed; the encoding to use from now on.
    pub fn sampled(&mut self, lz4: Sample, zstd: Sample) -> Encoding {
        self.until_sample = SAMPLE_EVERY;
        if let Some(network) = self.network {
            self.encoding = fastest(network, lz4, zstd);
        }
        self.encoding
    }

    /// What a chunk's sending took: its content, its bytes on the wire, the time
    /// that the stream spent inside `send` waiting for the network or the limiter.
    pub fn sent(&mut self, raw: u64, wire: u64, waited: Duration, elapsed: Duration) {
        if self.choice != Compression::Auto {
            return;
        }
        self.until_sample = self.until_sample.saturating_sub(raw);
        let probing = self.probe_left > 0;
        let network_bound = waited * 2 > elapsed;
        if self.encoding == Encoding::Raw || probing || network_bound {
            self.wire += wire;
            self.waited += waited;
        }
        if self.wire >= PROBE_LENGTH {
            let rate = crate::units::Bytes(self.wire).per(self.waited);
            // Never waited: faster than anything that a compressor could feed.
            self.network = Some(if rate.0 == 0 { ByteRate(u64::MAX) } else { rate });
            (self.wire, self.waited) = (0, Duration::ZERO);
        }
        if probing {
            self.probe_left = self.probe_left.saturating_sub(raw);
        } else if self.encoding != Encoding::Raw {
            self.until_probe = self.until_probe.saturating_sub(raw);
            if self.until_probe == 0 {
                self.until_probe = PROBE_EVERY;
                self.probe_left = PROBE_LENGTH;
                (self.wire, self.waited) = (0, Duration::ZERO);
            }
        }
    }
}

/// Compresses `data` with one encoder and takes the time.
pub(crate) fn sample(encoding: Encoding, data: &Bytes) -> Sample {
    let start = std::time::Instant::now();
    let length = compress(encoding, data).map_or(data.len(), |compressed| compressed.len());
    let speed = crate::units::Bytes(data.len() as u64).per(start.elapsed());
    Sample { speed, ratio: data.len() as f64 / length.max(1) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LZ4: Sample = Sample { speed: ByteRate(1_000_000_000), ratio: 2.0 };
    const ZSTD: Sample = Sample { speed: ByteRate(400_000_000), ratio: 3.0 };

    #[test]
    fn the_slower_the_network_the_stronger_the_compression() {
        assert_eq!(fastest(ByteRate(50_000_000), LZ4, ZSTD), Encoding::Zstd);
        assert_eq!(fastest(ByteRate(300_000_000), LZ4, ZSTD), Encoding::Lz4);
        assert_eq!(fastest(ByteRate(2_000_000_000), LZ4, ZSTD), Encoding::Raw);
        assert_eq!(fastest(ByteRate(u64::MAX), LZ4, ZSTD), Encoding::Raw);
        let random = Sample { ratio: 1.0, ..LZ4 };
        assert_eq!(fastest(ByteRate(1_000_000), random, random), Encoding::Raw);
    }

    const MIB: u64 = 1 << 20;

    /// Sends through a virtual network of `rate`, the compressors being LZ4 and ZSTD;
    /// which encodings it used for the last half.
    fn simulate(network: ByteRate, chunks: u32) -> Vec<Encoding> {
        let mut advisor = Advisor::new(Compression::Auto);
        let mut used = Vec::new();
        for _ in 0..chunks {
            let encoding = match advisor.advise() {
                Advice::Use(encoding) => encoding,
                Advice::Sample => advisor.sampled(LZ4, ZSTD),
            };
            let (ratio, speed) = match encoding {
                Encoding::Raw => (1.0, f64::MAX),
                Encoding::Lz4 => (LZ4.ratio, LZ4.speed.0 as f64),
                Encoding::Zstd => (ZSTD.ratio, ZSTD.speed.0 as f64),
            };
            let wire = (MIB as f64 / ratio) as u64;
            let transfer = crate::units::Bytes(wire).at(network).unwrap();
            let compressing = Duration::from_secs_f64(MIB as f64 / speed);
            let waited = transfer.saturating_sub(compressing);
            advisor.sent(MIB, wire, waited, waited + compressing);
            used.push(encoding);
        }
        used.split_off(chunks as usize / 2)
    }

    fn share(used: &[Encoding], encoding: Encoding) -> f64 {
        used.iter().filter(|used| **used == encoding).count() as f64 / used.len() as f64
    }

    #[test]
    fn auto_settles_on_what_is_fastest_and_keeps_probing() {
        let slow = simulate(ByteRate(50_000_000), 1000);
        assert!(share(&slow, Encoding::Zstd) > 0.9, "{}", share(&slow, Encoding::Zstd));
        assert!(slow.contains(&Encoding::Raw));
        // The compressor is then the slower part: waiting vanishes, the choice stays.
        let middle = simulate(ByteRate(700_000_000), 1000);
        assert!(share(&middle, Encoding::Lz4) > 0.9, "{}", share(&middle, Encoding::Lz4));
        let fast = simulate(ByteRate(3_000_000_000), 1000);
        assert!(share(&fast, Encoding::Raw) > 0.99);
    }

    #[test]
    fn a_stream_that_never_waits_stays_raw() {
        let mut advisor = Advisor::new(Compression::Auto);
        for _ in 0..200 {
            if advisor.advise() == Advice::Sample {
                advisor.sampled(LZ4, ZSTD);
            }
            assert_ne!(advisor.encoding, Encoding::Lz4);
            advisor.sent(MIB, MIB, Duration::ZERO, Duration::from_micros(100));
        }
        assert_eq!(advisor.advise(), Advice::Use(Encoding::Raw));
    }
}
