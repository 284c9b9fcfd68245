//! How a connection to NATS is encrypted.
//!
//! The client reads the files again for each connection, so that certificates may be renewed
//! while the relay runs. The configuration looks at them beforehand, because the client's own
//! words for what is wrong with one name neither the file nor the setting.

use std::path::PathBuf;

/// How a connection is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Certificates of the authorities to trust instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// The relay's own certificate, and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// Whether the handshake comes before the server's greeting.
    pub(crate) first: bool,
    /// Whether a connection without TLS is refused, also to servers that others tell of.
    pub(crate) required: bool,
}
