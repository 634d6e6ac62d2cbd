//! Whoever brings the pages, or asks for them, is killed: the workload sees a pause,
//! or nothing is left behind.

mod lazy_support;

use ferry_engine::lazy::PagerError;
use lazy_support::{Workload, report, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Not a test of its own: what the pager process runs.
#[test]
fn pager_process() {
    lazy_support::pager_if_told();
}

/// How many processes of a pager may be killed before CRIU has connected to it.
const FEW: u32 = 3;

const SLOW: Duration = Duration::from_millis(2);

/// The living processes of the pager whose first process this was: they stay in the
/// session that it led.
fn processes(pager: u32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        fields.len() > 4 && fields[0] != "Z" && fields[0] != "X" && fields[3] == pager.to_string()
    })
    .collect()
}

/// Kills one process of a pager after the other, always with two of them there, at
/// random instants, until told to stop or `most` were killed.
struct Killer {
    stop: Arc<AtomicBool>,
    is_restored: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u32>,
}

impl Killer {
    fn of(pager: u32, most: u32) -> Killer {
        let stop = Arc::new(AtomicBool::new(false));
        let is_restored = Arc::<AtomicBool>::default();
        let (told, restored) = (Arc::clone(&stop), Arc::clone(&is_restored));
        let thread = std::thread::spawn(move || {
            let mut random = rand::rng();
            let mut killed = 0;
            while !told.load(Ordering::Relaxed) && killed < most {
                std::thread::sleep(Duration::from_micros(random.random_range(0..40_000)));
                // A pager that is killed often before CRIU comes gives up, rightly.
                let may = killed < FEW || restored.load(Ordering::Relaxed);
                let there = processes(pager);
                if may && there.len() == 2 {
                    let pid = there[random.random_range(0..2)];
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    killed += 1;
                    // Dying takes a moment in which it still counts.
                    wait(|| !processes(pager).contains(&pid), "a killed process to die");
                }
            }
            killed
        });
        Killer { stop, is_restored, thread }
    }

    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Kills from before CRIU connects until the last page is in place, or often enough.
fn killed_again_and_again(mode: &str, results: usize, most: u32) {
    let Some(mut workload) = Workload::start(mode, 48) else { return };
    let sealed = workload.dump();
    let mut pager = workload.pager(sealed, SLOW);
    let first = pager.pid();
    let killer = Killer::of(first, most);
    workload.restore();
    killer.is_restored.store(true, Ordering::Relaxed);
    workload.go();
    let drained = pager.wait_drained().unwrap();
    let killed = killer.stop();
    println!("{mode}: {killed} processes killed");
    fs::write(workload.dir.path().join("stop"), "").unwrap();
    workload.results(results);
    report(drained);
    assert!(drained.killed > 0, "no worker was killed: the test proves nothing");
    wait(|| processes(first).is_empty(), "both processes of the pager to leave");
}

#[test]
fn a_killed_pager_is_replaced_under_churn() {
    killed_again_and_again("churn", 1, 12);
}

#[test]
fn a_killed_pager_is_replaced_in_a_storm_of_changes() {
    killed_again_and_again("storm", 1, 12);
}

#[test]
fn a_killed_pager_is_replaced_under_forks() {
    killed_again_and_again("fork", 7, 12);
}

#[test]
fn a_killed_pager_is_replaced_for_a_tree() {
    killed_again_and_again("tree", 3, 12);
}

/// `cargo test --release -p ferry-engine --test lazy_killed many -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn many_pagers_are_killed() {
    for round in 0..20 {
        println!("round {round}");
        for (mode, results) in [
            ("churn", 1),
            ("verify", 1),
            ("dontneed", 1),
            ("munmap", 1),
            ("mremap", 1),
            ("fork", 7),
            ("tree", 3),
        ] {
            killed_again_and_again(mode, results, 30);
        }
    }
}

#[test]
fn a_pager_without_its_engine_survives_a_kill() {
    let Some(mut workload) = Workload::start("verify", 64) else { return };
    let sealed = workload.dump();
    let pager = workload.restore_lazily(sealed, SLOW);
    let first = pager.pid();
    drop(pager);
    workload.go();
    for _ in 0..2 {
        let mut there = Vec::new();
        wait(
            || {
                there = processes(first);
                there.len() == 2
            },
            "the pager to be two again",
        );
        // The first is the guardian, then the worker that became one.
        kill(Pid::from_raw(there[0]), Signal::SIGKILL).unwrap();
    }
    workload.results(1);
    wait(|| processes(first).is_empty(), "both processes of the pager to leave");
}

/// CRIU, killed at a stage of its restore by its own action script.
fn criu_killed_at(stage: &str) {
    let Some(mut workload) = Workload::start("tree", 16) else { return };
    let sealed = workload.dump();
    let mut pager = workload.pager(sealed, Duration::ZERO);
    let script = format!("[ \"$CRTOOLS_SCRIPT_ACTION\" = {stage} ] && kill -9 $PPID");
    workload.restore_with(&script);
    let end = workload.restoring().wait().unwrap();
    assert_eq!(end.signal(), Some(9), "{stage}");
    // As the restorer does: the half-made copy is removed.
    wait(
        || {
            workload.kill();
            workload.pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
        },
        "the half-made copy to be gone",
    );
    assert!(matches!(pager.wait_drained(), Err(PagerError::Died { .. })), "{stage}");
    wait(|| processes(pager.pid()).is_empty(), "both processes of the pager to leave");
    assert!(workload.files("result-").is_empty(), "{stage}: something ran");
}

#[test]
fn a_pager_leaves_when_criu_is_killed_before_the_tasks_are_made() {
    criu_killed_at("pre-restore");
}

#[test]
fn a_pager_leaves_when_criu_is_killed_with_the_tasks_made() {
    criu_killed_at("post-restore");
}

const STRANGER: &str = "FERRY_TEST_STRANGER";

/// Not a test of its own: what another user's process runs, which is to be hung up on.
#[test]
fn stranger_process() {
    let Some(socket) = std::env::var_os(STRANGER) else { return };
    let mut connection = UnixStream::connect(socket).unwrap();
    // As CRIU would: a PID.
    let _ = connection.write_all(&1i32.to_ne_bytes());
    let heard = connection.read(&mut [0; 1]);
    assert!(matches!(heard, Ok(0)) || heard.is_err(), "{heard:?}");
}

#[test]
fn another_user_is_refused_and_criu_is_still_heard() {
    let Some(mut workload) = Workload::start("verify", 16) else { return };
    let sealed = workload.dump();
    let mut pager = workload.pager(sealed, Duration::ZERO);
    // Open what ferry keeps closed, so that only the pager itself is in the way.
    let open =
        |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let socket = workload.work().join(ferry_engine::lazy::SOCKET_NAME);
    let program = workload.work().join("stranger");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    [workload.dir.path(), &workload.work(), &program].iter().for_each(|path| open(path, 0o755));
    open(&socket, 0o777);
    let mut stranger = Command::new(program);
    stranger.args(["--exact", "stranger_process"]).env(STRANGER, &socket).uid(65534).gid(65534);
    let output = stranger.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    workload.restore();
    workload.go();
    workload.results(1);
    report(pager.wait_drained().unwrap());
}

#[test]
fn an_abandoned_pager_is_two_processes_less() {
    let Some(mut workload) = Workload::start("verify", 16) else { return };
    let sealed = workload.dump();
    let mut pager = workload.pager(sealed, SLOW);
    wait(|| processes(pager.pid()).len() == 2, "the pager to be two");
    pager.kill();
    wait(|| processes(pager.pid()).is_empty(), "both processes of the pager to be gone");
}
