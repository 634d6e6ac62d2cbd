//! Images made of a static busybox and of small C programs, without a registry.

use super::Daemon;
use crate::hosts::Program as HostProgram;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// The static busybox, where Debian's package puts it.
pub(super) const BUSYBOX: &str = "/bin/busybox";
/// Where an image's root directory is made, as the host names it.
const STAGE: &str = "/run/lab-image";

/// What busybox is called in an image.
const APPLETS: [&str; 22] = [
    "sh", "cat", "cp", "echo", "env", "expr", "grep", "hostname", "httpd", "ip", "kill", "ls", "mkdir", "nc",
    "ps", "rm", "sleep", "sync", "tail", "touch", "true", "wc",
];

/// A C program to compile into an image.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it is in the image.
    pub path: String,
    /// Its source.
    pub source: String,
}

/// What an image holds.
#[derive(Clone, Debug, Default)]
pub struct Image {
    programs: Vec<Program>,
    scripts: Vec<(String, String)>,
    changes: Vec<String>,
}

impl Image {
    /// busybox, and the directories that programs expect.
    pub fn busybox() -> Image {
        Image::default()
    }

    /// With a C program, linked statically.
    pub fn program(mut self, path: impl Into<String>, source: impl Into<String>) -> Image {
        self.programs.push(Program { path: path.into(), source: source.into() });
        self
    }

    /// With an executable file of this content.
    pub fn script(mut self, path: impl Into<String>, text: impl Into<String>) -> Image {
        self.scripts.push((path.into(), text.into()));
        self
    }

    /// With a line as of a Dockerfile: `CMD`, `ENV`, `LABEL`, `USER` and the like.
    pub fn change(mut self, line: impl Into<String>) -> Image {
        self.changes.push(line.into());
        self
    }

    pub(super) fn import(&self, daemon: &Daemon<'_>, name: &str) -> Result<()> {
        let host = daemon.host();
        let root = host.path(STAGE);
        let made = self.make_root(&root);
        let changes: String = self.changes.iter().map(|line| format!(" --change '{line}'")).collect();
        // The same bytes whenever it is made: layers of the same content have the same digest.
        let pack = "tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --create .";
        let client = format!("{} --host unix://{}", super::CLIENT, super::SOCKET);
        let pipe = format!("cd {STAGE} && {pack} | {client} import{changes} - {name}");
        let imported = made.and_then(|()| host.run(HostProgram::shell(pipe)));
        let _ = fs::remove_dir_all(&root);
        let out = imported?;
        ensure!(out.exit.success(), "the image {name} cannot be made: {}", out.stderr.trim());
        Ok(())
    }

    fn make_root(&self, root: &Path) -> Result<()> {
        for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).context(BUSYBOX)?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        for Program { path, source } in &self.programs {
            compile(source, &place(root, path)?)?;
        }
        for (path, text) in &self.scripts {
            let file = place(root, path)?;
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// A path of the image, its directory made.
fn place(root: &Path, path: &str) -> Result<std::path::PathBuf> {
    let file = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(file.parent().context("a file has a directory")?)?;
    Ok(file)
}

fn compile(source: &str, into: &Path) -> Result<()> {
    let text = into.with_extension("c");
    fs::write(&text, source)?;
    let out = std::process::Command::new("cc").args(["-O2", "-static", "-o"]).arg(into).arg(&text).output();
    fs::remove_file(&text)?;
    let out = out.context("there is no C compiler")?;
    ensure!(out.status.success(), "cc: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
