//! Reading from a stream: what is set up for it, when a message is settled, in which order
//! messages are relayed, and how much of a stream is in the process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::component::{BODY, Component, Folder, reject};
use support::endpoint::{Endpoint, Reply};
use support::held::Held;
use support::nats::NatsServer;
use support::proxy::Proxy;
use support::relay::{self, Relay};
use support::setup::{Setup, header, hpub};
use support::stream::{
    CONSUMER, FAILED, HTTP, JETSTREAM, JetStream, PATIENT, STREAM, complete_and_in_order, number,
    numbers, server, setup,
};
use support::{eventually, signal, subscribe, within};

const ERROR: &str = "\"level\":\"ERROR\"";
const WARN: &str = "\"level\":\"WARN\"";
/// Nothing listens there; what is only set up calls nobody.
const NOBODY: &str = "http://127.0.0.1:9/";
const CREATED: &str = "\"created the consumer\"";
const CHANGED: &str = "\"changed the consumer to what the relay needs\"";

fn nanoseconds(seconds: u64) -> Value {
    json!(seconds * 1_000_000_000)
}

// Stream and consumer

#[tokio::test]
async fn the_consumer_is_made_as_the_relay_needs_it() {
    let (nats, stream) = server().await;
    let relay = Relay::start(&nats.url(), NOBODY, &[STREAM]).await;
    assert_eq!(relay.lines(CREATED).len(), 1);
    let config = stream.consumer().await["config"].clone();
    for (field, value) in [
        ("durable_name", json!(CONSUMER)),
        ("filter_subject", json!("cms.cache.>")),
        ("ack_policy", json!("explicit")),
        ("ack_wait", nanoseconds(3)),
        ("deliver_policy", json!("new")),
        ("max_ack_pending", json!(1000)),
        ("max_deliver", json!(-1)),
        ("priority_groups", json!(["relay"])),
        ("priority_policy", json!("pinned_client")),
        ("priority_timeout", nanoseconds(3)),
    ] {
        assert_eq!(config[field], value, "{field} in {config}");
    }
    for field in [
        "deliver_subject",
        "backoff",
        "headers_only",
        "inactive_threshold",
        "max_batch",
        "max_expires",
        "max_bytes",
    ] {
        assert!(config.get(field).is_none(), "{field} in {config}");
    }
    assert!(relay.lines(WARN).is_empty(), "{:?}", relay.lines(WARN));
}

#[tokio::test]
async fn the_consumer_is_called_and_bounded_as_configured() {
    let (nats, stream) = server().await;
    let variables = [STREAM, ("NATS_CONSUMER", "frontend"), ("NATS_PENDING_MESSAGES", "50")];
    let _relay = Relay::start(&nats.url(), NOBODY, &variables).await;
    let info = stream.call("CONSUMER.INFO.CMS.frontend", json!({})).await;
    assert_eq!(info["config"]["max_ack_pending"], 50);
    assert!(!stream.has_consumer().await);
}

#[tokio::test]
async fn replicas_that_share_need_no_group_and_no_common_bound() {
    let (nats, stream) = server().await;
    let relay = Relay::start(&nats.url(), NOBODY, &[STREAM, ("NATS_REPLICAS_SHARE", "true")]).await;
    let config = stream.consumer().await["config"].clone();
    assert_eq!(
        (&config["ack_wait"], &config["max_ack_pending"]),
        (&nanoseconds(10), &json!(-1)),
        "{config}"
    );
    assert!(
        config.get("priority_groups").is_none()
            && config.get("priority_policy").is_none_or(|policy| policy == "none"),
        "{config}"
    );
    assert!(relay.lines(WARN).is_empty(), "{:?}", relay.lines(WARN));
}

#[tokio::test]
async fn a_missing_stream_is_made_where_that_is_wanted_and_a_second_start_leaves_it() {
    let nats = NatsServer::with_config(JETSTREAM);
    let endpoint = Endpoint::ok().await;
    let create = ("NATS_STREAM_CREATE", "true");
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, create]).await;
    let said = setup.relay.lines("created the missing stream");
    assert!(
        said.len() == 1 && said[0].contains(WARN) && said[0].contains("NATS_STREAM_CREATE"),
        "{said:?}"
    );
    let stream = JetStream::new(&setup.client);
    let made = stream.stream("CMS").await;
    let config = &made["config"];
    assert_eq!(
        (&config["subjects"], &config["storage"]),
        (&json!(["cms.cache.>"]), &json!("file")),
        "{config}"
    );
    assert_eq!(
        (&config["discard"], &config["max_age"], &config["max_bytes"]),
        (&json!("old"), &nanoseconds(86_400), &json!(256 << 20))
    );
    stream.publish("cms.cache.a", "1").await;
    assert_eq!(setup.relayed().await.payload, "1");
    assert!(setup.relay.stop().await.success());

    let relay = Relay::start(&setup.nats.url(), &endpoint.url(), &[STREAM, create]).await;
    assert!(relay.lines("created the").is_empty());
    assert_eq!(stream.stream("CMS").await["created"], made["created"]);
}

#[tokio::test]
async fn a_start_that_cannot_succeed_ends_with_one_error_and_the_command_that_mends_it() {
    let accounts = "accounts { \
        JS { jetstream: enabled, users: [ { user: admin, password: pw } ] }, \
        NONE { users: [ { user: relay, password: pw } ] } }";
    let login = [("NATS_USER", "relay"), ("NATS_PASS", "pw")];
    for (config, subjects, variables, expected) in [
        (
            JETSTREAM,
            None,
            &[][..],
            &[
                "stream CMS (NATS_STREAM) does not exist",
                "nats stream add CMS --subjects 'cms.cache.>'",
                "NATS_STREAM_CREATE=true",
            ][..],
        ),
        (
            JETSTREAM,
            Some(json!(["cms.other.>", "shop.>"])),
            &[],
            &[
                "does not capture cms.cache.> (NATS_SUBJECT_PREFIX)",
                "nats stream edit CMS --subjects 'cms.other.>,shop.>,cms.cache.>'",
            ],
        ),
        ("debug: false", None, &[], &["JetStream is not enabled", "nats-server with -js"]),
        (
            &format!("{JETSTREAM}, {accounts}"),
            None,
            &login,
            &["not enabled for this NATS account", "nsc edit account"],
        ),
    ] {
        let nats = NatsServer::with_config(config);
        if let Some(subjects) = subjects {
            let stream = JetStream::new(&nats.client().await);
            stream.add("CMS", "none", json!({ "subjects": subjects })).await;
        }
        let mut relay = Relay::spawn(&nats.url(), NOBODY, &[&[STREAM], variables].concat());
        assert_eq!(relay.exit().await.code(), Some(1), "{expected:?}");
        let errors = relay.lines(ERROR);
        assert_eq!(errors.len(), 1, "{errors:?}");
        for expected in expected {
            assert!(errors[0].contains(expected), "{expected} is missing in {}", errors[0]);
        }
    }
}

#[tokio::test]
async fn a_stream_that_captures_a_part_of_the_prefix_is_warned_about_and_read() {
    let nats = NatsServer::with_config(JETSTREAM);
    let endpoint = Endpoint::ok().await;
    let stream = JetStream::new(&nats.client().await);
    stream.add("CMS", "cms.cache.article.*", json!({})).await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM]).await;
    let warnings = setup.relay.lines(WARN);
    assert!(
        warnings.len() == 1 && warnings[0].contains("captures only a part of cms.cache.>"),
        "{warnings:?}"
    );
    stream.publish("cms.cache.article.42", "1").await;
    assert_eq!(setup.relayed().await.payload, "1");
    setup.end().await;
}

#[tokio::test]
async fn a_mirror_is_read_though_it_captures_nothing() {
    let nats = NatsServer::with_config(JETSTREAM);
    let endpoint = Endpoint::ok().await;
    let stream = JetStream::new(&nats.client().await);
    stream.add("ORIGIN", "cms.>", json!({})).await;
    let mirror = json!({ "name": "CMS", "storage": "file", "mirror": { "name": "ORIGIN" } });
    stream.call("STREAM.CREATE.CMS", mirror).await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM]).await;
    stream.publish("cms.cache.a", "1").await;
    assert_eq!(setup.relayed().await.payload, "1");
    setup.end().await;
    assert!(setup.relay.lines(WARN).is_empty(), "{:?}", setup.relay.lines(WARN));
}

