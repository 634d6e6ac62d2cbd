//! Finds a CRIU that works here, and makes one when there is none.
//!
//! The order: the one that was asked for; the private one below
//! [`DEFAULT_ROOT`]; the one on `PATH`; and, where the caller allows it, a private
//! one that is provisioned now. "Works" is a self-test, whose result is kept in
//! `criu.json` and holds for one version of CRIU on one kernel.

use super::features::{self, Version};
use super::provision::{self, ProvisionError};
use super::selftest::{self, PayloadFree, SelfTest};
use super::shim;
use crate::target::process::Criu;
use ferry_transport::units::Bytes;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the private CRIU lives.
pub const DEFAULT_ROOT: &str = "/var/lib/ferry/criu";
/// The format of the record; another one is not believed.
const SCHEMA: u32 = 1;
/// The most bytes of a record that are read.
const MAX_RECORD: u64 = 64 << 10;

/// Which CRIU is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// This one and no other (`--criu`, `FERRY_CRIU`).
    pub explicit: Option<PathBuf>,
    /// The private prefix.
    pub root: PathBuf,
    /// What to do when none works.
    pub when_missing: WhenMissing,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { explicit: None, root: PathBuf::from(DEFAULT_ROOT), when_missing: WhenMissing::Provision }
    }
}

/// What to do when no CRIU works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenMissing {
    /// Download one into the private prefix.
    Provision,
    /// Say so.
    Fail,
}

/// Where a CRIU came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It was asked for.
    Explicit,
    /// The private prefix.
    Private,
    /// Found on `PATH`.
    Path,
}

/// A CRIU that was found to work on this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// Where it came from.
    pub origin: Origin,
    /// The preloaded object, where it was placed.
    pub shim: Option<PathBuf>,
    /// What the self-test measured.
    pub test: SelfTest,
}

impl Installed {
    /// What targets and restorers are made with. Has the preloaded object only
    /// if it keeps CRIU from dumping pages; else dumps are lazy ones.
    pub fn criu(&self) -> Criu {
        let shim = match self.test.payload_free {
            PayloadFree::Works => self.shim.clone(),
            PayloadFree::Fails(_) => None,
        };
        Criu { program: self.program.clone(), shim }
    }

    /// The note for a report: how this CRIU is made to leave memory to ferry, where
    /// it is not the usual way.
    pub fn fallback(&self) -> Option<String> {
        match &self.test.payload_free {
            PayloadFree::Works => None,
            PayloadFree::Fails(why) => Some(format!(
                "nothing could be preloaded into CRIU ({why}): it was dumped with --lazy-pages, \
                 whose freeze grows with memory (about 0.2 s per GiB)"
            )),
        }
    }

    /// How long a dump of a workload of this size takes longer than a small one's,
    /// beside the kernel's walk of its page tables: a lazy dump pins every page.
    pub fn pinning_cost(&self, memory: Bytes) -> Duration {
        /// Measured, 140 to 250 ms.
        const PER_GIB: Duration = Duration::from_millis(200);
        match self.test.payload_free {
            PayloadFree::Works => Duration::ZERO,
            PayloadFree::Fails(_) => PER_GIB.mul_f64(memory.0 as f64 / (1u64 << 30) as f64),
        }
    }

    /// The same without the preloaded object, as if its self-test had failed.
    pub fn without_preload(mut self, why: &str) -> Installed {
        self.test.payload_free = PayloadFree::Fails(why.into());
        self
    }
}

/// Why there is no CRIU to work with.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// CRIU needs it.
    #[error("this needs root: run it with sudo")]
    NotRoot,
    /// The one that was asked for does not work.
    #[error("{program} does not work here: {why}")]
    Explicit {
        /// Which.
        program: PathBuf,
        /// What it failed at.
        why: String,
    },
    /// None works, and none was to be made.
    #[error("no CRIU works here: {}; run `ferry setup`", .0.join("; "))]
    None(Vec<String>),
    /// None could be made.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// The one that was made does not work.
    #[error("the provisioned CRIU does not work on this kernel: {0}; give another one with --criu")]
    Unusable(String),
}

/// The self-test's record.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    schema: u32,
    program: PathBuf,
    version: String,
    kernel: String,
    #[serde(flatten)]
    test: SelfTest,
}

