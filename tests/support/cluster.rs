//! One or three nats-server processes with JetStream, and JetStream's own API.
//!
//! A node keeps its ports, its name and its store over any number of crashes. The API is spoken
//! as JSON, so that what is found here does not rest on the library that the relay uses.

use super::nats;
use super::{LIMIT, eventually, signal, within};
use async_nats::{Client, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::net::TcpSocket;

pub struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts this many nodes and waits until JetStream answers, which in a cluster takes a leader.
    pub async fn start(size: usize) -> Self {
        // Without advertising, a client knows no way around a proxy.
        let cluster = Self::with(
            &vec!["jetstream { max_file_store: 4GB }".to_owned(); size],
            "no_advertise: true",
        )
        .await;
        let client = cluster.client().await;
        until("JetStream answers", || ask(&client, "INFO", json!({}))).await;
        cluster
    }

    /// Starts a node with each of these configurations. They tell clients of each other.
    pub async fn telling(configs: &[String]) -> Self {
        let cluster = Self::with(configs, "no_advertise: false").await;
        for node in &cluster.nodes {
            eventually("the nodes know each other", || {
                node.greeting().matches("127.0.0.1:").count() == configs.len()
            })
            .await;
        }
        cluster
    }

    async fn with(configs: &[String], advertise: &str) -> Self {
        let kept: Vec<_> = configs.iter().map(|_| (Kept::port(), Kept::port())).collect();
        let routes: Vec<_> =
            kept.iter().map(|(_, route)| format!("nats://127.0.0.1:{}", route.number)).collect();
        let mut nodes = Vec::new();
        for (number, ((port, route), config)) in kept.into_iter().zip(configs).enumerate() {
            let mut config = format!("server_name: n{number}\n{config}\n");
            if configs.len() > 1 {
                config += &format!(
                    "cluster {{ name: test, listen: \"127.0.0.1:{}\", {advertise}, routes: {routes:?} }}\n",
                    route.number
                );
            }
            nodes.push(Node::start(port, route, &config));
        }
        let cluster = Self { nodes };
        for node in &cluster.nodes {
            node.listens().await;
        }
        cluster
    }

    pub fn nodes(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port.number).collect()
    }

    /// A client that knows all nodes and tries for as long as it takes.
    pub async fn client(&self) -> Client {
        let urls: Vec<async_nats::ServerAddr> = self
            .ports()
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}").parse().unwrap())
            .collect();
        let options = async_nats::ConnectOptions::new()
            .retry_on_initial_connect()
            .ping_interval(Duration::from_secs(2))
            .reconnect_delay_callback(|_| Duration::from_millis(100));
        within("test client connects", options.connect(&urls[..])).await.unwrap()
    }

    /// Creates a stream with a replica on each node. `settings` are added and win.
    pub async fn create_stream(
        &self,
        client: &Client,
        name: &str,
        subjects: &str,
        settings: Value,
    ) {
        let mut config = json!({
            "name": name, "subjects": [subjects], "storage": "file", "num_replicas": self.nodes.len(), "retention": "limits",
            "discard": "old", "max_age": 0, "max_msgs": -1, "max_bytes": -1, "max_consumers": -1,
        });
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        // A cluster has to have heard of all its nodes first.
        until(&format!("stream {name}"), || {
            ask(client, format!("STREAM.CREATE.{name}"), config.clone())
        })
        .await;
        until(&format!("stream {name} is on all nodes"), || self.is_complete(client, name)).await;
    }

    /// Whether the stream has a leader, and every other node has all of it.
    pub async fn is_complete(&self, client: &Client, stream: &str) -> Result<(), String> {
        let info = ask(client, format!("STREAM.INFO.{stream}"), json!({})).await?;
        let Some(replicas) = info["cluster"]["replicas"].as_array() else {
            return if self.nodes.len() == 1 { Ok(()) } else { Err(info.to_string()) };
        };
        let current = replicas
            .iter()
            .filter(|replica| replica["current"] == true && replica["offline"] != true)
            .count();
        if current + 1 == self.nodes.len() { Ok(()) } else { Err(info["cluster"].to_string()) }
    }
}

/// One nats-server of a [`Cluster`].
pub struct Node {
    process: Child,
    folder: TempDir,
    port: Kept,
    _route: Kept,
}