#[tokio::test]
async fn a_consumer_that_is_something_else_is_left_alone_and_named() {
    for (config, expected) in [
        (
            json!({ "filter_subject": "cms.cache.article.>" }),
            "is for cms.cache.article.>, not for cms.cache.>",
        ),
        (
            json!({ "filter_subject": null, "filter_subjects": ["cms.cache.a", "cms.cache.b"] }),
            "is for cms.cache.a cms.cache.b, not for cms.cache.>",
        ),
        (json!({ "filter_subject": null }), "is for >, not for cms.cache.>"),
        (json!({ "deliver_subject": "push.here" }), "is a push consumer"),
        (json!({ "ack_policy": "none" }), "does not acknowledge each message"),
        (json!({ "ack_policy": "all" }), "does not acknowledge each message"),
    ] {
        let (nats, stream) = server().await;
        let before = stream.add_consumer(config.clone()).await;
        let mut relay = Relay::spawn(&nats.url(), NOBODY, &[STREAM]);
        assert_eq!(relay.exit().await.code(), Some(1), "{config}");
        let errors = relay.lines(ERROR);
        assert_eq!(errors.len(), 1, "{errors:?}");
        for expected in [expected, "nats consumer rm CMS nats-webhook-relay", "NATS_CONSUMER"] {
            assert!(errors[0].contains(expected), "{expected} is missing in {}", errors[0]);
        }
        assert_eq!(stream.consumer().await["config"], before["config"]);
    }
}

#[tokio::test]
async fn a_consumer_that_would_weaken_the_promises_is_changed_and_each_change_is_said_once() {
    let (nats, stream) = server().await;
    let second: u64 = 1_000_000_000;
    let theirs = json!({
        "description": "made by hand", "metadata": { "owner": "web team" }, "num_replicas": 1, "mem_storage": true, "sample_freq": "100",
        "deliver_policy": "all", "ack_wait": 30 * second, "max_deliver": 5, "backoff": [30 * second, 60 * second], "headers_only": true,
        "inactive_threshold": 3600 * second, "max_ack_pending": 7, "max_batch": 3, "max_expires": 2 * second, "max_bytes": 1000,
    });
    let before = stream.add_consumer(theirs).await;
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    let said = setup.relay.lines(CHANGED);
    assert!(said.len() == 1 && said[0].contains(WARN), "{said:?}");
    for change in [
        "ack_wait 30s -> 3s",
        "max_deliver 5 -> -1",
        "backoff [",
        "headers_only true -> false",
        "inactive_threshold 1h -> 0s",
        "max_ack_pending 7 -> 1000",
        "max_batch 3 -> 0",
        "max_expires 2s -> 0s",
        "max_bytes 1000 -> 0",
        "priority_policy unset -> \\\"pinned_client\\\"",
    ] {
        assert!(said[0].contains(change), "{change} is missing in {}", said[0]);
    }
    assert!(!said[0].contains("filter_subject") && !said[0].contains("ack_policy"), "{}", said[0]);
    assert!(setup.relay.lines(CREATED).is_empty());

    let after = stream.consumer().await["config"].clone();
    for field in [
        "description",
        "num_replicas",
        "mem_storage",
        "sample_freq",
        "deliver_policy",
        "filter_subject",
    ] {
        assert_eq!(after[field], before["config"][field], "{field}");
    }
    assert_eq!(after["metadata"]["owner"], "web team");
    assert_eq!(
        (&after["ack_wait"], &after["max_deliver"], &after["max_ack_pending"]),
        (&nanoseconds(3), &json!(-1), &json!(1000))
    );
    for field in
        ["backoff", "headers_only", "inactive_threshold", "max_batch", "max_expires", "max_bytes"]
    {
        assert!(after.get(field).is_none_or(|value| *value == json!([])), "{field} in {after}");
    }
    stream.publish("cms.cache.a", "whole").await;
    assert_eq!(setup.relayed().await.payload, "whole");
    assert!(setup.relay.stop().await.success());

    let again = Relay::start(&setup.nats.url(), &endpoint.url(), &[STREAM]).await;
    assert!(
        again.lines(CHANGED).is_empty()
            && again.lines(CREATED).is_empty()
            && again.lines(WARN).is_empty(),
        "{:?}",
        again.log()
    );
    assert_eq!(stream.consumer().await["config"], after);
}

#[tokio::test]
async fn a_second_start_changes_nothing_and_says_nothing() {
    let (nats, stream) = server().await;
    for share in ["false", "true"] {
        let variables =
            [STREAM, ("NATS_REPLICAS_SHARE", share), ("NATS_CONSUMER", &format!("share-{share}"))];
        let name = format!("CONSUMER.INFO.CMS.share-{share}");
        assert!(Relay::start(&nats.url(), NOBODY, &variables).await.stop().await.success());
        let before = stream.call(&name, json!({})).await;
        let mut relay = Relay::start(&nats.url(), NOBODY, &variables).await;
        assert!(relay.stop().await.success());
        assert!(
            relay.lines("the consumer\"").is_empty() && relay.lines(WARN).is_empty(),
            "{:?}",
            relay.log()
        );
        let after = stream.call(&name, json!({})).await;
        assert_eq!((&after["config"], &after["created"]), (&before["config"], &before["created"]));
    }
}

// Where a new consumer starts

#[tokio::test]
async fn a_new_consumer_starts_where_it_is_told_to_and_an_old_one_goes_on_where_it_was() {
    for (deliver, policy, expected) in [
        (None, "new", &["5"][..]),
        (Some("new"), "new", &["5"]),
        (Some("all"), "all", &["1", "2", "3", "4", "5"]),
        (Some("last-per-subject"), "last_per_subject", &["3", "4", "5"]),
        (Some("6h"), "by_start_time", &["1", "2", "3", "4", "5"]),
    ] {
        let (nats, stream) = server().await;
        for (subject, payload) in
            [("cms.cache.a", "1"), ("cms.cache.b", "2"), ("cms.cache.a", "3"), ("cms.cache.b", "4")]
        {
            stream.publish(subject, payload).await;
        }
        let endpoint = Endpoint::ok().await;
        let variables =
            [&[STREAM][..], deliver.map(|deliver| ("NATS_DELIVER", deliver)).as_slice()].concat();
        let mut setup = Setup::on(nats, &endpoint.url(), &variables).await;
        assert_eq!(stream.consumer().await["config"]["deliver_policy"], policy);
        stream.publish("cms.cache.a", "5").await;
        stream.settled().await;
        let mut relayed = Vec::new();
        for _ in expected {
            relayed.push(setup.relayed().await);
        }
        relayed.sort_by(|a, b| a.payload.cmp(&b.payload));
        let relayed: Vec<_> =
            relayed.iter().map(|message| std::str::from_utf8(&message.payload).unwrap()).collect();
        assert_eq!(relayed, expected, "{deliver:?}");
        setup.end().await;

        // What is published while no relay is there waits for the next, whatever that is told.
        stream.publish("cms.cache.a", "6").await;
        for other in ["all", "new", "last-per-subject", "1ms"] {
            let relay = Relay::start(
                &setup.nats.url(),
                &endpoint.url(),
                &[STREAM, ("NATS_DELIVER", other)],
            )
            .await;
            stream.settled().await;
            drop(relay);
        }
        assert_eq!(endpoint.calls().iter().filter(|call| call.body == "6").count(), 1);
        assert_eq!(endpoint.count(), expected.len() + 1, "{deliver:?}");
    }
}

#[tokio::test]
async fn an_age_is_counted_back_from_now() {
    let (nats, stream) = server().await;
    let _relay = Relay::start(&nats.url(), NOBODY, &[STREAM, ("NATS_DELIVER", "90min")]).await;
    let start = stream.consumer().await["config"]["opt_start_time"].as_str().unwrap().to_owned();
    let age = std::time::SystemTime::now()
        .duration_since(humantime::parse_rfc3339(&start).unwrap())
        .unwrap();
    assert!((5400..5400 + 120).contains(&age.as_secs()), "{start} is {age:?} ago");
}

// Permissions

