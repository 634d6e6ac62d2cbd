//! The pager's main loop: takes the plan from the engine and the userfaultfds from
//! CRIU, serves faults and events at once, and leaves the rest to fill threads.
//!
//! It exits when every page is in place, or when nothing was or can be entrusted to
//! it. It never exits on an error while a task lacks pages: the kernel would give
//! that task zeroes in their place.

use super::fill::{Space, Step, Totals};
use super::pending::Pending;
use super::plan::{FillOptions, Plan};
use super::protocol::{self, Drained, MAX_MESSAGE};
use crate::sys::arena::ArenaMap;
use crate::sys::{fdpass, uffd_fill::FaultServer};
use ferry_transport::units::PageCount;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const FILL_THREADS: usize = 2;
/// "ReSTore Finished": what CRIU sends last, where a PID could be (none is so large).
const RESTORE_FINISHED: i32 = 0x5253_5446;
/// How often address spaces are looked after that nobody fills.
const PROBE: Duration = Duration::from_millis(200);

/// The pager's `main`: everything it needs comes over fd 0. To be called first
/// thing in a process started by [`super::PagerHandle::spawn`].
pub fn pager_main() -> ExitCode {
    let stdin = io::stdin();
    let control = stdin.as_fd();
    match run(control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(control, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn report(control: BorrowedFd<'_>, text: &str) {
    eprintln!("ferry pager: {text}");
    let mut message = protocol::words(&[protocol::FAILED]);
    message.extend(text.bytes().take(MAX_MESSAGE - 8));
    // The engine may be gone; the log has it.
    let _ = fdpass::send(control, &message, &[]);
}

fn run(control: BorrowedFd<'_>) -> io::Result<()> {
    detach();
    let Some((arena, plan, listener)) = parked(control)? else { return Ok(()) };
    let plan = Plan::read(plan.into())?;
    let arena = Arc::new(ArenaMap::new(arena, plan.arena_len)?);
    let totals = Arc::<Totals>::default();
    let waiting = plan.spaces.iter().map(|space| (space.pid, Pending::new(&space.extents, &space.hot)));
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let mut server = Server {
        control: Some(control),
        listener: Some(listener.into()),
        criu: None,
        waiting: waiting.collect(),
        arena,
        totals,
        woken,
        shared: Arc::new(Shared {
            spaces: Mutex::default(),
            stop: AtomicBool::new(false),
            wake,
            options: plan.options,
        }),
        finished: None,
        entrusted: false,
    };
    fdpass::send(control, &protocol::words(&[protocol::ARMED]), &[])?;
    server.serve()
}

/// What happens to the engine's terminal or session is not ours, and of all
/// processes this is the last that memory pressure should take.
fn detach() {
    let _ = nix::unistd::setsid();
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE]);
    let _ = signals.thread_block();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Waits to be armed; `None` when the engine left instead.
fn parked(control: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, OwnedFd, OwnedFd)>> {
    loop {
        let mut message = [0; MAX_MESSAGE];
        let (len, fds) = match fdpass::receive(control, &mut message) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if len == 0 {
            return Ok(None);
        }
        if protocol::parse(&message[..len]).first() == Some(&protocol::ARM) {
            let fds: [OwnedFd; 3] =
                fds.try_into().map_err(|_| io::Error::other("armed without descriptors"))?;
            let [arena, plan, listener] = fds;
            return Ok(Some((arena, plan, listener)));
        }
    }
}

/// What server and fill threads share.
struct Shared {
    spaces: Mutex<Vec<Arc<Space>>>,
    stop: AtomicBool,
    wake: UnixStream,
    options: FillOptions,
}

impl Shared {
    fn spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A fill thread: a batch for each space in turn, until told to stop.
    fn fill(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let mut idle = true;
            for space in self.spaces() {
                match space.step() {
                    Ok(Step::Progress) => idle = false,
                    Ok(Step::Blocked) => {}
                    Ok(Step::Complete) => {
                        // A full pipe wakes as well.
                        let _ = io::Write::write(&mut &self.wake, &[1]);
                    }
                    Err(error) => eprintln!("ferry pager: PID {}: {error}; trying again", space.pid),
                }
            }
            if idle {
                std::thread::sleep(Duration::from_micros(300));
            } else if !self.options.pause.is_zero() {
                std::thread::sleep(self.options.pause);
            }
        }
    }
}

struct Server<'a> {
    control: Option<BorrowedFd<'a>>,
    listener: Option<UnixListener>,
    criu: Option<UnixStream>,
    /// What the plan has for tasks that CRIU has not handed over yet.
    waiting: Vec<(u32, Pending)>,
    arena: Arc<ArenaMap>,
    totals: Arc<Totals>,
    woken: UnixStream,
    shared: Arc<Shared>,
    /// When CRIU said that the tasks are about to run.
    finished: Option<Instant>,
    /// Whether any task depends on us.
    entrusted: bool,
}

