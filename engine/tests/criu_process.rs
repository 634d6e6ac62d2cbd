//! Real CRIU on real processes: freeze, hold, roll back, commit, restore,
//! release, discard.

mod criu_support;

use criu_support::*;
use ferry_engine::criu::rpc::PagePayload;
use ferry_engine::memory::native::DescendantSet;
use ferry_engine::target::process::{Criu, ProcessRestorer};
use ferry_engine::target::{ReleaseError, RestorePlan, Restorer, Target};
use ferry_transport::wire::control::TcpMode;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_rolled_back_dump_leaves_the_workload_running() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    let (child, file) = counter(directory.path());
    count(&file);
    let images = new_directory(directory.path(), "images");
    let mut target = target(&child, &criu);
    for pinned in [false, true] {
        let frozen = target.freeze(&images, TcpMode::Established, PATIENCE).unwrap();
        let mut held = frozen.hold().unwrap();
        let standing = count(&file);
        if pinned {
            held.pin().unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(count(&file), standing, "frozen");
        eprintln!("{:?}", held.times());
        held.roll_back().unwrap();
        no_lock_is_left(&images);
        goes_on_from(&file, standing);
    }
}

#[test]
fn a_workload_whose_criu_was_killed_stands_still_until_it_is_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    let (child, file) = counter(directory.path());
    count(&file);
    for pinned in [false, true] {
        let images = new_directory(directory.path(), &format!("images-{pinned}"));
        let mut held = held(target(&child, &criu), &images);
        if pinned {
            held.pin().unwrap();
        }
        let standing = count(&file);
        kill_criu_of(&images);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(count(&file), standing, "beneath CRIU, pinned: {pinned}");
        held.roll_back().unwrap();
        no_lock_is_left(&images);
        goes_on_from(&file, standing);
    }
}

#[test]
fn a_copy_is_held_and_discarded_and_held_and_released() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    let (mut child, file) = counter(directory.path());
    count(&file);
    let (images, work) = (new_directory(directory.path(), "images"), new_directory(directory.path(), "work"));
    let set = DescendantSet::of(child.id() as i32).unwrap();
    let held = held(target(&child, &criu).with_pages(PagePayload::Criu), &images);
    let pids: Vec<u32> =
        ferry_engine::memory::ProcessSet::processes(&set).unwrap().iter().map(|pid| *pid as u32).collect();
    let standing = count(&file);
    let plan = RestorePlan { images, work, tcp: TcpMode::Established, lazy: false, pids };
    let mut restorer = ProcessRestorer::new(criu);

    let taken = restorer.restore(&plan).err().expect("the original still has the PID").to_string();
    assert!(taken.contains("is taken here"), "{taken}");
    assert_eq!(count(&file), standing, "the original was not harmed");
    held.commit().unwrap();
    no_lock_is_left(&plan.images);
    child.wait().unwrap();

    let copy = restorer.restore(&plan).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(count(&file), standing, "held");
    let tasks = copy.tasks();
    assert!(!tasks.is_empty());
    copy.discard().unwrap();
    assert!(tasks.iter().all(|task| !task.is_alive()));
    for task in tasks {
        wait_until_reaped(task.pid);
    }

    let copy = restorer.restore(&plan).unwrap();
    let tasks = copy.tasks();
    match copy.release(&mut || ()) {
        Ok(()) => {}
        Err(ReleaseError::NeverRan(error) | ReleaseError::Unknown(error)) => panic!("{error}"),
    }
    goes_on_from(&file, standing);
    for task in tasks {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(task.pid), nix::sys::signal::SIGKILL).unwrap();
    }
}

