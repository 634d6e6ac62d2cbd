//! Real process trees for the tests of the lazy restore: a full dump is the truth,
//! its private pages go into the store and are taken out of the images, which then
//! look as a dump without page payload does.

use bytes::Bytes;
use ferry_engine::images::file::{self, Kind, Messages};
use ferry_engine::images::proto::{PE_PRESENT, PagemapEntry, PagemapHead};
use ferry_engine::images::{assemble, tree};
use ferry_engine::lazy::{Drained, FillOptions, PagerHandle};
use ferry_engine::page_store::{PageStore, Sealed};
use ferry_transport::page::SpaceId;
use ferry_transport::page::{
    MAX_CHUNK_PAGES, PAGE_SIZE, PageAddr, PageChunk, PageRange, Round, Run, RunKind,
};
use ferry_transport::units::{self, PageCount};
use ferry_transport::wire::control::{FinalSpace, RestoreMode};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGER: &str = "FERRY_TEST_IS_PAGER";
const VDSO: u32 = 1 << 3;

/// What becomes a pager: this very program, told so.
pub fn pager_command() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "pager_process", "--nocapture"]).env(PAGER, "1");
    command
}

/// To be called by the test named `pager_process`, which is none of its own.
pub fn pager_if_told() {
    if std::env::var_os(PAGER).is_some() {
        let code = ferry_engine::lazy::pager_main();
        std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { 1 });
    }
}

pub fn criu() -> Option<PathBuf> {
    let path = std::env::var_os("FERRY_CRIU").map_or("/var/lib/ferry/criu/bin/criu".into(), PathBuf::from);
    if !nix::unistd::geteuid().is_root() || !path.exists() {
        eprintln!("skipped: needs root and CRIU (at {}, or FERRY_CRIU)", path.display());
        return None;
    }
    Some(path)
}

/// A process tree that knows its memory.
pub struct Workload {
    pub dir: tempfile::TempDir,
    child: Child,
    pub criu: PathBuf,
    pub pids: Vec<u32>,
    /// A CRIU that a script takes part in.
    restore: Option<Child>,
    /// Where the pages are that the pager brings.
    pub arena: Option<Arc<File>>,
}

