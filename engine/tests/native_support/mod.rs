//! A workload under command, a page store made of a map, and the comparison of
//! what the store would restore with what the workload really holds.
#![allow(dead_code, reason = "each test file uses a part")]

use ferry_engine::memory::native::{DescendantSet, NativeSource};
use ferry_engine::memory::{FrozenSpace, MemorySource, PageSink, RoundScan, SinkClosed};
use ferry_engine::sys::procfs::maps::{Backing, Mapping, Mappings, Sharing};
use ferry_engine::sys::procfs::{numeric_entries, stat};
use ferry_transport::page::{MAX_CHUNK_PAGES, PAGE_SIZE, PageChunk, PageRange, Round, RunKind, SpaceId};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub const HELPER: &str = env!("CARGO_BIN_EXE_ferry-engine-helper");
const PAGE: u64 = PAGE_SIZE as u64;

/// Whether these tests can run here; says why not.
pub fn can_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return false;
    }
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 7) {
        println!("skipped: Linux {release} is older than 6.7");
        return false;
    }
    true
}

/// A child of the test that obeys commands.
pub struct Workload {
    child: Child,
    input: Option<ChildStdin>,
    /// Its lines. Ends when it and all its children have ended.
    output: Receiver<String>,
}

/// A bound for a hang, not an expectation.
const PATIENCE: Duration = Duration::from_secs(60);

