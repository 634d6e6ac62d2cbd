//! What a process has open.

use crate::scenario::{SCENARIO, blocks, one_block, plain, python, root, start};
use ferry_engine::check::{Force, Severity, SourceOptions, Subject, check_source, describe_needs};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Stdio;

#[test]
fn a_large_deleted_file_blocks_unless_the_limit_allows_it() {
    if !root() {
        return;
    }
    let subjected = plain("deleted");
    one_block(&subjected, "deleted file");
    assert_ne!(subjected.dumps(), Some(true));
    assert!(blocks(&check_source(subjected.pid(), &SourceOptions::default())).is_empty());
}

#[test]
fn a_terminal_of_somebody_else_blocks() {
    if !root() {
        return;
    }
    let pty = nix::pty::openpty(None, None).unwrap();
    let slave: OwnedFd = pty.slave;
    let subjected = start("clean", |_, command| {
        command.stdin(slave);
    });
    one_block(&subjected, "terminal");
    drop(pty.master);
}

#[test]
fn a_pipe_to_the_outside_blocks_and_may_be_forced() {
    if !root() {
        return;
    }
    let subjected = start("clean", |_, command| {
        command.stdin(Stdio::piped());
    });
    one_block(&subjected, "outside the tree, holds this pipe");
    let findings = subjected.findings();
    assert_eq!(blocks(&findings)[0].force, Force::Overridable);
}

#[test]
fn a_pipe_in_packet_mode_blocks() {
    if !root() {
        return;
    }
    let Some((subjected, end)) = python(&[], "word = os.pipe2(os.O_DIRECT)[1]", &[]) else { return };
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert_eq!(blocking.len(), 1, "{findings:#?}");
    assert!(blocking[0].what.contains("packet mode"));
    assert!(matches!(blocking[0].subject, Subject::Descriptor { fd, .. } if fd.to_string() == end));
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn a_block_device_blocks() {
    if !root() {
        return;
    }
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let mut reason = None;
    let device = ["/dev/loop0", "/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/ram0"];
    let Some(device) = device.iter().find(|path| File::open(path).is_ok()) else {
        eprintln!("skipped: no block device can be opened here");
        return;
    };
    let number = std::os::unix::fs::MetadataExt::rdev(&std::fs::metadata(device).unwrap());
    let subjected = start("block-device", |place, command| {
        let path = place.join("device");
        let made = mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR, makedev(major(number), minor(number)));
        if made.is_err() || File::open(&path).is_err() {
            reason = Some("a device node made here cannot be opened");
            command.env(SCENARIO, "clean");
        }
    });
    if let Some(reason) = reason {
        eprintln!("skipped: {reason}");
        return;
    }
    one_block(&subjected, "block device");
    assert_ne!(subjected.dumps(), Some(true));
}

fn major(number: u64) -> u64 {
    nix::sys::stat::major(number)
}

fn minor(number: u64) -> u64 {
    nix::sys::stat::minor(number)
}

#[test]
fn io_uring_and_a_foreign_pidfd_block() {
    if !root() {
        return;
    }
    let body = "buffer = ctypes.create_string_buffer(120)\n\
                word = libc.syscall(425, 4, buffer)\n\
                foreign = os.pidfd_open(int(sys.argv[2]))";
    let Some((subjected, ring)) = python(&[], body, &[&std::process::id().to_string()]) else { return };
    let ring: i32 = ring.parse().unwrap();
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert!(blocking.iter().any(|finding| finding.what.contains("a pidfd of process")), "{findings:#?}");
    if ring >= 0 {
        let found = blocking.iter().find(|finding| finding.what.contains("io_uring")).expect("the ring");
        assert!(matches!(found.subject, Subject::Descriptor { fd, .. } if fd == ring));
        assert_eq!(found.force, Force::Final);
    }
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn locks_and_leases_are_told_and_carried() {
    if !root() {
        return;
    }
    let body = "files = [open(sys.argv[1] + str(n), 'w') for n in range(3)]\n\
                fcntl.flock(files[0], fcntl.LOCK_EX)\n\
                fcntl.lockf(files[1], fcntl.LOCK_EX)\n\
                fcntl.fcntl(files[2].fileno(), 37, struct.pack('hhlli', 1, 0, 0, 0, 0))\n\
                open(sys.argv[1] + 'lease', 'w').close()\n\
                word = os.open(sys.argv[1] + 'lease', os.O_RDONLY)\n\
                fcntl.fcntl(word, fcntl.F_SETLEASE, fcntl.F_RDLCK)";
    let Some((subjected, leased)) = python(&[], body, &[]) else { return };
    let findings = subjected.findings();
    let locks = findings.iter().find(|finding| finding.what.starts_with("3 file locks")).expect("the locks");
    assert_eq!(locks.severity, Severity::Notes);
    for kind in ["flock", "fcntl", "open file description"] {
        assert!(locks.what.contains(kind), "{locks}");
    }
    let lease = findings.iter().find(|finding| finding.what.contains("F_SETLEASE")).expect("the lease");
    assert_eq!(lease.severity, Severity::Risks);
    assert!(matches!(lease.subject, Subject::Descriptor { fd, .. } if fd.to_string() == leased));
    assert!(blocks(&findings).is_empty());
    assert_ne!(subjected.dumps(), Some(false));
}

#[test]
fn files_open_for_writing_are_a_risk_but_for_logs_that_are_appended_to() {
    if !root() {
        return;
    }
    let subjected = plain("writing");
    let reader = File::open(subjected.place.path().join("log")).unwrap();
    let about = |name: &str| {
        let findings = subjected.findings();
        assert!(blocks(&findings).is_empty());
        let told: Vec<(Severity, String)> = findings
            .into_iter()
            .filter(|f| matches!(&f.subject, Subject::Descriptor { link, .. } if link.ends_with(name)))
            .map(|finding| (finding.severity, finding.what))
            .collect();
        told
    };
    // A reader outside changes nothing.
    let log = about("/log");
    assert!(matches!(&log[..], [(Severity::Risks, what)] if what.starts_with("open for writing")), "{log:?}");
    let appended = about("/appended");
    assert!(matches!(&appended[..], [(Severity::Notes, what)] if what.contains("appending")), "{appended:?}");
    drop(reader);

    // A writer outside makes a file grow between dump and restore; CRIU compares sizes,
    // except of what is only appended to.
    let writers = ["log", "appended"]
        .map(|name| File::options().append(true).open(subjected.place.path().join(name)).unwrap());
    let log = about("/log");
    assert!(
        log.iter().any(|(severity, what)| *severity == Severity::Risks && what.contains("writes to")),
        "{log:?}"
    );
    assert_eq!(about("/appended").len(), 1);
    assert_ne!(subjected.dumps(), Some(false));
    drop(writers);
}

#[test]
fn a_file_that_lost_one_of_its_names_is_a_risk() {
    if !root() {
        return;
    }
    let subjected = plain("renamed");
    let findings = subjected.findings();
    assert!(findings.iter().any(|finding| {
        finding.severity == Severity::Risks && finding.what.contains("its name was removed")
    }));
}

#[test]
fn ten_thousand_descriptors_are_checked() {
    if !root() {
        return;
    }
    let subjected = plain("many");
    let start = std::time::Instant::now();
    let findings = check_source(subjected.pid(), &SourceOptions::default());
    println!("checked in {:?}", start.elapsed());
    assert!(blocks(&findings).is_empty());
    let start = std::time::Instant::now();
    assert!(!describe_needs(subjected.pid()).files.is_empty());
    println!("described in {:?}", start.elapsed());
}
