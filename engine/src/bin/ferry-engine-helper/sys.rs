//! The unsafe half of the workloads: memory that is mapped, moved and dropped
//! under the feet of whoever follows it.

use std::io;
use std::os::fd::AsRawFd;

const PAGE: usize = 4096;
/// Linux 6.11; a type of mapping like MAP_PRIVATE.
const MAP_DROPPABLE: libc::c_int = 0x08;

/// How memory is made.
pub enum Kind {
    /// Ordinary.
    Anonymous,
    /// Without backing, not accessible: a reservation.
    Reserved,
    /// With transparent huge pages.
    Huge,
    /// Of the reserved huge pages.
    HugeTlb,
    /// That the kernel may drop, and cannot follow.
    Droppable,
    /// A private mapping of a file.
    File(std::fs::File),
}

/// Mapped memory, by its address; moving it changes that.
pub struct Area {
    pub address: usize,
    pub pages: usize,
}

fn checked(address: *mut libc::c_void) -> io::Result<usize> {
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address as usize) }
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Maps `pages`, at `at` (over whatever is there) or anywhere.
pub fn map(kind: &Kind, pages: usize, at: Option<usize>) -> io::Result<Area> {
    let read_write = libc::PROT_READ | libc::PROT_WRITE;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let (protection, flags, fd) = match kind {
        Kind::Anonymous | Kind::Huge => (read_write, anonymous, -1),
        Kind::Reserved => (libc::PROT_NONE, anonymous | libc::MAP_NORESERVE, -1),
        Kind::HugeTlb => (read_write, anonymous | libc::MAP_HUGETLB, -1),
        Kind::File(file) => (read_write, libc::MAP_PRIVATE, file.as_raw_fd()),
        Kind::Droppable => (read_write, libc::MAP_ANONYMOUS | MAP_DROPPABLE, -1),
    };
    let flags = flags | if at.is_some() { libc::MAP_FIXED } else { 0 };
    let hint = at.unwrap_or(0) as *mut libc::c_void;
    // SAFETY: where MAP_FIXED replaces something, it is an area of this workload
    // that its command names, used through addresses only.
    let address = checked(unsafe { libc::mmap(hint, pages * PAGE, protection, flags, fd, 0) })?;
    if matches!(kind, Kind::Huge) {
        // SAFETY: advice for memory just mapped.
        check(unsafe { libc::madvise(address as *mut _, pages * PAGE, libc::MADV_HUGEPAGE) })?;
    }
    Ok(Area { address, pages })
}

impl Area {
    /// Unmaps it.
    pub fn unmap(&self) -> io::Result<()> {
        // SAFETY: the area is this workload's, used through addresses only.
        check(unsafe { libc::munmap(self.address as *mut _, self.pages * PAGE) })
    }

    /// Grows it to `pages`, moving it if it must.
    pub fn grow(&mut self, pages: usize) -> io::Result<()> {
        // SAFETY: as in `unmap`.
        let moved = unsafe {
            libc::mremap(self.address as *mut _, self.pages * PAGE, pages * PAGE, libc::MREMAP_MAYMOVE)
        };
        *self = Area { address: checked(moved)?, pages };
        Ok(())
    }

    /// Moves it to `address`, over whatever is there.
    pub fn move_to(&mut self, address: usize) -> io::Result<()> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let length = self.pages * PAGE;
        // SAFETY: as in `unmap`.
        let moved = unsafe { libc::mremap(self.address as *mut _, length, length, flags, address) };
        self.address = checked(moved)?;
        Ok(())
    }

    /// `madvise` for some pages.
    pub fn advise(&self, page: usize, pages: usize, advice: i32) -> io::Result<()> {
        // SAFETY: as in `unmap`.
        check(unsafe { libc::madvise((self.address + page * PAGE) as *mut _, pages * PAGE, advice) })
    }

    /// Sets the access to some pages.
    pub fn protect(&self, page: usize, pages: usize, protection: i32) -> io::Result<()> {
        // SAFETY: as in `unmap`.
        check(unsafe { libc::mprotect((self.address + page * PAGE) as *mut _, pages * PAGE, protection) })
    }

    /// The words of one page, which must be accessible.
    pub fn page(&mut self, page: usize) -> &mut [u64] {
        assert!(page < self.pages);
        // SAFETY: inside the area, aligned, writable as the command's author
        // promises, and borrowed for as long as the area is.
        unsafe { std::slice::from_raw_parts_mut((self.address + page * PAGE) as *mut u64, PAGE / 8) }
    }
}

/// Has the kernel kill this process when the thread that started it ends; ends at
/// once if `parent`, where it is known, has ended by now.
pub fn end_with_parent(parent: Option<u32>) {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if parent.is_some_and(|parent| parent != std::os::unix::process::parent_id()) {
        std::process::exit(0);
    }
}

/// Forks; what the parent learns is the child's number, what the child, `None`.
pub fn fork() -> io::Result<Option<i32>> {
    let parent = std::process::id();
    // SAFETY: the workload forks only while it has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            end_with_parent(Some(parent));
            Ok(None)
        }
        child => Ok(Some(child)),
    }
}

/// Makes a userfaultfd of this process's own and keeps it: nobody else can follow it.
pub fn own_userfaultfd() -> io::Result<()> {
    // SAFETY: plain numbers; the descriptor stays open.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
    check(made as libc::c_int)
}

/// Forbids every system call that a simple workload does not need, on pain of death.
pub fn confine() -> io::Result<()> {
    const ALLOWED: [i64; 12] = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_brk,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_futex,
    ];
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for number in ALLOWED {
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32, 1));
        program.push(step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS, 0));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: plain numbers, and a filter that outlives the call.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter))
    }
}

/// Becomes `nobody`.
pub fn become_nobody() -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setgid(65534))?;
        check(libc::setuid(65534))
    }
}

/// Sleeps once, for `milliseconds`, in the named call; what it returned, negative
/// if it failed.
pub fn sleep_once(call: &str, milliseconds: i32, pipe: &impl AsRawFd) -> i64 {
    let time = libc::timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
    let failed = |status: i64| {
        if status < 0 { -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { status }
    };
    let mut byte = 0u8;
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let futex = 0u32;
    // SAFETY: every pointer is to a local that outlives its call.
    failed(unsafe {
        match call {
            "nanosleep" => i64::from(libc::nanosleep(&raw const time, std::ptr::null_mut())),
            "poll" => i64::from(libc::poll(&raw mut poll, 1, milliseconds)),
            "ppoll" => i64::from(libc::ppoll(&raw mut poll, 1, &raw const time, std::ptr::null())),
            "futex" => libc::syscall(libc::SYS_futex, &raw const futex, libc::FUTEX_WAIT, 0, &raw const time),
            "read" => libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) as i64,
            _ => panic!("no such call: {call}"),
        }
    })
}

/// The first bytes of words.
pub fn bytes_of(words: &mut [u64], bytes: usize) -> &mut [u8] {
    assert!(bytes <= size_of_val(words));
    // SAFETY: inside the slice, and any byte is a part of a word.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes) }
}
