//! Which protocol a socket of another process speaks.

use std::ffi::CString;
use std::io;

/// The protocol's name of the socket behind `/proc/PID/fd/FD` (`TCP`, `UNIX`,
/// `NETLINK`, `SCTP`, …), as sockfs tells in the attribute
/// `system.sockprotoname`. Nothing is opened.
pub fn protocol(pid: i32, fd: i32) -> io::Result<String> {
    let path = CString::new(format!("/proc/{pid}/fd/{fd}"))?;
    let mut name = [0u8; 64];
    // SAFETY: both strings end with a zero, `name` is writable for the length
    // that is passed, and all of them live across the call.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let name = name[..length.min(name.len())].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}
