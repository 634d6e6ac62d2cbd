//! An ELF file's build id.

use object::read::ReadCache;
use object::{Object, ReadRef};
use std::fs::File;
use std::path::Path;

/// The GNU build id in hex; `None` for what is no ELF file or has none. Reads
/// headers and notes only.
pub fn build_id(path: &Path) -> Option<String> {
    build_id_of(&ReadCache::new(File::open(path).ok()?))
}

/// The same of a file's content, wherever that is.
pub fn build_id_of<'a>(content: impl ReadRef<'a>) -> Option<String> {
    content.read_bytes_at(0, 4).ok().filter(|magic| *magic == b"\x7fELF")?;
    let file = object::File::parse(content).ok()?;
    // A build id is 16 or 20 bytes; CRIU allows 32 at most.
    let id = file.build_id().ok()??;
    Some(id.iter().take(32).map(|byte| format!("{byte:02x}")).collect())
}
