//! Trees that change while they are followed, and processes that must not notice.

mod native_support;

use ferry_engine::memory::native::{DescendantSet, NativeSource};
use ferry_engine::memory::{MemoryError, MemorySource, ProcessSet};
use ferry_engine::sys::inject::{InjectionError, run_injector};
use ferry_transport::page::Round;
use native_support::*;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The descriptors of a process: number and what it is.
fn descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
    let directory = format!("/proc/{pid}/fd");
    let numbers = ferry_engine::sys::procfs::numeric_entries(&directory).unwrap();
    numbers.into_iter().map(|n| (n, std::fs::read_link(format!("{directory}/{n}")).unwrap())).collect()
}

#[test]
fn children_between_rounds() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 300");
    workload.tell("write a 0 300 1");
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    let mut pids = vec![workload.pid()];
    for number in 1..4 {
        pids.push(workload.tell("fork").parse().unwrap());
        workload.tell(&format!("write a {number} 2 {number}"));
        let scan = round(&mut source, &mut store, number);
        assert_eq!(scan.injected, 1, "the new child, once: {scan:?}");
    }
    // One dies, one is born and never followed before the freeze.
    let dead = pids.remove(1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(dead), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("it is dead", || {
        ferry_engine::sys::procfs::stat::of(dead).is_ok_and(|stat| stat.state.is_dead())
    });
    let scan = round(&mut source, &mut store, 4);
    assert!(scan.notes.iter().any(|note| note.contains(&format!("process {dead} exited"))), "{scan:?}");
    pids.push(workload.tell("fork").parse().unwrap());
    finish_and_compare(&mut source, &mut store, 5, &pids);
}

#[test]
fn a_child_that_cannot_be_followed_is_sent_where_it_changed() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 3000");
    workload.tell("write a 0 3000 1");
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    let child: i32 = workload.tell("fork-unfollowable").parse().unwrap();
    wait_until("it has a userfaultfd", || {
        descriptors(child).iter().any(|(_, link)| link.to_string_lossy().contains("userfaultfd"))
    });
    let scan = round(&mut source, &mut store, 1);
    assert!(scan.notes.iter().any(|note| note.contains("cannot be followed")), "{scan:?}");
    assert!(scan.dirty_pages.0 > 3000, "all of the child: {scan:?}");
    let scan = round(&mut source, &mut store, 2);
    assert!(scan.unchanged_pages.0 > 1500 && scan.dirty_pages.0 < 1500, "{scan:?}");
    let scan = finish_and_compare(&mut source, &mut store, 3, &[workload.pid(), child]);
    assert!(scan.unchanged_pages.0 > 1500 && scan.dirty_pages.0 < 1500, "{scan:?}");
}

#[test]
fn another_program_is_another_space() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 300");
    workload.tell("write a 0 300 1");
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    workload.tell("exec");
    workload.tell("map a anonymous 300");
    workload.tell("write a 0 300 2");
    let scan = round(&mut source, &mut store, 1);
    assert_eq!(scan.injected, 1, "{scan:?}");
    workload.tell("write a 3 4 5");
    round(&mut source, &mut store, 2);
    // And once more, right before the freeze.
    workload.tell("exec");
    workload.tell("map a anonymous 20");
    workload.tell("write a 0 10 9");
    finish_and_compare(&mut source, &mut store, 3, &[workload.pid()]);
}

#[test]
fn the_end_of_the_workload_is_told() {
    if !can_run() {
        return;
    }
    let workload = Workload::commanded();
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    drop(workload);
    assert!(matches!(source.round(Round(1), &mut store), Err(MemoryError::WorkloadExited)));
    assert!(matches!(source.peek(), Err(MemoryError::WorkloadExited)));
}

#[test]
fn a_confined_process_and_a_foreign_one() {
    if !can_run() {
        return;
    }
    for command in ["confine", "become-nobody"] {
        let mut workload = Workload::commanded();
        workload.tell("map a anonymous 100");
        workload.tell("write a 0 100 1");
        workload.tell(command);
        let before = descriptors(workload.pid());
        let (mut source, mut store) = (workload.source(), Store::default());
        let scan = round(&mut source, &mut store, 0);
        assert_eq!(scan.injected, 1, "{command}: {scan:?}");
        workload.tell("write a 5 2 2");
        let scan = round(&mut source, &mut store, 1);
        assert!(scan.dirty_pages.0 < 50, "{command}: {scan:?}");
        finish_and_compare(&mut source, &mut store, 2, &[workload.pid()]);
        assert_eq!(descriptors(workload.pid()), before, "{command}");
        workload.tell("write a 5 2 3");
    }
}

#[test]
fn memory_that_somebody_follows_is_seen_by_others() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 100");
    workload.tell("write a 0 100 1");
    let pid = workload.pid();
    let served = || Vec::from_iter(ferry_engine::check::served_by_userfaultfd([pid]));
    assert_eq!(served(), Vec::<i32>::new());
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    assert_eq!(served(), vec![pid]);
    source.disarm();
    // A child that another test forks has a copy of the descriptor until it execs.
    wait_until("nobody follows it", || served().is_empty());
}

