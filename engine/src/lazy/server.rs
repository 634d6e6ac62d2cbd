//! The worker's main loop: takes userfaultfds from CRIU, serves faults and events at
//! once, and leaves the rest to fill threads.
//!
//! It ends when every page is in place, or when nothing was or can be entrusted to
//! it. It never ends on an error while a task lacks pages. Whatever its predecessor
//! was at when it was killed, the ledger tells.

use super::crew::Crew;
use super::fill::{Served, Space};
use super::guardian::Common;
use super::ledger::{Entry, Ledger, SpaceNumber, Total, Totals};
use super::plan::Plan;
use super::protocol::{self, Drained, MAX_MESSAGE};
use super::roll::{self, Arrivals, Heard, Member};
use crate::sys::arena::{self, ArenaMap};
use crate::sys::fdpass;
use crate::sys::twin::{self, Number};
use crate::sys::uffd_fill::LINK;
use ferry_transport::units::PageCount;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, geteuid, getppid};
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often address spaces are looked after that nobody fills, and the guardian.
const PROBE: Duration = Duration::from_millis(200);

/// What the fill threads get after many events.
const TURN: Duration = Duration::from_micros(50);

/// How a worker's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is left to do.
    Over,
    /// The guardian is gone. No thread but this one is left, and no descriptor was closed.
    Orphaned,
}

/// Works until the end, from wherever the ledger says that things stand.
pub(super) fn work(common: &Common, guardian: Pid) -> io::Result<End> {
    let plan = Plan::read(&common.plan)?;
    let arena = Arc::new(ArenaMap::new(Arc::clone(&common.arena), plan.arena_len)?);
    let (ledger, entries) = Ledger::open(&common.ledger)?;
    let mut arrivals = Arrivals::new(&plan);
    let members = roll::replay(&mut arrivals, &entries);
    let connection = twin::accepted(&common.listener)?;
    let spaces = heirs(members, &ledger.totals(), &arena, &plan)?;
    // From here on nothing is closed by an error, nor when the guardian is gone: the
    // descriptors are a successor's then.
    let mut server = ManuallyDrop::new(Server {
        common,
        control: Control::Open,
        criu: match connection {
            Some(connection) => Criu::Talks(connection),
            None if entries.is_empty() => Criu::Awaited,
            None => Criu::Left,
        },
        arrivals,
        arena,
        totals: ledger.totals(),
        is_entrusted: entries.iter().any(|entry| matches!(entry, Entry::Descriptor(_))),
        ledger,
        crew: Crew::new(spaces, Arc::clone(&common.wake), plan.options),
    });
    let first = entries.is_empty();
    let word = if first { protocol::ARMED } else { protocol::RENEWED };
    if !first {
        server.totals.add(Total::Killed, 1);
    }
    let _ = fdpass::send(common.control, &protocol::words(&[word]), &[]);
    server.serve(guardian)
}

/// The spaces that are still open, by their numbers. Who waited for a predecessor to
/// bring a page is woken, and faults again.
fn heirs(
    members: Vec<Option<Member>>,
    totals: &Totals,
    arena: &Arc<ArenaMap>,
    plan: &Plan,
) -> io::Result<Vec<Arc<Space>>> {
    let mut spaces = Vec::new();
    if members.is_empty() {
        return Ok(spaces);
    }
    let data = arena::data(arena.file(), plan.arena_len)?;
    for (index, member) in members.into_iter().enumerate() {
        let Some(mut member) = member else { continue };
        let Some(uffd) = member.number.adopt(LINK) else { continue };
        member.pending.keep_content(&data);
        let state = (member.pid, member.pending, member.family);
        let (arena, totals) = (Arc::clone(arena), totals.clone());
        let space = Space::new(SpaceNumber(index as u32), state, uffd.into(), arena, totals);
        if !space.uffd.wake_all() {
            eprintln!("ferry pager: PID {}: threads that wait for pages cannot be woken", space.pid);
        }
        spaces.push(Arc::new(space));
    }
    Ok(spaces)
}

/// CRIU, at the other end of `lazy-pages.socket`.
enum Criu {
    Awaited,
    Talks(UnixStream),
    Left,
}

/// The engine, at the other end of fd 0.
#[derive(PartialEq, Eq)]
enum Control {
    Open,
    Left,
}

struct Server<'a> {
    common: &'a Common,
    control: Control,
    criu: Criu,
    arrivals: Arrivals,
    arena: Arc<ArenaMap>,
    totals: Totals,
    /// Whether any task depends on us.
    is_entrusted: bool,
    ledger: Ledger,
    crew: Crew,
}

