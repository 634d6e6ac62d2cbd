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
use ferry_transport::page::{PageAddr, PageRange};
use ferry_transport::units::PageCount;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MAGIC: u64 = u64::from_le_bytes(*b"ferrypl1");

/// The most bytes of a plan: bounds what the pager reads.
const MAX_PLAN: u64 = 4 << 30;

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
        let mut words = vec![MAGIC, assembly.arena_len, options.pause.as_micros() as u64];
        words.push(assembly.lazy.len() as u64);
        for space in &assembly.lazy {
            words.extend([u64::from(space.pid), space.extents.len() as u64, space.hot.len() as u64]);
            for extent in &space.extents {
                let Content::Arena(offset) = extent.content else {
                    return Err(io::Error::other("a plan lists pages with content only"));
                };
                words.extend([extent.pages.start.address(), extent.pages.count.0, offset]);
            }
            for range in &space.hot {
                words.extend([range.start.address(), range.count.0]);
            }
        }
        let mut bytes = Vec::with_capacity(words.len() * 8);
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        let mut file = arena::memory_file(c"ferry-plan", 0)?;
        file.write_all(&bytes)?;
        Ok(file)
    }

    /// Reads it back.
    pub(super) fn read(file: &File) -> io::Result<Plan> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed plan");
        let len = file.metadata()?.len();
        if len > MAX_PLAN {
            return Err(malformed());
        }
        // By position: the file's own is shared with whoever reads it after us.
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let mut words = bytes.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let mut next = || words.next().ok_or_else(malformed);
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
                let pages = range(next()?, next()?);
                let content = Content::Arena(next()?);
                space.extents.push(Extent { pages, content });
            }
            for _ in 0..hots {
                space.hot.push(range(next()?, next()?));
            }
            spaces.push(space);
        }
        Ok(Plan { arena_len, options, spaces })
    }
}

fn range(address: u64, pages: u64) -> PageRange {
    PageRange { start: PageAddr::containing(address), count: PageCount(pages) }
}
