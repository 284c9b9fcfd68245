//! nats-webhook-relay: POSTs each NATS message to a webhook and republishes it only after the
//! webhook has accepted it.
//!
//! This library exists for the program of the same name, its fuzz targets and its benchmarks, and
//! makes no promise of a stable API. `docs/architecture.md` has the floor plan.

mod certificates;
pub mod command;
pub mod config;
pub mod exchange;
pub mod gateway;
pub mod headers;
pub mod message;
mod nats;
pub mod observe;
mod origin;
mod otlp;
mod pending;
pub mod plugin;
pub mod relay;
pub mod secret;
mod serve;
mod slot;
mod source;
pub mod subject;
mod trace;
pub mod webhook;
