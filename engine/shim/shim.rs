//! The object that is preloaded into CRIU, and only into CRIU.
//!
//! 1. With `FERRY_SHIM=pages` in the environment, the `PAGEMAP_SCAN` ioctl on
//!    another task's pagemap finds no pages: CRIU then dumps everything of a task
//!    but its private memory, which ferry carries itself. The scan for guard
//!    regions and scans of CRIU's own pagemap (its self-check) pass through.
//! 2. `prlimit64` of another process, where the kernel refuses it for lack of
//!    CAP_SYS_RESOURCE, is answered from `/proc/PID/limits`, which says the same.
//! 3. With `FERRY_KDAT=PATH`, what CRIU finds out about the kernel is kept in that
//!    file instead of `/run/criu.kdat`. CRIU keeps it on a tmpfs only, so that it
//!    does not outlive the boot, and otherwise finds out anew at each start (30-40
//!    ms, in the middle of a freeze or a restore); PATH is named after the boot.
//!
//! Built without `std` by `build.rs` and embedded in the engine. The
//! interposed `ioctl`, `syscall` and `open64` are variadic in C; on the supported processors a caller
//! passes the first arguments of a variadic function as those of any other.

#![no_std]

use core::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

const PAGEMAP_SCAN: c_ulong = 0xc060_6610;
/// `PAGE_IS_GUARD` of linux/fs.h.
const PAGE_IS_GUARD: u64 = 1 << 8;
/// `__NR_prlimit64`.
#[cfg(target_arch = "x86_64")]
const NR_PRLIMIT64: c_long = 302;
#[cfg(target_arch = "aarch64")]
const NR_PRLIMIT64: c_long = 261;
const EPERM: c_int = 1;
/// Of linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// The longest path for `FERRY_KDAT`, its end and `.tmp` included.
const KDAT_PATH: usize = 512;
const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct rlimit64`.
#[repr(C)]
struct Limit {
    soft: u64,
    hard: u64,
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getenv(name: *const c_char) -> *const c_char;
    fn getpid() -> c_int;
    fn readlink(path: *const c_char, buffer: *mut c_char, size: usize) -> isize;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn read(fd: c_int, buffer: *mut c_void, size: usize) -> isize;
    fn close(fd: c_int) -> c_int;
    fn abort() -> !;
    fn __errno_location() -> *mut c_int;
}

type Ioctl = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;
type Syscall = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// The function of this name that would have been called without us.
fn next(cell: &AtomicUsize, name: &CStr) -> *mut c_void {
    let known = cell.load(Ordering::Relaxed);
    if known != 0 {
        return known as *mut c_void;
    }
    // SAFETY: a valid C string and the pseudo-handle that dlsym documents.
    let found = unsafe { dlsym(RTLD_NEXT, name.as_ptr()) };
    if found.is_null() {
        // SAFETY: ends the process; a libc without it cannot run CRIU either.
        unsafe { abort() }
    }
    cell.store(found as usize, Ordering::Relaxed);
    found
}

/// Stands in for libc's `ioctl`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    if request == PAGEMAP_SCAN && !argument.is_null() && wants_no_pages() && is_of_another_task(fd) {
        // SAFETY: PAGEMAP_SCAN's argument is a `struct pm_scan_arg` by contract.
        let scan = unsafe { &mut *argument.cast::<ScanArg>() };
        // What it selects, not what it wants to be told: where the kernel knows
        // guard regions, CRIU also has them reported by the scan for pages.
        let categories = scan.category_mask | scan.category_anyof_mask;
        if categories & PAGE_IS_GUARD == 0 {
            scan.walk_end = scan.end;
            return 0;
        }
    }
    // SAFETY: the symbol `ioctl` has this signature.
    let real: Ioctl = unsafe { core::mem::transmute(next(&REAL, c"ioctl")) };
    // SAFETY: the caller's own arguments.
    unsafe { real(fd, request, argument) }
}

/// Stands in for libc's `syscall`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: the symbol `syscall` has this signature on the supported processors.
    let real: Syscall = unsafe { core::mem::transmute(next(&REAL, c"syscall")) };
    // SAFETY: the caller's own arguments.
    let result = unsafe { real(number, a, b, c, d, e, f) };
    // SAFETY: errno of this thread.
    let refused = result == -1 && unsafe { *__errno_location() } == EPERM;
    let only_asks = number == NR_PRLIMIT64 && a != 0 && c == 0 && d != 0;
    if refused && only_asks && (0..16).contains(&b) {
        if let Some(limit) = limit_of(a, b as usize) {
            // SAFETY: prlimit64's fourth argument is a `struct rlimit64` to be filled.
            unsafe { *(d as *mut Limit) = limit };
            return 0;
        }
        // SAFETY: errno of this thread, which reading the file may have changed.
        unsafe { *__errno_location() = EPERM };
    }
    result
}

type Open = unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int;
type Rename = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
type Unlink = unsafe extern "C" fn(*const c_char) -> c_int;
type FileSystemOf = unsafe extern "C" fn(c_int, *mut i64) -> c_int;

/// Stands in for libc's `open64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: the symbol `open64` has this signature on the supported processors.
    let real: Open = unsafe { core::mem::transmute(next(&REAL, c"open64")) };
    let mut place = [0; KDAT_PATH];
    // SAFETY: the caller's own arguments, or a terminated path of ours.
    unsafe { real(instead_of(path, &mut place), flags, mode) }
}

