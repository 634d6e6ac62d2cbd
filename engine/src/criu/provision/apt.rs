//! apt with a state of its own.

use super::{ProvisionError, mirror};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Debian's keyring, from the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The suite whose CRIU follows the kernel.
const SUITE: &str = "testing";
/// How much of a program's complaint is passed on.
const QUOTED: usize = 600;

/// A directory in which apt has its lists, archives and configuration.
pub struct Apt {
    directory: PathBuf,
    mirror: String,
}

/// Whether a Release file past its date is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expiry {
    Refused,
    Accepted,
}

impl Apt {
    /// Lays the directory out.
    ///
    /// # Errors
    /// This is no Debian, or the directory cannot be written.
    pub fn prepare(directory: &Path) -> Result<Apt, ProvisionError> {
        for tool in ["apt-get", "dpkg-deb"] {
            if !on_path(tool) {
                return Err(ProvisionError::Unsupported { missing: tool.to_owned() });
            }
        }
        if !Path::new(KEYRING).is_file() {
            return Err(ProvisionError::Unsupported { missing: KEYRING.to_owned() });
        }
        let mirror = mirror::of_host(Path::new("/etc/apt"));
        let apt = Apt { directory: directory.to_owned(), mirror };
        apt.lay_out().map_err(ProvisionError::file(format!("writing below {}", directory.display())))?;
        Ok(apt)
    }

    fn lay_out(&self) -> io::Result<()> {
        let directory = &self.directory;
        for sub in ["state/lists/partial", "cache/archives/partial", "log", "none"] {
            std::fs::create_dir_all(directory.join(sub))?;
        }
        std::fs::write(directory.join("status"), "")?;
        std::fs::write(
            directory.join("sources.list"),
            format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", self.mirror),
        )?;
        let d = directory.display();
        // Read after the host's own configuration, of which a proxy is kept and
        // hooks (they clean the host's caches in many container images) are not.
        let configuration = format!(
            "#clear APT::Update::Pre-Invoke;\n\
             #clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n\
             #clear DPkg::Pre-Invoke;\n\
             #clear DPkg::Post-Invoke;\n\
             #clear DPkg::Pre-Install-Pkgs;\n\
             Dir::State \"{d}/state\";\n\
             Dir::State::status \"{d}/status\";\n\
             Dir::Cache \"{d}/cache\";\n\
             Dir::Log \"{d}/log\";\n\
             Dir::Etc::sourcelist \"{d}/sources.list\";\n\
             Dir::Etc::sourceparts \"{d}/none\";\n\
             Dir::Etc::preferences \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"{d}/none\";\n\
             APT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"root\";\n\
             APT::Update::Error-Mode \"any\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"2\";\n\
             Acquire::http::Timeout \"20\";\n\
             Acquire::https::Timeout \"20\";\n\
             Acquire::Check-Valid-Until \"true\";\n\
             Acquire::AllowInsecureRepositories \"false\";\n\
             Acquire::AllowWeakRepositories \"false\";\n\
             APT::Get::AllowUnauthenticated \"false\";\n\
             DPkg::Use-Pty \"false\";\n"
        );
        std::fs::write(directory.join("apt.conf"), configuration)
    }

    /// Downloads packages and everything they need, down to the C library.
    ///
    /// # Errors
    /// The mirror cannot be reached, or apt refuses.
    pub fn download(
        &self,
        packages: &[&str],
        say: &mut dyn FnMut(&str),
    ) -> Result<Vec<PathBuf>, ProvisionError> {
        say(&format!("reading the package lists of Debian {SUITE} from {}", self.mirror));
        let step = "reading the package lists";
        match self.run(&["update"], Expiry::Refused) {
            Ok(()) => {}
            Err(said) if has_expired(&said) => {
                say("the mirror's Release file is past its date: going on with it, signatures stay checked");
                self.run(&["update"], Expiry::Accepted).map_err(|said| failure(step, said))?;
            }
            Err(said) => return Err(failure(step, said)),
        }
        say(&format!("downloading {} and what they need (about 9 MB)", packages.join(", ")));
        let mut arguments = vec!["--yes", "--download-only", "install"];
        arguments.extend(packages);
        self.run(&arguments, Expiry::Accepted).map_err(|said| failure("downloading the packages", said))?;
        let archives = self.directory.join("cache/archives");
        let entries =
            std::fs::read_dir(&archives).map_err(ProvisionError::file("the downloaded packages"))?;
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        found.sort();
        Ok(found)
    }

    fn run(&self, arguments: &[&str], expiry: Expiry) -> Result<(), String> {
        let mut command = Command::new("apt-get");
        command.arg("--quiet").arg("--config-file").arg(self.directory.join("apt.conf"));
        if expiry == Expiry::Accepted {
            command.args(["--option", "Acquire::Check-Valid-Until=false"]);
        }
        command.args(arguments).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// apt: `E: Release file for … is expired (invalid since …)`, and nothing else.
fn has_expired(said: &str) -> bool {
    let mut errors = said.lines().filter(|line| line.starts_with("E:")).peekable();
    errors.peek().is_some()
        && errors.all(|line| line.contains("Release file for") && line.contains("is expired"))
}

fn failure(step: &'static str, said: String) -> ProvisionError {
    const UNREACHABLE: [&str; 6] = [
        "Could not resolve",
        "Temporary failure resolving",
        "Could not connect",
        "Cannot initiate the connection",
        "Connection timed out",
        "Network is unreachable",
    ];
    let line = said.lines().find(|line| UNREACHABLE.iter().any(|sign| line.contains(sign)));
    if let Some(line) = line {
        let reason = UNREACHABLE.iter().find_map(|sign| line.find(sign).map(|at| &line[at..]));
        return ProvisionError::NoNetwork(reason.unwrap_or(line).chars().take(QUOTED).collect());
    }
    let errors: Vec<&str> =
        said.lines().filter(|line| line.starts_with("E:") || line.starts_with("W:")).collect();
    let words = if errors.is_empty() { said.trim().to_owned() } else { errors.join("; ") };
    ProvisionError::Step { step, said: words.chars().take(QUOTED).collect() }
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRED: &str = "E: Release file for http://m/debian/dists/testing/InRelease is expired \
                           (invalid since 2d 3h). Updates for this repository will not be applied.\n";

    #[test]
    fn only_an_expired_release_file_alone_is_forgiven() {
        assert!(has_expired(EXPIRED));
        assert!(!has_expired(&format!("{EXPIRED}E: The repository is not signed.\n")));
        assert!(!has_expired("W: whatever\n"));
    }

    #[test]
    fn an_unreachable_mirror_is_told_from_other_failures() {
        let said = "E: Failed to fetch http://m/x  Could not resolve 'm'\n".to_owned();
        assert!(
            matches!(failure("x", said), ProvisionError::NoNetwork(why) if why == "Could not resolve 'm'")
        );
        let said = "E: Unable to locate package criu\n".to_owned();
        assert!(matches!(failure("x", said), ProvisionError::Step { .. }));
    }
}
