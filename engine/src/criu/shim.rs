//! The preloaded object, as a file that the dynamic linker can open.

use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The object, built by `build.rs` from `shim/shim.rs`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ferry-shim.so"));

/// The file in which CRIU is to keep what it finds out about this kernel: beside
/// the object, and of this boot and this CRIU alone. What earlier boots left is
/// removed. `None` when it would not be found again or could be mistaken.
pub fn kernel_data(shim: &Path, criu: &Path) -> Option<PathBuf> {
    let directory = shim.parent()?.canonicalize().ok()?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let boot = boot.trim().replace('-', "");
    let meta = std::fs::metadata(criu).ok()?;
    let identity = format!("{}:{}:{}:{}", criu.display(), meta.dev(), meta.ino(), meta.mtime_nsec());
    let mark = crc32fast::hash(identity.as_bytes());
    for entry in std::fs::read_dir(&directory).ok()?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix("kdat-")) else { continue };
        // A draft that stays was left by a CRIU that was killed, and keeps every
        // later one from writing.
        let abandoned = name.ends_with(".tmp")
            && entry.metadata().and_then(|meta| meta.modified()).is_ok_and(|written| {
                written.elapsed().is_ok_and(|age| age > std::time::Duration::from_secs(10))
            });
        if abandoned || !name.starts_with(&boot) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Some(directory.join(format!("kdat-{boot}-{mark:08x}")))
}

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
