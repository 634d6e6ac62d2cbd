//! What confines a process beside its namespaces: hard limits, security labels,
//! control groups, core scheduling.

use super::Report;
use crate::check::finding::{Force, Severity, Subject};
use crate::check::proc::limits::{HardLimits, shown};
use crate::check::proc::tree::{Process, Tree};
use crate::check::proc::{self, may_raise_limits};
use crate::sys::core_scheduling;
use std::collections::BTreeSet;

pub(super) fn check(tree: &Tree, report: &mut Report) {
    limits(tree, report);
    labels(tree, report);
    for process in &tree.processes {
        // A kernel without core scheduling answers with an error.
        if core_scheduling::cookie(process.pid).is_ok_and(|cookie| cookie != 0) {
            let what = "it has a core-scheduling cookie, which is not carried: there it may share a core with others";
            let advice = "set a new one after the move (a hook at the stage `running`)";
            report.add(Severity::Risks, Force::Overridable, process, Subject::Process, what, advice);
        }
    }
    let group = |of: &str| proc::read(format!("/proc/{of}/cgroup"), 16 << 10).unwrap_or_default();
    let root = tree.root();
    if group(&root.pid.to_string()) != group("self") {
        let what = "it is in a control group of its own; the copy runs in that of `ferry receive`";
        let advice = "set limits for the receiver, or move the copy (a hook at the stage `running`)";
        report.add(Severity::Notes, Force::Overridable, root, Subject::Process, what, advice);
    }
}

/// Hard limits that a host like this one could not set again.
fn limits(tree: &Tree, report: &mut Report) {
    if may_raise_limits() {
        return;
    }
    let own = HardLimits::of("self");
    for process in &tree.processes {
        let theirs = HardLimits::of(&process.pid.to_string());
        let above = own.above(theirs.0.iter().map(|(name, hard)| (name, *hard)));
        if above.is_empty() {
            continue;
        }
        let all: Vec<String> = above
            .into_iter()
            .map(|(name, theirs, ours)| format!("{name} {} (ferry {})", shown(theirs), shown(ours)))
            .collect();
        let what = format!(
            "hard limits above ferry's own, which a restore without CAP_SYS_RESOURCE cannot set: {}",
            all.join(", ")
        );
        let advice = "start `ferry receive` with limits as high (ulimit -H, LimitNOFILE=)";
        report.add(Severity::Risks, Force::Overridable, process, Subject::Process, what, advice);
    }
}

/// Labels of AppArmor, SELinux and the like, each said once.
fn labels(tree: &Tree, report: &mut Report) {
    let mut said = BTreeSet::new();
    for process in &tree.processes {
        let Some(label) = label(process) else { continue };
        if !is_confined(&label) || !said.insert(label.clone()) {
            continue;
        }
        let what = format!("it is confined as {label:?}, and so must the copy be");
        let advice = "load the same profile or policy at the destination";
        report.add(Severity::Risks, Force::Overridable, process, Subject::Process, what, advice);
    }
}

/// `None` where no security module tells one.
fn label(process: &Process) -> Option<String> {
    let read = |file| proc::read(format!("/proc/{}/attr/{file}", process.pid), 4096).ok();
    // Where modules are stacked, AppArmor has a file of its own.
    let text = read("apparmor/current").filter(|text| !text.trim().is_empty()).or_else(|| read("current"))?;
    let label = text.trim_end_matches(['\0', '\n']);
    (!label.is_empty()).then(|| label.to_owned())
}

fn is_confined(label: &str) -> bool {
    // SELinux: user:role:type:level.
    let kind = label.split(':').nth(2).unwrap_or(label);
    !kind.starts_with("unconfined") && !["kernel", "_", "kernel_t"].contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_confines_is_told() {
        for free in ["unconfined", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023", "kernel", "_"] {
            assert!(!is_confined(free), "{free}");
        }
        for confined in
            ["docker-default (enforce)", "system_u:system_r:httpd_t:s0", "/usr/sbin/mysqld (enforce)"]
        {
            assert!(is_confined(confined), "{confined}");
        }
    }
}