impl Workload {
    pub fn start(arguments: &[&str]) -> Workload {
        let mut child = Command::new(HELPER)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper starts");
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, output) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Workload { child, input, output }
    }

    pub fn commanded() -> Workload {
        let mut workload = Workload::start(&["workload"]);
        assert_eq!(workload.line(), "ok");
        workload
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn line(&mut self) -> String {
        self.output.recv_timeout(PATIENCE).expect("an answer")
    }

    pub fn send(&mut self, command: &str) {
        self.input
            .as_mut()
            .unwrap()
            .write_all(format!("{command}\n").as_bytes())
            .expect("the workload listens");
    }

    /// Has it obeyed; its answer.
    pub fn tell(&mut self, command: &str) -> String {
        self.send(command);
        let answer = self.line();
        answer.strip_prefix("ok").unwrap_or_else(|| panic!("{command}: {answer}")).trim().to_owned()
    }

    /// Lets it end and returns its last words and whether it ended well.
    pub fn end(mut self) -> (String, bool) {
        self.input = None;
        let line = self.line();
        let mut status = None;
        wait_until("it ends", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        (line, status.is_some_and(|status| status.success()))
    }

    pub fn source(&self) -> NativeSource {
        source_of(self.pid())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn source_of(pid: i32) -> NativeSource {
    NativeSource::new(Box::new(DescendantSet::of(pid).expect("it lives")), PathBuf::from(HELPER))
}

/// When a page was read, and what it held; `None` is zeroes.
type StoredPage = (Round, Option<Box<[u8]>>);

/// Keeps the last content of every page. Checks chunks on the way.
#[derive(Default)]
pub struct Store {
    pub pages: HashMap<(SpaceId, u64), StoredPage>,
    /// Closes after so many chunks.
    pub patience: Option<usize>,
    pub received: u64,
}

impl PageSink for Store {
    fn put(&mut self, chunk: PageChunk) -> Result<(), SinkClosed> {
        if let Some(patience) = &mut self.patience {
            *patience = patience.checked_sub(1).ok_or(SinkClosed)?;
        }
        assert!(!chunk.runs.is_empty());
        assert!(chunk.runs.len() <= 512);
        assert!(chunk.data_pages().0 as usize <= MAX_CHUNK_PAGES);
        assert_eq!(chunk.data.len(), chunk.data_pages().0 as usize * PAGE_SIZE);
        let mut data = chunk.data.chunks_exact(PAGE_SIZE);
        let mut end = 0;
        for run in &chunk.runs {
            assert!(run.start.address() >= end, "runs ascend and are disjoint");
            for page in 0..u64::from(run.count) {
                let address = run.start.address() + page * PAGE;
                let content = match run.kind {
                    RunKind::Zero => None,
                    RunKind::Data => {
                        let content: Box<[u8]> = data.next().unwrap().into();
                        assert!(content.iter().any(|byte| *byte != 0), "zeroes do not travel");
                        Some(content)
                    }
                };
                let old = self.pages.insert((chunk.space, address), (chunk.round, content));
                if let Some((round, _)) = old {
                    assert!(round < chunk.round, "{address:#x} twice in {round:?}");
                }
                self.received += 1;
            }
            end = run.start.address() + u64::from(run.count) * PAGE;
        }
        Ok(())
    }
}

/// Counts only.
#[derive(Default)]
pub struct Counter {
    pub bytes: u64,
    pub chunks: u64,
}

impl PageSink for Counter {
    fn put(&mut self, chunk: PageChunk) -> Result<(), SinkClosed> {
        self.bytes += chunk.data.len() as u64;
        self.chunks += 1;
        Ok(())
    }
}

/// Every task stopped by SIGSTOP, until dropped.
pub struct Freeze(Vec<i32>);

impl Freeze {
    pub fn tree(pids: &[i32]) -> Freeze {
        for pid in pids {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGSTOP);
        }
        for pid in pids {
            for tid in numeric_entries(&format!("/proc/{pid}/task")).unwrap_or_default() {
                wait_until(&format!("thread {tid} stops"), || {
                    let path = format!("/proc/{pid}/task/{tid}/stat");
                    std::fs::read(path)
                        .ok()
                        .and_then(|text| stat::parse(&text))
                        .is_none_or(|s| s.state.0 == b'T')
                });
            }
        }
        Freeze(pids.to_vec())
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGCONT);
        }
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs one round into the store.
pub fn round(source: &mut NativeSource, store: &mut Store, number: u32) -> RoundScan {
    let before = store.received;
    let scan = source.round(Round(number), store).unwrap_or_else(|cause| panic!("round {number}: {cause}"));
    assert_eq!(scan.dirty_pages.0, store.received - before);
    scan
}

/// Freezes the processes, finishes, compares everything, lets them run on.
pub fn finish_and_compare(
    source: &mut NativeSource,
    store: &mut Store,
    number: u32,
    pids: &[i32],
) -> RoundScan {
    let freeze = Freeze::tree(pids);
    let (scan, spaces) =
        source.finish(Round(number), store).unwrap_or_else(|cause| panic!("finish: {cause}"));
    assert_eq!(spaces.iter().map(|space| space.pid).collect::<HashSet<_>>(), pids.iter().copied().collect());
    for space in &spaces {
        compare(store, space);
    }
    drop(freeze);
    scan
}

/// Panics if what the store would restore differs from what the process holds.
pub fn compare(store: &Store, space: &FrozenSpace) {
    let memory = File::open(format!("/proc/{}/mem", space.pid)).unwrap();
    let mut present = HashSet::new();
    let mut end = 0;
    for range in &space.present {
        assert!(range.start.address() >= end && range.count.0 > 0, "present ranges ascend and are disjoint");
        end = range.end();
        present.extend((0..range.count.0).map(|page| range.start.address() + page * PAGE));
    }
    let mut compared = 0u64;
    let mut mapped = HashSet::new();
    for mapping in Mappings::of(space.pid).unwrap().map(|mapping| mapping.unwrap()) {
        if mapping.sharing == Sharing::Shared || mapping.backing == Backing::Kernel {
            continue;
        }
        let pages = (mapping.range.end - mapping.range.start) / PAGE;
        let huge_reservation = pages > 1 << 18;
        if huge_reservation {
            // Too much to read: only what is said to exist is looked at.
            mapped.extend(present.iter().copied().filter(|address| mapping.range.contains(address)));
        }
        let addresses: Vec<u64> = if huge_reservation {
            present.iter().copied().filter(|address| mapping.range.contains(address)).collect()
        } else {
            (0..pages).map(|page| mapping.range.start + page * PAGE).collect()
        };
        let file = (mapping.backing == Backing::File).then(|| FileContent::of(space.pid, &mapping));
        for address in addresses {
            mapped.insert(address);
            let mut real = [0u8; PAGE_SIZE];
            match memory.read_at(&mut real, address) {
                Ok(PAGE_SIZE) => {}
                // Beyond the end of a file, or a guard: nothing is there to lose.
                _ if !present.contains(&address) => continue,
                other => panic!("{address:#x} is present and reads {other:?}"),
            }
            let expected = if present.contains(&address) {
                let page = store.pages.get(&(space.space, address));
                let (_, content) = page.unwrap_or_else(|| panic!("{address:#x} exists and was never sent"));
                content.clone().unwrap_or_else(|| vec![0; PAGE_SIZE].into())
            } else {
                file.as_ref().map_or_else(|| vec![0; PAGE_SIZE].into(), |file| file.page(address))
            };
            assert!(
                real == *expected,
                "{address:#x} of {} ({:?} {}) differs; present: {}",
                space.pid,
                mapping.range,
                String::from_utf8_lossy(&mapping.name),
                present.contains(&address),
            );
            compared += 1;
        }
    }
    assert!(present.iter().all(|address| mapped.contains(address)), "present pages lie in private mappings");
    assert!(compared > 50, "something was compared");
}

struct FileContent {
    start: u64,
    offset: u64,
    file: Option<File>,
}

impl FileContent {
    fn of(pid: i32, mapping: &Mapping) -> FileContent {
        let range = format!("{:x}-{:x}", mapping.range.start, mapping.range.end);
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let line = maps.lines().find(|line| line.starts_with(&range)).unwrap();
        let offset = u64::from_str_radix(line.split_whitespace().nth(2).unwrap(), 16).unwrap();
        let anonymous = mapping.name.starts_with(b"/anon_hugepage") || mapping.name.starts_with(b"/dev/zero");
        let file = (!anonymous).then(|| File::open(format!("/proc/{pid}/map_files/{range}")).unwrap());
        FileContent { start: mapping.range.start, offset, file }
    }

    fn page(&self, address: u64) -> Box<[u8]> {
        let mut content = vec![0; PAGE_SIZE];
        if let Some(file) = &self.file {
            let mut filled = 0;
            while filled < PAGE_SIZE {
                let at = self.offset + (address - self.start) + filled as u64;
                match file.read_at(&mut content[filled..], at).unwrap() {
                    0 => break,
                    read => filled += read,
                }
            }
        }
        content.into()
    }
}

/// How many pages of `range` are said to exist.
pub fn present_in(spaces: &[FrozenSpace], start: u64, pages: u64) -> u64 {
    let inside = |range: &PageRange| {
        range.end().min(start + pages * PAGE).saturating_sub(range.start.address().max(start)) / PAGE
    };
    spaces.iter().flat_map(|space| &space.present).map(inside).sum()
}
