//! JetStream: the API that a stream and its consumer are managed with (ADR-1, ADR-31).
//!
//! Requests and answers are JSON and stay so here: what an operator or a newer server has set
//! in a configuration is passed on as it is.

use crate::nats::link::Link;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, RequestErrorKind};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the API's subjects begin with where nobody has said otherwise.
pub(crate) const OWN: &str = "$JS.API";
/// How long an answer may take; a cluster without a leader gives none.
const ANSWER: Duration = Duration::from_secs(5);

/// The API through the connection in use. Clones share it.
#[derive(Clone)]
pub(crate) struct Api {
    link: Link,
    prefix: Arc<str>,
    context: Arc<Mutex<Option<(u64, Context)>>>,
}

/// Why a request to the API came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nobody listens where the API should be.
    #[error(
        "JetStream is not enabled: start nats-server with -js, or put jetstream {{}} into its \
         configuration (asked {0})"
    )]
    Off(String),
    /// The user may not ask.
    #[error("the NATS user may not publish on {0}: grant it to the user")]
    Denied(String),
    /// The server said no.
    #[error("{description} (JetStream error {code})")]
    Refused {
        /// The server's number for it (`err_code`).
        code: u64,
        description: String,
    },
    /// There was no answer, or none that can be understood.
    #[error("JetStream does not answer ({0})")]
    NoAnswer(String),
}

impl ApiError {
    /// JetStream's number for what happened.
    pub(crate) fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the same request may succeed a moment later: the cluster is busy with itself.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            // No quorum, not leader, temporarily unavailable, insufficient resources.
            Self::Refused { code, .. } => {
                [10_003, 10_004, 10_006, 10_007, 10_008, 10_009, 10_023, 10_074].contains(code)
            }
            Self::Off(_) | Self::Denied(_) => false,
        }
    }
}

impl Api {
    /// The API of the user's own account, to which what is published belongs, where that of the
    /// stream begins with `prefix`.
    pub(crate) fn of_account(prefix: &str, link: &Link) -> Self {
        let is_imported = !prefix.starts_with("$JS.");
        Self::new(if is_imported { OWN } else { prefix }, link)
    }

    /// The API whose subjects begin with `prefix`: that of a domain, or of the account that a
    /// stream is imported from.
    pub(crate) fn new(prefix: &str, link: &Link) -> Self {
        Self { link: link.clone(), prefix: prefix.into(), context: Arc::default() }
    }

    /// The client library's view of JetStream, through the client in use.
    pub(crate) async fn context(&self) -> Context {
        let (number, client) = self.link.client().await;
        let mut current = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((of, context)) if *of == number => context.clone(),
            _ => {
                let context = ContextBuilder::new()
                    .api_prefix(self.prefix.as_ref())
                    .timeout(ANSWER)
                    .build(client);
                *current = Some((number, context.clone()));
                context
            }
        }
    }

    /// The largest message that the server takes, in bytes.
    pub(crate) async fn max_payload(&self) -> usize {
        self.link.client().await.1.max_payload()
    }

    /// Whether the server can let one client of a group work at a time (ADR-42).
    pub(crate) async fn knows_priorities(&self) -> bool {
        self.link.client().await.1.is_server_compatible(2, 11, 0)
    }

    /// The whole subject of a request.
    pub(crate) fn subject(&self, request: &str) -> String {
        [self.prefix.as_ref(), ".", request].concat()
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// What the server answered instead, or that it did not.
    pub(crate) async fn call(&self, request: &str, body: &Value) -> Result<Value, ApiError> {
        let context = self.context().await;
        let (subject, mapped) = (self.subject(request), format!("{OWN}.{request}"));
        let asked = context.request::<_, _, Value>(request.to_owned(), body);
        let mut answer = tokio::select! {
            answer = asked => answer.map_err(|error| match error.kind() {
                RequestErrorKind::NoResponders => ApiError::Off(subject),
                _ => ApiError::NoAnswer(error.to_string()),
            })?,
            () = self.link.publish_denied(&subject) => return Err(ApiError::Denied(subject)),
            // On a server of the domain itself the subject is mapped first.
            () = self.link.publish_denied(&mapped) => return Err(ApiError::Denied(mapped)),
        };
        match answer.get_mut("error").map(Value::take) {
            None => Ok(answer),
            Some(error) => Err(ApiError::Refused {
                code: number(&error, "/err_code"),
                description: error
                    .get("description")
                    .and_then(Value::as_str)
                    .unwrap_or("no description")
                    .to_owned(),
            }),
        }
    }
}

/// The number at `pointer` (RFC 6901); 0 where there is none, as Go leaves zeros out.
pub(crate) fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// The text at `pointer` (RFC 6901); empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The texts of the list at `pointer` (RFC 6901).
pub(crate) fn texts<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}
