//! One migration that goes wrong at a chosen place, and what must hold after it.
//!
//! An engine stops at a message (`FERRY_BREAKPOINT`), something is done to it, its
//! peer, its CRIU or the cable, and it goes on. Whatever that was, afterwards the
//! workload runs once, no step of it is lost or done twice, its connections live,
//! and nothing of the migration is left on either host.

mod criu;
mod deed;
mod host;
pub mod proof;

pub use deed::Deed;
#[allow(unused_imports, reason = "not every suite waits for a failure of the host")]
pub use host::{Fate, Kept, Oom};

use super::counter::{self, Counter};
use super::rig::{FERRY, PATIENCE, PORT, Rig, SERVICE, STATE, start_receiver_with};
use ferry_lab::apps::load::Load;
use ferry_lab::hosts::{Exit, Host, Process, Program};
use nix::sys::signal::Signal;
use proof::mounts;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Which engine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Source,
    Destination,
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
    /// Of every receiver that is started.
    memory_limit: Option<&'static str>,
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
        let files = [Kept::Open, Kept::Mapped];
        for host in &rig.lab.hosts()[..2] {
            files.iter().for_each(|file| file.lay_down(host));
        }
        let [open, mapped] = files.map(|file| file.path().to_owned());
        let arguments = [script, SERVICE.to_string(), "7100".into(), WITNESS.into(), open, mapped];
        let (uid, gid) = rig.user();
        let server =
            Program::new("/usr/bin/python3").args(arguments).user(uid, gid).stderr("/srv/server.err");
        let pid = rig.start(server).pid;
        let clients = (0..2).map(|_| rig.connect(|| Counter::connect(address))).collect();
        let load = Some(Load::start(clients, 100.0));
        let commands = RefCell::new(rig.connect(|| Counter::connect(address)));
        let mounts = [0, 1].map(|n| mounts(&rig.lab.hosts()[n]));
        Some(Trial { rig, pid, load, commands, mounts, memory_limit: None, done: 0 })
    }

    /// What arriving pages may take at a destination, from now on.
    pub fn limit_memory(&mut self, limit: Option<&'static str>) {
        self.memory_limit = limit;
        for host in &self.rig.lab.hosts()[..2] {
            end_receiver(host, Signal::SIGTERM);
            self.start_receiver(host, None);
        }
    }

    fn start_receiver(&self, host: &Host, breakpoint: Option<&str>) {
        let limit: Vec<&str> = self.memory_limit.iter().flat_map(|limit| ["--memory-limit", limit]).collect();
        start_receiver_with(host, breakpoint, &limit).expect("a receiver");
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
            self.start_receiver(there, None);
        }
        self.resolve(here, &what);
        let ran = self.where_it_runs(&what);
        println!("  {what}: runs {ran:?} after {:.1} s", began.elapsed().as_secs_f64());
        assert!(ends == Ends::Either || ran == ends, "{what}: runs {ran:?}, not {ends:?}\n{}", self.logs());
        if ran == Ends::There {
            self.rig.it_moved();
        }
        self.nothing_is_left(&what);
        // So that no outage of the next trial falls on a client that waits because of this one.
        if !self.load.as_ref().is_some_and(|load| load.goes_on(PATIENCE)) {
            println!("{what}: a connection broke\n{}", self.logs());
            counter::finish(self.load.take().expect("a load"));
        }
        if let (Some(said), Ends::Here) = (deed.said(), ran) {
            let report = fs::read_to_string(here.path("/run/migrate.out")).unwrap();
            assert!(report.contains(said), "{what}: the report does not say `{said}`\n{}", self.logs());
        }
        self.done += 1;
    }

    /// One in which CRIU dies where that may cost the workload its life. Whether it did:
    /// then this is said, and nothing is left; else all is well.
    pub fn is_fatal(&mut self, mark: &'static str) -> bool {
        let deed = Deed::KillCriuAmid(At::Source, mark, 0);
        let what = format!("{deed:?}");
        let here = self.rig.here();
        let (engine, stopped) = self.migrate_to(At::Source, "after-send:Freezing", &what);
        let undo = self.perform(deed, &engine);
        self.let_go(&engine, stopped, &what);
        undo();
        let report = fs::read_to_string(here.path("/run/migrate.out")).unwrap();
        assert!(report.contains("CRIU died"), "{what}\n{}", self.logs());
        let said = "CRIU was killed within the dump also ended process";
        let is_dead = proof::state_of(here, self.pid).is_none() || report.contains(said);
        println!("  {what}: {}", if is_dead { "a process died of it" } else { "it lives" });
        if is_dead {
            assert!(report.contains(said), "{what}: that it died is not said\n{}", self.logs());
        } else {
            assert_eq!(self.where_it_runs(&what), Ends::Here, "{what}");
            assert!(self.load.as_ref().is_some_and(Load::is_well), "{what}: a connection broke");
        }
        self.nothing_is_left(&what);
        is_dead
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
                self.start_receiver(there, Some(&breakpoint));
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

    /// It can be moved again, whatever happened before.
    pub fn goes_right(&mut self) {
        // A receiver that has no breakpoint.
        end_receiver(self.rig.there(), Signal::SIGTERM);
        self.start_receiver(self.rig.there(), None);
        self.rig.move_on(self.pid, &[]);
        self.nothing_is_left("a sound migration");
    }

    /// Every reply was right, and every step was done once.
    pub fn finish(mut self) {
        self.goes_right();
        self.commands.borrow_mut().deed("check").expect("its memory is right");
        counter::finish(self.load.take().expect("a load"));
        let steps = self.steps();
        println!("  {} faults, {steps} steps, none lost, none twice", self.done);
    }
}

/// The PID in the host of its `ferry receive`.
pub fn receiver_of(host: &Host) -> Option<i32> {
    let found = host.processes().unwrap().into_iter().find(|(outer, _)| {
        let line = fs::read_to_string(format!("/proc/{outer}/cmdline")).unwrap_or_default();
        line.split('\0').take(2).eq([FERRY, "receive"])
    });
    found.map(|(_, inner)| inner)
}

fn signal_receiver(host: &Host, signal: Signal) {
    // One that was told to end before may be gone by now.
    if let Some(pid) = receiver_of(host)
        && let Err(error) = host.kill(pid, signal)
    {
        assert_ne!(receiver_of(host), Some(pid), "{error}");
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
