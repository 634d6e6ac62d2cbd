//! Whether a dump really left the pages to ferry.

use crate::images::file::{FormatError, Kind, Messages};
use crate::images::proto::{PagemapEntry, PagemapHead};
use crate::images::tree;
use crate::images::vma::Treatment;
use std::path::Path;

/// Sees that the preloaded object did its work: pages that CRIU dumped would be
/// merged with ours. CRIU's own remain (vDSO, AIO rings), and none of them is in
/// a mapping that could be filled lazily; shared memory has files of its own.
///
/// # Errors
/// The first process with pages in the images, or the image that cannot be read.
pub(super) fn verify_left_out(images: &Path) -> Result<(), String> {
    for process in tree::processes(images).map_err(|error| error.to_string())? {
        let name = format!("pagemap-{}.img", process.pid);
        let bytes = tree::read(images, &name).map_err(|error| error.to_string())?;
        let entries = entries(&bytes).map_err(|error| format!("{name}: {error}"))?;
        let mappings = || process.vmas.iter().filter(|vma| vma.treatment() == Treatment::Lazy);
        let dumped = entries.iter().find(|entry| {
            mappings().any(|vma| (vma.start..vma.end).contains(&entry.vaddr) && entry.pages() > 0)
        });
        if let Some(entry) = dumped {
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

fn entries(bytes: &[u8]) -> Result<Vec<PagemapEntry>, FormatError> {
    let mut messages = Messages::of(bytes, Kind::Pagemap)?;
    messages.next_message::<PagemapHead>()?;
    messages.rest()
}
