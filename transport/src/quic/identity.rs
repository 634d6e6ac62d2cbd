//! Who a host is: a key and a self-signed certificate, made on first use.

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

/// SHA-256 of a certificate's DER form: what is pinned. Printed as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        Fingerprint(Sha256::digest(certificate.as_ref()).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a fingerprint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hex digits; `ferry identity` prints it")]
pub struct NotAFingerprint;

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;
    fn from_str(text: &str) -> Result<Fingerprint, NotAFingerprint> {
        let text: String = text.trim().chars().filter(|c| *c != ':').collect::<String>().to_lowercase();
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| NotAFingerprint)?;
        bytes.try_into().map(Fingerprint).map_err(|_| NotAFingerprint)
    }
}

/// A host's key and certificate.
#[derive(Debug)]
pub struct Identity {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Identity {
        Identity { certificate: self.certificate.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// Reads the identity under `<state>/identity`, or makes it there: one file,
    /// readable by its owner only, holding certificate and key, written whole or
    /// not at all.
    pub fn load_or_create(state: &Path) -> io::Result<Identity> {
        let directory = state.join("identity");
        let path = directory.join("identity.bin");
        match std::fs::read(&path) {
            Ok(bytes) => return Identity::from_bytes(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (identity, bytes) = Identity::generate()?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let draft = directory.join(format!("identity.{}", std::process::id()));
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        // Of two first starts at once one wins, and both use the winner's.
        match std::fs::hard_link(&draft, &path) {
            Ok(()) => {
                std::fs::remove_file(&draft)?;
                Ok(identity)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&draft)?;
                Identity::from_bytes(&std::fs::read(&path)?)
            }
            Err(error) => Err(error),
        }
    }

    /// The fingerprint that a peer pins.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A fresh identity and its file form: certificate length (u32 LE), certificate, key.
    fn generate() -> io::Result<(Identity, Vec<u8>)> {
        let made = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate()?;
            let certificate =
                CertificateParams::new(vec![super::tls::SERVER_NAME.into()])?.self_signed(&key)?;
            Ok((certificate.der().to_vec(), key.serialize_der()))
        };
        let (certificate, key) = made().map_err(io::Error::other)?;
        let mut bytes = (certificate.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&certificate);
        bytes.extend_from_slice(&key);
        Ok((Identity::from_bytes(&bytes)?, bytes))
    }

    fn from_bytes(bytes: &[u8]) -> io::Result<Identity> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "the identity file is damaged");
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
        let (certificate, key) =
            rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(broken)?;
        if certificate.is_empty() || key.is_empty() {
            return Err(broken());
        }
        Ok(Identity {
            certificate: CertificateDer::from(certificate.to_vec()),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_stays_the_same() {
        let state = tempfile::tempdir().unwrap();
        let made = Identity::load_or_create(state.path()).unwrap().fingerprint();
        let read = Identity::load_or_create(state.path()).unwrap().fingerprint();
        assert_eq!(made, read);
        let text = made.to_string();
        assert_eq!(text.parse(), Ok(made));
        assert_eq!("12".parse::<Fingerprint>(), Err(NotAFingerprint));
    }

    #[test]
    fn a_damaged_file_is_an_error_not_a_new_identity() {
        for bytes in [&b""[..], b"\xff\xff\xff\xff", b"\x01\0\0\0x", b"\0\0\0\0k"] {
            assert!(Identity::from_bytes(bytes).is_err());
        }
    }
}
