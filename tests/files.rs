//! Directories that come along, with a program that is at work in them while it moves.

mod support;

use ferry_lab::hosts::{Cable, Host, Process, Program};
use nix::sys::signal::Signal;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::rig::{FERRY, PATIENCE, PORT, Rig, STATE, migrate, start_receiver};
use support::trial::end_receiver;
use support::trial::proof::state_of;

/// Each host has a /tmp of its own.
const DATA: &str = "/tmp/data";
const BREAKPOINT: &str = "/run/breakpoint";

struct Filer {
    rig: Rig,
    pid: i32,
}

impl Filer {
    fn new(name: &str) -> Option<Filer> {
        let rig = Rig::new(name, &["/usr/bin/python3"])?;
        let script = rig.install("filer.py");
        fs::create_dir(rig.here().path(DATA)).unwrap();
        let program = Program::new("/usr/bin/python3").args([&script, DATA]).stderr("/srv/filer.err");
        let pid = rig.start(program).pid;
        let filer = Filer { rig, pid };
        filer.works_on();
        Some(filer)
    }

    /// Waits until it has done some more, and sees that nothing was lost or done twice.
    fn works_on(&self) {
        let begin = self.steps();
        let deadline = Instant::now() + PATIENCE;
        while self.steps() < begin + 150 {
            assert!(Instant::now() < deadline, "it does not work on: {begin}\n{}", self.errors());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.rig.lab.source().path("/srv/filer.err")).unwrap_or_default()
    }

    /// How many steps it has done; each is in the logs once, and in the ledger.
    fn steps(&self) -> usize {
        let host = self.rig.here();
        // While it stands still, a log has one name.
        host.kill(self.pid, Signal::SIGSTOP).unwrap();
        while state_of(host, self.pid) != Some('T') {
            std::thread::sleep(Duration::from_millis(1));
        }
        let bad = fs::read_to_string(host.path(format!("{DATA}/bad")));
        let (log, ledger) = (log(host), fs::read(host.path(format!("{DATA}/ledger"))).unwrap_or_default());
        host.kill(self.pid, Signal::SIGCONT).unwrap();
        assert!(bad.is_err(), "it found: {bad:?}");
        let right = log.iter().enumerate().all(|(index, step)| *step == index as u64 + 1);
        assert!(right, "lost or repeated: {log:?}");
        let (words, _) = ledger.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        assert!(words.enumerate().all(|(index, word)| word == index as u64), "the ledger is wrong");
        log.len()
    }

    /// Nothing but the directory is in its place on either host.
    fn nothing_is_left(&self) {
        for host in &self.rig.lab.hosts()[..2] {
            let names = names(host, "/tmp");
            assert!(names.iter().all(|name| name == "data"), "{}: {names:?}", host.name());
            let written: Vec<String> = names_or_none(host, &format!("{STATE}/files"));
            assert!(written.is_empty(), "{}: {written:?}", host.name());
        }
    }

