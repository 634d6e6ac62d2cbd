//! One migration that goes wrong at a chosen place, and what must hold after it.
//!
//! An engine stops at a message (`FERRY_BREAKPOINT`), something is done to it, its
//! peer, its CRIU or the cable, and it goes on. Whatever that was, afterwards the
//! workload runs once, no step of it is lost or done twice, its connections live,
//! and nothing of the migration is left on either host.

use super::counter::{self, Counter};
use super::rig::{FERRY, NFT, PATIENCE, PORT, Rig, SERVICE, STATE, start_receiver};
use ferry_lab::apps::load::Load;
use ferry_lab::hosts::{Cable, Exit, Host, Process, Program};
use nix::sys::signal::Signal;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Which engine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Source,
    Destination,
}

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
}

/// Where the workload may run afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Here,
    There,
    /// Both are right: it depends on what was still in the network.
    Either,
}

/// A workload with clients, and migrations of it.
pub struct Trial {
    rig: Rig,
    pid: i32,
    load: Option<Load>,
    /// A connection to the workload for commands.
    commands: RefCell<Counter>,
    mounts: [BTreeSet<String>; 2],
    done: usize,
}

const WITNESS: &str = "/srv/steps";
const BREAKPOINT: &str = "/run/breakpoint";

impl Trial {
    /// Starts the workload; `None`, with the reason printed, where that cannot be.
    pub fn new(name: &str) -> Option<Trial> {
        let rig = Rig::new(name, &["/usr/bin/python3"])?;
        let script = rig.install("counter.py");
        let address = SocketAddr::from((SERVICE, 7100));
        let arguments = [script, SERVICE.to_string(), "7100".into(), WITNESS.into()];
        let (uid, gid) = rig.user();
        let server =
            Program::new("/usr/bin/python3").args(arguments).user(uid, gid).stderr("/srv/server.err");
        let pid = rig.start(server).pid;
        let clients = (0..2).map(|_| rig.connect(|| Counter::connect(address))).collect();
        let load = Some(Load::start(clients, 100.0));
        let commands = RefCell::new(rig.connect(|| Counter::connect(address)));
        let mounts = [0, 1].map(|n| mounts(&rig.lab.hosts()[n]));
        Some(Trial { rig, pid, load, commands, mounts, done: 0 })
    }

    /// One migration with a fault in it, and the proof that all is well after it.
    pub fn goes_wrong(&mut self, at: At, place: &str, deed: Deed, ends: Ends) {
        let what = format!("{deed:?} at the {at:?}'s {place}");
        let began = Instant::now();
        let (here, there) = (self.rig.here(), self.rig.there());
        let (engine, stopped) = self.migrate_to(at, place, &what);
        let undo = self.perform(deed, &engine);
        self.let_go(&engine, stopped, &what);

        // What an operator does: mends it, starts the receiver again, resolves.
        undo();
        if receiver_of(there).is_none() {
            start_receiver(there, None).expect("a receiver");
        }
        self.resolve(here, &what);
        let ran = self.where_it_runs(&what);
        println!("  {what}: runs {ran:?} after {:.1} s", began.elapsed().as_secs_f64());
        assert!(ends == Ends::Either || ran == ends, "{what}: runs {ran:?}, not {ends:?}\n{}", self.logs());
        if ran == Ends::There {
            self.rig.it_moved();
        }
        self.nothing_is_left(&what);
        if !self.load.as_ref().is_some_and(Load::is_well) {
            println!("{what}: a connection broke\n{}", self.logs());
            counter::finish(self.load.take().expect("a load"));
        }
        self.done += 1;
    }

    /// A migration during which the workload exits. Nothing runs anywhere afterwards,
    /// and nothing is left of the migration.
    pub fn exits(mut self, place: &str) {
        let what = format!("an exit at the source's {place}");
        let (engine, stopped) = self.migrate_to(At::Source, place, &what);
        assert!(self.commands.borrow_mut().deed("exit").is_err(), "it cannot answer");
        let exit = self.let_go(&engine, stopped, &what);
        assert!(!exit.success(), "{what}: {exit:?}");
        self.pid = 0;
        self.nothing_is_left(&what);
        let report = fs::read_to_string(self.rig.here().path("/run/migrate.out")).unwrap();
        assert!(report.contains("exited"), "{what}: what happened is not said\n{}", self.logs());
    }