const LOGIN: [(&str, &str); 2] = [("NATS_USER", "relay"), ("NATS_PASS", "pw")];
/// What the relay has to publish on to read, beside its inbox and the relayed and failed subjects.
const NEEDED: [&str; 4] = [
    "$JS.API.STREAM.INFO.CMS",
    "$JS.API.CONSUMER.INFO.CMS.nats-webhook-relay",
    "$JS.API.CONSUMER.MSG.NEXT.CMS.nats-webhook-relay",
    "$JS.ACK.CMS.nats-webhook-relay.>",
];
/// What only makes it better.
const WANTED: [&str; 4] = [
    "$JS.API.CONSUMER.CREATE.CMS.nats-webhook-relay.cms.cache.>",
    "$JS.API.CONSUMER.UNPIN.CMS.nats-webhook-relay",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.MSG.GET.CMS",
];

/// A server whose user `relay` may publish on `subjects` besides, and whose user `admin` may do
/// anything, with the stream CMS.
async fn restricted(subjects: &[&str]) -> (NatsServer, async_nats::Client, JetStream) {
    let publish: Vec<_> = ["relayed.cache.>", "failed.cache.>", "_INBOX.>"]
        .iter()
        .chain(subjects)
        .map(|subject| format!("\"{subject}\""))
        .collect();
    let nats = NatsServer::with_config(&format!(
        "{JETSTREAM}, authorization {{ users: [ {{ user: admin, password: pw }}, \
         {{ user: relay, password: pw, permissions: {{ subscribe: \"_INBOX.>\", publish: [{}] }} }} ] }}",
        publish.join(", ")
    ));
    let client = nats.client_as("admin", "pw").await;
    let stream = JetStream::new(&client);
    stream.add("CMS", "cms.cache.>", json!({})).await;
    (nats, client, stream)
}

#[tokio::test]
async fn exactly_the_documented_permissions_are_enough() {
    let (nats, client, stream) = restricted(&[&NEEDED[..], &WANTED].concat()).await;
    let endpoint = Endpoint::start(|call| {
        Reply::status(if call.subject() == "cms.cache.b" { 400 } else { 200 })
    })
    .await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let mut failed = subscribe(&client, "failed.>").await;
    let mut relay =
        Relay::start(&nats.url(), &endpoint.url(), &[&LOGIN[..], &[STREAM, FAILED]].concat()).await;
    stream.publish("cms.cache.a", "1").await;
    stream.publish("cms.cache.b", "2").await;
    assert_eq!(next(&mut relayed).await.payload, "1");
    assert_eq!(next(&mut failed).await.payload, "2");
    stream.settled().await;
    assert!(relay.stop().await.success());
    assert!(relay.lines(WARN).is_empty(), "{:?}", relay.lines(WARN));
    assert_eq!(relay.lines(ERROR).len(), 1, "the failed message only: {:?}", relay.lines(ERROR));
}

async fn next(subscriber: &mut async_nats::Subscriber) -> async_nats::Message {
    within("the next message", subscriber.next()).await.unwrap()
}

#[tokio::test]
async fn a_permission_that_is_missing_ends_the_start_with_an_error_that_names_it() {
    for missing in NEEDED.iter().chain(&WANTED[..1]) {
        let granted: Vec<_> =
            NEEDED.into_iter().chain(WANTED).filter(|subject| subject != missing).collect();
        let (nats, _client, _stream) = restricted(&granted).await;
        let mut relay = Relay::spawn(&nats.url(), NOBODY, &[&LOGIN[..], &[STREAM]].concat());
        assert_eq!(relay.exit().await.code(), Some(1), "{missing}");
        let errors = relay.lines(ERROR);
        assert_eq!(errors.len(), 1, "{missing}: {errors:?}");
        let expected = format!("may not publish on {missing}: grant it to the user");
        assert!(errors[0].contains(&expected), "{expected} is missing in {}", errors[0]);
    }
}

#[tokio::test]
async fn a_user_who_may_not_change_the_consumer_can_use_one_that_fits_and_is_told_of_one_that_does_not()
 {
    let (nats, client, stream) = restricted(&NEEDED).await;
    let admin = [("NATS_USER", "admin"), ("NATS_PASS", "pw"), STREAM];
    assert!(Relay::start(&nats.url(), NOBODY, &admin).await.stop().await.success());

    let endpoint = Endpoint::ok().await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let restricted = [&LOGIN[..], &[STREAM]].concat();
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &restricted).await;
    stream.publish("cms.cache.a", "1").await;
    assert_eq!(next(&mut relayed).await.payload, "1");
    stream.settled().await;
    assert!(relay.stop().await.success());
    let warnings = relay.lines(WARN);
    assert!(warnings.len() == 1 && warnings[0].contains("may not list streams"), "{warnings:?}");
    assert!(relay.lines(ERROR).is_empty(), "{:?}", relay.lines(ERROR));

    let mut relay = Relay::spawn(
        &nats.url(),
        NOBODY,
        &[&restricted[..], &[("NATS_PENDING_MESSAGES", "10")]].concat(),
    );
    assert_eq!(relay.exit().await.code(), Some(1));
    let errors = relay.lines(ERROR);
    assert_eq!(errors.len(), 1, "{errors:?}");
    for expected in [
        "max_ack_pending 1000 -> 10",
        "$JS.API.CONSUMER.CREATE.CMS.nats-webhook-relay.cms.cache.>",
        "grant it to the user",
    ] {
        assert!(errors[0].contains(expected), "{expected} is missing in {}", errors[0]);
    }
}

// Domains

#[tokio::test]
async fn a_stream_of_another_domain_is_reached_by_domain_or_prefix() {
    for variable in [("NATS_JETSTREAM_DOMAIN", "hub"), ("NATS_JETSTREAM_API_PREFIX", "$JS.hub.API")]
    {
        let nats = NatsServer::with_config("jetstream { domain: hub }");
        let endpoint = Endpoint::ok().await;
        let stream = JetStream::with_prefix(&nats.client().await, "$JS.hub.API");
        stream.add("CMS", "cms.cache.>", json!({})).await;
        let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, variable]).await;
        stream.publish("cms.cache.a", "1").await;
        assert_eq!(setup.relayed().await.payload, "1");
        stream.settled().await;
        setup.end().await;
        assert!(setup.relay.lines(WARN).is_empty(), "{:?}", setup.relay.lines(WARN));
    }
}

#[tokio::test]
async fn a_stream_of_another_account_is_reached_by_the_prefix_of_its_imported_api() {
    let nats = NatsServer::with_config(&format!(
        "{JETSTREAM}, accounts {{ \
           HUB {{ jetstream: enabled, users: [ {{ user: admin, password: pw }} ], exports: [ \
             {{ service: \"$JS.API.>\", response_type: stream }}, {{ service: \"$JS.ACK.>\" }} ] }}, \
           CMS {{ users: [ {{ user: relay, password: pw }} ], imports: [ \
             {{ service: {{ account: HUB, subject: \"$JS.API.>\" }}, to: \"JS.hub.API.>\" }}, \
             {{ service: {{ account: HUB, subject: \"$JS.ACK.>\" }} }} ] }} }}"
    ));
    let stream = JetStream::new(&nats.client_as("admin", "pw").await);
    stream.add("CMS", "cms.cache.>", json!({})).await;
    let client = nats.client_as("relay", "pw").await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let endpoint = Endpoint::ok().await;
    let variables = [&LOGIN[..], &[STREAM, ("NATS_JETSTREAM_API_PREFIX", "JS.hub.API")]].concat();
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
    stream.publish("cms.cache.a", "1").await;
    assert_eq!(next(&mut relayed).await.payload, "1");
    stream.settled().await;
    assert!(relay.stop().await.success());
    assert!(relay.lines(WARN).is_empty(), "{:?}", relay.lines(WARN));
}

// The command line

