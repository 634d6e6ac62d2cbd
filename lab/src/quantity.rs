//! Reading quantities the way people type them: `1G`, `50M`, `1gbit`.

use ferry_transport::units::{ByteRate, Bytes};

/// Parses a size: a whole or decimal number with an optional suffix `K`, `M`,
/// `G` or `T` (powers of 1024; `KiB`, `KB` and the like mean the same).
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` does not start with a number"))?;
    let unit: u64 = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        other => return Err(format!("unknown unit `{other}` in `{text}`: use K, M, G or T")),
    };
    let bytes = number * unit as f64;
    if bytes > 1e18 {
        return Err(format!("`{text}` is too large"));
    }
    Ok(Bytes(bytes as u64))
}

/// Parses bytes per second: as [`parse_bytes`], with an optional `/s` behind.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_byte_rate(text: &str) -> Result<ByteRate, String> {
    let text = text.trim();
    parse_bytes(text.strip_suffix("/s").unwrap_or(text)).map(|bytes| ByteRate(bytes.0))
}

/// Parses a link's speed in bits per second, as `tc` does: `1gbit`, `100mbit`,
/// `500kbit` (powers of 1000).
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_link_rate(text: &str) -> Result<ByteRate, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, suffix) = lower.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` does not start with a number"))?;
    let unit: f64 = match suffix.trim() {
        "bit" => 1.0,
        "kbit" | "k" => 1e3,
        "mbit" | "m" => 1e6,
        "gbit" | "g" => 1e9,
        _ => return Err(format!("unknown unit in `{text}`: use kbit, mbit or gbit")),
    };
    let bytes_per_second = number * unit / 8.0;
    if !(1e3..=1e12).contains(&bytes_per_second) {
        return Err(format!("`{text}` is not a usable link speed (8 kbit to 8 Tbit)"));
    }
    Ok(ByteRate(bytes_per_second as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_are_read_as_typed() {
        assert_eq!(parse_bytes("1G"), Ok(Bytes(1 << 30)));
        assert_eq!(parse_bytes("1.5 MiB"), Ok(Bytes(1_572_864)));
        assert_eq!(parse_bytes("4096"), Ok(Bytes(4096)));
        assert_eq!(parse_byte_rate("50M/s"), Ok(ByteRate(50 << 20)));
        assert_eq!(parse_link_rate("1gbit"), Ok(ByteRate(125_000_000)));
        for wrong in ["", "G", "1X", "1e9999", "-1", "99999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert!(parse_link_rate("1").is_err());
    }
}
