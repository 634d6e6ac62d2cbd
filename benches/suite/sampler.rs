//! Looks at the memory of the engines in a lab while they work.

use ferry_lab::hosts::Host;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(10);

/// The most of each that was seen of one kind of process, in MiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Peak {
    /// The kernel's own high-water mark of all of it.
    pub hwm: f64,
    /// Memory of its own. The receiver's page store is not in it: that is a memory
    /// file which it writes and does not map.
    pub anonymous: f64,
}

/// By the verb of ferry, or `criu`.
pub type Peaks = BTreeMap<String, Peak>;

/// Samples until it is stopped.
pub struct Sampler<'scope> {
    stop: Arc<AtomicBool>,
    thread: ScopedJoinHandle<'scope, Peaks>,
}

impl<'scope> Sampler<'scope> {
    pub fn start<'env>(scope: &'scope std::thread::Scope<'scope, 'env>, host: &'env Host) -> Sampler<'scope> {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = scope.spawn(move || {
            let mut peaks = Peaks::new();
            while !asked.load(Ordering::Relaxed) {
                for (outer, _) in host.processes().unwrap_or_default() {
                    if let Some((kind, now)) = look_at(outer) {
                        let peak = peaks.entry(kind).or_default();
                        peak.hwm = peak.hwm.max(now.hwm);
                        peak.anonymous = peak.anonymous.max(now.anonymous);
                    }
                }
                std::thread::sleep(PERIOD);
            }
            peaks
        });
        Sampler { stop, thread }
    }

    pub fn stop(self) -> Peaks {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler's thread")
    }
}

fn look_at(pid: i32) -> Option<(String, Peak)> {
    let line = read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&str> = line.split('\0').collect();
    let kind = match words[..] {
        [program, verb, ..] if program.ends_with("/ferry") || program.ends_with("/exe") => match verb {
            "workload" => return None,
            verb => verb,
        },
        _ if words.contains(&"criu") => "criu",
        _ => return None,
    };
    let status = read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mib = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(1));
        value.and_then(|kib| kib.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
    };
    Some((kind.into(), Peak { hwm: mib("VmHWM"), anonymous: mib("RssAnon") }))
}
