//! A private CRIU from Debian's testing suite.
//!
//! Debian's stable CRIU may be too old for the running kernel. The packages of the
//! testing suite, with their own C library, are unpacked into a prefix and started
//! through their own dynamic linker: nothing is installed, apt's and dpkg's state
//! on the host is neither read nor changed, signatures are checked against Debian's
//! keyring.
//!
//! The prefix is built beside its place and renamed into it; a lock file makes a
//! second first use wait for the first.

mod apt;
mod mirror;

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is unpacked: CRIU, and nft for looking at its network lock.
const PACKAGES: [&str; 2] = ["criu", "nftables"];

/// Why there is no private CRIU; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Not a Debian.
    #[error(
        "a private CRIU can only be made where apt-get, dpkg-deb and Debian's keyring are ({missing} is \
         missing here): install CRIU 4.2 or later by your distribution's means and give it with --criu PATH"
    )]
    Unsupported {
        /// What was looked for.
        missing: String,
    },
    /// The mirror cannot be reached.
    #[error(
        "the package mirror cannot be reached ({0}): check the network or apt's proxy setting and run \
         `ferry setup` again, or give a CRIU with --criu PATH"
    )]
    NoNetwork(String),
    /// apt or dpkg failed otherwise.
    #[error("{step} failed: {said}")]
    Step {
        /// At what.
        step: &'static str,
        /// The program's own words.
        said: String,
    },
    /// A file could not be written.
    #[error("{what}: {cause}")]
    File {
        /// What was tried.
        what: String,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl ProvisionError {
    fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> ProvisionError {
        let what = what.into();
        move |cause| ProvisionError::File { what, cause }
    }
}

/// The program in a prefix.
pub fn program(root: &Path) -> PathBuf {
    root.join("bin/criu")
}

/// Makes the prefix anew. On failure what was there is untouched.
///
/// # Errors
/// See [`ProvisionError`].
pub fn provision(root: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, ProvisionError> {
    let parent = root.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent)
        .map_err(ProvisionError::file(format!("creating {}", parent.display())))?;
    let before = stamp(root);
    let _lock = lock(root, say)?;
    if before != stamp(root) && program(root).is_file() {
        say("another ferry has just made it");
        return Ok(program(root));
    }
    let build = tempfile::Builder::new()
        .prefix(".criu-new-")
        .tempdir_in(parent)
        .map_err(ProvisionError::file(format!("a directory in {}", parent.display())))?;
    let prefix = build.path().join("prefix");
    let apt = apt::Apt::prepare(&build.path().join("apt"))?;
    let archives = apt.download(&PACKAGES, say)?;
    say(&format!("unpacking {} packages into {}", archives.len(), root.display()));
    for archive in &archives {
        unpack(archive, &prefix)?;
    }
    wrap(&prefix, root, "criu", "usr/sbin/criu")?;
    wrap(&prefix, root, "nft", "usr/sbin/nft")?;
    put_in_place(&prefix, root, parent)?;
    Ok(program(root))
}

/// Tells one prefix from another that took its place.
fn stamp(root: &Path) -> Option<(u64, std::time::SystemTime)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(program(root)).ok()?;
    Some((meta.ino(), meta.modified().ok()?))
}

fn lock(root: &Path, say: &mut dyn FnMut(&str)) -> Result<Flock<File>, ProvisionError> {
    let path = root.with_extension("lock");
    let what = format!("locking {}", path.display());
    let file = File::create(&path).map_err(ProvisionError::file(&what))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            say("waiting for another ferry that is making it");
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| ProvisionError::file(what)(errno.into()))
        }
        Err((_, errno)) => Err(ProvisionError::file(what)(errno.into())),
    }
}

fn unpack(archive: &Path, prefix: &Path) -> Result<(), ProvisionError> {
    let output =
        Command::new("dpkg-deb").arg("--extract").arg(archive).arg(prefix).stdin(Stdio::null()).output();
    let step = "unpacking a package";
    let output = output.map_err(ProvisionError::file(step))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ProvisionError::Step { step, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// A script that starts a program of the prefix with the prefix's C library.
fn wrap(prefix: &Path, root: &Path, name: &str, binary: &str) -> Result<(), ProvisionError> {
    let Some((linker, libraries)) = linker(prefix).filter(|_| prefix.join(binary).is_file()) else {
        return Err(ProvisionError::Step {
            step: "unpacking the packages",
            said: format!("they hold no dynamic linker or no {binary}"),
        });
    };
    let root = root.display();
    let script = format!(
        "#!/bin/sh\nexec '{root}/{linker}' --library-path '{root}/{libraries}' --argv0 {name} \
         '{root}/{binary}' \"$@\"\n"
    );
    let path = prefix.join("bin").join(name);
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(prefix.join("bin"))?;
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
    };
    write().map_err(ProvisionError::file(format!("writing {}", path.display())))
}

/// The dynamic linker and the directory of libraries, relative to the prefix.
fn linker(prefix: &Path) -> Option<(String, String)> {
    for entry in std::fs::read_dir(prefix.join("usr/lib")).ok()?.flatten() {
        let directory = entry.file_name().into_string().ok()?;
        let Some(files) =
            directory.ends_with("-linux-gnu").then(|| std::fs::read_dir(entry.path()).ok()).flatten()
        else {
            continue;
        };
        for file in files.flatten() {
            if let Some(name) = file.file_name().to_str().filter(|name| name.starts_with("ld-linux")) {
                return Some((format!("usr/lib/{directory}/{name}"), format!("usr/lib/{directory}")));
            }
        }
    }
    None
}

/// Renames the new prefix into place; an older one is moved away first and put
/// back should that fail.
fn put_in_place(prefix: &Path, root: &Path, parent: &Path) -> Result<(), ProvisionError> {
    let what = format!("putting {} in place", root.display());
    let old = tempfile::Builder::new().prefix(".criu-old-").tempdir_in(parent);
    let old = old.map_err(ProvisionError::file(&what))?;
    let aside = old.path().join("prefix");
    let had_one = match std::fs::rename(root, &aside) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(ProvisionError::file(what)(error)),
    };
    if let Err(error) = std::fs::rename(prefix, root) {
        if had_one {
            let _ = std::fs::rename(&aside, root);
        }
        return Err(ProvisionError::file(what)(error));
    }
    Ok(())
}
