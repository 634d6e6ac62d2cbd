//! What a process is, and what is done to it.

use crate::scenario::{blocks, plain, python, root};
use ferry_engine::check::{Finding, Force, Severity, SourceOptions, Subject, check_source};
use std::process::Command;
use std::time::Duration;

#[test]
fn a_clean_process_is_not_blocked_and_dumps() {
    if !root() {
        return;
    }
    for scenario in ["clean", "kinds"] {
        let subjected = plain(scenario);
        let findings = subjected.findings();
        assert!(blocks(&findings).is_empty(), "{findings:#?}");
        assert_ne!(subjected.dumps(), Some(false));
        let json = serde_json::to_string(&findings).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Finding>>(&json).unwrap(), findings);
    }
}

#[test]
fn what_cannot_be_a_target_is_said() {
    let final_block = |pid| {
        let findings = check_source(pid, &SourceOptions::default());
        let blocking = blocks(&findings);
        assert!(blocking.iter().any(|finding| finding.force == Force::Final), "{findings:#?}");
    };
    final_block(1);
    final_block(i32::MAX);
    final_block(std::process::id() as i32);
}

#[test]
fn a_traced_process_blocks() {
    if !root() {
        return;
    }
    let subjected = plain("clean");
    let pid = nix::unistd::Pid::from_raw(subjected.pid());
    if let Err(error) = nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()) {
        eprintln!("skipped: {error}");
        return;
    }
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert!(blocking.iter().any(|finding| finding.what.contains("traced by process")), "{findings:#?}");
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn a_nested_namespace_blocks() {
    if !root() || Command::new("unshare").arg("--version").output().is_err() {
        return;
    }
    let subjected = plain("nested");
    let namespace_block = || {
        let findings = subjected.findings();
        let found =
            blocks(&findings).into_iter().find(|f| matches!(f.subject, Subject::Namespace { .. })).cloned();
        found.filter(|finding| finding.pid != Some(subjected.pid()))
    };
    // The child needs a moment until it has unshared.
    let finding = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        namespace_block()
    });
    let finding = finding.take(500).flatten().next().expect("a finding");
    assert_eq!(finding.subject, Subject::Namespace { of: "uts".into() });
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn sysv_shared_memory_needs_an_ipc_namespace() {
    if !root() {
        return;
    }
    let body = "libc.shmat.restype = ctypes.c_void_p\n\
                word = libc.shmget(0, 65536, 0o1600)\n\
                libc.shmat(word, 0, 0)\n\
                libc.shmctl(word, 0, None)";
    let Some((subjected, _)) = python(&[], body, &[]) else { return };
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert_eq!(blocking.len(), 1, "{findings:#?}");
    assert!(matches!(&blocking[0].subject, Subject::Mapping { name, .. } if name.starts_with("/SYSV")));
    assert!(blocking[0].advice.contains("unshare --ipc"));
    assert_ne!(subjected.dumps(), Some(true));

    let Some((subjected, _)) = python(&["unshare", "--ipc"], body, &[]) else { return };
    assert!(blocks(&subjected.findings()).is_empty());
    assert_ne!(subjected.dumps(), Some(false));
}

#[test]
fn a_core_scheduling_cookie_is_a_risk() {
    if !root() {
        return;
    }
    // PR_SCHED_CORE, PR_SCHED_CORE_CREATE, of this thread.
    let body = "word = libc.prctl(62, 1, 0, 0, 0)";
    let Some((subjected, made)) = python(&[], body, &[]) else { return };
    let told = subjected.findings().iter().any(|finding| finding.what.contains("core-scheduling"));
    if made != "0" {
        eprintln!("this kernel has no core scheduling");
    }
    assert_eq!(told, made == "0");
}

const CHECKED: &str = "FERRY_TEST_CHECKED";

/// Not a test by itself: looks at a process, under the limits that it was given.
#[test]
fn checking_process() {
    let Ok(pid) = std::env::var(CHECKED) else { return };
    let findings = check_source(pid.parse().unwrap(), &SourceOptions::default());
    println!("\nFINDINGS {}", serde_json::to_string(&findings).unwrap());
}

#[test]
fn hard_limits_above_our_own_are_a_risk() {
    if !root() {
        return;
    }
    let subjected = plain("clean");
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -Sn 512 && ulimit -Hn 512 && exec \"$0\" --exact tasks::checking_process --nocapture",
    ]);
    command.arg(std::env::current_exe().unwrap()).env(CHECKED, subjected.pid().to_string());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.lines().find_map(|line| line.strip_prefix("FINDINGS ")).expect("findings");
    let findings: Vec<Finding> = serde_json::from_str(json).unwrap();
    let limits: Vec<&Finding> =
        findings.iter().filter(|finding| finding.what.contains("hard limits")).collect();
    if ferry_engine::check::proc::may_raise_limits() {
        assert!(limits.is_empty(), "{limits:?}");
        return;
    }
    assert_eq!(limits.len(), 1, "{findings:#?}");
    assert_eq!((limits[0].severity, limits[0].pid), (Severity::Risks, Some(subjected.pid())));
    assert!(
        limits[0].what.contains("Max open files") && limits[0].what.contains("(ferry 512)"),
        "{limits:?}"
    );
    assert!(!subjected.findings().iter().any(|finding| finding.what.contains("hard limits")));
}
