//! The destination's side: whether what is offered can be had here.

use super::elf;
use super::finding::{Finding, Force, Severity, Subject};
use super::needs::{MAX_FILES, MAX_PORTS};
use super::proc::fields::{Fields, Stat};
use super::proc::limits::{HardLimits, shown};
use super::proc::may_raise_limits;
use super::socket_tables::{Sockets, tcp};
use crate::net::address;
use crate::sys::userfaultfd;
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    FileClaim, Hello, LimitClaim, Offer, PROTOCOL_VERSION, PortClaim, PortProtocol, RestoreMode,
};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is true of this host.
#[derive(Clone, Debug)]
pub struct LocalFacts {
    /// What this host says of itself.
    pub hello: Hello,
    /// Memory that can be had without swapping (MemAvailable).
    pub memory_available: Bytes,
    /// Where journals and images go.
    pub places: Vec<PathBuf>,
    /// Of these, where images go: for an eager restore all of memory.
    pub images: Option<PathBuf>,
    /// The hard limits that a copy can be given; `None` where any can.
    pub limits: Option<HardLimits>,
    /// Whether pages may follow after the restore.
    pub lazy: LazyRestore,
}

/// Whether userfaultfd may be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LazyRestore {
    /// It may.
    Possible,
    /// It may not: a lazy restore fails.
    Impossible,
}

/// Room that images and logs may take.
const STATE_ROOM: u64 = 64 << 20;
/// The most numbers that are looked at: a kernel has no more than 4 Mi, a tree far fewer.
const MAX_PIDS: usize = 65_536;
/// The most findings about files and numbers of each kind that are listed.
const MAX_LISTED: usize = 50;

/// The CPU features that a program chooses its code by; without them a copy
/// dies of an illegal instruction after the move, or its registers do not fit.
const FEATURES: [&str; 19] = [
    "avx", "sse", "ssse", "aes", "xsave", "bmi", "fma", "f16c", "popcnt", "movbe", "sha_ni", "vaes",
    "vpclmul", "pclmul", "gfni", "adx", "abm", "rdrand", "rdseed",
];

