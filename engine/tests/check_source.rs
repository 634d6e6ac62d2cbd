//! Pre-flight against real processes, each with one thing that CRIU cannot carry.
//! Where a CRIU is at hand, its dump must fail exactly where a finding blocks.

use ferry_engine::check::{
    Finding, Force, Forced, LazyRestore, LocalFacts, Severity, SourceOptions, Subject, check_destination,
    check_source, describe_needs,
};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    Hello, MigrationId, Offer, PROTOCOL_VERSION, PortClaim, PortProtocol, RestoreMode, RestorerRequest,
    TcpMode,
};
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
        "writing" => Box::new((
            File::create(place.join("log")).unwrap(),
            File::options().create(true).append(true).open(place.join("appended")).unwrap(),
        )),
        "renamed" => {
            let file = File::open({
                std::fs::write(place.join("first"), "content").unwrap();
                std::fs::hard_link(place.join("first"), place.join("second")).unwrap();
                place.join("first")
            });
            std::fs::remove_file(place.join("first")).unwrap();
            Box::new(file.unwrap())
        }
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

/// Starts a python script that leads its session, has nothing open, and prints one
/// word into the file that its first argument names; `None` without such a python.
fn python(launch: &[&str], body: &str, arguments: &[&str]) -> Option<(Subjected, String)> {
    let script = format!(
        "import ctypes, fcntl, os, struct, sys, time\n\
         libc = ctypes.CDLL(None)\n\
         os.closerange(3, 1024)\n\
         {body}\n\
         open(sys.argv[1], 'w').write(str(word) + '.')\n\
         time.sleep(1000)\n"
    );
    let place = tempfile::tempdir().unwrap();
    let ready = place.path().join("ready");
    let mut words = launch.iter().chain(&["setsid", "python3", "-c"]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(script).arg(&ready).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(child) = command.spawn() else {
        eprintln!("skipped: no {launch:?} setsid python3");
        return None;
    };
    let mut subjected = Subjected { child: ChildGuard(child), place };
    loop {
        let told = std::fs::read_to_string(&ready).unwrap_or_default();
        if let Some(word) = told.strip_suffix('.') {
            return Some((subjected, word.to_owned()));
        }
        if subjected.child.0.try_wait().unwrap().is_some() {
            eprintln!("skipped: this python or kernel cannot do it");
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
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
fn sysv_shared_memory_needs_an_ipc_namespace() {
    if !root() {
        return;
    }
    let body = "libc.shmat.restype = ctypes.c_void_p\n\
                word = libc.shmget(0, 65536, 0o1600)\n\
                libc.shmat(word, 0, 0)\n\
                libc.shmctl(word, 0, None)";
    let Some((subjected, _)) = python(&[], body, &[]) else { return };
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert_eq!(blocking.len(), 1, "{findings:#?}");
    assert!(matches!(&blocking[0].subject, Subject::Mapping { name, .. } if name.starts_with("/SYSV")));
    assert!(blocking[0].advice.contains("unshare --ipc"));
    assert_ne!(subjected.dumps(), Some(true));

    let Some((subjected, _)) = python(&["unshare", "--ipc"], body, &[]) else { return };
    assert!(blocks(&subjected.findings()).is_empty());
    assert_ne!(subjected.dumps(), Some(false));
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
fn a_core_scheduling_cookie_is_a_risk() {
    if !root() {
        return;
    }
    // PR_SCHED_CORE, PR_SCHED_CORE_CREATE, of this thread.
    let body = "word = libc.prctl(62, 1, 0, 0, 0)";
    let Some((subjected, made)) = python(&[], body, &[]) else { return };
    let told = subjected.findings().iter().any(|finding| finding.what.contains("core-scheduling"));
    if made != "0" {
        eprintln!("this kernel has no core scheduling");
    }
    assert_eq!(told, made == "0");
}

#[test]
fn a_frozen_control_group_blocks() {
    if !root() {
        return;
    }
    let Some(group) = Freezer::new() else {
        eprintln!("skipped: no control group can be made here");
        return;
    };
    let subjected = plain("clean");
    group.freeze(subjected.pid());
    let told = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(10));
        subjected.findings().into_iter().find(|finding| finding.what.contains("is frozen"))
    });
    let finding = told.take(500).flatten().next();
    group.thaw();
    let finding = finding.expect("a finding");
    assert_eq!((finding.severity, finding.pid), (Severity::Blocks, Some(subjected.pid())));
    drop(subjected);
}

/// A control group of version 1 or 2 that can be frozen.
struct Freezer {
    directory: std::path::PathBuf,
    control: &'static str,
    words: [&'static str; 2],
}

impl Freezer {
    fn new() -> Option<Freezer> {
        let kinds = [
            ("/sys/fs/cgroup/freezer", "freezer.state", ["FROZEN", "THAWED"]),
            ("/sys/fs/cgroup", "cgroup.freeze", ["1", "0"]),
            ("/sys/fs/cgroup/unified", "cgroup.freeze", ["1", "0"]),
        ];
        kinds.into_iter().find_map(|(place, control, words)| {
            let directory = Path::new(place).join(format!("ferry-test-{}", std::process::id()));
            std::fs::create_dir(&directory).ok()?;
            let freezer = Freezer { directory, control, words };
            freezer.directory.join(control).exists().then_some(freezer)
        })
    }

    fn freeze(&self, pid: i32) {
        std::fs::write(self.directory.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(self.directory.join(self.control), self.words[0]).unwrap();
    }

    fn thaw(&self) {
        std::fs::write(self.directory.join(self.control), self.words[1]).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.directory.join(self.control), self.words[1]);
        // The killed process leaves the group a moment later.
        for _ in 0..500 {
            if std::fs::remove_dir(&self.directory).is_ok() || !self.directory.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn ports_in_use_at_the_destination_block() {
    if !root() {
        return;
    }
    let subjected = plain("kinds");
    let needs = describe_needs(subjected.pid());
    assert_eq!(needs.ports.len(), 1, "{:?}", needs.ports);
    let claim = needs.ports[0];
    assert_eq!((claim.protocol, claim.address), (PortProtocol::Tcp, [127, 0, 0, 1].into()));
    let found = |ports| {
        let offer = Offer {
            id: MigrationId(1),
            restorer: RestorerRequest::process(),
            target: String::new(),
            memory: Bytes(0),
            pids: vec![],
            restore: RestoreMode::Eager,
            tcp: TcpMode::Established,
            move_address: None,
            files: vec![],
            limits: vec![],
            ports,
            forced: Forced::No,
        };
        let here = LocalFacts::read(hello(), vec![]);
        let found = check_destination(&offer, &hello(), &here);
        found.into_iter().filter(|finding| finding.what.contains("port")).map(|f| f.what).collect::<Vec<_>>()
    };
    // This host is its own destination: the workload itself has the port.
    let taken = found(vec![claim]);
    assert!(matches!(&taken[..], [what] if what.contains(&claim.port.to_string())), "{taken:?}");
    let everywhere = PortClaim { address: [0, 0, 0, 0].into(), ..claim };
    assert_eq!(found(vec![everywhere]).len(), 1);
    let elsewhere = PortClaim { address: [127, 0, 0, 2].into(), ..claim };
    let other = PortClaim { protocol: PortProtocol::Udp, ..claim };
    assert_eq!(found(vec![elsewhere, other]), Vec::<String>::new());
}

/// Runs the scenario through a shell in a mount namespace of its own.
fn in_a_mount_namespace(place: &Path, command: &mut Command, script: &str) {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", script]).arg(place.join("mount")).arg(command.get_program());
    unshare.args(command.get_args()).env(SCENARIO, "clean").env(PLACE, place);
    unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    *command = unshare;
}

#[test]
fn a_mount_that_criu_does_not_make_again_blocks() {
    if !root() {
        return;
    }
    let subjected = start("clean", |place, command| {
        let script = "mkdir $0 && mount -t ramfs ferry $0 && exec \"$@\" </dev/null >/dev/null 2>&1";
        in_a_mount_namespace(place, command, script);
    });
    let findings = subjected.findings();
    let mount = blocks(&findings)
        .into_iter()
        .find(|finding| matches!(&finding.subject, Subject::Mount { path } if path.ends_with("/mount")))
        .expect("the mount");
    assert!(mount.what.contains("ramfs"), "{mount}");
    assert_eq!(mount.pid, Some(subjected.pid()));
    assert_ne!(subjected.dumps(), Some(true));
}

#[test]
fn a_descriptor_from_another_mount_namespace_blocks() {
    if !root() {
        return;
    }
    let subjected =
        start("clean", |place, command| in_a_mount_namespace(place, command, "exec \"$@\" </dev/null"));
    let findings = subjected.findings();
    let mut from_outside: Vec<i32> = blocks(&findings)
        .into_iter()
        .filter(|finding| finding.what.contains("a mount that the tree does not see"))
        .filter_map(|finding| match finding.subject {
            Subject::Descriptor { fd, .. } => Some(fd),
            _ => None,
        })
        .collect();
    from_outside.sort_unstable();
    // Standard input was opened again inside.
    assert_eq!(from_outside, [1, 2], "{findings:#?}");
    assert_ne!(subjected.dumps(), Some(true));
}

const CHECKED: &str = "FERRY_TEST_CHECKED";

/// Not a test by itself: looks at a process, under the limits that it was given.
#[test]
fn checking_process() {
    let Ok(pid) = std::env::var(CHECKED) else { return };
    let findings = check_source(pid.parse().unwrap(), &SourceOptions::default());
    println!("\nFINDINGS {}", serde_json::to_string(&findings).unwrap());
}

#[test]
fn hard_limits_above_our_own_are_a_risk() {
    if !root() {
        return;
    }
    let subjected = plain("clean");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 512 && ulimit -Hn 512 && exec \"$0\" --exact checking_process --nocapture"]);
    command.arg(std::env::current_exe().unwrap()).env(CHECKED, subjected.pid().to_string());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.lines().find_map(|line| line.strip_prefix("FINDINGS ")).expect("findings");
    let findings: Vec<Finding> = serde_json::from_str(json).unwrap();
    let limits: Vec<&Finding> =
        findings.iter().filter(|finding| finding.what.contains("hard limits")).collect();
    if ferry_engine::check::proc::may_raise_limits() {
        assert!(limits.is_empty(), "{limits:?}");
        return;
    }
    assert_eq!(limits.len(), 1, "{findings:#?}");
    assert_eq!((limits[0].severity, limits[0].pid), (Severity::Risks, Some(subjected.pid())));
    assert!(
        limits[0].what.contains("Max open files") && limits[0].what.contains("(ferry 512)"),
        "{limits:?}"
    );
    assert!(!subjected.findings().iter().any(|finding| finding.what.contains("hard limits")));
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
        protocol: PROTOCOL_VERSION,
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
        restorer: RestorerRequest::process(),
        memory: needs.memory,
        pids,
        restore: RestoreMode::Lazy,
        tcp: TcpMode::Established,
        move_address: None,
        files,
        limits: needs.limits.clone(),
        ports: Vec::new(),
        forced: Forced::No,
    };
    let mut here = LocalFacts::read(hello(), vec![std::env::temp_dir()]);
    let working = std::env::current_dir().unwrap().display().to_string();
    assert!(needs.files.iter().any(|file| file.path == working && file.size.is_none()), "its directory");
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
    peer.protocol += 1;
    let limits = &mut here.limits.get_or_insert_with(Default::default).0;
    limits.insert("Max open files".into(), 16);
    here.lazy = LazyRestore::Impossible;
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
        "speaks protocol",
        "\"Max open files\"",
        "userfaultfd cannot be used",
    ] {
        assert!(all.contains(expected), "{expected}:\n{all}");
    }
}
