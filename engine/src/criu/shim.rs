//! The preloaded object, as a file that the dynamic linker can open.

use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The object, built by `build.rs` from `shim/shim.rs`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ferry-shim.so"));

/// Writes the object into a directory, once, and returns its path.
pub fn place(directory: &Path) -> io::Result<PathBuf> {
    let path = directory.join(format!("ferry-shim-{:08x}.so", crc32fast::hash(OBJECT)));
    if std::fs::read(&path).is_ok_and(|there| there == OBJECT) {
        return Ok(path);
    }
    std::fs::create_dir_all(directory)?;
    let draft = directory.join(format!(".ferry-shim-{}.new", std::process::id()));
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&draft)?;
    io::Write::write_all(&mut file, OBJECT)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    drop(file);
    std::fs::rename(&draft, &path)?;
    Ok(path)
}