    /// Starts a migration that stops at a message of the source's.
    fn stopped_at(&self, place: &str) -> Process<'_> {
        let (here, there) = (self.rig.here(), self.rig.there());
        let _ = fs::remove_dir_all(here.path(BREAKPOINT));
        fs::create_dir(here.path(BREAKPOINT)).unwrap();
        there.forget_exit(self.pid);
        let program = Program::new(FERRY)
            .args(["migrate".to_string(), format!("pid:{}", self.pid)])
            .args(["--to".to_string(), SocketAddr::from((there.address(), PORT)).to_string()])
            .args(["--state", STATE, "--json", "--sync-dir", DATA])
            .args(["--link-timeout", "1500ms", "--freeze-deadline", "4s"])
            .env("FERRY_BREAKPOINT", format!("{place}:{BREAKPOINT}"))
            .stdout("/run/migrate.out")
            .stderr("/run/migrate.err");
        let engine = here.spawn(program).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !here.path(format!("{BREAKPOINT}/reached")).exists() {
            assert!(Instant::now() < deadline, "{place} is not reached: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        engine
    }

    /// Lets it go on; it fails, and the workload works on here.
    fn goes_on_and_fails(&self, engine: &Process<'_>) -> String {
        fs::write(self.rig.here().path(format!("{BREAKPOINT}/go")), b"").unwrap();
        let exit = engine.wait_for(PATIENCE).unwrap().expect("an end");
        assert!(!exit.success(), "{}", self.said());
        self.works_on();
        self.said()
    }

    fn said(&self) -> String {
        let read = |file| fs::read_to_string(self.rig.here().path(file)).unwrap_or_default();
        read("/run/migrate.out") + &read("/run/migrate.err")
    }

    /// Waits until the destination has nothing of it any more.
    fn is_gone_there(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !names(self.rig.there(), "/tmp").is_empty() {
            assert!(Instant::now() < deadline, "left: {:?}", names(self.rig.there(), "/tmp"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn log(host: &Host) -> Vec<u64> {
    let mut logs = names(host, DATA);
    logs.retain(|name| name.starts_with("log"));
    logs.sort();
    // The one without a number is the newest.
    let newest = usize::from(logs.first().is_some_and(|name| name == "log"));
    logs.rotate_left(newest);
    let text = logs.iter().map(|name| fs::read_to_string(host.path(format!("{DATA}/{name}"))).unwrap());
    text.collect::<String>().lines().map(|line| line.parse().unwrap()).collect()
}

fn names(host: &Host, directory: &str) -> Vec<String> {
    names_or_none(host, directory)
}

fn names_or_none(host: &Host, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(host.path(directory)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_directory_comes_along_and_goes_back() {
    let Some(filer) = Filer::new("files-move") else { return };
    let report = filer.rig.move_on(filer.pid, &["--sync-dir", DATA]);
    let files = &report["files"];
    println!("  {files}");
    assert!(files["rounds"].as_u64().unwrap() >= 1 && files["bytes"].as_u64().unwrap() > 0, "{report}");
    assert!(files["final_ms"].as_f64().is_some(), "{report}");
    filer.works_on();

    // Back, where the directory still is as it was left.
    let refused = migrate(filer.rig.here(), filer.rig.there(), filer.pid, &["--sync-dir", DATA]);
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("has content here"), "{why}");
    filer.works_on();
    let extra = ["--sync-dir", DATA, "--sync-existing", "replace", "--restore", "eager"];
    filer.rig.move_on(filer.pid, &extra);
    filer.works_on();
    filer.nothing_is_left();
}

#[test]
fn whatever_goes_wrong_it_works_on_here_and_nothing_is_left_there() {
    let Some(filer) = Filer::new("files-wrong") else { return };
    let there = filer.rig.there();

    let engine = filer.stopped_at("after-receive:Accepted");
    let resize = |size: &str| {
        let out = there.run(Program::shell(format!("mount -o remount,size={size} /tmp"))).unwrap();
        assert!(out.exit.success(), "{out:?}");
    };
    resize("64k");
    let said = filer.goes_on_and_fails(&engine);
    assert!(said.contains("no space is left there"), "{said}");
    resize("1g");
    filer.is_gone_there();

    for place in ["before-send:RoundEnd", "before-send:FinalState"] {
        let engine = filer.stopped_at(place);
        there.set_cable(Cable::Down).unwrap();
        filer.goes_on_and_fails(&engine);
        there.set_cable(Cable::Up).unwrap();
        filer.is_gone_there();
    }

    for place in ["before-send:RoundEnd", "after-receive:Ready"] {
        let engine = filer.stopped_at(place);
        end_receiver(there, Signal::SIGKILL);
        filer.goes_on_and_fails(&engine);
        start_receiver(there, None).unwrap();
        filer.is_gone_there();
    }
    filer.nothing_is_left();

    filer.rig.move_on(filer.pid, &["--sync-dir", DATA]);
    filer.works_on();
    filer.nothing_is_left();
}
