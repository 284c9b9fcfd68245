//! The four hooks: what a component may export, and what goes into and comes out of one call.

use crate::message::Message;
use crate::plugin::bindings::exports::nats_webhook_relay::plugin::{
    relayed_payload, relayed_subject, webhook_headers, webhook_payload,
};
use crate::plugin::bindings::nats_webhook_relay::plugin::types;
use crate::plugin::state::State;
use std::fmt;
use std::sync::Arc;
use tokio_util::bytes::Bytes;
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

pub(crate) use types::HookError;

/// The package of `wit/plugin.wit`.
pub const PACKAGE: &str = "nats-webhook-relay:plugin";
pub const VERSION: &str = "1.0.0";

/// One of the interfaces that a plugin may export, in the order in which they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Shapes the body of the webhook call.
    WebhookPayload,
    /// Sets headers of the webhook call.
    WebhookHeaders,
    /// Shapes the payload that is republished.
    RelayedPayload,
    /// Decides where it is republished.
    RelayedSubject,
}

impl Hook {
    /// All hooks, in the order in which they are called.
    pub(crate) const ALL: [Self; 4] =
        [Self::WebhookPayload, Self::WebhookHeaders, Self::RelayedPayload, Self::RelayedSubject];

    /// The interface's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebhookPayload => "webhook-payload",
            Self::WebhookHeaders => "webhook-headers",
            Self::RelayedPayload => "relayed-payload",
            Self::RelayedSubject => "relayed-subject",
        }
    }

    /// The interface's name with package and version.
    pub(crate) fn interface(self) -> String {
        format!("{PACKAGE}/{}@{VERSION}", self.name())
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a hook is called with. It owns everything, because a slow call moves to another thread.
pub(crate) struct Input {
    /// The message as it was received.
    pub(crate) message: Arc<Message>,
    /// What of its subject lies below the listened prefix or subject, or what an earlier plugin
    /// made of it.
    pub(crate) tail: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: Bytes,
}

/// What a hook returned.
#[derive(Debug)]
pub(crate) enum Output {
    /// A body or payload.
    Payload(Vec<u8>),
    Headers(Vec<(String, Vec<u8>)>),
    /// A subject without its prefix.
    Tail(String),
}

/// The hooks that a component exports, found by name before it is instantiated.
pub(crate) struct Exports {
    webhook_payload: Option<webhook_payload::GuestIndices>,
    webhook_headers: Option<webhook_headers::GuestIndices>,
    relayed_payload: Option<relayed_payload::GuestIndices>,
    relayed_subject: Option<relayed_subject::GuestIndices>,
}

impl Exports {
    /// Finds them. A version of the interface counts when Semantic Versioning calls it compatible.
    ///
    /// # Errors
    /// When an interface lacks its function.
    pub(crate) fn find(pre: &InstancePre<State>) -> wasmtime::Result<Self> {
        Ok(Self {
            webhook_payload: find(pre, Hook::WebhookPayload, webhook_payload::GuestIndices::new)?,
            webhook_headers: find(pre, Hook::WebhookHeaders, webhook_headers::GuestIndices::new)?,
            relayed_payload: find(pre, Hook::RelayedPayload, relayed_payload::GuestIndices::new)?,
            relayed_subject: find(pre, Hook::RelayedSubject, relayed_subject::GuestIndices::new)?,
        })
    }

    pub(crate) fn hooks(&self) -> Vec<Hook> {
        let exported = |hook: &Hook| match hook {
            Hook::WebhookPayload => self.webhook_payload.is_some(),
            Hook::WebhookHeaders => self.webhook_headers.is_some(),
            Hook::RelayedPayload => self.relayed_payload.is_some(),
            Hook::RelayedSubject => self.relayed_subject.is_some(),
        };
        Hook::ALL.into_iter().filter(exported).collect()
    }

    /// The functions of an instance.
    ///
    /// # Errors
    /// Names a hook whose function has another type than the package defines.
    pub(crate) fn load(
        &self,
        store: &mut Store<State>,
        instance: &Instance,
    ) -> wasmtime::Result<Functions> {
        let wrong = |hook: Hook| {
            move |error: wasmtime::Error| {
                error.context(format!("{hook} has another type than {PACKAGE}@{VERSION} defines"))
            }
        };
        let mut load = Functions::default();
        if let Some(exported) = &self.webhook_payload {
            load.webhook_payload =
                Some(exported.load(&mut *store, instance).map_err(wrong(Hook::WebhookPayload))?);
        }
        if let Some(exported) = &self.webhook_headers {
            load.webhook_headers =
                Some(exported.load(&mut *store, instance).map_err(wrong(Hook::WebhookHeaders))?);
        }
        if let Some(exported) = &self.relayed_payload {
            load.relayed_payload =
                Some(exported.load(&mut *store, instance).map_err(wrong(Hook::RelayedPayload))?);
        }
        if let Some(exported) = &self.relayed_subject {
            load.relayed_subject =
                Some(exported.load(&mut *store, instance).map_err(wrong(Hook::RelayedSubject))?);
        }
        Ok(load)
    }
}

fn find<I>(
    pre: &InstancePre<State>,
    hook: Hook,
    new: impl Fn(&InstancePre<State>) -> wasmtime::Result<I>,
) -> wasmtime::Result<Option<I>> {
    pre.component().get_export_index(None, hook.interface()).map(|_| new(pre)).transpose()
}

/// The hooks of one instance.
#[derive(Default)]
pub(crate) struct Functions {
    webhook_payload: Option<webhook_payload::Guest>,
    webhook_headers: Option<webhook_headers::Guest>,
    relayed_payload: Option<relayed_payload::Guest>,
    relayed_subject: Option<relayed_subject::Guest>,
}

impl Functions {
    /// Calls `hook`.
    ///
    /// # Errors
    /// A trap, or a value that cannot be read.
    pub(crate) async fn call(
        &self,
        store: &mut Store<State>,
        hook: Hook,
        input: &Input,
    ) -> wasmtime::Result<Result<Output, HookError>> {
        let headers: Vec<_> =
            input.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let message = types::Message {
            id: input.message.id.as_str(),
            subject: &input.message.subject,
            tail: &input.tail,
            headers: &headers,
            payload: &input.payload,
        };
        let absent = || wasmtime::format_err!("the component does not export {hook}");
        Ok(match hook {
            Hook::WebhookPayload => {
                let hook = self.webhook_payload.as_ref().ok_or_else(absent)?;
                hook.call_transform(store, message).await?.map(Output::Payload)
            }
            Hook::WebhookHeaders => {
                let hook = self.webhook_headers.as_ref().ok_or_else(absent)?;
                hook.call_set(store, message).await?.map(Output::Headers)
            }
            Hook::RelayedPayload => {
                let hook = self.relayed_payload.as_ref().ok_or_else(absent)?;
                hook.call_transform(store, message).await?.map(Output::Payload)
            }
            Hook::RelayedSubject => {
                let hook = self.relayed_subject.as_ref().ok_or_else(absent)?;
                hook.call_remap(store, message).await?.map(Output::Tail)
            }
        })
    }
}
