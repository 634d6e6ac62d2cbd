//! A control group that is frozen already.

use crate::scenario::{plain, root};
use ferry_engine::check::Severity;
use std::path::Path;
use std::time::Duration;

#[test]
fn a_frozen_control_group_blocks() {
    if !root() {
        return;
    }
    let Some(group) = Freezer::new() else {
        eprintln!("skipped: no control group can be made here");
        return;
    };
    let subjected = plain("clean");
    group.freeze(subjected.pid());
    let told = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(10));
        subjected.findings().into_iter().find(|finding| finding.what.contains("is frozen"))
    });
    let finding = told.take(500).flatten().next();
    group.thaw();
    let finding = finding.expect("a finding");
    assert_eq!((finding.severity, finding.pid), (Severity::Blocks, Some(subjected.pid())));
    drop(subjected);
}

/// A control group of version 1 or 2 that can be frozen.
struct Freezer {
    directory: std::path::PathBuf,
    control: &'static str,
    words: [&'static str; 2],
}

impl Freezer {
    fn new() -> Option<Freezer> {
        let kinds = [
            ("/sys/fs/cgroup/freezer", "freezer.state", ["FROZEN", "THAWED"]),
            ("/sys/fs/cgroup", "cgroup.freeze", ["1", "0"]),
            ("/sys/fs/cgroup/unified", "cgroup.freeze", ["1", "0"]),
        ];
        kinds.into_iter().find_map(|(place, control, words)| {
            let directory = Path::new(place).join(format!("ferry-test-{}", std::process::id()));
            std::fs::create_dir(&directory).ok()?;
            let freezer = Freezer { directory, control, words };
            freezer.directory.join(control).exists().then_some(freezer)
        })
    }

    fn freeze(&self, pid: i32) {
        std::fs::write(self.directory.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(self.directory.join(self.control), self.words[0]).unwrap();
    }

    fn thaw(&self) {
        std::fs::write(self.directory.join(self.control), self.words[1]).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.directory.join(self.control), self.words[1]);
        // The killed process leaves the group a moment later.
        for _ in 0..500 {
            if std::fs::remove_dir(&self.directory).is_ok() || !self.directory.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
