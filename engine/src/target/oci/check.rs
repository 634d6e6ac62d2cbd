//! What would stop a container's move, or lose something of it.

use super::members::Members;
use super::runtime::{Runtime, State};
use super::setup::{Config, Setup};
use super::stdio::Stream;
use crate::check::{Finding, Force, Severity, SourceOptions, check_container};
use crate::target::TargetError;

/// Everything that can be seen of a container without stopping it, the worst first.
pub fn check(id: &str, runtime: &Runtime, options: &SourceOptions) -> Vec<Finding> {
    let mut report = Report::default();
    if let Err(error) = report.look(id, runtime, options) {
        report.blocks(error.what, "");
    }
    report.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    report.0
}

#[derive(Default)]
struct Report(Vec<Finding>);

impl Report {
    fn say(&mut self, severity: Severity, what: impl Into<String>, advice: &str) {
        self.0.push(Finding::host(severity, Force::Final, what, advice));
    }

    fn blocks(&mut self, what: impl Into<String>, advice: &str) {
        self.say(Severity::Blocks, what, advice);
    }

    fn look(&mut self, id: &str, runtime: &Runtime, options: &SourceOptions) -> Result<(), TargetError> {
        let state = runtime.state(id)?;
        if state.status != "running" {
            self.blocks(format!("container {id} is {}", state.status), "only a running one can be moved");
            return Ok(());
        }
        self.members(&state);
        let setup = Setup::read(runtime, id, &state)?;
        self.config(&setup.config()?);
        self.streams(&setup);
        let rootfs = setup.rootfs().unwrap_or_default();
        let what = format!("its files in {} are not copied", rootfs.display());
        let advice = "keep the bundle on storage that both hosts share, or bring it to the same place there";
        self.say(Severity::Risks, what, advice);
        self.0.extend(check_container(state.pid, options));
        Ok(())
    }

    fn members(&mut self, state: &State) {
        match Members::of(state.pid).and_then(|members| members.outsiders()) {
            Ok(outsiders) => {
                for pid in outsiders {
                    let what = format!("process {pid} was brought into the container from outside (`exec`)");
                    self.blocks(what, "end it: its parent is not in the container, and CRIU leaves it out");
                }
            }
            Err(error) => self.blocks(format!("its processes: {error}"), ""),
        }
    }

    fn config(&mut self, config: &Config) {
        if config.has_terminal() {
            self.blocks("it has a terminal, which cannot be moved", "start it with `terminal: false`");
        }
        if config.has_own("network") {
            let what = "its network namespace was made by the runtime; the copy's is made anew, and is empty";
            let advice = "let it use the host's network or join a namespace by path, or set the copy's up in the \
                          container's own hooks (createRuntime)";
            self.say(Severity::Risks, what, advice);
        }
        if config.has_own("user") {
            let what = "it has a user namespace, which has not been tried";
            self.say(Severity::Risks, what, "try it with a container that does not matter");
        }
        for (kind, path) in config.joined() {
            let what = format!("it joins the {kind} namespace {}, which must be there too", path.display());
            self.say(Severity::Notes, what, "");
        }
    }

    fn streams(&mut self, setup: &Setup) {
        if setup.streams.contains(&Stream::Pipe) {
            let what = format!(
                "its output goes to a pipe, which ends here; the copy's goes to {}",
                setup.output().display()
            );
            self.say(Severity::Risks, what, "start it with its output in a file");
        }
        for stream in &setup.streams[1..] {
            if let Stream::HostFile { path, .. } = stream {
                let what =
                    format!("its output goes to {}; the copy appends to the same there", path.display());
                self.say(Severity::Notes, what, "");
            }
        }
    }
}
