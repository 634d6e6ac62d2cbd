//! What a host sees of the file system. All of this happens in the host's own
//! mount namespace, which is private: it ends with the host's last process.

use super::FileSystem;
use super::protocol::HostSetup;
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directories that each host has for itself, always on a tmpfs.
const OWN_DIRECTORIES: [(&str, &str); 2] = [("/run", "mode=0755"), ("/tmp", "mode=1777")];

/// Keeps every later mount of this mount namespace from reaching another.
pub fn make_private() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make mounts private")
}

/// Mounts an empty tmpfs.
pub fn mount_tmpfs(target: &Path, options: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .with_context(|| format!("cannot mount a tmpfs on {}", target.display()))
}

/// Gives the host, whose first process calls this, its view of the file system.
pub fn set_up(setup: &HostSetup) -> Result<()> {
    make_private()?;
    match setup.file_system {
        FileSystem::Shared => {
            for (directory, options) in OWN_DIRECTORIES {
                mount_tmpfs(Path::new(directory), options)?;
            }
            mount_proc(Path::new("/proc"))
        }
        FileSystem::Overlay => enter_overlay(setup),
    }
}

/// A fresh view of /proc for this PID namespace.
fn mount_proc(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), target, Some("proc"), flags, None::<&str>)
        .with_context(|| format!("cannot mount proc on {}", target.display()))
}

/// Puts a writable layer over `/` and makes that the root. The layer is on a
/// tmpfs, since an overlay's upper layer cannot itself be on an overlay, and
/// the machine's root may be one.
fn enter_overlay(setup: &HostSetup) -> Result<()> {
    let stage = Path::new("/tmp");
    let own_binary = std::env::current_exe().context("cannot find this program's file")?;
    // Opened by number before the stage covers /tmp.
    let binary_directory = own_binary.parent().map(Path::to_path_buf).unwrap_or_default();
    mount_tmpfs(stage, "mode=0755")?;
    let (upper, work, root) = (stage.join("upper"), stage.join("work"), stage.join("root"));
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory).with_context(|| directory.display().to_string())?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("cannot mount an overlay of /")?;

    let inside = |path: &Path| -> PathBuf { root.join(path.strip_prefix("/").unwrap_or(path)) };
    for directory in ["/dev", "/sys"] {
        bind(Path::new(directory), &inside(Path::new(directory)))?;
    }
    bind(&setup.shared, &inside(&setup.shared))?;
    // The overlay does not reach into other mounts: bring the directory of
    // this binary along where it is on one.
    if on_another_mount(&binary_directory)? {
        fs::create_dir_all(inside(&binary_directory))?;
        bind(&binary_directory, &inside(&binary_directory))?;
    }
    for (directory, options) in OWN_DIRECTORIES {
        mount_tmpfs(&inside(Path::new(directory)), options)?;
    }
    mount_proc(&inside(Path::new("/proc")))?;

    std::env::set_current_dir(&root).context("cannot enter the new root")?;
    // The old root is stacked on top of the new one and then taken away
    // (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").context("cannot make the overlay the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot leave the old root")?;
    std::env::set_current_dir("/").context("cannot enter /")
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot bind {} into the host", from.display()))
}

fn on_another_mount(directory: &Path) -> Result<bool> {
    Ok(fs::metadata(directory).with_context(|| directory.display().to_string())?.dev()
        != fs::metadata("/")?.dev())
}
