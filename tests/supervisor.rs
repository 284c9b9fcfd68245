//! What systemd is told, through a real notification socket (sd_notify(3)).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use support::component::{BODY, Component, unchanged};
use support::endpoint::{Endpoint, Reply};
use support::nats::NatsServer;
use support::relay::Relay;
use support::{eventually, signal};
use tempfile::TempDir;
use tokio::net::UnixDatagram;

/// What has been said on a socket so far.
struct Socket {
    said: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
}

impl Socket {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes).await {
                heard.lock().unwrap().push(String::from_utf8(bytes[..length].to_vec()).unwrap());
            }
        });
        Self { said, folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("notify").to_str().unwrap().to_owned()
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    async fn hears(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} notifications"), || self.said().len() >= count).await;
        self.said()
    }
}

#[tokio::test]
async fn ready_when_the_subscription_is_active_and_stopping_while_work_is_finished() {
    let nats = NatsServer::start();
    let socket = Socket::start();
    let released = Arc::new(AtomicBool::new(false));
    let seen = released.clone();
    let endpoint = Endpoint::start(move |_| {
        Reply::status(if seen.load(Ordering::SeqCst) { 200 } else { 503 })
    })
    .await;
    // Of the server it knows nothing yet.
    let mut relay =
        Relay::spawn("nats://127.0.0.1:1", &endpoint.url(), &[("NOTIFY_SOCKET", &socket.path())]);
    relay.logged("NATS").await;
    assert_eq!(socket.said(), Vec::<String>::new(), "not ready without a subscription");
    relay.stop().await;
    assert_eq!(socket.said(), Vec::<String>::new());

    let mut relay =
        Relay::spawn(&nats.url(), &endpoint.url(), &[("NOTIFY_SOCKET", &socket.path())]);
    assert_eq!(socket.hears(1).await, ["READY=1\n"]);
    let client = nats.client().await;
    client.publish("cms.cache.article.42", "".into()).await.unwrap();
    endpoint.received(1).await;
    signal(relay.pid(), "TERM");
    assert_eq!(socket.hears(2).await[1], "STOPPING=1\n");
    released.store(true, Ordering::SeqCst);
    assert!(relay.exit().await.success());
    assert_eq!(socket.said().len(), 2, "{:?}", socket.said());
}

#[tokio::test]
async fn a_reload_is_told_from_its_beginning_to_its_end_also_when_it_is_refused() {
    let nats = NatsServer::start();
    let socket = Socket::start();
    let folder = TempDir::new().unwrap();
    let plugin = folder.path().join("p.wasm");
    std::fs::write(&plugin, Component::with(BODY, &unchanged(BODY)).binary()).unwrap();
    let variables = [
        ("NOTIFY_SOCKET", &*socket.path()),
        ("PLUGINS", plugin.to_str().unwrap()),
        ("PLUGIN_CACHE", "off"),
    ];
    let mut relay = Relay::spawn(&nats.url(), "http://127.0.0.1:9/", &variables);
    socket.hears(1).await;
    for (round, binary) in
        [Component::with(BODY, &unchanged(BODY)).binary(), b"no component".to_vec()]
            .into_iter()
            .enumerate()
    {
        std::fs::write(&plugin, binary).unwrap();
        signal(relay.pid(), "HUP");
        let said = socket.hears(3 + 2 * round).await;
        let (reloading, ready) = (&said[1 + 2 * round], &said[2 + 2 * round]);
        let now = reloading
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap_or_else(|| panic!("{said:?}"));
        assert!(now.trim().parse::<u64>().is_ok_and(|now| now > 0), "{said:?}");
        assert_eq!(ready, "READY=1\n");
    }
    relay.logged("plugins not reloaded").await;
    assert!(relay.stop().await.success());
    assert_eq!(socket.said().last().unwrap(), "STOPPING=1\n");
}

#[tokio::test]
async fn a_supervisor_that_cannot_be_told_is_no_reason_to_stop() {
    let nats = NatsServer::start();
    let mut relay =
        Relay::start(&nats.url(), "http://127.0.0.1:9/", &[("NOTIFY_SOCKET", "/none/here")]).await;
    relay.logged("could not notify systemd").await;
    assert!(relay.stop().await.success());
}
