//! The plan: which pages the pager brings, from where, in what order. It passes
//! from the engine to the pager, the same program, in a memory file.
//!
//! ```text
//! all u64, little-endian
//! magic  arena_len  delay_us  spaces
//! per space: pid  extents  hots   then extents x (address, pages, offset), hots x (address, pages)
//! ```

use crate::images::{Assembly, LazySpace};
use crate::page_store::{Content, Extent};
use crate::sys::arena;
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageRange};
use ferry_transport::units::PageCount;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MAGIC: u64 = u64::from_le_bytes(*b"ferrypl1");

/// How much of a plan is read at once.
const BLOCK: usize = 1 << 16;

/// How the background fill behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct FillOptions {
    /// A pause after each batch of pages, per thread: zero except where a slow
    /// fill is wanted, to spare the workload or to test.
    pub pause: Duration,
}

/// What the pager is to do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) arena_len: u64,
    pub(super) options: FillOptions,
    pub(super) spaces: Vec<LazySpace>,
}

impl Plan {
    /// Writes the plan of an assembly into a memory file.
    pub(super) fn write(assembly: &Assembly, options: FillOptions) -> io::Result<File> {
        // Written as it is made: a plan in memory twice would be felt.
        let mut file = BufWriter::new(arena::memory_file(c"ferry-plan", 0)?);
        let mut write = |words: &[u64]| words.iter().try_for_each(|word| file.write_all(&word.to_le_bytes()));
        write(&[MAGIC, assembly.arena_len, options.pause.as_micros() as u64, assembly.lazy.len() as u64])?;
        for space in &assembly.lazy {
            write(&[u64::from(space.pid), space.extents.len() as u64, space.hot.len() as u64])?;
            for extent in &space.extents {
                let Content::Arena(offset) = extent.content else {
                    return Err(io::Error::other("a plan lists pages with content only"));
                };
                write(&[extent.pages.start.address(), extent.pages.count.0, offset])?;
            }
            for range in &space.hot {
                write(&[range.start.address(), range.count.0])?;
            }
        }
        Ok(file.into_inner()?)
    }

    /// Reads it back.
    pub(super) fn read(file: &File) -> io::Result<Plan> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed plan");
        // By position: the file's own is shared with whoever reads it after us.
        let mut at = 0;
        let (mut block, mut words) = (vec![0; BLOCK], 0..0);
        let mut next = || {
            if words.is_empty() {
                words = 0..read_at_most(file, &mut block, at)? / 8;
                at += words.len() as u64 * 8;
            }
            let word = words.next().ok_or_else(malformed)?;
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&block[word * 8..word * 8 + 8]);
            Ok::<u64, io::Error>(u64::from_le_bytes(bytes))
        };
        if next()? != MAGIC {
            return Err(malformed());
        }
        let arena_len = next()?;
        let options = FillOptions { pause: Duration::from_micros(next()?) };
        let mut spaces = Vec::new();
        for _ in 0..next()? {
            let pid = u32::try_from(next()?).map_err(|_| malformed())?;
            let (extents, hots) = (next()?, next()?);
            let mut space = LazySpace { pid, extents: Vec::new(), hot: Vec::new() };
            for _ in 0..extents {
                let pages = range(next()?, next()?).ok_or_else(malformed)?;
                let content = Content::Arena(next()?);
                space.extents.push(Extent { pages, content });
            }
            for _ in 0..hots {
                space.hot.push(range(next()?, next()?).ok_or_else(malformed)?);
            }
            spaces.push(space);
        }
        Ok(Plan { arena_len, options, spaces })
    }
}

fn read_at_most(file: &File, block: &mut [u8], at: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < block.len() {
        match file.read_at(&mut block[len..], at + len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// `None` where no address space goes so far.
fn range(address: u64, pages: u64) -> Option<PageRange> {
    let start = PageAddr::containing(address);
    pages.checked_mul(PAGE_SIZE as u64)?.checked_add(start.address())?;
    Some(PageRange { start, count: PageCount(pages) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn assembly(extents: u64) -> Assembly {
        let extent = |n| Extent {
            pages: range(0x10_0000 + n * 0x2000, 1).unwrap(),
            content: Content::Arena(n * 4096),
        };
        let lazy = LazySpace {
            pid: 7,
            extents: (0..extents).map(extent).collect(),
            hot: vec![range(0x10_0000, 3).unwrap()],
        };
        Assembly {
            arena: Arc::new(arena::memory_file(c"test", 0).unwrap()),
            arena_len: extents * 4096,
            lazy: vec![lazy.clone(), LazySpace { pid: 8, ..lazy }],
            lazy_pages: PageCount(extents),
            eager_pages: PageCount(0),
            ignored_pages: PageCount(0),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        // Of several blocks, with words on both sides of their borders.
        let (assembly, pause) = (assembly(10_000), Duration::from_micros(5));
        let file = Plan::write(&assembly, FillOptions { pause }).unwrap();
        for _ in 0..2 {
            let plan = Plan::read(&file).unwrap();
            assert_eq!((plan.arena_len, plan.options.pause), (assembly.arena_len, pause));
            assert_eq!(plan.spaces.len(), 2);
            for (space, wrote) in plan.spaces.iter().zip(&assembly.lazy) {
                assert_eq!((space.pid, &space.extents, &space.hot), (wrote.pid, &wrote.extents, &wrote.hot));
            }
        }
    }

    #[test]
    fn a_plan_that_ends_early_is_refused() {
        let file = Plan::write(&assembly(10), FillOptions::default()).unwrap();
        let len = file.metadata().unwrap().len();
        for len in [0, 8, 20, len / 2, len - 1] {
            file.set_len(len).unwrap();
            assert_eq!(Plan::read(&file).unwrap_err().kind(), io::ErrorKind::InvalidData, "{len}");
        }
    }

    #[test]
    fn pages_beyond_every_address_space_are_refused() {
        assert!(range(0x1000, 1 << 52).is_none());
        assert!(range(u64::MAX, 1).is_none());
        assert!(range(0x1000, (1 << 52) - 2).is_some());
    }
}
