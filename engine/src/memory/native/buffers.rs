//! Chunk-sized buffers that come back when the last user of their bytes is done.

use bytes::Bytes;
use ferry_transport::page::{MAX_CHUNK_PAGES, PAGE_SIZE};
use std::sync::{Arc, Mutex, PoisonError};

/// The size of one: a chunk's worth.
pub const BUFFER: usize = MAX_CHUNK_PAGES * PAGE_SIZE;

/// Buffers kept for reuse; more than the page streams hold at a time would only
/// lie about.
const MAX_FREE: usize = 32;

/// Below this, content is copied out, so that a nearly empty buffer is not held
/// for as long as a chunk is under way.
const WORTH_KEEPING: usize = BUFFER / 8;

/// Where buffers come from and go to. Fresh memory costs a page fault per page,
/// about as much as reading a page of another process.
#[derive(Clone, Default)]
pub struct BufferPool {
    free: Arc<Mutex<Vec<Box<[u8]>>>>,
}

impl BufferPool {
    /// A buffer with anything in it.
    pub fn take(&self) -> Buffer {
        let reused = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = reused.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
        Buffer { bytes, filled: 0, pool: self.clone() }
    }

    fn give_back(&self, bytes: Box<[u8]>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < MAX_FREE {
            free.push(bytes);
        }
    }
}

/// One buffer.
pub struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
    pool: BufferPool,
}

impl Buffer {
    /// How many bytes at the beginning are content to be kept.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// All of it, to be written to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Moves the page at `offset`, which is not before the end of what is kept,
    /// to that end, and keeps it.
    pub fn keep_page(&mut self, offset: usize) {
        if offset != self.filled {
            self.bytes.copy_within(offset..offset + PAGE_SIZE, self.filled);
        }
        self.filled += PAGE_SIZE;
    }

    /// What is kept, as bytes that can be shared.
    pub fn freeze(self) -> Bytes {
        match self.filled {
            0 => Bytes::new(),
            small if small < WORTH_KEEPING => Bytes::copy_from_slice(&self.bytes[..small]),
            _ => Bytes::from_owner(self),
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_bytes_are_gone() {
        let pool = BufferPool::default();
        let mut buffer = pool.take();
        for page in 0..MAX_CHUNK_PAGES {
            buffer.keep_page(page * PAGE_SIZE);
        }
        let bytes = buffer.freeze();
        let part = bytes.slice(..10);
        drop(bytes);
        assert_eq!(pool.free.lock().unwrap().len(), 0);
        drop(part);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
    }

    #[test]
    fn pages_move_down() {
        let mut buffer = BufferPool::default().take();
        buffer.bytes_mut()[3 * PAGE_SIZE] = 7;
        buffer.keep_page(3 * PAGE_SIZE);
        assert_eq!((buffer.filled(), buffer.as_ref()[0]), (PAGE_SIZE, 7));
        assert_eq!(buffer.freeze()[0], 7);
    }
}
