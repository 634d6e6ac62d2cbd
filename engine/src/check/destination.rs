//! The destination's side: whether what is offered can be had here.

use super::elf;
use super::finding::{Finding, Force, Severity, Subject};
use super::proc::fields::{Fields, Stat};
use crate::net::address;
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{FileClaim, Hello, Offer, RestoreMode};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is true of this host.
#[derive(Clone, Debug)]
pub struct LocalFacts {
    /// What this host says of itself.
    pub hello: Hello,
    /// Memory that can be had without swapping (MemAvailable).
    pub memory_available: Bytes,
    /// Where images and journals go.
    pub state: PathBuf,
    /// Whether userfaultfd may be used here; without it a restore is eager.
    pub lazy: bool,
}

/// Room that images and logs may take.
const STATE_ROOM: u64 = 64 << 20;
/// The most findings about files and numbers of each kind that are listed.
const MAX_LISTED: usize = 50;

/// The CPU features that a program chooses its code by; without them a copy
/// dies of an illegal instruction after the move, or its registers do not fit.
const FEATURES: [&str; 16] = [
    "avx", "sse", "aes", "xsave", "bmi", "fma", "f16c", "popcnt", "movbe", "sha_ni", "vaes", "vpclmul",
    "pclmul", "gfni", "erms", "fsrm",
];

