//! Finding, testing and making a CRIU, for real.

use ferry_engine::criu::features::{self, Feature};
use ferry_engine::criu::install::{self, DEFAULT_ROOT, InstallError, Wanted, WhenMissing};
use ferry_engine::criu::provision::{self, ProvisionError};
use ferry_engine::criu::selftest::PayloadFree;
use std::path::Path;

fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    eprintln!("skipped: needs root");
    false
}

fn say(step: &str) {
    eprintln!("- {step}");
}

#[test]
fn a_private_criu_is_made_tested_and_found_again() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("criu");
    let wanted = Wanted { root: root.clone(), ..Wanted::default() };
    let first = match install::setup(&root, &mut say) {
        Err(InstallError::Provision(
            error @ (ProvisionError::NoNetwork(_) | ProvisionError::Unsupported { .. }),
        )) => {
            eprintln!("skipped: {error}");
            return;
        }
        other => other.unwrap(),
    };
    eprintln!("{first:?}");
    assert_eq!(first.program, provision::program(&root));
    assert_eq!(first.test.payload_free, PayloadFree::Works);
    assert!(features::has(&first.program, Feature::NftablesLock).unwrap());

    let mut steps = 0;
    let again = install::find(&wanted, &mut |_| steps += 1).unwrap();
    assert_eq!(again, first);
    assert_eq!(steps, 0, "a known one is not tested again");

    // Another kernel than the recorded one: tested again.
    let record = root.join("criu.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["kernel"] = "2.6.18".into();
    std::fs::write(&record, value.to_string()).unwrap();
    install::find(&wanted, &mut |_| steps += 1).unwrap();
    assert_eq!(steps, 1);

    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "criu" || name == "criu.lock"), "{left:?}");
}

#[test]
fn a_program_that_is_no_criu_is_refused_with_its_reason() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let wanted = Wanted {
        explicit: Some("/bin/false".into()),
        root: directory.path().join("criu"),
        when_missing: WhenMissing::Fail,
    };
    let error = install::find(&wanted, &mut say).unwrap_err().to_string();
    assert!(error.starts_with("/bin/false does not work here"), "{error}");
}

#[test]
fn a_self_test_leaves_nothing_behind() {
    let program = provision::program(Path::new(DEFAULT_ROOT));
    if !is_root() || !program.is_file() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let shim = ferry_engine::criu::shim::place(directory.path()).unwrap();
    let criu = ferry_engine::target::process::Criu { program, shim: Some(shim) };
    for _ in 0..3 {
        eprintln!("{:?}", ferry_engine::criu::selftest::run(&criu).unwrap());
    }
}