impl Server<'_> {
    fn serve(&mut self, guardian: Pid) -> io::Result<End> {
        loop {
            if self.arrivals.is_finished() && !self.crew.is_at_work() {
                self.note_finished()?;
                self.crew.begin()?;
            }
            let spaces = self.crew.spaces();
            let ready = self.wait(&spaces)?;
            if getppid() != guardian {
                self.crew.stop();
                return Ok(End::Orphaned);
            }
            for (space, ready) in spaces.iter().zip(&ready.spaces) {
                if *ready {
                    self.events(space);
                }
            }
            drop(spaces);
            if ready.woken {
                let _ = (&*self.common.wake).read(&mut [0; 8]);
            }
            if ready.control {
                self.hear_engine();
                let idle = !self.is_entrusted && !matches!(self.criu, Criu::Talks(_));
                if self.control == Control::Left && idle {
                    return Ok(End::Over);
                }
            }
            if ready.criu {
                self.hear_criu()?;
            }
            let abandoned = !self.arrivals.is_finished() && matches!(self.criu, Criu::Left);
            if abandoned {
                self.crew.spaces().iter().for_each(|space| space.probe());
            }
            self.retire();
            if (self.arrivals.is_finished() || abandoned) && self.crew.spaces().is_empty() {
                break;
            }
        }
        self.crew.stop();
        if self.arrivals.is_finished() {
            // The engine may have left just now.
            let _ = fdpass::send(self.common.control, &self.drained()?.encode(), &[]);
        }
        Ok(End::Over)
    }

    fn wait(&self, spaces: &[Arc<Space>]) -> io::Result<Ready> {
        let criu = match &self.criu {
            Criu::Awaited => Some(self.common.listener.as_fd()),
            Criu::Talks(connection) => Some(connection.as_fd()),
            Criu::Left => None,
        };
        let control = (self.control == Control::Open).then_some(self.common.control);
        let optional = [control, criu, Some(self.common.wake.as_fd())];
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
        let (control, criu, woken) = (next(0), next(1), next(2));
        Ok(Ready { control, criu, woken, spaces: ready.collect() })
    }

    fn events(&mut self, space: &Arc<Space>) {
        let mut children = Vec::new();
        let served = space.serve(&mut self.ledger, &mut children);
        self.crew.add(children);
        match served {
            Ok(Served::All) => {}
            // Long enough for the fill threads to take the lock.
            Ok(Served::Many) => std::thread::sleep(TURN),
            Err(error) => {
                eprintln!("ferry pager: PID {}: {error}", space.pid);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Reads the engine's socket: only its end says anything.
    fn hear_engine(&mut self) {
        match fdpass::receive(self.common.control, &mut [0; MAX_MESSAGE]) {
            Ok((0, _)) | Err(_) => self.control = Control::Left,
            Ok(_) => {}
        }
    }

    fn hear_criu(&mut self) -> io::Result<()> {
        match &self.criu {
            Criu::Awaited => {
                let (connection, _) = self.common.listener.accept()?;
                // The directory keeps strangers out; this is the second lock.
                let peer = getsockopt(&connection, PeerCredentials)?;
                if peer.uid() == geteuid().as_raw() {
                    self.criu = Criu::Talks(connection);
                } else {
                    eprintln!("ferry pager: refused a connection of user {}", peer.uid());
                }
            }
            Criu::Talks(connection) => {
                let heard =
                    self.arrivals.hear(&mut self.ledger, connection.as_fd()).map(|heard| match heard {
                        Heard::Word => true,
                        Heard::Descriptor(number) => self.entrust(number),
                        Heard::End => false,
                    });
                let stays = heard.unwrap_or_else(|error| {
                    eprintln!("ferry pager: CRIU: {error}");
                    error.kind() == io::ErrorKind::Interrupted
                });
                if !stays {
                    self.criu = Criu::Left;
                }
            }
            Criu::Left => {}
        }
        Ok(())
    }

    /// The tasks are about to run, or did already under a worker before this one.
    fn note_finished(&self) -> io::Result<()> {
        if self.totals.finished_at().load(Ordering::Acquire) == 0 {
            self.totals.finished_at().store(now()?, Ordering::Release);
        }
        let _ = fdpass::send(self.common.control, &protocol::words(&[protocol::RESTORED]), &[]);
        Ok(())
    }

    /// Takes a task's userfaultfd; false if it is none.
    fn entrust(&mut self, number: Number) -> bool {
        let (pid, pending) = self.arrivals.descriptor();
        let Some(uffd) = number.adopt(LINK) else {
            eprintln!("ferry pager: what came for PID {pid} is no userfaultfd");
            return false;
        };
        let state = (pid, pending, roll::Family::default());
        let (arena, totals) = (Arc::clone(&self.arena), self.totals.clone());
        self.crew.add([Space::new(self.ledger.latest(), state, uffd.into(), arena, totals)]);
        self.is_entrusted = true;
        true
    }

    /// Lets go of spaces that lack nothing any more: closing the descriptor leaves
    /// what is missing to the kernel, and it is zero.
    fn retire(&mut self) {
        let may = self.arrivals.is_finished() || matches!(self.criu, Criu::Left);
        // Before there are fill threads nobody frees the arena.
        let at_work = self.crew.is_at_work();
        let is_done = |space: &Space| if at_work { space.is_complete() } else { space.is_whole() };
        for space in self.crew.spaces() {
            if may && is_done(&space) {
                self.events(&space);
                if is_done(&space) {
                    self.crew.remove(&space);
                }
            }
        }
    }

    fn drained(&self) -> io::Result<Drained> {
        let pages = PageCount(self.totals.get(Total::Brought));
        let finished_at = self.totals.finished_at().load(Ordering::Acquire);
        Ok(Drained {
            pages,
            bytes: pages.bytes(),
            dropped: PageCount(self.totals.get(Total::Dropped)),
            lost: PageCount(self.totals.get(Total::Lost)),
            faults: self.totals.get(Total::Faults),
            killed: self.totals.get(Total::Killed),
            time: Duration::from_micros(now()?.saturating_sub(finished_at)),
        })
    }
}

/// The machine's monotonic clock in µs: the same for every process.
fn now() -> io::Result<u64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_micros() as u64)
}

struct Ready {
    control: bool,
    criu: bool,
    woken: bool,
    spaces: Vec<bool>,
}