    /// Starts a migration and waits until it stands at a place; the engine, and the host
    /// on which one stands.
    fn migrate_to(&self, at: At, place: &str, what: &str) -> (Process<'_>, &Host) {
        let (here, there) = (self.rig.here(), self.rig.there());
        for host in [here, there] {
            let _ = fs::remove_dir_all(host.path(BREAKPOINT));
            fs::create_dir(host.path(BREAKPOINT)).unwrap();
        }
        there.forget_exit(self.pid);
        let breakpoint = format!("{place}:{BREAKPOINT}");
        let mut migrate = Program::new(FERRY)
            .args(["migrate".to_string(), format!("pid:{}", self.pid)])
            .args(["--to".to_string(), SocketAddr::from((there.address(), PORT)).to_string()])
            .args(["--state", STATE, "--json", "--move-ip", &format!("{SERVICE}/24@eth0")])
            .args(["--link-timeout", "1500ms", "--freeze-deadline", "4s", "--doubt-patience", "3s"])
            .stdout("/run/migrate.out")
            .stderr("/run/migrate.err");
        for file in ["/run/migrate.out", "/run/migrate.err"] {
            let _ = fs::remove_file(here.path(file));
        }
        let stopped = match at {
            At::Source => {
                migrate = migrate.env("FERRY_BREAKPOINT", &breakpoint);
                here
            }
            At::Destination => {
                end_receiver(there, Signal::SIGTERM);
                start_receiver(there, Some(&breakpoint)).expect("a receiver");
                there
            }
        };
        let engine = here.spawn(migrate).expect("ferry migrate starts");
        let reached = stopped.path(format!("{BREAKPOINT}/reached"));
        let deadline = Instant::now() + PATIENCE;
        while !reached.exists() {
            assert!(Instant::now() < deadline, "{what}: not reached\n{}", self.logs());
            if let Some(exit) = engine.wait_for(Duration::from_millis(2)).unwrap() {
                panic!("{what}: ended before it ({exit:?})\n{}", self.logs());
            }
        }
        (engine, stopped)
    }

    /// Lets the engine that stands go on; how the source's ended.
    fn let_go(&self, engine: &Process<'_>, stopped: &Host, what: &str) -> Exit {
        fs::write(stopped.path(format!("{BREAKPOINT}/go")), b"").unwrap();
        let exit = engine.wait_for(PATIENCE).unwrap();
        exit.unwrap_or_else(|| panic!("{what}: the engine does not end\n{}", self.logs()))
    }

    /// Does it; what is returned undoes it.
    fn perform(&self, deed: Deed, engine: &Process<'_>) -> Box<dyn FnOnce() + '_> {
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
        }
        Box::new(|| {})
    }

    /// It can be moved again, whatever happened before.
    pub fn goes_right(&mut self) {
        // A receiver that has no breakpoint.
        end_receiver(self.rig.there(), Signal::SIGTERM);
        start_receiver(self.rig.there(), None).expect("a receiver");
        self.rig.move_on(self.pid, &[]);
        self.nothing_is_left("a sound migration");
    }

    /// Every reply was right, and every step was done once.
    pub fn finish(mut self) {
        self.goes_right();
        counter::finish(self.load.take().expect("a load"));
        let steps = self.steps();
        println!("  {} faults, {steps} steps, none lost, none twice", self.done);
    }

    /// How many steps were done; each once and in order.
    fn steps(&self) -> usize {
        let text = fs::read_to_string(self.rig.here().path(WITNESS)).unwrap();
        let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for (number, line) in complete.lines().enumerate() {
            assert_eq!(line, (number + 1).to_string(), "a step was lost or done twice\n{}", self.logs());
        }
        complete.lines().count()
    }

