//! A whole migration where nothing can be preloaded into CRIU.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn a_migration_without_the_preloaded_object_says_so_and_is_right() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/var/lib/ferry/criu/bin/criu").exists() {
        println!("skipped: needs root and a private CRIU (`ferry setup`)");
        return;
    }
    // The demo's workload checks every page, its client every reply.
    let demo = Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(["demo", "--json", "--memory", "64M", "--working-set", "16M", "--dirty-rate", "20M"])
        .env("FERRY_PRELOAD", "off")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success(), "{errors}");
    let reports: Value = serde_json::from_slice(&demo.stdout).unwrap();
    let report = &reports[0];
    assert_eq!(report["outcome"], "completed", "{report}");
    let notes = report["notes"].as_array().unwrap();
    let said = notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains("--lazy-pages")));
    assert!(said, "{notes:?}");
}
