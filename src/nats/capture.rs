//! Which of the subjects that the relay publishes on are captured by a stream.
//!
//! A stream says by itself that it has a message (a PubAck), which proves more than a round
//! trip does: that the message is kept, and by a quorum where the stream has replicas.

use crate::nats::jetstream::{Api, ApiError, number, text, texts};
use crate::subject::{covers, meets};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::{debug, warn};

/// The captured ones among some subjects. Clones share them.
#[derive(Clone)]
pub(crate) struct Capture {
    api: Api,
    /// What the relay publishes on, with a wildcard at the end.
    published: Arc<[String]>,
    captured: Arc<Mutex<Vec<Captured>>>,
}

/// Subjects, perhaps with wildcards, and the stream that captures them.
struct Captured {
    subjects: String,
    stream: Arc<str>,
}

impl Capture {
    /// Nothing is known yet about the subjects `published`.
    pub(crate) fn new(api: Api, published: Vec<String>) -> Self {
        Self { api, published: published.into(), captured: Arc::default() }
    }

    /// Asks which streams there are. Where that is not possible, it is said, and none count.
    ///
    /// # Errors
    /// When there is no answer; what was known stays.
    pub(crate) async fn find(&self) -> Result<(), ApiError> {
        let mut captured = Vec::new();
        for published in self.published.iter() {
            let mut offset = 0;
            loop {
                let page = match self
                    .api
                    .call("STREAM.LIST", &json!({ "subject": published, "offset": offset }))
                    .await
                {
                    Err(ApiError::Denied(subject)) => {
                        warn!(
                            subject,
                            "the NATS user may not list streams: what is published is confirmed \
                             by a round trip, not by a stream"
                        );
                        return Ok(());
                    }
                    // The account has no streams.
                    Err(error) if !error.is_passing() => {
                        debug!(%error, "no streams in the user's own account");
                        return Ok(());
                    }
                    page => page?,
                };
                let streams = page
                    .get("streams")
                    .and_then(Value::as_array)
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                for stream in streams
                    .iter()
                    .filter(|stream| stream.pointer("/config/no_ack") != Some(&json!(true)))
                {
                    let name: Arc<str> = text(stream, "/config/name").into();
                    let subjects = texts(stream, "/config/subjects")
                        .filter(|subjects| meets(subjects, published));
                    captured.extend(subjects.map(|subjects| Captured {
                        subjects: subjects.to_owned(),
                        stream: Arc::clone(&name),
                    }));
                }
                offset += streams.len() as u64;
                if streams.is_empty() || offset >= number(&page, "/total") {
                    break;
                }
            }
        }
        let subjects = captured
            .iter()
            .map(|captured| captured.subjects.as_str())
            .collect::<Vec<_>>()
            .join(" ");
        debug!(subjects, "subjects captured by streams");
        *self.captured() = captured;
        Ok(())
    }

    /// Whether a stream will say that it has what is published on `subject`.
    pub(crate) fn has(&self, subject: &str) -> bool {
        self.captured().iter().any(|captured| covers(&captured.subjects, subject))
    }

    /// Whether it is `stream` that says so.
    pub(crate) fn is_by(&self, stream: &str, subject: &str) -> bool {
        self.captured()
            .iter()
            .any(|captured| *captured.stream == *stream && covers(&captured.subjects, subject))
    }

    fn captured(&self) -> MutexGuard<'_, Vec<Captured>> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