/// Everything that would make this offer fail here, the worst first. `peer` is
/// the source; what it says is only compared, never opened for writing.
pub fn check_destination(offer: &Offer, peer: &Hello, here: &LocalFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    hosts(peer, here, &mut found);
    memory(offer, here, &mut found);
    too_many(offer, &mut found);
    numbers(&offer.pids[..offer.pids.len().min(MAX_PIDS)], &mut found);
    found.extend(offer.files.iter().take(MAX_FILES).filter_map(file).take(MAX_LISTED));
    move_address(offer, &mut found);
    ports(&offer.ports[..offer.ports.len().min(MAX_PORTS)], &mut found);
    limits(&offer.limits, here, &mut found);
    if offer.restore == RestoreMode::Lazy && here.lazy == LazyRestore::Impossible {
        let what = "userfaultfd cannot be used here, so pages cannot follow a restore";
        blocks(&mut found, Force::Final, what, "use --restore eager; the downtime then grows with memory");
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

fn blocks(found: &mut Vec<Finding>, force: Force, what: impl Into<String>, advice: &str) {
    found.push(Finding::host(Severity::Blocks, force, what, advice));
}

fn hosts(peer: &Hello, here: &LocalFacts, found: &mut Vec<Finding>) {
    let own = &here.hello;
    if peer.protocol != PROTOCOL_VERSION {
        let what = format!("the source speaks protocol {} and this host {PROTOCOL_VERSION}", peer.protocol);
        blocks(found, Force::Final, what, "use the same version of ferry on both hosts");
    }
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
        // The sender's --force is not to fill this host.
        blocks(found, Force::Final, what, "free memory here, or receive with a higher --memory-limit");
    }
    for place in &here.places {
        let Some(free) = room(place).filter(|free| free.0 < STATE_ROOM) else { continue };
        let what = format!("{free} are free in {}, images and journals need room", place.display());
        blocks(found, Force::Overridable, what, "free some, or name another directory with --state");
    }
    if let (RestoreMode::Eager, Some(images)) = (offer.restore, &here.images)
        && let Some(free) = room(images).filter(|free| free.0 < needed)
    {
        let place = images.display();
        let what = format!(
            "an eager restore writes up to {} of images to {place}, where {free} are free",
            Bytes(needed)
        );
        // The sender's --force is not to fill this host.
        blocks(
            found,
            Force::Final,
            what,
            "use --restore lazy, or make the tmpfs there larger (mount -o remount,size=…)",
        );
    }
}

/// What may still be written there.
fn room(place: &Path) -> Option<Bytes> {
    let room = nix::sys::statvfs::statvfs(place).ok()?;
    Some(Bytes(room.blocks_available().saturating_mul(room.fragment_size())))
}

/// A paired source may still be mad: what it may make us look at is limited.
fn too_many(offer: &Offer, found: &mut Vec<Finding>) {
    for (count, most, what) in [
        (offer.pids.len(), MAX_PIDS, "process numbers"),
        (offer.files.len(), MAX_FILES, "files"),
        (offer.ports.len(), MAX_PORTS, "ports"),
    ] {
        if count > most {
            let what = format!("{count} {what} are claimed, only {most} of them were looked at");
            found.push(Finding::host(Severity::Risks, Force::Overridable, what, ""));
        }
    }
}

/// Ports that a socket of this host has already.
pub(crate) fn ports(claims: &[PortClaim], found: &mut Vec<Finding>) {
    if claims.is_empty() {
        return;
    }
    let Ok(here) = Sockets::here() else { return };
    let held: BTreeSet<PortClaim> = {
        let listening = here.tcp.values().filter(|socket| socket.state == tcp::LISTEN);
        let tcp = listening.map(|socket| (PortProtocol::Tcp, socket.local));
        let bound = here.udp.values().filter(|socket| socket.state == tcp::CLOSE);
        let udp = bound.map(|socket| (PortProtocol::Udp, socket.local));
        tcp.chain(udp).map(|(protocol, (address, port))| PortClaim { protocol, address, port }).collect()
    };
    let collides = |claim: &PortClaim, other: &PortClaim| {
        (claim.protocol, claim.port) == (other.protocol, other.port)
            && (claim.address == other.address
                || claim.address.is_unspecified()
                || other.address.is_unspecified())
    };
    let taken = claims.iter().filter(|claim| held.iter().any(|other| collides(claim, other)));
    for PortClaim { protocol, address, port } in taken.take(MAX_LISTED) {
        let protocol = match protocol {
            PortProtocol::Tcp => "TCP",
            PortProtocol::Udp => "UDP",
        };
        let what = format!("{protocol} port {port}, which it has on {address}, is in use here");
        let advice = "stop what has it (ss -lntup), or receive in a network namespace of its own";
        blocks(found, Force::Overridable, what, advice);
    }
}

/// Hard limits that the copy had at the source and cannot have here.
fn limits(claims: &[LimitClaim], here: &LocalFacts, found: &mut Vec<Finding>) {
    let Some(own) = &here.limits else { return };
    for (name, theirs, ours) in own.above(claims.iter().map(|claim| (&claim.name, claim.hard))) {
        let what = format!(
            "the hard limit {name:?} is {} at the source and at most {} here, without CAP_SYS_RESOURCE",
            shown(theirs),
            shown(ours)
        );
        let advice = "start `ferry receive` with a limit as high, or with that capability";
        found.push(Finding::host(Severity::Risks, Force::Overridable, what, advice));
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
    /// Reads what this host has; the rest the caller knows.
    pub fn read(hello: Hello, places: Vec<PathBuf>, images: Option<PathBuf>) -> LocalFacts {
        let kibibytes: u64 = Fields::of("/proc/meminfo").number("MemAvailable").unwrap_or(0);
        let limits = (!may_raise_limits()).then(|| HardLimits::of("self"));
        let lazy = match userfaultfd::open() {
            Ok(_) => LazyRestore::Possible,
            Err(_) => LazyRestore::Impossible,
        };
        let memory_available = Bytes(kibibytes.saturating_mul(1024));
        LocalFacts { hello, memory_available, places, images, limits, lazy }
    }
}

/// This processor's features, as the kernel names them; empty where it names none.
pub fn cpu_features() -> Vec<String> {
    let text = super::proc::read("/proc/cpuinfo", 1 << 20).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let features = line.and_then(|line| line.split_once(':')).map_or("", |(_, features)| features);
    features.split_ascii_whitespace().map(str::to_owned).collect()
}
