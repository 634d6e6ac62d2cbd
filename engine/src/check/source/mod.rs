//! The source's side, one file a concern.

mod confinement;
mod descriptors;
mod devices;
mod files;
mod freezer;
mod identity;
mod locks;
mod mappings;
mod mounts;
mod outsiders;
mod sockets;
mod tasks;

use super::SourceOptions;
use super::finding::{Finding, Force, Severity, Subject};
use super::proc::tree::{Descriptor, Process, Tree};

/// Collects findings.
#[derive(Default)]
struct Report(Vec<Finding>);

impl Report {
    fn add(
        &mut self,
        severity: Severity,
        force: Force,
        process: &Process,
        subject: Subject,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Finding {
            severity,
            pid: Some(process.pid),
            comm: process.stat.comm.clone(),
            subject,
            what: what.into(),
            advice: advice.into(),
            force,
        });
    }
}

fn subject(descriptor: &Descriptor) -> Subject {
    Subject::Descriptor { fd: descriptor.fd, link: descriptor.link.clone() }
}

pub(super) fn check(root: i32, options: &SourceOptions) -> Vec<Finding> {
    let Some(tree) = Tree::read(root) else {
        let what = format!("there is no process {root}");
        return vec![Finding::host(Severity::Blocks, Force::Final, what, "")];
    };
    let mut report = Report::default();
    identity::check(&tree, &mut report);
    confinement::check(&tree, &mut report);
    freezer::check(&tree, &mut report);
    tasks::check(&tree, &mut report);
    descriptors::check(&tree, &mut report);
    files::check(&tree, options, &mut report);
    locks::check(&tree, &mut report);
    mounts::check(&tree, &mut report);
    mappings::check(&tree, options, &mut report);
    sockets::check(&tree, options, &mut report);
    outsiders::check(&tree, &mut report);
    report.0
}

pub(super) fn check_container(init: i32, options: &SourceOptions) -> Vec<Finding> {
    let Some(tree) = Tree::read(init) else {
        let what = format!("the container's first process, {init}, is not there");
        return vec![Finding::host(Severity::Blocks, Force::Final, what, "")];
    };
    let mut report = Report::default();
    identity::ourselves(&mut report);
    freezer::check(&tree, &mut report);
    tasks::check(&tree, &mut report);
    descriptors::check(&tree, &mut report);
    locks::check(&tree, &mut report);
    mappings::check(&tree, options, &mut report);
    sockets::check(&tree, options, &mut report);
    report.0
}
