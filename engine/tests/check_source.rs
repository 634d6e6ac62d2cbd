//! Pre-flight against real processes, each with one thing that CRIU cannot carry.
//! Where a CRIU is at hand, its dump must fail exactly where a finding blocks.

use ferry_engine::check::{
    Finding, Force, LocalFacts, Severity, SourceOptions, Subject, check_destination, check_source,
    describe_needs,
};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{Hello, MigrationId, Offer, RestoreMode, TcpMode};
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SCENARIO: &str = "FERRY_TEST_SCENARIO";
const PLACE: &str = "FERRY_TEST_PLACE";

/// Not a test by itself: the process under examination, when started as such.
#[test]
fn scenario_process() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let place = std::env::var(PLACE).unwrap();
    let place = Path::new(&place);
    nix::unistd::setsid().unwrap();
    // What the shell that started the tests left open is no part of the scenario.
    let inherited: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in inherited {
        let _ = nix::unistd::close(fd);
    }
    let keep: Box<dyn std::any::Any> = match scenario.as_str() {
        "many" => Box::new((0..10_000).map(|_| File::open("/etc/passwd").unwrap()).collect::<Vec<_>>()),
        "kinds" => {
            use nix::sys::{epoll, eventfd, signalfd, timerfd};
            let ids = timerfd::ClockId::CLOCK_MONOTONIC;
            Box::new((
                epoll::Epoll::new(epoll::EpollCreateFlags::empty()).unwrap(),
                eventfd::EventFd::new().unwrap(),
                signalfd::SignalFd::new(&nix::sys::signal::SigSet::empty()).unwrap(),
                timerfd::TimerFd::new(ids, timerfd::TimerFlags::empty()).unwrap(),
                TcpListener::bind("127.0.0.1:0").unwrap(),
                UnixStream::pair().unwrap(),
                std::io::pipe().unwrap(),
            ))
        }
        "external-unix" => Box::new(UnixStream::connect(place.join("socket")).unwrap()),
        "deleted" => {
            let path = place.join("ghost");
            let mut file = File::create(&path).unwrap();
            file.write_all(&vec![7; 3 << 20]).unwrap();
            std::fs::remove_file(path).unwrap();
            Box::new(file)
        }
        "connection" => {
            let port = std::fs::read_to_string(place.join("port")).unwrap();
            Box::new(TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap())
        }
        "block-device" => Box::new(File::open(place.join("device")).unwrap()),
        "nested" => {
            Box::new(Command::new("unshare").args(["--uts", "sleep", "1000"]).spawn().map(ChildGuard))
        }
        "writing" => Box::new(File::create(place.join("log")).unwrap()),
        _ => Box::new(()),
    };
    std::fs::write(place.join("ready"), "").unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        std::hint::black_box(&keep);
    }
}

struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Subjected {
    child: ChildGuard,
    place: tempfile::TempDir,
}

impl Subjected {
    fn pid(&self) -> i32 {
        self.child.0.id() as i32
    }

    fn findings(&self) -> Vec<Finding> {
        // CRIU's own default for deleted files, as `dumps` uses it.
        let options = SourceOptions { ghost_limit: Bytes(1 << 20), ..SourceOptions::default() };
        let found = check_source(self.pid(), &options);
        for finding in &found {
            println!("{finding}");
        }
        found
    }

    /// What CRIU makes of it; `None` where there is no CRIU.
    fn dumps(&self) -> Option<bool> {
        let criu = std::env::var("FERRY_CRIU").unwrap_or("/var/lib/ferry/criu/bin/criu".into());
        let images = self.place.path().join("images");
        let _ = std::fs::create_dir(&images);
        let mut command = Command::new(criu);
        command.args(["dump", "--leave-running", "-j", "--file-locks", "--link-remap", "--tcp-established"]);
        command
            .args(["--network-lock", "nftables", "-v1", "-t"])
            .arg(self.pid().to_string())
            .arg("-D")
            .arg(images);
        match command.stdin(Stdio::null()).output() {
            Err(_) => {
                eprintln!("not confirmed with CRIU: there is none");
                None
            }
            Ok(output) => {
                eprint!("{}", String::from_utf8_lossy(&output.stderr));
                Some(output.status.success())
            }
        }
    }
}

