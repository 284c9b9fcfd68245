//! The connection to NATS: login, reconnects, round trips, publishing with proof, and the parts of
//! JetStream that reading and publishing share.
//!
//! Nothing here knows a webhook or a plugin.

pub(crate) mod ack;
pub(crate) mod answers;
pub(crate) mod capture;
mod connect;
mod denied;
pub(crate) mod failure;
pub(crate) mod jetstream;
pub(crate) mod jwt;
pub(crate) mod link;
pub(crate) mod login;
pub(crate) mod publisher;
pub(crate) mod replies;
pub(crate) mod round_trip;
pub(crate) mod settings;
pub(crate) mod tls;
