//! What an image directory says about the processes in it: which there are, how
//! their address spaces are laid out, where their threads' stacks are.

use super::file::{self, FormatError, Kind, MAX_IMAGE, Messages};
use super::proto::{CoreEntry, InventoryEntry, MmEntry, PstreeEntry, TASK_DEAD, VmaEntry};
use ferry_transport::page::PageAddr;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Why an image directory could not be read or completed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {cause}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: FormatError,
    },
    /// Images and pages contradict each other.
    #[error("PID {pid}: {what}")]
    Mismatch {
        /// Which process, as the images name it.
        pid: u32,
        /// In what way.
        what: String,
    },
}

impl ImageError {
    pub(super) fn mismatch(pid: u32, what: impl Into<String>) -> ImageError {
        ImageError::Mismatch { pid, what: what.into() }
    }
}

/// A process with memory.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its PID, as the images name it.
    pub pid: u32,
    /// Its mappings, ascending and disjoint, without guard ranges.
    pub vmas: Vec<VmaEntry>,
    /// The pages that its threads' stack pointers point into.
    pub stack_pages: BTreeSet<PageAddr>,
}

/// Reads the whole file `name` in `directory`, up to [`MAX_IMAGE`].
pub fn read(directory: &Path, name: &str) -> Result<Vec<u8>, ImageError> {
    let path = directory.join(name);
    let failed = |cause| ImageError::File { path: path.clone(), cause };
    let file = std::fs::File::open(&path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_IMAGE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_IMAGE {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// The processes of the tree that have memory, the root first; zombies have none.
pub fn processes(directory: &Path) -> Result<Vec<Process>, ImageError> {
    let inventory: InventoryEntry = single(directory, "inventory.img", Kind::Inventory)?;
    if !(1..=2).contains(&inventory.img_version) {
        return Err(ImageError::mismatch(0, format!("images of unknown version {}", inventory.img_version)));
    }
    let bytes = read(directory, "pstree.img")?;
    let entries: Vec<PstreeEntry> = Messages::of(&bytes, Kind::Pstree)
        .and_then(Messages::rest)
        .map_err(in_file(directory, "pstree.img"))?;
    let mut processes = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Some(process) = process(directory, &entry)? {
            processes.push(process);
        }
    }
    Ok(processes)
}

fn process(directory: &Path, entry: &PstreeEntry) -> Result<Option<Process>, ImageError> {
    let pid = entry.pid;
    let leader: CoreEntry = single(directory, &format!("core-{pid}.img"), Kind::Core)?;
    if leader.task.as_ref().is_some_and(|task| task.task_state == TASK_DEAD) {
        return Ok(None);
    }
    if entry.threads.len() > file::MAX_MESSAGES {
        return Err(ImageError::mismatch(pid, format!("{} threads", entry.threads.len())));
    }
    let mut stack_pages = BTreeSet::new();
    for thread in entry.threads.iter().copied().chain([pid]).collect::<BTreeSet<_>>() {
        let core: CoreEntry = single(directory, &format!("core-{thread}.img"), Kind::Core)?;
        let pointer = core.stack_pointer();
        let pointer = pointer.ok_or_else(|| {
            ImageError::mismatch(pid, format!("thread {thread} of an unknown architecture ({})", core.mtype))
        })?;
        stack_pages.insert(PageAddr::containing(pointer));
    }
    let mm: MmEntry = single(directory, &format!("mm-{pid}.img"), Kind::Mm)?;
    let vmas: Vec<VmaEntry> = mm.vmas.into_iter().filter(|vma| !vma.is_guard()).collect();
    let mut free = 0;
    for vma in &vmas {
        if vma.start < free || vma.end <= vma.start {
            return Err(ImageError::mismatch(pid, format!("mapping {:#x} is out of order", vma.start)));
        }
        free = vma.end;
    }
    Ok(Some(Process { pid, vmas, stack_pages }))
}

fn single<M: prost::Message + Default>(directory: &Path, name: &str, kind: Kind) -> Result<M, ImageError> {
    file::single(&read(directory, name)?, kind).map_err(in_file(directory, name))
}

pub(super) fn in_file<'a>(directory: &'a Path, name: &'a str) -> impl Fn(FormatError) -> ImageError + 'a {
    move |cause| ImageError::Format { path: directory.join(name), cause }
}
