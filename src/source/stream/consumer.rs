//! The stream and the durable consumer: found, checked, made or changed to what relaying needs.
//!
//! A consumer is never weakened: what this module changes makes it keep a promise, and each
//! change is said. What would make it another consumer (its subjects, how it acknowledges) is
//! refused with what to do about it.

use crate::nats::ack;
use crate::nats::jetstream::{self, Api, ApiError, number, text, texts};
use crate::nats::round_trip::RoundTrips;
use crate::subject::{Subjects, covers, meets};
use anyhow::bail;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime};
use tracing::{info, warn};

/// The priority group of replicas of which one works at a time (ADR-42).
const GROUP: &str = "relay";
/// How long the active replica may be silent before another takes over.
pub(crate) const PINNED: Duration = Duration::from_secs(3);
/// How long a message may be silent before it is delivered again, where one replica works at a
/// time.
const ACK_WAIT: Duration = Duration::from_secs(3);
/// The same where replicas share the work: a replica that is slow must not see its messages
/// given to another.
const ACK_WAIT_SHARED: Duration = Duration::from_secs(10);

/// JetStream's error numbers that mean something here (`err_code`).
mod code {
    pub(super) const CONSUMER_NOT_FOUND: u64 = 10_014;
    pub(super) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10_039;
    pub(super) const STREAM_NOT_FOUND: u64 = 10_059;
    pub(super) const NOT_ENABLED: u64 = 10_076;
    pub(super) const WORK_QUEUE_IS_FOR_ALL: u64 = 10_101;
    pub(super) const CONSUMER_ALREADY_EXISTS: u64 = 10_148;
}

/// The consumer's name unless something else is said.
pub(crate) const CONSUMER: &str = "nats-webhook-relay";

/// The stream to read from, and how.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) consumer: String,
    /// Where a new consumer starts.
    pub(crate) deliver: Deliver,
    /// Whether to create the stream when it is missing.
    pub(crate) create: bool,
    /// Whether replicas work side by side.
    pub(crate) share: bool,
    /// What the subjects of the JetStream API begin with.
    pub(crate) api_prefix: String,
}

impl Settings {
    /// Whether the stream is in another domain or account, which can be out of reach for a while.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.api_prefix != jetstream::OWN
    }
}

/// Where a new consumer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deliver {
    /// With what is published from now on.
    New,
    /// With the oldest message of the stream.
    All,
    /// With the newest message of each subject.
    LastPerSubject,
    /// With what was published within this time.
    Within(Duration),
}

/// A durable pull consumer and its stream.
#[derive(Clone)]
pub(crate) struct Consumer {
    /// What it is managed with.
    pub(crate) api: Api,
    pub(crate) settings: Settings,
    filter: String,
    pending: usize,
}

/// Where a consumer that has to be made begins.
#[derive(Debug, Clone)]
pub(crate) enum Start {
    /// As `NATS_DELIVER` says.
    Configured,
    /// Where the one before was.
    At {
        /// The sequence in the stream.
        sequence: u64,
        /// When that stream was made. In another one it is the first message to begin with.
        of: String,
    },
}

/// What the consumer has turned out to be.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    /// The priority group to pull for; `None` where replicas share the work.
    pub(crate) group: Option<&'static str>,
    /// How long a message may be silent before it is delivered again.
    pub(crate) ack_wait: Duration,
    /// When the stream was made: another time means another stream.
    pub(crate) stream_created: String,
    /// When the consumer was made.
    pub(crate) created: String,
}

/// What the server says about the consumer at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerState {
    pub(crate) created: String,
    /// The highest sequence in the stream that was delivered.
    pub(crate) delivered: u64,
    /// The consumer's own count of deliveries.
    pub(crate) deliveries: u64,
    /// All up to this sequence in the stream is settled.
    pub(crate) floor: u64,
    /// Messages delivered and not settled.
    pub(crate) unsettled: u64,
    /// Messages that wait in the stream.
    pub(crate) waiting: u64,
    /// Whether somebody has paused it.
    pub(crate) paused: bool,
    /// Who works, where one replica does.
    pub(crate) pinned: Option<String>,
}

