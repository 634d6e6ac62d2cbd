//! What a process sees of the file system.

use crate::scenario::{PLACE, SCENARIO, blocks, root, start};
use ferry_engine::check::Subject;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the scenario through a shell in a mount namespace of its own.
fn in_a_mount_namespace(place: &Path, command: &mut Command, script: &str) {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", script]).arg(place.join("mount")).arg(command.get_program());
    unshare.args(command.get_args()).env(SCENARIO, "clean").env(PLACE, place);
    unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    *command = unshare;
}

#[test]
fn a_mount_that_criu_does_not_make_again_blocks() {
    if !root() {
        return;
    }
    let subjected = start("clean", |place, command| {
        let script = "mkdir $0 && mount -t ramfs ferry $0 && exec \"$@\" </dev/null >/dev/null 2>&1";
        in_a_mount_namespace(place, command, script);
    });
    let findings = subjected.findings();
    let mount = blocks(&findings)
        .into_iter()
        .find(|finding| matches!(&finding.subject, Subject::Mount { path } if path.ends_with("/mount")))
        .expect("the mount");
    assert!(mount.what.contains("ramfs"), "{mount}");
    assert_eq!(mount.pid, Some(subjected.pid()));
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn a_descriptor_from_another_mount_namespace_blocks() {
    if !root() {
        return;
    }
    let subjected =
        start("clean", |place, command| in_a_mount_namespace(place, command, "exec \"$@\" </dev/null"));
    let findings = subjected.findings();
    let mut from_outside: Vec<i32> = blocks(&findings)
        .into_iter()
        .filter(|finding| finding.what.contains("a mount that the tree does not see"))
        .filter_map(|finding| match finding.subject {
            Subject::Descriptor { fd, .. } => Some(fd),
            _ => None,
        })
        .collect();
    from_outside.sort_unstable();
    // Standard input was opened again inside.
    assert_eq!(from_outside, [1, 2], "{findings:#?}");
    assert_ne!(subjected.dumps(), Some(true));
}
