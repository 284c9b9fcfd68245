//! Certificates of an authority that only a test knows, as PEM files.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

pub struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The paths of a certificate and its key.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Self::called(&format!("Authority {}", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// An authority with a name that another one may have.
    pub fn called(name: &str) -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    /// The path of the authority's own certificate.
    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    /// A path in the folder with the certificates.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A certificate for `hosts`.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Issued {
        self.issue_with(name, hosts, |_| {})
    }

    /// A certificate for 127.0.0.1 that is not valid any more.
    pub fn expired(&self) -> Issued {
        self.issue_with("expired", &["127.0.0.1"], |parameters| parameters.not_after = rcgen::date_time_ymd(2001, 1, 1))
    }

    fn issue_with(&self, name: &str, hosts: &[&str], change: impl Fn(&mut CertificateParams)) -> Issued {
        let mut parameters = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        change(&mut parameters);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let paths = Issued { certificate: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}.key")) };
        std::fs::write(&paths.certificate, certificate.pem()).unwrap();
        std::fs::write(&paths.key, key.serialize_pem()).unwrap();
        paths
    }
}

impl Issued {
    /// `tls { ... }` of a server's configuration.
    pub fn tls(&self, more: &str) -> String {
        format!("tls {{ cert_file: \"{}\", key_file: \"{}\", {more} }}", self.certificate, self.key)
    }
}