#[tokio::test]
async fn check_says_what_would_be_done_and_does_nothing() {
    let (nats, stream) = server().await;
    let variables = [
        ("WEBHOOK_DESTINATION", NOBODY),
        ("NATS_HOST", &nats.url()),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        STREAM,
    ];
    let check = |more: &[(&str, &str)]| relay::run(&["check"], &[&variables, more].concat());
    let (status, output, errors) = check(&[]);
    assert!(status.success(), "{errors}");
    assert!(
        output.contains(
            "reads from    cms.cache.> (stream CMS, consumer nats-webhook-relay would be created)"
        ),
        "{output}"
    );
    assert!(!stream.has_consumer().await);

    let before = stream.add_consumer(json!({ "max_deliver": 5 })).await;
    let (status, output, _) = check(&[]);
    assert!(
        status.success() && output.contains("consumer nats-webhook-relay would be changed)"),
        "{output}"
    );
    assert_eq!(stream.consumer().await["config"], before["config"]);

    assert!(Relay::start(&nats.url(), NOBODY, &[STREAM]).await.stop().await.success());
    let (status, output, _) = check(&[]);
    assert!(status.success() && output.contains("consumer nats-webhook-relay exists)"), "{output}");

    let (status, _, errors) = check(&[("NATS_STREAM", "OTHER")]);
    assert_eq!(status.code(), Some(1));
    assert!(
        errors.contains("stream OTHER (NATS_STREAM) does not exist")
            && errors.contains("nats stream add OTHER"),
        "{errors}"
    );
    let (status, _, errors) = check(&[("NATS_SUBJECT_PREFIX", "cms.cache.article")]);
    assert!(
        !status.success() && errors.contains("is for cms.cache.>, not for cms.cache.article.>"),
        "{errors}"
    );
}

#[tokio::test]
async fn check_accepts_a_missing_stream_that_a_start_would_make() {
    let nats = NatsServer::with_config(JETSTREAM);
    let variables = [
        ("WEBHOOK_DESTINATION", NOBODY),
        ("NATS_HOST", &nats.url()),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ("NATS_STREAM_CREATE", "true"),
        STREAM,
    ];
    let (status, output, errors) = relay::run(&["check"], &variables);
    assert!(status.success() && output.contains("would be created"), "{output}{errors}");
    let stream = JetStream::new(&nats.client().await);
    assert!(
        stream.ask("STREAM.INFO.CMS", &json!({})).await.get("error").is_some(),
        "check has made the stream"
    );
}

