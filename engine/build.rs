//! Builds the object that is preloaded into CRIU.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=shim/shim.rs");
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(env("OUT_DIR")).join("ferry-shim.so");
    let status = Command::new(env("RUSTC"))
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "ferry_shim"])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "strip=symbols"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-lc", "--target", &env("TARGET")])
        .arg("-o")
        .arg(&out)
        .arg("shim/shim.rs")
        .status()
        .expect("rustc can be started");
    assert!(status.success(), "the preloaded object could not be built");
}
