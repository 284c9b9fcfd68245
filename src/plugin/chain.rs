//! The chain of hooks that every message passes before its webhook is called.
//!
//! Everything that comes out of a hook is checked here. A message whose hooks did not all succeed
//! has no effect.

use crate::headers;
use crate::message::Message;
use crate::observe::Observer;
use crate::plugin::files;
use crate::plugin::guest::{Guest, Setup};
use crate::plugin::hook::{Hook, Input, Output};
use crate::plugin::host::Host;
use crate::plugin::output::{self, Hide, Sink};
use crate::plugin::settings::Setting;
use crate::plugin::stopped::{Kind, Stopped, Why};
use crate::subject::{self, MAX_SUBJECT_BYTES, Subjects};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::bytes::Bytes;
use tracing::warn;

/// The most headers that one call may set.
const MAX_HEADERS: usize = 100;
/// The most bytes of names and values that one call may set.
const MAX_HEADER_BYTES: usize = 32 * 1024;

/// Plugins in the order in which they are called.
pub(crate) struct Chain(pub(super) Vec<Arc<Guest>>);

/// How much a hook may return.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a payload: the server's `max_payload`.
    pub payload: usize,
    /// Bytes of a subject without its prefix.
    pub tail: usize,
    /// Whether a subject may be the prefix itself.
    pub no_tail: bool,
}

impl Limits {
    /// Those of a server that takes `payload` bytes, for what is republished on `relayed`.
    #[must_use]
    pub fn new(payload: usize, relayed: &Subjects) -> Self {
        let tail = MAX_SUBJECT_BYTES - relayed.to_string().len() - 1;
        Self { payload, tail, no_tail: matches!(relayed, Subjects::Exact(_)) }
    }
}

/// What the hooks made of a message.
#[derive(Debug)]
pub struct Shaped {
    /// The body of the webhook call.
    pub body: Bytes,
    /// Headers of the webhook call that take the place of the message's.
    pub headers: HeaderMap,
    /// The payload to be republished.
    pub payload: Bytes,
    /// Where to, below the relayed prefix or subject.
    pub tail: String,
}

impl Shaped {
    /// What is relayed without plugins: the message as it is.
    pub(crate) fn unchanged(message: &Message, tail: &str) -> Self {
        Self {
            body: message.payload.clone(),
            headers: HeaderMap::new(),
            payload: message.payload.clone(),
            tail: tail.to_owned(),
        }
    }
}

/// One call of a hook.
pub(crate) struct HookCall<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) hook: Hook,
    pub(crate) elapsed: Duration,
}

impl Chain {
    /// Compiles and rehearses all plugins; `sink` makes the place where each one's output goes.
    pub(crate) async fn load(
        files: &[files::File],
        settings: &[Setting],
        host: &Arc<Host>,
        sink: impl Fn(Arc<str>) -> Sink,
    ) -> anyhow::Result<Self> {
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        let (settings, strange) = files::assign(settings, &names);
        for setting in strange {
            warn!(
                variable = format!("PLUGIN_{}", setting.name),
                "the variable belongs to none of the plugins ({})",
                names.join(", ")
            );
        }
        let mut guests = Vec::new();
        let mut mistakes = Vec::new();
        for (file, settings) in files.iter().zip(settings) {
            let setup = Setup {
                config: settings
                    .iter()
                    .map(|(key, setting)| ((*key).to_owned(), setting.value.expose().to_owned()))
                    .collect(),
                hide: Hide::new(
                    settings
                        .iter()
                        .filter(|(key, setting)| is_secret(key, setting))
                        .map(|(_, setting)| setting.value.clone()),
                ),
                sink: sink(file.name.as_str().into()),
            };
            match Guest::load(file, setup, host).await {
                Ok(guest) => guests.push(guest),
                Err(error) => mistakes.push(format!("plugin {}: {error:#}", file.path.display())),
            }
        }
        anyhow::ensure!(mistakes.is_empty(), "{}", mistakes.join("; "));
        Ok(Self(guests))
    }

    /// Shows every counter of these plugins from the start on.
    pub(super) fn expect(&self, observer: &Observer) {
        let kinds = Kind::ALL.map(Kind::name);
        for guest in &self.0 {
            for hook in &guest.hooks {
                observer.metrics().expect_hook(&guest.name, hook.name(), &kinds);
            }
        }
    }