#[test]
fn mistakes_of_configuration_are_all_told_at_once() {
    for (variables, expected) in [
        (
            &[
                ("NATS_CONSUMER", "frontend"),
                ("NATS_DELIVER", "all"),
                ("NATS_STREAM_CREATE", "true"),
                ("NATS_REPLICAS_SHARE", "true"),
                ("NATS_JETSTREAM_DOMAIN", "hub"),
            ][..],
            &[
                "NATS_CONSUMER: has no effect without NATS_STREAM",
                "NATS_DELIVER: has no effect without NATS_STREAM",
                "NATS_STREAM_CREATE: has no effect without NATS_STREAM",
                "NATS_REPLICAS_SHARE: has no effect without NATS_STREAM",
                "NATS_JETSTREAM_DOMAIN: has no effect without NATS_STREAM",
            ][..],
        ),
        (
            &[
                STREAM,
                ("NATS_QUEUE_GROUP", "frontend"),
                ("NATS_JETSTREAM_DOMAIN", "hub"),
                ("NATS_JETSTREAM_API_PREFIX", "JS.API"),
            ],
            &[
                "NATS_QUEUE_GROUP: has no effect with NATS_STREAM",
                "NATS_JETSTREAM_DOMAIN: NATS_JETSTREAM_API_PREFIX is set too",
            ],
        ),
        (
            &[
                ("NATS_STREAM", "C.MS"),
                ("NATS_CONSUMER", "a b"),
                ("NATS_DELIVER", "latest"),
                ("NATS_STREAM_CREATE", "yes"),
                ("NATS_REPLICAS_SHARE", "1"),
                ("NATS_JETSTREAM_API_PREFIX", "JS.>"),
            ],
            &[
                "NATS_STREAM: expected a name",
                "NATS_CONSUMER: expected a name",
                "NATS_DELIVER: expected new, all, last-per-subject, or an age such as 6h, not \"latest\"",
                "NATS_STREAM_CREATE: expected true or false",
                "NATS_REPLICAS_SHARE: expected true or false",
                "NATS_JETSTREAM_API_PREFIX: expected a subject prefix",
            ],
        ),
    ] {
        let fixed = [
            ("WEBHOOK_DESTINATION", NOBODY),
            ("NATS_HOST", "127.0.0.1:9"),
            ("NATS_SUBJECT_PREFIX", "cms.cache"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ];
        let (status, _, errors) = relay::run(&[], &[&fixed, variables].concat());
        assert_eq!(status.code(), Some(64), "{errors}");
        for expected in expected {
            assert!(errors.contains(expected), "{expected} is missing in {errors}");
        }
        assert_eq!(
            errors.lines().filter(|line| line.starts_with("  - ")).count(),
            expected.len(),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn a_work_queue_is_emptied_and_a_new_one_has_to_be_read_from_its_start() {
    let nats = NatsServer::with_config(JETSTREAM);
    let endpoint = Endpoint::ok().await;
    let stream = JetStream::new(&nats.client().await);
    stream.add("CMS", "cms.cache.>", json!({ "retention": "workqueue" })).await;
    let mut relay = Relay::spawn(&nats.url(), NOBODY, &[STREAM]);
    assert_eq!(relay.exit().await.code(), Some(1));
    let errors = relay.lines(ERROR);
    assert!(errors.len() == 1 && errors[0].contains("NATS_DELIVER=all"), "{errors:?}");

    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, ("NATS_DELIVER", "all")]).await;
    stream.publish("cms.cache.a", "1").await;
    stream.settled().await;
    // A consumer that has to be made again as well.
    stream.remove_consumer().await;
    stream.publish("cms.cache.a", "2").await;
    setup.relay.logged_times(CREATED, 2).await;
    stream.settled().await;
    for payload in ["1", "2"] {
        assert_eq!(setup.relayed().await.payload, payload);
    }
    assert_eq!(stream.stream("CMS").await["state"]["messages"], 0);
    setup.end().await;
}

// Settling

const NOT_RELAYED: &str = "\"not relayed\"";

/// The advisories about messages of the relay's consumer that were terminated.
async fn terminations(setup: &Setup) -> async_nats::Subscriber {
    subscribe(&setup.client, &format!("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.CMS.{CONSUMER}"))
        .await
}

async fn terminated_sequence(terminations: &mut async_nats::Subscriber) -> u64 {
    let advisory: Value = serde_json::from_slice(&next(terminations).await.payload).unwrap();
    advisory["stream_seq"].as_u64().unwrap()
}

#[tokio::test]
async fn a_message_is_settled_only_after_what_it_came_to_is_confirmed() {
    // Confirmed by a round trip, and by a stream.
    for (status, published, settled) in
        [(200, "relayed.cache.a", "+ACK"), (400, "failed.cache.a", "+TERM")]
    {
        for captured in [false, true] {
            let (nats, stream) = server().await;
            if captured {
                stream
                    .add(
                        "OUT",
                        "*.cache.>",
                        json!({ "subjects": ["relayed.cache.>", "failed.cache.>"] }),
                    )
                    .await;
            }
            let proxy = Proxy::to(nats.port).await;
            let released = std::sync::Arc::new(AtomicBool::new(false));
            let (release, cutter) = (released.clone(), std::sync::Arc::new(proxy));
            let swallowing = cutter.clone();
            let endpoint = Endpoint::start(move |_| {
                // Whatever the relay sends from now on is lost.
                if !release.swap(true, Ordering::SeqCst) {
                    swallowing.swallow();
                }
                Reply::status(status)
            })
            .await;
            let variables = [STREAM, HTTP, ("NATS_HOST", &cutter.url())];
            let mut setup = Setup::on(nats, &endpoint.url(), &variables).await;
            stream.publish("cms.cache.a", "1").await;
            eventually("the message is swallowed", || cutter.has_swallowed(published)).await;
            // Later than an early settlement would have been.
            eventually("signs of work go on", || cutter.has_swallowed("+WPI")).await;
            assert!(!cutter.has_swallowed(settled), "settled before the confirmation");
            stream.unsettled(1).await;
            cutter.cut();
            stream.settled().await;
            let message = if status == 200 { setup.relayed().await } else { setup.failed().await };
            assert_eq!((message.subject.as_str(), &message.payload[..]), (published, &b"1"[..]));
            assert_eq!(endpoint.count(), 1);
            assert!(setup.relay.stop().await.success());
            if captured {
                assert_eq!(stream.messages("OUT").await, [(published.to_owned(), "1".to_owned())]);
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_delivered_again_while_it_is_worked_on_retried_or_waits() {
    // The server waits for three seconds before it delivers a message again.
    let retried = AtomicBool::new(false);
    let endpoint = Endpoint::start(move |call| match &call.body[..] {
        b"slow" => Reply::ok().after(Duration::from_secs(8)),
        b"retried" if !retried.swap(true, Ordering::SeqCst) => {
            Reply::status(503).header("retry-after", "8")
        }
        _ => Reply::ok(),
    })
    .await;
    for share in ["false", "true"] {
        let (mut setup, stream) = setup(&endpoint.url(), &[("NATS_REPLICAS_SHARE", share)]).await;
        let before = endpoint.count();
        for (subject, payload) in [
            ("a", "slow"),
            ("a", "behind 1"),
            ("a", "behind 2"),
            ("b", "retried"),
            ("b", "behind 3"),
        ] {
            stream.publish(&format!("cms.cache.{subject}"), payload).await;
        }
        let info = stream.settled().await;
        assert_eq!(info["delivered"]["consumer_seq"], 5, "{info}");
        assert_eq!(setup.relay.metric("messages_redelivered_total").await, 0);
        for _ in 0..5 {
            setup.relayed().await;
        }
        setup.end().await;
        let retries = if share == "false" { 1 } else { 0 };
        assert_eq!(endpoint.count() - before, 5 + retries);
    }
}

#[tokio::test]
async fn what_a_stream_will_not_have_ends_on_the_failed_subject_with_its_reason() {
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({ "max_msgs": 1, "discard": "new" })).await;
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    let mut terminations = terminations(&setup).await;
    stream.publish("cms.cache.a", "1").await;
    let refused = stream.publish("cms.cache.a", "2").await;
    assert_eq!(setup.relayed().await.payload, "1");
    // Ten tries, slower and slower.
    let letter = setup.failed().await;
    assert_eq!((letter.subject.as_str(), &letter.payload[..]), ("failed.cache.a", &b"2"[..]));
    assert_eq!(header(&letter, "Relay-Reason"), "publish");
    assert!(
        header(&letter, "Relay-Error").contains("maximum messages exceeded"),
        "{}",
        header(&letter, "Relay-Error")
    );
    assert_eq!(terminated_sequence(&mut terminations).await, refused);
    stream.settled().await;
    assert_eq!(endpoint.count(), 2);
    assert_eq!(stream.messages("RELAYED").await.len(), 1);
    setup.relay.counted("messages_relayed_total", 1).await;
    assert_eq!(setup.relay.lines(NOT_RELAYED).len(), 1);
}

#[tokio::test]
async fn a_stream_that_refuses_for_a_moment_fails_nothing() {
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({ "max_msgs": 1, "discard": "new" })).await;
    let endpoint = Endpoint::ok().await;
    let setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    stream.publish("cms.cache.a", "1").await;
    stream.publish("cms.cache.a", "2").await;
    endpoint.received(2).await;
    setup.relay.counted("messages_relayed_total", 1).await;
    stream.unsettled(1).await;
    stream.change("RELAYED", json!({ "max_msgs": 10 })).await;
    stream.settled().await;
    assert_eq!(stream.messages("RELAYED").await.len(), 2);
    assert!(setup.relay.lines(ERROR).is_empty(), "{:?}", setup.relay.lines(ERROR));
}

#[tokio::test]
async fn a_stream_of_relayed_messages_may_come_and_go() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::on(nats, &endpoint.url(), &[STREAM, HTTP, ("NATS_HOST", &proxy.url())]).await;
    stream.publish("cms.cache.a", "without").await;
    let message = setup.relayed().await;
    assert!(message.reply.is_none(), "nobody was there to answer");
    stream.settled().await;

    // After a reconnect its answer is what counts.
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    proxy.cut();
    setup.relay.logged("reconnected to NATS").await;
    stream.publish("cms.cache.a", "with").await;
    let message = setup.relayed().await;
    assert!(message.reply.is_some(), "the stream was not asked for an answer");
    stream.settled().await;

    // Gone again: the message is not, and the next does not even wait.
    stream.remove("RELAYED").await;
    stream.publish("cms.cache.a", "again without").await;
    stream.settled().await;
    assert_eq!(setup.relayed().await.payload, "again without");
    let warning =
        setup.relay.logged("the stream that captures the relayed messages does not answer").await;
    assert!(warning.contains(WARN), "{warning}");
    let again = setup.relayed().await;
    assert!(again.payload == "again without" && again.reply.is_none(), "{again:?}");
    stream.publish("cms.cache.a", "last").await;
    let last = setup.relayed().await;
    assert!(last.payload == "last" && last.reply.is_none(), "{last:?}");
    setup.relay.counted("messages_relayed_total", 4).await;
    assert_eq!(endpoint.count(), 4);
    setup.end().await;
}

#[tokio::test]
async fn a_stream_that_never_answers_is_not_waited_for() {
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({ "no_ack": true })).await;
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    stream.publish("cms.cache.a", "1").await;
    assert!(setup.relayed().await.reply.is_none());
    stream.settled().await;
    assert_eq!(stream.messages("RELAYED").await.len(), 1);
    setup.end().await;
    assert!(setup.relay.lines(WARN).is_empty(), "{:?}", setup.relay.lines(WARN));
}

#[tokio::test]
async fn only_the_stream_is_believed_when_somebody_else_answers_first() {
    for answer in ["ok", r#"{"stream":"x","seq":1}"#, "", r#"{"error":{"description":"no"}}"#] {
        let (nats, stream) = server().await;
        stream.add("RELAYED", "relayed.cache.>", json!({})).await;
        let proxy = Proxy::to(nats.port).await;
        let endpoint = Endpoint::ok().await;
        let mut setup =
            Setup::on(nats, &endpoint.url(), &[STREAM, HTTP, ("NATS_HOST", &proxy.url())]).await;
        proxy.hold("HPUB relayed.cache.a ");
        stream.publish("cms.cache.a", "1").await;
        eventually("the message is on its way to the stream", || proxy.is_holding()).await;
        let held = proxy.held();
        let reply = held.split("HPUB relayed.cache.a ").nth(1).unwrap().split(' ').next().unwrap();
        setup.client.publish(reply.to_owned(), answer.into()).await.unwrap();
        support::round_trip(&setup.client).await;
        // What comes after the answer has arrived as well.
        stream.publish("cms.cache.b", "2").await;
        endpoint.received(2).await;
        setup.relay.counted("messages_relayed_total", 0).await;
        proxy.resume();
        stream.settled().await;
        let expected = [("relayed.cache.a", "1"), ("relayed.cache.b", "2")]
            .map(|(subject, text)| (subject.to_owned(), text.to_owned()));
        assert_eq!(stream.messages("RELAYED").await, expected, "{answer}");
        setup.relay.counted("messages_relayed_total", 2).await;
        setup.relay.counted("messages_republished_again_total", 0).await;
        for (subject, _) in expected {
            assert_eq!(setup.relayed().await.subject.as_str(), subject);
        }
        setup.end().await;
        assert!(setup.relay.lines(WARN).is_empty(), "{:?}", setup.relay.lines(WARN));
    }
}

#[tokio::test]
async fn a_subscriber_that_answers_everything_changes_nothing() {
    const MESSAGES: usize = 50;
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    let responder = nats.client().await;
    let mut seen = subscribe(&responder, "relayed.cache.>").await;
    tokio::spawn(async move {
        while let Some(message) = seen.next().await {
            for answer in
                ["ok", r#"{"stream":"x","seq":1}"#, "", r#"{"error":{"description":"no"}}"#]
            {
                responder.publish(message.reply.clone().unwrap(), answer.into()).await.unwrap();
            }
        }
    });
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    stream.fill(0..MESSAGES, 5, 0).await;
    stream.settled().await;
    setup.relayed_by_subject(MESSAGES).await;
    assert_eq!(stream.messages("RELAYED").await.len(), MESSAGES);
    setup.relay.counted("messages_relayed_total", MESSAGES as u64).await;
    setup.relay.counted("messages_republished_again_total", 0).await;
    setup.end().await;
}

#[tokio::test]
async fn a_stream_answers_through_the_next_client_too() {
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    stream.publish("cms.cache.a", "1").await;
    assert!(setup.relayed().await.reply.is_some());
    // A lone CR in a header ends the client.
    setup.publish_by_hand(&hpub("cms.cache.b", &["X: a\rb"], b"2")).await;
    setup.relay.logged("the NATS client failed").await;
    setup.relay.logged("reconnected to NATS").await;
    stream.publish("cms.cache.a", "3").await;
    stream.settled().await;
    setup.relay.counted("messages_relayed_total", 2).await;
    setup.relay.counted("messages_republished_again_total", 0).await;
    assert_eq!(stream.messages("RELAYED").await.len(), 2);
    assert!(setup.relay.lines("does not answer, retrying").is_empty());
}

#[tokio::test]
async fn what_a_plugin_rejects_is_acknowledged() {
    let folder = Folder::with(&[("no", &Component::with(BODY, &reject("not for browsers")))]);
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) =
        setup(&endpoint.url(), &[("PLUGINS", &folder.all()), ("PLUGIN_CACHE", "off")]).await;
    let mut terminations = terminations(&setup).await;
    stream.publish("cms.cache.a", "1").await;
    let info = stream
        .until("it is settled", |info| {
            info["ack_floor"]["stream_seq"] == 1 && info["num_ack_pending"] == 0
        })
        .await;
    assert_eq!(info["delivered"]["consumer_seq"], 1);
    setup.relay.counted("messages_rejected_total", 1).await;
    setup.end().await;
    assert_eq!(endpoint.count(), 0);
    support::round_trip(&setup.client).await;
    use futures_util::FutureExt;
    assert!(terminations.next().now_or_never().is_none(), "terminated, not acknowledged");
}

#[tokio::test]
async fn what_a_plugin_fails_on_is_terminated() {
    let folder =
        Folder::with(&[("no", &Component::with(BODY, &support::component::failed("broken")))]);
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) =
        setup(&endpoint.url(), &[("PLUGINS", &folder.all()), ("PLUGIN_CACHE", "off")]).await;
    let mut terminations = terminations(&setup).await;
    let sequence = stream.publish("cms.cache.a", "1").await;
    assert_eq!(header(&setup.failed().await, "Relay-Reason"), "plugin");
    assert_eq!(terminated_sequence(&mut terminations).await, sequence);
    stream.settled().await;
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn after_the_last_attempt_a_message_goes_to_the_failed_subject_and_is_terminated() {
    let endpoint =
        Endpoint::start(|call| Reply::status(if call.body == "1" { 503 } else { 200 })).await;
    let (mut setup, stream) = setup(&endpoint.url(), &[("WEBHOOK_MAX_ATTEMPTS", "3")]).await;
    let mut terminations = terminations(&setup).await;
    let sequence = stream.publish("cms.cache.a", "1").await;
    stream.publish("cms.cache.a", "2").await;
    let letter = setup.failed().await;
    assert_eq!((letter.subject.as_str(), &letter.payload[..]), ("failed.cache.a", &b"1"[..]));
    assert_eq!(
        (header(&letter, "Relay-Reason"), header(&letter, "Relay-Attempts")),
        ("webhook", "3")
    );
    let calls = endpoint.received(4).await;
    assert_eq!(header(&letter, "Relay-Id"), calls[0].header("webhook-id"));
    assert_eq!(terminated_sequence(&mut terminations).await, sequence);
    assert_eq!(setup.relayed().await.payload, "2");
    let info = stream.settled().await;
    assert_eq!(info["delivered"]["consumer_seq"], 2, "{info}");
    assert_eq!(setup.relay.lines(NOT_RELAYED).len(), 1);
    setup.end().await;
    assert_eq!(endpoint.count(), 4);
}

#[tokio::test]
async fn without_a_failed_subject_it_is_told_once_and_terminated() {
    let endpoint = Endpoint::start(|_| Reply::status(400)).await;
    let (nats, stream) = server().await;
    let setup =
        Setup::on(nats, &endpoint.url(), &[STREAM, HTTP, ("NATS_FAILED_SUBJECT_PREFIX", "")]).await;
    let mut terminations = terminations(&setup).await;
    let sequence = stream.publish("cms.cache.a", "1").await;
    assert_eq!(terminated_sequence(&mut terminations).await, sequence);
    stream.settled().await;
    let told = setup.relay.lines(NOT_RELAYED);
    assert!(
        told.len() == 1
            && told[0].contains(ERROR)
            && told[0].contains("cms.cache.a")
            && told[0].contains("answered 400"),
        "{told:?}"
    );
    assert_eq!(endpoint.count(), 1);
}

#[tokio::test]
async fn a_failed_message_that_the_failed_subject_will_not_have_stays_in_the_stream_until_it_does()
{
    let (nats, stream) = server().await;
    stream.add("FAILED", "failed.cache.>", json!({ "max_msgs": 1, "discard": "new" })).await;
    let endpoint = Endpoint::start(|_| Reply::status(400)).await;
    let setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    stream.publish("cms.cache.a", "1").await;
    stream.publish("cms.cache.b", "2").await;
    let told = setup.relay.logged("not published on the failed subject").await;
    assert!(told.contains(ERROR) && told.contains("maximum messages exceeded"), "{told}");
    stream.unsettled(1).await;
    stream.change("FAILED", json!({ "max_msgs": 10 })).await;
    stream.settled().await;
    assert_eq!(stream.messages("FAILED").await.len(), 2);
    assert_eq!((setup.relay.lines(NOT_RELAYED).len(), endpoint.count()), (2, 2));
}

#[tokio::test]
async fn without_a_limit_of_attempts_a_message_is_tried_for_as_long_as_the_stream_keeps_it() {
    let endpoint = Endpoint::start(|call| match &call.body[..] {
        b"1" => Reply::status(503),
        _ => Reply::ok(),
    })
    .await;
    let (mut setup, stream) =
        setup(&endpoint.url(), &[("WEBHOOK_MAX_ATTEMPTS", "unlimited")]).await;
    let sequence = stream.publish("cms.cache.a", "1").await;
    stream.publish("cms.cache.a", "2").await;
    endpoint.received(8).await;
    assert!(endpoint.calls().iter().all(|call| call.body == "1"));
    stream.unsettled(2).await;
    stream.call("STREAM.MSG.DELETE.CMS", json!({ "seq": sequence })).await;
    let letter = setup.failed().await;
    assert_eq!((header(&letter, "Relay-Reason"), &letter.payload[..]), ("webhook", &b"1"[..]));
    assert!(
        header(&letter, "Relay-Error").contains("the stream no longer keeps the message"),
        "{}",
        header(&letter, "Relay-Error")
    );
    assert_eq!(setup.relayed().await.payload, "2");
    stream.settled().await;
    setup.end().await;
}

#[tokio::test]
async fn a_message_keeps_its_id_when_it_is_relayed_again_and_a_stream_drops_the_second_copy() {
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&proxy.url(), &endpoint.url(), &[STREAM]).await;
    stream.publish("cms.cache.a", "1").await;
    stream.settled().await;
    // It dies when the message is relayed and before the stream knows.
    proxy.hold("+ACK");
    stream.publish("cms.cache.a", "2").await;
    eventually("the acknowledgement is on its way", || proxy.is_holding()).await;
    assert_eq!(stream.messages("RELAYED").await.len(), 2);
    signal(relay.pid(), "KILL");
    proxy.cut();
    proxy.resume();
    stream.unsettled(1).await;

    let _relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM]).await;
    stream.settled().await;
    let calls = endpoint.calls();
    assert_eq!(calls.iter().map(|call| &call.body[..]).collect::<Vec<_>>(), [b"1", b"2", b"2"]);
    assert_eq!(calls[1].header("webhook-id"), calls[2].header("webhook-id"));
    assert_eq!(
        stream.messages("RELAYED").await,
        ["1", "2"].map(|payload| ("relayed.cache.a".to_owned(), payload.to_owned()))
    );
}