impl Server<'_> {
    fn serve(&mut self) -> io::Result<()> {
        let mut threads = Vec::new();
        loop {
            let spaces = self.shared.spaces();
            let ready = self.wait(&spaces)?;
            for (space, ready) in spaces.iter().zip(&ready.spaces) {
                if *ready {
                    self.events(space);
                }
            }
            drop(spaces);
            if ready.woken {
                let mut bytes = [0; 256];
                let _ = (&self.woken).read(&mut bytes);
            }
            if ready.control && self.engine_left() && !self.entrusted && self.criu.is_none() {
                return Ok(());
            }
            if ready.listener {
                self.criu =
                    self.listener.take().map(|listener| listener.accept()).transpose()?.map(|(c, _)| c);
            }
            if ready.criu {
                self.hear_criu();
            }
            if self.finished.is_some() && threads.is_empty() {
                for _ in 0..FILL_THREADS {
                    let shared = Arc::clone(&self.shared);
                    threads.push(std::thread::Builder::new().spawn(move || shared.fill())?);
                }
            }
            if self.finished.is_none() && self.listener.is_none() && self.criu.is_none() {
                self.shared.spaces().iter().for_each(|space| space.probe());
            }
            self.retire();
            let over = self.finished.is_some() || (self.listener.is_none() && self.criu.is_none());
            if over && self.shared.spaces().is_empty() {
                break;
            }
        }
        self.shared.stop.store(true, Ordering::Release);
        threads.into_iter().for_each(|thread| drop(thread.join()));
        if let (Some(control), Some(_)) = (self.control, self.finished) {
            // The engine may have left just now.
            let _ = fdpass::send(control, &self.drained().encode(), &[]);
        }
        Ok(())
    }

    fn wait(&self, spaces: &[Arc<Space>]) -> io::Result<Ready> {
        let optional = [
            self.control,
            self.listener.as_ref().map(AsFd::as_fd),
            self.criu.as_ref().map(AsFd::as_fd),
            Some(self.woken.as_fd()),
        ];
        let descriptors =
            optional.iter().flatten().copied().chain(spaces.iter().map(|space| space.uffd.as_fd()));
        let mut polled: Vec<PollFd<'_>> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(PROBE).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(false));
        let mut next = |index: usize| optional[index].is_some() && ready.next().unwrap_or(false);
        let (control, listener, criu, woken) = (next(0), next(1), next(2), next(3));
        Ok(Ready { control, listener, criu, woken, spaces: ready.collect() })
    }

    fn events(&self, space: &Arc<Space>) {
        match space.serve() {
            Ok(children) if children.is_empty() => {}
            Ok(children) => {
                let mut spaces = self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner);
                spaces.extend(children.into_iter().map(Arc::new));
            }
            Err(error) => {
                eprintln!("ferry pager: PID {}: {error}", space.pid);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Reads the engine's socket; true once nobody is there.
    fn engine_left(&mut self) -> bool {
        let Some(control) = self.control else { return true };
        let mut message = [0; MAX_MESSAGE];
        match fdpass::receive(control, &mut message) {
            Ok((0, _)) | Err(_) => {
                self.control = None;
                true
            }
            Ok(_) => false,
        }
    }

    /// A PID as a 32-bit integer and, unless it is a zombie's (negative), a
    /// descriptor with one byte; at the end [`RESTORE_FINISHED`].
    fn hear_criu(&mut self) {
        let Some(criu) = self.criu.as_ref() else { return };
        let mut word = [0; 4];
        let mut stream = criu;
        if let Err(error) = stream.read_exact(&mut word) {
            if self.finished.is_none() {
                eprintln!("ferry pager: CRIU left: {error}");
            }
            self.criu = None;
            return;
        }
        match i32::from_ne_bytes(word) {
            RESTORE_FINISHED => {
                self.finished = Some(Instant::now());
                if let Some(control) = self.control {
                    let _ = fdpass::send(control, &protocol::words(&[protocol::RESTORED]), &[]);
                }
            }
            zombie if zombie < 0 => {}
            pid => match fdpass::receive(criu.as_fd(), &mut [0]) {
                Ok((1, mut fds)) if fds.len() == 1 => {
                    let uffd = FaultServer::from(fds.remove(0));
                    let index = self.waiting.iter().position(|(waiting, _)| *waiting == pid as u32);
                    let pending = index.map(|index| self.waiting.swap_remove(index).1);
                    if pending.is_none() {
                        eprintln!("ferry pager: the plan has nothing for PID {pid}");
                    }
                    let (arena, totals) = (Arc::clone(&self.arena), Arc::clone(&self.totals));
                    let space = Space::new(pid as u32, uffd, pending.unwrap_or_default(), arena, totals);
                    let mut spaces = self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner);
                    spaces.push(Arc::new(space));
                    self.entrusted = true;
                }
                _ => {
                    eprintln!("ferry pager: PID {pid} came without a descriptor");
                    self.criu = None;
                }
            },
        }
    }

    /// Lets go of spaces that lack nothing any more: closing the descriptor leaves
    /// what is missing to the kernel, and it is zero.
    fn retire(&self) {
        for space in self.shared.spaces() {
            let may = self.finished.is_some() || self.criu.is_none();
            if may && space.is_complete() {
                self.events(&space);
                if space.is_complete() {
                    let mut spaces = self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner);
                    spaces.retain(|other| !Arc::ptr_eq(other, &space));
                }
            }
        }
    }

    fn drained(&self) -> Drained {
        let get = |total: &std::sync::atomic::AtomicU64| total.load(Ordering::Relaxed);
        let pages = PageCount(get(&self.totals.brought));
        Drained {
            pages,
            bytes: pages.bytes(),
            dropped: PageCount(get(&self.totals.dropped)),
            lost: PageCount(get(&self.totals.lost)),
            faults: get(&self.totals.faults),
            time: self.finished.map_or(Duration::ZERO, |finished| finished.elapsed()),
        }
    }
}

struct Ready {
    control: bool,
    listener: bool,
    criu: bool,
    woken: bool,
    spaces: Vec<bool>,
}