/// Why there is no consumer to read from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetUpError {
    /// The request in question came to nothing.
    #[error("cannot {doing}: {error}")]
    Api {
        doing: String,
        /// What came back.
        error: ApiError,
    },
    /// There is no stream, and what to do about it.
    #[error("{0}")]
    Missing(String),
    /// What is there does not fit, and what to do about it.
    #[error("{0}")]
    Misfit(String),
}

impl SetUpError {
    /// Whether another try may succeed without anybody doing anything.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Api { error, .. } if error.is_passing())
    }
}

impl SetUpError {
    /// Whether nobody listens where the API should be.
    pub(crate) fn is_off(&self) -> bool {
        matches!(self, Self::Api { error: ApiError::Off(_), .. })
    }
}

impl Consumer {
    /// The consumer that `settings` name, for what `listen` covers; at most `pending` messages
    /// of it are unsettled where one replica works at a time.
    pub(crate) fn new(api: Api, settings: &Settings, listen: &Subjects, pending: usize) -> Self {
        Self { api, settings: settings.clone(), filter: listen.pattern(), pending }
    }

    /// Finds or makes the stream and the consumer.
    ///
    /// # Errors
    /// When one is missing, does not fit, or may not be touched.
    pub(crate) async fn set_up(&self, start: Start) -> Result<Made, SetUpError> {
        let stream = self.stream(self.settings.create).await?;
        let stream_created = text(&stream, "/created").to_owned();
        let consumer = match self.find().await? {
            None => self.make(start, &stream_created).await?,
            Some(found) => self.fit(found).await?,
        };
        let made = made(&consumer, stream_created);
        if made.group.is_none() && !self.settings.share {
            warn!(
                consumer = self.settings.consumer,
                "this nats-server is older than 2.11 and cannot let one replica work at a time: \
                 replicas share the work, \
                 and order per subject holds within each only"
            );
        }
        Ok(made)
    }