    /// Ends what is in doubt by asking the destination, as an operator would.
    fn resolve(&self, host: &Host, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let out =
                host.run(Program::new(FERRY).args(["status", "--open", "--json", "--state", STATE])).unwrap();
            let open: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
            let ours = |line: &&serde_json::Value| line["side"] == "source";
            let Some(line) = open.as_array().unwrap().iter().find(ours) else { return };
            assert!(Instant::now() < deadline, "{what}: still open: {line}\n{}", self.logs());
            if line["standing"] != "under way" {
                let id = line["id"].as_str().unwrap();
                let out = host.run(Program::new(FERRY).args(["resolve", id, "--state", STATE])).unwrap();
                println!("  {what}: {} {}", out.stdout.trim(), out.stderr.trim());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The one host on which it makes progress.
    fn where_it_runs(&self, what: &str) -> Ends {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.steps();
            std::thread::sleep(Duration::from_millis(50));
            let moves = self.steps() > before;
            let places = [self.rig.here(), self.rig.there()].map(|host| state_of(host, self.pid));
            match places {
                [Some(_), None] if moves => return Ends::Here,
                [None, Some(_)] if moves => return Ends::There,
                _ => {}
            }
            assert!(Instant::now() < deadline, "{what}: stands still, states {places:?}\n{}", self.logs());
        }
    }

    /// No process, rule, device, address, mount or file of a migration.
    fn nothing_is_left(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{what} left {left:#?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (number, host) in self.rig.lab.hosts()[..2].iter().enumerate() {
            let name = host.name();
            for (outer, inner) in host.processes().unwrap() {
                let comm = fs::read_to_string(format!("/proc/{outer}/comm")).unwrap_or_default();
                let ours = ["ferry", "criu", "ld-linux"].iter().any(|ours| comm.starts_with(ours));
                if ours && inner != 1 && Some(inner) != receiver_of(host) {
                    let line = fs::read_to_string(format!("/proc/{outer}/cmdline")).unwrap_or_default();
                    left.push(format!("{name}: process {inner} {} {}", comm.trim(), line.replace('\0', " ")));
                }
            }
            let rules = host.run(Program::new(NFT).args(["list", "tables"])).unwrap();
            left.extend(rules.stdout.lines().map(|line| format!("{name}: {line}")));
            let devices = host.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap();
            left.extend(
                devices.lines().filter(|line| line.contains("ferry")).map(|line| format!("{name}: {line}")),
            );
            let has_it = host.addresses().unwrap().contains(&IpAddr::V4(SERVICE));
            if has_it != std::ptr::eq(host, self.rig.here()) {
                left.push(format!("{name}: the service address is{} here", if has_it { "" } else { " not" }));
            }
            left.extend(
                mounts(host).difference(&self.mounts[number]).map(|mount| format!("{name}: mount {mount}")),
            );
            for entry in fs::read_dir(host.path("/run")).unwrap().flatten() {
                let file = entry.file_name().to_string_lossy().into_owned();
                if file.starts_with("ferry-") && format!("/run/{file}") != STATE {
                    left.push(format!("{name}: /run/{file}"));
                }
            }
        }
        left
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for (host, file) in [
            (self.rig.here(), "/run/migrate.out"),
            (self.rig.here(), "/run/migrate.err"),
            (self.rig.there(), "/run/receive.log"),
        ] {
            let content = fs::read_to_string(host.path(file)).unwrap_or_default();
            text.push_str(&format!("--- {} {file}\n{content}\n", host.name()));
        }
        text
    }
}

fn mounts(host: &Host) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", host.first_process())).unwrap();
    text.lines().filter_map(|line| line.split(' ').nth(4).map(String::from)).collect()
}

/// The PID in the host of its `ferry receive`.
fn receiver_of(host: &Host) -> Option<i32> {
    let found = host.processes().unwrap().into_iter().find(|(outer, _)| {
        let line = fs::read_to_string(format!("/proc/{outer}/cmdline")).unwrap_or_default();
        line.split('\0').take(2).eq([FERRY, "receive"])
    });
    found.map(|(_, inner)| inner)
}

fn signal_receiver(host: &Host, signal: Signal) {
    if let Some(pid) = receiver_of(host) {
        host.kill(pid, signal).unwrap();
    }
}

pub fn end_receiver(host: &Host, signal: Signal) {
    signal_receiver(host, signal);
    let deadline = Instant::now() + PATIENCE;
    while receiver_of(host).is_some() {
        assert!(Instant::now() < deadline, "the receiver does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts `ferry abort` of what is under way on a host. It ends when the migration does.
fn abort(host: &Host) {
    let out = host.run(Program::new(FERRY).args(["status", "--open", "--json", "--state", STATE])).unwrap();
    let open: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    let line = open.as_array().unwrap().iter().find(|line| line["standing"] == "under way");
    let id = line.expect("a migration under way")["id"].as_str().unwrap().to_owned();
    host.spawn(Program::new(FERRY).args(["abort", &id, "--state", STATE])).unwrap();
}

fn kill_criu(host: &Host) {
    for (outer, inner) in host.processes().unwrap() {
        let comm = fs::read_to_string(format!("/proc/{outer}/comm")).unwrap_or_default();
        if comm.starts_with("criu") || comm.starts_with("ld-linux") {
            let _ = host.kill(inner, Signal::SIGKILL);
        }
    }
}

/// The state letter of a process of the host, if it has it.
pub fn state_of(host: &Host, pid: i32) -> Option<char> {
    let outer = host.outer_pid(pid).ok()?;
    let stat = fs::read_to_string(format!("/proc/{outer}/stat")).ok()?;
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    (!matches!(state, 'Z' | 'X')).then_some(state)
}
