//! Bytes as one array: serde's own `Vec<u8>` goes through the serializer byte by
//! byte, which for image files would cost milliseconds inside the freeze. For
//! `#[serde(with = "…")]`.

use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;

/// As one array.
pub fn serialize<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(data)
}

/// From one array; its length is checked against the codec's limit first.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    struct Owned;
    impl Visitor<'_> for Owned {
        type Value = Vec<u8>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }
        fn visit_bytes<E: Error>(self, data: &[u8]) -> Result<Vec<u8>, E> {
            Ok(data.to_vec())
        }
        fn visit_byte_buf<E: Error>(self, data: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(data)
        }
    }
    deserializer.deserialize_byte_buf(Owned)
}
