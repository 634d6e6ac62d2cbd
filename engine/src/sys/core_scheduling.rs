//! Core scheduling: which tasks may share a core with one another.

use std::io;

/// The cookie of a process's first thread; 0 for none. Changes nothing.
pub fn cookie(pid: i32) -> io::Result<u64> {
    let mut cookie = 0u64;
    // SAFETY: PR_SCHED_CORE_GET writes one u64 through the last argument, which
    // lives across the call, and nothing else.
    let status = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_GET as libc::c_ulong,
            pid as libc::c_ulong,
            libc::PR_SCHED_CORE_SCOPE_THREAD as libc::c_ulong,
            &raw mut cookie,
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
