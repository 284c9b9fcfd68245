//! Certificates and private keys in PEM files: whom to trust, and what to identify with.
//!
//! They are read at start, where a mistake can be told in a line; those for NATS only to see
//! that they are good, because its client reads them again for each connection. No key can be
//! printed.

use async_nats::rustls::crypto::ring;
use async_nats::rustls::pki_types::pem::{self, PemObject};
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::sign::CertifiedKey;
use async_nats::rustls::{Error, InconsistentKeys, RootCertStore};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// What one side of a TLS connection brings along.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    /// Authorities to trust beside the system's.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    /// What to show to a server that asks who calls.
    pub(crate) identity: Option<Arc<CertifiedKey>>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authorities, identity } = self;
        write!(
            f,
            "Certificates({} authorities, {})",
            authorities.len(),
            if identity.is_some() { "an identity" } else { "no identity" }
        )
    }
}

/// The authorities of a file.
///
/// # Errors
/// Why they cannot be used.
pub(crate) fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = certificates(path)?;
    let mut store = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        store.add(certificate.clone()).map_err(|error| {
            format!("certificate {} in {} cannot be used: {error}", index + 1, path.display())
        })?;
    }
    Ok(certificates)
}

/// The certificates of a file, as they are shown to a server.
///
/// # Errors
/// Why they cannot be used.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text =
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let path = path.display();
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Err(_) => Err(format!("{path} is not PEM: a certificate in it is cut off or damaged")),
        Ok(certificates) if certificates.is_empty() => Err(format!(
            "{path} has no certificate; expected PEM, which begins with -----BEGIN CERTIFICATE-----"
        )),
        Ok(certificates) => Ok(certificates),
    }
}

/// The private key of a file. Its path is in no error, for it could be a misplaced key.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = std::fs::read(path)
        .map_err(|error| format!("cannot read the file that it names: {error}"))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound
            if String::from_utf8_lossy(&text).contains(
                "ENCRYPTED PRIVATE \
         KEY",
            ) =>
        {
            "the private key is encrypted; expected one without a password".to_owned()
        }
        pem::Error::NoItemsFound => "the file has no private key; expected PEM, which begins with \
         -----BEGIN PRIVATE KEY-----"
            .to_owned(),
        _ => "the file is not PEM: the private key in it is cut off or damaged".to_owned(),
    })
}

/// A chain of certificates together with the key of its first.
///
/// # Errors
/// Why they do not go together.
pub(crate) fn identity(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, String> {
    match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
        Ok(identity) => Ok(Arc::new(identity)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err("the private key is not that of the first certificate".to_owned())
        }
        Err(error) => Err(format!("certificate and private key cannot be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::write;
    use std::path::PathBuf;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, text: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.path().join(fastrand::u64(..).to_string());
            write(&path, text).unwrap();
            path
        }
    }

    fn self_signed() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(["frontend.example".to_owned()]).unwrap()
    }

    #[test]
    fn a_file_has_one_or_several_certificates_and_may_have_other_things() {
        let files = Files::new();
        let (one, two) = (self_signed(), self_signed());
        let path = files.file(format!(
            "# a comment\n{}{}{}",
            one.cert.pem(),
            one.signing_key.serialize_pem(),
            two.cert.pem()
        ));
        assert_eq!(authorities(&path).unwrap(), [one.cert.der().clone(), two.cert.der().clone()]);
        let identity = identity(certificates(&path).unwrap(), key(&path).unwrap()).unwrap();
        assert_eq!(identity.cert.len(), 2);
        let shown =
            format!("{:?}", Certificates { authorities: Vec::new(), identity: Some(identity) });
        assert_eq!(shown, "Certificates(0 authorities, an identity)");
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line_without_the_content() {
        let files = Files::new();
        let (one, two) = (self_signed(), self_signed());
        let (certificate, private) = (one.cert.pem(), one.signing_key.serialize_pem());
        let cut = |text: &str| text[..text.len() / 2].to_owned();
        for (text, expected) in [
            (String::new(), "has no certificate"),
            (private.clone(), "has no certificate"),
            (cut(&certificate), "not PEM"),
            (certificate.replace('M', "?"), "not PEM"),
            (
                "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n".to_owned(),
                "certificate 1 in",
            ),
        ] {
            let error = authorities(&files.file(&text)).unwrap_err();
            assert!(
                error.contains(expected) && !error.contains('\n') && !error.contains("hunter2"),
                "{error}"
            );
        }
        for (text, expected) in [
            (certificate.clone(), "has no private key"),
            (private.replace("PRIVATE", "ENCRYPTED PRIVATE"), "is encrypted"),
            (cut(&private), "not PEM"),
        ] {
            let error = key(&files.file(&text)).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
        let none = Path::new("/none/here");
        for (error, file) in [
            (authorities(none).unwrap_err(), "/none/here"),
            (key(none).unwrap_err(), "the file that it names"),
        ] {
            assert!(error.starts_with(&format!("cannot read {file}: No such file")), "{error}");
        }
        let der = |certified: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap()
        };
        let error = identity(vec![one.cert.der().clone()], der(&two)).unwrap_err();
        assert_eq!(error, "the private key is not that of the first certificate");
        assert!(
            identity(
                vec![one.cert.der().clone()],
                PrivateKeyDer::Pkcs8(b"hunter2".to_vec().into())
            )
            .is_err()
        );
    }
}
