//! Whether a dump really left the pages to ferry, and how it is made to.
//!
//! Left to ferry is everything that CRIU does not dump whole in any case (vDSO, AIO
//! rings; shared memory has files of its own). Pages that CRIU dumped beside these
//! would be there twice once ferry's are merged in. With the preloaded object there
//! are none. Without it CRIU is asked for a lazy dump, which writes only the pages
//! that it would not restore lazily, and those are taken out of the images again.

use crate::criu::proto::Options;
use crate::criu::rpc::LAZY_SOCKET;
use crate::images::file::{self, Kind, Messages};
use crate::images::proto::{PE_PARENT, PE_PRESENT, PagemapEntry, PagemapHead};
use crate::images::tree::{self, Process};
use ferry_transport::page::PAGE_SIZE;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: u64 = PAGE_SIZE as u64;
/// The most pages of one process that CRIU may dump whole: its vDSO, and AIO rings
/// of 65536 events each at the usual limit.
const MAX_WHOLE: u64 = 1 << 16;

/// Sees that the preloaded object did its work.
///
/// # Errors
/// The first process with pages in the images, or the image that cannot be read.
pub(super) fn verify_left_out(images: &Path) -> Result<(), String> {
    for process in tree::processes(images).map_err(|error| error.to_string())? {
        if let Some(entry) = Survey::of(images, &process)?.others {
            return Err(format!(
                "CRIU dumped {} pages at {:#x} of process {} although it was told to leave them",
                entry.pages(),
                entry.vaddr,
                process.pid
            ));
        }
    }
    Ok(())
}

/// Turns a dump into a lazy one, whose pages nobody will fetch from CRIU. What its
/// RPC cannot say it reads from a configuration file beside the images.
pub(super) fn ask_for_lazy_dump(options: &mut Options, images: &Path) -> io::Result<()> {
    let file = images.join("lazy.conf");
    std::fs::write(&file, format!("ps-socket {LAZY_SOCKET}\n"))?;
    options.lazy_pages = Some(true);
    options.config_file = Some(file.display().to_string());
    Ok(())
}

/// Takes all pages out of the images but those that CRIU dumps whole: afterwards
/// they are what they are with the preloaded object.
///
/// # Errors
/// The image that cannot be read or written; the images are of no use then.
pub(super) fn leave_out(images: &Path) -> Result<(), String> {
    for process in tree::processes(images).map_err(|error| error.to_string())? {
        let survey = Survey::of(images, &process)?;
        survey.rewrite(images).map_err(|error| format!("{}: {error}", survey.name))?;
    }
    Ok(())
}

/// Pages of a mapping that CRIU dumps whole, and where they are in the pages file.
struct Kept {
    start: u64,
    pages: u64,
    offset: u64,
}

/// What the pagemap of one process holds.
struct Survey {
    name: String,
    head: PagemapHead,
    kept: Vec<Kept>,
    /// The first entry about pages that CRIU should leave to ferry.
    others: Option<PagemapEntry>,
}

impl Survey {
    fn of(images: &Path, process: &Process) -> Result<Survey, String> {
        let name = format!("pagemap-{}.img", process.pid);
        let bytes = tree::read(images, &name).map_err(|error| error.to_string())?;
        let in_file = |error: file::FormatError| format!("{name}: {error}");
        let mut messages = Messages::of(&bytes, Kind::Pagemap).map_err(in_file)?;
        let head = messages.next_message().map_err(in_file)?.ok_or(format!("{name} is empty"))?;
        let whole: Vec<_> = process.vmas.iter().filter(|vma| vma.is_dumped_whole()).collect();
        let (mut kept, mut kept_pages, mut others, mut offset) = (Vec::new(), 0, None, 0u64);
        // One at a time: a lazy dump of fragmented memory has millions.
        while let Some(entry) = messages.next_message::<PagemapEntry>().map_err(in_file)? {
            let absurd = || format!("{name}: absurd entry at {:#x}", entry.vaddr);
            let length = entry.pages().checked_mul(PAGE).ok_or_else(absurd)?;
            let end = entry.vaddr.checked_add(length).ok_or_else(absurd)?;
            if entry.effective_flags() & PE_PARENT != 0 || !entry.vaddr.is_multiple_of(PAGE) {
                return Err(absurd());
            }
            let present = entry.effective_flags() & PE_PRESENT != 0;
            let mut inside = 0;
            // An entry may go on into the mapping behind it.
            for vma in &whole {
                let (from, to) = (vma.start.max(entry.vaddr), vma.end.min(end));
                if from < to && present {
                    let pages = (to - from) / PAGE;
                    inside += pages;
                    kept.push(Kept { start: from, pages, offset: offset + (from - entry.vaddr) });
                }
            }
            kept_pages += inside;
            if kept_pages > MAX_WHOLE {
                return Err(absurd());
            }
            if present {
                offset = offset.checked_add(length).ok_or_else(absurd)?;
            }
            if inside < entry.pages() {
                others.get_or_insert(entry);
            }
        }
        Ok(Survey { name, head, kept, others })
    }

    /// Writes the pagemap and its pages file anew, with what is kept alone.
    fn rewrite(&self, images: &Path) -> io::Result<()> {
        let pages = images.join(format!("pages-{}.img", self.head.pages_id));
        let (old, draft) = (File::open(&pages)?, tempfile::NamedTempFile::new_in(images)?);
        let mut map = file::begin(Kind::Pagemap);
        file::append(&mut map, &self.head);
        let mut page = [0; PAGE_SIZE];
        let mut written = 0;
        for kept in &self.kept {
            let entry = PagemapEntry {
                vaddr: kept.start,
                compat_nr_pages: 0,
                in_parent: None,
                flags: Some(PE_PRESENT),
                nr_pages: Some(kept.pages),
            };
            file::append(&mut map, &entry);
            for number in 0..kept.pages {
                old.read_exact_at(&mut page, kept.offset + number * PAGE)?;
                draft.as_file().write_all_at(&page, written)?;
                written += PAGE;
            }
        }
        draft.persist(pages)?;
        std::fs::write(images.join(&self.name), map)
    }
}
