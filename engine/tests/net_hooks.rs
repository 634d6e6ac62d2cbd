//! Hooks: real programs, their environment, their failures.

use ferry_engine::net::hooks::{HookFacts, Hooks, OnFailure, Stage};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn program(directory: &Path, stage: Stage, script: &str) {
    let path = directory.join(stage.name());
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn facts() -> HookFacts {
    HookFacts {
        id: "00ff".into(),
        target: "pid:7 (cat)".into(),
        peer: "192.0.2.1:4321".into(),
        pid: Some(7),
        ..HookFacts::default()
    }
}

#[test]
fn a_program_gets_the_facts_and_stages_without_one_do_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let script = format!(
        "echo $FERRY_STAGE $FERRY_ROLE $FERRY_ID $FERRY_TARGET $FERRY_PEER $FERRY_PID ${{FERRY_ADDRESS-none}} > {}",
        out.display()
    );
    program(directory.path(), Stage::Frozen, &script);
    let hooks = Hooks::open(directory.path(), PATIENCE).unwrap();
    hooks.run(Stage::PreFreeze, &facts()).unwrap();
    assert!(!out.exists() && !hooks.has(Stage::PreFreeze) && hooks.has(Stage::Frozen));
    hooks.run(Stage::Frozen, &facts()).unwrap();
    assert_eq!(
        std::fs::read_to_string(out).unwrap(),
        "frozen source 00ff pid:7 (cat) 192.0.2.1:4321 7 none\n"
    );
    Hooks::none().run(Stage::Frozen, &facts()).unwrap();
}

#[test]
fn a_failure_aborts_before_the_commit_and_warns_after_it() {
    let directory = tempfile::tempdir().unwrap();
    for stage in Stage::ALL {
        program(directory.path(), stage, "echo the balancer is away >&2; exit 3");
    }
    let hooks = Hooks::open(directory.path(), PATIENCE).unwrap();
    for stage in Stage::ALL {
        let result = hooks.run(stage, &facts());
        match stage.on_failure() {
            OnFailure::Warns => result.unwrap(),
            OnFailure::Aborts => {
                let text = result.unwrap_err().to_string();
                assert!(text.contains(stage.name()) && text.contains("exit status: 3"), "{text}");
                assert!(text.contains("the balancer is away"), "{text}");
            }
        }
    }
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
    program(directory.path(), Stage::Frozen, &script);
    let hooks = Hooks::open(directory.path(), Duration::from_secs(2)).unwrap();
    let failure = hooks.run(Stage::Frozen, &facts()).unwrap_err();
    assert!(failure.how.contains("killed"), "{failure}");
    let child = std::fs::read_to_string(pid_file).unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    // Killed, it may still be on its way out.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !(stat().is_empty() || stat().contains(") Z ")) {
        assert!(std::time::Instant::now() < deadline, "the child lives on: {}", stat());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn endless_output_and_a_child_that_keeps_the_pipe_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    program(directory.path(), Stage::PreFreeze, "head -c 3000000 /dev/zero | tr '\\0' x; exit 1");
    program(directory.path(), Stage::Frozen, "sleep 8 & echo started; exit 1");
    let hooks = Hooks::open(directory.path(), PATIENCE).unwrap();
    let failure = hooks.run(Stage::PreFreeze, &facts()).unwrap_err();
    assert!(!failure.output.is_empty() && failure.output.len() <= 16 * 1024);
    assert_eq!(hooks.run(Stage::Frozen, &facts()).unwrap_err().output, "started");
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    program(directory.path(), Stage::Frozen, "exit 0");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    assert!(Hooks::open(directory.path(), PATIENCE).is_err());
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(directory.path().join("frozen"), PermissionsExt::from_mode(0o644)).unwrap();
    assert!(Hooks::open(directory.path(), PATIENCE).is_err(), "not executable");
}
