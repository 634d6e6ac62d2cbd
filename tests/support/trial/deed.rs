//! What is done to a migration while an engine of it stands.

use super::criu::{self, kill_criu};
use super::host::{Fate, Oom, Starved};
use super::{At, Kept, Trial, end_receiver, signal_receiver};
use crate::support::rig::{FERRY, PATIENCE, PORT, STATE};
use ferry_lab::hosts::{Cable, Host, Process, Program};
use nix::sys::signal::Signal;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What is done while it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing: the control run.
    Nothing,
    /// The destination's cable is cut, and mended when the source has given up or waits.
    CutCable,
    /// `kill -9` of the source's engine.
    KillSource,
    /// `kill -9` of the destination's engine, and another one is started later.
    KillDestination,
    /// `kill -9` of every CRIU process on the source.
    KillSourceCriu,
    /// Both of the source's at once.
    KillSourceAndCriu,
    /// `kill -9` of every CRIU process on the destination.
    KillDestinationCriu,
    /// Ctrl-C at the source.
    Interrupt,
    /// SIGTERM to the destination's engine: an orderly shutdown.
    StopDestination,
    /// `ferry abort` at the source, and at the destination.
    AbortHere,
    AbortThere,
    /// The workload itself does something: tests/apps/counter.py says what.
    Workload(&'static str),
    /// Another migration of the same workload is tried.
    MigrateAgain,
    /// Somebody at the destination takes the workload's PID.
    TakePid,
    /// The file systems that the destination writes to are full.
    FillDisk,
    /// A file that the workload has goes, or changes, at the destination.
    Spoil(Kept, Fate),
    /// The workload grows by more than the destination takes.
    Outgrow,
    /// The kernel gives the destination's engine no more memory.
    Starve(Oom),
    /// `kill -9` of CRIU in the midst of its work: some microseconds after its log says this.
    KillCriuAmid(At, &'static str, u64),
    /// The same of the source's CRIU and of the engine with it.
    KillSourceAndCriuAmid(&'static str),
}

impl Deed {
    /// What the source must say of it.
    pub(super) fn said(self) -> Option<&'static str> {
        match self {
            Deed::Spoil(..) => Some("restore failed"),
            Deed::Outgrow => Some("do not fit"),
            Deed::KillCriuAmid(At::Source, ..) => Some("CRIU died"),
            _ => None,
        }
    }
}

impl Trial {
    /// Does it; what is returned undoes it.
    pub(super) fn perform(&self, deed: Deed, engine: &Process<'_>) -> Box<dyn FnOnce() + '_> {
        let (here, there) = (self.rig.here(), self.rig.there());
        match deed {
            Deed::Nothing => {}
            Deed::CutCable => {
                there.set_cable(Cable::Down).unwrap();
                return Box::new(|| there.set_cable(Cable::Up).unwrap());
            }
            Deed::KillSource => engine.kill(Signal::SIGKILL).unwrap(),
            Deed::KillDestination => end_receiver(there, Signal::SIGKILL),
            Deed::KillSourceCriu => kill_criu(here),
            Deed::KillSourceAndCriu => {
                engine.kill(Signal::SIGKILL).unwrap();
                kill_criu(here);
            }
            Deed::KillDestinationCriu => kill_criu(there),
            Deed::Interrupt => engine.kill(Signal::SIGINT).unwrap(),
            Deed::StopDestination => signal_receiver(there, Signal::SIGTERM),
            Deed::AbortHere => abort(here),
            Deed::AbortThere => abort(there),
            Deed::Workload(deed) => self.commands.borrow_mut().deed(deed).unwrap(),
            Deed::MigrateAgain => {
                let to = SocketAddr::from((there.address(), PORT)).to_string();
                let target = format!("pid:{}", self.pid);
                let again = ["migrate", &target, "--to", &to, "--state", STATE];
                let out = here.run(Program::new(FERRY).args(again)).unwrap();
                assert!(!out.exit.success() && out.stderr.contains("is being migrated already"), "{out:?}");
            }
            Deed::TakePid => {
                let script = format!(
                    "cat /proc/sys/kernel/ns_last_pid >/run/last-pid; until [ -d /proc/{pid} ]; do echo {before} >/proc/sys/kernel/ns_last_pid; sleep 1000 & done",
                    pid = self.pid,
                    before = self.pid - 1
                );
                let taker = there.spawn(Program::shell(format!("{script}; wait"))).unwrap();
                let deadline = Instant::now() + PATIENCE;
                while there.outer_pid(self.pid).is_err() {
                    assert!(Instant::now() < deadline, "the PID is not taken");
                    std::thread::sleep(Duration::from_millis(5));
                }
                let pid = self.pid;
                return Box::new(move || {
                    taker.kill(Signal::SIGKILL).unwrap();
                    for (outer, inner) in there.processes().unwrap() {
                        let line = fs::read_to_string(format!("/proc/{outer}/cmdline")).unwrap_or_default();
                        if line.starts_with("sleep\0") {
                            let _ = there.kill(inner, Signal::SIGKILL);
                        }
                    }
                    while there.outer_pid(pid).is_ok() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    // Else what is started next takes the numbers of the workload's threads.
                    let out = there.run(Program::shell("cat /run/last-pid >/proc/sys/kernel/ns_last_pid"));
                    assert!(out.unwrap().exit.success());
                    // The receiver's own threads have such numbers by now.
                    end_receiver(there, Signal::SIGTERM);
                });
            }
            Deed::FillDisk => {
                // State, images and logs are all under /run, a tmpfs of the host's own.
                let resize = |size: &str| {
                    let script = format!("mount -o remount,size={size} /run");
                    let out = there.run(Program::shell(script)).unwrap();
                    assert!(out.exit.success(), "{out:?}");
                };
                resize("$(( $(df -k --output=used /run | tail -1) + 4 ))k");
                return Box::new(move || resize("50%"));
            }
            Deed::Spoil(file, fate) => {
                fate.befall(there, file);
                return Box::new(move || file.lay_down(there));
            }
            Deed::Outgrow => {
                self.commands.borrow_mut().deed(&format!("grow {OUTGROWN}")).unwrap();
                return Box::new(|| {
                    let mut commands = self.commands.borrow_mut();
                    commands.deed("check").expect("its memory is right");
                    commands.deed("shrink").unwrap();
                });
            }
            Deed::Starve(oom) => {
                let starved = Starved::new(there, oom);
                self.commands.borrow_mut().deed(&format!("grow {OUTGROWN}")).unwrap();
                return Box::new(|| {
                    starved.feed();
                    self.commands.borrow_mut().deed("shrink").unwrap();
                });
            }
            Deed::KillCriuAmid(at, mark, later) => {
                let host = if at == At::Source { here } else { there };
                let killed = criu::kill_amid(host, mark, Duration::from_micros(later), None);
                return Box::new(move || killed.join().unwrap().unwrap());
            }
            Deed::KillSourceAndCriuAmid(mark) => {
                let engine = engine.outer_pid().unwrap();
                let killed = criu::kill_amid(here, mark, Duration::ZERO, Some(engine));
                return Box::new(move || killed.join().unwrap().unwrap());
            }
        }
        Box::new(|| {})
    }
}

/// MiB that a workload grows by, and a destination of little memory does not take.
const OUTGROWN: u32 = 200;

/// Starts `ferry abort` of what is under way on a host. It ends when the migration does.
fn abort(host: &Host) {
    let out = host.run(Program::new(FERRY).args(["status", "--open", "--json", "--state", STATE])).unwrap();
    let open: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    let line = open.as_array().unwrap().iter().find(|line| line["standing"] == "under way");
    let id = line.expect("a migration under way")["id"].as_str().unwrap().to_owned();
    host.spawn(Program::new(FERRY).args(["abort", &id, "--state", STATE])).unwrap();
}
