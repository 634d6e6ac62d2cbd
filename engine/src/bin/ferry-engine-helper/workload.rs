//! Workloads: one that does what it is told, line by line, and some that check
//! that nothing was done to them.

use crate::sys::{self, Area, Kind};
use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A generator good enough to make every page differ.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn fill(words: &mut [u64], seed: u64) {
    let mut noise = Noise(seed | 1);
    words.iter_mut().for_each(|word| *word = noise.next());
}

fn kind_of(name: &str) -> io::Result<Kind> {
    Ok(match name {
        "anonymous" => Kind::Anonymous,
        "reserved" => Kind::Reserved,
        "huge" => Kind::Huge,
        "hugetlb" => Kind::HugeTlb,
        "droppable" => Kind::Droppable,
        path => Kind::File(std::fs::File::open(path)?),
    })
}

#[derive(Default)]
struct Workload {
    areas: HashMap<String, Area>,
    writers: Vec<JoinHandle<()>>,
    quiet: Arc<AtomicBool>,
}

/// Reads commands from standard input until it ends, answering each with a line.
pub fn serve() {
    let mut workload = Workload::default();
    let mut line = String::new();
    // The answer to being started, by a test or by `exec`.
    println!("ok");
    loop {
        line.clear();
        if io::stdin().lock().read_line(&mut line).unwrap_or(0) == 0 {
            std::process::exit(0);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match workload.obey(&words) {
            Ok(answer) => format!("ok {answer}\n"),
            Err(cause) => format!("failed {cause}\n"),
        };
        let mut out = io::stdout().lock();
        let _ = out.write_all(answer.as_bytes()).and_then(|()| out.flush());
    }
}

impl Workload {
    fn area(&mut self, name: &str) -> Result<&mut Area, Box<dyn Error>> {
        self.areas.get_mut(name).ok_or_else(|| format!("no area {name}").into())
    }

    fn obey(&mut self, words: &[&str]) -> Result<String, Box<dyn Error>> {
        match words {
            ["map", name, kind, pages] => {
                let area = sys::map(&kind_of(kind)?, pages.parse()?, None)?;
                let address = area.address;
                self.areas.insert((*name).to_owned(), area);
                return Ok(format!("{address:x}"));
            }
            ["map-at", name, kind, pages, at] => {
                let at = usize::from_str_radix(at, 16)?;
                let area = sys::map(&kind_of(kind)?, pages.parse()?, Some(at))?;
                self.areas.retain(|_, area| area.address != at);
                self.areas.insert((*name).to_owned(), area);
            }
            ["unmap", name] => self.areas.remove(*name).ok_or("no such area")?.unmap()?,
            ["map-again", name] => {
                let area = self.area(name)?;
                area.unmap()?;
                *area = sys::map(&Kind::Anonymous, area.pages, Some(area.address))?;
            }
            ["grow", name, pages] => self.area(name)?.grow(pages.parse()?)?,
            ["move-over", name, onto] => {
                let onto = self.areas.remove(*onto).ok_or("no such area")?;
                self.area(name)?.move_to(onto.address)?;
            }
            ["drop", name, page, pages] => {
                self.area(name)?.advise(page.parse()?, pages.parse()?, libc::MADV_DONTNEED)?;
            }
            ["page-out", name, page, pages] => {
                self.area(name)?.advise(page.parse()?, pages.parse()?, libc::MADV_PAGEOUT)?;
            }
            ["guard", name, page, pages] => self.area(name)?.advise(page.parse()?, pages.parse()?, 102)?,
            ["protect", name, page, pages, access] => {
                let access = match *access {
                    "none" => libc::PROT_NONE,
                    "read" => libc::PROT_READ,
                    _ => libc::PROT_READ | libc::PROT_WRITE,
                };
                self.area(name)?.protect(page.parse()?, pages.parse()?, access)?;
            }
            ["write", name, page, pages, seed] => {
                let (page, pages, seed): (usize, usize, u64) = (page.parse()?, pages.parse()?, seed.parse()?);
                for page in page..page + pages {
                    fill(self.area(name)?.page(page), seed.wrapping_mul(1_000_003) ^ page as u64);
                }
            }
            ["zero", name, page, pages] => {
                let (page, pages): (usize, usize) = (page.parse()?, pages.parse()?);
                (page..page + pages)
                    .try_for_each(|page| self.area(name).map(|area| area.page(page).fill(0)))?;
            }
            ["touch", name, page, pages] => {
                let (page, pages): (usize, usize) = (page.parse()?, pages.parse()?);
                let mut sum = 0u64;
                for page in page..page + pages {
                    sum = sum.wrapping_add(self.area(name)?.page(page)[0]);
                }
                return Ok(sum.to_string());
            }
            ["scatter", name, count, seed] => {
                let mut noise = Noise(seed.parse::<u64>()? | 1);
                let area = self.area(name)?;
                for _ in 0..count.parse::<usize>()? {
                    let page = noise.next() as usize % area.pages;
                    let word = noise.next() as usize % 512;
                    area.page(page)[word] = noise.next();
                }
            }
            // One byte by the kernel on our behalf, into a page that may be protected.
            ["kernel-write", name, page] => {
                let page: usize = page.parse()?;
                let words = self.area(name)?.page(page);
                let mut bytes = [0u8; 8];
                std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
                let (mut reader, mut writer) = io::pipe()?;
                writer.write_all(&bytes)?;
                reader.read_exact(sys::bytes_of(words, 8))?;
            }
            ["writers", name, threads] => {
                for thread in 0..threads.parse::<u64>()? {
                    let area = self.area(name)?;
                    let mut area = Area { address: area.address, pages: area.pages };
                    let quiet = self.quiet.clone();
                    self.writers.push(std::thread::spawn(move || {
                        let mut noise = Noise(thread * 2 + 3);
                        while !quiet.load(Ordering::Relaxed) {
                            let page = noise.next() as usize % area.pages;
                            area.page(page)[noise.next() as usize % 512] = noise.next();
                            if noise.next().is_multiple_of(64) {
                                std::thread::sleep(Duration::from_micros(50));
                            }
                        }
                    }));
                }
            }
            ["fork"] => match sys::fork()? {
                Some(child) => return Ok(child.to_string()),
                None => self.write_for_ever(),
            },
            // A child with a userfaultfd of its own.
            ["fork-unfollowable"] => match sys::fork()? {
                Some(child) => return Ok(child.to_string()),
                None => {
                    sys::own_userfaultfd()?;
                    self.write_for_ever()
                }
            },
            ["exec"] => {
                return Err(std::process::Command::new("/proc/self/exe").arg("workload").exec().into());
            }
            ["confine"] => sys::confine()?,
            ["become-nobody"] => sys::become_nobody()?,
            ["hello"] => {}
            other => return Err(format!("not understood: {other:?}").into()),
        }
        Ok(String::new())
    }

    fn write_for_ever(&mut self) -> ! {
        let mut noise = Noise(u64::from(std::process::id()) | 1);
        loop {
            for area in self.areas.values_mut() {
                let page = noise.next() as usize % area.pages;
                area.page(page)[noise.next() as usize % 512] = noise.next();
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

/// Sleeps in one call over and over, checking each time that it ended as it
/// should and not before its time. Ends, with a report, when standard input does.
pub fn sleep_in(call: &str) {
    const MILLISECONDS: i32 = 20;
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let over = Arc::new(AtomicBool::new(false));
    // Held, so that the pipe is neither readable nor hung up.
    let _held = writer.try_clone().expect("a descriptor");
    let feeder = (call == "read").then(|| {
        let over = over.clone();
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(MILLISECONDS as u64));
                let _ = writer.write_all(b"x");
            }
            // For a read that began after the last look at `over`, before ours.
            let _ = writer.write_all(b"x");
        })
    });
    let done = over.clone();
    std::thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        done.store(true, Ordering::Relaxed);
    });
    let expected = match call {
        "read" => 1,
        "futex" => -i64::from(libc::ETIMEDOUT),
        _ => 0,
    };
    println!("ready");
    let mut turns = 0;
    while !over.load(Ordering::Relaxed) {
        let started = Instant::now();
        let status = sys::sleep_once(call, MILLISECONDS, &reader);
        let slept = started.elapsed();
        if status != expected || (call != "read" && slept < Duration::from_millis(MILLISECONDS as u64)) {
            println!("wrong: turn {turns}: status {status}, slept {slept:?}");
            eprintln!("wrong: {call} turn {turns}: status {status}, slept {slept:?}");
            std::process::exit(1);
        }
        turns += 1;
    }
    if let Some(feeder) = feeder {
        let _ = feeder.join();
    }
    println!("right: {turns} turns");
    std::process::exit(0);
}

