//! A certificate authority of a test's own, and TLS endpoints with its certificates.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// The paths of a certificate and its key.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Issued {
    /// `tls { ... }` of a server's configuration.
    pub fn tls(&self, more: &str) -> String {
        format!("tls {{ cert_file: \"{}\", key_file: \"{}\", {more} }}", self.certificate, self.key)
    }
}

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        Self::called(&format!("Authority {}", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// An authority with a name that another one may have.
    pub fn called(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// The path of the authority's certificate.
    pub fn path(&self) -> String {
        self.folder.path().join("ca.pem").to_str().unwrap().to_owned()
    }

    /// The paths of a client's certificate and key.
    pub fn client(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.sign(&[name], &[ExtendedKeyUsagePurpose::ClientAuth], |_| {});
        self.files(name, &certificate, &key)
    }

    /// As [`Self::client`], but expired.
    pub fn expired_client(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.sign(&[name], &[ExtendedKeyUsagePurpose::ClientAuth], expire);
        self.files(name, &certificate, &key)
    }

    fn files(
        &self,
        name: &str,
        certificate: &rcgen::Certificate,
        key: &KeyPair,
    ) -> (String, String) {
        let [cert, private] =
            ["crt", "key"].map(|end| self.folder.path().join(format!("{name}.{end}")));
        std::fs::write(&cert, certificate.pem()).unwrap();
        std::fs::write(&private, key.serialize_pem()).unwrap();
        [cert, private].map(|path| path.to_str().unwrap().to_owned()).into()
    }

    /// A certificate for `hosts`, for either side of a connection.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Issued {
        self.issued(name, hosts, |_| {})
    }

    /// A certificate for 127.0.0.1 that is not valid any more.
    pub fn expired(&self) -> Issued {
        self.issued("expired", &["127.0.0.1"], expire)
    }

    fn issued(
        &self,
        name: &str,
        hosts: &[&str],
        change: impl Fn(&mut CertificateParams),
    ) -> Issued {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = self.sign(hosts, &usages, |params| {
            params.distinguished_name.push(DnType::CommonName, name);
            change(params);
        });
        let (certificate, key) = self.files(name, &certificate, &key);
        Issued { certificate, key }
    }

    fn sign(
        &self,
        names: &[&str],
        usages: &[ExtendedKeyUsagePurpose],
        change: impl Fn(&mut CertificateParams),
    ) -> (rcgen::Certificate, KeyPair) {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
                .unwrap();
        params.distinguished_name.push(DnType::CommonName, *names.first().unwrap_or(&"nobody"));
        params.extended_key_usages = usages.to_vec();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// What a server of these names needs; it offers these protocols.
    pub fn server(&self, names: &[&str], alpn: &[&str]) -> ServerConfig {
        self.configure(names, alpn, false, |_| {})
    }

    /// As [`Self::server`], for clients that have a certificate of this authority.
    pub fn server_for_clients(&self, names: &[&str], alpn: &[&str]) -> ServerConfig {
        self.configure(names, alpn, true, |_| {})
    }

    /// As [`Self::server`], with a certificate that has expired.
    pub fn expired_server(&self, names: &[&str]) -> ServerConfig {
        self.configure(names, &[], false, expire)
    }

    fn configure(
        &self,
        names: &[&str],
        alpn: &[&str],
        clients: bool,
        change: impl Fn(&mut CertificateParams),
    ) -> ServerConfig {
        let (certificate, key) = self.sign(names, &[ExtendedKeyUsagePurpose::ServerAuth], change);
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .unwrap(),
            )
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config =
            builder.with_single_cert(vec![CertificateDer::from(certificate)], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }
}

fn expire(params: &mut CertificateParams) {
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
}

/// A TLS server on a free port, for [`super::endpoint::Endpoint::serve`]. Connections are numbered from 0.
pub struct TlsListener {
    pub port: u16,
    /// Connections so far, those without a handshake too.
    pub accepted: Arc<AtomicUsize>,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, usize)>,
}

impl TlsListener {
    pub async fn bind(config: ServerConfig) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), config)
    }

    pub fn on(listener: TcpListener, config: ServerConfig) -> Self {
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (sender, ready) = mpsc::channel(1);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    match acceptor.accept(stream).into_fallible().await {
                        Ok(stream) => drop(sender.send((stream, number)).await),
                        // Closed only when the client has closed, so that it can read why.
                        Err((_, mut stream)) => {
                            drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await)
                        }
                    }
                });
            }
        });
        Self { port, accepted, ready }
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = usize;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(0)
    }
}