    /// All hooks in their order, each through all plugins that have it.
    pub(crate) async fn shape(
        &self,
        message: &Arc<Message>,
        tail: &str,
        limits: Limits,
        mut called: impl FnMut(&HookCall<'_>),
    ) -> Result<Shaped, Stopped> {
        let mut shaped = Shaped::unchanged(message, tail);
        for hook in Hook::ALL {
            for guest in self.0.iter().filter(|guest| guest.hooks.contains(&hook)) {
                let began = Instant::now();
                let output = guest.call(hook, shaped.input(hook, message), limits.payload).await;
                called(&HookCall { guest, hook, elapsed: began.elapsed() });
                let stopped = |why| Stopped { plugin: guest.name.clone(), hook, why };
                let output = output.map_err(stopped)?;
                shaped
                    .take(hook, output, limits)
                    .map_err(|text| stopped(Why::Failed(Kind::Output, guest.printable(&text))))?;
            }
        }
        Ok(shaped)
    }
}

/// Whether a setting is kept out of what its plugin writes and says: its key says so, or it was
/// given as a file.
fn is_secret(key: &str, setting: &Setting) -> bool {
    let key = key.to_uppercase();
    setting.from_file
        || ["SECRET", "TOKEN", "PASSWORD", "API_KEY", "PRIVATE_KEY"]
            .iter()
            .any(|word| key.contains(word))
}

impl Shaped {
    /// What `hook` is to see.
    fn input(&self, hook: Hook, message: &Arc<Message>) -> Input {
        let headers = match hook {
            Hook::WebhookPayload => pairs(&message.headers),
            Hook::WebhookHeaders => {
                let mut pairs = pairs(&message.headers);
                pairs.retain(|(name, _)| !self.headers.contains_key(name));
                pairs.extend(self.headers.iter().map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                }));
                pairs
            }
            Hook::RelayedPayload | Hook::RelayedSubject => {
                pairs(&headers::to_relayed(&message.headers))
            }
        };
        let payload = match hook {
            Hook::WebhookPayload | Hook::WebhookHeaders => self.body.clone(),
            Hook::RelayedPayload | Hook::RelayedSubject => self.payload.clone(),
        };
        Input { message: message.clone(), tail: self.tail.clone(), headers, payload }
    }

    /// Takes over what `hook` returned, if it is allowed.
    fn take(&mut self, hook: Hook, output: Output, limits: Limits) -> Result<(), String> {
        match output {
            Output::Payload(payload) if payload.len() > limits.payload => {
                let limit = limits.payload;
                return Err(format!(
                    "returned {} bytes, the server takes {limit} in one message (max_payload)",
                    payload.len()
                ));
            }
            Output::Payload(payload) if hook == Hook::WebhookPayload => self.body = payload.into(),
            Output::Payload(payload) => self.payload = payload.into(),
            Output::Headers(headers) => {
                // Takes the place of those of the same name.
                self.headers.extend(legal(headers)?);
            }
            Output::Tail(tail) if tail.len() > limits.tail => {
                return Err(format!(
                    "returned a subject of {} bytes, at most {} can be published below the prefix",
                    tail.len(),
                    limits.tail
                ));
            }
            Output::Tail(tail) if tail.is_empty() && limits.no_tail => self.tail = tail,
            Output::Tail(tail) => match subject::check(&tail) {
                Ok(()) => self.tail = tail,
                Err(error) => {
                    return Err(format!("returned the subject {:?}: {error}", output::cut(&tail)));
                }
            },
        }
        Ok(())
    }
}

pub(crate) fn pairs(headers: &async_nats::HeaderMap) -> Vec<(String, String)> {
    let pairs = headers.iter().flat_map(|(name, values)| {
        values.iter().map(|value| (name.to_string(), value.as_str().to_owned()))
    });
    pairs.collect()
}

/// Headers that a plugin set, if all of them may be set. Their values are not shown: they may be
/// keys.
fn legal(set: Vec<(String, Vec<u8>)>) -> Result<HeaderMap, String> {
    let bytes: usize = set.iter().map(|(name, value)| name.len() + value.len()).sum();
    if set.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(format!(
            "returned {} headers of {bytes} bytes, at most {MAX_HEADERS} of {MAX_HEADER_BYTES} \
             bytes can be set",
            set.len()
        ));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in set {
        let shown = output::cut(&name);
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("returned a header whose name is not legal: {shown:?}"))?;
        if headers::is_framing(&name) || headers::is_ours(&name) {
            return Err(format!("returned the header {name}, which only the relay sets"));
        }
        let value = HeaderValue::from_bytes(&value)
            .map_err(|_| format!("returned the header {name} with a value that is not legal"))?;
        headers.append(name, value);
    }
    Ok(headers)
}
