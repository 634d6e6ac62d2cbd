//! A memory file of slots into which the kernel itself writes what it is asked for.
//!
//! `read` and `recvmsg` take something away from where it was and put it into this
//! process's memory. Were that memory private, a process killed right after the call
//! would have lost it. Here it lands in memory that outlives the process: a call
//! that has begun to take is finished by the kernel even when the process has been
//! killed meanwhile, so that at each instant the thing is either still there or here.

use super::twin::Number;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the head, before the first slot.
const HEAD: usize = 4096;
/// Words of a head that can be used.
pub const HEAD_WORDS: usize = 16;

/// One thing that landed, or place for it.
#[repr(C, align(64))]
#[derive(Debug)]
struct Slot {
    kind: AtomicU64,
    whose: AtomicU64,
    payload: [AtomicU64; 6],
}

const SLOT: usize = std::mem::size_of::<Slot>();
const _: () = assert!(SLOT == 64);

/// The file, mapped. Everything in it is atomic words.
#[derive(Debug)]
pub struct Landing {
    map: MmapRaw,
    slots: usize,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landed {
    /// What the user of the slot said it is for.
    pub kind: u64,
    /// What the user of the slot said whose it is.
    pub whose: u64,
    /// What the kernel wrote; all zero until it did.
    pub payload: [u64; 6],
}

impl Landing {
    /// How large a file of `slots` is; sparse, so that unused ones cost nothing.
    pub fn size(slots: usize) -> u64 {
        (HEAD + slots * SLOT) as u64
    }

    /// Maps a file of [`Landing::size`]`(slots)` bytes.
    pub fn map(file: &File, slots: usize) -> io::Result<Landing> {
        let len = HEAD + slots * SLOT;
        if file.metadata()?.len() < len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let map = MmapOptions::new().len(len).no_reserve_swap().map_raw(file)?;
        // A page that has been touched then stays: the kernel's write into it cannot
        // fail, as it could for a killed process if the page had to be brought back.
        // Best effort: without it that takes memory pressure in the same microsecond.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::syscall(libc::SYS_mlock2, map.as_ptr(), len, libc::MLOCK_ONFAULT) };
        Ok(Landing { map, slots })
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// A word of the head, zero at first.
    ///
    /// # Panics
    /// From [`HEAD_WORDS`] on.
    pub fn head(&self, word: usize) -> &AtomicU64 {
        assert!(word < HEAD_WORDS);
        // SAFETY: inside the head; aligned, initialised (a file's bytes), atomic.
        unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(word) }
    }

    fn slot(&self, index: usize) -> &Slot {
        assert!(index < self.slots);
        // SAFETY: inside the mapping, whose base is page-aligned; all words are
        // initialised (a file's bytes) and only ever accessed as atomics or by the kernel.
        unsafe { &*self.map.as_ptr().add(HEAD + index * SLOT).cast::<Slot>() }
    }

    /// What is in a slot.
    pub fn get(&self, index: usize) -> Landed {
        let slot = self.slot(index);
        Landed {
            kind: slot.kind.load(Ordering::Acquire),
            whose: slot.whose.load(Ordering::Acquire),
            payload: std::array::from_fn(|word| slot.payload[word].load(Ordering::Acquire)),
        }
    }

    /// Makes a slot ready. At no instant does the old content stand under the new name.
    fn clear(&self, index: usize, kind: u64, whose: u64) -> &Slot {
        let slot = self.slot(index);
        slot.payload.iter().for_each(|word| word.store(0, Ordering::Release));
        slot.whose.store(whose, Ordering::Release);
        slot.kind.store(kind, Ordering::Release);
        slot
    }

    /// `read`s up to `len` bytes (at most 48) into a slot: how many came.
    pub fn read(
        &self,
        index: usize,
        (kind, whose): (u64, u64),
        from: BorrowedFd<'_>,
        len: usize,
    ) -> io::Result<usize> {
        let slot = self.clear(index, kind, whose);
        let len = len.min(std::mem::size_of_val(&slot.payload));
        // SAFETY: the payload is at least `len` bytes of memory that this process
        // shares with the kernel and reads as atomics only.
        let got = unsafe { libc::read(from.as_raw_fd(), slot.payload.as_ptr() as *mut _, len) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// Receives one byte and one descriptor into a slot: `None` when the message
    /// brought no descriptor.
    pub fn receive(
        &self,
        index: usize,
        (kind, whose): (u64, u64),
        from: BorrowedFd<'_>,
    ) -> io::Result<Option<Number>> {
        let slot = self.clear(index, kind, whose);
        // SAFETY: CMSG_LEN only computes.
        let room = unsafe { libc::CMSG_LEN(4) } as usize;
        let mut byte = 0u8;
        let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // SAFETY: msghdr is a C struct of integers and pointers, for which all zeroes is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = slot.payload.as_ptr() as *mut _;
        message.msg_controllen = room as _;
        // SAFETY: all pointers in `message` are valid for the call; the control
        // buffer is `room` (20) of the payload's 48 bytes, aligned for a cmsghdr.
        let got = unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.get(index).descriptor())
    }
}

impl Landed {
    /// Whether the kernel has written here.
    pub fn has_landed(&self) -> bool {
        self.payload.iter().any(|word| *word != 0)
    }

    /// The payload's bytes.
    pub fn bytes(&self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes
            .chunks_exact_mut(8)
            .zip(self.payload)
            .for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        bytes
    }

    /// The descriptor that a [`Landing::receive`] brought: a control message's
    /// length, level and type, and the number.
    pub fn descriptor(&self) -> Option<Number> {
        let bytes = self.bytes();
        let word = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let rights = word(8) == libc::SOL_SOCKET && word(12) == libc::SCM_RIGHTS;
        (self.payload[0] != 0 && rights).then(|| Number(word(16)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{arena, fdpass};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_landed_is_in_the_file() {
        let file = arena::memory_file(c"landing", Landing::size(4)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(&7i32.to_ne_bytes()).unwrap();
        let pipe = UnixStream::pair().unwrap();
        fdpass::send(theirs.as_fd(), &[0], &[pipe.0.as_fd()]).unwrap();
        (&theirs).write_all(&[0]).unwrap();
        {
            let landing = Landing::map(&file, 4).unwrap();
            assert!(!landing.get(0).has_landed());
            assert_eq!(landing.read(0, (1, 0), ours.as_fd(), 4).unwrap(), 4);
            assert!(landing.receive(1, (2, 5), ours.as_fd()).unwrap().is_some());
            assert_eq!(landing.receive(2, (2, 5), ours.as_fd()).unwrap(), None, "a byte alone");
        }
        let landing = Landing::map(&file, 4).unwrap();
        assert_eq!(landing.get(0).bytes()[..4], 7i32.to_ne_bytes());
        let landed = landing.get(1);
        assert_eq!((landed.kind, landed.whose), (2, 5));
        let number = landed.descriptor().unwrap();
        assert!(number.adopt("anon_inode:").is_none(), "it is a socket");
        assert!(number.adopt("socket:").is_some());
        assert!(number.adopt("socket:").is_none(), "closed by now");
        assert!(!landing.get(2).has_landed());
    }
}
