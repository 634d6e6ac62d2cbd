//! How a thread is scheduled, changed for a moment and put back.

use std::io;

/// `struct sched_attr` of linux/sched/types.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

const RESET_ON_FORK: u64 = 1;

/// A thread that goes before all ordinary ones until it is put back.
#[derive(Debug)]
#[must_use = "the thread keeps its priority until it is put back"]
pub struct Hurried {
    tid: i32,
    before: Attributes,
}

/// Lets a thread go before all ordinary ones. `None` when that is refused, or the
/// thread is scheduled in real time as it is.
pub fn hurry(tid: i32) -> Option<Hurried> {
    let mut before = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: sched_getattr fills at most `size` bytes of the structure.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut before, size, 0) };
    let ordinary = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].map(|policy| policy as u32);
    if got != 0 || !ordinary.contains(&before.policy) {
        return None;
    }
    // Without the utilization clamps, which nobody touches.
    before.flags &= RESET_ON_FORK;
    let ahead = Attributes {
        size: size as u32,
        policy: libc::SCHED_FIFO as u32,
        flags: before.flags,
        priority: 2,
        ..Attributes::default()
    };
    set(tid, &ahead).ok()?;
    Some(Hurried { tid, before })
}

impl Hurried {
    /// Puts it back.
    pub fn put_back(self) -> io::Result<()> {
        set(self.tid, &self.before)
    }
}

fn set(tid: i32, attributes: &Attributes) -> io::Result<()> {
    let attributes = Attributes { size: size_of::<Attributes>() as u32, ..*attributes };
    // SAFETY: sched_setattr reads a structure of the size that it names.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Attributes {
        let mut attributes = Attributes::default();
        // SAFETY: as in `hurry`.
        let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, 56, 0) };
        assert_eq!(got, 0);
        attributes
    }

    #[test]
    fn a_thread_is_put_back_as_it_was() {
        // A thread of its own: its priority is nobody else's.
        let thread = std::thread::spawn(|| {
            // SAFETY: plain numbers.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) };
            let before = own();
            let Some(hurried) = hurry(0) else {
                println!("skipped: priorities cannot be raised here");
                return;
            };
            assert_eq!(own().policy, libc::SCHED_FIFO as u32);
            hurried.put_back().unwrap();
            assert_eq!(own(), before);
            assert_eq!(before.nice, 5);
        });
        thread.join().unwrap();
    }
}