    /// Takes the consumer as it is now: a replica with another configuration has changed it.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) async fn adopt(&self) -> Result<Made, SetUpError> {
        let stream = self.stream(false).await?;
        let found = self.find().await?.unwrap_or_default();
        warn!(
            stream = self.settings.name,
            consumer = self.settings.consumer,
            "the consumer was changed; going on as it is now"
        );
        Ok(made(&found, text(&stream, "/created").to_owned()))
    }

    /// Whether the user may ask for messages and acknowledge them.
    ///
    /// # Errors
    /// Names the subject that is denied.
    pub(crate) async fn may_be_used(&self, round_trips: &RoundTrips) -> anyhow::Result<()> {
        let next = self.next();
        if !round_trips.may_publish(next.clone()).await {
            bail!("the NATS user may not publish on {next}: grant it to the user");
        }
        // In one of its two forms; which one is used, the server decides.
        let Settings { name, consumer, .. } = &self.settings;
        let [old, new] = ack::probes(name, consumer);
        if !round_trips.may_publish(old).await && !round_trips.may_publish(new).await {
            bail!(
                "the NATS user may not publish on $JS.ACK.{name}.{consumer}.>: grant it to the user"
            );
        }
        Ok(())
    }

    /// As [`Self::set_up`], but makes and changes nothing. Returns what would be done.
    ///
    /// # Errors
    /// When the stream is missing, or what is there does not fit.
    pub(crate) async fn check(&self) -> Result<&'static str, SetUpError> {
        match self.stream(false).await {
            Err(SetUpError::Missing(_)) if self.settings.create => {
                return Ok("would be created with it");
            }
            stream => drop(stream?),
        }
        let Some(found) = self.find().await? else { return Ok("would be created") };
        let (_, changes) = self.fitted(&found, self.needed().await)?;
        Ok(if changes.is_empty() { "exists" } else { "would be changed" })
    }

    /// What the server says about the consumer now.
    ///
    /// # Errors
    /// See [`ApiError`]; [`Self::is_missing`] tells when it has to be made.
    pub(crate) async fn state(&self) -> Result<ConsumerState, ApiError> {
        let info = self.api.call(&self.request("INFO"), &json!({})).await?;
        let pinned = text(&info, "/priority_groups/0/pinned_client_id");
        Ok(ConsumerState {
            created: text(&info, "/created").to_owned(),
            delivered: number(&info, "/delivered/stream_seq"),
            deliveries: number(&info, "/delivered/consumer_seq"),
            floor: number(&info, "/ack_floor/stream_seq"),
            unsettled: number(&info, "/num_ack_pending"),
            waiting: number(&info, "/num_pending"),
            paused: info.get("paused").and_then(Value::as_bool).unwrap_or(false),
            pinned: (!pinned.is_empty()).then(|| pinned.to_owned()),
        })
    }

    /// Whether `error` says that the consumer, or its stream, is not there.
    pub(crate) fn is_missing(error: &ApiError) -> bool {
        matches!(error.code(), Some(code::CONSUMER_NOT_FOUND | code::STREAM_NOT_FOUND))
    }

    /// The subject that pull requests go to.
    pub(crate) fn next(&self) -> String {
        let Settings { name, consumer, .. } = &self.settings;
        self.api.subject(&format!("CONSUMER.MSG.NEXT.{name}.{consumer}"))
    }

    /// Lets another replica take over at once. Without the permission it does so a little later.
    pub(crate) async fn unpin(&self) {
        let _ = self.api.call(&self.request("UNPIN"), &json!({ "group": GROUP })).await;
    }

    /// The next message of the consumer's subjects at or above `sequence`, as the stream keeps it.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub(crate) async fn stored(&self, sequence: u64) -> Result<Option<Value>, ApiError> {
        const NOT_FOUND: u64 = 10_037;
        let asked = json!({ "seq": sequence, "next_by_subj": self.filter });
        match self.api.call(&format!("STREAM.MSG.GET.{}", self.settings.name), &asked).await {
            Ok(answer) => Ok(answer.get("message").cloned()),
            Err(error) if error.code() == Some(NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn request(&self, verb: &str) -> String {
        let Settings { name, consumer, .. } = &self.settings;
        format!("CONSUMER.{verb}.{name}.{consumer}")
    }

    /// The stream, which must capture what is listened to.
    async fn stream(&self, create: bool) -> Result<Value, SetUpError> {
        let (name, filter) = (&self.settings.name, &self.filter);
        let found = match self.api.call(&format!("STREAM.INFO.{name}"), &json!({})).await {
            Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) && create => {
                return self.make_stream().await.map_err(|error| SetUpError::Api {
                    doing: format!("create the stream {name}"),
                    error,
                });
            }
            found => found,
        };
        let stream = found.map_err(|error| match error.code() {
            Some(code::STREAM_NOT_FOUND) => SetUpError::Missing(format!(
                "the stream {name} (NATS_STREAM) does not exist; create it with\n    \
                 nats stream add {name} --subjects '{filter}' --storage file --defaults\n\
                 or, for development, set NATS_STREAM_CREATE=true"
            )),
            Some(code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT) => SetUpError::Misfit(
                "JetStream is not enabled for this NATS account: add jetstream to it in the \
                 server's configuration, or with\n    nsc edit account --js-disk-storage 1G"
                    .to_owned(),
            ),
            _ => {
                let doing = format!("look at the stream {name} (NATS_STREAM)");
                SetUpError::Api { doing, error }
            }
        })?;
        // A mirror or a stream with sources has messages of subjects that it does not capture.
        let is_fed =
            stream.pointer("/config/mirror").or(stream.pointer("/config/sources")).is_some();
        if !is_fed && !texts(&stream, "/config/subjects").any(|subjects| covers(subjects, filter)) {
            let subjects: Vec<_> = texts(&stream, "/config/subjects").collect();
            if !subjects.iter().any(|subjects| meets(subjects, filter)) {
                let variable =
                    if filter.ends_with('>') { "NATS_SUBJECT_PREFIX" } else { "NATS_SUBJECT" };
                return Err(SetUpError::Misfit(format!(
                    "the stream {name} (NATS_STREAM) does not capture {filter} \
                     ({variable}), only {}; add it with\n    \
                     nats stream edit {name} --subjects '{}'",
                    subjects.join(" "),
                    [subjects.as_slice(), &[filter]].concat().join(",")
                )));
            }
            warn!(
                stream = name,
                subjects = subjects.join(" "),
                "the stream captures only a part of {filter}: the rest is not relayed"
            );
        }
        Ok(stream)
    }

    /// A stream with limits for development: a day, 256 MiB.
    async fn make_stream(&self) -> Result<Value, ApiError> {
        let name = &self.settings.name;
        let config = json!({
            "name": name,
            "subjects": [self.filter],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "max_age": nanoseconds(Duration::from_secs(24 * 3600)),
            "max_bytes": 256 << 20,
            "num_replicas": 1,
        });
        let made = self.api.call(&format!("STREAM.CREATE.{name}"), &config).await?;
        warn!(
            stream = name,
            subjects = self.filter,
            "created the missing stream (NATS_STREAM_CREATE): it keeps messages for a day, up to \
             256 MiB"
        );
        Ok(made)
    }

    async fn find(&self) -> Result<Option<Value>, SetUpError> {
        match self.api.call(&self.request("INFO"), &json!({})).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.code() == Some(code::CONSUMER_NOT_FOUND) => Ok(None),
            Err(error) => Err(self.failed("look at", error)),
        }
    }

    async fn make(&self, start: Start, stream_created: &str) -> Result<Value, SetUpError> {
        let mut config = self.needed().await;
        config.insert("durable_name".into(), json!(self.settings.consumer));
        config.insert("name".into(), json!(self.settings.consumer));
        config.insert("description".into(), json!("made by nats-webhook-relay"));
        config.insert("replay_policy".into(), json!("instant"));
        let (policy, option) = match (&start, self.settings.deliver) {
            (Start::At { of, .. }, _) if of != stream_created => ("all", None),
            (Start::At { sequence, .. }, _) => {
                ("by_start_sequence", Some(("opt_start_seq", json!(sequence))))
            }
            (Start::Configured, Deliver::New) => ("new", None),
            (Start::Configured, Deliver::All) => ("all", None),
            (Start::Configured, Deliver::LastPerSubject) => ("last_per_subject", None),
            (Start::Configured, Deliver::Within(age)) => {
                let time = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
                (
                    "by_start_time",
                    Some((
                        "opt_start_time",
                        json!(humantime::format_rfc3339_nanos(time).to_string()),
                    )),
                )
            }
        };
        config.insert("deliver_policy".into(), json!(policy));
        config.extend(option.map(|(name, value)| (name.to_owned(), value)));
        let mut created = self.write(&config, "create").await;
        if matches!(&created, Err(error) if error.code() == Some(code::WORK_QUEUE_IS_FOR_ALL))
            && matches!(start, Start::At { .. })
        {
            // What is settled is no more in a work queue.
            config.remove("opt_start_seq");
            config.insert("deliver_policy".into(), json!("all"));
            created = self.write(&config, "create").await;
        }
        match created {
            Ok(made) => {
                info!(
                    stream = self.settings.name,
                    consumer = self.settings.consumer,
                    deliver = policy,
                    "created the consumer"
                );
                Ok(made)
            }
            // Another replica was faster.
            Err(error) if error.code() == Some(code::CONSUMER_ALREADY_EXISTS) => {
                self.find().await?.ok_or_else(|| self.failed("create", error))
            }
            Err(error) if error.code() == Some(code::WORK_QUEUE_IS_FOR_ALL) => {
                Err(SetUpError::Misfit(format!(
                    "the stream {} is a work queue: set NATS_DELIVER=all",
                    self.settings.name
                )))
            }
            Err(error) => Err(self.failed("create", error)),
        }
    }

    /// Changes what `found` lacks.
    async fn fit(&self, found: Value) -> Result<Value, SetUpError> {
        let (config, changes) = self.fitted(&found, self.needed().await)?;
        if changes.is_empty() {
            return Ok(found);
        }
        let changes = changes.join(", ");
        let changed = self
            .write(&config, "update")
            .await
            .map_err(|error| self.failed(&format!("change {changes} of"), error))?;
        warn!(
            stream = self.settings.name,
            consumer = self.settings.consumer,
            changes,
            "changed the consumer to what the relay needs"
        );
        Ok(changed)
    }

    /// The configuration of `found` with what the relay needs, and what differs.
    fn fitted(
        &self,
        found: &Value,
        needed: Map<String, Value>,
    ) -> Result<(Map<String, Value>, Vec<String>), SetUpError> {
        let Settings { name, consumer, .. } = &self.settings;
        let misfit = |what: &str| {
            SetUpError::Misfit(format!(
                "the consumer {consumer} of the stream {name} {what}: set NATS_CONSUMER to \
                 another name, or remove it with\n    \
                 nats consumer rm {name} {consumer}"
            ))
        };
        let mut config =
            found.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
        let subjects: Vec<_> = texts(found, "/config/filter_subjects")
            .chain(config.get("filter_subject").and_then(Value::as_str))
            .collect();
        if subjects != [self.filter.as_str()] {
            let theirs = if subjects.is_empty() { ">".to_owned() } else { subjects.join(" ") };
            return Err(misfit(&format!(
                "is for {theirs}, not for {} (NATS_SUBJECT_PREFIX)",
                self.filter
            )));
        }
        if config.contains_key("deliver_subject") {
            return Err(misfit("is a push consumer; the relay pulls"));
        }
        if text(found, "/config/ack_policy") != "explicit" {
            return Err(misfit("does not acknowledge each message (ack policy explicit)"));
        }
        let mut changes = Vec::new();
        for (field, value) in needed {
            // What is nothing, the server leaves out.
            let absent = [json!(0), json!(false), json!([]), json!("none")].contains(&value);
            let old = config.get(&field).cloned();
            if old.as_ref() == Some(&value) || (absent && old.is_none()) {
                continue;
            }
            changes.push(format!(
                "{field} {} -> {}",
                shown(&field, old.as_ref()),
                shown(&field, Some(&value))
            ));
            config.insert(field, value);
        }
        Ok((config, changes))
    }

    /// What the consumer has to be for the relay to keep its promises.
    async fn needed(&self) -> Map<String, Value> {
        let pinned = !self.settings.share && self.api.knows_priorities().await;
        let (ack_wait, pending) =
            if pinned { (ACK_WAIT, json!(self.pending)) } else { (ACK_WAIT_SHARED, json!(-1)) };
        let (policy, groups, timeout) = if pinned {
            ("pinned_client", json!([GROUP]), PINNED)
        } else {
            ("none", json!([]), Duration::ZERO)
        };
        let needed = json!({
            "filter_subject": self.filter,
            "ack_policy": "explicit",
            "ack_wait": nanoseconds(ack_wait),
            "backoff": [],
            "headers_only": false,
            "inactive_threshold": 0,
            "max_ack_pending": pending,
            "max_batch": 0,
            "max_bytes": 0,
            "max_deliver": -1,
            "max_expires": 0,
            "priority_groups": groups,
            "priority_policy": policy,
            "priority_timeout": nanoseconds(timeout),
        });
        match needed {
            Value::Object(needed) => needed,
            _ => Map::new(),
        }
    }

    async fn write(&self, config: &Map<String, Value>, action: &str) -> Result<Value, ApiError> {
        let mut config = config.clone();
        // What the server adds by itself.
        if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|name, _| !name.starts_with("_nats."));
        }
        let asked =
            json!({ "stream_name": self.settings.name, "config": config, "action": action });
        self.api.call(&format!("{}.{}", self.request("CREATE"), self.filter), &asked).await
    }

    fn failed(&self, doing: &str, error: ApiError) -> SetUpError {
        let Settings { name, consumer, .. } = &self.settings;
        SetUpError::Api {
            doing: format!("{doing} the consumer {consumer} of the stream {name}"),
            error,
        }
    }
}

/// What a consumer with this information is.
fn made(consumer: &Value, stream_created: String) -> Made {
    Made {
        group: (text(consumer, "/config/priority_policy") == "pinned_client").then_some(GROUP),
        ack_wait: Duration::from_nanos(number(consumer, "/config/ack_wait"))
            .max(Duration::from_millis(100)),
        stream_created,
        created: text(consumer, "/created").to_owned(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A field of a consumer's configuration for a person.
fn shown(field: &str, value: Option<&Value>) -> String {
    match value {
        None => "unset".to_owned(),
        Some(value)
            if ["ack_wait", "inactive_threshold", "max_expires", "priority_timeout"]
                .contains(&field) =>
        {
            humantime::format_duration(Duration::from_nanos(value.as_u64().unwrap_or(0)))
                .to_string()
        }
        Some(value) => value.to_string(),
    }
}