/// Stands in for libc's `rename`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(old: *const c_char, new: *const c_char) -> c_int {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: the symbol `rename` has this signature.
    let real: Rename = unsafe { core::mem::transmute(next(&REAL, c"rename")) };
    let (mut old_place, mut new_place) = ([0; KDAT_PATH], [0; KDAT_PATH]);
    // SAFETY: the caller's own arguments, or terminated paths of ours.
    unsafe { real(instead_of(old, &mut old_place), instead_of(new, &mut new_place)) }
}

/// Stands in for libc's `unlink`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: the symbol `unlink` has this signature.
    let real: Unlink = unsafe { core::mem::transmute(next(&REAL, c"unlink")) };
    let mut place = [0; KDAT_PATH];
    // SAFETY: the caller's own argument, or a terminated path of ours.
    unsafe { real(instead_of(path, &mut place)) }
}

/// Stands in for libc's `fstatfs64`: our file for CRIU's findings passes for one
/// on a tmpfs.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatfs64(fd: c_int, answer: *mut i64) -> c_int {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: the symbol `fstatfs64` takes a `struct statfs64`, whose first field
    // is the 64-bit `f_type` on the supported processors.
    let real: FileSystemOf = unsafe { core::mem::transmute(next(&REAL, c"fstatfs64")) };
    // SAFETY: the caller's own arguments.
    let result = unsafe { real(fd, answer) };
    if result == 0 && !answer.is_null() && is_kdat_draft(fd) {
        // SAFETY: the kernel has just filled it.
        unsafe { *answer = TMPFS_MAGIC };
    }
    result
}

/// `FERRY_KDAT` as bytes, where it is set.
fn kdat() -> Option<&'static [u8]> {
    // SAFETY: a valid C string; nobody in CRIU changes this variable.
    let value = unsafe { getenv(c"FERRY_KDAT".as_ptr()) };
    // SAFETY: getenv gives a C string or null, and nobody frees it.
    if value.is_null() { None } else { Some(unsafe { CStr::from_ptr(value) }.to_bytes()) }
}

/// The path to use: ours for the two of CRIU's cache, else the caller's own.
fn instead_of(path: *const c_char, place: &mut [u8; KDAT_PATH]) -> *const c_char {
    if path.is_null() {
        return path;
    }
    // SAFETY: a path that libc was to read as a C string.
    let tail = match unsafe { CStr::from_ptr(path) }.to_bytes() {
        b"/run/criu.kdat" => &b""[..],
        b"/run/criu.kdat.tmp" => b".tmp",
        _ => return path,
    };
    let Some(kdat) = kdat().filter(|kdat| kdat.len() + tail.len() < KDAT_PATH) else { return path };
    for (to, from) in place.iter_mut().zip(kdat.iter().chain(tail).chain(b"\0")) {
        *to = *from;
    }
    place.as_ptr().cast()
}

