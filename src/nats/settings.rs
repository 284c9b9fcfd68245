//! What a connection to NATS is made with.

use crate::nats::login::Login;
use crate::nats::tls::Tls;
use async_nats::ServerAddr;
use std::time::Duration;

/// What inboxes begin with unless something else is said.
pub(crate) const INBOX_PREFIX: &str = "_INBOX";

#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// Servers to try, without user info.
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) login: Login,
    /// What says how to log in, for errors.
    pub(crate) login_from: String,
    pub(crate) tls: Tls,
    /// What inboxes begin with.
    pub(crate) inbox_prefix: String,
    /// The context that says some of it.
    pub(crate) context: Option<String>,
}

/// How often a state that lasts, such as a server that cannot be reached, is mentioned again.
pub(crate) const REMIND: Duration = Duration::from_secs(60);
