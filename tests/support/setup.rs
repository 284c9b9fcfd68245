//! A relay between its server and an endpoint, with what it publishes in view.

use super::nats::NatsServer;
use super::relay::Relay;
use super::within;
use async_nats::{Client, HeaderMap, Message, Subscriber};
use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

pub struct Setup {
    pub relay: Relay,
    pub client: Client,
    pub relayed: Subscriber,
    pub failed: Subscriber,
    pub nats: NatsServer,
}

impl Setup {
    /// Relays `cms.cache` to `relayed.cache`, on failure to `failed.cache`.
    pub async fn start(destination: &str, variables: &[(&str, &str)]) -> Self {
        Self::on(NatsServer::start(), destination, variables).await
    }

    /// Relays through these plugins (a value of `PLUGINS`), without a cache of compiled code.
    pub async fn with_plugins(
        destination: &str,
        plugins: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut all =
            vec![("PLUGINS", plugins), ("PLUGIN_CACHE", "off"), ("HTTP_LISTEN", "127.0.0.1:0")];
        all.extend_from_slice(variables);
        Self::start(destination, &all).await
    }

    pub async fn on(nats: NatsServer, destination: &str, variables: &[(&str, &str)]) -> Self {
        let client = nats.client().await;
        let failed = client.subscribe("failed.>").await.unwrap();
        let mut relayed = client.subscribe("relayed.>").await.unwrap();
        client.publish("relayed.begin", "".into()).await.unwrap();
        within("subscriptions are active", relayed.next()).await.unwrap();
        let mut all = vec![("NATS_FAILED_SUBJECT_PREFIX", "failed.cache")];
        all.extend_from_slice(variables);
        let relay = Relay::start(&nats.url(), destination, &all).await;
        Self { relay, client, relayed, failed, nats }
    }

    pub async fn publish(&self, subject: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(subject.to_owned(), payload.into().into()).await.unwrap();
    }

    /// Publishes with headers; a repeated name has several values.
    pub async fn publish_with(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: impl Into<Vec<u8>>,
    ) {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.append(*name, *value));
        self.client
            .publish_with_headers(subject.to_owned(), map, payload.into().into())
            .await
            .unwrap();
    }

    /// Has the server take `commands` of its own protocol, which a client library would refuse to send.
    pub async fn publish_by_hand(&self, commands: &[u8]) {
        by_hand(self.nats.port, commands).await;
    }

    pub async fn relayed(&mut self) -> Message {
        within("a relayed message", self.relayed.next()).await.unwrap()
    }

    pub async fn failed(&mut self) -> Message {
        within("a failed message", self.failed.next()).await.unwrap()
    }

    /// The next `count` relayed messages, by subject.
    pub async fn relayed_by_subject(&mut self, count: usize) -> Vec<Message> {
        by_subject(&mut self.relayed, "a relayed message", count).await
    }

    /// The next `count` failed messages, by subject.
    pub async fn failed_by_subject(&mut self, count: usize) -> Vec<Message> {
        by_subject(&mut self.failed, "a failed message", count).await
    }

    /// Stops the relay, which had nothing left to do, and checks that it has published no more
    /// than what was taken here.
    pub async fn end(&mut self) {
        assert!(self.relay.stop().await.success());
        for (messages, end) in
            [(&mut self.relayed, "relayed.end"), (&mut self.failed, "failed.end")]
        {
            // The relay has gone, so whatever it has published is before this.
            self.client.publish(end, "".into()).await.unwrap();
            let next = within("the end", messages.next()).await.unwrap();
            assert_eq!(next.subject.as_str(), end, "one too many: {next:?}");
        }
    }
}

/// Has a server take `commands` of its own protocol, which a client library would refuse to send.
pub async fn by_hand(port: u16, commands: &[u8]) {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("INFO "), "{line}");
    let connect = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";
    stream.write_all(&[connect, commands, b"PING\r\n"].concat()).await.unwrap();
    line.clear();
    within("the server takes the commands", stream.read_line(&mut line)).await.unwrap();
    assert_eq!(line, "PONG\r\n");
}

/// An `HPUB` command with exactly these header lines.
pub fn hpub(subject: &str, lines: &[&str], payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "NATS/1.0\r\n{}\r\n",
        lines.iter().map(|line| format!("{line}\r\n")).collect::<String>()
    );
    let command = format!("HPUB {subject} {} {}\r\n{head}", head.len(), head.len() + payload.len());
    [command.as_bytes(), payload, b"\r\n"].concat()
}

/// A message that the client library of the relay cannot read.
pub fn poison(subject: &str, payload: &str) -> Vec<u8> {
    hpub(subject, &["bad name: x"], payload.as_bytes())
}

async fn by_subject(messages: &mut Subscriber, what: &str, count: usize) -> Vec<Message> {
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(within(what, messages.next()).await.unwrap());
    }
    found.sort_by(|a, b| a.subject.as_str().cmp(b.subject.as_str()));
    found
}

/// All values of a message's header.
pub fn values<'a>(message: &'a Message, name: &str) -> Vec<&'a str> {
    message
        .headers
        .iter()
        .flat_map(|headers| headers.get_all(name))
        .map(|value| value.as_str())
        .collect()
}

/// The value of a message's header, which is there exactly once.
pub fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    let [value] = values(message, name)[..] else { panic!("{name} once in {message:?}") };
    value
}