#[tokio::test]
async fn a_start_settles_nothing_that_another_relay_has_left() {
    let (nats, stream) = server().await;
    let endpoint = Held::start().await;
    let first = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, PATIENT]).await;
    for number in 0..3 {
        stream.publish(&format!("cms.cache.{number}"), "").await;
    }
    endpoint.called(3).await;
    signal(first.pid(), "KILL");
    stream.unsettled(3).await;
    // The first message of all, too.
    let _second = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, PATIENT]).await;
    endpoint.called(6).await;
    stream.unsettled(3).await;
    endpoint.release();
    stream.settled().await;
}

#[tokio::test]
async fn what_is_relayed_is_what_was_stored_without_what_servers_add() {
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) = setup(&endpoint.url(), &[]).await;
    let payload: Vec<u8> = (0..=255).collect();
    let headers = [
        ("X-Own", "1"),
        ("x-own", "2"),
        ("X-Own", "3"),
        ("Nats-Msg-Id", "theirs"),
        ("Nats-Pin-Id", "theirs"),
    ];
    setup.publish_with("cms.cache.a", &headers, payload.clone()).await;
    setup.publish("cms.cache.b", payload.clone()).await;
    let relayed = setup.relayed_by_subject(2).await;
    let info = stream.settled().await;
    assert_eq!(info["delivered"]["consumer_seq"], 2);
    for message in &relayed {
        assert_eq!(message.payload, payload);
        assert!(message.reply.is_none());
    }
    let names = |message: &async_nats::Message| {
        let mut names: Vec<_> = message
            .headers
            .iter()
            .flat_map(|headers| headers.iter().map(|(name, _)| name.to_string()))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&relayed[0]), ["Nats-Msg-Id", "X-Own", "x-own"]);
    assert_eq!(names(&relayed[1]), ["Nats-Msg-Id"]);
    assert_eq!(support::setup::values(&relayed[0], "X-Own"), ["1", "3"]);
    for call in endpoint.calls() {
        assert_eq!(call.body, payload);
        assert!(
            call.headers
                .keys()
                .all(|name| !name.as_str().starts_with("nats-") || name == "nats-subject"),
            "{:?}",
            call.headers
        );
        let message = relayed
            .iter()
            .find(|message| message.subject.ends_with(&call.subject()[10..]))
            .unwrap();
        assert_eq!(header(message, "Nats-Msg-Id"), call.header("webhook-id"));
    }
    setup.end().await;
}