#[test]
fn an_object_without_effect_is_noticed_before_anything_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    // One that does nothing, and one that the dynamic linker passes over.
    let idle = directory.path().join("idle.so");
    let built = Command::new("cc").args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&idle).status();
    assert!(built.unwrap().success());
    let garbage = directory.path().join("garbage.so");
    std::fs::write(&garbage, "not an object").unwrap();
    let (child, file) = counter(directory.path());
    for (number, shim) in [idle, garbage].into_iter().enumerate() {
        let standing = count(&file);
        let images = new_directory(directory.path(), &format!("images-{number}"));
        let useless = Criu { shim: Some(shim), ..criu.clone() };
        let mut target = target(&child, &useless).with_pages(PagePayload::Ferry);
        let frozen = target.freeze(&images, TcpMode::Established, PATIENCE).unwrap();
        let error = frozen.hold().err().expect("the dump is refused").to_string();
        assert!(error.contains("was told to leave them"), "{error}");
        no_lock_is_left(&images);
        goes_on_from(&file, standing);
    }
    // It is as it was: the next dump, with the real one, succeeds.
    let images = new_directory(directory.path(), "images");
    let mut target = target(&child, &criu);
    let frozen = target.freeze(&images, TcpMode::Established, PATIENCE).unwrap();
    let standing = count(&file);
    frozen.hold().unwrap().roll_back().unwrap();
    goes_on_from(&file, standing);
}

#[test]
fn a_stopped_workload_stays_stopped_after_a_roll_back() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    let (child, file) = counter(directory.path());
    count(&file);
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let comes_to_stand = || {
        while state_of(pid.as_raw()) != 'T' {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    comes_to_stand();
    let standing = count(&file);
    let images = new_directory(directory.path(), "images");
    let mut held = held(target(&child, &criu), &images);
    held.pin().unwrap();
    held.roll_back().unwrap();
    // Let go by CRIU, it finds its stop again.
    comes_to_stand();
    assert_eq!(count(&file), standing);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    goes_on_from(&file, standing);
}

fn state_of(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

#[test]
fn a_pin_after_criu_died_is_refused_and_the_workload_runs_on() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    let (child, file) = counter(directory.path());
    count(&file);
    let images = new_directory(directory.path(), "images");
    let mut held = held(target(&child, &criu), &images);
    kill_criu_of(&images);
    let error = held.pin().unwrap_err().to_string();
    assert!(error.contains("CRIU died"), "{error}");
    held.roll_back().unwrap();
    goes_on_from(&file, count(&file));
}

#[test]
fn a_copy_whose_criu_was_killed_never_ran_and_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    let (mut child, file) = counter(directory.path());
    count(&file);
    let (images, work) = (new_directory(directory.path(), "images"), new_directory(directory.path(), "work"));
    let pids = vec![child.id()];
    let held = held(target(&child, &criu).with_pages(PagePayload::Criu), &images);
    held.commit().unwrap();
    child.wait().unwrap();
    let standing = count(&file);

    let plan = RestorePlan { images, work: work.clone(), tcp: TcpMode::Established, lazy: false, pids };
    let copy = ProcessRestorer::new(criu).restore(&plan).unwrap();
    let tasks = copy.tasks();
    kill_process_with_open(&work.join("restore.log"));
    match copy.release(&mut || ()) {
        Err(ReleaseError::NeverRan(_)) => {}
        other => panic!("{other:?}"),
    }
    assert!(tasks.iter().all(|task| !task.is_alive()));
    assert_eq!(count(&file), standing);
}

#[test]
fn another_users_process_is_dumped_without_the_right_to_set_its_limits() {
    use std::os::unix::process::CommandExt;
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = criu(directory.path()) else { return };
    // A session of its own: in a PID namespace CRIU refuses a session from outside.
    let mut command = Command::new("setsid");
    command.args(["sleep", "300"]).current_dir("/").uid(65534).gid(65534);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let images = new_directory(directory.path(), "images");
    let held = held(target(&child, &criu), &images);
    held.roll_back().unwrap();
    assert!(child.try_wait().unwrap().is_none(), "it lives on");
    child.kill().unwrap();
    child.wait().unwrap();
}
