//! What becomes of a message: relayed, rejected by a plugin, given back, or failed with a reason.
//!
//! Everything that the outside sees of a failure is here: its reason label in metrics and logs,
//! its text, and the headers that the failed subject carries.

use crate::headers::reason;
use crate::message::{End, Message};
use crate::nats::publisher::{Confirmed, PublishFailure};
use crate::observe::event::Steps;
use crate::plugin::{Hook, Stopped, Why};
use crate::subject::MAX_SUBJECT_BYTES;
use crate::webhook::Undelivered;
use async_nats::HeaderMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::SystemTime;

/// What became of a message.
pub(crate) enum Outcome {
    /// It was republished, and the server has confirmed that.
    Relayed(Confirmed, Steps),
    /// A plugin decided that it is not relayed, which is no failure.
    Rejected {
        plugin: Arc<str>,
        hook: Hook,
        reason: String,
    },
    /// Its stream delivers it again, to this process or another one.
    GivenBack,
    Failed(Failure),
}

/// Why a message was not relayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Oversize(Oversize),
    /// The client library cannot read it.
    #[error("{0}, so that NATS clients cannot read the message")]
    Unreadable(&'static str),
    #[error("{0}")]
    Plugin(Stopped),
    #[error("{0}")]
    Webhook(Undelivered),
    /// It was accepted and could not be republished.
    #[error("accepted by the webhook, but not republished: {0}")]
    Publish(#[source] PublishFailure),
    #[error("the relay was stopped before the message was relayed")]
    Shutdown,
    #[error("the relay failed on this message; please report it")]
    Bug,
}

/// Why a message cannot be republished at all.
#[derive(Debug, thiserror::Error)]
pub enum Oversize {
    #[error(
        "the relayed message would have {size} bytes with its headers, the server takes {limit} \
         (max_payload)"
    )]
    Message { size: usize, limit: usize },
    #[error(
        "the relayed subject would have {0} bytes, at most {MAX_SUBJECT_BYTES} can be published"
    )]
    Subject(usize),
}

impl Outcome {
    pub(crate) fn end(&self) -> End {
        match self {
            Self::Relayed(..) => End::Relayed,
            Self::Rejected { .. } => End::Rejected,
            Self::GivenBack => End::GivenBack,
            Self::Failed(_) => End::Failed,
        }
    }
}

impl From<Stopped> for Outcome {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped { plugin, hook, why: Why::Rejected(reason) } => {
                Self::Rejected { plugin, hook, reason }
            }
            stopped => Self::Failed(Failure::Plugin(stopped)),
        }
    }
}

impl From<Oversize> for Outcome {
    fn from(oversize: Oversize) -> Self {
        Self::Failed(Failure::Oversize(oversize))
    }
}

impl Failure {
    /// Every reason, so that each is counted from zero.
    pub(crate) const REASONS: [&str; 7] =
        ["unreadable", "plugin", "webhook", "too_large", "publish", "shutdown", "bug"];

    /// Its kind in metrics, logs and headers.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Plugin(_) => "plugin",
            Self::Webhook(_) => "webhook",
            Self::Oversize(_) => "too_large",
            Self::Publish(_) => "publish",
            Self::Shutdown => "shutdown",
            Self::Bug => "bug",
        }
    }

    /// The headers that say on the failed subject why `message` was not relayed.
    pub(crate) fn headers(&self, message: &Message) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &dyn Display| {
            headers.append(name, one_line(&value.to_string()));
        };
        add(reason::SUBJECT, &message.subject);
        add(reason::ID, &message.id);
        add(reason::REASON, &self.reason());
        add(reason::ERROR, self);
        add(reason::TIME, &humantime::format_rfc3339_millis(SystemTime::now()));
        match self {
            Self::Webhook(Undelivered(refusals)) => {
                for refusal in refusals {
                    add(reason::DESTINATION, &refusal.destination);
                    match refusal.status {
                        Some(status) => add(reason::STATUS, &status.as_u16()),
                        None => add(reason::STATUS, &"none"),
                    }
                    add(reason::ATTEMPTS, &refusal.attempts);
                    add(reason::DESTINATION_ERROR, &refusal.error);
                }
            }
            Self::Plugin(Stopped { plugin, hook, .. }) => {
                add(reason::PLUGIN, plugin);
                add(reason::HOOK, hook);
            }
            _ => {}
        }
        headers
    }
}

/// A text without what a NATS header cannot hold.
fn one_line(text: &str) -> String {
    text.replace(|character: char| character.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Id;
    use crate::plugin::Kind;

    #[test]
    fn a_rejection_is_no_failure_and_every_failure_has_a_listed_reason() {
        let stopped = |why| Stopped { plugin: "p".into(), hook: Hook::WebhookPayload, why };
        let rejected = Outcome::from(stopped(Why::Rejected("no".to_owned())));
        assert_eq!(rejected.end(), End::Rejected);
        let message = Message::new("a.b", HeaderMap::new(), "".into(), Id::unique());
        for failure in [
            Failure::Oversize(Oversize::Subject(5000)),
            Failure::Unreadable("its headers are not UTF-8"),
            Failure::Plugin(stopped(Why::Failed(Kind::Trap, "a\r\nb".to_owned()))),
            Failure::Webhook(Undelivered(Vec::new())),
            Failure::Shutdown,
            Failure::Bug,
        ] {
            assert!(Failure::REASONS.contains(&failure.reason()), "{failure}");
            let headers = failure.headers(&message);
            let header = |name| headers.get(name).map(|value| value.as_str().to_owned());
            assert_eq!(header(reason::REASON).as_deref(), Some(failure.reason()));
            assert_eq!(header(reason::ERROR), Some(one_line(&failure.to_string())));
            assert_eq!(header(reason::PLUGIN).is_some(), failure.reason() == "plugin");
        }
    }
}