/// Everything that would make this offer fail here, the worst first. `peer` is
/// the source; what it says is only compared, never opened for writing.
pub fn check_destination(offer: &Offer, peer: &Hello, here: &LocalFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    hosts(peer, here, &mut found);
    memory(offer, here, &mut found);
    numbers(&offer.pids, &mut found);
    found.extend(offer.files.iter().filter_map(file).take(MAX_LISTED));
    move_address(offer, &mut found);
    if offer.restore == RestoreMode::Lazy && !here.lazy {
        let what =
            "userfaultfd cannot be used here: the restore is eager, and the downtime grows with memory";
        found.push(Finding::host(
            Severity::Risks,
            Force::Overridable,
            what,
            "run ferry as root, or sysctl vm.unprivileged_userfaultfd=1",
        ));
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

fn blocks(found: &mut Vec<Finding>, force: Force, what: impl Into<String>, advice: &str) {
    found.push(Finding::host(Severity::Blocks, force, what, advice));
}

fn hosts(peer: &Hello, here: &LocalFacts, found: &mut Vec<Finding>) {
    let own = &here.hello;
    if peer.machine != own.machine {
        let what = format!("the source is {}, this host {}", peer.machine, own.machine);
        blocks(found, Force::Final, what, "move between hosts of one architecture");
    }
    if peer.page_size != own.page_size {
        let what = format!("pages are {} bytes at the source and {} here", peer.page_size, own.page_size);
        blocks(found, Force::Final, what, "boot kernels with one page size");
    }
    if own.criu.is_empty() {
        blocks(found, Force::Final, "there is no CRIU here", "run ferry setup");
    } else if version(&own.criu) < version(&peer.criu) {
        let what = format!(
            "CRIU is {} at the source and {} here, which may not read its images",
            peer.criu, own.criu
        );
        blocks(found, Force::Overridable, what, "run ferry setup here");
    }
    if peer.kernel != own.kernel {
        let what = format!("the kernel is {} at the source and {} here", peer.kernel, own.kernel);
        let severity =
            if version(&own.kernel) < version(&peer.kernel) { Severity::Risks } else { Severity::Notes };
        found.push(Finding::host(severity, Force::Overridable, what, ""));
    }
    let missing: Vec<&str> = peer
        .cpu_features
        .iter()
        .map(String::as_str)
        .filter(|feature| FEATURES.iter().any(|kind| feature.starts_with(kind)))
        .filter(|feature| !own.cpu_features.iter().any(|mine| mine == feature))
        .take(MAX_LISTED)
        .collect();
    if !missing.is_empty() {
        let what = format!("this processor lacks what the source's has: {}", missing.join(" "));
        blocks(found, Force::Overridable, what, "--force if the program does not use them");
    }
}

/// The leading numbers of a version, compared in order.
fn version(text: &str) -> Vec<u32> {
    let parts = text.split(|c: char| !c.is_ascii_digit()).take(8);
    parts.map_while(|part| part.parse().ok()).collect()
}

fn memory(offer: &Offer, here: &LocalFacts, found: &mut Vec<Finding>) {
    let needed = offer.memory.0.saturating_add(offer.memory.0 / 10);
    if needed > here.memory_available.0 {
        let what = format!("it needs {}, and {} are available here", Bytes(needed), here.memory_available);
        blocks(found, Force::Overridable, what, "free memory here");
    }
    if let Ok(room) = nix::sys::statvfs::statvfs(&here.state) {
        let free = room.blocks_available().saturating_mul(room.fragment_size());
        if free < STATE_ROOM {
            let what = format!("{} are free in {}", Bytes(free), here.state.display());
            blocks(found, Force::Overridable, what, "free some, or name another directory with --state");
        }
    }
}

fn numbers(pids: &[u32], found: &mut Vec<Finding>) {
    let limit: u32 = super::proc::read("/proc/sys/kernel/pid_max", 64)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(32768);
    let taken = pids.iter().filter_map(|pid| {
        if *pid == 0 || *pid >= limit {
            return Some(format!("process number {pid} is above this host's kernel.pid_max of {limit}"));
        }
        let id = i32::try_from(*pid).ok()?;
        let name = Stat::of(&format!("/proc/{id}/stat")).map(|stat| format!("process {id} ({})", stat.comm));
        let holder = name.or_else(|| as_group(id))?;
        Some(format!("the number {pid} is taken here by {holder}"))
    });
    let advice = "start the workload in a PID namespace (unshare --pid --fork), or receive inside one";
    found.extend(
        taken.take(MAX_LISTED).map(|what| Finding::host(Severity::Blocks, Force::Overridable, what, advice)),
    );
}

/// A process group that outlived its first process keeps the number.
fn as_group(id: i32) -> Option<String> {
    let group = nix::unistd::Pid::from_raw(-id);
    let lives = id > 1 && nix::sys::signal::kill(group, None) != Err(nix::errno::Errno::ESRCH);
    lives.then(|| format!("a process group {id}"))
}

/// Compares one file; `None` when it is as claimed.
fn file(claim: &FileClaim) -> Option<Finding> {
    let problem = |what: String, advice: &str| {
        let mut finding = Finding::host(Severity::Blocks, Force::Overridable, what, advice);
        finding.subject = Subject::File { path: claim.path.clone() };
        Some(finding)
    };
    let path = Path::new(&claim.path);
    if !path.is_absolute() || claim.path.contains('\0') {
        return problem("not an absolute path".into(), "");
    }
    let Ok(about) = std::fs::metadata(path) else {
        return problem("it is not here".into(), "install the same version of the program, or copy the file");
    };
    if about.mode() & libc::S_IFMT != claim.mode & libc::S_IFMT {
        return problem("it is of another type here".into(), "copy the file");
    }
    if about.mode() & 0o7777 != claim.mode & 0o7777 {
        let what =
            format!("its mode is {:o} here, {:o} at the source", about.mode() & 0o7777, claim.mode & 0o7777);
        return problem(what, "chmod it");
    }
    if claim.size.is_some_and(|size| size != about.len()) {
        let what = format!("its size is {} here, {} at the source", about.len(), claim.size.unwrap_or(0));
        return problem(what, "install the same version, or copy the file");
    }
    // A device or a FIFO is never opened.
    if claim.build_id.is_some() && about.is_file() && elf::build_id(path) != claim.build_id {
        return problem("it is another build".into(), "install the same version, or copy the file");
    }
    None
}

fn move_address(offer: &Offer, found: &mut Vec<Finding>) {
    let Some(moved) = &offer.move_address else { return };
    let interfaces = address::local_interfaces().unwrap_or_default();
    match interfaces.iter().find(|interface| interface.name == moved.interface) {
        None => {
            let what = format!("there is no interface {} here for {}", moved.interface, moved.address);
            blocks(
                found,
                Force::Final,
                what,
                "name one of this host with --move-ip ADDRESS/LENGTH@INTERFACE",
            );
        }
        Some(interface) if !interface.up => {
            let what = format!("the interface {} is down", interface.name);
            blocks(found, Force::Final, what, "ip link set it up");
        }
        Some(_) => {}
    }
    if address::local_addresses().unwrap_or_default().iter().any(|held| held.address == moved.address) {
        let what = format!("the address {} is on this host already", moved.address);
        blocks(found, Force::Final, what, "remove it here");
    }
}

impl LocalFacts {
    /// Reads what this host has; `hello` and `lazy` the caller knows.
    pub fn read(hello: Hello, state: PathBuf, lazy: bool) -> LocalFacts {
        let kibibytes: u64 = Fields::of("/proc/meminfo").number("MemAvailable").unwrap_or(0);
        LocalFacts { hello, memory_available: Bytes(kibibytes * 1024), state, lazy }
    }
}

/// This processor's features, as the kernel names them; empty where it names none.
pub fn cpu_features() -> Vec<String> {
    let text = super::proc::read("/proc/cpuinfo", 1 << 20).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let features = line.and_then(|line| line.split_once(':')).map_or("", |(_, features)| features);
    features.split_ascii_whitespace().map(str::to_owned).collect()
}