fn is_kdat_draft(fd: c_int) -> bool {
    let Some(kdat) = kdat() else { return false };
    let mut path = [0u8; 48];
    let Some(_) = compose(&mut path, b"/proc/self/fd/", fd as i64, b"") else { return false };
    let mut target = [0u8; KDAT_PATH];
    // SAFETY: a terminated path and a buffer of the size that is told.
    let len = unsafe { readlink(path.as_ptr().cast(), target.as_mut_ptr().cast(), target.len()) };
    let Ok(len) = usize::try_from(len) else { return false };
    target.get(..len).and_then(|target| target.strip_suffix(b".tmp")) == Some(kdat)
}

fn wants_no_pages() -> bool {
    // SAFETY: a valid C string; the environment is not changed by anybody in CRIU
    // while it dumps.
    let value = unsafe { getenv(c"FERRY_SHIM".as_ptr()) };
    // SAFETY: getenv gives a C string or null.
    !value.is_null() && unsafe { CStr::from_ptr(value) } == c"pages"
}

/// Whether `fd` is `/proc/PID/pagemap` of a process that is not this one.
fn is_of_another_task(fd: c_int) -> bool {
    let mut path = [0u8; 48];
    let Some(_) = compose(&mut path, b"/proc/self/fd/", fd as i64, b"") else { return false };
    let mut target = [0u8; 64];
    // SAFETY: a terminated path and a buffer of the size that is told.
    let len = unsafe { readlink(path.as_ptr().cast(), target.as_mut_ptr().cast(), target.len()) };
    let Ok(len) = usize::try_from(len) else { return false };
    let target = &target[..len.min(target.len())];
    let Some(pid) = target.strip_prefix(b"/proc/").and_then(|rest| rest.strip_suffix(b"/pagemap")) else {
        return false;
    };
    // SAFETY: no arguments.
    let own = unsafe { getpid() };
    number(pid).is_some_and(|pid| pid != own as u64)
}

/// Resource `resource` of a process, from its line in `/proc/PID/limits`.
fn limit_of(pid: c_long, resource: usize) -> Option<Limit> {
    let mut path = [0u8; 48];
    compose(&mut path, b"/proc/", pid, b"/limits")?;
    let mut content = [0u8; 4096];
    // SAFETY: a terminated path; O_RDONLY|O_CLOEXEC.
    let fd = unsafe { open(path.as_ptr().cast(), 0o2000000) };
    if fd < 0 {
        return None;
    }
    // SAFETY: our descriptor and a buffer of the size that is told.
    let len = unsafe { read(fd, content.as_mut_ptr().cast(), content.len()) };
    // SAFETY: our descriptor, not used again.
    unsafe { close(fd) };
    let content = content.get(..usize::try_from(len).ok()?)?;
    // A header, then the resources in the order of their numbers: name in 26
    // columns, soft limit, hard limit, unit.
    let line = content.split(|byte| *byte == b'\n').nth(resource + 1)?;
    let mut words = line.get(26..)?.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    Some(Limit { soft: limit(words.next()?)?, hard: limit(words.next()?)? })
}

fn limit(word: &[u8]) -> Option<u64> {
    if word == b"unlimited" { Some(u64::MAX) } else { number(word) }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 { None } else { value.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

/// `head`, a number and `tail` as a terminated string; `None` when it does not fit.
fn compose(buffer: &mut [u8; 48], head: &[u8], value: i64, tail: &[u8]) -> Option<()> {
    let mut digits = [0u8; 20];
    let mut count = 0;
    let mut rest = u64::try_from(value).ok()?;
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let mut at = 0;
    let parts = head.iter().chain(digits[..count].iter().rev()).chain(tail).chain(b"\0");
    for byte in parts {
        *buffer.get_mut(at)? = *byte;
        at += 1;
    }
    Some(())
}

/// Named by the unwind tables of the precompiled `core`; never called, since
/// nothing unwinds.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends the process; nothing here panics on any input.
    unsafe { abort() }
}
