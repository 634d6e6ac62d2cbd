//! Control messages from arbitrary bytes. The input is a kind byte and content,
//! framed with the right length and checksum, so that the decoder is reached.
#![no_main]

use bytes::{BufMut, BytesMut};
use ferry_transport::wire::codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = codec::decode(&mut BytesMut::from(input));
    let Some((kind, content)) = input.split_first() else { return };
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(content.len() as u32);
    bytes.put_u8(*kind);
    bytes.put_u32_le(codec::checksum(*kind, content));
    bytes.put_slice(content);
    if let Ok(Some(message)) = codec::decode(&mut bytes) {
        let again = codec::encode(&message).expect("what was decoded can be encoded");
        assert_eq!(codec::decode(&mut BytesMut::from(&again[..])), Ok(Some(message)));
    }
});
