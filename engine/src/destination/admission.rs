//! What is refused before anything is sent, with every reason at once.

use ferry_transport::page::PAGE_SIZE;
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{FileClaim, Hello, Offer, PROTOCOL_VERSION};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What this host has for a migration.
pub(super) struct Host<'a> {
    /// What this side says of itself.
    pub(super) hello: &'a Hello,
    /// Memory that other migrations will still take.
    pub(super) reserved: Bytes,
    /// The user's limit.
    pub(super) limit: Option<Bytes>,
    /// Whether the images are written to memory too.
    pub(super) work: &'a Path,
}

/// Everything that makes the offer impossible here.
pub(super) fn reasons(offer: &Offer, theirs: &Hello, host: &Host<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    if theirs.protocol != PROTOCOL_VERSION {
        reasons.push(format!(
            "the source speaks protocol {} and this host {PROTOCOL_VERSION}: use the same version of ferry",
            theirs.protocol
        ));
    }
    if theirs.machine != host.hello.machine {
        reasons.push(format!("the source is {}, this host {}", theirs.machine, host.hello.machine));
    }
    if theirs.page_size as usize != PAGE_SIZE {
        reasons.push(format!("the source has pages of {} bytes", theirs.page_size));
    }
    if older(&host.hello.criu, &theirs.criu) {
        reasons.push(format!(
            "CRIU here is {} and at the source {}: update it here (`ferry setup`)",
            host.hello.criu, theirs.criu
        ));
    }
    let missing: Vec<&str> = theirs
        .cpu_features
        .iter()
        .filter(|feature| matters(feature) && !host.hello.cpu_features.contains(feature))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        reasons.push(format!("this processor lacks {}", missing.join(", ")));
    }
    reasons.extend(memory(offer, host));
    for pid in &offer.pids {
        if Path::new(&format!("/proc/{pid}")).exists() {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            reasons.push(format!(
                "PID {pid} is taken here by {}: end it, or receive in a PID namespace of its own",
                comm.trim()
            ));
        }
    }
    reasons.extend(offer.files.iter().filter_map(file));
    reasons
}

fn memory(offer: &Offer, host: &Host<'_>) -> Option<String> {
    // The store holds every page until it is handed over, and hands over as it frees.
    let needed = Bytes(offer.memory.0 / 10 * 11);
    let available = host.limit.or_else(available_memory)?;
    let left = Bytes(available.0.saturating_sub(host.reserved.0));
    (needed > left)
        .then(|| format!("{needed} of memory are needed and {left} are free here ({})", host.work.display()))
}

fn available_memory() -> Option<Bytes> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok().map(|kib: u64| Bytes(kib << 10))
}

fn file(claim: &FileClaim) -> Option<String> {
    let path = &claim.path;
    let there = match std::fs::metadata(path) {
        Ok(there) => there,
        Err(error) => return Some(format!("{path}: {error}: install or copy it here")),
    };
    if there.mode() & 0o170_000 != claim.mode & 0o170_000 {
        return Some(format!("{path} is not the same kind of file here"));
    }
    if there.mode() & 0o7777 != claim.mode & 0o7777 {
        let (here, source) = (there.mode() & 0o7777, claim.mode & 0o7777);
        return Some(format!("{path} has mode {here:o} here and {source:o} at the source"));
    }
    let size = claim.size.filter(|size| *size != there.len())?;
    Some(format!("{path} has {} bytes here and {size} at the source: not the same file", there.len()))
}

/// Features whose absence kills a program that has found them at its start.
fn matters(feature: &str) -> bool {
    const FAMILIES: [&str; 12] =
        ["avx", "sse", "ssse", "bmi", "aes", "vaes", "fma", "pclmul", "vpclmul", "sha_ni", "adx", "xsave"];
    FAMILIES.iter().any(|family| feature.starts_with(family))
        || ["popcnt", "rdrand", "rdseed", "movbe", "f16c", "gfni", "erms", "fsrm", "abm"].contains(&feature)
}

/// Whether version `ours` is older than `theirs`; unreadable ones are not compared.
fn older(ours: &str, theirs: &str) -> bool {
    let parse = |text: &str| -> Option<Vec<u32>> {
        text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()
    };
    matches!((parse(ours), parse(theirs)), (Some(ours), Some(theirs)) if ours < theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_transport::wire::control::{MigrationId, RestoreMode, TcpMode};

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            revision: "test".into(),
            machine: "x86_64".into(),
            page_size: 4096,
            kernel: "6.18".into(),
            criu: "4.2.1".into(),
            cpu_features: vec!["avx2".into(), "fpu".into()],
        }
    }

    fn offer() -> Offer {
        Offer {
            id: MigrationId(1),
            target: "pid:1".into(),
            memory: Bytes::MIB,
            pids: vec![],
            restore: RestoreMode::Lazy,
            tcp: TcpMode::Established,
            move_address: None,
            files: vec![],
        }
    }

    fn found(offer: &Offer, theirs: &Hello, limit: u64) -> Vec<String> {
        let host =
            Host { hello: &hello(), reserved: Bytes(0), limit: Some(Bytes(limit)), work: Path::new("/run") };
        reasons(offer, theirs, &host)
    }

    #[test]
    fn what_fits_is_admitted() {
        assert_eq!(found(&offer(), &hello(), 1 << 30), Vec::<String>::new());
    }

    #[test]
    fn every_reason_is_named_at_once() {
        let theirs = Hello {
            protocol: 99,
            machine: "aarch64".into(),
            criu: "4.3".into(),
            cpu_features: vec!["avx512f".into(), "nopl".into()],
            ..hello()
        };
        let file = FileClaim { path: "/nonexistent/x".into(), size: None, mode: 0o100_644, build_id: None };
        let wrong = FileClaim { path: "/".into(), size: None, mode: 0o100_644, build_id: None };
        let offer = Offer { pids: vec![1], files: vec![file, wrong], ..offer() };
        let reasons = found(&offer, &theirs, 1 << 10);
        for word in
            ["protocol", "aarch64", "CRIU", "avx512f", "memory", "PID 1 ", "/nonexistent/x", "kind of file"]
        {
            assert!(reasons.iter().any(|reason| reason.contains(word)), "{word}: {reasons:?}");
        }
        assert!(!reasons.iter().any(|reason| reason.contains("nopl")), "{reasons:?}");
    }
}
