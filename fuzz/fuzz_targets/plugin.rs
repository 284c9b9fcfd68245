//! The boundary to plugins: whatever a component returns ends as a message that keeps every
//! promise, or as a reason to stop, and the next message finds a plugin that works.
//!
//! An input looks like a message on the wire: the subject's tail, lines of headers, an empty line,
//! and the payload, which becomes the memory of the plugin. The first four words of that are the
//! addresses of what its hooks return; at -1 they break off. An input that begins like WebAssembly
//! is a file to be loaded.
#![no_main]

#[path = "../../tests/support/component.rs"]
#[allow(dead_code)]
mod component;

use async_nats::HeaderMap;
use component::{Component, Folder, HOOKS};
use libfuzzer_sys::fuzz_target;
use nats_webhook_relay::headers::{self, is_framing, is_ours};
use nats_webhook_relay::message::{Id, Message};
use nats_webhook_relay::observe::Observer;
use nats_webhook_relay::plugin::settings::{Cache, Settings};
use nats_webhook_relay::plugin::{Kind, Limits, Plugins, Shaped, Stopped, Why};
use nats_webhook_relay::relay::copy::relayed_copy;
use nats_webhook_relay::subject::{MAX_SUBJECT_BYTES, Prefix, Subjects, check};
use nats_webhook_relay::webhook::Delivery;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Where the payload lies in the memory of the plugin. All else there is zero.
const MEMORY: u32 = 4096;
/// Little, so that a short input can return too much.
const MAX_PAYLOAD: usize = 2048;
/// The tail in [`usual`].
const USUAL: &str = "usual";

struct Parts {
    runtime: Runtime,
    plugins: Plugins,
    listen: Prefix,
    relayed: Subjects,
}

static PARTS: LazyLock<Parts> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let component = Component::with_all(|hook| {
        let address = MEMORY + 4 * HOOKS.iter().position(|other| *other == hook).unwrap() as u32;
        format!(
            ";; Nothing of an earlier call is left: the same input has the same end.
            (memory.copy (i32.const {MEMORY}) (local.get $payload) (local.get $payload_len))
            (local.set $at (i32.add (i32.const {MEMORY}) (local.get $payload_len)))
            (memory.fill (local.get $at) (i32.const 0)
                (i32.sub (i32.mul (memory.size) (i32.const 65536)) (local.get $at)))
            (local.set $at (i32.load (i32.const {address})))
            (if (i32.eq (local.get $at) (i32.const -1)) (then unreachable))
            (local.get $at)"
        )
    });
    // The second one is given what the first one returned.
    let folder = Folder::with(&[("first", &component), ("second", &component)]);
    let plugins = runtime.block_on(load(&folder, Duration::from_secs(10))).unwrap();
    Parts {
        runtime,
        plugins,
        listen: Prefix::parse("cms.cache").unwrap(),
        relayed: Subjects::Below(Prefix::parse("relayed.cache").unwrap()),
    }
});

fuzz_target!(
    init: {
        LazyLock::force(&PARTS);
    },
    |data: &[u8]| {
        PARTS.runtime.block_on(async {
            if data.starts_with(b"\0asm") { file(data).await } else { returned(data).await }
        });
    }
);

/// A component that is anything.
async fn file(data: &[u8]) {
    let folder = Folder::new();
    folder.write("any.wasm", data);
    match load(&folder, Duration::from_millis(200)).await {
        Ok(plugins) => {
            let _ = shape(&plugins, usual()).await;
            plugins.close().await;
        }
        Err(error) => assert!(format!("{error:#}").starts_with("plugin "), "{error:#}"),
    }
}