impl Drop for Subjected {
    fn drop(&mut self) {
        // What the scenario started goes first: it is known only through its parent.
        let pid = self.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let more = threads.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
        for child in
            more.chain([children]).flat_map(|c| c.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        {
            let child = nix::unistd::Pid::from_raw(child.parse().unwrap_or(i32::MAX));
            let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn start(scenario: &str, prepare: impl FnOnce(&Path, &mut Command)) -> Subjected {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "scenario_process", "--nocapture"])
        .env(SCENARIO, scenario)
        .env(PLACE, place.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    prepare(place.path(), &mut command);
    let child = ChildGuard(command.spawn().unwrap());
    let mut subjected = Subjected { child, place };
    while !subjected.place.path().join("ready").exists() {
        assert!(subjected.child.0.try_wait().unwrap().is_none(), "the scenario ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    subjected
}

fn plain(scenario: &str) -> Subjected {
    start(scenario, |_, _| ())
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: not root");
    }
    root
}

fn blocks(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.severity == Severity::Blocks).collect()
}

/// The one finding that blocks, which names this process and a descriptor.
fn one_block(subjected: &Subjected, says: &str) {
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert_eq!(blocking.len(), 1, "{findings:#?}");
    assert_eq!(blocking[0].pid, Some(subjected.pid()));
    assert!(matches!(blocking[0].subject, Subject::Descriptor { fd, .. } if fd >= 0), "{blocking:?}");
    assert!(blocking[0].what.contains(says), "{blocking:?}");
}

#[test]
fn a_clean_process_is_not_blocked_and_dumps() {
    if !root() {
        return;
    }
    for scenario in ["clean", "kinds"] {
        let subjected = plain(scenario);
        let findings = subjected.findings();
        assert!(blocks(&findings).is_empty(), "{findings:#?}");
        assert_ne!(subjected.dumps(), Some(false));
        let json = serde_json::to_string(&findings).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Finding>>(&json).unwrap(), findings);
    }
}

#[test]
fn a_unix_connection_to_the_outside_blocks() {
    if !root() {
        return;
    }
    let mut listener = None;
    let subjected = start("external-unix", |place, _| {
        listener = Some(UnixListener::bind(place.join("socket")).unwrap());
    });
    let accepted = listener.as_ref().unwrap().accept().unwrap();
    one_block(&subjected, "outside the tree");
    assert_ne!(subjected.dumps(), Some(true));
    drop(accepted);
}

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
fn connections_follow_the_tcp_mode() {
    if !root() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let subjected = start("connection", |place, _| std::fs::write(place.join("port"), &port).unwrap());
    let accepted = listener.accept().unwrap();
    let says = |tcp| {
        let found = check_source(subjected.pid(), &SourceOptions { tcp, ..SourceOptions::default() });
        found.into_iter().find(|finding| finding.what.contains("a TCP connection")).unwrap()
    };
    assert_eq!(says(TcpMode::Skip).severity, Severity::Blocks);
    assert_eq!(says(TcpMode::Close).severity, Severity::Notes);
    let risk = says(TcpMode::Established);
    assert_eq!(risk.severity, Severity::Risks);
    assert!(risk.what.contains("other end is on this host"), "{risk}");
    drop(accepted);
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
fn a_nested_namespace_blocks() {
    if !root() || Command::new("unshare").arg("--version").output().is_err() {
        return;
    }
    let subjected = plain("nested");
    let namespace_block = || {
        let findings = subjected.findings();
        let found =
            blocks(&findings).into_iter().find(|f| matches!(f.subject, Subject::Namespace { .. })).cloned();
        found.filter(|finding| finding.pid != Some(subjected.pid()))
    };
    // The child needs a moment until it has unshared.
    let finding = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        namespace_block()
    });
    let finding = finding.take(500).flatten().next().expect("a finding");
    assert_eq!(finding.subject, Subject::Namespace { of: "uts".into() });
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn a_traced_process_blocks() {
    if !root() {
        return;
    }
    let subjected = plain("clean");
    let pid = nix::unistd::Pid::from_raw(subjected.pid());
    if let Err(error) = nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()) {
        eprintln!("skipped: {error}");
        return;
    }
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert!(blocking.iter().any(|finding| finding.what.contains("traced by process")), "{findings:#?}");
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn io_uring_and_a_foreign_pidfd_block() {
    if !root() {
        return;
    }
    let script = "import ctypes, os, sys, time\n\
        buffer = ctypes.create_string_buffer(120)\n\
        os.setsid()\n\
        os.closerange(3, 1024)\n\
        ring = ctypes.CDLL(None).syscall(425, 4, buffer)\n\
        foreign = os.pidfd_open(int(sys.argv[1]))\n\
        open(sys.argv[2], 'w').write(str(ring))\n\
        time.sleep(1000)\n";
    let place = tempfile::tempdir().unwrap();
    let ready = place.path().join("ready");
    let mut command = Command::new("python3");
    command.args(["-c", script, &std::process::id().to_string()]).arg(&ready);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(child) = command.spawn() else {
        eprintln!("skipped: no python3");
        return;
    };
    let mut subjected = Subjected { child: ChildGuard(child), place };
    let ring: i32 = loop {
        if let Some(ring) = std::fs::read_to_string(&ready).ok().and_then(|text| text.parse().ok()) {
            break ring;
        }
        if subjected.child.0.try_wait().unwrap().is_some() {
            eprintln!("skipped: this python has no pidfd_open");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
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
fn files_open_for_writing_are_a_risk() {
    if !root() {
        return;
    }
    let subjected = plain("writing");
    let findings = subjected.findings();
    assert!(blocks(&findings).is_empty());
    let risk = findings.iter().find(|finding| finding.what.starts_with("open for writing")).unwrap();
    assert!(matches!(&risk.subject, Subject::Descriptor { link, .. } if link.ends_with("/log")));
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

#[test]
fn what_cannot_be_a_target_is_said() {
    let final_block = |pid| {
        let findings = check_source(pid, &SourceOptions::default());
        let blocking = blocks(&findings);
        assert!(blocking.iter().any(|finding| finding.force == Force::Final), "{findings:#?}");
    };
    final_block(1);
    final_block(i32::MAX);
    final_block(std::process::id() as i32);
}

fn hello() -> Hello {
    Hello {
        protocol: 1,
        revision: String::new(),
        machine: "x86_64".into(),
        page_size: 4096,
        kernel: "6.1.0".into(),
        criu: "4.2.1".into(),
        cpu_features: vec!["avx2".into(), "sse4_2".into()],
    }
}

#[test]
fn the_destination_compares_and_names_everything_that_differs() {
    if !root() {
        return;
    }
    let subjected = plain("clean");
    let needs = describe_needs(subjected.pid());
    assert!(needs.memory.0 > 0 && needs.pids.contains(&(subjected.pid() as u32)));
    let executable = std::env::current_exe().unwrap().display().to_string();
    let own = needs.files.iter().find(|file| file.path == executable).expect("the executable is claimed");
    assert!(own.size.is_some());
    let offer = |pids, files| Offer {
        id: MigrationId(1),
        target: String::new(),
        memory: needs.memory,
        pids,
        restore: RestoreMode::Lazy,
        tcp: TcpMode::Established,
        move_address: None,
        files,
    };
    let here = LocalFacts::read(hello(), std::env::temp_dir(), true);
    let same = check_destination(&offer(vec![], needs.files.clone()), &hello(), &here);
    assert!(blocks(&same).is_empty(), "{same:#?}");

    let mut files = needs.files.clone();
    files[0].path = "/nowhere/at all".into();
    files[1].size = Some(1);
    files[2].build_id = Some("00".into());
    let mut peer = hello();
    peer.cpu_features.push("avx512f".into());
    peer.page_size = 65536;
    peer.criu = "4.10".into();
    let findings = check_destination(&offer(vec![subjected.pid() as u32], files), &peer, &here);
    let all: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    for expected in [
        "is not here",
        "its size is",
        "another build",
        "avx512f",
        "pages are 65536",
        "is taken here by",
        "4.10",
    ] {
        assert!(all.contains(expected), "{expected}:\n{all}");
    }
}