impl Workload {
    pub fn start(mode: &str, mebibytes: u64) -> Option<Workload> {
        let criu = criu()?;
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
        let dir = tempfile::Builder::new().prefix("ferry-lazy-").tempdir_in(base).unwrap();
        let (source, binary) = (
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lazy_workload.c"),
            dir.path().join("workload"),
        );
        let built =
            Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&binary).arg(source).status().unwrap();
        assert!(built.success());
        for name in ["images", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let child = Command::new(binary)
            .current_dir(dir.path())
            .arg(dir.path())
            .args([mode, &(mebibytes * 256).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let expected = if mode == "tree" { 3 } else { 1 };
        let workload = Workload { dir, child, criu, pids: Vec::new(), restore: None, arena: None };
        wait(|| workload.files("ready-").len() == expected, "the workload to be ready");
        Some(workload)
    }

    pub fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn files(&self, prefix: &str) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    pub fn criu(&self, args: &[&str]) {
        let output = Command::new(&self.criu)
            .args(args)
            .arg("-D")
            .arg(self.images())
            .arg("-W")
            .arg(self.work())
            .args(["-v4", "-o", "criu.log"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let log = fs::read_to_string(self.work().join("criu.log")).unwrap_or_default();
        let pager = fs::read_to_string(self.work().join("pager.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        assert!(output.status.success(), "criu {args:?}\n{tail}\n{pager}");
    }

    /// Dumps the tree, moves its private pages from the images into a store.
    pub fn dump(&mut self) -> Sealed {
        self.criu(&["dump", "-t", &self.child.id().to_string()]);
        self.child.wait().unwrap();
        let store = PageStore::new(units::Bytes(4 << 30)).unwrap();
        let mut finals = Vec::new();
        for (number, process) in tree::processes(&self.images()).unwrap().into_iter().enumerate() {
            self.pids.push(process.pid);
            let space = SpaceId(number as u32);
            let vdso = process.vmas.iter().filter(|vma| vma.status & VDSO != 0);
            let vdso: Vec<_> = vdso.map(|vma| vma.start..vma.end).collect();
            let present = strip(&self.images(), process.pid, space, &store, |page| {
                vdso.iter().any(|range| range.contains(&page))
            });
            finals.push(FinalSpace { space, image_pid: process.pid, present });
        }
        // Their PIDs are free once nobody is left to be reaped.
        let gone = |pid: &u32| !Path::new(&format!("/proc/{pid}")).exists();
        wait(|| self.pids.iter().all(gone), "the dumped processes to be reaped");
        store.seal(&finals).unwrap()
    }

    /// Starts a pager and arms it with these pages.
    pub fn pager(&mut self, sealed: Sealed, pause: Duration) -> PagerHandle {
        let mut pager = PagerHandle::spawn_command(&mut pager_command(), &self.work()).unwrap();
        let began = Instant::now();
        let assembly = assemble(&self.images(), sealed, RestoreMode::Lazy).unwrap();
        let assembled = began.elapsed();
        self.arena = Some(Arc::clone(&assembly.arena));
        pager.arm(&assembly, FillOptions { pause }).unwrap();
        println!(
            "assembled {} lazy and {} eager pages in {assembled:?}, armed at {:?}",
            assembly.lazy_pages.0,
            assembly.eager_pages.0,
            began.elapsed()
        );
        assert!(assembly.lazy_pages.0 > 0);
        pager
    }

    pub fn restore_lazily(&mut self, sealed: Sealed, pause: Duration) -> PagerHandle {
        let pager = self.pager(sealed, pause);
        self.restore();
        pager
    }

    pub fn restore(&self) {
        let began = Instant::now();
        self.criu(&["restore", "-d", "--lazy-pages"]);
        println!("restored in {:?}", began.elapsed());
    }

    /// Starts a restore that CRIU's action script, a shell script, takes part in.
    pub fn restore_with(&mut self, script: &str) {
        let path = self.dir.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{script}\nexit 0\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let mut criu = Command::new(&self.criu);
        criu.args(["restore", "-d", "--lazy-pages", "-v4", "-o", "criu.log", "--action-script"]).arg(&path);
        criu.arg("-D").arg(self.images()).arg("-W").arg(self.work());
        let criu = criu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.restore = Some(criu);
    }

    /// The CRIU of [`Workload::restore_with`].
    pub fn restoring(&mut self) -> &mut Child {
        self.restore.as_mut().unwrap()
    }

    pub fn go(&self) {
        fs::write(self.dir.path().join("go"), "").unwrap();
    }

    /// Waits until `count` processes have verified their memory.
    pub fn results(&self, count: usize) {
        wait(|| self.files("result-").len() >= count, "the workload's verdict");
        for name in self.files("result-") {
            assert_eq!(fs::read_to_string(self.dir.path().join(&name)).unwrap(), "ok", "{name}");
        }
    }
}

impl Workload {
    /// Kills what runs, or was half made, under the tree's PIDs: the workload's
    /// program, or CRIU's on the way to becoming it.
    pub fn kill(&self) {
        for pid in self.pids.iter().map(|pid| *pid as i32) {
            // Only what is ours, since PIDs are reused.
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let held = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            if exe.starts_with(self.dir.path()) || held.starts_with(self.dir.path()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if let Some(criu) = &mut self.restore {
            let _ = criu.kill();
            let _ = criu.wait();
        }
        self.kill();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait(mut condition: impl FnMut() -> bool, what: &str) {
    // A bound for a hang, not an expectation.
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes all pages but those of `keep` out of a process's images, into the store.
fn strip(
    images: &Path,
    pid: u32,
    space: SpaceId,
    store: &PageStore,
    keep: impl Fn(u64) -> bool,
) -> Vec<PageRange> {
    let name = images.join(format!("pagemap-{pid}.img"));
    let bytes = fs::read(&name).unwrap();
    let mut messages = Messages::of(&bytes, Kind::Pagemap).unwrap();
    let head: PagemapHead = messages.next_message().unwrap().unwrap();
    let entries: Vec<PagemapEntry> = messages.rest().unwrap();
    let pages_name = images.join(format!("pages-{}.img", head.pages_id));
    let pages = File::open(&pages_name).unwrap();
    let mut map = file::begin(Kind::Pagemap);
    file::append(&mut map, &head);
    let (mut kept, mut present, mut offset) = (Vec::new(), Vec::new(), 0);
    for entry in entries {
        assert_eq!(entry.effective_flags() & PE_PRESENT, PE_PRESENT);
        let mut page = 0;
        while page < entry.pages() {
            let count = (entry.pages() - page).min(MAX_CHUNK_PAGES as u64);
            let address = entry.vaddr + page * PAGE_SIZE as u64;
            let mut content = vec![0; count as usize * PAGE_SIZE];
            pages.read_exact_at(&mut content, offset).unwrap();
            offset += content.len() as u64;
            page += count;
            if keep(address) {
                kept.extend(content);
                continue;
            }
            let start = PageAddr::containing(address);
            present.push(PageRange { start, count: PageCount(count) });
            // As a memory source does, zero pages are told apart.
            let runs = content.chunks(PAGE_SIZE).enumerate().map(|(index, content)| Run {
                start: PageAddr::from_index(start.index() + index as u64),
                count: 1,
                kind: if content.iter().all(|byte| *byte == 0) { RunKind::Zero } else { RunKind::Data },
            });
            let runs: Vec<Run> = runs.collect();
            let data = content.chunks(PAGE_SIZE).zip(&runs).filter(|(_, run)| run.kind == RunKind::Data);
            let data = Bytes::from(data.flat_map(|(content, _)| content.to_vec()).collect::<Vec<u8>>());
            let round = Round(u32::from(address.is_multiple_of(1 << 21)));
            store.put(&PageChunk { space, round, runs, data }).unwrap();
        }
        if keep(entry.vaddr) {
            file::append(&mut map, &entry);
        }
    }
    fs::write(name, map).unwrap();
    fs::write(pages_name, kept).unwrap();
    present
}

pub fn report(drained: Drained) {
    println!(
        "drained: {} pages in {:?} ({}), {} dropped, {} faults, {} workers killed",
        drained.pages.0,
        drained.time,
        drained.bytes.per(drained.time),
        drained.dropped.0,
        drained.faults,
        drained.killed
    );
    assert_eq!(drained.lost, PageCount(0));
}
