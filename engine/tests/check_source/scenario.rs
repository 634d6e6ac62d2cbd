//! The process under examination, and what is asked of it.

use ferry_engine::check::{Finding, Severity, SourceOptions, Subject, check_source};
use ferry_transport::units::Bytes;
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub const SCENARIO: &str = "FERRY_TEST_SCENARIO";

pub const PLACE: &str = "FERRY_TEST_PLACE";

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

pub struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Subjected {
    child: ChildGuard,
    pub place: tempfile::TempDir,
}

impl Subjected {
    pub fn pid(&self) -> i32 {
        self.child.0.id() as i32
    }

    pub fn findings(&self) -> Vec<Finding> {
        // CRIU's own default for deleted files, as `dumps` uses it.
        let options = SourceOptions { ghost_limit: Bytes(1 << 20), ..SourceOptions::default() };
        let found = check_source(self.pid(), &options);
        for finding in &found {
            println!("{finding}");
        }
        found
    }

    /// What CRIU makes of it; `None` where there is no CRIU.
    pub fn dumps(&self) -> Option<bool> {
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

pub fn start(scenario: &str, prepare: impl FnOnce(&Path, &mut Command)) -> Subjected {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "scenario::scenario_process", "--nocapture"])
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

pub fn plain(scenario: &str) -> Subjected {
    start(scenario, |_, _| ())
}

/// Starts a python script that leads its session, has nothing open, and prints one
/// word into the file that its first argument names; `None` without such a python.
pub fn python(launch: &[&str], body: &str, arguments: &[&str]) -> Option<(Subjected, String)> {
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

pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: not root");
    }
    root
}

pub fn blocks(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.severity == Severity::Blocks).collect()
}

/// The one finding that blocks, which names this process and a descriptor.
pub fn one_block(subjected: &Subjected, says: &str) {
    let findings = subjected.findings();
    let blocking = blocks(&findings);
    assert_eq!(blocking.len(), 1, "{findings:#?}");
    assert_eq!(blocking[0].pid, Some(subjected.pid()));
    assert!(matches!(blocking[0].subject, Subject::Descriptor { fd, .. } if fd >= 0), "{blocking:?}");
    assert!(blocking[0].what.contains(says), "{blocking:?}");
}
