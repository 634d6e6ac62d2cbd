//! What must hold after every trial.

use super::{Ends, Trial, WITNESS, receiver_of};
use crate::support::rig::{FERRY, NFT, PATIENCE, SERVICE, STATE};
use ferry_lab::hosts::{Host, Program};
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

impl Trial {
    /// How many steps were done; each once and in order.
    pub(super) fn steps(&self) -> usize {
        let text = fs::read_to_string(self.rig.here().path(WITNESS)).unwrap();
        let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for (number, line) in complete.lines().enumerate() {
            assert_eq!(line, (number + 1).to_string(), "a step was lost or done twice\n{}", self.logs());
        }
        complete.lines().count()
    }

    /// Ends what is in doubt by asking the destination, as an operator would.
    pub(super) fn resolve(&self, host: &Host, what: &str) {
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
    pub(super) fn where_it_runs(&self, what: &str) -> Ends {
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
    pub(super) fn nothing_is_left(&self, what: &str) {
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

    pub(super) fn logs(&self) -> String {
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

/// Where a host has something mounted.
pub(super) fn mounts(host: &Host) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", host.first_process())).unwrap();
    text.lines().filter_map(|line| line.split(' ').nth(4).map(String::from)).collect()
}

/// The state letter of a process of the host, if it has it.
pub fn state_of(host: &Host, pid: i32) -> Option<char> {
    let outer = host.outer_pid(pid).ok()?;
    let stat = fs::read_to_string(format!("/proc/{outer}/stat")).ok()?;
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    (!matches!(state, 'Z' | 'X')).then_some(state)
}