/// A component that returns anything.
async fn returned(data: &[u8]) {
    let (head, memory) = match data.windows(2).position(|end| end == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (&b""[..], data),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let tail = lines.next().filter(|tail| check(tail).is_ok()).unwrap_or("article.42");
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        if let (Ok(name), Ok(value)) =
            (name.parse::<async_nats::HeaderName>(), value.parse::<async_nats::HeaderValue>())
        {
            headers.append(name, value);
        }
    }
    let message = message(tail, headers, memory);
    match shape(&PARTS.plugins, message.clone()).await {
        Ok(shaped) => promises(&message, shaped),
        Err(stopped) => {
            let text = stopped.to_string();
            assert!(text.len() < 2048 && !headers::value(&text).is_empty(), "{text}");
            assert!(!matches!(stopped.why, Why::Failed(Kind::Memory, _)), "{text}");
            let shaped = shape(&PARTS.plugins, usual())
                .await
                .unwrap_or_else(|next| panic!("{text}; then {next}"));
            assert_eq!((&shaped.body[..], shaped.tail.as_str()), (&usual().payload[..], USUAL));
        }
    }
}

fn promises(message: &Arc<Message>, shaped: Shaped) {
    let Parts { listen, relayed, .. } = &*PARTS;
    assert!(shaped.body.len() <= MAX_PAYLOAD && shaped.payload.len() <= MAX_PAYLOAD);
    let token = |token: &str| {
        !token.is_empty()
            && !token.contains(|c: char| c.is_whitespace() || c.is_control() || "*>".contains(c))
    };
    assert!(shaped.tail.split('.').all(token), "{:?}", shaped.tail);
    let subject = relayed.subject(&shaped.tail);
    assert!(
        subject.len() <= MAX_SUBJECT_BYTES
            && relayed.tail(&subject) == Some(&shaped.tail)
            && listen.tail(&subject).is_none()
    );
    assert!(shaped.headers.len() <= 200);
    for (name, value) in &shaped.headers {
        assert!(
            !is_framing(name)
                && !is_ours(name)
                && !["host", "content-length", "webhook-id"].contains(&name.as_str()),
            "{name}"
        );
        assert!(
            value.as_bytes().iter().all(|byte| *byte == b'\t' || (*byte >= 32 && *byte != 127)),
            "{value:?}"
        );
    }
    // The payload fits, the message's own headers beside it may not.
    let Ok(copy) = relayed_copy(
        message,
        relayed,
        &shaped.tail,
        shaped.payload,
        message.id.to_string(),
        MAX_PAYLOAD,
    ) else {
        return;
    };
    assert!(copy.subject.as_str() == subject && copy.size() <= MAX_PAYLOAD);
    let call = Delivery::rehearsed(message, shaped.body, shaped.headers, copy).headers();
    for (name, own) in [("nats-subject", &*message.subject), ("webhook-id", message.id.as_str())] {
        assert_eq!(call.get_all(name).iter().collect::<Vec<_>>(), [&headers::value(own)]);
    }
}

async fn load(folder: &Folder, timeout: Duration) -> anyhow::Result<Plugins> {
    let config = Settings {
        paths: vec![folder.path().to_owned()],
        timeout,
        memory: 16 << 20,
        watch: false,
        cache: Cache::Off,
        settings: Vec::new(),
    };
    Ok(Plugins::load(&config, &Observer::default()).await?.unwrap())
}

async fn shape(plugins: &Plugins, message: Arc<Message>) -> Result<Shaped, Stopped> {
    let tail = PARTS.listen.tail(&message.subject).unwrap();
    plugins.shape(&message, tail, Limits::new(MAX_PAYLOAD, &PARTS.relayed)).await
}

fn message(tail: &str, headers: HeaderMap, payload: &[u8]) -> Arc<Message> {
    Arc::new(Message::new(
        &PARTS.listen.subject(tail),
        headers,
        payload.to_vec().into(),
        Id::unique(),
    ))
}

/// A message for which the hooks return its payload, no headers, and the tail [`USUAL`].
fn usual() -> Arc<Message> {
    let text = MEMORY + 52;
    let words = [
        [MEMORY + 16, MEMORY + 28, MEMORY + 16, MEMORY + 40].as_slice(),
        &[0, MEMORY, 52 + USUAL.len() as u32],
        &[0, 0, 0],
        &[0, text, USUAL.len() as u32],
    ];
    let bytes = words.concat().into_iter().flat_map(u32::to_le_bytes).chain(USUAL.bytes());
    message("article.42", HeaderMap::new(), &bytes.collect::<Vec<_>>())
}
