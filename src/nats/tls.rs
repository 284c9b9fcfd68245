//! The files of a TLS connection to NATS.
//!
//! The client reads them again for each connection, so that certificates may be renewed while
//! the relay runs. Here they are looked at beforehand, because the client's own words for what
//! is wrong with one name neither the file nor the setting.

use async_nats::rustls::crypto::ring;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a connection is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// The relay's own certificate, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether the handshake comes before the server's greeting.
    pub first: bool,
    /// Whether a connection without TLS is refused, also to servers that others tell of.
    pub required: bool,
}

/// Whether the file holds certificates of authorities.
///
/// # Errors
/// Says what is wrong, with the path.
pub fn check_authorities(path: &Path) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    certificates(path)?
        .into_iter()
        .try_for_each(|certificate| roots.add(certificate))
        .map_err(|_| format!("{} holds what is no certificate of an authority", path.display()))
}

/// Whether the file holds a certificate.
///
/// # Errors
/// Says what is wrong, with the path.
pub fn check_certificate(path: &Path) -> Result<(), String> {
    certificates(path).map(drop)
}

/// Whether the file holds a key. Its path is in no error, for it could be a misplaced key.
///
/// # Errors
/// Says what is wrong.
pub fn check_key(path: &Path) -> Result<(), String> {
    key(path).map(drop)
}

/// Whether certificate and key, each of which is one, belong together.
///
/// # Errors
/// Says that they do not, or why they can not be used.
pub fn check_identity(certificate: &Path, private: &Path) -> Result<(), String> {
    let chain = certificates(certificate)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(chain, key(private)?);
    config.map(drop).map_err(|error| match error {
        async_nats::rustls::Error::InconsistentKeys(_) => format!("is not the key of the certificate {}", certificate.display()),
        error => format!("cannot be used with the certificate {}: {error}", certificate.display()),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    match CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("{} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", path.display())),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot read the file that it names: {error}"))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| "the file holds no private key in PEM form, or one with a password".to_owned())
}