impl Node {
    fn start(port: Kept, route: Kept, config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("nats.conf"), config).unwrap();
        let process = nats::spawn(folder.path(), i32::from(port.number));
        Self { process, folder, port, _route: route }
    }

    /// What the server has written to its log, over all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("nats.log")).unwrap_or_default()
    }

    /// Ends the server as a crash would.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends the server as an operator would.
    pub async fn terminate(&mut self) {
        signal(self.process.id(), "TERM");
        eventually("nats-server ends", || self.process.try_wait().unwrap().is_some()).await;
    }

    /// Keeps the server from doing anything, while its connections stay open.
    pub fn freeze(&self) {
        signal(self.process.id(), "STOP");
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        signal(self.process.id(), "CONT");
    }

    /// Starts an ended server again, with its ports and what it has stored.
    pub async fn restart(&mut self) {
        assert!(self.process.try_wait().unwrap().is_some(), "the server runs");
        self.process = nats::spawn(self.folder.path(), i32::from(self.port.number));
        self.listens().await;
    }

    /// What the server says first, with the addresses of those that it tells of.
    fn greeting(&self) -> String {
        let mut line = String::new();
        let stream = std::net::TcpStream::connect(("127.0.0.1", self.port.number)).unwrap();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.split("\"connect_urls\":").nth(1).unwrap_or_default().to_owned()
    }

    async fn listens(&self) {
        let listens = || std::net::TcpStream::connect(("127.0.0.1", self.port.number)).is_ok();
        eventually("nats-server listens", listens).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that only a server that is told of it gets, whether one listens or not.
///
/// The socket here is bound and never listens. Linux then gives the port to nobody who asks for any
/// port, neither to listen nor to connect from, but lets a server listen on it by number: both
/// have `SO_REUSEADDR`.
struct Kept {
    number: u16,
    _socket: TcpSocket,
}

impl Kept {
    fn port() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self { number: socket.local_addr().unwrap().port(), _socket: socket }
    }
}

/// Asks JetStream's API; an error is the server's or that nobody answers.
pub async fn ask(client: &Client, subject: impl AsRef<str>, body: Value) -> Result<Value, String> {
    let body = if body == json!({}) { String::new() } else { body.to_string() };
    let request = Request::new().payload(body.into()).timeout(Some(Duration::from_secs(2)));
    let answer = client
        .send_request(format!("$JS.API.{}", subject.as_ref()), request)
        .await
        .map_err(|error| error.to_string())?;
    let answer: Value =
        serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())?;
    if answer["error"].is_null() { Ok(answer) } else { Err(answer["error"].to_string()) }
}

/// Tries until it works.
pub async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let mut last = String::new();
    let tried = async {
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(error) => last = error,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let tried = tokio::time::timeout(LIMIT, tried).await;
    tried.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}: {last}"))
}

/// A message as a stream has it.
#[derive(Clone, Debug)]
pub struct Stored {
    pub subject: String,
    pub payload: Vec<u8>,
    pub at: SystemTime,
    headers: String,
}

impl Stored {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    }
}

/// Everything in a stream, from its beginning.
pub async fn read_stream(client: &Client, stream: &str) -> Vec<Stored> {
    let info = until(&format!("the state of {stream}"), || {
        ask(client, format!("STREAM.INFO.{stream}"), json!({}))
    })
    .await;
    let bound = |name: &str| info["state"][name].as_u64().unwrap();
    let messages: Vec<Option<Stored>> =
        futures_util::stream::iter(bound("first_seq").max(1)..=bound("last_seq"))
            .map(|sequence| read_message(client, stream, sequence))
            .buffered(32)
            .try_collect()
            .await
            .unwrap();
    let messages: Vec<_> = messages.into_iter().flatten().collect();
    assert_eq!(messages.len() as u64, bound("messages"), "{stream} was read completely");
    messages
}

async fn read_message(
    client: &Client,
    stream: &str,
    sequence: u64,
) -> Result<Option<Stored>, String> {
    let read = || async move {
        match ask(client, format!("STREAM.MSG.GET.{stream}"), json!({ "seq": sequence })).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.contains("10037") => Ok(None),
            Err(error) => Err(error),
        }
    };
    let Some(answer) = until(&format!("message {sequence} of {stream}"), read).await else {
        return Ok(None);
    };
    let message = &answer["message"];
    let decoded = |name: &str| STANDARD.decode(message[name].as_str().unwrap_or_default()).unwrap();
    Ok(Some(Stored {
        subject: message["subject"].as_str().unwrap().to_owned(),
        payload: decoded("data"),
        at: humantime::parse_rfc3339(message["time"].as_str().unwrap()).unwrap(),
        headers: String::from_utf8(decoded("hdrs")).unwrap(),
    }))
}
