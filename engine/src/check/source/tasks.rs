//! States in which a task cannot be frozen or dumped.

use super::Report;
use crate::check::finding::{Force, Severity, Subject};
use crate::check::proc::fields::Stat;
use crate::check::proc::tree::{Process, Tree};
use crate::check::served_by_userfaultfd;
use ferry_transport::units::Bytes;

pub(super) fn check(tree: &Tree, report: &mut Report) {
    for process in &tree.processes {
        one(process, report);
        if served_by_userfaultfd([process.pid]).is_some() {
            let what = "its memory is in the hands of a userfaultfd: the rest of a migration that has just \
                        arrived here, or another program that follows it";
            let advice = "try again in a moment";
            report.add(Severity::Blocks, Force::Final, process, Subject::Process, what, advice);
        }
    }
}

/// Shared memory, in KiB, whose copy is felt in the downtime.
const MUCH_SHARED: u64 = 32 << 10;

fn one(process: &Process, report: &mut Report) {
    let mut say = |severity, force, subject, what: String, advice: &str| {
        report.add(severity, force, process, subject, what, advice);
    };
    let tracer: i32 = process.status.number("TracerPid").unwrap_or(0);
    if tracer != 0 {
        let name = Stat::of(&format!("/proc/{tracer}/stat")).map_or_else(String::new, |stat| stat.comm);
        let what = format!("it is traced by process {tracer} ({name})");
        say(Severity::Blocks, Force::Overridable, Subject::Process, what, "detach the debugger or tracer");
    }
    let states: Vec<(i32, char)> = process
        .threads
        .iter()
        .filter_map(|tid| Some((*tid, Stat::of(&format!("/proc/{}/task/{tid}/stat", process.pid))?.state)))
        .collect();
    let stopped = states.iter().filter(|(_, state)| *state == 'T').count();
    for (tid, state) in &states {
        let subject = Subject::Thread { tid: *tid };
        match state {
            'Z' if states.len() > 1 => {
                let what = "it has exited while the process lives on".to_owned();
                say(Severity::Blocks, Force::Overridable, subject, what, "CRIU cannot carry such threads");
            }
            'D' => {
                let what = "it waits in the kernel (state D) and cannot be frozen until that ends".to_owned();
                say(
                    Severity::Risks,
                    Force::Overridable,
                    subject,
                    what,
                    "see what it waits for: /proc/PID/stack",
                );
            }
            'T' if stopped < states.len() => {
                let what = "it is stopped while other threads of the process run".to_owned();
                say(Severity::Blocks, Force::Overridable, subject, what, "continue it");
            }
            _ => {}
        }
    }
    if stopped > 0 && stopped == states.len() {
        let what = "it is stopped (SIGSTOP) and stays so at the destination".to_owned();
        say(Severity::Notes, Force::Overridable, Subject::Process, what, "");
    }
    if process.stat.state == 'Z' && states.len() <= 1 {
        let what = "it is a zombie that its parent has not waited for; it is carried as one".to_owned();
        say(Severity::Notes, Force::Overridable, Subject::Process, what, "");
    }
    let shared: u64 = process.status.number("RssShmem").unwrap_or(0);
    if shared >= MUCH_SHARED {
        let what =
            format!("{} of shared memory, which is copied while it stands still", Bytes(shared * 1024));
        say(Severity::Notes, Force::Overridable, Subject::Process, what, "it lengthens the downtime");
    }
    if process.status.number::<u32>("Seccomp").unwrap_or(0) != 0 {
        let what = "it is under seccomp; CRIU suspends and restores its filters".to_owned();
        say(Severity::Notes, Force::Overridable, Subject::Process, what, "");
    }
    let locked: u64 = process.status.number("VmLck").unwrap_or(0);
    if locked > 0 {
        let what = format!("{locked} KiB are locked in memory, as they must be at the destination");
        say(
            Severity::Notes,
            Force::Overridable,
            Subject::Process,
            what,
            "see that RLIMIT_MEMLOCK allows it there",
        );
    }
    let huge: u64 = process.status.number("HugetlbPages").unwrap_or(0);
    if huge > 0 {
        let what = format!("{huge} KiB of huge pages, which the destination must have reserved");
        say(Severity::Risks, Force::Overridable, Subject::Process, what, "set vm.nr_hugepages there");
    }
}
