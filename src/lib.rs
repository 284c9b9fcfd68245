//! nats-webhook-relay: POSTs each NATS message to a webhook and republishes it only after the
//! webhook has accepted it.
//!
//! A message's way is `source` -> `intake` -> `lane` -> `relay` -> `plugin` -> `webhook` -> `publisher`;
//! [`relay::Relay`] has the function in which these steps are read from top to bottom. This
//! library exists for the program of the same name and makes no promise of a stable API.

pub mod certificates;
pub mod client;
pub mod command;
pub mod config;
pub mod context;
pub mod dead_letter;
pub mod destination;
pub mod environment;
pub mod headers;
pub mod intake;
pub mod jetstream;
pub mod lane;
pub mod link;
pub mod log;
pub mod message;
pub mod metrics;
pub mod nats;
pub mod outage;
pub mod plugin;
pub mod proxy;
pub mod publisher;
pub mod relay;
pub mod secret;
pub mod serve;
pub mod signature;
pub mod source;
pub mod subject;
pub mod subscription;
pub mod supervisor;
pub mod webhook;
