#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ferry_fuzz::targets::blobs(input));
