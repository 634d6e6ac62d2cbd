//! Where nothing can be preloaded into CRIU, a lazy dump leaves the pages to ferry:
//! held, rolled back, killed, pinned and removed like any other, and restored from
//! what the memory source read.

mod criu_support;

use criu_support::*;
use ferry_engine::criu::install::{self, Wanted, WhenMissing};
use ferry_engine::criu::selftest::PayloadFree;
use ferry_engine::images::file::{Kind, Messages};
use ferry_engine::images::proto::{PagemapEntry, PagemapHead};
use ferry_engine::images::{assemble, tree};
use ferry_engine::memory::native::{DescendantSet, NativeSource};
use ferry_engine::memory::{MemorySource, PageSink, SinkClosed};
use ferry_engine::page_store::PageStore;
use ferry_engine::target::process::{Criu, ProcessRestorer};
use ferry_engine::target::{RestorePlan, Restorer};
use ferry_transport::page::{PageChunk, Round};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{FinalSpace, RestoreMode, TcpMode};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn lazy_criu(directory: &Path) -> Option<Criu> {
    criu(directory).map(|criu| Criu { shim: None, ..criu })
}

/// Sees that the images hold no pages but those of the mappings that CRIU always dumps.
fn holds_no_pages(images: &Path) {
    for process in tree::processes(images).unwrap() {
        let bytes = std::fs::read(images.join(format!("pagemap-{}.img", process.pid))).unwrap();
        let mut messages = Messages::of(&bytes, Kind::Pagemap).unwrap();
        let head: PagemapHead = messages.next_message().unwrap().unwrap();
        let entries: Vec<PagemapEntry> = messages.rest().unwrap();
        assert!(!entries.is_empty(), "the vDSO is there");
        for entry in &entries {
            let vma = process.vmas.iter().find(|vma| (vma.start..vma.end).contains(&entry.vaddr)).unwrap();
            assert!(vma.is_dumped_whole(), "{entry:?} in {vma:?}");
        }
        let size = std::fs::metadata(images.join(format!("pages-{}.img", head.pages_id))).unwrap().len();
        assert_eq!(size, entries.iter().map(|entry| entry.pages() * 4096).sum::<u64>());
    }
}

#[test]
fn a_lazy_dump_rolls_back_and_leaves_no_lock() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = lazy_criu(directory.path()) else { return };
    let (child, file) = counter(directory.path());
    count(&file);
    for pinned in [false, true, false] {
        let images = tempfile::tempdir_in(directory.path()).unwrap();
        let mut held = held(target(&child, &criu), images.path());
        let standing = count(&file);
        holds_no_pages(images.path());
        if pinned {
            held.pin().unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(count(&file), standing, "frozen");
        eprintln!("{:?}", held.times());
        held.roll_back().unwrap();
        no_lock_is_left(images.path());
        goes_on_from(&file, standing);
    }
}

#[test]
fn a_killed_criu_leaves_a_running_workload_or_a_pinned_one() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = lazy_criu(directory.path()) else { return };
    let (child, file) = counter(directory.path());
    count(&file);
    let mappings = || std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let before = mappings();
    for pinned in [false, true] {
        let images = tempfile::tempdir_in(directory.path()).unwrap();
        let mut held = held(target(&child, &criu), images.path());
        if pinned {
            held.pin().unwrap();
        }
        let standing = count(&file);
        kill_criu_of(images.path());
        if pinned {
            std::thread::sleep(Duration::from_millis(200));
            assert_eq!(count(&file), standing, "pinned beneath CRIU");
        } else {
            goes_on_from(&file, standing);
        }
        held.roll_back().unwrap();
        no_lock_is_left(images.path());
        goes_on_from(&file, standing);
        assert_eq!(mappings(), before, "nothing of CRIU is left in it");
    }
}

#[test]
fn an_engine_that_is_gone_leaves_a_running_workload() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = lazy_criu(directory.path()) else { return };
    let (child, file) = counter(directory.path());
    count(&file);
    let images = new_directory(directory.path(), "images");
    let held = held(target(&child, &criu), &images);
    let standing = count(&file);
    // All that CRIU sees of an engine's end.
    drop(held);
    goes_on_from(&file, standing);
    let log = std::fs::read_to_string(images.join("dump.log")).unwrap();
    assert!(log.contains("Starting lazy pages server"), "it was a lazy dump");
}

/// The page store as the sink of the memory source, without a network between.
struct Into<'a>(&'a PageStore);

impl PageSink for Into<'_> {
    fn put(&mut self, chunk: PageChunk) -> Result<(), SinkClosed> {
        self.0.put(&chunk).map_err(|_| SinkClosed)
    }
}

#[test]
fn a_lazily_dumped_workload_moves_with_the_pages_that_ferry_read() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = lazy_criu(directory.path()) else { return };
    let (mut child, file) = counter(directory.path());
    count(&file);
    let (images, work) = (new_directory(directory.path(), "images"), new_directory(directory.path(), "work"));
    let pid = child.id();
    let set = Box::new(DescendantSet::of(pid as i32).unwrap());
    let mut memory = NativeSource::new(set, PathBuf::from(env!("CARGO_BIN_EXE_ferry-engine-helper")));
    let store = PageStore::new(Bytes(1 << 30)).unwrap();
    let held = held(target(&child, &criu), &images);
    let standing = count(&file);
    let (_, spaces) = memory.finish(Round(0), &mut Into(&store)).unwrap();
    held.commit().unwrap();
    child.wait().unwrap();
    no_lock_is_left(&images);

    let finals: Vec<FinalSpace> = spaces
        .into_iter()
        .map(|space| FinalSpace { space: space.space, image_pid: space.pid as u32, present: space.present })
        .collect();
    assemble(&images, store.seal(&finals).unwrap(), RestoreMode::Eager).unwrap();
    let plan = RestorePlan { images, work, tcp: TcpMode::Established, lazy: false, pids: vec![pid] };
    let copy = ProcessRestorer::new(criu).restore(&plan).unwrap();
    let tasks = copy.tasks();
    assert_eq!(count(&file), standing, "held");
    copy.release(&mut || ()).unwrap();
    goes_on_from(&file, standing);
    for task in tasks {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(task.pid), nix::sys::signal::SIGKILL).unwrap();
    }
}

/// A CRIU into which nothing can be preloaded: statically linked or setuid ones are
/// such, this one forgets what it is told.
fn deaf_criu(directory: &Path, criu: &Criu) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join("criu");
    let script = format!("#!/bin/sh\nunset LD_PRELOAD\nexec {} \"$@\"\n", criu.program.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_criu_without_preloading_is_found_out_and_used_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let Some(criu) = lazy_criu(directory.path()) else { return };
    let wanted = Wanted {
        explicit: Some(deaf_criu(directory.path(), &criu)),
        root: directory.path().join("root"),
        when_missing: WhenMissing::Fail,
    };
    let found = install::find(&wanted, &mut |step| eprintln!("{step}")).unwrap();
    let PayloadFree::Fails(why) = &found.test.payload_free else { panic!("{found:?}") };
    assert!(why.contains("was told to leave them"), "{why}");
    assert!(found.fallback().unwrap().contains("--lazy-pages"));
    let (child, file) = counter(directory.path());
    count(&file);
    let images = new_directory(directory.path(), "images");
    let held = held(target(&child, &found.criu()), &images);
    let standing = count(&file);
    holds_no_pages(&images);
    held.roll_back().unwrap();
    goes_on_from(&file, standing);
}