#[test]
fn a_stopped_process_stays_stopped() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 100");
    let freeze = Freeze::tree(&[workload.pid()]);
    let taken = run_injector(Path::new(HELPER), workload.pid()).unwrap();
    drop(taken);
    let state = || ferry_engine::sys::procfs::stat::of(workload.pid()).unwrap().state.0;
    for _ in 0..20 {
        wait_until("it is stopped again", || state() == b'T');
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(state(), b'T');
    drop(freeze);
    workload.tell("write a 0 1 1");
}

#[test]
fn a_traced_process_is_left_to_its_tracer() {
    if !can_run() {
        return;
    }
    let workload = Workload::commanded();
    let pid = workload.pid();
    ferry_engine::sys::ptrace::seize(pid, 0).unwrap();
    let refused = run_injector(Path::new(HELPER), pid).unwrap_err();
    let InjectionError::Refused(why) = &refused else { panic!("{refused:?}") };
    assert!(why.contains("traced"), "{why}");
    let (mut source, mut store) = (workload.source(), Store::default());
    let outcome = source.round(Round(0), &mut store);
    assert!(matches!(outcome, Err(MemoryError::Process { .. })), "{outcome:?}");
}

#[test]
fn sleepers_do_not_notice() {
    if !can_run() {
        return;
    }
    for call in ["nanosleep", "poll", "ppoll", "futex", "read"] {
        let mut sleeper = Workload::start(&["sleeper", call]);
        assert_eq!(sleeper.line(), "ready");
        let before = descriptors(sleeper.pid());
        for turn in 0..60 {
            run_injector(Path::new(HELPER), sleeper.pid()).unwrap_or_else(|cause| panic!("{call}: {cause}"));
            std::thread::sleep(Duration::from_millis(turn % 7));
        }
        assert_eq!(descriptors(sleeper.pid()), before, "{call}");
        let (words, success) = sleeper.end();
        assert!(success && words.starts_with("right"), "{call}: {words}");
    }
}

#[test]
fn a_thousand_injections_into_a_busy_process() {
    if !can_run() {
        return;
    }
    let mut busy = Workload::start(&["spinner", "4"]);
    assert_eq!(busy.line(), "ready");
    let mut stops: Vec<Duration> = Vec::new();
    for _ in 0..1000 {
        match run_injector(Path::new(HELPER), busy.pid()) {
            Ok(taken) => stops.push(taken.stopped),
            // Rare: all threads inside restartable sequences, again and again.
            Err(InjectionError::NotNow(why)) => println!("not now: {why}"),
            Err(cause) => panic!("{cause}"),
        }
    }
    stops.sort_unstable();
    assert!(stops.len() > 900);
    let at = |share: usize| stops[(stops.len() - 1) * share / 100];
    println!("one thread stopped for: median {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    let still: Vec<_> = descriptors(busy.pid()).into_iter().map(|(_, link)| link).collect();
    assert!(still.iter().all(|link| !link.to_string_lossy().contains("userfaultfd")), "{still:?}");
    let (words, success) = busy.end();
    assert!(success && words.starts_with("right"), "{words}");
}

#[test]
fn a_helper_that_is_none_is_reported() {
    if !can_run() {
        return;
    }
    let workload = Workload::commanded();
    for helper in ["/bin/true", "/nowhere/ferry"] {
        let outcome = run_injector(Path::new(helper), workload.pid());
        assert!(matches!(outcome, Err(InjectionError::Helper(_))), "{outcome:?}");
    }
}

#[test]
fn a_tree_is_found_whole_and_a_reused_root_is_not() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    let set = DescendantSet::of(workload.pid()).unwrap();
    let mut expected = vec![workload.pid()];
    for _ in 0..5 {
        expected.push(workload.tell("fork").parse().unwrap());
    }
    assert_eq!(set.processes().unwrap(), expected);
    drop(workload);
    assert_eq!(set.processes().unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(DescendantSet::of(i32::MAX).is_err());
}

#[test]
fn short_lived_children_do_not_fail_a_round() {
    if !can_run() {
        return;
    }
    // Ends with the test, however that ends.
    let script = format!("while [ -d /proc/{} ]; do /bin/true; (: ; /bin/true); done", std::process::id());
    let shell = std::process::Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
    let mut shell = Ended(shell);
    let mut source =
        NativeSource::new(Box::new(DescendantSet::of(shell.0.id() as i32).unwrap()), PathBuf::from(HELPER));
    let mut store = Store::default();
    // A shell that waits in vfork takes seconds to be given up: fewer rounds then.
    let enough = std::time::Instant::now() + Duration::from_secs(20);
    for number in (0..60).take_while(|number| *number < 3 || std::time::Instant::now() < enough) {
        // A first round may meet a child that cannot be followed at once.
        let _ = source.round(Round(number), &mut store);
        if number > 0 {
            source.round(Round(number + 1000), &mut Counter::default()).unwrap();
        }
    }
    assert_eq!(shell.0.try_wait().unwrap(), None, "the shell runs on");
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