#[tokio::test]
async fn equal_messages_have_different_ids_also_in_a_stream_that_took_the_name_of_another() {
    let endpoint = Endpoint::ok().await;
    let (_setup, stream) = setup(&endpoint.url(), &[]).await;
    stream.publish("cms.cache.a", "1").await;
    stream.publish("cms.cache.a", "1").await;
    stream.settled().await;
    stream.remove("CMS").await;
    stream.add("CMS", "cms.cache.>", json!({})).await;
    stream.publish("cms.cache.a", "1").await;
    let calls = endpoint.received(3).await;
    let ids: std::collections::HashSet<_> =
        calls.iter().map(|call| call.header("webhook-id")).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
}

// Order

/// An endpoint that takes a moment, each time another one.
async fn unsteady() -> Endpoint {
    let random = std::sync::Mutex::new(fastrand::Rng::with_seed(7));
    Endpoint::start(move |_| {
        Reply::ok().after(Duration::from_millis(random.lock().unwrap().u64(0..20)))
    })
    .await
}

/// What is relayed, as a stream of it has stored it.
async fn relayed_numbers(stream: &JetStream) -> Vec<usize> {
    stream.messages("RELAYED").await.iter().map(|(_, payload)| number(payload)).collect()
}

#[tokio::test]
async fn many_subjects_are_relayed_side_by_side_once_and_in_order() {
    const MESSAGES: usize = 3_000;
    const SUBJECTS: usize = 300;
    let endpoint = unsteady().await;
    let (mut setup, stream) =
        setup(&endpoint.url(), &[("RUST_LOG", "warn,nats_webhook_relay=info")]).await;
    let began = Instant::now();
    stream.fill(0..MESSAGES, SUBJECTS, 0).await;
    let mut relayed = Vec::new();
    for _ in 0..MESSAGES {
        relayed.push(number(std::str::from_utf8(&setup.relayed().await.payload).unwrap()));
    }
    let elapsed = began.elapsed();
    assert_eq!(complete_and_in_order(&relayed, MESSAGES, SUBJECTS), 0);
    assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), MESSAGES, SUBJECTS), 0);
    // One after another, the endpoint's time alone would be this.
    assert!(elapsed < Duration::from_millis(10) * MESSAGES as u32, "{elapsed:?}");
    stream.settled().await;
    setup.end().await;
}

#[tokio::test]
async fn a_subject_that_hangs_delays_no_other() {
    let endpoint = Endpoint::start(|call| match call.subject() {
        "cms.cache.hangs" => Reply::ok().after(Duration::from_secs(3600)),
        "cms.cache.waits" => Reply::status(503).header("retry-after", "3600"),
        _ => Reply::ok(),
    })
    .await;
    let (mut setup, stream) =
        setup(&endpoint.url(), &[PATIENT, ("NATS_PENDING_MESSAGES", "100")]).await;
    for number in 0..20 {
        stream.publish("cms.cache.hangs", number.to_string()).await;
        stream.publish("cms.cache.waits", number.to_string()).await;
    }
    endpoint.received(2).await;
    stream.fill(0..1_000, 100, 0).await;
    for _ in 0..1_000 {
        assert!(setup.relayed().await.subject.starts_with("relayed.cache.s"));
    }
    stream.unsettled(40).await;
    assert_eq!(setup.relay.metric("messages_redelivered_total").await, 0);
}

#[tokio::test]
async fn a_relay_that_is_killed_and_started_again_loses_nothing_and_keeps_the_order() {
    const SUBJECTS: usize = 20;
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    let endpoint = unsteady().await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM]).await;
    let load = stream.load(SUBJECTS, Duration::from_millis(5));
    for _ in 0..3 {
        endpoint.received(endpoint.count() + 200).await;
        signal(relay.pid(), "KILL");
        relay.exit().await;
        relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM]).await;
    }
    endpoint.received(endpoint.count() + 200).await;
    let messages = load.end().await;
    stream.settled().await;
    complete_and_in_order(&numbers(&endpoint.calls()), messages, SUBJECTS);
    assert_eq!(
        complete_and_in_order(&relayed_numbers(&stream).await, messages, SUBJECTS),
        0,
        "stored twice"
    );
    assert!(relay.stop().await.success());
}

