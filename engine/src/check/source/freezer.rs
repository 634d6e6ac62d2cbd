//! Processes that the freezer of control groups holds: CRIU cannot stop them.

use super::Report;
use crate::check::finding::{Force, Severity, Subject};
use crate::check::proc;
use crate::check::proc::mounts::{self, Mount};
use crate::check::proc::tree::Tree;

pub(super) fn check(tree: &Tree, report: &mut Report) {
    let mounts = mounts::of(std::process::id() as i32);
    for process in &tree.processes {
        let groups = proc::read(format!("/proc/{}/cgroup", process.pid), 16 << 10).unwrap_or_default();
        if groups.lines().filter_map(|line| state_file(line, &mounts)).any(|file| is_frozen(&file)) {
            let what = "its control group is frozen, and CRIU cannot stop it";
            let advice = "thaw it first (cgroup.freeze, freezer.state, docker unpause)";
            report.add(Severity::Blocks, Force::Overridable, process, Subject::Process, what, advice);
        }
    }
}

/// Where the state stands of the group in a line of `/proc/PID/cgroup`
/// ("4:freezer:/path", version 2 "0::/path").
fn state_file(line: &str, mounts: &[Mount]) -> Option<String> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let is_freezer = |list: &str| list.split(',').any(|controller| controller == "freezer");
    let (kind, name) = match controllers {
        "" => ("cgroup2", "cgroup.events"),
        list if is_freezer(list) => ("cgroup", "freezer.state"),
        _ => return None,
    };
    let of_kind = |mount: &&Mount| mount.kind == kind && (kind == "cgroup2" || is_freezer(&mount.options));
    let mount = mounts.iter().find(of_kind)?;
    let below = path.strip_prefix(mount.root.trim_end_matches('/'))?;
    Some(format!("{}/{}/{name}", mount.point, below.trim_matches('/')))
}

fn is_frozen(file: &str) -> bool {
    let state = proc::read(file, 4096).unwrap_or_default();
    state.lines().any(|line| ["frozen 1", "FROZEN", "FREEZING"].contains(&line.trim()))
}
