//! Whatever comes from outside (a peer, CRIU, the kernel, a file) may be anything:
//! each parser of it is a target here, one function from bytes that must return.
//!
//! The same functions run in two ways. `cargo test -p ferry-fuzz` needs no more
//! than a stable compiler: valid inputs, made by the encoders, are mutated for a
//! second or two per target ([`run`]). `cargo fuzz` (nightly, `fuzz/libfuzzer`)
//! follows coverage. An input that once failed goes to `fuzz/corpus/<target>/`
//! and is tried first ever after.

pub mod mutate;
pub mod run;
pub mod targets;

/// One parser, or a few that see the same bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// As its folder in `fuzz/corpus` is called.
    pub name: &'static str,
    /// Valid inputs, to be mutated.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Must return, within bounds, whatever the bytes are.
    pub run: fn(&[u8]),
}