#[tokio::test]
async fn connections_that_break_lose_nothing_repeat_nothing_and_keep_the_order() {
    const SUBJECTS: usize = 20;
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = unsteady().await;
    let mut relay = Relay::start(&proxy.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    let load = stream.load(SUBJECTS, Duration::from_millis(2));
    for outage in 1..=5 {
        endpoint.received(endpoint.count() + 100).await;
        // Some are on their way here, and some acknowledgements on their way back.
        proxy.cut();
        relay.logged_times("reconnected to NATS", outage).await;
    }
    endpoint.received(endpoint.count() + 100).await;
    let messages = load.end().await;
    stream.settled().await;
    assert_eq!(
        complete_and_in_order(&numbers(&endpoint.calls()), messages, SUBJECTS),
        0,
        "called again"
    );
    relay.counted("messages_relayed_total", messages as u64).await;
    assert_eq!((relay.metric("reconnects_total").await, relay.metric("gaps_total").await), (5, 0));
    assert!(relay.stop().await.success());
    assert!(relay.lines(ERROR).is_empty(), "{:?}", relay.lines(ERROR));
}

#[tokio::test]
async fn a_message_that_is_lost_on_its_way_is_not_overtaken_by_later_ones_of_its_subject() {
    lost_on_its_way("false", 3).await;
}

#[tokio::test]
async fn a_message_that_is_lost_on_its_way_to_a_relay_that_shares_is_not_overtaken_there() {
    lost_on_its_way("true", 1).await;
}

async fn lost_on_its_way(share: &str, rounds: usize) {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(
        &proxy.url(),
        &endpoint.url(),
        &[STREAM, HTTP, ("NATS_REPLICAS_SHARE", share)],
    )
    .await;
    stream.publish("cms.cache.s0", "0").await;
    stream.settled().await;
    for round in 0..rounds {
        proxy.silence();
        let first = 1 + round * 20;
        stream.fill(first..first + 10, 1, 0).await;
        stream
            .until("the server has sent some", |info| info["num_ack_pending"].as_u64() > Some(0))
            .await;
        proxy.cut();
        stream.fill(first + 10..first + 20, 1, 0).await;
        stream.settled().await;
    }
    assert_eq!(numbers(&endpoint.calls()), (0..=20 * rounds).collect::<Vec<_>>());
    assert!(relay.metric("messages_redelivered_total").await > 0, "nothing was lost on its way");
}

#[tokio::test]
async fn a_frontend_that_is_down_for_a_while_gets_all_in_order_when_it_is_up() {
    const MESSAGES: usize = 500;
    const SUBJECTS: usize = 20;
    let (nats, stream) = server().await;
    let (socket, port) = support::endpoint::refusing();
    let variables =
        [STREAM, HTTP, ("WEBHOOK_MAX_ATTEMPTS", "unlimited"), ("NATS_PENDING_MESSAGES", "100")];
    let mut relay =
        Relay::start(&nats.url(), &format!("http://127.0.0.1:{port}/hook"), &variables).await;
    stream.fill(0..MESSAGES, SUBJECTS, 0).await;
    // Longer than the server waits for an acknowledgement.
    stream.unsettled(100).await;
    let began = Instant::now();
    eventually("it has been tried for a while", || began.elapsed() > Duration::from_secs(5)).await;
    assert!(relay.metric("webhook_retries_total").await > SUBJECTS as u64);
    assert!(relay.metric("messages_pending").await <= 100);
    let endpoint = Endpoint::on(socket.listen(1024).unwrap(), |_| Reply::ok());
    stream.settled().await;
    assert_eq!(
        complete_and_in_order(&numbers(&endpoint.calls()), MESSAGES, SUBJECTS),
        0,
        "called again"
    );
    assert_eq!(relay.metric("messages_redelivered_total").await, 0);
    assert!(relay.stop().await.success());
    assert!(relay.lines(ERROR).is_empty(), "{:?}", relay.lines(ERROR));
}

// Bounds

#[tokio::test]
async fn no_more_is_taken_from_the_stream_than_may_wait() {
    const MESSAGES: usize = 2_000;
    for share in ["false", "true"] {
        let (nats, stream) = server().await;
        stream.fill(0..MESSAGES, 50, 0).await;
        let endpoint = Endpoint::start(|_| Reply::ok().after(Duration::from_millis(20))).await;
        let variables = [
            STREAM,
            HTTP,
            ("NATS_DELIVER", "all"),
            ("NATS_PENDING_MESSAGES", "100"),
            ("NATS_REPLICAS_SHARE", share),
        ];
        let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
        let mut highest = 0;
        loop {
            let info = stream.consumer().await;
            let unsettled = info["num_ack_pending"].as_u64().unwrap();
            // Acknowledgements may be on their way.
            let on_their_way = if share == "true" { 100 } else { 0 };
            assert!(
                unsettled <= 100 + on_their_way,
                "{unsettled} of the stream are in the process"
            );
            let pending = relay.metric("messages_pending").await;
            assert!(pending <= 100, "{pending} wait");
            highest = highest.max(unsettled);
            if unsettled == 0 && info["num_pending"] == 0 && endpoint.count() == MESSAGES {
                break;
            }
        }
        assert!(highest > 50, "{highest}: the bound was not used");
        assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), MESSAGES, 50), 0);
        assert_eq!(relay.metric("messages_redelivered_total").await, 0);
        assert!(relay.stop().await.success());
    }
}

#[tokio::test]
async fn large_messages_are_bounded_by_their_bytes_and_so_is_memory() {
    const MESSAGES: usize = 600;
    let (nats, stream) = server().await;
    stream.fill(0..MESSAGES, 50, 100_000).await;
    let endpoint = Held::start().await;
    let variables =
        [STREAM, HTTP, PATIENT, ("NATS_DELIVER", "all"), ("NATS_PENDING_BYTES", "4MiB")];
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
    // As many as fit: the server counts some more for each than its payload.
    let fitting = (4 << 20) / 100_500;
    stream
        .until("the room is used", |info| info["num_ack_pending"].as_u64() >= Some(fitting * 3 / 4))
        .await;
    endpoint.called(fitting as usize * 3 / 4).await;
    endpoint.release();
    loop {
        let pending = relay.metric("messages_pending_bytes").await;
        assert!(pending <= 4 << 20, "{pending} bytes wait");
        let info = stream.consumer().await;
        // The server counts what it has been told of a moment later: by then it has been asked for more.
        assert!(info["num_ack_pending"].as_u64() <= Some(2 * (4 << 20) / 100_000), "{info}");
        if info["num_ack_pending"] == 0 && info["num_pending"] == 0 {
            break;
        }
    }
    relay.counted("messages_relayed_total", MESSAGES as u64).await;
    let highest = relay.memory("VmHWM");
    assert!(highest < (4 + 40) * 1024, "{highest} KiB");
    assert_eq!(
        (relay.metric("messages_redelivered_total").await, endpoint.subjects().len()),
        (0, MESSAGES)
    );
    assert!(relay.stop().await.success());
}

#[tokio::test]
async fn a_message_larger_than_all_that_may_wait_is_relayed_alone_and_in_its_turn() {
    let (nats, stream) = server().await;
    let mut expected = Vec::new();
    for number in 0..30 {
        let payload = if number % 10 == 5 {
            number.to_string() + &" ".repeat(100_000)
        } else {
            number.to_string()
        };
        stream.publish(&format!("cms.cache.s{}", number % 2), payload).await;
        expected.push(number);
    }
    let endpoint = Endpoint::ok().await;
    let variables = [STREAM, HTTP, ("NATS_DELIVER", "all"), ("NATS_PENDING_BYTES", "10KiB")];
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
    let began = Instant::now();
    stream.settled().await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), 30, 2), 0);
    assert_eq!(relay.metric("messages_redelivered_total").await, 0);
    assert!(relay.stop().await.success());
    assert!(relay.lines(WARN).is_empty(), "{:?}", relay.lines(WARN));
}

#[tokio::test]
async fn with_room_for_one_message_all_are_relayed_also_after_a_cut() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let variables = [STREAM, HTTP, ("NATS_PENDING_MESSAGES", "1")];
    let mut relay = Relay::start(&proxy.url(), &endpoint.url(), &variables).await;
    stream.fill(0..50, 5, 0).await;
    endpoint.received(10).await;
    proxy.cut();
    stream.settled().await;
    assert_eq!(numbers(&endpoint.calls()), (0..50).collect::<Vec<_>>());
    assert!(relay.stop().await.success());
}

// The end

#[tokio::test]
async fn what_is_in_work_at_the_signal_is_finished_and_the_rest_stays_in_the_stream() {
    for name in ["TERM", "INT"] {
        let (nats, stream) = server().await;
        let endpoint = Held::start().await;
        let variables =
            [STREAM, HTTP, PATIENT, ("SHUTDOWN_GRACE", "1h"), ("NATS_PENDING_MESSAGES", "20")];
        let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
        stream.fill(0..100, 5, 0).await;
        relay.counted("messages_received_total", 20).await;
        endpoint.called(5).await;
        relay.counted("stream_messages_pending", 80).await;
        signal(relay.pid(), name);
        relay.logged("\"message\":\"stopping").await;
        endpoint.release();
        assert!(relay.exit().await.success());
        let info = stream.consumer().await;
        assert_eq!(
            (&info["num_ack_pending"], &info["num_pending"]),
            (&json!(0), &json!(80)),
            "{info}"
        );
        assert_eq!(endpoint.subjects().len(), 20);
        assert!(relay.lines(ERROR).is_empty() && relay.lines(WARN).is_empty(), "{:?}", relay.log());
    }
}

#[tokio::test]
async fn a_relay_that_is_stopped_while_nats_is_away_leaves_its_messages_to_the_next() {
    let (mut nats, stream) = server().await;
    let endpoint = Held::start().await;
    let mut relay =
        Relay::start(&nats.url(), &endpoint.url(), &[STREAM, PATIENT, ("SHUTDOWN_GRACE", "500ms")])
            .await;
    stream.fill(0..10, 5, 0).await;
    endpoint.called(5).await;
    nats.kill();
    relay.logged("cannot reconnect to NATS yet").await;
    assert!(relay.stop().await.success());
    assert_eq!(relay.lines("left in the stream").len(), 1);
    assert!(relay.lines(ERROR).is_empty(), "{:?}", relay.lines(ERROR));
    nats.restart();
    endpoint.release();
    let next = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    stream.settled().await;
    next.counted("messages_relayed_total", 10).await;
}

// Readiness

#[tokio::test]
async fn readyz_tells_whether_messages_can_be_had() {
    let (mut nats, stream) = server().await;
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    let standby = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    relay.readyz(200).await;
    standby.readyz(200).await;
    nats.kill();
    relay.readyz(503).await;
    standby.readyz(503).await;
    nats.restart();
    relay.readyz(200).await;
    standby.readyz(200).await;
    stream.publish("cms.cache.a", "").await;
    stream.settled().await;
}