/// Computes in many threads things whose outcome is known, with system calls,
/// signals and floating point between; ends when standard input does.
pub fn spin(threads: usize) {
    let over = Arc::new(AtomicBool::new(false));
    let handles: Vec<_> = (0..threads.max(1))
        .map(|thread| {
            let over = over.clone();
            std::thread::spawn(move || {
                let mut turns = 0u64;
                while !over.load(Ordering::Relaxed) {
                    let mut noise = Noise(thread as u64 * 2 + 1);
                    let mut again = Noise(thread as u64 * 2 + 1);
                    let (mut sum, mut real) = (0u64, 1.0f64);
                    for step in 0..2000u64 {
                        sum = sum.wrapping_add(noise.next());
                        real += (step as f64).sqrt();
                    }
                    if turns.is_multiple_of(16) {
                        let mut bytes = vec![0u8; 4096];
                        std::fs::File::open("/dev/zero").unwrap().read_exact(&mut bytes).unwrap();
                        assert!(bytes.iter().all(|byte| *byte == 0));
                    }
                    for step in 0..2000u64 {
                        sum = sum.wrapping_sub(again.next());
                        real -= (step as f64).sqrt();
                    }
                    assert_eq!(sum, 0);
                    assert!((real - 1.0).abs() < 1e-3);
                    turns += 1;
                }
                turns
            })
        })
        .collect();
    println!("ready");
    let _ = io::stdin().read(&mut [0]);
    over.store(true, Ordering::Relaxed);
    let turns: u64 = handles.into_iter().map(|handle| handle.join().expect("a thread found an error")).sum();
    println!("right: {turns} turns");
}