/// Finds or makes one. `say` is told each step before it is done.
///
/// # Errors
/// None works; the error says what was tried and what to do. Nothing of the host
/// was changed outside of `wanted.root`.
pub fn find(wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<Installed, InstallError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(InstallError::NotRoot);
    }
    if let Some(program) = &wanted.explicit {
        return examine(program, Origin::Explicit, &wanted.root, say)
            .map_err(|why| InstallError::Explicit { program: program.clone(), why });
    }
    let mut tried = Vec::new();
    for (program, origin) in candidates(&wanted.root) {
        match examine(&program, origin, &wanted.root, say) {
            Ok(installed) => return Ok(installed),
            Err(why) => {
                say(&format!("{} is of no use here: {why}", program.display()));
                tried.push(format!("{}: {why}", program.display()));
            }
        }
    }
    if wanted.when_missing == WhenMissing::Fail {
        if tried.is_empty() {
            tried.push(format!("there is none in {} and none on PATH", wanted.root.display()));
        }
        return Err(InstallError::None(tried));
    }
    setup(&wanted.root, say)
}

/// Makes a private CRIU anew, whatever is there.
///
/// # Errors
/// As [`find`].
pub fn setup(root: &Path, say: &mut dyn FnMut(&str)) -> Result<Installed, InstallError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(InstallError::NotRoot);
    }
    let program = provision::provision(root, say)?;
    examine(&program, Origin::Private, root, say).map_err(InstallError::Unusable)
}

fn candidates(root: &Path) -> Vec<(PathBuf, Origin)> {
    let private = provision::program(root);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| (directory.join("criu"), Origin::Path));
    std::iter::once((private, Origin::Private)).chain(on_path).filter(|(p, _)| p.is_file()).collect()
}

/// Tests a CRIU unless the record says that it was tested on this kernel.
fn examine(
    program: &Path,
    origin: Origin,
    root: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Installed, String> {
    let version = features::version(program).map_err(|error| error.to_string())?;
    let shim = shim::place(root)
        .map_err(|error| tracing::warn!(%error, "the preloaded object cannot be written"))
        .ok();
    let kernel = kernel_release();
    let kept = record_path(program, origin, root);
    if let Some(record) = read_record(&kept) {
        let same = record.schema == SCHEMA && record.program == program && record.kernel == kernel;
        if same && record.version == version.to_string() {
            return Ok(Installed { program: program.into(), version, origin, shim, test: record.test });
        }
    }
    say(&format!("testing CRIU {version} ({}) on a small process of its own", program.display()));
    features::check(program).map_err(|error| error.to_string())?;
    let criu = Criu { program: program.into(), shim: shim.clone() };
    let test = selftest::run(&criu).map_err(|error| error.to_string())?;
    if let PayloadFree::Fails(why) = &test.payload_free {
        say(&format!("dumps will be lazy ones, which lengthens the freeze: {why}"));
    }
    let record = Record {
        schema: SCHEMA,
        program: program.into(),
        version: version.to_string(),
        kernel,
        test: test.clone(),
    };
    if let Err(error) = write_record(&kept, &record) {
        tracing::warn!(%error, path = %kept.display(), "the self-test's record cannot be kept");
    }
    Ok(Installed { program: program.into(), version, origin, shim, test })
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// One record for each program.
fn record_path(program: &Path, origin: Origin, root: &Path) -> PathBuf {
    match origin {
        Origin::Private => root.join("criu.json"),
        Origin::Explicit | Origin::Path => {
            let mark = crc32fast::hash(program.as_os_str().as_encoded_bytes());
            root.join(format!("criu-{mark:08x}.json"))
        }
    }
}

fn read_record(path: &Path) -> Option<Record> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_RECORD).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn write_record(path: &Path, record: &Record) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let mut draft = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer_pretty(&mut draft, record)?;
    draft.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_kept_and_a_damaged_one_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("criu.json");
        let test = SelfTest {
            freeze_us: 1,
            dump_us: 2,
            restore_us: 3,
            release_us: 4,
            payload_free: PayloadFree::Fails("for a reason".into()),
        };
        let record = Record {
            schema: SCHEMA,
            program: "/x/criu".into(),
            version: "4.2.1".into(),
            kernel: "6.18".into(),
            test: test.clone(),
        };
        write_record(&path, &record).unwrap();
        assert_eq!(read_record(&path).unwrap().test, test);
        std::fs::write(&path, "{").unwrap();
        assert!(read_record(&path).is_none());
    }
}
