//! Page frames from arbitrary bytes: what decodes must encode to the same chunk.
#![no_main]

use bytes::Bytes;
use ferry_transport::wire::compress::Encoding;
use ferry_transport::wire::frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok((chunk, length)) = frame::decode(&Bytes::copy_from_slice(input)) {
        assert!(length <= input.len());
        let frame = frame::encode(&chunk, Encoding::Raw).expect("what was decoded keeps the rules");
        let again = [&frame.head[..], &frame.payload[..]].concat();
        let (same, _) = frame::decode(&again.into()).expect("what was encoded decodes");
        assert_eq!((same.runs, same.data), (chunk.runs, chunk.data));
    }
});
